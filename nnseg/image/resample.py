"""Bring images and segmentations to another voxel grid.

Both grids cover the same extent: voxel i of n lies at (i + 0.5) / n of it, and beyond the outer
voxels' centres an image goes on constantly. Interpolating with splines is linear in the image and
goes axis by axis, so that one small matrix for each axis says all of it, whatever the order.

Where slices are thick, the slices are resized in their plane, and only then taken along the thick
axis, mostly by the nearest: a cubic spline across thick slices invents what isn't there.

Source: the resampling of nnU-Net, Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, which
leaves the work to skimage.transform.resize and scipy.ndimage.map_coordinates.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Image, Shape, Spacing
from nnseg.errors import PlanError
from nnseg.image.grids import (
    Pairs,
    expand,
    linear_pairs,
    mixed_cells,
    nearest_voxels,
    spline_matrix,
)

COARSE = 3.0  # slices are thick when the largest spacing is over 3 times the smallest

Volume: TypeAlias = NDArray[np.float32]  # (z, y, x)
Ask: TypeAlias = Callable[[], None]  # raises where the work is to end
Label = TypeVar("Label", bound=np.integer[Any])

_BAND_ROWS = 32  # outputs that share a matrix product; fewer save work, more use the cache better
_NEGLIGIBLE = 1e-9  # of the range; spline weights fall below it about 15 voxels away
_ROUNDING = 1e-5  # more than float32 errs in a sum of eight weights
_SLAB_VOXELS = 2**20  # of float32: what a core keeps near
_CHUNK_VOXELS = 2**14


def target_shape(shape: Shape, spacing: Spacing, new_spacing: Spacing) -> Shape:
    """Give the shape that covers the same extent at `new_spacing`; halves round to even.

    >>> target_shape((10, 30, 45), (2.5, 1.0, 1.0), (1.0, 2.0, 2.0))
    (25, 15, 22)
    """
    z, y, x = (
        round(old / new * size) for old, new, size in zip(spacing, new_spacing, shape, strict=True)
    )
    return z, y, x


def separate_axis(spacing: Spacing, new_spacing: Spacing, force: bool | None = None) -> int | None:
    """Say which axis, if any, is resampled apart from the other two.

    It is the coarsest axis, if its spacing is over 3 times the finest one's before resampling or
    else after it. No axis is treated apart if two or three are equally coarse.

    Args:
        spacing: Before resampling, mm.
        new_spacing: After it, mm.
        force: True takes the coarsest axis of `spacing` however little coarser, False takes none.

    >>> separate_axis((5.0, 0.8, 0.8), (1.0, 1.0, 1.0))
    0
    >>> separate_axis((2.0, 0.8, 0.8), (1.0, 1.0, 1.0)) is None
    True
    """
    if force is False:
        return None
    for candidate in (spacing, new_spacing):
        if force or max(candidate) / min(candidate) > COARSE:
            coarsest = [axis for axis in range(3) if max(candidate) / candidate[axis] == 1]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resample_image(
    image: Image,
    shape: Shape,
    axis: int | None,
    order: int = 3,
    order_along: int = 0,
    *,
    ask: Ask | None = None,
) -> Image:
    """Resample every channel of an image (or of logits) to `shape`.

    The values stay in the range of the channel, or with `axis` in that of the slice: splines
    overshoot at edges. An `order_along` over 1 is not kept from that.

    Args:
        image: (channel, z, y, x), finite.
        shape: Of the result, (z, y, x).
        axis: The axis that is resampled apart from the others, as `separate_axis` says.
        order: Of the spline, 0 to 5; with `axis` only within slices.
        order_along: Of the spline along `axis`; 0 takes the nearest slice.
        ask: Called before each run of planes; what it raises ends the work.

    Returns:
        (channel, z, y, x); `image` itself if it has the shape already. Besides the two there is
        never more than some planes of one channel in memory, but for an `order_along` over 0.
    """
    if image.shape[1:] == shape:
        return image
    result = np.empty((image.shape[0], *shape), dtype=np.float32)
    for channel, resized in zip(image, result, strict=True):
        if axis is None:
            _resize(channel, resized, order, ask)
        else:
            slices, target = np.moveaxis(channel, axis, 0), np.moveaxis(resized, axis, 0)
            _resize_slices(slices, target, order, order_along, ask)
    return result


def resample_segmentation(
    segmentation: NDArray[Label],
    shape: Shape,
    axis: int | None,
    order: int = 1,
    order_along: int = 0,
    *,
    ask: Ask | None = None,
) -> NDArray[Label]:
    """Resample a label map to `shape`.

    With `order` 1 each label's indicator (1 where the label is, else 0) is interpolated linearly,
    and a voxel takes the label whose indicator is highest; of equals the nearest voxel's, if it is
    among them, else the smallest. Only voxels among differing labels need the arithmetic, which
    follows scipy's in its last bit, so that ties fall the same way.

    Args:
        segmentation: (z, y, x), of any labels; -1 is one like any other.
        shape: Of the result, (z, y, x).
        axis: The axis that is resampled apart from the others, as `separate_axis` says.
        order: 0, the nearest voxel's label, or 1; with `axis` only within slices.
        order_along: 0, the nearest slice, or 1 along `axis`: the label with over half the weight,
            0 if there is none.
        ask: Called before each run of planes; what it raises ends the work.

    Returns:
        (z, y, x), same type; `segmentation` itself if it has the shape already.

    Raises:
        PlanError: Another order.

    Source: resize_segmentation of batchgenerators 0.25.5, to which nnU-Net 2.8.1 leaves this.
    Releases before took the largest label that reaches 0.5, which left holes.
    """
    if order not in (0, 1) or order_along not in (0, 1):
        raise PlanError(
            f"segmentations are resampled with order 0 or 1, not {order} (along the separate "
            f"axis: {order_along}); correct the plan"
        )
    if segmentation.shape == shape:
        return segmentation
    if axis is None:
        return _resize_labels(segmentation, shape, order, ask)
    size, new_size = segmentation.shape[axis], shape[axis]
    if order_along == 0 and new_size < size:  # slices that nobody takes need no work
        segmentation = segmentation.take(nearest_voxels(size, new_size), axis=axis)
    in_plane = _replaced(shape, axis, segmentation.shape[axis])
    resized = _resize_labels(segmentation, in_plane, order, ask)
    if resized.shape == shape:
        return resized
    if order_along == 0:
        return resized.take(nearest_voxels(size, new_size), axis=axis)
    return _join_slices(resized, axis, new_size)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Band:
    """A run of consecutive outputs of one axis, and the inputs that have a say in them."""

    outputs: slice
    inputs: slice
    weights: NDArray[np.float32]  # (output, input)


@lru_cache(maxsize=64)
def _bands(size: int, new_size: int, order: int) -> tuple[_Band, ...]:
    matrix = np.eye(size) if size == new_size else spline_matrix(size, new_size, order)
    edges = range(0, new_size, _BAND_ROWS)
    bands = []
    for start, stop in pairwise((*edges, new_size)):
        used = np.flatnonzero((np.abs(matrix[start:stop]) > _NEGLIGIBLE).any(axis=0))
        inputs = slice(int(used[0]), int(used[-1]) + 1)
        weights = np.ascontiguousarray(matrix[start:stop, inputs], dtype=np.float32)
        bands.append(_Band(outputs=slice(start, stop), inputs=inputs, weights=weights))
    return tuple(bands)


def _replaced(shape: Sequence[int], axis: int, size: int) -> Shape:
    z, y, x = (size if i == axis else old for i, old in enumerate(shape))
    return z, y, x


def _resize(volume: Volume, result: Volume, order: int, ask: Ask | None) -> None:
    """Fill `result` with `volume` at its shape, a run of planes at a time."""
    # About the middle of the range float32 rounds relative to the range, whatever the offset.
    low, high = volume.min(keepdims=True), volume.max(keepdims=True)
    for band in _bands(volume.shape[0], result.shape[0], order):
        if ask:
            ask()
        if volume.shape[0] == result.shape[0]:
            planes = np.subtract(volume[band.inputs], low / 2 + high / 2, order="C")
        else:
            planes = _mix_planes(volume[band.inputs], band.weights, low / 2 + high / 2)
        _resize_planes(planes, result[band.outputs], order, low, high)


def _mix_planes(planes: Volume, weights: Volume, centre: Volume) -> Volume:
    """Apply the matrix of axis 0 to `planes` less `centre`, some rows at a time.

    There are three times as many planes as come out where an axis is halved: a copy of them all
    would be the largest array of preprocessing but for the image.
    """
    count, y, x = planes.shape
    mixed = np.empty((len(weights), y, x), dtype=np.float32)
    step = max(1, _SLAB_VOXELS // (count * x))
    for start in range(0, y, step):
        rows = np.subtract(planes[:, start : start + step], centre, order="C")
        lines = np.matmul(weights, rows.reshape(count, -1))
        mixed[:, start : start + step] = lines.reshape(-1, *rows.shape[1:])
    return mixed


def _resize_planes(planes: Volume, result: Volume, order: int, low: Volume, high: Volume) -> None:
    """Fill `result` with `planes` resized in y and x; they are centred between `low` and `high`."""
    grids = [(axis, planes.shape[axis], result.shape[axis]) for axis in (1, 2)]
    for axis, size, new_size in sorted(grids, key=lambda grid: grid[2] / grid[1]):
        if size != new_size:
            planes = _multiply(planes, axis, _bands(size, new_size, order))
    planes += low / 2 + high / 2
    np.clip(planes, low, high, out=result)


def _multiply(planes: Volume, axis: int, bands: tuple[_Band, ...]) -> Volume:
    """Apply the matrix of axis 1 or 2; `planes` are in C order."""
    z, y, x = planes.shape
    result = np.empty(_replaced(planes.shape, axis, bands[-1].outputs.stop), dtype=np.float32)
    for band in bands:
        if axis == 1:
            np.matmul(band.weights, planes[:, band.inputs], out=result[:, band.outputs])
        else:
            lines, rows = planes.reshape(z * y, x), result.reshape(z * y, -1)
            np.matmul(lines[:, band.inputs], band.weights.T, out=rows[:, band.outputs])
    return result


def _resize_slices(
    volume: Volume, result: Volume, order: int, order_along: int, ask: Ask | None
) -> None:
    """Resize the slices across the first axis in their plane, then go along the axis."""
    size, new_size = volume.shape[0], result.shape[0]
    if order_along == 0 or size == new_size:
        nearest = nearest_voxels(size, new_size)  # ascending
        used = np.unique(nearest)  # slices that nobody takes need no work
        height = max(1, _SLAB_VOXELS // max(volume[0].size, result[0].size))
        for start in range(0, used.size, height):
            if ask:
                ask()
            chosen = used[start : start + height]
            planes = np.empty((chosen.size, *result.shape[1:]), dtype=np.float32)
            _resize_each(volume, chosen, planes, order)
            taken = slice(*np.searchsorted(nearest, (chosen[0], chosen[-1] + 1)))
            result[taken] = planes[np.searchsorted(chosen, nearest[taken])]
        return
    whole = np.empty((size, *result.shape[1:]), dtype=np.float32)
    _resize_each(volume, np.arange(size), whole, order)
    middle = whole.min() / 2 + whole.max() / 2
    whole -= middle
    for band in _bands(size, new_size, order_along):
        if ask:
            ask()
        rows = whole[band.inputs].reshape(band.weights.shape[1], -1)
        np.add(
            np.matmul(band.weights, rows).reshape(-1, *result.shape[1:]),
            middle,
            out=result[band.outputs],
        )


def _resize_each(volume: Volume, chosen: NDArray[np.intp], result: Volume, order: int) -> None:
    """Fill `result` with the `chosen` slices, each of which keeps its own range."""
    planes: Volume = np.ascontiguousarray(volume[chosen])
    low = planes.min(axis=(1, 2), keepdims=True)
    high = planes.max(axis=(1, 2), keepdims=True)
    planes -= low / 2 + high / 2
    _resize_planes(planes, result, order, low, high)


def _join_slices(segmentation: NDArray[Label], axis: int, new_size: int) -> NDArray[Label]:
    """Interpolate labels linearly along `axis`: over half the weight wins, and half leaves 0."""
    pairs = linear_pairs(segmentation.shape[axis], new_size)
    first, second = (segmentation.take(inputs, axis=axis) for inputs in pairs.inputs)
    weights = pairs.weights.reshape(2, *_replaced((1, 1, 1), axis, new_size))
    heavier = np.where(weights[0] > 0.5, first, np.where(weights[1] > 0.5, second, 0))
    return np.where(first == second, first, heavier).astype(segmentation.dtype)


def _resize_labels(
    segmentation: NDArray[Label], shape: Shape, order: int, ask: Ask | None
) -> NDArray[Label]:
    """Resize a label map along all axes whose length changes, a slab of the result at a time."""
    grids = list(zip(segmentation.shape, shape, strict=True))
    nearest = [nearest_voxels(size, new_size) for size, new_size in grids]
    if order == 0:
        return expand(segmentation, nearest)
    segmentation = np.ascontiguousarray(segmentation)
    pairs = [linear_pairs(size, new_size) for size, new_size in grids]
    firsts = [pair.inputs[0] for pair in pairs]
    changed = [axis for axis, (size, new_size) in enumerate(grids) if size != new_size]

    result = np.empty(shape, dtype=segmentation.dtype)
    depth = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], depth):
        if ask:
            ask()
        rows = slice(start, start + depth)
        below = int(firsts[0][rows][0])
        part = segmentation[below : int(firsts[0][rows][-1]) + 2]  # its cells reach one further
        slab = [firsts[0][rows] - below, firsts[1], firsts[2]]
        result[rows] = expand(part, slab)
        mixed = expand(mixed_cells(part, changed), slab)
        open_voxels = np.flatnonzero(mixed) + start * shape[1] * shape[2]
        for at in range(0, open_voxels.size, _CHUNK_VOXELS):
            chunk = open_voxels[at : at + _CHUNK_VOXELS]
            places = np.unravel_index(chunk, shape)
            closest = segmentation[tuple(nearest[axis][places[axis]] for axis in range(3))]
            result.reshape(-1)[chunk] = _resolve(segmentation, pairs, places, closest)
    return result


def _resolve(
    segmentation: NDArray[Label],
    pairs: Sequence[Pairs],
    places: Sequence[NDArray[np.intp]],
    closest: NDArray[Label],
) -> NDArray[Label]:
    """Choose the label of some voxels of the result, whose nearest voxels have those of `closest`.

    A label with over half of the weight is the highest, however the rest is shared out, and of two
    labels one has less than half. What rounding could turn round, and cells of more labels, are
    left to the arithmetic that follows scipy's.
    """
    labels = _corner_labels(segmentation, pairs, places)
    score = np.zeros(closest.size, dtype=np.float32)
    for corner, weight in zip(labels, _corner_weights(pairs, places, np.float32), strict=True):
        score += (corner == closest) * weight
    chosen: NDArray[Label] = np.array(closest)
    doubtful = np.flatnonzero(score < 0.5 + _ROUNDING)
    few, here = labels[:, doubtful], closest[doubtful]
    low, high = few.min(axis=0), few.max(axis=0)
    clear = ((few == low) | (few == high)).all(axis=0) & ((here == low) | (here == high))
    clear &= score[doubtful] < 0.5 - _ROUNDING
    chosen[doubtful[clear]] = np.where(here == low, high, low)[clear]
    rest = doubtful[~clear]
    if rest.size:
        places = [place[rest] for place in places]
        weights = np.stack(list(_corner_weights(pairs, places, np.float64)))
        chosen[rest] = _highest(labels[:, rest], weights, closest[rest])
    return chosen


def _corner_labels(
    segmentation: NDArray[Label], pairs: Sequence[Pairs], places: Sequence[NDArray[np.intp]]
) -> NDArray[Label]:
    """Give the labels (corner, voxel) of the cells around some voxels of the result."""
    flat = segmentation.reshape(-1)
    _, y, x = segmentation.shape
    offsets = [
        (pair.inputs * stride).take(place, axis=1)
        for pair, stride, place in zip(pairs, (y * x, x, 1), places, strict=True)
    ]
    labels = np.empty((8, places[0].size), dtype=segmentation.dtype)
    for number, (i, j) in enumerate(product(range(2), repeat=2)):
        row = offsets[0][i] + offsets[1][j]
        for k in range(2):
            flat.take(row + offsets[2][k], out=labels[2 * number + k], mode="clip")
    return labels


def _corner_weights(
    pairs: Sequence[Pairs], places: Sequence[NDArray[np.intp]], kind: type[np.floating[Any]]
) -> Iterator[NDArray[np.floating[Any]]]:
    """Go through the weights of the corners, in the order of `_corner_labels`."""
    z, y, x = (
        pair.weights.astype(kind, copy=False).take(place, axis=1)
        for pair, place in zip(pairs, places, strict=True)
    )
    for i, j in product(range(2), repeat=2):
        plane = z[i] * y[j]
        for k in range(2):
            yield plane * x[k]


def _highest(
    labels: NDArray[Label], weights: NDArray[np.float64], nearest: NDArray[Label]
) -> NDArray[Label]:
    """Choose for each voxel the label with most weight; of equals `nearest`, else the smallest."""
    chosen: NDArray[Label] = np.array(nearest)
    best = np.full(nearest.shape, -1.0)
    for voxels, label, score in _scores(labels, weights):
        better = score > best[voxels]
        equal_and_nearest = (score == best[voxels]) & (label == nearest[voxels])
        best[voxels[better]] = score[better]
        chosen[voxels[better]] = label[better]
        chosen[voxels[equal_and_nearest]] = label[equal_and_nearest]
    return chosen


def _scores(
    labels: NDArray[Label], weights: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.intp], NDArray[Label], NDArray[np.float64]]]:
    """Go through the labels of each cell, ascending: yield voxels, their next label, its weight.

    The corners are summed in scipy's order; adding them in another would move ties.
    """
    voxels = np.arange(labels.shape[1])
    label = labels.min(axis=0)
    while True:
        score = np.zeros(voxels.size)
        for corner, weight in zip(labels, weights, strict=True):
            score += (corner == label) * weight
        yield voxels, label, score
        left = labels > label
        more = left.any(axis=0)
        if not more.any():
            return
        voxels, labels, weights, left = (
            voxels[more],
            labels[:, more],
            weights[:, more],
            left[:, more],
        )
        label = np.where(left, labels, np.iinfo(labels.dtype).max).min(axis=0)
