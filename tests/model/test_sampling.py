from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from nnseg.axes import Shape
from nnseg.model.sampling import PatchDraw, draw_patch, inner_start, is_forced, sample_rng

SHAPE = (9, 20, 30)
PATCH, LOADED = (4, 8, 12), (7, 11, 12)

Locations = dict[str, NDArray[np.int64]]


def flat(*voxels: tuple[int, int, int], shape: Shape = SHAPE) -> NDArray[np.int64]:
    return np.array([np.ravel_multi_index(voxel, shape) for voxel in voxels], np.int64)


def drawn(
    batch: int,
    *,
    forced: bool,
    shapes: tuple[Shape, ...] = (SHAPE,),
    locations: tuple[Locations, ...] = ({},),
    loaded: Shape = LOADED,
) -> PatchDraw:
    return draw_patch(
        sample_rng(0, "0", 3, batch, 1),
        shapes,
        locations,
        forced=forced,
        patch_size=PATCH,
        loaded=loaded,
        annotated="annotated",
    )


def numbers(*key: int | str) -> list[float]:
    seed, fold, epoch, batch, sample = key
    rng = sample_rng(int(seed), str(fold), int(epoch), int(batch), int(sample))
    return rng.random(3).tolist()


def test_the_generator_of_a_sample_follows_from_its_key_alone() -> None:
    assert numbers(0, "0", 5, 6, 7) == numbers(0, "0", 5, 6, 7)


@pytest.mark.parametrize(
    "other",
    [
        (1, "0", 5, 6, 7),
        (0, "1", 5, 6, 7),
        (0, "all", 5, 6, 7),
        (0, "0", 4, 6, 7),
        (0, "0", 5, 7, 7),
        (0, "0", 5, 6, 6),
        (0, "0", 5, 7, 6),
        (0, "0", -1, 6, 7),
    ],
)
def test_every_part_of_the_key_changes_the_generator(other: tuple[int | str, ...]) -> None:
    assert numbers(*other) != numbers(0, "0", 5, 6, 7)


def test_the_generator_gives_the_numbers_that_it_always_gave() -> None:
    values = sample_rng(0, "0", 0, 0, 0).integers(1000, size=4).tolist()
    assert values == [156, 33, 28, 629]


def test_samples_drawn_by_several_workers_in_any_order_are_those_of_one() -> None:
    voxels = {"a": flat((1, 2, 3), (8, 19, 29)), "b": flat((5, 5, 5))}

    def draw(batch: int) -> PatchDraw:
        return drawn(batch, forced=batch % 2 == 0, locations=(voxels,))

    with ThreadPoolExecutor(4) as pool:
        backwards = list(pool.map(draw, reversed(range(40))))
    assert backwards[::-1] == [draw(batch) for batch in range(40)]


# From nnU-Net v2's rule, not (j < round(batch size * (1 - 0.33))).
@pytest.mark.parametrize(("batch_size", "first"), [(2, 1), (3, 2), (4, 3), (5, 3), (9, 6), (12, 8)])
def test_the_last_third_of_a_batch_is_forced(batch_size: int, first: int) -> None:
    for number in (0, 1, 2, 3):
        forced = [is_forced(sample, batch_size, number) for sample in range(batch_size)]
        assert forced == [sample >= first for sample in range(batch_size)]


def test_every_third_batch_of_a_single_sample_is_forced() -> None:
    assert [number for number in range(12) if is_forced(0, 1, number)] == [2, 5, 8, 11]


# What is loaded around a patch of (4, 8, 12) may reach over each border by half of what it is
# larger, rounded up below: (7 - 4, 11 - 8, 0) / 2.
def test_a_random_patch_begins_anywhere_within_the_bounds_and_nowhere_else() -> None:
    starts = np.array([drawn(batch, forced=False).start for batch in range(1500)])
    assert starts.min(axis=0).tolist() == [-2, -2, 0]
    assert starts.max(axis=0).tolist() == [9 + 2 - 7, 20 + 2 - 11, 30 - 12]
    assert [len(np.unique(axis)) for axis in starts.T] == [7, 14, 19]


def test_a_case_smaller_than_the_patch_lies_whole_within_what_is_loaded() -> None:
    small = (3, 5, 30)
    starts = {drawn(batch, forced=False, shapes=(small,)).start[:2] for batch in range(200)}
    # needs 4 and 6 voxels more: all of them around it
    assert starts == {(-2, -3)}


def test_every_case_is_drawn_about_equally_often() -> None:
    shapes = (SHAPE, (10, 21, 31), (11, 22, 32))
    cases = [
        drawn(batch, forced=False, shapes=shapes, locations=({}, {}, {})).case
        for batch in range(600)
    ]
    assert min(np.bincount(cases, minlength=3)) > 160


def test_a_forced_patch_has_a_voxel_of_a_label_in_its_centre() -> None:
    voxels = {"a": flat((4, 9, 8), (4, 9, 20), (5, 15, 9)), "b": flat((6, 10, 11))}
    allowed = {(4, 9, 8), (4, 9, 20), (5, 15, 9), (6, 10, 11)}
    found = set()
    for batch in range(100):
        start = drawn(batch, forced=True, locations=(voxels,)).start
        found.add(tuple(s + n // 2 for s, n in zip(start, LOADED, strict=True)))
    assert found == allowed


def test_each_label_of_a_case_has_the_same_chance_however_small() -> None:
    large = flat(*((4, 9, x) for x in range(10, 20)))
    voxels = {"large": large, "small": flat((5, 12, 12))}
    starts = [drawn(b, forced=True, locations=(voxels,)).start for b in range(400)]
    small = sum(start == (5 - 3, 12 - 5, 12 - 6) for start in starts)
    assert 160 < small < 240


@pytest.mark.parametrize(
    ("voxel", "start"),
    [((0, 1, 2), (-2, -2, 0)), ((8, 19, 29), (8 - 3, 19 - 5, 29 - 6))],
)
def test_a_forced_patch_is_held_back_at_the_lower_border_only(
    voxel: tuple[int, int, int], start: Shape
) -> None:
    assert drawn(0, forced=True, locations=({"a": flat(voxel)},)).start == start


def test_a_forced_patch_of_a_case_without_labels_lies_anywhere() -> None:
    starts = {drawn(batch, forced=True).start for batch in range(50)}
    assert len(starts) > 40


def test_with_an_ignore_label_the_other_samples_centre_on_an_annotated_voxel() -> None:
    voxels = {"a": flat((4, 9, 8)), "annotated": flat((5, 12, 12), (6, 13, 14))}
    starts = {drawn(batch, forced=False, locations=(voxels,)).start for batch in range(50)}
    assert starts == {(2, 7, 6), (3, 8, 8)}


def test_annotated_voxels_are_no_label_to_force() -> None:
    voxels = {"a": flat((4, 9, 8)), "annotated": flat((5, 12, 12))}
    starts = {drawn(batch, forced=True, locations=(voxels,)).start for batch in range(50)}
    assert starts == {(4 - 3, 9 - 5, 8 - 6)}


def test_a_case_with_nothing_but_annotated_background_is_forced_there() -> None:
    voxels = {"annotated": flat((5, 12, 12))}
    assert drawn(0, forced=True, locations=(voxels,)).start == (5 - 3, 12 - 5, 12 - 6)


def test_the_patch_in_a_loaded_box_is_the_one_around_the_same_centre() -> None:
    start = inner_start((2, 7, 6), LOADED, PATCH)
    assert start == (2 + 1, 7 + 1, 6)


def test_a_forced_voxel_stays_in_the_patch_within_what_is_loaded() -> None:
    voxel = (4, 9, 8)
    place = drawn(0, forced=True, locations=({"a": flat(voxel)},)).start
    inner = inner_start(place, LOADED, PATCH)
    assert all(s <= v < s + n for s, v, n in zip(inner, voxel, PATCH, strict=True))
