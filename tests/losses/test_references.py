"""Losses against MONAI 1.6.1 in float64, values and gradients.

golden/losses.json has for each of its losses, of the logits and label maps of `example`, the value
and the sum of its gradient times torch.linspace(-1, 1, 720). `smooth_nr` and `smooth_dr` are 1e-5,
and 0 in GeneralizedDiceLoss; of labels the losses have `to_onehot_y` and `softmax`, of regions
`sigmoid`; `include_background` is False but for generalised Dice and focal losses of labels.
DiceCELoss takes the softmax of several channels whatever it is told: of regions its values are the
mean over them, one at a time.
"""

import json
from pathlib import Path

import pytest
import torch
from loss_oracle import PLAIN, REGIONS, example

from nnseg.labels import Labels
from nnseg.losses.build import make_loss
from nnseg.losses.sums import Loss

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())["losses"]
BATCH = {"sample": False, "batch": True}


def check(
    name: str, loss: Loss, batch_dice: bool, *, minus: float = 0.0, factor: float = 1.0
) -> None:
    """Hold that ours is `factor` times MONAI's less `minus`."""
    labels: Labels = REGIONS if "regions" in name else PLAIN
    logits, segmentation = example(labels)
    if "absent" in name:
        segmentation[0][segmentation[0] == 2] = 0
    exact = logits.double().requires_grad_()
    value = loss(exact, segmentation, labels, batch_dice)
    value.backward()
    assert exact.grad is not None
    weights = torch.linspace(-1, 1, exact.numel(), dtype=torch.float64).reshape(exact.shape)
    theirs, slope = GOLDEN[name]
    assert value.item() == pytest.approx(factor * theirs - minus, rel=1e-6)
    assert float((exact.grad * weights).sum()) == pytest.approx(factor * slope, rel=1e-5)


@pytest.mark.parametrize("over", BATCH)
@pytest.mark.parametrize("kind", ["labels", "regions"])
def test_overlaps_are_those_of_monai_less_1(kind: str, over: str) -> None:
    for name in ("dice", "generalised_dice"):
        check(f"{name} {kind} {over}", make_loss(name), BATCH[over], minus=1)
    for alpha, beta in ((0.3, 0.7), (0.6, 0.4)):
        tversky = make_loss("tversky", alpha=alpha, beta=beta)
        check(f"tversky {alpha} {beta} {kind} {over}", tversky, BATCH[over], minus=1)


def test_generalised_dice_treats_absent_classes_as_monai_does() -> None:
    name = "generalised_dice absent labels sample"
    check(name, make_loss("generalised_dice"), False, minus=1)


def test_cross_entropy_is_that_of_monai_weighted_or_not() -> None:
    check("ce labels", make_loss("ce"), False)
    check("ce regions", make_loss("ce"), False)
    check("ce 0.5 2 labels", make_loss("ce", (0.5, 2.0)), False)


@pytest.mark.parametrize("over", BATCH)
@pytest.mark.parametrize("kind", ["labels", "regions"])
def test_dice_and_cross_entropy_are_those_of_monai_less_the_weight_of_dice(
    kind: str, over: str
) -> None:
    check(f"dice_ce {kind} {over}", make_loss("dice_ce"), BATCH[over], minus=1)
    mixed = make_loss("dice_ce", dice_weight=0.2)
    check(f"dice_ce 0.2 {kind} {over}", mixed, BATCH[over], minus=0.2)


@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_focal_is_that_of_monai_which_divides_by_the_number_of_softmax_heads_too(
    gamma: float,
) -> None:
    check(f"focal {gamma} regions", make_loss("focal", gamma=gamma), False)
    check(f"focal {gamma} labels", make_loss("focal", gamma=gamma), False, factor=3)
