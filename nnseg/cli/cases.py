"""What a command made of each case, told on the terminal or as JSON."""

import json
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnseg.console import Progress, show
from nnseg.errors import NnsegError


@contextmanager
def telling_cases(args: Namespace, progress: Progress) -> Iterator[dict[str, Any]]:
    """Print what became of the cases of a command that writes label maps into `args.output`.

    With `args.json` that is one object, printed after an error, too: of each case its state as
    run.json has it, and its proof where it is done.

    Yields:
        What to fill: case id to the proof of what was written, or to what is wrong.
    """
    told: dict[str, Any] = {}
    try:
        yield told
    except NnsegError:
        if args.json and told:
            show(_as_json(args, told))
        raise
    finally:
        progress.close()
    show(_as_json(args, told) if args.json else f"{len(told)} segmentations in {args.output}")


def _as_json(args: Namespace, told: dict[str, Any]) -> str:
    from nnseg import record

    cases, proofs = {}, {}
    for name, found in sorted(told.items()):
        if isinstance(found, NnsegError):
            cases[name] = str(found)
        else:
            cases[name], proofs[name] = "done", record.to_json(found)
    target = str(args.output)
    return json.dumps({"target": target, "cases": cases, "proofs": proofs, "written": True})
