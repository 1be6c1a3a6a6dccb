"""How sure a prediction is: per voxel, per case, and whether its probabilities are true.

Probabilities have their heads last, (z, y, x, head), and may come slab by slab. Those of labels are
of a softmax and add up to 1; those of regions are of sigmoids, each by itself.

`entropy` and `disagreement` are maps, `ExpectedDice` and `quality` estimate the score of a case
that has no reference, `calibrate` compares probabilities with references, and `correlation` says
what the estimates are worth.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Mask
from nnseg.errors import DataError
from nnseg.labels import Labels

Floats: TypeAlias = NDArray[np.floating[Any]]
Targets: TypeAlias = NDArray[np.integer[Any]] | Mask

BLOCK_VALUES = 2**18  # worked on at once: copies of so many stay in the cache of a CPU
ROW_VALUES = 2**11  # added side by side, because columns as narrow as the heads add up slowly
TINY = 1e-30  # its product with its logarithm is 0 for all we care, and it has a logarithm
PROBABLE = 0.25  # what is nowhere predicted nor as probable as this counts as absent
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.1, 10.0
TEMPERATURE_STEP = 1e-5  # to which the logarithm of the temperature is found
BINS = 15
FEWEST_CASES = 3  # of two, any correlation is 1 or -1


def entropy(probabilities: Floats, has_regions: bool) -> NDArray[np.float32]:
    """Give the uncertainty of each voxel: 0 where one answer is certain, 1 where all are equal.

    Of labels it is the Shannon entropy of the heads, as a share of the most that so many can have,
    the logarithm of their number. Of regions it is the mean over the heads of the entropy of a yes
    or no, as a share of log 2.

    Args:
        probabilities: (z, y, x, head).
        has_regions: Whether the heads are regions.

    Returns:
        (z, y, x), float32, 0 to 1.

    >>> even, sure = [[[[0.25, 0.25, 0.25, 0.25]]]], [[[[0.0, 1.0, 0.0, 0.0]]]]
    >>> entropy(np.array(even), has_regions=False).item()
    1.0
    >>> entropy(np.array(sure), has_regions=True).item()
    0.0
    """
    heads = probabilities.shape[-1]
    rows = probabilities.reshape(-1, heads)
    result = np.empty(len(rows), dtype=np.float32)
    most = heads * math.log(2) if has_regions else math.log(max(2, heads))
    step = max(1, BLOCK_VALUES // heads)
    for start in range(0, len(rows), step):
        block = rows[start : start + step].astype(np.float32, copy=False)
        terms = _times_log(block)
        if has_regions:
            terms += _times_log(1 - block)
        result[start : start + step] = 0 - _row_sums(terms) / most  # a negation would give -0
    return result.clip(0, 1).reshape(probabilities.shape[:-1])  # rounding may pass either end


def disagreement(mean_of_squares: Floats, mean: Floats, has_regions: bool) -> NDArray[np.float32]:
    """Give how far several predictions lie apart in each voxel: their mean variance.

    With p_kh the probability of head h by prediction k it is mean_k sum_h p_kh^2 minus
    sum_h (mean_k p_kh)^2, the variance summed over the heads. Of labels it is 0 to 1, and
    1 - 1/K at most for K predictions, where each is certain of another label. Of regions, each of
    whose heads has a variance of 1/4 at most, it is 4 times the mean over the heads, 0 to 1.

    Args:
        mean_of_squares: mean_k sum_h p_kh^2, (z, y, x).
        mean: mean_k p_kh, (z, y, x, head).
        has_regions: Whether the heads are regions.

    Returns:
        (z, y, x), float32, 0 to 1.
    """
    heads = mean.shape[-1]
    variance = mean_of_squares - np.einsum("...h,...h->...", mean, mean)
    if has_regions:
        variance = variance * (4 / heads)
    return np.asarray(variance.clip(0, 1), dtype=np.float32)  # rounding may pass either end


class ExpectedDice:
    """The Dice that a prediction would have if its probabilities were true, added up in slabs.

    For each label or region it is 2 sum(p y) / (sum(p) + sum(y)) with p its probability and y
    whether the voxel was decided to be of it. The estimate is as good as the probabilities are
    calibrated.

    Source: Borges et al. 2024, arXiv 2402.10665, who call it soft Dice confidence.
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.probable = np.zeros(labels.heads)  # sum of p, (head,)
        self.decided = np.zeros(labels.heads)  # sum of y
        self.both = np.zeros(labels.heads)  # sum of p y
        self.highest = np.zeros(labels.heads)  # the largest p of any voxel

    def add(self, probabilities: Floats, decided: Targets) -> None:
        """Count the voxels of a slab.

        Args:
            probabilities: (..., head); quickest where C-contiguous and float32.
            decided: Labels: the head that was chosen, (...). Regions: whether each was, bool
                (..., head).
        """
        heads = self.labels.heads
        rows = probabilities.reshape(-1, heads)
        chosen = decided.reshape(-1, heads) if self.labels.has_regions else decided.reshape(-1)
        step = max(1, BLOCK_VALUES // heads)
        for start in range(0, len(rows), step):
            block, answer = rows[start : start + step], chosen[start : start + step]
            sums, highest = _column_sums(block)
            self.probable += sums
            np.maximum(self.highest, highest, out=self.highest)
            if self.labels.has_regions:
                self.decided += _column_sums(answer.astype(np.float32))[0]
                self.both += _column_sums(block * answer)[0]
            else:
                self._add_chosen(block, answer)

    def result(self) -> dict[str, float | None]:
        """Give the expected Dice of each foreground label or region by name.

        It is None where the label seems to be absent, as the Dice of two empty masks is: no voxel
        was decided to be of it, and none has a probability of 0.25 or more. Without this rule the
        dust of small probabilities in all the voxels of a volume would make it 0.
        """
        first = 0 if self.labels.has_regions else 1  # head 0 is the background
        result: dict[str, float | None] = {}
        for head, name in enumerate(self.labels.in_head_order, start=first):
            total = self.probable[head] + self.decided[head]
            absent = not self.decided[head] and self.highest[head] < PROBABLE
            result[name] = None if absent else float(2 * self.both[head] / total)
        return {name: result[name] for name in self.labels.foreground}

    def _add_chosen(self, block: Floats, chosen: NDArray[Any]) -> None:
        """Count labels; only the foreground is looked at, which is little of most images."""
        heads = self.labels.heads
        found = np.flatnonzero(chosen != 0)
        if found.size:
            head = chosen[found].astype(np.intp)
            probability = block.reshape(-1)[found * heads + head]
            self.decided += np.bincount(head, minlength=heads)
            self.both += np.bincount(head, weights=probability, minlength=heads)


def quality(expected: Mapping[str, float | None]) -> float | None:
    """Give the mean of `ExpectedDice.result` over the labels that have a value; None without one.

    >>> quality({"liver": 0.9, "spleen": 0.5, "tumour": None}), quality({"tumour": None})
    (0.7, None)
    """
    found = [value for value in expected.values() if value is not None]
    return math.fsum(found) / len(found) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How true the probabilities of a model are, before and after a temperature is applied.

    Logits divided by the temperature give probabilities that fit the references better; above 1
    the model was too sure of itself. No voxel is decided otherwise.
    """

    temperature: float
    ece_before: float  # expected calibration error, 0 to 1
    ece_after: float
    nll_before: float  # mean negative log likelihood of the references, natural logarithm
    nll_after: float
    voxels: int  # that all of this was measured on

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise DataError(f"temperature is {self.temperature:g}; it must be above 0")


def calibrate(logits: Floats, targets: Targets, has_regions: bool) -> Calibration:
    """Fit a temperature to voxels with references, and say what it changes.

    The calibration error of labels is that of the most probable head. That of regions is over all
    heads of all voxels: how sure the answer is, yes or no, and whether it is right. All figures are
    of the voxels that the temperature was fitted to, so those afterwards are a little too good.

    Args:
        logits: (voxel, head), finite.
        targets: Labels: the true head, integer (voxel,). Regions: bool (voxel, head).
        has_regions: Whether the heads are regions.

    Raises:
        DataError: There is no voxel.
    """
    temperature = fit_temperature(logits, targets, has_regions)
    losses = _Losses(logits, targets, has_regions)
    return Calibration(
        temperature=temperature,
        ece_before=_calibration_error(logits, targets, has_regions, 1),
        ece_after=_calibration_error(logits, targets, has_regions, temperature),
        nll_before=losses.mean(1),
        nll_after=losses.mean(temperature),
        voxels=len(logits),
    )


def fit_temperature(logits: Floats, targets: Targets, has_regions: bool) -> float:
    """Find the temperature, 0.1 to 10, that makes the references most likely.

    The negative log likelihood is convex in 1 / temperature, so there is one best; where the
    answers are all right it is the lowest, where they are all wrong the highest.

    Args:
        logits: (voxel, head), finite.
        targets: As of `calibrate`.
        has_regions: Whether the heads are regions.

    Raises:
        DataError: There is no voxel.

    Source: Guo et al. 2017, arXiv 1706.04599, temperature scaling.
    """
    from scipy.optimize import minimize_scalar  # slow to import

    losses = _Losses(logits, targets, has_regions)
    found = minimize_scalar(
        lambda log_temperature: losses.mean(math.exp(log_temperature)),
        bounds=(math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)),
        method="bounded",
        options={"xatol": TEMPERATURE_STEP},
    )
    return math.exp(found.x)


def expected_calibration_error(confidence: Floats, correct: Mask, bins: int = BINS) -> float:
    """Give how far confidence and accuracy lie apart, 0 to 1; nan where there is nothing.

    Answers are put into bins of equal width by their confidence; the difference between mean
    confidence and share of right answers is averaged over the bins, weighted by their answers.

    Args:
        confidence: Probability of each answer, 0 to 1, (answer,).
        correct: Whether it is right, (answer,).
        bins: Their number; bin i holds the confidences from above i / bins to (i + 1) / bins.

    Source: Guo et al. 2017, arXiv 1706.04599.

    >>> correct = np.array([True, False, True])
    >>> round(expected_calibration_error(np.array([0.9, 0.9, 0.6]), correct), 9)
    0.4
    """
    if not confidence.size:
        return math.nan
    return _bin_gaps(_bin_sums(confidence, correct, bins))


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """How well estimates follow the truth; None of under 3 cases, or where one side is constant."""

    pearson: float | None
    spearman: float | None  # of the ranks; equal values share their mean rank
    n: int  # cases with both values


def correlation(estimates: Sequence[float | None], truths: Sequence[float | None]) -> Correlation:
    """Compare the estimates of cases with their true values, such as `quality` with Dice.

    A case of which either is None or nan does not count.

    Args:
        estimates: (case,).
        truths: (case,), in the same order.

    Raises:
        DataError: They are not of the same number of cases.
    """
    if len(estimates) != len(truths):
        raise DataError(
            f"there are {len(estimates)} estimates and {len(truths)} true values; give both for "
            "the same cases"
        )
    pairs = np.array(
        [pair for pair in zip(estimates, truths, strict=True) if None not in pair], dtype=float
    ).reshape(-1, 2)
    pairs = pairs[~np.isnan(pairs).any(axis=1)]
    return Correlation(pearson=_pearson(pairs), spearman=_pearson(_ranks(pairs)), n=len(pairs))


class _Losses:
    """The mean negative log likelihood of references as a function of the temperature.

    Softmax logits are kept as their distance to the largest of their voxel, so that their
    exponentials never overflow. A region of logit z is a softmax of z and 0, whose loss hangs on
    the distance between the wrong and the right answer alone.
    """

    def __init__(self, logits: Floats, targets: Targets, has_regions: bool) -> None:
        if not logits.size:
            raise DataError("there is no voxel to calibrate on; give validation cases")
        self.has_regions = has_regions
        values = logits.astype(np.float64)
        if has_regions:
            self.values = np.where(targets, -values, values)
        else:
            self.values = values - values.max(axis=1, keepdims=True)
            picked = np.take_along_axis(self.values, targets[:, None].astype(np.intp), axis=1)
            self.true = float(picked.mean())

    def mean(self, temperature: float) -> float:
        """Give the mean over voxels, of regions over heads, too."""
        total, step = 0.0, max(1, BLOCK_VALUES // self.values.shape[1])
        for start in range(0, len(self.values), step):
            block = self.values[start : start + step] / temperature
            if self.has_regions:
                total += float(np.logaddexp(0, block).sum())
            else:
                total += float(np.log(_row_sums(np.exp(block))).sum())
        if self.has_regions:
            return total / self.values.size
        return total / len(self.values) - self.true / temperature


def _calibration_error(
    logits: Floats, targets: Targets, has_regions: bool, temperature: float
) -> float:
    """Give the expected calibration error of the answers that logits give, in blocks."""
    sums = np.zeros((3, BINS))
    step = max(1, BLOCK_VALUES // logits.shape[1])
    for start in range(0, len(logits), step):
        block = logits[start : start + step].astype(np.float64)
        truth = targets[start : start + step]
        if has_regions:
            confidence = 1 / (1 + np.exp(-np.abs(block) / temperature))
            correct = (block > 0) == truth
        else:
            best = block.max(axis=1)
            confidence = 1 / _row_sums(np.exp((block - best[:, None]) / temperature))
            correct = block.argmax(axis=1) == truth
        sums += _bin_sums(confidence.ravel(), correct.ravel(), BINS)
    return _bin_gaps(sums)


def _bin_sums(confidence: Floats, correct: Mask, bins: int) -> NDArray[np.float64]:
    """Give the number, the summed confidence and the right ones of each bin, (3, bin)."""
    place = np.ceil(confidence * bins).astype(np.intp).clip(1, bins) - 1
    weights = (None, confidence, correct)
    return np.array([np.bincount(place, weights=w, minlength=bins) for w in weights], dtype=float)


def _bin_gaps(sums: NDArray[np.float64]) -> float:
    number, confidence, correct = sums
    return float(np.abs(confidence - correct).sum() / number.sum())


def _times_log(p: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = np.maximum(p, np.float32(TINY))
    np.log(result, out=result)
    result *= p
    return result


def _row_sums(block: Floats) -> NDArray[Any]:
    """Add up the heads of each voxel: a matrix product, much faster than sums of short rows."""
    return np.asarray(block @ np.ones(block.shape[1], dtype=block.dtype))


def _column_sums(block: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the sum and the maximum of each column of (voxel, head); many rows side by side."""
    heads = block.shape[1]
    beside = max(1, ROW_VALUES // heads)
    wide = block[: len(block) // beside * beside].reshape(-1, beside * heads)
    rest = block[len(block) // beside * beside :]
    sums = wide.sum(axis=0, dtype=np.float32).reshape(beside, heads).sum(axis=0, dtype=np.float64)
    highest = wide.max(axis=0, initial=0).reshape(beside, heads).max(axis=0)
    sums += rest.sum(axis=0, dtype=np.float64)
    return sums, np.maximum(highest, rest.max(axis=0, initial=0)).astype(np.float64)


def _pearson(pairs: NDArray[np.float64]) -> float | None:
    """Give the correlation of the two columns of (case, 2)."""
    if len(pairs) < FEWEST_CASES or (np.ptp(pairs, axis=0) == 0).any():
        return None
    first, second = (pairs - pairs.mean(axis=0)).T
    value = first @ second / math.sqrt((first @ first) * (second @ second))
    return float(np.clip(value, -1, 1))


def _ranks(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put the ranks of each column in place of its values; equal ones share their mean rank."""
    ranks = np.empty_like(pairs)
    for column in range(pairs.shape[1]):
        _, place, number = np.unique(pairs[:, column], return_inverse=True, return_counts=True)
        ranks[:, column] = (np.cumsum(number) - (number - 1) / 2)[place]
    return ranks
