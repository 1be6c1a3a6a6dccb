"""The networks from before nnU-Net: a fully convolutional one, and three U-Nets."""

from nnseg.axes import Shape
from nnseg.model.architecture import Architecture, Dimensions
from nnseg.model.counts.tally import conv_norm_act, level_voxels, pooled, upsampled
from nnseg.model.kind import NetworkKind, doubled, single


def fcn_features(levels: int, dimensions: Dimensions) -> tuple[int, ...]:
    """Double the channels from level to level, in 3D from half as many on.

    A kernel has three times the weights there and a patch far more voxels at full resolution,
    where most of the memory goes.

    >>> fcn_features(3, 2), fcn_features(3, 3)
    ((64, 128, 256), (32, 64, 128))
    """
    return doubled(64 if dimensions == 2 else 32)(levels, dimensions)


def fcn_kept(architecture: Architecture, patch: Shape, channels: int) -> int:
    """Count what a fully convolutional network keeps: of each dropout the result, too."""
    voxels, widths = level_voxels(architecture, patch), architecture.features
    total, before, deepest = channels * voxels[0], channels, architecture.levels - 1
    for level, (width, size) in enumerate(zip(widths, voxels, strict=True)):
        total += pooled(architecture, level, before, size)
        blocks = architecture.encoder_blocks[level]
        total += blocks * conv_norm_act(width, size)
        if level == deepest and architecture.options.dropout:
            total += blocks * width * size
        before = width
    kind = architecture.options.upsampling
    if kind is not None:
        total += upsampled(kind, before, voxels[0]) + widths[0] * voxels[0]
    return total


def unet_kept(architecture: Architecture, patch: Shape, channels: int) -> int:
    """Count what Ronneberger's U-Net keeps: no norm, unless one is chosen."""
    features = architecture.features
    norm = architecture.options.norm is not None
    return _pooled_kept(architecture, patch, channels, features, features[:-1], norm=norm)


def unet3d_kept(architecture: Architecture, patch: Shape, channels: int) -> int:
    """Count what Cicek's U-Net keeps: half the channels first, and all that comes up joined."""
    features = architecture.features
    first = tuple(max(width // 2, 1) for width in features)
    return _pooled_kept(architecture, patch, channels, first, features[1:], norm=True)


def _pooled_kept(
    architecture: Architecture,
    patch: Shape,
    channels: int,
    first_widths: tuple[int, ...],
    up_widths: tuple[int, ...],
    *,
    norm: bool,
) -> int:
    """Count what a U-Net with max pooling keeps, its widths as in `nnseg.networks.ronneberger`."""
    voxels = level_voxels(architecture, patch)
    features, options = architecture.features, architecture.options
    total, before = channels * voxels[0], channels
    for level, (width, size) in enumerate(zip(features, voxels, strict=True)):
        blocks = architecture.encoder_blocks[level]
        widths = (first_widths[level] if blocks > 1 else 0) + max(blocks - 1, 1) * width
        total += pooled(architecture, level, before, size)
        total += conv_norm_act(widths, size, norm=norm)
        before = width
    if options.dropout:
        total += features[-1] * voxels[-1]
    kind = options.upsampling or "transposed"
    for level, blocks in enumerate(architecture.decoder_blocks):
        width, size, up_width = features[level], voxels[level], up_widths[level]
        total += upsampled(kind, features[level + 1], size) + (width + up_width) * size
        total += blocks * conv_norm_act(width, size, norm=norm)
    return total


def isensee2017_kept(architecture: Architecture, patch: Shape, channels: int) -> int:
    """Count what the improved 3D U-Net keeps.

    A context module keeps four maps a channel: its norms' inputs and its activations. The norm
    behind the last sum of a level keeps that sum, and its activation its result.
    """
    voxels, features = level_voxels(architecture, patch), architecture.features
    encoder = zip(architecture.encoder_blocks, features, voxels, strict=True)
    total = channels * voxels[0]
    total += sum((4 * blocks + 2) * width * size for blocks, width, size in encoder)
    kind = architecture.options.upsampling
    for level, blocks in enumerate(architecture.decoder_blocks):
        width, size = features[level], voxels[level]
        if kind is None:
            repeats = max(architecture.strides[level + 1]) > 1
            total += features[level + 1] * size if repeats else 0
        else:
            total += upsampled(kind, features[level + 1], size)
        total += conv_norm_act(width, size)
        total += 2 * width * size
        total += blocks * conv_norm_act(2 * width, size)
        total += conv_norm_act(width, size) if level > 0 else 0
    return total


FCN = NetworkKind(
    title="a fully convolutional network: two poolings, one step back to full resolution",
    source="Long et al. 2015, arXiv:1411.4038",
    dimensions=(2, 3),
    levels=(3, 3),
    features=fcn_features,
    encoder_blocks=(2,),
    decoder_blocks=(1,),
    kept=fcn_kept,
    weights=single,
    options=("upsampling", "norm", "dropout"),
)

UNET = NetworkKind(
    title="the first U-Net: max pooling, double convolutions, skips; no norm unless one is chosen",
    source="Ronneberger et al. 2015, arXiv:1505.04597",
    dimensions=(2,),
    levels=(5, 5),
    features=doubled(64),
    encoder_blocks=(2,),
    decoder_blocks=(2,),
    kept=unet_kept,
    weights=single,
    options=("upsampling", "norm", "dropout"),
)

UNET3D = NetworkKind(
    title="the U-Net in 3D: four levels that widen before they pool, batch norm",
    source="Cicek et al. 2016, arXiv:1606.06650",
    dimensions=(3,),
    levels=(4, 4),
    features=doubled(64),
    encoder_blocks=(2,),
    decoder_blocks=(2,),
    kept=unet3d_kept,
    weights=single,
    options=("upsampling", "norm", "dropout"),
)

ISENSEE2017 = NetworkKind(
    title="the improved 3D U-Net: residual contexts, segmentations of three levels summed",
    source="Isensee et al. 2017, arXiv:1802.10508",
    dimensions=(2, 3),
    levels=(5, 5),
    features=doubled(16),
    encoder_blocks=(1,),
    decoder_blocks=(1,),
    kept=isensee2017_kept,
    weights=single,
    options=("upsampling", "norm", "dropout"),
)
