"""Two results of the same cases compared, case by case.

The differences are those of the cases that both have, so that what is hard about a case cancels
out. They are always the second result minus the first. Where a result has no value because it
found nothing, or something where nothing is, the numbers of voxels tell which result is better.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from nnseg.errors import DataError
from nnseg.evaluate import Score, Summary
from nnseg.parallel import one_blas_thread
from nnseg.scores.intervals import Interval, mean_of_means, sign_flip_p, table_interval
from nnseg.scores.metrics import METRICS, Metric

SAME = 1e-9  # values nearer to each other are a tie

Side: TypeAlias = Literal["a", "b"]
_Pair: TypeAlias = tuple[float | None, float | None]  # of the first and the second result
_Scores: TypeAlias = Mapping[str, Mapping[str, Score]]  # by case, then by label


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpaired:
    """A label of a case of which no difference can be taken, but most often a better result told.

    One result may have missed all of the label, which leaves no distance; or made some up where the
    other rightly has none, of which Dice and the like have no value.
    """

    case_id: str
    label: str
    only: Side | None  # which result has a value; None: neither, and they are not alike
    better: Side | None  # None: nobody can tell
    reason: Literal["made up", "missed", "not measured"]  # what is wrong with the other one


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far two results are apart in one label, or in the mean over labels.

    Means, interval, effect and p are of the cases in which both have a value. Wins and losses count
    those of `unpaired`, too; of the mean over labels, what is unpaired decides a case first.
    """

    mean_a: float | None
    mean_b: float | None
    interval: Interval  # of the mean difference, b - a; its count is that of the pairs
    effect: float | None  # mean difference by the standard deviation of the differences
    p_value: float | None  # by `sign_flip_p`: as if signs were by chance
    wins: int  # cases in which b is better
    ties: int
    losses: int
    unpaired: tuple[Unpaired, ...]

    @property
    def mean(self) -> float | None:
        """The mean difference, b - a; None where there is no pair."""
        return self.interval.mean

    def only(self, side: Side) -> int:
        """Give the number of cases in which one result alone has a value, of some label."""
        return len({one.case_id for one in self.unpaired if one.only == side})


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two results compared in one metric, of single cases."""

    metric: str  # a name of METRICS
    title: str  # what is compared, which of ratios of components is not what a summary has
    cases: tuple[str, ...]  # that both have, sorted
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    missing_a: tuple[str, ...]  # references that the result is known to have no prediction of
    missing_b: tuple[str, ...]
    labels: dict[str, Difference]  # by name of the label or region
    foreground: Difference  # of the mean over labels


@one_blas_thread()  # the products are small, and threads would wait for each other
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
    which = METRICS[metric]
    columns = {
        name: [
            (which.of_score(first[case][name]), which.of_score(second[case][name]))
            for case in shared
        ]
        for name in names
    }
    unpaired = {name: _unpaired(first, second, shared, name, which) for name in names}
    rows = [[columns[name][row] for name in names] for row in range(len(shared))]
    everything = tuple(one for name in names for one in unpaired[name])
    lower = which.lower_is_better
    return Comparison(
        metric=metric,
        title=which.case_title or which.title,
        cases=tuple(shared),
        only_a=tuple(sorted(first.keys() - second.keys())),
        only_b=tuple(sorted(second.keys() - first.keys())),
        missing_a=a.missing,
        missing_b=b.missing,
        labels={
            name: _difference(
                *(shared, [[pair] for pair in columns[name]], unpaired[name]), lower, seed
            )
            for name in names
        },
        foreground=_difference(shared, rows, everything, lower, seed),
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


def _unpaired(
    first: _Scores, second: _Scores, case_ids: Sequence[str], name: str, metric: Metric
) -> tuple[Unpaired, ...]:
    """List the cases in which a label's metric is not of both, though the results differ."""
    found = []
    for case_id in case_ids:
        pair = first[case_id][name], second[case_id][name]
        there = [metric.of_score(score) is not None for score in pair]
        a, b = (_worth(score, metric) for score in pair)
        if all(there) or (not any(there) and (a == b or a is None or b is None)):
            continue
        reason: Literal["made up", "missed"] = "missed" if pair[0].n_ref else "made up"
        decided = a is not None and b is not None and a != b
        found.append(
            Unpaired(
                case_id=case_id,
                label=name,
                only=None if there[0] == there[1] else "a" if there[0] else "b",
                better=("a" if (a or 0) > (b or 0) else "b") if decided else None,
                reason=reason if decided else "not measured",
            )
        )
    return tuple(found)


def _worth(score: Score, metric: Metric) -> int | None:
    """Rank what a metric has of a label: 2 rightly no value, 1 a value, 0 wrongly none."""
    if metric.of_score(score) is not None:
        return 1
    if not score.n_ref and not (score.n_pred and metric.sees_made_up):
        return 2
    return None if score.n_pred and score.n_ref else 0


def _difference(
    case_ids: Sequence[str],
    rows: Sequence[Sequence[_Pair]],
    unpaired: tuple[Unpaired, ...],
    lower_is_better: bool,
    seed: int,
) -> Difference:
    """Compare pairs of values, a row for each case and a column for each label."""
    paired = [[pair if None not in pair else (None, None) for pair in row] for row in rows]
    differences = [[None if a is None or b is None else b - a for a, b in row] for row in paired]
    of_cases = [_mean(row) for row in differences]
    found = [value for value in of_cases if value is not None]
    signs = {
        case_id: 0 if abs(value) <= SAME else -1 if (value < 0) != lower_is_better else 1
        for case_id, value in zip(case_ids, of_cases, strict=True)
        if value is not None
    }
    votes: dict[str, int] = {}
    for one in unpaired:
        if one.better is not None:
            votes[one.case_id] = votes.get(one.case_id, 0) + (1 if one.better == "b" else -1)
    for case_id, vote in votes.items():
        signs[case_id] = (vote > 0) - (vote < 0) or signs.get(case_id, 0)
    wins, losses = (sum(sign == which for sign in signs.values()) for which in (1, -1))
    return Difference(
        mean_a=mean_of_means([[a for a, _ in row] for row in paired]),
        mean_b=mean_of_means([[b for _, b in row] for row in paired]),
        interval=table_interval(differences, seed=seed),
        effect=_effect(found),
        p_value=sign_flip_p(differences, seed=seed),
        wins=wins,
        ties=len(signs) - wins - losses,
        losses=losses,
        unpaired=unpaired,
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
