"""Small trainings, each in a fork of this process, which has loaded torch before; some get killed.

Each line of its input is a request, see `Request` in test_training.py; a line comes back, the
`Ending` of the training. One training is rehearsed first, which makes all later ones ten times as
fast, in one thread, so that each fork can start its own.
"""

import contextlib
import gc
import json
import os
import signal
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from endings import wait_for
from warm import lead

TESTS = Path(__file__).parents[1]


def serve() -> None:
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
    from test_train import SHORT, make_task

    from nnseg import train as stage

    with tempfile.TemporaryDirectory() as folder:
        stage.train(make_task(Path(folder), SHORT))
    gc.collect()
    gc.freeze()  # so that no fork copies all memory when it collects
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(request)
        counter = Path(request["environment"]["FAULTS_COUNTER"])
        print(json.dumps(asdict(wait_for(pid, counter=counter, **request["limits"]))), flush=True)


def become(request: dict[str, Any]) -> None:
    """Train, and end without taking down the interpreter, which is slow."""
    lead(request["environment"], request["output"])
    code = 1
    try:
        code = train(request)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def train(request: dict[str, Any]) -> int:
    import logging
    from dataclasses import replace

    from strikes import note_strike
    from test_train import make_task

    from nnseg import train as stage
    from nnseg.errors import NnsegError
    from nnseg.learning.recipe import TrainSettings
    from nnseg.learning.resume import find_run

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    stage.SAVE_EVERY = request["save_every"]
    settings = TrainSettings(**request["settings"])
    task = make_task(Path(request["folder"]), settings)
    task = replace(task, execution=replace(task.execution, threads=request["threads"]))
    started: list[int] = []

    def on_step(what: str, done: int, total: int) -> None:
        started.append(done)
        if len(started) == request["kill_at_step"]:
            note_strike()
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        hashes = {"plan_hash": task.plan_hash, "split_hash": task.split_hash}
        resume = find_run(task.folder, settings, **hashes)
        stage.train(task, resume=resume, on_step=on_step)
    except NnsegError as error:
        print(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    with contextlib.suppress(BrokenPipeError):
        serve()
