import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnseg.doctor.examine import in_threads, survey
from nnseg.doctor.remedies import Recipe, drift, make_recipe
from nnseg.errors import DataError
from nnseg.volume import Geometry, read_segmentation, simple_geometry, write

SHAPE = (3, 4, 5)
GRID = simple_geometry(SHAPE, (3.0, 2.0, 1.0))
Array = np.ndarray[Any, Any]


def moved(geometry: Geometry, *, shift: float = 0, stretch: float = 1) -> Geometry:
    """A grid whose x begins elsewhere, or whose z spacing differs."""
    z, y, x = geometry.spacing
    result = simple_geometry(geometry.shape, (z * stretch, y, x))
    rows = [list(row) for row in result.affine]
    rows[0][3] += shift
    return dataclasses.replace(result, affine=tuple(tuple(row) for row in rows))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A sound dataset of two cases, a and b, with one label besides the background."""
    folder = tmp_path / "Dataset001_Tiny"
    for number, case in enumerate("ab"):
        image = np.arange(60, dtype=np.int16).reshape(SHAPE) + number
        write(folder / "imagesTr" / f"{case}_0000.nii", image, GRID)
        relabel(folder, case, mask(1))
    declare(folder)
    return folder


def mask(value: int, dtype: Any = np.uint8) -> Array:
    segmentation = np.zeros(SHAPE, dtype)
    segmentation[1, :2, :3] = value
    return segmentation


def relabel(folder: Path, case: str, values: Array, geometry: Geometry = GRID) -> None:
    write(folder / "labelsTr" / f"{case}.nii", values, geometry)


def declare(folder: Path, **changes: Any) -> None:
    data = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "head": 1},
        "numTraining": 2,
        "file_ending": ".nii",
        "licence": "CC0",
    }
    (folder / "dataset.json").write_text(json.dumps(data | changes))


def recipe_of(folder: Path) -> Recipe:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return make_recipe(survey(folder, None, in_threads(1, None)), files)


def mended(folder: Path) -> list[tuple[str, str]]:
    return [(mend.rule, mend.file) for mend in recipe_of(folder).mended]


def test_a_sound_dataset_needs_nothing(dataset: Path) -> None:
    recipe = recipe_of(dataset)
    assert (recipe.mended, recipe.dropped, recipe.labels, recipe.texts) == ((), frozenset(), {}, {})


def test_a_mask_of_0_and_255_means_the_one_label_there_is(dataset: Path) -> None:
    relabel(dataset, "a", mask(255))
    recipe = recipe_of(dataset)
    assert [(m.rule, m.file) for m in recipe.mended] == [("label_undeclared", "labelsTr/a.nii")]
    assert recipe.mended[0].done == "255 became 1 (head) in 6 voxels"
    assert recipe.labels[dataset / "labelsTr" / "a.nii"].foreground == 1


def test_the_one_label_may_be_any_integer(dataset: Path) -> None:
    declare(dataset, labels={"background": 0, "head": 7})
    relabel(dataset, "a", mask(255))
    assert recipe_of(dataset).labels[dataset / "labelsTr" / "a.nii"].foreground == 7


def other_value(values: Array) -> None:
    values[0, 0, 0] = 1


@pytest.mark.parametrize(
    ("labels", "change"),
    [
        ({"background": 0, "head": 1, "tail": 2}, None),
        ({"background": 0, "head": 255}, None),
        ({"background": 0, "head": 1, "ignore": 2}, None),
        ({"background": 0, "whole": [1, 2], "core": 2}, None),
        ({"background": 0, "head": "one"}, None),
        (None, other_value),
        (None, lambda values: values.fill(255)),
        (None, lambda values: np.putmask(values, values == 255, 254)),
    ],
    ids=["two labels", "declared", "ignore", "regions", "invalid", "three values", "full", "254"],
)
def test_a_mask_that_may_mean_something_else_is_left(
    dataset: Path, labels: Any, change: Callable[[Array], Any] | None
) -> None:
    values = mask(255)
    if change is not None:
        change(values)
    relabel(dataset, "a", values)
    if labels is not None:
        declare(dataset, labels=labels, regions_class_order=[1, 2])
    assert mended(dataset) == []


@pytest.mark.parametrize(
    ("geometry", "certain"),
    [
        (moved(GRID, shift=0.009), None),
        (moved(GRID, shift=0.011), True),
        (moved(GRID, shift=0.0999), True),
        (moved(GRID, shift=0.101), False),
        (moved(GRID, stretch=1.0101), True),  # over two slices of 3 mm, 0.06 mm
        (moved(GRID, stretch=1.02), False),
        (moved(simple_geometry((3, 4, 5), (3.0, 2.0, -1.0))), False),
    ],
    ids=["rounding", "just over", "just within", "too far", "stretched", "too long", "mirrored"],
)
def test_a_label_map_is_moved_by_at_most_a_tenth_of_a_voxel(
    dataset: Path, geometry: Geometry, certain: bool | None
) -> None:
    relabel(dataset, "a", mask(1), geometry)
    assert mended(dataset) == ([("label_grid", "labelsTr/a.nii")] if certain else [])


def test_a_label_map_of_another_shape_is_never_moved(dataset: Path) -> None:
    relabel(dataset, "a", mask(1)[:, :, 1:], simple_geometry((3, 4, 4), (3.0, 2.0, 1.0)))
    assert mended(dataset) == []


def test_drift_counts_smallest_voxels_at_the_far_corner() -> None:
    assert drift(GRID, moved(GRID, shift=0.5)) == pytest.approx(0.5)
    assert drift(GRID, moved(GRID, stretch=1.1)) == pytest.approx(0.6)  # two slices by 0.3 mm
    fine = simple_geometry(SHAPE, (3.0, 2.0, 0.5))
    assert drift(fine, moved(fine, shift=0.5)) == pytest.approx(1)
    stated = dataclasses.replace(GRID, spacing=(3.0, 2.5, 1.0))  # beside the same matrix
    assert drift(GRID, stated) == pytest.approx(1.5)
    assert drift(GRID, simple_geometry((3, 5, 4), (3.0, 2.0, 1.0))) == float("inf")


@pytest.mark.parametrize("value", [1, 0.25], ids=["integers", "blurred"])
def test_integers_stored_as_floats_are_mended_and_blurred_ones_are_not(
    dataset: Path, value: float
) -> None:
    values = mask(1, np.float32)
    values[0, 0, 0] = value
    relabel(dataset, "a", values)
    assert mended(dataset) == ([("label_float", "labelsTr/a.nii")] if value == 1 else [])


def test_a_blurred_label_map_still_gets_its_images_grid(dataset: Path) -> None:
    relabel(dataset, "a", mask(1, np.float32) / 2, moved(GRID, shift=0.05))
    assert mended(dataset) == [("label_grid", "labelsTr/a.nii")]


@pytest.mark.parametrize("declared", [3, "two", None, True, 2.0])
def test_num_training_becomes_the_number_of_cases(dataset: Path, declared: Any) -> None:
    declare(dataset, numTraining=declared)
    recipe = recipe_of(dataset)
    assert [(m.rule, m.file) for m in recipe.mended] == [("case_count", "dataset.json")]
    data = json.loads(recipe.texts[dataset / "dataset.json"])
    assert data == json.loads((dataset / "dataset.json").read_text()) | {"numTraining": 2}
    assert list(data)[-1] == "licence"


def test_files_without_partner_are_left_out_and_no_longer_counted(dataset: Path) -> None:
    labels, images = dataset / "labelsTr", dataset / "imagesTr"
    (labels / "a.nii").rename(labels / "c.nii")
    (images / "notes.txt").touch()
    (images / "._b_0000.nii").touch()
    (dataset / ".cache").mkdir()
    (dataset / ".cache" / "x").touch()
    recipe = recipe_of(dataset)
    assert [(m.rule, m.file) for m in recipe.mended] == [
        ("hidden", ".cache/x"),
        ("case_count", "dataset.json"),
        ("label_missing", "imagesTr/a_0000.nii"),
        ("file_name", "imagesTr/notes.txt"),
        ("image_missing", "labelsTr/c.nii"),
    ]
    assert recipe.mended[0].done == "left out: is hidden, and 1 more hidden files"
    assert recipe.mended[1].done == "numTraining was 2 and is 1"
    assert recipe.dropped == {
        images / "a_0000.nii",
        images / "notes.txt",
        images / "._b_0000.nii",
        labels / "c.nii",
        dataset / ".cache" / "x",
    }


def test_the_spacing_beside_a_file_goes_where_the_file_goes(dataset: Path) -> None:
    labels = dataset / "labelsTr"
    write(labels / "c.tif", mask(1), GRID)
    assert recipe_of(dataset).dropped == {labels / "c.tif", labels / "c.json"}


def test_the_datasets_own_folds_lose_what_is_left_out(dataset: Path) -> None:
    (dataset / "labelsTr" / "a.nii").unlink()
    folds = [{"train": ["a", "b"], "val": ["a"]}, {"train": ["b"], "val": ["a"]}]
    path = dataset / "splits_final.json"
    path.write_text(json.dumps(folds))
    recipe = recipe_of(dataset)
    assert ("folds", "splits_final.json") in [(m.rule, m.file) for m in recipe.mended]
    assert json.loads(recipe.texts[path]) == [
        {"train": ["b"], "val": []},
        {"train": ["b"], "val": []},
    ]


def test_folds_that_name_nothing_left_out_stay(dataset: Path) -> None:
    (dataset / "splits_final.json").write_text('[{"train": ["a"], "val": ["b"]}]')
    assert mended(dataset) == []


def test_without_any_pair_nothing_is_left_out(dataset: Path) -> None:
    for path in (dataset / "labelsTr").iterdir():
        path.rename(path.with_name(f"seg_{path.name}"))
    with pytest.raises(DataError, match="no case would be left, because no image has a label map"):
        recipe_of(dataset)


def test_a_missing_folder_leaves_nothing_out(dataset: Path) -> None:
    for path in (dataset / "labelsTr").iterdir():
        path.unlink()
    (dataset / "labelsTr").rmdir()
    assert mended(dataset) == []


def test_a_dataset_json_that_cannot_be_read_is_not_written(dataset: Path) -> None:
    (dataset / "dataset.json").write_text("{")
    relabel(dataset, "a", mask(1, np.float32))
    assert mended(dataset) == [("label_float", "labelsTr/a.nii")]


def test_a_recipe_changes_no_file(dataset: Path) -> None:
    relabel(dataset, "a", mask(255, np.float32), moved(GRID, shift=0.05))
    before = (dataset / "labelsTr" / "a.nii").read_bytes()
    assert [rule for rule, _ in mended(dataset)] == [
        "label_float",
        "label_grid",
        "label_undeclared",
    ]
    assert (dataset / "labelsTr" / "a.nii").read_bytes() == before
    assert read_segmentation(dataset / "labelsTr" / "a.nii")[0].max() == 255
