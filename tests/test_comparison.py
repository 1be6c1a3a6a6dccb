import dataclasses
from typing import Any

import pytest

from nnseg.errors import DataError
from nnseg.evaluate import CaseScores, Score, Summary, summarize
from nnseg.labels import Labels
from nnseg.scores.comparison import Unpaired, compare
from nnseg.scores.detection import Detection

ORGANS = Labels(labels={"background": 0, "liver": 1, "spleen": 2})


def score(tp: int, fp: int, fn: int, **more: Any) -> Score:
    return Score(tp=tp, fp=fp, fn=fn, tn=100, **more)


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
    assert (liver.effect, liver.p_value, liver.unpaired) == (0, 1, ())
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


def test_what_one_result_made_up_is_a_loss_though_there_is_no_difference() -> None:
    first = result(a=(score(1, 0, 0), NOTHING), b=(score(1, 0, 0), NOTHING))
    second = result(a=(score(1, 0, 0), score(0, 5, 0)), b=(score(1, 0, 0), NOTHING))
    for metric in ("dice", "iou"):
        found = compare(first, second, metric=metric)
        spleen = found.labels["spleen"]
        assert (spleen.mean, spleen.p_value) == (None, None)
        assert spleen.unpaired == (
            Unpaired(case_id="a", label="spleen", only="b", better="a", reason="made up"),
        )
        assert (spleen.wins, spleen.ties, spleen.losses) == (0, 0, 1)
        assert (spleen.only("a"), spleen.only("b")) == (0, 1)
        assert (found.foreground.only("b"), found.foreground.mean) == (1, 0)
        assert (found.foreground.wins, found.foreground.ties, found.foreground.losses) == (0, 1, 1)
        other_way = compare(second, first, metric=metric).labels["spleen"]
        assert (other_way.wins, other_way.losses, other_way.only("a")) == (1, 0, 1)


def test_who_missed_all_of_a_label_loses_though_it_has_no_distance() -> None:
    seen = score(2, 0, 2, hd95_mm=3.0, assd_mm=1.0, nsd=0.5)
    missed, exact = score(0, 0, 4, nsd=0.0), score(4, 0, 0, hd95_mm=0.0, assd_mm=0.0, nsd=1.0)
    first = result(a=(exact, NOTHING), b=(missed, NOTHING), c=(missed, NOTHING))
    second = result(a=(seen, NOTHING), b=(seen, NOTHING), c=(seen, NOTHING))
    for metric in ("hd95", "assd"):
        liver = compare(first, second, metric=metric).labels["liver"]
        assert (liver.mean_a, liver.interval.count) == (0, 1)
        assert (liver.wins, liver.ties, liver.losses) == (2, 0, 1)
        assert [(one.case_id, one.only, one.better) for one in liver.unpaired] == (
            [("b", "b", "b"), ("c", "b", "b")]
        )
        assert {one.reason for one in liver.unpaired} == {"missed"}


def test_what_was_made_up_counts_for_metrics_that_neither_result_has_a_value_of() -> None:
    speck = score(0, 3, 0, nsd=0.0)
    first, second = result(a=(NOTHING, NOTHING)), result(a=(speck, NOTHING))
    for metric in ("hd95", "volume"):
        liver = compare(first, second, metric=metric).labels["liver"]
        assert (liver.wins, liver.ties, liver.losses) == (0, 0, 1)
        assert liver.unpaired[0].only is None
    both = compare(second, second, metric="hd95").labels["liver"]
    assert (both.unpaired, both.ties) == ((), 0)


def test_sensitivity_knows_nothing_of_what_was_made_up() -> None:
    none = Detection(
        found=0, missed=0, spurious=0, iou_sum=0.0, panoptic_found=0, panoptic_iou_sum=0.0
    )
    rightly = score(0, 0, 0, detection=none)
    wrongly = score(0, 3, 0, detection=dataclasses.replace(none, spurious=1))
    first, second = result(a=(rightly, rightly)), result(a=(wrongly, rightly))
    assert compare(first, second, metric="sensitivity").labels["liver"].unpaired == ()
    assert compare(first, second, metric="f1").labels["liver"].losses == 1
    assert compare(first, second, metric="pq").labels["liver"].losses == 1
    assert compare(first, second, metric="false_positives").labels["liver"].losses == 1


def test_a_value_that_is_missing_for_no_reason_counts_for_nobody() -> None:
    measured, not_so = score(2, 1, 1, hd95_mm=1.0, nsd=0.5), score(2, 1, 1)
    first, second = result(a=(measured, NOTHING)), result(a=(not_so, NOTHING))
    liver = compare(first, second, metric="hd95").labels["liver"]
    assert (liver.wins, liver.ties, liver.losses) == (0, 0, 0)
    (one,) = liver.unpaired
    assert (one.only, one.better, one.reason) == ("a", None, "not measured")


def test_what_is_unpaired_decides_a_case_before_what_can_be_measured() -> None:
    first = result(a=(score(2, 2, 2), NOTHING))
    second = result(a=(score(3, 1, 1), score(0, 1, 0)))  # a better liver, and a spleen made up
    whole = compare(first, second).foreground
    assert (whole.mean, whole.wins, whole.losses) == (0.25, 0, 1)


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
