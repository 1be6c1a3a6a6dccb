"""Folders of images: what is written, what is kept, and what is refused."""

import dataclasses
import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
from tiny import CPU, FLAT, stop_after

from nnseg import pipeline, record, runlog
from nnseg.commit import sha256
from nnseg.console import StopFlag
from nnseg.dataset import read_spec
from nnseg.errors import (
    DataError,
    DiskFullError,
    MachineError,
    MissingError,
    NnsegError,
    PartlyDoneError,
    StoppedError,
    UsageError,
)
from nnseg.folders import Folders, summary_file
from nnseg.predicted_folder import Wanted
from nnseg.predictor import Predictor, load
from nnseg.proof import Proof
from nnseg.runlog import RunReport
from nnseg.verbs import outlook, predicting
from nnseg.verbs.outlook import foretell
from nnseg.verbs.predicting import predict, raise_failed
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


def test_a_label_map_says_what_its_integers_mean(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    written = predict(predictor, flat.raw_folder(FLAT) / "imagesTs", tmp_path)
    (extension,) = nibabel.load(next(iter(written.values()))).header.extensions
    names = json.loads(extension.text.rstrip("\0"))["labels"]
    assert names == read_spec(flat.raw_folder(FLAT) / "dataset.json").labels.labels


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


def test_an_image_that_changes_while_it_is_read_is_not_predicted(
    flat: Folders, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "in"
    shutil.copytree(flat.raw_folder(FLAT) / "imagesTs", images)
    first, *others = sorted(images.iterdir())

    def hash_and_grow(paths: Sequence[Path]) -> dict[str, str]:
        found = {path.name: sha256(path) for path in paths}
        if first in paths:
            with first.open("ab") as file:
                file.write(bytes(16))
        return found

    monkeypatch.setattr(predicting, "hashes", hash_and_grow)
    with pytest.raises(PartlyDoneError, match=f"{first.name}: files of the case changed while"):
        predict(predictor, images, tmp_path / "out")
    done = [path.name for path in (tmp_path / "out").glob("[!.]*.nii.gz")]
    assert sorted(done) == [path.name.replace("_0000", "") for path in others]


def test_predictions_are_scored_against_the_truth(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    raw = flat.raw_folder(FLAT)
    predict(predictor, raw / "imagesTs", tmp_path)
    spec = pipeline.spec_for_evaluation(raw / "labelsTs", tmp_path, None)
    summary = pipeline.evaluate(raw / "labelsTs", tmp_path, spec.labels, ".nii.gz", workers=1)
    assert len(summary.cases) == 3
    assert pipeline.read_summary(tmp_path, spec.labels) == summary
    perfect = pipeline.evaluate(
        raw / "labelsTs", raw / "labelsTs", spec.labels, ".nii.gz", output=tmp_path / "perfect"
    )
    assert perfect.foreground_mean.dice == 1
    predict(predictor, raw / "imagesTs", tmp_path)
    assert summary_file(tmp_path).is_file()
    predict(predictor, raw / "imagesTs", tmp_path, overwrite=True)
    assert not summary_file(tmp_path).exists()  # of label maps that are no more


@pytest.mark.fault("R37")
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


@pytest.mark.fault("R36")
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
    (out / f"{case_id}.nii.gz.proof.json").unlink()


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
        predict(predictor, images, tmp_path, stop=lambda: any(tmp_path.glob("*.proof.json")))
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
    flat: Folders, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = flat.raw_folder(FLAT) / "imagesTs"
    segment, found = predicting._segment, []
    monkeypatch.setattr(
        predicting, "_segment", lambda *args: found.append(segment(*args)) or found[-1]
    )
    with pytest.raises(StoppedError, match="stopped between cases; the same command goes on"):
        predict(predictor, images, tmp_path, stop=lambda: bool(found))
    assert len(list(tmp_path.glob("*.nii.gz"))) == 1
    with pytest.raises(StoppedError, match="nothing of it is kept"):
        predict(predictor, images, tmp_path, stop=stop_after(6))
    assert len(list(tmp_path.glob("*.nii.gz"))) == 1
    with pytest.raises(StoppedError, match="while looking for what is done"):
        predict(predictor, images, tmp_path, stop=stop_after(2))


def test_a_folder_without_images_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "scan.nii.gz").touch()
    with pytest.raises(DataError, match=r"no file is named CASE_0000\.nii\.gz"):
        predict(predictor, tmp_path / "in", tmp_path / "out")
    with pytest.raises(MissingError, match="does not exist; give an image or a folder"):
        predict(predictor, tmp_path / "gone", tmp_path / "out")


def spoilt(flat: Folders, folder: Path) -> Path:
    """The images, and three that cannot be predicted."""
    shutil.copytree(flat.raw_folder(FLAT) / "imagesTs", folder)
    whole = sorted(folder.iterdir())[0]
    (folder / "cut_0000.nii.gz").write_bytes(whole.read_bytes()[:200])
    (folder / "no_0000.nii.gz").write_bytes(b"no header")
    shutil.copy(whole, folder / "lost_0001.nii.gz")  # its channel 0000 is missing
    return folder


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_what_became_of_each_case_is_told(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    images = spoilt(flat, tmp_path / "in")
    told: dict[str, Proof | NnsegError] = {}
    for _ in range(2):  # the second time it is done already
        told.clear()
        with pytest.raises(PartlyDoneError):
            predict(predictor, images, tmp_path / "out", on_case=told.__setitem__)
        proofs = {name: found for name, found in told.items() if isinstance(found, Proof)}
        assert told.keys() - proofs.keys() == {"cut", "no", "lost"}
        assert [found.case_id for found in proofs.values()] == list(proofs)
        assert len(proofs) == 3
        assert isinstance(told["cut"], DataError)


def test_a_foretold_prediction_counts_what_is_done_and_writes_nothing(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    images, out = flat.raw_folder(FLAT) / "imagesTs", tmp_path / "out"
    told: list[tuple[str, int, int]] = []
    foretold = foretell(predictor, images, out, on_progress=lambda *done: told.append(done))
    assert told == [("examining", count, 3) for count in (1, 2, 3)]
    assert not tmp_path.joinpath("out").exists()
    assert (len(foretold.cases), foretold.done, foretold.failed) == (3, frozenset(), {})
    sizes = [read_image((path,)).image[0].size for path in images.iterdir()]
    assert foretold.disk == sum(sizes)  # a byte for the label of each voxel
    assert foretold.memory > 4 * max(sizes)
    (stage,) = foretold.stages
    assert stage.model == f"{FLAT} nnseg 2d"
    assert (stage.folds, stage.mirrors) == (
        1,
        2 ** len(predictor.members[0].model.mirror_axes),
    )

    first, *_ = predict(predictor, images, out)
    (out / f"{first}.nii.gz").unlink()
    before = tree(tmp_path)
    foretold = foretell(predictor, images, out)
    assert foretold.done == set(foretold.cases) - {first}
    assert foretold.disk == read_image((images / f"{first}_0000.nii.gz",)).image[0].size
    assert foretell(predictor, images, out, overwrite=True).done == frozenset()
    assert foretell(dataclasses.replace(predictor, step=0.7), images, out).done == frozenset()
    assert tree(tmp_path) == before


def test_a_share_and_what_else_is_wanted_are_foretold(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    images = flat.raw_folder(FLAT) / "imagesTs"
    plain = dataclasses.replace(predictor, mirror=False)
    outlooks = [foretell(plain, images, tmp_path, part=part, parts=2) for part in (0, 1)]
    assert [len(foretold.cases) for foretold in outlooks] == [2, 1]
    assert outlooks[0].stages[0].mirrors == 1
    wanted = Wanted(maps=("entropy",), probabilities="npz")
    more = foretell(plain, images, tmp_path, part=1, parts=2, wanted=wanted)
    assert more.disk == outlooks[1].disk * (1 + 4 + 3 * 4)  # labels, a map, three heads


def test_what_would_fail_is_foretold_as_it_fails(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    images = spoilt(flat, tmp_path / "in")
    foretold = foretell(predictor, images, tmp_path / "out")
    assert foretold.failed.keys() == {"cut", "no", "lost"}
    with pytest.raises(PartlyDoneError) as told:
        raise_failed(foretold.failed, len(foretold.cases))
    assert not (tmp_path / "out").exists()
    with pytest.raises(PartlyDoneError) as failed:
        predict(predictor, images, tmp_path / "out")
    assert str(told.value) == str(failed.value)


@pytest.mark.parametrize("what", [predict, foretell])
def test_what_is_refused_is_refused_when_it_is_foretold(
    flat: Folders, predictor: Predictor, tmp_path: Path, what: Callable[..., object]
) -> None:
    images = Path(shutil.copytree(flat.raw_folder(FLAT) / "imagesTs", tmp_path / "in"))
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="the output must not be the input"):
        what(predictor, images, images)
    with pytest.raises(MissingError, match="does not exist"):
        what(predictor, tmp_path / "gone", tmp_path / "out")
    with pytest.raises(DataError, match="no file is named CASE_0000"):
        what(predictor, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UsageError, match="shares out a folder"):
        what(predictor, next(images.iterdir()), tmp_path / "out", parts=2)
    with pytest.raises(MachineError, match="cannot be written"):
        what(predictor, images, tmp_path / "file" / "out")


def test_a_folder_without_rights_or_room_is_refused_when_it_is_foretold(
    flat: Folders,
    predictor: Predictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = flat.raw_folder(FLAT) / "imagesTs"
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(MachineError, match=os.strerror(errno.EACCES)):
            foretell(predictor, images, tmp_path / "out")
    usage = shutil.disk_usage(tmp_path)
    for free, told in ((2**20 - 1, None), (2**20, "may take up to 10 MB of disk, and 1 MB")):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
            patch.setattr(outlook, "_bytes_of_voxel", lambda *_: 10**7 / outlook_voxels(images))
            if told is None:
                with pytest.raises(MachineError, match="the disk is full"):
                    foretell(predictor, images, tmp_path / "out")
            else:
                foretell(predictor, images, tmp_path / "out")
                assert told in caplog.text


def outlook_voxels(images: Path) -> int:
    return sum(read_image((path,)).image[0].size for path in images.iterdir())


def test_a_foretold_prediction_can_be_stopped(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    images = flat.raw_folder(FLAT) / "imagesTs"
    with pytest.raises(StoppedError, match="nothing was written"):
        foretell(predictor, images, tmp_path / "out", stop=stop_after(2))


# ---------------------------------------------------------------- what is there already


@pytest.fixture
def images(flat: Folders) -> Path:
    return flat.raw_folder(FLAT) / "imagesTs"


@pytest.fixture(scope="module")
def other(predictor: Predictor) -> Predictor:
    """The same networks, which predict otherwise."""
    return dataclasses.replace(predictor, step=0.9)


def correct(label_map: Path) -> bytes:
    """Change a label map as a person does, and give its bytes."""
    found, geometry = read_segmentation(label_map)
    write(label_map, 2 - found, geometry)
    return label_map.read_bytes()


def test_a_result_in_another_format_is_another_result(
    images: Path, predictor: Predictor, tmp_path: Path
) -> None:
    image = min(images.iterdir())
    for ending in (".nii.gz", ".nrrd", ".nii.gz"):
        (path,) = predict(predictor, image, tmp_path / f"x{ending}").values()
        assert path.is_file()
    found = [read_segmentation(tmp_path / f"x{ending}")[0] for ending in (".nii.gz", ".nrrd")]
    np.testing.assert_array_equal(*found)


def test_a_label_map_that_was_corrected_by_hand_is_neither_replaced_nor_counted_as_done(
    images: Path, predictor: Predictor, other: Predictor, tmp_path: Path
) -> None:
    first, *others = predict(predictor, images, tmp_path)
    mine = correct(tmp_path / f"{first}.nii.gz")
    for again in (predictor, other):
        with pytest.raises(PartlyDoneError, match=f"case {first}: .*was changed since") as raised:
            predict(again, images, tmp_path)
        assert "move it away, or give --overwrite" in str(raised.value)
        assert (tmp_path / f"{first}.nii.gz").read_bytes() == mine
    assert foretell(other, images, tmp_path).failed.keys() == {first}
    assert foretell(other, images, tmp_path).done == {*others}
    predict(other, images, tmp_path, overwrite=True)
    assert (tmp_path / f"{first}.nii.gz").read_bytes() != mine


def test_an_older_result_is_withdrawn_before_a_new_one_is_written(
    images: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, out = min(images.iterdir()), tmp_path / "x.nii.gz"
    predict(predictor, image, out, wanted=Wanted(maps=("entropy",), probabilities="npz"))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("write", "withdraw"):  # a kill at the first file written, or just before
        with monkeypatch.context() as patch:
            patch.setattr(predicting, name, killed)
            with pytest.raises(KeyboardInterrupt):
                predict(predictor, image, out, overwrite=True)
        proven = (tmp_path / "x.nii.gz.proof.json").exists()
        assert proven == (name == "withdraw")
        assert [out.exists(), (tmp_path / "x_entropy.nii.gz").exists()] == [proven, False]
        predict(predictor, image, out)


def test_maps_and_tables_of_an_older_model_do_not_stay_beside_the_labels_of_another(
    images: Path, predictor: Predictor, other: Predictor, tmp_path: Path
) -> None:
    everything = Wanted(maps=("entropy",), probabilities="chunks", statistics=True)
    predict(predictor, images, tmp_path, wanted=everything)
    assert (tmp_path / "statistics.csv").exists()
    names = predict(other, images, tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        *(f"{name}{ending}" for name in names for ending in (".nii.gz", ".nii.gz.proof.json")),
        *("run.json", "log.txt", "dataset.json"),
    }


def test_a_case_that_fails_keeps_no_result_of_another_image(
    flat: Folders, predictor: Predictor, tmp_path: Path
) -> None:
    scans, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(flat.raw_folder(FLAT) / "imagesTs", scans)
    first, second, third = predict(predictor, scans, out, wanted=Wanted(maps=("entropy",)))
    for name in (first, second):
        (scans / f"{name}_0000.nii.gz").write_bytes(b"cut")
    mine = correct(out / f"{second}.nii.gz")
    with pytest.raises(PartlyDoneError, match="2 of 3 cases failed"):
        predict(predictor, scans, out, wanted=Wanted(maps=("entropy",)))
    assert not list(out.glob(f"{first}*"))
    assert (out / f"{second}.nii.gz").read_bytes() == mine
    assert (out / f"{third}.nii.gz").is_file()
    with pytest.raises(PartlyDoneError, match="was changed by hand and stays"):
        predict(predictor, scans, out, overwrite=True)
    assert (out / f"{second}.nii.gz").read_bytes() == mine


def test_a_proof_says_by_which_models_and_how(
    images: Path, predictor: Predictor, tmp_path: Path
) -> None:
    first, *_ = predict(predictor, images, tmp_path)
    proof = record.load_sealed(Proof, tmp_path / f"{first}.nii.gz.proof.json")
    (model,) = proof.making.models
    assert (model.dataset, model.plan, model.configuration) == (FLAT, "nnseg", "2d")
    assert model.weights_sha256 == predictor.members[0].model.weights_sha256
    assert (model.execution["device"], model.execution["precision"]) == ("cpu", "fp32")
    assert (proof.making.step, proof.making.mirror) == (0.5, True)
    assert proof.made_by == proof.making.sha256
    assert report_in(tmp_path).facts["making"] == record.to_json(proof.making)


def test_statistics_that_are_wanted_later_are_of_the_label_maps_that_are_there(
    images: Path, predictor: Predictor, tmp_path: Path
) -> None:
    predict(predictor, images, tmp_path / "late")
    before = times(tmp_path / "late")
    for folder in ("late", "at once"):
        predict(predictor, images, tmp_path / folder, wanted=Wanted(statistics=True))
    assert times(tmp_path / "late") == before
    for path in sorted((tmp_path / "at once").glob("*[!n].[jc]s*")):
        if path.name != "run.json":
            assert (tmp_path / "late" / path.name).read_bytes() == path.read_bytes()
    (tmp_path / "late" / "statistics.csv").unlink()
    predict(predictor, images, tmp_path / "late")  # all that it needs is in the proofs
    assert (tmp_path / "late" / "statistics.csv").exists()


def test_the_record_of_a_run_reads_no_image_again(
    images: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runlog, "sha256", lambda path: pytest.fail(f"{path} is read again"))
    predict(predictor, images, tmp_path)
    assert report_in(tmp_path).inputs == {str(path): sha256(path) for path in images.iterdir()}


# ---------------------------------------------------------------- what goes wrong


def failing_once(
    monkeypatch: pytest.MonkeyPatch, errors: dict[int, BaseException], counted: list[int]
) -> None:
    """Have the n-th case that is segmented meet an error."""
    segment = predicting._segment

    def fail(*args: object) -> object:
        counted.append(len(counted))
        if counted[-1] in errors:
            raise errors[counted[-1]]
        return segment(*args)

    monkeypatch.setattr(predicting, "_segment", fail)


@pytest.mark.fault("R35")
def test_a_bug_in_one_case_is_listed_and_the_others_are_done(
    images: Path,
    predictor: Predictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing_once(monkeypatch, {1: ZeroDivisionError("odd")}, [])
    with pytest.raises(PartlyDoneError, match="a bug of ours: ZeroDivisionError: odd; please"):
        predict(predictor, images, tmp_path)
    assert len(list(tmp_path.glob("*.nii.gz"))) == 2
    assert "Traceback" in (tmp_path / "log.txt").read_text()
    report = report_in(tmp_path)
    assert (report.exit_code, len(report.cases)) == (6, 3)


def several(images: Path, folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        shutil.copy(min(images.iterdir()), folder / f"c{number}_0000.nii.gz")
    return folder


def test_after_three_bugs_in_a_row_no_case_is_begun(
    images: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    failing_once(monkeypatch, {n: ValueError("odd") for n in (0, 1, 3, 4, 5)}, begun)
    scans = several(images, tmp_path / "in", 8)
    with pytest.raises(PartlyDoneError, match="7 of 8 cases failed") as raised:
        predict(predictor, scans, tmp_path / "out")
    assert len(begun) == 6
    assert "case c7: not begun, as the 3 cases before met bugs" in str(raised.value)


def test_on_a_full_disk_no_further_image_is_read(
    images: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_once(monkeypatch, {0: DiskFullError("full")}, [])
    read: list[Path] = []
    reads = predicting.read_stored
    monkeypatch.setattr(
        predicting, "read_stored", lambda paths, n: (read.append(paths[0]), reads(paths, n))[1]
    )
    scans = several(images, tmp_path / "in", 6)
    with pytest.raises(DiskFullError, match="case c5: not begun, as the disk is full"):
        predict(predictor, scans, tmp_path / "out")
    assert len(read) <= 2  # the second was read ahead


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StoppedError("stopped")])
def test_what_was_done_before_a_stop_is_told_and_summed_up(
    images: Path,
    predictor: Predictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    failing_once(monkeypatch, {2: error}, [])
    with pytest.raises(type(error)):
        predict(predictor, images, tmp_path, wanted=Wanted(statistics=True))
    report = report_in(tmp_path)
    done = {path.name.removesuffix(".nii.gz") for path in tmp_path.glob("*.nii.gz")}
    assert set(report.cases) <= done
    assert len(report.cases) >= 1
    assert len(report.outputs) == len(report.cases)
    assert (tmp_path / "statistics.csv").exists()


def test_who_stopped_by_ctrl_c_is_in_the_record_of_the_run(
    images: Path, predictor: Predictor, tmp_path: Path
) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 75)):
        flag = StopFlag()
        flag.signal = number
        with pytest.raises(StoppedError):
            predict(predictor, images, tmp_path, stop=flag)
        assert report_in(tmp_path).exit_code == code
