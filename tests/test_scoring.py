import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from boxed import GEOMETRY, in_image, made, placed
from boxed import LABELS as BOXED
from boxed import save as save_probabilities
from scored import LABELS, SHAPE, save_results
from tiny import draw

from nnseg import estimate, record
from nnseg.dataset import read_spec
from nnseg.errors import DataError, MachineError, MissingError, UsageError
from nnseg.lock import locked
from nnseg.parallel import Room
from nnseg.verbs import scoring
from nnseg.verbs.scoring import (
    Wanted,
    evaluate,
    evaluate_test_set,
    find_evaluation,
    spec_for_evaluation,
    spec_of_labels,
)
from nnseg.volume import read_segmentation, simple_geometry, write

DATASET = "Dataset002_Mri"
OVERLAP = Wanted(surface=False)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The truth of three cases, and predictions a and b of them."""
    save_results(tmp_path)
    return tmp_path


def test_what_is_measured_is_what_was_wanted(results: Path) -> None:
    overlap = evaluate(results / "truth", results / "a", LABELS, ".nii.gz", wanted=OVERLAP)
    assert overlap.mean["liver"].dice == pytest.approx(2 / 3)
    assert (overlap.mean["liver"].nsd, overlap.match_iou) == (None, None)
    assert scoring.read_summary(results / "a", LABELS) == overlap
    wanted = Wanted(tolerance_mm=0.5, match_iou=0.6, group_regex="(^..)")
    whole = evaluate(results / "truth", results / "a", LABELS, ".nii.gz", wanted=wanted)
    assert whole.mean["liver"].assd_mm is not None
    assert whole.mean["liver"].detection is not None
    assert whole.mean["liver"].detection.f1 == 0  # the IoU is 1/2
    assert whole.groups == {"a1": ("a1_x", "a1_y"), "b2": ("b2_z",)}
    assert scoring.read_summary(results / "a", LABELS) == whole
    run = record.read_json(results / "a" / "run_evaluate.json")
    assert run["arguments"]["match_iou"] == 0.6


def test_ids_without_a_group_are_refused_before_anything_is_read(results: Path) -> None:
    with pytest.raises(UsageError, match="finds no group in 1 of 3 case ids, such as b2_z"):
        evaluate(
            *(results / "truth", results / "a", LABELS, ".nii.gz"), wanted=Wanted(group_regex="(a)")
        )
    with pytest.raises(UsageError, match="has no group"):
        scoring.group_cases(["a"], "a")


@pytest.mark.parametrize(
    "wrong",
    [
        {"tolerance_mm": -1.0},
        {"tolerance_mm": float("inf")},
        {"match_iou": 0.0},
        {"match_iou": 1.5},
        {"group_regex": "("},
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="|".join(wrong).replace("group_regex", "--group-regex")):
        Wanted(**wrong)


def test_components_have_confidences_where_probabilities_lie_beside(tmp_path: Path) -> None:
    prediction, truth = tmp_path / "a", tmp_path / "truth"
    prediction.mkdir()
    truth.mkdir()
    save_probabilities(prediction, "chunks", placed())
    found = in_image(made(placed()), placed(), BOXED).argmax(axis=0).astype(np.uint8)
    for folder in (prediction, truth):
        write(folder / "case.nii.gz", found, GEOMETRY)
    wanted = Wanted(surface=False, match_iou=0.1)
    summary = evaluate(truth, prediction, BOXED, ".nii.gz", wanted=wanted)
    core = summary.mean["core"].detection
    assert core is not None
    assert (core.f1, core.froc) == (1, 1)
    of_case = summary.cases[0].scores["core"].detection
    assert of_case is not None
    assert of_case.found_confidences is not None
    assert len(of_case.found_confidences) == of_case.found
    assert all(0.3 < value <= 1 for value in of_case.found_confidences)
    curve = json.loads((prediction / "summary.json").read_text())["detection"]["mean"]["1"]
    assert curve["FROCCurve"]["FalsePositivesPerCase"][-1] == 0
    assert curve["FROCCurve"]["Sensitivity"][-1] == 1
    assert len(curve["FROCCurve"]["Threshold"]) == of_case.found
    assert scoring.read_summary(prediction, BOXED) == summary


def test_probabilities_that_do_not_fit_cost_the_confidences_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prediction, truth = tmp_path / "a", tmp_path / "truth"
    prediction.mkdir()
    truth.mkdir()
    save_probabilities(prediction, "chunks", placed())
    for folder in (prediction, truth):
        other = simple_geometry((6, 11, 13), (3.0, 0.8, 0.7))
        write(folder / "case.nii.gz", np.ones((6, 11, 13), np.uint8), other)
    wanted = Wanted(surface=False, match_iou=0.1)
    summary = evaluate(truth, prediction, BOXED, ".nii.gz", wanted=wanted)
    core = summary.mean["core"].detection
    assert core is not None
    assert (core.f1, core.froc) == (1, None)
    assert re.search(r"case\.nii\.gz: the probabilities beside it are of an image", caplog.text)
    assert "remove" not in caplog.text


def test_a_test_set_is_scored_against_its_own_labels(tmp_path: Path) -> None:
    folders = draw(tmp_path, DATASET, "mri", cases=1, test_cases=2)
    truth = folders.test_labels(DATASET)
    with pytest.raises(MissingError, match=r"`nnseg predict -i .*imagesTs -o .*predicted_test"):
        evaluate_test_set(folders, DATASET)
    predicted = folders.test_predictions(DATASET)
    shutil.copytree(truth, predicted)
    found = evaluate_test_set(folders, DATASET, wanted=OVERLAP, workers=1)
    assert found.foreground_mean.dice == 1
    assert len(found.cases) == 2
    sorted(predicted.glob("*.nii.gz"))[0].unlink()
    assert len(evaluate_test_set(folders, DATASET, predicted, wanted=OVERLAP).missing) == 1
    shutil.rmtree(truth)
    with pytest.raises(MissingError, match="put the label maps of the test images there"):
        evaluate_test_set(folders, DATASET, predicted)


def test_labels_may_be_named_where_no_dataset_json_is(results: Path) -> None:
    spec = spec_of_labels(results / "a", {"both": (1, 2), "2": 2}, ignore=3)
    assert spec.file_ending == ".nii.gz"
    assert spec.labels.foreground == {"both": (1, 2), "2": (2,)}
    assert spec.labels.ignore == 3
    assert not spec_of_labels(results / "a", {"liver": 1, "spleen": 2}).labels.has_regions
    (results / "a" / "other.mha").touch()
    with pytest.raises(DataError, match=r"label maps end in \.mha, \.nii\.gz"):
        spec_of_labels(results / "a", {"liver": 1})


def test_every_case_is_scored_on_the_grid_of_its_reference(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "Dataset004_Hippocampus"
    spec = read_spec(folder / "dataset.json")
    predicted = tmp_path / "predicted"
    predicted.mkdir()
    for path in sorted((folder / "labelsTr").glob("h*.nii.gz"))[:3]:
        truth, geometry = read_segmentation(path)
        write(predicted / path.name, np.roll(truth, 1, axis=2), geometry)
    summary = evaluate(folder / "labelsTr", predicted, spec.labels, spec.file_ending)
    assert len(summary.cases) == 3
    assert summary.foreground_mean.dice is not None
    assert 0.7 < summary.foreground_mean.dice < 0.95
    assert summary.foreground_mean.hd95_mm == pytest.approx(1, abs=0.5)


def test_references_that_were_not_predicted_are_named_and_in_no_mean(
    results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = evaluate(results / "truth", results / "a", LABELS, ".nii.gz", wanted=OVERLAP)
    assert whole.missing == ()
    (results / "a" / "a1_y.nii.gz").unlink()
    summary = evaluate(results / "truth", results / "a", LABELS, ".nii.gz", wanted=OVERLAP)
    assert (summary.missing, len(summary.cases)) == (("a1_y",), 2)
    assert "not predicted, of 3 references: case a1_y" in caplog.text
    saved = json.loads((results / "a" / "summary.json").read_text())
    assert saved["missing_predictions"] == ["a1_y"]
    assert scoring.read_summary(results / "a", LABELS) == summary
    run = record.read_json(results / "a" / "run_evaluate.json")
    assert run["cases"] == {"a1_x": "done", "b2_z": "done", "a1_y": "not predicted"}


def test_the_scores_of_one_file_leave_those_of_its_folder_alone(results: Path) -> None:
    pair = (results / "truth" / "a1_x.nii.gz", results / "a" / "a1_x.nii.gz")
    before = sorted(path.name for path in (results / "a").iterdir())
    found = evaluate(*pair, LABELS, ".nii.gz", wanted=OVERLAP)
    assert len(found.cases) == 1
    assert sorted(path.name for path in (results / "a").iterdir()) == before
    for place in ("other", "other/one.json"):
        evaluate(*pair, LABELS, ".nii.gz", wanted=OVERLAP, output=results / place)
    assert scoring.read_summary(results / "other", LABELS) == found
    assert (results / "other" / "one.json").is_file()


def test_a_folder_that_cannot_be_written_is_scored_to_another_place(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = results / "a"
    monkeypatch.setattr(scoring.os, "access", lambda path, mode: path != folder)
    with pytest.raises(MachineError, match="give a place for the scores by -o"):
        evaluate(results / "truth", folder, LABELS, ".nii.gz", wanted=OVERLAP)
    before = sorted(folder.iterdir())
    evaluate(results / "truth", folder, LABELS, ".nii.gz", wanted=OVERLAP, output=results / "o")
    assert sorted(folder.iterdir()) == before
    assert len(scoring.read_summary(results / "o", LABELS).cases) == 3


def test_the_scores_of_a_folds_validation_are_not_replaced(results: Path) -> None:
    folder = results / "a"
    (folder / "validated.json").write_text("{}")
    (folder / "summary.json").write_text("theirs")
    with pytest.raises(UsageError, match=r"scores of a fold's validation.* by -o"):
        evaluate(results / "truth", folder, LABELS, ".nii.gz", wanted=OVERLAP)
    assert (folder / "summary.json").read_text() == "theirs"
    evaluate(results / "truth", folder, LABELS, ".nii.gz", wanted=OVERLAP, output=results / "o")
    assert (results / "o" / "summary.json").is_file()


def test_no_two_runs_are_at_work_on_one_folder(results: Path) -> None:
    with (
        locked(results / "a" / ".running" / "run", "nnseg predict"),
        pytest.raises(MachineError, match="is in use by `nnseg predict`"),
    ):
        evaluate(results / "truth", results / "a", LABELS, ".nii.gz", wanted=OVERLAP)


def test_what_would_be_scored_is_told_and_nothing_written(results: Path) -> None:
    (results / "a" / "a1_y.nii.gz").unlink()
    before = sorted(results.rglob("*"))
    found = find_evaluation(
        *(results / "truth", results / "a", LABELS, ".nii.gz"), wanted=Wanted(group_regex="(^..)")
    )
    assert str(found).splitlines() == [
        "scores 2 cases, such as a1_x, b2_z",
        "not predicted: case a1_y",
        "labels: liver, spleen",
        "groups: a1, b2",
        f"writes {results / 'a' / 'summary.json'}",
    ]
    assert sorted(results.rglob("*")) == before


def test_files_that_name_labels_must_not_contradict_each_other(
    results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    above, own = results / "dataset.json", results / "a" / "dataset.json"
    pair = (results / "truth", results / "a")
    shutil.copy(above, own)
    assert spec_for_evaluation(*pair, None).labels == LABELS
    content = json.loads(above.read_text())
    content["labels"] = {"background": 0, "liver": 2, "spleen": 1}
    own.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"a/dataset\.json says .*'liver': 2.*--dataset-json") as e:
        spec_for_evaluation(*pair, None)
    assert str(above) in str(e.value)
    assert spec_for_evaluation(*pair, above).labels == LABELS
    above.write_text("{}")  # of something else
    assert spec_for_evaluation(*pair, None).labels.foreground["liver"] == (2,)
    assert "the labels are those of" in caplog.text


def test_cases_are_scored_at_once_as_far_as_memory_goes(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(needs: dict[str, int]) -> Room:
        seen.append(needs)
        return Room(total=1, needs=needs)

    monkeypatch.setattr(estimate, "room_for", watched)
    about = (results / "truth", results / "a", LABELS, ".nii.gz")
    evaluate(*about, wanted=OVERLAP, workers=1)
    assert not seen  # one at a time needs no room beside others
    for wanted in (OVERLAP, Wanted(match_iou=0.1)):
        evaluate(*about, wanted=wanted, workers=2)
    assert set(seen[0]) == {"a1_x", "a1_y", "b2_z"}
    voxels = int(np.prod(SHAPE))
    assert all(need > 12 * voxels for need in seen[0].values())
    assert all(need > 24 * voxels for need in seen[1].values())
