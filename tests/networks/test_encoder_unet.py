import copy
import dataclasses
import io
import sys
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kept import saved
from known_networks import drawn, seeded
from torch import Tensor, nn
from torch.nn import functional

from nnseg.errors import MachineError, PlanError
from nnseg.model.architecture import Architecture, NetworkOptions
from nnseg.model.blocks import InstanceNorm
from nnseg.model.counts.encoders import (
    BACKBONE_RECORDS,
    ENCODER_UNET,
    backbone_record,
    encoder_unet_kept,
)
from nnseg.networks.backbones import BACKBONES
from nnseg.networks.encoder_unet import ENCODER, EncoderUNet
from nnseg.networks.inflation import flat_levels
from nnseg.networks.layers import ConvNormAct
from nnseg.networks.timm_backbone import TimmBackbone

NAMES = list(BACKBONES)
UPSAMPLINGS: tuple[Any, ...] = (None, "interpolated", "shuffled")


def planned(
    dimensions: Any = 3, levels: int = 4, *, thick: bool = False, **options: Any
) -> Architecture:
    z = dimensions - 2
    return Architecture(
        network="encoder_unet",
        dimensions=dimensions,
        features=tuple(4 * 2**level for level in range(levels)),
        kernel_sizes=tuple((1 + 2 * z * (not thick or k > 1), 3, 3) for k in range(levels)),
        strides=((1, 1, 1), *((1 + z * (not thick or k > 1), 2, 2) for k in range(1, levels))),
        encoder_blocks=(1,) * levels,
        decoder_blocks=(2,) * (levels - 1),
        options=NetworkOptions(**options),
    )


def built(architecture: Architecture, channels: int = 2, device: str = "cpu") -> EncoderUNet:
    return seeded(EncoderUNet, architecture, channels, 3, device=device)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_count_of_what_is_kept_is_what_is_kept(name: str, dimensions: Any) -> None:
    for levels, thick, patches in (
        (6, False, [(64, 96, 128), (32, 128, 64)]),
        (4, True, [(16, 24, 40)]),
    ):
        architecture = dataclasses.replace(
            planned(dimensions, levels, thick=thick, backbone=name),
            features=ENCODER_UNET.features(levels, dimensions),
        )
        network = built(architecture, device="meta").train()
        for z, y, x in patches:
            patch = (z if dimensions == 3 else 1, y, x)
            found = saved(network, torch.zeros(1, 2, *patch, device="meta"), 1)
            counted = encoder_unet_kept(architecture, patch, 2)
            assert counted == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("options", [{}, {"norm": "batch", "dropout": 0.25}])
def test_the_count_holds_with_other_decoders(upsampling: Any, options: dict[str, Any]) -> None:
    architecture = planned(3, 4, upsampling=upsampling, **options)
    found = saved(
        built(architecture, device="meta").train(),
        torch.zeros(1, 2, 16, 24, 40, device="meta"),
        1,
    )
    assert encoder_unet_kept(architecture, (16, 24, 40), 2) == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_logits_have_the_shape_of_the_image(name: str) -> None:
    flat = built(planned(2, backbone=name), channels=1).eval()
    assert [tuple(x.shape) for x in flat(drawn(2, 1, 1, 16, 24))] == [(2, 3, 1, 16, 24)]
    deep = built(planned(3, thick=True, backbone=name)).eval()
    assert [tuple(x.shape) for x in deep(drawn(1, 2, 4, 16, 24))] == [(1, 3, 4, 16, 24)]


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_every_parameter_learns(upsampling: Any) -> None:
    network = built(planned(3, upsampling=upsampling, dropout=0.2)).train()
    network(drawn(1, 2, 8, 16, 24))[0][:, 0].square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None]
    assert silent == []


@torch.no_grad()
def test_each_level_joins_what_came_up_with_the_map_of_its_resolution() -> None:
    network, image = built(planned(2)).eval(), drawn(1, 2, 1, 16, 24)
    skips = network.encoder(image[:, :, 0])
    assert [tuple(x.shape[1:]) for x in skips] == [(64, 8, 12), (64, 4, 6), (128, 2, 3)]
    x = network.neck(skips[2])
    x = network.decoder[0](torch.cat((skips[1], network.up[0](x)), dim=1))
    x = network.decoder[1](torch.cat((skips[0], network.up[1](x)), dim=1))
    x = network.decoder[2](network.up[2](x))
    torch.testing.assert_close(network(image)[0][:, :, 0], network.heads[0](x))


def test_a_level_without_a_map_is_decoded_from_below_alone() -> None:
    network = built(planned(2, backbone="convnext_nano"), device="meta")
    inputs = [decode[0].conv.in_channels for decode in network.decoder]  # type: ignore[index,union-attr]
    assert inputs == [16 + 80, 8, 4]


def test_the_deepest_map_is_brought_to_the_width_of_the_record_only_where_it_has_another() -> None:
    other = built(planned(2), device="meta").neck
    assert isinstance(other, ConvNormAct)
    assert isinstance(other.conv, nn.Conv2d)
    assert (other.conv.in_channels, other.conv.out_channels) == (128, 32)
    same = dataclasses.replace(planned(2), features=(16, 32, 64, 128))
    assert isinstance(built(same, device="meta").neck, nn.Identity)


def test_norm_and_dropout_are_those_of_the_decoder() -> None:
    plain = built(planned(3), device="meta")
    chosen = built(planned(3, norm="batch", dropout=0.25), device="meta")
    assert sum(isinstance(m, InstanceNorm) for m in plain.modules()) == 7
    assert not any(isinstance(m, nn.Dropout3d) for m in plain.modules())
    assert not any(isinstance(m, InstanceNorm) for m in chosen.modules())
    assert sum(isinstance(m, nn.Dropout3d) for m in chosen.decoder.modules()) == 6
    assert sum(isinstance(m, nn.Dropout3d) for m in chosen.modules()) == 6


def test_names_of_the_encoder_are_those_of_its_backbone_behind_a_prefix() -> None:
    network = built(planned(3), device="meta")
    names = [name for name in network.state_dict() if name.startswith(ENCODER)]
    assert names == [f"encoder.{name}" for name in network.encoder.state_dict()]


def test_batches_of_one_mixed_precision_and_copies_work() -> None:
    network = built(planned(3, backbone="resnet18d")).train()
    image = drawn(1, 2, 16, 16, 24).to(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(image)[0]
    logits.float().sum().backward()
    assert torch.isfinite(logits).all()
    network.eval()
    copied = copy.deepcopy(network)
    with torch.inference_mode():
        torch.testing.assert_close(copied(image)[0], network(image)[0])


def test_a_plan_that_no_backbone_can_follow_is_refused() -> None:
    uneven = dataclasses.replace(planned(3), strides=((1, 1, 1), (2, 2, 2), (2, 2, 1), (2, 2, 2)))
    with pytest.raises(PlanError, match=r"strides has \(2, 2, 1\).*halve y and x"):
        built(uneven, device="meta")
    with pytest.raises(PlanError, match="has 2 levels; its backbones have 3 to 6"):
        built(planned(3, 2), device="meta")


def test_every_backbone_has_a_record_and_the_first_of_the_kind_is_the_default() -> None:
    assert set(BACKBONES) == set(BACKBONE_RECORDS) == set(ENCODER_UNET.backbones)
    assert ENCODER_UNET.backbones[0] == "resnet18d"
    assert backbone_record(planned()) is BACKBONE_RECORDS["resnet18d"]


def test_a_backbone_that_only_timm_knows_is_planned_as_a_larger_one_of_ours() -> None:
    assert backbone_record(planned(backbone="timm:regnety_016")) is BACKBONE_RECORDS["resnet50d"]


def test_without_timm_its_backbones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MachineError, match=r"timm:regnety_016 needs timm; `pip install nnseg\[ti"):
        built(planned(2, backbone="timm:regnety_016"))
    with pytest.raises(PlanError, match="which has two dimensions"):
        built(planned(3, backbone="timm:regnety_016"))


@torch.no_grad()
def test_a_backbone_that_timm_builds_gives_what_ours_gives() -> None:
    pytest.importorskip("timm")
    ours = built(planned(2, 5, backbone="resnet18d")).eval()
    theirs = built(planned(2, 5, backbone="timm:resnet18d")).eval()
    theirs.load_state_dict(
        {name.replace("encoder.", "encoder.model."): x for name, x in ours.state_dict().items()}
    )
    image = drawn(1, 2, 1, 32, 48)
    torch.testing.assert_close(theirs(image), ours(image))


def test_a_network_of_timm_without_such_maps_is_refused() -> None:
    pytest.importorskip("timm")
    with pytest.raises(PlanError, match="timm cannot make 'no_such_network'"):
        built(planned(2, backbone="timm:no_such_network"))


class Pyramid(nn.Module):
    """What timm's `features_only` gives, in miniature: means over 2, 4 and 8 voxels a way."""

    def __init__(self, only: int | None, last: bool) -> None:
        super().__init__()
        self.only, self.last, self.scale = only, last, nn.Parameter(torch.ones(()))
        self.seen: list[tuple[bool, tuple[int, ...]]] = []
        self.feature_info = SimpleNamespace(
            reduction=lambda: [2, 4, 8], channels=lambda: [2] * len(self.taken)
        )
        self.taken = (0, 1, 2)

    def forward(self, image: Tensor) -> list[Tensor]:
        self.seen.append((self.training, tuple(image.shape)))
        if self.only not in (None, image.shape[-1]):
            raise AssertionError(f"Input width is not {self.only}\nSecond line")
        maps = [functional.avg_pool2d(image, 2 ** (k + 1)) * self.scale for k in self.taken]
        return [x.movedim(1, 3) if self.last else x for x in maps]


def pretend_timm(
    monkeypatch: pytest.MonkeyPatch, *, only: int | None = None, last: bool = False
) -> None:
    """Put in timm's place one whose networks are `Pyramid`s."""

    def create_model(name: str, out_indices: Sequence[int] = (0, 1, 2), **_: Any) -> Pyramid:
        made = Pyramid(only, last)
        made.taken = tuple(out_indices)
        return made

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))


def test_a_network_of_timm_is_tried_without_training_on_an_image_of_uneven_edges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_timm(monkeypatch)
    encoder: Any = TimmBackbone(flat_levels(3), 2, "pyramid")
    assert encoder.model.seen == [(False, (1, 2, 8, 12))]
    assert encoder.model.training
    assert encoder.features == (2, 2)


def test_a_network_of_timm_for_images_of_one_size_is_refused_when_it_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_timm(monkeypatch, only=224)
    with pytest.raises(PlanError) as error:
        built(planned(2, backbone="timm:pyramid_224"))
    assert str(error.value) == (
        "timm:pyramid_224 does not take an image of 16 x 24 pixels (Input width is not 224), but "
        "must take patches of any size; choose a backbone without a fixed size, such as one of ours"
    )


def test_a_network_of_timm_with_channels_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_timm(monkeypatch, last=True)
    with pytest.raises(PlanError, match=r"has maps at 1/2, 1/4, 1/8; they must be \(channel, y, x"):
        built(planned(2, backbone="timm:pyramid"))


def test_an_exported_network_gives_what_it_gives() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    network = built(planned(3, thick=True)).eval()
    image = drawn(1, 2, 16, 16, 24)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _First(network).eval(),
            (image,),
            file,
            opset_version=17,
            input_names=["image"],
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": image.numpy()})
    with torch.no_grad():
        expected = network(image)[0]
    assert float((torch.from_numpy(found) - expected).abs().max()) < 1e-4


class _First(nn.Module):
    """The main output alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)[0]  # type: ignore[no-any-return]
