import math

import pytest

from nnseg.axes import Shape
from nnseg.topology import Depth, find_topology, first_patch, shrink


def test_the_first_patch_is_a_cube_in_mm_within_the_median_image() -> None:
    wide = (9000.0, 9000.0, 9000.0)
    patch = first_patch((4.0, 1.0, 0.5), wide)
    assert patch == (81, 323, 645)
    assert first_patch((4.0, 1.0, 0.5), (20.5, 9000.0, 300.0)) == (20.5, 323, 300.0)
    assert math.prod(first_patch((None, 1.0, 2.0), wide)) == pytest.approx(2048**2, rel=0.01)


@pytest.mark.parametrize(("edge", "levels"), [(7, 1), (7.5, 1), (8, 2), (14, 2), (14.5, 3)])
def test_feature_maps_are_never_pooled_below_4_voxels(edge: float, levels: int) -> None:
    assert len(find_topology((1.0, 1.0, 1.0), (edge, edge, 5)).strides) == levels


@pytest.mark.parametrize(("edge", "levels"), [(11, 1), (12, 2), (22, 2), (23, 3)])
def test_an_axis_alone_is_pooled_from_12_voxels_on(edge: int, levels: int) -> None:
    assert len(find_topology((1.0, 1.0, 1.0), (5, 6, edge)).strides) == levels


@pytest.mark.parametrize(("thick", "stride"), [(2.0, (1, 2, 2)), (1.99, (2, 2, 2))])
def test_axes_are_pooled_together_if_their_spacings_are_within_a_factor_of_2(
    thick: float, stride: Shape
) -> None:
    topology = find_topology((thick, 1.0, 1.0), (64, 64, 64))
    assert topology.strides[1] == stride
    assert topology.kernel_sizes[0] == (1 if thick == 2 else 3, 3, 3)


def test_an_axis_too_short_to_pool_still_holds_kernels_to_the_finest_spacing() -> None:
    topology = find_topology((0.4, 1.0, 1.0), (4, 32, 32))
    assert topology.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2))
    assert topology.kernel_sizes == ((3, 1, 1), (3, 1, 1), (3, 1, 1), (3, 3, 3))


def test_patches_are_padded_up_to_the_divisor() -> None:
    topology = find_topology((1.0, 1.0, 1.0), (36, 50.5, 35))
    assert topology.divisor == (8, 8, 8)
    assert topology.patch_size == (40, 56, 40)


def test_a_2d_network_leaves_its_slice_axis_alone() -> None:
    topology = find_topology((None, 1.0, 1.0), (1, 50, 35))
    assert topology.patch_size == (1, 56, 40)
    assert topology.strides == ((1, 1, 1), *((1, 2, 2),) * 3)
    assert topology.kernel_sizes == ((1, 3, 3),) * 4


def test_shrinking_passes_over_no_size_that_needs_fewer_levels() -> None:
    spacing, median = (None, 1.0, 1.0), (1.0, 250.0, 240.0)
    first = find_topology(spacing, (1, 256, 256))
    assert first.divisor == (1, 64, 64)
    second = shrink(spacing, median, first)
    assert second is not None
    assert second.patch_size == (1, 256, 224)  # x covers more of its median; 192 has 32


def test_of_two_axes_that_cover_as_much_the_last_shrinks() -> None:
    spacing, median = (1.0, 1.0, 1.0), (64.0, 64.0, 64.0)
    smaller = shrink(spacing, median, find_topology(spacing, (64, 64, 64)))
    assert smaller is not None
    assert smaller.patch_size == (64, 64, 56)


def test_an_axis_of_one_voxel_leaves_shrinking_to_the_next() -> None:
    spacing = (1.0, 1.0, 1.0)
    smaller = shrink(spacing, (1.5, 100.0, 90.0), find_topology(spacing, (1, 32, 16)))
    assert smaller is not None
    assert smaller.patch_size == (1, 28, 16)


def test_a_patch_of_one_voxel_does_not_shrink() -> None:
    spacing = (1.0, 1.0, 1.0)
    assert shrink(spacing, (5.0, 6.0, 7.0), find_topology(spacing, (1, 1, 1))) is None


@pytest.mark.parametrize(
    ("edges", "levels", "patch"),
    [
        ((60, 50, 35), 5, (64, 64, 48)),  # 4 levels by the rule; the fifth leaves x 3 voxels
        ((60, 50, 35), 6, (64, 64, 64)),  # no axis but to 2 voxels
        ((5, 6, 7), 3, (8, 8, 8)),
    ],
)
def test_a_network_that_must_be_deeper_pools_on(edges: Shape, levels: int, patch: Shape) -> None:
    topology = find_topology((1.0, 1.0, 1.0), edges, Depth(least=levels))
    assert len(topology.strides) == len(topology.kernel_sizes) == levels
    assert topology.patch_size == patch
    deepest = [edge // d for edge, d in zip(patch, topology.divisor, strict=True)]
    assert min(deepest) >= 2


def test_a_network_that_may_not_be_deeper_pools_no_further() -> None:
    spacing, patch = (4.0, 1.0, 1.0), (10, 60, 40)
    free = find_topology(spacing, patch)
    shallow = find_topology(spacing, patch, Depth(most=3))
    assert len(free.strides) == 4
    assert shallow.strides == free.strides[:3]
    assert shallow.kernel_sizes == (*free.kernel_sizes[:2], (3, 3, 3))
    assert shallow.patch_size == (10, 60, 40)


def test_pooling_on_halves_the_long_axes_while_they_are_there() -> None:
    topology = find_topology((1.0, 1.0, 1.0), (2, 32, 32), Depth(least=6))
    assert topology.strides == ((1, 1, 1), *((1, 2, 2),) * 4, (2, 1, 1))
    assert topology.patch_size == (4, 32, 32)


@pytest.mark.parametrize("spacing", [(3.0, 1.0, 2.5), (1.0, 2.5, 3.0), (None, 1.0, 3.0)])
def test_a_backbone_halves_the_plane_at_every_level(
    spacing: tuple[float | None, float, float],
) -> None:
    depth = Depth(least=5, most=5, halves_plane=True)
    topology = find_topology(spacing, (40, 90, 70) if spacing[0] else (1, 90, 70), depth)
    assert [stride[1:] for stride in topology.strides] == [(1, 1), *((2, 2),) * 4]
    assert topology.strides[1][0] == (2 if spacing[0] == 1 else 1)


@pytest.mark.parametrize(
    ("spacing", "edges", "patch", "levels"),
    [
        ((1.0, 1.0, 1.0), (160, 16, 12), (160, 16, 12), 3),  # long across the plane
        ((None, 1.0, 1.0), (1, 20, 400), (1, 20, 400), 3),
        ((3.0, 1.0, 1.0), (60, 12, 300), (60, 12, 300), 3),
        ((1.0, 1.0, 1.0), (64, 30, 90), (64, 32, 96), 4),
    ],
)
def test_a_backbone_pools_no_plane_for_the_sake_of_a_long_axis(
    spacing: tuple[float | None, float, float], edges: Shape, patch: Shape, levels: int
) -> None:
    topology = find_topology(spacing, edges, Depth(least=3, most=6, halves_plane=True))
    assert topology.patch_size == patch
    assert len(topology.strides) == levels
    assert [stride[1:] for stride in topology.strides[1:]] == [(2, 2)] * (levels - 1)


def test_a_patch_that_padding_brings_back_leaves_shrinking_to_another_axis() -> None:
    spacing, depth = (1.0, 1.0, 1.0), Depth(least=5, most=5)
    topology = find_topology(spacing, (8, 32, 16), depth)
    assert topology.patch_size == (8, 32, 16)
    smaller = shrink(spacing, (100.0, 100.0, 16.0), topology, depth)
    assert smaller is not None  # x covers most and is as short as it can be
    assert smaller.patch_size == (8, 24, 16)
