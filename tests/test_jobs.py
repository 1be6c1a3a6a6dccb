import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnseg.dataset import DatasetSpec
from nnseg.errors import DataError, MissingError, UsageError
from nnseg.folders import proof_file
from nnseg.jobs import find_prediction_jobs, find_scoring_jobs, find_unpredicted
from nnseg.labels import Labels

LABELS = Labels(labels={"background": 0, "lesion": 1})
ONE = DatasetSpec(channels=("CT",), labels=LABELS, num_training=0, file_ending=".nii.gz")
TWO = DatasetSpec(channels=("T1", "T2"), labels=LABELS, num_training=0, file_ending=".nii.gz")


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


# ---------------------------------------------------------------- predicting


def test_a_folder_gives_a_job_for_each_case_with_its_channels_in_order(tmp_path: Path) -> None:
    images = touch(
        tmp_path / "in", "b_0001.nii.gz", "b_0000.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz",
        "notes.txt", "._a_0000.nii.gz",
    )  # fmt: skip
    first, second = find_prediction_jobs(images, tmp_path / "out", TWO)
    assert (first.case_id, second.case_id) == ("a", "b")
    assert second.images == (images / "b_0000.nii.gz", images / "b_0001.nii.gz")
    assert second.target == tmp_path / "out" / "b.nii.gz"
    assert first.fault is None


def test_images_whose_names_are_no_channel_of_a_case_are_named_in_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = touch(tmp_path / "in", "a_0000.nii.gz", "b.nii.gz", "c_0.mha", "notes.txt", "._d.nii")
    (job,) = find_prediction_jobs(images, tmp_path / "out", ONE)
    assert job.case_id == "a"
    warned = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert warned == [
        f"{images}: b.nii.gz, c_0.mha are passed over; images must be named CASE_0000, "
        "CASE_0001, ..."
    ]
    caplog.clear()
    find_prediction_jobs(touch(tmp_path / "good", "a_0000.tif", "a.json"), tmp_path / "out", ONE)
    assert not caplog.messages


def test_a_case_with_other_channels_is_a_job_with_a_fault(tmp_path: Path) -> None:
    images = touch(tmp_path / "in", "a_0000.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz")
    first, second = find_prediction_jobs(images, tmp_path / "out", TWO)
    assert first.fault is not None
    assert "case a: " in first.fault
    assert "lacks a_0001.nii.gz" in first.fault
    assert second.fault is None


@pytest.mark.parametrize(
    ("name", "shown"),
    [("new\nline", r"new\x0aline"), ("caf\udce9", r"caf\xe9"), ("\r" * 99, ""), ("é" * 101, "")],
    ids=["control", "no UTF-8", "long once shown", "long"],
)
def test_a_case_whose_id_is_no_text_or_too_long_is_a_job_with_a_fault_and_the_others_go_on(
    tmp_path: Path, name: str, shown: str
) -> None:
    images = touch(tmp_path / "in", f"{name}_0000.nii.gz", "a_0000.nii.gz", "Icon\r")
    jobs = find_prediction_jobs(images, tmp_path / "out", ONE)
    good, bad = sorted(jobs, key=lambda job: job.case_id != "a")
    assert (good.case_id, good.fault) == ("a", None)
    assert shown in bad.case_id
    assert bad.fault is not None
    assert bad.fault.startswith(f"case {bad.case_id}: {images}: the name {shown}")
    assert bad.fault.endswith("; rename the file")
    assert bad.target.name.isprintable()
    assert not proof_file(bad.target).exists()


def test_two_files_for_one_channel_are_the_fault_of_their_case(tmp_path: Path) -> None:
    images = touch(tmp_path / "in", "a_0000.nii.gz", "a_0000.mha", "b_0000.mha")
    first, second = find_prediction_jobs(images, tmp_path / "out", ONE)
    assert first.fault is not None
    assert "a_0000.mha and" in first.fault
    assert second.fault is None
    assert second.target == tmp_path / "out" / "b.nii.gz"


def picture(path: Path, *colours: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((4, 5, *colours), np.uint8)).save(path)
    return path


RGB = DatasetSpec(channels=("R", "G", "B"), labels=LABELS, num_training=0, file_ending=".jpg")


def test_a_picture_may_hold_all_channels_and_jpegs_are_predicted_as_png(tmp_path: Path) -> None:
    image = picture(tmp_path / "in" / "a_0000.jpg", 3)
    (job,) = find_prediction_jobs(image.parent, tmp_path / "out", RGB)
    assert (job.images, job.fault) == ((image,), None)
    assert job.target == tmp_path / "out" / "a.png"
    (alone,) = find_prediction_jobs(image, tmp_path / "out", RGB)
    assert (alone.case_id, alone.target) == ("a_0000", tmp_path / "out" / "a_0000.png")
    with pytest.raises(UsageError, match="the model wants 1 channels"):
        find_prediction_jobs(image, tmp_path / "out", ONE)
    with pytest.raises(UsageError, match=r"seg\.jpg: JPEG does not keep values; give a \.png"):
        find_prediction_jobs(image, tmp_path / "seg.jpg", RGB)


@pytest.mark.parametrize(
    ("target", "file"), [("out", "out/scan.nii.gz"), ("seg.nii.gz", "seg.nii.gz")]
)
def test_one_image_goes_to_a_file_or_under_its_own_name(
    tmp_path: Path, target: str, file: str
) -> None:
    image = touch(tmp_path / "in", "scan.nii.gz") / "scan.nii.gz"
    (job,) = find_prediction_jobs(image, tmp_path / target, ONE)
    assert (job.images, job.target) == ((image,), tmp_path / file)
    assert job.case_id == file.removesuffix(".nii.gz").removeprefix("out/")


def test_an_output_that_is_the_input_is_refused(tmp_path: Path) -> None:
    images = touch(tmp_path / "in", "a_0000.nii.gz")
    same = images / ".." / "in"
    for source, target in ((images, same), (images / "a_0000.nii.gz", same)):
        with pytest.raises(UsageError, match="the output must not be the input"):
            find_prediction_jobs(source, target, ONE)


def test_files_that_no_prediction_made_are_not_replaced(tmp_path: Path) -> None:
    images = touch(tmp_path / "in", "a_0000.nii.gz")
    labels = touch(tmp_path / "labels", "a.nii.gz")
    for marker in (None, "run_evaluate.json"):  # scoring a folder does not make it ours
        touch(labels, *([marker] if marker else []))
        with pytest.raises(UsageError, match=r"a\.nii\.gz is there, and no prediction of ours"):
            find_prediction_jobs(images, labels, ONE)
    for marker in ("run.json", "run_0_of_2.json"):
        ours = touch(tmp_path / marker, "a.nii.gz", marker)
        assert len(find_prediction_jobs(images, ours, ONE)) == 1


@pytest.mark.parametrize("target", ["labels/a.nii.gz", "labels"])
def test_one_image_replaces_no_file_that_no_prediction_made_unless_told_to(
    tmp_path: Path, target: str
) -> None:
    image = touch(tmp_path / "in", "a.nii.gz") / "a.nii.gz"
    labels = touch(tmp_path / "labels", "a.nii.gz")
    with pytest.raises(UsageError, match=r"no prediction of ours made it; .* or --overwrite"):
        find_prediction_jobs(image, tmp_path / target, ONE)
    assert len(find_prediction_jobs(image, tmp_path / target, ONE, overwrite=True)) == 1
    for mark in ("a.nii.gz.proof.json", "a.run.log"):  # done; or begun, and killed
        touch(labels, mark)
        assert len(find_prediction_jobs(image, tmp_path / target, ONE)) == 1
        (labels / mark).unlink()


def test_a_folder_of_images_goes_over_proven_results_of_single_ones(tmp_path: Path) -> None:
    images = touch(tmp_path / "in", "a_0000.nii.gz", "b_0000.nii.gz")
    ours = touch(tmp_path / "out", "a.nii.gz", "a.nii.gz.proof.json", "a.run.json")
    assert len(find_prediction_jobs(images, ours, ONE)) == 2
    touch(ours, "b.nii.gz")
    with pytest.raises(UsageError, match=r"b\.nii\.gz is there, and no prediction of ours"):
        find_prediction_jobs(images, ours, ONE)


def test_what_cannot_be_predicted_is_refused(tmp_path: Path) -> None:
    image = touch(tmp_path, "scan.nii.gz") / "scan.nii.gz"
    with pytest.raises(MissingError, match="does not exist; give an image or a folder"):
        find_prediction_jobs(tmp_path / "gone", tmp_path / "out", ONE)
    with pytest.raises(UsageError, match="the model wants 2 channels; give a folder"):
        find_prediction_jobs(image, tmp_path / "out", TWO)
    with pytest.raises(UsageError, match="is a file; the images of a folder go into a folder"):
        find_prediction_jobs(tmp_path, image, ONE)
    with pytest.raises(DataError, match=r"no file is named CASE_0000\.nii\.gz"):
        find_prediction_jobs(tmp_path, tmp_path / "out", ONE)


# ---------------------------------------------------------------- scoring


def test_predictions_are_paired_with_their_references(tmp_path: Path) -> None:
    truth = touch(tmp_path / "truth", "a.nii.gz", "b.nii.gz", "c.nii.gz")
    found = touch(tmp_path / "found", "c.nii.gz", "a.nii.gz", "._a.nii.gz", "run.json")
    jobs = find_scoring_jobs(truth, found, ".nii.gz")
    assert [job.case_id for job in jobs] == ["a", "c"]
    assert jobs[1].reference == truth / "c.nii.gz"
    assert jobs[1].prediction == found / "c.nii.gz"
    assert find_unpredicted(truth, jobs, ".nii.gz") == ("b",)
    assert find_unpredicted(truth, jobs[:1], ".nii.gz") == ("b", "c")


def test_two_files_are_one_pair_whatever_their_names(tmp_path: Path) -> None:
    folder = touch(tmp_path, "truth.nii.gz", "found.nii.gz")
    (job,) = find_scoring_jobs(folder / "truth.nii.gz", folder / "found.nii.gz", ".nii.gz")
    assert (job.case_id, job.reference.name) == ("found", "truth.nii.gz")
    assert find_unpredicted(job.reference, [job], ".nii.gz") == ()


def test_references_may_end_as_label_maps_can_and_predictions_as_the_dataset_says(
    tmp_path: Path,
) -> None:
    truth = touch(tmp_path / "truth", "a.mha", "b.png", "b.json")
    found = touch(tmp_path / "found", "a.nii.gz", "b.nii.gz", "progress.png")
    jobs = find_scoring_jobs(truth, found, ".nii.gz")
    assert [job.reference.name for job in jobs] == ["a.mha", "b.png"]
    touch(truth, "a.nii.gz")
    with pytest.raises(DataError, match=r"case a: .*a\.mha and .*a\.nii\.gz both claim"):
        find_scoring_jobs(truth, found, ".nii.gz")


def test_predictions_of_jpeg_images_are_png(tmp_path: Path) -> None:
    truth, found = touch(tmp_path / "truth", "a.png"), touch(tmp_path / "found", "a.png")
    (job,) = find_scoring_jobs(truth, found, ".jpg")
    assert (job.case_id, job.prediction) == ("a", found / "a.png")


def test_what_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    truth, found = touch(tmp_path / "truth"), touch(tmp_path / "found")
    with pytest.raises(MissingError, match="gone does not exist"):
        find_scoring_jobs(truth, tmp_path / "gone", ".nii.gz")
    with pytest.raises(DataError, match=r"no file ends in \.nii\.gz; nothing to score"):
        find_scoring_jobs(truth, found, ".nii.gz")
    touch(found, "a.nii.gz")
    for pair in ((truth, found / "a.nii.gz"), (found / "a.nii.gz", truth)):
        with pytest.raises(UsageError, match="give two label maps or two folders"):
            find_scoring_jobs(*pair, ".nii.gz")
    with pytest.raises(DataError, match="a prediction needs its reference"):
        find_scoring_jobs(truth, found, ".nii.gz")


def test_a_prediction_finds_its_reference_though_its_name_is_composed_otherwise(
    tmp_path: Path,
) -> None:
    truth = touch(tmp_path / "truth", "cafe\u0301.nii.gz")
    made = touch(tmp_path / "made", "caf\xe9.nii.gz")
    (job,) = find_scoring_jobs(truth, made, ".nii.gz")
    assert (job.case_id, job.reference) == ("caf\xe9", truth / "cafe\u0301.nii.gz")
    assert find_unpredicted(truth, [job], ".nii.gz") == ()


def test_what_a_proof_lists_beside_its_label_map_is_not_scored(tmp_path: Path) -> None:
    truth = touch(tmp_path / "truth", "a.nii.gz", "b.nii.gz")
    found = touch(tmp_path / "found", "a.nii.gz", "a_entropy.nii.gz", "b.nii.gz")
    outputs = {"a.nii.gz": "1", "a_entropy.nii.gz": "2"}
    proof = {"label_map": "a.nii.gz", "outputs": outputs}
    (found / "a.nii.gz.proof.json").write_text(json.dumps(proof))
    for broken in ("", "[]", '{"outputs": 1}'):  # hides nothing
        (found / "b.nii.gz.proof.json").write_text(broken)
        jobs = find_scoring_jobs(truth, found, ".nii.gz")
        assert [job.case_id for job in jobs] == ["a", "b"]
    (found / "a.nii.gz.proof.json").unlink()
    with pytest.raises(DataError, match="a prediction needs its reference"):
        find_scoring_jobs(truth, found, ".nii.gz")
