"""Commands in forks of this process, as in warm.py, each of which something befalls.

A request says besides, as `befalls`, which functions of strikes.py are called in the fork before
the command, and with which words. The commands that are rehearsed here are done to their end.
"""

import contextlib
import json
import os
import signal
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

ASKED = ("arguments", "befalls", "environment", "output")


def serve() -> None:
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
    from endings import wait_for
    from warm import rehearse

    for line in sys.stdin:
        request = json.loads(line)
        if request["output"] is None:
            rehearse(request["arguments"])
            continue
        pid = os.fork()
        if pid == 0:
            become(**{name: request[name] for name in ASKED})
        print(json.dumps(asdict(wait_for(pid, **request["limits"]))), flush=True)


def become(
    arguments: list[str], befalls: list[list[str]], environment: dict[str, str], output: str
) -> None:
    """Be the command, once what is to befall it has been prepared."""
    import strikes
    from warm import lead

    lead(environment, output)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as before the commands that were rehearsed
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        from nnseg.cli import main

        for name, *words in befalls:
            getattr(strikes, name)(*words)
        code = main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    with contextlib.suppress(BrokenPipeError):
        serve()
