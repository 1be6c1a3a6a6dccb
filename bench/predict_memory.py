"""Peak memory of predicting a large scan, from file to file, and how it grows.

    python bench/predict_memory.py --peer PYTHON [--rows NAME ...] [--peer-gb X] [--patch Z Y X]
        [--quick]

The network is stubbed on both sides: its logits say how far a voxel's intensity is from that of
each organ. So a run takes seconds a tile, and the labels are known. Memory is that of all
processes together. The peer runs where its arrays fit into the memory that is free, or into
--peer-gb; elsewhere they are added up.
"""

import argparse
import json
import math
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from export import CONFIGURATION, SPACING, THREADS, draw_ellipsoids, save_plan, synthetic_plan
from scipy.ndimage import maximum_filter, minimum_filter
from timing import OUR_PACKAGES, PEER_PACKAGES, Run, measure, processor, versions

from nnseg.axes import Mask, Segmentation, Shape, three
from nnseg.plan import Plan
from nnseg.volume import read_segmentation, simple_geometry, write

STEP = 8  # of the intensity from one organ to the next
BLOBS = 60  # ellipsoids in an image, at least one of each organ
RADIUS = (0.06, 0.2)  # of an ellipsoid, of the shortest edge
ALLOWED = 1e-4  # share of the labels that differ from the peer's: both round their sums to fp16
REACH = 4  # voxels from a surface to where resampling blurs it
ALLOWED_INSIDE = 1e-4  # share of the labels further inside that differ from those drawn
QUICK_SURFACE = 4  # times the share of the voxels that lie at surfaces, where images are small
ALLOWED_FOLDS = 1.10  # memory of five folds beside one
ALLOWED_GROWTH = 1.2e9  # bytes over the imports, of the row `cube`
FREE_SHARE = 0.8  # of the free memory that the peer may take

# What both sides share: the work as JSON, and the stub.
COMMON = """
import json, sys, time
from pathlib import Path
import torch
work = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
class Stub(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.centres = work["step"] * torch.arange(work["heads"]).float().view(-1, 1, 1, 1)
    def forward(self, batch, levels=0):
        logits = batch - self.centres
        logits.abs_().mul_(-0.5).clamp_(min=-10)
        return [logits] if levels else logits
"""
OURS = (
    COMMON
    + """
from nnseg import record
from nnseg.ensemble import Member
from nnseg.inference import Model
from nnseg.model.device import Execution
from nnseg.plan import Plan
from nnseg.verbs.predicting import predict
from nnseg.predictor import Predictor
seconds = 0.0
if work["heads"]:
    plan = record.load(Plan, Path(work["folder"]) / "plan.json")
    model = Model(
        plan=plan, configuration=plan.configuration(work["configuration"]),
        networks=tuple(Stub() for _ in range(work["folds"])), mirror_axes=(),
        execution=Execution(device="cpu", precision="bf16", channels_last=False),
        weights_sha256=("stub",) * work["folds"],
    )
    started = time.perf_counter()
    predict(Predictor(members=(Member(model=model),)), Path(work["images"]), Path(work["output"]))
    seconds = time.perf_counter() - started
status = Path("/proc/self/status").read_text()
peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
print(json.dumps({"seconds": seconds, "peak": peak}))
"""
)
PEERS = (
    COMMON
    + """
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
if __name__ == "__main__":
    manager = PlansManager(work["folder"] + "/plans.json")
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        Stub(), manager, manager.get_configuration(work["configuration"]), [{}] * work["folds"],
        json.load(open(work["folder"] + "/dataset.json")), "nnUNetTrainer", None,
    )
    started = time.perf_counter()
    predictor.predict_from_files(
        work["images"], work["output"], num_processes_preprocessing=1,
        num_processes_segmentation_export=1,
    )
    print(json.dumps({"seconds": time.perf_counter() - started}))
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One image, and how it is predicted."""

    row: str  # a key of ROWS
    heads: int
    shape: Shape
    folds: int = 1
    resampled: bool = True  # the network sees it at half resolution, else as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all images have in common."""

    peer: str  # its python
    limit: float  # bytes that its arrays may take
    patch: Shape | None  # None is the planner's
    base: int  # bytes of ours after the imports
    surface: float  # share of the voxels that lie at surfaces, beside that of FULL


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What both sides took."""

    work: Work
    patch: Shape
    ours: Run
    base: int  # bytes of ours after the imports
    peer: Run | None
    arrays: int  # bytes of the peer's arrays, added up
    gate: str
    passed: bool

    def describe(self) -> str:
        """Give the line of the table."""
        work, mib = self.work, 2**20
        growth = self.ours.bytes - self.base
        theirs = f"its arrays {self.arrays / mib:.0f} MiB, not run"
        peak, bound = self.arrays, "over "
        if self.peer is not None:
            peak, bound = self.peer.bytes, ""
            theirs = f"{peak / mib:.0f} MiB, {self.peer.seconds:.0f} s"
        edges = "x".join(map(str, (*work.shape[1:], work.shape[0])))
        cells = (
            f"memory of predict, {work.row}",
            f"{edges}, {work.heads} classes, {work.folds} fold{'s' * (work.folds > 1)}, patch "
            f"{'x'.join(map(str, self.patch))}{', at half resolution' * work.resampled}",
            f"{self.ours.bytes / mib:.0f} MiB, {growth / mib:.0f} over the imports, "
            f"{self.ours.seconds:.0f} s",
            theirs,
            f"memory {bound}/{peak / self.ours.bytes:.1f}" if self.passed else "VOID",
            self.gate,
        )
        return f"| {' | '.join(cells)} |"


def long_scans(heads: tuple[int, ...], depths: tuple[int, ...], edge: int) -> tuple[Work, ...]:
    """Give the works of images of these depths."""
    return tuple(
        Work(row="long", heads=n, shape=(depth, edge, edge)) for n in heads for depth in depths
    )


FULL = (
    *long_scans((14, 118), (200, 400, 800), 512),
    Work(row="folds", heads=14, shape=(200, 512, 512), folds=5),
    Work(row="folds", heads=118, shape=(200, 512, 512), folds=5),
    Work(row="cube", heads=100, shape=(256, 256, 256), resampled=False),
)
QUICK = (
    *long_scans((14,), (64, 128), 96),
    Work(row="folds", heads=14, shape=(64, 96, 96), folds=5),
    Work(row="cube", heads=20, shape=(64, 64, 64), resampled=False),
)
QUICK_PATCH = (32, 32, 32)
ROWS = ("long", "folds", "cube")


def main() -> int:
    """Run the rows, and say how memory grows with the length of the scan and the folds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="python of a venv with nnunetv2")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--heads", type=int, nargs="+", help="only with so many classes")
    parser.add_argument("--peer-gb", type=float, help="memory that the peer may take")
    parser.add_argument("--patch", type=int, nargs=3, help="voxels; the planner's if left out")
    parser.add_argument("--quick", action="store_true", help="small images: to see that it runs")
    args = parser.parse_args()
    small = QUICK_PATCH if args.quick else None
    setting = Setting(
        peer=args.peer,
        limit=args.peer_gb * 1e9 if args.peer_gb is not None else FREE_SHARE * free_bytes(),
        patch=three(args.patch) if args.patch else small,
        base=measure_ours(Path(), Work(row="", heads=0, shape=(1, 1, 1))).bytes,
        surface=QUICK_SURFACE if args.quick else 1,
    )
    found: list[Found] = []
    print(f"{processor()}; nnseg: {versions(sys.executable, OUR_PACKAGES)}")
    print(f"peer: {versions(args.peer, PEER_PACKAGES)}")
    print("| row | data | nnseg | peer | ratio | gate |\n| --- | --- | --- | --- | --- | --- |")
    for work in QUICK if args.quick else FULL:
        if work.row in args.rows and (args.heads is None or work.heads in args.heads):
            with tempfile.TemporaryDirectory(prefix="nnseg-bench-") as folder:
                one = compare(Path(folder), setting, work, found)
            found.append(one)
            print(one.describe(), flush=True)
    for line in slopes(found):
        print(line)
    return 0 if all(one.passed for one in found) else 1


def compare(folder: Path, setting: Setting, work: Work, before: list[Found]) -> Found:
    """Predict an image by both sides, and hold the label maps against what was drawn."""
    plan = plan_of(work, setting.patch)
    save_plan(folder, plan)
    drawn = draw_organs(work)
    (folder / "images").mkdir()
    image = drawn.astype(np.int16) * STEP
    write(folder / "images" / "scan_0000.nii.gz", image, simple_geometry(work.shape, SPACING))
    del image
    ours, theirs = measure_ours(folder, work), None
    mine, _ = read_segmentation(folder / "ours" / "scan.nii.gz")
    inside = far_from_surfaces(drawn)
    wrong = float((mine != drawn)[inside].mean())
    passed = wrong <= ALLOWED_INSIDE
    gates = [f"{wrong:.2g} other than drawn, {REACH} voxels from surfaces ({inside.mean():.0%})"]
    if peer_bytes(work) <= setting.limit:
        try:
            theirs = measure_peer(folder, setting.peer, work)
        except RuntimeError as error:  # killed for its memory, as a rule: the row says so
            gates.append(f"the peer did not survive ({str(error).splitlines()[-1][:80]})")
        else:
            labels, _ = read_segmentation(folder / "peer" / "scan.nii.gz")
            apart = float((mine != labels).mean())
            gates.append(f"{apart:.2g} other than the peer's")
            passed &= apart <= ALLOWED * setting.surface
    one = [x for x in before if (x.work.heads, x.work.shape) == (work.heads, work.shape)]
    if work.row == "folds" and one:
        more = ours.bytes / one[0].ours.bytes
        gates.append(f"memory {more - 1:+.1%} on one fold")
        passed &= more <= ALLOWED_FOLDS
    if work.row == "cube":
        growth = ours.bytes - setting.base
        gates.append(f"{growth / 1e9:.2f} GB over the imports of {ALLOWED_GROWTH / 1e9:g} allowed")
        passed &= growth <= ALLOWED_GROWTH
    return Found(
        work=work,
        patch=plan.configuration(CONFIGURATION).patch_size,
        ours=ours,
        base=setting.base,
        peer=theirs,
        arrays=peer_bytes(work),
        gate=", ".join(gates),
        passed=passed,
    )


def measure_ours(folder: Path, work: Work) -> Run:
    """Predict by ours; without classes, only import. The memory is what the system recorded."""
    run = measure([sys.executable, "-c", OURS, order(folder, work, "ours")], env=THREADS)
    return replace(run, bytes=max(run.bytes, run.result["peak"]))


def measure_peer(folder: Path, peer: str, work: Work) -> Run:
    """Predict by the peer; its program is a file, because its worker processes import it again."""
    program = folder / "peer.py"
    program.write_text(PEERS)
    paths = {name: str(folder / "none") for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    env = {**THREADS, **paths, "nnUNet_results": str(folder / "none"), "nnUNet_def_n_proc": "2"}
    return measure([peer, str(program), order(folder, work, "peer")], env=env)


def order(folder: Path, work: Work, side: str) -> str:
    """Give what a program reads as its argument."""
    return json.dumps(
        {
            "folder": str(folder),
            "images": str(folder / "images"),
            "output": str(folder / side),
            "heads": work.heads,
            "folds": work.folds,
            "step": STEP,
            "configuration": CONFIGURATION,
        }
    )


def plan_of(work: Work, patch: Shape | None) -> Plan:
    """Plan for a scan as long as it is wide, so that all have one patch, or take that given."""
    _, y, x = work.shape
    plan = synthetic_plan(work.heads, (y, y, x))
    configuration = plan.configuration(CONFIGURATION)
    if not work.resampled:
        configuration = replace(configuration, spacing=SPACING)
    if patch is not None:
        configuration = replace(configuration, patch_size=patch)
    return replace(plan, configurations={CONFIGURATION: configuration})


def draw_organs(work: Work) -> Segmentation:
    """Draw a label map of ellipsoids."""
    rng = np.random.default_rng(0)
    labels = np.zeros(work.shape, np.uint8)
    for number in range(max(BLOBS, work.heads - 1)):
        for box, inside in draw_ellipsoids(rng, work.shape, 1, RADIUS):
            labels[box][inside > 0] = number % (work.heads - 1) + 1
    return labels


def far_from_surfaces(labels: Segmentation) -> Mask:
    """Mark the voxels whose neighbours have their label, up to REACH along each axis and across."""
    window = 2 * REACH + 1
    return minimum_filter(labels, window) == maximum_filter(labels, window)


def peer_bytes(work: Work) -> int:
    """Add up the arrays that the peer has at once when it decides on the labels.

    The logits in fp16, in its main process and in that which writes; there all of them resampled in
    fp16, and the labels as int64. Images, and what the logits become on their way, are left out.
    """
    voxels = math.prod(work.shape)
    seen = voxels // 8 if work.resampled else voxels
    return work.heads * (2 * 2 * seen + 2 * voxels) + 8 * voxels


def slopes(found: list[Found]) -> list[str]:
    """Say how many bytes a further voxel of a long scan takes, of those of each number of heads."""
    lines = []
    for heads in sorted({one.work.heads for one in found if one.work.row == "long"}):
        runs = [one for one in found if one.work.row == "long" and one.work.heads == heads]
        if len(runs) > 1:
            voxels = math.prod(runs[-1].work.shape) - math.prod(runs[-2].work.shape)
            mine = (runs[-1].ours.bytes - runs[-2].ours.bytes) / voxels
            lines.append(
                f"{heads} classes: {mine:.1f} bytes for each further voxel; the image has 2 in its "
                "file, 4 normalized and 0.5 as the network sees it, the label map 1; the peer's "
                f"arrays {(runs[-1].arrays - runs[-2].arrays) / voxels:.0f}"
            )
    return lines


def free_bytes() -> int:
    """Give the memory that is free or can be, as Linux tells it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    sys.exit(main())
