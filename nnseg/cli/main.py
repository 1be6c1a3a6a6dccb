"""The command line: parse, call one verb of the pipeline, print, give an exit code.

It imports nothing heavy until a command runs.
"""

import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence

from nnseg import __version__
from nnseg.cli.arguments import (
    add_common,
)
from nnseg.cli.choosing import find_best_arguments, run_find_best
from nnseg.cli.data import (
    doctor_arguments,
    fsck_arguments,
    init_arguments,
    run_doctor,
    run_fsck,
    run_init,
)
from nnseg.cli.demonstrating import demo_arguments, run_demo
from nnseg.cli.ensembling import ensemble_arguments, run_ensemble
from nnseg.cli.porting import export_arguments, import_arguments, run_export, run_import
from nnseg.cli.postprocessing import postprocess_arguments, run_postprocess
from nnseg.cli.predicting import predict_arguments, run_predict
from nnseg.cli.preparing import (
    plan_and_preprocess_arguments,
    plan_arguments,
    preprocess_arguments,
    run_plan,
    run_plan_and_preprocess,
    run_preprocess,
)
from nnseg.cli.reporting import report_arguments, run_report
from nnseg.cli.running import run_arguments, run_run
from nnseg.cli.scoring import (
    compare_arguments,
    evaluate_arguments,
    run_compare,
    run_evaluate,
)
from nnseg.cli.telling import info_arguments, run_info, run_verify, verify_arguments
from nnseg.cli.training import run_train, train_arguments
from nnseg.console import STOP, Parser, keep_traceback, show_log
from nnseg.errors import INTERRUPTED, MachineError, NnsegError, StoppedError

Arguments = Callable[[ArgumentParser], None]
COMMANDS: dict[str, tuple[Arguments, Callable[[Namespace], None], str]] = {
    "demo": (demo_arguments, run_demo, "The whole job on built-in data, or on a raw dataset."),
    "run": (run_arguments, run_run, "From data to the best model and a report, in one command."),
    "init": (init_arguments, run_init, "Make a raw dataset from files as they lie."),
    "doctor": (doctor_arguments, run_doctor, "List every problem of a raw dataset at once."),
    "plan": (plan_arguments, run_plan, "Measure a dataset and plan its networks."),
    "preprocess": (preprocess_arguments, run_preprocess, "Preprocess the cases of a dataset."),
    "plan_and_preprocess": (
        plan_and_preprocess_arguments,
        run_plan_and_preprocess,
        "Examine, measure, plan and preprocess datasets.",
    ),
    "train": (train_arguments, run_train, "Train one fold of a configuration, then validate it."),
    "predict": (predict_arguments, run_predict, "Segment images with trained networks."),
    "find-best": (
        find_best_arguments,
        run_find_best,
        "Choose the trained models that predict best, alone or together.",
    ),
    "ensemble": (ensemble_arguments, run_ensemble, "Average what several models predicted."),
    "evaluate": (evaluate_arguments, run_evaluate, "Score predictions against their references."),
    "compare": (compare_arguments, run_compare, "Compare two results of the same cases."),
    "postprocess": (
        postprocess_arguments,
        run_postprocess,
        "Choose rules that take out implausible pieces, or carry them out on a folder.",
    ),
    "report": (report_arguments, run_report, "Write a page that shows results, or a dataset."),
    "fsck": (fsck_arguments, run_fsck, "Find what is damaged among all that nnseg keeps."),
    "verify": (verify_arguments, run_verify, "Say what is proven of results, and what changed."),
    "info": (info_arguments, run_info, "Versions, devices, data, models, and what can be chosen."),
    "import": (import_arguments, run_import, "Make models of ours from nnU-Net's, or a plan."),
    "export": (export_arguments, run_export, "Write a trained model for another program."),
}


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
        add_common(command)
        command.set_defaults(run=run)
    return parser


def _run_one(name: str, argv: Sequence[str] | None) -> int:
    add_arguments, run, text = COMMANDS[name]
    parser = Parser(prog=f"nnseg_{name}", description=text)
    parser.add_argument("--version", action="version", version=f"nnseg {__version__}")
    add_arguments(parser)
    add_common(parser)
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
    except OSError as error:
        if error.filename is None:
            return _report_bug(error)
        reason = error.strerror or type(error).__name__
        print(
            f"nnseg: {error.filename}: {reason}; check the file and its rights "
            f"({keep_traceback()} says where it was met)",
            file=sys.stderr,
        )
        return MachineError.exit_code
    except Exception as error:
        return _report_bug(error)
    return 0


def _report_bug(error: Exception) -> int:
    """Say that a bug ended the run, and where its traceback is; give the exit code."""
    log = keep_traceback()
    what = str(error).splitlines()[0] if str(error) else ""
    print(
        f"nnseg: a bug of ours: {type(error).__name__}: {what}; please report it with {log}",
        file=sys.stderr,
    )
    return 1
