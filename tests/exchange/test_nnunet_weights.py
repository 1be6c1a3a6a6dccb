"""The names of weights against a list of nnU-Net's own, which bench/train_step.py writes."""

import json
from pathlib import Path

import pytest
import torch

from nnseg.errors import DataError
from nnseg.exchange.nnunet_weights import from_nnunet, nnunet_names, to_nnunet
from nnseg.model.architecture import Architecture
from nnseg.networks.build import build_network

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "nnunet_names.json").read_text(encoding="utf-8")
)


def architecture(name: str) -> Architecture:
    """The network that the list was made of; its decoder counts from level 0, nnU-Net's upwards."""
    network, dimensions = name.split()
    thin = dimensions == "2d"
    return Architecture(
        network=network,
        dimensions=2 if thin else 3,
        features=(4, 5, 5),
        kernel_sizes=((1, 3, 3),) * 3 if thin else ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2), (1 if thin else 2, 2, 1)),
        encoder_blocks=(1, 2, 1),
        decoder_blocks=(2, 1),
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_every_weight_has_the_name_and_shape_that_it_has_in_nnunet(name: str) -> None:
    network = build_network(architecture(name), 2, 3)
    theirs = to_nnunet(network.state_dict(), architecture(name))
    assert {key: list(value.shape) for key, value in theirs.items()} == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_weights_come_back_from_nnunets_names_as_they_were(name: str) -> None:
    weights = build_network(architecture(name), 2, 3).state_dict()
    back = from_nnunet(to_nnunet(weights, architecture(name)), architecture(name))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


@pytest.mark.parametrize("name", GOLDEN)
def test_one_name_of_each_tensor_is_enough_and_may_come_from_several_gpus(name: str) -> None:
    names = nnunet_names(architecture(name))
    fewer = {f"module.{theirs[-1]}": ours for ours, theirs in names.items()}
    assert from_nnunet(fewer, architecture(name)) == {ours: ours for ours in names}


@pytest.mark.parametrize("wrap", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_networks_that_were_compiled_are_read(wrap: str) -> None:
    names = nnunet_names(architecture("plain 2d"))
    wrapped = {wrap + theirs[0]: ours for ours, theirs in names.items()}
    assert from_nnunet(wrapped, architecture("plain 2d")) == {ours: ours for ours in names}


def test_a_weight_that_is_there_twice_is_refused() -> None:
    weights = dict.fromkeys(GOLDEN["plain 2d"], 0)
    first = next(iter(weights))
    with pytest.raises(DataError, match=f"have {first} under two names"):
        from_nnunet(weights | {f"module.{first}": 1}, architecture("plain 2d"))


def test_weights_without_a_layer_are_refused() -> None:
    weights = dict.fromkeys(GOLDEN["plain 2d"], 0)
    short = {name: value for name, value in weights.items() if "transpconvs.1.bias" not in name}
    with pytest.raises(DataError, match=r"have no decoder\.transpconvs\.1\.bias, which a plain"):
        from_nnunet(short, architecture("plain 2d"))


def test_weights_of_another_network_are_refused() -> None:
    weights = dict.fromkeys([*GOLDEN["plain 2d"], "decoder.stages.2.convs.0.conv.bias"], 0)
    with pytest.raises(DataError, match=r"have decoder\.stages\.2\.convs\.0\.conv\.bias, which no"):
        from_nnunet(weights, architecture("plain 2d"))


def test_a_projection_comes_first_in_its_branch_where_nothing_is_pooled() -> None:
    unpooled = Architecture(
        network="resenc",
        dimensions=3,
        features=(4, 5),
        kernel_sizes=((3, 3, 3),) * 2,
        strides=((1, 1, 1), (1, 1, 1)),
        encoder_blocks=(1, 1),
        decoder_blocks=(1,),
    )
    names = nnunet_names(unpooled)["encoder.1.0.project.conv.weight"]
    assert names[0] == "encoder.stages.1.blocks.0.skip.0.conv.weight"
