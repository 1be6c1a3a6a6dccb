"""Planted label errors are found by what was predicted out of fold, with files of a training."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import draw, prepare, train

from nnseg import cli, record
from nnseg.commit import sha256
from nnseg.dataset import read_spec
from nnseg.errors import DataError, MissingError, StoppedError
from nnseg.folders import (
    Folders,
    checkpoint_file,
    compact_files,
    summary_file,
    validated_file,
    validation_folder,
)
from nnseg.labels import Labels
from nnseg.runlog import RunReport
from nnseg.suspects.label_errors import Suspects
from nnseg.validated import Validated
from nnseg.verbs import suspecting
from nnseg.verbs.scoring import read_summary, write_summary
from nnseg.verbs.suspecting import suspect
from nnseg.verbs.validating import validate
from nnseg.volume import Geometry, read_segmentation, simple_geometry, write

DATASET = "Dataset003_Held"
CASES = 12


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Twelve phantoms; a fold that holds ten out, whose predictions are made to be perfect."""
    folders = draw(tmp_path_factory.mktemp("held"), DATASET, "2d", cases=CASES)
    ids = [path.name[:-7] for path in sorted(folders.labels(DATASET).iterdir())]
    splits = [{"train": ids[:2], "val": ids[2:]}, {"train": ids[2:], "val": ids[:2]}]
    folders.user_splits_file(DATASET).write_text(json.dumps(splits))
    prepare(folders, DATASET, "2d", (1, 32, 24))
    fold = train(folders, DATASET, "2d")
    for case_id in ids[2:]:
        name = f"{case_id}.nii.gz"
        shutil.copy(folders.labels(DATASET) / name, validation_folder(fold) / name)
        for path in compact_files(validation_folder(fold) / name):
            path.unlink(missing_ok=True)  # the network itself was sure of nothing
    hashes = {path.name: sha256(path) for path in validation_folder(fold).glob("*.nii.gz")}
    proof = record.load(Validated, validated_file(fold))
    record.save_sealed(dataclasses.replace(proof, maps_sha256=hashes), validated_file(fold))
    return folders


@pytest.fixture
def held(trained: Folders, tmp_path: Path) -> Folders:
    shutil.copytree(trained.raw.parent, tmp_path / "root")
    return Folders.of_root(tmp_path / "root")


def spoil(folders: Folders, number: int) -> str:
    path = sorted(folders.labels(DATASET).iterdir())[number]
    drawn, geometry = read_segmentation(path)
    write(path, np.array([0, 2, 1], np.uint8)[drawn], geometry)
    return path.name[:-7]


def test_right_label_maps_are_not_suspected(held: Folders) -> None:
    found = suspect(held, DATASET)
    assert (found.suspects, found.cases, found.model) == ((), 10, "nnseg/2d")


def test_a_planted_error_is_found_and_kept_as_a_record(held: Folders) -> None:
    wrong = spoil(held, 5)
    found = suspect(held, DATASET)
    assert [one.case_id for one in found.suspects] == [wrong]
    assert "with head and tail exchanged" in found.suspects[0].reason
    assert record.load(Suspects, held.suspects_file(DATASET)) == found
    run = record.load(RunReport, held.models_folder(DATASET) / "run_suspect.json")
    assert len(run.inputs) == 20
    assert str(held.suspects_file(DATASET)) in run.outputs


def test_a_prediction_that_was_changed_by_hand_judges_nothing(
    held: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    out = validation_folder(held.fold(DATASET, "nnseg", "2d", "0", 0))
    path = min(out.glob("*.nii.gz"))
    drawn, geometry = read_segmentation(path)
    write(path, np.zeros_like(drawn), geometry)
    found = suspect(held, DATASET)
    assert (found.suspects, found.cases) == ((), 9)
    assert f"case {path.name[:-7]}: predictions were changed since they were made" in caplog.text


def test_a_case_that_a_network_learnt_from_is_not_judged(held: Folders) -> None:
    spoil(held, 0)  # of the training half
    assert suspect(held, DATASET).suspects == ()


def test_scores_of_cases_that_a_network_learnt_from_are_refused(held: Folders) -> None:
    fold = held.fold(DATASET, "nnseg", "2d", "0", 0)
    run = json.loads(checkpoint_file(fold, "latest").read_text())
    held_out = json.loads(held.user_splits_file(DATASET).read_text())[0]["val"]
    learnt = {**run, "train_cases": held_out[3:4]}
    checkpoint_file(fold, "latest").write_text(json.dumps(learnt))
    with pytest.raises(DataError, match=rf"trained on case {held_out[3]}, and .* --overwrite`"):
        suspect(held, DATASET)
    assert not held.suspects_file(DATASET).exists()


def test_an_older_model_is_suspected_by_only_if_the_folds_are_those_of_then(held: Folders) -> None:
    fold = held.fold(DATASET, "nnseg", "2d", "0", 0)
    run = json.loads(checkpoint_file(fold, "latest").read_text())
    del run["train_cases"]
    checkpoint_file(fold, "latest").write_text(json.dumps(run))
    proof = record.load(Validated, validated_file(fold))
    older = Validated(weights_sha256=proof.weights_sha256)
    record.save(older, validated_file(fold))
    assert suspect(held, DATASET).cases == 10
    splits = json.loads(held.user_splits_file(DATASET).read_text())
    held.user_splits_file(DATASET).write_text(json.dumps(splits[::-1]))
    with pytest.raises(DataError, match="trained on another split of the cases than today's"):
        suspect(held, DATASET)


def test_folds_without_validation_and_folds_of_all_cases_say_nothing(held: Folders) -> None:
    fold = held.fold(DATASET, "nnseg", "2d", "0", 0)
    fold.rename(fold.with_name("fold_all"))
    with pytest.raises(MissingError, match="no fold of CONFIGURATION is trained and validated"):
        suspect(held, DATASET)
    with pytest.raises(MissingError, match="no fold of 3d_fullres is trained and validated"):
        suspect(held, DATASET, configuration="3d_fullres")


def test_the_configuration_with_the_most_cases_is_taken(held: Folders) -> None:
    labels = read_spec(held.spec_file(DATASET)).labels
    few = held.model(DATASET, "nnseg", "2d_few")
    shutil.copytree(held.model(DATASET, "nnseg", "2d"), few)
    where = validation_folder(few / "fold_0")
    summary = read_summary(where, labels)
    write_summary(where, dataclasses.replace(summary, cases=summary.cases[:3]), labels)
    proof = record.load(Validated, validated_file(few / "fold_0"))
    digest = sha256(summary_file(where))
    record.save_sealed(
        dataclasses.replace(proof, summary_sha256=digest), validated_file(few / "fold_0")
    )
    assert suspect(held, DATASET).model == "nnseg/2d"
    found = suspect(held, DATASET, configuration="2d_few")
    assert (found.model, found.cases) == ("nnseg/2d_few", 3)


def test_cases_that_have_gone_are_passed_over_aloud(
    held: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    name = sorted(held.labels(DATASET).iterdir())[7].name
    (held.labels(DATASET) / name).unlink()
    next(held.images(DATASET).glob(f"{name[:-7]}_*")).unlink()
    assert suspect(held, DATASET).cases == 9
    assert "1 predicted cases are not in the raw dataset any more" in caplog.text


def test_a_label_map_on_another_grid_than_its_prediction_is_an_error(held: Folders) -> None:
    fold = held.fold(DATASET, "nnseg", "2d", "0", 0)
    path = held.labels(DATASET) / next(validation_folder(fold).glob("*.nii.gz")).name
    array, geometry = read_segmentation(path)
    write(path, np.ascontiguousarray(array[:, 1:]), _cut(geometry))
    with pytest.raises(DataError, match="lies on another grid than its prediction"):
        suspect(held, DATASET)
    assert not held.suspects_file(DATASET).exists()


def _cut(geometry: Geometry) -> Geometry:
    z, y, x = geometry.shape
    return dataclasses.replace(geometry, shape=(z, y - 1, x))


def test_it_can_be_stopped_and_then_writes_nothing(held: Folders) -> None:
    with pytest.raises(StoppedError, match=r"^stopped; nothing was written"):
        suspect(held, DATASET, stop=lambda: True)
    assert not held.suspects_file(DATASET).exists()


def test_probabilities_that_are_kept_say_how_sure_the_network_was(
    held: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    validate(held, DATASET, "2d", "0", device="cpu", precision="fp32")
    fold = held.fold(DATASET, "nnseg", "2d", "0", 0)
    path = next(validation_folder(fold).glob("*.nii.gz"))
    expected = suspecting._expected_dice(path)
    assert expected is not None
    assert set(expected) == {"head", "tail"}
    assert all(value is None or 0 <= value <= 1 for value in expected.values())
    array = compact_files(path)[0]
    array.write_bytes(array.read_bytes()[:-1] + b"x")
    assert suspecting._expected_dice(path) is None
    assert "the case is judged without" in caplog.text


def test_the_doctor_tells_of_suspects_and_ends_well(
    held: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = spoil(held, 4)
    root = ["--root", str(held.raw.parent)]
    assert cli.main(["doctor", DATASET, "--predictions", *root]) == 0
    assert f"{wrong}: agrees with the prediction far better" in capsys.readouterr().out
    assert cli.main(["doctor", DATASET, "--predictions", "--json", *root]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["case_id"] for one in told["suspects"]["suspects"]] == [wrong]
    assert cli.main(["doctor", DATASET, "--json", *root]) == 0
    assert "suspects" not in json.loads(capsys.readouterr().out)
    assert cli.main(["doctor", DATASET, "--predictions", "--fix", *root]) == 2


def test_a_dataset_of_regions_has_names_for_its_parts(tmp_path: Path) -> None:
    labels = Labels(
        labels={"background": 0, "whole": (1, 2), "core": 2}, regions_class_order=(1, 2)
    )
    drawn = np.zeros((6, 9, 12), np.uint8)
    drawn[1:5, 2:7, 2:10], drawn[2:4, 3:6, 4:8] = 1, 2
    path = tmp_path / "a.nii.gz"
    write(path, drawn, simple_geometry(drawn.shape, (1.0, 1.0, 1.0)))
    pair = suspecting.HeldOut(case_id="a", label_map=path, prediction=path)
    assert suspecting._look(pair, labels).dice == {"label 1": 1.0, "core": 1.0}
