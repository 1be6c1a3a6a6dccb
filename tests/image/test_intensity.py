from dataclasses import astuple
from typing import Any

import numpy as np
import pytest

from nnseg.image.intensity import (
    ALL_VALUES,
    MAX_VALUES,
    MIN_VALUES,
    CaseIntensity,
    Intensity,
    measure,
    pool,
    values_kept,
)


def case(*values: float) -> CaseIntensity:
    return measure(np.array(values, dtype=np.float32))


def test_few_values_are_kept_as_an_exact_histogram() -> None:
    kept = case(3, -7, 3, 3, 9)
    assert kept.values.tolist() == [-7, 3, 9]
    assert kept.weights.tolist() == [1, 3, 1]


def test_fractions_are_kept_exactly_too() -> None:
    kept = case(0.5, -0.25, 0.5, 1e9)
    assert kept.values.tolist() == [-0.25, 0.5, 1e9]
    assert kept.weights.tolist() == [1, 2, 1]


def test_whole_numbers_of_a_wide_range_are_kept_exactly_too() -> None:
    kept = case(0, 70000, 70000)
    assert (kept.values.tolist(), kept.weights.tolist()) == ([0, 70000], [1, 2])


@pytest.mark.parametrize("different", [MAX_VALUES, MAX_VALUES + 1])
def test_only_more_values_than_fit_are_thinned(different: int) -> None:
    values = np.random.default_rng(0).permutation(different).astype(np.float32) / 4
    kept = measure(values)
    assert kept.values.size == MAX_VALUES
    assert kept.weights.sum() == different
    assert np.array_equal(kept.values, np.sort(values)) == (different == MAX_VALUES)


def test_thinned_values_keep_the_quantiles() -> None:
    values = np.random.default_rng(0).normal(size=300_001).astype(np.float32)
    pooled = pool([measure(values)])
    found = [pooled.percentile_00_5, pooled.median, pooled.percentile_99_5]
    below = [(values <= value).mean() for value in found]
    assert below == pytest.approx([0.005, 0.5, 0.995], abs=1 / MAX_VALUES)


def test_thinned_values_lie_in_the_middle_of_what_they_stand_for() -> None:
    values = np.arange(20 * MAX_VALUES, dtype=np.float32)
    kept = measure(values)
    middle = np.average(kept.values.astype(float), weights=kept.weights)
    assert middle == pytest.approx(values.mean(dtype=np.float64), abs=0.51)


def test_moments_and_extremes_are_of_all_values_not_of_the_kept() -> None:
    values = np.random.default_rng(0).gamma(2, size=200_000).astype(np.float32)
    pooled = pool([measure(values)])
    assert pooled.mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-12)
    assert pooled.std == pytest.approx(values.std(dtype=np.float64), rel=1e-12)
    assert (pooled.min, pooled.max) == (float(values.min()), float(values.max()))


def test_the_deviation_keeps_its_digits_far_from_0() -> None:
    pooled = pool([case(1e6 - 1, 1e6 + 1), case(1e6 - 2, 1e6 + 2)])
    assert pooled.std == pytest.approx(np.sqrt(2.5), rel=1e-9)


def test_every_case_weighs_the_same_however_large() -> None:
    pooled = pool([case(*[0] * 900), case(10, 10)])
    assert (pooled.mean, pooled.std) == (5, 5)
    assert pool([case(*[0] * 900), case(10), case(10)]).median == 10


def test_pooled_numbers_are_those_of_an_equally_drawn_sample() -> None:
    generator = np.random.default_rng(0)
    voxels = [generator.normal(50 * i, 20, 1003 * 3**i).round() for i in range(4)]
    drawn = np.concatenate([np.tile(v, 27 // 3**i) for i, v in enumerate(voxels)])
    pooled = pool([measure(v.astype(np.float32)) for v in voxels])
    low, median, high = np.percentile(drawn, [0.5, 50, 99.5])
    assert astuple(pooled) == pytest.approx(
        (drawn.mean(), median, drawn.std(), drawn.min(), drawn.max(), low, high)
    )


def test_a_quantile_between_two_values_is_their_middle() -> None:
    assert pool([case(1, 4)]).median == 2.5
    assert pool([case(1), case(4)]).median == 2.5


def test_order_of_voxels_and_of_cases_does_not_matter() -> None:
    assert pool([case(1, 2.5, 7), case(3, 3)]) == pool([case(3, 3), case(7, 1, 2.5)])


def test_a_case_without_foreground_is_passed_over() -> None:
    assert pool([case(), case(2, 4), case()]) == pool([case(2, 4)])


def test_without_any_foreground_all_is_0() -> None:
    nothing = Intensity(
        mean=0.0,
        median=0.0,
        std=0.0,
        min=0.0,
        max=0.0,
        percentile_00_5=0.0,
        percentile_99_5=0.0,
    )
    assert pool([case()]) == pool([]) == nothing


def test_one_voxel_is_foreground_enough() -> None:
    pooled = pool([case(5)])
    assert pooled.std == 0
    assert {pooled.mean, pooled.median, pooled.min, pooled.max} == {5}
    assert {pooled.percentile_00_5, pooled.percentile_99_5} == {5}


def test_all_cases_together_keep_a_bounded_number_of_values() -> None:
    for cases in (1, 63, 64, 65, 500, 2000):
        for channels in (1, 3, 4):
            kept = values_kept(cases, channels)
            assert MIN_VALUES <= kept <= MAX_VALUES
            assert kept * cases * channels <= ALL_VALUES or kept == MIN_VALUES
    assert values_kept(64, 1) == MAX_VALUES


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_fewer_values_are_kept_if_asked_of_whole_numbers_and_others(kind: Any) -> None:
    voxels = np.random.default_rng(3).gamma(4, 90, 50_000).astype(kind)
    kept = measure(voxels, 100)
    assert kept.values.size == kept.weights.size == 100
    ordered = np.sort(voxels).astype(np.float32)
    np.testing.assert_array_equal(kept.values, ordered[250::500])
    assert set(kept.weights.tolist()) == {500}
    assert kept.mean == pytest.approx(voxels.mean(dtype=np.float64), rel=1e-12)
    assert kept.std == pytest.approx(voxels.std(dtype=np.float64), rel=1e-12)


def test_whole_numbers_that_fit_are_kept_exactly_however_few_may_be() -> None:
    kept = measure(np.array([5, 5, 9, 7], np.int16), 3)
    assert (kept.values.tolist(), kept.weights.tolist()) == ([5, 7, 9], [2, 1, 1])
    assert measure(np.array([5, 5, 9, 7], np.int16), 2).values.size == 2
