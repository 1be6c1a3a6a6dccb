"""Random changes of intensities, in place: noise, blur, brightness, contrast, resolution, gamma.

A transform runs once for all rows (one channel of one sample) for which it fired.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnseg.model.draws import Augmentation, Draw

TINY = 1e-7  # keeps gamma of a constant channel from dividing by 0
BLOCK = 2**20  # voxels that an intensity transform takes at once, so that its steps meet in cache


def change_intensities(batch: Tensor, draws: Sequence[Draw], augmentation: Augmentation) -> None:
    """Change a batch in place by everything between scaling and mirroring, in the method's order.

    Args:
        batch: (sample, channel, z, y, x) float32, mirrored before.
        draws: The parameters of each sample.
        augmentation: The rules by which they were drawn.
    """
    _add_noise(batch, draws)
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


def _add_noise(batch: Tensor, draws: Sequence[Draw]) -> None:
    """Add Gaussian noise, each sample's from its own seed, whatever else is in the batch."""
    for image, parameters in zip(batch, draws, strict=True):
        if parameters.noise_std > 0:
            generator = torch.Generator(batch.device).manual_seed(parameters.noise_seed)
            noise = torch.randn(image.shape, generator=generator, device=batch.device)
            if parameters.mirror:
                noise = noise.flip([axis + 1 for axis in parameters.mirror])
            image.add_(noise, alpha=parameters.noise_std)


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
