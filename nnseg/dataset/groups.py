"""Patients: which cases are of one, and folds that keep all of a patient's cases on one side.

Two images of one patient are so alike that a network which has trained on one knows the other;
scores of folds that part them flatter.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnseg.dataset import FOLDS, SPLIT_SEED, Fold
from nnseg.errors import DataError, UsageError

logger = logging.getLogger(__name__)

PROBABLE = r"(.*\d)\D+\d"  # all before the last number, up to the last digit: patient001_frame01


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRule:
    """How the id of a case names its patient: what the first group of `regex` finds in it.

    Raises:
        UsageError: It is no regular expression, or has no group.
    """

    regex: str

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.regex).groups
        except re.error as error:
            where = "" if error.pos is None else f" at position {error.pos}"
            raise UsageError(
                f"--group-regex {self.regex!r} is no regular expression: {error.msg}{where}; "
                "correct it, and quote it for the shell"
            ) from None
        except (RecursionError, OverflowError) as error:
            raise UsageError(
                f"--group-regex is too complicated ({type(error).__name__}); write a simpler one"
            ) from None
        if not groups:
            raise UsageError(
                f"--group-regex {self.regex!r} has no group; put ( ) around what names the patient"
            )

    def patients(self, case_ids: Sequence[str]) -> dict[str, str]:
        r"""Give the patient of each case.

        Raises:
            UsageError: It finds no patient in some ids.

        >>> GroupRule(regex=r"(patient\d+)").patients(["patient001_frame01"])
        {'patient001_frame01': 'patient001'}
        """
        pattern = re.compile(self.regex)
        found = {case_id: pattern.search(case_id) for case_id in case_ids}
        patients = {case_id: match[1] or "" for case_id, match in found.items() if match}
        without = sorted(case_id for case_id in case_ids if not patients.get(case_id))
        if without:
            raise UsageError(
                f"--group-regex {self.regex!r} finds no patient in {len(without)} of "
                f"{len(case_ids)} case ids, such as {without[0]}; widen it to match all of them"
            )
        return patients


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """A patient on both sides of a fold, and a case of his on each."""

    patient: str
    fold: int
    train: str
    val: str


def rule_file(splits: Path) -> Path:
    """Give the file that keeps the rule of grouped folds; it lies beside them."""
    return splits.with_name("groups.json")


def probable_rule(case_ids: Sequence[str]) -> GroupRule | None:
    r"""Give the rule by which ids seem to name patients with several cases; None if they don't.

    It takes what comes before the last number of an id, up to its last digit, for the patient:
    patient001 of patient001_frame01. Ids seem to name patients when each has such a part, at least
    5 parts differ, and two cases share one.

    >>> frames = [f"patient{p:03d}_frame{f:02d}" for p in range(5) for f in (1, 12)]
    >>> probable_rule(frames)
    GroupRule(regex='(.*\\d)\\D+\\d')
    >>> probable_rule(["hippocampus_001", "hippocampus_003"]) is None
    True
    """
    found = [re.search(PROBABLE, case_id) for case_id in case_ids]
    patients = {match[1] for match in found if match}
    if None in found or not FOLDS <= len(patients) < len(case_ids):
        return None
    return GroupRule(regex=PROBABLE)


def find_leaks(folds: Sequence[Fold], patients: Mapping[str, str]) -> tuple[Leak, ...]:
    """List the patients on both sides of a fold, fold by fold; cases of no patient are passed."""
    leaks = []
    for number, fold in enumerate(folds):
        train: dict[str, str] = {}
        for case_id in fold.train:
            if case_id in patients:
                train.setdefault(patients[case_id], case_id)
        seen = set()
        for case_id in fold.val:
            patient = patients.get(case_id)
            if patient in train and patient not in seen:
                seen.add(patient)
                leaks.append(Leak(patient=patient, fold=number, train=train[patient], val=case_id))
    return tuple(leaks)


def make_grouped_folds(patients: Mapping[str, str]) -> tuple[Fold, ...]:
    """Split cases into 5 folds that keep each patient together; fewer patients give fewer folds.

    The sorted patients are shuffled with the seed of ungrouped folds. Then those with the most
    cases come first, and each goes to the fold that validates the fewest cases so far, the first
    of equals.

    Args:
        patients: The patient of each case.

    Raises:
        DataError: There are fewer than two patients.
    """
    names = sorted(set(patients.values()))
    if len(names) < 2:
        raise DataError(
            f"{len(patients)} cases are of {len(names)} patient by --group-regex; they cannot be "
            "split, correct the expression or train with fold `all`"
        )
    count = min(FOLDS, len(names))
    if count < FOLDS:
        logger.warning("%d patients give %d folds instead of %d", len(names), count, FOLDS)
    cases = {name: [c for c, patient in patients.items() if patient == name] for name in names}
    shuffled = [names[i] for i in np.random.RandomState(SPLIT_SEED).permutation(len(names))]
    vals: list[set[str]] = [set() for _ in range(count)]
    for name in sorted(shuffled, key=lambda name: -len(cases[name])):
        min(vals, key=len).update(cases[name])
    return tuple(
        Fold(train=tuple(sorted(patients.keys() - val)), val=tuple(sorted(val))) for val in vals
    )


def extend_grouped_folds(folds: Sequence[Fold], patients: Mapping[str, str]) -> tuple[Fold, ...]:
    """Let the cases that are in no fold join them; those that are in one stay where they are.

    A new case is validated where its patient's others are; of a new patient, all cases go to the
    fold that validates the fewest, the first of equals, patient by patient in sorted order.

    >>> two = [Fold(train=("b1",), val=("a1",)), Fold(train=("a1",), val=("b1",))]
    >>> extend_grouped_folds(two, {"a1": "a", "b1": "b", "b2": "b"})[1]
    Fold(train=('a1',), val=('b1', 'b2'))
    """
    trains, vals = [set(fold.train) for fold in folds], [set(fold.val) for fold in folds]
    new = set(patients) - set[str]().union(*trains, *vals)
    home = {patients[c]: i for i, val in enumerate(vals) for c in sorted(val) if c in patients}
    for name in sorted({patients[case_id] for case_id in new}) if folds else ():
        sizes = [len(val) for val in vals]
        chosen = home.get(name, sizes.index(min(sizes)))
        joining = {case_id for case_id in new if patients[case_id] == name}
        for number, train in enumerate(trains):
            (vals[number] if number == chosen else train).update(joining)
    return tuple(
        Fold(train=tuple(sorted(train)), val=tuple(sorted(val)))
        for train, val in zip(trains, vals, strict=True)
    )
