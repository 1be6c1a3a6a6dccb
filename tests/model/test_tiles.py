from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnseg.errors import PlanError
from nnseg.model.tiles import tile_boxes, tile_shares, tile_starts


# Given by nnU-Net 2.8.1's compute_steps_for_sliding_window.
@pytest.mark.parametrize(
    ("size", "tile", "step", "starts"),
    [
        (37, 10, 0.5, [0, 4, 9, 14, 18, 22, 27]),
        (64, 64, 0.5, [0]),
        (101, 40, 0.5, [0, 15, 30, 46, 61]),
        (23, 20, 0.3, [0, 3]),
        (50, 24, 0.3, [0, 6, 13, 20, 26]),
        (33, 32, 0.3, [0, 1]),
    ],
)
def test_tiles_begin_where_the_peers_do(
    size: int, tile: int, step: float, starts: list[int]
) -> None:
    assert tile_starts(size, tile, step) == starts


@given(
    tile=st.integers(1, 40), more=st.integers(0, 100), step=st.sampled_from([0.1, 0.3, 0.5, 1.0])
)
@settings(max_examples=50, deadline=None)
def test_tiles_cover_an_axis_from_end_to_end_and_are_never_further_apart_than_the_step(
    tile: int, more: int, step: float
) -> None:
    starts = tile_starts(tile + more, tile, step)
    assert (starts[0], starts[-1] + tile) == (0, tile + more)
    for before, after in pairwise(starts):
        assert after - before < tile * step + 1  # each is rounded by itself
        assert after - before <= tile


def test_a_step_of_a_whole_tile_leaves_no_overlap() -> None:
    assert tile_starts(40, 10, 1.0) == [0, 10, 20, 30]


@pytest.mark.parametrize("step", [0.0, -0.5, 1.01, float("nan")])
def test_a_step_that_leaves_gaps_or_never_ends_is_refused(step: float) -> None:
    with pytest.raises(PlanError, match="tile step"):
        tile_starts(20, 10, step)


def test_boxes_are_every_combination_of_starts_with_z_slowest() -> None:
    boxes = tile_boxes((4, 6, 9), (4, 4, 6), 0.5)
    assert boxes == [
        ((0, 4), (0, 4), (0, 6)),
        ((0, 4), (0, 4), (3, 9)),
        ((0, 4), (2, 6), (0, 6)),
        ((0, 4), (2, 6), (3, 9)),
    ]


# Given along two axes by nnU-Net 2.8.1's compute_gaussian for (3, 6, 5), scaled to 1.
@pytest.mark.parametrize(
    "weight",
    [
        [0.005976022686809301, 0.27803730964660645, 1.0, 0.27803730964660645],
        [0.000335462624207139, 0.028565499931573868, 0.4111122786998749, 1.0],
    ],
)
def test_tiles_count_as_the_peers_do(weight: list[float]) -> None:
    tile = 5 if weight[1] > 0.1 else 6
    first, second = tile_shares(tile + 2, tile, 0.5)[:2]  # they begin at 0 and 1, or at 0 and 2
    apart = tile_starts(tile + 2, tile, 0.5)[1]
    for voxel in range(apart, 4):
        ratio = weight[voxel] / weight[voxel - apart]
        assert first[voxel] / second[voxel - apart] == pytest.approx(ratio, rel=1e-4)


@given(
    tile=st.integers(1, 40), more=st.integers(0, 100), step=st.sampled_from([0.1, 0.3, 0.5, 1.0])
)
@settings(max_examples=50, deadline=None)
def test_what_all_tiles_give_to_a_voxel_adds_up_to_1(tile: int, more: int, step: float) -> None:
    total = np.zeros(tile + more)
    starts = tile_starts(tile + more, tile, step)
    for start, shares in zip(starts, tile_shares(tile + more, tile, step), strict=True):
        assert shares.min() > 0
        total[start : start + tile] += shares
    assert total == pytest.approx(np.ones(tile + more))


def test_one_tile_gives_all() -> None:
    assert tile_shares(7, 7, 0.5).tolist() == [[1.0] * 7]


@pytest.mark.parametrize("tile", [7, 8])
def test_a_tile_counts_most_in_its_centre(tile: int) -> None:
    middle = tile_shares(4 * tile, tile, 0.5)[3]
    assert middle.argmax() in (tile // 2 - 1, tile // 2, tile // 2 + 1)
    assert middle.min() < 0.05
