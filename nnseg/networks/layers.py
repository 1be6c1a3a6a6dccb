"""The layers that several networks share: convolution, norm, activation and dropout.

Each works in two and in three dimensions; the edges of its kernel, or `dimensions`, say in which.
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from nnseg.model.architecture import Architecture
from nnseg.model.blocks import CONVOLUTION, NEGATIVE_SLOPE, InstanceNorm
from nnseg.registry import Registry

# In place: what comes before keeps its own input for the backward pass, never its result.
RELU: Callable[[], nn.Module] = partial(nn.ReLU, inplace=True)
LEAKY_RELU: Callable[[], nn.Module] = partial(nn.LeakyReLU, NEGATIVE_SLOPE, inplace=True)

BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}
POOLING = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


def _instance_norm(channels: int, dimensions: int) -> nn.Module:
    return InstanceNorm(channels)


def _batch_norm(channels: int, dimensions: int) -> nn.Module:
    return BATCH_NORM[dimensions](channels)


NORMS = Registry[Callable[[int, int], nn.Module]](
    "norm", instance=_instance_norm, batch=_batch_norm
)


def make_norm(norm: str, channels: int, dimensions: int) -> nn.Module:
    """Build a norm with a scale and a shift for each channel, and no activation.

    Args:
        norm: "instance" or "batch".
        channels: Of the maps that it gets and gives.
        dimensions: 2 or 3.

    Raises:
        PlanError: No norm has that name.
    """
    return NORMS[norm](channels, dimensions)


def make_dropout(p: float, dimensions: int) -> nn.Module:
    """Build a dropout of whole channels with probability `p`; at 0 a layer that does nothing."""
    return DROPOUT[dimensions](p) if p > 0 else nn.Identity()


class ConvNormAct(nn.Sequential):
    """Convolution, norm, activation and, if asked for, dropout of whole channels.

    The stride shrinks; the kernel keeps the size. Its members are `conv`, `norm`, `activation` and
    `dropout`, of which those that are not asked for are absent.

    Args:
        inputs: Channels of what it gets.
        width: Channels of what it gives.
        kernel: Odd edges, one for each of 2 or 3 axes.
        stride: One for each axis; None is 1 throughout.
        norm: A name of NORMS; None for none.
        activation: Builds the activation; None for none.
        dropout: Probability with which a channel is dropped in training.
        bias: Whether the convolution adds one.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        kernel: Sequence[int],
        stride: Sequence[int] | None = None,
        *,
        norm: str | None,
        activation: Callable[[], nn.Module] | None = RELU,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        dimensions = len(kernel)
        self.conv = make_convolution(inputs, width, kernel, stride, bias=bias)
        if norm is not None:
            self.norm = make_norm(norm, width, dimensions)
        if activation is not None:
            self.activation = activation()
        if dropout > 0:
            self.dropout = make_dropout(dropout, dimensions)


def make_convolution(
    inputs: int,
    width: int,
    kernel: Sequence[int],
    stride: Sequence[int] | None = None,
    *,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = True,
) -> nn.Module:
    """Build a convolution along as many axes as the kernel has edges, padded to keep the size.

    Args:
        inputs: Channels of what it gets.
        width: Channels of what it gives.
        kernel: Odd edges, one for each of 2 or 3 axes.
        stride: One for each axis; None is 1 throughout.
        dilation: Voxels from one weight of the kernel to the next.
        groups: Parts of the channels that do not see each other.
        bias: Whether it adds one.
    """
    return CONVOLUTION[len(kernel)](
        inputs,
        width,
        tuple(kernel),  # type: ignore[arg-type]  # its length is the dimension
        stride=tuple(stride or (1,) * len(kernel)),  # type: ignore[arg-type]
        padding=tuple(dilation * (edge // 2) for edge in kernel),  # type: ignore[arg-type]
        dilation=dilation,
        groups=groups,
        bias=bias,
    )


def make_pooling(stride: Sequence[int]) -> nn.Module:
    """Build a max pooling by a factor for each of 2 or 3 axes; nothing where all are 1."""
    if max(stride) == 1:
        return nn.Identity()
    return POOLING[len(stride)](tuple(stride), tuple(stride))


def per_axis(
    architecture: Architecture,
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Give kernels and strides of each level, along the axes that the network convolves.

    They are (y, x) for a 2D network and (z, y, x) for a 3D one.
    """
    first = 3 - architecture.dimensions
    kernels = [tuple(kernel[first:]) for kernel in architecture.kernel_sizes]
    return kernels, [tuple(stride[first:]) for stride in architecture.strides]
