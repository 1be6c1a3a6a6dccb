"""The command that averages what several models predicted: ensemble."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from nnseg.cli.arguments import numbers, whole_number
from nnseg.console import STOP, Progress

KINDS = ("npz", "nifti", "chunks", "compact")  # of files of probabilities


def ensemble_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="for each model a folder of its probabilities: what a validation leaves, or "
        "`nnseg predict --save_probabilities`, or nnU-Net's --save_probabilities",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the label maps"
    )
    parser.add_argument(
        "--weights", type=numbers, default=(), metavar="X,...", help="of the models: 1,1,..."
    )
    parser.add_argument(
        "-np", "--workers", type=whole_number, metavar="N", help="cases at once; one a core"
    )
    parser.add_argument(
        "--save_probabilities",
        nargs="?",
        const="npz",
        choices=KINDS,
        help="keep the mean, too; npz, as nnU-Net has them, if no kind is given",
    )
    parser.add_argument(
        "--save_npz",
        dest="save_probabilities",
        action="store_const",
        const="npz",
        help="the same as nnU-Net calls it",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="do again what is proven to be done, and replace label maps changed by hand",
    )


def run_ensemble(args: Namespace) -> None:
    from nnseg.ensembling import ensemble

    progress = Progress(args.quiet)
    STOP.listen()
    try:
        written = ensemble(
            args.input,
            args.output,
            weights=args.weights,
            probabilities=args.save_probabilities,
            workers=args.workers,
            overwrite=args.overwrite,
            on_progress=progress,
            stop=STOP,
        )
    finally:
        progress.close()
    print(f"{len(written)} segmentations in {args.output}")
