"""What a training step really keeps of a sample, to hold the counts of `nnseg.model.counts` to."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nnseg.axes import Shape
from nnseg.labels import Labels
from nnseg.losses.build import make_loss
from nnseg.losses.supervision import deep_supervision_loss
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


def measured_with_loss(
    architecture: Architecture, patch: Shape, channels: int, heads: int, *, device: str = "cpu"
) -> int:
    """Count what autograd saves of a pass and of the loss of its outputs, as `measured_kept`."""
    with torch.device(device), torch.random.fork_rng(devices=[]):
        network = build_network(architecture, channels, heads).train()
        image, target = torch.zeros(1, channels, *patch), torch.zeros(1, *patch, dtype=torch.long)
    names = ("background", *(f"label {number}" for number in range(1, heads)))
    labels = Labels(labels={name: number for number, name in enumerate(names)})
    weights, loss = KINDS[architecture.network].weights(architecture), make_loss("dice_ce")

    def step() -> Tensor:
        outputs = network(image, len(weights))
        return deep_supervision_loss(loss, outputs, target, labels, True, weights)

    return _saved_by(step, network)


def saved(network: nn.Module, image: Tensor, outputs: int) -> int:
    """Count what autograd saves of a pass: distinct storages but the weights', in 4 bytes."""

    def forward() -> list[Tensor]:
        logits: list[Tensor] = network(image, outputs)
        assert len(logits) == outputs
        return logits

    return _saved_by(forward, network)


def _saved_by(work: Callable[[], Any], network: nn.Module) -> int:
    own = {storage(tensor) for tensor in (*network.parameters(), *network.buffers())}
    found: dict[Any, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if storage(tensor) not in own:
            found[storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor  # the graph keeps it, so that no other gets its place

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    del result  # its graph was there until now, so that no storage took another's place
    return sum(found.values()) // BYTES


def error_of_count(
    architecture: Architecture, patch: Shape, channels: int, heads: int, *, device: str = "cpu"
) -> float:
    """Give how far the count is from what is measured, as a share of it; below 0 it is too low."""
    counted = KINDS[architecture.network].kept(architecture, patch, channels)
    measured = measured_kept(architecture, patch, channels, heads, device=device)
    return counted / measured - 1


def storage(tensor: Tensor) -> int:
    """What tensors that share their memory have in common; meta tensors have no address."""
    return int(tensor.untyped_storage()._cdata)
