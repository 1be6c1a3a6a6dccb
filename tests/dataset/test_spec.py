import json
import re
from pathlib import Path
from typing import Any

import pytest

from nnseg.dataset import ListedCase, parse_spec, read_spec, spec_to_json
from nnseg.errors import DataError, MissingError

JSON: dict[str, Any] = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "tumour": [1, 2], "core": 2},
    "regions_class_order": [1, 2],
    "numTraining": 3,
    "file_ending": ".nii.gz",
    "licence": "CC0",
    "overwrite_image_reader_writer": "SimpleITKIO",
}


def test_a_spec_survives_the_way_to_json_and_back_with_its_unknown_keys(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(JSON))
    spec = read_spec(path)
    assert spec.channels == ("T1", "T2")
    assert spec.others == {"licence": "CC0", "overwrite_image_reader_writer": "SimpleITKIO"}
    assert spec_to_json(spec) == JSON


def test_channels_are_in_the_order_of_their_numbers_not_of_their_text() -> None:
    names = {str(i): f"c{i}" for i in reversed(range(11))}
    spec = parse_spec(JSON | {"channel_names": names}, "x")
    assert spec.channels == tuple(f"c{i}" for i in range(11))


def test_modality_is_understood_as_channel_names() -> None:
    data = {key: value for key, value in JSON.items() if key != "channel_names"}
    assert parse_spec(data | {"modality": {"0": "CT"}}, "x").channels == ("CT",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numTraining": "3"}, "x: numTraining: input should be a valid integer"),
        ({"labels": {"background": 0, "a": "1"}}, "x: labels.a"),
        ({"labels": {"background": 0, "a": 1.5}}, "x: labels.a"),
        ({"channel_names": {"0": "T1", "2": "T2"}}, "keys 0, 2; they must be 0, 1, 2"),
        ({"channel_names": {}}, "channel_names is empty"),
        ({"channel_names": {"0": "T1\x1b[2J"}}, r"channel_names has 'T1\\x1b\[2J'; a name must be"),
        ({"modality": {"0": "T1"}}, "both channel_names and modality"),
        ({"file_ending": "nii.gz"}, "'nii.gz'; it must begin with a dot"),
        ({"file_ending": "./../../evil.nii.gz"}, r"evil\.nii\.gz', which cannot be read"),
        ({"file_ending": ".svg"}, "x: file_ending is '.svg', which cannot be read; convert"),
        ({"regions_class_order": [1]}, "x: regions_class_order is of 1 entries"),
    ],
)
def test_faults_of_dataset_json_are_named_by_their_key_in_the_file(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        parse_spec(JSON | change, "x")


def test_several_faults_of_dataset_json_are_reported_at_once() -> None:
    with pytest.raises(DataError, match="file_ending") as caught:
        parse_spec({"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}}, "x")
    assert "numTraining: field required" in str(caught.value)
    assert "num_training" not in str(caught.value)


def test_a_missing_dataset_json_is_no_wrong_one(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"dataset\.json does not exist"):
        read_spec(tmp_path / "dataset.json")


def test_a_list_is_no_dataset_json() -> None:
    with pytest.raises(DataError, match="must hold a JSON object, not a list"):
        parse_spec([], "x")


LISTED = {"b": {"images": ["mri/b.nii.gz", "b2.mha"], "label": "truth/b.png"}}


def test_the_map_of_cases_is_kept_as_it_was() -> None:
    spec = parse_spec(JSON | {"dataset": LISTED}, "x")
    assert spec.listed == {"b": ListedCase(images=("mri/b.nii.gz", "b2.mha"), label="truth/b.png")}
    assert spec_to_json(spec) == JSON | {"dataset": LISTED}
    assert parse_spec(JSON, "x").listed is None


@pytest.mark.parametrize(
    "path",
    [
        "/data/b.nii.gz", "../b.nii.gz", "mri/../../b.nii.gz", "", "~/b.nii.gz", "$DATA/b.nii.gz",
        "${DATA}/b.nii.gz", "%DATA%\\b.nii.gz", "C:\\b.nii.gz", "C:b.nii.gz", "\\\\host\\b.nii.gz",
        "\\b.nii.gz", "mri\\..\\..\\b.nii.gz",
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["images", "label"])
def test_a_path_that_leaves_the_dataset_is_refused_with_a_remedy(path: str, key: str) -> None:
    case = LISTED["b"] | {key: [path] if key == "images" else path}
    message = f"x: dataset.b has {path!r}, which does not stay in the dataset's folder; give a path"
    with pytest.raises(DataError, match=re.escape(message)):
        parse_spec(JSON | {"dataset": {"b": case}}, "x")


def test_a_path_may_hold_dots_and_signs_that_lead_nowhere() -> None:
    images = ["./mri/b..v2.nii.gz", "a$b.nii.gz", "..b.nii.gz", "50%.nii.gz"]
    spec = parse_spec(JSON | {"dataset": {"b": {"images": images, "label": "b.mha"}}}, "x")
    assert spec.listed == {"b": ListedCase(images=tuple(images), label="b.mha")}


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"../b": LISTED["b"]}, r"x: dataset has the case '\.\./b'; it must begin with a letter"),
        ({"a/b": LISTED["b"]}, "x: dataset has the case 'a/b'"),
        ({"b": {"images": [], "label": "b.mha"}}, "x: dataset.b has no images; list a file"),
        ({"b": {"images": ["b.mha"]}}, "x: dataset.b.label: field required"),
        ("Hippocampus", "x: dataset: input should be an object"),
    ],
)
def test_a_map_that_makes_no_sense_is_refused(listed: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_spec(JSON | {"dataset": listed}, "x")


@pytest.mark.parametrize(("images", "labels"), [(".nii.gz", ".nii.gz"), (".jpg", ".png")])
def test_label_maps_of_jpeg_images_are_png(images: str, labels: str) -> None:
    assert parse_spec(JSON | {"file_ending": images}, "x").label_ending == labels


def test_labels_may_have_gaps() -> None:
    spec = parse_spec(JSON | {"labels": {"background": 0, "cell": 255}}, "x")
    assert spec.labels.values == (0, 255)
