"""Every loss of every kind of labels against its plain formula, and what each has to bear."""

from functools import partial
from typing import Any

import pytest
import torch
from loss_oracle import (
    IGNORING,
    IGNORING_REGIONS,
    KINDS,
    OPTIONS,
    PLAIN,
    REGIONS,
    example,
    plain_loss,
)
from torch import Tensor

from nnseg.errors import PlanError
from nnseg.labels import Labels
from nnseg.losses.build import LOSSES, OVERLAPS, make_loss
from nnseg.losses.entropy import ce
from nnseg.losses.overlap import dice

NAMES = sorted(LOSSES)
WEIGHTS = (0.5, 2.0, 4.0)


def weights_of(labels: Labels) -> tuple[float, ...]:
    return WEIGHTS[: len(labels.foreground)]


# ---------------------------------------------------------------- values and gradients


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("labels", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_loss_and_its_gradient_equal_the_plain_formula(
    name: str, labels: Labels, batch_dice: bool, varied: bool
) -> None:
    logits, segmentation = example(labels)
    options: Any = OPTIONS.get(name, {}) if varied else {}
    loss = make_loss(name, weights_of(labels) if varied else None, **options)
    ours, theirs = (logits.double().requires_grad_() for _ in range(2))
    found = loss(ours, segmentation, labels, batch_dice)
    each = weights_of(labels) if varied else (1.0,) * len(labels.foreground)
    wanted = plain_loss(name, theirs, segmentation, labels, batch_dice, each, **options)
    assert found.item() == pytest.approx(wanted.item(), abs=1e-12)
    found.backward()
    wanted.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("labels", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_pass_gradcheck(name: str, labels: Labels) -> None:
    logits, segmentation = example(labels, (1, 3, 2))
    exact = logits.double().requires_grad_()
    plain, varied = make_loss(name), make_loss(name, weights_of(labels), **OPTIONS.get(name, {}))
    assert torch.autograd.gradcheck(lambda x: plain(x, segmentation, labels, False), exact)
    assert torch.autograd.gradcheck(
        lambda x: varied(x, segmentation, labels, True), exact, fast_mode=True
    )


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


@pytest.mark.parametrize("name", ["dice_ce", "dice_topk"])
@pytest.mark.parametrize("labels", KINDS)
def test_a_share_of_dice_of_one_half_is_half_of_the_sum_and_the_ends_are_its_parts(
    name: str, labels: Labels
) -> None:
    logits, segmentation = example(labels)
    given = (logits.double(), segmentation, labels, True)
    half, none, all_ = (make_loss(name, dice_weight=share)(*given) for share in (0.5, 0.0, 1.0))
    torch.testing.assert_close(2 * half, make_loss(name)(*given))
    torch.testing.assert_close(none, make_loss(name.removeprefix("dice_"))(*given))
    torch.testing.assert_close(all_, dice(*given))


# ---------------------------------------------------------------- what is ignored


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("labels", [IGNORING, IGNORING_REGIONS])
def test_no_loss_looks_at_an_ignored_voxel(name: str, labels: Labels) -> None:
    logits, segmentation = example(labels)
    ignored = segmentation == 3
    changed = torch.where(ignored[:, None], -logits, logits)
    loss = make_loss(name, weights_of(labels))
    leaf = logits.clone().requires_grad_()
    before = loss(leaf, segmentation, labels, False)
    assert torch.equal(loss(changed, segmentation, labels, False), before)
    before.backward()
    assert leaf.grad is not None
    gradient = leaf.grad.movedim(1, -1)
    assert (gradient[ignored] == 0).all()
    if name != "topk":
        assert (gradient[~ignored] != 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("labels", [IGNORING, IGNORING_REGIONS])
def test_a_batch_that_is_all_ignored_gives_a_finite_loss_without_gradient(
    name: str, labels: Labels
) -> None:
    logits, segmentation = example(labels)
    leaf = logits.requires_grad_()
    loss = make_loss(name, weights_of(labels))
    value = loss(leaf, torch.full_like(segmentation, 3), labels, False)
    value.backward()
    assert value.item() in (0.0, pytest.approx(-1.0))
    assert leaf.grad is not None
    assert not leaf.grad.any()


# ---------------------------------------------------------------- extremes


def extremes(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A sample for each of empty and full maps, found perfectly, not at all, and in full doubt."""
    found, wanted = [], []
    for label in (0, 1, 2):
        for certain in (0, 1, 2):
            for size in (0.0, 60.0, 6e4):  # the last is near the largest of fp16
                logits = torch.full((3, *shape), -size)
                logits[certain] = size
                found.append(logits)
                wanted.append(torch.full(shape, label))
    return torch.stack(found), torch.stack(wanted)


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 1)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_every_loss_and_its_gradient_are_finite_at_the_extremes(
    name: str, kind: torch.dtype, shape: tuple[int, ...]
) -> None:
    whole, segmentation = extremes(shape)
    for labels in (PLAIN, IGNORING, REGIONS, IGNORING_REGIONS):
        losses = [make_loss(name), make_loss(name, weights_of(labels), **OPTIONS.get(name, {}))]
        if "gamma" in OPTIONS.get(name, {}):
            losses += [make_loss(name, gamma=gamma) for gamma in (0.5, 3.0)]
        for loss in losses:
            for start in range(0, len(whole), 9):  # all samples of a call have the same truth
                leaf = whole[start : start + 9].to(kind).requires_grad_()
                value = loss(leaf, segmentation[start : start + 9], labels, start == 0)
                value.backward()
                assert value.dtype == torch.float32
                assert value.isfinite()
                assert leaf.grad is not None
                assert leaf.grad.dtype == kind
                assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_falls_from_all_wrong_to_all_right(name: str) -> None:
    segmentation = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5) % 3
    right = 20 * torch.nn.functional.one_hot(segmentation, 3).movedim(-1, 1).float()
    wrong = right.roll(1, dims=1)
    loss = make_loss(name)
    best, middle, worst = (
        loss(logits, segmentation, PLAIN, True).item()
        for logits in (right, torch.zeros_like(right), wrong)
    )
    assert best < middle < worst
    assert best == pytest.approx(
        -1 if name in ("dice_ce", "dice_topk", *OVERLAPS[:3]) else 0, abs=1e-4
    )


@pytest.mark.parametrize("labels", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_logits_are_summed_in_float32(name: str, labels: Labels) -> None:
    logits, segmentation = example(labels)
    loss = make_loss(name)
    coarse = logits.bfloat16().requires_grad_()
    value = loss(coarse, segmentation, labels, True)
    assert torch.equal(value, loss(coarse.detach().float(), segmentation, labels, True))


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.uint16])
@pytest.mark.parametrize("name", NAMES)
def test_any_integer_type_of_label_map_gives_the_same_loss(name: str, kind: torch.dtype) -> None:
    loss = make_loss(name)
    for labels in (IGNORING, IGNORING_REGIONS):
        logits, segmentation = example(labels)
        wanted = loss(logits, segmentation, labels, False)
        assert torch.equal(loss(logits, segmentation.to(kind), labels, False), wanted)


# ---------------------------------------------------------------- on the device


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch's tracer warns itself
@pytest.mark.parametrize("labels", [IGNORING, IGNORING_REGIONS])
def test_a_loss_is_traced_as_one_graph(labels: Labels) -> None:
    torch.compiler.reset()
    logits, segmentation = example(labels)
    loss = partial(LOSSES["dice_ce"], labels=labels, batch_dice=True)
    traced: Any = torch.compile(loss, backend="aot_eager", fullgraph=True)
    first, second = (logits.clone().requires_grad_() for _ in range(2))
    wanted, found = loss(first, segmentation), traced(second, segmentation)
    torch.testing.assert_close(found, wanted)
    wanted.backward()
    found.backward()
    torch.testing.assert_close(second.grad, first.grad)


@pytest.mark.parametrize("name", NAMES)
def test_no_loss_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> float:
        raise AssertionError("a value was fetched from the device")

    for method in ("item", "tolist", "cpu", "__bool__", "__float__", "__int__", "nonzero"):
        monkeypatch.setattr(Tensor, method, refuse)
    for labels in (PLAIN, IGNORING, REGIONS, IGNORING_REGIONS):
        logits, segmentation = example(labels)
        loss = make_loss(name, weights_of(labels), **OPTIONS.get(name, {}))
        loss(logits.requires_grad_(), segmentation, labels, True).backward()


# ---------------------------------------------------------------- names, weights, options


def test_an_unknown_loss_is_answered_with_the_known_ones() -> None:
    with pytest.raises(PlanError, match="no loss is named 'lovasz'; known: ce, dice"):
        LOSSES["lovasz"]


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize(
    ("name", "option", "takers"),
    [
        ("ce", "dice_weight", "dice_ce, dice_topk"),
        ("dice", "alpha", "tversky, focal_tversky"),
        ("focal", "beta", "tversky, focal_tversky"),
        ("tversky", "gamma", "focal, focal_tversky"),
    ],
)
def test_an_option_that_a_loss_does_not_take_is_refused_with_those_that_do(
    name: str, option: str, takers: str
) -> None:
    with pytest.raises(PlanError, match=f"'{name}' takes no {option}; .* one of {takers}$"):
        make_loss(name, **{option: 0.5})


@pytest.mark.parametrize("labels", KINDS)
def test_weights_that_balance_are_of_the_entropy_and_leave_overlaps_alone(labels: Labels) -> None:
    logits, segmentation = example(labels)
    given, weights = (logits.double(), segmentation, labels, True), weights_of(labels)
    found = make_loss("dice_ce", weights, balanced=True)(*given)
    torch.testing.assert_close(found, dice(*given) + ce(*given, weights))
    found = make_loss("ce", weights, balanced=True)(*given)
    torch.testing.assert_close(found, ce(*given, weights))
    for name in OVERLAPS:
        with pytest.raises(PlanError, match="counts small classes as much as large ones; leave"):
            make_loss(name, weights, balanced=True)
