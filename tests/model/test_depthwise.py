from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nnseg.model import depthwise
from nnseg.model.blocks import CONVOLUTION, TRANSPOSED

CHANNELS = 6


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def by_pytorch(
    transposed: bool, x: Tensor, parameters: Sequence[Tensor | None], stride: Any, padding: Any
) -> Tensor:
    convolve: Any = functional.conv_transpose3d if transposed else functional.conv3d
    result: Tensor = convolve(x, *parameters, stride, padding, groups=x.shape[1])
    return result


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2), (3, 1, 2)])
@pytest.mark.parametrize(
    ("kernel", "padding"),
    [
        ((3, 3, 3), (1, 1, 1)),
        ((1, 3, 3), (0, 1, 1)),
        ((7, 5, 3), (3, 2, 1)),
        ((3, 3, 2), (0, 0, 0)),
    ],
)
@pytest.mark.parametrize("shape", [(5, 6, 7), (4, 9, 4), (3, 3, 8)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_result_and_its_gradients_are_those_of_pytorch(
    transposed: bool,
    stride: tuple[int, ...],
    kernel: tuple[int, ...],
    padding: tuple[int, ...],
    shape: tuple[int, ...],
    with_bias: bool,
) -> None:
    x = drawn(2, CHANNELS, *shape).requires_grad_()
    weight = drawn(CHANNELS, 1, *kernel, seed=1).requires_grad_()
    bias = drawn(CHANNELS, seed=2).requires_grad_() if with_bias else None
    expected = by_pytorch(transposed, x, (weight, bias), stride, padding)
    ours = depthwise.transpose if transposed else depthwise.convolve
    found = ours(x, weight, bias, stride, padding)
    torch.testing.assert_close(found, expected)
    wanted = [each for each in (x, weight, bias) if each is not None]
    upper = drawn(*expected.shape, seed=3)
    for a, b in zip(
        torch.autograd.grad(found, wanted, upper),
        torch.autograd.grad(expected, wanted, upper),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)])
def test_layers_under_bf16_autocast_give_what_they_give_in_float64(
    transposed: bool, stride: tuple[int, ...]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind = (TRANSPOSED if transposed else CONVOLUTION)[3]
        layer: Any = kind(32, 32, 3, stride=stride, padding=1, groups=32)  # type: ignore[arg-type]
    x = drawn(2, 32, 6, 8, 7).requires_grad_()
    exact = [each.detach().double().requires_grad_() for each in (layer.weight, layer.bias)]
    expected = by_pytorch(transposed, x, exact, stride, (1, 1, 1))
    upper = drawn(*expected.shape, seed=3)
    wanted = torch.autograd.grad(expected, (x, *exact), upper)

    order = torch.channels_last_3d
    layer = layer.to(memory_format=order)
    image = x.detach().float().to(memory_format=order).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(image)
    assert result.dtype == torch.bfloat16
    found = torch.autograd.grad(result, (image, layer.weight, layer.bias), upper.to(result.dtype))
    assert [each.dtype for each in found] == [torch.float32] * 3
    for a, b in zip((result, *found), (expected, *wanted), strict=True):
        assert float((a.detach().double() - b.detach()).norm() / b.detach().norm()) < 0.01


def test_what_needs_no_gradient_gets_none() -> None:
    x, weight = drawn(1, CHANNELS, 4, 4, 4), drawn(CHANNELS, 1, 3, 3, 3).requires_grad_()
    found = depthwise.convolve(x, weight, None, (1, 1, 1), (1, 1, 1))
    found.sum().backward()
    assert x.grad is None
    assert weight.grad is not None
    frozen = weight.detach()
    x.requires_grad_()
    depthwise.convolve(x, frozen, None, (1, 1, 1), (1, 1, 1)).sum().backward()
    assert x.grad is not None
    assert frozen.grad is None


@pytest.mark.parametrize(
    ("shape", "groups", "dilation", "expected"),
    [
        ((4, 1, 3, 3, 3), 4, (1, 1, 1), True),
        ((4, 4, 3, 3, 3), 1, (1, 1, 1), False),
        ((8, 1, 3, 3, 3), 4, (1, 1, 1), False),
        ((4, 2, 3, 3, 3), 2, (1, 1, 1), False),
        ((4, 1, 3, 3, 3), 4, (1, 2, 2), False),
    ],
)
def test_only_depthwise_convolutions_of_trainings_on_a_cpu_are_taken(
    shape: tuple[int, ...], groups: int, dilation: tuple[int, ...], expected: bool
) -> None:
    x, weight = torch.zeros(1, 4, 5, 5, 5), torch.zeros(shape)
    assert depthwise.can_convolve(x, weight, groups, dilation) == expected
    with torch.no_grad():
        assert not depthwise.can_convolve(x, weight, groups, dilation)
    assert not depthwise.can_convolve(x.to("meta"), weight.to("meta"), groups, dilation)


def test_layers_take_it_only_where_something_is_differentiated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = []
    ours = {"convolve": depthwise.convolve, "transpose": depthwise.transpose}
    for name in ours:

        def told(*arguments: Any, name: str = name) -> Tensor:
            taken.append(name)
            return ours[name](*arguments)

        monkeypatch.setattr(depthwise, name, told)
    image = torch.randn(1, 4, 5, 6, 7)
    layers = [kind[3](4, 4, 3, padding=1, groups=4) for kind in (CONVOLUTION, TRANSPOSED)]
    with torch.no_grad():
        plain = [layer(image) for layer in layers]
    assert taken == []
    found = [layer(image) for layer in layers]
    assert taken == ["convolve", "transpose"]
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
