"""Which trainings a whole job consists of, and how long each may take: `nnseg run`'s to-do list."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nnseg.errors import UsageError
from nnseg.report import duration

QUICK_SECONDS = 600.0  # a training of the preset `quick` where no budget says otherwise
LEAST_SECONDS, LEAST_STEPS = 10.0, 10  # that every training gets, or the budget is refused
WORTH_STEPS = 400  # that a training must get, or the job has fewer trainings
FEW_FOLDS = (3, 2)  # that are tried where the budget does not do for all
CLOSING_SHARE = 0.05  # of a budget, for choosing and the report
CLOSING_SECONDS = 60.0  # at least
PLAIN = ("3d_fullres", "2d")  # that do not wait for another; the one that is best alone first
PRESETS = ("quick", "default", "best")
VALIDATING = 1.05  # of the time of training steps: batches are validated, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """What a training of a configuration takes, as a few steps of it tell."""

    epochs: int  # at most, where no budget cuts them
    iterations: int  # steps an epoch
    step_seconds: float
    bytes: int  # of memory, at most

    @property
    def seconds(self) -> float:
        """What all of it takes, the validation of whole cases left out."""
        return self.epochs * self.iterations * self.step_seconds * VALIDATING


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
        least = CLOSING_SECONDS + LEAST_SECONDS
        if self.budget_seconds is not None and self.budget_seconds < least:
            raise UsageError(
                f"a budget of {self.budget_seconds:.0f} s is too short; give at least {least:.0f}s"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Agenda:
    """The trainings of a job, in the order in which they are done.

    It is drawn up once and kept, so that the same command goes on with the same trainings, however
    often it is interrupted and however fast the machine is then.
    """

    dataset: str
    order: Order
    trainings: tuple[Training, ...]
    rehearsed: dict[str, Rehearsed] = field(default_factory=dict)  # by configuration, where it was

    @property
    def folds(self) -> tuple[str, ...]:
        """The folds that some configuration trains."""
        return tuple(dict.fromkeys(one.fold for one in self.trainings))

    @property
    def configurations(self) -> tuple[str, ...]:
        """The configurations that are trained."""
        return tuple(dict.fromkeys(one.configuration for one in self.trainings))


def wanted(order: Order, planned: Mapping[str, str | None]) -> tuple[str, ...]:
    """Give the configurations that a job may train, in the order of the plan.

    Args:
        order: What was asked for.
        planned: The configurations of the plan, each with the one that it builds on, if any.

    Raises:
        UsageError: One that was asked for is not planned.
    """
    for name in order.configurations:
        if name not in planned:
            raise UsageError(f"{name} is not planned; the plan has {', '.join(planned)}")
    if not order.configurations:
        return tuple(planned)
    before = {planned[name] for name in order.configurations}
    return tuple(name for name in planned if name in {*order.configurations, *before})


def draw_up(
    dataset: str,
    order: Order,
    planned: Mapping[str, str | None],
    fold_count: int,
    *,
    rehearsed: Mapping[str, Rehearsed],
    left: float | None = None,
    devices: int = 1,
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
        rehearsed: What a training takes, by configuration; a step of one that lacks takes as long
            as the slowest known one.
        left: Seconds of the budget that are left for training and what comes after it; None is all
            of it.
        devices: On how many trainings go on at the same time. They go in rounds, of which each gets
            the same share: a device more than there are trainings gives none of them more time.

    Returns:
        The trainings: fold by fold, so that a job cut short has whole folds to choose by. A cascade
        comes last: it learns from the out-of-fold predictions of all folds of the stage before.

    Raises:
        UsageError: A configuration or fold is not there, or less is left of the budget than every
            training needs: ten seconds, and ten steps.
    """
    names_wanted = wanted(order, planned)
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
        for names, folds in _options(order, planned, names_wanted, every)
    ]
    if order.budget_seconds is None:
        seconds = QUICK_SECONDS if order.preset == "quick" else None
        return _agenda(dataset, order, options[0], seconds, rehearsed)
    budget = order.budget_seconds
    left = budget if left is None else left
    closing = max(CLOSING_SECONDS, CLOSING_SHARE * budget)
    paces = {name: one.step_seconds for name, one in rehearsed.items()}
    slowest = max(paces.values(), default=0.0)
    for option in options:
        rounds = _rounds(option, devices)
        share = (left - closing) / rounds
        slow = max(paces.get(one.configuration, slowest) for one in option)
        if share >= WORTH_STEPS * slow:
            break
    least = max(LEAST_SECONDS, LEAST_STEPS * slow)
    if share < least:
        needed = math.ceil((budget - left + rounds * least) / (1 - CLOSING_SHARE) + CLOSING_SECONDS)
        raise UsageError(
            f"of the budget of {budget:.0f} s nothing is left to train: preparing took "
            f"{budget - left:.0f} s, and choosing and the report need {closing:.0f} s; give more, "
            f"at least {needed}s"
        )
    return _agenda(dataset, order, option, share, rehearsed)


def describe(agenda: Agenda, devices: int = 1) -> str:
    """Say what a job will train, a line a configuration, and how long that takes at most.

    Args:
        agenda: Of the job.
        devices: On how many trainings go on at the same time.
    """
    lines = []
    for name in agenda.configurations:
        mine = [one for one in agenda.trainings if one.configuration == name]
        folds = ", ".join(one.fold for one in mine)
        known = agenda.rehearsed.get(name)
        length = _length(agenda.order, mine, known)
        pace = "" if known is None else f", {known.step_seconds:.2f} s a step"
        memory = "" if known is None else f", {known.bytes / 1e9:.1f} GB of memory"
        lines.append(f"  {name}: fold {folds}, {length}{pace}{memory}")
    if any(one.budget_seconds is None for one in agenda.trainings):
        unknown = [name for name in agenda.configurations if name not in agenda.rehearsed]
        if unknown:
            lines.append(f"  how long that takes is not known of {', '.join(unknown)}")
        else:
            at_once = "" if devices == 1 else f" on {devices} devices"
            lines.append(
                f"  all of it{at_once}: at most {duration(_seconds(agenda, devices))} of training"
            )
    return "\n".join(lines)


def _length(order: Order, mine: Sequence[Training], known: Rehearsed | None) -> str:
    """Say how long the trainings of a configuration take."""
    seconds = mine[0].budget_seconds
    if seconds is not None:
        return f"{seconds / 60:.1f} min each"
    if known is None:
        return "1000 epochs each" if order.preset == "best" else "as long as it gains"
    folds = "1 fold" if len(mine) == 1 else f"{len(mine)} folds"
    return f"at most {duration(len(mine) * known.seconds)}: {folds} of {known.epochs} epochs"


def _seconds(agenda: Agenda, devices: int) -> float:
    """Say how long all trainings of a job take that was rehearsed, each on the next free device."""
    free = [0.0] * devices
    for waits in (False, True):
        free = [max(free)] * devices
        for one in agenda.trainings:
            if one.waits == waits:
                free.sort()
                free[0] += one.budget_seconds or agenda.rehearsed[one.configuration].seconds
    return max(free)


def _rounds(trainings: Iterable[Training], devices: int) -> int:
    """Say how many trainings come one after the other; those that wait have rounds of their own."""
    waiting = [one.waits for one in trainings]
    return sum(math.ceil(waiting.count(waits) / devices) for waits in (False, True))


def _options(
    order: Order,
    planned: Mapping[str, str | None],
    wide: tuple[str, ...],
    every: tuple[str, ...],
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """List what a job may train, the widest first: configurations and folds."""
    plain = tuple(name for name in PLAIN if name in planned) or tuple(planned)[:1]
    narrow, single = plain, plain[:1]
    if order.configurations:
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
    rehearsed: Mapping[str, Rehearsed],
) -> Agenda:
    budget = None if seconds is None else math.floor(seconds)
    return Agenda(
        dataset=dataset,
        order=order,
        trainings=tuple(replace(one, budget_seconds=budget) for one in trainings),
        rehearsed=dict(rehearsed),
    )
