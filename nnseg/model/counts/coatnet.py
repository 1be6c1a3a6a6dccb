"""CoAtNet as a record: how many blocks and channels it has, and what its training keeps."""

import math

from nnseg.model.backbone_records import BackboneRecord, Maps

STEM = (32, 64)  # channels of its two convolutions
WIDTHS = (64, 128, 256, 512)  # of the stages, the first of which works at level 2
BLOCKS = (3, 4, 6, 3)
CONVOLUTIONAL = 2  # how many stages come before those that attend
EXPANSION = 4  # channels inside a block for each of its input
HEAD = 32  # channels that one head of the attention compares
HIDDEN = 384  # of the perceptron that gives a relative position its bias


def coatnet_kept(maps: Maps, channels: int) -> int:
    """Count what a CoAtNet keeps; in the stages that attend, it grows with the square of voxels."""
    narrow, wide = STEM
    stem = maps.voxels(1)
    kept = channels * (maps.copied(1, 3, halvings=1) or maps.voxels(0))
    kept += 2 * narrow * stem + narrow * (maps.copied(1, 3) or stem)
    before = wide
    for stage in range(min(len(WIDTHS), maps.levels - 2)):
        level, width = stage + 2, WIDTHS[stage]
        if stage >= CONVOLUTIONAL:
            kept += 2 * maps.voxels(level) ** 2  # which bias belongs to a pair, in 8 bytes
        for block in range(BLOCKS[stage]):
            count = _attending if stage >= CONVOLUTIONAL else _convolutional
            kept += count(maps, level, before, width, int(block == 0))
            before = width
    return kept + before * maps.voxels(maps.levels - 1)


def _convolutional(maps: Maps, level: int, before: int, width: int, halvings: int) -> int:
    """Count what an inverted bottleneck keeps, its input included.

    Norms keep what they get, activations and convolutions too; the gates multiply what they had.
    """
    here, above = maps.voxels(level), maps.voxels(level - halvings)
    inner = EXPANSION * before
    kept = 2 * before * above + 2 * inner * above
    kept += inner * (maps.copied(level, 3, halvings=halvings) or above)
    kept += 4 * inner * here
    return kept + (before * here if before != width else 0)


def _attending(maps: Maps, level: int, before: int, width: int, halvings: int) -> int:
    """Count what a transformer block keeps, its input included.

    Norms keep what they get, and a mean and a deviation a voxel. The attention keeps what it takes,
    queries, keys and values, its weights for each pair of voxels, and the hidden layer from which
    relative positions get their biases.
    """
    here, above = maps.voxels(level), maps.voxels(level - halvings)
    kept = (before + 2) * above + before * here
    if halvings:
        kept += before * above + before * here
    positions = math.prod(2 * size - 1 for size in maps.shapes[level])
    kept += 4 * before * here + before // HEAD * here**2 + HIDDEN * positions
    return kept + (2 * (1 + EXPANSION) * width + 2) * here


COATNET_RMLP_NANO = BackboneRecord(
    title="CoAtNet, nano, relative positions by a perceptron",
    source="Dai et al. 2021, arXiv:2106.04803; Liu et al. 2022, arXiv:2111.09883",
    features=(STEM[1], *WIDTHS),
    kept=coatnet_kept,
)
