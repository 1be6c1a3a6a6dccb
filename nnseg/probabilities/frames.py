"""An array on disk that comes plane by plane, and counts once a sealed record beside proves it."""

import contextlib
import errno
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from nnseg import record
from nnseg.axes import Planes
from nnseg.commit import remove, sha256, unfinished_path, whole_file
from nnseg.errors import DataError, MissingError
from nnseg.frame import open_frame
from nnseg.probabilities.target import naming

AXES = ("z", "head", "y", "x")  # a slab is read without the rest, a head packs well
ArrayShape = tuple[int, int, int, int]  # of AXES


class Proven(Protocol):
    """A record that proves an array."""

    @property
    def array_sha256(self) -> str:
        """Of the file of the array."""

    @property
    def shape(self) -> ArrayShape:
        """The array's shape, of AXES."""


T = TypeVar("T", bound=Proven)


def check_readable(stored: Any, wanted: Mapping[str, Any], made_by: str) -> None:
    """Make sure that this version reads what a record says of its array.

    Raises:
        DataError: One of the fields is not as `wanted`.
    """
    for name, value in wanted.items():
        if getattr(stored, name) != value:
            raise DataError(
                f"{name} is {getattr(stored, name)!r}, and this version reads {value!r}; run "
                f"`{made_by}` again"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How an array is cut and compressed."""

    kind: str  # of its numbers
    chunks: ArrayShape  # read at once; the first is how many planes are packed together
    blocks: ArrayShape  # packed at once
    level: int  # of zstd, 1 to 9
    shuffled: bool  # whether the high bytes of numbers are packed apart from the low ones


@contextmanager
def growing(
    files: tuple[Path, Path],
    shape: ArrayShape,
    packing: Packing,
    record_of: Callable[[str], Proven],
) -> Iterator["GrowingArray"]:
    """Take an array plane by plane; it is there, with its record, when this is left in peace.

    Until then, and after an error or a kill, there is what was there before.

    Args:
        files: Of the array and of its record.
        shape: Of AXES.
        packing: How it lies on the disk.
        record_of: Makes the record, once the SHA-256 of the array's file is known.

    Raises:
        DiskFullError: The disk is full.
        MachineError: The folder cannot be written.
    """
    path, record_path = files
    unfinished = unfinished_path(path)
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            array = GrowingArray(unfinished, shape, packing)
        yield array
        with naming(path):
            array.finish()
            digest = sha256(unfinished)
        stored = record.sealed(record_of(digest))
        with whole_file(record_path) as temporary_record:  # there is room for it, then
            temporary_record.write_bytes(record.dumps(stored).encode())
            remove(record_path)  # from here on the old ones are gone
            with whole_file(path) as temporary:
                unfinished.replace(temporary)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def open_proven(kind: type[T], path: Path, number_kind: str, made_by: str) -> tuple[T, Any]:
    """Open an array that `growing` wrote, after checking the hashes of record and array.

    Args:
        kind: Of the record, which lies beside it under the same name.
        path: Of the array.
        number_kind: Of its numbers.
        made_by: The command that writes such files.

    Returns:
        The record, and the array: nothing of it is read yet.

    Raises:
        MissingError: A file is missing.
        DataError: A file is damaged, or holds something else.
    """
    again = f"run `{made_by}` again"
    stored = record.load_sealed(kind, path.with_suffix(".json"), made_by, again)
    try:
        digest = sha256(path)
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist; `{made_by}` writes it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore it") from None
    if digest != stored.array_sha256:
        raise DataError(f"{path}: is damaged (its SHA-256 changed); {again}")
    array = open_frame(path, (number_kind,))
    if tuple(array.shape) != stored.shape:
        raise DataError(
            f"{path}: has the shape {tuple(array.shape)}, its record says {stored.shape}; {again}"
        )
    return stored, array


def runs_of(read: Callable[[int, int], Planes], array: Any) -> Iterator[Planes]:
    """Go through all planes that `read` gives, as many at a time as lie together on the disk."""
    depth, together = array.shape[0], array.chunks[0]
    for start in range(0, depth, together):
        yield read(start, min(start + together, depth))


class GrowingArray:
    """A Blosc2 array on disk that grows by planes."""

    def __init__(self, path: Path, shape: ArrayShape, packing: Packing) -> None:
        import blosc2

        filters = [blosc2.Filter.SHUFFLE] if packing.shuffled else [blosc2.Filter.NOFILTER]
        self._path, self._kind = path, packing.kind
        self._buffer = np.empty((packing.chunks[0], *shape[1:]), dtype=packing.kind)
        self._filled = self._done = 0  # planes in the buffer, and before it
        self._checksums: list[int] = []
        with self._telling():
            self._array: Any = blosc2.empty(
                shape,
                dtype=np.dtype(packing.kind),
                chunks=packing.chunks,
                blocks=packing.blocks,
                cparams={
                    "codec": blosc2.Codec.ZSTD,
                    "clevel": packing.level,
                    "filters": filters,
                    "nthreads": 1,
                },
                dparams={"nthreads": 1},
                urlpath=str(path),
                mode="w",
                contiguous=True,
            )

    def add(self, plane: NDArray[Any]) -> None:
        """Take the next plane (head, y, x)."""
        self._buffer[self._filled] = plane
        self._filled += 1
        if self._filled == len(self._buffer):
            self._flush()

    def finish(self) -> None:
        """Write the last planes, and make sure that the disk has got them all."""
        self._flush()
        self._array = None
        with self._telling():
            array = open_frame(self._path, (self._kind,))
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
