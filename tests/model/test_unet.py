import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nnseg.model.architecture import Architecture
from nnseg.model.blocks import ConvBlock, InstanceNorm, ResidualBlock
from nnseg.networks.build import build_network

FLAT = Architecture(
    network="plain",
    dimensions=2,
    features=(4, 8, 16),
    kernel_sizes=((1, 3, 3),) * 3,
    strides=((1, 1, 1), (1, 2, 2), (1, 2, 1)),
    encoder_blocks=(2, 2, 2),
    decoder_blocks=(2, 2),
)
DEEP = Architecture(
    network="plain",
    dimensions=3,
    features=(4, 5, 6),
    kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 1)),
    encoder_blocks=(1, 2, 3),
    decoder_blocks=(1, 2),
)
HIPPOCAMPUS = Architecture(
    network="plain",
    dimensions=3,
    features=(32, 64, 128, 256),
    kernel_sizes=((3, 3, 3),) * 4,
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    encoder_blocks=(2, 2, 2, 2),
    decoder_blocks=(2, 2, 2),
)
RESIDUAL = dataclasses.replace(DEEP, network="resenc")
RESIDUAL_FLAT = dataclasses.replace(FLAT, network="resenc")
SINGLE = Architecture(
    network="plain",
    dimensions=3,
    features=(4,),
    kernel_sizes=((3, 3, 3),),
    strides=((1, 1, 1),),
    encoder_blocks=(2,),
    decoder_blocks=(),
)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def built(architecture: Architecture, channels: int = 2, heads: int = 3, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(architecture, channels, heads).eval()


@pytest.mark.parametrize("architecture", [DEEP, RESIDUAL])
@torch.no_grad()
def test_logits_in_3d_have_the_shape_of_the_image_and_of_each_resolution_below(
    architecture: Architecture,
) -> None:
    outputs = built(architecture)(drawn(2, 2, 4, 8, 6), 2)
    assert [tuple(output.shape) for output in outputs] == [(2, 3, 4, 8, 6), (2, 3, 4, 4, 3)]


@pytest.mark.parametrize("architecture", [FLAT, RESIDUAL_FLAT])
@torch.no_grad()
def test_logits_in_2d_keep_the_axis_of_the_slice(architecture: Architecture) -> None:
    outputs = built(architecture)(drawn(2, 2, 1, 8, 6), 2)
    assert [tuple(output.shape) for output in outputs] == [(2, 3, 1, 8, 6), (2, 3, 1, 4, 3)]


@torch.no_grad()
def test_only_the_outputs_asked_for_are_computed_and_the_first_is_always_the_same() -> None:
    network, image = built(DEEP), drawn(1, 2, 4, 8, 6)
    calls: list[int] = []
    for level, head in enumerate(network.heads):
        head.register_forward_hook(lambda *_, level=level: calls.append(level))
    (alone,) = network(image)
    assert len(calls) == 1
    assert torch.equal(network(image, 2)[0], alone)


@torch.no_grad()
def test_instance_norm_gives_the_numbers_of_torchs_own() -> None:
    norm, x = InstanceNorm(3), 5 + 2 * drawn(2, 3, 4, 5, 6)
    norm.weight.copy_(torch.tensor([1.0, 2.0, -3.0]))
    norm.bias.copy_(torch.tensor([0.5, 0.0, 4.0]))
    torch.testing.assert_close(
        norm(x), functional.instance_norm(x, weight=norm.weight, bias=norm.bias)
    )


def test_a_block_is_convolution_norm_and_leaky_relu() -> None:
    block, x = ConvBlock(2, 3, (1, 3, 5), (1, 2, 1)), drawn(1, 2, 4, 6, 5)
    convolved = functional.conv3d(
        x, block.conv.weight, block.conv.bias, stride=(1, 2, 1), padding=(0, 1, 2)
    )
    expected = functional.leaky_relu(functional.instance_norm(convolved), 0.01)
    torch.testing.assert_close(block(x), expected)
    assert block(x).shape == (1, 3, 4, 3, 5)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, again, other = (built(DEEP, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["encoder.0.0.conv.weight"], other["encoder.0.0.conv.weight"])


def test_weights_are_he_normal_for_the_slope_and_biases_0() -> None:
    network = built(HIPPOCAMPUS)
    weight = network.encoder[2][1].conv.weight  # 128 to 128 channels
    expected = (2 / (1 + 0.01**2) / (128 * 27)) ** 0.5
    assert float(weight.detach().std()) == pytest.approx(expected, rel=0.01)
    biases = [p for name, p in network.named_parameters() if name.endswith("bias")]
    assert not any(bool(bias.any()) for bias in biases)


# Counted in dynamic_network_architectures' networks of the same settings.
@pytest.mark.parametrize(
    ("architecture", "channels", "heads", "parameters"),
    [
        (HIPPOCAMPUS, 1, 3, 5_603_177),
        (FLAT, 2, 6, 7_416),
        (dataclasses.replace(HIPPOCAMPUS, network="resenc"), 1, 3, 10_377_865),
        (RESIDUAL_FLAT, 2, 6, 13_996),
    ],
)
def test_a_network_has_as_many_parameters_as_the_peers(
    architecture: Architecture, channels: int, heads: int, parameters: int
) -> None:
    network = build_network(architecture, channels, heads)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@torch.no_grad()
def test_a_network_of_one_level_has_its_head_on_that() -> None:
    (logits,) = built(SINGLE)(drawn(1, 2, 3, 4, 5))
    assert logits.shape == (1, 3, 3, 4, 5)


@pytest.mark.parametrize("architecture", [DEEP, RESIDUAL])
@torch.no_grad()
def test_each_axis_is_pooled_by_its_own_stride(architecture: Architecture) -> None:
    network = built(architecture)
    shapes: list[tuple[int, ...]] = []
    for level in network.encoder:
        level.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[2:])))
    network(drawn(1, 2, 4, 8, 6))
    assert shapes == [(4, 8, 6), (4, 4, 3), (2, 2, 3)]


def test_a_residual_encoder_has_a_stem_and_blocks_that_begin_with_their_last_norm_at_0() -> None:
    encoder = built(RESIDUAL).encoder
    assert [len(level) for level in encoder] == [2, 2, 3]
    assert isinstance(encoder[0][0], ConvBlock)
    blocks = [block for level in encoder for block in level if isinstance(block, ResidualBlock)]
    assert len(blocks) == 6
    assert not any(bool(block.conv2.norm.weight.any()) for block in blocks)
    assert all(bool((block.conv1.norm.weight == 1).all()) for block in blocks)
