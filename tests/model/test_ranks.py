"""Ranks share a batch out, and what they gather gives every one of them the whole loss."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnseg.errors import MachineError, UsageError
from nnseg.model import ranks as module
from nnseg.model.ranks import (
    Ranks,
    any_rank,
    from_first,
    gather,
    joined,
    telling_of_lost,
    wait_for_all,
)

PROGRAM = """
import os, sys
import torch
from torch.nn.parallel import DistributedDataParallel
from nnseg.model.ranks import Ranks, any_rank, from_first, gather, joined, wait_for_all

rank, count, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
ranks = Ranks(rank=rank, count=count)
torch.set_num_threads(1)
with joined(ranks, "cpu"):
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    data = torch.arange(15.0).reshape(5, 3) / 10
    wrapped = DistributedDataParallel(network) if count > 1 else network
    found = wrapped(data[list(ranks.share(5))])
    whole = gather(found)
    loss = (whole.softmax(1)[:, 0].sum() / whole.square().sum()).sqrt()
    loss.backward()
    wait_for_all()
    flags = [any_rank(rank == 1), any_rank(False)]
    told = from_first(rank + 0.5)
    torch.save([loss.detach(), network.weight.grad, whole.detach(), flags, told], f"{out}/{rank}")
os._exit(0)  # as the command line has each of several ranks end
"""


def run(count: int, folder: Path) -> list[list[object]]:
    """What each of `count` ranks found."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(count), str(folder)],
            env={**os.environ, **address},
        )
        for rank in range(count)
    ]
    assert [process.wait(60) for process in started] == [0] * count
    return [torch.load(folder / str(rank), weights_only=True) for rank in range(count)]


def test_ranks_find_the_loss_and_the_gradient_of_one_process(tmp_path: Path) -> None:
    ((loss, gradient, whole, flags, told),) = run(1, tmp_path / "one")
    assert (flags, told) == ([False, False], 0.5)
    for found in run(2, tmp_path / "two"):
        for mine, theirs in zip(found[:3], (loss, gradient, whole), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
        assert found[3:] == [[True, False], 0.5]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("samples", [8, 9, 15, 40])
def test_every_sample_is_one_ranks_and_shares_differ_by_one_at_most(
    count: int, samples: int
) -> None:
    shares = [Ranks(rank=rank, count=count).share(samples) for rank in range(count)]
    assert [sample for share in shares for sample in share] == list(range(samples))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_of_fewer_samples_than_ranks_is_refused_by_each() -> None:
    for rank in range(3):
        with pytest.raises(UsageError, match="3 processes cannot share a batch of 2; start fewer"):
            Ranks(rank=rank, count=3).share(2)


def test_one_process_needs_nobody() -> None:
    with joined(Ranks(), None):
        wait_for_all()
        assert any_rank(True)
        assert from_first(2.5) == 2.5
        tensor = torch.ones(2, 3)
        assert gather(tensor) is tensor


CLOSED = "[pair.cc:547] Connection closed by peer [127.0.0.1]:1234\nand where that was met"


@pytest.mark.parametrize("at", [7, 8])
def test_of_ranks_on_this_host_the_one_that_has_ended_is_named(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENDS_WITHIN", 0.0)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)  # it is listed still
        peers = ((7, os.getpid()), (7, os.getppid()), (at, gone.pid))
        with (
            pytest.raises(MachineError) as caught,
            telling_of_lost(Ranks(rank=1, count=3), peers),
        ):
            raise RuntimeError(CLOSED)
    who = f"rank 2 (process {gone.pid})" if at == 7 else "another rank"
    assert str(caught.value).startswith(
        f"{who} has ended, and the ranks train together ({CLOSED.splitlines()[0]}); see what its"
    )
    assert "the same command goes on" in str(caught.value)


@pytest.mark.parametrize(("count", "text"), [(1, CLOSED), (2, "shapes do not fit")])
def test_other_errors_of_ranks_stay_what_they_are(count: int, text: str) -> None:
    peers = ((7, os.getpid()),) * count
    with pytest.raises(RuntimeError, match=text[-9:]), telling_of_lost(Ranks(count=count), peers):
        raise RuntimeError(text)
