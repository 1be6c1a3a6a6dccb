"""A real disk of 16 MiB gets full while a command writes: by another program, or from the start.

Where nobody may mount one, test_sweep.py, test_training.py and test_predicting.py still let every
call fail as on a full disk.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from injection import Fault
from oracle import differences, half_files, sha256, tree_of
from struck import (
    DATASET,
    PREPROCESS,
    TRAIN,
    Struck,
    final_weights,
    fits_user,
    fold_of,
    predict,
    results_in,
    store_of,
    without_store,
)
from tallies import Tally

SIZE = 16 * 2**20
SLOWED = Fault(sleep_us=4000)  # every call that writes, so that the disk is full in between

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount a small disk"
)


@pytest.fixture
def disk(root: Path) -> Iterator[Path]:
    """An empty disk of SIZE bytes, below the root."""
    folder = root / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this container may not mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def move_to(disk: Path, folder: Path) -> None:
    """Have a folder lie on the disk."""
    shutil.copytree(folder, disk / folder.name, symlinks=True)
    shutil.rmtree(folder)
    folder.symlink_to(disk / folder.name)


def make_room(disk: Path) -> None:
    (disk / "of_another").unlink()


@pytest.mark.fault("R06", "B1.1")
def test_preprocessing_that_cannot_fit_says_both_figures_before_it_begins(
    struck: Struck, root: Path, disk: Path, tally: Tally
) -> None:
    right = tree_of(root / "preprocessed")
    move_to(disk, without_store(root) / "preprocessed")
    old = tree_of(disk)
    with open(disk / "of_another", "wb") as file:
        file.truncate(0)
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - 2**15)
    refused = struck.run(root, *PREPROCESS)
    assert refused.code == 4, refused.said
    assert fits_user(refused)
    assert re.search(r"\d [KMG]i?B.*\d.* [KMG]?i?B are free; make room", refused.said), refused.said
    assert not list(store_of(root).glob("*")) if store_of(root).exists() else True
    make_room(disk)
    assert not differences(tree_of(disk), old)
    assert struck.run(root, *PREPROCESS).code == 0
    assert not differences(tree_of(root / "preprocessed"), right)
    tally("full disk", 1, 1)


@pytest.mark.fault("R06", "B1.1")
def test_preprocessing_on_a_disk_that_gets_full_leaves_whole_cases_and_goes_on_with_the_rest(
    struck: Struck, root: Path, disk: Path, tally: Tally
) -> None:
    right = tree_of(root / "preprocessed")
    move_to(disk, without_store(root) / "preprocessed")
    befalls = [("fill", disk, store_of(root), "2d_*.json")]
    full = struck.run(root, *PREPROCESS, befalls=befalls, fault=SLOWED)
    assert full.code == 4, full.said
    assert fits_user(full)
    assert re.search(r"preprocessed\S+: the disk is full \(0 MiB free\); make room", full.said)
    done = sorted(path.name for path in store_of(root).glob("[!.]*.json"))
    assert 0 < len(done) < 6
    assert not half_files(store_of(root))
    make_room(disk)
    times = [(store_of(root) / name).stat().st_mtime_ns for name in done]
    assert struck.run(root, *PREPROCESS).code == 0
    assert [(store_of(root) / name).stat().st_mtime_ns for name in done] == times
    assert not differences(tree_of(root / "preprocessed"), right)
    tally("full disk", 1, 1)


@pytest.mark.fault("R07", "B1.1")
def test_a_training_on_a_disk_that_gets_full_keeps_a_checkpoint_to_go_on_from(
    struck: Struck, root: Path, disk: Path, tally: Tally
) -> None:
    assert struck.run(root, *TRAIN).code == 0
    wanted = final_weights(root)
    shutil.rmtree(root / "results")
    (root / "results").mkdir()
    move_to(disk, root / "results")
    often = ("save_often",)
    befalls = [often, ("fill", disk, disk, "checkpoint_latest.json"), ("pause_steps", 0.02)]
    full = struck.run(root, *TRAIN, befalls=befalls)
    assert full.code == 4, full.said
    assert fits_user(full)
    assert re.search(r"results\S+: the disk is full \(0 MiB free\); make room", full.said)
    kept = json.loads((fold_of(root) / "checkpoint_latest.json").read_text())
    assert sha256(fold_of(root) / kept["weights_file"]) == kept["weights_sha256"]
    make_room(disk)
    again = struck.run(root, *TRAIN, befalls=[often])
    assert again.code == 0, again.said
    assert "going on" in again.said
    assert final_weights(root) == wanted
    tally("full disk", 1, 1)


@pytest.mark.fault("R08", "B1.1")
def test_a_prediction_on_a_disk_that_gets_full_keeps_what_is_done_and_lists_the_rest(
    struck: Struck, root: Path, disk: Path, tally: Tally
) -> None:
    assert struck.run(root, *predict(root, root / "right")).code == 0
    right, out = results_in(root / "right"), disk / "out"
    befalls = [("fill", disk, out, "2d_*.proof.json")]
    command = predict(root, out)
    full = struck.run(root, *command, befalls=befalls, fault=SLOWED)
    assert full.code == 6, full.said
    assert fits_user(full)
    scans = sorted(path.name[:-12] for path in (root / "raw" / DATASET / "imagesTs").iterdir())
    done = [scan for scan in scans if (out / f"{scan}.nii.gz.proof.json").exists()]
    assert 0 < len(done) < len(scans)
    for scan in scans:
        listed = re.search(
            rf"^ +case {scan}: .*the disk is full.*; (make room|free some)", full.said, re.M
        )
        assert bool(listed) == (scan not in done), full.said
    assert results_in(out).items() <= right.items()
    make_room(disk)
    assert struck.run(root, *command).code == 0
    assert results_in(out) == right
    tally("full disk", 1, 1)
