import csv
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnseg import record
from nnseg.errors import DataError
from nnseg.labels import Labels
from nnseg.scores import statistics
from nnseg.scores.statistics import (
    COLUMNS,
    CaseStatistics,
    LabelStatistics,
    as_csv,
    measure,
)
from nnseg.volume.geometry import Geometry, flat_geometry, simple_geometry

SHAPE = (4, 6, 9)
SPACING = (2.5, 0.5, 0.8)  # 1 mm^3 a voxel
ORGANS = Labels(labels={"background": 0, "liver": 1, "spleen": 2})
SPARSE = Labels(labels={"background": 0, "spleen": 300, "liver": 4, "ignore": 301})
TUMOUR = Labels(
    labels={"background": 0, "whole": (1, 2, 3), "core": (2, 3), "active": 3},
    regions_class_order=(1, 2, 3),
)
ALL = [ORGANS, SPARSE, TUMOUR]
NAMES = ["labels", "gaps", "regions"]
PLAIN = simple_geometry(SHAPE, SPACING)
# Columns are the steps of x, y and z: turned, mirrored, and slices piled up aslant.
SHEARED = Geometry(
    shape=SHAPE,
    spacing=SPACING,
    affine=((0.0, 0.5, 0.25, 10.0), (-0.8, 0.0, 0.0, -20.0), (0.0, 0.0, 2.5, 30.0), (0, 0, 0, 1.0)),
)


def boxed(*slices: slice) -> np.ndarray:
    result = np.zeros(SHAPE, dtype=np.uint8)
    result[slices] = 1
    return result


def random_map(labels: Labels, seed: int, density: float = 0.3) -> np.ndarray:
    generator = np.random.default_rng(seed)
    drawn = generator.choice(np.array(labels.values, dtype=np.uint16), SHAPE)
    return np.where(generator.random(SHAPE) < density, drawn, 0).astype(np.uint16)


@pytest.mark.parametrize("labels", ALL, ids=NAMES)
@pytest.mark.parametrize("slab", [1, 2**18])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), density=st.sampled_from([0.02, 0.3, 1.0]))
def test_all_is_as_measured_voxel_by_voxel(
    labels: Labels, slab: int, seed: int, density: float
) -> None:
    segmentation = random_map(labels, seed, density)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "SLAB_VOXELS", slab)
        found = measure(segmentation, labels, SHEARED)
    assert list(found) == list(labels.foreground)
    affine = np.array(SHEARED.affine)
    for name, values in labels.foreground.items():
        points = np.argwhere(np.isin(segmentation, values))
        one = found[name]
        assert one.voxels == len(points)
        assert one.volume_ml == pytest.approx(len(points) / 1000)
        if not len(points):
            assert one.box is one.centroid is one.world_box is one.world_centroid_mm is None
            continue
        box = list(zip(points.min(axis=0), points.max(axis=0) + 1, strict=True))
        assert list(one.box) == box
        assert one.centroid == pytest.approx(tuple(points.mean(axis=0)))
        world = points[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
        assert one.world_centroid_mm == pytest.approx(tuple(world.mean(axis=0)))


def test_the_table_of_many_labels_is_added_up_in_few_slabs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "SLAB_VOXELS", 1)
    looked_at = []
    plain = Labels.to_positions
    monkeypatch.setattr(
        Labels, "to_positions", lambda self, slab: looked_at.append(slab) or plain(self, slab)
    )
    measure(np.zeros((40, 2, 3), dtype=np.uint8), ORGANS, simple_geometry((40, 2, 3), SPACING))
    assert len(looked_at) == 2  # slabs of 3 labels x 40 places, 20 slices


def test_a_box_counts_from_its_first_voxel_to_one_after_its_last() -> None:
    liver = measure(boxed(slice(1, 3), slice(2, 3), slice(4, 9)), ORGANS, PLAIN)["liver"]
    assert liver.box == ((1, 3), (2, 3), (4, 9))
    assert liver.centroid == (1.5, 2.0, 6.0)
    assert (liver.voxels, liver.volume_ml, liver.area_mm2) == (10, pytest.approx(0.01), None)


def test_the_world_is_x_first_and_its_box_holds_all_of_each_voxel() -> None:
    liver = measure(boxed(slice(1, 3), slice(2, 3), slice(4, 9)), ORGANS, PLAIN)["liver"]
    assert liver.world_centroid_mm == pytest.approx((6 * 0.8, 2 * 0.5, 1.5 * 2.5))
    assert liver.world_box.low == pytest.approx((3.5 * 0.8, 1.5 * 0.5, 0.5 * 2.5))
    assert liver.world_box.high == pytest.approx((8.5 * 0.8, 2.5 * 0.5, 2.5 * 2.5))


def test_a_sheared_file_has_its_own_world_box_and_the_volume_between_its_slices() -> None:
    liver = measure(boxed(slice(1, 3), slice(2, 3), slice(4, 9)), ORGANS, SHEARED)["liver"]
    # x runs to posterior, y to the right, and each slice lies 0.25 mm further right
    assert liver.world_box.low == pytest.approx(
        (10 + 1.5 * 0.5 + 0.5 * 0.25, -20 - 8.5 * 0.8, 30 + 0.5 * 2.5)
    )
    assert liver.world_box.high == pytest.approx(
        (10 + 2.5 * 0.5 + 2.5 * 0.25, -20 - 3.5 * 0.8, 30 + 2.5 * 2.5)
    )
    slant = np.linalg.norm((0.25, 0, 2.5))
    assert slant > 2.51
    assert liver.volume_ml == pytest.approx(10 * 0.5 * 0.8 * 2.5 / 1000)


def test_a_label_that_is_absent_has_size_zero_and_no_place() -> None:
    nothing = measure(boxed(slice(0, 1)), ORGANS, PLAIN, components=True)["spleen"]
    assert nothing == LabelStatistics(
        voxels=0,
        volume_ml=0.0,
        area_mm2=None,
        components=0,
        box=None,
        centroid=None,
        world_box=None,
        world_centroid_mm=None,
    )


def test_what_is_ignored_belongs_to_no_label() -> None:
    segmentation = np.full(SHAPE, 301, dtype=np.uint16)
    assert {one.voxels for one in measure(segmentation, SPARSE, PLAIN).values()} == {0}


def test_a_2d_image_has_an_area_and_no_volume() -> None:
    geometry = flat_geometry((6, 9), (0.5, 0.8))
    segmentation = np.zeros((1, 6, 9), dtype=np.uint8)
    segmentation[0, 2, 3:8] = 1
    found = measure(segmentation, ORGANS, geometry)
    assert (found["liver"].volume_ml, found["spleen"].volume_ml) == (None, None)
    assert found["liver"].area_mm2 == pytest.approx(5 * 0.4)
    assert found["spleen"].area_mm2 == 0


def test_components_are_counted_for_labels_and_for_what_a_region_joins() -> None:
    segmentation = np.zeros(SHAPE, dtype=np.uint8)
    segmentation[0, 0, 0], segmentation[1, 1, 1] = 2, 3  # they touch at a corner
    segmentation[3, 5, 8] = 3
    found = measure(segmentation, TUMOUR, PLAIN, components=True)
    assert {name: one.components for name, one in found.items()} == {
        "whole": 2,
        "core": 2,
        "active": 2,
    }
    segmentation[2, 3, 4] = 1
    assert measure(segmentation, TUMOUR, PLAIN, components=True)["whole"].components == 3
    assert measure(segmentation, TUMOUR, PLAIN)["whole"].components is None


def test_a_map_of_another_shape_than_its_geometry_is_refused() -> None:
    with pytest.raises(DataError, match=r"is \(6, 4, 9\) and its geometry \(4, 6, 9\)"):
        measure(np.zeros((6, 4, 9), dtype=np.uint8), ORGANS, PLAIN)


def test_a_value_that_is_no_label_is_refused() -> None:
    with pytest.raises(DataError, match=r"values \[7\], which are no labels"):
        measure(np.full(SHAPE, 7, dtype=np.uint8), ORGANS, PLAIN)


def test_statistics_survive_json() -> None:
    case = CaseStatistics(
        case_id="a", labels=measure(random_map(ORGANS, 1), ORGANS, SHEARED, components=True)
    )
    assert record.parse(CaseStatistics, record.to_json(case), "run.json") == case


def test_a_table_has_a_row_for_each_label_and_the_same_columns_always() -> None:
    segmentation = boxed(slice(1, 3), slice(2, 3), slice(4, 9))
    case = CaseStatistics(case_id="a", labels=measure(segmentation, ORGANS, PLAIN))
    rows = list(csv.DictReader(io.StringIO(as_csv([case, case]), newline="")))
    assert [(row["case"], row["label"]) for row in rows] == [("a", "liver"), ("a", "spleen")] * 2
    liver, spleen = rows[:2]
    assert liver["voxels"] == "10"
    assert float(liver["volume_ml"]) == pytest.approx(0.01)
    assert [liver[f"box_{axis}"] for axis in ("z_start", "z_stop", "x_start")] == ["1", "3", "4"]
    assert float(liver["centroid_x"]) == 6
    assert float(liver["world_centroid_x_mm"]) == pytest.approx(4.8)
    assert float(liver["world_box_z_min_mm"]) == pytest.approx(1.25)
    assert float(liver["world_box_y_max_mm"]) == pytest.approx(1.25)
    filled = {name for name, value in spleen.items() if value}
    assert filled == {"case", "label", "voxels", "volume_ml"}
    assert as_csv([]).strip().split(",") == list(COLUMNS)


def test_names_with_signs_of_csv_stay_whole_and_none_is_a_formula() -> None:
    found = measure(boxed(slice(1, 3)), ORGANS, PLAIN)["liver"]
    names = ['a,"b"', "two\nlines", "=1+1", "@x", "-7", "Größe", "a=b"]
    case = CaseStatistics(case_id="=cmd()", labels=dict.fromkeys(names, found))
    rows = list(csv.DictReader(io.StringIO(as_csv([case]), newline="")))
    expected = ['a,"b"', "two\nlines", "'=1+1", "'@x", "'-7", "Größe", "a=b"]
    assert [row["label"] for row in rows] == expected
    assert rows[0]["case"] == "'=cmd()"
