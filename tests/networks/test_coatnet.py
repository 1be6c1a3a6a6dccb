"""CoAtNet against timm's, and inflated against itself.

The golden numbers are timm 1.0.31's: what `forward_intermediates` of `timm.create_model(
"coatnet_rmlp_nano_rw_224", in_chans=2, img_size=(64, 96))` gives with the weights of `fill` for
`drawn(1, 2, 64, 96)`, in evaluation.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_networks import (
    CUBIC,
    KEPT_PLANES,
    THICK,
    described,
    difference_from_flat,
    fill,
    first,
    largest_difference,
    running,
    shapes,
)
from known_networks import drawn
from torch import nn

from nnseg.model.counts.coatnet import COATNET_RMLP_NANO
from nnseg.networks.coatnet import coatnet_rmlp_nano_rw_224, relative_positions
from nnseg.networks.inflation import Levels, flat_levels

NAME = "coatnet_rmlp_nano_rw_224"
PARAMETERS = 15_145_116 - 32 * 3 * 3 - 2 * 512 - 513 * 1000  # timm's less a channel and the head
GOLDEN = [
    [-0.0331653, 0.663107, -0.028764],
    [0.0223753, 0.564854, 0.00580059],
    [-0.0494229, 0.606887, -0.0152668],
    [0.0622438, 3.3946, 0.0228185],
    [-0.0742637, 3.9626, -0.0138048],
]
CPU = torch.device("cpu")


def filled(levels: Levels, channels: int = 2) -> Any:
    with torch.random.fork_rng(devices=[]):
        network = coatnet_rmlp_nano_rw_224(levels, channels)
    fill(network)
    return network.eval()


def test_maps_and_weights_are_those_of_timm() -> None:
    network = filled(flat_levels(6))
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS
    found = described(network, drawn(1, 2, 64, 96))
    for maps, expected in zip(found, GOLDEN, strict=True):
        assert maps == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (160, 32)])
@torch.no_grad()
def test_every_map_equals_the_one_that_timm_made_for_the_size_gives(
    size: tuple[int, int], training: bool
) -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(NAME, in_chans=2, img_size=size).train(training)
    for part in theirs.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0  # ours has none
    fill(theirs)
    ours, image = filled(flat_levels(6)).train(training), drawn(2, 2, *size)
    expected = theirs.forward_intermediates(image, intermediates_only=True)
    assert largest_difference(ours(image), expected) < 1e-5
    known = running(theirs)
    pairs = [(found, known[name]) for name, found in running(ours).items()]
    assert max(float((a - b).abs().max()) for a, b in pairs) < 1e-5


def test_every_name_and_shape_is_that_of_timm() -> None:
    timm = pytest.importorskip("timm")
    named = shapes(timm.create_model(NAME, in_chans=5))
    ours = coatnet_rmlp_nano_rw_224(flat_levels(6), 5)
    assert shapes(ours) == {
        name: shape for name, shape in named.items() if not name.startswith(ours.classifier)
    }


@pytest.mark.parametrize("count", [3, 4, 5, 6])
@torch.no_grad()
def test_fewer_levels_make_the_first_stages_alone(count: int) -> None:
    network = coatnet_rmlp_nano_rw_224(flat_levels(count), 1).eval()
    maps = network(drawn(1, 1, 32, 64))
    assert len(network.stages) == count - 2
    assert tuple(x.shape[1] for x in maps) == COATNET_RMLP_NANO.features[: count - 1]
    sizes = [(32 // 2**level, 64 // 2**level) for level in range(1, count)]
    assert [tuple(x.shape[2:]) for x in maps] == sizes


@pytest.mark.parametrize(
    ("levels", "count"),
    [(CUBIC, 5), (THICK, 6), (KEPT_PLANES, 5)],
    ids=["cubic", "thick", "kept"],
)
def test_inflated_it_equals_itself_where_an_image_is_constant_along_z(
    levels: Levels, count: int
) -> None:
    assert difference_from_flat(coatnet_rmlp_nano_rw_224, first(levels, count)) < 1e-9


def test_inflated_it_equals_itself_in_training_too() -> None:
    levels = first(THICK, 5)
    assert difference_from_flat(coatnet_rmlp_nano_rw_224, levels, training=True) < 1e-9


@torch.no_grad()
def test_in_3d_planes_can_count_differently() -> None:
    with torch.random.fork_rng(devices=[]):
        stage = coatnet_rmlp_nano_rw_224(first(THICK, 5), 2).stages[2]
    bias = stage.blocks[1].attn.rel_pos
    fill(bias)
    found = bias(relative_positions((3, 2, 4), CPU)).reshape(8, 3, 2, 4, 3, 2, 4)
    same, above, below = (found[:, 1, 0, 1, z, 0, 1] for z in (1, 0, 2))
    assert float((same - above).abs().min()) > 1e-3
    assert float((below - above).abs().min()) > 1e-3


@torch.no_grad()
def test_weights_of_convolutions_begin_by_their_outputs_and_those_of_attention_by_xavier() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = coatnet_rmlp_nano_rw_224(flat_levels(5), 3)
    expected = {
        "stem.conv2": 2 / (9 * 64),
        "stages.0.blocks.1.conv2_kxk": 2 / 9,
        "stages.2.blocks.1.attn.qkv": 2 / (256 + 768),
        "stages.2.blocks.1.attn.rel_pos.mlp.fc2": 2 / (384 + 8),
    }
    for name, variance in expected.items():
        deviation = float(network.get_parameter(f"{name}.weight").std())
        assert deviation == pytest.approx(math.sqrt(variance), rel=0.05)
    assert float(network.get_parameter("stages.2.blocks.1.mlp.fc1.bias").abs().max()) == 0


def test_offsets_are_logarithms_of_the_voxels_from_the_one_looked_at() -> None:
    number, offsets = relative_positions((2, 3), CPU)
    assert number.shape == (6, 6)
    looking, looked_at = (1, 0), (0, 2)  # y and x
    found = offsets[number[looking[0] * 3 + looking[1], looked_at[0] * 3 + looked_at[1]]]
    torch.testing.assert_close(found, torch.tensor([math.log(2), -math.log(3)]))
    assert sorted(set(number.flatten().tolist())) == list(range(3 * 5))


@torch.no_grad()
def test_an_offset_has_the_same_bias_in_patches_of_any_size() -> None:
    bias = filled(flat_levels(5)).stages[2].blocks[0].attn.rel_pos
    small = bias(relative_positions((2, 3), CPU)).reshape(4, 2, 3, 2, 3)
    large = bias(relative_positions((7, 4), CPU)).reshape(4, 7, 4, 7, 4)
    torch.testing.assert_close(small, large[:, 5:, 1:, 5:, 1:])
    assert float(small.std()) > 0.1


@torch.no_grad()
def test_each_voxel_gets_something_of_all_others() -> None:
    stage = filled(flat_levels(6)).stages[3]
    image = drawn(1, 256, 4, 8)
    changed = image.clone()
    changed[:, :, :2, :2] += drawn(1, 256, 2, 2)
    difference = (stage(changed) - stage(image)).abs().amax(dim=1)
    assert difference.shape == (1, 2, 4)
    assert float(difference.min()) > 1e-3


@torch.no_grad()
def test_attention_exports_to_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    stage = filled(flat_levels(6)).stages[3]
    image, path = drawn(2, 256, 4, 6), str(tmp_path / "stage.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated, and says so
        torch.onnx.export(stage, (image,), path, opset_version=17, dynamo=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    np.testing.assert_allclose(found, stage(image).numpy(), atol=1e-4)


def test_it_trains_on_one_patch_in_bf16_channels_last() -> None:
    levels = Levels(dimensions=3, depths=(3,) * 5, steps=(1, 1, 2, 2, 2))
    network = filled(levels).train().to(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        maps = network(drawn(1, 2, 16, 64, 32))
    torch.stack([x.float().square().mean() for x in maps]).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in network.parameters())
