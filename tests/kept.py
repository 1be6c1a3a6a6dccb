"""What a training step really keeps of a sample, to hold the counts of `nnseg.model.counts` to."""

from typing import Any

import torch
from torch import Tensor, nn

from nnseg.axes import Shape
from nnseg.model.architecture import Architecture
from nnseg.model.kinds import KINDS
from nnseg.networks.build import build_network

BYTES = 4  # of a number of `NetworkKind.kept`


def measured_kept(
    architecture: Architecture, patch: Shape, channels: int, heads: int, *, device: str = "cpu"
) -> int:
    """Build a network, pass one sample through it and count what autograd saves, like `kept`.

    "meta" as the device computes nothing: any patch is measured within a second, but the network
    must not ask for values.
    """
    with torch.device(device), torch.random.fork_rng(devices=[]):
        network = build_network(architecture, channels, heads).train()
    image = torch.zeros(1, channels, *patch, device=device)
    return saved(network, image, len(KINDS[architecture.network].weights(architecture)))


def saved(network: nn.Module, image: Tensor, outputs: int) -> int:
    """Count what autograd saves of a pass: distinct storages but the weights', in 4 bytes."""
    own = {storage(tensor) for tensor in (*network.parameters(), *network.buffers())}
    found: dict[Any, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if storage(tensor) not in own:
            found[storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor  # the graph keeps it, so that no other gets its place

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = network(image, outputs)
    assert len(logits) == outputs
    return sum(found.values()) // BYTES


def error_of_count(
    architecture: Architecture, patch: Shape, channels: int, heads: int, *, device: str = "cpu"
) -> float:
    """Give how far the count is from what is measured, as a share of it; below 0 it is too low."""
    counted = KINDS[architecture.network].kept(architecture, patch, channels, heads)
    measured = measured_kept(architecture, patch, channels, heads, device=device)
    return counted / measured - 1


def storage(tensor: Tensor) -> int:
    """What tensors that share their memory have in common; meta tensors have no address."""
    return int(tensor.untyped_storage()._cdata)
