"""What single layers keep from the forward to the backward pass, in numbers of 4 bytes.

A convolution keeps what it is given, a norm too, and a ReLU in place what it gives. Each function
here counts what a layer adds to what was kept before it, and counts its result where a convolution
follows, as one always does.
"""

import math

from nnseg.axes import Shape
from nnseg.model.architecture import Architecture, Upsampling, level_shapes


def level_voxels(architecture: Architecture, patch: Shape) -> list[int]:
    """Give the voxels of one feature map at each level, for a patch (z, y, x)."""
    return [math.prod(shape) for shape in level_shapes(patch, architecture.strides)]


def conv_norm_act(width: int, voxels: int, *, norm: bool = True) -> int:
    """Count a convolution to `width` maps of so many voxels, its norm and its activation.

    The norm keeps what the convolution gives. Without one the activation overwrites that.
    """
    return (2 if norm else 1) * width * voxels


def convolved(architecture: Architecture, width: int, voxels: int) -> int:
    """Count a convolution, its norm, its activation and its dropout, which makes a copy."""
    copied = width * voxels if architecture.options.dropout else 0
    return conv_norm_act(width, voxels) + copied


def pooled(architecture: Architecture, level: int, width: int, voxels: int) -> int:
    """Count the max pooling of `width` maps to a level of so many voxels: maximum and 8-byte place.

    Where the level has the resolution of the one above, nothing is pooled and nothing added.
    """
    return 3 * width * voxels if max(architecture.strides[level]) > 1 else 0


def upsampled(kind: Upsampling, inputs: int, voxels: int) -> int:
    """Count an upsampling of `inputs` maps to so many voxels, without its result.

    Only interpolation has a convolution at the finer resolution; the others keep what they get.
    """
    return inputs * voxels if kind == "interpolated" else 0
