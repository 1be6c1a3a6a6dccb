"""What a cascade learns from: what the stage before predicts of cases it was not trained on.

The predictions are kept beside the model that made them, and made when a cascade asks for them: the
stage before knows nothing of it.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnseg import record, store
from nnseg.axes import Shape
from nnseg.errors import DataError, MissingError, StoppedError
from nnseg.folders import Folders, checkpoint_file, next_stage_folder
from nnseg.parallel import OnProgress
from nnseg.plan import Configuration, Plan
from nnseg.preprocess import preprocessing_hash
from nnseg.restore import carry_over
from nnseg.splits import folds
from nnseg.validated import retrain, why_not_held_out

LISTED = 5  # cases that a message names


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """The record of a prediction that is kept for the next stage."""

    case_id: str
    made_from: str  # hash of the model's weights, what it saw, and the shape it was brought to
    sha256: str  # of the label map's file


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A prediction that a cascade learns from."""

    case_id: str
    fold: Path  # of the model that was not trained on the case
    shape: Shape  # voxels, plan order: of the case as the cascade has it
    made_from: str


def out_of_fold(
    folders: Folders,
    dataset: str,
    plan_name: str,
    the_plan: Plan,
    cascade: Configuration,
    case_ids: Iterable[str],
    *,
    seed: int = 0,
    device: str | None = None,
    precision: str | None = None,
    in_memory: bool = True,
    on_progress: OnProgress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Give what the stage before a cascade predicts of cases, each by a model of another fold.

    Predictions that are missing, damaged, or of other weights or data than today's, are made.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        plan_name: The plan's name on disk.
        the_plan: The plan.
        cascade: The configuration that learns from them.
        case_ids: Of training cases, preprocessed for both stages.
        seed: Of the models; where none was trained with it, those of seed 0 are taken.
        device: "cpu", "cuda", ...; None is the best there is.
        precision: "fp32", "bf16" or "fp16"; None chooses.
        in_memory: Unpack them; otherwise they are read from the disk in parts.
        on_progress: Called after each prediction that is made.
        stop: Asked before each of these.

    Returns:
        Case id to label positions (z, y, x), plan order, on the grid that the cascade sees; None
        where `cascade` is none.

    Raises:
        MissingError: Models are missing; the commands that make them are named.
        DataError: No fold validates on some case, or its model was trained on it before the folds
            changed.
        StoppedError: `stop` said so; what was predicted stays.
    """
    if cascade.previous is None:
        return None
    before = the_plan.configuration(cascade.previous)
    here, there = (folders.store(dataset, plan_name, each.data) for each in (cascade, before))
    models = _models(folders, dataset, plan_name, before.name, set(case_ids), seed)
    wanted = [_expect(case_id, fold, here, there) for case_id, fold in models.items()]
    missing = [each for each in wanted if _find(each, cascade.name) is None]
    seen = preprocessing_hash(the_plan, before)
    model, loaded = None, None
    for number, each in enumerate(sorted(missing, key=lambda one: one.fold)):
        if stop():
            raise StoppedError(
                f"stopped after {number} of {len(missing)} cases that {before.name} predicts for "
                f"{cascade.name}; the same command goes on"
            )
        if model is None or loaded != each.fold:
            from nnseg.inference import load_model

            model, loaded = load_model((each.fold,), device=device, precision=precision), each.fold
        case = store.open_case(there, each.case_id, seen, in_memory=True)
        runs = model.logits(case.image)
        positions = carry_over(runs, the_plan.labels, before, case.shape, each.shape)
        path = _label_map(each, cascade.name)
        found = Carried(
            case_id=each.case_id,
            made_from=each.made_from,
            sha256=store.save_label_map(path, positions),
        )
        record.save(found, path.with_suffix(".json"))
        if on_progress:
            on_progress(f"predicting with {before.name}", number + 1, len(missing))
    return {
        each.case_id: store.open_label_map(
            _label_map(each, cascade.name), str(_find(each, cascade.name)), in_memory=in_memory
        )
        for each in wanted
    }


def _models(
    folders: Folders, dataset: str, plan_name: str, before: str, case_ids: set[str], seed: int
) -> dict[str, Path]:
    """Give, for each case, the folder of the fold that validates on it, sorted by case.

    Raises:
        MissingError: Some are not trained.
        DataError: No fold validates on some case, or its model was trained on it.
    """
    found: dict[str, Path] = {}
    untrained, asked = [], []
    for number, fold in enumerate(folds(folders, dataset)):
        members = case_ids & set(fold.val)
        if not members:
            continue
        places = {
            each: folders.fold(dataset, plan_name, before, str(number), each) for each in (seed, 0)
        }
        trained = [each for each in places if checkpoint_file(places[each], "final").is_file()]
        if trained:
            place = places[trained[0]]
            found.update(dict.fromkeys(members, place))
            asked.append((fold, place, str(number), trained[0]))
        else:
            untrained.append(f"`nnseg train {dataset} {before} {number}`")
    if untrained:
        raise MissingError(
            f"a cascade learns from what {before} predicts of cases that it was not trained on; "
            f"train it first: {', '.join(untrained)}"
        )
    if parted := sorted(case_ids - found.keys()):
        raise DataError(
            f"{folders.splits_file(dataset)}: {', '.join(parted[:LISTED])} are in the val of no "
            f"fold ({len(parted)} cases), so that every {before} model has trained on them; a "
            "cascade needs folds that validate on each case once"
        )
    for fold, place, name, its_seed in asked:
        members = {case_id for case_id in fold.val if found.get(case_id) == place}
        if fault := why_not_held_out(place, members, fold):
            raise DataError(
                f"{place}: {fault}, and a cascade learns from cases that it was not trained on; "
                f"{retrain(dataset, plan_name, before, name, its_seed)}"
            )
    return dict(sorted(found.items()))


def _expect(case_id: str, fold: Path, here: Path, there: Path) -> _Wanted:
    """Say what the prediction of a case must be made from."""
    checkpoint = record.read_json(checkpoint_file(fold, "final"))
    shape = store.read_record(here, case_id).placement.shape_resampled
    weights = checkpoint.get("weights_sha256") if isinstance(checkpoint, dict) else None
    parts = [str(weights), store.read_record(there, case_id).made_from, str(shape)]
    return _Wanted(
        case_id=case_id,
        fold=fold,
        shape=shape,
        made_from=hashlib.sha256("\n".join(parts).encode()).hexdigest(),
    )


def _find(wanted: _Wanted, cascade: str) -> str | None:
    """Give the SHA-256 of the prediction's file if it is there, whole and as expected."""
    path = _label_map(wanted, cascade)
    try:
        found = record.load(Carried, path.with_suffix(".json"))
        store.open_label_map(path, found.sha256, in_memory=False)
    except (DataError, MissingError):
        return None
    return found.sha256 if found.made_from == wanted.made_from else None


def _label_map(wanted: _Wanted, cascade: str) -> Path:
    return next_stage_folder(wanted.fold, cascade) / f"{wanted.case_id}.b2nd"
