"""Two tiny configurations trained, compared out of fold, and what is chosen predicts alone."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import FLAT, with_cascade

import nnseg
from nnseg import averaging, cli, phantom, pipeline, record
from nnseg.choose import Choice, Choosing
from nnseg.errors import DataError, MachineError, MissingError, StoppedError
from nnseg.evaluate import CaseScores, score_case, summarize
from nnseg.folders import (
    Folders,
    checkpoint_file,
    compact_files,
    validated_file,
    validation_folder,
)
from nnseg.learning.recipe import TrainSettings
from nnseg.lock import locked
from nnseg.plan import Plan
from nnseg.postprocess import apply
from nnseg.predictor import Predictor
from nnseg.probabilities.compact import open_compact
from nnseg.ranking import Evidence
from nnseg.validated import Validated
from nnseg.verbs import choosing
from nnseg.verbs.surveying import survey
from nnseg.volume import read_segmentation, simple_geometry, write

DATASET = "Dataset007_Few"
LOW, CASCADE = "3d_lowres", "3d_cascade_fullres"
SHORT = TrainSettings(
    epochs=2, iterations=6, validation_iterations=1, batch_size=2, augmentation="mild"
)
CPU = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Three phantoms; the folds of both stages trained and validated; tests leave it."""
    folders = Folders.of_root(tmp_path_factory.mktemp("choosing"))
    phantom.write_dataset(folders.raw_folder(DATASET), "mri", cases=3, test_cases=1)
    plan = pipeline.plan_and_preprocess(folders, DATASET, ["2d"], workers=1)[0]
    record.save(with_cascade(plan), folders.plan_file(DATASET, "nnseg"))
    pipeline.preprocess(folders, DATASET, workers=1)
    for configuration, folds in ((LOW, "012"), (CASCADE, "01")):
        for fold in folds:
            pipeline.train(folders, DATASET, configuration, fold, settings=SHORT, **CPU)
    return folders


@pytest.fixture
def copied(trained: Folders, tmp_path: Path) -> Folders:
    """A copy of it in which nothing is chosen yet."""
    shutil.copytree(trained.raw.parent, tmp_path / "copy")
    folders = Folders.of_root(tmp_path / "copy")
    for file in (folders.choice_file(DATASET), folders.choosing_file(DATASET)):
        file.unlink(missing_ok=True)
    return folders


@pytest.fixture(scope="module")
def found(trained: Folders) -> Choosing:
    return pipeline.find_best(trained, DATASET, workers=2)


def maps_of(folders: Folders, configuration: str) -> dict[str, Path]:
    """The out-of-fold label maps of the two folds that both stages have, by case."""
    found = {}
    for fold in ("0", "1"):
        out = validation_folder(folders.fold(DATASET, "nnseg", configuration, fold, 0))
        found |= {path.name.removesuffix(".nii.gz"): path for path in out.glob("*.nii.gz")}
    return found


def by_hand(folders: Folders, choice: Choice) -> Predictor:
    """The members of a choice, each loaded by itself."""
    above = folders.models_folder(DATASET)
    loaded = [nnseg.load(above / one.folder, folds=one.folds, **CPU) for one in choice.members]
    members = [
        dataclasses.replace(each.members[0], weight=one.weight)
        for each, one in zip(loaded, choice.members, strict=True)
    ]
    return Predictor(members=tuple(members), postprocessing=choice.postprocessing)


def run(folders: Folders, *words: str) -> int:
    return cli.main([*words, "--root", str(folders.raw.parent)])


def test_both_stages_and_their_ensemble_are_compared(trained: Folders, found: Choosing) -> None:
    names = {candidate.name for candidate in found.candidates}
    assert names == {LOW, CASCADE, f"{CASCADE} + {LOW}"}
    assert (found.folds, found.cases) == (("0", "1"), 2)
    assert found.notes == (f"nnseg/{LOW}: fold 2 not scored, as not every configuration has it",)
    assert set(found.weights_sha256) == {
        f"nnseg/{name}/fold_{fold}" for name in (LOW, CASCADE) for fold in "01"
    }
    assert record.load(Choosing, trained.choosing_file(DATASET)) == found
    assert record.load(Choice, trained.choice_file(DATASET)) == found.choice


def test_the_scores_are_those_of_the_label_maps(trained: Folders, found: Choosing) -> None:
    labels = record.load(Plan, trained.plan_file(DATASET, "nnseg")).labels
    low, cascade = maps_of(trained, LOW), maps_of(trained, CASCADE)
    assert sorted(low) == sorted(cascade)
    maps: dict[str, dict[str, Any]] = {LOW: {}, CASCADE: {}, f"{CASCADE} + {LOW}": {}}
    for case in low:
        maps[LOW][case] = read_segmentation(low[case])[0]
        maps[CASCADE][case] = read_segmentation(cascade[case])[0]
        opened = [(open_compact(of[case]), 1.0) for of in (cascade, low)]
        maps[f"{CASCADE} + {LOW}"][case] = averaging.label_map(opened)
    for candidate in found.candidates:
        scored = []
        for case, predicted in maps[candidate.name].items():
            truth, geometry = read_segmentation(trained.labels(DATASET) / f"{case}.nii.gz")
            scores = score_case(predicted, truth, labels, geometry.spacing, surface=False)
            scored.append(
                CaseScores(case_id=case, reference_file="", prediction_file="", scores=scores)
            )
        assert candidate.dice == pytest.approx(summarize(scored, labels).foreground_mean.dice)
    assert len({candidate.dice for candidate in found.candidates}) == 3
    assert found.best.dice is not None
    assert found.best.dice > 0.1  # else the test would compare nothing


def test_the_command_shows_what_was_chosen_and_predicts_with_it_alone(
    trained: Folders, found: Choosing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(trained, "find-best", "7") == 0
    shown = capsys.readouterr().out
    root = str(trained.raw.parent)
    assert f"chosen: {found.chosen}" in shown
    assert shown.endswith(f"next:\n  nnseg predict -i IN -o OUT -d 7 --root {root}\n")

    images = trained.raw_folder(DATASET) / "imagesTs"
    out = tmp_path / "out"
    words = ("predict", "-i", str(images), "-o", str(out), "-d", "7", "--device", "cpu")
    assert run(trained, *words, "--precision", "fp32") == 0
    image = next(images.iterdir())
    predicted, _ = read_segmentation(next(out.glob("*.nii.gz")))
    expected = by_hand(trained, found.choice).predict(image, output=tmp_path / "by_hand.nii.gz")
    assert np.array_equal(predicted, read_segmentation(expected)[0])


def test_a_cascade_that_is_chosen_runs_its_stage_before_first(
    copied: Folders, tmp_path: Path
) -> None:
    found = pipeline.find_best(copied, DATASET, configurations=[CASCADE])
    assert found.chosen == CASCADE
    image = next((copied.raw_folder(DATASET) / "imagesTs").iterdir())
    words = ("predict", "-i", str(image.parent), "-o", str(tmp_path / "out"), "-d", DATASET)
    assert run(copied, *words, "--device", "cpu", "--precision", "fp32") == 0
    predictor = by_hand(copied, Choice(members=found.choice.members))
    assert [stage.configuration.name for stage in predictor.stages()] == [LOW, CASCADE]
    raw, geometry = read_segmentation(predictor.predict(image, output=tmp_path / "raw.nii.gz"))
    rules, labels = found.choice.postprocessing, predictor.spec.labels
    predicted, _ = read_segmentation(next((tmp_path / "out").glob("*.nii.gz")))
    assert np.array_equal(predicted, apply(raw, rules, labels, geometry.spacing))


def test_json_is_the_record_and_a_dry_run_writes_nothing(
    copied: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(copied, "find-best", "7", "--dry-run", "--weights") == 0
    assert capsys.readouterr().out.startswith("5 candidates on 2 cases of folds 0, 1: ")
    assert run(copied, "find-best", "7", "--dry-run", "--json", "--disable_ensembling") == 0
    assert json.loads(capsys.readouterr().out)["candidates"] == [CASCADE, LOW]
    assert not copied.choice_file(DATASET).exists()
    assert run(copied, "find-best", "7", "--json", "--disable_ensembling") == 0
    shown = record.parse(Choosing, json.loads(capsys.readouterr().out), "stdout")
    assert shown == record.load(Choosing, copied.choosing_file(DATASET))
    assert len(shown.candidates) == 2


def test_weights_are_tried_where_they_are_asked_for(copied: Folders) -> None:
    found = pipeline.find_best(copied, DATASET, weights=True)
    assert {candidate.name for candidate in found.candidates} == {
        LOW,
        CASCADE,
        f"{CASCADE} + {LOW}",
        f"2 x {CASCADE} + {LOW}",
        f"{CASCADE} + 2 x {LOW}",
    }


def test_a_stop_writes_nothing_and_leaves_what_was_chosen_before(copied: Folders) -> None:
    copied.choice_file(DATASET).write_text("as it was")
    with pytest.raises(StoppedError, match="the same command does it anew"):
        pipeline.find_best(copied, DATASET, stop=lambda: True, workers=2)
    assert copied.choice_file(DATASET).read_text() == "as it was"


def cut_map(label_map: Path) -> None:
    label_map.write_bytes(label_map.read_bytes()[:-9])


def turn_probabilities(label_map: Path) -> None:
    array = compact_files(label_map)[0]
    content = bytearray(array.read_bytes())
    content[len(content) // 2] ^= 1
    array.write_bytes(bytes(content))


def shift_map(label_map: Path) -> None:
    segmentation, geometry = read_segmentation(label_map)
    write(label_map, segmentation, simple_geometry(geometry.shape, (5.0, 4.0, 3.0)))


@pytest.mark.fault("R41")
@pytest.mark.parametrize("with_hashes", [True, False])  # older versions kept none of label maps
@pytest.mark.parametrize("harm", [cut_map, turn_probabilities, shift_map])
def test_a_damaged_prediction_is_named_with_what_makes_it_anew(
    copied: Folders, harm: Callable[[Path], None], with_hashes: bool
) -> None:
    case, path = next(iter(maps_of(copied, CASCADE).items()))
    harm(path)
    if not with_hashes:
        file = validated_file(path.parents[1])
        older = dataclasses.replace(record.load(Validated, file), maps_sha256=None)
        record.save_sealed(older, file)
    with pytest.raises((DataError, MissingError)) as caught:
        pipeline.find_best(copied, DATASET)
    fold = path.parents[1].name.removeprefix("fold_")
    assert f"case {case}" in str(caught.value)
    assert f"`nnseg train {DATASET} {CASCADE} {fold} --val`" in str(caught.value)
    assert not copied.choosing_file(DATASET).exists()


def test_predictions_that_change_meanwhile_choose_nothing(
    copied: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = choosing.choose

    def choose(*args: Any, **how: Any) -> Choosing:
        fold = copied.fold(DATASET, "nnseg", LOW, "0", 0)
        record.save(Validated(weights_sha256="others"), validated_file(fold))
        return right(*args, **how)

    monkeypatch.setattr(choosing, "choose", choose)
    with pytest.raises(DataError, match="validated anew meanwhile; run this again"):
        pipeline.find_best(copied, DATASET)
    assert not copied.choosing_file(DATASET).exists()


def test_folds_that_change_after_the_training_are_not_validated_and_chosen_by(
    copied: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = json.loads(copied.splits_file(DATASET).read_text())
    one, other = splits[0]["val"][0], splits[1]["val"][0]
    text = json.dumps(splits[:2]).replace(one, "-").replace(other, one).replace("-", other)
    copied.user_splits_file(DATASET).write_text(json.dumps([*json.loads(text), splits[2]]))
    for words in (("find-best", "7"), ("train", "7", LOW, "0", "--val", "--device", "cpu")):
        assert run(copied, *words, "-q") != 0
        said = capsys.readouterr().err
        assert f"fold_0: its network was trained on case {other}" in said
        assert f"`nnseg train {DATASET} {LOW} 0 -p nnseg --overwrite`" in said
        assert "--val`" not in said
    assert not copied.choice_file(DATASET).exists()


def test_sizes_of_pictures_are_in_voxels(
    flat: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(flat.raw.parent, tmp_path / "flat")
    units = []

    def choose(dataset: str, candidates: Any, evidence: Evidence, **_: Any) -> Choosing:
        units.append(evidence.unit)
        raise StoppedError("enough")

    monkeypatch.setattr(choosing, "choose", choose)
    with pytest.raises(StoppedError, match="enough"):
        pipeline.find_best(Folders.of_root(tmp_path / "flat"), FLAT)
    assert units == ["voxels"]


def test_two_cannot_choose_at_once(copied: Folders) -> None:
    with (
        locked(copied.models_folder(DATASET), "nnseg find-best 7"),
        pytest.raises(MachineError, match="nnseg find-best 7"),
    ):
        pipeline.find_best(copied, DATASET)


def test_without_a_choice_the_command_that_makes_it_is_named(
    copied: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("predict", "-i", str(tmp_path), "-o", str(tmp_path / "out"), "-d", "7")
    assert run(copied, *words) == 5
    assert f"`nnseg find-best {DATASET}` writes it, or name" in capsys.readouterr().err
    assert run(copied, *words, "-p", "nnseg") == 2
    assert "-p is given without -c" in capsys.readouterr().err


def test_a_fold_that_was_trained_anew_since_then_is_named(
    copied: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.find_best(copied, DATASET)
    caplog.clear()
    assert choosing.find_choice(copied, DATASET) == copied.choice_file(DATASET)
    assert not caplog.records
    fold = copied.fold(DATASET, "nnseg", LOW, "1", 0)
    content = json.loads(checkpoint_file(fold, "final").read_text())
    checkpoint_file(fold, "final").write_text(json.dumps(content | {"weights_sha256": "others"}))
    choosing.find_choice(copied, DATASET)
    (entry,) = caplog.records
    assert entry.getMessage().startswith(f"nnseg/{LOW}/fold_1 was trained anew since ")
    copied.choosing_file(DATASET).unlink()
    assert choosing.find_choice(copied, DATASET).is_file()


def test_a_run_that_was_cut_off_between_its_two_files_is_said(
    copied: Folders, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = pipeline.find_best(copied, DATASET, configurations=[LOW])
    right = record.save

    def cut_off(value: Any, path: Path) -> None:
        if path == copied.choice_file(DATASET):
            raise KeyboardInterrupt
        right(value, path)

    monkeypatch.setattr(record, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        pipeline.find_best(copied, DATASET, configurations=[CASCADE])
    monkeypatch.undo()
    caplog.clear()
    assert record.load(Choice, choosing.find_choice(copied, DATASET)) == first.choice
    (entry,) = caplog.records
    assert "is not the choice that" in entry.getMessage()
    assert f"`nnseg find-best {DATASET}` makes both anew" in entry.getMessage()


def test_a_checkpoint_that_is_gone_hides_no_other_that_was_trained_anew(
    copied: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    found = pipeline.find_best(copied, DATASET)
    first, *_, last = found.weights_sha256
    checkpoint_file(copied.models_folder(DATASET) / first, "final").unlink()
    path = checkpoint_file(copied.models_folder(DATASET) / last, "final")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights_sha256": "others"}))
    caplog.clear()
    choosing.find_choice(copied, DATASET)
    (entry,) = caplog.records
    assert entry.getMessage().startswith(f"{last} was trained anew")
    copied.choosing_file(DATASET).write_text("{")
    caplog.clear()
    choosing.find_choice(copied, DATASET)
    assert "is still right cannot be told" in caplog.text


def test_counting_is_foretold_to_take_twenty_bytes_a_voxel(
    trained: Folders, tmp_path: Path
) -> None:
    path = tmp_path / "a.nii"
    write(path, np.zeros((40, 50, 60), np.uint8), simple_geometry((40, 50, 60), (2.0, 1.0, 1.5)))
    alone = survey(trained, DATASET, configurations=[LOW])
    assert choosing._bytes_of(alone, path) == pytest.approx(20 * 40 * 50 * 60, rel=0.01)
    both = survey(trained, DATASET)
    logits = 4 * 3 * 2 * 40 * 50 * 60  # float32 of three heads of two models
    assert choosing._bytes_of(both, path) == pytest.approx(20 * 40 * 50 * 60 + logits, rel=0.01)


def test_members_and_no_ensembles_contradict_each_other(
    trained: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("find-best", "7", "--disable_ensembling", "--members", "3")
    assert run(trained, *words) == 2
    assert "give one of them" in capsys.readouterr().err
