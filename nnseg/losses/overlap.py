"""Losses of overlap: Dice and its kin, ratios of sums over voxels.

What a loss takes is told in `sums`. Ignored voxels are in no sum. `weights` of the classes make
their mean a weighted one.
"""

import torch
from torch import Tensor

from nnseg.labels import Labels
from nnseg.losses.sums import SMALLEST, Sums, Weights, mean_of_classes, measure, over_batch

SMOOTH = 1e-5  # added above and below: a class absent from both is worth Dice 1
FALSE_WEIGHT, MISSED_WEIGHT = 0.3, 0.7  # of false positives and negatives in the Tversky index
FOCAL_TVERSKY_GAMMA = 4 / 3


def dice(
    logits: Tensor, segmentation: Tensor, labels: Labels, batch_dice: bool, weights: Weights = None
) -> Tensor:
    """Give minus the mean soft Dice of the classes, and of the samples unless `batch_dice`.

    Dice is (2 sum(p g) + s) / max(sum(p) + sum(g) + s, 1e-8) with s = 1e-5.

    Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z; the value is nnU-Net 2.8.1's.
    """
    return -mean_of_classes(dice_ratio(measure(logits, segmentation, labels), batch_dice), weights)


def dice_ratio(sums: Sums, batch_dice: bool) -> Tensor:
    """Give the soft Dice of each class, (batch, class), or (class,) of the whole batch."""
    overlap, found, wanted = over_batch(sums, batch_dice)
    return (2 * overlap + SMOOTH) / (found + wanted + SMOOTH).clamp_min(SMALLEST)


def generalised_dice(
    logits: Tensor, segmentation: Tensor, labels: Labels, batch_dice: bool, weights: Weights = None
) -> Tensor:
    """Give minus the generalised Dice: one ratio of all classes, each divided by its volume twice.

    It is (2 sum_c(w_c sum(p g)) + s) / (sum_c(w_c (sum(p) + sum(g))) + s), w_c = 1 / sum(g)^2, of a
    sample, or of the batch with `batch_dice`. As in its source the background is a class, too; of
    regions there is none. The w_c are scaled so that the smallest class has 1, which keeps s as
    small as it is in `dice`. A class that is absent counts as much as the smallest that is there,
    or a single voxel of it would outweigh all others. `weights` multiply w_c, 1 for the background.

    Source: Sudre et al. 2017, arXiv:1707.03237; absent classes as in MONAI.
    """
    sums = measure(logits, segmentation, labels, background=True)
    overlap, found, wanted = over_batch(sums, batch_dice)
    shares = _volume_weights(wanted.to(overlap.dtype))
    if weights is not None:
        shares = shares * overlap.new_tensor(weights if labels.has_regions else (1.0, *weights))
    above = 2 * (shares * overlap).sum(dim=-1) + SMOOTH
    below = (shares * (found + wanted)).sum(dim=-1) + SMOOTH
    return -(above / below).mean()


def tversky(
    logits: Tensor,
    segmentation: Tensor,
    labels: Labels,
    batch_dice: bool,
    weights: Weights = None,
    *,
    alpha: float = FALSE_WEIGHT,
    beta: float = MISSED_WEIGHT,
) -> Tensor:
    """Give minus the mean Tversky index: Dice that counts a missed voxel more than a false one.

    It is (tp + s) / (tp + alpha fp + beta fn + s) with s = 1e-5, of soft counts as in `dice`, which
    it is at 0.5 and 0.5.

    Source: Salehi et al. 2017, arXiv:1706.05721, with its best alpha and beta.
    """
    sums = measure(logits, segmentation, labels)
    overlap, found, wanted = over_batch(sums, batch_dice)
    below = overlap + alpha * (found - overlap) + beta * (wanted - overlap)
    return -mean_of_classes((overlap + SMOOTH) / (below + SMOOTH), weights)


def focal_tversky(
    logits: Tensor,
    segmentation: Tensor,
    labels: Labels,
    batch_dice: bool,
    weights: Weights = None,
    *,
    alpha: float = FALSE_WEIGHT,
    beta: float = MISSED_WEIGHT,
    gamma: float = FOCAL_TVERSKY_GAMMA,
) -> Tensor:
    """Give the mean of (1 - Tversky index)^(1 / gamma), between 0 (perfect) and 1.

    With gamma above 1 a class that is nearly right keeps more of its gradient. Below 1 - index =
    1e-8 the power goes on as a straight line: its slope would be infinite at 0.

    Source: Abraham and Khan 2018, arXiv:1810.07842. It sums over classes; ours is their mean. Its
    alpha and beta stand for missed and false voxels, the other way round than in `tversky`, whose
    meaning they have here; the values are the same.
    """
    sums = measure(logits, segmentation, labels)
    overlap, found, wanted = over_batch(sums, batch_dice)
    errors = alpha * (found - overlap) + beta * (wanted - overlap)
    missing = errors / (overlap + errors + SMOOTH)  # 1 - index, exact also where it is tiny
    power = missing.clamp_min(SMALLEST) ** (1 / gamma)
    line = missing * SMALLEST ** (1 / gamma - 1)
    return mean_of_classes(torch.where(missing > SMALLEST, power, line), weights)


def _volume_weights(wanted: Tensor) -> Tensor:
    """Give 1 / wanted^2 along the last axis, scaled to a maximum of 1; 1 for what is absent."""
    present = wanted > 0
    smallest = torch.where(present, wanted, torch.inf).amin(dim=-1, keepdim=True)
    return torch.where(present, smallest / wanted.clamp_min(1), 1.0).square()
