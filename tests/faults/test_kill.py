"""kill -9 of `nnseg preprocess`, with all its processes or alone, from outside, at random times."""

import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from injection import Fault, Warm
from oracle import (
    RENAMING,
    WRITING,
    differences,
    half_files,
    neither_old_nor_new,
    phase_of,
    records_in,
    tree_of,
)
from roots import PLAN, PREPROCESS, Right, copy_root
from tallies import Tally

SLOWER = Fault(sleep_us=4000)  # so that most of the time goes by while files are written


@pytest.mark.fault("R02", "B1.1")
@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_preprocessing_that_is_killed_ends_as_if_it_had_not_been(
    warm: Warm, right_of: Callable[[str], Right], tally: Tally, tmp_path: Path, kills: int
) -> None:
    right = right_of("2d")
    old = tree_of(right.planned / "preprocessed")
    records = records_in(right.done / "preprocessed")
    stores = {record.parent.name for record in records}

    def is_of_case(path: Path) -> bool:
        return path.parent.name in stores

    census = warm.run(copy_root(right.planned, tmp_path / "census"), *PREPROCESS)
    writing = [c.number for c in census.calls if is_of_case(c.path) and c.kind != "remove"]
    rng = random.Random(kills)
    wrong, phases, kept = [], Counter[str](), 0
    for number in range(kills):
        root = copy_root(right.planned, tmp_path / str(number))
        folder = root / "preprocessed"
        calls = rng.choice(writing) if number % 10 else rng.randrange(1, len(census.calls))
        later = rng.uniform(0, 0.01)
        apart = ("--apart",) if number % 8 in (2, 3) else ()  # workers that may be left alone
        killed = warm.run(
            root,
            *PREPROCESS,
            *apart,
            fault=SLOWER,
            kill_after_calls=calls,
            kill_seconds_later=later,
        )
        done = len(records_in(folder)) == len(records)
        phase = phase_of(killed.calls, is_of_case, done=done)
        phases[phase] += 1
        found = half_files(folder) + neither_old_nor_new(tree_of(folder), old, right.tree)
        if killed.code not in (0, -signal.SIGKILL) or (killed.code == 0 and not done):
            found.append(f"ended with {killed.code}: {killed.said}")
        again = warm.run(root, *PREPROCESS)
        found += [] if again.code == 0 else [f"the next run ends with {again.code}: {again.said}"]
        found += [f"after the next run, {d}" for d in differences(tree_of(folder), right.tree)]
        kept += not found
        wrong += [f"kill {number} ({phase}): {text}" for text in found]
        shutil.rmtree(root)
    tally("kill -9, preprocess", kept, kills, states=phases)
    assert not wrong, "\n".join(wrong)
    assert phases[WRITING] + phases[RENAMING] >= 0.8 * kills, phases


@pytest.mark.fault("R01")
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_measuring_and_planning_that_are_killed_end_as_if_they_had_not_been(
    warm: Warm, right_of: Callable[[str], Right], tally: Tally, tmp_path: Path, kills: int
) -> None:
    right = right_of("2d")
    wanted = tree_of(right.planned / "preprocessed")
    census = warm.run(copy_root(right.planned, tmp_path / "census", preprocessed=False), *PLAN)
    rng, wrong, phases, kept = random.Random(kills), [], Counter[str](), 0
    for number in range(kills):
        root = copy_root(right.planned, tmp_path / str(number), preprocessed=False)
        folder = root / "preprocessed"
        calls, later = rng.randrange(1, len(census.calls)), rng.uniform(0, 0.01)
        killed = warm.run(
            root, *PLAN, fault=SLOWER, kill_after_calls=calls, kill_seconds_later=later
        )
        left = tree_of(folder)
        phases[phase_of(killed.calls, lambda _: True, done=left == wanted)] += 1
        found = half_files(folder) + neither_old_nor_new(left, {}, wanted)
        again = warm.run(root, *PLAN)
        found += [] if again.code == 0 else [f"the next run ends with {again.code}: {again.said}"]
        found += [f"after the next run, {d}" for d in differences(tree_of(folder), wanted)]
        kept += not found
        wrong += [f"kill {number}: {text}" for text in found]
    tally("kill -9, fingerprint and plan", kept, kills, states=phases)
    assert not wrong, "\n".join(wrong)
