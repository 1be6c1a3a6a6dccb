"""A training step: several batches to one change of the weights, alone or with other ranks."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnseg.errors import StoppedError
from nnseg.learning.batches import Batch, make_batch
from nnseg.learning.course import Course
from nnseg.learning.optimize import Verdict, push_back, take_back, update
from nnseg.learning.state import TrainState
from nnseg.learning.task import Task
from nnseg.losses.supervision import deep_supervision_loss
from nnseg.model.chance import pass_seed, seeded
from nnseg.model.device import compile_network
from nnseg.model.mixup import Mixed, mixed_loss


def train_step(
    task: Task,
    state: TrainState,
    step_network: Any,
    batches: Iterator[Batch],
    clock: Callable[[], float],
) -> tuple[Verdict, list[str]]:
    """Do a step, of as many batches as the settings accumulate: its verdict and its cases.

    The loss of the step is the mean of the batches'. That is the loss of one batch of all their
    samples where the loss is a mean over samples that count alike: not where Dice sums over the
    batch, where each batch has its own number of voxels or its own sum of weights to divide by
    (an ignore label, class weights), where the worst are sought among all (top-k), nor where batch
    norm sees a batch at a time. A step that is left out moves no statistics of batch norm either.
    """
    settings, count = task.settings, task.settings.accumulate
    before = [buffer.clone() for buffer in state.network.buffers()]
    shares: list[Tensor] = []
    case_ids: list[str] = []
    for number in range(state.iteration * count, (state.iteration + 1) * count):
        waited = clock()
        image, segmentation, shown, mixed = next(batches)
        state.wait_seconds += clock() - waited
        case_ids += shown
        seed = pass_seed(settings.seed, task.fold, state.epoch, number, task.ranks.rank)
        is_last = len(shares) == count - 1
        apart = nullcontext() if is_last else getattr(step_network, "no_sync", nullcontext)()
        with apart:  # the ranks add their gradients up once a step
            with seeded(seed, task.execution.torch_device):
                loss = step_loss(task, step_network, image, segmentation, mixed)
            if count > 1:
                loss = loss / count
            if not is_last:
                shares.append(push_back(state.scaler, loss))
    verdict = update(state.optimizer, state.scaler, loss, settings.gradient_clip, shares)
    take_back(state.network, before, verdict.good)
    return verdict, case_ids


def step_loss(
    task: Task, network: Any, image: Tensor, segmentation: Tensor, mixed: Mixed | None = None
) -> Tensor:
    """Give the deeply supervised loss of one batch; of a mixed one, to both of its targets."""
    weights = task.output_weights
    with task.execution.autocast():
        outputs = network(image, len(weights))

    def loss(target: Tensor) -> Tensor:
        return deep_supervision_loss(
            task.loss,
            outputs,
            target,
            task.plan.labels.consecutive,
            task.configuration.batch_dice,
            weights,
        )

    return mixed_loss(loss, segmentation, mixed)


def share_network(task: Task, state: TrainState) -> nn.Module:
    """Have the ranks average the gradients of the network, where there are several."""
    if task.ranks.count == 1:
        return state.network
    device = task.execution.torch_device
    return DistributedDataParallel(
        state.network,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=True,  # heads of weight 0 are not computed
    )


def compiled_network(task: Task, state: TrainState, network: nn.Module) -> Any:
    """Compile the network for the task's batches where the execution says so."""
    if not task.execution.compiled:
        return network
    image = make_batch(task.training(state.course), 0, 0).image
    network.train()
    with _without_trace(task, network):
        return compile_network(network, image, task.execution, len(task.output_weights))


def time_steps(
    task: Task,
    course: Course,
    step_network: Any,
    steps: int,
    stop: Callable[[], bool] = lambda: False,
) -> list[float]:
    """Measure the seconds of several training steps, as `probe` does: the quickest first.

    Raises:
        StoppedError: `stop` said True between two steps.
    """
    seconds = []
    count = task.settings.accumulate
    with _without_trace(task, step_network):
        for step in range(steps + 1):
            if stop():
                raise StoppedError("stopped while measuring steps; nothing was written")
            start = time.monotonic()
            for number in range(step * count, (step + 1) * count):
                image, segmentation, _, mixed = make_batch(task.training(course), 0, number)
                loss = step_loss(task, step_network, image, segmentation, mixed)
                loss.backward()
                float(loss.detach())  # waits for the device
            seconds.append(time.monotonic() - start)
            for parameter in step_network.parameters():
                parameter.grad = None
    return sorted(seconds[1:])


@contextmanager
def _without_trace(task: Task, network: nn.Module) -> Iterator[None]:
    """Have a network compute as it trains; neither random numbers nor statistics are moved."""
    before = [buffer.clone() for buffer in network.buffers()]
    try:
        with seeded(task.settings.seed, task.execution.torch_device):
            yield
    finally:
        for buffer, kept in zip(network.buffers(), before, strict=True):
            buffer.copy_(kept)
