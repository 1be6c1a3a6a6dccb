"""MedNeXt against the code of its paper, as MONAI has it, and against what the plan asks for.

The golden numbers are MONAI 1.6.1's: `monai_mednext` below with the weights of `weigh`, on the
image of `drawn`.
"""

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import known_networks
import numpy as np
import pytest
import torch
from kept import error_of_count
from known_networks import drawn, seeded, weighted
from torch import Tensor, nn

from nnseg.model.architecture import Architecture, NetworkOptions
from nnseg.model.counts.mednext import (
    MEDNEXT_B,
    MEDNEXT_L,
    MEDNEXT_M,
    MEDNEXT_S,
    expansion,
    weights,
)
from nnseg.model.kind import NetworkKind
from nnseg.networks.mednext import MedNeXt, Parts, up_block

KINDS = {
    "mednext_s": MEDNEXT_S,
    "mednext_b": MEDNEXT_B,
    "mednext_m": MEDNEXT_M,
    "mednext_l": MEDNEXT_L,
}
THICK = ((1, 3, 3), (1, 3, 3), (3, 3, 3))  # kernels of a plan whose slices are thick
THICK_STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 1))


# A mean, a deviation and the last value of each output, full resolution first.
GOLDEN = {
    ("mednext_s", 3): [
        [0.22241, 1.31159, 1.36988],
        [-0.10517, 1.04619, 0.98233],
        [0.02933, 1.65628, -0.07442],
        [-0.10654, 1.0304, 2.21359],
        [0.28984, 0.96372, 0.83106],
    ],
    ("mednext_b", 2): [
        [0.21541, 1.25516, -1.93523],
        [-0.0352, 0.84948, 0.55616],
        [0.16959, 1.0424, -0.46012],
        [0.15997, 0.98872, 0.55482],
        [0.04027, 0.61538, 0.69641],
    ],
    ("mednext_m", 3): [
        [0.11404, 1.3574, 0.79867],
        [-0.09574, 0.99479, -0.34578],
        [0.51413, 1.33863, -0.38893],
        [0.23927, 1.15883, -1.45421],
        [-0.14824, 0.84096, 0.56903],
    ],
    ("mednext_l", 2): [
        [0.15311, 1.20406, -0.90294],
        [-0.15982, 0.83833, 0.49623],
        [-0.3713, 1.30968, -1.46928],
        [0.15065, 1.09213, -0.11658],
        [0.19349, 0.81663, -1.46784],
    ],
}


def by_level(blocks: tuple[int, ...], levels: int) -> tuple[int, ...]:
    return tuple(blocks[min(level, len(blocks) - 1)] for level in range(levels))


def cubic(network: str, dimensions: Any = 3, first: int = 4, levels: int = 5) -> Architecture:
    """An architecture as the paper has it, but for its first width and number of levels."""
    kind: NetworkKind = KINDS[network]
    features = tuple(first * 2**level for level in range(levels))
    encoder = by_level(kind.encoder_blocks, levels)
    decoder = by_level(kind.decoder_blocks, levels - 1)
    return known_networks.cubic(network, dimensions, features, encoder, decoder)


def thick(**options: Any) -> Architecture:
    return Architecture(
        network="mednext_b",
        dimensions=3,
        features=(4, 8, 16),
        kernel_sizes=THICK,
        strides=THICK_STRIDES,
        encoder_blocks=(2, 1, 2),
        decoder_blocks=(1, 2),
        options=NetworkOptions(**options),
    )


def built(architecture: Architecture, channels: int = 2, heads: int = 3) -> Any:
    return seeded(MedNeXt, architecture, channels, heads).eval()


def weigh(name: str, shape: Sequence[int]) -> Tensor:
    """Weights of our parameter of this name; a depthwise one adds up its kernel alone."""
    if len(shape) == 1:
        return known_networks.weigh(name, shape)
    inputs = math.prod(shape[2:]) if shape[1] == 1 else max(shape[:2])
    return known_networks.weigh(name, shape, inputs)


def our_name(name: str, deepest: int) -> str:
    """Give our name of a parameter of MONAI's network."""
    up = {f"{number}": f"{deepest - 1 - number}" for number in range(deepest)}
    head = {f"{number}": f"{deepest - number}" for number in range(deepest)}
    layers = {"conv1": "depthwise", "conv2": "expand", "conv3": "compress", "res_conv": "shortcut"}
    name = re.sub(r"^enc_stages", "encoder", name)
    name = re.sub(r"^bottleneck", f"encoder.{deepest}", name)
    name = re.sub(r"^down_blocks", "down", name)
    name = re.sub(r"^up_blocks\.(\d)", lambda found: f"up.{up[found[1]]}.0", name)
    name = re.sub(r"^dec_stages\.(\d)", lambda found: f"decoder.{up[found[1]]}", name)
    name = re.sub(r"^out_0\.conv_out", "heads.0", name)
    name = re.sub(r"^out_blocks\.(\d)\.conv_out", lambda found: f"heads.{head[found[1]]}", name)
    return re.sub(r"(conv[123]|res_conv)(?=\.\w+$)", lambda found: layers[found[1]], name)


def monai_mednext(architecture: Architecture, channels: int = 2, heads: int = 3) -> nn.Module:
    """MONAI's network of the record, its blocks down with the ratios of the paper's code.

    MONAI's own blocks down have the ratio of the level that they come from.
    """
    nets = pytest.importorskip("monai.networks.nets.mednext")
    parts = pytest.importorskip("monai.networks.blocks.mednext_block")
    ratios = [expansion(architecture.network, level) for level in range(architecture.levels)]
    dimensions, widths = architecture.dimensions, architecture.features
    network = nets.MedNeXt(
        spatial_dims=dimensions,
        init_filters=widths[0],
        in_channels=channels,
        out_channels=heads,
        encoder_expansion_ratio=ratios[:-1],
        decoder_expansion_ratio=ratios[-2::-1],
        bottleneck_expansion_ratio=ratios[-1],
        kernel_size=3,
        deep_supervision=True,
        use_residual_connection=True,
        blocks_down=architecture.encoder_blocks[:-1],
        blocks_bottleneck=architecture.encoder_blocks[-1],
        blocks_up=architecture.decoder_blocks[::-1],
    )
    for level, ratio in enumerate(ratios[1:]):
        network.down_blocks[level] = parts.MedNeXtDownBlock(
            widths[level],
            widths[level + 1],
            expansion_ratio=ratio,
            kernel_size=3,
            use_residual_connection=True,
            dim=f"{dimensions}d",
        )
    deepest = architecture.levels - 1
    weighted(network, lambda name, shape: weigh(our_name(name, deepest), shape))
    network.train()  # it gives all outputs only so, and has nothing else that differs
    return network  # type: ignore[no-any-return]


def image_of(architecture: Architecture) -> Tensor:
    return drawn(1, 2, 16, 32, 48) if architecture.dimensions == 3 else drawn(2, 2, 1, 32, 48)


@pytest.mark.parametrize("network", KINDS)
@pytest.mark.parametrize("dimensions", [2, 3])
@torch.no_grad()
def test_all_outputs_are_those_of_monais_network_with_the_same_weights(
    network: str, dimensions: int
) -> None:
    architecture = cubic(network, dimensions)
    image = image_of(architecture)
    expected = monai_mednext(architecture)(image if dimensions == 3 else image.squeeze(2))
    for ours, theirs in zip(weighted(built(architecture), weigh)(image, 5), expected, strict=True):
        found = ours if dimensions == 3 else ours.squeeze(2)
        torch.testing.assert_close(found, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("network", "dimensions"), GOLDEN)
@torch.no_grad()
def test_all_outputs_are_those_that_monais_network_gave(network: str, dimensions: int) -> None:
    architecture = cubic(network, dimensions)
    outputs = weighted(built(architecture), weigh)(image_of(architecture), 5)
    found = [[float(x.mean()), float(x.std()), float(x.flatten()[-1])] for x in outputs]
    np.testing.assert_allclose(found, GOLDEN[network, dimensions], atol=2e-5)


@pytest.mark.parametrize(
    ("network", "millions"),
    [("mednext_s", 5.6), ("mednext_b", 10.5), ("mednext_m", 17.6), ("mednext_l", 61.8)],
)
def test_each_size_has_the_parameters_of_the_papers_table(network: str, millions: float) -> None:
    with torch.device("meta"):
        whole = MedNeXt(cubic(network, 3, first=32), 1, 14)
    assert round(sum(p.numel() for p in whole.parameters()) / 1e6, 1) == millions


@torch.no_grad()
def test_outputs_have_the_shape_of_the_image_and_of_each_resolution_below() -> None:
    outputs = built(thick())(drawn(2, 2, 4, 12, 6), 3)
    shapes = [tuple(output.shape) for output in outputs]
    assert shapes == [(2, 3, 4, 12, 6), (2, 3, 4, 6, 3), (2, 3, 2, 3, 3)]


@torch.no_grad()
def test_a_network_of_one_level_is_stem_blocks_and_head() -> None:
    network = built(cubic("mednext_b", levels=1))
    (found,) = network(drawn(1, 2, 3, 5, 4))
    expected = network.heads[0](network.encoder[0](network.stem(drawn(1, 2, 3, 5, 4))))
    assert torch.equal(found, expected)


@torch.no_grad()
def test_only_the_heads_asked_for_are_computed_and_the_first_is_always_the_same() -> None:
    network, image = built(thick()), drawn(1, 2, 4, 12, 6)
    calls: list[int] = []
    for level, head in enumerate(network.heads):
        head.register_forward_hook(lambda *_, level=level: calls.append(level))
    (alone,) = network(image)
    assert calls == [0]
    assert torch.equal(network(image, 2)[0], alone)
    assert calls == [0, 1, 0]


@pytest.mark.parametrize("size", [1, 3])
@torch.no_grad()
def test_a_voxel_comes_to_lie_on_the_second_of_the_two_it_becomes_and_the_first_plane_is_empty(
    size: int,
) -> None:
    parts = Parts(kernel=(size, 3, 3), ratio=2, norm="instance", dropout=0.0)
    block = up_block(2, 1, (2, 1, 2), parts)
    for name, weight in block.named_parameters():
        weight.fill_(1.0 if name == "0.shortcut.weight" else 0.0)
    image = drawn(1, 2, 3, 4, 5)
    finer = block(image)
    assert finer.shape == (1, 1, 6, 4, 10)
    torch.testing.assert_close(finer[0, 0, 1::2, :, 1::2], image.sum(dim=(0, 1)))
    assert finer[:, :, ::2].abs().max() == finer[..., ::2].abs().max() == 0


def test_kernels_and_strides_are_the_plans_and_those_between_levels_the_finer_levels() -> None:
    network = built(thick())
    for level, kernel in enumerate(THICK):
        assert {block.depthwise.kernel_size for block in network.encoder[level]} == {kernel}
    for level, stride in enumerate(THICK_STRIDES[1:]):
        assert {block.depthwise.kernel_size for block in network.decoder[level]} == {THICK[level]}
        for block in (network.down[level], network.up[level][0]):
            assert block.depthwise.kernel_size == THICK[level]
            assert block.depthwise.stride == block.shortcut.stride == stride


def test_blocks_between_two_levels_expand_as_those_of_the_level_they_lead_to() -> None:
    network = built(cubic("mednext_l", levels=4))
    ratios = [(3, 3), (4, 4), (8, 8), (8, 8)]
    found = [ratio_of(blocks[0]) for blocks in network.encoder]
    assert found == [4 * 2**level * a for level, (a, _) in enumerate(ratios)]
    assert [ratio_of(block) for block in network.down] == [4 * 4, 8 * 8, 16 * 8]
    assert [ratio_of(block[0]) for block in network.up] == [8 * 3, 16 * 4, 32 * 8]


def ratio_of(block: Any) -> int:
    return int(block.expand.out_channels)


def test_a_plan_counts_as_many_blocks_as_the_paper_at_each_of_five_levels() -> None:
    found = {name: by_level(kind.encoder_blocks, 5) for name, kind in KINDS.items()}
    assert found["mednext_s"] == found["mednext_b"] == (2, 2, 2, 2, 2)
    assert found["mednext_m"] == (3, 4, 4, 4, 4)
    assert found["mednext_l"] == (3, 4, 8, 8, 8)
    assert MEDNEXT_L.features(5, 3) == (32, 64, 128, 256, 512)


def test_outputs_count_half_of_the_one_before_and_the_deepest_counts_too() -> None:
    found = weights(cubic("mednext_s"))
    assert len(found) == 5
    assert sum(found) == pytest.approx(1)
    assert [a / b for a, b in itertools.pairwise(found)] == pytest.approx([2] * 4)


@pytest.mark.parametrize("kind", ["transposed", "interpolated", "shuffled"])
@torch.no_grad()
def test_another_way_up_takes_the_place_of_the_papers_block(kind: Any) -> None:
    network = built(thick(upsampling=kind))
    assert not any(isinstance(part, nn.ConstantPad3d) for part in network.modules())
    outputs = network(drawn(1, 2, 4, 12, 6), 3)
    assert [tuple(output.shape[2:]) for output in outputs] == [(4, 12, 6), (4, 6, 3), (2, 3, 3)]


def test_batch_norm_is_there_when_asked_for_and_trains_on_a_single_patch_in_bf16() -> None:
    network = built(thick(norm="batch", dropout=0.5)).train()
    network = network.to(memory_format=torch.channels_last_3d)
    assert sum(isinstance(part, nn.BatchNorm3d) for part in network.modules()) == 5 + 3 + 2 + 2
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(drawn(1, 2, 4, 12, 6), 3)
    torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in network.parameters())


def test_dropout_drops_whole_channels_of_what_a_block_adds_in_training_only() -> None:
    torch.manual_seed(3)
    block = built(thick(dropout=0.5)).encoder[2][0]
    image = drawn(1, 16, 2, 3, 3)
    added = block.train()(image) - image
    dropped = added.flatten(2).abs().amax(dim=2)[0] == 0
    assert 0 < int(dropped.sum()) < 16
    assert (block.eval()(image) - image).flatten(2).abs().amax(dim=2).min() > 0


@pytest.mark.parametrize(
    ("architecture", "patch"),
    [
        (cubic("mednext_b", 3, first=8), (16, 32, 48)),
        (cubic("mednext_b", 3, first=8), (32, 16, 16)),
        (cubic("mednext_l", 2, first=8), (1, 64, 32)),
        (cubic("mednext_s", 2, first=8), (1, 32, 80)),
        (thick(), (4, 24, 16)),
        (thick(upsampling="interpolated"), (8, 12, 20)),
        (thick(upsampling="shuffled", norm="batch"), (8, 12, 20)),
        (cubic("mednext_m", 3, levels=1), (4, 5, 6)),
    ],
)
def test_what_training_keeps_is_counted(architecture: Architecture, patch: Any) -> None:
    assert abs(error_of_count(architecture, patch, 2, 3)) < 0.01


@pytest.mark.parametrize("network", KINDS)
def test_what_training_keeps_is_counted_at_the_papers_width(network: str) -> None:
    for dimensions, patch in ((3, (128, 96, 160)), (2, (1, 512, 384))):
        architecture = cubic(network, dimensions, first=32)
        assert abs(error_of_count(architecture, patch, 1, 2, device="meta")) < 0.005
