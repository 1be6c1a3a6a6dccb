"""Bring the intensities of one channel to the scale that a network expects.

`NORMALIZERS` names the ways; `normalizer_for_channel` says which one the name of a channel asks
for. They are those of nnU-Net, Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, and compute
in float32 as it does. Each changes the channel in its place: a copy of a large one is dear.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Mask
from nnseg.errors import DataError
from nnseg.image.intensity import Intensity
from nnseg.registry import Registry

Channel: TypeAlias = NDArray[np.float32]  # one channel, (z, y, x)
Normalizer: TypeAlias = Callable[[Channel, Intensity, Mask | None], None]

FLOOR = 1e-8  # what we divide by is never less, so that a constant channel becomes 0
RGB_MAX = 255
_SUMMED_AT_ONCE = 2**18  # values; few enough for float32 to add, and for the cache


def zscore(channel: Channel, intensity: Intensity, mask: Mask | None) -> None:
    """Scale to zero mean and unit deviation, over the whole channel or over `mask`.

    Voxels outside the mask stay as they are: they are 0 already.
    """
    inside: Channel = channel if mask is None else channel[mask]
    if inside.size == 0:
        return
    inside -= inside.mean()
    inside /= max(_root_mean_square(inside), FLOOR)
    if mask is not None:
        channel[mask] = inside


def ct(channel: Channel, intensity: Intensity, mask: Mask | None) -> None:
    """Clip to the dataset's 0.5 to 99.5 percentile range, then scale by its mean and deviation.

    Hounsfield units mean the same in every image, so one scale for all keeps what they say.
    """
    np.clip(channel, intensity.percentile_00_5, intensity.percentile_99_5, out=channel)
    channel -= intensity.mean
    channel /= max(intensity.std, FLOOR)


def none(channel: Channel, intensity: Intensity, mask: Mask | None) -> None:
    """Leave the values as they are."""


def rescale_to_0_1(channel: Channel, intensity: Intensity, mask: Mask | None) -> None:
    """Map the smallest value of the channel to 0 and the largest to 1."""
    channel -= channel.min()
    channel /= max(channel.max(), FLOOR)


def rgb_to_0_1(channel: Channel, intensity: Intensity, mask: Mask | None) -> None:
    """Map 0 to 255, the range of 8-bit colours, to 0 to 1.

    Raises:
        DataError: A value is outside 0 to 255.
    """
    low, high = float(channel.min()), float(channel.max())
    if low < 0 or high > RGB_MAX:
        raise DataError(
            f"a channel normalized by rgb_to_0_1 has values from {low:g} to {high:g}; they must "
            f"lie in 0 to {RGB_MAX}; give the channel another name in channel_names"
        )
    channel /= np.float32(RGB_MAX)


NORMALIZERS = Registry[Normalizer](
    "normalizer",
    zscore=zscore,
    ct=ct,
    none=none,
    rescale_to_0_1=rescale_to_0_1,
    rgb_to_0_1=rgb_to_0_1,
)

HONOURS_MASK = frozenset({"zscore"})  # the others never look at their mask

_BY_CHANNEL_NAME = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_to_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
}


def normalizer_for_channel(name: str) -> str:
    """Give the normalizer that a channel's name in dataset.json asks for; most get zscore.

    >>> normalizer_for_channel("CT"), normalizer_for_channel("noNorm"), normalizer_for_channel("T1")
    ('ct', 'none', 'zscore')
    """
    return _BY_CHANNEL_NAME.get(name.casefold(), "zscore")


def _root_mean_square(values: Channel) -> float:
    """Give what numpy's deviation of centred values is, without a second array of their size."""
    flat = values.reshape(-1)
    parts = (
        np.square(flat[start : start + _SUMMED_AT_ONCE]).sum(dtype=np.float32)
        for start in range(0, flat.size, _SUMMED_AT_ONCE)
    )
    return math.sqrt(math.fsum(map(float, parts)) / flat.size)
