"""What training minimises: overlap and cross-entropy, from logits and label indices.

Every loss takes logits (batch, head, *spatial), a label map (batch, *spatial) of an integer type,
the `Labels` and whether Dice sums over the batch before the ratio. Labels are softmax heads whose
background Dice leaves out; regions are sigmoid heads, all of them in. Sums are in float32 (float64
for float64 logits), whatever the network computes in. Nothing here waits for the device. Where
several processes share a batch, each gets the loss of all of it.

Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z; the values are those of nnU-Net 2.8.1.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from nnseg.errors import PlanError
from nnseg.labels import Labels
from nnseg.model.ranks import gather
from nnseg.registry import Registry

Loss: TypeAlias = Callable[[Tensor, Tensor, Labels, bool], Tensor]
Weights: TypeAlias = tuple[float, ...] | None  # one a foreground label or region; see `make_loss`

SMOOTH = 1e-5  # added above and below: a class absent from both is worth Dice 1
SMALLEST = 1e-8  # least value of Dice's denominator
TOPK_SHARE = 0.1  # of the voxels that the worst are
FALSE_WEIGHT, MISSED_WEIGHT = 0.3, 0.7  # of false positives and negatives in the Tversky index


def dice_ce(
    logits: Tensor, segmentation: Tensor, labels: Labels, batch_dice: bool, weights: Weights = None
) -> Tensor:
    """Give the sum of `dice` and `ce`, between -1 (perfect) and infinity."""
    sums = _measure(logits, segmentation, labels)
    if weights is None:
        return _cross_entropy(sums) - _mean(_dice(sums, batch_dice), None)
    weighed = ce(logits, segmentation, labels, batch_dice, weights)
    return weighed - _mean(_dice(sums, batch_dice), weights)


def dice(
    logits: Tensor, segmentation: Tensor, labels: Labels, batch_dice: bool, weights: Weights = None
) -> Tensor:
    """Give minus the mean soft Dice of the classes, and of the samples unless `batch_dice`.

    Dice is (2 sum(p g) + s) / max(sum(p) + sum(g) + s, 1e-8) with s = 1e-5. Ignored voxels are in
    no sum.
    """
    return -_mean(_dice(_measure(logits, segmentation, labels), batch_dice), weights)


def ce(
    logits: Tensor, segmentation: Tensor, labels: Labels, batch_dice: bool, weights: Weights = None
) -> Tensor:
    """Give the cross-entropy: of the softmax for labels, binary for regions; 0 if all is ignored.

    Labels: the mean over voxels that are not ignored. Regions: the mean over voxels and regions,
    but with an ignore label the sum over both divided by the number of voxels only, hence as many
    times larger as there are regions. That is nnU-Net's value, kept so that a training compares.
    """
    if weights is None:
        return _cross_entropy(_measure(logits, segmentation, labels))
    voxels = _voxel_entropies(logits, segmentation, labels, weights)
    return (voxels.entropy * voxels.weight).sum() / voxels.terms


def dice_topk(
    logits: Tensor, segmentation: Tensor, labels: Labels, batch_dice: bool, weights: Weights = None
) -> Tensor:
    """Give `dice` plus the mean cross-entropy of the worst tenth of all voxels of the batch.

    Ignored voxels count among all, with 0. Of regions it is the worst tenth of voxels and regions.

    Source: Wu et al. 2016, arXiv:1605.06885; the share and the count are those of nnU-Net 2.8.1.
    """
    voxels = _voxel_entropies(logits, segmentation, labels, weights)
    terms = (voxels.entropy * voxels.weight).flatten()
    worst = terms.topk(max(1, int(terms.numel() * TOPK_SHARE)), sorted=False).values
    return dice(logits, segmentation, labels, batch_dice, weights) + worst.mean()


def focal(
    logits: Tensor, segmentation: Tensor, labels: Labels, batch_dice: bool, weights: Weights = None
) -> Tensor:
    """Give the focal loss: `ce` with each term times (1 - p)^2, p the probability of the truth.

    Source: Lin et al. 2017, arXiv:1708.02002, with its gamma of 2.
    """
    voxels = _voxel_entropies(logits, segmentation, labels, weights)
    missed = -torch.expm1(-voxels.entropy)
    return (missed.square() * voxels.entropy * voxels.weight).sum() / voxels.terms


def tversky(
    logits: Tensor, segmentation: Tensor, labels: Labels, batch_dice: bool, weights: Weights = None
) -> Tensor:
    """Give minus the mean Tversky index: Dice that counts a missed voxel more than a false one.

    It is (tp + s) / (tp + 0.3 fp + 0.7 fn + s) with s = 1e-5, of soft counts as in `dice`.

    Source: Salehi et al. 2017, arXiv:1706.05721.
    """
    sums = _measure(logits, segmentation, labels)
    overlap, found, wanted = _over_batch(sums, batch_dice)
    below = overlap + FALSE_WEIGHT * (found - overlap) + MISSED_WEIGHT * (wanted - overlap)
    return -_mean((overlap + SMOOTH) / (below + SMOOTH), weights)


LOSSES = Registry[Loss](
    "loss", dice_ce=dice_ce, dice=dice, ce=ce, dice_topk=dice_topk, focal=focal, tversky=tversky
)


def make_loss(name: str, class_weights: Sequence[float] | None = None) -> Loss:
    """Give the loss called `name`, its classes weighted.

    Means over classes become weighted means. Of softmax heads, a voxel's cross-entropy counts with
    the weight of its true label, background 1, and the sum is divided by the sum of these weights,
    as PyTorch's does. Equal weights of regions change nothing, nor do weights of 1 of labels.

    Args:
        name: An entry of `LOSSES`.
        class_weights: One for each foreground label or region, in the order of
            `Labels.foreground`; None weighs them alike.

    Raises:
        PlanError: There is no such loss, or it takes no weights.
    """
    loss: Callable[..., Tensor] = LOSSES[name]
    if class_weights is None:
        return loss
    if "weights" not in inspect.signature(loss).parameters:
        raise PlanError(f"the loss {name!r} takes no class weights; leave them out")
    return partial(loss, weights=tuple(class_weights))


def deep_supervision_weights(levels: int) -> tuple[float, ...]:
    """Weigh the outputs of a network, from full resolution down; the weights sum to 1.

    Each counts half of the one before and the last, the coarsest, nothing. A single output counts
    1, where nnU-Net divides 0 by 0.

    >>> deep_supervision_weights(3)
    (0.6666666666666666, 0.3333333333333333, 0.0)
    """
    if levels == 1:
        return (1.0,)
    halved = [0.5**level for level in range(levels - 1)]
    return (*(weight / sum(halved) for weight in halved), 0.0)


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
        loss: An entry of `LOSSES`.
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
        wanted = _is_any(segmentation, members)
        if labels.ignore is not None:
            found = found & (segmentation != labels.ignore)
        both = (found & wanted).sum()
        counts.append(torch.stack([both, found.sum() - both, wanted.sum() - both]))
    return torch.stack(counts, dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sums:
    """What the losses are ratios of. A class is a foreground label or a region."""

    overlap: Tensor  # (batch, class), sum of p g
    found: Tensor  # (batch, class), sum of p
    wanted: Tensor  # (batch, class), sum of g
    entropy: Tensor  # (batch,), sum of -log p of the truth
    terms: Tensor | int  # what the mean of the entropy divides by


def _measure(logits: Tensor, segmentation: Tensor, labels: Labels) -> _Sums:
    values = (logits if logits.dtype == torch.float64 else logits.float()).flatten(2)
    flat = segmentation.flatten(1)  # (batch, voxel)
    valid = None if labels.ignore is None else flat != labels.ignore
    if labels.has_regions:
        targets = torch.stack([_is_any(flat, each) for each in labels.foreground.values()], dim=1)
        overlap, found, entropy = _SigmoidSums.apply(values, targets, valid)  # type: ignore[no-untyped-call]
        wanted, terms = targets.sum(dim=2), targets[0].numel()
    else:
        indices = flat.long() if valid is None else flat.long() * valid
        overlap, found, entropy = _SoftmaxSums.apply(values, indices, valid)  # type: ignore[no-untyped-call]
        overlap, found = overlap[:, 1:], found[:, 1:]  # without the background
        foreground = range(1, values.shape[1])
        wanted = torch.stack([(flat == label).sum(dim=1) for label in foreground], dim=1)
        terms = flat.shape[1]
    entropy = gather(entropy)
    counted = None if valid is None else gather(valid.sum(dim=1))
    return _Sums(
        overlap=gather(overlap),
        found=gather(found),
        wanted=gather(wanted),
        entropy=entropy,
        terms=terms * len(entropy) if counted is None else counted.sum().clamp_min(1),
    )


def _over_batch(sums: _Sums, batch_dice: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Give overlap, found and wanted, (batch, class), or (class,) of the whole batch."""
    overlap, found, wanted = sums.overlap, sums.found, sums.wanted
    if batch_dice:
        return overlap.sum(dim=0), found.sum(dim=0), wanted.sum(dim=0)
    return overlap, found, wanted


def _dice(sums: _Sums, batch_dice: bool) -> Tensor:
    overlap, found, wanted = _over_batch(sums, batch_dice)
    return (2 * overlap + SMOOTH) / (found + wanted + SMOOTH).clamp_min(SMALLEST)


def _mean(values: Tensor, weights: Weights) -> Tensor:
    """Average over classes, the last axis, with their weights, and over samples."""
    if weights is None:
        return values.mean()
    shares = values.new_tensor(weights) / sum(weights)
    return (values * shares).sum(dim=-1).mean()


def _cross_entropy(sums: _Sums) -> Tensor:
    return sums.entropy.sum() / sums.terms


@dataclass(frozen=True, slots=True, kw_only=True)
class _Voxels:
    """Cross-entropy term by term: (batch, voxel) for labels, (batch, region, voxel) for regions."""

    entropy: Tensor  # -log p of the truth; 0 where ignored
    weight: Tensor  # broadcasts against it
    terms: Tensor  # what the mean divides by


def _voxel_entropies(
    logits: Tensor, segmentation: Tensor, labels: Labels, weights: Weights
) -> _Voxels:
    values = (logits if logits.dtype == torch.float64 else logits.float()).flatten(2)
    flat = segmentation.flatten(1)
    valid = None if labels.ignore is None else flat != labels.ignore
    if labels.has_regions:
        entropy = torch.stack(
            [
                functional.softplus(torch.where(_is_any(flat, members), -region, region))
                for region, members in zip(
                    values.unbind(dim=1), labels.foreground.values(), strict=True
                )
            ],
            dim=1,
        )
        shares = values.new_tensor(weights or (1.0,) * entropy.shape[1])
        weight = (shares / shares.mean())[:, None]
        if valid is None:
            entropy = gather(entropy)
            return _Voxels(entropy=entropy, weight=weight, terms=values.new_tensor(entropy.numel()))
        terms = gather(valid.sum(dim=1)).sum().clamp_min(1)
        return _Voxels(entropy=gather(entropy * valid[:, None]), weight=weight, terms=terms)
    indices = flat.long() if valid is None else flat.long() * valid
    entropy = functional.cross_entropy(values, indices, reduction="none")
    heads = values.new_tensor((1.0, *(weights or (1.0,) * (values.shape[1] - 1))))
    weight = heads[indices]
    if valid is not None:
        entropy, weight = entropy * valid, weight * valid
    entropy, weight = gather(entropy), gather(weight)
    return _Voxels(entropy=entropy, weight=weight, terms=weight.sum().clamp_min(SMALLEST))


class _SoftmaxSums(torch.autograd.Function):
    """Sums over voxels of softmax probabilities and of -log of the true label's.

    Takes logits (batch, head, voxel), the true heads (batch, voxel) and None or a mask (batch,
    voxel) of what counts; gives overlap and found (batch, head) and entropy (batch,). Autograd
    would pass over the heads four times as often and keep a mask for each; the gradient needs only
    the probabilities and the true heads.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, indices: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        probabilities = functional.log_softmax(logits, dim=1)
        entropy = -probabilities.gather(1, indices[:, None])[:, 0]
        probabilities = probabilities.exp_()
        if valid is not None:  # from here on an ignored voxel is 0, and so is its gradient
            probabilities, entropy = probabilities.mul_(valid[:, None]), entropy * valid
        shared = probabilities.gather(1, indices[:, None])[:, 0]
        masks = ((indices == head).to(shared.dtype) for head in range(logits.shape[1]))
        overlap = torch.stack([(shared * mask).sum(dim=1) for mask in masks], dim=1)
        ctx.save_for_backward(probabilities, indices, shared, valid)
        return overlap, probabilities.sum(dim=2), entropy.sum(dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        overlap, found, entropy = gradients
        probabilities, indices, shared, valid = ctx.saved_tensors
        # with D = dL/dp it is p (D - sum(p D)) for Dice, p - g for the entropy
        truth = shared * overlap.gather(1, indices)
        result = probabilities * found[:, :, None]
        rest = entropy[:, None] - truth - result.sum(dim=1)
        result = result.addcmul_(probabilities, rest[:, None])
        truth = truth - entropy[:, None]
        if valid is not None:
            truth = truth * valid
        return result.scatter_add_(1, indices[:, None], truth[:, None]), None, None


class _SigmoidSums(torch.autograd.Function):
    """The same for regions: logits and true regions (batch, region, voxel), each on its own.

    No region may hold a voxel that does not count.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        entropy = -functional.logsigmoid(torch.where(targets, logits, -logits))
        probabilities = logits.sigmoid()
        if valid is not None:
            probabilities, entropy = probabilities.mul_(valid[:, None]), entropy * valid[:, None]
        ctx.save_for_backward(probabilities, targets)
        overlap = (probabilities * targets).sum(dim=2)
        return overlap, probabilities.sum(dim=2), entropy.sum(dim=(1, 2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        overlap, found, entropy = gradients
        probabilities, targets = ctx.saved_tensors
        slope = found[:, :, None] + targets * overlap[:, :, None]
        slope = slope.mul_(probabilities).mul_(1 - probabilities)
        return (
            slope + entropy[:, None, None] * (probabilities - targets.to(slope.dtype)),
            None,
            None,
        )


def _is_any(segmentation: Tensor, members: Sequence[int]) -> Tensor:
    """Mark the voxels of any of these labels; a table of them would have to go to the device."""
    found = segmentation == members[0]
    for label in members[1:]:
        found = found | (segmentation == label)
    return found


def _at_size(segmentation: Tensor, size: Sequence[int]) -> Tensor:
    """Sample a label map (batch, *spatial) at the voxels nearest to those of a smaller grid."""
    for axis, (small, large) in enumerate(zip(size, segmentation.shape[1:], strict=True), start=1):
        if small != large:
            places = torch.arange(small, device=segmentation.device)
            nearest = (2 * places + 1) * large // (2 * small)  # the centre of each, rounded down
            segmentation = segmentation.index_select(axis, nearest)
    return segmentation
