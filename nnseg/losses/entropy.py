"""Losses of cross-entropy, voxel by voxel: all of them, the worst, or the ones that are not sure.

What a loss takes is told in `sums`. Of softmax heads, a voxel counts with the weight of its true
label, background 1, and the sum is divided by the sum of these weights, as PyTorch's does.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nnseg.labels import Labels
from nnseg.losses.sums import SMALLEST, Sums, Weights, as_values, is_any, measure
from nnseg.model.ranks import gather

TOPK_SHARE = 0.1  # of the voxels that the worst are
FOCAL_GAMMA = 2.0
SUREST = 1e-12  # least 1 - p: at 0 the slope of a power below 1 would be infinite


def ce(
    logits: Tensor, segmentation: Tensor, labels: Labels, batch_dice: bool, weights: Weights = None
) -> Tensor:
    """Give the cross-entropy: of the softmax for labels, binary for regions; 0 if all is ignored.

    Labels: the mean over voxels that are not ignored. Regions: the mean over voxels and regions,
    but with an ignore label the sum over both divided by the number of voxels only, hence as many
    times larger as there are regions. That is nnU-Net's value, kept so that a training compares.
    """
    if weights is None:
        return mean_entropy(measure(logits, segmentation, labels))
    voxels = voxel_entropies(logits, segmentation, labels, weights)
    return (voxels.entropy * voxels.weight).sum() / voxels.terms


def mean_entropy(sums: Sums) -> Tensor:
    """Give the cross-entropy of the batch, its classes not weighted."""
    return sums.entropy.sum() / sums.terms


def topk(
    logits: Tensor, segmentation: Tensor, labels: Labels, batch_dice: bool, weights: Weights = None
) -> Tensor:
    """Give the mean cross-entropy of the worst tenth of all voxels of the batch, at least of one.

    Ignored voxels count among all, with 0 and a weight of 1. Of regions it is the worst tenth of
    voxels and regions. The worst are those whose weighted entropy is highest.

    Source: Wu et al. 2016, arXiv:1605.06885; the share and the count are those of nnU-Net 2.8.1.
    """
    voxels = voxel_entropies(logits, segmentation, labels, weights)
    weight = voxels.weight.expand_as(voxels.entropy).flatten()
    terms = voxels.entropy.flatten() * weight
    worst = terms.topk(max(1, int(terms.numel() * TOPK_SHARE)), sorted=False)
    return worst.values.sum() / weight[worst.indices].sum().clamp_min(SMALLEST)


def focal(
    logits: Tensor,
    segmentation: Tensor,
    labels: Labels,
    batch_dice: bool,
    weights: Weights = None,
    *,
    gamma: float = FOCAL_GAMMA,
) -> Tensor:
    """Give the focal loss: `ce` with each term times (1 - p)^gamma, p the probability of the truth.

    Source: Lin et al. 2017, arXiv:1708.02002, with its gamma of 2.
    """
    voxels = voxel_entropies(logits, segmentation, labels, weights)
    missed = -torch.expm1(-voxels.entropy)
    doubt = missed.square() if gamma == 2 else missed.clamp_min(SUREST) ** gamma
    return (doubt * voxels.entropy * voxels.weight).sum() / voxels.terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Voxels:
    """Cross-entropy term by term: (batch, voxel) for labels, (batch, region, voxel) for regions."""

    entropy: Tensor  # -log p of the truth; 0 where ignored
    weight: Tensor  # broadcasts against it; 1 where ignored
    terms: Tensor  # what the mean divides by


def voxel_entropies(
    logits: Tensor, segmentation: Tensor, labels: Labels, weights: Weights
) -> Voxels:
    """Give the cross-entropy of every voxel, or voxel and region, and what it counts."""
    values = as_values(logits)
    flat = segmentation.flatten(1)
    valid = None if labels.ignore is None else flat != labels.ignore
    if labels.has_regions:
        return _region_entropies(values, flat, valid, labels, weights)
    indices = flat.long() if valid is None else flat.long() * valid
    entropy = functional.cross_entropy(values, indices, reduction="none")
    heads = values.new_tensor((1.0, *(weights or (1.0,) * (values.shape[1] - 1))))
    weight = heads[indices]
    counted = weight if valid is None else weight * valid
    entropy = entropy if valid is None else entropy * valid
    terms = gather(counted.sum(dim=1)).sum().clamp_min(SMALLEST)
    return Voxels(entropy=gather(entropy), weight=gather(weight), terms=terms)


def _region_entropies(
    values: Tensor, flat: Tensor, valid: Tensor | None, labels: Labels, weights: Weights
) -> Voxels:
    regions = zip(values.unbind(dim=1), labels.foreground.values(), strict=True)
    entropy = torch.stack(
        [
            functional.softplus(torch.where(is_any(flat, members), -region, region))
            for region, members in regions
        ],
        dim=1,
    )
    shares = values.new_tensor(weights or (1.0,) * entropy.shape[1])
    weight = (shares / shares.mean())[:, None]
    if valid is None:
        entropy = gather(entropy)
        return Voxels(entropy=entropy, weight=weight, terms=values.new_tensor(entropy.numel()))
    if weights is not None:
        weight = gather(torch.where(valid[:, None], weight, 1.0))
    terms = gather(valid.sum(dim=1)).sum().clamp_min(1)
    return Voxels(entropy=gather(entropy * valid[:, None]), weight=weight, terms=terms)
