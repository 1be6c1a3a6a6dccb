"""Runs commands of nnseg, each in a fork of this process, which has done all slow imports before.

Each line of its input is a request: the arguments of a command, what its environment has besides
this one's, the file that takes what it says, the seconds it may take, and after which call that
changes a file, and how many seconds later, it is killed, if so. A line comes back, its `Ending`.
The first requests name no such file: they are done here, so that later ones find everything
imported.
"""

import contextlib
import gc
import io
import json
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

from endings import wait_for


def serve() -> None:
    # what libraries start in threads when they are imported is idle, and not needed in a fork
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
    for line in sys.stdin:
        request = json.loads(line)
        if request["output"] is None:
            rehearse(request["arguments"])
            continue
        pid = os.fork()
        if pid == 0:
            become(request["arguments"], request["environment"], request["output"])
        counter = Path(request["environment"]["FAULTS_COUNTER"])
        print(json.dumps(asdict(wait_for(pid, counter=counter, **request["limits"]))), flush=True)


def rehearse(arguments: list[str]) -> None:
    from nnseg.cli import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(arguments)
    gc.collect()
    gc.freeze()  # so that no fork copies all memory when it collects


def become(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """Be the command, and end as it does but without taking down the interpreter, which is slow."""
    lead(environment, output)
    code = 1
    try:
        from nnseg.cli import main

        code = main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def lead(environment: dict[str, str], output: str) -> None:
    """Lead a session of one's own, so that all that is started can be told and ended."""
    os.environ.update(environment)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), descriptor)


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    with contextlib.suppress(BrokenPipeError):
        serve()
