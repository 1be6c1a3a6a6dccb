import dataclasses
import itertools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnseg import cli, console, phantom, pipeline, record
from nnseg.errors import (
    DataError,
    MachineError,
    MissingError,
    PartlyDoneError,
    StoppedError,
    UsageError,
)
from nnseg.folders import Folders
from nnseg.plan import Plan
from nnseg.volume import read_image, write

DATASET = "Dataset001_Flat"
CPU = ["-device", "cpu", "--precision", "fp32"]
SHORT = ["--epochs", "2", "--iterations", "2", "--validation-iterations", "1", *CPU]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def undone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Take back what a command does to the process."""
    for name in ("NNSEG_ROOT", "nnseg_raw", "nnseg_preprocessed", "nnseg_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BLOSC_NTHREADS", "1")
    root = logging.getLogger("nnseg")
    level, kept = root.level, list(root.handlers)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    root.setLevel(level)
    root.handlers[:] = kept
    logging.captureWarnings(False)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; give its exit code, stdout and stderr. It must not show a traceback."""

    def call(*argv: str | Path, main: Callable[[list[str]], int] = cli.main) -> Any:
        code = main([str(word) for word in argv])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.out, shown.err

    return call


def shrink(folders: Folders) -> None:
    """Give the plan a network that trains in milliseconds."""
    path = folders.plan_file(DATASET, "nnseg")
    plan = record.load(Plan, path)
    flat = plan.configuration("2d")
    tiny = dataclasses.replace(
        flat.architecture,
        features=(4, 8),
        kernel_sizes=((1, 3, 3),) * 2,
        strides=((1, 1, 1), (1, 2, 2)),
        encoder_blocks=(1, 1),
        decoder_blocks=(1,),
    )
    flat = dataclasses.replace(flat, architecture=tiny, patch_size=(1, 32, 24), batch_size=2)
    record.save(dataclasses.replace(plan, configurations={"2d": flat}), path)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a raw dataset only; tests leave it as it is."""
    root = tmp_path_factory.mktemp("raw_root")
    phantom.write_dataset(root / "raw" / DATASET, "2d", cases=4, test_cases=2)
    return root


@pytest.fixture(scope="module")
def planned(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the dataset planned and preprocessed; tests leave it as it is."""
    root = tmp_path_factory.mktemp("planned") / "root"
    shutil.copytree(raw, root)
    folders = Folders.of_root(root)
    pipeline.fingerprint(folders, DATASET, workers=1)
    pipeline.plan(folders, DATASET)
    shrink(folders)
    pipeline.preprocess(folders, DATASET, workers=1)
    return root


@pytest.fixture(scope="module")
def trained(planned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with fold 0 trained; tests leave it as it is."""
    root = tmp_path_factory.mktemp("trained") / "root"
    shutil.copytree(planned, root)
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    assert cli.main(["train", "1", "2d", "0", *SHORT, "--root", str(root), "-q"]) == 0
    for number, handler in kept.items():
        signal.signal(number, handler)
    return root


@pytest.fixture
def fresh(planned: Path, tmp_path: Path) -> Path:
    """A root of one's own, planned and preprocessed."""
    return Path(shutil.copytree(planned, tmp_path / "root"))


# ---------------------------------------------------------------- the whole way


def test_the_three_commands_that_people_know_do_the_whole_job(
    run: Run, raw: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(raw, tmp_path / "root"))
    code, out, _ = run(
        *("-d", "1", "-c", "2d", "-np", "1", "--verify_dataset_integrity", "--clean"),
        *("-pl", "default", "-gpu_memory_target", "4", "--root", root),
        main=cli.plan_and_preprocess,
    )
    assert code == 0
    assert f"{DATASET} 2d: 4 cases preprocessed" in out
    shrink(Folders.of_root(root))
    assert run("preprocess", "-d", "1", "-np", "1", "--root", root)[0] == 0

    code, out, _ = run("1", "2d", "0", *SHORT, "--root", root, main=cli.train)
    assert code == 0
    assert re.search(r"^epoch 1/2 loss -?\d\.\d+ dice .* eta ", out, re.MULTILINE)
    assert re.search(r"^trained in .*fold_0$", out, re.MULTILINE)
    assert "foreground mean" in out

    code, out, _ = run(
        *("-i", root / "raw" / DATASET / "imagesTs", "-o", tmp_path / "out"),
        *("-d", "1", "-c", "2d", "-f", "0", "-p", "nnseg", "-step_size", "0.7"),
        *("-chk", "checkpoint_final.pth", "--disable_tta", "--continue_prediction"),
        *("-num_parts", "1", "-part_id", "0", "-npp", "0", "-nps", "0", *CPU, "--root", root),
        *("-tr", "nnUNetTrainer", "--not_on_device", "--disable_progress_bar"),
        main=cli.predict,
    )
    assert code == 0
    assert f"2 segmentations in {tmp_path / 'out'}" in out

    truth = root / "raw" / DATASET / "labelsTs"
    code, out, _ = run("evaluate", truth, tmp_path / "out", "-np", "1", "--json")
    assert code == 0
    assert json.loads(out).keys() >= {"foreground_mean", "metric_per_case"}
    code, out, _ = run("evaluate", truth, tmp_path / "out", "-np", "1")
    assert out.splitlines()[-1].startswith("foreground mean")


def test_a_finished_training_says_so(run: Run, trained: Path) -> None:
    for more in ((), ("--c",), ("--continue",)):
        code, out, _ = run("train", "1", "2d", "0", *SHORT, *more, "--root", trained)
        assert code == 0
        assert "this training was finished before" in out
        assert "trained in" not in out
        assert "foreground mean" in out


def test_the_validation_alone_can_be_done_again(run: Run, trained: Path) -> None:
    summary = trained / f"results/{DATASET}/nnseg/2d/fold_0/validation/summary.json"
    before = summary.stat().st_mtime_ns
    code, out, _ = run("train", "1", "2d", "0", "--val", *CPU, "--root", trained)
    assert code == 0
    assert "foreground mean" in out
    assert summary.stat().st_mtime_ns > before


def test_a_model_is_its_folder_or_that_of_a_fold(run: Run, trained: Path, tmp_path: Path) -> None:
    images = trained / "raw" / DATASET / "imagesTs"
    model = trained / "results" / DATASET / "nnseg" / "2d"
    for number, folder in enumerate((model, model / "fold_0")):
        out = tmp_path / str(number)
        assert run("predict", "-i", images, "-o", out, "-m", folder, "--disable_tta", *CPU)[0] == 0
    first, second = (sorted((tmp_path / n).glob("*.nii.gz")) for n in "01")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_prediction_tells_more_where_asked(run: Run, trained: Path, tmp_path: Path) -> None:
    images = trained / "raw" / DATASET / "imagesTs"
    out = tmp_path / "out"
    code, said, _ = run(
        *("predict", "-i", images, "-o", out, "-d", "1", "-c", "2d", "--preset", "fast"),
        *("--uncertainty", "--statistics", "--calibrated", "--save_probabilities"),
        *("--device", "cpu", "--root", trained),
    )
    assert code == 0
    assert "2 segmentations in" in said
    cases = sorted(path.name[:-12] for path in images.iterdir())
    for case_id in cases:
        for ending in (
            *(".nii.gz", "_entropy.nii.gz", "_disagreement.nii.gz"),
            *(".npz", ".nii.gz.proof.json"),
        ):
            assert (out / f"{case_id}{ending}").is_file()
    table = (out / "statistics.csv").read_text().splitlines()
    assert len(table) == 1 + 2 * len(cases)
    report = json.loads((out / "run.json").read_text())
    assert report["facts"]["quality"].keys() == set(cases)
    assert report["arguments"]["maps"] == ["entropy", "disagreement"]
    truth = trained / "raw" / DATASET / "labelsTs"
    assert run("evaluate", truth, out, "-np", "1")[0] == 0  # which scores no map


def test_the_names_that_predict_takes_are_those_there_are() -> None:
    from nnseg.cli import predicting
    from nnseg.predictor import PRESETS
    from nnseg.probabilities import KINDS

    assert sorted(predicting.PRESETS) == sorted(PRESETS)
    assert sorted(predicting.KINDS) == sorted(KINDS)


def test_several_models_predict_together(run: Run, trained: Path, tmp_path: Path) -> None:
    images = trained / "raw" / DATASET / "imagesTs"
    model = trained / "results" / DATASET / "nnseg" / "2d"
    both = ("-m", model, model / "fold_0", "--weights", "2,1", "--disable_tta")
    code, _, _ = run("predict", "-i", images, "-o", tmp_path / "both", *both, *CPU)
    assert code == 0
    code, _, _ = run(
        *("predict", "-i", images, "-o", tmp_path / "one", "-m", model, "--disable_tta", *CPU)
    )
    assert code == 0
    both, one = (sorted((tmp_path / name).glob("*.nii.gz")) for name in ("both", "one"))
    assert [path.read_bytes() for path in both] == [path.read_bytes() for path in one]


def test_a_prediction_is_told_as_one_json_object(run: Run, trained: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(trained / "raw" / DATASET / "imagesTs", tmp_path / "in"))
    good = sorted(path.name[:-12] for path in images.iterdir())
    (images / "cut_0000.nii.gz").write_bytes(b"cut")
    argv = ("predict", "-i", images, "-o", tmp_path / "out", "-d", "1", "-c", "2d", "--json", *CPU)
    argv = (*argv, "--root", trained)
    code, out, err = run(*argv, "--dry-run")
    assert code == 6
    foretold = json.loads(out)
    assert {name for name, state in foretold["cases"].items() if state == "to do"} == {*good}
    assert foretold["written"] is False
    assert not (tmp_path / "out").exists()
    for _ in range(2):  # the second time it is done already
        code, out, told = run(*argv)
        assert code == 6
        assert "case cut: " in told
        assert told == err
        found = json.loads(out)
        assert found["cases"] == dict.fromkeys(good, "done") | {"cut": foretold["cases"]["cut"]}
        assert found["proofs"].keys() == {*good}
        proof = record.read_json(tmp_path / "out" / f"{good[0]}.nii.gz.proof.json")
        assert found["proofs"][good[0]] == proof
        assert found["written"] is True
    (images / "cut_0000.nii.gz").unlink()
    code, out, _ = run(*argv)
    assert (code, json.loads(out)["cases"]) == (0, dict.fromkeys(good, "done"))
    assert run(*argv[:3], "-o", images, *argv[5:])[:2] == (2, "")


def test_a_dry_run_of_a_prediction_says_what_would_be_done(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    images = trained / "raw" / DATASET / "imagesTs"
    argv = ("predict", "-i", images, "-d", "1", "-c", "2d", "--dry-run", *CPU, "--root", trained)
    code, out, _ = run(*argv, "-o", tmp_path / "out", "--disable_tta")
    assert code == 0
    cases, stage, takes = out.splitlines()
    assert cases == f"{images} to {tmp_path / 'out'}: 2 cases, 0 done, 2 to do"
    assert stage == f"{DATASET} nnseg 2d: 1 fold, no mirrors, on cpu in fp32"
    assert takes.endswith("of disk; nothing was written")
    assert list(tmp_path.iterdir()) == []
    assert run(*argv, "-o", images)[0] == 2
    assert run(*argv[:2], tmp_path, *argv[3:], "-o", tmp_path / "out")[0] == 3
    assert run(*argv[:2], tmp_path / "gone", *argv[3:], "-o", tmp_path / "out")[0] == 5


# ---------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("wrong usage"), 2),
        (DataError("wrong data"), 3),
        (MachineError("disk is full"), 4),
        (MissingError("not planned"), 5),
        (PartlyDoneError("1 of 2 cases failed:\n  case a: cut off"), 6),
        (StoppedError("stopped"), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_kind_of_error_is_its_message_and_its_exit_code(
    run: Run, planned: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(pipeline, "train", fail)
    found, out, err = run("train", "1", "2d", "0", "--root", planned)
    assert (found, out) == (code, "")
    assert err == f"nnseg: {str(error) or 'interrupted; the same command goes on'}\n"


def test_a_file_that_the_system_refuses_is_no_bug(
    run: Run, planned: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied", "raw/x")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(pipeline, "train", fail)
    code, _, err = run("train", "1", "2d", "0", "--root", planned)
    assert code == 4
    assert err.startswith("nnseg: raw/x: Permission denied; check the file and its rights (")
    assert err.count("\n") == 1
    (log,) = tmp_path.iterdir()
    assert "PermissionError" in log.read_text()


def test_a_bug_is_one_line_and_a_log(
    run: Run, planned: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise ZeroDivisionError("division by zero\nand more")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(pipeline, "train", fail)
    code, _, err = run("train", "1", "2d", "0", "--root", planned)
    assert code == 1
    assert err.count("\n") == 1
    assert err.startswith(
        "nnseg: a bug of ours: ZeroDivisionError: division by zero; please report"
    )
    (log,) = tmp_path.iterdir()
    assert str(log) in err
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["trian", "1"], "did you mean train?"),
        (["train", "1", "2d", "0", "--epoch", "3"], "did you mean --epochs?"),
        (["predict", "-i", "a", "-o", "b", "--disable-tta"], "did you mean --disable_tta?"),
        (["plan", "1", "--planner", "resencl"], "did you mean resenc_l?"),
        (["train", "1", "2d"], "required: FOLD"),
        (["train", "1", "2d", "0", "--epochs", "0"], "invalid positive whole number value: '0'"),
        (["train", "1", "2d", "0", "--budget", "soon"], "invalid length of time"),
        (["train", "1", "2d", "0", "--budget", "5s"], "budget of 5.0 s is too short"),
        (["train", "1", "2d", "0", "--loss", "hinge"], "no loss is named 'hinge'; known: ce"),
        (["train", "1", "2d", "0", "--seed", "-1"], "seed is -1"),
        (["train", "1", "2d", "0", "--seed", str(2**64)], f"seed is {2**64}; it must be at most"),
        (["train", "1", "2d", "0", "--workers", "-1"], "whole number from 0 on value: '-1'"),
        (["train", "1", "2d", "0", "--overwrite", "--c"], "--overwrite starts anew and --c goes"),
        (["train", "1", "2d", "0", "--overwrite", "--extend-to", "9"], "and --extend-to goes on"),
        (["predict", "-i", "a", "-o", "b"], "say which model: -d DATASET -c CONFIGURATION"),
        (["predict", "-i", "a", "-o", "b", "-m", "c", "--preset", "quick"], "choose from"),
        (["predict", "-i", "a", "-o", "b", "-d", "1", "-part_id", "1"], "-part_id is 1"),
        (["predict", "-i", "a", "-o", "b", "-d", "1", "-chk", "last"], "-chk is last; it must be"),
        (["predict", "-i", "a", "-o", "b", "-d", "1", "-step_size", "0"], "-step_size is 0.0"),
        (["plan", "--format", "nnunet"], "belong together"),
        (["plan"], "give a dataset"),
        (["demo", "--budget", "10s"], "budget of 10 s is too short"),
        (["doctor", "1", "-o", "copy"], "give --fix with it"),
        (["doctor", "1", "--fix", "--group-regex", "(x)"], "--group-regex mends nothing"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    run: Run, planned: Path, argv: list[str], text: str
) -> None:
    code, out, err = run(*argv, *(["--root", str(planned)] if argv[0] != "trian" else []))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("nnseg: ")
    assert text in err


def test_wrong_data_are_listed_and_exit_code_3(run: Run, raw: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(raw, tmp_path / "root"))
    bad = sorted((root / "raw" / DATASET / "labelsTr").iterdir())[1]
    bad.write_bytes(bad.read_bytes()[:50])
    for command in (("doctor", "1"), ("plan", "1"), ("plan_and_preprocess", "-d", "1")):
        code, out, err = run(*command, "--root", root)
        assert code == 3
        assert bad.name in out + err
    assert not (root / "preprocessed" / DATASET / "plans").exists()


def test_the_doctors_json_is_one_object_and_nothing_else(
    run: Run, raw: Path, tmp_path: Path
) -> None:
    code, out, err = run("doctor", "1", "--json", "--root", raw)
    assert (code, err) == (0, "")
    assert json.loads(out)["dataset"] == DATASET
    root = Path(shutil.copytree(raw, tmp_path / "root"))
    bad = next((root / "raw" / DATASET / "imagesTr").iterdir())
    bad.write_bytes(b"nothing")
    code, out, _ = run("doctor", "1", "--json", "--root", root)
    assert code == 3
    (finding, *_) = [each for each in json.loads(out)["findings"] if each["severity"] == "error"]
    assert finding["file"].endswith(bad.name)
    assert {"rule", "found", "remedy"} <= finding.keys()


def test_the_doctor_writes_a_corrected_copy_beside_the_dataset(
    run: Run, raw: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(raw, tmp_path / "root"))
    source, copy = root / "raw" / DATASET, root / "raw" / f"{DATASET}_fixed"
    stray = source / "labelsTr" / "notes.txt"
    stray.touch()
    code, out, _ = run("doctor", "1", "--fix", "--root", root)
    assert code == 0
    assert "mended   labelsTr/notes.txt: left out" in out
    assert out.splitlines()[-1] == f"corrected copy: {copy}"
    assert stray.exists()
    assert run("doctor", copy)[0] == 0

    bad = next((source / "imagesTr").iterdir())
    bad.write_bytes(b"nothing")
    other = tmp_path / "other"
    code, out, err = run("doctor", source, "--fix", "-o", other, "--json")
    assert code == 3
    assert f"{other}: 1 error left" in err
    shown = json.loads(out)
    assert (shown["dataset"], shown["copy"]) == (DATASET, str(other))
    assert [mend["file"] for mend in shown["mended"]] == ["labelsTr/notes.txt"]
    (left,) = shown["left"]
    assert left["finding"]["file"].endswith(bad.name)
    assert "cannot be made up" in left["reason"]
    assert run("doctor", source, "--fix", "-o", other)[0] == 2


def test_folds_by_patient_are_made_on_request_and_judged_by_the_doctor(
    run: Run, fresh: Path
) -> None:
    raw, splits = fresh / "raw" / DATASET, fresh / "preprocessed" / DATASET / "splits_final.json"
    code, out, _ = run("doctor", "1", "--group-regex", "2d_00(.)", "--root", fresh)
    assert (code, out) == (0, "nothing wrong was found\n")
    code, out, _ = run("doctor", "1", "--group-regex", "(2d)", "--root", fresh)
    assert code == 0
    assert "the folds of this dataset part the cases of 1 of 1 patients" in out
    for path in [*raw.glob("imagesTr/*"), *raw.glob("labelsTr/*")]:
        number = int(path.name[5])
        path.rename(path.with_name(f"p{number // 2}_{number}{path.name[6:]}"))
    splits.unlink()
    argv = ("-d", "1", "--group-regex", r"(p\d)", "-np", "1", "--root", fresh)
    assert run("plan", *argv)[0] == 0
    folds = json.loads(splits.read_text())
    assert [fold["val"] for fold in folds] == [["p1_2", "p1_3"], ["p0_0", "p0_1"]]
    splits.unlink()
    assert run("plan_and_preprocess", *argv, "-c", "2d")[0] == 0
    assert json.loads(splits.read_text()) == folds


@pytest.mark.parametrize(
    "command", [("doctor", "1"), ("plan", "1"), ("plan_and_preprocess", "-d", "1")]
)
def test_a_bad_expression_is_exit_code_2_and_names_the_place(
    run: Run, planned: Path, command: tuple[str, ...]
) -> None:
    code, out, err = run(*command, "--group-regex", "(2d", "--root", planned)
    assert (code, out) == (2, "")
    assert "unterminated subpattern at position 0" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["train", "predict"])
def test_a_device_that_is_not_there_is_exit_code_4(
    run: Run, trained: Path, tmp_path: Path, command: str
) -> None:
    argv = {
        "train": ["train", "1", "2d", "1", *SHORT],
        "predict": ["predict", "-i", "in", "-o", "out", "-d", "1", "-c", "2d", *CPU],
    }[command]
    argv[argv.index("-device") + 1] = "tpu9"
    code, _, err = run(*argv, "--root", trained)
    assert code == 4
    assert "device tpu9 cannot be used" in err
    assert "try --device cpu" in err


def test_what_is_missing_is_named_with_the_command_that_makes_it(
    run: Run, raw: Path, planned: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(raw, tmp_path / "root"))
    folders = Folders.of_root(root)
    predict = ("predict", "-i", root, "-o", tmp_path / "out", "-d", "1", "-c", "2d")
    for argv, hint in (
        (("train", "1", "2d", "0"), "`nnseg plan"),
        (("preprocess", "-d", "1"), "`nnseg plan"),
        (predict, f"`nnseg train {DATASET} 2d 0`"),
        ((*predict, "-f", "3"), f"`nnseg train {DATASET} 2d 3`"),
        (("predict", "-i", root, "-o", tmp_path, "-m", tmp_path), "`nnseg train DATASET "),
        (("doctor", "77"), "no dataset 77"),
        (("train", "1", "2d", "0", "--val"), "`nnseg train Dataset001_Flat 2d 0` makes it"),
    ):
        code, out, err = run(*argv, "--root", root)
        assert (code, out) == (5, ""), argv
        assert hint in err, argv
    shutil.copytree(planned / "preprocessed", folders.preprocessed, dirs_exist_ok=True)
    code, _, err = run("train", "1", "2d", "0", *SHORT, "--c", "--root", root)
    assert code == 5
    assert "there is no run to continue; start without --c" in err
    shutil.rmtree(folders.store(DATASET, "nnseg", "2d"))
    code, _, err = run("train", "1", "2d", "0", *SHORT, "--root", root)
    assert code == 5
    assert f"`nnseg preprocess -d {DATASET} -c 2d` makes it" in err


def test_bad_images_among_good_ones_are_exit_code_6(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(trained / "raw" / DATASET / "imagesTs", tmp_path / "in"))
    whole = next(images.iterdir())
    (images / "cut_0000.nii.gz").write_bytes(whole.read_bytes()[:99])
    image = read_image((whole,))
    values = image.image[0].copy()
    values[0, 2, 3] = np.nan
    write(images / "nan_0000.nii.gz", values, image.geometry)
    argv = ("predict", "-i", images, "-o", tmp_path / "out", "-d", "1", "-c", "2d", *CPU)
    code, _, err = run(*argv, "--root", trained)
    assert code == 6
    assert "2 of 4 cases failed:" in err
    assert "case cut: " in err
    assert "case nan: " in err
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_other_settings_are_refused_with_exit_code_2_and_the_way_out(
    run: Run, trained: Path
) -> None:
    code, _, err = run("train", "1", "2d", "0", *SHORT, "--lr", "0.5", "--root", trained)
    assert code == 2
    assert "lr is now 0.5, was " in err
    assert "--overwrite" in err


def test_who_says_go_on_need_not_repeat_the_settings(run: Run, trained: Path) -> None:
    code, out, _ = run("train", "1", "2d", "0", "--c", "--no-validation", "--root", trained)
    assert code == 0
    assert "this training was finished before" in out
    code, _, err = run("train", "1", "2d", "0", "--c", "--epochs", "9", "--root", trained)
    assert code == 2
    assert "other settings: epochs is now 9, was 2. Give" in err


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ([], set()),
        (["--lr", "0.5", "--seed", "3"], {"lr", "seed"}),
        (["--swap-labels", "a=b", "--budget", "9m"], {"swap_labels", "budget_seconds"}),
        (["--elastic", "9", "--mixup", "0.2"], {"elastic", "mixup"}),
        (["--preset", "default"], {"epochs", "patience", "budget_seconds"}),
        (["--pretrained", "model"], {"pretrained"}),
    ],
)
def test_a_training_is_told_which_settings_were_given(
    run: Run, planned: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], given: set[str]
) -> None:
    told: dict[str, Any] = {}

    def train(*arguments: Any, **options: Any) -> None:
        told.update(options)
        raise UsageError("enough")

    monkeypatch.setattr(pipeline, "train", train)
    code, _, err = run("train", "1", "2d", "0", "--c", *options, "--root", planned)
    assert (code, err) == (2, "nnseg: enough\n")
    assert (told["resume"], told["given"]) == (True, given)


def test_presets_differ_in_epochs_and_patience_and_the_budget() -> None:
    from nnseg.learning.recipe import PRESETS

    presets = [dataclasses.asdict(PRESETS[name]) for name in PRESETS]
    differ = {name for name in presets[0] if len({preset[name] for preset in presets}) > 1}
    assert differ == {"epochs", "patience", "budget_seconds"}


# ---------------------------------------------------------------- signals


@pytest.mark.fault("R18")
@pytest.mark.skipif(os.name != "posix", reason="there are no such signals")
def test_a_training_that_is_told_to_stop_goes_on_with_the_same_command(
    run: Run, fresh: Path
) -> None:
    argv = ["train", "1", "2d", "0", *SHORT, "--no-validation", "--root", str(fresh)]
    argv[argv.index("--epochs") + 1] = "20"
    folder = fresh / "results" / DATASET / "nnseg" / "2d" / "fold_0"
    reached = 0
    for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        with subprocess.Popen(
            [sys.executable, "-m", "nnseg", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            start, first = next(lines), ""
            first = next(lines) if start.startswith("going on after epoch") else start
            assert (start == first) == (reached == 0)  # a run that goes on says from where
            process.send_signal(number)
            _, err = process.communicate(timeout=100)
        assert process.returncode == code, err
        assert "everything is saved; the same command goes on" in err
        assert "Traceback" not in err
        epoch = int(first.split()[1].split("/")[0])
        assert epoch > reached
        reached = record.read_json(folder / "checkpoint_latest.json")["epoch"]
        assert epoch <= reached < 20
        assert not list(folder.glob(".*"))  # no lock, nothing half written
    code, out, _ = run(*argv)
    assert code == 0
    assert [line.split()[1] for line in out.splitlines() if line.startswith("epoch ")] == [
        f"{epoch}/20" for epoch in range(reached + 1, 21)
    ]
    rows = (folder / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(1, 21))


@pytest.mark.fault("R18")
def test_ctrl_c_ends_a_prediction_within_a_case_and_the_same_command_goes_on(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnseg import ensemble

    images, out = trained / "raw" / DATASET / "imagesTs", tmp_path / "out"
    argv = ("predict", "-i", images, "-o", out, "-d", "1", "-c", "2d", *CPU, "--root", trained)
    argv = (*argv, "--json", "--save_probabilities")
    first = min(images.iterdir()).name[:-12]
    restore_logits, begun = ensemble.restore_logits, []

    def interrupted(runs: Any, *args: Any) -> Any:
        begun.append(next(iter(runs)))
        if len(begun) == 2:
            signal.raise_signal(signal.SIGINT)
        return restore_logits(itertools.chain([begun[-1]], runs), *args)

    monkeypatch.setattr(console.STOP, "signal", None)
    monkeypatch.setattr(console.STOP, "_interrupted", False)
    monkeypatch.setattr(ensemble, "restore_logits", interrupted)
    code, said, err = run(*argv)
    assert code == 130
    assert "stopped while an image was predicted; nothing of it is kept" in err
    assert json.loads(said)["cases"] == {first: "done"}
    assert {path.name for path in out.iterdir()} == {
        *(f"{first}.nii.gz", f"{first}.npz", f"{first}.nii.gz.proof.json"),
        *("run.json", "log.txt", ".running", "dataset.json"),
    }
    report = record.read_json(out / "run.json")
    assert report["error"].startswith("stopped")
    assert (report["exit_code"], report["cases"]) == (130, {first: "done"})
    monkeypatch.undo()
    code, said, _ = run(*argv)
    assert (code, len(json.loads(said)["cases"])) == (0, 2)


# ---------------------------------------------------------------- where the data are


@pytest.mark.parametrize("name", ["1", "001", DATASET])
def test_a_dataset_is_called_by_its_number_or_name(run: Run, raw: Path, name: str) -> None:
    assert json.loads(run("doctor", name, "--json", "--root", raw)[1])["dataset"] == DATASET


def test_a_dataset_is_called_by_its_path(
    run: Run, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (raw / "raw" / DATASET, os.path.relpath(raw / "raw" / DATASET)):
        assert json.loads(run("doctor", path, "--json")[1])["dataset"] == DATASET


def test_the_root_is_the_option_else_the_environment_else_the_current_folder(
    run: Run, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("doctor", "1")[0] == 5
    monkeypatch.setenv("nnseg_raw", str(raw / "raw"))
    assert run("doctor", "1")[0] == 0
    monkeypatch.delenv("nnseg_raw")
    monkeypatch.setenv("NNSEG_ROOT", str(raw))
    assert run("doctor", "1")[0] == 0
    assert run("doctor", "1", "--root", tmp_path)[0] == 5
    monkeypatch.delenv("NNSEG_ROOT")
    monkeypatch.chdir(raw)
    assert run("doctor", "1")[0] == 0


def test_the_plan_is_printed_as_a_record_and_not_written_if_asked(
    run: Run, planned: Path, tmp_path: Path
) -> None:
    path = planned / "preprocessed" / DATASET / "plans" / "other.json"
    code, out, _ = run("plan", "1", "-p", "other", "--dry-run", "--json", "--root", planned)
    assert code == 0
    assert record.parse(Plan, json.loads(out), "stdout").name == "other"
    assert not path.exists()
    code, out, _ = run("plan", "-d", "1", "-p", "other", "--explain", "--root", planned)
    assert code == 0
    assert path.is_file()
    path.unlink()


def test_what_it_takes_is_told_before_and_a_dry_run_writes_nothing(
    run: Run, raw: Path, planned: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (root / "raw").mkdir(parents=True)
    (root / "raw" / DATASET).symlink_to(raw / "raw" / DATASET)
    takes = r"4 cases, \d at once: about \d+ MB of memory, \d+ MB of disk and \d+ s"
    argv = ("plan_and_preprocess", "-d", "1", "--root", root)
    code, out, _ = run(*argv, "--dry-run")
    assert code == 0
    assert "2d" in out
    assert re.search(rf"{DATASET}: preprocessing would take {takes}; nothing was written", out)
    assert not (root / "preprocessed").exists()
    code, out, _ = run(*argv)
    assert code == 0
    assert re.search(rf"^preprocessing 2d: {takes}$", out, re.M)
    assert f"{DATASET} 2d: 4 cases preprocessed" in out
    shutil.rmtree(root / "preprocessed" / DATASET / "nnseg")
    code, out, _ = run("preprocess", "1", "--dry-run", "--root", root)
    assert code == 0
    assert re.search(rf"would take {takes}; nothing was written", out)
    assert not (root / "preprocessed" / DATASET / "nnseg").exists()
    code, out, _ = run("preprocess", "1", "--apart", "-np", "1", "--root", root)
    assert code == 0
    assert re.search(rf"^preprocessing 2d: {takes}$", out, re.M)
    assert f"{DATASET} 2d: 4 cases preprocessed" in out
    code, out, _ = run("preprocess", "1", "--root", root)  # there is nothing to do, or to tell
    assert out == f"{DATASET} 2d: 0 cases preprocessed, the others are up to date\n"


def test_a_disk_without_room_is_exit_code_4_with_both_figures(
    run: Run, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(fresh / "preprocessed" / DATASET / "nnseg")
    left = shutil.disk_usage(fresh)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: left)
    for dry in ((), ("--dry-run",)):
        code, out, err = run("preprocess", "1", *dry, "--root", fresh)
        assert (code, out) == (4, "")
        assert re.search(r"needs about \d+ MB of disk, and 1 MB are free; make room", err)
    assert not (fresh / "preprocessed" / DATASET / "nnseg").exists()


# ---------------------------------------------------------------- files in, files kept


def test_a_dataset_is_made_from_files_as_they_lie_after_it_has_been_shown(
    run: Run, raw: Path, tmp_path: Path
) -> None:
    data = raw / "raw" / DATASET
    argv = (
        *("init", "Flat", "--images", data / "imagesTr" / "*_0000.nii.gz"),
        *("--labels", data / "labelsTr" / "*.nii.gz", "--label", "organ=1", "--root", tmp_path),
    )
    code, out, _ = run(*argv, "--dry-run")
    assert code == 0
    assert out.startswith("Dataset001_Flat: 4 cases")
    assert out.endswith("nothing was written; then: nnseg doctor Dataset001_Flat\n")
    assert list(tmp_path.iterdir()) == []
    code, out, err = run(*argv, "--json", "--copy", "--id", "7", "--channels", "MR")
    assert (code, err) == (0, "")
    made = json.loads(out)
    assert (made["dataset"], made["written"]) == ("Dataset007_Flat", True)
    assert made["dataset_json"]["channel_names"] == {"0": "MR"}
    assert made["dataset_json"]["labels"]["organ"] == 1
    assert run("doctor", "7", "--root", tmp_path)[0] == 0
    code, out, _ = run(*argv)
    assert (code, out.splitlines()[-1]) == (0, "linked; then: nnseg doctor Dataset008_Flat")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["a.nii", "b.nii", "--labels", "*.nii"], "'a.nii' has no wildcard"),
        (["*.nii", "--labels", "a.nii", "b.nii"], "--labels takes one pattern, not 2; quote it"),
        (["*.nii", "--labels", "*", "--label", "organ"], "invalid NAME=INT value: 'organ'"),
        (["*.nii", "--labels", "*", "--label", "a=1", "a=2"], "--label gives a name twice"),
        (["*.nii", "--labels", "*", "--id", "0"], "invalid positive whole number value: '0'"),
        (["*.nii", "--labels", "*", "--copy", "--link"], "not allowed with argument"),
    ],
)
def test_patterns_and_labels_that_cannot_be_meant_are_exit_code_2(
    run: Run, tmp_path: Path, words: list[str], text: str
) -> None:
    code, _, err = run("init", "Flat", "--images", *words, "--root", tmp_path)
    assert code == 2
    assert text in err


def test_what_is_kept_is_examined_and_made_anew_on_request(run: Run, fresh: Path) -> None:
    code, out, err = run("fsck", "--root", fresh)
    assert (code, err) == (0, "")
    assert re.fullmatch(rf"{DATASET}: \d+ files examined\nnothing wrong was found\n", out)
    store = fresh / "preprocessed" / DATASET / "nnseg" / "2d"
    damaged = min(store.glob("*.image.b2nd"))
    os.truncate(damaged, 50)
    code, out, err = run("fsck", "1", "--root", fresh)
    assert code == 3
    assert err == "nnseg: 1 error in what is kept; mend as listed\n"
    assert f"{damaged.name}: is damaged: its 50 bytes" in out
    code, out, _ = run("fsck", "1", "--json", "--root", fresh)
    assert code == 3
    findings = json.loads(out)["examined"][DATASET]["findings"]
    (finding,) = [finding for finding in findings if finding["severity"] == "error"]
    assert finding["file"].endswith(damaged.name)
    assert {"found", "remedy", "rule", "case_id"} <= finding.keys()
    assert run("fsck", DATASET, "--redo", "--root", fresh)[0] == 0
    assert damaged.stat().st_size > 50


def test_a_trained_fold_and_predictions_are_examined_too(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "root"))
    assert run("fsck", "--root", root)[0] == 0
    fold = root / "results" / DATASET / "nnseg" / "2d" / "fold_0"
    images, predicted = root / "raw" / DATASET / "imagesTs", tmp_path / "predicted"
    assert run("predict", "-i", images, "-o", predicted, "-m", fold, *CPU)[0] == 0
    assert run("fsck", predicted)[0] == 0
    os.truncate(min(predicted.glob("*.nii.gz")), 50)
    os.truncate(min(fold.glob("checkpoint_final-*")), 50)
    code, out, _ = run("fsck", predicted, "1", "--root", root)
    assert code == 3
    assert out.count(" is damaged: its 50 bytes ") == 2
    assert "run `nnseg predict` again" in out
    assert "train this fold anew with --overwrite" in out


def test_where_nothing_is_kept_there_is_nothing_to_examine(run: Run, tmp_path: Path) -> None:
    code, out, err = run("fsck", "--root", tmp_path)
    assert (code, out) == (5, "")
    assert "nothing is kept in" in err


# ---------------------------------------------------------------- quick to start


def quick(*argv: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys\nfrom nnseg.cli import main\ncode = main(sys.argv[1:])\n"
        "heavy = {'torch', 'pydantic', 'numpy', 'scipy', 'nibabel', 'SimpleITK', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\nsys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *argv], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "argv", [["-h"], ["train", "-h"], ["predict", "--nonsense"], ["--version"]]
)
def test_help_and_usage_errors_load_nothing_heavy(argv: list[str]) -> None:
    ended = quick(*argv)
    assert ended.stderr.splitlines()[-1] == "[]"
    assert ended.returncode == (2 if "--nonsense" in argv else 0)


def test_help_comes_at_once() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        quick("-h")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1  # 0.3 s on a machine of its own


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_explains_itself(run: Run, command: str) -> None:
    code, out, _ = run(command, "-h")
    assert code == 0
    assert cli.COMMANDS[command][1] in out
    assert "--root" in out


def test_help_names_every_command_and_shows_examples(run: Run) -> None:
    code, out, _ = run("-h")
    assert code == 0
    assert all(re.search(rf"^ +{name}\b", out, re.MULTILINE) for name in cli.COMMANDS)
    assert "examples:" in out


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("8h", 28_800), ("2d", 172_800)]
)
def test_a_length_of_time_has_a_unit(text: str, seconds: float) -> None:
    args = cli.build_parser().parse_args(["train", "1", "2d", "0", "--budget", text])
    assert args.budget == seconds


def test_the_planners_offered_are_those_that_plan() -> None:
    from nnseg.cli import preparing
    from nnseg.plan import PLANNERS

    assert set(preparing.PLANNERS) == set(PLANNERS)


@pytest.mark.parametrize(("ranks", "taken_down"), [("1", True), ("2", False)])
def test_of_several_ranks_each_ends_without_taking_python_down(
    ranks: str, taken_down: bool
) -> None:
    script = (
        "import atexit, sys\nfrom nnseg.cli import main\n"
        "atexit.register(print, 'taken down')\nsys.argv[1:] = ['info', '--nonsense']\n"
        "print('begun')\nsys.exit(main())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"WORLD_SIZE": ranks},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert ended.stdout.split("\n") == ["begun", *(["taken down"] if taken_down else []), ""]
    assert "--nonsense" in ended.stderr
