"""Cross-validation folds: who is trained on and who validates."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnseg.errors import DataError, UsageError

logger = logging.getLogger(__name__)

FOLDS = 5
SPLIT_SEED = 12345  # nnU-Net's, so that the same ids give the same folds
FOLD_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Case ids to train on and to validate on; one entry of splits_final.json."""

    train: tuple[str, ...]
    val: tuple[str, ...]


def make_folds(case_ids: Sequence[str]) -> tuple[Fold, ...]:
    """Split cases into 5 folds, equal to nnU-Net's for the same ids; fewer cases give fewer folds.

    Source: nnU-Net v2, 5-fold split of the sorted ids, shuffled with seed 12345.

    Raises:
        DataError: There are fewer than two cases.
    """
    ids = sorted(case_ids)
    if len(ids) < 2:
        raise DataError(f"{len(ids)} case cannot be split; train with fold `all`, or add cases")
    count = min(FOLDS, len(ids))
    if count < FOLDS:
        logger.warning("%d cases give %d folds instead of %d", len(ids), count, FOLDS)
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(ids))
    folds = []
    for part in np.array_split(shuffled, count):
        val = set(part.tolist())
        folds.append(
            Fold(
                train=tuple(ids[i] for i in range(len(ids)) if i not in val),
                val=tuple(ids[i] for i in sorted(val)),
            )
        )
    return tuple(folds)


def extend_folds(folds: Sequence[Fold], case_ids: Sequence[str]) -> tuple[Fold, ...]:
    """Let the cases that are in no fold join them; those that are in one stay where they are.

    In sorted order, each new case is validated by the fold with the fewest cases to validate, the
    first of equals, and trained on by all others. So models of before stay comparable: no case
    changes sides.

    Args:
        folds: Our own; of a user's file nobody can tell whether a case is left out on purpose.
        case_ids: Every case of the dataset.

    >>> extend_folds([Fold(train=("b",), val=("a",)), Fold(train=("a",), val=("b",))], "abc")[0]
    Fold(train=('b',), val=('a', 'c'))
    """
    trains, vals = [set(fold.train) for fold in folds], [set(fold.val) for fold in folds]
    for case_id in sorted(set(case_ids) - set[str]().union(*trains, *vals)) if folds else ():
        sizes = [len(val) for val in vals]
        chosen = sizes.index(min(sizes))
        for number, train in enumerate(trains):
            (vals[number] if number == chosen else train).add(case_id)
    return tuple(
        Fold(train=tuple(sorted(train)), val=tuple(sorted(val)))
        for train, val in zip(trains, vals, strict=True)
    )


def check_folds(folds: Sequence[Fold], case_ids: Sequence[str], where: str) -> None:
    """Refuse folds that name a case twice or an unknown one, or lack cases to train or validate on.

    A model is chosen and scored by its validation cases; to train on all cases there is `all`.

    Raises:
        DataError: `where` and the ids that are wrong.
    """
    known = set(case_ids)
    for number, fold in enumerate(folds):
        unknown = sorted((set(fold.train) | set(fold.val)) - known)
        if unknown:
            raise DataError(
                f"{where}: fold {number} names {', '.join(unknown[:5])}, which the dataset lacks; "
                "correct the file or remove it to have it made anew"
            )
        counts = (Counter(fold.train), Counter(fold.val))
        if twice := sorted(name for count in counts for name, n in count.items() if n > 1):
            raise DataError(
                f"{where}: fold {number} names {', '.join(twice[:5])} more than once; keep each id "
                "once"
            )
        both = sorted(set(fold.train) & set(fold.val))
        if both:
            raise DataError(
                f"{where}: fold {number} has {', '.join(both[:5])} both to train and to validate; "
                "keep each id on one side"
            )
        if not fold.train:
            raise DataError(f"{where}: fold {number} has no case to train on; correct the file")
        if not fold.val:
            raise DataError(
                f"{where}: fold {number} has no case to validate on; give it one, or remove the "
                "fold and train with fold `all`"
            )


def select_fold(folds: Sequence[Fold], fold: str, case_ids: Sequence[str]) -> Fold:
    """Give the fold called `fold`: "0", "1", ... or "all", which trains on every case.

    "all" validates on every case too, so its scores tell nothing of new cases.

    Raises:
        UsageError: There is no such fold.
    """
    if fold == "all":
        ids = tuple(sorted(case_ids))
        return Fold(train=ids, val=ids)
    if not FOLD_NUMBER.fullmatch(fold) or int(fold) >= len(folds):
        known = ", ".join([*(str(number) for number in range(len(folds))), "all"])
        raise UsageError(f"there is no fold {fold!r}; there is: {known}")
    return folds[int(fold)]
