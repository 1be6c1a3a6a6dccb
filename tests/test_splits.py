import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nnseg import record, splits
from nnseg.dataset import Fold, extend_folds, make_folds
from nnseg.dataset.groups import GroupRule, find_leaks, rule_file
from nnseg.errors import DataError, MachineError, UsageError
from nnseg.folders import Folders
from nnseg.lock import locked
from nnseg.splits import check_regex, find_parted, folds, kept_rule, plan_folds, source_file

DATASET = "Dataset001_Frames"
RULE = GroupRule(regex=r"(p\d+)_")
FRAMES = [f"p{patient}_frame{frame}" for patient in range(6) for frame in (1, 12)]


@pytest.fixture
def root(tmp_path: Path) -> Folders:
    """A raw dataset of six patients with two frames each; no file is ever read."""
    folders = Folders.of_root(tmp_path)
    add(folders, *FRAMES)
    return folders


def add(folders: Folders, *case_ids: str) -> None:
    for folder, ending in (
        (folders.images(DATASET), "_0000.nii"),
        (folders.labels(DATASET), ".nii"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        for case_id in case_ids:
            (folder / f"{case_id}{ending}").touch()
    data: dict[str, Any] = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "heart": 1},
        "numTraining": len(list(folders.labels(DATASET).iterdir())),
        "file_ending": ".nii",
    }
    folders.spec_file(DATASET).write_text(json.dumps(data))


def patients(folders: Folders) -> dict[str, str]:
    ids = [path.name[:-4] for path in sorted(folders.labels(DATASET).iterdir())]
    return RULE.patients(ids)


def write_users(folders: Folders, made: tuple[Fold, ...]) -> Path:
    path = folders.user_splits_file(DATASET)
    path.write_text(json.dumps([record.to_json(fold) for fold in made]))
    return path


def test_a_rule_makes_folds_that_part_nobody_and_is_kept_with_them(root: Folders) -> None:
    made = folds(root, DATASET, RULE)
    assert len(made) == 5
    assert find_leaks(made, patients(root)) == ()
    assert folds(root, DATASET) == made
    assert kept_rule(root, DATASET) == RULE
    assert record.read_json(root.splits_file(DATASET))[0].keys() == {"train", "val"}


def test_without_a_rule_folds_are_nnunets_and_probable_patients_are_warned_of(
    root: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert folds(root, DATASET) == make_folds(FRAMES)
    assert r"plan with --group-regex '(.*\d)\D+\d'" in caplog.text
    assert kept_rule(root, DATASET) is None
    caplog.clear()
    folds(root, DATASET)
    assert caplog.text == ""


def test_folds_made_without_a_rule_are_made_anew_aloud_if_nothing_was_trained(
    root: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    folds(root, DATASET)
    with caplog.at_level(logging.WARNING):
        made = folds(root, DATASET, RULE)
    assert find_leaks(made, patients(root)) == ()
    assert "made anew" in caplog.text


def test_folds_that_were_trained_on_are_never_replaced(root: Folders) -> None:
    before = folds(root, DATASET)
    root.fold(DATASET, "other", "2d", "all", 0).mkdir(parents=True)
    folds_of_trained = root.fold(DATASET, "other", "2d", "3", 1)
    folds_of_trained.mkdir(parents=True)
    with pytest.raises(DataError, match=r"fold_3_seed1 was trained on these folds; move .*results"):
        folds(root, DATASET, RULE)
    assert folds(root, DATASET) == before
    assert kept_rule(root, DATASET) is None
    folds_of_trained.rmdir()  # fold `all` knows no split
    assert find_leaks(folds(root, DATASET, RULE), patients(root)) == ()


def test_folds_that_part_nobody_stay_whatever_was_trained(root: Folders) -> None:
    made = folds(root, DATASET, RULE)
    root.fold(DATASET, "nnseg", "2d", "0", 0).mkdir(parents=True)
    other = GroupRule(regex=r"^(p.)")
    assert folds(root, DATASET, other) == made
    assert kept_rule(root, DATASET) == other


def test_new_cases_join_grouped_folds_by_the_rule_of_then(root: Folders) -> None:
    before = folds(root, DATASET, RULE)
    add(root, "p0_frame3", "p3_frame3", "p9_frame1", "p9_frame2")
    after = folds(root, DATASET)
    assert find_leaks(after, patients(root)) == ()
    assert all(set(b.val) <= set(a.val) for b, a in zip(before, after, strict=True))
    add(root, "phantom")
    with pytest.raises(UsageError, match="no patient in 1 of 17 case ids, such as phantom"):
        folds(root, DATASET)


def test_new_cases_join_other_folds_one_by_one(root: Folders) -> None:
    folds(root, DATASET)
    add(root, "p9_frame1", "p9_frame2")
    after = folds(root, DATASET)
    assert len({n for n, fold in enumerate(after) for c in fold.val if c.startswith("p9")}) == 2


def test_the_users_own_folds_win_over_a_rule_aloud(
    root: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    folds(root, DATASET, RULE)
    own = (Fold(train=tuple(FRAMES[1:]), val=tuple(FRAMES[:1])),)
    path = write_users(root, own)
    with caplog.at_level(logging.WARNING):
        assert folds(root, DATASET, GroupRule(regex="(p.)")) == own
    assert f"{path} is used as it is, whatever --group-regex says" in caplog.text
    assert kept_rule(root, DATASET) == RULE


def test_a_users_folds_that_are_gone_are_made_anew_of_all_cases(
    root: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    own = (Fold(train=tuple(FRAMES[1:5]), val=tuple(FRAMES[:1])),)
    path = write_users(root, own)
    assert folds(root, DATASET) == own
    path.unlink()
    assert folds(root, DATASET) == make_folds(FRAMES)
    assert f"{path} is gone; the folds are made anew" in caplog.text
    assert not source_file(root.splits_file(DATASET)).exists()
    add(root, "p9_frame1")  # from now on they are ours, and kept
    assert folds(root, DATASET) == extend_folds(make_folds(FRAMES), [*FRAMES, "p9_frame1"])


def test_a_users_folds_that_are_gone_stay_as_they_are_if_they_were_trained_on(
    root: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    own = (Fold(train=tuple(FRAMES[1:5]), val=tuple(FRAMES[:1])),)
    path = write_users(root, own)
    folds(root, DATASET)
    path.unlink()
    trained = root.fold(DATASET, "nnseg", "2d", "0", 0)
    trained.mkdir(parents=True)
    for _ in range(2):
        caplog.clear()
        assert folds(root, DATASET) == own
        assert f"{trained} was trained on these folds: they stay as they are" in caplog.text
    trained.rmdir()
    assert folds(root, DATASET) == make_folds(FRAMES)


def test_folds_that_somebody_has_edited_are_no_copy_of_the_users_any_more(root: Folders) -> None:
    own = (Fold(train=tuple(FRAMES[1:]), val=tuple(FRAMES[:1])),)
    path = write_users(root, own)
    folds(root, DATASET)
    path.unlink()
    edited = (Fold(train=tuple(FRAMES[2:]), val=tuple(FRAMES[:2])),)
    text = json.dumps([record.to_json(fold) for fold in edited])
    root.splits_file(DATASET).write_text(text)
    assert folds(root, DATASET) == edited


def test_a_rule_that_the_folds_beside_it_break_is_seen_by_the_next_plan(
    root: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    folds(root, DATASET)
    record.save(RULE, rule_file(root.splits_file(DATASET)))  # as two runs at once once did
    assert find_leaks(folds(root, DATASET), patients(root)) != ()
    made = plan_folds(root, DATASET)
    assert find_leaks(made, patients(root)) == ()
    assert "the folds are made anew" in caplog.text
    assert folds(root, DATASET) == made


def test_a_rule_that_folds_break_which_were_trained_on_stops_the_next_plan(root: Folders) -> None:
    folds(root, DATASET)
    path = rule_file(root.splits_file(DATASET))
    record.save(RULE, path)
    root.fold(DATASET, "nnseg", "2d", "0", 0).mkdir(parents=True)
    with pytest.raises(DataError, match=rf"was trained on these folds; move .* or remove {path}"):
        plan_folds(root, DATASET)


def test_folds_are_written_under_the_lock_of_the_dataset_and_read_without(
    root: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits, "PATIENCE", 0.1)
    with locked(root.prepared_folder(DATASET), "nnseg plan"):
        with pytest.raises(MachineError, match="is in use by `nnseg plan`"):
            folds(root, DATASET)
        assert not root.splits_file(DATASET).exists()
        made = plan_folds(root, DATASET)
        assert folds(root, DATASET) == made
        with pytest.raises(MachineError, match="is in use by `nnseg plan`"):
            folds(root, DATASET, RULE)
    assert folds(root, DATASET) == made


def test_folds_that_another_run_has_written_meanwhile_are_looked_at_again(
    root: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds(root, DATASET)
    add(root, "p9_frame1")

    @contextmanager
    def wait_for_another(folder: Path, command: str) -> Iterator[None]:
        plan_folds(root, DATASET, RULE)
        yield

    monkeypatch.setattr(splits, "locked", wait_for_another)
    made = folds(root, DATASET)
    assert find_leaks(made, patients(root)) == ()
    assert record.read_json(root.splits_file(DATASET)) == [record.to_json(fold) for fold in made]


def test_a_users_fold_that_names_a_case_twice_is_refused(root: Folders) -> None:
    write_users(root, (Fold(train=(*FRAMES[1:], FRAMES[1]), val=tuple(FRAMES[:1])),))
    with pytest.raises(DataError, match=r"fold 0 names p0_frame12 more than once; keep each id"):
        folds(root, DATASET)


def test_real_folds_by_patient_are_accepted(shared: Path, root: Folders) -> None:
    source = shared / "data" / "Dataset027_ACDC" / "splits_by_patient.json"
    data = record.read_json(source)
    add(root, *{case_id for fold in data for case_id in (*fold["train"], *fold["val"])})
    root.user_splits_file(DATASET).write_bytes(source.read_bytes())
    assert [record.to_json(fold) for fold in folds(root, DATASET)] == data


def test_one_case_has_no_folds_with_a_rule_either(tmp_path: Path) -> None:
    folders = Folders.of_root(tmp_path)
    add(folders, "p1_frame1")
    assert folds(folders, DATASET, RULE) == ()


def test_parted_patients_are_found_by_the_kept_rule_a_given_one_or_a_guess(root: Folders) -> None:
    (guess,) = find_parted(root, DATASET)
    assert guess.found.startswith("case ids look like")
    folds(root, DATASET, GroupRule(regex=r"(frame\d+)"))
    (kept,) = find_parted(root, DATASET, r"(p\d)")
    assert kept.found.startswith("the folds of this dataset part the cases of")
    assert find_parted(root, DATASET) == ()


@pytest.mark.parametrize("regex", ["(", "x(y)"])
def test_a_useless_expression_is_refused_before_anything_is_done(root: Folders, regex: str) -> None:
    check_regex(root, DATASET, None)
    check_regex(root, DATASET, RULE.regex)
    for refuse in (check_regex, find_parted):
        with pytest.raises(UsageError, match="--group-regex"):
            refuse(root, DATASET, regex)


def test_a_damaged_rule_file_is_named(root: Folders) -> None:
    folds(root, DATASET, RULE)
    rule_file(root.splits_file(DATASET)).write_text("{}")
    with pytest.raises(DataError, match=r"groups\.json: regex: field required"):
        folds(root, DATASET)


def test_folds_must_be_a_list(root: Folders) -> None:
    root.user_splits_file(DATASET).write_text("{}")
    with pytest.raises(DataError, match="must hold a list of folds"):
        folds(root, DATASET)
