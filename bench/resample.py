"""Resampling of images and label maps, from array to array, as preprocessing calls it."""

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from timing import Row, Run, alternate, measure, parse_arguments, report

SHAPE, NEW_SHAPE = (128, 256, 256), (160, 320, 320)
THICK, NEW_THICK = (32, 256, 256), (40, 320, 320)
ALLOWED = 1e-6  # of the range
TIED = 1e-5  # share of the voxels that may differ in label maps: exact ties

# Both read the work as JSON from their argument, and print the seconds of the work alone. A small
# array goes first, so that what is loaded at the first call counts for neither.
OURS = """
import json, sys, time
import numpy as np
from nnseg.image.resample import resample_image, resample_segmentation
work = json.loads(sys.argv[1])
array = np.load(work["input"])
def resample(array, shape):
    if work["labels"]:
        return resample_segmentation(array[0], shape, work["axis"])[None]
    return resample_image(array, shape, work["axis"])
resample(array[:, :8, :8, :8], (9, 9, 9))
seconds = []
for _ in range(work["times"]):
    started = time.perf_counter()
    result = resample(array, tuple(work["shape"]))
    seconds.append(time.perf_counter() - started)
np.save(work["output"], result)
print(json.dumps({"seconds": min(seconds)}))
"""
PEERS = """
import json, sys, time
import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg
work = json.loads(sys.argv[1])
array = np.load(work["input"])
def resample(array, shape):
    return resample_data_or_seg(
        array, shape, is_seg=work["labels"], axis=work["axis"],
        order=1 if work["labels"] else 3, do_separate_z=work["axis"] is not None, order_z=0,
    )
resample(array[:, :8, :8, :8], (9, 9, 9))
seconds = []
for _ in range(work["times"]):
    started = time.perf_counter()
    result = resample(array, work["shape"])
    seconds.append(time.perf_counter() - started)
np.save(work["output"], result)
print(json.dumps({"seconds": min(seconds)}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a row resamples."""

    name: str
    channels: int = 1
    labels: int = 0  # of a label map; 0 is an image
    axis: int | None = None
    repeats: int | None = None  # pairs; None is what the command line says
    times: int = 3  # that each program does it, of which the best counts

    @property
    def shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Shapes before and after."""
        return (SHAPE, NEW_SHAPE) if self.axis is None else (THICK, NEW_THICK)


WORKS = (
    Work(name="order 3 image"),
    Work(name="order 3 image, 4 channels", channels=4),
    Work(name="order 3 in the slices, nearest across", axis=0, times=10),
    Work(name="label map of 14", labels=14, repeats=2, times=1),
    Work(name="label map of 104", labels=104, repeats=1, times=1),
)


def main() -> int:
    """Run all rows."""
    args = parse_arguments(__doc__)
    folder = Path(tempfile.mkdtemp(prefix="nnseg-bench-"))
    try:
        rows = [compare(folder, args.peer, work, work.repeats or args.repeats) for work in WORKS]
        return report(rows, args.peer)
    finally:
        shutil.rmtree(folder)


def compare(folder: Path, peer: str, work: Work, repeats: int) -> Row:
    """Resample the same array by both sides."""
    shape, new_shape = work.shapes
    array = draw(work, shape)
    np.save(folder / "input.npy", array)

    def run(python: str, program: str, side: str) -> Run:
        order = {
            "input": str(folder / "input.npy"),
            "output": str(folder / f"{side}.npy"),
            "shape": new_shape,
            "axis": work.axis,
            "labels": bool(work.labels),
            "times": work.times,
        }
        argv = [python, "-c", program, json.dumps(order)]
        return measure(argv, env={"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"})

    first, second = alternate(
        lambda: run(sys.executable, OURS, "ours"),
        lambda: run(peer, PEERS, "peer"),
        repeats,
        warm_up=False,
    )
    mine, theirs = np.load(folder / "ours.npy"), np.load(folder / "peer.npy")
    if work.labels:
        share = float((mine != theirs).mean())
        gate, passed = f"{share:.2g} of the voxels differ", share <= TIED
    else:
        error = float(np.abs(mine - theirs).max() / np.ptp(array))
        gate, passed = f"largest error {error:.1g} of the range", error <= ALLOWED
    size = "x".join(map(str, shape)) + " to " + "x".join(map(str, new_shape))
    return Row(name=work.name, data=size, ours=first, peers=second, gate=gate, passed=passed)


def draw(work: Work, shape: tuple[int, int, int]) -> "np.ndarray[tuple[int, ...], np.dtype]":
    """Draw a smooth image, or a label map of blobs as large as organs, (channel, z, y, x)."""
    rng = np.random.default_rng(0)
    if not work.labels:
        return rng.normal(size=(work.channels, *shape)).astype(np.float32)
    centres = rng.uniform(0, 1, (work.labels * 2, 3)) * shape
    radii = rng.uniform(0.04, 0.12, work.labels * 2) * min(shape)
    labels = np.zeros(shape, np.int16)
    grid = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij", sparse=True)
    for number, (centre, radius) in enumerate(zip(centres, radii, strict=True)):
        inside = sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) < radius**2
        labels[inside] = number % work.labels + 1
    return labels[None]


if __name__ == "__main__":
    sys.exit(main())
