"""Postprocessing rules chosen by files: predictions, and the label maps that they should be."""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from nnseg import record
from nnseg.axes import Spacing
from nnseg.dataset import DatasetSpec
from nnseg.errors import DataError, MissingError, NnsegError, UsageError
from nnseg.estimate import READ_BYTES, bytes_to_read, room_for, workers_for
from nnseg.jobs import ScoringJob, find_scoring_jobs, find_unpredicted
from nnseg.labels import Labels
from nnseg.lock import locked
from nnseg.parallel import OnProgress, for_each
from nnseg.postprocess import (
    ComponentTable,
    Decided,
    Postprocessing,
    component_table,
    decide,
    decide_as_nnunet,
)
from nnseg.postprocess.stored import decided_on
from nnseg.runlog import logged_run
from nnseg.volume import SLICE_OF_2D, grid_fault, read_segmentation

logger = logging.getLogger(__name__)

Counted: TypeAlias = tuple[ComponentTable, Spacing]  # of a case

TABLE_BYTES = 20  # for each voxel, beside what reading takes: measured


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
        workers: Cases at once; None is one a core where they are large.
        on_progress: Called after each case.

    Raises:
        UsageError: `target` is there and holds something else than rules.
        MissingError: A folder does not exist.
        DataError: A prediction lacks its reference, lies on another grid, cannot be read, or is
            there twice.
        MachineError: `target` cannot be written, or another run is at work in its folder.
    """
    refuse_foreign_rules(target)
    jobs, folds = find_deciding_jobs(predictions, reference, spec)
    needs = {job.case_id: _bytes_of(job) for job in jobs}
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
        counted = for_each(
            functools.partial(_count, spec.labels),
            jobs,
            lambda job: job.case_id,
            workers_for(needs, workers),
            "counting",
            on_progress,
            room_for(needs),
        )
        if as_nnunet:
            result = decide_as_nnunet({n: table for n, (table, _) in counted.items()}, spec.labels)
        else:
            known_folds = folds if len(predictions) > 1 else None
            result = _decide(counted, spec.labels, known_folds, minimum_sizes)
        told = decided_on(predictions, spec.labels)
        record.save(replace(result.postprocessing, decided_on=told), target)
        run.inputs += [path for job in jobs for path in (job.reference, job.prediction)]
        run.outputs.append(target)
        run.facts["decided"] = record.to_json(result)
    return result


def _count(labels: Labels, job: ScoringJob) -> Counted:
    """Read a prediction and its reference, and count the prediction's components."""
    truth, geometry = read_segmentation(job.reference)
    predicted, other = read_segmentation(job.prediction)
    if fault := grid_fault(geometry, other):
        raise DataError(
            f"{job.prediction} lies on another grid than {job.reference}: {fault}; predict again"
        )
    return component_table(predicted, truth, labels), geometry.spacing


def _decide(
    counted: Mapping[str, Counted],
    labels: Labels,
    folds: Mapping[str, str] | None,
    minimum_sizes: bool,
) -> Decided:
    spacings = {case_id: spacing for case_id, (_, spacing) in counted.items()}
    flat = all(_is_flat(spacing) for spacing in spacings.values())
    return decide(
        {case_id: table for case_id, (table, _) in counted.items()},
        labels,
        spacings,
        folds=folds,
        minimum_sizes=minimum_sizes,
        unit="voxels" if flat else "ml",
    )


def refuse_foreign_rules(target: Path) -> None:
    """Refuse to write rules over a file that holds something else, such as a dataset.json.

    Raises:
        UsageError: `target` is such a file, or a folder.
    """
    if not target.exists():
        return
    try:
        record.load(Postprocessing, target)
    except NnsegError:
        raise UsageError(
            f"{target} is there and holds no postprocessing rules; give another file, or a folder"
        ) from None


def _bytes_of(job: ScoringJob) -> int:
    """Foretell the most bytes that counting a case takes: two label maps, and what they share."""
    read = bytes_to_read([job.reference])
    return 2 * read + TABLE_BYTES * read // READ_BYTES


def _is_flat(spacing: Spacing) -> bool:
    """Whether an image is of one slice, so that its distance of slices is made up."""
    return spacing[0] > 0.99 * SLICE_OF_2D * max(spacing[1:])


def find_deciding_jobs(
    predictions: Sequence[Path], reference: Path, spec: DatasetSpec
) -> tuple[tuple[ScoringJob, ...], dict[str, str]]:
    """Pair predictions with references, and give the number of the folder that each case is of.

    Raises:
        MissingError, DataError: As `decide_postprocessing`, but for what is in label maps.
    """
    found: dict[str, ScoringJob] = {}
    folds: dict[str, str] = {}
    for number, folder in enumerate(predictions):
        if not folder.is_dir():
            raise MissingError(f"{folder} is no folder; give folders of predicted label maps")
        for job in find_scoring_jobs(reference, folder, spec.file_ending):
            if job.case_id in found:
                twice = f"{found[job.case_id].prediction} and {job.prediction}"
                raise DataError(f"case {job.case_id} is {twice}; give it once")
            found[job.case_id], folds[job.case_id] = job, str(number)
    jobs = tuple(found.values())
    if missing := find_unpredicted(reference, jobs, spec.file_ending):
        logger.warning(
            "%d of %d references have no prediction, such as %s; rules are best chosen on all",
            len(missing),
            len(missing) + len(jobs),
            missing[0],
        )
    return jobs, folds
