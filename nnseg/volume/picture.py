"""PNG, BMP and JPEG: 2D pictures of one channel or of colours, read and written by Pillow.

A picture is one slice whose pixels are 1 mm wide. A PNG file is checked chunk by chunk first, as
Pillow passes over the checksums of its pixels; JPEG and BMP have none.
"""

import io
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnseg.commit import write_whole
from nnseg.errors import DataError
from nnseg.volume.colour import pick_channels
from nnseg.volume.damage import check_announced, cut_off, damaged, read_whole
from nnseg.volume.geometry import Geometry, flat_geometry

logger = logging.getLogger(__name__)

JPEG = (".jpg", ".jpeg")  # lossy: fit for images, never for label maps
PICTURES = (".png", ".bmp", *JPEG)

_PNG_SIGNATURE = 8  # bytes
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by PNG's number of the colours
_PNG_PASSES = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
)  # of an interlaced file: first column and row, steps of columns and rows  # fmt: skip
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # what Pillow multiplies the grey levels of such PNG files by
_DEEP = {"RGB;16B", "RGBA;16B"}  # colours that Pillow would cut to 8 bits, and SimpleITK does not
_DEEP_GREY_ALPHA = "LA;16B"
_CHANNELS = {
    "1": 1, "L": 1, "I": 1, "I;16": 1, "I;16B": 1, "LA": 2, "RGB": 3, "RGBA": 4
}  # of Pillow's modes that are no palette  # fmt: skip
_WITH_ALPHA = {"L": "LA", "RGB": "RGBA", "P": "RGBA"}
_ORIENTATION = 274  # Exif's number of it


def read(path: Path, count: int | None) -> tuple[NDArray[Any], Geometry]:
    """Read what a picture shows: values (channel, 1, y, x) and geometry; see `pick_channels`.

    Of a palette these are its colours, or its greys where `count` is 1.
    """
    picture = _open_checked(path)
    if picture.format == "JPEG" and _is_turned(picture):
        logger.warning("%s: asks viewers to turn it; its pixels are taken as they are stored", path)
    palette = picture.mode == "P"
    pixels = _pixels(path, picture, _shown_mode(picture))
    if palette and count == 1 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    alpha = pixels.shape[-1] in (2, 4)
    array = pick_channels(path, pixels.transpose(2, 0, 1)[:, None], count, alpha=alpha)
    return np.ascontiguousarray(array), _geometry(picture)


def read_values(path: Path) -> tuple[NDArray[Any], Geometry]:
    """Read the one value of each pixel, (1, y, x), as it is stored, and the geometry.

    Of a palette these are its indices, and grey levels of 2 or 4 bits are not spread to 8.
    """
    picture = _open_checked(path)
    step = _GREY_STEPS.get(_layout(picture), 1)
    pixels = _pixels(path, picture, picture.mode)
    alpha = pixels.shape[-1] in (2, 4)
    array = pick_channels(path, pixels.transpose(2, 0, 1)[:, None], 1, alpha=alpha)
    return np.ascontiguousarray(array[0] // step), _geometry(picture)


def channel_counts(path: Path) -> tuple[int, ...]:
    """Say how many channels a picture can give, from its header: with and without its alpha."""
    with open(path, "rb") as stream:
        picture = _open(path, stream, path.stat().st_size)
        palette, mode = picture.mode == "P", _shown_mode(picture)
    count = _CHANNELS[mode]
    counts = (count - 1, count) if count in (2, 4) else (count,)
    return (1, *counts) if palette else counts


def write(path: Path, array: NDArray[Any]) -> None:
    """Write one slice of integers, (1, y, x): 8 bits a pixel, or 16 for larger types in PNG.

    Raises:
        DataError: The file cannot hold these values without a loss.
    """
    from PIL import Image

    check_writable(path, len(array))
    ending = path.suffix.lower()
    if array.dtype.kind not in "iub":
        raise DataError(f"{path}: a picture holds integers, not {array.dtype}; write a .nii.gz")
    small = array.dtype.itemsize == 1 or ending == ".bmp"
    kind = np.dtype(np.uint8 if small else np.uint16)
    least, most = int(array.min(initial=0)), int(array.max(initial=0))
    if least < 0 or most > np.iinfo(kind).max:
        raise DataError(
            f"{path}: values of {least} to {most} do not fit into {kind.itemsize * 8} bits without "
            "sign; write a .nii.gz"
        )
    stream = io.BytesIO()
    Image.fromarray(array[0].astype(kind)).save(stream, "BMP" if ending == ".bmp" else "PNG")
    write_whole(path, stream.getvalue())


def check_writable(path: Path, slices: int) -> None:
    """Make sure that a picture can hold so many slices, whatever their integers.

    Raises:
        DataError: It cannot.
    """
    if path.suffix.lower() in JPEG:
        raise DataError(f"{path}: JPEG does not keep values; write a .png file")
    if slices != 1:
        raise DataError(f"{path}: a picture holds one slice, not {slices}; write a .nii.gz")


def _is_turned(picture: Any) -> bool:
    try:
        return bool(picture.getexif().get(_ORIENTATION, 1) != 1)
    except Exception:  # a damaged Exif block asks for nothing
        return False


def _open_checked(path: Path) -> Any:
    """Open a picture of which every byte has been read; its pixels are not decoded yet."""
    data = read_whole(path)
    picture = _open(path, io.BytesIO(data), len(data))
    if picture.format == "PNG":
        _check_png(path, data)
    return picture


def _check_png(path: Path, data: bytes) -> None:
    """Go through the chunks of a PNG file, each with its checksum, and unpack all its pixels."""
    place, name, pixels = _PNG_SIGNATURE, b"", []
    if data[12:16] != b"IHDR":
        raise damaged(path, "its first chunk is no header")
    while name != b"IEND":
        length = int.from_bytes(data[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(data):
            raise cut_off(path, len(data), end + 4)
        name = data[place + 4 : place + 8]
        stored = int.from_bytes(data[end : end + 4], "big")
        if zlib.crc32(memoryview(data)[place + 4 : end]) != stored:
            raise damaged(path, f"chunk {name!r} has another checksum")
        if name == b"IDAT":
            pixels.append(data[place + 8 : end])
        place = end + 4
    wanted = _png_bytes(data)
    try:
        found = len(zlib.decompressobj().decompress(b"".join(pixels), wanted))
    except zlib.error as error:
        raise damaged(path, error) from None
    if found < wanted:
        raise damaged(path, f"{found} bytes of pixels instead of {wanted}")


def _png_bytes(data: bytes) -> int:
    """Give the bytes that the header of a PNG file announces for its rows, unpacked."""
    width, height, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    bits = depth * _PNG_SAMPLES[colours]
    passes = _PNG_PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = [(-((x - width) // dx), -((y - height) // dy)) for x, y, dx, dy in passes]
    return sum((1 + (bits * columns + 7) // 8) * rows for columns, rows in sizes if columns)


def _open(path: Path, stream: Any, on_disk: int) -> Any:
    """Parse the header of a picture, as the format that its ending says."""
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin

    # Image.open would guess the format, and warn of sizes that are usual in microscopy
    kinds = {".png": PngImagePlugin.PngImageFile, ".bmp": BmpImagePlugin.BmpImageFile}
    ending = path.suffix.lower()
    try:
        picture: Any = kinds.get(ending, JpegImagePlugin.JpegImageFile)(stream)
    except Exception as error:  # a damaged header may be anything to Pillow
        kind = "JPEG" if ending in JPEG else ending[1:].upper()
        raise DataError(
            f"{path}: is no {kind} file ({error}); restore it, or let it end in what it is"
        ) from None
    if getattr(picture, "is_animated", False):
        raise DataError(f"{path}: is animated; save the frame that is meant, or a TIFF stack")
    if picture.mode not in _CHANNELS and picture.mode != "P":
        raise DataError(f"{path}: has {picture.mode} colours; save it in grey or in RGB")
    if _layout(picture) == _DEEP_GREY_ALPHA:
        raise DataError(f"{path}: has 16 bit greys and alpha; save it without alpha")
    width, height = picture.size
    announced = width * height * max(1, len(picture.getbands()))
    check_announced(path, announced, on_disk, packed=True)
    return picture


def _layout(picture: Any) -> str:
    """Give Pillow's name for how the pixels of a picture lie in its file."""
    layout = picture.tile[0][3] if picture.tile else ""
    return layout if isinstance(layout, str) else ""


def _shown_mode(picture: Any) -> str:
    """Give the mode of a picture once its palette and transparent colour are resolved."""
    mode: str = picture.mode
    if "transparency" in picture.info and mode in _WITH_ALPHA and _layout(picture) not in _DEEP:
        return _WITH_ALPHA[mode]
    return "RGB" if mode == "P" else mode


def _pixels(path: Path, picture: Any, mode: str) -> NDArray[Any]:
    """Decode a picture as `mode`: (y, x, channel), in the type of the file."""
    if _layout(picture) in _DEEP:
        return _deep_pixels(path)
    try:
        array = np.asarray(picture if mode == picture.mode else picture.convert(mode))
    except Exception as error:  # damaged pixels may be anything to Pillow
        raise damaged(path, error) from None
    kind = np.dtype(np.uint8) if array.dtype == bool else array.dtype.newbyteorder("=")
    return array.astype(kind, copy=False).reshape(*array.shape[:2], -1)


def _deep_pixels(path: Path) -> NDArray[Any]:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("PNGImageIO")
    reader.SetFileName(str(path))
    try:
        return np.asarray(sitk.GetArrayFromImage(reader.Execute()))
    except RuntimeError as error:
        raise damaged(path, str(error).strip().splitlines()[-1].strip()) from None


def _geometry(picture: Any) -> Geometry:
    width, height = picture.size
    return flat_geometry((height, width), (1.0, 1.0))
