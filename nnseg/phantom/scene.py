"""Scenes: what lies in the field of view of a phantom, drawn as its tissue and its labels.

A scene draws blobs into a `Field`. Its target is known by shape and neighbours: decoys of its own
brightness lie elsewhere. What the scanner makes of it is up to `nnseg.phantom.dataset`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from nnseg.axes import Segmentation, Shape, Spacing

Floats: TypeAlias = NDArray[np.float64]
Tissue: TypeAlias = Floats  # (channel, z, y, x), what an ideal scanner would measure
Scene: TypeAlias = Callable[["Field", Generator], tuple[Tissue, Segmentation]]

MARGIN = 2.0  # mm that a decoy keeps from everything else
ATTEMPTS = 200  # at placing one decoy; in a full field of view it is left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """An ellipsoid. `turn` holds its own axes as columns; lengths are mm, (z, y, x)."""

    centre: Floats  # (3,)
    radii: Floats  # (3,)
    turn: Floats  # (3, 3)


class Field:
    """The field of view of one case while it is drawn: where its voxels lie, what is taken."""

    def __init__(self, shape: Shape, spacing: Spacing, rng: Generator) -> None:
        self.shape = shape
        self.half = np.array(shape) * spacing / 2  # mm from the centre to each side
        axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
        self.points = np.stack(np.meshgrid(*axes, indexing="ij"))  # mm, (3, z, y, x)
        self.rough = 0.1 * smooth_noise(shape, spacing, 2.5, rng)  # makes outlines irregular
        self.texture = smooth_noise(shape, spacing, 4.0, rng)
        self._taken: list[tuple[Floats, float]] = []

    def inside(self, blob: Blob, *, rough: float = 1.0) -> Floats:
        """Say how deep each voxel is in `blob`: 1 at its centre, 0 at its surface, then negative.

        The result is (z, y, x). `rough` weighs how irregular the surface is. It claims the room
        for `place`.
        """
        self._taken.append((blob.centre, float(blob.radii.max())))
        away = self.points - blob.centre[:, None, None, None]
        own = np.einsum("ij,i...->j...", blob.turn, away) / blob.radii[:, None, None, None]
        return np.asarray(1 - np.sqrt((own**2).sum(axis=0)) + rough * self.rough)

    def forget(self) -> None:
        """Give all room back: what was drawn so far is no hindrance to `place`."""
        self._taken.clear()

    def place(self, radii: Iterable[float], rng: Generator) -> Floats | None:
        """Find room for a blob, clear of all drawn so far: its depth map, or None if it is full."""
        size = np.array(list(radii)) * rng.uniform(0.85, 1.15)
        for _ in range(ATTEMPTS):
            room = np.maximum(self.half - 0.6 * size.max(), 0)
            centre = rng.uniform(-room, room)
            gaps = [np.linalg.norm(centre - c) - r - size.max() for c, r in self._taken]
            if all(gap >= MARGIN for gap in gaps):
                return self.inside(Blob(centre=centre, radii=size, turn=_turn(rng, math.pi)))
        return None


def head_and_tail(field: Field, rng: Generator) -> tuple[Tissue, Segmentation]:
    """Draw a head with a tail beside a bright ridge, as a hippocampus lies; decoys have no ridge.

    Head is 1, tail is 2. The ridge lies on either side.
    """
    scale = _scale(field)
    side = rng.choice([-1.0, 1.0])
    flat = field.shape[0] == 1
    turn = _turn(rng, 0.25, axis=(1, 0, 0) if flat else None)
    shift = np.array([0, 0, -4.0 * side]) * scale + rng.uniform(-1.5, 1.5, 3) * scale
    if flat:
        shift[0] = 0  # the slice goes through the middle

    def part(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Floats:
        size = np.array(radii) * scale * rng.uniform(0.9, 1.1)
        middle = shift + turn @ (np.array(centre) * scale)
        return field.inside(Blob(centre=middle, radii=size, turn=turn))

    head = part((0, -7, 0), (5.2, 5.5, 5.8))
    bend = rng.uniform(0.5, 2.5)
    tail = np.maximum(part((0, 2, 0), (3.4, 6.0, 3.4)), part((0, 9, bend * side), (3.0, 6.0, 3.0)))
    ridge = part((0, 0, -9.5 * side), (6.0, 16, 2.4))

    tissue = 60 + 5 * field.texture
    for radii in ((7.5, 8.5, 7.5), (5.5, 5.5, 5.5), (3.2, 8.5, 3.2), (5, 5.5, 5), (4, 4, 4)):
        decoy = field.place(np.array(radii) * scale, rng)
        if decoy is not None:
            tissue[decoy > 0] = 110
    tissue[ridge > 0] = 165
    segmentation = np.zeros(field.shape, np.uint8)
    segmentation[tail > 0] = 2
    segmentation[(head > 0) & (head >= tail)] = 1
    tissue[segmentation > 0] = 110
    return tissue[None], segmentation


def partly_annotated(field: Field, rng: Generator) -> tuple[Tissue, Segmentation]:
    """Draw a head with its tail of which only some runs of slices are annotated; 3 is ignore."""
    tissue, segmentation = head_and_tail(field, rng)
    depth = segmentation.shape[0]
    unknown = np.ones(depth, dtype=bool)
    for start in rng.choice(depth - 4, size=4, replace=False):
        unknown[start : start + 4] = False
    unknown[depth // 2 - 1 : depth // 2 + 2] = False  # the target is there
    segmentation[unknown] = 3
    return tissue, segmentation


def organs(field: Field, rng: Generator) -> tuple[Tissue, Segmentation]:
    """Draw a body in HU: liver, 1, kidney, 2, and other organs of their densities, unlabelled.

    The liver is the large organ on one side, the kidney lies beside the spine on the other.
    """
    side = rng.choice([-1.0, 1.0])
    half = field.half
    turn = _turn(rng, 0.15)

    def part(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Floats:
        where = np.array(centre) * half + rng.uniform(-0.04, 0.04, 3) * half
        size = np.array(radii) * half * rng.uniform(0.92, 1.08)
        return field.inside(Blob(centre=where, radii=size, turn=turn))

    trunk = Blob(centre=np.zeros(3), radii=np.array([9, 0.92, 0.94]) * half, turn=np.eye(3))
    body = field.inside(trunk, rough=0.3)
    field.forget()  # decoys lie in the body
    liver = part((0.1, -0.15, -0.45 * side), (0.62, 0.45, 0.34))
    spine = part((0, 0.55, 0), (9.0, 0.17, 0.16))
    kidney = part((-0.2, 0.36, 0.43 * side), (0.55, 0.23, 0.22))

    tissue = np.where(body > 0, 20 + 10 * field.texture, -1000.0)
    for radius, density in ((0.3, 120), (0.3, 190), (0.2, 120), (0.2, 190)):
        decoy = field.place(radius * half.min() * rng.uniform(0.8, 1.1, 3), rng)
        if decoy is not None:
            tissue[(decoy > 0) & (body > 0)] = density
    segmentation = np.zeros(field.shape, np.uint8)
    segmentation[(liver > 0) & (body > 0)] = 1
    segmentation[(kidney > 0) & (body > 0)] = 2
    tissue[segmentation == 1] = 120
    tissue[segmentation == 2] = 190
    tissue[spine > 0] = 400
    segmentation[spine > 0] = 0
    return tissue[None], segmentation


def contrasts(field: Field, rng: Generator) -> tuple[Tissue, Segmentation]:
    """Draw lesions, label 1, bright in the first channel and dark in the second.

    Decoys are bright in both, or dark in the second only: it takes both channels.
    """
    scale = _scale(field)
    first = 60 + 5 * field.texture
    second = 100 - 5 * field.texture
    segmentation = np.zeros(field.shape, np.uint8)
    lesions = ((6.5, 110, 60, 1), (5.5, 110, 60, 1))
    decoys = ((8.0, 110, 150, 0), (8.0, 60, 60, 0), (5.0, 110, 150, 0), (5.0, 60, 60, 0))
    for radius, one, two, label in decoys[:2] + lesions + decoys[2:]:
        radii = radius * scale * rng.uniform(0.8, 1.1, 3)
        blob = field.place(radii, rng)
        if blob is not None:
            first[blob > 0] = one
            second[blob > 0] = two
            segmentation[blob > 0] = label
    return np.stack([first, second]), segmentation


def nested(field: Field, rng: Generator) -> tuple[Tissue, Segmentation]:
    """Draw a tumour, 1, with a bright core, 2; decoys are a rim without core or a bare core."""
    scale = _scale(field)
    centre = rng.uniform(-0.3, 0.3, 3) * field.half
    turn = _turn(rng, math.pi)
    radii = np.array([7.5, 9.0, 8.0]) * scale * rng.uniform(0.9, 1.1, 3)
    whole = field.inside(Blob(centre=centre, radii=radii, turn=turn))
    off = turn @ (0.2 * radii * rng.uniform(-1, 1, 3))
    core = field.inside(Blob(centre=centre + off, radii=0.65 * radii, turn=turn))

    tissue = 60 + 5 * field.texture
    for radius, value in ((8.5, 105), (5.5, 150), (5.5, 105), (5.0, 150)):
        decoy = field.place(radius * scale * rng.uniform(0.85, 1.1, 3), rng)
        if decoy is not None:
            tissue[decoy > 0] = value
    segmentation = np.zeros(field.shape, np.uint8)
    segmentation[whole > 0] = 1
    segmentation[(core > 0) & (whole > 0)] = 2
    tissue[segmentation == 1] = 105
    tissue[segmentation == 2] = 150
    return tissue[None], segmentation


def smooth_noise(
    shape: tuple[int, ...], spacing: Spacing, reach_mm: float, rng: Generator
) -> Floats:
    """Give noise of zero mean and unit deviation that varies over `reach_mm`, (z, y, x)."""
    from scipy.ndimage import gaussian_filter

    sigma = [reach_mm / s if n > 1 else 0.0 for n, s in zip(shape, spacing, strict=True)]
    noise = gaussian_filter(rng.normal(size=shape), sigma, mode="reflect")
    noise -= noise.mean()
    return np.asarray(noise / noise.std())


def _scale(field: Field) -> float:
    """Give the size of the anatomy relative to a field of view of 36 x 46 x 42 mm."""
    y, x = field.half[1:]
    return float(min(y / 23, x / 21))


def _turn(rng: Generator, largest: float, axis: tuple[int, int, int] | None = None) -> Floats:
    """Draw a rotation about `axis`, or about a random one, by up to `largest` radians, (3, 3)."""
    from scipy.spatial.transform import Rotation

    about = rng.normal(size=3) if axis is None else np.array(axis, dtype=float)
    angle = rng.uniform(-largest, largest)
    return np.asarray(Rotation.from_rotvec(angle * about / np.linalg.norm(about)).as_matrix())
