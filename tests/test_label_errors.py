"""Errors outrank hard cases, and what agrees as usual is left alone."""

import dataclasses

import numpy as np
import pytest

from nnseg.axes import Segmentation
from nnseg.image.offset import moved
from nnseg.labels import Labels
from nnseg.suspects.corrections import Correction, Evidence, Kind, gather
from nnseg.suspects.label_errors import Suspects, describe, rank

LABELS = Labels(labels={"background": 0, "head": 1, "tail": 2})
SPACING = (1.0, 1.0, 1.0)
HARD = 11  # the number of the case on which the model fails


def truth(rng: np.random.Generator) -> Segmentation:
    """A head and a tail, each case a little another."""
    array = np.zeros((20, 40, 30), np.uint8)
    z, y, x = rng.integers(-1, 2, 3)
    array[4 + z : 14, 6 + y : 18, 10 + x : 18] = 1
    array[6:12, 18 : 32 + y, 11 + x : 17] = 2
    return array


def blurred(array: Segmentation, rng: np.random.Generator, share: float) -> Segmentation:
    """What a model makes of it: edges of some rows are off by a voxel, as `share` says."""
    result = array.copy()
    for axis in (1, 2):
        rolled = np.roll(array, int(rng.choice([-1, 1])), axis)
        mask = rng.random(array.shape) < share
        result[mask] = rolled[mask]
    return result


def cohort() -> dict[str, tuple[Segmentation, Segmentation]]:
    """Twelve cases: label map and prediction, of which the last one is hard."""
    found = {}
    for number in range(12):
        rng = np.random.default_rng(number)
        drawn = truth(rng)
        predicted = blurred(drawn, rng, 0.5)
        if number == HARD:
            predicted[:, 10:16][predicted[:, 10:16] == 1] = 0
            predicted[predicted == 2] = np.where(rng.random((predicted == 2).sum()) < 0.5, 2, 0)
        found[f"case{number:02d}"] = drawn, predicted
    return found


COHORT = cohort()


def ranked(wrong: dict[str, Segmentation], **expected: dict[str, float]) -> Suspects:
    return rank(
        [
            gather(
                case_id,
                predicted,
                wrong.get(case_id, drawn),
                LABELS,
                SPACING,
                expected_dice=expected.get(case_id),
            )
            for case_id, (drawn, predicted) in COHORT.items()
        ]
    )


def test_only_the_hard_case_is_suspected_of_right_label_maps() -> None:
    found = ranked({})
    assert [one.case_id for one in found.suspects] in ([], [f"case{HARD}"])
    assert found.cases == 12


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("swap", "with head and tail exchanged"),
        ("mirror", "mirrored along y"),
        ("shift", "moved by (0, 4, "),
        ("slices", "with tail in slices 22 to"),
    ],
)
def test_an_error_outranks_a_hard_case_and_is_called_by_its_name(kind: Kind, words: str) -> None:
    drawn = COHORT["case03"][0]
    cut = drawn.copy()
    cut[:, 22:] = 0
    wrong = {
        "swap": np.array([0, 2, 1], np.uint8)[drawn],
        "mirror": np.flip(drawn, 1),
        "shift": moved(drawn, (0, -4, 0)),
        "slices": cut,
    }[kind]
    first = ranked({"case03": wrong}).suspects[0]
    assert first.case_id == "case03"
    assert words in first.reason
    assert first.where is not None


def test_several_errors_stand_before_all_else() -> None:
    wrong = {
        name: np.array([0, 2, 1], np.uint8)[COHORT[name][0]]
        if number % 2
        else moved(COHORT[name][0], (3, 0, -3))
        for number, name in enumerate(["case00", "case02", "case05", "case09"])
    }
    found = ranked(wrong)
    assert {one.case_id for one in found.suspects[:4]} == set(wrong)
    scores = [one.score for one in found.suspects]
    assert scores == sorted(scores, reverse=True)
    assert found.of_case("case05") in found.suspects
    assert found.of_case("case01") is None


def test_a_model_that_was_unsure_speaks_for_the_label_map() -> None:
    sure = {name: {"head": 0.95, "tail": 0.95} for name in COHORT}
    doubtful = sure | {f"case{HARD}": {"head": 0.7, "tail": 0.55}}
    scores = []
    for promised in (sure, {}, doubtful):
        one = ranked({}, **promised).of_case(f"case{HARD}")
        scores.append(0.0 if one is None else one.score)
    assert scores[0] > scores[1] > scores[2]


def test_an_odd_patient_is_no_error_where_the_prediction_agrees() -> None:
    huge = np.zeros((20, 40, 30), np.uint8)
    huge[1:19, 2:30, 4:28], huge[6:12, 30:38, 11:17] = 1, 2
    cases = [gather(n, p, d, LABELS, SPACING) for n, (d, p) in COHORT.items() if n != f"case{HARD}"]
    cases.append(gather("odd", huge, huge, LABELS, SPACING))
    assert rank(cases).of_case("odd") is None


def evidence(name: str, dice: float, *changes: Correction) -> Evidence:
    return Evidence(
        case_id=name,
        dice={"head": dice},
        expected_dice={},
        volume_mm3={"head": 100.0},
        position_mm={"head": (0.0, 0.0, 0.0)},
        corrections=changes,
        where=(1, 2, 3),
    )


def change(kind: Kind, before: float, after: float) -> Correction:
    names = () if kind in ("shift", "mirror") else ("head",)
    return Correction(
        kind=kind, labels=names, before=before, after=after, what="so", where=(0, 0, 0)
    )


def test_what_a_correction_gains_everywhere_tells_nothing() -> None:
    everywhere = [evidence(str(n), 0.7, change("shift", 0.7, 0.9)) for n in range(9)]
    assert rank(everywhere).suspects == ()
    once = [evidence(str(n), 0.9, change("shift", 0.9, 0.9)) for n in range(9)]
    once[4] = evidence("4", 0.7, change("shift", 0.7, 0.9))
    (one,) = rank(once).suspects
    assert one.score == pytest.approx((0.9 - 0.7) / 0.02)


def test_a_correction_that_leads_nowhere_counts_less() -> None:
    scores = []
    for after in (0.9, 0.7, 0.5):
        cases = [evidence(str(n), 0.9) for n in range(9)]
        cases.append(evidence("x", 0.3, change("swap", 0.3, after)))
        own = [s for s in rank(cases, least=0).suspects if s.case_id == "x"]
        scores.append(own[0].score)
    assert scores[0] > scores[1] > scores[2]


def test_few_cases_must_differ_more() -> None:
    def of(count: int) -> float:
        cases = [evidence(str(n), 0.9) for n in range(count - 1)]
        cases.append(evidence("x", 0.5, change("swap", 0.5, 0.9)))
        (one,) = rank(cases, least=2).suspects
        return one.score

    assert of(8) > of(7)


def test_a_lost_speck_weighs_less_than_a_lost_organ() -> None:
    cases = [evidence(str(n), 0.9) for n in range(9)]
    whole = dataclasses.replace(change("missing", 0.0, 1.0), volume_mm3=100.0)
    speck = dataclasses.replace(whole, volume_mm3=1.0)
    (organ,) = rank([*cases, evidence("x", 0.0, whole)]).suspects
    (dust,) = rank([*cases, evidence("x", 0.0, speck)]).suspects
    assert "voxels" not in dust.reason
    assert organ.reason.startswith("would agree")
    assert organ.score > dust.score


def test_suspects_are_told_in_lines() -> None:
    assert describe(Suspects(suspects=(), cases=3)) == (
        "none of 3 label maps looks wrong beside its prediction"
    )
    drawn = COHORT["case03"][0]
    text = describe(ranked({"case03": np.array([0, 2, 1], np.uint8)[drawn]}))
    assert "case03: agrees with the prediction far better with head and tail exchanged" in text
    assert "look at voxel (" in text


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_cases_are_called_so_and_not_right(count: int) -> None:
    wrong = np.zeros_like(truth(np.random.default_rng(0)))
    wrong[0, :3, :5] = 1
    pairs = list(COHORT.values())[:count]
    drawn = [wrong, *(drawn for drawn, _ in pairs[1:])]
    cases = [
        gather(str(number), predicted, reference, LABELS, SPACING)
        for number, (reference, (_, predicted)) in enumerate(zip(drawn, pairs, strict=True))
    ]
    found = rank(cases)
    assert (found.suspects, found.cases, found.is_judged) == ((), count, False)
    assert "too few to judge" in describe(found)
    assert "looks wrong" not in describe(found)
    assert rank(cases * 3).is_judged
