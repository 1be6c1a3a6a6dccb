"""Probabilities as nnU-Net has them: one .npz file with the whole image."""

import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Planes
from nnseg.errors import DataError, MissingError
from nnseg.labels import Labels
from nnseg.preprocess import Placement
from nnseg.probabilities.spool import Spool, image_parts
from nnseg.probabilities.target import Target
from nnseg.volume import Geometry

KEY = "probabilities"


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
        """Give all of them."""
        yield self.planes(0, self.array.shape[1])


def open_npz(path: Path, labels: Labels, geometry: Geometry) -> OpenNpz:
    """Read the probabilities of a case that nnU-Net or `pack_npz` wrote.

    Raises:
        MissingError: There is no such file.
        DataError: It is damaged, or holds something else than probabilities on this grid.
    """
    wanted = (labels.heads, *geometry.shape)
    try:
        with np.load(path, allow_pickle=False) as content:
            array = content[KEY]
    except FileNotFoundError:
        raise MissingError(
            f"{path} does not exist; `nnseg predict --save_probabilities npz` writes it"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        raise DataError(f"{path}: holds no array `{KEY}`, or is damaged; predict again") from None
    if array.dtype.kind != "f" or array.shape != wanted or not np.isfinite(array).all():
        raise DataError(
            f"{path}: holds {array.dtype} of the shape {array.shape}; finite numbers of {wanted} "
            "(head, z, y, x) were wanted: predict again"
        )
    return OpenNpz(
        stored=OfNpz(labels=labels, geometry=geometry), array=array.astype(np.float32, copy=False)
    )


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
