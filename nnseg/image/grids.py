"""Which voxels of one grid make up a voxel of another, axis by axis.

Both grids cover the same extent: voxel i of n lies at (i + 0.5) / n of it, and beyond the outer
voxels' centres an image goes on constantly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Mask, Segmentation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """For every output of one axis the one or two inputs that linear interpolation joins."""

    inputs: NDArray[np.intp]  # (2, output); equal where there is one
    weights: NDArray[np.float64]  # (2, output)


def new_places(size: int, new_size: int) -> NDArray[np.float64]:
    """Give where the new voxels of one axis lie, in old voxels."""
    return np.asarray((size / new_size) * (np.arange(new_size) + 0.5) - 0.5, dtype=np.float64)


@lru_cache(maxsize=4)  # it is large, and who asks keeps what follows from it
def spline_matrix(size: int, new_size: int, order: int) -> NDArray[np.float64]:
    """Give the matrix (output, input) of one axis: what scipy answers to a 1 at each input."""
    from scipy import ndimage  # slow to import, and many a case is not resampled at all

    places = new_places(size, new_size)[None]
    columns = [
        ndimage.map_coordinates(one, places, order=order, mode="nearest") for one in np.eye(size)
    ]
    matrix = np.stack(columns, axis=1)
    matrix.setflags(write=False)
    return matrix


@lru_cache(maxsize=64)
def linear_pairs(size: int, new_size: int) -> Pairs:
    """Give the inputs between which each output of one axis lies."""
    places = new_places(size, new_size)
    below = np.floor(places)
    upper = places - below
    first = below.astype(np.intp)
    second = np.where(upper == 0, first, first + 1)  # what has no weight needn't be looked at
    # Before the first and after the last voxel both ends are that voxel, and scipy adds their
    # weights one by one: with a single weight of 1 some ties would fall otherwise.
    inputs = np.stack([first, second]).clip(0, size - 1)
    return Pairs(inputs=inputs, weights=np.stack([1 - upper, upper]))


@lru_cache(maxsize=64)
def nearest_voxels(size: int, new_size: int) -> NDArray[np.intp]:
    """Give the nearest input of every output, halves the way scipy rounds them."""
    return np.asarray(spline_matrix(size, new_size, 0).argmax(axis=1))


def mixed_cells(segmentation: Segmentation, axes: Sequence[int]) -> Mask:
    """Mark the voxels from which a cell of 2 voxels along each of `axes` holds several labels."""
    lowest = highest = segmentation
    for axis in axes:
        size = segmentation.shape[axis]
        neighbour = np.minimum(np.arange(size) + 1, size - 1)
        lowest = np.minimum(lowest, lowest.take(neighbour, axis=axis))
        highest = np.maximum(highest, highest.take(neighbour, axis=axis))
    return np.asarray(lowest != highest)


def expand(array: NDArray[Any], indices: Sequence[NDArray[np.intp]]) -> NDArray[Any]:
    """Take `indices` along each axis; the last axis last, as it is the slowest to take from."""
    for axis, index in enumerate(indices):
        array = array.take(index, axis=axis)
    return array
