import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from nnseg import elsewhere, pipeline, record, running
from nnseg.agenda import Agenda, Order, Training
from nnseg.choose import Choosing
from nnseg.commit import sha256
from nnseg.errors import (
    DataError,
    MachineError,
    NnsegError,
    PartlyDoneError,
    StoppedError,
    UsageError,
)
from nnseg.folders import Folders, checkpoint_file
from nnseg.recipe import TrainSettings

DATASET = "Dataset001_Organs"
PATCH = {"2d": (1, 32, 24), "3d_fullres": (16, 24, 24)}
ORDER = Order(plan="nnseg", preset="default", folds=("0", "1"))


@pytest.fixture
def organs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Six phantoms, planned for two networks that train in milliseconds."""
    folders = tiny.draw(tmp_path, DATASET, "mri", cases=6)
    pipeline.fingerprint(folders, DATASET, workers=1)
    plan = pipeline.plan(folders, DATASET)
    small = {
        name: tiny.shrink(plan, name, patch).configuration(name) for name, patch in PATCH.items()
    }
    record.save(
        dataclasses.replace(plan, configurations=small), folders.plan_file(DATASET, plan.name)
    )
    monkeypatch.setattr(running, "_settings", lambda order, seconds: tiny.SHORT)
    return folders


def job(folders: Folders, order: Order = ORDER, **options: Any) -> running.Finished:
    options = {"devices": ("cpu",), "precision": "fp32", "workers": 1, **options}
    return running.run(folders, DATASET, order, **options)


def weights(folders: Folders) -> dict[str, str]:
    return {
        f"{name} {fold}": record.read_json(
            checkpoint_file(folders.fold(DATASET, "nnseg", name, fold, 0), "final")
        )["weights_sha256"]
        for name in PATCH
        for fold in ("0", "1")
    }


def test_a_job_trains_chooses_and_reports_and_goes_on_wherever_it_was_stopped(
    organs: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    train = pipeline.train

    def stopping_train(*args: Any, **options: Any) -> Path:
        if len(trained) == 2:
            trained.append("")
            raise StoppedError("stopped")
        folder = train(*args, **options)
        trained.append(f"{args[2]} {args[3]}")
        return folder

    monkeypatch.setattr(pipeline, "train", stopping_train)
    said: list[str] = []
    with pytest.raises(StoppedError):
        job(organs, say=said.append)
    assert not organs.choice_file(DATASET).exists()
    agenda = record.load(Agenda, organs.agenda_file(DATASET))
    assert [one.name for one in agenda.trainings][:2] == ["2d fold 0", "3d_fullres fold 0"]
    assert set(agenda.step_seconds) == set(PATCH)

    finished = job(organs, say=said.append)
    assert finished.agenda == agenda
    assert not finished.failed
    assert finished.choice_file == organs.choice_file(DATASET)
    assert finished.choosing is not None
    assert record.load(Choosing, organs.choosing_file(DATASET)) == finished.choosing
    assert "<html" in finished.report_file.read_text("utf-8")
    text = "\n".join(said)
    for step in range(1, 6):
        assert f"{step}/5 " in text
    assert f"nnseg predict -i IN -o OUT -m {finished.choice_file}" in text

    before = weights(organs)
    again = job(organs)
    assert weights(organs) == before
    assert again.choosing == finished.choosing


def test_a_job_ordered_otherwise_is_refused_and_begun_anew_on_request(
    organs: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_choose", lambda *_: None)
    monkeypatch.setattr(pipeline, "report_on", lambda *_, **__: organs.agenda_file(DATASET))
    one = dataclasses.replace(ORDER, folds=("0",), configurations=("2d",))
    job(organs, one)
    first = organs.fold(DATASET, "nnseg", "2d", "0", 0)
    hash_of_first = sha256(checkpoint_file(first, "final"))
    with pytest.raises(
        UsageError, match=r"most_members is now 3, was 2.*--overwrite to begin anew"
    ):
        job(organs, dataclasses.replace(one, most_members=3))
    job(organs, dataclasses.replace(one, most_members=3), overwrite=True)
    aside = first.with_name(f"{first.name}.old1")
    assert sha256(checkpoint_file(aside, "final")) == hash_of_first
    assert checkpoint_file(first, "final").is_file()


def test_a_training_that_fails_leaves_the_others_to_choose_from(
    organs: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, chosen = pipeline.train, []

    def failing_train(*args: Any, **options: Any) -> Path:
        if args[2] == "3d_fullres":
            raise MachineError("there is not enough memory")
        return train(*args, **options)

    def find_best(*_: Any, **options: Any) -> None:
        chosen.append(options["configurations"])

    monkeypatch.setattr(pipeline, "train", failing_train)
    monkeypatch.setattr(pipeline, "find_best", find_best)
    monkeypatch.setattr(pipeline, "suspect", lambda *_, **__: None)
    monkeypatch.setattr(running, "describe_choosing", str)
    monkeypatch.setattr(pipeline, "report_on", lambda *_, **__: organs.agenda_file(DATASET))
    with pytest.raises(PartlyDoneError, match=r"2 of 4 trainings failed(.|\n)*3d_fullres fold 1"):
        job(organs)
    assert chosen == [("2d",)]


def test_a_job_whose_trainings_all_fail_says_why(
    organs: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_train(*_: Any, **__: Any) -> Path:
        raise MachineError("there is not enough memory")

    monkeypatch.setattr(pipeline, "train", failing_train)
    with pytest.raises(MachineError, match="there is not enough memory"):
        job(organs)


def test_what_would_be_trained_is_told_without_writing_anything(organs: Folders) -> None:
    before = set(organs.raw.parent.rglob("*"))
    order = dataclasses.replace(ORDER, budget_seconds=4000)
    agenda = running.foresee(organs, DATASET, order, device="cpu", precision="fp32")
    assert set(organs.raw.parent.rglob("*")) == before
    assert agenda.step_seconds == {}  # nothing is preprocessed yet
    assert len(agenda.trainings) == 4
    pipeline.preprocess(organs, DATASET, workers=1)
    agenda = running.foresee(organs, DATASET, order, device="cpu", precision="fp32")
    assert set(agenda.step_seconds) == set(PATCH)
    assert not organs.run_folder(DATASET).exists()


def test_a_budget_goes_to_the_trainings_and_the_seed_with_it() -> None:
    settings = running._settings(dataclasses.replace(ORDER, seed=7), 90.0)
    assert (settings.budget_seconds, settings.seed, settings.epochs) == (90.0, 7, 1000)
    planned = running._settings(ORDER, None)
    assert (planned.budget_seconds, planned.epochs) == (None, None)
    assert running._settings(dataclasses.replace(ORDER, preset="best"), None) == TrainSettings()


# ---------------------------------------------------------------- several devices

SLOW = "import time; print('epoch 1/1'); time.sleep(60)"


def side_by_side(
    programs: dict[str, str], devices: tuple[str, ...], stop: Callable[[], bool] = lambda: False
) -> tuple[dict[str, NnsegError | None], list[str]]:
    said: list[str] = []
    commands = {
        Training(configuration=name, fold="0"): [sys.executable, "-c", text]
        for name, text in programs.items()
    }
    ended = elsewhere._side_by_side(commands, devices, said.append, stop)
    return {one.configuration: fault for one, fault in ended}, said


def test_trainings_on_several_devices_each_run_once_and_say_how_they_ended() -> None:
    programs = {
        "good": "print('epoch 1/2 loss'); print('other')",
        "bad": "import sys; print('nnseg: case a is wrong'); sys.exit(3)",
        "late": "import sys; print(sys.argv[1:])",
    }
    found, said = side_by_side(programs, ("cpu", "cuda:7"))
    assert found["good"] is None
    assert found["late"] is None
    assert type(found["bad"]) is DataError
    assert str(found["bad"]) == "case a is wrong"
    assert "      good fold 0: epoch 1/2 loss" in said
    assert not any("other" in line for line in said)
    assert {line.rsplit(" on ")[1] for line in said if " on " in line} == {"cpu", "cuda:7"}


def test_trainings_elsewhere_end_when_the_job_is_stopped() -> None:
    answers = iter([False, True])
    with pytest.raises(StoppedError):
        side_by_side({"one": SLOW, "two": SLOW}, ("cpu", "cpu"), lambda: next(answers))


def test_a_training_that_was_stopped_elsewhere_stops_the_job() -> None:
    with pytest.raises(StoppedError, match="one fold 0 was stopped"):
        side_by_side({"one": "import sys; sys.exit(75)", "two": SLOW}, ("cpu", "cpu"))


def test_data_roots_that_no_command_could_find_are_refused(tmp_path: Path) -> None:
    folders = Folders(raw=tmp_path / "a", preprocessed=tmp_path / "b", results=tmp_path / "c")
    agenda = Agenda(dataset=DATASET, order=ORDER, trainings=(), step_seconds={})
    with pytest.raises(UsageError, match="as several devices need them; give --root"):
        list(elsewhere.train_elsewhere(folders, agenda, ("a", "b"), None, print, lambda: False))
