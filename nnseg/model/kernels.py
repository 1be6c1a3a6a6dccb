"""Our own kernels for CPUs with AVX512-BF16: Winograd convolutions, norm and activation in one.

The C++ beside this file is compiled when a process first needs it, which takes a few seconds, and
kept in the user's own cache. Where there is no compiler or no such CPU, `available` says so and the
network runs on PyTorch's operators. All tensors are channels last. Images are bf16, or fp32 where
nothing will be differentiated; weights are fp32.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnseg.commit import write_whole
from nnseg.errors import MachineError

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILERS = ("g++", "clang++", "c++")
FLAGS = (
    *("-O2", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-mfma"),
    *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "bf16")),
)
KEPT_IN = Path(".cache") / "nnseg"  # of the user's home
COMPILE_SECONDS = 120  # a compiler that takes longer hangs
GROUP = 32  # channels come in multiples of it
# Beyond these, transforming the weights, or summing up their gradient, costs what the products
# save. Found on an AMD EPYC (Zen 4).
MOST_WEIGHTS = 320 * 320
MOST_WEIGHT_SUMS = 256 * 128

# The arguments of each function: tensor or array, length or stride, flag or threads, number.
_KINDS = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}
_ARGUMENTS = {
    "winograd_convolve": "pii pn pn pp pn pn i",
    "winograd_weigh": "pi pn pn pn p i",
    "winograd_pack": "pnn nnn iii p i",
    "norm_forward": "pinnn pp ff ppp i",
    "norm_backward": "ppnnn pp f pp ppp i",
    "supported": "",
}

# The gradient of a tile's 64 (or 16) products with respect to the three taps along an axis.
_TAPS = torch.tensor([[1.0, 0.5, 0.5, 0.0], [0.0, 0.5, -0.5, 0.0], [0.0, 0.5, 0.5, 1.0]])


@functools.cache
def library() -> ctypes.CDLL | None:
    """Load the kernels, compiled now or before; None, with the reason in the log, if that fails."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        logger.info("no C++ compiler (%s): PyTorch's own kernels are used", ", ".join(COMPILERS))
        return None
    try:
        loaded = _load(_compile(compiler))
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", None) or str(error)
        logger.info("the CPU kernels do not compile (%s)", said.strip().splitlines()[0])
        return None
    for name, kinds in _ARGUMENTS.items():
        getattr(loaded, name).argtypes = [_KINDS[kind] for kind in kinds.replace(" ", "")]
    return loaded if loaded.supported() else None


def _compile(compiler: str) -> bytes:
    """Give the compiled kernels: what was kept of an earlier time, or else compile and keep them.

    They are kept by the hash of all that they follow from, and count only if their own hash is that
    of their name and nobody else could have written them: what is loaded here runs.
    """
    facts = [SOURCE.read_text(), *FLAGS, compiler, _version(compiler)]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]
    kept = _cache()
    for path in sorted(kept.glob(f"{key}-*.so")) if _is_ours(kept) else ():
        data = path.read_bytes() if _is_ours(path) else b""
        if path.name == f"{key}-{hashlib.sha256(data).hexdigest()}.so":
            return data
    with tempfile.TemporaryDirectory(prefix="nnseg-kernels-") as folder:
        file = Path(folder) / "kernels.so"
        subprocess.run(  # noqa: S603  # the compiler found, on our own source
            [compiler, *FLAGS, str(SOURCE), "-o", str(file)],
            check=True,
            capture_output=True,
            text=True,
            timeout=COMPILE_SECONDS,
        )
        data = file.read_bytes()
    try:
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_ours(kept):
            write_whole(kept / f"{key}-{hashlib.sha256(data).hexdigest()}.so", data)
    except (OSError, MachineError) as error:  # it costs the next start three seconds
        logger.info("the CPU kernels cannot be kept (%s)", error)
    return data


def _cache() -> Path:
    try:
        return Path.home() / KEPT_IN
    except RuntimeError:  # a user without a home
        return Path(os.devnull)


def _load(data: bytes) -> ctypes.CDLL:
    """Load compiled kernels, from a file of their own that is gone at once."""
    with tempfile.TemporaryDirectory(prefix="nnseg-kernels-") as folder:
        file = Path(folder) / "kernels.so"
        file.write_bytes(data)
        return ctypes.CDLL(str(file))


def _version(compiler: str) -> str:
    said = subprocess.run(  # noqa: S603  # the compiler found
        [compiler, "--version"], check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS
    )
    return said.stdout


def _is_ours(path: Path) -> bool:
    """Whether a file or folder is the user's own and nobody else may write it."""
    try:
        found = path.stat()
    except OSError:
        return False
    return hasattr(os, "getuid") and found.st_uid == os.getuid() and not found.st_mode & 0o022


def available() -> bool:
    """Whether the kernels can run here."""
    return library() is not None


def in_use(x: Tensor) -> bool:
    """Whether an operation on `x` may take these kernels.

    On a CPU it may under bf16 autocast, and in fp32 in inference mode.
    """
    if x.device.type != "cpu":
        return False
    if not torch.is_autocast_enabled("cpu"):
        return _is_exact(x) and available()
    return torch.get_autocast_dtype("cpu") == torch.bfloat16 and available()


def _is_exact(x: Tensor) -> bool:
    """Whether what is computed of `x` is computed in fp32: no gradient of it exists."""
    return (
        x.dtype == torch.float32
        and torch.is_inference_mode_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def can_convolve(weight: Tensor, stride: Sequence[int], inputs: Sequence[int]) -> bool:
    """Whether `convolve` takes a convolution, from its weight (out, in, *kernel) and inputs.

    Args:
        weight: Its taps must be 3 an axis, but may be 1 along the first of three.
        stride: It must be 1.
        inputs: Channels of each tensor that makes up the image.
    """
    kernel = tuple(weight.shape[2:])
    return (
        kernel in ((3, 3), (3, 3, 3), (1, 3, 3))
        and max(stride) == 1
        and 1 <= len(inputs) <= 2
        and weight.shape[0] * weight.shape[1] <= MOST_WEIGHTS
        and not any(channels % GROUP for channels in (weight.shape[0], *inputs))
    )


def convolve(
    inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None, packed: Tensor | None = None
) -> Tensor:
    """Convolve an image that may lie in two tensors, with padding that keeps its shape.

    The products are bf16, of which the transforms of Winograd's algorithm make errors about twice
    those of a plain bf16 convolution; sums and transforms are fp32. Differentiable. Of fp32 images
    in inference mode everything is fp32, with errors of some 1e-6.

    Args:
        inputs: One or two tensors (batch, channel, *spatial) for which `can_convolve` holds.
        weight: (out, in, *kernel), fp32; its input channels are those of `inputs` in turn.
        bias: (out,), fp32, or None. Its gradient comes out as 0, which it is when the result goes
            to `normalize`, whose mean takes the bias away.
        packed: What `pack` made of the weights for these inputs; None has it made.

    Returns:
        (batch, out, *spatial), bf16 or fp32, channels last.
    """
    second = inputs[1] if len(inputs) == 2 else None
    result: Tensor = _Convolution.apply(inputs[0], second, weight, bias, packed)  # type: ignore[no-untyped-call]
    return result


def pack(x: Tensor, weight: Tensor) -> Tensor:
    """Transform weights once for all images like `x` that `convolve` will take."""
    return _pack(weight.detach(), torch.float32 if _is_exact(x) else torch.bfloat16, flip=False)


def normalize(x: Tensor, scale: Tensor, shift: Tensor, eps: float, slope: float) -> Tensor:
    """Give leaky(scale (x - mean) / deviation + shift), as instance norm and leaky ReLU do.

    Mean and deviation are those of each sample's channel. Of the forward pass only `x` is kept for
    the backward one. Differentiable.

    Args:
        x: (batch, channel, *spatial); a multiple of 32 channels.
        scale: (channel,), fp32.
        shift: (channel,), fp32.
        eps: Added to the variance.
        slope: Of values below 0; 1 is no activation.
    """
    result: Tensor = _NormActivation.apply(x, scale, shift, eps, slope)  # type: ignore[no-untyped-call]
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        second: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        packed: Tensor | None,
    ) -> Tensor:
        packed = pack(first, weight) if packed is None else packed
        dtype = packed.dtype
        first = _ordered(first, dtype)
        second = None if second is None else _ordered(second, dtype)
        ctx.save_for_backward(first, second, weight)
        ctx.has_bias = bias is not None
        return _convolve(first, second, packed, bias, (weight.shape[0],), weight.shape[2:])[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        first, second, weight = ctx.saved_tensors
        gradient = _ordered(gradient)
        kernel = weight.shape[2:]
        inputs: list[Tensor | None] = [None, None]
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            channels = [x.shape[1] for x in (first, second) if x is not None]
            packed = _pack(weight.detach(), torch.bfloat16, flip=True)
            found = _convolve(gradient, None, packed, None, channels, kernel)
            inputs[: len(found)] = found
        weights = _weigh(first, second, gradient, weight) if ctx.needs_input_grad[2] else None
        bias = torch.zeros(weight.shape[0]) if ctx.has_bias else None
        return (*inputs, weights, bias, None)


class _NormActivation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float, slope: float
    ) -> Tensor:
        exact = _is_exact(x)
        x = _ordered(x, torch.float32 if exact else torch.bfloat16)
        batch, channels = x.shape[:2]
        result = torch.empty_like(x)
        mean, inverse = torch.empty(2, batch, channels)
        _loaded().norm_forward(
            _at(x),
            int(exact),
            batch,
            x[0, 0].numel(),
            channels,
            _at(scale),
            _at(shift),
            slope,
            eps,
            _at(result),
            _at(mean),
            _at(inverse),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(x, scale, shift, mean, inverse)
        ctx.slope = slope
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, scale, shift, mean, inverse = ctx.saved_tensors
        gradient = _ordered(gradient)
        result = torch.empty_like(x)
        scales, shifts = torch.empty(2, *x.shape[:2])
        _loaded().norm_backward(
            _at(x),
            _at(gradient),
            x.shape[0],
            x[0, 0].numel(),
            x.shape[1],
            _at(scale),
            _at(shift),
            ctx.slope,
            _at(mean),
            _at(inverse),
            _at(result),
            _at(scales),
            _at(shifts),
            torch.get_num_threads(),
        )
        return result, scales.sum(dim=0), shifts.sum(dim=0), None, None


def _convolve(
    first: Tensor,
    second: Tensor | None,
    packed: Tensor,
    bias: Tensor | None,
    channels: Sequence[int],
    kernel: Sequence[int],
) -> list[Tensor]:
    outputs = [
        torch.empty(
            (first.shape[0], count, *first.shape[2:]),
            dtype=first.dtype,
            memory_format=_order(first),
        )
        for count in channels
    ]
    other = outputs[1] if len(outputs) == 2 else None
    _loaded().winograd_convolve(
        _grid(first),
        int(_is_flat(kernel)),
        int(first.dtype == torch.float32),
        *_image(first),
        *_image(second),
        _at(packed),
        _at(bias),
        *_image(outputs[0]),
        *_image(other),
        torch.get_num_threads(),
    )
    return outputs


def _pack(weight: Tensor, dtype: torch.dtype, *, flip: bool) -> Tensor:
    """Transform weights for `_convolve`; `flip` makes those of the gradient of the image."""
    outs, ins, *kernel = weight.shape
    dense = weight.flatten(2) if weight.is_contiguous() else _ordered_weight(weight)
    strides = dense.stride()
    if flip:
        outs, ins, strides = ins, outs, (strides[1], strides[0], strides[2])
    positions = 16 if _is_flat(kernel) else 64
    packed = torch.empty(outs * ins * positions, dtype=dtype)
    _loaded().winograd_pack(
        _at(dense),
        outs,
        ins,
        *strides,
        int(_is_flat(kernel)),
        int(flip),
        int(dtype == torch.float32),
        _at(packed),
        torch.get_num_threads(),
    )
    return packed


def _weigh(first: Tensor, second: Tensor | None, gradient: Tensor, weight: Tensor) -> Tensor:
    """Give the gradient of the weights."""
    outs, ins, *kernel = weight.shape
    if outs * ins > MOST_WEIGHT_SUMS:
        image = first if second is None else torch.cat((first, second), dim=1)
        ones, padding = [1] * len(kernel), [edge // 2 for edge in kernel]
        plain: list[Tensor] = torch.ops.aten.convolution_backward(
            gradient,
            image,
            _ordered(weight),
            None,
            ones,
            padding,
            ones,
            False,
            [0] * len(kernel),
            1,
            [False, True, False],
        )
        return plain[1].float()
    flat = _is_flat(kernel)
    products = torch.empty(16 if flat else 64, ins * outs)
    _loaded().winograd_weigh(
        _grid(first),
        int(flat),
        *_image(first),
        *_image(second),
        *_image(gradient),
        _at(products),
        torch.get_num_threads(),
    )
    plane = torch.kron(_TAPS, _TAPS)
    taps = (plane if flat else torch.kron(_TAPS, plane)) @ products
    return taps.view(*kernel, ins, outs).movedim((-1, -2), (0, 1)).contiguous()


def _loaded() -> ctypes.CDLL:
    found = library()
    assert found is not None, "ask available() first"
    return found


def _ordered(x: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return x.to(dtype).contiguous(memory_format=_order(x))


def _ordered_weight(weight: Tensor) -> Tensor:
    order = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
    return weight.contiguous(memory_format=order).movedim(1, -1).flatten(1, -2).movedim(-1, 1)


def _order(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d


def _is_flat(kernel: Sequence[int]) -> bool:
    return len(kernel) == 2 or kernel[0] == 1


def _grid(x: Tensor) -> Any:
    batch, _, *spatial = x.shape
    return (ctypes.c_int64 * 4)(batch, *(1,) * (3 - len(spatial)), *spatial)


def _image(x: Tensor | None) -> tuple[int | None, int]:
    return _at(x), 0 if x is None else x.shape[1]


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
