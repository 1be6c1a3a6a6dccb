"""The rules of a patch size, and the rates and ranges of what is drawn by them."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from patches import BENT, FLAT, KINDS, PATCH, SLICE, VOLUME

from nnseg.axes import Shape
from nnseg.errors import PlanError
from nnseg.model.draws import Augmentation, Draw, draw, plan_augmentation


def many_draws(augmentation: Augmentation, channels: int, count: int = 12000) -> list[Draw]:
    rng = np.random.default_rng(5)
    return [draw(augmentation, channels, rng) for _ in range(count)]


DRAWS = many_draws(VOLUME, 2)


def assert_rate(fired: list[bool], probability: float) -> None:
    deviation = math.sqrt(probability * (1 - probability) / len(fired))
    assert abs(np.mean(fired) - probability) < 3.5 * deviation


@pytest.mark.parametrize(
    ("patch", "dimensions", "loaded", "flat"),
    [
        ((128, 128, 128), 3, (205, 205, 205), False),
        ((80, 192, 160), 3, (194, 289, 210), False),
        ((40, 56, 40), 3, (73, 80, 64), False),
        ((20, 320, 256), 3, (20, 376, 376), True),
        ((40, 224, 224), 3, (40, 263, 263), True),
        ((1, 512, 512), 2, (1, 602, 602), False),
        ((1, 192, 160), 2, (1, 225, 225), False),
        ((1, 320, 256), 2, (1, 376, 376), False),
        ((1, 512, 320), 2, (1, 679, 376), False),
    ],
)
def test_loaded_shape_is_that_of_nnunet(
    patch: Shape, dimensions: int, loaded: Shape, flat: bool
) -> None:
    planned = plan_augmentation(patch, dimensions)
    assert (planned.loaded_shape, planned.flat) == (loaded, flat)


@pytest.mark.parametrize(
    ("patch", "dimensions", "degrees"),
    [
        ((40, 56, 40), 3, (30, 30, 30)),
        ((20, 50, 60), 3, (30, 30, 30)),  # just not over 3 times as wide as deep
        ((20, 50, 61), 3, (180, 0, 0)),
        ((1, 100, 150), 2, (180, 0, 0)),  # just not over 1.5 times as long as wide
        ((1, 100, 151), 2, (15, 0, 0)),
        ((1, 151, 100), 2, (15, 0, 0)),
    ],
)
def test_range_of_rotation_follows_the_shape_of_the_patch(
    patch: Shape, dimensions: int, degrees: tuple[float, ...]
) -> None:
    assert np.degrees(plan_augmentation(patch, dimensions).rotation) == pytest.approx(degrees)


@pytest.mark.parametrize(
    ("patch", "dimensions", "degrees"),
    [
        ((40, 56, 40), 3, (15, 15, 15)),
        ((20, 50, 61), 3, (15, 0, 0)),
        ((1, 100, 150), 2, (15, 0, 0)),
    ],
)
def test_mild_augmentation_rotates_little_and_mirrors_nothing(
    patch: Shape, dimensions: int, degrees: tuple[float, ...]
) -> None:
    mild, full = (plan_augmentation(patch, dimensions, s) for s in ("mild", "full"))
    assert np.degrees(mild.rotation) == pytest.approx(degrees)
    assert mild.mirror_axes == ()
    assert mild.flat == full.flat
    assert mild.loaded_shape != full.loaded_shape
    with pytest.raises(PlanError, match="augmentation is 'wild'; it must be full or mild"):
        plan_augmentation(patch, dimensions, "wild")


def test_every_spatial_axis_is_mirrored() -> None:
    assert (VOLUME.mirror_axes, FLAT.mirror_axes, SLICE.mirror_axes) == (
        (0, 1, 2),
        (0, 1, 2),
        (1, 2),
    )


def test_a_loaded_shape_below_the_patch_is_refused() -> None:
    with pytest.raises(PlanError, match="no axis may be below"):
        replace(VOLUME, loaded_shape=(8, 11, 10))


def test_each_transform_fires_at_its_rate() -> None:
    assert_rate([d.affine is not None for d in DRAWS], 1 - 0.8 * 0.8)
    assert_rate([d.noise_std > 0 for d in DRAWS], 0.1)
    assert_rate([d.brightness != (1, 1) for d in DRAWS], 0.15)
    assert_rate([d.contrast != (1, 1) for d in DRAWS], 0.15)
    assert_rate([d.gamma_inverted != (1, 1) for d in DRAWS], 0.1)
    assert_rate([d.gamma != (1, 1) for d in DRAWS], 0.3)
    for axis in range(3):
        assert_rate([axis in d.mirror for d in DRAWS], 0.5)


def test_rotation_and_scaling_fire_independently() -> None:
    stretch = [0.0 if d.affine is None else np.linalg.det(d.affine) - 1 for d in DRAWS]
    scaled = [abs(s) > 1e-9 for s in stretch]
    turned = [
        d.affine is not None and abs(d.affine[0, 1]) + abs(d.affine[1, 2]) > 1e-9 for d in DRAWS
    ]
    assert_rate(scaled, 0.2)
    assert_rate(turned, 0.2)
    assert_rate([a and b for a, b in zip(scaled, turned, strict=True)], 0.04)


def test_blur_and_low_resolution_choose_channels_independently() -> None:
    blurred = [[sigma[0] > 0 for sigma in d.blur] for d in DRAWS]
    zoomed = [[zoom != 1 for zoom in d.zoom] for d in DRAWS]
    for fired, probability in ((blurred, 0.2), (zoomed, 0.25)):
        for channel in range(2):
            assert_rate([channels[channel] for channels in fired], probability / 2)
        assert_rate([all(channels) for channels in fired], probability / 4)


def test_values_fill_their_ranges_and_differ_between_channels() -> None:
    for name, low, high in (
        ("brightness", 0.75, 1.25),
        ("contrast", 0.75, 1.25),
        ("gamma", 0.7, 1.5),
        ("gamma_inverted", 0.7, 1.5),
    ):
        fired = np.array([getattr(d, name) for d in DRAWS if getattr(d, name) != (1, 1)])
        assert low <= fired.min() < low + 0.02
        assert high - 0.02 < fired.max() <= high
        assert_rate(list(fired.ravel() < 1), 0.5)
        assert abs(np.corrcoef(fired.T)[0, 1]) < 0.2
    zooms = np.array([zoom for d in DRAWS for zoom in d.zoom if zoom != 1])
    assert 0.5 <= zooms.min() < 0.51 < 0.99 < zooms.max() < 1
    sigmas = np.array([sigma for d in DRAWS for sigma in d.blur if sigma[0] > 0])
    assert 0.5 <= sigmas.min() < 0.51 < 0.99 < sigmas.max() < 1
    assert (np.abs(np.corrcoef(sigmas.T) - np.eye(3)) < 0.2).all()  # each axis has its own
    noise = np.array([d.noise_std for d in DRAWS if d.noise_std > 0])
    assert noise.min() < 0.002 < 0.098 < noise.max() < 0.1


@pytest.mark.parametrize("augmentation", KINDS)
def test_affine_is_one_scale_and_a_rotation_that_fills_its_range(
    augmentation: Augmentation,
) -> None:
    scales, angles = [], []
    for parameters in many_draws(augmentation, 1, 2000):
        if (affine := parameters.affine) is None:
            continue
        if augmentation.in_plane:
            assert affine[0].tolist() == affine[:, 0].tolist() == [1, 0, 0]
            affine = affine[1:, 1:]
        scale = abs(np.linalg.det(affine)) ** (1 / len(affine))
        turn = np.eye(3)
        turn[3 - len(affine) :, 3 - len(affine) :] = affine / scale
        np.testing.assert_allclose(turn.T @ turn, np.eye(3), atol=1e-12)
        assert np.linalg.det(turn) > 0  # no reflection
        scales.append(scale)
        about_z = math.atan2(turn[2, 1], turn[2, 2])  # z turns first, x last
        about_y = math.asin(-turn[2, 0])
        about_x = math.atan2(turn[1, 0], turn[0, 0])
        angles.append((about_z, about_y, about_x))
    assert_rate([abs(scale - 1) > 1e-9 for scale in scales], 0.2 / 0.36)
    assert 0.7 <= min(scales) < 0.72
    assert 1.38 < max(scales) <= 1.4
    largest, limits = np.abs(angles).max(axis=0), np.array(augmentation.rotation)
    assert (largest <= limits + 1e-9).all()
    assert (largest >= limits * 0.98).all()
    assert (np.abs(np.mean(angles, axis=0)) <= limits * 0.1).all()  # either way alike


def test_equal_generators_give_equal_draws_and_others_differ() -> None:
    def values(seed: int) -> list[object]:
        rng = np.random.default_rng(seed)
        drawn = [draw(VOLUME, 2, rng) for _ in range(20)]
        return [
            None if (value := getattr(d, field.name)) is None else np.asarray(value).tolist()
            for d in drawn
            for field in fields(Draw)
        ]

    assert values(3) == values(3)
    assert values(3) != values(4)


@pytest.mark.parametrize(
    ("swaps", "axis", "message"),
    [
        ([(1, 2)], None, "swap_axis is None; swaps need 0, 1 or 2"),
        ([(1, 2), (2, 3)], 2, "every label may stand there once"),
        ([(1, 1)], 2, "every label may stand there once"),
        ([(0, 1)], 2, "background never"),
    ],
)
def test_swaps_that_make_no_sense_are_refused(
    swaps: list[tuple[int, int]], axis: int | None, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        plan_augmentation(PATCH, 3, swaps=swaps, swap_axis=axis)


@pytest.mark.parametrize(
    ("patch", "dimensions", "spacing", "steps", "farthest"),
    [
        ((40, 56, 48), 3, (1.0, 1.0, 1.0), (32, 32, 32), (6, 6, 6)),
        ((40, 56, 48), 3, (2.0, 0.5, 1.0), (8, 32, 16), (1.5, 6, 3)),
        ((20, 80, 64), 3, (5.0, 0.5, 0.75), (32, 32, 64 / 3), (0, 6, 4)),  # flat: z is left out
        ((1, 80, 64), 2, (None, 1.0, 0.5), (32, 16, 32), (0, 3, 6)),
    ],
)
def test_patches_bend_as_far_in_mm_along_every_axis_that_moves(
    patch: Shape,
    dimensions: int,
    spacing: tuple[float | None, ...],
    steps: tuple[float, ...],
    farthest: tuple[float, ...],
) -> None:
    planned = plan_augmentation(patch, dimensions, elastic=6.0, spacing=spacing)
    assert planned.steps == pytest.approx(steps)
    assert planned.farthest == pytest.approx(farthest)
    plain = plan_augmentation(patch, dimensions, spacing=spacing)
    assert not any(plain.farthest)
    grown = np.subtract(planned.loaded_shape, plain.loaded_shape)
    assert grown.tolist() == [2 * math.ceil(each) for each in farthest]
    assert replace(planned, loaded_shape=plain.loaded_shape, farthest=(0.0,) * 3) == replace(
        plain, steps=planned.steps
    )


def test_patches_that_would_fold_are_refused() -> None:
    assert max(plan_augmentation(PATCH, 3, elastic=12.8, spacing=(3.0, 0.7, 1.1)).farthest) == 12.8
    with pytest.raises(PlanError, match=r"patches fold where it is above 0\.4 of the steps"):
        plan_augmentation(PATCH, 3, elastic=12.9)


@pytest.mark.parametrize("augmentation", BENT)
def test_patches_bend_at_their_rate_and_else_are_what_they_would_be(
    augmentation: Augmentation,
) -> None:
    still = replace(augmentation, farthest=(0.0,) * 3)
    drawn = []
    for seed in range(1500):
        first, second = (np.random.default_rng(seed) for _ in range(2))
        plain, bent = draw(still, 2, first), draw(augmentation, 2, second)
        drawn.append((plain, bent))
        for field in fields(Draw):
            if field.name not in ("affine", "bend"):
                assert getattr(plain, field.name) == getattr(bent, field.name)
        affine = bent.affine if plain.affine is not None else np.eye(3)
        assert plain.affine is None or np.array_equal(plain.affine, bent.affine)
        assert bent.bend is None or np.array_equal(bent.affine, affine)
        assert bent.bend is not None or (bent.affine is None) == (plain.affine is None)
    assert all(plain.bend is None for plain, _ in drawn)
    assert_rate([bent.bend is not None for _, bent in drawn], 0.2)
    moved = [bent.bend is not None for plain, bent in drawn if plain.affine is not None]
    assert_rate(moved, 0.2)  # whether they rotate or scale or not
    limits = np.array(augmentation.farthest)[augmentation.moving]
    bends = [bent.bend for _, bent in drawn if bent.bend is not None]
    largest = [np.abs(each).reshape(len(limits), -1).max(axis=1) for each in bends]
    assert len(bends[0]) == bends[0].ndim - 1 == (2 if augmentation.in_plane else 3)
    assert (np.array(largest) <= limits).all()
    assert (np.max(largest, axis=0) > 0.9 * limits).all()


def test_without_bending_nothing_more_is_drawn() -> None:
    first, second = (np.random.default_rng(7) for _ in range(2))
    for _ in range(3):
        draw(VOLUME, 2, first)
        draw(plan_augmentation(PATCH, 3, elastic=None), 2, second)
    assert first.random() == second.random()
