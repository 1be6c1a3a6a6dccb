"""Logits on another grid: decided or interpolated there, while their planes arrive in runs.

A label map needs no logits on its grid. Where all voxels around a place agree on the label, every
mixture of their logits does, because one head is the highest in each of them, or one region the
last that is over 0. Only places among differing labels are interpolated.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Planes, Segmentation, Shape, three
from nnseg.image.grids import Pairs, expand, linear_pairs, mixed_cells, nearest_voxels

_SLAB_VOXELS = 2**20  # of the label map that is made at once, or fewer, so that logits take no
_SLAB_BYTES = 2**25  # more than this, there and where they come from
_CHUNK_BYTES = 2**22  # of logits that are interpolated at once

Scalar = TypeVar("Scalar", bound=np.generic)
Decide = Callable[[Planes], Segmentation]  # logits (..., head) to labels (...)
Join = Callable[[Sequence[NDArray[np.float32]]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Change:
    """From one grid to another: what makes up each new voxel along each axis."""

    old_shape: Shape  # voxels of the grid that is left
    pairs: tuple[Pairs, Pairs, Pairs]
    linear: tuple[int, ...]  # the axes along which two voxels have a say; elsewhere the nearest has

    @property
    def shape(self) -> Shape:
        """Voxels of the new grid."""
        return three([pair.inputs.shape[1] for pair in self.pairs])


def change_grid(
    shape: Shape, new_shape: Shape, axis: int | None, order: int = 1, order_along: int = 0
) -> Change:
    """Say how to go from a grid to another by interpolation of order 0 or 1.

    Args:
        shape: Voxels of the grid.
        new_shape: Voxels of the other.
        axis: The axis that is resampled apart from the others, as `separate_axis` says.
        order: 1 goes linearly, 0 takes the nearest voxel.
        order_along: The same along `axis`.
    """
    orders = [order_along if number == axis else order for number in range(3)]
    pairs, linear = [], []
    for number, (size, new_size) in enumerate(zip(shape, new_shape, strict=True)):
        if orders[number] == 1 and size != new_size:
            linear.append(number)
            pairs.append(linear_pairs(size, new_size))
        else:
            inputs = np.arange(size) if size == new_size else nearest_voxels(size, new_size)
            ones = np.ones(new_size)
            pairs.append(Pairs(inputs=np.stack([inputs] * 2), weights=np.stack([ones, ones - 1])))
    return Change(old_shape=shape, pairs=three(pairs), linear=tuple(linear))


def slab_depth(shape: Shape, new_shape: Shape, voxels: int) -> int:
    """Give how many planes of a new grid to make at once.

    So many that neither they nor the planes that they are made of have more than `voxels`.

    >>> slab_depth((100, 8, 8), (100, 16, 16), 1000), slab_depth((100, 16, 16), (50, 8, 8), 1000)
    (3, 1)
    """
    plane, new_plane = (math.prod(each[1:]) for each in (shape, new_shape))
    planes = max(1, shape[0] / new_shape[0])  # that make up one of the new grid
    return max(1, int(voxels / max(new_plane, plane * planes)))


def decide(runs: Iterable[Planes], change: Change, labels_of: Decide) -> Iterator[Segmentation]:
    """Give the label map of logits on another grid without interpolating all of them.

    Args:
        runs: The logits' planes in order, some at a time.
        change: To the other grid.
        labels_of: What decides on the label of logits: the same of their mixtures, where it is of
            each of them.

    Yields:
        The label map's planes in order, some at a time.
    """
    return decide_together([runs], [change], labels_of, lambda rows: rows[0])


def decide_together(
    streams: Sequence[Iterable[Planes]], changes: Sequence[Change], labels_of: Decide, join: Join
) -> Iterator[Segmentation]:
    """Give the label map of what several models find together, on a grid that all are brought to.

    Where each of them has one label all around a place, and that is the same, it is theirs
    together. Only other places are interpolated.

    Args:
        streams: For each model its logits' planes in order, some at a time.
        changes: From the grid of each to the one that all are brought to.
        labels_of: As for `decide`.
        join: Makes of the logits (voxel, head) of each at some voxels what `labels_of` decides on:
            as each of them does, where they do so alike.

    Yields:
        The label map's planes in order, some at a time.
    """
    windows = [_Window(runs, labels_of) for runs in streams]
    heads = sum(window.heads for window in windows)
    shape = changes[0].shape
    depth = min(slab_depth(each.old_shape, shape, _SLAB_BYTES // (4 * heads)) for each in changes)
    depth = min(depth, max(1, _SLAB_VOXELS // math.prod(shape[1:])))
    for start in range(0, shape[0], depth):
        new = slice(start, start + depth)
        parts = [
            _Part.of(window, change, new) for window, change in zip(windows, changes, strict=True)
        ]
        result = parts[0].labels
        doubts = [part.mixed for part in parts if part.mixed is not None]
        doubts += [part.labels != result for part in parts[1:]]
        if not doubts:
            yield result
            continue
        open_voxels = np.flatnonzero(reduce(np.logical_or, doubts))
        count = max(1, _CHUNK_BYTES // (4 * heads))
        for at in range(0, open_voxels.size, count):
            chunk = open_voxels[at : at + count]
            places = np.unravel_index(chunk, result.shape)
            mixed = [part.mixtures(places) for part in parts]
            result.reshape(-1)[chunk] = labels_of(join(mixed))
        yield result


def interpolate(runs: Iterable[Planes], change: Change, depth: int) -> Iterator[Planes]:
    """Give logits on another grid.

    Args:
        runs: Their planes in order, some at a time.
        change: To the other grid.
        depth: Planes of the other grid that come at a time.
    """
    window = _Window(runs)
    for start in range(0, change.shape[0], depth):
        pairs, planes, _ = window.around(change, slice(start, start + depth))
        for axis, pair in enumerate(pairs):
            lower = planes.take(pair.inputs[0], axis=axis)
            if axis in change.linear:
                weights = pair.weights.astype(np.float32)
                shape = [-1 if number == axis else 1 for number in range(4)]
                lower *= weights[0].reshape(shape)
                upper = planes.take(pair.inputs[1], axis=axis)
                upper *= weights[1].reshape(shape)
                lower += upper
            planes = lower
        yield planes


class _Window:
    """Planes that arrive in runs, of which those that are still of use are kept."""

    def __init__(self, runs: Iterable[Planes], labels_of: Decide | None = None) -> None:
        self._runs, self._labels_of = iter(runs), labels_of
        self._kept: list[Planes] = []
        self._labels: list[Segmentation] = []
        self._first = 0  # of the planes kept, its place

    @property
    def heads(self) -> int:
        """How many heads the logits have."""
        if not self._kept:
            self._take_run()
        return int(self._kept[0].shape[-1])

    def around(
        self, change: Change, new: slice
    ) -> tuple[tuple[Pairs, Pairs, Pairs], Planes, Segmentation]:
        """Give what makes up some planes of the new grid, and says of what within it.

        Their pairs along the first axis count from the first of the planes; labels are empty where
        they are not decided. No plane before them can be asked for later.
        """
        z, y, x = change.pairs
        inputs = z.inputs[:, new]
        first, stop = int(inputs.min()), int(inputs.max()) + 1
        while self._first + sum(map(len, self._kept)) < stop:
            self._take_run()
        while self._first + len(self._kept[0]) <= first:
            self._first += len(self._kept.pop(0))
            if self._labels:
                self._labels.pop(0)
        inside = slice(first - self._first, stop - self._first)
        pair = Pairs(inputs=inputs - first, weights=z.weights[:, new])
        labels = _join(self._labels, inside) if self._labels else np.empty(0, np.uint8)
        return (pair, y, x), _join(self._kept, inside), labels

    def _take_run(self) -> None:
        run = next(self._runs)
        self._kept.append(run)
        if self._labels_of is not None:
            self._labels.append(self._labels_of(run))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """What one model has to say of some planes of the new grid."""

    planes: Planes  # of its own grid that make them up
    pairs: tuple[Pairs, Pairs, Pairs]
    linear: tuple[int, ...]
    labels: Segmentation  # of the first of the voxels that make up each new one
    mixed: NDArray[np.bool_] | None  # where these have several labels

    @classmethod
    def of(cls, window: _Window, change: Change, new: slice) -> "_Part":
        pairs, planes, labels = window.around(change, new)
        firsts = [pair.inputs[0] for pair in pairs]
        mixed = expand(mixed_cells(labels, change.linear), firsts) if change.linear else None
        return cls(
            planes=planes,
            pairs=pairs,
            linear=change.linear,
            labels=expand(labels, firsts),
            mixed=mixed,
        )

    def mixtures(self, places: Sequence[NDArray[np.intp]]) -> NDArray[np.float32]:
        """Interpolate the logits at some places of the new planes."""
        rows = self.planes.reshape(-1, self.planes.shape[-1])
        if not self.linear:
            z, y, x = (
                pair.inputs[0].take(place) for pair, place in zip(self.pairs, places, strict=True)
            )
            voxels = np.ravel_multi_index((z, y, x), self.planes.shape[:3])
            return np.asarray(rows.take(voxels, axis=0), np.float32)
        return _mixtures(rows, self.planes.shape[:3], self.pairs, self.linear, places)


def _join(runs: Sequence[NDArray[Scalar]], inside: slice) -> NDArray[Scalar]:
    """Give the planes `inside` of runs of planes, counted from the first of them."""
    parts, start = [], 0
    for run in runs:
        part = run[max(inside.start - start, 0) : max(inside.stop - start, 0)]
        if len(part):
            parts.append(part)
        start += len(run)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _mixtures(
    rows: NDArray[np.float32],
    shape: Sequence[int],
    pairs: Sequence[Pairs],
    linear: Sequence[int],
    places: Sequence[NDArray[np.intp]],
) -> NDArray[np.float32]:
    """Interpolate logits at some places of the new grid.

    A sparse matrix does it, whose rows are the places and whose columns the voxels.

    Args:
        rows: (voxel, head), the voxels of `shape` in C order.
        shape: (z, y, x).
        pairs: From those voxels to the new grid.
        linear: The axes along which two voxels have a say.
        places: Along z, y and x of the new grid.
    """
    from scipy.sparse import csr_array

    strides = (shape[1] * shape[2], shape[2], 1)
    ends = [range(2) if axis in linear else range(1) for axis in range(3)]
    corners = list(product(*ends))
    voxels = np.zeros((places[0].size, len(corners)), dtype=np.int64)
    weights = np.ones((places[0].size, len(corners)), dtype=np.float32)
    for axis, (pair, place) in enumerate(zip(pairs, places, strict=True)):
        inputs = (pair.inputs * strides[axis]).take(place, axis=1)
        shares = pair.weights.astype(np.float32).take(place, axis=1)
        for number, corner in enumerate(corners):
            voxels[:, number] += inputs[corner[axis]]
            weights[:, number] *= shares[corner[axis]]
    starts = np.arange(0, voxels.size + 1, len(corners))
    matrix = csr_array((weights.ravel(), voxels.ravel(), starts), shape=(len(voxels), len(rows)))
    mixed: NDArray[np.float32] = matrix @ rows
    return mixed
