"""Depthwise convolutions in three dimensions whose backward pass is as quick as the forward one.

On a CPU the backward pass of PyTorch 2.13, by oneDNN 3.12, takes a hundred times as long as the
forward pass. Here it is made of what is quick there: the gradient of the image is a forward pass
with the kernel turned round, and that of the weights is one of a 2D convolution for each plane of
the kernel.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def can_convolve(x: Tensor, weight: Tensor, groups: int, dilation: Sequence[int]) -> bool:
    """Whether `convolve` or `transpose` computes a convolution, and quicker than PyTorch does.

    Args:
        x: (batch, channel, z, y, x).
        weight: (channel, 1, *kernel).
        groups: As many as channels.
        dilation: 1 throughout.
    """
    return (
        x.device.type == "cpu"
        and torch.is_grad_enabled()
        and groups > 1
        and x.shape[1] == groups
        and tuple(weight.shape[:2]) == (groups, 1)
        and max(dilation) == 1
    )


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Convolve each channel with a kernel of its own, padded with zeros; as `conv3d` does.

    Args:
        x: (batch, channel, z, y, x) for which `can_convolve` holds.
        weight: (channel, 1, *kernel).
        bias: (channel,), or None.
        stride: One for each axis.
        padding: Zeros before and after, for each axis.
    """
    result: Tensor = _Convolution.apply(*_cast(x, weight, bias), tuple(stride), tuple(padding))  # type: ignore[no-untyped-call]
    return result


def transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Convolve the other way round, to a finer grid; as `conv_transpose3d` does.

    The arguments are those of `convolve`.
    """
    result: Tensor = _Transposed.apply(*_cast(x, weight, bias), tuple(stride), tuple(padding))  # type: ignore[no-untyped-call]
    return result


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Bring them to the precision of autocast, which does not see into functions of our own."""
    if not torch.is_autocast_enabled("cpu"):
        return x, weight, bias
    dtype = torch.get_autocast_dtype("cpu")
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.has_bias = stride, padding, bias is not None
        return _down(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        image = weights = bias = None
        if ctx.needs_input_grad[0]:
            image = _up(gradient, weight, None, ctx.stride, ctx.padding, x.shape[2:])
        if ctx.needs_input_grad[1]:
            weights = _weigh(x, gradient, weight, ctx.stride, ctx.padding)
        if ctx.has_bias:
            bias = gradient.sum(dim=(0, 2, 3, 4))
        return image, weights, bias, None, None


class _Transposed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.has_bias = stride, padding, bias is not None
        axes = zip(x.shape[2:], stride, weight.shape[2:], padding, strict=True)
        shape = [(count - 1) * step + edge - 2 * pad for count, step, edge, pad in axes]
        return _up(x, weight, bias, stride, padding, shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        image = weights = bias = None
        if ctx.needs_input_grad[0]:
            image = _down(gradient, weight, None, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            weights = _weigh(gradient, x, weight, ctx.stride, ctx.padding)
        if ctx.has_bias:
            bias = gradient.sum(dim=(0, 2, 3, 4))
        return image, weights, bias, None, None


def _down(
    fine: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> Tensor:
    return functional.conv3d(fine, weight, bias, stride, padding, groups=weight.shape[0])


def _up(
    coarse: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    shape: Sequence[int],
) -> Tensor:
    """Transpose `_down`: from its result to an image of `shape`."""
    if max(stride) > 1:
        axes = zip(shape, padding, weight.shape[2:], strict=True)
        lengths = [count + 2 * pad - edge + 1 for count, pad, edge in axes]
        order = torch.channels_last_3d
        spread = torch.empty(
            (*coarse.shape[:2], *lengths), dtype=coarse.dtype, memory_format=order
        ).zero_()
        z, y, x = stride
        spread[:, :, ::z, ::y, ::x] = coarse
        coarse = spread
    beyond = [edge - 1 - pad for edge, pad in zip(weight.shape[2:], padding, strict=True)]
    return functional.conv3d(
        coarse, weight.flip(2, 3, 4), bias, padding=beyond, groups=weight.shape[0]
    )


def _weigh(
    fine: Tensor,
    coarse: Tensor,
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> Tensor:
    """Give the gradient of the weights of `_down` from its image and what its result is to be."""
    step, pad = stride[0], padding[0]
    planes = torch.zeros_like(weight)
    for tap in range(weight.shape[2]):
        offset = tap - pad  # coarse plane k meets fine plane step k + offset
        first = max(0, -(offset // step))
        last = min(coarse.shape[2] - 1, (fine.shape[2] - 1 - offset) // step)
        if first > last:
            continue
        met = slice(step * first + offset, step * last + offset + 1, step)
        planes[:, :, tap] = torch.ops.aten.convolution_backward(
            _planes(coarse[:, :, first : last + 1]),
            _planes(fine[:, :, met]),
            weight[:, :, tap],
            None,
            stride[1:],
            padding[1:],
            [1, 1],
            False,
            [0, 0],
            weight.shape[0],
            [False, True, False],
        )[1]
    return planes


def _planes(x: Tensor) -> Tensor:
    """Give each plane as a 2D image, channels last."""
    return x.movedim(1, -1).flatten(0, 1).movedim(-1, 1)
