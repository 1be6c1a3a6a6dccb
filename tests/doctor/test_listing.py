import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnseg.dataset.groups import GroupRule
from nnseg.doctor.findings import Finding, Notes
from nnseg.doctor.listing import Listing, judge_folds, list_dataset
from nnseg.volume import simple_geometry, write

SHAPE = (3, 4, 5)
GRID = simple_geometry(SHAPE, (3.0, 2.0, 1.0))
JSON: dict[str, Any] = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "head": 1},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


def declare(folder: Path, **changes: Any) -> None:
    data = {key: value for key, value in (JSON | changes).items() if value is not None}
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(data))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def listed(folder: Path) -> tuple[Listing, list[Finding]]:
    notes = Notes(folder)
    return list_dataset(notes), notes.findings


def rules(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.rule, finding.file) for finding in findings]


def test_a_file_for_each_channel_is_listed_with_its_name(tmp_path: Path) -> None:
    declare(tmp_path)
    touch(tmp_path, "imagesTr/a_0001.nii.gz", "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    listing, findings = listed(tmp_path)
    assert findings == []
    images = tmp_path / "imagesTr"
    assert listing.images == {
        "a": {images / "a_0000.nii.gz": ("T1",), images / "a_0001.nii.gz": ("T2",)}
    }
    assert listing.labels == {"a": tmp_path / "labelsTr" / "a.nii.gz"}


def test_files_may_end_in_another_format_than_the_usual_one(tmp_path: Path) -> None:
    declare(tmp_path, channel_names={"0": "T1"})
    touch(tmp_path, "imagesTr/a_0000.mha", "labelsTr/a.nrrd")
    assert listed(tmp_path)[1] == []


def test_two_files_that_claim_to_be_one_are_an_error(tmp_path: Path) -> None:
    declare(tmp_path, channel_names={"0": "T1"})
    touch(
        tmp_path, "imagesTr/a_0000.mha", "imagesTr/a_0000.nii", "labelsTr/a.mha", "labelsTr/a.nii"
    )
    listing, findings = listed(tmp_path)
    assert rules(findings) == [
        ("file_twice", "imagesTr/a_0000.nii"),
        ("file_twice", "labelsTr/a.nii"),
    ]
    assert "a_0000.mha" in findings[0].found
    assert list(listing.images["a"]) == [tmp_path / "imagesTr" / "a_0000.mha"]


def write_picture(path: Path, colours: int) -> None:
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    shape = (4, 5) if colours == 1 else (4, 5, colours)
    Image.fromarray(np.zeros(shape, np.uint8)).save(path)


def test_one_picture_may_hold_all_channels(tmp_path: Path) -> None:
    declare(tmp_path, channel_names={"0": "R", "1": "G", "2": "B"}, file_ending=".png")
    write_picture(tmp_path / "imagesTr" / "a_0000.png", 3)
    write_picture(tmp_path / "labelsTr" / "a.png", 1)
    listing, findings = listed(tmp_path)
    assert findings == []
    assert list(listing.images["a"].values()) == [("R", "G", "B")]


def test_a_grey_picture_does_not_hold_three_channels(tmp_path: Path) -> None:
    declare(tmp_path, channel_names={"0": "R", "1": "G", "2": "B"}, file_ending=".png")
    write_picture(tmp_path / "imagesTr" / "a_0000.png", 1)
    write_picture(tmp_path / "labelsTr" / "a.png", 1)
    assert rules(listed(tmp_path)[1]) == [
        ("channel_missing", "imagesTr/a_0001.png"),
        ("channel_missing", "imagesTr/a_0002.png"),
    ]


def test_the_spacing_beside_a_tiff_file_is_no_strange_name(tmp_path: Path) -> None:
    declare(tmp_path, channel_names={"0": "EM"}, file_ending=".tif")
    write(tmp_path / "labelsTr" / "a.tif", np.zeros(SHAPE, np.uint8), GRID)
    write(tmp_path / "imagesTr" / "a_0000.tif", np.zeros(SHAPE, np.uint8), GRID)
    (tmp_path / "imagesTr" / "a_0000.json").rename(tmp_path / "imagesTr" / "a.json")
    assert listed(tmp_path)[1] == []
    touch(tmp_path, "imagesTr/b.json")
    assert rules(listed(tmp_path)[1]) == [("file_name", "imagesTr/b.json")]


def test_a_jpeg_is_no_label_map(tmp_path: Path) -> None:
    declare(tmp_path, channel_names={"0": "photo"}, file_ending=".jpg")
    touch(tmp_path, "imagesTr/a_0000.jpg", "labelsTr/a.jpg")
    findings = listed(tmp_path)[1]
    assert rules(findings) == [("file_name", "labelsTr/a.jpg"), ("label_missing", "labelsTr/a.png")]
    assert "CASE.png" in findings[0].remedy


def declare_listed(folder: Path, **cases: Any) -> None:
    declare(folder, numTraining=len(cases), dataset=cases)


def test_the_cases_that_dataset_json_lists_are_used_wherever_they_lie(tmp_path: Path) -> None:
    declare_listed(tmp_path, a={"images": ["x/1.nii", "y/1.nii"], "label": "z/1.nii"})
    touch(tmp_path, "x/1.nii", "y/1.nii", "z/1.nii", "imagesTr/b_0000.nii")
    listing, findings = listed(tmp_path)
    assert findings == []
    assert listing.images == {
        "a": {tmp_path / "x" / "1.nii": ("T1",), tmp_path / "y" / "1.nii": ("T2",)}
    }
    assert listing.labels == {"a": tmp_path / "z" / "1.nii"}


def test_a_listed_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    declare_listed(tmp_path, a={"images": ["x/1.nii", "y/1.nii"], "label": "z/1.nii"})
    touch(tmp_path, "x/1.nii")
    assert rules(listed(tmp_path)[1]) == [
        ("listed_missing", "y/1.nii"),
        ("listed_missing", "z/1.nii"),
    ]


def test_too_few_or_too_many_listed_files_are_an_error(tmp_path: Path) -> None:
    declare_listed(
        tmp_path,
        a={"images": ["1.nii"], "label": "2.nii"},
        b={"images": ["1.nii", "2.nii", "3.nii"], "label": "2.nii"},
    )
    touch(tmp_path, "1.nii", "2.nii", "3.nii")
    assert rules(listed(tmp_path)[1]) == [
        ("channel_missing", "dataset.json"),
        ("channel_undeclared", "3.nii"),
    ]


def test_the_count_of_listed_cases_is_checked(tmp_path: Path) -> None:
    declare(tmp_path, numTraining=3, dataset={})
    assert rules(listed(tmp_path)[1]) == [("case_count", "dataset.json")]


def test_a_wrong_list_of_cases_is_one_error(tmp_path: Path) -> None:
    declare_listed(tmp_path, a={"images": ["../1.nii"], "label": "2.nii"})
    listing, findings = listed(tmp_path)
    assert rules(findings) == [("dataset_json_invalid", "dataset.json")]
    assert listing.images == {}


# ---------------------------------------------------------------- patients and folds

FRAMES = [f"p{patient}_frame{frame}" for patient in range(5) for frame in (1, 2)]
BY_PATIENT = [
    {
        "train": [case_id for case_id in FRAMES if not case_id.startswith(f"p{number}")],
        "val": [case_id for case_id in FRAMES if case_id.startswith(f"p{number}")],
    }
    for number in range(5)
]


@pytest.fixture
def frames(tmp_path: Path) -> Listing:
    declare(tmp_path, channel_names={"0": "MRI"}, numTraining=10)
    for case_id in FRAMES:
        touch(tmp_path, f"imagesTr/{case_id}_0000.nii.gz", f"labelsTr/{case_id}.nii.gz")
    listing, findings = listed(tmp_path)
    assert findings == []
    return listing


def test_probable_patients_are_noticed_with_the_option_that_keeps_them_together(
    frames: Listing,
) -> None:
    (finding,) = judge_folds(frames, None, None)
    assert (finding.rule, finding.severity, finding.file) == (
        "patient_parted",
        "warning",
        "imagesTr",
    )
    assert finding.found.startswith("case ids look like several cases of one patient (p")
    assert r"--group-regex '(.*\d)\D+\d'" in finding.remedy
    assert finding.remedy.startswith("if they are")


def test_a_given_rule_is_no_guess(frames: Listing) -> None:
    (finding,) = judge_folds(frames, GroupRule(regex=r"(p\d)"), None)
    assert finding.found.startswith("the folds that would be made part the cases of")
    assert "--group-regex '(p\\d)'" in finding.remedy


@pytest.mark.parametrize("own", [True, False])
def test_folds_that_are_there_are_judged_instead(
    frames: Listing, own: bool, tmp_path: Path
) -> None:
    path = frames.folder / "splits_final.json" if own else tmp_path / "made.json"
    path.write_text(json.dumps(BY_PATIENT))
    assert judge_folds(frames, None, path) == ()
    part = [{"train": ["p0_frame1"], "val": ["p0_frame2"]}]
    path.write_text(json.dumps(part))
    (finding,) = judge_folds(frames, None, path)
    assert "part the cases of 1 of 5 patients: fold 0 trains on p0_frame1" in finding.found
    assert finding.file == ("splits_final.json" if own else "imagesTr")
    path.write_text("[")
    assert judge_folds(frames, None, path) == ()


def test_the_datasets_own_folds_come_before_ours(frames: Listing, tmp_path: Path) -> None:
    (frames.folder / "splits_final.json").write_text(json.dumps(BY_PATIENT))
    made = tmp_path / "made.json"
    made.write_text(json.dumps([{"train": ["p0_frame1"], "val": ["p0_frame2"]}]))
    assert judge_folds(frames, None, made) == ()


def test_a_name_that_is_no_text_is_an_error_and_the_others_are_listed(tmp_path: Path) -> None:
    declare(tmp_path, channel_names={"0": "T1"})
    touch(tmp_path, "imagesTr/caf\udce9_0000.nii.gz", "labelsTr/caf\udce9.nii.gz")
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    listing, findings = listed(tmp_path)
    assert rules(findings) == [
        ("name_unusable", r"imagesTr/caf\xe9_0000.nii.gz"),
        ("name_unusable", r"labelsTr/caf\xe9.nii.gz"),
    ]
    assert listing.case_ids == ["a"]


def test_an_id_that_leaves_no_room_for_endings_is_an_error(tmp_path: Path) -> None:
    declare(tmp_path, channel_names={"0": "T1"}, numTraining=2)
    fits, long = "\xe9" * 100, "\xe9" * 100 + "x"  # 200 and 201 bytes
    for case in (fits, long):
        touch(tmp_path, f"imagesTr/{case}_0000.nii.gz", f"labelsTr/{case}.nii.gz")
    _, findings = listed(tmp_path)
    assert rules(findings) == [("name_unusable", f"imagesTr/{long}_0000.nii.gz")]
    assert "takes 201 bytes; 200 are the most" in findings[0].found


def test_an_image_and_a_label_map_whose_names_look_alike_are_one_case(tmp_path: Path) -> None:
    declare(tmp_path, channel_names={"0": "T1"})
    touch(tmp_path, "imagesTr/caf\xe9_0000.nii.gz", "labelsTr/cafe\u0301.nii.gz")
    listing, findings = listed(tmp_path)
    assert findings == []
    assert listing.labels == {"caf\xe9": tmp_path / "labelsTr" / "cafe\u0301.nii.gz"}


def test_a_listed_path_that_is_too_long_is_a_finding(tmp_path: Path) -> None:
    case = {"images": ["x" * 5000], "label": "a.nii.gz"}
    declare(tmp_path, channel_names={"0": "T1"}, dataset={"a": case})
    touch(tmp_path, "a.nii.gz")
    _, findings = listed(tmp_path)
    assert ("listed_missing", "x" * 5000) in rules(findings)
