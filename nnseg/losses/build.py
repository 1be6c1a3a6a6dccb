"""Losses by name, and those that are the sum of two."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from nnseg.errors import PlanError
from nnseg.labels import Labels
from nnseg.losses.entropy import ce, focal, mean_entropy, topk
from nnseg.losses.overlap import dice, dice_ratio, focal_tversky, generalised_dice, tversky
from nnseg.losses.sums import Loss, Weights, mean_of_classes, measure
from nnseg.registry import Registry


def dice_ce(
    logits: Tensor,
    segmentation: Tensor,
    labels: Labels,
    batch_dice: bool,
    weights: Weights = None,
    *,
    dice_weight: float | None = None,
    entropy_weights: Weights = None,
) -> Tensor:
    """Give the sum of `dice` and `ce`, between -1 (perfect) and infinity: nnU-Net's loss.

    With `dice_weight` w it is w dice + (1 - w) ce instead. `entropy_weights` are of the classes in
    `ce` alone, where None those of both.
    """
    sums = measure(logits, segmentation, labels)
    overlap = mean_of_classes(dice_ratio(sums, batch_dice), weights)
    of_entropy = weights if entropy_weights is None else entropy_weights
    if of_entropy is None:
        entropy = mean_entropy(sums)
    else:
        entropy = ce(logits, segmentation, labels, batch_dice, of_entropy)
    return _add(entropy, -overlap, dice_weight)


def dice_topk(
    logits: Tensor,
    segmentation: Tensor,
    labels: Labels,
    batch_dice: bool,
    weights: Weights = None,
    *,
    dice_weight: float | None = None,
    entropy_weights: Weights = None,
) -> Tensor:
    """Give the sum of `dice` and `topk`; `dice_weight` and `entropy_weights` as in `dice_ce`."""
    of_entropy = weights if entropy_weights is None else entropy_weights
    worst = topk(logits, segmentation, labels, batch_dice, of_entropy)
    return _add(worst, dice(logits, segmentation, labels, batch_dice, weights), dice_weight)


LOSSES = Registry[Loss](
    "loss",
    dice_ce=dice_ce,
    dice=dice,
    generalised_dice=generalised_dice,
    ce=ce,
    topk=topk,
    dice_topk=dice_topk,
    focal=focal,
    tversky=tversky,
    focal_tversky=focal_tversky,
)
OVERLAPS = ("dice", "generalised_dice", "tversky", "focal_tversky")  # small classes count as much


def make_loss(
    name: str,
    class_weights: Sequence[float] | None = None,
    *,
    balanced: bool = False,
    **options: float,
) -> Loss:
    """Give the loss called `name`, its classes weighted.

    Means over classes become weighted means. Of softmax heads, a voxel's cross-entropy counts with
    the weight of its true label, background 1, and the sum is divided by the sum of these weights,
    as PyTorch's does. Equal weights of regions change nothing, nor do weights of 1 of labels.

    Args:
        name: An entry of `LOSSES`.
        class_weights: One for each foreground label or region, in the order of
            `Labels.in_head_order`; None weighs them alike.
        balanced: The weights make up for the classes' volumes and are of the cross-entropy only:
            in an overlap small classes count as much as large ones as it is.
        options: What the loss takes besides: `dice_weight`, `alpha`, `beta`, `gamma`.

    Raises:
        PlanError: There is no such loss, or it takes no weights or not such an option.
    """
    loss: Callable[..., Tensor] = LOSSES[name]
    if class_weights is None and not options:
        return loss
    taken = inspect.signature(loss).parameters
    given: dict[str, Any] = dict(options)
    if class_weights is not None:
        if balanced and name in OVERLAPS:
            raise PlanError(
                f"the loss {name!r} counts small classes as much as large ones; leave out "
                "class weights that balance them"
            )
        if "weights" not in taken:
            raise PlanError(f"the loss {name!r} takes no class weights; leave them out")
        apart = balanced and "entropy_weights" in taken
        given["entropy_weights" if apart else "weights"] = tuple(class_weights)
    for option in options:
        if option not in taken:
            takers = [each for each, entry in LOSSES.items() if option in _parameters(entry)]
            raise PlanError(
                f"the loss {name!r} takes no {option}; leave it out, or take one of "
                f"{', '.join(takers)}"
            )
    return partial(loss, **given)


def _parameters(loss: Loss) -> tuple[str, ...]:
    return tuple(inspect.signature(loss).parameters)


def _add(entropy: Tensor, overlap: Tensor, share: float | None) -> Tensor:
    """Add two losses, or mix them with `share` of the overlap."""
    if share is None:
        return entropy + overlap
    return (1 - share) * entropy + share * overlap
