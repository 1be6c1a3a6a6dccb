"""What is known of networks before they are built, and by what memory they are planned."""

import dataclasses
from typing import Any

import pytest
from kept import error_of_count, measured_with_loss

from nnseg.axes import Shape
from nnseg.errors import PlanError
from nnseg.fit import PLANNERS, Target, build_architecture
from nnseg.model.architecture import Architecture, NetworkOptions, count_elements
from nnseg.model.kind import doubled, halving, single
from nnseg.model.kinds import KEPT_PER_ELEMENT, KINDS, loss_kept, planned_elements
from nnseg.topology import Depth, find_topology

CHANNELS, HEADS = 2, 3
PATCH = (12, 32, 24)
DEEP = Architecture(
    network="plain",
    dimensions=3,
    features=(8, 16, 32),
    kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    encoder_blocks=(2, 2, 2),
    decoder_blocks=(2, 2),
)
# Where nnU-Net's default planner has its 8 GB filled, in 3D and in 2D.
REFERENCES: tuple[tuple[Architecture, Shape], ...] = (
    (
        dataclasses.replace(
            DEEP,
            features=(32, 64, 128, 256, 320, 320),
            kernel_sizes=((3, 3, 3),) * 6,
            strides=((1, 1, 1), *((2, 2, 2),) * 5),
            encoder_blocks=(2,) * 6,
            decoder_blocks=(2,) * 5,
        ),
        (128, 128, 128),
    ),
    (
        dataclasses.replace(
            DEEP,
            dimensions=2,
            features=(32, 64, 128, 256, 512, 512, 512, 512),
            kernel_sizes=((1, 3, 3),) * 8,
            strides=((1, 1, 1), *((1, 2, 2),) * 7),
            encoder_blocks=(2,) * 8,
            decoder_blocks=(2,) * 7,
        ),
        (1, 512, 384),
    ),
)


def levelled(levels: int, **changes: Any) -> Architecture:
    """A plain network of so many levels, or another."""
    return dataclasses.replace(
        DEEP,
        features=(8,) * levels,
        kernel_sizes=((3, 3, 3),) * levels,
        strides=((1, 1, 1), *((2, 2, 2),) * (levels - 1)),
        encoder_blocks=(2,) * levels,
        decoder_blocks=(2,) * (levels - 1),
        **changes,
    )


@pytest.mark.parametrize("network", ["plain", "resenc"])
@pytest.mark.parametrize("upsampling", [None, "interpolated", "shuffled"])
@pytest.mark.parametrize("patch", [PATCH, (6, 64, 40)])
def test_the_count_of_what_is_kept_is_what_autograd_keeps(
    network: str, upsampling: Any, patch: Shape
) -> None:
    architecture = dataclasses.replace(
        DEEP, network=network, options=NetworkOptions(upsampling=upsampling)
    )
    assert abs(error_of_count(architecture, patch, CHANNELS, HEADS)) < 0.005
    flat = dataclasses.replace(
        architecture, dimensions=2, strides=((1, 1, 1), *((1, 2, 2),) * 2),
        kernel_sizes=((1, 3, 3),) * 3,
    )  # fmt: skip
    assert abs(error_of_count(flat, (1, *patch[1:]), CHANNELS, HEADS)) < 0.005


@pytest.mark.parametrize(("architecture", "patch"), REFERENCES)
def test_a_plain_network_keeps_two_numbers_for_each_element_of_the_estimate(
    architecture: Architecture, patch: Shape
) -> None:
    kept = KINDS["plain"].kept(architecture, patch, 1)
    assert kept / count_elements(architecture, patch, 2) == pytest.approx(
        KEPT_PER_ELEMENT, rel=0.02
    )
    assert abs(error_of_count(architecture, patch, 1, 2, device="meta")) < 0.005


@pytest.mark.parametrize("network", ["plain", "resenc"])
def test_networks_of_nnunet_are_planned_by_its_estimate(network: str) -> None:
    architecture = dataclasses.replace(DEEP, network=network)
    estimate = count_elements(architecture, PATCH, HEADS)
    assert planned_elements(architecture, PATCH, CHANNELS, HEADS) == estimate


def test_other_networks_are_planned_by_half_of_what_they_keep_and_by_their_loss() -> None:
    architecture = dataclasses.replace(DEEP, network="fcn")
    kept = KINDS["fcn"].kept(architecture, PATCH, CHANNELS)
    loss = (HEADS + 3) * 12 * 32 * 24
    assert planned_elements(architecture, PATCH, CHANNELS, HEADS) == kept // 2 + loss


@pytest.mark.parametrize("network", KINDS)
def test_the_count_with_the_loss_of_105_heads_is_what_autograd_keeps(network: str) -> None:
    kind, heads = KINDS[network], 105
    dimensions = kind.dimensions[-1]
    depth = Depth(least=kind.levels[0], most=kind.levels[1], halves_plane=kind.halves_plane)
    flat = dimensions == 2
    topology = find_topology(
        (None if flat else 1.0, 1.0, 1.0), (1, 96, 64) if flat else (16, 48, 32), depth
    )
    target = Target(
        planner=PLANNERS["default"],
        memory_gb=8,
        network=network,
        options=NetworkOptions(),
        channels=CHANNELS,
        outputs=heads,
    )
    architecture, patch = build_architecture(topology, dimensions, target), topology.patch_size
    counted = kind.kept(architecture, patch, CHANNELS) + loss_kept(architecture, patch, heads)
    measured = measured_with_loss(architecture, patch, CHANNELS, heads, device="meta")
    assert counted == pytest.approx(measured, rel=0.02)


def test_an_output_that_counts_nothing_has_no_loss_to_keep() -> None:
    nested = levelled(4, network="unetpp")
    assert KINDS["unetpp"].weights(nested)[0] == 0
    assert loss_kept(nested, (16, 24, 40), 3) == 3 * (3 + 3) * 16 * 24 * 40


def test_outputs_of_levels_are_as_coarse_as_these() -> None:
    voxels = 16 * 24 * 40
    assert loss_kept(levelled(4), (16, 24, 40), 3) == (3 + 3) * (voxels + voxels // 8)
    whole = levelled(4, network="unet3plus")
    assert loss_kept(whole, (16, 24, 40), 3) == 4 * (3 + 3) * voxels


@pytest.mark.parametrize(
    ("levels", "wanted"),
    [
        (1, (1.0,)),
        (2, (1.0,)),
        (3, (1.0,)),
        (4, (2 / 3, 1 / 3)),
        (6, (8 / 15, 4 / 15, 2 / 15, 1 / 15)),
    ],
)
def test_each_output_counts_half_of_the_one_before_and_the_last_two_levels_nothing(
    levels: int, wanted: tuple[float, ...]
) -> None:
    assert halving(levelled(levels)) == pytest.approx(wanted)
    assert single(levelled(levels)) == (1.0,)


@pytest.mark.parametrize("network", KINDS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_network_has_channels_at_each_level(network: str, dimensions: Any) -> None:
    kind = KINDS[network]
    for levels in range(kind.levels[0], kind.levels[1] + 1):
        features = kind.features(levels, dimensions)
        assert len(features) == levels
        assert min(features) >= 1


@pytest.mark.parametrize("network", KINDS)
def test_a_network_says_what_it_is_in_a_line_each(network: str) -> None:
    kind = KINDS[network]
    for text in (kind.title, kind.source):
        assert text
        assert "\n" not in text
    assert any(mark in kind.source for mark in ("doi:", "arXiv:"))


def test_doubling_channels_stops_at_the_most() -> None:
    assert doubled(24)(4, 3) == (24, 48, 96, 192)
    assert doubled(24, 100)(4, 2) == (24, 48, 96, 100)


@pytest.mark.parametrize("name", ["timm:hf-hub:a/b", "timm:local-dir:/tmp", "timm:../x", "timm:"])
def test_a_name_of_timms_leads_nowhere_else(name: str) -> None:
    kind = KINDS["encoder_unet"]
    kind.check_options("encoder_unet", NetworkOptions(backbone="timm:resnet18.a1_in1k"))
    with pytest.raises(PlanError, match="no backbone is named"):
        kind.check_options("encoder_unet", NetworkOptions(backbone=name))


def test_a_network_of_timms_has_two_dimensions() -> None:
    kind = KINDS["encoder_unet"]
    assert kind.dimensions_with(NetworkOptions(backbone="resnet18d")) == (2, 3)
    options = NetworkOptions(backbone="timm:regnety_016")
    assert kind.dimensions_with(options) == (2,)
    with pytest.raises(PlanError, match=r"timm:regnety_016\) is 2D only, not 3D"):
        kind.check(levelled(4, network="encoder_unet", options=options))


def test_what_takes_a_backbone_is_named_where_another_network_is_given_one() -> None:
    assert [name for name, kind in KINDS.items() if "backbone" in kind.options] == ["encoder_unet"]
    with pytest.raises(PlanError, match="takes upsampling; give `--network encoder_unet`"):
        KINDS["plain"].check_options("plain", NetworkOptions(backbone="resnet18d"))
