"""Score folders of label maps for Dice and IoU: 208 pairs of hippocampus, 20 CT of 14 labels.

Both sides start as a person starts them: a command each, that reads the files and writes
summary.json. The peer has its own default of processes, and two, and the better one counts.
"""

import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from timing import Row, Run, alternate, measure, parse_arguments, report

from nnseg.dataset import read_spec
from nnseg.volume import read_segmentation, simple_geometry, write

CT_CASES = 20
CT_SHAPE = (100, 512, 512)
CT_SPACING = (2.5, 0.8, 0.8)  # mm
CT_LABELS = 13  # and the background
THREADS = {"OMP_NUM_THREADS": "2"}
PROCESSES = (None, "2")  # of the peer


def main() -> int:
    """Run both rows."""
    args = parse_arguments(__doc__)
    root = Path(tempfile.mkdtemp(prefix="nnseg-bench-"))
    try:
        hippocampus = args.shared / "data" / "Dataset004_Hippocampus"
        shift_labels(hippocampus, root / "hippocampus")
        draw_ct(root / "ct")
        rows = [
            better(hippocampus / "labelsTr", root / "hippocampus", args, "hippocampus, 208 pairs"),
            better(root / "ct" / "truth", root / "ct" / "found", args, "20 CT, 14 labels"),
        ]
        return report(rows, args.peer)
    finally:
        shutil.rmtree(root)


def better(truth: Path, found: Path, args: Any, data: str) -> Row:
    """Run both sides, and give the row with the peer's better number of processes."""
    rows = [compare(truth, found, args, data, processes) for processes in PROCESSES]
    return min(rows, key=lambda row: row.ratio)


def compare(truth: Path, found: Path, args: Any, data: str, processes: str | None) -> Row:
    """Run both sides on two folders of label maps."""
    peer_command = str(Path(args.peer).with_name("nnUNetv2_evaluate_folder"))
    our_command = str(Path(sys.executable).with_name("nnseg"))
    spec, theirs = found / "dataset.json", found.with_name(f"{found.name}.peer.json")
    plans = found / "plans.json"

    def ours() -> Run:
        return measure([our_command, "evaluate", str(truth), str(found), "--overlap", "-q"])

    def peers() -> Run:
        argv = [peer_command, str(truth), str(found), "-djfile", str(spec), "-pfile", str(plans)]
        argv += ["-o", str(theirs), *(() if processes is None else ("-np", processes))]
        return measure(argv, env=THREADS)

    first, second = alternate(ours, peers, args.repeats)
    differing = differences(
        json.loads((found / "summary.json").read_text()), json.loads(theirs.read_text())
    )
    return Row(
        name="evaluate (Dice, IoU)",
        data=f"{data}; peer: {processes or 'default'} processes",
        ours=first,
        peers=second,
        gate="every number equal" if not differing else f"differ: {', '.join(differing[:5])}",
        passed=not differing,
    )


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Name the numbers of the peer's summary.json that ours has otherwise.

    Its NaN is our null, and its foreground mean is nan as soon as one label has no value.
    """
    mine = {Path(case["prediction_file"]).name: case for case in ours["metric_per_case"]}
    found = []
    for case in theirs["metric_per_case"]:
        name = Path(case["prediction_file"]).name
        its = mine.pop(name, {"metrics": {}})["metrics"]
        for label, metrics in case["metrics"].items():
            found += unlike(f"{name} {label}", its.get(label, {}), metrics)
    for label, metrics in theirs["mean"].items():
        found += unlike(f"mean {label}", ours["mean"].get(label, {}), metrics)
    means = {key: value for key, value in theirs["foreground_mean"].items() if value == value}
    return [*found, *unlike("foreground mean", ours["foreground_mean"], means), *mine]


def unlike(where: str, ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Name the metrics that are not the same to the last bit."""
    return [
        f"{where} {key}"
        for key, value in theirs.items()
        if ours.get(key, "missing") != (None if math.isnan(value) else value)
    ]


def shift_labels(dataset: Path, target: Path) -> None:
    """Write a folder of predictions: the dataset's own label maps, shifted by a voxel."""
    target.mkdir()
    ending = read_spec(dataset / "dataset.json").file_ending
    for path in sorted((dataset / "labelsTr").glob(f"[!.]*{ending}")):
        array, geometry = read_segmentation(path)
        write(target / path.name, np.roll(array, 1, axis=1), geometry)
    shutil.copy(dataset / "dataset.json", target)
    (target / "plans.json").write_text(json.dumps({"label_manager": "LabelManager"}))


def draw_ct(folder: Path) -> None:
    """Write label maps of ellipsoids, and the same shifted, as a CT of organs has them."""
    truth, found = folder / "truth", folder / "found"
    truth.mkdir(parents=True)
    found.mkdir()
    geometry = simple_geometry(CT_SHAPE, CT_SPACING)
    rng = np.random.default_rng(0)
    grid = np.ogrid[tuple(slice(0, size) for size in CT_SHAPE)]
    for number in range(CT_CASES):
        labels = np.zeros(CT_SHAPE, np.uint8)
        for label in range(1, CT_LABELS + 1):
            centre = rng.uniform(0.2, 0.8, 3) * CT_SHAPE
            radii = rng.uniform((10, 20, 20), (40, 70, 70))
            away = sum((g - c) ** 2 / r**2 for g, c, r in zip(grid, centre, radii, strict=True))
            labels[np.asarray(away) < 1] = label
        write(truth / f"ct_{number:03d}.nii.gz", labels, geometry)
        write(found / f"ct_{number:03d}.nii.gz", np.roll(labels, (1, 3), (0, 1)), geometry)
    names = {"background": 0, **{f"organ_{n}": n for n in range(1, CT_LABELS + 1)}}
    spec = {
        "channel_names": {"0": "CT"},
        "labels": names,
        "numTraining": CT_CASES,
        "file_ending": ".nii.gz",
    }
    (found / "dataset.json").write_text(json.dumps(spec))
    (found / "plans.json").write_text(json.dumps({"label_manager": "LabelManager"}))


if __name__ == "__main__":
    sys.exit(main())
