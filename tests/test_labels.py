import numpy as np
import pytest

from nnseg.errors import DataError
from nnseg.labels import Labels

PLAIN = Labels(labels={"background": 0, "liver": 1, "kidney": 2})
REGIONS = Labels(
    labels={"background": 0, "whole": (1, 2), "core": 2, "ignore": 3}, regions_class_order=(1, 2)
)


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        ({"liver": 1}, None, "labels.background is missing; it must be 0"),
        ({"background": 1, "liver": 0}, None, "labels.background is 1; it must be 0"),
        ({"background": 0}, None, "labels has no foreground"),
        ({"background": 0, "ignore": 1}, None, "labels has no foreground"),
        ({"background": 0, "liver": 1, "kidney": 3}, None, r"integers \[0, 1, 3\]"),
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
    logits = np.zeros((3, 2, 3, 4), np.float32)
    logits[2, 1, 2, 3] = 1
    logits[1, 0, 1, 2] = 1
    segmentation = PLAIN.segment(logits)
    assert segmentation.dtype == np.uint8
    assert segmentation[1, 2, 3] == 2
    assert segmentation[0, 1, 2] == 1
    assert np.count_nonzero(segmentation) == 2


def test_later_regions_paint_over_earlier_ones_and_half_is_not_enough() -> None:
    logits = np.full((2, 1, 2, 3), -1, np.float32)
    logits[0, 0, 0] = 1
    logits[1, 0, 0, 0] = 1
    logits[1, 0, 1, 2] = 0  # a probability of exactly 0.5
    assert REGIONS.segment(logits).tolist() == [[[2, 1, 1], [0, 0, 0]]]
