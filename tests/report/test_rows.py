from dataclasses import replace

import pytest
import tiny
from report_pages import EVIL, summary

from nnseg.labels import Labels
from nnseg.model.architecture import NetworkOptions
from nnseg.report import rows
from nnseg.scores.comparison import compare


def test_cases_come_worst_first_and_some_are_picked() -> None:
    found = rows.case_rows(summary(11))
    assert [row.case_id for row in found][:2] == ["case_10", "case_9"]
    assert [row.case_id for row in found][-2:] == [EVIL, "case_0"]
    picks = [row.pick for row in found]
    assert picks == ["worst"] * 3 + [None] + ["median"] * 3 + [None] + ["best"] * 3


def test_two_cases_are_too_few_to_pick_from() -> None:
    assert [row.pick for row in rows.case_rows(summary(2))] == [None, None]


def test_a_label_row_has_the_mean_its_interval_and_the_median() -> None:
    found = summary(9)
    foreground, labels = rows.label_rows(found)
    assert [row.name for row in labels] == ["liver", EVIL]
    row = labels[0]
    assert row.dice.mean == found.mean["liver"].dice
    assert row.dice.low is not None
    assert row.dice.high is not None
    assert row.dice.low < row.dice.mean < row.dice.high
    dice = sorted(case.scores["liver"].dice or 0 for case in found.cases)
    assert row.median == pytest.approx(dice[4])
    assert foreground.dice.mean == found.foreground_mean.dice


def test_the_worst_distance_of_a_case_is_told() -> None:
    (row,) = [row for row in rows.case_rows(summary(3)) if row.case_id == "case_2"]
    scores = summary(3).cases[2].scores
    assert row.hd95_mm == max(score.hd95_mm or 0 for score in scores.values())


def test_a_comparison_ends_with_the_foreground() -> None:
    found = rows.comparison_facts(compare(summary(6, shift=2), summary(6)), "a", "b")
    assert [row.name for row in found.rows] == ["liver", EVIL, rows.FOREGROUND]
    mean = found.rows[-1].difference.mean
    assert mean is not None
    assert mean > 0
    assert found.rows[0].wins == 5
    assert found.rows[0].ties == 1


def test_a_second_prediction_is_beside_the_first() -> None:
    first, second = summary(4, shift=2), summary(3)
    found = {row.case_id: row for row in rows.with_second(rows.case_rows(first), second)}
    assert found["case_3"].other_dice is None
    assert (found["case_2"].other_dice or 0) > (found["case_2"].dice or 0)


def test_a_table_of_epochs_is_read_back() -> None:
    text = (
        "epoch,lr,loss,validation_loss,dice,dice_average,dice_liver,seconds,wait_share\n"
        "1,0.1,0.5,0.4,,,,12.5,0\n2,0.09,0.3,0.2,0.7,0.6,0.5,13,0\n"
    )
    curve = rows.read_curve("fold 0", text)
    assert [epoch.dice_average for epoch in curve.epochs] == [None, 0.6]
    assert curve.epochs[1].label_dice == {"liver": 0.5}


def test_a_table_that_is_none_is_refused() -> None:
    with pytest.raises(KeyError):
        rows.read_curve("fold 0", "a,b\n1,2\n")


def test_a_plan_names_its_network_unless_it_is_the_plain_one() -> None:
    plan = tiny.toy_plan(Labels(labels={"background": 0, "liver": 1}))
    planned = plan.configuration("3d_fullres")
    levels = planned.architecture.levels

    def told(network: str, **options: str) -> str:
        architecture = replace(
            planned.architecture, network=network, options=NetworkOptions(**options)
        )
        changed = replace(planned, architecture=architecture)
        facts = rows.plan_facts(replace(plan, configurations={"3d_fullres": changed}))
        return facts.configurations[0][1]

    assert f"at a time, {levels} levels; the" in told("plain")
    assert f"at a time, resenc of {levels} levels; the" in told("resenc")
    assert f", unetpp (norm batch) of {levels} levels; the" in told("unetpp", norm="batch")
