"""Where one label map agrees best with another."""

import numpy as np
import pytest

from nnseg.axes import Segmentation
from nnseg.image import offset as module
from nnseg.image.offset import best_offset, moved, thinned


def draw(shape: tuple[int, int, int]) -> Segmentation:
    """Two boxes of labels that look alike neither turned nor exchanged."""
    z, y, x = shape
    array = np.zeros(shape, np.uint8)
    array[z // 3 : z // 2, y // 4 : y // 2, x // 4 : x // 2] = 1
    array[z // 2 : z // 2 + 2, y // 4 : y // 3, x // 4 : x // 3 + 4] = 2
    return array


@pytest.mark.parametrize("offset", [(0, 0, 0), (2, 0, 0), (0, -3, 0), (-1, 2, 4)])
def test_a_moved_map_is_moved_back(offset: tuple[int, int, int]) -> None:
    fixed = draw((12, 20, 16))
    back = best_offset(fixed, moved(fixed, tuple(-at for at in offset)))
    assert back == offset


def test_labels_are_told_apart() -> None:
    fixed, moving = np.zeros((2, 3, 30), np.uint8), np.zeros((2, 3, 30), np.uint8)
    fixed[..., 8:12], fixed[..., 12:20] = 1, 2
    moving[..., 5:9], moving[..., 9:17] = 1, 2
    assert best_offset(fixed, moving) == (0, 0, 3)
    moving[moving > 0] = 3 - moving[moving > 0]  # the wide one is 1 now and begins at 9
    assert best_offset(fixed, moving) != (0, 0, 3)


def test_a_large_map_is_thinned_and_still_moved_to_the_voxel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fixed = draw((24, 40, 32))
    monkeypatch.setattr(module, "MOST_VOXELS", 24 * 40 * 32 // 20)
    assert best_offset(fixed, moved(fixed, (-3, 5, 1))) == (3, -5, -1)


def test_maps_without_labels_are_not_moved() -> None:
    empty = np.zeros((3, 4, 5), np.uint8)
    assert best_offset(empty, empty) == (0, 0, 0)
    assert best_offset(empty, draw((3, 4, 5))) == (0, 0, 0)


def test_a_map_that_is_moved_loses_what_leaves_it() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert moved(array, (0, 1, -2)).tolist() == [
        [[0, 0, 0, 0], [2, 3, 0, 0], [6, 7, 0, 0]],
        [[0, 0, 0, 0], [14, 15, 0, 0], [18, 19, 0, 0]],
    ]
    assert not moved(array, (2, 0, 0)).any()


def test_thinning_leaves_as_much_out_at_both_ends() -> None:
    array = np.arange(2 * 7 * 12).reshape(2, 7, 12)
    assert thinned(array, array.size) is not array
    assert np.array_equal(thinned(array, array.size), array)
    small = thinned(array, 40)  # every second
    assert small.shape == (1, 4, 6)
    assert small.size <= 40
    ends = thinned(np.arange(12).reshape(1, 1, 12), 4).ravel()
    assert ends.tolist() == [1, 4, 7, 10]  # 2 of 3 lie outside, one at each end
