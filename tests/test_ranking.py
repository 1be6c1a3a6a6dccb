"""Which candidate is chosen, by which rules, and what is told of it."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pytest

from nnseg.axes import Segmentation
from nnseg.choose import Candidate, Choosing, ChosenModel
from nnseg.errors import StoppedError
from nnseg.evaluate import CaseScores, score_case, summarize
from nnseg.labels import Labels
from nnseg.postprocess import KeepLargest, MinimumSize
from nnseg.postprocess.cohort import make_cohort
from nnseg.postprocess.decide import decide, decide_each
from nnseg.postprocess.rules import Unit
from nnseg.postprocess.table import component_table
from nnseg.ranking import Evidence, choose, foreground

ONE = Labels(labels={"background": 0, "organ": 1})
TWO = Labels(labels={"background": 0, "left": 1, "right": 2})
SHAPE, SPACING = (3, 4, 20), (2.0, 1.0, 0.5)
PARTS = [KeepLargest(labels=("organ",))]


def single(name: str) -> Candidate:
    return Candidate(name=name, members=(ChosenModel(folder=f"nnseg/{name}"),))


def together(name: str, *folders: str, weights: tuple[float, ...] = ()) -> Candidate:
    shares = weights or (1.0,) * len(folders)
    members = (ChosenModel(folder=f, weight=w) for f, w in zip(folders, shares, strict=True))
    return Candidate(name=name, members=tuple(members))


def drawn(hits: int, stray: int = 0) -> Segmentation:
    """A prediction of `hits` of the reference's 8 voxels, and a piece apart from it."""
    result = np.zeros(SHAPE, np.uint8)
    result[1, 2, :hits] = 1
    result[1, 2, 12 : 12 + stray] = 1
    return result


def evidence(
    maps: Mapping[str, Mapping[str, Segmentation]],
    folds: Mapping[str, str],
    references: Mapping[str, Segmentation] | None = None,
    labels: Labels = ONE,
) -> Evidence:
    references = references or dict.fromkeys(folds, drawn(8))
    return Evidence(
        labels=labels,
        folds=folds,
        spacings=dict.fromkeys(folds, SPACING),
        tables={
            name: {case: component_table(of[case], references[case], labels) for case in folds}
            for name, of in maps.items()
        },
    )


def chosen(candidates: list[Candidate], found: Evidence) -> Choosing:
    return choose("Dataset001_Toy", candidates, found)


def test_the_highest_dice_after_the_rules_is_chosen_not_the_highest_before() -> None:
    maps = {"a": {"x": drawn(8, 2)}, "b": {"x": drawn(7)}}
    found = chosen([single("b"), single("a")], evidence(maps, {"x": "0"}))
    assert [score.name for score in found.candidates] == ["a", "b"]
    assert found.chosen == "a"
    assert found.best.dice == pytest.approx(16 / 18)
    assert found.best.dice_postprocessed == 1
    assert list(found.choice.postprocessing.rules) == PARTS
    assert found.choice.members == single("a").members


def test_nnunet_chooses_before_it_has_rules() -> None:
    maps = {"a": {"x": drawn(8, 2)}, "b": {"x": drawn(7, 1)}}
    found = chosen([single("a"), single("b")], evidence(maps, {"x": "0"}))
    assert (found.chosen, found.nnunet.name) == ("a", "a")
    maps["b"]["x"] = drawn(7)
    found = chosen([single("a"), single("b")], evidence(maps, {"x": "0"}))
    assert (found.chosen, found.nnunet.name) == ("a", "b")
    assert found.nnunet.dice == found.nnunet.dice_postprocessed == pytest.approx(14 / 15)


def test_nnunet_knows_neither_three_models_nor_weights() -> None:
    three = together("three", "p/a", "p/b", "p/c")
    weighted = together("weighted", "p/a", "p/b", weights=(2.0, 1.0))
    pair = together("pair", "p/a", "p/b")
    maps = {
        "one": {"x": drawn(4)},
        "pair": {"x": drawn(5)},
        "weighted": {"x": drawn(7)},
        "three": {"x": drawn(8)},
    }
    found = chosen([single("one"), pair, weighted, three], evidence(maps, {"x": "0"}))
    assert (found.chosen, found.nnunet.name) == ("three", "pair")


def test_of_equals_fewer_members_are_chosen_and_then_the_first() -> None:
    maps = {name: {"x": drawn(6), "y": drawn(7)} for name in ("pair", "b", "a")}
    pair = together("pair", "p/a", "p/b")
    found = chosen([pair, single("b"), single("a")], evidence(maps, {"x": "0", "y": "1"}))
    assert [score.name for score in found.candidates] == ["b", "a", "pair"]
    assert found.nnunet.name == "pair"  # it takes the first


def test_what_is_expected_is_of_folds_that_had_no_say_in_the_members() -> None:
    maps = {"a": {"x": drawn(8), "y": drawn(2)}, "b": {"x": drawn(3), "y": drawn(5)}}
    found = chosen([single("a"), single("b")], evidence(maps, {"x": "0", "y": "1"}))
    assert found.chosen == "a"
    assert found.best.dice == pytest.approx((1 + 0.4) / 2)
    # by y alone b is better, and finds 3 of 8 in x; by x alone a, and finds 2 of 8 in y
    assert found.expected_dice == pytest.approx((6 / 11 + 4 / 10) / 2)
    assert found.optimism == pytest.approx(0.7 - (6 / 11 + 4 / 10) / 2)


def test_what_is_expected_is_of_folds_that_had_no_say_in_the_rules() -> None:
    of_two_parts = drawn(8, 4)
    maps = {"a": {"w": drawn(8, 4), "x": drawn(8, 4), "y": of_two_parts}}
    references = {"w": drawn(8), "x": drawn(8), "y": of_two_parts}
    folds = {"w": "0", "x": "0", "y": "1"}
    found = chosen([single("a")], evidence(maps, folds, references))
    assert list(found.best.postprocessing.rules) == PARTS
    assert found.best.dice == pytest.approx((0.8 + 0.8 + 1) / 3)
    assert found.best.dice_postprocessed == pytest.approx((1 + 1 + 0.8) / 3)
    # y alone takes no rule, which leaves 0.8 to w and x; they take one, which leaves 0.8 to y
    assert found.expected_dice == pytest.approx(0.8)


@pytest.mark.parametrize("unit", ["ml", "voxels"])
def test_smallest_sizes_are_tried_in_the_unit_that_means_something(unit: Unit) -> None:
    of_two_parts = drawn(8, 4)
    predicted = of_two_parts.copy()
    predicted[0, 0, 0] = 1
    folds = {"x": "0", "y": "1", "z": "2"}
    found = evidence(
        {"a": dict.fromkeys(folds, predicted)}, folds, dict.fromkeys(folds, of_two_parts)
    )
    rules = chosen([single("a")], dataclasses.replace(found, unit=unit)).choice.postprocessing.rules
    (rule,) = rules
    assert isinstance(rule, MinimumSize)
    assert rule.unit == unit
    assert chosen([single("a")], found).expected_dice == 1  # two folds suffice to find the size


def test_of_one_fold_nothing_can_be_left_out() -> None:
    maps = {"a": {"x": drawn(8), "y": drawn(7)}}
    found = chosen([single("a")], evidence(maps, {"x": "3", "y": "3"}))
    assert found.folds == ("3",)
    assert (found.expected_dice, found.optimism) == (None, None)
    assert found.best.dice == pytest.approx((1 + 14 / 15) / 2)


def test_folds_are_in_the_order_of_their_numbers() -> None:
    folds = {"x": "10", "y": "9", "z": "2"}
    maps = {"a": dict.fromkeys(folds, drawn(7))}
    assert chosen([single("a")], evidence(maps, folds)).folds == ("2", "9", "10")


def test_the_gain_is_over_the_best_single_model() -> None:
    folds = {"x": "0", "y": "1"}
    maps = {
        "a": {"x": drawn(4), "y": drawn(4)},
        "b": {"x": drawn(5), "y": drawn(6)},
        "pair": {"x": drawn(8), "y": drawn(8)},
    }
    candidates = [single("a"), single("b"), together("pair", "p/a", "p/b")]
    found = chosen(candidates, evidence(maps, folds))
    assert found.gain is not None
    assert found.gain.over == "b"
    assert found.gain.difference.mean == pytest.approx(1 - (10 / 13 + 12 / 14) / 2)
    assert found.gain.difference.low is not None
    assert found.gain.difference.low > 0
    alone = chosen(candidates[:2], evidence(maps, folds))
    assert alone.gain is None


def test_the_gain_is_the_difference_of_the_means_that_are_told() -> None:
    # the references of y and z are empty: the pair rightly finds nothing there, and has no Dice
    empty, folds = np.zeros(SHAPE, np.uint8), {"w": "0", "x": "1", "y": "0", "z": "1"}
    references = {"w": drawn(8), "x": drawn(8), "y": empty, "z": empty}
    maps = {
        "a": {"w": drawn(8), "x": drawn(7), "y": drawn(8), "z": drawn(8)},
        "pair": {"w": drawn(6), "x": drawn(7), "y": empty, "z": empty},
    }
    found = chosen([single("a"), together("pair", "p/a", "p/b")], evidence(maps, folds, references))
    best, other = found.candidates
    assert (best.name, other.name) == ("pair", "a")
    assert found.gain is not None
    assert best.dice_postprocessed is not None
    assert other.dice_postprocessed is not None
    expected = best.dice_postprocessed - other.dice_postprocessed
    assert expected > 0.3
    assert found.gain.difference.mean == pytest.approx(expected, abs=1e-12)


def test_the_rules_of_all_folds_left_out_are_those_of_each_by_itself() -> None:
    rng = np.random.default_rng(11)
    folds = {f"c{number:02}": str(number % 3) for number in range(12)}
    references, predictions = {}, {}
    for case in folds:
        reference = np.zeros(SHAPE, np.uint8)
        reference[:, :2, 2 : 4 + int(rng.integers(0, 5))] = 1
        reference[:, 2:, 12 : 14 + int(rng.integers(0, 4))] = 2
        reference[0, 3, 0] = 1 if folds[case] == "0" else 0  # a part that rules would take away
        wrong = rng.random(SHAPE) < (0.0 if folds[case] == "0" else 0.02)
        predictions[case] = np.where(wrong, rng.integers(0, 3, SHAPE), reference).astype(np.uint8)
        references[case] = reference
    found = evidence({"a": predictions}, folds, references, TWO)
    ids = list(folds)
    left_out = ("none", "0", "1", "2")
    parts = [np.array([folds[case] != fold for case in ids]) for fold in left_out]
    cohort = make_cohort(found.tables["a"], TWO, found.spacings)
    at_once = decide_each(cohort, parts, folds)
    rules = set()
    for part, each in zip(parts, at_once, strict=True):
        cases = [case for case, inside in zip(ids, part, strict=True) if inside]
        alone = decide(
            {case: found.tables["a"][case] for case in cases},
            TWO,
            found.spacings,
            folds={case: folds[case] for case in cases},
        )
        assert each.decided == alone
        rules.add(alone.postprocessing)
    assert len(rules) > 1  # or parts could be mixed up unseen


def test_the_mean_is_that_of_a_summary_whatever_labels_are_missing() -> None:
    rng = np.random.default_rng(3)
    folds = {str(number): str(number % 2) for number in range(6)}
    references = {case: np.zeros(SHAPE, np.uint8) for case in folds}
    predictions = {case: np.zeros(SHAPE, np.uint8) for case in folds}
    for number, case in enumerate(folds):
        labels = [(1,), (2,), (1, 2), (), (1, 2), (1,)][number]
        for array in (references[case], predictions[case]):
            for label in labels:
                array[rng.random(SHAPE) < 0.3] = label
    predictions["3"][0, 0, 0] = 2  # where the reference is empty
    found = chosen([single("a")], evidence({"a": predictions}, folds, references, TWO))
    scored = [
        CaseScores(
            case_id=case,
            reference_file="",
            prediction_file="",
            scores=score_case(predictions[case], references[case], TWO, SPACING, surface=False),
        )
        for case in folds
    ]
    summary = summarize(scored, TWO)
    assert found.best.dice == pytest.approx(summary.foreground_mean.dice, abs=1e-12)
    assert found.best.label_dice == pytest.approx(
        {name: mean.dice for name, mean in summary.mean.items()}, abs=1e-12
    )
    assert found.best.low is not None
    assert found.best.high is not None
    assert found.best.low < found.best.dice < found.best.high


def test_a_label_that_nobody_has_costs_nothing() -> None:
    maps = {"a": {"x": drawn(8), "y": drawn(4)}}
    found = chosen([single("a")], evidence(maps, {"x": "0", "y": "1"}, labels=TWO))
    assert found.best.label_dice["right"] is None
    assert found.best.dice == pytest.approx((1 + 8 / 12) / 2)
    empty = {"a": {"x": np.zeros(SHAPE, np.uint8)}}
    nothing = chosen([single("a")], evidence(empty, {"x": "0"}, {"x": np.zeros(SHAPE, np.uint8)}))
    assert nothing.best.dice is None
    assert nothing.chosen == nothing.nnunet.name == "a"
    assert math.isnan(foreground(np.full((2, 3), np.nan)))


def test_it_tells_of_each_step_and_can_be_stopped_before_any() -> None:
    maps = {name: {"x": drawn(8), "y": drawn(7)} for name in ("a", "b")}
    found = evidence(maps, {"x": "0", "y": "1"})
    told: list[tuple[str, int, int]] = []
    choose(
        "Dataset001_Toy",
        [single("a"), single("b")],
        found,
        on_progress=lambda *step: told.append(step),
    )
    assert told == [("choosing", number, 2) for number in (1, 2)]
    steps = iter([False, True])
    with pytest.raises(StoppedError, match="stopped while choosing"):
        choose("Dataset001_Toy", [single("a"), single("b")], found, stop=lambda: next(steps))
