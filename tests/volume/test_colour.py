from pathlib import Path

import numpy as np
import pytest

from nnseg.errors import DataError
from nnseg.volume.colour import pick_channels

HERE = Path("a.png")


@pytest.mark.parametrize(
    ("kind", "opaque"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1.0)]
)
def test_opaque_is_the_most_that_a_type_holds_and_1_for_floats(kind: type, opaque: float) -> None:
    array = np.zeros((4, 3, 4, 5), kind)
    array[3] = opaque
    assert len(pick_channels(HERE, array, 3, alpha=True)) == 3
    array[3, 1, 2, 3] = opaque / 2
    with pytest.raises(DataError, match=r"a\.png: 1 pixels are not opaque"):
        pick_channels(HERE, array, 3, alpha=True)


@pytest.mark.parametrize(("count", "alpha"), [(3, False), (2, True), (1, True), (5, True)])
def test_only_alpha_is_left_out(count: int, alpha: bool) -> None:
    with pytest.raises(DataError, match=f"holds 4 values a pixel where {count} should be"):
        pick_channels(HERE, np.full((4, 3, 4, 5), 255, np.uint8), count, alpha=alpha)


@pytest.mark.parametrize("count", [None, 4])
def test_what_is_counted_is_taken_as_it_is(count: int | None) -> None:
    array = np.zeros((4, 3, 4, 5), np.uint8)
    assert pick_channels(HERE, array, count, alpha=True) is array
