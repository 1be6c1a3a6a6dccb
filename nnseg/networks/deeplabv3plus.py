"""DeepLabv3+: a dilated residual network, a pyramid of dilated convolutions, a small decoder."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnseg.model.architecture import Architecture
from nnseg.model.blocks import CONVOLUTION, initialize
from nnseg.model.counts.deeplab import (
    DILATED_BLOCKS,
    DILATION,
    INNER,
    LOW,
    LOW_WIDTH,
    PYRAMID_WIDTH,
    pyramid_rates,
    stage_widths,
)
from nnseg.networks.layers import (
    POOLING,
    RELU,
    ConvNormAct,
    make_convolution,
    make_dropout,
    make_norm,
    per_axis,
)
from nnseg.networks.upsampling import Interpolate, make_upsampling

NORM = "batch"


class DeepLabV3Plus(nn.Module):
    """DeepLabv3+: it stops halving at the fifth level and sees far by dilated convolutions instead.

    The encoder is a residual network of bottlenecks, in 2D with the widths and blocks of
    ResNet-50. A stem of `encoder_blocks` convolutions of `features` channels for levels 0 and 1,
    the first of which strides, so that nothing is convolved at full resolution; a max pooling to
    level 2; a stage of `encoder_blocks` bottlenecks at each level from there; and at the deepest
    one a last stage that is dilated by 2 where it would halve once more. A pyramid of a 1-wide
    convolution, three dilated ones at rising rates and the mean of the whole map then goes up to
    level 2, meets the first stage's maps, reduced to 48 channels, and passes `decoder_blocks`
    separable convolutions of 256 channels. The logits are interpolated linearly from level 2.

    Departures from the paper: ResNet-50 from drawn weights, not Xception-65 or ResNet-101 from
    those of ImageNet; three 3-wide convolutions as the stem; half the widths in 3D, where a 3-wide
    kernel has three times the weights; the mean of the map has a bias and no norm, as a norm of one
    voxel is 0; the paper's rates where its output stride of 16 is met in 2D, and smaller ones where
    maps are smaller; kernels, strides and the number of levels are the plan's; dropout behind the
    pyramid and the decoder's convolutions if one is chosen. An upsampling that is chosen leads from
    the pyramid to level 2, level by level; the paper's is linear interpolation.

    Source: Chen et al. 2018, arXiv:1802.02611; the stem and the zeros with which the last norms of
    the bottlenecks begin, He et al. 2019, arXiv:1812.01187.

    Args:
        architecture: Its record, of at least 3 levels.
        channels: Of the image.
        heads: Output channels.
    """

    def __init__(self, architecture: Architecture, channels: int, heads: int) -> None:
        super().__init__()
        dimensions, options = architecture.dimensions, architecture.options
        norm, dropout = options.norm or NORM, options.dropout or 0.0
        kernels, strides = per_axis(architecture)
        widths, one = stage_widths(architecture), (1,) * dimensions
        self.is_2d = dimensions == 2
        self.stem = _stem(architecture, channels, norm)
        self.stages = _stages(architecture, norm)
        rates = pyramid_rates(architecture)
        self.pyramid = Pyramid(widths[-1], kernels[-1], rates, norm=norm, dropout=dropout)
        self.up = _rise(options.upsampling, strides[LOW:])
        self.reduce = ConvNormAct(widths[0], LOW_WIDTH, one, norm=norm, bias=False)
        self.decoder, inputs = nn.Sequential(), PYRAMID_WIDTH + LOW_WIDTH
        for _ in range(architecture.decoder_blocks[0]):
            parts = (inputs, PYRAMID_WIDTH, kernels[LOW])
            self.decoder.append(SeparableConvolution(*parts, norm=norm))
            self.decoder.append(make_dropout(dropout, dimensions))
            inputs = PYRAMID_WIDTH
        self.heads = nn.ModuleList([CONVOLUTION[dimensions](inputs, heads, 1)])
        self.enlarge = Interpolate(*strides[: LOW + 1])
        self.apply(initialize)
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.expand.norm.weight)  # type: ignore[arg-type]

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        """Give the logits (batch, head, z, y, x) of images (batch, channel, z, y, x), as one."""
        x = self.stem(image.squeeze(2) if self.is_2d else image)
        x = low = self.stages[0](x)
        for stage in self.stages[1:]:
            x = stage(x)
        x = torch.cat((self.up(self.pyramid(x)), self.reduce(low)), dim=1)
        logits = self.enlarge(self.heads[0](self.decoder(x)))
        return [logits.unsqueeze(2) if self.is_2d else logits]


class Bottleneck(nn.Module):
    """Convolutions of 1, 3 and 1, the middle one of a quarter of the channels; the input is added.

    Each has a norm, and a ReLU follows but for the last, where it follows the sum. Where channels
    or resolution change, the input passes a 1-wide convolution and a norm.

    Source: He et al. 2016, arXiv:1512.03385, with the stride in the middle.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        *,
        dilation: int,
        norm: str,
    ) -> None:
        super().__init__()
        one, inner = (1,) * len(kernel), max(width // INNER, 1)
        self.reduce = ConvNormAct(inputs, inner, one, norm=norm, bias=False)
        self.middle = nn.Sequential(
            make_convolution(inner, inner, kernel, stride, dilation=dilation, bias=False),
            make_norm(norm, inner, len(kernel)),
            RELU(),
        )
        self.expand = ConvNormAct(inner, width, one, norm=norm, activation=None, bias=False)
        self.project: nn.Module | None = None
        if inputs != width or max(stride) > 1:
            self.project = ConvNormAct(
                inputs, width, one, stride, norm=norm, activation=None, bias=False
            )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        skip = x if self.project is None else self.project(x)
        return functional.relu(self.expand(self.middle(self.reduce(x))) + skip, inplace=True)


class SeparableConvolution(nn.Sequential):
    """A convolution of each channel by itself, dilated, then one across channels, norm and ReLU.

    Source: Chen et al. 2018, arXiv:1802.02611, atrous separable convolution.
    """

    def __init__(
        self, inputs: int, width: int, kernel: Sequence[int], *, norm: str, dilation: int = 1
    ) -> None:
        super().__init__()
        self.depthwise = make_convolution(
            inputs, inputs, kernel, dilation=dilation, groups=inputs, bias=False
        )
        self.pointwise = ConvNormAct(inputs, width, (1,) * len(kernel), norm=norm, bias=False)


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: a map seen at several rates and as a whole, in 256 channels.

    Source: Chen et al. 2017, arXiv:1706.05587, its dilated convolutions separable.

    Args:
        inputs: Channels of the map.
        kernel: Of the dilated convolutions.
        rates: Their dilations.
        norm: A kind that `make_norm` takes.
        dropout: Probability with which a channel of the result is dropped in training.
    """

    def __init__(
        self, inputs: int, kernel: Sequence[int], rates: Sequence[int], *, norm: str, dropout: float
    ) -> None:
        super().__init__()
        one, width = (1,) * len(kernel), PYRAMID_WIDTH
        self.branches = nn.ModuleList([ConvNormAct(inputs, width, one, norm=norm, bias=False)])
        for rate in rates:
            self.branches.append(
                SeparableConvolution(inputs, width, kernel, norm=norm, dilation=rate)
            )
        self.whole = ConvNormAct(inputs, width, one, norm=None)
        inputs = (len(self.branches) + 1) * width
        self.project = ConvNormAct(inputs, width, one, norm=norm, dropout=dropout, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        axes = tuple(range(2, x.ndim))
        whole = self.whole(x.mean(dim=axes, keepdim=True)).expand(-1, -1, *x.shape[2:])
        parts = [branch(x) for branch in self.branches]
        return self.project(torch.cat((*parts, whole), dim=1))  # type: ignore[no-any-return]


def _stem(architecture: Architecture, channels: int, norm: str) -> nn.Sequential:
    """Convolve an image to level 1 and pool it to level 2."""
    kernels, strides = per_axis(architecture)
    stem, stride = nn.Sequential(), strides[1]
    for level in range(LOW):
        width = architecture.features[level]
        for _ in range(architecture.encoder_blocks[level]):
            stem.append(ConvNormAct(channels, width, kernels[1], stride, norm=norm, bias=False))
            channels, stride = width, (1,) * architecture.dimensions
    edges = tuple(3 if step > 1 else 1 for step in strides[LOW])
    padding = tuple(edge // 2 for edge in edges)
    stem.append(POOLING[architecture.dimensions](edges, strides[LOW], padding))
    return stem


def _stages(architecture: Architecture, norm: str) -> nn.ModuleList:
    """Build a stage at each level from level 2 on, and the dilated one."""
    kernels, strides = per_axis(architecture)
    widths, deepest = stage_widths(architecture), architecture.levels - 1
    inputs, one = architecture.features[LOW - 1], (1,) * architecture.dimensions
    stages = nn.ModuleList()
    for number, width in enumerate(widths):
        level = LOW + number
        if level > deepest:
            kernel, stride, count, dilation = kernels[deepest], one, DILATED_BLOCKS, DILATION
        else:
            kernel, count, dilation = kernels[level], architecture.encoder_blocks[level], 1
            stride = strides[level] if level > LOW else one  # the stem pools to level 2
        stage = nn.Sequential()
        for _ in range(count):
            stage.append(Bottleneck(inputs, width, kernel, stride, dilation=dilation, norm=norm))
            inputs, stride = width, one
        stages.append(stage)
    return stages


def _rise(kind: str | None, strides: Sequence[tuple[int, ...]]) -> nn.Sequential:
    """Make the pyramid's maps finer by all strides but the first, at once if None is chosen."""
    if kind is None:
        one = (1,) * len(strides[0])
        return nn.Sequential(Interpolate(one, *strides[1:]))
    width = PYRAMID_WIDTH
    steps = [make_upsampling(kind, width, width, each, len(each)) for each in strides[:0:-1]]
    return nn.Sequential(*steps)
