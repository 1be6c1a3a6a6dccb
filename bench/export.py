"""Logits at half resolution to a label file: 3, 14 and 118 classes, as after a sliding window.

Both sides begin with the same fp16 logits in memory, as nnunetv2's predictor leaves them, and end
with a compressed file on the grid of the image; ours takes them some planes at a time. nnunetv2
keeps the resampled logits in fp16, too, and there two labels may tie that are apart: the gate tells
such voxels, by the logits in fp64, from real differences.

    python bench/export.py --peer PYTHON [--repeats N] [--rows N ...] [--quick]
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from timing import Row, Run, alternate, measure, report

from nnseg import record
from nnseg.axes import Shape, Spacing
from nnseg.commit import write_whole
from nnseg.dataset import DatasetSpec, spec_to_json
from nnseg.exchange.nnunet_writing import plans_to_json
from nnseg.fingerprint import Fingerprint
from nnseg.image.grids import linear_pairs, mixed_cells
from nnseg.image.intensity import Intensity
from nnseg.labels import Labels
from nnseg.plan import Plan, make_plan
from nnseg.volume import read_segmentation

SPACING: Spacing = (1.5, 0.8, 0.8)  # mm of the image; logits have twice that
CONFIGURATION = "3d_fullres"
ALLOWED = 1e-5  # share of the voxels that may differ, ties of fp16 aside
QUICK = 4  # times shorter along each axis
STEEPNESS = 1.5  # of logits at a surface, a voxel
FP16 = 2.0**-10  # relative; the distance of two of its numbers
THREADS = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}

OURS = """
import json, sys, time
from pathlib import Path
import numpy as np
from nnseg import record
from nnseg.plan import Plan
from nnseg.preprocess import Placement
from nnseg.restore import restore
from nnseg.volume import simple_geometry, write
work = json.loads(sys.argv[1])
plan = record.load(Plan, Path(work["folder"]) / "plan.json")
spacing = tuple(work["spacing"])
def export(logits, shape, file):
    placement = Placement(
        order=plan.order, shape=shape, spacing=spacing, box=tuple((0, n) for n in shape),
        shape_resampled=logits.shape[:3],
    )
    depth = max(1, 2**25 // (4 * logits[0].size))  # as many planes as prediction hands on at once
    runs = (logits[z : z + depth].astype(np.float32) for z in range(0, len(logits), depth))
    labels = restore(runs, placement, plan.labels, plan.configuration(work["configuration"]))
    write(Path(work["folder"]) / file, labels, simple_geometry(shape, spacing))
logits = np.load(work["folder"] + "/ours.npy")
export(logits[:4, :4, :4], (8, 8, 8), "warm.nii.gz")
started = time.perf_counter()
export(logits, tuple(work["shape"]), "ours.nii.gz")
print(json.dumps({"seconds": time.perf_counter() - started}))
"""
PEERS = """
import json, sys, time
import numpy as np
import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
work = json.loads(sys.argv[1])
manager = PlansManager(work["folder"] + "/plans.json")
def export(logits, shape, file):
    properties = {
        "spacing": work["spacing"], "shape_before_cropping": tuple(shape),
        "bbox_used_for_cropping": [[0, n] for n in shape],
        "shape_after_cropping_and_before_resampling": tuple(shape),
        "sitk_stuff": {
            "spacing": work["spacing"][::-1], "origin": (0.0, 0.0, 0.0),
            "direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        },
    }
    export_prediction_from_logits(
        logits, properties, manager.get_configuration(work["configuration"]), manager,
        work["folder"] + "/dataset.json", work["folder"] + "/" + file, num_threads_torch=2,
    )
logits = np.load(work["folder"] + "/peer.npy")
export(logits[:, :4, :4, :4], (8, 8, 8), "warm")
started = time.perf_counter()
export(logits, work["shape"], "peer")
print(json.dumps({"seconds": time.perf_counter() - started}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a row exports."""

    heads: int
    shape: Shape  # of the label file
    blobs: int  # of each head
    radius: tuple[float, float]  # of a blob, of the shortest edge


WORKS = (
    Work(heads=3, shape=(300, 512, 512), blobs=45, radius=(0.04, 0.12)),
    Work(heads=14, shape=(300, 512, 512), blobs=6, radius=(0.04, 0.12)),
    Work(heads=118, shape=(150, 256, 256), blobs=1, radius=(0.04, 0.10)),
)


def main() -> int:
    """Run all rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="python of a venv with nnunetv2")
    parser.add_argument("--repeats", type=int, default=1, help="pairs of runs")
    parser.add_argument("--rows", type=int, nargs="+", help="classes; all three if left out")
    parser.add_argument("--quick", action="store_true", help="small shapes: to see that it runs")
    args = parser.parse_args()
    rows = []
    for work in WORKS:
        if args.rows is None or work.heads in args.rows:
            with tempfile.TemporaryDirectory(prefix="nnseg-bench-") as folder:
                rows.append(compare(Path(folder), args.peer, work, args.repeats, quick=args.quick))
    return report(rows, args.peer)


def compare(folder: Path, peer: str, work: Work, repeats: int, *, quick: bool) -> Row:
    """Export the same logits by both sides, and compare the label files."""
    z, y, x = work.shape
    shape = (z // QUICK // 2 * 2, y // QUICK, x // QUICK) if quick else work.shape
    logits = draw_logits(work, (shape[0] // 2, shape[1] // 2, shape[2] // 2))
    mixed = float(mixed_cells(logits.argmax(axis=0), (0, 1, 2)).mean())
    np.save(folder / "peer.npy", logits)
    np.save(folder / "ours.npy", np.ascontiguousarray(np.moveaxis(logits, 0, -1)))
    save_plan(folder, synthetic_plan(work.heads))
    order = {
        "folder": str(folder),
        "shape": shape,
        "spacing": SPACING,
        "configuration": CONFIGURATION,
    }

    def run(python: str, program: str) -> Run:
        return measure([python, "-c", program, json.dumps(order)], env=THREADS)

    ours, peers = alternate(
        lambda: run(sys.executable, OURS),
        lambda: run(peer, PEERS),
        repeats,
        warm_up=False,
    )
    mine, _ = read_segmentation(folder / "ours.nii.gz")
    theirs, _ = read_segmentation(folder / "peer.nii.gz")
    differing = np.argwhere(mine != theirs)
    ties = count_ties(logits, shape, mine, theirs, differing)
    beyond = (len(differing) - ties) / mine.size
    edges = "x".join(map(str, (*shape[1:], shape[0])))
    return Row(
        name="logits to a label file",
        data=f"{work.heads} classes, {edges}, fp16 logits {logits.nbytes / 2**20:.0f} MiB at half "
        f"resolution, labels meet in {mixed:.1%} of their cells",
        ours=ours,
        peers=peers,
        gate=f"{len(differing) / mine.size:.2g} of the voxels differ, {beyond:.2g} but for ties "
        "of fp16",
        passed=beyond <= ALLOWED,
    )


def synthetic_plan(heads: int, shape: Shape = (300, 512, 512)) -> Plan:
    """Plan a CT of `shape` and SPACING whose network sees it at half resolution, as it is scaled.

    Its intensities have the mean 0 and the deviation 1, so that the network sees those of the file.
    """
    names: dict[str, int | tuple[int, ...]] = {"background": 0}
    names.update({f"organ_{n}": n for n in range(1, heads)})
    labels = Labels(labels=names)
    spec = DatasetSpec(channels=("CT",), labels=labels, num_training=20, file_ending=".nii.gz")
    unscaled = Intensity(
        mean=0.0,
        median=0.0,
        std=1.0,
        min=-1e4,
        max=1e4,
        percentile_00_5=-1e4,
        percentile_99_5=1e4,
    )
    fingerprint = Fingerprint(
        spacings=(SPACING,), shapes=(shape,), intensities=(unscaled,), median_relative_size=1.0
    )
    z, y, x = SPACING
    return make_plan(
        spec, fingerprint, dataset="Dataset902_Synthetic", target_spacing=(2 * z, 2 * y, 2 * x)
    )


def save_plan(folder: Path, plan: Plan) -> None:
    """Write plan.json for ours, plans.json and dataset.json for the peer."""
    record.save(plan, folder / "plan.json")
    spec = DatasetSpec(
        channels=plan.channels, labels=plan.labels, num_training=20, file_ending=plan.file_ending
    )
    for name, data in (("plans", plans_to_json(plan)), ("dataset", spec_to_json(spec))):
        write_whole(folder / f"{name}.json", record.json_text(data).encode())


def draw_logits(work: Work, shape: Shape) -> NDArray[np.float16]:
    """Draw logits (head, z, y, x): ellipsoids whose logits fall off across their surfaces."""
    rng = np.random.default_rng(0)
    logits = np.empty((work.heads, *shape), np.float16)
    for head, field in enumerate(logits):
        lowest = 0.0 if head == 0 else -8.0
        noise = rng.normal(lowest, 0.2, shape)
        blobs = draw_ellipsoids(rng, shape, work.blobs, work.radius) if head else ()
        for box, inside in blobs:
            noise[box] = np.maximum(noise[box], np.clip(STEEPNESS * inside, -8, 8))
        field[:] = noise
    return logits


def draw_ellipsoids(
    rng: np.random.Generator, shape: Shape, count: int, radius: tuple[float, float]
) -> list[tuple[tuple[slice, ...], NDArray[np.float64]]]:
    """Draw ellipsoids: of each a box, and how many voxels deep in it the box's voxels lie."""
    found = []
    for _ in range(count):
        centre = rng.uniform(0.1, 0.9, 3) * shape
        radii = np.maximum(rng.uniform(*radius, 3) * min(shape), 1.5)
        low = np.maximum(np.floor(centre - radii - 6), 0).astype(int)
        high = np.minimum(np.ceil(centre + radii + 6), shape).astype(int)
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        grid = np.ogrid[box]
        away = sum((g - c) ** 2 / r**2 for g, c, r in zip(grid, centre, radii, strict=True))
        found.append((box, (1 - np.sqrt(away)) * radii.mean()))
    return found


def count_ties(
    logits: NDArray[np.float16],
    shape: Shape,
    first: NDArray[np.integer],
    second: NDArray[np.integer],
    places: NDArray[np.integer],
) -> int:
    """Count the places where the logits of two labels are nearer than fp16 can tell.

    Args:
        logits: (head, z, y, x), at the lower resolution.
        shape: Of the label maps.
        first: A label map.
        second: Another one.
        places: Where they differ, (place, axis).
    """
    values = [
        np.array([at_place(logits[labels[tuple(place)]], shape, place) for place in places])
        for labels in (first, second)
    ]
    largest = np.maximum(*map(np.abs, values))
    return int((np.abs(values[0] - values[1]) <= largest * FP16).sum())


def at_place(field: NDArray[np.float16], shape: Shape, place: Sequence[int]) -> float:
    """Interpolate one head's logits linearly at a voxel of a grid of `shape`, in fp64."""
    part = field
    for size, new_size, at in zip(field.shape, shape, place, strict=True):
        pairs = linear_pairs(size, new_size)
        lower, upper = pairs.inputs[:, at]
        part = part[lower] * pairs.weights[0, at] + part[upper] * pairs.weights[1, at]
    return float(part)


if __name__ == "__main__":
    sys.exit(main())
