"""The command demo."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from nnseg.cli.arguments import (
    add_device,
    time_span,
)
from nnseg.console import STOP, Progress

if TYPE_CHECKING:
    pass


def demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--budget",
        type=time_span,
        default=180.0,
        metavar="TIME",
        help="wall clock of the whole: 180s",
    )
    parser.add_argument("--real", metavar="PATH", help="a raw dataset instead of built-in phantoms")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of phantoms and training")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="where; left out: demo/"
    )
    add_device(parser)


def run_demo(args: Namespace) -> None:
    from nnseg.verbs import demo

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
