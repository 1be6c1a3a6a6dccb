"""Many cases under the same rules: what is left of their components, and the Dice of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Spacing
from nnseg.errors import DataError
from nnseg.labels import Labels
from nnseg.postprocess.rules import Rule, values_of
from nnseg.postprocess.table import ComponentTable, labels_in, left_by


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CaseParts:
    """A case as scoring needs it: what each component adds to the labels or regions that hold it.

    Four arrays have an entry for each component and each label or region that holds it.
    """

    table: ComponentTable
    spacing: Spacing
    components: NDArray[np.int64]  # (entry,)
    names: NDArray[np.int64]  # (entry,), the label or region, by its number in the foreground
    voxels: NDArray[np.int64]  # (entry,), that count: those the reference does not ignore
    hits: NDArray[np.int64]  # (entry,), of them the reference has in the same label or region
    references: NDArray[np.int64]  # (name,), voxels of the reference


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cohort:
    """All cases, sorted by id."""

    labels: Labels
    case_ids: tuple[str, ...]
    cases: tuple[CaseParts, ...]

    def row(self, name: str) -> int:
        """Give the number of a label or region in the foreground."""
        return list(self.labels.foreground).index(name)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """What some rules leave of a cohort, and its Dice, nan where there is none."""

    rules: tuple[Rule, ...]
    left: tuple[NDArray[np.bool_], ...]  # of each case, (component,)
    dice: NDArray[np.float64]  # (name, case)


def make_cohort(
    tables: Mapping[str, ComponentTable], labels: Labels, spacings: Mapping[str, Spacing]
) -> Cohort:
    """Prepare the cases for scoring.

    Raises:
        DataError: There is no case.
    """
    if not tables:
        raise DataError("there is no case to decide the postprocessing on; give some predictions")
    case_ids = tuple(sorted(tables))
    holds = np.array([labels_in(values, labels) for values in labels.foreground.values()])
    cases = tuple(_parts(tables[case_id], holds, spacings[case_id]) for case_id in case_ids)
    return Cohort(labels=labels, case_ids=case_ids, cases=cases)


def start(cohort: Cohort) -> State:
    """Give the state before any rule."""
    left = tuple(np.ones(len(case.table.sizes), np.bool_) for case in cohort.cases)
    return State(rules=(), left=left, dice=_dice(cohort, left))


def after(cohort: Cohort, state: State, rule: Rule) -> State:
    """Carry out one more rule on all cases."""
    about = labels_in(values_of(rule, cohort.labels), cohort.labels)
    left = tuple(
        left_by(case.table, rest, rule, about, case.spacing) for case, rest in pairs(cohort, state)
    )
    return State(rules=(*state.rules, rule), left=left, dice=_dice(cohort, left, state))


def pairs(cohort: Cohort, state: State) -> Iterator[tuple[CaseParts, NDArray[np.bool_]]]:
    """Give each case with the components that are left of it."""
    return zip(cohort.cases, state.left, strict=True)


def worse(labels: Labels, before: NDArray[np.float64], now: NDArray[np.float64]) -> tuple[str, ...]:
    """Name the labels and regions whose mean Dice, (name,), fell."""
    means = zip(labels.foreground, before, now, strict=True)
    return tuple(name for name, old, new in means if new < old)


def dice_of(
    voxels: NDArray[np.int64], hits: NDArray[np.int64], references: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Give Dice of voxel counts; nan where neither prediction nor reference has a voxel."""
    both = voxels + references
    result = np.full(both.shape, np.nan)
    np.divide(2 * hits, both, out=result, where=both > 0)
    return result


def means_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the mean of the values that each line has, summed as nnU-Net does; nan if none.

    Args:
        values: (line, value), nan where there is none.
    """
    values = np.ascontiguousarray(values)  # or numpy sums a line in another order
    known = ~np.isnan(values)
    sums, counts = np.where(known, values, 0).sum(axis=1), known.sum(axis=1)
    result = np.full(len(values), np.nan)
    np.divide(sums, counts, out=result, where=counts > 0)
    return result


def _parts(table: ComponentTable, holds: NDArray[np.bool_], spacing: Spacing) -> CaseParts:
    """Prepare a case; `holds` says which label or region holds which label, (name, label)."""
    references = table.background.copy()
    np.add.at(references, table.overlap_references, table.overlap_voxels)
    counted = np.zeros_like(table.sizes)
    np.add.at(counted, table.overlap_components, table.overlap_voxels)
    held = holds[:, table.labels]  # (name, component)
    names, components = np.nonzero(held)
    entry_of = np.zeros(held.shape, np.int64)
    entry_of[names, components] = np.arange(len(names))
    of_both = holds[:, table.overlap_references] & held[:, table.overlap_components]
    in_names, overlaps = np.nonzero(of_both)
    hits = np.zeros(len(names), np.int64)
    entries = entry_of[in_names, table.overlap_components[overlaps]]
    np.add.at(hits, entries, table.overlap_voxels[overlaps])
    return CaseParts(
        table=table,
        spacing=spacing,
        components=components,
        names=names,
        voxels=counted[components],
        hits=hits,
        references=holds.astype(np.int64) @ references,
    )


def _dice(
    cohort: Cohort, left: Sequence[NDArray[np.bool_]], before: State | None = None
) -> NDArray[np.float64]:
    """Score what is left; a case of which as much is left as before has the same score."""
    if before is None:
        dice = np.empty((len(cohort.labels.foreground), len(left)))
    else:
        dice = before.dice.copy()
    for number, (case, rest) in enumerate(zip(cohort.cases, left, strict=True)):
        if before is not None and np.array_equal(rest, before.left[number]):
            continue
        there = rest[case.components]
        voxels, hits = np.zeros_like(case.references), np.zeros_like(case.references)
        np.add.at(voxels, case.names[there], case.voxels[there])
        np.add.at(hits, case.names[there], case.hits[there])
        dice[:, number] = dice_of(voxels, hits, case.references)
    return dice
