"""Scores as people read them: tables of one result, of its groups, and of two results compared."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnseg.evaluate import MeanScore, Summary, by_group
from nnseg.intervals import Interval
from nnseg.metrics import METRICS, foreground_interval, label_intervals

if TYPE_CHECKING:
    from nnseg.comparison import Comparison, Difference

FOREGROUND = "foreground mean"
NAMED = 5  # cases that a table names; all are in the record


def describe_scores(summary: Summary) -> str:
    """Give a result as a table: a row for each label, and one for the mean over them.

    Beside each Dice stands its interval. Metrics that no label has are left out. The last column
    says over how many cases a Dice is, and over how many labels the foreground mean.
    """
    means = [*summary.mean.items(), (FOREGROUND, summary.foreground_mean)]
    intervals = [*label_intervals(summary).values(), foreground_interval(summary)]
    shown = [
        metric
        for name, metric in METRICS.items()
        if name == "dice" or any(metric.of_mean(mean) is not None for _, mean in means)
    ]
    head = ("", "Dice", "95 % interval", *(metric.title for metric in shown[1:]), "counted")
    rows = [head]
    for (name, mean), interval in zip(means, intervals, strict=True):
        dice, *others = (_number(metric.of_mean(mean), metric.digits) for metric in shown)
        rows.append((name, dice, _ends(interval), *others, _counted(mean, summary)))
    return _aligned(rows)


def describe_groups(summary: Summary) -> str:
    """Give the Dice of each group of cases as a table: a row for each group, a column a label."""
    names = list(summary.mean)
    rows = [("", "cases", FOREGROUND, "95 % interval", *names)]
    for group, its in by_group(summary).items():
        dice = [_number(mean.dice) for mean in (its.foreground_mean, *its.mean.values())]
        interval = _ends(foreground_interval(its))
        rows.append((group, str(len(its.cases)), dice[0], interval, *dice[1:]))
    return _aligned(rows)


def describe_comparison(found: "Comparison") -> str:
    """Give two results compared in one metric as a table, and say what could not be compared."""
    metric = METRICS[found.metric]
    better = "lower" if metric.lower_is_better else "higher"
    lines = [f"{metric.title} of {len(found.cases)} cases; {better} is better"]
    head = ("", "A", "B", "B - A", "95 % interval", "effect", "p", "B wins/ties/loses", "unpaired")
    rows: list[Sequence[str]] = [head]
    for name, difference in [*found.labels.items(), (FOREGROUND, found.foreground)]:
        rows.append((name, *_cells(difference, metric.digits)))
    lines.append(_aligned(rows))
    for side, only in (("A", found.only_a), ("B", found.only_b)):
        if only:
            rest = ", ..." if len(only) > NAMED else ""
            lines.append(f"left out, only in {side} ({len(only)}): {', '.join(only[:NAMED])}{rest}")
    return "\n".join(lines)


def _cells(difference: "Difference", digits: int) -> tuple[str, ...]:
    p = difference.p_value
    return (
        _number(difference.mean_a, digits),
        _number(difference.mean_b, digits),
        _number(difference.mean, digits, signed=True),
        _ends(difference.interval, digits, signed=True),
        _number(difference.effect, 2, signed=True),
        "-" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}",
        f"{difference.wins}/{difference.ties}/{difference.losses}",
        str(difference.unpaired),
    )


def _counted(mean: MeanScore, summary: Summary) -> str:
    if mean is summary.foreground_mean:
        return f"{mean.dice_count} of {len(summary.mean)} labels"
    return f"{mean.dice_count} of {len(summary.cases)}"


def _number(value: float | None, digits: int = 4, *, signed: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def _ends(interval: Interval, digits: int = 4, *, signed: bool = False) -> str:
    if interval.low is None:
        return "-"
    low, high = (_number(end, digits, signed=signed) for end in (interval.low, interval.high))
    return f"{low} to {high}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Give rows of cells as lines; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
