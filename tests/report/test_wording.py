from dataclasses import replace

import pytest

from nnseg.report.facts import (
    CaseRow,
    ChoosingFacts,
    ComparisonFacts,
    Curve,
    DifferenceRow,
    EpochRow,
    Facts,
    FindingRow,
    LabelRow,
    Span,
    SuspectRow,
    Trust,
)
from nnseg.report.wording import between, verdict

BARE = Facts(kind="fold", title="a", subject="b", made="c")


def scored(dice: float | None, **cases: float) -> Facts:
    return replace(
        BARE,
        foreground=LabelRow(name="foreground mean", dice=Span(mean=dice, low=0.1, high=0.9)),
        cases=tuple(CaseRow(case_id=name, dice=value) for name, value in cases.items()),
    )


def texts(facts: Facts) -> str:
    return "\n".join(f"{line.tone}: {line.text}" for line in verdict(facts))


@pytest.mark.parametrize(
    ("dice", "words"),
    [
        (0.9, "good: Over 2 cases the mean Dice is 0.900 (95 % interval 0.100 to 0.900): by the "
              "usual scale very close"),
        (0.89, "scale close"),
        (0.79, "watch: Over"),
        (0.59, "bad: Over"),
    ],
)  # fmt: skip
def test_the_first_sentence_says_how_good_it_is(dice: float, words: str) -> None:
    assert words in texts(scored(dice, a=0.9, b=0.8)).splitlines()[0]


def test_without_any_score_nothing_is_claimed() -> None:
    assert texts(scored(None)).startswith("bad: No case has a label")


def test_failed_cases_are_named_worst_first_and_counted() -> None:
    said = texts(scored(0.6, a=0.4, b=0.1, c=0.2, d=0.3, e=0.9))
    assert "bad: 4 cases below a Dice of 0.5: b (0.10), c (0.20), d (0.30) and 1 more." in said


def test_a_label_far_behind_is_pointed_at() -> None:
    facts = scored(0.8, a=0.8)
    near = (LabelRow(name="x", dice=Span(mean=0.85)), LabelRow(name="y", dice=Span(mean=0.8)))
    far = (
        near[0],
        LabelRow(name="y", dice=Span(mean=0.7)),
        LabelRow(name="z", dice=Span(mean=None)),
    )
    assert "plain: x is found best (0.850), y worst (0.800)." in texts(replace(facts, labels=near))
    said = texts(replace(facts, labels=far))
    assert "watch: x is found best (0.850), y worst (0.700)." in said
    assert "No score of z" in said


def curve(*averages: float) -> Curve:
    return Curve(
        name="fold 0",
        epochs=tuple(
            EpochRow(
                epoch=i + 1,
                lr=0.1,
                loss=0.1,
                validation_loss=0.1,
                dice=value,
                dice_average=value,
                label_dice={},
                seconds=60,
            )
            for i, value in enumerate(averages)
        ),
    )


def test_a_training_that_was_still_rising_is_told() -> None:
    rising = replace(BARE, curves=(curve(*(i / 20 for i in range(15))),))
    assert "fold 0 was still getting better at its end (+0.100" in texts(rising)
    assert "The training took 15.0 min." in texts(rising)
    resting = replace(BARE, curves=(curve(*[0.8] * 15), curve(*[0.8] * 15)))
    assert "still" not in texts(resting)
    assert "2 trainings took 30.0 min." in texts(resting)


def difference(mean: float, p: float) -> Facts:
    row = DifferenceRow(name="all", difference=Span(mean=mean), p_value=p, wins=1, ties=0, losses=0)
    return replace(BARE, comparison=ComparisonFacts(first="a", second="b", rows=(row,)))


def test_a_difference_is_claimed_only_beyond_chance() -> None:
    assert "good: b is better than a by 0.0200" in texts(difference(0.02, 0.01))
    assert "good: a is better than b by 0.0200" in texts(difference(-0.02, 0.01))
    assert "plain: No clear difference: b is ahead of a" in texts(difference(0.02, 0.2))


def test_what_is_worth_a_look_is_said() -> None:
    facts = replace(
        BARE,
        choosing=ChoosingFacts(
            candidates=(), chosen="3d_fullres", expected_dice=0.8, optimism=0.01, nnunet=None
        ),
        trust=(
            Trust(
                name="fold 0",
                temperature=1.5,
                ece_before=0.1,
                ece_after=0.0,
                pearson=None,
                spearman=None,
                cases=3,
            ),
        ),
        suspects=(SuspectRow(case_id="x", score=1, label=None, reason="", where=None),),
        findings=(FindingRow(severity="error", file="f", found="g", remedy="h"),),
    )
    said = texts(facts)
    assert "3d_fullres was chosen among 0 candidates." in said
    assert (
        "expect a Dice of 0.800; choosing the best of them flatters its own score by 0.0100" in said
    )
    assert "watch: fold 0: the model is surer than it should be (temperature 1.50)" in said
    assert "1 reference label maps may be wrong; look first at x." in said
    assert "bad: The doctor found 1 error" in said
    assert "good: The doctor found nothing" in texts(replace(BARE, findings=()))


def test_an_interval_without_ends_is_no_text() -> None:
    assert between(Span(mean=0.5)) == ""


def test_two_that_are_the_same_are_not_ranked() -> None:
    assert texts(difference(0.0, 1.0)) == "plain: The two have the same mean Dice."
