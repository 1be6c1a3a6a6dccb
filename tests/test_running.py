import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from nnseg import pipeline, record
from nnseg.choose import Choosing
from nnseg.commit import sha256
from nnseg.errors import (
    DataError,
    DiskFullError,
    MachineError,
    MissingError,
    NnsegError,
    PartlyDoneError,
    StoppedError,
    UsageError,
)
from nnseg.folders import Folders, checkpoint_file
from nnseg.learning.recipe import TrainSettings
from nnseg.lock import locked
from nnseg.verbs import elsewhere, running, scheduling
from nnseg.verbs.agenda import Agenda, Order, Rehearsed, Training

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
    monkeypatch.setattr(
        scheduling,
        "training_settings",
        lambda order, seconds: dataclasses.replace(tiny.SHORT, seed=order.seed),
    )
    return folders


class Scores:
    """A summary in which nothing was found."""

    class foreground_mean:  # noqa: N801  (a record's field)
        dice = None


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings take no time, and leave nothing."""
    monkeypatch.setattr(pipeline, "train", lambda *_, **__: Path())
    monkeypatch.setattr(pipeline, "validation_summary", lambda _: Scores)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is asked for when models are compared, which is not done, nor what follows from it."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(pipeline, "find_best", lambda *_, **options: asked.append(options))
    monkeypatch.setattr(pipeline, "suspect", lambda *_, **__: None)
    monkeypatch.setattr(running, "describe_choosing", str)
    monkeypatch.setattr(pipeline, "report_on", lambda *_, **__: Path(__file__))
    return asked


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
    assert set(agenda.rehearsed) == set(PATCH)

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
    organs: Folders, monkeypatch: pytest.MonkeyPatch, told: list[dict[str, Any]]
) -> None:
    train = pipeline.train

    def failing_train(*args: Any, **options: Any) -> Path:
        if args[2] == "3d_fullres":
            raise MachineError("there is not enough memory")
        return train(*args, **options)

    monkeypatch.setattr(pipeline, "train", failing_train)
    with pytest.raises(PartlyDoneError, match=r"2 of 4 trainings failed(.|\n)*3d_fullres fold 1"):
        job(organs)
    assert [options["configurations"] for options in told] == [("2d",)]
    assert [options["folds"] for options in told] == [("0", "1")]


@pytest.mark.parametrize(
    ("broken", "compared"),
    [
        ({"2d 1", "3d_fullres 1"}, [(("2d", "3d_fullres"), ("0",))]),
        ({"2d 0", "3d_fullres 1"}, []),
    ],
)
def test_where_all_configurations_lack_folds_the_others_are_chosen_by_and_the_reasons_told(
    organs: Folders,
    monkeypatch: pytest.MonkeyPatch,
    told: list[dict[str, Any]],
    broken: set[str],
    compared: list[Any],
) -> None:
    reported = []

    def train(*args: Any, **options: Any) -> Path:
        if f"{args[2]} {args[3]}" in broken:
            raise MachineError(f"{args[2]} does not fit")
        return Path()

    monkeypatch.setattr(pipeline, "train", train)
    monkeypatch.setattr(pipeline, "validation_summary", lambda _: Scores)
    monkeypatch.setattr(
        pipeline, "report_on", lambda *_, **__: reported.append(True) or Path(__file__)
    )
    reasons = r"2 of 4 trainings failed(.|\n)*2d does not fit(.|\n)*3d_fullres does not fit"
    with pytest.raises(PartlyDoneError, match=reasons):
        job(organs)
    assert [(options["configurations"], options["folds"]) for options in told] == compared
    assert reported == [True]


def test_choosing_that_fails_does_not_hide_that_trainings_did(
    organs: Folders, monkeypatch: pytest.MonkeyPatch, told: list[dict[str, Any]]
) -> None:
    def find_best(*_: Any, **__: Any) -> None:
        raise MissingError("a fold is missing")

    agenda = Agenda(
        dataset=DATASET,
        order=ORDER,
        trainings=tuple(Training(configuration="2d", fold=fold) for fold in "01"),
    )
    monkeypatch.setattr(pipeline, "find_best", find_best)
    quiet = (1, None, print, lambda: False)
    assert running._choose(organs, agenda, {"2d fold 0"}, *quiet) is None
    with pytest.raises(MissingError, match="a fold is missing"):
        running._choose(organs, agenda, set(), *quiet)


def test_a_job_chooses_among_its_own_trainings_only(
    organs: Folders, told: list[dict[str, Any]], untrained: None
) -> None:
    job(organs, dataclasses.replace(ORDER, configurations=("2d",), seed=7))
    (asked,) = told
    assert (asked["configurations"], asked["folds"]) == (("2d",), ("0", "1"))
    assert asked["seeds"] == (7,)


def test_a_job_whose_trainings_all_fail_says_why(
    organs: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_train(*_: Any, **__: Any) -> Path:
        raise MachineError("there is not enough memory")

    monkeypatch.setattr(pipeline, "train", failing_train)
    with pytest.raises(MachineError, match=r"all 4 (.|\n)*there is not enough memory"):
        job(organs)


def test_a_fold_that_another_command_is_at_stops_the_job_before_it_begins(
    organs: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "train", lambda *_, **__: pytest.fail("it began"))
    last = organs.fold(DATASET, "nnseg", "3d_fullres", "1", 0)
    said: list[str] = []
    with locked(last, "nnseg train"), pytest.raises(MachineError, match=r"is in use by `nnseg tra"):
        job(organs, say=said.append)
    assert not any(line.startswith("3/5") for line in said)
    assert not organs.agenda_file(DATASET).exists()


def test_a_fold_that_was_trained_by_hand_otherwise_stops_the_job_before_it_begins(
    organs: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.preprocess(organs, DATASET, workers=1)
    tiny.train(
        organs,
        DATASET,
        "3d_fullres",
        fold="1",
        settings=dataclasses.replace(tiny.SHORT, epochs=1),
        validate_after=False,
    )
    monkeypatch.setattr(pipeline, "train", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(UsageError, match=r"other settings: epochs is now 2, was 1"):
        job(organs)


def test_a_job_begun_anew_is_without_the_choice_of_the_one_before_it(
    organs: Folders,
    monkeypatch: pytest.MonkeyPatch,
    told: list[dict[str, Any]],
    untrained: None,
) -> None:
    one = dataclasses.replace(ORDER, folds=("0",), configurations=("2d",))
    job(organs, one)
    for file in (organs.choice_file(DATASET), organs.choosing_file(DATASET)):
        file.write_text("{}")

    def train(*_: Any, **__: Any) -> Path:
        assert not organs.choice_file(DATASET).exists()
        assert not organs.choosing_file(DATASET).exists()
        raise StoppedError("stopped; the same command goes on")

    monkeypatch.setattr(pipeline, "train", train)
    with pytest.raises(StoppedError, match=r"goes on \(without --overwrite\)$"):
        job(organs, one, overwrite=True)
    assert organs.choice_file(DATASET).with_name("choice.json.old1").read_text() == "{}"
    with pytest.raises(StoppedError, match=r"goes on$"):
        job(organs, one)


@pytest.mark.parametrize(
    "step", ["examining", "preprocessing 2d, 3d_fullres", "measuring what a training step takes"]
)
def test_a_job_stops_between_cases_and_steps_before_it_trains(
    organs: Folders, told: list[dict[str, Any]], untrained: None, step: str
) -> None:
    lines: list[str] = []
    asked = 0

    def stop() -> bool:
        nonlocal asked
        begun = any(step in line for line in lines)
        asked += begun
        return begun and asked > 1

    with pytest.raises(StoppedError):
        job(
            organs,
            stop=stop,
            say=lines.append,
            on_progress=lambda what, done, total: lines.append(f"{what} {done}"),
        )
    assert asked == 2
    if "measuring" not in step:
        assert lines[-1] == f"{step} 2"
    assert not organs.agenda_file(DATASET).exists()
    made = len(list(organs.store(DATASET, "nnseg", "2d").glob("*.json")))
    assert made == (0 if step == "examining" else made)
    job(organs, dataclasses.replace(ORDER, folds=("0",), configurations=("2d",)))


def test_the_quickest_step_says_how_long_a_training_takes(
    organs: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.preprocess(organs, DATASET, workers=1)
    rehearsal = pipeline.rehearse(organs, DATASET, "2d", "0", settings=tiny.SHORT, **tiny.CPU)
    assert 0 < rehearsal.quickest_seconds <= rehearsal.step_seconds
    slow = dataclasses.replace(rehearsal, step_seconds=4.9, quickest_seconds=1.5, bytes=7)
    monkeypatch.setattr(pipeline, "rehearse", lambda *_, **__: slow)
    agenda = scheduling.foresee(organs, DATASET, ORDER)
    wanted = Rehearsed(epochs=2, iterations=2, step_seconds=1.5, bytes=7)
    assert agenda.rehearsed == {"2d": wanted, "3d_fullres": wanted}


def test_a_budget_is_shared_by_all_devices(
    organs: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.preprocess(organs, DATASET, workers=1)
    order = dataclasses.replace(ORDER, budget_seconds=4000)
    alone, several = (
        scheduling.foresee(organs, DATASET, order, devices=("cpu",) * count, precision="fp32")
        for count in (1, 4)
    )
    assert len(alone.trainings) == len(several.trainings) == 4
    shares = [agenda.trainings[0].budget_seconds or 0 for agenda in (alone, several)]
    assert shares[1] == pytest.approx(4 * shares[0], rel=0.02)


def test_devices_of_several_kinds_are_refused(organs: Folders) -> None:
    for refused in (job, lambda *_, **more: scheduling.foresee(organs, DATASET, ORDER, **more)):
        with pytest.raises(UsageError, match="several kinds"):
            refused(organs, devices=("cpu", "cuda:0"))


def test_what_would_be_trained_of_a_dataset_that_is_not_planned_is_told(tmp_path: Path) -> None:
    folders = tiny.draw(tmp_path, DATASET, "mri", cases=6)
    before = set(tmp_path.rglob("*"))
    said: list[str] = []
    order = dataclasses.replace(ORDER, configurations=("2d",))
    agenda = scheduling.foresee(folders, DATASET, order, workers=1, say=said.append)
    assert [one.name for one in agenda.trainings] == ["2d fold 0", "2d fold 1"]
    assert "preprocessing would take" in said[0]
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("seed", "end"), [(0, "nnseg/2d"), (3, "nnseg/2d/fold_all_seed3")])
def test_a_model_trained_on_all_cases_is_named_by_its_folder(
    organs: Folders, seed: int, end: str
) -> None:
    trainings = (Training(configuration="2d", fold="all"),)
    order = dataclasses.replace(ORDER, seed=seed)
    finished = running.Finished(
        agenda=Agenda(dataset=DATASET, order=order, trainings=trainings),
        choosing=None,
        choice_file=None,
        report_file=Path("index.html"),
        failed={},
    )
    text = running._what_now(organs, finished, 60.0)
    model = organs.models_folder(DATASET) / end
    assert f"nnseg predict -i IN -o OUT -m {model}\n" in text
    assert f"nnseg export {model} --to zip" in text


def test_what_would_be_trained_is_told_without_writing_anything(organs: Folders) -> None:
    before = set(organs.raw.parent.rglob("*"))
    order = dataclasses.replace(ORDER, budget_seconds=4000)
    agenda = scheduling.foresee(organs, DATASET, order, devices=("cpu",), precision="fp32")
    assert set(organs.raw.parent.rglob("*")) == before
    assert agenda.rehearsed == {}  # nothing is preprocessed yet
    assert len(agenda.trainings) == 4
    pipeline.preprocess(organs, DATASET, workers=1)
    agenda = scheduling.foresee(organs, DATASET, order, devices=("cpu",), precision="fp32")
    assert set(agenda.rehearsed) == set(PATCH)
    assert not organs.run_folder(DATASET).exists()


def test_a_budget_goes_to_the_trainings_and_the_seed_with_it() -> None:
    settings = scheduling.training_settings(dataclasses.replace(ORDER, seed=7), 90.0)
    assert (settings.budget_seconds, settings.seed, settings.epochs) == (90.0, 7, 1000)
    planned = scheduling.training_settings(ORDER, None)
    assert (planned.budget_seconds, planned.epochs) == (None, None)
    assert (
        scheduling.training_settings(dataclasses.replace(ORDER, preset="best"), None)
        == TrainSettings()
    )


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
    agenda = Agenda(dataset=DATASET, order=ORDER, trainings=())
    with pytest.raises(UsageError, match="as several devices need them; give --root"):
        list(elsewhere.train_elsewhere(folders, agenda, ("a", "b"), None, print, lambda: False))


def run_one(program: str, stop: Callable[[], bool] = lambda: False, **options: Any) -> Any:
    """Run one command as a training, and give what was wrong with it."""
    training = Training(configuration="one", fold="0")
    options = {"say": print, **options}
    ended = elsewhere._side_by_side(
        {training: [sys.executable, "-c", program]}, ("cpu",), options["say"], stop
    )
    return next(fault for _, fault in ended)


def test_bytes_that_are_no_text_do_not_hold_up_a_job() -> None:
    program = "import sys; sys.stdout.buffer.write(b'nnseg: label \\xff\\n'); sys.exit(3)"
    assert str(run_one(program)).startswith("label ")


def test_a_process_that_cannot_be_started_ends_the_job() -> None:
    training = Training(configuration="one", fold="0")
    with pytest.raises(MachineError, match="one fold 0: no process can be started"):
        list(elsewhere._side_by_side({training: ["/nonexistent"]}, ("cpu",), print, lambda: False))


def test_what_goes_wrong_while_it_is_told_ends_the_job_and_its_trainings() -> None:
    def say(text: str) -> None:
        raise RuntimeError("nobody listens")

    began = time.monotonic()
    with pytest.raises(RuntimeError, match="nobody listens"):
        run_one(SLOW, say=say)
    assert time.monotonic() - began < 20


def test_a_training_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "END_WITHIN", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    deaf += "print('epoch 1/1', flush=True); time.sleep(60)"
    said: list[str] = []
    began = time.monotonic()
    with pytest.raises(StoppedError):
        run_one(deaf, lambda: len(said) == 2, say=said.append)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("program", "kind", "text"),
    [
        (
            "import os, signal; print('epoch 12/100', flush=True); os.kill(os.getpid(), 9)",
            MachineError,
            "its process was killed by signal 9, probably for want of memory",
        ),
        ("import os; os.kill(os.getpid(), 11)", MachineError, "its process died of signal 11"),
        (
            "import sys; print('nnseg: 2 failed:\\n  case a: no\\n  case b: no'); sys.exit(3)",
            DataError,
            "2 failed:\n  case a: no\n  case b: no",
        ),
    ],
)
def test_how_a_training_elsewhere_failed_is_told(
    program: str, kind: type[NnsegError], text: str
) -> None:
    fault = run_one(program)
    assert type(fault) is kind
    assert str(fault).startswith(text)


def test_a_full_disk_elsewhere_ends_the_job() -> None:
    program = "import sys; print('nnseg: x: the disk is full (0 MiB free)\\n1 of 2'); sys.exit(4)"
    with pytest.raises(DiskFullError, match="the disk is full"):
        run_one(program)


def test_a_training_that_may_not_begin_ends_the_job() -> None:
    def check(training: Training) -> None:
        raise MachineError(f"{training.name} is in use")

    commands = {Training(configuration="one", fold="0"): [sys.executable, "-c", SLOW]}
    with pytest.raises(MachineError, match="one fold 0 is in use"):
        list(elsewhere._side_by_side(commands, ("cpu",), print, lambda: False, check))


@pytest.mark.skipif(os.name == "nt", reason="its processes end otherwise")
def test_trainings_elsewhere_end_when_the_job_is_killed(tmp_path: Path) -> None:
    training = (
        "from nnseg.verbs.elsewhere import end_with_parent; end_with_parent(); "
        "import os, signal, sys, time; stopped = []; "
        "signal.signal(signal.SIGTERM, lambda *_: stopped.append(print('stopping', flush=True))); "
        f"open({str(tmp_path / 'begun')!r}, 'w').close()\n"
        "while not stopped: time.sleep(0.05)\n"
        f"open({str(tmp_path / 'saved')!r}, 'w').close()"
    )
    parent = (
        "import sys; from nnseg.verbs import elsewhere; from nnseg.verbs.agenda import Training; "
        f"one = {{Training(configuration='2d', fold='0'): [sys.executable, '-c', {training!r}]}}; "
        "list(elsewhere._side_by_side(one, ('cpu', 'x'), print, lambda: False))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.DEVNULL)
    try:
        wait_for(tmp_path / "begun")
    finally:
        process.kill()
        process.wait()
    wait_for(tmp_path / "saved")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.05)


def test_a_watched_process_ends_as_well_as_one_that_is_not() -> None:
    program = (
        "from nnseg.verbs.elsewhere import end_with_parent; end_with_parent(); print('nnseg: x')"
    )
    assert run_one(program) is None


def test_several_devices_train_by_the_command_line(
    organs: Folders, told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []
    really = elsewhere._side_by_side

    def side_by_side(commands: dict[Training, list[str]], *_: Any) -> Any:
        given.extend(commands.values())
        return [(one, None) for one in commands]

    monkeypatch.setattr(elsewhere, "_side_by_side", side_by_side)
    job(organs, devices=("cpu", "cpu"))
    assert len(given) == 4
    assert all({"--root", "--seed", "--preset"} <= {*command} for command in given)
    helped = {Training(configuration="2d", fold="0"): [*given[0][:3], "train", "-h"]}
    assert [fault for _, fault in really(helped, ("cpu",), print, lambda: False)] == [None]
