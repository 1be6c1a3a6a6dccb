"""Trained models of nnU-Net v2: its checkpoint files, read without running what is in them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnseg.dataset import parse_spec
from nnseg.errors import DataError
from nnseg.exchange.nnunet import read_plans
from nnseg.exchange.nnunet_weights import from_nnunet
from nnseg.plan import Plan

NAME = "nnunet"  # of plans that come from there
_NEEDED = ("network_weights", "init_args")
_NUMBERS = ("f8", "f4", "f2", "i8", "i4", "?")  # kinds of numpy scalars that its log holds
_FOREIGN = re.compile(r"GLOBAL (\S+)")  # how torch names what a file may not hold


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NnunetModel:
    """What a checkpoint of nnU-Net's holds of a model."""

    plan: Plan
    configuration_name: str
    fold: str
    mirror_axes: tuple[int, ...]  # of (z, y, x), plan order
    weights: dict[str, Tensor]  # by our names


def read_checkpoint(path: Path) -> NnunetModel:
    """Read a checkpoint_final.pth or its like.

    Plans and dataset.json are in it. It is a pickle; only tensors, plain containers and numbers
    are let through, so that it can run nothing.

    Raises:
        DataError: It is damaged, no such checkpoint, or of a trainer with another network.
    """
    content = _load(path)
    missing = [key for key in _NEEDED if not isinstance(content, dict) or key not in content]
    if missing:
        raise DataError(f"{path}: has no {missing[0]}; it must be a checkpoint of nnU-Net v2")
    given = content["init_args"]
    try:
        name, fold = str(given["configuration"]), str(given["fold"])
        spec = parse_spec(given["dataset_json"], f"{path}: dataset_json")
        plan = read_plans(given["plans"], spec, name=NAME, where=f"{path}: plans")
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: its init_args are not those of nnU-Net v2 ({error})") from None
    configuration = plan.configuration(name)
    mirrored = content.get("inference_allowed_mirroring_axes") or ()
    first = 3 - configuration.architecture.dimensions  # it counts the axes of a patch
    return NnunetModel(
        plan=plan,
        configuration_name=name,
        fold=fold,
        mirror_axes=tuple(int(axis) + first for axis in mirrored),
        weights=from_nnunet(content["network_weights"], configuration.architecture),
    )


def _load(path: Path) -> Any:
    core = getattr(np, "_core", None) or np.core
    kinds = [type(np.dtype(kind)) for kind in _NUMBERS]
    try:
        with torch.serialization.safe_globals([core.multiarray.scalar, np.dtype, *kinds]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # its reader hands on whatever a foreign file makes it raise
        foreign = _FOREIGN.search(str(error))  # the rest of what torch says advises to run it
        reason = (
            f"it holds {foreign[1]}, which is no tensor, container or number"
            if foreign
            else "it is damaged, or none"
        )
        raise DataError(
            f"{path}: cannot be read as a checkpoint of nnU-Net ({reason}); give a .pth file that "
            "its training wrote"
        ) from None
