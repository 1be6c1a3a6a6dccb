"""Stage 4 with its files: one fold trained, or rehearsed."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from nnseg import report
from nnseg.dataset import find_training_cases, read_spec
from nnseg.errors import MissingError
from nnseg.evaluate import TOLERANCE_MM
from nnseg.folders import (
    Folders,
    checkpoint_file,
    metrics_file,
    progress_file,
    validation_folder,
)
from nnseg.lock import locked
from nnseg.parallel import OnProgress
from nnseg.runlog import Run, logged_run
from nnseg.verbs.fold_task import Stop, bare_task, choose_run, enough_memory, make_task
from nnseg.verbs.planned_fold import PlannedFold, find_fold
from nnseg.verbs.planning import DEFAULT_PLAN
from nnseg.verbs.reporter import Reporter
from nnseg.verbs.validating import is_validated, scores_of, validate_with
from nnseg.volume import read_segmentation

if TYPE_CHECKING:
    from nnseg.learning.recipe import TrainSettings
    from nnseg.learning.resume import EpochReport, RunRecord
    from nnseg.learning.task import Task
    from nnseg.model.device import Execution
    from nnseg.model.ranks import Ranks
    from nnseg.networks.timm_weights import EncoderWeights
    from nnseg.train import Reserve
    from nnseg.verbs.pretrained import Pretrained

Say: TypeAlias = Callable[[str], None]

RESTORE_SECONDS = 1e-7  # a voxel and head: logits back to the file's grid, and scores
REHEARSED = 10  # steps
LOOKED_AT = 4  # raw label maps that a diagnosis looks at, at most


def train(
    folders: Folders,
    dataset: str,
    configuration: str,
    fold: str,
    *,
    settings: "TrainSettings | None" = None,
    plan_name: str = DEFAULT_PLAN,
    device: str | None = None,
    precision: str | None = None,
    compiled: bool | None = None,
    resume: bool | None = None,
    given: Collection[str] | None = None,
    overwrite: bool = False,
    extend_to: int | None = None,
    pretrained: Path | None = None,
    pretrained_encoder: Path | None = None,
    loader_workers: int | None = None,
    trackers: Sequence[str] = (),
    ranks: "Ranks | None" = None,
    validate_after: bool = True,
    on_progress: OnProgress | None = None,
    on_epoch: "Callable[[EpochReport], None] | None" = None,
    say: Say = lambda text: None,
    stop: Stop = lambda: False,
) -> Path:
    """Stage 4: train one fold of a configuration, then predict and score its validation cases.

    The same call goes on where a run stopped, and does nothing for a finished one.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        configuration: A name in the plan.
        fold: "0" to "4", or "all".
        settings: What may be chosen; None is nnU-Net's recipe.
        plan_name: The plan.
        device: "cpu", "cuda", ...; None is the best there is.
        precision: "fp32", "bf16" or "fp16"; None chooses.
        compiled: Let torch compile the network; None where that pays: it takes a minute.
        resume: True only goes on; None goes on or starts.
        given: Names of the settings that were chosen for this call; where `resume` is True, the
            others are those of the run. None are all.
        overwrite: Start anew; the old run is kept aside.
        extend_to: Give the run that is there, finished or not, its end after so many epochs.
        pretrained: A model to start from; see `read_pretrained`.
        pretrained_encoder: A safetensors file of timm's with the weights of the encoder to start
            from; see `fit_encoder`.
        loader_workers: Threads that make batches ahead; None is what suits the device. The batches
            are the same.
        trackers: Names of TRACKERS that get the figures of every epoch.
        ranks: Which of the processes that train together this one is; None trains alone.
        validate_after: False leaves out the full-volume validation.
        on_progress: Called after steps and cases.
        on_epoch: Called after every epoch.
        say: Gets a line for the user, such as where a run goes on.
        stop: Asked after every step; True saves and raises StoppedError.

    Returns:
        The folder of the fold: checkpoints, metrics.csv, progress.png, validation/.

    Raises:
        MissingError: Not planned, not preprocessed, or nothing to go on with.
        UsageError: The run there was made with other settings.
        StoppedError: It stopped with everything saved.
    """
    from nnseg.learning.recipe import TrainSettings
    from nnseg.model.ranks import ALONE, first_then_others, joined, telling_of_lost
    from nnseg.verbs.pretrained import check_start, read_start

    started = time.monotonic()
    ranks = ranks or ALONE
    start = read_start(pretrained, pretrained_encoder)
    settings = settings or TrainSettings()
    if start is not None:
        settings = replace(settings, pretrained=start.sha256)
    about = find_fold(folders, dataset, plan_name, configuration, fold, settings.seed)
    folder = about.folder
    with ExitStack() as held:
        if ranks.is_first:
            held.enter_context(locked(folder, f"nnseg train {dataset} {configuration} {fold}"))
        peers = held.enter_context(joined(ranks, device))
        held.enter_context(telling_of_lost(ranks, peers))
        find = partial(
            _find_earlier,
            about,
            settings,
            extend_to,
            resume=resume,
            given=given,
            overwrite=overwrite,
            device=device,
            precision=precision,
        )
        earlier = first_then_others(ranks, find)
        if earlier is not None and resume:
            settings = earlier.settings
        execution = None
        if earlier is None or not earlier.finished:
            execution = choose_run(settings, earlier, device, precision, compiled, ranks)
            bare_task(about, settings, execution, ranks, earlier)  # refuses what cannot be meant
            check_start(start, about.plan, about.configuration.name)
        elif not validate_after or is_validated(folder):
            return folder
        run = held.enter_context(_logged(about, settings, ranks, overwrite, stop))
        held.enter_context(telling_of_lost(ranks, peers))  # within: the log is to have it, too
        if execution is not None:
            if earlier is not None:
                say(f"going on after epoch {earlier.epoch} of {earlier.course.epochs}")
            run.facts["execution"] = asdict(execution)
            make = partial(
                make_task, about, settings, execution, ranks, loader_workers, on_progress, stop
            )
            task = first_then_others(ranks, make)
            if start is not None and earlier is None:
                task = replace(task, initial=_initial(start, about, settings, run, say))
            reserve = _validation_reserve(task) if validate_after else None
            with _reporting(task, about, earlier, trackers, on_epoch, say) as reporter:
                fit = partial(_fit, about, task, run, on_epoch=reporter, on_step=on_progress)
                used = fit(resume=earlier, started=started, reserve=reserve, stop=stop)
            device, precision = used.device, used.precision
        if validate_after and ranks.is_first:
            run.facts["validation_dice"] = _validate(
                about, settings.seed, device, precision, on_progress, stop
            )
    return folder


def _find_earlier(
    about: PlannedFold, settings: "TrainSettings", extend_to: int | None, **how: Any
) -> "RunRecord | None":
    """Find the run to go on with, given its later end if there is to be one; None to start.

    Raises:
        MissingError: There is none to extend.
        UsageError, DataError: As `find_run`, which takes the rest, and `extend_run`.
    """
    from nnseg.learning.resume import extend_run, find_run

    earlier = find_run(
        about.folder,
        settings,
        plan_hash=about.plan_hash,
        split_hash=about.split_hash,
        data_hash=about.data_hash,
        **how,
    )
    if extend_to is None:
        return earlier
    if earlier is None:
        raise MissingError(f"{about.folder}: there is no run to extend; leave out --extend-to")
    return extend_run(earlier, extend_to)


def _fit(about: PlannedFold, task: "Task", run: Run, **how: Any) -> "Execution":
    """Train a network as `nnseg.train.train` does, and note what became of it: how it ran."""
    from nnseg.train import train as train_network

    with enough_memory(about):
        finished = train_network(task, **how)
    run.facts["execution"] = asdict(finished.execution)
    run.facts["epochs"] = finished.course.epochs
    run.facts["seconds"] = finished.seconds
    return finished.execution


def _validate(
    about: PlannedFold,
    seed: int,
    device: str | None,
    precision: str | None,
    on_progress: OnProgress | None,
    stop: Stop,
) -> float | None:
    """Predict and score the validation cases by the final weights: the mean Dice."""
    from nnseg.inference import load_model

    model = load_model((about.folder,), device=device, precision=precision, alone=True)
    summary = validate_with(about, model, "final", seed, TOLERANCE_MM, on_progress, stop)
    return summary.foreground_mean.dice


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What a training will take, as a few steps of it tell."""

    epochs: int
    iterations: int  # steps an epoch
    patches: int  # a step
    step_seconds: float  # of the middle one
    quickest_seconds: float  # of a step that nothing else on the machine held up
    bytes: int  # peak of memory: the GPU's, or of a CPU the process's
    execution: "Execution"

    def __str__(self) -> str:
        epoch = self.step_seconds * self.iterations
        run = self.execution
        return (
            f"{self.epochs} epochs of {self.iterations} steps of {self.patches} patches on "
            f"{run.device} in {run.precision}: "
            f"{self.step_seconds:.2f} s a step, {report.duration(epoch)} an epoch, "
            f"{report.duration(epoch * self.epochs)} in all, {self.bytes / 1e9:.1f} GB of memory"
        )


def rehearse(
    folders: Folders,
    dataset: str,
    configuration: str,
    fold: str,
    *,
    settings: "TrainSettings | None" = None,
    plan_name: str = DEFAULT_PLAN,
    device: str | None = None,
    precision: str | None = None,
    compiled: bool | None = None,
    pretrained: Path | None = None,
    pretrained_encoder: Path | None = None,
    loader_workers: int | None = None,
    stop: Stop = lambda: False,
) -> Rehearsal:
    """Do ten steps of a training without writing anything, and say what all of it would take.

    For a budget it first does some of the plan's batch, by which that of the others is chosen.

    The arguments are those of `train`.

    Raises:
        MissingError, UsageError, DataError: As `train`, of the data and what it starts from.
        StoppedError: `stop` said True between two steps.
        MachineError: There is not enough memory; a smaller plan is named.
    """
    from nnseg.learning.recipe import TrainSettings
    from nnseg.model.ranks import ALONE
    from nnseg.train import rehearse_steps
    from nnseg.verbs.pretrained import begin, read_start

    start = read_start(pretrained, pretrained_encoder)
    settings = settings or TrainSettings()
    if start is not None:
        settings = replace(settings, pretrained=start.sha256)
    about = find_fold(folders, dataset, plan_name, configuration, fold, settings.seed)
    execution = choose_run(settings, None, device, precision, compiled, ALONE)
    begins = start and begin(start, about.plan, about.configuration.name, settings.seed)
    task = make_task(about, settings, execution, ALONE, loader_workers, None, stop, carried=False)
    if begins is not None:
        task = replace(task, initial=begins.weights)
    with enough_memory(about):
        course, seconds, quickest, peak = rehearse_steps(task, REHEARSED, stop)
    return Rehearsal(
        epochs=course.epochs,
        iterations=course.iterations,
        patches=(course.batch_size or task.batch_size) * settings.accumulate,
        step_seconds=seconds,
        quickest_seconds=quickest,
        bytes=peak,
        execution=execution,
    )


@contextmanager
def _logged(
    about: PlannedFold, settings: "TrainSettings", ranks: "Ranks", overwrite: bool, stop: Stop
) -> Iterator[Run]:
    """Have the first of the ranks log what is done; it keeps the run aside that is overwritten."""
    from nnseg.learning.resume import set_aside

    if not ranks.is_first:
        yield Run()
        return
    folder = about.folder
    if overwrite:
        set_aside(folder)
    arguments = {
        "dataset": about.dataset,
        "configuration": about.configuration.name,
        "fold": about.fold,
    }
    with logged_run(folder, "train", arguments | asdict(settings), stop=stop) as run:
        run.outputs += [checkpoint_file(folder, kind) for kind in ("final", "best", "latest")]
        run.outputs += [metrics_file(folder), progress_file(folder)]
        run.outputs += scores_of(validation_folder(folder))
        yield run


def _reporting(
    task: "Task",
    about: PlannedFold,
    earlier: "RunRecord | None",
    trackers: Sequence[str],
    on_epoch: "Callable[[EpochReport], None] | None",
    say: Say,
) -> AbstractContextManager[Reporter | None]:
    """Have the first of the ranks tell how the training goes; the others would say the same."""
    if not task.ranks.is_first:
        return nullcontext()
    return Reporter(
        task,
        earlier.history if earlier else (),
        trackers=trackers,
        in_raw=partial(_in_raw_label_maps, about),
        on_epoch=on_epoch,
        say=say,
    )


def _initial(
    start: "Pretrained | EncoderWeights",
    about: PlannedFold,
    settings: "TrainSettings",
    run: Run,
    say: Say,
) -> dict[str, Any]:
    """Give the weights to start from, tensors by name, and say what was taken over."""
    from nnseg.verbs.pretrained import begin

    beginning = begin(start, about.plan, about.configuration.name, settings.seed)
    run.inputs.append(beginning.source)
    run.facts["pretrained"] = {
        "source": str(beginning.source),
        "kept": beginning.kept,
        "adapted": beginning.adapted,
        "fresh": beginning.fresh,
    }
    say(f"starting from {beginning.source}\n{beginning.description}")
    return beginning.weights


def _in_raw_label_maps(about: PlannedFold, names: Sequence[str]) -> list[str]:
    """Give those of the labels that some raw label maps of the fold's training cases have."""
    if not names:
        return []
    spec = read_spec(about.folders.spec_file(about.dataset))
    members = set(about.split.train)
    cases = find_training_cases(about.folders, about.dataset, spec)
    maps = [case.label for case in cases if case.case_id in members and case.label is not None]
    found: set[int] = set()
    for path in maps[:LOOKED_AT]:
        found.update(np.unique(read_segmentation(path)[0]).tolist())
    return [name for name in names if found & set(spec.labels.foreground[name])]


def _validation_reserve(task: "Task") -> "Reserve":
    """Foretell the seconds of the full-volume validation from one tile, or as many as go at once.

    They are measured once. As the epochs get slower or faster than the first, so will tiles.
    """
    from nnseg.predict import count_tiles, tile_seconds

    patch = task.configuration.patch_size
    tiles = sum(count_tiles(case.shape, patch) for case in task.val_cases)
    voxels = sum(math.prod(case.placement.shape) for case in task.val_cases)
    rest = voxels * task.plan.labels.heads * RESTORE_SECONDS
    measured: list[float] = []  # seconds of a tile
    paces: list[float] = []  # seconds of a step, epoch by epoch

    def reserve(network: Any, mirror_axes: tuple[int, ...], step_seconds: float) -> float:
        if measured:  # the first step was a probe, whose seconds are of another kind
            paces.append(step_seconds)
        else:
            channels = task.plan.input_channels(task.configuration.name)
            measured.append(tile_seconds(network, channels, patch, task.execution, mirror_axes))
        slower = paces[-1] / paces[0] if paces else 1.0
        return (tiles * measured[0] + rest) * slower

    return reserve if task.val_cases else lambda *_: 0.0
