"""Look up images and label maps at moved positions: linearly, labels by their shares.

Samples of one `Warp` are cut from boxes of a loaded patch; everything outside of a box is 0. Each
position lies in a cell of 2 voxels an axis, found once for all channels and label maps. In a
volume positions have three axes, z, y and x; of slices, two.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnseg.model.bending import spline_weights

BLOCK = 2**16  # positions that are looked up at once, so that all steps on the way meet in cache
LOW, HIGH = 1, 2  # zeros about a box: a position clamped there has nothing else around it
TRACE = 1e-4  # a share that cannot win where only two other labels are
MIXED = -1  # stands for the label of a cell whose corners have several


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Warp:
    """Where the voxels of the patches of some samples come from.

    `affines` (sample, axis, axis) take a voxel's offset from the centre of the patch to that from
    the centre of what was loaded, whose place in the sample's box is `centres` (sample, axis), in
    voxels; 0 is the middle of the first voxel. With `bends` the voxel is moved before that, by what
    control points (sample, axis, *point) say that lie `steps` voxels apart.
    """

    affines: NDArray[np.float64]
    centres: NDArray[np.float64]
    patch_size: tuple[int, ...]
    bends: NDArray[np.float64] | None = None
    steps: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Cells:
    """The cells of some positions: first corner in a flat array, and the way to the others."""

    corner: Tensor  # (position,), int32
    fractions: list[Tensor]  # an axis: (position,), 0 at the first corner, 1 at the next
    strides: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.corner)


def sample_boxes(
    images: Sequence[Tensor], maps: Sequence[Tensor], warp: Warp
) -> tuple[Tensor, Tensor]:
    """Interpolate images linearly, and take for label maps the label with the highest share.

    The lowest label wins a tie. It costs the same for any number of labels: most positions lie
    among corners of one label, and only for the others are the corners' weights compared.

    Args:
        images: Of each sample (channel, *box) float32, boxes of any size.
        maps: Of each sample (map, *box), one integer type, of the same boxes; labels from 0 on.
        warp: Where each voxel comes from.

    Returns:
        (sample, channel, *patch) float32, and (sample, map, *patch) of the type of `maps`.
    """
    count, patch, device = len(images), warp.patch_size, images[0].device
    image = torch.empty((len(images[0]), count, *patch), device=device)
    labels = torch.empty((len(maps[0]), count, *patch), dtype=maps[0].dtype, device=device)
    whole = torch.int32 if labels.dtype.itemsize > 2 else torch.int16
    together = max(1, BLOCK // math.prod(patch))
    for first in range(0, count, together):
        chosen = slice(first, first + together)
        volume, edges = _pad(images[chosen], torch.float32)
        values, _ = _pad(maps[chosen], whole)
        coded = [_mark_mixed(flat, edges) for flat in values]
        for slab, cells in _find_cells(warp, chosen, edges, device):
            for channel, flat in zip(image[:, chosen], volume, strict=True):
                place = channel[:, slab]
                place.copy_(_interpolate(flat, cells).view(place.shape))
            for target, flat, code in zip(labels[:, chosen], values, coded, strict=True):
                place = target[:, slab]
                place.copy_(_vote(flat, code, cells).view(place.shape))
    return image.transpose(0, 1), labels.transpose(0, 1)


def _pad(boxes: Sequence[Tensor], kind: torch.dtype) -> tuple[Tensor, tuple[int, ...]]:
    """Lay boxes out in one array (channel, sample * voxel), zeros about each; give its edges."""
    shapes = [box.shape[1:] for box in boxes]
    edges = tuple(max(each) + LOW + HIGH for each in zip(*shapes, strict=True))
    size = (len(boxes[0]), len(boxes), *edges)
    padded = torch.zeros(size, dtype=kind, device=boxes[0].device)
    for i, (box, shape) in enumerate(zip(boxes, shapes, strict=True)):
        part = padded[:, i]
        for axis, edge in enumerate(shape, start=1):
            part = part.narrow(axis, LOW, edge)
        part.copy_(box)
    return padded.flatten(1), edges


def _find_cells(
    warp: Warp, chosen: slice, edges: tuple[int, ...], device: torch.device
) -> Iterator[tuple[slice, _Cells]]:
    """Give slabs of the patch along its first axis, and the cells of their voxels."""
    matrices = torch.from_numpy(warp.affines[chosen]).float().to(device)
    origins = torch.from_numpy(warp.centres[chosen] + LOW).float().to(device)
    count, axes = origins.shape
    strides = tuple(math.prod(edges[axis + 1 :]) for axis in range(axes))
    starts = torch.arange(count, dtype=torch.int32, device=device) * math.prod(edges)
    ends = [1] * axes
    offsets = [
        (torch.arange(edge, device=device) - (edge - 1) / 2).view(
            [1, *ends[:axis], edge, *ends[axis + 1 :]]
        )
        for axis, edge in enumerate(warp.patch_size)
    ]
    # nearly in order of the axes, so that all but the last sum are small
    columns = matrices.view(count, axes, axes, *ends)
    bend = _make_bend(warp, chosen, matrices)
    thick = max(1, BLOCK * warp.patch_size[0] // (count * math.prod(warp.patch_size)))
    for first in range(0, warp.patch_size[0], thick):
        slab = slice(first, min(first + thick, warp.patch_size[0]))
        corner = starts.view(count, *ends)
        fractions = []
        moved = None if bend is None else bend(slab)
        for axis, stride in enumerate(strides):
            place = origins[:, axis].view(count, *ends) + columns[:, axis, 0] * offsets[0][:, slab]
            for other in range(1, axes):
                place = place + columns[:, axis, other] * offsets[other]
            if moved is not None:
                place.add_(moved[:, axis])
            place.clamp_(0, edges[axis] - HIGH)
            low = place.floor()
            fractions.append(place.sub_(low).flatten())
            corner = corner + low.int() * stride
        yield slab, _Cells(corner=corner.flatten(), fractions=fractions, strides=strides)


def _make_bend(warp: Warp, chosen: slice, matrices: Tensor) -> Callable[[slice], Tensor] | None:
    """Make what gives, for a slab of the patch, how far its voxels move: (sample, axis, *slab).

    Control points are spread over one axis after the other, over the first one slab by slab.
    """
    if warp.bends is None:
        return None
    points = torch.from_numpy(warp.bends[chosen]).to(matrices)
    points = torch.einsum("nij,nj...->ni...", matrices, points)
    weights = [
        torch.from_numpy(spline_weights(*each)).to(matrices)
        for each in zip(warp.patch_size, points.shape[2:], warp.steps, strict=True)
    ]

    def spread(points: Tensor, axis: int, weights: Tensor) -> Tensor:
        moved: Tensor = torch.tensordot(weights, points, ([1], [axis + 2]))
        return moved.movedim(0, axis + 2)

    for axis in reversed(range(1, len(weights))):
        points = spread(points, axis, weights[axis])
    return lambda slab: spread(points, 0, weights[0][slab])


def _interpolate(flat: Tensor, cells: _Cells) -> Tensor:
    """Give the value (position,) of one channel at each position."""
    values = [
        flat[sum(step) :].index_select(0, cells.corner)
        for step in itertools.product(*((0, stride) for stride in cells.strides))
    ]
    for fraction in reversed(cells.fractions):
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [low.lerp_(high, fraction) for low, high in pairs]
    return values[0]


def _mark_mixed(flat: Tensor, edges: tuple[int, ...]) -> Tensor:
    """Give the label of each cell (sample * voxel,), MIXED where its corners have several.

    A step off the end of a row comes to the zeros before the next, as those at its end.
    """
    lowest = highest = flat
    for axis in range(len(edges)):
        stride = math.prod(edges[axis + 1 :])
        lowest = torch.minimum(lowest[:-stride], lowest[stride:])
        highest = torch.maximum(highest[:-stride], highest[stride:])
    return flat[: len(lowest)].masked_fill(lowest != highest, MIXED)


def _vote(flat: Tensor, coded: Tensor, cells: _Cells) -> Tensor:
    """Give the label (position,) with the highest share at each position."""
    result = coded.index_select(0, cells.corner)
    mixed = (result == MIXED).nonzero()[:, 0]
    if not len(mixed):
        return result
    corner = cells.corner.index_select(0, mixed)
    weights = [torch.ones(1, device=flat.device)]
    for fraction in cells.fractions:
        high = fraction.index_select(0, mixed)
        low = 1 - high
        weights = [weight * share for weight in weights for share in (low, high)]
    labels = [
        flat[sum(step) :].index_select(0, corner)
        for step in itertools.product(*((0, stride) for stride in cells.strides))
    ]
    return result.index_copy_(0, mixed, _heaviest(labels, weights))


def _heaviest(labels: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Give the label with the largest sum of weights: of each corner (position,), summing to 1."""
    lowest, highest = labels[0], labels[0]
    for label in labels[1:]:
        lowest, highest = torch.minimum(lowest, label), torch.maximum(highest, label)
    low_share, high_share = torch.zeros_like(weights[0]), torch.zeros_like(weights[0])
    for label, weight in zip(labels, weights, strict=True):
        low_share += (label == lowest).float().mul_(weight)
        high_share += (label == highest).float().mul_(weight)
    winner = torch.where(high_share > low_share, highest, lowest)
    crowded = (low_share + high_share < 1 - TRACE).nonzero()[:, 0]  # where others count, too
    if len(crowded):
        some = torch.stack([label.index_select(0, crowded) for label in labels])
        shares = torch.zeros(some.shape, device=some.device)
        for label, weight in zip(some, weights, strict=True):
            shares += (some == label).float().mul_(weight.index_select(0, crowded))
        beaten = shares < shares.amax(0)
        best = some.masked_fill(beaten, torch.iinfo(some.dtype).max).amin(0)
        winner.index_copy_(0, crowded, best)
    return winner
