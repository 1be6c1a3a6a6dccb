"""Labels and regions: what the integers of a label map mean, and what a network predicts of them.

A dataset has either *labels*, one softmax head for each label and the background, or *regions*
(sets of labels that may overlap, such as whole tumour and tumour core), one sigmoid head each.
The *ignore* label marks voxels that nobody annotated; it is never learnt and never predicted.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Segmentation, smallest_integer_type
from nnseg.errors import DataError

IGNORE = "ignore"
BACKGROUND = "background"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The `labels` of dataset.json, checked.

    Names map to one integer, or to several for a region. `regions_class_order` gives, for each
    region in the order of `labels`, the integer that prediction paints for it, later ones over
    earlier ones.

    Raises:
        DataError: Background is not 0, the integers have gaps or two names, "ignore" is not the
            largest or part of a region, or the class order does not fit.
    """

    labels: dict[str, int | tuple[int, ...]]
    regions_class_order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if "" in self.labels:
            raise DataError("labels has an entry without a name; give it one")
        if self.labels.get(BACKGROUND) != 0:
            found = self.labels.get(BACKGROUND, "missing")
            raise DataError(f"labels.background is {found}; it must be 0")
        values = self.values
        if not self.foreground:
            raise DataError("labels has no foreground; name at least one label besides background")
        if values != tuple(range(len(values))):
            raise DataError(f"labels has the integers {list(values)}; they must be 0, 1, 2, ...")
        ignore = self.labels.get(IGNORE)
        if ignore is not None and ignore != values[-1]:
            raise DataError(f"labels.ignore is {ignore}; it must be the largest, {values[-1]}")
        for name, members in self.foreground.items():
            if not members or 0 in members or ignore in members:
                raise DataError(
                    f"labels.{name} is {list(members)}; it must hold labels other than background "
                    "and ignore"
                )
        if not self.has_regions and len(self.foreground) != len(values) - 1 - (ignore is not None):
            raise DataError("two names in labels share an integer; give each its own")
        if self.has_regions:
            order, wanted = self.regions_class_order, len(self.foreground)
            if order is None or len(order) != wanted:
                found = "missing" if order is None else f"of {len(order)} entries"
                raise DataError(
                    f"regions_class_order is {found}; it needs one integer for each of the "
                    f"{wanted} regions"
                )
            if unknown := [label for label in order if label not in values or label == ignore]:
                raise DataError(f"regions_class_order has {unknown}, which cannot be predicted")

    @property
    def has_regions(self) -> bool:
        """Whether any entry joins several labels; then all foreground entries are regions."""
        return any(isinstance(v, tuple) and len(v) > 1 for v in self.labels.values())

    @property
    def values(self) -> tuple[int, ...]:
        """Every integer a label map may hold, ignore included, ascending."""
        found: set[int] = set()
        for entry in self.labels.values():
            found.update(entry if isinstance(entry, tuple) else (entry,))
        return tuple(sorted(found))

    @property
    def ignore(self) -> int | None:
        """The integer of unannotated voxels, or None."""
        entry = self.labels.get(IGNORE)
        return entry if isinstance(entry, int) else None

    @property
    def foreground(self) -> dict[str, tuple[int, ...]]:
        """Name to integers of each foreground label or region, in file order."""
        return {
            name: entry if isinstance(entry, tuple) else (entry,)
            for name, entry in self.labels.items()
            if name not in (BACKGROUND, IGNORE)
        }

    @property
    def heads(self) -> int:
        """Number of output channels of a network for these labels."""
        return len(self.foreground) + (0 if self.has_regions else 1)

    def segment(self, logits: NDArray[np.float32]) -> Segmentation:
        """Turn logits (head, z, y, x) into a label map (z, y, x).

        Labels: the head with the highest logit. Regions: every region whose probability is over
        0.5 is painted with its integer of `regions_class_order`, later regions over earlier ones.
        """
        kind = smallest_integer_type(self.values[-1])
        if not self.has_regions:
            # labels have no gaps: head i is label i
            return np.asarray(logits.argmax(axis=0), dtype=kind)
        result = np.zeros(logits.shape[1:], dtype=kind)
        for head, label in zip(logits, self.regions_class_order or (), strict=True):
            result[head > 0] = label
        return result
