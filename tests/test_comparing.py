import json
import os
from pathlib import Path

import pytest
from scored import LABELS, save, save_results

from nnseg.errors import DataError, MissingError
from nnseg.scores.summary_json import from_nnunet, to_nnunet
from nnseg.verbs.comparing import compare_results
from nnseg.verbs.scoring import Wanted, evaluate

OVERLAP = Wanted(surface=False)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The truth of three cases, and predictions a and b of them."""
    save_results(tmp_path)
    return tmp_path


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
    assert dice.labels["spleen"].unpaired == ()
    assert from_nnunet(data, None, "s.json") == summary


def scored(results: Path, names: str = "ab") -> None:
    for name in names:
        evaluate(results / "truth", results / name, LABELS, ".nii.gz", wanted=OVERLAP)


def test_lesions_matched_from_two_ious_are_not_compared(results: Path) -> None:
    for name, share in (("a", 0.1), ("b", 0.6)):
        wanted = Wanted(surface=False, match_iou=share)
        evaluate(results / "truth", results / name, LABELS, ".nii.gz", wanted=wanted)
    pair = (results / "a", results / "b")
    for metrics in ((), ("f1",), ("dice", "sensitivity"), ("false_positives",)):
        with pytest.raises(DataError, match=r"an IoU of 0.1 in .*a and of 0.6 in .*b, so that"):
            compare_results(*pair, metrics=metrics)
    assert len(compare_results(*pair, metrics=("dice", "pq"))) == 2  # PQ has its own rule


def test_metrics_that_were_not_measured_are_refused(results: Path) -> None:
    scored(results)
    with pytest.raises(DataError, match=r"a: hd95, f1 was not measured; .*--detection"):
        compare_results(results / "a", results / "b", metrics=("hd95", "dice", "f1"))
    evaluate(results / "truth", results / "a", LABELS, ".nii.gz")
    with pytest.raises(DataError, match=r"b: hd95 was not measured"):
        compare_results(results / "a", results / "b", metrics=("hd95",))


def test_distances_are_compared_though_one_result_missed_everything(results: Path) -> None:
    for name in ("a1_x", "a1_y", "b2_z"):
        save(results / "a", name)
    found = compare_results(results / "a", results / "b", reference=results / "truth")
    (hd95,) = (one for one in found if one.metric == "hd95")
    assert hd95.labels["liver"].wins == 3


def test_scores_of_label_maps_that_were_replaced_are_refused(results: Path) -> None:
    scored(results)
    pair = (results / "a", results / "b")
    assert compare_results(*pair)
    map_file = results / "a" / "a1_y.nii.gz"
    before, times = map_file.read_bytes(), (map_file.stat().st_atime, map_file.stat().st_mtime)
    save(results / "a", "a1_y", (1, slice(0, 4)))
    os.utime(map_file, times)  # a file that was moved here may be older
    with pytest.raises(DataError, match=r"summary\.json: .*a1_y\.nii\.gz changed since.*evaluate"):
        compare_results(*pair)
    with pytest.raises(DataError, match="changed since"):
        compare_results(results / "b", results / "a" / "summary.json")
    assert compare_results(*pair, reference=results / "truth")
    map_file.write_bytes(before)
    assert compare_results(*pair)
    save(results / "truth", "b2_z", (1, slice(0, 5)))
    with pytest.raises(DataError, match=r"truth/b2_z\.nii\.gz changed since"):
        compare_results(*pair)


def test_scores_that_have_moved_are_held_against_the_maps_beside_them(results: Path) -> None:
    scored(results)
    moved = (results / "a").rename(results / "c")
    assert compare_results(moved, results / "b")
    for path in sorted(moved.glob("*.nii.gz")):
        path.unlink()
    assert compare_results(moved, results / "b")  # nothing is known of what is not there


def test_without_hashes_newer_label_maps_are_warned_of(
    results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scored(results)
    for name in "ab":
        (results / name / "run_evaluate.json").unlink()
    assert compare_results(results / "a", results / "b")
    assert "older" not in caplog.text
    later = (results / "a" / "summary.json").stat().st_mtime + 5
    os.utime(results / "a" / "a1_y.nii.gz", (later, later))
    assert compare_results(results / "a", results / "b")
    assert "summary.json is older than" in caplog.text
    assert "a1_y.nii.gz; evaluate again if those were replaced" in caplog.text


def test_what_one_result_did_not_predict_is_named(results: Path) -> None:
    (results / "a" / "a1_x.nii.gz").unlink()
    found = compare_results(results / "a", results / "b", reference=results / "truth")
    assert (found[0].missing_a, found[0].missing_b) == (("a1_x",), ())
    assert found[0].only_b == ("a1_x",)


def test_scores_that_lie_apart_are_held_against_the_maps_that_they_are_of(results: Path) -> None:
    scored(results, "b")
    apart = results / "b" / "apart"
    apart.mkdir()
    for name in ("a1_x", "a1_y", "b2_z"):
        save(apart, name, (1, slice(0, 1)))  # other maps of the same names
    evaluate(results / "truth", results / "a", LABELS, ".nii.gz", wanted=OVERLAP, output=apart)
    assert compare_results(apart, results / "b")
    save(results / "a", "a1_y", (1, slice(0, 4)))
    with pytest.raises(DataError, match=r"/a/a1_y\.nii\.gz changed since"):
        compare_results(apart, results / "b")
