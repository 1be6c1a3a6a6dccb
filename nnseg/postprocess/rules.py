"""The rules that take implausible pieces out of a predicted label map, as records."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nnseg.axes import Spacing
from nnseg.errors import DataError
from nnseg.labels import Labels

MM3_PER_ML = 1000.0
ROUNDING = 1e-6  # share by which the spacing of a file may be off; it is often stored in float32

Unit: TypeAlias = Literal["ml", "voxels"]


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

    def __str__(self) -> str:
        return f"keep the largest component of {', '.join(self.labels)}"


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
    unit: Unit = "ml"

    def __post_init__(self) -> None:
        if not 0 < self.smallest < math.inf:
            raise DataError(
                f"minimum_size of {self.label} is {self.smallest:g} {self.unit}; it must be above 0"
            )

    def __str__(self) -> str:
        return f"take out components of {self.label} under {self.smallest:g} {self.unit}"


Rule: TypeAlias = Annotated[KeepLargest | MinimumSize, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidedOn:
    """Whose predictions rules were decided on, as far as that is known."""

    labels: Labels  # of the dataset then
    weights_sha256: dict[str, str] = field(default_factory=dict)  # by the folder of each fold


@dataclass(frozen=True, slots=True, kw_only=True)
class Postprocessing:
    """What is done with each predicted label map, in the order in which it is done."""

    rules: tuple[Rule, ...] = ()
    decided_on: DecidedOn | None = field(default=None, compare=False)  # None is not known


def keep_largest_foreground(labels: Labels) -> KeepLargest:
    """Give the rule that keeps the largest component of everything but the background.

    It is the first one that nnU-Net tries; the others are a `KeepLargest` of each label or region.
    """
    return KeepLargest(labels=tuple(labels.foreground))


def values_of(rule: Rule, labels: Labels) -> tuple[int, ...]:
    """Give the integers whose union a rule is about, ascending.

    Raises:
        DataError: The rule names a label that there is not.
    """
    names = rule.labels if isinstance(rule, KeepLargest) else (rule.label,)
    for name in names:
        if name not in labels.foreground:
            raise DataError(
                f"the postprocessing rule {rule.kind} is about {name!r}, which is none of the "
                f"labels {', '.join(labels.foreground)}; use rules that were made for these labels"
            )
    return tuple(sorted({value for name in names for value in labels.foreground[name]}))


def going(rule: Rule, sizes: NDArray[np.int64], spacing: Spacing) -> NDArray[np.bool_]:
    """Say which components a rule takes out.

    Args:
        rule: The rule.
        sizes: Voxels of the components of what the rule is about, (component,); entry 0 stands for
            what is no part of it, is 0 itself and never goes.
        spacing: mm per voxel, (z, y, x).

    Returns:
        (component,).
    """
    least = sizes.max() if isinstance(rule, KeepLargest) else fewest_voxels(rule, spacing)
    gone = np.asarray(sizes < least)
    gone[0] = False
    return gone


def fewest_voxels(rule: MinimumSize, spacing: Spacing) -> float:
    """Give the number of voxels from which on a component stays."""
    if rule.unit == "voxels":
        return rule.smallest
    return rule.smallest * MM3_PER_ML / math.prod(spacing) * (1 - ROUNDING)
