"""ConvNeXt as an encoder."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from nnseg.model.counts.convnext import BLOCKS, EXPANSION, KERNEL, WIDTHS
from nnseg.networks.inflation import Backbone, Levels, convolution

NORM_EPS = 1e-6
FIRST_SCALE = 1e-6  # of what a block adds
DEVIATION = 0.02  # of the weights at first


class ConvNeXt(Backbone):
    """Patches of 4 x 4, then four stages of blocks like a transformer's, with convolutions in them.

    There is no map at level 1; level k has the map of stage k - 2. A norm and a convolution of 2,
    strided by 2, lead from one stage to the next. Its blocks begin close to handing on their input.
    Paths are not dropped in training; that is the recipe of the paper, not the network.

    Args:
        levels: Along z, and how many.
        channels: Of the image.

    Source: Liu et al. 2022, arXiv:2201.03545; widths and blocks of timm's nano.
    """

    classifier = ("head.",)

    def __init__(self, levels: Levels, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            convolution(levels, 2, channels, WIDTHS[0], 4, halvings=2, bias=True),
            ChannelNorm(WIDTHS[0]),
        )
        stages = []
        for stage in range(min(len(WIDTHS), len(levels.steps) - 2)):
            level, width = stage + 2, WIDTHS[stage]
            parts: OrderedDict[str, nn.Module] = OrderedDict()
            if stage > 0:
                before = WIDTHS[stage - 1]
                shrink = convolution(levels, level, before, width, 2, halvings=1, bias=True)
                parts["downsample"] = nn.Sequential(ChannelNorm(before), shrink)
            blocks = (ConvNeXtBlock(levels, level, width) for _ in range(BLOCKS[stage]))
            parts["blocks"] = nn.Sequential(*blocks)
            stages.append(nn.Sequential(parts))
        self.stages = nn.ModuleList(stages)
        self.apply(_initialize)

    def forward(self, image: Tensor) -> list[Tensor]:  # noqa: D102
        x = self.stem(image)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution of 7, norm, expansion, GELU, compression, scale; the input is added."""

    def __init__(self, levels: Levels, level: int, width: int) -> None:
        super().__init__()
        self.conv_dw = convolution(levels, level, width, width, KERNEL, groups=width, bias=True)
        self.norm = ChannelNorm(width)
        self.mlp = ChannelMlp(levels, width)
        self.gamma = nn.Parameter(torch.full((width,), FIRST_SCALE))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        scale = self.gamma.reshape(1, -1, *(1,) * (x.ndim - 2))
        return x + self.mlp(self.norm(self.conv_dw(x))) * scale  # type: ignore[no-any-return]


class ChannelNorm(nn.LayerNorm):
    """Each voxel's channels scaled to zero mean and unit deviation, then by learned numbers."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        last = x.ndim - 1  # counted from the front, as the export to ONNX needs it
        return super().forward(x.movedim(1, last)).movedim(last, 1)


class ChannelMlp(nn.Module):
    """Each voxel's channels expanded, through a GELU, and compressed to as many as before."""

    def __init__(self, levels: Levels, width: int) -> None:
        super().__init__()
        self.fc1 = convolution(levels, 0, width, EXPANSION * width, 1, bias=True)
        self.act = nn.GELU()
        self.fc2 = convolution(levels, 0, EXPANSION * width, width, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=DEVIATION)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


convnext_nano = ConvNeXt
