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

from nnseg.axes import Shape
from nnseg.errors import PlanError
from nnseg.model.warp import find_positions, sample_images, sample_labels

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
P_CHANNEL = 0.5  # of each channel, once blur or low resolution has fired for the sample
P_MIRROR = 0.5  # of each axis

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

    def __post_init__(self) -> None:
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


def plan_augmentation(patch_size: Shape, dimensions: int, strength: str = "full") -> Augmentation:
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

    Raises:
        PlanError: There is no such strength.

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
    )


def draw(augmentation: Augmentation, channels: int, rng: np.random.Generator) -> Draw:
    """Draw every parameter of one sample of `channels` image channels.

    The noise itself is the only thing left to chance afterwards; it follows from `noise_seed`, on
    the device where it is added.
    """
    return Draw(
        affine=_draw_affine(augmentation, rng),
        noise_std=float(rng.uniform(*NOISE)) if rng.random() < P_NOISE else 0.0,
        noise_seed=int(rng.integers(2**63)),
        blur=_draw_blur(channels, rng),
        brightness=_draw_factors(P_BRIGHTNESS, BRIGHTNESS, channels, rng),
        contrast=_draw_factors(P_CONTRAST, CONTRAST, channels, rng),
        zoom=_draw_zoom(channels, rng),
        gamma_inverted=_draw_factors(P_GAMMA_INVERTED, GAMMA, channels, rng),
        gamma=_draw_factors(P_GAMMA, GAMMA, channels, rng),
        mirror=tuple(axis for axis in augmentation.mirror_axes if rng.random() < P_MIRROR),
    )


def augment(
    images: Sequence[Tensor],
    segmentations: Sequence[Tensor],
    masks: Sequence[Tensor] | None,
    draws: Sequence[Draw],
    augmentation: Augmentation,
    masked_channels: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Apply `draws` to a batch of samples and stack them; the inputs are left as they are.

    Order: rotation and scaling, noise, blur, brightness, contrast, low resolution, gamma of the
    inverted image, gamma, mirroring, zeros outside the mask.

    Args:
        images: For each sample (channel, z, y, x) float32, of the loaded shape where its draw has
            an affine and of the patch size elsewhere. All tensors are on one device.
        segmentations: For each sample a label map (z, y, x) of one integer type.
        masks: For each sample the body mask (z, y, x), bool; None when no channel is masked.
        draws: The parameters of each sample.
        augmentation: The rules by which they were drawn.
        masked_channels: Channels that are 0 outside the mask, before and so also afterwards.

    Returns:
        Images (batch, channel, z, y, x) float32 and label maps (batch, z, y, x) of their own
        type, both of the patch size. What lies outside the loaded image is 0 in both.
    """
    kind = segmentations[0].dtype
    if kind == torch.uint16:  # torch stores it, but compares and gathers it nowhere
        segmentations = [segmentation.int() for segmentation in segmentations]
    batch, labels, inside = _resample(images, segmentations, masks, draws, augmentation)
    _add_noise(batch, draws)
    _change_intensities(batch, draws, augmentation)
    if inside is not None:
        for channel in masked_channels:
            batch[:, channel].masked_fill_(~inside, 0)
    _mirror(batch, labels, draws)
    return batch, labels.to(kind)


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
    augmentation: Augmentation, rng: np.random.Generator
) -> NDArray[np.float64] | None:
    rotates, scales = rng.random() < P_ROTATION, rng.random() < P_SCALE
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


def _draw_blur(channels: int, rng: np.random.Generator) -> tuple[tuple[float, float, float], ...]:
    if rng.random() >= P_BLUR:
        return ((0.0, 0.0, 0.0),) * channels
    sigmas = rng.uniform(*BLUR, size=(channels, 3)) * (rng.random((channels, 1)) < P_CHANNEL)
    return tuple((z, y, x) for z, y, x in sigmas.tolist())


def _draw_zoom(channels: int, rng: np.random.Generator) -> tuple[float, ...]:
    if rng.random() >= P_ZOOM:
        return (1.0,) * channels
    zooms = rng.uniform(*ZOOM, size=channels)
    return tuple(np.where(rng.random(channels) < P_CHANNEL, zooms, 1.0).tolist())


def _draw_factors(
    probability: float, limits: tuple[float, float], channels: int, rng: np.random.Generator
) -> tuple[float, ...]:
    """Draw a factor for each channel, half of them below 1 and half above, or 1 for all."""
    if rng.random() >= probability:
        return (1.0,) * channels
    low, high = limits
    below = rng.random(channels) < 0.5
    return tuple(rng.uniform(np.where(below, low, 1.0), np.where(below, 1.0, high)).tolist())


def _resample(
    images: Sequence[Tensor],
    segmentations: Sequence[Tensor],
    masks: Sequence[Tensor] | None,
    draws: Sequence[Draw],
    augmentation: Augmentation,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Bring every sample to the patch size, and stack: images, label maps, masks."""
    patches = list(images)
    # the mask travels as a second label map, so that both share the arithmetic of positions
    maps = [segmentation[None] for segmentation in segmentations]
    if masks is not None:
        maps = [torch.cat([m, mask[None].to(m.dtype)]) for m, mask in zip(maps, masks, strict=True)]
    affines = {i: each.affine for i, each in enumerate(draws) if each.affine is not None}
    for i, image in enumerate(images):
        wanted = augmentation.loaded_shape if i in affines else augmentation.patch_size
        if tuple(image.shape[1:]) != wanted:
            raise ValueError(
                f"sample {i} has shape {tuple(image.shape[1:])}; its draw needs {wanted}"
            )

    first = 1 if augmentation.in_plane else 0  # of the axes along which voxels move
    # slices are small, and many are quickest together; volumes are not worth a stacked copy
    groups = [list(affines)] if augmentation.patch_size[0] == 1 else [[i] for i in affines]
    for group in filter(None, groups):
        matrices = np.stack([affines[i] for i in group])[:, first:, first:]
        device = images[group[0]].device
        positions = find_positions(matrices, augmentation.patch_size[first:], device)
        for values, sample in ((patches, sample_images), (maps, sample_labels)):
            loaded = torch.stack([values[i] for i in group])
            if augmentation.in_plane:
                loaded = loaded.flatten(1, 2)  # slices share positions as channels do
            sampled = sample(loaded, positions)
            sampled = sampled.reshape(len(group), -1, *augmentation.patch_size)
            for i, patch in zip(group, sampled, strict=True):
                values[i] = patch
    all_maps = torch.stack(maps)
    inside = all_maps[:, 1].bool() if masks is not None else None
    return torch.stack(patches), all_maps[:, 0], inside


def _add_noise(batch: Tensor, draws: Sequence[Draw]) -> None:
    """Add Gaussian noise, each sample's from its own seed, whatever else is in the batch."""
    for image, parameters in zip(batch, draws, strict=True):
        if parameters.noise_std > 0:
            generator = torch.Generator(batch.device).manual_seed(parameters.noise_seed)
            noise = torch.randn(image.shape, generator=generator, device=batch.device)
            image.add_(noise, alpha=parameters.noise_std)


def _change_intensities(batch: Tensor, draws: Sequence[Draw], augmentation: Augmentation) -> None:
    """Change `batch` in place by everything between noise and mirroring, in the method's order."""
    rows = batch.flatten(0, 1)  # (sample * channel, z, y, x), a view
    zoomed = (1, 2) if augmentation.in_plane else (0, 1, 2)
    blurred = [axis for axis, edge in enumerate(augmentation.patch_size) if edge > 1]

    def blur(values: Tensor, sigmas: NDArray[np.float64]) -> Tensor:
        return _filter(values, {axis: (_blur_matrices, sigmas[:, axis]) for axis in blurred})

    def lower_resolution(values: Tensor, zooms: NDArray[np.float64]) -> Tensor:
        return _filter(values, dict.fromkeys(zoomed, (_zoom_matrices, zooms[:, 0])))

    def invert_and_gamma(values: Tensor, exponents: NDArray[np.float64]) -> Tensor:
        return -_gamma(-values, exponents)

    _change(rows, [parameters.blur for parameters in draws], 0.0, blur)
    _change(rows, [parameters.brightness for parameters in draws], 1.0, _brighten)
    _change(rows, [parameters.contrast for parameters in draws], 1.0, _contrast)
    _change(rows, [parameters.zoom for parameters in draws], 1.0, lower_resolution)
    _change(rows, [parameters.gamma_inverted for parameters in draws], 1.0, invert_and_gamma)
    _change(rows, [parameters.gamma for parameters in draws], 1.0, _gamma)


def _change(
    rows: Tensor,
    parameters: Sequence[Sequence[object]],
    nothing: float,
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
    """Give filters (row, edge, edge) that go to a lower resolution (nearest) and back (linear)."""
    small = np.rint(edge * zooms).astype(np.int64).clip(1)[:, None]  # (row, 1)
    position = ((np.arange(edge) + 0.5) * small / edge - 0.5).clip(0)  # (row, edge)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, small - 1)
    fraction = (position - low).astype(np.float32)

    matrices = np.zeros((len(zooms), edge, edge), dtype=np.float32)
    row, place = np.arange(len(zooms))[:, None], np.arange(edge)
    for index, weight in ((low, 1 - fraction), (high, fraction)):
        nearest = (2 * index + 1) * edge // (2 * small)
        matrices[row, place, nearest] += weight
    return matrices


def _mirror(batch: Tensor, labels: Tensor, draws: Sequence[Draw]) -> None:
    """Flip image and label map of each sample together, in place."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, parameters in enumerate(draws):
        if parameters.mirror:
            groups.setdefault(parameters.mirror, []).append(i)
    for axes, group in groups.items():
        index = torch.tensor(group, device=batch.device)
        batch[index] = batch[index].flip([axis + 2 for axis in axes])
        labels[index] = labels[index].flip([axis + 1 for axis in axes])
