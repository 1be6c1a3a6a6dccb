"""EfficientNetV2-S as an encoder, as it was published: padded and normalized as TensorFlow does."""

import math

from torch import Tensor, nn
from torch.nn import functional

from nnseg.model.counts.efficientnet import STAGES, STEM, Stage
from nnseg.networks.inflation import Backbone, Levels, SqueezeExcite, batch_norm, convolution

EPS = 1e-3  # of the batch norms that its weights were trained with
GATES = ("conv_reduce", "conv_expand")  # the convolutions of a block's gates, in timm
SQUEEZED = 4  # channels of a block's input that one of those that decide on the gates stands for


class EfficientNetV2S(Backbone):
    """A stem and six stages: convolutions at first, separable ones in the deeper half.

    Levels 1 to 5 are the maps of stages 0, 1, 2, 4 and 5. Strided convolutions have their row of
    zeros after the image only, as the published weights were trained with. Weights begin
    He-normal by their outputs.

    Args:
        levels: Along z, and how many.
        channels: Of the image.

    Source: Tan & Le 2021, arXiv:2104.00298.
    """

    classifier = ("conv_head.", "bn2.", "classifier.")

    def __init__(self, levels: Levels, channels: int) -> None:
        super().__init__()
        self.conv_stem = _convolution(levels, 1, channels, STEM, 3, halvings=1)
        self.bn1 = batch_norm(levels, STEM, eps=EPS)
        stages = [stage for stage in STAGES if stage.level < len(levels.steps)]
        self.ends = [  # whether the next stage begins a level
            number + 1 == len(stages) or stages[number + 1].halves for number in range(len(stages))
        ]
        rows, before = [], STEM
        for stage in stages:
            blocks = []
            for number in range(stage.blocks):
                halvings = int(stage.halves and number == 0)
                blocks.append(_block(levels, stage, before, halvings))
                before = stage.width
            rows.append(nn.Sequential(*blocks))
        self.blocks = nn.ModuleList(rows)
        self.apply(_initialize)

    def forward(self, image: Tensor) -> list[Tensor]:  # noqa: D102
        x = functional.silu(self.bn1(self.conv_stem(image)))
        maps = []
        for stage, ends in zip(self.blocks, self.ends, strict=True):
            x = stage(x)
            if ends:
                maps.append(x)
        return maps


class SingleConvolution(nn.Module):
    """Convolution, norm and activation beside a shortcut."""

    def __init__(self, levels: Levels, stage: Stage, before: int, halvings: int) -> None:
        super().__init__()
        self.conv = _convolution(levels, stage.level, before, stage.width, 3, halvings=halvings)
        self.bn1 = batch_norm(levels, stage.width, eps=EPS)
        self.adds = not halvings and before == stage.width

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = functional.silu(self.bn1(self.conv(x)))
        return y + x if self.adds else y


class FusedBlock(nn.Module):
    """A convolution to more channels and one back point by point, beside a shortcut."""

    def __init__(self, levels: Levels, stage: Stage, before: int, halvings: int) -> None:
        super().__init__()
        level, inner = stage.level, before * stage.expansion
        self.conv_exp = _convolution(levels, level, before, inner, 3, halvings=halvings)
        self.bn1 = batch_norm(levels, inner, eps=EPS)
        self.conv_pwl = convolution(levels, level, inner, stage.width, 1)
        self.bn2 = batch_norm(levels, stage.width, eps=EPS)
        self.adds = not halvings and before == stage.width

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = functional.silu(self.bn1(self.conv_exp(x)))
        result: Tensor = self.bn2(self.conv_pwl(y))
        return result.add_(x) if self.adds else result


class SeparableBlock(nn.Module):
    """To more channels point by point, a convolution of each, gates, and back, beside a shortcut.

    Source: Sandler et al. 2018, arXiv:1801.04381; Tan & Le 2019, arXiv:1905.11946.
    """

    def __init__(self, levels: Levels, stage: Stage, before: int, halvings: int) -> None:
        super().__init__()
        level, inner = stage.level, before * stage.expansion
        self.conv_pw = convolution(levels, level - halvings, before, inner, 1)
        self.bn1 = batch_norm(levels, inner, eps=EPS)
        self.conv_dw = _convolution(levels, level, inner, inner, 3, halvings=halvings, groups=inner)
        self.bn2 = batch_norm(levels, inner, eps=EPS)
        self.se = SqueezeExcite(levels, inner, before // SQUEEZED, nn.SiLU, GATES)
        self.conv_pwl = convolution(levels, level, inner, stage.width, 1)
        self.bn3 = batch_norm(levels, stage.width, eps=EPS)
        self.adds = not halvings and before == stage.width

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = functional.silu(self.bn1(self.conv_pw(x)))
        y = functional.silu(self.bn2(self.conv_dw(y)))
        result: Tensor = self.bn3(self.conv_pwl(self.se(y)))
        return result.add_(x) if self.adds else result


def _convolution(
    levels: Levels,
    level: int,
    inputs: int,
    width: int,
    edge: int,
    *,
    halvings: int = 0,
    groups: int = 1,
) -> nn.Module:
    """Make a convolution that pads as TensorFlow does."""
    return convolution(
        levels, level, inputs, width, edge, halvings=halvings, groups=groups, padding="same"
    )


def _block(levels: Levels, stage: Stage, before: int, halvings: int) -> nn.Module:
    if stage.expansion == 1:
        return SingleConvolution(levels, stage, before, halvings)
    kind = SeparableBlock if stage.separable else FusedBlock
    return kind(levels, stage, before, halvings)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        outputs = module.out_channels * math.prod(module.kernel_size) // module.groups
        nn.init.normal_(module.weight, 0, math.sqrt(2 / outputs))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
