"""Passes of a network on a CPU that can be ended before they are over."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

ASK_EVERY = 0.05  # seconds within a pass of a network; to answer may cost the one asked something
UNASKED_PRODUCTS = 2**35  # of a convolution, on each thread of a CPU: 0.8 s of a Zen 4 in fp32


class Interruptible(TorchFunctionMode):
    """Asks between the operations of a pass whether to stop, and within large convolutions.

    It holds for the thread that enters it: hooks on the layers would hold for other threads, too,
    which predict by the same network and have not been told to stop.
    """

    def __init__(self, ask: Callable[[], None]) -> None:
        super().__init__()
        self._ask_now = ask  # what it raises ends the pass
        self._asked = time.monotonic()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self._ask()
        if func in (torch.conv2d, torch.conv3d) and _is_plain(args):
            return self._convolve(func, *args)
        return func(*args, **(kwargs or {}))

    def _ask(self) -> None:
        now = time.monotonic()
        if now - self._asked >= ASK_EVERY:
            self._ask_now()
            self._asked = time.monotonic()

    def _convolve(
        self,
        func: Callable[..., Tensor],
        image: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> Tensor:
        """Convolve so many planes at a time that each time is over soon."""
        size, kernel, step, pad = image.shape[2], weight.shape[2], stride[0], padding[0]
        planes = (size + 2 * pad - kernel) // step + 1
        products = len(image) * weight.numel() * planes
        products *= math.prod(n // s for n, s in zip(image.shape[3:], stride[1:], strict=True))
        count = math.ceil(products / (UNASKED_PRODUCTS * torch.get_num_threads()))
        if count <= 1 or max(dilation) > 1:
            return func(image, weight, bias, stride, padding, dilation, groups)
        parts, together = [], math.ceil(planes / count)
        for start in range(0, planes, together):
            stop = min(start + together, planes)
            first, last = start * step - pad, (stop - 1) * step - pad + kernel
            low, high = max(0, -first), max(0, last - size)
            part = image[:, :, first + low : last - high]
            if low or high:
                part = functional.pad(part, (0, 0) * (image.ndim - 3) + (low, high))
            inner = (0, *padding[1:])
            parts.append(func(part, weight, bias, stride, inner, dilation, groups))
            self._ask()
        return torch.cat(parts, dim=2)


def _is_plain(args: Sequence[Any]) -> bool:
    """Whether a convolution is called as torch's layers do: of a batch, and each axis by itself."""
    per_axis = all(isinstance(given, tuple) for given in args[3:6])
    return len(args) == 7 and per_axis and args[0].ndim == args[1].ndim
