"""What a training of a fold needs: how it runs, its task with the cases, and enough memory."""

import logging
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from nnseg.errors import MachineError
from nnseg.fit import PLANNERS
from nnseg.parallel import OnProgress, some
from nnseg.verbs.cascade import out_of_fold
from nnseg.verbs.planned_fold import PlannedFold, fit_in_memory, open_cases, replaced_cases

if TYPE_CHECKING:
    from nnseg.learning.recipe import TrainSettings
    from nnseg.learning.resume import RunRecord
    from nnseg.learning.task import Task
    from nnseg.model.device import Execution
    from nnseg.model.ranks import Ranks

logger = logging.getLogger(__name__)

Stop: TypeAlias = Callable[[], bool]

SMALLER = 0.75  # of the memory that a plan was made for: what to try where that is not there


@contextmanager
def enough_memory(about: PlannedFold) -> Iterator[None]:
    """Say which smaller plan would fit where a training takes more memory than there is.

    Raises:
        MachineError: It did.
    """
    from nnseg.model.device import OUT_OF_MEMORY, is_out_of_memory

    try:
        yield
    except OUT_OF_MEMORY as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["none is left"])[0]
        raise MachineError(
            f"there is not enough memory for {about.configuration.name} ({reason}); plan a smaller "
            f"one: `{smaller_plan(about)}`, and train with -p"
        ) from None


def smaller_plan(about: PlannedFold) -> str:
    """Give the command that plans the same network by the same planner for less memory."""
    plan, architecture = about.plan, about.configuration.architecture
    memory_gb = f"{SMALLER * plan.memory_gb:.3g}"
    planner = plan.planner if plan.planner in PLANNERS else "default"
    words = ["nnseg", "plan_and_preprocess", "-d", about.dataset]
    if planner != "default":
        words += ["--planner", planner]
    if architecture.network != PLANNERS[planner].network:
        words += ["--network", architecture.network]
    for option, value in architecture.options.chosen.items():
        words += [f"--{option}", f"{value}"]
    words += ["--memory-gb", memory_gb, "-p", f"{about.plan_name}_{memory_gb}gb"]
    return shlex.join(words)


def choose_run(
    settings: "TrainSettings",
    earlier: "RunRecord | None",
    device: str | None,
    precision: str | None,
    compiled: bool | None,
    ranks: "Ranks",
) -> "Execution":
    """Choose how to run: as the run did so far, and alike on all ranks, each on its own GPU."""
    from nnseg.learning.recipe import pays_to_compile
    from nnseg.model.device import choose_execution
    from nnseg.model.ranks import device_of, text_from_first

    if earlier is not None:
        device = device or earlier.execution.device  # another of its kind, if one was asked for
        precision = earlier.execution.precision
    chosen = choose_execution(
        device_of(ranks, device), precision, compiled=pays_to_compile(settings, compiled)
    )
    if earlier is not None:  # it is usable here; what was found out then goes on
        return replace(earlier.execution, device=chosen.device)
    return replace(chosen, precision=text_from_first(chosen.precision))


def make_task(
    about: PlannedFold,
    settings: "TrainSettings",
    execution: "Execution",
    ranks: "Ranks",
    loader_workers: int | None,
    on_progress: OnProgress | None,
    stop: Stop,
    *,
    carried: bool = True,
) -> "Task":
    """Open the cases of a fold, and have the stage before a cascade predict them.

    Without `carried`, a cascade sees that nothing was found before; nothing is predicted.
    """
    case_ids = {*about.split.train, *about.split.val}
    in_memory = fit_in_memory(about, case_ids)
    cases = open_cases(about, case_ids, in_memory)
    if ranks.is_first and (changed := replaced_cases(about)):
        logger.warning(
            "the raw files of %s have changed since they were preprocessed, and the old ones are "
            "trained on; `nnseg preprocess -d %s` makes them anew",
            some(changed),
            about.dataset,
        )
    logger.info("%s", execution)
    previous: Mapping[str, Any] | None = None
    if about.configuration.previous is not None and not carried:
        previous = {name: np.zeros(case.shape, np.uint8) for name, case in cases.items()}
    elif carried:
        previous = out_of_fold(
            about.folders,
            about.dataset,
            about.plan_name,
            about.plan,
            about.configuration,
            case_ids,
            seed=settings.seed,
            device=execution.device,
            in_memory=in_memory,
            on_progress=on_progress,
            stop=stop,
        )
    return replace(
        bare_task(about, settings, execution, ranks),
        data_hash=about.data_hash,
        train_cases=[cases[case_id] for case_id in about.split.train],
        val_cases=[cases[case_id] for case_id in about.split.val],
        previous=previous,
        loader_workers=loader_workers,
    )


def bare_task(
    about: PlannedFold,
    settings: "TrainSettings",
    execution: "Execution",
    ranks: "Ranks",
    earlier: "RunRecord | None" = None,
) -> "Task":
    """Make the task of a training without its cases.

    Args:
        about: The fold.
        settings: What the user chose.
        execution: Where and how it runs.
        ranks: Its processes.
        earlier: The run that it goes on with; None starts anew.

    Raises:
        UsageError: The settings do not fit the plan, or a batch has fewer patches than processes
            that share it, as one that a budget made smaller may.
    """
    from nnseg.learning.task import Task

    task = Task(
        plan=about.plan,
        plan_hash=about.plan_hash,
        split_hash=about.split_hash,
        configuration=about.configuration,
        fold=about.fold,
        train_cases=(),
        val_cases=(),
        settings=settings,
        execution=execution,
        folder=about.folder,
        ranks=ranks,
    )
    if earlier is not None:
        ranks.share(earlier.course.batch_size or task.batch_size)
    return task
