"""Label maps held against predictions that never saw them, with their files: suspects.json."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnseg import record
from nnseg.dataset import Case, DatasetSpec, Fold, find_training_cases, read_spec
from nnseg.errors import DataError, MissingError, NnsegError, StoppedError
from nnseg.folders import Folders, folds_by_seed, validation_folder
from nnseg.labels import Labels
from nnseg.lock import locked
from nnseg.parallel import OnProgress, for_each, some
from nnseg.runlog import logged_run
from nnseg.scores.uncertainty import ExpectedDice
from nnseg.splits import folds as folds_of
from nnseg.suspects.corrections import Evidence, gather
from nnseg.suspects.label_errors import Suspects, rank
from nnseg.validated import (
    is_known,
    is_validated,
    learnt_by,
    replaced_maps,
    retrain,
    why_not_held_out,
)
from nnseg.verbs.planning import DEFAULT_PLAN
from nnseg.verbs.scoring import read_summary
from nnseg.volume import grid_fault, read_segmentation

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A case, and what a network made of it that was not trained on it."""

    case_id: str
    label_map: Path
    prediction: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Predicted:
    """What a configuration predicted out of fold, and how well."""

    configuration: str
    cases: dict[str, Path]  # id to label map
    dice: float


def suspect(
    folders: Folders,
    dataset: str,
    *,
    plan: str = DEFAULT_PLAN,
    configuration: str | None = None,
    seed: int = 0,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Suspects:
    """List the cases whose label maps are probably wrong, and write results/DATASET/suspects.json.

    Each label map is held against what the fold predicted that the case was held out of; see
    `nnseg.suspects.label_errors`. Where the probabilities of these predictions are kept, they tell
    whether the network was sure.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        plan: The name of the plan.
        configuration: Whose predictions; None is the one with the most cases, of equals the best.
        seed: Of the trainings.
        workers: Cases at once; None is one a core.
        on_progress: Called after each case.
        stop: Asked before each case.

    Raises:
        MissingError: No fold is trained and validated, or the raw dataset is not there.
        DataError: A label map cannot be read, or lies on another grid than its prediction; or the
            network that predicted it was trained on it, before the folds changed.
        MachineError: Another run holds the folder, or it cannot be written.
        StoppedError: `stop` said True; nothing was written.
    """
    spec = read_spec(folders.spec_file(dataset))
    found = _predicted(folders, dataset, plan, configuration, seed, spec.labels)
    pairs = _held_out(found, find_training_cases(folders, dataset, spec), spec)
    if not pairs:
        raise MissingError(
            f"{folders.labels(dataset)}: none of the cases that {found.configuration} predicted is "
            f"there; restore it, or train anew: `nnseg train {dataset} {found.configuration} 0`"
        )

    def look(pair: HeldOut) -> Evidence:
        if stop():
            raise StoppedError("stopped; nothing was written, the same command does it anew")
        return _look(pair, spec.labels)

    top = folders.models_folder(dataset)
    arguments = {"plan": plan, "seed": seed, "configuration": found.configuration}
    with (
        locked(top, f"nnseg doctor {dataset} --predictions"),
        logged_run(top, "suspect", arguments, stop=stop) as run,
    ):
        evidence = for_each(
            look, pairs, lambda pair: pair.case_id, workers, "comparing", on_progress
        )
        model = f"{plan}/{found.configuration}"
        result = rank([evidence[pair.case_id] for pair in pairs], model=model)
        target = folders.suspects_file(dataset)
        record.save(result, target)
        run.inputs += [path for pair in pairs for path in (pair.label_map, pair.prediction)]
        run.outputs.append(target)
    return result


def _predicted(
    folders: Folders,
    dataset: str,
    plan: str,
    configuration: str | None,
    seed: int,
    labels: Labels,
) -> _Predicted:
    """Find the out-of-fold predictions of a configuration, or of the best one."""
    models = folders.plan_models(dataset, plan)
    names = [configuration] if configuration else sorted(p.name for p in models.glob("[!.]*/"))
    found = []
    for name in names:
        folds = folds_by_seed(folders.model(dataset, plan, name)).get(seed, {})
        cases: dict[str, Path] = {}
        scores = []
        for number, fold in folds.items():
            if not number.isdecimal() or not is_validated(fold):  # `all` has seen every case
                continue
            if not is_known(fold):
                logger.warning("%s: no record says which cases it was trained on", fold)
            where = validation_folder(fold)
            summary = read_summary(where, labels)
            ids = [case.case_id for case in summary.cases]
            if fault := why_not_held_out(fold, ids, _today(folders, dataset, fold, int(number))):
                again = retrain(dataset, plan, name, number, seed)
                raise DataError(
                    f"{fold}: {fault}, and label maps are judged by cases held out; {again}"
                )
            maps = {c.case_id: where / Path(c.prediction_file).name for c in summary.cases}
            replaced = replaced_maps(fold, maps)
            if replaced:
                text = "%s: %s: predictions were changed since they were made, and judge nothing"
                logger.warning(text, fold, some(replaced))
            for case in summary.cases:
                if case.case_id in replaced:
                    continue
                cases.setdefault(case.case_id, maps[case.case_id])
                scores += [score.dice for score in case.scores.values() if score.dice is not None]
        if cases:
            dice = sum(scores) / len(scores) if scores else 0.0
            found.append(_Predicted(configuration=name, cases=cases, dice=dice))
    if not found:
        wanted = configuration or "CONFIGURATION"
        raise MissingError(
            f"{models}: no fold of {wanted} is trained and validated; "
            f"`nnseg train {dataset} {wanted} 0` does both"
        )
    return max(found, key=lambda one: (len(one.cases), one.dice))


def _today(folders: Folders, dataset: str, trained: Path, number: int) -> Fold | None:
    """Give a fold as it is today, where that is needed to tell what its network was trained on."""
    learnt = learnt_by(trained)
    if learnt.cases is not None or learnt.split_hash is None:
        return None
    splits = folds_of(folders, dataset)
    return splits[number] if number < len(splits) else None


def _held_out(found: _Predicted, cases: Sequence[Case], spec: DatasetSpec) -> tuple[HeldOut, ...]:
    """Pair label maps with predictions; cases that have gone since are passed over, aloud."""
    pairs = tuple(
        HeldOut(case_id=c.case_id, label_map=c.label, prediction=found.cases[c.case_id])
        for c in cases
        if c.case_id in found.cases and c.label is not None
    )
    if gone := len(found.cases) - len(pairs):
        logger.warning("%d predicted cases are not in the raw dataset any more", gone)
    if left := len(cases) - len(pairs):
        logger.info("%d cases were not predicted out of fold, and are not judged", left)
    return pairs


def _look(pair: HeldOut, labels: Labels) -> Evidence:
    reference, geometry = read_segmentation(pair.label_map)
    predicted, other = read_segmentation(pair.prediction)
    if fault := grid_fault(geometry, other):
        raise DataError(
            f"{pair.label_map}: lies on another grid than its prediction: {fault}; validate again"
        )
    return gather(
        pair.case_id,
        predicted,
        reference,
        labels,
        geometry.spacing,
        expected_dice=_expected_dice(pair.prediction),
    )


def _expected_dice(prediction: Path) -> dict[str, float | None] | None:
    """Give what the probabilities beside a prediction promise; None where they are not kept."""
    from nnseg.probabilities.compact import open_compact

    try:
        opened = open_compact(prediction)
    except MissingError:
        return None
    except NnsegError as error:
        logger.warning("%s; the case is judged without", error)
        return None
    labels = opened.stored.labels.consecutive
    expected = ExpectedDice(labels)
    for log_odds in opened.runs():
        decided = log_odds > 0 if labels.has_regions else log_odds.argmax(axis=-1)
        expected.add(labels.probabilities(log_odds), decided)
    return expected.result()
