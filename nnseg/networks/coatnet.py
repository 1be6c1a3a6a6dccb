"""CoAtNet as an encoder: two stages of convolutions, then two of attention."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnseg.model.counts.coatnet import BLOCKS, CONVOLUTIONAL, EXPANSION, HEAD, HIDDEN, STEM, WIDTHS
from nnseg.networks.convnext import ChannelMlp, ChannelNorm
from nnseg.networks.inflation import (
    Backbone,
    Levels,
    SqueezeExcite,
    average_pool,
    batch_norm,
    convolution,
)

Positions: TypeAlias = tuple[Tensor, Tensor]
SQUEEZED = 4  # how many channels one of those that decide on the gates stands for


class CoAtNet(Backbone):
    """A stem of two convolutions, two stages of inverted bottlenecks, two of transformer blocks.

    Level 1 is the stem's map, level k the one of stage k - 2. At levels 4 and 5 each voxel attends
    to all others. How much the offset from one to the other counts is not a table of the paper's
    one image size, but the result of a small perceptron for the offset's logarithm along each axis;
    it has the same parameters at any patch size, and says something of offsets never seen. In 3D
    offsets have three axes; inflated, the perceptron takes no notice of the one along z, and as all
    planes of an image that is constant along z then count alike, it gives what the 2D network does.

    timm's dropout in that perceptron, and of paths, is left out.

    Args:
        levels: Along z, and how many.
        channels: Of the image.

    Source: Dai et al. 2021, arXiv:2106.04803; offsets by a perceptron: Liu et al. 2022,
    arXiv:2111.09883; widths and blocks of timm's coatnet_rmlp_nano_rw.
    """

    classifier = ("norm.", "head.")

    def __init__(self, levels: Levels, channels: int) -> None:
        super().__init__()
        self.stem = Stem(levels, channels)
        before = STEM[-1]
        self.stages = nn.ModuleList()
        for stage in range(min(len(WIDTHS), len(levels.steps) - 2)):
            kind = ConvStage if stage < CONVOLUTIONAL else AttentionStage
            self.stages.append(kind(levels, stage, before))
            before = WIDTHS[stage]
        self.apply(_initialize)

    def forward(self, image: Tensor) -> list[Tensor]:  # noqa: D102
        x = self.stem(image)
        maps = [x]
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def adapt(self, name: str, weight: Tensor) -> Tensor:
        """Turn a parameter as `Backbone.adapt` says; offsets along z get weights of 0."""
        missing = self.state_dict()[name].shape[-1] - weight.shape[-1] if weight.ndim == 2 else 0
        if missing:
            return functional.pad(weight, (missing, 0))  # offsets are (z, y, x)
        return super().adapt(name, weight)


class Stem(nn.Module):
    """Two convolutions of 3, the first of which halves the resolution."""

    def __init__(self, levels: Levels, channels: int) -> None:
        super().__init__()
        narrow, wide = STEM
        self.conv1 = convolution(levels, 1, channels, narrow, 3, halvings=1)
        self.norm1 = batch_norm(levels, narrow)
        self.conv2 = convolution(levels, 1, narrow, wide, 3)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.conv2(functional.silu(self.norm1(self.conv1(x))))  # type: ignore[no-any-return]


class ConvStage(nn.Module):
    """Inverted bottlenecks, the first of which halves the resolution."""

    def __init__(self, levels: Levels, stage: int, before: int) -> None:
        super().__init__()
        width = WIDTHS[stage]
        blocks = [
            InvertedBottleneck(
                levels, stage + 2, width if number else before, width, halvings=int(number == 0)
            )
            for number in range(BLOCKS[stage])
        ]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.blocks(x)  # type: ignore[no-any-return]


class InvertedBottleneck(nn.Module):
    """Norm, expansion, depthwise convolution of 3 which may stride, gates, compression.

    Its input is added; pooled where the block strides, and by a convolution of 1 where it widens.
    """

    def __init__(
        self, levels: Levels, level: int, before: int, width: int, *, halvings: int
    ) -> None:
        super().__init__()
        inner = EXPANSION * before
        self.shortcut = _shortcut(levels, level, before, width, halvings)
        self.pre_norm = batch_norm(levels, before)
        self.conv1_1x1 = convolution(levels, level - halvings, before, inner, 1)
        self.norm1 = batch_norm(levels, inner)
        self.conv2_kxk = convolution(
            levels, level, inner, inner, 3, halvings=halvings, groups=inner
        )
        self.norm2 = batch_norm(levels, inner)
        self.se = SqueezeExcite(levels, inner, inner // SQUEEZED, nn.SiLU)
        self.conv3_1x1 = convolution(levels, level, inner, width, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = functional.silu(self.norm1(self.conv1_1x1(self.pre_norm(x))))
        y = self.se(functional.silu(self.norm2(self.conv2_kxk(y))))
        return self.conv3_1x1(y) + self.shortcut(x)  # type: ignore[no-any-return]


class AttentionStage(nn.Module):
    """Transformer blocks, the first of which halves the resolution."""

    def __init__(self, levels: Levels, stage: int, before: int) -> None:
        super().__init__()
        level, width = stage + 2, WIDTHS[stage]
        self.stride = (levels.steps[level], 2, 2)[3 - levels.dimensions :]
        self.blocks = nn.ModuleList(
            TransformerBlock(
                levels, level, width if number else before, width, halvings=int(number == 0)
            )
            for number in range(BLOCKS[stage])
        )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        shape = [size // step for size, step in zip(x.shape[2:], self.stride, strict=True)]
        positions = relative_positions(shape, x.device)
        for block in self.blocks:
            x = block(x, positions)
        return x


class TransformerBlock(nn.Module):
    """Norm and attention, then norm and perceptron; each adds to its input.

    Where it halves the resolution, it averages its input and what the attention gets of it.
    """

    def __init__(
        self, levels: Levels, level: int, before: int, width: int, *, halvings: int
    ) -> None:
        super().__init__()
        self.shortcut = _shortcut(levels, level, before, width, halvings)
        self.norm1: nn.Module = ChannelNorm(before)
        if halvings:
            pool = average_pool(levels, level)
            self.norm1 = nn.Sequential(OrderedDict(norm=self.norm1, down=pool))
        self.attn = Attention(levels, before, width)
        self.norm2 = ChannelNorm(width)
        self.mlp = ChannelMlp(levels, width)

    def forward(self, x: Tensor, positions: Positions) -> Tensor:  # noqa: D102
        x = self.shortcut(x) + self.attn(self.norm1(x), positions)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Each voxel gets a mean of all, weighed by how alike they are and by how they lie."""

    def __init__(self, levels: Levels, before: int, width: int) -> None:
        super().__init__()
        self.heads = before // HEAD
        self.qkv = convolution(levels, 0, before, 3 * before, 1, bias=True)
        self.rel_pos = PositionBias(levels.dimensions, self.heads)
        self.proj = convolution(levels, 0, before, width, 1, bias=True)

    def forward(self, x: Tensor, positions: Positions) -> Tensor:  # noqa: D102
        parts = self.qkv(x).reshape(x.shape[0], self.heads, 3 * HEAD, -1)
        queries, keys, values = parts.chunk(3, dim=2)  # (batch, head, HEAD, voxel) each
        alike = queries.transpose(2, 3) @ keys / math.sqrt(HEAD)
        weights = (alike + self.rel_pos(positions)).softmax(dim=-1)
        return self.proj((values @ weights.transpose(2, 3)).reshape(x.shape))  # type: ignore[no-any-return]


class PositionBias(nn.Module):
    """What the offset between two voxels adds to how alike they are, for each head."""

    def __init__(self, dimensions: int, heads: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(dimensions, HIDDEN),
                act=nn.ReLU(),
                fc2=nn.Linear(HIDDEN, heads),
            )
        )

    def forward(self, positions: Positions) -> Tensor:
        """Give the biases, (head, voxel that looks, voxel looked at)."""
        number, offsets = positions
        biases = self.mlp(offsets.to(next(self.parameters()).dtype))
        return functional.embedding(number, biases).permute(2, 0, 1)


def relative_positions(shape: Sequence[int], device: torch.device) -> Positions:
    """Give each pair of voxels the number of its offset, and each number its offset.

    Args:
        shape: Of the image, along each axis.
        device: Where to.

    Returns:
        The number of each pair's offset, (voxel that looks, voxel looked at), and the offsets by
        number, (number, axis): the logarithm of 1 more than how many voxels, with the sign.
    """
    number = torch.zeros((), dtype=torch.int64, device=device)
    voxels = torch.meshgrid(*(torch.arange(size, device=device) for size in shape), indexing="ij")
    for size, place in zip(shape, voxels, strict=True):
        offset = place.reshape(-1, 1) - place.reshape(1, -1)
        number = number * (2 * size - 1) + offset + size - 1
    spans = (torch.arange(1 - size, size, device=device) for size in shape)
    offsets = torch.stack(torch.meshgrid(*spans, indexing="ij"), dim=-1).reshape(-1, len(shape))
    return number, torch.sign(offsets) * torch.log1p(offsets.abs().float())


def _shortcut(levels: Levels, level: int, before: int, width: int, halvings: int) -> nn.Module:
    """Make what brings a block's input to the shape of its result."""
    if not halvings:
        return nn.Identity()
    parts = OrderedDict(pool=average_pool(levels, level))
    if before != width:
        parts["expand"] = convolution(levels, level, before, width, 1, bias=True)
    return nn.Sequential(parts)


def _initialize(module: nn.Module) -> None:
    """Draw weights by Xavier's rule, those of a convolutional part normally by their outputs."""
    kinds = (nn.Conv2d, nn.Conv3d, nn.Linear)
    if isinstance(module, kinds):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, InvertedBottleneck | Stem):
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Conv3d):
                outputs = math.prod(part.kernel_size) * part.out_channels // part.groups
                nn.init.normal_(part.weight, std=math.sqrt(2 / outputs))
    if isinstance(module, kinds) and module.bias is not None:
        nn.init.zeros_(module.bias)


coatnet_rmlp_nano_rw_224 = CoAtNet
