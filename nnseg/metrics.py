"""The metrics of a score by name, which way each is better, and how sure its means are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from nnseg.detection import Detection, MeanDetection
from nnseg.evaluate import MeanScore, Score, Summary
from nnseg.intervals import Interval, mean_interval, table_interval
from nnseg.registry import Registry

Value: TypeAlias = float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric: its value of a case's label, and of the mean over cases or labels."""

    title: str
    of_score: Callable[[Score], Value]
    of_mean: Callable[[MeanScore], Value]
    lower_is_better: bool = False
    digits: int = 4  # behind the point, in tables


def _component_metric(
    title: str,
    of_case: Callable[[Detection], Value],
    of_cases: Callable[[MeanDetection], Value],
    *,
    lower_is_better: bool = False,
) -> Metric:
    return Metric(
        title=title,
        of_score=lambda s: None if s.detection is None else of_case(s.detection),
        of_mean=lambda m: None if m.detection is None else of_cases(m.detection),
        lower_is_better=lower_is_better,
    )


METRICS = Registry[Metric](
    "metric",
    dice=Metric(title="Dice", of_score=lambda s: s.dice, of_mean=lambda m: m.dice),
    iou=Metric(title="IoU", of_score=lambda s: s.iou, of_mean=lambda m: m.iou),
    hd95=Metric(
        title="HD95 mm",
        of_score=lambda s: s.hd95_mm,
        of_mean=lambda m: m.hd95_mm,
        lower_is_better=True,
        digits=2,
    ),
    assd=Metric(
        title="ASSD mm",
        of_score=lambda s: s.assd_mm,
        of_mean=lambda m: m.assd_mm,
        lower_is_better=True,
        digits=3,
    ),
    nsd=Metric(title="NSD", of_score=lambda s: s.nsd, of_mean=lambda m: m.nsd),
    volume=Metric(
        title="|volume error|",
        of_score=lambda s: None if s.volume_error is None else abs(s.volume_error),
        of_mean=lambda m: m.absolute_volume_error,
        lower_is_better=True,
    ),
    f1=_component_metric("F1", lambda d: d.f1, lambda m: m.f1),
    sensitivity=_component_metric("sensitivity", lambda d: d.sensitivity, lambda m: m.sensitivity),
    false_positives=_component_metric(
        "FP/case", lambda d: float(d.spurious), lambda m: m.false_positives, lower_is_better=True
    ),
    pq=_component_metric("PQ", lambda d: d.panoptic_quality, lambda m: m.panoptic_quality),
)


def label_intervals(summary: Summary, metric: str = "dice") -> dict[str, Interval]:
    """Give the mean over cases of a metric of METRICS, with its interval, for each label."""
    value = METRICS[metric].of_score
    return {
        name: mean_interval([value(case.scores[name]) for case in summary.cases])
        for name in summary.mean
    }


def foreground_interval(summary: Summary, metric: str = "dice") -> Interval:
    """Give the mean over labels of a metric's means over cases, with its interval.

    Cases are drawn with all of their labels. Of metrics of components it is the mean over cases,
    while `MeanScore.detection` counts the components of all cases alike.
    """
    value = METRICS[metric].of_score
    return table_interval(
        [[value(case.scores[name]) for name in summary.mean] for case in summary.cases]
    )
