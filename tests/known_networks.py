"""Networks and images that are always the same: their numbers follow from names and seeds."""

import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from nnseg.model.architecture import Architecture, NetworkOptions

Made = TypeVar("Made")
Weigh = Callable[[str, Sequence[int]], Tensor]


def drawn(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(7).normal(size=shape).astype(np.float32))


def seeded(make: Callable[..., Made], *arguments: Any, device: str = "cpu", **named: Any) -> Made:
    """Make a network, or a part of one, with the same first weights each time."""
    with torch.device(device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments, **named)


def weigh(name: str, shape: Sequence[int], inputs: int | None = None) -> Tensor:
    """Weights, or a norm's statistics, of this name: of a size at which outputs are about 1.

    Args:
        inputs: How many numbers an output adds up; None takes all that a weight has of each.
    """
    values = np.random.default_rng(zlib.crc32(name.encode())).normal(size=tuple(shape))
    if len(shape) > 1:
        values /= math.sqrt(inputs or math.prod(shape[1:]))
    else:
        values = 0.1 * values + (not name.endswith(("bias", "mean")))
    return torch.from_numpy(values.astype(np.float32))


def weighted(network: nn.Module, weigh: Weigh = weigh) -> Any:
    """A network whose parameters and statistics are what `weigh` gives for their names."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(weigh(name, tuple(tensor.shape)))
    return network


def with_options(architecture: Architecture, **options: Any) -> Architecture:
    return dataclasses.replace(architecture, options=NetworkOptions(**options))


def cubic(
    network: str,
    dimensions: Any,
    features: tuple[int, ...],
    encoder_blocks: tuple[int, ...],
    decoder_blocks: tuple[int, ...],
    **options: Any,
) -> Architecture:
    """An architecture as papers have them: kernels of 3 and strides of 2 along every axis."""
    levels, z = len(features), dimensions - 2
    return Architecture(
        network=network,
        dimensions=dimensions,
        features=features,
        kernel_sizes=((1 + 2 * z, 3, 3),) * levels,
        strides=((1, 1, 1), *((1 + z, 2, 2),) * (levels - 1)),
        encoder_blocks=encoder_blocks[:levels],
        decoder_blocks=decoder_blocks[: levels - 1],
        options=NetworkOptions(**options),
    )
