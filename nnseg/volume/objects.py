"""Images that are in memory already: arrays, and those of nibabel and SimpleITK."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Segmentation
from nnseg.errors import DataError, UsageError
from nnseg.volume import itk, nifti
from nnseg.volume.formats import Volume, count_not_finite, read_image, stacked
from nnseg.volume.geometry import Geometry, flat_geometry, grid_fault, simple_geometry

GivesBack = Callable[[Segmentation], Any]

_WANTED = (
    "give a path, an image of nibabel or SimpleITK, (array, spacing in mm), or a list of one of "
    "them for each channel"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opened:
    """An image, and the way from its label map to the kind of thing that it came as."""

    volume: Volume
    give: GivesBack


def open_image(image: Any, channels: int | None = None) -> Opened:
    """Read or convert whatever holds an image.

    Args:
        image: A path; an image of nibabel, of 4 dimensions if it has several channels; one of
            SimpleITK, which may have several values a voxel; (array, spacing): (z, y, x) or
            (channel, z, y, x) with mm (z, y, x), or (y, x) or (channel, y, x) with mm (y, x). A
            list has one of them for each channel.
        channels: How many there must be; None takes what there is.

    Raises:
        UsageError: It is none of these.
        MissingError: A file does not exist.
        DataError: It is damaged, on several grids, or has another number of channels or values
            that are not finite.
    """
    parts = image if isinstance(image, list) else [image]
    if parts and all(isinstance(part, Path | str) for part in parts):
        volume = read_image([Path(part) for part in parts], channels)
        grid = volume.geometry  # and not the volume: the way back holds no image
        return Opened(volume=volume, give=lambda found: nifti.to_nibabel(found, grid))
    found = [_converted(part) for part in parts]
    if not found:
        raise UsageError(f"there is no image in the list; {_WANTED}")
    arrays, geometry, give = found[0]
    for others, grid, _ in found[1:]:
        if fault := grid_fault(geometry, grid):
            raise DataError(f"the channels lie on different grids: {fault}; resample them to one")
        arrays = [*arrays, *others]
    for array in arrays:
        if array.dtype.kind not in "buif":
            raise DataError(f"the image holds values of type {array.dtype}; they must be numbers")
        if count := count_not_finite(array):
            raise DataError(f"{count} voxels are not finite (NaN or infinite); repair the image")
    if channels not in (None, len(arrays)):
        raise DataError(f"the image has {len(arrays)} channels where {channels} should be")
    return Opened(volume=Volume(image=stacked(arrays), geometry=geometry), give=give)


def files_of(image: Any) -> tuple[Path, ...]:
    """Give the files behind an image: its paths, or those that nibabel reads it from."""
    files = []
    for part in image if isinstance(image, list) else [image]:
        name = part if isinstance(part, Path | str) else None
        if _library(part) == "nibabel" and hasattr(part, "get_filename"):
            name = part.get_filename()
        if name is not None:
            files.append(Path(name))
    return tuple(files)


def _library(image: Any) -> str:
    return type(image).__module__.partition(".")[0]


def _converted(image: Any) -> tuple[Sequence[NDArray[Any]], Geometry, GivesBack]:
    """Give the channels (z, y, x) of an image, its grid, and the way back."""
    library = _library(image)
    if library == "nibabel" and hasattr(image, "dataobj"):
        array, geometry = nifti.from_nibabel(image, Path("the nibabel image"))
        return _channels(array), geometry, lambda found: nifti.to_nibabel(found, geometry)
    if library == "SimpleITK" and hasattr(image, "GetNumberOfComponentsPerPixel"):
        return _from_itk(image)
    if isinstance(image, tuple) and len(image) == 2 and isinstance(image[0], np.ndarray):
        return _from_array(*image)
    raise UsageError(f"a {type(image).__name__} is no image; {_WANTED}")


def _channels(array: NDArray[Any], axes: int = 3) -> Sequence[NDArray[Any]]:
    if not array.size:
        raise DataError(f"the image is of shape {array.shape} and holds no voxel; give another")
    return [*array] if array.ndim > axes else [array]


def _from_itk(image: Any) -> tuple[Sequence[NDArray[Any]], Geometry, GivesBack]:
    import SimpleITK as sitk

    if image.GetDimension() not in (2, 3):
        raise DataError(f"the SimpleITK image has {image.GetDimension()} dimensions, not 2 or 3")
    count = image.GetNumberOfComponentsPerPixel()
    parts = [image]
    if count > 1:
        parts = [sitk.VectorIndexSelectionCast(image, number) for number in range(count)]
    found = [itk.from_itk(part, Path("the SimpleITK image"), "direction") for part in parts]
    grid = (image.GetOrigin(), image.GetSpacing(), image.GetDirection())

    def give(segmentation: Segmentation) -> Any:
        labels = sitk.GetImageFromArray(segmentation[0] if len(grid[0]) == 2 else segmentation)
        labels.SetOrigin(grid[0])
        labels.SetSpacing(grid[1])
        labels.SetDirection(grid[2])
        return labels

    return [array for array, _ in found], found[0][1], give


def _from_array(
    array: NDArray[Any], spacing: Sequence[float]
) -> tuple[Sequence[NDArray[Any]], Geometry, GivesBack]:
    axes = len(spacing)
    if axes not in (2, 3) or array.ndim not in (axes, axes + 1):
        raise UsageError(
            f"an array of {array.ndim} dimensions comes with a spacing of {axes} numbers; give "
            "(z, y, x) or (channel, z, y, x) with 3, or (y, x) or (channel, y, x) with 2"
        )
    mm = [float(value) for value in spacing]
    if not all(np.isfinite(mm)) or min(mm) <= 0:
        raise DataError(f"the spacing is {tuple(mm)} mm; it must be over 0 on every axis")
    channels = _channels(array, axes)
    if axes == 3:
        z, y, x = mm
        shape = channels[0].shape
        return channels, simple_geometry((shape[0], shape[1], shape[2]), (z, y, x)), lambda s: s
    rows, columns = channels[0].shape
    geometry = flat_geometry((rows, columns), (mm[0], mm[1]))
    return [channel[None] for channel in channels], geometry, lambda found: found[0]
