"""Trainings that are killed: at any step, in any call that writes a checkpoint, with damage."""

import json
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from injection import FAULTS, Call, Fault, Forks, Injector, Outcome
from oracle import RENAMING, WRITING, phase_of, sha256
from tallies import Tally

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


class Trainings(Forks):
    """The process that trains in forks of itself; see training_forks.py."""

    def __init__(self, injector: Injector, scratch: Path) -> None:
        super().__init__(injector.library, scratch, "training_forks.py")

    def train(self, request: Request, fault: Fault = SLOWED) -> Outcome:
        """Train to the end, or until it is killed, in a folder that is there."""
        Path(request.folder).mkdir(exist_ok=True)
        return self.ask(
            asdict(request),
            Path(request.folder),
            fault,
            kill_after_calls=request.kill_after_calls,
            kill_seconds_later=request.kill_seconds_later,
        )


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


def has_saved(struck: Outcome) -> bool:
    """Whether a checkpoint had been written when the last of its calls was made."""
    renamed = [
        call.number
        for call in struck.calls
        if call.kind == "rename" and call.path.name == LATEST and call != struck.hit
    ]
    return bool(renamed) and renamed[0] < len(struck.calls)


@pytest.fixture(scope="module")
def undisturbed(
    trainings: Trainings, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[str, tuple[Call, ...]]]:
    """Gives the SHA-256 of the final weights of settings, and the calls that it took."""
    made: dict[str, tuple[str, tuple[Call, ...]]] = {}

    def give(settings: dict[str, Any], threads: int = 1) -> tuple[str, tuple[Call, ...]]:
        key = json.dumps([settings, threads])
        if key not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            request = Request(folder=str(folder), settings=settings, threads=threads)
            done = trainings.train(request, SLOWED if settings == SETTINGS else Fault())
            assert done.code == 0, done.said
            made[key] = final(folder)["weights_sha256"], done.calls
        return made[key]

    return give


def is_checkpoint(path: Path) -> bool:
    """Whether a path is that of a checkpoint's record or weights, finished or not."""
    return "checkpoint_" in path.name


def is_needless(call: Call) -> bool:
    """Whether a training can go on without a call: its folder is there, and logs may be missing."""
    return not is_checkpoint(call.path) or call.kind in ("remove", "link")


@pytest.mark.fault("R16", "B1.3")
@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_a_kill_while_a_checkpoint_is_written_loses_none(
    trainings: Trainings,
    undisturbed: Callable[..., tuple[str, tuple[Call, ...]]],
    tally: Tally,
    tmp_path: Path,
    kills: int,
) -> None:
    wanted, calls = undisturbed(SETTINGS)
    writing = [call.number for call in calls if is_checkpoint(call.path) and call.kind != "remove"]
    rng, wrong, phases, kept = random.Random(kills), [], Counter[str](), 0
    for number in range(kills):
        folder = tmp_path / str(number)
        at, later = rng.choice(writing), rng.uniform(0, 0.003)
        if number % 2:  # in the call itself: of a write, half has been done
            request, fault = Request(folder=str(folder)), Fault(action="kill", at=at)
        else:
            request = Request(folder=str(folder), kill_after_calls=at, kill_seconds_later=later)
            fault = SLOWED
        killed = trainings.train(request, fault)
        done = (folder / "checkpoint_final.json").exists()
        phases[phase_of(killed.calls, is_checkpoint, done=done)] += 1
        found = []
        if killed.code != -signal.SIGKILL:
            found.append(f"was not killed but ended with {killed.code}: {killed.said}")
        found += lost(trainings, folder, killed, wanted)
        kept += not found
        wrong += [f"kill {number} at call {at}: {text}" for text in found]
        shutil.rmtree(folder)
    tally("kill -9, checkpoint", kept, kills, states=phases)
    assert not wrong, "\n".join(wrong)
    assert phases[WRITING] + phases[RENAMING] >= 0.8 * kills, phases


def lost(trainings: Trainings, folder: Path, struck: Outcome, wanted: str) -> list[str]:
    """List what a fault has cost a training: its checkpoint, or the bytes that it ends with."""
    found, kept = [], whole(folder)
    if has_saved(struck) and LATEST not in kept:
        found.append(f"of the checkpoints only {kept} can be used")
    again = trainings.train(Request(folder=str(folder)))
    if again.code:
        found.append(f"the next run ends with {again.code}: {again.said}")
    elif again.said:
        found.append(f"the next run finds fault: {again.said}")
    elif final(folder)["weights_sha256"] != wanted:
        found.append("the weights are others in the end")
    elif unfinished := [path.name for path in folder.glob(".*")]:
        found.append(f"leaves {unfinished}")
    return found


@pytest.mark.fault("R05", "R07")
@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *((kind, 2) for kind in FAULTS),
        *(pytest.param(kind, None, marks=pytest.mark.slow) for kind in FAULTS),
    ],
)
def test_a_fault_in_any_call_of_a_training_leaves_a_whole_checkpoint_to_go_on_from(
    trainings: Trainings,
    undisturbed: Callable[..., tuple[str, tuple[Call, ...]]],
    tally: Tally,
    tmp_path: Path,
    kind: str,
    count: int | None,
) -> None:
    wanted, calls = undisturbed(SETTINGS)
    numbers = list(range(1, sum(call.kind in FAULTS[kind].kinds for call in calls) + 1))
    if count is not None:
        numbers = random.Random(kind).sample(numbers, count)
    wrong, hits, kept = [], 0, 0
    for number in numbers:
        folder = tmp_path / str(number)
        struck = trainings.train(
            Request(folder=str(folder)), replace(FAULTS[kind], at=number, sleep_us=0)
        )
        hits += struck.hit is not None
        found = lost(trainings, folder, struck, wanted)
        if "Traceback" in struck.said:
            found.append(f"no message for a user: {struck.said}")
        if kind == "killed":
            found += [f"ended with {struck.code}"] if struck.code != -signal.SIGKILL else []
        elif struck.code == 0:
            found += ["ended with 0"] if struck.hit and not is_needless(struck.hit) else []
        elif struck.code != 4 or str(folder) not in struck.said:
            found.append(f"ended with {struck.code}: {struck.said}")
        kept += struck.hit is not None and not found
        wrong += [f"{struck.fault} ({struck.hit}): {text}" for text in found]
        shutil.rmtree(folder)
    tally("n-th call, checkpoint", kept, hits, states={kind: hits})
    assert not wrong, "\n".join(wrong)
    assert hits >= 0.9 * len(numbers)


def seen_at_kill(folder: Path) -> str:
    """Say where a training was that was killed, by the checkpoints that it has left."""
    if any(folder.glob(".part-*")):
        return WRITING
    return "between checkpoints" if whole(folder) else "before the first checkpoint"


@pytest.mark.fault("R17")
@pytest.mark.parametrize(
    ("kills", "threads"), [(3, 1), pytest.param(20, 2, marks=pytest.mark.slow)]
)
def test_a_training_killed_at_random_steps_ends_with_the_bytes_of_the_undisturbed_one(
    trainings: Trainings,
    undisturbed: Callable[..., tuple[str, tuple[Call, ...]]],
    tally: Tally,
    tmp_path: Path,
    kills: int,
    threads: int,
) -> None:
    wanted, _ = undisturbed(LONG, threads)
    rng, states = random.Random(kills), Counter[str]()
    for number in range(kills):
        step, pause = rng.randint(2, STEPS // kills + 1), rng.choice([OFTEN, 0.01])
        request = Request(
            folder=str(tmp_path),
            settings=LONG,
            threads=threads,
            save_every=pause,
            kill_at_step=step,
        )
        killed = trainings.train(request, Fault())
        assert killed.code == -signal.SIGKILL, f"kill {number}: {killed.said}"
        states[seen_at_kill(tmp_path)] += 1
    request = Request(folder=str(tmp_path), settings=LONG, threads=threads, save_every=1.0)
    last = trainings.train(request, Fault())
    assert last.code == 0, last.said
    same = final(tmp_path)["weights_sha256"] == wanted
    tally("kill -9, training", kills * same, kills, states=states)
    assert same


@pytest.mark.fault("G7")
def test_two_trainings_with_the_same_seed_leave_the_same_bytes(
    trainings: Trainings, undisturbed: Callable[..., tuple[str, tuple[Call, ...]]], tmp_path: Path
) -> None:
    request = Request(folder=str(tmp_path), settings=LONG, save_every=1.0)
    assert trainings.train(request, Fault()).code == 0
    assert final(tmp_path)["weights_sha256"] == undisturbed(LONG)[0]


@pytest.mark.fault("R19")
@pytest.mark.parametrize("part", ["record", "weights"])
def test_a_killed_training_whose_latest_checkpoint_is_damaged_goes_on_from_the_one_before(
    trainings: Trainings,
    undisturbed: Callable[..., tuple[str, tuple[Call, ...]]],
    tmp_path: Path,
    part: str,
) -> None:
    killed = trainings.train(Request(folder=str(tmp_path), kill_at_step=5), Fault())
    assert killed.code == -signal.SIGKILL
    latest = json.loads((tmp_path / LATEST).read_text())
    path = tmp_path / (LATEST if part == "record" else latest["weights_file"])
    path.write_bytes(path.read_bytes()[:-100])
    again = trainings.train(Request(folder=str(tmp_path)))
    assert again.code == 0
    assert f"{path}" in again.said
    assert "going on from the checkpoint before it" in again.said
    assert final(tmp_path)["weights_sha256"] == undisturbed(SETTINGS)[0]


@pytest.mark.fault("R07")
def test_a_full_disk_ends_a_training_with_its_last_checkpoint_whole(
    trainings: Trainings, undisturbed: Callable[..., tuple[str, tuple[Call, ...]]], tmp_path: Path
) -> None:
    wanted, calls = undisturbed(SETTINGS)
    fault = Fault(action="ENOSPC", at=len(calls) // 2, lasting=True)
    full = trainings.train(Request(folder=str(tmp_path)), fault)
    assert full.code == 4
    assert "disk is full" in full.said
    assert whole(tmp_path)
    assert trainings.train(Request(folder=str(tmp_path))).code == 0
    assert final(tmp_path)["weights_sha256"] == wanted
