"""Weights of one network become the start of another, by the names of channels and labels."""

import pytest
import torch
from torch import Tensor, nn

from nnseg.model.architecture import Architecture
from nnseg.model.transfer import describe_transfer, transfer
from nnseg.networks.build import build_network


def build(
    channels: int,
    heads: int,
    *,
    features: tuple[int, ...] = (4, 6),
    network: str = "plain",
    seed: int,
) -> nn.Module:
    architecture = Architecture(
        network=network,
        dimensions=3,
        features=features,
        kernel_sizes=((1, 3, 3),) * len(features),
        strides=((1, 1, 1),) + ((1, 2, 2),) * (len(features) - 1),
        encoder_blocks=(1,) * len(features),
        decoder_blocks=(1,) * (len(features) - 1),
    )
    torch.manual_seed(seed)
    return build_network(architecture, channels, heads)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


FIRST = "encoder.0.0.conv.weight"
CHANNELS, HEADS = ("T1", "FLAIR"), ("background", "edema", "core")


def test_the_same_channels_and_labels_take_everything_over() -> None:
    source, network = build(2, 3, seed=1), build(2, 3, seed=2)
    found = transfer(state(source), network, channels=(CHANNELS, CHANNELS), heads=(HEADS, HEADS))
    assert set(found.kept) == set(network.state_dict())
    assert (found.adapted, found.fresh, found.unused) == ((), (), ())
    for name, value in source.state_dict().items():
        assert torch.equal(found.weights[name], value)
    assert not torch.equal(network.state_dict()[FIRST], found.weights[FIRST])


def test_channels_are_matched_by_name_and_a_new_one_is_the_mean() -> None:
    source, network = build(2, 3, seed=1), build(3, 3, seed=2)
    names = ("FLAIR", "T2", "T1")
    found = transfer(state(source), network, channels=(CHANNELS, names), heads=(HEADS, HEADS))
    old, new = source.state_dict()[FIRST], found.weights[FIRST]
    assert torch.equal(new[:, 0], old[:, 1])
    assert torch.equal(new[:, 2], old[:, 0])
    torch.testing.assert_close(new[:, 1], old.mean(dim=1))
    assert found.adapted == (FIRST,)
    assert found.channels == {"FLAIR": True, "T2": False, "T1": True}


@pytest.mark.parametrize(("names", "in_order"), [(("CT", "PET"), True), (("CT", "T1"), False)])
def test_channels_without_a_name_in_common_are_taken_in_order(
    names: tuple[str, str], in_order: bool
) -> None:
    source, network = build(2, 3, seed=1), build(2, 3, seed=2)
    found = transfer(state(source), network, channels=(CHANNELS, names), heads=(HEADS, HEADS))
    assert torch.equal(found.weights[FIRST], source.state_dict()[FIRST]) is in_order


def test_heads_are_matched_by_name_and_a_new_one_stays_as_drawn() -> None:
    source, network = build(2, 3, seed=1), build(2, 4, seed=2)
    names = ("background", "core", "vessel", "edema")
    found = transfer(state(source), network, channels=(CHANNELS, CHANNELS), heads=(HEADS, names))
    assert set(found.adapted) == {"heads.0.weight", "heads.0.bias"}
    for name in found.adapted:
        old, new, drawn = source.state_dict()[name], found.weights[name], network.state_dict()[name]
        assert torch.equal(new[0], old[0])
        assert torch.equal(new[1], old[2])
        assert torch.equal(new[2], drawn[2])
        assert torch.equal(new[3], old[1])
    assert found.heads == {"background": True, "core": True, "vessel": False, "edema": True}


def test_heads_that_are_transposed_convolutions_are_matched_by_name_too() -> None:
    source, network = (build(2, n, network="mednext_s", seed=n) for n in (3, 4))
    names = ("background", "core", "vessel", "edema")
    found = transfer(state(source), network, channels=(CHANNELS, CHANNELS), heads=(HEADS, names))
    old, drawn = source.state_dict()["heads.0.weight"], network.state_dict()["heads.0.weight"]
    new = found.weights["heads.0.weight"]
    assert new.shape == (4, 4, 1, 1, 1)
    for place, wanted in enumerate((old[:, 0], old[:, 2], drawn[:, 2], old[:, 1])):
        assert torch.equal(new[:, place], wanted)


def test_channels_that_share_a_name_are_matched_in_turn() -> None:
    names = ("MR", "MR")
    source, network = build(2, 3, seed=1), build(2, 3, seed=2)
    found = transfer(state(source), network, channels=(names, names), heads=(HEADS, HEADS))
    old = source.state_dict()[FIRST]
    assert torch.equal(found.weights[FIRST], old)
    more = ("MR", "CT", "MR", "MR")
    found = transfer(state(source), build(4, 3, seed=2), channels=(names, more), heads=(HEADS,) * 2)
    new, mean = found.weights[FIRST], old.mean(dim=1)
    for place, wanted in enumerate((old[:, 0], mean, old[:, 1], mean)):
        assert torch.equal(new[:, place], wanted)


def test_heads_that_share_a_name_are_matched_in_turn() -> None:
    source, network = build(2, 3, seed=1), build(2, 4, seed=2)
    names = (("background", "core", "core"), ("core", "background", "core", "core"))
    found = transfer(state(source), network, channels=(CHANNELS, CHANNELS), heads=names)
    old, drawn = source.state_dict()["heads.0.weight"], network.state_dict()["heads.0.weight"]
    new = found.weights["heads.0.weight"]
    for place, wanted in enumerate((old[1], old[0], old[2], drawn[3])):
        assert torch.equal(new[place], wanted)


def test_what_has_another_shape_stays_as_drawn_and_is_named() -> None:
    source, network = build(2, 3, features=(4, 6, 8), seed=1), build(2, 3, seed=2)
    found = transfer(state(source), network, channels=(CHANNELS, CHANNELS), heads=(HEADS, HEADS))
    assert "encoder.1.0.conv.weight" in found.kept
    assert "encoder.2.0.conv.weight" in found.unused
    assert found.fresh
    for name in found.fresh:
        assert torch.equal(found.weights[name], network.state_dict()[name])
    network.load_state_dict(found.weights)


def test_the_report_names_what_is_known_and_what_is_new() -> None:
    source, network = build(2, 3, seed=1), build(3, 2, seed=2)
    found = transfer(
        state(source),
        network,
        channels=(CHANNELS, ("T1", "T2", "FLAIR")),
        heads=(HEADS, ("background", "lesion")),
    )
    text = describe_transfer(found)
    assert "channels known: T1, FLAIR; new: T2" in text
    assert "heads known: background; new: lesion" in text
    assert f"of {len(network.state_dict())} parameters" in text
