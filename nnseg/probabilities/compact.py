"""Probabilities in little room: what a network found on its own grid, as rounded log-odds.

A label's head counts how far its logit lies below the highest one, a region's is its logit: of the
logits no more is lost than what a softmax ignores. So whoever reads them can interpolate them as
the network's own, and take the probabilities then, as a prediction does. Which head is the highest,
and which region is over a half, is kept exactly.

The steps are finest around a tie, where averaging decides, and grow with the distance from it. What
is sure among neighbours that are as sure of the same is one value: so most of an image packs into
next to nothing.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Planes
from nnseg.folders import compact_files
from nnseg.frame import unpacked
from nnseg.labels import Labels
from nnseg.plan import Resampling
from nnseg.preprocess import Placement
from nnseg.probabilities.frames import (
    AXES,
    ArrayShape,
    Packing,
    check_readable,
    growing,
    open_proven,
    runs_of,
)
from nnseg.probabilities.target import TakePlanes, Target, naming
from nnseg.volume import Geometry

FORMAT = 1  # raised when files of an older version can no longer be read
NEAR = 0.25  # log-odds up to which steps are about equal; from there on they grow with them
PER_E_FOLD = 96  # steps in which log-odds far from a tie grow e times
LAST = 767  # the step that says "sure, and so are the neighbours"; others are smaller
SURE = 7.0  # log-odds from which a voxel may be called so: 1 in 1100 for whatever else it may be
SURE_VALUE = 16.0  # what is read there
CHUNK_BYTES = 2**22
BLOCK_BYTES = 2**20  # packed at once
PIECE_VALUES = 2**20  # turned into steps at once
LEVEL = 8  # of zstd: the next one takes ten times as long for a twelfth less
KIND = "uint16"
MADE_BY = "nnseg train DATASET CONFIGURATION FOLD --val"
LINEAR = Resampling(order=1, order_along=0)
FLOOR = np.float32(1e-38)  # of probabilities, whose logarithm is taken

Steps: TypeAlias = NDArray[np.uint16]  # (z, y, x, head)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCompact:
    """The record beside the compact probabilities of a case: CASE.probabilities.json.

    The array holds steps on the network's grid, plan order. Step s stands for the log-odds
    `near` * sinh(s / `per_e_fold`), and `last` for `sure_value`. A label's head is so far below the
    highest one of its voxel, which alone has step 0. Of a region's head `last` is taken off first;
    its probability is over a half where more than 0 is left, and steps below 0 count downwards.
    Outside the body's box the background is sure, and no region is there.
    """

    axes: tuple[str, ...]
    heads: tuple[str, ...]  # names, in the order of that axis
    near: float
    per_e_fold: int
    last: int
    sure_value: float
    labels: Labels
    placement: Placement
    resampling: Resampling  # of logits, from the network's grid to the file's
    axis_apart: int | None  # the axis that is resampled apart, plan order
    geometry: Geometry
    array_sha256: str  # of the file of the array
    weights_sha256: str | None = None  # of the network; None where an average or older one is
    format: int = FORMAT
    record_sha256: str = ""  # of this record without it; `record.save_sealed` writes it

    def __post_init__(self) -> None:
        wanted: dict[str, Any] = {
            "axes": AXES,
            "heads": self.labels.head_names,
            "near": NEAR,
            "per_e_fold": PER_E_FOLD,
            "last": LAST,
            "sure_value": SURE_VALUE,
            "format": FORMAT,
        }
        check_readable(self, wanted, MADE_BY)

    @property
    def shape(self) -> ArrayShape:
        """The array's shape, of AXES."""
        z, y, x = self.placement.shape_resampled
        return z, len(self.heads), y, x


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenCompact:
    """The compact probabilities of a case, found whole; they are read as they are asked for."""

    stored: StoredCompact
    array: Any  # of AXES, uint16

    def planes(self, first: int, stop: int) -> Planes:
        """Read the probabilities of some planes of the network's grid, plan order.

        Args:
            first: The first plane, from 0.
            stop: Behind the last one.

        Returns:
            (z, y, x, head), float32.
        """
        return self.stored.labels.probabilities(self.log_odds(first, stop))

    def log_odds(self, first: int, stop: int) -> Planes:
        """Read the same as logits: of labels each voxel's highest is 0; see `StoredCompact`."""
        depth, heads, *plane = self.stored.shape
        if not 0 <= first <= stop <= depth:
            raise ValueError(f"planes {first} to {stop} of {depth}")
        table = _values(self.stored.labels.has_regions)
        result = np.empty((stop - first, *plane, heads), dtype=np.float32)
        if first < stop:
            for number, steps in enumerate(unpacked(self.array, first, stop)):
                for head, of_head in enumerate(steps):
                    result[number, ..., head] = table.take(of_head, mode="clip")
        return result

    def runs(self) -> Iterator[Planes]:
        """Go through all `log_odds`, as many planes at a time as lie together on the disk."""
        return runs_of(self.log_odds, self.array)


def open_compact(label_map: Path) -> OpenCompact:
    """Open the compact probabilities beside a label map, after checking their hashes.

    Args:
        label_map: CASE.nii.gz; it need not be there itself.

    Raises:
        MissingError: A file is missing.
        DataError: A file is damaged, or holds something else.
    """
    stored, array = open_proven(StoredCompact, compact_files(label_map)[0], KIND, MADE_BY)
    return OpenCompact(stored=stored, array=array)


@contextmanager
def writing_compact(
    label_map: Path,
    labels: Labels,
    geometry: Geometry,
    placement: Placement,
    *,
    resampling: Resampling = LINEAR,
    axis_apart: int | None = None,
    weights_sha256: str | None = None,
) -> Iterator[TakePlanes]:
    """Write what a network found in one case, whole or not at all.

    The files bear the name of the label map, and are there when this is left without an error.
    Until then, and after an error or a kill, there is what was there before.

    Args:
        label_map: The label map that they belong to; its ending is left out.
        labels: What the heads mean.
        geometry: Of the image's file.
        placement: Where the network's grid lies in it.
        resampling: Of logits, from that grid to the file's.
        axis_apart: The axis that is resampled apart then, plan order; see `separate_axis`.
        weights_sha256: Of the network.

    Yields:
        What takes the logits (z, y, x, head) of the network's grid, plan order, some planes at a
        time and in their order; the array may be used again after each call.

    Raises:
        DiskFullError: The disk is full.
        MachineError: The folder cannot be written.
        ValueError: Other planes came than the placement tells of.
    """
    files = compact_files(label_map)
    rules = (resampling, axis_apart, weights_sha256)
    with _taking(files, labels, geometry, placement, *rules) as take:
        yield take


@contextmanager
def taking_compact(target: Target) -> Iterator[TakePlanes]:
    """Take probabilities of the body's box on the file's own grid, some planes at a time."""
    array, stored = target.files
    labels, whole = target.labels, target.placement
    placement = replace(whole, shape_resampled=whole.shape_cropped)
    with _taking((array, stored), labels, target.geometry, placement, LINEAR, None) as take:
        yield lambda planes: take(_logits_of(planes, labels.has_regions))


@contextmanager
def _taking(
    files: tuple[Path, Path],
    labels: Labels,
    geometry: Geometry,
    placement: Placement,
    resampling: Resampling,
    axis_apart: int | None,
    weights_sha256: str | None = None,
) -> Iterator[TakePlanes]:
    """Do the work of `writing_compact`."""

    def stored(digest: str) -> StoredCompact:
        return StoredCompact(
            axes=AXES,
            heads=labels.head_names,
            near=NEAR,
            per_e_fold=PER_E_FOLD,
            last=LAST,
            sure_value=SURE_VALUE,
            labels=labels,
            placement=placement,
            resampling=resampling,
            axis_apart=axis_apart,
            geometry=geometry,
            array_sha256=digest,
            weights_sha256=weights_sha256,
        )

    depth, *plane = placement.shape_resampled
    shape = (depth, labels.heads, plane[0], plane[1])
    linear = _interpolated(placement, resampling, axis_apart)
    with growing(files, shape, _packing(shape), stored) as array:
        taken = 0

        def add(steps: Steps) -> None:
            for of_plane in steps:
                array.add(of_plane.transpose(2, 0, 1))

        settler = _Settler(linear, labels.has_regions, add)

        def take(logits: Planes) -> None:
            nonlocal taken
            taken += len(logits)
            if logits.shape[1:] != (*plane, labels.heads) or taken > depth:
                raise ValueError(f"{logits.shape} after {taken - len(logits)} planes")
            step = max(1, PIECE_VALUES // max(1, math.prod(logits.shape[1:])))
            with naming(files[0]):
                for start in range(0, len(logits), step):
                    settler.take(to_steps(logits[start : start + step], labels.has_regions))

        yield take
        if taken != depth:
            raise ValueError(f"only {taken} planes of {files[0].name} came")
        with naming(files[0]):
            settler.finish()


def to_steps(logits: Planes, regions: bool) -> Steps:
    """Round logits (..., head) to steps; nothing is called sure yet.

    >>> logits = np.array([[0.5, 3.5, -90.5]], dtype=np.float32)
    >>> to_steps(logits, False).tolist(), (to_steps(logits, True).astype(int) - LAST).tolist()
    ([[305, 0, 636]], [[139, 320, -632]])
    """
    if not regions:
        highest = logits.argmax(axis=-1)[..., None]
        below = np.take_along_axis(logits, highest, axis=-1) - logits
        steps = np.clip(_count(below), 1, LAST - 1).astype(np.uint16)
        np.put_along_axis(steps, highest, 0, axis=-1)
        return steps
    size = np.minimum(_count(np.abs(logits)), LAST - 1).astype(np.int16)
    signed = np.where(logits > 0, np.maximum(size, 1), -size)
    return (signed + LAST).astype(np.uint16)


class _Settler:
    """Calls sure what is so in a whole neighbourhood, as planes of steps come by.

    A mixture of sure neighbours is as sure as they are, whatever exactly their logits were. Along
    axes that are not interpolated a voxel has no neighbours.
    """

    def __init__(
        self, linear: Sequence[int], regions: bool, hand_on: Callable[[Steps], None]
    ) -> None:
        self._linear, self._regions, self._hand_on = linear, regions, hand_on
        self._held: Steps | None = None
        self._known = 0  # of the planes held, those that have been handed on

    def take(self, steps: Steps) -> None:
        """Take the next planes; the last one waits for its neighbour."""
        self._held = steps if self._held is None else np.concatenate([self._held, steps])
        self._leave(len(self._held) - (0 in self._linear))

    def finish(self) -> None:
        """Hand on what waits."""
        if self._held is not None:
            self._leave(len(self._held))

    def _leave(self, stop: int) -> None:
        """Hand on the planes held up to `stop`, and keep the last of them beside the others."""
        assert self._held is not None, "planes came"
        if stop > self._known:
            settled = self._held.copy()
            side = self._side(self._held)
            low, high = side, side
            for axis in self._linear:
                low, high = _spread(low, axis, np.minimum), _spread(high, axis, np.maximum)
            sure = (low == high) & (low > 0)
            if self._regions:
                settled[sure] = np.where(side[sure] == 1, 0, 2 * LAST)
            else:
                settled[sure] = LAST
            self._hand_on(settled[self._known : stop])
            kept = stop - 1 if 0 in self._linear else stop
            self._held, self._known = self._held[kept:], stop - kept

    def _side(self, steps: Steps) -> NDArray[np.uint16]:
        """Say which way each head is sure: 0 where it is not; else equal where they are as one."""
        threshold = int(np.ceil(_count(np.float32(SURE))))
        side: NDArray[np.uint16]
        if self._regions:
            side = np.zeros(steps.shape, np.uint16)
            side[steps <= LAST - threshold] = 1
            side[steps >= LAST + threshold] = 2
            return side
        highest = (steps.argmin(axis=-1) + 1).astype(np.uint16)
        side = np.broadcast_to(highest[..., None], steps.shape).copy()
        side[steps < threshold] = 0
        return side


def _spread(array: NDArray[np.uint16], axis: int, join: "np.ufunc") -> NDArray[np.uint16]:
    """Join each voxel with those before and behind it along an axis."""
    result: NDArray[np.uint16] = array.copy()
    before = tuple(slice(None, -1) if number == axis else slice(None) for number in range(3))
    behind = tuple(slice(1, None) if number == axis else slice(None) for number in range(3))
    join(result[behind], array[before], out=result[behind])
    join(result[before], array[behind], out=result[before])
    return result


def _count(log_odds: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn log-odds of at least 0 into steps."""
    share = log_odds / np.float32(NEAR)
    root = np.sqrt(share * share + np.float32(1))
    steps: NDArray[np.float32] = np.rint(np.log(share + root) * np.float32(PER_E_FOLD))
    return steps


@lru_cache
def _values(regions: bool) -> NDArray[np.float32]:
    """Give the log-odds that each step is read as."""
    sizes = NEAR * np.sinh(np.arange(LAST + 1) / PER_E_FOLD)
    sizes[LAST] = SURE_VALUE
    values = np.concatenate([-sizes[:0:-1], sizes]) if regions else -sizes
    return values.astype(np.float32)


def _logits_of(probabilities: Planes, regions: bool) -> Planes:
    """Give the logits of probabilities (..., head)."""
    likely: Planes = np.log(np.maximum(probabilities, FLOOR))
    if regions:
        likely -= np.log(np.maximum(1 - probabilities, FLOOR))
    return likely


def _interpolated(placement: Placement, rule: Resampling, axis: int | None) -> tuple[int, ...]:
    """Give the axes along which a voxel of the file is a mixture of the network's."""
    old, new = placement.shape_resampled, placement.shape_cropped
    orders = [rule.order_along if number == axis else rule.order for number in range(3)]
    return tuple(number for number in range(3) if old[number] != new[number] and orders[number])


def _packing(shape: ArrayShape) -> Packing:
    depth, heads, rows, columns = shape
    plane = 2 * rows * columns
    together = min(depth, max(1, CHUNK_BYTES // (heads * plane)))
    part = -(-rows // -(-plane // BLOCK_BYTES))  # rows, in as few equal parts as fit
    return Packing(
        kind=KIND,
        chunks=(together, min(heads, max(1, CHUNK_BYTES // plane)), rows, columns),
        blocks=(min(together, max(1, BLOCK_BYTES // plane)), 1, part, columns),
        level=LEVEL,
        shuffled=False,  # equal values in a row pack better than their bytes apart
    )
