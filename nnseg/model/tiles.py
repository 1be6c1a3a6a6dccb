"""The sliding window: where tiles lie, and how much each voxel of a tile counts."""

import itertools
from functools import lru_cache
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


@lru_cache(maxsize=8)
def tile_weight(tile: Shape) -> NDArray[np.float32]:
    """Give the weight of each voxel of a tile: a Gaussian around its centre, never 0.

    Its deviation is an eighth of the edge on each axis, so that the edge lies within the four
    deviations that are computed; the largest weight is 1.

    Source: nnU-Net v2, Gaussian importance weighting; it scales by 10 for its half precision.
    """
    axes = []
    for n in tile:
        impulse = np.zeros(n)
        impulse[n // 2] = 1.0
        axes.append(gaussian_filter1d(impulse, n * SIGMA, mode="constant"))
    z, y, x = axes
    weight = z[:, None, None] * y[None, :, None] * x[None, None, :]
    weight /= weight.max()
    result: NDArray[np.float32] = weight.astype(np.float32)
    result.setflags(write=False)
    return result
