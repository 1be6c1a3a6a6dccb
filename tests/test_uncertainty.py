import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats

from nnseg import record
from nnseg.errors import DataError
from nnseg.labels import Labels
from nnseg.scores import uncertainty
from nnseg.scores.uncertainty import (
    Calibration,
    Correlation,
    ExpectedDice,
    calibrate,
    correlation,
    disagreement,
    entropy,
    expected_calibration_error,
    fit_temperature,
    quality,
)

SHAPE = (4, 6, 9)
ORGANS = Labels(labels={"background": 0, "spleen": 2, "liver": 1, "gall": 3, "ignore": 4})
SPARSE = Labels(labels={"background": 0, "spleen": 300, "liver": 4})
TUMOUR = Labels(
    labels={"background": 0, "whole": (1, 2, 3), "core": (2, 3), "active": 3},
    regions_class_order=(1, 2, 3),
)
several = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)


def softmax(seed: int, heads: int, shape: tuple[int, ...] = SHAPE, scale: float = 3) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, scale, (*shape, heads))
    return special.softmax(logits, axis=-1).astype(np.float32)


def sigmoid(seed: int, heads: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 3, (*shape, heads))
    return special.expit(logits).astype(np.float32)


def one_hot(indices: np.ndarray, heads: int) -> np.ndarray:
    return np.eye(heads, dtype=np.float32)[indices]


@several
@given(seed=seeds, heads=st.integers(2, 9), block=st.sampled_from([1, 50, 2**18]))
def test_entropy_of_labels_is_that_of_scipy_as_a_share_of_the_most(
    seed: int, heads: int, block: int
) -> None:
    probabilities = softmax(seed, heads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "BLOCK_VALUES", block)
        found = entropy(probabilities, has_regions=False)
    assert (found.shape, found.dtype) == (SHAPE, np.float32)
    expected = stats.entropy(probabilities.astype(np.float64), base=heads, axis=-1)
    assert found == pytest.approx(expected, abs=2e-6)


@several
@given(seed=seeds, heads=st.integers(1, 5))
def test_entropy_of_regions_is_the_mean_of_a_yes_or_no_each(seed: int, heads: int) -> None:
    probabilities = sigmoid(seed, heads)
    p = probabilities.astype(np.float64)
    expected = ((special.entr(p) + special.entr(1 - p)) / math.log(2)).mean(axis=-1)
    assert entropy(probabilities, has_regions=True) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("has_regions", [False, True])
@pytest.mark.parametrize("heads", [2, 3, 7, 118])
def test_entropy_is_0_for_a_certain_answer_and_1_for_none(heads: int, has_regions: bool) -> None:
    certain = one_hot(np.arange(4 * 6 * 9).reshape(SHAPE) % heads, heads)
    assert not entropy(certain, has_regions).any()
    even = np.full((*SHAPE, heads), 0.5 if has_regions else 1 / heads, dtype=np.float32)
    found = entropy(even, has_regions)
    assert found == pytest.approx(1, abs=1e-6)
    assert found.max() <= 1


def test_entropy_takes_arrays_that_lie_otherwise_in_memory() -> None:
    heads_first = np.ascontiguousarray(np.moveaxis(softmax(1, 3), -1, 0))
    found = entropy(np.moveaxis(heads_first, 0, -1), has_regions=False)
    assert np.array_equal(found, entropy(softmax(1, 3), has_regions=False))


@several
@given(seed=seeds, folds=st.integers(1, 5), has_regions=st.booleans())
def test_disagreement_is_the_variance_of_the_predictions(
    seed: int, folds: int, has_regions: bool
) -> None:
    make = sigmoid if has_regions else softmax
    every = np.array([make(seed + fold, 3) for fold in range(folds)])
    squares = (every**2).sum(axis=-1).mean(axis=0)
    found = disagreement(squares, every.mean(axis=0), has_regions)
    variance = every.astype(np.float64).var(axis=0).sum(axis=-1)
    assert found == pytest.approx(variance * (4 / 3 if has_regions else 1), abs=1e-6)
    assert (found.dtype, found.shape) == (np.float32, SHAPE)
    assert found.min() >= 0


def test_predictions_that_contradict_each_other_disagree_as_much_as_they_can() -> None:
    folds = np.array([one_hot(np.full(SHAPE, fold), 5) for fold in range(5)])
    mean = folds.mean(axis=0)
    assert disagreement(np.ones(SHAPE), mean, False) == pytest.approx(1 - 1 / 5)
    yes_or_no = np.full((*SHAPE, 3), 0.5)  # half of the folds say 1, the others 0, of each region
    assert disagreement(np.full(SHAPE, 1.5), yes_or_no, True) == pytest.approx(1)


def test_predictions_that_agree_have_no_disagreement_below_0() -> None:
    mean = softmax(3, 4)
    assert disagreement((mean**2).sum(axis=-1), mean, False) == pytest.approx(0, abs=1e-6)
    assert disagreement((mean**2).sum(axis=-1) - 1e-4, mean, False).min() == 0


def expected_by_hand(p: np.ndarray, y: np.ndarray) -> float:
    p = p.astype(np.float64)
    return float(2 * (p * y).sum() / (p.sum() + y.sum()))


@pytest.mark.parametrize("labels", [ORGANS, SPARSE, TUMOUR], ids=["labels", "gaps", "regions"])
@pytest.mark.parametrize(("block", "row"), [(1, 1), (100, 7), (2**18, 2**11)])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=seeds)
def test_expected_dice_of_slabs_is_that_of_masks_drawn_label_by_label(
    labels: Labels, block: int, row: int, seed: int
) -> None:
    heads, regions = labels.heads, labels.has_regions
    probabilities = sigmoid(seed, heads) if regions else softmax(seed, heads)
    decided = probabilities > 0.5 if regions else probabilities.argmax(axis=-1).astype(np.uint8)
    accumulator = ExpectedDice(labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "BLOCK_VALUES", block)
        patch.setattr(uncertainty, "ROW_VALUES", row)
        for slab in (slice(0, 1), slice(1, 4)):
            accumulator.add(probabilities[slab], decided[slab])
    chosen = decided if regions else one_hot(decided, heads)
    result = accumulator.result()
    assert list(result) == list(labels.foreground)
    for place, (name, values) in enumerate(labels.foreground.items()):
        head = place if regions else labels.values.index(values[0])
        expected = expected_by_hand(probabilities[..., head], chosen[..., head])
        assert result[name] == pytest.approx(expected, rel=1e-5)


def test_a_certain_prediction_expects_a_dice_of_1() -> None:
    decided = np.arange(4 * 6 * 9).reshape(SHAPE) % 4
    accumulator = ExpectedDice(ORGANS)
    accumulator.add(one_hot(decided, 4), decided)
    assert accumulator.result() == {"spleen": 1.0, "liver": 1.0, "gall": 1.0}


@pytest.mark.parametrize("labels", [SPARSE, TUMOUR], ids=["labels", "regions"])
@pytest.mark.parametrize(("highest", "dice"), [(0.249, None), (0.25, 0.0)])
def test_what_is_neither_decided_nor_probable_has_no_expected_dice(
    labels: Labels, highest: float, dice: float | None
) -> None:
    probabilities = np.full((*SHAPE, 3), 0.01, dtype=np.float32)  # the dust of small ones
    probabilities[2, 3, 4, 1] = highest
    probabilities[..., 0] = 1 - probabilities[..., 1:].sum(axis=-1)
    decided = probabilities > 0.5 if labels.has_regions else np.zeros(SHAPE, dtype=np.uint8)
    accumulator = ExpectedDice(labels)
    for slab in (slice(0, 3), slice(3, 4)):  # the most probable voxel is not in the last
        accumulator.add(probabilities[slab], decided[slab])
    second, third = list(labels.foreground)[-2:]
    if not labels.has_regions:
        second, third = third, second  # the heads of labels are in the order of their integers
    result = accumulator.result()
    assert result[second] == dice
    assert result[third] is None


def test_what_was_decided_has_an_expected_dice_however_improbable_it_is() -> None:
    probabilities = np.full((*SHAPE, 4), 0.2, dtype=np.float32)
    decided = np.zeros(SHAPE, dtype=np.uint8)
    decided[1, 2, 3] = 1
    accumulator = ExpectedDice(ORGANS)
    accumulator.add(probabilities, decided)
    n = decided.size
    assert accumulator.result()["liver"] == pytest.approx(2 * 0.2 / (0.2 * n + 1), rel=1e-5)


def test_the_expected_dice_is_near_the_mean_over_truths_drawn_from_the_probabilities() -> None:
    generator = np.random.default_rng(0)
    p = generator.beta(0.3, 0.6, (20, 30, 25))
    labels = Labels(labels={"background": 0, "liver": 1})
    accumulator = ExpectedDice(labels)
    y = p > 0.5
    accumulator.add(np.stack([1 - p, p], axis=-1).astype(np.float32), y.astype(np.uint8))
    drawn = []
    for _ in range(20):
        truth = generator.random(p.shape) < p
        drawn.append(2 * (truth & y).sum() / (truth.sum() + y.sum()))
    assert accumulator.result()["liver"] == pytest.approx(float(np.mean(drawn)), abs=0.003)


def answers(margin: float, right: int, wrong: int) -> tuple[np.ndarray, np.ndarray]:
    """Two heads, the first ahead by `margin` in every voxel; it is right in some of them."""
    logits = np.zeros((right + wrong, 2))
    logits[:, 0] = margin
    return logits, np.repeat([0, 1], [right, wrong])


@pytest.mark.parametrize(
    ("margin", "right", "wrong", "temperature"),
    [
        (4.0, 75, 25, 4 / math.log(3)),  # too sure: sigmoid(4) = 0.98, but 3 of 4 are right
        (0.5, 90, 10, 0.5 / math.log(9)),  # not sure enough
        (math.log(3), 75, 25, 1.0),  # true as it is
        (2.0, 50, 0, 0.1),  # all right: as sure as can be
        (2.0, 10, 40, 10.0),  # mostly wrong: as unsure as can be
    ],
)
def test_the_temperature_makes_the_confidence_that_of_the_right_answers(
    margin: float, right: int, wrong: int, temperature: float
) -> None:
    logits, targets = answers(margin, right, wrong)
    assert fit_temperature(logits, targets, False) == pytest.approx(temperature, rel=1e-3)
    # a region's logit is the margin of its yes, and its target says that yes is right
    yes = fit_temperature(logits[:, :1], targets[:, None] == 0, True)
    assert yes == pytest.approx(temperature, rel=1e-3)
    no = fit_temperature(-logits[:, :1], targets[:, None] == 1, True)
    assert no == pytest.approx(temperature, rel=1e-3)


@pytest.mark.parametrize("has_regions", [False, True])
def test_logits_that_were_sharpened_get_the_temperature_that_undoes_it(has_regions: bool) -> None:
    generator = np.random.default_rng(2)
    logits = generator.normal(0, 2, (20000, 3))
    if has_regions:
        targets = generator.random(logits.shape) < special.expit(logits)
    else:
        edges = special.softmax(logits, axis=1).cumsum(axis=1)
        targets = (generator.random((20000, 1)) > edges).sum(axis=1).clip(0, 2)
    found = calibrate((logits * 2.5).astype(np.float32), targets, has_regions)
    assert found.temperature == pytest.approx(2.5, rel=0.03)
    assert found.ece_before > 0.05
    assert found.ece_after < 0.015
    assert found.nll_after < found.nll_before
    assert found.voxels == 20000


@several
@given(seed=seeds, has_regions=st.booleans(), block=st.sampled_from([1, 100, 2**18]))
def test_calibration_figures_are_those_of_scipy(seed: int, has_regions: bool, block: int) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (150, 3))
    targets: Any = logits.argmax(axis=1)
    wrong = generator.random(150) < 0.3
    targets[wrong] = generator.integers(0, 3, wrong.sum())
    if has_regions:
        targets = one_hot(targets, 3).astype(np.bool_)

    def loss(temperature: float) -> float:
        if has_regions:
            yes = special.log_expit(logits / temperature)
            no = special.log_expit(-logits / temperature)
            return -float(np.where(targets, yes, no).mean())
        logs = special.log_softmax(logits / temperature, axis=1)
        return -float(logs[np.arange(150), targets].mean())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "BLOCK_VALUES", block)
        found = calibrate(logits, targets, has_regions)
    assert found.nll_before == pytest.approx(loss(1))
    assert found.nll_after == pytest.approx(loss(found.temperature))
    best = optimize.minimize_scalar(loss, bounds=(0.1, 10), method="bounded")
    assert found.nll_after <= best.fun + 1e-9
    for temperature, ece in ((1, found.ece_before), (found.temperature, found.ece_after)):
        if has_regions:
            yes = special.expit(logits / temperature)
            confidence, correct = np.maximum(yes, 1 - yes).ravel(), ((yes > 0.5) == targets).ravel()
        else:
            sure = special.softmax(logits / temperature, axis=1)
            confidence, correct = sure.max(axis=1), sure.argmax(axis=1) == targets
        assert ece == pytest.approx(expected_calibration_error(confidence, correct), abs=1e-9)


def test_huge_logits_neither_overflow_nor_lose_the_answer() -> None:
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype=np.float32)
    found = calibrate(logits, np.array([0, 1]), False)
    assert (found.nll_before, found.ece_before) == (0, 0)
    regions = calibrate(logits, logits > 0, True)
    assert regions.nll_before == pytest.approx(math.log(2) / 3)  # the logits of 0
    assert calibrate(logits[:1, :1], np.array([[False]]), True).nll_before == 1e4


def test_without_a_voxel_there_is_no_calibration() -> None:
    with pytest.raises(DataError, match="no voxel to calibrate on"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=int), False)


def test_a_calibration_survives_json_and_has_a_temperature_above_0() -> None:
    found = calibrate(*answers(4.0, 3, 1), False)
    data = record.to_json(found)
    assert record.parse(Calibration, data, "calibration.json") == found
    with pytest.raises(DataError, match="temperature is 0; it must be above 0"):
        record.parse(Calibration, {**data, "temperature": 0}, "calibration.json")


def ece_by_hand(confidence: np.ndarray, correct: np.ndarray, bins: int) -> float:
    total = 0.0
    for place in range(bins):
        inside = (confidence > place / bins) & (confidence <= (place + 1) / bins)
        if inside.any():
            gap = abs(confidence[inside].mean() - correct[inside].mean())
            total += gap * inside.mean()
    return float(total)


@several
@given(seed=seeds, bins=st.integers(1, 20), n=st.integers(1, 300))
def test_the_calibration_error_is_the_gap_of_each_bin_weighted(
    seed: int, bins: int, n: int
) -> None:
    generator = np.random.default_rng(seed)
    confidence = generator.random(n)
    correct = generator.random(n) < confidence**2
    found = expected_calibration_error(confidence, correct, bins)
    assert found == pytest.approx(ece_by_hand(confidence, correct, bins))


def test_the_ends_of_confidence_are_in_the_outer_bins() -> None:
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([True, False])) == 1


def test_a_bin_holds_its_upper_end() -> None:
    # in one bin the two cancel out, in two they don't
    confidence, correct = np.array([0.5, 0.25]), np.array([False, True])
    assert expected_calibration_error(confidence, correct, 2) == pytest.approx(0.125)


def test_without_answers_there_is_no_calibration_error() -> None:
    assert math.isnan(expected_calibration_error(np.zeros(0), np.zeros(0, dtype=np.bool_)))


@several
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=12).filter(
        lambda pairs: all(len(set(side)) > 1 for side in zip(*pairs, strict=True))
    )
)
def test_correlations_are_those_of_scipy_with_ties_too(pairs: list[tuple[int, int]]) -> None:
    estimates, truths = ([value / 7 for value in side] for side in zip(*pairs, strict=True))
    found = correlation(estimates, truths)
    assert found.pearson == pytest.approx(stats.pearsonr(estimates, truths).statistic, abs=1e-9)
    assert found.spearman == pytest.approx(stats.spearmanr(estimates, truths).statistic, abs=1e-9)
    assert found.n == len(pairs)


def test_ranks_alone_are_the_same_where_one_rises_with_the_other() -> None:
    found = correlation([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 9.0])
    assert found.spearman == 1
    assert found.pearson is not None
    assert found.pearson < 0.9


@pytest.mark.parametrize(
    ("estimates", "truths", "n"),
    [
        ([], [], 0),
        ([0.1, 0.2], [0.3, 0.4], 2),
        ([0.1, 0.2, None, 0.4], [0.3, 0.4, 0.5, math.nan], 2),
        ([0.1, 0.1, 0.1], [0.3, 0.4, 0.5], 3),
        ([0.3, 0.4, 0.5], [0.7, 0.7, 0.7], 3),
    ],
)
def test_few_cases_or_a_constant_side_have_no_correlation(
    estimates: list[float | None], truths: list[float | None], n: int
) -> None:
    assert correlation(estimates, truths) == Correlation(pearson=None, spearman=None, n=n)


def test_cases_without_a_value_do_not_count() -> None:
    found = correlation([0.1, None, 0.3, 0.2], [0.2, 0.9, 0.6, 0.4])
    assert found.n == 3
    assert found.pearson == pytest.approx(1)


def test_estimates_of_other_cases_than_the_truths_are_refused() -> None:
    with pytest.raises(DataError, match="2 estimates and 3 true values"):
        correlation([0.1, 0.2], [0.1, 0.2, 0.3])


def test_quality_is_the_mean_over_labels_that_have_a_value() -> None:
    assert quality({"liver": 0.9, "spleen": 0.5, "gall": None}) == pytest.approx(0.7)
    assert quality({"gall": None}) is None
