"""Probabilities to read again: the body's box in chunks, and a record that proves them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnseg.axes import Planes
from nnseg.frame import unpacked
from nnseg.labels import Labels
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
from nnseg.probabilities.heads import STEPS, heads_first
from nnseg.probabilities.target import TakePlanes, Target
from nnseg.volume import Geometry

FORMAT = 1  # raised when chunks of an older version can no longer be read
CHUNK_BYTES = 2**22
BLOCK_BYTES = 2**17  # packed at once
KIND = "uint16"
MADE_BY = "nnseg predict --save_probabilities chunks"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredProbabilities:
    """The record beside the chunks of a case: CASE_probabilities.json.

    The array holds the body's box in plan order, each value `steps` times the probability, rounded.
    Outside the box the background's probability is 1 where there are labels, and that of every
    region is 0.
    """

    axes: tuple[str, ...]
    heads: tuple[str, ...]  # names, in the order of that axis
    steps: int
    labels: Labels
    placement: Placement
    geometry: Geometry
    array_sha256: str  # of the file of the array
    format: int = FORMAT
    record_sha256: str = ""  # of this record without it; `record.save_sealed` writes it

    def __post_init__(self) -> None:
        wanted = {"axes": AXES, "heads": self.labels.head_names, "steps": STEPS, "format": FORMAT}
        check_readable(self, wanted, MADE_BY)

    @property
    def shape(self) -> ArrayShape:
        """The array's shape, of AXES."""
        z, y, x = self.placement.shape_cropped
        return z, len(self.heads), y, x


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenProbabilities:
    """The chunks of a case, found whole; they are read as they are asked for."""

    stored: StoredProbabilities
    array: Any  # of AXES, uint16

    def planes(self, first: int, stop: int) -> Planes:
        """Read the probabilities of some planes of the body's box, plan order.

        Args:
            first: The first plane, from 0.
            stop: Behind the last one.

        Returns:
            (z, y, x, head), float32.
        """
        depth, heads, *plane = self.stored.shape
        if not 0 <= first <= stop <= depth:
            raise ValueError(f"planes {first} to {stop} of {depth}")
        result = np.empty((stop - first, *plane, heads), dtype=np.float32)
        for number, values in enumerate(unpacked(self.array, first, stop)):
            np.multiply(values.transpose(1, 2, 0), np.float32(1 / STEPS), out=result[number])
        return result

    def runs(self) -> Iterator[Planes]:
        """Go through all `planes`, as many at a time as lie together on the disk."""
        return runs_of(self.planes, self.array)


def read_planes(path: Path, first: int, stop: int) -> Planes:
    """Read the probabilities of some planes of a case; for many parts of it, open it once.

    Args:
        path: CASE_probabilities.b2nd, which `open_probabilities` would open.
        first: The first plane of the body's box, plan order, from 0.
        stop: Behind the last one.

    Returns:
        (z, y, x, head), float32.

    Raises:
        MissingError: A file is missing.
        DataError: A file is damaged, or holds something else.
    """
    return open_probabilities(path).planes(first, stop)


def open_probabilities(path: Path) -> OpenProbabilities:
    """Open the chunks of a case, after checking the hashes of record and array.

    Args:
        path: CASE_probabilities.b2nd; its record lies beside it.

    Raises:
        MissingError: A file is missing.
        DataError: A file is damaged, or holds something else.
    """
    stored, array = open_proven(StoredProbabilities, path, KIND, MADE_BY)
    return OpenProbabilities(stored=stored, array=array)


@contextmanager
def taking_chunks(target: Target) -> Iterator[TakePlanes]:
    """Take planes into chunks as they come; their record, written last, makes them count."""
    path, record_path = target.files
    heads = target.labels.heads
    depth, rows, columns = target.placement.shape_cropped

    def stored(digest: str) -> StoredProbabilities:
        return StoredProbabilities(
            axes=AXES,
            heads=target.labels.head_names,
            steps=STEPS,
            labels=target.labels,
            placement=target.placement,
            geometry=target.geometry,
            array_sha256=digest,
        )

    shape = (depth, heads, rows, columns)
    with growing((path, record_path), shape, _packing(shape), stored) as array:

        def add(planes: Planes) -> None:
            for plane in planes:
                values = heads_first(plane.reshape(-1, heads), np.dtype(KIND))
                array.add(values.reshape(heads, rows, columns))

        yield add


def _packing(shape: ArrayShape) -> Packing:
    depth, heads, rows, columns = shape
    plane = 2 * rows * columns
    together = min(depth, max(1, CHUNK_BYTES // (heads * plane)))
    part = -(-rows // -(-plane // BLOCK_BYTES))  # rows, in as few equal parts as fit
    return Packing(
        kind=KIND,
        chunks=(together, min(heads, max(1, CHUNK_BYTES // plane)), rows, columns),
        blocks=(1, 1, part, columns),
        level=1,
        shuffled=True,
    )
