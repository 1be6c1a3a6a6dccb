"""One whole epoch of 20 training steps and 4 of validation: loader, augmentation, network, record.

    python bench/epoch.py --peer PYTHON --shared DIR [--repeats N]

Both sides train hippocampus at the plan's batch of 8 GB for two epochs, by their own code and with
nnU-Net's recipe; the second epoch is timed, with its plots and tables. Ours writes checkpoints,
those of the peer are off. The peer's loader has two processes.
"""

import json
import os
import shutil
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

from loader import DATASET, peer_env, prepare
from timing import Row, alternate, measure, report

CONFIGURATIONS = ("3d_fullres", "2d")
STEPS, VALIDATION_STEPS = 20, 4

OURS = """
import json, shutil, sys, time
from pathlib import Path
from nnseg import pipeline
from nnseg.folders import Folders
from nnseg.learning.recipe import TrainSettings
work = json.loads(sys.argv[1])
folders = Folders.of_root(Path(work["root"]))
ends, losses = [], []
def note(epoch):
    ends.append(time.perf_counter())
    losses.append(epoch.loss)
settings = TrainSettings(
    epochs=2, iterations=work["steps"], validation_iterations=work["validation_steps"]
)
folder = pipeline.train(
    folders, work["dataset"], work["configuration"], "0", settings=settings, device="cpu",
    validate_after=False, overwrite=True, on_epoch=note,
)
shutil.rmtree(folder)
print(json.dumps({"seconds": ends[1] - ends[0], "losses": losses}))
"""
PEERS = """
import json, os, sys, time
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

ends, losses = [], []

class Timed(nnUNetTrainer):
    def on_epoch_end(self):
        super().on_epoch_end()
        ends.append(time.perf_counter())
        losses.append(float(self.logger.get_value("train_losses", step=-1)))

if __name__ == "__main__":
    work = json.loads(sys.argv[1])
    base = os.path.join(os.environ["nnUNet_preprocessed"], work["dataset"])
    plans = load_json(os.path.join(base, "nnUNetPlans.json"))
    plans["continue_training"] = False
    trainer = Timed(
        plans, work["configuration"], 0, load_json(os.path.join(base, "dataset.json")),
        device=torch.device("cpu"),
    )
    trainer.num_epochs = 2
    trainer.num_iterations_per_epoch = work["steps"]
    trainer.num_val_iterations_per_epoch = work["validation_steps"]
    trainer.disable_checkpointing = True
    trainer.run_training()
    print(json.dumps({"seconds": ends[1] - ends[0], "losses": losses}))
    sys.stdout.flush()
    os._exit(0)
"""


def main() -> int:
    """Run both rows."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="python of a venv with nnunetv2")
    parser.add_argument("--shared", type=Path, default=os.environ.get("NNSEG_SHARED"))
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    args = parser.parse_args()
    if args.shared is None:
        parser.error("--shared: name the folder of data/ and reference/, or set NNSEG_SHARED")
    root = Path(tempfile.mkdtemp(prefix="nnseg-bench-"))
    try:
        (root / "raw").mkdir()
        (root / "raw" / DATASET).symlink_to(Path(args.shared) / "data" / DATASET)
        prepare(root, args.peer)
        rows = [compare(root, args.peer, name, args.repeats) for name in CONFIGURATIONS]
        return report(rows, args.peer)
    finally:
        shutil.rmtree(root)


def compare(root: Path, peer: str, configuration: str, repeats: int) -> Row:
    """Train two epochs by both sides."""
    order = json.dumps(
        {
            "root": str(root),
            "dataset": DATASET,
            "configuration": configuration,
            "steps": STEPS,
            "validation_steps": VALIDATION_STEPS,
        }
    )
    ours, theirs = alternate(
        lambda: measure([sys.executable, "-c", OURS, order], env={"OMP_NUM_THREADS": "2"}),
        lambda: measure([peer, "-c", PEERS, order], env=peer_env(root)),
        repeats,
        warm_up=False,
    )
    fell = all(run.result["losses"][1] < run.result["losses"][0] for run in (*ours, *theirs))
    ends = [sum(run.result["losses"][1] for run in runs) / len(runs) for runs in (ours, theirs)]
    return Row(
        name=f"whole epoch, {STEPS} steps",
        data=f"hippocampus {configuration}, the plan's batch",
        ours=ours,
        peers=theirs,
        gate=f"mean loss of the second epoch {ends[0]:.3f}, the peer's {ends[1]:.3f}; all fell",
        passed=fell,
    )


if __name__ == "__main__":
    sys.exit(main())
