"""What holds of any image, label map or mask: resampled, cropped, tiled, turned, taken apart."""

import itertools

import numpy as np
from hypothesis import strategies as st
from laws import (
    APART,
    AXES,
    ORDERS,
    SEEDS,
    SHAPES,
    SPACINGS,
    image_of,
    labels_of,
    law,
    mask_of,
)
from scipy import ndimage

from nnseg.axes import Order, Shape, Spacing, box_slices, inverse_order, permute
from nnseg.image.components import Connectivity, largest_component, number_components
from nnseg.image.crop import bounding_box, crop_to_body, nonzero_mask
from nnseg.image.intensity import CaseIntensity, measure, pool
from nnseg.image.normalize import NORMALIZERS
from nnseg.image.offset import moved
from nnseg.image.resample import (
    resample_image,
    resample_segmentation,
    separate_axis,
    target_shape,
)
from nnseg.image.surface import (
    average_distance,
    robust_hausdorff,
    surface_dice,
    surface_distances,
)
from nnseg.labels import Labels
from nnseg.model.tiles import tile_boxes, tile_shares, tile_starts
from nnseg.postprocess import KeepLargest, MinimumSize, Postprocessing, apply

SPLINES = st.integers(0, 5)
LINEAR = st.integers(0, 1)
CONNECTIVITIES = st.sampled_from((6, 18, 26))
FOUR = Labels(labels={"background": 0, "a": 1, "b": 2, "c": 3})
ANY_RULE = st.one_of(
    st.sampled_from(("a", "b", "c")).map(lambda name: KeepLargest(labels=(name,))),
    st.builds(
        lambda label, voxels: MinimumSize(label=label, smallest=voxels, unit="voxels"),
        st.sampled_from(("a", "b", "c")),
        st.integers(1, 20),
    ),
)


@law(shape=SHAPES, new=SHAPES, value=st.floats(-1e4, 1e4, width=32), apart=APART, order=SPLINES)
def a_constant_image_resamples_to_the_constant(
    shape: Shape, new: Shape, value: float, apart: int | None, order: int
) -> None:
    image = np.full((1, *shape), value, dtype=np.float32)
    assert (resample_image(image, new, apart, order) == np.float32(value)).all()


@law(shape=SHAPES, new=SHAPES, seed=SEEDS, apart=APART, order=SPLINES)
def a_resampled_image_stays_in_its_range_and_its_input_as_it_was(
    shape: Shape, new: Shape, seed: int, apart: int | None, order: int
) -> None:
    image = image_of((2, *shape), seed)
    before = image.copy()
    found = resample_image(image, new, apart, order)
    assert found.shape == (2, *new)
    assert (image == before).all()
    for channel, resized in zip(image, found, strict=True):
        assert channel.min() <= resized.min() <= resized.max() <= channel.max()


@law(shape=SHAPES, seed=SEEDS, apart=APART, order=SPLINES)
def an_image_of_its_own_shape_stays_as_it_is(
    shape: Shape, seed: int, apart: int | None, order: int
) -> None:
    image, segmentation = image_of((1, *shape), seed), labels_of(shape, seed)
    assert (resample_image(image, shape, apart, order) == image).all()
    assert (resample_segmentation(segmentation, shape, apart, min(order, 1)) == segmentation).all()


@law(shape=SHAPES, new=SHAPES, seed=SEEDS, axis=AXES, order=SPLINES)
def a_mirrored_image_resamples_to_the_mirror_image(
    shape: Shape, new: Shape, seed: int, axis: int, order: int
) -> None:
    if order == 0:
        return  # halves of a voxel are nearest to one side
    image = image_of((1, *shape), seed)
    there = resample_image(np.flip(image, axis + 1), new, None, order)
    back = np.flip(resample_image(image, new, None, order), axis + 1)
    np.testing.assert_allclose(there, back, atol=2e-4)


@law(shape=SHAPES, new=SHAPES, seed=SEEDS, turn=ORDERS, order=SPLINES)
def a_turned_image_resamples_to_the_turned_one(
    shape: Shape, new: Shape, seed: int, turn: Order, order: int
) -> None:
    image = image_of(shape, seed)
    there = resample_image(image.transpose(turn)[None], permute(new, turn), None, order)[0]
    back = resample_image(image[None], new, None, order)[0].transpose(turn)
    np.testing.assert_allclose(there, back, atol=2e-4)


@law(shape=SHAPES, new=SHAPES, seed=SEEDS, apart=APART, factor=st.sampled_from((0.25, 2.0, 8.0)))
def a_brighter_image_resamples_to_the_brighter_one(
    shape: Shape, new: Shape, seed: int, apart: int | None, factor: float
) -> None:
    image = image_of((1, *shape), seed)
    there = resample_image(image * np.float32(factor), new, apart, 3)
    np.testing.assert_allclose(there, resample_image(image, new, apart, 3) * factor, atol=1e-3)


@law(shape=SHAPES, new=SHAPES, seed=SEEDS, apart=APART, order=LINEAR, along=LINEAR)
def resampling_makes_no_label_up(
    shape: Shape, new: Shape, seed: int, apart: int | None, order: int, along: int
) -> None:
    segmentation = labels_of(shape, seed)
    before = segmentation.copy()
    found = resample_segmentation(segmentation, new, apart, order, along)
    assert found.shape == new
    assert found.dtype == segmentation.dtype
    # along an axis by itself, background is what no label has over half of
    extra = {0} if apart is not None and along == 1 else set()
    assert set(np.unique(found).tolist()) <= set(np.unique(segmentation).tolist()) | extra
    assert (segmentation == before).all()


@law(shape=SHAPES, seed=SEEDS, times=st.tuples(*[st.sampled_from((1, 3, 5))] * 3), apart=APART)
def a_label_map_repeated_voxel_by_voxel_comes_back(
    shape: Shape, seed: int, times: Shape, apart: int | None
) -> None:
    segmentation = labels_of(shape, seed)
    z, y, x = (n * t for n, t in zip(shape, times, strict=True))
    fine = resample_segmentation(segmentation, (z, y, x), apart, 0)
    wanted = segmentation
    for axis, t in enumerate(times):
        wanted = wanted.repeat(t, axis)
    assert (fine == wanted).all()
    assert (resample_segmentation(fine, shape, apart, 0) == segmentation).all()


@law(shape=SHAPES, spacing=SPACINGS, turn=ORDERS)
def the_axis_apart_and_the_new_shape_turn_with_the_axes(
    shape: Shape, spacing: Spacing, turn: Order
) -> None:
    new = (1.0, 1.0, 1.0)
    assert target_shape(shape, spacing, spacing) == shape
    turned = target_shape(permute(shape, turn), permute(spacing, turn), new)
    assert turned == permute(target_shape(shape, spacing, new), turn)
    apart = separate_axis(spacing, spacing)
    found = separate_axis(permute(spacing, turn), permute(spacing, turn))
    assert (None if found is None else turn[found]) == apart


@law(order=ORDERS, values=SPACINGS)
def an_order_of_axes_and_its_inverse_undo_each_other(order: Order, values: Spacing) -> None:
    assert permute(permute(values, order), inverse_order(order)) == values
    assert inverse_order(inverse_order(order)) == order


@law(shape=SHAPES, seed=SEEDS)
def the_bounding_box_holds_all_and_could_be_no_smaller(shape: Shape, seed: int) -> None:
    mask = mask_of(shape, seed)
    box = bounding_box(mask)
    if not mask.any():
        assert box == tuple((0, n) for n in shape)
        return
    places = np.argwhere(mask)
    assert box == tuple(zip(places.min(0), places.max(0) + 1, strict=True))


@law(shape=SHAPES, seed=SEEDS)
def a_crop_loses_no_value_and_a_second_one_changes_nothing(shape: Shape, seed: int) -> None:
    image = image_of((2, *shape), seed) * mask_of(shape, seed)
    cropped = crop_to_body(tuple(image), labels_of(shape, seed))
    back = np.zeros_like(image)
    back[(slice(None), *box_slices(cropped.box))] = np.stack(cropped.channels)
    assert (back == image).all()
    assert cropped.segmentation is not None
    again = crop_to_body(cropped.channels, cropped.segmentation)
    assert again.box == tuple((0, n) for n in cropped.channels[0].shape)


@law(shape=SHAPES, seed=SEEDS, axis=AXES, turn=ORDERS)
def the_body_is_the_same_mirrored_turned_and_found_again(
    shape: Shape, seed: int, axis: int, turn: Order
) -> None:
    channel = mask_of(shape, seed).astype(np.float32)
    body = nonzero_mask([channel])
    assert (nonzero_mask([np.flip(channel, axis)]) == np.flip(body, axis)).all()
    assert (nonzero_mask([channel.transpose(turn)]) == body.transpose(turn)).all()
    assert (nonzero_mask([body]) == body).all()
    assert (body >= (channel != 0)).all()


@law(tile=st.integers(1, 40), more=st.integers(0, 120), step=st.floats(0.05, 1.0))
def tiles_go_from_end_to_end_without_a_gap(tile: int, more: int, step: float) -> None:
    size = tile + more
    starts = tile_starts(size, tile, step)
    assert (starts[0], starts[-1]) == (0, size - tile)
    assert all(0 < b - a <= max(1, tile * step) + 1 for a, b in itertools.pairwise(starts))
    covered = np.zeros(size, dtype=bool)
    for start in starts:
        covered[start : start + tile] = True
    assert covered.all()


@law(tile=st.integers(1, 24), more=st.integers(0, 60), step=st.floats(0.1, 1.0))
def the_shares_of_all_tiles_add_up_to_1_in_every_voxel(tile: int, more: int, step: float) -> None:
    size = tile + more
    total = np.zeros(size)
    shares = tile_shares(size, tile, step)
    for start, share in zip(tile_starts(size, tile, step), shares, strict=True):
        total[start : start + tile] += share
    np.testing.assert_allclose(total, 1, atol=1e-9)


@law(tile=SHAPES, more=SHAPES, step=st.floats(0.3, 1.0))
def boxes_of_tiles_lie_inside_and_hold_every_voxel(tile: Shape, more: Shape, step: float) -> None:
    z, y, x = (t + m for t, m in zip(tile, more, strict=True))
    seen = np.zeros((z, y, x), dtype=int)
    for box in tile_boxes((z, y, x), tile, step):
        part = seen[box_slices(box)]
        assert part.shape == tile
        part += 1
    assert seen.min() >= 1


@law(shape=SHAPES, seed=SEEDS, connectivity=CONNECTIVITIES)
def components_are_those_of_scipy(shape: Shape, seed: int, connectivity: Connectivity) -> None:
    mask = mask_of(shape, seed)
    parts, sizes = number_components(mask, connectivity)
    rank = {6: 1, 18: 2, 26: 3}[connectivity]
    theirs, count = ndimage.label(mask, ndimage.generate_binary_structure(3, rank))
    assert len(sizes) == count + 1
    assert sizes.sum() == mask.sum()
    pairs = {(int(a), int(b)) for a, b in zip(parts.ravel(), theirs.ravel(), strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


@law(shape=SHAPES, seed=SEEDS, connectivity=CONNECTIVITIES)
def the_largest_component_is_one_and_none_is_larger(
    shape: Shape, seed: int, connectivity: Connectivity
) -> None:
    mask = mask_of(shape, seed)
    largest = largest_component(mask, connectivity)
    assert (largest <= mask).all()
    assert largest.any() == mask.any()
    assert len(number_components(largest, connectivity)[1]) <= 2
    assert largest.sum() == number_components(mask, connectivity)[1].max(initial=0)


@law(shape=SHAPES, seed=SEEDS, rules=st.lists(ANY_RULE, min_size=1, max_size=2), spacing=SPACINGS)
def rules_take_out_and_never_add(
    shape: Shape, seed: int, rules: list[KeepLargest | MinimumSize], spacing: Spacing
) -> None:
    segmentation = labels_of(shape, seed) * mask_of(shape, seed)  # in pieces
    before = segmentation.copy()
    found = apply(segmentation, Postprocessing(rules=tuple(rules)), FOUR, spacing)
    assert (segmentation == before).all()
    assert ((found == segmentation) | (found == 0)).all()
    for rule in rules[-1:]:
        sizes = _sizes(found, rule)
        least = rule.smallest if isinstance(rule, MinimumSize) else sizes.max(initial=0)
        assert (sizes >= least).all()  # of the largest, all that are equal stay
        assert (apply(found, Postprocessing(rules=(rule,)), FOUR, spacing) == found).all()


def _sizes(segmentation: np.ndarray, rule: KeepLargest | MinimumSize) -> np.ndarray:
    """Count the voxels of each component that a rule is about."""
    name = rule.label if isinstance(rule, MinimumSize) else rule.labels[0]
    mask = segmentation == FOUR.labels[name]
    parts, count = ndimage.label(mask, ndimage.generate_binary_structure(3, 3))
    return np.bincount(parts[mask], minlength=count + 1)[1:]


@law(shape=SHAPES, seed=SEEDS, center=st.floats(-100, 100), scale=st.floats(0.5, 50))
def zscore_forgets_brightness_and_contrast(
    shape: Shape, seed: int, center: float, scale: float
) -> None:
    channel = image_of(shape, seed)
    if channel.size < 2:
        return
    intensity = pool([])
    other = (channel * np.float32(scale) + np.float32(center)).astype(np.float32)
    for each in (channel, other):
        NORMALIZERS["zscore"](each, intensity, None)
    np.testing.assert_allclose(channel, other, atol=2e-3)
    assert abs(float(channel.mean())) < 1e-3
    assert abs(float(channel.std()) - 1) < 1e-3


@law(shape=SHAPES, seed=SEEDS, name=st.sampled_from(("zscore", "ct", "none", "rescale_to_0_1")))
def no_normalizer_turns_the_order_of_values_round(shape: Shape, seed: int, name: str) -> None:
    channel = image_of(shape, seed)
    before = channel.copy()
    NORMALIZERS[name](channel, pool([measure(before.ravel())]), None)
    assert np.isfinite(channel).all()
    assert (np.diff(channel.ravel()[before.ravel().argsort()]) >= 0).all()


@law(seed=SEEDS, count=st.integers(0, 60), whole=st.booleans(), most=st.integers(1, 80))
def what_is_measured_of_voxels_does_not_hang_on_their_order(
    seed: int, count: int, whole: bool, most: int
) -> None:
    values = image_of((count,), seed)
    values = np.rint(values) if whole else values
    found = measure(values, most)
    shuffled = measure(np.random.default_rng(seed).permutation(values), most)
    assert (found.values == shuffled.values).all()
    assert (found.weights == shuffled.weights).all()
    assert found.weights.sum() == count
    assert len(found.values) <= most
    if count:
        _assert_ordered(found)


def _assert_ordered(found: CaseIntensity) -> None:
    all_of_it = pool([found, found])
    assert all_of_it.min <= all_of_it.percentile_00_5 <= all_of_it.median
    assert all_of_it.median <= all_of_it.percentile_99_5 <= all_of_it.max


@law(shape=SHAPES, seed=SEEDS, spacing=SPACINGS, tolerance=st.floats(0, 10))
def surface_scores_are_alike_both_ways_and_perfect_for_itself(
    shape: Shape, seed: int, spacing: Spacing, tolerance: float
) -> None:
    a, b = mask_of(shape, seed), mask_of(shape, seed + 1)
    there, back = surface_distances(a, b, spacing), surface_distances(b, a, spacing)
    for score in (robust_hausdorff, average_distance):
        np.testing.assert_allclose(score(there), score(back), rtol=1e-9)
    both = surface_dice(there, tolerance), surface_dice(back, tolerance)
    np.testing.assert_allclose(*both, rtol=1e-9)
    if a.any():
        assert robust_hausdorff(surface_distances(a, a, spacing)) == 0
        assert surface_dice(surface_distances(a, a, spacing), 0.0) == 1


@law(shape=SHAPES, seed=SEEDS, offset=st.tuples(*[st.integers(-8, 8)] * 3))
def what_is_moved_and_moved_back_is_what_stayed_inside(
    shape: Shape, seed: int, offset: tuple[int, int, int]
) -> None:
    segmentation = labels_of(shape, seed)
    z, y, x = (-step for step in offset)
    back = moved(moved(segmentation, offset), (z, y, x))
    assert ((back == segmentation) | (back == 0)).all()
    inside = all(abs(step) < size for step, size in zip(offset, shape, strict=True))
    if not inside:
        assert not back.any()
