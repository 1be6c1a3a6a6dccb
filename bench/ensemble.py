"""Two configurations averaged from the disk, by both programs from the same float32 probabilities.

    python bench/ensemble.py --peer PYTHON --shared DIR [--models FOLDER FOLDER] [--repeats N]
        [--cases N] [--quick]

The models predict hippocampus images of their validation fold once. What they find is left as
nnunetv2 leaves it, compressed float32 on the grid of the image with the properties that its own
reader gives, and as a validation of ours does. Timed is `nnseg ensemble` and `nnUNetv2_ensemble`,
from start to exit; the peer runs with its own number of processes and with one, and the better one
counts. FOLDERs are configurations of ours with fold 0; without them, fold 0 of 2d and of 3d_fullres
is trained for ten minutes each. The gate is 99.99 % of the labels equal.
"""

import shutil
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from os import environ
from pathlib import Path

import numpy as np
from parity_predict import THREADS, compare_labels, find_labels
from predict_folder import BUDGET, DATASET
from timing import Row, Run, alternate, measure, report

from nnseg import record
from nnseg.dataset import spec_to_json
from nnseg.folders import Folders, fold_folder, predicted_spec_file, validation_folder
from nnseg.inference import Model, load_model
from nnseg.probabilities import writing_compact
from nnseg.restore import axis_apart, body_of, restore_logits
from nnseg.verbs.planning import DEFAULT_PLAN
from nnseg.verbs.porting import export_model
from nnseg.volume import read_image, read_segmentation

CASES, QUICK_CASES = 20, 2
FOLD = "0"
CONFIGURATIONS = ("2d", "3d_fullres")
WANTED_EQUAL = 0.9999  # share of the voxels
OF_FOLDERS = ("plans.json", "dataset.json")  # the rest belongs to a case
SETTINGS = {"1 process": ("-np", "1"), "default processes": ()}

# The peer's own reader says what its writer needs of each image.
PROPERTIES = """
import json, sys
from batchgenerators.utilities.file_and_folder_operations import load_json, save_pickle
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
plans, targets = sys.argv[1], json.loads(sys.argv[2])
reader = PlansManager(load_json(plans)).image_reader_writer_class()
for image, files in targets:
    properties = reader.read_images([image])[1]
    for file in files:
        save_pickle(properties, file)
"""


def main() -> int:
    """Run the row with both settings of the peer."""
    args = read_arguments()
    with tempfile.TemporaryDirectory(prefix="nnseg-bench-") as name:
        folder = Path(name)
        sources = args.models or trained_models(args, folder / "trained")
        models = [
            load_model((fold_folder(source.parent, source.name, FOLD),)) for source in sources
        ]
        cases = validation_cases(args, sources[0], models[0])
        for number, model in enumerate(models):
            predict(args, model, cases, folder / f"ours{number}", folder / f"peer{number}")
        declare(args, sources, models, cases, folder)
        rows = [compare(folder, args, models, cases, setting) for setting in SETTINGS]
    rows.sort(key=lambda row: row.ratio)
    return report(rows[:1], args.peer)


def read_arguments() -> Namespace:
    """Read what the row takes."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="python of a venv with nnunetv2")
    parser.add_argument("--shared", type=Path, default=environ.get("NNSEG_SHARED"))
    parser.add_argument("--models", type=Path, nargs=2, help="folders of two configurations")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--quick", action="store_true", help="little work: to see that it runs")
    args = parser.parse_args()
    if args.shared is None:
        parser.error("--shared: name the folder of data/ and reference/, or set NNSEG_SHARED")
    args.shared = Path(args.shared)
    args.cases = QUICK_CASES if args.quick else args.cases
    return args


def trained_models(args: Namespace, root: Path) -> list[Path]:
    """Train fold 0 of both configurations for a while, and give their folders."""
    (root / "raw").mkdir(parents=True)
    (root / "raw" / DATASET).symlink_to((args.shared / "data" / DATASET).absolute())
    nnseg, common = [sys.executable, "-m", "nnseg"], ["--root", str(root), "-q"]
    length = ["--epochs", "1", "--iterations", "2"] if args.quick else ["--budget", BUDGET]
    length += ["--validation-iterations", "1"] if args.quick else []
    measure([*nnseg, "plan", DATASET, *common])
    measure([*nnseg, "preprocess", DATASET, "-c", *CONFIGURATIONS, *common])
    for name in CONFIGURATIONS:
        measure([*nnseg, "train", DATASET, name, FOLD, *length, "--no-validation", *common])
    folders = Folders.of_root(root)
    return [folders.model(DATASET, DEFAULT_PLAN, name) for name in CONFIGURATIONS]


def images_of(args: Namespace) -> Path:
    """Give the folder of the images."""
    return Path(args.shared) / "data" / DATASET / "imagesTr"


def validation_cases(args: Namespace, source: Path, model: Model) -> list[str]:
    """Name cases that the models did not learn from, as far as there are."""
    validation = validation_folder(fold_folder(source.parent, source.name, FOLD))
    ending = model.spec.label_ending
    found = [path.name.removesuffix(ending) for path in validation.glob(f"*{ending}")]
    if not found:
        ending = f"_0000{model.plan.file_ending}"
        found = [path.name.removesuffix(ending) for path in images_of(args).glob(f"*{ending}")]
    return sorted(found)[: args.cases]


def predict(args: Namespace, model: Model, cases: Sequence[str], ours: Path, peers: Path) -> None:
    """Leave what a model finds as both programs have it."""
    ours.mkdir()
    peers.mkdir()
    labels, configuration = model.plan.labels, model.configuration
    for case_id in cases:
        volume = read_image([images_of(args) / f"{case_id}_0000{model.plan.file_ending}"], 1)
        seen, placement = model.prepare(volume.image, volume.geometry.spacing)
        logits = np.concatenate(list(model.logits(seen)))
        with writing_compact(
            ours / f"{case_id}{model.spec.label_ending}",
            labels,
            volume.geometry,
            placement,
            resampling=configuration.resample_logits,
            axis_apart=axis_apart(placement, configuration),
        ) as take:
            take(logits)
        on_file = restore_logits([logits], placement, configuration, len(logits))
        likely = labels.probabilities(np.concatenate(list(on_file)))
        whole = np.zeros((labels.heads, *placement.shape), np.float32)
        whole[0] = 1  # outside the body
        for head, values in enumerate(whole):
            body_of(values, placement)[...] = likely[..., head]
        np.savez_compressed(peers / f"{case_id}.npz", probabilities=whole)


def declare(
    args: Namespace,
    sources: Sequence[Path],
    models: Sequence[Model],
    cases: Sequence[str],
    folder: Path,
) -> None:
    """Put beside the probabilities what each program wants to know of them."""
    exported = export_model(sources[0], folder / "exported")[0]
    for number, model in enumerate(models):
        text = record.json_text(spec_to_json(model.spec))
        predicted_spec_file(folder / f"ours{number}").write_text(text)
        for name in ("plans.json", "dataset.json"):
            shutil.copy(exported / name, folder / f"peer{number}" / name)
    ending = models[0].plan.file_ending
    targets = [
        (
            str(images_of(args) / f"{case_id}_0000{ending}"),
            [str(folder / f"peer{number}" / f"{case_id}.pkl") for number in range(len(models))],
        )
        for case_id in cases
    ]
    argv = [args.peer, "-c", PROPERTIES, str(folder / "peer0" / "plans.json")]
    measure([*argv, record.json_text(targets)], env=THREADS)


def compare(
    folder: Path, args: Namespace, models: Sequence[Model], cases: Sequence[str], setting: str
) -> Row:
    """Average by both sides in turn, the peer with one of SETTINGS."""
    ours_out, peer_out = folder / "ours", folder / "peer"
    mine = [str(folder / f"ours{number}") for number in range(len(models))]
    theirs = [str(folder / f"peer{number}") for number in range(len(models))]

    def ours() -> Run:
        shutil.rmtree(ours_out, ignore_errors=True)  # else what is proven would not be done again
        argv = [sys.executable, "-m", "nnseg", "ensemble", "-i", *mine, "-o", str(ours_out), "-q"]
        return measure(argv, env=THREADS)

    def peers() -> Run:
        shutil.rmtree(peer_out, ignore_errors=True)
        command = str(Path(args.peer).with_name("nnUNetv2_ensemble"))
        argv = [command, "-i", *theirs, "-o", str(peer_out), *SETTINGS[setting]]
        return measure(argv, env=THREADS)

    first, second = alternate(ours, peers, args.repeats, warm_up=False)
    spec, labels = models[0].spec, models[0].plan.labels
    pairs = zip(find_labels(ours_out, cases, spec), find_labels(peer_out, cases, spec), strict=True)
    found = compare_labels(
        ((read_segmentation(a)[0], read_segmentation(b)[0]) for a, b in pairs), labels
    )
    kept, taken = on_disk(mine, (".b2nd", ".json")), on_disk(theirs, (".npz", ".pkl"))
    equal = 1 - found.differing / found.voxels
    names = " and ".join(model.configuration.name for model in models)
    return Row(
        name="ensemble",
        data=f"{len(cases)} hippocampus images, {names}, fold {FOLD}; peer: {setting}",
        ours=first,
        peers=second,
        gate=f"{found.differing} of {found.voxels} voxels differ; {kept / 2**20:.3g} MiB on the "
        f"disk, peer {taken / 2**20:.3g} MiB, /{taken / kept:.1f}",
        passed=equal >= WANTED_EQUAL,
    )


def on_disk(folders: Sequence[str], endings: tuple[str, ...]) -> int:
    """Give the bytes of the probabilities in some folders, and of what belongs to each case."""
    files = (path for folder in folders for path in Path(folder).iterdir())
    kept = [path for path in files if path.suffix in endings]
    return sum(path.stat().st_size for path in kept if path.name not in OF_FOLDERS)


if __name__ == "__main__":
    sys.exit(main())
