"""What figures mean, in plain words: the verdict of a report."""

from collections.abc import Sequence

from nnseg.report.facts import (
    CaseRow,
    ChoosingFacts,
    ComparisonFacts,
    Curve,
    Facts,
    LabelRow,
    Span,
    Statement,
    Tone,
)
from nnseg.report.tables import duration

SCALE: tuple[tuple[float, Tone, str], ...] = (  # Dice from which on it is called so
    (0.9, "good", "very close to the reference"),
    (0.8, "good", "close to the reference"),
    (0.6, "watch", "partly right"),
    (0.0, "bad", "not usable as it is"),
)
POOR = 0.5  # Dice below which a case is named as a failure
FAR_BEHIND = 0.1  # Dice by which a label is behind the best
TOO_SURE, TOO_UNSURE = 1.3, 0.75  # temperatures
STILL_RISING = 0.01  # of the moving average over the last fifth of the epochs
NOTABLE = 0.05  # p value
NAMED = 3  # cases or labels that a sentence names


def verdict(facts: Facts) -> tuple[Statement, ...]:
    """Say what the figures mean, the most important first."""
    said: list[Statement] = []
    if facts.foreground is not None:
        of = "" if facts.comparison is None else f"{facts.comparison.first}: "
        said += _quality(facts.foreground, facts.labels, facts.cases, of)
    if facts.comparison is not None:
        said = _of_comparison(facts.comparison) + said
    if facts.choosing is not None:
        said += _of_choosing(facts.choosing)
    if facts.kind == "dataset" and facts.data is not None:
        said += _of_dataset(facts)
    said += _of_curves(facts.curves)
    for trust in facts.trust:
        if trust.temperature is not None and trust.temperature > TOO_SURE:
            text = (
                f"{trust.name}: the model is surer than it should be (temperature "
                f"{trust.temperature:.2f}); predict with --calibrated where probabilities matter."
            )
            said.append(Statement(tone="watch", text=text))
    if facts.suspects:
        first = ", ".join(row.case_id for row in facts.suspects[:NAMED])
        text = f"{len(facts.suspects)} reference label maps may be wrong; look first at {first}."
        said.append(Statement(tone="watch", text=text))
    if facts.findings is not None:
        said.append(_of_findings(facts))
    return tuple(said)


def number(value: float | None, digits: int = 3) -> str:
    """Give a figure for a table; a dash where there is none.

    >>> number(0.87654), number(None)
    ('0.877', '–')
    """
    return "–" if value is None else f"{value:.{digits}f}"


def between(span: Span, digits: int = 3) -> str:
    """Give an interval as text, "" where there is none.

    >>> between(Span(mean=0.5, low=0.4, high=0.6, count=9))
    '0.400 to 0.600'
    """
    if span.low is None or span.high is None:
        return ""
    return f"{span.low:.{digits}f} to {span.high:.{digits}f}"


def several(count: int, what: str) -> str:
    """Give a number of things.

    >>> several(1, "case"), several(3, "case")
    ('1 case', '3 cases')
    """
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def scale(dice: float) -> tuple[Tone, str]:
    """Say how good a Dice is, as a rule of thumb; small or thin structures score lower."""
    return next((tone, text) for least, tone, text in SCALE if dice >= least)


def _quality(
    foreground: LabelRow, labels: Sequence[LabelRow], cases: Sequence[CaseRow], of: str
) -> list[Statement]:
    dice = foreground.dice
    scored = [case for case in cases if case.dice is not None]
    if dice.mean is None:
        text = "No case has a label in its reference or prediction, so there is no score."
        return [Statement(tone="bad", text=text)]
    tone, words = scale(dice.mean)
    interval = f" (95 % interval {between(dice)})" if between(dice) else ""
    text = (
        f"{of}Over {several(len(scored), 'case')} the mean Dice is {dice.mean:.3f}{interval}: by "
        f"the usual scale {words}."
    )
    said = [Statement(tone=tone, text=text)]
    valued = [(row.dice.mean, row.name) for row in labels if row.dice.mean is not None]
    if len(valued) > 1:
        (worst, low), (best, high) = min(valued), max(valued)
        behind = best - worst > FAR_BEHIND
        text = f"{high} is found best ({best:.3f}), {low} worst ({worst:.3f})."
        said.append(Statement(tone="watch" if behind else "plain", text=text))
    if absent := [row.name for row in labels if row.dice.mean is None]:
        text = f"No score of {_some(absent)}: neither references nor predictions have it."
        said.append(Statement(tone="watch", text=text))
    poor = sorted((case.dice, case.case_id) for case in scored if (case.dice or 0) < POOR)
    if poor:
        named = _some([f"{name} ({value:.2f})" for value, name in poor])
        text = f"{several(len(poor), 'case')} below a Dice of {POOR:g}: {named}."
        said.append(Statement(tone="bad", text=text))
    elif len(scored) > 1:
        value, name = min((case.dice or 0, case.case_id) for case in scored)
        said.append(Statement(tone="plain", text=f"The worst case is {name} ({value:.3f})."))
    return said


def _of_comparison(comparison: ComparisonFacts) -> list[Statement]:
    if not comparison.rows:
        return []
    whole = comparison.rows[-1]
    if whole.difference.mean is None:
        return [Statement(tone="watch", text="The two have no score in common.")]
    mean, p = whole.difference.mean, whole.p_value
    if mean == 0:
        return [Statement(tone="plain", text="The two have the same mean Dice.")]
    better, worse = comparison.second, comparison.first
    if mean < 0:
        better, worse = worse, better
    by = f"by {abs(mean):.4f} in mean Dice"
    chance = "" if p is None else f" (p = {p:.2g})"
    if p is not None and p < NOTABLE:
        text = f"{better} is better than {worse} {by}, more than chance explains{chance}."
        tone: Tone = "good"
    else:
        text = f"No clear difference: {better} is ahead of {worse} {by}{chance}."
        tone = "plain"
    return [Statement(tone=tone, text=text)]


def _of_choosing(choosing: ChoosingFacts) -> list[Statement]:
    count = several(len(choosing.candidates), "candidate")
    said = [Statement(tone="plain", text=f"{choosing.chosen} was chosen among {count}.")]
    if choosing.expected_dice is not None:
        worth = ""
        if choosing.optimism is not None:
            worth = f"; choosing the best of them flatters its own score by {choosing.optimism:.4f}"
        text = f"On new cases like these, expect a Dice of {choosing.expected_dice:.3f}{worth}."
        said.append(Statement(tone="plain", text=text))
    return said


def _of_dataset(facts: Facts) -> list[Statement]:
    data = facts.data
    assert data is not None
    text = (
        f"{several(data.cases, 'labelled case')}, {several(len(data.channels), 'channel')}, "
        f"{several(len(data.labels), 'label')}."
    )
    return [Statement(tone="plain", text=text)]


def _of_curves(curves: Sequence[Curve]) -> list[Statement]:
    """Say where a training had not come to rest, and how long it took."""
    said = []
    for curve in curves:
        found = [row.dice_average for row in curve.epochs if row.dice_average is not None]
        tail = found[-max(2, len(found) // 5) :]
        if len(found) >= 10 and tail[-1] - tail[0] > STILL_RISING:
            text = (
                f"{curve.name} was still getting better at its end (+{tail[-1] - tail[0]:.3f} over "
                f"the last {len(tail)} epochs); a longer training would help."
            )
            said.append(Statement(tone="watch", text=text))
    seconds = sum(row.seconds for curve in curves for row in curve.epochs)
    if seconds:
        what = "training" if len(curves) == 1 else "trainings"
        text = f"{several(len(curves), 'training') if len(curves) > 1 else 'The ' + what} took "
        said.append(Statement(tone="plain", text=f"{text}{duration(seconds)}."))
    return said


def _of_findings(facts: Facts) -> Statement:
    findings = facts.findings or ()
    errors = sum(row.severity == "error" for row in findings)
    if errors:
        text = f"The doctor found {several(errors, 'error')}; the dataset cannot be used so."
        return Statement(tone="bad", text=text)
    if findings:
        text = f"The doctor found no error, and {several(len(findings), 'thing')} worth a look."
        return Statement(tone="watch", text=text)
    return Statement(tone="good", text="The doctor found nothing wrong with the raw data.")


def _some(names: Sequence[str]) -> str:
    """Name a few, and say how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
