"""Augmentation: the rules of a patch size, the draws' rates and ranges, each transform alone."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv3d, grid_sample, interpolate, one_hot, pad

from nnseg.axes import Shape
from nnseg.errors import PlanError
from nnseg.model.augment import Augmentation, Draw, augment, draw, plan_augmentation, reach

PATCH = (8, 12, 10)
VOLUME = plan_augmentation(PATCH, 3)
SLICE = plan_augmentation((1, 12, 10), 2)
FLAT = plan_augmentation((4, 16, 14), 3)
KINDS = [
    pytest.param(VOLUME, id="3d"),
    pytest.param(SLICE, id="2d"),
    pytest.param(FLAT, id="flat"),
]


def nothing(channels: int = 1) -> Draw:
    """Give the draw for which no transform fires."""
    ones = (1.0,) * channels
    return Draw(
        affine=None,
        noise_std=0.0,
        noise_seed=0,
        blur=((0.0, 0.0, 0.0),) * channels,
        brightness=ones,
        contrast=ones,
        zoom=ones,
        gamma_inverted=ones,
        gamma=ones,
        mirror=(),
    )


def image_of(shape: Shape, channels: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, *shape, generator=generator) * 3 + 5


def labels_of(shape: Shape, count: int = 4, seed: int = 0) -> Tensor:
    """Give blobs of labels 0 to count - 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, *(-(-edge // 3) for edge in shape), generator=generator)
    return (interpolate(coarse, shape, mode="trilinear")[0, 0] * count).to(torch.uint8)


def apply(
    parameters: Draw,
    image: Tensor,
    augmentation: Augmentation = VOLUME,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Augment one sample."""
    if labels is None:
        labels = torch.zeros(image.shape[1:], dtype=torch.uint8)
    images, maps = augment([image], [labels[None]], [parameters], augmentation)
    return images[0], maps[0, 0]


def turn_about_z(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


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


@pytest.mark.parametrize("augmentation", KINDS)
def test_a_draw_in_which_nothing_fired_changes_nothing(augmentation: Augmentation) -> None:
    image, labels = image_of(augmentation.patch_size, 2), labels_of(augmentation.patch_size)
    found, found_labels = apply(nothing(2), image, augmentation, labels)
    assert torch.equal(found, image)
    assert torch.equal(found_labels, labels)
    assert found_labels.dtype == labels.dtype


@pytest.mark.parametrize("augmentation", KINDS)
def test_inputs_stay_as_they_were_and_equal_draws_give_equal_batches(
    augmentation: Augmentation,
) -> None:
    rng = np.random.default_rng(0)
    draws = [draw(augmentation, 2, rng) for _ in range(40)]
    images, maps = [], []
    for seed, parameters in enumerate(draws):
        shape = augmentation.patch_size if parameters.affine is None else augmentation.loaded_shape
        images.append(image_of(shape, 2, seed))
        labels = labels_of(shape, seed=seed)
        maps.append(torch.stack([labels, (labels > 0).byte()]))
    before = [[tensor.clone() for tensor in each] for each in (images, maps)]
    first = augment(images, maps, draws, augmentation, masked_channels=(1,))
    second = augment(images, maps, draws, augmentation, masked_channels=(1,))
    for kept, now in zip(before, (images, maps), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[0].shape == (40, 2, *augmentation.patch_size)
    assert first[1].shape == (40, 2, *augmentation.patch_size)
    assert first[0].dtype == torch.float32
    for i in range(40):  # what else is in the batch does not matter
        alone = augment(
            images[i : i + 1],
            maps[i : i + 1],
            draws[i : i + 1],
            augmentation,
            masked_channels=(1,),
        )
        torch.testing.assert_close(alone[0][0], first[0][i], rtol=1e-4, atol=1e-4)
        assert torch.equal(alone[1][0], first[1][i])


def test_a_sample_of_the_wrong_shape_for_its_draw_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sample 0 has shape \(8, 12, 10\)"):
        apply(replace(nothing(), affine=np.eye(3)), image_of(PATCH))
    with pytest.raises(ValueError, match="its draw needs"):
        apply(nothing(), image_of(VOLUME.loaded_shape))


@pytest.mark.parametrize("augmentation", KINDS)
def test_a_quarter_turn_about_z_equals_rot90_of_image_and_labels(
    augmentation: Augmentation,
) -> None:
    depth = augmentation.patch_size[0]
    square = replace(augmentation, patch_size=(depth, 10, 10), loaded_shape=(depth, 10, 10))
    image, labels = image_of((depth, 10, 10), 2), labels_of((depth, 10, 10))
    turned, turned_labels = apply(
        replace(nothing(2), affine=turn_about_z(math.pi / 2)), image, square, labels
    )
    wanted = np.rot90(image.numpy(), k=-1, axes=(2, 3)).copy()  # from y to x
    np.testing.assert_allclose(turned.numpy(), wanted, atol=1e-4)
    assert np.array_equal(turned_labels.numpy(), np.rot90(labels.numpy(), k=-1, axes=(1, 2)))


@pytest.mark.parametrize("augmentation", KINDS)
def test_positions_are_those_of_a_grid_with_unaligned_corners(augmentation: Augmentation) -> None:
    loaded, patch = augmentation.loaded_shape, augmentation.patch_size
    affine = turn_about_z(0.4) @ np.diag((1, 1.3, 1.3))
    if not augmentation.in_plane:
        affine = np.array([[0.9, 0.1, -0.3], [-0.2, 1.1, 0.3], [0.2, -0.4, 1.0]])
    image, labels = image_of(loaded, 2), labels_of(loaded, 5)
    found, found_labels = apply(replace(nothing(2), affine=affine), image, augmentation, labels)

    axes = [torch.arange(edge, dtype=torch.float64) - (edge - 1) / 2 for edge in patch]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    source = offsets @ torch.from_numpy(affine).T
    grid = (source * 2 / torch.tensor(loaded)).flip(-1)[None]
    wanted = grid_sample(image[None].double(), grid, align_corners=False)[0]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)

    shares = grid_sample(
        one_hot(labels.long()).movedim(-1, 0)[None].double(), grid, align_corners=False
    )[0]
    shares[0] += 1 - shares.sum(0)  # outside counts as background
    clear = shares.topk(2, dim=0).values.diff(dim=0).abs()[0] > 1e-4
    assert clear.float().mean() > 0.9
    assert torch.equal(found_labels[clear].long(), shares.argmax(0)[clear])
    assert found_labels.unique().numel() == 5


def test_a_scale_above_one_shrinks_objects_and_leaves_zeros_around() -> None:
    cube = replace(VOLUME, patch_size=(20, 18, 16), loaded_shape=(20, 18, 16))
    labels = torch.zeros(20, 18, 16, dtype=torch.uint8)
    labels[4:16, 3:15, 2:14] = 1
    image = labels[None].float() + 1
    scaled = {
        scale: apply(replace(nothing(), affine=np.eye(3) * scale), image, cube, labels)
        for scale in (0.8, 1.4)
    }
    assert scaled[0.8][1].sum() == pytest.approx(12**3 / 0.8**3, rel=0.2)  # in whole voxels
    assert scaled[1.4][1].sum() == pytest.approx(12**3 / 1.4**3, rel=0.2)  # in whole voxels
    assert scaled[1.4][0][0, 0, 0, 0] == 0
    assert scaled[0.8][0].min() > 0.99


def test_flat_patches_keep_their_slices_apart() -> None:
    image, labels = image_of(FLAT.loaded_shape), labels_of(FLAT.loaded_shape)
    parameters = replace(nothing(), affine=turn_about_z(0.7))
    found, found_labels = apply(parameters, image, FLAT, labels)
    image[:, 2], labels[2] = 0, 0
    emptied, emptied_labels = apply(parameters, image, FLAT, labels)
    assert torch.equal(emptied[:, [0, 1, 3]], found[:, [0, 1, 3]])
    assert torch.equal(emptied_labels[[0, 1, 3]], found_labels[[0, 1, 3]])
    assert not emptied[:, 2].any()
    assert not emptied_labels[2].any()


def test_noise_has_the_drawn_value_as_deviation_and_follows_its_seed() -> None:
    image = torch.zeros(2, 30, 29, 28)
    large = replace(VOLUME, patch_size=(30, 29, 28), loaded_shape=(60, 60, 60))
    parameters = replace(nothing(2), noise_std=0.08, noise_seed=2**62)
    found, _ = apply(parameters, image, large)
    assert found.mean().item() == pytest.approx(0, abs=2e-3)
    assert found[0].std().item() == pytest.approx(0.08, rel=0.03)
    assert found[1].std().item() == pytest.approx(0.08, rel=0.03)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(apply(parameters, image, large)[0], found)
    assert not torch.equal(apply(replace(parameters, noise_seed=1), image, large)[0], found)


@pytest.mark.parametrize(
    ("sigma", "radius"), [(0.5, 1), (0.58, 1), (0.59, 2), (0.91, 2), (0.92, 3), (0.999, 3)]
)
def test_blur_is_a_separable_gaussian_that_reflects_at_the_border(
    sigma: float, radius: int
) -> None:
    image = image_of(PATCH, 3)
    sigmas = (sigma, 0.7, 0.8)
    blurs = ((0.0, 0.0, 0.0), sigmas, (0.6, 0.6, 0.6))
    found, _ = apply(replace(nothing(3), blur=blurs), image)
    assert torch.equal(found[0], image[0])
    wanted = image[None, 1:2].double()
    for axis, (each, taps) in enumerate(zip(sigmas, (radius, 2, 2), strict=True)):
        offsets = torch.arange(-taps, taps + 1, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (offsets / each) ** 2)
        shape, margins = [1, 1, 1, 1, 1], [0] * 6
        shape[axis + 2] = len(offsets)
        margins[4 - 2 * axis] = margins[5 - 2 * axis] = taps
        wanted = conv3d(pad(wanted, margins, mode="reflect"), (kernel / kernel.sum()).view(shape))
    torch.testing.assert_close(found[1].double(), wanted[0, 0], rtol=1e-5, atol=1e-5)


def test_blur_of_a_slice_leaves_out_z() -> None:
    image = image_of(SLICE.patch_size)
    found, _ = apply(replace(nothing(), blur=((0.9, 0.6, 0.8),)), image, SLICE)
    other, _ = apply(replace(nothing(), blur=((0.5, 0.6, 0.8),)), image, SLICE)
    assert torch.equal(found, other)
    assert found.std() < image.std()


def test_brightness_multiplies_each_channel_by_its_factor() -> None:
    image = image_of(PATCH, 3)
    found, _ = apply(replace(nothing(3), brightness=(0.8, 1.0, 1.2)), image)
    torch.testing.assert_close(found, image * torch.tensor([0.8, 1.0, 1.2]).view(3, 1, 1, 1))
    assert torch.equal(found[1], image[1])


def test_contrast_stretches_about_the_mean_within_the_old_range() -> None:
    image = image_of(PATCH, 2)
    found, _ = apply(replace(nothing(2), contrast=(1.25, 0.75)), image)
    for channel, factor in enumerate((1.25, 0.75)):
        old = image[channel]
        stretched = (old - old.mean()) * factor + old.mean()
        wanted = stretched.clamp(old.min(), old.max())
        torch.testing.assert_close(found[channel], wanted)
    assert found[0].max() == image[0].max()
    assert found[1].max() < image[1].max()


@pytest.mark.parametrize("augmentation", KINDS)
@pytest.mark.parametrize("zoom", [0.5, 0.63, 0.77, 0.99])
def test_low_resolution_goes_down_by_nearest_and_back_linearly(
    augmentation: Augmentation, zoom: float
) -> None:
    patch = augmentation.patch_size
    image = image_of(patch, 2)
    found, _ = apply(replace(nothing(2), zoom=(1.0, zoom)), image, augmentation)
    assert torch.equal(found[0], image[0])
    small = [round(edge * zoom) for edge in patch]
    if augmentation.in_plane:
        small[0] = patch[0]
    low = interpolate(image[None, 1:], small, mode="nearest-exact")
    wanted = interpolate(low, patch, mode="trilinear")[0, 0]
    torch.testing.assert_close(found[1], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_bends_the_range_and_keeps_mean_and_deviation(inverted: bool) -> None:
    image = image_of(PATCH, 2)
    exponents = (1.5, 0.7)
    name = "gamma_inverted" if inverted else "gamma"
    found, _ = apply(replace(nothing(2), **{name: exponents}), image)
    for channel, exponent in enumerate(exponents):
        old = image[channel].double() * (-1 if inverted else 1)
        span = old.max() - old.min()
        bent = ((old - old.min()) / span) ** exponent * span + old.min()
        wanted = (bent - bent.mean()) / bent.std() * old.std() + old.mean()
        wanted = wanted * (-1 if inverted else 1)
        torch.testing.assert_close(found[channel].double(), wanted, rtol=1e-4, atol=1e-4)
        assert found[channel].mean().item() == pytest.approx(image[channel].mean().item(), rel=1e-4)
        assert found[channel].std().item() == pytest.approx(image[channel].std().item(), rel=1e-4)


def test_a_constant_channel_stays_constant_under_every_intensity_transform() -> None:
    image = torch.full((1, *PATCH), 2.0)
    parameters = replace(
        nothing(),
        blur=((0.9, 0.9, 0.9),),
        contrast=(1.2,),
        zoom=(0.6,),
        gamma=(1.3,),
        gamma_inverted=(0.8,),
    )
    torch.testing.assert_close(apply(parameters, image)[0], image)


def test_transforms_run_in_the_order_of_the_method() -> None:
    image = image_of(PATCH)
    steps = [
        {"noise_std": 0.1},
        {"blur": ((0.9, 0.7, 0.8),)},
        {"brightness": (1.2,)},
        {"contrast": (1.2,)},
        {"zoom": (0.6,)},
        {"gamma_inverted": (1.4,)},
        {"gamma": (0.8,)},
        {"mirror": (0, 2)},
    ]
    wanted = image
    for step in steps:
        wanted, _ = apply(replace(nothing(), **step), wanted)
    together = replace(nothing(), **{name: value for step in steps for name, value in step.items()})
    torch.testing.assert_close(apply(together, image)[0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_mirroring_flips_image_labels_and_mask_together(axes: tuple[int, ...]) -> None:
    image, labels = image_of(PATCH, 2), labels_of(PATCH)
    parameters = [nothing(2), replace(nothing(2), mirror=axes)]
    maps = torch.stack([labels, (labels > 1).byte()])
    images, found = augment([image] * 2, [maps] * 2, parameters, VOLUME, masked_channels=(1,))
    plain = image.clone()
    plain[1][labels <= 1] = 0
    assert torch.equal(images[0], plain)
    assert torch.equal(images[1], plain.flip([axis + 1 for axis in axes]))
    assert torch.equal(found[1, 0], labels.flip(axes))


def test_masked_channels_are_zero_outside_of_the_moved_mask_only() -> None:
    image = image_of(VOLUME.loaded_shape, 3).abs() + 1
    labels, mask = (labels_of(VOLUME.loaded_shape, seed=seed) for seed in (1, 2))
    parameters = replace(
        nothing(3), affine=turn_about_z(0.5) * 0.8, noise_std=0.05, gamma=(1.2,) * 3
    )
    maps = torch.stack([labels, (mask > 1).byte()])
    images, found = augment([image], [maps], [parameters], VOLUME, masked_channels=(0, 2))
    _, inside = apply(parameters, image, VOLUME, (mask > 1).to(torch.uint8))
    unmasked, unmasked_labels = apply(parameters, image, VOLUME, labels)
    assert 0 < inside.sum() < inside.numel()
    for channel in (0, 2):
        assert not images[0, channel][inside == 0].any()
        assert torch.equal(images[0, channel][inside == 1], unmasked[channel][inside == 1])
    assert torch.equal(images[0, 1], unmasked[1])
    assert torch.equal(found[0, 0], unmasked_labels)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int64, torch.uint16])
def test_every_integer_type_of_label_map_is_kept(kind: torch.dtype) -> None:
    labels = labels_of(VOLUME.loaded_shape)
    parameters = replace(nothing(), affine=turn_about_z(0.4), mirror=(1,))
    image = image_of(VOLUME.loaded_shape)
    _, wanted = apply(parameters, image, VOLUME, labels)
    _, found = apply(parameters, image, VOLUME, labels.to(kind))
    assert found.dtype == kind
    assert torch.equal(found.long(), wanted.long())


@pytest.mark.parametrize(("mirror", "trade"), [((2,), True), ((0, 2), True), ((0, 1), False)])
def test_left_and_right_trade_places_where_their_axis_is_mirrored(
    mirror: tuple[int, ...], trade: bool
) -> None:
    rules = plan_augmentation(PATCH, 3, swaps=[(1, 2), (4, 3)], swap_axis=2)
    labels, mask, previous = labels_of(PATCH, 5), labels_of(PATCH) > 1, labels_of(PATCH, 5, seed=2)
    maps = torch.stack([labels, mask.byte(), previous])
    drawn = [nothing(), replace(nothing(), mirror=mirror)]
    image = image_of(PATCH)
    _, found = augment([image] * 2, [maps] * 2, drawn, rules, masked_channels=(0,))
    assert torch.equal(found[0], maps)
    flipped = maps.flip([axis + 1 for axis in mirror])
    table = torch.tensor([0, 2, 1, 4, 3] if trade else [0, 1, 2, 3, 4], dtype=torch.uint8)
    assert torch.equal(found[1, 0], table[flipped[0].long()])
    assert torch.equal(found[1, 1], flipped[1])  # the mask has no sides
    assert torch.equal(found[1, 2], table[flipped[2].long()])


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


@pytest.mark.parametrize("augmentation", KINDS)
def test_what_a_sample_looks_at_is_all_that_has_to_be_read(augmentation: Augmentation) -> None:
    rng = np.random.default_rng(2)
    shares = []
    for seed, parameters in enumerate(draw(augmentation, 1, rng) for _ in range(60)):
        moved = parameters.affine is not None
        whole = augmentation.loaded_shape if moved else augmentation.patch_size
        box = reach(parameters.affine, augmentation)
        z, y, x = (slice(*ends) for ends in box)
        image, labels = image_of(whole, 1, seed), labels_of(whole, seed=seed)[None]
        wanted, wanted_labels = augment([image], [labels], [parameters], augmentation)
        found, found_labels = augment(
            [image[:, z, y, x]],
            [labels[:, z, y, x]],
            [parameters],
            augmentation,
            offsets=[(z.start, y.start, x.start)],
        )
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
        assert (found_labels != wanted_labels).sum() <= 2  # ties that rounding decides
        if moved:
            shares.append(image[:, z, y, x].numel() / image.numel())
    assert np.mean(shares) < 0.9


def test_a_part_that_reaches_out_of_the_patch_is_refused() -> None:
    maps = torch.zeros((1, *PATCH), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"sample 0 has shape .* at \(0, 1, 0\); its draw needs"):
        augment([image_of(PATCH)], [maps], [nothing()], VOLUME, offsets=[(0, 1, 0)])


def test_a_flat_part_of_few_slices_keeps_its_place_when_it_is_mirrored() -> None:
    image, labels = image_of(FLAT.loaded_shape), labels_of(FLAT.loaded_shape)[None]
    image[:, 3:], labels[:, 3:] = 0, 0
    parameters = replace(nothing(), affine=turn_about_z(0.7), mirror=(0, 2))
    wanted, wanted_labels = augment([image], [labels], [parameters], FLAT)
    found, found_labels = augment(
        [image[:, 1:3]], [labels[:, 1:3]], [parameters], FLAT, offsets=[(1, 0, 0)]
    )
    assert not torch.equal(found, wanted)  # slice 0 was left out
    torch.testing.assert_close(found[:, :, :3], wanted[:, :, :3])
    assert torch.equal(found_labels[:, :, 1:3], wanted_labels[:, :, 1:3])
    assert not found[:, :, 3].any()
