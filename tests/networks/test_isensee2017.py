import itertools
from typing import Any

import pytest
import torch
from kept import error_of_count
from known_networks import drawn, seeded, with_options
from torch import Tensor, nn
from torch.nn import functional

from nnseg.model.architecture import Architecture
from nnseg.model.blocks import InstanceNorm
from nnseg.model.counts.classic import ISENSEE2017 as KIND
from nnseg.networks.isensee2017 import Context, Isensee2017

FLAT = Architecture(
    network="isensee2017",
    dimensions=2,
    features=(2, 4, 8, 16, 32),
    kernel_sizes=((1, 3, 3),) * 5,
    strides=((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2), (1, 2, 1)),
    encoder_blocks=(1,) * 5,
    decoder_blocks=(1,) * 4,
)
DEEP = Architecture(
    network="isensee2017",
    dimensions=3,
    features=(2, 4, 8, 16, 32),
    kernel_sizes=((1, 3, 3), *((3, 3, 3),) * 4),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 2), (2, 1, 1)),
    encoder_blocks=(1,) * 5,
    decoder_blocks=(1,) * 4,
)
PAPER = Architecture(
    network="isensee2017",
    dimensions=3,
    features=KIND.features(5, 3),
    kernel_sizes=((3, 3, 3),) * 5,
    strides=((1, 1, 1), *((2, 2, 2),) * 4),
    encoder_blocks=(1,) * 5,
    decoder_blocks=(1,) * 4,
)
UPSAMPLINGS: tuple[Any, ...] = (None, "transposed", "interpolated", "shuffled")


def built(architecture: Architecture, **options: Any) -> Any:
    return seeded(Isensee2017, with_options(architecture, **options), 2, 3)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@torch.no_grad()
def test_there_is_one_output_and_it_has_the_shape_of_the_image(upsampling: Any) -> None:
    flat, deep = (built(each, upsampling=upsampling) for each in (FLAT, DEEP))
    assert [tuple(each.shape) for each in flat(drawn(2, 2, 1, 32, 24))] == [(2, 3, 1, 32, 24)]
    assert [tuple(each.shape) for each in deep(drawn(1, 2, 4, 16, 24))] == [(1, 3, 4, 16, 24)]


def normed(x: Tensor) -> Tensor:
    return functional.leaky_relu(functional.instance_norm(x), 0.01)


@torch.no_grad()
def test_it_is_the_papers_network_written_down_once_more() -> None:
    """Each convolution in the order of the paper's figure, with the network's own weights."""
    network, image = built(FLAT).eval().double(), drawn(1, 2, 1, 32, 24).double()
    weights = {name: value for name, value in network.state_dict().items() if value.ndim == 4}

    def convolve(x: Tensor, name: str, stride: tuple[int, ...] = (1, 1)) -> Tensor:
        weight = weights.pop(f"{name}.weight")
        return functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x, skips = image[:, :, 0], []
    for level in range(5):
        stem = convolve(x, f"encoder.{level}.0", FLAT.strides[level][1:])
        inner = convolve(normed(stem), f"encoder.{level}.1.2")
        x = normed(stem + convolve(normed(inner), f"encoder.{level}.1.6"))
        skips.append(x)
    logits = None
    for number, level in enumerate((3, 2, 1, 0)):
        repeated = functional.interpolate(x, size=skips[level].shape[2:])
        up = normed(convolve(repeated, f"up.{number}.1.conv"))
        joined = torch.cat((skips[level], up), dim=1)
        x = normed(convolve(joined, f"decoder.{number}.0.conv"))
        if level > 0:
            x = normed(convolve(x, f"decoder.{number}.1.conv"))
        if level < 3:
            segmented = convolve(x, f"heads.{number - 1}")
            logits = segmented + (
                0 if logits is None else functional.interpolate(logits, size=x.shape[2:])
            )
    assert not weights
    assert logits is not None
    torch.testing.assert_close(network(image)[0][:, :, 0], logits)


# By hand: the convolutions of the paper, 4 channels in (its four MRI sequences) and 4 labels out.
def test_its_channels_are_those_of_the_papers_figure() -> None:
    with torch.device("meta"):
        network = Isensee2017(PAPER, 4, 4)
    found = [
        (m.in_channels, m.out_channels, *m.kernel_size[:1], *m.stride[:1])
        for m in network.modules()
        if isinstance(m, nn.Conv3d)
    ]
    encoder = []
    for before, width in itertools.pairwise((4, 16, 32, 64, 128, 256)):
        stride = 1 if before == 4 else 2
        encoder += [(before, width, 3, stride), (width, width, 3, 1), (width, width, 3, 1)]
    ups = [(2 * width, width, 3, 1) for width in (128, 64, 32, 16)]
    localisations = []
    for width in (128, 64, 32):
        localisations += [(2 * width, 2 * width, 3, 1), (2 * width, width, 1, 1)]
    heads = [(64, 4, 1, 1), (32, 4, 1, 1), (32, 4, 1, 1)]
    assert found == [*encoder, *ups, *localisations, (32, 32, 3, 1), *heads]


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_every_parameter_learns(upsampling: Any) -> None:
    network = built(DEEP, upsampling=upsampling, norm="batch").train()
    network(drawn(2, 2, 4, 32, 16))[0].square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_context_drops_maps_between_its_convolutions_by_the_papers_share_or_ours() -> None:
    def dropouts(network: nn.Module) -> list[float]:
        return [m.p for m in network.modules() if isinstance(m, nn.Dropout3d)]

    assert dropouts(built(DEEP)) == [0.3] * 5
    assert dropouts(built(DEEP, dropout=0.1)) == [0.1] * 5
    assert dropouts(built(DEEP, dropout=0.0)) == []
    context = Context(2, (3, 3, 3), "instance", 0.3)
    assert isinstance(context[3], nn.Dropout3d)
    norms = [m for m in built(DEEP, norm="batch").modules() if isinstance(m, InstanceNorm)]
    assert norms == []


@torch.no_grad()
def test_a_context_adds_to_its_input() -> None:
    context, x = Context(2, (3, 3, 3), "instance", 0.3).eval(), drawn(1, 2, 3, 4, 5)
    context[6].weight.zero_()
    context[6].bias.fill_(2)
    torch.testing.assert_close(context(x), x + 2)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize(
    ("architecture", "patches"),
    [(FLAT, [(1, 64, 48), (1, 160, 96)]), (DEEP, [(8, 32, 48), (16, 64, 48)])],
)
def test_the_count_of_what_is_kept_is_what_is_kept(
    upsampling: Any, architecture: Architecture, patches: list[Any]
) -> None:
    chosen = with_options(architecture, upsampling=upsampling)
    for patch in patches:
        assert abs(error_of_count(chosen, patch, 2, 3, device="meta")) < 0.05
