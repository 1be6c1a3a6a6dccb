import json
from pathlib import Path

import numpy as np
import pytest

from nnseg import record
from nnseg.errors import DataError
from nnseg.evaluate import CaseScores, Score, score_case, summarize
from nnseg.labels import Labels
from nnseg.scores.detection import Detection
from nnseg.scores.summary_json import from_nnunet, to_nnunet

SHAPE = (4, 6, 9)
SPACING = (2.5, 0.7, 0.8)
ORGANS = Labels(labels={"background": 0, "liver": 1, "spleen": 2})
SPARSE = Labels(labels={"background": 0, "liver": 1, "spleen": 2, "ignore": 3})
TUMOUR = Labels(
    labels={"background": 0, "whole": (1, 2, 3), "core": (2, 3), "active": 3},
    regions_class_order=(1, 2, 3),
)
GAPS = Labels(
    labels={"background": 0, "whole": (7, 255, 300), "core": (255, 300), "ignore": 999},
    regions_class_order=(7, 255),
)
NNUNET = {"Dice": 0.5, "IoU": 1 / 3, "TP": 1, "FP": 1, "FN": 1, "TN": 7, "n_pred": 2, "n_ref": 2}


def label_map(seed: int, highest: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, highest + 1, SHAPE).astype(np.uint8)


def case(case_id: str, **scores: Score) -> CaseScores:
    return CaseScores(
        case_id=case_id,
        reference_file=f"labelsTr/{case_id}.nii.gz",
        prediction_file=f"validation/{case_id}.nii.gz",
        scores=scores,
    )


def score(tp: int = 0, fp: int = 0, fn: int = 0, **surface: float | None) -> Score:
    return Score(tp=tp, fp=fp, fn=fn, tn=100 - tp - fp - fn, **surface)


def test_the_json_has_the_layout_of_nnunet() -> None:
    scores = {
        "liver": score(tp=2, fp=4, fn=4, hd95_mm=1.5, nsd=0.5, assd_mm=0.75),
        "spleen": score(),
    }
    data = to_nnunet(summarize([case("a", **scores)], ORGANS), ORGANS)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    metrics = {
        "Dice": 1 / 3,
        "IoU": 0.2,
        "TP": 2,
        "FP": 4,
        "FN": 4,
        "TN": 90,
        "n_pred": 6,
        "n_ref": 6,
        "HD95": 1.5,
        "ASSD": 0.75,
        "NSD": 0.5,
        "VolumeError": 0.0,
    }
    [entry] = data["metric_per_case"]
    assert entry["reference_file"] == "labelsTr/a.nii.gz"
    assert entry["prediction_file"] == "validation/a.nii.gz"
    assert entry["metrics"]["1"] == metrics
    assert entry["metrics"]["2"]["Dice"] is None
    assert data["mean"]["1"] == metrics
    assert data["intervals"]["mean"]["1"]["Dice"] == [None, None]  # of one case there is none
    assert data["mean"]["2"]["Dice"] is None
    assert data["foreground_mean"]["Dice"] == 1 / 3
    assert data["foreground_mean"]["TP"] == 1
    assert data["cases_counted"]["2"] == {
        "Dice": 0, "HD95": 0, "NSD": 0, "VolumeError": 0,
    }  # fmt: skip
    assert data["labels_counted"] == {"Dice": 1, "HD95": 1, "NSD": 1, "VolumeError": 1}
    assert data["names"] == {"liver": "1", "spleen": "2"}


def test_regions_are_keyed_as_tuples() -> None:
    found = score_case(label_map(1, 3), label_map(2, 3), TUMOUR, SPACING)
    data = to_nnunet(summarize([case("a", **found)], TUMOUR), TUMOUR)
    assert list(data["mean"]) == ["(1, 2, 3)", "(2, 3)", "3"]
    gaps = {"whole": score(tp=1), "core": score(tp=1)}
    assert list(to_nnunet(summarize([case("a", **gaps)], GAPS), GAPS)["mean"]) == [
        "(7, 255, 300)",
        "(255, 300)",
    ]
    assert list(data["metric_per_case"][0]["metrics"]) == ["(1, 2, 3)", "(2, 3)", "3"]


def test_a_list_of_one_label_is_keyed_as_that_label_where_there_are_no_regions() -> None:
    labels = Labels(labels={"background": 0, "liver": (1,)})
    data = to_nnunet(summarize([case("a", liver=score(tp=1))], labels), labels)
    assert list(data["mean"]) == ["1"]


@pytest.mark.parametrize("labels", [ORGANS, SPARSE, TUMOUR], ids=["labels", "ignore", "regions"])
def test_a_summary_survives_the_disk(labels: Labels, tmp_path: Path) -> None:
    highest = labels.values[-1]
    cases = [
        case(name, **score_case(label_map(seed, highest), label_map(9, highest), labels, SPACING))
        for seed, name in enumerate("abc")
    ]
    cases.append(case("d", **{name: score() for name in labels.foreground}))
    summary = summarize(cases, labels, tolerance_mm=0.75)
    path = tmp_path / "summary.json"
    path.write_text(record.json_text(to_nnunet(summary, labels)))
    assert from_nnunet(record.read_json(path), labels, str(path)) == summary


def test_json_that_is_no_summary_of_these_labels_is_refused() -> None:
    cases = [case("a", liver=score(tp=1), spleen=score())]
    data = to_nnunet(summarize(cases, ORGANS), ORGANS)
    with pytest.raises(DataError, match=r"s\.json: is a summary of the labels"):
        from_nnunet(data, TUMOUR, "s.json")
    with pytest.raises(DataError, match=r"s\.json: names"):
        from_nnunet({key: data[key] for key in data if key != "names"}, ORGANS, "s.json")
    with pytest.raises(DataError, match=r"s\.json: is no summary of scores"):
        from_nnunet({}, ORGANS, "s.json")
    with pytest.raises(DataError, match=r"s\.json: no case was scored"):
        from_nnunet(data | {"metric_per_case": []}, ORGANS, "s.json")
    del data["metric_per_case"][0]["metrics"]["2"]
    with pytest.raises(DataError, match=r"s\.json: case a has no metrics of \['2'\]"):
        from_nnunet(data, ORGANS, "s.json")


def test_components_and_groups_survive_the_disk(tmp_path: Path) -> None:
    known = Detection(
        found=1,
        missed=2,
        spurious=1,
        iou_sum=0.75,
        panoptic_found=1,
        panoptic_iou_sum=0.75,
        found_confidences=(0.5,),
        spurious_confidences=(0.25,),
    )
    unknown = Detection(
        found=0, missed=0, spurious=0, iou_sum=0.0, panoptic_found=0, panoptic_iou_sum=0.0
    )
    cases = [
        case("a", liver=score(tp=1, detection=known), spleen=score(detection=unknown)),
        case("b", liver=score(fp=1, detection=known), spleen=score(detection=unknown)),
    ]
    summary = summarize(cases, ORGANS, match_iou=0.2, groups={"site 1": ("b",), "site 2": ("a",)})
    data = to_nnunet(summary, ORGANS)
    assert data["detection"]["mean"]["1"]["Sensitivity"] == 1 / 3
    assert data["detection"]["foreground_mean"]["FalsePositivesPerCase"] == 0.5
    assert data["groups"]["site 2"]["foreground_mean"]["Dice"] == 1
    assert data["metric_per_case"][0]["detection"]["1"]["F1"] == 0.4
    path = tmp_path / "summary.json"
    path.write_text(record.json_text(data))
    assert from_nnunet(record.read_json(path), ORGANS, str(path)) == summary


def test_a_summary_of_an_earlier_version_is_read() -> None:
    summary = summarize([case("a", liver=score(tp=1, hd95_mm=1.0), spleen=score())], ORGANS)
    data = to_nnunet(summary, ORGANS)
    old = {key: value for key, value in data.items() if key != "intervals"}
    for metrics in old["metric_per_case"][0]["metrics"].values():
        del metrics["ASSD"], metrics["VolumeError"]
    assert from_nnunet(old, ORGANS, "s.json") == summary


def test_a_summary_of_nnunet_is_read_with_the_names_that_are_known() -> None:
    metrics = {"1": NNUNET, "2": {**NNUNET, "Dice": None, "IoU": None, "TP": 0, "FP": 0, "FN": 0}}
    data = {
        "foreground_mean": NNUNET,
        "mean": metrics,
        "metric_per_case": [
            {
                "reference_file": "/gt/case_7.nii.gz",
                "prediction_file": "/out/case_7.nii.gz",
                "metrics": metrics,
            }
        ],
    }
    named = from_nnunet(data, ORGANS, "s.json")
    assert [one.case_id for one in named.cases] == ["case_7"]
    assert (named.mean["liver"].dice, named.mean["spleen"].dice) == (0.5, None)
    assert list(from_nnunet(data, None, "s.json").mean) == ["1", "2"]
    told = data | {"names": {"left": "1", "right": "2"}}
    assert list(from_nnunet(told, None, "s.json").mean) == ["left", "right"]


def test_the_names_of_a_summary_do_where_the_labels_are_not_known() -> None:
    summary = summarize([case("a", liver=score(tp=1), spleen=score())], ORGANS)
    assert from_nnunet(to_nnunet(summary, ORGANS), None, "s.json") == summary
