"""Lesions found, missed and made up: connected components of two masks matched with each other.

A component is what voxels make up that share a face, an edge or a corner. Pairs of a component of
the reference and one of the prediction that overlap by an IoU of at least `MATCH_IOU` are matched,
the highest IoU first, so that no component is in two pairs. What stays unmatched was missed or is
spurious. Panoptic quality has a rule of its own: an IoU over 1/2, which leaves no choice.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Mask
from nnseg.errors import UsageError

if TYPE_CHECKING:
    from nnseg.image.components import Connectivity

MATCH_IOU = 0.1  # a lesion that is drawn too large or too small was found all the same
PANOPTIC_IOU = 0.5  # to be exceeded
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives a case


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """The components of one label or region of one case, or of several cases together.

    The confidences are there where probabilities lay beside the prediction: one for each predicted
    component, the mean probability of its voxels.
    """

    found: int  # pairs of a component of the reference and one of the prediction
    missed: int  # components of the reference without a partner
    spurious: int  # components of the prediction without a partner
    iou_sum: float  # over the pairs
    panoptic_found: int  # pairs whose IoU is over 1/2
    panoptic_iou_sum: float
    found_confidences: tuple[float, ...] | None = None
    spurious_confidences: tuple[float, ...] | None = None

    @property
    def references(self) -> int:
        """Components of the reference."""
        return self.found + self.missed

    @property
    def predictions(self) -> int:
        """Components of the prediction."""
        return self.found + self.spurious

    @property
    def f1(self) -> float | None:
        """2 found / (2 found + missed + spurious); None where neither mask has a component."""
        every = 2 * self.found + self.missed + self.spurious
        return 2 * self.found / every if every else None

    @property
    def sensitivity(self) -> float | None:
        """Share of the reference's components that were found; None where it has none."""
        return self.found / self.references if self.references else None

    @property
    def precision(self) -> float | None:
        """Share of the predicted components that are true; None where there are none."""
        return self.found / self.predictions if self.predictions else None

    @property
    def panoptic_quality(self) -> float | None:
        """Sum of the IoU over 1/2, by the mean number of components; None where there are none."""
        every = self.references + self.predictions
        return 2 * self.panoptic_iou_sum / every if every else None

    @property
    def segmentation_quality(self) -> float | None:
        """Mean of the IoU over 1/2; None where there is none."""
        return self.panoptic_iou_sum / self.panoptic_found if self.panoptic_found else None

    @property
    def recognition_quality(self) -> float | None:
        """F1 at an IoU over 1/2; times segmentation quality it is panoptic quality."""
        every = self.references + self.predictions
        return 2 * self.panoptic_found / every if every else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanDetection:
    """What became of the components of many cases: of one label, or the mean over labels.

    Of a label all components of all cases count alike, whichever case they are of; `case_f1` alone
    is a mean over the cases that have an F1. Of the foreground each is the mean over the labels
    that have a value.
    """

    f1: float | None
    sensitivity: float | None
    precision: float | None
    false_positives: float | None  # spurious components a case, those without any included
    panoptic_quality: float | None
    segmentation_quality: float | None
    case_f1: float | None
    froc: float | None  # `Froc.mean`; None where confidences are not known
    curve: "Froc | None" = None  # of a label; None of the foreground, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Froc:
    """Sensitivity against false positives a case, from the strictest threshold to none."""

    false_positives: tuple[float, ...]  # a case
    sensitivities: tuple[float, ...]
    thresholds: tuple[float, ...]  # components of at least this confidence are kept
    mean: float  # of the sensitivities at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives a case


def detect(
    prediction: Mask,
    reference: Mask,
    *,
    match_iou: float = MATCH_IOU,
    connectivity: "Connectivity" = 26,
    confidence: NDArray[np.float32] | None = None,
) -> Detection:
    """Match the components of two masks with each other.

    Args:
        prediction: (z, y, x).
        reference: (z, y, x), of the same shape.
        match_iou: The least IoU of a pair, over 0 and at most 1.
        connectivity: Which voxels make up a component, as of `number_components`.
        confidence: Probability of the label at each voxel, (z, y, x), if it is known.

    Raises:
        UsageError: `match_iou` is no such share.
    """
    if not 0 < match_iou <= 1:
        raise UsageError(f"match_iou is {match_iou}; give a share over 0 and at most 1")
    from nnseg.image.components import number_components  # slow to import, and few ask for it

    predicted, predicted_sizes = number_components(prediction, connectivity)
    true, true_sizes = number_components(reference, connectivity)
    rows, columns, iou = _overlaps(true, true_sizes, predicted, predicted_sizes)
    partners = _matched(rows, columns, iou, match_iou)
    strict = iou > PANOPTIC_IOU
    found, spurious = None, None
    if confidence is not None:
        sums = np.bincount(predicted.ravel(), confidence.ravel(), len(predicted_sizes))
        means = sums[1:] / predicted_sizes[1:]
        is_found = np.zeros(len(means), dtype=bool)
        is_found[columns[partners] - 1] = True
        found = tuple(float(value) for value in means[is_found])
        spurious = tuple(float(value) for value in means[~is_found])
    return Detection(
        found=len(partners),
        missed=len(true_sizes) - 1 - len(partners),
        spurious=len(predicted_sizes) - 1 - len(partners),
        iou_sum=float(iou[partners].sum()),
        panoptic_found=int(strict.sum()),
        panoptic_iou_sum=float(iou[strict].sum()),
        found_confidences=found,
        spurious_confidences=spurious,
    )


def pooled(detections: Sequence[Detection]) -> Detection:
    """Give what was found in several cases together, each component counting once.

    The confidences of all are kept where each case with a predicted component has some.
    """
    confident = all(
        one.found_confidences is not None or not one.predictions for one in detections
    ) and any(one.found_confidences is not None for one in detections)
    return Detection(
        found=sum(one.found for one in detections),
        missed=sum(one.missed for one in detections),
        spurious=sum(one.spurious for one in detections),
        iou_sum=sum(one.iou_sum for one in detections),
        panoptic_found=sum(one.panoptic_found for one in detections),
        panoptic_iou_sum=sum(one.panoptic_iou_sum for one in detections),
        found_confidences=_joined([one.found_confidences for one in detections], confident),
        spurious_confidences=_joined([one.spurious_confidences for one in detections], confident),
    )


def mean_over_cases(detections: Sequence[Detection]) -> MeanDetection:
    """Give what became of a label's components in at least one case."""
    together, cases = pooled(detections), len(detections)
    curve = froc(together, cases)
    return MeanDetection(
        f1=together.f1,
        sensitivity=together.sensitivity,
        precision=together.precision,
        false_positives=together.spurious / cases,
        panoptic_quality=together.panoptic_quality,
        segmentation_quality=together.segmentation_quality,
        case_f1=_mean([one.f1 for one in detections]),
        froc=None if curve is None else curve.mean,
        curve=curve,
    )


def mean_over_labels(means: Sequence[MeanDetection]) -> MeanDetection:
    """Give the mean over labels of what `mean_over_cases` gave for each."""
    names = {field.name for field in dataclasses.fields(MeanDetection)} - {"curve"}
    values = {name: _mean([getattr(one, name) for one in means]) for name in names}
    return MeanDetection(**values, curve=None)


def froc(together: Detection, cases: int) -> Froc | None:
    """Give the FROC curve of several cases: what a threshold on confidence would keep.

    A lesion counts as found as long as the component that was matched with it is kept; components
    are those of the label map, a threshold does not split or shrink them.

    Args:
        together: `pooled` over the cases.
        cases: How many they are, those without any component included.

    Returns:
        None where confidences are not known, or the references have no component.
    """
    if together.found_confidences is None or together.spurious_confidences is None:
        return None
    if not together.references:
        return None
    found, spurious = (
        np.sort(np.array(values, dtype=float))
        for values in (together.found_confidences, together.spurious_confidences)
    )
    thresholds = np.unique(np.concatenate([found, spurious]))[::-1]
    kept = [len(each) - np.searchsorted(each, thresholds) for each in (found, spurious)]
    sensitivities, rates = kept[0] / together.references, kept[1] / max(cases, 1)
    reached = [sensitivities[rates <= rate].max(initial=0.0) for rate in FROC_RATES]
    return Froc(
        false_positives=tuple(float(rate) for rate in rates),
        sensitivities=tuple(float(value) for value in sensitivities),
        thresholds=tuple(float(value) for value in thresholds),
        mean=float(np.mean(reached)),
    )


def _overlaps(
    true: NDArray[Any],
    true_sizes: NDArray[np.int64],
    predicted: NDArray[Any],
    predicted_sizes: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Give the pairs of components that share voxels: their numbers, and their IoU, (pair,)."""
    both = (true > 0) & (predicted > 0)
    keys = true[both].astype(np.int64) * len(predicted_sizes) + predicted[both]
    pairs, shared = np.unique(keys, return_counts=True)
    rows, columns = np.divmod(pairs, len(predicted_sizes))
    return rows, columns, shared / (true_sizes[rows] + predicted_sizes[columns] - shared)


def _matched(
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    iou: NDArray[np.float64],
    match_iou: float,
) -> list[int]:
    """Give the places of the pairs that are matched; of equal IoU the first in scan order is."""
    taken_rows, taken_columns, partners = set[int](), set[int](), []
    for place in np.argsort(-iou, kind="stable").tolist():
        if iou[place] < match_iou:
            break
        row, column = int(rows[place]), int(columns[place])
        if row not in taken_rows and column not in taken_columns:
            taken_rows.add(row)
            taken_columns.add(column)
            partners.append(place)
    return partners


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


def _joined(parts: Sequence[tuple[float, ...] | None], wanted: bool) -> tuple[float, ...] | None:
    return tuple(value for part in parts for value in part or ()) if wanted else None
