"""What image backbones are, without torch: their widths, and what their training keeps."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from nnseg.axes import Shape

TIMM = "timm:"  # what the name of a backbone that timm itself builds begins with


@dataclass(frozen=True, slots=True, kw_only=True)
class Maps:
    """The feature maps of one patch at each level, and how kernels and strides lie along z."""

    shapes: tuple[Shape, ...]  # voxels of each level, (z, y, x)
    depths: tuple[int, ...]  # planes that an inflated kernel sees at each level; 1 in 2D
    steps: tuple[int, ...]  # the stride along z that leads to each level; 1 in 2D

    @property
    def levels(self) -> int:
        """Number of resolutions, the patch's included."""
        return len(self.shapes)

    def voxels(self, level: int) -> int:
        """Voxels of a level."""
        return math.prod(self.shapes[level])

    def copied(self, level: int, edge: int, *, halvings: int = 0, uneven: bool = False) -> int:
        """Voxels of the copy of its input that a convolution makes, 0 where it makes none.

        In 3D it repeats the outer planes in it.

        Args:
            level: That it leads to.
            edge: Of its kernel in the plane.
            halvings: How often it halves the resolution.
            uneven: Whether it pads one row more after the last than before the first.
        """
        z, y, x = self.shapes[level - halvings]
        covers = edge == 2**halvings
        beyond = 0 if covers else min(edge, self.depths[level]) // 2
        if not beyond and not uneven:
            return 0
        return (z + 2 * beyond) * (y + uneven) * (x + uneven)


Kept = Callable[[Maps, int], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneRecord:
    """An image network that can be an encoder."""

    title: str
    source: str
    features: tuple[int, ...]  # channels of its map at levels 1, 2, ...; 0 where it has none
    kept: Kept  # elements of one patch that its training keeps, by maps and input channels
