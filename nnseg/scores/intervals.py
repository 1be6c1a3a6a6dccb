"""How far a mean over cases can be trusted: bootstrap intervals, and tests of paired differences.

Cases are drawn, never voxels or labels: a mean is wanted for the cases to come. What is drawn
follows from a seed, so that the same values have the same interval each time.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnseg.errors import DataError

DRAWS = 2000  # of the bootstrap
LEVEL = 0.95  # of the intervals
FLIPS = 10_000  # of signs, where there are too many to try them all
ALL_FLIPS = 13  # cases up to which they are all tried
_AT_ONCE = 2**20  # drawn numbers that are held at once
_KEPT_BYTES = 2**24  # of draws that are kept for the next label or metric of as many cases

Rows = Sequence[Sequence[float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and the interval that holds it with the stated level.

    The mean is None where no value is there; the ends are where fewer than two cases have one.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int  # cases with a value


def mean_interval(
    values: Sequence[float | None], *, seed: int = 0, draws: int = DRAWS, level: float = LEVEL
) -> Interval:
    """Give the mean of one value a case and its bootstrap interval; see `table_interval`.

    Args:
        values: One a case; None where the case has no value, which leaves it out.
        seed: Of the draws.
        draws: How many samples of the cases are drawn.
        level: Share of such intervals that hold the true mean.

    Raises:
        DataError: A value is not finite.
    """
    found = [[value] for value in values if value is not None]
    return table_interval(found, seed=seed, draws=draws, level=level)


def mean_of_means(rows: Rows) -> float | None:
    """Give the mean over columns of their means over rows, as `table_interval` does; None of none.

    Raises:
        DataError: A value is not finite.
    """
    table = _table(rows)
    return float(_mean_of_means(np.ones((1, len(table))), table)[0]) if len(table) else None


def table_interval(
    rows: Rows, *, seed: int = 0, draws: int = DRAWS, level: float = LEVEL
) -> Interval:
    """Give the mean over columns of their means over rows, and its bootstrap interval.

    So the foreground mean is made: a row is a case, a column a label, and None what has no value.
    Whole rows are drawn with replacement. The ends are corrected for bias and skewness (BCa), as
    scores that crowd below 1 need it.

    Args:
        rows: A row for each case, all of one length.
        seed: Of the draws.
        draws: How many samples of the rows are drawn.
        level: Share of such intervals that hold the true mean.

    Raises:
        DataError: A value is not finite.

    Source: Efron 1987, doi:10.1080/01621459.1987.10478410, BCa.
    """
    table = _table(rows)
    count = len(table)
    if not count:
        return Interval(mean=None, low=None, high=None, count=0)
    mean = float(_mean_of_means(np.ones((1, count)), table)[0])
    if count == 1:
        return Interval(mean=mean, low=None, high=None, count=1)
    drawn = np.sort(
        _drawn_means(lambda weights: _mean_of_means(weights, table), count, seed, draws)
    )
    low, high = _bca_ends(mean, drawn, _means_without(table), level)
    return Interval(mean=mean, low=low, high=high, count=count)


def difference_interval(
    first: Rows, second: Rows, *, seed: int = 0, draws: int = DRAWS, level: float = LEVEL
) -> Interval:
    """Give by how much one mean of `table_interval` exceeds another, and its bootstrap interval.

    Each of the two leaves out what has no value in its own rows, so the difference is that of the
    two means as they are told by themselves. The same cases are drawn for both.

    Args:
        first: A row for each case, all of one length.
        second: Likewise, of the same cases in the same order.
        seed: Of the draws.
        draws: How many samples of the cases are drawn.
        level: Share of such intervals that hold the true difference.

    Returns:
        Of no value where one of the means has none. Cases are counted that either has a value of.

    Raises:
        DataError: A value is not finite.
    """
    table = _table([[*one, *other] for one, other in zip(first, second, strict=True)])
    count = len(table)
    if not count:
        return Interval(mean=None, low=None, high=None, count=0)
    width = len(first[0])

    def apart(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return _mean_of_means(weights, table[:, :width]) - _mean_of_means(weights, table[:, width:])

    mean = float(apart(np.ones((1, count)))[0])
    if math.isnan(mean):
        return Interval(mean=None, low=None, high=None, count=count)
    left_out = _means_without(table[:, :width]) - _means_without(table[:, width:])
    drawn = _drawn_means(apart, count, seed, draws)
    drawn, left_out = (np.sort(values[~np.isnan(values)]) for values in (drawn, left_out))
    if count == 1 or not len(left_out):
        return Interval(mean=mean, low=None, high=None, count=count)
    low, high = _bca_ends(mean, drawn, left_out, level)
    return Interval(mean=mean, low=low, high=high, count=count)


def sign_flip_p(rows: Rows, *, seed: int = 0) -> float | None:
    """Give how probable so large a mean is if each row's differences had their sign by chance.

    The mean is that of `table_interval`, the test two-sided; a row keeps its differences together.
    All signs are tried for up to 13 rows, and 10 000 are drawn for more, where the least that can
    be found is 1/10 001. None where there is no row with a value.

    Args:
        rows: A row of paired differences for each case; None where there is none.
        seed: Of the draws.

    Raises:
        DataError: A value is not finite.

    Source: Fisher's randomisation test; Phipson and Smyth 2010, doi:10.2202/1544-6115.1585, for
    the one that is added to both counts of a drawn test.
    """
    table = _table(rows)
    count = len(table)
    if not count:
        return None
    # the share that each row has in the mean, so that a flip changes the sign of one number
    there = ~np.isnan(table)
    used = there.any(axis=0)
    parts = (np.where(there, table, 0) / np.maximum(there.sum(axis=0), 1)).sum(axis=1) / used.sum()
    bound = abs(parts.sum()) * (1 - 1e-12)
    if count <= ALL_FLIPS:
        bits = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float((np.abs((1 - 2 * bits) @ parts) >= bound).mean())
    extreme, whole = 0, parts.sum()
    for flips in _drawn(_flips, count, seed, FLIPS):
        extreme += int((np.abs(whole - 2 * (flips.astype(float) @ parts)) >= bound).sum())
    return (extreme + 1) / (FLIPS + 1)


def _table(rows: Rows) -> NDArray[np.float64]:
    """Give the rows that have a value as an array (row, column), nan for None."""
    for row in rows:
        if wrong := [value for value in row if value is not None and not math.isfinite(value)]:
            raise DataError(f"a value is {wrong[0]}; a metric without a value is None")
    table = np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=float)
    return table[~np.isnan(table).all(axis=1)] if table.size else table


def _drawn_means(
    mean: Callable[[NDArray[np.float64]], NDArray[np.float64]], count: int, seed: int, draws: int
) -> NDArray[np.float64]:
    """Give the `mean` by weights (weights, row) of `draws` samples of `count` rows, (draw,)."""
    return np.concatenate(
        [mean(times.astype(float)) for times in _drawn(_times, count, seed, draws)]
    )


_Draw: TypeAlias = Callable[[int, np.random.Generator, int], NDArray[np.uint8]]
_kept: OrderedDict[tuple[_Draw, int, int, int], tuple[NDArray[np.uint8], ...]] = OrderedDict()
_keeping = threading.Lock()


def _drawn(draw: _Draw, count: int, seed: int, draws: int) -> Iterator[NDArray[np.uint8]]:
    """Draw for `count` rows, some draws at a time, (draw, row); or give what was drawn before.

    The labels and metrics of a result have the same cases, and drawing takes longer than counting.
    """
    key = (draw, count, seed, draws)
    with _keeping:
        found = _kept.get(key)
        if found is not None:
            _kept.move_to_end(key)
    if found is not None:
        yield from found
        return
    rng = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // count)
    parts = (draw(count, rng, min(step, draws - start)) for start in range(0, draws, step))
    if count * draws > _KEPT_BYTES:
        yield from parts
        return
    whole = tuple(parts)
    with _keeping:
        _kept[key] = whole
        while sum(its * many for _, its, _, many in _kept) > _KEPT_BYTES:
            _kept.popitem(last=False)
    yield from whole


def _times(count: int, rng: np.random.Generator, draws: int) -> NDArray[np.uint8]:
    """Draw how often each of `count` rows is in a sample of as many, (draw, row)."""
    drawn = rng.integers(0, count, (draws, count)) + count * np.arange(draws)[:, None]
    times = np.bincount(drawn.ravel(), minlength=draws * count)
    return times.reshape(draws, count).astype(np.uint8)  # over 255 times has odds of 1e-500


def _flips(count: int, rng: np.random.Generator, draws: int) -> NDArray[np.uint8]:
    """Draw for each of `count` rows whether its sign changes, 0 or 1, (draw, row)."""
    return rng.integers(0, 2, (draws, count)).astype(np.uint8)


def _mean_of_means(weights: NDArray[np.float64], table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the mean over columns of their weighted means over rows, (weights,).

    Args:
        weights: How often each row counts, (weights, row).
        table: (row, column), nan where there is no value. A column without a value under some
            weights is left out of their mean; nan where no column has one.
    """
    there = ~np.isnan(table)
    sums = weights @ np.where(there, table, 0)
    counts = weights @ there.astype(float)
    used = (counts > 0).sum(axis=1)
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    return _shared(means.sum(axis=1), used)


def _means_without(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the mean over columns of their means over all rows but one, (row,)."""
    there = ~np.isnan(table)
    values = np.where(there, table, 0)
    sums, counts = values.sum(axis=0) - values, there.sum(axis=0) - there
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    return _shared(means.sum(axis=1), (counts > 0).sum(axis=1))


def _shared(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide sums by counts; nan where that is 0."""
    result = np.full(len(sums), np.nan)
    np.divide(sums, counts, out=result, where=counts > 0)
    return result


def _bca_ends(
    mean: float, drawn: NDArray[np.float64], left_out: NDArray[np.float64], level: float
) -> tuple[float, float]:
    """Give the ends of the interval.

    Args:
        mean: Of all rows.
        drawn: The means of samples, sorted.
        left_out: The means without one row each.
        level: Of the interval.
    """
    normal = NormalDist()
    below = float((drawn < mean).mean() + (drawn == mean).mean() / 2)
    if not 0 < below < 1:  # every sample is on one side: nothing to correct by
        below = 0.5
    bias = normal.inv_cdf(below)
    away = left_out.mean() - left_out
    spread = float((away**2).sum()) ** 1.5  # 0 also where values are too small to be cubed
    skewness = float((away**3).sum()) / (6 * spread) if spread > 0 else 0.0
    ends = []
    for share in ((1 - level) / 2, (1 + level) / 2):
        z = bias + normal.inv_cdf(share)
        corrected = normal.cdf(bias + z / (1 - skewness * z))
        ends.append(_quantile(drawn, corrected))
    return ends[0], ends[1]


def _quantile(ordered: NDArray[np.float64], share: float) -> float:
    """Give a quantile of sorted values, between two of them in proportion, as numpy does.

    numpy's own loads its masked arrays first, which takes longer than all intervals of a result.
    """
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    low, high = float(ordered[below]), float(ordered[min(below + 1, len(ordered) - 1)])
    part = place - below
    return high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part
