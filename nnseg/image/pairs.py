"""How often each pair of values meets in two arrays: the one pass that all overlap scores need."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import smallest_integer_type

SLAB_VOXELS = 2**20  # counted at once: what is made of them stays in the cache of a CPU
_WORD = np.dtype(np.uint64)  # voxels are looked at eight bytes at a time


def count_pairs(
    first: NDArray[np.integer[Any]], second: NDArray[np.integer[Any]], size: int
) -> NDArray[np.int64]:
    """Count the places of each pair of values of two arrays, (value of first, value of second).

    Most of a label map is background, and most of the rest lies inside one label. So both arrays
    are looked at a word of several voxels at a time; words without any label are counted by their
    number alone, words of one value by one entry, and only the others voxel by voxel.

    Args:
        first: Values from 0 to `size` - 1, of any shape.
        second: Likewise, of the same shape.
        size: How many values there are; the table has a row and a column for each.
    """
    kind = smallest_integer_type(size - 1)
    table = np.zeros(size * size, dtype=np.int64)
    one, other = first.reshape(-1), second.reshape(-1)
    for start in range(0, one.size, SLAB_VOXELS):
        stop = start + SLAB_VOXELS
        a = np.ascontiguousarray(one[start:stop], dtype=kind)
        b = np.ascontiguousarray(other[start:stop], dtype=kind)
        _add_pairs(table, a, b, size)
    return table.reshape(size, size)


def _add_pairs(
    table: NDArray[np.int64], first: NDArray[Any], second: NDArray[Any], size: int
) -> None:
    """Add the pairs of two flat arrays of one type to a flat table."""
    together = _WORD.itemsize // first.itemsize  # voxels of a word
    whole = first.size // together * together
    words, others = first[:whole].view(_WORD), second[:whole].view(_WORD)
    busy = np.flatnonzero(words | others)
    table[0] += together * (words.size - busy.size)
    words, others = words[busy], others[busy]
    plain = _is_plain(words, first.itemsize) & _is_plain(others, first.itemsize)
    mask = np.uint64((1 << 8 * first.itemsize) - 1)
    pairs = (words[plain] & mask) * np.uint64(size) + (others[plain] & mask)
    table += together * np.bincount(pairs.view(np.int64), minlength=table.size)
    mixed = ~plain
    for a, b in (
        (words[mixed].view(first.dtype), others[mixed].view(first.dtype)),
        (first[whole:], second[whole:]),
    ):
        table += np.bincount(a.astype(np.int64) * size + b, minlength=table.size)


def _is_plain(words: NDArray[np.uint64], itemsize: int) -> NDArray[np.bool_]:
    """Say of each word whether its voxels are all alike: it stays the same when it is turned."""
    bits = np.uint64(8 * itemsize)
    turned = (words << bits) | (words >> (np.uint64(64) - bits))
    return np.asarray(words == turned)
