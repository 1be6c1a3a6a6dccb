"""Predictions of models that nnunetv2 made: nnunetv2's own beside ours from the imported models.

    python bench/parity_predict.py MODEL ... --peer PYTHON --images DIR [--labels DIR]
        [--cases N] [--folds FOLD ...]

A MODEL is a folder as nnunetv2 trains it, TRAINER__PLANS__CONFIGURATION, or one that holds several;
all are of one plan, and with a cascade comes the model before it. Both sides predict with all its
folds and mirrors, ours in fp32 and in the precision it chooses; of a cascade the peer predicts both
stages one after the other. Exits with 1 if labels in fp32 differ in more than 0.01 % of the voxels
or 0.1 % of the foreground of either side, or if, in the precision chosen, the Dice to the peer's
labels is below 0.999 for a class or the mean Dice to the truth is more than 0.0005 away from its.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from timing import OUR_PACKAGES, PEER_PACKAGES, Run, measure, versions

from nnseg.axes import Segmentation
from nnseg.checkpoint import Kind
from nnseg.dataset import DatasetSpec, find_cases
from nnseg.evaluate import confusion_table, score_table
from nnseg.exchange.nnunet_folder import ImportedModel
from nnseg.labels import Labels
from nnseg.verbs.porting import import_model
from nnseg.volume import read_segmentation

CASES = 10
ALLOWED_VOXELS, ALLOWED_UNION = 1e-4, 1e-3  # shares that differ in fp32
WANTED_DICE = 0.999  # to the peer's labels, each class, in the precision chosen
ALLOWED_DICE = 5e-4  # of the mean Dice to the truth, in the precision chosen
THREADS = {
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    "nnUNet_def_n_proc": "2",  # threads, too, that it takes
    "nnUNet_raw": "none",
    "nnUNet_preprocessed": "none",
    "nnUNet_results": "none",
}
ONE_PROCESS = ("-npp", "1", "-nps", "1")
FP32, CHOSEN = "fp32", "chosen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How the label maps of two sides differ over some cases."""

    cases: int
    voxels: int
    union: int  # voxels that are foreground on either side
    differing: int
    dice: dict[str, float]  # by class, over all voxels of all cases; those found on either side

    @property
    def share(self) -> float:
        """Of all voxels, those that differ."""
        return self.differing / self.voxels

    @property
    def union_share(self) -> float:
        """Of the foreground of either side, those that differ."""
        return self.differing / max(1, self.union)

    @property
    def lowest_dice(self) -> float:
        """Of the classes; 1 where neither side found anything."""
        return min(self.dice.values(), default=1.0)

    @property
    def is_exact(self) -> bool:
        """Whether it is as near as fp32 must be."""
        return self.share <= ALLOWED_VOXELS and self.union_share <= ALLOWED_UNION

    @property
    def is_close(self) -> bool:
        """Whether it is as near as lower precision must be."""
        return self.lowest_dice >= WANTED_DICE

    def describe(self) -> str:
        """Give all its numbers in a few words."""
        return (
            f"{self.share:.2g} of the voxels and {self.union_share:.2g} of the foreground differ, "
            f"lowest Dice {self.lowest_dice:.5f}"
        )


def main() -> int:
    """Predict by both sides, print a table, and say whether all gates are passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="python of a venv with nnunetv2")
    parser.add_argument("--images", type=Path, required=True, help="folder of raw images")
    parser.add_argument("--labels", type=Path, help="folder of their true label maps")
    parser.add_argument("--cases", type=int, default=CASES, help=f"at most so many: {CASES}")
    parser.add_argument("--folds", nargs="+", default=(), help="of each model; all if left out")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nnseg-bench-") as name:
        folder = Path(name)
        imported = import_model(args.models, folder / "models")
        spec = _spec(imported[0])
        cases = link_images(args.images, folder / "images", spec, args.cases)
        theirs = predict_peers(args.peer, imported, folder, args.folds)
        rows, passed = [], True
        for model in imported:
            truth = find_labels(args.labels, cases, spec) if args.labels else None
            for precision in (FP32, CHOSEN):
                out = folder / "ours" / model.configuration_name / precision
                predict_ours(
                    folder / "models" / model.configuration_name,
                    kind_of(model, args.folds),
                    folder / "images",
                    out,
                    args.folds,
                    precision,
                )
                row, good = compare_row(
                    model, cases, out, theirs[model.configuration_name], truth, precision
                )
                rows.append(row)
                passed &= good
    print_table(rows)
    print(f"nnseg: {versions(sys.executable, OUR_PACKAGES)}")
    print(f"peer: {versions(args.peer, PEER_PACKAGES)}")
    return 0 if passed else 1


def link_images(source: Path, target: Path, spec: DatasetSpec, most: int) -> tuple[str, ...]:
    """Link the images of at most so many cases, spread over the folder; give the cases' ids."""
    cases = find_cases(source, None, spec)
    step = -(-len(cases) // most)
    target.mkdir(parents=True)
    for case in cases[::step]:
        for image in case.images:
            (target / image.name).symlink_to(image.absolute())
    return tuple(case.case_id for case in cases[::step])


def find_labels(folder: Path, cases: Sequence[str], spec: DatasetSpec) -> list[Path]:
    """Give the true label maps of cases."""
    return [folder / f"{case_id}{spec.label_ending}" for case_id in cases]


def predict_peers(
    peer: str, models: Sequence[ImportedModel], folder: Path, folds: Sequence[str]
) -> dict[str, Path]:
    """Have the peer predict with each model, a cascade after the model before; give the folders."""
    by_name = {model.configuration_name: model for model in models}
    images = folder / "images"
    found: dict[str, Path] = {}
    for name, model in by_name.items():
        previous = model.plan.configuration(name).previous
        found[name] = folder / "peer" / name
        argv = peer_command(peer, model, images, found[name], folds)
        if previous is not None:  # of which ours takes all folds, whichever of the cascade's
            before = folder / "peer" / f"before_{name}"
            first = peer_command(peer, by_name[previous], images, before)
            measure([*first, *ONE_PROCESS], env=THREADS)
            argv += ["-prev_stage_predictions", str(before)]
        measure([*argv, *ONE_PROCESS], env=THREADS)
    return found


def peer_command(
    peer: str, model: ImportedModel, images: Path, out: Path, folds: Sequence[str] = ()
) -> list[str]:
    """Give the peer's command that predicts a folder of images with a model of its own."""
    chosen, kind = folds or default_folds(model), kind_of(model, folds)
    return [
        str(Path(peer).with_name("nnUNetv2_predict_from_modelfolder")),
        *("-i", str(images), "-o", str(out), "-m", model.source, "-f", *chosen),
        *("-chk", f"checkpoint_{kind}.pth", "-device", "cpu", "--disable_progress_bar"),
    ]


def default_folds(model: ImportedModel) -> list[str]:
    """Give the folds that predict where none are named: the numbered ones, else `all`."""
    return [fold for fold in model.checkpoints if fold.isdecimal()] or ["all"]


def kind_of(model: ImportedModel, folds: Sequence[str] = ()) -> Kind:
    """Give the checkpoint that all these folds of a model have; the final one, if they do."""
    chosen = [model.checkpoints[fold] for fold in folds or default_folds(model)]
    return "final" if all("final" in kinds for kinds in chosen) else "best"


def predict_ours(
    model: Path, kind: Kind, images: Path, out: Path, folds: Sequence[str], precision: str
) -> Run:
    """Predict a folder of images with a model of ours, from start to exit."""
    argv = [sys.executable, "-m", "nnseg", "predict", "-q", "-i", str(images), "-o", str(out)]
    argv += ["-m", str(model), "-chk", kind] + (["-f", *folds] if folds else [])
    argv += ["--precision", precision] if precision != CHOSEN else []
    return measure(argv, env=THREADS)


def compare_labels(pairs: Iterable[tuple[Segmentation, Segmentation]], labels: Labels) -> Agreement:
    """Compare label maps of ours, the first of each pair, with those of the peer."""
    size = len(labels.values)
    table: NDArray[np.int64] = np.zeros((size, size), np.int64)
    cases = 0
    for mine, theirs in pairs:
        table += confusion_table(mine, theirs, labels)
        cases += 1
    scores = score_table(table, labels)
    return Agreement(
        cases=cases,
        voxels=int(table.sum()),
        union=int(table.sum() - table[0, 0]),
        differing=int(table.sum() - np.trace(table)),
        dice={name: score.dice for name, score in scores.items() if score.dice is not None},
    )


def mean_dice(predictions: Sequence[Path], truth: Sequence[Path], labels: Labels) -> float:
    """Give the mean over classes of the mean Dice over cases, as an evaluation does."""
    found: dict[str, list[float]] = {}
    for predicted, true in zip(predictions, truth, strict=True):
        table = confusion_table(read_segmentation(predicted)[0], read_segmentation(true)[0], labels)
        for name, score in score_table(table, labels).items():
            if score.dice is not None:
                found.setdefault(name, []).append(score.dice)
    return float(np.mean([np.mean(values) for values in found.values()]))


def compare_row(
    model: ImportedModel,
    cases: Sequence[str],
    ours: Path,
    theirs: Path,
    truth: Sequence[Path] | None,
    precision: str,
) -> tuple[tuple[str, ...], bool]:
    """Give one line of the table, and whether its gate is passed."""
    labels, spec = model.plan.labels, _spec(model)
    mine, peers = find_labels(ours, cases, spec), find_labels(theirs, cases, spec)
    agreement = compare_labels(
        (
            (read_segmentation(a)[0], read_segmentation(b)[0])
            for a, b in zip(mine, peers, strict=True)
        ),
        labels,
    )
    passed = agreement.is_exact if precision == FP32 else agreement.is_close
    dice = ("", "", "")
    if truth is not None:
        own, peer = (mean_dice(files, truth, labels) for files in (mine, peers))
        passed &= precision == FP32 or abs(own - peer) <= ALLOWED_DICE
        dice = (f"{own:.4f}", f"{peer:.4f}", f"{own - peer:+.5f}")
    worst = min(agreement.dice, key=agreement.dice.__getitem__, default="no class")
    return (
        model.plan.dataset,
        f"{model.configuration_name}, {model.trainer}",
        precision,
        str(agreement.cases),
        f"{agreement.differing} of {agreement.voxels} ({agreement.share:.2g})",
        f"{agreement.union_share:.2g} of {agreement.union}",
        f"{agreement.lowest_dice:.5f} ({worst})",
        *dice,
        "passed" if passed else "FAILED",
    ), passed


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print the rows as Markdown."""
    head = (
        "dataset", "configuration", "precision", "cases", "voxels that differ",
        "of the foreground", "lowest Dice to the peer", "Dice to the truth", "peer's", "apart",
        "gate",
    )  # fmt: skip
    for cells in (head, ("---",) * len(head), *rows):
        print("| " + " | ".join(cells) + " |")


def _spec(model: ImportedModel) -> DatasetSpec:
    plan = model.plan
    return DatasetSpec(
        channels=plan.channels, labels=plan.labels, num_training=0, file_ending=plan.file_ending
    )


if __name__ == "__main__":
    sys.exit(main())
