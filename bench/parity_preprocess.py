"""Preprocessed arrays of nnseg beside those of nnunetv2, for the same plans and cases.

    python bench/parity_preprocess.py --peer PYTHON --shared DIR [--cases N] [--write-golden FILE]

The peer's own preprocessor runs in a subprocess, by the python of a venv with nnunetv2. Exits with
1 if an image differs by more than 1e-5, or a shape, a place or the grid of a label map differs.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from nnseg import record
from nnseg.commit import write_whole
from nnseg.dataset import Case, find_cases, read_spec
from nnseg.exchange.nnunet_reading import read_plans
from nnseg.plan import Configuration, Plan
from nnseg.preprocess import Preprocessed, find_locations, preprocess_case
from nnseg.volume import read_image, read_segmentation

# Reference plans and their configurations; those for little memory have low resolution besides.
CONFIGURATIONS = {"nnUNetPlans": ("2d", "3d_fullres"), "nnUNetPlans_1GB": ("3d_lowres",)}
ALLOWED = 1e-5
PACKAGES = ("numpy", "scipy", "scikit-image", "SimpleITK")
GOLDEN_CASES = 3
GOLDEN_VOXELS = 30
OUTSIDE = -1  # the peer's label of voxels outside the body

# Reads what to do as JSON, writes arrays as .npy, prints facts and seconds as JSON.
PEER = """
import json, platform, sys, time
from importlib import metadata
import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

work = json.load(sys.stdin)
preprocessor = DefaultPreprocessor(verbose=False)
manager = PlansManager(work["plans"])
dataset_json = json.load(open(work["dataset_json"]))
facts, seconds = {}, {}
for name in work["configurations"]:
    configuration = manager.get_configuration(name)
    seconds[name] = 0.0
    for case in work["cases"]:
        started = time.perf_counter()
        image, labels, properties = preprocessor.run_case(
            case["images"], case["label"], manager, configuration, dataset_json
        )
        seconds[name] += time.perf_counter() - started
        stem = work["folder"] + "/" + name + "." + case["id"]
        np.save(stem + ".image.npy", image.astype(np.float32, copy=False))
        np.save(stem + ".labels.npy", labels[0])
        facts[name + "." + case["id"]] = {
            "box": [[int(v) for v in ends] for ends in properties["bbox_used_for_cropping"]],
            "shape": [int(v) for v in properties["shape_before_cropping"]],
            "spacing": [float(v) for v in properties["spacing"]],
        }
versions = {name: metadata.version(name) for name in work["packages"]}
versions["python"] = platform.python_version()
print(json.dumps({"facts": facts, "seconds": seconds, "versions": versions}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How one preprocessed case differs from the peer's."""

    image: float  # largest absolute difference of a voxel
    labels: int  # voxels
    voxels: int
    faults: tuple[str, ...]  # shapes and places that differ


def main() -> int:
    """Compare, print a table, and write golden numbers if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="python of a venv with nnunetv2")
    parser.add_argument("--shared", required=True, type=Path, help="folder of data/ and reference/")
    parser.add_argument("--datasets", nargs="+", help="by name; all, if not given")
    parser.add_argument("--cases", type=int, help="at most so many of a dataset")
    parser.add_argument("--write-golden", type=Path, help="file for numbers that the tests check")
    args = parser.parse_args()

    golden: list[dict[str, Any]] = []
    rows, theirs, parity = [], {}, True
    with tempfile.TemporaryDirectory() as folder:
        for work in find_works(args.shared, Path(folder), args.datasets, args.cases):
            told = run_peer(args.peer, work, Path(folder))
            theirs = told["versions"]
            for name in work.configurations:
                found, seconds, numbers = compare_cases(work, name, Path(folder), told["facts"])
                rows.append(row(work, name, found, seconds, told["seconds"][name]))
                parity &= all(d.image <= ALLOWED and not d.faults for d in found)
                if work.plans == next(iter(CONFIGURATIONS)):
                    golden += numbers
    print_table(rows, theirs)
    if args.write_golden:
        origin = "nnunetv2 2.8.1; made by bench/parity_preprocess.py --write-golden"
        text = record.json_text({"origin": origin, "cases": golden})
        write_whole(args.write_golden, text.encode())
    return 0 if parity else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Cases to be preprocessed by reference plans."""

    dataset: str
    plans: str  # a key of CONFIGURATIONS
    reference: Path  # folder of the plans
    plan: Plan
    configurations: tuple[str, ...]
    cases: tuple[Case, ...]


def find_works(
    shared: Path, folder: Path, datasets: list[str] | None, most: int | None
) -> Iterator[Work]:
    """Give the datasets and variants with each of their reference plans, laid out in `folder`."""
    raw = folder / "raw"
    subprocess.run([shared / "data" / "link_raw", raw], check=True, stdout=subprocess.DEVNULL)
    for dataset in datasets or sorted(path.name for path in raw.iterdir()):
        reference = shared / "reference" / "nnunet_plans" / dataset
        spec = read_spec(reference / "dataset.json")
        cases = find_cases(raw / dataset / "imagesTr", raw / dataset / "labelsTr", spec)[:most]
        for plans, wanted in CONFIGURATIONS.items():
            path = reference / f"{plans}.json"
            if path.is_file():
                plan = read_plans(record.read_json(path), spec, name="reference")
                names = tuple(name for name in wanted if name in plan.configurations)
                if names:
                    yield Work(
                        dataset=dataset,
                        plans=plans,
                        reference=reference,
                        plan=plan,
                        configurations=names,
                        cases=cases,
                    )


def compare_cases(
    work: Work, name: str, folder: Path, facts: dict[str, Any]
) -> tuple[list[Difference], float, list[dict[str, Any]]]:
    """Preprocess the cases our way; give how they differ, our seconds, and golden numbers."""
    found, seconds, golden = [], 0.0, []
    for number, case in enumerate(work.cases):
        stem = f"{name}.{case.case_id}"
        image, labels = (
            np.load(folder / f"{stem}.image.npy"),
            np.load(folder / f"{stem}.labels.npy"),
        )
        started = time.perf_counter()
        ours = preprocess(case, work.plan, work.plan.configuration(name))
        seconds += time.perf_counter() - started
        found.append(compare(ours, image, labels, facts[stem]))
        if found[-1].faults:
            print(f"{work.dataset} {stem}: {'; '.join(found[-1].faults)}")
        if number % -(-len(work.cases) // GOLDEN_CASES) == 0:
            names = {"dataset": work.dataset, "configuration": name, "case_id": case.case_id}
            golden.append(names | summarize_peer(image, labels, facts[stem]))
    return found, seconds, golden


def run_peer(python: str, task: Work, folder: Path) -> dict[str, Any]:
    """Have the peer preprocess the cases into `folder`; give what it says of them."""
    work = {
        "plans": str(task.reference / f"{task.plans}.json"),
        "dataset_json": str(task.reference / "dataset.json"),
        "configurations": task.configurations,
        "cases": [
            {
                "id": case.case_id,
                "images": [str(path) for path in case.images],
                "label": str(case.label),
            }
            for case in task.cases
        ],
        "folder": str(folder),
        "packages": ("nnunetv2", "batchgenerators", "acvl_utils", *PACKAGES),
    }
    done = subprocess.run(
        [python, "-c", PEER], input=json.dumps(work), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{python} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def preprocess(case: Case, plan: Plan, configuration: Configuration) -> Preprocessed:
    """Read and preprocess one case our way, foreground locations included as with the peer."""
    volume = read_image(case.images)
    assert case.label is not None, "find_cases gave it one"
    segmentation, _ = read_segmentation(case.label)
    spacing = volume.geometry.spacing
    result = preprocess_case(volume.image, segmentation, spacing, plan, configuration)
    assert result.segmentation is not None, "it was given"
    find_locations(result.segmentation, plan.labels)
    return result


def compare(
    ours: Preprocessed, image: np.ndarray, labels: np.ndarray, facts: dict[str, Any]
) -> Difference:
    """Hold one case of ours against the peer's arrays and facts."""
    assert ours.segmentation is not None, "every case has labels"
    placement = ours.placement
    ours_and_theirs = {
        "image shape": (ours.image.shape, image.shape),
        "label shape": (ours.segmentation.shape, labels.shape),
        "box": (placement.box, tuple(map(tuple, facts["box"]))),
        "shape before cropping": (
            tuple(placement.shape[axis] for axis in placement.order),
            tuple(facts["shape"]),
        ),
        "resampled shape": (placement.shape_resampled, image.shape[1:]),
    }
    faults = [f"{what} {a}, peer {b}" for what, (a, b) in ours_and_theirs.items() if a != b]
    if not np.allclose(placement.spacing, facts["spacing"], rtol=1e-6, atol=0):
        faults.append(f"spacing {placement.spacing}, peer {facts['spacing']}")
    if faults:
        return Difference(image=np.inf, labels=labels.size, voxels=labels.size, faults=(*faults,))
    as_theirs = np.where(ours.mask, ours.segmentation.astype(np.int16), OUTSIDE)
    return Difference(
        image=float(np.abs(ours.image - image).max()),
        labels=int((as_theirs != labels).sum()),
        voxels=labels.size,
        faults=(),
    )


def summarize_peer(image: np.ndarray, labels: np.ndarray, facts: dict[str, Any]) -> dict[str, Any]:
    """Give few numbers that an array like the peer's must have."""
    chosen = np.random.default_rng(0).choice(image.size, GOLDEN_VOXELS, replace=False)
    values, counts = np.unique(labels, return_counts=True)
    return {
        "box": facts["box"],
        "shape": list(image.shape),
        "mean": float(image.mean(dtype=np.float64)),
        "std": float(image.std(dtype=np.float64)),
        "voxels": [int(voxel) for voxel in chosen],
        "values": [float(value) for value in image.reshape(-1)[chosen]],
        "labels": {str(v): int(n) for v, n in zip(values, counts, strict=True)},
    }


def row(
    work: Work, configuration: str, found: list[Difference], ours: float, theirs: float
) -> tuple[str, ...]:
    """Give one line of the table."""
    return (
        work.dataset,
        configuration,
        str(len(found)),
        f"{max(difference.image for difference in found):.2e}",
        str(sum(difference.labels for difference in found)),
        str(sum(difference.voxels for difference in found)),
        str(sum(bool(difference.faults) for difference in found)),
        f"{theirs:.1f}",
        f"{ours:.1f}",
        f"{theirs / ours:.2f}",
    )


def print_table(rows: list[tuple[str, ...]], theirs: dict[str, str]) -> None:
    """Print the rows as Markdown, and the versions of both sides."""
    head = (
        "dataset", "configuration", "cases", "largest difference", "labels that differ",
        "of voxels", "misplaced", "peer s", "nnseg s", "ratio",
    )  # fmt: skip
    for cells in (head, ("---",) * len(head), *rows):
        print("| " + " | ".join(cells) + " |")
    ours = {name: metadata.version(name) for name in ("nnseg", *PACKAGES)}
    ours["python"] = platform.python_version()
    for side, versions in (("peer", theirs), ("nnseg", ours)):
        print(f"{side}: " + ", ".join(f"{name} {number}" for name, number in versions.items()))


if __name__ == "__main__":
    sys.exit(main())
