"""What a network is, as a record: enough to build it and to count its memory, without torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

from nnseg.axes import Shape
from nnseg.errors import PlanError
from nnseg.registry import Registry

# No network that anybody trains is larger; a plan from elsewhere must not ask for one.
MOST_LEVELS = 12
MOST_FEATURES = 4096
MOST_BLOCKS = 64
KERNEL_EDGES = (1, 3, 5, 7)

Dimensions: TypeAlias = Literal[2, 3]
Upsampling: TypeAlias = Literal["transposed", "interpolated", "shuffled"]
Norm: TypeAlias = Literal["instance", "batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """What a user may choose of a network; None is as its paper has it."""

    upsampling: Upsampling | None = None  # how the decoder gets to the next resolution
    norm: Norm | None = None
    dropout: float | None = None  # the probability with which a feature map is dropped
    backbone: str | None = None  # the image network that an encoder is

    def __post_init__(self) -> None:
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise PlanError(f"dropout is {self.dropout:g}; it must be 0 or more, and less than 1")

    @property
    def chosen(self) -> dict[str, str | float]:
        """The options that are not as the paper has them, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


NO_OPTIONS = NetworkOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A network of a plan. Per-axis values are (z, y, x) in plan order.

    Level 0 has the patch's resolution; `strides[k]` leads from level k - 1 to level k, so
    `strides[0]` is (1, 1, 1). A 2D network has z extents of 1 throughout. What a block is, the
    network's own description says.
    """

    network: str  # a name of NETWORKS
    dimensions: Dimensions
    features: tuple[int, ...]  # channels at each level
    kernel_sizes: tuple[Shape, ...]
    strides: tuple[Shape, ...]
    encoder_blocks: tuple[int, ...]  # at each level: convolutions of plain, residual blocks else
    decoder_blocks: tuple[int, ...]  # at each level but the deepest, from level 0
    options: NetworkOptions = NO_OPTIONS

    def __post_init__(self) -> None:
        levels = len(self.features)
        if not 1 <= levels <= MOST_LEVELS:
            raise PlanError(f"features has {levels} levels; it must have 1 to {MOST_LEVELS}")
        lengths = {
            "kernel_sizes": (len(self.kernel_sizes), levels),
            "strides": (len(self.strides), levels),
            "encoder_blocks": (len(self.encoder_blocks), levels),
            "decoder_blocks": (len(self.decoder_blocks), levels - 1),
        }
        for name, (found, wanted) in lengths.items():
            if found != wanted:
                raise PlanError(f"{name} has {found} entries; {levels} levels need {wanted}")
        for name, numbers, most in (
            ("features", self.features, MOST_FEATURES),
            ("encoder_blocks", self.encoder_blocks, MOST_BLOCKS),
            ("decoder_blocks", self.decoder_blocks, MOST_BLOCKS),
        ):
            if not all(1 <= number <= most for number in numbers):
                raise PlanError(f"{name} is {numbers}; each must be 1 to {most}")
        if any(edge not in KERNEL_EDGES for kernel in self.kernel_sizes for edge in kernel):
            raise PlanError(f"kernel_sizes is {self.kernel_sizes}; each must be odd, 1 to 7")
        if any(step < 1 for stride in self.strides for step in stride):
            raise PlanError(f"strides is {self.strides}; each must be at least 1")

    @property
    def levels(self) -> int:
        """Number of resolutions, the deepest included."""
        return len(self.features)

    @property
    def called(self) -> str:
        """The network's name, and its options where there are any, for people."""
        chosen = ", ".join(f"{name} {value}" for name, value in self.options.chosen.items())
        return f"{self.network} ({chosen})" if chosen else self.network

    @property
    def divisor(self) -> Shape:
        """What each axis of a patch must be divisible by: the product of the strides."""
        z = y = x = 1
        for stride in self.strides:
            z, y, x = z * stride[0], y * stride[1], x * stride[2]
        return z, y, x


def level_shapes(patch_size: Shape, strides: Sequence[Shape]) -> tuple[Shape, ...]:
    """Give the shape (z, y, x) of the feature maps at each level of a network.

    >>> level_shapes((6, 32, 24), ((1, 1, 1), (1, 2, 2), (2, 2, 2)))
    ((6, 32, 24), (6, 16, 12), (3, 8, 6))
    """
    shapes = []
    z, y, x = patch_size
    for stride in strides:
        z, y, x = z // stride[0], y // stride[1], x // stride[2]
        shapes.append((z, y, x))
    return tuple(shapes)


def plain_encoder_elements(architecture: Architecture, voxels: Sequence[int]) -> int:
    """Count what the convolutions of a plain encoder put out, for `voxels` at each level."""
    levels = zip(architecture.encoder_blocks, architecture.features, voxels, strict=True)
    return sum(blocks * features * size for blocks, features, size in levels)


def resenc_encoder_elements(architecture: Architecture, voxels: Sequence[int]) -> int:
    """Count what the convolutions of a residual encoder put out, for `voxels` at each level.

    A stem comes first; a block has two convolutions, and a third beside them where it changes the
    number of channels or the resolution.
    """
    features = architecture.features
    total = features[0] * voxels[0]
    before = features[0]
    levels = zip(architecture.encoder_blocks, features, voxels, architecture.strides, strict=True)
    for blocks, channels, size, stride in levels:
        changes = channels != before or max(stride) > 1
        total += (2 * blocks + changes) * channels * size
        before = channels
    return total


EncoderElements = Callable[[Architecture, Sequence[int]], int]

ENCODER_ELEMENTS = Registry[EncoderElements](
    "network with a memory count", plain=plain_encoder_elements, resenc=resenc_encoder_elements
)


def count_elements(architecture: Architecture, patch_size: Shape, outputs: int) -> int:
    """Count the elements of all feature maps of one patch: what training memory grows with.

    Kernel sizes, input channels and the heads of deep supervision do not count.

    Args:
        architecture: Any whose network is in ENCODER_ELEMENTS.
        patch_size: Voxels, (z, y, x); z is 1 for a 2D network.
        outputs: Channels of the segmentation layer at full resolution.

    Raises:
        PlanError: The network has no memory count.

    Source: nnU-Net v2, dynamic_network_architectures, compute_conv_feature_map_size.
    """
    voxels = [math.prod(shape) for shape in level_shapes(patch_size, architecture.strides)]
    encoder = ENCODER_ELEMENTS[architecture.network](architecture, voxels)
    upwards = zip(architecture.decoder_blocks, architecture.features, voxels, strict=False)
    decoder = sum((blocks + 1) * features * size for blocks, features, size in upwards)
    heads = outputs * voxels[0] if architecture.levels > 1 else 0  # they sit on decoder levels
    return encoder + decoder + heads
