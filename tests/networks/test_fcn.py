import dataclasses
from typing import Any

import pytest
import torch
from kept import error_of_count
from known_networks import drawn, seeded, with_options
from torch import nn
from torch.nn import functional

from nnseg.model.architecture import Architecture
from nnseg.model.blocks import InstanceNorm
from nnseg.model.counts.classic import FCN as KIND
from nnseg.networks.fcn import FCN

FLAT = Architecture(
    network="fcn",
    dimensions=2,
    features=(4, 5, 6),
    kernel_sizes=((1, 3, 3),) * 3,
    strides=((1, 1, 1), (1, 2, 2), (1, 2, 1)),
    encoder_blocks=(2, 2, 2),
    decoder_blocks=(1, 1),
)
DEEP = Architecture(
    network="fcn",
    dimensions=3,
    features=(4, 5, 6),
    kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 1)),
    encoder_blocks=(2, 2, 2),
    decoder_blocks=(1, 1),
)
UPSAMPLINGS: tuple[Any, ...] = (None, "transposed", "interpolated", "shuffled")


def built(architecture: Architecture, **options: Any) -> FCN:
    return seeded(FCN, with_options(architecture, **options), 2, 3)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@torch.no_grad()
def test_logits_have_the_shape_of_the_image(upsampling: Any) -> None:
    flat, deep = (built(each, upsampling=upsampling) for each in (FLAT, DEEP))
    assert [tuple(logits.shape) for logits in flat(drawn(2, 2, 1, 8, 6))] == [(2, 3, 1, 8, 6)]
    assert [tuple(logits.shape) for logits in deep(drawn(1, 2, 4, 8, 6))] == [(1, 3, 4, 8, 6)]


@torch.no_grad()
def test_it_is_double_convolutions_two_poolings_and_one_interpolation() -> None:
    network, image = built(FLAT), drawn(1, 2, 1, 8, 6)
    weights = [p for name, p in network.named_parameters() if name.endswith("conv.weight")]
    x = image[:, :, 0]
    for level, pooling in enumerate((None, (2, 2), (2, 1))):
        x = x if pooling is None else functional.max_pool2d(x, pooling)
        for weight in weights[2 * level : 2 * level + 2]:
            x = functional.instance_norm(functional.conv2d(x, weight, padding=1)).relu()
    x = functional.conv2d(x, network.heads[0].weight)
    expected = functional.interpolate(x, size=(8, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(network(image)[0][:, :, 0], expected)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_every_parameter_learns(upsampling: Any) -> None:
    network = built(DEEP, upsampling=upsampling, norm="batch", dropout=0.2).train()
    network(drawn(2, 2, 4, 8, 6))[0][:, 0].square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_norm_and_dropout_are_as_chosen_and_dropout_only_at_the_deepest_level() -> None:
    plain, chosen = built(DEEP), built(DEEP, norm="batch", dropout=0.25)
    assert sum(isinstance(m, InstanceNorm) for m in plain.modules()) == 6
    assert not any(isinstance(m, nn.Dropout3d) for m in plain.modules())
    assert sum(isinstance(m, nn.BatchNorm3d) for m in chosen.modules()) == 6
    dropouts = [name for name, m in chosen.named_modules() if isinstance(m, nn.Dropout3d)]
    assert dropouts == ["encoder.7.dropout", "encoder.8.dropout"]  # 0, 3 and 6 are the poolings


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize(
    ("architecture", "patches"),
    [(FLAT, [(1, 64, 48), (1, 160, 96)]), (DEEP, [(8, 32, 48), (16, 64, 48)])],
)
def test_the_count_of_what_is_kept_is_what_is_kept(
    upsampling: Any, architecture: Architecture, patches: list[Any]
) -> None:
    chosen = with_options(architecture, upsampling=upsampling, dropout=0.2)
    for patch in patches:
        assert abs(error_of_count(chosen, patch, 2, 3, device="meta")) < 0.05


# By hand: 64, 128, 256 channels in 2D: 9 (1 64 + 64 64 + 64 128 + 128 128 + 128 256 + 256 256),
# a bias and a norm's two numbers for each of 896 channels, and 256 2 + 2 of the head.
def test_it_has_as_many_parameters_as_counted_by_hand() -> None:
    whole = dataclasses.replace(FLAT, features=KIND.features(3, 2))
    with torch.device("meta"):
        network = FCN(whole, 1, 2)
    assert sum(p.numel() for p in network.parameters()) == 1_143_360 + 3 * 896 + 514
