"""Training augmentation: what a network sees of a sample, drawn first and applied afterwards.

`plan_augmentation` holds the rules of a patch size, `draw` takes the parameters of one sample from
a random generator before any voxel is read, and `augment` applies them to a batch. So the sampler
knows which samples rotate or scale and need more than their patch; the others never meet a grid.
An intensity transform runs once for all rows (one channel of one sample) for which it fired.

Source of all probabilities and ranges: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z,
Supplementary Note 2, with the values of nnU-Net 2.8.1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnseg.axes import Box, Shape
from nnseg.errors import PlanError
from nnseg.model.warp import Warp, sample_boxes

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

ROUNDING = 1e-3  # voxels, at least, that positions may lie beside where they are expected
TINY = 1e-7  # keeps gamma of a constant channel from dividing by 0
BLOCK = 2**20  # voxels that an intensity transform takes at once, so that its steps meet in cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What the patch size decides. Axes are (z, y, x) in plan order; a 2D patch is (1, y, x)."""

    patch_size: Shape
    loaded_shape: Shape  # voxels to read for a sample that rotates or scales
    rotation: tuple[float, float, float]  # largest absolute angle about z, y, x in radians
    flat: bool  # a 3D patch whose slices are transformed in plane only
    mirror_axes: tuple[int, ...]  # of 0, 1, 2 for z, y, x
    swaps: tuple[tuple[int, int], ...] = ()  # label positions of left and right
    swap_axis: int | None = None  # of z, y, x: where its mirror trades them

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

    @property
    def in_plane(self) -> bool:
        """Whether z is left as it is by rotation, scaling and low resolution."""
        return self.flat or self.patch_size[0] == 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draw:
    """The parameters of one sample; those that did not fire hold what changes nothing.

    Tuples have an entry for each channel. `affine` takes a voxel's (z, y, x) offset from the
    centre of the patch to the offset from the centre of what was loaded; a scale above 1 therefore
    shrinks objects. With None the sample is read at patch size and never resampled.
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


def plan_augmentation(
    patch_size: Shape,
    dimensions: int,
    strength: str = "full",
    *,
    swaps: Sequence[tuple[int, int]] = (),
    swap_axis: int | None = None,
) -> Augmentation:
    """Decide rotation, mirroring and the shape to load for a patch size.

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

    Raises:
        PlanError: There is no such strength, or the swaps make no sense.

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
    loaded = _rotated_extent(patch_size, rotation) / SMALLEST_SCALE
    y, x = int(loaded[1]), int(loaded[2])
    return Augmentation(
        patch_size=patch_size,
        loaded_shape=(depth if flat or dimensions == 2 else int(loaded[0]), y, x),
        rotation=rotation,
        flat=flat,
        mirror_axes=() if mild else (0, 1, 2) if dimensions == 3 else (1, 2),
        swaps=tuple((first, second) for first, second in swaps),
        swap_axis=swap_axis,
    )


def draw(augmentation: Augmentation, channels: int, rng: np.random.Generator) -> Draw:
    """Draw every parameter of one sample of `channels` image channels.

    The noise itself is the only thing left to chance afterwards; it follows from `noise_seed`, on
    the device where it is added.
    """
    fired = iter((rng.random(9) < CHANCES).tolist())  # in the order of what follows
    rotates, scales = next(fired), next(fired)
    mirrored = (rng.random(3) < P_MIRROR).tolist()
    return Draw(
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


def reach(affine: NDArray[np.float64] | None, augmentation: Augmentation) -> Box:
    """Give the box of the loaded shape (with None: of the patch) that a sample really looks at.

    Args:
        affine: Of its draw.
        augmentation: The rules by which it was drawn.

    Returns:
        First voxel and end of each axis. It may be empty.
    """
    if affine is None:
        z, y, x = ((0, edge) for edge in augmentation.patch_size)
        return z, y, x
    patch, loaded = np.array(augmentation.patch_size), np.array(augmentation.loaded_shape)
    span = np.abs(affine) @ ((patch - 1) / 2)
    low = np.floor((loaded - 1) / 2 - span - ROUNDING).clip(0).astype(int).tolist()
    high = np.ceil((loaded - 1) / 2 + span + ROUNDING).astype(int).tolist()
    z, y, x = (
        (first, min(last + 1, int(edge)))
        for first, last, edge in zip(low, high, loaded, strict=True)
    )
    return z, y, x


def augment(
    images: Sequence[Tensor],
    maps: Sequence[Tensor],
    draws: Sequence[Draw],
    augmentation: Augmentation,
    *,
    masked_channels: Sequence[int] = (),
    offsets: Sequence[Shape] | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply `draws` to a batch of samples and stack them; the inputs are left as they are.

    Order: rotation and scaling, noise, blur, brightness, contrast, low resolution, gamma of the
    inverted image, gamma, mirroring, zeros outside the mask. (Voxels are put at their mirrored
    places at once, and what is not symmetric is mirrored with them.)

    Args:
        images: For each sample (channel, z, y, x) float32, of the loaded shape where its draw has
            an affine and of the patch size elsewhere, or with `offsets` any part of these; the
            rest is 0. All tensors are on one device.
        maps: For each sample label maps (map, z, y, x) of one integer type, of the same parts.
            The first is the target. With `masked_channels` the second is the body mask.
        draws: The parameters of each sample.
        augmentation: The rules by which they were drawn.
        masked_channels: Channels that are 0 outside the mask, before and so also afterwards.
        offsets: For each sample where its first voxel lies in the whole.

    Returns:
        Images (batch, channel, z, y, x) float32 and label maps (batch, map, z, y, x) of their own
        type, both of the patch size. What lies outside the loaded image is 0 in both.
    """
    kind = maps[0].dtype
    if kind == torch.uint16:  # torch stores it, but compares and gathers it nowhere
        maps = [each.int() for each in maps]
    batch, found = _place(images, maps, draws, augmentation, offsets)
    _add_noise(batch, draws)
    _change_intensities(batch, draws, augmentation)
    if masked_channels:
        outside = found[:, 1] == 0
        for channel in masked_channels:
            batch[:, channel].masked_fill_(outside, 0)
    if augmentation.swaps:
        mirrored = [i for i, each in enumerate(draws) if augmentation.swap_axis in each.mirror]
        for i in mirrored:
            for label_map in (n for n in range(found.shape[1]) if not (masked_channels and n == 1)):
                _swap(found[i, label_map], augmentation.swaps)
    return batch, found.to(kind)


def _swap(labels: Tensor, swaps: Sequence[tuple[int, int]]) -> None:
    """Let the labels of each pair trade places, in place."""
    for first, second in swaps:
        was_first, was_second = labels == first, labels == second
        labels.masked_fill_(was_first, second).masked_fill_(was_second, first)


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


def _place(
    images: Sequence[Tensor],
    maps: Sequence[Tensor],
    draws: Sequence[Draw],
    augmentation: Augmentation,
    offsets: Sequence[Shape] | None,
) -> tuple[Tensor, Tensor]:
    """Bring every sample to the patch size, turned, scaled and mirrored: images, label maps."""
    patch, device = augmentation.patch_size, images[0].device
    batch = torch.zeros((len(images), len(images[0]), *patch), device=device)
    found = torch.zeros((len(maps), len(maps[0]), *patch), dtype=maps[0].dtype, device=device)
    moved = []
    for i, (image, parameters) in enumerate(zip(images, draws, strict=True)):
        shape = tuple(image.shape[1:])
        whole = patch if parameters.affine is None else augmentation.loaded_shape
        offset = (0, 0, 0) if offsets is None else offsets[i]
        ends = [first + edge for first, edge in zip(offset, shape, strict=True)]
        if min(offset) < 0 or any(end > edge for end, edge in zip(ends, whole, strict=True)):
            raise ValueError(f"sample {i} has shape {shape} at {offset}; its draw needs {whole}")
        if offsets is None and shape != whole:
            raise ValueError(f"sample {i} has shape {shape}; its draw needs {whole}")
        if 0 in shape:
            continue
        if parameters.affine is not None:
            moved.append(i)
            continue
        flips = [axis + 1 for axis in parameters.mirror]
        place = [
            slice(patch[axis] - end, patch[axis] - first)
            if axis in parameters.mirror
            else slice(first, end)
            for axis, (first, end) in enumerate(zip(offset, ends, strict=True))
        ]
        for target, source in ((batch, image), (found, maps[i])):
            target[i, :, place[0], place[1], place[2]] = source.flip(flips) if flips else source
    axes = slice(1 if augmentation.in_plane else 0, 3)  # along which voxels move
    middle = (np.array(augmentation.loaded_shape) - 1) / 2
    # slices are small, and many are quickest together
    groups = [moved] if patch[0] == 1 else [[i] for i in moved]
    for group in filter(None, groups):
        starts = np.array([(0, 0, 0) if offsets is None else offsets[i] for i in group])
        warp = Warp(
            affines=np.stack([_mirrored(draws[i])[axes, axes] for i in group]),
            centres=(middle - starts)[:, axes],
            patch_size=tuple(patch)[axes],
        )
        depth = images[group[0]].shape[1]
        slices = slice(starts[0][0], starts[0][0] + depth) if augmentation.in_plane else slice(None)
        parts = [[values[i] for i in group] for values in (images, maps)]
        if augmentation.in_plane:  # slices share positions as channels do
            parts = [[values.flatten(0, 1) for values in each] for each in parts]
        results = sample_boxes(parts[0], parts[1], warp)
        index = torch.tensor(group, device=device)
        for target, result in zip((batch, found), results, strict=True):
            unfolded = result.reshape(len(group), target.shape[1], -1, *patch[1:])
            across = slices
            if augmentation.flat and 0 in draws[group[0]].mirror:
                across = slice(patch[0] - slices.stop, patch[0] - slices.start)
                unfolded = unfolded.flip([2])
            target[index, :, across] = unfolded
    return batch, found


def _mirrored(parameters: Draw) -> NDArray[np.float64]:
    """Give the affine of a draw behind its mirrors."""
    assert parameters.affine is not None, "only samples that are moved come here"
    signs = np.ones(3)
    signs[list(parameters.mirror)] = -1
    return parameters.affine * signs


def _add_noise(batch: Tensor, draws: Sequence[Draw]) -> None:
    """Add Gaussian noise, each sample's from its own seed, whatever else is in the batch."""
    for image, parameters in zip(batch, draws, strict=True):
        if parameters.noise_std > 0:
            generator = torch.Generator(batch.device).manual_seed(parameters.noise_seed)
            noise = torch.randn(image.shape, generator=generator, device=batch.device)
            if parameters.mirror:
                noise = noise.flip([axis + 1 for axis in parameters.mirror])
            image.add_(noise, alpha=parameters.noise_std)


def _change_intensities(batch: Tensor, draws: Sequence[Draw], augmentation: Augmentation) -> None:
    """Change `batch` in place by everything between noise and mirroring, in the method's order."""
    rows = batch.flatten(0, 1)  # (sample * channel, z, y, x), a view
    zoomed = (1, 2) if augmentation.in_plane else (0, 1, 2)
    blurred = [axis for axis, edge in enumerate(augmentation.patch_size) if edge > 1]

    def blur(values: Tensor, sigmas: NDArray[np.float64]) -> Tensor:
        return _filter(values, {axis: (_blur_matrices, sigmas[:, axis]) for axis in blurred})

    def lower_resolution(values: Tensor, zooms: NDArray[np.float64]) -> Tensor:
        return _filter(values, {axis: (_zoom_matrices, zooms[:, [0, axis + 1]]) for axis in zoomed})

    def invert_and_gamma(values: Tensor, exponents: NDArray[np.float64]) -> Tensor:
        return -_gamma(-values, exponents)

    _change(rows, [parameters.blur for parameters in draws], 0.0, blur)
    _change(rows, [parameters.brightness for parameters in draws], 1.0, _brighten)
    _change(rows, [parameters.contrast for parameters in draws], 1.0, _contrast)
    zooms = [
        (zoom, *(axis in parameters.mirror and zoom != 1 for axis in range(3)))
        for parameters in draws
        for zoom in parameters.zoom
    ]
    _change(rows, zooms, [1.0, 0.0, 0.0, 0.0], lower_resolution)
    _change(rows, [parameters.gamma_inverted for parameters in draws], 1.0, invert_and_gamma)
    _change(rows, [parameters.gamma for parameters in draws], 1.0, _gamma)


def _change(
    rows: Tensor,
    parameters: Sequence[Sequence[object]],
    nothing: float | Sequence[float],
    transform: Callable[[Tensor, NDArray[np.float64]], Tensor],
) -> None:
    """Replace the rows whose parameters are not `nothing` by their transform, in place.

    The transform gets some rows (row, z, y, x) with their parameters (row, value).
    """
    values = np.array(parameters, dtype=np.float64).reshape(len(rows), -1)
    fired = np.flatnonzero((values != nothing).any(axis=1))
    step = max(1, BLOCK // rows[0].numel())
    for start in range(0, len(fired), step):
        chosen = fired[start : start + step]
        index = torch.from_numpy(chosen).to(rows.device)
        rows[index] = transform(rows[index], values[chosen])


def _brighten(rows: Tensor, factors: NDArray[np.float64]) -> Tensor:
    return rows * _per_row(factors, rows)


def _contrast(rows: Tensor, factors: NDArray[np.float64]) -> Tensor:
    """Stretch each row about its mean, within the range that it had."""
    mean = rows.mean(dim=(1, 2, 3), keepdim=True)
    low, high = rows.amin(dim=(1, 2, 3), keepdim=True), rows.amax(dim=(1, 2, 3), keepdim=True)
    return torch.clamp((rows - mean) * _per_row(factors, rows) + mean, low, high)


def _gamma(rows: Tensor, exponents: NDArray[np.float64]) -> Tensor:
    """Raise each row, scaled to 0 to 1, to its exponent; restore range, then mean and deviation."""
    low, high = rows.amin(dim=(1, 2, 3), keepdim=True), rows.amax(dim=(1, 2, 3), keepdim=True)
    span = high - low
    bent = ((rows - low) / span.clamp(min=TINY)).pow_(_per_row(exponents, rows))
    bent = bent.mul_(span).add_(low)
    mean, deviation = _mean_and_deviation(rows)
    bent_mean, bent_deviation = _mean_and_deviation(bent)
    return bent.sub_(bent_mean).mul_(deviation / bent_deviation.clamp(min=TINY)).add_(mean)


def _mean_and_deviation(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Give both, (row, 1, 1, 1), the deviation of a sample; quicker than torch's on a CPU."""
    mean = rows.mean(dim=(1, 2, 3), keepdim=True)
    norm = torch.linalg.vector_norm(rows - mean, dim=(1, 2, 3), keepdim=True)
    return mean, norm / math.sqrt(max(rows[0].numel() - 1, 1))


def _per_row(values: NDArray[np.float64], rows: Tensor) -> Tensor:
    """Give the one parameter of each row, to be broadcast over its voxels."""
    return torch.from_numpy(values[:, 0]).to(rows).view(-1, 1, 1, 1)


def _filter(
    rows: Tensor,
    filters: dict[
        int, tuple[Callable[[NDArray[np.float64], int], NDArray[np.float32]], NDArray[np.float64]]
    ],
) -> Tensor:
    """Apply a linear filter of its own to each row along some axes.

    A filter is a matrix for each row: blur with its reflection, and a fall in resolution with the
    way back, are one product an axis, batched over rows of different parameters.

    Args:
        rows: (row, z, y, x).
        filters: For an axis what makes the matrices (row, out, in), and the rows' parameters.
    """
    subscripts = {0: "rij,rjyx->riyx", 1: "rij,rzjx->rzix", 2: "rij,rzyj->rzyi"}
    for axis, (make, values) in filters.items():
        matrices = torch.from_numpy(make(values, rows.shape[axis + 1])).to(rows.device)
        rows = torch.einsum(subscripts[axis], matrices, rows)
    return rows


def _blur_matrices(sigmas: NDArray[np.float64], edge: int) -> NDArray[np.float32]:
    """Give Gaussian filters (row, edge, edge) that reflect at the borders.

    A kernel has the odd number of taps next to 6 sigma + 0.5; its weights sum to 1.
    """
    radii = np.floor((6 * sigmas + 0.5) / 2)
    offsets = np.arange(-int(radii.max()), int(radii.max()) + 1)
    kernels = np.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)
    kernels[np.abs(offsets) > radii[:, None]] = 0
    kernels /= kernels.sum(axis=1, keepdims=True)

    matrices = np.zeros((len(sigmas), edge, edge), dtype=np.float32)
    places = np.arange(edge)
    for tap, offset in enumerate(offsets):
        reflected = np.abs((places + offset + edge - 1) % (2 * edge - 2) - (edge - 1))
        matrices[:, places, reflected] += kernels[:, tap, None].astype(np.float32)
    return matrices


def _zoom_matrices(zooms: NDArray[np.float64], edge: int) -> NDArray[np.float32]:
    """Give filters (row, edge, edge) that go to a lower resolution (nearest) and back (linear).

    `zooms` (row, 2) has the share of the edge, and 1 where the row is mirrored: the nearest voxel
    of two is not the same one from the other side.
    """
    shares, mirrored = zooms[:, 0], zooms[:, 1] > 0
    small = np.rint(edge * shares).astype(np.int64).clip(1)[:, None]  # (row, 1)
    position = ((np.arange(edge) + 0.5) * small / edge - 0.5).clip(0)  # (row, edge)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, small - 1)
    fraction = (position - low).astype(np.float32)

    matrices = np.zeros((len(zooms), edge, edge), dtype=np.float32)
    row, place = np.arange(len(zooms))[:, None], np.arange(edge)
    for index, weight in ((low, 1 - fraction), (high, fraction)):
        nearest = (2 * index + 1) * edge // (2 * small)
        matrices[row, place, nearest] += weight
    matrices[mirrored] = matrices[mirrored, ::-1, ::-1]
    return matrices
