"""Residual networks against timm's, and inflated against themselves.

The golden numbers are timm 1.0.31's: `timm.create_model(NAME, features_only=True, in_chans=2)` with
the weights of `fill`, on the image of `drawn(1, 2, 64, 96)`, in evaluation.
"""

import math

import pytest
import torch
from image_networks import (
    CUBIC,
    KEPT_PLANES,
    THICK,
    described,
    difference_from_flat,
    difference_from_timm,
    fill,
    first,
    shapes,
)
from known_networks import drawn
from torch import nn

from nnseg.model.counts.resnet import RESNET_RECORDS
from nnseg.networks.backbones import BACKBONES
from nnseg.networks.inflation import flat_levels
from nnseg.networks.resnet import Bottleneck, resnet18d, resnet50d, seresnext50_32x4d

NAMES = list(RESNET_RECORDS)
PARAMETERS = {
    "resnet18d": 11195456,
    "resnet34d": 21303616,
    "resnet50d": 23526976,
    "seresnext50_32x4d": 25507760,
}
GOLDEN = {
    "resnet18d": [
        [0.193159, 0.345793, 0.0984222],
        [0.772841, 0.773463, 0.374033],
        [0.658327, 0.772689, 0.336247],
        [0.678159, 0.839242, 0.324317],
        [0.60715, 0.79218, 0.314906],
    ],
    "resnet34d": [
        [0.193159, 0.345793, 0.0984222],
        [0.925737, 0.843105, 0.471101],
        [1.10807, 1.29692, 0.551026],
        [2.18604, 2.44294, 1.11443],
        [1.96116, 2.29708, 0.997426],
    ],
    "resnet50d": [
        [0.193159, 0.345793, 0.0984222],
        [0.6797, 0.771163, 0.356827],
        [1.08013, 1.15685, 0.52773],
        [1.90641, 2.02522, 0.946427],
        [1.88081, 2.16668, 0.942471],
    ],
    "seresnext50_32x4d": [
        [0.414687, 0.669008, 0.21043],
        [0.949757, 1.24009, 0.49014],
        [0.939538, 1.14276, 0.494846],
        [0.85353, 0.984783, 0.42601],
        [0.591343, 0.809768, 0.294221],
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_maps_and_weights_are_those_of_timm(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        network = BACKBONES[name](flat_levels(6), 2)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]
    fill(network)
    found = described(network, drawn(1, 2, 64, 96))
    for maps, expected in zip(found, GOLDEN[name], strict=True):
        assert maps == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_map_equals_the_one_that_timm_gives(name: str, training: bool) -> None:
    timm = pytest.importorskip("timm")
    shape = (2, 2, 64, 96)
    assert difference_from_timm(BACKBONES[name], timm, name, shape, training=training) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_every_name_and_shape_is_that_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        ours = BACKBONES[name](flat_levels(6), 5)
        theirs = timm.create_model(name, in_chans=5)
    classifier = {each for each in shapes(theirs) if each.startswith(ours.classifier)}
    assert classifier == {"fc.weight", "fc.bias"}
    kept = {each: shape for each, shape in shapes(theirs).items() if each not in classifier}
    assert list(shapes(ours).items()) == list(kept.items())


@pytest.mark.parametrize("name", NAMES)
def test_features_of_the_record_are_the_channels_of_the_maps(name: str) -> None:
    with torch.device("meta"):
        maps = BACKBONES[name](flat_levels(6), 1)(torch.zeros(1, 1, 64, 96))
    assert tuple(x.shape[1] for x in maps) == RESNET_RECORDS[name].features
    assert [x.shape[2:] for x in maps] == [(64 // 2**k, 96 // 2**k) for k in range(1, 6)]


@pytest.mark.parametrize("levels", [CUBIC, THICK, KEPT_PLANES], ids=["cubic", "thick", "kept"])
def test_inflated_it_equals_itself_where_an_image_is_constant_along_z(levels: object) -> None:
    assert difference_from_flat(resnet18d, first(levels, 5)) < 1e-9  # type: ignore[arg-type]


@pytest.mark.parametrize("builder", [resnet50d, seresnext50_32x4d])
def test_inflated_bottlenecks_equal_themselves_in_training_too(builder: object) -> None:
    levels = first(THICK, 4)
    assert difference_from_flat(builder, levels) < 1e-9
    assert difference_from_flat(builder, levels, training=True) < 1e-9


def test_fewer_levels_make_the_first_stages_alone() -> None:
    with torch.device("meta"):
        whole = shapes(resnet18d(flat_levels(6), 3))
        part = shapes(resnet18d(flat_levels(4), 3))
    stages = ("layer3.", "layer4.")
    assert part == {name: s for name, s in whole.items() if not name.startswith(stages)}


def test_weights_begin_he_normal_and_blocks_hand_their_input_on() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = resnet50d(flat_levels(4), 1)
    for module in network.modules():
        if isinstance(module, Bottleneck):
            assert not module.last_norm.weight.any()  # type: ignore[operator]
    weight = network.get_submodule("layer2.0.conv2").weight
    assert isinstance(weight, nn.Parameter)
    assert float(weight.detach().std()) == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)
