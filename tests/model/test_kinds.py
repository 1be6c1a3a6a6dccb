"""What is known of networks before they are built, and by what memory they are planned."""

import dataclasses
from typing import Any

import pytest
from kept import error_of_count

from nnseg.axes import Shape
from nnseg.errors import PlanError
from nnseg.model.architecture import Architecture, NetworkOptions, count_elements
from nnseg.model.kind import doubled, halving, single
from nnseg.model.kinds import KEPT_PER_ELEMENT, KINDS, planned_elements

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
    kept = KINDS["plain"].kept(architecture, patch, 1, 2)
    assert kept / count_elements(architecture, patch, 2) == pytest.approx(
        KEPT_PER_ELEMENT, rel=0.02
    )
    assert abs(error_of_count(architecture, patch, 1, 2, device="meta")) < 0.005


@pytest.mark.parametrize("network", ["plain", "resenc"])
def test_networks_of_nnunet_are_planned_by_its_estimate(network: str) -> None:
    architecture = dataclasses.replace(DEEP, network=network)
    estimate = count_elements(architecture, PATCH, HEADS)
    assert planned_elements(architecture, PATCH, CHANNELS, HEADS) == estimate


def test_other_networks_are_planned_by_half_of_what_they_keep() -> None:
    architecture = dataclasses.replace(DEEP, network="fcn")
    kept = KINDS["fcn"].kept(architecture, PATCH, CHANNELS, HEADS)
    assert planned_elements(architecture, PATCH, CHANNELS, HEADS) == kept // 2


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
