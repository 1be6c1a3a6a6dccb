import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnseg.doctor.findings import Notes
from nnseg.doctor.suspects import (
    SAMPLED,
    ChannelLook,
    Intensities,
    Look,
    axis_codes,
    compare,
    make_thumbnail,
    measure_intensities,
    outliers,
)
from nnseg.volume import simple_geometry

FOLDER = Path("raw")
SHAPE = (20, 30, 40)
GRID = simple_geometry(SHAPE, (3.0, 2.0, 1.0))

Change = Callable[[Look], Look]


def look(number: int, name: str = "T1") -> Look:
    """A case of a dataset whose images differ a little, and are bright on the left."""
    rng = np.random.default_rng(number)
    image = rng.normal(0, 0.1, (12, 12, 12)).astype(np.float32)
    image[1:4, 2:6, 1:3] += 1
    label = np.zeros((12, 12, 12), np.float32)
    label[1:4, 2:6, 1 : 3 + number % 2] = 1
    file = FOLDER / "imagesTr" / f"{number}_0000.nii"
    intensities = Intensities(minimum=-5.0, median=40.0 + number, high=100.0 + number)
    return Look(
        case_id=str(number),
        image=file,
        label=FOLDER / "labelsTr" / f"{number}.nii",
        geometry=GRID,
        channels=(ChannelLook(file=file, name=name, intensities=intensities),),
        thumbnail=image,
        label_thumbnail=label,
    )


def rules(looks: list[Look]) -> list[tuple[str, str]]:
    notes = Notes(FOLDER)
    compare(notes, looks)
    assert all(finding.severity == "warning" for finding in notes.findings)
    return [(finding.rule, finding.file) for finding in notes.findings]


def found(looks: list[Look]) -> str:
    notes = Notes(FOLDER)
    compare(notes, looks)
    (finding,) = notes.findings
    return finding.found


def with_odd(change: Change, count: int = 12, odd: int = 1, name: str = "T1") -> list[Look]:
    """Cases of which the last `odd` are changed."""
    looks = [look(number, name) for number in range(count)]
    return [*looks[: count - odd], *map(change, looks[count - odd :])]


def intensities(**change: Any) -> Change:
    def apply(case: Look) -> Look:
        (channel,) = case.channels
        new = dataclasses.replace(channel.intensities, **change)
        return dataclasses.replace(case, channels=(dataclasses.replace(channel, intensities=new),))

    return apply


def geometry(**change: Any) -> Change:
    return lambda case: dataclasses.replace(
        case, geometry=dataclasses.replace(case.geometry, **change)
    )


def turned(case: Look, rows: int = 0) -> Look:
    affine = [list(row) for row in case.geometry.affine]
    affine[rows][rows] *= -1
    return geometry(affine=tuple(tuple(row) for row in affine))(case)


def mirrored(axis: int, *, image: bool = True, label: bool = True) -> Change:
    def apply(case: Look) -> Look:
        assert case.thumbnail is not None
        assert case.label_thumbnail is not None
        return dataclasses.replace(
            case,
            thumbnail=np.flip(case.thumbnail, axis) if image else case.thumbnail,
            label_thumbnail=np.flip(case.label_thumbnail, axis) if label else case.label_thumbnail,
        )

    return apply


def test_cases_that_are_alike_are_not_suspected() -> None:
    assert rules([look(number) for number in range(12)]) == []


def test_nothing_is_judged_without_a_case() -> None:
    assert rules([]) == []


ODD: dict[str, tuple[str, Change, str]] = {
    "dark": ("intensity_outlier", intensities(high=6.0), "imagesTr/{}_0000.nii"),
    "bright": ("intensity_outlier", intensities(high=2000.0), "imagesTr/{}_0000.nii"),
    "long": ("size_outlier", geometry(shape=(20, 130, 40)), "imagesTr/{}_0000.nii"),
    "thick": ("size_outlier", geometry(spacing=(13.0, 2.0, 1.0)), "imagesTr/{}_0000.nii"),
    "turned": ("orientation_differs", turned, "imagesTr/{}_0000.nii"),
    "mirrored": ("image_mirrored", mirrored(2), "imagesTr/{}_0000.nii"),
    "mirrored label": ("label_mirrored", mirrored(2, image=False), "labelsTr/{}.nii"),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_case_is_suspected_among_eight_and_not_among_seven(kind: str) -> None:
    rule, change, file = ODD[kind]
    assert rules(with_odd(change, 8)) == [(rule, file.format(7))]
    assert rules(with_odd(change, 7)) == []


@pytest.mark.parametrize("kind", ODD)
def test_a_tenth_of_the_cases_may_be_odd_and_more_are_another_kind_of_data(kind: str) -> None:
    rule, change, file = ODD[kind]
    assert rules(with_odd(change, 20, 2)) == [(rule, file.format(n)) for n in (18, 19)]
    assert rules(with_odd(change, 20, 3)) == []


@pytest.mark.parametrize(
    "change",
    [
        intensities(high=(100.0 + 5) * 4.7 - 5),
        geometry(shape=(20, 120, 40)),
        geometry(spacing=(12.0, 2.0, 1.0)),
        geometry(spacing=(0.75, 2.0, 1.0)),
    ],
    ids=["range", "voxels", "coarse", "fine"],
)
def test_a_factor_within_the_bound_is_no_outlier(change: Change) -> None:
    assert rules(with_odd(change)) == []


def test_an_image_without_a_usual_intensity_says_so_in_figures() -> None:
    text = found(with_odd(intensities(high=2000.0)))
    assert "reach 2005 above their minimum, where 110.5 is usual for T1" in text


def test_a_strange_size_says_on_which_axis() -> None:
    text = found(with_odd(geometry(shape=(20, 130, 40), spacing=(13.0, 2.0, 1.0))))
    assert "130 voxels along y, where 30 voxels are usual" in text
    assert "13 mm along z, where 3 mm are usual" in text


def test_the_same_channel_of_all_cases_is_compared() -> None:
    looks = [look(number) for number in range(8)]
    other = [look(number, "T2") for number in range(8, 16)]
    bright = [intensities(high=5000.0)(case) for case in other]
    assert rules([*looks, *bright]) == []


@pytest.mark.parametrize(("median", "odd"), [(545.0, False), (547.0, True), (-460.0, True)])
def test_the_median_of_a_ct_may_lie_500_hu_off(median: float, odd: bool) -> None:
    looks = with_odd(intensities(median=median), name="CT")  # the middle is 45.5
    assert rules(looks) == ([("intensity_outlier", "imagesTr/11_0000.nii")] if odd else [])
    assert rules(with_odd(intensities(median=median))) == []


def test_an_image_odd_in_both_ways_is_named_once() -> None:
    assert len(rules(with_odd(intensities(median=5000.0, high=9000.0), name="CT"))) == 1


def test_values_that_hardly_vary_need_the_floor_to_be_outliers() -> None:
    values = [1.0] * 10 + [1.5]
    assert outliers(values, floor=0.2, least=0.1) == {}
    assert outliers(values, floor=0.09, least=0.1) == {10: pytest.approx(0.5 / 0.09)}


def test_values_that_vary_much_have_no_outliers() -> None:
    assert outliers([0, 1, 2, 3, 4, 5, 6, 7, 18], floor=0.1, least=1) == {}
    assert list(outliers([0, 1, 2, 3, 4, 5, 6, 7, 30], floor=0.1, least=1)) == [8]


@pytest.mark.parametrize(
    ("rows", "code"), [(0, "LAS"), (1, "RPS"), (2, "RAI")], ids=["x", "y", "z"]
)
def test_axis_codes_name_x_first(rows: int, code: str) -> None:
    assert axis_codes(GRID) == "RAS"
    assert axis_codes(turned(look(0), rows).geometry) == code


def test_an_oblique_image_points_where_its_axes_nearly_point() -> None:
    turn = np.radians(40)
    affine = np.array(GRID.affine)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    oblique = dataclasses.replace(GRID, affine=tuple(map(tuple, affine.tolist())))
    assert axis_codes(oblique) == "RAS"


@pytest.mark.parametrize(
    ("axis", "name"), [(0, "z (head-foot)"), (1, "y (front-back)"), (2, "x (left-right)")]
)
def test_a_mirrored_case_is_named_with_its_axis(axis: int, name: str) -> None:
    text = found(with_odd(mirrored(axis)))
    assert text == f"looks like the other cases only when it is mirrored along {name}"


def test_an_image_mirrored_without_its_label_map_says_so() -> None:
    assert found(with_odd(mirrored(2, label=False))).endswith("and its label map does not")


def test_a_case_that_fits_neither_way_is_not_mirrored() -> None:
    def invert(case: Look) -> Look:
        assert case.thumbnail is not None
        return dataclasses.replace(case, thumbnail=-case.thumbnail)

    assert rules(with_odd(invert)) == []


def two_sided(number: int, right: float) -> Look:
    """A case with a pattern on the left and, `right` times as bright, its mirror image."""
    pattern = np.zeros((12, 12, 12), np.float32)
    pattern[1:4, 2:6, 1:3] = 1
    noise = np.random.default_rng(number).normal(0, 0.01, pattern.shape)
    thumbnail = (pattern + right * np.flip(pattern, 2) + noise).astype(np.float32)
    return dataclasses.replace(look(number), thumbnail=thumbnail, label_thumbnail=None)


def flipped(case: Look) -> Look:
    assert case.thumbnail is not None
    return dataclasses.replace(case, thumbnail=np.flip(case.thumbnail, 2))


@pytest.mark.parametrize(("right", "odd"), [(0.8, False), (0.6, True)])
def test_images_that_are_nearly_symmetric_are_not_judged(right: float, odd: bool) -> None:
    looks = [two_sided(number, right) for number in range(12)]
    found = rules([*looks[:11], flipped(looks[11])])
    assert found == ([("image_mirrored", "imagesTr/11_0000.nii")] if odd else [])


@pytest.mark.parametrize(("right", "odd"), [(1.3, False), (9, True)])
def test_a_case_that_is_itself_nearly_symmetric_is_not_mirrored(right: float, odd: bool) -> None:
    found = rules([*(two_sided(number, 0) for number in range(11)), two_sided(11, right)])
    assert found == ([("image_mirrored", "imagesTr/11_0000.nii")] if odd else [])


def test_among_cases_that_vary_much_none_is_mirrored() -> None:
    looks = [two_sided(number, 0.85 * (number % 2)) for number in range(12)]
    assert rules([*looks[:10], flipped(looks[10]), looks[11]]) == []


def test_cases_without_foreground_do_not_hide_a_mirrored_label_map() -> None:
    empty = np.zeros((12, 12, 12), np.float32)
    looks = with_odd(mirrored(2, image=False), 9)
    more = [dataclasses.replace(look(number), label_thumbnail=empty) for number in (20, 21)]
    assert rules([*looks, *more]) == [("label_mirrored", "labelsTr/8.nii")]


def test_a_case_whose_header_says_that_it_is_turned_is_not_mirrored_as_well() -> None:
    looks = with_odd(lambda case: mirrored(2)(turned(case)))
    assert rules(looks) == [("orientation_differs", "imagesTr/11_0000.nii")]


def test_images_that_lie_both_ways_round_are_not_judged() -> None:
    assert rules(with_odd(mirrored(2), 12, 5)) == []


def test_a_flat_thumbnail_is_left_out() -> None:
    def empty(case: Look) -> Look:
        return dataclasses.replace(case, label_thumbnail=np.zeros((12, 12, 12), np.float32))

    assert rules(with_odd(empty)) == []


# ---------------------------------------------------------------- figures of one image


def test_intensities_are_those_above_the_minimum() -> None:
    array = np.zeros((3, 4, 5), np.int16)
    array[1] = np.arange(10, 30).reshape(4, 5)
    measured = measure_intensities(array, is_ct=False)
    assert (measured.minimum, measured.median) == (0, 19.5)
    assert measured.high == pytest.approx(28.81)


def test_a_large_image_is_sampled_and_a_lone_bright_voxel_still_counts() -> None:
    array = np.zeros((2, 400, 401), np.int16)
    assert array.size > SAMPLED
    array[1, 1, 1] = 7  # between the voxels that are sampled
    measured = measure_intensities(array, is_ct=False)
    assert (measured.minimum, measured.median, measured.high) == (0, 7, 7)


def test_a_thumbnail_keeps_axes_and_means() -> None:
    array = np.zeros((24, 6, 36))
    array[2:4, 1, 3:6] = 5
    small = make_thumbnail(array)
    assert small.shape == (12, 12, 12)
    assert small[1, 2:4, 1].tolist() == [5, 5]  # y had 6 voxels: each is there twice
    assert small.sum() == 10
    assert make_thumbnail(np.ones((25, 13, 31))).tolist() == np.ones((12, 12, 12)).tolist()


def ct(offset: int = 0) -> np.ndarray[Any, Any]:
    """Air, fat and muscle as a scanner shows them."""
    rng = np.random.default_rng(0)
    array = np.concatenate(
        [rng.normal(-1000, 10, 2000), rng.normal(-100, 15, 500), rng.normal(50, 15, 1500)]
    )
    return np.rint(array).astype(np.int32).reshape(10, 20, 20) + offset


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (ct(), None),
        (ct().astype(np.uint16), "read as unsigned"),
        (ct(1024).clip(0), "1024 had been added"),
        (ct().clip(0), "cut off"),
        ((ct().clip(-160, 240) + 160) * 255 // 400, "cut off"),  # a window as a picture
        (ct().clip(0) + 3000, None),  # nobody knows what this is
    ],
    ids=["right", "wrapped", "shifted", "clipped", "window", "other"],
)
def test_a_ct_without_negative_values_is_told_from_a_right_one(
    array: np.ndarray[Any, Any], fault: str | None
) -> None:
    found = measure_intensities(array, is_ct=True).ct_fault
    assert (found is None) == (fault is None)
    assert fault is None or fault in str(found)
    assert measure_intensities(array, is_ct=False).ct_fault is None


def test_each_faulty_ct_is_named_and_all_of_them_at_once() -> None:
    fault = intensities(ct_fault="is shifted")
    few = with_odd(fault, 12, 3, name="CT")
    assert rules(few) == [("ct_unsigned", f"imagesTr/{n}_0000.nii") for n in (9, 10, 11)]
    assert rules(with_odd(fault, 3, 2, name="CT")) == [
        ("ct_unsigned", f"imagesTr/{n}_0000.nii") for n in (1, 2)
    ]
    assert rules(with_odd(fault, 12, 7, name="CT")) == [("ct_unsigned", "imagesTr")]
    assert "7 of 12 CT images" in found(with_odd(fault, 12, 7, name="CT"))
