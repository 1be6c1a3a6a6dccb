"""The command line: parse, call one verb of the pipeline, print, give an exit code.

This file alone reads the environment. It imports nothing heavy until a command runs.
"""

import json
import os
import re
import signal
import sys
import time
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnseg import __version__
from nnseg.console import STOP, Parser, Progress, keep_traceback, show_log
from nnseg.errors import DataError, MissingError, NnsegError, StoppedError, UsageError

if TYPE_CHECKING:
    from nnseg.checkpoint import Kind
    from nnseg.fingerprint import Fingerprint
    from nnseg.folders import Folders
    from nnseg.plan import Plan
    from nnseg.resume import EpochReport

PLANNERS = ("default", "resenc", "resenc_m", "resenc_l", "resenc_xl")
CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
INTERRUPTED = 130
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the umbrella command `nnseg`; give its exit code."""
    return _run(build_parser(), argv)


def plan_and_preprocess(argv: Sequence[str] | None = None) -> int:
    """Run `nnseg_plan_and_preprocess`."""
    return _run_one("plan_and_preprocess", argv)


def train(argv: Sequence[str] | None = None) -> int:
    """Run `nnseg_train`."""
    return _run_one("train", argv)


def predict(argv: Sequence[str] | None = None) -> int:
    """Run `nnseg_predict`."""
    return _run_one("predict", argv)


def build_parser() -> Parser:
    """Build the parser of `nnseg` with all its commands."""
    parser = Parser(
        prog="nnseg",
        description="Self-configuring segmentation of medical images. Not a medical device.",
        epilog=(
            "examples:\n"
            "  nnseg demo                                  the whole job on built-in data\n"
            "  nnseg doctor 4                              every problem of the raw data\n"
            "  nnseg plan_and_preprocess -d 4\n"
            "  nnseg train 4 3d_fullres 0 --budget 2h\n"
            "  nnseg predict -i IN -o OUT -d 4 -c 3d_fullres -f 0\n"
            "  nnseg evaluate labelsTs OUT"
        ),
    )
    parser.add_argument("--version", action="version", version=f"nnseg {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (add_arguments, run, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        add_arguments(command)
        _add_common(command)
        command.set_defaults(run=run)
    return parser


def _run_one(name: str, argv: Sequence[str] | None) -> int:
    add_arguments, run, text = COMMANDS[name]
    parser = Parser(prog=f"nnseg_{name}", description=text)
    parser.add_argument("--version", action="version", version=f"nnseg {__version__}")
    add_arguments(parser)
    _add_common(parser)
    parser.set_defaults(run=run)
    return _run(parser, argv)


def _run(parser: Parser, argv: Sequence[str] | None) -> int:
    """Parse and run; errors become one line and an exit code, bugs a line and a log."""
    try:
        args = parser.parse_args(argv)
    except SystemExit as ended:  # argparse's way of saying -h, --version or an error
        return int(ended.code or 0)
    show_log(quiet=args.quiet, verbose=args.verbose)
    os.environ.setdefault("BLOSC_NTHREADS", "1")  # or it starts 4 threads for every array it writes
    try:
        args.run(args)
    except StoppedError as error:
        print(f"nnseg: {error}", file=sys.stderr)
        return INTERRUPTED if STOP.signal == signal.SIGINT else error.exit_code
    except NnsegError as error:
        print(f"nnseg: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("nnseg: interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        return 0
    except Exception as error:
        log = keep_traceback()
        what = str(error).splitlines()[0] if str(error) else ""
        print(
            f"nnseg: a bug of ours: {type(error).__name__}: {what}; please report it with {log}",
            file=sys.stderr,
        )
        return 1
    return 0


# ------------------------------------------------------------------------------ the commands


def _init_arguments(parser: ArgumentParser) -> None:
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
    parser.add_argument("--id", type=_count, metavar="N", help="number of the dataset: the next")
    parser.add_argument("--channels", metavar="NAME,...", help="names of the channels: CT,PET")
    parser.add_argument(
        "--label",
        nargs="+",
        type=_label,
        default=[],
        metavar="NAME=INT",
        help="names of labels: kidney=1 tumour=2; the others are called label_N",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--link", action="store_true", help="link the files (the default)")
    how.add_argument("--copy", action="store_true", help="copy the files")
    parser.add_argument("--dry-run", action="store_true", help="propose, and write nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.add_argument("-np", "--workers", type=_count, metavar="N", help="files read at once")


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
        _folders_of(args),
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
        print(json.dumps(proposal.to_json(made) | {"written": not args.dry_run}))
        return
    print(proposal.describe(made))
    what = "nothing was written" if args.dry_run else "copied" if args.copy else "linked"
    print(f"{what}; then: nnseg doctor {made.dataset}")


def _doctor_arguments(parser: ArgumentParser) -> None:
    _add_dataset(parser)
    parser.add_argument("--fix", action="store_true", help="write a corrected copy beside it")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="of the copy; else DATASET_fixed"
    )
    _add_group_regex(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.add_argument("-np", "--workers", type=_count, metavar="N", help="cases at once")


def run_doctor(args: Namespace) -> None:
    from nnseg import pipeline, record
    from nnseg.doctor.findings import count_errors, describe

    folders, dataset = _dataset_of(args)
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
    progress.close()
    if args.json:
        listed = [record.to_json(finding) for finding in findings]
        print(json.dumps({"dataset": dataset, "findings": listed}))
    else:
        print(describe(findings))
    if errors := count_errors(findings):
        raise DataError(f"{dataset}: {errors}; mend as listed, or try --fix")


def _mend(args: Namespace, folders: "Folders", dataset: str, progress: Progress) -> None:
    from nnseg import pipeline, record
    from nnseg.doctor.findings import count_errors
    from nnseg.doctor.mend import describe_mending

    if args.group_regex:
        raise UsageError("--group-regex mends nothing; give it to nnseg plan, which makes folds")
    mending = pipeline.mend(
        folders, dataset, args.output, workers=args.workers, on_progress=progress
    )
    progress.close()
    if args.json:
        print(json.dumps({"dataset": dataset, **record.to_json(mending)}))
    else:
        print(describe_mending(mending))
    if errors := count_errors(mending.findings_left):
        raise DataError(f"{mending.copy or dataset}: {errors} left; mend as listed")


def _plan_arguments(parser: ArgumentParser) -> None:
    _add_datasets(parser, required=False)
    planning = parser.add_argument_group("planning")
    _add_planning(planning)
    planning.add_argument("--explain", action="store_true", help="say why, a line a rule")
    planning.add_argument("--dry-run", action="store_true", help="plan without writing anything")
    planning.add_argument("--json", action="store_true", help="print the plan as JSON")
    planning.add_argument("--clean", action="store_true", help="measure the fingerprint anew")
    planning.add_argument("-np", "--workers", type=_count, metavar="N", help="cases at once")
    foreign = parser.add_argument_group("planning from nnU-Net's own fingerprint")
    foreign.add_argument(
        "--fingerprint", type=Path, metavar="FILE", help="dataset_fingerprint.json"
    )
    foreign.add_argument("--dataset-json", type=Path, metavar="FILE", help="its dataset.json")
    foreign.add_argument("--format", choices=("nnseg", "nnunet"), default="nnseg")
    foreign.add_argument("-o", "--output", type=Path, metavar="FILE", help="plans.json to write")


def run_plan(args: Namespace) -> None:
    from nnseg import commit, planning, record
    from nnseg.plan import describe_plan, explain_plan

    if args.fingerprint or args.dataset_json or args.format == "nnunet":
        if not (args.fingerprint and args.dataset_json and args.format == "nnunet"):
            raise UsageError("--fingerprint, --dataset-json and --format nnunet belong together")
        plans = planning.plan_as_nnunet(
            args.fingerprint,
            args.dataset_json,
            planner=args.planner,
            memory_gb=args.memory_gb,
            target_spacing=_spacing(args.target_spacing),
        )
        text = record.json_text(plans)
        if args.output:
            commit.write_whole(args.output, text.encode())
            print(f"wrote {args.output}")
        else:
            print(text, end="")
        return
    for folders, dataset in _datasets_of(args):
        progress = Progress(args.quiet or args.json)
        _, result = _plan_one(args, folders, dataset, progress, save=not args.dry_run)
        if args.json:
            print(record.dumps(result), end="")
        else:
            print(explain_plan(result) if args.explain else describe_plan(result))


def _plan_and_preprocess_arguments(parser: ArgumentParser) -> None:
    _add_datasets(parser, required=True)
    planning = parser.add_argument_group("planning")
    _add_planning(planning)
    planning.add_argument("--clean", action="store_true", help="measure the fingerprint anew")
    planning.add_argument(
        "--verify_dataset_integrity",
        action="store_true",
        help="accepted for nnU-Net's sake: the data are always examined",
    )
    doing = parser.add_argument_group("preprocessing")
    _add_configurations(doing)
    doing.add_argument("--no_pp", action="store_true", help="plan only")
    _add_dry_run(doing)
    doing.add_argument("-np", "-npfp", "--workers", type=_count, metavar="N", help="cases at once")
    _add_apart(doing)


def run_plan_and_preprocess(args: Namespace) -> None:
    from nnseg import prepare
    from nnseg.plan import describe_plan
    from nnseg.planning import DEFAULT_PLAN

    for folders, dataset in _datasets_of(args):
        progress = Progress(args.quiet)
        if args.no_pp or args.dry_run:
            measured, result = _plan_one(args, folders, dataset, progress, save=not args.dry_run)
            print(describe_plan(result))
            if not args.no_pp:
                _foretell(args, folders, result, measured)
            continue
        _, made = prepare.plan_and_preprocess(
            folders,
            dataset,
            args.configurations,
            name=args.plan or DEFAULT_PLAN,
            planner=args.planner,
            memory_gb=args.memory_gb,
            target_spacing=_spacing(args.target_spacing),
            group_regex=args.group_regex,
            anew=args.clean,
            workers=args.workers,
            on_progress=progress,
            say=progress.line,
            apart=args.apart,
        )
        progress.close()
        _tell_made(dataset, made)


def _preprocess_arguments(parser: ArgumentParser) -> None:
    _add_datasets(parser, required=True)
    _add_configurations(parser)
    _add_plan_name(parser)
    parser.add_argument("-np", "--workers", type=_count, metavar="N", help="cases at once")
    _add_apart(parser)
    _add_dry_run(parser)


def run_preprocess(args: Namespace) -> None:
    from nnseg import planning, prepare

    for folders, dataset in _datasets_of(args):
        name = args.plan or planning.DEFAULT_PLAN
        if args.dry_run:
            _foretell(args, folders, planning.load_plan(folders, dataset, name), None)
            continue
        progress = Progress(args.quiet)
        made = prepare.preprocess(
            folders,
            dataset,
            args.configurations,
            plan_name=name,
            workers=args.workers,
            on_progress=progress,
            say=progress.line,
            apart=args.apart,
        )
        progress.close()
        _tell_made(dataset, made)


def _train_arguments(parser: ArgumentParser) -> None:
    _add_dataset(parser)
    parser.add_argument("configuration", metavar="CONFIGURATION", help="2d, 3d_fullres, ...")
    parser.add_argument("fold", metavar="FOLD", help="0 to 4, or all")
    recipe = parser.add_argument_group("recipe (the defaults are nnU-Net's)")
    recipe.add_argument(
        "--budget", type=_seconds, metavar="TIME", help="fit the wall clock: 40m, 8h"
    )
    recipe.add_argument("--epochs", type=_count, metavar="N", help="1000")
    recipe.add_argument("--iterations", type=_count, metavar="N", help="steps an epoch: 250")
    recipe.add_argument("--validation-iterations", type=_count, metavar="N", help="50")
    recipe.add_argument("--batch-size", type=_count, metavar="N", help="the plan's")
    recipe.add_argument("--lr", type=float, metavar="X", help="0.01; 0.1 for a short budget")
    recipe.add_argument("--momentum", type=float, metavar="X", help="0.99; 0.9 for a short budget")
    recipe.add_argument("--weight-decay", type=float, metavar="X", help="3e-5")
    recipe.add_argument("--schedule", metavar="NAME", help="poly or cosine")
    recipe.add_argument("--loss", metavar="NAME", help="dice_ce, dice or ce")
    recipe.add_argument(
        "--augmentation", metavar="NAME", help="full or mild; mild for a short budget"
    )
    recipe.add_argument("--seed", type=int, metavar="N", help="0")
    running = parser.add_argument_group("running")
    _add_plan_name(running)
    _add_device(running)
    running.add_argument(
        "--compile",
        action="store_true",
        default=None,
        dest="compiled",
        help="let torch compile the network (needs a C++ compiler)",
    )
    running.add_argument("--no-compile", action="store_false", dest="compiled", help=SUPPRESS)
    running.add_argument(
        "--c",
        "--continue",
        action="store_true",
        dest="resume",
        help="go on; an error if there is nothing to go on with",
    )
    running.add_argument(
        "--overwrite", action="store_true", help="start anew; the run that is there is kept aside"
    )
    running.add_argument("--val", action="store_true", help="only the full-volume validation")
    running.add_argument("--no-validation", action="store_true", help="without it")


def run_train(args: Namespace) -> None:
    from nnseg import pipeline, report
    from nnseg.recipe import TrainSettings

    folders, dataset = _dataset_of(args)
    given = {
        name: value
        for name in (
            "epochs",
            "iterations",
            "validation_iterations",
            "batch_size",
            "lr",
            "momentum",
            "weight_decay",
            "schedule",
            "loss",
            "augmentation",
            "seed",
        )
        if (value := getattr(args, name)) is not None
    }
    settings = TrainSettings(budget_seconds=args.budget, **given)
    plan_name = args.plan or pipeline.DEFAULT_PLAN
    progress = Progress(args.quiet)
    STOP.listen()
    if args.val:
        summary = pipeline.validate(
            folders,
            dataset,
            args.configuration,
            args.fold,
            seed=settings.seed,
            plan_name=plan_name,
            device=args.device,
            precision=args.precision,
            on_progress=progress,
            stop=STOP,
        )
        print(report.describe_summary(summary))
        return
    began, told = time.monotonic(), []

    def tell(epoch: "EpochReport") -> None:
        told.append(epoch.epoch)
        left = (epoch.epochs - epoch.epoch) * epoch.seconds
        progress.line(report.describe_epoch(epoch, left))

    try:
        folder = pipeline.train(
            folders,
            dataset,
            args.configuration,
            args.fold,
            settings=settings,
            plan_name=plan_name,
            device=args.device,
            precision=args.precision,
            compiled=args.compiled,
            resume=args.resume or None,
            overwrite=args.overwrite,
            validate_after=not args.no_validation,
            on_progress=progress,
            on_epoch=tell,
            say=progress.line,
            stop=STOP,
        )
    finally:
        progress.close()
    if told:
        print(f"trained in {report.duration(time.monotonic() - began)}: {folder}")
    else:
        print(f"this training was finished before: {folder}")
    if not args.no_validation:
        print(report.describe_summary(pipeline.validation_summary(folder)))


def _predict_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        required=True,
        metavar="IN",
        help="a folder of images, or one image",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="a folder, or a file for one image",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "-m",
        "--model",
        type=Path,
        metavar="FOLDER",
        help="folder of a configuration (fold_0, ...) or of one fold",
    )
    model.add_argument("-d", "--dataset", metavar="DATASET", help="id, name or path of the dataset")
    model.add_argument("-c", "--configuration", metavar="NAME", help="2d, 3d_fullres, ...")
    model.add_argument(
        "-f",
        "--folds",
        nargs="+",
        default=(),
        metavar="FOLD",
        help="folds to average; all trained ones if left out",
    )
    model.add_argument(
        "-chk", "--checkpoint", default="final", metavar="NAME", help="final (the default) or best"
    )
    _add_plan_name(model)
    how = parser.add_argument_group("how")
    how.add_argument(
        "-step_size",
        "--step",
        type=float,
        default=0.5,
        metavar="X",
        help="distance of tiles as a share of their edge: 0.5",
    )
    how.add_argument("--disable_tta", action="store_true", help="without mirrored images: faster")
    how.add_argument(
        "--continue_prediction", action="store_true", help="keep the outputs that are there"
    )
    how.add_argument("-num_parts", type=_count, default=1, metavar="N", help="share the cases out")
    how.add_argument("-part_id", type=int, default=0, metavar="I", help="take share I, from 0")
    how.add_argument(
        "-npp",
        "-nps",
        type=int,
        metavar="N",
        help="accepted for nnU-Net's sake: there are no worker processes",
    )
    _add_device(how)


def run_predict(args: Namespace) -> None:
    from nnseg import pipeline
    from nnseg.folders import trained_folds
    from nnseg.inference import load_model

    if not 0 <= args.part_id < args.num_parts:
        raise UsageError(f"-part_id is {args.part_id}; it must be 0 to {args.num_parts - 1}")
    if not 0 < args.step <= 1:
        raise UsageError(f"-step_size is {args.step}; it must be over 0 and at most 1")
    kinds: dict[str, Kind] = {"final": "final", "best": "best"}
    kind = kinds.get(re.sub(r"^checkpoint_|\.pth$", "", args.checkpoint))
    if kind is None:
        raise UsageError(f"-chk is {args.checkpoint}; it must be final or best")
    plan_name = args.plan or pipeline.DEFAULT_PLAN
    if args.model:
        chosen = trained_folds(args.model, args.folds, kind)
    elif args.dataset and args.configuration:
        folders, dataset = _dataset_of(args)
        model_folder = folders.model(dataset, plan_name, args.configuration)
        command = f"nnseg train {dataset} {args.configuration}"
        chosen = trained_folds(model_folder, args.folds, kind, command)
    else:
        raise UsageError("say which model: -d DATASET -c CONFIGURATION, or -m FOLDER")
    progress = Progress(args.quiet)
    model = load_model(chosen, kind, device=args.device, precision=args.precision)
    STOP.listen()
    try:
        written = pipeline.predict(
            model,
            args.input,
            args.output,
            step=args.step,
            mirror=not args.disable_tta,
            part=args.part_id,
            parts=args.num_parts,
            overwrite=not args.continue_prediction,
            on_progress=progress,
            stop=STOP,
        )
    finally:
        progress.close()
    print(f"{len(written)} segmentations in {args.output}")


def _evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("reference", type=Path, help="the truth: a folder of label maps, or one")
    parser.add_argument("prediction", type=Path, help="a folder of predictions, or one")
    parser.add_argument(
        "-djfile",
        "--dataset-json",
        type=Path,
        metavar="FILE",
        help="names the labels; left out: PREDICTION/dataset.json, else the one above REFERENCE",
    )
    parser.add_argument(
        "--tolerance-mm",
        type=float,
        default=1.0,
        metavar="X",
        help="of the normalized surface Dice: 1",
    )
    parser.add_argument("-np", "--workers", type=_count, metavar="N", help="cases at once")
    parser.add_argument("--json", action="store_true", help="print summary.json, nothing else")


def run_evaluate(args: Namespace) -> None:
    from nnseg import pipeline, record, report
    from nnseg.evaluate import to_nnunet

    spec = pipeline.spec_for_evaluation(args.reference, args.prediction, args.dataset_json)
    progress = Progress(args.quiet or args.json)
    summary = pipeline.evaluate(
        args.reference,
        args.prediction,
        spec.labels,
        spec.file_ending,
        tolerance_mm=args.tolerance_mm,
        workers=args.workers,
        on_progress=progress,
    )
    progress.close()
    if args.json:
        print(record.json_text(to_nnunet(summary, spec.labels)), end="")
    else:
        print(report.describe_summary(summary))


def _fsck_arguments(parser: ArgumentParser) -> None:
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
    parser.add_argument("-np", "--workers", type=_count, metavar="N", help="cases at once")


def run_fsck(args: Namespace) -> None:
    from nnseg import pipeline, record
    from nnseg.doctor.findings import Finding, count_errors, describe
    from nnseg.folders import find_dataset
    from nnseg.fsck.examine import examine_results, holds_results, kept_datasets

    folders = _folders_of(args)
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
            print(f"{name}: {found.files} files examined\n{describe(found.findings)}")
    if args.json:
        print(json.dumps({"examined": shown}))
    if errors := count_errors(findings):
        raise DataError(f"{errors} in what is kept; mend as listed")


def _import_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="PLANS.JSON", help="made by nnU-Net v2")
    _add_dataset(parser, flag=True)
    _add_plan_name(parser)


def run_import(args: Namespace) -> None:
    from nnseg import pipeline
    from nnseg.plan import describe_plan

    folders, dataset = _dataset_of(args)
    name = args.plan or args.file.stem
    print(describe_plan(pipeline.import_plans(folders, dataset, args.file, name=name)))
    print(f"plan {name} of {dataset}: nnseg preprocess -d {dataset} -p {name}")


def _demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--budget",
        type=_seconds,
        default=180.0,
        metavar="TIME",
        help="wall clock of the whole: 180s",
    )
    parser.add_argument("--real", metavar="PATH", help="a raw dataset instead of built-in phantoms")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of phantoms and training")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="where; left out: demo/"
    )
    _add_device(parser)


def run_demo(args: Namespace) -> None:
    from nnseg import demo

    progress = Progress(args.quiet)
    STOP.listen()
    demo.run(
        args.output or Path("demo"),
        budget_seconds=args.budget,
        real=Path(args.real) if args.real else None,
        seed=args.seed,
        device=args.device,
        precision=args.precision,
        say=progress.line,
        on_progress=progress,
        stop=STOP,
    )
    progress.close()


Arguments = Callable[[ArgumentParser], None]
COMMANDS: dict[str, tuple[Arguments, Callable[[Namespace], None], str]] = {
    "demo": (_demo_arguments, run_demo, "The whole job on built-in data, or on a raw dataset."),
    "init": (_init_arguments, run_init, "Make a raw dataset from files as they lie."),
    "doctor": (_doctor_arguments, run_doctor, "List every problem of a raw dataset at once."),
    "plan": (_plan_arguments, run_plan, "Measure a dataset and plan its networks."),
    "preprocess": (_preprocess_arguments, run_preprocess, "Preprocess the cases of a dataset."),
    "plan_and_preprocess": (
        _plan_and_preprocess_arguments,
        run_plan_and_preprocess,
        "Examine, measure, plan and preprocess datasets.",
    ),
    "train": (_train_arguments, run_train, "Train one fold of a configuration, then validate it."),
    "predict": (_predict_arguments, run_predict, "Segment images with trained networks."),
    "evaluate": (_evaluate_arguments, run_evaluate, "Score predictions against their references."),
    "fsck": (_fsck_arguments, run_fsck, "Find what is damaged among all that nnseg keeps."),
    "import": (_import_arguments, run_import, "Make a plan of ours from nnU-Net's plans.json."),
}


# ------------------------------------------------------------------------------ shared parts


def _add_common(parser: ArgumentParser) -> None:
    common = parser.add_argument_group("everywhere")
    common.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder of raw/, preprocessed/ and results/; else NNSEG_ROOT, else the current folder",
    )
    common.add_argument("-q", "--quiet", action="store_true", help="no progress")
    common.add_argument("-v", "--verbose", action="store_true", help="say more")


def _add_dataset(parser: Any, *, flag: bool = False) -> None:
    text = "its id (4), its name (Dataset004_Hippocampus) or a path to it (./D)"
    if flag:
        parser.add_argument("-d", "--dataset", required=True, metavar="DATASET", help=text)
    else:
        parser.add_argument("dataset", metavar="DATASET", help=text)


def _add_datasets(parser: Any, *, required: bool) -> None:
    parser.add_argument("dataset", nargs="?", metavar="DATASET", help=SUPPRESS)
    parser.add_argument(
        "-d",
        "--datasets",
        nargs="+",
        default=[],
        metavar="DATASET",
        help="ids, names or paths" + ("" if required else "; may be left out"),
    )


def _add_planning(group: Any) -> None:
    group.add_argument("-pl", "--planner", choices=PLANNERS, default="default")
    group.add_argument(
        "-gpu_memory_target",
        "--memory-gb",
        type=float,
        metavar="GB",
        help="what a training may take",
    )
    group.add_argument(
        "-overwrite_target_spacing",
        "--target-spacing",
        type=float,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="mm, instead of the median's",
    )
    _add_group_regex(group)
    _add_plan_name(group)


def _add_group_regex(parser: Any) -> None:
    parser.add_argument(
        "--group-regex",
        metavar="REGEX",
        help="its first group, found in a case's id, is the patient; folds keep patients together",
    )


def _add_plan_name(parser: Any) -> None:
    parser.add_argument("-p", "--plan", metavar="NAME", help="name of the plan: nnseg")


def _add_configurations(parser: Any) -> None:
    parser.add_argument(
        "-c",
        "--configurations",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(CONFIGURATIONS)}; all that are planned if left out",
    )


def _add_apart(parser: Any) -> None:
    text = "each case in a worker process, whose death costs the case and not the run"
    parser.add_argument("--apart", action="store_true", help=text)


def _add_dry_run(parser: Any) -> None:
    text = "say what it takes of memory, disk and time, and write nothing"
    parser.add_argument("--dry-run", action="store_true", help=text)


def _add_device(parser: Any) -> None:
    parser.add_argument("-device", "--device", metavar="NAME", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"))


def _plan_one(
    args: Namespace, folders: "Folders", dataset: str, progress: Progress, *, save: bool
) -> "tuple[Fingerprint, Plan]":
    from nnseg import planning, prepare
    from nnseg.splits import check_regex

    check_regex(folders, dataset, args.group_regex)
    measured = prepare.up_to_date_fingerprint(
        folders,
        dataset,
        anew=args.clean,
        save=save,
        workers=args.workers,
        on_progress=progress,
    )
    progress.close()
    result = planning.plan(
        folders,
        dataset,
        name=args.plan or planning.DEFAULT_PLAN,
        planner=args.planner,
        memory_gb=args.memory_gb,
        target_spacing=_spacing(args.target_spacing),
        measured=measured,
        group_regex=args.group_regex,
        save=save,
    )
    return measured, result


def _foretell(
    args: Namespace, folders: "Folders", plan: "Plan", measured: "Fingerprint | None"
) -> None:
    from nnseg import prepare

    foretold = prepare.foretell(
        folders, plan, args.configurations, measured=measured, workers=args.workers
    )
    print(f"{plan.dataset}: preprocessing would take {foretold}; nothing was written")


def _tell_made(dataset: str, made: dict[str, int]) -> None:
    for name, count in made.items():
        print(f"{dataset} {name}: {count} cases preprocessed, the others are up to date")


def _dataset_of(args: Namespace) -> "tuple[Folders, str]":
    from nnseg.folders import find_dataset

    return find_dataset(_folders_of(args), args.dataset)


def _datasets_of(args: Namespace) -> "list[tuple[Folders, str]]":
    from nnseg.folders import find_dataset

    names = ([args.dataset] if args.dataset else []) + list(args.datasets)
    if not names:
        raise UsageError("give a dataset: -d 4")
    return [find_dataset(_folders_of(args), name) for name in names]


def _folders_of(args: Namespace) -> "Folders":
    """Find the data roots: --root, else the environment, else the current folder."""
    from nnseg.folders import Folders

    if args.root:
        return Folders.of_root(args.root)
    root = Folders.of_root(Path(os.environ.get("NNSEG_ROOT", ".")))
    return Folders(
        raw=Path(os.environ.get("nnseg_raw", root.raw)),
        preprocessed=Path(os.environ.get("nnseg_preprocessed", root.preprocessed)),
        results=Path(os.environ.get("nnseg_results", root.results)),
    )


def _spacing(values: Sequence[float] | None) -> tuple[float, float, float] | None:
    return None if values is None else (values[0], values[1], values[2])


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


_count.__name__ = "positive whole number"  # argparse names it in its message


def _label(text: str) -> tuple[str, int]:
    name, _, value = text.rpartition("=")
    if not name:
        raise ValueError(text)
    return name, int(value)


_label.__name__ = "NAME=INT"


def _seconds(text: str) -> float:
    """Read a length of time: 90, 90s, 40m, 8h, 2d."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if not match:
        raise ValueError(text)
    return float(match[1]) * _SECONDS[match[2] or "s"]


_seconds.__name__ = "length of time such as 180s, 40m or 8h"
