"""Control points beside splines of scipy; fields that never fold; their mirror images."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.interpolate import BSpline

from nnseg.model.bending import (
    FARTHEST,
    NO_FOLD,
    STEP,
    count_points,
    draw_points,
    mirror_points,
    plan_steps,
    spline_weights,
)

PATCH, STEPS = (17, 22, 13), (5.0, 6.5, 3.0)


def field_of(
    points: NDArray[np.float64], patch: tuple[int, ...], steps: tuple[float, ...]
) -> NDArray[np.float64]:
    """Give how far each voxel moves, (axis, *voxel)."""
    for axis, (edge, step) in enumerate(zip(patch, steps, strict=True), start=1):
        weights = spline_weights(edge, points.shape[axis], step).astype(np.float64)
        points = np.moveaxis(np.tensordot(weights, points, ([1], [axis])), 0, axis)
    return points


def shrinkage(field: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give how much of its volume each cell of voxels keeps; below 0 it is turned inside out."""
    axes = len(field)
    places = np.stack(np.meshgrid(*map(np.arange, field.shape[1:]), indexing="ij")) + field
    slopes = np.stack([np.gradient(places, axis=axis + 1) for axis in range(axes)], axis=1)
    return np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1)))


@pytest.mark.parametrize("step", [3.7, 8.0, 32.0])
def test_control_points_weigh_as_a_cubic_spline_and_sum_to_1(step: float) -> None:
    spline = BSpline.basis_element([-2.0, -1.0, 0.0, 1.0, 2.0], extrapolate=False)
    for edge in (1, 2, 9, 32, 33, 34, 65):
        count = count_points(edge, step)
        weights = spline_weights(edge, count, step)
        apart = ((np.arange(edge) - (edge - 1) / 2) / step)[:, None] - (
            np.arange(count) - (count - 1) / 2
        )
        np.testing.assert_allclose(weights, np.nan_to_num(spline(apart)), atol=1e-6)
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


def test_points_lie_as_far_apart_in_mm_along_every_axis() -> None:
    assert plan_steps((3.0, 1.0, 2.0)) == pytest.approx((STEP / 3, STEP, STEP / 2))
    assert plan_steps((0.5, 0.5)) == (STEP, STEP)


def test_points_move_up_to_a_limit_of_each_axis_that_is_drawn_anew() -> None:
    farthest = (2.0, 0.0, 5.0)
    drawn = [draw_points(PATCH, STEPS, farthest, np.random.default_rng(n)) for n in range(200)]
    assert {each.shape for each in drawn} == {(3, 7, 7, 7)}
    largest = np.array([np.abs(each).reshape(3, -1).max(axis=1) for each in drawn])
    assert (largest <= farthest).all()
    assert not largest[:, 1].any()
    for axis, limit in ((0, 2.0), (2, 5.0)):
        assert largest[:, axis].max() > 0.97 * limit
        assert largest[:, axis].mean() == pytest.approx(limit / 2, rel=0.15)
    assert np.corrcoef(drawn[0][0].ravel(), drawn[0][2].ravel())[0, 1] < 0.3
    assert abs(np.mean(drawn[0][2])) < 0.3
    again = draw_points(PATCH, STEPS, farthest, np.random.default_rng(0))
    assert np.array_equal(again, drawn[0])


@pytest.mark.parametrize("axes", [2, 3])
def test_no_patch_folds_at_the_limit_and_some_do_well_beyond(axes: int) -> None:
    steps, patch = (7.0, 9.0, 8.0)[:axes], (22, 28, 25)[:axes]
    counts = [count_points(*each) for each in zip(patch, steps, strict=True)]
    limits = np.array(steps).reshape(-1, *[1] * axes)
    signs = [np.random.default_rng(n).choice((-1.0, 1.0), (axes, *counts)) for n in range(15)]
    where = np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"))
    signs += [  # everything towards one point, or whirled about it
        np.where(where[list(order)] < 3, side, -side)
        for order in itertools.permutations(range(axes))
        for side in (-1.0, 1.0)
    ]
    least = {
        share: min(shrinkage(field_of(each * limits * share, patch, steps)).min() for each in signs)
        for share in (NO_FOLD, 0.7)
    }
    assert least[NO_FOLD] > 0
    assert least[0.7] < 0
    assert FARTHEST / STEP == NO_FOLD


@pytest.mark.parametrize("mirrored", [(0,), (2,), (0, 1), (0, 1, 2), ()])
def test_the_field_of_a_mirrored_patch_is_the_mirrored_field(mirrored: tuple[int, ...]) -> None:
    points = draw_points(PATCH, STEPS, (2.0, 3.0, 4.0), np.random.default_rng(1))
    wanted = np.flip(field_of(points, PATCH, STEPS), [axis + 1 for axis in mirrored]).copy()
    wanted[list(mirrored)] *= -1
    found = field_of(mirror_points(points, mirrored), PATCH, STEPS)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
