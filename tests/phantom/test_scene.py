import numpy as np
import pytest

from nnseg.phantom.scene import Blob, Field

SHAPE = (16, 20, 24)


def field_of(seed: int = 0) -> Field:
    return Field(SHAPE, (2.0, 1.5, 1.0), np.random.default_rng(seed))


def ball(*centre: float, radius: float = 6.0) -> Blob:
    return Blob(centre=np.array(centre), radii=np.full(3, radius), turn=np.eye(3))


def test_depth_falls_from_1_at_the_centre_to_0_at_the_surface_in_mm() -> None:
    field = field_of()
    depth = field.inside(ball(1.0, 0.75, 0.5), rough=0)
    assert depth[8, 10, 12] == pytest.approx(1)  # the voxel at (1, 0.75, 0.5) mm
    assert depth[11, 10, 12] == pytest.approx(0)  # 6 mm off along z
    assert depth[8, 14, 12] == pytest.approx(0)  # along y
    assert depth[8, 10, 18] == pytest.approx(0)  # along x
    assert depth[0, 0, 0] < 0


def test_radii_lie_along_the_columns_of_turn() -> None:
    turn = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])  # its first own axis lies along x
    blob = Blob(centre=np.array([1.0, 0.75, 0.5]), radii=np.array([9.0, 4, 3]), turn=turn)
    depth = field_of().inside(blob, rough=0)
    assert depth[8, 10, 21] == pytest.approx(0)
    assert depth[10, 10, 12] == pytest.approx(0)
    assert depth[8, 12, 12] == pytest.approx(0)


def test_roughness_makes_an_outline_irregular() -> None:
    field = field_of()
    smooth, rough = field.inside(ball(0, 0, 0), rough=0), field.inside(ball(0, 0, 0))
    assert ((smooth > 0) != (rough > 0)).any()
    np.testing.assert_allclose(rough - smooth, field.rough, atol=1e-12)


def test_what_is_placed_keeps_clear_of_what_was_drawn() -> None:
    for seed in range(5):
        field, rng = field_of(seed), np.random.default_rng(seed)
        drawn = field.inside(ball(0, 0, 0, radius=5.0))
        placed = field.place((3.0, 2.5, 2.0), rng)
        assert placed is not None
        assert not ((drawn > 0) & (placed > 0)).any()


def test_a_full_field_has_no_place_until_it_forgets() -> None:
    field, rng = field_of(), np.random.default_rng(0)
    field.inside(ball(0, 0, 0, radius=40.0))
    assert field.place((3.0, 2.5, 2.0), rng) is None
    field.forget()
    assert field.place((3.0, 2.5, 2.0), rng) is not None
