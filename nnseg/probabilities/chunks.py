"""Probabilities to read again: the body's box in chunks, and a record that proves them."""

import contextlib
import errno
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnseg import record
from nnseg.axes import Planes
from nnseg.commit import remove, sha256, unfinished_path, whole_file
from nnseg.errors import DataError, MissingError
from nnseg.labels import Labels
from nnseg.preprocess import Placement
from nnseg.probabilities.heads import STEPS, head_names, heads_first
from nnseg.probabilities.target import TakePlanes, Target, naming
from nnseg.store import open_frame
from nnseg.volume import Geometry

FORMAT = 1  # raised when chunks of an older version can no longer be read
AXES = ("z", "head", "y", "x")  # of chunks: a slab is read without the rest, a head packs well
CHUNK_BYTES = 2**22
BLOCK_BYTES = 2**17  # packed at once
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
        wanted = {"axes": AXES, "heads": head_names(self.labels), "steps": STEPS, "format": FORMAT}
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise DataError(
                    f"{name} is {getattr(self, name)!r}, and this version reads {value!r}; run "
                    f"`{MADE_BY}` again"
                )

    @property
    def shape(self) -> tuple[int, int, int, int]:
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
        for number, values in enumerate(self.array[first:stop]):
            np.multiply(values.transpose(1, 2, 0), np.float32(1 / STEPS), out=result[number])
        return result


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
    stored = record.load_sealed(
        StoredProbabilities, path.with_suffix(".json"), MADE_BY, f"run `{MADE_BY}` again"
    )
    try:
        digest = sha256(path)
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist; `{MADE_BY}` writes it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore it") from None
    if digest != stored.array_sha256:
        raise _damaged(path)
    array = open_frame(path, ("uint16",))
    if tuple(array.shape) != stored.shape:
        raise DataError(
            f"{path}: has the shape {tuple(array.shape)}, its record says {stored.shape}; run "
            f"`{MADE_BY}` again"
        )
    return OpenProbabilities(stored=stored, array=array)


@contextmanager
def taking_chunks(target: Target) -> Iterator[TakePlanes]:
    """Take planes into chunks as they come; their record, written last, makes them count."""
    path, record_path = target.files
    unfinished = unfinished_path(path)
    z, y, x = target.placement.shape_cropped
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            chunks = _Chunks(unfinished, (z, target.labels.heads, y, x))
        yield chunks.add
        with naming(path):
            chunks.finish()
            digest = sha256(unfinished)
        stored = StoredProbabilities(
            axes=AXES,
            heads=head_names(target.labels),
            steps=STEPS,
            labels=target.labels,
            placement=target.placement,
            geometry=target.geometry,
            array_sha256=digest,
        )
        with whole_file(record_path) as temporary_record:  # there is room for it, then
            temporary_record.write_bytes(record.dumps(record.sealed(stored)).encode())
            remove(record_path)  # from here on the old ones are gone
            with whole_file(path) as temporary:
                unfinished.replace(temporary)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


class _Chunks:
    """A Blosc2 array on disk that grows by planes."""

    def __init__(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        import blosc2

        depth, heads, rows, columns = shape
        plane = 2 * rows * columns
        together = min(depth, max(1, CHUNK_BYTES // (heads * plane)))
        part = -(-rows // -(-plane // BLOCK_BYTES))  # rows, in as few equal parts as fit
        self._path = path
        self._buffer = np.empty((together, *shape[1:]), dtype=np.uint16)
        self._filled = self._done = 0  # planes in the buffer, and before it
        self._checksums: list[int] = []
        with self._telling():
            self._array: Any = blosc2.empty(
                shape,
                dtype=np.uint16,
                chunks=(together, min(heads, max(1, CHUNK_BYTES // plane)), rows, columns),
                blocks=(1, 1, part, columns),
                cparams={
                    "codec": blosc2.Codec.ZSTD,
                    "clevel": 1,
                    "filters": [blosc2.Filter.SHUFFLE],
                    "nthreads": 1,
                },
                dparams={"nthreads": 1},
                urlpath=str(path),
                mode="w",
                contiguous=True,
            )

    def add(self, planes: Planes) -> None:
        """Take the next planes (z, y, x, head) of the box, plan order."""
        for plane in planes:
            values = heads_first(plane.reshape(-1, plane.shape[-1]), self._buffer.dtype)
            self._buffer[self._filled] = values.reshape(self._buffer.shape[1:])
            self._filled += 1
            if self._filled == len(self._buffer):
                self._flush()

    def finish(self) -> None:
        """Write the last planes, and make sure that the disk has got them all."""
        self._flush()
        self._array = None
        with self._telling():
            array = open_frame(self._path, ("uint16",))
            step = len(self._buffer)
            for number, checksum in enumerate(self._checksums):
                if zlib.crc32(array[number * step : (number + 1) * step]) != checksum:
                    raise RuntimeError("what was written is not what is there")

    def _flush(self) -> None:
        if not self._filled:
            return
        planes = self._buffer[: self._filled]
        self._checksums.append(zlib.crc32(planes.data))
        with self._telling():
            self._array[self._done : self._done + self._filled] = planes
        self._done += self._filled
        self._filled = 0

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Turn what Blosc2 says of a failed write, which is not why, into an error of the disk."""
        try:
            yield
        except (RuntimeError, DataError, ValueError) as error:
            free = shutil.disk_usage(self._path.parent).free
            reason = errno.ENOSPC if free < self._buffer.nbytes else errno.EIO
            raise OSError(reason, os.strerror(reason)) from error


def _damaged(path: Path) -> DataError:
    return DataError(f"{path}: is damaged (its SHA-256 changed); run `{MADE_BY}` again")
