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
from nnseg import estimate, predictor, record
from nnseg.axes import Segmentation
from nnseg.choose import Choice, ChosenModel
from nnseg.errors import (
    DataError,
    MachineError,
    MissingError,
    NnsegError,
    PlanError,
    StoppedError,
    UsageError,
)
from nnseg.estimate import CaseSize
from nnseg.folders import Folders, confidence_file, postprocessing_file, validation_folder
from nnseg.labels import Labels
from nnseg.postprocess import KeepLargest, MinimumSize, Postprocessing
from nnseg.postprocess.rules import DecidedOn
from nnseg.predictor import PRESETS, Predictor, load
from nnseg.scores.confidence import Confidence
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
    return ready.segment(ready.prepare(volume.image, volume.geometry.spacing)).segmentation


def seen(image: Any) -> Segmentation:
    """The labels (z, y, x) of a nibabel image of one slice."""
    return np.asanyarray(image.dataobj).T[None]


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    shutil.copytree(model, tmp_path / "2d")
    return tmp_path / "2d"


@pytest.fixture
def copied_scan(scan: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(scan, tmp_path / "scan.nii.gz"))


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


def test_a_cancelled_prediction_reads_no_file_and_writes_none(
    ready: Predictor, scan: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        ready.predict(tmp_path / "gone.nii.gz", cancel=lambda: True)
    far: list[bool] = []
    with pytest.raises(StoppedError):
        ready.predict(
            scan,
            output=tmp_path / "labels.nii.gz",
            on_progress=lambda done, tiles: far.append(done == tiles),
            cancel=lambda: bool(far and far[-1]),
        )
    assert list(tmp_path.iterdir()) == []


def test_who_cancels_does_not_wait_for_the_next_image_to_be_read(
    ready: Predictor, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens, go_on, waiting = predictor.open_image, threading.Event(), threading.Event()

    def open_slowly(image: Any, channels: int) -> Any:
        if image == "slow":
            waiting.set()
            assert go_on.wait(100)
        return opens(scan, channels)

    monkeypatch.setattr(predictor, "open_image", open_slowly)
    with pytest.raises(StoppedError):
        list(ready.predict_many([scan, "slow"], cancel=waiting.is_set))
    assert not go_on.is_set()
    go_on.set()


def test_the_memory_that_an_image_takes_is_foretold(ready: Predictor) -> None:
    def needs(*shape: int) -> predictor.Needs:
        z, y, x = shape
        size = CaseSize(shape=(z, y, x), spacing=(1.0, 1.0, 1.0), voxels=float(z * y * x))
        return ready.foretell(size)

    small, deep = needs(1, 40, 30), needs(100, 400, 300)
    assert small.memory >= predictor.PROGRAM_BYTES
    assert deep.memory >= small.memory + 4 * 100 * 400 * 300
    assert small.device == 0
    on_gpu = dataclasses.replace(ready.members[0].model.execution, device="cuda:1")
    model = dataclasses.replace(ready.members[0].model, execution=on_gpu)
    member = dataclasses.replace(ready.members[0], model=model)
    elsewhere = dataclasses.replace(ready, members=(member,)).foretell(
        CaseSize(shape=(1, 40, 30), spacing=(1.0, 1.0, 1.0), voxels=1200.0)
    )
    assert 0 < small.memory - elsewhere.memory <= elsewhere.device


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
    assert len(load(copied, preset="fast", folds=["0", 1], **CPU).members[0].model.networks) == 2
    named = Choice(members=(ChosenModel(folder="2d", folds=("1", "0")),))
    record.save(named, copied.parent / "choice.json")
    assert len(load(copied.parent, preset="fast", **CPU).members[0].model.networks) == 1
    assert len(load(copied.parent, **CPU).members[0].model.networks) == 2


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
    copied: Path, scan: Path, right: Segmentation, caplog: pytest.LogCaptureFixture
) -> None:
    rules = Postprocessing(rules=(MinimumSize(label="tail", smallest=1e9),))
    assert 2 in right
    record.save(rules, postprocessing_file(copied))
    for path in (copied, copied / "fold_0"):
        found = seen(load(path, **CPU).predict(scan))
        np.testing.assert_array_equal(found, np.where(right == 2, 0, right))
    labels = Labels(labels={"background": 0, "tail": 1})
    record.save(
        dataclasses.replace(rules, decided_on=DecidedOn(labels=labels)), postprocessing_file(copied)
    )
    assert load(copied, **CPU).postprocessing == rules
    assert "the labels are others now" in caplog.text
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


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The images opened so far."""
    seen: list[Any] = []
    opens = predictor.open_image
    monkeypatch.setattr(
        predictor,
        "open_image",
        lambda image, channels: seen.append(image) or opens(image, channels),
    )
    return seen


def test_the_next_image_is_read_while_one_is_predicted(
    ready: Predictor, scan: Path, read: list[Any]
) -> None:
    stream = ready.predict_many(iter([scan, str(scan), [scan]]))
    next(stream)
    assert read[0] == scan
    assert len(read) == 2  # not the third
    stream.close()


def test_an_image_is_never_overwritten_by_its_label_map(
    ready: Predictor, copied_scan: Path
) -> None:
    before = copied_scan.read_bytes()
    link = copied_scan.with_name("link.nii.gz")
    link.symlink_to(copied_scan)
    for image in (copied_scan, [str(copied_scan)], nibabel.load(copied_scan)):
        for output in (copied_scan, link):
            with pytest.raises(UsageError, match="is the image itself; give another file"):
                ready.predict(image, output=output)
    assert copied_scan.read_bytes() == before


@pytest.mark.parametrize("name", ["labels.txt", "labels.jpg"])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_computed(
    ready: Predictor, scan: Path, tmp_path: Path, name: str
) -> None:
    told: list[int] = []
    with pytest.raises(DataError, match=f"{name}: "):
        ready.predict(scan, output=tmp_path / name, on_progress=lambda done, _: told.append(done))
    assert told == []


def test_an_image_that_would_fill_the_memory_is_refused(
    ready: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.zeros((1, 3, 40, 30), np.float32)
    image[:, :, :8, :8] = 1
    far, near = (5.0, 1000.0, 1000.0), (5.0, 1.0, 1.0)
    size = CaseSize(shape=(3, 8, 8), spacing=far, voxels=3600.0)
    needed = ready.foretell(size).memory - predictor.PROGRAM_BYTES
    assert needed > 10**9
    monkeypatch.setattr(predictor, "free_memory", lambda: 2 * 10**8)
    message = "3 x 8 x 8 voxels of 5 x 1000 x 1000 mm .* they are 3 x 13344 x 13664, .*of memory"
    with pytest.raises(MachineError, match=message):
        ready.predict((image[0], far))
    with pytest.raises(MachineError, match="correct the spacing, or free memory"):
        ready.prepare(image, far)
    assert ready.predict((image[0], near)).shape == (3, 40, 30)


def test_air_around_the_body_counts_for_little_in_what_is_refused(
    ready: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.zeros((1, 3, 400, 300), np.float32)
    image[:, :, :80, :60] = 1
    whole, body = (
        ready.foretell(CaseSize(shape=shape, spacing=(5.0, 3.0, 3.0), voxels=360000.0)).memory
        for shape in ((3, 400, 300), (3, 80, 60))
    )
    assert body < whole
    enough = predictor.SURE_SHARE * (body - predictor.PROGRAM_BYTES - image.nbytes)
    monkeypatch.setattr(predictor, "free_memory", lambda: enough)
    prepared = ready.prepare(image, (5.0, 3.0, 3.0))
    assert ready.segment(prepared).segmentation.shape == (3, 400, 300)
    monkeypatch.setattr(predictor, "free_memory", lambda: enough - 1)
    with pytest.raises(MachineError, match="3 x 80 x 60 voxels"):
        ready.prepare(image, (5.0, 3.0, 3.0))


def test_a_bad_image_among_many_is_told_and_the_others_follow(
    ready: Predictor, scan: Path, right: Segmentation, tmp_path: Path
) -> None:
    images = [scan, tmp_path / "gone.nii.gz", 7, scan]
    told: list[Any] = []

    def on_error(image: Any, error: NnsegError) -> str:
        told.append((image, type(error)))
        return "bad"

    found = list(ready.predict_many(images, on_error=on_error))
    assert told == [(images[1], MissingError), (7, UsageError)]
    assert found[1:3] == ["bad", "bad"]
    for back in (found[0], found[3]):
        np.testing.assert_array_equal(seen(back), right)
    with pytest.raises(MissingError, match="gone"):
        list(ready.predict_many(images))
    with pytest.raises(StoppedError):
        list(ready.predict_many(images, on_error=on_error, cancel=lambda: True))


def test_a_large_image_is_not_read_while_another_is_predicted(
    ready: Predictor, scan: Path, read: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "AHEAD_BYTES", 10)
    for count, _ in enumerate(ready.predict_many([scan, nibabel.load(scan), [scan]]), start=1):
        assert len(read) == count


@pytest.mark.parametrize("folder", ["/models/2d", "../2d", "a/../../b", "C:\\2d", "..\\2d"])
def test_a_choice_names_no_model_outside_its_folder(folder: str) -> None:
    with pytest.raises(DataError, match="lies outside the folder of its choice"):
        ChosenModel(folder=folder)
    assert ChosenModel(folder="D/nnseg/2d..old").folder == "D/nnseg/2d..old"
