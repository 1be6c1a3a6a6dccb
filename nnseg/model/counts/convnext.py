"""ConvNeXt as a record: how many blocks and channels it has, and what its training keeps."""

from nnseg.model.backbone_records import BackboneRecord, Maps

WIDTHS = (80, 160, 320, 640)  # of the stages, the first of which works at level 2
BLOCKS = (2, 2, 8, 2)
EXPANSION = 4  # channels inside a block for each of its input
KERNEL = 7


def convnext_kept(maps: Maps, channels: int) -> int:
    """Count what a ConvNeXt keeps.

    Of a block: the convolution's input, what its norm gets and gives, twice what it expands to, and
    what its scale multiplies. Of a stage: its map. Each norm keeps a mean and a deviation a voxel.
    """
    kept = channels * maps.voxels(0) + (WIDTHS[0] + 2) * maps.voxels(2)
    for stage in range(min(len(WIDTHS), maps.levels - 2)):
        width, voxels = WIDTHS[stage], maps.voxels(stage + 2)
        taken = width * (maps.copied(stage + 2, KERNEL) or voxels)
        kept += BLOCKS[stage] * (taken + ((3 + 2 * EXPANSION) * width + 2) * voxels)
        kept += width * voxels
        if stage > 0:
            kept += (WIDTHS[stage - 1] + 2) * maps.voxels(stage + 1)
    return kept


CONVNEXT_NANO = BackboneRecord(
    title="ConvNeXt, nano",
    source="Liu et al. 2022, arXiv:2201.03545",
    features=(0, *WIDTHS),
    kept=convnext_kept,
)
