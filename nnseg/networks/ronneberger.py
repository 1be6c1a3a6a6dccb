"""The U-Nets with max pooling: Ronneberger's in two dimensions, Cicek's in three."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnseg.model.architecture import Architecture
from nnseg.model.blocks import CONVOLUTION, initialize
from nnseg.networks.layers import ConvNormAct, make_dropout, make_pooling, per_axis
from nnseg.networks.upsampling import make_upsampling


class PooledUNet(nn.Module):
    """A U-Net whose encoder pools by maximum and whose decoder joins the skips to what came up.

    `make_unet` and `make_unet3d` say what its widths are. The kernels and the poolings are those
    of the plan; all convolutions are padded and followed by a ReLU, and weights are He-normal.

    Args:
        architecture: Its record; `features` are the channels that a level hands on.
        channels: Of the image.
        heads: Output channels.
        first_widths: Channels of the first convolution of each level of the encoder.
        up_widths: Channels of what comes up to each level but the deepest.
        norm: Before each ReLU: a name of NORMS, or None for none.
    """

    def __init__(
        self,
        architecture: Architecture,
        channels: int,
        heads: int,
        *,
        first_widths: Sequence[int],
        up_widths: Sequence[int],
        norm: str | None,
    ) -> None:
        super().__init__()
        dimensions, options = architecture.dimensions, architecture.options
        self.is_2d = dimensions == 2
        kernels, strides = per_axis(architecture)
        self.encoder = nn.ModuleList()
        for level, width in enumerate(architecture.features):
            count = architecture.encoder_blocks[level]
            widths = [channels, first_widths[level], *[width] * (count - 1)]
            widths[-1] = width
            self.encoder.append(_convolutions(widths, kernels[level], norm))
            channels = width
        self.pool = nn.ModuleList([make_pooling(stride) for stride in strides[1:]])
        self.dropout = make_dropout(options.dropout or 0.0, dimensions)
        self.up, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(architecture.levels - 1)):
            width, up_width = architecture.features[level], up_widths[level]
            kind = options.upsampling or "transposed"
            stride = strides[level + 1]
            self.up.append(make_upsampling(kind, channels, up_width, stride, dimensions))
            widths = [width + up_width] + [width] * architecture.decoder_blocks[level]
            self.decoder.append(_convolutions(widths, kernels[level], norm))
            channels = width
        self.heads = nn.ModuleList([CONVOLUTION[dimensions](channels, heads, 1)])
        self.apply(initialize)

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        """Give the logits (batch, head, z, y, x) of images (batch, channel, z, y, x), as one."""
        x = self.encoder[0](image.squeeze(2) if self.is_2d else image)
        skips = []
        for pool, encode in zip(self.pool, self.encoder[1:], strict=True):
            skips.append(x)
            x = encode(pool(x))
        x = self.dropout(x)
        for up, decode in zip(self.up, self.decoder, strict=True):
            x = decode(torch.cat((skips.pop(), up(x)), dim=1))
        logits = self.heads[0](x)
        return [logits.unsqueeze(2) if self.is_2d else logits]


def _convolutions(widths: Sequence[int], kernel: Sequence[int], norm: str | None) -> nn.Sequential:
    """Convolve from each width to the next."""
    pairs = itertools.pairwise(widths)
    blocks = [ConvNormAct(before, after, kernel, norm=norm) for before, after in pairs]
    return nn.Sequential(*blocks)


def make_unet(architecture: Architecture, channels: int, heads: int) -> nn.Module:
    """Build the first U-Net: convolutions and ReLU, and transposed convolutions that halve.

    There are `encoder_blocks` and `decoder_blocks` convolutions at each level, two in the paper.
    What comes up to a level has as many channels as its skip.

    Departures from the paper: convolutions are padded, so that the logits are as large as the
    image and no skip is cropped; kernels and poolings are the plan's; a norm before each ReLU if
    one is chosen; dropout at the end of the contracting path, of which the paper names no
    probability, only where one is chosen, and there of whole maps.

    Source: Ronneberger et al. 2015, arXiv:1505.04597.

    Args:
        architecture: Its record.
        channels: Of the image.
        heads: Output channels.
    """
    features = architecture.features
    return PooledUNet(
        architecture,
        channels,
        heads,
        first_widths=features,
        up_widths=features[:-1],
        norm=architecture.options.norm,
    )


def make_unet3d(architecture: Architecture, channels: int, heads: int) -> nn.Module:
    """Build the U-Net in 3D that widens before it pools: no level begins with fewer maps than come.

    There are `encoder_blocks` and `decoder_blocks` convolutions at each level, two in the paper;
    the first of an encoder level has half of its channels. What comes up to a level keeps its
    channels. Batch norm before each ReLU. The paper's count of 19,069,955 parameters for 3 channels
    and 3 labels leaves out the norms and the biases of the transposed convolutions.

    Departures from the paper: convolutions are padded, so that the logits are as large as the
    image; kernels and poolings are the plan's; dropout at the end of the analysis path if one is
    chosen; the loss is the plan's.

    Source: Cicek et al. 2016, arXiv:1606.06650.

    Args:
        architecture: Its record.
        channels: Of the image.
        heads: Output channels.
    """
    features = architecture.features
    return PooledUNet(
        architecture,
        channels,
        heads,
        first_widths=[max(width // 2, 1) for width in features],
        up_widths=features[1:],
        norm=architecture.options.norm or "batch",
    )
