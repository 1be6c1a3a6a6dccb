"""Two processes train one network together as one process would, and survive each other's death."""

import csv
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nnseg import phantom, pipeline, record
from nnseg.checkpoint import load_model
from nnseg.folders import Folders, checkpoint_file, metrics_file, run_record
from nnseg.learning.resume import RunRecord

FLAT = "Dataset001_Flat"
OPTIONS = ["--iterations", "3", "--validation-iterations", "2", "--batch-size", "3"]
RUNNING = ["--device", "cpu", "--precision", "fp32", "--no-validation", "-q"]
ENDS_WITHIN = 60  # seconds after the death of one


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of four 2D phantoms, preprocessed; tests copy it."""
    root = tmp_path_factory.mktemp("flat")
    folders = Folders.of_root(root)
    phantom.write_dataset(folders.raw_folder(FLAT), "2d", cases=4)
    plan, _ = pipeline.plan_and_preprocess(folders, FLAT, workers=1)
    planned = plan.configuration("2d")
    tiny = dataclasses.replace(
        planned.architecture,
        features=(4, 8, 8),
        kernel_sizes=((1, 3, 3),) * 3,
        strides=((1, 1, 1), (1, 2, 2), (1, 2, 2)),
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(1, 1),
    )
    small = dataclasses.replace(planned, architecture=tiny, patch_size=(1, 32, 24))
    record.save(
        dataclasses.replace(plan, configurations={"2d": small}), folders.plan_file(FLAT, "nnseg")
    )
    pipeline.preprocess(folders, FLAT, workers=1)
    return root


def command(root: Path, ranks: int, epochs: int, *more: str) -> list[str]:
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    train = ["-m", "nnseg", "train", FLAT, "2d", "0", "--root", str(root)]
    return [*start, *train, "--epochs", str(epochs), *OPTIONS, *more, *RUNNING]


def losses(root: Path) -> list[float]:
    fold = Folders.of_root(root).fold(FLAT, "nnseg", "2d", "0", 0)
    with metrics_file(fold).open(newline="") as file:
        return [
            float(row[key]) for row in csv.DictReader(file) for key in ("loss", "validation_loss")
        ]


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_model(Folders.of_root(root).fold(FLAT, "nnseg", "2d", "0", 0), "final")[1]


def copies(flat: Path, tmp_path: Path, count: int) -> list[Path]:
    return [Path(shutil.copytree(flat, tmp_path / str(number))) for number in range(count)]


@pytest.mark.fault("R31")
@pytest.mark.parametrize("more", [(), ("--accumulate", "2", "--class-weights", "balanced")])
def test_two_ranks_have_the_losses_and_the_weights_of_one(
    flat: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    one, two = copies(flat, tmp_path, 2)
    for root, ranks in ((one, 1), (two, 2)):
        subprocess.run(command(root, ranks, 2, *more), check=True, timeout=240)
    assert losses(one) == pytest.approx(losses(two), rel=1e-5, abs=1e-5)
    mine = weights(one)
    for name, value in weights(two).items():
        torch.testing.assert_close(value, mine[name], rtol=1e-3, atol=1e-4)


def test_more_ranks_than_the_batch_of_a_run_has_patches_are_refused_before_anything(
    flat: Path, tmp_path: Path
) -> None:
    (root,) = copies(flat, tmp_path, 1)
    subprocess.run(command(root, 1, 1), check=True, timeout=240)
    fold = Folders.of_root(root).fold(FLAT, "nnseg", "2d", "0", 0)
    latest = checkpoint_file(fold, "latest")
    run = record.load_sealed(RunRecord, latest)
    course = dataclasses.replace(run.course, batch_size=1)  # as a budget may choose
    record.save_sealed(dataclasses.replace(run, course=course, finished=False), latest)
    told = run_record(fold).read_bytes()
    refused = subprocess.run(command(root, 2, 1), capture_output=True, text=True, timeout=240)
    assert refused.returncode != 0
    assert "2 processes cannot share a batch of 1; start fewer" in refused.stderr
    assert run_record(fold).read_bytes() == told


@pytest.mark.fault("R29", "G5")
@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_other_and_a_restart_comes_to_the_same(
    flat: Path, tmp_path: Path
) -> None:
    undisturbed, killed = copies(flat, tmp_path, 2)
    subprocess.run(command(undisturbed, 2, epochs=60), check=True, timeout=300)
    process = subprocess.Popen(command(killed, 2, epochs=60), start_new_session=True)
    metrics = metrics_file(Folders.of_root(killed).fold(FLAT, "nnseg", "2d", "0", 0))
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 2):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [pid for pid in children if b"nnseg" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGKILL)
    struck = time.monotonic()
    assert process.wait(ENDS_WITHIN) != 0
    assert time.monotonic() - struck < ENDS_WITHIN
    subprocess.run(command(killed, 2, epochs=60), check=True, timeout=300)
    assert losses(killed) == losses(undisturbed)
    for name, value in weights(killed).items():
        assert torch.equal(value, weights(undisturbed)[name])
