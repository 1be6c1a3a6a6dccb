"""Scores as people read them: tables of one result, of its groups, and of two results compared."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nnseg.evaluate import MeanScore, Summary, by_group
from nnseg.scores.intervals import Interval
from nnseg.scores.metrics import METRICS, Metric, foreground_interval, label_intervals

if TYPE_CHECKING:
    from nnseg.scores.comparison import Comparison, Difference

FOREGROUND = "foreground mean"
NAMED = 5  # cases that a table names; all are in the record


def describe_scores(summary: Summary) -> str:
    """Give a result as a table: a row for each label, and one for the mean over them.

    Beside each Dice stands its interval. Metrics that no label has are left out. The last column
    says over how many cases a Dice is, and over how many labels the foreground mean; a metric that
    is over others says so itself: distances have no value where all of a label was missed.
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
        dice, *others = (_cell(metric, mean, summary) for metric in shown)
        rows.append((name, dice, _ends(interval), *others, _counted(mean, summary)))
    lines = [aligned(rows)]
    if summary.missing:
        lines.append(f"not predicted ({len(summary.missing)}): {_named(summary.missing)}")
    return "\n".join(lines)


def describe_groups(summary: Summary) -> str:
    """Give the Dice of each group of cases as a table: a row for each group, a column a label."""
    names = list(summary.mean)
    rows = [("", "cases", FOREGROUND, "95 % interval", *names)]
    for group, its in by_group(summary).items():
        dice = [_number(mean.dice) for mean in (its.foreground_mean, *its.mean.values())]
        interval = _ends(foreground_interval(its))
        rows.append((group, str(len(its.cases)), dice[0], interval, *dice[1:]))
    return aligned(rows)


def describe_comparison(found: "Comparison") -> str:
    """Give two results compared in one metric as a table, and say what could not be compared."""
    metric = METRICS[found.metric]
    better = "lower" if metric.lower_is_better else "higher"
    lines = [f"{found.title}, {len(found.cases)} cases; {better} is better"]
    told = ("effect", "p", "B wins/ties/loses", "only A", "only B")
    rows: list[Sequence[str]] = [("", "A", "B", "B - A", "95 % interval", *told)]
    for name, difference in [*found.labels.items(), (FOREGROUND, found.foreground)]:
        rows.append((name, *_cells(difference, metric.digits)))
    lines.append(aligned(rows))
    lines += [line for name in found.labels for line in _unpaired(name, found.labels[name])]
    for what, cases in (
        ("left out, only in A", found.only_a),
        ("left out, only in B", found.only_b),
        ("not predicted in A", found.missing_a),
        ("not predicted in B", found.missing_b),
    ):
        if cases:
            lines.append(f"{what} ({len(cases)}): {_named(cases)}")
    return "\n".join(lines)


def _unpaired(label: str, difference: "Difference") -> Iterator[str]:
    """Say of which cases of a label there is no difference, and what they count as."""
    whys: dict[tuple[str, bool], list[str]] = {}
    for one in difference.unpaired:
        b_stands = "b" in (one.better, one.only if one.better is None else None)
        whys.setdefault((one.reason, b_stands), []).append(one.case_id)
    for (reason, b_stands), cases in whys.items():
        winner, other = ("B", "A") if b_stands else ("A", "B")
        said = {
            "made up": f"{other} made it up where it is not: {len(cases)} wins of {winner}",
            "missed": f"{other} missed it wholly: {len(cases)} wins of {winner}",
            "not measured": f"{other} has no value, and nothing tells why: {len(cases)} uncounted",
        }
        yield f"{label}: {said[reason]}, in no mean and no p ({_named(cases)})"


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
        str(difference.only("a")),
        str(difference.only("b")),
    )


def _cell(metric: Metric, mean: MeanScore, summary: Summary) -> str:
    """Give a mean, and how many values it is of where they are not those of the Dice.

    Of the foreground these are the values of all labels.
    """
    value, of = metric.of_mean(mean), [mean]
    if mean is summary.foreground_mean:
        of = list(summary.mean.values())
    counts = [metric.count(one) for one in of]
    known = [count for count in counts if count is not None]
    said = _number(value, metric.digits)
    if value is None or not known or known == [one.dice_count for one in of]:
        return said
    return f"{said} ({sum(known)} of {len(of) * (len(summary.cases) + len(summary.missing))})"


def _counted(mean: MeanScore, summary: Summary) -> str:
    if mean is summary.foreground_mean:
        return f"{mean.dice_count} of {len(summary.mean)} labels"
    return f"{mean.dice_count} of {len(summary.cases) + len(summary.missing)}"


def _named(cases: Sequence[str]) -> str:
    return ", ".join(cases[:NAMED]) + (", ..." if len(cases) > NAMED else "")


def _number(value: float | None, digits: int = 4, *, signed: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def _ends(interval: Interval, digits: int = 4, *, signed: bool = False) -> str:
    if interval.low is None:
        return "-"
    low, high = (_number(end, digits, signed=signed) for end in (interval.low, interval.high))
    return f"{low} to {high}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Give rows of cells as lines; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
