"""One line of Python: the same label map, whatever the image comes as and whoever asks."""

import dataclasses
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from tiny import CPU, FLAT

import nnseg
from nnseg import predictor, record
from nnseg.axes import Segmentation
from nnseg.choose import Choice, ChosenModel
from nnseg.confidence import Confidence
from nnseg.errors import DataError, MissingError, PlanError, StoppedError, UsageError
from nnseg.folders import Folders, confidence_file, postprocessing_file, validation_folder
from nnseg.postprocess import KeepLargest, MinimumSize, Postprocessing
from nnseg.predictor import PRESETS, Predictor, load
from nnseg.volume import read_image, read_segmentation


@pytest.fixture(scope="module")
def model(flat: Folders) -> Path:
    return flat.model(FLAT, "nnseg", "2d")


@pytest.fixture(scope="module")
def ready(model: Path) -> Predictor:
    return load(model, **CPU)


@pytest.fixture(scope="module")
def scan(flat: Folders) -> Path:
    return sorted((flat.raw_folder(FLAT) / "imagesTs").iterdir())[0]


@pytest.fixture(scope="module")
def right(ready: Predictor, scan: Path) -> Segmentation:
    """What is found in the scan, from its arrays."""
    volume = read_image([scan])
    return ready.segment(volume.image, volume.geometry.spacing).segmentation


def seen(image: Any) -> Segmentation:
    """The labels (z, y, x) of a nibabel image of one slice."""
    return np.asanyarray(image.dataobj).T[None]


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    shutil.copytree(model, tmp_path / "2d")
    return tmp_path / "2d"


def test_whatever_the_image_comes_as_the_label_map_is_the_same(
    ready: Predictor, scan: Path, right: Segmentation, tmp_path: Path
) -> None:
    volume = read_image([scan])
    assert len(np.unique(right)) > 1
    for image in (scan, str(scan), [scan], nibabel.load(scan)):
        back = ready.predict(image)
        assert isinstance(back, nibabel.Nifti1Image)
        np.testing.assert_array_equal(seen(back), right)
        np.testing.assert_allclose(back.affine, volume.geometry.affine)
    image = sitk.ReadImage(str(scan))
    back = ready.predict(image)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), right[0])
    assert back.GetDirection() == image.GetDirection()
    back = ready.predict((volume.image[0], volume.geometry.spacing))
    np.testing.assert_array_equal(back, right)
    assert back.dtype == np.uint8
    path = ready.predict(scan, output=tmp_path / "labels.nii.gz")
    found, geometry = read_segmentation(path)
    np.testing.assert_array_equal(found, right)
    assert geometry == volume.geometry
    assert [file.name for file in tmp_path.iterdir()] == ["labels.nii.gz"]


def test_the_package_offers_it_in_one_line(model: Path, scan: Path) -> None:
    labels = nnseg.load(str(model), device="cpu").predict(str(scan))
    assert labels.shape == nibabel.load(scan).shape


def test_many_images_come_in_their_order(
    ready: Predictor, flat: Folders, scan: Path, right: Segmentation
) -> None:
    scans = sorted((flat.raw_folder(FLAT) / "imagesTs").iterdir())
    told: list[int] = []
    found = list(ready.predict_many(scans, on_progress=told.append))
    assert told == [1, 2, 3]
    for path, back in zip(scans, found, strict=True):
        one = ready.predict(path)
        np.testing.assert_array_equal(np.asanyarray(back.dataobj), np.asanyarray(one.dataobj))
    assert list(ready.predict_many([])) == []


def test_several_threads_may_ask_at_once(ready: Predictor, scan: Path, right: Segmentation) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(ready.predict(scan))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for back in found:
        np.testing.assert_array_equal(seen(back), right)


def test_a_prediction_tells_how_far_it_is_and_can_be_cancelled(
    ready: Predictor, scan: Path
) -> None:
    told: list[tuple[int, int]] = []
    ready.predict(scan, on_progress=lambda done, tiles: told.append((done, tiles)))
    assert told[-1][0] == told[-1][1] > 1
    with pytest.raises(StoppedError):
        ready.predict(scan, cancel=lambda: True)
    with pytest.raises(StoppedError):
        list(ready.predict_many([scan], cancel=lambda: True))


def test_presets_say_what_is_given_up(model: Path) -> None:
    fast, best = load(model, preset="fast", device="cpu"), load(model, preset="best", device="cpu")
    assert (fast.step, fast.mirror) == (0.75, False)
    assert (best.step, best.mirror) == (0.5, True)
    assert best.members[0].model.execution.precision == "fp32"
    assert PRESETS["fast"].folds == 1
    with pytest.raises(PlanError, match="no preset is named 'quick'; known: best, default, fast"):
        load(model, preset="quick")


def test_fast_takes_the_first_of_several_folds(copied: Path) -> None:
    shutil.copytree(copied / "fold_0", copied / "fold_1")
    assert len(load(copied, **CPU).members[0].model.networks) == 2
    assert len(load(copied, preset="fast", **CPU).members[0].model.networks) == 1
    assert len(load(copied, preset="fast", folds=["0", "1"], **CPU).members[0].model.networks) == 2


def test_several_models_predict_together(model: Path, right: Segmentation, scan: Path) -> None:
    both = load([model, model / "fold_0"], weights=[2.0, 1.0], **CPU)
    assert [member.weight for member in both.members] == [2.0, 1.0]
    found = seen(both.predict(scan))
    np.testing.assert_array_equal(found, right)  # they are the same model twice
    with pytest.raises(UsageError, match="1 weights for 2 models; give one each"):
        load([model, model], weights=[1.0], **CPU)


def test_a_choice_says_models_folds_weights_and_rules(copied: Path, scan: Path) -> None:
    shutil.copytree(copied / "fold_0", copied / "fold_1")
    choice = Choice(
        members=(
            ChosenModel(folder="2d", folds=("1",)),
            ChosenModel(folder="2d", weight=3.0),
        ),
        postprocessing=Postprocessing(rules=(MinimumSize(label="tail", smallest=1e9),)),
    )
    file = copied.parent / "choice.json"
    record.save(choice, file)
    for path in (file, copied.parent):
        chosen = load(path, **CPU)
        assert [len(member.model.networks) for member in chosen.members] == [1, 2]
        assert [member.weight for member in chosen.members] == [1.0, 3.0]
    assert 2 not in np.asanyarray(chosen.predict(scan).dataobj)
    with pytest.raises(UsageError, match="says which folds and weights; give none"):
        load(file, folds=["0"], **CPU)
    with pytest.raises(DataError, match="at least one model"):
        Choice(members=())
    with pytest.raises(DataError, match="it must be over 0"):
        ChosenModel(folder="2d", weight=0)


def test_rules_beside_a_model_are_applied_by_themselves(
    copied: Path, scan: Path, right: Segmentation
) -> None:
    rules = Postprocessing(rules=(MinimumSize(label="tail", smallest=1e9),))
    assert 2 in right
    record.save(rules, postprocessing_file(copied))
    for path in (copied, copied / "fold_0"):
        found = seen(load(path, **CPU).predict(scan))
        np.testing.assert_array_equal(found, np.where(right == 2, 0, right))
    record.save(Postprocessing(rules=(KeepLargest(labels=("gone",)),)), postprocessing_file(copied))
    with pytest.raises(DataError, match="gone"):
        load(copied, **CPU).predict(scan)


def test_a_calibrated_predictor_has_the_mean_temperature_of_its_folds(copied: Path) -> None:
    shutil.copytree(copied / "fold_0", copied / "fold_1")
    for fold, temperature in (("fold_0", 2.0), ("fold_1", 8.0)):
        file = confidence_file(validation_folder(copied / fold))
        found = record.load(Confidence, file)
        assert found.calibration is not None
        calibration = dataclasses.replace(found.calibration, temperature=temperature)
        record.save(dataclasses.replace(found, calibration=calibration), file)
    assert load(copied, **CPU).members[0].temperature == 1
    assert load(copied, calibrated=True, **CPU).members[0].temperature == pytest.approx(4)
    one = load(copied / "fold_0", calibrated=True, **CPU)
    assert one.members[0].temperature == pytest.approx(2)
    for fold in ("fold_0", "fold_1"):
        confidence_file(validation_folder(copied / fold)).unlink()
    with pytest.raises(MissingError, match="has not been calibrated; `nnseg train"):
        load(copied, calibrated=True, **CPU)


def test_what_is_no_model_is_refused_with_what_to_do(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"gone: there is no such folder"):
        load(tmp_path / "gone", **CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="fold 0 is not trained"):
        load(tmp_path / "empty", **CPU)
    theirs = tmp_path / "nnUNetTrainer__nnUNetPlans__2d"
    (theirs / "fold_0").mkdir(parents=True)
    (theirs / "fold_0" / "checkpoint_final.pth").touch()
    for path in (theirs, theirs / "fold_0"):
        with pytest.raises(UsageError, match=f"nnseg import {path} -o FOLDER"):
            load(path, **CPU)
    (tmp_path / "choice.json").write_text(json.dumps({"members": [], "code": "import os"}))
    with pytest.raises(DataError, match="code"):
        load(tmp_path, **CPU)


def test_a_predictor_can_be_changed_by_replacing_a_field(ready: Predictor, scan: Path) -> None:
    told: dict[float, int] = {}
    for step in (0.5, 1.0):
        other = dataclasses.replace(ready, step=step, mirror=False)
        other.predict(scan, on_progress=lambda _, tiles: told.update({step: tiles}))  # noqa: B023
    assert told[1.0] < told[0.5]


def test_the_next_image_is_read_while_one_is_predicted(
    ready: Predictor, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    opens = predictor.open_image
    monkeypatch.setattr(
        predictor,
        "open_image",
        lambda image, channels: read.append(image) or opens(image, channels),
    )
    stream = ready.predict_many(iter([scan, str(scan), [scan]]))
    next(stream)
    assert read[0] == scan
    assert len(read) == 2  # not the third
    stream.close()
