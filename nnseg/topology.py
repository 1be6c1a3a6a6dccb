"""Where a network pools: levels, strides and kernels for a patch, and the next smaller patch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from nnseg.axes import Shape, three
from nnseg.model.architecture import MOST_LEVELS

SIMILAR = 2.0  # axes are pooled and convolved alike while their spacings differ by less

FIRST_PATCH = {2: 2048**2, 3: 256**3}  # voxels to start from, by the network's dimensions
SMALLEST_EDGE = 4  # voxels; pooling leaves no feature map smaller,
SMALLEST_FORCED = 2  # but where a network must have more levels than that allows

NetworkSpacing: TypeAlias = tuple[float | None, float, float]  # mm; None: a 2D network
MedianShape: TypeAlias = tuple[float, float, float]  # voxels; a median may end in .5


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """How deep a network may and must be."""

    least: int = 1  # levels
    most: int = MOST_LEVELS
    halves_plane: bool = False  # y and x at every level, whatever their spacing


ANY_DEPTH = Depth()


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Where a U-Net pools and how wide it convolves, for one patch. (z, y, x) in plan order."""

    patch_size: Shape  # a multiple of the divisor
    strides: tuple[Shape, ...]
    kernel_sizes: tuple[Shape, ...]

    @property
    def divisor(self) -> Shape:
        """The product of the strides."""
        return three([math.prod(stride) for stride in zip(*self.strides, strict=True)])


def first_patch(spacing: NetworkSpacing, median: MedianShape) -> MedianShape:
    """Give the patch to start shrinking from: a cube in mm, but nowhere beyond the median image.

    Args:
        spacing: mm, (z, y, x); None for the slices of a 2D network.
        median: Voxels of the median case at that spacing.

    Returns:
        Voxels, (z, y, x); where the median image limits an axis, its .5 may stay.

    Source: nnU-Net v2.

    >>> first_patch((5.0, 1.25, 1.25), (20.0, 900.5, 300.0))
    (20.0, 406, 300.0)
    >>> first_patch((None, 1.0, 2.0), (20.0, 3000.0, 3000.0))
    (1, 2896, 1448)
    """
    fineness = np.array([1 / mm for mm in spacing if mm is not None])
    dimensions = len(fineness)
    scale = (FIRST_PATCH[dimensions] / np.prod(fineness)) ** (1 / dimensions)
    edges = [round(edge) for edge in (fineness * scale).tolist()]
    whole = edges if dimensions == 3 else [1, *edges]
    return three([min(edge, most) for edge, most in zip(whole, median, strict=True)])


def find_topology(
    spacing: NetworkSpacing, patch: Sequence[float], depth: Depth = ANY_DEPTH
) -> Topology:
    """Decide where a U-Net pools so that its deepest feature maps are small and near isotropic.

    At each level those axes are halved that are still 8 voxels long and whose spacing is less
    than twice the finest of them; an axis alone must be 12 long. A kernel is 1 along an axis until
    its spacing is less than twice the finest of all; the deepest kernels are 3 throughout. A
    network that must be deeper than that goes on with axes of 3 voxels and more, then of any size:
    the patch grows until its deepest feature maps are 2 voxels long along what is pooled. One that
    halves y and x together goes by the rule while both are 8 voxels long.

    Args:
        spacing: mm, (z, y, x); along None nothing is pooled or convolved.
        patch: Voxels, (z, y, x).
        depth: How many levels there must and may be, and whether all halve y and x.

    Returns:
        The topology; its patch is padded to a multiple of the divisor.

    Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, Methods, network topology.

    >>> find_topology((4.0, 1.0, 1.0), (10, 60, 40)).strides
    ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    """
    mm = {axis: value for axis, value in enumerate(spacing) if value is not None}
    size = dict(enumerate(patch))
    kernel = dict.fromkeys(range(3), 1)
    strides, kernels = [(1, 1, 1)], []
    while len(strides) < depth.most:
        halved = _halved(mm, size, 2 * SMALLEST_EDGE, depth)
        if not halved or (len(halved) == 1 and size[halved[0]] < 3 * SMALLEST_EDGE):
            if len(strides) >= depth.least:
                break
            halved = _halved(mm, size, SMALLEST_FORCED + 1, depth) or _halved(mm, size, 0, depth)
        finest = min(mm.values())
        kernel |= {axis: 3 for axis in mm if mm[axis] / finest < SIMILAR}
        kernels.append(three(list(kernel.values())))
        strides.append(three([2 if axis in halved else 1 for axis in range(3)]))
        mm |= {axis: mm[axis] * 2 for axis in halved}
        size |= {axis: math.ceil(size[axis] / 2) for axis in halved}

    kernels.append(three([3 if axis in mm else 1 for axis in range(3)]))
    divisor = [math.prod(stride) for stride in zip(*strides, strict=True)]
    fewest = [1 if d == 1 else SMALLEST_FORCED for d in divisor]
    padded = [
        max(math.ceil(edge / d), few) * d
        for edge, d, few in zip(patch, divisor, fewest, strict=True)
    ]
    return Topology(patch_size=three(padded), strides=tuple(strides), kernel_sizes=tuple(kernels))


def _halved(
    mm: Mapping[int, float], size: Mapping[int, float], shortest: int, depth: Depth
) -> list[int]:
    """Name the axes to halve next: the finest of those that are `shortest` voxels long or more.

    Where y and x are halved together, both must be so long: a long third axis would have a short
    plane padded to the depth that it allows.
    """
    long = [axis for axis in mm if size[axis] >= shortest]
    if depth.halves_plane and not {1, 2} <= set(long):
        return []
    finest = [axis for axis in long if mm[axis] / min(mm[a] for a in long) < SIMILAR]
    return sorted({*finest, 1, 2}) if finest and depth.halves_plane else finest


def shrink(
    spacing: NetworkSpacing,
    median: MedianShape,
    topology: Topology,
    depth: Depth = ANY_DEPTH,
) -> Topology | None:
    """Take the next smaller patch, or None if there is none.

    The axis that covers most of the median image gives way, the last of several; one that is down
    to its last voxels leaves it to the next. An axis loses the divisor of the patch that is one
    divisor smaller, since subtracting its own would pass over sizes that need fewer levels: 256 is
    divisible by 64, but 224 lies between it and 192.

    Args:
        spacing: mm, (z, y, x); None for the slices of a 2D network.
        median: Voxels of the median case at that spacing.
        topology: Of the patch that is too large.
        depth: As for `find_topology`.

    Source: nnU-Net v2, which finds no plan where the first axis has no voxel to spare.
    """
    patch = topology.patch_size
    axes = [axis for axis, mm in enumerate(spacing) if mm is not None]
    for axis in sorted(axes, key=lambda a: (patch[a] / median[a], a), reverse=True):
        one_less = list(patch)
        one_less[axis] -= topology.divisor[axis]
        smaller = list(patch)
        smaller[axis] -= find_topology(spacing, one_less, depth).divisor[axis]
        if smaller[axis] > 0:
            found = find_topology(spacing, smaller, depth)
            if found.patch_size != patch:  # padding a network's least depth may undo the step
                return found
    return None
