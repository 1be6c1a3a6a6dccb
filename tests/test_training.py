"""What a training tells, starts from and takes, on 2D phantoms and a tiny network."""

import csv
import dataclasses
import json
import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import CPU, FLAT, SHORT

from nnseg import phantom, pipeline, record
from nnseg.checkpoint import load_model
from nnseg.cli import build_parser
from nnseg.errors import MachineError, MissingError, PlanError, StoppedError, UsageError
from nnseg.folders import Folders, metrics_file, summary_file, validation_folder
from nnseg.learning.recipe import TrainSettings
from nnseg.learning.resume import EpochReport, read_run
from nnseg.model.architecture import NetworkOptions
from nnseg.registry import Registry
from nnseg.runlog import RunReport
from nnseg.verbs import reporter
from nnseg.verbs.fold_task import smaller_plan
from nnseg.verbs.planned_fold import find_fold, replaced_cases
from nnseg.volume import read_segmentation, write


def train(folders: Folders, **options: Any) -> Path:
    return tiny.train(folders, FLAT, "2d", **options)


def epochs_in(fold: Path) -> list[dict[str, str]]:
    with metrics_file(fold).open(newline="") as file:
        return list(csv.DictReader(file))


class Notebook:
    """A tracker that writes down what it is told."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        self.told: list[object] = [name, settings["epochs"]]
        books.append(self)

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        self.told.append((epoch, sorted(figures)))

    def close(self) -> None:
        self.told.append("closed")


class Broken(Notebook):
    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        self.told.append(epoch)
        raise ConnectionError("its host is away")


books: list[Notebook] = []


@pytest.fixture
def notebooks(monkeypatch: pytest.MonkeyPatch) -> list[Notebook]:
    books.clear()
    kinds = Registry[Any]("tracker", notebook=Notebook, broken=Broken)
    monkeypatch.setattr(reporter, "TRACKERS", kinds)
    return books


def test_trackers_get_the_figures_of_every_epoch(
    prepared: Folders, notebooks: list[Notebook]
) -> None:
    train(prepared, trackers=["notebook"], validate_after=False)
    (book,) = notebooks
    name, epochs, first, second, closed = book.told
    assert (name, epochs, closed) == (f"{FLAT} 2d 0", 2, "closed")
    for number, (epoch, figures) in enumerate((first, second), start=1):  # type: ignore[misc]
        assert epoch == number
        assert {"lr", "loss/training", "loss/validation"} <= set(figures)


def test_a_tracker_that_fails_is_left_out_and_the_training_goes_on(
    prepared: Folders, notebooks: list[Notebook], caplog: pytest.LogCaptureFixture
) -> None:
    fold = train(prepared, trackers=["broken", "notebook"], validate_after=False)
    broken, notebook = notebooks
    assert broken.told[2:] == [1]
    assert notebook.told[-1] == "closed"
    assert caplog.text.count("broken gets no more figures (its host is away)") == 1
    assert len(epochs_in(fold)) == 2


def test_a_tracker_that_is_none_is_refused_before_anything_is_written(prepared: Folders) -> None:
    with pytest.raises((PlanError, UsageError), match="no tracker is named 'abacus'"):
        train(prepared, trackers=["abacus"])
    assert list(prepared.results.rglob("checkpoint*")) == []


class Refusing(Notebook):
    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        raise ConnectionError("no key")


def test_a_tracker_that_does_not_start_is_told_before_anything_is_computed(
    prepared: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter, "TRACKERS", Registry[Any]("tracker", refusing=Refusing))
    with pytest.raises(UsageError, match=r"refusing does not start \(no key\)"):
        train(prepared, trackers=["refusing"])
    assert list(prepared.results.rglob("checkpoint*")) == []


@pytest.mark.fault("R40")
@pytest.mark.parametrize("part", ["plot_progress", "history_csv"])
def test_a_plot_or_table_that_cannot_be_made_costs_a_warning(
    part: str, prepared: Folders, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr(reporter.report, part, fail)
    fold = train(prepared, validate_after=False)
    assert load_model(fold, "final")[0].epoch == 2
    assert "could not be made (no font)" in caplog.text


# ---------------------------------------------------------------- what it starts from


def test_a_training_starts_from_another_model_and_says_what_was_kept(
    flat: Folders, prepared: Folders
) -> None:
    source = flat.fold(FLAT, "nnseg", "2d", "0", 0)
    said: list[str] = []
    barely = dataclasses.replace(SHORT, epochs=1, iterations=1, lr=1e-9)
    fold = train(
        prepared, settings=barely, pretrained=source, say=said.append, validate_after=False
    )
    before, after = load_model(source, "final")[1], load_model(fold, "final")[1]
    for name, value in before.items():
        assert (after[name] - value).abs().max() < 1e-6
    assert f"of {len(before)} parameters whole, 0 in part, 0 not" in said[0]
    facts = record.load(RunReport, fold / "run.json").facts
    assert len(facts["pretrained"]["kept"]) == len(before)
    assert facts["pretrained"]["fresh"] == []


def test_a_run_goes_on_only_with_the_model_that_it_started_from(
    flat: Folders, prepared: Folders
) -> None:
    source = flat.fold(FLAT, "nnseg", "2d", "0", 0)
    train(prepared, pretrained=source, validate_after=False)
    with pytest.raises(UsageError, match="pretrained is now None"):
        train(prepared, validate_after=False)
    train(prepared, pretrained=source, validate_after=False)


def test_a_model_that_is_not_there_is_named(prepared: Folders, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="nothing does not exist"):
        train(prepared, pretrained=tmp_path / "nothing")


# ---------------------------------------------------------------- how long


def test_a_finished_training_gets_a_later_end_and_is_validated_again(
    flat: Folders, tmp_path: Path
) -> None:
    shutil.copytree(flat.raw.parent, tmp_path / "copy")
    folders = Folders.of_root(tmp_path / "copy")
    fold = folders.fold(FLAT, "nnseg", "2d", "0", 0)
    before = summary_file(validation_folder(fold)).read_bytes()
    weights = load_model(fold, "final")[0].weights_sha256
    train(folders, extend_to=3)
    assert [row["epoch"] for row in epochs_in(fold)] == ["1", "2", "3"]
    assert load_model(fold, "final")[0].weights_sha256 != weights
    assert summary_file(validation_folder(fold)).is_file()
    assert json.loads(before)
    train(folders)  # the first command finds it finished
    assert len(epochs_in(fold)) == 3


def test_scores_of_other_weights_are_not_taken_for_those_of_the_final_ones(
    flat: Folders, tmp_path: Path
) -> None:
    shutil.copytree(flat.raw.parent, tmp_path / "copy")
    folders = Folders.of_root(tmp_path / "copy")
    fold = folders.fold(FLAT, "nnseg", "2d", "0", 0)
    summary = summary_file(validation_folder(fold))

    def written() -> int:
        return summary.stat().st_mtime_ns

    before = written()
    train(folders)
    assert written() == before  # of these weights: nothing is done again
    train(folders, extend_to=3, validate_after=False)
    train(folders)
    assert written() > before
    before = written()
    pipeline.validate(folders, FLAT, "2d", "0", checkpoint="best", **CPU)
    between = written()
    assert between > before
    train(folders)
    best, final = (load_model(fold, kind)[0].weights_sha256 for kind in ("best", "final"))
    assert (written() > between) is (best != final)


def test_without_a_run_there_is_nothing_to_extend(prepared: Folders) -> None:
    with pytest.raises(MissingError, match="no run to extend"):
        train(prepared, extend_to=3)


def test_a_run_goes_on_on_the_device_that_is_asked_for_now(prepared: Folders) -> None:
    with pytest.raises(StoppedError):
        train(prepared, stop=tiny.stop_after(2), validate_after=False)
    fold = train(prepared, device="cpu:0", validate_after=False)
    run = read_run(fold)
    assert run is not None
    assert (run.finished, run.execution.device) == (True, "cpu:0")


@pytest.mark.parametrize("settings", [SHORT, TrainSettings(budget_seconds=60)])
def test_a_rehearsal_stops_between_two_steps(prepared: Folders, settings: TrainSettings) -> None:
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) == 3

    with pytest.raises(StoppedError, match="stopped while measuring"):
        pipeline.rehearse(prepared, FLAT, "2d", "0", settings=settings, stop=stop, **CPU)
    assert len(asked) == 3


def test_a_rehearsal_says_what_it_takes_and_writes_nothing(prepared: Folders) -> None:
    before = sorted(prepared.raw.parent.rglob("*"))
    found = pipeline.rehearse(prepared, FLAT, "2d", "0", settings=SHORT, **CPU)
    assert (found.epochs, found.iterations) == (2, 2)
    assert 0 < found.step_seconds < 60
    assert found.bytes > 10**7
    assert "2 epochs of 2 steps of 2 patches on cpu in fp32" in str(found)
    assert sorted(prepared.raw.parent.rglob("*")) == before


def test_a_rehearsal_names_all_patches_of_a_step(
    prepared: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {"settings": dataclasses.replace(SHORT, accumulate=3), **CPU}
    assert pipeline.rehearse(prepared, FLAT, "2d", "0", **how).patches == 6
    monkeypatch.setattr("nnseg.learning.task.budget_batch", lambda *_: 1)
    assert (
        pipeline.rehearse(
            prepared, FLAT, "2d", "0", settings=TrainSettings(budget_seconds=60), **CPU
        ).patches
        == 1
    )


@pytest.mark.fault("R24")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("tried to allocate 2.00 GiB\nmore words"),
        RuntimeError("DefaultCPUAllocator: can't allocate 2.00 GiB\nmore words"),
    ],
)
def test_memory_that_does_not_suffice_names_the_smaller_plan(
    prepared: Folders, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def exhaust(*args: Any) -> None:
        raise error

    monkeypatch.setattr("nnseg.learning.step.step_loss", exhaust)
    with pytest.raises(
        MachineError, match=r"allocate 2.00 GiB\); plan a .*--memory-gb 6 -p nnseg_6gb"
    ):
        train(prepared)
    with pytest.raises(MachineError, match=r"--memory-gb 6 -p nnseg_6gb"):
        pipeline.rehearse(prepared, FLAT, "2d", "0", settings=SHORT, **CPU)


@pytest.mark.parametrize(
    ("planner", "network", "options", "words"),
    [
        ("default", "plain", {}, ""),
        ("default", "plain", {"upsampling": "shuffled"}, "--upsampling shuffled"),
        ("resenc_l", "resenc", {}, "--planner resenc_l"),
        ("default", "unetpp", {"norm": "batch"}, "--network unetpp --norm batch"),
        ("resenc", "plain", {}, "--planner resenc --network plain"),
    ],
)
def test_the_smaller_plan_is_of_the_same_network_and_the_command_is_one(
    prepared: Folders, planner: str, network: str, options: dict[str, Any], words: str
) -> None:
    about = find_fold(prepared, FLAT, "nnseg", "2d", "0", 0)
    architecture = dataclasses.replace(
        about.configuration.architecture, network=network, options=NetworkOptions(**options)
    )
    about = dataclasses.replace(
        about,
        plan=dataclasses.replace(about.plan, planner=planner),
        configuration=dataclasses.replace(about.configuration, architecture=architecture),
    )
    command = smaller_plan(about)
    words = f" {words}" if words else ""
    assert command == (f"nnseg plan_and_preprocess -d {FLAT}{words} --memory-gb 6 -p nnseg_6gb")
    asked = build_parser().parse_args(shlex.split(command)[1:])
    plan = pipeline.plan(
        prepared,
        FLAT,
        name=asked.plan,
        planner=asked.planner,
        memory_gb=asked.memory_gb,
        network=asked.network,
        options=NetworkOptions(**options),
        save=False,
    )
    planned = plan.configuration("2d").architecture
    assert (planned.network, planned.options) == (network, architecture.options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_training_stays_within_the_memory_that_it_was_planned_for(tmp_path: Path) -> None:
    folders = Folders.of_root(tmp_path)
    phantom.write_dataset(folders.raw_folder(FLAT), "mri", cases=5)
    plan, _ = pipeline.plan_and_preprocess(folders, FLAT, memory_gb=4.0)
    for configuration in plan.configurations:
        found = pipeline.rehearse(folders, FLAT, configuration, "0", device="cuda")
        assert found.bytes < 4.0 * 2**30


# ---------------------------------------------------------------- why nothing is learnt


def test_a_label_that_no_case_has_is_named_after_two_epochs(
    prepared: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in prepared.labels(FLAT).iterdir():
        segmentation, geometry = read_segmentation(path)
        write(path, (segmentation * (segmentation == 1)).astype("uint8"), geometry)
    pipeline.preprocess(prepared, FLAT, workers=1)
    monkeypatch.setattr(reporter, "has_learnt_nothing", lambda dice: True)
    said: list[str] = []
    train(prepared, say=said.append, validate_after=False)
    assert [text for text in said if "label tail: in no training case of this fold" in text]
    assert not [text for text in said if "head" in text]


def test_a_label_that_resampling_lost_is_told_from_one_that_was_never_there(
    prepared: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {path: path.read_bytes() for path in prepared.labels(FLAT).iterdir()}
    for path in kept:
        segmentation, geometry = read_segmentation(path)
        write(path, (segmentation * (segmentation == 1)).astype("uint8"), geometry)
    pipeline.preprocess(prepared, FLAT, workers=1)
    for path, content in kept.items():  # as if the label had been too thin for the plan's grid
        path.write_bytes(content)
    monkeypatch.setattr(reporter, "has_learnt_nothing", lambda dice: True)
    said: list[str] = []
    train(prepared, say=said.append, validate_after=False)
    assert [text for text in said if "label tail: in the label maps, but gone" in text]


@pytest.mark.fault("R14")
def test_a_raw_file_that_is_replaced_is_told_whatever_its_time_and_one_that_was_moved_is_not(
    prepared: Folders,
) -> None:
    first, second, third, *_ = sorted(prepared.images(FLAT).iterdir())
    third.chmod(0o600)
    assert replaced_cases(find_fold(prepared, FLAT, "nnseg", "2d", "0", 0)) == ()  # all are copies
    kept = second.stat()
    shutil.copy(first, second)
    os.utime(second, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert replaced_cases(find_fold(prepared, FLAT, "nnseg", "2d", "0", 0)) == ("2d_001",)


def test_only_the_second_epoch_is_looked_at(
    prepared: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def look(task: Any, history: list[EpochReport], in_raw: Any) -> tuple[str, ...]:
        looked.append(len(history))
        return ()

    monkeypatch.setattr(reporter, "_diagnose", look)
    monkeypatch.setattr(reporter, "has_learnt_nothing", lambda dice: True)
    train(prepared, settings=dataclasses.replace(SHORT, epochs=3), validate_after=False)
    assert looked == [2]


@pytest.mark.fault("R32", "G7")
def test_two_loader_workers_and_none_come_to_the_same_weights(
    prepared: Folders, tmp_path: Path
) -> None:
    hashes = set()
    for number, workers in enumerate((0, 2)):
        shutil.copytree(prepared.raw.parent, tmp_path / str(number))
        folders = Folders.of_root(tmp_path / str(number))
        fold = train(folders, loader_workers=workers, validate_after=False)
        hashes.add(load_model(fold, "final")[0].weights_sha256)
    assert len(hashes) == 1
