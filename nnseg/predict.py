"""Stage 5, a preprocessed image to logits: tiles, mirrors and folds.

The logits leave plane by plane as soon as no further tile reaches them, so that never more of them
is held than a tile is deep, however long the image and however many the folds.
"""

import copy
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnseg.axes import Box, Image, Planes, Shape, three
from nnseg.checkpoint import Checkpoint
from nnseg.errors import DataError, StoppedError
from nnseg.image.crop import cut
from nnseg.model.architecture import Architecture
from nnseg.model.backbone_records import TIMM
from nnseg.model.device import OUT_OF_MEMORY, Execution, is_out_of_memory
from nnseg.model.interruptible import Interruptible
from nnseg.model.kinds import planned_elements
from nnseg.model.tiles import tile_boxes, tile_shares, tile_starts
from nnseg.networks.build import build_network

logger = logging.getLogger(__name__)

BATCH_VOXELS = 2**19  # of the tiles that are computed together, or fewer, so that their logits
BATCH_BYTES = 2**26  # take no more than this
RUN_BYTES = 2**25  # of the planes that are handed on together
KEPT_BYTES = 2**28  # of the logits of constant tiles, which are kept for the next one

OnTile: TypeAlias = Callable[[int, int], None]
Activation: TypeAlias = Callable[[Tensor], Tensor]


def never() -> bool:
    """Say that nobody wants to stop."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """How a sliding window goes over an image, and who is told and asked."""

    step: float = 0.5  # distance of two tiles, as a share of the tile
    mirror: bool = True  # average over mirrored images, too
    on_tile: OnTile | None = None  # called with the tiles done and their number
    stop: Callable[[], bool] = never  # asked often, within a network's pass, too; True ends it

    def ask(self) -> None:
        """Ask whether to stop.

        Raises:
            StoppedError: It is so.
        """
        if self.stop():
            raise StoppedError("stopped while an image was predicted; nothing of it is kept")


PLAIN_SWEEP = Sweep()


def load_network(
    checkpoint: Checkpoint, weights: dict[str, Tensor], execution: Execution
) -> nn.Module:
    """Build the network of a checkpoint, ready to predict.

    The weights are held against a network without any first: a plan that somebody else wrote may
    describe one for which no machine has room.

    Raises:
        DataError: The weights are of another network.
        PlanError: There is no such network.
    """
    architecture = checkpoint.configuration.architecture
    plan = checkpoint.plan
    channels = plan.input_channels(checkpoint.configuration_name)
    build = partial(build_network, architecture, channels, plan.labels.heads)
    try:
        if not (architecture.options.backbone or "").startswith(TIMM):  # whose code needs values
            with torch.device("meta"):
                build().load_state_dict(weights, assign=True)
        network = build()
        network.load_state_dict(weights)
    except RuntimeError as error:  # all that differs, a line each
        first = str(error).splitlines()[-1].strip()[:200]  # it names every tensor
        raise DataError(
            f"{checkpoint.weights_file}: holds the weights of another network than its plan "
            f"describes ({first}); restore the model"
        ) from None
    return execution.place(network, architecture.dimensions, constant=True).eval()


@torch.inference_mode()
def stream_logits(
    networks: Sequence[nn.Module],
    image: Image,
    patch_size: Shape,
    execution: Execution,
    *,
    mirror_axes: Sequence[int] = (),
    sweep: Sweep = PLAIN_SWEEP,
    spread: Activation | None = None,
) -> Iterator[Planes]:
    """Predict a preprocessed image by a sliding window.

    A tile that is the same value throughout, as around a body, is computed once. Where memory does
    not suffice, fewer tiles are computed at once; then what is on a GPU moves to the CPU. On a CPU
    a sweep that can be stopped does its largest convolutions in parts. Nothing but rounding changes
    in what comes out.

    Args:
        networks: One a fold; their logits are averaged.
        image: (channel, z, y, x), preprocessed.
        patch_size: Voxels of a tile; a smaller image is padded with 0 on all sides.
        execution: Device and number type. Sums are kept in fp32 if that is it, else in fp16.
        mirror_axes: Axes of (z, y, x) that may be mirrored; the mean over all combinations counts.
        sweep: How the window goes.
        spread: What makes probabilities of logits, along axis 1. Given, the variance of the
            folds' probabilities, summed over the heads, is added as a last head.

    Yields:
        Logits (z, y, x, head), float32: the image's planes in order, some at a time.

    Raises:
        DataError: The networks gave values that are not finite, of which no label follows.
        StoppedError: The sweep was told to stop.
    """
    shape = three([max(n, p) for n, p in zip(image.shape[1:], patch_size, strict=True)])
    low = [(n - m) // 2 for n, m in zip(shape, image.shape[1:], strict=True)]  # of the padding
    inside = [slice(a, a + m) for a, m in zip(low, image.shape[1:], strict=True)]
    boxes = tile_boxes(shape, patch_size, sweep.step)
    shares = [
        dict(zip(tile_starts(n, p, sweep.step), tile_shares(n, p, sweep.step), strict=True))
        for n, p in zip(shape, patch_size, strict=True)
    ]
    flips = mirror_combinations(mirror_axes if sweep.mirror else ())
    work = _Work(networks, execution, flips, spread, sweep, patch_size)
    sums = _Sums(shape, execution)
    done = 0
    while done < len(boxes):
        group = boxes[done : done + work.at_once]
        found = work.logits([_cut(image, box, low) for box in group])
        for box, logits in zip(group, found, strict=True):
            sweep.ask()
            starts = [start for start, _ in box]
            sums.add(logits, starts, [s[start] for s, start in zip(shares, starts, strict=True)])
        work.at_once = min(work.at_once, max(1, BATCH_BYTES // (4 * logits.numel())))
        del found, logits  # or they would be there still while the next ones are computed
        done += len(group)
        if sweep.on_tile:
            sweep.on_tile(done, len(boxes))
        for planes in sums.leave(boxes[done][0][0] if done < len(boxes) else shape[0], inside):
            yield planes
            sweep.ask()  # whoever took them may have worked on them for long


def count_tiles(shape: Shape, patch_size: Shape, step: float = 0.5) -> int:
    """Give the number of tiles of a preprocessed image of `shape` voxels."""
    z, y, x = (max(n, p) for n, p in zip(shape, patch_size, strict=True))
    return len(tile_boxes((z, y, x), patch_size, step))


def tile_seconds(
    network: nn.Module,
    channels: int,
    patch_size: Shape,
    execution: Execution,
    mirror_axes: Sequence[int],
) -> float:
    """Measure the seconds of a tile with all its mirrors, on an image of `channels`."""
    z, y, x = patch_size
    shape = (z * (_tiles_at_once(patch_size) + 1) // 2, y, x)  # tiles lie half of one apart
    image = np.random.default_rng(0).normal(size=(channels, *shape)).astype(np.float32)
    training = network.training
    network.eval()
    seconds = []
    for _ in range(2):  # the first time pays for what later times find done
        start = time.monotonic()
        for _planes in stream_logits(
            (network,), image, patch_size, execution, mirror_axes=mirror_axes
        ):
            pass
        seconds.append(time.monotonic() - start)
    network.train(training)
    return min(seconds) / count_tiles(shape, patch_size)


def bytes_of_sweep(
    architecture: Architecture,
    shape: Shape,
    patch_size: Shape,
    heads: int,
    execution: Execution,
) -> tuple[int, int]:
    """Foretell the most bytes that `stream_logits` takes where a network is computed.

    Args:
        architecture: Of the networks.
        shape: Voxels of the preprocessed image.
        patch_size: Voxels of a tile.
        heads: Of the networks.
        execution: Device and number type.

    Returns:
        What a pass takes, the tiles left out: as many feature maps as the network is planned by, of
        the tiles that are computed together. And what is there all the time: the sums, as deep as a
        tile, and runs of planes.
    """
    size = 4 if execution.precision == "fp32" else 2
    together = _tiles_at_once(patch_size)
    a_pass = planned_elements(architecture, patch_size, 0, heads) * size * together
    _, y, x = (max(n, p) for n, p in zip(shape, patch_size, strict=True))
    return a_pass, patch_size[0] * y * x * heads * size + 2 * RUN_BYTES


def mirror_combinations(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Give every set of axes to flip, none first.

    >>> mirror_combinations((0, 2))
    [(), (0,), (2,), (0, 2)]
    """
    sizes = range(len(axes) + 1)
    return [chosen for size in sizes for chosen in itertools.combinations(axes, size)]


def mean_logits(
    networks: Sequence[nn.Module],
    batch: Tensor,
    flips: Sequence[tuple[int, ...]],
    execution: Execution,
    *,
    spread: Activation | None = None,
    sweep: Sweep = PLAIN_SWEEP,
) -> Tensor:
    """Average the logits of a batch (batch, channel, z, y, x) over networks and mirrors.

    Returns:
        (batch, z, y, x, head), float32, but of a single pass as the network gives them; with
        `spread` one more, the variance of the networks' probabilities (see `stream_logits`).

    Raises:
        StoppedError: The sweep was told to stop.
    """
    total, squares, mean = None, None, None
    for network in networks:
        of_fold = None
        for axes in flips:
            sweep.ask()
            spatial = [axis + 2 for axis in axes]
            with execution.autocast(), _asking(sweep, batch.device):
                logits: Tensor = network(batch.flip(spatial) if spatial else batch, 1)[0]
            logits = logits.flip(spatial) if spatial else logits
            if len(networks) == len(flips) == 1 and spread is None:
                return logits.permute(0, 2, 3, 4, 1)
            if of_fold is None:
                # Sums are our own tensor; what is only added to them need not be.
                sums = len(flips) > 1 or total is None
                of_fold = logits.to(torch.float32, copy=sums)
            else:
                of_fold += logits
            del logits  # or it stays beside those of the next pass
        assert of_fold is not None, "not to flip is one of the flips"
        if len(flips) > 1:
            of_fold /= len(flips)
        if spread is not None:
            likely = spread(of_fold)
            squares = likely**2 if squares is None else squares.add_(likely**2)
            mean = likely if mean is None else mean.add_(likely)
        total = of_fold if total is None else total.add_(of_fold)
    assert total is not None, "a model has a network"
    total /= len(networks)
    if squares is not None and mean is not None:
        apart = (squares / len(networks) - (mean / len(networks)) ** 2).sum(dim=1, keepdim=True)
        total = torch.cat([total, apart.clamp_(min=0)], dim=1)
    return total.permute(0, 2, 3, 4, 1)


def _asking(sweep: Sweep, device: torch.device) -> AbstractContextManager[Any]:
    """Give the context in which a pass can be stopped; on a GPU it is over before one could."""
    if sweep.stop is never or device.type != "cpu":
        return nullcontext()
    return Interruptible(sweep.ask)


def _tiles_at_once(patch_size: Shape) -> int:
    return max(1, BATCH_VOXELS // math.prod(patch_size))


def _cut(image: Image, box: Box, low: Sequence[int]) -> Tensor:
    """Cut a tile out of an image around which there are `low` voxels of 0 on the lower sides."""
    tile = torch.zeros(len(image), *(stop - start for start, stop in box))
    there = [
        (max(start - a, 0), min(stop - a, n))
        for (start, stop), a, n in zip(box, low, image.shape[1:], strict=True)
    ]
    z, y, x = (
        slice(first + a - start, last + a - start)
        for (first, last), a, (start, _) in zip(there, low, box, strict=True)
    )
    tile[:, z, y, x] = torch.from_numpy(np.ascontiguousarray(cut(image, three(there))))
    return tile


class _Work:
    """The networks, and what is made of them where memory is short."""

    def __init__(
        self,
        networks: Sequence[nn.Module],
        execution: Execution,
        flips: Sequence[tuple[int, ...]],
        spread: Activation | None,
        sweep: Sweep,
        patch_size: Shape,
    ) -> None:
        self._networks, self._execution = networks, execution
        self._flips, self._spread, self._sweep = flips, spread, sweep
        self._kept: dict[tuple[float, ...] | None, Tensor] = {}  # of a tile whose channels are so
        self.at_once = _tiles_at_once(patch_size)

    def logits(self, tiles: Sequence[Tensor]) -> list[Tensor]:
        """Give the logits (z, y, x, head) of each tile (channel, z, y, x)."""
        constants = [_constant(tile) for tile in tiles]
        found = {n: self._kept[one] for n, one in enumerate(constants) if one in self._kept}
        fresh = [n for n in range(len(tiles)) if n not in found]
        for n, logits in zip(fresh, self._compute([tiles[n] for n in fresh]), strict=True):
            found[n] = logits
            if constants[n] is not None and logits.numel() * logits.itemsize <= KEPT_BYTES:
                self._kept = {constants[n]: logits.clone()}  # around a body there is one such value
        return [found[n] for n in range(len(tiles))]

    def _compute(self, tiles: Sequence[Tensor]) -> list[Tensor]:
        """Compute the tiles together, or where memory does not suffice fewer, or elsewhere."""
        found: list[Tensor] = []
        while len(found) < len(tiles):
            batch = torch.stack(list(tiles[len(found) : len(found) + self.at_once]))
            try:
                found += mean_logits(
                    self._networks,
                    batch.to(self._execution.torch_device),
                    self._flips,
                    self._execution,
                    spread=self._spread,
                    sweep=self._sweep,
                )
            except OUT_OF_MEMORY as error:
                if not is_out_of_memory(error) or not self._make_do(len(batch)):
                    raise
        return found

    def _make_do(self, tiles: int) -> bool:
        """Have less done at once than `tiles`, or it done elsewhere; say whether that can be."""
        if tiles > 1:
            self.at_once = tiles // 2
            logger.info("memory is short: %d tiles at once", self.at_once)
            return True
        if self._execution.torch_device.type == "cpu":
            return False
        logger.warning("%s has too little memory: going on on the CPU", self._execution.device)
        self._execution = replace(self._execution, device="cpu", precision="fp32")
        self._networks = [copy.deepcopy(network).to("cpu") for network in self._networks]
        self._kept.clear()
        return True


def _constant(tile: Tensor) -> tuple[float, ...] | None:
    """Give the one value of each channel (channel, z, y, x); None where there are several."""
    corner = tile[:, :1, :1, :1]
    return tuple(corner.flatten().tolist()) if bool((tile == corner).all()) else None


class _Sums:
    """The weighted logits of the planes that some tile may still reach."""

    def __init__(self, shape: Shape, execution: Execution) -> None:
        self._shape = shape
        self._device = execution.torch_device
        self._precision = execution.precision
        self._kind = torch.float32 if execution.precision == "fp32" else torch.float16
        self._open: deque[Tensor] = deque()  # (y, x, head)
        self._first = 0  # of the open planes, its place in the image

    def add(
        self, logits: Tensor, starts: Sequence[int], shares: Sequence[NDArray[np.float64]]
    ) -> None:
        """Add a tile's logits (z, y, x, head), of which each voxel counts by its share."""
        z, y, x = (torch.from_numpy(share).float() for share in shares)
        weights = (y[:, None] * x)[..., None].to(logits.device)
        rows, columns = (
            slice(start, start + n) for start, n in zip(starts[1:], logits.shape[1:3], strict=True)
        )
        for place, (plane, weight) in enumerate(zip(logits, z.tolist(), strict=True), starts[0]):
            while len(self._open) <= place - self._first:
                self._open.append(self._new_plane(logits.shape[-1]))
            weighted = plane.float() * (weights * weight)
            self._open[place - self._first][rows, columns] += weighted.to(self._device)

    def leave(self, first: int, inside: Sequence[slice]) -> Iterator[Planes]:
        """Hand on the planes before `first`, which no tile will reach again.

        They are cut to `inside` of the padded image and come some at a time.

        Raises:
            DataError: They hold values that are not finite.
        """
        while self._first < first:
            size = 4 * self._open[0].numel()
            last = min(first, self._first + max(1, RUN_BYTES // size))
            places = range(self._first, last)
            planes = [self._open.popleft() for _ in places]
            self._first = last
            z, y, x = inside
            kept = [p for place, p in zip(places, planes, strict=True) if z.start <= place < z.stop]
            if kept:
                run: Planes = torch.stack([plane[y, x].float().cpu() for plane in kept]).numpy()
                if not np.isfinite(run).all():
                    raise self._not_finite()
                yield run

    def _not_finite(self) -> DataError:
        remedy = "use --precision fp32"
        if self._precision == "fp32":
            remedy = "the model is damaged, or the image unlike any that it was trained on"
        return DataError(
            f"the network gave values that are not finite, computing in {self._precision}; {remedy}"
        )

    def _new_plane(self, heads: int) -> Tensor:
        """Give a plane of zeros; where a GPU has no room left, all of them move to the CPU."""
        shape = (*self._shape[1:], heads)
        try:
            return torch.zeros(shape, dtype=self._kind, device=self._device)
        except OUT_OF_MEMORY as error:
            if not is_out_of_memory(error) or self._device.type == "cpu":
                raise
        logger.info("memory is short: logits are summed up on the CPU")
        self._device = torch.device("cpu")
        self._open = deque(plane.cpu() for plane in self._open)
        return torch.zeros(shape, dtype=self._kind)
