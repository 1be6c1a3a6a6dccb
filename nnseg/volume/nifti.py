"""NIfTI-1 and NIfTI-2, as one file or as a pair of header and voxels, plain or compressed.

The whole stream is decompressed, its CRC and length are checked, and only then does nibabel parse
it, because no library does all of that by itself. Where a header has nothing to correct, as most
have not, nibabel isn't needed, and the voxels behind it stay where they were unpacked: that is many
times as quick, and a large image is never there twice.
"""

import io
import logging
import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from nnseg.commit import write_whole
from nnseg.errors import DataError, MissingError, NnsegError
from nnseg.volume.damage import MAX_BYTES, check_announced, cut_off, damaged, unreadable
from nnseg.volume.geometry import (
    Dimensions,
    Geometry,
    NiftiGrid,
    check_directions,
    checked_spacing,
    to_shape,
    voxel_volume,
)
from nnseg.volume.nifti_header import (
    ATLAS_CODES,
    NIFTI_1,
    NIFTI_2,
    NiftiHeader,
    affine_of,
    parse_header,
)

logger = logging.getLogger(__name__)

Taken = TypeVar("Taken")

NIFTI = (".nii.gz", ".nii")
NIFTI_PAIRS = (".hdr.gz", ".hdr")  # the voxels lie beside it, under the same name

MAX_HEADER = 2**24  # bytes of a .hdr, its extensions included
MOST_AFTER = 2**20  # bytes after the voxels, unpacked; some programs fill up whole blocks

_COMMENT = 6  # the code of a header's extension that is plain text
_READ_AT_ONCE = 2**24
_AFTER_AT_ONCE = 2**16
_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units, lowest three bits
_MOST_UNITS = 255  # what NIfTI-1, as which a result is written, has room for
_FARTHEST = 1e30  # of a field of the grid; NIfTI-1 ends at 3e38, and nothing meant comes near

_parsed: ContextVar[Path | None] = ContextVar("_parsed", default=None)


def _is_not_of_ours(entry: logging.LogRecord) -> bool:
    """Let pass what nibabel logs of others' headers; of one that we have it parse, log it as ours.

    Its own handler would print a line that names no file.
    """
    path = _parsed.get()
    if path is not None:
        logger.info("%s: %s", path, entry.getMessage())
    return path is None


logging.getLogger("nibabel.global").addFilter(_is_not_of_ours)  # by name: nibabel is slow to import


@contextmanager
def _parsing(path: Path) -> Iterator[None]:
    """Have `_is_not_of_ours` know what nibabel parses."""
    before = _parsed.set(path)
    try:
        yield
    finally:
        _parsed.reset(before)


def read(path: Path) -> tuple[NDArray[Any], Geometry]:
    """Read a NIfTI file, or the pair that a .hdr belongs to: values (z, y, x) and geometry."""
    if path.name.lower().endswith(NIFTI_PAIRS):
        header, raw, array = _pair(path)
    else:
        header, raw, array = _single(path)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3):
        raise DataError(
            f"{path}: has {array.ndim} dimensions {array.shape} (x, y, z, ...); split it into one "
            "3D file for each channel"
        )
    return _z_first(array), _geometry(path, header, raw, array.shape)


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
    with _parsing(where):
        header = _header(where, kind.from_image(image).header.binaryblock)
        array = np.asanyarray(image.dataobj)
    if array.ndim not in (2, 3, 4):
        raise DataError(
            f"{where}: has the shape {array.shape} (x, y, z, ...); give a 3D image, or a list of "
            "one for each channel"
        )
    geometry = _geometry(where, header, header, array.shape[:3])
    if array.ndim == 4:
        return np.moveaxis(array, -1, 0).transpose(0, 3, 2, 1), geometry
    return _z_first(array), geometry


def to_nibabel(array: NDArray[Any], geometry: Geometry) -> Any:
    """Give (z, y, x) values as a nibabel image on a grid, as a file of them would be read."""
    import nibabel

    header, voxels = _header_and_voxels(array, geometry, pair=False)
    large = len(header) > NIFTI_2
    kind = nibabel.Nifti2Image if large else nibabel.Nifti1Image
    with _parsing(Path("the result")):
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


def _single(path: Path) -> tuple[NiftiHeader, NiftiHeader, NDArray[Any]]:
    """Read a file that holds header and voxels; see `_mended` for what it gives."""

    def read_all(stream: Any) -> tuple[NiftiHeader, bytearray]:
        head = stream.read(NIFTI_2)
        header = _header(path, head)
        return header, _announced_bytes(path, stream, header, head)

    header, data = _unpacked(path, read_all)
    if header.is_flawless:
        count = math.prod(header.shape)
        voxels = np.frombuffer(data, header.kind, count, int(header.vox_offset))
        return header, header, voxels.reshape(header.shape, order="F")
    import nibabel

    kind = nibabel.Nifti1Image if header.size == NIFTI_1 else nibabel.Nifti2Image
    return _mended(path, header, lambda: kind.from_bytes(bytes(data)))


def _pair(path: Path) -> tuple[NiftiHeader, NiftiHeader, NDArray[Any]]:
    """Read a .hdr and its voxels, likewise."""
    import nibabel

    head = _unpacked(path, lambda stream: cast(bytes, stream.read(MAX_HEADER)))
    header = _header(path, head)
    if header.magic[:2] != b"ni":
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
    voxels = _unpacked(file, lambda stream: _announced_bytes(file, stream, header, b""))
    kind: Any = nibabel.Nifti1Pair if header.size == NIFTI_1 else nibabel.Nifti2Pair
    parts = {"header": head, "image": bytes(voxels)}
    holders = {k: nibabel.FileHolder(fileobj=io.BytesIO(v)) for k, v in parts.items()}
    return _mended(path, header, lambda: kind.from_file_map(holders))


def _mended(
    path: Path, raw: NiftiHeader, parse: Callable[[], Any]
) -> tuple[NiftiHeader, NiftiHeader, NDArray[Any]]:
    """Give a header as nibabel corrects it and as it is, and the voxels, x first, as meant."""
    if math.isinf(raw.scl_slope):  # which nibabel takes for none
        raise DataError(f"{path}: the header's scl_slope is {raw.scl_slope}; repair the header")
    try:
        with _parsing(path):
            nifti = parse()
            corrected, array = nifti.header.binaryblock, np.asanyarray(nifti.dataobj)
    except Exception as error:  # nibabel's own errors share no base class
        raise _no_nifti(path, error) from None
    return _header(path, corrected), raw, array


def _no_nifti(path: Path, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(f"{path}: is not a NIfTI file ({reason}); restore it")


def _unpacked(path: Path, read: Callable[[Any], Taken]) -> Taken:
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


def _header(path: Path, head: bytes | bytearray) -> NiftiHeader:
    header = parse_header(head)
    if header is None:
        raise DataError(f"{path}: does not begin with a NIfTI header; restore it")
    return header


def _announced_bytes(path: Path, stream: Any, header: NiftiHeader, head: bytes) -> bytearray:
    """Give `head` and what follows it in `stream`, as far as the header announces it.

    A `head` is there in a file that holds header and voxels.
    """
    offset = float(header.vox_offset)
    if not math.isfinite(offset) or not 0 <= offset < MAX_BYTES:
        raise DataError(f"{path}: the header's vox_offset is {offset}; restore the file")
    first = header.size + 4  # what follows the header says whether extensions do
    if head and offset < first:
        raise DataError(
            f"{path}: the header's vox_offset is {offset:g}, but the header alone takes the first "
            f"{first} bytes; restore the file"
        )
    announced = int(offset) + header.announced
    on_disk = path.stat().st_size
    packed = _is_packed(path)
    check_announced(path, announced, on_disk, packed=packed)
    if packed and on_disk > 2 * announced + MOST_AFTER:  # zeros and empty members unpack to nothing
        raise _too_long(path, announced)
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
    if packed:
        _read_to_end(path, stream, announced, after=len(data) - announced)
    return data


def _read_to_end(path: Path, stream: Any, announced: int, after: int) -> None:
    """Read what follows the voxels, which is not ours, but whose end carries the CRC.

    Bytes `after` the voxels were read already, with a header that is shorter than the longest.
    """
    while count := len(stream.read(_AFTER_AT_ONCE)):
        after += count
        if after > MOST_AFTER:
            raise _too_long(path, announced)


def _too_long(path: Path, announced: int) -> DataError:
    return DataError(
        f"{path}: goes on for more than {MOST_AFTER} bytes after the {announced} that its header "
        "announces; restore it"
    )


def _geometry(
    path: Path, header: NiftiHeader, raw: NiftiHeader, shape: tuple[int, ...]
) -> Geometry:
    pixdim = raw.pixdim[:4]  # nibabel would turn a zero into 1 mm
    fields = {
        "pixdim": pixdim,
        "srow": [value for row in header.srow for value in row],
        "quatern": header.quatern,
        "qoffset": header.qoffset,
    }
    for name, values in fields.items():
        if not all(map(math.isfinite, values)):
            raise DataError(f"{path}: the header's {name} is not finite; repair the header")
        if max(map(abs, values)) > _FARTHEST:
            raise DataError(
                f"{path}: the header's {name} has {max(values, key=abs):g}; more than "
                f"{_FARTHEST:g} cannot be meant, repair the header"
            )
    grid = NiftiGrid(
        pixdim=cast(tuple[float, float, float, float], pixdim),
        units=header.xyzt_units,
        qform_code=header.qform_code,
        sform_code=header.sform_code,
        quaternion=header.quatern,
        offset=header.qoffset,
        srow=header.srow,
    )
    scale = _UNITS_MM.get(grid.units & 7)
    if scale is None or not 0 <= grid.units <= _MOST_UNITS:
        raise DataError(
            f"{path}: the header's xyzt_units is {grid.units}; not a unit of length, repair the "
            "header"
        )
    if scale != 1.0:
        logger.warning("%s: the header is not in mm; lengths are scaled by %g", path, scale)
    x, y, z = (abs(value) * scale for value in pixdim[1:])
    dimensions: Dimensions = 2 if len(shape) == 2 else 3
    *rows, last = affine_of(path, header)
    affine = (*(tuple(scale * value for value in row) for row in rows), last)
    if not voxel_volume(affine) > 1e-30:
        raise DataError(f"{path}: the header's affine cannot be inverted; repair the header")
    spacing = checked_spacing(path, x, y, z, dimensions)
    if grid.sform_code > 0:
        # an sform may also lead to an atlas, by a scale; the spacing then goes with the qform
        to_atlas = grid.sform_code in ATLAS_CODES and grid.qform_code > 0
        check_directions(path, "srow", affine, None if to_atlas else spacing, to_shape(shape))
    return Geometry(
        shape=to_shape(shape),
        spacing=spacing,
        affine=affine,
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
    header["vox_offset"] = 0 if pair else (NIFTI_2 if large else NIFTI_1) + len(flags)
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
