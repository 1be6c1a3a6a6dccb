"""A card says what the records say, and nothing that somebody could act by."""

import dataclasses
import re

import pytest
from tiny import toy_plan

from nnseg.choose import CandidateScore, Choice, Choosing, ChosenModel
from nnseg.evaluate import CaseScores, Score, Summary, summarize
from nnseg.labels import Labels
from nnseg.model_card import NO_DEVICE, CardChoice, CardFold, DataNotes, model_card
from nnseg.plan import Plan
from nnseg.postprocess import KeepLargest, Postprocessing
from nnseg.runlog import RunReport

LABELS = Labels(labels={"background": 0, "left": 1, "right": 2})
DATA = DataNotes(cases=3, texts={"name": "Toys", "licence": "CC-BY 4.0", "reference": "Us 2026"})


@pytest.fixture(scope="module")
def plan() -> Plan:
    return toy_plan(LABELS)


def summary(*dice: float) -> Summary:
    def score(share: float) -> Score:
        found = round(100 * share)
        return Score(tp=found, fp=0, fn=2 * (100 - found), tn=1000)  # Dice is the share

    return summarize(
        [
            CaseScores(
                case_id=f"case{number}",
                reference_file="",
                prediction_file="",
                scores={"left": score(share), "right": score(share)},
            )
            for number, share in enumerate(dice)
        ],
        LABELS,
    )


def report() -> RunReport:
    return RunReport(
        command="train",
        arguments={"epochs": 9, "loss": "dice_ce", "lr": None, "pretrained": "/home/me/secret"},
        versions={"nnseg": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "numpy": "2"},
        machine="a machine of mine",
        started="2026-11-22T09:32:22+00:00",
        seconds=60.0,
        exit_code=0,
        error=None,
        warnings=(),
        inputs={"/home/me/image": "0"},
        outputs={},
        cases={},
        facts={},
    )


def fold(**changes: object) -> CardFold:
    usual = CardFold(
        configuration="3d_fullres",
        fold="0",
        epochs=9,
        batch_size=2,
        seconds=5400.0,
        weights_file="3d_fullres/fold_0/checkpoint_final-0123.safetensors",
        weights_sha256="0123" * 16,
        run=report(),
        summary=summary(0.5, 0.75, 1.0),
    )
    return dataclasses.replace(usual, **changes)  # type: ignore[arg-type]


def test_a_card_says_of_what_data_how_made_how_good_and_what_not_for(plan: Plan) -> None:
    card = model_card(plan, [fold()], DATA, "0.1.0")
    assert NO_DEVICE in card
    assert "licence of the data: CC-BY 4.0" in card
    assert "left (1), right (2)" in card
    assert "| 3d_fullres 0 | 9 | 2 | 1.50 | 2026-11-22 | nnseg 0.1.0, torch 2.13.0, python" in card
    assert re.search(r"\| 3d_fullres \| left \| 0\.750 \(0\.\d+ to \d\.\d+\) \| 3 \|", card)
    assert "0123" * 16 in card
    assert "nnseg import MODEL.zip -o model\nnnseg predict -m model/3d_fullres" in card


def test_nothing_of_the_machine_that_trained_it_is_told(plan: Plan) -> None:
    card = model_card(plan, [fold()], DATA, "0.1.0")
    assert "/home/me" not in card
    assert "a machine of mine" not in card
    assert "from pretrained weights" in card


def test_what_no_record_says_is_said_to_be_unknown(plan: Plan) -> None:
    card = model_card(
        plan, [fold(run=None, batch_size=None, seconds=None, summary=None)], None, "0.1.0"
    )
    assert "ask who hands the model on for its origin and **licence" in card
    assert "were not scored, so that nothing is known" in card
    assert "| 3d_fullres 0 | 9 | not recorded | not recorded |" in card
    card = model_card(plan, [fold()], DataNotes(cases=3, texts={}), "0.1.0")
    assert "not stated in its dataset.json" in card


def test_folds_are_scored_together(plan: Plan) -> None:
    folds = [fold(summary=summary(0.5)), fold(fold="1", summary=None)]
    assert "| 3d_fullres | left | 0.500 | 1 |" in model_card(plan, folds, DATA, "0.1.0")


def test_a_text_of_somebody_is_shown_and_does_nothing(plan: Plan) -> None:
    evil = DataNotes(
        cases=3,
        texts={
            "description": "<img src=x onerror=alert(1)>\n# Approved | for clinics",
            "licence": "[free](javascript:alert(1))",
        },
    )
    card = model_card(plan, [fold()], evil, "0.1.0")
    assert r"\<img src=x onerror=alert(1)\> \# Approved \| for clinics" in card
    assert r"\[free\](javascript:alert(1))" in card
    assert "\n# Approved" not in card


def test_the_same_records_make_the_same_card(plan: Plan) -> None:
    assert model_card(plan, [fold()], DATA, "1") == model_card(plan, [fold()], DATA, "1")


def chosen(expected: float | None) -> CardChoice:
    members = (
        ChosenModel(folder="nnseg/3d_fullres", folds=("0",), weight=2.0),
        ChosenModel(folder="nnseg/2d"),
    )
    rules = Postprocessing(rules=(KeepLargest(labels=("left",)),))
    score = CandidateScore(
        name="both",
        members=members,
        dice=0.75,
        low=0.5,
        high=0.875,
        label_dice={"left": 0.75},
        postprocessing=rules,
        dice_postprocessed=0.8125,
        label_dice_postprocessed={"left": 0.8125},
    )
    choosing = Choosing(
        dataset="Dataset001_Toy",
        folds=("0", "1"),
        cases=7,
        candidates=(score,),
        chosen="both",
        expected_dice=expected,
        optimism=None,
        nnunet=score,
        gain=None,
    )
    names = {"nnseg/3d_fullres": ("0",), "nnseg/2d": ("0", "1")}
    return CardChoice(choice=choosing.choice, folds=names, choosing=choosing)


def test_a_card_tells_what_predicts_together_and_what_to_expect_of_it(plan: Plan) -> None:
    card = model_card(plan, [fold()], DATA, "1", chosen(0.625))
    assert "| nnseg/3d\\_fullres | 0 | 2 |\n| nnseg/2d | 0, 1 | 1 |" in card
    assert "keep the largest component of left" in card
    assert "Expected of new cases like its own: Dice 0.625" in card
    assert "In the 7 cases" in card
    assert "Dice 0.750 (95 %: 0.500 to 0.875), with the rules Dice 0.812" in card
    assert "nnseg predict -m model/choice.json" in card
    assert "takes two folds to be estimated" in model_card(plan, [fold()], DATA, "1", chosen(None))
    unknown = CardChoice(
        choice=Choice(members=(ChosenModel(folder="2d"),)), folds={"2d": ("0",)}, choosing=None
    )
    card = model_card(plan, [fold()], DATA, "1", unknown)
    assert "is not known of these weights" in card
    assert "| 2d | 0 | 1 |" in card
    assert "for its label maps: none." in card


def test_folds_of_several_plans_and_seeds_are_told_apart(plan: Plan) -> None:
    other = dataclasses.replace(plan, name="large")
    folds = [
        fold(plan=plan, summary=summary(0.5)),
        fold(plan=plan, fold="0_seed1", summary=summary(0.25)),
        fold(plan=other, summary=summary(1.0)),
    ]
    card = model_card(plan, folds, DATA, "1")
    assert "| nnseg/3d_fullres | left | 0.500 | 1 |" in card
    assert "| nnseg/3d_fullres seed 1 | left | 0.250 | 1 |" in card
    assert "| large/3d_fullres | left | 1.000 | 1 |" in card
    assert "Plan `nnseg` of" in card
    assert "Plan `large` of" in card
    assert "| large/3d_fullres 0 | 9 | 2 | 1.50 |" in card
