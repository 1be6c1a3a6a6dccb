import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from nnseg.errors import DataError
from nnseg.volume import (
    SLICE_OF_2D,
    channel_counts,
    flat_geometry,
    read_array,
    read_channels,
    read_image,
    read_segmentation,
    simple_geometry,
    write,
)

STACK = np.arange(60, dtype=np.uint16).reshape(3, 4, 5) * 1000
SPACING = (50.0, 4.6, 4.5)


def saved(path: Path, values: NDArray[Any] = STACK, **options: Any) -> Path:
    tifffile.imwrite(path, values, **({"photometric": "minisblack"} | options))
    return path


def side(path: Path, spacing: Any) -> None:
    path.write_text(json.dumps({"spacing": spacing, "unit": "nm"}))


@pytest.mark.parametrize("name", ["case_0000.tif", "case.tif", "case_0000.tiff"])
def test_the_spacing_lies_beside_the_file_under_the_name_of_the_case(
    tmp_path: Path, name: str
) -> None:
    path = saved(tmp_path / name)
    side(tmp_path / "case.json", SPACING)
    array, geometry = read_array(path)
    np.testing.assert_array_equal(array, STACK)
    assert array.dtype == np.uint16
    assert geometry == simple_geometry((3, 4, 5), SPACING)


def test_a_label_map_called_like_a_channel_has_its_own_spacing(tmp_path: Path) -> None:
    path = saved(tmp_path / "case_0000.tif")
    side(tmp_path / "case.json", (1, 1, 1))
    side(tmp_path / "case_0000.json", SPACING)
    assert read_array(path)[1].spacing == SPACING


def test_a_stack_without_a_spacing_is_1_mm_wide_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path / "a.tif")
    with caplog.at_level(logging.WARNING):
        assert read_array(path)[1] == simple_geometry((3, 4, 5), (1.0, 1.0, 1.0))
    assert "no a.json says its spacing; 1 mm is taken" in caplog.text


def test_a_flat_file_is_2d_and_with_three_spacings_one_slice(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", STACK[0])
    array, geometry = read_array(path)
    np.testing.assert_array_equal(array, STACK[:1])
    assert geometry == flat_geometry((4, 5), (1.0, 1.0))
    side(tmp_path / "a.json", (0.2, 0.3))
    assert read_array(path)[1].spacing == (SLICE_OF_2D * 0.3, 0.2, 0.3)
    side(tmp_path / "a.json", SPACING)
    assert read_array(path)[1] == simple_geometry((1, 4, 5), SPACING)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1, 2, 3]", 'has no "spacing"; write'),
        ('{"spacings": [1, 2, 3]}', 'has no "spacing"; write'),
        ('{"spacing": [1, 2]}', "spacing has 2 entries; a.tif needs z, y and x in mm"),
        ('{"spacing": [1, "2", 3]}', "spacing.1: input should be a valid number"),
        ('{"spacing": [1, 0, 3]}', r"spacing is \(1, 0, 3\) mm"),
        ('{"spacing": [1, NaN, 3]}', r"is not valid JSON \(NaN"),
    ],
)
def test_a_spacing_that_makes_no_sense_is_refused_by_its_file(
    tmp_path: Path, text: str, message: str
) -> None:
    path = saved(tmp_path / "a.tif")
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=rf"a\.json: {message}"):
        read_array(path)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint32, np.float16, np.float32, np.bool_])
@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"bigtiff": True}, {"tile": (16, 16)}]
)
def test_values_of_every_type_are_read(tmp_path: Path, kind: type, options: dict[str, Any]) -> None:
    path = saved(tmp_path / "a.tif", (STACK // 1000).astype(kind), **options)
    side(tmp_path / "a.json", SPACING)
    np.testing.assert_array_equal(read_image([path]).image[0], (STACK // 1000).astype(kind))


@pytest.mark.parametrize(
    ("axes", "shape", "options"),
    [
        ("YXS", (4, 5, 3), {"photometric": "rgb"}),
        ("SYX", (3, 4, 5), {"photometric": "rgb", "planarconfig": "separate"}),
        ("ZYXS", (2, 4, 5, 3), {"photometric": "rgb", "metadata": {"axes": "ZYXS"}}),
        ("ZCYX", (2, 3, 4, 5), {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    ],
)
def test_an_axis_of_channels_or_samples_holds_the_channels(
    tmp_path: Path, axes: str, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = saved(tmp_path / "a_0000.tif", values, **options)
    side(tmp_path / "a.json", SPACING)
    assert channel_counts(path) == (3,)
    array, geometry = read_channels(path, 3)
    place = next(place for place, name in enumerate(axes) if name in "CS")
    expected = np.moveaxis(values, place, 0)
    np.testing.assert_array_equal(array.reshape(expected.shape), expected)
    assert geometry.shape == (2 if "Z" in axes else 1, 4, 5)
    with pytest.raises(DataError, match="holds 3 values a pixel where 1 should be"):
        read_segmentation(path)


def test_channels_are_slices_where_one_channel_is_wanted(tmp_path: Path) -> None:
    """Programs write so when nobody tells them what an axis is."""
    path = saved(tmp_path / "a.tif", STACK, imagej=True)
    side(tmp_path / "a.json", SPACING)
    assert channel_counts(path) == (1, 3)
    np.testing.assert_array_equal(read_segmentation(path)[0], STACK)
    np.testing.assert_array_equal(read_channels(path, 3)[0][:, 0], STACK)


def test_alpha_counts_if_asked_for_and_must_be_opaque_if_not(tmp_path: Path) -> None:
    values = np.full((4, 5, 4), 255, np.uint8)
    path = saved(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    assert channel_counts(path) == (3, 4)
    assert len(read_channels(path)[0]) == 4
    assert len(read_channels(path, 3)[0]) == 3
    values[1, 2, 3] = 0
    saved(path, values, photometric="rgb", extrasamples=["unassalpha"])
    with pytest.raises(DataError, match="1 pixels are not opaque"):
        read_channels(path, 3)
    saved(path, values, photometric="rgb", extrasamples=["unspecified"])
    assert channel_counts(path) == (4,)


def test_a_film_of_volumes_and_a_bag_of_images_are_refused(tmp_path: Path) -> None:
    film = saved(tmp_path / "film.tif", np.zeros((2, 3, 4, 5), np.uint8))
    with pytest.raises(DataError, match=r"has the axes QQYX of \(2, 3, 4, 5\); save a stack"):
        read_array(film)
    bag = tmp_path / "bag.tif"
    with tifffile.TiffWriter(bag) as file:
        file.write(STACK[0], metadata=None)
        file.write(STACK[0, :2], metadata=None)
    with pytest.raises(DataError, match="holds 2 images of different sizes"):
        read_array(bag)


def test_complex_voxels_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", STACK.astype(np.complex64))
    with pytest.raises(DataError, match="has voxels of type complex64; only real numbers"):
        read_array(path)


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"imagej": True}, {"ome": True}, {"bigtiff": True}]
)
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.6, 0.97])
def test_a_file_cut_off_anywhere_is_refused(
    tmp_path: Path, options: dict[str, Any], part: float
) -> None:
    noise = np.random.default_rng(0).integers(0, 999, (13, 24, 25)).astype(np.uint16)
    path = saved(tmp_path / "a.tif", noise, **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DataError, match=r"a\.tif: "):
        read_array(path)


def relinked(path: Path, page: int, target: int) -> Path:
    """The file with another offset for the page that follows `page`."""
    data = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        start = file.pages[page].offset
    place = start + 2 + 12 * int.from_bytes(data[start : start + 2], "little")
    path.write_bytes(data[:place] + target.to_bytes(4, "little") + data[place + 4 :])
    return path


def test_pages_in_a_circle_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", STACK, metadata=None)
    first = int.from_bytes(path.read_bytes()[4:8], "little")
    with pytest.raises(DataError, match="is damaged"):
        read_array(relinked(path, 2, first))


def test_pages_that_nothing_leads_to_are_missed(tmp_path: Path) -> None:
    path = relinked(saved(tmp_path / "a.tif", STACK, compression="zlib"), 1, 0)
    with pytest.raises(DataError, match="its description leaves out some of its pages"):
        read_array(path)


def test_flipped_bits_of_deflated_voxels_are_found(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", compression="zlib")
    with tifffile.TiffFile(path) as file:
        (start,), (length,) = file.pages[1].dataoffsets, file.pages[1].databytecounts  # type: ignore[union-attr]
    data = path.read_bytes()
    for place in range(start, start + length):
        flipped = bytearray(data)
        flipped[place] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(DataError, match="is damaged"):
            read_array(path)


def test_a_header_that_announces_too_much_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", STACK[0], compression="zlib", metadata=None)
    data = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags  # type: ignore[union-attr]
        places = [tags[name].valueoffset for name in ("ImageWidth", "ImageLength", "RowsPerStrip")]
    for place in places:
        data = data[:place] + (60000).to_bytes(2, "little") + data[place + 2 :]
    path.write_bytes(data)
    with pytest.raises(DataError, match="announces 7200000000 bytes; more than can be meant"):
        read_array(path)


def test_parts_that_were_never_written_are_no_zeros(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", STACK[0], compression="zlib", metadata=None)
    data = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].tags["StripByteCounts"].valueoffset  # type: ignore[union-attr]
    path.write_bytes(data[:place] + b"\0\0" + data[place + 2 :])
    with pytest.raises(DataError, match="some of its voxels were never written"):
        read_array(path)


@pytest.mark.parametrize("name", ["tiff_lzw", "packbits"])
def test_compressions_of_other_programs_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.tif"
    side(tmp_path / "a.json", SPACING)
    pages = [Image.fromarray(page) for page in STACK]
    pages[0].save(path, save_all=True, append_images=pages[1:], compression=name)
    np.testing.assert_array_equal(read_array(path)[0], STACK)


def test_a_compression_that_nothing_here_knows_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(STACK[0]).save(path, compression="tiff_lzw")

    def refuse(*_: Any) -> None:
        raise OSError("decoder not available")

    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile", refuse)
    message = r"its LZW compression cannot be unpacked \(decoder not available\); save it with"
    with pytest.raises(DataError, match=message):
        read_array(path)


def test_a_colour_table_changes_no_value(tmp_path: Path) -> None:
    table = np.zeros((3, 256), np.uint16)
    path = saved(
        tmp_path / "a.tif", STACK[0].astype(np.uint8), photometric="palette", colormap=table
    )
    np.testing.assert_array_equal(read_channels(path, 1)[0][0, 0], STACK[0].astype(np.uint8))


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5), (3, 4, 3), (4, 4, 4)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_label_maps_come_back_with_their_spacing(
    tmp_path: Path, shape: tuple[int, int, int], kind: type
) -> None:
    labels = (np.arange(np.prod(shape)) % 7).reshape(shape).astype(kind)
    geometry = simple_geometry(shape, SPACING)
    path = tmp_path / "a.tif"
    write(path, labels, geometry)
    array, found = read_segmentation(path)
    np.testing.assert_array_equal(array, labels)
    assert (array.dtype, found) == (labels.dtype, geometry)
    assert json.loads((tmp_path / "a.json").read_text()) == {"spacing": list(SPACING)}
    first = path.read_bytes()
    write(path, labels, geometry)
    assert path.read_bytes() == first


def test_a_flat_label_map_comes_back_flat(tmp_path: Path) -> None:
    geometry = flat_geometry((4, 5), (0.2, 0.3))
    write(tmp_path / "a.tif", STACK[:1], geometry)
    array, found = read_segmentation(tmp_path / "a.tif")
    np.testing.assert_array_equal(array, STACK[:1])
    assert found == geometry
