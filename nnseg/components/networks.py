"""The rules of networks, and of what they are made of: backbones, norms, upsamplings."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nnseg.axes import Shape
from nnseg.components.refusal import refuses
from nnseg.fit import PLANNERS, Target, build_architecture
from nnseg.model.architecture import NO_OPTIONS, Architecture, Dimensions, NetworkOptions
from nnseg.model.kinds import KINDS, planned_elements
from nnseg.networks.build import build_network
from nnseg.topology import Depth, find_topology

CHANNELS, HEADS = 2, 3
PATCHES: dict[Dimensions, Shape] = {2: (1, 40, 32), 3: (12, 28, 20)}
SPACINGS = {2: (None, 1.0, 1.1), 3: (2.0, 1.0, 1.1)}
NARROWER, NARROWEST = 8, 4  # than planned, but not below
IDLE_SHARE = 0.02  # of the weights: nnU-Net's has heads whose outputs count nothing
CLOSE = 1e-3  # of logits: kernels of other batch sizes round another way
OF_NORMS, OF_UPSAMPLINGS, OF_BACKBONES = "unetpp", "plain", "encoder_unet"


def rules_of_backbone(name: str) -> Iterator[tuple[str, bool]]:
    """Try the network that has an encoder of this name."""
    return rules_of_network(OF_BACKBONES, NetworkOptions(backbone=name))


def rules_of_norm(name: str) -> Iterator[tuple[str, bool]]:
    """Try a network with a norm of this name."""
    options = NetworkOptions(norm=name)  # type: ignore[arg-type]  # any that is registered
    return rules_of_network(OF_NORMS, options)


def rules_of_upsampling(name: str) -> Iterator[tuple[str, bool]]:
    """Try a network whose decoder goes up in this way."""
    options = NetworkOptions(upsampling=name)  # type: ignore[arg-type]  # any that is registered
    return rules_of_network(OF_UPSAMPLINGS, options)


def rules_of_network(name: str, options: NetworkOptions = NO_OPTIONS) -> Iterator[tuple[str, bool]]:
    """Try a network in all its dimensions: as deep as a plan makes it, but narrow."""
    for dimensions in KINDS[name].dimensions:
        architecture, patch = _narrow(name, dimensions, options)
        for rule, kept in _rules_of(architecture, patch):
            yield f"in {dimensions}D {rule}", kept


def _narrow(
    name: str, dimensions: Dimensions, options: NetworkOptions
) -> tuple[Architecture, Shape]:
    kind = KINDS[name]
    least, most = kind.levels
    depth = Depth(least=least, most=most, halves_plane=kind.halves_plane)
    topology = find_topology(SPACINGS[dimensions], PATCHES[dimensions], depth)
    target = Target(
        planner=PLANNERS["default"],
        memory_gb=1,
        network=name,
        options=options,
        channels=CHANNELS,
        outputs=HEADS,
    )
    whole = build_architecture(topology, dimensions, target)
    features = tuple(max(NARROWEST, width // NARROWER) for width in whole.features)
    return dataclasses.replace(whole, features=features), topology.patch_size


def _rules_of(architecture: Architecture, patch: Shape) -> Iterator[tuple[str, bool]]:
    kind = KINDS[architecture.network]
    outputs = len(kind.weights(architecture))
    network, again = _built(architecture), _built(architecture)
    generator = torch.Generator().manual_seed(8)
    images = torch.randn(2, CHANNELS, *patch, generator=generator)
    kept = images.clone()
    yield "it must draw the same weights from the same seed", _alike(network, again)
    elements = planned_elements(architecture, patch, CHANNELS, HEADS)
    yield "it must say what training keeps of it", elements > 0
    with torch.inference_mode():
        found, second = network(images, outputs), network(images, outputs)
        yield "it must give as many outputs as are weighted", len(found) == outputs
        yield (
            "it must give logits of each head in the shape of the image",
            found[0].shape == (2, HEADS, *patch),
        )
        yield "its other outputs must have its heads", all(o.shape[:2] == (2, HEADS) for o in found)
        yield "it must give finite logits", all(bool(o.isfinite().all()) for o in found)
        yield "it must leave the image as it is", torch.equal(images, kept)
        yield "it must do the same twice", all(map(torch.equal, found, second))
        (main,) = network(images, 1)
        yield "its main output must not hang on the others", _close(main, found[0])
        yield (
            "a sample must not hang on what is beside it",
            _close(network(images[1:], 1)[0], main[1:]),
        )
        flat = network(torch.full_like(images, 3.0), 1)[0]
        yield "it must give finite logits for a constant image", bool(flat.isfinite().all())
        holed = images.clone()
        holed[0, 0, 0, 1, 2] = torch.nan
        seen = network(holed, 1)[0]
        yield "it must not make logits of NaN", bool(seen[0].isnan().any())
        yield "NaN of a sample must stay in it", _close(seen[1:], main[1:])
        yield (
            "it must refuse another number of channels",
            refuses(network, torch.zeros(1, CHANNELS + 1, *patch), 1),
        )
        again.load_state_dict({name: value + 1 for name, value in again.state_dict().items()})
        again.load_state_dict(network.state_dict())
        yield "its weights must make it what it was", torch.equal(again(images, 1)[0], main)
    yield from _rules_of_learning(architecture, images, outputs)


def _rules_of_learning(
    architecture: Architecture, images: Tensor, outputs: int
) -> Iterator[tuple[str, bool]]:
    network = _built(architecture).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        sum((output * output).mean() for output in network(images, outputs)).backward()
    learning = [p for p in network.parameters() if p.requires_grad]
    idle = sum(p.numel() for p in learning if p.grad is None)
    share = idle / sum(p.numel() for p in learning)
    yield "its weights must learn, but for heads that do not count", share < IDLE_SHARE
    finite = all(bool(p.grad.isfinite().all()) for p in learning if p.grad is not None)
    yield "it must have finite gradients", finite


def _built(architecture: Architecture) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_network(architecture, CHANNELS, HEADS).eval()


def _alike(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def _close(one: Tensor, other: Tensor) -> bool:
    return bool(torch.allclose(one, other, atol=CLOSE * (1 + float(other.abs().max()))))
