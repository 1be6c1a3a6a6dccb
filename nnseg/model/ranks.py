"""Several processes that train one network together: what each does, and what they tell each other.

torchrun starts them, one a GPU, on one host or on several; each is a *rank*. The batch stays the
plan's: every rank makes and computes its share of the samples. What the loss sums over the batch
is gathered from all of them, so that each rank has the loss of the whole batch, whatever the loss
and the shares; their gradients are averaged by DistributedDataParallel.
"""

import os
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, distributed, nn

from nnseg.errors import MachineError, UsageError

T = TypeVar("T")
Peers: TypeAlias = tuple[tuple[int, int], ...]  # of each rank: a number for its host, its process

PATIENCE = timedelta(hours=6)  # one rank may predict or save while the others wait
ENDS_WITHIN = 2.0  # seconds from the end of a connection to the end of the process that had it
# What torch's errors say where another rank is gone; they have no kind of their own.
GONE = ("Connection closed", "Connection reset", "Broken pipe", "Socket closed", "NCCL", "gloo/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Which of how many processes this one is; a single one needs nobody."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # on its host; the number of its GPU

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def share(self, samples: int) -> range:
        """Give the samples of a batch that this rank computes.

        Raises:
            UsageError: There are more ranks than samples.

        >>> [list(Ranks(rank=rank, count=3).share(7)) for rank in range(3)]
        [[0, 1, 2], [3, 4], [5, 6]]
        """
        if samples < self.count:
            raise UsageError(
                f"{self.count} processes cannot share a batch of {samples}; start fewer"
            )
        each, more = divmod(samples, self.count)
        start = self.rank * each + min(self.rank, more)
        return range(start, start + each + (self.rank < more))


ALONE = Ranks()


def device_of(ranks: Ranks, device: str | None) -> str | None:
    """Give the device of a rank: of several, each has the GPU of its own number."""
    if ranks.count == 1:
        return device
    kind = (device or ("cuda" if torch.cuda.is_available() else "cpu")).partition(":")[0]
    return f"cuda:{ranks.local_rank}" if kind == "cuda" else kind


@contextmanager
def joined(ranks: Ranks, device: str | None) -> Iterator[Peers]:
    """Connect the ranks: over NCCL where each has a GPU, else over gloo.

    torchrun has told torch by its environment where the first rank listens. What is given is for
    `telling_of_lost`.

    Raises:
        UsageError: torchrun's environment is not complete.
    """
    if ranks.count == 1:
        yield ()
        return
    own = str(device_of(ranks, device))
    kind = "gloo"
    if own.startswith("cuda"):
        torch.cuda.set_device(own)
        kind = "cpu:gloo,cuda:nccl"
    try:
        distributed.init_process_group(
            kind, rank=ranks.rank, world_size=ranks.count, timeout=PATIENCE
        )
    except ValueError as error:
        raise UsageError(f"the ranks cannot meet ({error}); start them by torchrun") from None
    try:
        own_peer = torch.tensor([zlib.crc32(socket.gethostname().encode()), os.getpid()])
        peers = [torch.empty_like(own_peer) for _ in range(ranks.count)]
        distributed.all_gather(peers, own_peer)
        yield tuple((int(host), int(pid)) for host, pid in peers)
    finally:
        distributed.destroy_process_group()


@contextmanager
def telling_of_lost(ranks: Ranks, peers: Peers) -> Iterator[None]:
    """Say which rank has ended where work fails because it no longer answers.

    Raises:
        MachineError: One has. On another host nobody can tell which.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if ranks.count == 1 or not any(words in text for words in GONE):
            raise
        lost = [
            f"rank {number} (process {peers[number][1]})"
            for number in _find_ended(peers, peers[ranks.rank][0])
        ]
        raise MachineError(
            f"{', '.join(lost) or 'another rank'} has ended, and the ranks train together "
            f"({text.splitlines()[0]}); see what its own output says, where it says nothing the "
            "system killed it, probably for memory. Start all of them again: the same command "
            "goes on from the last checkpoint"
        ) from None


def _find_ended(peers: Peers, host: int) -> list[int]:
    """Name the ranks on a host, this one, whose processes have ended; they get a while for it."""
    deadline = time.monotonic() + ENDS_WITHIN
    while True:
        found = [rank for rank, (at, pid) in enumerate(peers) if at == host and _has_ended(pid)]
        if found or time.monotonic() >= deadline:
            return found
        time.sleep(0.05)


def _has_ended(pid: int) -> bool:
    if os.name == "nt":  # there, signal 0 is Ctrl-C
        return False
    try:
        os.kill(pid, 0)
    except OSError:
        return True
    with suppress(OSError):  # one that nobody has asked for its exit code is still listed
        state = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2]
        return state.split()[0] in "ZX"
    return False


def wait_for_all() -> None:
    """Wait until every rank is here."""
    if distributed.is_initialized():
        distributed.all_reduce(torch.zeros(1))  # barrier() would ask which GPU


def first_then_others(ranks: Ranks, action: Callable[[], T]) -> T:
    """Do something on every rank, on the first before the others: they find what it has written."""
    if not ranks.is_first:
        wait_for_all()
    found = action()
    if ranks.is_first:
        wait_for_all()
    return found


def any_rank(flag: bool) -> bool:
    """Say whether any rank says so; all get the same answer."""
    if not distributed.is_initialized():
        return flag
    told = torch.tensor([float(flag)])
    distributed.all_reduce(told, distributed.ReduceOp.MAX)
    return bool(told.item())


def from_first(value: float) -> float:
    """Give the first rank's value on every rank: clocks differ."""
    if not distributed.is_initialized():
        return value
    told = torch.tensor([value], dtype=torch.float64)
    distributed.broadcast(told, 0)
    return float(told.item())


def text_from_first(text: str) -> str:
    """Give the first rank's text on every rank."""
    if not distributed.is_initialized():
        return text
    told = [text]
    distributed.broadcast_object_list(told, 0)
    return told[0]


def share_norms(network: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Have batch norm see the whole batch of all ranks, where each has a GPU.

    torch has no such norm for CPUs: there each rank sees its own share. Names of weights stay.
    """
    if ranks.count == 1 or device.type != "cuda":
        return network
    shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return shared


def share_buffers(network: nn.Module) -> None:
    """Give every rank the first one's batch norm statistics: each has seen its own share."""
    if distributed.is_initialized():
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)


def gather(tensor: Tensor) -> Tensor:
    """Join the ranks' tensors (sample, ...) along the first axis, in order; gradients flow back."""
    if not distributed.is_initialized():
        return tensor
    result: Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]
    return result


class _Gather(torch.autograd.Function):
    """Every rank computes the same loss of what is gathered.

    The gradient is summed over the ranks, and so is as many times too large as there are ranks;
    DistributedDataParallel divides by their number.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        count = distributed.get_world_size()
        size = torch.tensor([tensor.shape[0]], device=tensor.device)
        sizes = [torch.empty_like(size) for _ in range(count)]
        distributed.all_gather(sizes, size)
        lengths = [int(each) for each in sizes]
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: tensor.shape[0]] = tensor
        parts = [torch.empty_like(padded) for _ in range(count)]
        distributed.all_gather(parts, padded)
        ctx.start = sum(lengths[: distributed.get_rank()])
        ctx.length = tensor.shape[0]
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.contiguous().clone()
        distributed.all_reduce(summed)
        return summed[ctx.start : ctx.start + ctx.length]
