"""Candidates, the records of a choice, and what the terminal shows of it."""

from pathlib import Path
from typing import Any

import pytest

from nnseg import record
from nnseg.choose import (
    Candidate,
    CandidateScore,
    Choice,
    Choosing,
    ChosenModel,
    Gain,
    combine,
    describe_choosing,
)
from nnseg.errors import DataError
from nnseg.folders import Folders
from nnseg.postprocess import KeepLargest, Postprocessing
from nnseg.scores.intervals import Interval


def model(name: str) -> Candidate:
    return Candidate(name=name, members=(ChosenModel(folder=f"nnseg/{name}", folds=("0", "1")),))


MODELS = [model("2d"), model("3d"), model("lowres")]
RULES = Postprocessing(rules=(KeepLargest(labels=("organ",)),))


def names(candidates: tuple[Candidate, ...]) -> list[str]:
    return [candidate.name for candidate in candidates]


def test_each_model_comes_alone_then_in_pairs_then_in_threes() -> None:
    assert names(combine(MODELS, most_members=1)) == ["2d", "3d", "lowres"]
    pairs = ["2d + 3d", "2d + lowres", "3d + lowres"]
    assert names(combine(MODELS)) == ["2d", "3d", "lowres", *pairs]
    assert names(combine(MODELS, most_members=9))[3:] == [*pairs, "2d + 3d + lowres"]
    assert names(combine(MODELS[:1], most_members=3)) == ["2d"]


def test_members_keep_their_folders_and_folds() -> None:
    pair = combine(MODELS[:2])[-1]
    assert pair.members == (*MODELS[0].members, *MODELS[1].members)
    assert pair.is_equally_weighted


def test_weights_are_tried_beside_equal_ones_and_none_that_means_the_same_twice() -> None:
    found = combine(MODELS[:2], weights=True)
    assert names(found)[2:] == ["2d + 3d", "2d + 2 x 3d", "2 x 2d + 3d"]
    assert [[member.weight for member in each.members] for each in found[2:]] == [
        [1, 1],
        [1, 2],
        [2, 1],
    ]
    assert not found[-1].is_equally_weighted
    assert len(combine(MODELS, most_members=3, weights=True)) == 3 + 3 * 3 + 7


def test_models_that_may_not_join_stay_alone() -> None:
    found = combine(
        MODELS, most_members=3, may_join=lambda one, other: "2d" not in (one.name, other.name)
    )
    assert names(found) == ["2d", "3d", "lowres", "3d + lowres"]


def score(name: str, dice: float | None, **more: Any) -> CandidateScore:
    known: dict[str, Any] = {
        "members": model("2d").members,
        "low": None if dice is None else dice - 0.0123,
        "high": None if dice is None else dice + 0.0123,
        "label_dice": {"organ": dice},
        "postprocessing": RULES,
        "dice_postprocessed": dice,
        "label_dice_postprocessed": {"organ": dice},
    }
    return CandidateScore(name=name, dice=dice, **{**known, **more})


def choosing(**more: Any) -> Choosing:
    known: dict[str, Any] = {
        "dataset": "Dataset001_Toy",
        "folds": ("0", "1"),
        "cases": 12,
        "candidates": (score("2d + 3d", 0.9), score("2d", 0.8765)),
        "chosen": "2d + 3d",
        "expected_dice": 0.8889,
        "optimism": 0.0111,
        "nnunet": score("2d", 0.8765, postprocessing=Postprocessing()),
        "gain": Gain(over="2d", difference=Interval(mean=0.0235, low=0.01, high=0.03, count=12)),
    }
    return Choosing(**{**known, **more})


def test_the_terminal_shows_the_table_and_the_reasons() -> None:
    assert describe_choosing(choosing(notes=("fold 2 not scored",))).splitlines() == [
        "Dataset001_Toy: 12 cases, each predicted without having trained on it, of folds 0, 1",
        "candidate    Dice     95 % interval  with rules   organ",
        "2d + 3d    0.9000  0.8877 to 0.9123      0.9000  0.9000",
        "2d         0.8765  0.8642 to 0.8888      0.8765  0.8765",
        "",
        "chosen: 2d + 3d, Dice 0.9000",
        "  then keep the largest component of organ",
        "  +0.0235 (95 %: +0.0100 to +0.0300) over 2d, the best by itself",
        "expected of new cases like these: 0.8889, as chosen without the fold that is scored "
        "(+0.0111 is the luck of choosing)",
        "nnU-Net's rule would choose: 2d, Dice 0.8765",
        "note: fold 2 not scored",
    ]


def test_what_cannot_be_told_is_not_made_up() -> None:
    lone = score("2d", None)
    text = describe_choosing(
        choosing(
            folds=("0",),
            candidates=(lone,),
            chosen="2d",
            nnunet=lone,
            gain=None,
            expected_dice=None,
            optimism=None,
        )
    )
    assert "2d            -              -           -      -" in text
    assert "  what to expect of new cases takes two folds to be estimated" in text
    assert "nnU-Net's rule would choose the same" in text
    assert "over" not in text


def test_a_table_of_many_labels_shows_the_first() -> None:
    many = {f"organ_{number}": 0.5 for number in range(40)}
    best = score("2d", 0.5, label_dice=many, label_dice_postprocessed=many)
    text = describe_choosing(choosing(candidates=(best,), chosen="2d"))
    assert "organ_5" in text
    assert "organ_6" not in text


def test_what_was_chosen_comes_back_from_its_files(tmp_path: Path) -> None:
    folders = Folders.of_root(tmp_path)
    found = choosing(weights_sha256={"nnseg/2d/fold_0": "ab"}, notes=("so",))
    record.save(found, folders.choosing_file("Dataset001_Toy"))
    record.save(found.choice, folders.choice_file("Dataset001_Toy"))
    assert record.load(Choosing, folders.choosing_file("Dataset001_Toy")) == found
    choice = record.load(Choice, tmp_path / "results" / "Dataset001_Toy" / "choice.json")
    assert choice == Choice(members=model("2d").members, postprocessing=RULES)


def test_what_was_chosen_must_be_a_candidate() -> None:
    with pytest.raises(DataError, match="3d was chosen, but is none of the candidates"):
        choosing(chosen="3d")


def test_a_choice_needs_a_model() -> None:
    with pytest.raises(DataError, match="needs at least one model"):
        Choice(members=())
