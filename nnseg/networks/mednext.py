"""MedNeXt in its four sizes: a U-Net of ConvNeXt blocks that also resamples by such blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from nnseg.model.architecture import Architecture
from nnseg.model.blocks import CONVOLUTION, TRANSPOSED
from nnseg.model.counts.mednext import expansion
from nnseg.networks.layers import make_convolution, make_dropout, make_norm, per_axis
from nnseg.networks.upsampling import make_upsampling


class MedNeXt(nn.Module):
    """MedNeXt with kernels of 3; its network's name says which size: S, B, M or L.

    A stem of a 1-wide convolution, blocks at each level, and between the levels one block that
    halves or doubles the resolution; what comes up is added to what the encoder had there. Each
    level has a segmentation head, the deepest too, so that weights load with and without deep
    supervision. Weights are drawn as PyTorch draws them when told nothing, as in the paper's code;
    heads and the shortcuts upwards are transposed convolutions, whose range is wider, there too.

    Where it differs from the paper: it has as many levels as the plan, at most the paper's 5, and
    one of fewer is the paper's without its deepest; kernels and strides are 1 along axes where the
    plan has them so, and a block between two levels has the kernel of the finer one; no block is
    computed a second time to save memory, as in the paper's code for M and L, since a plan sizes
    the patch. Batch norm, dropout of the channels that a block adds, and other ways up than the
    paper's block are there when asked for.

    Args:
        architecture: Its record. Its numbers of blocks leave out those between the levels.
        channels: Input channels.
        heads: Output channels.

    Source: Roy et al. 2023, arXiv:2303.09975, and its code, github.com/MIC-DKFZ/MedNeXt.
    """

    def __init__(self, architecture: Architecture, channels: int, heads: int) -> None:
        super().__init__()
        dimensions, features = architecture.dimensions, architecture.features
        options = architecture.options
        kernels, strides = per_axis(architecture)
        parts = [
            Parts(
                kernel=kernel,
                ratio=expansion(architecture.network, level),
                norm=options.norm or "instance",
                dropout=options.dropout or 0.0,
            )
            for level, kernel in enumerate(kernels)
        ]
        self.is_2d = dimensions == 2
        self.stem = CONVOLUTION[dimensions](channels, features[0], 1)
        self.encoder = nn.ModuleList(map(blocks, architecture.encoder_blocks, features, parts))
        self.decoder = nn.ModuleList(map(blocks, architecture.decoder_blocks, features, parts))
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level in range(len(features) - 1):
            fine, coarse, stride = features[level], features[level + 1], strides[level + 1]
            deeper = replace(parts[level], ratio=parts[level + 1].ratio)
            self.down.append(down_block(fine, coarse, stride, deeper))
            self.up.append(
                up_block(coarse, fine, stride, parts[level])
                if options.upsampling is None
                else make_upsampling(options.upsampling, coarse, fine, stride, dimensions)
            )
        self.heads = nn.ModuleList(TRANSPOSED[dimensions](width, heads, 1) for width in features)

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        """Give the logits of the `outputs` highest resolutions, full resolution first.

        Args:
            image: (batch, channel, z, y, x); z is 1 for a 2D network.
            outputs: How many levels to compute a head for.

        Returns:
            Tensors (batch, head, z, y, x).
        """
        x = self.stem(image.squeeze(2) if self.is_2d else image)
        skips = []
        for level, encode in enumerate(self.encoder):
            if level > 0:
                skips.append(x)
                x = self.down[level - 1](x)
            x = encode(x)
        logits = []
        for level in reversed(range(len(self.heads))):
            if level < len(self.up):
                x = self.decoder[level](skips.pop() + self.up[level](x))
            if level < outputs:
                logits.append(self.heads[level](x))
        if self.is_2d:
            logits = [output.unsqueeze(2) for output in logits]
        return logits[::-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a block is made of, whatever its channels."""

    kernel: tuple[int, ...]  # edges of its depthwise convolution, one for each of 2 or 3 axes
    ratio: int  # channels between expansion and compression, for each of its input
    norm: str  # a name of NORMS
    dropout: float  # share of the channels it adds that are dropped in training


class Block(nn.Module):
    """Depthwise convolution, norm, 1-wide expansion, GELU, 1-wide compression; its input is added.

    Args:
        depthwise: Convolves each channel by itself, and may change the resolution.
        shortcut: Brings the input to the resolution and the number of channels of the result.
        inputs: Channels of what it gets.
        width: Channels of what it gives.
        parts: The rest.
    """

    def __init__(
        self, depthwise: nn.Module, shortcut: nn.Module, inputs: int, width: int, parts: Parts
    ) -> None:
        super().__init__()
        dimensions, expanded = len(parts.kernel), parts.ratio * inputs
        self.depthwise = depthwise
        self.norm = make_norm(parts.norm, inputs, dimensions)
        self.expand = CONVOLUTION[dimensions](inputs, expanded, 1)
        self.activation = nn.GELU()
        self.compress = CONVOLUTION[dimensions](expanded, width, 1)
        self.dropout = make_dropout(parts.dropout, dimensions)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = self.activation(self.expand(self.norm(self.depthwise(x))))
        return self.shortcut(x) + self.dropout(self.compress(y))  # type: ignore[no-any-return]


def blocks(count: int, width: int, parts: Parts) -> nn.Sequential:
    """Build the blocks of a level, which keep resolution and channels."""
    made = nn.Sequential()
    for _ in range(count):
        depthwise = make_convolution(width, width, parts.kernel, groups=width)
        made.append(Block(depthwise, nn.Identity(), width, width, parts))
    return made


def down_block(inputs: int, width: int, stride: Sequence[int], parts: Parts) -> nn.Module:
    """Build the block from a level to the next deeper one; it strides, and so does its shortcut."""
    depthwise = make_convolution(inputs, inputs, parts.kernel, stride, groups=inputs)
    shortcut = make_convolution(inputs, width, (1,) * len(parts.kernel), stride)
    return Block(depthwise, shortcut, inputs, width, parts)


def up_block(inputs: int, width: int, stride: Sequence[int], parts: Parts) -> nn.Module:
    """Build the block from a level to the next finer one, whose convolutions are transposed.

    Of n voxels along an axis it makes 2 n - 1 and puts a 0 before the first: coarse voxel k comes
    to lie on fine voxel 2 k + 1, and at fine voxel 0 only what the encoder had there is left.
    """
    dimensions = len(parts.kernel)
    depthwise = TRANSPOSED[dimensions](
        inputs,
        inputs,
        parts.kernel,  # type: ignore[arg-type]  # its length is the dimension
        stride=tuple(stride),  # type: ignore[arg-type]
        padding=tuple(edge // 2 for edge in parts.kernel),  # type: ignore[arg-type]
        groups=inputs,
    )
    shortcut = TRANSPOSED[dimensions](inputs, width, 1, tuple(stride))  # type: ignore[arg-type]
    pad = nn.ConstantPad2d if dimensions == 2 else nn.ConstantPad3d
    before = tuple(edge for step in reversed(stride) for edge in (step - 1, 0))
    block = Block(depthwise, shortcut, inputs, width, parts)
    return nn.Sequential(block, pad(before, 0.0))  # type: ignore[arg-type]
