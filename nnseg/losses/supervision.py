"""Deep supervision: the loss of a network's outputs at several resolutions, as one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nnseg.labels import Labels
from nnseg.losses.sums import Loss


def deep_supervision_loss(
    loss: Loss,
    outputs: Sequence[Tensor],
    segmentation: Tensor,
    labels: Labels,
    batch_dice: bool,
    weights: Sequence[float],
) -> Tensor:
    """Sum the loss of each output against the label map at its resolution, weighted.

    Args:
        loss: What `make_loss` gives.
        outputs: Logits (batch, head, *spatial), from full resolution down. Those at the end may
            be left out where their weight is 0.
        segmentation: (batch, *spatial) at full resolution; outputs get the nearest voxel.
        labels: What the integers mean.
        batch_dice: Whether Dice sums over the batch.
        weights: At least one for each output; an output of weight 0 is not looked at.
    """
    if any(weights[len(outputs) :]):
        raise ValueError(f"{len(outputs)} outputs do not cover the weights {tuple(weights)}")
    total = torch.zeros((), device=segmentation.device)
    for logits, weight in zip(outputs, weights[: len(outputs)], strict=True):
        if weight:
            target = _at_size(segmentation, logits.shape[2:])
            total = total + weight * loss(logits, target, labels, batch_dice)
    return total


def _at_size(segmentation: Tensor, size: Sequence[int]) -> Tensor:
    """Sample a label map (batch, *spatial) at the voxels nearest to those of a smaller grid."""
    for axis, (small, large) in enumerate(zip(size, segmentation.shape[1:], strict=True), start=1):
        if small != large:
            places = torch.arange(small, device=segmentation.device)
            nearest = (2 * places + 1) * large // (2 * small)  # the centre of each, rounded down
            segmentation = segmentation.index_select(axis, nearest)
    return segmentation
