"""What changes while a network is trained, made new, written to the disk and read back.

`save_state` and `restore_state` are each other's inverse: a run that was killed goes on from its
last checkpoint to the very bytes that it would have come to undisturbed.
"""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nnseg.checkpoint import load_weights, pack, save_model
from nnseg.learning.course import Course
from nnseg.learning.optimize import Optimizer, make_optimizer, set_pace
from nnseg.learning.resume import EpochReport, RunRecord, write_run
from nnseg.learning.task import Task
from nnseg.model.ranks import share_norms
from nnseg.networks.build import build_network


@dataclass(slots=True, kw_only=True)
class TrainState:
    """What changes while a network is trained."""

    network: nn.Module
    average: nn.Module | None  # the network of averaged weights, where the settings want one
    optimizer: Optimizer
    scaler: torch.amp.GradScaler  # of fp16; does nothing otherwise
    course: Course
    epoch: int = 0
    iteration: int = 0
    loss_sum: float = 0.0
    left_out: int = 0  # steps in a row, up to the last
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    wait_seconds: float = 0.0
    history: list[EpochReport] = field(default_factory=list)
    saved: RunRecord | None = None  # what there is on the disk to go on from
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def model(self) -> nn.Module:
        """What is validated and kept: the average of the weights, or else the network itself."""
        return self.average or self.network


def new_state(task: Task) -> TrainState:
    """Make the state of a training that begins; its weights follow from the seed."""
    settings = task.settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = build_network(
            task.configuration.architecture, task.channels, task.plan.labels.heads
        )
    if task.initial is not None:
        own = network.state_dict()
        fitting = {
            name: tensor
            for name, tensor in task.initial.items()
            if name in own and own[name].shape == tensor.shape
        }
        network.load_state_dict(own | fitting)
    network = task.execution.place(network, task.configuration.architecture.dimensions)
    network = share_norms(network, task.ranks, task.execution.torch_device)
    course = task.course()
    return TrainState(
        network=network,
        average=None if settings.ema is None else copy.deepcopy(network).requires_grad_(False),
        optimizer=make_optimizer(
            settings.optimizer,
            network.parameters(),
            lr=course.lr,
            momentum=course.momentum,
            weight_decay=settings.weight_decay,
        ),
        scaler=torch.amp.GradScaler(
            task.execution.torch_device.type, enabled=task.execution.precision == "fp16"
        ),
        course=course,
    )


def follow(state: TrainState, course: Course) -> None:
    """Train on along another course."""
    state.course = course
    set_pace(state.optimizer, momentum=course.momentum)


def save_state(task: Task, state: TrainState, *, finished: bool = False) -> RunRecord:
    """Write checkpoint_latest: weights, the optimizer's memory and all else needed to go on."""
    tensors = {f"network.{key}": value for key, value in state.network.state_dict().items()}
    if state.average is not None:
        averages = state.average.state_dict()
        tensors |= {f"average.{key}": value for key, value in averages.items()}
    for key, parameter in state.network.named_parameters():
        for slot, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{slot}.{key}"] = value
    scaler = state.scaler.state_dict()
    run = RunRecord(
        plan_hash=task.plan_hash,
        split_hash=task.split_hash,
        configuration_name=task.configuration.name,
        fold=task.fold,
        settings=task.settings,
        execution=task.execution,
        course=state.course,
        epoch=state.epoch,
        iteration=state.iteration,
        loss_sum=state.loss_sum,
        seconds=state.seconds,
        epoch_seconds=state.epoch_seconds,
        history=tuple(state.history),
        weights_file="",  # it is named for its content
        weights_sha256="",
        finished=finished,
        data_hash=task.data_hash,
        train_cases=tuple(sorted(case.case_id for case in task.train_cases)),
        loss_scale=(scaler["scale"], scaler["_growth_tracker"]) if scaler else None,
    )
    state.saved_at = time.monotonic()
    if task.ranks.is_first:
        state.saved = run = write_run(task.folder, run, pack(tensors), state.saved)
    return run


def restore_state(task: Task, run: RunRecord) -> TrainState:
    """Make the state that `save_state` wrote."""
    state = new_state(task)
    tensors = load_weights(task.folder, run.weights_file, run.weights_sha256)
    state.network.load_state_dict(_part(tensors, "network."))
    if state.average is not None:
        state.average.load_state_dict(_part(tensors, "average."))
    parameters = dict(state.network.named_parameters())
    for name, value in _part(tensors, "optimizer.").items():
        slot, _, key = name.partition(".")
        parameter = parameters[key]
        like = torch.empty_like(parameter) if value.shape == parameter.shape else None
        if like is None:  # a count of steps, which lies where the optimizer's kernel wants it
            fused = state.optimizer.defaults.get("fused")
            like = torch.empty_like(value, device=parameter.device if fused else None)
        state.optimizer.state[parameter][slot] = like.copy_(value).detach()
    if run.loss_scale is not None:
        scale, tracker = run.loss_scale
        scaler = state.scaler.state_dict() | {"scale": scale, "_growth_tracker": tracker}
        state.scaler.load_state_dict(scaler)
    follow(state, run.course)
    state.epoch, state.iteration, state.loss_sum = run.epoch, run.iteration, run.loss_sum
    state.seconds, state.epoch_seconds = run.seconds, run.epoch_seconds
    state.history = list(run.history)
    state.saved = run
    return state


def save(task: Task, state: TrainState, kind: Any) -> None:
    """Write the network as it is, to predict with."""
    if not task.ranks.is_first:
        return
    average = state.history[-1].dice_average if state.history else None
    save_model(
        task.folder,
        kind,
        state.model,
        plan=task.plan,
        configuration_name=task.configuration.name,
        fold=task.fold,
        epoch=state.epoch,
        mirror_axes=mirror_axes(task, state.course),
        validation_dice=average,
    )


def mirror_axes(task: Task, course: Course) -> tuple[int, ...]:
    """Give the axes that prediction may mirror: of those mirrored in training, the sideless ones.

    Mirrored from left to right, a network sees the labels of the other side.
    """
    axes = task.augmentation(course).mirror_axes
    return tuple(axis for axis in axes if not (task.swaps and axis == task.left_right))


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
