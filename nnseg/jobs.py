"""What there is to predict or to score: the files of each case and where its result goes."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nnseg import record
from nnseg.dataset import (
    DatasetSpec,
    called_as,
    channel_fault,
    find_label_maps,
    group_image_files,
    list_files,
    one_label_map,
    printable,
    printable_id,
    visible_files,
)
from nnseg.errors import DataError, MissingError, NnsegError, UsageError
from nnseg.folders import predicted_spec_file, proof_file, proof_files
from nnseg.volume import channel_counts, label_ending, side_files, split_ending

logger = logging.getLogger(__name__)

NAMED = 3  # files that one message names; more are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionJob:
    """One case to predict."""

    case_id: str
    images: tuple[Path, ...]  # a file for each channel, or one for all
    target: Path  # the label map to write
    fault: str | None = None  # what is wrong with its files, if anything is


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringJob:
    """One label map to score."""

    case_id: str
    reference: Path
    prediction: Path


def find_prediction_jobs(
    source: Path, target: Path, spec: DatasetSpec, *, overwrite: bool = False
) -> tuple[PredictionJob, ...]:
    """List the cases of `source` and the files that they go to, sorted by case.

    Args:
        source: A folder of CASE_0000.nii.gz, ..., or one image that holds all channels.
        target: A folder; for one image also a file.
        spec: What the model was trained on: its channels and how files end.
        overwrite: Whether one image's label map may replace a file that no prediction made.

    Raises:
        MissingError: `source` does not exist.
        MachineError: `source` cannot be listed.
        UsageError: `target` is `source`, cannot take what comes out, or holds files that no
            prediction made.
        DataError: There is no image.
    """
    if not source.exists():
        raise MissingError(f"{source} does not exist; give an image or a folder of images")
    if source.is_dir():
        return _jobs_of_folder(source, target, spec)
    if len(spec.channels) not in channel_counts(source):
        raise UsageError(
            f"the model wants {len(spec.channels)} channels; give a folder with a file each"
        )
    _, wanted = split_ending(target.name)
    if not wanted:
        stem, ending = split_ending(source.name)
        target = target / f"{stem}{label_ending(ending)}"
    elif label_ending(wanted) != wanted:
        raise UsageError(f"{target}: JPEG does not keep values; give a .png file")
    _refuse_the_input(source, target)
    case_id, _ = split_ending(target.name)
    marks = (f"{case_id}.run.json", f"{case_id}.run.log")
    if not overwrite and not any((target.parent / mark).exists() for mark in marks):
        _refuse_to_replace(target.parent, [target], "give another file, or --overwrite")
    return (PredictionJob(case_id=case_id, images=(source,), target=target),)


def _jobs_of_folder(source: Path, target: Path, spec: DatasetSpec) -> tuple[PredictionJob, ...]:
    _refuse_the_input(source, target)
    if target.is_file():
        raise UsageError(f"{target} is a file; the images of a folder go into a folder")
    files = list_files(source)
    found = group_image_files(files, spec)
    if not found:
        raise DataError(
            f"{source}: no file is named CASE_0000{spec.file_ending}; name the images so"
        )
    _warn_of_strangers(source, files, found)
    jobs = [
        PredictionJob(
            case_id=printable_id(case_id),
            images=tuple(files[0] for _, files in sorted(channels.items())),
            target=target / f"{printable_id(case_id)}{spec.label_ending}",
            fault=channel_fault(source, case_id, channels, spec),
        )
        for case_id, channels in found.items()
    ]
    _refuse_to_replace(target, [predicted_spec_file(target), *(job.target for job in jobs)])
    return tuple(jobs)


def _warn_of_strangers(
    folder: Path, files: Sequence[Path], found: Mapping[str, Mapping[int, Sequence[Path]]]
) -> None:
    """Name the files of a folder that end as images do and are none of the cases found in it."""
    used = {path for case in found.values() for channel in case.values() for path in channel}
    used |= {side for path in used for side in side_files(path)}
    strange = [
        printable(path.name) for path in files if path not in used and split_ending(path.name)[1]
    ]
    if strange:
        more = f" and {len(strange) - NAMED} more" if len(strange) > NAMED else ""
        shown = ", ".join(strange[:NAMED])
        text = "%s: %s%s are passed over; images must be named CASE_0000, CASE_0001, ..."
        logger.warning(text, folder, shown, more)


def _refuse_the_input(source: Path, target: Path) -> None:
    if source.resolve() == target.resolve():
        raise UsageError(f"{target}: the output must not be the input; give another folder")


def _refuse_to_replace(
    folder: Path, files: Iterable[Path], remedy: str = "give another folder"
) -> None:
    """Refuse to write over files that no prediction made, such as a dataset's own labels."""
    marks = ("run.json", "log.txt", "run_*_of_*.json", "run_*_of_*.log")  # logs from the start
    if any(True for mark in marks for _ in folder.glob(mark)):
        return
    for path in files:
        if path.exists() and not proof_file(path).exists():
            raise UsageError(f"{path} is there, and no prediction of ours made it; {remedy}")


def find_scoring_jobs(reference: Path, prediction: Path, ending: str) -> tuple[ScoringJob, ...]:
    """Pair the label maps of two folders, or two files, sorted by case.

    Predictions end as `ending` says, in .png where that is JPEG's; references as label maps can.
    What a proof lists beside its label map, such as a map of entropy, is no prediction. References
    without a prediction are passed over; `find_unpredicted` names them.

    Raises:
        MissingError: `reference` or `prediction` does not exist.
        MachineError: One of them cannot be listed.
        DataError: A prediction has no reference, or there is none.
    """
    for path in (reference, prediction):
        if not path.exists():
            raise MissingError(f"{path} does not exist; give two label maps or two folders")
    ending = label_ending(ending)
    if prediction.is_file() != reference.is_file():
        raise UsageError(f"{reference} and {prediction}: give two label maps or two folders")
    if prediction.is_file():
        case_id = prediction.name.removesuffix(ending)
        return (ScoringJob(case_id=case_id, reference=reference, prediction=prediction),)
    predictions = predicted_maps(prediction, ending)
    case_ids = [path.name.removesuffix(ending) for path in predictions]
    references = called_as(find_label_maps(reference, ending), case_ids)
    jobs = []
    for case_id, path in zip(case_ids, predictions, strict=True):
        if case_id not in references:
            raise DataError(
                f"{path}: {reference / path.name} does not exist; a prediction needs its reference"
            )
        truth = one_label_map(case_id, references[case_id])
        jobs.append(ScoringJob(case_id=case_id, reference=truth, prediction=path))
    if not jobs:
        raise DataError(f"{prediction}: no file ends in {ending}; nothing to score")
    return tuple(jobs)


def find_unpredicted(reference: Path, jobs: Sequence[ScoringJob], ending: str) -> tuple[str, ...]:
    """Name the cases of a folder of references that no job scores, sorted; of a file, none.

    Args:
        reference: As of `find_scoring_jobs`.
        jobs: What it gave.
        ending: As of it.
    """
    if not reference.is_dir():
        return ()
    taken = {job.reference for job in jobs}
    found = find_label_maps(reference, label_ending(ending))
    return tuple(sorted(case for case, files in found.items() if not taken & set(files)))


def predicted_maps(folder: Path, ending: str) -> list[Path]:
    """List the label maps of a folder that end so, by name.

    What a proof lists beside its label map, such as a map of entropy, is none.

    Raises:
        MissingError, MachineError, DataError: As `visible_files`.
    """
    beside = set[str]()
    for path in proof_files(folder):
        with suppress(NnsegError, KeyError, TypeError):  # what proves nothing hides nothing
            content = record.read_json(path)
            beside |= set(content["outputs"]) - {content["label_map"]}
    return [
        path
        for path in visible_files(folder)
        if path.name.endswith(ending) and path.name not in beside
    ]
