"""The command that averages what several models predicted: ensemble."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from nnseg.cli.arguments import numbers, whole_number
from nnseg.cli.cases import telling_cases
from nnseg.console import STOP, Progress, show

if TYPE_CHECKING:
    from nnseg.verbs.ensembling import Foreseen

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
    from nnseg.verbs.ensembling import ensemble, foresee

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
    with telling_cases(args, progress) as told:
        ensemble(
            *what,
            weights=args.weights,
            probabilities=args.save_probabilities,
            workers=args.workers,
            overwrite=args.overwrite,
            on_progress=progress,
            on_case=told.__setitem__,
            stop=STOP,
        )


def _tell(foreseen: "Foreseen", as_json: bool) -> None:
    """Print what would be done, and end as the work itself would.

    Raises:
        NnsegError: A case cannot be averaged.
    """
    from nnseg.verbs.predicting import raise_failed

    if as_json:
        content = {"cases": foreseen.states, "memory_bytes": foreseen.memory, "written": False}
        show(json.dumps({"target": str(foreseen.target), **content}))
    else:
        show(foreseen)
    raise_failed(foreseen.failed, len(foreseen.states))
