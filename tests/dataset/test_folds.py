import pytest

from nnseg.dataset import Fold, check_folds, extend_folds, make_folds, select_fold
from nnseg.errors import DataError, UsageError


def test_folds_equal_those_of_nnunet() -> None:
    ids = [f"c{i:02d}" for i in range(12)]
    assert [fold.val for fold in make_folds(ids[::-1])] == [
        ("c00", "c03", "c08"),
        ("c07", "c10", "c11"),
        ("c06", "c09"),
        ("c01", "c04"),
        ("c02", "c05"),
    ]


def test_each_case_is_validated_once_and_never_in_the_fold_that_trains_on_it() -> None:
    ids = [f"case {i}" for i in range(13)]
    folds = make_folds(ids)
    assert sorted(case for fold in folds for case in fold.val) == sorted(ids)
    for fold in folds:
        assert sorted(fold.train + fold.val) == sorted(ids)


def test_fewer_than_five_cases_give_fewer_folds_and_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert [len(fold.val) for fold in make_folds(["a", "b", "c"])] == [1, 1, 1]
    assert "3 cases give 3 folds" in caplog.text


def test_one_case_cannot_be_split() -> None:
    with pytest.raises(DataError, match="train with fold `all`"):
        make_folds(["a"])


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (("a", "x"), ("b",), "x: fold 0 names x, which the dataset lacks"),
        (("a", "b"), ("b",), "fold 0 has b both to train and to validate"),
        ((), ("b",), "fold 0 has no case to train on"),
        (("a", "b"), (), "fold 0 has no case to validate on; .* fold `all`"),
    ],
)
def test_folds_that_leak_or_name_strangers_are_refused(
    train: tuple[str, ...], val: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        check_folds([Fold(train=train, val=val)], ["a", "b"], "x")


def test_fold_all_trains_and_validates_on_every_case() -> None:
    folds = make_folds(["b", "a"])
    assert select_fold(folds, "all", ["b", "a"]) == Fold(train=("a", "b"), val=("a", "b"))
    assert select_fold(folds, "1", ["b", "a"]) is folds[1]


@pytest.mark.parametrize(
    "fold", ["2", "-1", "first", "", "00", "01", "+1", " 1", "1\n", "²", "١", "1" * 5000]
)
def test_an_unknown_fold_is_refused_with_the_known_ones(fold: str) -> None:
    with pytest.raises(UsageError, match=r"there is no fold '.*'; there is: 0, 1, all$"):
        select_fold(make_folds(["a", "b"]), fold, ["a", "b"])


def test_without_folds_there_is_all() -> None:
    assert select_fold((), "all", ["a"]) == Fold(train=("a",), val=("a",))
    with pytest.raises(UsageError, match=r"there is no fold '0'; there is: all$"):
        select_fold((), "0", ["a"])


def test_new_cases_join_the_fold_with_the_fewest_to_validate_and_no_case_moves() -> None:
    before = make_folds([f"c{i:02d}" for i in range(12)])  # 3, 3, 2, 2 and 2 to validate
    ids = [f"c{i:02d}" for i in range(12)] + ["z", "a", "b", "y"]
    after = extend_folds(before, ids)
    new = [sorted(set(now.val) - set(old.val)) for now, old in zip(after, before, strict=True)]
    assert new == [["z"], [], ["a"], ["b"], ["y"]]
    for old, now in zip(before, after, strict=True):
        assert set(old.val) <= set(now.val)
        assert set(old.train) <= set(now.train)
        assert sorted(now.train + now.val) == sorted(ids)
        assert list(now.val) == sorted(now.val)
        assert list(now.train) == sorted(now.train)
    assert extend_folds(before, ids[::-1]) == after
    check_folds(after, ids, "x")


def test_a_case_that_any_fold_has_is_not_new() -> None:
    folds = (Fold(train=("a",), val=("b",)), Fold(train=("b", "c"), val=("a",)))
    assert extend_folds(folds, ["a", "b", "c"]) == folds


def test_no_folds_stay_none() -> None:
    assert extend_folds((), ["a"]) == ()
