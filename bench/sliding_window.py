"""The sliding window alone: one case of 27 tiles, one fold, all mirrors, the same weights.

    python bench/sliding_window.py --peer PYTHON --shared DIR [--model MODEL] [--repeats N]
        [--quick]

Preprocessed in, logits out; loading a model and deciding on labels count for neither side. Ours
runs in the precision that it chooses and in fp32, the peer in fp32, as it does on a CPU. The image
is put together of eight hippocampus images, each a tile. MODEL is as for predict_folder.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from parity_predict import CHOSEN, FP32, THREADS, compare_labels
from predict_folder import DATASET, SameModel, parse_model_arguments, take_model
from timing import Row, Run, alternate, measure, report

from nnseg.axes import Image, Shape
from nnseg.dataset import find_cases
from nnseg.inference import load_model
from nnseg.volume import read_image

# Both read the work as JSON from their argument, and print the seconds of the work alone. A tile
# goes first, so that what is loaded at the first call counts for neither.
OURS = """
import json, sys, time
from pathlib import Path
import numpy as np
from nnseg.inference import load_model
from nnseg.predict import Sweep
work = json.loads(sys.argv[1])
chosen = None if work["precision"] == "chosen" else work["precision"]
fold = Path(work["model"]) / ("fold_" + work["fold"])
model = load_model([fold], work["kind"], precision=chosen, alone=True)
image = np.load(work["image"])
z, y, x = model.configuration.patch_size
sweep = Sweep(mirror=work["mirror"])
for planes in model.logits(image[:, :z, :y, :x], sweep=Sweep(mirror=False)):
    pass
started = time.perf_counter()
labels = np.concatenate([planes.argmax(axis=-1) for planes in model.logits(image, sweep=sweep)])
seconds = time.perf_counter() - started
np.save(work["output"], labels)
print(json.dumps({"seconds": seconds, "precision": model.execution.precision}))
"""
PEERS = """
import json, sys, time
import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
work = json.loads(sys.argv[1])
predictor = nnUNetPredictor(
    use_mirroring=work["mirror"], device=torch.device("cpu"), allow_tqdm=False
)
predictor.initialize_from_trained_model_folder(
    work["model"], (work["fold"],), f"checkpoint_{work['kind']}.pth"
)
image = torch.from_numpy(np.load(work["image"]))
patch = predictor.configuration_manager.patch_size
patch = [1] * (3 - len(patch)) + list(patch)
predictor.use_mirroring = False
predictor.predict_logits_from_preprocessed_data(image[:, : patch[0], : patch[1], : patch[2]])
predictor.use_mirroring = work["mirror"]
started = time.perf_counter()
logits = predictor.predict_logits_from_preprocessed_data(image)
seconds = time.perf_counter() - started
np.save(work["output"], logits.numpy().argmax(axis=0))
print(json.dumps({"seconds": seconds}))
"""


def main() -> int:
    """Run both rows."""
    args = parse_model_arguments(__doc__)
    with tempfile.TemporaryDirectory(prefix="nnseg-bench-") as name:
        folder = Path(name)
        model = take_model(args, folder)
        image = mosaic(args.shared / "data" / DATASET / "imagesTr", model, quick=args.quick)
        np.save(folder / "image.npy", image)
        rows = [
            compare(folder, args, model, image.shape, precision) for precision in (CHOSEN, FP32)
        ]
    return report(rows, args.peer)


def mosaic(source: Path, model: SameModel, *, quick: bool) -> Image:
    """Put eight preprocessed images together, so that three tiles lie along each axis.

    Returns:
        (channel, z, y, x). Each image is cut to a tile or padded with 0. With `quick` there are
        two, and three tiles in all.
    """
    prepared = load_model([model.ours / f"fold_{model.fold}"], model.kind, alone=True)
    patch = prepared.configuration.patch_size
    if prepared.configuration.is_2d or prepared.configuration.previous:
        sys.exit(f"{model.theirs.source} is {prepared.configuration.name}; give a 3D model, alone")
    counts = (2, 1, 1) if quick else (2, 2, 2)
    cases = iter(find_cases(source, None, model.spec))

    def one() -> NDArray[np.float32]:
        volume = read_image(next(cases).images)
        image, _ = prepared.prepare(volume.image, volume.geometry.spacing)
        return fitted(image, patch)

    rows = [
        [np.concatenate([one() for _ in range(counts[2])], axis=3) for _ in range(counts[1])]
        for _ in range(counts[0])
    ]
    return np.concatenate([np.concatenate(row, axis=2) for row in rows], axis=1)


def fitted(image: Image, shape: Shape) -> Image:
    """Cut an image (channel, z, y, x) to `shape` from its first voxel on, or pad it with 0."""
    result = np.zeros((len(image), *shape), np.float32)
    z, y, x = (min(a, b) for a, b in zip(image.shape[1:], shape, strict=True))
    result[:, :z, :y, :x] = image[:, :z, :y, :x]
    return result


def compare(
    folder: Path,
    args: argparse.Namespace,
    model: SameModel,
    shape: tuple[int, ...],
    precision: str,
) -> Row:
    """Predict the image by both sides in turn, ours in one precision."""

    def run(python: str, program: str, side: str, source: str) -> Run:
        work = {
            "model": source,
            "fold": model.fold,
            "kind": model.kind,
            "image": str(folder / "image.npy"),
            "output": str(folder / f"{side}.npy"),
            "precision": precision,
            "mirror": not args.quick,
        }
        return measure([python, "-c", program, json.dumps(work)], env=THREADS)

    ours, peers = alternate(
        lambda: run(sys.executable, OURS, "ours", str(model.ours)),
        lambda: run(args.peer, PEERS, "peer", model.theirs.source),
        args.repeats,
        warm_up=False,
    )
    labels = model.theirs.plan.labels.consecutive
    pair = np.load(folder / "ours.npy"), np.load(folder / "peer.npy")
    agreement = compare_labels([pair], labels)
    used = ours[0].result["precision"]
    return Row(
        name="sliding window",
        data=f"{'x'.join(map(str, shape[1:]))}, {model.theirs.configuration_name} of hippocampus, "
        f"{'3 tiles, no' if args.quick else '27 tiles, all'} mirrors, ours in {used}",
        ours=ours,
        peers=peers,
        gate=agreement.describe(),
        passed=agreement.is_exact if used == FP32 else agreement.is_close,
    )


if __name__ == "__main__":
    sys.exit(main())
