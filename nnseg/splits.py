"""The folds of a dataset as files: the user's, or our own, made, kept and extended.

A user's splits_final.json lies in the raw dataset and is used as it is. Our own lies in the
preprocessed dataset; groups.json beside it says by which rule it keeps patients together, and
splits_source.json that it is a copy of the user's.
"""

import hashlib
import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nnseg import commit, record
from nnseg.dataset import (
    Fold,
    check_folds,
    extend_folds,
    find_training_cases,
    make_folds,
    read_spec,
)
from nnseg.dataset.groups import (
    GroupRule,
    extend_grouped_folds,
    find_leaks,
    make_grouped_folds,
    probable_rule,
    rule_file,
)
from nnseg.doctor.findings import Finding, Notes
from nnseg.doctor.listing import judge_folds, list_dataset
from nnseg.errors import DataError, MissingError
from nnseg.folders import Folders
from nnseg.lock import in_use, locked

logger = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds; several trainings may begin at once, and each may let new cases join


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitsSource:
    """Says that our splits_final.json, as long as it has this hash, is a copy of the user's."""

    users_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The folds as they should be, and what our files should say."""

    folds: tuple[Fold, ...]
    text: str  # of splits_final.json
    is_users: bool
    rule: GroupRule | None  # to be kept beside them; None leaves what is there


def folds(folders: Folders, dataset: str, rule: GroupRule | None = None) -> tuple[Fold, ...]:
    """Give the cross-validation folds: the user's splits_final.json, else our own, kept.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        rule: Says which cases are of one patient, whom our folds must not part; those that do are
            made anew. None keeps what is there, and lets new cases join by the rule of then.

    Raises:
        DataError: The file names cases that the dataset lacks, or contradicts itself; or our folds
            part a patient by `rule`, and were trained on.
        UsageError: The rule finds no patient in some case.
        MachineError: They have to be written, and another run is planning or cannot be waited for.
    """
    before = _stamps(folders, dataset)
    wanted = _wanted(folders, dataset, rule)
    if _is_kept(folders, dataset, wanted):
        return wanted.folds
    folder, deadline = folders.prepared_folder(dataset), time.monotonic() + PATIENCE
    while in_use(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    with locked(folder, f"nnseg plan -d {dataset}"):
        if _stamps(folders, dataset) != before:
            wanted = _wanted(folders, dataset, rule)
        return _keep(folders, dataset, wanted)


def planned_folds(folders: Folders, dataset: str) -> tuple[Fold, ...]:
    """Give what `folds` would give, without writing anything.

    Raises:
        DataError: As `folds`.
    """
    return _wanted(folders, dataset, None).folds


def plan_folds(folders: Folders, dataset: str, rule: GroupRule | None = None) -> tuple[Fold, ...]:
    """Do what `folds` does, for a caller who holds the lock of the preprocessed dataset.

    Without a rule the one of then is held against the folds that are there: whatever has come
    between them, they must not part a patient.

    Raises:
        DataError: As `folds`, for the kept rule, too.
        UsageError: As `folds`.
    """
    kept = kept_rule(folders, dataset) if rule is None else rule
    return _keep(folders, dataset, _wanted(folders, dataset, kept, asked=rule is not None))


def source_file(splits: Path) -> Path:
    """Give the file that says whose folds those in `splits` are; it lies beside them."""
    return splits.with_name("splits_source.json")


def kept_rule(folders: Folders, dataset: str) -> GroupRule | None:
    """Give the rule that our folds were made by, None if they know no patients."""
    try:
        return record.load(GroupRule, rule_file(folders.splits_file(dataset)))
    except MissingError:
        return None


def check_regex(folders: Folders, dataset: str, group_regex: str | None) -> None:
    """Refuse an expression that will be of no use, before anything is measured.

    Raises:
        UsageError: It is wrong, or finds no patient in some case.
    """
    if group_regex is not None:
        listing = list_dataset(Notes(folders.raw_folder(dataset)))
        GroupRule(regex=group_regex).patients(sorted(listing.images))


def find_parted(
    folders: Folders, dataset: str, group_regex: str | None = None
) -> tuple[Finding, ...]:
    """Find patients on both sides of a fold, in the folds that a training would take.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        group_regex: Finds the patient in the id of a case; None takes that of the folds that are
            there, else guesses.

    Raises:
        UsageError: `group_regex` is wrong, or finds no patient in some case.
    """
    rule = kept_rule(folders, dataset) if group_regex is None else GroupRule(regex=group_regex)
    listing = list_dataset(Notes(folders.raw_folder(dataset)))
    return judge_folds(listing, rule, folders.splits_file(dataset))


def _wanted(
    folders: Folders, dataset: str, rule: GroupRule | None, *, asked: bool = True
) -> _Wanted:
    """Say what the folds should be; `asked` is whether the user has just given the rule."""
    spec = read_spec(folders.spec_file(dataset))
    ids = [case.case_id for case in find_training_cases(folders, dataset, spec)]
    path, users = folders.splits_file(dataset), folders.user_splits_file(dataset)
    is_users = users.is_file()
    if is_users:
        result = _users_folds(users, ids)
        if rule is not None and asked:
            logger.warning("%s is used as it is, whatever --group-regex says", users)
    else:
        is_users, kept = _is_copy(path), None
        if not (is_users and _may_go(folders, dataset)):
            with suppress(MissingError):
                kept = _read_folds(path, ids)
        if kept is not None and rule is not None:
            kept = _unless_parted(folders, dataset, kept, rule.patients(ids), asked=asked)
        if kept is not None and is_users:
            result = kept
        else:
            is_users = False
            result = _own_folds(dataset, ids, kept, rule or kept_rule(folders, dataset))
    text = record.json_text([record.to_json(fold) for fold in result])
    return _Wanted(folds=result, text=text, is_users=is_users, rule=None if is_users else rule)


def _is_kept(folders: Folders, dataset: str, wanted: _Wanted) -> bool:
    """Whether our files are as they should be."""
    path = folders.splits_file(dataset)
    try:
        text = record.json_text(record.read_json(path))
    except MissingError:
        return False
    return (
        text == wanted.text
        and _is_copy(path) == wanted.is_users
        and wanted.rule in (None, kept_rule(folders, dataset))
    )


def _stamps(folders: Folders, dataset: str) -> list[tuple[int, int] | None]:
    """Give what tells whether another run has written our files."""
    path = folders.splits_file(dataset)
    found: list[tuple[int, int] | None] = []
    for file in (path, rule_file(path), source_file(path)):
        try:
            status = file.stat()
            found.append((status.st_ino, status.st_mtime_ns))
        except OSError:  # who reads it says so
            found.append(None)
    return found


def _keep(folders: Folders, dataset: str, wanted: _Wanted) -> tuple[Fold, ...]:
    """Write our files where they are not as they should be.

    The folds come last, so that a run that is cut off leaves nothing false: whose they are holds
    for folds of its hash, and a rule is held against them by the next plan.
    """
    if not _is_kept(folders, dataset, wanted):
        path, data = folders.splits_file(dataset), wanted.text.encode()
        if wanted.is_users:
            source = SplitsSource(users_sha256=hashlib.sha256(data).hexdigest())
            record.save(source, source_file(path))
        if wanted.rule is not None:
            record.save(wanted.rule, rule_file(path))
        commit.write_whole(path, data)
        if not wanted.is_users:
            commit.remove(source_file(path))
    return wanted.folds


def _is_copy(path: Path) -> bool:
    """Whether folds of ours are a copy of the user's."""
    try:
        source = record.load(SplitsSource, source_file(path))
        return source.users_sha256 == commit.sha256(path)
    except (MissingError, OSError):  # who reads the folds says why they cannot be
        return False


def _may_go(folders: Folders, dataset: str) -> bool:
    """Say, aloud, whether a copy of folds that the user has removed can be replaced by our own."""
    path, trained = folders.splits_file(dataset), _trained(folders, dataset)
    if trained:
        logger.warning(
            "%s is a copy of a file that is gone, but %s was trained on these folds: they stay as "
            "they are, and new cases are in none; restore %s, or move %s elsewhere to have folds "
            "of all cases",
            path,
            trained[0],
            folders.user_splits_file(dataset),
            folders.models_folder(dataset),
        )
        return False
    text = "%s is gone; the folds are made anew, of all cases"
    logger.warning(text, folders.user_splits_file(dataset))
    return True


def _trained(folders: Folders, dataset: str) -> list[Path]:
    """List what was trained on folds; fold `all` knows none."""
    return sorted(folders.models_folder(dataset).glob("*/*/fold_[0-9]*"))


def _users_folds(path: Path, ids: Sequence[str]) -> tuple[Fold, ...]:
    result = _read_folds(path, ids)
    if without := _in_no_fold(result, ids):
        logger.warning("%s leaves out %d cases, such as %s", path, len(without), min(without))
    return result


def _own_folds(
    dataset: str, ids: Sequence[str], kept: tuple[Fold, ...] | None, rule: GroupRule | None
) -> tuple[Fold, ...]:
    """Make folds, or let new cases join those that are kept."""
    patients = None if rule is None else rule.patients(ids)
    if kept is not None:
        if without := _in_no_fold(kept, ids):
            logger.warning("%d new cases join the folds, such as %s", len(without), min(without))
        return extend_folds(kept, ids) if patients is None else extend_grouped_folds(kept, patients)
    if len(ids) == 1:
        logger.warning("%s has one case: it can only be trained with fold `all`", dataset)
        return ()
    if patients is not None:
        return make_grouped_folds(patients)
    made = make_folds(ids)
    _warn_of_probable_patients(made, ids)
    return made


def _warn_of_probable_patients(made: Sequence[Fold], ids: Sequence[str]) -> None:
    rule = probable_rule(ids)
    leaks = () if rule is None else find_leaks(made, rule.patients(ids))
    if rule is not None and leaks:
        logger.warning(
            "case ids look like several cases of one patient, and fold %d trains on %s and "
            "validates on %s; if they are, plan with --group-regex %s",
            leaks[0].fold,
            leaks[0].train,
            leaks[0].val,
            shlex.quote(rule.regex),
        )


def _unless_parted(
    folders: Folders,
    dataset: str,
    kept: tuple[Fold, ...],
    patients: Mapping[str, str],
    *,
    asked: bool,
) -> tuple[Fold, ...] | None:
    """Give folds of ours back, None where they part a patient and nothing was trained on them.

    Raises:
        DataError: They part a patient, and there are trained folds.
    """
    leaks = find_leaks(kept, patients)
    if not leaks:
        return kept
    first = leaks[0]
    what = f"fold {first.fold} trains on {first.train} and validates on {first.val}"
    path, trained = folders.splits_file(dataset), _trained(folders, dataset)
    if trained:
        other = "plan without --group-regex" if asked else f"remove {rule_file(path)}"
        raise DataError(
            f"{path}: {what}, both of {first.patient}, but {trained[0]} was trained on these "
            f"folds; move {folders.models_folder(dataset)} elsewhere to have folds by patient, or "
            f"{other}"
        )
    logger.warning("%s, both of %s; the folds are made anew", what, first.patient)
    return None


def _in_no_fold(folds: Sequence[Fold], ids: Sequence[str]) -> set[str]:
    return set(ids) - {case_id for fold in folds for case_id in (*fold.train, *fold.val)}


def _read_folds(path: Path, ids: Sequence[str]) -> tuple[Fold, ...]:
    data = record.read_json(path)
    if not isinstance(data, list):
        raise DataError(f"{path}: must hold a list of folds; correct or remove it")
    result = tuple(record.parse(Fold, fold, f"{path}: fold {i}") for i, fold in enumerate(data))
    check_folds(result, ids, str(path))
    return result
