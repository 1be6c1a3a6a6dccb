"""Patches of preprocessed cases, augmented and stacked: what a training step is given.

Batch b of epoch e is a pure function of (seed, fold, e, b), whoever makes it and when.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnseg.axes import Shape
from nnseg.model.augment import Augmentation, augment, draw
from nnseg.model.sampling import draw_patch, inner_start, is_forced, sample_rng
from nnseg.plan import Configuration
from nnseg.preprocess import ANNOTATED
from nnseg.store import TrainingCase

Batch: TypeAlias = tuple[Tensor, Tensor, list[str]]  # image, segmentation, case ids

AHEAD = 2  # batches made while a GPU computes


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSource:
    """What batches are cut from, and how; validation has no augmentation."""

    cases: Sequence[TrainingCase]
    configuration: Configuration
    seed: int
    fold: str
    batch_size: int
    device: torch.device
    augmentation: Augmentation | None


def make_batches(source: BatchSource, epoch: int, numbers: range) -> Iterator[Batch]:
    """Make batches in order; for a GPU the next ones are made while it computes."""
    if source.device.type == "cpu":
        yield from (make_batch(source, epoch, number) for number in numbers)
        return
    with ThreadPoolExecutor(1) as pool:
        pending = [pool.submit(make_batch, source, epoch, n) for n in numbers[:AHEAD]]
        for following in [*numbers[AHEAD:], *[None] * len(pending)]:
            batch = pending.pop(0).result()
            if following is not None:
                pending.append(pool.submit(make_batch, source, epoch, following))
            yield batch


def make_batch(source: BatchSource, epoch: int, number: int) -> Batch:
    """Make batch `number` of an epoch.

    Returns:
        Image (batch, channel, z, y, x), float32; segmentation (batch, z, y, x), int16; the case
        ids. Both tensors are on the source's device.
    """
    configuration, size = source.configuration, source.configuration.patch_size
    augmentation = source.augmentation
    loaded = augmentation.loaded_shape if augmentation else size
    masked = [channel for channel, use in enumerate(configuration.use_mask) if use]
    shapes = [case.shape for case in source.cases]
    locations = [case.locations for case in source.cases]
    images, segmentations, masks, draws, case_ids = [], [], [], [], []
    for sample in range(source.batch_size):
        rng = sample_rng(source.seed, source.fold, epoch, number, sample)
        place = draw_patch(
            rng,
            shapes,
            locations,
            forced=is_forced(sample, source.batch_size),
            patch_size=size,
            loaded=loaded,
            annotated=ANNOTATED,
        )
        start, shape = place.start, loaded
        if augmentation:
            draws.append(draw(augmentation, len(configuration.normalization), rng))
            if draws[-1].affine is None:  # nothing turns: the middle of the box is enough
                start, shape = inner_start(start, loaded, size), size
        case = source.cases[place.case]
        images.append(torch.from_numpy(read_patch(case.image, start, shape)))
        patch = read_patch(case.segmentation, start, shape)
        segmentations.append(torch.from_numpy(patch.astype(np.int16)))
        if masked and augmentation:
            masks.append(torch.from_numpy(read_mask(case, start, shape)))
        case_ids.append(case.case_id)
    images, segmentations, masks = (
        [tensor.to(source.device) for tensor in tensors]
        for tensors in (images, segmentations, masks)
    )
    if augmentation is None:
        return torch.stack(images), torch.stack(segmentations), case_ids
    image, segmentation = augment(
        images, segmentations, masks if masked else None, draws, augmentation, masked
    )
    return image, segmentation, case_ids


def read_patch(array: Any, start: Shape, shape: Shape) -> NDArray[Any]:
    """Cut a box out of the last three axes of `array`; 0 where it reaches over the border."""
    extent = array.shape[-3:]
    low = [max(s, 0) for s in start]
    high = [min(s + n, e) for s, n, e in zip(start, shape, extent, strict=True)]
    result = np.zeros((*array.shape[:-3], *shape), dtype=array.dtype)
    if all(a < b for a, b in zip(low, high, strict=True)):
        inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        place = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
        lead = (slice(None),) * (len(array.shape) - 3)
        result[lead + place] = array[lead + inside]
    return result


def read_mask(case: TrainingCase, start: Shape, shape: Shape) -> NDArray[np.bool_]:
    """Cut a box out of the body mask of a case; False where it reaches over the border."""
    mask = np.broadcast_to(np.uint8(1), case.shape) if case.mask is None else case.mask
    return read_patch(mask, start, shape).astype(bool)
