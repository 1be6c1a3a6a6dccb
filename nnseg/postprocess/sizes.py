"""The smallest size of a label's components: chosen on some cases, judged on others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Spacing
from nnseg.postprocess.cohort import (
    CaseParts,
    Cohort,
    State,
    dice_of,
    means_of_known,
    pairs,
)
from nnseg.postprocess.rules import MM3_PER_ML, MinimumSize, Unit, fewest_voxels
from nnseg.postprocess.table import grouped, labels_in

ROUND_SIZES = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)  # times a power of ten: the sizes that are tried


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sizes:
    """What each smallest size of a label or region would do to the cases of a cohort."""

    rules: tuple[MinimumSize, ...]  # of ascending sizes
    dice: NDArray[np.float64]  # (rule, case)
    own: NDArray[np.float64]  # without, (case,)
    smallest: NDArray[np.float64]  # component of each case, (case,), in the unit; inf of none
    largest: NDArray[np.float64]  # likewise; 0 of none


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SizeTrial:
    """The smallest size that suits a label or region best, and those to judge it by."""

    rule: MinimumSize  # the best on all cases, even where it is worse than none
    helps: bool  # whether it raises the mean Dice of these cases
    judged: dict[str, MinimumSize | None]  # by fold: the best on the cases of all others, or none


def sizes_of(cohort: Cohort, state: State, name: str, unit: Unit) -> Sizes:
    """Score every round size that would take out some component of a label or region.

    Args:
        cohort: All cases.
        state: What the rules before leave of them.
        name: The label or region.
        unit: Of the sizes.
    """
    row, about = cohort.row(name), labels_in(cohort.labels.foreground[name], cohort.labels)
    groups = [_groups(case, left, row, about) for case, left in pairs(cohort, state)]
    sizes = [
        group.sizes * (1.0 if unit == "voxels" else math.prod(group.spacing) / MM3_PER_ML)
        for group in groups
    ]
    smallest = np.array([line.min(initial=math.inf) for line in sizes])
    largest = np.array([line.max(initial=0) for line in sizes])
    tried = _round_sizes(float(smallest.min()), float(largest.max()), unit)
    rules = tuple(MinimumSize(label=name, smallest=size, unit=unit) for size in tried)
    dice = np.array([_dice_by(group, rules) for group in groups]).reshape(len(groups), len(rules))
    return Sizes(rules=rules, dice=dice.T, own=state.dice[row], smallest=smallest, largest=largest)


def try_sizes(sizes: Sizes, among: NDArray[np.bool_], folds: NDArray[np.str_]) -> SizeTrial | None:
    """Look for the smallest size that raises the mean Dice of a label or region most.

    Args:
        sizes: Of it.
        among: The cases that have a say, (case,).
        folds: The fold of each of all cases, (case,).

    Returns:
        None where no size that is tried would take out anything.
    """
    low, high = sizes.smallest[among].min(), sizes.largest[among].max()
    tried = [n for n, rule in enumerate(sizes.rules) if low < rule.smallest <= high]
    if not tried:
        return None
    dice, rules = sizes.dice[tried], [sizes.rules[n] for n in tried]
    judged: dict[str, MinimumSize | None] = {}
    for fold in np.unique(folds[among]):
        others = among & (folds != fold)
        best, helps = _best(dice[:, others], sizes.own[others])
        judged[str(fold)] = rules[best] if helps else None
    best, helps = _best(dice[:, among], sizes.own[among])
    return SizeTrial(rule=rules[best], helps=helps, judged=judged)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Groups:
    """The components of one label or region in one case as rules find them, smallest first."""

    spacing: Spacing
    sizes: NDArray[np.int64]  # (group,)
    voxels: NDArray[np.int64]  # (group,), those that count
    hits: NDArray[np.int64]  # (group,), of them the reference has
    reference: int  # voxels of the reference


def _groups(
    case: CaseParts, left: NDArray[np.bool_], row: int, about: NDArray[np.bool_]
) -> _Groups:
    group_of, sizes = grouped(case.table, left, about)
    entries = case.names == row
    where = group_of[case.components[entries]]
    voxels, hits = np.zeros_like(sizes), np.zeros_like(sizes)
    np.add.at(voxels, where, case.voxels[entries])
    np.add.at(hits, where, case.hits[entries])
    order = np.argsort(sizes[1:], kind="stable") + 1  # group 0 is what is gone
    return _Groups(
        spacing=case.spacing,
        sizes=sizes[order],
        voxels=voxels[order],
        hits=hits[order],
        reference=int(case.references[row]),
    )


def _round_sizes(low: float, high: float, unit: Unit) -> list[float]:
    """Give the round sizes that take out something from `low` on and not all, ascending."""
    if low > high:  # there is no component
        return []
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tried = [float(f"{size:g}e{power}") for power in powers for size in ROUND_SIZES]
    return [size for size in tried if low < size <= high and (unit == "ml" or size == int(size))]


def _dice_by(groups: _Groups, rules: Sequence[MinimumSize]) -> NDArray[np.float64]:
    """Give the Dice that a label or region would have under each of several smallest sizes."""
    least = [fewest_voxels(rule, groups.spacing) for rule in rules]
    gone = np.searchsorted(groups.sizes, least, side="left")
    voxels, hits = (
        line.sum() - np.concatenate(([0], np.cumsum(line)))[gone]
        for line in (groups.voxels, groups.hits)
    )
    return dice_of(voxels, hits, np.full_like(voxels, groups.reference))


def _best(dice: NDArray[np.float64], own: NDArray[np.float64]) -> tuple[int, bool]:
    """Give the number of the best rule, and whether it is better than none.

    Args:
        dice: Under each rule, (rule, case); of rules that are equally good the first is taken.
        own: Without it, (case,).
    """
    means = means_of_known(np.concatenate([dice, own[None]]))
    best = int(np.argmax(np.nan_to_num(means[:-1])))
    return best, bool(means[best] > means[-1])
