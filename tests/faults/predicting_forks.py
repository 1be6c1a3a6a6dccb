"""Commands in forks of this process, as in warm.py, some of which get killed from outside.

A request says, besides, after which call that changes a file, and how many seconds later; see
training_forks.py.
"""

import contextlib
import json
import os
import sys
import warnings
from pathlib import Path


def serve() -> None:
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
    from training_forks import wait_for
    from warm import become, rehearse

    for line in sys.stdin:
        request = json.loads(line)
        if request["output"] is None:
            rehearse(request["arguments"])
            continue
        pid = os.fork()
        if pid == 0:
            become(request["arguments"], request["environment"], request["output"])
        print(wait_for(pid, request), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    with contextlib.suppress(BrokenPipeError):
        serve()
