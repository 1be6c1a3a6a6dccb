"""Every network of the registry, built as it is planned, and what all of them have in common."""

import copy
import dataclasses
import functools

import pytest
import torch
from kept import error_of_count
from torch import Tensor, nn

from nnseg.errors import PlanError
from nnseg.fit import PLANNERS, Fit, Target, fit_network
from nnseg.model import kernels
from nnseg.model.architecture import NO_OPTIONS, Architecture, NetworkOptions
from nnseg.model.device import Execution
from nnseg.model.kinds import KINDS
from nnseg.networks.build import NETWORKS, build_network
from nnseg.topology import NetworkSpacing

CHANNELS, HEADS = 5, 4
SPACINGS: dict[str, NetworkSpacing] = {
    "2d": (None, 1.5, 1.0),
    "3d": (1.0, 1.2, 0.9),
    "thick slices": (5.0, 1.0, 1.0),
}
EVERY = [
    (name, kind)
    for name in NETWORKS
    for kind, spacing in SPACINGS.items()
    if (2 if spacing[0] is None else 3) in KINDS[name].dimensions
]
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


@functools.cache
def planned(network: str, kind: str, options: NetworkOptions = NO_OPTIONS) -> Fit:
    """What a network becomes for a median image of 40 x 56 x 72 voxels."""
    target = Target(
        planner=PLANNERS["default"],
        memory_gb=2,
        network=network,
        options=options,
        channels=CHANNELS,
        outputs=HEADS,
    )
    return fit_network(SPACINGS[kind], (40.0, 56.0, 72.0), 1e8, target)


@functools.cache
def unweighed(architecture: Architecture) -> nn.Module:
    """A network without memory for its weights: its shapes are computed and nothing else."""
    with torch.device("meta"):
        return build_network(architecture, CHANNELS, HEADS)


def test_every_network_that_can_be_built_can_be_planned() -> None:
    assert set(NETWORKS) == set(KINDS)


@pytest.mark.parametrize(("network", "kind"), EVERY)
def test_a_network_gives_as_many_logits_as_have_weights(network: str, kind: str) -> None:
    fit = planned(network, kind)
    built = unweighed(fit.architecture)
    weights = KINDS[network].weights(fit.architecture)
    assert sum(weights) == pytest.approx(1)
    image = torch.zeros(2, CHANNELS, *fit.patch_size, device="meta")
    (alone,) = built(image)
    all_of_them = built(image, len(weights))
    assert alone.shape == all_of_them[0].shape == (2, HEADS, *fit.patch_size)
    assert len(all_of_them) == len(weights)
    for logits in all_of_them:
        assert logits.shape[:2] == (2, HEADS)
        assert all(
            whole % edge == 0 for whole, edge in zip(fit.patch_size, logits.shape[2:], strict=True)
        )


@pytest.mark.parametrize(("network", "kind"), EVERY)
def test_a_network_is_planned_by_what_it_keeps(network: str, kind: str) -> None:
    fit = planned(network, kind)
    z, y, x = fit.patch_size
    divisor = fit.architecture.divisor
    for patch in (fit.patch_size, (z, 2 * y, x + divisor[2])):
        assert abs(error_of_count(fit.architecture, patch, CHANNELS, HEADS, device="meta")) < 0.03


@pytest.mark.parametrize(("network", "kind"), EVERY)
def test_the_weights_of_a_network_can_start_one_of_other_channels_and_labels(
    network: str, kind: str
) -> None:
    built = unweighed(planned(network, kind).architecture)
    convolutions = [m for m in built.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    assert convolutions[0].in_channels == CHANNELS  # where channels are matched by name
    heads = [name for name, _ in built.named_parameters() if name.startswith("heads.")]
    assert heads  # where labels are


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_has_no_buffers_but_the_statistics_of_batch_norms(network: str) -> None:
    built = unweighed(
        planned(network, "2d" if 2 in KINDS[network].dimensions else "3d").architecture
    )
    assert {name.rpartition(".")[2] for name, _ in built.named_buffers()} <= STATISTICS


@pytest.mark.parametrize("network", [name for name in KINDS if "norm" in KINDS[name].options])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_norm_is_the_one_chosen(network: str, norm: str) -> None:
    kind = "2d" if 2 in KINDS[network].dimensions else "3d"
    built = unweighed(planned(network, kind, NetworkOptions(norm=norm)).architecture)  # type: ignore[arg-type]
    batch_norms = (nn.BatchNorm2d, nn.BatchNorm3d)
    outside = [m for name, m in built.named_modules() if not name.startswith("encoder.encoder")]
    found = any(isinstance(module, batch_norms) for module in outside)
    assert found is (norm == "batch") or network == "encoder_unet"


def test_an_unknown_network_is_refused_with_the_known_ones() -> None:
    architecture = planned("plain", "3d").architecture
    with pytest.raises(PlanError, match=r"'mamba'; known: .*plain"):
        build_network(dataclasses.replace(architecture, network="mamba"), 1, 2)


@pytest.mark.parametrize(
    ("network", "options", "words"),
    [
        ("plain", NetworkOptions(norm="batch"), "no option norm; it takes upsampling"),
        ("unetpp", NetworkOptions(backbone="resnet18d"), "no option backbone; it takes upsampling"),
        ("encoder_unet", NetworkOptions(backbone="resnet19"), "'resnet19'; known: resnet18d"),
    ],
)
def test_options_that_a_network_does_not_take_are_refused(
    network: str, options: NetworkOptions, words: str
) -> None:
    architecture = planned(network, "3d").architecture
    with pytest.raises(PlanError, match=words):
        build_network(dataclasses.replace(architecture, options=options), 1, 2)


@pytest.mark.parametrize(("network", "kind"), [("unet", "3d"), ("unet3d", "2d")])
def test_a_network_is_not_built_in_dimensions_that_it_is_not_defined_in(
    network: str, kind: str
) -> None:
    architecture = dataclasses.replace(planned("plain", kind).architecture, network=network)
    with pytest.raises(PlanError, match=rf"network {network} is \dD only, not {kind[0]}D"):
        build_network(architecture, 1, 2)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_is_a_probability_below_1(dropout: float) -> None:
    with pytest.raises(PlanError, match=r"it must be 0 or more, and less than 1"):
        NetworkOptions(dropout=dropout)


def passed(
    network: nn.Module, architecture: Architecture, image: Tensor, own: bool
) -> list[Tensor]:
    """Logits and the gradient of the image, of a training step in bf16."""
    execution = Execution(device="cpu", precision="bf16", own_kernels=own)
    placed = execution.place(copy.deepcopy(network), architecture.dimensions).train()
    torch.manual_seed(1)  # of dropout
    image = image.clone().requires_grad_()
    with execution.autocast():
        logits = placed(image, len(KINDS[architecture.network].weights(architecture)))
    sum(output.float().square().mean() for output in logits).backward()
    assert image.grad is not None
    return [*(output.detach().float() for output in logits), image.grad]


@pytest.mark.skipif(not kernels.available(), reason="no compiler, or a CPU without AVX512-BF16")
@pytest.mark.parametrize("network", [n for n in NETWORKS if n[-2:] not in {"_b", "_m", "_l"}])
def test_a_network_trains_in_bf16_on_our_kernels_as_on_others(network: str) -> None:
    fit = planned(network, "3d" if 3 in KINDS[network].dimensions else "2d")
    architecture = dataclasses.replace(
        fit.architecture, features=(16,) * fit.architecture.levels
    )  # fmt: skip
    torch.manual_seed(0)
    built = build_network(architecture, CHANNELS, HEADS)
    shape = [2 * edge for edge in architecture.divisor[-architecture.dimensions :]]
    shape = [1] * (3 - architecture.dimensions) + [max(8, edge) for edge in shape]
    image = torch.randn(2, CHANNELS, *shape)
    ours, theirs = (passed(built, architecture, image, own) for own in (True, False))
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine - other).norm() / other.norm()) < 0.1
