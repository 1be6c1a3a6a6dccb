import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnseg.doctor import examine as doctor
from nnseg.doctor.examine import examine, examine_each, in_threads, survey
from nnseg.doctor.findings import Finding, describe, raise_for_errors
from nnseg.phantom import write_dataset
from nnseg.phantom.broken import planted_faults
from nnseg.volume import flat_geometry, read_segmentation, simple_geometry, write

SHAPE = (3, 4, 5)
GRID = simple_geometry(SHAPE, (3.0, 2.0, 1.0))
JSON: dict[str, Any] = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "head": 1, "tail": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def rules(findings: tuple[Finding, ...]) -> list[tuple[str, str]]:
    return [(finding.rule, finding.file) for finding in findings]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A sound dataset of two tiny cases, a and b."""
    folder = tmp_path / "Dataset001_Tiny"
    for number, case in enumerate("ab"):
        image = np.arange(60, dtype=np.int16).reshape(SHAPE) + number
        write(folder / "imagesTr" / f"{case}_0000.nii.gz", image, GRID)
        segmentation = np.zeros(SHAPE, np.uint8)
        segmentation[1, :2, :3], segmentation[2] = 1, 2
        write(folder / "labelsTr" / f"{case}.nii.gz", segmentation, GRID)
    declare(folder)
    return folder


def declare(folder: Path, **changes: Any) -> None:
    """Write dataset.json with some keys changed, or removed with None."""
    data = {key: value for key, value in (JSON | changes).items() if value is not None}
    (folder / "dataset.json").write_text(json.dumps(data))


def relabel(folder: Path, case: str, change: Callable[[np.ndarray[Any, Any]], Any]) -> None:
    path = folder / "labelsTr" / f"{case}.nii.gz"
    segmentation, geometry = read_segmentation(path)
    values = segmentation.astype(np.float32)
    change(values)
    write(path, values, geometry)


def test_a_sound_dataset_has_no_finding(dataset: Path) -> None:
    assert examine(dataset) == ()
    assert describe(()) == "nothing wrong was found"
    raise_for_errors((), "Dataset001_Tiny")


@pytest.mark.parametrize("variant", ["mri", "two_channels", "regions", "ignore", "2d", "ct"])
def test_sound_phantoms_have_no_finding(tmp_path: Path, variant: str) -> None:
    write_dataset(tmp_path, variant, cases=2)
    assert examine(tmp_path, workers=1) == ()


def test_every_planted_fault_is_found_once_and_nothing_else(tmp_path: Path) -> None:
    write_dataset(tmp_path, "broken", cases=2)
    findings = examine(tmp_path)
    assert rules(findings) == [(fault.rule, fault.file) for fault in planted_faults()]
    assert all(finding.found and finding.remedy for finding in findings)
    assert not any(str(tmp_path) in finding.found for finding in findings)


def test_the_order_of_findings_does_not_depend_on_threads(tmp_path: Path) -> None:
    write_dataset(tmp_path, "broken", cases=1)
    assert examine(tmp_path, workers=1) == examine(tmp_path, workers=5)


def test_each_file_is_read_once(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def read(path: Path, **arguments: Any) -> Any:
            seen.append(path.name)
            return real(path, **arguments)

        return read

    monkeypatch.setattr(doctor, "read_array", counted(doctor.read_array))
    monkeypatch.setattr(doctor, "read_channels", counted(doctor.read_channels))
    examine(dataset)
    assert sorted(seen) == ["a.nii.gz", "a_0000.nii.gz", "b.nii.gz", "b_0000.nii.gz"]


def test_progress_counts_every_case_in_the_callers_thread(dataset: Path) -> None:
    calls = []
    examine(dataset, on_progress=lambda *step: calls.append((*step, threading.get_ident())))
    here = threading.get_ident()
    assert calls == [(1, 2, here), (2, 2, here)]


def test_an_empty_folder_lacks_everything(tmp_path: Path) -> None:
    assert rules(examine(tmp_path)) == [
        ("dataset_json_missing", "dataset.json"),
        ("folder_missing", "imagesTr"),
        ("folder_missing", "labelsTr"),
    ]


def test_the_files_are_examined_even_without_a_dataset_json(dataset: Path) -> None:
    (dataset / "dataset.json").unlink()
    (dataset / "labelsTr" / "b.nii.gz").write_bytes(b"")
    assert rules(examine(dataset)) == [
        ("dataset_json_missing", "dataset.json"),
        ("unreadable", "labelsTr/b.nii.gz"),
    ]


@pytest.mark.parametrize("text", ["{", '{"labels": {}, "labels": {}}', "[]", '{"a": NaN}'])
def test_a_dataset_json_that_is_no_json_object_is_one_finding(dataset: Path, text: str) -> None:
    (dataset / "dataset.json").write_text(text)
    assert rules(examine(dataset)) == [("dataset_json_unreadable", "dataset.json")]


def test_each_wrong_part_of_dataset_json_is_a_finding_of_its_own(dataset: Path) -> None:
    declare(
        dataset,
        channel_names={"1": "MRI"},
        labels={"background": 0, "whole": [1, 2]},
        numTraining="two",
        file_ending=None,
    )
    findings = examine(dataset)
    assert rules(findings) == [("dataset_json_invalid", "dataset.json")] * 4
    for part in ("channel_names", "regions_class_order", "numTraining", "file_ending"):
        assert any(part in finding.found for finding in findings)


def test_a_wrong_part_of_dataset_json_does_not_hide_other_faults(dataset: Path) -> None:
    declare(dataset, labels={"background": 1}, numTraining=5)
    relabel(dataset, "a", lambda values: values.fill(0.5))
    assert rules(examine(dataset)) == [
        ("case_count", "dataset.json"),
        ("dataset_json_invalid", "dataset.json"),
        ("label_not_integer", "labelsTr/a.nii.gz"),
    ]


def test_files_of_a_format_that_cannot_be_read_are_one_finding_in_all(dataset: Path) -> None:
    for path in dataset.glob("*Tr/*"):
        path.rename(path.with_name(path.name.replace(".nii.gz", ".svg")))
    declare(dataset, file_ending=".svg")
    (finding,) = examine(dataset)
    assert finding.file == "dataset.json"
    assert "'.svg', which cannot be read" in finding.found


def test_a_missing_labels_folder_is_not_repeated_for_each_case(dataset: Path) -> None:
    shutil.rmtree(dataset / "labelsTr")
    assert rules(examine(dataset)) == [("folder_missing", "labelsTr")]


def test_a_folder_that_cannot_be_listed_is_a_finding(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.iterdir

    def refuse(path: Path) -> Any:
        if path.name == "labelsTr":
            raise PermissionError(13, "no")
        return real(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    (finding,) = examine(dataset)
    assert (finding.rule, finding.found) == ("folder_missing", "cannot be listed")
    assert finding.remedy == "check its rights"


def test_pictures_among_volumes_are_an_error_that_names_both(dataset: Path) -> None:
    declare(dataset, numTraining=3)
    flat = flat_geometry((4, 5), (2.0, 1.0))
    image = np.arange(20, dtype=np.int16).reshape(1, 4, 5)
    write(dataset / "imagesTr" / "c_0000.nii.gz", image, flat)
    write(dataset / "labelsTr" / "c.nii.gz", np.eye(4, 5, dtype=np.uint8)[None], flat)
    (finding,) = examine(dataset)
    assert (finding.rule, finding.severity, finding.file) == (
        "dimensions_mixed",
        "error",
        "imagesTr",
    )
    assert finding.found == "holds 1 case (c) of 2D files and 2 cases (a, b) of 3D files"


def test_a_volume_of_one_slice_may_lie_among_pictures(tmp_path: Path) -> None:
    declare(tmp_path)
    thin = simple_geometry((1, 4, 5), (3.0, 2.0, 1.0))
    for case, grid in (("a", flat_geometry((4, 5), (2.0, 1.0))), ("b", thin)):
        image = np.arange(20, dtype=np.int16).reshape(1, 4, 5) + ord(case)
        write(tmp_path / "imagesTr" / f"{case}_0000.nii.gz", image, grid)
        label = np.zeros((1, 4, 5), np.uint8)
        label[0, 0, :2] = 1, 2
        write(tmp_path / "labelsTr" / f"{case}.nii.gz", label, grid)
    assert examine(tmp_path) == ()


def test_no_image_at_all_is_an_error(dataset: Path) -> None:
    for path in dataset.glob("*Tr/*"):
        path.unlink()
    assert rules(examine(dataset)) == [("no_cases", "imagesTr")]


@pytest.mark.parametrize("name", ["c.nii.gz", "c_000.nii.gz", "c_0000.nii.gz.part", "c_0000.txt"])
def test_an_image_whose_name_is_not_understood_is_named(dataset: Path, name: str) -> None:
    (dataset / "imagesTr" / name).touch()
    (finding,) = examine(dataset)
    assert (finding.rule, finding.file) == ("file_name", f"imagesTr/{name}")
    assert "CASE_0000.nii.gz" in finding.remedy


def test_a_label_map_named_like_an_image_is_told_from_one_without_image(dataset: Path) -> None:
    labels = dataset / "labelsTr"
    (labels / "a.nii.gz").rename(labels / "a_0000.nii.gz")
    shutil.copy(labels / "b.nii.gz", labels / "c.nii.gz")
    assert rules(examine(dataset)) == [
        ("label_missing", "labelsTr/a.nii.gz"),
        ("file_name", "labelsTr/a_0000.nii.gz"),
        ("image_missing", "labelsTr/c.nii.gz"),
    ]


def test_hidden_files_are_no_finding(dataset: Path) -> None:
    for name in ("imagesTr/._a_0000.nii.gz", "labelsTr/.DS_Store"):
        (dataset / name).touch()
    assert examine(dataset) == ()


def test_undeclared_labels_come_with_their_count_and_the_nearest_declared_one(
    dataset: Path,
) -> None:
    def change(values: np.ndarray[Any, Any]) -> None:
        values[0, 0, :3] = 9
        values[0, 1, 0] = -4

    relabel(dataset, "b", change)
    (finding,) = examine(dataset)
    assert (finding.rule, finding.file, finding.case_id) == (
        "label_undeclared",
        "labelsTr/b.nii.gz",
        "b",
    )
    assert "-4 in 1 voxels (nearest is 0, background)" in finding.found
    assert "9 in 3 voxels (nearest is 2, tail)" in finding.found


def test_an_image_under_the_name_of_a_label_map_gives_a_short_message(dataset: Path) -> None:
    shutil.copy(dataset / "imagesTr" / "a_0000.nii.gz", dataset / "labelsTr" / "a.nii.gz")
    (finding,) = examine(dataset)
    assert "and 52 more" in finding.found  # values 3 to 59, five of them shown


def test_ignored_voxels_are_no_foreground_but_a_region_is(dataset: Path) -> None:
    declare(dataset, labels={"background": 0, "head": 1, "ignore": 2})

    def keep_ignored(values: np.ndarray[Any, Any]) -> None:
        values[values == 1] = 0

    relabel(dataset, "a", keep_ignored)
    (finding,) = examine(dataset)
    assert (finding.rule, finding.severity) == ("label_empty", "warning")
    declare(
        dataset, labels={"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2]
    )
    assert examine(dataset) == ()


def test_a_dataset_whose_label_maps_are_all_empty_is_an_error(dataset: Path) -> None:
    for case in "ab":
        relabel(dataset, case, lambda values: values.fill(0))
    findings = examine(dataset)
    assert rules(findings) == [
        ("all_empty", "labelsTr"),
        ("label_empty", "labelsTr/a.nii.gz"),
        ("label_empty", "labelsTr/b.nii.gz"),
    ]
    assert findings[0].severity == "error"


def test_a_label_that_one_case_has_is_not_absent(dataset: Path) -> None:
    def drop_tail(values: np.ndarray[Any, Any]) -> None:
        values[values == 2] = 0

    relabel(dataset, "a", drop_tail)
    assert examine(dataset) == ()
    relabel(dataset, "b", drop_tail)
    (finding,) = examine(dataset)
    assert (finding.rule, finding.severity) == ("label_absent", "warning")
    assert "2 (tail)" in finding.found


def test_a_copy_in_another_number_type_is_still_a_duplicate(dataset: Path) -> None:
    image, geometry = read_segmentation(dataset / "imagesTr" / "a_0000.nii.gz")
    write(dataset / "imagesTr" / "b_0000.nii.gz", image.astype(np.float64), geometry)
    (finding,) = examine(dataset)
    assert (finding.rule, finding.case_id) == ("duplicate", "b")
    assert "case a" in finding.found


def test_constant_images_are_warned_of_but_not_called_duplicates(dataset: Path) -> None:
    for case in "ab":
        write(dataset / "imagesTr" / f"{case}_0000.nii.gz", np.full(SHAPE, 3, np.int16), GRID)
    assert rules(examine(dataset)) == [
        ("channel_constant", "imagesTr/a_0000.nii.gz"),
        ("channel_constant", "imagesTr/b_0000.nii.gz"),
    ]


def test_a_label_map_is_compared_with_the_first_channel_that_can_be_read(dataset: Path) -> None:
    declare(dataset, channel_names={"0": "T1", "1": "T2"})
    images = dataset / "imagesTr"
    for case, number in (("a", 7), ("b", 8)):
        write(images / f"{case}_0001.nii.gz", np.eye(4, 5)[None].repeat(3, 0) * number, GRID)
    (images / "a_0000.nii.gz").write_bytes(b"")
    assert rules(examine(dataset)) == [("unreadable", "imagesTr/a_0000.nii.gz")]
    write(
        dataset / "labelsTr" / "a.nii.gz",
        np.ones(SHAPE, np.uint8),
        simple_geometry(SHAPE, (3.0, 2.0, 1.1)),
    )
    assert rules(examine(dataset))[1:] == [("label_grid", "labelsTr/a.nii.gz")]


def test_a_crash_of_a_reader_is_a_finding(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.read_array

    def crash(path: Path) -> Any:
        if path.name == "b.nii.gz":
            raise OverflowError("too large")
        return real(path)

    monkeypatch.setattr(doctor, "read_array", crash)
    (finding,) = examine(dataset)
    assert (finding.rule, finding.file) == ("unreadable", "labelsTr/b.nii.gz")
    assert "OverflowError: too large" in finding.found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"train": ["a"], "val": ["x"]}]', "fold 0 names x, which the dataset lacks"),
        ('[{"train": ["a", "b"], "val": ["b"]}]', "b both to train and to validate"),
        ('[{"train": ["a"]}]', "val: field required"),
        ("[", "is not valid JSON"),
    ],
)
def test_a_users_own_folds_are_checked(dataset: Path, content: str, message: str) -> None:
    (dataset / "splits_final.json").write_text(content)
    (finding,) = examine(dataset)
    assert (finding.rule, finding.file) == ("folds", "splits_final.json")
    assert message in finding.found


def test_a_users_own_sound_folds_are_no_finding(dataset: Path) -> None:
    folds = [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]
    (dataset / "splits_final.json").write_text(json.dumps(folds))
    assert examine(dataset) == ()


def write_colours(path: Path, colours: np.ndarray[Any, Any]) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A dataset of two grey pictures saved in colours, whose blue is missing in the second."""
    folder = tmp_path / "Dataset002_Cells"
    for number, case in enumerate("ab"):
        grey = np.arange(20, dtype=np.uint8).reshape(4, 5) + number
        colours = np.stack([grey, grey, grey * (1 - number)], axis=-1)
        write_colours(folder / "imagesTr" / f"{case}_0000.png", colours)
        write_colours(folder / "labelsTr" / f"{case}.png", (grey > 9) + np.uint8(grey > 15))
    declare(folder, channel_names={"0": "R", "1": "G", "2": "B"}, file_ending=".png")
    return folder


def test_colours_of_one_picture_may_be_alike_or_missing(pictures: Path) -> None:
    assert examine(pictures) == ()


def test_a_picture_of_one_colour_is_constant(pictures: Path) -> None:
    write_colours(pictures / "imagesTr" / "a_0000.png", np.full((4, 5, 3), (7, 8, 9), np.uint8))
    (finding,) = examine(pictures)
    assert (finding.rule, finding.found) == ("channel_constant", "every voxel is 7, 8, 9")


def test_only_a_whole_case_without_errors_is_visited(dataset: Path) -> None:
    for case in "cd":
        for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
            shutil.copy(dataset / part / f"a{ending}", dataset / part / f"{case}{ending}")
    declare(dataset, channel_names={"0": "T1", "1": "T2"}, numTraining=4)
    images = dataset / "imagesTr"
    for number, case in enumerate("abc"):  # d lacks its second channel
        second = np.ones(SHAPE) * np.arange(5) + number
        write(images / f"{case}_0001.nii.gz", second, GRID)
    relabel(dataset, "b", lambda values: values.fill(0.5))
    visited = examine_each(dataset, lambda case: case, in_threads(1, None)).visited
    assert sorted(visited) == ["a", "c"]
    case = visited["c"]
    assert case.images == (images / "c_0000.nii.gz", images / "c_0001.nii.gz")
    assert case.channels[1].tolist() == second.tolist()
    assert (case.labels.shape, case.geometry.spacing) == (SHAPE, GRID.spacing)


def test_ignored_voxels_are_no_foreground_of_a_label_maps_thumbnail(dataset: Path) -> None:
    def mass(folder: Path) -> float:
        look = survey(folder, None, in_threads(1, None)).cases[0].look
        assert look is not None
        assert look.label_thumbnail is not None
        return float(look.label_thumbnail.mean())

    assert mass(dataset) == pytest.approx((6 + 20) / 60, abs=0.02)
    declare(dataset, labels={"background": 0, "head": 1, "ignore": 2})
    assert mass(dataset) == pytest.approx(6 / 60, abs=0.02)


def test_a_case_that_differs_from_the_others_is_a_warning(tmp_path: Path) -> None:
    write_dataset(tmp_path, "2d", cases=8)
    path = tmp_path / "imagesTr" / "2d_003_0000.nii.gz"
    image, geometry = read_segmentation(path)
    write(path, image.astype(np.int32) * 100, geometry)
    assert rules(examine(tmp_path)) == [("intensity_outlier", "imagesTr/2d_003_0000.nii.gz")]


def test_a_ct_without_negative_values_is_a_warning(tmp_path: Path) -> None:
    write_dataset(tmp_path, "ct", cases=2)
    path = tmp_path / "imagesTr" / "ct_001_0000.nii.gz"
    image, geometry = read_segmentation(path)
    assert image.min() < -500
    write(path, image.astype(np.uint16), geometry)
    (finding,) = examine(tmp_path)
    assert (finding.rule, finding.file) == ("ct_unsigned", "imagesTr/ct_001_0000.nii.gz")
    assert "read as unsigned" in finding.found


@pytest.mark.parametrize(
    "name",
    [
        "Dataset004_Hippocampus",
        "Dataset083_MSLesion4ch",
        "Dataset101_CTOrgans",
        "Dataset118_DSB2018Nuclei",
        "Dataset120_VNCssTEM",
        "Dataset130_SpinalCordGM",
    ],
)
def test_real_datasets_have_no_finding(shared: Path, name: str) -> None:
    assert examine(shared / "data" / name, workers=1) == ()


def test_of_real_hearts_only_the_two_frames_of_each_patient_are_noticed(shared: Path) -> None:
    (finding,) = examine(shared / "data" / "Dataset027_ACDC", workers=1)
    assert (finding.rule, finding.severity) == ("patient_parted", "warning")
    assert "15 of 20 patients" in finding.found


def test_the_folds_by_patient_of_real_hearts_part_nobody(shared: Path, tmp_path: Path) -> None:
    source, folder = shared / "data" / "Dataset027_ACDC", tmp_path / "Dataset027_ACDC"
    folder.mkdir()
    shutil.copy(source / "dataset.json", folder)
    shutil.copy(source / "splits_by_patient.json", folder / "splits_final.json")
    for part in ("imagesTr", "labelsTr"):
        (folder / part).symlink_to(source / part)
    assert examine(folder, workers=1) == ()


def real_broken(shared: Path, folder: Path) -> Path:
    source = shared / "data" / "bad_cases" / "hippocampus"
    for part in ("imagesTr", "labelsTr"):
        shutil.copytree(source / part, folder / part)
        for path in (folder / part).iterdir():
            path.chmod(0o644)
        (folder / part).chmod(0o755)
    labels = {"background": 0, "Anterior": 1, "Posterior": 2}
    declare(folder, labels=labels, numTraining=1)
    return folder


def test_real_images_and_label_maps_without_partner_are_named(shared: Path, tmp_path: Path) -> None:
    assert rules(examine(real_broken(shared, tmp_path))) == [
        ("image_missing", "labelsTr/hippocampus_010.nii.gz"),
        ("label_missing", "labelsTr/hippocampus_118.nii.gz"),
        ("image_missing", "labelsTr/hippocampus_281.nii.gz"),
    ]


@pytest.mark.parametrize(
    ("other", "shape", "absent"), [("010", "(31, 50, 36)", False), ("281", "(94, 512, 512)", True)]
)
def test_a_real_label_map_of_another_case_is_on_another_grid(
    shared: Path, tmp_path: Path, other: str, shape: str, absent: bool
) -> None:
    folder = real_broken(shared, tmp_path)
    labels = folder / "labelsTr"
    (labels / f"hippocampus_{other}.nii.gz").rename(labels / "hippocampus_118.nii.gz")
    for path in labels.iterdir():
        if path.name != "hippocampus_118.nii.gz":
            path.unlink()
    findings = examine(folder)
    wanted = [("label_absent", "dataset.json")] if absent else []
    assert rules(findings) == [*wanted, ("label_grid", "labelsTr/hippocampus_118.nii.gz")]
    assert f"shape (33, 52, 37) and {shape}" in findings[-1].found
    assert "nearest neighbour" in findings[-1].remedy
