"""The layers that networks are made of, in two and three dimensions.

Each runs on PyTorch's operators, or on those of `kernels` where `use_kernels` said so and a pass
under bf16 autocast on a CPU can take them. An image may come as two tensors of some channels each,
as the decoder's does.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnseg.model import depthwise, kernels

NEGATIVE_SLOPE = 0.01  # of every leaky ReLU, and of the initialisation that goes with it
NORM_EPS = 1e-5
_CACHED_VALUES = 2**19  # normalized at once: two copies of them fit into the caches of two cores


def convolve3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolve, with the right gradient of the weights in bf16 on a CPU, too.

    Depthwise convolutions go by `depthwise` there.

    PyTorch 2.13, by oneDNN 3.12, gives a wrong one or none where maps have two planes, the kernel
    is wider than one and none is skipped. With three it is right, so an empty one is lent. Where
    maps have fewer rows than kernels of 7 pad, it also writes into memory of others; there rows are
    lent.
    """
    planes, rows = x.shape[2:4]
    is_depthwise = depthwise.can_convolve(x, weight, groups, dilation)
    planes_lent = rows_lent = 0
    if _differentiated_in_bf16(x):
        halves = [step * (edge // 2) for step, edge in zip(dilation, weight.shape[2:], strict=True)]
        keeps = [s == 1 and p == half for s, p, half in zip(stride, padding, halves, strict=True)]
        goes_wrong = planes == 2 and weight.shape[2] > 1 and not is_depthwise
        planes_lent = int(goes_wrong and keeps[0])
        rows_lent = max(padding[1] - rows, 0) if keeps[1] and dilation[1] == 1 else 0
    lent = planes_lent or rows_lent
    if lent:
        x = functional.pad(x, (0, 0, 0, rows_lent, 0, planes_lent))
    if is_depthwise:
        y = depthwise.convolve(x, weight, bias, stride, padding)
    else:
        y = functional.conv3d(
            x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups
        )
    return y[:, :, :planes, :rows] if lent else y


class Convolution3d(nn.Conv3d):
    """PyTorch's, by `convolve3d`; it pads with zeros, by numbers."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        padding: Any = self.padding
        return convolve3d(
            x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


class TransposedConvolution3d(nn.ConvTranspose3d):
    """PyTorch's; where it keeps two planes, it is lent an empty one, as `convolve3d` is.

    A depthwise one goes by `depthwise`.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: D102
        plain = output_size is None and not any(self.output_padding)
        if plain and depthwise.can_convolve(x, self.weight, self.groups, self.dilation):
            padding: Any = self.padding
            return depthwise.transpose(x, self.weight, self.bias, self.stride, padding)
        keeps = self.stride[0] == 1 and self.kernel_size[0] > 1
        if x.shape[2] == 2 and keeps and _differentiated_in_bf16(x):
            return super().forward(functional.pad(x, (0, 0, 0, 0, 0, 1)))[:, :, :-1]
        return super().forward(x, output_size)


def _differentiated_in_bf16(x: Tensor) -> bool:
    """Whether PyTorch computes with `x` in bf16 on a CPU, and is to go back through it."""
    half = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and half and torch.is_grad_enabled()


CONVOLUTION = {2: nn.Conv2d, 3: Convolution3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: TransposedConvolution3d}


class InstanceNorm(nn.Module):
    """Instance norm with a scale and a shift for each channel, and a leaky ReLU if asked for.

    On PyTorch's operators it is a group norm with one channel a group: the same numbers, but
    PyTorch's kernel for it keeps the channels-last layout, which instance norm's does not. On a CPU
    that kernel sums up squares in fp32 as they come, and errs by 1e-3 and more on large patches. A
    training can live with that; a prediction in fp32 is computed by `normalize_exactly`.
    """

    own_kernels = False

    def __init__(self, channels: int, *, activated: bool = False) -> None:
        super().__init__()
        self.activated = activated
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        channels = self.weight.numel()
        if self.own_kernels and channels % kernels.GROUP == 0 and kernels.in_use(x):
            slope = NEGATIVE_SLOPE if self.activated else 1.0
            return kernels.normalize(x, self.weight, self.bias, NORM_EPS, slope)
        exact = x.device.type == "cpu" and x.dtype == torch.float32
        if exact and torch.is_inference_mode_enabled() and not torch.is_autocast_enabled("cpu"):
            slope = NEGATIVE_SLOPE if self.activated else 1.0
            return normalize_exactly(x, self.weight, self.bias, slope)
        y = functional.group_norm(x, channels, self.weight, self.bias, NORM_EPS)
        return functional.leaky_relu(y, NEGATIVE_SLOPE, inplace=True) if self.activated else y


def normalize_exactly(x: Tensor, scale: Tensor, shift: Tensor, slope: float) -> Tensor:
    """Give leaky(scale (x - mean) / deviation + shift), mean and deviation in two passes.

    It takes no longer than PyTorch's single pass, as what is worked on at once stays in the cache.

    Args:
        x: (batch, channel, *spatial), fp32, on a CPU.
        scale: (channel,).
        shift: (channel,).
        slope: Of values below 0; 1 is no activation.
    """
    order = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    x = x.contiguous(memory_format=order)
    result = torch.empty_like(x)
    rows = max(1, _CACHED_VALUES // x.shape[1])
    samples = zip(x.movedim(1, -1), result.movedim(1, -1), strict=True)
    for image, target in samples:
        parts = image.flatten(0, -2).split(rows)
        count = image[..., 0].numel()
        mean = torch.stack([part.sum(dim=0) for part in parts]).sum(dim=0) / count
        squares = torch.stack([(part - mean).square_().sum(dim=0) for part in parts]).sum(dim=0)
        factor = scale * torch.rsqrt(squares / count + NORM_EPS)
        for part, out in zip(parts, target.flatten(0, -2).split(rows), strict=True):
            torch.sub(part, mean, out=out)
            out.mul_(factor).add_(shift)
            if slope != 1:
                functional.leaky_relu(out, slope, inplace=True)
    return result


class ConvBlock(nn.Module):
    """Convolution, instance norm, leaky ReLU. The stride shrinks; the kernel keeps the size.

    Without `activated` it ends with the norm; without `bias` the convolution adds none.
    """

    own_kernels = False
    constant = False  # whether the weights stay as they are from now on
    _packed: Tensor | None = None  # what our kernels make of constant weights

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        stride: Sequence[int] | None = None,
        *,
        activated: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        kernel = tuple(kernel)
        self.conv = CONVOLUTION[len(kernel)](
            in_channels,
            out_channels,
            kernel,  # type: ignore[arg-type]  # its length is the dimension
            stride=tuple(stride or (1,) * len(kernel)),  # type: ignore[arg-type]
            padding=tuple(k // 2 for k in kernel),  # type: ignore[arg-type]
            bias=bias,
        )
        self.norm = InstanceNorm(out_channels, activated=activated)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Take an image, or one whose further channels are those of `skip`."""
        inputs = (x,) if skip is None else (x, skip)
        if self.own_kernels and kernels.in_use(x):
            channels = [each.shape[1] for each in inputs]
            if kernels.can_convolve(self.conv.weight, self.conv.stride, channels):
                if self.constant and self._packed is None:
                    self._packed = kernels.pack(x, self.conv.weight)
                y = kernels.convolve(inputs, self.conv.weight, self.conv.bias, self._packed)
                return self.norm(y)  # type: ignore[no-any-return]
        if skip is not None:
            x = torch.cat(inputs, dim=1)
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Two convolutions whose result is added to their input, which is pooled and projected to fit.

    Conv block, convolution and norm; the input, averaged over the stride and brought to the number
    of channels by a convolution of 1 and a norm, is added; leaky ReLU. The last norm begins at 0,
    so that at first the block only hands its input on.

    Source: He et al. 2019, arXiv:1812.01187, ResNet-D; nnU-Net v2's residual encoder.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Sequence[int], stride: Sequence[int]
    ) -> None:
        super().__init__()
        self.conv1 = ConvBlock(in_channels, out_channels, kernel, stride)
        self.conv2 = ConvBlock(out_channels, out_channels, kernel, activated=False)
        self.stride = tuple(stride)
        self.project: ConvBlock | None = None
        if in_channels != out_channels:
            self.project = ConvBlock(
                in_channels, out_channels, (1,) * len(self.stride), activated=False, bias=False
            )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        skip = x
        if max(self.stride) > 1:
            pool = functional.avg_pool2d if len(self.stride) == 2 else functional.avg_pool3d
            skip = pool(skip, self.stride, self.stride)
        if self.project is not None:
            skip = self.project(skip)
        return functional.leaky_relu(self.conv2(self.conv1(x)) + skip, NEGATIVE_SLOPE, inplace=True)


def use_kernels(network: nn.Module, wanted: bool, *, constant: bool = False) -> None:
    """Let the layers of a network run on our own kernels where they can, or never.

    Args:
        network: Of conv blocks and instance norms.
        wanted: Whether to.
        constant: Promise that weights and precision never change again, so that what the kernels
            make of the weights is made once. It takes about the memory of the weights once more,
            in fp32 twice.
    """
    for module in network.modules():
        if isinstance(module, ConvBlock | InstanceNorm):
            module.own_kernels = wanted
        if isinstance(module, ConvBlock):
            module.constant, module._packed = constant, None


def initialize(module: nn.Module) -> None:
    """Draw He-normal weights for leaky ReLU and zero biases; to be used with `Module.apply`."""
    kinds = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    if isinstance(module, kinds):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, ResidualBlock):
        nn.init.zeros_(module.conv2.norm.weight)
