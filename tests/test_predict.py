import dataclasses
import math
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnseg import predict
from nnseg.axes import Shape
from nnseg.checkpoint import Checkpoint
from nnseg.dataset import DatasetSpec
from nnseg.errors import DataError, PlanError, StoppedError
from nnseg.fingerprint import Fingerprint
from nnseg.image.intensity import Intensity
from nnseg.labels import Labels
from nnseg.model import interruptible
from nnseg.model.architecture import Architecture
from nnseg.model.device import Execution
from nnseg.networks.build import build_network
from nnseg.plan import make_plan
from nnseg.predict import (
    OnTile,
    Sweep,
    bytes_of_sweep,
    count_tiles,
    load_network,
    mean_logits,
    mirror_combinations,
    stream_logits,
    tile_seconds,
)

CPU = Execution(device="cpu")
PATCH: Shape = (4, 6, 8)
SMALL = Architecture(
    network="plain",
    dimensions=3,
    features=(4, 6),
    kernel_sizes=((3, 3, 3),) * 2,
    strides=((1, 1, 1), (2, 2, 2)),
    encoder_blocks=(1, 1),
    decoder_blocks=(1,),
)


def predict_logits(
    networks: Sequence[nn.Module],
    image: NDArray[np.float32],
    patch_size: Shape,
    execution: Execution,
    step: float = 0.5,
    on_tile: OnTile | None = None,
    **how: Any,
) -> NDArray[np.float32]:
    """All logits at once, (head, z, y, x)."""
    sweep = Sweep(step=step, on_tile=on_tile)
    runs = stream_logits(networks, image, patch_size, execution, sweep=sweep, **how)
    return np.moveaxis(np.concatenate(list(runs)), -1, 0)


class Constant(nn.Module):
    """Gives one value to a head, whatever it sees."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = torch.tensor(values)

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        shape = (len(image), len(self.values), *image.shape[2:])
        return [self.values[:, None, None, None].expand(shape)]


class Pointwise(nn.Module):
    """Looks at every voxel by itself, so that tiles and mirrors cannot matter."""

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        return [torch.stack([image[:, 0], -2 * image[:, 0]], dim=1)]


class Ramp(nn.Module):
    """Gives each voxel its place in the tile, along z, y and x."""

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        places = torch.meshgrid(*(torch.arange(float(n)) for n in image.shape[2:]), indexing="ij")
        return [torch.stack(places).expand(len(image), 3, *image.shape[2:])]


def image_of(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def small_network(seed: int = 0, channels: int = 1) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(SMALL, channels, 2).eval()


@pytest.mark.parametrize("shape", [(4, 6, 8), (5, 13, 21), (2, 3, 4), (9, 3, 8)])
def test_a_constant_network_predicts_its_constant_everywhere(shape: Shape) -> None:
    logits = predict_logits([Constant(3, -1)], image_of(1, *shape), PATCH, CPU, mirror_axes=(0, 2))
    assert logits.shape == (2, *shape)
    assert logits.dtype == np.float32
    assert np.allclose(logits[0], 3, rtol=1e-6)
    assert np.allclose(logits[1], -1, rtol=1e-6)


@pytest.mark.parametrize("shape", [(5, 13, 21), (2, 3, 4), (3, 14, 8)])
def test_every_voxel_stays_in_its_place(shape: Shape) -> None:
    image = image_of(1, *shape)
    logits = predict_logits([Pointwise()], image, PATCH, CPU, mirror_axes=(0, 1, 2), step=0.3)
    assert np.allclose(logits[0], image[0], atol=1e-5)
    assert np.allclose(logits[1], -2 * image[0], atol=1e-5)


def test_a_smaller_image_is_padded_with_0_around_it() -> None:
    seen = []

    class Looks(Constant):
        def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
            seen.append(image[0, 0].clone())
            return super().forward(image, outputs)

    predict_logits([Looks(0.0)], np.full((1, 1, 6, 5), 7, np.float32), PATCH, CPU)
    expected = torch.zeros(PATCH)
    expected[1:2, :, 1:6] = 7  # 3 slices and 3 columns are added; the smaller half goes first
    assert len(seen) == 1
    assert torch.equal(seen[0], expected)


def test_overlapping_tiles_are_averaged_by_their_weights() -> None:
    logits = predict_logits([Ramp()], image_of(1, 4, 6, 12), PATCH, CPU)
    along = logits[2, 0, 0]  # tiles begin at x = 0 and 4
    weight = np.exp(-0.5 * (np.arange(8) - 4.0) ** 2)
    first, second = weight[4:], weight[:4]
    expected = (np.arange(4, 8) * first + np.arange(4) * second) / (first + second)
    assert along[:4].tolist() == [0, 1, 2, 3]
    assert along[8:].tolist() == [4, 5, 6, 7]
    assert along[4:8] == pytest.approx(expected, rel=0.02)


def test_mirrors_average_what_is_seen_the_other_way_round() -> None:
    logits = predict_logits([Ramp()], image_of(1, *PATCH), PATCH, CPU, mirror_axes=(0, 2))
    assert np.allclose(logits[0], 1.5)
    assert np.allclose(logits[2], 3.5)
    assert np.allclose(logits[1], np.arange(6)[None, :, None])


def test_with_all_mirrors_a_mirrored_image_gives_the_mirrored_prediction() -> None:
    network, image = small_network(), image_of(1, *PATCH)
    turned = np.ascontiguousarray(image[:, ::-1, :, ::-1])
    straight = predict_logits([network], image, PATCH, CPU, mirror_axes=(0, 1, 2))
    mirrored = predict_logits([network], turned, PATCH, CPU, mirror_axes=(0, 1, 2))
    assert np.allclose(mirrored[:, ::-1, :, ::-1], straight, atol=1e-5)
    without = predict_logits([network], turned, PATCH, CPU)
    assert not np.allclose(
        without[:, ::-1, :, ::-1], predict_logits([network], image, PATCH, CPU), atol=1e-3
    )


def test_the_logits_of_several_networks_are_averaged() -> None:
    networks = [Constant(3, 0), Constant(6, 1), Constant(0, 5)]
    logits = predict_logits(networks, image_of(1, 5, 9, 8), PATCH, CPU, mirror_axes=(1,))
    assert np.allclose(logits[0], 3, rtol=1e-6)
    assert np.allclose(logits[1], 2, rtol=1e-6)


@pytest.mark.parametrize("tiles", [1, 2, 5])
def test_how_many_tiles_are_computed_together_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, tiles: int
) -> None:
    network, image = small_network(), image_of(1, 6, 13, 15)
    at_once = predict_logits([network], image, PATCH, CPU)
    monkeypatch.setattr(predict, "BATCH_VOXELS", tiles * 4 * 6 * 8)
    assert np.allclose(predict_logits([network], image, PATCH, CPU), at_once, atol=1e-5)


def test_the_hook_hears_of_every_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "BATCH_VOXELS", 2 * 4 * 6 * 8)
    heard: list[tuple[int, int]] = []
    predict_logits(
        [Constant(1)],
        image_of(1, 4, 6, 20),
        PATCH,
        CPU,
        on_tile=lambda done, total: heard.append((done, total)),
    )
    assert heard == [(2, 4), (4, 4)]


def test_a_tile_is_timed_without_leaving_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "BATCH_VOXELS", 3 * math.prod(PATCH))
    network = nn.Conv3d(1, 1, 1)
    seen: list[tuple[int, ...]] = []

    class Watched(nn.Module):
        def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
            assert not self.training
            seen.append(tuple(image.shape))
            return [network(image)]

    watched = Watched().train()
    assert tile_seconds(watched, 1, PATCH, CPU, mirror_axes=(2,)) > 0
    assert watched.training
    assert seen == [(3, 1, *PATCH)] * 4  # as many as go at once, mirrored, and both again


@pytest.mark.parametrize(
    ("shape", "tiles"), [((4, 6, 8), 1), ((2, 2, 2), 1), ((5, 6, 8), 2), ((8, 12, 16), 27)]
)
def test_tiles_are_counted_without_an_image(shape: Shape, tiles: int) -> None:
    assert count_tiles(shape, PATCH) == tiles


def test_prediction_keeps_no_gradients() -> None:
    network = small_network()
    batch = torch.zeros(1, 1, *PATCH)
    with torch.inference_mode():
        assert mean_logits([network], batch, [()], CPU).is_inference()
    predict_logits([network], image_of(1, *PATCH), PATCH, CPU)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_step_over_a_whole_tile_is_refused() -> None:
    with pytest.raises(PlanError, match="tile step"):
        predict_logits([Constant(1)], image_of(1, 8, 9, 10), PATCH, CPU, step=1.5)


def test_mirror_combinations_are_all_subsets() -> None:
    assert len(mirror_combinations((0, 1, 2))) == 8
    assert mirror_combinations(()) == [()]


def test_bf16_gives_float32_logits_near_those_of_fp32() -> None:
    network, image = small_network(), image_of(1, 5, 9, 11)
    exact = predict_logits([network], image, PATCH, CPU)
    rough = predict_logits([network], image, PATCH, dataclasses.replace(CPU, precision="bf16"))
    assert rough.dtype == np.float32
    assert np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()


def test_a_loaded_network_has_the_weights_and_is_ready_to_predict() -> None:
    intensity = Intensity(
        mean=0.0, median=0.0, std=1.0, min=-3.0, max=3.0, percentile_00_5=-2.0, percentile_99_5=2.0
    )
    measured = Fingerprint(
        spacings=((2.0, 1.0, 1.5),),
        shapes=((16, 32, 24),),
        intensities=(intensity,) * 2,
        median_relative_size=1.0,
    )
    spec = DatasetSpec(
        channels=("T1", "T2"),
        labels=Labels(labels={"background": 0, "a": 1, "b": 2}),
        num_training=3,
        file_ending=".nii.gz",
    )
    plan = make_plan(spec, measured, dataset="Dataset001_Toy")
    planned = plan.configuration("3d_fullres")
    planned = dataclasses.replace(planned, architecture=SMALL)
    checkpoint = Checkpoint(
        plan=dataclasses.replace(plan, configurations={"3d_fullres": planned}),
        configuration_name="3d_fullres",
        fold="0",
        epoch=1,
        mirror_axes=(0, 1, 2),
        weights_file="weights",
        weights_sha256="",
    )
    weights = {key: tensor + 1 for key, tensor in build_network(SMALL, 2, 3).state_dict().items()}
    network = load_network(checkpoint, weights, CPU)
    assert not network.training
    assert all(torch.equal(tensor, weights[key]) for key, tensor in network.state_dict().items())
    key = next(iter(weights))
    weights[key] = weights[key][:, :1]
    with pytest.raises(DataError, match="weights: holds the weights of another network than its"):
        load_network(checkpoint, weights, CPU)


def test_planes_leave_as_soon_as_no_tile_reaches_them() -> None:
    image = image_of(1, 12, 6, 8)  # five tiles along z, two planes apart
    seen: list[int] = []
    left = []
    sweep = Sweep(on_tile=lambda done, total: seen.append(done))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "BATCH_VOXELS", 1)
        for planes in stream_logits([Pointwise()], image, PATCH, CPU, sweep=sweep):
            left.append((seen[-1], len(planes)))
    assert left == [(1, 2), (2, 2), (3, 2), (4, 2), (5, 4)]


def test_runs_of_planes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "RUN_BYTES", 3 * 6 * 8 * 2 * 4)
    runs = list(stream_logits([Pointwise()], image_of(1, 9, 6, 8), (9, 6, 8), CPU))
    assert [len(planes) for planes in runs] == [3, 3, 3]


def test_a_constant_tile_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "BATCH_VOXELS", 1)
    image = np.full((2, 4, 6, 32), 3, np.float32)
    image[1, :, :, 12:20] = image_of(4, 6, 8)  # of seven tiles the third to fifth see something
    network = small_network(channels=2)
    seen: list[Tensor] = []
    handle = network.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    found = predict_logits([network], image, PATCH, CPU)
    handle.remove()
    assert len(seen) == 1 + 3
    monkeypatch.setattr(predict, "_constant", lambda tile: None)
    np.testing.assert_array_equal(predict_logits([network], image, PATCH, CPU), found)


def test_tiles_that_differ_in_one_channel_only_are_not_taken_for_each_other() -> None:
    image = np.zeros((2, 4, 6, 24), np.float32)
    image[1, :, :, 12:] = 5
    network = small_network(channels=2)
    found = predict_logits([network], image, PATCH, CPU, step=1.0)
    alone = predict_logits([network], image[..., 16:], PATCH, CPU)
    np.testing.assert_allclose(found[..., 16:], alone, atol=1e-5)
    assert not np.allclose(found[..., :8], alone, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_spread_of_folds_is_the_variance_of_their_probabilities(precision: str) -> None:
    networks = [Constant(0, 0), Constant(0, math.log(3))]  # 1/2 and 1/2; 1/4 and 3/4
    execution = dataclasses.replace(CPU, precision=precision)
    softmax = partial(torch.softmax, dim=1)
    found = predict_logits(networks, image_of(1, 5, 9, 8), PATCH, execution, spread=softmax)
    assert found.shape == (3, 5, 9, 8)
    assert np.allclose(found[2], 2 * (1 / 8) ** 2, rtol=2e-3)
    alone = predict_logits(networks[:1], image_of(1, 5, 9, 8), PATCH, execution, spread=softmax)
    assert np.allclose(alone[2], 0, atol=1e-6)


def test_a_sweep_can_be_stopped_between_any_two_passes_of_a_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interruptible, "ASK_EVERY", math.inf)
    asked = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) == 6

    networks = [Constant(1), Constant(2)]
    with pytest.raises(StoppedError, match="nothing of it is kept"):
        list(
            stream_logits(
                networks,
                image_of(1, *PATCH),
                PATCH,
                CPU,
                mirror_axes=(0, 1),
                sweep=Sweep(stop=stop),
            )
        )
    assert len(asked) == 6  # of two networks with four mirrors each


def test_a_pass_of_a_network_can_be_stopped_between_its_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interruptible, "ASK_EVERY", 0)
    network, passed = small_network(), []
    for number, layer in enumerate(network.encoder):  # type: ignore[arg-type]
        layer.register_forward_hook(lambda *_, number=number: passed.append(number))
    sweep = Sweep(stop=lambda: bool(passed))
    with pytest.raises(StoppedError, match="nothing of it is kept"):
        list(stream_logits([network], image_of(1, *PATCH), PATCH, CPU, sweep=sweep))
    assert passed == [0]


def test_within_a_pass_nobody_is_asked_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for seconds in (0, math.inf):
        monkeypatch.setattr(interruptible, "ASK_EVERY", seconds)
        asked: list[bool] = []
        sweep = Sweep(stop=lambda: bool(asked.append(True)))  # noqa: B023
        batch = torch.zeros(1, 1, *PATCH)
        mean_logits([small_network()], batch, [(), (1,)], CPU, sweep=sweep)
        counts.append(len(asked))
    assert counts[0] > 20
    assert counts[1] == 2  # once a pass


def test_who_stops_a_prediction_stops_no_other_by_the_same_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interruptible, "ASK_EVERY", 0)
    network, image = small_network(), image_of(1, 4, 9, 8)
    alone, found = predict_logits([network], image, PATCH, CPU), []
    asked: list[bool] = []

    def predict_another() -> None:
        sweep = Sweep(stop=lambda: False)
        runs = stream_logits([network], image, PATCH, CPU, sweep=sweep)
        found.append(np.moveaxis(np.concatenate(list(runs)), -1, 0))

    def stop() -> bool:
        asked.append(True)
        if len(asked) < 9:  # it is within a pass then
            return False
        other = threading.Thread(target=predict_another)
        other.start()
        other.join()
        return True

    with pytest.raises(StoppedError):
        list(stream_logits([network], image, PATCH, CPU, sweep=Sweep(stop=stop)))
    np.testing.assert_allclose(found[0], alone, atol=1e-6)


def test_a_sweep_takes_no_more_for_a_longer_image_and_half_in_half_precision() -> None:
    a_pass, kept = bytes_of_sweep(SMALL, (4, 6, 8), PATCH, 2, CPU)
    assert bytes_of_sweep(SMALL, (99, 6, 8), PATCH, 2, CPU) == (a_pass, kept)
    assert bytes_of_sweep(SMALL, (4, 12, 8), PATCH, 2, CPU) == (a_pass, kept + 4 * 6 * 8 * 2 * 4)
    half = dataclasses.replace(CPU, precision="bf16")
    assert bytes_of_sweep(SMALL, (4, 6, 8), PATCH, 2, half)[0] == a_pass // 2


class Hungry(Pointwise):
    """Has memory for so many tiles at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        if len(image) > self.most or image.device.type == "meta":
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        return super().forward(image, outputs)


@pytest.mark.fault("R25")
def test_where_memory_is_short_fewer_tiles_are_computed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = image_of(1, 8, 12, 16)
    monkeypatch.setattr(predict, "BATCH_VOXELS", 9 * 4 * 6 * 8)
    found = predict_logits([Hungry(2)], image, PATCH, CPU)
    assert np.allclose(found[0], image[0], atol=1e-5)
    with pytest.raises(torch.OutOfMemoryError):
        predict_logits([Hungry(0)], image, PATCH, CPU)


@pytest.mark.fault("R25")
def test_what_a_gpu_has_no_memory_for_is_computed_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        Execution, "autocast", lambda self: nullcontext()
    )  # it knows no such device
    elsewhere = Execution(device="meta", precision="fp16")  # a device without any memory
    tile = torch.from_numpy(image_of(1, *PATCH))
    work = predict._Work([Hungry(9)], elsewhere, [()], None, predict.PLAIN_SWEEP, PATCH)
    (found,) = work.logits([tile])
    assert torch.equal(found[..., 0], tile[0])
    assert "meta has too little memory: going on on the CPU" in caplog.text


@pytest.mark.fault("R25")
def test_sums_move_to_the_cpu_where_a_gpu_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros, asked = torch.zeros, []

    def scarce(*shape: object, **how: Any) -> Tensor:
        if how.get("device") == torch.device("meta"):
            asked.append(how)
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        return zeros(*shape, **how)

    monkeypatch.setattr(torch, "zeros", scarce)
    sums = predict._Sums(PATCH, Execution(device="meta"))
    sums.add(torch.ones(*PATCH, 2), (0, 0, 0), [np.ones(n) for n in PATCH])
    (planes,) = sums.leave(4, [slice(0, n) for n in PATCH])
    assert len(asked) == 1
    assert planes.tolist() == np.ones((*PATCH, 2)).tolist()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("precision", "remedy"), [("fp32", "the model is damaged"), ("bf16", "use --precision fp32")]
)
def test_values_that_are_not_finite_become_no_labels(
    value: float, precision: str, remedy: str
) -> None:
    execution = Execution(device="cpu", precision=precision)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"not finite, computing in {precision}; {remedy}"):
        predict_logits([Constant(0, value)], image_of(1, 5, 13, 21), PATCH, execution)
