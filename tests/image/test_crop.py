from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from nnseg.axes import Box, Mask, Shape
from nnseg.image.crop import bounding_box, crop_to_body, cut, nonzero_mask

BOX: Box = ((1, 3), (0, 2), (2, 5))


def shell(gap: bool = False) -> Mask:
    """A hollow box with faces one voxel thick; with `gap`, one voxel of a face is missing."""
    mask = np.zeros((7, 8, 9), dtype=np.bool_)
    mask[1:6, 1:7, 1:8] = True
    mask[2:5, 2:6, 2:7] = False
    mask[1, 3, 4] = not gap
    return mask


def image_of(*masks: Mask) -> np.ndarray:
    return np.stack(masks).astype(np.float32)


def put_back(part: NDArray[Any], box: Box, shape: Shape, fill: Any) -> NDArray[Any]:
    """An array that is `fill` but for its cut, which is `part`."""
    whole = np.full((*part.shape[:-3], *shape), fill, dtype=part.dtype)
    cut(whole, box)[...] = part
    return whole


def test_a_voxel_that_any_channel_fills_is_inside() -> None:
    first, second = np.zeros((2, 3, 4, 5), dtype=np.bool_)
    first[0, 0, 0] = second[2, 3, 4] = True
    assert np.array_equal(nonzero_mask(image_of(first, second)), first | second)


def test_negative_values_are_data() -> None:
    assert nonzero_mask(np.full((1, 2, 3, 4), -1024, dtype=np.float32)).all()


def test_a_hole_is_filled() -> None:
    assert nonzero_mask(image_of(shell())).sum() == 5 * 6 * 7


def test_background_that_reaches_the_border_through_a_gap_stays() -> None:
    assert np.array_equal(nonzero_mask(image_of(shell(gap=True))), shell(gap=True))


def test_background_that_touches_the_outside_only_by_an_edge_is_a_hole() -> None:
    mask = np.ones((3, 4, 5), dtype=np.bool_)
    mask[1, 1, 1] = mask[0, 0, 1] = False  # the second lies in the border, beyond an edge
    expected = np.ones_like(mask)
    expected[0, 0, 1] = False
    assert np.array_equal(nonzero_mask(image_of(mask)), expected)


def test_one_slice_has_no_holes() -> None:
    ring = np.ones((1, 3, 4), dtype=np.bool_)
    ring[0, 1, 1] = False
    assert np.array_equal(nonzero_mask(image_of(ring)), ring)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.tuples(*[st.integers(1, 7)] * 3), st.floats(0.3, 0.95), st.integers(0, 10**6))
def test_holes_are_those_of_scipy(shape: tuple[int, int, int], density: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random(shape) < density
    assert np.array_equal(nonzero_mask(image_of(mask)), ndimage.binary_fill_holes(mask))


def test_the_image_is_not_changed() -> None:
    image = image_of(shell())
    before = image.copy()
    nonzero_mask(image)
    assert np.array_equal(image, before)


def test_the_box_is_the_smallest_around_the_mask() -> None:
    mask = np.zeros((4, 5, 6), dtype=np.bool_)
    mask[1, 4, 2] = mask[2, 3, 5] = True
    assert bounding_box(mask) == ((1, 3), (3, 5), (2, 6))


def test_the_box_of_an_empty_mask_is_the_whole_array() -> None:
    assert bounding_box(np.zeros((2, 3, 4), dtype=np.bool_)) == ((0, 2), (0, 3), (0, 4))


@pytest.mark.parametrize("leading", [(), (2,)])
def test_what_is_written_into_a_cut_lies_where_it_was_taken(leading: tuple[int, ...]) -> None:
    array = np.arange(1, 1 + np.prod((*leading, 4, 5, 6)), dtype=np.int16)
    array = array.reshape(*leading, 4, 5, 6)
    part = cut(array, BOX)
    assert part.shape == (*leading, 2, 2, 3)
    back = put_back(part, BOX, (4, 5, 6), fill=-1)
    assert back.dtype == array.dtype
    assert np.array_equal(cut(back, BOX), part)
    outside = np.ones((4, 5, 6), dtype=np.bool_)
    outside[1:3, 0:2, 2:5] = False
    assert (back[..., outside] == -1).all()


sizes = st.tuples(*[st.integers(1, 9)] * 3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes, st.data(), st.integers(0, 10**6))
def test_any_box_is_put_back_where_it_was_cut(
    shape: tuple[int, int, int], data: st.DataObject, seed: int
) -> None:
    starts = [data.draw(st.integers(0, size - 1)) for size in shape]
    stops = [data.draw(st.integers(a + 1, size)) for a, size in zip(starts, shape, strict=True)]
    z, y, x = zip(starts, stops, strict=True)
    array = np.random.default_rng(seed).integers(1, 99, (2, *shape))
    part = cut(array, (z, y, x))
    back = put_back(part, (z, y, x), shape, 0)
    assert np.array_equal(cut(back, (z, y, x)), part)
    assert np.count_nonzero(back) == part.size
    assert np.array_equal(back[back != 0], array[back != 0])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes, st.floats(0.0, 1.0), st.integers(0, 10**6))
def test_cropping_to_the_body_loses_no_voxel_that_holds_data(
    shape: tuple[int, int, int], density: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    channels = [rng.integers(1, 9, shape) * (rng.random(shape) < density) for _ in range(2)]
    labels = rng.integers(0, 3, shape)
    found = crop_to_body(channels, labels)
    assert found.shape == shape
    for whole, part in zip(channels, found.channels, strict=True):
        assert np.array_equal(put_back(part, found.box, shape, 0), whole)
    assert found.segmentation is not None
    assert np.array_equal(found.segmentation, cut(labels, found.box))
    mask = np.ones(found.channels[0].shape, bool) if found.mask is None else found.mask
    if mask.any():
        assert np.array_equal(put_back(mask, found.box, shape, False), nonzero_mask(channels))
        assert bounding_box(mask) == tuple((0, size) for size in mask.shape)
    assert found.relative_size == mask.size / np.prod(shape)
    arrays = (*found.channels, found.segmentation, found.mask)
    assert found.bytes == sum(array.nbytes for array in arrays if array is not None)
