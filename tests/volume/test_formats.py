from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from nnseg.errors import DataError, MissingError
from nnseg.volume import (
    SLICE_OF_2D,
    Geometry,
    channel_counts,
    check_writable,
    flat_geometry,
    grid_fault,
    label_ending,
    map_ending,
    read_array,
    read_channels,
    read_image,
    read_segmentation,
    read_stored,
    side_files,
    simple_geometry,
    write,
)

SHAPE = (3, 4, 5)
SPACING = (3.0, 2.0, 1.0)
LABEL = np.arange(60, dtype=np.int16).reshape(SHAPE)
FORMATS = [".nii.gz", ".nii", ".hdr", ".hdr.gz", ".nrrd", ".mha"]


@pytest.mark.parametrize("ending", FORMATS)
def test_a_link_to_nothing_is_told_from_a_path_that_does_not_exist(
    ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a{ending}"
    with pytest.raises(MissingError, match="does not exist"):
        read_array(path)
    path.symlink_to("nothing")
    with pytest.raises(DataError, match="is no file, nor a link to one; put the image there"):
        read_array(path)


def made(path: Path, values: NDArray[Any] = LABEL, geometry: Geometry | None = None) -> Path:
    write(path, values, geometry or simple_geometry(SHAPE, SPACING))
    return path


def turned(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Geometry:
    """An oblique grid: turned about two axes, away from the origin."""
    a, b = np.deg2rad(20), np.deg2rad(-35)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x * np.array(spacing[::-1])
    affine[:3, 3] = (-31.5, 12.25, 204.0)
    rows = tuple(tuple(float(v) for v in row) for row in affine)
    return Geometry(shape=shape, spacing=spacing, affine=rows)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_values_and_grid_come_back_from_every_format(
    tmp_path: Path, ending: str, dtype: type
) -> None:
    geometry = turned(SHAPE, SPACING)
    path = made(tmp_path / f"a{ending}", LABEL.astype(dtype), geometry)
    array, found = read_array(path)
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, LABEL)
    assert found.shape == SHAPE
    assert found.spacing == pytest.approx(SPACING, rel=1e-6)
    np.testing.assert_allclose(found.affine, geometry.affine, atol=1e-4)
    assert grid_fault(found, geometry) is None


@pytest.mark.parametrize("ending", FORMATS)
def test_the_same_array_twice_gives_the_same_bytes(tmp_path: Path, ending: str) -> None:
    first = made(tmp_path / f"first{ending}").read_bytes()
    assert made(tmp_path / f"second{ending}").read_bytes() == first


@pytest.mark.parametrize("ending", FORMATS)
def test_a_2d_file_is_one_slice_and_is_written_as_2d_again(tmp_path: Path, ending: str) -> None:
    values = LABEL[:1]
    flat = replace(simple_geometry((1, 4, 5), (1.0, 2.0, 3.0)), dimensions=2)
    array, geometry = read_array(made(tmp_path / f"a{ending}", values, flat))
    np.testing.assert_array_equal(array, values)
    assert geometry.dimensions == 2
    assert geometry.spacing == (SLICE_OF_2D * 3.0, 2.0, 3.0)
    again = made(tmp_path / f"b{ending}", array, geometry)
    assert again.read_bytes() == (tmp_path / f"a{ending}").read_bytes()


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("part", [0.0, 0.05, 0.6, 0.97])
def test_a_file_cut_off_anywhere_is_refused_by_name(
    tmp_path: Path, ending: str, part: float
) -> None:
    noise = np.random.default_rng(0).integers(0, 99, (13, 14, 15)).astype(np.int16)
    path = made(tmp_path / f"a{ending}", noise, simple_geometry(noise.shape, SPACING))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DataError, match=f"a{ending}"):
        read_image([path])


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_flipped_bit_in_compressed_data_or_its_checksum_is_refused(
    tmp_path: Path, ending: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 99, (13, 14, 15)).astype(np.int16)
    path = made(tmp_path / f"a{ending}", noise, simple_geometry(noise.shape, SPACING))
    data = path.read_bytes()
    for place in (-1, -2, -4, -30, len(data) // 2):
        flipped = bytearray(data)
        flipped[place] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(DataError, match=r"is damaged|was cut off|cannot be read"):
            read_image([path])


@pytest.mark.parametrize("ending", FORMATS)
def test_a_web_page_under_an_images_name_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"<html>404</html>" * 50)
    with pytest.raises(DataError, match=f"a{ending}"):
        read_image([path])


def test_an_unknown_ending_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.gipl").touch()
    with pytest.raises(DataError, match=r"cannot read this format; use one of \.nii\.gz"):
        read_image([tmp_path / "a.gipl"])
    with pytest.raises(MissingError, match=r"b\.nii\.gz does not exist"):
        read_image([tmp_path / "b.nii.gz"])
    with pytest.raises(DataError, match="is a folder; give an image file in it"):
        read_image([tmp_path])
    with pytest.raises(DataError, match="cannot write this format"):
        write(tmp_path / "c.gipl", LABEL, simple_geometry(SHAPE, SPACING))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("a.img", r"name the \.hdr"),
        ("a.img.gz", r"name the \.hdr"),
        ("a.mhd", r".* as one \.mha"),
        ("a.nhdr", r".* as one \.nrrd"),
    ],
)
def test_half_of_a_pair_is_refused_with_what_to_do(tmp_path: Path, name: str, remedy: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=f"cannot read this format; {remedy}"):
        read_array(tmp_path / name)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_refused_and_counted(
    tmp_path: Path, ending: str, bad: float
) -> None:
    values = LABEL.astype(np.float32)
    values[1, :2, 3] = bad
    path = made(tmp_path / f"a{ending}", values)
    with pytest.raises(DataError, match="2 voxels are not finite"):
        read_image([path])
    with pytest.raises(DataError, match="2 voxels are no integers"):
        read_segmentation(path)


@pytest.mark.parametrize("ending", FORMATS)
def test_voxels_too_large_for_what_we_compute_in_are_not_finite(
    tmp_path: Path, ending: str
) -> None:
    values = LABEL.astype(np.float64)
    values[1, 2, 3] = -1e39
    with pytest.raises(DataError, match="1 voxels are not finite"):
        read_image([made(tmp_path / f"a{ending}", values)])


def test_the_types_of_the_files_are_kept_where_asked_for(tmp_path: Path) -> None:
    files = [made(tmp_path / "a.nii", LABEL), made(tmp_path / "b.mha", LABEL.astype(np.float64))]
    channels, geometry = read_stored(files, 2)
    assert [channel.dtype for channel in channels] == [np.int16, np.float64]
    assert geometry.shape == channels[1].shape == SHAPE


def test_a_float_label_map_of_integers_is_taken_and_a_blurred_one_is_not(tmp_path: Path) -> None:
    values = LABEL.astype(np.float32)
    array, _ = read_segmentation(made(tmp_path / "a.nii.gz", values))
    assert np.issubdtype(array.dtype, np.integer)
    np.testing.assert_array_equal(array, LABEL)
    values[0, 0, :3] += 0.5
    with pytest.raises(DataError, match=r"3 voxels are no integers, such as 0.5; .* nearest"):
        read_segmentation(made(tmp_path / "b.nii.gz", values))


def test_a_float_label_map_beyond_32_bits_is_no_label_map(tmp_path: Path) -> None:
    values = np.full(SHAPE, 3e9, np.float64)
    with pytest.raises(DataError, match=r"has the value 3e\+09; not a label map"):
        read_segmentation(made(tmp_path / "a.nii.gz", values))


def test_channels_are_stacked_and_must_lie_on_one_grid(tmp_path: Path) -> None:
    first = made(tmp_path / "a_0000.nii.gz")
    second = made(tmp_path / "a_0001.nii.gz", LABEL + 1)
    volume = read_image([first, second])
    assert volume.image.dtype == np.float32
    np.testing.assert_array_equal(volume.image[1], LABEL + 1)
    made(second, geometry=simple_geometry(SHAPE, (3.0, 2.0, 1.5)))
    with pytest.raises(DataError, match=r"a_0001.nii.gz: lies on another grid than a_0000"):
        read_image([first, second])


def test_an_array_is_only_written_on_a_grid_of_its_own_shape(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        write(tmp_path / "a.nii.gz", LABEL, simple_geometry((5, 4, 3), SPACING))
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_read_as_the_format_that_its_ending_says(tmp_path: Path) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(LABEL.tobytes())
    fields = "type: short\ndimension: 3\nsizes: 5 4 3\nencoding: raw\nendian: little\n"
    nrrd = f"NRRD0004\n{fields}data file: {secret}\n\nElementDataFile = LOCAL\n"
    path = tmp_path / "a.mha"
    path.write_bytes(nrrd.encode() + LABEL.tobytes())
    with pytest.raises(DataError, match=r"a\.mha: the header's NDims must be"):
        read_array(path)


@pytest.mark.parametrize(
    ("images", "ending"),
    [(".nii.gz", ".nii.gz"), (".png", ".png"), (".jpg", ".png"), (".JPEG", ".png"), (".x", ".x")],
)
def test_label_maps_end_as_images_do_but_never_lossy(images: str, ending: str) -> None:
    assert label_ending(images) == ending


def test_a_file_each_gives_one_channel_and_a_single_file_all_of_them(tmp_path: Path) -> None:
    geometry = flat_geometry((4, 5), (1.0, 1.0))
    grey = [made(tmp_path / f"{n}.png", LABEL[:1].astype(np.uint8) + n, geometry) for n in range(3)]
    colour = tmp_path / "colour.tif"
    tifffile.imwrite(colour, np.stack([LABEL[0] + n for n in range(3)], axis=-1).astype(np.uint8))
    for paths in (grey, [colour]):
        volume = read_image(paths, 3)
        assert volume.image.dtype == np.float32
        assert volume.image.shape == (3, 1, 4, 5)
        np.testing.assert_array_equal(volume.image[2, 0], LABEL[0] + 2)
    with pytest.raises(DataError, match=r"0\.png: 2 files hold 2 channels where 3 should be"):
        read_image(grey[:2], 3)
    with pytest.raises(DataError, match=r"colour\.tif: holds 3 values a pixel where 1 should be"):
        read_image([grey[0], colour], 2)
    with pytest.raises(DataError, match=r"0\.png: holds 1 value a pixel where 3 should be"):
        read_image(grey[:1], 3)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_volume_is_one_channel(tmp_path: Path, ending: str) -> None:
    path = made(tmp_path / f"a{ending}")
    assert channel_counts(path) == (1,)
    assert read_channels(path)[0].shape == (1, *SHAPE)
    with pytest.raises(DataError, match="holds 1 value a pixel where 2 should be"):
        read_channels(path, 2)


def test_the_files_that_a_file_needs_are_known(tmp_path: Path) -> None:
    geometry = simple_geometry(SHAPE, SPACING)
    needed = {
        ".nii.gz": [], ".hdr": ["a.img"], ".hdr.gz": ["a.img.gz"], ".tif": ["a.json"], ".mha": []
    }  # fmt: skip
    for ending, names in needed.items():
        path = made(tmp_path / ending / f"a{ending}", LABEL, geometry)
        assert [file.name for file in side_files(path)] == names
        assert sorted(file.name for file in path.parent.iterdir()) == sorted([path.name, *names])
        for file in side_files(path):
            file.unlink()
        assert side_files(path) == ()


def test_endings_in_capitals_are_the_same_formats(tmp_path: Path) -> None:
    geometry = flat_geometry((4, 5), (1.0, 1.0))
    for name in ("a.PNG", "a.Bmp", "a.TIF", "a.NII.GZ", "a.Nrrd"):
        path = made(tmp_path / name, LABEL[:1].astype(np.uint8), geometry)
        np.testing.assert_array_equal(read_array(path)[0], LABEL[:1])


def test_a_file_in_a_folder_that_may_not_be_entered_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(DataError, match=r"a\.nii: cannot be read \(Permission denied\)"):
        read_array(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("a.gipl", "cannot write this format"),
        ("a.jpg", "JPEG does not keep values"),
        ("a.PNG", "a picture holds one slice, not 4"),
        ("a.nii.gz", None),
    ],
)
def test_that_a_label_map_cannot_be_written_is_known_before_it_is_made(
    tmp_path: Path, name: str, fault: str | None
) -> None:
    geometry = simple_geometry((4, 5, 6), SPACING)
    if fault is None:
        check_writable(tmp_path / name, geometry)
        return
    with pytest.raises(DataError, match=fault):
        check_writable(tmp_path / name, geometry)


def test_maps_of_real_numbers_lie_beside_pictures_as_nifti(tmp_path: Path) -> None:
    assert [map_ending(ending) for ending in (".png", ".BMP", ".mha")] == [".nii.gz"] * 2 + [".mha"]
    values = np.random.default_rng(0).random((1, 4, 5), np.float32)
    write(tmp_path / "a.nii.gz", values, flat_geometry((4, 5), (1.0, 1.0)))
    np.testing.assert_array_equal(read_array(tmp_path / "a.nii.gz")[0], values)
