"""The layers of image backbones in two dimensions, and the same in three.

In three dimensions a kernel of an image network goes through several planes: its weights are
repeated along z and divided by their number. What lies beyond the first and last plane is taken to
be like it, so that on an image that is constant along z each layer gives what its 2D one does, to
the last plane. Beyond the edges in the plane it is as the image network has it.

Source: Carreira & Zisserman 2017, arXiv:1705.07750, two-stream inflated networks. There kernels
become cubes, and zeros lie beyond the edges along z, which makes the outer planes differ.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnseg.model.architecture import Architecture
from nnseg.model.blocks import Convolution3d
from nnseg.networks.layers import BATCH_NORM


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """The resolutions that a backbone works at; level 0 is the image's.

    In the plane each level has half the resolution of the one above it.
    """

    dimensions: Literal[2, 3]
    depths: tuple[int, ...]  # planes that an inflated kernel sees at each level; 1 in 2D
    steps: tuple[int, ...]  # the stride along z that leads to each level; 1 in 2D

    def depth(self, level: int, edge: int) -> int:
        """Give the planes that a kernel of so many voxels in the plane sees at a level."""
        return min(edge, self.depths[level])

    def step(self, level: int, halvings: int) -> int:
        """Give the stride along z of a layer that leads to a level over so many halvings."""
        step = 1
        for passed in range(level - halvings + 1, level + 1):
            step *= self.steps[passed]
        return step


def levels_of(architecture: Architecture) -> Levels:
    """Give what an architecture has its backbone do: its levels, and their kernels along z."""
    return Levels(
        dimensions=architecture.dimensions,
        depths=tuple(kernel[0] for kernel in architecture.kernel_sizes),
        steps=tuple(stride[0] for stride in architecture.strides),
    )


def flat_levels(count: int) -> Levels:
    """Give so many levels of an image, as the backbone was published."""
    return Levels(dimensions=2, depths=(1,) * count, steps=(1,) * count)


class Backbone(nn.Module):
    """An image network without its classifier: maps of an image at levels of half the resolution.

    It is built as `(levels: Levels, channels: int)`, has the parameter names of timm, and nothing
    deeper than the levels' last. It ends with its last map.
    """

    classifier: ClassVar[tuple[str, ...]] = ()  # what names begin with in timm that are not here

    def forward(self, image: Tensor) -> list[Tensor]:
        """Give the last map of each level from 1 on, the finest first.

        A level without a map of its own, such as the one that a patch of 4 x 4 passes over, is left
        out; the `features` of its record are 0 there.

        Args:
            image: (batch, channel, [z,] y, x), divisible by the strides of the levels.
        """
        raise NotImplementedError

    def name_in_timm(self, name: str) -> str:
        """Give a parameter's name in a file of timm's."""
        return name

    def adapt(self, name: str, weight: Tensor) -> Tensor:
        """Turn a parameter of the image network, of three channels, into this one's of that name.

        Kernels are inflated; the first convolution is brought to the number of channels in
        `timm_weights`. A backbone whose parameters depend on more than that has a rule of its own.

        Args:
            name: A name of the state dict of both.
            weight: As the image network has it.
        """
        own = self.state_dict()[name]
        if own.ndim == weight.ndim + 1:
            return inflate(weight, own.shape[2])
        return weight


def inflate(weight: Tensor, depth: int) -> Tensor:
    """Repeat a 2D kernel (output, input, y, x) along z and divide it by the number of planes."""
    return (weight / depth).unsqueeze(2).repeat(1, 1, depth, 1, 1)


class PlanarConv(nn.Conv2d):
    """A strided convolution padded as TensorFlow does: more after the last row than before it.

    The image's edges must be divisible by the stride.
    """

    def forward(self, image: Tensor) -> Tensor:  # noqa: D102
        missing = self.kernel_size[0] - self.stride[0]
        before, after = missing // 2, missing - missing // 2
        return super().forward(functional.pad(image, (before, after, before, after)))


class InflatedConv(Convolution3d):
    """A convolution that sees the outer planes repeated beyond them.

    Args:
        after: Rows and columns of zeros beyond the last, where they are more than `padding`.
    """

    def __init__(self, *args: object, after: int = 0, **settings: object) -> None:
        super().__init__(*args, **settings)  # type: ignore[arg-type]
        self.after = after

    def forward(self, image: Tensor) -> Tensor:  # noqa: D102
        beyond = self.kernel_size[0] // 2 if self.kernel_size[0] % 2 else 0
        if beyond:
            first, last = image[:, :, :1], image[:, :, -1:]
            image = torch.cat([first] * beyond + [image] + [last] * beyond, dim=2)
        if self.after:
            image = functional.pad(image, (0, self.after, 0, self.after))
        return super().forward(image)


def convolution(
    levels: Levels,
    level: int,
    inputs: int,
    width: int,
    edge: int,
    *,
    halvings: int = 0,
    groups: int = 1,
    bias: bool = False,
    padding: Literal["centred", "same"] = "centred",
) -> nn.Module:
    """Make a convolution whose parameters are those of the image network's, or inflated ones.

    A kernel as wide as its stride covers the image once without padding, along z, too. Any other
    sees as many planes as the level's kernels do, but not more than rows.

    Args:
        levels: Of the backbone.
        level: Whose resolution the result has.
        inputs: Channels.
        width: Channels of the result.
        edge: Of the kernel in the plane.
        halvings: How often it halves the resolution: 1 is a stride of 2, 2 a stride of 4.
        groups: Of channels.
        bias: Whether it adds one.
        padding: "centred" pads alike before and after, as PyTorch does; "same" as TensorFlow does.
    """
    stride = 2**halvings
    covers = edge == stride and edge > 1
    before = after = 0 if covers else edge // 2
    if padding == "same" and not covers:
        before, after = (edge - stride) // 2, edge - stride - (edge - stride) // 2
    if levels.dimensions == 2:
        kind = nn.Conv2d if before == after else PlanarConv
        pad = before if before == after else 0
        return kind(inputs, width, edge, stride, pad, groups=groups, bias=bias)
    step = levels.step(level, halvings)
    depth = step if covers else levels.depth(level, edge)
    return InflatedConv(
        inputs,
        width,
        (depth, edge, edge),
        stride=(step, stride, stride),
        padding=(0, before, before),
        groups=groups,
        bias=bias,
        after=after - before,
    )


def batch_norm(levels: Levels, width: int, *, eps: float = 1e-5) -> nn.Module:
    """Make a batch norm of an image network."""
    return BATCH_NORM[levels.dimensions](width, eps=eps)


def max_pool(levels: Levels, level: int) -> nn.Module:
    """Make the maximum over 3 voxels each way that leads to a level; along z if it halves that."""
    if levels.dimensions == 2:
        return nn.MaxPool2d(3, 2, padding=1)
    halves = levels.steps[level] == 2
    return nn.MaxPool3d(
        (3 if halves else 1, 3, 3), (levels.steps[level], 2, 2), padding=(int(halves), 1, 1)
    )


def average_pool(levels: Levels, level: int) -> nn.Module:
    """Make the mean over 2 voxels each way that leads to a level; along z if it halves that."""
    if levels.dimensions == 2:
        return nn.AvgPool2d(2, 2)
    step = levels.steps[level]
    return nn.AvgPool3d((step, 2, 2), (step, 2, 2))


class SqueezeExcite(nn.Sequential):
    """Channels weighed by gates between 0 and 1 that their means over the image decide on.

    Args:
        levels: Of the backbone.
        width: Channels.
        squeezed: Channels between those means and the gates.
        activation: Builds what follows the first of its two convolutions.
        names: Of the two, as timm has them.

    Source: Hu et al. 2018, arXiv:1709.01507.
    """

    def __init__(
        self,
        levels: Levels,
        width: int,
        squeezed: int,
        activation: Callable[[], nn.Module],
        names: tuple[str, str] = ("fc1", "fc2"),
    ) -> None:
        reduce, expand = names
        layers = {
            reduce: convolution(levels, 0, width, squeezed, 1, bias=True),
            "activation": activation(),
            expand: convolution(levels, 0, squeezed, width, 1, bias=True),
        }
        super().__init__(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        means = x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
        return x * torch.sigmoid(super().forward(means))  # type: ignore[no-untyped-call]
