"""UNet 3+: every node of the decoder sees the maps of all scales."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnseg.model.architecture import Architecture
from nnseg.model.blocks import initialize
from nnseg.networks.layers import ConvNormAct, make_convolution, make_pooling, per_axis
from nnseg.networks.unetpp import make_node
from nnseg.networks.upsampling import Interpolate, make_upsampling

NORM = "batch"


class UNet3Plus(nn.Module):
    """UNet 3+: a U-Net whose decoder nodes take as many channels from each scale.

    The encoder has `encoder_blocks` convolutions a level and pools by maximum. The node of a level
    takes the encoder's maps of all levels above it, pooled, and of its own, the decoder's of all
    levels below, interpolated linearly, and the encoder's deepest. Each is convolved to as many
    channels as level 0 has, and all of them side by side, 5 times as many in the paper, go through
    `decoder_blocks` convolutions. Norm and ReLU follow each.

    The outputs are a 3-wide convolution of each node and of the deepest map, interpolated to full
    resolution; the finest is the main one.

    Departures from the paper: there is no classification-guided module, which would need to know of
    a whole image, not of a patch, whether it shows an organ; kernels, strides and the number of
    levels, 5 in the paper, are the plan's; dropout behind each convolution if one is chosen. An
    upsampling that is chosen goes level by level, to as many channels as level 0 has at the first,
    and a convolution follows.

    Source: Huang et al. 2020, arXiv:2004.08790.

    Args:
        architecture: Its record.
        channels: Of the image.
        heads: Output channels.
    """

    def __init__(self, architecture: Architecture, channels: int, heads: int) -> None:
        super().__init__()
        features, options = architecture.features, architecture.options
        norm, dropout = options.norm or NORM, options.dropout or 0.0
        kernels, strides = per_axis(architecture)
        levels, width = architecture.levels, features[0]
        fused = levels * width
        sources = [*[fused] * (levels - 1), features[-1]]  # channels that a node gets from below
        self.is_2d = architecture.dimensions == 2
        self.pool = nn.ModuleList([make_pooling(stride) for stride in strides[1:]])
        self.encoder, self.branches, self.fuse = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.heads, self.enlarge = nn.ModuleList(), nn.ModuleList()
        for level, kernel in enumerate(kernels):
            node = (channels, features[level], architecture.encoder_blocks[level], kernel)
            self.encoder.append(make_node(*node, norm=norm, dropout=dropout))
            channels = features[level]
            self.heads.append(make_convolution(sources[level], heads, kernel))
            self.enlarge.append(Interpolate(*strides[: level + 1]))
            if level == levels - 1:
                break
            branches = nn.ModuleList()
            for source in range(levels):
                branch, inputs = nn.Sequential(), features[source]
                if source > level:
                    steps = strides[level + 1 : source + 1]
                    branch, inputs = _rise(options.upsampling, sources[source], width, steps)
                branch.append(ConvNormAct(inputs, width, kernel, norm=norm, dropout=dropout))
                branches.append(branch)
            self.branches.append(branches)
            node = (fused, fused, architecture.decoder_blocks[level], kernel)
            self.fuse.append(make_node(*node, norm=norm, dropout=dropout))
        self.apply(initialize)

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        """Give the logits of the `outputs` finest nodes, all at full resolution.

        Args:
            image: (batch, channel, z, y, x); z is 1 for a 2D network.
            outputs: How many of as many as there are levels; the last is the encoder's deepest map.

        Returns:
            Tensors (batch, head, z, y, x).
        """
        x = image.squeeze(2) if self.is_2d else image
        scales = [[self.encoder[0](x)]]  # a level's map comes last, behind those above it, pooled
        for pool, encode in zip(self.pool, self.encoder[1:], strict=True):
            pooled = [pool(each) for each in scales[-1]]
            scales.append([*pooled, encode(pooled[-1])])
        below = [scales.pop()[-1]]
        for branches, fuse in zip(reversed(self.branches), reversed(self.fuse), strict=True):
            sources = [*scales.pop(), *below]
            pairs = zip(branches, sources, strict=True)  # type: ignore[call-overload]
            parts = [branch(source) for branch, source in pairs]
            below.insert(0, fuse(torch.cat(parts, dim=1)))
        ends = list(zip(self.heads, self.enlarge, below, strict=True))[:outputs]
        logits = [enlarge(head(x)) for head, enlarge, x in ends]
        if self.is_2d:
            logits = [output.unsqueeze(2) for output in logits]
        return logits


def _rise(
    kind: str | None, inputs: int, width: int, strides: Sequence[tuple[int, ...]]
) -> tuple[nn.Sequential, int]:
    """Make maps finer by several strides, at once if None is chosen; tell their channels then."""
    if kind is None:
        return nn.Sequential(Interpolate(*strides)), inputs
    steps = nn.Sequential()
    for stride in reversed(strides):
        steps.append(make_upsampling(kind, inputs, width, stride, len(stride)))
        inputs = width
    return steps, width
