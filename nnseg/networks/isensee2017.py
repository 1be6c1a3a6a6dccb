"""The improved 3D U-Net of BraTS 2017: residual contexts, and segmentations summed upwards."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnseg.model.architecture import Architecture
from nnseg.model.blocks import CONVOLUTION, initialize
from nnseg.networks.layers import (
    LEAKY_RELU,
    ConvNormAct,
    make_convolution,
    make_dropout,
    make_norm,
    per_axis,
)
from nnseg.networks.upsampling import make_upsampling

NORM = "instance"
DROPOUT = 0.3
SEGMENTED = 3  # levels, from level 0 on, that have a segmentation layer


class Context(nn.Sequential):
    """Two convolutions, each after a norm and a leaky ReLU, with dropout between, added to x."""

    def __init__(self, width: int, kernel: Sequence[int], norm: str, dropout: float) -> None:
        dimensions = len(kernel)
        super().__init__(
            make_norm(norm, width, dimensions),
            LEAKY_RELU(),
            make_convolution(width, width, kernel),
            make_dropout(dropout, dimensions),
            make_norm(norm, width, dimensions),
            LEAKY_RELU(),
            make_convolution(width, width, kernel),
        )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        context = x
        for layer in self:
            context = layer(context)
        return x + context


class Isensee2017(nn.Module):
    """Strided convolutions and residual contexts downwards, localisations upwards, one output.

    Downwards, each level has a convolution, which strides from level 1 on, and `encoder_blocks`
    context modules, one in the paper; a norm and a leaky ReLU end it. Upwards, each voxel is
    repeated and a convolution brings the channels to those of the level; the skip is joined, and
    the localisation module follows: `decoder_blocks` convolutions that keep the channels, one in
    the paper, and one of 1 that halves them, which level 0 goes without. Segmentation layers at
    levels 2, 1 and 0 are summed upwards, each repeated to the resolution of the next, to the one
    output: supervision of what is deep goes through the sum.

    Departures from the paper: kernels and strides are the plan's; 2D networks have the same
    channels; a chosen upsampling stands where the upsampling modules repeat and convolve. The paper
    does not say where norm and leaky ReLU come between a residual sum and what follows: here they
    come once, behind the last sum of a level, for the next level and the skip alike. Nor does it
    say what dropout drops: here whole maps.

    Source: Isensee et al. 2017, arXiv:1802.10508.

    Args:
        architecture: Its record.
        channels: Of the image.
        heads: Output channels.
    """

    def __init__(self, architecture: Architecture, channels: int, heads: int) -> None:
        super().__init__()
        dimensions, features = architecture.dimensions, architecture.features
        options = architecture.options
        self.is_2d = dimensions == 2
        kernels, strides = per_axis(architecture)
        norm = options.norm or NORM
        dropout = DROPOUT if options.dropout is None else options.dropout
        self.encoder = nn.ModuleList()
        for level, width in enumerate(features):
            contexts = [
                Context(width, kernels[level], norm, dropout)
                for _ in range(architecture.encoder_blocks[level])
            ]
            first = make_convolution(channels, width, kernels[level], strides[level])
            last = (make_norm(norm, width, dimensions), LEAKY_RELU())
            self.encoder.append(nn.Sequential(first, *contexts, *last))
            channels = width
        self.up, self.decoder, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.enlarge = nn.ModuleList()
        for level in reversed(range(architecture.levels - 1)):
            width, kernel, stride = features[level], kernels[level], strides[level + 1]
            self.up.append(_upsampling(options.upsampling, channels, width, kernel, stride, norm))
            count = architecture.decoder_blocks[level]
            self.decoder.append(_localisation(width, kernel, norm, count, halves=level > 0))
            channels = width if level > 0 else 2 * width
            if level < SEGMENTED:
                if self.heads:
                    self.enlarge.append(_repeat(stride))
                self.heads.append(CONVOLUTION[dimensions](channels, heads, 1))
        if not self.heads:
            self.heads.append(CONVOLUTION[dimensions](channels, heads, 1))
        self.apply(initialize)

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        """Give the logits (batch, head, z, y, x) of images (batch, channel, z, y, x), as one."""
        x = image.squeeze(2) if self.is_2d else image
        skips = []
        for encode in self.encoder:
            x = encode(x)
            skips.append(x)
        skips.pop()
        maps = [] if self.decoder else [x]
        for up, decode in zip(self.up, self.decoder, strict=True):
            x = decode(torch.cat((skips.pop(), up(x)), dim=1))
            maps.append(x)
        maps = maps[-len(self.heads) :]
        logits = self.heads[0](maps[0])
        for enlarge, head, x in zip(self.enlarge, self.heads[1:], maps[1:], strict=True):
            logits = enlarge(logits) + head(x)
        return [logits.unsqueeze(2) if self.is_2d else logits]


def _repeat(stride: Sequence[int]) -> nn.Module:
    """Repeat each voxel by the stride."""
    if max(stride) == 1:
        return nn.Identity()
    return nn.Upsample(scale_factor=tuple(float(step) for step in stride), mode="nearest")


def _upsampling(
    kind: str | None,
    inputs: int,
    width: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    norm: str,
) -> nn.Module:
    """Build the way up to a level: its resolution, its channels, norm and leaky ReLU."""
    if kind is None:
        convolution = ConvNormAct(inputs, width, kernel, norm=norm, activation=LEAKY_RELU)
        return nn.Sequential(_repeat(stride), convolution)
    dimensions = len(kernel)
    up = make_upsampling(kind, inputs, width, stride, dimensions)
    return nn.Sequential(up, make_norm(norm, width, dimensions), LEAKY_RELU())


def _localisation(
    width: int, kernel: Sequence[int], norm: str, count: int, *, halves: bool
) -> nn.Module:
    """Build the convolutions of a level of the decoder, from twice its channels."""
    wide = 2 * width
    blocks = [
        ConvNormAct(wide, wide, kernel, norm=norm, activation=LEAKY_RELU) for _ in range(count)
    ]
    if halves:
        point = (1,) * len(kernel)
        blocks.append(ConvNormAct(wide, width, point, norm=norm, activation=LEAKY_RELU))
    return nn.Sequential(*blocks)
