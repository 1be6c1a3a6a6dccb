"""Each common mistake in a label map is undone by its correction."""

import time

import numpy as np
import pytest

from nnseg.axes import Segmentation
from nnseg.errors import DataError
from nnseg.image.offset import moved
from nnseg.labels import Labels
from nnseg.suspects.corrections import Correction, Evidence, Kind, gather

LABELS = Labels(labels={"background": 0, "head": 1, "tail": 2})
SPACING = (1.0, 1.5, 0.75)


def truth() -> Segmentation:
    """A head of 10 x 12 x 8 voxels with a tail at its end, in 20 x 40 x 30."""
    array = np.zeros((20, 40, 30), np.uint8)
    array[4:14, 6:18, 10:18] = 1
    array[6:12, 18:32, 11:17] = 2
    return array


def look(reference: Segmentation, prediction: Segmentation | None = None) -> Evidence:
    predicted = truth() if prediction is None else prediction
    return gather("a", predicted, reference, LABELS, SPACING)


def only(found: Evidence, kind: Kind, *labels: str) -> Correction:
    (one,) = [c for c in found.corrections if c.kind == kind and c.labels == labels]
    return one


def test_a_right_label_map_has_nothing_to_correct() -> None:
    found = look(truth())
    assert found.dice == {"head": 1.0, "tail": 1.0}
    assert found.corrections == ()
    assert found.where is None
    voxel = 1.0 * 1.5 * 0.75
    assert found.volume_mm3 == {"head": 960 * voxel, "tail": 504 * voxel}


def test_exchanged_labels_are_exchanged_back() -> None:
    wrong = np.array([0, 2, 1], np.uint8)[truth()]
    one = only(look(wrong), "swap", "head", "tail")
    assert (one.before, one.after) == (0.0, 1.0)
    assert one.what == "with head and tail exchanged"
    assert truth()[one.where] > 0


def test_a_label_under_another_name_is_an_exchange_too() -> None:
    labels = Labels(labels={"background": 0, "left": 1, "right": 2, "spine": 3})
    predicted = truth()
    wrong = np.where(predicted == 2, 3, predicted)
    found = gather("a", predicted, wrong, labels, SPACING)
    one = only(found, "swap", "right", "spine")
    assert (one.before, one.after) == (0.0, 1.0)


@pytest.mark.parametrize(("axis", "name"), [(0, "z"), (1, "y"), (2, "x")])
def test_a_mirrored_map_is_mirrored_back(axis: int, name: str) -> None:
    one = only(look(np.flip(truth(), axis)), "mirror")
    assert one.after == pytest.approx(1.0)
    assert one.after > one.before
    assert one.what == f"mirrored along {name}"


def test_a_map_turned_by_half_is_mirrored_along_both_axes() -> None:
    one = only(look(np.flip(truth(), (1, 2))), "mirror")
    assert one.what == "mirrored along y and x"


def test_a_moved_map_is_moved_back() -> None:
    one = only(look(moved(truth(), (2, -3, 1))), "shift")
    assert one.after == 1.0
    assert one.before < 0.8
    assert one.what == "moved by (-2, 3, -1) voxels (z, y, x)"


def test_slices_that_were_not_drawn_are_named_by_their_numbers_in_the_file() -> None:
    wrong = truth()
    wrong[:, 24:] = 0
    one = only(look(wrong), "slices", "tail")
    assert one.after == 1.0
    assert one.what == "with tail in slices 24 to 31 along y"
    assert 24 <= one.where[1] < 32
    found = look(truth(), wrong)
    assert only(found, "slices", "tail").what == "without tail in slices 24 to 31 along y"


def test_slices_missing_between_others_are_a_gap_too() -> None:
    wrong = truth()
    wrong[8:11][wrong[8:11] == 1] = 0
    assert only(look(wrong), "slices", "head").what == "with head in slices 8 to 10 along z"


def test_a_tip_that_is_drawn_shorter_is_no_gap() -> None:
    predicted = truth()
    predicted[4, 6:18, 10:18] = 0
    predicted[4, 10:12, 12:14] = 1  # 4 of 96 voxels
    wrong = predicted.copy()
    wrong[4] = 0
    assert not [c for c in look(wrong, predicted).corrections if c.kind == "slices"]


@pytest.mark.parametrize("kind", ["missing", "added"])
def test_a_thick_piece_is_found_and_a_thin_shell_is_not(kind: Kind) -> None:
    full, lacking = truth(), truth()
    lacking[6:11, 8:14, 10:15][lacking[6:11, 8:14, 10:15] == 1] = 0
    full[3, 6:18, 10:18] = 1  # one voxel thick
    reference, predicted = (lacking, full) if kind == "missing" else (full, lacking)
    one = only(look(reference, predicted), kind, "head")
    size = 5 * 6 * 5
    assert one.volume_mm3 == size * 1.125
    assert f"{size} voxels of head in one piece" in one.what
    assert one.where[0] in range(6, 11)
    assert one.after > one.before
    thin = truth()
    thin[3, 6:18, 10:18] = 1
    found = look(thin) if kind == "added" else look(truth(), thin)
    assert not [c for c in found.corrections if c.kind == kind]


def test_a_whole_label_that_is_missing_is_a_piece_however_thin() -> None:
    predicted = truth()
    predicted[0, 0, 2:6] = 2
    predicted[predicted == 2] = 0
    predicted[0, 0, 2:6] = 2
    wrong = np.where(predicted == 2, 0, predicted)
    one = only(look(wrong, predicted), "missing", "tail")
    assert (one.before, one.after) == (0.0, 1.0)
    assert one.where in {(0, 0, x) for x in range(2, 6)}


def test_where_a_label_lies_is_told_from_the_middle_of_what_is_predicted() -> None:
    found = look(moved(truth(), (0, 4, 0)))
    right = look(truth())
    apart = np.subtract(found.position_mm["head"], right.position_mm["head"])
    assert apart == pytest.approx([0, 6.0, 0])


def test_what_nobody_annotated_does_not_count() -> None:
    labels = Labels(labels={"background": 0, "head": 1, "tail": 2, "ignore": 3})
    reference = truth()
    reference[:, 24:] = 3
    found = gather("a", truth(), reference, labels, SPACING)
    assert found.dice == {"head": 1.0, "tail": 1.0}
    assert found.corrections == ()


def test_regions_are_taken_apart_into_their_labels() -> None:
    labels = Labels(
        labels={"background": 0, "whole": (1, 2), "core": 2}, regions_class_order=(1, 2)
    )
    wrong = np.array([0, 2, 1], np.uint8)[truth()]
    one = only(gather("a", truth(), wrong, labels, SPACING), "swap", "label 1", "core")
    assert one.after == 1.0


def test_a_picture_of_one_slice_is_judged() -> None:
    flat = truth()[8:9]
    wrong = flat.copy()
    wrong[:, 6:14] = 0
    found = gather("a", flat, wrong, LABELS, (999.0, 1.0, 1.0))
    assert only(found, "slices", "head").what == "with head in slices 6 to 13 along y"
    assert only(found, "missing", "head").after == 1.0


def test_empty_maps_are_no_evidence() -> None:
    empty = np.zeros((3, 4, 5), np.uint8)
    found = gather("a", empty, empty, LABELS, SPACING)
    assert (found.dice, found.corrections, found.where) == ({}, (), None)
    found = gather("a", truth(), np.zeros_like(truth()), LABELS, SPACING)
    assert found.dice == {"head": 0.0, "tail": 0.0}
    assert only(found, "missing", "head").after == 1.0


def test_what_the_model_promised_is_kept_but_for_labels_that_it_did_not_find() -> None:
    found = gather(
        "a", truth(), truth(), LABELS, SPACING, expected_dice={"head": 0.9, "tail": None}
    )
    assert found.expected_dice == {"head": 0.9}


def test_maps_of_two_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="differ in shape"):
        look(truth()[1:])


def test_many_labels_cost_little_more_than_few() -> None:
    shape = (48, 90, 96)
    many = np.kron(
        np.arange(1, 81, dtype=np.uint8).reshape(4, 5, 4), np.ones((12, 18, 24), np.uint8)
    )

    def seconds(drawn: Segmentation) -> float:
        count = int(drawn.max())
        labels = Labels(labels={"background": 0, **{f"l{n}": n for n in range(1, count + 1)}})
        start = time.process_time()
        found = gather("a", np.roll(drawn, 1, 2), drawn, labels, SPACING)
        assert len(found.dice) == count
        return time.process_time() - start

    assert many.shape == shape
    few = (many - 1) // 10 + 1
    seconds(few)  # what is imported is imported
    # ten times the labels; each looked for in the whole volume, they take 3.5 to 5 times as long
    assert min(seconds(many) for _ in range(3)) < 2.5 * min(seconds(few) for _ in range(3))
