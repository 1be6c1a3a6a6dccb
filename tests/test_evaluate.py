import subprocess
import sys

import numpy as np
import pytest

from nnseg.errors import DataError, UsageError
from nnseg.evaluate import (
    CaseScores,
    Score,
    by_group,
    confusion_table,
    score_case,
    score_table,
    summarize,
)
from nnseg.image.surface import (
    average_distance,
    robust_hausdorff,
    surface_dice,
    surface_distances,
)
from nnseg.labels import Labels
from nnseg.scores.detection import Detection

SHAPE = (4, 6, 9)
SPACING = (2.5, 0.7, 0.8)
ORGANS = Labels(labels={"background": 0, "liver": 1, "spleen": 2})
SPARSE = Labels(labels={"background": 0, "liver": 1, "spleen": 2, "ignore": 3})
TUMOUR = Labels(
    labels={"background": 0, "whole": (1, 2, 3), "core": (2, 3), "active": 3},
    regions_class_order=(1, 2, 3),
)


def label_map(seed: int, highest: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, highest + 1, SHAPE).astype(np.uint8)


def liver(*slices: slice) -> np.ndarray:
    result = np.zeros(SHAPE, dtype=np.uint8)
    result[slices] = 1
    return result


def case(case_id: str, **scores: Score) -> CaseScores:
    return CaseScores(
        case_id=case_id,
        reference_file=f"labelsTr/{case_id}.nii.gz",
        prediction_file=f"validation/{case_id}.nii.gz",
        scores=scores,
    )


def score(tp: int = 0, fp: int = 0, fn: int = 0, **surface: float | None) -> Score:
    return Score(tp=tp, fp=fp, fn=fn, tn=100 - tp - fp - fn, **surface)


@pytest.mark.parametrize("labels", [ORGANS, SPARSE, TUMOUR], ids=["labels", "ignore", "regions"])
def test_counts_are_those_of_masks_drawn_label_by_label(labels: Labels) -> None:
    highest = labels.values[-1]
    prediction, reference = label_map(1, highest), label_map(2, highest)
    found = score_case(prediction, reference, labels, SPACING)
    assert list(found) == list(labels.foreground)
    counted = np.ones(SHAPE, dtype=bool) if labels.ignore is None else reference != labels.ignore
    for name, values in labels.foreground.items():
        p, r = np.isin(prediction, values), np.isin(reference, values)
        assert found[name].tp == (p & r & counted).sum()
        assert found[name].fp == (p & ~r & counted).sum()
        assert found[name].fn == (~p & r & counted).sum()
        assert found[name].tn == (~p & ~r & counted).sum()
        assert found[name].n_pred == (p & counted).sum()
        assert found[name].n_ref == (r & counted).sum()


GAPS = Labels(
    labels={"background": 0, "whole": (7, 255, 300), "core": (255, 300), "ignore": 999},
    regions_class_order=(7, 255),
)


def test_labels_with_gaps_score_as_their_positions_do_under_the_users_values() -> None:
    positions = GAPS.consecutive
    prediction, reference = label_map(1, 3), label_map(2, 4)
    with_gaps = [GAPS.from_positions(each) for each in (prediction, reference)]
    found = score_case(*with_gaps, GAPS, SPACING)
    assert found == score_case(prediction, reference, positions, SPACING)
    table = confusion_table(*with_gaps, GAPS)
    np.testing.assert_array_equal(table, confusion_table(prediction, reference, positions))
    with pytest.raises(
        DataError, match=r"prediction holds the values \[2\], .* one of \[0, 7, 255"
    ):
        confusion_table(np.full(SHAPE, 2), with_gaps[1], GAPS)


def test_dice_and_iou_follow_from_the_counts() -> None:
    found = score(tp=6, fp=1, fn=3)
    assert found.dice == 12 / 16
    assert found.iou == 6 / 10


def test_a_label_in_neither_map_has_no_value() -> None:
    prediction = reference = liver(slice(1, 3), slice(2, 4))
    found = score_case(prediction, reference, ORGANS, SPACING)["spleen"]
    assert (found.dice, found.iou, found.hd95_mm, found.nsd) == (None, None, None, None)
    assert (found.assd_mm, found.volume_error) == (None, None)
    assert found.tn == reference.size


@pytest.mark.parametrize("predicted", [True, False])
def test_a_label_in_one_map_only_scores_0_and_has_no_finite_distance(predicted: bool) -> None:
    maps = [liver(slice(1, 3), slice(2, 4)), np.zeros(SHAPE, dtype=np.uint8)]
    prediction, reference = maps if predicted else maps[::-1]
    found = score_case(prediction, reference, ORGANS, SPACING)["liver"]
    assert (found.dice, found.iou, found.nsd) == (0, 0, 0)
    assert (found.hd95_mm, found.assd_mm) == (None, None)
    assert found.volume_error == (None if predicted else -1)


def test_surface_scores_are_in_mm_of_the_spacing() -> None:
    reference = liver(slice(None), slice(None), slice(0, 3))
    prediction = liver(slice(None), slice(None), slice(0, 5))  # 1.6 mm further along x
    found = score_case(prediction, reference, ORGANS, SPACING)["liver"]
    assert found.hd95_mm == pytest.approx(1.6)
    assert found.nsd is not None
    assert found.nsd < 1
    wide = score_case(prediction, reference, ORGANS, SPACING, tolerance_mm=1.7)["liver"]
    assert wide.nsd == 1


def test_surface_scores_of_regions_are_those_of_their_union() -> None:
    prediction, reference = label_map(1, 3), label_map(2, 3)
    found = score_case(prediction, reference, TUMOUR, SPACING, tolerance_mm=0.5)["core"]
    core = [(m >= 2).astype(np.uint8) for m in (prediction, reference)]
    expected = score_case(*core, ORGANS, SPACING, tolerance_mm=0.5)["liver"]
    assert (found.hd95_mm, found.nsd) == (expected.hd95_mm, expected.nsd)


@pytest.mark.parametrize("z", [0, 1, 3])
def test_one_labelled_slice_of_a_volume_is_scored_by_the_3d_rule(z: int) -> None:
    reference = liver(slice(z, z + 1), slice(1, 5), slice(2, 8))
    prediction = liver(slice(z, z + 1), slice(1, 4), slice(4, 9))
    found = score_case(prediction, reference, ORGANS, SPACING)["liver"]
    volume = surface_distances(prediction == 1, reference == 1, SPACING)
    contour = surface_distances(prediction[z : z + 1] == 1, reference[z : z + 1] == 1, SPACING)
    assert found.nsd == surface_dice(volume, 1.0) != surface_dice(contour, 1.0)


def test_an_image_of_one_slice_is_scored_by_its_contours() -> None:
    prediction, reference = label_map(1, 2)[1:2], label_map(2, 2)[1:2]
    found = score_case(prediction, reference, ORGANS, SPACING)["liver"]
    contour = surface_distances(prediction == 1, reference == 1, SPACING)
    assert (found.hd95_mm, found.nsd) == (robust_hausdorff(contour), surface_dice(contour, 1.0))
    assert found.assd_mm == average_distance(contour)


def test_surfaces_leave_out_what_the_reference_ignores() -> None:
    reference = liver(slice(1, 3), slice(1, 3), slice(0, 3))
    prediction = reference.copy()
    prediction[1:3, 1:3, 6:9] = 1
    reference[:, :, 5:] = 3
    found = score_case(prediction, reference, SPARSE, SPACING)["liver"]
    assert (found.dice, found.hd95_mm, found.nsd) == (1, 0, 1)


def test_surface_false_leaves_distances_out_and_counts_unchanged() -> None:
    prediction, reference = label_map(1, 2), label_map(2, 2)
    quick = score_case(prediction, reference, ORGANS, SPACING, surface=False)
    full = score_case(prediction, reference, ORGANS, SPACING)
    for name in ORGANS.foreground:
        assert (quick[name].hd95_mm, quick[name].nsd) == (None, None)
        assert full[name].hd95_mm is not None
        assert (quick[name].tp, quick[name].dice) == (full[name].tp, full[name].dice)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int64, np.uint64])
def test_the_integer_types_of_the_maps_do_not_matter(kind: type) -> None:
    prediction, reference = label_map(1, 3), label_map(2, 3)
    expected = score_case(prediction, reference, TUMOUR, SPACING)
    assert score_case(prediction.astype(kind), reference, TUMOUR, SPACING) == expected
    assert score_case(prediction, reference.astype(kind), TUMOUR, SPACING) == expected


def test_a_table_holds_the_reference_in_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnseg.image.pairs.SLAB_VOXELS", 100)  # one slice of 54 voxels at a time
    reference = liver(slice(0, 3))
    prediction = np.full(SHAPE, 2, dtype=np.uint8)
    table = confusion_table(prediction, reference, ORGANS)
    np.testing.assert_array_equal(table, [[0, 0, 54], [0, 0, 162], [0, 0, 0]])
    assert score_table(table, ORGANS)["spleen"] == Score(tp=0, fp=216, fn=0, tn=0)


def test_maps_of_two_shapes_are_refused() -> None:
    prediction = np.zeros((4, 9, 6), dtype=np.uint8)
    with pytest.raises(DataError, match=r"\(4, 9, 6\) and reference \(4, 6, 9\)"):
        score_case(prediction, label_map(1, 2), ORGANS, SPACING)


@pytest.mark.parametrize("value", [3, -1])
def test_a_value_that_is_no_label_is_refused(value: int) -> None:
    good = label_map(1, 2).astype(np.int16)
    wrong = good.copy()
    wrong[1, 2, 3] = value
    with pytest.raises(DataError, match=rf"prediction holds the values \[{value}\]"):
        score_case(wrong, good, ORGANS, SPACING)
    with pytest.raises(DataError, match=rf"reference holds the values \[{value}\]"):
        score_case(good, wrong, ORGANS, SPACING)


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_a_tolerance_that_is_no_distance_is_refused(tolerance: float) -> None:
    with pytest.raises(UsageError, match="tolerance_mm"):
        score_case(label_map(1, 2), label_map(2, 2), ORGANS, SPACING, tolerance_mm=tolerance)


def test_means_are_over_the_cases_that_have_a_value() -> None:
    cases = [
        case("a", liver=score(tp=1, fp=1, hd95_mm=4.0, nsd=0.5), spleen=score(tp=5)),
        case("b", liver=score(tp=3, hd95_mm=2.0, nsd=1.0), spleen=score()),
        case("c", liver=score(fn=7, nsd=0.0), spleen=score()),
    ]
    summary = summarize(cases, ORGANS)
    mean = summary.mean["liver"]
    assert mean.dice == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert mean.iou == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert (mean.hd95_mm, mean.nsd) == (3.0, 0.5)
    assert (mean.dice_count, mean.hd95_count, mean.nsd_count) == (3, 2, 3)
    assert (mean.tp, mean.fn, mean.n_pred) == pytest.approx((4 / 3, 7 / 3, 5 / 3))
    assert (summary.mean["spleen"].dice, summary.mean["spleen"].dice_count) == (1, 1)
    assert (summary.mean["spleen"].nsd, summary.mean["spleen"].nsd_count) == (None, 0)


def test_the_foreground_mean_is_over_the_labels_that_have_a_value() -> None:
    cases = [
        case("a", liver=score(tp=1, fp=2, nsd=0.5), spleen=score()),
        case("b", liver=score(tp=1, nsd=0.0), spleen=score()),
    ]
    foreground = summarize(cases, ORGANS).foreground_mean
    assert (foreground.dice, foreground.dice_count) == (0.75, 1)
    assert (foreground.nsd, foreground.nsd_count) == (0.25, 1)
    assert (foreground.hd95_mm, foreground.hd95_count) == (None, 0)
    assert foreground.tp == 0.5  # every label has counts


def test_the_foreground_mean_gives_each_label_one_vote() -> None:
    cases = [
        case("a", liver=score(tp=1), spleen=score(fp=1)),
        case("b", liver=score(tp=1), spleen=score()),
    ]
    assert summarize(cases, ORGANS).foreground_mean.dice == 0.5  # not 2/3, the mean of all values


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ([], "no case was scored"),
        ([case("a", liver=score(), spleen=score())] * 2, "case a: was scored twice"),
        ([case("a", liver=score())], r"case a: has scores of \['liver'\]"),
    ],
)
def test_cases_that_cannot_be_summarized_are_refused(cases: list[CaseScores], message: str) -> None:
    with pytest.raises(DataError, match=message):
        summarize(cases, ORGANS)


def test_the_volume_error_is_a_signed_share_of_the_reference() -> None:
    assert score(tp=6, fp=3, fn=2).volume_error == 1 / 8
    assert score(tp=6, fp=1, fn=2).volume_error == -1 / 8
    summary = summarize(
        [
            case("a", liver=score(tp=6, fp=3, fn=2), spleen=score(fp=1)),
            case("b", liver=score(tp=6, fn=2), spleen=score()),
        ],
        ORGANS,
    )
    mean = summary.mean["liver"]
    assert (mean.volume_error, mean.absolute_volume_error) == (-1 / 16, 3 / 16)
    assert (mean.volume_count, summary.mean["spleen"].volume_count) == (2, 0)
    assert summary.foreground_mean.absolute_volume_error == 3 / 16


def test_components_are_matched_where_that_was_asked_for() -> None:
    reference = liver(slice(0, 1), slice(0, 2), slice(0, 3))
    reference[3, 5, 8] = 1
    prediction = liver(slice(0, 1), slice(0, 2), slice(1, 4))  # IoU 1/2 with the larger one
    prediction[0, 5, 8] = 2
    found = score_case(prediction, reference, ORGANS, SPACING, surface=False, match_iou=0.5)
    assert found["liver"].detection == Detection(
        found=1, missed=1, spurious=0, iou_sum=0.5, panoptic_found=0, panoptic_iou_sum=0
    )
    assert found["spleen"].detection == Detection(
        found=0, missed=0, spurious=1, iou_sum=0, panoptic_found=0, panoptic_iou_sum=0
    )
    assert found["liver"].hd95_mm is None
    plain = score_case(prediction, reference, ORGANS, SPACING)
    assert plain["liver"].detection is None


def test_a_label_in_neither_map_has_no_component() -> None:
    maps = liver(slice(1, 3), slice(2, 4)), liver(slice(1, 3), slice(2, 4))
    found = score_case(*maps, ORGANS, SPACING, match_iou=0.1)["spleen"].detection
    assert found is not None
    assert (found.references, found.predictions, found.f1, found.panoptic_quality) == (
        *(0, 0),
        *(None, None),
    )


def test_components_of_regions_and_without_what_is_ignored() -> None:
    reference = liver(slice(0, 1), slice(0, 2), slice(0, 2))
    reference[0, 0:2, 2:4] = 2  # one component of the whole, none of the core is apart
    found = score_case(reference, reference, TUMOUR, SPACING, match_iou=0.1)
    assert found["whole"].detection is not None
    assert found["whole"].detection.found == 1
    prediction = np.zeros(SHAPE, dtype=np.uint8)
    prediction[2, 2, 2] = 1
    truth = np.full(SHAPE, 3, dtype=np.uint8)  # all of it is ignored
    sparse = score_case(prediction, truth, SPARSE, SPACING, match_iou=0.1)["liver"].detection
    assert sparse is not None
    assert sparse.predictions == 0


def test_the_confidence_of_a_component_is_its_mean_probability() -> None:
    prediction = liver(slice(1, 2), slice(2, 3), slice(0, 2))
    prediction[3, 5, 7:9] = 1
    reference = liver(slice(1, 2), slice(2, 3), slice(0, 2))
    probability = np.zeros(SHAPE, dtype=np.float32)
    probability[1, 2, 0:2] = 0.5, 1
    probability[3, 5, 7:9] = 0.25, 0.5
    found = score_case(
        *(prediction, reference, ORGANS, SPACING),
        match_iou=0.1,
        confidence=lambda name: probability if name == "liver" else np.zeros(SHAPE, np.float32),
    )["liver"].detection
    assert found is not None
    assert (found.found_confidences, found.spurious_confidences) == ((0.75,), (0.375,))


def test_the_lesions_of_all_cases_count_alike_and_labels_too() -> None:
    one, none = {"iou_sum": 0.8, "panoptic_found": 1, "panoptic_iou_sum": 0.8}, {
        "iou_sum": 0.0, "panoptic_found": 0, "panoptic_iou_sum": 0.0,
    }  # fmt: skip
    cases = [
        case(
            "a",
            liver=score(tp=1, detection=Detection(found=1, missed=0, spurious=0, **one)),
            spleen=score(detection=Detection(found=0, missed=1, spurious=0, **none)),
        ),
        case(
            "b",
            liver=score(tp=1, detection=Detection(found=0, missed=2, spurious=3, **none)),
            spleen=score(detection=Detection(found=0, missed=0, spurious=0, **none)),
        ),
    ]
    summary = summarize(cases, ORGANS, match_iou=0.1)
    mean = summary.mean["liver"].detection
    assert mean is not None
    assert (mean.sensitivity, mean.false_positives, mean.f1) == (1 / 3, 1.5, 2 / 7)
    assert (mean.case_f1, mean.panoptic_quality) == (0.5, 1.6 / 7)
    foreground = summary.foreground_mean.detection
    assert foreground is not None
    assert (foreground.sensitivity, foreground.f1) == (1 / 6, 1 / 7)
    assert summarize([case("c", liver=score(), spleen=score())], ORGANS).mean[
        "liver"
    ].detection is None  # fmt: skip


def test_a_group_has_means_of_its_own_cases() -> None:
    cases = [
        case("a_1", liver=score(tp=1), spleen=score()),
        case("b_1", liver=score(fp=1), spleen=score(tp=2)),
        case("a_2", liver=score(fn=1), spleen=score()),
    ]
    summary = summarize(cases, ORGANS, groups={"a": ("a_1", "a_2"), "b": ("b_1",)})
    groups = by_group(summary)
    assert groups["a"].mean["liver"].dice == 0.5
    assert groups["b"].foreground_mean.dice == 0.5
    assert groups["a"].foreground_mean.dice_count == 1
    assert by_group(summarize(cases, ORGANS)) == {}
    with pytest.raises(DataError, match="group a: case a_3 was not scored"):
        summarize(cases, ORGANS, groups={"a": ("a_3",)})


def test_evaluating_does_not_import_torch() -> None:
    code = "import sys, nnseg.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
