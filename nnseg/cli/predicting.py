"""The command with a trained model: predict."""

import json
import re
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnseg.cli.arguments import (
    add_device,
    add_plan_name,
    dataset_of,
    folders_of,
    numbers,
    whole_number,
)
from nnseg.cli.cases import telling_cases
from nnseg.console import STOP, Progress, show
from nnseg.errors import UsageError

if TYPE_CHECKING:
    from nnseg.checkpoint import Kind
    from nnseg.predictor import Predictor


PRESETS = ("fast", "default", "best")
KINDS = ("npz", "nifti", "chunks", "compact")  # of files of probabilities


def predict_arguments(parser: ArgumentParser) -> None:
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
    _add_model(parser)
    _add_how(parser)
    _add_besides(parser)


def _add_model(parser: ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument(
        "-m",
        "--model",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="folder of a configuration (fold_0, ...) or of one fold, or a choice.json; of "
        "several the probabilities are averaged",
    )
    model.add_argument(
        "--weights", type=numbers, default=(), metavar="X,...", help="of several models: 1,1,..."
    )
    model.add_argument("-d", "--dataset", metavar="DATASET", help="id, name or path of the dataset")
    model.add_argument(
        "-c",
        "--configuration",
        nargs="+",
        metavar="NAME",
        help="2d, 3d_fullres, ..., or several; left out: what `nnseg find-best` chose",
    )
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
    add_plan_name(model)


def _add_how(parser: ArgumentParser) -> None:
    how = parser.add_argument_group("how")
    how.add_argument(
        "--preset",
        default="default",
        choices=PRESETS,
        help="fast: one fold, no mirrors, wider steps; default; best: in fp32",
    )
    how.add_argument(
        "-step_size",
        "--step",
        type=float,
        metavar="X",
        help="distance of tiles as a share of their edge: the preset's, 0.5",
    )
    how.add_argument("--disable_tta", action="store_true", help="without mirrored images: faster")
    how.add_argument(
        "--overwrite",
        action="store_true",
        help="do again what is proven to be done, and replace label maps changed by hand",
    )
    how.add_argument(
        "--continue_prediction",
        action="store_true",
        help="accepted for nnU-Net's sake: what is done is always kept, if it is proven",
    )
    how.add_argument(
        "-num_parts", type=whole_number, default=1, metavar="N", help="share the cases out"
    )
    how.add_argument("-part_id", type=int, default=0, metavar="I", help="take share I, from 0")
    how.add_argument(
        "-npp",
        "-nps",
        type=int,
        metavar="N",
        help="accepted for nnU-Net's sake: there are no worker processes",
    )
    how.add_argument(
        "-tr",
        choices=("nnUNetTrainer",),
        help="accepted for nnU-Net's sake: a model of ours is not named by its trainer",
    )
    how.add_argument(
        "--not_on_device",
        action="store_true",
        help="accepted for nnU-Net's sake: what a GPU must hold is small anyway",
    )
    how.add_argument(
        "--disable_progress_bar", action="store_true", help="no progress, as nnU-Net calls it"
    )
    how.add_argument(
        "--dry-run",
        action="store_true",
        help="read the images, say what would be done and what it takes, and write nothing",
    )
    how.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    add_device(how)


def _add_besides(parser: ArgumentParser) -> None:
    besides = parser.add_argument_group("besides the label maps")
    besides.add_argument(
        "--save_probabilities",
        nargs="?",
        const="npz",
        choices=KINDS,
        help="of every voxel; npz, as nnU-Net has them, if no kind is given",
    )
    besides.add_argument(
        "--uncertainty",
        action="store_true",
        help="maps of the entropy, and of the disagreement of folds and models",
    )
    besides.add_argument(
        "--calibrated",
        action="store_true",
        help="probabilities at the temperature that fitted the validation best",
    )
    besides.add_argument(
        "--statistics",
        action="store_true",
        help="statistics.csv: volume, box and centre of each label",
    )


def run_predict(args: Namespace) -> None:
    from nnseg import pipeline, predicted_folder
    from nnseg.verbs import outlook, predicting

    if not 0 <= args.part_id < args.num_parts:
        raise UsageError(f"-part_id is {args.part_id}; it must be 0 to {args.num_parts - 1}")
    if args.step is not None and not 0 < args.step <= 1:
        raise UsageError(f"-step_size is {args.step}; it must be over 0 and at most 1")
    what = (_predictor(args), args.input, args.output)
    progress = Progress(args.quiet or args.json or args.disable_progress_bar)
    STOP.listen()
    how: dict[str, Any] = {
        "wanted": predicted_folder.Wanted(
            maps=("entropy", "disagreement") if args.uncertainty else (),
            probabilities=args.save_probabilities,
            statistics=args.statistics,
        ),
        "part": args.part_id,
        "parts": args.num_parts,
        "overwrite": args.overwrite,
        "on_progress": progress,
        "stop": STOP,
    }
    if args.dry_run:
        foretold = outlook.foretell(*what, **how)
        progress.close()
        show(json.dumps(foretold.to_json()) if args.json else foretold)
        predicting.raise_failed(foretold.failed, len(foretold.cases))
        return
    with telling_cases(args, progress) as told:
        pipeline.predict(*what, **how, on_case=told.__setitem__)


def _predictor(args: Namespace) -> "Predictor":
    from nnseg.predictor import load

    kinds: dict[str, Kind] = {"final": "final", "best": "best"}
    kind = kinds.get(re.sub(r"^checkpoint_|\.pth$", "", args.checkpoint))
    if kind is None:
        raise UsageError(f"-chk is {args.checkpoint}; it must be final or best")
    predictor = load(
        _models(args, kind),
        folds=args.folds,
        weights=args.weights,
        checkpoint=kind,
        preset=args.preset,
        calibrated=args.calibrated,
        device=args.device,
        precision=args.precision,
    )
    if args.step is not None:
        predictor = replace(predictor, step=args.step)
    return replace(predictor, mirror=False) if args.disable_tta else predictor


def _models(args: Namespace, kind: str) -> list[Path]:
    """Give the folders of the models that are meant."""
    from nnseg.folders import trained_folds
    from nnseg.verbs.choosing import find_choice
    from nnseg.verbs.planning import DEFAULT_PLAN

    if args.model:
        _warn_of_a_stale_choice(args)
        return list(args.model)
    if not args.dataset:
        raise UsageError(
            "say which model: -d DATASET -c CONFIGURATION, -d DATASET alone for what `nnseg "
            "find-best` chose, or -m FOLDER"
        )
    folders, dataset = dataset_of(args)
    if not args.configuration:
        if args.plan:
            raise UsageError("-p is given without -c; say which configuration, or leave out both")
        return [find_choice(folders, dataset)]
    found = []
    for name in args.configuration:
        folder = folders.model(dataset, args.plan or DEFAULT_PLAN, name)
        trained_folds(folder, args.folds, kind, f"nnseg train {dataset} {name}")  # or says so
        found.append(folder)
    return found


def _warn_of_a_stale_choice(args: Namespace) -> None:
    """Have a choice that -m names looked at as the one that -d finds is, where it lies in results.

    It does where the record of how it was found is beside it: one that was handed on has none.
    """
    from nnseg.folders import CHOICE, choosing_beside
    from nnseg.verbs.choosing import find_choice

    named = args.model[0].absolute()
    file = named / CHOICE if named.is_dir() else named
    if len(args.model) > 1 or file.name != CHOICE or not file.is_file():
        return
    if choosing_beside(file).is_file():
        results = file.parent
        with suppress(UsageError):  # the folder has a name that no dataset can have
            find_choice(replace(folders_of(args), results=results.parent), results.name)
