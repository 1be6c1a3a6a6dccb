"""Rules that take implausible pieces out of a predicted label map, stored beside a model.

`Postprocessing` holds the rules, `apply` carries them out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nnseg.axes import Mask, Segmentation, Spacing
from nnseg.errors import DataError
from nnseg.image.components import number_components
from nnseg.image.crop import bounding_box, cut
from nnseg.labels import Labels

MM3_PER_ML = 1000.0
ROUNDING = 1e-6  # share by which the spacing of a file may be off; it is often stored in float32
SLAB_VOXELS = 2**20  # looked up at once


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepLargest:
    """Keep the largest connected component of the union of some labels or regions.

    Voxels whose corners touch are neighbours. The other components become background; of several
    that are equally large all stay, as in nnU-Net.

    Raises:
        DataError: There is no label.
    """

    kind: Literal["keep_largest"] = "keep_largest"
    labels: tuple[str, ...]  # names of labels or of regions

    def __post_init__(self) -> None:
        if not self.labels:
            raise DataError("keep_largest names no label; name at least one label or region")


@dataclass(frozen=True, slots=True, kw_only=True)
class MinimumSize:
    """Take out each connected component of a label or region that is smaller than a size.

    Voxels whose corners touch are neighbours. What is taken out becomes background; a component of
    just that size stays. A size in ml means the same on every spacing; voxels are for images whose
    spacing means nothing, such as pictures, which are one slice.

    Raises:
        DataError: The size is not a number above 0.
    """

    kind: Literal["minimum_size"] = "minimum_size"
    label: str  # name of a label or of a region
    smallest: float  # that stays
    unit: Literal["ml", "voxels"] = "ml"

    def __post_init__(self) -> None:
        if not 0 < self.smallest < math.inf:
            raise DataError(
                f"minimum_size of {self.label} is {self.smallest:g} {self.unit}; it must be above 0"
            )


Rule: TypeAlias = Annotated[KeepLargest | MinimumSize, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Postprocessing:
    """What is done with each predicted label map, in the order in which it is done."""

    rules: tuple[Rule, ...] = ()


def keep_largest_foreground(labels: Labels) -> KeepLargest:
    """Give the rule that keeps the largest component of everything but the background.

    It is the first one that nnU-Net tries; the others are a `KeepLargest` of each label or region.
    """
    return KeepLargest(labels=tuple(labels.foreground))


def apply(
    segmentation: Segmentation, postprocessing: Postprocessing, labels: Labels, spacing: Spacing
) -> Segmentation:
    """Carry out the rules on a label map, each on what the one before left.

    Beside the result it takes a byte for each voxel, or, where that is more, 3 or 5 for each voxel
    of the box around what a rule is about.

    Args:
        segmentation: (z, y, x), image order; it is left as it is.
        postprocessing: The rules.
        labels: What the integers mean, and the names in the rules.
        spacing: mm per voxel, (z, y, x).

    Returns:
        Label map (z, y, x) of the same type; the one given where there is no rule.

    Raises:
        DataError: A rule names a label that there is not.

    Source: of `KeepLargest` nnU-Net 2.8.1, whose results these are to the voxel.
    """
    steps = [_step(rule, labels, spacing) for rule in postprocessing.rules]
    if not steps:
        return segmentation
    result: Segmentation = segmentation.copy()
    inner = cut(result, bounding_box(result != 0))
    for values, goes in steps:
        mask = _holds_any(inner, values)
        box = bounding_box(mask)
        mask = np.ascontiguousarray(cut(mask, box))
        parts, sizes = number_components(mask)
        gone = goes(sizes)
        gone[0] = False  # what is no part of the mask
        if gone.any():
            _clear(cut(inner, box), gone, parts)
    return result


def _step(
    rule: Rule, labels: Labels, spacing: Spacing
) -> tuple[tuple[int, ...], Callable[[NDArray[np.int64]], NDArray[np.bool_]]]:
    """Give the integers that a rule is about, and what says by their sizes which parts go."""
    if isinstance(rule, KeepLargest):
        values = {value for name in rule.labels for value in _values(rule.kind, name, labels)}
        return tuple(sorted(values)), lambda sizes: np.asarray(sizes < sizes.max())
    smallest = _voxels(rule, spacing)
    return _values(rule.kind, rule.label, labels), lambda sizes: np.asarray(sizes < smallest)


def _values(kind: str, name: str, labels: Labels) -> tuple[int, ...]:
    if name not in labels.foreground:
        raise DataError(
            f"the postprocessing rule {kind} is about {name!r}, which is none of the labels "
            f"{', '.join(labels.foreground)}; use rules that were made for these labels"
        )
    return labels.foreground[name]


def _voxels(rule: MinimumSize, spacing: Spacing) -> float:
    """Give the number of voxels from which on a component stays."""
    if rule.unit == "voxels":
        return rule.smallest
    return rule.smallest * MM3_PER_ML / math.prod(spacing) * (1 - ROUNDING)


def _holds_any(segmentation: Segmentation, values: tuple[int, ...]) -> Mask:
    """Mark the voxels that hold one of `values`."""
    if len(values) == 1:
        return np.asarray(segmentation == values[0])
    mask = np.empty(segmentation.shape, dtype=np.bool_)
    for rows in _slabs(segmentation):
        mask[rows] = np.isin(segmentation[rows], values)
    return mask


def _clear(
    segmentation: Segmentation, gone: NDArray[np.bool_], parts: NDArray[np.unsignedinteger]
) -> None:
    """Make background of the voxels whose part is marked in `gone`, in place."""
    for rows in _slabs(segmentation):
        segmentation[rows][gone[parts[rows]]] = 0


def _slabs(segmentation: Segmentation) -> list[slice]:
    step = max(1, SLAB_VOXELS * len(segmentation) // max(1, segmentation.size))
    return [slice(start, start + step) for start in range(0, len(segmentation), step)]
