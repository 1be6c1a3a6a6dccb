"""Two results of the same cases compared, case by case.

The differences are those of the cases that both have, so that what is hard about a case cancels
out. They are always the second result minus the first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from nnseg.errors import DataError
from nnseg.evaluate import Score, Summary
from nnseg.intervals import Interval, mean_of_means, sign_flip_p, table_interval
from nnseg.metrics import METRICS

SAME = 1e-9  # values nearer to each other are a tie

_Pair: TypeAlias = tuple[float | None, float | None]  # of the first and the second result
_Scores: TypeAlias = Mapping[str, Mapping[str, Score]]  # by case, then by label


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far two results are apart in one label, or in the mean over labels.

    Means are over the cases in which both have a value. `unpaired` counts those in which one alone
    has: for Dice, where one result rightly predicts nothing and the other something.
    """

    mean_a: float | None
    mean_b: float | None
    interval: Interval  # of the mean difference, b - a; its count is that of the pairs
    effect: float | None  # mean difference by the standard deviation of the differences
    p_value: float | None  # by `sign_flip_p`: as if signs were by chance
    wins: int  # cases in which b is better
    ties: int
    losses: int
    unpaired: int

    @property
    def mean(self) -> float | None:
        """The mean difference, b - a; None where there is no pair."""
        return self.interval.mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two results compared in one metric."""

    metric: str  # a name of METRICS
    cases: tuple[str, ...]  # that both have, sorted
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    labels: dict[str, Difference]  # by name of the label or region
    foreground: Difference  # of the mean over labels


def compare(a: Summary, b: Summary, *, metric: str = "dice", seed: int = 0) -> Comparison:
    """Compare two results over the cases that both have, label by label and in the mean over them.

    Args:
        a: The first result, the one to hold the other against.
        b: The second one, of the same labels and references.
        metric: A name of METRICS.
        seed: Of what is drawn.

    Raises:
        DataError: The labels differ, no case is in both, or the references are not the same.
    """
    if set(a.mean) != set(b.mean):
        raise DataError(
            f"the labels are {sorted(a.mean)} in the first and {sorted(b.mean)} in the second "
            "result; compare results of the same labels"
        )
    first, second = ({case.case_id: case.scores for case in each.cases} for each in (a, b))
    shared = sorted(first.keys() & second.keys())
    if not shared:
        raise DataError(
            f"no case is in both results; the first has {min(first)}, ..., the second "
            f"{min(second)}, ...: compare results of the same cases"
        )
    names = list(a.mean)
    _check_references(first, second, shared, names)
    value = METRICS[metric].of_score
    columns = {
        name: [(value(first[case][name]), value(second[case][name])) for case in shared]
        for name in names
    }
    rows = [[columns[name][row] for name in names] for row in range(len(shared))]
    lower = METRICS[metric].lower_is_better
    return Comparison(
        metric=metric,
        cases=tuple(shared),
        only_a=tuple(sorted(first.keys() - second.keys())),
        only_b=tuple(sorted(second.keys() - first.keys())),
        labels={
            name: _difference([[pair] for pair in columns[name]], lower, seed) for name in names
        },
        foreground=_difference(rows, lower, seed),
    )


def _check_references(
    first: _Scores, second: _Scores, case_ids: Sequence[str], names: Sequence[str]
) -> None:
    for case_id in case_ids:
        for name in names:
            a, b = (each[case_id][name].n_ref for each in (first, second))
            if a != b:
                raise DataError(
                    f"case {case_id}: {name} has {a} voxels in the reference of the first result "
                    f"and {b} in that of the second; score both against the same references"
                )


def _difference(rows: Sequence[Sequence[_Pair]], lower_is_better: bool, seed: int) -> Difference:
    """Compare pairs of values, a row for each case and a column for each label."""
    paired = [[pair if None not in pair else (None, None) for pair in row] for row in rows]
    differences = [[None if a is None or b is None else b - a for a, b in row] for row in paired]
    of_cases = [_mean(row) for row in differences]
    found = [value for value in of_cases if value is not None]
    gains = [-value if lower_is_better else value for value in found]
    interval = table_interval(differences, seed=seed)
    wins = sum(gain > SAME for gain in gains)
    losses = sum(gain < -SAME for gain in gains)
    return Difference(
        mean_a=mean_of_means([[a for a, _ in row] for row in paired]),
        mean_b=mean_of_means([[b for _, b in row] for row in paired]),
        interval=interval,
        effect=_effect(found),
        p_value=sign_flip_p(differences, seed=seed),
        wins=wins,
        ties=len(gains) - wins - losses,
        losses=losses,
        unpaired=sum(any((a is None) != (b is None) for a, b in row) for row in rows),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else None


def _effect(differences: Sequence[float]) -> float | None:
    """Give the mean by the standard deviation; None where that is 0 or there are no two values."""
    if len(differences) < 2:
        return None
    mean = math.fsum(differences) / len(differences)
    spread = math.fsum((value - mean) ** 2 for value in differences) / (len(differences) - 1)
    return mean / math.sqrt(spread) if spread > SAME**2 else None
