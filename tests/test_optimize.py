import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnseg.errors import PlanError
from nnseg.learning.optimize import (
    MOST_LEFT_OUT,
    OPTIMIZERS,
    Optimizer,
    Verdict,
    average_into,
    copy_buffers,
    make_optimizer,
    push_back,
    set_pace,
    update,
)

NAMES = sorted(OPTIMIZERS)


def network() -> nn.Module:
    """A convolution whose weights are channels last."""
    layer = nn.Conv3d(2, 3, (1, 3, 2))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
    return layer.to(memory_format=torch.channels_last_3d)


def optimizer_of(layer: nn.Module, name: str = "sgd", fused: bool = True) -> Optimizer:
    return OPTIMIZERS[name](list(layer.parameters()), 0.1, 0.9, 0.01, fused)


def loss_of(layer: nn.Module, factor: float = 1.0) -> Tensor:
    image = torch.linspace(0, 1, 2 * 4 * 5 * 6).reshape(1, 2, 4, 5, 6)
    return factor * (layer(image) ** 2).mean()


def step(layer: nn.Module, optimizer: Optimizer, factor: float = 1.0, clip: float = 1e9) -> Verdict:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return update(optimizer, scaler, loss_of(layer, factor), clip)


def everything(layer: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    kept = [v for slots in optimizer.state.values() for v in slots.values()]
    return [tensor.detach().clone() for tensor in (*layer.parameters(), *kept)]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_step_of_bad_numbers_changes_neither_weights_nor_memory(
    name: str, fused: bool, factor: float
) -> None:
    layer = network()
    optimizer = optimizer_of(layer, name, fused)
    step(layer, optimizer)
    before = everything(layer, optimizer)
    verdict = step(layer, optimizer, factor)
    assert same(everything(layer, optimizer), before)
    assert verdict.fault() == f"the loss became {factor}"
    assert step(layer, optimizer).fault() is None
    assert not same(everything(layer, optimizer), before)


@pytest.mark.parametrize("name", NAMES)
def test_a_first_step_of_bad_numbers_is_as_if_it_had_not_been(name: str) -> None:
    plain, disturbed = network(), network()
    ours, theirs = optimizer_of(plain, name), optimizer_of(disturbed, name)
    step(disturbed, theirs, math.nan)
    for _ in range(2):
        step(plain, ours)
        step(disturbed, theirs)
    assert same(everything(plain, ours), everything(disturbed, theirs))


def test_a_gradient_that_overflows_under_a_finite_loss_is_bad_too() -> None:
    layer = network()
    optimizer = optimizer_of(layer)
    before = everything(layer, optimizer)
    parameter = next(layer.parameters())
    loss = loss_of(layer)
    parameter.register_hook(lambda gradient: gradient * math.inf)
    verdict = update(optimizer, torch.amp.GradScaler("cpu", enabled=False), loss, 12.0)
    assert same(everything(layer, optimizer), before)
    assert verdict.fault() in ("the gradient became inf", "the gradient became nan")


def test_an_overflow_of_a_scaled_gradient_is_mended_and_no_fault() -> None:
    layer = network()
    optimizer = optimizer_of(layer)
    before = everything(layer, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38)
    for _ in range(2):
        assert update(optimizer, scaler, loss_of(layer, 1e3), 12.0).fault() is None
    assert same(everything(layer, optimizer), before)
    assert scaler.get_scale() < 3e38 / 3


def test_an_overflow_at_every_scale_is_a_fault_in_the_end() -> None:
    layer = network()
    optimizer = optimizer_of(layer)
    next(layer.parameters()).register_hook(lambda gradient: gradient * math.nan)
    scaler = torch.amp.GradScaler("cpu")
    verdicts = [update(optimizer, scaler, loss_of(layer), 12.0) for _ in range(MOST_LEFT_OUT)]
    assert not any(verdict.was_good() for verdict in verdicts)
    assert verdicts[-1].fault(MOST_LEFT_OUT - 1) is None
    assert str(verdicts[-1].fault(MOST_LEFT_OUT)).startswith("the gradient became nan in 32 steps")
    assert scaler.get_scale() == 2.0**-16  # from 65536


@pytest.mark.parametrize("name", NAMES)
def test_one_kernel_or_many_come_to_the_same_weights(name: str) -> None:
    results = []
    for fused in (True, False):
        layer = network()
        optimizer = optimizer_of(layer, name, fused)
        for _ in range(3):
            step(layer, optimizer)
        results.append([parameter.detach() for parameter in layer.parameters()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_sgd_is_torchs_with_nesterov_momentum() -> None:
    ours, theirs = network(), network()
    mine = make_optimizer("sgd", ours.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    plain = torch.optim.SGD(theirs.parameters(), 0.1, 0.9, weight_decay=0.01, nesterov=True)
    for _ in range(3):
        step(ours, mine)
        plain.zero_grad()
        loss_of(theirs).backward()
        plain.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_without_momentum_a_step_is_the_gradient_alone() -> None:
    layer = network()
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    gradients = torch.autograd.grad(loss_of(layer), list(layer.parameters()))
    optimizer = make_optimizer("sgd", layer.parameters(), lr=0.5, momentum=0, weight_decay=0)
    step(layer, optimizer)
    for old, gradient, new in zip(before, gradients, layer.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old - 0.5 * gradient)


def test_a_long_gradient_is_shortened_and_its_length_told() -> None:
    layer = network()
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    optimizer = make_optimizer("sgd", layer.parameters(), lr=1.0, momentum=0, weight_decay=0)
    loss, norm = step(layer, optimizer, clip=0.25).wait()
    assert loss == pytest.approx(float(loss_of(network()).detach()))
    assert norm > 0.25
    moved = sum(
        float(((new.detach() - old) ** 2).sum())
        for new, old in zip(layer.parameters(), before, strict=True)
    )
    assert moved**0.5 == pytest.approx(0.25, rel=1e-4)
    assert all(parameter.grad is None for parameter in layer.parameters())


ADAMS = ("adam", "adamw")


@pytest.mark.parametrize(
    ("name", "found"), [("sgd", (0.5, True)), *((name, ((0.5, 0.999), None)) for name in ADAMS)]
)
def test_another_pace_sets_rate_and_momentum(name: str, found: object) -> None:
    optimizer = optimizer_of(network(), name)
    set_pace(optimizer, lr=0.3, momentum=0.5)
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.3
    seen = (group["momentum"], group["nesterov"]) if name == "sgd" else (group["betas"], None)
    assert seen == found
    set_pace(optimizer, momentum=0.5)
    assert group["lr"] == 0.3


def test_an_average_remembers_little_at_first_and_what_it_was_told_later() -> None:
    average, value = torch.zeros(2, 3), torch.ones(2, 3)
    average_into([average], [value], 0.99, 1)
    assert average.unique().tolist() == pytest.approx([1 - 2 / 11])
    average.zero_()
    average_into([average], [value], 0.99, 10**6)
    assert average.unique().tolist() == pytest.approx([0.01])


@pytest.mark.parametrize(
    ("name", "theirs"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_the_two_adams_are_torchs_and_decay_weights_differently(
    name: str, theirs: type[Optimizer]
) -> None:
    layers = [network() for _ in range(2)]
    mine = make_optimizer(name, layers[0].parameters(), lr=0.1, momentum=0.8, weight_decay=0.3)
    plain: Any = theirs
    other = plain(layers[1].parameters(), 0.1, betas=(0.8, 0.999), weight_decay=0.3)
    for _ in range(3):
        step(layers[0], mine)
        other.zero_grad()
        loss_of(layers[1]).backward()
        other.step()
    for a, b in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_of_shares_is_along_the_gradient_of_their_sum(name: str, scaled: bool) -> None:
    whole, shared = network(), network()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=scaled)
    first, second = (optimizer_of(each, name) for each in (whole, shared))
    for _ in range(2):
        wanted = update(first, scaler, loss_of(whole), 1e9)
        shares = [push_back(scaler, loss_of(shared, factor)) for factor in (0.2, 0.5)]
        assert all(not share.requires_grad for share in shares)
        found = update(second, scaler, loss_of(shared, 0.3), 1e9, shares)
        assert found.wait() == pytest.approx(wanted.wait(), rel=1e-5)
    for a, b in zip(whole.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [0, 1])
def test_a_bad_share_leaves_the_whole_step_out(name: str, bad: int) -> None:
    layer = network()
    optimizer = optimizer_of(layer, name)
    step(layer, optimizer)
    before = everything(layer, optimizer)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    factors = [1.0, 1.0]
    factors[bad] = math.nan
    share = push_back(scaler, loss_of(layer, factors[0]))
    verdict = update(optimizer, scaler, loss_of(layer, factors[1]), 12.0, [share])
    assert verdict.fault() == "the loss became nan"
    assert same(everything(layer, optimizer), before)
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_buffers_are_copied_by_name_and_stay_two() -> None:
    source, target = (nn.Sequential(nn.Conv3d(1, 3, 1), nn.BatchNorm3d(3)) for _ in range(2))
    source(torch.linspace(0, 1, 2 * 4 * 5 * 6).reshape(2, 1, 4, 5, 6))
    copy_buffers(target, source)
    assert all(map(torch.equal, target.buffers(), source.buffers()))
    assert int(target[1].num_batches_tracked) == 1  # type: ignore[arg-type]
    assert not torch.equal(target[0].weight, source[0].weight)  # type: ignore[arg-type]
    source(torch.ones(2, 1, 4, 5, 6))
    assert not torch.equal(target[1].running_mean, source[1].running_mean)  # type: ignore[arg-type]


def test_an_unknown_optimizer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PlanError, match="no optimizer is named 'lion'; known: adam, adamw, sgd"):
        OPTIMIZERS["lion"]
