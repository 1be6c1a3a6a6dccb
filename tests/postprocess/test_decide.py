import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnseg.errors import DataError
from nnseg.evaluate import score_case
from nnseg.labels import Labels
from nnseg.postprocess import (
    ComponentTable,
    Decided,
    KeepLargest,
    MinimumSize,
    Postprocessing,
    Rule,
    apply,
    component_table,
    decide,
    decide_as_nnunet,
    keep_largest_foreground,
)
from nnseg.postprocess.sizes import Sizes, try_sizes

SHAPE = (4, 6, 9)
SPACING = (5.0, 0.5, 0.8)  # 2 mm^3 a voxel
ONE = Labels(labels={"background": 0, "lesion": 1})
ORGANS = Labels(labels={"background": 0, "spleen": 2, "liver": 1, "gall": 3})
TUMOUR = Labels(
    labels={"background": 0, "whole": (1, 2, 3), "core": (2, 3), "active": 3},
    regions_class_order=(1, 2, 3),
)
INSIDE_OUT = Labels(
    labels={"background": 0, "active": 3, "core": (2, 3), "whole": (1, 2, 3), "ignore": 4},
    regions_class_order=(3, 2, 1),
)
CROSSED = Labels(
    labels={"background": 0, "active": 3, "left": (1, 2), "right": (2, 3)},
    regions_class_order=(3, 1, 2),
)
ALL = [ONE, ORGANS, TUMOUR, INSIDE_OUT, CROSSED]
NAMES = ["one", "labels", "regions", "inside out", "crossed"]

Maps = dict[str, tuple[np.ndarray, np.ndarray]]  # case to prediction and reference


def line(*values: int) -> np.ndarray:
    """A label map of one line of voxels in a volume that is empty otherwise."""
    result = np.zeros((3, 5, len(values)), dtype=np.uint16)
    result[1, 3] = values
    return result


def tables_of(maps: Maps, labels: Labels) -> dict[str, ComponentTable]:
    return {case: component_table(*pair, labels) for case, pair in maps.items()}


def decided(maps: Maps, labels: Labels, **how: Any) -> Decided:
    return decide(tables_of(maps, labels), labels, dict.fromkeys(maps, SPACING), **how)


def draw(labels: Labels, generator: np.random.Generator, cases: int) -> Maps:
    """Boxes within boxes as references, and predictions of them with specks and holes."""
    drawn = {}
    values = [value for value in labels.values if value != labels.ignore]
    for case in range(cases):
        reference = np.zeros(SHAPE, dtype=np.uint8)
        for value in values[1:] if generator.random() < 0.8 else ():
            corner = generator.integers(0, (2, 3, 5))
            z, y, x = (slice(c, c + e) for c, e in zip(corner, (2, 3, 4), strict=True))
            reference[z, y, x] = value
        speck = generator.random(SHAPE) < generator.choice([0.0, 0.02, 0.08, 0.3])
        prediction = np.where(speck, generator.choice(values, SHAPE), reference)
        if labels.ignore is not None:
            reference[generator.random(SHAPE) < 0.1] = labels.ignore
        drawn[f"case_{case}"] = (prediction.astype(np.uint8), reference)
    return drawn


def mean_dice(maps: Maps, rules: tuple[Rule, ...], labels: Labels) -> dict[str, float]:
    """The mean Dice of label maps that are made, nan where no case has one."""
    found: dict[str, list[float]] = {name: [] for name in labels.foreground}
    for prediction, reference in maps.values():
        left = apply(prediction, Postprocessing(rules=rules), labels, SPACING)
        for name, score in score_case(left, reference, labels, SPACING, surface=False).items():
            found[name] += [] if score.dice is None else [score.dice]
    return {name: float(np.mean(v)) if v else math.nan for name, v in found.items()}


def peer_rules(maps: Maps, labels: Labels, *, known: bool) -> tuple[Rule, ...]:
    """What nnU-Net would take, by making every label map; with `known`, means skip nan."""

    def foreground(means: Mapping[str, float]) -> float:
        values = [v for v in means.values() if not (known and math.isnan(v))]
        return float(np.mean(values)) if values else math.nan

    taken: tuple[Rule, ...] = ()
    now = mean_dice(maps, taken, labels)
    tried = mean_dice(maps, (keep_largest_foreground(labels),), labels)
    if foreground(tried) > foreground(now) and not any(tried[n] < now[n] for n in now):
        taken, now = (keep_largest_foreground(labels),), tried
    names = list(labels.foreground)
    if not labels.has_regions:
        names.sort(key=labels.foreground.__getitem__)
    for name in names if len(names) > 1 else ():
        rule = KeepLargest(labels=(name,))
        tried = mean_dice(maps, (*taken, rule), labels)
        if tried[name] > now[name]:
            taken, now = (*taken, rule), tried
    return taken


@pytest.mark.parametrize("labels", ALL, ids=NAMES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_rules_are_those_that_making_every_label_map_would_choose(
    labels: Labels, seed: int
) -> None:
    maps = draw(labels, np.random.default_rng(seed), cases=4)
    found = decide_as_nnunet(tables_of(maps, labels), labels)
    assert found.postprocessing.rules == peer_rules(maps, labels, known=False)
    ours = decided(maps, labels, minimum_sizes=False)
    assert ours.postprocessing.rules == peer_rules(maps, labels, known=True)
    for rules, dice in (((), ours.dice_before), (ours.postprocessing.rules, ours.dice_after)):
        expected = mean_dice(maps, rules, labels)
        told = {name: math.nan if v is None else v for name, v in dice.labels.items()}
        assert told == pytest.approx(expected, nan_ok=True, abs=1e-12)


def test_the_largest_foreground_is_kept_where_that_raises_the_mean_and_lowers_no_label() -> None:
    truth = line(1, 1, 2, 2, 0, 0, 0, 0, 0)
    maps = {"a": (line(1, 1, 2, 2, 0, 1, 0, 2, 0), truth)}
    both = Labels(labels={"background": 0, "liver": 1, "spleen": 2})
    found = decide_as_nnunet(tables_of(maps, both), both)
    assert found.postprocessing.rules == (keep_largest_foreground(both),)
    assert found.dice_before.labels == {"liver": 4 / 5, "spleen": 4 / 5}
    assert found.dice_after.foreground == 1.0
    assert [step.taken for step in found.steps] == [True, False, False]
    assert found.steps[0].label is None
    assert found.steps[0].gain == pytest.approx(0.2)
    assert [step.gain for step in found.steps[1:]] == [0.0, 0.0]


def test_the_largest_foreground_is_not_kept_where_a_label_gets_worse() -> None:
    both = Labels(labels={"background": 0, "liver": 1, "spleen": 2})
    truth = line(1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 0, 2, 0, 0, 0)
    speck = line(1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 0, 2, 0, 1, 1)
    found = decide_as_nnunet(tables_of({"a": (speck, truth)}, both), both)
    first = found.steps[0]
    assert first.gain is not None
    assert first.gain > 0.05
    assert first.worse == ("spleen",)
    assert found.postprocessing.rules == (KeepLargest(labels=("liver",)),)


def test_one_label_has_one_rule_to_try() -> None:
    maps = {"a": (line(1, 1, 0, 1), line(1, 1, 0, 0))}
    found = decide_as_nnunet(tables_of(maps, ONE), ONE)
    assert found.postprocessing.rules == (KeepLargest(labels=("lesion",)),)
    assert len(found.steps) == 1


def test_a_label_that_no_case_has_stops_nnunet_alone_from_keeping_the_largest_foreground() -> None:
    maps = {"a": (line(1, 1, 2, 0, 1, 0, 2), line(1, 1, 2, 0, 0, 0, 0))}
    nnunet = decide_as_nnunet(tables_of(maps, ORGANS), ORGANS)
    assert not nnunet.steps[0].taken
    assert nnunet.dice_before.foreground is None
    ours = decided(maps, ORGANS)
    assert ours.steps[0].taken
    assert ours.dice_before.labels["gall"] is None
    assert ours.dice_after.foreground == 1.0


def test_labels_are_gone_through_by_integer_and_regions_in_their_order() -> None:
    for labels, order in ((ORGANS, ["liver", "spleen", "gall"]), (CROSSED, [*CROSSED.foreground])):
        found = decide_as_nnunet(tables_of({"a": (line(1, 2, 3), line(1, 2, 3))}, labels), labels)
        assert [step.label for step in found.steps] == [None, *order]


# ---------------------------------------------------------------- smallest sizes


def specks(cases: int) -> Maps:
    """Two lesions of 6 and 5 voxels, and a speck of 1, 2 or 3 that is none."""
    truth = line(1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0)
    drawn = {}
    for case in range(cases):
        prediction = truth.copy()
        prediction[1, 3, 13 : 14 + case % 3] = 1
        drawn[f"case_{case}"] = (prediction, truth)
    return drawn


def test_a_smallest_size_is_taken_where_it_wins_on_cases_that_had_no_say_in_it() -> None:
    found = decided(specks(6), ONE, unit="voxels")
    assert found.postprocessing.rules == (MinimumSize(label="lesion", smallest=5, unit="voxels"),)
    assert [step.taken for step in found.steps] == [False, True]
    assert found.steps[0].worse == ("lesion",)
    assert found.steps[1].after == found.dice_after.foreground == 1.0


def test_a_size_in_ml_is_of_the_spacing_of_each_case() -> None:
    maps = specks(6)
    spacings = {case: (5.0, 0.5, 0.8 * (1 + n % 2 / 5)) for n, case in enumerate(maps)}
    found = decide(tables_of(maps, ONE), ONE, spacings)
    assert found.postprocessing.rules == (MinimumSize(label="lesion", smallest=0.01),)
    assert found.dice_after.foreground == 1.0
    for case, (prediction, reference) in maps.items():
        left = apply(prediction, found.postprocessing, ONE, spacings[case])
        assert np.array_equal(left, reference)


def test_a_size_that_helps_the_fold_alone_that_it_comes_from_is_not_taken() -> None:
    small = line(1, 1, 1, 1, 1, 1, 0, 1, 1)
    large = line(1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1)
    maps = {
        "a": (line(1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1), line(1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0)),
        "b": (small, small),
        "c": (large, large),
    }
    found = decided(maps, ONE, folds={"a": "0", "b": "1", "c": "1"}, unit="voxels")
    assert found.postprocessing.rules == ()
    last = found.steps[-1]
    best = MinimumSize(label="lesion", smallest=5, unit="voxels")
    assert last.rule == best
    assert last.worse == ("lesion",)
    assert mean_dice(maps, (best,), ONE)["lesion"] > mean_dice(maps, (), ONE)["lesion"]


def test_the_largest_component_that_is_left_is_a_size_to_try() -> None:
    none = line(0, 0, 0, 0)
    maps = {f"a{n}": (line(1, 1, 0, 1), line(1, 1, 0, 0)) for n in range(3)}
    maps |= {f"b{n}": (line(0, 0, 0, 1), none) for n in range(3)}
    found = decided(maps, ONE, unit="voxels")
    assert found.postprocessing.rules == (
        KeepLargest(labels=("lesion",)),
        MinimumSize(label="lesion", smallest=2, unit="voxels"),
    )
    assert found.dice_after.foreground == 1.0


def test_a_size_that_no_other_fold_would_choose_is_not_taken() -> None:
    maps = specks(6)
    clean = {f"clean_{n}": (reference, reference) for n, (_, reference) in enumerate(maps.values())}
    folds = dict.fromkeys(maps, "0") | dict.fromkeys(clean, "1")
    found = decided(maps | clean, ONE, folds=folds, unit="voxels")
    assert found.postprocessing.rules == ()
    assert found.steps[-1].gain == 0.0


def test_a_size_that_takes_from_another_region_is_not_taken() -> None:
    labels = Labels(
        labels={"background": 0, "whole": (1, 2), "core": 2}, regions_class_order=(1, 2)
    )
    truth = line(2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 2, 2, 2)
    wrong = line(2, 2, 2, 2, 1, 1, 2, 1, 1, 1, 2, 2, 2)
    maps = {f"c{n}": (wrong, truth) for n in range(5)}
    found = decided(maps, labels, unit="voxels")
    assert found.postprocessing.rules == ()
    last = found.steps[-1]
    assert last.rule == MinimumSize(label="core", smallest=2, unit="voxels")
    assert last.after == 1.0
    assert last.worse == ("whole",)


def test_a_size_that_is_worse_than_none_on_all_cases_is_not_taken() -> None:
    # Out of fold it wins only because other cases have no Dice then: an empty reference and
    # nothing left of the prediction. Pieces of each case: voxels, and whether they are right.
    pieces: dict[str, list[tuple[int, int]]] = {
        "a": [(3, 0)],
        "b": [(6, 1), (3, 1), (3, 1)],
        "c": [(7, 0)],
        "d": [(7, 0)],
        "e": [(4, 0)],
        "g": [(5, 0)],
    }
    folds = {"a": "1", "b": "0", "c": "1", "d": "1", "e": "0", "g": "1"}
    maps = {}
    for case, found in pieces.items():
        predicted = [value for size, _ in found for value in [1] * size + [0]]
        truth = [value for size, right in found for value in [right] * size + [0]]
        missed = 10 if case == "b" else 0
        room = [0] * (29 - len(truth) - missed)
        maps[case] = (line(*predicted, *[0] * missed, *room), line(*truth, *[1] * missed, *room))
    found_out = decided(maps, ONE, folds=folds, unit="voxels")
    last = found_out.steps[-1]
    assert last.rule == MinimumSize(label="lesion", smallest=5, unit="voxels")
    assert last.gain is not None
    assert last.gain > 0.02
    assert not last.worse
    with_it = mean_dice(maps, (last.rule,), ONE)["lesion"]
    assert with_it <= mean_dice(maps, (), ONE)["lesion"]
    assert found_out.postprocessing.rules == ()


def test_a_size_that_is_just_as_good_as_none_is_not_the_choice_of_any_fold() -> None:
    sizes = Sizes(
        rules=(MinimumSize(label="lesion", smallest=2, unit="voxels"),),
        dice=np.array([[0.5, 0.75, 0.25]]),
        own=np.array([0.75, 0.5, 0.25]),
        smallest=np.array([1.0, 1.0, 4.0]),
        largest=np.array([3.0, 3.0, 4.0]),
    )
    everyone, folds = np.ones(3, np.bool_), np.array(["0", "0", "1"])
    trial = try_sizes(sizes, everyone, folds)
    assert trial is not None
    assert not trial.helps
    assert trial.judged == {"0": None, "1": None}
    better = dataclasses.replace(sizes, dice=np.array([[0.5, 0.76, 0.25]]))
    trial = try_sizes(better, everyone, folds)
    assert trial is not None
    assert trial.helps
    assert trial.judged == {"0": None, "1": sizes.rules[0]}
    assert try_sizes(sizes, folds == "1", folds) is None  # it would take out nothing there


def test_without_folds_to_part_the_cases_no_size_is_tried() -> None:
    maps = specks(6)
    assert decided(maps, ONE, folds=dict.fromkeys(maps, "all")).postprocessing.rules == ()
    assert decided(maps, ONE, minimum_sizes=False).postprocessing.rules == ()
    assert decided(dict(list(maps.items())[:1]), ONE).postprocessing.rules == ()


@pytest.mark.parametrize("labels", [ORGANS, TUMOUR, CROSSED], ids=["labels", "regions", "crossed"])
def test_what_is_taken_makes_what_is_told(labels: Labels) -> None:
    maps = draw(labels, np.random.default_rng(7), cases=10)
    found = decided(maps, labels, unit="voxels")
    assert any(step.taken for step in found.steps)
    expected = mean_dice(maps, found.postprocessing.rules, labels)
    assert found.dice_after.labels == pytest.approx(expected, abs=1e-12)
    taken = tuple(step.rule for step in found.steps if step.taken)
    assert found.postprocessing.rules == taken
    assert found.cases == 10


def test_no_case_is_refused() -> None:
    with pytest.raises(DataError, match="no case to decide the postprocessing on"):
        decide({}, ONE, {})
