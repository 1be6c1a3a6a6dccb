"""Image networks compared: weights that follow from their names, and maps told by few numbers."""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import known_networks
import numpy as np
import torch
from known_networks import drawn, weighted
from torch import Tensor, nn

from nnseg.networks.inflation import Backbone, Levels, flat_levels

# What a plan of thick slices asks for: at first neither kernels nor strides along z.
THICK = Levels(dimensions=3, depths=(1, 1, 3, 3, 3, 3), steps=(1, 1, 1, 2, 1, 2))
CUBIC = Levels(dimensions=3, depths=(3,) * 6, steps=(1, 2, 2, 2, 2, 2))
KEPT_PLANES = Levels(dimensions=3, depths=(3,) * 6, steps=(1,) * 6)


def first(levels: Levels, count: int) -> Levels:
    """The first so many of levels."""
    return Levels(
        dimensions=levels.dimensions, depths=levels.depths[:count], steps=levels.steps[:count]
    )


def weigh(name: str, shape: Sequence[int]) -> Tensor:
    """As others are weighed, but for norms, whose weights and variances differ more."""
    if len(shape) > 1 or name.endswith(("bias", "running_mean")):
        return known_networks.weigh(name, shape)
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    return torch.from_numpy(generator.uniform(0.5, 1.5, size=shape).astype(np.float32))


def fill(network: nn.Module) -> None:
    """Give each parameter and statistic of a 2D network what `weigh` gives."""
    weighted(network, weigh)


def described(network: nn.Module, image: Tensor, *, training: bool = False) -> list[list[float]]:
    """Of each map of a network a mean, a deviation, and a mean in which later values count more."""
    network.train(training)
    with torch.no_grad():
        maps = [x.flatten() for x in network(image)]
    ramps = [torch.linspace(0, 1, x.numel()) for x in maps]
    pairs = zip(maps, ramps, strict=True)
    return [[float(x.mean()), float(x.std()), float((x * ramp).mean())] for x, ramp in pairs]


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Each parameter's and statistic's shape by its name."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Over maps, as a share of the largest value of each."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def difference_from_timm(
    builder: Any, timm: Any, name: str, shape: Sequence[int], *, training: bool
) -> float:
    """Of all maps, and in training of the statistics that the norms have then."""
    with torch.random.fork_rng(devices=[]):
        ours = builder(flat_levels(6), shape[1])
        theirs = timm.create_model(name, features_only=True, in_chans=shape[1])
    fill(theirs)
    ours.load_state_dict(theirs.state_dict())
    image = drawn(*shape)
    ours.train(training)
    theirs.train(training)
    with torch.no_grad():
        found = largest_difference(ours(image), theirs(image))
    assert all(torch.isfinite(tensor).all() for tensor in ours.state_dict().values())
    own, known = running(ours), running(theirs)
    return max(found, largest_difference(list(own.values()), [known[name] for name in own]))


def running(network: nn.Module) -> Mapping[str, Tensor]:
    """The statistics of the norms."""
    state = network.state_dict()
    return {name: tensor for name, tensor in state.items() if "running" in name}


def inflated(builder: Any, flat: Backbone, levels: Levels, channels: int) -> Backbone:
    """A 3D backbone with the weights of a 2D one."""
    with torch.random.fork_rng(devices=[]):
        deep: Backbone = builder(levels, channels)
    deep.to(next(flat.parameters()).dtype)
    state = flat.state_dict()
    deep.load_state_dict({name: deep.adapt(name, state[name]) for name in deep.state_dict()})
    return deep


def difference_from_flat(
    builder: Any, levels: Levels, *, training: bool = False, channels: int = 2
) -> float:
    """How far an inflated backbone is from its 2D one on an image that is constant along z.

    All planes of all maps count. There are as many planes as the strides ask for, and twice. Both
    compute in fp64, so that nothing but rounding is left.
    """
    with torch.random.fork_rng(devices=[]):
        flat = builder(flat_levels(len(levels.steps)), channels)
    fill(flat)
    deep = inflated(builder, flat.double(), levels, channels)
    edge = 2 ** (len(levels.steps) - 1)
    image = drawn(2, channels, 2 * edge, 3 * edge).double()
    planes = 2 * math.prod(levels.steps)
    flat.train(training)
    deep.train(training)
    with torch.no_grad():
        maps = flat(image)
        found = deep(image.unsqueeze(2).repeat(1, 1, planes, 1, 1))
    assert [tuple(x.shape[2:]) for x in found] == [
        (planes // math.prod(levels.steps[: level + 1]), *x.shape[2:])
        for level, x in zip(mapped_levels(maps, image), maps, strict=True)
    ]
    pairs = zip(maps, found, strict=True)
    return largest_difference(found, [x.unsqueeze(2).expand_as(y) for x, y in pairs])


def mapped_levels(maps: Sequence[Tensor], image: Tensor) -> list[int]:
    """The level of each map of a 2D image."""
    return [round(math.log2(image.shape[-1] / x.shape[-1])) for x in maps]
