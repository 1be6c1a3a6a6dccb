import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from boxed import GEOMETRY, in_image, made, placed
from boxed import LABELS as BOXED
from boxed import save as save_probabilities
from tiny import draw

from nnseg import record, scoring
from nnseg.dataset import read_spec
from nnseg.errors import DataError, MissingError, UsageError
from nnseg.labels import Labels
from nnseg.scoring import Wanted, compare_results, evaluate, evaluate_test_set, spec_of_labels
from nnseg.summary_json import from_nnunet, to_nnunet
from nnseg.volume import read_segmentation, simple_geometry, write

DATASET = "Dataset002_Mri"
SHAPE = (4, 6, 9)
LABELS = Labels(labels={"background": 0, "liver": 1, "spleen": 2})
OVERLAP = Wanted(surface=False)


def save(folder: Path, name: str, *boxes: tuple[int, slice]) -> None:
    """Write a label map: each label fills all of z and y in a range along x."""
    array = np.zeros(SHAPE, dtype=np.uint8)
    for label, columns in boxes:
        array[:, :, columns] = label
    folder.mkdir(exist_ok=True)
    write(folder / f"{name}.nii.gz", array, simple_geometry(SHAPE, (2.0, 1.0, 0.5)))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The truth of three cases, and predictions a and b of them."""
    for name in ("a1_x", "a1_y", "b2_z"):
        save(tmp_path / "truth", name, (1, slice(0, 4)))
        save(tmp_path / "a", name, (1, slice(2, 4)))
        save(tmp_path / "b", name, (1, slice(1, 4)))
    spec = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(spec))
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
    "wrong", [{"tolerance_mm": -1.0}, {"match_iou": 0.0}, {"match_iou": 1.5}, {"group_regex": "("}]
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
    write(prediction / "case.nii.gz", found[:-1], simple_geometry((6, 11, 13), (3.0, 0.8, 0.7)))
    write(truth / "case.nii.gz", found[:-1], simple_geometry((6, 11, 13), (3.0, 0.8, 0.7)))
    with pytest.raises(DataError, match=r"case\.nii\.gz: the probabilities beside it are of an"):
        evaluate(truth, prediction, BOXED, ".nii.gz", wanted=wanted)


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
    with pytest.raises(DataError, match="1 test cases were not predicted, such as"):
        evaluate_test_set(folders, DATASET, predicted)
    shutil.rmtree(truth)
    with pytest.raises(MissingError, match="put the label maps of the test images there"):
        evaluate_test_set(folders, DATASET, predicted)


def test_two_folders_of_predictions_are_scored_and_compared(results: Path) -> None:
    found = compare_results(results / "a", results / "b", reference=results / "truth")
    assert [one.metric for one in found] == ["dice", "iou", "hd95", "assd", "nsd", "volume"]
    dice = found[0].labels["liver"]
    assert (dice.mean_a, dice.mean_b) == pytest.approx((2 / 3, 6 / 7))
    assert (dice.wins, dice.p_value) == (3, 2 / 8)
    assert not (results / "a" / "summary.json").exists()
    (only,) = compare_results(
        results / "a", results / "b", reference=results / "truth", metrics=["iou"], wanted=OVERLAP
    )
    assert only.metric == "iou"


def test_two_summaries_are_compared_as_they_lie(results: Path) -> None:
    with pytest.raises(MissingError, match=r"`nnseg evaluate GT .*a` writes it"):
        compare_results(results / "a", results / "b")
    for name in "ab":
        evaluate(results / "truth", results / name, LABELS, ".nii.gz", wanted=OVERLAP)
    found = compare_results(results / "a", results / "b" / "summary.json")
    assert [one.metric for one in found] == ["dice", "iou", "volume"]
    assert found[0].labels["spleen"].mean is None


def test_nsd_of_two_tolerances_is_not_compared(results: Path) -> None:
    for name, tolerance in (("a", 1.0), ("b", 2.0)):
        wanted = Wanted(tolerance_mm=tolerance)
        evaluate(results / "truth", results / name, LABELS, ".nii.gz", wanted=wanted)
    with pytest.raises(DataError, match=r"a tolerance of 1.0 mm in .*a and of 2.0 mm in .*b"):
        compare_results(results / "a", results / "b")
    assert compare_results(results / "a", results / "b", metrics=["dice"])


def test_a_summary_of_nnunet_is_compared_with_ours_under_our_names(results: Path) -> None:
    summary = evaluate(results / "truth", results / "a", LABELS, ".nii.gz", wanted=OVERLAP)
    data = to_nnunet(summary, LABELS)
    theirs = {key: data[key] for key in ("foreground_mean", "mean")}
    known = ("Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref")
    theirs["metric_per_case"] = [
        {
            "reference_file": case["reference_file"],
            "prediction_file": case["prediction_file"],
            "metrics": {
                key: {name: float("nan") if its[name] is None else its[name] for name in known}
                for key, its in case["metrics"].items()
            },
        }
        for case in data["metric_per_case"]
    ]
    (results / "b" / "summary.json").write_text(json.dumps(theirs))  # with NaN
    dice = compare_results(results / "a", results / "b")[0]
    assert dice.cases == ("a1_x", "a1_y", "b2_z")
    assert dice.labels["liver"].ties == 3
    assert dice.labels["spleen"].unpaired == 0
    assert from_nnunet(data, None, "s.json") == summary


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
