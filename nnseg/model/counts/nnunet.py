"""nnU-Net's two networks: what they are, and what a training step of them keeps.

The planner fits them by nnU-Net's own estimate, `nnseg.model.architecture.count_elements`; the
counts here are what really is kept, to compare networks by.
"""

from nnseg.axes import Shape
from nnseg.model.architecture import Architecture, Dimensions
from nnseg.model.counts.tally import conv_norm_act, level_voxels, upsampled
from nnseg.model.kind import NetworkKind, halving

FIRST_FEATURES = 32
MOST_FEATURES = {2: 512, 3: 320}


def features(levels: int, dimensions: Dimensions) -> tuple[int, ...]:
    """Double the channels from level to level up to a limit.

    Source: nnU-Net v2.

    >>> features(6, 3)
    (32, 64, 128, 256, 320, 320)
    """
    most = MOST_FEATURES[dimensions]
    return tuple(min(most, FIRST_FEATURES * 2**level) for level in range(levels))


def plain_kept(architecture: Architecture, patch: Shape, channels: int) -> int:
    """Count what a plain U-Net keeps: of each convolution its result, before and after the norm."""
    voxels = level_voxels(architecture, patch)
    levels = zip(architecture.encoder_blocks, architecture.features, voxels, strict=True)
    encoder = sum(blocks * conv_norm_act(width, size) for blocks, width, size in levels)
    return channels * voxels[0] + encoder + _decoder_kept(architecture, voxels)


def resenc_kept(architecture: Architecture, patch: Shape, channels: int) -> int:
    """Count what a residual-encoder U-Net keeps.

    A block's second norm is kept after the sum. A projection keeps its result, and its input where
    that was pooled first.
    """
    voxels, widths = level_voxels(architecture, patch), architecture.features
    total, before = channels * voxels[0] + conv_norm_act(widths[0], voxels[0]), widths[0]
    levels = zip(architecture.encoder_blocks, widths, voxels, architecture.strides, strict=True)
    for blocks, width, size, stride in levels:
        total += 2 * blocks * conv_norm_act(width, size)
        if width != before:
            total += width * size + (before * size if max(stride) > 1 else 0)
        before = width
    return total + _decoder_kept(architecture, voxels)


def _decoder_kept(architecture: Architecture, voxels: list[int]) -> int:
    """Count what the decoder keeps: at each level its two inputs side by side, and its blocks."""
    widths, kind = architecture.features, architecture.options.upsampling or "transposed"
    total = 0
    for level, blocks in enumerate(architecture.decoder_blocks):
        width, size = widths[level], voxels[level]
        total += upsampled(kind, widths[level + 1], size) + 2 * width * size
        total += blocks * conv_norm_act(width, size)
    return total


PLAIN = NetworkKind(
    title="nnU-Net's plain U-Net: two convolutions a level, strided ones in place of pooling",
    source="Isensee et al. 2021, doi:10.1038/s41592-020-01008-z",
    dimensions=(2, 3),
    levels=(1, 12),
    features=features,
    encoder_blocks=(2,),
    decoder_blocks=(2,),
    kept=plain_kept,
    weights=halving,
    outputs_by_level=True,
    options=("upsampling",),
)

RESENC = NetworkKind(
    title="nnU-Net's U-Net with a residual encoder",
    source="Isensee et al. 2024, doi:10.1007/978-3-031-72114-4_47",
    dimensions=(2, 3),
    levels=(1, 12),
    features=features,
    encoder_blocks=(1, 3, 4, 6),
    decoder_blocks=(1,),
    kept=resenc_kept,
    weights=halving,
    outputs_by_level=True,
    options=("upsampling",),
)
