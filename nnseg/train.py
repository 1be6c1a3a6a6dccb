"""Stage 4, preprocessed cases to a trained network.

`train` is the loop; read it first. What it is about is a `Task`, what changes is `TrainState`, and
every batch is a pure function of (seed, fold, epoch, batch).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from nnseg import record
from nnseg.batches import BatchSource, make_batch, make_batches
from nnseg.checkpoint import forget_weights, load_weights, pack, save_model, save_weights
from nnseg.errors import DataError, StoppedError
from nnseg.model.augment import Augmentation, plan_augmentation
from nnseg.model.device import Execution, compile_network
from nnseg.model.loss import (
    LOSSES,
    deep_supervision_loss,
    deep_supervision_weights,
    hard_counts,
)
from nnseg.model.schedule import SCHEDULES
from nnseg.model.unet import build_network
from nnseg.plan import Configuration, Plan
from nnseg.recipe import Course, TrainSettings, fit_budget, plan_course, refit_budget
from nnseg.resume import EpochReport, RunRecord
from nnseg.store import TrainingCase

DICE_MEMORY = 0.9  # share of the old value in the moving average of the pseudo Dice
SAVE_EVERY = 300.0  # seconds between checkpoints to go on from
VALIDATION_EPOCH = -1  # validation patches are the same ones in every epoch
REMEMBERED_EPOCHS = 5  # whose pace foretells that of the rest
PROBE_STEPS = 3  # timed before a budget is turned into a number of steps


@dataclass(slots=True, kw_only=True)
class TrainState:
    """What changes while a network is trained."""

    network: nn.Module
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler  # of fp16; does nothing otherwise
    course: Course
    epoch: int = 0
    iteration: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    wait_seconds: float = 0.0
    history: list[EpochReport] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one training is about: the data, the plan and the choices; it does not change."""

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

    @property
    def batch_size(self) -> int:
        """Samples of a batch."""
        return self.settings.batch_size or self.configuration.batch_size

    def training(self, course: Course) -> BatchSource:
        """Give where augmented batches come from."""
        return self._source(self.train_cases, self.augmentation(course))

    @property
    def validation(self) -> BatchSource:
        """Where batches to validate with come from."""
        return self._source(self.val_cases, None)

    def augmentation(self, course: Course) -> Augmentation:
        """Give the rules by which a training along `course` changes its patches."""
        dimensions = self.configuration.architecture.dimensions
        return plan_augmentation(self.configuration.patch_size, dimensions, course.augmentation)

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
        stop: Asked after every step; True saves and ends the training.

    Returns:
        The record of the finished run.

    Raises:
        StoppedError: `stop` said so; everything is saved.
        DataError: The loss became NaN or infinite; the cases of the batch are named.
    """
    started = time.monotonic() if started is None else started
    if task.execution.torch_device.type == "cpu":
        torch.set_num_threads(task.execution.threads)  # sums come out the same when a run goes on
    state = restore_state(task, resume) if resume else new_state(task)
    before = state.seconds

    def clock() -> float:
        return before + time.monotonic() - started

    def left(budget: float, step_seconds: float) -> float:
        mirrors = task.augmentation(state.course).mirror_axes
        kept = reserve(state.network, mirrors, step_seconds) if reserve else 0.0
        return budget - clock() - kept

    step_network = compiled_network(task, state)
    if task.execution.compiled and step_network is state.network:  # it failed: never try again
        task = replace(task, execution=replace(task.execution, compiled=False))
    budget = task.settings.budget_seconds
    if resume is None and budget is not None:
        step_seconds = probe(task, state.course, step_network)
        follow(state, plan_course(task.settings, step_seconds))
        rest = left(budget, step_seconds)
        follow(state, fit_budget(state.course, task.settings, step_seconds, rest))
    saved = time.monotonic()
    while state.epoch < state.course.epochs:
        report = train_epoch(task, state, step_network, on_step, stop, clock)
        if report is None:
            state.seconds = clock()
            save_state(task, state)
            raise StoppedError(
                f"stopped in epoch {state.epoch + 1} of {state.course.epochs}, everything is "
                "saved; the same command goes on (without --overwrite)"
            )
        state.seconds = clock()
        best = max(
            (r.dice_average for r in state.history[:-1] if r.dice_average is not None), default=-1.0
        )
        if report.dice_average is not None and report.dice_average > best:
            save(task, state, "best")
        if on_epoch:
            on_epoch(report)
        if budget is not None:
            recent = [epoch.seconds for epoch in state.history[-REMEMBERED_EPOCHS:]]
            seconds = sum(recent) / len(recent)
            rest = left(budget, seconds / state.course.iterations)
            follow(state, refit_budget(state.course, task.settings, state.epoch, seconds, rest))
        if time.monotonic() - saved > SAVE_EVERY and state.epoch < state.course.epochs:
            save_state(task, state)
            saved = time.monotonic()
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
    """Do the steps that are left of an epoch, then validate it; None when stopped on the way."""
    settings, course, device = task.settings, state.course, task.execution.torch_device
    begun = clock() - state.epoch_seconds
    lr = course.lr * SCHEDULES[settings.schedule](state.epoch / course.epochs)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    scaler = state.scaler
    state.network.train()
    losses, previous = torch.zeros((), device=device), None
    waited = clock()
    source = task.training(course)
    batches = make_batches(source, state.epoch, range(state.iteration, course.iterations))
    for image, segmentation, case_ids in batches:
        state.wait_seconds += clock() - waited
        loss = step_loss(task, step_network, image, segmentation)
        scaler.scale(loss).backward()
        scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.network.parameters(), settings.gradient_clip)
        if previous is not None:  # one step late, so that a GPU need not wait for the host
            _check_loss(*previous)
        previous = (loss.detach(), case_ids, state.epoch)
        scaler.step(state.optimizer)
        scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        losses += loss.detach()
        state.iteration += 1
        if on_step:
            on_step("training", state.epoch * course.iterations + state.iteration, course.steps)
        if stop():
            _check_loss(*previous)
            state.loss_sum += float(losses)
            state.epoch_seconds = clock() - begun
            return None
        waited = clock()
    if previous is not None:
        _check_loss(*previous)
    loss_sum = state.loss_sum + float(losses)
    validation_loss, label_dice = validate_epoch(task, state)
    known = [dice for dice in label_dice.values() if dice is not None]
    dice = sum(known) / len(known) if known else None
    seconds = clock() - begun
    report = EpochReport(
        epoch=state.epoch + 1,
        epochs=course.epochs,
        lr=lr,
        loss=loss_sum / course.iterations,
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


@torch.no_grad()
def validate_epoch(task: Task, state: TrainState) -> tuple[float, dict[str, float | None]]:
    """Score patches of the validation cases: mean loss, and the pseudo Dice of each label."""
    labels = task.plan.labels.consecutive
    state.network.eval()
    losses, counts = [], []
    for image, segmentation, _ in make_batches(
        task.validation, VALIDATION_EPOCH, range(state.course.validation_iterations)
    ):
        with task.execution.autocast():
            logits = state.network(image, 1)[0]
        loss = LOSSES[task.settings.loss]
        losses.append(loss(logits, segmentation, labels, task.configuration.batch_dice))
        counts.append(hard_counts(logits, segmentation, labels))
    tp, fp, fn = torch.stack(counts).sum(dim=0).tolist()
    scores: dict[str, float | None] = {}
    for i, name in enumerate(labels.foreground):
        union = 2 * tp[i] + fp[i] + fn[i]
        scores[name] = 2 * tp[i] / union if union else None
    return float(torch.stack(losses).mean()), scores


def step_loss(task: Task, network: Any, image: Tensor, segmentation: Tensor) -> Tensor:
    """Give the deeply supervised loss of one batch."""
    weights = task.output_weights
    with task.execution.autocast():
        outputs = network(image, len(weights))
    return deep_supervision_loss(
        LOSSES[task.settings.loss],
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
            task.configuration.architecture, len(task.plan.channels), task.plan.labels.heads
        )
    network = task.execution.place(network, task.configuration.architecture.dimensions)
    course = plan_course(settings)
    optimizer = torch.optim.SGD(
        network.parameters(),
        course.lr,
        momentum=course.momentum,
        nesterov=course.momentum > 0,
        weight_decay=settings.weight_decay,
    )
    return TrainState(
        network=network,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(
            task.execution.torch_device.type, enabled=task.execution.precision == "fp16"
        ),
        course=course,
    )


def follow(state: TrainState, course: Course) -> None:
    """Train on along another course."""
    state.course = course
    for group in state.optimizer.param_groups:
        group["momentum"], group["nesterov"] = course.momentum, course.momentum > 0


def save_state(task: Task, state: TrainState, *, finished: bool = False) -> RunRecord:
    """Write checkpoint_latest: weights, momentum and everything else needed to go on."""
    name = "checkpoint_latest"
    tensors = {f"network.{key}": value for key, value in state.network.state_dict().items()}
    for key, parameter in state.network.named_parameters():
        momentum = state.optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{key}"] = momentum
    file, digest = save_weights(task.folder, name, pack(tensors))
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
        weights_file=file,
        weights_sha256=digest,
        finished=finished,
    )
    record.save(run, task.folder / f"{name}.json")
    forget_weights(task.folder, name, keep=file)
    return run


def restore_state(task: Task, run: RunRecord) -> TrainState:
    """Make the state that `save_state` wrote."""
    state = new_state(task)
    tensors = load_weights(task.folder, run.weights_file, run.weights_sha256)
    weights = {
        k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")
    }
    state.network.load_state_dict(weights)
    for key, parameter in state.network.named_parameters():
        if (momentum := tensors.get(f"momentum.{key}")) is not None:
            kept = torch.empty_like(parameter)  # in the parameter's layout
            state.optimizer.state[parameter]["momentum_buffer"] = kept.copy_(momentum)
    follow(state, run.course)
    state.epoch, state.iteration, state.loss_sum = run.epoch, run.iteration, run.loss_sum
    state.seconds, state.epoch_seconds = run.seconds, run.epoch_seconds
    state.history = list(run.history)
    return state


def save(task: Task, state: TrainState, kind: Any) -> None:
    """Write the network as it is, to predict with."""
    average = state.history[-1].dice_average if state.history else None
    save_model(
        task.folder,
        kind,
        state.network,
        plan=task.plan,
        configuration_name=task.configuration.name,
        fold=task.fold,
        epoch=state.epoch,
        mirror_axes=task.augmentation(state.course).mirror_axes,
        validation_dice=average,
    )


def compiled_network(task: Task, state: TrainState) -> Any:
    """Compile the network for the task's batches where the execution says so."""
    if not task.execution.compiled:
        return state.network
    image, _, _ = make_batch(task.training(state.course), 0, 0)
    state.network.train()
    return compile_network(state.network, image, task.execution, len(task.output_weights))


def probe(task: Task, course: Course, step_network: Any) -> float:
    """Measure the seconds of a training step, data included, without changing the weights."""
    seconds = []
    for number in range(PROBE_STEPS + 1):
        start = time.monotonic()
        image, segmentation, _ = make_batch(task.training(course), 0, number)
        loss = step_loss(task, step_network, image, segmentation)
        loss.backward()
        float(loss.detach())  # waits for the device
        seconds.append(time.monotonic() - start)
        for parameter in step_network.parameters():
            parameter.grad = None
    return sorted(seconds[1:])[len(seconds) // 2 - 1]


def _check_loss(loss: Tensor, case_ids: list[str], epoch: int) -> None:
    if not bool(torch.isfinite(loss)):
        raise DataError(
            f"the loss became {float(loss)} in epoch {epoch + 1}, on a batch of "
            f"{', '.join(sorted(set(case_ids)))}; check these cases, lower --lr, or use "
            "--precision fp32"
        )


def _average(history: list[EpochReport], dice: float | None) -> float | None:
    old = history[-1].dice_average if history else None
    if dice is None or old is None:
        return dice if old is None else old
    return DICE_MEMORY * old + (1 - DICE_MEMORY) * dice
