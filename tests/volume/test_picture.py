import io
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from nnseg.errors import DataError
from nnseg.volume import (
    SLICE_OF_2D,
    channel_counts,
    flat_geometry,
    read_array,
    read_channels,
    read_segmentation,
    simple_geometry,
    write,
)

GREY = np.arange(20, dtype=np.uint8).reshape(4, 5) * 10
COLOUR = np.stack([GREY, GREY + 1, GREY + 2], axis=-1)
GRID = flat_geometry((4, 5), (1.0, 1.0))
ENDINGS = [".png", ".bmp"]


def saved(path: Path, picture: Image.Image, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def with_alpha(pixels: NDArray[Any], alpha: int = 255) -> NDArray[Any]:
    flat = pixels.reshape(*pixels.shape[:2], -1)
    return np.concatenate([flat, np.full((*flat.shape[:2], 1), alpha, flat.dtype)], axis=-1)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    path: Path, shape: tuple[int, int], depth: int, kind: int, rows: list[bytes], *more: bytes
) -> Path:
    """A PNG file from its rows as they are stored; `kind` is PNG's number of the colours."""
    head = struct.pack(">IIBBBBB", shape[1], shape[0], depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = (chunk(b"IHDR", head), *more, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def deep_png(path: Path, pixels: NDArray[Any], kind: int) -> Path:
    rows = [row.astype(">u2").tobytes() for row in pixels]
    return png(path, (pixels.shape[0], pixels.shape[1]), 16, kind, rows)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_grey_picture_is_one_slice_of_one_channel(tmp_path: Path, ending: str) -> None:
    path = saved(tmp_path / f"a{ending}", Image.fromarray(GREY))
    array, geometry = read_channels(path)
    np.testing.assert_array_equal(array, GREY[None, None])
    assert array.dtype == np.uint8
    assert geometry.shape == (1, 4, 5)
    assert geometry.spacing == (SLICE_OF_2D, 1.0, 1.0)
    assert geometry.dimensions == 2
    assert channel_counts(path) == (1,)


@pytest.mark.parametrize("ending", ENDINGS)
def test_colours_are_channels_of_one_file(tmp_path: Path, ending: str) -> None:
    path = saved(tmp_path / f"a{ending}", Image.fromarray(COLOUR))
    assert channel_counts(path) == (3,)
    array, _ = read_channels(path, 3)
    np.testing.assert_array_equal(array, COLOUR.transpose(2, 0, 1)[:, None])
    with pytest.raises(DataError, match="holds 3 values a pixel where 1 should be"):
        read_segmentation(path)


@pytest.mark.parametrize("ending", [".jpg", ".jpeg"])
def test_a_jpeg_is_an_image_and_never_a_label_map(tmp_path: Path, ending: str) -> None:
    path = saved(tmp_path / f"a{ending}", Image.fromarray(np.full((4, 5, 3), 90, np.uint8)))
    array, _ = read_channels(path, 3)
    assert array.shape == (3, 1, 4, 5)
    np.testing.assert_allclose(array, 90, atol=2)
    with pytest.raises(DataError, match=r"JPEG changes values; make the label map anew as a \.png"):
        read_segmentation(path)
    with pytest.raises(DataError, match=r"JPEG does not keep values; write a \.png"):
        write(path, GREY[None], GRID)


@pytest.mark.parametrize("colours", [GREY, COLOUR], ids=["grey", "colour"])
def test_alpha_counts_if_asked_for_and_must_be_opaque_if_not(
    tmp_path: Path, colours: NDArray[np.uint8]
) -> None:
    count = colours.reshape(4, 5, -1).shape[-1]
    opaque = saved(tmp_path / "opaque.png", Image.fromarray(with_alpha(colours)))
    clear = saved(tmp_path / "clear.png", Image.fromarray(with_alpha(colours, 254)))
    for path in (opaque, clear):
        assert channel_counts(path) == (count, count + 1)
        assert read_channels(path)[0].shape == (count + 1, 1, 4, 5)
        assert read_channels(path, count + 1)[0].shape == (count + 1, 1, 4, 5)
    array, _ = read_channels(opaque, count)
    np.testing.assert_array_equal(array, colours.reshape(4, 5, -1).transpose(2, 0, 1)[:, None])
    with pytest.raises(DataError, match="20 pixels are not opaque; flatten it, or name alpha"):
        read_channels(clear, count)


def test_a_palette_shows_colours_and_stores_labels(tmp_path: Path) -> None:
    labels = np.arange(20, dtype=np.uint8).reshape(4, 5) % 3
    colours = np.array([[0, 0, 0], [250, 0, 10], [0, 200, 20]], np.uint8)
    picture = Image.fromarray(labels)
    picture.putpalette(colours.ravel().tolist())
    path = saved(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(read_segmentation(path)[0][0], labels)
    np.testing.assert_array_equal(
        read_channels(path, 3)[0][:, 0], colours[labels].transpose(2, 0, 1)
    )
    with pytest.raises(DataError, match="holds 3 values a pixel where 1 should be"):
        read_channels(path, 1)
    assert channel_counts(path) == (1, 3)
    see_through = saved(tmp_path / "b.png", picture, transparency=1)
    np.testing.assert_array_equal(read_segmentation(see_through)[0][0], labels)
    with pytest.raises(DataError, match="7 pixels are not opaque"):
        read_channels(see_through, 3)


def test_a_palette_of_greys_is_one_channel_where_one_is_wanted(tmp_path: Path) -> None:
    places = np.arange(20, dtype=np.uint8).reshape(4, 5)
    picture = Image.fromarray(places)
    picture.putpalette(np.repeat(255 - np.arange(20, dtype=np.uint8), 3).tolist())
    path = saved(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(read_channels(path, 1)[0][0, 0], 255 - places)
    assert read_channels(path, 3)[0].shape == (3, 1, 4, 5)


def test_a_transparent_grey_makes_alpha(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(GREY), transparency=10)
    assert channel_counts(path) == (1, 2)
    with pytest.raises(DataError, match="1 pixels are not opaque"):
        read_channels(path, 1)
    np.testing.assert_array_equal(read_array(path)[0][0], GREY)


def test_16_bits_are_kept_in_grey_and_in_colour(tmp_path: Path) -> None:
    grey = GREY.astype(np.uint16) * 300
    path = saved(tmp_path / "grey.png", Image.fromarray(grey))
    np.testing.assert_array_equal(read_segmentation(path)[0][0], grey)
    colour = COLOUR.astype(np.uint16) * 300
    path = deep_png(tmp_path / "colour.png", colour, 2)
    array, _ = read_channels(path, 3)
    assert array.dtype == np.uint16
    np.testing.assert_array_equal(array[:, 0], colour.transpose(2, 0, 1))
    path = deep_png(tmp_path / "alpha.png", with_alpha(colour, 65535), 6)
    np.testing.assert_array_equal(read_channels(path, 3)[0], array)
    path = deep_png(tmp_path / "grey_alpha.png", with_alpha(grey, 65535), 4)
    with pytest.raises(DataError, match="has 16 bit greys and alpha; save it without alpha"):
        read_channels(path)


@pytest.mark.parametrize(("depth", "row", "values"), [
    (1, b"\xa0", [1, 0, 1, 0]), (2, b"\x1b", [0, 1, 2, 3]), (4, b"\x01\x2f", [0, 1, 2, 15]),
])  # fmt: skip
def test_label_maps_of_few_bits_hold_what_is_stored(
    tmp_path: Path, depth: int, row: bytes, values: list[int]
) -> None:
    path = png(tmp_path / "a.png", (1, 4), depth, 0, [row])
    array, _ = read_segmentation(path)
    assert array.dtype == np.uint8
    assert array.tolist() == [[values]]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.bool_])
def test_label_maps_come_back(tmp_path: Path, ending: str, kind: type) -> None:
    labels = (GREY[None] % 2 if kind is np.bool_ else GREY[None]).astype(kind)
    path = tmp_path / f"a{ending}"
    write(path, labels, GRID)
    array, geometry = read_segmentation(path)
    np.testing.assert_array_equal(array, labels)
    assert geometry == GRID
    first = path.read_bytes()
    write(path, labels, GRID)
    assert path.read_bytes() == first


def test_labels_over_255_need_png(tmp_path: Path) -> None:
    labels = GREY[None].astype(np.uint16) + 255
    write(tmp_path / "a.png", labels, GRID)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "a.png")[0], labels)
    with pytest.raises(DataError, match="values of 0 to 445 do not fit into 8 bits"):
        write(tmp_path / "a.bmp", labels - labels.min() * (labels == 255), GRID)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 5), np.uint8), "a picture holds one slice, not 3; write a .nii.gz"),
        (np.zeros((1, 4, 5), np.float32), "a picture holds integers, not float32"),
        (np.full((1, 4, 5), 65536, np.int32), "values of 0 to 65536 do not fit into 16 bits"),
        (np.full((1, 4, 5), -1, np.int16), "values of -1 to 0 do not fit into 16 bits"),
    ],
)
def test_what_a_picture_cannot_hold_is_not_written(
    tmp_path: Path, array: NDArray[Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write(tmp_path / "a.png", array, simple_geometry(array.shape, (1.0, 1.0, 1.0)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".png", ".bmp", ".jpg"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.6, 0.97])
def test_a_picture_cut_off_anywhere_is_refused(tmp_path: Path, ending: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    path = saved(tmp_path / f"a{ending}", Image.fromarray(noise))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DataError, match=f"a{ending}: "):
        read_channels(path)


def test_any_flipped_bit_of_a_png_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(GREY))
    data = path.read_bytes()
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(DataError, match=r"a\.png: "):
            read_array(path)


def test_a_picture_is_read_as_the_format_that_its_ending_says(tmp_path: Path) -> None:
    for ending, kind in ((".png", "JPEG"), (".bmp", "PNG"), (".jpg", "PNG")):
        path = saved(tmp_path / f"a{ending}", Image.fromarray(GREY), format=kind)
        with pytest.raises(DataError, match=f"a{ending}: (is no|does not begin as a) "):
            read_channels(path)


def test_an_animation_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(GREY), Image.fromarray(GREY + 1)]
    path = saved(tmp_path / "a.png", frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="is animated; save the frame that is meant"):
        read_channels(path)


def test_colours_of_print_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (5, 4)))
    with pytest.raises(DataError, match="has CMYK colours; save it in grey or in RGB"):
        read_channels(path)


def test_a_picture_that_announces_too_much_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", (60000, 60000), 8, 0, [bytes(5)])
    for read in (read_channels, channel_counts):
        with pytest.raises(DataError, match="announces 3600000000 bytes; more than can be meant"):
            read(path)


@pytest.mark.parametrize(("ending", "place", "order"), [(".bmp", 18, "<II"), (".jpg", 0, ">HH")])
def test_a_small_file_that_announces_a_huge_picture_is_refused_before_it_is_decoded(
    tmp_path: Path, ending: str, place: int, order: str
) -> None:
    path = saved(tmp_path / f"a{ending}", Image.fromarray(COLOUR))
    data = bytearray(path.read_bytes())
    place = place or data.index(b"\xff\xc0") + 5
    data[place : place + struct.calcsize(order)] = struct.pack(order, 60000, 60000)
    path.write_bytes(data)
    with pytest.raises(DataError, match="announces 10800000000 bytes; more than can be meant"):
        read_channels(path)


def test_the_best_that_png_can_shrink_is_no_bomb(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("L", (3000, 2000)), optimize=True)
    assert read_array(path)[0].shape == (1, 2000, 3000)


def test_pixels_that_end_too_early_are_refused(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", (4, 5), 8, 0, [bytes(5)])
    with pytest.raises(DataError, match="6 bytes of pixels instead of 24"):
        read_channels(path)


def test_a_turned_photograph_is_taken_as_stored_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exif = Image.Exif()
    exif[274] = 6
    path = saved(tmp_path / "a.jpg", Image.fromarray(COLOUR), exif=exif)
    with caplog.at_level(logging.WARNING):
        assert read_channels(path)[0].shape == (3, 1, 4, 5)
    assert "its pixels are taken as they are stored" in caplog.text


@pytest.mark.parametrize("shape", [(1, 1), (4, 5), (9, 17), (3, 2)])
def test_interlaced_pixels_are_counted_pass_by_pass(tmp_path: Path, shape: tuple[int, int]) -> None:
    height, width = shape
    places = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2))  # fmt: skip
    pixels = np.arange(height * width, dtype=np.uint8).reshape(shape)
    parts = [pixels[y::dy, x::dx] for x, y, dx, dy in places]
    rows = [b"\0" + row.tobytes() for part in parts if part.size for row in part]
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    for stored, whole in ((rows, True), (rows[:-1], False)):
        data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(stored)))
        path = tmp_path / "a.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b""))
        if whole:
            np.testing.assert_array_equal(read_array(path)[0][0], pixels)
        else:
            with pytest.raises(DataError, match="bytes of pixels instead of"):
                read_array(path)


def test_comments_in_a_file_are_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    rows = [bytes(row) for row in GREY]
    png(path, (4, 5), 8, 0, rows, chunk(b"tEXt", b"made\0by hand"))
    path.write_bytes(path.read_bytes() + b"and more")
    np.testing.assert_array_equal(read_array(path)[0][0], GREY)
    stream = io.BytesIO(path.read_bytes())
    np.testing.assert_array_equal(np.asarray(Image.open(stream)), GREY)
