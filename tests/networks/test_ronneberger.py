"""The U-Nets with max pooling against their papers, and their class against MONAI's BasicUNet.

The golden numbers are of MONAI 1.6.1's BasicUNet: `monai_unet` below in training mode, with the
weights of `weigh`, on the image of `drawn`.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import known_networks
import pytest
import torch
from kept import error_of_count
from known_networks import drawn, seeded, weighted, with_options
from torch import Tensor, nn

from nnseg.model.architecture import Architecture
from nnseg.model.blocks import InstanceNorm
from nnseg.model.counts.classic import UNET, UNET3D
from nnseg.networks.ronneberger import PooledUNet, make_unet, make_unet3d

FLAT = Architecture(
    network="unet",
    dimensions=2,
    features=(4, 8, 16, 32, 64),
    kernel_sizes=((1, 3, 3),) * 5,
    strides=((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2), (1, 2, 2)),
    encoder_blocks=(2,) * 5,
    decoder_blocks=(2,) * 4,
)
DEEP = Architecture(
    network="unet3d",
    dimensions=3,
    features=(4, 8, 16, 32),
    kernel_sizes=((1, 3, 3), *((3, 3, 3),) * 3),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 1)),
    encoder_blocks=(2,) * 4,
    decoder_blocks=(2,) * 3,
)
CUBIC = dataclasses.replace(
    FLAT,
    dimensions=3,
    kernel_sizes=((3, 3, 3),) * 5,
    strides=((1, 1, 1), *((2, 2, 2),) * 4),
)
UPSAMPLINGS: tuple[Any, ...] = (None, "transposed", "interpolated", "shuffled")
BUILD = {"unet": make_unet, "unet3d": make_unet3d}
IMAGES = {"unet": (2, 2, 1, 48, 32), "unet3d": (2, 2, 4, 24, 16)}


def built(architecture: Architecture, **options: Any) -> Any:
    return seeded(BUILD[architecture.network], with_options(architecture, **options), 2, 3)


def parameters(network: nn.Module, *left_out: str) -> int:
    named = network.named_parameters()
    return sum(p.numel() for name, p in named if not any(part in name for part in left_out))


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("architecture", [FLAT, DEEP], ids=lambda each: each.network)
def test_logits_have_the_shape_of_the_image_and_every_parameter_learns(
    architecture: Architecture, upsampling: Any
) -> None:
    network = built(architecture, upsampling=upsampling)
    batch, _, *shape = IMAGES[architecture.network]
    outputs = network(drawn(*IMAGES[architecture.network]))
    assert [tuple(logits.shape) for logits in outputs] == [(batch, 3, *shape)]
    outputs[0].square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


# By hand, n the channels of a level: 9 products a convolution, 4 a transposed one, and biases.
def test_the_first_unet_has_31_million_parameters() -> None:
    whole = dataclasses.replace(FLAT, features=UNET.features(5, 2))
    assert whole.features == (64, 128, 256, 512, 1024)
    with torch.device("meta"):
        network = make_unet(whole, 1, 2)
    encoder = decoder = 0
    before = 1
    for n in (64, 128, 256, 512, 1024):
        encoder += 9 * (before * n + n * n) + 2 * n
        before = n
    for n in (512, 256, 128, 64):
        decoder += 4 * 2 * n * n + n + 9 * (2 * n * n + n * n) + 2 * n
    assert parameters(network) == encoder + decoder + 64 * 2 + 2 == 31_030_658


def test_the_3d_unet_has_the_19069955_parameters_of_its_paper() -> None:
    whole = dataclasses.replace(
        DEEP,
        features=UNET3D.features(4, 3),
        kernel_sizes=((3, 3, 3),) * 4,
        strides=((1, 1, 1), *((2, 2, 2),) * 3),
    )
    with torch.device("meta"):
        network = make_unet3d(whole, 3, 3)
    up_biases = sum(up.bias.numel() for up in network.up)
    assert parameters(network, "norm") - up_biases == 19_069_955


def test_the_3d_unet_doubles_its_channels_before_it_pools_and_never_halves_them_upwards() -> None:
    network = built(DEEP)
    widths = [[block.conv.out_channels for block in level] for level in network.encoder]
    assert widths == [[2, 4], [4, 8], [8, 16], [16, 32]]
    assert [(up.in_channels, up.out_channels) for up in network.up] == [(32, 32), (16, 16), (8, 8)]
    assert [level[0].conv.in_channels for level in network.decoder] == [48, 24, 12]


def test_only_the_3d_unet_has_norms_of_itself_and_both_take_one_that_is_chosen() -> None:
    def norms(network: nn.Module, kind: type) -> int:
        return sum(isinstance(module, kind) for module in network.modules())

    assert norms(built(FLAT), nn.BatchNorm2d) == norms(built(FLAT), InstanceNorm) == 0
    assert norms(built(FLAT, norm="batch"), nn.BatchNorm2d) == 18
    assert norms(built(DEEP), nn.BatchNorm3d) == 14
    assert norms(built(DEEP, norm="instance"), InstanceNorm) == 14


@pytest.mark.parametrize("architecture", [FLAT, DEEP], ids=lambda each: each.network)
def test_a_chosen_dropout_is_at_the_end_of_the_contracting_path(
    architecture: Architecture,
) -> None:
    network = built(architecture, dropout=0.5)
    assert isinstance(built(architecture).dropout, nn.Identity)
    assert network.dropout.p == 0.5
    seen: list[tuple[int, ...]] = []
    network.dropout.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
    network(drawn(*IMAGES[architecture.network]))
    assert seen == [(64, 3, 2) if architecture.network == "unet" else (32, 1, 3, 4)]


@pytest.mark.parametrize("architecture", [FLAT, DEEP], ids=lambda each: each.network)
@torch.no_grad()
def test_each_axis_is_pooled_by_the_plans_stride(architecture: Architecture) -> None:
    network, image = built(architecture), drawn(*IMAGES[architecture.network])
    shapes: list[tuple[int, ...]] = []
    for level in network.encoder:
        level.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[2:])))
    network(image)
    flat = [(48, 32), (24, 16), (12, 8), (6, 4), (3, 2)]
    deep = [(4, 24, 16), (4, 12, 8), (2, 6, 4), (1, 3, 4)]
    assert shapes == (flat if architecture.network == "unet" else deep)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("norm", [None, "instance"])
@pytest.mark.parametrize(
    ("architecture", "patches"),
    [(FLAT, [(1, 64, 48), (1, 160, 96)]), (DEEP, [(8, 32, 48), (16, 64, 48)])],
)
def test_the_count_of_what_is_kept_is_what_is_kept(
    upsampling: Any, norm: Any, architecture: Architecture, patches: list[Any]
) -> None:
    chosen = with_options(architecture, upsampling=upsampling, norm=norm, dropout=0.2)
    for patch in patches:
        assert abs(error_of_count(chosen, patch, 2, 3, device="meta")) < 0.05


def weigh(name: str, shape: Sequence[int]) -> Tensor:
    """Weights of our parameter of this name; a transposed convolution has its inputs first."""
    transposed = "up." in name and len(shape) > 1
    inputs = math.prod(shape) // shape[1] if transposed else None
    return known_networks.weigh(name, shape, inputs)


def weigh_monais(name: str, shape: Sequence[int]) -> Tensor:
    return weigh(our_name(name), shape)


def our_name(name: str) -> str:
    """Give our name of a parameter of MONAI's network."""
    name = re.sub(r"^(?:conv|down)_(\d)\.(?:convs\.)?conv_(\d)", r"encoder.\1.\2", name)
    name = re.sub(
        r"^upcat_(\d)\.convs\.conv_(\d)",
        lambda found: f"decoder.{4 - int(found[1])}.{found[2]}",
        name,
    )
    name = re.sub(r"^upcat_(\d)\.upsample\.deconv", lambda found: f"up.{4 - int(found[1])}", name)
    name = re.sub(r"^final_conv", "heads.0", name)
    return re.sub(r"adn\.N", "norm", name)


def monai_unet(architecture: Architecture) -> nn.Module:
    """MONAI's network of the record's channels, cubic kernels and strides of 2."""
    nets = pytest.importorskip("monai.networks.nets.basic_unet")
    features = (*architecture.features, architecture.features[0])
    network: nn.Module = nets.BasicUNet(
        spatial_dims=architecture.dimensions,
        in_channels=2,
        out_channels=3,
        features=features,
        act="relu",
        norm="batch",
    )
    return network


def our_unet(architecture: Architecture) -> nn.Module:
    """The same network of our class: what comes up to level 0 keeps its channels there."""
    features = architecture.features
    up_widths = (features[1], *features[1:-1])
    return PooledUNet(architecture, 2, 3, first_widths=features, up_widths=up_widths, norm="batch")


def probe(logits: Tensor) -> list[float]:
    """Some logits, and their mean square."""
    values = logits.flatten()[:: logits.numel() // 4][:4]
    return [*values.tolist(), float(logits.square().mean())]


CASES = pytest.mark.parametrize(
    ("architecture", "shape", "golden"),
    [
        (FLAT, (48, 32), [-0.1396142, -0.0196077, -0.0054129, 0.1114737, 0.2860115]),
        (CUBIC, (16, 32, 48), [-0.2095591, 1.4698088, -0.2411620, 1.6077926, 0.2546785]),
    ],
    ids=["2d", "3d"],
)


@CASES
@torch.no_grad()
def test_the_class_gives_the_logits_of_monais_basic_unet(
    architecture: Architecture, shape: tuple[int, ...], golden: list[float]
) -> None:
    plane = (1, *shape)[-3:]
    (ours,) = weighted(our_unet(architecture), weigh)(drawn(2, 2, *plane))
    assert probe(ours) == pytest.approx(golden, rel=1e-4, abs=1e-5)


@CASES
@torch.no_grad()
def test_monais_own_network_gives_the_golden_numbers_and_the_logits_of_ours(
    architecture: Architecture, shape: tuple[int, ...], golden: list[float]
) -> None:
    peer, plane = weighted(monai_unet(architecture), weigh_monais), (1, *shape)[-3:]
    image = drawn(2, 2, *plane)
    theirs = peer(image.reshape(2, 2, *shape)).reshape(2, 3, *plane)
    assert probe(theirs) == pytest.approx(golden, rel=1e-4, abs=1e-5)
    (ours,) = weighted(our_unet(architecture), weigh)(image)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
