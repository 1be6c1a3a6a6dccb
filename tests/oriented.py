"""Files whose voxels lie in the world in every way there is, made and read by others' code.

They are nibabel's and SimpleITK's: what nnseg makes of a file is judged by neither of its halves.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

Affine = NDArray[np.float64]

ORIGIN = (-31.5, 12.25, 204.0)  # mm
NEAR = 1e-4  # mm
ITK = (".mha", ".nrrd")
NIFTI = (".nii", ".nii.gz")
BOTH = "both"
FORMS = (BOTH, "qform", "sform", "differing")  # the matrices that a NIfTI header has
SHIFT = 7.0  # mm between two of them that differ


def rotation(*, oblique: bool) -> Affine:
    if not oblique:
        return np.eye(3)
    a, b = np.deg2rad(25), np.deg2rad(-40)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return np.asarray(about_z @ about_x)


def affines(mm: Sequence[float], *, oblique: bool) -> Iterator[Affine]:
    """Each order of the axes with each direction of them: 48 ways from voxel to world, mm."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = rotation(oblique=oblique) @ (np.eye(3)[:, order] * signs * mm)
            affine[:3, 3] = ORIGIN
            yield affine


def corners(affine: Affine, size: Sequence[int]) -> Affine:
    """The world positions of the eight corner voxels, (8, 3), mm."""
    ends = [(0, n - 1) for n in size]
    voxels = np.array([(*voxel, 1) for voxel in itertools.product(*ends)])
    return np.asarray((voxels @ affine.T)[:, :3])


def mm_apart(first: Affine, second: Affine, size: Sequence[int]) -> float:
    """How far a corner of one grid is from that of the other, at the most."""
    return float(np.abs(corners(first, size) - corners(second, size)).max())


def moved(affine: Affine) -> Affine:
    """The matrix that says otherwise in a header whose two differ."""
    other = np.array(affine)
    other[:3, 3] += SHIFT
    return other


def write_file(
    path: Path, values: NDArray[Any], mm: Sequence[float], affine: Affine, form: str = BOTH
) -> None:
    """Write values in the order x, y, z; NIfTI with the matrices of `form`."""
    if path.name.endswith(ITK):
        _write_itk(path, values, mm, affine)
    else:
        _write_nifti(path, values, mm, affine, form)


def read_file(path: Path) -> tuple[NDArray[Any], Affine]:
    """The values in the order x, y, z, and the way from voxel to world."""
    return _read_itk(path) if path.name.endswith(ITK) else _read_nifti(path)


def _write_nifti(
    path: Path, values: NDArray[Any], mm: Sequence[float], affine: Affine, form: str
) -> None:
    image = nibabel.Nifti1Image(values, None)
    image.header.set_zooms(mm)
    image.header.set_xyzt_units("mm")
    image.set_qform(moved(affine) if form == "differing" else affine, code=int(form != "sform"))
    image.set_sform(affine, code=2 * int(form != "qform"))
    nibabel.save(image, path)


def _read_nifti(path: Path) -> tuple[NDArray[Any], Affine]:
    image: Any = nibabel.load(path)
    return np.asarray(image.dataobj), np.array(image.affine)


def _write_itk(path: Path, values: NDArray[Any], mm: Sequence[float], affine: Affine) -> None:
    image = sitk.GetImageFromArray(values.transpose(2, 1, 0))
    image.SetSpacing(mm)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / mm).ravel().tolist())
    sitk.WriteImage(image, str(path))


def _read_itk(path: Path) -> tuple[NDArray[Any], Affine]:
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), affine
