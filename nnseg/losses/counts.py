"""Counts of voxels that a network gets right and wrong: what the pseudo Dice is made of."""

import torch
from torch import Tensor

from nnseg.labels import Labels
from nnseg.losses.sums import is_any


def hard_counts(logits: Tensor, segmentation: Tensor, labels: Labels) -> Tensor:
    """Count voxels for the pseudo Dice of an epoch: the highest head, or regions above 0.5.

    Args:
        logits: (batch, head, *spatial).
        segmentation: (batch, *spatial); ignored voxels count nowhere.
        labels: What the integers mean.

    Returns:
        True positives, false positives and false negatives over the batch: (3, foreground), int64.
    """
    best = None if labels.has_regions else logits.argmax(dim=1)
    counts = []
    for index, members in enumerate(labels.foreground.values()):
        found = logits[:, index] > 0 if best is None else best == members[0]
        wanted = is_any(segmentation, members)
        if labels.ignore is not None:
            found = found & (segmentation != labels.ignore)
        both = (found & wanted).sum()
        counts.append(torch.stack([both, found.sum() - both, wanted.sum() - both]))
    return torch.stack(counts, dim=1)
