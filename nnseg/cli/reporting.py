"""The command report."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from nnseg.cli.arguments import add_plan_name, count, folders_of, whole_number
from nnseg.console import STOP, Progress, show


def report_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "what",
        metavar="WHAT",
        help="a dataset (4, Dataset004_Hippocampus, ./D), the folder of a trained fold, or of "
        "predictions that `nnseg evaluate` scored",
    )
    parser.add_argument(
        "second", nargs="?", type=Path, metavar="SECOND", help="a folder to compare WHAT with"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="of the report: report/ beside it"
    )
    add_plan_name(parser)
    parser.add_argument(
        "-djfile",
        "--dataset-json",
        type=Path,
        metavar="FILE",
        help="names the labels of predictions, where nothing beside them does",
    )
    parser.add_argument(
        "--cases", type=count, default=200, metavar="N", help="that can be looked at: 200"
    )
    parser.add_argument("-np", "--workers", type=whole_number, metavar="N", help="cases at once")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be in it, and write nothing"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def run_report(args: Namespace) -> None:
    from nnseg import pipeline, record
    from nnseg.folders import find_dataset, holds_predictions
    from nnseg.verbs.planning import DEFAULT_PLAN

    folders = folders_of(args)
    progress = Progress(args.quiet or args.json)
    how: dict[str, Any] = {"output": args.output, "most_cases": args.cases}
    doing: dict[str, Any] = {"workers": args.workers, "on_progress": progress, "stop": STOP}
    if not args.dry_run:
        STOP.listen()
    outlined = None
    try:
        if args.second is not None or holds_predictions(Path(args.what)):
            first, second = Path(args.what), args.second
            how["dataset_json"] = args.dataset_json
            if args.dry_run:
                outlined = pipeline.outline_report_on_predictions(folders, first, second, **how)
            else:
                index = pipeline.report_on_predictions(folders, first, second, **how, **doing)
        else:
            folders, dataset = find_dataset(folders, args.what)
            how["plan_name"] = args.plan or DEFAULT_PLAN
            if args.dry_run:
                outlined = pipeline.outline_report(folders, dataset, **how)
            else:
                index = pipeline.report_on(folders, dataset, **how, **doing)
    finally:
        progress.close()
    if outlined is not None:
        show(json.dumps(record.to_json(outlined)) if args.json else outlined)
        return
    show(json.dumps({"report": str(index)}) if args.json else f"open {index} in a browser")
