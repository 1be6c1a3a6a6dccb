import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nnseg.dataset import (
    Case,
    DatasetSpec,
    ListedCase,
    channel_fault,
    find_cases,
    find_image_files,
    find_training_cases,
    listed_cases,
    visible_files,
)
from nnseg.errors import DataError, MachineError, MissingError
from nnseg.folders import Folders
from nnseg.labels import Labels

SPEC = DatasetSpec(
    channels=("T1", "T2"),
    labels=Labels(labels={"background": 0, "liver": 1}),
    num_training=2,
    file_ending=".nii.gz",
)


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_only_files_with_a_channel_number_and_a_known_ending_are_images(
    tmp_path: Path,
) -> None:
    folder = touch(
        tmp_path / "images",
        "b_0000.nii.gz",
        "b_0001.nii.gz",
        "a_0001_0000.nii.gz",
        "c.nii.gz",
        "c_00.nii.gz",
        "c_0000.gz",
        "c_0000.json",
        "._b_0000.nii.gz",
    )
    found = find_image_files(folder, SPEC)
    assert {case: sorted(channels) for case, channels in found.items()} == {
        "a_0001": [0],
        "b": [0, 1],
    }
    assert list(found) == ["a_0001", "b"]


def test_hidden_files_are_counted_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = touch(tmp_path / "images", ".DS_Store", "._b_0000.nii.gz", "b_0000.nii.gz")
    with caplog.at_level(logging.INFO):
        find_image_files(folder, SPEC)
    assert "2 hidden files passed over" in caplog.text


def test_a_case_has_its_channels_in_order_and_its_label_map(tmp_path: Path) -> None:
    images = touch(tmp_path / "i", "a_0001.nii.gz", "a_0000.nii.gz")
    labels = touch(tmp_path / "l", "a.nii.gz")
    (case,) = find_cases(images, labels, SPEC)
    assert case.case_id == "a"
    assert [path.name for path in case.images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert case.label == labels / "a.nii.gz"
    (unlabelled,) = find_cases(images, None, SPEC)
    assert unlabelled.label is None


def test_a_case_without_its_label_map_is_refused(tmp_path: Path) -> None:
    images = touch(tmp_path / "i", "a_0000.nii.gz", "a_0001.nii.gz")
    with pytest.raises(DataError, match=r"case a: .*a.nii.gz does not exist"):
        find_cases(images, touch(tmp_path / "l"), SPEC)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("a_0000.nii.gz",), "lacks a_0001.nii.gz"),
        (("a_0000.nii.gz", "a_0002.nii.gz"), "lacks a_0001.nii.gz and has a_0002.nii.gz"),
        (("notes.txt",), "no file is named CASE_0000.nii.gz"),
    ],
)
def test_incomplete_folders_are_refused(
    tmp_path: Path, files: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        find_cases(touch(tmp_path / "i", *files), None, SPEC)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="imagesTr does not exist"):
        find_cases(tmp_path / "imagesTr", None, SPEC)


@pytest.mark.parametrize("method", ["is_dir", "iterdir", "is_file"])
def test_a_folder_that_cannot_be_listed_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    folder = touch(tmp_path / "images", "a_0000.nii.gz", "a_0001.nii.gz")

    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(MachineError, match=r"images: cannot be listed \(Permission denied\)"):
        find_cases(folder, None, SPEC)


def test_a_listed_path_that_is_too_long_is_refused_in_short(tmp_path: Path) -> None:
    listed = {"a": ListedCase(images=("x" * 5000, "y"), label="z")}
    with pytest.raises(
        DataError, match=r"xxx\.\.\.: cannot be looked for \(File name too"
    ) as caught:
        find_training_cases(Folders.of_root(tmp_path), "Dataset001_A", replace(SPEC, listed=listed))
    assert len(str(caught.value)) < 500


def test_a_name_that_is_no_text_is_refused_with_its_bytes(tmp_path: Path) -> None:
    folder = touch(tmp_path / "images", "b_0000.nii.gz", "caf\udce9_0000.nii.gz")
    with pytest.raises(DataError, match=r"the name caf\\xe9_0000\.nii\.gz is no text"):
        find_cases(folder, None, replace(SPEC, channels=("T1",)))


@pytest.mark.parametrize(
    ("sign", "shown"), [("\n", r"\\x0a"), ("\t", r"\\x09"), ("\x1b", r"\\x1b")]
)
def test_a_name_with_control_characters_is_refused_and_shown_without_them(
    tmp_path: Path, sign: str, shown: str
) -> None:
    folder = touch(tmp_path / "images", f"a{sign}_0000.nii.gz")
    with pytest.raises(DataError, match=f"the name a{shown}_0000.nii.gz is no text in UTF-8, or"):
        find_cases(folder, None, replace(SPEC, channels=("T1",)))


@pytest.mark.parametrize("stray", ["Icon\r", "caf\udce9.txt"])
def test_a_file_that_is_no_image_is_passed_over_whatever_its_name(
    tmp_path: Path, stray: str
) -> None:
    images = touch(tmp_path / "i", "a_0000.nii.gz", stray)
    labels = touch(tmp_path / "l", "a.nii.gz", stray)
    (case,) = find_cases(images, labels, replace(SPEC, channels=("T1",)))
    assert case.files == (images / "a_0000.nii.gz", labels / "a.nii.gz")
    assert visible_files(images) == [images / "a_0000.nii.gz"]


def test_a_file_that_is_wanted_is_not_passed_over(tmp_path: Path) -> None:
    folder = touch(tmp_path / "p", "a.npz", "b\r.NPZ")
    assert visible_files(folder) == [folder / "a.npz"]
    with pytest.raises(DataError, match=r"p: the name b\\x0d.NPZ is no text"):
        visible_files(folder, (".npz",))


def test_a_label_map_with_control_characters_is_refused(tmp_path: Path) -> None:
    images, labels = touch(tmp_path / "i", "a_0000.nii.gz"), touch(tmp_path / "l", "a\r.nii.gz")
    with pytest.raises(DataError, match=r"l: the name a\\x0d.nii.gz is no text"):
        find_cases(images, labels, replace(SPEC, channels=("T1",)))


def test_what_is_named_as_an_image_and_is_no_file_is_the_fault_of_its_case(tmp_path: Path) -> None:
    one = replace(SPEC, channels=("T1",))
    folder = touch(tmp_path / "images", "a_0000.nii.gz")
    (folder / "folder_0000.nii.gz").mkdir()
    (folder / "gone_0000.nii.gz").symlink_to("nothing.nii.gz")
    (folder / "linked_0000.nii.gz").symlink_to("a_0000.nii.gz")
    (folder / "old").mkdir()
    found = find_image_files(folder, one)
    faults = {case_id: channel_fault(folder, case_id, found[case_id], one) for case_id in found}
    assert faults.keys() == {"a", "folder", "gone", "linked"}
    assert faults["a"] is None
    assert faults["linked"] is None
    assert "folder_0000.nii.gz is no file, nor a link to one; put" in str(faults["folder"])
    assert "gone_0000.nii.gz is no file, nor a link to one; put" in str(faults["gone"])


def test_a_label_map_whose_name_is_composed_otherwise_is_that_of_its_image(
    tmp_path: Path,
) -> None:
    one, two = "caf\xe9", "cafe\u0301"
    images = touch(tmp_path / "i", f"{one}_0000.nii.gz", f"{two}s_0000.nii.gz")
    labels = touch(tmp_path / "l", f"{two}.nii.gz", f"{one}s.nii.gz")
    cases = find_cases(images, labels, replace(SPEC, channels=("T1",)))
    assert {case.case_id: case.label for case in cases} == {
        one: labels / f"{two}.nii.gz",
        f"{two}s": labels / f"{one}s.nii.gz",
    }


def test_an_exact_name_is_preferred_to_one_that_only_looks_alike(tmp_path: Path) -> None:
    one, two = "caf\xe9", "cafe\u0301"
    images = touch(tmp_path / "i", f"{one}_0000.nii.gz", f"{two}_0000.nii.gz")
    labels = touch(tmp_path / "l", f"{one}.nii.gz", f"{two}.nii.gz")
    cases = find_cases(images, labels, replace(SPEC, channels=("T1",)))
    assert all(case.label == labels / f"{case.case_id}.nii.gz" for case in cases)
    assert len(cases) == 2


def test_a_complete_case_has_no_channel_fault() -> None:
    files = {number: (Path(f"i/a_{number:04d}.nii.gz"),) for number in range(2)}
    assert channel_fault(Path("i"), "a", files, SPEC) is None
    assert "a_0000.nii.gz" in (channel_fault(Path("i"), "a", {1: files[1]}, SPEC) or "")


def test_files_of_one_dataset_may_end_differently(tmp_path: Path) -> None:
    images = touch(tmp_path / "i", "a_0000.mha", "a_0001.nii", "b_0000.nii.gz", "b_0001.hdr")
    labels = touch(tmp_path / "l", "a.png", "b.nrrd")
    first, second = find_cases(images, labels, SPEC)
    assert [path.name for path in (*first.images, *second.images)] == [
        "a_0000.mha", "a_0001.nii", "b_0000.nii.gz", "b_0001.hdr",
    ]  # fmt: skip
    assert (first.label, second.label) == (labels / "a.png", labels / "b.nrrd")


def test_two_files_for_one_channel_are_both_named(tmp_path: Path) -> None:
    images = touch(tmp_path / "i", "a_0000.nii.gz", "a_0000.nii", "a_0001.nii.gz")
    with pytest.raises(
        DataError, match=r"case a: .*a_0000\.nii and .*a_0000\.nii\.gz both claim to be the same"
    ):
        find_cases(images, None, SPEC)


def test_two_label_maps_for_one_case_are_both_named(tmp_path: Path) -> None:
    images = touch(tmp_path / "i", "a_0000.nii.gz", "a_0001.nii.gz")
    labels = touch(tmp_path / "l", "a.nii.gz", "a.tif")
    with pytest.raises(DataError, match=r"case a: .*a\.nii\.gz and .*a\.tif both claim"):
        find_cases(images, labels, SPEC)


def test_jpeg_images_have_png_label_maps(tmp_path: Path) -> None:
    spec = replace(SPEC, channels=("grey",), file_ending=".jpg")
    images = touch(tmp_path / "i", "a_0000.jpg")
    labels = touch(tmp_path / "l", "a.jpg")
    with pytest.raises(DataError, match=r"case a: .*a\.png does not exist"):
        find_cases(images, labels, spec)
    (case,) = find_cases(images, touch(labels, "a.png"), spec)
    assert case.label == labels / "a.png"


RGB = replace(SPEC, channels=("R", "G", "B"), file_ending=".png")


def picture(path: Path, *colours: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((4, 5, *colours), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("colours", [3, 4])
def test_one_picture_may_hold_all_channels(tmp_path: Path, colours: int) -> None:
    path = picture(tmp_path / "i" / "a_0000.png", colours)
    (case,) = find_cases(path.parent, None, RGB)
    assert case.images == (path,)


@pytest.mark.parametrize(
    ("name", "colours", "message"),
    [
        ("a_0000.png", (), "holds 1 for the 3 channels"),
        ("a_0000.png", (2,), "holds 2 for the 3 channels .*; give a file for each, or one that"),
        ("a_0001.png", (3,), r"lacks a_0000\.png, a_0002\.png"),
    ],
)
def test_a_picture_that_does_not_hold_them_all_is_refused(
    tmp_path: Path, name: str, colours: tuple[int, ...], message: str
) -> None:
    picture(tmp_path / "i" / name, *colours)
    with pytest.raises(DataError, match=message):
        find_cases(tmp_path / "i", None, RGB)


def test_a_damaged_picture_is_the_fault_of_its_case(tmp_path: Path) -> None:
    folder = touch(tmp_path / "i", "a_0000.png")
    fault = channel_fault(folder, "a", {0: (folder / "a_0000.png",)}, RGB)
    assert fault is not None
    assert fault.startswith("case a: ")
    assert "a_0000.png: is no PNG file" in fault


def test_a_volume_holds_one_channel_and_the_others_are_missed(tmp_path: Path) -> None:
    folder = touch(tmp_path / "i", "a_0000.nii.gz")
    with pytest.raises(DataError, match=r"lacks a_0001\.nii\.gz"):
        find_cases(folder, None, SPEC)


def test_a_case_knows_every_file_that_it_is_read_from(tmp_path: Path) -> None:
    images = touch(
        tmp_path / "i",
        "a_0000.hdr", "a_0000.img", "a_0001.tif", "a_0002.tif", "a.json", "b.json",
    )  # fmt: skip
    labels = touch(tmp_path / "l", "a.tif", "a.json")
    (case,) = find_cases(images, labels, replace(SPEC, channels=("T1", "T2", "EM")))
    assert case.files == (
        images / "a_0000.hdr", images / "a_0001.tif", images / "a_0002.tif", labels / "a.tif",
        images / "a_0000.img", images / "a.json", labels / "a.json",
    )  # fmt: skip


NAME = "Dataset001_Map"
LISTED = replace(
    SPEC,
    listed={
        "b": ListedCase(images=("mri/b1.mha", "mri/b2.nii"), label="truth/b.png"),
        "a": ListedCase(images=("mri/a1.mha", "mri/a2.nii"), label="truth/a.png"),
    },
)


def test_the_map_of_dataset_json_takes_the_place_of_the_folders(tmp_path: Path) -> None:
    folders = Folders.of_root(tmp_path)
    raw = folders.raw_folder(NAME)
    raw.mkdir(parents=True)
    touch(raw / "mri", "a1.mha", "a2.nii", "b1.mha", "b2.nii", "c.mha")
    touch(raw / "truth", "a.png", "b.png")
    cases = find_training_cases(folders, NAME, LISTED)
    assert cases == listed_cases(raw, LISTED)
    assert cases[0] == Case(
        case_id="a", images=(raw / "mri/a1.mha", raw / "mri/a2.nii"), label=raw / "truth/a.png"
    )
    assert [case.case_id for case in cases] == ["a", "b"]


def test_a_listed_file_may_be_a_link_that_leads_elsewhere(tmp_path: Path) -> None:
    folders = Folders.of_root(tmp_path)
    raw = folders.raw_folder(NAME)
    raw.mkdir(parents=True)
    elsewhere = touch(tmp_path / "elsewhere", "a1.mha", "a2.nii", "b1.mha", "b2.nii")
    (raw / "mri").symlink_to(elsewhere)
    touch(raw / "truth", "a.png", "b.png")
    assert len(find_training_cases(folders, NAME, LISTED)) == 2


def test_a_listed_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    folders = Folders.of_root(tmp_path)
    with pytest.raises(MissingError, match=r"case a: .*mri/a1\.mha, which dataset\.json lists"):
        find_training_cases(folders, NAME, LISTED)


def test_a_listed_case_has_a_file_for_each_channel_or_one_for_all(tmp_path: Path) -> None:
    folders = Folders.of_root(tmp_path)
    raw = folders.raw_folder(NAME)
    raw.mkdir(parents=True)
    picture(raw / "mri" / "a.png", 3)
    touch(raw / "mri", "b.png")
    touch(raw / "truth", "a.png")
    one = ListedCase(images=("mri/a.png",), label="truth/a.png")
    spec = replace(RGB, listed={"a": one})
    assert len(find_training_cases(folders, NAME, spec)) == 1
    two = replace(one, images=("mri/a.png", "mri/b.png"))
    with pytest.raises(DataError, match="case a: has 2 image files for the 3 channels"):
        find_training_cases(folders, NAME, replace(spec, listed={"a": two}))
    with pytest.raises(DataError, match="dataset is empty; list cases"):
        find_training_cases(folders, NAME, replace(spec, listed={}))


def test_without_a_map_the_folders_are_listed(tmp_path: Path) -> None:
    folders = Folders.of_root(tmp_path)
    folders.images(NAME).mkdir(parents=True)
    touch(folders.images(NAME), "a_0000.nii.gz", "a_0001.nii.gz")
    touch(folders.labels(NAME), "a.nii.gz")
    (case,) = find_training_cases(folders, NAME, SPEC)
    assert case.label == folders.labels(NAME) / "a.nii.gz"
