"""Commands on what lies on the disk: init, doctor, fsck."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnseg.cli.arguments import (
    add_dataset,
    add_group_regex,
    dataset_of,
    folders_of,
    named_label,
    whole_number,
)
from nnseg.console import Progress, show
from nnseg.errors import DataError, MissingError, UsageError

if TYPE_CHECKING:
    from nnseg.folders import Folders


def init_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the dataset, without its number")
    parser.add_argument(
        "--images",
        nargs="+",
        required=True,
        metavar="GLOB",
        help="a quoted pattern for each channel: 'scans/*_t1.nii.gz' 'scans/*_t2.nii.gz'",
    )
    parser.add_argument(
        "--labels", nargs="+", required=True, metavar="GLOB", help="of the label maps, quoted, too"
    )
    parser.add_argument(
        "--id", type=whole_number, metavar="N", help="number of the dataset: the next"
    )
    parser.add_argument("--channels", metavar="NAME,...", help="names of the channels: CT,PET")
    parser.add_argument(
        "--label",
        nargs="+",
        type=named_label,
        default=[],
        metavar="NAME=INT",
        help="names of labels: kidney=1 tumour=2; the others are called label_N",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--link", action="store_true", help="link the files (the default)")
    how.add_argument("--copy", action="store_true", help="copy the files")
    parser.add_argument("--dry-run", action="store_true", help="propose, and write nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.add_argument(
        "-np", "--workers", type=whole_number, metavar="N", help="files read at once"
    )


def run_init(args: Namespace) -> None:
    from nnseg import pipeline
    from nnseg.intake import proposal

    if len(args.labels) > 1:
        raise UsageError(
            f"--labels takes one pattern, not {len(args.labels)}; quote it ('masks/*.nii.gz'), so "
            "that the shell leaves it as it is"
        )
    names = dict(args.label)
    if len(names) < len(args.label):
        raise UsageError("--label gives a name twice; give each label a name of its own")
    progress = Progress(args.quiet or args.json)
    made = pipeline.init(
        folders_of(args),
        args.name,
        args.images,
        args.labels[0],
        number=args.id,
        channels=tuple(args.channels.split(",")) if args.channels else (),
        label_names=names,
        copy=args.copy,
        save=not args.dry_run,
        workers=args.workers,
        on_progress=progress,
    )
    progress.close()
    if args.json:
        show(json.dumps(proposal.to_json(made) | {"written": not args.dry_run}))
        return
    show(proposal.describe(made))
    what = "nothing was written" if args.dry_run else "copied" if args.copy else "linked"
    show(f"{what}; then: nnseg doctor {made.dataset}")


def doctor_arguments(parser: ArgumentParser) -> None:
    add_dataset(parser)
    parser.add_argument("--fix", action="store_true", help="write a corrected copy beside it")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="of the copy; else DATASET_fixed"
    )
    add_group_regex(parser)
    parser.add_argument(
        "--predictions",
        action="store_true",
        help="also hold label maps against what folds predicted that they were held out of",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.add_argument("-np", "--workers", type=whole_number, metavar="N", help="cases at once")


def run_doctor(args: Namespace) -> None:
    from nnseg import pipeline, record
    from nnseg.doctor.findings import count_errors, describe
    from nnseg.suspects import label_errors

    folders, dataset = dataset_of(args)
    progress = Progress(args.quiet or args.json)
    if args.fix:
        _mend(args, folders, dataset, progress)
        return
    if args.output:
        raise UsageError("-o is the folder of the corrected copy; give --fix with it")
    findings = pipeline.examine(
        folders,
        dataset,
        group_regex=args.group_regex,
        workers=args.workers,
        on_progress=progress,
    )
    suspects = None
    if args.predictions:
        suspects = pipeline.suspect(folders, dataset, workers=args.workers, on_progress=progress)
    progress.close()
    if args.json:
        listed = [record.to_json(finding) for finding in findings]
        more = {} if suspects is None else {"suspects": record.to_json(suspects)}
        show(json.dumps({"dataset": dataset, "findings": listed, **more}))
    else:
        show(describe(findings))
        if suspects is not None:
            show(label_errors.describe(suspects))
    if errors := count_errors(findings):
        raise DataError(f"{dataset}: {errors}; mend as listed, or try --fix")


def _mend(args: Namespace, folders: "Folders", dataset: str, progress: Progress) -> None:
    from nnseg import pipeline, record
    from nnseg.doctor.findings import count_errors
    from nnseg.doctor.mend import describe_mending

    if args.group_regex:
        raise UsageError("--group-regex mends nothing; give it to nnseg plan, which makes folds")
    if args.predictions:
        raise UsageError("--predictions mends nothing; look at what it names, and correct it")
    mending = pipeline.mend(
        folders, dataset, args.output, workers=args.workers, on_progress=progress
    )
    progress.close()
    if args.json:
        show(json.dumps({"dataset": dataset, **record.to_json(mending)}))
    else:
        show(describe_mending(mending))
    if errors := count_errors(mending.findings_left):
        raise DataError(f"{mending.copy or dataset}: {errors} left; mend as listed")


def fsck_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "datasets",
        nargs="*",
        metavar="DATASET",
        help="ids, names or paths, or folders of predictions; all datasets if left out",
    )
    parser.add_argument(
        "--redo",
        action="store_true",
        help="make preprocessed cases anew that are damaged, missing or out of date",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.add_argument("-np", "--workers", type=whole_number, metavar="N", help="cases at once")


def run_fsck(args: Namespace) -> None:
    from nnseg import pipeline, record
    from nnseg.doctor.findings import Finding, count_errors, describe
    from nnseg.folders import find_dataset
    from nnseg.fsck.examine import examine_results, holds_results, kept_datasets

    folders = folders_of(args)
    names = args.datasets or kept_datasets(folders)
    if not names:
        raise MissingError(f"nothing is kept in {folders.preprocessed} and {folders.results}")
    shown: dict[str, Any] = {}
    findings: list[Finding] = []
    for name in names:
        if holds_results(Path(name)):
            found = examine_results(Path(name))
        else:
            roots, name = find_dataset(folders, name)
            progress = Progress(args.quiet or args.json)
            found = pipeline.fsck(
                roots, name, redo=args.redo, workers=args.workers, on_progress=progress
            )
            progress.close()
        shown[name] = {"files": found.files, "findings": record.to_json(found)["findings"]}
        findings += found.findings
        if not args.json:
            show(f"{name}: {found.files} files examined\n{describe(found.findings)}")
    if args.json:
        show(json.dumps({"examined": shown}))
    if errors := count_errors(findings):
        raise DataError(f"{errors} in what is kept; mend as listed")
