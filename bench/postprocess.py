"""Postprocessing rules chosen for a folder of predictions: from files to the stored rules.

Ours is timed with the search for smallest sizes, which nnunetv2 has not. The gate is that the rules
which nnunetv2 would take, and the Dice that it tells of them, are found to be those that it takes
and tells. Before the timed rows small datasets are compared, regions that overlap and labels that
no case has among them; there nnunetv2 runs in threads instead of processes, which saves their
start.

    python bench/postprocess.py --peer PYTHON [--repeats N] [--pairs N] [--rows NAME ...]
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timing import Row, Run, alternate, measure, report

from nnseg import record
from nnseg.axes import Segmentation, Shape
from nnseg.dataset import DatasetSpec, find_label_maps, read_spec, spec_to_json
from nnseg.folders import predicted_spec_file
from nnseg.labels import Labels
from nnseg.volume import Geometry, read_segmentation, simple_geometry, write

ALLOWED = 1e-12  # of a mean Dice
ENDING = ".nii.gz"
CT_SHAPE: Shape = (100, 512, 512)
CT_LABELS = 14
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "nnUNet_raw": "none",
    "nnUNet_preprocessed": "none",
    "nnUNet_results": "none",
}

# Both read the work as JSON from their argument. nnunetv2 takes its reader of files from a plan, of
# which nothing else counts here.
OURS = """
import json, sys
from nnseg.cli import main
work = json.loads(sys.argv[1])
words = ["-i", work["predictions"], "-ref", work["references"], "-djfile", work["spec"]]
sys.exit(main(["postprocess", *words, "-o", work["rules"], "--json", *work["options"]]))
"""
PEERS = """
import json, multiprocessing, sys, types
from multiprocessing.pool import ThreadPool
from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing

def main():
    work = json.loads(sys.argv[1])
    if work["threads"]:
        multiprocessing.get_context = lambda kind: types.SimpleNamespace(Pool=ThreadPool)
    _, kwargs = determine_postprocessing(
        work["predictions"], work["references"], {"image_reader_writer": "SimpleITKIO"},
        work["spec"], 2, False,
    )
    told = json.load(open(work["predictions"] + "/postprocessing.json"))
    print()
    print(json.dumps({
        "rules": [one["labels_or_regions"] for one in kwargs],
        "before": told["input_folder"], "after": told["postprocessed"],
    }))

if __name__ == "__main__":
    main()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A folder of predictions, its references, and what the labels mean."""

    name: str
    data: str
    folder: Path
    spec: DatasetSpec

    @property
    def predictions(self) -> Path:
        """The folder of predicted label maps."""
        return self.folder / "predictions"

    @property
    def references(self) -> Path:
        """The folder of true label maps."""
        return self.folder / "references"

    def save(
        self, case_id: str, prediction: Segmentation, reference: Segmentation, geometry: Geometry
    ) -> None:
        """Write a case, and what the labels mean."""
        for folder, values in (self.predictions, prediction), (self.references, reference):
            write(folder / f"{case_id}{ENDING}", values.astype(np.uint8), geometry)
        spec = predicted_spec_file(self.folder)
        spec.write_text(record.json_text(spec_to_json(self.spec)))


def main() -> int:
    """Compare the small datasets, then run the timed rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="python of a venv with nnunetv2")
    parser.add_argument(
        "--shared",
        type=Path,
        default=os.environ.get("NNSEG_SHARED"),
        help="folder of data/ and reference/; NNSEG_SHARED if left out",
    )
    parser.add_argument("--repeats", type=int, default=1, help="pairs of runs")
    parser.add_argument("--pairs", type=int, default=20, help="CTs, of 14 labels")
    parser.add_argument("--rows", nargs="+", default=("parity", "hippocampus", "ct"))
    args = parser.parse_args()
    if args.shared is None:
        parser.error("--shared: name the folder of data/ and reference/, or set NNSEG_SHARED")
    rows, same = [], True
    with tempfile.TemporaryDirectory(prefix="nnseg-bench-") as name:
        if "parity" in args.rows:
            for work in small_works(Path(name)):
                same &= is_same(work, args.peer)
        if "hippocampus" in args.rows:
            work = hippocampus(Path(name) / "hippocampus", args.shared)
            rows.append(compare(work, args.peer, args.repeats))
        if "ct" in args.rows:
            rows.append(compare(cts(Path(name) / "ct", args.pairs), args.peer, args.repeats))
    return report(rows, args.peer) or int(not same)


def is_same(work: Work, peer: str) -> bool:
    """Print whether both sides choose the same, and what."""
    ours = run(sys.executable, OURS, work, options=["--as-nnunet"])
    gate, passed = judge(work, ours, run(peer, PEERS, work, threads=True))
    print(f"{work.name}: {gate}", flush=True)
    return passed


def compare(work: Work, peer: str, repeats: int) -> Row:
    """Time both sides on the same files."""
    ours, peers = alternate(
        lambda: run(sys.executable, OURS, work),
        lambda: run(peer, PEERS, work),
        repeats,
        warm_up=False,
    )
    alike = run(sys.executable, OURS, work, options=["--as-nnunet"])
    gate, passed = judge(work, alike, peers[-1])
    return Row(name=work.name, data=work.data, ours=ours, peers=peers, gate=gate, passed=passed)


def run(
    python: str, program: str, work: Work, *, options: Sequence[str] = (), threads: bool = False
) -> Run:
    """Let one side choose, from nothing that an earlier run has left."""
    for left in ("summary.json", "postprocessing.json", "postprocessing.pkl"):
        (work.predictions / left).unlink(missing_ok=True)
    order = {
        "predictions": str(work.predictions),
        "references": str(work.references),
        "spec": str(predicted_spec_file(work.folder)),
        "rules": str(work.folder / "rules.json"),
        "options": list(options),
        "threads": threads,
    }
    script = work.folder / "side.py"  # a file, because processes of the peer's import it
    script.write_text(program)
    return measure([python, str(script), json.dumps(order)], env=ENVIRONMENT)


def judge(work: Work, ours: Run, peers: Run) -> tuple[str, bool]:
    """Say whether both sides took the same rules, with the same Dice before and after."""
    labels = work.spec.labels
    mine = [
        sorted({value for name in rule["labels"] for value in labels.foreground[name]})
        for rule in ours.result["postprocessing"]["rules"]
    ]
    theirs = [integers(one) for one in peers.result["rules"]]
    apart = max(
        difference(ours.result[f"dice_{when}"], peers.result[when], labels)
        for when in ("before", "after")
    )
    rise = [ours.result[f"dice_{when}"]["foreground"] for when in ("before", "after")]
    told = " to ".join("none" if value is None else f"{value:.4f}" for value in rise)
    same = "the same" if mine == theirs else f"OTHER ({mine}, {theirs})"
    tried = len(ours.result["steps"])
    gate = f"{same} {len(mine)} rules of {tried}, Dice {told}, at most {apart:.0e} apart"
    return gate, mine == theirs and apart <= ALLOWED


def integers(rule: Any) -> list[int]:
    """Give the integers that a rule of nnunetv2's is about."""
    if isinstance(rule, int):
        return [rule]
    return sorted({value for one in rule for value in integers(one)})


def difference(ours: dict[str, Any], theirs: dict[str, Any], labels: Labels) -> float:
    """Give how far two tellings of mean Dice lie apart at most; a missing one is missing in both.

    Args:
        ours: `labels` and `foreground`.
        theirs: `mean`, by label or region in parentheses, and `foreground_mean`.
        labels: Leads from our names to theirs.
    """
    pairs = [(ours["foreground"], theirs["foreground_mean"]["Dice"])]
    for name, value in ours["labels"].items():
        entry = labels.labels[name]
        key = f"({', '.join(map(str, entry))})" if isinstance(entry, tuple) else str(entry)
        pairs.append((value, theirs["mean"][key]["Dice"]))
    missing = [(old is None) != bool(np.isnan(new)) for old, new in pairs]
    known = [abs(old - new) for old, new in pairs if old is not None]
    return 1.0 if any(missing) else max(known, default=0.0)


def small_works(folder: Path) -> list[Work]:
    """Draw small datasets whose rules depend on each other in all ways there are."""
    kinds: dict[str, dict[str, Any]] = {
        "labels": {"labels": {"background": 0, "b": 2, "a": 1, "c": 3}},
        "one label": {"labels": {"background": 0, "a": 1}},
        "ignored voxels": {"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}},
        "a label of no case": {"labels": {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4}},
        "nested regions": {
            "labels": {"background": 0, "whole": (1, 2, 3), "core": (2, 3), "active": 3},
            "regions_class_order": (1, 2, 3),
        },
        "nested regions, the smallest first": {
            "labels": {"background": 0, "active": 3, "core": (2, 3), "whole": (1, 2, 3)},
            "regions_class_order": (3, 2, 1),
        },
        "regions that cross": {
            "labels": {"background": 0, "left": (1, 2), "right": (2, 3), "end": 3},
            "regions_class_order": (1, 2, 3),
        },
    }
    works = []
    for number, (name, kind) in enumerate(kinds.items()):
        labels = Labels(**kind)
        drawn = [value for value in labels.values if value not in (0, labels.ignore, 4)]
        for seed in (0, 1):
            rng = np.random.default_rng([number, seed])
            work = make_work(f"{name}, seed {seed}", folder / f"{number}_{seed}", labels)
            shape, nested = (14, 18, 22), labels.has_regions
            for case in range(6):
                reference, prediction = draw(
                    rng, shape, drawn, radius=(2, 5), spots=6, nested=nested
                )
                if labels.ignore is not None:
                    reference[rng.random(shape) < 0.1] = labels.ignore
                work.save(f"case_{case}", prediction, reference, simple_geometry(shape, (1, 1, 1)))
            works.append(work)
    return works


def hippocampus(folder: Path, shared: Path) -> Work:
    """Take the label maps of hippocampus, and as predictions the same, shifted and with specks."""
    source = shared / "data" / "Dataset004_Hippocampus"
    work = make_work("determine postprocessing", folder, read_spec(source / "dataset.json").labels)
    rng = np.random.default_rng(0)
    found = find_label_maps(source / "labelsTr", ENDING)
    for case_id, (path,) in found.items():
        reference, geometry = read_segmentation(path)
        prediction = np.roll(reference, rng.integers(-1, 2, 3), axis=(0, 1, 2))
        for _ in range(rng.integers(0, 4)):
            spot(rng, prediction, int(rng.integers(1, 3)), radius=(1, 3))
        work.save(case_id, prediction, reference, geometry)
    told = f"hippocampus, {len(found)} pairs, 2 labels"
    return make_work(work.name, folder, work.spec.labels, told)


def cts(folder: Path, count: int) -> Work:
    """Draw large label maps of many organs, and predictions of them with spots that are none."""
    names: dict[str, int | tuple[int, ...]] = {"background": 0}
    names |= {f"organ_{value}": value for value in range(1, CT_LABELS + 1)}
    told = f"synthetic, {count} pairs of 512x512x100, {CT_LABELS} labels"
    work = make_work("the same", folder, Labels(labels=names), told)
    rng = np.random.default_rng(0)
    values = list(range(1, CT_LABELS + 1))
    for case in range(count):
        reference, prediction = draw(rng, CT_SHAPE, values, radius=(12, 45), spots=20)
        geometry = simple_geometry(CT_SHAPE, (2.5, 0.8, 0.8))
        work.save(f"case_{case:02}", prediction, reference, geometry)
    return work


def make_work(name: str, folder: Path, labels: Labels, data: str = "") -> Work:
    """Describe a dataset, of which nothing is written yet."""
    spec = DatasetSpec(channels=("image",), labels=labels, num_training=1, file_ending=ENDING)
    return Work(name=name, data=data, folder=folder, spec=spec)


def draw(
    rng: np.random.Generator,
    shape: Shape,
    values: Sequence[int],
    *,
    radius: tuple[int, int],
    spots: int,
    nested: bool = False,
) -> tuple[Segmentation, Segmentation]:
    """Draw a reference and a prediction of it, which has spots that are none.

    Some labels are of one piece, some of two; or, if `nested`, each lies in the one before.
    """
    reference = np.zeros(shape, np.uint8)
    middle = np.array(shape) * rng.uniform(0.4, 0.6, 3)
    for number, value in enumerate(values):
        if nested:
            most = min(shape) / 2 - 2 * number
            spot(rng, reference, value, (most - 1, most), middle)
            continue
        for _ in range(1 + (value % 3 == 0)):
            if rng.random() < 0.9:
                spot(rng, reference, value, radius)
    prediction = np.roll(reference, rng.integers(0, 2, 3), axis=(0, 1, 2))
    for _ in range(rng.integers(0, spots)):
        value = int(rng.choice([0, *values], p=[0.3, *[0.7 / len(values)] * len(values)]))
        spot(rng, prediction, value, (1, max(2, radius[0])))
    return reference, prediction


def spot(
    rng: np.random.Generator,
    segmentation: Segmentation,
    value: int,
    radius: tuple[float, float],
    middle: NDArray[np.float64] | None = None,
) -> None:
    """Paint an ellipsoid into a label map, in place; somewhere, if nobody says its middle."""
    axes = rng.uniform(*radius, 3)
    centre = rng.uniform(0, 1, 3) * segmentation.shape if middle is None else middle
    low = np.maximum(0, np.floor(centre - axes)).astype(int)
    high = np.minimum(segmentation.shape, np.ceil(centre + axes) + 1).astype(int)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    grid = np.ogrid[box]
    inside = sum(((g - c) / a) ** 2 for g, c, a in zip(grid, centre, axes, strict=True)) <= 1
    segmentation[box][inside] = value


if __name__ == "__main__":
    sys.exit(main())
