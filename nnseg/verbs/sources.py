"""What a report is read from: damaged records cost their section, outdated scores are left out."""

import csv
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nnseg import record
from nnseg.choose import Choosing
from nnseg.commit import sha256
from nnseg.errors import DataError, MissingError, NnsegError, StoppedError
from nnseg.evaluate import CaseScores, Summary, summarize
from nnseg.folders import (
    FOLD_FOLDER,
    Folders,
    folds_by_seed,
    run_record,
    summary_file,
    validation_folder,
)
from nnseg.labels import Labels
from nnseg.parallel import some
from nnseg.report.facts import Missing
from nnseg.runlog import RunReport
from nnseg.validated import final_weights, is_validated, replaced_maps
from nnseg.verbs.scoring import read_summary

T = TypeVar("T")

DAMAGED = (  # what reading a file may raise whose content is not what it should be
    OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError,
    csv.Error,
)  # fmt: skip


class Sources:
    """Reads what a report may have, and keeps account of what it did not get."""

    def __init__(self) -> None:
        self.missing: list[Missing] = []
        self.read: list[Path] = []

    def get(self, section: str, path: Path, read: Callable[[Path], T]) -> T | None:
        """Give what `read` makes of a file, None where it is not there or not what it should be."""
        try:
            found = read(path)
        except StoppedError:
            raise
        except NnsegError as error:
            self.lacks(section, str(error))
            return None
        except DAMAGED as error:
            self.lacks(section, f"{path}: cannot be read ({error}); restore it or make it anew")
            return None
        self.read.append(path)
        return found

    def lacks(self, section: str, reason: str) -> None:
        """Note that the report has no such section, and why."""
        self.missing.append(Missing(section=section, reason=reason))

    def join(self, other: "Sources") -> None:
        """Take over what another has read and did not get."""
        self.missing += other.missing
        self.read += other.read


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredFold:
    """A trained fold, and the scores of its final weights in the cases that it held out."""

    name: str
    fold: str
    folder: Path
    summary: Summary


def read_scores(predictions: Path, labels: Labels) -> Summary:
    """Read the scores of a folder of predictions.

    Raises:
        MissingError: There are none.
        DataError: They are damaged, of other labels, or of no case.
    """
    path = summary_file(predictions)
    if not path.is_file():
        raise MissingError(
            f"{path} does not exist; `nnseg evaluate REFERENCES {predictions}` writes it, and "
            "`nnseg train ... --val` that of a fold"
        )
    try:
        summary = read_summary(predictions, labels)
    except NnsegError:
        raise
    except DAMAGED as error:
        raise DataError(f"{path}: is no summary of scores ({error}); evaluate again") from None
    if not summary.cases:
        raise DataError(f"{path}: scores no case; evaluate again")
    return summary


def why_not_scored(fold: Path) -> str | None:
    """Say why the scores of a trained fold cannot be shown; None where they can."""
    if not summary_file(validation_folder(fold)).is_file():
        return "its validation cases are not scored; `nnseg train ... --val` does it"
    if not is_validated(fold):
        return "they are not of its final weights; `nnseg train ... --val` makes them anew"
    return None


def scored_folds(
    sources: Sources, model: Path, labels: Labels, seed: int = 0, folds: Sequence[str] = ()
) -> tuple[ScoredFold, ...]:
    """Give the scores of the folds of a configuration's folder that were trained with one seed.

    Args:
        sources: Gets the folds whose scores are missing, damaged or of other weights.
        model: The folder.
        labels: That were scored.
        seed: Of the trainings.
        folds: Their numbers; none are all.
    """
    found = []
    for fold, folder in folds_by_seed(model).get(seed, {}).items():
        if fold == "all" or (folds and fold not in folds):
            continue
        name = f"{model.name} fold {fold}" + (f" seed {seed}" if seed else "")
        section = f"scores of {name}"
        if reason := why_not_scored(folder):
            sources.lacks(section, reason)
            continue
        path = summary_file(validation_folder(folder))
        summary = sources.get(section, path, lambda path: read_scores(path.parent, labels))
        if summary is not None:
            summary = still_true(sources, path.parent, summary, labels)
        if summary is not None:
            found.append(ScoredFold(name=name, fold=fold, folder=folder, summary=summary))
    return tuple(found)


def most_scored(sources: Sources, models: Path, labels: Labels) -> tuple[ScoredFold, ...]:
    """Give the folds of the configuration and seed of a plan that have the most scored cases.

    What is said of the folds of others is said only where none is scored.
    """
    tried = []
    for model in sorted(models.iterdir()) if models.is_dir() else ():
        for seed in folds_by_seed(model) if model.is_dir() else ():
            own = Sources()
            folds = scored_folds(own, model, labels, seed)
            cases = sum(len(fold.summary.cases) for fold in folds)
            tried.append((cases, -seed, model.name, folds, own))
    if not tried or not max(cases for cases, *_ in tried):
        for *_, own in tried:
            sources.join(own)
        return ()
    *_, folds, own = max(tried, key=lambda each: each[:3])
    sources.join(own)
    return folds


def folds_of_choice(
    sources: Sources, home: Path, labels: Labels, choosing: Choosing
) -> tuple[ScoredFold, ...]:
    """Give the folds that the chosen model was scored by, of the plan and seed that were chosen.

    Of several that predict together it is the best of them alone, whose label maps are on the disk.

    Args:
        sources: As for `scored_folds`.
        home: The folder of the dataset's models.
        labels: That were scored.
        choosing: What was chosen.
    """
    members = {(member.folder, member.folds) for member in choosing.best.members}
    alone = [
        candidate
        for candidate in choosing.candidates  # best first
        if len(candidate.members) == 1
        and (candidate.members[0].folder, candidate.members[0].folds) in members
    ]
    shown = alone[0].members[0] if alone else choosing.best.members[0]
    if len(members) > 1:
        name = alone[0].name if alone else shown.folder
        text = f"scores and pictures of single cases are those of {name} alone"
        sources.lacks("cases of the ensemble", text)
    called = FOLD_FOLDER.fullmatch(f"fold_{shown.folds[0]}") if shown.folds else None
    seed = int(called["seed"] or 0) if called else 0
    return scored_folds(sources, home / shown.folder, labels, seed, choosing.folds)


def read_choice(sources: Sources, folders: Folders, dataset: str) -> Choosing | None:
    """Read what was chosen for a dataset; None where the models are not those of then any more."""
    path = folders.choosing_file(dataset)
    if not path.is_file():
        sources.lacks("choice", f"nothing was chosen; `nnseg find-best {dataset}` does it")
        return None

    def read(path: Path) -> Choosing:
        found = record.load(Choosing, path)
        home = folders.models_folder(dataset)
        other = [
            name
            for name, weights in found.weights_sha256.items()
            if final_weights(home / name) != weights
        ]
        if other:
            raise DataError(
                f"{', '.join(other)}: not the weights of when {found.chosen} was chosen; "
                f"`nnseg find-best {dataset}` chooses again"
            )
        return found

    return sources.get("choice", path, read)


def together(labels: Labels, folds: Sequence[ScoredFold]) -> Summary | None:
    """Join the scores of folds; a case that several held out counts once, in the first."""
    cases: dict[str, CaseScores] = {}
    for fold in folds:
        for case in fold.summary.cases:
            cases.setdefault(case.case_id, case)
    if not cases:
        return None
    tolerance = folds[0].summary.tolerance_mm
    return summarize(list(cases.values()), labels, tolerance_mm=tolerance)


def groups_of(folds: Sequence[ScoredFold]) -> dict[str, str]:
    """Name the fold of each case, where there are several."""
    groups: dict[str, str] = {}
    for fold in folds if len(folds) > 1 else ():
        for case in fold.summary.cases:
            groups.setdefault(case.case_id, f"fold {fold.fold}")
    return groups


def still_true(
    sources: Sources, predictions: Path, summary: Summary, labels: Labels
) -> Summary | None:
    """Give the scores of the cases whose label maps are those that were scored.

    `nnseg evaluate` leaves the hashes of what it read, and a fold's validation those of what it
    wrote. Where they are of other scores than those that are there, or not there, nobody can tell.

    Args:
        sources: Gets the cases that are left out.
        predictions: The folder of the predictions.
        summary: Its scores.
        labels: That were scored.

    Returns:
        None where no case is left.
    """
    hashes, fold = _scored_files(predictions), predictions.absolute().parent
    of_fold = validation_folder(fold) == predictions.absolute()
    maps = {c.case_id: predictions / Path(c.prediction_file).name for c in summary.cases}
    replaced = replaced_maps(fold, maps) if of_fold else []
    changed = [
        case.case_id
        for case in summary.cases
        if case.case_id in replaced
        or _has_changed(case.reference_file, hashes)
        or _has_changed(case.prediction_file, hashes)
    ]
    if not changed:
        return summary
    remedy = "`nnseg train ... --val` makes" if of_fold else "`nnseg evaluate` scores"
    sources.lacks(
        f"scores of {some(changed)}",
        f"label maps were replaced since they were scored; {remedy} them anew",
    )
    kept = [case for case in summary.cases if case.case_id not in set(changed)]
    if not kept:
        return None
    return summarize(kept, labels, tolerance_mm=summary.tolerance_mm, match_iou=summary.match_iou)


def _scored_files(predictions: Path) -> Mapping[str, str]:
    """Give the hashes of the files that the scores of a folder were taken from, if known."""
    with suppress(NnsegError, OSError):
        run = record.load(RunReport, run_record(predictions).with_name("run_evaluate.json"))
        if sha256(summary_file(predictions)) in run.outputs.values():
            return run.inputs
    return {}


def _has_changed(file: str, hashes: Mapping[str, str]) -> bool:
    try:
        return file in hashes and sha256(Path(file)) != hashes[file]
    except OSError:  # its picture says so
        return False
