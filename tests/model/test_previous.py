"""The stage before: channels of its labels, the draws' rates and ranges, each change alone."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, binary_erosion

from nnseg.model.previous import OPERATORS, Spoiling, draw_spoiling, spoil, to_channels

SHAPE = (9, 13, 11)
CHANNELS = 3
COUNT = 8000


def many_draws() -> list[Spoiling]:
    rng = np.random.default_rng(3)
    return [draw_spoiling(CHANNELS, rng) for _ in range(COUNT)]


DRAWS = many_draws()


def assert_rate(fired: list[bool], probability: float) -> None:
    deviation = math.sqrt(probability * (1 - probability) / len(fired))
    assert abs(np.mean(fired) - probability) < 3.5 * deviation


def blobs() -> torch.Tensor:
    z, y, x = np.indices(SHAPE) // 3
    return torch.from_numpy((z * 5 + y * 3 + x) % (CHANNELS + 1)).to(torch.int16)


def test_labels_become_channels_and_the_background_none() -> None:
    positions = torch.tensor([[[[0, 1, 3], [2, 1, 0]]]], dtype=torch.int16)
    found = to_channels(positions, 3)
    assert found.dtype == torch.float32
    assert found[0, :, 0].tolist() == [
        [[0, 1, 0], [0, 1, 0]],
        [[0, 0, 0], [1, 0, 0]],
        [[0, 0, 1], [0, 0, 0]],
    ]


def test_operations_and_removals_fire_at_their_rates_and_for_half_of_the_labels() -> None:
    every = 1 - 0.5**CHANNELS  # at least one label, once it fired
    assert_rate([bool(d.operations) for d in DRAWS], 0.4 * every)
    assert_rate([bool(d.removals) for d in DRAWS], 0.2 * every)
    assert_rate([bool(d.operations and d.removals) for d in DRAWS], 0.08 * every**2)
    for channel in range(CHANNELS):
        assert_rate([channel in [c for c, *_ in d.operations] for d in DRAWS], 0.2)
        assert_rate([channel in [c for c, _ in d.removals] for d in DRAWS], 0.1)


def test_operators_and_radii_fill_their_ranges_and_labels_come_in_any_order() -> None:
    operations = [each for d in DRAWS for each in d.operations]
    for name in ("dilate", "erode", "close", "open"):
        assert_rate([used == name for _, used, _ in operations], 0.25)
    radii = [radius for *_, radius in operations]
    assert 1 <= min(radii) < 1.05
    assert 7.95 < max(radii) <= 8
    pairs = [d.operations for d in DRAWS if len(d.operations) == 2]
    assert_rate([first[0] < second[0] for first, second in pairs], 0.5)
    chosen = [value for d in DRAWS for _, value in d.removals]
    assert 0 <= min(chosen) < 0.01 < 0.99 < max(chosen) < 1


@pytest.mark.parametrize("radius", [1.0, 1.5, 2.3, 4.0])
def test_operators_are_those_of_a_ball_and_nothing_comes_from_beyond_the_patch(
    radius: float,
) -> None:
    reach = math.ceil(radius)
    z, y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1, -reach : reach + 1]
    ball = z**2 + y**2 + x**2 <= radius**2
    channels = to_channels(blobs()[None], CHANNELS)[0]
    label = channels[0].numpy() > 0
    dilated = binary_dilation(label, ball)
    eroded = binary_erosion(label, ball, border_value=1)
    wanted = {
        "dilate": dilated,
        "erode": eroded,
        "close": binary_erosion(dilated, ball, border_value=1),
        "open": binary_dilation(eroded, ball),
    }
    for name, result in wanted.items():
        found = channels[:1].clone()
        spoil(found, Spoiling(operations=((0, name, radius),)))
        assert np.array_equal(found[0].numpy() > 0, result)
    assert set(wanted) == set(OPERATORS)


def test_a_label_that_grows_takes_from_the_others() -> None:
    channels = to_channels(blobs()[None], CHANNELS)[0]
    before = channels.clone()
    spoil(channels, Spoiling(operations=((1, "dilate", 1.0),)))
    grown = (channels[1] > 0) & (before[1] == 0)
    assert grown.sum() > 20
    assert not channels[[0, 2]][:, grown].any()
    assert torch.equal(channels[[0, 2]][:, ~grown], before[[0, 2]][:, ~grown])


@pytest.mark.parametrize("name", sorted(OPERATORS))
@pytest.mark.parametrize("full", [False, True])
def test_a_label_that_is_nowhere_or_everywhere_stays(name: str, full: bool) -> None:
    channels = torch.full((1, *SHAPE), float(full))
    spoil(channels, Spoiling(operations=((0, name, 3.0),), removals=((0, 0.5),)))
    assert torch.equal(channels, torch.full((1, *SHAPE), float(full)))


def test_one_small_component_goes_and_any_may_be_it() -> None:
    label = torch.zeros((1, *SHAPE))
    for z in (0, 3, 6):
        label[0, z, 2:4, 5] = 1
    for chosen, z in ((0.0, 0), (0.5, 3), (0.99, 6)):
        found = label.clone()
        spoil(found, Spoiling(removals=((0, chosen),)))
        assert not found[0, z].any()
        assert found.sum() == 4


def test_a_component_of_15_percent_of_the_patch_never_goes() -> None:
    for voxels, gone in ((14, True), (15, False)):
        label = torch.zeros((1, 4, 5, 5))
        label.view(-1)[:voxels] = 1
        spoil(label, Spoiling(removals=((0, 0.5),)))
        assert (label.sum() == 0) == gone


def test_a_draw_in_which_nothing_fired_changes_nothing() -> None:
    channels = to_channels(blobs()[None], CHANNELS)[0]
    before = channels.clone()
    spoil(channels, Spoiling())
    assert torch.equal(channels, before)
