"""Losses against a plain one-hot oracle in float64 and against nnU-Net 2.8.1's own values."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from nnseg.errors import PlanError
from nnseg.labels import Labels
from nnseg.model.loss import (
    LOSSES,
    Loss,
    ce,
    deep_supervision_loss,
    deep_supervision_weights,
    dice,
    dice_ce,
    hard_counts,
    make_loss,
)

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
TERMS = {"dice": dice, "ce": ce}


def example(labels: Labels, shape: tuple[int, ...] = (4, 5, 6)) -> tuple[Tensor, Tensor]:
    """Two samples; the golden numbers below were computed from the same draws."""
    rng = np.random.default_rng(11)
    logits = torch.from_numpy(2 * rng.standard_normal((2, 3, *shape))).float()
    segmentation = torch.from_numpy(rng.integers(0, 4, (2, *shape)))
    return logits, segmentation if labels.ignore else segmentation % 3


def oracle(logits: Tensor, segmentation: Tensor, labels: Labels, batch_dice: bool) -> list[Tensor]:
    """Dice loss and cross-entropy from one-hot volumes in float64."""
    logits = logits.double()
    valid = torch.ones_like(segmentation, dtype=torch.bool)
    if labels.ignore:
        valid = segmentation != labels.ignore
    if labels.has_regions:
        truth = torch.stack(
            [
                sum((segmentation == label).double() for label in members)
                for members in labels.foreground.values()
            ],
            dim=1,
        )
        found = torch.sigmoid(logits)
        each = -(truth * found.log() + (1 - truth) * (1 - found).log())
        terms = each.numel() if labels.ignore is None else valid.sum()
        entropy = (each * valid[:, None]).sum() / terms
    else:
        truth = one_hot(segmentation, 4).movedim(-1, 1).double()[:, :3]
        found = torch.softmax(logits, dim=1)
        entropy = -((truth * found.log()).sum(1) * valid).sum() / valid.sum()
        truth, found = truth[:, 1:], found[:, 1:]
    axes = (0, *range(2, logits.ndim)) if batch_dice else tuple(range(2, logits.ndim))
    truth, found = truth * valid[:, None], found * valid[:, None]
    ratio = (2 * (truth * found).sum(axes) + 1e-5) / ((truth + found).sum(axes) + 1e-5)
    return [-ratio.mean(), entropy]


@pytest.mark.parametrize("labels", KINDS)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("shape", [(4, 5, 6), (5, 6)])
def test_losses_and_gradients_equal_a_one_hot_oracle(
    labels: Labels, batch_dice: bool, shape: tuple[int, ...]
) -> None:
    logits, segmentation = example(labels, shape)
    for name, wanted_index in (("dice", [0]), ("ce", [1]), ("dice_ce", [0, 1])):
        ours, theirs = (logits.double().requires_grad_() for _ in range(2))
        parts = oracle(theirs, segmentation, labels, batch_dice)
        wanted = torch.stack([parts[i] for i in wanted_index]).sum()
        found = LOSSES[name](ours, segmentation, labels, batch_dice)
        assert found.item() == pytest.approx(wanted.item(), abs=1e-12)
        wanted.backward()  # type: ignore[no-untyped-call]
        found.backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("labels", "batch_dice", "value"),
    [
        (PLAIN, False, 1.4217711687088013),
        (PLAIN, True, 1.4215006828308105),
        (IGNORING, False, 1.4341070652008057),
        (IGNORING, True, 1.4331259727478027),
        (REGIONS, False, 0.6958129405975342),
        (REGIONS, True, 0.6946965456008911),
        (IGNORING_REGIONS, False, 2.8716676235198975),
        (IGNORING_REGIONS, True, 2.870110273361206),
    ],
)
def test_dice_ce_equals_the_value_of_nnunet(labels: Labels, batch_dice: bool, value: float) -> None:
    logits, segmentation = example(labels)
    found = LOSSES["dice_ce"](logits, segmentation, labels, batch_dice)
    assert found.item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("labels", KINDS)
@pytest.mark.parametrize("loss", [dice, ce, dice_ce])
def test_gradients_pass_gradcheck(labels: Labels, loss: Loss) -> None:
    logits, segmentation = example(labels, (2, 3, 1))
    exact = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, segmentation, labels, True), exact)
    assert torch.autograd.gradcheck(lambda x: loss(x, segmentation, labels, False), exact)


@pytest.mark.parametrize("labels", [IGNORING, IGNORING_REGIONS])
@pytest.mark.parametrize("loss", [dice, ce, dice_ce])
def test_ignored_voxels_have_no_gradient_and_no_influence(labels: Labels, loss: Loss) -> None:
    logits, segmentation = example(labels)
    ignored = segmentation == 3
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, segmentation, labels, False)
    value.backward()
    assert leaf.grad is not None
    gradient = leaf.grad.movedim(1, -1)
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] != 0).all()
    changed = torch.where(ignored[:, None], -logits, logits)
    assert torch.equal(loss(changed, segmentation, labels, False), value)


@pytest.mark.parametrize("labels", [IGNORING, IGNORING_REGIONS])
def test_a_batch_that_is_all_ignored_leaves_only_the_smoothing(labels: Labels) -> None:
    logits, segmentation = example(labels)
    leaf = logits.requires_grad_()
    value = dice_ce(leaf, torch.full_like(segmentation, 3), labels, True)
    assert value.item() == -1.0
    value.backward()
    assert leaf.grad is not None
    assert not leaf.grad.any()


def test_a_class_absent_from_truth_and_prediction_counts_as_perfect() -> None:
    logits = torch.full((1, 3, 2, 3, 4), -200.0)
    logits[:, 0] = 200
    assert dice(logits, torch.zeros(1, 2, 3, 4, dtype=torch.uint8), PLAIN, True).item() == -1


def test_cross_entropy_is_finite_where_the_probability_is_not() -> None:
    logits = torch.tensor([[[[500.0]], [[0.0]], [[0.0]]]], requires_grad=True)
    value = ce(logits, torch.tensor([[[1]]]), PLAIN, False)
    assert value.item() == 500
    value.backward()
    assert torch.equal(logits.grad, torch.tensor([[[[1.0]], [[-1.0]], [[0.0]]]]))


@pytest.mark.parametrize("labels", KINDS)
def test_half_precision_logits_are_summed_in_float32(labels: Labels) -> None:
    logits, segmentation = example(labels)
    coarse = logits.bfloat16().requires_grad_()
    value = dice_ce(coarse, segmentation, labels, True)
    assert value.dtype == torch.float32
    assert torch.equal(value, dice_ce(coarse.detach().float(), segmentation, labels, True))
    value.backward()
    assert coarse.grad is not None
    assert coarse.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.uint16])
def test_any_integer_type_of_label_map_gives_the_same_loss(kind: torch.dtype) -> None:
    for labels in (IGNORING, IGNORING_REGIONS):
        logits, segmentation = example(labels)
        wanted = dice_ce(logits, segmentation, labels, False)
        assert torch.equal(dice_ce(logits, segmentation.to(kind), labels, False), wanted)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch's tracer warns itself
@pytest.mark.parametrize("labels", KINDS)
def test_a_loss_is_traced_as_one_graph(labels: Labels) -> None:
    torch.compiler.reset()
    logits, segmentation = example(labels)
    loss = partial(dice_ce, labels=labels, batch_dice=True)
    traced = torch.compile(loss, backend="aot_eager", fullgraph=True)
    first, second = (logits.clone().requires_grad_() for _ in range(2))
    wanted, found = loss(first, segmentation), traced(second, segmentation)
    torch.testing.assert_close(found, wanted)
    wanted.backward()
    found.backward()
    torch.testing.assert_close(second.grad, first.grad)


def test_an_unknown_loss_is_answered_with_the_known_ones() -> None:
    with pytest.raises(PlanError, match="no loss is named 'lovasz'; known: ce, dice"):
        LOSSES["lovasz"]


def test_weights_halve_from_output_to_output_and_leave_out_the_coarsest() -> None:
    assert deep_supervision_weights(4) == pytest.approx((4 / 7, 2 / 7, 1 / 7, 0))
    assert deep_supervision_weights(2) == (1.0, 0.0)


def test_a_single_output_has_all_the_weight() -> None:
    assert deep_supervision_weights(1) == (1.0,)


def test_deep_supervision_compares_with_the_nearest_voxel_of_the_label_map() -> None:
    segmentation = torch.randint(0, 3, (2, 4, 6, 8), generator=torch.Generator().manual_seed(0))
    full, _ = example(PLAIN, (4, 6, 8))
    half, _ = example(PLAIN, (4, 3, 2))
    found = deep_supervision_loss(dice_ce, [full, half], segmentation, PLAIN, False, (0.6, 0.4, 0))
    nearest = torch.nn.functional.interpolate(
        segmentation[:, None].float(), (4, 3, 2), mode="nearest-exact"
    )[:, 0].long()
    wanted = 0.6 * dice_ce(full, segmentation, PLAIN, False)
    wanted = wanted + 0.4 * dice_ce(half, nearest, PLAIN, False)
    torch.testing.assert_close(found, wanted)


def test_an_output_of_weight_zero_is_not_looked_at() -> None:
    logits, segmentation = example(PLAIN)
    broken = torch.full((2, 3, 2, 2, 3), torch.nan)
    found = deep_supervision_loss(ce, [logits, broken], segmentation, PLAIN, False, (1.0, 0.0))
    assert torch.equal(found, ce(logits, segmentation, PLAIN, False))


def test_an_output_that_counts_may_not_be_left_out() -> None:
    logits, segmentation = example(PLAIN)
    with pytest.raises(ValueError, match="1 outputs do not cover"):
        deep_supervision_loss(ce, [logits], segmentation, PLAIN, False, (0.6, 0.4))
    with pytest.raises(ValueError, match="argument 2 is"):
        deep_supervision_loss(ce, [logits, logits], segmentation, PLAIN, False, (1.0,))


@pytest.mark.parametrize("labels", KINDS)
def test_hard_counts_equal_counting_voxel_by_voxel(labels: Labels) -> None:
    logits, segmentation = example(labels)
    found = hard_counts(logits, segmentation, labels)
    for index, members in enumerate(labels.foreground.values()):
        counts = [0, 0, 0]
        for place in np.ndindex(*segmentation.shape):
            truth, scores = segmentation[place].item(), logits[place[0]][(slice(None), *place[1:])]
            if truth == labels.ignore:
                continue
            yes = (
                scores[index].item() > 0
                if labels.has_regions
                else scores.argmax().item() == members[0]
            )
            true = truth in members
            counts[0] += yes and true
            counts[1] += yes and not true
            counts[2] += true and not yes
        assert found[:, index].tolist() == counts
    assert found.shape == (3, len(labels.foreground))


def test_nothing_in_the_module_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> float:
        raise AssertionError("a value was fetched from the device")

    for method in ("item", "tolist", "cpu", "__bool__", "__float__", "__int__", "nonzero"):
        monkeypatch.setattr(Tensor, method, refuse)
    for labels in (PLAIN, IGNORING, REGIONS, IGNORING_REGIONS):
        logits, segmentation = example(labels)
        weights = deep_supervision_weights(2)
        deep_supervision_loss(
            dice_ce, [logits.requires_grad_()], segmentation, labels, True, weights
        ).backward()
        hard_counts(logits, segmentation, labels)


def test_batch_dice_sums_before_the_ratio() -> None:
    # sample 0 holds label 1 everywhere and is certain of it, sample 1 the reverse
    logits = torch.full((2, 2, 1, 1, 4), -50.0)
    logits[0, 1], logits[1, 0] = 50, 50
    segmentation = torch.ones(2, 1, 1, 4, dtype=torch.uint8)
    labels = Labels(labels={"background": 0, "a": 1})
    assert dice(logits, segmentation, labels, False).item() == pytest.approx(-0.5, abs=1e-5)
    assert dice(logits, segmentation, labels, True).item() == pytest.approx(-2 / 3, abs=1e-5)
    assert math.isclose(ce(logits, segmentation, labels, True).item(), 50, rel_tol=1e-6)


def plain_terms(logits: Tensor, segmentation: Tensor, labels: Labels) -> tuple[Tensor, ...]:
    """Probabilities, truths and validity of every voxel and class in float64, one-hot."""
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


def plain_overlap(
    logits: Tensor,
    segmentation: Tensor,
    labels: Labels,
    batch_dice: bool,
    weights: tuple[float, ...],
    false_missed: tuple[float, float],
) -> Tensor:
    found, truth, valid = plain_terms(logits, segmentation, labels)
    if not labels.has_regions:
        found, truth = found[:, 1:], truth[:, 1:]
    found, truth = found * valid[:, None], truth * valid[:, None]
    axes = (0, 2, 3, 4) if batch_dice else (2, 3, 4)
    both = (found * truth).sum(axes)
    false, missed = (found * (1 - truth)).sum(axes), ((1 - found) * truth).sum(axes)
    below = both + false_missed[0] * false + false_missed[1] * missed
    smooth = 1e-5 if false_missed != (0.5, 0.5) else 0.5e-5  # Dice doubles everything
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    return (((both + smooth) / (below + smooth)) * shares).sum(dim=-1).mean()


def plain_loss(
    name: str,
    logits: Tensor,
    segmentation: Tensor,
    labels: Labels,
    batch_dice: bool,
    weights: tuple[float, ...],
) -> Tensor:
    """Each loss as its source writes it."""
    given = (logits, segmentation, labels)
    right, weight, terms = plain_entropies(*given, weights)
    entropy = -right.log()
    overlap = plain_overlap(*given, batch_dice, weights, (0.5, 0.5))
    if name == "tversky":
        return -plain_overlap(*given, batch_dice, weights, (0.3, 0.7))
    if name == "focal":
        return ((1 - right) ** 2 * entropy * weight).sum() / terms
    if name == "dice_topk":
        worst = (entropy * weight).flatten().sort(descending=True).values
        return worst[: worst.numel() // 10].mean() - overlap
    cross = (entropy * weight).sum() / terms
    return {"ce": cross, "dice": -overlap, "dice_ce": cross - overlap}[name]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("labels", KINDS)
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_and_its_gradient_equal_the_plain_formula(
    name: str, labels: Labels, batch_dice: bool, weighted: bool
) -> None:
    logits, segmentation = example(labels)
    weights = (0.5, 2.0, 4.0)[: len(labels.foreground)] if weighted else None
    loss = make_loss(name, weights)
    ours, theirs = (logits.double().requires_grad_() for _ in range(2))
    found = loss(ours, segmentation, labels, batch_dice)
    each = weights or (1.0,) * len(labels.foreground)
    wanted = plain_loss(name, theirs, segmentation, labels, batch_dice, each)
    assert found.item() == pytest.approx(wanted.item(), abs=1e-12)
    found.backward()
    wanted.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("labels", KINDS)
@pytest.mark.parametrize("name", ["dice_topk", "focal", "tversky"])
def test_gradients_of_further_losses_pass_gradcheck(labels: Labels, name: str) -> None:
    logits, segmentation = example(labels, (2, 3, 2))
    exact = logits.double().requires_grad_()
    loss = make_loss(name, (1.0, 3.0, 2.0)[: len(labels.foreground)])
    assert torch.autograd.gradcheck(lambda x: loss(x, segmentation, labels, True), exact)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("labels", [IGNORING, IGNORING_REGIONS])
def test_a_batch_that_is_all_ignored_gives_a_finite_loss_without_gradient(
    name: str, labels: Labels
) -> None:
    logits, segmentation = example(labels)
    leaf = logits.requires_grad_()
    loss = make_loss(name, (1.0, 3.0, 2.0)[: len(labels.foreground)])
    value = loss(leaf, torch.full_like(segmentation, 3), labels, False)
    value.backward()
    assert value.item() in (0.0, pytest.approx(-1.0))
    assert leaf.grad is not None
    assert not leaf.grad.any()


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("labels", [IGNORING, IGNORING_REGIONS])
def test_no_loss_looks_at_an_ignored_voxel(name: str, labels: Labels) -> None:
    logits, segmentation = example(labels)
    changed = torch.where((segmentation == 3)[:, None], -logits, logits)
    loss = make_loss(name, (1.0, 3.0, 2.0)[: len(labels.foreground)])
    before = loss(logits, segmentation, labels, False)
    assert torch.equal(loss(changed, segmentation, labels, False), before)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_weights_of_1_change_nothing(name: str) -> None:
    logits, segmentation = example(PLAIN)
    plain, weighted = (
        make_loss(name, weights)(logits.double(), segmentation, PLAIN, True)
        for weights in (None, (1.0, 1.0))
    )
    torch.testing.assert_close(plain, weighted, rtol=0, atol=1e-12)


def test_a_loss_of_ones_own_without_weights_is_refused_with_them() -> None:
    own = "own loss of this test"
    LOSSES.register(own, lambda logits, segmentation, labels, batch_dice: logits.sum())
    try:
        assert make_loss(own) is LOSSES[own]
        with pytest.raises(PlanError, match="takes no class weights; leave them out"):
            make_loss(own, (1.0, 2.0))
    finally:
        del LOSSES._entries[own]


def test_the_worst_tenth_is_at_least_one_voxel() -> None:
    logits, segmentation = example(PLAIN, (1, 2, 1))
    value = make_loss("dice_topk")(logits, segmentation, PLAIN, True)
    assert torch.isfinite(value)
