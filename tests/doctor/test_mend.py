import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nnseg import record
from nnseg.dataset import read_spec
from nnseg.doctor import mend as mending_module
from nnseg.doctor.examine import examine
from nnseg.doctor.mend import REPORT, Mending, describe_mending, mend
from nnseg.errors import DataError, MachineError, UsageError
from nnseg.phantom import write_dataset
from nnseg.phantom.broken import planted_faults
from nnseg.volume import read_array, read_segmentation, simple_geometry, write

SHAPE = (3, 4, 5)
GRID = simple_geometry(SHAPE, (3.0, 2.0, 1.0))


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in paths
    }


def names(folder: Path) -> set[str]:
    return {name for name in tree(folder) if name != REPORT}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset of three cases: a is sound, b's mask is 0 and 255, c has no label map."""
    folder = tmp_path / "raw" / "Dataset001_Tiny"
    for number, case in enumerate("abc"):
        image = np.arange(60, dtype=np.int16).reshape(SHAPE) + number
        write(folder / "imagesTr" / f"{case}_0000.nii.gz", image, GRID)
    for case, value in (("a", 1), ("b", 255)):
        segmentation = np.zeros(SHAPE, np.float32)
        segmentation[1, :2, :3] = value
        write(folder / "labelsTr" / f"{case}.nii.gz", segmentation, GRID)
    (folder / "notes").mkdir()
    (folder / "notes" / "readme.txt").write_text("kept")
    declare(folder, 3)
    return folder


def declare(folder: Path, count: int, **changes: Any) -> None:
    data = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "head": 1},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(data | changes))


@pytest.fixture
def target(dataset: Path) -> Path:
    return dataset.with_name("Dataset001_Tiny_fixed")


def test_the_copy_is_mended_and_the_original_is_untouched(dataset: Path, target: Path) -> None:
    before = tree(dataset)
    mending = mend(dataset, target, workers=2)
    assert tree(dataset) == before
    assert (mending.copy, mending.left) == (str(target), ())
    assert [(m.rule, m.file) for m in mending.mended] == [
        ("case_count", "dataset.json"),
        ("label_missing", "imagesTr/c_0000.nii.gz"),
        ("label_float", "labelsTr/a.nii.gz"),
        ("label_float", "labelsTr/b.nii.gz"),
        ("label_undeclared", "labelsTr/b.nii.gz"),
    ]
    assert names(target) == set(before) - {"imagesTr/c_0000.nii.gz"}
    assert read_spec(target / "dataset.json").num_training == 2
    for case in "ab":
        segmentation, geometry = read_segmentation(target / "labelsTr" / f"{case}.nii.gz")
        assert segmentation.dtype == np.uint8
        assert np.argwhere(segmentation == 1).tolist() == [
            [1, y, x] for y in (0, 1) for x in range(3)
        ]
        assert geometry.affine == GRID.affine
    assert examine(target) == ()


def test_what_is_not_mended_is_copied_byte_by_byte(dataset: Path, target: Path) -> None:
    mend(dataset, target, workers=1)
    for name in ("imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "notes/readme.txt"):
        assert (target / name).read_bytes() == (dataset / name).read_bytes()
        assert not (target / name).samefile(dataset / name)


def test_the_report_in_the_copy_says_what_was_done(dataset: Path, target: Path) -> None:
    mending = mend(dataset, target, workers=1)
    assert record.load(Mending, target / REPORT) == mending
    (dataset / REPORT).write_text("of an earlier time")
    shutil.rmtree(target)
    assert mend(dataset, target, workers=1) == mending


def test_of_the_broken_phantoms_the_copy_has_what_was_said_to_be_left(tmp_path: Path) -> None:
    source, target = tmp_path / "broken", tmp_path / "mended"
    write_dataset(source, "broken", cases=2)
    mending = mend(source, target)
    assert examine(target) == mending.findings_left
    left = {(left.finding.rule, left.finding.file) for left in mending.left}
    planted = {(fault.rule, fault.file) for fault in planted_faults()}
    assert left < planted
    assert sorted(rule for rule, _ in planted - left) == [
        "case_count",
        "file_name",
        "image_missing",
        "label_grid",
        "label_missing",
    ]
    done = {mend.rule for mend in mending.mended}
    assert done == {rule for rule, _ in planted - left} | {"label_float"}
    reasons = {left.finding.rule: left.reason for left in mending.left}
    assert "rounding would invent borders" in reasons["label_not_integer"]
    errors = {left.finding.rule for left in mending.left if left.finding.severity == "error"}
    assert not any(reasons[rule].startswith("a warning") for rule in errors)


def test_a_label_map_beside_its_image_takes_its_grid(dataset: Path, target: Path) -> None:
    image, label = dataset / "imagesTr" / "a_0000.nii.gz", dataset / "labelsTr" / "a.nii.gz"
    rows = [list(row) for row in GRID.affine]
    rows[0][3] += 0.05
    segmentation, _ = read_segmentation(label)
    drifted = dataclasses.replace(GRID, affine=tuple(tuple(row) for row in rows))
    write(label, segmentation.astype(np.int16), drifted)
    mending = mend(dataset, target, workers=1)
    assert "moved by 0.05 voxels" in next(m.done for m in mending.mended if m.rule == "label_grid")
    array, geometry = read_array(target / "labelsTr" / "a.nii.gz")
    assert geometry == read_array(image)[1]
    assert array.dtype == np.int16
    assert (array == segmentation).all()


def test_pictures_with_masks_of_0_and_255_become_a_sound_dataset(tmp_path: Path) -> None:
    from PIL import Image

    source, target = tmp_path / "Dataset002_Cells", tmp_path / "Dataset002_Cells_fixed"
    for number, part, values in ((0, "imagesTr", (9, 80)), (1, "labelsTr", (0, 255))):
        (source / part).mkdir(parents=True)
        pixels = np.full((4, 5), values[0], np.uint8)
        pixels[1:3, 2:] = values[1]
        Image.fromarray(pixels).save(source / part / ("a.png" if number else "a_0000.png"))
    declare(source, 1, file_ending=".png")
    assert mend(source, target, workers=1).left == ()
    assert sorted(np.unique(read_array(target / "labelsTr" / "a.png")[0])) == [0, 1]
    assert examine(target) == ()


def test_a_tiff_label_map_keeps_the_spacing_file_that_it_shares(tmp_path: Path) -> None:
    source, target = tmp_path / "Dataset002_Tiff", tmp_path / "Dataset002_fixed"
    write(source / "a_0000.tif", np.arange(60, dtype=np.uint8).reshape(SHAPE), GRID)
    (source / "a_0000.json").unlink()
    mask = np.zeros(SHAPE, np.uint8)
    mask[1, :2, :3] = 255
    write(source / "a.tif", mask, GRID)
    (source / "a.json").write_text('{"spacing": [3, 2, 1], "stain": "DAPI"}')
    declare(
        source, 1, file_ending=".tif", dataset={"a": {"images": ["a_0000.tif"], "label": "a.tif"}}
    )
    assert mend(source, target, workers=1).left == ()
    assert json.loads((target / "a.json").read_text()) == {"spacing": [3, 2, 1], "stain": "DAPI"}
    assert names(target) == names(source)
    assert read_array(target / "a_0000.tif")[1].spacing == GRID.spacing


@pytest.mark.parametrize("value", [1e300, 2.0**31, -(2.0**31) - 1])
def test_a_float_label_map_whose_values_are_no_labels_is_left(
    dataset: Path, target: Path, value: float
) -> None:
    segmentation = np.zeros(SHAPE, np.float64)
    segmentation[1, :2, :3], segmentation[2] = value, -5
    write(dataset / "labelsTr" / "a.nii.gz", segmentation, GRID)
    mending = mend(dataset, target, workers=1)
    assert "labelsTr/a.nii.gz" not in {m.file for m in mending.mended}
    assert [(x.finding.rule, x.finding.file) for x in mending.left] == [
        ("label_undeclared", "labelsTr/a.nii.gz")
    ]
    before = (dataset / "labelsTr" / "a.nii.gz").read_bytes()
    assert (target / "labelsTr" / "a.nii.gz").read_bytes() == before


def test_no_lock_stays_beside_the_copy(dataset: Path, target: Path) -> None:
    mend(dataset, target, workers=1)
    assert {path.name for path in target.parent.iterdir()} == {dataset.name, target.name}


def test_listed_label_maps_are_mended_where_they_lie(dataset: Path, target: Path) -> None:
    (dataset / "other").mkdir()
    (dataset / "labelsTr" / "b.nii.gz").rename(dataset / "other" / "mask.nii.gz")
    case = {"images": ["imagesTr/b_0000.nii.gz"], "label": "other/mask.nii.gz"}
    declare(dataset, 1, dataset={"b": case})
    mending = mend(dataset, target, workers=1)
    assert {m.file for m in mending.mended} == {"other/mask.nii.gz"}
    assert names(target) == names(dataset)
    assert read_array(target / "other" / "mask.nii.gz")[0].max() == 1


def test_linked_folders_are_copied_as_files(dataset: Path, target: Path, tmp_path: Path) -> None:
    (dataset / "imagesTr").rename(tmp_path / "elsewhere")
    (dataset / "imagesTr").symlink_to(tmp_path / "elsewhere")
    (dataset / "lost").symlink_to(tmp_path / "nowhere")
    mend(dataset, target, workers=1)
    assert not (target / "imagesTr").is_symlink()
    assert not any(path.is_symlink() for path in target.rglob("*"))
    assert (target / "imagesTr" / "a_0000.nii.gz").is_file()


def test_a_link_to_a_folder_around_it_is_refused(dataset: Path, target: Path) -> None:
    (dataset / "notes" / "again").symlink_to(dataset)
    with pytest.raises(DataError, match="links to a folder that it lies in; remove the link"):
        mend(dataset, target, workers=1)
    assert not target.exists()


def test_a_sound_dataset_is_not_copied(dataset: Path, target: Path) -> None:
    mend(dataset, target, workers=1)
    again = target.with_name("Dataset001_Tiny_again")
    (target / REPORT).unlink()
    mending = mend(target, again, workers=1)
    assert (mending.copy, mending.mended, mending.left) == (None, (), ())
    assert not again.exists()
    assert describe_mending(mending) == "nothing can be mended for certain; no copy was written"


def test_a_dataset_with_nothing_to_mend_keeps_its_faults_with_reasons(
    dataset: Path, target: Path
) -> None:
    for name in ("imagesTr/c_0000.nii.gz", "labelsTr/b.nii.gz", "imagesTr/b_0000.nii.gz"):
        (dataset / name).unlink()
    segmentation = np.zeros(SHAPE, np.float32)
    segmentation[0, 0] = 0.5
    write(dataset / "labelsTr" / "a.nii.gz", segmentation, GRID)
    declare(dataset, 1)
    mending = mend(dataset, target, workers=1)
    assert mending.copy is None
    assert [left.finding.rule for left in mending.left] == ["label_not_integer"]
    assert "(left: rounding would invent borders" in describe_mending(mending)


def test_the_description_has_a_line_for_each_file(dataset: Path, target: Path) -> None:
    lines = describe_mending(mend(dataset, target, workers=1)).splitlines()
    assert lines[0] == "mended   dataset.json: numTraining was 3 and is 2"
    assert lines[-1] == f"corrected copy: {target}"
    assert len(lines) == 6


def test_a_folder_with_something_in_it_is_refused(dataset: Path, target: Path) -> None:
    target.mkdir()
    (target / "x").touch()
    with pytest.raises(UsageError, match=r"is not empty; give another folder with -o"):
        mend(dataset, target)
    assert [path.name for path in target.iterdir()] == ["x"]
    (target / "x").unlink()
    assert mend(dataset, target).copy == str(target)


@pytest.mark.parametrize("where", ["", "inside", "inside/deeper"])
def test_a_copy_within_the_dataset_is_refused(dataset: Path, where: str) -> None:
    before = tree(dataset)
    with pytest.raises(UsageError, match="lies in the dataset itself"):
        mend(dataset, dataset / where)
    assert tree(dataset) == before


def test_a_file_or_a_name_of_no_dataset_is_refused(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is no folder"):
        mend(dataset, tmp_path / "file")
    with pytest.raises(UsageError, match="cannot name a dataset"):
        mend(dataset, tmp_path / ".hidden")


def test_a_copy_that_fails_leaves_nothing(
    dataset: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MachineError("the disk is full; make room")

    monkeypatch.setattr(mending_module, "write", fail)
    with pytest.raises(MachineError, match="disk is full"):
        mend(dataset, target, workers=1)
    assert [path.name for path in target.parent.iterdir() if path.is_dir()] == [dataset.name]


def test_what_a_killed_run_left_is_no_part_of_the_next_copy(dataset: Path, target: Path) -> None:
    unfinished = target.with_name(f".{target.name}.unfinished")
    (unfinished / "imagesTr").mkdir(parents=True)
    (unfinished / "imagesTr" / "x_0000.nii.gz").touch()
    mend(dataset, target, workers=1)
    assert "imagesTr/x_0000.nii.gz" not in names(target)
    assert not unfinished.exists()


def test_a_disk_that_is_too_small_is_noticed_before_the_copy(
    dataset: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=100)
    monkeypatch.setattr(mending_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(MachineError, match="a copy takes 0 MiB and 0 MiB are free"):
        mend(dataset, target)
    assert not target.exists()


def test_progress_tells_of_reading_copying_and_reading_again(dataset: Path, target: Path) -> None:
    calls = []
    mend(dataset, target, workers=1, on_progress=lambda *step: calls.append(step))
    assert list(dict.fromkeys(what for what, _, _ in calls)) == [
        "examining",
        "copying",
        "examining the copy",
    ]


def test_real_label_maps_stored_as_floats_are_mended(shared: Path, tmp_path: Path) -> None:
    source, target = shared / "data" / "Dataset004_Hippocampus", tmp_path / "Dataset004_Some"
    few = tmp_path / "few"
    for part in ("imagesTr", "labelsTr"):
        (few / part).mkdir(parents=True)
        for case in ("hippocampus_001", "hippocampus_003"):
            (path,) = (source / part).glob(f"{case}*")
            (few / part / path.name).symlink_to(path)
    shutil.copyfile(source / "dataset.json", few / "dataset.json")
    mending = mend(few, target, workers=1)
    assert [(m.rule, m.file) for m in mending.mended] == [
        ("case_count", "dataset.json"),
        ("label_float", "labelsTr/hippocampus_003.nii.gz"),
    ]
    before, after = (
        read_array(folder / "labelsTr" / "hippocampus_003.nii.gz") for folder in (few, target)
    )
    assert after[1] == before[1]
    assert (after[0].dtype, before[0].dtype) == (np.uint8, np.float32)
    assert (after[0] == before[0]).all()
