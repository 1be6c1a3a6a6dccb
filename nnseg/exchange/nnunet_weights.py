"""The names of a network's weights in nnU-Net v2 and ours, one to one."""

import re
from collections.abc import Iterator, Mapping
from typing import TypeVar

from nnseg.errors import DataError
from nnseg.model.architecture import Architecture

T = TypeVar("T")

# In front of every name of a network that was trained on several GPUs, or compiled, or both.
_WRAPPED = re.compile(r"(?:module\.|_orig_mod\.)+")


def nnunet_names(architecture: Architecture) -> dict[str, tuple[str, ...]]:
    """Give, for each name of our state dict, the names that its tensor has in nnU-Net's.

    There are several: a block lists its layers twice, and the decoder holds the encoder as well.

    Source: dynamic_network_architectures 0.4, PlainConvUNet and ResidualEncoderUNet.
    """
    names: dict[str, tuple[str, ...]] = {}
    for ours, theirs in _layers(architecture):
        parts = ("weight",) if ours.endswith("project.conv") else ("weight", "bias")
        for part in parts:
            names[f"{ours}.{part}"] = tuple(f"{name}.{part}" for name in theirs)
    return names


def to_nnunet(weights: Mapping[str, T], architecture: Architecture) -> dict[str, T]:
    """Give the state dict of nnU-Net's network from that of ours.

    Args:
        weights: Tensors or anything else by our names, all of them.
        architecture: The network's record.
    """
    names = nnunet_names(architecture)
    return {name: weights[ours] for ours, theirs in names.items() for name in theirs}


def from_nnunet(weights: Mapping[str, T], architecture: Architecture) -> dict[str, T]:
    """Give the state dict of our network from that of nnU-Net's; the inverse of `to_nnunet`.

    Of the names of one tensor any will do: older versions write fewer.

    Raises:
        DataError: A tensor is missing, one is there twice, or one is of another network.
    """
    given: dict[str, T] = {}
    for name, tensor in weights.items():
        bare = name[found.end() :] if (found := _WRAPPED.match(name)) else name
        if bare in given:
            raise DataError(f"the weights have {bare} under two names; one network has one")
        given[bare] = tensor
    result = {}
    names = nnunet_names(architecture)
    for ours, theirs in names.items():
        present = next((name for name in theirs if name in given), None)
        if present is None:
            raise DataError(
                f"the weights have no {theirs[0]}, which a {architecture.network} network of "
                "these plans has; take the plans that the model was trained with"
            )
        result[ours] = given[present]
    known = {name for theirs in names.values() for name in theirs}
    if strange := sorted(given.keys() - known):
        raise DataError(
            f"the weights have {strange[0]}, which no {architecture.network} network of these "
            "plans has; take the plans that the model was trained with"
        )
    return result


def _layers(architecture: Architecture) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each layer with weights: our name and theirs."""
    residual = architecture.network == "resenc"
    before = architecture.features[0]
    for level, features in enumerate(architecture.features):
        ours, first = f"encoder.{level}", 0
        if residual and level == 0:
            yield from _block(f"{ours}.0", "encoder.stem.convs.0", in_encoder=True)
            first = 1
        for i in range(architecture.encoder_blocks[level]):
            block = f"{ours}.{i + first}"
            if not residual:
                theirs = f"encoder.stages.{level}.0.convs.{i}"
                yield from _block(block, theirs, in_encoder=True)
                continue
            theirs = f"encoder.stages.{level}.blocks.{i}"
            yield from _block(f"{block}.conv1", f"{theirs}.conv1", in_encoder=True)
            yield from _block(f"{block}.conv2", f"{theirs}.conv2", in_encoder=True)
            if i == 0 and features != before:
                place = 1 if max(architecture.strides[level]) > 1 else 0  # after the pooling
                yield from _block(f"{block}.project", f"{theirs}.skip.{place}", in_encoder=True)
        before = features
    for number, level in enumerate(reversed(range(architecture.levels - 1))):
        yield f"up.{number}", (f"decoder.transpconvs.{number}",)
        for i in range(architecture.decoder_blocks[level]):
            yield from _block(f"decoder.{number}.{i}", f"decoder.stages.{number}.convs.{i}")
    for number in range(max(architecture.levels - 1, 1)):
        yield f"heads.{number}", (f"decoder.seg_layers.{number}",)


def _block(
    ours: str, theirs: str, *, in_encoder: bool = False
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Convolution and norm of a block."""
    places = (theirs, f"decoder.{theirs}") if in_encoder else (theirs,)
    for number, layer in enumerate(("conv", "norm")):
        twice = (layer, f"all_modules.{number}")
        yield f"{ours}.{layer}", tuple(f"{place}.{name}" for place in places for name in twice)
