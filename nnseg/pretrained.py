"""A trained model as the start of another training: ours, or a checkpoint of nnU-Net's."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nnseg.checkpoint import load_model
from nnseg.commit import sha256
from nnseg.errors import MissingError
from nnseg.exchange.nnunet_model import read_checkpoint
from nnseg.folders import checkpoint_file, trained_folds
from nnseg.labels import BACKGROUND
from nnseg.model.transfer import Transfer, transfer
from nnseg.model.unet import build_network
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
        heads=(_heads(found.plan), _heads(plan)),
    )


def _channels(plan: Plan, configuration_name: str) -> list[str]:
    """Name what a network sees; labels of the stage before by their integers."""
    names = [*plan.channels]
    if plan.configuration(configuration_name).previous is not None:
        names += [f"label {value} before" for value in plan.labels.foreground_values]
    return names


def _heads(plan: Plan) -> list[str]:
    first = [] if plan.labels.has_regions else [BACKGROUND]
    return [*first, *plan.labels.foreground]
