import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest
from scipy import stats

from nnseg.errors import DataError
from nnseg.scores import intervals
from nnseg.scores.intervals import (
    Interval,
    difference_interval,
    mean_interval,
    mean_of_means,
    sign_flip_p,
    table_interval,
)


def scores(count: int, seed: int = 0) -> list[float]:
    """Scores that crowd below 1, as Dice does."""
    return np.random.default_rng(seed).beta(8, 1, count).tolist()


def test_the_interval_is_that_of_scipys_bca() -> None:
    values = scores(40)
    ours = mean_interval(values, draws=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.mean == pytest.approx(np.mean(values))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.04 * width)
    assert ours.high - ours.mean < ours.mean - ours.low  # skewed as the values are


def test_the_same_values_have_the_same_interval_and_another_seed_another() -> None:
    values = scores(30)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, seed=1) != mean_interval(values)


def test_more_cases_and_a_lower_level_make_it_narrower() -> None:
    def width(found: Interval) -> float:
        assert found.low is not None
        assert found.high is not None
        return found.high - found.low

    assert width(mean_interval(scores(400))) < width(mean_interval(scores(25)))
    assert width(mean_interval(scores(25), level=0.5)) < width(mean_interval(scores(25)))


def test_most_intervals_hold_the_true_mean() -> None:
    held = 0
    for seed in range(200):
        found = mean_interval(scores(30, seed), draws=500)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 8 / 9 <= found.high
    assert held >= 180  # of 200, where 190 are promised of infinitely many cases


def test_cases_without_a_value_are_left_out() -> None:
    values = [0.5, None, 0.75, None, 1.0]
    assert mean_interval(values) == mean_interval([0.5, 0.75, 1.0])
    assert mean_interval(values).count == 3


def test_few_cases_have_no_interval() -> None:
    assert mean_interval([None, None]) == Interval(mean=None, low=None, high=None, count=0)
    assert mean_interval([]) == Interval(mean=None, low=None, high=None, count=0)
    assert mean_interval([0.5]) == Interval(mean=0.5, low=None, high=None, count=1)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_equal_values_have_an_interval_of_no_width(value: float) -> None:
    found = mean_interval([value] * 7)
    assert (found.mean, found.low, found.high) == pytest.approx((value,) * 3)


def test_values_too_small_to_be_cubed_have_an_interval() -> None:
    found = mean_interval([0.0, 1.7e-118])
    assert (found.low, found.high) == (0.0, 1.7e-118)


def test_the_ends_stay_within_the_values() -> None:
    found = mean_interval([0.0] * 12 + [1.0])
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low < 1 / 13 < found.high <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(DataError, match="a metric without a value is None"):
        mean_interval([0.5, value])


def test_each_column_has_one_vote_however_many_cases_it_has() -> None:
    rows = [[1.0, 0.0], [1.0, None], [1.0, None], [None, None]]
    found = table_interval(rows)
    assert found.mean == mean_of_means(rows) == 0.5
    assert found.count == 3
    assert mean_of_means([[None]]) is None


def test_many_cases_take_little_memory() -> None:
    tracemalloc.start()
    found = mean_interval(scores(6000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.count == 6000
    assert peak < 100 * 2**20  # a number for each two of them would be 275 MiB


def test_what_is_drawn_is_kept_for_the_next_label_of_as_many_cases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = []
    draw = np.random.default_rng

    def counted(seed: int) -> np.random.Generator:
        drawn.append(seed)
        return draw(seed)

    monkeypatch.setattr(intervals.np.random, "default_rng", counted)
    monkeypatch.setattr(intervals, "_kept", OrderedDict())
    one, other = draw(1).random(700).tolist(), draw(2).random(700).tolist()
    first = mean_interval(one), sign_flip_p([[a - b] for a, b in zip(one, other, strict=True)])
    assert drawn == [0, 0]  # samples, and signs
    for values in (other, one):
        last = (
            mean_interval(values),
            sign_flip_p([[a - b] for a, b in zip(one, other, strict=True)]),
        )
    assert drawn == [0, 0]
    assert last == first
    assert mean_interval(one[:-1]).count == 699
    assert mean_interval(one, seed=1) != first[0]
    assert drawn == [0, 0, 0, 1]


def test_what_is_kept_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "_kept", OrderedDict())
    monkeypatch.setattr(intervals, "_KEPT_BYTES", 2000 * 40)
    for count in (10, 20, 15, 41):
        mean_interval(scores(count))
    assert [count for _, count, _, _ in intervals._kept] == [20, 15]


def test_a_column_that_repeats_another_changes_nothing() -> None:
    values = [*scores(20), None, None]
    twice = table_interval([[value, value] for value in values])
    assert twice.count == mean_interval(values).count == 20
    once = mean_interval(values)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), abs=1e-9)


def test_rows_are_drawn_whole() -> None:
    # what one label wins in a case the other loses, so that the mean is 1/2 in every sample
    values = scores(20)
    found = table_interval([[value, 1 - value] for value in values])
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))


def test_all_signs_are_tried_of_few_cases() -> None:
    assert sign_flip_p([[1.0], [2.0], [3.0]]) == 2 / 8
    assert sign_flip_p([[1.0], [1.0], [-1.0]]) == 1
    assert sign_flip_p([[0.0], [0.0]]) == 1
    assert sign_flip_p([[None], [None]]) is None


def test_signs_are_drawn_of_many_cases() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(0.25, 1, 60)
    found = sign_flip_p([[value] for value in values])
    theirs = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=20_000, rng=rng
    ).pvalue
    assert found == pytest.approx(theirs, abs=0.02)
    assert sign_flip_p([[1.0]] * 50) == 1 / 10_001


def test_a_case_keeps_its_labels_together_when_its_sign_is_flipped() -> None:
    assert sign_flip_p([[1.0, 1.0], [1.0, 1.0]]) == 2 / 4  # not 2 / 16
    assert sign_flip_p([[1.0, -1.0], [2.0, -2.0]]) == 1


def test_a_difference_is_that_of_the_two_means_each_with_its_own_gaps() -> None:
    first = [[0.9, None], [0.7, 0.4], [None, None], [0.8, 0.6]]
    second = [[0.5, 0.2], [0.6, None], [0.0, 0.0], [None, 0.3]]
    found = difference_interval(first, second)
    one, other = mean_of_means(first), mean_of_means(second)
    assert one is not None
    assert other is not None
    assert found.mean == pytest.approx(one - other)
    assert found.count == 4
    assert found.low is not None
    assert found.high is not None
    assert found.low < one - other < found.high


def test_a_difference_without_gaps_is_the_mean_of_the_differences() -> None:
    one, other = scores(25), scores(25)[::-1]
    apart = mean_interval([a - b for a, b in zip(one, other, strict=True)])
    found = difference_interval([[a] for a in one], [[b] for b in other])
    assert (found.mean, found.low, found.high) == pytest.approx(
        (apart.mean, apart.low, apart.high), abs=1e-9
    )


def test_samples_without_a_value_of_one_mean_are_passed_over() -> None:
    found = difference_interval([[0.9]] * 3, [[0.5], [None], [None]])
    assert (found.mean, found.low, found.high) == pytest.approx((0.4, 0.4, 0.4))
    assert difference_interval([[0.9]], [[0.5]]).low is None
    assert difference_interval([[0.9], [0.8]], [[None], [None]]).mean is None
    assert difference_interval([], []).count == 0
