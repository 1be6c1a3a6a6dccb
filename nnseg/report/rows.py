"""From the records of other stages to those of a report; no file is read here."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from nnseg.axes import by
from nnseg.choose import CandidateScore, Choosing
from nnseg.evaluate import CaseScores, MeanScore, Score, Summary
from nnseg.fingerprint import Fingerprint
from nnseg.plan import Configuration, Plan
from nnseg.report.facts import (
    CandidateRow,
    CaseRow,
    ChoosingFacts,
    ComparisonFacts,
    Curve,
    DataFacts,
    DifferenceRow,
    EpochRow,
    LabelRow,
    Pick,
    PlanFacts,
    Reason,
    RunFacts,
    Span,
    SuspectRow,
    Trust,
)
from nnseg.runlog import RunReport
from nnseg.scores.comparison import Comparison, Difference
from nnseg.scores.confidence import Confidence
from nnseg.scores.metrics import foreground_interval, label_intervals
from nnseg.suspects.label_errors import Suspects

FOREGROUND = "foreground mean"
LARGEST = 1e30  # of a figure of a training; nothing sensible comes near
PICKED = 3  # cases of each kind, where there are enough
TOLD = ("epochs", "validation_dice", "execution")  # facts of a run that a reader wants


def label_rows(summary: Summary) -> tuple[LabelRow, tuple[LabelRow, ...]]:
    """Give the scores of the foreground mean, and those of each label with their intervals."""
    intervals = label_intervals(summary)
    rows = []
    for name, mean in summary.mean.items():
        found = intervals[name]
        dice = Span(mean=mean.dice, low=found.low, high=found.high, count=mean.dice_count)
        rows.append(
            _label_row(name, mean, dice, [case.scores[name].dice for case in summary.cases])
        )
    whole, found = summary.foreground_mean, foreground_interval(summary)
    dice = Span(mean=whole.dice, low=found.low, high=found.high, count=found.count)
    means = [_mean([score.dice for score in case.scores.values()]) for case in summary.cases]
    return _label_row(FOREGROUND, whole, dice, means), tuple(rows)


def case_rows(summary: Summary, groups: Mapping[str, str] | None = None) -> tuple[CaseRow, ...]:
    """Give the scores of each case, the worst first; cases without a score come last.

    Args:
        summary: The scores.
        groups: By case, what it belongs to, such as the fold that held it out.
    """
    rows = [_case_row(case, (groups or {}).get(case.case_id, "")) for case in summary.cases]
    rows.sort(key=lambda row: (row.dice is None, row.dice or 0.0, row.case_id))
    return _picked(rows)


def with_second(rows: Sequence[CaseRow], second: Summary) -> tuple[CaseRow, ...]:
    """Add the mean Dice of a second prediction to each case that it has."""
    others = {case.case_id: _case_row(case, "").dice for case in second.cases}
    return tuple(replace(row, other_dice=others.get(row.case_id)) for row in rows)


def comparison_facts(found: Comparison, first: str, second: str) -> ComparisonFacts:
    """Give the differences of two predictions by label, the foreground mean last."""
    rows = [_difference_row(name, difference) for name, difference in found.labels.items()]
    rows.append(_difference_row(FOREGROUND, found.foreground))
    return ComparisonFacts(
        first=first,
        second=second,
        rows=tuple(rows),
        first_dice=found.foreground.mean_a,
        second_dice=found.foreground.mean_b,
        only_first=found.only_a,
        only_second=found.only_b,
    )


def choosing_facts(found: Choosing) -> ChoosingFacts:
    """Give the candidates, and what may be expected of the chosen one."""
    return ChoosingFacts(
        candidates=tuple(_candidate(each, found) for each in found.candidates),
        chosen=found.chosen,
        expected_dice=found.expected_dice,
        optimism=found.optimism,
        nnunet=found.nnunet.name,
        rules=tuple(str(rule) for rule in found.best.postprocessing.rules),
    )


def suspect_rows(found: Suspects) -> tuple[SuspectRow, ...]:
    """Give the cases whose label maps may be wrong, worst first."""
    return tuple(
        SuspectRow(
            case_id=row.case_id,
            score=row.score,
            label=row.label,
            reason="; ".join((row.reason, *row.also)),
            where=row.where,
        )
        for row in found.suspects
    )


def plan_facts(plan: Plan) -> PlanFacts:
    """Give the plan in words."""
    return PlanFacts(
        name=plan.name,
        planner=plan.planner,
        memory_gb=plan.memory_gb,
        configurations=tuple(
            (name, _in_words(configuration)) for name, configuration in plan.configurations.items()
        ),
        reasons=tuple(
            Reason(rule=each.rule, given=each.given, result=each.result) for each in plan.decisions
        ),
    )


def data_facts(
    cases: int, channels: Sequence[str], labels: Sequence[str], measured: Fingerprint | None
) -> DataFacts:
    """Give what a dataset holds; the fingerprint knows of spacings and shapes."""
    return DataFacts(
        cases=cases,
        channels=tuple(channels),
        labels=tuple(labels),
        spacing_mm=() if measured is None else _ends(measured.spacings),
        shape=() if measured is None else _ends(measured.shapes),
    )


def trust_row(name: str, found: Confidence) -> Trust:
    """Give what a model's confidence is worth."""
    calibration = found.calibration
    return Trust(
        name=name,
        temperature=None if calibration is None else calibration.temperature,
        ece_before=None if calibration is None else calibration.ece_before,
        ece_after=None if calibration is None else calibration.ece_after,
        pearson=found.quality.pearson,
        spearman=found.quality.spearman,
        cases=found.quality.n,
    )


def run_facts(found: RunReport) -> RunFacts:
    """Give when, where and with what a command ran, and what it wrote."""
    told = {name: found.facts[name] for name in TOLD if name in found.facts}
    execution = told.pop("execution", None)
    if isinstance(execution, dict):
        told["device"] = ", ".join(
            f"{execution[k]}" for k in ("device", "precision") if k in execution
        )
    return RunFacts(
        command=found.command,
        started=found.started,
        seconds=found.seconds,
        exit_code=found.exit_code,
        machine=found.machine,
        versions=found.versions,
        warnings=found.warnings,
        outputs=found.outputs,
        facts=told,
    )


def read_curve(name: str, metrics: str) -> Curve:
    """Read the epochs of a training from the text of its metrics.csv.

    Raises:
        ValueError, KeyError, TypeError, csv.Error: It is no such table, or a figure of it is not
            finite.
    """
    epochs = []
    for row in csv.DictReader(io.StringIO(metrics)):
        labels = {
            key.removeprefix("dice_"): _number(value)
            for key, value in row.items()
            if key and key.startswith("dice_") and key != "dice_average"
        }
        epochs.append(
            EpochRow(
                epoch=int(row["epoch"]),
                lr=_figure(row["lr"]),
                loss=_figure(row["loss"]),
                validation_loss=_figure(row["validation_loss"]),
                dice=_number(row["dice"]),
                dice_average=_number(row["dice_average"]),
                label_dice=labels,
                seconds=_figure(row["seconds"]),
            )
        )
    return Curve(name=name, epochs=tuple(epochs))


def _label_row(name: str, mean: MeanScore, dice: Span, values: Sequence[float | None]) -> LabelRow:
    found = [value for value in values if value is not None]
    return LabelRow(
        name=name,
        dice=dice,
        median=float(np.median(found)) if found else None,
        iou=mean.iou,
        hd95_mm=mean.hd95_mm,
        assd_mm=mean.assd_mm,
        nsd=mean.nsd,
        volume_error=mean.volume_error,
    )


def _case_row(case: CaseScores, group: str) -> CaseRow:
    scores: dict[str, Score] = case.scores
    distances = [score.hd95_mm for score in scores.values() if score.hd95_mm is not None]
    return CaseRow(
        case_id=case.case_id,
        dice=_mean([score.dice for score in scores.values()]),
        label_dice={name: score.dice for name, score in scores.items()},
        hd95_mm=max(distances, default=None),
        group=group,
    )


def _picked(rows: Sequence[CaseRow]) -> tuple[CaseRow, ...]:
    """Mark the worst, median and best of rows that are in order."""
    scored = sum(row.dice is not None for row in rows)
    each = min(PICKED, scored // 3)
    middle = (scored - each) // 2
    picks: dict[int, Pick] = {}
    for i in range(each):
        picks |= {i: "worst", middle + i: "median", scored - 1 - i: "best"}
    return tuple(replace(row, pick=picks.get(i)) for i, row in enumerate(rows))


def _difference_row(name: str, found: Difference) -> DifferenceRow:
    span = found.interval
    return DifferenceRow(
        name=name,
        difference=Span(mean=span.mean, low=span.low, high=span.high, count=span.count),
        p_value=found.p_value,
        wins=found.wins,
        ties=found.ties,
        losses=found.losses,
    )


def _candidate(score: CandidateScore, of: Choosing) -> CandidateRow:
    roles = [
        text
        for text, name in (("chosen", of.chosen), ("nnU-Net's rule", of.nnunet.name))
        if name == score.name
    ]
    return CandidateRow(
        name=score.name,
        dice=Span(mean=score.dice, low=score.low, high=score.high, count=of.cases),
        dice_postprocessed=score.dice_postprocessed,
        role=" and ".join(roles),
    )


def _in_words(configuration: Configuration) -> str:
    after = f", after {configuration.previous}" if configuration.previous else ""
    architecture = configuration.architecture
    network = "" if architecture.called == "plain" else f"{architecture.called} of "
    return (
        f"patches of {by(configuration.patch_size)} voxels at {by(configuration.spacing)} mm, "
        f"{configuration.batch_size} at a time, {network}{architecture.levels} levels; the "
        f"median image has {by(configuration.median_shape)} voxels{after}"
    )


def _ends(values: Sequence[Sequence[float]]) -> tuple[str, str, str]:
    """Give the smallest, median and largest along each axis."""
    table = np.array(values)
    rows = (table.min(axis=0), np.median(table, axis=0), table.max(axis=0))
    small, middle, large = (by(tuple(round(float(v), 3) for v in row)) for row in rows)
    return small, middle, large


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else None


def _number(text: str | None) -> float | None:
    return _figure(text) if text else None


def _figure(text: str) -> float:
    """Read a figure that can be drawn.

    >>> _figure("0.25")
    0.25
    """
    value = float(text)
    if not abs(value) <= LARGEST:
        raise ValueError(f"{text} is no figure that can be drawn")
    return value
