"""The frame in which a plan is made: the target spacing, the order of axes, the median image."""

from collections.abc import Sequence

import numpy as np

from nnseg.axes import Order, Spacing, by, permute, three
from nnseg.errors import PlanError
from nnseg.fingerprint import Fingerprint
from nnseg.topology import MedianShape

COARSE = 3.0  # an axis is coarse when its spacing is over 3 times that of every other axis


def fullres_spacing(fingerprint: Fingerprint) -> Spacing:
    """Choose the spacing of the full-resolution configurations.

    It is the median over cases, axis by axis. Where slices are thick and few, the coarse axis
    takes the 10th percentile: the median would cost the thin-sliced cases too much detail.

    Args:
        fingerprint: Its spacings in mm and shapes in voxels, (case, axis), image order.

    Returns:
        Spacing in mm, (z, y, x), image order.

    Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, Methods, target spacing.
    """
    spacings = np.array(fingerprint.spacings, dtype=np.float64)  # (case, axis)
    spacing = np.percentile(spacings, 50, axis=0)
    shape = np.percentile(np.array(fingerprint.shapes), 50, axis=0)

    coarse = int(spacing.argmax())
    fine = [axis for axis in range(3) if axis != coarse]
    floor = spacing[fine].max()
    if spacing[coarse] > COARSE * floor and shape[coarse] * COARSE < shape[fine].min():
        tenth = np.percentile(spacings[:, coarse], 10)
        spacing[coarse] = tenth if tenth >= floor else floor + 1e-5  # it must stay the coarsest
    return three(spacing.tolist())


def plan_order(spacing: Spacing) -> Order:
    """Put the coarsest axis first, the others after it as they were.

    Where slices are thick, 2D networks then see the slices as they were acquired.

    Args:
        spacing: mm, (z, y, x), image order.

    Source: nnU-Net v2.

    >>> plan_order((0.8, 0.7, 5.0))
    (2, 0, 1)
    """
    coarse = spacing.index(max(spacing))
    first, second = (axis for axis in range(3) if axis != coarse)
    return coarse, first, second


def median_shape(fingerprint: Fingerprint, spacing: Spacing, order: Order) -> MedianShape:
    """Give the shape of the median case after resampling, (z, y, x) in plan order.

    Args:
        fingerprint: Its spacings in mm and shapes in voxels, (case, axis), image order.
        spacing: mm to resample to, image order.
        order: From image order to plan order.

    Raises:
        PlanError: It has no voxel along some axis.

    Source: nnU-Net v2; each case's shape is rounded to voxels, half to even, the median is not.
    """
    shapes = [
        [round(old / new * size) for old, new, size in zip(olds, spacing, sizes, strict=True)]
        for olds, sizes in zip(fingerprint.spacings, fingerprint.shapes, strict=True)
    ]
    median = permute(medians(shapes), order)
    if min(median) < 1:
        raise PlanError(
            f"the median case resampled to {by(permute(spacing, order))} mm has the shape "
            f"{by(median)} (z, y, x, plan order), which holds no voxel; give a finer target "
            "spacing, or check the spacings of the images"
        )
    return median


def medians(values: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Give the median of each of three columns."""
    return three(np.median(np.array(values, dtype=np.float64), axis=0).tolist())
