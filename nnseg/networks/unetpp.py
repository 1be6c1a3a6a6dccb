"""UNet++: U-Nets of every depth in one, their skips filled with convolutions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnseg.model.architecture import Architecture
from nnseg.model.blocks import CONVOLUTION, initialize
from nnseg.networks.layers import ConvNormAct, make_pooling, per_axis
from nnseg.networks.upsampling import make_upsampling

NORM = "instance"


class UNetPlusPlus(nn.Module):
    """UNet++: an encoder, and at each level a row of nodes that lead from it to the decoder.

    `nodes[level][0]` is the encoder's, which pools by maximum. Each node to the right of it takes
    all nodes to its left in its row, and the one below its left neighbour, made finer by a
    transposed convolution. A node has `encoder_blocks` convolutions in the first column and
    `decoder_blocks` in the others, each with a norm and a ReLU. In row 0 the U-Nets of all depths
    end: every node of it but the first has a head, all at full resolution.

    The main output is the mean of the heads: it is the accurate mode of the first paper, and costs
    nothing, as the deepest U-Net needs all nodes. The others are the heads one by one, from the
    deepest U-Net to that of two levels; the papers train on these, all alike.

    Departures from the papers: heads are averaged as logits, not as probabilities, so that labels
    and regions are treated alike; a norm before each ReLU, as the papers name none and their 2D
    code has none, but trains with another optimizer; their code's dropout of 0.5 behind each
    convolution only where one is chosen, and then of whole maps; kernels, strides and the number of
    levels, 5 in the papers, are the plan's.

    Source: Zhou et al. 2018, arXiv:1807.10165; Zhou et al. 2019, arXiv:1912.05074.

    Args:
        architecture: Its record.
        channels: Of the image.
        heads: Output channels.
    """

    def __init__(self, architecture: Architecture, channels: int, heads: int) -> None:
        super().__init__()
        dimensions, features = architecture.dimensions, architecture.features
        options = architecture.options
        norm, dropout = options.norm or NORM, options.dropout or 0.0
        kind = options.upsampling or "transposed"
        kernels, strides = per_axis(architecture)
        self.is_2d = dimensions == 2
        self.pool = nn.ModuleList([make_pooling(stride) for stride in strides])
        self.nodes, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(features):
            row, rises = nn.ModuleList(), nn.ModuleList()
            for column in range(architecture.levels - level):
                inputs, count = channels, architecture.encoder_blocks[level]
                if column > 0:
                    inputs, count = (column + 1) * width, architecture.decoder_blocks[level]
                    below, stride = features[level + 1], strides[level + 1]
                    rises.append(make_upsampling(kind, below, width, stride, dimensions))
                node = (inputs, width, count, kernels[level])
                row.append(make_node(*node, norm=norm, dropout=dropout))
            self.nodes.append(row)
            self.up.append(rises)
            channels = width
        self.heads = nn.ModuleList()
        for _ in range(max(architecture.levels - 1, 1)):
            self.heads.append(CONVOLUTION[dimensions](features[0], heads, 1))
        self.apply(initialize)

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        """Give the mean of all heads' logits, and then those of the heads, the deepest first.

        Args:
            image: (batch, channel, z, y, x); z is 1 for a 2D network.
            outputs: How many of them, at most 1 more than there are heads; a single head is its
                own mean and comes once.

        Returns:
            Tensors (batch, head, z, y, x).
        """
        x = image.squeeze(2) if self.is_2d else image
        rows: list[list[Tensor]] = []
        for pool, row in zip(self.pool, self.nodes, strict=True):
            x = row[0](pool(x))  # type: ignore[index]  # it is a ModuleList
            rows.append([x])
        for column in range(1, len(rows)):
            for level in range(len(rows) - column):
                finer = self.up[level][column - 1](rows[level + 1][column - 1])  # type: ignore[index]
                joined = torch.cat((*rows[level], finer), dim=1)
                rows[level].append(self.nodes[level][column](joined))  # type: ignore[index]
        ends = rows[0][1:] or rows[0]  # a network of one level is its first node
        logits = [head(end) for head, end in zip(self.heads, ends, strict=True)][::-1]
        if len(logits) > 1:
            logits.insert(0, sum(logits[1:], logits[0]) / len(logits))
        if self.is_2d:
            logits = [output.unsqueeze(2) for output in logits]
        return logits[:outputs]


def make_node(
    inputs: int, width: int, count: int, kernel: Sequence[int], *, norm: str, dropout: float
) -> nn.Sequential:
    """Build `count` convolutions, the first from `inputs` to `width` channels.

    Args:
        inputs: Channels of what it gets.
        width: Channels of each result.
        count: How many.
        kernel: Odd edges, one for each of 2 or 3 axes.
        norm: A kind that `make_norm` takes.
        dropout: Probability with which a channel is dropped behind each of them in training.
    """
    node = nn.Sequential()
    for _ in range(count):
        node.append(ConvNormAct(inputs, width, kernel, norm=norm, dropout=dropout))
        inputs = width
    return node
