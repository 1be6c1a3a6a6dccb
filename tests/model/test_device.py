import logging
import platform
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nnseg.errors import MachineError
from nnseg.model import device, kernels
from nnseg.model.blocks import ConvBlock
from nnseg.model.device import (
    Execution,
    bf16_faults,
    choose_execution,
    compile_network,
    is_out_of_memory,
    layout,
    own_kernels_are_fast,
    own_kernels_predict_fast,
)


class Outputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        return [self.conv(image)] * outputs


@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "bf16_is_fast", lambda: False)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.mark.usefixtures("no_measuring")
@pytest.mark.parametrize("name", ["tpu9", "cuda:77", "privateuseone", "meta"])
def test_a_device_that_is_not_there_is_refused_with_exit_code_4(name: str) -> None:
    with pytest.raises(MachineError, match=f"device {name} cannot be used") as raised:
        choose_execution(name)
    assert raised.value.exit_code == 4


@pytest.mark.parametrize(
    ("fast", "faults", "precision"),
    [(True, [], "bf16"), (False, [], "fp32"), (True, ["conv3d deviates"], "fp32")],
)
def test_bf16_is_chosen_on_a_cpu_only_where_it_is_right_and_fast(
    monkeypatch: pytest.MonkeyPatch, fast: bool, faults: list[str], precision: str
) -> None:
    monkeypatch.setattr(device, "bf16_is_fast", lambda: fast)
    monkeypatch.setattr(device, "bf16_faults", lambda: faults)
    monkeypatch.setattr(device, "own_kernels_are_fast", lambda: False)
    assert choose_execution("cpu").precision == precision


def test_bf16_asked_for_is_refused_where_it_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "bf16_faults", lambda: ["conv3d deviates by 0.7"])
    with pytest.raises(MachineError, match=r"bf16 is wrong on this CPU \(conv3d deviates by"):
        choose_execution("cpu", "bf16")


def test_what_is_asked_for_is_taken_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured() -> Any:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr(device, "bf16_is_fast", measured)
    monkeypatch.setattr(device, "bf16_faults", measured)
    monkeypatch.setattr(device, "own_kernels_are_fast", measured)
    monkeypatch.setattr(device, "own_kernels_predict_fast", measured)
    chosen = choose_execution("cpu", "fp32", compiled=True)
    assert (chosen.device, chosen.precision, chosen.compiled) == ("cpu", "fp32", True)


def test_a_wrong_bf16_kernel_is_caught_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    right = functional.conv3d

    def wrong(x: Tensor, w: Tensor, **options: Any) -> Tensor:
        y = right(x, w, **options)
        narrow = x.dtype == torch.bfloat16 and options.get("stride") == 2
        return y * 1.1 if narrow else y

    monkeypatch.setattr(functional, "conv3d", wrong)
    faults = bf16_faults()
    assert any(fault.startswith("strided conv3d, one voxel wide deviates by") for fault in faults)
    assert not any(fault.startswith("conv3d deviates") for fault in faults)


def test_a_bf16_kernel_that_gives_nan_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = functional.conv2d

    def wrong(x: Tensor, w: Tensor, **options: Any) -> Tensor:
        y = right(x, w, **options)
        return y * float("nan") if x.dtype == torch.bfloat16 else y

    monkeypatch.setattr(functional, "conv2d", wrong)
    assert any(fault.startswith("conv2d deviates by nan") for fault in bf16_faults())


def test_a_wrong_gradient_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = functional.conv_transpose3d

    def wrong(x: Tensor, w: Tensor, **options: Any) -> Tensor:
        y = right(x, w, **options)
        if x.dtype == torch.bfloat16:
            y.register_hook(lambda gradient: gradient * 0.9)
        return y

    monkeypatch.setattr(functional, "conv_transpose3d", wrong)
    assert any(fault.startswith("transposed conv3d deviates") for fault in bf16_faults())


@pytest.mark.usefixtures("compiler")
def test_compiling_that_fails_later_falls_back_to_the_network_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*args: Any) -> Any:
        raise RuntimeError("no C++ compiler\nmany more lines")

    monkeypatch.setattr(torch, "compile", lambda network, **options: fails)
    network, example = Outputs(), torch.zeros(1, 2, 3, 4)
    with caplog.at_level(logging.WARNING, logger="nnseg"):
        result = compile_network(network, example, Execution(device="cpu", compiled=True), 1)
    assert result is network
    assert caplog.messages == ["torch.compile failed (no C++ compiler); going on without it"]


@pytest.mark.usefixtures("compiler")
def test_compiling_that_fails_at_once_falls_back_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(network: nn.Module, **options: Any) -> Any:
        raise RuntimeError("not supported on this Python")

    monkeypatch.setattr(torch, "compile", fails)
    network, example = Outputs(), torch.zeros(1, 2, 3, 4)
    execution = Execution(device="cpu", compiled=True)
    with caplog.at_level(logging.WARNING, logger="nnseg"):
        assert compile_network(network, example, execution, 1) is network
    assert "not supported on this Python" in caplog.text


@pytest.mark.usefixtures("compiler")
def test_a_trial_of_the_compiled_network_leaves_no_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **options: network.forward)
    network, example = Outputs(), torch.ones(1, 2, 3, 4)
    compiled = compile_network(network, example, Execution(device="cpu", compiled=True), 2)
    assert compiled is not network
    assert all(parameter.grad is None for parameter in network.parameters())


def test_without_a_compiler_nothing_is_tried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    monkeypatch.delattr(torch, "compile")
    network, example = Outputs(), torch.zeros(1, 2, 3, 4)
    execution = Execution(device="cpu", compiled=True)
    with caplog.at_level(logging.WARNING, logger="nnseg"):
        assert compile_network(network, example, execution, 1) is network
    assert "there is no C++ compiler" in caplog.text


def test_nothing_is_compiled_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "compile")
    network = Outputs()
    assert compile_network(network, torch.zeros(1, 2, 3, 4), Execution(device="cpu"), 1) is network


def test_autocast_computes_in_the_precision_chosen() -> None:
    network, example = Outputs(), torch.zeros(1, 2, 3, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with Execution(device="cpu", precision=precision).autocast():
            assert network(example)[0].dtype == dtype


def test_a_placed_network_has_the_layout_chosen() -> None:
    weight = Execution(device="cpu").place(nn.Conv3d(4, 4, 3), 3).weight
    assert weight.is_contiguous(memory_format=layout(3))
    assert not weight.is_contiguous()
    plain = Execution(device="cpu", channels_last=False).place(nn.Conv3d(4, 4, 3), 3).weight
    assert plain.is_contiguous()


@pytest.mark.parametrize("fast", [True, False])
def test_own_kernels_are_taken_in_bf16_where_they_win_and_nothing_is_compiled_then(
    monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr(device, "bf16_faults", lambda: [])
    monkeypatch.setattr(device, "own_kernels_are_fast", lambda: fast)
    chosen = choose_execution("cpu", "bf16", compiled=True)
    assert (chosen.own_kernels, chosen.compiled) == (fast, not fast)
    assert not choose_execution("cpu", "fp32").own_kernels


@pytest.mark.parametrize("fast", [True, False])
def test_own_kernels_are_taken_in_fp32_where_they_win_and_nothing_is_trained(
    monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr(device, "own_kernels_predict_fast", lambda: fast)
    assert choose_execution("cpu", "fp32", trains=False).own_kernels is fast
    assert not choose_execution("cpu", "fp32").own_kernels


def test_own_kernels_do_not_win_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: False)
    assert not own_kernels_are_fast()
    assert not own_kernels_predict_fast()


def test_a_kernel_that_is_wrong_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "available", lambda: True)
    monkeypatch.setattr(kernels, "convolve", lambda inputs, weight, *_: inputs[0] * weight.mean())
    monkeypatch.setattr(kernels, "normalize", lambda x, scale, *_: x * scale[:, None, None, None])
    with caplog.at_level(logging.WARNING, logger="nnseg"):
        assert not own_kernels_are_fast()
        assert not own_kernels_predict_fast()
    for message in caplog.messages:
        assert "the CPU kernels deviate by" in message


@pytest.mark.skipif(not kernels.available(), reason="no compiler, or a CPU without AVX512-BF16")
def test_our_kernels_agree_with_pytorchs(caplog: pytest.LogCaptureFixture) -> None:
    own_kernels_are_fast(), own_kernels_predict_fast()  # or not: that depends on the machine
    assert caplog.messages == []


def test_a_norm_that_is_wrong_only_of_a_large_mean_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def normalize(x: Tensor, scale: Tensor, shift: Tensor, eps: float, slope: float) -> Tensor:
        y = functional.group_norm(x.contiguous(), len(scale), scale, shift, eps)
        return functional.leaky_relu(y, slope) * (1.04 if x.mean() > 50 else 1)

    def convolve(inputs: list[Tensor], weight: Tensor, bias: Tensor, packed: None) -> Tensor:
        return functional.conv3d(inputs[0], weight, bias, padding=1)

    monkeypatch.setattr(kernels, "available", lambda: True)
    monkeypatch.setattr(kernels, "convolve", convolve)
    monkeypatch.setattr(kernels, "normalize", normalize)
    with caplog.at_level(logging.WARNING, logger="nnseg"):
        assert not own_kernels_are_fast()
        assert not own_kernels_predict_fast()
    assert len(caplog.messages) == 2
    assert all("the CPU kernels deviate by 0.04" in message for message in caplog.messages)


def test_what_torch_raises_where_a_cpu_has_too_little_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**17)
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("it was out of memory"), False),
    ],
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_errors_of_memory_are_told_from_others(
    error: Exception, known: bool, wrapped: bool
) -> None:
    if wrapped:
        outer = RuntimeError("batch 3")
        outer.__cause__ = error
        error = outer
    assert is_out_of_memory(error) is known


@pytest.mark.parametrize("own", [True, False])
def test_a_placed_network_runs_on_the_kernels_chosen(
    monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    monkeypatch.setattr(kernels, "available", lambda: True)
    execution = Execution(device="cpu", precision="bf16", own_kernels=own)
    block = execution.place(ConvBlock(2, 3, (3, 3, 3)), 3)
    assert (block.own_kernels, block.norm.own_kernels) == (own, own)


def test_a_run_that_goes_on_without_its_kernels_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "available", lambda: False)
    execution = Execution(device="cpu", precision="bf16", own_kernels=True)
    with caplog.at_level(logging.WARNING, logger="nnseg"):
        network, x = execution.place(ConvBlock(32, 32, (3, 3, 3)), 3), torch.zeros(1, 32, 2, 3, 4)
    assert caplog.messages == [
        "the CPU kernels of this run cannot be had here: going on without them"
    ]
    with execution.autocast():
        assert network(x).shape == x.shape


def test_what_runs_on_own_kernels_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "compile")
    network = Outputs()
    execution = Execution(device="cpu", compiled=True, own_kernels=True)
    assert compile_network(network, torch.zeros(1, 2, 3, 4), execution, 1) is network


RESIDENT = """
import sys
import torch
from nnseg.model.device import keep_memory

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

if sys.argv[1] == "kept":
    keep_memory()
before = resident()
step = torch.ones(2**26)
del step
print((resident() - before) // 2**10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc to keep what is freed")
@pytest.mark.parametrize(("how", "least", "most"), [("returned", 0, 64), ("kept", 192, 320)])
def test_memory_is_kept_for_the_next_step_once_that_was_asked_for(
    how: str, least: int, most: int
) -> None:
    command = (sys.executable, "-c", RESIDENT, how)
    told = subprocess.run(command, capture_output=True, text=True, check=True)  # 256 MiB freed
    assert least <= int(told.stdout) <= most
