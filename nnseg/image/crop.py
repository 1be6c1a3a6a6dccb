"""Cut an image to the region that holds data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import cc3d
import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Box, Mask, Segmentation, Shape, box_slices

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cropped:
    """A case cut to the box of its body, image order; its arrays may be views."""

    channels: tuple[NDArray[Any], ...]  # each (z, y, x), of any real type
    segmentation: Segmentation | None  # (z, y, x)
    mask: Mask | None  # (z, y, x); None where the body fills the box
    box: Box
    shape: Shape  # voxels before cropping

    @property
    def relative_size(self) -> float:
        """The volume of the box, as a share of the volume before."""
        return self.channels[0].size / float(np.prod(self.shape))

    @property
    def bytes(self) -> int:
        """What the arrays take."""
        arrays = (*self.channels, self.segmentation, self.mask)
        return sum(array.nbytes for array in arrays if array is not None)


def crop_to_body(channels: Sequence[NDArray[Any]], segmentation: Segmentation | None) -> Cropped:
    """Cut a case to the smallest box around its body.

    Args:
        channels: Each (z, y, x), finite. An image (channel, z, y, x) is a sequence of them.
        segmentation: (z, y, x), or None; it has no say in where the body is.
    """
    mask: Mask | None = nonzero_mask(channels)
    assert mask is not None, "it was just made"
    box = bounding_box(mask)
    shape = cast(Shape, mask.shape)
    mask = cut(mask, box)
    return Cropped(
        channels=tuple(cut(channel, box) for channel in channels),
        segmentation=None if segmentation is None else cut(segmentation, box),
        mask=None if mask.all() else mask,
        box=box,
        shape=shape,
    )


def nonzero_mask(channels: Sequence[NDArray[Any]]) -> Mask:
    """Mark the voxels that hold data: some channel is not 0, or it is a hole among such voxels.

    A hole is background that no path through voxel faces joins to the border of the volume, so
    that black ventricles or air inside the body stay part of it.

    Source: the crop of nnU-Net, Isensee et al. 2021, doi:10.1038/s41592-020-01008-z.

    Args:
        channels: Each (z, y, x). An image (channel, z, y, x) is a sequence of them.

    Returns:
        (z, y, x).
    """
    mask: Mask = channels[0] != 0
    for channel in channels[1:]:
        if mask.all():
            break
        mask |= channel != 0
    # Around the bounding box there is only background that reaches the border of the volume, so
    # a hole lies within the box, and it is one just if it doesn't reach the faces of the box.
    _fill_holes(cut(mask, bounding_box(mask)))
    return mask


def bounding_box(mask: Mask) -> Box:
    """Give the smallest box that holds every True voxel; the whole array when there is none.

    >>> bounding_box(np.array([[[False, True, False], [False, True, True]]]))
    ((0, 1), (0, 2), (1, 3))
    """
    columns = np.asarray(mask.any(axis=2))  # (z, y); the one full pass
    if not columns.any():
        z, y, x = mask.shape
        return (0, z), (0, y), (0, x)
    z_range, y_range = _extent(columns, 0), _extent(columns, 1)
    return z_range, y_range, _extent(mask[slice(*z_range), slice(*y_range)], 2)


def cut(array: NDArray[Scalar], box: Box) -> NDArray[Scalar]:
    """Give the part of `array` inside `box`, as a view.

    Args:
        array: (z, y, x) or (channel, z, y, x).
        box: In voxels of the last three axes.
    """
    z, y, x = box_slices(box)
    return array[..., z, y, x]


def _fill_holes(mask: Mask) -> None:
    """Set the background voxels that no path through faces joins to the border."""
    if mask.all():
        return
    parts, count = cc3d.connected_components(~mask, connectivity=6, return_N=True)
    is_hole = np.ones(count + 1, dtype=np.bool_)
    is_hole[0] = False  # the mask itself
    for axis in range(3):
        for end in (0, -1):
            is_hole[parts.take(end, axis=axis)] = False
    if is_hole.any():
        mask |= is_hole[parts]


def _extent(mask: NDArray[np.bool_], axis: int) -> tuple[int, int]:
    """Give the first position along `axis` that holds a True, and the one after the last."""
    others = tuple(other for other in range(mask.ndim) if other != axis)
    found = np.flatnonzero(mask.any(axis=others))
    return int(found[0]), int(found[-1]) + 1
