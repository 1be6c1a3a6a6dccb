"""The command that averages what several models predicted: ensemble."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nnseg.cli.arguments import numbers, whole_number
from nnseg.console import STOP, Progress
from nnseg.errors import NnsegError

if TYPE_CHECKING:
    from nnseg.ensembling import Averaged, Foreseen

KINDS = ("npz", "nifti", "chunks", "compact")  # of files of probabilities


def ensemble_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="for each model a folder of its probabilities: what a validation leaves, or "
        "`nnseg predict --save_probabilities`, or nnU-Net's --save_probabilities",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the label maps"
    )
    parser.add_argument(
        "--weights", type=numbers, default=(), metavar="X,...", help="of the models: 1,1,..."
    )
    parser.add_argument(
        "-np", "--workers", type=whole_number, metavar="N", help="cases at once; one a core"
    )
    parser.add_argument(
        "--save_probabilities",
        nargs="?",
        const="npz",
        choices=KINDS,
        help="keep the mean, too; npz, as nnU-Net has them, if no kind is given",
    )
    parser.add_argument(
        "--save_npz",
        dest="save_probabilities",
        action="store_const",
        const="npz",
        help="the same as nnU-Net calls it",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="do again what is proven to be done, and replace label maps changed by hand",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="open the probabilities, say what would be done and what it takes, and write nothing",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def run_ensemble(args: Namespace) -> None:
    from nnseg.ensembling import ensemble, foresee

    what = (args.input, args.output)
    if args.dry_run:
        _tell(
            foresee(
                *what,
                weights=args.weights,
                probabilities=args.save_probabilities,
                overwrite=args.overwrite,
            ),
            args.json,
        )
        return
    progress = Progress(args.quiet or args.json)
    STOP.listen()
    told: dict[str, Averaged | NnsegError] = {}
    try:
        written = ensemble(
            *what,
            weights=args.weights,
            probabilities=args.save_probabilities,
            workers=args.workers,
            overwrite=args.overwrite,
            on_progress=progress,
            on_case=told.__setitem__,
            stop=STOP,
        )
    except NnsegError:
        if args.json and told:
            print(_as_json(args.output, told))
        raise
    finally:
        progress.close()
    if args.json:
        print(_as_json(args.output, told))
    else:
        print(f"{len(written)} segmentations in {args.output}")


def _tell(foreseen: "Foreseen", as_json: bool) -> None:
    """Print what would be done, and end as the work itself would.

    Raises:
        NnsegError: A case cannot be averaged.
    """
    from nnseg.predicting import raise_failed

    if as_json:
        content = {"cases": foreseen.states, "memory_bytes": foreseen.memory, "written": False}
        print(json.dumps({"target": str(foreseen.target), **content}))
    else:
        print(foreseen)
    raise_failed(foreseen.failed, len(foreseen.states))


def _as_json(target: Path, told: "Mapping[str, Averaged | NnsegError]") -> str:
    """Give what became of each case: its state as run.json has it, and its proof if it is done."""
    from nnseg import record

    told = dict(sorted(told.items()))
    failed = {name: str(found) for name, found in told.items() if isinstance(found, NnsegError)}
    proofs = {name: record.to_json(found) for name, found in told.items() if name not in failed}
    cases = {name: failed.get(name, "done") for name in told}
    return json.dumps({"target": str(target), "cases": cases, "proofs": proofs, "written": True})
