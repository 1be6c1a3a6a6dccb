"""What a training leaves to go on from, and whether a call may go on with it.

Two checkpoints are kept, checkpoint_latest and checkpoint_previous, the one before it. Where the
latest is damaged, the one before takes its place.
"""

import contextlib
import logging
import re
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path

from nnseg import record
from nnseg.checkpoint import check_weights, forget_weights, save_weights
from nnseg.errors import DataError, MissingError, NnsegError, UsageError
from nnseg.folders import checkpoint_file
from nnseg.learning.course import Course, extend
from nnseg.learning.recipe import TrainSettings
from nnseg.model.device import Execution

logger = logging.getLogger(__name__)

FORMAT = 1  # raised when this version can no longer go on from what an older one wrote
LATEST, PREVIOUS = "latest", "previous"
WEIGHTS = "checkpoint_latest"  # how the names of both weights files begin
REMEDY = re.compile(r"; (correct or )?restore.*")  # of messages on single files


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """What is known after an epoch; a row of metrics.csv.

    `dice` is the pseudo Dice: over all validation patches together, label by label, not over
    whole volumes. None where a label occurred neither in them nor in their predictions.
    """

    epoch: int  # counted from 1
    epochs: int  # as planned at this moment
    lr: float
    loss: float
    validation_loss: float
    dice: float | None  # mean over the labels
    dice_average: float | None  # moving average of `dice`
    label_dice: dict[str, float | None]
    seconds: float
    wait_share: float  # of the time, spent waiting for data


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """Everything a training needs to go on, but for the tensors; checkpoint_latest.json."""

    plan_hash: str
    split_hash: str
    configuration_name: str
    fold: str
    settings: TrainSettings
    execution: Execution
    course: Course  # a budget may have changed it since the settings
    epoch: int  # epochs done
    iteration: int  # steps done of the next epoch
    loss_sum: float  # of those steps
    seconds: float  # spent on this training so far
    epoch_seconds: float  # of it on the unfinished epoch
    history: tuple[EpochReport, ...]
    weights_file: str
    weights_sha256: str
    finished: bool = False
    data_hash: str = ""  # of the preprocessed cases
    train_cases: tuple[str, ...] = ()  # their ids; none where an older version wrote it
    loss_scale: tuple[float, int] | None = None  # of fp16, and the steps since it last changed
    format: int = FORMAT
    record_sha256: str = ""  # of this record without it; `record.save_sealed` writes it


def write_run(folder: Path, run: RunRecord, tensors: bytes, before: RunRecord | None) -> RunRecord:
    """Write checkpoint_latest; the one that was it becomes checkpoint_previous.

    At every moment one of the two is whole, both but for an instant. The latest on the disk is not
    trusted: where `before` came from the older checkpoint because the latest was damaged, it stays
    the older one. Nor does one of the same weights become the older one: they have one file.

    Args:
        folder: Of the fold.
        run: Its record; which weights file is its own is filled in.
        tensors: What `checkpoint.pack` gave.
        before: The record that was written or read last; None where there was none.

    Raises:
        MachineError: The disk is full or the folder cannot be written.
    """
    file, digest = save_weights(folder, WEIGHTS, tensors)
    older = checkpoint_file(folder, PREVIOUS)
    if before is not None and before.weights_file != file:
        record.save_sealed(before, older)
    run = replace(run, weights_file=file, weights_sha256=digest)
    run = record.save_sealed(run, checkpoint_file(folder, LATEST))
    with contextlib.suppress(NnsegError):
        second = record.load_sealed(RunRecord, older).weights_file
        forget_weights(folder, WEIGHTS, keep=(file, second))
    return run


def read_run(folder: Path) -> RunRecord | None:
    """Read the latest checkpoint that is whole, its weights too; None where there never was one.

    Raises:
        DataError: There are some, and none of them is whole.
    """
    faults = []
    for kind in (LATEST, PREVIOUS):
        path = checkpoint_file(folder, kind)
        try:
            run = record.load_sealed(RunRecord, path)
            check_weights(folder, run.weights_file, run.weights_sha256)
        except NnsegError as error:
            faults.append(REMEDY.sub("", str(error)))
            continue
        if faults:
            logger.warning(
                "%s: going on from the checkpoint before it, after %d epochs and %d steps",
                faults[0],
                run.epoch,
                run.iteration,
            )
        return run
    if not has_run(folder):
        return None
    raise DataError(
        f"{folder}: neither checkpoint of the run can be used ({'; '.join(faults)}); restore one "
        "from a copy, or give --overwrite to start anew"
    )


def has_run(folder: Path) -> bool:
    """Say whether a run has left anything to go on from, whole or not."""
    return any(checkpoint_file(folder, kind).exists() for kind in (LATEST, PREVIOUS))


def extend_run(run: RunRecord, epochs: int) -> RunRecord:
    """Give a run another end, finished or not: the record to go on with; see `recipe.extend`.

    The settings stay as they were, so that the first command goes on, too.

    Raises:
        UsageError: The end is not after the one that it has.
    """
    course = extend(run.course, run.settings, run.epoch, epochs)
    finished = run.finished and course == run.course
    return replace(run, course=course, finished=finished)


def find_run(
    folder: Path,
    settings: TrainSettings,
    *,
    plan_hash: str,
    split_hash: str,
    data_hash: str | None = None,
    resume: bool | None = None,
    given: Collection[str] | None = None,
    overwrite: bool = False,
    device: str | None = None,
    precision: str | None = None,
) -> RunRecord | None:
    """Find the run in the folder of a fold that a call may go on with; None to start.

    Args:
        folder: Of the fold.
        settings: What this call asks for; they must be those of the run. Where `resume` is True, a
            budget need not be repeated.
        plan_hash: Of the plan as it is.
        split_hash: Of the fold's cases as they are.
        data_hash: Of what these were preprocessed from and how; None is not compared.
        resume: True only goes on; None goes on or starts.
        given: Names of the settings that somebody chose for this call; None are all. Where `resume`
            is True the others are those of the run, which its record has.
        overwrite: Start anew whatever is there; `set_aside` makes room for it.
        device: Asked for, of the kind that the run has; None is the run's own. Nothing that a run
            goes on from depends on which of the GPUs it was.
        precision: Asked for; None is that of the run.

    Raises:
        MissingError: There is nothing to go on with.
        UsageError: The run there was made with other settings.
        DataError: It was made with another plan, on other cases or on what they were then, or both
            checkpoints are damaged.
    """
    if not has_run(folder):
        if resume:
            raise MissingError(f"{folder}: there is no run to continue; start without --c")
        return None
    if overwrite:
        return None
    found = read_run(folder)
    assert found is not None, "something is there"
    if resume:
        chosen = {field.name for field in fields(settings)} if given is None else {*given}
        if settings.budget_seconds is None:
            chosen.discard("budget_seconds")
        settings = replace(found.settings, **{name: getattr(settings, name) for name in chosen})
    changed = record.differences(found.settings, settings)
    if changed:
        raise UsageError(
            f"{folder} holds a run with other settings: {'; '.join(changed)}. Give the same "
            "settings to go on, or --overwrite to start anew"
        )
    for option, wish, was, kind in (
        ("--device", device, found.execution.device, _kind),
        ("--precision", precision, found.execution.precision, str),
    ):
        if wish is not None and kind(wish) != kind(was) and not found.finished:
            raise UsageError(f"{folder} holds a run with {option} {was}; give that, or --overwrite")
    if found.split_hash != split_hash:
        raise DataError(
            f"{folder} holds a run on other cases: the folds have changed since; restore "
            "splits_final.json, or --overwrite to start anew"
        )
    if found.plan_hash != plan_hash:
        raise DataError(
            f"{folder} holds a run of another plan; train with the plan of then, or --overwrite "
            "to start anew"
        )
    if data_hash is not None and found.data_hash != data_hash:
        raise DataError(
            f"{folder} holds a run on other data: the preprocessed cases have changed since; "
            "restore them, or --overwrite to start anew"
        )
    return found


def _kind(device: str) -> str:
    """Give the kind of a device, of which there may be several: "cuda" of "cuda:1"."""
    return device.partition(":")[0]


def set_aside(folder: Path) -> Path | None:
    """Move the run in the folder of a fold aside: where it is kept now; None where there is none.

    The folder goes as a whole, with its metrics and its validation.
    """
    if not has_run(folder):
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    folder.rename(aside)
    logger.warning("the run before is kept in %s", aside)
    return aside
