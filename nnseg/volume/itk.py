"""NRRD and MetaImage files, read and written by SimpleITK after a check of our own."""

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
from nnseg.volume.geometry import Dimensions, Geometry, checked_spacing, matrix, to_shape

ITK = (".nrrd", ".mha")
LARGEST_VALUE = 16  # bytes of a voxel's value

_NRRD_HEADER = re.compile(rb"NRRD\d{4}.*?\r?\n\r?\n", re.S)
_NRRD_GZIP = re.compile(rb"^encoding: *gz(ip)?\s*$", re.M | re.I)
_NRRD_DETACHED = re.compile(rb"(?:^|[\r\n])[ \t]*data[ \t]*file[ \t]*:", re.I)
_META_ZLIB = re.compile(rb"^CompressedData *= *True\s*$", re.M | re.I)
_META_KEY = b"ElementDataFile"
_META_HEADER = re.compile(rb"(?:.*?[\r\n])??[ \t]*ElementDataFile *= *LOCAL *\r?\n", re.S)


def read(path: Path) -> tuple[NDArray[Any], Geometry]:
    """Read a .nrrd or .mha file: values (z, y, x) and geometry."""
    import SimpleITK as sitk

    nrrd = path.name.lower().endswith(".nrrd")
    data = read_whole(path)
    packed = _packed_voxels(path, data, nrrd=nrrd)
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
    array = sitk.GetArrayFromImage(image)
    spacing = [*image.GetSpacing(), 1.0][:3]
    affine = np.eye(4)
    affine[:dimensions, :dimensions] = np.reshape(image.GetDirection(), (dimensions, dimensions))
    affine[:3, :3] *= spacing
    affine[:dimensions, 3] = image.GetOrigin()
    affine[:2] *= -1  # ITK counts towards left and posterior
    if not np.isfinite(affine).all():
        raise DataError(f"{path}: the header's geometry is not finite; repair the header")
    return array.reshape((1, *array.shape)) if dimensions == 2 else array, Geometry(
        shape=to_shape(image.GetSize()),
        spacing=checked_spacing(path, spacing[0], spacing[1], spacing[2], dimensions),
        affine=matrix(affine),
        dimensions=dimensions,
    )


def write(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Write (z, y, x) values on a grid, compressed."""
    import SimpleITK as sitk

    with whole_file(path) as temporary:
        sitk.WriteImage(_to_itk(array, geometry), str(temporary), useCompression=True)


def _packed_voxels(path: Path, data: bytes, *, nrrd: bool) -> memoryview | None:
    """Give the compressed voxels of a file, None if they are plain; refuse a strange header."""
    pattern, compressed = (_NRRD_HEADER, _NRRD_GZIP) if nrrd else (_META_HEADER, _META_ZLIB)
    header = pattern.match(data, 0, 2**20)
    if header is None:
        kind = "NRRD" if nrrd else "MetaImage"
        raise DataError(f"{path}: has no {kind} header with the voxels after it; restore it")
    if _NRRD_DETACHED.search(header[0]) if nrrd else data.count(_META_KEY) != 1:
        raise DataError(f"{path}: its header names another file; save header and voxels as one")
    return memoryview(data)[header.end() :] if compressed.search(header[0]) else None


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


def _to_itk(array: NDArray[Any], geometry: Geometry) -> Any:
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
