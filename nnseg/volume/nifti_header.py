"""The header of a NIfTI file as a record: what its bytes say of the voxels and of their grid.

Fields are taken as they stand in the file, and nothing is corrected.

Source: nifti1.h and nifti2.h of the NIfTI data format working group.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnseg.errors import DataError
from nnseg.volume.geometry import Matrix

NIFTI_1, NIFTI_2 = 348, 540  # bytes of a header, which it begins with
ATLAS_CODES = (3, 4, 5)  # of an sform: Talairach, MNI 152, another template

_FIELDS = {  # the byte at which each begins, and its type as struct has it
    NIFTI_1: {
        "dim": (40, "8h"), "datatype": (70, "h"), "bitpix": (72, "h"), "pixdim": (76, "8f"),
        "vox_offset": (108, "f"), "scl_slope": (112, "f"), "scl_inter": (116, "f"),
        "xyzt_units": (123, "B"), "qform_code": (252, "h"), "sform_code": (254, "h"),
        "quatern": (256, "3f"), "qoffset": (268, "3f"), "srow": (280, "12f"), "magic": (344, "4s"),
    },
    NIFTI_2: {
        "magic": (4, "8s"), "datatype": (12, "h"), "bitpix": (14, "h"), "dim": (16, "8q"),
        "pixdim": (104, "8d"), "vox_offset": (168, "q"), "scl_slope": (176, "d"),
        "scl_inter": (184, "d"), "qform_code": (344, "i"), "sform_code": (348, "i"),
        "quatern": (352, "3d"), "qoffset": (376, "3d"), "srow": (400, "12d"),
        "xyzt_units": (500, "i"),
    },
}  # fmt: skip
# The line ends of NIfTI-2 show whether a file was sent as if it were text.
_MAGIC = {NIFTI_1: b"n+1\0", NIFTI_2: b"n+2\0\r\n\x1a\n"}
_VALUES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4",
}  # datatypes of one plain number, as numpy has them  # fmt: skip
_FORM_CODES = range(6)
_ROUNDED = {NIFTI_1: 3 * 2.0**-23, NIFTI_2: 3 * 2.0**-52}  # what a unit length may be off squared


@dataclass(frozen=True, slots=True, kw_only=True)
class NiftiHeader:
    """The fields that say how voxels are read and where they lie, by the names of the standard."""

    size: int  # bytes, NIFTI_1 or NIFTI_2
    order: str  # of bytes: "<" or ">"
    magic: bytes
    dim: tuple[int, ...]  # how many axes, and the lengths of seven, x first
    datatype: int
    bitpix: int
    pixdim: tuple[float, ...]  # handedness of the qform, then the spacing along seven axes
    vox_offset: float
    scl_slope: float
    scl_inter: float
    xyzt_units: int
    qform_code: int
    sform_code: int
    quatern: tuple[float, float, float]  # b, c and d
    qoffset: tuple[float, float, float]
    srow: Matrix  # (3, 4)

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along the axes that there are, x first."""
        return self.dim[1 : self.dim[0] + 1]

    @property
    def announced(self) -> int:
        """Bytes of the voxels; an axis without any counts as one."""
        return math.prod(max(n, 1) for n in self.shape) * self.bitpix // 8

    @property
    def kind(self) -> "np.dtype[Any]":
        """The type of the voxels of a header that is flawless."""
        return np.dtype(self.order + _VALUES[self.datatype])

    @property
    def is_flawless(self) -> bool:
        """Whether a single file can be read as it says: nothing to correct, nothing to scale."""
        kind = _VALUES.get(self.datatype)
        return (
            self.magic == _MAGIC[self.size]
            and kind is not None
            and self.bitpix == 8 * int(kind[1])
            and 1 <= self.dim[0] <= 7
            and min(self.shape) > 0
            and self.pixdim[0] in (-1.0, 1.0)
            and min(self.pixdim[1:4]) > 0
            and self.vox_offset % 16 == 0
            and self.qform_code in _FORM_CODES
            and self.sform_code in _FORM_CODES
            and (
                self.scl_slope == 0
                or math.isnan(self.scl_slope)
                or (self.scl_slope == 1 and self.scl_inter == 0)
            )
        )


def parse_header(head: bytes | bytearray) -> NiftiHeader | None:
    """Give the header that some bytes begin with; None if they begin with none."""
    for order in "<>":
        (size,) = struct.unpack_from(f"{order}i", head) if len(head) >= NIFTI_1 else (0,)
        if size in _FIELDS and len(head) >= size:
            values: dict[str, Any] = {
                name: struct.unpack_from(order + kind, head, place)
                for name, (place, kind) in _FIELDS[size].items()
            }
            srow = values.pop("srow")
            several = {name: values.pop(name) for name in ("dim", "pixdim", "quatern", "qoffset")}
            return NiftiHeader(
                size=size,
                order=order,
                srow=(srow[:4], srow[4:8], srow[8:]),
                **several,
                **{name: value for name, (value,) in values.items()},
            )
    return None


def affine_of(path: Path, header: NiftiHeader) -> Matrix:
    """Give the matrix (4, 4) from voxel (x, y, z) to mm that a header prefers.

    That is its sform, else its qform. Without either it is the spacing alone: the volume's middle
    is the origin then, and x leads from right to left, as of a file of Analyze.

    Args:
        path: For the message.
        header: Of a finite quaternion; its handedness and spacing are valid where it has a qform.

    Raises:
        DataError: The quaternion is no rotation.
    """
    last = (0.0, 0.0, 0.0, 1.0)
    if header.sform_code != 0:
        return (*header.srow, last)
    if header.qform_code != 0:
        rotation = _rotation(path, header)
        x, y, z = header.pixdim[1:4]
        scale = (x, y, z * header.pixdim[0])
        rows = zip(rotation, header.qoffset, strict=True)
        return (
            *((*(r * s for r, s in zip(row, scale, strict=True)), shift) for row, shift in rows),
            last,
        )
    axes = min(header.dim[0], 3)
    shape = (*header.shape[:axes], *(1,) * (3 - axes))
    x, y, z = (*header.pixdim[1 : axes + 1], *(1.0,) * (3 - axes))
    spacing = (-x, y, z)
    middle = [-(n - 1) / 2 * s for n, s in zip(shape, spacing, strict=True)]
    return (
        (-x, 0.0, 0.0, middle[0]),
        (0.0, y, 0.0, middle[1]),
        (0.0, 0.0, z, middle[2]),
        last,
    )


def _rotation(path: Path, header: NiftiHeader) -> Matrix:
    """Give the rotation (3, 3) of a header's quaternion, of which only b, c and d are stored."""
    b, c, d = header.quatern
    square = 1 - (b * b + c * c + d * d)
    if square <= -_ROUNDED[header.size]:
        parts = ", ".join(f"{value:g}" for value in header.quatern)
        raise DataError(
            f"{path}: the header's quatern is ({parts}), longer than 1, and so no rotation; repair "
            "the header"
        )
    a = math.sqrt(square) if square >= _ROUNDED[header.size] else 0.0
    twice = 2 / (a * a + b * b + c * c + d * d)  # of a length that is 1 but for rounding
    return (
        (1 - twice * (c * c + d * d), twice * (b * c - a * d), twice * (b * d + a * c)),
        (twice * (b * c + a * d), 1 - twice * (b * b + d * d), twice * (c * d - a * b)),
        (twice * (b * d - a * c), twice * (c * d + a * b), 1 - twice * (b * b + c * c)),
    )
