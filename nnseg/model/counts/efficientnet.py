"""EfficientNetV2-S as an encoder: its stages, as records, and what their training keeps."""

from dataclasses import dataclass

from nnseg.model.backbone_records import BackboneRecord, Maps

STEM = 24  # channels


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A row of alike blocks; the first of them strides.

    A block of expansion 1 is one convolution. Else it convolves to so many times more channels and
    back: at once, or, where it is separable, point by point, then channel by channel, with squeeze
    and excitation.
    """

    blocks: int
    width: int  # channels that it puts out
    level: int  # of its result
    halves: bool = True  # whether it leads there from the level above
    expansion: int = 4
    separable: bool = False


# Source: Tan & Le 2021, arXiv:2104.00298, table 4, with the widths and strides of its code.
STAGES = (
    Stage(blocks=2, width=24, level=1, halves=False, expansion=1),
    Stage(blocks=4, width=48, level=2),
    Stage(blocks=4, width=64, level=3),
    Stage(blocks=6, width=128, level=4, separable=True),
    Stage(blocks=9, width=160, level=4, halves=False, expansion=6, separable=True),
    Stage(blocks=15, width=256, level=5, expansion=6, separable=True),
)
FEATURES = tuple(
    [stage.width for stage in STAGES if stage.level == level][-1] for level in range(1, 6)
)


def efficientnet_kept(maps: Maps, channels: int) -> int:
    """Count what EfficientNetV2-S keeps: inputs of convolutions, norms and activations."""
    kept = channels * maps.copied(1, 3, halvings=1, uneven=True) + 2 * STEM * maps.voxels(1)
    before = STEM
    for stage in STAGES:
        if stage.level >= maps.levels:
            break
        for block in range(stage.blocks):
            kept += _block(stage, maps, before, halvings=int(stage.halves and block == 0))
            before = stage.width
    return kept + before * maps.voxels(maps.levels - 1)


def _block(stage: Stage, maps: Maps, before: int, *, halvings: int) -> int:
    """Count what one block keeps, but for its result: what follows may keep a copy in its place."""
    level, width = stage.level, stage.width
    here, above = maps.voxels(level), maps.voxels(level - halvings)
    convolved = maps.copied(level, 3, halvings=halvings, uneven=halvings == 1) or above
    inner = before * stage.expansion
    if stage.expansion == 1:
        return before * convolved + 2 * width * here
    if not stage.separable:
        return before * convolved + 3 * inner * here + width * here
    return before * above + inner * (2 * above + convolved + 4 * here) + width * here


EFFICIENTNETV2_S = BackboneRecord(
    title="EfficientNetV2-S",
    source="Tan & Le 2021, arXiv:2104.00298",
    features=FEATURES,
    kept=efficientnet_kept,
)
