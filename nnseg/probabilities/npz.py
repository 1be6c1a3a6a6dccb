"""Probabilities as nnU-Net writes them: one .npz file with the whole image."""

import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnseg.probabilities.spool import Spool, image_parts
from nnseg.probabilities.target import Target


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
