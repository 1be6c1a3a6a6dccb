"""The offset at which one label map agrees best with another."""

import itertools
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Segmentation, three

Offset: TypeAlias = tuple[int, int, int]  # voxels, (z, y, x)

GROUPS = 8  # of labels that are told apart, because each costs two transforms
MOST_VOXELS = 2**17  # transformed at once; of a larger map every n-th voxel is taken first


def best_offset(fixed: Segmentation, moving: Segmentation) -> Offset:
    """Find by how many voxels to move a label map so that most of its voxels agree with another.

    Label by label, correlations by Fourier transforms tell it for all offsets at once; those of
    more than half of the map along an axis are left out. What is found in a thinned map is improved
    in the map itself.

    Args:
        fixed: Label positions (z, y, x), 0 where there is no label.
        moving: The same, of the same shape.

    Returns:
        (z, y, x); none at all where no other is better.
    """
    step = 1
    while np.prod([-(-n // step) for n in fixed.shape]) > MOST_VOXELS:
        step += 1
    best = three(
        [step * at for at in _correlated(*(a[::step, ::step, ::step] for a in (fixed, moving)))]
    )
    score = _agreeing(fixed, moved(moving, best))
    while step > 1:
        step = (step + 1) // 2 if step > 2 else 1
        for axis, sign in itertools.product(range(3), (-1, 1)):
            trial = three([at + sign * step * (a == axis) for a, at in enumerate(best)])
            if (found := _agreeing(fixed, moved(moving, trial))) > score:
                best, score = trial, found
    return best


def moved(array: Segmentation, offset: Offset) -> Segmentation:
    """Move what an array (z, y, x) holds, within its bounds; 0 comes in."""
    result = np.zeros_like(array)
    to = tuple(slice(max(0, d), n + min(0, d)) for d, n in zip(offset, array.shape, strict=True))
    of = tuple(slice(max(0, -d), n + min(0, -d)) for d, n in zip(offset, array.shape, strict=True))
    if all(part.stop > part.start for part in to):
        result[to] = array[of]
    return result


def thinned(array: Segmentation, most: int) -> Segmentation:
    """Leave out slices of every axis, alike at both ends, until at most `most` voxels are left."""
    step = 1
    while np.prod([-(-n // step) for n in array.shape]) > most:
        step += 1
    return array[tuple(slice((n - 1) % step // 2, None, step) for n in array.shape)]


def _correlated(fixed: Segmentation, moving: Segmentation) -> Offset:
    """Find the offset of `moving` at which most voxels agree, of equals the nearest to none."""
    from scipy import fft

    padded = [fft.next_fast_len(2 * n - 1, real=True) for n in fixed.shape]
    groups = [np.where(a > 0, 1 + (a.astype(np.intp) - 1) % GROUPS, 0) for a in (fixed, moving)]
    product: NDArray[Any] = np.zeros(1)
    for group in range(1, int(max(array.max(initial=0) for array in groups)) + 1):
        there, here = (fft.rfftn((array == group).astype(np.float32), padded) for array in groups)
        product = product + there * here.conj()
    if product.ndim == 1:  # neither has a label
        return 0, 0, 0
    agreeing = np.rint(fft.irfftn(product, padded))
    offsets = [np.fft.fftfreq(n, 1 / n).round().astype(int) for n in padded]
    for axis, n in enumerate(fixed.shape):
        agreeing[(slice(None),) * axis + (np.abs(offsets[axis]) > n // 2,)] = -1
    ties = np.argwhere(agreeing == agreeing.max())
    candidates = [[int(of[at]) for of, at in zip(offsets, tie, strict=True)] for tie in ties]
    return three(min(candidates, key=lambda offset: sum(at * at for at in offset)))


def _agreeing(one: Segmentation, other: Segmentation) -> int:
    """Count the voxels in which two maps have the same label."""
    return int(((one == other) & (one > 0)).sum())
