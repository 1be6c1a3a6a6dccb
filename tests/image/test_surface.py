import itertools
import math

import numpy as np
import pytest

from nnseg.axes import Mask, Shape, Spacing
from nnseg.image.surface import (
    average_distance,
    mean_distances,
    robust_hausdorff,
    surface_dice,
    surface_distances,
)

SHAPE = (7, 9, 11)
CUBIC = (1.0, 1.0, 1.0)
ANISOTROPIC = (2.5, 0.7, 0.8)


def ball(centre: tuple[int, int, int], radius: float, shape: Shape = SHAPE) -> Mask:
    grid = np.indices(shape)
    return sum((x - c) ** 2 for x, c in zip(grid, centre, strict=True)) <= radius**2


def ragged(phase: int) -> Mask:
    z, y, x = np.indices(SHAPE)
    return (3 * z + 5 * y + 7 * x + z * y + phase * x * y) % 11 < 4


def block(box: tuple[slice, slice, slice], shape: Shape = SHAPE) -> Mask:
    mask = np.zeros(shape, dtype=bool)
    mask[box] = True
    return mask


PAIRS = {
    "balls": (ball((3, 4, 5), 3.2), ball((3, 5, 6), 2.4)),
    "touching the border": (ball((0, 0, 0), 4.5), ball((0, 1, 10), 5.5)),
    "ragged": (ragged(1), ragged(2)),
    "slice": (ball((0, 4, 5), 3.2, (1, 9, 11)), ball((0, 5, 6), 2.4, (1, 9, 11))),
    "ragged slice": (ragged(1)[2:3], ragged(2)[2:3]),
}

# pair, spacing, area a, area b, HD95, surface Dice at 1 mm, by the package surface-distance 0.1
REFERENCE = [
    ("balls", CUBIC, 149.84105231935214, 76.08587988004845, 2.0, 0.7687394688208672),
    ("balls", ANISOTROPIC, 228.326480104292, 117.72821274159475, 2.5, 0.7099456239592747),
    (
        "touching the border",
        CUBIC,
        101.43867060935439,
        162.9908910492474,
        6.782329983125268,
        0.16043032189462522,
    ),
    (
        "touching the border",
        ANISOTROPIC,
        151.40484606636386,
        237.07540132698455,
        6.132699242584786,
        0.16632523868363105,
    ),
    ("ragged", CUBIC, 582.0750175738877, 548.1889280446794, 1.0, 0.9903096637606373),
    ("ragged", ANISOTROPIC, 860.4935399783211, 818.4354983160414, 0.7, 0.9845509912387299),
    ("slice", CUBIC, 22.142135623730944, 16.48528137423857, 2.23606797749979, 0.6616116523516817),
    (
        "slice",
        ANISOTROPIC,
        16.63014581273465,
        12.37808748764079,
        1.6124515496597098,
        0.6616452713705839,
    ),
    ("ragged slice", CUBIC, 72.08326112068525, 74.66904755831214, 1.0, 0.9903632619131973),
    ("ragged slice", ANISOTROPIC, 54.5424957632978, 56.37948118202432, 0.7, 0.99041655575795),
]


@pytest.mark.parametrize(("pair", "spacing", "area_a", "area_b", "hd95", "nsd"), REFERENCE)
def test_the_results_are_those_of_the_package_surface_distance(
    pair: str, spacing: Spacing, area_a: float, area_b: float, hd95: float, nsd: float
) -> None:
    distances = surface_distances(*PAIRS[pair], spacing)
    assert distances.areas_a.sum() == pytest.approx(area_a, abs=1e-9)
    assert distances.areas_b.sum() == pytest.approx(area_b, abs=1e-9)
    assert robust_hausdorff(distances) == pytest.approx(hd95, abs=1e-9)
    assert surface_dice(distances, 1.0) == pytest.approx(nsd, abs=1e-9)


# pair, spacing, average distance a to b and b to a, by the package surface-distance 0.1
AVERAGES = [
    ("balls", CUBIC, 0.8573153809910543, 0.41598566178782564),
    ("balls", ANISOTROPIC, 0.7878945094610726, 0.3447244341813888),
    ("touching the border", CUBIC, 3.062672617426282, 4.173802333605833),
    ("touching the border", ANISOTROPIC, 2.635531776274983, 3.6216617038294285),
    ("ragged", CUBIC, 0.1047520327974763, 0.06990833619155695),
    ("ragged", ANISOTROPIC, 0.08670266226260909, 0.05604174895262403),
    ("slice", CUBIC, 1.0490721518115742, 0.6816985906675576),
    ("slice", ANISOTROPIC, 0.7774773227745925, 0.4944036828182157),
    ("ragged slice", CUBIC, 0.173206389113488, 0.18911879560981035),
    ("ragged slice", ANISOTROPIC, 0.12173372612363016, 0.13570833129228202),
]


@pytest.mark.parametrize(("pair", "spacing", "there", "back"), AVERAGES)
def test_the_mean_distances_are_those_of_the_package_surface_distance(
    pair: str, spacing: Spacing, there: float, back: float
) -> None:
    distances = surface_distances(*PAIRS[pair], spacing)
    assert mean_distances(distances) == pytest.approx((there, back), abs=1e-9)
    areas = distances.areas_a.sum(), distances.areas_b.sum()
    joined = (there * areas[0] + back * areas[1]) / sum(areas)
    assert average_distance(distances) == pytest.approx(joined, abs=1e-9)


@pytest.mark.parametrize("pair", PAIRS)
def test_swapping_the_masks_swaps_the_two_sides_and_keeps_the_scores(pair: str) -> None:
    a, b = PAIRS[pair]
    there, back = surface_distances(a, b, ANISOTROPIC), surface_distances(b, a, ANISOTROPIC)
    np.testing.assert_array_equal(there.distances_a_to_b, back.distances_b_to_a)
    np.testing.assert_array_equal(there.areas_b, back.areas_a)
    assert robust_hausdorff(there) == robust_hausdorff(back)
    assert average_distance(there) == pytest.approx(average_distance(back))
    assert surface_dice(there, 1.0) == pytest.approx(surface_dice(back, 1.0))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_turning_the_masks_with_their_spacing_changes_no_score(order: tuple[int, ...]) -> None:
    a, b = PAIRS["ragged"]
    plain = surface_distances(a, b, ANISOTROPIC)
    spacing = (ANISOTROPIC[order[0]], ANISOTROPIC[order[1]], ANISOTROPIC[order[2]])
    turned = surface_distances(a.transpose(order), b.transpose(order), spacing)
    assert turned.areas_a.sum() == pytest.approx(plain.areas_a.sum())
    assert surface_dice(turned, 0.75) == pytest.approx(surface_dice(plain, 0.75))


def test_distances_are_those_of_all_pairs_of_surface_elements() -> None:
    a, b = PAIRS["balls"]

    def elements(mask: Mask) -> np.ndarray:
        padded = np.pad(mask, 1)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 2, 2)).sum(axis=(3, 4, 5))
        return np.argwhere((windows > 0) & (windows < 8)) * ANISOTROPIC

    apart = np.linalg.norm(elements(a)[:, None] - elements(b)[None], axis=2)
    distances = surface_distances(a, b, ANISOTROPIC)
    np.testing.assert_allclose(distances.distances_a_to_b, np.sort(apart.min(axis=1)), atol=1e-12)
    np.testing.assert_allclose(distances.distances_b_to_a, np.sort(apart.min(axis=0)), atol=1e-12)


def test_area_of_a_block_is_that_of_its_faces_less_its_bevelled_edges_and_corners() -> None:
    a = block((slice(1, 4), slice(2, 7), slice(3, 10)))  # 3 x 5 x 7 voxels
    faces = 2 * (2 * 4 + 2 * 6 + 4 * 6)
    edges = 4 * (2 + 4 + 6) * math.sqrt(0.5)
    corners = 8 * math.sqrt(3) / 8
    distances = surface_distances(a, a, CUBIC)
    assert distances.areas_a.sum() == pytest.approx(faces + edges + corners)


def test_the_inside_and_the_outside_of_a_surface_have_one_area() -> None:
    hole = ragged(1)
    hole[[0, -1]], hole[:, [0, -1]], hole[:, :, [0, -1]] = False, False, False
    shell = block((slice(None), slice(None), slice(None)))
    distances = surface_distances(hole, shell & ~hole, ANISOTROPIC)
    outer = surface_distances(shell, shell, ANISOTROPIC).areas_a.sum()
    assert distances.areas_b.sum() == pytest.approx(distances.areas_a.sum() + outer)


def test_length_of_a_contour_does_not_hang_on_the_slice_spacing() -> None:
    a, b = PAIRS["slice"]
    thin, thick = surface_distances(a, b, (0.1, 0.7, 0.8)), surface_distances(a, b, ANISOTROPIC)
    np.testing.assert_array_equal(thin.areas_a, thick.areas_a)
    np.testing.assert_array_equal(thin.distances_b_to_a, thick.distances_b_to_a)


def test_one_flat_slice_of_a_thick_image_keeps_its_upper_and_lower_faces() -> None:
    flat = block((slice(3, 4), slice(2, 6), slice(1, 9)))
    volume = surface_distances(flat, flat, CUBIC)
    contour = surface_distances(flat[3:4], flat[3:4], CUBIC)
    assert volume.areas_a.sum() > 2 * 3 * 7  # two faces
    assert contour.areas_a.sum() == pytest.approx(2 * 3 + 2 * 7 + 4 * math.sqrt(0.5))


def test_equal_masks_have_distance_0_and_surface_dice_1() -> None:
    distances = surface_distances(ragged(1), ragged(1), ANISOTROPIC)
    assert robust_hausdorff(distances, 100) == 0
    assert surface_dice(distances, 0.0) == 1


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_tolerance_of_whole_voxels_includes_surfaces_that_far_apart(steps: int) -> None:
    spacing = (0.7, 1.1, 0.3)
    a = block((slice(0, 2), slice(None), slice(None)))
    b = block((slice(0, 2 + steps), slice(None), slice(None)))
    distances = surface_distances(a, b, spacing)
    assert robust_hausdorff(distances, 100) == steps * spacing[0]
    assert surface_dice(distances, steps * spacing[0]) == 1
    assert surface_dice(distances, steps * spacing[0] - 1e-9) < 1


def test_robust_hausdorff_takes_the_distance_at_the_percentile_of_area() -> None:
    a = block((slice(1, 3), slice(2, 5), slice(1, 9)))
    b = a | block((slice(1, 2), slice(2, 3), slice(10, 11)))  # one stray voxel, 2 voxels away
    distances = surface_distances(a, b, CUBIC)
    assert robust_hausdorff(distances, 50) == 0
    assert robust_hausdorff(distances, 100) == 2
    stray = distances.areas_b[distances.distances_b_to_a > 0].sum() / distances.areas_b.sum()
    just_before = 100 * (1 - stray) - 1e-6
    assert robust_hausdorff(distances, just_before) == 0
    assert robust_hausdorff(distances, just_before + 2e-6) > 0


def test_one_empty_mask_is_infinitely_far_and_has_surface_dice_0() -> None:
    a, empty = ball((3, 4, 5), 2.0), np.zeros(SHAPE, dtype=bool)
    for distances in surface_distances(a, empty, CUBIC), surface_distances(empty, a, CUBIC):
        assert robust_hausdorff(distances) == math.inf
        assert surface_dice(distances, 100.0) == 0
        assert average_distance(distances) == math.inf


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 5, 6)])
def test_two_empty_masks_have_no_value(shape: Shape) -> None:
    empty = np.zeros(shape, dtype=bool)
    distances = surface_distances(empty, empty, CUBIC)
    assert distances.areas_a.size == distances.distances_b_to_a.size == 0
    assert math.isnan(robust_hausdorff(distances))
    assert math.isnan(surface_dice(distances, 1.0))
    assert math.isnan(average_distance(distances))


def test_a_mask_may_be_a_view_with_any_strides() -> None:
    a, b = PAIRS["balls"]
    view = np.ascontiguousarray(a[::-1, :, ::-1])[::-1, :, ::-1]
    plain, viewed = surface_distances(a, b, CUBIC), surface_distances(view, b, CUBIC)
    np.testing.assert_array_equal(viewed.distances_a_to_b, plain.distances_a_to_b)
