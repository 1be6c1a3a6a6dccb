"""The command train."""

import time
from argparse import SUPPRESS, ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnseg.cli.arguments import (
    add_dataset,
    add_device,
    add_plan_name,
    count,
    dataset_of,
    label_pair,
    numbers,
    ranks_of,
    time_span,
    whole_number,
)
from nnseg.console import STOP, Progress, show
from nnseg.errors import PlanError, UsageError

if TYPE_CHECKING:
    from nnseg.learning.recipe import TrainSettings
    from nnseg.learning.resume import EpochReport

CHOSEN = (  # settings that have an option of the same name
    "epochs",
    "iterations",
    "validation_iterations",
    "batch_size",
    "accumulate",
    "optimizer",
    "lr",
    "momentum",
    "weight_decay",
    "schedule",
    "ema",
    "patience",
    "loss",
    "dice_weight",
    "tversky_alpha",
    "tversky_beta",
    "focal_gamma",
    "class_weights",
    "augmentation",
    "elastic",
    "mixup",
    "seed",
)
OF_PRESETS = {"epochs", "patience", "budget_seconds"}  # what presets differ in


def train_arguments(parser: ArgumentParser) -> None:
    add_dataset(parser)
    parser.add_argument("configuration", metavar="CONFIGURATION", help="2d, 3d_fullres, ...")
    parser.add_argument("fold", metavar="FOLD", help="0 to 4, or all")
    _add_recipe(parser.add_argument_group("recipe"))
    _add_running(parser.add_argument_group("running"))


def _add_recipe(recipe: Any) -> None:
    recipe.add_argument(
        "--preset",
        metavar="NAME",
        help="best: nnU-Net's 1000 epochs; default: as many as the data are worth; quick: minutes",
    )
    recipe.add_argument(
        "--budget", type=time_span, metavar="TIME", help="fit the wall clock: 40m, 8h"
    )
    recipe.add_argument("--epochs", type=whole_number, metavar="N", help="the preset's")
    recipe.add_argument("--iterations", type=whole_number, metavar="N", help="steps an epoch: 250")
    recipe.add_argument("--validation-iterations", type=whole_number, metavar="N", help="50")
    recipe.add_argument("--batch-size", type=whole_number, metavar="N", help="the plan's")
    recipe.add_argument(
        "--accumulate", type=whole_number, metavar="N", help="batches whose gradients make a step"
    )
    recipe.add_argument("--optimizer", metavar="NAME", help="sgd, adam or adamw")
    recipe.add_argument("--lr", type=float, metavar="X", help="the optimizer's: sgd 0.01")
    recipe.add_argument("--momentum", type=float, metavar="X", help="the optimizer's: sgd 0.99")
    recipe.add_argument("--weight-decay", type=float, metavar="X", help="3e-5")
    recipe.add_argument("--schedule", metavar="NAME", help="poly, cosine, cosine_restarts, ...")
    recipe.add_argument(
        "--ema", type=float, metavar="X", help="average the weights; 0.999 keeps so much a step"
    )
    recipe.add_argument(
        "--patience",
        type=float,
        metavar="X",
        help="share of the epochs without a gain that ends it",
    )
    recipe.add_argument("--loss", metavar="NAME", help="dice_ce, dice, ce, dice_topk, ...")
    recipe.add_argument(
        "--dice-weight",
        type=float,
        metavar="W",
        help="of dice_ce and dice_topk: W Dice + (1 - W) cross-entropy",
    )
    for name, what in (("alpha", "false"), ("beta", "missed")):
        text = f"of tversky and focal_tversky: weight of {what} voxels"
        recipe.add_argument(f"--tversky-{name}", type=float, metavar="X", help=text)
    recipe.add_argument(
        "--focal-gamma", type=float, metavar="X", help="of focal: 2; of focal_tversky: 4/3"
    )
    recipe.add_argument(
        "--class-weights",
        type=class_weights,
        metavar="X,...",
        help="of the loss, one a label; or balanced, by their volumes",
    )
    recipe.add_argument(
        "--augmentation", metavar="NAME", help="full or mild; mild for short budgets"
    )
    recipe.add_argument(
        "--elastic", type=float, metavar="VOXELS", help="bend patches, by up to 12.8 voxels"
    )
    recipe.add_argument(
        "--mixup", type=float, metavar="ALPHA", help="mix the images of a batch; 0.2 mixes a little"
    )
    recipe.add_argument(
        "--swap-labels",
        type=label_pair,
        nargs="+",
        metavar="LEFT=RIGHT",
        help="labels that trade places when left and right are mirrored",
    )
    recipe.add_argument("--seed", type=int, metavar="N", help="0")
    recipe.add_argument(
        "--pretrained",
        type=Path,
        metavar="MODEL",
        help="start from this model: a folder of ours, or nnU-Net's checkpoint_final.pth",
    )
    recipe.add_argument(
        "--pretrained-encoder",
        type=Path,
        metavar="FILE",
        help="start the encoder of encoder_unet from timm's model.safetensors of its backbone",
    )


def _add_running(running: Any) -> None:
    add_plan_name(running)
    add_device(running)
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
    running.add_argument(
        "--extend-to",
        type=whole_number,
        metavar="N",
        help="give the run that is there, finished or not, its end after N epochs",
    )
    running.add_argument(
        "--workers", type=count, metavar="N", help="threads that make batches ahead; 0 for none"
    )
    running.add_argument(
        "--track", nargs="+", default=(), metavar="NAME", help="tensorboard, mlflow, wandb"
    )
    running.add_argument(
        "--dry-run", action="store_true", help="say what it takes of memory and time: 10 steps"
    )
    running.add_argument("--val", action="store_true", help="only the full-volume validation")
    running.add_argument("--no-validation", action="store_true", help="without it")


def class_weights(text: str) -> tuple[float, ...] | str:
    return text if text == "balanced" else numbers(text)


class_weights.__name__ = "list of numbers, or balanced"


def run_train(args: Namespace) -> None:
    from nnseg import pipeline, report
    from nnseg.scores.tables import describe_scores

    if args.overwrite and (args.resume or args.extend_to):
        other = "--c" if args.resume else "--extend-to"
        raise UsageError(f"--overwrite starts anew and {other} goes on; give one of them")
    folders, dataset = dataset_of(args)
    settings, given = _settings(args)
    fold = (folders, dataset, args.configuration, args.fold)
    how = {
        "plan_name": args.plan or pipeline.DEFAULT_PLAN,
        "device": args.device,
        "precision": args.precision,
    }
    ranks = ranks_of()
    progress = Progress(args.quiet or not ranks.is_first)
    STOP.listen()
    if args.dry_run:
        foretold = pipeline.rehearse(
            *fold,
            settings=settings,
            compiled=args.compiled,
            pretrained=args.pretrained,
            pretrained_encoder=args.pretrained_encoder,
            loader_workers=args.workers,
            stop=STOP,
            **how,
        )
        show(f"{foretold}; nothing was written")
        return
    if args.val:
        summary = pipeline.validate(
            *fold, seed=settings.seed, on_progress=progress, stop=STOP, **how
        )
        show(describe_scores(summary))
        return
    began, told = time.monotonic(), []

    def tell(epoch: "EpochReport") -> None:
        told.append(epoch.epoch)
        left = (epoch.epochs - epoch.epoch) * epoch.seconds
        progress.line(report.describe_epoch(epoch, left))

    try:
        folder = pipeline.train(
            *fold,
            settings=settings,
            compiled=args.compiled,
            resume=args.resume or None,
            given=given,
            overwrite=args.overwrite,
            extend_to=args.extend_to,
            pretrained=args.pretrained,
            pretrained_encoder=args.pretrained_encoder,
            loader_workers=args.workers,
            trackers=args.track,
            ranks=ranks,
            validate_after=not args.no_validation,
            on_progress=progress,
            on_epoch=tell,
            say=progress.line,
            stop=STOP,
            **how,
        )
    finally:
        progress.close()
    if not ranks.is_first:
        return
    if told:
        show(f"trained in {report.duration(time.monotonic() - began)}: {folder}")
    else:
        show(f"this training was finished before: {folder}")
    if not args.no_validation:
        show(describe_scores(pipeline.validation_summary(folder)))


def _settings(args: Namespace) -> "tuple[TrainSettings, frozenset[str]]":
    """Give the settings of a training, and the names of those that somebody chose."""
    from nnseg.learning.recipe import PRESETS

    given = {name: value for name in CHOSEN if (value := getattr(args, name)) is not None}
    if args.budget:
        given["budget_seconds"] = args.budget
    if args.swap_labels:
        given["swap_labels"] = tuple(args.swap_labels)
    chosen = {*given} | ({"pretrained"} if args.pretrained or args.pretrained_encoder else set())
    chosen |= OF_PRESETS if args.preset else set()
    preset = args.preset or ("best" if args.budget or args.epochs else "default")
    try:
        return replace(PRESETS[preset], **given), frozenset(chosen)
    except PlanError as error:
        raise UsageError(str(error)) from None
