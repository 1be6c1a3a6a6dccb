"""Every network learns: it comes to know a bright block from what lies around it."""

import pytest
import torch
from torch.nn import functional

from nnseg.model.architecture import NO_OPTIONS, Architecture, NetworkOptions
from nnseg.model.kinds import KINDS
from nnseg.networks.build import build_network

STEPS = 12
LEVELS = 3
EVERY = [(name, d, NO_OPTIONS) for name, kind in KINDS.items() for d in kind.dimensions]
EVERY += [
    ("encoder_unet", 2, NetworkOptions(backbone=name))
    for name in KINDS["encoder_unet"].backbones[1:]
]


def small(network: str, dimensions: int, options: NetworkOptions) -> Architecture:
    kind = KINDS[network]
    levels, z = max(LEVELS, kind.levels[0]), dimensions - 2
    return Architecture(
        network=network,
        dimensions=dimensions,  # type: ignore[arg-type]
        features=(8,) * levels,
        kernel_sizes=((1 + 2 * z, 3, 3),) * levels,
        strides=((1, 1, 1), *((1 + z, 2, 2),) * (levels - 1)),
        encoder_blocks=(1,) * levels,
        decoder_blocks=(1,) * (levels - 1),
        options=options,
    )


@pytest.mark.parametrize(
    ("network", "dimensions", "options"),
    EVERY,
    ids=[f"{options.backbone or name}-{d}d" for name, d, options in EVERY],
)
def test_the_loss_falls_and_every_parameter_behind_it_moves_by_finite_gradients(
    network: str, dimensions: int, options: NetworkOptions
) -> None:
    architecture = small(network, dimensions, options)
    weights = KINDS[network].weights(architecture)
    _, y, x = architecture.divisor
    shape = (max(4, architecture.divisor[0]) if dimensions == 3 else 1, 4 * y, 3 * x)
    target = torch.zeros(2, *shape)
    target[:, : shape[0] // 2 + 1, y : 2 * y + 1, : 2 * x] = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = build_network(architecture, 1, 1).train()
        image = (target + 0.3 * torch.randn(target.shape))[:, None]
        before = {name: value.detach().clone() for name, value in built.named_parameters()}
        step = torch.optim.Adam(built.parameters(), lr=3e-3)
        losses = []
        for _ in range(STEPS):
            step.zero_grad()
            terms = [
                weight
                * functional.binary_cross_entropy_with_logits(
                    logits[:, 0], functional.adaptive_max_pool3d(target, logits.shape[2:])
                )
                for weight, logits in zip(weights, built(image, len(weights)), strict=True)
            ]
            loss = torch.stack(terms).sum()
            loss.backward()
            step.step()
            losses.append(loss.item())
    reached = {name: value for name, value in built.named_parameters() if value.grad is not None}
    assert all(value.grad.isfinite().all() for value in reached.values())  # type: ignore[union-attr]
    assert [name for name, value in reached.items() if torch.equal(value, before[name])] == []
    # What has a weight of 0 in the loss is not computed.
    assert all(name in reached or name.startswith("heads.") for name in before)
    assert losses[-1] < 0.75 * losses[0]
