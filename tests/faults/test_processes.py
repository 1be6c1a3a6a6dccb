"""Processes that are killed, signalled or lost, and what a command does without them."""

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from injection import CHECKOUT, PATIENCE, Fault, Outcome
from oracle import Tree, differences, half_files, tree_of
from struck import (
    DATASET,
    PREPROCESS,
    TRAIN,
    Befalls,
    Struck,
    copy_of,
    final_weights,
    fits_user,
    fold_of,
    predict,
    results_in,
    since,
    store_of,
    without_store,
)
from tallies import Tally

from nnseg.folders import Folders

CASES = [f"2d_{number:03d}" for number in range(6)]
ENDS_WITHIN = 30.0  # seconds after a signal
SLOWED = Fault(sleep_us=2000)
SIGNALS = {  # the exit codes of commands that stop with all saved, and of those that just end
    ("SIGTERM",): (75, -15),
    ("SIGINT", "SIGINT"): (130, 130),
    ("SIGINT",): (130, 130),
    ("SIGTERM", "SIGTERM"): (75, -15),
}
SIGNALLED = [  # two of them in short
    pytest.param(names, marks=pytest.mark.slow if number > 1 else (), id="-".join(names))
    for number, names in enumerate(SIGNALS)
]


@pytest.fixture(scope="module")
def trained(struck: Struck, flat: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root where TRAIN has gone undisturbed."""
    root = copy_of(flat.raw.parent, tmp_path_factory.mktemp("trained") / "root")
    done = struck.run(root, *TRAIN)
    assert done.code == 0, done.said
    return root


@pytest.fixture(scope="module")
def predicted(struck: Struck, flat: Folders, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """What an undisturbed prediction leaves."""
    out = tmp_path_factory.mktemp("predicted") / "out"
    done = struck.run(flat.raw.parent, *predict(flat.raw.parent, out))
    assert done.code == 0, done.said
    return results_in(out)


def losses(root: Path) -> list[float]:
    with (fold_of(root) / "metrics.csv").open(newline="") as file:
        return [
            float(row[key]) for row in csv.DictReader(file) for key in ("loss", "validation_loss")
        ]


# ---------------------------------------------------------------- workers


@pytest.mark.fault("R03", "B1.2")
def test_cases_whose_worker_is_killed_are_named_and_made_by_another(
    struck: Struck, root: Path, tally: Tally
) -> None:
    right = tree_of(root / "preprocessed")
    without_store(root)
    befalls = [("kill_workers", store_of(root), "*.b2nd")]
    killed = struck.run(root, *PREPROCESS, "--apart", befalls=befalls, fault=SLOWED)
    assert killed.code == 0, killed.said
    text = "its worker was killed (signal 9, probably out of memory; peak RSS"
    named = [line for line in killed.said.splitlines() if text in line]
    assert 1 <= len(named) <= 2, killed.said
    assert all(any(f"case {case}: " in line for case in CASES) for line in named)
    assert all(line.endswith("trying again with fewer workers") for line in named)
    assert not differences(tree_of(root / "preprocessed"), right)
    tally("kill -9", len(named), len(named))


@pytest.mark.fault("R03", "B1.2")
def test_where_every_worker_is_killed_all_cases_are_listed_and_nothing_hangs(
    struck: Struck, root: Path, tally: Tally
) -> None:
    right = tree_of(root / "preprocessed")
    without_store(root)
    killed = struck.run(root, *PREPROCESS, "--apart", befalls=[("kill_every_worker",)])
    assert killed.code == 4, killed.said
    assert fits_user(killed)
    for case in CASES:
        said = f"case {case}: its worker was killed (signal 9, probably out of memory"
        assert f"\n  {said}" in killed.said
    assert "free memory or leave it out" in killed.said
    assert not half_files(root / "preprocessed")
    assert struck.run(root, *PREPROCESS).code == 0
    assert not differences(tree_of(root / "preprocessed"), right)
    tally("kill -9", 1, 1)


@pytest.mark.fault("R02", "B1.2")
def test_workers_whose_command_is_killed_alone_end_and_the_next_run_makes_the_same_files(
    struck: Struck, root: Path, tmp_path: Path, tally: Tally
) -> None:
    right = tree_of(root / "preprocessed")
    without_store(root)
    befalls = [("send", tmp_path / "note", store_of(root), "*.b2nd", "SIGKILL")]
    killed = struck.run(root, *PREPROCESS, "--apart", befalls=befalls, fault=SLOWED)
    assert killed.code == -signal.SIGKILL, killed.said
    assert killed.lived > 0
    assert not half_files(root / "preprocessed")
    assert struck.run(root, *PREPROCESS).code == 0
    assert not differences(tree_of(root / "preprocessed"), right)
    tally("kill -9", 1, 1)


@pytest.mark.fault("R27", "R32")
@pytest.mark.parametrize("counts", ["2", pytest.param("0124", marks=pytest.mark.slow)])
def test_loader_workers_are_no_processes_and_however_many_there_are_the_weights_are_the_same(
    struck: Struck,
    root: Path,
    trained: Path,
    tmp_path: Path,
    tally: Tally,
    counts: str,
) -> None:
    wanted, kept = final_weights(trained), 0
    for count in counts:
        note = tmp_path / count
        befalls = [("note_children", note, fold_of(root), "metrics.csv"), ("pause_steps", 0.01)]
        done = struck.run(root, *TRAIN, "--workers", count, befalls=befalls)
        assert done.code == 0, done.said
        assert note.read_text() == "0"
        kept += final_weights(root) == wanted
        shutil.rmtree(fold_of(root))
    tally("loader workers", kept, len(counts))
    assert kept == len(counts)


@pytest.mark.fault("R35", "B1.2")
def test_a_case_whose_writer_fails_is_listed_and_the_others_are_done(
    struck: Struck, root: Path, predicted: Tree, tally: Tally
) -> None:
    out = root / "out"
    scan = sorted((root / "raw" / DATASET / "imagesTs").iterdir())[1].name[:-12]
    failed = struck.run(root, *predict(root, out), befalls=[("fail_to_save", scan)])
    assert failed.code == 6, failed.said
    assert "Traceback" not in failed.said
    assert f"\n  case {scan}: a bug of ours: SystemError: the writer is gone" in failed.said
    others = {name: value for name, value in predicted.items() if not name.startswith(scan)}
    assert results_in(out) == others
    assert struck.run(root, *predict(root, out)).code == 0
    assert results_in(out) == predicted
    tally("dead workers", 1, 1)


# ---------------------------------------------------------------- signals


@pytest.mark.fault("R18", "B1.2")
@pytest.mark.parametrize("names", SIGNALLED)
def test_a_training_that_is_signalled_ends_soon_and_goes_on_to_the_same_weights(
    struck: Struck,
    root: Path,
    trained: Path,
    tmp_path: Path,
    tally: Tally,
    names: tuple[str, ...],
) -> None:
    wanted, note = final_weights(trained), tmp_path / "note"
    strike = ("send", note, fold_of(root), "checkpoint_latest.json", *names)
    befalls = [("save_often",), ("pause_steps", 0.3), strike]
    stopped = struck.run(root, *TRAIN, befalls=befalls)
    assert since(note) < ENDS_WITHIN
    assert stopped.code == SIGNALS[names][0], stopped.said
    assert fits_user(stopped)
    at_once = names.count("SIGINT") == 2
    assert ("interrupted" if at_once else "everything is saved") in stopped.said
    assert "the same command goes on" in stopped.said
    assert not list(fold_of(root).glob(".part-*"))
    again = struck.run(root, *TRAIN)
    assert again.code == 0, again.said
    assert final_weights(root) == wanted
    tally("signals", 1, 1)


@pytest.mark.fault("R18", "B1.2")
@pytest.mark.parametrize("names", SIGNALLED)
def test_a_prediction_that_is_signalled_ends_soon_and_goes_on_to_the_same_results(
    struck: Struck,
    root: Path,
    predicted: Tree,
    tmp_path: Path,
    tally: Tally,
    names: tuple[str, ...],
) -> None:
    out, note = root / "out", tmp_path / "note"
    strike = ("send", note, out, "[!.]*.proof.json", *names)
    stopped = struck.run(root, *predict(root, out), befalls=[strike], fault=SLOWED, below="out")
    assert since(note) < ENDS_WITHIN
    assert stopped.code == SIGNALS[names][0], stopped.said
    assert fits_user(stopped)
    assert "the same command goes on" in stopped.said
    assert results_in(out).items() <= predicted.items()
    assert struck.run(root, *predict(root, out)).code == 0
    assert results_in(out) == predicted
    tally("signals", 1, 1)


@pytest.mark.fault("R18", "B1.2")
@pytest.mark.parametrize("names", SIGNALLED)
@pytest.mark.parametrize("apart", [(), pytest.param(("--apart",), marks=pytest.mark.slow)])
def test_a_preprocessing_that_is_signalled_ends_soon_and_goes_on_to_the_same_files(
    struck: Struck,
    root: Path,
    tmp_path: Path,
    tally: Tally,
    names: tuple[str, ...],
    apart: tuple[str, ...],
) -> None:
    right, note = tree_of(root / "preprocessed"), tmp_path / "note"
    without_store(root)
    befalls = [("send", note, store_of(root), "2d_*.b2nd", *names)]
    stopped = struck.run(root, *PREPROCESS, *apart, befalls=befalls, fault=SLOWED)
    assert since(note) < ENDS_WITHIN
    assert stopped.code == SIGNALS[names][1], stopped.said
    assert fits_user(stopped)
    assert not half_files(root / "preprocessed")
    assert struck.run(root, *PREPROCESS).code == 0
    assert not differences(tree_of(root / "preprocessed"), right)
    tally("signals", 1, 1)


@pytest.mark.slow
@pytest.mark.fault("R18", "B1.2")
@pytest.mark.parametrize("names", SIGNALS, ids="-".join)
def test_a_whole_job_that_is_signalled_ends_soon_with_nothing_damaged(
    struck: Struck, root: Path, tmp_path: Path, tally: Tally, names: tuple[str, ...]
) -> None:
    shutil.rmtree(root / "results")
    how = ("--preset", "quick", "-c", "2d", "--precision", "fp32", "--devices", "cpu")
    note = tmp_path / "note"
    strike = ("send", note, root / "results", "checkpoint_latest.json", *names)
    befalls = [("save_often",), ("pause_steps", 0.1), strike]
    stopped = struck.run(root, "run", "1", *how, befalls=befalls)
    assert since(note) < ENDS_WITHIN
    assert stopped.code == SIGNALS[names][0], stopped.said
    assert fits_user(stopped)
    assert "the same command goes on" in stopped.said
    examined = struck.run(root, "fsck", "1")
    assert examined.code == 0, examined.said
    tally("signals", 1, 1)


# ---------------------------------------------------------------- ranks


def two_ranks(*more: object) -> tuple[object, ...]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return ("two_ranks", probe.getsockname()[1], *more)


@pytest.mark.fault("R29", "R31", "G5")
def test_a_rank_that_is_killed_ends_the_other_by_name_and_the_next_start_comes_to_the_same(
    struck: Struck, root: Path, trained: Path, tally: Tally
) -> None:
    metrics = fold_of(root) / "metrics.csv"
    befalls: Befalls = [("save_often",), ("pause_steps", 0.05), two_ranks(metrics, 1)]
    lost = struck.run(root, *TRAIN, befalls=befalls)
    assert lost.code == 4, lost.said
    assert fits_user(lost)
    (line,) = [line for line in lost.said.splitlines() if "has ended" in line]
    assert line.startswith("nnseg: rank 1 (process ")
    assert "Start all of them again: the same command goes on" in line
    assert "rank 1" in json.loads((fold_of(root) / "run.json").read_text())["error"]
    again = struck.run(root, *TRAIN, befalls=[two_ranks()])
    assert again.code == 0, again.said
    assert losses(root) == pytest.approx(losses(trained), rel=1e-5, abs=1e-5)
    tally("kill -9", 1, 1)


@pytest.mark.slow
@pytest.mark.fault("R21", "R31")
def test_a_run_of_one_process_goes_on_with_two_and_has_the_same_losses(
    struck: Struck, root: Path, trained: Path, tmp_path: Path
) -> None:
    strike = ("send", tmp_path / "note", fold_of(root), "checkpoint_latest.json", "SIGTERM")
    befalls = [("save_often",), ("pause_steps", 0.05), strike]
    assert struck.run(root, *TRAIN, befalls=befalls).code == 75
    again = struck.run(root, *TRAIN, befalls=[two_ranks()])
    assert again.code == 0, again.said
    assert "going on" in again.said
    assert losses(root) == pytest.approx(losses(trained), rel=1e-5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.fault("R30")
def test_a_first_rank_that_validates_longer_than_the_others_wait_is_not_given_up(
    struck: Struck, root: Path
) -> None:
    befalls = [two_ranks(), ("impatient_ranks", 8, 20)]
    done = struck.run(root, *(word for word in TRAIN if word != "--no-validation"), befalls=befalls)
    assert done.code == 0, done.said
    assert (fold_of(root) / "validation" / "summary.json").exists()


# ---------------------------------------------------------------- the same again


@pytest.mark.slow
@pytest.mark.fault("R33")
def test_a_process_of_its_own_comes_to_the_weights_of_a_fork(root: Path, trained: Path) -> None:
    wanted = final_weights(trained)
    command = [sys.executable, "-m", "nnseg", *TRAIN, "--root", str(root)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=CHECKOUT, env=environment, check=True, timeout=5 * PATIENCE)
    assert final_weights(root) == wanted


def said_by(outcome: Outcome, code: int, *parts: str) -> None:
    """Make sure that a command has ended with a code and said certain things, to a user."""
    assert outcome.code == code, outcome.said
    assert fits_user(outcome)
    for part in parts:
        assert part in outcome.said, outcome.said


@pytest.mark.fault("R20", "B1.3")
def test_with_nothing_to_go_on_with_a_training_says_so_and_starts_none(
    struck: Struck, root: Path, tally: Tally
) -> None:
    refused = struck.run(root, *TRAIN, "--c")
    said_by(refused, 5, str(fold_of(root)), "there is no run to continue; start without --c")
    assert not list(fold_of(root).glob("checkpoint*"))
    tally("resume", 1, 1)


@pytest.mark.fault("R21", "R22", "B1.3")
def test_a_run_of_another_plan_or_other_folds_or_a_newer_version_is_not_gone_on_with(
    struck: Struck, root: Path, trained: Path, tally: Tally
) -> None:
    shutil.copytree(fold_of(trained), fold_of(root))
    before = tree_of(fold_of(root))
    kept = root / "preprocessed" / DATASET
    plan, splits = kept / "plans" / "nnseg.json", kept / "splits_final.json"
    longer = (*TRAIN, "--extend-to", "6")
    for path, change, parts in (
        (plan, lambda text: text.replace('"batch_size": 2', '"batch_size": 3'), ("another plan",)),
        (splits, lambda text: json.dumps(json.loads(text)[1:] * 2), ("other cases", splits.name)),
    ):
        text = path.read_text()
        assert change(text) != text
        path.write_text(change(text))
        said_by(struck.run(root, *longer), 3, str(fold_of(root)), *parts, "--overwrite")
        path.write_text(text)
    for name in ("latest", "previous"):
        path = fold_of(root) / f"checkpoint_{name}.json"
        if path.exists():
            path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    newer = struck.run(root, *longer)
    said_by(newer, 3, "has format 9; this version reads 1; a newer nnseg wrote it: update nnseg")
    weights = {name: value for name, value in before.items() if name.endswith("safetensors")}
    assert weights.items() <= tree_of(fold_of(root)).items()
    tally("resume", 3, 3)


# ---------------------------------------------------------------- data that change meanwhile


@pytest.mark.fault("R11", "B1.1")
@pytest.mark.parametrize("in_memory", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_preprocessed_files_that_vanish_cost_a_training_that_has_them_nothing_and_stop_the_next(
    struck: Struck,
    root: Path,
    trained: Path,
    tally: Tally,
    in_memory: bool,
) -> None:
    target = ("remove", fold_of(root), "metrics.csv", store_of(root), "*.b2nd")
    befalls: list[tuple[object, ...]] = [("pause_steps", 0.05), target]
    if not in_memory:
        befalls.append(("read_from_disk",))
    ended = struck.run(root, *TRAIN, befalls=befalls)
    assert ended.code == 0, ended.said
    assert not list(store_of(root).glob("*.b2nd"))
    assert final_weights(root) == final_weights(trained)
    refused = struck.run(root, *TRAIN, "--overwrite")
    assert refused.code in (3, 5), refused.said
    assert fits_user(refused)
    assert re.search(r"2d_00\d.*b2nd.*`nnseg preprocess", refused.said), refused.said
    tally("damage", 2, 2)


@pytest.mark.fault("R14", "B1.1")
def test_a_raw_image_replaced_after_preprocessing_is_told_by_a_training_and_only_that(
    struck: Struck, root: Path, trained: Path, tally: Tally
) -> None:
    images = root / "raw" / DATASET / "imagesTr"
    first, second, third, *_ = sorted(images.iterdir())
    third.touch()  # the same bytes
    shutil.copy(first, second)
    warned = struck.run(root, *TRAIN)
    said_by(warned, 0, "the raw files of case 2d_001 have changed since they were preprocessed")
    assert "`nnseg preprocess -d Dataset001_Flat` makes them anew" in warned.said
    assert final_weights(root) == final_weights(trained)
    tally("damage", 1, 1)
