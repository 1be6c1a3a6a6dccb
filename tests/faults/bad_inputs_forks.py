"""Commands in forks of this process, as in warm.py, whose time and memory are measured.

Root's power over every file is given up first, so that files without rights are refused to it, too.
Each line of its input is a request as in warm.py; a line comes back: the exit code, or minus the
number of the signal that ended it, the seconds and the most MiB of memory that it took.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

MOST_BYTES = 12 * 2**30  # of addresses; more are refused, before the machine feels it
CAPABILITIES_V3 = 0x20080522  # of linux/capability.h


def serve() -> None:
    # what libraries start in threads when they are imported is idle, and not needed in a fork
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
    from warm import become, rehearse

    give_up_power()
    for line in sys.stdin:
        request = json.loads(line)
        if request["output"] is None:
            rehearse(request["arguments"])
            continue
        patience = request.pop("patience")
        pid = os.fork()
        if pid == 0:
            resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
            become(**request)
        print(*wait_for(pid, patience), flush=True)


def give_up_power() -> None:
    """Have files without rights refused to root as they are to anybody else, on Linux."""
    if sys.platform == "linux" and os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(CAPABILITIES_V3, 0)
        none = (ctypes.c_uint32 * 6)()
        ctypes.CDLL(None, use_errno=True).capset(ctypes.byref(header), ctypes.byref(none))


def wait_for(pid: int, patience: float) -> tuple[int, float, float]:
    """Give how a fork ended, by SIGKILL where it does not within `patience` seconds."""
    start = time.monotonic()
    while time.monotonic() < start + patience:
        ended, status, used = os.wait4(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code, time.monotonic() - start, used.ru_maxrss / 1024
        time.sleep(0.001)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -signal.SIGKILL, patience, 0.0


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    serve()
