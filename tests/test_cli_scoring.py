"""The commands of nnseg/cli/scoring.py, run as a person runs them."""

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny import draw

from nnseg import cli
from nnseg.volume import read_segmentation, write

DATASET = "Dataset002_Mri"


@pytest.fixture(autouse=True)
def undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take back what a command does to the process."""
    for name in ("NNSEG_ROOT", "nnseg_raw", "nnseg_preprocessed", "nnseg_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BLOSC_NTHREADS", "1")
    root = logging.getLogger("nnseg")
    level, kept = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = kept
    logging.captureWarnings(False)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of four test cases, and predictions a and b of them: shifted by one and by two."""
    root = tmp_path_factory.mktemp("scored")
    folders = draw(root, DATASET, "mri", cases=1, test_cases=4)
    for name, shift in (("a", 2), ("b", 1)):
        (root / name).mkdir()
        for path in sorted(folders.test_labels(DATASET).glob("*.nii.gz")):
            array, geometry = read_segmentation(path)
            write(root / name / path.name, np.roll(array, shift, axis=2), geometry)
    return root


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in argv])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture
def results(drawn: Path, tmp_path: Path) -> Path:
    shutil.copytree(drawn, tmp_path / "copy")
    return tmp_path / "copy"


def test_two_folders_are_scored(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = results / "raw" / DATASET / "labelsTs"
    code, out, _ = run(capsys, "evaluate", truth, results / "a", "-q")
    assert code == 0
    assert out.splitlines()[0].split()[:5] == ["Dice", "95", "%", "interval", "IoU"]
    assert out.splitlines()[-1].startswith("foreground mean")
    assert "HD95" in out
    code, out, _ = run(capsys, "evaluate", truth, results / "a", "-q", "--overlap")
    assert "HD95" not in out
    code, out, _ = run(capsys, "evaluate", truth, results / "a", "--overlap", "--detection")
    assert "FP/case" in out
    saved = json.loads((results / "a" / "summary.json").read_text())
    assert saved["detection"]["match_iou"] == 0.1
    code, out, _ = run(
        *(capsys, "evaluate", truth, results / "a", "--overlap", "--detection", "0.5", "--json")
    )
    assert json.loads(out)["detection"]["match_iou"] == 0.5


def test_a_dataset_has_a_test_set(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ("--root", results, "-q", "--overlap")
    code, _, err = run(capsys, "evaluate", "-d", "2", *root)
    assert code == 5
    assert re.search(r"predicted_test does not exist; `nnseg predict -i ", err)
    assert run(capsys, "evaluate", "-d", "2", results / "a", *root)[0] == 0
    (results / "results" / DATASET).mkdir(parents=True)
    (results / "b").rename(results / "results" / DATASET / "predicted_test")
    assert run(capsys, "evaluate", "-d", "2", *root)[0] == 0


def test_groups_have_a_table(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = results / "raw" / DATASET / "labelsTs"
    regex = r"(\d)$"
    argv = ("evaluate", truth, results / "a", "-q", "--overlap", "--group-regex", regex)
    code, out, _ = run(capsys, *argv)
    assert code == 0
    groups, scores = out.split("\n\n")
    assert len(groups.splitlines()) == 5
    assert scores.splitlines()[-1].startswith("foreground mean")


def test_labels_are_named_where_no_dataset_json_is(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = results / "truth"
    (results / "raw" / DATASET / "labelsTs").rename(truth)
    argv = ("evaluate", truth, results / "a", "-q", "--overlap")
    code, _, err = run(capsys, *argv)
    assert code == 5
    assert "or the labels by --labels" in err
    code, out, _ = run(capsys, *argv, "-l", "all=1,2", "second=2")
    assert code == 0
    assert out.splitlines()[1].startswith("all")
    assert "(1, 2)" in (results / "a" / "summary.json").read_text()
    code, _, err = run(capsys, *argv, "-l", "all=x")
    assert code == 2
    assert "invalid label such as 1, liver=1 or tumour=2,3" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evaluate"], "give the truth and the predictions"),
        (["evaluate", "a"], "give the truth and the predictions"),
        (["evaluate", "-d", "2", "a", "b"], "give the predictions alone"),
        (["evaluate", "a", "b", "-il", "3"], "-il belongs to -l"),
        (["evaluate", "a", "b", "-l", "1", "-djfile", "d"], "give one of them"),
        (["evaluate", ".", ".", "-l", "liver=1", "liver=2"], "-l names liver twice"),
        (["compare", "a", "b", "-l", "1"], "give --reference, too"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert message in err


def test_what_was_not_predicted_is_a_failure_unless_it_does_not_matter(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, gone = results / "raw" / DATASET / "labelsTs", min((results / "a").iterdir())
    gone.unlink()
    case_id = gone.name.removesuffix(".nii.gz")
    argv = ("evaluate", truth, results / "a", "-q", "--overlap")
    code, out, err = run(capsys, *argv)
    assert code == 6
    assert f"not predicted: case {case_id}" in err
    assert "3 of 4" in out
    assert f"not predicted (1): {case_id}" in out
    saved = json.loads((results / "a" / "summary.json").read_text())
    assert saved["missing_predictions"] == [case_id]
    code, out, err = run(capsys, *argv, "--json")
    assert (code, json.loads(out)["missing_predictions"]) == (6, [case_id])
    assert run(capsys, *argv, "--chill")[0] == 0
    root = ("--root", results, "-q", "--overlap")
    assert run(capsys, "evaluate", "-d", "2", results / "a", *root)[0] == 6
    argv = ("compare", results / "a", results / "b", "-q", "--overlap", "--reference", truth)
    code, out, _ = run(capsys, *argv)
    assert code == 6
    assert f"not predicted in A (1): {case_id}" in out
    assert run(capsys, *argv, "--chill")[0] == 0


def test_overlap_is_scored_without_what_is_slow_to_start(results: Path) -> None:
    program = (
        "import sys\nfrom nnseg.cli import main\ncode = main(sys.argv[1:])\n"
        "slow = {'torch', 'pydantic', 'scipy', 'nibabel', 'SimpleITK', 'nnseg.plan'}\n"
        "print(sorted(slow & set(sys.modules)), file=sys.stderr)\nsys.exit(code)"
    )
    words = [results / "raw" / DATASET / "labelsTs", results / "a", "--overlap", "-q"]
    ended = subprocess.run(
        [sys.executable, "-c", program, "evaluate", *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "foreground mean" in ended.stdout
    assert ended.stderr.splitlines()[-1] == "[]"


def test_scores_go_where_they_are_wanted(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, place = results / "raw" / DATASET / "labelsTs", results / "scores" / "a.json"
    name = min((results / "a").iterdir()).name
    before = sorted(results.rglob("*"))
    argv = ("evaluate", truth / name, results / "a" / name, "-q", "--overlap")
    code, out, _ = run(capsys, *argv, "-o", place, "--dry-run")
    assert (code, out.splitlines()[-1]) == (0, f"writes {place}")
    code, out, _ = run(capsys, *argv, "--dry-run", "--json")
    told = json.loads(out)
    assert (code, told["target"], told["written"]) == (0, None, False)
    assert told["cases"] == [name.removesuffix(".nii.gz")]
    assert told["labels"]
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert "foreground mean" in out
    assert sorted(results.rglob("*")) == before
    assert run(capsys, *argv, "-o", place)[0] == 0
    assert len(json.loads(place.read_text())["metric_per_case"]) == 1


def test_two_results_are_compared(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = results / "raw" / DATASET / "labelsTs"
    pair = (results / "a", results / "b")
    code, out, _ = run(
        capsys, "compare", *pair, "--reference", truth, "-q", "--overlap", "--metrics", "dice"
    )
    assert code == 0
    assert out.splitlines()[0] == f"A is {results / 'a'}"
    assert "4/0/0" in out
    code, _, err = run(capsys, "compare", *pair)
    assert code == 5
    assert "or give the true label maps by --reference" in err
    for folder in pair:
        run(capsys, "evaluate", truth, folder, "-q", "--overlap")
    code, out, _ = run(capsys, "compare", *pair, "--json")
    assert code == 0
    assert [one["metric"] for one in json.loads(out)] == ["dice", "iou", "volume"]


def test_the_metrics_of_the_command_line_are_those_that_there_are() -> None:
    from nnseg.cli.scoring import MATCH_IOU, METRICS
    from nnseg.scores.detection import MATCH_IOU as DEFAULT
    from nnseg.scores.metrics import METRICS as KNOWN

    assert tuple(KNOWN) == METRICS
    assert MATCH_IOU == DEFAULT
