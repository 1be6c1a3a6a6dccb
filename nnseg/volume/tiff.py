"""TIFF stacks, with their spacing in a JSON file beside them, and flat TIFF pictures.

As with nnU-Net, the spacing of CASE_0000.tif and of the label map CASE.tif is in a CASE.json in
the same folder: {"spacing": [z, y, x]} in mm. What a TIFF file itself says of resolution, units
and colour tables is for viewers and is not used.
"""

import contextlib
import io
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nnseg import record
from nnseg.axes import Shape, three
from nnseg.commit import write_whole
from nnseg.errors import DataError, NnsegError
from nnseg.volume.colour import pick_channels
from nnseg.volume.damage import check_announced, cut_off, damaged, read_whole
from nnseg.volume.geometry import Geometry, checked_spacing, flat_geometry, simple_geometry

logger = logging.getLogger(__name__)

TIFF = (".tif", ".tiff")

_UNPACKED = 1  # TIFF's number of no compression
_ALPHA = (1, 2)  # TIFF's numbers of alpha among the kinds of extra samples
_BIG_TIFF = 43  # the version of files over 4 GiB
_TAG_BYTES = {
    3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8
}  # of a tag's value, by TIFF's number of its type; 1 of the others  # fmt: skip
_CHANNEL_SUFFIX = re.compile(r"_\d{4}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """What we use of the file beside a TIFF file."""

    spacing: tuple[float, ...]  # mm, (z, y, x) or (y, x)


def read(path: Path, count: int | None) -> tuple[NDArray[Any], Geometry]:
    """Read values (channel, z, y, x) and geometry; see `pick_channels`.

    An axis that the file calls channel (C) or sample (S) holds the channels, and another beside y
    and x the slices, whatever the file calls it. Where one channel is wanted, an axis C alone holds
    slices: programs that ask nobody call them so.
    """
    data = read_whole(path)
    with _series(path, io.BytesIO(data)) as series:
        _check_pages(path, data)
        _check_segments(path, series, len(data))
        array, axes, alpha = _values(path, series, data), series.axes, _has_alpha(series)
        if array.shape != tuple(series.shape):
            raise damaged(path, f"it holds {array.shape} voxels and describes {series.shape}")
    if axes == "CYX" and count == 1:
        axes = "ZYX"
    channels = [place for place, name in enumerate(axes) if name in "CS"]
    array = np.moveaxis(array, channels[0], 0) if channels else array[None]
    flat = array.ndim == 3
    array = array.reshape(len(array), -1, *array.shape[-2:])
    kind = np.dtype(np.uint8) if array.dtype == bool else array.dtype.newbyteorder("=")
    array = pick_channels(path, array, count, alpha=alpha)
    geometry = _geometry(path, three(array.shape[1:]), flat=flat)
    return np.ascontiguousarray(array, dtype=kind), geometry


def channel_counts(path: Path) -> tuple[int, ...]:
    """Say how many channels a file can give, from its header: with and without its alpha."""
    with open(path, "rb") as stream, _series(path, stream) as series:
        found = [n for name, n in zip(series.axes, series.shape, strict=True) if name in "CS"]
        count = found[0] if found else 1
        if series.axes == "CYX" and count != 1:
            return (1, count)
        return (count - 1, count) if _has_alpha(series) else (count,)


def write(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Write (z, y, x) values and, before them, the spacing into the file beside them."""
    import tifffile

    flat = geometry.dimensions == 2
    spacing = geometry.spacing[1:] if flat else geometry.spacing
    text = record.json_text({"spacing": list(spacing)})
    write_whole(path.with_name(f"{path.stem}.json"), text.encode())
    stream = io.BytesIO()
    tifffile.imwrite(
        stream,
        array[0] if flat else array,
        photometric="minisblack",
        compression="zlib",
        metadata={"axes": "YX" if flat else "ZYX"},
    )
    write_whole(path, stream.getvalue())


def spacing_file(path: Path) -> Path | None:
    """Find the file that holds the spacing of a TIFF file: CASE.json; None if there is none."""
    for stem in (path.stem, _CHANNEL_SUFFIX.sub("", path.stem)):
        file = path.with_name(f"{stem}.json")
        if file.is_file():
            return file
    return None


@contextlib.contextmanager
def _series(path: Path, stream: Any) -> Iterator[Any]:
    """Open the one image of a file, a stack or a picture whose axes make sense to us."""
    import tifffile

    try:
        # other files that this one may name are none of ours
        with tifffile.TiffFile(stream, name=path.name, _multifile=False) as file:
            if len(file.series) != 1:
                raise DataError(
                    f"{path}: holds {len(file.series)} images of different sizes; save the one "
                    "that is meant"
                )
            series = file.series[0]
            places = series.axes.replace("C", "").replace("S", "")
            if not places.endswith("YX") or len(places) > 3 or len(series.axes) > len(places) + 1:
                raise DataError(
                    f"{path}: has the axes {series.axes} of {series.shape}; save a stack (z, y, x) "
                    "for each channel and time"
                )
            if len(file.pages) * series.keyframe.size > series.size and not series.is_pyramidal:
                raise damaged(path, "its description leaves out some of its pages")
            yield series
    except (NnsegError, MemoryError):
        raise
    except Exception as error:  # damage may be anything to tifffile
        raise damaged(path, error) from None


def _has_alpha(series: Any) -> bool:
    extra = series.keyframe.extrasamples
    return "S" in series.axes and len(extra) == 1 and int(extra[0]) in _ALPHA


def _check_pages(path: Path, data: bytes) -> None:
    """Follow the pages of a file and their tags to the last; tifffile is content with less."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"

    def number(place: int, size: int) -> int:
        if place + size > len(data):
            raise cut_off(path, len(data), place + size)
        return int.from_bytes(data[place : place + size], order)

    large = number(2, 2) == _BIG_TIFF
    counter, offset, place = (8, 8, 8) if large else (2, 4, 4)  # bytes, bytes, where the first is
    seen = set()
    while start := number(place, offset):
        if start in seen:
            raise damaged(path, "its pages go round in a circle")
        seen.add(start)
        place = start + counter
        for _ in range(number(start, counter)):
            size = _TAG_BYTES.get(number(place + 2, 2), 1) * number(place + 4, offset)
            if size > offset:
                number(number(place + 4 + offset, offset) + size - 1, 1)
            place += 4 + 2 * offset


def _check_segments(path: Path, series: Any, on_disk: int) -> None:
    """Refuse a file that ends before its voxels do; tifffile would fill missing parts with 0."""
    announced = math.prod(series.shape) * series.dtype.itemsize
    if not announced:
        raise damaged(path, f"it has {series.shape} voxels")
    # voxels of a bit, or in strips that the file may lack, take less room than here
    packed = series.keyframe.compression != _UNPACKED or series.dataoffset is None
    check_announced(path, announced, on_disk, packed=packed)
    if series.dataoffset is not None:
        segments = [(series.dataoffset, announced)]
    else:
        segments = [
            segment
            for page in series.pages
            for segment in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
    for start, length in segments:
        if start + length > on_disk:
            raise cut_off(path, on_disk, start + length)
    if min(length for _, length in segments) == 0:
        raise damaged(path, "some of its voxels were never written")


def _values(path: Path, series: Any, data: bytes) -> NDArray[Any]:
    try:
        return np.asarray(series.asarray())
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
    # Pillow knows compressions that tifffile leaves to a package which is not ours
    from PIL import ImageSequence, TiffImagePlugin

    try:
        pages = ImageSequence.Iterator(TiffImagePlugin.TiffImageFile(io.BytesIO(data)))
        array = np.stack([np.asarray(page) for page in pages]).reshape(series.shape)
        return np.asarray(array.astype(series.dtype, casting="equiv"))
    except Exception as error:  # damage may be anything to Pillow
        name = series.keyframe.compression.name
        raise DataError(
            f"{path}: its {name} compression cannot be unpacked ({error}); save it with deflate "
            "(zlib) or without compression"
        ) from None


def _geometry(path: Path, shape: Shape, *, flat: bool) -> Geometry:
    """Give the grid of a file: that of the spacing file, else 1 mm on each axis."""
    side = spacing_file(path)
    if side is None and flat:
        return flat_geometry((shape[1], shape[2]), (1.0, 1.0))
    if side is None:
        logger.warning("%s: no %s.json says its spacing; 1 mm is taken", path, path.stem)
        return simple_geometry(shape, (1.0, 1.0, 1.0))
    content = record.read_json(side)
    if not isinstance(content, dict) or "spacing" not in content:
        raise DataError(f'{side}: has no "spacing"; write {{"spacing": [z, y, x]}} in mm')
    found = record.parse(_Side, {"spacing": content["spacing"]}, str(side)).spacing
    if len(found) == 2 and flat:
        _, y, x = checked_spacing(side, found[1], found[0], 1.0, 2)
        return flat_geometry((shape[1], shape[2]), (y, x))
    if len(found) != 3:
        raise DataError(
            f"{side}: spacing has {len(found)} entries; {path.name} needs z, y and x in mm"
        )
    return simple_geometry(shape, checked_spacing(side, found[2], found[1], found[0], 3))
