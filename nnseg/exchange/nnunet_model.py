"""Trained models of nnU-Net v2: its checkpoint files, read without running what is in them.

Also written, for nnU-Net to predict with: nothing else of ours is ever a pickle.
"""

import io
import math
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnseg.checkpoint import Checkpoint
from nnseg.dataset import DatasetSpec, parse_spec, spec_to_json
from nnseg.errors import DataError, MachineError, PlanError, UsageError
from nnseg.exchange.nnunet_names import NAME
from nnseg.exchange.nnunet_reading import read_plans
from nnseg.exchange.nnunet_weights import from_nnunet, to_nnunet
from nnseg.exchange.nnunet_writing import plans_to_json
from nnseg.model.device import is_out_of_memory
from nnseg.networks.build import build_network
from nnseg.plan import Plan
from nnseg.record import MAX_DEPTH

TRAINER = "nnUNetTrainer"  # its own; the network and the prediction are its plans' alone
_NEEDED = ("network_weights", "init_args")
_NUMBERS = ("f8", "f4", "f2", "i8", "i4", "b1")  # kinds of numpy scalars that its log holds
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # of weights
_MOST_NODES = 10**6  # of plans and dataset.json, written out; the longest have some thousands
_MOST_EPOCHS = 10**9
_SCALAR_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # until numpy 1, and since
_FOREIGN = re.compile(r"GLOBAL (\S+)")  # how torch names what a file may not hold

_EPOCHS = re.compile(rf"{TRAINER}_\d+epochs?(_NoMirroring)?")
_TRAINERS = frozenset(
    f"{TRAINER}{variant}"
    for variant in (
        "",
        "Adam",
        "Adam1en3",
        "Adam3en4",
        "Adan",
        "Adan1en1",
        "Adan1en3",
        "Adan3en4",
        "AdanCosAnneal",
        "Benchmark_5epochs",
        "Benchmark_5epochs_noDataLoading",
        "CELoss",
        "CELoss_5epochs",
        "CosAnneal",
        "DA5",
        "DA5_10epochs",
        "DA5Segord0",
        "DA5ord0",
        "DiceCELoss_noSmooth",
        "DiceLoss",
        "DiceTopK10Loss",
        "NoDA",
        "NoDeepSupervision",
        "NoMirroring",
        "Topk10Loss",
        "Topk10LossLS01",
        "VanillaAdam",
        "VanillaAdam1en3",
        "VanillaAdam3en4",
        "_DASegOrd0",
        "_DASegOrd0_NoMirroring",
        "_noDummy2DDA",
        "_onlyMirror01",
        "_onlyMirror01_1500ep",
        "_onlyMirror01_DA5",
        "_onlyMirror01_DASegOrd0",
        "_probabilisticOversampling",
        "_probabilisticOversampling_010",
        "_probabilisticOversampling_033",
        "_warmup",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NnunetModel:
    """What a checkpoint of nnU-Net's holds of a model."""

    plan: Plan
    configuration_name: str
    fold: str
    trainer: str  # the class that trained it
    epoch: int  # epochs done
    validation_dice: float | None  # moving average of the pseudo Dice when it was saved
    mirror_axes: tuple[int, ...]  # of (z, y, x), plan order
    weights: dict[str, Tensor]  # by our names


def changes_nothing(trainer: str) -> bool:
    """Say whether a trainer of nnU-Net v2.8.1 leaves network and prediction to the plans.

    Such a trainer changes how the weights are found only; the axes that it mirrors are in its
    checkpoint.

    >>> changes_nothing("nnUNetTrainer_250epochs"), changes_nothing("nnUNetTrainerBN")
    (True, False)
    """
    return trainer in _TRAINERS or _EPOCHS.fullmatch(trainer) is not None


def read_checkpoint(
    path: Path, where: str = "", *, trainers: Collection[str] | None = None
) -> NnunetModel:
    """Read a checkpoint_final.pth or its like.

    Plans and dataset.json are in it. It is a pickle; only tensors, plain containers and numbers
    are let through, so that it can run nothing.

    Args:
        path: The file.
        where: Opens error messages, where the file is called otherwise than `path`.
        trainers: Classes of trainers that the user says change neither network nor prediction;
            others that are not known to are refused. None takes whatever fits a network of the
            plans, which is enough to train on from.

    Raises:
        UsageError: The trainer is refused.
        DataError: It is damaged, no such checkpoint, or of a trainer with another network.
    """
    where = where or str(path)
    content = _load(path, where)
    missing = [key for key in _NEEDED if not isinstance(content, dict) or key not in content]
    if missing:
        raise DataError(f"{where}: has no {missing[0]}; it must be a checkpoint of nnU-Net v2")
    given = content["init_args"]
    wanted = ("configuration", "fold", "dataset_json", "plans")
    if not isinstance(given, dict) or not all(key in given for key in wanted):
        raise DataError(
            f"{where}: its init_args are not those of nnU-Net v2, which hold {', '.join(wanted)}"
        )
    for key in wanted:
        _check_plain(given[key], f"{where}: {key}")
    name, fold = str(given["configuration"]), str(given["fold"])
    spec = read_dataset(given["dataset_json"], f"{where}: dataset_json")
    plan = read_plans(given["plans"], spec, name=NAME, where=f"{where}: plans", needed=(name,))
    trainer, epoch = content.get("trainer_name", TRAINER), content.get("current_epoch", 0)
    if (
        not isinstance(trainer, str)
        or not isinstance(epoch, int | np.integer)
        or not 0 <= epoch <= _MOST_EPOCHS
    ):
        raise DataError(f"{where}: trainer_name or current_epoch is not that of a checkpoint")
    if trainers is not None and trainer not in trainers and not changes_nothing(trainer):
        raise UsageError(
            f"{where}: was trained by {trainer}, of which nnseg does not know that it leaves the "
            f"network and the prediction as the plans say; if it does, add --trainer {trainer}"
        )
    try:
        weights = _weights(content["network_weights"], plan, name, path.stat().st_size)
        mirror_axes = _mirror_axes(content.get("inference_allowed_mirroring_axes"), plan, name)
    except (DataError, PlanError) as error:
        raise type(error)(f"{where}: {error}") from None
    return NnunetModel(
        plan=plan,
        configuration_name=name,
        fold=fold,
        trainer=trainer,
        epoch=int(epoch),
        validation_dice=_validation_dice(content.get("logging")),
        mirror_axes=mirror_axes,
        weights=weights,
    )


def write_checkpoint(checkpoint: Checkpoint, weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a model of ours as a checkpoint that nnU-Net predicts with.

    It holds tensors and plain types only, by the keys of nnU-Net's own checkpoints. There is
    nothing in it to train on from.

    Args:
        checkpoint: Ours.
        weights: Its weights, by our names.
        path: The .pth file, which is written as it is: let `commit` make it whole.

    Raises:
        PlanError: As `plans_to_json`.
    """
    plan, configuration = checkpoint.plan, checkpoint.configuration
    plans = plans_to_json(plan)
    first = 3 - configuration.architecture.dimensions  # nnU-Net counts the axes of a patch
    axes = tuple(axis - first for axis in checkpoint.mirror_axes if axis >= first)
    dice = checkpoint.validation_dice
    content = {
        "network_weights": to_nnunet(weights, configuration.architecture),
        "optimizer_state": None,
        "grad_scaler_state": None,
        "logging": {"ema_fg_dice": [] if dice is None else [dice]},
        "_best_ema": dice,
        "current_epoch": checkpoint.epoch,
        "init_args": {
            "plans": plans,
            "configuration": configuration.name,
            "fold": int(checkpoint.fold) if checkpoint.fold.isdecimal() else checkpoint.fold,
            "dataset_json": spec_to_json(dataset_of(plan)),
        },
        "trainer_name": TRAINER,
        "inference_allowed_mirroring_axes": axes or None,  # it knows no empty ones
    }
    stream = io.BytesIO()  # of a full disk, torch would say only that a place is unexpected
    torch.save(content, stream)
    path.write_bytes(stream.getbuffer())


def dataset_of(plan: Plan) -> DatasetSpec:
    """Give the dataset.json that nnU-Net needs beside a plan.

    Its integers have no gaps: what nnU-Net paints of labels is the place of the best output.
    """
    return DatasetSpec(
        channels=plan.channels,
        labels=plan.labels.consecutive,
        num_training=0,
        file_ending=plan.file_ending,
    )


def read_dataset(data: Any, where: str) -> DatasetSpec:
    """Read the dataset.json of a trained model, as far as nnU-Net needs it to predict.

    The list of training files is no part of it: they lie wherever they did when it was trained.
    Nor need their number be there, and integers of labels may be in quotes.

    Raises:
        DataError: It is no such content.
    """
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if key != "dataset"}
        data.setdefault("numTraining", 0)
        labels = data.get("labels")
        if isinstance(labels, dict):
            data["labels"] = {name: _unquoted(value) for name, value in labels.items()}
    return parse_spec(data, where)


def _unquoted(value: Any) -> Any:
    """Give the integers of a label without the quotes that nnU-Net reads them in, too."""
    if isinstance(value, list | tuple):
        return [_unquoted(one) if isinstance(one, str) else one for one in value]
    quoted = isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value)
    return int(value) if quoted else value


def _check_plain(given: Any, where: str) -> None:
    """Refuse what JSON could not hold, and what is more than any plans when it is written out.

    A pickle may name one list in many places: a small file of such lists in lists would take
    forever to write out, and one that holds itself has no end.

    Raises:
        DataError: It is so.
    """
    level, nodes = [given], 1
    for _ in range(MAX_DEPTH):
        inside: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                if strange := [key for key in value if not isinstance(key, str)]:
                    raise DataError(f"{where}: has a key that is a {type(strange[0]).__name__}")
                inside += (*value, *value.values())
            elif isinstance(value, list | tuple):
                inside += value
            elif isinstance(value, str):
                nodes += len(value) // 100
            elif not (value is None or isinstance(value, int | float)):
                raise DataError(
                    f"{where}: holds a {type(value).__name__}; nnU-Net writes numbers, text and "
                    "lists there"
                )
            elif isinstance(value, int) and value.bit_length() > 64:
                raise DataError(f"{where}: holds an integer of {value.bit_length()} bits")
            if nodes + len(inside) > _MOST_NODES:
                raise DataError(f"{where}: holds more than {_MOST_NODES} values; no training has")
        nodes, level = nodes + len(inside), inside
        if not level:
            return
    raise DataError(f"{where}: is nested deeper than {MAX_DEPTH} levels, or holds itself")


def _weights(given: Any, plan: Plan, name: str, most_bytes: int) -> dict[str, Tensor]:
    """Give the weights by our names, as float32, after a look at each of them."""
    if not isinstance(given, Mapping) or not all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in given.items()
    ):
        raise DataError("network_weights must be tensors by name")
    architecture = plan.configuration(name).architecture
    weights = from_nnunet(given, architecture)
    for ours, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.dtype not in _FLOATS or tensor.is_meta:
            raise DataError(f"the weights of {ours} are no ordinary floating-point numbers")
    if sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) > most_bytes:
        raise DataError("the weights are larger than the file, which no training wrote")
    with torch.device("meta"):
        network = build_network(architecture, plan.input_channels(name), plan.labels.heads)
    for ours, wanted in network.state_dict().items():
        tensor = weights[ours]
        if tensor.shape != wanted.shape:
            raise DataError(
                f"the weights of {ours} have shape {tuple(tensor.shape)}, its plans make a network "
                f"of {tuple(wanted.shape)}; take the plans that the model was trained with"
            )
        if not tensor.isfinite().all():
            raise DataError(f"the weights of {ours} hold NaN or infinity; the training failed")
    return {ours: tensor.float() for ours, tensor in weights.items()}


def _mirror_axes(given: Any, plan: Plan, name: str) -> tuple[int, ...]:
    dimensions = plan.configuration(name).architecture.dimensions
    axes = [] if given is None else given
    if isinstance(axes, list | tuple):
        axes = [int(axis) if isinstance(axis, np.integer) else axis for axis in axes]
    _check_plain(axes, "inference_allowed_mirroring_axes")
    if not isinstance(axes, list) or not all(
        isinstance(axis, int) and 0 <= axis < dimensions for axis in axes
    ):
        raise DataError(
            f"inference_allowed_mirroring_axes is {axes!r}; they must be axes of a patch, 0 to "
            f"{dimensions - 1}"
        )
    return tuple(sorted({axis + 3 - dimensions for axis in axes}))


def _validation_dice(log: Any) -> float | None:
    """Give the last entry of the log's moving average; older logs may have none."""
    found = log.get("ema_fg_dice") if isinstance(log, dict) else None
    if not isinstance(found, list) or not found or not isinstance(found[-1], float | np.floating):
        return None
    return float(found[-1]) if math.isfinite(found[-1]) else None


def _load(path: Path, where: str) -> Any:
    scalars = [_scalar_of(module) for module in _SCALAR_MODULES]
    try:
        _refuse_unpacking(path, where)
        with torch.serialization.safe_globals([*scalars, _Number]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror})") from None
    except Exception as error:  # its reader hands on whatever a foreign file makes it raise
        if is_out_of_memory(error):
            raise MachineError(
                f"{where}: takes more memory than there is; end what else takes some"
            ) from None
        foreign = _FOREIGN.search(str(error))  # the rest of what torch says advises to run it
        reason = (
            f"it holds {foreign[1]}, which is no tensor, container or number"
            if foreign
            else "it is damaged, or none"
        )
        raise DataError(
            f"{where}: cannot be read as a checkpoint of nnU-Net ({reason}); give a .pth file that "
            "its training wrote"
        ) from None


def _refuse_unpacking(path: Path, where: str) -> None:
    """Refuse a checkpoint that is packed: torch stores what it saves, and would unpack it all."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as parts:
        if sum(info.file_size for info in parts.infolist()) > path.stat().st_size:
            raise DataError(f"{where}: unpacks to more than its size; no training wrote it")


def _scalar_of(module: str) -> Any:
    """Give what stands for numpy's maker of scalars, which checkpoints have from `module`."""

    def scalar(kind: Any, data: Any) -> Any:
        if not isinstance(kind, _Number) or not isinstance(data, bytes):
            raise ValueError("a scalar is of a kind and bytes")
        (value,) = np.frombuffer(data, kind.code)
        return value

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    return scalar


class _Number:
    """What stands for numpy's dtype while a checkpoint is read: a kind of plain numbers.

    A dtype itself could be made of any size, or of Python's objects.
    """

    def __init__(self, code: Any, *_how: Any) -> None:
        if not isinstance(code, str) or code not in _NUMBERS:
            kind = repr(code[:20]) if isinstance(code, str) else type(code).__name__
            raise ValueError(f"GLOBAL numpy.dtype({kind})")  # as torch says
        self.code = f"<{code}"

    def __setstate__(self, state: Any) -> None:
        if state[1] == ">":  # the order of the bytes, which follows the format's version
            self.code = f">{self.code[1:]}"


_Number.__module__, _Number.__qualname__ = "numpy", "dtype"  # how a checkpoint names it
