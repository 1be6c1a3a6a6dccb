"""How weights are changed: optimizers by name, steps that bad numbers never reach, averages.

Nothing here makes the host wait for a GPU. Whether a step was good is decided on the device, and
a `Verdict` brings the news to the host in time for the step after.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nnseg.registry import Registry

FUSED = ("cpu", "cuda")  # devices on which a step can be left out without asking the host
ADAM_MEMORY = 0.999  # of the squares of Adam and AdamW
WARM_UP = 10  # steps; until then and some time after an average remembers less
# Steps in a row that fp16 may leave out to find its scale. It begins at 65 536 and is halved each
# time: a gradient that still overflows at 1 / 65 536 of itself will at any scale.
MOST_LEFT_OUT = 32

Optimizer: TypeAlias = torch.optim.Optimizer
Maker: TypeAlias = Callable[[list[nn.Parameter], float, float, float, bool], Optimizer]


def sgd(
    parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float, fused: bool
) -> Optimizer:
    """Make nnU-Net's optimizer: gradient descent with Nesterov's momentum."""
    optimizer = torch.optim.SGD(
        parameters,
        lr,
        momentum=momentum,
        nesterov=momentum > 0,
        weight_decay=weight_decay,
        fused=fused or None,
    )
    for parameter in parameters:  # there from the start: a first step may be left out
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def adam(
    parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float, fused: bool
) -> Optimizer:
    """Make Adam (Kingma and Ba 2015, arXiv 1412.6980); `momentum` is its first beta.

    Weight decay is part of the gradient here, and so is scaled with it; AdamW keeps it apart.
    """
    betas = (momentum, ADAM_MEMORY)
    return torch.optim.Adam(
        parameters, lr, betas=betas, weight_decay=weight_decay, fused=fused or None
    )


def adamw(
    parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float, fused: bool
) -> Optimizer:
    """Make AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101); `momentum` is its first beta."""
    betas = (momentum, ADAM_MEMORY)
    return torch.optim.AdamW(
        parameters, lr, betas=betas, weight_decay=weight_decay, fused=fused or None
    )


OPTIMIZERS = Registry[Maker]("optimizer", sgd=sgd, adam=adam, adamw=adamw)


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Optimizer:
    """Make the optimizer called `name`, in one kernel a step where the device has it."""
    found = list(parameters)
    return OPTIMIZERS[name](found, lr, momentum, weight_decay, found[0].device.type in FUSED)


def set_pace(optimizer: Optimizer, *, lr: float | None = None, momentum: float) -> None:
    """Train on with another momentum, and with another learning rate unless that is None."""
    for group in optimizer.param_groups:
        if lr is not None:
            group["lr"] = lr
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"], group["nesterov"] = momentum, momentum > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a step was like: its loss and the norm of its gradient, once they have arrived."""

    values: Tensor  # (2,)
    arrival: Any  # the event of a GPU after which `values` are there; None where they are
    scaled: bool  # an overflow of the gradient is fp16's and mended by a smaller scale
    good: Tensor  # (), bool, on the device: loss and norm are finite numbers

    def wait(self) -> tuple[float, float]:
        """Give loss and norm, when the device has come so far."""
        if self.arrival is not None:
            self.arrival.synchronize()
        loss, norm = self.values.tolist()
        return loss, norm

    def was_good(self) -> bool:
        """Whether the step was done: loss and norm are finite numbers."""
        return all(map(math.isfinite, self.wait()))

    def fault(self, in_a_row: int = 1) -> str | None:
        """Say what was no finite number, such as `the loss became nan`; None if all was well.

        Args:
            in_a_row: Steps up to this one that were left out, if it was; with a scale, as many as
                MOST_LEFT_OUT are a fault, and fewer are none.
        """
        loss, norm = self.wait()
        if not math.isfinite(loss):
            return f"the loss became {loss}"
        if math.isfinite(norm):
            return None
        if not self.scaled:
            return f"the gradient became {norm}"
        if in_a_row >= MOST_LEFT_OUT:
            return f"the gradient became {norm} in {in_a_row} steps in a row, at any scale of fp16,"
        return None


def push_back(scaler: torch.amp.GradScaler, loss: Tensor) -> Tensor:
    """Add the gradient of a share of a step's loss to that of its other shares; give the share.

    So a step may have several batches, one after the other, and the memory of one.

    Args:
        scaler: Of the loss; does nothing but for fp16.
        loss: The share, with its graph, which is gone then.
    """
    scaler.scale(loss).backward()
    return loss.detach()


def update(
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    loss: Tensor,
    gradient_clip: float,
    shares: Sequence[Tensor] = (),
) -> Verdict:
    """Do one step along the gradient of `loss`, unless it or the loss is not finite.

    A step that is left out changes neither weights nor what the optimizer remembers: the kernel
    itself looks at a flag on the device. Devices without such kernels wait for it on the host.

    Args:
        optimizer: Of `make_optimizer`.
        scaler: Of the loss; does nothing but for fp16.
        loss: Of one batch, or the last share of the step's, with its graph.
        gradient_clip: Largest norm of the gradient; one that is longer is shortened.
        shares: What `push_back` gave before; the step is along the gradient of the sum of all.
    """
    loss = sum(shares, start=push_back(scaler, loss))
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, gradient_clip)
    values = torch.stack([loss.float(), norm.float()])
    good = torch.isfinite(values).all()
    if scaler.is_enabled():  # it has its own flag, which a loss that is not finite sets, too
        scaler.step(optimizer)
        scaler.update()
    else:
        _step_if(optimizer, good)
    optimizer.zero_grad(set_to_none=True)
    return _send(values, good, scaled=scaler.is_enabled())


def average_into(
    averages: Iterable[Tensor], values: Iterable[Tensor], decay: float, step: int
) -> None:
    """Move averages of the weights towards their values after step number `step`, from 1.

    The average remembers `decay` of itself, at first less, (1 + step) / (10 + step), or the random
    weights of the start would stay in it for long.
    """
    kept = min(decay, (1 + step) / (WARM_UP + step))
    get_ema_multi_avg_fn(kept)(list(averages), list(values), None)


@torch.no_grad()
def take_back(network: nn.Module, before: Sequence[Tensor], good: Tensor) -> None:
    """Give a network the statistics of before a step that was left out; a good one keeps its own.

    Args:
        network: Whose buffers a step has moved.
        before: Copies of them.
        good: Of the step's verdict; nothing waits for it.
    """
    for buffer, kept in zip(network.buffers(), before, strict=True):
        buffer.copy_(torch.where(good, buffer, kept))


def copy_buffers(target: nn.Module, source: nn.Module) -> None:
    """Give a network of averaged weights the statistics that batch norm keeps in the other.

    They are averages themselves, and counts; both have the same names.
    """
    with torch.no_grad():
        for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
            mine.copy_(theirs)


def _step_if(optimizer: Optimizer, good: Tensor) -> None:
    if all(group.get("fused") for group in optimizer.param_groups):
        fused: Any = optimizer  # the two attributes are how torch's GradScaler asks for the same
        fused.found_inf, fused.grad_scale = (~good).float(), None
        try:
            optimizer.step()
        finally:
            del fused.found_inf, fused.grad_scale
    elif bool(good):
        optimizer.step()


def _send(values: Tensor, good: Tensor, *, scaled: bool) -> Verdict:
    if values.device.type != "cuda":
        return Verdict(values=values, arrival=None, scaled=scaled, good=good)
    there = torch.empty(2, pin_memory=True)
    there.copy_(values, non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record()
    return Verdict(values=there, arrival=arrival, scaled=scaled, good=good)
