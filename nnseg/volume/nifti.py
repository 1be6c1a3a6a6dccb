"""NIfTI-1 and NIfTI-2, as one file or as a pair of header and voxels, plain or compressed.

The whole stream is decompressed, its CRC and length are checked, and only then does nibabel parse
it, because no library does all of that by itself. A header in which nibabel would find nothing to
correct, as most are, is taken as it is, and the voxels behind it stay where they were unpacked:
that is several times as quick, and a large image is never there twice.
"""

import io
import logging
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Spacing
from nnseg.commit import write_whole
from nnseg.errors import DataError, MissingError, NnsegError
from nnseg.volume.damage import MAX_BYTES, check_announced, cut_off, damaged, unreadable
from nnseg.volume.geometry import (
    Dimensions,
    Geometry,
    NiftiGrid,
    check_directions,
    checked_spacing,
    matrix,
    to_shape,
)

logger = logging.getLogger(__name__)

Data = TypeVar("Data", bytes, bytearray)

NIFTI = (".nii.gz", ".nii")
NIFTI_PAIRS = (".hdr.gz", ".hdr")  # the voxels lie beside it, under the same name

MAX_HEADER = 2**24  # bytes of a .hdr, its extensions included

_NIFTI_1, _NIFTI_2 = 348, 540  # sizes that headers state, in bytes
_COMMENT = 6  # the code of a header's extension that is plain text
_BITS = {2: 8, 4: 16, 8: 32, 16: 32, 64: 64, 256: 8, 512: 16, 768: 32}  # of plain datatypes
_FORM_CODES = range(6)
_ATLAS_CODES = (3, 4, 5)  # of an sform: Talairach, MNI 152, another template
_READ_AT_ONCE = 2**24
_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units, lowest three bits


def read(path: Path) -> tuple[NDArray[Any], Geometry]:
    """Read a NIfTI file, or the pair that a .hdr belongs to: values (z, y, x) and geometry."""
    if path.name.lower().endswith(NIFTI_PAIRS):
        header, affine, array, raw = _parsed(path, *_pair(path))
    else:
        header, affine, array, raw = _single(path)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3):
        raise DataError(
            f"{path}: has {array.ndim} dimensions {array.shape} (x, y, z, ...); split it into one "
            "3D file for each channel"
        )
    return _z_first(array), _geometry(path, header, affine, raw, array.shape)


def write(path: Path, array: NDArray[Any], geometry: Geometry, comment: str = "") -> None:
    """Write (z, y, x) values on a grid; of a pair the header comes last and makes it count.

    A comment becomes an extension of the header.
    """
    pair = path.name.lower().endswith(NIFTI_PAIRS)
    header, voxels = _header_and_voxels(array, geometry, pair=pair, comment=comment)
    if not pair:
        _write_packed(path, header + voxels)
        return
    files = _voxels_files(path)
    for old in (path, *files):  # an old header must not be taken for that of the new voxels
        old.unlink(missing_ok=True)
    _write_packed(files[_is_packed(path)], voxels)
    _write_packed(path, header)


def from_nibabel(image: Any, where: Path) -> tuple[NDArray[Any], Geometry]:
    """Give the values (z, y, x) of a nibabel image, or (t, z, y, x), and where they lie.

    Args:
        image: Any that has an affine, such as a NIfTI or MGH image.
        where: For messages.
    """
    import nibabel

    kind = nibabel.Nifti2Image if isinstance(image, nibabel.Nifti2Image) else nibabel.Nifti1Image
    header = kind.from_image(image).header
    array = np.asanyarray(image.dataobj)
    if array.ndim not in (2, 3, 4):
        raise DataError(
            f"{where}: has the shape {array.shape} (x, y, z, ...); give a 3D image, or a list of "
            "one for each channel"
        )
    geometry = _geometry(where, header, header.get_best_affine(), header, array.shape[:3])
    if array.ndim == 4:
        return np.moveaxis(array, -1, 0).transpose(0, 3, 2, 1), geometry
    return _z_first(array), geometry


def to_nibabel(array: NDArray[Any], geometry: Geometry) -> Any:
    """Give (z, y, x) values as a nibabel image on a grid, as a file of them would be read."""
    import nibabel

    header, voxels = _header_and_voxels(array, geometry, pair=False)
    large = len(header) > _NIFTI_2
    kind = nibabel.Nifti2Image if large else nibabel.Nifti1Image
    return kind.from_bytes(header + voxels)


def voxels_files(path: Path) -> tuple[Path, ...]:
    """Find the files with the voxels of a .hdr; there should be one, .img or .img.gz."""
    return tuple(file for file in _voxels_files(path) if file.is_file())


def _voxels_files(path: Path) -> tuple[Path, Path]:
    stem = path.name.removesuffix(".gz").removesuffix(".hdr")
    return path.with_name(f"{stem}.img"), path.with_name(f"{stem}.img.gz")


def _write_packed(path: Path, data: bytes) -> None:
    """Write bytes, compressed if the file's name says so, the same each time."""
    from isal import igzip

    write_whole(path, igzip.compress(data, 1, mtime=0) if _is_packed(path) else data)


def _is_packed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _single(path: Path) -> tuple[Any, Any, NDArray[Any], Any]:
    """Parse a file that holds header and voxels; see `_parsed` for what it gives."""
    import nibabel

    def read_all(stream: Any) -> bytearray:
        head = stream.read(_NIFTI_2)
        return _announced_bytes(path, stream, _raw_header(path, head), head)

    data = _unpacked(path, read_all)
    raw = _raw_header(path, data)
    if _is_flawless(raw):
        shape = raw.get_data_shape()
        offset, count = int(raw["vox_offset"]), math.prod(shape)
        voxels = np.frombuffer(data, raw.get_data_dtype(), count, offset)
        return raw, _affine(path, raw), voxels.reshape(shape, order="F"), raw
    kind = nibabel.Nifti1Image if int(raw["sizeof_hdr"]) == _NIFTI_1 else nibabel.Nifti2Image
    try:
        nifti = kind.from_bytes(bytes(data))
    except Exception as error:  # nibabel's own errors share no base class
        raise _no_nifti(path, error) from None
    return _parsed(path, nifti, raw)


def _affine(path: Path, raw: Any) -> Any:
    """Give the matrix that a header prefers: sform, qform, or only its spacing."""
    try:
        return raw.get_best_affine()
    except ValueError:  # what nibabel makes of a quaternion that is none
        parts = ", ".join(f"{float(raw[f'quatern_{axis}']):g}" for axis in "bcd")
        raise DataError(
            f"{path}: the header's quatern is ({parts}), longer than 1, and so no rotation; repair "
            "the header"
        ) from None


def _is_flawless(raw: Any) -> bool:
    """Say whether nibabel finds nothing to correct in a header, and no scale for the voxels."""
    magic = b"n+1" if int(raw["sizeof_hdr"]) == _NIFTI_1 else b"n+2"
    offset, slope, inter = (float(raw[name]) for name in ("vox_offset", "scl_slope", "scl_inter"))
    dimensions, *sizes = (int(n) for n in raw["dim"])
    handedness, *spacing = (float(value) for value in raw["pixdim"][:4])
    return (
        bytes(raw["magic"].tobytes())[:3] == magic
        and _BITS.get(int(raw["datatype"])) == int(raw["bitpix"])
        and 1 <= dimensions <= 7
        and min(sizes[:dimensions]) > 0
        and handedness in (-1.0, 1.0)
        and min(spacing) > 0
        and offset % 16 == 0
        and int(raw["qform_code"]) in _FORM_CODES
        and int(raw["sform_code"]) in _FORM_CODES
        and (slope == 0 or math.isnan(slope) or (slope == 1 and inter == 0))
    )


def _parsed(path: Path, nifti: Any, raw: Any) -> tuple[Any, Any, NDArray[Any], Any]:
    """Give nibabel's header, affine and voxels of an image, and the header as it is in the file."""
    try:
        return nifti.header, nifti.affine, np.asanyarray(nifti.dataobj), raw
    except Exception as error:  # nibabel's own errors share no base class
        raise _no_nifti(path, error) from None


def _pair(path: Path) -> tuple[Any, Any]:
    """Parse a .hdr and its voxels, likewise."""
    import nibabel

    header = _unpacked(path, lambda stream: cast(bytes, stream.read(MAX_HEADER)))
    raw = _raw_header(path, header)
    if bytes(raw["magic"].tobytes())[:2] != b"ni":
        raise DataError(
            f"{path}: is an Analyze header, which does not say where left and right are; convert "
            "the file to NIfTI by the program that made it"
        )
    found = voxels_files(path)
    if not found:
        wanted = _voxels_files(path)[0].name
        raise MissingError(f"{path}: {wanted}, its voxels, does not exist; put it beside it")
    if len(found) > 1:
        names = " and ".join(file.name for file in found)
        raise DataError(f"{path}: {names} both claim to be its voxels; remove one")
    file = found[0]
    voxels = _unpacked(file, lambda stream: _announced_bytes(file, stream, raw, b""))
    kind: Any = nibabel.Nifti1Pair if int(raw["sizeof_hdr"]) == _NIFTI_1 else nibabel.Nifti2Pair
    parts = {"header": header, "image": bytes(voxels)}
    holders = {k: nibabel.FileHolder(fileobj=io.BytesIO(v)) for k, v in parts.items()}
    try:
        return kind.from_file_map(holders), raw
    except Exception as error:  # nibabel's own errors share no base class
        raise _no_nifti(path, error) from None


def _no_nifti(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: is not a NIfTI file ({error}); restore it")


def _unpacked(path: Path, read: Callable[[Any], Data]) -> Data:
    """Give what `read` takes from the bytes of a file, unpacked if they are compressed."""
    from isal import igzip

    try:
        with igzip.open(path, "rb") if _is_packed(path) else open(path, "rb") as stream:
            return read(stream)
    except (NnsegError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise unreadable(path, error) from None
        raise damaged(path, error) from None
    except Exception as error:  # damage breaks isal off with errors of its own
        raise damaged(path, error) from None


def _raw_header(path: Path, head: bytes | bytearray) -> Any:
    """Give the header that `head` begins with, nothing in it corrected."""
    import nibabel

    for order, name in (("<", "little"), (">", "big")):
        size = int.from_bytes(head[:4], cast(Literal["little", "big"], name))
        if size in (_NIFTI_1, _NIFTI_2) and len(head) >= size:
            kind: Any = nibabel.Nifti1Header if size == _NIFTI_1 else nibabel.Nifti2Header
            return kind(bytes(head[:size]), endianness=order, check=False)
    raise DataError(f"{path}: does not begin with a NIfTI header; restore it")


def _first_voxel(raw: Any) -> int:
    """Give the byte of a single file at which its voxels can begin: header, then 4 of flags."""
    return int(raw["sizeof_hdr"]) + 4


def _announced_bytes(path: Path, stream: Any, raw: Any, head: bytes) -> bytearray:
    """Give `head` and what follows it in `stream`, as far as the header announces it.

    A `head` is there in a file that holds header and voxels.
    """
    count = math.prod(max(int(n), 1) for n in raw["dim"][1 : int(raw["dim"][0]) + 1])
    offset = float(raw["vox_offset"])
    if not math.isfinite(offset) or not 0 <= offset < MAX_BYTES:
        raise DataError(f"{path}: the header's vox_offset is {offset}; restore the file")
    first = _first_voxel(raw)
    if head and offset < first:
        raise DataError(
            f"{path}: the header's vox_offset is {offset:g}, but the header alone takes the first "
            f"{first} bytes; restore the file"
        )
    announced = int(offset) + count * int(raw["bitpix"]) // 8
    on_disk = path.stat().st_size
    packed = _is_packed(path)
    check_announced(path, announced, on_disk, packed=packed)
    if not packed and announced > on_disk:
        raise cut_off(path, on_disk, announced)
    data = bytearray(max(announced, len(head)))
    data[: len(head)] = head
    filled = len(head)
    while filled < announced:
        count = stream.readinto(memoryview(data)[filled : filled + _READ_AT_ONCE])
        if not count:
            raise cut_off(path, filled, announced)
        filled += count
    while stream.read(2**20):  # what follows is not ours, but its end carries the CRC
        pass
    return data


def _geometry(path: Path, header: Any, affine: Any, raw: Any, shape: tuple[int, ...]) -> Geometry:
    pixdim = tuple(float(v) for v in raw["pixdim"][:4])  # nibabel would turn a zero into 1 mm
    srow = np.array([header["srow_x"], header["srow_y"], header["srow_z"]], dtype=float)
    quaternion = tuple(float(header[f"quatern_{axis}"]) for axis in "bcd")
    offset = tuple(float(header[f"qoffset_{axis}"]) for axis in "xyz")
    fields = {"pixdim": pixdim, "srow": srow, "quatern": quaternion, "qoffset": offset}
    for name, value in fields.items():
        if not np.all(np.isfinite(np.asarray(value))):
            raise DataError(f"{path}: the header's {name} is not finite; repair the header")
    grid = NiftiGrid(
        pixdim=cast(tuple[float, float, float, float], pixdim),
        units=int(header["xyzt_units"]),
        qform_code=int(header["qform_code"]),
        sform_code=int(header["sform_code"]),
        quaternion=cast(Spacing, quaternion),
        offset=cast(Spacing, offset),
        srow=matrix(srow),
    )
    scale = _UNITS_MM.get(grid.units & 7)
    if scale is None:
        raise DataError(f"{path}: the header's xyzt_units is {grid.units}; not a unit of length")
    if scale != 1.0:
        logger.warning("%s: the header is not in mm; lengths are scaled by %g", path, scale)
    x, y, z = (abs(value) * scale for value in pixdim[1:])
    dimensions: Dimensions = 2 if len(shape) == 2 else 3
    affine = np.array(affine, dtype=float)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-30:
        raise DataError(f"{path}: the header's affine cannot be inverted; repair the header")
    affine[:3] *= scale
    spacing = checked_spacing(path, x, y, z, dimensions)
    if grid.sform_code > 0:
        # an sform may also lead to an atlas, by a scale; the spacing then goes with the qform
        to_atlas = grid.sform_code in _ATLAS_CODES and grid.qform_code > 0
        check_directions(path, "srow", affine, None if to_atlas else spacing, to_shape(shape))
    return Geometry(
        shape=to_shape(shape),
        spacing=spacing,
        affine=matrix(affine),
        dimensions=dimensions,
        nifti=grid,
    )


def _header_and_voxels(
    array: NDArray[Any], geometry: Geometry, *, pair: bool, comment: str = ""
) -> tuple[bytes, bytes]:
    import nibabel

    flags = _extensions(comment)
    large = max(array.shape) > 32767  # more than NIfTI-1 can count
    kinds: Any = (nibabel.Nifti1Image, nibabel.Nifti2Image)
    data = array.transpose(2, 1, 0)
    data = data[:, :, 0] if geometry.dimensions == 2 else data
    header = kinds[large].header_class()
    header.set_data_dtype(array.dtype)
    header = kinds[large](data, np.array(geometry.affine), header).header
    grid = geometry.nifti
    if grid is None:
        header.set_xyzt_units("mm")
        header.set_qform(np.array(geometry.affine), code=1)
        header.set_sform(np.array(geometry.affine), code=1)
    else:
        header["pixdim"][:4] = grid.pixdim
        header["xyzt_units"] = grid.units
        header["qform_code"], header["sform_code"] = grid.qform_code, grid.sform_code
        for axis, q, o in zip("bcd", grid.quaternion, grid.offset, strict=True):
            header[f"quatern_{axis}"] = q
            header[f"qoffset_{chr(ord(axis) + 22)}"] = o
        header["srow_x"], header["srow_y"], header["srow_z"] = grid.srow
    # nibabel would write its own idea of the affine over the fields just set
    header["vox_offset"] = 0 if pair else (_NIFTI_2 if large else _NIFTI_1) + len(flags)
    header["magic"] = (b"ni" if pair else b"n+") + (b"2\0\r\n\x1a\n" if large else b"1")
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    return header.binaryblock + flags, np.asfortranarray(data).tobytes(order="F")


def _extensions(comment: str) -> bytes:
    """Give what follows a header: four bytes that say whether extensions do, and those.

    Source: nifti1.h, "HEADER EXTENSIONS": size and code, 32 bits each, and the data, filled up so
    that the size is a multiple of 16.
    """
    if not comment:
        return bytes(4)
    text = comment.encode()
    size = -(-(8 + len(text)) // 16) * 16
    return b"\1\0\0\0" + struct.pack("<ii", size, _COMMENT) + text.ljust(size - 8, b"\0")


def _z_first(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim == 2:
        array = array[:, :, None]
    native = array.dtype.newbyteorder("=")
    return np.ascontiguousarray(array.transpose(2, 1, 0), dtype=native)
