"""Predict a folder of hippocampus images, from files to files, with the same weights.

    python bench/predict_folder.py --peer PYTHON --shared DIR [--model MODEL] [--repeats N]
        [--cases N] [--quick]

Ours is `nnseg predict` as it comes, from start to exit. The peer runs twice, with one process each
for reading and writing and with its own default; the better one counts. MODEL is a folder of
nnunetv2's, TRAINER__PLANS__CONFIGURATION; without one, fold 0 of 3d_fullres is trained for ten
minutes and exported. One fold predicts, and mirrors are on.
"""

import shutil
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from os import environ
from pathlib import Path

from parity_predict import (
    CHOSEN,
    FP32,
    ONE_PROCESS,
    THREADS,
    Agreement,
    compare_labels,
    find_labels,
    kind_of,
    link_images,
    peer_command,
    predict_ours,
)
from timing import Row, Run, alternate, measure, report

from nnseg import record
from nnseg.checkpoint import Checkpoint, Kind
from nnseg.dataset import DatasetSpec
from nnseg.exchange.nnunet_folder import ImportedModel
from nnseg.folders import Folders, checkpoint_file
from nnseg.verbs.porting import export_model, import_model
from nnseg.volume import read_segmentation

DATASET, CONFIGURATION = "Dataset004_Hippocampus", "3d_fullres"
CASES, QUICK_CASES = 52, 2
BUDGET = "10m"  # of the training, where no model is given
SETTINGS = {"1 process each": ONE_PROCESS, "default processes": ()}


@dataclass(frozen=True, slots=True, kw_only=True)
class SameModel:
    """The same weights as both sides have them."""

    ours: Path  # folder of a configuration
    theirs: ImportedModel
    fold: str
    kind: Kind  # the checkpoint

    @property
    def mirrors(self) -> int:
        """Ways in which a tile is seen: as it is, and along the axes that training has mirrored."""
        folder = self.ours / f"fold_{self.fold}"
        return 2 ** len(record.load(Checkpoint, checkpoint_file(folder, self.kind)).mirror_axes)

    @property
    def spec(self) -> DatasetSpec:
        """The dataset.json of images to predict."""
        plan = self.theirs.plan
        return DatasetSpec(
            channels=plan.channels, labels=plan.labels, num_training=0, file_ending=plan.file_ending
        )


def main() -> int:
    """Run the row with both settings of the peer."""
    args = parse_model_arguments(__doc__)
    with tempfile.TemporaryDirectory(prefix="nnseg-bench-") as name:
        folder = Path(name)
        model = take_model(args, folder)
        most = args.cases or (QUICK_CASES if args.quick else CASES)
        source = args.shared / "data" / DATASET / "imagesTr"
        cases = link_images(source, folder / "images", model.spec, most)
        rows = [compare(folder, args, model, cases, setting) for setting in SETTINGS]
    rows.sort(key=lambda row: row.ratio)
    return report(rows[:1], args.peer)


def parse_model_arguments(description: str | None) -> Namespace:
    """Read what rows that predict with a model take."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--peer", required=True, help="python of a venv with nnunetv2")
    parser.add_argument("--shared", type=Path, default=environ.get("NNSEG_SHARED"))
    parser.add_argument("--model", type=Path, help="folder of a model of nnunetv2's")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    parser.add_argument("--cases", type=int, help=f"images of the folder: {CASES}")
    parser.add_argument("--quick", action="store_true", help="little work: to see that it runs")
    args = parser.parse_args()
    if args.shared is None:
        parser.error("--shared: name the folder of data/ and reference/, or set NNSEG_SHARED")
    args.shared = Path(args.shared)
    return args


def take_model(args: Namespace, folder: Path) -> SameModel:
    """Import the model that is given, or one that is trained now, into `folder`."""
    source = args.model or train_model(args.shared, folder / "trained", quick=args.quick)
    imported = import_model([source], folder / "models")
    if len(imported) != 1:
        sys.exit(f"{source} holds {len(imported)} models; give one")
    fold = next(iter(imported[0].checkpoints))
    return SameModel(
        ours=folder / "models" / imported[0].configuration_name,
        theirs=imported[0],
        fold=fold,
        kind=kind_of(imported[0], (fold,)),
    )


def train_model(shared: Path, root: Path, *, quick: bool) -> Path:
    """Train fold 0 for a while, and give it as a model of nnunetv2's."""
    (root / "raw").mkdir(parents=True)
    (root / "raw" / DATASET).symlink_to((shared / "data" / DATASET).absolute())
    nnseg = [sys.executable, "-m", "nnseg"]
    common = ["--root", str(root), "-q"]
    length = ["--epochs", "1", "--iterations", "2"] if quick else ["--budget", BUDGET]
    length += ["--augmentation", "full"]  # a mild one has no mirrors, and neither the prediction
    length += ["--validation-iterations", "1"] if quick else []
    measure([*nnseg, "plan", DATASET, *common])
    measure([*nnseg, "preprocess", DATASET, "-c", CONFIGURATION, *common])
    measure([*nnseg, "train", DATASET, CONFIGURATION, "0", *length, "--no-validation", *common])
    trained = Folders.of_root(root).model(DATASET, "nnseg", CONFIGURATION)
    return export_model(trained, root / "exported")[0]


def compare(
    folder: Path, args: Namespace, model: SameModel, cases: tuple[str, ...], setting: str
) -> Row:
    """Predict the folder by both sides in turn, the peer with one of SETTINGS."""
    images, ours_out, peer_out = folder / "images", folder / "ours", folder / "peer"
    fold = (model.fold,)

    def ours() -> Run:
        shutil.rmtree(ours_out, ignore_errors=True)  # else what is proven would not be done again
        return predict_ours(model.ours, model.kind, images, ours_out, fold, CHOSEN)

    def peers() -> Run:
        shutil.rmtree(peer_out, ignore_errors=True)
        argv = peer_command(args.peer, model.theirs, images, peer_out, fold)
        return measure([*argv, *SETTINGS[setting]], env=THREADS)

    first, second = alternate(ours, peers, args.repeats, warm_up=False)
    predict_ours(model.ours, model.kind, images, folder / "exact" / setting, fold, FP32)

    def agreement(out: Path) -> Agreement:
        pairs = zip(
            find_labels(out, cases, model.spec),
            find_labels(peer_out, cases, model.spec),
            strict=True,
        )
        labels = model.theirs.plan.labels
        return compare_labels(
            ((read_segmentation(a)[0], read_segmentation(b)[0]) for a, b in pairs), labels
        )

    exact, chosen = agreement(folder / "exact" / setting), agreement(ours_out)
    return Row(
        name="predict a folder",
        data=f"{len(cases)} hippocampus images, {model.theirs.configuration_name}, fold "
        f"{model.fold}, {model.mirrors} passes a tile; peer: {setting}",
        ours=first,
        peers=second,
        gate=f"fp32: {exact.describe()}; as it comes: {chosen.describe()}",
        passed=exact.is_exact and chosen.is_close,
    )


if __name__ == "__main__":
    sys.exit(main())
