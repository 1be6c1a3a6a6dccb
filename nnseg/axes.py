"""Axis order and array types: the one convention, in one place.

An image is (channel, z, y, x) and a label map (z, y, x); spacing is mm per voxel, (z, y, x).
*Image order* is the z, y, x of the file. *Plan order* puts the coarsest axis of the dataset first;
`permute` goes there and, with `inverse_order`, comes back.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

Shape: TypeAlias = tuple[int, int, int]  # voxels, (z, y, x)
Spacing: TypeAlias = tuple[float, float, float]  # mm per voxel, (z, y, x)
Order: TypeAlias = tuple[int, int, int]  # a permutation of the three axes
Box: TypeAlias = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # start, stop per axis

Image: TypeAlias = NDArray[np.float32]  # (channel, z, y, x)
Mask: TypeAlias = NDArray[np.bool_]  # (z, y, x)
Segmentation: TypeAlias = NDArray[np.integer[Any]]  # (z, y, x)
Planes: TypeAlias = NDArray[np.float32]  # (z, y, x, head): logits or probabilities of some planes


def inverse_order(order: Order) -> Order:
    """Give the permutation that undoes `order`.

    >>> inverse_order((2, 0, 1))
    (1, 2, 0)
    """
    back = sorted(range(3), key=lambda axis: order[axis])
    return cast(Order, tuple(back))


def permute(values: Sequence[T], order: Order) -> tuple[T, T, T]:
    """Reorder three per-axis values: the result's axis i is the input's axis `order[i]`.

    >>> permute((5.0, 0.8, 0.7), (2, 0, 1))
    (0.7, 5.0, 0.8)
    """
    return values[order[0]], values[order[1]], values[order[2]]


def three(values: Sequence[T]) -> tuple[T, T, T]:
    """Give per-axis values as a tuple; ValueError where they are not three.

    >>> three([20, 320, 256])
    (20, 320, 256)
    """
    z, y, x = values
    return z, y, x


def by(values: Sequence[float | None]) -> str:
    """Give per-axis values for a message, to five digits; None is a dash.

    >>> by((None, 0.78125, 512)), by((2.575, 1.32234, 1.32234))
    ('- x 0.78125 x 512', '2.575 x 1.3223 x 1.3223')
    """
    return " x ".join("-" if value is None else f"{value:.5g}" for value in values)


def box_slices(box: Box) -> tuple[slice, slice, slice]:
    """Give the index that cuts `box` out of a (z, y, x) array."""
    (z0, z1), (y0, y1), (x0, x1) = box
    return slice(z0, z1), slice(y0, y1), slice(x0, x1)


def smallest_integer_type(largest: int) -> "np.dtype[Any]":
    """Give the smallest unsigned type that holds 0 to `largest`.

    >>> smallest_integer_type(255), smallest_integer_type(256)
    (dtype('uint8'), dtype('uint16'))
    """
    return np.min_scalar_type(max(largest, 0))
