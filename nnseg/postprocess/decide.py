"""Which rules make predictions better: found by arithmetic on tables of components.

`decide_as_nnunet` tries what nnU-Net tries. `decide` does so and then looks for smallest sizes,
which it takes only where they win on cases that had no say in the size.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from nnseg.axes import Spacing
from nnseg.labels import Labels
from nnseg.postprocess.cohort import Cohort, State, after, make_cohort, mean_of_known, start, worse
from nnseg.postprocess.rules import (
    KeepLargest,
    Postprocessing,
    Rule,
    Unit,
    keep_largest_foreground,
)
from nnseg.postprocess.sizes import try_sizes
from nnseg.postprocess.table import ComponentTable

MOST_FOLDS = 5  # that cases are dealt into where nobody says their folds

Mean: TypeAlias = Callable[[Sequence[float]], float]


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
    first = start(cohort)
    state, steps = _with_largest(cohort, first, _mean_of_some)
    dealt = folds or {case: str(n % MOST_FOLDS) for n, case in enumerate(cohort.case_ids)}
    parted = [dealt[case] for case in cohort.case_ids]
    for name in _in_order(labels) if minimum_sizes else ():
        state, tried = _with_minimum_size(cohort, state, name, parted, unit)
        steps += tried
    return _decided(cohort, first, state, steps, _mean_of_some)


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
    first = start(cohort)
    state, steps = _with_largest(cohort, first, _mean_of_all)
    return _decided(cohort, first, state, steps, _mean_of_all)


def _mean_of_all(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _mean_of_some(values: Sequence[float]) -> float:
    return mean_of_known(np.array(values))


def _in_order(labels: Labels) -> list[str]:
    """Give the labels or regions as nnU-Net goes through them: labels by integer."""
    names = list(labels.foreground)
    return names if labels.has_regions else sorted(names, key=labels.foreground.__getitem__)


def _with_largest(cohort: Cohort, state: State, mean: Mean) -> tuple[State, tuple[Step, ...]]:
    """Try nnU-Net's rules: the largest component of all foreground, then of each label or region.

    A rule of the second kind has to raise its own Dice only; regions beside it may lose.
    """
    labels = cohort.labels
    tried = after(cohort, state, keep_largest_foreground(labels))
    old, new, lost = mean(state.means), mean(tried.means), worse(cohort, state, tried)
    steps = [_step(tried.rules[-1], None, old, new, lost, taken=new > old and not lost)]
    state = tried if steps[0].taken else state
    for name in _in_order(labels) if len(labels.foreground) > 1 else ():
        tried = after(cohort, state, KeepLargest(labels=(name,)))
        old, new = state.means[cohort.row(name)], tried.means[cohort.row(name)]
        lost = worse(cohort, state, tried)
        steps.append(_step(tried.rules[-1], name, old, new, lost, taken=new > old))
        state = tried if steps[-1].taken else state
    return state, tuple(steps)


def _with_minimum_size(
    cohort: Cohort, state: State, name: str, folds: Sequence[str], unit: Unit
) -> tuple[State, tuple[Step, ...]]:
    """Try the best smallest size of a label or region; no step where none would do anything."""
    trial = try_sizes(cohort, state, name, folds, unit)
    if trial is None:
        return state, ()
    old, new = state.means[cohort.row(name)], trial.judged.means[cohort.row(name)]
    lost = worse(cohort, state, trial.judged)
    taken = trial.helps and new > old and not lost
    step = _step(trial.rule, name, old, new, lost, taken=taken)
    return (after(cohort, state, trial.rule) if step.taken else state), (step,)


def _step(
    rule: Rule, label: str | None, old: float, new: float, lost: tuple[str, ...], *, taken: bool
) -> Step:
    return Step(
        rule=rule, label=label, before=_known(old), after=_known(new), worse=lost, taken=taken
    )


def _decided(
    cohort: Cohort, first: State, last: State, steps: tuple[Step, ...], mean: Mean
) -> Decided:
    def told(state: State) -> MeanDice:
        means = dict(zip(cohort.labels.foreground, map(_known, state.means), strict=True))
        return MeanDice(labels=means, foreground=_known(mean(state.means)))

    return Decided(
        postprocessing=Postprocessing(rules=last.rules),
        dice_before=told(first),
        dice_after=told(last),
        steps=steps,
        cases=len(cohort.cases),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
