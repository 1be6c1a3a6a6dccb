"""Stage 4, preprocessed cases to a trained network.

`train` is the loop; read it first. What it is about is a `Task`, what changes is `TrainState`, and
every batch is a pure function of (seed, fold, epoch, batch). So a run that was killed goes on from
its last checkpoint to the very bytes that it would have come to undisturbed.
"""

import copy
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnseg.batches import Batch, BatchSource, keep_on_device, make_batch, make_batches
from nnseg.checkpoint import load_weights, pack, save_model
from nnseg.errors import DataError, StoppedError, UsageError
from nnseg.model.augment import Augmentation, plan_augmentation
from nnseg.model.device import Execution, compile_network
from nnseg.model.loss import (
    Loss,
    deep_supervision_loss,
    deep_supervision_weights,
    hard_counts,
    make_loss,
)
from nnseg.model.ranks import ALONE, Ranks, any_rank, from_first, gather
from nnseg.model.unet import build_network
from nnseg.optimize import Optimizer, Verdict, average_into, make_optimizer, set_pace, update
from nnseg.plan import Configuration, Plan
from nnseg.recipe import (
    Course,
    TrainSettings,
    cool_down,
    fit_budget,
    learning_rate,
    plan_course,
    plan_steps,
    refit_budget,
)
from nnseg.resume import EpochReport, RunRecord, write_run
from nnseg.runlog import peak_memory
from nnseg.store import TrainingCase

DICE_MEMORY = 0.9  # share of the old value in the moving average of the pseudo Dice
SAVE_EVERY = 300.0  # seconds between checkpoints to go on from
VALIDATION_EPOCH = -1  # validation patches are the same ones in every epoch
REMEMBERED_EPOCHS = 5  # whose pace foretells that of the rest
REMEDY = (  # of a loss that is no number; a run that goes on keeps its rate and precision
    "check these cases, or start anew with --overwrite and a lower --lr or --precision fp32"
)
PROBE_STEPS = 3  # timed before a budget is turned into a number of steps


@dataclass(slots=True, kw_only=True)
class TrainState:
    """What changes while a network is trained."""

    network: nn.Module
    average: nn.Module | None  # the network of averaged weights, where the settings want one
    optimizer: Optimizer
    scaler: torch.amp.GradScaler  # of fp16; does nothing otherwise
    course: Course
    epoch: int = 0
    iteration: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    wait_seconds: float = 0.0
    history: list[EpochReport] = field(default_factory=list)
    saved: RunRecord | None = None  # what there is on the disk to go on from
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def model(self) -> nn.Module:
        """What is validated and kept: the average of the weights, or else the network itself."""
        return self.average or self.network


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one training is about: the data, the plan and the choices; it does not change.

    `previous` has, for a cascade, a label map of positions (z, y, x) for every case, on its grid:
    what the stage before predicts of it. `initial` are weights by name to start from; those of
    other names or shapes than the network's are passed over. `loader_workers` is how many threads
    make batches ahead, None as the loader sees fit; the batches are the same.
    """

    plan: Plan
    plan_hash: str
    split_hash: str
    configuration: Configuration
    fold: str
    train_cases: Sequence[TrainingCase]
    val_cases: Sequence[TrainingCase]
    settings: TrainSettings
    execution: Execution
    folder: Path  # where checkpoints go
    previous: Mapping[str, Any] | None = None  # by case id
    initial: Mapping[str, Tensor] | None = None
    loader_workers: int | None = None
    ranks: Ranks = ALONE
    data_hash: str = ""  # of what the cases were preprocessed from

    def __post_init__(self) -> None:
        if self.batch_size < self.ranks.count:
            raise UsageError(
                f"{self.ranks.count} processes cannot share a batch of {self.batch_size}; start "
                "fewer"
            )
        names, weights = list(self.plan.labels.foreground), self.settings.class_weights
        if weights is not None and len(weights) != len(names):
            raise UsageError(
                f"class_weights has {len(weights)} entries; {', '.join(names)} need one each"
            )
        _ = self.swaps  # refuses names that are none

    @property
    def batch_size(self) -> int:
        """Samples of a batch."""
        return self.settings.batch_size or self.configuration.batch_size

    @property
    def channels(self) -> int:
        """Input channels of the network; of a cascade, the foreground of the stage before, too."""
        found = 0 if self.previous is None else len(self.plan.labels.foreground_values)
        return len(self.plan.channels) + found

    @property
    def swaps(self) -> tuple[tuple[int, int], ...]:
        """Pairs of label positions that trade places when left and right do.

        Raises:
            UsageError: A name is no label's.
        """
        labels = self.plan.labels.consecutive.labels
        for name in (name for pair in self.settings.swap_labels for name in pair):
            if not isinstance(labels.get(name), int) or not labels[name]:
                known = ", ".join(n for n, v in labels.items() if isinstance(v, int) and v)
                raise UsageError(f"swap_labels has {name!r}, which is no label; known: {known}")
        return tuple((labels[a], labels[b]) for a, b in self.settings.swap_labels)  # type: ignore[misc]

    @property
    def left_right(self) -> int:
        """The axis, in plan order, from left to right: the last of the image."""
        return self.plan.order.index(2)

    def training(self, course: Course) -> BatchSource:
        """Give where augmented batches come from."""
        return self._source(self.train_cases, self.augmentation(course))

    @property
    def validation(self) -> BatchSource:
        """Where batches to validate with come from."""
        return self._source(self.val_cases, None)

    def augmentation(self, course: Course) -> Augmentation:
        """Give the rules by which a training along `course` changes its patches."""
        return plan_augmentation(
            self.configuration.patch_size,
            self.configuration.architecture.dimensions,
            course.augmentation,
            swaps=self.swaps,
            swap_axis=self.left_right,
        )

    def course(self, step_seconds: float | None = None) -> Course:
        """Plan the course: by the settings, and where they leave it open by the data."""
        shapes = [case.shape for case in self.train_cases]
        steps = plan_steps(shapes, self.configuration.patch_size, self.batch_size)
        return plan_course(self.settings, step_seconds, steps)

    @property
    def loss(self) -> Loss:
        """What is minimised."""
        return make_loss(self.settings.loss, self.settings.class_weights)

    def _source(
        self, cases: Sequence[TrainingCase], augmentation: Augmentation | None
    ) -> BatchSource:
        return BatchSource(
            cases=cases,
            configuration=self.configuration,
            seed=self.settings.seed,
            fold=self.fold,
            batch_size=self.batch_size,
            device=self.execution.torch_device,
            augmentation=augmentation,
            previous=None if self.previous is None else [self.previous[c.case_id] for c in cases],
            previous_labels=len(self.plan.labels.foreground_values),
            samples=self.ranks.share(self.batch_size),
        )

    @property
    def output_weights(self) -> tuple[float, ...]:
        """Weight of the loss at each resolution that has one, full resolution first."""
        weights = deep_supervision_weights(max(self.configuration.architecture.levels - 1, 1))
        return tuple(weight for weight in weights if weight > 0)


OnEpoch: TypeAlias = Callable[[EpochReport], None]
OnStep: TypeAlias = Callable[[str, int, int], None]
Reserve: TypeAlias = Callable[[nn.Module, tuple[int, ...], float], float]


def train(
    task: Task,
    *,
    resume: RunRecord | None = None,
    started: float | None = None,
    reserve: Reserve | None = None,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> RunRecord:
    """Train a network and leave checkpoint_final, checkpoint_best and checkpoint_latest.

    Args:
        task: Data, plan and settings.
        resume: The record of the run to go on with; None starts anew.
        started: When the budget's clock began, by `time.monotonic`; None is now.
        reserve: Of a budget, the seconds that must be left when training ends; called with the
            network, the axes that it may be mirrored along, and the seconds of a training step.
        on_epoch: Called with the report of every epoch.
        on_step: Called after every step with a text, the steps done and their number.
        stop: Asked after every step and between validation batches; True saves and ends the
            training.

    Returns:
        The record of the finished run.

    Raises:
        StoppedError: `stop` said so; everything is saved.
        DataError: The loss became NaN or infinite; the cases of the batch are named. No such step
            has changed the weights, and checkpoints stay as they are.
    """
    started = time.monotonic() if started is None else started
    if task.execution.torch_device.type == "cpu":
        torch.set_num_threads(task.execution.threads)  # sums come out the same when a run goes on
    device = task.execution.torch_device
    task = replace(
        task,
        train_cases=keep_on_device(task.train_cases, device),
        val_cases=keep_on_device(task.val_cases, device),
    )
    state = restore_state(task, resume) if resume else new_state(task)
    before = state.seconds

    def clock() -> float:
        return before + time.monotonic() - started

    def left(budget: float, step_seconds: float) -> float:
        kept = (
            reserve(state.network, mirror_axes(task, state.course), step_seconds)
            if reserve
            else 0.0
        )
        return from_first(budget - clock() - kept)

    def refit(budget: float, seconds: float) -> None:
        done = state.epoch + state.iteration / state.course.iterations
        rest = left(budget, seconds / state.course.iterations)
        follow(state, refit_budget(state.course, task.settings, done, seconds, rest))

    shared_network = share_network(task, state)
    step_network = compiled_network(task, state, shared_network)
    if task.execution.compiled and step_network is shared_network:  # it failed: never try again
        task = replace(task, execution=replace(task.execution, compiled=False))
    budget = None if state.course.extended else task.settings.budget_seconds
    if budget is not None and resume is None:
        step_seconds = from_first(probe(task, state.course, step_network))
        follow(state, task.course(step_seconds))
        rest = left(budget, step_seconds)
        follow(state, fit_budget(state.course, task.settings, step_seconds, rest))
    elif budget is not None and (seconds := from_first(epoch_pace(state))):
        refit(budget, seconds)  # it may have been used up since
    while state.epoch < state.course.epochs:
        report = train_epoch(task, state, step_network, on_step, stop, clock)
        if report is None:
            raise StoppedError(
                f"stopped in epoch {state.epoch + 1} of {state.course.epochs}, everything is "
                "saved; the same command goes on (without --overwrite)"
            )
        state.seconds = clock()
        averages = [epoch.dice_average for epoch in state.history]
        best = max((dice for dice in averages[:-1] if dice is not None), default=-1.0)
        if report.dice_average is not None and report.dice_average > best:
            save(task, state, "best")
        if on_epoch:
            on_epoch(report)
        if budget is not None:
            refit(budget, from_first(epoch_pace(state)))
        follow(state, cool_down(state.course, task.settings, averages))
        if is_due(state) and state.epoch < state.course.epochs:
            save_state(task, state)
    save(task, state, "final")
    state.seconds = clock()
    return save_state(task, state, finished=True)


def train_epoch(
    task: Task,
    state: TrainState,
    step_network: Any,
    on_step: OnStep | None,
    stop: Callable[[], bool],
    clock: Callable[[], float],
) -> EpochReport | None:
    """Do the steps that are left of an epoch, then validate it; None when stopped and saved."""
    settings, course = task.settings, state.course
    begun = clock() - state.epoch_seconds
    lr = learning_rate(course, settings.schedule, state.epoch)
    set_pace(state.optimizer, lr=lr, momentum=course.momentum)
    state.network.train()
    pending: tuple[Verdict, list[str]] | None = None

    def keep() -> None:
        state.seconds, state.epoch_seconds = clock(), clock() - begun
        save_state(task, state)

    waited = clock()
    numbers = range(state.iteration, course.iterations)
    with _batches(task, task.training(course), state.epoch, numbers) as batches:
        for image, segmentation, case_ids in batches:
            state.wait_seconds += clock() - waited
            loss = step_loss(task, step_network, image, segmentation)
            verdict = update(state.optimizer, state.scaler, loss, settings.gradient_clip)
            look(state, pending)  # one step late, so that a GPU need not wait for the host
            pending = (verdict, case_ids)
            state.iteration += 1
            steps = state.epoch * course.iterations + state.iteration
            if state.average is not None and settings.ema is not None:
                ours, theirs = state.average.parameters(), state.network.parameters()
                average_into(ours, theirs, settings.ema, steps)
            if on_step:
                on_step("training", steps, course.steps)
            stopped = any_rank(stop())
            if stopped or is_due(state):
                look(state, pending)
                pending = None
                keep()
            if stopped:
                return None
            waited = clock()
    look(state, pending)
    validated = validate_epoch(task, state, stop)
    if validated is None:
        keep()
        return None
    validation_loss, label_dice = validated
    known = [dice for dice in label_dice.values() if dice is not None]
    dice = sum(known) / len(known) if known else None
    seconds = clock() - begun
    report = EpochReport(
        epoch=state.epoch + 1,
        epochs=course.epochs,
        lr=lr,
        loss=state.loss_sum / course.iterations,
        validation_loss=validation_loss,
        dice=dice,
        dice_average=_average(state.history, dice),
        label_dice=label_dice,
        seconds=seconds,
        wait_share=min(1.0, state.wait_seconds / max(seconds, 1e-9)),
    )
    state.history.append(report)
    state.epoch += 1
    state.iteration, state.loss_sum = 0, 0.0
    state.epoch_seconds = state.wait_seconds = 0.0
    return report


def look(state: TrainState, pending: tuple[Verdict, list[str]] | None) -> None:
    """Take account of a step that was done.

    Raises:
        DataError: Its loss or gradient was no finite number; the cases of its batch are named.
    """
    if pending is None:
        return
    verdict, case_ids = pending
    if fault := verdict.fault():
        raise DataError(
            f"{fault} in epoch {state.epoch + 1}, on a batch of "
            f"{', '.join(sorted(set(case_ids)))}; {REMEDY}"
        )
    state.loss_sum += verdict.wait()[0]


@torch.no_grad()
def validate_epoch(
    task: Task, state: TrainState, stop: Callable[[], bool] = lambda: False
) -> tuple[float, dict[str, float | None]] | None:
    """Score patches of the validation cases: mean loss, and the pseudo Dice of each label.

    `stop` is asked between batches; None where it said so.

    Raises:
        DataError: The loss is no finite number; the cases of the batch are named.
    """
    labels = task.plan.labels.consecutive
    state.model.eval()
    losses: list[Tensor] = []
    counts, cases = [], []
    numbers = range(state.course.validation_iterations)
    with _batches(task, task.validation, VALIDATION_EPOCH, numbers) as batches:
        for image, segmentation, case_ids in batches:
            if losses and any_rank(stop()):
                return None
            with task.execution.autocast():
                logits = state.model(image, 1)[0]
            losses.append(task.loss(logits, segmentation, labels, task.configuration.batch_dice))
            counts.append(hard_counts(logits, segmentation, labels))
            cases.append(case_ids)
    values = torch.stack(losses).tolist()
    for value, case_ids in zip(values, cases, strict=True):
        if not math.isfinite(value):
            raise DataError(
                f"the validation loss became {value} in epoch {state.epoch + 1}, on a batch of "
                f"{', '.join(sorted(set(case_ids)))}; {REMEDY}"
            )
    tp, fp, fn = gather(torch.stack(counts)).sum(dim=0).tolist()
    scores: dict[str, float | None] = {}
    for i, name in enumerate(labels.foreground):
        union = 2 * tp[i] + fp[i] + fn[i]
        scores[name] = 2 * tp[i] / union if union else None
    return sum(values) / len(values), scores


def step_loss(task: Task, network: Any, image: Tensor, segmentation: Tensor) -> Tensor:
    """Give the deeply supervised loss of one batch."""
    weights = task.output_weights
    with task.execution.autocast():
        outputs = network(image, len(weights))
    return deep_supervision_loss(
        task.loss,
        outputs,
        segmentation,
        task.plan.labels.consecutive,
        task.configuration.batch_dice,
        weights,
    )


def new_state(task: Task) -> TrainState:
    """Make the state of a training that begins; its weights follow from the seed."""
    settings = task.settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = build_network(
            task.configuration.architecture, task.channels, task.plan.labels.heads
        )
    if task.initial is not None:
        own = network.state_dict()
        fitting = {
            name: tensor
            for name, tensor in task.initial.items()
            if name in own and own[name].shape == tensor.shape
        }
        network.load_state_dict(own | fitting)
    network = task.execution.place(network, task.configuration.architecture.dimensions)
    course = task.course()
    return TrainState(
        network=network,
        average=None if settings.ema is None else copy.deepcopy(network).requires_grad_(False),
        optimizer=make_optimizer(
            settings.optimizer,
            network.parameters(),
            lr=course.lr,
            momentum=course.momentum,
            weight_decay=settings.weight_decay,
        ),
        scaler=torch.amp.GradScaler(
            task.execution.torch_device.type, enabled=task.execution.precision == "fp16"
        ),
        course=course,
    )


def follow(state: TrainState, course: Course) -> None:
    """Train on along another course."""
    state.course = course
    set_pace(state.optimizer, momentum=course.momentum)


def epoch_pace(state: TrainState) -> float:
    """Give the seconds that an epoch takes, by the last ones or what is done of the first; or 0."""
    recent = [epoch.seconds for epoch in state.history[-REMEMBERED_EPOCHS:]]
    if recent:
        return sum(recent) / len(recent)
    if state.iteration:
        return state.epoch_seconds / state.iteration * state.course.iterations
    return 0.0


def is_due(state: TrainState) -> bool:
    """Say whether it is time for another checkpoint."""
    return time.monotonic() - state.saved_at > SAVE_EVERY


def save_state(task: Task, state: TrainState, *, finished: bool = False) -> RunRecord:
    """Write checkpoint_latest: weights, the optimizer's memory and all else needed to go on."""
    tensors = {f"network.{key}": value for key, value in state.network.state_dict().items()}
    if state.average is not None:
        averages = state.average.state_dict()
        tensors |= {f"average.{key}": value for key, value in averages.items()}
    for key, parameter in state.network.named_parameters():
        for slot, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{slot}.{key}"] = value
    scaler = state.scaler.state_dict()
    run = RunRecord(
        plan_hash=task.plan_hash,
        split_hash=task.split_hash,
        configuration_name=task.configuration.name,
        fold=task.fold,
        settings=task.settings,
        execution=task.execution,
        course=state.course,
        epoch=state.epoch,
        iteration=state.iteration,
        loss_sum=state.loss_sum,
        seconds=state.seconds,
        epoch_seconds=state.epoch_seconds,
        history=tuple(state.history),
        weights_file="",  # it is named for its content
        weights_sha256="",
        finished=finished,
        data_hash=task.data_hash,
        loss_scale=(scaler["scale"], scaler["_growth_tracker"]) if scaler else None,
    )
    state.saved_at = time.monotonic()
    if task.ranks.is_first:
        state.saved = run = write_run(task.folder, run, pack(tensors), state.saved)
    return run


def restore_state(task: Task, run: RunRecord) -> TrainState:
    """Make the state that `save_state` wrote."""
    state = new_state(task)
    tensors = load_weights(task.folder, run.weights_file, run.weights_sha256)
    state.network.load_state_dict(_part(tensors, "network."))
    if state.average is not None:
        state.average.load_state_dict(_part(tensors, "average."))
    parameters = dict(state.network.named_parameters())
    for name, value in _part(tensors, "optimizer.").items():
        slot, _, key = name.partition(".")
        parameter = parameters[key]
        like = torch.empty_like(parameter) if value.shape == parameter.shape else None
        if like is None:  # a count of steps, which lies where the optimizer's kernel wants it
            fused = state.optimizer.defaults.get("fused")
            like = torch.empty_like(value, device=parameter.device if fused else None)
        state.optimizer.state[parameter][slot] = like.copy_(value).detach()
    if run.loss_scale is not None:
        scale, tracker = run.loss_scale
        scaler = state.scaler.state_dict() | {"scale": scale, "_growth_tracker": tracker}
        state.scaler.load_state_dict(scaler)
    follow(state, run.course)
    state.epoch, state.iteration, state.loss_sum = run.epoch, run.iteration, run.loss_sum
    state.seconds, state.epoch_seconds = run.seconds, run.epoch_seconds
    state.history = list(run.history)
    state.saved = run
    return state


def save(task: Task, state: TrainState, kind: Any) -> None:
    """Write the network as it is, to predict with."""
    if not task.ranks.is_first:
        return
    average = state.history[-1].dice_average if state.history else None
    save_model(
        task.folder,
        kind,
        state.model,
        plan=task.plan,
        configuration_name=task.configuration.name,
        fold=task.fold,
        epoch=state.epoch,
        mirror_axes=mirror_axes(task, state.course),
        validation_dice=average,
    )


def mirror_axes(task: Task, course: Course) -> tuple[int, ...]:
    """Give the axes that prediction may mirror: of those mirrored in training, the sideless ones.

    Mirrored from left to right, a network sees the labels of the other side.
    """
    axes = task.augmentation(course).mirror_axes
    return tuple(axis for axis in axes if not (task.swaps and axis == task.left_right))


def share_network(task: Task, state: TrainState) -> nn.Module:
    """Have the ranks average the gradients of the network, where there are several."""
    if task.ranks.count == 1:
        return state.network
    device = task.execution.torch_device
    return DistributedDataParallel(
        state.network,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=True,  # heads of weight 0 are not computed
    )


def compiled_network(task: Task, state: TrainState, network: nn.Module) -> Any:
    """Compile the network for the task's batches where the execution says so."""
    if not task.execution.compiled:
        return network
    image, _, _ = make_batch(task.training(state.course), 0, 0)
    network.train()
    return compile_network(network, image, task.execution, len(task.output_weights))


def rehearse_steps(task: Task, steps: int) -> tuple[Course, float, int]:
    """Do some steps that change nothing: the course, seconds a step, and the peak of memory, bytes.

    The memory is that of the GPU, or of a CPU that of the process.
    """
    state = new_state(task)
    network = compiled_network(task, state, state.network)
    seconds = probe(task, state.course, network, steps)
    course = task.course(seconds)
    if task.settings.budget_seconds is not None:
        course = fit_budget(course, task.settings, seconds, task.settings.budget_seconds)
    device = task.execution.torch_device
    if device.type == "cuda":
        return course, seconds, torch.cuda.max_memory_allocated(device)
    return course, seconds, peak_memory()


def probe(task: Task, course: Course, step_network: Any, steps: int = PROBE_STEPS) -> float:
    """Measure the seconds of a training step, data included, without changing the weights."""
    seconds = []
    for number in range(steps + 1):
        start = time.monotonic()
        image, segmentation, _ = make_batch(task.training(course), 0, number)
        loss = step_loss(task, step_network, image, segmentation)
        loss.backward()
        float(loss.detach())  # waits for the device
        seconds.append(time.monotonic() - start)
        for parameter in step_network.parameters():
            parameter.grad = None
    return sorted(seconds[1:])[len(seconds) // 2 - 1]


def _batches(
    task: Task, source: BatchSource, epoch: int, numbers: range
) -> "closing[Generator[Batch, None, None]]":
    """Have batches made, and no more of them once the context is left."""
    made = make_batches(source, epoch, numbers, workers=task.loader_workers)
    return closing(cast("Generator[Batch, None, None]", made))


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _average(history: list[EpochReport], dice: float | None) -> float | None:
    old = history[-1].dice_average if history else None
    if dice is None or old is None:
        return dice if old is None else old
    return DICE_MEMORY * old + (1 - DICE_MEMORY) * dice
