"""NRRD and MetaImage files, read and written by SimpleITK after a check of our own."""

import logging
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnseg.commit import whole_file
from nnseg.errors import DataError
from nnseg.volume.damage import check_announced, cut_off, damaged, read_whole
from nnseg.volume.geometry import (
    Dimensions,
    Geometry,
    check_directions,
    checked_spacing,
    matrix,
    to_shape,
)

logger = logging.getLogger(__name__)

ITK = (".nrrd", ".mha")
MOST_SKIPPED = 16  # times the voxels' bytes that a NRRD file unpacks to with what is to skip
_PACKED_AT_ONCE, _UNPACKED_AT_ONCE = 2**20, 2**22  # bytes
META_AXES = (2, 3, 4)  # that ITK may look at; 4 are refused with what to do

_NRRD_HEADER = re.compile(rb"NRRD\d{4}.*?\r?\n\r?\n", re.S)
_NRRD_GZIP = re.compile(rb"^encoding: *gz(ip)?\s*$", re.M | re.I)
_NRRD_DETACHED = re.compile(rb"(?:^|[\r\n])[ \t]*data[ \t]*file[ \t]*:", re.I)
_NRRD_NUMBERS = re.compile(
    rb"^[ \t]*(spacings|space directions|space origin)[ \t]*:(?!=)(.*)", re.M | re.I
)
_META_NUMBERS = re.compile(
    rb"^[ \t]*(ElementSpacing|ElementSize|Offset|Origin|Position|TransformMatrix|Rotation"
    rb"|Orientation)[ \t]*[=:](.*)",
    re.M,
)
_SPACINGS = {"spacings", "space directions", "elementspacing", "elementsize"}  # what can state one
_META_KEY = b"ElementDataFile"
_META_PACKING = re.compile(
    rb"^[ \t]*(CompressedData|CompressedDataSize)[ \t]*[=:][ \t]*(\w+)[ \t]*$", re.M
)
_META_TEXT = re.compile(rb"^[ \t]*BinaryData[ \t]*[=:][ \t]*f", re.MULTILINE | re.IGNORECASE)
_META_SKIP = re.compile(rb"HeaderSize(?![ \t]*[=:][ \t]*(?:0|-1)[ \t]*$)", re.M)
_META_AXES = re.compile(rb"^[ \t]*NDims *[=:] *(\d{1,3})[ \t]*$", re.M)
_META_HEADER = re.compile(rb"(?:.*?[\r\n])??[ \t]*ElementDataFile *= *LOCAL *\r?\n", re.S)


def read(path: Path) -> tuple[NDArray[Any], Geometry]:
    """Read a .nrrd or .mha file: values (z, y, x) and geometry.

    ITK takes 0 or 1 for numbers that it cannot read, and turns axes round for negative spacings, so
    the header's numbers are read here first.
    """
    import SimpleITK as sitk

    nrrd = path.name.lower().endswith(".nrrd")
    data = read_whole(path)
    header, voxels = _header_and_voxels(path, data, nrrd=nrrd)
    packed = _is_packed(path, header, voxels, nrrd=nrrd)
    numbers = _numbers(path, header, nrrd=nrrd)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if nrrd else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        several, axes = reader.GetNumberOfComponents(), reader.GetDimension()
        if several != 1 or axes not in (2, 3):
            raise DataError(
                f"{path}: has {axes} dimensions and {several} values a voxel; split it into one 3D "
                "file for each channel"
            )
        voxel = sitk.Image([1] * axes, reader.GetPixelID()).GetSizeOfPixelComponent()
        announced = voxel * math.prod(reader.GetSize())
        check_announced(path, announced, len(data), packed=packed)
        if packed:
            _check_packed(path, voxels, announced, nrrd=nrrd)
        elif not nrrd and len(voxels) < announced:
            raise cut_off(path, len(data), len(header) + announced)
        del data, voxels
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise DataError(f"{path}: cannot be read ({reason}); restore it") from None
    if axes == 3 and not numbers.keys() & _SPACINGS:
        logger.warning("%s: its header does not say its spacing; 1 mm is taken", path)
    if b"none" in numbers.get("space directions", b"").lower():
        raise DataError(f"{path}: the header's space directions lack an axis; repair the header")
    return from_itk(image, path, "space directions" if nrrd else "TransformMatrix")


def from_itk(image: Any, where: Path, field: str) -> tuple[NDArray[Any], Geometry]:
    """Give the values (z, y, x) of a SimpleITK image of 2 or 3 dimensions, and where they lie.

    Args:
        image: One value a voxel.
        where: For messages.
        field: What `where` calls the directions of the axes.
    """
    import SimpleITK as sitk

    dimensions: Dimensions = 2 if image.GetDimension() == 2 else 3
    array = sitk.GetArrayFromImage(image)
    spacing = [*image.GetSpacing(), 1.0][:3]
    affine = np.eye(4)
    affine[:dimensions, :dimensions] = np.reshape(image.GetDirection(), (dimensions, dimensions))
    affine[:3, :3] *= spacing
    affine[:dimensions, 3] = image.GetOrigin()
    affine[:2] *= -1  # ITK counts towards left and posterior
    if not np.isfinite(affine).all():
        raise DataError(f"{where}: the header's geometry is not finite; repair the header")
    shape = to_shape(image.GetSize())
    checked = checked_spacing(where, spacing[0], spacing[1], spacing[2], dimensions)
    check_directions(where, field, matrix(affine), checked, shape)
    return array.reshape((1, *array.shape)) if dimensions == 2 else array, Geometry(
        shape=shape,
        spacing=checked,
        affine=matrix(affine),
        dimensions=dimensions,
    )


def write(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Write (z, y, x) values on a grid, compressed."""
    import SimpleITK as sitk

    with whole_file(path) as temporary:
        sitk.WriteImage(to_itk(array, geometry), str(temporary), useCompression=True)


def _header_and_voxels(path: Path, data: bytes, *, nrrd: bool) -> tuple[bytes, memoryview]:
    """Give a file's header and the bytes after it; refuse a strange one."""
    header = (_NRRD_HEADER if nrrd else _META_HEADER).match(data, 0, 2**20)
    if header is None:
        kind = "NRRD" if nrrd else "MetaImage"
        raise DataError(f"{path}: has no {kind} header with the voxels after it; restore it")
    if b"\0" in header[0]:  # where ITK would end a name, and we would not
        raise DataError(f"{path}: its header is no text, as it has a zero byte; restore it")
    if _NRRD_DETACHED.search(header[0]) if nrrd else data.count(_META_KEY) != 1:
        raise DataError(f"{path}: its header names another file; save header and voxels as one")
    if not nrrd:
        _check_axes(path, header[0].replace(b"\r", b"\n"))
    return header[0], memoryview(data)[header.end() :]


def _is_packed(path: Path, header: bytes, voxels: memoryview, *, nrrd: bool) -> bool:
    """Say whether the voxels are compressed.

    Of a MetaImage, refuse a header that is wrong about where they lie or how long they are: its
    reader would give what is in memory by chance, or the header's own bytes.
    """
    if nrrd:
        return _NRRD_GZIP.search(header) is not None
    lines = header.replace(b"\r", b"\n")
    if _META_SKIP.search(lines):
        raise DataError(f"{path}: the header's HeaderSize must be 0 or -1; repair the header")
    if _META_TEXT.search(lines):
        raise DataError(f"{path}: its voxels are text (BinaryData); save them as binary")
    found = _META_PACKING.findall(lines)
    said = dict(found)
    packed = said.get(b"CompressedData", b"False").lower()
    if len(said) != lines.count(b"CompressedData") or packed not in (b"true", b"false"):
        raise DataError(
            f"{path}: the header must say CompressedData once, True or False, and "
            "CompressedDataSize at most once; repair the header"
        )
    if packed == b"false":
        return False
    size = said.get(b"CompressedDataSize", b"nothing")
    if size.isdigit() and len(size) < 20 and int(size) > len(voxels):
        raise cut_off(path, len(header) + len(voxels), len(header) + int(size))
    if size != b"%d" % len(voxels):
        shown = size[:100].decode("utf-8", errors="backslashreplace")
        raise DataError(
            f"{path}: the header's CompressedDataSize is {shown}; {len(voxels)} bytes follow the "
            "header, save the image anew by the program that made it"
        )
    return True


def _check_axes(path: Path, header: bytes) -> None:
    """Refuse a header of MetaImage that makes its reader write past the room for ten axes."""
    axes = [int(number) for number in _META_AXES.findall(header)]
    if len(axes) != 1 or header.count(b"NDims") != 1 or axes[0] not in META_AXES:
        raise DataError(f"{path}: the header's NDims must be 2 or 3, once; repair the header")


def _numbers(path: Path, header: bytes, *, nrrd: bool) -> dict[str, bytes]:
    """Give the lines of a header that say where voxels lie, by name; refuse what is no number."""
    found = {}
    lines = (_NRRD_NUMBERS if nrrd else _META_NUMBERS).findall(header.replace(b"\r", b"\n"))
    for name, text in ((name.decode().lower(), text.strip()) for name, text in lines):
        parts = [part for part in re.split(rb"[\s(),]+", text) if part and part.lower() != b"none"]
        try:
            values = [float(part) for part in parts]
        except ValueError:
            values = [math.nan]
        positive = name in _SPACINGS - {"space directions"}
        if not all(math.isfinite(value) and (value > 0 or not positive) for value in values):
            shown = text[:100].decode("utf-8", errors="backslashreplace")
            wanted = "numbers over 0" if positive else "finite numbers"
            raise DataError(
                f"{path}: the header's {name} is {shown!r}; it must be {wanted}, repair the header"
            )
        found[name] = text
    return found


def _check_packed(path: Path, packed: memoryview, announced: int, *, nrrd: bool) -> None:
    """Decompress voxels to their end: ITK passes over a wrong checksum.

    It also passes over voxels that a MetaImage lacks. Those of a NRRD file may follow others that
    its header says to skip, and ITK itself refuses one that lacks any.
    """
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip or zlib, whichever it is
    count, most = 0, announced * (MOST_SKIPPED if nrrd else 1)
    try:
        for start in range(0, len(packed), _PACKED_AT_ONCE):
            rest: bytes | memoryview = packed[start : start + _PACKED_AT_ONCE]
            while len(rest) and not stream.eof:
                count += len(stream.decompress(rest, _UNPACKED_AT_ONCE))
                rest = stream.unconsumed_tail
                if count > most:
                    raise DataError(
                        f"{path}: unpacks to more than its header announces; restore it"
                    )
    except zlib.error as error:
        raise damaged(path, error) from None
    if not stream.eof:
        raise DataError(f"{path}: was cut off; {len(packed)} bytes are on disk, copy it again")
    if count < announced and not nrrd:
        raise DataError(
            f"{path}: unpacks to {count} bytes of voxels where its header announces {announced}; "
            "save the image anew by the program that made it"
        )


def to_itk(array: NDArray[Any], geometry: Geometry) -> Any:
    """Give (z, y, x) values as a SimpleITK image on a grid."""
    import SimpleITK as sitk

    dimensions = geometry.dimensions
    image = sitk.GetImageFromArray(array[0] if dimensions == 2 else array)
    affine = np.array(geometry.affine)
    affine[:2] *= -1
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(lengths[:dimensions].tolist())
    image.SetOrigin(affine[:dimensions, 3].tolist())
    image.SetDirection((affine[:3, :3] / lengths)[:dimensions, :dimensions].ravel().tolist())
    return image
