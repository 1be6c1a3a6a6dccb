"""Where the voxels of a file lie, and whether two files lie on one grid."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Shape, Spacing
from nnseg.errors import DataError

Matrix: TypeAlias = tuple[tuple[float, ...], ...]
Dimensions: TypeAlias = Literal[2, 3]

MIN_SPACING, MAX_SPACING = 1e-4, 1e3  # mm
FAR_CORNER = 0.01  # two grids are one when their corners lie within this many smallest voxels
LENGTHS_DIFFER = 0.05  # share by which two statements of one spacing may; rounding is under 1e-3
MOST_SHEARED = 30.0  # degrees that axes may lie from a right angle; gantries of CT tilt as much
SLICE_OF_2D = 999.0  # nnU-Net's slice spacing of a 2D image, in units of its largest in-plane one


@dataclass(frozen=True, slots=True, kw_only=True)
class NiftiGrid:
    """The grid fields of a NIfTI header, unchanged, so that a result can repeat them."""

    pixdim: tuple[float, float, float, float]  # qfac, x, y, z
    units: int
    qform_code: int
    sform_code: int
    quaternion: tuple[float, float, float]
    offset: tuple[float, float, float]
    srow: Matrix  # (3, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Where the voxels of a file lie.

    `affine` leads from voxel (x, y, z) to world coordinates in mm, right-anterior-superior.
    """

    shape: Shape  # voxels, (z, y, x)
    spacing: Spacing  # mm, (z, y, x)
    affine: Matrix  # (4, 4)
    dimensions: Dimensions = 3  # of the file; a 2D image is one slice here
    nifti: NiftiGrid | None = None

    def corners(self) -> NDArray[np.float64]:
        """Give the world position of the eight corner voxels' centres, (8, 3), in mm."""
        ends = [(0, n - 1) for n in reversed(self.shape)]
        voxels = np.array([(x, y, z, 1) for x in ends[0] for y in ends[1] for z in ends[2]])
        return np.asarray((voxels @ np.array(self.affine).T)[:, :3])


def grid_fault(first: Geometry, second: Geometry) -> str | None:
    """Say how two grids differ; None when they are one but for rounding.

    Positions are compared at the corners, in voxels of the finer axis, because a deviation that is
    nothing in one entry of a matrix may be several millimetres at the far end of the volume.
    """
    if first.shape != second.shape:
        return f"shape {first.shape} and {second.shape} (z, y, x)"
    allowed = FAR_CORNER * min(first.spacing)
    if not np.allclose(first.spacing, second.spacing, rtol=1e-3, atol=0):
        return f"spacing {mm(first.spacing)} and {mm(second.spacing)} mm (z, y, x)"
    apart = float(np.linalg.norm(first.corners() - second.corners(), axis=1).max())
    if apart > allowed:
        return f"the same voxel lies {apart:.3g} mm apart (origin or direction differ)"
    return None


def simple_geometry(shape: Shape, spacing: Spacing) -> Geometry:
    """Give the geometry of an axis-aligned volume at the origin."""
    z, y, x = spacing
    return Geometry(shape=shape, spacing=spacing, affine=matrix(np.diag([x, y, z, 1.0])))


def flat_geometry(shape: tuple[int, int], spacing: tuple[float, float]) -> Geometry:
    """Give the geometry of a 2D image at the origin: one slice.

    Args:
        shape: Pixels, (y, x).
        spacing: mm, (y, x).
    """
    y, x = spacing
    return Geometry(
        shape=(1, *shape),
        spacing=(SLICE_OF_2D * max(y, x), y, x),
        affine=matrix(np.diag([x, y, 1.0, 1.0])),
        dimensions=2,
    )


def to_shape(size: Sequence[int]) -> Shape:
    """Give the shape (z, y, x) of a file of `size` (x, y) or (x, y, z)."""
    x, y, z = (*(int(n) for n in size), 1)[:3]
    return z, y, x


def checked_spacing(path: Path, x: float, y: float, z: float, dimensions: Dimensions) -> Spacing:
    """Give the spacing (z, y, x) of a file; DataError where it is none that can be meant."""
    if dimensions == 2:
        z = SLICE_OF_2D * max(x, y)
    in_file = (y, x) if dimensions == 2 else (z, y, x)
    if not all(MIN_SPACING <= s <= MAX_SPACING for s in in_file):
        raise DataError(
            f"{path}: spacing is {mm(in_file)} mm (z, y, x); it must be between {MIN_SPACING:g} "
            f"and {MAX_SPACING:g} on every axis, repair the header"
        )
    return z, y, x


def voxel_volume(affine: Matrix) -> float:
    """Give the volume of a voxel, mm^3; it is 0 where a matrix (4, 4) has no inverse."""
    x, y, z = _columns(affine)
    return abs(_dot(x, _normal(y, z)))


def check_directions(
    path: Path, field: str, affine: Matrix, spacing: Spacing | None, shape: Shape
) -> None:
    """Refuse a matrix that contradicts the spacing beside it, or is no grid of voxels.

    Slices of a tilted gantry are piled up aslant. Some programs state the distance of their centres
    and others that of their planes, so either may be meant.

    Args:
        path: For the message.
        field: What the header calls the matrix.
        affine: (4, 4), from voxel (x, y, z) to mm; it has an inverse.
        spacing: What the header says besides, mm, (z, y, x); None where it may differ.
        shape: Voxels, (z, y, x); an axis of one voxel is not judged.

    Raises:
        DataError: They differ by more than 5 %, or axes are more than 30 degrees from a right
            angle.
    """
    judged = [axis for axis in range(3) if shape[2 - axis] > 1]
    columns = _columns(affine)
    lengths = [math.hypot(*column) for column in columns]
    cosines = [
        abs(_dot(columns[a], columns[b])) / (lengths[a] * lengths[b])
        for a, b in itertools.combinations(judged, 2)
    ]
    sheared = math.degrees(math.asin(min(1.0, max(cosines, default=0.0))))
    if sheared > MOST_SHEARED:
        raise DataError(
            f"{path}: the axes of the header's {field} meet at {90 - sheared:.0f} degrees; more "
            f"than {MOST_SHEARED:g} from a right angle cannot be used, resample the image to a "
            "right-angled grid"
        )
    if spacing is None:
        return
    for axis in judged:
        stated = spacing[2 - axis]
        up = _normal(columns[axis - 2], columns[axis - 1])  # to the plane of the other axes
        height = abs(_dot(columns[axis], up)) / math.hypot(*up)
        if min(abs(lengths[axis] / stated - 1), abs(height / stated - 1)) > LENGTHS_DIFFER:
            raise DataError(
                f"{path}: the header states a spacing of {mm(spacing)}, but its {field} one of "
                f"{mm(lengths[::-1])} (z, y, x); correct the one that is wrong"
            )


_Vector: TypeAlias = tuple[float, float, float]  # x, y, z


def _columns(affine: Matrix) -> tuple[_Vector, _Vector, _Vector]:
    """Give the steps in mm, (x, y, z), from a voxel to the next along x, y and z."""
    (a, b, c, _), (d, e, f, _), (g, h, i, _), *_ = affine
    return (a, d, g), (b, e, h), (c, f, i)


def _dot(one: _Vector, other: _Vector) -> float:
    return one[0] * other[0] + one[1] * other[1] + one[2] * other[2]


def _normal(one: _Vector, other: _Vector) -> _Vector:
    """Give the vector that is normal to two others, as long as the area between them."""
    (a, b, c), (d, e, f) = one, other
    return b * f - c * e, c * d - a * f, a * e - b * d


def matrix(values: NDArray[np.float64]) -> Matrix:
    """Give the rows of a matrix as tuples."""
    return tuple(tuple(float(v) for v in row) for row in values)


def mm(values: Sequence[float]) -> str:
    """Give lengths for a message, to six digits."""
    return "(" + ", ".join(f"{v:.6g}" for v in values) + ")"
