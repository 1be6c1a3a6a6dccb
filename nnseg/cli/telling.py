"""Commands that tell: info, verify."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from nnseg.cli.arguments import folders_of
from nnseg.console import Progress, show


def info_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--devices", action="store_true", help="ask torch which there are and what they can do"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def run_info(args: Namespace) -> None:
    from nnseg import record
    from nnseg.verbs.info import describe, info

    found = info(folders_of(args), devices=args.devices)
    show(json.dumps(record.to_json(found)) if args.json else describe(found))


def verify_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="label maps, files beside them, probabilities, plans, checkpoints, choice.json, "
        "scores, reports, models in ONNX or a zip, or folders of these",
    )
    parser.add_argument(
        "-i",
        "--images",
        type=Path,
        metavar="FOLDER",
        help="of the images, or of the label maps that were postprocessed, if they were moved",
    )
    parser.add_argument(
        "-m",
        "--models",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="of models that are not in results",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def run_verify(args: Namespace) -> None:
    from nnseg import pipeline, record
    from nnseg.verbs.verifying import describe, raise_for_outcomes

    progress = Progress(args.quiet or args.json)
    found = pipeline.verify(
        args.files,
        folders_of(args),
        images=args.images,
        models=args.models,
        on_progress=progress,
    )
    progress.close()
    if args.json:
        results = [{"outcome": one.outcome, **record.to_json(one)} for one in found]
        show(json.dumps({"results": results}))
    else:
        show(describe(found))
    raise_for_outcomes(found)
