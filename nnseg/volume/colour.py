"""The channels of a file that may hold several: colours, and alpha that is none of them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnseg.errors import DataError


def pick_channels(
    path: Path, array: NDArray[Any], count: int | None, *, alpha: bool
) -> NDArray[Any]:
    """Give the `count` channels of (channel, z, y, x) values; None takes what there is.

    Alpha, the last channel, is one like the others where it is counted. Where it is not, it must
    be opaque throughout and is left out.

    Raises:
        DataError: The file holds another number of channels, or is transparent somewhere.
    """
    found = len(array)
    if count is None or count == found:
        return array
    if not alpha or count != found - 1:
        raise DataError(
            f"{path}: holds {found} value{'s' * (found > 1)} a pixel where {count} should be; save "
            f"it with {count}, or name its channels in dataset.json"
        )
    opaque = np.iinfo(array.dtype).max if array.dtype.kind in "iu" else 1
    clear = int(np.count_nonzero(array[-1] != opaque))
    if clear:
        raise DataError(
            f"{path}: {clear} pixels are not opaque; flatten it, or name alpha as a channel of its "
            "own in dataset.json"
        )
    return array[:-1]
