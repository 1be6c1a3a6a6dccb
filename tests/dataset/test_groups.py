import json
import logging
from pathlib import Path

import pytest

from nnseg import record
from nnseg.dataset import Fold, check_folds
from nnseg.dataset.groups import (
    GroupRule,
    Leak,
    extend_grouped_folds,
    find_leaks,
    make_grouped_folds,
    probable_rule,
)
from nnseg.errors import DataError, UsageError

FRAMES = [f"patient{number:03d}_frame{frame:02d}" for number in range(7) for frame in (1, 12)]


def patients_of(sizes: dict[str, int]) -> dict[str, str]:
    return {f"{name}_{number}": name for name, size in sizes.items() for number in range(size)}


def test_the_first_group_names_the_patient_wherever_it_is_found() -> None:
    rule = GroupRule(regex=r"_(\d+)_(\w)")
    assert rule.patients(["site_12_a", "other_7_b"]) == {"site_12_a": "12", "other_7_b": "7"}


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        (r"(pat", r"missing \), unterminated subpattern at position 0"),
        (r"pat(\d+)[", r"at position 8"),
        (r"pat\d+", r"has no group; put \( \)"),
        (r"(a){99999999999999999999}", r"too complicated|at position"),
        ("(" * 9999 + "a" + ")" * 9999, r"too complicated|at position"),
    ],
)
def test_a_bad_expression_is_refused_with_its_place(regex: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GroupRule(regex=regex)


@pytest.mark.parametrize("regex", [r"(x)", r"(x)?patient", r"()patient", r"(patient000)"])
def test_an_expression_that_finds_no_patient_in_some_case_is_refused(regex: str) -> None:
    with pytest.raises(UsageError, match="of 14 case ids, such as patient00"):
        GroupRule(regex=regex).patients(FRAMES)


def test_a_rule_comes_back_from_disk(tmp_path: Path) -> None:
    rule = GroupRule(regex=r"(\d+)é")
    record.save(rule, tmp_path / "groups.json")
    assert record.load(GroupRule, tmp_path / "groups.json") == rule
    (tmp_path / "groups.json").write_text(json.dumps({"regex": "("}))
    with pytest.raises(UsageError, match=r"groups\.json"):
        record.load(GroupRule, tmp_path / "groups.json")


@pytest.mark.parametrize(
    "case_ids",
    [
        FRAMES,
        [f"BraTS-GLI-{number:05d}-{time:03d}" for number in range(5) for time in range(2)],
        [f"p{number}_s{series}_ed" for number in range(9) for series in range(1 + number % 2)],
    ],
    ids=["frames", "times", "series"],
)
def test_ids_that_name_a_patient_and_a_number_seem_to_name_patients(case_ids: list[str]) -> None:
    rule = probable_rule(case_ids)
    assert rule is not None
    patients = rule.patients(case_ids)
    assert all(case_id.startswith(name) for case_id, name in patients.items())
    assert len(set(patients.values())) == len({case_id[:-4] for case_id in case_ids})


@pytest.mark.parametrize(
    "case_ids",
    [
        [],
        [f"hippocampus_{number:03d}" for number in range(20)],
        [f"BraTS2021_{number:05d}" for number in range(20)],
        [f"{site}_{number}" for site in ("site1", "site2") for number in range(20)],
        [f"patient{number}_1" for number in range(20)],
        [*FRAMES, "phantom"],
    ],
    ids=["none", "one number", "year", "two sites", "all differ", "one without"],
)
def test_other_ids_do_not(case_ids: list[str]) -> None:
    assert probable_rule(case_ids) is None


def test_patients_on_both_sides_are_listed_once_a_fold() -> None:
    patients = patients_of({"a": 3, "b": 2})
    folds = [
        Fold(train=("a_0", "b_0"), val=("a_1", "a_2")),
        Fold(train=("a_0", "a_1", "a_2"), val=("b_0", "b_1")),
        Fold(train=("b_1", "x"), val=("b_0", "x2")),
    ]
    assert find_leaks(folds, patients) == (
        Leak(patient="a", fold=0, train="a_0", val="a_1"),
        Leak(patient="b", fold=2, train="b_1", val="b_0"),
    )


def test_grouped_folds_part_nobody_and_validate_every_case_once() -> None:
    patients = GroupRule(regex="(patient...)").patients(FRAMES)
    folds = make_grouped_folds(patients)
    assert len(folds) == 5
    check_folds(folds, FRAMES, "here")
    assert find_leaks(folds, patients) == ()
    assert sorted(case_id for fold in folds for case_id in fold.val) == FRAMES
    assert all(sorted((*fold.train, *fold.val)) == FRAMES for fold in folds)


def test_grouped_folds_are_balanced_by_cases_not_by_patients() -> None:
    sizes = {"a": 9, "b": 5, "c": 4, "d": 3, "e": 3, "f": 2, "g": 2, "h": 1, "i": 1}
    folds = make_grouped_folds(patients_of(sizes))
    assert sorted(len(fold.val) for fold in folds) == [5, 5, 5, 6, 9]


def test_grouped_folds_do_not_depend_on_the_order_of_cases_and_are_shuffled() -> None:
    patients = patients_of({f"p{number:02d}": 2 for number in range(20)})
    folds = make_grouped_folds(patients)
    assert make_grouped_folds(dict(reversed(patients.items()))) == folds
    assert folds[0].val != ("p00_0", "p00_1", "p05_0", "p05_1", "p10_0", "p10_1", "p15_0", "p15_1")
    assert {len(fold.val) for fold in folds} == {8}


def test_few_patients_give_fewer_folds_aloud(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        folds = make_grouped_folds(patients_of({"a": 3, "b": 2, "c": 9}))
    assert sorted(len(fold.val) for fold in folds) == [2, 3, 9]
    assert "3 patients give 3 folds instead of 5" in caplog.text


def test_one_patient_cannot_be_split() -> None:
    with pytest.raises(DataError, match="3 cases are of 1 patient"):
        make_grouped_folds(patients_of({"a": 3}))


def test_new_cases_join_their_patient_and_new_patients_the_smallest_fold() -> None:
    patients = patients_of({"a": 2, "b": 2, "c": 1})
    before = make_grouped_folds(patients)
    more = patients | {"b_9": "b", "d_0": "d", "d_1": "d", "e_0": "e"}
    after = extend_grouped_folds(before, more)
    assert find_leaks(after, more) == ()
    for old, new in zip(before, after, strict=True):
        assert set(old.train) <= set(new.train)
        assert set(old.val) <= set(new.val)
        assert sorted((*new.train, *new.val)) == sorted(more)
    home = {case_id: number for number, fold in enumerate(after) for case_id in fold.val}
    assert home["b_9"] == home["b_0"]
    assert home["d_0"] == home["d_1"] == home["c_0"]


def test_folds_without_new_cases_stay_as_they_are() -> None:
    patients = patients_of({"a": 2, "b": 2})
    folds = make_grouped_folds(patients)
    assert extend_grouped_folds(folds, patients) == folds
    assert extend_grouped_folds((), patients) == ()


def test_the_rule_for_real_hearts_finds_their_patients(shared: Path) -> None:
    path = shared / "data" / "Dataset027_ACDC" / "splits_by_patient.json"
    folds = record.parse(tuple[Fold, ...], record.read_json(path), str(path))
    case_ids = sorted({case_id for fold in folds for case_id in (*fold.train, *fold.val)})
    rule = probable_rule(case_ids)
    assert rule is not None
    assert find_leaks(folds, rule.patients(case_ids)) == ()
