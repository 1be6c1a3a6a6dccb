"""The metrics of a score by name, which way each is better, and how sure its means are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from nnseg.evaluate import MeanScore, Score, Summary
from nnseg.registry import Registry
from nnseg.scores.detection import Detection, MeanDetection
from nnseg.scores.intervals import Interval, mean_interval, table_interval

Value: TypeAlias = float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric: its value of a case's label, and of the mean over cases or labels.

    A ratio of components is taken of those of all cases together in the mean over cases; compared
    are the ratios of single cases, which `case_title` therefore names otherwise.
    """

    title: str
    of_score: Callable[[Score], Value]
    of_mean: Callable[[MeanScore], Value]
    looked_at: Callable[[Score], bool]  # whether it was measured, value or not; False: none tells
    count: Callable[[MeanScore], int | None]  # how many values the mean is of, where that is known
    case_title: str = ""  # "" is `title`
    lower_is_better: bool = False
    sees_made_up: bool = True  # whether it gets worse by what is found where there is nothing
    by_match_iou: bool = False  # whether it follows from the IoU that lesions match from
    digits: int = 4  # behind the point, in tables

    def is_measured(self, summary: Summary) -> bool:
        """Whether a result has this metric: a value, or the reason why there can be none."""
        scores = [score for case in summary.cases for score in case.scores.values()]
        return any(map(self.looked_at, scores))


def _component_metric(
    title: str,
    of_case: Callable[[Detection], Value],
    of_cases: Callable[[MeanDetection], Value],
    **more: Any,
) -> Metric:
    return Metric(
        title=title,
        of_score=lambda s: None if s.detection is None else of_case(s.detection),
        of_mean=lambda m: None if m.detection is None else of_cases(m.detection),
        looked_at=lambda s: s.detection is not None,
        count=lambda m: None,
        **more,
    )


METRICS = Registry[Metric](
    "metric",
    dice=Metric(
        title="Dice",
        of_score=lambda s: s.dice,
        of_mean=lambda m: m.dice,
        looked_at=lambda s: True,
        count=lambda m: m.dice_count,
    ),
    iou=Metric(
        title="IoU",
        of_score=lambda s: s.iou,
        of_mean=lambda m: m.iou,
        looked_at=lambda s: True,
        count=lambda m: m.dice_count,
    ),
    hd95=Metric(
        title="HD95 mm",
        of_score=lambda s: s.hd95_mm,
        of_mean=lambda m: m.hd95_mm,
        looked_at=lambda s: s.nsd is not None,
        count=lambda m: m.hd95_count,
        lower_is_better=True,
        digits=2,
    ),
    assd=Metric(
        title="ASSD mm",
        of_score=lambda s: s.assd_mm,
        of_mean=lambda m: m.assd_mm,
        # results of before it was there have the other distance alone
        looked_at=lambda s: s.nsd is not None and (s.assd_mm is None) == (s.hd95_mm is None),
        count=lambda m: m.hd95_count,
        lower_is_better=True,
        digits=3,
    ),
    nsd=Metric(
        title="NSD",
        of_score=lambda s: s.nsd,
        of_mean=lambda m: m.nsd,
        looked_at=lambda s: s.nsd is not None,
        count=lambda m: m.nsd_count,
    ),
    volume=Metric(
        title="|volume error|",
        of_score=lambda s: None if s.volume_error is None else abs(s.volume_error),
        of_mean=lambda m: m.absolute_volume_error,
        looked_at=lambda s: True,
        count=lambda m: m.volume_count,
        lower_is_better=True,
    ),
    f1=_component_metric(
        *("F1", lambda d: d.f1, lambda m: m.f1),
        case_title="F1 of single cases",
        by_match_iou=True,
    ),
    sensitivity=_component_metric(
        *("sensitivity", lambda d: d.sensitivity, lambda m: m.sensitivity),
        case_title="sensitivity in single cases",
        sees_made_up=False,
        by_match_iou=True,
    ),
    false_positives=_component_metric(
        *("FP/case", lambda d: float(d.spurious), lambda m: m.false_positives),
        lower_is_better=True,
        by_match_iou=True,
    ),
    pq=_component_metric(
        *("PQ", lambda d: d.panoptic_quality, lambda m: m.panoptic_quality),
        case_title="PQ of single cases",
    ),
)


def label_intervals(summary: Summary, metric: str = "dice") -> dict[str, Interval]:
    """Give the mean over cases of a metric of METRICS, with its interval, for each label."""
    return {name: label_interval(summary, name, metric) for name in summary.mean}


def label_interval(summary: Summary, name: str, metric: str = "dice") -> Interval:
    """Give that of one label, by its name."""
    value = METRICS[metric].of_score
    return mean_interval([value(case.scores[name]) for case in summary.cases])


def foreground_interval(summary: Summary, metric: str = "dice") -> Interval:
    """Give the mean over labels of a metric's means over cases, with its interval.

    Cases are drawn with all of their labels. Of metrics of components it is the mean over cases,
    while `MeanScore.detection` counts the components of all cases alike.
    """
    value = METRICS[metric].of_score
    return table_interval(
        [[value(case.scores[name]) for name in summary.mean] for case in summary.cases]
    )
