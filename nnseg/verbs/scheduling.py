"""What a job would train and what that takes: measured, drawn up, and kept as its agenda."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from nnseg import pipeline, record
from nnseg.errors import MissingError, StoppedError, UsageError
from nnseg.folders import Folders
from nnseg.parallel import OnProgress
from nnseg.splits import planned_folds
from nnseg.verbs.agenda import Agenda, Order, Rehearsed, draw_up, wanted

if TYPE_CHECKING:
    from nnseg.learning.recipe import TrainSettings
    from nnseg.plan import Plan

Say: TypeAlias = Callable[[str], None]
Stop: TypeAlias = Callable[[], bool]


def foresee(
    folders: Folders,
    dataset: str,
    order: Order,
    *,
    devices: Sequence[str] = (),
    precision: str | None = None,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
    say: Say = lambda text: None,
    stop: Stop = lambda: False,
) -> Agenda:
    """Say what `nnseg.verbs.running.run` would train, without writing anything.

    What a training takes is measured where the dataset is preprocessed, by ten steps of each
    network; else it is unknown, and a budget is shared as if it did not matter. A dataset that is
    not planned is examined and planned. The arguments are those of it.

    Raises:
        UsageError: As that.
        MissingError: The dataset is not there.
        DataError: Its cases cannot be used.
        StoppedError: `stop` said True.
    """
    started = time.monotonic()
    check_devices(devices)
    if (kept := kept_agenda(folders, dataset, order)) is not None:
        return kept
    count, measured = len(planned_folds(folders, dataset)), None
    try:
        plan = pipeline.load_plan(folders, dataset, order.plan)
        with suppress(MissingError):  # a case that is not preprocessed
            return measured_agenda(folders, plan, order, count, devices, precision, started, stop)
    except MissingError:
        measured = pipeline.up_to_date_fingerprint(
            folders,
            dataset,
            save=False,
            workers=workers,
            on_progress=asking(on_progress, stop),
        )
        plan = pipeline.plan(folders, dataset, name=order.plan, measured=measured, save=False)
    foretold = pipeline.foretell(folders, plan, measured=measured, workers=workers)
    say(f"preprocessing would take {foretold}; what training takes is known after it")
    return _draw(plan, order, count, {}, None, len(devices))


def check_devices(devices: Sequence[str]) -> None:
    """Refuse devices of several kinds: a training goes on on whichever is free.

    Raises:
        UsageError: They are.
    """
    if len({device.partition(":")[0] for device in devices}) > 1:
        raise UsageError(
            f"{', '.join(devices)} are devices of several kinds, and a training cannot change from "
            "one to the other; give those of one kind"
        )


def kept_agenda(folders: Folders, dataset: str, order: Order) -> Agenda | None:
    """Give the agenda of the job that is there; None where none was begun.

    Raises:
        UsageError: It was ordered otherwise.
    """
    path = folders.agenda_file(dataset)
    if not path.is_file():
        return None
    kept = record.load(Agenda, path, f"nnseg run {dataset}")
    if changed := record.differences(kept.order, order):
        raise UsageError(
            f"{path}: the job there was begun with other options: {'; '.join(changed)}; give those "
            "to go on, or --overwrite to begin anew"
        )
    return kept


def measured_agenda(
    folders: Folders,
    plan: "Plan",
    order: Order,
    fold_count: int,
    devices: Sequence[str],
    precision: str | None,
    started: float,
    stop: Stop,
) -> Agenda:
    """Measure a few steps of each network, and share the budget.

    The quickest step counts: others may have waited for what else the machine did meanwhile.
    """
    rehearsed = {}
    for name in wanted(order, _builds_on(plan)):
        found = pipeline.rehearse(
            folders,
            plan.dataset,
            name,
            "0" if fold_count else "all",
            settings=training_settings(order, None),
            plan_name=order.plan,
            device=devices[0] if devices else None,
            precision=precision,
            stop=stop,
        )
        rehearsed[name] = Rehearsed(
            epochs=found.epochs,
            iterations=found.iterations,
            step_seconds=found.quickest_seconds,
            bytes=found.bytes,
        )
    left = None
    if order.budget_seconds is not None:
        left = order.budget_seconds - (time.monotonic() - started)
    return _draw(plan, order, fold_count, rehearsed, left, len(devices))


def _draw(
    plan: "Plan",
    order: Order,
    fold_count: int,
    rehearsed: Mapping[str, Rehearsed],
    left: float | None,
    devices: int,
) -> Agenda:
    return draw_up(
        plan.dataset,
        order,
        _builds_on(plan),
        fold_count,
        rehearsed=rehearsed,
        left=left,
        devices=max(1, devices),
    )


def _builds_on(plan: "Plan") -> dict[str, str | None]:
    """Give the configurations of a plan, each with the one that it builds on, if any."""
    return {name: one.previous for name, one in plan.configurations.items()}


def training_settings(order: Order, budget_seconds: float | None) -> "TrainSettings":
    """Give the settings of a training: a budget's, or those of the preset."""
    from dataclasses import replace

    from nnseg.learning.recipe import PRESETS

    preset = "best" if budget_seconds is not None else order.preset
    return replace(PRESETS[preset], seed=order.seed, budget_seconds=budget_seconds)


def asking(on_progress: OnProgress | None, stop: Stop) -> OnProgress:
    """Give what is called after each case of work that cannot be asked to stop, and ends it then.

    Whatever such work has written is whole.
    """

    def tell(what: str, done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(what, done, total)
        raise_if(stop)

    return tell


def raise_if(stop: Stop) -> None:
    """Raise StoppedError where the job is to stop."""
    if stop():
        raise StoppedError("stopped between two steps; the same command goes on")
