"""Runs commands of nnseg, each in a fork of this process, which has done all slow imports before.

Each line of its input is a request: the arguments of a command, what its environment has besides
this one's, the file that takes what it says, and the seconds it may take. A line comes back: its
exit code, or minus the number of the signal that ended it, or nothing if it had to be ended. The
first requests name no such file: they are done here, so that later ones find everything imported.
"""

import contextlib
import gc
import io
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path


def serve() -> None:
    # what libraries start in threads when they are imported is idle, and not needed in a fork
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
    for line in sys.stdin:
        request = json.loads(line)
        if request["output"] is None:
            rehearse(request["arguments"])
            continue
        patience = request.pop("patience")
        pid = os.fork()
        if pid == 0:
            become(**request)
        print(wait_for(pid, patience), flush=True)


def wait_for(pid: int, patience: float) -> int | str:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return ""


def rehearse(arguments: list[str]) -> None:
    from nnseg.cli import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(arguments)
    gc.collect()
    gc.freeze()  # so that no fork copies all memory when it collects


def become(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """Be the command, and end as it does but without taking down the interpreter, which is slow."""
    os.environ.update(environment)
    os.setsid()  # so that all that it starts can be ended with it
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), descriptor)
    code = 1
    try:
        from nnseg.cli import main

        code = main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    serve()
