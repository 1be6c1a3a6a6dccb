"""The command run."""

import json
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from nnseg.cli.arguments import add_dataset, add_plan_name, dataset_of, time_span, whole_number
from nnseg.console import STOP, Progress, show, show_json

if TYPE_CHECKING:
    from nnseg.learning.resume import EpochReport

PRESETS = ("quick", "default", "best")


def run_arguments(parser: ArgumentParser) -> None:
    add_dataset(parser)
    work = parser.add_argument_group("how much")
    work.add_argument(
        "--preset",
        choices=PRESETS,
        default="default",
        help="best: nnU-Net's 1000 epochs; default: as many as the data are worth; quick: "
        "ten minutes a network",
    )
    work.add_argument(
        "--budget", type=time_span, metavar="TIME", help="wall clock for everything: 50m, 8h, 2d"
    )
    work.add_argument(
        "-c", "--configurations", nargs="+", default=[], metavar="NAME", help="those worth it"
    )
    work.add_argument("-f", "--folds", nargs="+", default=[], metavar="FOLD", help="those worth it")
    work.add_argument(
        "--members", type=whole_number, default=2, metavar="N", help="of an ensemble, at most: 2"
    )
    work.add_argument("--seed", type=int, default=0, metavar="N", help="0")
    add_plan_name(work)
    running = parser.add_argument_group("running")
    running.add_argument(
        "-device",
        "--devices",
        nargs="+",
        default=[],
        metavar="NAME",
        help="cpu, cuda, cuda:1; several train a network each at the same time",
    )
    running.add_argument("--precision", choices=("fp32", "bf16", "fp16"))
    running.add_argument("-np", "--workers", type=whole_number, metavar="N", help="cases at once")
    running.add_argument(
        "--overwrite",
        action="store_true",
        help="begin anew; what is there is kept aside",
    )
    running.add_argument(
        "--dry-run", action="store_true", help="say what would be trained; write nothing"
    )
    running.add_argument("--json", action="store_true", help="print what was made as JSON")


def run_run(args: Namespace) -> None:
    from nnseg import record, report
    from nnseg.verbs import running, scheduling
    from nnseg.verbs.agenda import Order, describe
    from nnseg.verbs.planning import DEFAULT_PLAN

    folders, dataset = dataset_of(args)
    order = Order(
        plan=args.plan or DEFAULT_PLAN,
        preset=args.preset,
        budget_seconds=args.budget,
        configurations=tuple(args.configurations),
        folds=tuple(args.folds),
        most_members=args.members,
        seed=args.seed,
    )
    progress = Progress(args.quiet or args.json)
    say = (lambda text: None) if args.json else progress.line
    STOP.listen()

    def tell(epoch: "EpochReport") -> None:
        left = (epoch.epochs - epoch.epoch) * epoch.seconds
        say(f"      {report.describe_epoch(epoch, left)}")

    try:
        if args.dry_run:
            agenda = scheduling.foresee(
                folders,
                dataset,
                order,
                devices=args.devices,
                precision=args.precision,
                workers=args.workers,
                on_progress=progress,
                say=say,
                stop=STOP,
            )
            costs = describe(agenda, max(1, len(args.devices)))
            if args.json:
                show_json(record.dumps(agenda))
            else:
                show(f"{costs}\nnothing was written")
            return
        finished = running.run(
            folders,
            dataset,
            order,
            devices=args.devices,
            precision=args.precision,
            overwrite=args.overwrite,
            workers=args.workers,
            on_progress=progress,
            on_epoch=tell,
            say=say,
            stop=STOP,
        )
    finally:
        progress.close()
    if args.json:
        show(json.dumps(record.to_json(finished)))
