"""DeepLabv3+: what it is, and what a training step of it keeps."""

from collections.abc import Sequence

from nnseg.axes import Shape
from nnseg.errors import PlanError
from nnseg.model.architecture import Architecture, Dimensions
from nnseg.model.counts.tally import conv_norm_act, convolved, level_voxels, upsampled
from nnseg.model.kind import NetworkKind, single

LOW = 2  # the level of the low-level features; with the paper's strides a quarter of the patch
LOW_WIDTH = 48  # channels to which they are reduced
PYRAMID_WIDTH = 256  # channels of the pyramid's branches, of what it gives and of the decoder
DILATION = 2  # of the last stage
DILATED_BLOCKS = 3  # bottlenecks of the last stage
INNER = 4  # a bottleneck's inner convolutions have so many times fewer channels

STEM = {2: 32, 3: 16}  # channels of the stem's first convolutions
FULL_LEVELS = 5  # with so many the output stride is the paper's 16
UNIT = {2: 6, 3: 2}  # the pyramid's first rate there


def features(levels: int, dimensions: Dimensions) -> tuple[int, ...]:
    """Give the channels of the stem, at levels 0 and 1, and of what each deeper level ends with.

    In 2D they are ResNet-50's; in 3D half of them, as a 3-wide kernel has three times the weights.
    The deepest level has two stages and ends with those of the dilated one.

    Source: He et al. 2016, arXiv:1512.03385.

    >>> features(5, 2)
    (32, 64, 256, 512, 2048)
    """
    stem = STEM[dimensions]
    stages = [8 * stem * 2**number for number in range(levels - LOW)]
    return (stem, 2 * stem, *stages[:-1], 2 * stages[-1])


def stage_widths(architecture: Architecture) -> tuple[int, ...]:
    """Give the channels of each stage: one a level from LOW on, and the dilated one.

    The deepest level's own stage has half the channels of the dilated one.

    Raises:
        PlanError: There are too few levels to have the low-level features.
    """
    if architecture.levels <= LOW:
        raise PlanError(
            f"features has {architecture.levels} levels; deeplabv3plus needs at least {LOW + 1}"
        )
    *above, deepest = architecture.features[LOW:]
    return (*above, max(deepest // 2, 1), deepest)


def pyramid_rates(architecture: Architecture) -> tuple[int, int, int]:
    """Give the dilations of the pyramid's three convolutions.

    The paper's 6, 12 and 18 are for maps of 33 voxels an edge. In 3D patches have about a third of
    the edge, and so have the rates. A network of fewer levels is one for a patch that could not be
    halved again: its deepest map has less than 8 voxels along an edge.

    Source: Chen et al. 2018, arXiv:1802.02611.
    """
    unit = UNIT[architecture.dimensions] if architecture.levels >= FULL_LEVELS else 1
    return unit, 2 * unit, 3 * unit


def kept(architecture: Architecture, patch: Shape, channels: int) -> int:
    """Count what DeepLabv3+ keeps, stage by stage."""
    voxels, widths = level_voxels(architecture, patch), stage_widths(architecture)
    stem = architecture.features[:LOW]
    total = channels * voxels[0]
    for blocks, width in zip(architecture.encoder_blocks[:LOW], stem, strict=True):
        total += blocks * conv_norm_act(width, voxels[1])
    total += 3 * stem[-1] * voxels[LOW]  # the pooling's maxima, and where they come from
    before, above = stem[-1], voxels[LOW]
    counts = (*architecture.encoder_blocks[LOW:], DILATED_BLOCKS)
    sizes = (*voxels[LOW:], voxels[-1])
    for width, count, size in zip(widths, counts, sizes, strict=True):
        total += _stage_kept(before, width, count, above, size)
        before, above = width, size
    total += _pyramid_kept(architecture, voxels[-1])
    return total + _rise_kept(architecture, voxels[LOW:]) + _decoder_kept(architecture, voxels[LOW])


def _stage_kept(before: int, width: int, count: int, above: int, size: int) -> int:
    """Count what `count` bottlenecks keep, the first of which begins with `above` voxels.

    A sum of two norms' results is not kept, but what the ReLU makes of it is.
    """
    inner = max(width // INNER, 1)
    total = conv_norm_act(inner, above) + (2 * count - 1) * conv_norm_act(inner, size)
    total += count * conv_norm_act(width, size)
    return total + (width * size if before != width or above != size else 0)


def _pyramid_kept(architecture: Architecture, size: int) -> int:
    """Count what the pyramid keeps: its branches, side by side, and what they become.

    Of the mean of the map only its part of the whole counts.
    """
    rates, width = len(pyramid_rates(architecture)), PYRAMID_WIDTH
    branches = architecture.features[-1] * rates * size + (rates + 1) * conv_norm_act(width, size)
    return branches + (rates + 2) * width * size + convolved(architecture, width, size)


def _rise_kept(architecture: Architecture, voxels: Sequence[int]) -> int:
    """Count what the way up keeps, through levels of so many voxels, the finest first."""
    kind, steps = architecture.options.upsampling, voxels[:-1]
    if kind is None:
        return 0
    total = sum(upsampled(kind, PYRAMID_WIDTH, size) for size in steps)
    return total if kind == "interpolated" else total + PYRAMID_WIDTH * sum(steps[1:])


def _decoder_kept(architecture: Architecture, size: int) -> int:
    """Count what the decoder keeps: the low-level features, what it joins, its convolutions."""
    joined = PYRAMID_WIDTH + LOW_WIDTH
    total, inputs = conv_norm_act(LOW_WIDTH, size) + joined * size, joined
    for _ in range(architecture.decoder_blocks[0]):
        total += inputs * size + convolved(architecture, PYRAMID_WIDTH, size)
        inputs = PYRAMID_WIDTH
    return total


DEEPLABV3PLUS = NetworkKind(
    title="DeepLabv3+: a dilated residual network, and a pyramid that sees near and far",
    source="Chen et al. 2018, arXiv:1802.02611",
    dimensions=(2, 3),
    levels=(3, FULL_LEVELS),
    features=features,
    encoder_blocks=(2, 1, 3, 4, 6),
    decoder_blocks=(2,),
    kept=kept,
    weights=single,
    options=("upsampling", "norm", "dropout"),
)
