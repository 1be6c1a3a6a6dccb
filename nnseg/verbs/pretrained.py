"""What a training can start from: a model of ours, a checkpoint of nnU-Net's, or an encoder."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nnseg.checkpoint import load_model
from nnseg.commit import sha256
from nnseg.errors import MissingError, UsageError
from nnseg.exchange.nnunet_model import read_checkpoint
from nnseg.folders import checkpoint_file, trained_folds
from nnseg.model.transfer import Transfer, describe_transfer, transfer
from nnseg.networks.build import build_network
from nnseg.networks.timm_weights import (
    EncoderStart,
    EncoderWeights,
    describe_encoder_start,
    fit_encoder,
    read_encoder_weights,
)
from nnseg.plan import Plan

NNUNET = "checkpoint_final.pth"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pretrained:
    """Weights to start from, and what they mean."""

    source: Path
    sha256: str  # of the weights
    plan: Plan
    configuration_name: str
    weights: dict[str, Tensor]  # by our names


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Beginning:
    """The weights that a training starts from, and what they are."""

    source: Path
    weights: dict[str, Tensor]  # those taken over
    kept: tuple[str, ...]  # parameters taken over whole
    adapted: tuple[str, ...]  # parameters taken over in part, or changed to fit
    fresh: tuple[str, ...]  # parameters that start anew
    description: str  # lines for people


def read_start(model: Path | None, encoder: Path | None) -> Pretrained | EncoderWeights | None:
    """Read what a training is to start from.

    Args:
        model: As `read_pretrained` takes it.
        encoder: As `read_encoder_weights` takes it.

    Raises:
        UsageError: Both are given.
        MissingError: There is no such model or file.
        DataError: It is damaged, or cannot be used here.
    """
    if model is not None and encoder is not None:
        raise UsageError(
            "a pretrained model has an encoder already; give --pretrained or --pretrained-encoder"
        )
    if encoder is not None:
        return read_encoder_weights(encoder)
    return None if model is None else read_pretrained(model)


def begin(
    found: Pretrained | EncoderWeights, plan: Plan, configuration_name: str, seed: int
) -> Beginning:
    """Give the weights from which a network of a plan starts.

    Args:
        found: A model, or an encoder.
        plan: Of the new network.
        configuration_name: One of the plan's.
        seed: Of what is drawn anew.

    Raises:
        UsageError: It is an encoder, and the network has no place for one.
        DataError: The encoder is another one than the network's.
    """
    if isinstance(found, Pretrained):
        taken = start_from(found, plan, configuration_name, seed)
        whole, description = taken.weights, describe_transfer(taken)
        names = {*taken.kept, *taken.adapted}
        weights = {name: value for name, value in whole.items() if name in names}
        kept, adapted, fresh = taken.kept, taken.adapted, taken.fresh
    else:
        start = _encoder_start(found, plan, configuration_name)
        architecture = plan.configuration(configuration_name).architecture
        with torch.random.fork_rng(devices=[]):
            network = build_network(
                architecture, plan.input_channels(configuration_name), plan.labels.heads
            )
        weights, kept, adapted = start.weights, start.kept, start.adapted
        fresh = tuple(name for name, _ in network.named_parameters() if name not in weights)
        description = describe_encoder_start(start, len(fresh))
    return Beginning(
        source=found.source,
        weights=weights,
        kept=kept,
        adapted=adapted,
        fresh=fresh,
        description=description,
    )


def check_start(
    found: Pretrained | EncoderWeights | None, plan: Plan, configuration_name: str
) -> None:
    """Make sure, before anything is done, that a network can start from what was read.

    Raises:
        UsageError: It is an encoder, and the network has no place for one.
        DataError: The encoder is another one than the network's.
    """
    if isinstance(found, EncoderWeights):
        _encoder_start(found, plan, configuration_name)


def read_pretrained(source: Path) -> Pretrained:
    """Read a model to start from.

    Args:
        source: The folder of a fold of ours, or of a configuration, whose first trained fold
            counts; or a checkpoint .pth of nnU-Net's, or the folder of its fold.

    Raises:
        MissingError: There is no model.
        DataError: It is damaged, or cannot be used here.
    """
    path = source / NNUNET if source.is_dir() else source
    if path.is_file():
        theirs = read_checkpoint(path)
        return Pretrained(
            source=path,
            sha256=sha256(path),
            plan=theirs.plan,
            configuration_name=theirs.configuration_name,
            weights=theirs.weights,
        )
    if not source.is_dir():
        raise MissingError(f"{source} does not exist; give the folder of a trained fold")
    fold = trained_folds(source)[0]
    checkpoint, weights = load_model(fold, "final")
    return Pretrained(
        source=checkpoint_file(fold, "final"),
        sha256=checkpoint.weights_sha256,
        plan=checkpoint.plan,
        configuration_name=checkpoint.configuration_name,
        weights=weights,
    )


def start_from(found: Pretrained, plan: Plan, configuration_name: str, seed: int) -> Transfer:
    """Fit weights into a network of another plan.

    Args:
        found: Where to start.
        plan: Of the new network.
        configuration_name: One of the plan's.
        seed: Of what is drawn anew.
    """
    architecture = plan.configuration(configuration_name).architecture
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(
            architecture, plan.input_channels(configuration_name), plan.labels.heads
        )
    return transfer(
        found.weights,
        network,
        channels=(
            _channels(found.plan, found.configuration_name),
            _channels(plan, configuration_name),
        ),
        heads=(found.plan.labels.head_names, plan.labels.head_names),
    )


def _encoder_start(found: EncoderWeights, plan: Plan, configuration_name: str) -> EncoderStart:
    architecture = plan.configuration(configuration_name).architecture
    channels = len(plan.channels)
    labels = plan.input_channels(configuration_name) - channels
    return fit_encoder(found, architecture, channels, labels)


def _channels(plan: Plan, configuration_name: str) -> list[str]:
    """Name what a network sees; labels of the stage before by their integers."""
    names = [*plan.channels]
    if plan.configuration(configuration_name).previous is not None:
        names += [f"label {value} before" for value in plan.labels.foreground_values]
    return names
