"""Foreground intensities of one channel: measured case by case, pooled over the dataset.

`measure` keeps what pooling needs of a case, in a size that doesn't grow with the image, and
`pool` makes of many cases the few numbers that normalization uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_VALUES = 65536  # a case's distribution is kept as at most so many values; holds any 16-bit scan
MIN_VALUES = 2048  # however many cases there are
ALL_VALUES = 2**22  # of all cases and channels together; 12 bytes each
_COUNTED_AT_ONCE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensity:
    """The foreground intensities of one channel over a dataset, in the image's own unit."""

    mean: float
    median: float
    std: float  # of the population
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CaseIntensity:
    """The foreground intensities of one channel of one case.

    `values` and `weights` give their distribution: exactly, as a histogram, or, where there are
    more different values than are kept, by as many evenly spaced order statistics.
    """

    values: NDArray[np.float32]  # ascending; empty for a case without foreground
    weights: NDArray[np.int64]  # how many voxels each value stands for
    mean: float
    std: float  # of the population; unlike a mean of squares it keeps its digits far from 0
    min: float
    max: float


def values_kept(cases: int, channels: int) -> int:
    """Give how many values of a case's channel to keep, so that all together stay within bounds.

    >>> values_kept(20, 1), values_kept(200, 4), values_kept(10_000, 4)
    (65536, 5242, 2048)
    """
    return max(MIN_VALUES, min(MAX_VALUES, ALL_VALUES // max(1, cases * channels)))


def measure(values: NDArray[Any], most: int = MAX_VALUES) -> CaseIntensity:
    """Summarize the foreground voxels of one channel of one case.

    Args:
        values: 1-D, finite, in any order, of any real type; float32 is what is looked at.
        most: As many values are kept; see `values_kept`.
    """
    if values.size == 0:
        empty = np.empty(0, dtype=np.float32)
        return CaseIntensity(
            values=empty, weights=np.empty(0, dtype=np.int64), mean=0.0, std=0.0, min=0.0, max=0.0
        )
    kept, weights = _distribution(values, most)
    if kept.size < most:  # then it is exact, and there is less to go over
        exact = kept.astype(np.float64)
        mean = float((exact * weights).sum() / values.size)
        std = float(np.sqrt((np.square(exact - mean) * weights).sum() / values.size))
    else:
        mean = float(values.mean(dtype=np.float64))
        std = float(values.std(dtype=np.float64))
    return CaseIntensity(
        values=kept,
        weights=weights,
        mean=mean,
        std=std,
        min=float(np.float32(values.min())),
        max=float(np.float32(values.max())),
    )


def pool(cases: Sequence[CaseIntensity]) -> Intensity:
    """Describe the foreground of a dataset, in which every case weighs the same.

    A case with a large foreground thus doesn't outvote the others. A case without foreground is
    passed over; if no case has any, every number is 0.

    Source: nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z), which draws equally
    many voxels at random from every case; we take the limit of infinitely many draws, without
    the chance.
    """
    cases = [case for case in cases if case.values.size > 0]
    if not cases:
        return Intensity(
            mean=0.0,
            median=0.0,
            std=0.0,
            min=0.0,
            max=0.0,
            percentile_00_5=0.0,
            percentile_99_5=0.0,
        )
    means = np.array([case.mean for case in cases])
    deviations = np.array([case.std for case in cases])
    values = np.concatenate([case.values for case in cases])
    shares = np.concatenate([case.weights / case.weights.sum() / len(cases) for case in cases])
    order = values.argsort(kind="stable")
    values, reached = values[order], shares[order].cumsum()
    return Intensity(
        mean=float(means.mean()),
        median=_quantile(values, reached, 0.5),
        std=float(np.sqrt((deviations**2).mean() + means.var())),
        min=min(case.min for case in cases),
        max=max(case.max for case in cases),
        percentile_00_5=_quantile(values, reached, 0.005),
        percentile_99_5=_quantile(values, reached, 0.995),
    )


def _distribution(values: NDArray[Any], most: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Give at most `most` ascending values and the number of voxels that each stands for."""
    if values.dtype.itemsize > 2 or values.dtype.kind not in "iu":
        values = values.astype(np.float32, copy=False)
    low, high = float(values.min()), float(values.max())
    if high - low < MAX_VALUES and _are_whole(values):  # no sorting needed
        counts = np.zeros(int(high - low) + 1, dtype=np.int64)
        for start in range(0, values.size, _COUNTED_AT_ONCE):  # as large integers
            steps = values[start : start + _COUNTED_AT_ONCE].astype(np.int64) - int(low)
            counts += np.bincount(steps, minlength=counts.size)
        found = np.flatnonzero(counts)
        exact, weights = (found + low).astype(np.float32), counts[found]
        if found.size <= most:
            return exact, weights
        middles, runs = _middles(values.size, most)
        return exact[np.searchsorted(weights.cumsum(), middles, side="right")], runs

    ordered = np.sort(values)
    starts = np.flatnonzero(np.diff(ordered, prepend=np.float32(np.nan)) != 0)
    if starts.size <= most:
        return ordered[starts], np.diff(starts, append=ordered.size)
    middles, runs = _middles(ordered.size, most)
    return ordered[middles], runs


def _middles(size: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Part ordered voxels into equal runs, give or take one; give their middles and lengths."""
    edges = np.arange(count + 1, dtype=np.int64) * size // count
    return (edges[:-1] + edges[1:]) // 2, np.diff(edges)


def _are_whole(values: NDArray[Any]) -> bool:
    return values.dtype.kind in "iu" or bool((values == np.rint(values)).all())


def _quantile(values: NDArray[np.float32], reached: NDArray[np.float64], share: float) -> float:
    """Give the value below which `share` of the weight lies.

    Args:
        values: Ascending.
        reached: The sum of weights up to and with each value; the last is 1.
        share: 0 to 1. Where it falls between two values, the result is their middle.
    """
    last = values.size - 1
    at = min(int(np.searchsorted(reached, share - 1e-12)), last)
    after = min(int(np.searchsorted(reached, share + 1e-12)), last)
    return (float(values[at]) + float(values[after])) / 2
