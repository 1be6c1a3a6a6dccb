"""What raw dataset files could be as they lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnseg.errors import DataError, MissingError, UsageError
from nnseg.folders import Folders
from nnseg.intake.proposal import Proposal, describe, looks_like_ct, propose, to_json
from nnseg.volume import simple_geometry, write

SHAPE = (3, 8, 9)
GEOMETRY = simple_geometry(SHAPE, (3.0, 0.9, 0.8))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def volume(path: str, *values: float) -> None:
    """Write a file whose voxels are 0 but for one of each value."""
    array = np.zeros(SHAPE, dtype=np.int16)
    array.flat[: len(values)] = values
    Path(path).parent.mkdir(exist_ok=True)
    write(Path(path), array, GEOMETRY)


def scan(path: str, *, air: int = 0) -> None:
    """Write an image with so many voxels of air."""
    volume(path, 1000, *[-1000] * air)


def look(*images: str, labels: str = "masks/*.nii", name: str = "Two", **options: Any) -> Proposal:
    return propose(Folders.of_root(Path("root")), name, images, labels, workers=1, **options)


@pytest.fixture
def two(here: Path) -> None:
    """Two cases of two channels, the first of them CT."""
    for case_id, values in (("p1", (1, 2)), ("p2", (1,))):
        scan(f"scans/{case_id}_a.nii", air=30)
        scan(f"scans/{case_id}_b.nii")
        volume(f"masks/{case_id}.nii", *values)


IMAGES = ("scans/*_a.nii", "scans/*_b.nii")


@pytest.mark.usefixtures("two")
def test_cases_channels_and_labels_are_proposed_as_the_files_tell() -> None:
    found = look(*IMAGES)
    assert found.dataset == "Dataset001_Two"
    assert found.spec.channels == ("CT", "image_1")
    assert found.spec.labels.labels == {"background": 0, "label_1": 1, "label_2": 2}
    assert (found.spec.num_training, found.spec.file_ending) == (2, ".nii")
    assert found.cases_with == {1: 2, 2: 1}
    first, second = found.cases
    assert [path.name for path in first.images] == ["p1_a.nii", "p1_b.nii"]
    assert (second.case_id, second.label) == ("p2", Path("masks/p2.nii"))
    assert (found.unlabelled, found.imageless, found.strange) == ((), (), ())
    swapped = look(*reversed(IMAGES))
    assert swapped.spec.channels == ("image_0", "CT")
    assert look(IMAGES[1]).spec.channels == ("image",)


@pytest.mark.usefixtures("two")
def test_what_is_left_out_is_listed() -> None:
    scan("scans/p3_a.nii")
    scan("scans/p4_b.nii")
    volume("masks/p5.nii", 1)
    Path("masks/p1.txt").touch()
    found = look(*IMAGES, labels="masks/*")
    assert [case.case_id for case in found.cases] == ["p1", "p2"]
    assert [path.name for path in found.unlabelled] == ["p3_a.nii", "p4_b.nii"]
    assert [path.name for path in found.imageless] == ["p5.nii"]
    assert [path.name for path in found.strange] == ["p1.txt"]
    text = describe(found)
    for line in ("2 images without a label map", "scans/p4_b.nii", "1 label maps", "masks/p1.txt"):
        assert line in text


@pytest.mark.usefixtures("two")
def test_a_labelled_case_without_a_channel_is_refused() -> None:
    Path("scans/p2_b.nii").unlink()
    scan("scans/p3_b.nii")
    volume("masks/p3.nii", 1)
    with pytest.raises(DataError) as refused:
        look(*IMAGES)
    assert "p2 has none of 'scans/*_b.nii', p3 has none of 'scans/*_a.nii'" in str(refused.value)


@pytest.mark.usefixtures("two")
def test_images_and_label_maps_of_no_common_case_are_shown() -> None:
    with pytest.raises(
        DataError, match="images are of p1_a, p1_b, p2_a, p2_b, the label maps of p1"
    ):
        look("scans/*.nii")


@pytest.mark.usefixtures("two")
def test_names_of_labels_are_taken_and_judged() -> None:
    named = look(*IMAGES, label_names={"tumour": 2, "background": 0, "ignore": 7})
    assert named.spec.labels.labels == {"background": 0, "label_1": 1, "tumour": 2, "ignore": 7}
    assert any("in no label map: ignore=7" in note for note in named.notes)
    assert any("--label NAME=1" in note for note in named.notes)
    assert not any("NAME=" in note for note in look(*IMAGES, label_names={"a": 1, "b": 2}).notes)
    for wrong in ({"a": 1, "b": 1}, {"nothing": 0}, {"background": 1}):
        with pytest.raises(UsageError, match="each integer one name, and 0 is the background"):
            look(*IMAGES, label_names=wrong)
    with pytest.raises(DataError, match="ignore is 1; it must be the largest"):
        look(*IMAGES, label_names={"ignore": 1})


@pytest.mark.usefixtures("two")
def test_names_of_channels_are_taken_and_compared_with_the_images() -> None:
    named = look(*IMAGES, channels=("CT", "T1"))
    assert named.spec.channels == ("CT", "T1")
    assert not any("channel" in note for note in named.notes)
    notes = "\n".join(look(*IMAGES, channels=("venous CT", "CT")).notes)
    assert "channel 0, venous CT, has the values of CT in each of 2 images" in notes
    assert "channel 1 is called CT and has not the values of CT" in notes
    with pytest.raises(UsageError, match="--channels names 1 channels, but the images have 2"):
        look(*IMAGES, channels=("CT",))


@pytest.mark.usefixtures("two")
def test_a_channel_is_ct_only_if_every_image_looks_like_it() -> None:
    scan("scans/p2_a.nii", air=2)
    assert look(*IMAGES).spec.channels == ("image_0", "image_1")


@pytest.mark.parametrize(
    ("values", "is_ct"),
    [
        ((-3100, -1100), True),
        ((-3101, -1100), False),
        ((-1101, -901), True),
        ((-1101,), False),
        ((-900,), True),
        ((-899,), False),
        ((0, 1000), False),
    ],
)
def test_hounsfield_units_have_air_and_nothing_below_the_padding(
    values: tuple[int, ...], is_ct: bool
) -> None:
    image = np.zeros((2, 5, 10), dtype=np.int16)
    image.flat[: len(values)] = values
    assert looks_like_ct(image) is is_ct
    assert not looks_like_ct(np.concatenate([image, np.zeros_like(image)]))  # half as much air


@pytest.mark.parametrize(
    ("mode", "channels"), [("RGB", ("R", "G", "B")), ("RGBA", ("R", "G", "B")), ("L", ("image",))]
)
def test_a_picture_has_the_channels_of_its_colours(
    here: Path, mode: str, channels: tuple[str, ...]
) -> None:
    from PIL import Image

    for case_id in ("p1", "p2"):
        Image.new(mode, (9, 8), color=3 if mode == "L" else (3, 4, 5, 255)[: len(mode)]).save(
            here / f"{case_id}.png"
        )
        Image.new("L", (9, 8), color=1).save(here / f"{case_id}_mask.png")
    found = look("*.png", labels="*_mask.png")
    assert found.spec.channels == channels
    assert len(found.cases[0].images) == 1
    if mode == "RGB":
        Image.new("L", (9, 8)).save(here / "p2.png")
        with pytest.raises(DataError, match=r"number of channels: p2\.png has 1, p1\.png has 3"):
            look("*.png", labels="*_mask.png")


def test_gaps_between_labels_stay(here: Path) -> None:
    scan("scans/p1.nii")
    volume("masks/p1.nii", 255)
    assert look("scans/*.nii").spec.labels.labels == {"background": 0, "label_255": 255}


def test_label_maps_that_cannot_be_used_are_refused_all_at_once(here: Path) -> None:
    for case_id in ("p1", "p2", "p3"):
        scan(f"scans/{case_id}.nii")
        volume(f"masks/{case_id}.nii", 1)
    for case_id in ("p1", "p3"):
        Path(f"masks/{case_id}.nii").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"(?s)2 of 3 cases failed.*case p1: masks.*case p3: masks"):
        look("scans/*.nii")
    for case_id in ("p1", "p2", "p3"):
        volume(f"masks/{case_id}.nii")
    with pytest.raises(DataError, match="no label map has a voxel over 0"):
        look("scans/*.nii")


@pytest.mark.usefixtures("two")
def test_the_number_is_the_next_of_all_that_are_there() -> None:
    for folder in ("raw/Dataset003_A", "results/Dataset0012_B", "preprocessed/notes"):
        (Path("root") / folder).mkdir(parents=True)
    assert look(*IMAGES).dataset == "Dataset013_Two"
    assert look(*IMAGES, number=4).dataset == "Dataset004_Two"
    with pytest.raises(UsageError, match="Dataset0012_B has the number 12; give another --id"):
        look(*IMAGES, number=12)


@pytest.mark.parametrize(
    ("name", "text"),
    [("Dataset007_Two", "has a number"), ("a/b", "cannot be"), ("", "cannot be"), ("a.", "cannot")],
)
@pytest.mark.usefixtures("two")
def test_a_name_that_no_dataset_can_have_is_refused(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        look(*IMAGES, name=name)


def test_patients_that_the_ids_seem_to_name_are_mentioned_with_the_option(here: Path) -> None:
    for patient in range(5):
        for frame in (1, 12):
            scan(f"scans/patient{patient:03d}_frame{frame:02d}.nii")
            volume(f"masks/patient{patient:03d}_frame{frame:02d}.nii", 1)
    found = look("scans/*.nii")
    assert found.group_regex is not None
    assert f"nnseg plan Dataset001_Two --group-regex '{found.group_regex}'" in describe(found)


@pytest.mark.usefixtures("two")
def test_a_pattern_without_files_is_named() -> None:
    with pytest.raises(MissingError, match=r"'truth/\*.nii' matches no image file"):
        look(*IMAGES, labels="truth/*.nii")


@pytest.mark.usefixtures("two")
def test_a_proposal_is_told_in_words_and_in_json() -> None:
    found = look(*IMAGES, label_names={"tumour": 2})
    text = describe(found)
    assert text.startswith("Dataset001_Two: 2 cases; case p1, for one, is\n  channel 0, CT: scans/")
    assert "1 label_1 (2), 2 tumour (1)" in text
    assert max(map(len, text.splitlines())) <= 100
    data = to_json(found)
    assert data["dataset_json"]["labels"] == {"background": 0, "label_1": 1, "tumour": 2}
    assert data["cases"]["p2"] == {
        "images": ["scans/p2_a.nii", "scans/p2_b.nii"],
        "label": "masks/p2.nii",
    }
    assert data["cases_with_label"] == {"1": 2, "2": 1}
