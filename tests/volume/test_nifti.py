import gzip
import logging
import math
import time
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from nnseg.errors import DataError, MissingError
from nnseg.volume import (
    Geometry,
    nifti,
    read_array,
    read_image,
    read_segmentation,
    simple_geometry,
    write,
)

SHAPE = (3, 4, 5)
SPACING = (3.0, 2.0, 1.0)
LABEL = np.arange(60, dtype=np.int16).reshape(SHAPE)

DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, UNITS, QFORM, SFORM, QUATERN, QOFFSET, SROW = (
    70, 76, 108, 112, 123, 252, 254, 256, 268, 280,
)  # fmt: skip


def made(path: Path, values: NDArray[Any] = LABEL, geometry: Geometry | None = None) -> Path:
    write(path, values, geometry or simple_geometry(SHAPE, SPACING))
    return path


def poked(folder: Path, offset: int, value: Any, kind: str = "<f4") -> Path:
    """A .nii file with one header field overwritten."""
    path = made(folder / "poked.nii")
    data = bytearray(path.read_bytes())
    field = np.array(value, kind).tobytes()
    data[offset : offset + len(field)] = field
    path.write_bytes(data)
    return path


def test_a_file_is_x_first_and_an_array_z_first(tmp_path: Path) -> None:
    import nibabel

    seen: Any = nibabel.load(made(tmp_path / "a.nii.gz"))
    assert seen.shape == (5, 4, 3)
    assert np.asarray(seen.dataobj)[4, 2, 1] == LABEL[1, 2, 4]
    assert seen.header.get_zooms() == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("qform", "sform"), [(1, 0), (0, 1), (0, 0), (2, 4), (1, 3)], ids=lambda code: str(code)
)
def test_the_grid_fields_of_a_nifti_file_are_repeated_exactly(
    tmp_path: Path, qform: int, sform: int
) -> None:
    """They may contradict each other; whoever reads the result must see what they saw before."""
    path = made(tmp_path / "a.nii")
    data = bytearray(path.read_bytes())
    for offset, value, kind in (
        (QFORM, qform, "<i2"),
        (SFORM, sform, "<i2"),
        (QUATERN, (0.1, 0.2, 0.3), "<f4"),
        (QOFFSET, (7.5, -3.25, 11.0), "<f4"),
        (SROW, (0.98, 0.1, 0, 5, -0.1, 1.96, 0.2, 6, 0, -0.2, 2.95, 7), "<f4"),
        (PIXDIM, (-1, 1, 2, 3), "<f4"),
    ):
        field = np.array(value, kind).tobytes()
        data[offset : offset + len(field)] = field
    path.write_bytes(data)
    array, geometry = read_segmentation(path)
    write(tmp_path / "b.nii", array, geometry)
    grid = slice(PIXDIM, PIXDIM + 16), slice(QFORM, SROW + 48)
    copy = (tmp_path / "b.nii").read_bytes()
    assert [copy[part] for part in grid] == [bytes(data[part]) for part in grid]


def test_qform_places_the_voxels_where_sform_is_unset_and_sform_where_both_are_set(
    tmp_path: Path,
) -> None:
    path = poked(tmp_path, QOFFSET, 50.0)
    assert read_array(path)[1].affine[0][3] == 0
    data = bytearray(path.read_bytes())
    data[SFORM : SFORM + 2] = b"\0\0"
    path.write_bytes(data)
    assert read_array(path)[1].affine[0][3] == 50


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_fewer_bytes_than_the_header_announces_are_refused_with_both_counts(
    tmp_path: Path, ending: str
) -> None:
    data = made(tmp_path / "whole.nii").read_bytes()[:-10]
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(data) if ending == ".nii.gz" else data)
    with pytest.raises(DataError, match="holds 462 bytes where its header announces 472"):
        read_image([path])


def test_any_changed_byte_of_a_compressed_file_is_refused_or_changes_nothing(
    tmp_path: Path,
) -> None:
    """The ways to say so are many: a deflate stream may break off anywhere."""
    path = made(tmp_path / "a.nii.gz")
    data, geometry = path.read_bytes(), read_array(path)[1]
    refused = 0
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x44]) + data[place + 1 :])
        try:
            array, found = read_array(path)
        except DataError:
            refused += 1
            continue
        np.testing.assert_array_equal(array, LABEL)
        assert found == geometry
    assert refused > len(data) - 10


def test_bytes_after_the_voxels_are_no_fault(tmp_path: Path) -> None:
    data = made(tmp_path / "whole.nii").read_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(data[:100]) + gzip.compress(data[100:] + b"rest") + b"\0\0\0")
    np.testing.assert_array_equal(read_image([path]).image[0], LABEL)


def test_a_4d_file_is_refused_unless_its_last_axis_is_one(tmp_path: Path) -> None:
    import nibabel

    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 4, 3, 2), np.int16), np.eye(4)), path)
    with pytest.raises(DataError, match=r"4 dimensions \(5, 4, 3, 2\).* split it"):
        read_image([path])
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 4, 3, 1), np.int16), np.eye(4)), path)
    assert read_image([path]).image.shape == (1, 3, 4, 5)


def test_complex_and_coloured_voxels_are_refused(tmp_path: Path) -> None:
    import nibabel

    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 4, 3), np.complex64), np.eye(4)), path)
    with pytest.raises(DataError, match="voxels of type complex64"):
        read_image([path])
    colour = np.zeros((5, 4, 3), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nibabel.save(nibabel.Nifti1Image(colour, np.eye(4)), path)
    with pytest.raises(DataError, match="only real numbers"):
        read_image([path])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.0, r"spacing is \(3, 2, 0\) mm"),
        (1e-9, r"spacing is \(3, 2, 1e-09\) mm"),
        (5000.0, r"spacing is \(3, 2, 5000\) mm"),
        (np.nan, "the header's pixdim is not finite"),
        (np.inf, "the header's pixdim is not finite"),
    ],
)
def test_a_spacing_that_cannot_be_meant_is_refused(
    tmp_path: Path, value: float, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_image([poked(tmp_path, PIXDIM + 4, value)])


@pytest.mark.parametrize(
    ("offset", "value", "kind", "message"),
    [
        (SROW, np.nan, "<f4", "header's srow is not finite"),
        (SROW, 0.0, "<f4", "affine cannot be inverted"),
        (QOFFSET, np.inf, "<f4", "header's qoffset is not finite"),
        (VOX_OFFSET, np.nan, "<f4", "header's vox_offset is nan"),
        (VOX_OFFSET, -5.0, "<f4", r"header's vox_offset is -5\.0"),
        (VOX_OFFSET, 0.0, "<f4", "vox_offset is 0, but the header alone takes the first 352 bytes"),
        (VOX_OFFSET, 351.0, "<f4", "vox_offset is 351, but the header alone takes"),
        (UNITS, 7, "<u1", "xyzt_units is 7; not a unit of length"),
        (42, (32000, 32000, 32000), "<i2", "more than can be meant"),
        (DATATYPE, 64, "<i2", "is not a NIfTI file"),
    ],
)
def test_a_header_that_cannot_be_meant_is_refused(
    tmp_path: Path, offset: int, value: Any, kind: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_image([poked(tmp_path, offset, value, kind)])


def test_voxels_within_a_header_of_nifti_2_are_refused(tmp_path: Path) -> None:
    import nibabel

    path = tmp_path / "a.nii"
    values = np.ascontiguousarray(LABEL.transpose(2, 1, 0))
    nibabel.save(nibabel.Nifti2Image(values, np.eye(4)), path)
    data = bytearray(path.read_bytes())
    assert int.from_bytes(data[168:176], "little") == 544
    data[168:176] = (352).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"vox_offset is 352, but the header alone takes .* 544"):
        read_array(path)


@pytest.mark.parametrize(
    ("offset", "value", "kind", "message"),
    [
        (500, 258, "<i4", "xyzt_units is 258; not a unit of length"),  # its lowest bits are mm
        (500, -254, "<i4", "xyzt_units is -254; not a unit of length"),
        (376, 1e300, "<f8", r"header's qoffset has 1e\+300; more than 1e\+30 cannot be meant"),
        (392, -1e31, "<f8", r"header's qoffset has -1e\+31"),
        (104, 1e300, "<f8", r"header's pixdim has 1e\+300"),
        (424, 1e39, "<f8", r"header's srow has 1e\+39"),
        (352, 1e300, "<f8", r"header's quatern has 1e\+300"),
    ],
)
def test_what_nifti_2_holds_and_no_result_could_is_refused_where_it_is_read(
    tmp_path: Path, offset: int, value: float, kind: str, message: str
) -> None:
    path = tmp_path / "a.nii"
    values = np.ascontiguousarray(LABEL.transpose(2, 1, 0))
    image = nibabel.Nifti2Image(values, np.diag([1, 2, 3, 1]))
    image.header.set_qform(np.diag([1, 2, 3, 1]), 1)
    nibabel.save(image, path)
    data = bytearray(path.read_bytes())
    field = np.array(value, kind).tobytes()
    data[offset : offset + len(field)] = field
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_array(path)


def test_units_of_nifti_2_that_also_tell_time_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    image = nibabel.Nifti2Image(np.ascontiguousarray(LABEL.transpose(2, 1, 0)), np.eye(4))
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)
    array, geometry = read_array(path)
    write(tmp_path / "b.nii", array, geometry)
    seen: Any = nibabel.load(tmp_path / "b.nii")
    assert seen.header.get_xyzt_units() == ("mm", "sec")


@pytest.mark.parametrize("qfac", [1.0, 0.0])  # nibabel corrects a header with 0
def test_a_quaternion_that_is_no_rotation_is_refused(tmp_path: Path, qfac: float) -> None:
    path = poked(tmp_path, SFORM, 0, "<i2")
    data = bytearray(path.read_bytes())
    data[QUATERN : QUATERN + 4] = np.array(5, "<f4").tobytes()
    data[PIXDIM : PIXDIM + 4] = np.array(qfac, "<f4").tobytes()
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"quatern is .5, 0, 0., longer than 1|is not a NIfTI file"):
        read_array(path)


def sheared(degrees: float, *, state_planes: bool) -> tuple[float, ...]:
    """An srow whose slices are piled up aslant; `state_planes` keeps their planes 3 mm apart."""
    angle = math.radians(degrees)
    length = 3 / math.cos(angle) if state_planes else 3
    along = (length * math.sin(angle), length * math.cos(angle))
    return (1, 0, 0, 0, 0, 2, along[0], 0, 0, 0, along[1], 0)


@pytest.mark.parametrize("state_planes", [True, False])
def test_slices_of_a_tilted_gantry_are_accepted_and_steeper_ones_refused(
    tmp_path: Path, state_planes: bool
) -> None:
    path = poked(tmp_path, SROW, sheared(29.5, state_planes=state_planes))
    assert read_array(path)[1].spacing == SPACING
    path = poked(tmp_path, SROW, sheared(45, state_planes=state_planes))
    with pytest.raises(DataError, match="axes of the header's srow meet at 45 degrees; more than"):
        read_array(path)


@pytest.mark.parametrize("axis", range(3))
def test_spacings_that_contradict_each_other_are_refused(tmp_path: Path, axis: int) -> None:
    field = PIXDIM + 4 * (axis + 1)
    for factor in (0.96, 1.04):  # no more than a program may round
        poked(tmp_path, field, factor * (axis + 1))
        read_array(tmp_path / "poked.nii")
    for factor in (0.94, 1.06, 5.0):
        poked(tmp_path, field, factor * (axis + 1))
        with pytest.raises(DataError, match=r"states a spacing of \(.*\), but its srow one of "):
            read_array(tmp_path / "poked.nii")


def test_an_sform_that_leads_to_an_atlas_may_scale_where_a_qform_has_the_spacing(
    tmp_path: Path,
) -> None:
    path = poked(tmp_path, SFORM, 4, "<i2")
    data = bytearray(path.read_bytes())
    data[PIXDIM + 4 : PIXDIM + 8] = np.array(1.5, "<f4").tobytes()
    path.write_bytes(data)
    assert read_array(path)[1].spacing == (3.0, 2.0, 1.5)
    data[QFORM : QFORM + 2] = b"\0\0"
    path.write_bytes(data)
    with pytest.raises(DataError, match="but its srow one of"):
        read_array(path)


def test_how_thick_a_single_slice_is_contradicts_nothing(tmp_path: Path) -> None:
    path = made(tmp_path / "a.nii", LABEL[:1], simple_geometry((1, 4, 5), SPACING))
    data = bytearray(path.read_bytes())
    data[PIXDIM + 12 : PIXDIM + 16] = np.array(8, "<f4").tobytes()
    path.write_bytes(data)
    assert read_array(path)[1].spacing == (8.0, 2.0, 1.0)


def test_other_units_than_mm_are_honoured_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        _, geometry = read_array(poked(tmp_path, UNITS, 3, "<u1"))  # micrometres
    assert geometry.spacing == pytest.approx((0.003, 0.002, 0.001))
    assert geometry.affine[2][2] == pytest.approx(0.003)
    assert "not in mm" in caplog.text


def test_slope_and_intercept_of_the_header_are_applied_and_not_repeated(tmp_path: Path) -> None:
    path = poked(tmp_path, SLOPE, (2.0, -10.0))
    array, geometry = read_array(path)
    np.testing.assert_array_equal(array, LABEL * 2 - 10)
    write(path, array.astype(np.int16), geometry)
    np.testing.assert_array_equal(read_array(path)[0], LABEL * 2 - 10)


def test_big_endian_and_nifti_2_files_are_read(tmp_path: Path) -> None:
    import nibabel

    path = tmp_path / "a.nii.gz"
    values = np.ascontiguousarray(LABEL.transpose(2, 1, 0))
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        nibabel.save(kind(values, np.eye(4)), path)
        np.testing.assert_array_equal(read_image([path]).image[0], LABEL)
        swapped = kind(values, np.eye(4)).header.as_byteswapped(">")
        swapped.set_data_shape(values.shape)
        data = swapped.binaryblock + b"\0\0\0\0" + values.astype(">i2").tobytes(order="F")
        swapped["vox_offset"] = len(swapped.binaryblock) + 4
        data = swapped.binaryblock + data[len(swapped.binaryblock) :]
        path.write_bytes(gzip.compress(data))
        array, _ = read_array(path)
        assert array.dtype.isnative
        np.testing.assert_array_equal(array, LABEL)


def test_a_header_that_announces_more_than_gzip_can_hold_is_refused_before_it_is_read(
    tmp_path: Path,
) -> None:
    zeros = np.zeros((64, 128, 128), np.uint8)  # the best that gzip can do
    path = made(tmp_path / "a.nii.gz", zeros, simple_geometry(zeros.shape, SPACING))
    data = bytearray(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(data, 9))
    assert read_array(path)[0].shape == zeros.shape
    data[42:48] = np.array([2000, 2000, 2000], "<i2").tobytes()
    path.write_bytes(gzip.compress(data, 9))
    with pytest.raises(DataError, match="announces 8000000352 bytes; more than can be meant by a"):
        read_array(path)


def test_a_cut_off_plain_file_is_refused_before_room_is_made_for_it(tmp_path: Path) -> None:
    path = poked(tmp_path, 42, (3000, 3000, 3000), "<i2")
    tracemalloc.start()
    with pytest.raises(DataError, match="holds 472 bytes where its header announces 54000000352"):
        read_array(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["Nifti1Pair", "Nifti2Pair"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_pair_of_any_kind_is_read(tmp_path: Path, kind: str, packed: bool) -> None:
    import nibabel

    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    pair = getattr(nibabel, kind)(np.ascontiguousarray(LABEL.transpose(2, 1, 0)), affine)
    pair.header.set_xyzt_units("mm")
    end = ".gz" if packed else ""
    nibabel.save(pair, tmp_path / f"a.img{end}")
    array, geometry = read_array(tmp_path / f"a.hdr{end}")
    np.testing.assert_array_equal(array, LABEL)
    np.testing.assert_allclose(geometry.affine, affine)


def test_a_plain_header_may_have_packed_voxels(tmp_path: Path) -> None:
    path = made(tmp_path / "a.hdr")
    voxels = path.with_suffix(".img")
    (tmp_path / "a.img.gz").write_bytes(gzip.compress(voxels.read_bytes()))
    with pytest.raises(DataError, match=r"a\.img and a\.img\.gz both claim to be its voxels"):
        read_array(path)
    voxels.unlink()
    np.testing.assert_array_equal(read_array(path)[0], LABEL)


def test_a_header_without_its_voxels_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "a.hdr")
    path.with_suffix(".img").unlink()
    with pytest.raises(MissingError, match=r"a\.hdr: a\.img, its voxels, does not exist"):
        read_array(path)


def test_voxels_that_were_cut_off_are_named_by_their_own_file(tmp_path: Path) -> None:
    path = made(tmp_path / "a.hdr")
    voxels = path.with_suffix(".img")
    voxels.write_bytes(voxels.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"a\.img: holds 110 bytes where its header announces 120"):
        read_array(path)


def test_an_analyze_header_is_refused(tmp_path: Path) -> None:
    import nibabel

    image = nibabel.AnalyzeImage(np.zeros((5, 4, 3), np.int16), np.eye(4))
    nibabel.save(image, tmp_path / "a.img")
    with pytest.raises(DataError, match="is an Analyze header, which does not say where left"):
        read_array(tmp_path / "a.hdr")


def test_a_pair_that_is_written_half_has_no_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path / "a.hdr")
    whole = nifti.write_whole

    def only_voxels(file: Path, data: bytes) -> None:
        if file == path:
            raise OSError
        whole(file, data)

    monkeypatch.setattr(nifti, "write_whole", only_voxels)
    with pytest.raises(OSError, match=r"^$"):
        made(path, LABEL + 1)
    assert [file.name for file in tmp_path.iterdir()] == ["a.img"]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".hdr", ".hdr.gz"])
@pytest.mark.parametrize("length", [1, 8, 9, 1000])
def test_a_comment_is_an_extension_of_the_header_that_nobody_stumbles_over(
    tmp_path: Path, ending: str, length: int
) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    geometry = simple_geometry(array.shape, (3.0, 2.0, 1.0))
    path, plain = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    comment = "ä" + "x" * (length - 1)
    nifti.write(path, array, geometry, comment)
    nifti.write(plain, array, geometry)
    found, where = nifti.read(path)
    assert np.array_equal(found, array)
    assert where == nifti.read(plain)[1]
    image = nibabel.load(path)
    (extension,) = image.header.extensions
    assert extension.get_code() == 6
    assert extension.text.rstrip("\0") == comment
    assert np.array_equal(np.asanyarray(image.dataobj), array.transpose(2, 1, 0))
    if ending.startswith(".nii"):
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), array)


def test_a_comment_stands_in_a_large_header_too(tmp_path: Path) -> None:
    array = np.zeros((1, 2, 32768), dtype=np.uint8)
    nifti.write(tmp_path / "a.nii", array, simple_geometry(array.shape, (1.0, 1.0, 1.0)), "names")
    image = nibabel.load(tmp_path / "a.nii")
    assert image.header["sizeof_hdr"] == 540
    assert image.header.extensions[0].text.rstrip("\0") == "names"
    assert np.array_equal(nifti.read(tmp_path / "a.nii")[0], array)


def long(path: Path, after: int, *, members: int = 1) -> Path:
    """A packed image that goes on after its voxels with so many zeros."""
    head, rest = gzip.decompress(made(path).read_bytes()), bytes(after)
    parts = [head + rest] if members == 1 else [head, rest]
    path.write_bytes(b"".join(gzip.compress(part, 1) for part in parts))
    return path


@pytest.mark.parametrize("members", [1, 2])
def test_what_follows_the_voxels_may_be_as_long_as_a_block(tmp_path: Path, members: int) -> None:
    path = long(tmp_path / "a.nii.gz", nifti.MOST_AFTER, members=members)
    assert np.array_equal(nifti.read(path)[0], LABEL)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), LABEL)
    path = long(path, nifti.MOST_AFTER + 1, members=members)
    with pytest.raises(DataError, match=r"a\.nii\.gz: goes on for more than 1048576 bytes after"):
        nifti.read(path)


def test_of_a_long_rest_little_is_unpacked(tmp_path: Path) -> None:
    path = long(tmp_path / "a.nii.gz", 2**28)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="goes on for more than"):
            nifti.read(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("after", [bytes(2**22), gzip.compress(b"") * 10**5])
def test_a_file_that_unpacks_to_nothing_more_is_not_read_to_its_end(
    tmp_path: Path, after: bytes
) -> None:
    path = made(tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes() + after)
    with pytest.raises(DataError, match="goes on for more than"):
        nifti.read(path)


def test_a_few_zeros_fill_a_file_up_and_its_end_is_still_checked(tmp_path: Path) -> None:
    path = made(tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes() + bytes(512))
    assert np.array_equal(nifti.read(path)[0], LABEL)
    data = bytearray(long(path, 1000).read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="is damaged"):
        nifti.read(path)


def test_of_a_plain_file_what_follows_the_voxels_is_not_read(tmp_path: Path) -> None:
    path = made(tmp_path / "a.nii")
    with open(path, "ab") as file:
        file.truncate(2**36)  # takes no room on the disk
    began = time.process_time()
    assert np.array_equal(nifti.read(path)[0], LABEL)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".hdr"])
def test_what_nibabel_finds_odd_in_a_header_is_logged_as_ours_with_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    path = made(tmp_path / f"a{ending}")
    plain = path if not ending.endswith(".gz") else None
    data = bytearray(path.read_bytes() if plain else gzip.decompress(path.read_bytes()))
    data[PIXDIM : PIXDIM + 4] = np.array(3, "<f4").tobytes()  # neither 1 nor -1
    path.write_bytes(data if plain else gzip.compress(data))
    caplog.set_level(logging.INFO)
    nifti.read(path)
    assert {entry.name for entry in caplog.records} == {"nnseg.volume.nifti"}
    assert str(path) in caplog.text
    assert all(entry.levelno < logging.WARNING for entry in caplog.records)
    logging.getLogger("nibabel.global").warning("of somebody else's")
    assert caplog.records[-1].name == "nibabel.global"
