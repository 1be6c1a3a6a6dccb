"""kill -9 of `nnseg preprocess` and all its processes, from outside, at random times."""

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from injection import PATIENCE, Call, Fault, Injector, Outcome, Running, Warm
from oracle import differences, half_files, neither_old_nor_new, records_in, tree_of
from roots import PREPROCESS, Right, copy_root

SLOWER = Fault(sleep_us=4000)  # so that most of the time goes by while files are written
STARTING, ENDING = "before the first case", "after the last case"


def kill_after(calls: int, more_seconds: float, running: Running) -> Outcome:
    """Kill a command some time after its n-th call, unless it has ended by then."""
    end = time.monotonic() + PATIENCE
    while running.count() < calls and running.process.poll() is None:
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.001)
    time.sleep(more_seconds)
    if running.process.poll() is None:
        running.send(signal.SIGKILL)
    return running.wait()


def in_stores(calls: Sequence[Call], stores: set[str]) -> list[int]:
    """Give the numbers of the calls that write the files of cases."""
    return [c.number for c in calls if c.path.parent.name in stores and c.kind != "remove"]


def state_of(outcome: Outcome, records: list[Path], stores: set[str], cases: int) -> str:
    """Say how far a command had come when it was killed, which left these records."""
    if not in_stores(outcome.calls, stores):
        return STARTING
    return ENDING if len(records) == cases else f"{len(records)} cases done"


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_preprocessing_that_is_killed_ends_as_if_it_had_not_been(
    injector: Injector,
    warm: Warm,
    right_of: Callable[[str], Right],
    tell: Callable[[str], None],
    tmp_path: Path,
    kills: int,
) -> None:
    right = right_of("2d")
    old = tree_of(right.planned / "preprocessed")
    records = records_in(right.done / "preprocessed")
    stores = {record.parent.name for record in records}
    census = warm.run(copy_root(right.planned, tmp_path / "census"), *PREPROCESS)
    writing = in_stores(census.calls, stores)
    rng = random.Random(kills)
    wrong, states = [], Counter[str]()
    for number in range(kills):
        root = copy_root(right.planned, tmp_path / str(number))
        running = injector.start(root, *PREPROCESS, fault=SLOWER)
        calls = rng.choice(writing) if number % 10 else rng.randrange(len(census.calls))
        outcome = kill_after(calls, rng.uniform(0, 0.01), running)
        folder = root / "preprocessed"
        state = state_of(outcome, records_in(folder), stores, len(records))
        states[state] += 1
        found = half_files(folder) + neither_old_nor_new(tree_of(folder), old, right.tree)
        again = warm.run(root, *PREPROCESS)
        found += [] if again.code == 0 else [f"the next run ends with {again.code}: {again.said}"]
        found += [f"after the next run, {d}" for d in differences(tree_of(folder), right.tree)]
        wrong += [f"kill {number} ({state}): {text}" for text in found]
        shutil.rmtree(root)
    during = sum(count for state, count in states.items() if state.endswith("done"))
    histogram = ", ".join(f"{state}: {states[state]}" for state in sorted(states))
    tell(f"{kills} kills of preprocess, {during} while cases are written, {len(wrong)} wrong")
    tell(f"  {histogram}")
    assert not wrong, "\n".join(wrong)
    assert during >= (80 if kills == 100 else kills / 2), histogram
