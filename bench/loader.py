"""Patches of a training, read, augmented and stacked, without a network: samples a second.

    python bench/loader.py --peer PYTHON --shared DIR [--repeats N] [--workers N]

Both sides preprocess hippocampus and load the training cases of fold 0 in the plan's batches, 8 GB,
with label maps at every resolution of deep supervision. The peer's loader has two processes, ours
two threads.
"""

import json
import os
import shutil
import sys
import tempfile
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path

from timing import Row, Run, alternate, measure, report

DATASET = "Dataset004_Hippocampus"
THREADS = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
SHAPE_ALLOWED = 0.02  # labels that training sees, ours by theirs

# Each gets its work as JSON; what it prints is the seconds of the work alone, after a warm-up.
OURS = """
import json, sys, time
from pathlib import Path
import torch
from nnseg import record, store
from nnseg.learning.batches import BatchSource, make_batches
from nnseg.folders import Folders
from nnseg.model.draws import plan_augmentation
from nnseg.plan import Plan
from nnseg.preprocess import preprocessing_hash
from nnseg.splits import folds

work = json.loads(sys.argv[1])
torch.set_num_threads(1)
folders = Folders.of_root(Path(work["root"]))
plan = record.load(Plan, folders.plan_file(work["dataset"], "nnseg"))
configuration = plan.configuration(work["configuration"])
folder = folders.store(work["dataset"], "nnseg", configuration.data)
seen = preprocessing_hash(plan, configuration)
source = BatchSource(
    cases=[
        store.open_case(folder, name, seen, in_memory=True)
        for name in folds(folders, work["dataset"])[0].train
    ],
    configuration=configuration,
    seed=0,
    fold="0",
    batch_size=configuration.batch_size,
    device=torch.device("cpu"),
    augmentation=plan_augmentation(
        configuration.patch_size, configuration.architecture.dimensions
    ),
)
strides = configuration.architecture.strides
shares, started = [], 0.0
for number, (image, labels, *_) in enumerate(
    make_batches(source, 0, range(work["warm_up"] + work["batches"]), workers=work["workers"])
):
    z, y, x = 1, 1, 1
    for stride in strides[1:-1]:
        z, y, x = z * stride[0], y * stride[1], x * stride[2]
        lower = labels[:, z // 2 :: z, y // 2 :: y, x // 2 :: x].contiguous()
    if number == work["warm_up"] - 1:
        started = time.perf_counter()
    shares.append([float((labels == each).float().mean()) for each in (1, 2)])
    shares[-1] += [float(image.mean()), float(image.std())]
seconds = time.perf_counter() - started
figures = [sum(column) / len(shares) for column in zip(*shares)]
print(json.dumps({"seconds": seconds, "batch": configuration.batch_size, "figures": figures}))
"""
PEERS = """
import json, os, sys, time
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

if __name__ == "__main__":
    work = json.loads(sys.argv[1])
    base = os.path.join(os.environ["nnUNet_preprocessed"], work["dataset"])
    plans = load_json(os.path.join(base, "nnUNetPlans.json"))
    plans["continue_training"] = False
    trainer = nnUNetTrainer(
        plans, work["configuration"], 0, load_json(os.path.join(base, "dataset.json")),
        device=torch.device("cpu"),
    )
    trainer._set_batch_size_and_oversample()
    batches, _ = trainer.get_dataloaders()
    shares, started = [], 0.0
    for number in range(work["warm_up"] + work["batches"]):
        batch = next(batches)
        if number == work["warm_up"] - 1:
            started = time.perf_counter()
        labels, image = batch["target"][0], batch["data"]
        shares.append([float((labels == each).float().mean()) for each in (1, 2)])
        shares[-1] += [float(image.mean()), float(image.std())]
    seconds = time.perf_counter() - started
    figures = [sum(column) / len(shares) for column in zip(*shares)]
    print(json.dumps({"seconds": seconds, "batch": trainer.batch_size, "figures": figures}))
    sys.stdout.flush()
    os._exit(0)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a row loads."""

    configuration: str
    warm_up: int  # batches; more than the peer holds ready
    batches: int  # timed


WORKS = (
    Work(configuration="3d_fullres", warm_up=14, batches=60),
    Work(configuration="2d", warm_up=12, batches=24),
)


def main() -> int:
    """Run both rows."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="python of a venv with nnunetv2")
    parser.add_argument("--shared", type=Path, default=os.environ.get("NNSEG_SHARED"))
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    parser.add_argument("--workers", type=int, default=2, help="of our loader; 0 makes none")
    args = parser.parse_args()
    if args.shared is None:
        parser.error("--shared: name the folder of data/ and reference/, or set NNSEG_SHARED")
    root = Path(tempfile.mkdtemp(prefix="nnseg-bench-"))
    try:
        (root / "raw").mkdir()
        (root / "raw" / DATASET).symlink_to(Path(args.shared) / "data" / DATASET)
        prepare(root, args.peer)
        rows = [compare(root, args.peer, work, args.repeats, args.workers) for work in WORKS]
        return report(rows, args.peer)
    finally:
        shutil.rmtree(root)


def peer_env(root: Path) -> dict[str, str]:
    """Give the peer's folders and the number of its loader's processes."""
    return THREADS | {
        "nnUNet_raw": str(root / "raw"),
        "nnUNet_preprocessed": str(root / "peer"),
        "nnUNet_results": str(root / "results"),
        "nnUNet_n_proc_DA": "2",
    }


def prepare(root: Path, peer: str) -> None:
    """Have both sides plan and preprocess."""
    (root / "results").mkdir()
    configurations = ["-c", "2d", "3d_fullres"]
    mine = Path(sys.executable).with_name("nnseg_plan_and_preprocess")
    theirs = Path(peer).with_name("nnUNetv2_plan_and_preprocess")
    measure([str(mine), "-d", "4", *configurations, "--root", str(root)])
    measure(
        [str(theirs), "-d", "4", *configurations, "-npfp", "2", "-np", "2", "2"],
        env=peer_env(root),
    )


def compare(root: Path, peer: str, work: Work, repeats: int, workers: int) -> Row:
    """Load the same batches by both sides."""
    order = json.dumps(
        {
            "root": str(root),
            "dataset": DATASET,
            "configuration": work.configuration,
            "warm_up": work.warm_up,
            "batches": work.batches,
            "workers": workers,
        }
    )
    ours, theirs = alternate(
        lambda: measure([sys.executable, "-c", OURS, order], env=THREADS),
        lambda: measure([peer, "-c", PEERS, order], env=peer_env(root)),
        repeats,
        warm_up=False,
    )
    sizes = {run.result["batch"] for run in (*ours, *theirs)}
    mine, others = (_means(runs) for runs in (ours, theirs))
    apart = max(abs(a - b) for a, b in zip(mine, others, strict=True))
    samples = max(sizes) * work.batches
    return Row(
        name=f"loader and augmentation, {samples} samples",
        data=f"hippocampus {work.configuration}, batch {'/'.join(map(str, sorted(sizes)))}",
        ours=ours,
        peers=theirs,
        gate=f"mean, deviation and label shares at most {apart:.2g} apart",
        passed=len(sizes) == 1 and apart < SHAPE_ALLOWED,
    )


def _means(runs: tuple[Run, ...]) -> list[float]:
    """Average the figures of the batches over runs."""
    figures = [run.result["figures"] for run in runs]
    return [sum(column) / len(figures) for column in zip(*figures, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
