"""Stage 5, a preprocessed image to logits: tiles, mirrors and folds."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnseg.axes import Image, Shape
from nnseg.checkpoint import Checkpoint
from nnseg.model.device import Execution
from nnseg.model.tiles import tile_boxes, tile_weight
from nnseg.model.unet import build_network

BATCH_VOXELS = 2**19  # of the tiles that are computed together

OnTile: TypeAlias = Callable[[int, int], None]


def load_network(
    checkpoint: Checkpoint, weights: dict[str, Tensor], execution: Execution
) -> nn.Module:
    """Build the network of a checkpoint, ready to predict."""
    architecture = checkpoint.configuration.architecture
    plan = checkpoint.plan
    channels = plan.input_channels(checkpoint.configuration_name)
    network = build_network(architecture, channels, plan.labels.heads)
    network.load_state_dict(weights)
    return execution.place(network, architecture.dimensions).eval()


@torch.inference_mode()
def predict_logits(
    networks: Sequence[nn.Module],
    image: Image,
    patch_size: Shape,
    execution: Execution,
    *,
    mirror_axes: Sequence[int] = (),
    step: float = 0.5,
    on_tile: OnTile | None = None,
) -> NDArray[np.float32]:
    """Predict a preprocessed image by a sliding window.

    Args:
        networks: One a fold; their logits are averaged.
        image: (channel, z, y, x), preprocessed.
        patch_size: Voxels of a tile; a smaller image is padded with 0 on all sides.
        execution: Device and number type.
        mirror_axes: Axes of (z, y, x) to mirror; the mean over all combinations counts.
        step: Distance of two tiles, as a share of the tile.
        on_tile: Called with the tiles done and their number.

    Returns:
        Logits (head, z, y, x) of the image's shape, float32.
    """
    shape = image.shape[1:]
    pads = [max(p - n, 0) for p, n in zip(patch_size, shape, strict=True)]
    low = [pad // 2 for pad in pads]
    around = [(a, p - a) for a, p in zip(low, pads, strict=True)]
    padded = np.pad(image, [(0, 0), *around])
    z, y, x = padded.shape[1:]
    boxes = tile_boxes((z, y, x), patch_size, step)
    device = execution.torch_device
    source = torch.from_numpy(padded)
    weight = torch.from_numpy(tile_weight(patch_size).copy())
    flips = mirror_combinations(mirror_axes)
    total, weights = torch.zeros(0), torch.zeros(z, y, x)
    at_once = _tiles_at_once(patch_size)
    for first in range(0, len(boxes), at_once):
        group = boxes[first : first + at_once]
        places = [tuple(slice(a, b) for a, b in box) for box in group]
        batch = torch.stack([source[:, place[0], place[1], place[2]] for place in places]).to(
            device
        )
        logits = mean_logits(networks, batch, flips, execution).cpu()
        if first == 0:  # the first tiles tell the number of heads
            total = torch.zeros(logits.shape[1], z, y, x)
        for place, tile in zip(places, logits, strict=True):
            total[:, place[0], place[1], place[2]] += tile * weight
            weights[place] += weight
        if on_tile:
            on_tile(first + len(group), len(boxes))
    inside = (slice(None), *(slice(a, a + n) for a, n in zip(low, shape, strict=True)))
    return (total / weights)[inside].contiguous().numpy()


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
    image = np.zeros((channels, *shape), dtype=np.float32)
    training = network.training
    network.eval()
    seconds = []
    for _ in range(2):  # the first time pays for what later times find done
        start = time.monotonic()
        predict_logits((network,), image, patch_size, execution, mirror_axes=mirror_axes)
        seconds.append(time.monotonic() - start)
    network.train(training)
    return min(seconds) / count_tiles(shape, patch_size)


def _tiles_at_once(patch_size: Shape) -> int:
    return max(1, BATCH_VOXELS // math.prod(patch_size))


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
) -> Tensor:
    """Average the logits of a batch (batch, channel, z, y, x) over networks and mirrors."""
    total = torch.zeros(())
    for network, axes in itertools.product(networks, flips):
        spatial = [axis + 2 for axis in axes]
        flipped = batch.flip(spatial) if spatial else batch
        with execution.autocast():
            logits = network(flipped, 1)[0].float()
        logits = logits.flip(spatial) if spatial else logits
        total = total.to(logits.device) + logits
    return total / (len(networks) * len(flips))
