"""The length and the pace of a training: what follows from its settings, its data and its clock.

`plan_steps` says how many steps the data are worth, `fit_budget` how many a wall clock leaves, and
`refit_budget` mends that when the machine turns out slower or faster. A course may turn once: into
a cool-down where nothing is learnt any more (`cool_down`), or towards a later end (`extend`).
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nnseg.axes import Shape
from nnseg.errors import UsageError
from nnseg.learning.recipe import MOST_STEPS, TrainSettings
from nnseg.model.schedule import COOL_DOWNS, SCHEDULES

logger = logging.getLogger(__name__)

BUDGET_EPOCHS = 40  # an epoch is about this part of a budget
SHORTEST_EPOCH = 10  # steps; validating more often would cost more than it tells
SHORT_TRAINING = 5000  # steps of a budget, below which the pace is another
MILD_TRAINING = 1500  # steps of a budget, below which the augmentation is mild
MILD_PASSES = 40  # over the data, below which that of any short training is
BUDGET_STEPS = 3000  # that a budget should hold, or its batches are made smaller
BALANCE = 200  # steps for each patch of a batch, where a budget cannot hold so many
SMALLEST_BATCH = 2  # nnU-Net's

Pace = tuple[float, float]  # learning rate and momentum
LONG_PACES: dict[str, Pace] = {"sgd": (0.01, 0.99), "adam": (0.001, 0.9), "adamw": (0.001, 0.9)}
SHORT_PACES: dict[str, Pace] = {"sgd": (0.1, 0.9), "adam": (0.002, 0.9), "adamw": (0.002, 0.9)}

PASSES = 600  # how often a training sees as much as all its data; see `plan_steps`
FEWEST_STEPS = 12_500  # 50 epochs of nnU-Net's
LEAST_GAIN = 0.001  # of the moving average of the pseudo Dice; less is no improvement
COOL_DOWN = 0.2  # of the epochs so far; see `cool_down`


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Where a course changed its end: because of a plateau, or as somebody wished."""

    epoch: int  # epochs done
    lr: float  # of the epoch that follows
    reason: Literal["plateau", "extended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """The length of a training and its pace."""

    epochs: int
    iterations: int  # training steps an epoch
    validation_iterations: int  # validation batches an epoch
    lr: float  # at the start of the schedule
    momentum: float
    augmentation: str  # one of STRENGTHS
    batch_size: int | None = None  # None: the settings', or the plan's
    turn: Turn | None = None

    @property
    def steps(self) -> int:
        """Training steps in all."""
        return self.epochs * self.iterations

    @property
    def extended(self) -> bool:
        """Whether the user has chosen another end since; neither clock nor plateau has a say."""
        return self.turn is not None and self.turn.reason == "extended"


def learning_rate(course: Course, schedule: str, epoch: int) -> float:
    """Give the learning rate of the epoch after `epoch` epochs.

    It is the schedule's for so much of the training, by the end that this has now, whether that was
    planned from the start, fitted to a budget or moved by the user. From a plateau on it falls
    anew, from where it is to the end of the cool-down: along the same schedule, or along a plain
    fall where that would rise again.
    """
    turn = course.turn
    if turn is None or course.extended:
        return course.lr * SCHEDULES[schedule](epoch / course.epochs)
    fall = COOL_DOWNS.get(schedule, SCHEDULES[schedule])
    return turn.lr * fall((epoch - turn.epoch) / (course.epochs - turn.epoch))


def plan_steps(shapes: Iterable[Shape], patch_size: Shape, batch_size: int) -> int:
    """Say how many steps the data are worth: of the preset `default`, in place of 250 000.

    A pass is as many patches as hold the voxels of all training cases once, and a case has one at
    least. A training makes 600 of them, within 12 500 and 250 000 steps (50 and 1000 epochs of
    nnU-Net's).

    How soon the pseudo Dice of nnU-Net's default network stops rising differs more than tenfold
    among datasets when counted in epochs, and little in passes. Hippocampus, 166 cases of about one
    patch: flat after 20 epochs, which are 270 passes. Heart, 16 cases of about 3.5 patches: within
    0.004 of its end after 100 epochs, 900 passes. Spleen, 33 cases of about 25 patches: it rises
    from epoch 250, 150 passes, to epoch 1000, 600 passes. Liver, lung and pancreas, for which 1000
    epochs are 80 to 370 passes, still rise then, and keep all of them.

    Source: pseudo Dice by epoch of automl/AutoNNUnet's published runs of nnU-Net v2 on the Medical
    Segmentation Decathlon; docs/decisions/0007 has the figures.

    Args:
        shapes: Of the training cases as the network sees them, voxels (z, y, x).
        patch_size: Voxels (z, y, x).
        batch_size: Patches a step.

    >>> plan_steps([(36, 50, 35)] * 166, (40, 56, 40), 9)  # a hippocampus fold
    12500
    >>> plan_steps([(187, 512, 512)] * 33, (64, 192, 160), 2)  # one of spleen
    246840
    """
    patches = count_patches(shapes, patch_size)
    return min(MOST_STEPS, max(FEWEST_STEPS, math.ceil(PASSES * patches / batch_size)))


def count_patches(shapes: Iterable[Shape], patch_size: Shape) -> float:
    """Give the patches that hold as much as all cases together, of each case at least one."""
    voxels = math.prod(patch_size)
    return sum(max(1.0, math.prod(shape) / voxels) for shape in shapes)


def fit_batch(batch_size: int, steps: float, smallest: int = SMALLEST_BATCH) -> int:
    """Give the batch size for a budget that holds so many steps of the plan's.

    The plan's batches are for a thousand epochs. A budget that holds few of them learns more by
    more steps of fewer patches: 3000; or, where its patches are too few for that, as many as keep
    steps and batch in balance, 200 for each patch of one, down to `smallest` patches a step.

    >>> fit_batch(292, 1340), fit_batch(292, 5000), fit_batch(292, 150)
    (130, 292, 15)
    >>> fit_batch(9, 2000), fit_batch(9, 300), fit_batch(9, 5), fit_batch(1, 5)
    (9, 4, 2, 1)
    """
    if steps >= BUDGET_STEPS:
        return batch_size
    patches = steps * batch_size
    wanted = min(BUDGET_STEPS, math.sqrt(BALANCE * patches))
    return min(batch_size, max(smallest, round(patches / wanted)))


def budget_batch(
    settings: TrainSettings, step_seconds: float, batch_size: int, ranks: int = 1
) -> int | None:
    """Give the batch size for a budget, by `fit_batch`; None keeps what the plan or the user chose.

    Args:
        settings: What the user chose.
        step_seconds: What a step with the plan's batch takes.
        batch_size: The plan's.
        ranks: Processes that share a batch; each needs a patch.
    """
    budget = settings.budget_seconds
    if budget is None or settings.batch_size is not None or settings.accumulate > 1:
        return None
    fitted = fit_batch(batch_size, budget / step_seconds, max(SMALLEST_BATCH, ranks))
    return fitted if fitted < batch_size else None


def plan_course(
    settings: TrainSettings,
    step_seconds: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    *,
    step_passes: float | None = None,
) -> Course:
    """Give the course of a training, before a budget is fitted.

    The pace is nnU-Net's unless the user chose otherwise or a budget of wall clock leaves few steps
    (`step_seconds` says how long one takes). Momentum 0.99 sums a hundred steps: long before it has
    turned round from predicting background only, a short training is over. With 0.9 and ten times
    the rate each step weighs the same in the end. Nor can a very short one overfit, or one that
    sees its data a few times only: it learns sooner from patches that are changed less. Others need
    all of the augmentation.

    Args:
        settings: What the user chose.
        step_seconds: What a step takes, where there is a budget.
        steps: What the data are worth, for settings that leave the epochs open.
        batch_size: What `budget_batch` gave; such steps take so long.
        step_passes: How many times a step passes over the training data, mostly a small share of
            once; None where that is not known, as if it were often.
    """
    budget = settings.budget_seconds
    fitting = math.inf if budget is None or step_seconds is None else budget / step_seconds
    passes = math.inf if step_passes is None else fitting * step_passes
    short = fitting < SHORT_TRAINING
    mild = fitting < MILD_TRAINING or (short and passes < MILD_PASSES)
    lr, momentum = (SHORT_PACES if short else LONG_PACES)[settings.optimizer]
    epochs = settings.most_epochs
    if settings.epochs is None and steps is not None and budget is None:
        epochs = min(epochs, math.ceil(steps / settings.iterations))
    return Course(
        epochs=epochs,
        iterations=settings.iterations,
        validation_iterations=settings.validation_iterations,
        lr=lr if settings.lr is None else settings.lr,
        momentum=momentum if settings.momentum is None else settings.momentum,
        augmentation=settings.augmentation or ("mild" if mild else "full"),
        batch_size=batch_size,
    )


def fit_budget(course: Course, settings: TrainSettings, step_seconds: float, left: float) -> Course:
    """Cut what is left of a budget, in seconds, into epochs of steps and validation batches.

    Raises:
        UsageError: It is too short for a single step.
    """
    assert settings.budget_seconds is not None, "the caller has one"
    if left < step_seconds:
        wanted = settings.budget_seconds - left + SHORTEST_EPOCH * step_seconds
        raise UsageError(
            f"a step takes {step_seconds:.1f} s, and of the budget {max(left, 0):.0f} s are left "
            f"to train; give at least {wanted:.0f}s"
        )
    steps = max(1, int(left / (step_seconds * 1.05)))  # validation costs a twentieth
    fitting = min(steps, max(SHORTEST_EPOCH, steps // BUDGET_EPOCHS))
    iterations = min(settings.iterations, fitting)
    epochs = max(1, min(settings.most_epochs, steps // iterations))
    logger.info(
        "a step takes %.2f s: %d epochs of %d steps fit the budget of %.0f s",
        step_seconds,
        epochs,
        iterations,
        settings.budget_seconds,
    )
    return replace(
        course,
        epochs=epochs,
        iterations=iterations,
        validation_iterations=min(settings.validation_iterations, max(2, iterations // 7)),
    )


def refit_budget(
    course: Course, settings: TrainSettings, done: float, epoch_seconds: float, left: float
) -> Course:
    """Plan as many epochs as fit what is left, so that the schedule ends when the budget does.

    Only the first probe knows nothing of the machine's other work; the epochs since do. The first
    epoch is finished even where the budget is used up: a model without one would have learnt
    nothing that was ever validated.

    Args:
        course: As it was.
        settings: What the user chose.
        done: Epochs done, and the share of the one that is under way.
        epoch_seconds: What one takes, of late.
        left: Seconds of the budget that are left to train.
    """
    most = course.epochs if course.turn else settings.most_epochs  # a cool-down is never stretched
    fitting = min(most, max(1, math.floor(done + max(0.0, left / epoch_seconds))))
    if fitting != course.epochs:
        logger.info("epochs take %.1f s: %d of them fit", epoch_seconds, fitting)
    return replace(course, epochs=fitting)


def cool_down(course: Course, settings: TrainSettings, averages: Sequence[float | None]) -> Course:
    """End a training that gains nothing any more: its rate falls over a last fifth.

    Nothing is gained where, for the settings' `patience` as a share of the epochs planned, the
    moving average of the pseudo Dice has not risen by 0.001 above what it was before. The rate then
    falls from where it is, along the schedule, within a fifth of the epochs so far: what a high
    rate keeps from settling settles while it falls. A course turns once at most, and its end never
    moves away.

    Source: of language models it is known that a short fall at any time does what a schedule
    planned for that length does (Haegele et al. 2024, arXiv 2405.18392); the fifth is ours.

    Args:
        course: As it was.
        settings: What the user chose.
        averages: The moving average after each epoch so far, None where it had no value.
    """
    done = len(averages)
    if settings.patience is None or course.turn is not None:
        return course
    best, since = 0.0, 0
    for average in averages:
        since += 1
        if average is not None and average >= best + LEAST_GAIN:
            best, since = average, 0
    end = done + math.ceil(COOL_DOWN * done)
    waited = since >= math.ceil(settings.patience * course.epochs)
    if not best or not waited or end >= course.epochs:  # at 0 it has not even begun to learn
        return course
    lr = learning_rate(course, settings.schedule, done)
    logger.info("no gain for %d epochs: the training ends after epoch %d", since, end)
    return replace(course, epochs=end, turn=Turn(epoch=done, lr=lr, reason="plateau"))


def extend(course: Course, settings: TrainSettings, done: int, epochs: int) -> Course:
    """Give a training that is under way, or has ended, a later end.

    The rate is from here on exactly what it would be had that end been planned from the start,
    whatever the schedule. It so rises at once, after a training that has ended from the end of its
    schedule, without a warm-up; SGD starts at its highest rate, too. The end that a plateau or a
    budget had moved counts no more. Extended to the end that it has, a course stays as it is, so
    that the same command can go on.

    Args:
        course: As it was.
        settings: What the user chose.
        done: Epochs done.
        epochs: At the new end, counted from the start of the training.

    Raises:
        UsageError: The new end is not after the old one.
    """
    if epochs == course.epochs and (course.extended or done < epochs):
        return course
    if epochs <= max(course.epochs, done):
        raise UsageError(
            f"the training ends after epoch {course.epochs}; --extend-to {epochs} must be later"
        )
    planned = replace(course, epochs=epochs, turn=None)
    lr = learning_rate(planned, settings.schedule, done)
    return replace(planned, turn=Turn(epoch=done, lr=lr, reason="extended"))
