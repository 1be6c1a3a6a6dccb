"""Sums over voxels from which losses are made: what is found, what is wanted, what both share.

Every loss takes logits (batch, head, *spatial), a label map (batch, *spatial) of an integer type,
the `Labels` and whether overlaps are summed over the batch before their ratio. Labels are softmax
heads, whose background most overlaps leave out; regions are sigmoid heads, all of them in. Sums are
in float32 (float64 for float64 logits), whatever the network computes in. Nothing here waits for
the device. Where several processes share a batch, each gets the sums of all of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from nnseg.labels import Labels
from nnseg.model.ranks import gather

Loss: TypeAlias = Callable[[Tensor, Tensor, Labels, bool], Tensor]
Weights: TypeAlias = tuple[float, ...] | None  # one a foreground label or region, as heads come

SMALLEST = 1e-8  # least value that a loss divides by


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What the losses are ratios of. A class is a foreground label or a region."""

    overlap: Tensor  # (batch, class), sum of p g
    found: Tensor  # (batch, class), sum of p
    wanted: Tensor  # (batch, class), sum of g
    entropy: Tensor  # (batch,), sum of -log p of the truth
    terms: Tensor | int  # what the mean of the entropy divides by


def measure(
    logits: Tensor, segmentation: Tensor, labels: Labels, *, background: bool = False
) -> Sums:
    """Give the sums of each sample and class.

    Args:
        logits: (batch, head, *spatial).
        segmentation: (batch, *spatial); ignored voxels are in no sum.
        labels: What the integers mean.
        background: Whether it is the first class of softmax heads; regions have none.

    Raises:
        ValueError: Logits and label maps differ in shape.
    """
    if logits.shape[2:] != segmentation.shape[1:] or len(logits) != len(segmentation):
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(segmentation.shape)}")
    values = as_values(logits)
    flat = segmentation.flatten(1)  # (batch, voxel)
    valid = None if labels.ignore is None else flat != labels.ignore
    if labels.has_regions:
        targets = torch.stack([is_any(flat, each) for each in labels.foreground.values()], dim=1)
        overlap, found, entropy = _SigmoidSums.apply(values, targets, valid)  # type: ignore[no-untyped-call]
        wanted, terms = targets.sum(dim=2), targets[0].numel()
    else:
        indices = flat.long() if valid is None else flat.long() * valid
        overlap, found, entropy = _SoftmaxSums.apply(values, indices, valid)  # type: ignore[no-untyped-call]
        first = 0 if background else 1
        overlap, found = overlap[:, first:], found[:, first:]
        counted = range(first, values.shape[1])
        wanted = torch.stack([(flat == label).sum(dim=1) for label in counted], dim=1)
        terms = flat.shape[1]
    entropy = gather(entropy)
    valid_voxels = None if valid is None else gather(valid.sum(dim=1))
    return Sums(
        overlap=gather(overlap),
        found=gather(found),
        wanted=gather(wanted),
        entropy=entropy,
        terms=terms * len(entropy) if valid_voxels is None else valid_voxels.sum().clamp_min(1),
    )


def over_batch(sums: Sums, batch_dice: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Give overlap, found and wanted, (batch, class), or (class,) of the whole batch."""
    overlap, found, wanted = sums.overlap, sums.found, sums.wanted
    if batch_dice:
        return overlap.sum(dim=0), found.sum(dim=0), wanted.sum(dim=0)
    return overlap, found, wanted


def mean_of_classes(values: Tensor, weights: Weights) -> Tensor:
    """Average over classes, the last axis, with their weights, and over samples."""
    if weights is None:
        return values.mean()
    shares = values.new_tensor(weights) / sum(weights)
    return (values * shares).sum(dim=-1).mean()


def as_values(logits: Tensor) -> Tensor:
    """Give logits as (batch, head, voxel) of a type that sums of them are safe in."""
    return (logits if logits.dtype == torch.float64 else logits.float()).flatten(2)


def is_any(segmentation: Tensor, members: Sequence[int]) -> Tensor:
    """Mark the voxels of any of these labels; a table of them would have to go to the device."""
    found = segmentation == members[0]
    for label in members[1:]:
        found = found | (segmentation == label)
    return found


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
