"""The command that chooses postprocessing rules and carries them out: postprocess."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from nnseg.cli.arguments import whole_number
from nnseg.console import Progress, show
from nnseg.errors import UsageError

if TYPE_CHECKING:
    from nnseg.postprocess import Decided, Step

FOREGROUND = "foreground"


def postprocess_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="PRED",
        help="folder of predictions; several are the folds of a cross-validation. With --apply "
        "also one label map",
    )
    parser.add_argument(
        "-ref",
        "--reference",
        type=Path,
        metavar="LABELS",
        help="the truth, a folder of label maps: choose rules by it",
    )
    parser.add_argument(
        "--apply", type=Path, metavar="FILE", help="carry out the rules of FILE on PRED, into OUT"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="of rules: a folder, or a .json file; PRED/postprocessing.json if left out. Of label "
        "maps: a folder, or of one a file",
    )
    parser.add_argument(
        "-djfile",
        "--dataset-json",
        type=Path,
        metavar="FILE",
        help="names the labels; left out: PRED/dataset.json, else the one above LABELS",
    )
    parser.add_argument(
        "--as-nnunet", action="store_true", help="choose what nnU-Net would choose, nothing else"
    )
    parser.add_argument(
        "--no-minimum-sizes", action="store_true", help="try no smallest size of components"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="with --apply: do again what is done, and replace label maps changed by hand and "
        "files that this command did not make",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be read and written, write nothing"
    )
    parser.add_argument("-np", "--workers", type=whole_number, metavar="N", help="cases at once")
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def run_postprocess(args: Namespace) -> None:
    if (args.reference is None) == (args.apply is None):
        raise UsageError("give -ref LABELS to choose rules, or --apply FILE to carry them out")
    if args.apply is not None:
        _apply(args)
    else:
        _decide(args)


def _apply(args: Namespace) -> None:
    from nnseg import record
    from nnseg.postprocess import Postprocessing
    from nnseg.verbs import applying
    from nnseg.verbs.scoring import spec_for_evaluation

    if len(args.input) > 1 or args.output is None:
        raise UsageError(
            "--apply takes one folder or label map, and writes another: -i PRED -o OUT"
        )
    (source,) = args.input
    rules = record.load(Postprocessing, args.apply, "nnseg postprocess -i PRED -ref LABELS")
    spec = spec_for_evaluation(source, source, args.dataset_json)
    if args.dry_run:
        jobs = applying.find_applying_jobs(
            source, args.output, rules, spec, overwrite=args.overwrite
        )
        if args.json:
            listed = {job.case_id: str(job.target) for job in jobs}
            show(json.dumps({"target": str(args.output), "cases": listed, "written": False}))
        else:
            show(f"{len(jobs)} label maps would go to {args.output}; nothing was written")
        return
    progress = Progress(args.quiet or args.json)
    try:
        written = applying.apply_postprocessing(
            source,
            args.output,
            rules,
            spec,
            overwrite=args.overwrite,
            workers=args.workers,
            on_progress=progress,
        )
    finally:
        progress.close()
    if args.json:
        show(json.dumps({"target": str(args.output), "cases": dict.fromkeys(written, "done")}))
    else:
        show(f"{len(written)} label maps in {args.output}")


def _decide(args: Namespace) -> None:
    from nnseg import record
    from nnseg.folders import postprocessing_file
    from nnseg.verbs import postprocessing
    from nnseg.verbs.scoring import spec_for_evaluation

    if args.output is None and len(args.input) > 1:
        raise UsageError("several folders: say where the rules go, by -o OUT")
    target = args.output or args.input[0]
    if target.suffix != ".json":
        target = postprocessing_file(target)
    spec = spec_for_evaluation(args.reference, args.input[0], args.dataset_json)
    if args.dry_run:
        postprocessing.refuse_foreign_rules(target)
        jobs, _ = postprocessing.find_deciding_jobs(args.input, args.reference, spec)
        if args.json:
            listed = {job.case_id: str(job.prediction) for job in jobs}
            show(json.dumps({"target": str(target), "cases": listed, "written": False}))
        else:
            show(
                f"{len(jobs)} predictions would be held against {args.reference}, and the rules go "
                f"to {target}; nothing was written"
            )
        return
    progress = Progress(args.quiet or args.json)
    try:
        decided = postprocessing.decide_postprocessing(
            args.input,
            args.reference,
            spec,
            target,
            as_nnunet=args.as_nnunet,
            minimum_sizes=not args.no_minimum_sizes,
            workers=args.workers,
            on_progress=progress,
        )
    finally:
        progress.close()
    if args.json:
        show(json.dumps({"target": str(target), **record.to_json(decided)}))
    else:
        show(describe(decided))
        show(f"rules in {target}")


def describe(decided: "Decided") -> str:
    """Give a line for each rule that was tried, and the mean Dice before and after those taken."""
    lines = [_line(step) for step in decided.steps]
    before, after = decided.dice_before, decided.dice_after
    rows = [(FOREGROUND, before.foreground, after.foreground)]
    rows += [(name, before.labels[name], after.labels[name]) for name in before.labels]
    width = max(len(name) for name, _, _ in rows)
    lines.append(f"mean Dice of {decided.cases} cases, before and after the rules taken:")
    lines += [f"  {name:{width}}  {_number(old)}  {_number(new)}" for name, old, new in rows]
    if not decided.postprocessing.rules:
        lines.append("no rule makes these predictions better")
    return "\n".join(lines)


def _line(step: "Step") -> str:
    what = "taken    " if step.taken else "not taken"
    about = FOREGROUND if step.label is None else step.label
    gain = "" if step.gain is None else f" ({step.gain:+.4f})"
    lost = f"; worse: {', '.join(step.worse)}" if step.worse else ""
    dice = f"Dice of {about} {_number(step.before)} to {_number(step.after)}{gain}{lost}"
    return f"{what}  {step.rule}: {dice}"


def _number(value: float | None) -> str:
    return "  none" if value is None else f"{value:.4f}"
