"""Every path of raw/, preprocessed/ and results/ is spelled here and nowhere else.

`Folders` gives those above and of a dataset; the functions after it those inside the folder of a
trained fold, or of predictions, wherever such a folder lies.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from nnseg.errors import MachineError, MissingError, UsageError
from nnseg.volume import map_ending, split_ending

DATASET_NAME = re.compile(r"Dataset(?P<number>\d{3,})_(?P<name>[^/\\]+)")
FOLDER_NAME = re.compile(r"[^\W_](?:[\w .()+-]*[\w)])?")
FOLD_FOLDER = re.compile(r"fold_(?P<fold>all|\d+)(?:_seed(?P<seed>\d+))?")
CHOICE = "choice.json"  # which models predict a dataset
CHOOSING = "choosing.json"  # what was found out where one was chosen
PROOF = ".proof.json"  # behind the name of a predicted label map
APPLIED = ".postprocessed.json"  # behind that of a postprocessed one
COMPACT = (".probabilities.b2nd", ".probabilities.json")  # behind the name of a case
FOLDER_NAME_RULE = (
    "it must begin with a letter or digit, hold only letters, digits, blanks and _ . - + ( ), not "
    "`..`, and not end in a blank or sign"
)


def is_folder_name(text: str) -> bool:
    """Say whether `text` can name a folder of ours and nothing else, whatever the system.

    Names of plans and configurations come out of files that others wrote; joined to a path, a name
    such as `../x` would lead out of our folders.

    >>> is_folder_name("3d_fullres"), is_folder_name("../x"), is_folder_name("a..b")
    (True, False, False)
    >>> is_folder_name("Dataset005_Größe 2 (neu)"), is_folder_name(".hidden"), is_folder_name("a/b")
    (True, False, False)
    """
    return FOLDER_NAME.fullmatch(text) is not None and ".." not in text


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """The three data roots; a dataset is a folder of the same name in each.

    Nothing is parsed out of a folder's name but the number of a dataset, which is how people
    call it. Every name is checked by `is_folder_name`; UsageError where it is none.
    """

    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def of_root(cls, root: Path) -> "Folders":
        """Give the folders raw/, preprocessed/ and results/ below `root`."""
        return cls(raw=root / "raw", preprocessed=root / "preprocessed", results=root / "results")

    def raw_folder(self, dataset: str) -> Path:
        return self.raw / _checked("dataset", dataset)

    def spec_file(self, dataset: str) -> Path:
        return self.raw_folder(dataset) / "dataset.json"

    def images(self, dataset: str) -> Path:
        return self.raw_folder(dataset) / "imagesTr"

    def labels(self, dataset: str) -> Path:
        return self.raw_folder(dataset) / "labelsTr"

    def test_images(self, dataset: str) -> Path:
        return self.raw_folder(dataset) / "imagesTs"

    def test_labels(self, dataset: str) -> Path:
        return self.raw_folder(dataset) / "labelsTs"

    def test_predictions(self, dataset: str) -> Path:
        return self.models_folder(dataset) / "predicted_test"

    def user_splits_file(self, dataset: str) -> Path:
        return self.raw_folder(dataset) / "splits_final.json"

    def prepared_folder(self, dataset: str) -> Path:
        return self.preprocessed / _checked("dataset", dataset)

    def fingerprint_file(self, dataset: str) -> Path:
        return self.prepared_folder(dataset) / "fingerprint.json"

    def splits_file(self, dataset: str) -> Path:
        return self.prepared_folder(dataset) / "splits_final.json"

    def plans_folder(self, dataset: str) -> Path:
        return self.prepared_folder(dataset) / "plans"

    def plan_file(self, dataset: str, plan: str) -> Path:
        return self.plans_folder(dataset) / f"{_checked('plan', plan)}.json"

    def store(self, dataset: str, plan: str, configuration: str) -> Path:
        return self.preprocessed / _below(dataset, plan, configuration)

    def models_folder(self, dataset: str) -> Path:
        return self.results / _checked("dataset", dataset)

    def model(self, dataset: str, plan: str, configuration: str) -> Path:
        return self.results / _below(dataset, plan, configuration)

    def plan_models(self, dataset: str, plan: str) -> Path:
        return self.models_folder(dataset) / _checked("plan", plan)

    def choice_file(self, dataset: str) -> Path:
        return self.models_folder(dataset) / CHOICE

    def choosing_file(self, dataset: str) -> Path:
        return self.models_folder(dataset) / CHOOSING

    def suspects_file(self, dataset: str) -> Path:
        return self.models_folder(dataset) / "suspects.json"

    def run_folder(self, dataset: str) -> Path:
        return self.models_folder(dataset) / "run"

    def agenda_file(self, dataset: str) -> Path:
        return self.run_folder(dataset) / "agenda.json"

    def fold(self, dataset: str, plan: str, configuration: str, fold: str, seed: int) -> Path:
        _checked("fold", fold)
        name = f"fold_{fold}" if seed == 0 else f"fold_{fold}_seed{seed}"
        return self.model(dataset, plan, configuration) / name


def choosing_beside(choice: Path) -> Path:
    """Give the record of how the content of a choice.json was found."""
    return choice.with_name(CHOOSING)


def fold_folder(models: Path, configuration: str, fold: str) -> Path:
    """Give the folder of a fold below that of a plan's models, wherever that lies."""
    return models / _checked("configuration", configuration) / f"fold_{_checked('fold', fold)}"


def trained_configurations(models: Path, kind: str = "final") -> tuple[Path, ...]:
    """Give the folders of configurations below that of a plan's models that have a trained fold."""
    files = models.glob(f"*/fold_*/{checkpoint_file(Path(), kind)}")
    return tuple(sorted({file.parents[1] for file in files}))


def checkpoint_file(fold: Path, kind: str) -> Path:
    """Give the record of the checkpoint `final`, `best` or `latest` of a fold."""
    return fold / f"checkpoint_{kind}.json"


def validation_folder(fold: Path) -> Path:
    """Give the folder of the predicted validation cases of a fold."""
    return fold / "validation"


def validated_file(fold: Path) -> Path:
    """Give the record of the weights that the predictions of `validation_folder` are of."""
    return validated_record(validation_folder(fold))


def validated_record(predictions: Path) -> Path:
    """Give what a folder of predictions has in it if they are those of a fold's validation."""
    return predictions / "validated.json"


def next_stage_folder(fold: Path, configuration: str) -> Path:
    """Give the folder of what a fold predicted for the cascade `configuration` to learn from."""
    return fold / "next_stage" / configuration


def holds_predictions(folder: Path) -> bool:
    """Whether a folder is that of a trained fold, or one of scored predictions."""
    return checkpoint_file(folder, "final").is_file() or summary_file(folder).is_file()


def report_folder(results: Path) -> Path:
    """Give the folder of the report on the results of a folder."""
    return results / "report"


def comparison_folder(second: Path) -> Path:
    """Give the folder of the report that compares other results with those of a folder."""
    return second / "comparison"


def report_file(report: Path) -> Path:
    """Give the page of a report."""
    return report / "index.html"


def facts_file(report: Path) -> Path:
    """Give the record of what the page of a report shows."""
    return report / "report.json"


def run_record(folder: Path) -> Path:
    """Give the record of what the command did whose results the folder holds."""
    return folder / "run.json"


def metrics_file(fold: Path) -> Path:
    """Give the table of a training's epochs."""
    return fold / "metrics.csv"


def progress_file(fold: Path) -> Path:
    """Give the plot of a training's epochs."""
    return fold / "progress.png"


def postprocessing_file(model: Path) -> Path:
    """Give the rules for the label maps that the model of a configuration's folder predicts."""
    return model / "postprocessing.json"


def summary_file(predictions: Path) -> Path:
    """Give the scores of a folder of predictions."""
    return predictions / "summary.json"


def evaluation_record(predictions: Path) -> Path:
    """Give the record of what was scored into a folder's summary.json."""
    return predictions / "run_evaluate.json"


def confidence_file(validation: Path) -> Path:
    """Give what a model's confidence is worth, by its validation cases."""
    return validation / "confidence.json"


def compact_files(label_map: Path) -> tuple[Path, Path]:
    """Give the compact probabilities beside a label map: their array, and the record of it."""
    case_id, _ = split_ending(label_map.name)
    array, stored = (label_map.with_name(f"{case_id}{ending}") for ending in COMPACT)
    return array, stored


def compact_records(predictions: Path) -> tuple[Path, ...]:
    """List the records of compact probabilities in a folder."""
    return tuple(sorted(predictions.glob(f"[!.]*{COMPACT[1]}")))


def predicted_spec_file(predictions: Path) -> Path:
    """Give the dataset.json that names the labels of a folder of predictions."""
    return predictions / "dataset.json"


def proof_file(label_map: Path) -> Path:
    """Give the record of what a predicted label map was made from, which lies beside it.

    The label map's ending is in its name: x.nii.gz and x.nrrd are two results.
    """
    return label_map.with_name(f"{label_map.name}{PROOF}")


def proof_files(predictions: Path) -> tuple[Path, ...]:
    """List the proofs of the label maps in a folder."""
    return tuple(sorted(predictions.glob(f"[!.]*{PROOF}")))


def applied_file(label_map: Path) -> Path:
    """Give the record of what a postprocessed label map was made from, which lies beside it."""
    return label_map.with_name(f"{label_map.name}{APPLIED}")


def applied_files(folder: Path) -> tuple[Path, ...]:
    """List the records of the postprocessed label maps in a folder."""
    return tuple(sorted(folder.glob(f"[!.]*{APPLIED}")))


def running_folder(predictions: Path, run: str) -> Path:
    """Give the folder whose lock a run holds that predicts into `predictions`."""
    return predictions / ".running" / run


def map_file(label_map: Path, name: str) -> Path:
    """Give the file of a map of a prediction, such as its entropy."""
    stem, ending = split_ending(label_map.name)
    return label_map.with_name(f"{stem}_{name}{map_ending(ending)}")


def statistics_file(predictions: Path, run: str = "run") -> Path:
    """Give the table of what the label maps of a run hold."""
    return predictions / ("statistics.csv" if run == "run" else f"{run}.statistics.csv")


def is_of_nnunet(model: Path) -> bool:
    """Whether the folder of a model, or of one fold of it, is as nnU-Net lays it out."""
    return any(True for place in (".", "fold_*") for _ in model.glob(f"{place}/checkpoint_*.pth"))


def trained_folds(
    model: Path,
    chosen: Sequence[str] = (),
    kind: str = "final",
    made_by: str = "nnseg train DATASET CONFIGURATION",
) -> tuple[Path, ...]:
    """Give the folders of trained folds of a configuration's folder.

    Args:
        model: It holds fold_0, fold_1, ...; or it is the folder of one fold.
        chosen: Folds as they are called, such as "0", "all" or "0_seed1". None chosen are all
            numbered folds that are trained; where there is none, `all`.
        kind: The checkpoint that each must have.
        made_by: The command that makes them, but for the fold.

    Raises:
        MissingError: There is no trained fold, or not one that was chosen.
    """
    if not chosen and checkpoint_file(model, kind).is_file():
        return (model,)
    found = {
        path.parent.name.removeprefix("fold_"): path.parent
        for path in sorted(model.glob(f"fold_*/{checkpoint_file(Path(), kind)}"))
    }
    wanted = chosen or [name for name in found if name.isdecimal()] or ["all"]
    missing = [name for name in wanted if name not in found]
    if missing:
        there = ", ".join(found) or "none"
        lacking = missing if chosen else ["0"]
        raise MissingError(
            f"{model}: fold {', '.join(lacking)} is not trained (trained: {there}); "
            f"`{made_by} {lacking[0]}` makes it"
        )
    return tuple(found[name] for name in dict.fromkeys(wanted))


def folds_by_seed(model: Path, kind: str = "final") -> dict[int, dict[str, Path]]:
    """Give the folders of trained folds of a configuration's folder: by seed, then by fold.

    It is the way back from what `Folders.fold` names: "0", ..., "all", those of seed 0 first.
    """
    found: dict[int, dict[str, Path]] = {}
    for path in sorted(model.glob(f"fold_*/{checkpoint_file(Path(), kind)}")):
        name = FOLD_FOLDER.fullmatch(path.parent.name)
        if name is not None:
            found.setdefault(int(name["seed"] or 0), {})[name["fold"]] = path.parent
    return dict(sorted(found.items()))


def find_dataset(folders: Folders, name: str) -> tuple[Folders, str]:
    """Find the dataset that a user calls `name`: its number, its folder's name, or a path to it.

    A path to a raw dataset makes the folder around it the raw root. Only what has a separator or
    begins with a dot is a path: a folder that happens to be called 4 is not meant by `4`.

    Raises:
        UsageError: Several datasets have this number, or the folder at the path has a name that no
            folder of ours can have.
        MissingError: There is none.
        MachineError: A folder cannot be listed.
    """
    if name.startswith(".") or any(separator in name for separator in ("/", os.sep)):
        path = Path(name).absolute()
        with _listing(path):
            path = path.resolve()
            there = path.is_dir()
        if not there:
            raise MissingError(
                f"{name}: there is no such folder; give a dataset's id, name or path"
            )
        return replace(folders, raw=path.parent), _checked("dataset", path.name)
    known = known_datasets(folders)
    if name in known:
        return folders, name
    if name.isdecimal():
        matches = [n for n in known if _number(n) == name.lstrip("0")]
        if len(matches) > 1:
            raise UsageError(f"dataset {name} may be {' or '.join(matches)}; give the whole name")
        if matches:
            return folders, matches[0]
    found = ", ".join(known) or "none"
    raise MissingError(
        f"no dataset {name} in {folders.raw}; found: {found}. Put it there as "
        "DatasetNNN_Name, or give --root; a path begins with ./ or /"
    )


def known_datasets(folders: Folders) -> tuple[str, ...]:
    """List the names of all datasets that have a folder in any of the roots, sorted.

    Raises:
        MachineError: A root cannot be listed.
    """
    found = set[str]()
    for root in (folders.raw, folders.preprocessed, folders.results):
        with _listing(root):
            if root.is_dir():
                found |= {entry.name for entry in root.iterdir() if entry.is_dir()}
    return tuple(sorted(name for name in found if DATASET_NAME.fullmatch(name)))


@contextmanager
def _listing(folder: Path) -> Iterator[None]:
    """Say that `folder` cannot be listed where the system refuses."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # until Python 3.13 links in a circle are the second
        reason = getattr(error, "strerror", None) or error
        raise MachineError(
            f"{folder}: cannot be listed ({reason}); check the folder and its rights"
        ) from None


def _number(dataset: str) -> str | None:
    found = DATASET_NAME.fullmatch(dataset)
    return found and found["number"].lstrip("0")


def _checked(kind: str, name: str) -> str:
    if not is_folder_name(name):
        raise UsageError(f"{name!r} cannot name a {kind}; {FOLDER_NAME_RULE}")
    return name


def _below(dataset: str, plan: str, configuration: str) -> Path:
    names = {"dataset": dataset, "plan": plan, "configuration": configuration}
    return Path(*(_checked(kind, name) for kind, name in names.items()))
