"""Connected components of masks."""

from typing import Any, Literal, TypeAlias

import cc3d
import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Mask

Connectivity: TypeAlias = Literal[6, 18, 26]

SLAB_VOXELS = 2**20  # counted at once, because counting wants indices of 8 bytes


def largest_component(mask: Mask, connectivity: Connectivity = 26) -> Mask:
    """Keep the connected component with the most voxels; of equals, the first in scan order.

    Args:
        mask: (z, y, x).
        connectivity: Which voxels count as neighbours: those that share a face (6), a face or an
            edge (18), or a corner too (26).

    Returns:
        (z, y, x); empty where the mask is.
    """
    parts, sizes = number_components(mask, connectivity)
    return np.asarray((parts == sizes.argmax()) & mask)


def number_components(
    mask: Mask, connectivity: Connectivity = 26
) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.int64]]:
    """Give each connected component of a mask a number, and count its voxels.

    Args:
        mask: (z, y, x).
        connectivity: As of `largest_component`.

    Returns:
        The component of each voxel (z, y, x), numbered from 1 in scan order and 0 outside the
        mask, and the voxels of each component, (component,), where entry 0 is 0.
    """
    if sum(size > 1 for size in mask.shape) < 2:
        connectivity = 6  # the same on a line of voxels, where cc3d 4.1.1 fails with 26
    parts, count = cc3d.connected_components(
        np.ascontiguousarray(mask), connectivity=connectivity, return_N=True
    )
    sizes = np.zeros(count + 1, dtype=np.int64)
    voxels = parts.ravel()  # cc3d gives the layout that it was given
    for start in range(0, voxels.size, SLAB_VOXELS):
        sizes += np.bincount(voxels[start : start + SLAB_VOXELS], minlength=count + 1)
    sizes[0] = 0
    return parts, sizes
