"""200 steps of the planned hippocampus network on real patches: bf16 beside fp32, loss by loss.

    python bench/parity_precision.py --shared DIR [--steps N] [--configuration NAME]

Both trainings have the same seed, batches and recipe. The loss is compared epoch by epoch, as a
share of how far that of fp32 is from the best loss there is, -1.
"""

import os
import shutil
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

from nnseg import pipeline
from nnseg.folders import Folders
from nnseg.learning.recipe import TrainSettings

DATASET = "Dataset004_Hippocampus"
ITERATIONS = 20  # steps an epoch
ALLOWED = 0.01  # of the distance to the best loss, in the last epoch


def main() -> int:
    """Train twice and compare."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=os.environ.get("NNSEG_SHARED"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--configuration", default="3d_fullres")
    args = parser.parse_args()
    if args.shared is None:
        parser.error("--shared: name the folder of data/ and reference/, or set NNSEG_SHARED")
    root = Path(tempfile.mkdtemp(prefix="nnseg-bench-"))
    try:
        (root / "raw").mkdir()
        (root / "raw" / DATASET).symlink_to(Path(args.shared) / "data" / DATASET)
        folders = Folders.of_root(root)
        pipeline.plan_and_preprocess(folders, DATASET, (args.configuration,))
        half, full = (
            losses(folders, args.configuration, args.steps, kind) for kind in ("bf16", "fp32")
        )
    finally:
        shutil.rmtree(root)
    apart = [(a - b) / (b + 1) for a, b in zip(half, full, strict=True)]
    for number, (a, b, share) in enumerate(zip(half, full, apart, strict=True), 1):
        print(f"step {number * ITERATIONS}: bf16 {a:.4f}, fp32 {b:.4f}, {share:+.2%}")
    return 0 if abs(apart[-1]) <= ALLOWED else 1


def losses(folders: Folders, configuration: str, steps: int, precision: str) -> list[float]:
    """Give the mean loss of each epoch of a training."""
    found: list[float] = []
    settings = TrainSettings(
        epochs=steps // ITERATIONS, iterations=ITERATIONS, validation_iterations=1
    )
    pipeline.train(
        folders,
        DATASET,
        configuration,
        "0",
        settings=settings,
        device="cpu",
        precision=precision,
        overwrite=True,
        validate_after=False,
        on_epoch=lambda epoch: found.append(epoch.loss),
    )
    return found


if __name__ == "__main__":
    sys.exit(main())
