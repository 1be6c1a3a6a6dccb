import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnseg import record
from nnseg.errors import DataError, MissingError, NnsegError, UsageError
from nnseg.folders import checkpoint_file
from nnseg.learning.course import plan_course
from nnseg.learning.recipe import TrainSettings
from nnseg.learning.resume import RunRecord, extend_run, find_run, set_aside, write_run
from nnseg.model.device import Execution

SETTINGS = TrainSettings(epochs=5, budget_seconds=60.0)
EMPTY = RunRecord(
    plan_hash="plan",
    split_hash="split",
    data_hash="data",
    configuration_name="2d",
    fold="0",
    settings=SETTINGS,
    execution=Execution(device="cpu"),
    course=plan_course(SETTINGS),
    epoch=0,
    iteration=0,
    loss_sum=1.0,
    seconds=9.0,
    epoch_seconds=1.0,
    history=(),
    weights_file="",
    weights_sha256="",
)


def write(folder: Path, epoch: int, before: RunRecord | None, **changes: Any) -> RunRecord:
    run = dataclasses.replace(EMPTY, epoch=epoch, iteration=3, **changes)
    return write_run(folder, run, f"weights of epoch {epoch}".encode(), before)


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    """The folder of a run that was stopped in epoch 3, after it had saved in the one before."""
    folder = tmp_path / "fold_0"
    write(folder, 2, write(folder, 1, None))
    return folder


def latest(folder: Path) -> RunRecord:
    return record.load_sealed(RunRecord, checkpoint_file(folder, "latest"))


def find(folder: Path, **changes: Any) -> RunRecord | None:
    settings = dataclasses.replace(SETTINGS, **changes.pop("settings", {}))
    return find_run(folder, settings, **{"plan_hash": "plan", "split_hash": "split", **changes})


def test_the_run_that_is_there_goes_on(fold: Path) -> None:
    wanted = latest(fold)
    assert find(fold) == find(fold, resume=True, device="cpu", precision="fp32") == wanted
    assert find(fold, data_hash="data") == wanted
    assert wanted.epoch == 2


@pytest.mark.fault("R20")
def test_where_there_is_none_a_run_starts_unless_one_was_to_go_on(tmp_path: Path) -> None:
    assert find(tmp_path) is None
    with pytest.raises(MissingError, match="there is no run to continue; start without --c"):
        find(tmp_path, resume=True)


@pytest.mark.fault("R21")
@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"settings": {"lr": 0.5}}, UsageError, "other settings: lr is now 0.5, was None"),
        ({"settings": {"budget_seconds": 90.0}}, UsageError, "budget_seconds is now 90.0"),
        ({"device": "cuda"}, UsageError, "holds a run with --device cpu"),
        ({"precision": "bf16"}, UsageError, "holds a run with --precision fp32"),
        ({"split_hash": "other"}, DataError, "on other cases: the folds have changed"),
        ({"plan_hash": "other"}, DataError, "holds a run of another plan"),
        ({"data_hash": "other"}, DataError, "other data: the preprocessed cases have changed"),
    ],
)
def test_a_run_that_was_made_otherwise_is_refused(
    fold: Path, changes: dict[str, Any], kind: type[NnsegError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        find(fold, **changes)


def test_who_says_go_on_need_not_repeat_the_budget(fold: Path) -> None:
    assert find(fold, resume=True, settings={"budget_seconds": None}) == latest(fold)


def test_who_says_go_on_is_asked_only_for_the_settings_that_were_given(fold: Path) -> None:
    changes = {"epochs": 9, "lr": 0.5, "budget_seconds": None}
    found = find(fold, resume=True, settings=changes, given=())
    assert found == latest(fold)
    assert found is not None
    assert found.settings == SETTINGS
    with pytest.raises(UsageError, match=r"other settings: lr is now 0.5, was None\. Give"):
        find(fold, resume=True, settings=changes, given={"lr"})
    with pytest.raises(UsageError, match=r"epochs is now 9, was 5; lr is now 0.5, was None\. Give"):
        find(fold, resume=True, settings=changes)


@pytest.mark.parametrize("given", [None, {"budget_seconds"}])
def test_another_budget_is_refused_whoever_says_go_on(fold: Path, given: set[str] | None) -> None:
    with pytest.raises(UsageError, match=r"budget_seconds is now 90\.0, was 60\.0"):
        find(fold, resume=True, settings={"budget_seconds": 90.0}, given=given)


def test_who_does_not_say_go_on_is_asked_for_all_settings(fold: Path) -> None:
    with pytest.raises(UsageError, match=r"lr is now 0\.5"):
        find(fold, settings={"lr": 0.5}, given={"epochs"})


def test_a_finished_run_may_be_asked_for_on_any_device(fold: Path) -> None:
    finished = write(fold, 3, latest(fold), finished=True)
    assert find(fold, device="cuda") == finished


def test_a_run_goes_on_on_another_device_of_its_kind(tmp_path: Path) -> None:
    on_gpu = dataclasses.replace(EMPTY, execution=Execution(device="cuda:0"))
    before = write_run(tmp_path, on_gpu, b"weights", None)
    for device in ("cuda:1", "cuda", "cuda:0", None):
        assert find(tmp_path, device=device) == before
    with pytest.raises(UsageError, match="holds a run with --device cuda:0"):
        find(tmp_path, device="cpu")


def test_overwriting_starts_anew_and_touches_nothing_yet(fold: Path) -> None:
    before = {path: path.read_bytes() for path in fold.parent.rglob("*") if path.is_file()}
    assert find(fold, overwrite=True, settings={"lr": 0.5}, plan_hash="other") is None
    assert before == {path: path.read_bytes() for path in fold.parent.rglob("*") if path.is_file()}


def test_every_run_that_is_set_aside_is_kept(fold: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for number in (1, 2):
        before = latest(fold)
        aside = fold.with_name(f"fold_0.old{number}")
        assert set_aside(fold) == aside
        assert latest(aside) == before
        assert f"the run before is kept in {aside}" in caplog.text
        assert not fold.exists()
        write(fold, number, None)


def test_a_folder_without_a_run_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "fold_0").mkdir()
    assert set_aside(tmp_path / "fold_0") is None
    assert [path.name for path in tmp_path.iterdir()] == ["fold_0"]


# ---------------------------------------------------------------- two checkpoints


def test_two_checkpoints_are_kept_with_their_weights(tmp_path: Path) -> None:
    runs: list[RunRecord] = []
    for epoch in range(4):
        runs.append(write(tmp_path, epoch, runs[-1] if runs else None))
        kept = runs[-2:]
        assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == sorted(
            run.weights_file for run in kept
        )
        assert latest(tmp_path) == kept[-1]
    assert record.load_sealed(RunRecord, checkpoint_file(tmp_path, "previous")) == runs[-2]


def test_the_same_weights_again_leave_the_checkpoint_before_as_it_is(tmp_path: Path) -> None:
    first = write(tmp_path, 1, None)
    second = write(tmp_path, 2, first)
    finished = write(tmp_path, 2, second, finished=True)
    assert finished.weights_file == second.weights_file
    assert record.load_sealed(RunRecord, checkpoint_file(tmp_path, "previous")) == first
    assert (tmp_path / first.weights_file).is_file()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE = [truncate, flip, empty, Path.unlink]


@pytest.mark.fault("R19")
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("part", ["record", "weights"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it_and_says_so(
    fold: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    part: str,
) -> None:
    caplog.set_level(logging.WARNING)
    record_file = checkpoint_file(fold, "latest")
    path = record_file if part == "record" else fold / latest(fold).weights_file
    damage(path)
    found = find(fold)
    assert found is not None
    assert found == record.load_sealed(RunRecord, checkpoint_file(fold, "previous"))
    (line,) = caplog.messages
    assert line.startswith(f"{path}")
    assert "going on from the checkpoint before it, after 1 epochs and 3 steps" in line
    assert "restore" not in line


def test_a_record_flipped_anywhere_gives_way_to_the_one_before(fold: Path) -> None:
    path = checkpoint_file(fold, "latest")
    whole = path.read_bytes()
    before = record.load_sealed(RunRecord, checkpoint_file(fold, "previous"))
    for place in range(0, len(whole), 23):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert find(fold) == before, place


@pytest.mark.fault("R19")
@pytest.mark.parametrize("damage", DAMAGE)
def test_where_both_checkpoints_are_damaged_the_error_names_them_and_overwriting_helps(
    fold: Path, damage: Callable[[Path], None]
) -> None:
    before = record.load_sealed(RunRecord, checkpoint_file(fold, "previous"))
    damage(fold / latest(fold).weights_file)
    damage(checkpoint_file(fold, "previous"))
    names = f"{latest(fold).weights_file}.*checkpoint_previous.json"
    with pytest.raises(DataError, match=f"{names}.*; restore one .*--overwrite to start anew"):
        find(fold)
    assert find(fold, overwrite=True) is None
    assert set_aside(fold) == fold.with_name("fold_0.old1")
    assert (fold.with_name("fold_0.old1") / before.weights_file).is_file()


def test_what_is_written_after_a_fall_back_keeps_the_checkpoint_that_was_whole(
    fold: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip(checkpoint_file(fold, "latest"))
    found = find(fold)
    assert found is not None
    write(fold, 7, found)
    empty(fold / latest(fold).weights_file)
    again = find(fold)
    assert again == found
    assert len(caplog.messages) == 2


# ---------------------------------------------------------------- extension


def test_an_extended_run_goes_on_and_keeps_its_settings(tmp_path: Path) -> None:
    finished = write(tmp_path, 5, None, finished=True)
    longer = extend_run(finished, 8)
    assert (longer.finished, longer.course.epochs, longer.settings) == (False, 8, SETTINGS)
    assert dataclasses.replace(longer, course=finished.course, finished=True) == finished


def test_an_extension_that_was_trained_to_its_end_is_finished(tmp_path: Path) -> None:
    run = dataclasses.replace(extend_run(write(tmp_path, 5, None), 8), epoch=8, finished=True)
    assert extend_run(run, 8) == run
