"""Two processes that share a batch have the loss and the gradient of one, whatever the loss."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from loss_oracle import IGNORING, IGNORING_REGIONS, OPTIONS, PLAIN, REGIONS, example
from torch import nn

from nnseg.losses.build import LOSSES, make_loss
from nnseg.model.ranks import Ranks, joined, share_buffers, share_norms, wait_for_all

SHAPE = (2, 3, 4)
Found = dict[str, list[torch.Tensor]]


def losses_of(samples: list[int]) -> Found:
    """Each loss and its gradient, of some of the samples of a batch."""
    found: Found = {}
    for labels in (PLAIN, IGNORING, REGIONS, IGNORING_REGIONS):
        logits, segmentation = example(labels, SHAPE)
        logits, segmentation = (
            torch.cat([each, each.flip(2)])[:3] for each in (logits, segmentation)
        )
        weights = (0.5, 2.0, 4.0)[: len(labels.foreground)]
        for name in LOSSES:
            for varied in (False, True):
                options: Any = OPTIONS.get(name, {}) if varied else {}
                loss = make_loss(name, weights if varied else None, **options)
                leaf = logits[samples].double().requires_grad_()
                value = loss(leaf, segmentation[samples], labels, varied)
                value.backward()
                assert leaf.grad is not None
                found[f"{name} {labels.as_text} {varied}"] = [value.detach(), leaf.grad]
    return found


def statistics_of(samples: list[int]) -> torch.Tensor:
    """What batch norm has of the samples, and the other ranks of the first one's."""
    norm = nn.BatchNorm3d(3)
    norm(example(PLAIN, SHAPE)[0][[sample % 2 for sample in samples]])
    share_buffers(norm)
    assert norm.running_mean is not None
    return norm.running_mean


def work(rank: int, out: Path) -> None:
    """What one rank does, in a process of its own."""
    torch.set_num_threads(1)
    ranks = Ranks(rank=rank, count=2)
    with joined(ranks, "cpu"):
        share = list(ranks.share(3))
        torch.save([losses_of(share), statistics_of(share)], out / str(rank))
        wait_for_all()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Found, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    program = "import sys, test_losses_of_ranks as t; t.work(int(sys.argv[1]), t.Path(sys.argv[2]))"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank), str(folder)],
            env={**os.environ, **address, "PYTHONPATH": paths},
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(300) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [torch.load(folder / str(rank), weights_only=True) for rank in range(2)]


def test_ranks_have_the_losses_and_gradients_of_one_process(
    found: list[tuple[Found, torch.Tensor]],
) -> None:
    wanted = losses_of([0, 1, 2])
    for name, (value, gradient) in wanted.items():
        ours = [losses[name] for losses, _ in found]
        for mine, _ in ours:
            torch.testing.assert_close(mine, value)
        # each rank's is as many times too large as there are ranks; their mean is what a step takes
        torch.testing.assert_close(torch.cat([each for _, each in ours]) / 2, gradient)


def test_the_statistics_of_the_first_rank_are_everyones(
    found: list[tuple[Found, torch.Tensor]],
) -> None:
    wanted = statistics_of(list(Ranks(rank=0, count=2).share(3)))
    for _, statistics in found:
        assert torch.equal(statistics, wanted)
    assert not torch.equal(statistics_of([2]), wanted)


def test_batch_norm_of_several_gpus_sees_the_whole_batch_under_the_same_names() -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv3d(1, 3, 1), nn.BatchNorm3d(3), nn.BatchNorm2d(2))

    several, gpu, cpu = Ranks(count=2), torch.device("cuda"), torch.device("cpu")
    shared = share_norms(network(), several, gpu)
    assert [type(part) for part in shared.children()][1:] == [nn.SyncBatchNorm] * 2
    assert shared.state_dict().keys() == network().state_dict().keys()
    for ranks, device in ((Ranks(), gpu), (several, cpu)):
        alone = network()
        assert share_norms(alone, ranks, device) is alone
        assert not [part for part in alone.modules() if isinstance(part, nn.SyncBatchNorm)]
