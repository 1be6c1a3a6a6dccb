"""What a user may choose of a training: `TrainSettings`, and `PRESETS` of them.

`learning.course` has what follows from the choice, the data and the clock.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nnseg.errors import PlanError, UsageError
from nnseg.learning.optimize import OPTIMIZERS
from nnseg.losses.build import make_loss
from nnseg.losses.sums import Loss
from nnseg.model.bending import FARTHEST
from nnseg.model.draws import STRENGTHS
from nnseg.model.schedule import SCHEDULES
from nnseg.registry import Registry

COMPILE_SECONDS, COMPILE_STEPS = 600.0, 500  # shorter trainings would not win it back

MOST_STEPS = 250_000  # nnU-Net's 1000 epochs of 250
QUICK_SECONDS = 600.0
SHORTEST_BUDGET = 10.0  # seconds
GREATEST_SEED = 2**63 - 1  # that every generator takes
GREATEST_RATE = 1e30  # float32 ends at 3e38, and a step may be a thousand times as long as this
LEAST, GREATEST = 1e-6, 1e6  # of weights and exponents: sums of more would lose what is small

# Numbers that may be chosen: their names, whether one can be meant, and what can be in words.
_NUMBERS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        ("epochs", "iterations", "validation_iterations", "batch_size", "accumulate"),
        lambda number: 1 <= number < math.inf,
        "at least 1",
    ),
    (
        ("lr",),
        lambda number: 0 < number <= GREATEST_RATE,
        f"positive and at most {GREATEST_RATE:g}",
    ),
    (("gradient_clip",), lambda number: 0 < number < math.inf, "positive and finite"),
    (("momentum", "ema"), lambda number: 0 <= number < 1, "at least 0 and below 1"),
    (("patience",), lambda number: 0 < number <= 1, "above 0 and at most 1"),
    (("dice_weight",), lambda number: 0 <= number <= 1, "from 0 to 1"),
    (
        ("weight_decay", "tversky_alpha", "tversky_beta"),
        lambda number: 0 <= number <= GREATEST,
        f"from 0 to {GREATEST:g}",
    ),
    (
        ("focal_gamma", "mixup"),
        lambda number: LEAST <= number <= GREATEST,
        f"from {LEAST:g} to {GREATEST:g}",
    ),
    (
        ("elastic",),
        lambda number: 0 < number <= FARTHEST,
        f"above 0 and at most {FARTHEST} voxels, or patches would fold",
    ),
    (
        ("seed",),
        lambda number: 0 <= number <= GREATEST_SEED,
        f"at most {GREATEST_SEED}, and not negative",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """What a user may choose of a training; the defaults are nnU-Net's.

    With `budget_seconds`, `epochs` and the two numbers of iterations are upper limits; what fits
    follows from how long a step takes.

    Raises:
        UsageError: A value that cannot be meant.
    """

    epochs: int | None = 1000  # None: as many as `plan_steps` says
    iterations: int = 250  # training steps an epoch
    validation_iterations: int = 50  # validation batches an epoch
    batch_size: int | None = None  # None: the plan's
    accumulate: int = 1  # batches a step; their gradients are averaged
    optimizer: str = "sgd"  # a name of OPTIMIZERS
    lr: float | None = None  # None: of LONG_PACES; see `plan_course` for short budgets
    momentum: float | None = None  # None: as `lr`; of Adam, its first beta
    weight_decay: float = 3e-5
    gradient_clip: float = 12.0  # largest norm of the gradient
    ema: float | None = None  # what the average of the weights keeps of itself a step; None: none
    schedule: str = "poly"  # a name of SCHEDULES
    patience: float | None = None  # share of the epochs without a gain that ends it; None: none
    loss: str = "dice_ce"  # a name of LOSSES
    dice_weight: float | None = None  # w of w Dice + (1 - w) cross-entropy; None: their sum
    tversky_alpha: float | None = None  # weight of false voxels; None: the loss's own
    tversky_beta: float | None = None  # weight of missed voxels; None: the loss's own
    focal_gamma: float | None = None  # exponent of a focal loss, or its inverse; None: its own
    # Of the loss, one a foreground label or region; "balanced": by their volumes
    class_weights: tuple[float, ...] | Literal["balanced"] | None = None
    augmentation: str | None = (
        None  # "full" or "mild"; None: full; see `plan_course` for short budgets
    )
    elastic: float | None = None  # how far patches bend at most, in voxels of the finest axis
    mixup: float | None = None  # alpha of the shares by which images of a batch are mixed
    swap_labels: tuple[tuple[str, str], ...] = ()  # that trade places where left and right do
    pretrained: str | None = None  # SHA-256 of the weights to start from; None: of the seed
    seed: int = 0
    budget_seconds: float | None = None  # wall clock, the final validation included

    def __post_init__(self) -> None:
        for names, can_be_meant, wanted in _NUMBERS:
            for name in names:
                number = getattr(self, name)
                if number is not None and not can_be_meant(number):
                    raise UsageError(f"{name} is {number}; it must be {wanted}")
        budget = self.budget_seconds
        if budget is not None and not SHORTEST_BUDGET <= budget < math.inf:
            raise UsageError(
                f"a budget of {budget} s is too short or has no end; give at least "
                f"{SHORTEST_BUDGET:g} s"
            )
        self._check_loss()
        swapped = [name for pair in self.swap_labels for name in pair]
        if twice := sorted({name for name in swapped if swapped.count(name) > 1}):
            raise UsageError(f"swap_labels has {twice[0]!r} twice; a label has one counterpart")
        if self.augmentation not in (None, *STRENGTHS):
            raise UsageError(
                f"augmentation is {self.augmentation!r}; it must be {' or '.join(STRENGTHS)}"
            )
        try:
            SCHEDULES[self.schedule], OPTIMIZERS[self.optimizer]
        except PlanError as error:  # nothing is wrong with a plan: somebody asked for this name
            raise UsageError(str(error)) from None

    def _check_loss(self) -> None:
        weights = self.class_weights
        numbers = (1.0,) if weights is None or weights == "balanced" else weights
        if not (
            isinstance(numbers, tuple)
            and all(0 <= weight <= GREATEST for weight in numbers)
            and max(numbers, default=0.0) >= LEAST
        ):
            raise UsageError(
                f"class_weights is {weights}; it must be balanced, or numbers from 0 to "
                f"{GREATEST:g}, one of them at least {LEAST:g}"
            )
        if self.tversky_alpha == self.tversky_beta == 0:
            raise UsageError("tversky_alpha and tversky_beta are 0; one must be above 0")
        try:
            self.make_loss(None if weights is None else numbers)
        except PlanError as error:
            raise UsageError(str(error)) from None

    def make_loss(self, class_weights: Sequence[float] | None) -> Loss:
        """Give the loss of these settings, its classes weighted: as told, or as counted.

        Raises:
            PlanError: There is no such loss, or it does not take what is set.
        """
        options = {
            option: value
            for option, value in (
                ("dice_weight", self.dice_weight),
                ("alpha", self.tversky_alpha),
                ("beta", self.tversky_beta),
                ("gamma", self.focal_gamma),
            )
            if value is not None
        }
        balanced = self.class_weights == "balanced"
        return make_loss(self.loss, class_weights, balanced=balanced, **options)

    @property
    def most_epochs(self) -> int:
        """Epochs that a training may have before the data or a budget have their say."""
        return self.epochs or max(1, MOST_STEPS // self.iterations)

    @property
    def steps(self) -> int:
        """Training steps in all; the data or a budget may make them fewer."""
        return self.most_epochs * self.iterations


PRESETS = Registry[TrainSettings](
    "preset",
    best=TrainSettings(),  # nnU-Net's 1000 epochs of 250 steps, whatever the data
    default=TrainSettings(epochs=None, patience=0.25),  # planned from the data, and while it gains
    quick=TrainSettings(budget_seconds=QUICK_SECONDS),  # ten minutes: whether data can be learnt
)


def pays_to_compile(settings: TrainSettings, wish: bool | None) -> bool:
    """Say whether to compile the network: as wished, else for trainings of some length."""
    if wish is not None:
        return wish
    budget = settings.budget_seconds
    return settings.steps >= COMPILE_STEPS and (budget is None or budget >= COMPILE_SECONDS)
