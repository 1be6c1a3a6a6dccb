"""How long and how fast a network is trained: what a user may choose, what a budget makes of it.

`TrainSettings` is the choice, `Course` what follows from it; `fit_budget` turns a wall clock into a
course, `refit_budget` mends it when the machine turns out slower or faster.
"""

import logging
import math
from dataclasses import asdict, dataclass, replace

from nnseg.errors import PlanError, UsageError
from nnseg.model.augment import STRENGTHS
from nnseg.model.loss import LOSSES
from nnseg.model.schedule import SCHEDULES

logger = logging.getLogger(__name__)

BUDGET_EPOCHS = 40  # an epoch is about this part of a budget
SHORTEST_EPOCH = 10  # steps; validating more often would cost more than it tells
LONG_PACE, SHORT_PACE = (0.01, 0.99), (0.1, 0.9)  # learning rate and momentum
SHORT_TRAINING = 5000  # steps of a budget
COMPILE_SECONDS, COMPILE_STEPS = 600.0, 500  # shorter trainings would not win it back


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """What a user may choose of a training; the defaults are nnU-Net's.

    With `budget_seconds`, `epochs` and the two numbers of iterations are upper limits; what fits
    follows from how long a step takes.

    Raises:
        UsageError: A value that cannot be meant.
    """

    epochs: int = 1000
    iterations: int = 250  # training steps an epoch
    validation_iterations: int = 50  # validation batches an epoch
    batch_size: int | None = None  # None: the plan's
    lr: float | None = None  # None: 0.01; see `plan_course` for short budgets
    momentum: float | None = None  # None: 0.99; see `plan_course`
    weight_decay: float = 3e-5
    gradient_clip: float = 12.0  # largest norm of the gradient
    schedule: str = "poly"  # a name of SCHEDULES
    loss: str = "dice_ce"  # a name of LOSSES
    augmentation: str | None = (
        None  # "full" or "mild"; None: full; see `plan_course` for short budgets
    )
    seed: int = 0
    budget_seconds: float | None = None  # wall clock, the final validation included

    def __post_init__(self) -> None:
        for name in ("epochs", "iterations", "validation_iterations", "lr", "gradient_clip"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise UsageError(f"momentum is {self.momentum}; it must be at least 0 and below 1")
        if self.budget_seconds is not None and self.budget_seconds < 10:
            raise UsageError(
                f"a budget of {self.budget_seconds} s is too short; give at least 10 s"
            )
        for name in ("weight_decay", "seed"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.augmentation not in (None, *STRENGTHS):
            raise UsageError(
                f"augmentation is {self.augmentation!r}; it must be {' or '.join(STRENGTHS)}"
            )
        try:
            LOSSES[self.loss], SCHEDULES[self.schedule]
        except PlanError as error:  # nothing is wrong with a plan: somebody asked for this name
            raise UsageError(str(error)) from None

    @property
    def steps(self) -> int:
        """Training steps in all; a budget may make them fewer."""
        return self.epochs * self.iterations


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """The length of a training and its pace."""

    epochs: int
    iterations: int  # training steps an epoch
    validation_iterations: int  # validation batches an epoch
    lr: float  # at the start of the schedule
    momentum: float
    augmentation: str  # one of STRENGTHS

    @property
    def steps(self) -> int:
        """Training steps in all."""
        return self.epochs * self.iterations


def plan_course(settings: TrainSettings, step_seconds: float | None = None) -> Course:
    """Give the course of a training, before a budget is fitted.

    The pace is nnU-Net's unless the user chose otherwise or a budget of wall clock leaves few steps
    (`step_seconds` says how long one takes). Momentum 0.99 sums a hundred steps: long before it has
    turned round from predicting background only, a short training is over. With 0.9 and ten times
    the rate each step weighs the same in the end. Nor can a short training overfit: it learns
    sooner from patches that are changed less.
    """
    budget = settings.budget_seconds
    short = None not in (budget, step_seconds) and budget < SHORT_TRAINING * step_seconds  # type: ignore[operator]
    chosen = settings.lr is not None or settings.momentum is not None
    lr, momentum = SHORT_PACE if short and not chosen else LONG_PACE
    return Course(
        epochs=settings.epochs,
        iterations=settings.iterations,
        validation_iterations=settings.validation_iterations,
        lr=lr if settings.lr is None else settings.lr,
        momentum=momentum if settings.momentum is None else settings.momentum,
        augmentation=settings.augmentation or ("mild" if short else "full"),
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
    epochs = max(1, min(settings.epochs, steps // iterations))
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
    course: Course, settings: TrainSettings, done: int, epoch_seconds: float, left: float
) -> Course:
    """Plan as many epochs as fit what is left, so that the schedule ends when the budget does.

    Only the first probe knows nothing of the machine's other work; the epochs since do.

    Args:
        course: As it was.
        settings: What the user chose.
        done: Epochs done.
        epoch_seconds: What one takes, of late.
        left: Seconds of the budget that are left to train.
    """
    fitting = min(settings.epochs, done + max(0, math.floor(left / epoch_seconds)))
    if fitting != course.epochs:
        logger.info("epochs take %.1f s: %d of them fit", epoch_seconds, fitting)
    return replace(course, epochs=fitting)


def pays_to_compile(settings: TrainSettings, wish: bool | None) -> bool:
    """Say whether to compile the network: as wished, else for trainings of some length."""
    if wish is not None:
        return wish
    budget = settings.budget_seconds
    return settings.steps >= COMPILE_STEPS and (budget is None or budget >= COMPILE_SECONDS)


def changed_settings(old: TrainSettings, new: TrainSettings) -> list[str]:
    """Name the settings that differ, as `name is now A, was B`."""
    was, now = asdict(old), asdict(new)
    return [f"{name} is now {now[name]}, was {was[name]}" for name in was if was[name] != now[name]]
