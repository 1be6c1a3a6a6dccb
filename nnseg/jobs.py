"""What there is to predict or to score: the files of each case and where its result goes."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nnseg.dataset import DatasetSpec, channel_fault, find_images, visible_files
from nnseg.errors import DataError, MissingError, UsageError
from nnseg.folders import predicted_spec_file
from nnseg.volume import ENDINGS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionJob:
    """One case to predict."""

    case_id: str
    images: tuple[Path, ...]  # a file for each channel
    target: Path  # the label map to write
    fault: str | None = None  # what is wrong with its files, if anything is


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringJob:
    """One label map to score."""

    case_id: str
    reference: Path
    prediction: Path


def find_prediction_jobs(
    source: Path, target: Path, spec: DatasetSpec
) -> tuple[PredictionJob, ...]:
    """List the cases of `source` and the files that they go to, sorted by case.

    Args:
        source: A folder of CASE_0000.nii.gz, ..., or the image of a one-channel model.
        target: A folder; for one image also a file.
        spec: What the model was trained on: its channels and how files end.

    Raises:
        MissingError: `source` does not exist.
        UsageError: `target` is `source`, or cannot take what comes out.
        DataError: There is no image.
    """
    if not source.exists():
        raise MissingError(f"{source} does not exist; give an image or a folder of images")
    if source.is_dir():
        return _jobs_of_folder(source, target, spec)
    if len(spec.channels) != 1:
        raise UsageError(
            f"the model wants {len(spec.channels)} channels; give a folder with a file each"
        )
    if not target.name.endswith(ENDINGS):
        target = target / source.name
    _refuse_the_input(source, target)
    case_id = target.name.removesuffix(spec.file_ending)
    return (PredictionJob(case_id=case_id, images=(source,), target=target),)


def _jobs_of_folder(source: Path, target: Path, spec: DatasetSpec) -> tuple[PredictionJob, ...]:
    _refuse_the_input(source, target)
    if target.is_file():
        raise UsageError(f"{target} is a file; the images of a folder go into a folder")
    found = find_images(source, spec)
    if not found:
        raise DataError(
            f"{source}: no file is named CASE_0000{spec.file_ending}; name the images so"
        )
    jobs = [
        PredictionJob(
            case_id=case_id,
            images=tuple(path for _, path in sorted(channels.items())),
            target=target / f"{case_id}{spec.file_ending}",
            fault=channel_fault(source, case_id, set(channels), spec),
        )
        for case_id, channels in found.items()
    ]
    _refuse_to_replace(target, [job.target for job in jobs])
    return tuple(jobs)


def _refuse_the_input(source: Path, target: Path) -> None:
    if source.resolve() == target.resolve():
        raise UsageError(f"{target}: the output must not be the input; give another folder")


def _refuse_to_replace(folder: Path, targets: Iterable[Path]) -> None:
    """Refuse to write over files that no prediction made, such as a dataset's own labels."""
    if (folder / "run.json").exists() or any(folder.glob("run_*_of_*.json")):
        return
    for path in (predicted_spec_file(folder), *targets):
        if path.exists():
            raise UsageError(
                f"{path} is there, and no prediction of ours made it; give another folder"
            )


def find_scoring_jobs(reference: Path, prediction: Path, ending: str) -> tuple[ScoringJob, ...]:
    """Pair the label maps of two folders, or two files, sorted by case.

    A reference without a prediction is passed over, aloud.

    Raises:
        MissingError: `reference` or `prediction` does not exist.
        DataError: A prediction has no reference, or there is none.
    """
    for path in (reference, prediction):
        if not path.exists():
            raise MissingError(f"{path} does not exist; give two label maps or two folders")
    if prediction.is_file():
        case_id = prediction.name.removesuffix(ending)
        return (ScoringJob(case_id=case_id, reference=reference, prediction=prediction),)
    jobs = []
    for path in visible_files(prediction):
        if not path.name.endswith(ending):
            continue
        truth = reference / path.name
        if not truth.is_file():
            raise DataError(f"{path}: {truth} does not exist; a prediction needs its reference")
        case_id = path.name.removesuffix(ending)
        jobs.append(ScoringJob(case_id=case_id, reference=truth, prediction=path))
    if not jobs:
        raise DataError(f"{prediction}: no file ends in {ending}; nothing to score")
    references = {p.name for p in visible_files(reference) if p.name.endswith(ending)}
    missing = references - {job.prediction.name for job in jobs}
    if missing:
        logger.warning("%d references have no prediction, such as %s", len(missing), min(missing))
    return tuple(jobs)
