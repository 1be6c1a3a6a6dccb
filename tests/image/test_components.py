import numpy as np
import pytest
from scipy import ndimage

from nnseg.image import components
from nnseg.image.components import largest_component, number_components


def test_the_component_with_most_voxels_stays_alone() -> None:
    mask = np.zeros((3, 5, 7), dtype=np.bool_)
    mask[0, 0, :3] = mask[2, 4, 2:6] = True
    expected = np.zeros_like(mask)
    expected[2, 4, 2:6] = True
    assert np.array_equal(largest_component(mask), expected)


@pytest.mark.parametrize(
    ("connectivity", "neighbour", "voxels"),
    [
        (26, (1, 1, 1), 2),
        (18, (1, 1, 1), 1),
        (18, (0, 1, 1), 2),
        (6, (0, 1, 1), 1),
        (6, (0, 0, 1), 2),
    ],
)
def test_connectivity_says_which_voxels_touch(
    connectivity: int, neighbour: tuple[int, int, int], voxels: int
) -> None:
    mask = np.zeros((2, 3, 4), dtype=np.bool_)
    mask[0, 0, 0] = mask[neighbour] = True
    assert largest_component(mask, connectivity).sum() == voxels


@pytest.mark.parametrize("order", ["C", "F"])
def test_of_equal_components_the_first_in_scan_order_stays(order: str) -> None:
    mask = np.zeros((3, 4, 5), dtype=np.bool_, order=order)
    mask[2, 0, 0] = mask[0, 3, 4] = mask[1, 1, 2] = True
    assert np.argwhere(largest_component(mask)).tolist() == [[0, 3, 4]]


def test_an_empty_mask_stays_empty() -> None:
    assert not largest_component(np.zeros((2, 3, 4), dtype=np.bool_)).any()


def test_a_full_mask_stays_full() -> None:
    assert largest_component(np.ones((2, 3, 4), dtype=np.bool_)).all()


@pytest.mark.parametrize("shape", [(7, 1, 1), (1, 7, 1), (1, 1, 7)])
def test_a_line_of_voxels_has_components_too(shape: tuple[int, int, int]) -> None:
    mask = np.array([1, 0, 1, 1, 0, 1, 0], dtype=np.bool_).reshape(shape)
    assert largest_component(mask).ravel().tolist() == [False, False, True, True] + [False] * 3


def test_components_are_those_of_scipy() -> None:
    generator = np.random.default_rng(0)
    for density in (0.05, 0.1, 0.2):
        mask = generator.random((11, 12, 13)) < density
        parts, _ = ndimage.label(mask, np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel(), weights=mask.ravel())
        assert np.array_equal(largest_component(mask), (parts == sizes.argmax()) & mask)


def test_components_are_numbered_in_scan_order_and_counted() -> None:
    mask = np.zeros((3, 4, 5), dtype=np.bool_)
    mask[0, 3, 2:] = mask[1, 0, :2] = mask[2, 3, 4] = True
    parts, sizes = number_components(mask)
    assert sizes.tolist() == [0, 3, 2, 1]
    assert parts[0, 3].tolist() == [0, 0, 1, 1, 1]
    assert parts[1, 0].tolist() == [2, 2, 0, 0, 0]
    assert parts[2, 3, 4] == 3
    assert np.array_equal(parts != 0, mask)


def test_an_empty_mask_has_no_component() -> None:
    parts, sizes = number_components(np.zeros((2, 3, 4), dtype=np.bool_))
    assert sizes.tolist() == [0]
    assert not parts.any()


def test_voxels_are_counted_across_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(1).random((7, 8, 9)) < 0.1
    whole = number_components(mask)[1]
    monkeypatch.setattr(components, "SLAB_VOXELS", 5)
    assert number_components(mask)[1].tolist() == whole.tolist()
    assert whole.sum() == mask.sum()
