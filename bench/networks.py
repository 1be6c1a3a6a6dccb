"""Every network on the same data with the same budget: its size, its cost and its Dice.

    python bench/networks.py --shared DIR [--dataset D] [--configuration C] [--networks NAME ...]
        [--minutes M] [--optimizer O] [--seed N] [--memory-gb G] [--keep ROOT]

For each network a plan is made, the data are preprocessed, and one line tells its parameters, the
multiply-adds and the kept activations of a patch, the seconds of a training step and, unless
--minutes is 0, the mean Dice of the whole volumes of fold 0 after so many minutes of training.
Nothing of nnU-Net's has these networks, so that --peer is taken and left unused.
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from nnseg import pipeline
from nnseg.errors import NnsegError
from nnseg.folders import Folders, summary_file, validation_folder
from nnseg.learning.recipe import TrainSettings
from nnseg.learning.resume import read_run
from nnseg.model.kinds import KINDS
from nnseg.networks.build import build_network
from nnseg.plan import Plan

COLUMNS = (
    "network", "configuration", "patch", "batch", "parameters (M)", "GFLOP a patch",
    "kept (MiB a patch)", "s a step", "s a patch", "minutes", "steps", "Dice",
)  # fmt: skip
PROBE_STEPS = 3  # timed where nothing is trained


def main() -> int:
    """Print a table, a line a network as it is done."""
    args = parse()
    root = args.keep or Path(tempfile.mkdtemp(prefix="nnseg-bench-"))
    try:
        (root / "raw").mkdir(parents=True, exist_ok=True)
        raw = root / "raw" / args.dataset
        if not raw.exists():
            raw.symlink_to(args.shared / "data" / args.dataset)
        folders = Folders.of_root(root)
        print("| " + " | ".join(COLUMNS) + " |")
        print("|" + " --- |" * len(COLUMNS), flush=True)
        for name in args.networks:
            try:
                row = measure(folders, name, args)
            except NnsegError as error:
                row = [name, args.configuration, str(error)]
            print("| " + " | ".join(row) + " |", flush=True)
    finally:
        if args.keep is None:
            shutil.rmtree(root, ignore_errors=True)
    return 0


def parse() -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="left unused")
    parser.add_argument("--shared", type=Path, default=os.environ.get("NNSEG_SHARED"))
    parser.add_argument("--dataset", default="Dataset004_Hippocampus")
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--networks", nargs="+", default=sorted(KINDS))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory-gb", type=float)
    parser.add_argument("--keep", type=Path, metavar="ROOT", help="data roots to keep and to use")
    args = parser.parse_args()
    if args.shared is None:
        parser.error("--shared: name the folder of data/ and reference/, or set NNSEG_SHARED")
    args.shared = Path(args.shared)
    return args


def measure(folders: Folders, name: str, args: Namespace) -> list[str]:
    """Plan, preprocess, count and train one network; give its row."""
    plan, _ = pipeline.plan_and_preprocess(
        folders,
        args.dataset,
        (args.configuration,),
        name=name,
        network=name,
        memory_gb=args.memory_gb,
    )
    configuration = plan.configurations[args.configuration]
    patch = configuration.patch_size
    parameters, flops = count(plan, args.configuration)
    kept = KINDS[name].kept(configuration.architecture, patch, len(plan.channels))
    trains = args.minutes > 0
    settings = TrainSettings(
        budget_seconds=60 * args.minutes if trains else None,
        epochs=1000 if trains else 2,
        iterations=250 if trains else PROBE_STEPS,
        validation_iterations=50 if trains else 1,
        optimizer=args.optimizer,
        seed=args.seed,
    )
    folder = pipeline.train(
        folders,
        args.dataset,
        args.configuration,
        "0",
        plan_name=name,
        settings=settings,
        device="cpu",
        validate_after=trains,
        overwrite=True,
    )
    run = read_run(folder)
    assert run is not None, "it was trained just now"
    course = run.course
    batch = course.batch_size or configuration.batch_size
    epoch = statistics.median(report.seconds for report in run.history)
    step = epoch * 0.95 / course.iterations  # of an epoch about a twentieth is validation
    row = [
        name,
        args.configuration,
        " x ".join(map(str, patch)),
        str(batch),
        f"{parameters / 1e6:.2f}",
        f"{flops / 1e9:.1f}",
        f"{kept * 4 / 2**20:.0f}",
        f"{step:.2f}",
        f"{step / batch:.3f}",
    ]
    if not trains:
        return [*row, "-", "-", "-"]
    summary = json.loads(summary_file(validation_folder(folder)).read_text())
    dice = summary["foreground_mean"]["Dice"]
    return [*row, f"{args.minutes:g}", str(run.epoch * course.iterations), f"{dice:.4f}"]


def count(plan: Plan, name: str) -> tuple[int, int]:
    """Give a network's parameters, and the floating point operations of a patch, forward."""
    configuration = plan.configurations[name]
    channels = plan.input_channels(name)
    network = build_network(configuration.architecture, channels, plan.labels.heads).eval()
    image = torch.zeros(1, channels, *configuration.patch_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops()


if __name__ == "__main__":
    sys.exit(main())
