"""Each change of intensities alone, beside another way to compute it."""

from dataclasses import replace

import pytest
import torch
from patches import KINDS, PATCH, SLICE, VOLUME, apply, image_of, nothing
from torch.nn.functional import conv3d, interpolate, pad

from nnseg.model.draws import Augmentation


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
