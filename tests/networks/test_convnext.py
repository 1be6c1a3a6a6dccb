"""ConvNeXt against timm's, and inflated against itself.

The golden numbers are timm 1.0.31's: what `forward_intermediates` of `timm.create_model(
"convnext_nano", in_chans=2)` gives with the weights of `fill` for `drawn(1, 2, 64, 96)`.
"""

import pytest
import torch
from image_networks import (
    CUBIC,
    KEPT_PLANES,
    THICK,
    described,
    difference_from_flat,
    fill,
    first,
    largest_difference,
    shapes,
)
from known_networks import drawn

from nnseg.model.counts.convnext import CONVNEXT_NANO
from nnseg.networks.convnext import FIRST_SCALE, convnext_nano
from nnseg.networks.inflation import Levels, flat_levels

PARAMETERS = 15_593_560 - 80 * 4 * 4 - 2 * 640 - 641 * 1000  # timm's less a channel and the head
GOLDEN = [
    [0.040376, 1.41808, 0.021627],
    [-0.0435479, 1.53648, -0.0011363],
    [0.0754091, 2.35325, 0.0361252],
    [-0.0241077, 1.49474, -0.0203433],
]


def test_maps_and_weights_are_those_of_timm() -> None:
    network = convnext_nano(flat_levels(6), 2)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS
    fill(network)
    found = described(network, drawn(1, 2, 64, 96))
    for maps, expected in zip(found, GOLDEN, strict=True):
        assert maps == pytest.approx(expected, rel=1e-4, abs=1e-5)


@torch.no_grad()
def test_every_map_equals_the_one_that_timm_gives() -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("convnext_nano", in_chans=2).eval()
    fill(theirs)
    ours = convnext_nano(flat_levels(6), 2).eval()
    fill(ours)
    image = drawn(2, 2, 64, 96)
    expected = theirs.forward_intermediates(image, intermediates_only=True)
    assert largest_difference(ours(image), expected) < 1e-5


def test_every_name_and_shape_is_that_of_timm() -> None:
    timm = pytest.importorskip("timm")
    named = shapes(timm.create_model("convnext_nano", in_chans=5))
    ours = convnext_nano(flat_levels(6), 5)
    assert shapes(ours) == {
        name: shape for name, shape in named.items() if not name.startswith(ours.classifier)
    }


@pytest.mark.parametrize("count", [3, 4, 5, 6])
@torch.no_grad()
def test_fewer_levels_make_the_first_stages_alone_and_the_first_level_has_no_map(
    count: int,
) -> None:
    network = convnext_nano(flat_levels(count), 1)
    maps = network(drawn(1, 1, 32, 64))
    assert len(network.stages) == count - 2
    assert (0, *(x.shape[1] for x in maps)) == CONVNEXT_NANO.features[: count - 1]
    sizes = [(32 // 2**level, 64 // 2**level) for level in range(2, count)]
    assert [tuple(x.shape[2:]) for x in maps] == sizes


@pytest.mark.parametrize("levels", [CUBIC, THICK, KEPT_PLANES], ids=["cubic", "thick", "kept"])
def test_inflated_it_equals_itself_where_an_image_is_constant_along_z(levels: Levels) -> None:
    assert difference_from_flat(convnext_nano, first(levels, 4)) < 1e-9


@torch.no_grad()
def test_weights_begin_narrow_biases_at_0_and_blocks_close_to_handing_on_their_input() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = convnext_nano(flat_levels(4), 3)
    weight = network.get_parameter("stages.1.blocks.0.mlp.fc1.weight")
    assert float(weight.std()) == pytest.approx(0.02, rel=0.02)
    assert float(network.get_parameter("stem.0.bias").abs().max()) == 0
    gamma = network.get_parameter("stages.0.blocks.1.gamma")
    assert float(gamma.max()) == pytest.approx(FIRST_SCALE)
