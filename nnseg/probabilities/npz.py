"""Probabilities as nnU-Net has them: one .npz file with the whole image."""

import io
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Planes, Shape
from nnseg.errors import DataError, MissingError
from nnseg.labels import Labels
from nnseg.preprocess import Placement
from nnseg.probabilities.spool import Spool, image_parts
from nnseg.probabilities.target import Target
from nnseg.volume import Geometry

KEY = "probabilities"
PIECE_VALUES = 2**18  # unpacked at once
RUN_BYTES = 2**26  # of the slices that are handed on at once
_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    RuntimeError,  # it is encrypted, or packed by a method that nobody has
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfNpz:
    """What an .npz file does not say of itself: that of its case."""

    labels: Labels
    geometry: Geometry

    @property
    def placement(self) -> Placement:
        """All of the image, in its own order."""
        z, y, x = shape = self.geometry.shape
        return Placement(
            order=(0, 1, 2),
            shape=shape,
            spacing=self.geometry.spacing,
            box=((0, z), (0, y), (0, x)),
            shape_resampled=shape,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenNpz:
    """The probabilities of a case, all in memory."""

    stored: OfNpz
    array: NDArray[np.float32]  # (head, z, y, x), image order

    def planes(self, first: int, stop: int) -> Planes:
        """Give the probabilities (z, y, x, head) of some slices of the image."""
        return np.ascontiguousarray(np.moveaxis(self.array[:, first:stop], 0, -1))

    def runs(self) -> Iterator[Planes]:
        """Give all of them, some slices at a time."""
        heads, depth, *plane = self.array.shape
        together = max(1, RUN_BYTES // max(1, 4 * heads * math.prod(plane)))
        for first in range(0, depth, together):
            yield self.planes(first, min(first + together, depth))


def open_npz(path: Path, labels: Labels, geometry: Geometry) -> OpenNpz:
    """Read the probabilities of a case that nnU-Net or `pack_npz` wrote.

    What the file says it holds is compared first: no more is unpacked than the image has room for.

    Raises:
        MissingError: There is no such file.
        DataError: It is damaged, or holds something else than probabilities on this grid.
        MemoryError: There is no room for the probabilities of this grid.
    """
    wanted = (labels.heads, *geometry.shape)
    with _opened(path) as member:
        kind, is_fortran = _read_header(path, member, labels.heads, geometry.shape)
        values = np.empty(math.prod(wanted), np.float32)
        for first in range(0, len(values), PIECE_VALUES):
            piece = values[first : first + PIECE_VALUES]
            data = _read_whole(member, len(piece) * kind.itemsize)
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
                piece[:] = np.frombuffer(data, kind)
            if not np.isfinite(piece).all():
                raise DataError(f"{path}: holds values that are no finite numbers; predict again")
        if member.read(1):  # the checksum is compared with it, too
            raise ValueError("there is more than the header says")
    array = values.reshape(wanted, order="F" if is_fortran else "C")
    return OpenNpz(stored=OfNpz(labels=labels, geometry=geometry), array=array)


def packed_bytes(path: Path) -> int:
    """Give the bytes that the array of an .npz file takes, as the file says; 0 where it does not.

    Nothing is unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.getinfo(f"{KEY}.npy").file_size
    except _DAMAGE:
        return 0


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open the array of a file to read it; whatever is wrong with the file is a DataError."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{KEY}.npy") as member:
            yield member
    except FileNotFoundError:
        raise MissingError(
            f"{path} does not exist; `nnseg predict --save_probabilities npz` writes it"
        ) from None
    except _DAMAGE as error:
        raise DataError(
            f"{path}: holds no array `{KEY}`, or is damaged ({error}); predict again"
        ) from None


def _read_header(
    path: Path, member: IO[bytes], heads: int, shape: Shape
) -> tuple["np.dtype[Any]", bool]:
    """Read of what kind the numbers are, and whether the first axis runs fastest.

    Raises:
        DataError: They are no probabilities of so many heads on this grid.
    """
    version = np.lib.format.read_magic(member)
    if version != (1, 0):  # others have headers of any length, which no array of numbers needs
        raise ValueError(f"its .npy format is {version}, not (1, 0)")
    try:
        found, is_fortran, kind = np.lib.format.read_array_header_1_0(member)
    except Exception:  # it is a text of Python, and each fault of such a text has its own error
        raise ValueError("its header cannot be read") from None
    if kind.kind != "f" or found != (heads, *shape):
        raise DataError(
            f"{path}: holds {kind} of the shape {found}; finite numbers of {(heads, *shape)} "
            "(head, z, y, x) were wanted: predict again"
        )
    return kind, is_fortran


def _read_whole(member: IO[bytes], size: int) -> bytes:
    data = member.read(size)
    while len(data) < size:
        more = member.read(size - len(data))
        if not more:
            raise EOFError("it ends early")
        data += more
    return data


def pack_npz(path: Path, target: Target, spool: Spool) -> None:
    """Write what `np.load(path)["probabilities"]` gives as (head, z, y, x), float32, image order.

    zipfile packs by zlib only, which takes many times as long as ISA-L does for the same size. So
    it gets packed bytes, and its entry is then told what they are.
    """
    from isal import isal_zlib

    entry = zipfile.ZipInfo("probabilities.npy")
    header = {
        "descr": np.lib.format.dtype_to_descr(spool.kind),
        "fortran_order": False,
        "shape": (target.labels.heads, *target.placement.shape),
    }
    packer = isal_zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    size, checksum = 0, 0
    with open(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open(entry, "w", force_zip64=True) as member:
            for data in _npy(header, image_parts(target, spool)):
                size += len(data)
                checksum = isal_zlib.crc32(data, checksum)
                member.write(packer.compress(data))
            member.write(packer.flush())
        entry.compress_type, entry.file_size, entry.CRC = zipfile.ZIP_DEFLATED, size, checksum
        end = file.tell()
        file.seek(entry.header_offset)
        file.write(entry.FileHeader(zip64=True))
        file.seek(end)


def _npy(header: dict[str, Any], parts: Iterable[NDArray[Any]]) -> Iterator[memoryview]:
    """Give the bytes of a .npy file, some at a time."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, header)
    yield head.getbuffer()
    for part in parts:
        yield part.data.cast("B")
