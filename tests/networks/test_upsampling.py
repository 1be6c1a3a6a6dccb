import itertools

import pytest
import torch
from known_networks import drawn, seeded
from torch import nn
from torch.nn import functional

from nnseg.errors import PlanError
from nnseg.model.blocks import initialize
from nnseg.networks.upsampling import (
    Interpolate,
    ShuffledConvolution,
    make_upsampling,
    shuffle,
)

KINDS = ("transposed", "interpolated", "shuffled")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("stride", "shape", "finer"),
    [
        ((2, 1), (3, 4), (6, 4)),
        ((4, 4), (3, 2), (12, 8)),
        ((1, 2, 2), (2, 3, 4), (2, 6, 8)),
        ((2, 2, 1), (2, 3, 4), (4, 6, 4)),
    ],
)
@torch.no_grad()
def test_every_kind_makes_each_axis_finer_by_its_stride_and_gives_the_width(
    kind: str, stride: tuple[int, ...], shape: tuple[int, ...], finer: tuple[int, ...]
) -> None:
    up = seeded(make_upsampling, kind, 5, 3, stride, len(stride))
    assert up(drawn(2, 5, *shape)).shape == (2, 3, *finer)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_every_kind_learns(kind: str) -> None:
    up = seeded(make_upsampling, kind, 2, 3, (1, 2, 2), 3)
    up(drawn(1, 2, 2, 3, 4)).square().sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in up.parameters())


def test_interpolation_is_linear_between_centres_along_the_axis_that_becomes_finer() -> None:
    x = torch.tensor([[0.0, 4.0], [8.0, 4.0]]).reshape(1, 1, 1, 2, 2)
    assert Interpolate((1, 1, 2))(x).tolist() == [[[[[0, 1, 3, 4], [8, 7, 5, 4]]]]]
    assert Interpolate((1, 1, 1))(x) is x
    assert torch.equal(Interpolate((1, 2, 1), (1, 2, 2))(x), Interpolate((1, 4, 2))(x))


def test_convolutions_are_3_wide_only_where_the_axis_becomes_finer() -> None:
    assert seeded(make_upsampling, "interpolated", 5, 3, (1, 2, 2), 3)[1].weight.shape == (
        3,
        5,
        1,
        3,
        3,
    )
    assert seeded(make_upsampling, "shuffled", 5, 3, (2, 1), 2).weight.shape == (6, 5, 3, 1)
    assert seeded(make_upsampling, "transposed", 5, 3, (2, 1), 2).weight.shape == (5, 3, 2, 1)


def test_shuffling_in_2d_is_torchs() -> None:
    x = drawn(2, 12, 3, 5)
    assert torch.equal(shuffle(x, (2, 2)), functional.pixel_shuffle(x, 2))


def test_shuffling_puts_a_channel_of_each_group_at_each_finer_voxel() -> None:
    x, stride = drawn(1, 8, 2, 3, 4), (2, 1, 2)
    finer = shuffle(x, stride)
    assert finer.shape == (1, 2, 4, 3, 8)
    for width, a, b in itertools.product(range(2), range(2), range(2)):
        assert torch.equal(finer[:, width, a::2, :, b::2], x[:, 4 * width + 2 * a + b])


@pytest.mark.parametrize("stride", [(2, 2), (1, 2, 2)])
@torch.no_grad()
def test_a_shuffled_convolution_begins_as_one_whose_voxels_are_repeated(
    stride: tuple[int, ...],
) -> None:
    up, shape = (
        seeded(make_upsampling, "shuffled", 5, 3, stride, len(stride)),
        (2, 3, 4)[-len(stride) :],
    )
    finer = up(drawn(1, 5, *shape))
    centres = finer[(..., *(slice(None, None, step) for step in stride))]
    repeated = functional.interpolate(centres, scale_factor=tuple(map(float, stride)))
    assert torch.equal(finer, repeated)
    assert bool((centres[0, 0] != centres[0, 1]).all())


def test_initializing_a_networks_convolutions_leaves_a_shuffled_one_as_it_is() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 5, 1), seeded(make_upsampling, "shuffled", 5, 3, (2, 2), 2)
    )
    before = network[1].weight.clone()
    network.apply(initialize)
    assert torch.equal(network[1].weight, before)


def test_the_kernels_of_a_shuffled_convolution_are_he_normal() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weight = ShuffledConvolution(64, 64, (2, 2)).weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_a_shuffled_convolution_equals_the_transposed_one_of_its_weights() -> None:
    stride = (2, 2)
    shuffled = ShuffledConvolution(3, 2, stride)
    middle = drawn(8, 3, 1, 1)
    with torch.no_grad():
        shuffled.weight.zero_()
        shuffled.weight[:, :, 1:2, 1:2] = middle
    x = drawn(1, 3, 4, 5)
    kernel = middle.reshape(2, 2, 2, 3).permute(3, 0, 1, 2)
    torch.testing.assert_close(shuffled(x), functional.conv_transpose2d(x, kernel, stride=stride))


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PlanError, match="'bicubic'; known: interpolated, shuffled, transposed"):
        make_upsampling("bicubic", 2, 3, (2, 2), 2)


def test_the_gradient_of_shuffled_kernels_is_right_for_two_planes_in_bf16() -> None:
    torch.manual_seed(0)
    layer, image = ShuffledConvolution(16, 8, (2, 2, 2)), torch.randn(2, 16, 2, 8, 6)
    gradients = []
    for half in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            finer = layer(image)
        finer.float().square().mean().backward()
        gradients.append(layer.weight.grad.clone())
    assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()
