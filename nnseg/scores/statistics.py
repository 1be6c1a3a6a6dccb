"""Volume, box and centroid of each label or region of a label map, and tables of them.

`measure` looks at one label map, `as_csv` writes many cases as one table.
"""

import csv
import io
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Box, Segmentation, box_slices
from nnseg.errors import DataError
from nnseg.image.components import number_components
from nnseg.labels import Labels
from nnseg.volume.geometry import Geometry

Point: TypeAlias = tuple[float, float, float]

MM3_PER_ML = 1000.0
SLAB_VOXELS = 2**18  # counted at once; their indices stay in the cache of a CPU
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so is run by spreadsheets

COLUMNS = (
    "case",
    "label",
    "voxels",
    "volume_ml",
    "area_mm2",
    "components",
    *(f"box_{axis}_{end}" for axis in "zyx" for end in ("start", "stop")),
    *(f"centroid_{axis}" for axis in "zyx"),
    *(f"world_box_{axis}_{end}_mm" for axis in "xyz" for end in ("min", "max")),
    *(f"world_centroid_{axis}_mm" for axis in "xyz"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldBox:
    """A box along the world's axes: right, anterior, superior; mm, (x, y, z)."""

    low: Point
    high: Point


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStatistics:
    """Where one label or region of a label map lies, and how large it is.

    Voxels are counted from 0 in image order, and a voxel's coordinates are those of its centre. The
    world is that of the file's affine, right-anterior-superior as in NIfTI. A label that is absent
    has a size of 0 and neither boxes nor centroids.
    """

    voxels: int
    volume_ml: float | None  # None for a 2D image
    area_mm2: float | None  # None for a 3D image
    components: int | None  # joined by faces, edges or corners; None where they were not counted
    box: Box | None  # voxels, (z, y, x); start, and stop which lies one after the last
    centroid: Point | None  # voxels, (z, y, x)
    world_box: (
        WorldBox | None
    )  # around the eight corners of `box`, so not narrow where it is tilted
    world_centroid_mm: Point | None  # (x, y, z)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseStatistics:
    """The statistics of one case by name of the foreground label or region."""

    case_id: str
    labels: dict[str, LabelStatistics]


def measure(
    segmentation: Segmentation, labels: Labels, geometry: Geometry, *, components: bool = False
) -> dict[str, LabelStatistics]:
    """Measure each foreground label or region of a label map, by name.

    The volume of a voxel is that of the parallelepiped which the affine makes of it, so that slices
    of a tilted gantry count for what they cover. Sums are of integers: centroids are exact.

    Args:
        segmentation: (z, y, x), image order.
        labels: What the integers mean.
        geometry: Where the voxels lie.
        components: Whether to count connected components, which takes longer: once more over the
            box of each label.

    Raises:
        DataError: The label map has another shape than its geometry, or holds a value that is none
            of the labels.
    """
    if segmentation.shape != geometry.shape:
        raise DataError(
            f"the label map is {segmentation.shape} and its geometry {geometry.shape} voxels "
            "(z, y, x); measure it with the geometry of its own file"
        )
    profiles = _profiles(segmentation, labels)
    return {
        name: _statistics(
            tuple(profile[sorted(set(positions))].sum(axis=0) for profile in profiles),
            geometry,
            segmentation if components else None,
            labels.foreground[name],
        )
        for name, positions in labels.consecutive.foreground.items()
    }


def as_csv(cases: Iterable[CaseStatistics]) -> str:
    """Give the statistics of many cases as CSV, a row for each label of each case.

    The columns are always `COLUMNS`, in their order; what has no value is an empty cell. Cells are
    quoted and lines end as RFC 4180 says. A name that a spreadsheet would take for a formula gets
    a single quote in front.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for case in cases:
        for name, found in case.labels.items():
            writer.writerow([_as_text(case.case_id), _as_text(name), *_cells(found)])
    return text.getvalue()


def _profiles(segmentation: Segmentation, labels: Labels) -> list[NDArray[np.int64]]:
    """Count the voxels of each label at each place of each axis: three of (position, place).

    All that is wanted of a label follows from them, and those of a region are sums of its labels'.
    """
    size = len(labels.values)
    profiles = [np.zeros((size, length), dtype=np.int64) for length in segmentation.shape]
    depth, height, width = segmentation.shape
    at_once = max(SLAB_VOXELS, size * max(segmentation.shape))  # not less than is added up after it
    step = max(1, at_once // max(1, height * width))
    for start in range(0, depth, step):
        slab = labels.to_positions(segmentation[start : start + step]).ravel()
        found = np.flatnonzero(slab != 0)
        if not found.size:
            continue
        label = slab[found].astype(np.int64)
        rows, x = np.divmod(found, width)
        z, y = np.divmod(rows, height)
        for profile, place in zip(profiles, (z + start, y, x), strict=True):
            length = profile.shape[1]
            count = np.bincount(label * length + place, minlength=profile.size)
            profile += count.reshape(profile.shape)
    return profiles


def _statistics(
    profiles: Sequence[NDArray[np.int64]],
    geometry: Geometry,
    segmentation: Segmentation | None,
    values: tuple[int, ...],
) -> LabelStatistics:
    """Sum up what is known of one label or region.

    Args:
        profiles: Voxels at each place, one (place,) an axis.
        geometry: Where the voxels lie.
        segmentation: (z, y, x), to count the components in; None to leave that.
        values: The integers of the label or region.
    """
    voxels = int(profiles[0].sum())
    affine = np.array(geometry.affine)
    flat = geometry.dimensions == 2
    size = voxels * (_pixel_mm2(affine) if flat else _voxel_mm3(affine) / MM3_PER_ML)
    volume_ml, area_mm2 = (None, size) if flat else (size, None)
    if not voxels:
        return LabelStatistics(
            voxels=0,
            volume_ml=volume_ml,
            area_mm2=area_mm2,
            components=None if segmentation is None else 0,
            box=None,
            centroid=None,
            world_box=None,
            world_centroid_mm=None,
        )
    z_range, y_range, x_range = (_range(profile) for profile in profiles)
    box = (z_range, y_range, x_range)
    z, y, x = (int(profile @ np.arange(len(profile))) / voxels for profile in profiles)
    components = None
    if segmentation is not None:
        _, sizes = number_components(np.isin(segmentation[box_slices(box)], values))
        components = len(sizes) - 1
    return LabelStatistics(
        voxels=voxels,
        volume_ml=volume_ml,
        area_mm2=area_mm2,
        components=components,
        box=box,
        centroid=(z, y, x),
        world_box=_world_box(box, affine),
        world_centroid_mm=_point(affine[:3] @ (x, y, z, 1.0)),
    )


def _range(profile: NDArray[np.int64]) -> tuple[int, int]:
    found = np.flatnonzero(profile)
    return int(found[0]), int(found[-1]) + 1


def _world_box(box: Box, affine: NDArray[np.float64]) -> WorldBox:
    """Give the box in the world around all of a box of voxels, out to the faces of its voxels."""
    faces = [(start - 0.5, stop - 0.5) for start, stop in reversed(box)]
    corners = np.array([(*corner, 1.0) for corner in itertools.product(*faces)])  # x, y, z, 1
    world = corners @ affine[:3].T
    return WorldBox(low=_point(world.min(axis=0)), high=_point(world.max(axis=0)))


def _voxel_mm3(affine: NDArray[np.float64]) -> float:
    return abs(float(np.linalg.det(affine[:3, :3])))


def _pixel_mm2(affine: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(np.cross(affine[:3, 0], affine[:3, 1])))


def _point(values: NDArray[np.float64]) -> Point:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _cells(found: LabelStatistics) -> list[float | None]:
    """Give the columns after the names."""
    nothing = (None,) * 3
    world = found.world_box
    world_ranges = zip(world.low, world.high, strict=True) if world else ((None, None),) * 3
    return [
        found.voxels,
        found.volume_ml,
        found.area_mm2,
        found.components,
        *itertools.chain.from_iterable(found.box or ((None, None),) * 3),
        *(found.centroid or nothing),
        *itertools.chain.from_iterable(world_ranges),
        *(found.world_centroid_mm or nothing),
    ]


def _as_text(name: str) -> str:
    return f"'{name}" if name.startswith(FORMULA_SIGNS) else name
