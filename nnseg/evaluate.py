"""Stage 6, predictions against references: overlap, surfaces, lesions, and their means.

`score_case` compares two label maps, `summarize` takes the means over cases, `by_group` those of
each group of cases. A summary is kept as summary.json, in the layout of
`nnseg.scores.summary_json`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Mask, Segmentation, Spacing
from nnseg.errors import DataError, UsageError
from nnseg.image.pairs import count_pairs
from nnseg.labels import Labels
from nnseg.scores.detection import (
    Detection,
    MeanDetection,
    detect,
    mean_over_cases,
    mean_over_labels,
)

TOLERANCE_MM = 1.0  # surfaces this near to each other count as one in NSD
_ONE_VOXEL = (slice(0, 1),) * 3  # where a label is looked at that is nowhere

# The name of a label or region to its probability at each voxel, (z, y, x).
Confidence: TypeAlias = Callable[[str], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How one label or region of one case was found: voxel counts, surface distances, components.

    A metric without a value is None. The distances have none where they were not asked for or
    where both masks are empty. Where exactly one is empty `nsd` is 0, and `hd95_mm` and `assd_mm`
    are None, as no finite distance exists.
    """

    tp: int
    fp: int
    fn: int
    tn: int
    hd95_mm: float | None = None  # 95th percentile of the surface distances
    nsd: float | None = None  # normalized surface Dice, share of the surfaces within the tolerance
    assd_mm: float | None = None  # average symmetric surface distance
    detection: Detection | None = None  # of connected components; None where not asked for

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
    def volume_error(self) -> float | None:
        """(predicted - true) / true volume; None where the reference is empty.

        It is positive where too much was predicted, and -1 where nothing was.
        """
        return (self.n_pred - self.n_ref) / self.n_ref if self.n_ref else None

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

    The counts say over how many each mean is; that of `iou` is `dice_count`, that of `assd_mm`
    `hd95_count`. Where exactly one mask of a case is empty it counts for `nsd` and not for
    `hd95_mm`, so that `nsd_count - hd95_count` is the number of cases without a finite distance.
    """

    dice: float | None
    iou: float | None
    tp: float
    fp: float
    fn: float
    tn: float
    n_pred: float
    n_ref: float
    hd95_mm: float | None
    nsd: float | None
    dice_count: int
    hd95_count: int
    nsd_count: int
    assd_mm: float | None = None
    volume_error: float | None = None  # signed: what is too much makes up for what is too little
    absolute_volume_error: float | None = None
    volume_count: int = 0  # cases whose reference is not empty
    detection: MeanDetection | None = None  # None where it was not asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The scores of all cases and their means."""

    cases: tuple[CaseScores, ...]
    mean: dict[str, MeanScore]  # by name of the label or region
    foreground_mean: MeanScore
    tolerance_mm: float  # of `nsd`
    match_iou: float | None = None  # of `detection`; None where it was not asked for
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)  # name to ids, such as sites
    missing: tuple[str, ...] = ()  # ids of references that were not predicted


def score_case(
    prediction: Segmentation,
    reference: Segmentation,
    labels: Labels,
    spacing: Spacing,
    *,
    tolerance_mm: float = TOLERANCE_MM,
    surface: bool = True,
    match_iou: float | None = None,
    confidence: Confidence | None = None,
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
        surface: Whether to measure HD95, ASSD and NSD, which take most of the time.
        match_iou: From which IoU on a component of the prediction has found one of the reference;
            None does not look at components.
        confidence: Gives the probability of a label or region at each voxel, (z, y, x), for the
            confidence of components; None where it is not known.

    Raises:
        DataError: The shapes differ, or a value is none of the labels.
        UsageError: The tolerance is no distance, or `match_iou` no share over 0 and up to 1.
    """
    check_tolerance(tolerance_mm)
    scores = score_table(confusion_table(prediction, reference, labels), labels)
    if not surface and match_iou is None:
        return scores
    boxes = [_boxes(prediction, labels), _boxes(reference, labels)]
    measured = {}
    for name, values in labels.foreground.items():
        found = [of_value[value] for of_value in boxes for value in values]
        box = _wide_union([one for one in found if one is not None] or [_ONE_VOXEL])
        predicted = np.isin(prediction[box], values)
        if labels.ignore is not None:
            predicted &= reference[box] != labels.ignore
        true = np.isin(reference[box], values)
        score = scores[name]
        if surface and score.dice is not None:
            score = _with_distances(score, predicted, true, spacing, tolerance_mm)
        if match_iou is not None:
            sure = None if confidence is None else confidence(name)[box]
            detection = detect(predicted, true, match_iou=match_iou, confidence=sure)
            score = dataclasses.replace(score, detection=detection)
        measured[name] = score
    return measured


def check_tolerance(tolerance_mm: float) -> None:
    """Refuse what is no distance.

    Raises:
        UsageError: It is negative, or not finite.
    """
    if not 0 <= tolerance_mm < math.inf:
        raise UsageError(
            f"tolerance_mm is {tolerance_mm}; give a finite distance in mm of 0 or more"
        )


def _with_distances(
    score: Score, predicted: Mask, true: Mask, spacing: Spacing, tolerance_mm: float
) -> Score:
    from nnseg.image.surface import (  # slow to import, and overlap does without
        average_distance,
        robust_hausdorff,
        surface_dice,
        surface_distances,
    )

    distances = surface_distances(predicted, true, spacing)
    return dataclasses.replace(
        score,
        hd95_mm=_finite(robust_hausdorff(distances)),
        nsd=_finite(surface_dice(distances, tolerance_mm)),
        assd_mm=_finite(average_distance(distances)),
    )


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
    predicted, truth = paired_positions(prediction, reference, labels)
    square = count_pairs(truth, predicted, len(labels.values))
    if labels.ignore is not None:
        square[-1] = 0  # it is the largest label
    return square


def paired_positions(
    prediction: Segmentation, reference: Segmentation, labels: Labels
) -> tuple[Segmentation, Segmentation]:
    """Give a prediction and its reference (z, y, x) with their labels as places in `labels.values`.

    Raises:
        DataError: The shapes differ, or a value is none of the labels.
    """
    if prediction.shape != reference.shape:
        raise DataError(
            f"prediction {prediction.shape} and reference {reference.shape} differ in shape "
            "(z, y, x); predict the image that the reference was drawn on"
        )
    found = []
    for what, segmentation in (("prediction", prediction), ("reference", reference)):
        try:
            found.append(labels.to_positions(segmentation))
        except DataError as error:
            raise DataError(f"{what} {error}") from None
    return found[0], found[1]


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
    cases: Sequence[CaseScores],
    labels: Labels,
    *,
    tolerance_mm: float = TOLERANCE_MM,
    match_iou: float | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    missing: Sequence[str] = (),
) -> Summary:
    """Take the means over cases for each label or region, and over those for the foreground.

    Cases without a value are left out of a label's mean, labels without a value out of the
    foreground mean. nnU-Net's foreground mean is nan as soon as one label has no value; ours is
    the same number wherever nnU-Net has one.

    Args:
        cases: At least one.
        labels: What the cases were scored for.
        tolerance_mm: What `score_case` was given.
        match_iou: Likewise.
        groups: Name to case ids, for tables of their own by `by_group`.
        missing: Cases that have a reference and no prediction; they are in no mean.

    Raises:
        DataError: There is no case, one occurs twice, or its scores are of other labels.
    """
    return summarize_names(
        cases,
        list(labels.foreground),
        tolerance_mm=tolerance_mm,
        match_iou=match_iou,
        groups=groups,
        missing=missing,
    )


def summarize_names(
    cases: Sequence[CaseScores],
    names: Sequence[str],
    *,
    tolerance_mm: float = TOLERANCE_MM,
    match_iou: float | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    missing: Sequence[str] = (),
) -> Summary:
    """Do what `summarize` does where only the names of the labels or regions are known."""
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
    for group, members in (groups or {}).items():
        if unknown := sorted(set(members) - seen):
            raise DataError(f"group {group}: case {unknown[0]} was not scored; leave it out")
    mean = {name: _mean_score([case.scores[name] for case in cases]) for name in names}
    return Summary(
        cases=tuple(cases),
        mean=mean,
        foreground_mean=_mean_score(list(mean.values())),
        tolerance_mm=tolerance_mm,
        match_iou=match_iou,
        groups={group: tuple(members) for group, members in (groups or {}).items()},
        missing=tuple(missing),
    )


def by_group(summary: Summary) -> dict[str, Summary]:
    """Give the scores of each of the summary's groups by its name, with means of its own."""
    cases = {case.case_id: case for case in summary.cases}
    return {
        group: summarize_names(
            [cases[case_id] for case_id in members],
            list(summary.mean),
            tolerance_mm=summary.tolerance_mm,
            match_iou=summary.match_iou,
        )
        for group, members in summary.groups.items()
    }


def _mean_score(scores: Sequence[Score] | Sequence[MeanScore]) -> MeanScore:
    dice, dice_count = _mean([score.dice for score in scores])
    iou, _ = _mean([score.iou for score in scores])
    hd95_mm, hd95_count = _mean([score.hd95_mm for score in scores])
    assd_mm, _ = _mean([score.assd_mm for score in scores])
    nsd, nsd_count = _mean([score.nsd for score in scores])
    volume_error, volume_count = _mean([score.volume_error for score in scores])
    absolute, _ = _mean([_absolute_volume_error(score) for score in scores])
    return MeanScore(
        dice=dice,
        iou=iou,
        tp=float(np.mean([score.tp for score in scores])),
        fp=float(np.mean([score.fp for score in scores])),
        fn=float(np.mean([score.fn for score in scores])),
        tn=float(np.mean([score.tn for score in scores])),
        n_pred=float(np.mean([score.n_pred for score in scores])),
        n_ref=float(np.mean([score.n_ref for score in scores])),
        hd95_mm=hd95_mm,
        nsd=nsd,
        dice_count=dice_count,
        hd95_count=hd95_count,
        nsd_count=nsd_count,
        assd_mm=assd_mm,
        volume_error=volume_error,
        absolute_volume_error=absolute,
        volume_count=volume_count,
        detection=_mean_detection(scores),
    )


def _absolute_volume_error(score: Score | MeanScore) -> float | None:
    if isinstance(score, MeanScore):
        return score.absolute_volume_error
    return None if score.volume_error is None else abs(score.volume_error)


def _mean_detection(scores: Sequence[Score] | Sequence[MeanScore]) -> MeanDetection | None:
    """Give what became of components; None where those of some case were not looked at."""
    of_cases = [one.detection for one in scores if isinstance(one.detection, Detection)]
    if len(of_cases) == len(scores):
        return mean_over_cases(of_cases)
    of_labels = [one.detection for one in scores if isinstance(one.detection, MeanDetection)]
    return mean_over_labels(of_labels) if len(of_labels) == len(scores) else None


def _mean(values: Sequence[float | None]) -> tuple[float | None, int]:
    """Give the mean of the values there are, None if there is none, and their number.

    What has no value is added as 0, so that the sum is nnU-Net's to the last bit.
    """
    count = sum(value is not None for value in values)
    total = np.sum([0.0 if value is None else value for value in values])
    return (float(total / count) if count else None), count


def _boxes(
    segmentation: Segmentation, labels: Labels
) -> tuple[tuple[slice, slice, slice] | None, ...]:
    """Give the box of each label, by its integer; None where it is the background or absent."""
    from scipy import ndimage  # slow to import, and overlap does without

    return (None, *ndimage.find_objects(segmentation, max_label=labels.values[-1]))


def _wide_union(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """Give a box around `boxes`, one voxel wider so that a flat object keeps its z neighbours."""
    return tuple(
        slice(max(0, min(s.start for s in axis) - 1), max(s.stop for s in axis) + 1)
        for axis in zip(*boxes, strict=True)
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
