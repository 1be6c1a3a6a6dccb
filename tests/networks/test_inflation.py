from typing import Literal

import pytest
import torch
from image_networks import CUBIC, KEPT_PLANES, THICK
from known_networks import drawn
from torch import Tensor, nn
from torch.nn import functional

from nnseg.model.architecture import Architecture
from nnseg.networks.inflation import (
    Levels,
    average_pool,
    batch_norm,
    convolution,
    flat_levels,
    inflate,
    levels_of,
    max_pool,
)

Padding = Literal["centred", "same"]


def spread(image: Tensor, planes: int) -> Tensor:
    """The same image in each of several planes."""
    return image.unsqueeze(2).repeat(1, 1, planes, 1, 1)


def test_a_kernel_is_repeated_along_z_and_divided_by_its_depth() -> None:
    flat = drawn(2, 3, 5, 4)
    deep = inflate(flat, 3)
    assert deep.shape == (2, 3, 3, 5, 4)
    for plane in range(3):
        torch.testing.assert_close(deep[:, :, plane], flat / 3)


@pytest.mark.parametrize("levels", [CUBIC, THICK, KEPT_PLANES], ids=["cubic", "thick", "kept"])
@pytest.mark.parametrize(
    ("level", "edge", "halvings", "padding"),
    [
        (1, 3, 1, "centred"),
        (2, 3, 0, "centred"),
        (3, 7, 1, "centred"),
        (3, 3, 1, "same"),
        (3, 3, 0, "same"),
        (3, 1, 1, "centred"),
        (2, 4, 2, "centred"),
        (3, 2, 1, "centred"),
    ],
)
def test_an_inflated_convolution_gives_each_plane_what_the_flat_one_gives_its_image(
    levels: Levels, level: int, edge: int, halvings: int, padding: Padding
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = {"halvings": halvings, "groups": 2, "bias": True, "padding": padding}
        flat = convolution(flat_levels(6), level, 4, 6, edge, **settings)  # type: ignore[arg-type]
        deep = convolution(levels, level, 4, 6, edge, **settings)  # type: ignore[arg-type]
    assert isinstance(flat, nn.Conv2d)
    assert isinstance(deep, nn.Conv3d)
    state = flat.state_dict()
    deep.load_state_dict(state | {"weight": inflate(state["weight"], deep.kernel_size[0])})
    image = drawn(2, 4, 8, 12)
    expected, found = flat(image), deep(spread(image, 8))
    assert found.shape[2] == 8 // levels.step(level, halvings)
    assert expected.shape[2:] == (8 // 2**halvings, 12 // 2**halvings)
    torch.testing.assert_close(found, spread(expected, found.shape[2]))


def test_same_padding_puts_the_odd_row_of_zeros_behind_the_image() -> None:
    with torch.random.fork_rng(devices=[]):
        layer = convolution(flat_levels(2), 1, 1, 1, 3, halvings=1, padding="same")
    image = drawn(1, 1, 4, 6)
    padded = functional.pad(image, (0, 1, 0, 1))
    expected = functional.conv2d(padded, layer.weight, stride=2)  # type: ignore[arg-type]
    torch.testing.assert_close(layer(image), expected)


def test_beyond_the_last_plane_lies_another_like_it() -> None:
    with torch.random.fork_rng(devices=[]):
        layer = convolution(CUBIC, 1, 1, 1, 3)
    image = drawn(1, 1, 4, 5, 6)
    longer = torch.cat((image[:, :, :1], image, image[:, :, -1:]), dim=2)
    expected = functional.conv3d(longer, layer.weight, padding=(0, 1, 1))  # type: ignore[arg-type]
    torch.testing.assert_close(layer(image), expected)


@pytest.mark.parametrize(
    ("levels", "level", "edge", "halvings", "kernel", "stride"),
    [
        (CUBIC, 2, 3, 0, (3, 3, 3), (1, 1, 1)),
        (CUBIC, 2, 7, 1, (3, 7, 7), (2, 2, 2)),
        (CUBIC, 2, 1, 0, (1, 1, 1), (1, 1, 1)),
        (THICK, 1, 3, 1, (1, 3, 3), (1, 2, 2)),
        (THICK, 2, 3, 1, (3, 3, 3), (1, 2, 2)),
        (THICK, 3, 3, 1, (3, 3, 3), (2, 2, 2)),
        (CUBIC, 2, 4, 2, (4, 4, 4), (4, 4, 4)),
        (THICK, 2, 4, 2, (1, 4, 4), (1, 4, 4)),
        (THICK, 3, 2, 1, (2, 2, 2), (2, 2, 2)),
    ],
)
def test_kernels_and_strides_along_z_are_the_plans(
    levels: Levels,
    level: int,
    edge: int,
    halvings: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
) -> None:
    with torch.device("meta"):
        layer = convolution(levels, level, 2, 2, edge, halvings=halvings)
    assert isinstance(layer, nn.Conv3d)
    assert (layer.kernel_size, layer.stride) == (kernel, stride)


@pytest.mark.parametrize("make", [max_pool, average_pool])
@pytest.mark.parametrize(("level", "planes"), [(1, 8), (3, 4)])
def test_a_pooling_shrinks_z_where_the_plan_does(make: object, level: int, planes: int) -> None:
    image = drawn(1, 2, 6, 4)
    expected = make(flat_levels(6), level)(image)  # type: ignore[operator]
    found = make(THICK, level)(spread(image, 8))  # type: ignore[operator]
    assert expected.shape == (1, 2, 3, 2)
    torch.testing.assert_close(found, spread(expected, planes))


def test_levels_are_read_from_an_architecture() -> None:
    architecture = Architecture(
        network="encoder_unet",
        dimensions=3,
        features=(4, 8, 16),
        kernel_sizes=((1, 3, 3), (1, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(2, 2),
    )
    assert levels_of(architecture) == Levels(dimensions=3, depths=(1, 1, 3), steps=(1, 1, 2))


def test_a_norm_has_the_epsilon_that_it_is_given() -> None:
    norm = batch_norm(CUBIC, 4, eps=1e-3)
    assert isinstance(norm, nn.BatchNorm3d)
    assert norm.eps == 1e-3
