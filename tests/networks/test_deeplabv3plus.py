"""DeepLabv3+ against segmentation-models-pytorch's parts, and against what the plan asks for.

The golden numbers are those of segmentation-models-pytorch 0.6.0: `smp_pyramid` below with the
weights of `weigh`, on the map of `drawn`.
"""

import copy
import math
import re
from typing import Any

import known_networks
import pytest
import torch
from kept import error_of_count
from known_networks import drawn, seeded, weigh, weighted
from torch import Tensor, nn

from nnseg.errors import PlanError
from nnseg.model.architecture import Architecture, NetworkOptions
from nnseg.model.counts.deeplab import DEEPLABV3PLUS, pyramid_rates, stage_widths
from nnseg.networks.deeplabv3plus import DeepLabV3Plus, Pyramid

MAP = (2, 8, 9, 13)
RESNET50 = 23_498_496  # parameters behind the stem, without the classifier


def cubic(
    dimensions: Any = 3, features: tuple[int, ...] = (4, 6, 8, 12, 16), **options: Any
) -> Architecture:
    """An architecture as the paper has it, but for its widths and number of levels."""
    return known_networks.cubic(
        "deeplabv3plus", dimensions, features, DEEPLABV3PLUS.encoder_blocks, (2,) * 4, **options
    )


def thick(**options: Any) -> Architecture:
    """An architecture of a plan whose slices are thick."""
    return Architecture(
        network="deeplabv3plus",
        dimensions=3,
        features=(4, 6, 8, 12, 16),
        kernel_sizes=((1, 3, 3), (1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 1, 2), (2, 2, 2)),
        encoder_blocks=(1, 2, 1, 2, 1),
        decoder_blocks=(1, 1, 1, 1),
        options=NetworkOptions(**options),
    )


def built(architecture: Architecture, channels: int = 2, heads: int = 3) -> Any:
    return seeded(DeepLabV3Plus, architecture, channels, heads).eval()


def pyramid(rates: tuple[int, int, int]) -> Any:
    return weighted(Pyramid(MAP[1], (3, 3), rates, norm="batch", dropout=0.0)).eval()


def smp_pyramid(rates: tuple[int, int, int]) -> nn.Module:
    """Theirs with the same weights; the norm of the mean does nothing but add our bias."""
    module = pytest.importorskip("segmentation_models_pytorch.decoders.deeplabv3.decoder")
    network = module.ASPP(MAP[1], 256, rates, separable=True, dropout=0.0)

    def our_name(name: str) -> str:
        name = re.sub(r"^convs\.0\.0", "branches.0.conv", name)
        name = re.sub(r"^convs\.0\.1", "branches.0.norm", name)
        name = re.sub(r"^convs\.([123])\.0\.0", r"branches.\1.depthwise", name)
        name = re.sub(r"^convs\.([123])\.0\.1", r"branches.\1.pointwise.conv", name)
        name = re.sub(r"^convs\.([123])\.1", r"branches.\1.pointwise.norm", name)
        name = re.sub(r"^convs\.4\.1", "whole.conv", name)
        name = re.sub(r"^project\.0", "project.conv", name)
        return re.sub(r"^project\.1", "project.norm", name)

    weighted(network, lambda name, shape: weigh(our_name(name), shape))
    norm = network.convs[4][2]
    norm.running_mean.zero_()
    norm.running_var.fill_(1)
    with torch.no_grad():
        norm.weight.fill_(math.sqrt(1 + norm.eps))
        norm.bias.copy_(weigh("whole.conv.bias", (256,)))
    return network.eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize("rates", [(6, 12, 18), (1, 2, 3)])
@torch.no_grad()
def test_the_pyramid_gives_what_theirs_gives_with_the_same_weights(rates: Any) -> None:
    expected = smp_pyramid(rates)(drawn(*MAP))
    torch.testing.assert_close(pyramid(rates)(drawn(*MAP)), expected, atol=1e-5, rtol=1e-5)


def described(x: Tensor) -> list[float]:
    """A mean, a deviation and the last value."""
    return [float(x.mean()), float(x.std()), float(x.flatten()[-1])]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [((6, 12, 18), [0.16051, 0.24882, 0.0]), ((1, 2, 3), [0.23834, 0.36093, 0.19309])],
)
@torch.no_grad()
def test_the_pyramid_gives_what_theirs_gave(rates: Any, expected: list[float]) -> None:
    assert described(pyramid(rates)(drawn(*MAP))) == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_the_stages_give_what_those_of_a_dilated_resnet50_give_with_the_same_weights() -> None:
    encoders = pytest.importorskip("segmentation_models_pytorch.encoders")
    theirs = encoders.get_encoder("resnet50", weights=None, output_stride=16)
    ours = DeepLabV3Plus(cubic(2, DEEPLABV3PLUS.features(5, 2)), 1, 2).stages
    weighted(ours).eval()
    names = {"1": "reduce", "2": "middle", "3": "expand"}

    def our_name(name: str) -> str:
        stage, block, rest = name.split(".", maxsplit=2)
        if found := re.match(r"(conv|bn)([123])(.*)", rest):
            part = {"conv": ".conv", "bn": ".norm"}[found[1]]
            if found[2] == "2":
                part = {"conv": ".0", "bn": ".1"}[found[1]]
            rest = names[found[2]] + part + found[3]
        rest = re.sub(r"^downsample\.0", "project.conv", rest)
        rest = re.sub(r"^downsample\.1", "project.norm", rest)
        return f"{int(stage.removeprefix('layer')) - 1}.{block}.{rest}"

    x = y = drawn(1, 64, 16, 24)
    for number, stage in enumerate(ours, start=1):
        layer = getattr(theirs, f"layer{number}")
        known = weighted(
            layer, lambda name, shape, n=number: weigh(our_name(f"layer{n}.{name}"), shape)
        )
        x, y = stage(x), known.eval()(y)
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


def test_in_2d_the_stages_have_the_parameters_of_resnet50() -> None:
    with torch.device("meta"):
        network = DeepLabV3Plus(cubic(2, DEEPLABV3PLUS.features(5, 2)), 1, 2)
    assert sum(weight.numel() for weight in network.stages.parameters()) == RESNET50


def test_widths_are_resnet50s_in_2d_and_half_of_them_in_3d() -> None:
    assert DEEPLABV3PLUS.features(5, 2) == (32, 64, 256, 512, 2048)
    assert DEEPLABV3PLUS.features(5, 3) == (16, 32, 128, 256, 1024)
    assert DEEPLABV3PLUS.features(3, 2) == (32, 64, 512)
    assert stage_widths(cubic(2, DEEPLABV3PLUS.features(5, 2))) == (256, 512, 1024, 2048)
    assert stage_widths(cubic(2, DEEPLABV3PLUS.features(3, 2))) == (256, 512)


def test_rates_shrink_with_the_maps() -> None:
    assert pyramid_rates(cubic(2)) == (6, 12, 18)
    assert pyramid_rates(cubic(3)) == (2, 4, 6)
    assert pyramid_rates(cubic(2, (4, 6, 8, 12))) == (1, 2, 3)


@torch.no_grad()
def test_the_encoder_stops_at_a_sixteenth_and_its_last_stage_is_dilated_instead() -> None:
    network = built(cubic(2))
    shapes = []
    for stage in network.stages:
        stage.register_forward_hook(lambda _, __, found: shapes.append(tuple(found.shape)))
    network(drawn(1, 2, 1, 32, 48))
    assert shapes == [(1, 8, 8, 12), (1, 12, 4, 6), (1, 8, 2, 3), (1, 16, 2, 3)]
    dilations = [{block.middle[0].dilation for block in stage} for stage in network.stages]
    assert dilations == [{(1, 1)}, {(1, 1)}, {(1, 1)}, {(2, 2)}]
    assert [len(stage) for stage in network.stages] == [3, 4, 6, 3]


@torch.no_grad()
def test_each_branch_of_the_pyramid_sees_as_far_as_its_rate_and_the_last_everything() -> None:
    module = pyramid((1, 2, 3))
    plane, changed = drawn(1, 8, 9, 13), drawn(1, 8, 9, 13)
    changed[..., 4, 6] += 10
    for rate, branch in enumerate(module.branches):
        differs = (branch(plane) != branch(changed)).any(dim=1)[0].nonzero()
        assert (differs.min(dim=0).values.tolist(), differs.max(dim=0).values.tolist()) == (
            [4 - rate, 6 - rate],
            [4 + rate, 6 + rate],
        )
        assert len(differs) == (1 if rate == 0 else 9)
    assert bool((module(plane) != module(changed)).any(dim=1).all())


@torch.no_grad()
def test_low_level_features_come_from_a_quarter_of_the_resolution_in_48_channels() -> None:
    network = built(cubic(2))
    shapes = []
    for part in (network.reduce, network.up, network.decoder, network.heads[0]):
        part.register_forward_hook(lambda _, __, found: shapes.append(tuple(found.shape)))
    (logits,) = network(drawn(1, 2, 1, 32, 48))
    assert sorted(shapes) == [(1, 3, 8, 12), (1, 48, 8, 12), (1, 256, 8, 12), (1, 256, 8, 12)]
    assert logits.shape == (1, 3, 1, 32, 48)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        (cubic(3), (1, 2, 16, 32, 48)),
        (thick(), (2, 2, 4, 16, 48)),
        (cubic(3, (4, 6, 8)), (1, 2, 8, 4, 12)),
        (thick(upsampling="transposed"), (1, 2, 4, 16, 48)),
        (thick(upsampling="interpolated"), (1, 2, 4, 16, 48)),
        (thick(upsampling="shuffled"), (1, 2, 4, 16, 48)),
    ],
)
@torch.inference_mode()
def test_logits_have_the_shape_of_the_image(
    architecture: Architecture, shape: tuple[int, ...]
) -> None:
    (logits,) = built(architecture)(drawn(*shape), 1)
    assert tuple(logits.shape) == (shape[0], 3, *shape[2:])


def test_kernels_strides_and_numbers_of_blocks_are_the_plans() -> None:
    network = built(thick())
    stem = [part for part in network.stem if hasattr(part, "conv")]
    assert [block.conv.out_channels for block in stem] == [4, 6, 6]
    assert [block.conv.stride for block in stem] == [(1, 2, 2), (1, 1, 1), (1, 1, 1)]
    assert network.stem[-1].stride == (1, 2, 2)
    assert network.stem[-1].kernel_size == (1, 3, 3)
    assert [len(stage) for stage in network.stages] == [1, 2, 1, 3]
    first = [stage[0].middle[0] for stage in network.stages]
    assert [part.kernel_size for part in first] == [(1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)]
    assert [part.stride for part in first] == [(1, 1, 1), (2, 1, 2), (2, 2, 2), (1, 1, 1)]
    assert network.up[0].scale == (4, 2, 4)
    assert network.enlarge.scale == (1, 4, 4)


@torch.no_grad()
def test_a_bottleneck_at_first_only_hands_its_input_on() -> None:
    block, x = built(cubic(2)).stages[0][1], drawn(1, 8, 5, 7).abs()
    assert torch.equal(block(x), x)


def test_two_levels_are_refused() -> None:
    with pytest.raises(PlanError, match="2 levels; deeplabv3plus needs at least 3"):
        built(cubic(2, (4, 6)))


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_it_trains_on_a_single_patch_in_bf16(norm: Any) -> None:
    network = built(thick(norm=norm, dropout=0.1)).train()
    network = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)
    is_batch = any(isinstance(part, nn.BatchNorm3d) for part in network.modules())
    assert is_batch == (norm == "batch")
    # No map is 2 voxels deep: there PyTorch 2.13 spoils such gradients of kernels on a CPU.
    with torch.autocast("cpu", torch.bfloat16):
        (logits,) = network(drawn(1, 2, 12, 32, 48))
    logits.float().square().mean().backward()
    assert all(weight.grad.isfinite().all() for weight in network.parameters())


def test_dropout_follows_the_pyramid_and_the_decoder_and_acts_in_training_only() -> None:
    network, image = built(thick(dropout=0.5)), drawn(1, 2, 8, 16, 48)
    assert sum(isinstance(part, nn.Dropout3d) for part in network.modules()) == 2
    assert torch.equal(network(image)[0], network(image)[0])
    network.train()
    assert not torch.equal(network(image)[0], network(image)[0])


@pytest.mark.parametrize(
    ("architecture", "patch"),
    [
        (cubic(3), (32, 32, 48)),
        (cubic(3), (64, 16, 32)),
        (cubic(2), (1, 128, 96)),
        (cubic(2), (1, 64, 160)),
        (cubic(2, (4, 6, 8)), (1, 32, 80)),
        (thick(norm="instance", dropout=0.1), (8, 48, 64)),
        (thick(upsampling="transposed"), (8, 48, 64)),
        (thick(upsampling="interpolated"), (8, 48, 64)),
        (thick(upsampling="shuffled"), (8, 48, 64)),
    ],
)
def test_what_training_keeps_is_counted(architecture: Architecture, patch: Any) -> None:
    assert abs(error_of_count(architecture, patch, 2, 3)) < 0.05
