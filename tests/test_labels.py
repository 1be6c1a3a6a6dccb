import dataclasses
import json

import numpy as np
import pytest

from nnseg.errors import DataError
from nnseg.labels import Labels

PLAIN = Labels(labels={"background": 0, "liver": 1, "kidney": 2})
REGIONS = Labels(
    labels={"background": 0, "whole": (1, 2), "core": 2, "ignore": 3}, regions_class_order=(1, 2)
)
GAPS = Labels(labels={"background": 0, "liver": 255, "kidney": 1, "vein": 5})
GAPPED_REGIONS = Labels(
    labels={"background": 0, "whole": (1, 300), "core": 300, "ignore": 400},
    regions_class_order=(1, 300),
)


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        ({"liver": 1}, None, "labels.background is missing; it must be 0"),
        ({"background": 1, "liver": 0}, None, "labels.background is 1; it must be 0"),
        ({"background": 0, "a\x1b[2J": 1}, None, r"labels has 'a\\x1b\[2J'; a name must be text"),
        ({"background": 0}, None, "labels has no foreground"),
        ({"background": 0, "ignore": 1}, None, "labels has no foreground"),
        ({"background": 0, "liver": -1}, None, r"integers \[-1, 0\]; use some of 0 to 65535"),
        ({"background": 0, "liver": 65536}, None, r"integers \[0, 65536\]; use some of 0 to 65535"),
        (
            {"background": 0, "ignore": 7, "liver": 9},
            None,
            "ignore is 7; it must be the largest, 9",
        ),
        ({"background": 0, "whole": (1, 5), "core": 5}, (1, 2), r"regions_class_order has \[2\]"),
        ({"background": 0, "ignore": 1, "liver": 2}, None, "ignore is 1; it must be the largest"),
        ({"background": 0, "liver": 1, "hepar": 1}, None, "share an integer"),
        ({"background": 0, "whole": (), "core": 1}, None, r"labels.whole is \[\]"),
        ({"background": 0, "whole": (0, 1), "core": 1}, (1, 1), r"labels.whole is \[0, 1\]"),
        ({"background": 0, "whole": (1, 2), "ignore": 2}, (1,), r"labels.whole is \[1, 2\]"),
        ({"background": 0, "whole": (1, 2), "core": 2}, None, "regions_class_order is missing"),
        ({"background": 0, "whole": (1, 2), "core": 2}, (1,), "of 1 entries; it needs .* 2 reg"),
        ({"background": 0, "whole": (1, 2), "core": 2}, (1, 5), r"regions_class_order has \[5\]"),
        (
            {"background": 0, "whole": (1, 2), "core": 2, "ignore": 3},
            (1, 3),
            r"regions_class_order has \[3\], which cannot be predicted",
        ),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused_by_name(
    labels: dict[str, int | tuple[int, ...]], order: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Labels(labels=labels, regions_class_order=order)


def test_heads_are_named_by_integer_whatever_the_order_of_the_file() -> None:
    assert GAPS.in_head_order == ("kidney", "vein", "liver")
    assert GAPS.head_names == ("background", "kidney", "vein", "liver")
    assert REGIONS.in_head_order == REGIONS.head_names == ("whole", "core")


def test_labels_have_a_head_for_background_and_regions_have_none() -> None:
    assert (PLAIN.heads, REGIONS.heads) == (3, 2)


def test_ignore_is_a_value_of_label_maps_but_no_foreground() -> None:
    assert REGIONS.values == (0, 1, 2, 3)
    assert REGIONS.ignore == 3
    assert REGIONS.foreground == {"whole": (1, 2), "core": (2,)}
    assert PLAIN.ignore is None


def test_a_single_label_in_a_list_makes_no_region() -> None:
    labels = Labels(labels={"background": 0, "liver": (1,), "kidney": 2})
    assert not labels.has_regions
    assert labels.foreground == {"liver": (1,), "kidney": (2,)}


def test_labels_take_the_head_with_the_highest_logit() -> None:
    logits = np.zeros((2, 3, 4, 3), np.float32)
    logits[1, 2, 3, 2] = 1
    logits[0, 1, 2, 1] = 1
    segmentation = PLAIN.segment(logits)
    assert segmentation.dtype == np.uint8
    assert segmentation[1, 2, 3] == 2
    assert segmentation[0, 1, 2] == 1
    assert np.count_nonzero(segmentation) == 2


def test_later_regions_paint_over_earlier_ones_and_half_is_not_enough() -> None:
    logits = np.full((1, 2, 3, 2), -1, np.float32)
    logits[0, 0, :, 0] = 1
    logits[0, 0, 0, 1] = 1
    logits[0, 1, 2, 1] = 0  # a probability of exactly 0.5
    assert REGIONS.segment(logits).tolist() == [[[2, 1, 1], [0, 0, 0]]]


def test_regions_that_are_painted_alike_or_as_background_are_decided_apart() -> None:
    labels = Labels(
        labels={"background": 0, "a": (1, 2, 3), "b": 2, "c": 3}, regions_class_order=(1, 0, 1)
    )
    logits = np.array([[-1, -1, -1], [1, -1, -1], [1, 1, -1], [1, 1, 1], [-1, -1, 1]], np.float32)
    decided = labels.decide(logits)
    assert decided.tolist() == [0, 1, 2, 3, 3]
    assert labels.painted(decided).tolist() == labels.segment(logits).tolist() == [0, 1, 0, 1, 1]


def test_regions_in_another_order_are_other_labels_and_labels_are_not() -> None:
    swapped = Labels(
        labels={"background": 0, "core": 2, "whole": (1, 2), "ignore": 3},
        regions_class_order=(1, 2),
    )
    assert swapped.labels == REGIONS.labels
    assert swapped != REGIONS
    assert dataclasses.replace(REGIONS) == REGIONS
    assert Labels(labels={"background": 0, "kidney": 2, "liver": 1}) == PLAIN
    assert PLAIN.labels != PLAIN


def test_labels_with_gaps_are_learnt_by_their_positions() -> None:
    assert GAPS.values == (0, 1, 5, 255)
    assert GAPS.has_gaps
    assert GAPS.heads == 4
    assert GAPS.consecutive == Labels(labels={"background": 0, "liver": 3, "kidney": 1, "vein": 2})
    assert GAPPED_REGIONS.consecutive == Labels(
        labels={"background": 0, "whole": (1, 2), "core": 2, "ignore": 3},
        regions_class_order=(1, 2),
    )
    assert list(GAPS.consecutive.labels) == list(GAPS.labels)


@pytest.mark.parametrize("labels", [PLAIN, REGIONS])
def test_labels_without_gaps_are_their_own_positions(labels: Labels) -> None:
    segmentation = np.array([[[0, 1, 2]]], np.int16)
    assert not labels.has_gaps
    assert labels.consecutive is labels
    assert labels.to_positions(segmentation) is segmentation


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int64])
def test_positions_and_values_lead_to_each_other(kind: type) -> None:
    segmentation = np.array([[[0, 5, 255], [1, 1, 0]]], kind)
    positions = GAPS.to_positions(segmentation)
    assert positions.tolist() == [[[0, 2, 3], [1, 1, 0]]]
    assert positions.dtype == np.uint8
    again = GAPS.from_positions(positions)
    np.testing.assert_array_equal(again, segmentation)
    assert again.dtype == np.uint8


@pytest.mark.parametrize(
    ("labels", "values", "message"),
    [
        (
            PLAIN,
            [0, 3, -1],
            r"holds the values \[-1, 3\], which are no labels; they must be 0 to 2",
        ),
        (GAPS, [0, 2, 255], r"holds the values \[2\], .* must be one of \[0, 1, 5, 255\]: correct"),
        (GAPS, [256, 0, 1], r"holds the values \[256\]"),
        (GAPS, [-5, 0, 1], r"holds the values \[-5\]"),
    ],
)
def test_a_value_that_is_no_label_has_no_position(
    labels: Labels, values: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        labels.to_positions(np.array([[values]], np.int32))


def test_what_is_predicted_has_the_users_values() -> None:
    logits = np.eye(4, dtype=np.float32).reshape(1, 2, 2, 4)
    segmentation = GAPS.segment(logits)
    assert segmentation.tolist() == [[[0, 1], [5, 255]]]
    assert segmentation.dtype == np.uint8
    logits = np.array([[1, -1], [1, 1], [-1, -1]], np.float32).reshape(1, 1, 3, 2)
    segmentation = GAPPED_REGIONS.segment(logits)
    assert segmentation.tolist() == [[[1, 300, 0]]]
    assert segmentation.dtype == np.uint16


def test_probabilities_of_labels_add_up_to_1_and_those_of_regions_stand_alone() -> None:
    logits = np.array([[0.0, np.log(3), 1e4], [-1e4, 0.0, 0.0]], np.float32)
    found = PLAIN.probabilities(logits)
    assert found.tolist() == [[0, 0, 1], [0, 0.5, 0.5]]
    assert found.dtype == np.float32
    regions = REGIONS.probabilities(np.array([[np.log(3), -1e4], [0, 1e4]], np.float32))
    np.testing.assert_allclose(regions, [[0.75, 0], [0.5, 1]], rtol=1e-6)


def test_what_the_integers_mean_is_told_as_dataset_json_does() -> None:
    plain = Labels(labels={"background": 0, "Kopf": 1, "Fuß": 4})
    assert plain.as_text == '{"labels": {"background": 0, "Kopf": 1, "Fuß": 4}}'
    regions = Labels(
        labels={"background": 0, "whole": (1, 2), "core": 2}, regions_class_order=(1, 2)
    )
    assert json.loads(regions.as_text) == {
        "labels": {"background": 0, "whole": [1, 2], "core": 2},
        "regions_class_order": [1, 2],
    }
