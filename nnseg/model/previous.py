"""What a cascade sees of the stage before: a channel for each label, spoilt while it learns.

Predictions of training cases are better than those of new ones will be, and a network that may
trust them learns nothing else. So labels grow, shrink and lose components at random, by parameters
that are drawn first, as in `nnseg.model.draws`.

Source of the probabilities and ranges: nnU-Net 2.8.1, training of a cascade.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

P_OPERATE, P_REMOVE = 0.4, 0.2  # of a sample
P_LABEL = 0.5  # of each label, once one of them has fired for the sample
RADIUS = (1.0, 8.0)  # voxels
LARGEST = 0.15  # of the patch; a component of this share or more is never removed

Labels = NDArray[np.bool_]  # (z, y, x): where one label is


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoiling:
    """What happens to the labels of one sample, in this order; nothing, if nothing fired.

    Channels count from 0, the first label behind the background.
    """

    operations: tuple[tuple[int, str, float], ...] = ()  # channel, name of OPERATORS, radius
    removals: tuple[tuple[int, float], ...] = ()  # channel, which of its components: 0 to below 1


def draw_spoiling(channels: int, rng: np.random.Generator) -> Spoiling:
    """Draw the parameters of one sample of so many labels; they come in random order."""
    names = list(OPERATORS)
    operations, removals = [], []
    if rng.random() < P_OPERATE:
        operations = [
            (channel, names[int(rng.integers(len(names)))], float(rng.uniform(*RADIUS)))
            for channel in rng.permutation(channels).tolist()
            if rng.random() < P_LABEL
        ]
    if rng.random() < P_REMOVE:
        removals = [
            (channel, float(rng.random()))
            for channel in rng.permutation(channels).tolist()
            if rng.random() < P_LABEL
        ]
    return Spoiling(operations=tuple(operations), removals=tuple(removals))


def to_channels(positions: Tensor, channels: int) -> Tensor:
    """Turn label positions (batch, z, y, x) into (batch, channel, z, y, x) float32: 1 or 0."""
    labels = torch.arange(1, channels + 1, dtype=positions.dtype, device=positions.device)
    return (positions[:, None] == labels.view(1, -1, 1, 1, 1)).float()


def spoil(channels: Tensor, spoiling: Spoiling) -> None:
    """Do to the channels (channel, z, y, x) of one sample what was drawn, in place.

    Where a label grows the others give way. A component that goes leaves background.
    """
    if not spoiling.operations and not spoiling.removals:
        return
    labels = channels.cpu().numpy() > 0
    for channel, name, radius in spoiling.operations:
        changed = _near(labels[channel], radius, OPERATORS[name])
        labels[:, changed & ~labels[channel]] = False
        labels[channel] = changed
    for channel, chosen in spoiling.removals:
        _remove_component(labels[channel], chosen)
    channels.copy_(torch.from_numpy(labels))


def dilate(label: Labels, radius: float) -> Labels:
    """Add every voxel whose centre is at most `radius` voxels from one of the label's."""
    if not label.any():
        return label
    near: Labels = _distances(~label) <= radius
    return near


def erode(label: Labels, radius: float) -> Labels:
    """Take every voxel at most `radius` voxels from one outside; beyond the patch is none."""
    if label.all():
        return label
    far: Labels = _distances(label) > radius
    return far


def close(label: Labels, radius: float) -> Labels:
    """Dilate, then erode."""
    return erode(dilate(label, radius), radius)


def open_up(label: Labels, radius: float) -> Labels:
    """Erode, then dilate."""
    return dilate(erode(label, radius), radius)


OPERATORS: dict[str, Callable[[Labels, float], Labels]] = {
    "dilate": dilate,
    "erode": erode,
    "close": close,
    "open": open_up,
}


def _distances(inside: Labels) -> NDArray[np.float64]:
    """Give the distance of each voxel to the nearest one that is not inside, 0 for those."""
    from scipy.ndimage import distance_transform_edt

    return np.asarray(distance_transform_edt(inside), dtype=np.float64)


def _near(label: Labels, radius: float, operator: Callable[[Labels, float], Labels]) -> Labels:
    """Apply an operator to what lies near the label; nothing else can change."""
    if not label.any():
        return label
    margin = math.ceil(radius) + 1
    box = []
    for axis in range(label.ndim):
        others = tuple(other for other in range(label.ndim) if other != axis)
        found = np.flatnonzero(label.any(axis=others))
        box.append(slice(max(int(found[0]) - margin, 0), int(found[-1]) + margin + 1))
    result: Labels = label.copy()
    result[tuple(box)] = operator(label[tuple(box)], radius)
    return result


def _remove_component(label: Labels, chosen: float) -> None:
    """Remove one of the components that are not too large, in place."""
    import cc3d

    components = cc3d.connected_components(np.ascontiguousarray(label), connectivity=26)
    sizes = np.bincount(components.ravel())
    small = np.flatnonzero(sizes[1:] < LARGEST * label.size) + 1
    if len(small):
        label[components == small[int(chosen * len(small))]] = False
