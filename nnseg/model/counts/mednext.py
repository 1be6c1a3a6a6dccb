"""MedNeXt: what its four sizes are, and what a training step of them keeps."""

import math
from collections.abc import Sequence

from nnseg.axes import Shape
from nnseg.model.architecture import Architecture, level_shapes
from nnseg.model.kind import NetworkKind, doubled

# Channels inside a block for each of its input, by level; deeper levels repeat the last.
RATIOS = {
    "mednext_s": (2,),
    "mednext_b": (2, 3, 4),
    "mednext_m": (2, 3, 4),
    "mednext_l": (3, 4, 8),
}
SOURCE = "Roy et al. 2023, arXiv:2303.09975"
OPTIONS = ("upsampling", "norm", "dropout")


def expansion(network: str, level: int) -> int:
    """Give how many times a block expands the channels of its input.

    A block down has the ratio of the level that it leads to, as has one up.

    >>> expansion("mednext_l", 0), expansion("mednext_l", 4)
    (3, 8)

    Source: Roy et al. 2023, arXiv:2303.09975, and its code.
    """
    ratios = RATIOS[network]
    return ratios[min(level, len(ratios) - 1)]


def weights(architecture: Architecture) -> tuple[float, ...]:
    """Weigh an output at each level, the deepest too: each counts half of the one before.

    So its authors train it: nnU-Net, in which they do, leaves out what it takes for the deepest
    output, but their trainer tells it of one level more than there is.
    """
    halved = [0.5**level for level in range(architecture.levels)]
    return tuple(weight / sum(halved) for weight in halved)


def kept(architecture: Architecture, patch: Shape, channels: int) -> int:
    """Count what a MedNeXt keeps.

    Of a block: its input, what its norm gets and gives, and twice what it expands to. Of a level:
    its last map, which the head or the next level takes.
    """
    shapes = level_shapes(patch, architecture.strides)
    voxels, widths = [math.prod(shape) for shape in shapes], architecture.features
    ratios = [expansion(architecture.network, level) for level in range(architecture.levels)]
    total = channels * voxels[0]
    for blocks in (architecture.encoder_blocks, architecture.decoder_blocks):
        levels = zip(blocks, widths, voxels, ratios, strict=False)  # the decoder has one fewer
        total += sum((count * (3 + 2 * r) + 1) * width * size for count, width, size, r in levels)
    for level, stride in enumerate(architecture.strides[1:]):
        total += 2 * (1 + ratios[level + 1]) * widths[level] * voxels[level + 1]
        total += _upwards(architecture, ratios[level], widths[level + 1], shapes[level + 1], stride)
    return total


def _upwards(
    architecture: Architecture, ratio: int, width: int, shape: Shape, stride: Sequence[int]
) -> int:
    """Count what the way up from `width` channels of `shape` keeps beside its input."""
    steps = list(zip(shape, stride, strict=True))
    if architecture.options.upsampling is None:
        return 2 * (1 + ratio) * width * math.prod(size * step - step + 1 for size, step in steps)
    if architecture.options.upsampling == "interpolated" and max(stride) > 1:
        return width * math.prod(size * step for size, step in steps)
    return 0


def _kind(title: str, blocks: tuple[int, ...]) -> NetworkKind:
    """Give the kind of a size that has so many blocks at each level, on the way down and up."""
    return NetworkKind(
        title=title,
        source=SOURCE,
        dimensions=(2, 3),
        levels=(1, 5),
        features=doubled(32),
        encoder_blocks=blocks,
        decoder_blocks=blocks,
        kept=kept,
        weights=weights,
        outputs_by_level=True,
        options=OPTIONS,
    )


MEDNEXT_S = _kind(
    "MedNeXt S: a U-Net of ConvNeXt blocks, two a level, that expand channels twice", (2,)
)
MEDNEXT_B = _kind(
    "MedNeXt B: a U-Net of ConvNeXt blocks, two a level, that expand channels 2 to 4 times", (2,)
)
MEDNEXT_M = _kind("MedNeXt M: MedNeXt B with 3 or 4 blocks a level", (3, 4))
MEDNEXT_L = _kind(
    "MedNeXt L: 3 to 8 ConvNeXt blocks a level, that expand channels 3 to 8 times", (3, 4, 8)
)
