"""UNet++ and UNet 3+: what they are, and what a training step of them keeps."""

from collections.abc import Sequence

from nnseg.axes import Shape
from nnseg.model.architecture import Architecture, Dimensions
from nnseg.model.counts.tally import (
    conv_norm_act,
    convolved,
    level_voxels,
    pooled,
    upsampled,
)
from nnseg.model.kind import NetworkKind, doubled

OPTIONS = ("upsampling", "norm", "dropout")
FULL_SCALE_FEATURES = {2: 64, 3: 16}  # channels of level 0


def unetpp_weights(architecture: Architecture) -> tuple[float, ...]:
    """Weigh the heads of UNet++ alike, and their mean, which is its main output, not at all.

    A network of one or two levels has one head, and that is its mean.

    Source: Zhou et al. 2019, arXiv:1912.05074.
    """
    heads = architecture.levels - 1
    return (1.0,) if heads < 2 else (0.0, *[1 / heads] * heads)


def unet3plus_weights(architecture: Architecture) -> tuple[float, ...]:
    """Weigh the outputs of UNet 3+ alike: one a level.

    Source: Huang et al. 2020, arXiv:2004.08790, which names no weights.
    """
    return (1 / architecture.levels,) * architecture.levels


def unet3plus_features(levels: int, dimensions: Dimensions) -> tuple[int, ...]:
    """Double the channels from level to level: from 64 on in 2D, and from 16 on in 3D.

    A decoder has the maps of all scales at full resolution. In 3D the paper's widths would leave
    room for patches of a few voxels only.

    Source: Huang et al. 2020, arXiv:2004.08790, in 2D.

    >>> unet3plus_features(5, 2)
    (64, 128, 256, 512, 1024)
    """
    return doubled(FULL_SCALE_FEATURES[dimensions])(levels, dimensions)


def unetpp_kept(architecture: Architecture, patch: Shape, channels: int) -> int:
    """Count what UNet++ keeps: at each level its nodes, and what all but the first of them join."""
    widths, voxels = architecture.features, level_voxels(architecture, patch)
    kind = architecture.options.upsampling or "transposed"
    total, before = channels * voxels[0], channels
    for level, (width, size) in enumerate(zip(widths, voxels, strict=True)):
        blocks, joining = architecture.encoder_blocks[level], architecture.levels - 1 - level
        total += pooled(architecture, level, before, size)
        if joining > 0:
            blocks += joining * architecture.decoder_blocks[level]
            total += sum(range(2, joining + 2)) * width * size
            total += joining * upsampled(kind, widths[level + 1], size)
        total += blocks * convolved(architecture, width, size)
        before = width
    return total


def unet3plus_kept(architecture: Architecture, patch: Shape, channels: int) -> int:
    """Count what UNet 3+ keeps.

    Of a node: the maps of levels above, pooled, and those of levels below, enlarged; what each is
    convolved to; all of these side by side, and what they become.
    """
    widths, voxels = architecture.features, level_voxels(architecture, patch)
    fused, deepest = architecture.levels * widths[0], architecture.levels - 1
    total = channels * voxels[0]
    for level, (width, size) in enumerate(zip(widths, voxels, strict=True)):
        total += architecture.encoder_blocks[level] * convolved(architecture, width, size)
        total += pooled(architecture, level, sum(widths[:level]), size)
        if level == deepest:
            break
        total += conv_norm_act(fused, size) + fused * size  # of all branches, side by side
        total += architecture.decoder_blocks[level] * convolved(architecture, fused, size)
        for source in range(level + 1, architecture.levels):
            inputs = widths[-1] if source == deepest else fused
            total += _enlarged(architecture, inputs, voxels[level : source + 1])
    return total


def _enlarged(architecture: Architecture, inputs: int, voxels: Sequence[int]) -> int:
    """Count what a node of UNet 3+ keeps of a map from below, on its way up through `voxels`."""
    kind, width = architecture.options.upsampling, architecture.features[0]
    if kind is None:
        return inputs * voxels[0]
    steps = voxels[-2::-1]  # from below to the node
    kept = sum(upsampled(kind, width if step else inputs, size) for step, size in enumerate(steps))
    return kept + width * (voxels[0] if kind == "interpolated" else sum(steps))


UNETPP = NetworkKind(
    title="UNet++: U-Nets of every depth in one, their skips filled with convolutions",
    source="Zhou et al. 2018, arXiv:1807.10165; Zhou et al. 2019, arXiv:1912.05074",
    dimensions=(2, 3),
    levels=(1, 5),
    features=doubled(32),
    encoder_blocks=(2,),
    decoder_blocks=(2,),
    kept=unetpp_kept,
    weights=unetpp_weights,
    options=OPTIONS,
)

UNET3PLUS = NetworkKind(
    title="UNet 3+: every level of the decoder sees the maps of all scales",
    source="Huang et al. 2020, arXiv:2004.08790",
    dimensions=(2, 3),
    levels=(1, 5),
    features=unet3plus_features,
    encoder_blocks=(2,),
    decoder_blocks=(1,),
    kept=unet3plus_kept,
    weights=unet3plus_weights,
    options=OPTIONS,
)
