"""Our CPU kernels against PyTorch in float64; skipped where the machine cannot run them."""

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nnseg.model import kernels
from nnseg.model.architecture import Architecture
from nnseg.model.blocks import ConvBlock, InstanceNorm, use_kernels
from nnseg.model.device import Execution
from nnseg.networks.build import build_network

EXACT = {"rtol": 0.0, "atol": 2e-3}  # of values near 1: bf16 has 8 bits
needs_kernels = pytest.mark.skipif(
    not kernels.available(), reason="no compiler, or a CPU without AVX512-BF16"
)


def drawn(*shape: int, seed: int = 7) -> Tensor:
    """Values that bf16 holds exactly."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.bfloat16().float()


def error(found: Tensor, expected: Tensor) -> float:
    return float(((found.double() - expected).norm() / expected.norm()).detach())


def gradients(y: Tensor, upstream: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, inputs, upstream.to(y.dtype))


@needs_kernels
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((4, 6, 8), (3, 3, 3)),
        ((3, 5, 7), (3, 3, 3)),  # odd: the last tile of every axis sticks out
        ((1, 2, 1), (3, 3, 3)),
        ((3, 6, 5), (1, 3, 3)),
        ((7, 6), (3, 3)),
        ((10, 14, 6), (3, 3, 3)),  # several blocks of tiles
    ],
)
@pytest.mark.parametrize("channels", [(32,), (64,), (32, 64)])
def test_a_convolution_and_its_gradients_are_those_of_pytorch(
    shape: tuple[int, ...], kernel: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    images = [drawn(2, count, *shape, seed=count).requires_grad_() for count in channels]
    weight = (drawn(32, sum(channels), *kernel) / (9 * sum(channels)) ** 0.5).requires_grad_()
    bias, upstream = drawn(32), drawn(2, 32, *shape, seed=1)

    y = kernels.convolve([image.bfloat16() for image in images], weight, bias)
    exact = [image.detach().double().requires_grad_() for image in (*images, weight)]
    conv = functional.conv3d if len(shape) == 3 else functional.conv2d
    padding = tuple(k // 2 for k in kernel)
    wanted = conv(torch.cat(exact[:-1], dim=1), exact[-1], bias.double(), padding=padding)

    assert y.dtype == torch.bfloat16
    assert error(y, wanted) < 0.01
    found = gradients(y, upstream, *images, weight)
    for mine, true in zip(found, gradients(wanted, upstream, *exact), strict=True):
        assert error(mine, true) < 0.012


@needs_kernels
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((4, 6, 8), (3, 3, 3)),
        ((3, 5, 7), (3, 3, 3)),
        ((1, 2, 1), (3, 3, 3)),
        ((3, 6, 5), (1, 3, 3)),
        ((7, 6), (3, 3)),
        ((10, 14, 6), (3, 3, 3)),
    ],
)
@pytest.mark.parametrize("channels", [(32,), (32, 64), (320,)])  # blocks of 24, 12 and 6 tiles
def test_a_prediction_in_fp32_is_convolved_in_fp32(
    shape: tuple[int, ...], kernel: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    images = [drawn(2, count, *shape, seed=count) * 1.001 for count in channels]  # no bf16 values
    weight = drawn(64, sum(channels), *kernel) * 1.001 / (9 * sum(channels)) ** 0.5
    bias = drawn(64)
    with torch.inference_mode():
        y = kernels.convolve(images, weight, bias)
        again = kernels.convolve(images, weight, bias, kernels.pack(images[0], weight))
    conv = functional.conv3d if len(shape) == 3 else functional.conv2d
    padding = tuple(k // 2 for k in kernel)
    whole = torch.cat(images, dim=1).double()
    wanted = conv(whole, weight.double(), bias.double(), padding=padding)
    assert y.dtype == torch.float32
    assert error(y, wanted) < 2e-6
    assert torch.equal(again, y)


@needs_kernels
@pytest.mark.parametrize(("mean", "most"), [(0.0, 1e-6), (100.0, 2e-5)])
@pytest.mark.parametrize(("slope", "shape"), [(0.01, (2, 32, 3, 5, 7)), (1.0, (1, 64, 15, 36))])
def test_a_prediction_in_fp32_is_normalized_in_fp32(
    slope: float, shape: tuple[int, ...], mean: float, most: float
) -> None:
    x = mean + drawn(*shape) * 1.001
    scale, shift = (1 + 0.1 * drawn(2, shape[1])).unbind()
    with torch.inference_mode():
        y = kernels.normalize(x, scale, shift, 1e-5, slope)
    whole = functional.instance_norm(x.double(), weight=scale.double(), bias=shift.double())
    assert y.dtype == torch.float32
    assert error(y, functional.leaky_relu(whole, slope)) < most


@needs_kernels
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_weights_may_lie_in_either_layout(layout: torch.memory_format) -> None:
    x, weight = drawn(1, 32, 4, 5, 6), drawn(64, 32, 3, 3, 3)
    y = kernels.convolve([x.bfloat16()], weight.contiguous(memory_format=layout), None)
    assert error(y, functional.conv3d(x.double(), weight.double(), padding=1)) < 0.01


@needs_kernels
def test_what_an_image_needs_no_gradient_of_is_left_out() -> None:
    x, weight = drawn(1, 32, 4, 5, 6), drawn(32, 32, 3, 3, 3).requires_grad_()
    kernels.convolve([x.bfloat16()], weight, None).float().sum().backward()
    assert x.grad is None
    assert weight.grad is not None


@needs_kernels
@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 3)])
@pytest.mark.parametrize("channels", [(32,), (32, 64)])
def test_wide_convolutions_leave_the_gradient_of_the_weights_to_pytorch(
    monkeypatch: pytest.MonkeyPatch, kernel: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    shape = (4, 5, 6)[: len(kernel)]
    images = [drawn(2, count, *shape, seed=count).bfloat16() for count in channels]
    weight = drawn(32, sum(channels), *kernel).requires_grad_()
    upstream, found = drawn(2, 32, *shape, seed=1), []
    for most in (kernels.MOST_WEIGHT_SUMS, 0):
        monkeypatch.setattr(kernels, "MOST_WEIGHT_SUMS", most)
        (gradient,) = gradients(kernels.convolve(images, weight, None), upstream, weight)
        assert gradient.dtype == torch.float32
        found.append(gradient.double())
    assert 0 < error(found[0], found[1]) < 0.012


@needs_kernels
def test_the_same_convolution_twice_gives_the_same_bits() -> None:
    x, weight = drawn(2, 32, 9, 10, 11).bfloat16(), drawn(32, 32, 3, 3, 3).requires_grad_()
    runs = []
    for _ in range(2):
        y = kernels.convolve([x], weight, None)
        runs.append((y, *gradients(y, drawn(2, 32, 9, 10, 11), weight)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@needs_kernels
@pytest.mark.parametrize("slope", [0.01, 1.0])
@pytest.mark.parametrize("shape", [(2, 32, 3, 5, 7), (40, 64, 5, 6), (1, 32, 13, 9, 11)])
def test_norm_and_activation_are_those_of_pytorch(slope: float, shape: tuple[int, ...]) -> None:
    x = (3 + 2 * drawn(*shape)).bfloat16().float().requires_grad_()
    scale, shift = (1 + 0.1 * drawn(2, shape[1])).unbind()
    scale.requires_grad_(), shift.requires_grad_()
    upstream = drawn(*shape, seed=1)

    y = kernels.normalize(x.bfloat16(), scale, shift, 1e-5, slope)
    exact = [each.detach().double().requires_grad_() for each in (x, scale, shift)]
    wanted = functional.leaky_relu(
        functional.instance_norm(exact[0], weight=exact[1], bias=exact[2]), slope
    )
    assert error(y, wanted) < 0.004
    found = gradients(y, upstream, x, scale, shift)
    for mine, true in zip(found, gradients(wanted, upstream, *exact), strict=True):
        assert error(mine, true) < 0.006


@needs_kernels
@pytest.mark.parametrize(("shape", "threads"), [((3, 32, 40, 9, 11), 1), ((1, 64, 40, 9, 11), 2)])
def test_a_small_variance_does_not_drown_in_a_large_mean(
    shape: tuple[int, ...], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x = (100 + 0.5 * drawn(*shape)).bfloat16().float().requires_grad_()
    ones, zeros, upstream = torch.ones(shape[1]), torch.zeros(shape[1]), drawn(*shape, seed=1)

    y = kernels.normalize(x.bfloat16(), ones, zeros, 1e-5, 1.0)
    exact = x.detach().double().requires_grad_()
    wanted = functional.instance_norm(exact)
    (found,), (true,) = gradients(y, upstream, x), gradients(wanted, upstream, exact)
    assert error(y, wanted) < 0.003
    assert error(found, true) < 0.006


@needs_kernels
def test_a_channel_that_is_constant_becomes_its_shift() -> None:
    x = torch.full((2, 32, 3, 4, 5), 7.0)
    y = kernels.normalize(x.bfloat16(), torch.ones(32), torch.full((32,), 0.5), 1e-5, 0.01)
    torch.testing.assert_close(y.float(), torch.full_like(x, 0.5), **EXACT)


@pytest.mark.parametrize(
    ("weight", "stride", "inputs", "taken"),
    [
        ((32, 64, 3, 3, 3), (1, 1, 1), (64,), True),
        ((32, 64, 3, 3, 3), (1, 1, 1), (32, 32), True),
        ((32, 64, 1, 3, 3), (1, 1, 1), (64,), True),
        ((32, 64, 3, 3), (1, 1), (64,), True),
        ((32, 64, 3, 3, 3), (1, 2, 2), (64,), False),
        ((32, 64, 3, 1, 3), (1, 1, 1), (64,), False),
        ((32, 64, 1, 1, 1), (1, 1, 1), (64,), False),
        ((32, 1, 3, 3, 3), (1, 1, 1), (1,), False),
        ((48, 64, 3, 3, 3), (1, 1, 1), (64,), False),
        ((32, 64, 3, 3, 3), (1, 1, 1), (48, 16), False),
        ((320, 320, 3, 3, 3), (1, 1, 1), (320,), True),
        ((320, 352, 3, 3, 3), (1, 1, 1), (352,), False),
    ],
)
def test_only_convolutions_that_the_kernels_compute_and_win_are_taken(
    weight: tuple[int, ...], stride: tuple[int, ...], inputs: tuple[int, ...], taken: bool
) -> None:
    assert kernels.can_convolve(torch.empty(weight), stride, inputs) is taken


@needs_kernels
def test_layers_take_the_kernels_only_under_bf16_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("convolve", "normalize"):
        right = getattr(kernels, name)
        monkeypatch.setattr(
            kernels, name, lambda *a, name=name, right=right: (calls.append(name), right(*a))[1]
        )
    block, x = ConvBlock(32, 32, (3, 3, 3)), drawn(1, 32, 4, 5, 6)
    use_kernels(block, True)
    block(x)
    assert calls == []
    with torch.autocast("cpu", torch.bfloat16):
        block(x)
        assert calls == ["convolve", "normalize"]
        use_kernels(block, False)
        block(x)
        InstanceNorm(32)(x)
    assert len(calls) == 2


@needs_kernels
def test_layers_take_the_kernels_in_fp32_only_where_nothing_is_differentiated() -> None:
    block, x = ConvBlock(32, 32, (3, 3, 3)), drawn(1, 32, 4, 5, 6)
    use_kernels(block, True)
    assert not kernels.in_use(x)
    with torch.no_grad():
        assert not kernels.in_use(x)
        wanted = block(x)
    with torch.inference_mode():
        assert kernels.in_use(x)
        assert not kernels.in_use(x.double())
        found = block(x)
    assert not torch.equal(found, wanted)  # other sums
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_constant_weights_are_transformed_once(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    calls: list[str] = []
    right = kernels.pack
    monkeypatch.setattr(kernels, "pack", lambda *a: (calls.append("pack"), right(*a))[1])
    execution = Execution(device="cpu", precision=precision, own_kernels=True)
    changing = ConvBlock(32, 32, (3, 3, 3))
    constant = ConvBlock(32, 32, (3, 3, 3))
    constant.load_state_dict(changing.state_dict())
    changing = execution.place(changing, 3)
    constant = execution.place(constant, 3, constant=True)
    x = drawn(1, 32, 4, 5, 6)
    with torch.inference_mode(), execution.autocast():
        wanted = [changing(x) for _ in range(3)]
        assert len(calls) == 3
        found = [constant(x) for _ in range(3)]
    assert len(calls) == 4
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@needs_kernels
def test_a_network_learns_the_same_on_the_kernels() -> None:
    architecture = Architecture(
        network="plain",
        dimensions=3,
        features=(32, 64),
        kernel_sizes=((1, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2)),
        encoder_blocks=(2, 2),
        decoder_blocks=(2,),
    )
    x, upstream = drawn(2, 1, 3, 8, 6), drawn(2, 2, 3, 8, 6, seed=1)
    results = []
    for own, precision in ((True, "bf16"), (False, "bf16"), (False, "fp32")):
        execution = Execution(device="cpu", precision=precision, own_kernels=own)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = execution.place(build_network(architecture, 1, 2), 3)
        with execution.autocast():
            (y,) = network(x)
        (y.float() * upstream).sum().backward()
        found = torch.cat([p.grad.flatten() for p in network.parameters() if p.ndim > 1])
        results.append((y.detach().double(), found.double()))
    own, plain, exact = results
    for part in range(2):
        assert error(own[part], exact[part]) < 2.5 * error(plain[part], exact[part])


@pytest.fixture
def uncompiled() -> Iterator[None]:
    kernels.library.cache_clear()
    yield
    kernels.library.cache_clear()


@pytest.mark.usefixtures("uncompiled")
def test_without_a_compiler_the_log_says_so_and_nothing_is_available(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    with caplog.at_level(logging.INFO, logger="nnseg"):
        assert not kernels.available()
    assert caplog.messages == [
        "no C++ compiler (g++, clang++, c++): PyTorch's own kernels are used"
    ]


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "failure",
    [
        subprocess.CalledProcessError(1, ["g++"], stderr="error: unknown -mavx512bf16\nmore"),
        subprocess.TimeoutExpired(["g++"], 120),
        OSError("no room"),
    ],
)
def test_a_compiler_that_fails_leaves_pytorchs_kernels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    def fails(*args: Any, **options: Any) -> Any:
        raise failure

    monkeypatch.setattr(kernels.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(kernels.subprocess, "run", fails)
    with caplog.at_level(logging.INFO, logger="nnseg"):
        assert not kernels.available()
    assert caplog.text.count("the CPU kernels do not compile") == 1


@pytest.fixture
def compilations(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uncompiled: None
) -> Iterator[list[Any]]:
    """The calls of a compiler, of a user whose home is empty."""
    calls: list[Any] = []
    run = subprocess.run

    def watched(command: Any, **options: Any) -> Any:
        if "-o" in command:
            calls.append(command)
        return run(command, **options)

    monkeypatch.setattr(kernels.subprocess, "run", watched)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    (tmp_path / "home").mkdir()
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(kernels.tempfile, "tempdir", str(tmp_path / "scratch"))
    yield calls
    assert list((tmp_path / "scratch").iterdir()) == []


def again() -> bool:
    kernels.library.cache_clear()
    return kernels.available()


@needs_kernels
def test_what_was_compiled_is_kept_for_the_next_process(
    compilations: list[Any], tmp_path: Path
) -> None:
    assert again()
    (kept,) = (tmp_path / "home" / ".cache" / "nnseg").iterdir()
    assert again()
    assert len(compilations) == 1
    assert kept.parent.stat().st_mode & 0o077 == 0


@needs_kernels
def test_kernels_that_others_could_have_written_are_not_loaded(
    compilations: list[Any], tmp_path: Path
) -> None:
    assert again()
    folder = tmp_path / "home" / ".cache" / "nnseg"
    (kept,) = folder.iterdir()
    for path, mode in ((kept, 0o666), (folder, 0o777)):
        before = path.stat().st_mode
        path.chmod(mode)
        assert again()
        path.chmod(before)
    assert len(compilations) == 3
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")  # damaged, or another's
    assert again()
    assert len(compilations) == 4


@needs_kernels
def test_a_home_that_takes_nothing_costs_the_time_of_compiling(
    compilations: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / ".cache").write_text("no folder")
    assert again()
    assert again()
    assert len(compilations) == 2

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert again()
    assert len(compilations) == 3
