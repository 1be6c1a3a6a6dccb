"""Every 3D network on patches of two planes, and of two rows in its deepest map.

Some of PyTorch's kernels for bf16 on a CPU give wrong gradients for such maps, and write into the
memory of others.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnseg.model.architecture import NO_OPTIONS, Architecture, NetworkOptions
from nnseg.model.blocks import CONVOLUTION, TRANSPOSED
from nnseg.model.kinds import KINDS
from nnseg.networks.build import build_network
from nnseg.networks.inflation import InflatedConv

LEVELS = 4
BACKBONES = KINDS["encoder_unet"].backbones
EVERY = [
    *((name, NO_OPTIONS) for name, kind in KINDS.items() if 3 in kind.dimensions),
    *(("encoder_unet", NetworkOptions(backbone=name)) for name in BACKBONES[1:]),
]


def flat(network: str, options: NetworkOptions) -> Architecture:
    """Kernels of 3 each way, and no stride along z."""
    least, most = KINDS[network].levels
    levels = min(max(LEVELS, least), most)
    return Architecture(
        network=network,
        dimensions=3,
        features=(16,) * levels,
        kernel_sizes=((3, 3, 3),) * levels,
        strides=((1, 1, 1), *((1, 2, 2),) * (levels - 1)),
        encoder_blocks=(1,) * levels,
        decoder_blocks=(1,) * (levels - 1),
        options=options,
    )


def gradients(
    network: nn.Module, image: Tensor, passed: Callable[[Tensor], Sequence[Tensor]], *, half: bool
) -> dict[str, Tensor]:
    network.zero_grad()
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16, enabled=half):
        torch.manual_seed(1)  # of dropout
        outputs = passed(image)
    ramps = [torch.linspace(-1, 1, each.numel()).reshape(each.shape) for each in outputs]
    terms = [(x.float() * ramp).mean() for x, ramp in zip(outputs, ramps, strict=True)]
    torch.stack(terms).sum().backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def error(half: Tensor, exact: Tensor) -> float:
    """As a share; there is no telling of what is as good as 0."""
    return float((half - exact).norm() / (exact.norm() + 1e-6))


@pytest.mark.parametrize(
    ("network", "options"), EVERY, ids=[options.backbone or name for name, options in EVERY]
)
def test_gradients_in_bf16_are_those_in_fp32_for_two_planes_and_rows(
    network: str, options: NetworkOptions
) -> None:
    architecture = flat(network, options)
    _, y, x = architecture.divisor
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built: Any = build_network(architecture, 1, 2).train()
        image = torch.randn(2, 1, 2, 2 * y, 3 * x)
    built = copy.deepcopy(built).to(memory_format=torch.channels_last_3d)
    image = image.to(memory_format=torch.channels_last_3d)
    passed = functools.partial(built, outputs=len(KINDS[network].weights(architecture)))
    exact, half = (gradients(built, image, passed, half=half) for half in (False, True))
    assert all(each.isfinite().all() for each in half.values())
    # Roundings turn some ReLUs on or off, which a small map feels; a GELU has no such steps.
    most = 0.06 if network.startswith("mednext") else 0.5
    errors = {n: error(half[n], each) for n, each in exact.items() if each.ndim > 1}
    assert errors
    assert {name: found for name, found in errors.items() if not found < most} == {}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (InflatedConv(32, 32, (3, 7, 7), padding=(0, 3, 3), groups=32), (2, 2, 3)),
        (InflatedConv(32, 32, (1, 7, 7), padding=(0, 3, 3), groups=32), (3, 1, 2)),
        (CONVOLUTION[3](32, 32, (3, 7, 7), padding=(1, 3, 3), groups=32), (2, 2, 3)),
        (CONVOLUTION[3](32, 32, 3, (1, 2, 2), padding=1, groups=32), (2, 6, 4)),
        (CONVOLUTION[3](16, 16, 3, padding=1), (2, 5, 3)),
        (TRANSPOSED[3](32, 32, 3, (1, 2, 2), padding=1, groups=32), (2, 3, 4)),
    ],
    ids=str,
)
def test_a_layer_gives_in_bf16_what_it_gives_in_fp32_and_the_gradient_too(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = torch.randn(2, layer.weight.shape[0], *shape)  # type: ignore[union-attr,index]
    layer = copy.deepcopy(layer).to(memory_format=torch.channels_last_3d)
    image = image.to(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        expected = layer(image)  # nothing is lent here
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(image)
    assert found.shape == expected.shape
    assert error(found.detach().float(), expected) < 0.02

    exact, half = (gradients(layer, image, lambda x: [layer(x)], half=h) for h in (False, True))
    assert error(half["weight"], exact["weight"]) < 0.02
