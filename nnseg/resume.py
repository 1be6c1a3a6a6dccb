"""What a training leaves to go on from, and whether a call may go on with it."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from nnseg import record
from nnseg.errors import DataError, MissingError, UsageError
from nnseg.folders import checkpoint_file
from nnseg.model.device import Execution
from nnseg.recipe import Course, TrainSettings, changed_settings

logger = logging.getLogger(__name__)


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


def find_run(
    folder: Path,
    settings: TrainSettings,
    *,
    plan_hash: str,
    split_hash: str,
    resume: bool | None = None,
    overwrite: bool = False,
    device: str | None = None,
    precision: str | None = None,
) -> RunRecord | None:
    """Find the run in the folder of a fold that a call may go on with; None to start.

    Args:
        folder: Of the fold.
        settings: What this call asks for; they must be those of the run, but for the budget where
            `resume` is True.
        plan_hash: Of the plan as it is.
        split_hash: Of the fold's cases as they are.
        resume: True only goes on; None goes on or starts.
        overwrite: Move the run that is there aside, and start anew.
        device: Asked for; None is that of the run.
        precision: Asked for; None is that of the run.

    Raises:
        MissingError: There is nothing to go on with.
        UsageError: The run there was made with other settings.
        DataError: It was made with another plan or on other cases.
    """
    path = checkpoint_file(folder, "latest")
    if not path.is_file():
        if resume:
            raise MissingError(f"{folder}: there is no run to continue; start without --c")
        return None
    if overwrite:
        number = 1
        while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
            number += 1
        folder.rename(aside)
        logger.warning("the run before is kept in %s", aside)
        return None
    found = record.load(RunRecord, path)
    if resume:
        settings = replace(settings, budget_seconds=found.settings.budget_seconds)
    changed = changed_settings(found.settings, settings)
    if changed:
        raise UsageError(
            f"{folder} holds a run with other settings: {'; '.join(changed)}. Give the same "
            "settings to go on, or --overwrite to start anew"
        )
    for option, wish, was in (
        ("--device", device, found.execution.device),
        ("--precision", precision, found.execution.precision),
    ):
        if wish is not None and wish != was and not found.finished:
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
    return found
