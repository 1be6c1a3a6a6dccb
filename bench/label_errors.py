"""Label errors planted by a seeded program: where they rank among the suspects, and false alarms.

    python bench/label_errors.py                                phantoms, trained for it
    python bench/label_errors.py --raw D --validation FOLDER    a fold that was validated before

Without --raw, phantoms are drawn, errors planted in their raw label maps, and two folds trained on
them, errors included, so that each case is predicted by a network that never saw it; suspects come
from the verb, with its files. The same is done without errors, for the false alarms.

With --raw, the label maps of a dataset's cases that FOLDER holds predictions of are read, errors
planted in the copies, and those held against the predictions. The network was trained on other
cases, whose label maps are as they were.

Nothing of nnU-Net's does this, so that --peer is taken and left unused.
"""

import dataclasses
import json
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator

from nnseg import phantom, pipeline, record
from nnseg.axes import Segmentation, Spacing
from nnseg.dataset import read_spec
from nnseg.folders import Folders
from nnseg.image.offset import moved
from nnseg.labels import Labels
from nnseg.learning.recipe import TrainSettings
from nnseg.plan import Plan
from nnseg.suspects.corrections import Evidence, gather
from nnseg.suspects.label_errors import Suspects, rank
from nnseg.volume import read_segmentation, write

TOP = 10
PHANTOMS = "Dataset990_Planted"
CONFIGURATION = "2d"  # of phantoms: it learns the most in a minute
KINDS = ("swap", "shift")
CPU = {"device": "cpu", "precision": "fp32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A label map, and what was predicted by a network that never saw it."""

    case_id: str
    drawn: Segmentation
    predicted: Segmentation
    spacing: Spacing


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of the errors of one seed."""

    planted: dict[str, str]  # case to what was done to it
    ranks: dict[str, int | None]  # case to its place among the suspects, from 1
    others: int  # suspects that nothing was done to

    @property
    def in_top(self) -> int:
        """How many of the errors are among the first ten suspects."""
        return sum(place is not None and place <= TOP for place in self.ranks.values())


def plant(
    drawn: Segmentation, kind: str, voxels: float, rng: Generator
) -> tuple[Segmentation, str]:
    """Spoil a label map: give it, and what was done."""
    present = [int(value) for value in np.unique(drawn) if value]
    if kind == "swap" and len(present) > 1:
        one, other = (int(value) for value in rng.choice(present, 2, replace=False))
        table = np.arange(int(drawn.max()) + 1, dtype=drawn.dtype)
        table[[one, other]] = other, one
        return table[drawn], f"labels {one} and {other} exchanged"
    if kind == "slices":
        label = int(rng.choice(present))
        axis = int(rng.integers(3))
        others = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero((drawn == label).any(axis=others))
        part = [slice(None)] * 3
        part[axis] = slice(int(inside[len(inside) * 2 // 3]), None)
        spoilt = drawn.copy()
        spoilt[tuple(part)][spoilt[tuple(part)] == label] = 0
        return spoilt, f"a third of label {label} along {'zyx'[axis]} left out"
    while True:
        direction = rng.normal(size=3) * (np.array(drawn.shape) > 1)
        offset = np.rint(voxels * direction / np.linalg.norm(direction)).astype(int)
        if np.linalg.norm(offset) >= voxels - 0.5:
            z, y, x = (int(at) for at in offset)
            return moved(drawn, (z, y, x)), f"moved by {(z, y, x)}"


def judge(found: Suspects, planted: Mapping[str, str]) -> Outcome:
    """Say where the planted errors rank."""
    places = {one.case_id: number for number, one in enumerate(found.suspects, start=1)}
    return Outcome(
        planted=dict(planted),
        ranks={case_id: places.get(case_id) for case_id in planted},
        others=len(places.keys() - planted.keys()),
    )


def read_pairs(raw: Path, validation: Path) -> tuple[tuple[Pair, ...], Labels]:
    """Read label maps and predictions of the cases that both have."""
    spec = read_spec(raw / "dataset.json")
    pairs = []
    for path in sorted(validation.glob(f"[!.]*{spec.label_ending}")):
        reference = raw / "labelsTr" / path.name
        if reference.exists():
            drawn, geometry = read_segmentation(reference)
            pairs.append(
                Pair(
                    case_id=path.name.removesuffix(spec.label_ending),
                    drawn=drawn,
                    predicted=read_segmentation(path)[0],
                    spacing=geometry.spacing,
                )
            )
    return tuple(pairs), spec.labels


def look(pair: Pair, labels: Labels, drawn: Segmentation) -> Evidence:
    """Hold a label map, which may be spoilt, against the prediction of its case."""
    return gather(pair.case_id, pair.predicted, drawn, labels, pair.spacing)


def replant(
    pairs: Sequence[Pair],
    labels: Labels,
    kinds: Sequence[str],
    voxels: float,
    seeds: int,
    errors: int,
) -> Iterator[Outcome]:
    """Plant errors in copies, seed by seed; those of one seed take the kinds in turn."""
    clean = {pair.case_id: look(pair, labels, pair.drawn) for pair in pairs}
    yield judge(rank(list(clean.values())), {})
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(pairs), errors, replace=False)
        evidence, planted = dict(clean), {}
        for number, index in enumerate(chosen):
            pair = pairs[int(index)]
            kind = kinds[(seed + number) % len(kinds)]
            spoilt, planted[pair.case_id] = plant(pair.drawn, kind, voxels, rng)
            evidence[pair.case_id] = look(pair, labels, spoilt)
        yield judge(rank(list(evidence.values())), planted)


def small(plan: Plan) -> Plan:
    """Give the plan a network that learns phantoms on a CPU in a minute."""
    planned = plan.configuration(CONFIGURATION)
    network = dataclasses.replace(
        planned.architecture,
        features=(8, 16, 32),
        kernel_sizes=((1, 3, 3),) * 3,
        strides=((1, 1, 1), (1, 2, 2), (1, 2, 2)),
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(1, 1),
    )
    planned = dataclasses.replace(
        planned, architecture=network, patch_size=(1, 48, 40), batch_size=12
    )
    return dataclasses.replace(plan, configurations={planned.name: planned})


def train_phantoms(
    root: Path, seed: int, cases: int, errors: int, epochs: int, voxels: float
) -> tuple[Outcome, float]:
    """Draw phantoms, spoil some, train two folds on all, and judge what the verb suspects.

    Returns:
        What became of the errors, and the mean Dice of the validation.
    """
    folders = Folders.of_root(root)
    raw = folders.raw_folder(PHANTOMS)
    spec = phantom.write_dataset(raw, "mri", cases=cases, seed=seed)
    maps = sorted(folders.labels(PHANTOMS).glob(f"*{spec.file_ending}"))
    ids = [path.name.removesuffix(spec.file_ending) for path in maps]
    rng = np.random.default_rng(seed)
    planted = {}
    for number, index in enumerate(rng.choice(cases, errors, replace=False)):
        drawn, geometry = read_segmentation(maps[index])
        spoilt, planted[ids[index]] = plant(drawn, KINDS[number % len(KINDS)], voxels, rng)
        write(maps[index], spoilt, geometry)
    halves = ids[::2], ids[1::2]
    folds = [{"train": list(a), "val": list(b)} for a, b in (halves, halves[::-1])]
    (raw / "splits_final.json").write_text(json.dumps(folds))
    pipeline.fingerprint(folders, PHANTOMS)
    plan = small(pipeline.plan(folders, PHANTOMS))
    record.save(plan, folders.plan_file(PHANTOMS, plan.name))
    pipeline.preprocess(folders, PHANTOMS)
    settings = TrainSettings(
        epochs=epochs,
        iterations=25,
        validation_iterations=1,
        optimizer="adamw",
        lr=4e-3,
        momentum=0.9,
        augmentation="mild",
    )
    dice = []
    for fold in ("0", "1"):
        done = pipeline.train(folders, PHANTOMS, CONFIGURATION, fold, settings=settings, **CPU)
        dice.append(pipeline.validation_summary(done).foreground_mean.dice or 0.0)
    return judge(pipeline.suspect(folders, PHANTOMS), planted), float(np.mean(dice))


def tell(name: str, outcomes: Sequence[Outcome]) -> bool:
    """Print a line of the table, and whether all errors are among the first ten."""
    count = sum(len(one.planted) for one in outcomes)
    top = sum(one.in_top for one in outcomes)
    listed = [p for one in outcomes for p in one.ranks.values() if p is not None]
    others = [one.others for one in outcomes]
    print(
        f"| {name} | {len(outcomes)} | {count} | {top} | {len(listed)} | "
        f"{max(listed, default='-')} | {np.mean(others):.2f} (at most {max(others)}) |",
        flush=True,
    )
    return top == count


def main() -> int:
    """Run the row."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="not used")
    parser.add_argument("--raw", type=Path, help="folder of a raw dataset")
    parser.add_argument("--validation", type=Path, help="folder of predicted validation cases")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--errors", type=int, help="in a seed: 3, of phantoms 5")
    parser.add_argument("--cases", type=int, default=24, help="phantoms that are drawn")
    parser.add_argument("--epochs", type=int, default=12, help="of 25 steps, of phantoms")
    parser.add_argument("--trainings", type=int, default=2, help="seeds that phantoms are drawn of")
    args = parser.parse_args()
    print("| what | seeds | errors | in the top 10 | listed | worst rank | others listed |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    if args.raw is None:
        good = True
        for seed in range(args.trainings):
            for errors in (args.errors or 5, 0):
                started = time.monotonic()
                with tempfile.TemporaryDirectory() as folder:
                    outcome, dice = train_phantoms(
                        Path(folder), seed, args.cases, errors, args.epochs, 4
                    )
                name = f"phantoms of seed {seed}, {errors} errors, Dice {dice:.2f}"
                good &= tell(name, [outcome])
                print(f"{outcome}, {time.monotonic() - started:.0f} s", file=sys.stderr)
        return 0 if good else 1
    pairs, labels = read_pairs(args.raw, args.validation)
    good = True
    for kinds, voxels in ((("swap", "shift"), 3), (("swap",), 0), (("shift",), 2), (("shift",), 3),
                          (("shift",), 4), (("slices",), 0)):  # fmt: skip
        clean, *outcomes = replant(pairs, labels, kinds, voxels, args.seeds, args.errors or 3)
        name = " or ".join(kinds) + (f" by {voxels} voxels" if "shift" in kinds else "")
        good &= tell(f"{len(pairs)} cases, {name}", outcomes) or kinds == ("slices",)
    tell(f"{len(pairs)} cases, nothing planted", [clean])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
