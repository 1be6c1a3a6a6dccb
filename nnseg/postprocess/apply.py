"""Rules carried out on a label map."""

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Mask, Segmentation, Spacing
from nnseg.image.components import number_components
from nnseg.image.crop import bounding_box, cut
from nnseg.labels import Labels
from nnseg.postprocess.rules import Postprocessing, going, values_of

SLAB_VOXELS = 2**20  # looked up at once


def apply(
    segmentation: Segmentation, postprocessing: Postprocessing, labels: Labels, spacing: Spacing
) -> Segmentation:
    """Carry out the rules on a label map, each on what the one before left.

    Beside the result it takes a byte for each voxel, or, where that is more, 3 or 5 for each voxel
    of the box around what a rule is about.

    Args:
        segmentation: (z, y, x), image order; it is left as it is.
        postprocessing: The rules.
        labels: What the integers mean, and the names in the rules.
        spacing: mm per voxel, (z, y, x).

    Returns:
        Label map (z, y, x) of the same type; the one given where there is no rule.

    Raises:
        DataError: A rule names a label that there is not.

    Source: of `KeepLargest` nnU-Net 2.8.1, whose results these are to the voxel.
    """
    steps = [(rule, values_of(rule, labels)) for rule in postprocessing.rules]
    if not steps:
        return segmentation
    result: Segmentation = segmentation.copy()
    inner = cut(result, bounding_box(result != 0))
    for rule, values in steps:
        mask = _holds_any(inner, values)
        box = bounding_box(mask)
        mask = np.ascontiguousarray(cut(mask, box))
        parts, sizes = number_components(mask)
        gone = going(rule, sizes, spacing)
        if gone.any():
            _clear(cut(inner, box), gone, parts)
    return result


def _holds_any(segmentation: Segmentation, values: tuple[int, ...]) -> Mask:
    """Mark the voxels that hold one of `values`."""
    if len(values) == 1:
        return np.asarray(segmentation == values[0])
    mask = np.empty(segmentation.shape, dtype=np.bool_)
    for rows in _slabs(segmentation):
        mask[rows] = np.isin(segmentation[rows], values)
    return mask


def _clear(
    segmentation: Segmentation, gone: NDArray[np.bool_], parts: NDArray[np.unsignedinteger]
) -> None:
    """Make background of the voxels whose part is marked in `gone`, in place."""
    for rows in _slabs(segmentation):
        segmentation[rows][gone[parts[rows]]] = 0


def _slabs(segmentation: Segmentation) -> list[slice]:
    step = max(1, SLAB_VOXELS * len(segmentation) // max(1, segmentation.size))
    return [slice(start, start + step) for start in range(0, len(segmentation), step)]
