"""Stage 4, preprocessed cases to a trained network.

`train` is the loop; read it first. What it is about is a `Task`, what changes is `TrainState`, and
every batch is a pure function of (seed, fold, epoch, batch).
"""

import logging
import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from nnseg.errors import DataError, StoppedError
from nnseg.learning.batches import Batch, BatchSource, keep_on_device, make_batches
from nnseg.learning.course import Course, cool_down, fit_budget, learning_rate, refit_budget
from nnseg.learning.optimize import Verdict, average_into, copy_buffers, set_pace
from nnseg.learning.resume import EpochReport, RunRecord
from nnseg.learning.state import (
    TrainState,
    follow,
    mirror_axes,
    new_state,
    restore_state,
    save,
    save_state,
)
from nnseg.learning.step import compiled_network, share_network, time_steps, train_step
from nnseg.learning.task import Task, balanced
from nnseg.losses.counts import hard_counts
from nnseg.model.device import keep_memory
from nnseg.model.ranks import any_rank, from_first, gather, share_buffers
from nnseg.runlog import peak_memory

logger = logging.getLogger(__name__)

DICE_MEMORY = 0.9  # share of the old value in the moving average of the pseudo Dice
SAVE_EVERY = 300.0  # seconds between checkpoints to go on from
VALIDATION_EPOCH = -1  # validation patches are the same ones in every epoch
REMEMBERED_EPOCHS = 5  # whose pace foretells that of the rest
REMEDY = (  # of a loss that is no number; a run that goes on keeps its rate and precision
    "check these cases, or start anew with --overwrite and a lower --lr or --precision fp32"
)
PROBE_STEPS = 3  # timed before a budget is turned into a number of steps

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
        DataError: The loss or the gradient became NaN or infinite, the gradient of fp16 again and
            again; the cases of the batch are named. No such step has changed the network, and
            checkpoints stay as they are.
    """
    started = time.monotonic() if started is None else started
    task = settle(task)
    state = restore_state(task, resume) if resume else new_state(task)
    started -= state.seconds

    def clock() -> float:
        return time.monotonic() - started

    network = share_network(task, state)
    left = None
    if task.settings.budget_seconds is not None and not state.course.extended:
        left = partial(time_left, task, state, clock, reserve)
    if left and resume is None:
        task, step_network = fit_course(task, state, network, left)
    else:
        task, step_network = stepping(task, state, network)
        if left and (seconds := from_first(epoch_pace(state))):
            refit_course(task, state, seconds, left)  # it may have been used up since
    while state.epoch < state.course.epochs:
        report = train_epoch(task, state, step_network, on_step, stop, clock)
        if report is None:
            raise StoppedError(
                f"stopped in epoch {state.epoch + 1} of {state.course.epochs}, everything is "
                "saved; the same command goes on (without --overwrite)"
            )
        state.seconds = clock()
        averages = [epoch.dice_average for epoch in state.history]
        if is_best(averages):
            save(task, state, "best")
        if on_epoch:
            on_epoch(report)
        if left:
            refit_course(task, state, from_first(epoch_pace(state)), left)
        follow(state, cool_down(state.course, task.settings, averages))
        if is_due(state) and state.epoch < state.course.epochs:
            save_state(task, state)
    save(task, state, "final")
    state.seconds = clock()
    return save_state(task, state, finished=True)


def settle(task: Task) -> Task:
    """Give a task as all of its training has it: classes counted, cases on the GPU if they fit.

    On a CPU it also sets the number of threads, so that sums come out the same when a run goes on,
    and has the process keep its memory from step to step.
    """
    device = task.execution.torch_device
    if device.type == "cpu":
        keep_memory()
        torch.set_num_threads(task.execution.threads)
    task = balanced(task)
    return replace(
        task,
        train_cases=keep_on_device(task.train_cases, device),
        val_cases=keep_on_device(task.val_cases, device),
    )


def stepping(task: Task, state: TrainState, network: nn.Module) -> tuple[Task, Any]:
    """Give the task, which no longer compiles where that failed, and what steps are done with."""
    compiled = compiled_network(task, state, network)
    if task.execution.compiled and compiled is network:
        task = replace(task, execution=replace(task.execution, compiled=False))
    return task, compiled


def time_left(
    task: Task,
    state: TrainState,
    clock: Callable[[], float],
    reserve: Reserve | None,
    step_seconds: float,
) -> float:
    """Give the seconds of a budget that are left to train, at so many a step; alike on all ranks.

    Args:
        task: Data, plan and settings.
        state: Of the training.
        clock: Seconds that it has taken so far.
        reserve: As for `train`.
        step_seconds: What a step takes.
    """
    budget = task.settings.budget_seconds
    assert budget is not None, "only a course that has one is fitted"
    kept = 0.0
    if reserve:
        kept = reserve(state.network, mirror_axes(task, state.course), step_seconds)
    return from_first(budget - clock() - kept)


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

    count = settings.accumulate
    numbers = range(state.iteration * count, course.iterations * count)
    with _batches(task, task.training(course), state.epoch, numbers) as batches:
        while state.iteration < course.iterations:
            done = train_step(task, state, step_network, batches, clock)
            look(state, pending)  # one step late, so that a GPU need not wait for the host
            pending = done
            state.iteration += 1
            steps = state.epoch * course.iterations + state.iteration
            if state.average is not None and settings.ema is not None:
                ours, theirs = state.average.parameters(), state.network.parameters()
                average_into(ours, theirs, settings.ema, steps)
                copy_buffers(state.average, state.network)
            if on_step:
                on_step("training", steps, course.steps)
            stopped = any_rank(stop())
            if stopped or is_due(state):
                look(state, pending)
                pending = None
                keep()
            if stopped:
                return None
    look(state, pending)
    validated = validate_epoch(task, state, stop)
    if validated is None:
        keep()
        return None
    return close_epoch(state, lr, *validated, seconds=clock() - begun)


def look(state: TrainState, pending: tuple[Verdict, list[str]] | None) -> None:
    """Take account of a step that was done.

    Raises:
        DataError: Its loss or gradient was no finite number, of fp16 in MOST_LEFT_OUT steps in a
            row; the cases of its batch are named.
    """
    if pending is None:
        return
    verdict, case_ids = pending
    state.left_out = 0 if verdict.was_good() else state.left_out + 1
    if fault := verdict.fault(state.left_out):
        raise DataError(
            f"{fault} in epoch {state.epoch + 1}, on a batch of "
            f"{', '.join(sorted(set(case_ids)))}; {REMEDY}"
        )
    state.loss_sum += verdict.wait()[0]


def close_epoch(
    state: TrainState,
    lr: float,
    validation_loss: float,
    label_dice: dict[str, float | None],
    *,
    seconds: float,
) -> EpochReport:
    """Add an epoch to the history, with the scores of `validate_epoch`, and begin the next one."""
    known = [dice for dice in label_dice.values() if dice is not None]
    dice = sum(known) / len(known) if known else None
    report = EpochReport(
        epoch=state.epoch + 1,
        epochs=state.course.epochs,
        lr=lr,
        loss=state.loss_sum / state.course.iterations,
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
    share_buffers(state.model)
    losses: list[Tensor] = []
    counts, cases = [], []
    numbers = range(state.course.validation_iterations)
    with _batches(task, task.validation(state.course), VALIDATION_EPOCH, numbers) as batches:
        for image, segmentation, case_ids, _ in batches:
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


def fit_course(
    task: Task, state: TrainState, network: nn.Module, left: Callable[[float], float]
) -> tuple[Task, Any]:
    """Follow a course of as many steps as there is time for, by the pace of a few.

    Compiling takes a minute and is for one size of batch: it waits until that is chosen.

    Args:
        task: Data, plan and settings.
        state: Of a training that begins.
        network: What is trained, not compiled yet.
        left: From the seconds of a step, those that a budget has left for all of them.

    Returns:
        As `stepping`.
    """
    step_seconds = choose_batch(task, state, network)
    task, step_network = stepping(task, state, network)
    smaller = state.course.batch_size
    if step_network is not network or smaller is not None:
        step_seconds = from_first(probe(task, state.course, step_network))
        follow(state, task.course(step_seconds, smaller))
    rest = left(step_seconds)
    follow(state, fit_budget(state.course, task.settings, step_seconds, rest))
    return task, step_network


def choose_batch(
    task: Task, state: TrainState, network: nn.Module, stop: Callable[[], bool] = lambda: False
) -> float:
    """Follow a course of the batch size that suits a budget, by steps of the plan's.

    Returns:
        The seconds of a step; of a smaller batch they are guessed.

    Raises:
        StoppedError: `stop` said True between two steps.
    """
    seconds = from_first(probe(task, state.course, network, stop))
    smaller = task.budget_batch(seconds)
    if smaller is not None:
        logger.info(
            "the budget buys more steps with %d patches each, in place of the plan's %d",
            smaller,
            task.batch_size,
        )
        seconds *= smaller / task.batch_size
    follow(state, task.course(seconds, smaller))
    return seconds


def refit_course(
    task: Task, state: TrainState, seconds: float, left: Callable[[float], float]
) -> None:
    """Fit what is not done of the course to what is left, at so many seconds an epoch."""
    done = state.epoch + state.iteration / state.course.iterations
    rest = left(seconds / state.course.iterations)
    follow(state, refit_budget(state.course, task.settings, done, seconds, rest))


def epoch_pace(state: TrainState) -> float:
    """Give the seconds that an epoch takes, by the last ones or what is done of the first; or 0."""
    recent = [epoch.seconds for epoch in state.history[-REMEMBERED_EPOCHS:]]
    if recent:
        return sum(recent) / len(recent)
    if state.iteration:
        return state.epoch_seconds / state.iteration * state.course.iterations
    return 0.0


def is_best(averages: Sequence[float | None]) -> bool:
    """Say whether the last of the averages of the pseudo Dice is above all before it.

    >>> is_best([None, 0.5]), is_best([0.5, 0.4, 0.5]), is_best([0.5, None])
    (True, False, False)
    """
    best = max((dice for dice in averages[:-1] if dice is not None), default=-1.0)
    return averages[-1] is not None and averages[-1] > best


def is_due(state: TrainState) -> bool:
    """Say whether it is time for another checkpoint."""
    return time.monotonic() - state.saved_at > SAVE_EVERY


def rehearse_steps(
    task: Task, steps: int, stop: Callable[[], bool] = lambda: False
) -> tuple[Course, float, float, int]:
    """Do some steps that change nothing.

    Returns:
        The course, the seconds of the middle one and of the quickest of its steps, and the peak of
        memory in bytes: that of the GPU, or of a CPU that of the process.

    Raises:
        StoppedError: `stop` said True between two steps.
    """
    task = settle(task)
    state = new_state(task)
    budget = task.settings.budget_seconds
    if budget is not None:
        choose_batch(task, state, state.network, stop)
    network = compiled_network(task, state, state.network)
    times = time_steps(task, state.course, network, steps, stop)
    seconds, course = middle(times), state.course
    if budget is not None:
        course = task.course(seconds, course.batch_size)
        course = fit_budget(course, task.settings, seconds, budget)
    device = task.execution.torch_device
    if device.type == "cuda":
        return course, seconds, times[0], torch.cuda.max_memory_allocated(device)
    return course, seconds, times[0], peak_memory()


def probe(
    task: Task, course: Course, step_network: Any, stop: Callable[[], bool] = lambda: False
) -> float:
    """Measure the seconds of a training step, data included, without changing the weights.

    Raises:
        StoppedError: `stop` said True between two steps.
    """
    return middle(time_steps(task, course, step_network, PROBE_STEPS, stop))


def middle(times: Sequence[float]) -> float:
    """Give the middle one of sorted times; of an even number, the quicker one."""
    return times[(len(times) - 1) // 2]


def _batches(
    task: Task, source: BatchSource, epoch: int, numbers: range
) -> "closing[Generator[Batch, None, None]]":
    """Have batches made, and no more of them once the context is left."""
    made = make_batches(source, epoch, numbers, workers=task.loader_workers)
    return closing(cast("Generator[Batch, None, None]", made))


def _average(history: list[EpochReport], dice: float | None) -> float | None:
    old = history[-1].dice_average if history else None
    if dice is None or old is None:
        return dice if old is None else old
    return DICE_MEMORY * old + (1 - DICE_MEMORY) * dice
