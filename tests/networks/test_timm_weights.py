import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from image_networks import fill, largest_difference
from known_networks import drawn
from safetensors.torch import save_file
from torch import Tensor

from nnseg.errors import DataError, MissingError, UsageError
from nnseg.model.architecture import Architecture, NetworkOptions
from nnseg.networks import timm_weights
from nnseg.networks.backbones import BACKBONES
from nnseg.networks.encoder_unet import ENCODER, EncoderUNet
from nnseg.networks.inflation import flat_levels
from nnseg.networks.timm_weights import (
    EncoderStart,
    describe_encoder_start,
    fit_encoder,
    match_channels,
    read_encoder_weights,
)

Change = Callable[[dict[str, Tensor]], Any]


def planned(dimensions: Any, levels: int = 4, backbone: str = "resnet18d") -> Architecture:
    z = dimensions - 2
    return Architecture(
        network="encoder_unet",
        dimensions=dimensions,
        features=tuple(4 * 2**level for level in range(levels)),
        kernel_sizes=((1 + 2 * z, 3, 3),) * levels,
        strides=((1, 1, 1), *((1 + z, 2, 2),) * (levels - 1)),
        encoder_blocks=(1,) * levels,
        decoder_blocks=(1,) * (levels - 1),
        options=NetworkOptions(backbone=backbone),
    )


def published(backbone: str = "resnet18d") -> dict[str, Tensor]:
    """What timm's file of a network with a classifier has."""
    with torch.random.fork_rng(devices=[]):
        network = BACKBONES[backbone](flat_levels(6), 3)
    fill(network)
    state = {name: x for name, x in network.state_dict().items() if "num_batches" not in name}
    return state | {"fc.weight": drawn(10, 512), "fc.bias": drawn(10)}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    save_file(published(), path)
    return path


def started(path: Path, architecture: Architecture, channels: int) -> EncoderUNet:
    """A network whose encoder has the weights of a file."""
    with torch.random.fork_rng(devices=[]):
        network = EncoderUNet(architecture, channels, 2).eval()
    start = fit_encoder(read_encoder_weights(path), architecture, channels)
    missing, unexpected = network.load_state_dict(start.weights, strict=False)
    assert unexpected == []
    assert not [name for name in missing if name.startswith(ENCODER) and "num_" not in name]
    return network


@torch.no_grad()
def test_the_encoder_of_a_2d_network_gives_what_the_published_one_gives(file: Path) -> None:
    network = started(file, planned(2), 3)
    with torch.random.fork_rng(devices=[]):
        whole = BACKBONES["resnet18d"](flat_levels(6), 3).eval()
    fill(whole)
    image = drawn(1, 3, 32, 64)
    assert largest_difference(network.encoder(image), whole(image)[:3]) < 1e-6


@pytest.mark.parametrize("channels", [1, 3, 6])
@torch.no_grad()
def test_inflated_it_gives_for_grey_images_what_the_published_one_gives(
    file: Path, channels: int
) -> None:
    deep = started(file, planned(3), channels)
    flat = started(file, planned(2), 3)
    grey = drawn(1, 1, 16, 24)
    expected = flat.encoder(grey.repeat(1, 3, 1, 1))
    found = deep.encoder(grey.unsqueeze(2).repeat(1, channels, 8, 1, 1))
    assert found[0].shape[2:] == (4, 8, 12)
    pairs = zip(found, expected, strict=True)
    assert largest_difference(found, [x.unsqueeze(2).expand_as(y) for y, x in pairs]) < 1e-5


def test_colours_are_summed_for_one_channel_and_taken_in_turn_for_others() -> None:
    weight = drawn(4, 3, 5, 7)
    red, green, blue = weight[:, 0], weight[:, 1], weight[:, 2]
    assert match_channels(weight, 3) is weight
    torch.testing.assert_close(match_channels(weight, 1)[:, 0], red + green + blue)
    torch.testing.assert_close(match_channels(weight, 2), torch.stack((red, green), 1) * 3 / 2)
    expected = torch.stack((red, green, blue, red, green), 1) * 3 / 5
    torch.testing.assert_close(match_channels(weight, 5), expected)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_labels_of_the_stage_before_begin_at_0_and_get_no_colours(
    file: Path, dimensions: Any
) -> None:
    found, architecture = read_encoder_weights(file), planned(dimensions)
    cascade = fit_encoder(found, architecture, 3, labels=2)
    first = cascade.weights["encoder.conv1.0.weight"]
    assert first.shape[1] == 5
    alone = fit_encoder(found, architecture, 3).weights["encoder.conv1.0.weight"]
    assert torch.equal(first[:, :3], alone)
    assert not first[:, 3:].any()
    assert "encoder.conv1.0.weight" in cascade.adapted


def test_what_is_taken_over_and_what_is_changed_is_told(file: Path) -> None:
    found = read_encoder_weights(file)
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    flat = fit_encoder(found, planned(2), 4)
    assert flat.adapted == ("encoder.conv1.0.weight",)
    assert "encoder.layer2.1.bn2.running_var" in flat.kept
    assert set(flat.kept) | set(flat.adapted) == set(flat.weights)
    assert not any("fc." in name or "layer3" in name for name in flat.weights)
    deep = fit_encoder(found, planned(3), 3)
    assert all(name.endswith("weight") for name in deep.adapted)
    assert "encoder.layer1.0.bn1.weight" in deep.kept
    start = EncoderStart(weights={"a": drawn(1), "b": drawn(1)}, kept=("a",), adapted=("b",))
    assert describe_encoder_start(start, 7) == (
        "the encoder's 2 parameters taken over, 1 of them inflated or brought to the number of "
        "channels; 7 of the decoder start anew"
    )


def test_half_precision_is_read_as_single(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({name: x.half() for name, x in published().items()}, path)
    half = fit_encoder(read_encoder_weights(path), planned(3), 2).weights
    single = fit_encoder(read_encoder_weights(file), planned(3), 2).weights
    assert all(x.dtype == torch.float32 for x in half.values())
    for name, x in single.items():
        torch.testing.assert_close(half[name], x, rtol=2e-3, atol=1e-4)


def lacking(weights: dict[str, Tensor]) -> None:
    for name in ("bn1.bias", "layer1.0.bn1.bias", "layer1.0.conv1.weight"):
        del weights[name]


def foreign(weights: dict[str, Tensor]) -> None:
    weights["layer5.weight"] = drawn(3)


def wide(weights: dict[str, Tensor]) -> None:
    weights["layer2.0.conv1.weight"] = drawn(128, 64, 5, 5)


def whole_numbers(weights: dict[str, Tensor]) -> None:
    weights["bn1.bias"] = weights["bn1.bias"].to(torch.int8)


def eighths(weights: dict[str, Tensor]) -> None:
    weights["bn1.bias"] = weights["bn1.bias"].to(torch.float8_e4m3fn)


def spoilt(weights: dict[str, Tensor]) -> None:
    weights["layer1.1.conv2.weight"][3, 2, 1, 0] = float("nan")


def endless(weights: dict[str, Tensor]) -> None:
    weights["layer1.1.conv2.weight"] = weights["layer1.1.conv2.weight"].double()
    weights["layer1.1.conv2.weight"][3, 2, 1, 0] = 1e300


def changed_file(change: Change, folder: Path) -> Path:
    """The published weights, but for a change."""
    weights = published()
    change(weights)
    path = folder / "model.safetensors"
    save_file(weights, path)
    return path


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (whole_numbers, "bn1.bias is of type int8, not of floating point numbers of 16 bits"),
        (eighths, "bn1.bias is of type float8_e4m3fn, not of floating"),
        (spoilt, "layer1.1.conv2.weight has values that are infinite or no numbers"),
        (endless, "layer1.1.conv2.weight has values that are infinite or no numbers"),
    ],
)
def test_numbers_that_nothing_can_be_trained_from_are_refused(
    change: Change, complaint: str, tmp_path: Path
) -> None:
    path = changed_file(change, tmp_path)
    with pytest.raises(DataError, match=rf"model.safetensors: {complaint}.*; give the model"):
        fit_encoder(read_encoder_weights(path), planned(2), 1)


def test_names_in_a_file_are_shown_short_and_cannot_steer_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(published() | {"\x1b[2J" + "a" * 200: drawn(3)}, path)
    with pytest.raises(DataError) as error:
        fit_encoder(read_encoder_weights(path), planned(2), 1)
    assert rf"it has \x1b[2J{'a' * 73}..., which" in str(error.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lacking, "it lacks bn1.bias, layer1.0.bn1.bias and 1 more"),
        (foreign, "it has layer5.weight, which that has not"),
        (wide, "layer2.0.conv1.weight is 128 x 64 x 5 x 5, not 128 x 64 x 3 x 3"),
    ],
)
def test_a_file_of_another_network_is_refused_in_one_line(
    change: Change, complaint: str, tmp_path: Path
) -> None:
    path = changed_file(change, tmp_path)
    with pytest.raises(DataError) as error:
        fit_encoder(read_encoder_weights(path), planned(2), 1)
    assert str(error.value) == (
        f"{path}: is not of resnet18d ({complaint}); give the file of this network, or plan with "
        "the --backbone that it is of"
    )


def test_a_network_without_an_image_network_is_refused(file: Path) -> None:
    plain = dataclasses.replace(planned(2), network="plain", options=NetworkOptions())
    with pytest.raises(UsageError, match=r"network plain has no image network.*encoder_unet"):
        fit_encoder(read_encoder_weights(file), plain, 1)


def test_what_is_no_safetensors_file_is_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingError, match="nothing is no file; give the model"):
        read_encoder_weights(tmp_path / "nothing")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"cut.safetensors: is not a safetensors file \("):
        read_encoder_weights(cut)
    monkeypatch.setattr(timm_weights, "MOST_BYTES", 10**6)
    with pytest.raises(DataError, match=r"has 0\.0 GB; the weights of an image network have at"):
        read_encoder_weights(file)


@pytest.mark.parametrize("name", list(BACKBONES))
@torch.no_grad()
def test_a_file_of_timms_loads_into_every_backbone(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        whole = timm.create_model(name).eval()
    fill(whole)
    path = tmp_path / "model.safetensors"
    save_file(whole.state_dict(), path)
    network = started(path, planned(2, 6, backbone=name), 3)
    image = drawn(1, 3, 64, 96)
    if name.startswith("coatnet"):
        image = drawn(1, 3, 224, 224)
    _, expected = whole.forward_intermediates(image)
    assert largest_difference(network.encoder(image), expected) < 1e-5


@torch.no_grad()
def test_a_file_loads_into_a_backbone_that_timm_builds(file: Path) -> None:
    pytest.importorskip("timm")
    ours, theirs = (started(file, planned(2, 4, n), 2) for n in ("resnet18d", "timm:resnet18d"))
    image = drawn(1, 2, 16, 24)
    assert largest_difference(theirs.encoder(image), ours.encoder(image)) < 1e-6
