"""Small batches of every kind of labels, and each loss as its source writes it, in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from nnseg.labels import Labels

PLAIN = Labels(labels={"background": 0, "a": 1, "b": 2})
IGNORING = Labels(labels={"background": 0, "a": 1, "b": 2, "ignore": 3})
REGIONS = Labels(
    labels={"background": 0, "whole": (1, 2), "core": 2, "rim": 1}, regions_class_order=(1, 2, 1)
)
IGNORING_REGIONS = Labels(
    labels={"background": 0, "whole": (1, 2), "core": 2, "rim": 1, "ignore": 3},
    regions_class_order=(1, 2, 1),
)
KINDS = [
    pytest.param(PLAIN, id="labels"),
    pytest.param(IGNORING, id="labels with ignore"),
    pytest.param(REGIONS, id="regions"),
    pytest.param(IGNORING_REGIONS, id="regions with ignore"),
]
OPTIONS = {  # of the losses that have any, others than the defaults
    "dice_ce": {"dice_weight": 0.2},
    "dice_topk": {"dice_weight": 0.7},
    "focal": {"gamma": 1.5},
    "tversky": {"alpha": 0.6, "beta": 0.4},
    "focal_tversky": {"alpha": 0.1, "beta": 0.9, "gamma": 2.0},
}


def example(labels: Labels, shape: tuple[int, ...] = (4, 5, 6)) -> tuple[Tensor, Tensor]:
    """Logits and label maps of two samples; golden numbers were computed from the same draws."""
    rng = np.random.default_rng(11)
    logits = torch.from_numpy(2 * rng.standard_normal((2, 3, *shape))).float()
    segmentation = torch.from_numpy(rng.integers(0, 4, (2, *shape)))
    return logits, segmentation if labels.ignore else segmentation % 3


def plain_terms(logits: Tensor, segmentation: Tensor, labels: Labels) -> tuple[Tensor, ...]:
    """Probabilities, truths and validity of every voxel and class, one-hot."""
    logits = logits.double()
    if labels.has_regions:
        truth = torch.stack(
            [
                torch.isin(segmentation, torch.tensor(members))
                for members in labels.foreground.values()
            ],
            dim=1,
        )
        found = torch.sigmoid(logits)
    else:
        truth = one_hot(segmentation, 4).movedim(-1, 1)[:, :3]
        found = torch.softmax(logits, dim=1)
    valid = (
        torch.ones_like(segmentation) if labels.ignore is None else segmentation != labels.ignore
    )
    return found, truth.double(), valid.double()


def plain_entropies(
    logits: Tensor, segmentation: Tensor, labels: Labels, weights: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """The probability of the truth, its weight, and the number that a mean divides by."""
    found, truth, valid = plain_terms(logits, segmentation, labels)
    if labels.has_regions:
        right = truth * found + (1 - truth) * (1 - found)
        share = torch.tensor(weights, dtype=torch.float64)[:, None, None, None]
        weight = (share / share.mean() * valid[:, None]).expand_as(right)
        return right, weight, valid.sum() if labels.ignore else torch.tensor(right.numel())
    right = (truth * found).sum(dim=1) + (1 - valid)
    heads = torch.tensor((1.0, *weights), dtype=torch.float64)[:, None, None, None]
    weight = (truth * heads).sum(dim=1) * valid
    return right, weight, weight.sum()


def plain_index(
    logits: Tensor,
    segmentation: Tensor,
    labels: Labels,
    batch_dice: bool,
    false_missed: tuple[float, float],
) -> Tensor:
    """The Tversky index of each class; Dice at 0.5 and 0.5."""
    found, truth, valid = plain_terms(logits, segmentation, labels)
    if not labels.has_regions:
        found, truth = found[:, 1:], truth[:, 1:]
    found, truth = found * valid[:, None], truth * valid[:, None]
    axes = (0, 2, 3, 4) if batch_dice else (2, 3, 4)
    both = (found * truth).sum(axes)
    false, missed = (found * (1 - truth)).sum(axes), ((1 - found) * truth).sum(axes)
    below = both + false_missed[0] * false + false_missed[1] * missed
    smooth = 1e-5 if false_missed != (0.5, 0.5) else 0.5e-5  # Dice doubles everything
    return (both + smooth) / (below + smooth)


def plain_generalised(
    logits: Tensor,
    segmentation: Tensor,
    labels: Labels,
    batch_dice: bool,
    weights: tuple[float, ...],
) -> Tensor:
    """Generalised Dice, class by class in a loop."""
    found, truth, valid = plain_terms(logits, segmentation, labels)
    found, truth = found * valid[:, None], truth * valid[:, None]
    if batch_dice:
        found, truth = (x.movedim(1, 0).flatten(1)[None] for x in (found, truth))
    each = weights if labels.has_regions else (1.0, *weights)
    ratios = []
    for p, g in zip(found, truth, strict=True):
        volumes = [float(g[k].sum()) for k in range(len(each))]
        smallest = min((volume for volume in volumes if volume), default=1.0)
        above, below = torch.tensor(1e-5).double(), torch.tensor(1e-5).double()
        for k, weight in enumerate(each):
            share = weight * (smallest / (volumes[k] or smallest)) ** 2
            above = above + 2 * share * (p[k] * g[k]).sum()
            below = below + share * (p[k].sum() + g[k].sum())
        ratios.append(above / below)
    return torch.stack(ratios).mean()


def plain_loss(
    name: str,
    logits: Tensor,
    segmentation: Tensor,
    labels: Labels,
    batch_dice: bool,
    weights: tuple[float, ...],
    dice_weight: float | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float | None = None,
) -> Tensor:
    """Each loss as its source writes it."""
    given = (logits, segmentation, labels)
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    right, weight, terms = plain_entropies(*given, weights)
    entropy = -right.log()
    if name == "generalised_dice":
        return -plain_generalised(*given, batch_dice, weights)
    if name in ("tversky", "focal_tversky"):
        index = plain_index(*given, batch_dice, (alpha, beta))
        each = -index if name == "tversky" else (1 - index) ** (1 / (gamma or 4 / 3))
        return (each * shares).sum(dim=-1).mean()
    if name == "focal":
        return ((1 - right) ** (gamma or 2) * entropy * weight).sum() / terms
    share = torch.where(weight > 0, weight, 1.0).flatten()  # of what is ignored
    order = (entropy * weight).flatten().argsort(descending=True)[: max(1, share.numel() // 10)]
    worst = (entropy * weight).flatten()[order].sum() / share[order].sum()
    dice = -(plain_index(*given, batch_dice, (0.5, 0.5)) * shares).sum(dim=-1).mean()
    cross = (entropy * weight).sum() / terms
    if name in ("dice_ce", "dice_topk"):
        second = cross if name == "dice_ce" else worst
        first, other = (1.0, 1.0) if dice_weight is None else (dice_weight, 1 - dice_weight)
        return first * dice + other * second
    return {"ce": cross, "dice": dice, "topk": worst}[name]
