import dataclasses
import itertools
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from nnseg import record
from nnseg import train as stage
from nnseg.axes import Shape
from nnseg.checkpoint import load_model
from nnseg.dataset import DatasetSpec
from nnseg.errors import DataError, StoppedError, UsageError
from nnseg.fingerprint import Fingerprint
from nnseg.folders import checkpoint_file
from nnseg.image.intensity import Intensity
from nnseg.labels import Labels
from nnseg.learning.batches import make_batch
from nnseg.learning.course import plan_course
from nnseg.learning.recipe import TrainSettings
from nnseg.learning.resume import EpochReport, RunRecord, extend_run
from nnseg.learning.state import follow, new_state, restore_state, save_state
from nnseg.learning.step import step_loss
from nnseg.learning.task import Task
from nnseg.model.architecture import Architecture
from nnseg.model.device import Execution
from nnseg.model.ranks import Ranks
from nnseg.plan import Plan, make_plan
from nnseg.preprocess import Placement, find_locations
from nnseg.store import TrainingCase
from nnseg.train import fit_course, probe, train, validate_epoch

LABELS = Labels(labels={"background": 0, "dark": 1, "bright": 2})
PATCH: Shape = (4, 8, 6)
INTENSITY = Intensity(
    mean=0.0, median=0.0, std=1.0, min=-3.0, max=3.0, percentile_00_5=-2.0, percentile_99_5=2.0
)
SHORT = TrainSettings(epochs=2, iterations=2, validation_iterations=1, batch_size=2)


def network(levels: int = 2) -> Architecture:
    return Architecture(
        network="plain",
        dimensions=3,
        features=(4, 6, 8, 8)[:levels],
        kernel_sizes=((3, 3, 3),) * levels,
        strides=((1, 1, 1), (2, 2, 2), (1, 2, 1), (1, 1, 1))[:levels],
        encoder_blocks=(1,) * levels,
        decoder_blocks=(1,) * (levels - 1),
    )


def small_plan(labels: Labels = LABELS, levels: int = 2) -> Plan:
    measured = Fingerprint(
        spacings=((2.0, 1.0, 1.0),),
        shapes=((6, 12, 10),),
        intensities=(INTENSITY,),
        median_relative_size=1.0,
    )
    spec = DatasetSpec(channels=("MR",), labels=labels, num_training=3, file_ending=".nii.gz")
    plan = make_plan(spec, measured, dataset="Dataset001_Toy")
    planned = dataclasses.replace(
        plan.configuration("3d_fullres"), patch_size=PATCH, architecture=network(levels)
    )
    return dataclasses.replace(plan, configurations={"3d_fullres": planned})


def toy_case(number: int, labels: Labels = LABELS) -> TrainingCase:
    """A dark box and a bright one in noise; where they lie differs from case to case."""
    shape: Shape = (6, 12, 9 + number)
    rng = np.random.default_rng(number)
    segmentation = np.zeros(shape, np.uint8)
    segmentation[1:5, 1:6, 2:6] = 1
    segmentation[2:6, 7:11, 1 + number : 5 + number] = 2
    image = rng.normal(0, 0.1, (1, *shape)).astype(np.float32)
    image[0] += np.array([0, -2, 2], np.float32)[segmentation]
    placement = Placement(
        order=(0, 1, 2),
        shape=shape,
        spacing=(2.0, 1.0, 1.0),
        box=((0, shape[0]), (0, shape[1]), (0, shape[2])),
        shape_resampled=shape,
    )
    return TrainingCase(
        case_id=f"toy_{number:03d}",
        image=image,
        segmentation=segmentation,
        mask=None,
        locations=find_locations(segmentation, labels),
        placement=placement,
    )


def make_task(
    folder: Path, settings: TrainSettings = SHORT, *, levels: int = 2, cases: int = 2
) -> Task:
    plan = small_plan(levels=levels)
    folder.mkdir(parents=True, exist_ok=True)
    return Task(
        plan=plan,
        plan_hash="hash of the plan",
        split_hash="hash of the split",
        data_hash="hash of the data",
        configuration=plan.configuration("3d_fullres"),
        fold="0",
        train_cases=[toy_case(number) for number in range(cases)],
        val_cases=[toy_case(7)],
        settings=settings,
        execution=Execution(device="cpu"),
        folder=folder,
    )


def stop_after(steps: int) -> Callable[[], bool]:
    count = itertools.count(1)
    return lambda: next(count) == steps


def latest(task: Task) -> RunRecord:
    return record.load(RunRecord, task.folder / "checkpoint_latest.json")


def weights_of(folder: Path, kind: Any = "final") -> dict[str, Tensor]:
    return load_model(folder, kind)[1]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def timeless(history: tuple[EpochReport, ...]) -> list[EpochReport]:
    return [dataclasses.replace(report, seconds=0, wait_share=0) for report in history]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    """A run of two epochs of two steps to its end."""
    task = make_task(tmp_path_factory.mktemp("undisturbed"))
    return task.folder, train(task)


# ---------------------------------------------------------------- the same bytes, always


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_run_stopped_after_any_step_goes_on_to_the_same_bytes(
    tmp_path: Path, undisturbed: tuple[Path, RunRecord], steps: int
) -> None:
    task = make_task(tmp_path)
    with pytest.raises(StoppedError, match="the same command goes on"):
        train(task, stop=stop_after(steps))
    assert not (tmp_path / "checkpoint_final.json").exists()
    stopped = latest(task)
    assert 2 * stopped.epoch + stopped.iteration == steps
    finished = train(task, resume=stopped)
    assert same(weights_of(tmp_path), weights_of(undisturbed[0]))
    assert same(weights_of(tmp_path, "best"), weights_of(undisturbed[0], "best"))
    assert finished.weights_sha256 == undisturbed[1].weights_sha256
    assert timeless(finished.history) == timeless(undisturbed[1].history)


def test_a_run_stopped_after_every_step_goes_on_to_the_same_bytes(
    tmp_path: Path, undisturbed: tuple[Path, RunRecord]
) -> None:
    task, resume = make_task(tmp_path), None
    for _ in range(4):
        with pytest.raises(StoppedError):
            train(task, resume=resume, stop=lambda: True)
        resume = latest(task)
    train(task, resume=resume)
    assert same(weights_of(tmp_path), weights_of(undisturbed[0]))


def die_at(step: int) -> Callable[[str, int, int], None]:
    def look(what: str, done: int, total: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return look


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_killed_run_goes_on_from_its_last_save_to_the_same_bytes(
    tmp_path: Path, undisturbed: tuple[Path, RunRecord], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(stage, "SAVE_EVERY", -1.0)  # after every step and every epoch
    task = make_task(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(task, on_step=die_at(step))
    assert (latest(task).epoch, latest(task).iteration) == {2: (0, 1), 3: (1, 0), 4: (1, 1)}[step]
    run = train(task, resume=latest(task))
    assert run.weights_sha256 == undisturbed[1].weights_sha256
    assert same(weights_of(tmp_path), weights_of(undisturbed[0]))


def test_nothing_is_saved_on_the_way_before_it_is_time(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(task, on_step=die_at(4))
    assert not checkpoint_file(tmp_path, "latest").exists()


VARIED = {
    "adamw and an average": {"optimizer": "adamw", "ema": 0.9, "lr": 0.01},
    "sgd and an average": {"ema": 0.9, "schedule": "cosine"},
    "no momentum": {"momentum": 0.0},
    "adam, several batches a step": {"optimizer": "adam", "accumulate": 3, "lr": 0.01},
    "restarts and a mixed loss": {"schedule": "cosine_restarts", "dice_weight": 0.2},
    "mixed and bent patches": {"mixup": 0.4, "elastic": 9.0},
    "a plateau": {"epochs": 9, "iterations": 1, "patience": 0.2},
}


@pytest.mark.parametrize("name", VARIED)
def test_whatever_the_recipe_a_run_killed_at_each_step_comes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    settings = dataclasses.replace(SHORT, **VARIED[name])  # type: ignore[arg-type]
    if name == "a plateau":
        monkeypatch.setattr(stage, "validate_epoch", lambda *_: (0.0, {"dark": 0.5}))
    wanted = train(make_task(tmp_path / "whole", settings))
    monkeypatch.setattr(stage, "SAVE_EVERY", -1.0)
    task, resume = make_task(tmp_path / "killed", settings), None
    for step in range(2, wanted.course.steps + 1):
        with pytest.raises(KeyboardInterrupt):
            train(task, resume=resume, on_step=die_at(step))
        resume = latest(task)
    run = train(task, resume=resume)
    assert run.course == wanted.course
    assert (run.course.turn is not None) is (name == "a plateau")
    assert run.weights_sha256 == wanted.weights_sha256
    assert timeless(run.history) == timeless(wanted.history)


def test_a_run_stopped_between_validation_batches_has_done_its_steps_and_goes_on(
    tmp_path: Path,
) -> None:
    settings = dataclasses.replace(SHORT, validation_iterations=3)
    wanted = train(make_task(tmp_path / "whole", settings))
    task = make_task(tmp_path / "stopped", settings)
    with pytest.raises(StoppedError, match="stopped in epoch 1"):
        train(task, stop=stop_after(3))  # two steps and a validation batch
    assert (latest(task).epoch, latest(task).iteration) == (0, 2)
    run = train(task, resume=latest(task))
    assert run.weights_sha256 == wanted.weights_sha256
    assert timeless(run.history) == timeless(wanted.history)


@pytest.mark.parametrize("finished", [True, False])
def test_an_extended_run_ends_at_its_new_end_however_often_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    def start(folder: Path) -> tuple[Task, RunRecord]:
        task = make_task(folder)
        if finished:
            train(task)
        else:
            with pytest.raises(StoppedError):
                train(task, stop=stop_after(3))
        return task, extend_run(latest(task), 4)

    task, longer = start(tmp_path / "whole")
    wanted = train(task, resume=longer)
    assert (wanted.epoch, wanted.finished, wanted.settings) == (4, True, SHORT)
    first = 2 if finished else 1
    planned = [0.01 * (1 - epoch / 4) ** 0.9 for epoch in range(first, 4)]
    assert [report.lr for report in wanted.history[first:]] == pytest.approx(planned)
    monkeypatch.setattr(stage, "SAVE_EVERY", -1.0)
    task, longer = start(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        train(task, resume=longer, on_step=die_at(7))
    assert latest(task).course == wanted.course  # the first command goes on to the new end
    assert train(task, resume=latest(task)).weights_sha256 == wanted.weights_sha256


@pytest.mark.fault("G7")
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    tmp_path: Path, undisturbed: tuple[Path, RunRecord]
) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    torch.manual_seed(99)  # the global generator has no say
    train(make_task(again))
    train(make_task(other, dataclasses.replace(SHORT, seed=1)))
    names = [
        record.read_json(folder / "checkpoint_final.json")["weights_sha256"]
        for folder in (undisturbed[0], again, other)
    ]
    assert names[0] == names[1]
    assert names[0] != names[2]


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    train(make_task(tmp_path, dataclasses.replace(SHORT, epochs=1, iterations=1)))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    with pytest.raises(StoppedError):
        train(task, stop=stop_after(3))
    state = restore_state(task, latest(task))
    again = save_state(task, state)
    assert again.weights_sha256 == latest(task).weights_sha256
    assert (state.epoch, state.iteration, len(state.history)) == (1, 1, 1)
    buffers = [kept["momentum_buffer"] for kept in state.optimizer.state.values()]
    assert len(buffers) == len(list(state.network.parameters()))
    assert all(bool(buffer.any()) for buffer in buffers)


def test_the_scale_of_fp16_losses_goes_on_where_it_was(tmp_path: Path) -> None:
    execution = Execution(device="cpu", precision="fp16")
    task = dataclasses.replace(make_task(tmp_path), execution=execution)
    state = new_state(task)
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 8.0, "_growth_tracker": 3})
    run = save_state(task, state)
    assert run.loss_scale == (8.0, 3)
    found = restore_state(task, run).scaler.state_dict()
    assert (found["scale"], found["_growth_tracker"]) == (8.0, 3)


def test_a_run_says_what_it_is_and_that_it_is_finished(
    undisturbed: tuple[Path, RunRecord],
) -> None:
    folder, run = undisturbed
    assert run == record.load(RunRecord, folder / "checkpoint_latest.json")
    assert run.finished
    assert (run.epoch, run.iteration, run.course) == (2, 0, plan_course(SHORT))
    assert run.settings == SHORT
    assert run.execution == Execution(device="cpu")
    hashes = (run.plan_hash, run.split_hash, run.data_hash)
    assert hashes == ("hash of the plan", "hash of the split", "hash of the data")


# ---------------------------------------------------------------- a step, an epoch


def test_the_learning_rate_of_each_epoch_is_that_of_the_schedule(tmp_path: Path) -> None:
    settings = dataclasses.replace(SHORT, epochs=4, iterations=1, lr=0.02)
    run = train(make_task(tmp_path, settings))
    expected = [0.02 * (1 - epoch / 4) ** 0.9 for epoch in range(4)]
    assert [report.lr for report in run.history] == pytest.approx(expected)


def test_the_optimizer_is_sgd_with_nesterov_momentum_over_all_weights(tmp_path: Path) -> None:
    state = new_state(make_task(tmp_path, TrainSettings()))
    assert isinstance(state.optimizer, torch.optim.SGD)
    (group,) = state.optimizer.param_groups
    found = {name: group[name] for name in ("lr", "momentum", "nesterov", "weight_decay")}
    assert found == {"lr": 0.01, "momentum": 0.99, "nesterov": True, "weight_decay": 3e-5}
    assert len(group["params"]) == len(list(state.network.parameters()))


def test_another_course_sets_the_momentum_of_the_optimizer(tmp_path: Path) -> None:
    state = new_state(make_task(tmp_path, TrainSettings()))
    follow(state, dataclasses.replace(state.course, momentum=0.9))
    (group,) = state.optimizer.param_groups
    assert (state.course.momentum, group["momentum"], group["nesterov"]) == (0.9, 0.9, True)


def test_a_step_moves_the_weights_by_no_more_than_the_clipped_gradient(tmp_path: Path) -> None:
    settings = TrainSettings(
        epochs=1,
        iterations=1,
        validation_iterations=1,
        batch_size=2,
        lr=1.0,
        momentum=0.0,
        weight_decay=0.0,
        gradient_clip=0.001,
    )
    task = make_task(tmp_path, settings)
    before = new_state(task).network.state_dict()
    train(task)
    after = weights_of(tmp_path)
    moved = sum(float(((after[k] - before[k]) ** 2).sum()) for k in before) ** 0.5
    assert moved == pytest.approx(0.001, rel=1e-2)


@pytest.mark.parametrize(
    ("levels", "weights"), [(1, (1.0,)), (2, (1.0,)), (3, (1.0,)), (4, (2 / 3, 1 / 3))]
)
def test_only_resolutions_with_a_weight_are_computed(
    tmp_path: Path, levels: int, weights: tuple[float, ...]
) -> None:
    task = make_task(tmp_path, levels=levels)
    assert task.output_weights == pytest.approx(weights)
    network: Any = new_state(task).network
    image = torch.zeros(2, 1, *PATCH)
    step_loss(task, network, image, torch.zeros((2, *PATCH), dtype=torch.int16)).backward()
    used = [head.weight.grad is not None for head in network.heads][::-1]
    assert used == [True] * len(weights) + [False] * (max(levels - 1, 1) - len(weights))


def test_a_network_of_one_level_trains(tmp_path: Path) -> None:
    assert train(make_task(tmp_path, levels=1)).finished


def test_the_loss_falls_on_an_easy_task(tmp_path: Path) -> None:
    settings = TrainSettings(
        epochs=6, iterations=8, validation_iterations=2, batch_size=2, momentum=0.9, lr=0.05
    )
    history = train(make_task(tmp_path, settings)).history
    assert history[-1].loss < history[0].loss - 0.5
    assert history[-1].validation_loss < history[0].validation_loss - 0.3
    assert history[-1].dice is not None
    assert history[-1].dice > 0.7


def test_every_step_and_epoch_is_told(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    epochs: list[EpochReport] = []
    run = train(
        make_task(tmp_path), on_step=lambda *step: steps.append(step), on_epoch=epochs.append
    )
    assert steps == [("training", done, 4) for done in (1, 2, 3, 4)]
    assert tuple(epochs) == run.history
    assert [report.epoch for report in epochs] == [1, 2]
    assert all(0 <= report.wait_share <= 1 and report.seconds > 0 for report in epochs)


def test_a_network_that_cannot_be_compiled_trains_without_and_says_so_in_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("no such target")

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr("nnseg.model.device.COMPILERS", ("true",))
    execution = Execution(device="cpu", compiled=True)
    run = train(dataclasses.replace(make_task(tmp_path), execution=execution))
    assert run.finished
    assert not run.execution.compiled
    assert "torch.compile failed (no such target)" in caplog.text


def test_a_run_goes_on_with_the_threads_it_began_with(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        execution = Execution(device="cpu", threads=before + 1)
        train(dataclasses.replace(make_task(tmp_path), execution=execution))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_trainings_and_rehearsals_on_a_cpu_keep_memory_from_step_to_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(stage, "keep_memory", lambda: asked.append("keep"))
    train(make_task(tmp_path))
    assert len(asked) == 1
    stage.rehearse_steps(make_task(tmp_path), 1)
    assert len(asked) == 2


# ---------------------------------------------------------------- validation and the best


def test_a_validation_epoch_gives_the_same_scores_whenever_it_runs(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    state = new_state(task)
    first = validate_epoch(task, state)
    state.epoch = 5
    torch.manual_seed(3)
    assert validate_epoch(task, state) == first


def test_the_pseudo_dice_counts_voxels_over_all_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # of label "dark" 2 of 4 + 2 found voxels agree; of "bright" nothing is there or found
    counts = iter([[[1, 0], [1, 0], [0, 0]], [[1, 0], [0, 0], [1, 0]]])
    monkeypatch.setattr(stage, "hard_counts", lambda *_: torch.tensor(next(counts)))
    task = make_task(tmp_path, dataclasses.replace(SHORT, validation_iterations=2))
    _, dice = validate_epoch(task, new_state(task))
    assert dice == {"dark": 2 * 2 / (2 * 2 + 1 + 1), "bright": None}


def scripted(monkeypatch: pytest.MonkeyPatch, *scores: float | None) -> None:
    values = iter(scores)
    monkeypatch.setattr(
        stage, "validate_epoch", lambda *_: (0.0, {"dark": next(values), "bright": None})
    )


def test_the_average_dice_remembers_nine_tenths_and_passes_over_epochs_without_a_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, None, 0.5, 0.1, None, 0.9)
    settings = dataclasses.replace(SHORT, epochs=5, iterations=1)
    run = train(make_task(tmp_path, settings))
    averages = [report.dice_average for report in run.history]
    assert averages[0] is None
    assert averages[1:] == pytest.approx([0.5, 0.46, 0.46, 0.504])
    assert [report.dice for report in run.history] == [None, 0.5, 0.1, None, 0.9]


def test_the_best_checkpoint_is_written_on_improvement_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, None, 0.5, 0.1, None, 0.9, None, 0.504)
    best: list[int | None] = []

    def look(report: EpochReport) -> None:
        path = tmp_path / "checkpoint_best.json"
        best.append(json.loads(path.read_text())["epoch"] if path.exists() else None)

    settings = dataclasses.replace(SHORT, epochs=6, iterations=1)
    train(make_task(tmp_path, settings), on_epoch=look)
    assert best == [None, 2, 2, 2, 5, 5]
    assert load_model(tmp_path, "best")[0].validation_dice == pytest.approx(0.504)


def test_the_best_of_a_run_that_was_stopped_is_still_to_be_beaten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, 0.9, 0.1)
    task = make_task(tmp_path)
    with pytest.raises(StoppedError):
        train(task, stop=stop_after(3))
    train(task, resume=latest(task))
    assert load_model(tmp_path, "best")[0].epoch == 1


# ---------------------------------------------------------------- a loss that is no number


def poison(task: Task) -> None:
    for case in task.train_cases:
        case.image[...] = np.nan


@pytest.mark.fault("R23", "B1.3")
@pytest.mark.parametrize("iterations", [1, 3])
def test_a_loss_that_is_no_number_names_the_cases_of_the_batch(
    tmp_path: Path, iterations: int
) -> None:
    task = make_task(tmp_path, dataclasses.replace(SHORT, iterations=iterations), cases=1)
    poison(task)
    remedy = r"start anew with --overwrite and a lower --lr or --precision fp32"
    with pytest.raises(DataError, match=rf"loss became nan in epoch 1.* toy_000; .*{remedy}"):
        train(task)
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("R23", "B1.3")
def test_a_loss_that_is_no_number_leaves_the_best_checkpoint_as_it_was(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    with pytest.raises(DataError, match="in epoch 2"):
        train(task, on_epoch=lambda report: poison(task))
    assert load_model(tmp_path, "best")[0].epoch == 1
    assert all(bool(t.isfinite().all()) for t in weights_of(tmp_path, "best").values())
    assert not (tmp_path / "checkpoint_latest.json").exists()


def test_a_run_stopped_on_a_loss_that_is_no_number_saves_nothing(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    poison(task)
    with pytest.raises(DataError, match="loss became nan"):
        train(task, stop=lambda: True)
    assert not (tmp_path / "checkpoint_latest.json").exists()


def finite(folder: Path) -> bool:
    tensors = [t for p in folder.glob("*.safetensors") for t in load(p.read_bytes()).values()]
    assert tensors
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


@pytest.mark.fault("R23", "B1.3")
@pytest.mark.parametrize("bad", [1, 2, 5])
def test_training_stops_within_two_steps_of_a_bad_one_and_keeps_what_was_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    monkeypatch.setattr(stage, "SAVE_EVERY", -1.0)
    settings = dataclasses.replace(SHORT, epochs=3, iterations=3)
    task, done = make_task(tmp_path, settings), []
    losses = itertools.count(1)

    def spoilt(*arguments: Any) -> Tensor:
        loss = step_loss(*arguments)
        return loss * float("nan") if next(losses) == bad else loss

    monkeypatch.setattr("nnseg.learning.step.step_loss", spoilt)
    with pytest.raises(DataError, match=rf"nan in epoch {1 + (bad - 1) // 3}, on a batch of toy_0"):
        train(task, on_step=lambda what, step, total: done.append(step))
    assert done[-1] <= bad + 1
    if bad == 1:
        assert not checkpoint_file(tmp_path, "latest").exists()
    else:
        assert 3 * latest(task).epoch + latest(task).iteration == bad - 1
        assert finite(tmp_path)
    assert checkpoint_file(tmp_path, "best").exists() is (bad > 3)


def test_a_learning_rate_that_explodes_leaves_no_bad_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SAVE_EVERY", -1.0)
    settings = dataclasses.replace(SHORT, epochs=2, iterations=20, lr=1e25)
    with pytest.raises(DataError, match=r"became (nan|inf|-inf) in epoch 1.*lower --lr"):
        train(make_task(tmp_path, settings))
    assert finite(tmp_path)


def fp16(task: Task) -> Task:
    return dataclasses.replace(task, execution=Execution(device="cpu", precision="fp16"))


def spoil_gradients(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int], bool]) -> None:
    """Make the gradients of these steps, counted from 1, NaN under a finite loss."""
    steps = itertools.count(1)

    def spoilt(*arguments: Any) -> Tensor:
        loss = step_loss(*arguments)
        if bad(next(steps)):
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    monkeypatch.setattr("nnseg.learning.step.step_loss", spoilt)


def test_a_gradient_of_fp16_that_is_never_a_number_ends_the_training_after_32_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_gradients(monkeypatch, lambda step: step > 3)
    settings = dataclasses.replace(SHORT, epochs=20, iterations=5)
    done: list[int] = []
    wanted = r"gradient became nan in 32 steps in a row, .* in epoch 7, on a batch of toy_0.*fp32"
    with pytest.raises(DataError, match=wanted):
        train(fp16(make_task(tmp_path, settings)), on_step=lambda *told: done.append(told[1]))
    assert done[-1] == 35  # 3 good ones and 32; at the end of the epoch no step is one late
    assert not checkpoint_file(tmp_path, "latest").exists()


def test_a_gradient_of_fp16_that_overflows_now_and_then_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_gradients(monkeypatch, lambda step: step % 12 > 0)
    settings = dataclasses.replace(SHORT, epochs=2, iterations=24)
    assert train(fp16(make_task(tmp_path, settings))).finished


def test_a_validation_case_that_holds_no_number_is_named(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    for case in task.val_cases:
        case.image[...] = np.nan
    with pytest.raises(DataError, match=r"validation loss became nan.* toy_007; .*--overwrite"):
        train(task)


# ---------------------------------------------------------------- budgets


def test_a_run_with_a_budget_ends_within_it(tmp_path: Path) -> None:
    settings = TrainSettings(budget_seconds=20, batch_size=2)
    asked: list[float] = []

    def reserve(network: torch.nn.Module, mirrors: tuple[int, ...], step: float) -> float:
        asked.append(step)
        return 18.0

    run = train(make_task(tmp_path, settings), reserve=reserve)
    assert run.finished
    assert run.epoch == run.course.epochs < 1000
    assert 0 < run.seconds < 10  # the reserve leaves 2; without it they would be almost 20
    assert all(step > 0 for step in asked)


def test_a_run_with_a_budget_goes_on_with_the_steps_it_had_planned(tmp_path: Path) -> None:
    settings = TrainSettings(budget_seconds=10_000, epochs=2, iterations=3, batch_size=2)
    task = make_task(tmp_path, settings)
    with pytest.raises(StoppedError):
        train(task, reserve=lambda *_: 9.5, stop=stop_after(2))
    stopped = latest(task)
    run = train(task, resume=stopped, reserve=lambda *_: 9.9)
    assert run.course == stopped.course
    assert run.seconds > stopped.seconds > 0


def test_a_run_whose_budget_is_used_up_in_its_first_epoch_ends_that(tmp_path: Path) -> None:
    settings = TrainSettings(budget_seconds=10_000, epochs=4, iterations=3, batch_size=2)
    task = make_task(tmp_path, settings)
    with pytest.raises(StoppedError):
        train(task, reserve=lambda *_: 9.5, stop=stop_after(1))
    stopped = dataclasses.replace(latest(task), seconds=10_001.0)
    told: list[int] = []
    run = train(task, resume=stopped, on_step=lambda what, done, total: told.append(done))
    assert told == [2, 3]
    assert (run.finished, run.epoch, len(run.history)) == (True, 1, 1)


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_a_run_whose_budget_is_used_up_does_not_train_another_step(
    tmp_path: Path, steps: int
) -> None:
    settings = TrainSettings(budget_seconds=10_000, epochs=4, iterations=2, batch_size=2)
    task = make_task(tmp_path, settings)
    with pytest.raises(StoppedError):
        train(task, reserve=lambda *_: 9.5, stop=stop_after(steps))
    stopped = dataclasses.replace(latest(task), seconds=10_001.0)
    told: list[int] = []
    run = train(task, resume=stopped, on_step=lambda what, done, total: told.append(done))
    assert told == []
    whole = stopped.epoch + (stopped.iteration == 2)  # an epoch may lack only its validation
    assert (run.finished, run.epoch, run.course.epochs) == (True, whole, whole)
    assert run.weights_sha256 == stopped.weights_sha256
    assert load_model(tmp_path, "final")[0].epoch == whole


def test_an_extended_run_asks_no_clock(tmp_path: Path) -> None:
    settings = TrainSettings(budget_seconds=10_000, epochs=2, iterations=2, batch_size=2)
    task = make_task(tmp_path, settings)
    finished = dataclasses.replace(train(task), seconds=10_001.0)
    assert train(task, resume=extend_run(finished, 3)).epoch == 3


def test_measuring_a_step_changes_no_weight(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    state = new_state(task)
    before = {k: v.clone() for k, v in state.network.state_dict().items()}
    assert probe(task, state.course, state.network) > 0
    assert same(before, dict(state.network.state_dict()))
    assert all(parameter.grad is None for parameter in state.network.parameters())


def test_the_batch_size_is_the_plans_unless_it_is_set(tmp_path: Path) -> None:
    task = make_task(tmp_path, dataclasses.replace(SHORT, batch_size=None))
    assert task.batch_size == task.configuration.batch_size
    assert make_task(tmp_path, dataclasses.replace(SHORT, batch_size=5)).batch_size == 5


def test_a_run_with_a_budget_makes_batches_of_the_size_it_was_fitted_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = TrainSettings(budget_seconds=60, epochs=1, iterations=2, validation_iterations=1)
    task = make_task(tmp_path, settings)
    large = dataclasses.replace(task.configuration, batch_size=100)
    task = dataclasses.replace(task, configuration=large)
    assert task.budget_batch(60 / 2000) == 67
    course = task.course(0.03, 67)
    assert course.batch_size == 67
    for source in (task.training(course), task.validation(course)):
        assert len(make_batch(source, 0, 0)[0]) == 67
    assert len(make_batch(task.training(task.course()), 0, 0)[0]) == 100

    timed: list[str] = []

    def probe(task: Task, course: Any, *_: Any) -> float:
        timed.append(course.augmentation)
        return {None: 60 / 2000, 67: 0.05}[course.batch_size]

    monkeypatch.setattr(stage, "probe", probe)
    asked: list[float] = []
    state = new_state(task)
    with caplog.at_level(logging.INFO, logger="nnseg"):
        found = fit_course(task, state, state.network, spend(asked))
    assert found == (task, state.network)
    assert asked == [0.05]  # small batches are slower than their share of a large one
    assert timed == ["full", course.augmentation]
    assert (state.course.batch_size, state.course.steps) == (67, 1)
    assert "with 67 patches each, in place of the plan's 100" in caplog.text


def spend(asked: list[float]) -> Callable[[float], float]:
    """A budget that holds two steps, whatever they take; it keeps what it was asked."""

    def left(seconds: float) -> float:
        asked.append(seconds)
        return 2 * seconds

    return left


@pytest.mark.parametrize("compiles", [True, False])
def test_a_budget_compiles_once_for_the_batch_that_it_chose_and_keeps_the_pace_of_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiles: bool
) -> None:
    settings = TrainSettings(budget_seconds=60, epochs=1, iterations=2, validation_iterations=1)
    task = make_task(tmp_path, settings)
    large = dataclasses.replace(task.configuration, batch_size=100)
    execution = dataclasses.replace(task.execution, compiled=True)
    task = dataclasses.replace(task, configuration=large, execution=execution)
    state = new_state(task)
    made: list[Any] = []

    def compiled(task: Task, state: Any, network: Any) -> Any:
        made.append(state.course.batch_size)
        return "compiled" if compiles else network

    monkeypatch.setattr(stage, "compiled_network", compiled)
    paces = {("compiled", 67): 0.01, (state.network, None): 60 / 2000, (state.network, 67): 0.02}
    monkeypatch.setattr(
        stage, "probe", lambda task, course, network, *_: paces[network, course.batch_size]
    )
    asked: list[float] = []
    found, step_network = fit_course(task, state, state.network, spend(asked))
    assert made == [67]
    assert found.execution.compiled is compiles
    assert step_network == ("compiled" if compiles else state.network)
    assert asked == [0.01 if compiles else 0.02]
    pace = (state.course.lr, state.course.momentum)
    assert pace == ((0.01, 0.99) if compiles else (0.1, 0.9))  # 6000 steps, or 3000
    assert state.optimizer.param_groups[0]["momentum"] == pace[1]
    assert state.course.batch_size == 67


def test_a_rehearsal_of_a_budget_times_steps_of_the_batch_that_it_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainSettings(budget_seconds=60, iterations=2, validation_iterations=1)
    task = make_task(tmp_path, settings)
    large = dataclasses.replace(task.configuration, batch_size=8)
    timed: list[int | None] = []

    def listen(task: Task, course: Any, *_: Any) -> list[float]:
        timed.append(course.batch_size)
        return [1.0, 2.0, 3.0] if course.batch_size is None else [0.009, 0.01, 0.02]

    monkeypatch.setattr(stage, "time_steps", listen)
    task = dataclasses.replace(task, configuration=large)
    course, seconds, quickest, _ = stage.rehearse_steps(task, 3)
    assert timed == [None, 2]
    assert (course.batch_size, seconds, quickest) == (2, 0.01, 0.009)
    assert (course.lr, course.augmentation) == (0.01, "full")  # of the 6000 steps that it now holds


@pytest.mark.parametrize(("passes", "augmentation"), [(39, "mild"), (41, "full")])
@pytest.mark.parametrize(("accumulate", "batch_size"), [(1, None), (2, None), (1, 1)])
def test_a_task_tells_its_course_how_often_it_sees_its_cases(
    tmp_path: Path, passes: int, augmentation: str, accumulate: int, batch_size: int | None
) -> None:
    settings = TrainSettings(budget_seconds=2000, accumulate=accumulate)
    task = make_task(tmp_path, settings, cases=3)
    patches = 6 * 12 * (9 + 10 + 11) / (4 * 8 * 6)
    steps = passes * patches / accumulate / (batch_size or task.configuration.batch_size)
    times = math.ceil(2000 / steps)  # as many cases, for more steps than 1500 and fewer than 5000
    many = dataclasses.replace(task, train_cases=task.train_cases * times)
    steps *= times
    assert 1500 < steps < 5000
    assert many.course(2000 / steps, batch_size).augmentation == augmentation


def test_a_task_leaves_each_of_its_processes_a_patch_of_a_budget(tmp_path: Path) -> None:
    task = make_task(tmp_path, TrainSettings(budget_seconds=60))
    task = dataclasses.replace(
        task, configuration=dataclasses.replace(task.configuration, batch_size=9)
    )
    assert task.budget_batch(50.0) == 2
    assert dataclasses.replace(task, ranks=Ranks(count=3)).budget_batch(50.0) == 3


# ---------------------------------------------------------------- what a task may ask for


def test_the_average_of_the_weights_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    settings = dataclasses.replace(SHORT, epochs=1, iterations=2, ema=0.5)
    task = make_task(tmp_path, settings)
    start = new_state(task).network.state_dict()
    with pytest.raises(StoppedError):
        train(task, stop=stop_after(1))
    one = restore_state(task, latest(task))
    state = restore_state(task, train(task, resume=latest(task)))
    first, second = one.network.state_dict(), state.network.state_dict()
    for name, found in weights_of(tmp_path).items():  # of the average, 2/11 and then 3/12 are kept
        after_one = start[name] + (first[name] - start[name]) * 9 / 11
        wanted = after_one + (second[name] - after_one) * 9 / 12
        torch.testing.assert_close(found, wanted)
    assert state.model is state.average
    report = state.history[0]
    assert validate_epoch(task, state) == (report.validation_loss, report.label_dice)
    state.average = None
    assert validate_epoch(task, state) != (report.validation_loss, report.label_dice)


def test_open_epochs_are_planned_from_the_cases_and_their_patches(tmp_path: Path) -> None:
    settings = dataclasses.replace(SHORT, epochs=None, iterations=100)
    # two cases of 6 * 12 * 9 and 6 * 12 * 10 voxels, patches of 4 * 8 * 6: far below the least
    assert new_state(make_task(tmp_path, settings)).course.epochs == 125


def test_weights_to_start_from_are_taken_where_name_and_shape_agree(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    own = new_state(task).network.state_dict()
    names = list(own)
    initial = {name: torch.full_like(own[name], 0.5) for name in names[:2]}
    initial[names[2]] = torch.zeros(1, 2, 3)
    initial["of another network"] = torch.zeros(2)
    found = new_state(dataclasses.replace(task, initial=initial)).network.state_dict()
    assert [name for name in names if not torch.equal(found[name], own[name])] == names[:2]
    assert found[names[0]].unique().tolist() == [0.5]


def test_a_cascade_has_a_channel_for_each_label_of_the_stage_before(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    cases = [*task.train_cases, *task.val_cases]
    cascade = dataclasses.replace(task, previous={c.case_id: c.segmentation for c in cases})
    assert (task.channels, cascade.channels) == (1, 3)
    assert train(cascade).finished
    inputs = {t.shape[1] for t in weights_of(tmp_path).values() if t.ndim == 5}
    assert 3 in inputs
    assert 1 not in inputs


def test_class_weights_count_in_the_loss_and_must_be_as_many_as_labels(tmp_path: Path) -> None:
    weighted = dataclasses.replace(SHORT, class_weights=(1.0, 3.0))
    plain = train(make_task(tmp_path / "plain"))
    run = train(make_task(tmp_path / "weighted", weighted))
    assert run.weights_sha256 != plain.weights_sha256
    with pytest.raises(UsageError, match="class_weights has 1 entries; dark, bright need one each"):
        make_task(tmp_path, dataclasses.replace(SHORT, class_weights=(1.0,)))


@pytest.mark.parametrize("weights", [(7.0, 1.0), "balanced"])
def test_class_weights_are_of_the_labels_by_name_however_dataset_json_orders_them(
    tmp_path: Path, weights: Any
) -> None:
    task = make_task(tmp_path, dataclasses.replace(SHORT, class_weights=weights, loss="ce"))
    turned = Labels(labels={"background": 0, "bright": 2, "dark": 1})
    plan = dataclasses.replace(task.plan, labels=turned)
    task = dataclasses.replace(task, plan=plan, balance=(7.0, 1.0))  # of bright and of dark
    truth = torch.tensor([[[[2, 1]]]])
    logits = torch.zeros(1, 3, 1, 1, 2)
    logits[..., 0] = torch.tensor([0.0, 1.0, 4.0]).reshape(1, 3, 1, 1)
    each = torch.nn.functional.cross_entropy(logits, truth, reduction="none").flatten()
    wanted = (7 * each[0] + each[1]) / 8
    torch.testing.assert_close(task.loss(logits, truth, turned, True), wanted)


def test_labels_that_swap_are_known_and_prediction_does_not_mirror_sides(tmp_path: Path) -> None:
    swapped = dataclasses.replace(SHORT, swap_labels=(("dark", "bright"),))
    task = make_task(tmp_path, swapped)
    assert task.swaps == ((1, 2),)
    assert task.left_right == 2
    train(task)
    assert load_model(tmp_path, "final")[0].mirror_axes == (0, 1)
    with pytest.raises(UsageError, match="'left', which is no label; known: dark, bright"):
        make_task(tmp_path, dataclasses.replace(SHORT, swap_labels=(("left", "dark"),)))
    with pytest.raises(UsageError, match="'background', which is no label"):
        make_task(tmp_path, dataclasses.replace(SHORT, swap_labels=(("background", "dark"),)))


@pytest.mark.fault("R32", "G7")
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_the_weights_are_the_same_whoever_makes_the_batches(
    tmp_path: Path, undisturbed: tuple[Path, RunRecord], workers: int
) -> None:
    task = dataclasses.replace(make_task(tmp_path), loader_workers=workers)
    assert train(task).weights_sha256 == undisturbed[1].weights_sha256


def test_a_mixed_batch_has_the_loss_to_both_of_its_targets(tmp_path: Path) -> None:
    task = make_task(tmp_path, dataclasses.replace(SHORT, mixup=0.4))
    source = task.training(task.course())
    image, own, _, mixed = make_batch(source, 0, 0)
    assert mixed is not None
    network = new_state(task).network
    with torch.no_grad():
        first = step_loss(task, network, image, own).item()
        second = step_loss(task, network, image, mixed.segmentation).item()
        found = step_loss(task, network, image, own, mixed).item()
    assert found == pytest.approx(mixed.share * first + (1 - mixed.share) * second)
    assert abs(first - second) > 1e-3
    assert make_batch(task.validation(task.course()), 0, 0).mixed is None


def test_patches_bend_as_far_as_the_settings_say(tmp_path: Path) -> None:
    for elastic, farthest in ((None, (0.0, 0.0, 0.0)), (8.0, (4.0, 8.0, 8.0))):
        task = make_task(tmp_path, dataclasses.replace(SHORT, elastic=elastic))
        assert task.augmentation(task.course()).farthest == farthest  # of voxels of 2, 1 and 1 mm
