import numpy as np
import pytest

from nnseg.image.pairs import count_pairs

SHAPE = (5, 7, 11)  # 385 voxels: one more than whole words of eight bytes


def blocks(seed: int, highest: int) -> np.ndarray:
    """Draw boxes of values: words without a value, of one value, and of several."""
    rng = np.random.default_rng(seed)
    result = np.zeros((9, 20, 33), dtype=np.int64)
    for value in range(1, highest + 1):
        z, y, x = (rng.integers(0, size // 2) for size in result.shape)
        result[z : z + 4, y : y + 9, x : x + 15] = value
    return result


def counted_one_by_one(first: np.ndarray, second: np.ndarray, size: int) -> np.ndarray:
    table = np.zeros((size, size), dtype=np.int64)
    for a, b in zip(first.ravel(), second.ravel(), strict=True):
        table[a, b] += 1
    return table


@pytest.mark.parametrize("slab", [2**20, 1000, 13])
@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int64, np.uint64])
def test_pairs_are_counted_as_one_by_one(
    kind: type, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnseg.image.pairs.SLAB_VOXELS", slab)
    first, second = blocks(1, 4), blocks(2, 4)
    found = count_pairs(first.astype(kind), second.astype(kind), 5)
    np.testing.assert_array_equal(found, counted_one_by_one(first, second, 5))


def test_values_over_255_are_counted_alike() -> None:
    first, second = 100 * blocks(1, 4), 100 * blocks(2, 4)
    found = count_pairs(first, second.astype(np.uint16), 401)
    np.testing.assert_array_equal(found, counted_one_by_one(first, second, 401))


def test_every_voxel_counts_where_no_two_neighbours_are_alike() -> None:
    rng = np.random.default_rng(3)
    first, second = (rng.integers(0, 3, SHAPE).astype(np.uint8) for _ in range(2))
    found = count_pairs(first, second, 3)
    assert found.sum() == 5 * 7 * 11
    np.testing.assert_array_equal(found, counted_one_by_one(first, second, 3))


def test_the_first_array_is_in_the_rows() -> None:
    first, second = np.full(SHAPE, 2, np.uint8), np.full(SHAPE, 1, np.uint8)
    second[0] = 0
    np.testing.assert_array_equal(count_pairs(first, second, 3), [[0] * 3, [0] * 3, [77, 308, 0]])


def test_views_with_any_strides_are_counted() -> None:
    first, second = blocks(1, 4).astype(np.uint8), blocks(2, 4).astype(np.uint8)
    found = count_pairs(first.transpose(2, 0, 1)[::-1], second.transpose(2, 0, 1)[::-1], 5)
    np.testing.assert_array_equal(found, counted_one_by_one(first, second, 5))


def test_empty_arrays_have_no_pair() -> None:
    nothing = np.zeros((0, 4, 5), np.uint8)
    assert count_pairs(nothing, nothing, 2).tolist() == [[0, 0], [0, 0]]
