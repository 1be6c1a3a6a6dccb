"""Commands on results: evaluate, compare."""

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnseg.cli.arguments import dataset_of, whole_number
from nnseg.console import Progress, show, show_json
from nnseg.errors import PartlyDoneError, UsageError

if TYPE_CHECKING:
    from nnseg.dataset import DatasetSpec
    from nnseg.verbs.scoring import Wanted

METRICS = (
    "dice", "iou", "hd95", "assd", "nsd", "volume", "f1", "sensitivity", "false_positives", "pq",
)  # fmt: skip
MATCH_IOU = 0.1


def evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        metavar="GT PRED",
        help="the truth and the predictions: two folders of label maps, or two files; with -d the "
        "predictions alone, or nothing",
    )
    parser.add_argument(
        "-d",
        "--dataset",
        metavar="DATASET",
        help="score predictions of its imagesTs against its labelsTs",
    )
    _add_labels(parser)
    _add_measures(parser)
    parser.add_argument(
        "--group-regex",
        metavar="REGEX",
        help="its first group, found in a case's id, names its group, such as a site: a table of "
        "each",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PLACE",
        help="the .json file of the scores, or the folder of summary.json; left out: PRED, and "
        "nothing is written of two files",
    )
    _add_chill(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be scored, and write nothing"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print summary.json, or with --dry-run what would be scored, nothing else",
    )


def compare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "a", type=Path, metavar="A", help="a folder with a summary.json, ours or nnU-Net's"
    )
    parser.add_argument("b", type=Path, metavar="B", help="another one, of the same cases")
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="GT",
        help="the truth: A and B are folders of predictions then, which are scored first",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=(),
        choices=METRICS,
        metavar="NAME",
        help=f"of {', '.join(METRICS)}; all that both have if left out",
    )
    _add_labels(parser)
    _add_measures(parser)
    _add_chill(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, nothing else")


def _add_chill(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--chill",
        action="store_true",
        help="references that were not predicted are no failure (else exit code 6, once the "
        "others are scored)",
    )


def _add_labels(parser: ArgumentParser) -> None:
    labels = parser.add_argument_group("what the integers mean")
    labels.add_argument(
        "-djfile",
        "--dataset-json",
        type=Path,
        metavar="FILE",
        help="names the labels; left out: PRED/dataset.json, else the one above GT",
    )
    labels.add_argument(
        "-l",
        "--labels",
        nargs="+",
        type=scored_label,
        metavar="[NAME=]INT[,INT]",
        help="the labels where there is no dataset.json; several integers make a region",
    )
    labels.add_argument(
        "-il", "--ignore", type=whole_number, metavar="INT", help="with -l: what does not count"
    )


def _add_measures(parser: ArgumentParser) -> None:
    measures = parser.add_argument_group("what is measured")
    measures.add_argument(
        "--overlap",
        action="store_true",
        help="Dice, IoU and volume alone, which is quick: without HD95, ASSD and NSD",
    )
    measures.add_argument(
        "--tolerance-mm",
        type=float,
        default=1.0,
        metavar="X",
        help="of the normalized surface Dice (NSD): 1",
    )
    measures.add_argument(
        "--detection",
        type=float,
        nargs="?",
        const=MATCH_IOU,
        metavar="IOU",
        help=f"also lesions found, missed and made up; found from this IoU on: {MATCH_IOU:g}",
    )
    measures.add_argument("-np", "--workers", type=whole_number, metavar="N", help="cases at once")


def run_evaluate(args: Namespace) -> None:
    # not by the pipeline, which brings all verbs along: this one takes less time than they do
    from nnseg import record
    from nnseg.scores import tables as score_tables
    from nnseg.scores.summary_json import to_nnunet
    from nnseg.verbs import scoring

    truth, prediction, spec = _evaluated(args)
    about = (truth, prediction, spec.labels, spec.file_ending)
    wanted = _wanted(args)
    if args.dry_run:
        found = scoring.find_evaluation(*about, wanted=wanted, output=args.output)
        if args.json:
            show_json(record.json_text(found.to_json()))
        else:
            show(found)
        return
    progress = Progress(args.quiet or args.json)
    summary = scoring.evaluate(
        *about, wanted=wanted, output=args.output, workers=args.workers, on_progress=progress
    )
    progress.close()
    if args.json:
        show_json(record.json_text(to_nnunet(summary, spec.labels)))
    else:
        if summary.groups:
            show(score_tables.describe_groups(summary), end="\n\n")
        show(score_tables.describe_scores(summary))
    if not args.chill:
        _fail_for(summary.missing)


def _evaluated(args: Namespace) -> "tuple[Path, Path, DatasetSpec]":
    """Give the truth, the predictions, and what names their labels."""
    from nnseg.verbs import scoring

    if args.dataset:
        if len(args.folders) > 1 or args.labels or args.dataset_json:
            raise UsageError("-d names the truth and its labels; give the predictions alone")
        folders, dataset = dataset_of(args)
        return scoring.find_test_set(folders, dataset, *args.folders)
    if len(args.folders) != 2:
        raise UsageError("give the truth and the predictions: GT PRED, or -d DATASET PRED")
    reference, prediction = args.folders
    spec = _spec(args, prediction) or scoring.spec_for_evaluation(
        reference, prediction, args.dataset_json
    )
    return reference, prediction, spec


def _fail_for(missing: Sequence[str]) -> None:
    if missing:
        from nnseg.parallel import some

        raise PartlyDoneError(
            f"not predicted: {some(missing)}; predict the rest, or say by --chill that they do "
            "not matter"
        )


def run_compare(args: Namespace) -> None:
    from nnseg import record
    from nnseg.dataset import read_spec
    from nnseg.scores import tables as score_tables
    from nnseg.verbs import comparing

    if args.reference is None and (args.labels or args.dataset_json):
        raise UsageError("labels are asked for where predictions are scored; give --reference, too")
    progress = Progress(args.quiet or args.json)
    spec = _spec(args, args.a)
    if spec is None and args.dataset_json is not None:
        spec = read_spec(args.dataset_json)
    found = comparing.compare_results(
        args.a,
        args.b,
        reference=args.reference,
        spec=spec,
        metrics=args.metrics,
        wanted=_wanted(args),
        workers=args.workers,
        on_progress=progress,
    )
    progress.close()
    if args.json:
        show_json(record.json_text([record.to_json(one) for one in found]))
    else:
        show(f"A is {args.a}\nB is {args.b}")
        for one in found:
            show(f"\n{score_tables.describe_comparison(one)}")
    if args.reference is not None and not args.chill:
        _fail_for(sorted({case for one in found for case in one.missing_a + one.missing_b}))


def scored_label(text: str) -> tuple[str, int | tuple[int, ...]]:
    """Read a label or a region: 1, liver=1 or tumour=2,3.

    >>> scored_label("1"), scored_label("tumour=2,3")
    (('1', 1), ('tumour', (2, 3)))
    """
    name, _, integers = text.rpartition("=")
    if not re.fullmatch(r"\d+(,\d+)*", integers):
        raise ValueError(text)
    values = tuple(int(part) for part in integers.split(","))
    return name or integers, values if len(values) > 1 else values[0]


scored_label.__name__ = "label such as 1, liver=1 or tumour=2,3"  # argparse names it


def _wanted(args: Namespace) -> "Wanted":
    from nnseg.verbs.scoring import Wanted

    return Wanted(
        surface=not args.overlap,
        tolerance_mm=args.tolerance_mm,
        match_iou=args.detection,
        group_regex=getattr(args, "group_regex", None),
    )


def _spec(args: Namespace, prediction: Path) -> "DatasetSpec | None":
    """Give what --labels says; None where it is not there."""
    from nnseg.verbs.scoring import spec_of_labels

    if args.labels is None:
        if args.ignore is not None:
            raise UsageError("-il belongs to -l; a dataset.json says itself what to ignore")
        return None
    if args.dataset_json is not None:
        raise UsageError("-l and -djfile both say what the integers mean; give one of them")
    labels = dict(args.labels)
    if len(labels) < len(args.labels):
        names = [name for name, _ in args.labels]
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"-l names {twice} twice; several integers of a region are {twice}=1,2")
    return spec_of_labels(prediction, labels, args.ignore)
