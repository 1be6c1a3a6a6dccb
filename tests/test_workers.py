import logging
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nnseg import workers
from nnseg.errors import DataError, DiskFullError, MachineError, PlanError
from nnseg.parallel import Room
from nnseg.workers import for_each_apart

pytestmark = pytest.mark.skipif(os.name == "nt", reason="threads do the work there")

TASKS = """
import logging, os, signal, time, warnings
from pathlib import Path
from nnseg.errors import DataError, DiskFullError, PlanError

class Own(DataError):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")

def double(item):
    return 2 * item

def number(item):
    return os.getpid()

def refuse(item):
    if item == 1:
        raise PlanError("cut off; restore it")
    if item == 2:
        raise Own("this", "that")
    return item

def full(item):
    if item == 1:
        raise DiskFullError("the disk is full; make room")
    return item

def bug(item):
    raise ZeroDivisionError("by zero")

def strange(item):
    return lambda: item

def say(item):
    logging.getLogger("nnseg.some").warning("case %d is odd", item)
    warnings.warn("old use", UserWarning)

def no_memory(folder, item):
    if item == 1 and not (folder / "tried").exists():
        (folder / "tried").touch()
        raise MemoryError("unable to allocate")
    return item

def die(folder, times, number, item):
    with open(folder / "starts", "a") as file:
        file.write(f"{item} {os.getpid()} {time.monotonic()}\\n")
    count = len(list(folder.glob("died*")))
    if item == 1 and count < times:
        (folder / f"died{count}").touch()
        os.kill(os.getpid(), number) if number else os._exit(7)
    time.sleep(0.02)
    return item

def hang(folder, item):
    (folder / f"pid{item}").write_text(str(os.getpid()))
    time.sleep(300)

def room(item):
    began = time.monotonic()
    time.sleep(0.1)
    return began, time.monotonic()

def threads(item):
    import numpy as np
    from threadpoolctl import threadpool_info
    np.ones((2, 2)) @ np.ones((2, 2))
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

def modules(item):
    import sys, nnseg.verbs.prepare
    return [name for name in ("torch", "task_main") if name in sys.modules]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Functions of a module that workers can import."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "tasks_of_workers.py").write_text(TASKS)
    sys.path.insert(0, str(folder))
    import tasks_of_workers  # type: ignore[import-not-found]

    yield tasks_of_workers
    sys.path.remove(str(folder))


def apart(work: Any, items: Any = (0, 1, 2, 3), count: int = 2, **options: Any) -> dict[str, Any]:
    return for_each_apart(work, items, str, count, "working", None, **options)


def test_every_item_has_its_result_from_another_process(tasks: Any) -> None:
    told: list[tuple[str, int, int]] = []
    tell = lambda *step: told.append(step)  # noqa: E731
    assert for_each_apart(tasks.double, [3, 4, 5], str, 2, "doubling", tell) == {
        "3": 6,
        "4": 8,
        "5": 10,
    }
    assert told == [("doubling", done, 3) for done in (1, 2, 3)]
    pids = apart(tasks.number)
    assert os.getpid() not in pids.values()
    assert 1 <= len(set(pids.values())) <= 2


def test_nothing_to_do_starts_nothing(tasks: Any) -> None:
    assert apart(tasks.double, []) == {}


@pytest.mark.fault("R04")
def test_refusals_arrive_by_kind_and_text_even_one_that_no_pipe_can_carry(tasks: Any) -> None:
    with pytest.raises(DataError) as raised:
        apart(tasks.refuse)
    assert str(raised.value) == (
        "2 of 4 cases failed:\n  case 1: cut off; restore it\n  case 2: this and that"
    )
    with pytest.raises(PlanError, match=r"^case 1: cut off; restore it$"):
        apart(tasks.refuse, [0, 1])


def test_a_full_disk_ends_the_work_and_what_was_not_begun_is_counted(tasks: Any) -> None:
    with pytest.raises(DiskFullError) as raised:
        for_each_apart(tasks.full, range(9), str, 1, "working", None)
    assert str(raised.value) == ("case 1: the disk is full; make room\n7 of 9 cases were not begun")


@pytest.mark.fault("R04")
def test_a_bug_ends_the_work_and_brings_its_traceback(tasks: Any) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)case 0: ZeroDivisionError: .*in bug.*by zero"):
        apart(tasks.bug, [0])
    with pytest.raises(RuntimeError, match=r"case 0: .*(pickle|lambda)"):
        apart(tasks.strange, [0])


def test_what_a_worker_logs_and_warns_is_logged_here(
    tasks: Any, caplog: pytest.LogCaptureFixture
) -> None:
    apart(tasks.say, [5])
    assert ("nnseg.some", logging.WARNING, "case 5 is odd") in caplog.record_tuples
    assert any(
        name == "py.warnings" and "old use" in text for name, _, text in caplog.record_tuples
    )


@pytest.mark.fault("R03", "B1.2")
@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (signal.SIGKILL, r"killed \(signal 9, probably out of memory; peak RSS \d+\.\d GB\)"),
        (signal.SIGSEGV, r"died of signal 11 \(Segmentation fault; peak RSS"),
        (0, r"ended with exit code 7 \(peak RSS"),
    ],
)
def test_a_case_that_kills_its_worker_is_named_and_tried_again_alone(
    tasks: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int, expected: str
) -> None:
    found = apart(partial(tasks.die, tmp_path, 1, int(number)))
    assert found == {"0": 0, "1": 1, "2": 2, "3": 3}
    (text,) = [record.getMessage() for record in caplog.records]
    assert text.startswith("case 1: its worker ")
    assert text.endswith("; trying again with fewer workers")
    assert re.search(expected, text)
    order = [line.split()[0] for line in (tmp_path / "starts").read_text().splitlines()]
    assert sorted(order) == ["0", "1", "1", "2", "3"]
    assert order[-1] == "1"


@pytest.mark.fault("R03", "B1.2")
def test_a_case_that_kills_its_worker_twice_fails_and_the_others_are_done(
    tasks: Any, tmp_path: Path
) -> None:
    told: list[int] = []
    work = partial(tasks.die, tmp_path, 9, int(signal.SIGKILL))
    with pytest.raises(MachineError, match=r"case 1: its worker was killed .*; free memory"):
        for_each_apart(work, [0, 1, 2], str, 2, "working", lambda *step: told.append(step[1]))
    assert told[-1] == 3
    starts = [line.split()[0] for line in (tmp_path / "starts").read_text().splitlines()]
    assert sorted(starts) == ["0", "1", "1", "2"]


def test_after_a_death_half_as_many_work(tasks: Any, tmp_path: Path) -> None:
    work = partial(tasks.die, tmp_path, 1, int(signal.SIGKILL))
    apart(work, range(40), count=2)
    pids = [line.split()[1] for line in (tmp_path / "starts").read_text().splitlines()]
    assert len(set(pids[-4:-1])) == 1


def test_memory_that_does_not_suffice_is_tried_again(
    tasks: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert apart(partial(tasks.no_memory, tmp_path), [0, 1]) == {"0": 0, "1": 1}
    assert "case 1: the memory does not suffice (unable to allocate); trying" in caplog.text


def test_what_does_not_fit_beside_others_waits_for_them(tasks: Any) -> None:
    spans = apart(tasks.room, ["a", "b"], room=Room(total=10, needs={"a": 6, "b": 6}))
    (_, end), (start, _) = sorted(spans.values())
    assert end <= start


def test_blas_has_one_thread_beside_other_workers_and_all_alone(tasks: Any) -> None:
    assert set(map(tuple, apart(tasks.threads, [0, 1]).values())) <= {(1,), (1, 1)}
    assert set(apart(tasks.threads, [0], count=1)["0"]) == set(tasks.threads(0))


def test_a_worker_never_loads_torch(tasks: Any) -> None:
    assert apart(tasks.modules, [0]) == {"0": []}


def test_a_script_needs_no_guard_and_runs_once(tasks: Any, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(tasks.__file__).parent)!r})\n"
        "from nnseg.workers import for_each_apart\n"
        "import tasks_of_workers\n"
        "print('once')\n"
        "print(sorted(for_each_apart(tasks_of_workers.double, [1, 2], str, 2, 'x', None)))\n"
    )
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "once\n['1', '2']\n"
    assert done.stderr == ""


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.fault("R03", "G5")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up there")
def test_workers_end_when_their_parent_is_killed(tasks: Any, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(tasks.__file__).parent)!r})\n"
        "from functools import partial\n"
        "from nnseg.workers import for_each_apart\n"
        "import tasks_of_workers\n"
        f"work = partial(tasks_of_workers.hang, Path({str(tmp_path)!r}))\n"
        "for_each_apart(work, [0, 1], str, 2, 'x', None)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 60
    pids: set[int] = set()
    while len(pids) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        pids = {int(text) for path in tmp_path.glob("pid*") if (text := path.read_text())}
    parent.kill()
    parent.wait()
    while any(running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_ends_the_workers(tasks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    end = workers._Crew.end

    def watch(self: Any, at_once: bool = False) -> None:
        ended.append(at_once)
        end(self, at_once)
        assert all(worker.process.returncode is not None for worker in self.workers)

    def strike(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers._Crew, "end", watch)
    with pytest.raises(KeyboardInterrupt):
        for_each_apart(tasks.double, [0, 1, 2], str, 2, "working", strike)
    assert ended == [True]
