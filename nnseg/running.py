"""One command from data to the best model: prepared, trained, chosen, explained.

What is to be trained is drawn up once (`nnseg.agenda`) and kept in the folder of the run. Every
step of it can be killed and begun again, and so can all of it: the same call goes on.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from nnseg import pipeline, record, report
from nnseg.agenda import Agenda, Order, Training, describe, draw_up
from nnseg.choose import Choosing, describe_choosing
from nnseg.elsewhere import train_elsewhere
from nnseg.errors import (
    DiskFullError,
    MissingError,
    NnsegError,
    PartlyDoneError,
    StoppedError,
    UsageError,
)
from nnseg.folders import Folders
from nnseg.lock import locked
from nnseg.parallel import OnProgress
from nnseg.runlog import logged_run

if TYPE_CHECKING:
    from nnseg.plan import Plan
    from nnseg.recipe import TrainSettings
    from nnseg.resume import EpochReport

logger = logging.getLogger(__name__)

Say: TypeAlias = Callable[[str], None]
Stop: TypeAlias = Callable[[], bool]

STEPS = 5  # that are told: prepare, plan the work, train, choose, report


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What a job has made."""

    agenda: Agenda
    choosing: Choosing | None  # None where no fold was held out to choose by
    choice_file: Path | None
    report_file: Path
    failed: dict[str, str]  # what was wrong with trainings that failed, by their names


def run(
    folders: Folders,
    dataset: str,
    order: Order,
    *,
    devices: Sequence[str] = (),
    precision: str | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
    on_epoch: "Callable[[EpochReport], None] | None" = None,
    say: Say = lambda text: None,
    stop: Stop = lambda: False,
) -> Finished:
    """Do the whole job: examine, plan, preprocess, train, choose the best models, report.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        order: What is wanted.
        devices: Where to train; several of them train at the same time, a fold each. None is the
            best there is.
        precision: As for `pipeline.train`.
        overwrite: Begin anew; the trainings that are there are kept aside.
        workers: Cases prepared or scored at once; None is one a core.
        on_progress: Called as work goes on.
        on_epoch: Called after every epoch of a training in this process.
        say: Gets each line for the user: first what it will cost, last what to do next.
        stop: Asked often; True ends the job with everything saved.

    Raises:
        UsageError: The job that is there was ordered otherwise.
        StoppedError: It stopped; the same call goes on.
        PartlyDoneError: Some trainings failed; the others were chosen from.
        NnsegError: As the verbs for each step.
    """
    started = time.monotonic()
    folder = folders.run_folder(dataset)
    with ExitStack() as held:
        held.enter_context(locked(folder, f"nnseg run {dataset}"))
        agenda = None if overwrite else _kept(folders, dataset, order)
        log = held.enter_context(logged_run(folder, "run", asdict(order), name="run", stop=stop))
        if agenda is None:
            say(f"1/{STEPS} examining, planning and preprocessing")
            plan = _prepare(folders, dataset, order, workers, on_progress, say)
            say(f"2/{STEPS} measuring what a training step takes")
            agenda = _draw_up(folders, plan, order, devices, precision, started)
            if overwrite:
                _set_aside(folders, agenda)
            record.save(agenda, folders.agenda_file(dataset))
        else:
            say(f"going on with the job of {folders.agenda_file(dataset)}")
        _raise_if(stop)
        say(f"3/{STEPS} training {len(agenda.trainings)} networks\n{describe(agenda)}")
        if order.budget_seconds is not None:
            say(f"    all of it is to be done in {report.duration(order.budget_seconds)}")
        log.outputs.append(folders.agenda_file(dataset))
        failed: dict[str, NnsegError] = {}
        for training, fault in _trained(
            folders, agenda, devices, precision, on_progress, on_epoch, say, stop
        ):
            log.cases[training.name] = "done" if fault is None else str(fault)
            if fault is not None:
                failed[training.name] = fault
                logger.warning("%s: %s", training.name, fault)
        if len(failed) == len(agenda.trainings):
            raise next(iter(failed.values()))
        say(f"4/{STEPS} choosing")
        choosing = _choose(folders, agenda, set(failed), workers, on_progress, say, stop)
        say(f"5/{STEPS} looking for label errors, writing the report")
        if choosing is not None:
            pipeline.suspect(
                folders,
                dataset,
                plan=order.plan,
                seed=order.seed,
                workers=workers,
                on_progress=on_progress,
                stop=stop,
            )
        report_file = pipeline.report_on(
            folders,
            dataset,
            plan_name=order.plan,
            workers=workers,
            on_progress=on_progress,
            stop=stop,
        )
        log.outputs.append(report_file)
        result = Finished(
            agenda=agenda,
            choosing=choosing,
            choice_file=None if choosing is None else folders.choice_file(dataset),
            report_file=report_file,
            failed={name: str(fault) for name, fault in failed.items()},
        )
        say(_what_now(result, time.monotonic() - started))
        if failed:
            listed = "".join(f"\n  {name}: {fault}" for name, fault in failed.items())
            raise PartlyDoneError(
                f"{len(failed)} of {len(agenda.trainings)} trainings failed; the same command "
                f"tries them again:{listed}"
            )
    return result


def foresee(
    folders: Folders,
    dataset: str,
    order: Order,
    *,
    device: str | None = None,
    precision: str | None = None,
) -> Agenda:
    """Say what `run` would train, without writing anything.

    The seconds of a step are measured where the dataset is preprocessed, by ten steps of each
    network; else they are unknown, and a budget is shared as if they did not matter.

    Raises:
        MissingError: There is no plan.
    """
    if (kept := _kept(folders, dataset, order)) is not None:
        return kept
    plan = pipeline.load_plan(folders, dataset, order.plan)
    devices = () if device is None else (device,)
    try:
        return _draw_up(folders, plan, order, devices, precision, time.monotonic())
    except MissingError:
        return _draw(folders, plan, order, {}, None)


def _kept(folders: Folders, dataset: str, order: Order) -> Agenda | None:
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


def _prepare(
    folders: Folders,
    dataset: str,
    order: Order,
    workers: int | None,
    on_progress: OnProgress | None,
    say: Say,
) -> "Plan":
    """Give the plan of a dataset whose cases are preprocessed; a plan that is there is kept."""
    if folders.plan_file(dataset, order.plan).is_file():
        pipeline.up_to_date_fingerprint(folders, dataset, workers=workers, on_progress=on_progress)
        pipeline.preprocess(
            folders,
            dataset,
            plan_name=order.plan,
            workers=workers,
            on_progress=on_progress,
            say=say,
        )
        return pipeline.load_plan(folders, dataset, order.plan)
    plan, _ = pipeline.plan_and_preprocess(
        folders, dataset, name=order.plan, workers=workers, on_progress=on_progress, say=say
    )
    return plan


def _draw_up(
    folders: Folders,
    plan: "Plan",
    order: Order,
    devices: Sequence[str],
    precision: str | None,
    started: float,
) -> Agenda:
    """Measure a few steps of each network that does not wait for another, and share the budget."""
    fold = "0" if pipeline.folds(folders, plan.dataset) else "all"
    seconds = {}
    for name, configuration in plan.configurations.items():
        if configuration.previous or name not in (order.configurations or plan.configurations):
            continue
        rehearsed = pipeline.rehearse(
            folders,
            plan.dataset,
            name,
            fold,
            settings=_settings(order, None),
            plan_name=order.plan,
            device=devices[0] if devices else None,
            precision=precision,
        )
        seconds[name] = rehearsed.step_seconds
    left = None
    if order.budget_seconds is not None:
        left = order.budget_seconds - (time.monotonic() - started)
        left *= max(1, len(devices))
    return _draw(folders, plan, order, seconds, left)


def _draw(
    folders: Folders,
    plan: "Plan",
    order: Order,
    step_seconds: Mapping[str, float],
    left: float | None,
) -> Agenda:
    return draw_up(
        plan.dataset,
        order,
        {name: one.previous for name, one in plan.configurations.items()},
        len(pipeline.folds(folders, plan.dataset)),
        step_seconds=step_seconds,
        left=left,
    )


def _settings(order: Order, budget_seconds: float | None) -> "TrainSettings":
    """Give the settings of a training: a budget's, or those of the preset."""
    from dataclasses import replace

    from nnseg.recipe import PRESETS

    preset = "best" if budget_seconds is not None else order.preset
    return replace(PRESETS[preset], seed=order.seed, budget_seconds=budget_seconds)


def _set_aside(folders: Folders, agenda: Agenda) -> None:
    """Keep the trainings aside that a job begun anew would go on with."""
    from nnseg.resume import set_aside

    order = agenda.order
    for one in agenda.trainings:
        folder = folders.fold(agenda.dataset, order.plan, one.configuration, one.fold, order.seed)
        with locked(folder, f"nnseg run {agenda.dataset} --overwrite"):
            set_aside(folder)


def _trained(
    folders: Folders,
    agenda: Agenda,
    devices: Sequence[str],
    precision: str | None,
    on_progress: OnProgress | None,
    on_epoch: "Callable[[EpochReport], None] | None",
    say: Say,
    stop: Stop,
) -> Iterator[tuple[Training, NnsegError | None]]:
    """Train one network after the other, or one on each device; give each with what went wrong."""
    order = agenda.order
    if len(devices) > 1:
        yield from train_elsewhere(folders, agenda, devices, precision, say, stop)
        return
    for number, one in enumerate(agenda.trainings, 1):
        _raise_if(stop)
        say(f"    {number}/{len(agenda.trainings)} {one.name}")
        try:
            folder = pipeline.train(
                folders,
                agenda.dataset,
                one.configuration,
                one.fold,
                settings=_settings(order, one.budget_seconds),
                plan_name=order.plan,
                device=devices[0] if devices else None,
                precision=precision,
                on_progress=on_progress,
                on_epoch=on_epoch,
                say=say,
                stop=stop,
            )
        except (StoppedError, DiskFullError):
            raise
        except NnsegError as error:
            yield one, error
            continue
        if one.fold != "all":
            dice = pipeline.validation_summary(folder).foreground_mean.dice
            say(f"      validation Dice {'-' if dice is None else f'{dice:.4f}'}")
        yield one, None


def _choose(
    folders: Folders,
    agenda: Agenda,
    failed: set[str],
    workers: int | None,
    on_progress: OnProgress | None,
    say: Say,
    stop: Stop,
) -> Choosing | None:
    """Choose among the configurations whose trainings all succeeded, as far as folds allow."""
    if agenda.folds == ("all",):
        say("    no fold was held out: there is nothing to choose by")
        return None
    whole = [
        name
        for name in agenda.configurations
        if not any(one.name in failed for one in agenda.trainings if one.configuration == name)
    ]
    names = whole or list(
        dict.fromkeys(one.configuration for one in agenda.trainings if one.name not in failed)
    )
    choosing = pipeline.find_best(
        folders,
        agenda.dataset,
        plans=(agenda.order.plan,),
        configurations=tuple(names),
        folds=tuple(fold for fold in agenda.folds if fold != "all"),
        most_members=agenda.order.most_members,
        workers=workers,
        on_progress=on_progress,
        stop=stop,
    )
    say(describe_choosing(choosing))
    return choosing


def _what_now(finished: Finished, seconds: float) -> str:
    """Say what there is and what to do with it."""
    where = finished.choice_file or "MODEL"
    return (
        f"done in {report.duration(seconds)}\n"
        "what now:\n"
        f"  look at       {finished.report_file}\n"
        f"  predict       nnseg predict -i IN -o OUT -m {where}\n"
        f"  hand it on    nnseg export {where} --to zip -o MODEL.zip"
    )


def _raise_if(stop: Stop) -> None:
    if stop():
        raise StoppedError("stopped between two steps; the same command goes on")
