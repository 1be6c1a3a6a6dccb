from dataclasses import replace

import pytest

from nnseg.volume import grid_fault, simple_geometry

SHAPE = (3, 4, 5)
SPACING = (3.0, 2.0, 1.0)


def test_grids_are_told_apart_by_shape_spacing_and_position() -> None:
    one = simple_geometry(SHAPE, SPACING)
    assert grid_fault(one, one) is None
    other_shape = grid_fault(one, simple_geometry((3, 5, 4), SPACING))
    assert other_shape == "shape (3, 4, 5) and (3, 5, 4) (z, y, x)"
    other_spacing = grid_fault(one, simple_geometry(SHAPE, (3.0, 2.0, 1.1)))
    assert other_spacing == "spacing (3, 2, 1) and (3, 2, 1.1) mm (z, y, x)"
    flipped = [list(row) for row in one.affine]
    flipped[0][0] *= -1
    turned_over = replace(one, affine=tuple(tuple(row) for row in flipped))
    assert grid_fault(one, turned_over) == (
        "the same voxel lies 8 mm apart (origin or direction differ)"
    )


@pytest.mark.parametrize(("shift", "same"), [(0.009, True), (0.011, False)])
def test_grids_may_differ_by_a_hundredth_of_the_smallest_voxel(shift: float, same: bool) -> None:
    one = simple_geometry(SHAPE, SPACING)
    rows = [list(row) for row in one.affine]
    rows[1][3] = shift
    assert (grid_fault(one, replace(one, affine=tuple(map(tuple, rows)))) is None) == same


def test_a_small_turn_shows_at_the_far_corner_of_a_large_volume() -> None:
    small, large = (simple_geometry((n, n, n), (1.0, 1.0, 1.0)) for n in (3, 300))
    for geometry, same in ((small, True), (large, False)):
        rows = [list(row) for row in geometry.affine]
        rows[0][1] = 1e-3
        turned_a_bit = replace(geometry, affine=tuple(map(tuple, rows)))
        assert (grid_fault(geometry, turned_a_bit) is None) == same
