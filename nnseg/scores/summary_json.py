"""summary.json: scores in nnU-Net's layout, with what it lacks beside it; and back.

`to_nnunet` and `from_nnunet` are each other's way back. Files of nnU-Net itself are read, too, and
those that earlier versions of ours wrote.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from nnseg import record
from nnseg.errors import DataError
from nnseg.evaluate import (
    TOLERANCE_MM,
    CaseScores,
    MeanScore,
    Score,
    Summary,
    by_group,
    summarize_names,
)
from nnseg.labels import Labels
from nnseg.parallel import one_blas_thread
from nnseg.scores.detection import Detection, Froc
from nnseg.scores.intervals import DRAWS, LEVEL
from nnseg.scores.metrics import foreground_interval, label_interval
from nnseg.volume import split_ending

INTERVALS = {"Dice": "dice", "IoU": "iou", "HD95": "hd95", "ASSD": "assd", "NSD": "nsd"}


def to_nnunet(summary: Summary, labels: Labels) -> dict[str, Any]:
    """Give a summary as plain JSON values in the layout of nnU-Net's summary.json.

    Labels are keyed as "1" and regions as "(1, 2)". Beside nnU-Net's there are these keys: HD95
    and ASSD in mm, NSD and VolumeError among the metrics; `case_id` of a case; `names`, which leads
    from a label's name to its key; `cases_counted` and `labels_counted`, over how many values the
    means of Dice (and IoU), HD95 (and ASSD), NSD and VolumeError are; `intervals` of the means;
    `nsd_tolerance_mm`; `missing_predictions`, the ids of references that were not predicted; and,
    where they were asked for, `detection` and `groups`. A metric without a value is null, where
    nnU-Net writes NaN, which is not JSON. `from_nnunet` is the way back.
    """
    keys = _keys(labels)
    data = {
        **_means(summary, keys),
        "names": keys,
        "nsd_tolerance_mm": summary.tolerance_mm,
        "missing_predictions": list(summary.missing),
        "intervals": _intervals(summary, keys),
    }
    if summary.match_iou is not None:
        data["detection"] = {
            "match_iou": summary.match_iou,
            "foreground_mean": _mean_detection(summary.foreground_mean),
            "mean": {keys[name]: _mean_detection(mean) for name, mean in summary.mean.items()},
        }
    if summary.groups:
        data["groups"] = {
            group: {"case_ids": list(summary.groups[group]), **_means(its, keys)}
            for group, its in by_group(summary).items()
        }
    return data | {"metric_per_case": [_case(case, keys) for case in summary.cases]}


def from_nnunet(data: Any, labels: Labels | None, where: str) -> Summary:
    """Build the summary again from the JSON values that `to_nnunet` gave, or nnU-Net.

    The means are taken again from the cases. nnU-Net's files say nothing of surfaces; there, a
    case is called as its prediction's file.

    Args:
        data: Plain JSON values; None stands for NaN.
        labels: What the cases were scored for. None takes the names that the file has, of nnU-Net's
            the keys themselves.
        where: The file, for the message of an error.

    Raises:
        DataError: The values have another layout, or are of other labels.
    """
    if isinstance(data, dict) and "nsd_tolerance_mm" not in data:
        data = _with_our_keys(data, labels, where)
    saved = record.parse(_SummaryJson, data, where)
    keys = saved.names if labels is None else _keys(labels)
    if saved.names != keys:
        raise DataError(
            f"{where}: is a summary of the labels {saved.names}, but the dataset has {keys}; "
            "evaluate again"
        )
    cases = [_case_scores(case, keys, where) for case in saved.metric_per_case]
    try:
        return summarize_names(
            cases,
            list(keys),
            tolerance_mm=saved.nsd_tolerance_mm,
            match_iou=saved.detection.match_iou if saved.detection else None,
            groups={name: group.case_ids for name, group in saved.groups.items()},
            missing=saved.missing_predictions,
        )
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _MetricsJson:
    """One label's metrics in one case, under nnU-Net's names; those of type Any follow."""

    TP: int
    FP: int
    FN: int
    TN: int
    Dice: Any = None
    IoU: Any = None
    n_pred: Any = None
    n_ref: Any = None
    VolumeError: Any = None
    HD95: float | None = None
    NSD: float | None = None
    ASSD: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _DetectionJson:
    """One label's components in one case; the fields of type Any follow from the others."""

    found: int
    missed: int
    spurious: int
    iou_sum: float
    panoptic_found: int
    panoptic_iou_sum: float
    found_confidences: tuple[float, ...] | None = None
    spurious_confidences: tuple[float, ...] | None = None
    F1: Any = None
    Sensitivity: Any = None
    Precision: Any = None
    PQ: Any = None
    SQ: Any = None
    RQ: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _CaseJson:
    """One case of summary.json; metrics and components are by key of the label."""

    case_id: str
    reference_file: str
    prediction_file: str
    metrics: dict[str, _MetricsJson]
    detection: dict[str, _DetectionJson] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _GroupJson:
    """A group of cases; the fields of type Any follow from the cases."""

    case_ids: tuple[str, ...]
    foreground_mean: Any = None
    mean: Any = None
    labels_counted: Any = None
    cases_counted: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _MatchingJson:
    """How components were matched; the fields of type Any follow from the cases."""

    match_iou: float
    foreground_mean: Any = None
    mean: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _SummaryJson:
    """What summary.json holds; the fields of type Any follow from the cases."""

    metric_per_case: tuple[_CaseJson, ...]
    names: dict[str, str]
    nsd_tolerance_mm: float
    missing_predictions: tuple[str, ...] = ()
    foreground_mean: Any = None
    mean: Any = None
    labels_counted: Any = None
    cases_counted: Any = None
    intervals: Any = None
    detection: _MatchingJson | None = None
    groups: dict[str, _GroupJson] = field(default_factory=dict)


def _with_our_keys(data: dict[str, Any], labels: Labels | None, where: str) -> dict[str, Any]:
    """Give what a file of nnU-Net holds with the keys that only ours have."""
    cases, mean = data.get("metric_per_case"), data.get("mean")
    if not isinstance(mean, dict) or not isinstance(cases, list):
        raise DataError(f"{where}: is no summary of scores; evaluate again")
    keys = data.get("names", {key: key for key in mean if key != "0"})
    if labels is not None:
        keys = _keys(labels)
    named = []
    for case in cases:
        file = case.get("prediction_file") if isinstance(case, dict) else None
        if not isinstance(file, str):
            raise DataError(f"{where}: a case has no prediction_file; evaluate again")
        named.append({"case_id": split_ending(PurePosixPath(file).name)[0], **case})
    known = {"foreground_mean": data.get("foreground_mean"), "mean": mean}
    return known | {
        "names": keys,
        "nsd_tolerance_mm": TOLERANCE_MM,
        "metric_per_case": named,
    }


def _case_scores(case: _CaseJson, keys: Mapping[str, str], where: str) -> CaseScores:
    for found in (case.metrics, case.detection):
        if found is not None and (missing := set(keys.values()) - set(found)):
            raise DataError(
                f"{where}: case {case.case_id} has no metrics of {sorted(missing)}; evaluate again"
            )
    return CaseScores(
        case_id=case.case_id,
        reference_file=case.reference_file,
        prediction_file=case.prediction_file,
        scores={
            name: _score(case.metrics[key], case.detection[key] if case.detection else None)
            for name, key in keys.items()
        },
    )


def _score(saved: _MetricsJson, components: _DetectionJson | None) -> Score:
    detection = None
    if components is not None:
        detection = Detection(
            found=components.found,
            missed=components.missed,
            spurious=components.spurious,
            iou_sum=components.iou_sum,
            panoptic_found=components.panoptic_found,
            panoptic_iou_sum=components.panoptic_iou_sum,
            found_confidences=components.found_confidences,
            spurious_confidences=components.spurious_confidences,
        )
    return Score(
        tp=saved.TP,
        fp=saved.FP,
        fn=saved.FN,
        tn=saved.TN,
        hd95_mm=saved.HD95,
        nsd=saved.NSD,
        assd_mm=saved.ASSD,
        detection=detection,
    )


def _keys(labels: Labels) -> dict[str, str]:
    """Give nnU-Net's key of each foreground label or region: "1", or "(1, 2)" for a region."""
    return {
        name: str(labels.labels[name] if labels.has_regions else values[0])
        for name, values in labels.foreground.items()
    }


def _means(summary: Summary, keys: Mapping[str, str]) -> dict[str, Any]:
    return {
        "foreground_mean": _metrics(summary.foreground_mean),
        "mean": {keys[name]: _metrics(mean) for name, mean in summary.mean.items()},
        "labels_counted": _counts(summary.foreground_mean),
        "cases_counted": {keys[name]: _counts(mean) for name, mean in summary.mean.items()},
    }


def _case(case: CaseScores, keys: Mapping[str, str]) -> dict[str, Any]:
    data = {
        "case_id": case.case_id,
        "reference_file": case.reference_file,
        "prediction_file": case.prediction_file,
        "metrics": {keys[name]: _metrics(score) for name, score in case.scores.items()},
    }
    components = {
        keys[name]: _components(score.detection)
        for name, score in case.scores.items()
        if score.detection is not None
    }
    return data | ({"detection": components} if components else {})


def _metrics(score: Score | MeanScore) -> dict[str, float | None]:
    return {
        "Dice": score.dice,
        "IoU": score.iou,
        "TP": score.tp,
        "FP": score.fp,
        "FN": score.fn,
        "TN": score.tn,
        "n_pred": score.n_pred,
        "n_ref": score.n_ref,
        "HD95": score.hd95_mm,
        "ASSD": score.assd_mm,
        "NSD": score.nsd,
        "VolumeError": score.volume_error,
    }


def _counts(mean: MeanScore) -> dict[str, int]:
    return {
        "Dice": mean.dice_count,
        "HD95": mean.hd95_count,
        "NSD": mean.nsd_count,
        "VolumeError": mean.volume_count,
    }


def _components(detection: Detection) -> dict[str, Any]:
    data: dict[str, Any] = {
        "found": detection.found,
        "missed": detection.missed,
        "spurious": detection.spurious,
        "iou_sum": detection.iou_sum,
        "panoptic_found": detection.panoptic_found,
        "panoptic_iou_sum": detection.panoptic_iou_sum,
        "F1": detection.f1,
        "Sensitivity": detection.sensitivity,
        "Precision": detection.precision,
        "PQ": detection.panoptic_quality,
        "SQ": detection.segmentation_quality,
        "RQ": detection.recognition_quality,
    }
    if detection.found_confidences is not None and detection.spurious_confidences is not None:
        data["found_confidences"] = list(detection.found_confidences)
        data["spurious_confidences"] = list(detection.spurious_confidences)
    return data


def _mean_detection(mean: MeanScore) -> dict[str, Any] | None:
    found = mean.detection
    if found is None:
        return None
    curve = found.curve
    return {
        "F1": found.f1,
        "Sensitivity": found.sensitivity,
        "Precision": found.precision,
        "FalsePositivesPerCase": found.false_positives,
        "PQ": found.panoptic_quality,
        "SQ": found.segmentation_quality,
        "MeanCaseF1": found.case_f1,
        "FROC": found.froc,
        **({} if curve is None else {"FROCCurve": _curve(curve)}),
    }


def _curve(curve: Froc) -> dict[str, Any]:
    return {
        "FalsePositivesPerCase": list(curve.false_positives),
        "Sensitivity": list(curve.sensitivities),
        "Threshold": list(curve.thresholds),
    }


@one_blas_thread()  # the products are small, and threads would wait for each other
def _intervals(summary: Summary, keys: Mapping[str, str]) -> dict[str, Any]:
    """Give the bootstrap intervals of the means, [low, high], null where there is none."""
    found: dict[str, Any] = {
        "level": LEVEL,
        "draws": DRAWS,
        "foreground_mean": {},
        "mean": {key: {} for key in keys.values()},
    }
    for title, metric in INTERVALS.items():
        whole = foreground_interval(summary, metric)
        if whole.count:
            found["foreground_mean"][title] = [whole.low, whole.high]
    for name, key in keys.items():  # a label's metrics together: mostly they have the same cases
        for title in found["foreground_mean"]:
            interval = label_interval(summary, name, INTERVALS[title])
            found["mean"][key][title] = [interval.low, interval.high]
    return found
