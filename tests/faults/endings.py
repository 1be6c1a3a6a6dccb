"""How a command under a fault came to its end, and all processes that it had started with it."""

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

IDLE = 30.0  # seconds that any process may live on after the command that started it


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a command ended, and when, in seconds of the monotonic clock."""

    code: int  # or minus the number of the signal that ended it
    hung: bool = False  # it had to be ended
    killed: float | None = None  # when it was killed from outside
    ended: float = 0.0  # when the last process of its session was gone
    left: int = 0  # processes that had to be ended, IDLE seconds after the command


def wait_for(
    pid: int,
    *,
    patience: float,
    counter: Path | None = None,
    kill_after_calls: int = 0,
    kill_seconds_later: float = 0.0,
    kill_alone: bool = False,
) -> Ending:
    """Wait for a child that leads a session, or kill it some time after its n-th call.

    It is killed with all of its session, or alone: then what it had started is to end by itself.
    """
    start, killed = time.monotonic(), None
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        if counter is not None and kill_after_calls and killed is None:
            calls = int.from_bytes(counter.read_bytes(), sys.byteorder)
            if calls >= kill_after_calls:
                time.sleep(kill_seconds_later)
                killed = time.monotonic()
                if kill_alone:
                    os.kill(pid, signal.SIGKILL)
                else:
                    _kill(pid)
        if time.monotonic() > start + patience:
            _kill(pid)
            os.waitpid(pid, 0)
            return Ending(code=-signal.SIGKILL, hung=True, ended=time.monotonic())
        time.sleep(0.001)
    left = wait_for_session(pid)
    return Ending(
        code=os.waitstatus_to_exitcode(status), killed=killed, ended=time.monotonic(), left=left
    )


def wait_for_session(leader: int) -> int:
    """Wait until all processes of a session are gone; end those that stay and count them."""
    end = time.monotonic() + IDLE
    while living := processes_of(leader):
        if time.monotonic() > end:
            _kill(leader)
            return len(living)
        time.sleep(0.002)
    return 0


def processes_of(session: int) -> list[int]:
    """List the processes of a session that run; those that nobody has waited for do not."""
    try:
        os.killpg(session, 0)  # that there is none is told at once
    except ProcessLookupError:
        return []
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, number = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(number) == session and state not in "ZX":
                found.append(int(folder.name))
    return found


def _kill(session: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)
