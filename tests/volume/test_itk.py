import gzip
import logging
import re
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from nnseg.errors import DataError
from nnseg.volume import read_array, read_image, simple_geometry, write

SHAPE = (3, 4, 5)
SPACING = (3.0, 2.0, 1.0)
LABEL = np.arange(60, dtype=np.int16).reshape(SHAPE)


def test_a_colour_nrrd_is_refused(tmp_path: Path) -> None:
    import SimpleITK as sitk

    path = tmp_path / "a.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5, 2)), isVector=True), str(path))
    with pytest.raises(DataError, match="2 values a voxel"):
        read_image([path])


def test_a_4d_nrrd_is_refused(tmp_path: Path) -> None:
    import SimpleITK as sitk

    path = tmp_path / "a.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 5)), isVector=False), str(path))
    with pytest.raises(DataError, match="has 4 dimensions and 1 values a voxel; split it"):
        read_image([path])


def test_complex_voxels_are_refused(tmp_path: Path) -> None:
    import SimpleITK as sitk

    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5), np.complex64)), str(path))
    with pytest.raises(DataError, match=r"2 values a voxel|voxels of type complex64"):
        read_image([path])


DETACHED = [
    "data file: {}",
    "Data File: {}",
    "datafile: {}",
    " data file: {}",
    "type: short\rdata file: {}",
]


@pytest.mark.parametrize("line", DETACHED)
def test_a_nrrd_header_that_names_another_file_is_refused(tmp_path: Path, line: str) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(LABEL.tobytes())
    fields = "type: short\ndimension: 3\nsizes: 5 4 3\nencoding: raw\nendian: little\n"
    path = tmp_path / "a.nrrd"
    path.write_bytes(f"NRRD0004\n{fields}\n".encode() + LABEL.tobytes())
    np.testing.assert_array_equal(read_array(path)[0], LABEL)
    for name in (secret.name, str(secret)):
        text = f"NRRD0004\n{fields}{line.format(name)}\n\n"
        path.write_bytes(text.encode() + LABEL.tobytes())
        with pytest.raises(DataError, match=r"a\.nrrd: its header names another file"):
            read_array(path)


def test_words_like_those_of_a_detached_header_among_the_voxels_are_no_fault(
    tmp_path: Path,
) -> None:
    voxels = b"\ndata file: x\n".ljust(60, b"\0")
    values = np.frombuffer(voxels, np.uint8).reshape(SHAPE)
    fields = "type: uchar\ndimension: 3\nsizes: 5 4 3\nencoding: raw\n"
    path = tmp_path / "a.nrrd"
    path.write_bytes(f"NRRD0004\n{fields}# data file: none\n\n".encode() + voxels)
    np.testing.assert_array_equal(read_array(path)[0], values)


META = "ObjectType = Image\nNDims = 3\nDimSize = 5 4 3\nElementType = MET_SHORT\n"


@pytest.mark.parametrize(
    "ending",
    [
        "ElementDataFile = {}\nElementDataFile = LOCAL\n",
        "ElementDataFile: {}\nElementDataFile = LOCAL\n",
        " ElementDataFile = {}\nElementDataFile = LOCAL\n",
        "ElementDataFile = LOCAL\nElementDataFile = {}\n",
        "ElementDataFile = LIST\n{}\nElementDataFile = LOCAL\n",
    ],
)
def test_a_meta_image_header_that_names_another_file_is_refused(
    tmp_path: Path, ending: str
) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(LABEL.tobytes())
    path = tmp_path / "a.mha"
    path.write_bytes(f"{META}ElementDataFile = LOCAL\n".encode() + LABEL.tobytes())
    np.testing.assert_array_equal(read_array(path)[0], LABEL)
    for name in (secret.name, str(secret)):
        path.write_bytes(f"{META}{ending.format(name)}".encode() + LABEL.tobytes())
        with pytest.raises(DataError, match=r"a\.mha: its header names another file"):
            read_array(path)


@pytest.mark.parametrize(
    "axes", ["-1", "0", "5", "11", "1000", "3\nNDims = 3", "three", "3.0", "9" * 5000]
)
def test_a_meta_image_of_axes_for_which_its_reader_has_no_room_is_refused(
    tmp_path: Path, axes: str
) -> None:
    path = tmp_path / "a.mha"
    header = f"{META}ElementDataFile = LOCAL\n"
    assert "NDims = 3\n" in header
    path.write_bytes(header.replace("NDims = 3", f"NDims = {axes}").encode() + LABEL.tobytes())
    with pytest.raises(DataError, match=r"a\.mha: the header's NDims must be 2 or 3, once"):
        read_array(path)


def test_a_meta_image_without_its_voxels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    path.write_bytes(f"{META}ElementDataFile = secret.raw\n".encode())
    with pytest.raises(DataError, match="has no MetaImage header with the voxels after it"):
        read_array(path)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_header_that_announces_more_than_deflate_can_hold_is_refused(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"a{ending}"
    write(path, np.zeros((3, 4, 5), np.uint8), simple_geometry((3, 4, 5), (3.0, 2.0, 1.0)))
    path.write_bytes(path.read_bytes().replace(b"5 4 3", b"5000 400 300"))
    with pytest.raises(DataError, match="header announces 600000000 bytes; more than can be meant"):
        read_array(path)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_voxels_that_unpack_to_far_more_than_announced_are_refused(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"a{ending}"
    write(path, np.zeros((30, 40, 50), np.uint8), simple_geometry((30, 40, 50), (3.0, 2.0, 1.0)))
    path.write_bytes(path.read_bytes().replace(b"50 40 30", b"5 4 3"))
    with pytest.raises(DataError, match="unpacks to more than its header announces"):
        read_array(path)


NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 5 4 3\nencoding: raw\nendian: little\n"
RAS = "space: right-anterior-superior\n"


def headed(folder: Path, line: str) -> Path:
    """A .mha or .nrrd file with more lines in its header."""
    nrrd = line.lower().startswith("spac")
    path = folder / ("a.nrrd" if nrrd else "a.mha")
    text = f"{NRRD}{RAS}{line}\n\n" if nrrd else f"{META}{line}\nElementDataFile = LOCAL\n"
    path.write_bytes(text.replace(f"{RAS}spacings", "spacings").encode() + LABEL.tobytes())
    return path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Offset = nan 2 3", "the header's offset is 'nan 2 3'; it must be finite numbers"),
        ("Offset = abc 2 3", "the header's offset is 'abc 2 3'"),
        (" Position = 1 inf 3", "the header's position is"),
        ("Origin : 1 2 x", "the header's origin is"),
        ("ElementSpacing = -1.5 2 3", "elementspacing is '-1.5 2 3'; it must be numbers over 0"),
        ("ElementSpacing = 1 0 3", "the header's elementspacing is"),
        ("ElementSize = 1 2 nan", "the header's elementsize is"),
        ("TransformMatrix = 1 0 0 0 nan 0 0 0 1", "the header's transformmatrix is"),
        ("ElementSpacing = 1 2 3\nTransformMatrix = 2 0 0 0 1 0 0 0 1", "TransformMatrix one of "),
        ("TransformMatrix = 1 0 0 0 1 0 0.8 0 0.6", "TransformMatrix meet at 37 degrees"),
        ("spacings: 1 nan 3", "the header's spacings is '1 nan 3'; it must be numbers over 0"),
        ("Spacings: 1 -2 3", "the header's spacings is"),
        ("space directions: (1,0,0) (0,2,0) (0,4,3)", "space directions meet at 37 degrees"),
        ("space directions: none (0,2,0) (0,0,3)", "space directions lack an axis"),
        ("space directions: (1,0,0) (0,inf,0) (0,0,3)", "the header's space directions is"),
        ("space origin: (1,x,0)", "the header's space origin is"),
    ],
)
def test_a_geometry_that_cannot_be_meant_is_refused_by_its_field(
    tmp_path: Path, line: str, message: str
) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        read_array(headed(tmp_path, line))


@pytest.mark.parametrize(
    "line",
    [
        "ElementSpacing = 1 2 3\nOffset = -7 8 9e0\nTransformMatrix = 1 0 0 0 0 1 0 -1 0",
        "ElementSize = 1 2 3",
        "ElementSpacing = 1 2 3\nTransformMatrix = 1 0 0 0 1 0 0 0.4 0.9165",
        "spacings: 1 2 3",
        "space directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: (-7,8,9)",
        "space directions: (1,0,0)(0,2,0)  (0,1.2,2.749545)",
        "spacings: 1 2 3\nspacings:=nan",
    ],
)
def test_a_sound_geometry_is_taken_without_a_word(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, geometry = read_array(headed(tmp_path, line))
    assert geometry.spacing == pytest.approx((3.0, 2.0, 1.0), abs=1e-5)
    assert caplog.text == ""


@pytest.mark.parametrize("line", ["Offset = 1 2 3", "space origin: (1,2,3)"])
def test_a_header_without_a_spacing_is_said_to_be_taken_as_1_mm(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        _, geometry = read_array(headed(tmp_path, line))
    assert geometry.spacing == (1.0, 1.0, 1.0)
    assert "does not say its spacing; 1 mm is taken" in caplog.text


RAW = LABEL.astype("<i2").tobytes()
PACKED = zlib.compress(RAW)


def packed_meta(folder: Path, lines: str, voxels: bytes) -> Path:
    """A .mha file of LABEL's grid whose header says `lines` of its voxels."""
    path = folder / "a.mha"
    path.write_bytes(f"{META}{lines}ElementSpacing = 1 2 3\nElementDataFile = LOCAL\n".encode())
    with open(path, "ab") as file:
        file.write(voxels)
    return path


def packing(size: object, packed: str = "True") -> str:
    return f"CompressedData = {packed}\nCompressedDataSize = {size}\n"


def named(value: object) -> str:
    """Name a test by what is short text; bytes of voxels are none."""
    return value[:60] if isinstance(value, str) else ""


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_voxels_of_every_type_that_simpleitk_writes_are_read(
    tmp_path: Path, kind: str, packed: bool, ending: str
) -> None:
    import SimpleITK as sitk

    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(LABEL.astype(kind)), str(path), packed)
    array, _ = read_array(path)
    assert array.dtype == kind
    np.testing.assert_array_equal(array, LABEL)


@pytest.mark.parametrize(
    ("lines", "voxels"),
    [
        (packing(len(PACKED)), PACKED),
        (packing(len(PACKED), "true"), PACKED),
        (packing(len(PACKED)).replace(" =", ":"), PACKED),
        (packing(len(PACKED)).replace("\n", "\r\n"), PACKED),
        (packing(len(gzip.compress(RAW, mtime=0))), gzip.compress(RAW, mtime=0)),
        (packing(0, "False"), RAW),
        ("HeaderSize = 0\n", RAW),
        ("HeaderSize = -1\n", RAW),
    ],
    ids=named,
)
def test_a_meta_image_is_read_as_its_header_says(tmp_path: Path, lines: str, voxels: bytes) -> None:
    np.testing.assert_array_equal(read_array(packed_meta(tmp_path, lines, voxels))[0], LABEL)


HALF, MORE = zlib.compress(RAW[:60]), zlib.compress(RAW + RAW)


@pytest.mark.parametrize(
    ("lines", "voxels", "message"),
    [
        (packing(len(HALF)), HALF, "unpacks to 60 bytes of voxels where its header announces 120"),
        (packing(len(MORE)), MORE, "unpacks to more than its header announces"),
        ("CompressedData = True\n", PACKED, "the header's CompressedDataSize is nothing; "),
        (packing(0), PACKED, "the header's CompressedDataSize is 0; "),
        (packing(len(PACKED) - 9), PACKED, "save the image anew by the program that made it"),
        (packing(len(PACKED) + 9), PACKED, "it was cut off, copy it again"),
        (packing(len(PACKED)), PACKED + b"tail", "the header's CompressedDataSize is "),
        (packing("9" * 5000), PACKED, "the header's CompressedDataSize is 999"),
        (packing("many"), PACKED, "the header's CompressedDataSize is many"),
        (packing("-1"), PACKED, "CompressedDataSize at most once; repair the header"),
        (packing(5) + packing(len(PACKED)), PACKED, "the header must say CompressedData once"),
        (packing(len(HALF), "T"), HALF, "the header must say CompressedData once"),
        (packing(len(HALF), "1"), HALF, "the header must say CompressedData once"),
        (packing(len(HALF), "True indeed"), HALF, "the header must say CompressedData once"),
        (packing(len(HALF)).replace(" =", ":"), HALF, "unpacks to 60 bytes"),
        (f" {packing(len(HALF))}", HALF, "unpacks to 60 bytes"),
        ("HeaderSize = 10\n", RAW, "the header's HeaderSize must be 0 or -1; repair the header"),
        ("HeaderSize : 100\n", RAW, "the header's HeaderSize must be 0 or -1"),
        (f"HeaderSize = 10\n{packing(len(PACKED))}", PACKED, "HeaderSize must be 0 or -1"),
        ("BinaryData = False\n", b"1 " * 60, "its voxels are text (BinaryData); save them as"),
        ("", RAW[:-1], "it was cut off, copy it again"),
        ("", b"", "it was cut off, copy it again"),
        ("HeaderSize = -1\n", RAW[:60], "it was cut off, copy it again"),
    ],
    ids=named,
)
def test_a_meta_image_whose_voxels_are_not_all_there_is_refused(
    tmp_path: Path, lines: str, voxels: bytes, message: str
) -> None:
    path = packed_meta(tmp_path, lines, voxels)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        read_array(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("share", [0, 60, 119])
@pytest.mark.parametrize("encoding", ["raw", "gzip", "hex", "text"])
def test_a_nrrd_whose_voxels_are_not_all_there_is_refused(
    tmp_path: Path, encoding: str, share: int
) -> None:
    path = tmp_path / "a.nrrd"
    part = RAW[:share]
    voxels = {
        "raw": part,
        "gzip": gzip.compress(part, mtime=0),
        "hex": part.hex().encode(),
        "text": " ".join(map(str, LABEL.ravel()[: share // 2])).encode(),
    }
    header = f"{NRRD}spacings: 1 2 3\n".replace("encoding: raw", f"encoding: {encoding}")
    path.write_bytes(f"{header}\n".encode() + voxels[encoding])
    with pytest.raises(DataError, match=r"a\.nrrd: cannot be read .*; restore it"):
        read_array(path)


def test_packed_voxels_are_counted_without_room_for_all_of_them(tmp_path: Path) -> None:
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(63))
    packed += packer.compress(bytes(2**20 - 1)) + packer.flush()
    path = packed_meta(tmp_path, packing(len(packed)), packed)
    header = path.read_bytes().replace(b"5 4 3", b"1024 1024 64").replace(b"SHORT", b"UCHAR")
    path.write_bytes(header)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="unpacks to 67108863 bytes of voxels where its header"):
            read_array(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**25


@pytest.mark.parametrize(
    "line", ["TransformMatrix\0 = 1 0 0 0 nan 0 0 0 1", "space origin: (1,2,3)\0"]
)
def test_a_header_with_a_zero_byte_in_which_names_could_hide_is_refused(
    tmp_path: Path, line: str
) -> None:
    with pytest.raises(DataError, match="its header is no text, as it has a zero byte; restore it"):
        read_array(headed(tmp_path, line))
