"""How far apart the surfaces of two masks lie, each piece of surface weighted by its area.

`surface_distances` is the costly step; `robust_hausdorff`, `surface_dice` and
`average_distance` read its result.

A surface element sits at a voxel corner whose 2 x 2 x 2 voxels are not all alike. Its area is that
of the marching-cubes triangles for those eight voxels, and its distance is the one to the nearest
surface element of the other mask. An image of one slice (z is 1) has contour elements with a
length in mm instead of an area in mm^2.

Source: Nikolov et al. 2021, doi:10.2196/26151, and the package surface-distance that came with it;
the results here agree with the package.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Mask, Spacing
from nnseg.image.crop import bounding_box, cut

CORNERS = tuple(itertools.product((0, 1), repeat=3))  # bit i of a neighbourhood code is CORNERS[i]
FULL = 255  # the code of a neighbourhood that lies inside

_Corner: TypeAlias = tuple[int, ...]  # z, y, x of a corner of the unit cube


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SurfaceDistances:
    """Distance and area of every surface element of masks a and b, in order of distance.

    The arrays of an empty mask are empty, and the distances to it are infinite.
    """

    distances_a_to_b: NDArray[np.float64]  # mm, (element of a,)
    distances_b_to_a: NDArray[np.float64]  # mm, (element of b,)
    areas_a: NDArray[np.float64]  # mm^2, or mm for one slice, (element of a,)
    areas_b: NDArray[np.float64]  # mm^2, or mm for one slice, (element of b,)


def surface_distances(a: Mask, b: Mask, spacing: Spacing) -> SurfaceDistances:
    """Measure the surfaces of two masks against each other.

    Distances are exact and Euclidean. They are searched among the surface elements alone, in a
    k-d tree: a distance transform of the box around both masks gives the same numbers, takes
    longer and needs 49 bytes for each voxel of the box.

    Args:
        a: (z, y, x). A z of 1 is a 2D image: its contours are measured, its z spacing is unused.
        b: (z, y, x), of the same shape.
        spacing: mm per voxel, (z, y, x).
    """
    box = bounding_box(a | b)
    flat = a.shape[0] == 1
    if flat:  # a contour's length is the area of its wall of 1 mm
        spacing = (1.0, *spacing[1:])
    codes_a, codes_b = _neighbour_codes(cut(a, box), flat), _neighbour_codes(cut(b, box), flat)
    on_a, on_b = _is_element(codes_a), _is_element(codes_b)
    area_of = _element_areas(spacing)
    distances_a, areas_a = _sorted(_distances(on_a, on_b, spacing), area_of[codes_a[on_a]])
    distances_b, areas_b = _sorted(_distances(on_b, on_a, spacing), area_of[codes_b[on_b]])
    return SurfaceDistances(
        distances_a_to_b=distances_a,
        distances_b_to_a=distances_b,
        areas_a=areas_a,
        areas_b=areas_b,
    )


def robust_hausdorff(distances: SurfaceDistances, percentile: float = 95) -> float:
    """Give the distance in mm that `percentile` percent of either surface's area keeps to.

    The larger of the two directions counts. It is infinite where exactly one mask is empty and
    nan where both are.
    """
    d = distances
    if not d.areas_a.size and not d.areas_b.size:
        return float("nan")
    return max(
        _percentile(d.distances_a_to_b, d.areas_a, percentile),
        _percentile(d.distances_b_to_a, d.areas_b, percentile),
    )


def surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Give the share of both surfaces' area that is at most `tolerance_mm` from the other one.

    Also called normalized surface Dice (NSD). It is 0 where exactly one mask is empty and nan
    where both are.
    """
    d = distances
    total = d.areas_a.sum() + d.areas_b.sum()
    if total == 0:
        return float("nan")
    near_a = d.areas_a[d.distances_a_to_b <= tolerance_mm].sum()
    near_b = d.areas_b[d.distances_b_to_a <= tolerance_mm].sum()
    return float((near_a + near_b) / total)


def mean_distances(distances: SurfaceDistances) -> tuple[float, float]:
    """Give the mean distance in mm from a to b and from b to a, weighted by area.

    Both are infinite where exactly one mask is empty and nan where both are.
    """
    d = distances
    if not d.areas_a.size or not d.areas_b.size:
        neither = not d.areas_a.size and not d.areas_b.size
        return (float("nan"),) * 2 if neither else (float("inf"),) * 2
    return (
        float(d.distances_a_to_b @ d.areas_a / d.areas_a.sum()),
        float(d.distances_b_to_a @ d.areas_b / d.areas_b.sum()),
    )


def average_distance(distances: SurfaceDistances) -> float:
    """Give the average symmetric surface distance (ASSD) in mm: the mean over both surfaces.

    All surface elements of both masks go into one mean, weighted by their area, so that of
    `mean_distances` the one from the larger surface counts for more. It is infinite where exactly
    one mask is empty and nan where both are.

    Source: Heimann et al. 2009, doi:10.1109/TMI.2009.2013851, average symmetric surface distance.
    """
    there, back = mean_distances(distances)
    area_a, area_b = distances.areas_a.sum(), distances.areas_b.sum()
    if not np.isfinite(there):
        return there
    return float((there * area_a + back * area_b) / (area_a + area_b))


def _neighbour_codes(mask: Mask, flat: bool) -> NDArray[np.uint8]:
    """Give the code of each voxel corner, outer ones included: one longer than `mask` per axis.

    For one slice the codes are those of a body that goes on unchanged along z.
    """
    if flat:
        codes = np.pad(mask, ((0, 0), (1, 1), (1, 1))).repeat(2, axis=0).view(np.uint8)
    else:
        codes = np.pad(mask, 1).view(np.uint8)
    for axis, shift in (2, 1), (1, 2), (0, 4):
        low = codes[(slice(None),) * axis + (slice(None, -1),)]
        high = codes[(slice(None),) * axis + (slice(1, None),)]
        codes = low | (high << np.uint8(shift))
    return codes


def _is_element(codes: NDArray[np.uint8]) -> Mask:
    return np.asarray((codes != 0) & (codes != FULL))


def _distances(start: Mask, end: Mask, spacing: Spacing) -> NDArray[np.float64]:
    """Give the distance in mm from each True of `start` to the nearest True of `end`."""
    shared = end[start]
    distances = np.where(shared, 0.0, np.inf)
    if not end.any():
        return distances
    points = np.argwhere(start & ~end)
    targets = np.argwhere(end)
    from scipy.spatial import cKDTree  # slow to import, and most commands measure no distance

    tree = cKDTree(targets * spacing, balanced_tree=False, compact_nodes=False)
    _, nearest = tree.query(points * spacing)
    # From whole steps, not from the tree: n voxels are then n * spacing to the last bit, and a
    # tolerance of that size includes them.
    steps = (targets[nearest] - points) * spacing
    distances[~shared] = np.sqrt((steps**2).sum(axis=1))
    return distances


def _sorted(
    distances: NDArray[np.float64], areas: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    order = np.lexsort((areas, distances))
    return distances[order], areas[order]


def _percentile(
    distances: NDArray[np.float64], areas: NDArray[np.float64], percentile: float
) -> float:
    """Give the first distance at which the area so far reaches `percentile` percent."""
    if not areas.size:
        return float("inf")
    share = np.cumsum(areas) / areas.sum()
    index = int(np.searchsorted(share, percentile / 100))
    return float(distances[min(index, len(distances) - 1)])


def _element_areas(spacing: Spacing) -> NDArray[np.float64]:
    """Give the area in mm^2 of the surface element of each of the 256 neighbourhood codes."""
    z, y, x = spacing
    across = np.array((y * x, z * x, z * y))  # area in mm^2 of a voxel's faces across z, y and x
    return np.asarray(np.linalg.norm(_element_normals() * across, axis=2).sum(axis=1))


@functools.cache
def _element_normals() -> NDArray[np.float64]:
    """Give the normals of the plane pieces of each element, (code, piece, axis), for cubic voxels.

    The length of a normal is the area of its piece; signs are dropped. Marching cubes lays the
    surface through the midpoints of the edges between inside and outside, and each connected part
    of the minority gets a patch of its own. Inside and outside are exchangeable.
    """
    normals = np.zeros((256, 4, 3))
    for code in range(256):
        inside = {corner for bit, corner in enumerate(CORNERS) if code >> bit & 1}
        minority = inside if len(inside) <= 4 else set(CORNERS) - inside
        pieces = [normal for part in _connected_parts(minority) for normal in _patch(part)]
        normals[code, : len(pieces)] = np.reshape(pieces, (-1, 3))
    return normals / 8


def _connected_parts(corners: set[_Corner]) -> list[set[_Corner]]:
    """Split corners of the cube into those that its edges join."""
    parts: list[set[_Corner]] = []
    for corner in sorted(corners):
        joined = [part for part in parts if any(_edge_axis(corner, c) is not None for c in part)]
        parts = [part for part in parts if part not in joined]
        parts.append({corner}.union(*joined))
    return parts


def _edge_axis(start: _Corner, end: _Corner) -> int | None:
    """Give the axis of the edge between two corners, None where no edge joins them."""
    differing = [axis for axis in range(3) if start[axis] != end[axis]]
    return differing[0] if len(differing) == 1 else None


def _patch(part: set[_Corner]) -> list[NDArray[np.int_]]:
    """Give the normals (z, y, x), times 8, of the patch around 1 to 4 connected corners.

    All patches but two are plane, so that their area does not hang on the choice of triangles.
    The pentagon around three corners and the hexagon around a chain of four are bent; they are
    cut as in the usual table of marching cubes, Lorensen and Cline 1987, doi:10.1145/37402.37422.
    """
    edges = [
        (start, end, axis)
        for start, end in itertools.combinations(sorted(part), 2)
        if (axis := _edge_axis(start, end)) is not None
    ]
    degree = {corner: sum(corner in edge[:2] for edge in edges) for corner in part}
    every = np.ones(3, dtype=int)
    along = np.eye(3, dtype=int)
    unused = every - along[[axis for *_, axis in edges]].max(axis=0, initial=0)

    match len(part), len(edges), max(degree.values()):
        case 1, _, _:
            return [every]  # a triangle
        case 2, _, _:
            return [4 * unused]  # a rectangle along the edge
        case 3, _, _:
            return [3 * every, 4 * unused]  # a pentagon
        case _, 4, _:
            return [8 * unused]  # a square between two faces
        case _, _, 3:
            return [6 * every]  # a corner and its three neighbours: a regular hexagon
    ends = [axis for start, end, axis in edges if 1 in (degree[start], degree[end])]
    return [4 * every, *(2 * (every - along[axis]) for axis in ends)]  # a chain: a bent hexagon
