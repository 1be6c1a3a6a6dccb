import gzip
import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import EVIL, Page
from tiny import FLAT

from nnseg import commit, pipeline, record
from nnseg.choose import CandidateScore, Choosing, ChosenModel
from nnseg.cli import main
from nnseg.dataset import read_spec
from nnseg.errors import DataError, MissingError, StoppedError
from nnseg.folders import Folders
from nnseg.fsck.examine import examine_results
from nnseg.postprocess import KeepLargest, Postprocessing
from nnseg.report.facts import Facts
from nnseg.report.preview import MOST_BYTES
from nnseg.suspects.label_errors import Suspect, Suspects
from nnseg.verbs import reporting
from nnseg.verbs.info import describe, info
from nnseg.verbs.reporting import report_on, report_on_predictions
from nnseg.volume import knows_directions, read_segmentation, simple_geometry, write

SOLID = "Dataset003_Solid"


@pytest.fixture
def solid(tmp_path: Path) -> Folders:
    """Seven drawn 3D cases, one of an evil name, and two predictions of them, scored."""
    folders = Folders.of_root(tmp_path / "solid")
    spec = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "organ": 1, EVIL: 2},
        "numTraining": 7,
        "file_ending": ".nii.gz",
    }
    folders.raw_folder(SOLID).mkdir(parents=True)
    folders.spec_file(SOLID).write_text(json.dumps(spec), "utf-8")
    rng = np.random.default_rng(0)
    geometry = simple_geometry((6, 12, 9), (2.0, 1.0, 1.5))
    for number in range(7):
        name = EVIL if number == 3 else f"case_{number}"
        truth = np.zeros((6, 12, 9), np.uint8)
        truth[1:5, 2:10, 1:8] = 1
        truth[2:4, 4:7, 3:6] = 2
        image = rng.normal(100, 5, truth.shape).astype(np.float32) + 50 * truth
        write(folders.images(SOLID) / f"{name}_0000.nii.gz", image, geometry)
        write(folders.labels(SOLID) / f"{name}.nii.gz", truth, geometry)
        for kind, missed in (("good", 0), ("poor", 2)):
            found = truth.copy()
            found[:, : 2 + missed + number // 2] = 0
            write(predictions(folders, kind) / f"{name}.nii.gz", found, geometry)
    read = read_spec(folders.spec_file(SOLID))
    for kind in ("good", "poor"):
        pipeline.evaluate(
            folders.labels(SOLID), predictions(folders, kind), read.labels, read.file_ending
        )
    return folders


def predictions(folders: Folders, kind: str) -> Path:
    return folders.results.parent / kind


def facts_of(index: Path) -> Facts:
    return record.load(Facts, index.parent / "report.json")


def files_of(index: Path) -> Path:
    (folder,) = index.parent.glob("files-*")
    return folder


def content(index: Path) -> dict[str, bytes]:
    """The files of a report that hold no time."""
    return {path.name: path.read_bytes() for path in files_of(index).iterdir()}


def sections(index: Path) -> set[str | None]:
    return {found.get("id") for found in Page(index.read_text("utf-8")).of("section")}


def test_predictions_are_reported_with_a_small_safe_file_for_each_case(solid: Folders) -> None:
    index = report_on_predictions(solid, predictions(solid, "good"))
    assert index == predictions(solid, "good") / "report" / "index.html"
    facts = facts_of(index)
    assert facts.kind == "predictions"
    assert EVIL in {case.case_id for case in facts.cases}
    files = {case.file for case in facts.cases}
    assert files == {f"case-{i:04d}.js" for i in range(1, 8)}
    for name in files:
        script = (files_of(index) / str(name)).read_bytes()
        assert script.startswith(b"nnsegReport.take(")
        assert len(script) < MOST_BYTES
        assert b"<" not in script
    assert {"worst.png", "median.png", "best.png"} <= set(content(index))
    assert sections(index) == {"summary", "labels", "cases", "runs"}


def test_the_pictures_show_image_reference_and_prediction(solid: Folders) -> None:
    index = report_on_predictions(solid, predictions(solid, "good"))
    script = (files_of(index) / "case-0001.js").read_text("ascii")
    data = json.loads(script[script.index(",") + 1 : -3])
    assert data["shape"] == [9, 12, 6]
    assert [channel["name"] for channel in data["channels"]] == ["MR"]
    assert data["reference"]
    assert [found["name"] for found in data["maps"]] == ["prediction"]


def test_an_evil_name_stays_text_on_the_page(solid: Folders) -> None:
    page = Page(report_on_predictions(solid, predictions(solid, "good")).read_text("utf-8"))
    assert EVIL in page.text
    assert not [image for image in page.of("img") if image.get("src") == "x"]


def test_the_same_inputs_give_the_same_bytes_but_for_times(solid: Folders, tmp_path: Path) -> None:
    made = [
        report_on_predictions(solid, predictions(solid, "good"), output=tmp_path / name, workers=n)
        for name, n in (("a", 1), ("b", 3))
    ]
    assert content(made[0]) == content(made[1])
    assert files_of(made[0]).name == files_of(made[1]).name
    first, second = (
        path.read_text("utf-8").replace(facts_of(path).made[:16].replace("T", " "), "TIME")
        for path in made
    )
    assert first == second


def test_a_new_report_replaces_the_old_one_and_leaves_nothing_of_it(solid: Folders) -> None:
    folder = predictions(solid, "good")
    old = files_of(report_on_predictions(solid, folder))
    written = read_segmentation(folder / "case_0.nii.gz")[0]
    written[:] = 0
    write(folder / "case_0.nii.gz", written, simple_geometry(written.shape, (2.0, 1.0, 1.5)))
    index = report_on_predictions(solid, folder)
    assert files_of(index) != old
    assert f"{files_of(index).name}/" in index.read_text("utf-8")
    left = {path.name for path in index.parent.iterdir()}
    assert left == {
        "index.html", "report.json", "run_report.json", "run_report.log", files_of(index).name
    }  # fmt: skip


@pytest.mark.parametrize("at", ["case-0004.js", "report.json", "index.html"])
def test_a_report_that_cannot_be_finished_leaves_the_old_one_whole(
    solid: Folders, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    index = report_on_predictions(solid, predictions(solid, "good"))
    before, page = content(index), index.read_bytes()
    write_whole = commit.write_whole

    def fail(path: Path, data: bytes, **options: Any) -> None:
        if path.name == at:
            raise KeyboardInterrupt
        write_whole(path, data, **options)

    monkeypatch.setattr(commit, "write_whole", fail)
    monkeypatch.setattr(record, "write_whole", fail)
    with pytest.raises(KeyboardInterrupt):
        report_on_predictions(solid, predictions(solid, "good"), most_cases=7)
    monkeypatch.undo()
    assert index.read_bytes() == page
    assert content(index) == before


def test_facts_beside_the_page_of_another_run_are_found_and_mended(
    solid: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = predictions(solid, "good")
    index = report_on_predictions(solid, folder)

    def faults() -> list[str]:
        found = examine_results(index.parent).findings
        return [finding.found for finding in found if finding.rule == "report"]

    assert facts_of(index).page_sha256 == commit.sha256(index)
    assert faults() == []
    write_whole = commit.write_whole

    def fail(path: Path, data: bytes, **options: Any) -> None:
        if path == index:
            raise KeyboardInterrupt
        write_whole(path, data, **options)

    monkeypatch.setattr(commit, "write_whole", fail)
    with pytest.raises(KeyboardInterrupt):
        report_on_predictions(solid, folder, most_cases=3)
    monkeypatch.undo()
    assert faults() == ["is of another run than the report.json beside it"]
    report_on_predictions(solid, folder, most_cases=3)
    assert faults() == []
    index.unlink()
    assert faults() == ["does not exist"]


def test_what_a_kill_left_goes_the_next_time(solid: Folders) -> None:
    index = report_on_predictions(solid, predictions(solid, "good"))
    (index.parent / reporting.NEXT).mkdir()
    (index.parent / "files-0123456789abcdef").mkdir()
    index = report_on_predictions(solid, predictions(solid, "good"))
    assert [path.name for path in index.parent.glob("files*")] == [files_of(index).name]


def test_a_stop_leaves_the_old_report(solid: Folders) -> None:
    index = report_on_predictions(solid, predictions(solid, "good"))
    before = index.read_bytes()
    with pytest.raises(StoppedError):
        report_on_predictions(solid, predictions(solid, "good"), stop=lambda: True)
    assert index.read_bytes() == before


def test_a_case_that_cannot_be_read_costs_its_picture_alone(solid: Folders) -> None:
    (predictions(solid, "good") / "case_2.nii.gz").write_bytes(b"broken")
    facts = facts_of(report_on_predictions(solid, predictions(solid, "good")))
    shown = {case.case_id: case.file for case in facts.cases}
    assert [name for name, file in shown.items() if file is None] == ["case_2"]
    assert "picture of case_2" in {missing.section for missing in facts.missing}


def test_without_images_the_label_maps_are_shown(solid: Folders) -> None:
    shutil.rmtree(solid.images(SOLID))
    facts = facts_of(report_on_predictions(solid, predictions(solid, "good")))
    assert all(case.file for case in facts.cases)
    assert "images" in {missing.section for missing in facts.missing}


def test_the_worst_median_and_best_are_shown_where_not_all_are(solid: Folders) -> None:
    facts = facts_of(report_on_predictions(solid, predictions(solid, "good"), most_cases=6))
    assert {case.pick for case in facts.cases if case.file} == {"worst", "median", "best"}
    assert [case.pick for case in facts.cases if not case.file] == [None]
    assert "6 of 7 cases can be looked at" in facts.missing[-1].reason


def test_two_predictions_are_compared_case_by_case(solid: Folders, tmp_path: Path) -> None:
    index = report_on_predictions(
        solid, predictions(solid, "poor"), predictions(solid, "good"), output=tmp_path / "out"
    )
    facts = facts_of(index)
    assert facts.kind == "comparison"
    assert facts.comparison is not None
    assert (facts.comparison.first, facts.comparison.second) == ("poor", "good")
    assert facts.comparison.rows[-1].wins == 7
    assert facts.verdict[0].text.startswith("good is better than poor")
    assert facts.verdict[1].text.startswith("poor: Over 7 cases")
    assert all((case.other_dice or 0) > (case.dice or 0) for case in facts.cases)
    assert "difference" in sections(index)
    script = (files_of(index) / "case-0001.js").read_text("ascii")
    maps = json.loads(script[script.index(",") + 1 : -3])["maps"]
    assert [found["name"] for found in maps] == ["poor", "good"]


def test_predictions_without_scores_say_what_makes_them(solid: Folders) -> None:
    (predictions(solid, "good") / "summary.json").unlink()
    with pytest.raises(MissingError, match="nnseg evaluate"):
        report_on_predictions(solid, predictions(solid, "good"))


def test_a_dataset_is_reported_before_training(solid: Folders) -> None:
    index = report_on(solid, SOLID)
    assert index == solid.models_folder(SOLID) / "report" / "index.html"
    facts = facts_of(index)
    assert facts.kind == "dataset"
    assert facts.foreground is None
    assert facts.data is not None
    assert (facts.data.cases, facts.data.size_unit) == (7, "ml")
    (size,) = {case.label_size["organ"] for case in facts.cases}
    assert size == pytest.approx((4 * 8 * 7 - 2 * 3 * 3) * 2.0 * 1.0 * 1.5 / 1000)
    assert facts.findings is not None
    lacking = {missing.section for missing in facts.missing}
    assert {"plan", "choice", "scores", "suspected labels", "spacings and shapes"} <= lacking
    assert sections(index) == {"summary", "labels", "cases", "findings", "runs"}


def test_a_trained_fold_is_reported_with_its_plan_and_curves(flat: Folders, tmp_path: Path) -> None:
    fold = flat.fold(FLAT, "nnseg", "2d", "0", 0)
    index = report_on_predictions(flat, fold, output=tmp_path / "out")
    facts = facts_of(index)
    assert facts.kind == "fold"
    assert [len(curve.epochs) for curve in facts.curves] == [2]
    assert facts.plan is not None
    assert [name for name, _ in facts.plan.configurations] == ["2d"]
    assert facts.plan.reasons
    assert [run.command for run in facts.runs] == ["train"]
    assert facts.runs[0].outputs
    assert {"training", "plan", "runs", "confidence"} <= sections(index)


def choose(folders: Folders) -> None:
    """Write what choosing and looking for label errors would."""
    members = (ChosenModel(folder="nnseg/2d"),)
    rules = Postprocessing(rules=(KeepLargest(labels=("lesion",)),))
    score = CandidateScore(
        name="2d",
        members=members,
        dice=0.5,
        low=0.4,
        high=0.6,
        label_dice={},
        postprocessing=rules,
        dice_postprocessed=0.55,
        label_dice_postprocessed={},
    )
    record.save(
        Choosing(
            dataset=FLAT,
            folds=("0",),
            cases=2,
            candidates=(score,),
            chosen="2d",
            expected_dice=0.5,
            optimism=0.01,
            nnunet=score,
            gain=None,
        ),
        folders.choosing_file(FLAT),
    )


def test_a_choice_is_reported_with_its_candidates_and_suspects(
    flat: Folders, tmp_path: Path
) -> None:
    shutil.copytree(flat.raw.parent, tmp_path / "copy")
    folders = Folders.of_root(tmp_path / "copy")
    choose(folders)
    known = facts_of(report_on(folders, FLAT)).cases
    suspect = Suspect(
        case_id=known[0].case_id, score=9.5, label=None, reason="it looks odd", where=(0, 3, 5)
    )
    record.save(Suspects(suspects=(suspect,), cases=2), folders.suspects_file(FLAT))
    index = report_on(folders, FLAT)
    facts = facts_of(index)
    assert facts.kind == "choice"
    assert facts.choosing is not None
    assert facts.choosing.candidates[0].role == "chosen and nnU-Net's rule"
    assert facts.choosing.rules == ("keep the largest component of lesion",)
    assert [row.reason for row in facts.suspects or ()] == ["it looks odd"]
    assert {"choice", "suspects", "findings", "plan", "training"} <= sections(index)
    script = (files_of(index) / str(facts.cases[0].file)).read_text("ascii")
    assert '"start":[5,3,0]' in script


def test_a_record_that_is_none_costs_its_section(flat: Folders, tmp_path: Path) -> None:
    shutil.copytree(flat.raw.parent, tmp_path / "copy")
    folders = Folders.of_root(tmp_path / "copy")
    folders.choosing_file(FLAT).write_text("{}", "utf-8")
    facts = facts_of(report_on(folders, FLAT))
    assert facts.choosing is None
    assert "choosing.json" in {m.section: m.reason for m in facts.missing}["choice"]


def test_two_predictions_without_a_common_case_are_refused(solid: Folders) -> None:
    folder = predictions(solid, "poor")
    data = json.loads((folder / "summary.json").read_text("utf-8"))
    for case in data["metric_per_case"]:
        case["case_id"] += "x"
    (folder / "summary.json").write_text(json.dumps(data), "utf-8")
    with pytest.raises(DataError, match="no case is in both"):
        report_on_predictions(solid, predictions(solid, "good"), folder)


@pytest.mark.parametrize(
    "words",
    [
        lambda folders: [str(predictions(folders, "good"))],
        lambda folders: [str(predictions(folders, "good")), str(predictions(folders, "poor"))],
        lambda folders: ["3"],
    ],
)
def test_the_command_finds_out_what_is_meant(
    solid: Folders,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: Callable[[Folders], list[str]],
) -> None:
    given = ["report", *words(solid), "--root", str(solid.raw.parent), "-o", str(tmp_path / "out")]
    assert main([*given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "out" / "index.html")}
    kinds = {1: "predictions", 2: "comparison"} if words(solid) != ["3"] else {1: "dataset"}
    assert facts_of(tmp_path / "out" / "index.html").kind == kinds[len(words(solid))]


def test_a_comparison_leaves_the_report_on_the_second_alone(solid: Folders) -> None:
    own = report_on_predictions(solid, predictions(solid, "good"))
    page = own.read_bytes()
    index = report_on_predictions(solid, predictions(solid, "poor"), predictions(solid, "good"))
    assert index == predictions(solid, "good") / "comparison" / "index.html"
    assert own.read_bytes() == page


@pytest.fixture
def copied(flat: Folders, tmp_path: Path) -> Folders:
    """A copy of the trained 2D phantoms that a test may change."""
    shutil.copytree(flat.raw.parent, tmp_path / "copy")
    return Folders.of_root(tmp_path / "copy")


def fold_of(folders: Folders) -> Path:
    return folders.fold(FLAT, "nnseg", "2d", "0", 0)


def missing(index: Path) -> dict[str, str]:
    return {row.section: row.reason for row in facts_of(index).missing}


def change_weights(fold: Path) -> None:
    """Have the final weights be others than those that were validated."""
    path = fold / "checkpoint_final.json"
    data = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(data | {"weights_sha256": "0" * 64}), "utf-8")


def test_a_training_that_was_kept_aside_is_none_of_the_folds(copied: Folders) -> None:
    fold = fold_of(copied)
    shutil.copytree(fold, fold.with_name("fold_0.old1"))
    facts = facts_of(report_on(copied, FLAT))
    assert [curve.name for curve in facts.curves] == ["2d fold 0"]
    assert info(copied).models[0].folds == ("0",)


def test_a_case_that_two_folds_held_out_counts_once_in_the_first(copied: Folders) -> None:
    shutil.copytree(fold_of(copied), copied.fold(FLAT, "nnseg", "2d", "1", 0))
    facts = facts_of(report_on(copied, FLAT))
    assert [curve.name for curve in facts.curves] == ["2d fold 0", "2d fold 1"]
    assert {case.group for case in facts.cases} == {"fold 0"}
    assert len({case.case_id for case in facts.cases}) == len(facts.cases)


def test_scores_of_other_weights_are_left_out_and_said(copied: Folders) -> None:
    shutil.copytree(fold_of(copied), copied.fold(FLAT, "nnseg", "2d", "1", 0))
    change_weights(fold_of(copied))
    index = report_on(copied, FLAT)
    assert [curve.name for curve in facts_of(index).curves] == ["2d fold 1"]
    assert "final weights" in missing(index)["scores of 2d fold 0"]
    (model,) = info(copied).models
    assert (model.folds, model.validated, model.outdated) == (("0", "1"), ("1",), ("0",))
    assert "scores of 0 are of other weights" in describe(info(copied))


def test_a_fold_with_scores_of_other_weights_is_reported_without_them(copied: Folders) -> None:
    change_weights(fold_of(copied))
    index = report_on_predictions(copied, fold_of(copied))
    facts = facts_of(index)
    assert (facts.foreground, facts.cases, facts.trust) == (None, (), ())
    assert facts.curves
    assert "final weights" in missing(index)["scores"]
    with pytest.raises(DataError, match="final weights"):
        report_on_predictions(copied, fold_of(copied), fold_of(copied))


def test_a_choice_of_other_weights_is_left_out_and_said(copied: Folders) -> None:
    choose(copied)
    path = copied.choosing_file(FLAT)
    found = record.load(Choosing, path)
    final = record.read_json(fold_of(copied) / "checkpoint_final.json")["weights_sha256"]
    for weights, is_kept in ((final, True), ("0" * 64, False)):
        record.save(replace(found, weights_sha256={"nnseg/2d/fold_0": weights}), path)
        index = report_on(copied, FLAT)
        assert (facts_of(index).choosing is not None) == is_kept
    assert "find-best" in missing(index)["choice"]


def test_a_choice_says_which_folds_seed_and_plan_are_shown(copied: Folders) -> None:
    source, path = fold_of(copied), copied.choosing_file(FLAT)
    for name in ("fold_0_seed7", "fold_1_seed7"):
        shutil.copytree(source, copied.plan_models(FLAT, "mine") / "2d" / name)
    choose(copied)
    found = record.load(Choosing, path)
    members = (ChosenModel(folder="mine/2d", folds=("0_seed7", "1_seed7")),)
    score = replace(found.best, members=members)
    record.save(replace(found, folds=("1",), candidates=(score,), nnunet=score), path)
    facts = facts_of(report_on(copied, FLAT))
    assert [curve.name for curve in facts.curves] == ["2d fold 1 seed 7"]
    assert facts.plan is not None


def test_label_maps_that_were_replaced_lose_their_scores_and_are_shown(solid: Folders) -> None:
    folder = predictions(solid, "good")
    empty, grid = np.zeros((6, 12, 9), np.uint8), simple_geometry((6, 12, 9), (2.0, 1.0, 1.5))
    write(folder / "case_0.nii.gz", empty, grid)
    index = report_on_predictions(solid, folder)
    facts = facts_of(index)
    assert {case.case_id: case.dice for case in facts.cases if case.dice is None} == {
        "case_0": None
    }
    assert all(case.file for case in facts.cases)
    assert facts.foreground is not None
    assert facts.foreground.dice.count == 6
    assert "replaced" in missing(index)["scores of case case_0"]
    for path in folder.glob("*.nii.gz"):
        write(path, empty, grid)
    facts = facts_of(report_on_predictions(solid, folder))
    assert facts.foreground is None
    assert len(facts.cases) == 7
    with pytest.raises(DataError, match="replaced"):
        report_on_predictions(solid, predictions(solid, "poor"), folder)


@pytest.mark.parametrize(
    "text",
    [
        "epoch,lr,loss\n9,0.1\n",
        'epoch\n"' + "x" * 200_000 + '"\n',
        "epoch,lr,loss,validation_loss,dice,dice_average,seconds\n1,0.1,nan,1,0.1,0.1,1\n",
        "epoch,lr,loss,validation_loss,dice,dice_average,seconds\n1,0.1,0.1,inf,0.1,0.1,1\n",
    ],
)
def test_a_damaged_table_of_epochs_costs_its_curves(copied: Folders, text: str) -> None:
    (fold_of(copied) / "metrics.csv").write_text(text, "utf-8")
    index = report_on(copied, FLAT)
    assert facts_of(index).curves == ()
    assert facts_of(index).foreground is not None
    assert "metrics.csv" in missing(index)["training curves of 2d fold 0"]


@pytest.mark.parametrize(
    "text", ['{"metric', '{"metric_per_case": [{"prediction_file": "x"}]}', "[]", "7"]
)
def test_damaged_scores_cost_their_fold(copied: Folders, text: str) -> None:
    other = copied.model(FLAT, "nnseg", "3d_fullres") / "fold_0"
    shutil.copytree(fold_of(copied), other)
    for fold in (other, copied.fold(FLAT, "nnseg", "2d", "1", 0)):
        shutil.copytree(fold_of(copied), fold, dirs_exist_ok=True)
        (fold / "validation" / "summary.json").write_text(text, "utf-8")
        proof = fold / "validation" / "validated.json"
        data = json.loads(proof.read_text("utf-8"))
        proof.write_text(
            json.dumps({key: data[key] for key in ("weights_sha256", "cases")}), "utf-8"
        )
    index = report_on(copied, FLAT)
    assert [curve.name for curve in facts_of(index).curves] == ["2d fold 0"]
    assert "summary.json" in missing(index)["scores of 2d fold 1"]


@pytest.mark.parametrize("cases", [[], ["x"], [{"case_id": "a"}], "x", {}])
def test_scores_that_are_none_are_refused_by_name(solid: Folders, cases: Any) -> None:
    folder = predictions(solid, "good")
    data = json.loads((folder / "summary.json").read_text("utf-8"))
    (folder / "summary.json").write_text(json.dumps(data | {"metric_per_case": cases}), "utf-8")
    with pytest.raises(DataError, match=r"summary\.json"):
        report_on_predictions(solid, folder, dataset_json=solid.spec_file(SOLID))


def test_a_folder_of_other_things_is_refused_and_left_as_it_is(
    solid: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    (study / "files-of-patients").mkdir(parents=True)
    (study / "index.html").write_text("mine", "utf-8")
    words = ["report", "3", "--root", str(solid.raw.parent), "-o", str(study)]
    assert main(words) == main([*words, "--dry-run"]) == 2
    assert "no report" in capsys.readouterr().err
    assert sorted(path.name for path in study.iterdir()) == ["files-of-patients", "index.html"]
    assert (study / "index.html").read_text("utf-8") == "mine"


def test_a_report_is_replaced_and_what_else_lies_there_stays(solid: Folders) -> None:
    index = report_on(solid, SOLID)
    for name in ("files-of-patients", "files-0000", "files-0123456789ABCDEF"):
        (index.parent / name).mkdir()
    assert report_on(solid, SOLID) == index
    kept = {path.name for path in index.parent.glob("files-*")}
    assert {"files-of-patients", "files-0000", "files-0123456789ABCDEF"} < kept


def test_an_interrupted_first_report_does_not_bar_the_next(
    solid: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "page", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report_on(solid, SOLID)
    monkeypatch.undo()
    assert report_on(solid, SOLID).is_file()


def test_no_path_of_the_machine_is_in_the_report(copied: Folders, solid: Folders) -> None:
    (predictions(solid, "good") / "case_2.nii.gz").unlink()
    choose(copied)
    for index in (
        report_on(copied, FLAT),
        report_on_predictions(copied, fold_of(copied)),
        report_on_predictions(solid, predictions(solid, "good")),
        report_on_predictions(solid, predictions(solid, "good"), predictions(solid, "poor")),
        report_on(solid, SOLID),
    ):
        names = ("index.html", "report.json", "run_report.json", "run_report.log")
        for path in (index.parent / name for name in names):
            text = path.read_text("utf-8")
            assert str(copied.raw.parent.parent) not in text
            assert "/tmp" not in text
    assert facts_of(report_on(copied, FLAT)).subject == f"results/{FLAT}"


def test_a_training_took_the_time_of_all_its_sessions(copied: Folders) -> None:
    path = fold_of(copied) / "checkpoint_latest.json"
    data = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(data | {"seconds": 7200.5, "epoch": 90}), "utf-8")
    (run,) = facts_of(report_on_predictions(copied, fold_of(copied))).runs
    assert (run.seconds, run.facts["epochs"]) == (7200.5, 90)


def test_a_prediction_in_a_folder_called_reference_is_told_from_the_reference(
    solid: Folders,
) -> None:
    folder = predictions(solid, "good").with_name("reference")
    predictions(solid, "good").rename(folder)
    read = read_spec(solid.spec_file(SOLID))
    pipeline.evaluate(solid.labels(SOLID), folder, read.labels, read.file_ending)
    index = report_on_predictions(solid, predictions(solid, "poor"), folder)
    script = (files_of(index) / "case-0001.js").read_text("ascii")
    data = json.loads(script[script.index(",") + 1 : -3])
    assert [found["name"] for found in data["maps"]] == ["poor", "predicted reference"]
    assert data["reference"] != data["maps"][1]["data"]


@pytest.mark.parametrize("ending", [".tif", ".nii.gz"])
def test_directions_that_nobody_knows_are_not_shown(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    array = np.zeros((3, 4, 5), np.uint8)
    array[0, 0, 0] = 1
    write(path, array, simple_geometry((3, 4, 5), (1.0, 1.0, 1.0)))
    if ending == ".nii.gz":
        assert knows_directions(path, read_segmentation(path)[1])
        data = bytearray(gzip.decompress(path.read_bytes()))
        data[252:256] = bytes(4)  # qform_code and sform_code
        path.write_bytes(gzip.compress(bytes(data)))
    assert not knows_directions(path, read_segmentation(path)[1])


def test_cases_wait_for_memory(solid: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnseg.estimate.free_memory", lambda: 1)
    under_way, most = set[int](), []
    real = reporting._read

    def watched(*args: Any) -> Any:
        under_way.add(threading.get_ident())
        most.append(len(under_way))
        time.sleep(0.01)
        found = real(*args)
        under_way.discard(threading.get_ident())
        return found

    monkeypatch.setattr(reporting, "_read", watched)
    report_on_predictions(solid, predictions(solid, "good"), workers=4)
    assert max(most) == 1


def test_a_dry_run_says_what_would_be_there_and_writes_nothing(
    solid: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    root = solid.raw.parent
    before = sorted(root.rglob("*"))
    for words in (["3"], [str(predictions(solid, "good"))]):
        assert main(["report", *words, "--root", str(root), "--dry-run", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["cases"], told["pictures"]) == (7, 7)
        assert main(["report", *words, "--root", str(root), "--dry-run"]) == 0
        assert "7 cases" in capsys.readouterr().out
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("most_cases", [0, 7])
def test_a_stop_while_the_doctor_looks_ends_the_report(solid: Folders, most_cases: int) -> None:
    seen = []

    def watch(what: str, done: int, total: int) -> None:
        seen.append((what, done))

    with pytest.raises(StoppedError, match=r"^stopped; the report"):
        report_on(
            solid,
            SOLID,
            most_cases=most_cases,
            workers=1,
            on_progress=watch,
            stop=lambda: bool(seen),
        )
    assert len(seen) == 1
    assert not (solid.models_folder(SOLID) / "report" / "index.html").exists()
