"""The command that compares trained models and chooses those that predict: find-best."""

import json
import shlex
from argparse import ArgumentParser, Namespace
from typing import Any

from nnseg.cli.arguments import add_dataset, dataset_of, whole_number
from nnseg.console import STOP, Progress, show
from nnseg.errors import UsageError

MEMBERS = 2  # that predict together at most, as nnU-Net has it


def find_best_arguments(parser: ArgumentParser) -> None:
    add_dataset(parser)
    among = parser.add_argument_group("among which models")
    among.add_argument(
        "-p", "--plans", nargs="+", default=(), metavar="NAME", help="of these plans: nnseg"
    )
    among.add_argument(
        "-c",
        "--configurations",
        nargs="+",
        default=(),
        metavar="NAME",
        help="2d, 3d_fullres, ...; all that are trained if left out",
    )
    among.add_argument(
        "-f",
        "--folds",
        nargs="+",
        default=(),
        metavar="FOLD",
        help="by the cases that these held out; all that every configuration has if left out",
    )
    among.add_argument(
        "--members",
        type=whole_number,
        metavar="K",
        help=f"how many may predict together: {MEMBERS}",
    )
    among.add_argument(
        "--weights", action="store_true", help="let one of several models count twice, too"
    )
    among.add_argument(
        "--disable_ensembling", action="store_true", help="each by itself: --members 1"
    )
    how = parser.add_argument_group("how")
    how.add_argument("-np", "--workers", type=whole_number, metavar="N", help="cases at once")
    how.add_argument(
        "--dry-run", action="store_true", help="say what would be compared, and write nothing"
    )
    how.add_argument("--json", action="store_true", help="print choosing.json, nothing else")
    how.add_argument(
        "-tr",
        choices=("nnUNetTrainer",),
        help="accepted for nnU-Net's sake: a model of ours is not named by its trainer",
    )
    how.add_argument(
        "--no_overwrite",
        action="store_true",
        help="accepted for nnU-Net's sake: no predictions are written that could be kept",
    )


def run_find_best(args: Namespace) -> None:
    from nnseg import pipeline, record
    from nnseg.choose import describe_choosing

    if args.disable_ensembling and args.members not in (None, 1):
        raise UsageError(
            f"--disable_ensembling lets each model predict by itself, and --members {args.members} "
            "does not; give one of them"
        )
    folders, dataset = dataset_of(args)
    compared: dict[str, Any] = {
        "plans": tuple(args.plans) or (pipeline.DEFAULT_PLAN,),
        "configurations": tuple(args.configurations),
        "folds": tuple(args.folds),
        "most_members": 1 if args.disable_ensembling else args.members or MEMBERS,
        "weights": args.weights,
    }
    if args.dry_run:
        found = pipeline.survey(folders, dataset, **compared)
        show(json.dumps(found.to_json()) if args.json else found)
        return
    progress = Progress(args.quiet or args.json)
    STOP.listen()
    try:
        chosen = pipeline.find_best(
            folders, dataset, **compared, workers=args.workers, on_progress=progress, stop=STOP
        )
    finally:
        progress.close()
    if args.json:
        show(json.dumps(record.to_json(chosen)))
        return
    show(describe_choosing(chosen))
    show(f"\nwritten to {folders.choice_file(dataset)}; next:\n  {_next(args)}")


def _next(args: Namespace) -> str:
    """Give the command that predicts with what was chosen."""
    words = ["nnseg", "predict", "-i", "IN", "-o", "OUT", "-d", args.dataset]
    return shlex.join([*words, *(["--root", str(args.root)] if args.root else [])])
