"""Images in memory come in as whatever holds them, and label maps go back as the same."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnseg.errors import DataError, MissingError, UsageError
from nnseg.volume import SLICE_OF_2D, files_of, open_image, read_image, read_segmentation, write
from nnseg.volume.geometry import simple_geometry

SHAPE, SPACING = (4, 5, 6), (3.0, 1.5, 0.75)
VALUES = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
LABELS = (np.arange(120).reshape(SHAPE) % 3).astype(np.uint8)
OBLIQUE = np.array(
    [[-0.6, 0.9, 0, 7], [0.45, 1.2, 0, -8], [0, 0, 3.0, 9], [0, 0, 0, 1]], dtype=float
)


def of_nibabel(values: np.ndarray, kind: Any = nibabel.Nifti1Image) -> Any:
    image = kind(values.transpose(2, 1, 0), OBLIQUE)
    if kind is not nibabel.MGHImage:  # which is always in mm
        image.header.set_xyzt_units("mm")
    return image


def of_itk(values: np.ndarray) -> Any:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin((7, -8, 9))
    image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    return image


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_path_gives_a_nibabel_image_on_its_grid(
    tmp_path: Path, ending: str, as_text: bool
) -> None:
    path = tmp_path / f"scan{ending}"
    write(path, VALUES[0], simple_geometry(SHAPE, SPACING))
    opened = open_image(str(path) if as_text else path, 1)
    np.testing.assert_array_equal(opened.volume.image, VALUES[:1])
    back = opened.give(LABELS)
    np.testing.assert_array_equal(np.asanyarray(back.dataobj).transpose(2, 1, 0), LABELS)
    nibabel.save(back, tmp_path / "labels.nii.gz")
    found, geometry = read_segmentation(tmp_path / "labels.nii.gz")
    assert geometry.affine == opened.volume.geometry.affine
    assert found.dtype == np.uint8


def test_files_of_several_channels_come_in_a_list(tmp_path: Path) -> None:
    paths = [tmp_path / "a.nii.gz", tmp_path / "b.nrrd"]
    for path, channel in zip(paths, VALUES, strict=True):
        write(path, channel, simple_geometry(SHAPE, SPACING))
    assert np.array_equal(open_image(paths, 2).volume.image, VALUES)
    with pytest.raises(MissingError, match="does not exist"):
        open_image([paths[0], tmp_path / "gone.nii.gz"], 2)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image, nibabel.MGHImage])
def test_a_nibabel_image_gives_one_on_the_same_grid(kind: Any) -> None:
    image = of_nibabel(VALUES[0], kind)
    opened = open_image(image, 1)
    np.testing.assert_array_equal(opened.volume.image[0], VALUES[0])
    assert opened.volume.geometry.spacing == pytest.approx((3.0, 1.5, 0.75))
    back = opened.give(LABELS)
    assert isinstance(back, nibabel.Nifti1Image)
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-6)
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), LABELS.transpose(2, 1, 0))


def test_the_last_axis_of_a_nibabel_image_of_four_is_its_channels() -> None:
    image = nibabel.Nifti1Image(VALUES.transpose(3, 2, 1, 0), OBLIQUE)
    opened = open_image(image, 2)
    np.testing.assert_array_equal(opened.volume.image, VALUES)
    assert opened.give(LABELS).shape == (6, 5, 4)


def test_a_nibabel_image_in_metres_is_taken_so() -> None:
    image = nibabel.Nifti1Image(VALUES[0].transpose(2, 1, 0), OBLIQUE / 1000)
    image.header.set_xyzt_units("meter")
    assert open_image(image).volume.geometry.spacing == pytest.approx((3.0, 1.5, 0.75))


@pytest.mark.parametrize("count", [1, 2])
def test_a_simpleitk_image_gives_one_on_the_same_grid(count: int) -> None:
    image = of_itk(VALUES[0])
    if count == 2:
        image = sitk.Compose(image, of_itk(VALUES[1]))
    opened = open_image(image, count)
    np.testing.assert_array_equal(opened.volume.image, VALUES[:count])
    assert opened.volume.geometry.spacing == SPACING
    back = opened.give(LABELS)
    for name in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        assert getattr(back, name)() == getattr(image, name)()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), LABELS)


def test_a_flat_simpleitk_image_gives_a_flat_one() -> None:
    image = sitk.GetImageFromArray(VALUES[0, 0])
    opened = open_image(image, 1)
    assert opened.volume.image.shape == (1, 1, 5, 6)
    assert opened.give(LABELS[:1]).GetSize() == (6, 5)


@pytest.mark.parametrize(
    ("array", "spacing", "seen", "back"),
    [
        (VALUES[0], SPACING, (1, 4, 5, 6), (4, 5, 6)),
        (VALUES, SPACING, (2, 4, 5, 6), (4, 5, 6)),
        (VALUES[0, 0], (1.5, 0.75), (1, 1, 5, 6), (5, 6)),
        (VALUES[:, 0], [1.5, 0.75], (2, 1, 5, 6), (5, 6)),
    ],
)
def test_an_array_gives_an_array(
    array: np.ndarray, spacing: Any, seen: tuple[int, ...], back: tuple[int, ...]
) -> None:
    opened = open_image((array, spacing), seen[0])
    assert opened.volume.image.shape == seen
    assert opened.volume.image.dtype == np.float32
    wanted = SPACING if len(spacing) == 3 else (SLICE_OF_2D * 1.5, 1.5, 0.75)
    assert opened.volume.geometry.spacing == wanted
    assert opened.give(LABELS[: seen[1]]).shape == back


def test_a_list_has_an_image_for_each_channel() -> None:
    for parts in (
        [of_itk(VALUES[0]), of_itk(VALUES[1])],
        [of_nibabel(VALUES[0]), of_nibabel(VALUES[1])],
        [(VALUES[0], SPACING), (VALUES[1], SPACING)],
    ):
        np.testing.assert_array_equal(open_image(parts, 2).volume.image, VALUES)


def test_an_array_of_our_type_is_not_copied() -> None:
    values = VALUES[0].copy()
    assert np.shares_memory(open_image((values, SPACING), 1).volume.image, values)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (7, UsageError, "a int is no image; give a path, an image of nibabel"),
        ([], UsageError, "there is no image in the list"),
        ((VALUES[0], (1.0, 1.0)), DataError, "channels where 1 should be"),
        ((VALUES[0], (1.0,)), UsageError, "comes with a spacing of 1 numbers"),
        ((VALUES[0], (1.0, 0.0, 1.0)), DataError, r"the spacing is \(1.0, 0.0, 1.0\) mm"),
        ((VALUES[0], (1.0, np.nan, 1.0)), DataError, "it must be over 0"),
        ((VALUES[:0], SPACING), DataError, r"of shape \(0, 4, 5, 6\) and holds no voxel"),
        ((VALUES[0, :0], SPACING), DataError, "holds no voxel"),
        ((VALUES, SPACING), DataError, "2 channels where 1 should be"),
        ((np.full(SHAPE, np.nan), SPACING), DataError, "120 voxels are not finite"),
        ((VALUES[0] * 1j, SPACING), DataError, "they must be numbers"),
        ([(VALUES[0], SPACING), (VALUES[0], (1.0, 1.0, 1.0))], DataError, "different grids: spac"),
        (nibabel.Nifti1Image(np.zeros((2, 2, 2, 2, 2)), np.eye(4)), DataError, "give a 3D image"),
        (sitk.Image([2, 2, 2, 2], sitk.sitkFloat32), DataError, "has 4 dimensions, not 2 or 3"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_image(image, 1)


def test_a_file_and_its_image_in_memory_are_the_same(tmp_path: Path) -> None:
    nibabel.save(of_nibabel(VALUES[0]), tmp_path / "a.nii")
    assert files_of(nibabel.load(tmp_path / "a.nii")) == (tmp_path / "a.nii",)
    assert files_of([str(tmp_path / "b.nii"), of_nibabel(VALUES[0])]) == (tmp_path / "b.nii",)
    from_file = read_image([tmp_path / "a.nii"])
    for image in (nibabel.load(tmp_path / "a.nii"), sitk.ReadImage(str(tmp_path / "a.nii"))):
        volume = open_image(image).volume
        np.testing.assert_array_equal(volume.image, from_file.image)
        np.testing.assert_allclose(volume.geometry.affine, from_file.geometry.affine, atol=1e-5)
