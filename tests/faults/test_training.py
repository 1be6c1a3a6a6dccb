"""Trainings that are killed: at any step, in any call that writes a checkpoint, with damage."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from injection import CHECKOUT, HERE, PATIENCE, Call, Fault, Injector, Outcome, outcome
from oracle import sha256

LATEST, PREVIOUS = "checkpoint_latest.json", "checkpoint_previous.json"
SETTINGS = {"epochs": 2, "iterations": 3, "validation_iterations": 1, "batch_size": 2}
LONG = SETTINGS | {"epochs": 6, "iterations": 9, "ema": 0.9}
STEPS = 54  # of LONG
OFTEN = -1.0  # seconds between checkpoints: after every step
SLOWED = Fault(sleep_us=1500)  # each call that writes a checkpoint


@dataclass(frozen=True, kw_only=True)
class Request:
    """A training of a toy dataset, and when it is killed; by default never."""

    folder: str
    settings: dict[str, Any] = field(default_factory=lambda: SETTINGS)
    save_every: float = OFTEN
    threads: int = 1
    kill_at_step: int = 0  # of those that this process does
    kill_after_calls: int = 0  # that change a file
    kill_seconds_later: float = 0.0
    patience: float = PATIENCE


class Trainings:
    """The process that trains in forks of itself; see training_forks.py."""

    def __init__(self, injector: Injector, scratch: Path) -> None:
        self.injector = injector
        self.scratch = scratch
        self._numbers = count()
        environment = {"LD_PRELOAD": str(injector.library), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "training_forks.py")],
            env=os.environ | environment,
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def run(self, request: Request, fault: Fault = SLOWED) -> Outcome:
        """Train to the end, or until it is killed."""
        place = self.scratch / str(next(self._numbers))
        environment = self.injector.environment(Path(request.folder), place, fault)
        environment["FAULTS_FOLDER"] = str(Path(request.folder).resolve())
        line = asdict(request) | {"environment": environment, "said": str(place / "said")}
        assert self._process.stdin is not None
        print(json.dumps(line), file=self._process.stdin, flush=True)
        return outcome(int(self._answer()), place, fault)

    def close(self) -> None:
        self._process.communicate(timeout=PATIENCE)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        assert answer, "the process that trains has ended"
        return answer


@pytest.fixture(scope="module")
def trainings(injector: Injector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    process = Trainings(injector, tmp_path_factory.mktemp("trainings"))
    yield process
    process.close()


def final(folder: Path) -> dict[str, Any]:
    """Give what the record of the final model says of it."""
    return dict(json.loads((folder / "checkpoint_final.json").read_text()))


def whole(folder: Path) -> list[str]:
    """Name the checkpoints whose record parses and whose weights have the hash that it says."""
    found = []
    for name in (LATEST, PREVIOUS):
        try:
            record = json.loads((folder / name).read_text())
            if sha256(folder / record["weights_file"]) == record["weights_sha256"]:
                found.append(name)
        except (OSError, ValueError, KeyError):
            continue
    return found


def has_saved(calls: tuple[Call, ...]) -> bool:
    """Whether a checkpoint had been written when the last of these calls was made."""
    renamed = [c.number for c in calls if c.kind == "rename" and c.path.name == LATEST]
    return bool(renamed) and renamed[0] < len(calls)


@pytest.fixture(scope="module")
def undisturbed(
    trainings: Trainings, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[dict[str, Any], int], tuple[str, int]]:
    """Gives the SHA-256 of the final weights of settings, and the calls that it took."""
    made: dict[str, tuple[str, int]] = {}

    def give(settings: dict[str, Any], threads: int = 1) -> tuple[str, int]:
        key = json.dumps([settings, threads])
        if key not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            request = Request(folder=str(folder), settings=settings, threads=threads)
            done = trainings.run(request, SLOWED if settings == SETTINGS else Fault())
            assert done.code == 0, done.said
            made[key] = final(folder)["weights_sha256"], len(done.calls)
        return made[key]

    return give


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_kill_while_a_checkpoint_is_written_loses_none(
    trainings: Trainings,
    undisturbed: Callable[..., tuple[str, int]],
    tell: Callable[[str], None],
    tmp_path: Path,
    kills: int,
) -> None:
    wanted, calls = undisturbed(SETTINGS)
    rng, wrong, states = random.Random(kills), [], Counter[str]()
    for number in range(kills):
        folder = tmp_path / str(number)
        at, later = rng.randrange(1, calls), rng.uniform(0, 0.003)
        if number % 2:  # in the call itself: of a write, half has been done
            request, fault = Request(folder=str(folder)), Fault(action="kill", at=at)
        else:
            request = Request(folder=str(folder), kill_after_calls=at, kill_seconds_later=later)
            fault = SLOWED
        killed = trainings.run(request, fault)
        kept = whole(folder)
        states[f"{killed.calls[-1].kind if killed.calls else 'nothing'}"] += 1
        found = []
        if killed.code != -signal.SIGKILL:
            found.append(f"was not killed but ended with {killed.code}: {killed.said}")
        if has_saved(killed.calls) and LATEST not in kept:
            found.append(f"of the checkpoints only {kept} can be used")
        again = trainings.run(Request(folder=str(folder)))
        if again.code:
            found.append(f"the next run ends with {again.code}: {again.said}")
        elif again.said:
            found.append(f"the next run finds fault: {again.said}")
        elif final(folder)["weights_sha256"] != wanted:
            found.append("the weights are others in the end")
        elif unfinished := [path.name for path in folder.glob(".*")]:
            found.append(f"leaves {unfinished}")
        wrong += [f"kill {number} at call {at}: {text}" for text in found]
        shutil.rmtree(folder)
    histogram = ", ".join(f"{state}: {states[state]}" for state in sorted(states))
    tell(f"{kills} kills while checkpoints are written, {len(wrong)} wrong ({histogram})")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("kills", "threads"), [(3, 1), pytest.param(20, 2, marks=pytest.mark.slow)]
)
def test_a_training_killed_at_random_steps_ends_with_the_bytes_of_the_undisturbed_one(
    trainings: Trainings,
    undisturbed: Callable[..., tuple[str, int]],
    tell: Callable[[str], None],
    tmp_path: Path,
    kills: int,
    threads: int,
) -> None:
    wanted, _ = undisturbed(LONG, threads)
    rng, done = random.Random(kills), []
    for _ in range(kills):
        step, pause = rng.randint(2, STEPS // kills + 1), rng.choice([OFTEN, 0.01])
        request = Request(
            folder=str(tmp_path),
            settings=LONG,
            threads=threads,
            save_every=pause,
            kill_at_step=step,
        )
        killed = trainings.run(request, Fault())
        if killed.code == 0:
            break
        assert killed.code == -signal.SIGKILL, killed.said
        done.append(step)
    request = Request(folder=str(tmp_path), settings=LONG, threads=threads, save_every=1.0)
    last = trainings.run(request, Fault())
    assert last.code == 0, last.said
    tell(f"{len(done)} kills of a training, after {done} more steps each")
    assert len(done) == kills
    assert final(tmp_path)["weights_sha256"] == wanted


def test_two_trainings_with_the_same_seed_leave_the_same_bytes(
    trainings: Trainings, undisturbed: Callable[..., tuple[str, int]], tmp_path: Path
) -> None:
    request = Request(folder=str(tmp_path), settings=LONG, save_every=1.0)
    assert trainings.run(request, Fault()).code == 0
    assert final(tmp_path)["weights_sha256"] == undisturbed(LONG)[0]


@pytest.mark.parametrize("part", ["record", "weights"])
def test_a_killed_training_whose_latest_checkpoint_is_damaged_goes_on_from_the_one_before(
    trainings: Trainings,
    undisturbed: Callable[..., tuple[str, int]],
    tmp_path: Path,
    part: str,
) -> None:
    killed = trainings.run(Request(folder=str(tmp_path), kill_at_step=5), Fault())
    assert killed.code == -signal.SIGKILL
    latest = json.loads((tmp_path / LATEST).read_text())
    path = tmp_path / (LATEST if part == "record" else latest["weights_file"])
    path.write_bytes(path.read_bytes()[:-100])
    again = trainings.run(Request(folder=str(tmp_path)))
    assert again.code == 0
    assert f"{path}" in again.said
    assert "going on from the checkpoint before it" in again.said
    assert final(tmp_path)["weights_sha256"] == undisturbed(SETTINGS)[0]


def test_a_full_disk_ends_a_training_with_its_last_checkpoint_whole(
    trainings: Trainings, undisturbed: Callable[..., tuple[str, int]], tmp_path: Path
) -> None:
    wanted, calls = undisturbed(SETTINGS)
    fault = Fault(action="ENOSPC", at=calls // 2, lasting=True)
    full = trainings.run(Request(folder=str(tmp_path)), fault)
    assert full.code == 4
    assert "disk is full" in full.said
    assert whole(tmp_path)
    assert trainings.run(Request(folder=str(tmp_path))).code == 0
    assert final(tmp_path)["weights_sha256"] == wanted
