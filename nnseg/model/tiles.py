"""The sliding window: where tiles lie, and how much each voxel of a tile counts."""

import itertools
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from nnseg.axes import Box, Shape
from nnseg.errors import PlanError

SIGMA = 1 / 8  # of the weight, as a share of the tile's edge


def tile_starts(size: int, tile: int, step: float) -> list[int]:
    """Give the start of each tile along one axis; they are spread evenly from end to end.

    Args:
        size: Voxels of the axis, at least `tile`.
        tile: Voxels of a tile.
        step: The largest distance of two tiles, as a share of the tile.

    Source: nnU-Net v2, sliding-window steps.

    >>> tile_starts(100, 40, 0.5)
    [0, 20, 40, 60]
    >>> tile_starts(40, 40, 0.5)
    [0]
    >>> tile_starts(4, 1, 0.5)
    [0, 1, 2, 3]
    """
    if not 0 < step <= 1:
        raise PlanError(f"the tile step is {step}; it must be over 0 and at most 1")
    count = (
        ceil((size - tile) / max(1, tile * step)) + 1
    )  # no voxel needs two tiles that start there
    if count == 1:
        return [0]
    distance = (size - tile) / (count - 1)
    return [round(i * distance) for i in range(count)]


def tile_boxes(shape: Shape, tile: Shape, step: float) -> list[Box]:
    """Give the box of every tile of a volume that is at least one tile large, in z order."""
    starts = [tile_starts(n, t, step) for n, t in zip(shape, tile, strict=True)]
    return [
        ((z, z + tile[0]), (y, y + tile[1]), (x, x + tile[2]))
        for z, y, x in itertools.product(*starts)
    ]


def tile_shares(size: int, tile: int, step: float) -> NDArray[np.float64]:
    """Give how much each voxel of each tile counts along one axis, beside the tiles that overlap.

    A tile counts by a Gaussian around its centre, whose deviation is an eighth of the edge. What
    all tiles give to a voxel adds up to 1. The share of a voxel in space is the product of those
    along the axes.

    Returns:
        (tile, voxel of the tile), in the order of `tile_starts`; all over 0.

    Source: nnU-Net v2, Gaussian importance weighting.

    >>> tile_shares(6, 4, 0.5).round(3).tolist()
    [[1.0, 1.0, 1.0, 0.5], [0.0, 0.5, 1.0, 1.0]]
    """
    starts = tile_starts(size, tile, step)
    weight = _gaussian(tile)
    total = np.zeros(size)
    for start in starts:
        total[start : start + tile] += weight
    return np.stack([weight / total[start : start + tile] for start in starts])


def _gaussian(edge: int) -> NDArray[np.float64]:
    """Give the weight of each voxel along the edge of a tile; none is 0."""
    impulse = np.zeros(edge)
    impulse[edge // 2] = 1.0  # all of the edge lies within the four deviations that are computed
    return np.asarray(gaussian_filter1d(impulse, edge * SIGMA, mode="constant"))
