"""Voxels read a second time by the standard library and numpy alone, to judge what a reader gives.

Headers are taken as the formats define them. Nothing here refuses damage with care: it is asked
only about files that a reader has taken for sound, and an error says that it should not have.
"""

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Plain: TypeAlias = Callable[[Path], Array]

NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4",
               1024: "i8", 1280: "u8"}  # fmt: skip
META_TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2"},
    **{"MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4"},
    **{"MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
NRRD_TYPES = {
    **{"signed char": "i1", "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2"},
    **{"int": "i4", "uint": "u4", "longlong": "i8", "ulonglong": "u8", "float": "f4"},
    **{"double": "f8"},
    **{f"{sign}int{8 * size}{end}": f"{sign or 'i'}{size}"
       for sign in ("", "u") for size in (1, 2, 4, 8) for end in ("", "_t")},
    **{f"{sign}{name}{end}": f"{kind}{size}"
       for sign, kind in (("", "i"), ("signed ", "i"), ("unsigned ", "u"))
       for name, size, ends in (("char", 1, [""]), ("short", 2, ["", " int"]), ("int", 4, [""]),
                                ("long long", 8, ["", " int"]))
       for end in ends},
}  # fmt: skip


def plain_nifti(path: Path) -> Array:
    """Give the voxels (z, y, x) of a NIfTI file, or of the pair that a .hdr belongs to."""
    data = unpacked(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    order = "<" if struct.unpack_from("<i", data)[0] in (348, 540) else ">"
    if struct.unpack_from(f"{order}i", data)[0] == 348:
        dim, (kind,) = struct.unpack_from(f"{order}8h", data, 40), _at(data, f"{order}h", 70)
        offset, slope, shift = _at(data, f"{order}3f", 108)
    else:
        (kind,), dim = _at(data, f"{order}h", 12), struct.unpack_from(f"{order}8q", data, 16)
        (offset,), (slope, shift) = _at(data, f"{order}q", 168), _at(data, f"{order}2d", 176)
    if path.name.endswith(".hdr"):
        data = path.with_suffix(".img").read_bytes()
    voxels = _grid(data[int(offset) :], order + NIFTI_TYPES[kind], dim[1 : dim[0] + 1])
    if not np.isfinite(slope) or slope == 0 or (slope, shift) == (1, 0):
        return voxels
    return voxels * np.float64(slope) + np.float64(shift)


def plain_meta(path: Path) -> Array:
    """Give the voxels (z, y, x) of a .mha file."""
    last = rb"ElementDataFile *= *LOCAL *\r?\n"
    header, data = re.split(last, path.read_bytes(), maxsplit=1)
    lines = re.findall(r"^[ \t]*(\w+)[ \t]*[=:][ \t]*(.*?)[ \t]*$", _text(header), re.M)
    said = dict(lines)  # of a line that comes twice the last counts
    sizes = [int(float(size)) for size in said["DimSize"].split()][: int(said["NDims"])]
    if _is_true(said.get("CompressedData", "")):
        data = unpacked(data[: int(said["CompressedDataSize"])])
    kind = np.dtype(META_TYPES[said["ElementType"]])
    swapped = said.get("BinaryDataByteOrderMSB", said.get("ElementByteOrderMSB", ""))
    if said.get("HeaderSize") == "-1":
        data = data[len(data) - kind.itemsize * int(np.prod(sizes)) :]
    return _grid(data, kind.newbyteorder(">" if _is_true(swapped) else "<").str, sizes)


def plain_nrrd(path: Path) -> Array:
    """Give the voxels (z, y, x) of a .nrrd file."""
    header, data = re.split(rb"\r?\n\r?\n", path.read_bytes(), maxsplit=1)
    lines = re.findall(r"^([^#:\n]+): (.*?)[ \t]*$", _text(header), re.M)
    said = {name.strip().lower(): text.strip().lower() for name, text in lines}
    for _ in range(int(said.get("line skip", said.get("lineskip", "0")))):
        data = data.partition(b"\n")[2]
    sizes = [int(n) for n in re.findall(r"(?:^|\s)(\d+)", said["sizes"])]
    sizes = sizes[: int(said["dimension"][0])]
    kind = ("<" if said.get("endian", "little") == "little" else ">") + NRRD_TYPES[said["type"]]
    encoding = said["encoding"]
    if encoding in ("gz", "gzip"):
        data = unpacked(data)
    elif encoding == "hex":
        data = bytes.fromhex(_text(data))
    elif encoding in ("txt", "text", "ascii"):
        numbers = re.findall(r"[^\s,]+", _text(data))[: int(np.prod(sizes))]
        data = np.array([float(number) for number in numbers]).astype(kind).tobytes()
    skipped = int(said.get("byte skip", said.get("byteskip", "0")))
    if skipped == -1:
        skipped = len(data) - np.dtype(kind).itemsize * int(np.prod(sizes))
    return _grid(data[skipped:], kind, sizes)


def unpacked(data: bytes) -> bytes:
    """Unpack zlib or gzip, one member after the other; what follows them is nothing."""
    parts = []
    while not parts or data[:2] == b"\x1f\x8b":
        stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
        parts.append(stream.decompress(data))
        if not stream.eof:
            raise EOFError("the packed voxels end too early")
        data = stream.unused_data
    return b"".join(parts)


def difference(values: Array, plain: Array) -> str:
    """Say how voxels that a reader gave differ from those that are in the file; "" if not.

    What a reader scales may differ by the rounding of float32.
    """
    if values.shape != plain.shape:
        return f"gives voxels of the shape {values.shape} where the file has {plain.shape}"
    if plain.dtype.kind == "f":
        most = float(np.abs(plain, where=np.isfinite(plain), out=np.zeros(plain.shape)).max())
        wrong = ~np.isclose(values, plain, rtol=1e-6, atol=1e-6 * most, equal_nan=True)
    else:
        wrong = values != plain.astype(values.dtype)
    return f"gives {wrong.sum()} voxels that are not in the file" if wrong.any() else ""


def _at(data: bytes, kind: str, place: int) -> tuple[Any, ...]:
    return struct.unpack_from(kind, data, place)


def _is_true(text: str) -> bool:
    """Say what a field of MetaImage means; its first letter counts."""
    return text[:1] in ("T", "t", "1")


def _text(data: bytes) -> str:
    return data.decode("latin-1").replace("\r", "\n")


def _grid(data: bytes, kind: str, sizes: Any) -> Array:
    """Give the first of some bytes as voxels (z, y, x) of a grid of such sides, x first."""
    sides = list(sizes)
    while len(sides) > 3 and sides[-1] == 1:
        sides.pop()
    voxels = np.frombuffer(data, kind, int(np.prod(sides)))
    return voxels.reshape([1] * (3 - len(sides)) + sides[::-1])
