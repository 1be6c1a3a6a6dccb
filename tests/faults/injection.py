"""Commands of nnseg with a fault in the n-th call that changes a file; preload.c does it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
PATIENCE = 60.0  # seconds; a command on these small data that takes longer hangs
WRITING = "open,write,rename,sync,link,mkdir"  # what a full disk refuses
CHANGING = f"{WRITING},remove"


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


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call that changed a file, or was to: its kind as preload.c names it."""

    number: int
    kind: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended: its exit code, or minus a signal's number; what it said; its calls."""

    code: int
    said: str
    calls: tuple[Call, ...]
    fault: Fault

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
        return outcome(code, self.place, self.fault)


class Injector:
    """Runs commands on a root, whose preprocessed/ is where the calls are counted."""

    def __init__(self, library: Path, scratch: Path) -> None:
        self.library = library
        self.scratch = scratch
        self._numbers = count()

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

    def environment(self, root: Path, place: Path, fault: Fault) -> dict[str, str]:
        """Make the folder `place` of a run's counter, and give what preload.c is to be told."""
        place.mkdir(parents=True)
        (place / "counter").write_bytes(bytes(8))
        (place / "trace").touch()
        (place / "said").touch()
        return {
            "LD_PRELOAD": str(self.library),
            "OMP_NUM_THREADS": "1",
            "FAULTS_FOLDER": str(root.resolve() / "preprocessed"),
            "FAULTS_COUNTER": str(place / "counter"),
            "FAULTS_TRACE": str(place / "trace"),
            "FAULTS_KINDS": fault.kinds,
            "FAULTS_ACTION": fault.action,
            "FAULTS_AT": str(fault.at),
            "FAULTS_LASTING": str(int(fault.lasting)),
            "FAULTS_SLEEP": str(fault.sleep_us),
        }


class Warm(Injector):
    """Runs them in forks of a process that has done the slow imports; see warm.py."""

    def __init__(self, library: Path, scratch: Path, rehearsals: Sequence[Sequence[str]]) -> None:
        super().__init__(library, scratch)
        scratch.mkdir()
        environment = {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "warm.py")],
            env=os.environ | environment,
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for arguments in rehearsals:
            self._ask(arguments, {}, None)

    def run(self, root: Path, *arguments: str, fault: Fault = NONE) -> Outcome:
        place = self.scratch / str(next(self._numbers))
        environment = self.environment(root, place, fault)
        answers = self._ask([*arguments, "--root", str(root)], environment, place / "said")
        code = answers.readline()
        assert code, "the warm process has ended"
        if code == "\n":
            raise TimeoutError(f"{arguments} hangs after {fault}: {(place / 'said').read_text()}")
        return outcome(int(code), place, fault)

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=PATIENCE)

    def _ask(
        self, arguments: Sequence[str], environment: dict[str, str], output: Path | None
    ) -> IO[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {
            "arguments": list(arguments),
            "environment": environment,
            "output": None if output is None else str(output),
            "patience": PATIENCE,
        }
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._process.stdout


def outcome(code: int, place: Path, fault: Fault) -> Outcome:
    """Read what a command that has ended left in the folder of its counter, and remove that."""
    calls = []
    for line in (place / "trace").read_text().splitlines():
        number, kind, path = line.split(" ", 2)
        calls.append(Call(number=int(number), kind=kind, path=Path(path)))
    calls.sort(key=lambda call: call.number)
    said = (place / "said").read_text()
    shutil.rmtree(place)
    return Outcome(code=code, said=said, calls=tuple(calls), fault=fault)
