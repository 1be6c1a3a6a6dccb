import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.transform import resize

from nnseg.axes import Image, Segmentation, Shape, Spacing
from nnseg.errors import PlanError
from nnseg.image import resample
from nnseg.image.grids import spline_matrix
from nnseg.image.resample import (
    resample_image,
    resample_segmentation,
    separate_axis,
    target_shape,
)

GRIDS = [
    ((9, 14, 11), (12, 21, 17)),  # up
    ((13, 16, 18), (7, 9, 12)),  # down
    ((8, 15, 12), (13, 7, 12)),  # up, down and neither
    ((7, 10, 9), (14, 20, 27)),  # whole factors, where labels tie
    ((1, 13, 10), (3, 9, 10)),  # one slice becomes several
    ((11, 12, 9), (1, 16, 5)),  # and the reverse
]
AXES = [None, 0, 1, 2]


def noise(shape: tuple[int, ...], seed: int = 0) -> Image:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def blobs(shape: Shape, seed: int = 0) -> Segmentation:
    """Labels -1 to 3 in blobs a few voxels wide."""
    generator = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(generator.normal(size=shape), 0.8) for _ in range(5)]
    return (np.argmax(fields, axis=0) - 1).astype(np.int8)


def resized(array: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    return np.asarray(resize(array, shape, order, mode="edge", anti_aliasing=False))


def resized_labels(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = np.unique(labels)
    scores = np.stack([resized((labels == value).astype(float), shape, 1) for value in values])
    best = scores.max(axis=0)
    nearest = resized(labels.astype(float), shape, 0)
    among_best = ((values[(...,) + (None,) * len(shape)] == nearest) & (scores == best)).any(axis=0)
    return np.where(among_best, nearest, values[scores.argmax(axis=0)])


def along(array: np.ndarray, shape: Shape, order: int) -> np.ndarray:
    """What scipy gives on `shape` at half-pixel coordinates."""
    scales = [old / new for old, new in zip(array.shape, shape, strict=True)]
    places = [
        scale * (index + 0.5) - 0.5 for scale, index in zip(scales, np.indices(shape), strict=True)
    ]
    return np.asarray(ndimage.map_coordinates(array, places, order=order, mode="nearest"))


def by_slices(
    array: np.ndarray, shape: Shape, axis: int, resize_slice: Callable[..., np.ndarray]
) -> np.ndarray:
    plane = tuple(np.delete(shape, axis))
    slices = np.moveaxis(array, axis, 0)
    return np.stack([resize_slice(one, plane) for one in slices], axis=axis)


def reference_image(
    image: Image, shape: Shape, axis: int | None, order: int, order_along: int
) -> np.ndarray:
    channels = []
    for channel in image.astype(float):
        if axis is None:
            channels.append(resized(channel, shape, order))
        else:
            flat = by_slices(channel, shape, axis, lambda one, to: resized(one, to, order))
            channels.append(along(flat, shape, order_along))
    return np.stack(channels)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("shape", "new_shape"), GRIDS)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_images_equal_those_of_skimage(
    shape: Shape, new_shape: Shape, axis: int | None, order: int
) -> None:
    image = noise((2, *shape))
    result = resample_image(image, new_shape, axis, order)
    assert result.dtype == np.float32
    expected = reference_image(image, new_shape, axis, order, 0)
    assert np.abs(result - expected).max() < 1e-6 * np.ptp(image)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order_along", [1, 3])
def test_splines_along_the_separate_axis_equal_those_of_scipy(axis: int, order_along: int) -> None:
    image = noise((1, 9, 8, 7))
    for shape in ((14, 12, 11), (5, 6, 5)):
        result = resample_image(image, shape, axis, 3, order_along)
        expected = reference_image(image, shape, axis, 3, order_along)
        assert np.abs(result - expected).max() < 1e-6 * np.ptp(image)


@pytest.mark.parametrize("axis", AXES)
def test_a_large_offset_costs_no_more_than_float32_must(axis: int | None) -> None:
    image = 1e6 + 50 * noise((1, 9, 12, 10))
    expected = reference_image(image, (13, 17, 8), axis, 3, 0)
    error = np.abs(resample_image(image, (13, 17, 8), axis) - expected)
    assert error.max() < np.spacing(np.float32(1e6)) / 2 + 1e-6 * np.ptp(image)


def test_a_wide_axis_is_no_less_exact_than_a_narrow_one() -> None:
    image = noise((1, 3, 2, 301))
    expected = resized(image[0].astype(float), (3, 2, 411), 3)
    assert np.abs(resample_image(image, (3, 2, 411), None)[0] - expected).max() < 1e-6 * 8


def test_splines_do_not_leave_the_range_of_their_slice() -> None:
    image = np.zeros((1, 3, 10, 12), dtype=np.float32)
    image[0, 1, :, 6:] = 1
    image[0, 2] = 100
    result = resample_image(image, (3, 17, 31), axis=0)
    assert (result[0, 1].min(), result[0, 1].max()) == (0, 1)


@pytest.mark.parametrize("axis", AXES)
def test_the_same_shape_gives_the_same_arrays(axis: int | None) -> None:
    image, labels = noise((2, 4, 5, 6)), blobs((4, 5, 6))
    assert resample_image(image, (4, 5, 6), axis) is image
    assert resample_segmentation(labels, (4, 5, 6), axis) is labels


def test_a_view_is_resampled_like_its_copy_and_neither_changes() -> None:
    whole = noise((2, 9, 11, 13))
    before = whole.copy()
    view = whole.transpose(0, 2, 3, 1)[:, 1:9, 2:]
    for axis in AXES:
        result = resample_image(view, (10, 6, 12), axis)
        assert np.array_equal(result, resample_image(view.copy(), (10, 6, 12), axis))
    assert np.array_equal(whole, before)


shapes = st.tuples(*[st.integers(1, 9)] * 3)
axes = st.sampled_from(AXES)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(shapes, shapes, axes, st.sampled_from([0, 1, 3]), st.floats(-1e6, 1e6, width=32))
def test_constants_stay_constant(
    shape: Shape, new_shape: Shape, axis: int | None, order: int, value: float
) -> None:
    image = np.full((1, *shape), value, dtype=np.float32)
    assert (resample_image(image, new_shape, axis, order) == np.float32(value)).all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(shapes, shapes)
def test_axes_can_be_resampled_one_after_another(shape: Shape, new_shape: Shape) -> None:
    image = noise((1, *shape))
    stepwise = image
    for axis in range(3):
        stepwise = resample_image(
            stepwise, (*new_shape[: axis + 1], *shape[axis + 1 :]), None, order=1
        )
    at_once = resample_image(image, new_shape, None, order=1)
    assert np.abs(at_once - stepwise).max() < 1e-5


seeds = st.integers(0, 2**32 - 1)
permutations = st.permutations((0, 1, 2))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shapes, shapes, axes, st.sampled_from([0, 1, 2, 3, 4, 5]), seeds)
def test_any_image_equals_that_of_skimage(
    shape: Shape, new_shape: Shape, axis: int | None, order: int, seed: int
) -> None:
    image = noise((1, *shape), seed)
    expected = reference_image(image, new_shape, axis, order, 0)
    error = np.abs(resample_image(image, new_shape, axis, order) - expected)
    assert error.max() < 2e-6 * max(np.ptp(image), 1e-3)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shapes, shapes, axes, st.sampled_from([0, 1, 3]), permutations, seeds)
def test_the_order_of_axes_does_not_matter(
    shape: Shape,
    new_shape: Shape,
    axis: int | None,
    order: int,
    permutation: list[int],
    seed: int,
) -> None:
    image = noise((1, *shape), seed)
    plain = resample_image(image, new_shape, axis, order)
    turned = resample_image(
        image.transpose(0, *(one + 1 for one in permutation)),
        tuple(new_shape[one] for one in permutation),
        None if axis is None else permutation.index(axis),
        order,
    )
    assert np.abs(turned - plain.transpose(0, *(one + 1 for one in permutation))).max() < 1e-5


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shapes, st.sampled_from([None, 0]), st.sampled_from([0, 1, 3]), seeds)
def test_the_own_shape_changes_nothing_even_beside_an_axis_that_changes(
    shape: Shape, axis: int | None, order: int, seed: int
) -> None:
    image = noise((1, *shape), seed)
    assert resample_image(image, shape, axis, order) is image
    twice = resample_image(image, (shape[0], shape[1], 2 * shape[2]), axis, order)
    for z in range(shape[0]):  # what does not change along z can be done slice by slice
        one = resample_image(image[:, z : z + 1], (1, shape[1], 2 * shape[2]), axis, order)
        low, high = one.min(), one.max()
        assert np.abs(twice[:, z].clip(low, high) - one[:, 0]).max() < 1e-5


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shapes, shapes, axes, seeds)
def test_any_label_map_equals_that_of_skimage(
    shape: Shape, new_shape: Shape, axis: int | None, seed: int
) -> None:
    labels = blobs(shape, seed)
    result = resample_segmentation(labels, new_shape, axis)
    if axis is None:
        expected = resized_labels(labels, new_shape)
    else:
        flat = by_slices(labels, new_shape, axis, lambda one, to: resized_labels(one, to))
        expected = along(flat, new_shape, 0)
    assert np.array_equal(result, expected)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(shapes, shapes, axes)
def test_one_label_stays_one_label(shape: Shape, new_shape: Shape, axis: int | None) -> None:
    labels = np.full(shape, 7, dtype=np.uint8)
    assert (resample_segmentation(labels, new_shape, axis) == 7).all()


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("shape", "new_shape"), GRIDS)
def test_labels_equal_those_of_skimage_in_every_voxel(
    shape: Shape, new_shape: Shape, axis: int | None
) -> None:
    labels = blobs(shape)
    result = resample_segmentation(labels, new_shape, axis)
    assert result.dtype == labels.dtype
    if axis is None:
        expected = resized_labels(labels, new_shape)
    else:
        flat = by_slices(labels, new_shape, axis, lambda one, to: resized_labels(one, to))
        expected = along(flat, new_shape, 0)
    assert np.array_equal(result, expected)


def test_ties_at_the_border_fall_as_in_skimage() -> None:
    labels = np.zeros((12, 17, 23), dtype=np.uint8)
    labels[6:] = 1
    expected = resized_labels(labels, (19, 27, 31))
    assert np.array_equal(resample_segmentation(labels, (19, 27, 31), None), expected)


@pytest.mark.parametrize("axis", AXES)
def test_order_0_takes_the_nearest_label(axis: int | None) -> None:
    labels = blobs((7, 9, 8))
    for shape in ((14, 11, 16), (5, 3, 4)):
        result = resample_segmentation(labels, shape, axis, order=0)
        assert np.array_equal(result, resized(labels.astype(float), shape, 0))


def test_of_labels_that_meet_evenly_one_is_taken_and_no_hole_is_left() -> None:
    labels = np.array([[[1, 2], [3, 4]]], dtype=np.uint8)
    assert resample_segmentation(labels, (1, 1, 1), None).item() in (1, 2, 3, 4)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (2, [4, 0]),  # the middle of 4 and 4; the middle of 2 and 3
        (6, [4, 4, 4, 2, 0, 3]),
    ],
)
def test_linear_along_the_separate_axis_takes_the_label_with_over_half(
    axis: int, size: int, expected: list[int]
) -> None:
    line = np.moveaxis(np.array([[[4, 4, 2, 3]]], dtype=np.uint8), 2, axis)
    shape = tuple(size if other == axis else 1 for other in range(3))
    result = resample_segmentation(line, shape, axis, order_along=1)
    assert result.shape == shape
    assert result.ravel().tolist() == expected


def test_a_label_map_larger_than_a_slab_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = blobs((9, 10, 11))
    at_once = resample_segmentation(labels, (17, 12, 19), None)
    monkeypatch.setattr("nnseg.image.resample._SLAB_VOXELS", 500)
    monkeypatch.setattr("nnseg.image.resample._CHUNK_VOXELS", 7)
    assert np.array_equal(resample_segmentation(labels, (17, 12, 19), None), at_once)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("order_along", [0, 1])
def test_an_image_larger_than_a_slab_is_whole(
    monkeypatch: pytest.MonkeyPatch, axis: int | None, order_along: int
) -> None:
    image = noise((2, 23, 20, 21))
    shapes = [(31, 12, 29), (9, 30, 21), (23, 33, 10)]
    at_once = [resample_image(image, shape, axis, 3, order_along) for shape in shapes]
    monkeypatch.setattr(resample, "_SLAB_VOXELS", 900)
    monkeypatch.setattr(resample, "_BAND_ROWS", 5)
    resample._bands.cache_clear()
    for shape, expected in zip(shapes, at_once, strict=True):
        result = resample_image(image, shape, axis, 3, order_along)
        assert np.abs(result - expected).max() < 1e-5
    resample._bands.cache_clear()


@pytest.mark.parametrize(("axis", "new_shape"), [(None, (900, 50, 52)), (0, (1700, 50, 52))])
def test_a_long_image_needs_little_memory_besides_its_result(
    monkeypatch: pytest.MonkeyPatch, axis: int | None, new_shape: Shape
) -> None:
    monkeypatch.setattr(resample, "_SLAB_VOXELS", 2**17)
    monkeypatch.setattr(resample, "_CHUNK_VOXELS", 2**11)
    image = noise((1, 1200, 40, 44))
    labels = (image[0] > 1).astype(np.int8)
    tracemalloc.start()
    for resized, original, times in (
        (lambda: resample_image(image, new_shape, axis), image, 1),
        (lambda: resample_segmentation(labels, new_shape, axis), labels, 2),
    ):
        resized()  # the matrices of the axes stay in memory
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = resized()
        peak = tracemalloc.get_traced_memory()[1] - before
        assert peak < times * result.nbytes + 0.2 * original.nbytes + 2e6, original.dtype
    tracemalloc.stop()


@pytest.mark.parametrize(("order", "order_along"), [(3, 0), (1, 3)])
def test_cubic_labels_are_refused(order: int, order_along: int) -> None:
    with pytest.raises(PlanError, match="3"):
        resample_segmentation(blobs((4, 5, 6)), (5, 6, 7), 0, order, order_along)


@pytest.mark.parametrize(
    ("sizes", "spacing", "new_spacing", "expected"),
    [
        ((10, 20, 30), (3.0, 1.0, 0.5), (1.5, 1.0, 1.0), (20, 20, 15)),
        ((5, 3, 1), (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (2, 2, 0)),  # halves go to the even
    ],
)
def test_the_new_shape_covers_the_same_extent(
    sizes: Shape, spacing: Spacing, new_spacing: Spacing, expected: Shape
) -> None:
    assert target_shape(sizes, spacing, new_spacing) == expected


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_coarsest_axis_is_separate_wherever_it_lies(axis: int) -> None:
    spacing = [1.0, 1.1, 1.2]
    spacing[axis] = 4.0
    coarse, fine = tuple(spacing), (1.0, 1.1, 1.2)
    assert separate_axis(coarse, fine) == axis
    assert separate_axis(fine, coarse) == axis


def test_the_spacing_before_counts_first() -> None:
    assert separate_axis((4.0, 1.0, 1.0), (1.0, 4.0, 1.0)) == 0
    # two coarse axes before: none is separate, whatever comes after
    assert separate_axis((4.0, 4.0, 1.0), (1.0, 1.0, 4.0)) is None


@pytest.mark.parametrize(("spacing", "axis"), [(3.0, None), (3.01, 0)])
def test_an_axis_is_separate_only_above_three_times(spacing: float, axis: int | None) -> None:
    assert separate_axis((spacing, 1.0, 1.0), (1.0, 1.0, 1.0)) == axis


def test_force_overrules_the_ratio() -> None:
    assert separate_axis((1.2, 1.0, 1.0), (1.0, 1.0, 9.0), force=True) == 0
    assert separate_axis((9.0, 1.0, 1.0), (9.0, 1.0, 1.0), force=False) is None
    assert separate_axis((1.2, 1.2, 1.0), (9.0, 1.0, 1.0), force=True) is None
    assert separate_axis((1.0, 1.0, 1.0), (9.0, 1.0, 1.0), force=True) is None


@pytest.mark.parametrize(("axis", "along", "runs"), [(None, 0, 3), (0, 0, 5), (0, 1, 3)])
def test_who_is_asked_is_asked_before_each_run_of_planes(
    monkeypatch: pytest.MonkeyPatch, axis: int | None, along: int, runs: int
) -> None:
    monkeypatch.setattr(resample, "_SLAB_VOXELS", 1)
    asked: list[bool] = []
    image, shape = noise((2, 5, 6, 7)), (70, 8, 9)  # in bands of 32
    resample_image(image, shape, axis, 3, along, ask=lambda: asked.append(True))
    assert len(asked) == 2 * runs
    asked.clear()
    resample_segmentation(blobs((5, 6, 7)), shape, None, ask=lambda: asked.append(True))
    assert len(asked) == 70


def test_of_the_large_matrices_of_splines_only_a_few_are_kept() -> None:
    for size in range(10, 20):
        resample_image(noise((1, size, size + 10, 5)), (size + 1, size + 11, 5), None)
    assert spline_matrix.cache_info().currsize <= 4
