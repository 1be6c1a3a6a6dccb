"""A segmentation written on the grid of an image lies where the image lies, however that is turned.

The images are made, and the results looked at, by nibabel and SimpleITK themselves.
"""

import gzip
from pathlib import Path

import numpy as np
import pytest
from oriented import (
    FORMS,
    ITK,
    NEAR,
    NIFTI,
    Affine,
    affines,
    mm_apart,
    read_file,
    write_file,
)

from nnseg.volume import read_image, read_segmentation, write

SIZE = (5, 4, 3)  # x, y, z of the files
MM = (1.0, 2.0, 3.0)
VALUES = np.arange(60, dtype=np.uint8).reshape(SIZE)
GRID = (slice(76, 92), slice(123, 124), slice(252, 328))  # bytes of a NIfTI-1 header


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the waiting for the disk, which would be most of the time."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def passed_through(source: Path, affine: Affine) -> Path:
    """Read an image and write a segmentation of it, which others find where the image lies."""
    volume = read_image([source])
    np.testing.assert_array_equal(volume.image[0], VALUES.transpose(2, 1, 0))
    path = source.with_name(f"segmentation_{source.name}")  # a new one: to replace waits as well
    write(path, (volume.image[0] % 3).astype(np.uint8), volume.geometry)
    array, geometry = read_segmentation(path)
    np.testing.assert_array_equal(array, VALUES.transpose(2, 1, 0) % 3)
    np.testing.assert_allclose(geometry.corners(), volume.geometry.corners(), atol=NEAR)

    labels, found = read_file(path)
    np.testing.assert_array_equal(labels, VALUES % 3)
    assert mm_apart(found, affine, SIZE) <= NEAR
    return path


def header(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.name.endswith(".gz") else data


@pytest.mark.parametrize("oblique", [False, True], ids=["aligned", "oblique"])
@pytest.mark.parametrize("ending", ITK)
def test_every_axis_order_of_an_itk_file_comes_back(
    tmp_path: Path, ending: str, oblique: bool
) -> None:
    for number, affine in enumerate(affines(MM, oblique=oblique)):
        source = tmp_path / f"{number}{ending}"
        write_file(source, VALUES, MM, affine)
        passed_through(source, affine)


@pytest.mark.parametrize("oblique", [False, True], ids=["aligned", "oblique"])
@pytest.mark.parametrize("ending", NIFTI)
@pytest.mark.parametrize("form", FORMS)
def test_every_axis_order_of_a_nifti_file_comes_back_with_its_header(
    tmp_path: Path, form: str, ending: str, oblique: bool
) -> None:
    for number, affine in enumerate(affines(MM, oblique=oblique)):
        source = tmp_path / f"{number}{ending}"
        write_file(source, VALUES, MM, affine, form)
        path = passed_through(source, affine)
        first, second = (header(file) for file in (source, path))
        assert [first[part] for part in GRID] == [second[part] for part in GRID]
