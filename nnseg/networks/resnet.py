"""Residual networks as encoders: ResNet-D, and ResNeXt with squeeze and excitation."""

from functools import partial

from torch import Tensor, nn

from nnseg.model.counts.resnet import (
    FIRST,
    RESNET18D,
    RESNET34D,
    RESNET50D,
    SERESNEXT50,
    STAGES,
    ResNetDesign,
)
from nnseg.networks.inflation import (
    Backbone,
    Levels,
    SqueezeExcite,
    average_pool,
    batch_norm,
    convolution,
    max_pool,
)

SQUEEZED = 16  # how many channels one of those that decide on the gates stands for


class ResNet(Backbone):
    """A stem, a maximum over 3 voxels, and four stages of residual blocks.

    Level 1 is the stem's map, level k the one of stage k - 1. With the design's "d" the stem has
    three convolutions of 3 in place of one of 7, and shortcuts average before their convolution, so
    that no voxel is passed over. Weights begin He-normal by their outputs, and each block's last
    norm at 0, so that the block hands its input on.

    Args:
        levels: Along z, and how many.
        channels: Of the image.
        design: Which of the networks it is.

    Source: He et al. 2016, arXiv:1512.03385; He et al. 2019, arXiv:1812.01187 ("d"); Xie et al.
    2017, arXiv:1611.05431 (groups); Hu et al. 2018, arXiv:1709.01507 (squeeze and excitation).
    """

    classifier = ("fc.",)

    def __init__(self, levels: Levels, channels: int, *, design: ResNetDesign) -> None:
        super().__init__()
        if design.tweaked:
            half = FIRST // 2
            self.conv1: nn.Module = nn.Sequential(
                convolution(levels, 1, channels, half, 3, halvings=1),
                batch_norm(levels, half),
                nn.ReLU(inplace=True),
                convolution(levels, 1, half, half, 3),
                batch_norm(levels, half),
                nn.ReLU(inplace=True),
                convolution(levels, 1, half, FIRST, 3),
            )
        else:
            self.conv1 = convolution(levels, 1, channels, FIRST, 7, halvings=1)
        self.bn1 = batch_norm(levels, FIRST)
        self.act1 = nn.ReLU(inplace=True)
        self.stages = min(STAGES, len(levels.steps) - 2)
        if self.stages:
            self.maxpool = max_pool(levels, 2)
        before = FIRST
        kind = Bottleneck if design.bottleneck else BasicBlock
        for stage in range(self.stages):
            blocks = []
            for number in range(design.blocks[stage]):
                blocks.append(kind(levels, stage, before, design, first=number == 0))
                before = design.width(stage)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.apply(_initialize)

    def forward(self, image: Tensor) -> list[Tensor]:  # noqa: D102
        x = self.act1(self.bn1(self.conv1(image)))
        maps = [x]
        if self.stages:
            x = self.maxpool(x)
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            maps.append(x)
        return maps


class BasicBlock(nn.Module):
    """Two convolutions of 3 beside a shortcut."""

    def __init__(
        self, levels: Levels, stage: int, before: int, design: ResNetDesign, *, first: bool
    ) -> None:
        super().__init__()
        level, width, halvings = stage + 2, design.width(stage), int(first and stage > 0)
        self.conv1 = convolution(levels, level, before, width, 3, halvings=halvings)
        self.bn1 = batch_norm(levels, width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = convolution(levels, level, width, width, 3)
        self.bn2 = batch_norm(levels, width)
        self.se = _gates(levels, width, design)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample = _shortcut(levels, level, before, width, halvings, design)

    @property
    def last_norm(self) -> nn.Module:
        """The norm before the sum."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.se(self.bn2(self.conv2(y)))
        return self.act2(y.add_(self.downsample(x)))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """A convolution of 3 between two of 1 beside a shortcut; the one of 3 strides."""

    def __init__(
        self, levels: Levels, stage: int, before: int, design: ResNetDesign, *, first: bool
    ) -> None:
        super().__init__()
        level, width, inner = stage + 2, design.width(stage), design.inner(stage)
        halvings = int(first and stage > 0)
        self.conv1 = convolution(levels, level - halvings, before, inner, 1)
        self.bn1 = batch_norm(levels, inner)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = convolution(
            levels, level, inner, inner, 3, halvings=halvings, groups=design.groups
        )
        self.bn2 = batch_norm(levels, inner)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = convolution(levels, level, inner, width, 1)
        self.bn3 = batch_norm(levels, width)
        self.se = _gates(levels, width, design)
        self.act3 = nn.ReLU(inplace=True)
        self.downsample = _shortcut(levels, level, before, width, halvings, design)

    @property
    def last_norm(self) -> nn.Module:
        """The norm before the sum."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        y = self.se(self.bn3(self.conv3(y)))
        return self.act3(y.add_(self.downsample(x)))  # type: ignore[no-any-return]


def _gates(levels: Levels, width: int, design: ResNetDesign) -> nn.Module:
    """Make the gates of a block's channels, where the design has them."""
    if not design.squeezed:
        return nn.Identity()
    return SqueezeExcite(levels, width, width // SQUEEZED, nn.ReLU)


def _shortcut(
    levels: Levels, level: int, before: int, width: int, halvings: int, design: ResNetDesign
) -> nn.Module:
    """Make what brings a block's input to the shape of its result."""
    if not halvings and before == width:
        return nn.Identity()
    if not design.tweaked:
        return nn.Sequential(
            convolution(levels, level, before, width, 1, halvings=halvings),
            batch_norm(levels, width),
        )
    pool = average_pool(levels, level) if halvings else nn.Identity()
    return nn.Sequential(
        pool, convolution(levels, level, before, width, 1), batch_norm(levels, width)
    )


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, BasicBlock | Bottleneck):
        nn.init.zeros_(module.last_norm.weight)  # type: ignore[arg-type]


resnet18d = partial(ResNet, design=RESNET18D)
resnet34d = partial(ResNet, design=RESNET34D)
resnet50d = partial(ResNet, design=RESNET50D)
seresnext50_32x4d = partial(ResNet, design=SERESNEXT50)
