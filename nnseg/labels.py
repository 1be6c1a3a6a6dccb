"""Labels and regions: what the integers of a label map mean, and what a network predicts of them.

A dataset has either *labels*, one softmax head for each label and the background, or *regions*
(sets of labels that may overlap, such as whole tumour and tumour core), one sigmoid head each.
The *ignore* label marks voxels that nobody annotated; it is never learnt and never predicted.

The integers may have gaps. Label maps hold them as they are; what is trained on holds their
*positions* among all values, 0, 1, 2, ..., and `Labels.consecutive` says what those mean.
"""

import json
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Image, Segmentation, smallest_integer_type
from nnseg.errors import DataError

IGNORE = "ignore"
BACKGROUND = "background"
LARGEST = 65535  # of the integers: the most that every format and a 16 bit picture can hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The `labels` of dataset.json, checked.

    Names map to one integer, or to several for a region. `regions_class_order` gives, for each
    region in the order of `labels`, the integer that prediction paints for it, later ones over
    earlier ones. Two of them are equal only if their regions come in the same order, as heads do.

    Raises:
        DataError: Background is not 0, the integers have two names or cannot be held, "ignore" is
            not the largest or part of a region, or the class order does not fit.
    """

    labels: dict[str, int | tuple[int, ...]]
    regions_class_order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if "" in self.labels:
            raise DataError("labels has an entry without a name; give it one")
        if strange := [name for name in self.labels if not name.isprintable()]:
            raise DataError(f"labels has {strange[0]!r}; a name must be text that can be shown")
        if self.labels.get(BACKGROUND) != 0:
            found = self.labels.get(BACKGROUND, "missing")
            raise DataError(f"labels.background is {found}; it must be 0")
        values = self.values
        if not self.foreground:
            raise DataError("labels has no foreground; name at least one label besides background")
        if values[0] < 0 or values[-1] > LARGEST:
            raise DataError(f"labels has the integers {list(values)}; use some of 0 to {LARGEST}")
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

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Labels):
            return NotImplemented
        order, others = self.regions_class_order, other.regions_class_order
        if (self.labels, order) != (other.labels, others):
            return False
        return not self.has_regions or list(self.foreground) == list(other.foreground)

    @property
    def has_regions(self) -> bool:
        """Whether any entry joins several labels; then all foreground entries are regions."""
        return any(isinstance(v, tuple) and len(v) > 1 for v in self.labels.values())

    @property
    def as_text(self) -> str:
        """What the integers mean, as JSON of the keys that dataset.json has for it."""
        keys: dict[str, object] = {"labels": self.labels}
        if self.regions_class_order is not None:
            keys["regions_class_order"] = self.regions_class_order
        return json.dumps(keys, ensure_ascii=False)

    @property
    def values(self) -> tuple[int, ...]:
        """Every integer a label map may hold, ignore included, ascending."""
        found: set[int] = set()
        for entry in self.labels.values():
            found.update(entry if isinstance(entry, tuple) else (entry,))
        return tuple(sorted(found))

    @property
    def has_gaps(self) -> bool:
        """Whether the integers are others than 0, 1, 2, ..., so that positions differ from them."""
        return self.values[-1] != len(self.values) - 1

    @property
    def consecutive(self) -> "Labels":
        """The same labels with positions for integers; these themselves where there are no gaps."""
        if not self.has_gaps:
            return self
        position = {value: place for place, value in enumerate(self.values)}
        order = self.regions_class_order
        return replace(
            self,
            labels={
                name: tuple(position[value] for value in entry)
                if isinstance(entry, tuple)
                else position[entry]
                for name, entry in self.labels.items()
            },
            regions_class_order=None if order is None else tuple(position[v] for v in order),
        )

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
    def foreground_values(self) -> tuple[int, ...]:
        """The integers of what is annotated besides the background, regions taken apart."""
        return tuple(value for value in self.values if value not in (0, self.ignore))

    @property
    def in_head_order(self) -> tuple[str, ...]:
        """The names of the foreground as a network has them: labels by integer, regions as listed.

        >>> Labels(labels={"background": 0, "edema": 2, "core": 1}).in_head_order
        ('core', 'edema')
        """
        if self.has_regions:
            return tuple(self.foreground)
        return tuple(sorted(self.foreground, key=self.foreground.__getitem__))

    @property
    def head_names(self) -> tuple[str, ...]:
        """What each output channel of a network is called; regions have no background."""
        return self.in_head_order if self.has_regions else (BACKGROUND, *self.in_head_order)

    @property
    def heads(self) -> int:
        """Number of output channels of a network for these labels."""
        return len(self.foreground) + (0 if self.has_regions else 1)

    def to_positions(self, segmentation: Segmentation) -> Segmentation:
        """Turn a label map into positions in `values`; without gaps it is given back unchanged.

        Raises:
            DataError: It holds values that are no labels.
        """
        largest = self.values[-1]
        if segmentation.min(initial=0) < 0 or segmentation.max(initial=0) > largest:
            raise self._unknown(segmentation)
        if not self.has_gaps:
            return segmentation
        nowhere = len(self.values)
        table = np.full(largest + 1, nowhere, dtype=smallest_integer_type(nowhere))
        table[list(self.values)] = range(nowhere)
        positions = table[segmentation]
        if (positions == nowhere).any():
            raise self._unknown(segmentation)
        return positions

    def from_positions(self, positions: Segmentation) -> Segmentation:
        """Turn positions in `values` into a label map of the smallest type that holds them all."""
        kind = smallest_integer_type(self.values[-1])
        if not self.has_gaps:
            return positions.astype(kind, copy=False)
        return np.array(self.values, dtype=kind)[positions]

    def to_channels(self, positions: Segmentation) -> Image:
        """Turn positions in `values` into a channel for each of `foreground_values`, 1 or 0.

        So a cascade sees what the stage before it found.

        Args:
            positions: (z, y, x).

        Returns:
            (channel, z, y, x), float32.
        """
        channels = np.empty((len(self.foreground_values), *positions.shape), dtype=np.float32)
        for place, channel in enumerate(channels, start=1):  # 0 is the background
            np.equal(positions, place, out=channel)
        return channels

    def _unknown(self, segmentation: Segmentation) -> DataError:
        unknown = sorted(set(np.unique(segmentation).tolist()) - set(self.values))
        wanted = f"one of {list(self.values)}" if self.has_gaps else f"0 to {self.values[-1]}"
        return DataError(
            f"holds the values {unknown[:10]}, which are no labels; they must be {wanted}: correct "
            "the label map or the labels of dataset.json"
        )

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn logits (..., head) into probabilities: softmax of labels, sigmoid of regions."""
        if self.has_regions:
            with np.errstate(over="ignore"):  # the exponential of a very low logit is infinite
                return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float32)
        result: NDArray[np.float32] = logits - logits.max(axis=-1, keepdims=True)
        np.exp(result, out=result)
        result /= result.sum(axis=-1, keepdims=True)
        return result

    def segment(self, logits: NDArray[np.float32]) -> Segmentation:
        """Turn logits (..., head) into labels (...).

        Labels: the head with the highest logit. Regions: every region whose probability is over
        0.5 is painted with its integer of `regions_class_order`, later regions over earlier ones.
        """
        return self.painted(self.decide(logits))

    def decide(self, logits: NDArray[np.float32]) -> Segmentation:
        """Give what logits (..., head) decide on; `painted` makes labels of it.

        It is the label itself, or of regions the last whose probability is over 0.5, counted from
        1, and 0 if there is none. Logits that decide alike do so in every mixture; of the integers
        that are painted this does not hold where two regions have the same, or one has 0.
        """
        if not self.has_regions:
            return self.from_positions(logits.argmax(axis=-1))  # a head for each position
        result = np.zeros(logits.shape[:-1], dtype=smallest_integer_type(self.heads))
        for head in range(self.heads):
            result[logits[..., head] > 0] = head + 1
        return result

    def painted(self, decided: Segmentation) -> Segmentation:
        """Turn what `decide` gave into labels, of the smallest type that holds them all."""
        order, kind = self.regions_class_order or (), smallest_integer_type(self.values[-1])
        if not self.has_regions or order == tuple(range(1, self.heads + 1)):  # it is the same
            return decided.astype(kind, copy=False)
        return np.array((0, *order), dtype=kind)[decided]
