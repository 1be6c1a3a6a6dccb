"""Folders of images: what is written, what is kept, and what is refused."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny import CPU, FLAT, stop_after

from nnseg import pipeline, record
from nnseg.commit import sha256
from nnseg.dataset import read_spec
from nnseg.errors import DataError, MissingError, PartlyDoneError, StoppedError, UsageError
from nnseg.folders import Folders
from nnseg.predicting import predict
from nnseg.predictor import Predictor, load
from nnseg.runlog import RunReport
from nnseg.volume import read_image, read_segmentation, write


@pytest.fixture(scope="module")
def predictor(flat: Folders) -> Predictor:
    return load(flat.fold(FLAT, "nnseg", "2d", "0", 0), **CPU)


def report_in(folder: Path) -> RunReport:
    return record.load(RunReport, folder / "run.json")


def test_predictions_lie_on_exactly_the_grid_of_their_images(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    images = flat.raw_folder(FLAT) / "imagesTs"
    written = predict(predictor, images, tmp_path / "out")
    assert sorted(written) == [path.name[:-12] for path in sorted(images.iterdir())]
    for case_id, path in written.items():
        image = read_image((images / f"{case_id}_0000.nii.gz",))
        found, geometry = read_segmentation(path)
        assert geometry == image.geometry
        assert found.shape == image.image.shape[1:]
        assert set(np.unique(found)) <= {0, 1, 2}
    again = predict(predictor, images, tmp_path / "again")
    assert [sha256(path) for path in written.values()] == [sha256(p) for p in again.values()]


def test_a_prediction_says_what_it_was_made_from(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    images = flat.raw_folder(FLAT) / "imagesTs"
    written = predict(predictor, images, tmp_path)
    report = report_in(tmp_path)
    assert report.command == "predict"
    assert report.inputs == {str(path): sha256(path) for path in images.iterdir()}
    assert report.outputs == {str(path): sha256(path) for path in written.values()}
    assert report.cases == dict.fromkeys(written, "done")
    assert report.arguments == {
        "source": str(images),
        "target": str(tmp_path),
        "step": 0.5,
        "mirror": True,
        "maps": [],
        "probabilities": None,
        "statistics": False,
    }
    assert read_spec(tmp_path / "dataset.json").labels == predictor.spec.labels


def test_predictions_are_scored_against_the_truth(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    raw = flat.raw_folder(FLAT)
    predict(predictor, raw / "imagesTs", tmp_path)
    spec = pipeline.spec_for_evaluation(raw / "labelsTs", tmp_path, None)
    summary = pipeline.evaluate(raw / "labelsTs", tmp_path, spec.labels, ".nii.gz", workers=1)
    assert len(summary.cases) == 3
    assert pipeline.read_summary(tmp_path, spec.labels) == summary
    perfect = pipeline.evaluate(raw / "labelsTs", raw / "labelsTs", spec.labels, ".nii.gz")
    assert perfect.foreground_mean.dice == 1
    (raw / "labelsTs" / "summary.json").unlink()


def test_bad_files_among_the_images_are_named_and_the_others_are_done(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    images, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(flat.raw_folder(FLAT) / "imagesTs", images)
    good = sorted(path.name[:-12] for path in images.iterdir())
    whole = images / f"{good[0]}_0000.nii.gz"
    (images / "cut_0000.nii.gz").write_bytes(whole.read_bytes()[:500])
    image = read_image((whole,))
    values = image.image[0].astype(np.float32)
    values[0, 3, 4] = np.nan
    write(images / "nan_0000.nii.gz", values, image.geometry)
    shutil.copy(whole, images / "lost_0001.nii.gz")  # its channel 0000 is missing
    with pytest.raises(PartlyDoneError) as raised:
        predict(predictor, images, out)
    assert raised.value.exit_code == 6
    text = str(raised.value)
    assert text.startswith("3 of 6 cases failed:")
    for name in ("cut", "nan", "lost"):
        assert f"\n  case {name}: " in text
        assert not (out / f"{name}.nii.gz").exists()
    assert all((out / f"{case_id}.nii.gz").is_file() for case_id in good)
    assert not list(out.glob(".part-*"))
    report = report_in(out)
    assert report.exit_code == 6
    assert {name for name, state in report.cases.items() if state == "done"} == set(good)


def test_if_every_image_is_bad_nothing_is_partly_done(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cut_0000.nii.gz").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"case cut: .*is damaged"):
        predict(predictor, tmp_path / "in", tmp_path / "out")


def test_the_output_must_not_be_the_input(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    images = tmp_path / "in"
    shutil.copytree(flat.raw_folder(FLAT) / "imagesTs", images)
    for target in (images, tmp_path / "in" / ".." / "in"):
        with pytest.raises(UsageError, match="the output must not be the input"):
            predict(predictor, images, target)
    file = next(images.iterdir())
    with pytest.raises(UsageError, match="the output must not be the input"):
        predict(predictor, file, file)


def test_one_file_is_predicted_to_one_file(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    image = sorted((flat.raw_folder(FLAT) / "imagesTs").iterdir())[0]
    written = predict(predictor, image, tmp_path / "mine.nii.gz")
    assert written == {"mine": tmp_path / "mine.nii.gz"}
    assert read_segmentation(written["mine"])[1] == read_image((image,)).geometry
    assert not (tmp_path / "dataset.json").exists()


def test_shares_of_the_cases_are_disjoint_and_whole(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    images = flat.raw_folder(FLAT) / "imagesTs"
    shares = [set(predict(predictor, images, tmp_path, part=part, parts=2)) for part in (0, 1)]
    assert not shares[0] & shares[1]
    assert len(shares[0] | shares[1]) == 3


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz")}


def test_what_is_proven_to_be_done_is_not_done_again(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    images = flat.raw_folder(FLAT) / "imagesTs"
    written = predict(predictor, images, tmp_path)
    before = times(tmp_path)
    assert predict(predictor, images, tmp_path) == written
    assert times(tmp_path) == before
    assert report_in(tmp_path).cases == dict.fromkeys(written, "done")
    predict(predictor, images, tmp_path, overwrite=True)
    after = times(tmp_path)
    assert all(after[name] > before[name] for name in before)


def spoil_output(images: Path, out: Path, case_id: str) -> None:
    (out / f"{case_id}.nii.gz").write_bytes(b"mine")


def remove_proof(images: Path, out: Path, case_id: str) -> None:
    (out / f"{case_id}.proof.json").unlink()


def remove_output(images: Path, out: Path, case_id: str) -> None:
    (out / f"{case_id}.nii.gz").unlink()


def change_image(images: Path, out: Path, case_id: str) -> None:
    path = images / f"{case_id}_0000.nii.gz"
    image = read_image((path,))
    write(path, image.image[0] + 1, image.geometry)


@pytest.mark.parametrize("harm", [spoil_output, remove_proof, remove_output, change_image])
def test_only_what_is_not_proven_is_done_again(
    flat: Folders,
    predictor: Predictor,
    tmp_path: Path,
    harm: Callable[[Path, Path, str], None],
) -> None:
    images, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(flat.raw_folder(FLAT) / "imagesTs", images)
    first, *others = predict(predictor, images, out)
    before, right = times(out), sha256(out / f"{first}.nii.gz")
    harm(images, out, first)
    predict(predictor, images, out)
    after = times(out)
    assert after[f"{first}.nii.gz"] > before.get(f"{first}.nii.gz", 0)
    assert all(after[f"{name}.nii.gz"] == before[f"{name}.nii.gz"] for name in others)
    assert harm is change_image or sha256(out / f"{first}.nii.gz") == right


def test_other_settings_prove_nothing(flat: Folders, predictor: Predictor, tmp_path: Path) -> None:
    images = flat.raw_folder(FLAT) / "imagesTs"
    predict(predictor, images, tmp_path)
    before = times(tmp_path)
    predict(dataclasses.replace(predictor, mirror=False), images, tmp_path)
    assert all(times(tmp_path)[name] > before[name] for name in before)


@pytest.mark.parametrize("name", ["dataset.json", "{case}.nii.gz"])
def test_files_that_no_prediction_made_are_not_replaced(
    flat: Folders, predictor: Predictor, tmp_path: Path, name: str
) -> None:
    images = flat.raw_folder(FLAT) / "imagesTs"
    mine = tmp_path / name.format(case=sorted(images.iterdir())[0].name[:-12])
    mine.write_bytes(b"mine")
    with pytest.raises(UsageError, match="no prediction of ours made it"):
        predict(predictor, images, tmp_path)
    assert mine.read_bytes() == b"mine"


def test_one_image_cannot_be_shared_out(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    image = sorted((flat.raw_folder(FLAT) / "imagesTs").iterdir())[0]
    with pytest.raises(UsageError, match="is one image; -num_parts shares out a folder"):
        predict(predictor, image, tmp_path / "out", part=1, parts=2)


def test_a_prediction_that_was_killed_goes_on(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    images = flat.raw_folder(FLAT) / "imagesTs"
    with pytest.raises(StoppedError):
        predict(predictor, images, tmp_path, stop=stop_after(2))
    (tmp_path / "run.json").unlink()  # a kill would not have let it be written
    written = predict(predictor, images, tmp_path)
    assert len(written) == 3
    whole = predict(predictor, images, tmp_path / "undisturbed")
    assert [sha256(path) for path in written.values()] == [sha256(p) for p in whole.values()]


def test_one_image_goes_into_a_folder_under_its_own_name(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    image = sorted((flat.raw_folder(FLAT) / "imagesTs").iterdir())[0]
    written = predict(predictor, image, tmp_path / "out")
    assert list(written.values()) == [tmp_path / "out" / image.name]


def test_a_channel_too_many_is_named_and_the_others_are_done(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    images = tmp_path / "in"
    shutil.copytree(flat.raw_folder(FLAT) / "imagesTs", images)
    first = sorted(images.iterdir())[0]
    shutil.copy(first, images / first.name.replace("_0000", "_0001"))
    with pytest.raises(PartlyDoneError, match="does not declare"):
        predict(predictor, images, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_a_prediction_stops_between_cases_with_what_is_done(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    images = flat.raw_folder(FLAT) / "imagesTs"
    passes = 1 + 2 ** len(predictor.members[0].model.mirror_axes)  # of the network, and the case
    with pytest.raises(StoppedError, match="stopped between cases; the same command goes on"):
        predict(predictor, images, tmp_path, stop=stop_after(passes + 1))
    assert len(list(tmp_path.glob("*.nii.gz"))) == 1
    with pytest.raises(StoppedError, match="nothing of it is kept"):
        predict(predictor, images, tmp_path, stop=stop_after(3))
    assert len(list(tmp_path.glob("*.nii.gz"))) == 1


def test_a_folder_without_images_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "scan.nii.gz").touch()
    with pytest.raises(DataError, match=r"no file is named CASE_0000\.nii\.gz"):
        predict(predictor, tmp_path / "in", tmp_path / "out")
    with pytest.raises(MissingError, match="does not exist; give an image or a folder"):
        predict(predictor, tmp_path / "gone", tmp_path / "out")
