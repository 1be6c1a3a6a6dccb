"""How a decoder goes to a finer resolution: three ways, chosen by name."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnseg.model.blocks import NEGATIVE_SLOPE, TRANSPOSED, convolve3d
from nnseg.networks.layers import make_convolution
from nnseg.registry import Registry

INTERPOLATION = {2: "bilinear", 3: "trilinear"}


class Interpolate(nn.Module):
    """Linear interpolation by the product of strides along each of 2 or 3 axes, voxels centred."""

    def __init__(self, *strides: Sequence[int]) -> None:
        super().__init__()
        self.scale = tuple(float(math.prod(steps)) for steps in zip(*strides, strict=True))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if max(self.scale) == 1:
            return x
        mode = INTERPOLATION[len(self.scale)]
        return functional.interpolate(x, scale_factor=self.scale, mode=mode, align_corners=False)

    def extra_repr(self) -> str:  # noqa: D102
        return f"scale={self.scale}"


class ShuffledConvolution(nn.Module):
    """A convolution to one channel for each finer voxel, and these channels put into their places.

    At first the kernels of all finer voxels of a channel are alike, so that what comes out is a
    coarse map with each voxel repeated: no checkerboard. It holds its weights itself, and no
    convolution inside, so that an initialisation that goes through a network's convolutions
    leaves it so.

    Source: Shi et al. 2016, arXiv:1609.05158; initialisation, Aitken et al. 2017, arXiv:1707.02937.

    Args:
        inputs: Channels of what it gets.
        width: Channels of what it gives.
        stride: Factor along each of 2 or 3 axes; its kernel is 3 wide where that is not 1.
    """

    def __init__(self, inputs: int, width: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        kernel = _kernel(stride)
        self.padding = tuple(edge // 2 for edge in kernel)
        coarse = torch.empty(width, inputs, *kernel)
        nn.init.kaiming_normal_(coarse, a=NEGATIVE_SLOPE)
        finer = math.prod(stride)
        self.weight = nn.Parameter(coarse.repeat_interleave(finer, dim=0))
        self.bias = nn.Parameter(torch.zeros(width * finer))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        convolve = functional.conv2d if len(self.stride) == 2 else convolve3d
        ones = (1,) * len(self.stride)
        finer = convolve(x, self.weight, self.bias, ones, self.padding, ones, 1)
        return shuffle(finer, self.stride)

    def extra_repr(self) -> str:  # noqa: D102
        width, inputs = self.weight.shape[0] // math.prod(self.stride), self.weight.shape[1]
        return f"{inputs}, {width}, stride={self.stride}"


def shuffle(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Turn groups of channels into finer voxels, as torch's pixel_shuffle does in 2D.

    Args:
        x: (batch, channel * product of stride, *spatial); the last axis of the stride varies
            fastest within a channel's group.
        stride: Factor along each spatial axis.

    Returns:
        (batch, channel, *(spatial * stride)).
    """
    batch, channels, *shape = x.shape
    axes = len(shape)
    width = channels // math.prod(stride)
    split = x.reshape(batch, width, *stride, *shape)
    order = [number for axis in range(axes) for number in (2 + axes + axis, 2 + axis)]
    finer = [size * step for size, step in zip(shape, stride, strict=True)]
    return split.permute(0, 1, *order).reshape(batch, width, *finer)


def _kernel(stride: Sequence[int]) -> tuple[int, ...]:
    return tuple(3 if step > 1 else 1 for step in stride)


def _transposed(inputs: int, width: int, stride: tuple[int, ...]) -> nn.Module:
    return TRANSPOSED[len(stride)](inputs, width, stride, stride)  # type: ignore[arg-type]


def _interpolated(inputs: int, width: int, stride: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(Interpolate(stride), make_convolution(inputs, width, _kernel(stride)))


UPSAMPLINGS = Registry[Callable[[int, int, tuple[int, ...]], nn.Module]](
    "upsampling",
    transposed=_transposed,
    interpolated=_interpolated,
    shuffled=ShuffledConvolution,
)


def make_upsampling(
    kind: str, inputs: int, width: int, stride: Sequence[int], dimensions: int
) -> nn.Module:
    """Build what makes maps finer by `stride` and gives them another number of channels.

    "transposed" is a transposed convolution whose kernel is its stride; "interpolated" is linear
    interpolation and a convolution; "shuffled" is a convolution and a pixel shuffle. These two
    convolutions are 3 wide along the axes that become finer, 1 along the others. All have a bias;
    neither a norm nor an activation follows.

    Args:
        kind: A name of UPSAMPLINGS.
        inputs: Channels of what it gets.
        width: Channels of what it gives.
        stride: The factor of each axis.
        dimensions: 2 or 3, as many as the stride has entries.

    Raises:
        PlanError: No way has that name.
    """
    assert len(stride) == dimensions
    return UPSAMPLINGS[kind](inputs, width, tuple(stride))
