"""Commands before training: plan, preprocess, and both in one."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnseg.cli.arguments import (
    add_apart,
    add_configurations,
    add_datasets,
    add_dry_run,
    add_group_regex,
    add_plan_name,
    datasets_of,
    whole_number,
)
from nnseg.console import Progress, show, show_json
from nnseg.errors import UsageError

if TYPE_CHECKING:
    from nnseg.fingerprint import Fingerprint
    from nnseg.folders import Folders
    from nnseg.model.architecture import NetworkOptions
    from nnseg.plan import Plan

PLANNERS = ("default", "resenc", "resenc_m", "resenc_l", "resenc_xl")
UPSAMPLINGS = ("transposed", "interpolated", "shuffled")
NORMS = ("instance", "batch")


def plan_arguments(parser: ArgumentParser) -> None:
    add_datasets(parser, required=False)
    planning = parser.add_argument_group("planning")
    _add_planning(planning)
    planning.add_argument("--explain", action="store_true", help="say why, a line a rule")
    planning.add_argument("--dry-run", action="store_true", help="plan without writing anything")
    planning.add_argument("--json", action="store_true", help="print the plan as JSON")
    planning.add_argument("--clean", action="store_true", help="measure the fingerprint anew")
    planning.add_argument("-np", "--workers", type=whole_number, metavar="N", help="cases at once")
    foreign = parser.add_argument_group("planning from nnU-Net's own fingerprint")
    foreign.add_argument(
        "--fingerprint", type=Path, metavar="FILE", help="dataset_fingerprint.json"
    )
    foreign.add_argument("--dataset-json", type=Path, metavar="FILE", help="its dataset.json")
    foreign.add_argument("--format", choices=("nnseg", "nnunet"), default="nnseg")
    foreign.add_argument("-o", "--output", type=Path, metavar="FILE", help="plans.json to write")


def run_plan(args: Namespace) -> None:
    from nnseg import commit, record
    from nnseg.plan import describe_plan, explain_plan
    from nnseg.verbs import planning

    if args.fingerprint or args.dataset_json or args.format == "nnunet":
        if not (args.fingerprint and args.dataset_json and args.format == "nnunet"):
            raise UsageError("--fingerprint, --dataset-json and --format nnunet belong together")
        plans = planning.plan_as_nnunet(
            args.fingerprint,
            args.dataset_json,
            planner=args.planner,
            memory_gb=args.memory_gb,
            target_spacing=_spacing(args.target_spacing),
            network=args.network,
            options=_options(args),
        )
        text = record.json_text(plans)
        if args.output:
            commit.write_whole(args.output, text.encode())
            show(f"wrote {args.output}")
        else:
            show_json(text)
        return
    for folders, dataset in datasets_of(args):
        progress = Progress(args.quiet or args.json)
        _, result = _plan_one(args, folders, dataset, progress, save=not args.dry_run)
        if args.json:
            show_json(record.dumps(result))
        else:
            show(explain_plan(result) if args.explain else describe_plan(result))


def plan_and_preprocess_arguments(parser: ArgumentParser) -> None:
    add_datasets(parser, required=True)
    planning = parser.add_argument_group("planning")
    _add_planning(planning)
    planning.add_argument("--clean", action="store_true", help="measure the fingerprint anew")
    planning.add_argument(
        "--verify_dataset_integrity",
        action="store_true",
        help="accepted for nnU-Net's sake: the data are always examined",
    )
    doing = parser.add_argument_group("preprocessing")
    add_configurations(doing)
    doing.add_argument("--no_pp", action="store_true", help="plan only")
    add_dry_run(doing)
    doing.add_argument(
        "-np", "-npfp", "--workers", type=whole_number, metavar="N", help="cases at once"
    )
    add_apart(doing)


def run_plan_and_preprocess(args: Namespace) -> None:
    from nnseg.plan import describe_plan
    from nnseg.verbs import prepare
    from nnseg.verbs.planning import DEFAULT_PLAN

    for folders, dataset in datasets_of(args):
        progress = Progress(args.quiet)
        if args.no_pp or args.dry_run:
            measured, result = _plan_one(args, folders, dataset, progress, save=not args.dry_run)
            show(describe_plan(result))
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
            network=args.network,
            options=_options(args),
            group_regex=args.group_regex,
            anew=args.clean,
            workers=args.workers,
            on_progress=progress,
            say=progress.line,
            apart=args.apart,
        )
        progress.close()
        _tell_made(dataset, made)


def preprocess_arguments(parser: ArgumentParser) -> None:
    add_datasets(parser, required=True)
    add_configurations(parser)
    add_plan_name(parser)
    parser.add_argument("-np", "--workers", type=whole_number, metavar="N", help="cases at once")
    add_apart(parser)
    add_dry_run(parser)


def run_preprocess(args: Namespace) -> None:
    from nnseg.verbs import planning
    from nnseg.verbs.prepare import preprocess

    for folders, dataset in datasets_of(args):
        name = args.plan or planning.DEFAULT_PLAN
        if args.dry_run:
            _foretell(args, folders, planning.load_plan(folders, dataset, name), None)
            continue
        progress = Progress(args.quiet)
        made = preprocess(
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


def _plan_one(
    args: Namespace, folders: "Folders", dataset: str, progress: Progress, *, save: bool
) -> "tuple[Fingerprint, Plan]":
    from nnseg.splits import check_regex
    from nnseg.verbs import planning
    from nnseg.verbs.measuring import up_to_date_fingerprint

    check_regex(folders, dataset, args.group_regex)
    measured = up_to_date_fingerprint(
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
        network=args.network,
        options=_options(args),
        measured=measured,
        group_regex=args.group_regex,
        save=save,
    )
    return measured, result


def _foretell(
    args: Namespace, folders: "Folders", plan: "Plan", measured: "Fingerprint | None"
) -> None:
    from nnseg.verbs import prepare

    foretold = prepare.foretell(
        folders, plan, args.configurations, measured=measured, workers=args.workers
    )
    show(f"{plan.dataset}: preprocessing would take {foretold}; nothing was written")


def _tell_made(dataset: str, made: dict[str, int]) -> None:
    for name, count in made.items():
        show(f"{dataset} {name}: {count} cases preprocessed, the others are up to date")


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
    group.add_argument(
        "--network", metavar="NAME", help="instead of the planner's own; `nnseg info` lists them"
    )
    group.add_argument("--upsampling", choices=UPSAMPLINGS, help="of the network's decoder")
    group.add_argument("--norm", choices=NORMS, help="of the network's layers")
    group.add_argument(
        "--dropout", type=float, metavar="P", help="probability with which the network drops a map"
    )
    group.add_argument(
        "--backbone", metavar="NAME", help="the encoder of encoder_unet; or timm:NAME, in 2D"
    )
    add_group_regex(group)
    add_plan_name(group)


def _options(args: Namespace) -> "NetworkOptions":
    from nnseg.model.architecture import NetworkOptions

    return NetworkOptions(
        upsampling=args.upsampling, norm=args.norm, dropout=args.dropout, backbone=args.backbone
    )


def _spacing(values: Sequence[float] | None) -> tuple[float, float, float] | None:
    return None if values is None else (values[0], values[1], values[2])
