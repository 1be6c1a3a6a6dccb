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
from nnseg.volume.damage import check_announced, damaged, read_whole
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
LARGEST_VALUE = 16  # bytes of a voxel's value
META_AXES = (2, 3, 4)  # that ITK may look at; 4 are refused with what to do

_NRRD_HEADER = re.compile(rb"NRRD\d{4}.*?\r?\n\r?\n", re.S)
_NRRD_GZIP = re.compile(rb"^encoding: *gz(ip)?\s*$", re.M | re.I)
_NRRD_DETACHED = re.compile(rb"(?:^|[\r\n])[ \t]*data[ \t]*file[ \t]*:", re.I)
_META_ZLIB = re.compile(rb"^CompressedData *= *True\s*$", re.M | re.I)
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
    header, packed = _header_and_packed(path, data, nrrd=nrrd)
    numbers = _numbers(path, header, nrrd=nrrd)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if nrrd else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        count = math.prod(reader.GetSize()) * reader.GetNumberOfComponents()
        check_announced(path, count, len(data), packed=packed is not None)
        if packed is not None:
            _check_packed(path, packed, LARGEST_VALUE * count)
        del data, packed
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise DataError(f"{path}: cannot be read ({reason}); restore it") from None
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() not in (2, 3):
        raise DataError(
            f"{path}: has {image.GetDimension()} dimensions and "
            f"{image.GetNumberOfComponentsPerPixel()} values a voxel; split it into one 3D file "
            "for each channel"
        )
    dimensions: Dimensions = 2 if image.GetDimension() == 2 else 3
    if dimensions == 3 and not numbers.keys() & _SPACINGS:
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


def _header_and_packed(path: Path, data: bytes, *, nrrd: bool) -> tuple[bytes, memoryview | None]:
    """Give a file's header and compressed voxels, None if they are plain; refuse a strange one."""
    pattern, compressed = (_NRRD_HEADER, _NRRD_GZIP) if nrrd else (_META_HEADER, _META_ZLIB)
    header = pattern.match(data, 0, 2**20)
    if header is None:
        kind = "NRRD" if nrrd else "MetaImage"
        raise DataError(f"{path}: has no {kind} header with the voxels after it; restore it")
    if _NRRD_DETACHED.search(header[0]) if nrrd else data.count(_META_KEY) != 1:
        raise DataError(f"{path}: its header names another file; save header and voxels as one")
    if not nrrd:
        _check_axes(path, header[0].replace(b"\r", b"\n"))
    packed = memoryview(data)[header.end() :] if compressed.search(header[0]) else None
    return header[0], packed


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


def _check_packed(path: Path, packed: memoryview, most: int) -> None:
    """Decompress voxels to their end: ITK passes over a wrong checksum."""
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip or zlib, whichever it is
    rest: bytes | memoryview = packed
    count = 0
    try:
        while len(rest) and not stream.eof:
            count += len(stream.decompress(rest, 2**24))
            rest = stream.unconsumed_tail
            if count > most:
                raise DataError(f"{path}: unpacks to more than its header announces; restore it")
    except zlib.error as error:
        raise damaged(path, error) from None
    if not stream.eof:
        raise DataError(f"{path}: was cut off; {len(packed)} bytes are on disk, copy it again")


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
