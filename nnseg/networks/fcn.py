"""A fully convolutional network: an encoder, and one step back to full resolution."""

import math

from torch import Tensor, nn

from nnseg.model.architecture import Architecture
from nnseg.model.blocks import CONVOLUTION, initialize
from nnseg.networks.layers import ConvNormAct, make_pooling, per_axis
from nnseg.networks.upsampling import Interpolate, make_upsampling

NORM = "instance"


class FCN(nn.Module):
    """Convolutions and max pooling, logits at the coarsest level, made finer in one step.

    The simplest of the networks: nothing leads around the poolings, so that borders are as coarse
    as the deepest level. There are `encoder_blocks` convolutions at each level and two poolings in
    a network of three levels; `decoder_blocks` means nothing here. The step back is linear
    interpolation of the logits; a chosen upsampling makes as many maps as level 0 has instead, and
    the logits of them.

    Departures from the paper: it begins with drawn weights (the paper's, with a VGG net of images),
    so that norms are needed, of the instance as batches in 3D are small; three levels instead of
    six, and no dropout unless it is chosen, then behind each convolution of the deepest level, as
    the paper's classifiers have it; convolutions are padded, kernels and poolings are the plan's.

    Source: Long et al. 2015, arXiv:1411.4038 (its FCN-32s).

    Args:
        architecture: Its record.
        channels: Of the image.
        heads: Output channels.
    """

    def __init__(self, architecture: Architecture, channels: int, heads: int) -> None:
        super().__init__()
        dimensions, options = architecture.dimensions, architecture.options
        self.is_2d = dimensions == 2
        kernels, strides = per_axis(architecture)
        norm, inputs = options.norm or NORM, channels
        self.encoder = nn.Sequential()
        for level, width in enumerate(architecture.features):
            self.encoder.append(make_pooling(strides[level]))
            dropout = options.dropout or 0.0 if level == architecture.levels - 1 else 0.0
            for _ in range(architecture.encoder_blocks[level]):
                block = ConvNormAct(inputs, width, kernels[level], norm=norm, dropout=dropout)
                self.encoder.append(block)
                inputs = width
        factor = tuple(math.prod(steps) for steps in zip(*strides, strict=True))
        kind, width = options.upsampling, architecture.features[0]
        self.up: nn.Module = nn.Identity()
        self.enlarge: nn.Module = nn.Identity()
        if kind is None:
            self.enlarge = Interpolate(factor)
        else:
            self.up = make_upsampling(kind, inputs, width, factor, dimensions)
            inputs = width
        self.heads = nn.ModuleList([CONVOLUTION[dimensions](inputs, heads, 1)])
        self.apply(initialize)

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        """Give the logits (batch, head, z, y, x) of images (batch, channel, z, y, x), as one."""
        x = self.encoder(image.squeeze(2) if self.is_2d else image)
        logits = self.enlarge(self.heads[0](self.up(x)))
        return [logits.unsqueeze(2) if self.is_2d else logits]
