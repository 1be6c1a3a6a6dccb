"""One command from data to the best model: prepared, trained, chosen, explained.

What is to be trained is drawn up once (`nnseg.verbs.agenda`) and kept in the folder of the run.
Every step of it can be killed and begun again, and so can all of it: the same call goes on.
"""

import logging
import shlex
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnseg import pipeline, record, report
from nnseg.choose import Choosing, describe_choosing
from nnseg.commit import cannot_write
from nnseg.errors import (
    DataError,
    DiskFullError,
    MachineError,
    MissingError,
    NnsegError,
    PartlyDoneError,
    StoppedError,
)
from nnseg.folders import Folders
from nnseg.lock import in_use, locked
from nnseg.parallel import OnProgress
from nnseg.runlog import logged_run
from nnseg.verbs import scheduling
from nnseg.verbs.agenda import PLAIN, Agenda, Order, Training, describe
from nnseg.verbs.elsewhere import train_elsewhere
from nnseg.verbs.planned_fold import find_fold
from nnseg.verbs.scheduling import Say, Stop

if TYPE_CHECKING:
    from nnseg.learning.resume import EpochReport
    from nnseg.plan import Plan

logger = logging.getLogger(__name__)

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
        devices: Where to train; several of them, of one kind, train at the same time, a fold each.
            None is the best there is.
        precision: As for `pipeline.train`.
        overwrite: Begin anew; the trainings that are there are kept aside.
        workers: Cases prepared or scored at once; None is one a core.
        on_progress: Called as work goes on.
        on_epoch: Called after every epoch of a training in this process.
        say: Gets each line for the user: first what it will cost, last what to do next.
        stop: Asked often; True ends the job with everything saved.

    Raises:
        UsageError: The job that is there was ordered otherwise, or a training that is there has
            other settings than the job's; or nothing is left of the budget.
        MachineError: Another run holds the job or one of its trainings.
        StoppedError: It stopped; the same call goes on.
        PartlyDoneError: Some trainings failed; the others were chosen from as far as they allow.
        NnsegError: As the verbs for each step.
    """
    started = time.monotonic()
    scheduling.check_devices(devices)
    asking = scheduling.asking(on_progress, stop)
    folder = folders.run_folder(dataset)
    with ExitStack() as held:
        held.enter_context(locked(folder, f"nnseg run {dataset}"))
        agenda = None if overwrite else scheduling.kept_agenda(folders, dataset, order)
        log = held.enter_context(logged_run(folder, "run", asdict(order), name="run", stop=stop))
        if agenda is None:
            say(f"1/{STEPS} examining, planning and preprocessing")
            plan = _prepare(folders, dataset, order, workers, asking, say)
            scheduling.raise_if(stop)
            say(f"2/{STEPS} measuring what a training step takes")
            count = len(pipeline.folds(folders, dataset))
            agenda = scheduling.measured_agenda(
                folders, plan, order, count, devices, precision, started, stop
            )
            _check(folders, agenda, devices, precision, begun_anew=overwrite)
            if overwrite:
                _set_aside(folders, agenda)
            record.save(agenda, folders.agenda_file(dataset))
            held.enter_context(_goes_on(overwrite))
        else:
            say(f"going on with the job of {folders.agenda_file(dataset)}")
            _check(folders, agenda, devices, precision)
        scheduling.raise_if(stop)
        costs = describe(agenda, max(1, len(devices)))
        say(f"3/{STEPS} training {len(agenda.trainings)} networks\n{costs}")
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
        listed = "".join(f"\n  {name}: {fault}" for name, fault in failed.items())
        if len(failed) == len(agenda.trainings):
            first = next(iter(failed.values()))
            raise type(first)(f"all {len(failed)} trainings failed:{listed}")
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
        say(_what_now(folders, result, time.monotonic() - started))
        if failed:
            raise PartlyDoneError(
                f"{len(failed)} of {len(agenda.trainings)} trainings failed; the same command "
                f"tries them again:{listed}"
            )
    return result


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


def _fold(folders: Folders, agenda: Agenda, one: Training) -> Path:
    """Give the folder of a training."""
    order = agenda.order
    return folders.fold(agenda.dataset, order.plan, one.configuration, one.fold, order.seed)


def _check_free(folder: Path) -> None:
    """Refuse to begin a training that another command is at.

    Raises:
        MachineError: It is.
    """
    if (holder := in_use(folder)) is not None:
        raise MachineError(f"{folder} is in use by {holder}; wait for it")


def _check(
    folders: Folders,
    agenda: Agenda,
    devices: Sequence[str],
    precision: str | None,
    *,
    begun_anew: bool = False,
) -> None:
    """Make sure that every training of a job can begin or go on, before the first one does.

    Raises:
        MachineError: Another command is at one.
        UsageError: One that is there was begun with other settings, or on another kind of device.
    """
    from nnseg.learning.resume import find_run

    order = agenda.order
    for one in agenda.trainings:
        folder = _fold(folders, agenda, one)
        _check_free(folder)
        if begun_anew:
            continue
        about = find_fold(
            folders, agenda.dataset, order.plan, one.configuration, one.fold, order.seed
        )
        with suppress(DataError):  # is for this training to say; the others can go on
            find_run(
                folder,
                scheduling.training_settings(order, one.budget_seconds),
                plan_hash=about.plan_hash,
                split_hash=about.split_hash,
                device=devices[0] if devices else None,
                precision=precision,
            )


def _set_aside(folders: Folders, agenda: Agenda) -> None:
    """Keep aside what a job begun anew would go on with, and the choice among what was there."""
    from nnseg.learning.resume import set_aside

    command = f"nnseg run {agenda.dataset} --overwrite"
    with locked(folders.models_folder(agenda.dataset), command):
        for file in (folders.choice_file(agenda.dataset), folders.choosing_file(agenda.dataset)):
            number = 1
            while (aside := file.with_name(f"{file.name}.old{number}")).exists():
                number += 1
            try:
                with suppress(FileNotFoundError):
                    file.rename(aside)
            except OSError as error:
                raise cannot_write(file, error) from error
    for one in agenda.trainings:
        folder = _fold(folders, agenda, one)
        with locked(folder, command):
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
        yield from train_elsewhere(
            folders,
            agenda,
            devices,
            precision,
            say,
            stop,
            lambda one: _check_free(_fold(folders, agenda, one)),
        )
        return
    for number, one in enumerate(agenda.trainings, 1):
        scheduling.raise_if(stop)
        _check_free(_fold(folders, agenda, one))
        say(f"    {number}/{len(agenda.trainings)} {one.name}")
        try:
            folder = pipeline.train(
                folders,
                agenda.dataset,
                one.configuration,
                one.fold,
                settings=scheduling.training_settings(order, one.budget_seconds),
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
    failed: Collection[str],
    workers: int | None,
    on_progress: OnProgress | None,
    say: Say,
    stop: Stop,
) -> Choosing | None:
    """Choose among what was trained; None where there is nothing to choose by.

    Raises:
        NnsegError: As `pipeline.find_best`, but where trainings failed, which is then the reason
            that counts.
    """
    names, folds = _comparable(agenda, failed)
    if not folds:
        why = "no fold is done of all configurations" if failed else "no fold was held out"
        say(f"    {why}: there is nothing to choose by")
        return None
    try:
        choosing = pipeline.find_best(
            folders,
            agenda.dataset,
            plans=(agenda.order.plan,),
            configurations=names,
            folds=folds,
            seeds=(agenda.order.seed,),
            most_members=agenda.order.most_members,
            workers=workers,
            on_progress=on_progress,
            stop=stop,
        )
    except (MissingError, DataError) as error:
        if not failed:
            raise
        logger.warning("nothing was chosen: %s", error)
        return None
    say(describe_choosing(choosing))
    return choosing


def _comparable(agenda: Agenda, failed: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give the configurations to choose among, and the folds that all of them have.

    They are those of which no training failed; where there is none, those of which some did not.
    """
    done: dict[str, set[str]] = {}
    for one in agenda.trainings:
        if one.name not in failed:
            done.setdefault(one.configuration, set()).add(one.fold)
    broken = {one.configuration for one in agenda.trainings if one.name in failed}
    names = tuple(name for name in done if name not in broken) or tuple(done)
    folds = (fold for fold in agenda.folds if fold != "all")
    return names, tuple(fold for fold in folds if all(fold in done[name] for name in names))


def _what_now(folders: Folders, finished: Finished, seconds: float) -> str:
    """Say what there is and what to do with it."""
    where = shlex.quote(str(finished.choice_file or _model(folders, finished)))
    return (
        f"done in {report.duration(seconds)}\n"
        "what now:\n"
        f"  look at       {finished.report_file}\n"
        f"  predict       nnseg predict -i IN -o OUT -m {where}\n"
        f"  hand it on    nnseg export {where} --to zip -o MODEL.zip"
    )


def _model(folders: Folders, finished: Finished) -> Path:
    """Give the folder of the model to predict with where none was chosen."""
    agenda, order = finished.agenda, finished.agenda.order
    done = [one for one in agenda.trainings if one.name not in finished.failed]
    best = min(done, key=lambda one: (*PLAIN, one.configuration).index(one.configuration))
    if order.seed:  # which a model's folder cannot tell from those of other seeds
        return _fold(folders, agenda, best)
    return folders.model(agenda.dataset, order.plan, best.configuration)


@contextmanager
def _goes_on(overwrite: bool) -> Iterator[None]:
    """Say of a job that is stopped what goes on with it, now that it is begun."""
    try:
        yield
    except StoppedError as error:
        if overwrite and "without --overwrite" not in str(error):
            raise StoppedError(f"{error} (without --overwrite)") from None
        raise
