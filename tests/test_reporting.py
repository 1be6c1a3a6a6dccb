import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import EVIL, Page
from tiny import FLAT

from nnseg import commit, pipeline, record, reporting
from nnseg.choose import CandidateScore, Choosing, ChosenModel
from nnseg.cli import main
from nnseg.dataset import read_spec
from nnseg.errors import DataError, MissingError, StoppedError
from nnseg.folders import Folders
from nnseg.label_errors import Suspect, Suspects
from nnseg.postprocess import KeepLargest, Postprocessing
from nnseg.report.facts import Facts
from nnseg.report.preview import MOST_BYTES
from nnseg.reporting import report_on, report_on_predictions
from nnseg.volume import read_segmentation, simple_geometry, write

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
    assert list(data["maps"]) == ["reference", "prediction"]


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


def test_what_a_kill_left_goes_the_next_time(solid: Folders) -> None:
    index = report_on_predictions(solid, predictions(solid, "good"))
    (index.parent / reporting.NEXT).mkdir()
    (index.parent / "files-0000").mkdir()
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
    assert '"maps":{"reference":' in script
    assert '"poor":' in script and '"good":' in script  # noqa: PT018  (one fact)


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
