"""Postprocessing with its files: rules chosen on predictions, and carried out on a folder of them.

The same command goes on where it was killed, with those label maps that no record proves to be
done.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnseg import commit, record
from nnseg.axes import Spacing
from nnseg.dataset import (
    DatasetSpec,
    called_as,
    find_label_maps,
    one_label_map,
    spec_to_json,
    visible_files,
)
from nnseg.errors import (
    DataError,
    DiskFullError,
    MissingError,
    NnsegError,
    UsageError,
)
from nnseg.folders import applied_file, predicted_spec_file, proof_files
from nnseg.jobs import ScoringJob
from nnseg.labels import Labels
from nnseg.lock import locked
from nnseg.parallel import OnProgress, for_each, out_of_memory
from nnseg.postprocess import (
    ComponentTable,
    Decided,
    Postprocessing,
    apply,
    component_table,
    decide,
    decide_as_nnunet,
)
from nnseg.postprocess.rules import values_of
from nnseg.runlog import logged_run
from nnseg.volume import (
    SLICE_OF_2D,
    grid_fault,
    label_ending,
    read_segmentation,
    side_files,
    write,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """LABEL_MAP.postprocessed.json: what a label map was made from, and that it is whole."""

    label_map: str  # the name of its file
    made_by: str  # hash of the rules and of what the labels mean
    postprocessing: Postprocessing
    inputs: dict[str, str]  # name of each file of the label map before to its SHA-256
    outputs: dict[str, str]  # the same of what was written
    voxels: int  # that became background
    record_sha256: str = ""  # of this record without it; `record.save_sealed` writes it


def decide_postprocessing(
    predictions: Sequence[Path],
    reference: Path,
    spec: DatasetSpec,
    target: Path,
    *,
    as_nnunet: bool = False,
    minimum_sizes: bool = True,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Decided:
    """Choose the rules that raise the Dice of predictions, and write them to `target`.

    Every file is read once; see `nnseg.postprocess.decide`. Of images of one slice, whose distance
    nobody knows, smallest sizes are in voxels.

    Args:
        predictions: Folders of label maps. Several are the folds of a cross-validation.
        reference: The folder of the true label maps.
        spec: What the labels mean, and how files end.
        target: The file that takes the rules.
        as_nnunet: Choose what nnU-Net chooses, and nothing else.
        minimum_sizes: Whether smallest sizes are tried, too.
        workers: Cases at once; None is one a core.
        on_progress: Called after each case.

    Raises:
        MissingError: A folder does not exist.
        DataError: A prediction lacks its reference, lies on another grid, cannot be read, or is
            there twice.
        MachineError: `target` cannot be written, or another run is at work in its folder.
    """
    jobs, folds = _scoring_jobs(predictions, reference, label_ending(spec.file_ending))

    def count(job: ScoringJob) -> tuple[ComponentTable, Spacing]:
        truth, geometry = read_segmentation(job.reference)
        predicted, other = read_segmentation(job.prediction)
        if fault := grid_fault(geometry, other):
            raise DataError(
                f"{job.prediction} lies on another grid than {job.reference}: {fault}; predict "
                "again"
            )
        return component_table(predicted, truth, spec.labels), geometry.spacing

    arguments = {
        "predictions": [str(folder) for folder in predictions],
        "reference": str(reference),
        "target": str(target),
        "as_nnunet": as_nnunet,
        "minimum_sizes": minimum_sizes,
    }
    folder = target.parent
    with (
        locked(folder, f"nnseg postprocess -o {target}"),
        logged_run(folder, "postprocess", arguments) as run,
    ):
        found = for_each(count, jobs, lambda job: job.case_id, workers, "counting", on_progress)
        tables = {case: table for case, (table, _) in found.items()}
        spacings = {case: spacing for case, (_, spacing) in found.items()}
        if as_nnunet:
            result = decide_as_nnunet(tables, spec.labels)
        else:
            flat = all(_is_flat(spacing) for spacing in spacings.values())
            result = decide(
                tables,
                spec.labels,
                spacings,
                folds=folds if len(predictions) > 1 else None,
                minimum_sizes=minimum_sizes,
                unit="voxels" if flat else "ml",
            )
        record.save(result.postprocessing, target)
        run.inputs += [path for job in jobs for path in (job.reference, job.prediction)]
        run.outputs.append(target)
        run.facts["decided"] = record.to_json(result)
    return result


def apply_postprocessing(
    source: Path,
    target: Path,
    postprocessing: Postprocessing,
    spec: DatasetSpec,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Path]:
    """Carry out rules on every label map of a folder, into another folder.

    Beside each result lies the record of its making, by which the same command knows what is done;
    a dataset.json names the labels.

    Args:
        source: The folder of label maps; it is left as it is.
        target: The folder of the results.
        postprocessing: The rules.
        spec: What the labels mean, and how files end.
        overwrite: Do again what is done, and replace files that were changed by hand or that this
            command did not make.
        workers: Cases at once; None is one a core.
        on_progress: Called after each case.

    Returns:
        Case id to the file written, or found done.

    Raises:
        UsageError: `target` is `source`, or holds label maps that this command did not make.
        PartlyDoneError: Some label maps failed; they are listed and the others are done.
        MissingError: `source` does not exist.
        DataError: There is no label map, a rule is about no label, or every case failed.
        MachineError: `target` cannot be written, or another run is at work there.
    """
    from nnseg.predicting import raise_failed  # late: it brings all that prediction needs

    if source.resolve() == target.resolve():
        raise UsageError(f"{target}: the output must not be the input; give another folder")
    for rule in postprocessing.rules:
        values_of(rule, spec.labels)
    ending = label_ending(spec.file_ending)
    maps = {path.name.removesuffix(ending): path for path in _label_maps(source, ending)}
    if not maps:
        raise DataError(f"{source}: no file ends in {ending}; nothing to postprocess")
    if not overwrite:
        _refuse_to_replace([target / path.name for path in maps.values()])

    def work(case_id: str) -> Applied | NnsegError:
        path = maps[case_id]
        try:
            return _carry_out(path, target / path.name, postprocessing, spec.labels, overwrite)
        except DiskFullError:
            raise
        except NnsegError as error:
            return error
        except MemoryError as error:
            return out_of_memory(error)

    arguments = {"source": str(source), "target": str(target)}
    with (
        locked(target, f"nnseg postprocess -i {source} -o {target}"),
        logged_run(target, "postprocess", arguments) as run,
    ):
        run.facts["postprocessing"] = record.to_json(postprocessing)
        text = record.json_text(spec_to_json(spec))
        commit.write_whole(predicted_spec_file(target), text.encode())
        outcomes = for_each(work, list(maps), str, workers, "postprocessing", on_progress)
        failed = {case: found for case, found in outcomes.items() if isinstance(found, NnsegError)}
        for case_id, path in maps.items():
            run.cases[case_id] = str(failed.get(case_id, "done"))
            found = outcomes[case_id]
            if isinstance(found, Applied):
                run.input_hashes |= {path.with_name(n): sha for n, sha in found.inputs.items()}
                run.output_hashes |= {target / n: sha for n, sha in found.outputs.items()}
        raise_failed(failed, len(maps))
    return {case_id: target / path.name for case_id, path in maps.items()}


def _carry_out(
    source: Path, target: Path, postprocessing: Postprocessing, labels: Labels, overwrite: bool
) -> Applied:
    """Postprocess one label map, unless that is done."""
    before = _read_applied(target)
    made_by = hashlib.sha256((record.dumps(postprocessing) + labels.as_text).encode()).hexdigest()
    inputs = _hashes(source)
    if before is not None and target.is_file() and not overwrite:
        if _hashes(target) == before.outputs:
            if before.made_by == made_by and before.inputs == inputs:
                return before
        elif _is_readable(target):  # what is not is damage, and nobody's work
            raise DataError(
                f"{target} was changed since it was postprocessed; move it away, or give "
                "--overwrite"
            )
    for path in (applied_file(target), *side_files(target), target):
        commit.remove(path)  # so that nothing of other rules stays where this fails
    segmentation, geometry = read_segmentation(source)
    try:
        labels.to_positions(segmentation)
    except DataError as error:
        raise DataError(f"{source} {error}") from None
    result = apply(segmentation, postprocessing, labels, geometry.spacing)
    write(target, result, geometry, labels.as_text)
    applied = Applied(
        label_map=target.name,
        made_by=made_by,
        postprocessing=postprocessing,
        inputs=inputs,
        outputs=_hashes(target),
        voxels=int((result != segmentation).sum()),
    )
    return record.save_sealed(applied, applied_file(target))


def _hashes(path: Path) -> dict[str, str]:
    from nnseg.proof import hashes

    try:
        return hashes([path])
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check the file and its rights"
        ) from None


def _is_readable(label_map: Path) -> bool:
    try:
        read_segmentation(label_map)
    except NnsegError:
        return False
    return True


def _read_applied(label_map: Path) -> Applied | None:
    """Read the record beside a label map; None if there is none, or not a whole one of its own."""
    try:
        found = record.load_sealed(Applied, applied_file(label_map))
    except NnsegError:
        return None
    return found if found.label_map == label_map.name else None


def _refuse_to_replace(label_maps: Sequence[Path]) -> None:
    for path in label_maps:
        if path.exists() and not applied_file(path).exists():
            raise UsageError(
                f"{path} was not made by postprocessing; give another folder, or --overwrite"
            )


def _is_flat(spacing: Spacing) -> bool:
    """Whether an image is of one slice, so that its distance of slices is made up."""
    return spacing[0] > 0.99 * SLICE_OF_2D * max(spacing[1:])


def _label_maps(folder: Path, ending: str) -> list[Path]:
    """List the label maps of a folder, without the maps and probabilities of a prediction."""
    beside = set[str]()
    for path in proof_files(folder):
        try:
            content = record.read_json(path)
            beside |= set(content["outputs"]) - {content["label_map"]}
        except (NnsegError, KeyError, TypeError):  # what proves nothing hides nothing
            continue
    return [
        path
        for path in visible_files(folder)
        if path.name.endswith(ending) and path.name not in beside
    ]


def _scoring_jobs(
    predictions: Sequence[Path], reference: Path, ending: str
) -> tuple[tuple[ScoringJob, ...], dict[str, str]]:
    """Pair predictions with references, and say of which folder each case is."""
    found: dict[str, Path] = {}
    folds: dict[str, str] = {}
    for number, folder in enumerate(predictions):
        if not folder.is_dir():
            raise MissingError(f"{folder} is no folder; give folders of predicted label maps")
        for path in _label_maps(folder, ending):
            case_id = path.name.removesuffix(ending)
            if case_id in found:
                raise DataError(f"case {case_id} is {found[case_id]} and {path}; give it once")
            found[case_id], folds[case_id] = path, str(number)
    if not found:
        listed = ", ".join(map(str, predictions))
        raise DataError(f"{listed}: no file ends in {ending}; give predicted label maps")
    references = called_as(find_label_maps(reference, ending), found)
    jobs = []
    for case_id, path in found.items():
        if case_id not in references:
            raise DataError(
                f"{path}: {reference / path.name} does not exist; a prediction needs its reference"
            )
        truth = one_label_map(case_id, references[case_id])
        jobs.append(ScoringJob(case_id=case_id, reference=truth, prediction=path))
    if missing := references.keys() - found.keys():
        logger.warning(
            "%d of %d references have no prediction, such as %s; rules are best chosen on all",
            len(missing),
            len(references),
            references[min(missing)][0].name,
        )
    return tuple(jobs), folds
