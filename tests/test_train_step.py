"""Steps of several batches, and of networks that draw random numbers or keep statistics."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import SHORT, die_at, latest, make_task, same, stop_after, weights_of
from torch import Tensor, nn

from nnseg import train as stage
from nnseg.errors import DataError, StoppedError
from nnseg.learning.batches import Batch, make_batch
from nnseg.learning.recipe import TrainSettings
from nnseg.learning.state import TrainState, new_state, restore_state
from nnseg.learning.step import train_step
from nnseg.learning.task import Task
from nnseg.losses.build import LOSSES
from nnseg.train import probe, train


class Noisy(nn.Module):
    """A network with all that a training has to look after besides weights."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm3d(4)
        self.drop = nn.Dropout3d(0.4)
        self.last = nn.Conv3d(4, heads, 1)

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        x = torch.relu(self.norm(self.first(image)))
        return [self.last(nn.functional.dropout(self.drop(x), 0.1, self.training))]


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "nnseg.learning.state.build_network", lambda _, channels, heads: Noisy(channels, heads)
    )


RECIPE = dataclasses.replace(SHORT, ema=0.9)


# ---------------------------------------------------------------- dropout


@pytest.mark.usefixtures("noisy")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_network_with_dropout_killed_at_each_step_comes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    settings = dataclasses.replace(RECIPE, accumulate=accumulate)
    torch.manual_seed(5)
    wanted = train(make_task(tmp_path / "whole", settings))
    monkeypatch.setattr(stage, "SAVE_EVERY", -1.0)
    task, resume = make_task(tmp_path / "killed", settings), None
    for step in range(2, 5):
        torch.manual_seed(step)
        with pytest.raises(KeyboardInterrupt):
            train(task, resume=resume, on_step=die_at(step))
        resume = latest(task)
    run = train(task, resume=resume)
    assert run.weights_sha256 == wanted.weights_sha256
    assert same(weights_of(tmp_path / "killed"), weights_of(tmp_path / "whole"))


@pytest.mark.usefixtures("noisy")
def test_dropout_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    train(make_task(tmp_path, TrainSettings(**{**WHOLE, "budget_seconds": 10_000})))
    assert torch.equal(torch.random.get_rng_state(), before)


WHOLE: dict[str, Any] = {"epochs": 1, "iterations": 2, "validation_iterations": 1, "batch_size": 2}


@pytest.mark.usefixtures("noisy")
def test_dropout_differs_from_batch_to_batch_rank_to_rank_and_seed_to_seed(tmp_path: Path) -> None:
    """The same patches and weights: only what is dropped can make the losses differ."""
    task = make_task(tmp_path, dataclasses.replace(SHORT, accumulate=2))
    batch = make_batch(task.training(task.course()), 0, 0)
    whole = dataclasses.replace

    def loss(task: Task, epoch: int = 0, iteration: int = 0) -> float:
        state = new_state(task)
        state.network.load_state_dict(kept)
        state.epoch, state.iteration = epoch, iteration
        return float(step_of(task, state, [batch, batch])[0].values[0])

    kept = new_state(task).network.state_dict()
    others = [
        loss(task),
        loss(task, epoch=1),
        loss(task, iteration=1),
        loss(whole(task, ranks=whole(task.ranks, rank=1))),
        loss(whole(task, fold="1")),
        loss(whole(task, settings=whole(task.settings, seed=1))),
    ]
    assert loss(task) == others[0]
    assert len(set(others)) == len(others)


def step_of(task: Task, state: TrainState, batches: list[Batch]) -> Any:
    given: Iterator[Batch] = iter(batches)
    return train_step(task, state, state.network, given, lambda: 0.0)


# ---------------------------------------------------------------- batch norm


@pytest.mark.usefixtures("noisy")
def test_the_average_has_the_statistics_of_the_network(tmp_path: Path) -> None:
    run = train(make_task(tmp_path, RECIPE))
    state = restore_state(make_task(tmp_path, RECIPE), run)
    assert state.average is not None
    found, wanted = (dict(net.named_buffers()) for net in (state.average, state.network))
    assert same(found, wanted)
    assert found["norm.num_batches_tracked"] == 4
    assert not torch.equal(found["norm.running_mean"], torch.zeros(4))
    assert not torch.equal(state.average.first.weight, state.network.first.weight)  # type: ignore[union-attr]


@pytest.mark.usefixtures("noisy")
def test_measuring_a_step_changes_no_statistics(tmp_path: Path) -> None:
    task = make_task(tmp_path, SHORT)
    state = new_state(task)
    before = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
    assert probe(task, state.course, state.network) > 0
    assert same(before, dict(state.network.state_dict()))


@pytest.mark.usefixtures("noisy")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_step_that_is_left_out_changes_no_statistics_and_a_good_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, bad: str
) -> None:
    task = make_task(tmp_path, dataclasses.replace(SHORT, accumulate=2))
    task = dataclasses.replace(
        task, execution=dataclasses.replace(task.execution, precision=precision)
    )
    source = task.training(task.course())
    batches = [make_batch(source, 0, number) for number in range(2)]
    state = new_state(task)
    if bad == "loss":
        spoilt = [batches[0], batches[1]._replace(image=batches[1].image * math.nan)]
        spoil = nullcontext()
    else:
        spoilt = batches
        spoil = next(state.network.parameters()).register_hook(lambda slope: slope * math.inf)
    before = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
    with spoil:
        step_of(task, state, spoilt)
    assert same(before, dict(state.network.state_dict()))
    step_of(task, state, batches)
    after = dict(state.network.state_dict())
    assert after["norm.num_batches_tracked"] == 2
    assert not torch.equal(after["norm.running_mean"], before["norm.running_mean"])


@pytest.mark.usefixtures("noisy")
def test_before_a_validation_the_ranks_take_the_statistics_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[nn.Module] = []
    monkeypatch.setattr(stage, "share_buffers", shared.append)
    task = make_task(tmp_path, RECIPE)
    state = new_state(task)
    stage.validate_epoch(task, state)
    assert shared == [state.average]


@pytest.mark.usefixtures("noisy")
def test_validation_is_without_dropout_and_changes_no_statistics(tmp_path: Path) -> None:
    task = make_task(tmp_path, SHORT)
    state = new_state(task)
    before = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
    assert stage.validate_epoch(task, state) == stage.validate_epoch(task, state)
    assert same(before, dict(state.network.state_dict()))


# ---------------------------------------------------------------- several batches a step


def joined(batches: list[Batch]) -> Batch:
    image, segmentation = (torch.cat([batch[i] for batch in batches]) for i in (0, 1))
    return Batch(image, segmentation, [name for batch in batches for name in batch.case_ids])


def weights_after(task: Task, batches: list[Batch]) -> dict[str, Tensor]:
    state = new_state(task)
    verdict, _ = step_of(task, state, batches)
    assert verdict.fault() is None
    return dict(state.network.state_dict())


def differ(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def stepping(folder: Path, **changes: Any) -> Task:
    """A task of one bold step, so that a difference shows; Dice is of each sample."""
    settings = TrainSettings(
        **{**WHOLE, "lr": 1.0, "momentum": 0.0, "gradient_clip": 1e6, **changes}
    )
    task = make_task(folder, settings)
    planned = dataclasses.replace(task.configuration, batch_dice=False)
    return dataclasses.replace(task, configuration=planned)


@pytest.mark.parametrize(
    "name", ["dice_ce", "dice", "ce", "focal", "tversky", "focal_tversky", "generalised_dice"]
)
def test_three_batches_a_step_are_as_one_three_times_as_large(tmp_path: Path, name: str) -> None:
    one, three = (stepping(tmp_path, loss=name, accumulate=count) for count in (1, 3))
    batches = [make_batch(one.training(one.course()), 0, number) for number in range(3)]
    large, small = weights_after(one, [joined(batches)]), weights_after(three, batches)
    start = dict(new_state(one).network.state_dict())
    assert differ(large, small) < 1e-4 * differ(large, start)


@pytest.mark.parametrize("changes", [{"loss": "topk"}, {"class_weights": (9.0, 1.0), "loss": "ce"}])
def test_some_losses_are_no_mean_over_batches(tmp_path: Path, changes: dict[str, Any]) -> None:
    one, three = (stepping(tmp_path, accumulate=count, **changes) for count in (1, 3))
    batches = [make_batch(one.training(one.course()), 0, number) for number in range(3)]
    large, small = weights_after(one, [joined(batches)]), weights_after(three, batches)
    start = dict(new_state(one).network.state_dict())
    assert differ(large, small) > 1e-3 * differ(large, start)


def test_an_accumulated_step_takes_the_batches_that_follow_and_tells_their_mean_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    real = stage.make_batches

    def listen(source: Any, epoch: int, numbers: range, **options: Any) -> Any:
        if epoch >= 0:
            asked.append((epoch, len(numbers)))
            assert numbers.stop == 6
        return real(source, epoch, numbers, **options)

    monkeypatch.setattr(stage, "make_batches", listen)
    settings = dataclasses.replace(SHORT, accumulate=3, lr=1e-12, momentum=0.0)
    task = make_task(tmp_path / "stopped", settings)
    with pytest.raises(StoppedError):
        train(task, stop=stop_after(3))
    assert (latest(task).epoch, latest(task).iteration) == (1, 1)
    run = train(task, resume=latest(task))
    assert asked == [(0, 6), (1, 6), (1, 3)]
    whole = train(make_task(tmp_path / "whole", settings))
    assert run.weights_sha256 == whole.weights_sha256
    plain = train(
        make_task(tmp_path / "plain", dataclasses.replace(settings, accumulate=1, iterations=6))
    )
    assert run.history[0].loss == pytest.approx(plain.history[0].loss, rel=1e-6)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_bad_batch_of_a_step_leaves_all_of_it_out_and_its_cases_are_named(
    tmp_path: Path, bad: int
) -> None:
    task = stepping(tmp_path, accumulate=3, optimizer="adam")
    source = task.training(task.course())
    batches = [make_batch(source, 0, number) for number in range(3)]
    batches[bad] = batches[bad]._replace(image=batches[bad].image * math.nan)
    state = new_state(task)
    before = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
    verdict, case_ids = step_of(task, state, batches)
    assert verdict.fault() == "the loss became nan"
    assert case_ids == [name for batch in batches for name in batch.case_ids]
    assert same(dict(state.network.state_dict()), before)
    assert all(parameter.grad is None for parameter in state.network.parameters())
    with pytest.raises(DataError, match=r"loss became nan in epoch 1, on a batch of toy_0"):
        stage.look(state, (verdict, case_ids))


def test_fp16_gradients_of_several_batches_share_a_scale(tmp_path: Path) -> None:
    task = stepping(tmp_path, accumulate=2)
    half = dataclasses.replace(task.execution, precision="fp16")
    batches = [make_batch(task.training(task.course()), 0, number) for number in range(2)]
    exact = weights_after(task, batches)
    coarse = weights_after(dataclasses.replace(task, execution=half), batches)
    start = dict(new_state(task).network.state_dict())
    assert 0 < differ(exact, coarse) < 0.02 * differ(exact, start)


def test_the_seconds_of_a_step_are_those_of_all_its_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("nnseg.learning.step.time.monotonic", lambda: float(next(ticks)))
    made: list[int] = []

    def listen(source: Any, epoch: int, number: int) -> Batch:
        made.append(number)
        next(ticks)
        return make_batch(source, epoch, number)

    monkeypatch.setattr("nnseg.learning.step.make_batch", listen)
    task = make_task(tmp_path, dataclasses.replace(SHORT, accumulate=3))
    state = new_state(task)
    assert probe(task, state.course, state.network) == 4.0  # a tick a batch, one of the clock
    assert made == list(range(12))


def test_the_data_are_worth_fewer_steps_of_more_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnseg.learning.course.FEWEST_STEPS", 1)
    lengths = [
        make_task(
            tmp_path, dataclasses.replace(SHORT, epochs=None, iterations=1, accumulate=count)
        ).course()
        for count in (1, 3)
    ]
    assert lengths[0].epochs == pytest.approx(3 * lengths[1].epochs, abs=3)


# ---------------------------------------------------------------- mixed precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_steps_in_mixed_precision_much_as_in_full(
    tmp_path: Path, name: str, precision: str
) -> None:
    task = stepping(tmp_path, loss=name, accumulate=2, lr=0.01)
    mixed = dataclasses.replace(task.execution, precision=precision)
    batches = [make_batch(task.training(task.course()), 0, number) for number in range(2)]
    exact = weights_after(task, batches)
    coarse = weights_after(dataclasses.replace(task, execution=mixed), batches)
    start = dict(new_state(task).network.state_dict())
    moved, other = (
        torch.cat([(after[key] - start[key]).flatten() for key in start])
        for after in (exact, coarse)
    )
    assert 0 < float((moved - other).norm()) < 0.1 * float(moved.norm())


# ---------------------------------------------------------------- class weights of the data


def test_balanced_class_weights_are_counted_once_and_of_the_training_cases(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings = dataclasses.replace(SHORT, class_weights="balanced")
    task = make_task(tmp_path / "balanced", settings)
    voxels = [0, 0, 0]
    for case in task.train_cases:
        for label in range(3):
            voxels[label] += int((case.segmentation == label).sum())
    weights = (voxels[0] / voxels[1], voxels[0] / voxels[2])
    run = train(task)
    (line,) = [text for text in caplog.messages if "class weights" in text]
    assert line == f"class weights: dark {weights[0]:.3g}, bright {weights[1]:.3g}"
    assert run.settings.class_weights == "balanced"
    given = dataclasses.replace(SHORT, class_weights=weights, loss="ce")
    counted = dataclasses.replace(settings, loss="ce")
    first, second = (
        train(make_task(tmp_path / str(number), each)).weights_sha256
        for number, each in enumerate((given, counted))
    )
    assert first == second


def test_balanced_weights_go_on_to_the_same_bytes(tmp_path: Path) -> None:
    settings = dataclasses.replace(SHORT, class_weights="balanced")
    wanted = train(make_task(tmp_path / "whole", settings))
    task = make_task(tmp_path / "stopped", settings)
    with pytest.raises(StoppedError):
        train(task, stop=stop_after(1))
    assert train(task, resume=latest(task)).weights_sha256 == wanted.weights_sha256
