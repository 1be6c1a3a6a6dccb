"""Which trainings a whole job consists of, and how long each may take: `nnseg run`'s to-do list."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nnseg.errors import UsageError

QUICK_SECONDS = 600.0  # a training of the preset `quick` where no budget says otherwise
WORTH_STEPS = 400  # that a training must get, or the job has fewer trainings
FEW_FOLDS = (3, 2)  # that are tried where the budget does not do for all
CLOSING_SHARE = 0.05  # of a budget, for choosing and the report
CLOSING_SECONDS = 60.0  # at least
PLAIN = ("3d_fullres", "2d")  # that do not wait for another; the one that is best alone first
PRESETS = ("quick", "default", "best")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One network to train."""

    configuration: str
    fold: str
    budget_seconds: float | None = None  # wall clock; None leaves the length to the preset
    waits: bool = False  # for all before it: it learns from what they predict

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.configuration} fold {self.fold}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a job was asked for."""

    plan: str
    preset: str
    budget_seconds: float | None = None  # wall clock for everything
    configurations: tuple[str, ...] = ()  # none are those that are worth it
    folds: tuple[str, ...] = ()
    most_members: int = 2  # of an ensemble
    seed: int = 0

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UsageError(f"no preset is named {self.preset!r}; known: {', '.join(PRESETS)}")
        if self.most_members < 1:
            raise UsageError(f"an ensemble of {self.most_members} members; give at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agenda:
    """The trainings of a job, in the order in which they are done.

    It is drawn up once and kept, so that the same command goes on with the same trainings, however
    often it is interrupted and however fast the machine is then.
    """

    dataset: str
    order: Order
    trainings: tuple[Training, ...]
    step_seconds: dict[str, float]  # by configuration, where it was measured

    @property
    def folds(self) -> tuple[str, ...]:
        """The folds that some configuration trains."""
        return tuple(dict.fromkeys(one.fold for one in self.trainings))

    @property
    def configurations(self) -> tuple[str, ...]:
        """The configurations that are trained."""
        return tuple(dict.fromkeys(one.configuration for one in self.trainings))


def draw_up(
    dataset: str,
    order: Order,
    planned: Mapping[str, str | None],
    fold_count: int,
    *,
    step_seconds: Mapping[str, float],
    left: float | None = None,
) -> Agenda:
    """Say which networks a job trains.

    Without a budget these are all configurations of the plan in all folds; `quick` has those that
    every dataset has in two folds. A budget takes the widest of these that gives each training 400
    steps: all configurations in all folds, then 3d_fullres and 2d in all, three and two folds, then
    the first of them alone in two folds and in one. With two folds there is a choice that can be
    checked on a fold that had no part in it. What the user named is taken as it is.

    Args:
        dataset: Its folder's name.
        order: What was asked for.
        planned: The configurations of the plan, each with the one that it builds on, if any.
        fold_count: Folds of the cross-validation; 0 trains on all cases, with nothing to choose by.
        step_seconds: What a training step takes, by configuration; one that lacks takes as long as
            the slowest known one.
        left: Seconds of the budget that are left for training and what comes after it.

    Returns:
        The trainings: fold by fold, so that a job cut short has whole folds to choose by. A cascade
        comes last: it learns from the out-of-fold predictions of all folds of the stage before.

    Raises:
        UsageError: A configuration or fold is not there, or nothing is left of the budget.
    """
    for name in order.configurations:
        if name not in planned:
            raise UsageError(f"{name} is not planned; the plan has {', '.join(planned)}")
    every = tuple(str(number) for number in range(fold_count)) or ("all",)
    if unknown := [fold for fold in order.folds if fold not in (*every, "all")]:
        raise UsageError(f"there is no fold {unknown[0]}; there are {', '.join(every)}")
    options = [
        [
            Training(configuration=name, fold=fold, waits=waits)
            for waits in (False, True)
            for fold in folds
            for name in names
            if (planned[name] is not None) == waits
        ]
        for names, folds in _options(order, planned, every)
    ]
    if order.budget_seconds is None:
        seconds = QUICK_SECONDS if order.preset == "quick" else None
        return _agenda(dataset, order, options[0], seconds, step_seconds)
    if left is None:
        left = order.budget_seconds
    left -= max(CLOSING_SECONDS, CLOSING_SHARE * order.budget_seconds)
    if left <= 0:
        raise UsageError(
            f"of the budget of {order.budget_seconds:.0f} s nothing is left to train; give more"
        )
    slowest = max(step_seconds.values(), default=0.0)
    for option in options:
        share = left / len(option)
        slow = max(step_seconds.get(one.configuration, slowest) for one in option)
        if share >= WORTH_STEPS * slow:
            break
    return _agenda(dataset, order, option, share, step_seconds)


def describe(agenda: Agenda) -> str:
    """Say what a job will train, a line a configuration."""
    lines = []
    for name in agenda.configurations:
        mine = [one for one in agenda.trainings if one.configuration == name]
        folds = ", ".join(one.fold for one in mine)
        seconds = mine[0].budget_seconds
        length = "as long as it gains" if seconds is None else f"{seconds / 60:.1f} min each"
        if seconds is None and agenda.order.preset == "best":
            length = "1000 epochs each"
        step = agenda.step_seconds.get(name)
        pace = "" if step is None else f", {step:.2f} s a step"
        lines.append(f"  {name}: fold {folds}, {length}{pace}")
    return "\n".join(lines)


def _options(
    order: Order, planned: Mapping[str, str | None], every: tuple[str, ...]
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """List what a job may train, the widest first: configurations and folds."""
    plain = tuple(name for name in PLAIN if name in planned) or tuple(planned)[:1]
    wide, narrow, single = tuple(planned), plain, plain[:1]
    if order.configurations:
        before = {planned[name] for name in order.configurations}
        wide = tuple(name for name in planned if name in {*order.configurations, *before})
        narrow = single = wide
    few = [every[:count] for count in FEW_FOLDS if count < len(every)]
    two = few[-1] if few else every
    if order.folds:
        return [(names, tuple(dict.fromkeys(order.folds))) for names in (wide, narrow, single)]
    if order.preset == "quick" and order.budget_seconds is None:
        return [(narrow, two)]
    return [
        (wide, every),
        *((narrow, folds) for folds in (every, *few)),
        (single, two),
        (single, every[:1]),
    ]


def _agenda(
    dataset: str,
    order: Order,
    trainings: Sequence[Training],
    seconds: float | None,
    step_seconds: Mapping[str, float],
) -> Agenda:
    budget = None if seconds is None else math.floor(seconds)
    return Agenda(
        dataset=dataset,
        order=order,
        trainings=tuple(replace(one, budget_seconds=budget) for one in trainings),
        step_seconds=dict(step_seconds),
    )
