"""Preprocess one large CT, from files to preprocessed files: a real one and a synthetic one."""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from timing import Row, Run, alternate, measure, parse_arguments, report

from nnseg import record
from nnseg.commit import write_whole
from nnseg.exchange.nnunet_writing import plans_to_json
from nnseg.folders import Folders
from nnseg.plan import Plan
from nnseg.volume import simple_geometry, write

REAL = "Dataset101_CTOrgans"
SYNTHETIC = "Dataset901_LongCT"
SHAPE, SPACING = (300, 512, 512), (1.5, 0.8, 0.8)
PLANNED = (1.8, 0.96, 0.96)  # mm; what the synthetic case is resampled to
CONFIGURATION = "3d_fullres"

PEERS = """
import json, sys
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
work = json.loads(sys.argv[1])
if __name__ == "__main__":
    preprocess_dataset(
        work["number"], "nnUNetPlans", configurations=(work["configuration"],),
        num_processes=(1,), verbose=False,
    )
"""


def main() -> int:
    """Run both rows."""
    args = parse_arguments(__doc__)
    root = Path(tempfile.mkdtemp(prefix="nnseg-bench-"))
    try:
        (root / "raw").mkdir()
        take_real(args.shared / "data" / REAL, root / "raw" / REAL)
        draw_synthetic(root / "raw" / SYNTHETIC)
        rows = [
            compare(root, args.peer, REAL, "the 512x512x20 case of CTOrgans", None, args.repeats),
            compare(root, args.peer, SYNTHETIC, "synthetic CT, 512x512x300", PLANNED, 1),
        ]
        return report(rows, args.peer)
    finally:
        shutil.rmtree(root)


def take_real(source: Path, target: Path) -> None:
    """Link the largest case of the real dataset, alone."""
    largest = max((source / "imagesTr").iterdir(), key=lambda path: path.stat().st_size)
    case_id = largest.name.removesuffix("_0000.nii.gz")
    for name, file in (("imagesTr", largest.name), ("labelsTr", f"{case_id}.nii.gz")):
        (target / name).mkdir(parents=True)
        (target / name / file).symlink_to(source / name / file)
    data = record.read_json(source / "dataset.json")
    write_whole(target / "dataset.json", record.json_text(data | {"numTraining": 1}).encode())


def draw_synthetic(target: Path) -> None:
    """Write a CT of noise and blobs, with a label map of 5 organs."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(0, 300, (38, 64, 64))
    image = np.kron(coarse, np.ones((8, 8, 8)))[: SHAPE[0]].astype(np.int16)
    image += rng.integers(-30, 30, SHAPE, dtype=np.int16)
    labels = (np.digitize(image, (-200, 0, 200, 400, 600))).astype(np.uint8)
    for name in ("imagesTr", "labelsTr"):
        (target / name).mkdir(parents=True)
    geometry = simple_geometry(SHAPE, SPACING)
    write(target / "imagesTr" / "long_0000.nii.gz", image, geometry)
    write(target / "labelsTr" / "long.nii.gz", labels, geometry)
    spec = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {f"organ_{n}": n for n in range(1, 6)},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    write_whole(target / "dataset.json", record.json_text(spec).encode())


def compare(
    root: Path,
    peer: str,
    dataset: str,
    data: str,
    spacing: tuple[float, float, float] | None,
    repeats: int,
) -> Row:
    """Plan once by ours; preprocess by both sides from the same plan, and compare the images."""
    folders = Folders.of_root(root)
    python = sys.executable
    plan = [python, "-m", "nnseg", "plan", dataset, "--root", str(root), "-q"]
    if spacing is not None:
        plan += ["--target-spacing", *map(str, spacing)]
    measure(plan)
    peer_out = root / "peer" / dataset
    peer_out.mkdir(parents=True)
    the_plan = record.load(Plan, folders.plan_file(dataset, "nnseg"))
    plans = plans_to_json(the_plan)
    write_whole(peer_out / "nnUNetPlans.json", record.json_text(plans).encode())
    shutil.copy(folders.spec_file(dataset), peer_out / "dataset.json")
    store = folders.store(dataset, "nnseg", CONFIGURATION)
    made = peer_out / plans["configurations"][CONFIGURATION]["data_identifier"]
    env = {
        "nnUNet_raw": str(root / "raw"),
        "nnUNet_preprocessed": str(root / "peer"),
        "nnUNet_results": str(root / "none"),
        "OMP_NUM_THREADS": "2",
    }
    order = {"number": int(dataset[7:10]), "configuration": CONFIGURATION}
    program = root / "peer.py"  # a file, because its worker processes import it again
    program.write_text(PEERS)

    def ours() -> Run:
        shutil.rmtree(store, ignore_errors=True)
        argv = [python, "-m", "nnseg", "preprocess", dataset, "-c", CONFIGURATION, "-q"]
        return measure([*argv, "--root", str(root)])

    def peers() -> Run:
        shutil.rmtree(made, ignore_errors=True)
        return measure([peer, str(program), json.dumps(order)], env=env)

    first, second = alternate(ours, peers, repeats, warm_up=repeats > 1)
    error = largest_error(next(store.glob("*.image.b2nd")), made)
    return Row(
        name="preprocess a CT",
        data=data,
        ours=first,
        peers=second,
        gate=f"largest error {error:.1g}",
        passed=error <= 1e-5,
    )


def largest_error(ours: Path, folder: Path) -> float:
    """Compare the stored images of both sides."""
    import blosc2

    case_id = ours.name.removesuffix(".image.b2nd")
    mine = blosc2.open(str(ours))[...]
    theirs = blosc2.open(str(folder / f"{case_id}.b2nd"))[...]
    if mine.shape != theirs.shape:
        return float("inf")
    return max(float(np.abs(a - b).max()) for a, b in zip(mine, theirs, strict=True))


if __name__ == "__main__":
    sys.exit(main())
