import dataclasses

import pytest

from nnseg.comparison import compare
from nnseg.errors import DataError
from nnseg.evaluate import CaseScores, Score, Summary, summarize
from nnseg.labels import Labels

ORGANS = Labels(labels={"background": 0, "liver": 1, "spleen": 2})


def score(tp: int, fp: int, fn: int, **surface: float) -> Score:
    return Score(tp=tp, fp=fp, fn=fn, tn=100, **surface)


def result(**cases: tuple[Score, Score]) -> Summary:
    return summarize(
        [
            CaseScores(
                case_id=name,
                reference_file=f"{name}.nii.gz",
                prediction_file=f"{name}.nii.gz",
                scores={"liver": liver, "spleen": spleen},
            )
            for name, (liver, spleen) in cases.items()
        ],
        ORGANS,
    )


# liver's Dice is 0.5, 0.5, 0.5 in A and 0.75, 0.5, 0.25 in B
NOTHING = score(0, 0, 0)
A = result(
    a=(score(2, 2, 2), NOTHING), b=(score(2, 2, 2), score(1, 0, 1)), c=(score(2, 2, 2), NOTHING)
)
B = result(
    c=(score(1, 3, 3), NOTHING), a=(score(3, 1, 1), NOTHING), b=(score(2, 2, 2), score(2, 0, 0))
)


def test_differences_are_the_second_result_less_the_first_case_by_case() -> None:
    found = compare(A, B)
    liver = found.labels["liver"]
    assert found.cases == ("a", "b", "c")
    assert (liver.mean_a, liver.mean_b, liver.mean) == (0.5, 0.5, 0)
    assert (liver.wins, liver.ties, liver.losses) == (1, 1, 1)
    assert (liver.effect, liver.p_value, liver.unpaired) == (0, 1, 0)
    spleen = found.labels["spleen"]
    assert (spleen.mean_a, spleen.mean_b) == pytest.approx((2 / 3, 1))
    assert (spleen.interval.count, spleen.wins) == (1, 1)
    assert spleen.effect is None  # of one case


def test_the_foreground_gives_each_label_one_vote() -> None:
    found = compare(A, B).foreground
    assert found.mean == pytest.approx((0 + 1 / 3) / 2)
    assert (found.wins, found.ties, found.losses) == (2, 0, 1)
    assert found.interval.count == 3


def test_the_effect_is_the_mean_difference_by_its_deviation() -> None:
    other = result(
        a=(score(3, 1, 1), NOTHING), b=(score(3, 1, 1), NOTHING), c=(score(2, 2, 2), NOTHING)
    )
    first = result(**dict.fromkeys("abc", (score(2, 2, 2), NOTHING)))
    liver = compare(first, other).labels["liver"]
    assert liver.mean == pytest.approx(0.5 / 3)  # of 0.25, 0.25 and 0
    assert liver.effect == pytest.approx((0.5 / 3) / (0.25 / 3**0.5))
    assert liver.p_value == 4 / 8


def test_a_lower_distance_is_a_win() -> None:
    first = result(
        a=(score(2, 0, 0, hd95_mm=4.0), NOTHING), b=(score(2, 0, 0, hd95_mm=1.0), NOTHING)
    )
    second = result(
        a=(score(2, 0, 0, hd95_mm=1.0), NOTHING), b=(score(2, 0, 0, hd95_mm=1.5), NOTHING)
    )
    liver = compare(first, second, metric="hd95").labels["liver"]
    assert liver.mean == -1.25
    assert (liver.wins, liver.losses) == (1, 1)


def test_the_size_of_a_volume_error_counts_and_not_its_sign() -> None:
    first, second = (
        result(a=(score(4, 2, 0), NOTHING)),
        result(a=(score(3, 0, 1), NOTHING)),
    )
    liver = compare(first, second, metric="volume").labels["liver"]
    assert (liver.mean_a, liver.mean_b, liver.wins) == (0.5, 0.25, 1)


def test_a_value_that_one_result_alone_has_is_counted_as_unpaired() -> None:
    first = result(a=(score(1, 0, 0), NOTHING), b=(score(1, 0, 0), NOTHING))
    second = result(a=(score(1, 0, 0), score(0, 5, 0)), b=(score(1, 0, 0), NOTHING))
    found = compare(first, second)
    spleen = found.labels["spleen"]
    assert (spleen.unpaired, spleen.mean, spleen.p_value) == (1, None, None)
    assert (found.foreground.unpaired, found.foreground.mean) == (1, 0)


def test_cases_of_one_result_are_named_and_left_out() -> None:
    more = result(z=(score(1, 0, 0), NOTHING), a=(score(3, 1, 1), NOTHING))
    found = compare(A, more)
    assert (found.cases, found.only_a, found.only_b) == (("a",), ("b", "c"), ("z",))
    assert found.labels["liver"].mean == 0.25


def test_results_that_have_nothing_to_do_with_each_other_are_refused() -> None:
    with pytest.raises(DataError, match="no case is in both"):
        compare(A, result(z=(score(1, 0, 0), NOTHING)))
    with pytest.raises(DataError, match=r"case a: liver has 4 voxels .* and 5 in that"):
        compare(A, result(a=(score(4, 0, 1), NOTHING)))
    renamed = dataclasses.replace(B, mean={"left": B.mean["liver"], "right": B.mean["spleen"]})
    with pytest.raises(DataError, match=r"labels are \['liver', 'spleen'\]"):
        compare(A, renamed)
