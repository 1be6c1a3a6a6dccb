"""A segmentation written on the grid of an image lies where the image lies, however that is turned.

The images are made, and the results looked at, by nibabel and SimpleITK themselves.
"""

import gzip
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nnseg.volume import read_image, read_segmentation, write

SIZE = (5, 4, 3)  # x, y, z of the files
MM = (1.0, 2.0, 3.0)
ORIGIN = (-31.5, 12.25, 204.0)
VALUES = np.arange(60, dtype=np.uint8).reshape(SIZE)
NEAR = 1e-4  # mm
GRID = (slice(76, 92), slice(123, 124), slice(252, 328))  # bytes of a NIfTI-1 header

Affine = NDArray[np.float64]


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the waiting for the disk, which would be most of the time."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def rotation(*, oblique: bool) -> Affine:
    if not oblique:
        return np.eye(3)
    a, b = np.deg2rad(20), np.deg2rad(-35)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_z @ about_x


def affines(*, oblique: bool) -> Iterator[Affine]:
    """Every order of the axes with every direction of each: 48 ways from voxel to world, in mm."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = rotation(oblique=oblique) @ (np.eye(3)[:, order] * signs * MM)
            affine[:3, 3] = ORIGIN
            yield affine


def corners(affine: Affine) -> Affine:
    """The world positions of the eight corner voxels, (8, 3), mm."""
    ends = [(0, n - 1) for n in SIZE]
    voxels = np.array([(*voxel, 1) for voxel in itertools.product(*ends)])
    return (voxels @ affine.T)[:, :3]


def passed_through(source: Path) -> Path:
    """Read an image and write a segmentation of it."""
    volume = read_image([source])
    np.testing.assert_array_equal(volume.image[0], VALUES.transpose(2, 1, 0))
    path = source.with_name(f"segmentation_{source.name}")  # a new one: to replace waits as well
    write(path, (volume.image[0] % 3).astype(np.uint8), volume.geometry)
    array, geometry = read_segmentation(path)
    np.testing.assert_array_equal(array, VALUES.transpose(2, 1, 0) % 3)
    np.testing.assert_allclose(geometry.corners(), volume.geometry.corners(), atol=NEAR)
    return path


def nifti_affine(path: Path) -> Affine:
    import nibabel

    seen: Any = nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(seen.dataobj), VALUES % 3)
    return np.array(seen.affine)


def header(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.name.endswith(".gz") else data


def itk_affine(path: Path) -> Affine:
    import SimpleITK as sitk

    seen = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(seen), VALUES.transpose(2, 1, 0) % 3)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(seen.GetDirection(), (3, 3)) * seen.GetSpacing()
    affine[:3, 3] = seen.GetOrigin()
    return affine


@pytest.mark.parametrize("oblique", [False, True], ids=["aligned", "oblique"])
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_every_axis_order_of_an_itk_file_comes_back(
    tmp_path: Path, ending: str, oblique: bool
) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(VALUES.transpose(2, 1, 0))
    image.SetSpacing(MM)
    image.SetOrigin(ORIGIN)
    for number, affine in enumerate(affines(oblique=oblique)):
        source = tmp_path / f"{number}{ending}"
        image.SetDirection((affine[:3, :3] / MM).ravel().tolist())
        sitk.WriteImage(image, str(source))
        seen = itk_affine(passed_through(source))
        np.testing.assert_allclose(corners(seen), corners(affine), atol=NEAR)


@pytest.mark.parametrize("oblique", [False, True], ids=["aligned", "oblique"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("forms", ["both", "qform", "sform", "differing"])
def test_every_axis_order_of_a_nifti_file_comes_back_with_its_header(
    tmp_path: Path, forms: str, ending: str, oblique: bool
) -> None:
    import nibabel

    for number, affine in enumerate(affines(oblique=oblique)):
        source = tmp_path / f"{number}{ending}"
        image = nibabel.Nifti1Image(VALUES, None)
        image.header.set_zooms(MM)
        image.header.set_xyzt_units("mm")
        other = affine.copy()
        other[:3, 3] += 7
        image.set_qform(other if forms == "differing" else affine, code=int(forms != "sform"))
        image.set_sform(affine, code=2 * int(forms != "qform"))
        nibabel.save(image, source)
        path = passed_through(source)
        np.testing.assert_allclose(corners(nifti_affine(path)), corners(affine), atol=NEAR)
        first, second = (header(file) for file in (source, path))
        assert [first[part] for part in GRID] == [second[part] for part in GRID]
