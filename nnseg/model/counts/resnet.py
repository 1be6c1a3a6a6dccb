"""The residual networks that can be encoders, as records, and what their training keeps."""

from dataclasses import dataclass
from functools import partial

from nnseg.model.backbone_records import BackboneRecord, Maps

FIRST = 64  # channels of the stem and of the first stage's narrow convolutions
STAGES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetDesign:
    """What residual networks differ in.

    Stage s works at level s + 2, in FIRST * 2**s channels. A bottleneck's blocks end with 4 times
    as many.
    """

    blocks: tuple[int, int, int, int]  # at each stage
    bottleneck: bool = False  # convolutions of 1, 3 and 1 a block in place of two of 3
    tweaked: bool = True  # "d": three convolutions of 3 as the stem, shortcuts averaged
    groups: int = 1  # of the bottleneck's middle convolution
    group_width: int = FIRST  # channels of one of them in the first stage
    squeezed: bool = False  # each block ends with squeeze and excitation

    def width(self, stage: int) -> int:
        """Channels that a stage puts out."""
        return (FIRST << stage) * (4 if self.bottleneck else 1)

    def inner(self, stage: int) -> int:
        """Channels inside the blocks of a stage."""
        return self.groups * self.group_width << stage

    @property
    def features(self) -> tuple[int, ...]:
        """Channels at levels 1 to 5."""
        return (FIRST, *(self.width(stage) for stage in range(STAGES)))


def resnet_kept(design: ResNetDesign, maps: Maps, channels: int) -> int:
    """Count what a residual network keeps: convolutions' inputs and norms' inputs.

    An activation is in place of what its norm put out, and is the input of what follows.
    """
    stem, edge = maps.voxels(1), 3 if design.tweaked else 7
    kept = channels * (maps.copied(1, edge, halvings=1) or maps.voxels(0)) + 2 * FIRST * stem
    if design.tweaked:
        half = FIRST // 2
        kept += 2 * half * (2 * stem + maps.copied(1, 3))
    if maps.levels > 2:
        indices = 2 * maps.voxels(2)
        copied = 0 if design.bottleneck else maps.copied(2, 3)
        pooled = 0 if copied else maps.voxels(2)  # the copy alone is kept
        kept += FIRST * (indices + pooled)
    before = FIRST
    for stage in range(min(STAGES, maps.levels - 2)):
        for block in range(design.blocks[stage]):
            kept += _block(design, maps, stage, before, first=block == 0)
            before = design.width(stage)
    return kept


def _block(design: ResNetDesign, maps: Maps, stage: int, before: int, *, first: bool) -> int:
    """Count what one block keeps, but for its input."""
    level, width, inner = stage + 2, design.width(stage), design.inner(stage)
    halvings = int(first and stage > 0)
    here, above = maps.voxels(level), maps.voxels(level - halvings)
    if design.bottleneck:
        kept = 2 * inner * (above + here) + 2 * width * here
        kept += inner * maps.copied(level, 3, halvings=halvings)
    else:
        kept = 4 * width * here
        kept += before * maps.copied(level, 3, halvings=halvings) + width * maps.copied(level, 3)
    if design.squeezed:
        kept += width * here  # its product with the gates needs what it had and what it gives
    if first and (halvings or before != width):
        kept += width * here
        kept += before * here if halvings and design.tweaked else 0
    return kept


def _record(title: str, source: str, design: ResNetDesign) -> BackboneRecord:
    return BackboneRecord(
        title=title, source=source, features=design.features, kept=partial(resnet_kept, design)
    )


_TWEAKED = "He et al. 2016, arXiv:1512.03385; He et al. 2019, arXiv:1812.01187"

RESNET18D = ResNetDesign(blocks=(2, 2, 2, 2))
RESNET34D = ResNetDesign(blocks=(3, 4, 6, 3))
RESNET50D = ResNetDesign(blocks=(3, 4, 6, 3), bottleneck=True)
SERESNEXT50 = ResNetDesign(
    blocks=(3, 4, 6, 3), bottleneck=True, tweaked=False, groups=32, group_width=4, squeezed=True
)

RESNET_RECORDS = {
    "resnet18d": _record("ResNet-18-D", _TWEAKED, RESNET18D),
    "resnet34d": _record("ResNet-34-D", _TWEAKED, RESNET34D),
    "resnet50d": _record("ResNet-50-D", _TWEAKED, RESNET50D),
    "seresnext50_32x4d": _record(
        "SE-ResNeXt-50, 32 groups of 4",
        "Hu et al. 2018, arXiv:1709.01507; Xie et al. 2017, arXiv:1611.05431",
        SERESNEXT50,
    ),
}
