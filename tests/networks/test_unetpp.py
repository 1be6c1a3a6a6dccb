"""UNet++ against MONAI's, against the count of its authors' code, and against what the plan asks.

The golden numbers are MONAI 1.6.1's: `monai_unetpp` below with the weights of `weigh`, on the image
of `image_of`.
"""

import copy
import re
from typing import Any

import known_networks
import pytest
import torch
from kept import error_of_count
from known_networks import drawn, seeded, weigh, weighted
from torch import Tensor, nn

from nnseg.model.architecture import Architecture, NetworkOptions
from nnseg.model.counts.nested import UNETPP
from nnseg.networks.unetpp import UNetPlusPlus

WIDTHS = (4, 4, 8, 16, 32)  # MONAI's can only be drawn so: the first two alike, then doubled


def cubic(
    dimensions: Any = 3, features: tuple[int, ...] = WIDTHS, blocks: int = 2, **options: Any
) -> Architecture:
    """An architecture as the papers have it, but for its widths and number of levels."""
    return known_networks.cubic(
        "unetpp", dimensions, features, (blocks,) * 5, (blocks,) * 4, **options
    )


def thick(**options: Any) -> Architecture:
    """An architecture of a plan whose slices are thick."""
    return Architecture(
        network="unetpp",
        dimensions=3,
        features=(4, 6, 8),
        kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 1)),
        encoder_blocks=(1, 2, 3),
        decoder_blocks=(2, 1),
        options=NetworkOptions(**options),
    )


def built(architecture: Architecture, channels: int = 2, heads: int = 3) -> Any:
    return seeded(UNetPlusPlus, architecture, channels, heads).eval()


def our_name(name: str) -> str:
    """Give our name of a parameter of MONAI's network."""
    name = re.sub(r"^conv_0_0\.conv_", "nodes.0.0.", name)
    name = re.sub(r"^conv_(\d)_0\.convs\.conv_", r"nodes.\1.0.", name)
    name = re.sub(r"^upcat_(\d)_(\d)\.convs\.conv_", r"nodes.\1.\2.", name)
    name = re.sub(
        r"^upcat_(\d)_(\d)\.upsample\.deconv", lambda f: f"up.{f[1]}.{int(f[2]) - 1}", name
    )
    name = re.sub(r"^final_conv_0_(\d)", lambda found: f"heads.{int(found[1]) - 1}", name)
    return name.replace("adn.N", "norm")


def monai_unetpp(dimensions: int, channels: int = 2, heads: int = 3) -> nn.Module:
    """MONAI's network of the same widths, with ReLU and the same weights."""
    nets = pytest.importorskip("monai.networks.nets.basic_unetplusplus")
    network = nets.BasicUNetPlusPlus(
        spatial_dims=dimensions,
        in_channels=channels,
        out_channels=heads,
        features=(*WIDTHS, WIDTHS[0]),
        deep_supervision=True,
        act="relu",
    )
    return weighted(network, lambda name, shape: weigh(our_name(name), shape)).eval()  # type: ignore[no-any-return]


def image_of(dimensions: int) -> Tensor:
    return drawn(1, 2, 16, 32, 48) if dimensions == 3 else drawn(2, 2, 1, 32, 48)


@pytest.mark.parametrize("dimensions", [2, 3])
@torch.no_grad()
def test_all_heads_give_what_those_of_monais_network_give_with_the_same_weights(
    dimensions: int,
) -> None:
    image = image_of(dimensions)
    expected = monai_unetpp(dimensions)(image if dimensions == 3 else image.squeeze(2))
    _, *found = weighted(built(cubic(dimensions)))(image, 5)
    for ours, theirs in zip(found, reversed(expected), strict=True):
        logits = ours if dimensions == 3 else ours.squeeze(2)
        torch.testing.assert_close(logits, theirs, atol=1e-5, rtol=1e-5)


def described(outputs: list[Tensor]) -> list[list[float]]:
    """A mean, a deviation and the last value of each output."""
    return [[float(x.mean()), float(x.std()), float(x.flatten()[-1])] for x in outputs]


MONAIS = {
    2: [
        [-0.00704, 0.72139, 0.29999],
        [0.29111, 0.53567, 0.08053],
        [-0.38167, 0.59766, -0.21359],
        [0.09147, 0.58877, 0.12192],
    ],
    3: [
        [-0.00514, 0.74653, -0.27088],
        [0.29386, 0.57385, 0.22675],
        [-0.3947, 0.60574, -0.14627],
        [0.09104, 0.58043, 0.49335],
    ],
}


@pytest.mark.parametrize("dimensions", [2, 3])
@torch.no_grad()
def test_heads_give_what_monais_network_gave(dimensions: int) -> None:
    outputs = weighted(built(cubic(dimensions)))(image_of(dimensions), 5)
    for found, expected in zip(described(outputs[1:]), MONAIS[dimensions], strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


def test_it_has_the_parameters_that_the_authors_code_prints() -> None:
    widths = UNETPP.features(5, 2)
    assert widths == (32, 64, 128, 256, 512)
    network = built(cubic(2, features=widths), channels=1, heads=1)
    norms = sum(2 * part.weight.numel() for part in network.modules() if is_norm(part))
    heads = 3 * (32 + 1)  # the authors print the model with the last head only, and have no norms
    total = sum(weight.numel() for weight in network.parameters())
    assert total - norms - heads == 9_041_601


def is_norm(module: nn.Module) -> bool:
    return type(module).__name__ in {"InstanceNorm", "BatchNorm2d", "BatchNorm3d"}


@torch.no_grad()
def test_the_first_output_is_the_mean_of_the_heads_whatever_is_asked_for() -> None:
    network, image = built(thick()), drawn(1, 2, 4, 12, 6)
    mean, deepest, shallowest = network(image, 3)
    torch.testing.assert_close(mean, (deepest + shallowest) / 2)
    assert not torch.equal(deepest, shallowest)
    for outputs in (1, 2):
        found = network(image, outputs)
        assert len(found) == outputs
        assert torch.equal(found[0], mean)


@torch.no_grad()
def test_heads_are_ordered_from_the_deepest_unet_to_that_of_two_levels() -> None:
    network, image = built(cubic(3, (4, 4, 8, 16))), drawn(1, 2, 8, 16, 24)
    before = network(image, 4)[1:]
    for deepest, unchanged in ((3, [False, True, True]), (2, [False, False, True])):
        network.nodes[deepest][0][0].conv.weight.mul_(-1)
        after = network(image, 4)[1:]
        same = [torch.equal(a, b) for a, b in zip(after, before, strict=True)]
        assert same == unchanged


def test_training_weighs_the_heads_alike_and_their_mean_not_at_all() -> None:
    assert UNETPP.weights(cubic()) == (0, 0.25, 0.25, 0.25, 0.25)
    assert UNETPP.weights(cubic(features=(4, 4))) == (1,)
    assert UNETPP.weights(cubic(features=(4,))) == (1,)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        (cubic(3), (1, 2, 16, 32, 48)),
        (cubic(2), (2, 2, 1, 32, 48)),
        (thick(), (2, 2, 4, 12, 6)),
        (cubic(3, (4, 4)), (1, 2, 4, 6, 8)),
        (cubic(2, (4,)), (1, 2, 1, 5, 7)),
    ],
)
@torch.inference_mode()
def test_every_output_is_at_full_resolution(
    architecture: Architecture, shape: tuple[int, ...]
) -> None:
    wanted = len(UNETPP.weights(architecture))
    outputs = built(architecture)(drawn(*shape), wanted)
    assert [tuple(output.shape) for output in outputs] == [(shape[0], 3, *shape[2:])] * wanted


def test_kernels_strides_and_numbers_of_convolutions_are_the_plans() -> None:
    network = built(thick())
    kernels, blocks = ((1, 3, 3), (3, 3, 3), (3, 3, 3)), ((1, 2, 2), (2, 1), (3,))
    for level, row in enumerate(network.nodes):
        assert tuple(len(node) for node in row) == blocks[level]
        found = {block.conv.kernel_size for node in row for block in node}
        assert found == {kernels[level]}
    assert [up.stride for rises in network.up for up in rises] == [(1, 2, 2), (1, 2, 2), (2, 2, 1)]
    assert [pool.kernel_size for pool in network.pool[1:]] == [(1, 2, 2), (2, 2, 1)]


@pytest.mark.parametrize("kind", ["interpolated", "shuffled"])
@torch.no_grad()
def test_another_way_up_takes_the_place_of_transposed_convolutions(kind: Any) -> None:
    network = built(thick(upsampling=kind))
    assert not any(isinstance(part, nn.ConvTranspose3d) for part in network.modules())
    assert network(drawn(1, 2, 4, 12, 6))[0].shape == (1, 3, 4, 12, 6)


def test_batch_norm_is_there_when_asked_for_and_trains_on_a_single_patch_in_bf16() -> None:
    network = built(thick(norm="batch", dropout=0.5)).train()
    network = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)
    assert sum(isinstance(part, nn.BatchNorm3d) for part in network.modules()) == 5 + 3 + 3
    # No map is 2 voxels deep: there PyTorch 2.13 spoils such gradients of kernels on a CPU.
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(drawn(1, 2, 6, 12, 6), 3)
    torch.stack([output.float().square().mean() for output in outputs[1:]]).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in network.parameters())


def test_dropout_follows_every_convolution_and_acts_in_training_only() -> None:
    network, image = built(thick(dropout=0.5)), drawn(1, 2, 4, 12, 6)
    assert sum(isinstance(part, nn.Dropout3d) for part in network.modules()) == 5 + 3 + 3
    assert torch.equal(network(image)[0], network(image)[0])
    network.train()
    assert not torch.equal(network(image)[0], network(image)[0])


@pytest.mark.parametrize(
    ("architecture", "patch"),
    [
        (cubic(3), (16, 32, 48)),
        (cubic(3), (32, 16, 16)),
        (cubic(2), (1, 64, 32)),
        (cubic(2, blocks=1), (1, 32, 80)),
        (thick(norm="batch", dropout=0.1), (4, 24, 16)),
        (thick(upsampling="interpolated"), (8, 12, 20)),
        (thick(upsampling="shuffled"), (8, 12, 20)),
        (cubic(3, (4,)), (4, 5, 6)),
    ],
)
def test_what_training_keeps_is_counted(architecture: Architecture, patch: Any) -> None:
    assert abs(error_of_count(architecture, patch, 2, 3)) < 0.02
