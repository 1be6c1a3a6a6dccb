"""The connected components of a predicted label map as counts, by which rules are scored.

`component_table` looks at a case once. What any rules would leave of it, and its scores then, are
arithmetic on the table: no label map is made or read again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Segmentation, Spacing, smallest_integer_type
from nnseg.evaluate import paired_positions
from nnseg.image.components import Connectivity
from nnseg.image.crop import bounding_box, cut
from nnseg.labels import Labels
from nnseg.postprocess.rules import Postprocessing, Rule, going, values_of

CORNERS: Connectivity = 26  # neighbours of a voxel, those that touch it with a corner among them
SLAB_VOXELS = 2**21  # counted at once, because counting wants indices of 8 bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ComponentTable:
    """The connected components of a prediction, each of one label, in voxels; corners touch.

    A rule takes out whole components of a union of labels. Such a component is made of whole
    components of this table, those that touch each other, so what any rules leave is a selection
    of them: the table tells it to the voxel, of regions that overlap as well as of plain labels.
    Labels are positions in `Labels.values`. Voxels whose reference is the ignore label count for
    the size of a component and for nothing else.
    """

    labels: NDArray[np.int64]  # (component,), what was predicted there
    sizes: NDArray[np.int64]  # (component,)
    contacts: NDArray[np.int64]  # (contact, 2), two components of different labels that touch
    overlap_components: NDArray[np.int64]  # (overlap,), sorted
    overlap_references: NDArray[np.int64]  # (overlap,), the reference's label
    overlap_voxels: NDArray[np.int64]  # (overlap,), that the two have in common
    background: NDArray[np.int64]  # (reference label,), voxels predicted to be background


def component_table(
    prediction: Segmentation, reference: Segmentation, labels: Labels
) -> ComponentTable:
    """Count what the connected components of a prediction have in common with its reference.

    Args:
        prediction: (z, y, x).
        reference: (z, y, x), of the same shape.
        labels: What the integers mean.

    Raises:
        DataError: The shapes differ, or a value is none of the labels.
    """
    predicted, truth = paired_positions(prediction, reference, labels)
    found = predicted != 0
    found |= truth != 0
    box = bounding_box(found)
    outside = predicted.size
    kind = smallest_integer_type(len(labels.values))
    predicted = np.ascontiguousarray(cut(predicted, box), dtype=kind)
    truth = np.ascontiguousarray(cut(truth, box), dtype=kind)
    outside -= predicted.size
    del found
    # cc3d 4.1.1 fails on a line of voxels with corners if they are bool, which these never are
    parts, count = cc3d.connected_components(predicted, connectivity=CORNERS, return_N=True)
    overlaps, part_labels = _overlaps(parts, count, predicted, truth, len(labels.values))
    sizes = overlaps.sum(axis=1)
    if labels.ignore is not None:
        overlaps[:, -1] = 0  # it is the largest label
    background = overlaps[0].copy()
    background[0] += outside
    components, references = np.nonzero(overlaps[1:])
    return ComponentTable(
        labels=part_labels[1:],
        sizes=sizes[1:],
        contacts=_contacts(parts, part_labels),
        overlap_components=components,
        overlap_references=references,
        overlap_voxels=overlaps[1:][components, references],
        background=background,
    )


def left_by(
    table: ComponentTable,
    among: NDArray[np.bool_],
    rule: Rule,
    about: NDArray[np.bool_],
    spacing: Spacing,
) -> NDArray[np.bool_]:
    """Say which components of a table a rule leaves.

    Args:
        table: Of the case.
        among: What the rules before have left, (component,).
        rule: The rule.
        about: Of `labels_in` its labels.
        spacing: mm per voxel, (z, y, x).

    Returns:
        (component,).
    """
    groups, sizes = grouped(table, among, about)
    return among & ~going(rule, sizes, spacing)[groups]


def grouped(
    table: ComponentTable, among: NDArray[np.bool_], about: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Join the components of some labels where they touch.

    Args:
        table: Of the case.
        among: Those that are there, (component,).
        about: Of `labels_in` the labels.

    Returns:
        The group of each component (component,), from 1, or 0 for what is not there or of another
        label; and the voxels of each group (group,), where entry 0 is 0.
    """
    inside = among & about[table.labels]
    groups = np.zeros(len(table.sizes), np.int64)
    joins = inside[table.contacts].all(axis=1) if about.sum() > 1 else np.zeros(0, np.bool_)
    if not joins.any():
        sizes = np.concatenate(([0], table.sizes[inside]))
        groups[inside] = np.arange(1, len(sizes))
        return groups, sizes
    first, second = table.contacts[joins].T
    lowest = np.arange(len(table.sizes))  # of a group, the number of a component
    while (lowest[first] != lowest[second]).any():
        low = np.minimum(lowest[first], lowest[second])
        np.minimum.at(lowest, first, low)
        np.minimum.at(lowest, second, low)
        lowest = lowest[lowest]
    groups[inside] = np.unique(lowest[inside], return_inverse=True)[1] + 1
    sizes = np.zeros(groups.max() + 1, np.int64)
    np.add.at(sizes, groups[inside], table.sizes[inside])
    return groups, sizes


def labels_in(values: Sequence[int], labels: Labels) -> NDArray[np.bool_]:
    """Mark some integers among all values of a label map, (label,)."""
    return np.isin(labels.values, values)


def score_after(
    table: ComponentTable, postprocessing: Postprocessing, labels: Labels, spacing: Spacing
) -> NDArray[np.int64]:
    """Count the voxels of each pair of labels after the rules, (reference label, predicted label).

    It is `evaluate.confusion_table` of the label map that `apply` would give, without making it;
    `evaluate.score_table` has the scores of it.

    Args:
        table: Of the case.
        postprocessing: The rules.
        labels: What the names in the rules mean; those of the table.
        spacing: mm per voxel, (z, y, x).

    Raises:
        DataError: A rule names a label that there is not.
    """
    left = np.ones(len(table.sizes), np.bool_)
    for rule in postprocessing.rules:
        left = left_by(table, left, rule, labels_in(values_of(rule, labels), labels), spacing)
    painted = np.where(left, table.labels, 0)
    result = np.zeros((len(labels.values), len(labels.values)), np.int64)
    result[:, 0] = table.background
    where = (table.overlap_references, painted[table.overlap_components])
    np.add.at(result, where, table.overlap_voxels)
    return result


def _overlaps(
    parts: NDArray[np.unsignedinteger],
    count: int,
    predicted: Segmentation,
    truth: Segmentation,
    values: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the voxels of each part and reference label, and give the label of each part.

    Part 0 is the background.
    """
    table = np.zeros((count + 1) * values, np.int64)
    labels = np.zeros(count + 1, np.int64)
    slab = max(SLAB_VOXELS, table.size)  # so that adding up tables is no more work than counting
    part_line, predicted_line, truth_line = parts.ravel(), predicted.ravel(), truth.ravel()
    for start in range(0, part_line.size, slab):
        numbers, seen = part_line[start : start + slab], truth_line[start : start + slab]
        inside = np.flatnonzero(numbers)  # most of a volume is background, told apart below
        pairs = numbers[inside].astype(np.intp)
        labels[pairs] = predicted_line[start : start + slab][inside]
        pairs *= values
        pairs += seen[inside]
        table += np.bincount(pairs, minlength=table.size)
        table[:values] += np.bincount(seen[seen != 0], minlength=values)
        table[0] += numbers.size - np.count_nonzero(seen)
    square = table.reshape(count + 1, values)
    square[0] -= square[1:].sum(axis=0)
    return square, labels


def _contacts(
    parts: NDArray[np.unsignedinteger], part_labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """List the pairs of parts that touch; parts of one label never do."""
    if (part_labels[1:] == part_labels[1:2]).all():
        return np.zeros((0, 2), np.int64)
    pairs = sorted(cc3d.region_graph(parts, connectivity=CORNERS))
    return np.array(pairs, np.int64).reshape(-1, 2) - 1
