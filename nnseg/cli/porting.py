"""Commands that bring plans and models in from elsewhere, and models out: import and export."""

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path

from nnseg.cli.arguments import add_plan_name, dataset_of
from nnseg.console import show
from nnseg.errors import UsageError
from nnseg.verbs.porting import EXPORTERS


def import_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "models",
        type=Path,
        nargs="+",
        metavar="MODEL",
        help="of nnU-Net v2: a trained model's folder, a dataset's results or a zip of them, which "
        "become a model of ours; or a plans.json, which becomes a plan of ours; or a zip that "
        "`nnseg export` wrote",
    )
    models = parser.add_argument_group("models")
    models.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="folder for CONFIGURATION/fold_N"
    )
    models.add_argument(
        "--trainer",
        nargs="+",
        default=(),
        metavar="NAME",
        help="trainers of your own that change neither the network nor the prediction",
    )
    plans = parser.add_argument_group("a plans.json")
    plans.add_argument(
        "-d", "--dataset", metavar="DATASET", help="id, name or path of the dataset to plan"
    )
    either = parser.add_argument_group("either")
    add_plan_name(either)
    either.add_argument("--dry-run", action="store_true", help="read and check, write nothing")


def run_import(args: Namespace) -> None:
    if any(path.suffix.lower() == ".json" for path in args.models):
        _import_plans(args)
    else:
        _import_models(args)


def export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="folder of a fold, of a configuration (fold_0, ...) or of all a plan's models; to zip "
        "also a choice.json, or the folder that it lies in",
    )
    parser.add_argument("--to", choices=tuple(EXPORTERS), required=True, help="who is to read it")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="folder, or zip file, that is not there",
    )
    parser.add_argument(
        "-chk", "--checkpoint", choices=("final", "best"), default="final", help="final if left out"
    )


def run_export(args: Namespace) -> None:
    from nnseg.verbs import porting

    for path in porting.export_model(args.model, args.output, to=args.to, kind=args.checkpoint):
        show(f"wrote {path}")


def _import_plans(args: Namespace) -> None:
    from nnseg.plan import describe_plan
    from nnseg.verbs import planning, porting

    if len(args.models) > 1 or not args.dataset or args.output or args.trainer:
        raise UsageError("a plans.json is imported by itself, for a dataset: -d DATASET, no -o")
    file = args.models[0]
    folders, dataset = dataset_of(args)
    name = args.plan or file.stem
    if args.dry_run:
        show(describe_plan(porting.read_plan(folders, dataset, file, name=name)))
        return
    show(describe_plan(planning.import_plans(folders, dataset, file, name=name)))
    show(f"plan {name} of {dataset}: nnseg preprocess -d {dataset} -p {name}")


def _import_models(args: Namespace) -> None:
    from nnseg.folders import CHOICE
    from nnseg.verbs import porting

    if args.dataset:
        raise UsageError("-d is for a plans.json; a model goes to a folder: -o FOLDER")
    if not args.output and not args.dry_run:
        raise UsageError("say where the model is to go: -o FOLDER")
    target = args.output or Path("FOLDER")
    imported = porting.import_model(
        args.models, target, name=args.plan, trainers=args.trainer, save=not args.dry_run
    )
    for model in imported:
        folds = ", ".join(
            f"{fold} ({' and '.join(kinds)})" for fold, kinds in model.checkpoints.items()
        )
        show(f"{model.plan.dataset} {model.configuration_name}, {model.trainer}: folds {folds}")
    if args.dry_run:
        show("nothing was written")
        return
    if (target / CHOICE).is_file():
        show(f"nnseg predict -m {shlex.quote(str(target))} -i IN -o OUT")
        return
    for model in imported:
        folder = shlex.quote(str(target / model.configuration_name))
        best = [fold for fold, kinds in model.checkpoints.items() if "final" not in kinds]
        option = " -chk best" if len(best) == len(model.checkpoints) else ""
        show(f"nnseg predict -m {folder} -i IN -o OUT{option}")
        if best and not option:
            show(f"that leaves out folds {', '.join(best)}, which have a checkpoint_best only")
