"""Every file format by its ending, and the images and label maps that are read and written.

This package alone knows that files are x first. What is written lies on exactly the grid that was
read, as far as the format can say where it lies.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Image, Segmentation
from nnseg.errors import DataError, MissingError
from nnseg.volume import itk, nifti, picture, tiff
from nnseg.volume.colour import pick_channels
from nnseg.volume.damage import unreadable
from nnseg.volume.geometry import Geometry, grid_fault

ENDINGS = (
    *nifti.NIFTI, *nifti.NIFTI_PAIRS, *itk.ITK, *picture.PICTURES, *tiff.TIFF
)  # the longest first of those that end alike  # fmt: skip
SEVERAL_CHANNELS = (*picture.PICTURES, *tiff.TIFF)  # a file of these may hold all of a case
LABEL_ENDINGS = tuple(ending for ending in ENDINGS if ending not in picture.JPEG)

_REMEDIES = {
    ".img": "name the .hdr file that belongs to it",
    ".img.gz": "name the .hdr file that belongs to it",
    ".mhd": "save header and voxels as one .mha file",
    ".nhdr": "save header and voxels as one .nrrd file",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """An image of one or more channels, float32, (channel, z, y, x), and where it lies."""

    image: Image
    geometry: Geometry


def split_ending(name: str) -> tuple[str, str]:
    """Split a file's name before its ending, which is "" if it is none of ENDINGS.

    >>> split_ending("brain.v2.nii.gz"), split_ending("CELLS.PNG"), split_ending("notes.txt")
    (('brain.v2', '.nii.gz'), ('CELLS', '.PNG'), ('notes.txt', ''))
    """
    for ending in ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)], name[-len(ending) :]
    return name, ""


def knows_directions(path: Path, geometry: Geometry) -> bool:
    """Say whether an image file tells how its axes lie in the patient.

    Pictures, TIFFs and 2D images have no such directions. A NIfTI header whose qform_code and
    sform_code are both 0 has none either, though it leads to a matrix of its spacing.
    """
    _, ending = split_ending(path.name)
    if geometry.dimensions == 2 or ending.lower() in SEVERAL_CHANNELS:
        return False
    grid = geometry.nifti
    return grid is None or grid.qform_code > 0 or grid.sform_code > 0


def label_ending(file_ending: str) -> str:
    """Give the ending of label maps for images that end so: .png for JPEG, which is lossy."""
    return ".png" if file_ending.lower() in picture.JPEG else file_ending


def map_ending(ending: str) -> str:
    """Give the ending of maps of real numbers beside label maps that end so.

    It is theirs, but .nii.gz for pictures, which hold integers.
    """
    return ".nii.gz" if ending.lower() in picture.PICTURES else ending


def side_files(path: Path) -> tuple[Path, ...]:
    """Give the files that an image file needs: the voxels of a .hdr, the spacing of a TIFF.

    Those that are missing are left out; reading says what is wrong then.
    """
    _, ending = split_ending(path.name)
    if ending.lower() in nifti.NIFTI_PAIRS:
        return nifti.voxels_files(path)
    if ending.lower() in tiff.TIFF:
        side = tiff.spacing_file(path)
        return () if side is None else (side,)
    return ()


def channel_counts(path: Path) -> tuple[int, ...]:
    """Say how many channels the file can give: (1,), or (3, 4) of RGB with alpha.

    Only the header is read.

    Raises:
        MissingError: The file does not exist.
        DataError: Its header is damaged.
    """
    ending = _ending(path)
    try:
        if ending in picture.PICTURES:
            return picture.channel_counts(path)
        return tiff.channel_counts(path) if ending in tiff.TIFF else (1,)
    except OSError as error:
        raise unreadable(path, error) from None


def read_image(paths: Sequence[Path], channels: int | None = None) -> Volume:
    """Read the channels of one case: a file each, or one file that holds them all.

    Args:
        paths: The files, in the order of the channels.
        channels: How many there must be; None takes what there is. It decides about alpha, which
            is a channel where it is counted, and else must be opaque and is left out.

    Raises:
        MissingError: A file does not exist.
        DataError: A file is damaged, holds values that are not finite or another number of
            channels, or lies on another grid than the first.
    """
    arrays, geometry = read_stored(paths, channels)
    return Volume(image=stacked(arrays), geometry=geometry)


def stacked(channels: Sequence[NDArray[Any]]) -> Image:
    """Give channels, each (z, y, x), as one float32 image; a single one is copied only if need be.

    Nothing that we do to an image changes it in place.
    """
    if len(channels) == 1:
        return channels[0][None].astype(np.float32, copy=False)
    return np.stack(channels, dtype=np.float32, casting="same_kind")


def read_stored(
    paths: Sequence[Path], channels: int | None = None
) -> tuple[list[NDArray[Any]], Geometry]:
    """Do what `read_image` does, but give each channel, (z, y, x), in the file's own type."""
    share = None if channels is None else 1 if len(paths) > 1 else channels
    arrays, geometries = zip(*(read_channels(path, share) for path in paths), strict=True)
    for path, geometry in zip(paths[1:], geometries[1:], strict=True):
        if fault := grid_fault(geometries[0], geometry):
            raise DataError(
                f"{path}: lies on another grid than {paths[0].name}: {fault}; resample it to that"
            )
    for path, array in zip(paths, arrays, strict=True):
        if count := count_not_finite(array):
            raise DataError(
                f"{path}: {count} voxels are not finite (NaN or infinite); repair or remove it"
            )
    found = sum(len(array) for array in arrays)
    if channels not in (None, found):
        raise DataError(
            f"{paths[0]}: {len(paths)} files hold {found} channels where {channels} should be; add "
            "the missing ones"
        )
    return [channel for array in arrays for channel in array], geometries[0]


def count_not_finite(array: NDArray[Any]) -> int:
    """Count the voxels that are NaN or infinite, or too large for the float32 we compute in."""
    if array.dtype.kind != "f":
        return 0
    with np.errstate(over="ignore"):
        return int(array.size - np.isfinite(array.astype(np.float32, copy=False)).sum())


def read_segmentation(path: Path) -> tuple[Segmentation, Geometry]:
    """Read a label map, (z, y, x), in the file's own integer type; int32 for integral floats.

    Raises:
        MissingError: The file does not exist.
        DataError: It is damaged, lossy or holds values that are no integers.
    """
    ending = _ending(path)
    if ending in picture.JPEG:
        raise DataError(f"{path}: JPEG changes values; make the label map anew as a .png file")
    array, geometry = _read_array(path, ending)
    if np.issubdtype(array.dtype, np.integer):
        return array, geometry
    rounded = np.rint(array)
    if not np.isfinite(array).all() or (rounded != array).any():
        wrong = array[~np.isfinite(array) | (rounded != array)]
        raise DataError(
            f"{path}: {wrong.size} voxels are no integers, such as {float(wrong[0]):.6g}; a label "
            "map must be resampled with nearest neighbour, not interpolated"
        )
    if rounded.size and np.abs(rounded).max() > np.iinfo(np.int32).max:
        raise DataError(f"{path}: has the value {np.abs(rounded).max():.6g}; not a label map")
    return rounded.astype(np.int32), geometry


def read_array(path: Path) -> tuple[NDArray[Any], Geometry]:
    """Read one file as it is: its values, (z, y, x), in the file's own type, and its geometry.

    The values may be anything, NaN included; `read_image` and `read_segmentation` refuse what
    cannot be used. Of a picture with a palette they are its indices.

    Raises:
        MissingError: The file does not exist.
        DataError: It is damaged, of an unknown format, holds several values a voxel, or its
            geometry cannot be used.
    """
    return _read_array(path, _ending(path))


def _read_array(path: Path, ending: str) -> tuple[NDArray[Any], Geometry]:
    if ending in picture.PICTURES:
        return picture.read_values(path)
    channels, geometry = _read_channels(path, ending, 1)
    return channels[0], geometry


def read_channels(path: Path, count: int | None = None) -> tuple[NDArray[Any], Geometry]:
    """Read the channels of one file: values (channel, z, y, x) in its own type, and its geometry.

    Args:
        path: Any of ENDINGS; only pictures and TIFF files hold several channels.
        count: How many there must be; None takes what there is, alpha included.

    Raises:
        MissingError: The file does not exist.
        DataError: It is damaged, of an unknown format, holds another number of channels or
            something else than real numbers, or its geometry cannot be used.
    """
    return _read_channels(path, _ending(path), count)


def _read_channels(path: Path, ending: str, count: int | None) -> tuple[NDArray[Any], Geometry]:
    if ending in picture.PICTURES:
        array, geometry = picture.read(path, count)
    elif ending in tiff.TIFF:
        array, geometry = tiff.read(path, count)
    else:
        volume, geometry = itk.read(path) if ending in itk.ITK else nifti.read(path)
        array = pick_channels(path, volume[None], count, alpha=False)
    if array.dtype.kind not in "iufb":
        raise DataError(
            f"{path}: has voxels of type {array.dtype}; only real numbers can be used, save the "
            "part of them that is meant"
        )
    return array, geometry


def check_writable(path: Path, geometry: Geometry) -> None:
    """Make sure, before a label map of a grid is made, that its file can be of this format.

    Raises:
        DataError: The format is unknown, lossy or holds fewer slices.
    """
    ending = split_ending(path.name)[1].lower()
    if not ending:
        raise DataError(f"{path}: cannot write this format; use one of {', '.join(LABEL_ENDINGS)}")
    if ending in picture.PICTURES:
        picture.check_writable(path, geometry.shape[0])


def write(path: Path, array: NDArray[Any], geometry: Geometry, comment: str = "") -> None:
    """Write one (z, y, x) array on the grid `geometry`, whole or not at all.

    The format follows the ending of `path`; the same array gives the same bytes. Pictures hold one
    slice of integers and no spacing; the spacing of a TIFF goes into a .json beside it. A comment
    is kept in a NIfTI header, and nowhere else.

    Raises:
        DataError: The format is unknown or cannot hold the array.
        MachineError: The disk is full or the folder cannot be written.
    """
    if array.shape != geometry.shape:
        raise ValueError(f"array {array.shape} and geometry {geometry.shape} differ in shape")
    check_writable(path, geometry)
    ending = split_ending(path.name)[1].lower()
    if ending in (*nifti.NIFTI, *nifti.NIFTI_PAIRS):
        nifti.write(path, array, geometry, comment)
    elif ending in itk.ITK:
        itk.write(path, array, geometry)
    elif ending in picture.PICTURES:
        picture.write(path, array)
    else:
        tiff.write(path, array, geometry)


def _ending(path: Path) -> str:
    """Give the ending of a file that exists and that we read."""
    try:
        there, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # the folder that it lies in
        raise unreadable(path, error) from None
    if is_folder:
        raise DataError(f"{path} is a folder; give an image file in it")
    if not there and os.path.lexists(path):
        raise DataError(f"{path} is no file, nor a link to one; put the image there, or remove it")
    if not there:
        raise MissingError(f"{path} does not exist; restore it, or correct the path")
    ending = split_ending(path.name)[1].lower()
    if not ending:
        known = next((end for end in _REMEDIES if path.name.lower().endswith(end)), "")
        remedy = _REMEDIES.get(known, f"use one of {', '.join(ENDINGS)}")
        raise DataError(f"{path}: cannot read this format; {remedy}")
    return ending
