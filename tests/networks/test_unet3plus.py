"""UNet 3+ against its definition, written out, against its authors' code, and against the plan."""

import copy
import math
from typing import Any

import known_networks
import pytest
import torch
from kept import error_of_count
from known_networks import drawn, seeded
from torch import Tensor, nn
from torch.nn import functional

from nnseg.model.architecture import Architecture, NetworkOptions
from nnseg.model.counts.nested import UNET3PLUS
from nnseg.networks.unet3plus import UNet3Plus


def cubic(
    dimensions: Any = 3, features: tuple[int, ...] = (3, 4, 5, 6, 7), **options: Any
) -> Architecture:
    """An architecture as the paper has it, but for its widths and number of levels."""
    return known_networks.cubic("unet3plus", dimensions, features, (2,) * 5, (1,) * 4, **options)


def thick(**options: Any) -> Architecture:
    """An architecture of a plan whose slices are thick."""
    return Architecture(
        network="unet3plus",
        dimensions=3,
        features=(4, 5, 6, 7),
        kernel_sizes=((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 2)),
        encoder_blocks=(1, 2, 3, 1),
        decoder_blocks=(1, 2, 1),
        options=NetworkOptions(**options),
    )


def built(architecture: Architecture, channels: int = 2, heads: int = 3) -> Any:
    return seeded(UNet3Plus, architecture, channels, heads).eval()


def written_out(network: Any, architecture: Architecture, image: Tensor) -> list[Tensor]:
    """The paper's definition with a network's convolutions: each map is resized at once."""
    flat = architecture.dimensions == 2
    pool = functional.max_pool2d if flat else functional.max_pool3d
    mode = "bilinear" if flat else "trilinear"
    x = image.squeeze(2) if flat else image
    strides = [stride[1:] if flat else stride for stride in architecture.strides]
    encoded = []
    for level, encode in enumerate(network.encoder):
        x = encode(pool(x, strides[level]))
        encoded.append(x)
    decoded = {len(encoded) - 1: x}
    for level in range(len(encoded) - 2, -1, -1):
        size, parts = encoded[level].shape[2:], []
        for source, branch in enumerate(network.branches[level]):
            if source <= level:
                factors = zip(*strides[source + 1 : level + 1], strict=True)
                factor = tuple(math.prod(steps) for steps in factors)
                given = pool(encoded[source], factor) if factor else encoded[source]
            else:
                given = functional.interpolate(decoded[source], size, mode=mode)
            parts.append(branch[-1](given))
        decoded[level] = network.fuse[level](torch.cat(parts, dim=1))
    size = encoded[0].shape[2:]
    return [
        functional.interpolate(head(decoded[level]), size, mode=mode)
        for level, head in enumerate(network.heads)
    ]


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        (cubic(2), (2, 2, 1, 32, 48)),
        (cubic(3, (3, 4, 5)), (1, 2, 8, 4, 12)),
        (thick(), (2, 2, 8, 12, 16)),
    ],
)
@torch.no_grad()
def test_every_output_is_that_of_the_papers_definition(
    architecture: Architecture, shape: tuple[int, ...]
) -> None:
    network, image = built(architecture), drawn(*shape)
    expected = written_out(network, architecture, image)
    for found, logits in zip(network(image, architecture.levels), expected, strict=True):
        wanted = logits.unsqueeze(2) if architecture.dimensions == 2 else logits
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


# Counted in the authors' code, layer by layer: 3 channels, 1 class, and one output or five.
@pytest.mark.parametrize(("outputs", "parameters"), [(1, 26_971_777), (5, 26_989_637)])
def test_it_has_the_parameters_of_the_authors_code(outputs: int, parameters: int) -> None:
    widths = UNET3PLUS.features(5, 2)
    assert widths == (64, 128, 256, 512, 1024)
    with torch.device("meta"):
        network = UNet3Plus(cubic(2, widths), 3, 1)
    unused = sum(weight.numel() for weight in network.heads[outputs:].parameters())
    assert sum(weight.numel() for weight in network.parameters()) - unused == parameters


def test_a_node_takes_as_many_channels_from_each_scale_and_keeps_them_all() -> None:
    with torch.device("meta"):
        network: Any = UNet3Plus(cubic(2, (64, 128, 256, 512, 1024)), 1, 2)
    for branches, fuse in zip(network.branches, network.fuse, strict=True):
        assert [branch[-1].conv.out_channels for branch in branches] == [64] * 5
        assert (fuse[0].conv.in_channels, fuse[0].conv.out_channels) == (320, 320)
    assert [branch[-1].conv.in_channels for branch in network.branches[0]] == [
        64,
        320,
        320,
        320,
        1024,
    ]
    assert [branch[-1].conv.in_channels for branch in network.branches[3]] == [
        *(64, 128, 256, 512),
        1024,
    ]


def test_widths_in_3d_begin_with_fewer() -> None:
    assert UNET3PLUS.features(4, 3) == (16, 32, 64, 128)


@torch.no_grad()
def test_the_first_output_is_the_finest_node_whatever_is_asked_for() -> None:
    network, image = built(thick()), drawn(1, 2, 4, 8, 16)
    calls: list[int] = []
    for level, head in enumerate(network.heads):
        head.register_forward_hook(lambda *_, level=level: calls.append(level))
    (alone,) = network(image)
    assert calls == [0]
    assert torch.equal(network(image, 3)[0], alone)
    assert calls == [0, 0, 1, 2]


def test_outputs_count_alike() -> None:
    assert UNET3PLUS.weights(cubic()) == pytest.approx((0.2,) * 5)
    assert UNET3PLUS.weights(cubic(features=(4,))) == (1,)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        (cubic(3, (4, 4)), (1, 2, 4, 6, 8)),
        (cubic(2, (4,)), (1, 2, 1, 5, 7)),
        (thick(upsampling="transposed"), (1, 2, 4, 8, 16)),
        (thick(upsampling="interpolated"), (1, 2, 4, 8, 16)),
        (thick(upsampling="shuffled"), (1, 2, 4, 8, 16)),
    ],
)
@torch.inference_mode()
def test_every_output_is_at_full_resolution(
    architecture: Architecture, shape: tuple[int, ...]
) -> None:
    outputs = built(architecture)(drawn(*shape), architecture.levels)
    assert [tuple(output.shape) for output in outputs] == [(1, 3, *shape[2:])] * len(outputs)


def test_kernels_strides_and_numbers_of_convolutions_are_the_plans() -> None:
    architecture = thick()
    network = built(architecture)
    for level, kernel in enumerate(architecture.kernel_sizes):
        assert len(network.encoder[level]) == architecture.encoder_blocks[level]
        assert {block.conv.kernel_size for block in network.encoder[level]} == {kernel}
        assert network.heads[level].kernel_size == kernel
    for level, kernel in enumerate(architecture.kernel_sizes[:-1]):
        assert len(network.fuse[level]) == architecture.decoder_blocks[level]
        blocks = [*network.fuse[level], *(branch[-1] for branch in network.branches[level])]
        assert {block.conv.kernel_size for block in blocks} == {kernel}
    assert [pool.kernel_size for pool in network.pool] == list(architecture.strides[1:])


@torch.no_grad()
def test_a_chosen_way_up_takes_the_place_of_interpolation() -> None:
    network = built(thick(upsampling="transposed"))
    *steps, _ = network.branches[0][3]
    assert [isinstance(step, nn.ConvTranspose3d) for step in steps] == [True] * 3
    assert [part.stride for part in network.branches[0][3][:-1]] == [
        (2, 2, 2),
        (2, 1, 2),
        (1, 2, 2),
    ]


def test_it_has_batch_norm_and_trains_on_a_single_patch_in_bf16() -> None:
    network = built(thick(dropout=0.5)).train()
    network = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)
    assert sum(isinstance(part, nn.BatchNorm3d) for part in network.modules()) == 7 + 12 + 4
    # No map is 2 voxels deep: there PyTorch 2.13 spoils such gradients of kernels on a CPU.
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(drawn(1, 2, 12, 8, 16), 4)
    torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in network.parameters())


def test_instance_norm_and_dropout_are_there_when_asked_for() -> None:
    network, image = built(thick(norm="instance", dropout=0.5)), drawn(1, 2, 8, 8, 16)
    assert not any(isinstance(part, nn.BatchNorm3d) for part in network.modules())
    assert sum(isinstance(part, nn.Dropout3d) for part in network.modules()) == 7 + 12 + 4
    assert torch.equal(network(image)[0], network(image)[0])
    network.train()
    assert not torch.equal(network(image)[0], network(image)[0])


@pytest.mark.parametrize(
    ("architecture", "patch"),
    [
        (cubic(3), (16, 32, 48)),
        (cubic(3), (32, 16, 16)),
        (cubic(2), (1, 64, 32)),
        (cubic(2), (1, 32, 80)),
        (thick(norm="instance", dropout=0.1), (4, 24, 16)),
        (thick(upsampling="transposed"), (8, 12, 16)),
        (thick(upsampling="interpolated"), (8, 12, 16)),
        (thick(upsampling="shuffled"), (8, 12, 16)),
        (cubic(3, (4,)), (4, 5, 6)),
    ],
)
def test_what_training_keeps_is_counted(architecture: Architecture, patch: Any) -> None:
    assert abs(error_of_count(architecture, patch, 2, 3)) < 0.02
