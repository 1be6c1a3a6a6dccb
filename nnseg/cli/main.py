"""The command line: parse, call one verb of the pipeline, print, give an exit code.

It imports nothing heavy until a command runs.
"""

import io
import logging
import os
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from importlib import import_module

from nnseg import __version__
from nnseg.cli.arguments import add_common
from nnseg.console import STOP, Parser, keep_traceback, show_log
from nnseg.errors import INTERRUPTED, MachineError, NnsegError, StoppedError, printable

Arguments = Callable[[ArgumentParser], None]
COMMANDS = {  # the file beside this one that has NAME_arguments and run_NAME, and what it does
    "demo": ("demonstrating", "The whole job on built-in data, or on a raw dataset."),
    "run": ("running", "From data to the best model and a report, in one command."),
    "init": ("data", "Make a raw dataset from files as they lie."),
    "doctor": ("data", "List every problem of a raw dataset at once."),
    "plan": ("preparing", "Measure a dataset and plan its networks."),
    "preprocess": ("preparing", "Preprocess the cases of a dataset."),
    "plan_and_preprocess": ("preparing", "Examine, measure, plan and preprocess datasets."),
    "train": ("training", "Train one fold of a configuration, then validate it."),
    "predict": ("predicting", "Segment images with trained networks."),
    "find-best": ("choosing", "Choose the trained models that predict best, alone or together."),
    "ensemble": ("ensembling", "Average what several models predicted."),
    "evaluate": ("scoring", "Score predictions against their references."),
    "compare": ("scoring", "Compare two results of the same cases."),
    "postprocess": (
        "postprocessing",
        "Choose rules that take out implausible pieces, or carry them out on a folder.",
    ),
    "report": ("reporting", "Write a page that shows results, or a dataset."),
    "fsck": ("data", "Find what is damaged among all that nnseg keeps."),
    "verify": ("telling", "Say what is proven of results, and what changed."),
    "info": ("telling", "Versions, devices, data, models, and what can be chosen."),
    "import": ("porting", "Make models of ours from nnU-Net's, or a plan."),
    "export": ("porting", "Write a trained model for another program."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the umbrella command `nnseg`; give its exit code."""
    words = sys.argv[1:] if argv is None else argv
    return _end(_run(build_parser(words), words), argv)


def plan_and_preprocess(argv: Sequence[str] | None = None) -> int:
    """Run `nnseg_plan_and_preprocess`."""
    return _run_one("plan_and_preprocess", argv)


def train(argv: Sequence[str] | None = None) -> int:
    """Run `nnseg_train`."""
    return _run_one("train", argv)


def predict(argv: Sequence[str] | None = None) -> int:
    """Run `nnseg_predict`."""
    return _run_one("predict", argv)


def build_parser(words: Collection[str] = tuple(COMMANDS)) -> Parser:
    """Build the parser of `nnseg` with all its commands.

    Args:
        words: What will be parsed; commands that are not among it get no arguments, as nobody would
            see them and they take their time.
    """
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
    for name, (_, text) in COMMANDS.items():
        asked = name in words
        command = commands.add_parser(name, help=text, description=text, add_help=asked)
        if asked:
            _complete(command, name)
    return parser


def _run_one(name: str, argv: Sequence[str] | None) -> int:
    parser = Parser(prog=f"nnseg_{name}", description=COMMANDS[name][1])
    parser.add_argument("--version", action="version", version=f"nnseg {__version__}")
    _complete(parser, name)
    return _end(_run(parser, argv), argv)


def _end(code: int, argv: Sequence[str] | None) -> int:
    """Give the exit code of a command; one of several ranks that train together ends with it here.

    torch keeps the threads of gloo when the ranks have parted, and may abort a process in which
    Python is taken down beside them.
    """
    if argv is None and os.environ.get("WORLD_SIZE", "1") != "1":
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # who read it went away, or it is closed
                stream.flush()
        os._exit(code)
    return code


def _complete(parser: ArgumentParser, name: str) -> None:
    """Give a parser the arguments of a command, and the function that runs it."""
    room = import_module(f"nnseg.cli.{COMMANDS[name][0]}")
    word = name.replace("-", "_")
    add_arguments: Arguments = getattr(room, f"{word}_arguments")
    add_arguments(parser)
    add_common(parser)
    parser.set_defaults(run=getattr(room, f"run_{word}"))


def _run(parser: Parser, argv: Sequence[str] | None) -> int:
    """Parse and run; errors become one line and an exit code, bugs a line and a log."""
    try:
        args = parser.parse_args(argv)
    except SystemExit as ended:  # argparse's way of saying -h, --version or an error
        return int(ended.code or 0)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a locale has no letters for is spelled out
            stream.reconfigure(errors="backslashreplace")
    show_log(quiet=args.quiet, verbose=args.verbose)
    os.environ.setdefault("BLOSC_NTHREADS", "1")  # or it starts 4 threads for every array it writes
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # or it reads every package's data
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
            f"nnseg: {printable(str(error.filename))}: {reason}; check the file and its rights "
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
        f"nnseg: a bug of ours: {type(error).__name__}: {printable(what)}; please report it with "
        f"{log}",
        file=sys.stderr,
    )
    return 1
