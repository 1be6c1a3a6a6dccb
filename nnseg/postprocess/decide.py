"""Which rules make predictions better: found by arithmetic on tables of components.

`decide_as_nnunet` tries what nnU-Net tries. `decide` does so and then looks for smallest sizes,
which it takes only where they win on cases that had no say in the size.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Spacing
from nnseg.labels import Labels
from nnseg.postprocess.cohort import Cohort, State, after, make_cohort, means_of_known, start, worse
from nnseg.postprocess.rules import (
    KeepLargest,
    Postprocessing,
    Rule,
    Unit,
    keep_largest_foreground,
)
from nnseg.postprocess.sizes import Sizes, sizes_of, try_sizes
from nnseg.postprocess.table import ComponentTable

MOST_FOLDS = 5  # that cases are dealt into where nobody says their folds

Mean: TypeAlias = Callable[[NDArray[np.float64]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanDice:
    """The mean Dice of each label or region over the cases where it has one, and the mean of these.

    None is a mean of nothing.
    """

    labels: dict[str, float | None]
    foreground: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A rule that was tried on top of those taken before it.

    Of a smallest size the Dice are out of fold: each fold's cases have the size that was the best
    on all others. `rule` has the size that is the best on all cases, so `after` is not its own.
    """

    rule: Rule
    label: str | None  # whose mean Dice is compared; None is the mean of the foreground
    before: float | None
    after: float | None
    worse: tuple[str, ...]  # labels and regions whose mean Dice fell
    taken: bool

    @property
    def gain(self) -> float | None:
        """By how much the mean Dice rose; None where one of the two has no value."""
        if self.before is None or self.after is None:
            return None
        return self.after - self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """The rules that were taken, what they make of the mean Dice, and all that was tried."""

    postprocessing: Postprocessing
    dice_before: MeanDice
    dice_after: MeanDice  # on the cases that the rules were chosen on
    steps: tuple[Step, ...]
    cases: int


def decide(
    tables: Mapping[str, ComponentTable],
    labels: Labels,
    spacings: Mapping[str, Spacing],
    *,
    folds: Mapping[str, str] | None = None,
    minimum_sizes: bool = True,
    unit: Unit = "ml",
) -> Decided:
    """Choose the rules that raise the mean Dice of predictions.

    First come nnU-Net's: keep the largest component of all foreground, if that raises the mean Dice
    of the foreground and lowers that of no label; then of each label or region in turn, if that
    raises its own. A label without a value is left out of the mean, where nnU-Net would not take
    the first rule. Then, for each label or region in turn, the size below which its components go:
    the best on the cases of the other folds is judged on those of a fold, and the rule is taken if
    so its mean Dice rises and that of no other falls. The sizes that are tried are round ones. With
    a single fold none is taken.

    Args:
        tables: Of each case by its id.
        labels: What the tables are of.
        spacings: mm per voxel, (z, y, x), of each case.
        folds: The fold of each case. Left out, cases are dealt into up to five by their ids.
        minimum_sizes: Whether smallest sizes are tried at all.
        unit: Of these sizes; voxels where spacings mean nothing.

    Raises:
        DataError: There is no case.

    Source: of the first part nnU-Net 2.8.1.
    """
    cohort = make_cohort(tables, labels, spacings)
    dealt = folds or {case: str(n % MOST_FOLDS) for n, case in enumerate(cohort.case_ids)}
    everyone = np.ones(len(cohort.cases), np.bool_)
    (found,) = decide_each(cohort, [everyone], dealt, minimum_sizes=minimum_sizes, unit=unit)
    return found.decided


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecidedAmong:
    """What some cases decided, and what it does to all."""

    decided: Decided
    dice_before: NDArray[np.float64]  # (case, label or region) of all cases, sorted by id
    dice_after: NDArray[np.float64]  # likewise; nan where there is none


def decide_each(
    cohort: Cohort,
    parts: Sequence[NDArray[np.bool_]],
    folds: Mapping[str, str],
    *,
    minimum_sizes: bool = True,
    unit: Unit = "ml",
) -> tuple[DecidedAmong, ...]:
    """Choose rules as `decide` does, by the cases of each of several parts of a cohort.

    Step by step for all parts at once, which mostly agree: what a rule does to a case is found out
    once for all of them.

    Args:
        cohort: All cases.
        parts: The cases that have a say, (case,), each at least one.
        folds: The fold of each case.
        minimum_sizes: As of `decide`.
        unit: As of `decide`.
    """
    first, labels = start(cohort), cohort.labels
    fold_of = np.array([folds[case] for case in cohort.case_ids])
    tries = _tries_of_largest(labels, _mean_of_some)
    if minimum_sizes:
        tries += [_try_minimum_size(name, fold_of, unit) for name in labels.in_head_order]
    states, steps = [first] * len(parts), [tuple[Step, ...]()] * len(parts)
    for attempt in tries:
        known = _Known(cohort)
        for number, among in enumerate(parts):
            states[number], tried = attempt(known, among, states[number])
            steps[number] += tried
    return tuple(
        DecidedAmong(
            decided=_decided(cohort, among, first, state, tried, _mean_of_some),
            dice_before=first.dice.T,
            dice_after=state.dice.T,
        )
        for among, state, tried in zip(parts, states, steps, strict=True)
    )


def decide_as_nnunet(tables: Mapping[str, ComponentTable], labels: Labels) -> Decided:
    """Choose the rules that nnU-Net chooses.

    Its foreground mean has no value as soon as one label has none, and then the rule for all
    foreground is not taken.

    Args:
        tables: Of each case by its id.
        labels: What the tables are of.

    Raises:
        DataError: There is no case.

    Source: nnU-Net 2.8.1.
    """
    cohort = make_cohort(tables, labels, dict.fromkeys(tables, (1.0, 1.0, 1.0)))
    everyone = np.ones(len(cohort.cases), np.bool_)
    first = state = start(cohort)
    steps: tuple[Step, ...] = ()
    for attempt in _tries_of_largest(labels, _mean_of_all):
        state, tried = attempt(_Known(cohort), everyone, state)
        steps += tried
    return _decided(cohort, everyone, first, state, steps, _mean_of_all)


class _Known:
    """What has been found out about one step, for parts of a cohort that come to it alike."""

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort
        self._states: dict[tuple[Rule, ...], State] = {}
        self._sizes: dict[tuple[Rule, ...], Sizes] = {}

    def after(self, state: State, rule: Rule) -> State:
        """Carry out one more rule on all cases, if nobody has before."""
        rules = (*state.rules, rule)
        if rules not in self._states:
            self._states[rules] = after(self.cohort, state, rule)
        return self._states[rules]

    def sizes(self, state: State, name: str, unit: Unit) -> Sizes:
        """Score the smallest sizes of the label or region of this step."""
        if state.rules not in self._sizes:
            self._sizes[state.rules] = sizes_of(self.cohort, state, name, unit)
        return self._sizes[state.rules]


_Attempt: TypeAlias = Callable[
    [_Known, NDArray[np.bool_], State], tuple[State, tuple[Step, ...]]
]  # by what some cases say, (case,)


def _mean_of_all(values: NDArray[np.float64]) -> float:
    return float(np.mean(values))


def _mean_of_some(values: NDArray[np.float64]) -> float:
    return float(means_of_known(values[None])[0])


def _tries_of_largest(labels: Labels, mean: Mean) -> list[_Attempt]:
    """Give nnU-Net's steps: the largest component of all foreground, then of each label or region.

    A rule of the second kind has to raise its own Dice only; regions beside it may lose.
    """
    names = list(labels.foreground)

    def try_foreground(
        known: _Known, among: NDArray[np.bool_], state: State
    ) -> tuple[State, tuple[Step, ...]]:
        tried = known.after(state, keep_largest_foreground(labels))
        before, now = _means(state, among), _means(tried, among)
        old, new, lost = mean(before), mean(now), worse(labels, before, now)
        step = _step(tried.rules[-1], None, old, new, lost, taken=new > old and not lost)
        return (tried if step.taken else state), (step,)

    def try_label(name: str) -> _Attempt:
        def attempt(
            known: _Known, among: NDArray[np.bool_], state: State
        ) -> tuple[State, tuple[Step, ...]]:
            tried = known.after(state, KeepLargest(labels=(name,)))
            before, now = _means(state, among), _means(tried, among)
            row = names.index(name)
            lost = worse(labels, before, now)
            taken = bool(now[row] > before[row])
            step = _step(tried.rules[-1], name, before[row], now[row], lost, taken=taken)
            return (tried if taken else state), (step,)

        return attempt

    return [try_foreground, *(try_label(name) for name in labels.in_head_order if len(names) > 1)]


def _try_minimum_size(name: str, folds: NDArray[np.str_], unit: Unit) -> _Attempt:
    """Give the step of the best smallest size of a label or region; none where it does nothing.

    Args:
        name: The label or region.
        folds: The fold of each of all cases, (case,).
        unit: Of the size.
    """

    def attempt(
        known: _Known, among: NDArray[np.bool_], state: State
    ) -> tuple[State, tuple[Step, ...]]:
        labels, row = known.cohort.labels, known.cohort.row(name)
        trial = try_sizes(known.sizes(state, name, unit), among, folds)
        if trial is None:
            return state, ()
        judged = state.dice.copy()
        for fold, rule in trial.judged.items():
            if rule is not None:
                judged[:, folds == fold] = known.after(state, rule).dice[:, folds == fold]
        before, now = _means(state, among), means_of_known(judged[:, among])
        lost = worse(labels, before, now)
        taken = bool(trial.helps and now[row] > before[row] and not lost)
        step = _step(trial.rule, name, before[row], now[row], lost, taken=taken)
        return (known.after(state, trial.rule) if taken else state), (step,)

    return attempt


def _means(state: State, among: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give the mean Dice of each label or region over some cases, (name,)."""
    return means_of_known(state.dice[:, among])


def _step(
    rule: Rule, label: str | None, old: float, new: float, lost: tuple[str, ...], *, taken: bool
) -> Step:
    before, now = _number(old), _number(new)
    return Step(rule=rule, label=label, before=before, after=now, worse=lost, taken=taken)


def _decided(
    cohort: Cohort,
    among: NDArray[np.bool_],
    first: State,
    last: State,
    steps: tuple[Step, ...],
    mean: Mean,
) -> Decided:
    def told(state: State) -> MeanDice:
        means = _means(state, among)
        by_name = dict(zip(cohort.labels.foreground, map(_number, means), strict=True))
        return MeanDice(labels=by_name, foreground=_number(mean(means)))

    return Decided(
        postprocessing=Postprocessing(rules=last.rules),
        dice_before=told(first),
        dice_after=told(last),
        steps=steps,
        cases=int(among.sum()),
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
