import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from nnseg import record
from nnseg.errors import DataError, MissingError, NnsegError, UsageError
from nnseg.folders import checkpoint_file
from nnseg.model.device import Execution
from nnseg.recipe import TrainSettings, plan_course
from nnseg.resume import RunRecord, find_run

SETTINGS = TrainSettings(epochs=5, budget_seconds=60.0)
RUN = RunRecord(
    plan_hash="plan",
    split_hash="split",
    configuration_name="2d",
    fold="0",
    settings=SETTINGS,
    execution=Execution(device="cpu"),
    course=plan_course(SETTINGS),
    epoch=2,
    iteration=3,
    loss_sum=1.0,
    seconds=9.0,
    epoch_seconds=1.0,
    history=(),
    weights_file="checkpoint_latest-0.safetensors",
    weights_sha256="0",
)


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    """The folder of a run that was stopped in epoch 3."""
    folder = tmp_path / "fold_0"
    folder.mkdir()
    record.save(RUN, checkpoint_file(folder, "latest"))
    return folder


def find(folder: Path, **changes: Any) -> RunRecord | None:
    settings = dataclasses.replace(SETTINGS, **changes.pop("settings", {}))
    return find_run(folder, settings, **{"plan_hash": "plan", "split_hash": "split", **changes})


def test_the_run_that_is_there_goes_on(fold: Path) -> None:
    assert find(fold) == find(fold, resume=True, device="cpu", precision="fp32") == RUN


def test_where_there_is_none_a_run_starts_unless_one_was_to_go_on(tmp_path: Path) -> None:
    assert find(tmp_path) is None
    with pytest.raises(MissingError, match="there is no run to continue; start without --c"):
        find(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"settings": {"lr": 0.5}}, UsageError, "other settings: lr is now 0.5, was None"),
        ({"settings": {"budget_seconds": 90.0}}, UsageError, "budget_seconds is now 90.0"),
        ({"device": "cuda"}, UsageError, "holds a run with --device cpu"),
        ({"precision": "bf16"}, UsageError, "holds a run with --precision fp32"),
        ({"split_hash": "other"}, DataError, "on other cases: the folds have changed"),
        ({"plan_hash": "other"}, DataError, "holds a run of another plan"),
    ],
)
def test_a_run_that_was_made_otherwise_is_refused(
    fold: Path, changes: dict[str, Any], kind: type[NnsegError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        find(fold, **changes)


def test_who_says_go_on_need_not_repeat_the_budget(fold: Path) -> None:
    assert find(fold, resume=True, settings={"budget_seconds": None}) == RUN


def test_a_finished_run_may_be_asked_for_on_any_device(fold: Path) -> None:
    finished = dataclasses.replace(RUN, finished=True)
    record.save(finished, checkpoint_file(fold, "latest"))
    assert find(fold, device="cuda") == finished


def test_overwriting_keeps_every_run_before(fold: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for number in (1, 2):
        assert find(fold, overwrite=True) is None
        aside = fold.with_name(f"fold_0.old{number}")
        assert record.load(RunRecord, checkpoint_file(aside, "latest")) == RUN
        assert f"the run before is kept in {aside}" in caplog.text
        assert not fold.exists()
        fold.mkdir()
        record.save(RUN, checkpoint_file(fold, "latest"))
