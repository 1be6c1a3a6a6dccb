"""Which patch of which case is sample j of batch b of epoch e: a pure function of a seed.

Nothing here reads voxels: a draw says what to read. So any number of workers makes the same
batches, and a training that goes on makes those it would have made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Shape

FOREGROUND_SHARE = 0.33  # of the samples are centred on a label
SINGLE_EVERY = 3  # where a batch is a single sample, every third batch is


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchDraw:
    """One sample of a batch: which case, and where the patch begins (may lie outside)."""

    case: int
    start: Shape


def sample_rng(seed: int, fold: str, epoch: int, batch: int, sample: int) -> np.random.Generator:
    """Give the generator of one sample; `epoch` -1 is for validation."""
    key = [seed, crc32(fold.encode()), epoch + 1, batch, sample]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def is_forced(sample: int, batch_size: int, number: int) -> bool:
    """Whether a sample of a batch must show a label: the last third of them, rounded.

    Of a single sample that would be none, ever. There it is every third batch, by `number`, the
    batch's in its epoch.

    Source: nnU-Net v2, oversampling of the foreground; the rule for single samples is ours.

    >>> [j for j in range(9) if is_forced(j, 9, 0)]
    [6, 7, 8]
    >>> [b for b in range(9) if is_forced(0, 1, b)]
    [2, 5, 8]
    """
    if batch_size == 1:
        return number % SINGLE_EVERY == SINGLE_EVERY - 1
    return sample >= round(batch_size * (1 - FOREGROUND_SHARE))


def draw_patch(
    rng: np.random.Generator,
    shapes: Sequence[Shape],
    locations: Sequence[dict[str, NDArray[np.int64]]],
    *,
    forced: bool,
    patch_size: Shape,
    loaded: Shape,
    annotated: str,
) -> PatchDraw:
    """Draw a case and a place in it.

    Args:
        rng: Of this sample.
        shapes: Voxels of every case, plan order.
        locations: For every case, label name to flat voxel indices.
        forced: Centre on a label, each one of the case with the same chance.
        patch_size: What the network sees.
        loaded: What is read, larger than `patch_size` where augmentation rotates.
        annotated: Name among the locations of voxels that are not ignored; where a case has it,
            samples that are not forced centre on one of them.

    Returns:
        The case's number and the first voxel of the loaded box; the box may reach over the
        border, most for a case smaller than the patch.

    Source: nnU-Net v2, patch sampling. A forced patch may reach over the upper border there
    without limit; the same here, so that a label at the border can lie in the centre.
    """
    case = int(rng.integers(len(shapes)))
    shape, found = shapes[case], locations[case]
    names = [name for name in found if name != annotated]
    if forced and not names:
        names = [name for name in found if name == annotated]
    if not forced:
        names = [name for name in found if name == annotated]
    centre = None
    if names:
        voxels = found[names[int(rng.integers(len(names)))]]
        flat = int(voxels[int(rng.integers(len(voxels)))])
        centre = np.unravel_index(flat, shape)
    start = []
    for axis in range(3):
        margin = max(loaded[axis] - patch_size[axis], loaded[axis] - shape[axis])
        lowest = -(margin // 2) - margin % 2
        highest = shape[axis] + margin // 2 + margin % 2 - loaded[axis]
        if centre is None:
            start.append(int(rng.integers(lowest, highest, endpoint=True)))
        else:
            start.append(max(lowest, int(centre[axis]) - loaded[axis] // 2))
    return PatchDraw(case=case, start=cast(Shape, tuple(start)))


def inner_start(start: Shape, loaded: Shape, patch_size: Shape) -> Shape:
    """Give the first voxel of the patch in the middle of a loaded box: their centres meet.

    Source: nnU-Net v2, which rounds so.
    """
    z, y, x = (s + n // 2 - p // 2 for s, n, p in zip(start, loaded, patch_size, strict=True))
    return z, y, x
