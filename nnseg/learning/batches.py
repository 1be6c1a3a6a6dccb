"""Patches of preprocessed cases, augmented and stacked: what a training step is given.

Batch b of epoch e is a pure function of (seed, fold, e, b), whoever makes it and when.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Barrier
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnseg.axes import Box, Shape
from nnseg.errors import DataError, NnsegError
from nnseg.model.augment import augment, reach
from nnseg.model.device import is_out_of_memory
from nnseg.model.draws import Augmentation, Draw, draw
from nnseg.model.mixup import Mixed, Mixing, draw_mixing, mix
from nnseg.model.previous import Spoiling, draw_spoiling, spoil, to_channels
from nnseg.model.sampling import PatchDraw, draw_patch, inner_start, is_forced, sample_rng
from nnseg.plan import Configuration
from nnseg.preprocess import ANNOTATED
from nnseg.store import TrainingCase

WORKERS = 4  # that feed a GPU, where there are so many cores
AHEAD = 2  # batches ready or being made, besides one a worker
# Of a GPU's free memory that the cases of one call may take: training and validation cases are two
# calls before there is a network, which needs all that they leave.
DEVICE_SHARE = 0.15
UNREADABLE = (RuntimeError, OSError, ValueError)  # what Blosc2 raises of damaged data


class Batch(NamedTuple):
    """What a training step is given."""

    image: Tensor  # (batch, channel, z, y, x), float32
    segmentation: Tensor  # (batch, z, y, x), int16
    case_ids: list[str]  # of all that it shows; where it is mixed, of partners from elsewhere, too
    mixed: Mixed | None = None  # what its images show besides; None where they are not mixed


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSource:
    """What batches are cut from, and how; validation has no augmentation and no mixup.

    A cascade has `previous`: for every case a label map of positions (z, y, x) from the stage
    before, on the case's grid. It becomes a channel for each of `previous_labels` labels, behind
    those of the image.
    """

    cases: Sequence[TrainingCase]
    configuration: Configuration
    seed: int
    fold: str
    batch_size: int
    device: torch.device
    augmentation: Augmentation | None
    previous: Sequence[Any] | None = None
    previous_labels: int = 0
    samples: range | None = None  # of the batch that are made here; None: all
    mixup: float | None = None  # alpha of the shares; see `draw_mixing`

    def __post_init__(self) -> None:
        if self.previous is not None and len(self.previous) != len(self.cases):
            raise DataError(
                f"previous has {len(self.previous)} label maps for {len(self.cases)} cases; give "
                "one for each"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """What is drawn for one sample before any voxel is read."""

    place: PatchDraw  # its start is that of the loaded shape
    draw: Draw | None
    spoiling: Spoiling


def make_batches(
    source: BatchSource, epoch: int, numbers: range, *, workers: int | None = None
) -> Iterator[Batch]:
    """Make batches in order; the next ones while the caller works with one.

    What comes out does not depend on the number of workers. Whoever stops early need only close
    the iterator: no thread outlives it.

    Args:
        source: Where they come from.
        epoch: Its number; -1 is for validation.
        numbers: Of the batches.
        workers: Threads; 0 makes each batch when it is asked for. None is what suits the device:
            0 on a CPU, whose cores the network needs.

    Raises:
        DataError: A case is damaged. It comes as soon as a worker has met it.
    """
    if workers is None:
        workers = 0 if source.device.type == "cpu" else min(WORKERS, os.cpu_count() or 1)
    if not workers:
        for each in numbers:
            yield make_batch(source, epoch, each)
        return
    coming = iter(numbers)
    pending: deque[Future[Batch]] = deque()
    with _pool(workers) as pool:
        while True:
            while len(pending) < workers + AHEAD and (number := next(coming, None)) is not None:
                pending.append(pool.submit(_make_batch, source, epoch, number))
            if not pending:
                return
            while not pending[0].done():
                wait([one for one in pending if not one.done()], return_when=FIRST_COMPLETED)
                for made in pending:
                    if made.done():
                        made.result()  # a fault is told before the batches in front of it
            yield pending.popleft().result()


@contextmanager
def _alone() -> Iterator[None]:
    """Have torch compute in the calling thread only.

    Its steps here are short: threads that wait for each other cost more than they save, by far
    where other work has the cores, and sums would come out as many threads cut them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Start threads in each of which torch computes alone; all have ended at the end."""
    threads = torch.get_num_threads()
    met = Barrier(workers + 1)

    def begin() -> None:
        torch.get_num_threads()  # has torch take its number for this thread, once and for all
        torch.set_num_threads(1)  # of this thread; that of later ones is put right below
        met.wait()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="nnseg-batches")
    try:
        started = [pool.submit(begin) for _ in range(workers)]
        met.wait()
        for each in started:
            each.result()
        torch.set_num_threads(threads)
        yield pool
    finally:
        met.abort()  # nobody waits there any more, unless not all threads could be started
        pool.shutdown(cancel_futures=True)


def keep_on_device(
    cases: Sequence[TrainingCase], device: torch.device, share: float = DEVICE_SHARE
) -> Sequence[TrainingCase]:
    """Give the cases with their arrays on a GPU, if they fit into a share of its free memory.

    Patches are then cut there, and nothing travels in a step. Otherwise, and on a CPU, the cases
    come back as they are.
    """
    if device.type != "cuda":
        return cases
    free, _ = torch.cuda.mem_get_info(device)
    channels = [case.image.shape[0] for case in cases]
    voxels = [int(np.prod(case.shape)) for case in cases]
    if sum(n * (4 * c + 4) for n, c in zip(voxels, channels, strict=True)) > share * free:
        return cases
    return [
        replace(
            case,
            image=torch.from_numpy(np.asarray(case.image[...])).to(device),
            segmentation=torch.from_numpy(case.segmentation[...].astype(np.int16)).to(device),
            mask=None
            if case.mask is None
            else torch.from_numpy(case.mask[...].astype(np.int16)).to(device),
        )
        for case in cases
    ]


def make_batch(source: BatchSource, epoch: int, number: int) -> Batch:
    """Make batch `number` of an epoch.

    Returns:
        It, its tensors on the source's device.

    Raises:
        DataError: A case is damaged.
    """
    with _alone():
        return _make_batch(source, epoch, number)


def _make_batch(source: BatchSource, epoch: int, number: int) -> Batch:
    """Do the work of `make_batch` where torch computes in this thread only."""
    shapes = [case.shape for case in source.cases]
    locations = [case.locations for case in source.cases]
    own = list(range(source.batch_size) if source.samples is None else source.samples)
    mixing = _draw_mixing(source, epoch, number)
    partners = [mixing.partner(each, source.batch_size) for each in own] if mixing else []
    wanted = list(dict.fromkeys([*own, *partners]))  # another rank may have partners, too
    samples = [_draw_sample(source, shapes, locations, epoch, number, sample) for sample in wanted]
    case_ids = [source.cases[sample.place.case].case_id for sample in samples]
    try:
        image, segmentation = _make(source, samples)
    except NnsegError:
        raise
    except Exception as error:
        named = ", ".join(dict.fromkeys(case_ids))
        where = f"batch {number} of epoch {epoch + 1}, of the cases {named}"
        raise RuntimeError(f"{where}: {error}") from error
    if mixing is None:
        return Batch(image, segmentation, case_ids)
    others = [wanted.index(partner) for partner in partners]
    return Batch(
        mix(image[: len(own)], image[others], mixing.share),
        segmentation[: len(own)],
        case_ids,
        Mixed(segmentation=segmentation[others], share=mixing.share),
    )


def _draw_mixing(source: BatchSource, epoch: int, number: int) -> Mixing | None:
    """Draw how a batch is mixed, by the number behind that of its last sample."""
    if source.mixup is None:
        return None
    last = max(source.batch_size, 2)
    rng = sample_rng(source.seed, source.fold, epoch, number, last)
    return draw_mixing(source.mixup, source.batch_size, rng)


def _draw_sample(
    source: BatchSource,
    shapes: Sequence[Shape],
    locations: Sequence[dict[str, NDArray[np.int64]]],
    epoch: int,
    number: int,
    sample: int,
) -> _Sample:
    """Draw everything about a sample."""
    configuration, augmentation = source.configuration, source.augmentation
    size = configuration.patch_size
    rng = sample_rng(source.seed, source.fold, epoch, number, sample)
    place = draw_patch(
        rng,
        shapes,
        locations,
        forced=is_forced(sample, source.batch_size, number),
        patch_size=size,
        loaded=augmentation.loaded_shape if augmentation else size,
        annotated=ANNOTATED,
    )
    if augmentation is None:
        return _Sample(place=place, draw=None, spoiling=Spoiling())
    drawn = draw(augmentation, len(configuration.normalization), rng)
    spoiling = Spoiling()
    if source.previous is not None:
        spoiling = draw_spoiling(source.previous_labels, rng)
    return _Sample(place=place, draw=drawn, spoiling=spoiling)


def _make(source: BatchSource, samples: Sequence[_Sample]) -> tuple[Tensor, Tensor]:
    """Read samples and augment them: image and segmentation."""
    augmentation, size = source.augmentation, source.configuration.patch_size
    masked = [channel for channel, use in enumerate(source.configuration.use_mask) if use]
    masked = masked if augmentation else []  # the images are 0 there until they are changed
    images, maps, offsets, draws = [], [], [], []
    for sample in samples:
        case, start = source.cases[sample.place.case], sample.place.start
        previous = None if source.previous is None else source.previous[sample.place.case]
        box: Box = ((0, size[0]), (0, size[1]), (0, size[2]))
        if augmentation and sample.draw:
            draws.append(sample.draw)
            box = reach(sample.draw, augmentation)
            if sample.draw.affine is None:
                start = inner_start(start, augmentation.loaded_shape, size)
        inside, offset = clip_box(start, box, case.shape)
        try:
            image, labels = _read(case, previous, inside, masked=bool(masked))
        except UNREADABLE as error:
            if is_out_of_memory(error):
                raise
            raise DataError(
                f"case {case.case_id}: its arrays cannot be read ({error}); run `nnseg preprocess`"
            ) from error
        images.append(_move(image, source.device))
        maps.append(_move(labels, source.device))
        offsets.append(offset)
    if augmentation is None:
        image, found = _stack(images, maps, offsets, size)
    else:
        image, found = augment(
            images, maps, draws, augmentation, masked_channels=masked, offsets=offsets
        )
    if source.previous is not None:
        channels = to_channels(found[:, -1], source.previous_labels)
        for each, sample in zip(channels, samples, strict=True):
            spoil(each, sample.spoiling)
        image = torch.cat([image, channels], dim=1)
    return image, found[:, 0].contiguous()


def clip_box(start: Shape, box: Box, extent: Shape) -> tuple[tuple[slice, ...], Shape]:
    """Give what of a box lies in an array, and where that begins in the whole.

    Args:
        start: Voxel of the array where the whole begins; it may lie outside.
        box: Part of the whole, from its beginning.
        extent: Shape of the array.

    Returns:
        Slices of the array, and the offset of their first voxel from `start`. Where nothing lies
        in the array all slices are empty.
    """
    low = [max(s + first, 0) for s, (first, _) in zip(start, box, strict=True)]
    high = [min(s + last, edge) for s, (_, last), edge in zip(start, box, extent, strict=True)]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return (slice(0, 0),) * 3, (0, 0, 0)
    z, y, x = (a - s for a, s in zip(low, start, strict=True))
    return tuple(map(slice, low, high)), (z, y, x)


def _read(
    case: TrainingCase, previous: Any, inside: tuple[slice, ...], *, masked: bool
) -> tuple[Tensor, Tensor]:
    """Read a box: image (channel, z, y, x), and label maps (map, z, y, x) int16.

    The maps are the segmentation, the body mask if `masked`, and `previous` if there is one.
    """
    everything = (slice(None), *inside)
    image = _tensor(case.image[everything])
    labels = _tensor(case.segmentation[inside])
    maps = [labels]
    if masked:
        mask = torch.ones_like(labels) if case.mask is None else _tensor(case.mask[inside])
        maps.append(mask)
    if previous is not None:
        maps.append(_tensor(previous[inside]))
    return image, torch.stack([each.to(labels.device, torch.int16) for each in maps])


def _tensor(array: Any) -> Tensor:
    """Give an array, or what was cut from a tensor, as a tensor; its values are not copied."""
    if isinstance(array, Tensor):
        return array
    if not array.flags.writeable or array.dtype == np.uint16:
        array = array.astype(np.int32) if array.dtype == np.uint16 else array.copy()
    return torch.from_numpy(array)


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor to the device; to a GPU without waiting for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _stack(
    images: Sequence[Tensor], maps: Sequence[Tensor], offsets: Sequence[Shape], size: Shape
) -> tuple[Tensor, Tensor]:
    """Lay parts of patches out in whole ones, 0 elsewhere."""
    results = []
    for parts in (images, maps):
        shape = (len(parts), parts[0].shape[0], *size)
        whole = torch.zeros(shape, dtype=parts[0].dtype, device=parts[0].device)
        for target, part, offset in zip(whole, parts, offsets, strict=True):
            z, y, x = (slice(s, s + n) for s, n in zip(offset, part.shape[1:], strict=True))
            target[:, z, y, x] = part
        results.append(whole)
    return results[0], results[1]
