"""EfficientNetV2-S against timm's, and inflated against itself.

The golden numbers are timm 1.0.31's: `timm.create_model("tf_efficientnetv2_s", features_only=True,
in_chans=2)` with the weights of `fill`, on the image of `drawn(1, 2, 64, 96)`, in evaluation.
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

from nnseg.model.counts.efficientnet import EFFICIENTNETV2_S, FEATURES
from nnseg.networks.efficientnet import EfficientNetV2S
from nnseg.networks.inflation import Levels, flat_levels

PARAMETERS = 19847032
GOLDEN = [
    [0.527695, 1.006, 0.315681],
    [0.1257, 1.39694, 0.069682],
    [-0.225085, 1.90626, -0.113834],
    [-0.0712647, 0.489547, -0.0506963],
    [0.00348765, 0.583932, 0.00476482],
]


def test_maps_and_weights_are_those_of_timm() -> None:
    with torch.random.fork_rng(devices=[]):
        network = EfficientNetV2S(flat_levels(6), 2)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS
    fill(network)
    found = described(network, drawn(1, 2, 64, 96))
    for maps, expected in zip(found, GOLDEN, strict=True):
        assert maps == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_every_map_equals_the_one_that_timm_gives(training: bool) -> None:
    timm = pytest.importorskip("timm")
    name, shape = "tf_efficientnetv2_s", (2, 2, 64, 96)
    assert difference_from_timm(EfficientNetV2S, timm, name, shape, training=training) < 1e-5


def test_every_name_and_shape_is_that_of_timm() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        ours = EfficientNetV2S(flat_levels(6), 5)
        theirs = timm.create_model("tf_efficientnetv2_s", in_chans=5)
    named = shapes(theirs)
    kept = {name: shape for name, shape in named.items() if not name.startswith(ours.classifier)}
    assert list(shapes(ours).items()) == list(kept.items())


def test_features_of_the_record_are_the_channels_of_the_maps() -> None:
    with torch.device("meta"):
        maps = EfficientNetV2S(flat_levels(6), 1)(torch.zeros(1, 1, 64, 96))
    assert tuple(x.shape[1] for x in maps) == FEATURES == EFFICIENTNETV2_S.features
    assert [x.shape[2:] for x in maps] == [(64 // 2**k, 96 // 2**k) for k in range(1, 6)]


@pytest.mark.parametrize("levels", [CUBIC, THICK, KEPT_PLANES], ids=["cubic", "thick", "kept"])
def test_inflated_it_equals_itself_where_an_image_is_constant_along_z(levels: Levels) -> None:
    assert difference_from_flat(EfficientNetV2S, first(levels, 4)) < 1e-9


def test_inflated_separable_blocks_equal_themselves_in_training_too() -> None:
    assert difference_from_flat(EfficientNetV2S, first(THICK, 5), training=True) < 1e-9


def test_fewer_levels_make_the_first_stages_alone() -> None:
    with torch.device("meta"):
        whole = shapes(EfficientNetV2S(flat_levels(6), 3))
        part = shapes(EfficientNetV2S(flat_levels(5), 3))
    assert part == {name: s for name, s in whole.items() if not name.startswith("blocks.5.")}


def test_weights_begin_he_normal_by_the_outputs_of_their_group() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = EfficientNetV2S(flat_levels(5), 1)
    weight = network.get_submodule("blocks.3.1.conv_dw").weight
    assert isinstance(weight, nn.Parameter)
    assert float(weight.detach().std()) == pytest.approx(math.sqrt(2 / 9), rel=0.05)
