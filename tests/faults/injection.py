"""Commands of nnseg with a fault in the n-th call that changes a file; preload.c does it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from endings import IDLE, Ending, wait_for_session

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
PATIENCE = 60.0  # seconds; a command on these small data that takes longer hangs
WRITING = "open,write,rename,sync,link,mkdir"  # what a full disk refuses
CHANGING = f"{WRITING},remove"
RANKS_IDLE = 60.0  # seconds that any of several ranks may live on after a fault
LIVED: list[float] = []  # seconds from each fault that ended a command to its last process's end


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens at which call; the default is that nothing does, but calls are counted."""

    action: str = ""  # ENOSPC, EIO or kill
    at: int = 0  # the number of the call, from 1
    lasting: bool = False  # in all later calls, too
    sleep_us: int = 0  # before every call

    @property
    def kinds(self) -> str:
        return WRITING if self.action == "ENOSPC" else CHANGING

    def __str__(self) -> str:
        return f"{self.action} {'from' if self.lasting else 'at'} call {self.at}"


NONE = Fault()
FAULTS = {  # what is swept over all calls
    "full once": Fault(action="ENOSPC"),
    "full": Fault(action="ENOSPC", lasting=True),
    "broken once": Fault(action="EIO"),
    "killed": Fault(action="kill"),
}


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call that changed a file, or was to: its kind as preload.c names it."""

    number: int
    kind: str
    path: Path
    seconds: float = 0.0  # when it was made, by the monotonic clock


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended: its exit code, or minus a signal's number; what it said; its calls."""

    code: int
    said: str
    calls: tuple[Call, ...]
    fault: Fault
    lived: float = 0.0  # seconds from the fault, if it ended the command, to the last process's end

    @property
    def hit(self) -> Call | None:
        """The first call that the fault struck; None where there were fewer calls."""
        return next((call for call in self.calls if call.number == self.fault.at), None)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A command under way, in a process group of its own."""

    process: subprocess.Popen[bytes]
    place: Path
    fault: Fault

    def send(self, number: signal.Signals) -> None:
        """Send it, and all that it started, a signal."""
        os.killpg(self.process.pid, number)

    def count(self) -> int:
        """Give the number of calls so far."""
        return int.from_bytes((self.place / "counter").read_bytes(), sys.byteorder)

    def wait(self) -> Outcome:
        """Wait for its end; TimeoutExpired if it hangs."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            raise
        left = wait_for_session(self.process.pid)
        ending = Ending(code=code, ended=time.monotonic(), left=left)
        return outcome(ending, self.place, self.fault)


class Injector:
    """Runs commands on a root, whose preprocessed/ is where the calls are counted."""

    def __init__(self, library: Path, scratch: Path) -> None:
        self.library = library
        self.scratch = scratch
        self._numbers = count()
        self._kills = count()

    def start(self, root: Path, *arguments: str, fault: Fault = NONE) -> Running:
        """Start `python -m nnseg`, in a process group of its own."""
        place = self.scratch / str(next(self._numbers))
        environment = self.environment(root, place, fault)
        with open(place / "said", "ab") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "nnseg", *arguments, "--root", str(root)],
                env=os.environ | environment,
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        return Running(process=process, place=place, fault=fault)

    def run(self, root: Path, *arguments: str, fault: Fault = NONE) -> Outcome:
        """Run `python -m nnseg` to its end."""
        return self.start(root, *arguments, fault=fault).wait()

    def environment(
        self, root: Path, place: Path, fault: Fault, below: str = "preprocessed"
    ) -> dict[str, str]:
        """Make the folder `place` of a run's counter, and give what preload.c is to be told.

        Calls are counted that change files in the folder `below` the root, or "" for all of it.
        """
        place.mkdir(parents=True)
        (place / "counter").write_bytes(bytes(8))
        (place / "trace").touch()
        (place / "said").touch()
        return {
            "FAULTS_STRUCK": str(place / "struck"),
            "LD_PRELOAD": str(self.library),
            "OMP_NUM_THREADS": "1",
            "FAULTS_FOLDER": str(root.resolve() / below),
            "FAULTS_COUNTER": str(place / "counter"),
            "FAULTS_TRACE": str(place / "trace"),
            "FAULTS_KINDS": fault.kinds,
            "FAULTS_ACTION": fault.action,
            "FAULTS_AT": str(fault.at),
            "FAULTS_LASTING": str(int(fault.lasting)),
            "FAULTS_SLEEP": str(fault.sleep_us),
        }


class Forks(Injector):
    """Has commands run in forks of a process that has done the slow imports."""

    def __init__(self, library: Path, scratch: Path, script: str) -> None:
        super().__init__(library, scratch)
        scratch.mkdir(exist_ok=True)
        environment = {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script)],
            env=os.environ | environment,
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=PATIENCE)

    def ask(
        self,
        request: dict[str, Any],
        root: Path,
        fault: Fault,
        *,
        below: str = "",
        kill_after_calls: int = 0,
        kill_seconds_later: float = 0.0,
        idle: float = IDLE,
    ) -> Outcome:
        """Have the process do what a request says, to its end or until it is killed.

        Every second kill is of the command alone, and not of the processes that it has started. No
        process may live on for `idle` seconds after a fault that ended the command.
        """
        place = self.scratch / str(next(self._numbers))
        limits = {
            "patience": PATIENCE,
            "kill_after_calls": kill_after_calls,
            "kill_seconds_later": kill_seconds_later,
            "kill_alone": kill_after_calls > 0 and next(self._kills) % 2 > 0,
        }
        environment = self.environment(root, place, fault, below)
        output = str(place / "said")
        self.send(request | {"environment": environment, "output": output, "limits": limits})
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        assert answer, "the warm process has ended"
        return outcome(Ending(**json.loads(answer)), place, fault, idle)

    def send(self, request: dict[str, Any]) -> None:
        """Send a request, and wait for nothing."""
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)


class Warm(Forks):
    """Runs commands in forks, once some of them have been rehearsed; see warm.py."""

    def __init__(self, library: Path, scratch: Path, rehearsals: Sequence[Sequence[str]]) -> None:
        super().__init__(library, scratch, "warm.py")
        for arguments in rehearsals:
            self.send({"arguments": list(arguments), "output": None})

    def run(
        self,
        root: Path,
        *arguments: str,
        fault: Fault = NONE,
        below: str = "preprocessed",
        kill_after_calls: int = 0,
        kill_seconds_later: float = 0.0,
    ) -> Outcome:
        """Run a command to its end, or until it is killed."""
        return self.ask(
            {"arguments": [*arguments, "--root", str(root)]},
            root,
            fault,
            below=below,
            kill_after_calls=kill_after_calls,
            kill_seconds_later=kill_seconds_later,
        )


def outcome(ending: Ending, place: Path, fault: Fault, idle: float = IDLE) -> Outcome:
    """Read what a command that has ended left in the folder of its counter, and remove that.

    No process lives on after it, nor for `idle` seconds after the first fault if that ended it, and
    it has not hung: AssertionError if one does, or it has.
    """
    calls = []
    for line in (place / "trace").read_text().splitlines():
        number, seconds, kind, path = line.split(" ", 3)
        calls.append(Call(number=int(number), kind=kind, path=Path(path), seconds=float(seconds)))
    calls.sort(key=lambda call: call.number)
    said = (place / "said").read_text()
    faults = [call.seconds for call in calls if call.number == fault.at]
    faults += [] if ending.killed is None else [ending.killed]
    if (place / "struck").exists():
        faults.append(float((place / "struck").read_text()))
    shutil.rmtree(place)
    assert not ending.hung, f"hangs after {fault}: {said}"
    assert not ending.left, f"{ending.left} processes live on after {fault}: {said}"
    lived = ending.ended - min(faults) if faults and ending.code else 0.0
    assert lived < idle, f"lived on for {lived:.1f} s after {fault}: {said}"
    LIVED.append(lived)
    return Outcome(code=ending.code, said=said, calls=tuple(calls), fault=fault, lived=lived)
