"""Stage 6, predictions against references: overlap and surface scores, their means, summary.json.

`score_case` compares two label maps, `summarize` takes the means over cases. The pipeline saves a
summary as summary.json in nnU-Net's layout, `to_nnunet`, and reads it back by `from_nnunet`.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnseg import record
from nnseg.axes import Segmentation, Spacing
from nnseg.errors import DataError, UsageError
from nnseg.image.surface import robust_hausdorff, surface_dice, surface_distances
from nnseg.labels import Labels

TOLERANCE_MM = 1.0  # surfaces this near to each other count as one in NSD
SLAB_VOXELS = 2**20  # counted at once, so that the counting needs no copy of the volume


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How one label or region of one case was found; voxel counts and surface distances.

    A metric without a value is None. The distances have none where they were not asked for or
    where both masks are empty. Where exactly one is empty `nsd` is 0 and `hd95_mm` is None, as no
    finite distance exists.
    """

    tp: int
    fp: int
    fn: int
    tn: int
    hd95_mm: float | None = None  # 95th percentile of the surface distances
    nsd: float | None = None  # normalized surface Dice, share of the surfaces within the tolerance

    @property
    def dice(self) -> float | None:
        """2 tp / (2 tp + fp + fn); None where both masks are empty, 0 where only one is."""
        union = self.tp + self.fp + self.fn
        return 2 * self.tp / (self.tp + union) if union else None

    @property
    def iou(self) -> float | None:
        """Intersection over union; None where both masks are empty, 0 where only one is."""
        union = self.tp + self.fp + self.fn
        return self.tp / union if union else None

    @property
    def n_pred(self) -> int:
        """Voxels of the prediction."""
        return self.tp + self.fp

    @property
    def n_ref(self) -> int:
        """Voxels of the reference."""
        return self.tp + self.fn


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseScores:
    """The scores of one case by name of the foreground label or region."""

    case_id: str
    reference_file: str
    prediction_file: str
    scores: dict[str, Score]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanScore:
    """Means of the scores that have a value: over cases for a label, over labels for foreground.

    The counts say over how many each mean is; that of `iou` is `dice_count`. Where exactly one
    mask of a case is empty it counts for `nsd` and not for `hd95_mm`, so that
    `nsd_count - hd95_count` is the number of cases without a finite distance.
    """

    dice: float | None
    iou: float | None
    tp: float
    fp: float
    fn: float
    tn: float
    hd95_mm: float | None
    nsd: float | None
    dice_count: int
    hd95_count: int
    nsd_count: int

    @property
    def n_pred(self) -> float:
        """Mean of the voxels of the predictions."""
        return self.tp + self.fp

    @property
    def n_ref(self) -> float:
        """Mean of the voxels of the references."""
        return self.tp + self.fn


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The scores of all cases and their means."""

    cases: tuple[CaseScores, ...]
    mean: dict[str, MeanScore]  # by name of the label or region
    foreground_mean: MeanScore
    tolerance_mm: float  # of `nsd`


def score_case(
    prediction: Segmentation,
    reference: Segmentation,
    labels: Labels,
    spacing: Spacing,
    *,
    tolerance_mm: float = TOLERANCE_MM,
    surface: bool = True,
) -> dict[str, Score]:
    """Compare two label maps, for each foreground label or region by name.

    Voxels whose reference is `labels.ignore` do not count; for the surfaces they are outside of
    both masks.

    Args:
        prediction: (z, y, x). A z of 1 is a 2D image, whose contours take the place of surfaces.
        reference: (z, y, x), of the same shape.
        labels: What the integers mean.
        spacing: mm per voxel, (z, y, x).
        tolerance_mm: Distance up to which surfaces count as matching in NSD.
        surface: Whether to measure HD95 and NSD, which take most of the time.

    Raises:
        DataError: The shapes differ, or a value is none of the labels.
        UsageError: The tolerance is negative.
    """
    if not tolerance_mm >= 0:
        raise UsageError(f"tolerance_mm is {tolerance_mm}; give a distance in mm of 0 or more")
    scores = score_table(confusion_table(prediction, reference, labels), labels)
    if not surface:
        return scores
    boxes = [_boxes(prediction, labels), _boxes(reference, labels)]
    measured = dict(scores)
    for name, values in labels.foreground.items():
        if scores[name].dice is None:
            continue
        found = [of_value[value] for of_value in boxes for value in values]
        box = _wide_union([one for one in found if one is not None])
        predicted = np.isin(prediction[box], values)
        if labels.ignore is not None:
            predicted &= reference[box] != labels.ignore
        distances = surface_distances(predicted, np.isin(reference[box], values), spacing)
        measured[name] = dataclasses.replace(
            scores[name],
            hd95_mm=_finite(robust_hausdorff(distances)),
            nsd=_finite(surface_dice(distances, tolerance_mm)),
        )
    return measured


def confusion_table(
    prediction: Segmentation, reference: Segmentation, labels: Labels
) -> NDArray[np.int64]:
    """Count the voxels of each pair of labels, (reference label, predicted label).

    Rows and columns are in the order of `labels.values`. Voxels whose reference is
    `labels.ignore` do not count. Every overlap score of the case can be had from this table.

    Args:
        prediction: (z, y, x).
        reference: (z, y, x), of the same shape.
        labels: What the integers mean; the table has a row and a column for each.

    Raises:
        DataError: The shapes differ, or a value is none of the labels.
    """
    if prediction.shape != reference.shape:
        raise DataError(
            f"prediction {prediction.shape} and reference {reference.shape} differ in shape "
            "(z, y, x); predict the image that the reference was drawn on"
        )
    prediction = _positions("prediction", prediction, labels)
    reference = _positions("reference", reference, labels)
    size = len(labels.values)
    table = np.zeros(size * size, dtype=np.int64)
    step = max(1, SLAB_VOXELS * len(reference) // max(1, reference.size))
    for start in range(0, len(reference), step):
        pairs = reference[start : start + step].astype(np.intp) * size
        pairs += prediction[start : start + step].astype(np.intp)
        table += np.bincount(pairs.ravel(), minlength=size * size)
    square = table.reshape(size, size)
    if labels.ignore is not None:
        square[-1] = 0  # it is the largest label
    return square


def score_table(table: NDArray[np.int64], labels: Labels) -> dict[str, Score]:
    """Give the overlap scores by name of the foreground label or region; no surface distances.

    Args:
        table: Of `confusion_table`, (reference label, predicted label).
        labels: What the rows and columns of the table mean.
    """
    total = int(table.sum())
    scores = {}
    for name, values in labels.consecutive.foreground.items():
        rows = table[list(values)]
        tp = int(rows[:, list(values)].sum())
        fn = int(rows.sum()) - tp
        fp = int(table[:, list(values)].sum()) - tp
        scores[name] = Score(tp=tp, fp=fp, fn=fn, tn=total - tp - fp - fn)
    return scores


def summarize(
    cases: Sequence[CaseScores], labels: Labels, *, tolerance_mm: float = TOLERANCE_MM
) -> Summary:
    """Take the means over cases for each label or region, and over those for the foreground.

    Cases without a value are left out of a label's mean, labels without a value out of the
    foreground mean. nnU-Net's foreground mean is nan as soon as one label has no value; ours is
    the same number wherever nnU-Net has one.

    Args:
        cases: At least one.
        labels: What the cases were scored for.
        tolerance_mm: What `score_case` was given.

    Raises:
        DataError: There is no case, one occurs twice, or its scores are of other labels.
    """
    names = list(labels.foreground)
    if not cases:
        raise DataError("no case was scored, so there is nothing to summarize; give some cases")
    seen: set[str] = set()
    for case in cases:
        if case.case_id in seen:
            raise DataError(f"case {case.case_id}: was scored twice; give each case once")
        seen.add(case.case_id)
        if set(case.scores) != set(names):
            raise DataError(
                f"case {case.case_id}: has scores of {sorted(case.scores)}, but the labels are "
                f"{sorted(names)}; evaluate it again with these labels"
            )
    mean = {name: _mean_score([case.scores[name] for case in cases]) for name in names}
    return Summary(
        cases=tuple(cases),
        mean=mean,
        foreground_mean=_mean_score(list(mean.values())),
        tolerance_mm=tolerance_mm,
    )


def to_nnunet(summary: Summary, labels: Labels) -> dict[str, Any]:
    """Give a summary as plain JSON values in the layout of nnU-Net's summary.json.

    Labels are keyed as "1" and regions as "(1, 2)". Beside nnU-Net's there are these keys: HD95 in
    mm and NSD among the metrics; `case_id` of a case; `names`, which leads from a label's name to
    its key; `cases_counted` and `labels_counted`, over how many values the means of Dice (and
    IoU), HD95 and NSD are; and `nsd_tolerance_mm`. A metric without a value is null, where
    nnU-Net writes NaN, which is not JSON. `from_nnunet` is the way back.
    """
    keys = _keys(labels)
    cases = [
        {
            "case_id": case.case_id,
            "reference_file": case.reference_file,
            "prediction_file": case.prediction_file,
            "metrics": {keys[name]: _metrics(score) for name, score in case.scores.items()},
        }
        for case in summary.cases
    ]
    return {
        "foreground_mean": _metrics(summary.foreground_mean),
        "mean": {keys[name]: _metrics(mean) for name, mean in summary.mean.items()},
        "labels_counted": _counts(summary.foreground_mean),
        "cases_counted": {keys[name]: _counts(mean) for name, mean in summary.mean.items()},
        "names": keys,
        "nsd_tolerance_mm": summary.tolerance_mm,
        "metric_per_case": cases,
    }


def from_nnunet(data: Any, labels: Labels, where: str) -> Summary:
    """Build the summary again from the JSON values that `to_nnunet` gave.

    The means are taken again from the cases. nnU-Net's own files lack the keys that `to_nnunet`
    adds and are refused.

    Args:
        data: Plain JSON values.
        labels: What the cases were scored for.
        where: The file, for the message of an error.

    Raises:
        DataError: The values have another layout, or are of other labels.
    """
    saved = record.parse(_SummaryJson, data, where)
    if saved.names != (keys := _keys(labels)):
        raise DataError(
            f"{where}: is a summary of the labels {saved.names}, but the dataset has {keys}; "
            "evaluate again"
        )
    cases = []
    for case in saved.metric_per_case:
        if missing := set(keys.values()) - set(case.metrics):
            raise DataError(
                f"{where}: case {case.case_id} has no metrics of {sorted(missing)}; evaluate again"
            )
        scores = {name: _score(case.metrics[key]) for name, key in keys.items()}
        cases.append(
            CaseScores(
                case_id=case.case_id,
                reference_file=case.reference_file,
                prediction_file=case.prediction_file,
                scores=scores,
            )
        )
    try:
        return summarize(cases, labels, tolerance_mm=saved.nsd_tolerance_mm)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _MetricsJson:
    """One label's metrics in one case, under nnU-Net's names."""

    Dice: float | None
    IoU: float | None
    TP: int
    FP: int
    FN: int
    TN: int
    n_pred: int
    n_ref: int
    HD95: float | None
    NSD: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _CaseJson:
    """One case of summary.json; the metrics are by key of the label."""

    case_id: str
    reference_file: str
    prediction_file: str
    metrics: dict[str, _MetricsJson]


@dataclass(frozen=True, slots=True, kw_only=True)
class _SummaryJson:
    """What summary.json holds; the fields of type Any follow from the cases."""

    foreground_mean: Any
    mean: Any
    labels_counted: Any
    cases_counted: Any
    names: dict[str, str]
    nsd_tolerance_mm: float
    metric_per_case: tuple[_CaseJson, ...]


def _keys(labels: Labels) -> dict[str, str]:
    """Give nnU-Net's key of each foreground label or region: "1", or "(1, 2)" for a region."""
    return {
        name: str(labels.labels[name] if labels.has_regions else values[0])
        for name, values in labels.foreground.items()
    }


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
        "NSD": score.nsd,
    }


def _score(saved: _MetricsJson) -> Score:
    return Score(
        tp=saved.TP, fp=saved.FP, fn=saved.FN, tn=saved.TN, hd95_mm=saved.HD95, nsd=saved.NSD
    )


def _counts(mean: MeanScore) -> dict[str, int]:
    return {"Dice": mean.dice_count, "HD95": mean.hd95_count, "NSD": mean.nsd_count}


def _mean_score(scores: Sequence[Score] | Sequence[MeanScore]) -> MeanScore:
    dice, dice_count = _mean([score.dice for score in scores])
    iou, _ = _mean([score.iou for score in scores])
    hd95_mm, hd95_count = _mean([score.hd95_mm for score in scores])
    nsd, nsd_count = _mean([score.nsd for score in scores])
    return MeanScore(
        dice=dice,
        iou=iou,
        tp=float(np.mean([score.tp for score in scores])),
        fp=float(np.mean([score.fp for score in scores])),
        fn=float(np.mean([score.fn for score in scores])),
        tn=float(np.mean([score.tn for score in scores])),
        hd95_mm=hd95_mm,
        nsd=nsd,
        dice_count=dice_count,
        hd95_count=hd95_count,
        nsd_count=nsd_count,
    )


def _mean(values: Sequence[float | None]) -> tuple[float | None, int]:
    """Give the mean of the values there are, None if there is none, and their number."""
    found = [value for value in values if value is not None]
    return (float(np.mean(found)) if found else None), len(found)


def _positions(what: str, segmentation: Segmentation, labels: Labels) -> Segmentation:
    try:
        return labels.to_positions(segmentation)
    except DataError as error:
        raise DataError(f"{what} {error}") from None


def _boxes(
    segmentation: Segmentation, labels: Labels
) -> tuple[tuple[slice, slice, slice] | None, ...]:
    """Give the box of each label, by its integer; None where it is the background or absent."""
    return (None, *ndimage.find_objects(segmentation, max_label=labels.values[-1]))


def _wide_union(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """Give a box around `boxes`, one voxel wider so that a flat object keeps its z neighbours."""
    return tuple(
        slice(max(0, min(s.start for s in axis) - 1), max(s.stop for s in axis) + 1)
        for axis in zip(*boxes, strict=True)
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
