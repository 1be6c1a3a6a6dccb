import numpy as np
import pytest

from nnseg.axes import Mask
from nnseg.errors import UsageError
from nnseg.scores.detection import (
    Detection,
    detect,
    froc,
    mean_over_cases,
    mean_over_labels,
    pooled,
)

SHAPE = (6, 8, 20)


def row(*ranges: tuple[int, int], line: int = 0) -> Mask:
    """Components along x: each range is one, in the first plane."""
    mask = np.zeros(SHAPE, dtype=bool)
    for start, stop in ranges:
        mask[0, line, start:stop] = True
    return mask


def counts(found: Detection) -> tuple[int, int, int]:
    return found.found, found.missed, found.spurious


def detection(found: int, missed: int, spurious: int, **more: object) -> Detection:
    known = {"iou_sum": 0.0, "panoptic_found": 0, "panoptic_iou_sum": 0.0}
    return Detection(found=found, missed=missed, spurious=spurious, **{**known, **more})


def test_components_are_found_missed_or_spurious() -> None:
    reference = row((0, 4), (6, 8), (10, 12))
    prediction = row((0, 3), (6, 8), (14, 16), (18, 20))
    found = detect(prediction, reference)
    assert counts(found) == (2, 1, 2)
    assert (found.references, found.predictions) == (3, 4)
    assert found.sensitivity == 2 / 3
    assert found.precision == 2 / 4
    assert found.f1 == 4 / 7
    assert found.iou_sum == 3 / 4 + 1


def test_panoptic_quality_is_that_of_its_definition() -> None:
    found = detect(row((0, 3), (6, 8), (14, 16)), row((0, 4), (6, 8), (10, 12)))
    assert found.segmentation_quality == (3 / 4 + 1) / 2
    assert found.recognition_quality == 2 / (2 + 1 / 2 + 1 / 2)
    assert found.panoptic_quality == pytest.approx((3 / 4 + 1) / (2 + 1 / 2 + 1 / 2))


def test_an_iou_of_just_one_half_is_no_panoptic_match() -> None:
    half = detect(row((0, 2)), row((0, 4)))
    assert (half.found, half.panoptic_found, half.panoptic_quality) == (1, 0, 0)
    assert half.segmentation_quality is None


@pytest.mark.parametrize(("match_iou", "found"), [(0.25, 1), (0.26, 0), (0.5, 0)])
def test_the_least_iou_of_a_match_counts_as_one(match_iou: float, found: int) -> None:
    assert detect(row((0, 1)), row((0, 4)), match_iou=match_iou).found == found


def test_one_component_over_two_lesions_has_found_the_one_that_it_fits_better() -> None:
    reference, prediction = row((0, 2), (3, 8)), row((0, 8))
    assert counts(detect(prediction, reference)) == (1, 1, 0)
    assert detect(prediction, reference).iou_sum == 5 / 8
    assert counts(detect(reference, prediction)) == (1, 0, 1)


def test_the_best_pair_is_matched_first() -> None:
    # the long prediction overlaps both lesions, the short one fits the second better
    reference = row((0, 4), (5, 9))
    prediction = row((0, 6), (7, 9))
    found = detect(prediction, reference, match_iou=0.1)
    assert counts(found) == (2, 0, 0)
    assert found.iou_sum == pytest.approx(4 / 6 + 2 / 4)


def test_voxels_that_share_a_corner_are_one_component_unless_faces_are_asked_for() -> None:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert detect(mask, mask).found == 1
    assert detect(mask, mask, connectivity=6).found == 2


def test_components_of_one_slice_are_found() -> None:
    assert counts(detect(row((0, 3))[:1], row((0, 4), (6, 8))[:1])) == (1, 1, 0)


@pytest.mark.parametrize(
    ("prediction", "reference", "f1", "sensitivity", "precision", "pq"),
    [
        (row(), row(), None, None, None, None),
        (row((0, 2)), row(), 0, None, 0, 0),
        (row(), row((0, 2)), 0, 0, None, 0),
    ],
    ids=["both", "reference", "prediction"],
)
def test_an_empty_mask_has_the_stated_values(
    prediction: Mask,
    reference: Mask,
    f1: float | None,
    sensitivity: float | None,
    precision: float | None,
    pq: float | None,
) -> None:
    found = detect(prediction, reference)
    assert (found.f1, found.sensitivity, found.precision) == (f1, sensitivity, precision)
    assert (found.panoptic_quality, found.recognition_quality) == (pq, pq)
    assert found.segmentation_quality is None


@pytest.mark.parametrize("match_iou", [0, -0.1, 1.1, float("nan")])
def test_an_iou_that_is_no_share_is_refused(match_iou: float) -> None:
    with pytest.raises(UsageError, match="match_iou"):
        detect(row(), row(), match_iou=match_iou)


def test_confidences_are_means_over_the_voxels_of_a_component() -> None:
    probability = np.zeros(SHAPE, dtype=np.float32)
    probability[0, 0, 0:2] = 0.5, 1.0
    probability[0, 0, 10:12] = 0.25, 0.5
    found = detect(row((0, 2), (10, 12)), row((0, 2)), confidence=probability)
    assert (found.found_confidences, found.spurious_confidences) == ((0.75,), (0.375,))
    assert detect(row((0, 2)), row((0, 2))).found_confidences is None


def test_cases_are_pooled_by_their_components() -> None:
    together = pooled(
        [
            detection(1, 2, 3, iou_sum=0.5, found_confidences=(0.9,), spurious_confidences=(0.5,)),
            detection(0, 1, 0),  # nothing predicted, so no confidence is lacking
        ]
    )
    assert counts(together) == (1, 3, 3)
    assert (together.iou_sum, together.found_confidences) == (0.5, (0.9,))
    unknown = pooled([detection(1, 0, 0, found_confidences=(0.9,)), detection(1, 0, 0)])
    assert unknown.found_confidences is None


def test_the_mean_over_cases_counts_every_case_for_false_positives() -> None:
    mean = mean_over_cases([detection(1, 1, 4), detection(0, 0, 0), detection(2, 0, 0)])
    assert (mean.sensitivity, mean.false_positives) == (3 / 4, 4 / 3)
    assert mean.case_f1 == (2 / 7 + 1) / 2
    assert mean.froc is None
    other = mean_over_cases([detection(0, 0, 0)])
    assert other.f1 is None
    both = mean_over_labels([mean, other])
    assert (both.sensitivity, both.false_positives) == (3 / 4, 2 / 3)


def test_froc_keeps_what_is_sure_enough() -> None:
    together = detection(
        *(3, 1, 2), found_confidences=(0.9, 0.7, 0.3), spurious_confidences=(0.8, 0.3)
    )
    curve = froc(together, 2)
    assert curve is not None
    assert curve.thresholds == (0.9, 0.8, 0.7, 0.3)
    assert curve.sensitivities == (1 / 4, 1 / 4, 2 / 4, 3 / 4)
    assert curve.false_positives == (0, 1 / 2, 1 / 2, 1)
    # at 1/8 and 1/4 the first, at 1/2 the third, from 1 on all
    assert curve.mean == pytest.approx((2 * 1 / 4 + 2 / 4 + 4 * 3 / 4) / 7)


def test_froc_needs_confidences_and_lesions() -> None:
    assert froc(detection(1, 1, 1), 1) is None
    assert froc(detection(0, 0, 1, found_confidences=(), spurious_confidences=(0.5,)), 1) is None
    nothing = froc(detection(0, 2, 0, found_confidences=(), spurious_confidences=()), 1)
    assert nothing is not None
    assert nothing.mean == 0
