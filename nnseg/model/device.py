"""Where and how a network is computed: device, number type, memory layout, compiler.

What is measured or found out here at a first start is a record, kept with the run and used again
when the run goes on.
"""

import ctypes
import functools
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnseg.errors import MachineError
from nnseg.model import kernels
from nnseg.model.blocks import NORM_EPS, ConvBlock, use_kernels

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OUT_OF_MEMORY = (RuntimeError, MemoryError)  # errors of which `is_out_of_memory` knows more
_NO_MEMORY = ("out of memory", "DefaultCPUAllocator")  # what torch's other errors of it say
TOLERANCE = 0.02  # of bf16 against fp32, relative; its 8 bits of mantissa give about 0.004
EXACT_TOLERANCE = 2e-5  # of fp32 kernels, relative; values at 100 times their spread cost 1e-5
COMPILERS = ("g++", "c++", "clang++", "cl")  # what torch needs to compile for a CPU
WORTHWHILE = 1.1  # how much faster bf16 or a kernel of our own must be to be used on a CPU
TRIALS = 4  # of which the fastest counts
_TRIM_THRESHOLD, _MOST_MAPPED = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a network runs."""

    device: str  # "cpu", "cuda", "cuda:1", "mps"
    precision: str = "fp32"  # a key of PRECISIONS; below fp32 by autocast
    channels_last: bool = True
    compiled: bool = False
    threads: int = 1  # of a CPU
    own_kernels: bool = False  # those of `kernels`, where a layer can take them

    @property
    def torch_device(self) -> torch.device:
        """The device as torch knows it."""
        return torch.device(self.device)

    def autocast(self) -> Any:
        """Give the context in which the network's forward pass runs."""
        kind = self.torch_device.type
        return torch.autocast(
            kind, PRECISIONS[self.precision], enabled=self.precision != "fp32", cache_enabled=True
        )

    def place(self, network: nn.Module, dimensions: int, *, constant: bool = False) -> nn.Module:
        """Move a network to the device, in the layout and with the kernels chosen.

        Args:
            network: To be moved; its own weights are.
            dimensions: 2 or 3.
            constant: Whether its weights will never change again.
        """
        network = network.to(self.torch_device)
        use_kernels(network, self.own_kernels, constant=constant)
        if self.own_kernels and not kernels.available():
            logger.warning("the CPU kernels of this run cannot be had here: going on without them")
        if self.channels_last:
            network = network.to(memory_format=layout(dimensions))  # type: ignore[call-overload]
        return network


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or the one that caused it, says that memory is short.

    A GPU has an error of its own for it; of a CPU torch raises a plain RuntimeError.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


@functools.cache
def keep_memory() -> None:
    """Let this process keep, from now on, the memory that a step frees for the step after it.

    The C library otherwise hands every large tensor back to the system at once and gets it anew,
    page by page: up to half of a training step on a CPU. Elsewhere than with glibc nothing is done.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if adjust is not None:
        adjust(_TRIM_THRESHOLD, -1)
        adjust(_MOST_MAPPED, 0)


def layout(dimensions: int) -> torch.memory_format:
    """Give the channels-last layout of 2D or 3D convolutions."""
    return torch.channels_last if dimensions == 2 else torch.channels_last_3d


def choose_execution(
    device: str | None = None,
    precision: str | None = None,
    *,
    compiled: bool = False,
    trains: bool = True,
) -> Execution:
    """Decide how to run on this machine.

    Args:
        device: As the user asked, or None for the best there is.
        precision: "fp32", "bf16" or "fp16" as the user asked; None chooses: half precision on
            CUDA, on a CPU bf16 where it agrees with fp32 and is faster, else fp32.
        compiled: Let torch compile the network; it must pay for the minute that takes. It is not
            done where our own kernels are faster anyhow.
        trains: Whether gradients are wanted, of which our own kernels have none in fp32.

    Raises:
        MachineError: There is no such device, or bf16 was asked for and is wrong here.
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        kind = torch.device(chosen).type
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise MachineError(f"device {chosen} cannot be used ({reason}); try --device cpu") from None
    threads = torch.get_num_threads()
    if kind == "cuda":
        bf16 = torch.cuda.is_bf16_supported()
        return Execution(
            device=chosen,
            precision=precision or ("bf16" if bf16 else "fp16"),
            channels_last=False,  # instance norm loses there what convolutions win
            compiled=compiled,
            threads=threads,
        )
    if kind != "cpu":
        return Execution(device=chosen, precision=precision or "fp32", threads=threads)
    if precision is None:
        precision = "bf16" if bf16_is_fast() and not bf16_faults() else "fp32"
    elif precision == "bf16" and (faults := bf16_faults()):
        raise MachineError(f"bf16 is wrong on this CPU ({'; '.join(faults)}); use --precision fp32")
    if precision == "fp32":
        own = not trains and own_kernels_predict_fast()
    else:
        own = precision == "bf16" and own_kernels_are_fast()
    return Execution(
        device=chosen,
        precision=precision,
        compiled=compiled and not own,  # a compiler cannot look into them, nor win more than they
        threads=threads,
        own_kernels=own,
    )


def own_kernels_are_fast() -> bool:
    """Whether a training step of one layer on our kernels beats PyTorch's and agrees with it.

    Machines differ: with matrix units for bf16 PyTorch's plain convolution wins.
    """
    if not kernels.available():
        return False
    keep_memory()  # as a training does
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = ConvBlock(32, 32, (3, 3, 3), activated=False)  # at a kink errors would tell nothing
        block = block.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        x = torch.randn(1, 32, 16, 24, 20).contiguous(memory_format=torch.channels_last_3d)
        far = (100 + x / 2).bfloat16()  # a small variance must not drown in a large mean
    seconds: dict[bool, float] = {}
    results: dict[bool, list[Tensor]] = {}

    def train(own: bool) -> None:
        image = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = block(image)
        wanted = (image, block.conv.weight, block.norm.weight)
        gradients = torch.autograd.grad(y, wanted, x.to(y.dtype))
        results[own] = [tensor.detach().float() for tensor in (y, *gradients)]

    for own in (False, True):
        use_kernels(block, own)
        seconds[own] = _processor_seconds(partial(train, own))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        results[True].append(block.norm(far).double())
    # PyTorch's channels-last norm fails here itself, so that it cannot be the measure.
    results[False].append(functional.instance_norm(far.double(), eps=NORM_EPS))
    pairs = zip(results[True], results[False], strict=True)
    worst = max(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs)
    if not worst < TOLERANCE:
        logger.warning("the CPU kernels deviate by %.2g here: they are not used", worst)
        return False
    return seconds[False] > WORTHWHILE * seconds[True]


def own_kernels_predict_fast() -> bool:
    """Whether a layer's forward pass in fp32 on our kernels beats PyTorch's and agrees with it."""
    if not kernels.available():
        return False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = ConvBlock(32, 32, (3, 3, 3)).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        x = torch.randn(1, 32, 16, 24, 20).contiguous(memory_format=torch.channels_last_3d)
    seconds: dict[bool, float] = {}
    results: dict[bool, list[Tensor]] = {}
    with torch.inference_mode():
        for own in (False, True):
            use_kernels(block, own)
            seconds[own] = _processor_seconds(partial(block, x))
            results[own] = [block(x), block.norm(100 + x / 2)]
    pairs = zip(results[True], results[False], strict=True)
    worst = max(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs)
    if not worst < EXACT_TOLERANCE:
        logger.warning("the CPU kernels deviate by %.2g in fp32 here: they are not used", worst)
        return False
    return seconds[False] > WORTHWHILE * seconds[True]


def bf16_faults() -> list[str]:
    """Compare bf16 convolutions with fp32 ones, forward and backward; list those that disagree.

    The shapes include those that have been wrong in releases of oneDNN, such as a strided
    convolution whose output is one voxel wide.
    """
    cases: list[tuple[str, Callable[[Tensor, Tensor], Tensor], tuple[int, ...], tuple[int, ...]]]
    cases = [
        (
            "conv3d",
            lambda x, w: functional.conv3d(x, w, padding=1),
            (2, 32, 6, 7, 8),
            (32, 32, 3, 3, 3),
        ),
        (
            "strided conv3d, one voxel wide",
            lambda x, w: functional.conv3d(x, w, stride=2, padding=1),
            (1, 32, 6, 4, 2),
            (64, 32, 3, 3, 3),
        ),
        (
            "conv3d with a flat kernel",
            lambda x, w: functional.conv3d(x, w, padding=(0, 1, 1)),
            (2, 1, 5, 6, 7),
            (32, 1, 1, 3, 3),
        ),
        (
            "transposed conv3d",
            lambda x, w: functional.conv_transpose3d(x, w, stride=2),
            (2, 64, 3, 4, 5),
            (64, 32, 2, 2, 2),
        ),
        ("conv2d", lambda x, w: functional.conv2d(x, w, padding=1), (3, 32, 9, 8), (32, 32, 3, 3)),
        (
            "strided conv2d, one pixel wide",
            lambda x, w: functional.conv2d(x, w, stride=2, padding=1),
            (2, 32, 6, 2),
            (64, 32, 3, 3),
        ),
    ]
    generator = torch.Generator().manual_seed(0)
    faults = []
    for name, function, x_shape, w_shape in cases:
        x = torch.randn(x_shape, generator=generator)
        w = torch.randn(w_shape, generator=generator) / (w_shape[1] * 9) ** 0.5
        exact = _with_gradients(function, x, w, torch.float32)
        tried = _with_gradients(function, x, w, torch.bfloat16)
        worst = max(float((a - b).norm() / b.norm()) for a, b in zip(tried, exact, strict=True))
        if not worst < TOLERANCE:
            faults.append(f"{name} deviates by {worst:.2g}")
    return faults


def bf16_is_fast() -> bool:
    """Whether a bf16 convolution beats an fp32 one here by a margin that pays."""
    if os.cpu_count() is None or not hasattr(torch.backends, "mkldnn"):
        return False
    x = torch.randn(2, 32, 16, 24, 24).contiguous(memory_format=torch.channels_last_3d)
    w = torch.randn(32, 32, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = x.to(dtype), w.to(dtype)
        seconds[dtype] = _processor_seconds(partial(functional.conv3d, a, b, padding=1))
    return seconds[torch.float32] > WORTHWHILE * seconds[torch.bfloat16]


def _processor_seconds(work: Callable[[], object]) -> float:
    """Time `work` on one thread, by what the processor spent on it.

    What else runs on the machine counts little so, and a choice comes out the same again.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for _ in range(TRIALS):
            start = time.thread_time()
            work()
            times.append(time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times)


def compile_network(network: nn.Module, example: Tensor, execution: Execution, outputs: int) -> Any:
    """Compile `network` for batches like `example`, or say why it stays as it is.

    Returns:
        A callable with the network's weights; the network itself where compiling fails, and where
        it runs on our own kernels, into which a compiler cannot look.
    """
    if not execution.compiled or execution.own_kernels:
        return network
    if execution.torch_device.type == "cpu" and not any(map(shutil.which, COMPILERS)):
        logger.warning("there is no C++ compiler (%s): training without", ", ".join(COMPILERS))
        return network
    try:
        compiled = torch.compile(network, dynamic=False)
        with execution.autocast():
            logits = compiled(example, outputs)
            sum(output.float().mean() for output in logits).backward()
    except Exception as error:  # torch wraps whatever its compilers raise
        reason = str(error).strip().splitlines()[0]
        logger.warning("torch.compile failed (%s); going on without it", reason)
        return network
    finally:
        network.zero_grad(set_to_none=True)
    return compiled


def _with_gradients(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """Run in `dtype`, channels last; give output and both gradients as fp32."""
    order = layout(x.ndim - 2)
    x = x.to(dtype).contiguous(memory_format=order).requires_grad_()
    w = w.to(dtype).contiguous(memory_format=order).requires_grad_()
    y = function(x, w)
    upstream = torch.linspace(-1, 1, y.numel(), dtype=torch.float32).reshape(y.shape)
    gradients = torch.autograd.grad(y, (x, w), upstream.to(dtype))
    return [tensor.detach().float() for tensor in (y, *gradients)]
