"""What is drawn for a training patch before a voxel is read: rules of its size, then parameters.

`plan_augmentation` holds the rules of a patch size, and `draw` takes the parameters of one sample
from a random generator. So the sampler knows which samples rotate, scale or bend and need more than
their patch; the others never meet a grid. `nnseg.model.augment` applies what was drawn.

Source of all probabilities and ranges but those of bending: Isensee et al. 2021,
doi:10.1038/s41592-020-01008-z, Supplementary Note 2, with the values of nnU-Net 2.8.1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Shape, three
from nnseg.errors import PlanError
from nnseg.model.bending import NO_FOLD, STEP, draw_points, plan_steps

FLAT = 3.0  # a 3D patch more than 3 times as wide as it is deep is transformed slice by slice
STRENGTHS = ("full", "mild")
MILD_ROTATION = math.radians(15)  # largest angle of mild augmentation
ELONGATED = 1.5  # a 2D patch of edges beyond this ratio would lose too much to a large rotation
SMALLEST_SCALE = 0.85  # divides the rotated extent; nnU-Net's constant, not the range of SCALE

P_ROTATION, P_SCALE, SCALE = 0.2, 0.2, (0.7, 1.4)
P_NOISE, NOISE = 0.1, (0.0, 0.1)
P_BLUR, BLUR = 0.2, (0.5, 1.0)
P_BRIGHTNESS, BRIGHTNESS = 0.15, (0.75, 1.25)
P_CONTRAST, CONTRAST = 0.15, (0.75, 1.25)
P_ZOOM, ZOOM = 0.25, (0.5, 1.0)
P_GAMMA_INVERTED, P_GAMMA, GAMMA = 0.1, 0.3, (0.7, 1.5)
CHANCES = (
    *(P_ROTATION, P_SCALE, P_NOISE, P_BLUR, P_BRIGHTNESS, P_CONTRAST, P_ZOOM),
    *(P_GAMMA_INVERTED, P_GAMMA),
)
P_CHANNEL = 0.5  # of each channel, once blur or low resolution has fired for the sample
P_MIRROR = 0.5  # of each axis
P_BEND = 0.2  # where patches are bent at all: as often as they rotate


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What the patch size decides. Axes are (z, y, x) in plan order; a 2D patch is (1, y, x)."""

    patch_size: Shape
    loaded_shape: Shape  # voxels to read for a sample that rotates, scales or bends
    rotation: tuple[float, float, float]  # largest absolute angle about z, y, x in radians
    flat: bool  # a 3D patch whose slices are transformed in plane only
    mirror_axes: tuple[int, ...]  # of 0, 1, 2 for z, y, x
    swaps: tuple[tuple[int, int], ...] = ()  # label positions of left and right
    swap_axis: int | None = None  # of z, y, x: where its mirror trades them
    steps: tuple[float, float, float] = (STEP,) * 3  # voxels of z, y, x between control points
    farthest: tuple[float, float, float] = (0.0,) * 3  # voxels that these move; 0 bends nothing

    def __post_init__(self) -> None:
        if self.swaps and self.swap_axis not in (0, 1, 2):
            raise PlanError(f"swap_axis is {self.swap_axis}; swaps need 0, 1 or 2 for z, y, x")
        sides = [label for pair in self.swaps for label in pair]
        if len(set(sides)) < len(sides) or 0 in sides:
            raise PlanError(
                f"swaps is {self.swaps}; every label may stand there once, and background never"
            )
        if any(load < edge for load, edge in zip(self.loaded_shape, self.patch_size, strict=True)):
            raise PlanError(
                f"loaded_shape is {self.loaded_shape}; no axis may be below the patch_size "
                f"{self.patch_size}"
            )
        if any(far > NO_FOLD * step for far, step in zip(self.farthest, self.steps, strict=True)):
            raise PlanError(
                f"farthest is {self.farthest}; patches fold where it is above {NO_FOLD} of the "
                f"steps {self.steps}"
            )

    @property
    def in_plane(self) -> bool:
        """Whether z is left as it is by rotation, scaling, bending and low resolution."""
        return self.flat or self.patch_size[0] == 1

    @property
    def moving(self) -> slice:
        """Of z, y, x those along which voxels move, but for mirrors."""
        return slice(1 if self.in_plane else 0, 3)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draw:
    """The parameters of one sample; those that did not fire hold what changes nothing.

    Tuples have an entry for each channel. `affine` takes a voxel's (z, y, x) offset from the
    centre of the patch to the offset from the centre of what was loaded; a scale above 1 therefore
    shrinks objects. With None the sample is read at patch size and never resampled. `bend` moves
    a voxel before that: to where in the patch it is looked up.
    """

    affine: NDArray[np.float64] | None  # (3, 3)
    noise_std: float  # 0 for none
    noise_seed: int
    blur: tuple[tuple[float, float, float], ...]  # sigma in voxels (z, y, x); 0 for none
    brightness: tuple[float, ...]  # 1 for none, as in the four below
    contrast: tuple[float, ...]
    zoom: tuple[float, ...]  # edge of the low resolution by that of the patch
    gamma_inverted: tuple[float, ...]
    gamma: tuple[float, ...]
    mirror: tuple[int, ...]  # axes to flip, of 0, 1, 2 for z, y, x
    bend: NDArray[np.float64] | None = None  # voxels of control points; see `draw_points`


def plan_augmentation(
    patch_size: Shape,
    dimensions: int,
    strength: str = "full",
    *,
    swaps: Sequence[tuple[int, int]] = (),
    swap_axis: int | None = None,
    elastic: float | None = None,
    spacing: Sequence[float | None] = (1.0, 1.0, 1.0),
) -> Augmentation:
    """Decide rotation, bending, mirroring and the shape to load for a patch size.

    2D rotates by up to 180 degrees, or 15 when the patch is elongated. 3D rotates by up to 30
    degrees about each axis, so that little of the patch leaves the image; a flat patch by up to
    180 degrees in plane, since its z is too coarse to be mixed with y and x.

    Mild augmentation rotates by 15 degrees at most and mirrors nothing, so that left stays left: a
    training too short to overfit learns sooner where things are.

    Args:
        patch_size: Voxels (z, y, x) in plan order; (1, y, x) for 2D.
        dimensions: 2 or 3.
        strength: One of STRENGTHS.
        swaps: Pairs of label positions, such as left and right kidney, that trade places in
            patches mirrored along `swap_axis`.
        swap_axis: The axis between left and right, of 0, 1, 2 for z, y, x in plan order.
        elastic: How far patches bend at most, along an axis and in voxels of the finest one; as
            many mm along the others. None bends nothing. What is loaded grows by as much on either
            side, so that patches lie where they lie without.
        spacing: mm, (z, y, x) in plan order; only that of axes that are bent counts.

    Raises:
        PlanError: There is no such strength, the swaps make no sense, or patches would fold.

    >>> plan_augmentation((40, 56, 40), 3).loaded_shape
    (73, 80, 64)
    """
    if strength not in STRENGTHS:
        raise PlanError(f"augmentation is {strength!r}; it must be {' or '.join(STRENGTHS)}")
    mild = strength == "mild"
    depth, *edges = patch_size
    flat = dimensions == 3 and max(patch_size) / depth > FLAT
    if flat or dimensions == 2:
        elongated = not flat and max(edges) / min(edges) > ELONGATED
        rotation = (math.radians(15 if elongated else 180), 0.0, 0.0)
    else:
        rotation = (math.radians(30),) * 3
    if mild:
        rotation = tuple(min(angle, MILD_ROTATION) for angle in rotation)  # type: ignore[assignment]
    in_plane = flat or dimensions == 2
    steps, farthest = _plan_bends(elastic or 0.0, spacing, in_plane)
    margin = [2 * math.ceil(each) for each in farthest]
    extent = _rotated_extent(patch_size, rotation) / SMALLEST_SCALE
    z, y, x = (int(edge) + more for edge, more in zip(extent, margin, strict=True))
    return Augmentation(
        patch_size=patch_size,
        loaded_shape=(depth if in_plane else z, y, x),
        rotation=rotation,
        flat=flat,
        mirror_axes=() if mild else (0, 1, 2) if dimensions == 3 else (1, 2),
        swaps=tuple((first, second) for first, second in swaps),
        swap_axis=swap_axis,
        steps=steps,
        farthest=farthest,
    )


def _plan_bends(
    elastic: float, spacing: Sequence[float | None], in_plane: bool
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Give the voxels between control points and those that they move at most, (z, y, x)."""
    moving = [edge for edge in spacing[1 if in_plane else 0 :] if edge is not None]
    steps = three((*[STEP] * (3 - len(moving)), *plan_steps(moving)))
    farthest = three([elastic * step / STEP for step in steps])
    return steps, (0.0, *farthest[1:]) if in_plane else farthest


def draw(augmentation: Augmentation, channels: int, rng: np.random.Generator) -> Draw:
    """Draw every parameter of one sample of `channels` image channels.

    The noise itself is the only thing left to chance afterwards; it follows from `noise_seed`, on
    the device where it is added. Bending is drawn last: whatever else happens to a sample is the
    same with it and without.
    """
    fired = iter((rng.random(9) < CHANCES).tolist())  # in the order of what follows
    rotates, scales = next(fired), next(fired)
    mirrored = (rng.random(3) < P_MIRROR).tolist()
    drawn = Draw(
        affine=_draw_affine(augmentation, rotates, scales, rng),
        noise_std=float(rng.uniform(*NOISE)) if next(fired) else 0.0,
        noise_seed=int(rng.integers(2**63)),
        blur=_draw_blur(next(fired), channels, rng),
        brightness=_draw_factors(next(fired), BRIGHTNESS, channels, rng),
        contrast=_draw_factors(next(fired), CONTRAST, channels, rng),
        zoom=_draw_zoom(next(fired), channels, rng),
        gamma_inverted=_draw_factors(next(fired), GAMMA, channels, rng),
        gamma=_draw_factors(next(fired), GAMMA, channels, rng),
        mirror=tuple(axis for axis in augmentation.mirror_axes if mirrored[axis]),
    )
    if not any(augmentation.farthest) or rng.random() >= P_BEND:
        return drawn
    axes = augmentation.moving
    patch_size, steps = tuple(augmentation.patch_size)[axes], tuple(augmentation.steps)[axes]
    bend = draw_points(patch_size, steps, tuple(augmentation.farthest)[axes], rng)
    return replace(drawn, affine=np.eye(3) if drawn.affine is None else drawn.affine, bend=bend)


def _rotated_extent(patch_size: Shape, angles: tuple[float, float, float]) -> NDArray[np.float64]:
    """Give the largest extents of the patch's corner, turned about one axis at a time.

    Only the one corner (z, y, x) is turned, in one direction, so that two axes of the same edge
    may differ; nnU-Net does so, and the shape decides which voxels are read.
    """
    corner = np.array(patch_size, dtype=np.float64)
    extent: NDArray[np.float64] = corner.copy()
    for axis, angle in enumerate(angles):
        first, second = ((1, 2), (0, 2), (0, 1))[axis]
        sign = -1 if axis == 1 else 1  # about y the positive turn goes from x to z
        turn = min(angle, math.pi / 2)
        cosine, sine = math.cos(turn), sign * math.sin(turn)
        turned = corner.copy()
        turned[first] = corner[first] * cosine + corner[second] * sine
        turned[second] = corner[second] * cosine - corner[first] * sine
        np.maximum(extent, np.abs(turned), out=extent)
    return extent


def _draw_affine(
    augmentation: Augmentation, rotates: bool, scales: bool, rng: np.random.Generator
) -> NDArray[np.float64] | None:
    if not rotates and not scales:
        return None
    affine = np.eye(3)
    if rotates:
        for axis, largest in enumerate(augmentation.rotation):
            affine = _turn(axis, float(rng.uniform(-largest, largest))) @ affine
    if scales:
        scale = float(rng.uniform(*SCALE))
        affine = affine @ np.diag((1.0 if augmentation.in_plane else scale, scale, scale))
    return affine


def _turn(axis: int, angle: float) -> NDArray[np.float64]:
    """Give the rotation of (z, y, x) vectors by `angle` about `axis`: z to y, y to x, x to z."""
    first, second = ((1, 2), (2, 0), (0, 1))[axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
    return matrix


def _draw_blur(
    fired: bool, channels: int, rng: np.random.Generator
) -> tuple[tuple[float, float, float], ...]:
    if not fired:
        return ((0.0, 0.0, 0.0),) * channels
    sigmas = rng.uniform(*BLUR, size=(channels, 3)) * (rng.random((channels, 1)) < P_CHANNEL)
    return tuple((z, y, x) for z, y, x in sigmas.tolist())


def _draw_zoom(fired: bool, channels: int, rng: np.random.Generator) -> tuple[float, ...]:
    if not fired:
        return (1.0,) * channels
    zooms = rng.uniform(*ZOOM, size=channels)
    return tuple(np.where(rng.random(channels) < P_CHANNEL, zooms, 1.0).tolist())


def _draw_factors(
    fired: bool, limits: tuple[float, float], channels: int, rng: np.random.Generator
) -> tuple[float, ...]:
    """Draw a factor for each channel, half of them below 1 and half above, or 1 for all."""
    if not fired:
        return (1.0,) * channels
    low, high = limits
    below = rng.random(channels) < 0.5
    return tuple(rng.uniform(np.where(below, low, 1.0), np.where(below, 1.0, high)).tolist())
