"""The folds of a dataset as files: the user's, or our own, made, kept and extended.

A user's splits_final.json lies in the raw dataset and is used as it is. Our own lies in the
preprocessed dataset; groups.json beside it says by which rule it keeps patients together.
"""

import logging
import shlex
from collections.abc import Mapping, Sequence
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
from nnseg.errors import DataError
from nnseg.folders import Folders

logger = logging.getLogger(__name__)


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
    """
    spec = read_spec(folders.spec_file(dataset))
    ids = [case.case_id for case in find_training_cases(folders, dataset, spec)]
    path, users = folders.splits_file(dataset), folders.user_splits_file(dataset)
    if users.is_file():
        result = _users_folds(users, ids)
        if rule is not None:
            logger.warning("%s is used as it is, whatever --group-regex says", users)
    else:
        kept = _read_folds(path, ids) if path.is_file() else None
        if kept is not None and rule is not None:
            kept = _unless_parted(folders, dataset, kept, rule.patients(ids))
        result = _own_folds(dataset, ids, kept, rule or kept_rule(folders, dataset))
    content = [record.to_json(fold) for fold in result]
    if not path.is_file() or record.read_json(path) != content:
        commit.write_whole(path, record.json_text(content).encode())
    if rule is not None and not users.is_file():
        record.save(rule, rule_file(path))
    return result


def kept_rule(folders: Folders, dataset: str) -> GroupRule | None:
    """Give the rule that our folds were made by, None if they know no patients."""
    path = rule_file(folders.splits_file(dataset))
    return record.load(GroupRule, path) if path.is_file() else None


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
    folders: Folders, dataset: str, kept: tuple[Fold, ...], patients: Mapping[str, str]
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
    models = folders.models_folder(dataset)
    trained = sorted(models.glob("*/*/fold_[0-9]*"))
    if trained:
        raise DataError(
            f"{folders.splits_file(dataset)}: {what}, both of {first.patient}, but {trained[0]} "
            f"was trained on these folds; move {models} elsewhere to have folds by patient, or "
            "plan without --group-regex"
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
