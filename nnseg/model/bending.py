"""Elastic deformation: smooth random displacements, from a grid of few control points.

A point of a patch moves by the control points around it, each weighted by a cubic B-spline of its
distance, which is smooth in its second derivative. The weights are positive and sum to 1: nothing
moves farther than the control points. With no more than a few of them along an axis, the field of
a whole patch is a product of small matrices, one an axis.

Source: elastic deformation to augment is Simard et al. 2003, doi:10.1109/ICDAR.2003.1227801; a grid
of control points 32 voxels apart is that of the 3D U-Net (Cicek et al. 2016, arXiv:1606.06650).
Control points here are uniform within a limit, so that patches can be kept from folding.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

STEP = 32.0  # voxels of the finest axis between control points
# Share of a step that control points may move: from 0.403 on a cubic B-spline of three axes can
# fold (of two, from 0.488). Source: Choi and Lee 2000, doi:10.1006/gmod.2000.0531.
NO_FOLD = 0.4
FARTHEST = NO_FOLD * STEP  # voxels of the finest axis


def plan_steps(spacing: Sequence[float]) -> tuple[float, ...]:
    """Give the voxels of each axis between control points, as many mm for all of them.

    Args:
        spacing: mm, of the axes along which patches are bent.

    >>> plan_steps((3.0, 0.75, 1.5))
    (8.0, 32.0, 16.0)
    """
    finest = min(spacing)
    return tuple(STEP * finest / each for each in spacing)


def draw_points(
    patch_size: Sequence[int],
    steps: Sequence[float],
    farthest: Sequence[float],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Draw how far the control points of a patch move: up to a limit that is drawn, too.

    Args:
        patch_size: Voxels, of the axes along which the patch is bent.
        steps: Voxels between control points.
        farthest: Voxels that a control point moves at most.
        rng: Of the sample.

    Returns:
        Voxels (axis, *point), for every control point along every axis.
    """
    counts = [count_points(*each) for each in zip(patch_size, steps, strict=True)]
    limits = rng.random() * np.array(farthest).reshape(-1, *[1] * len(counts))
    points: NDArray[np.float64] = rng.uniform(-1, 1, size=(len(counts), *counts)) * limits
    return points


def count_points(edge: int, step: float) -> int:
    """Give the number of control points along an axis: two about each voxel, on either side.

    They lie about the middle of the patch, so that reversed they are those of its mirror image.

    >>> count_points(1, 32.0), count_points(33, 32.0), count_points(34, 32.0)
    (3, 4, 5)
    """
    return math.ceil((edge - 1) / step) + 3


def spline_weights(edge: int, points: int, step: float) -> NDArray[np.float32]:
    """Give what each of the control points weighs at each voxel of an axis: (edge, points)."""
    places = (np.arange(edge) - (edge - 1) / 2) / step + (points - 1) / 2
    apart = np.abs(places[:, None] - np.arange(points))
    near, far = 2 / 3 - apart**2 + apart**3 / 2, (2 - apart).clip(0) ** 3 / 6
    weights: NDArray[np.float32] = np.where(apart < 1, near, far).astype(np.float32)
    return weights


def mirror_points(points: NDArray[np.float64], axes: Sequence[int]) -> NDArray[np.float64]:
    """Give the control points (axis, *point) of a patch that is mirrored along axes of its own."""
    mirrored: NDArray[np.float64] = np.flip(points, tuple(axis + 1 for axis in axes)).copy()
    mirrored[list(axes)] *= -1
    return mirrored
