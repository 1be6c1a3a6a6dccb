"""Models on disk: weights as safetensors, everything else as JSON beside them.

A checkpoint NAME is NAME.json and the weights file it names by hash; the JSON holds a hash of
itself, too. It is written last, so that a kill at any moment leaves the checkpoint before. Loading
never runs code.
"""

import hashlib
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from nnseg import record
from nnseg.commit import sha256, write_whole
from nnseg.errors import DataError, PlanError
from nnseg.folders import checkpoint_file
from nnseg.plan import Configuration, Plan

FORMAT = 1
REMEDY = "restore the model"  # where a file of it is damaged

Kind = Literal["final", "best"]  # of models to predict with; a run goes on by `resume`
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that a model is, but for its weights.

    `mirror_axes` are those of (z, y, x) that training mirrored, so that prediction may.
    """

    plan: Plan
    configuration_name: str
    fold: str
    epoch: int  # epochs done
    mirror_axes: tuple[int, ...]
    weights_file: str
    weights_sha256: str
    validation_dice: float | None = None  # moving average of the pseudo Dice when it was saved
    format: int = FORMAT
    record_sha256: str = ""  # of this record without it; `record.save_sealed` writes it

    def __post_init__(self) -> None:
        self.plan.configuration(self.configuration_name)  # it raises where there is none
        record.check_file_names("weights_file", [self.weights_file])
        axes = self.mirror_axes
        if len(set(axes)) < len(axes) or not set(axes) <= {0, 1, 2}:
            raise PlanError(f"mirror_axes is {axes}; they must be different ones of 0, 1 and 2")

    @property
    def configuration(self) -> Configuration:
        """The plan's configuration that the network was built from."""
        return self.plan.configuration(self.configuration_name)


def pack(tensors: dict[str, Tensor]) -> bytes:
    """Turn tensors into the bytes of a safetensors file, on whatever device they are."""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def save_weights(folder: Path, name: str, data: bytes) -> tuple[str, str]:
    """Write the weights of checkpoint `name`; give the file's name and its SHA-256.

    The name holds part of the hash, so that the weights of the checkpoint before stay beside it
    until its JSON is replaced; `forget_weights` then removes them.
    """
    digest = hashlib.sha256(data).hexdigest()
    file = f"{name}-{digest[:12]}.safetensors"
    write_whole(folder / file, data)
    return file, digest


def forget_weights(folder: Path, name: str, keep: Collection[str]) -> None:
    """Remove weights of checkpoint `name` other than the files `keep`, as far as it can be."""
    for path in folder.glob(f"{name}-*.safetensors"):
        if path.name not in keep:
            with suppress(OSError):  # the next checkpoint tries it again
                path.unlink()


def check_weights(folder: Path, file: str, digest: str) -> None:
    """Make sure that a weights file is what was written.

    Raises:
        DataError: It is missing, damaged, or lies outside `folder`.
    """
    path = _weights_path(folder, file)
    try:
        found = sha256(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    if found != digest:
        raise _damaged(path)


def load_weights(folder: Path, file: str, digest: str) -> dict[str, Tensor]:
    """Read a weights file after checking its hash.

    Raises:
        DataError: It is missing, damaged, or lies outside `folder`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = _weights_path(folder, file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(path)
    try:
        return load(data)
    except SafetensorError as error:
        raise DataError(f"{path}: is not a safetensors file ({error})") from None


def save_model(
    folder: Path,
    kind: Kind,
    network: torch.nn.Module,
    *,
    plan: Plan,
    configuration_name: str,
    fold: str,
    epoch: int,
    mirror_axes: tuple[int, ...],
    validation_dice: float | None,
) -> Checkpoint:
    """Write a model to predict with; it replaces the one of this `kind` in one step."""
    name = f"checkpoint_{kind}"
    file, digest = save_weights(folder, name, pack(dict(network.state_dict())))
    checkpoint = Checkpoint(
        plan=plan,
        configuration_name=configuration_name,
        fold=fold,
        epoch=epoch,
        mirror_axes=mirror_axes,
        weights_file=file,
        weights_sha256=digest,
        validation_dice=validation_dice,
    )
    checkpoint = record.save_sealed(checkpoint, checkpoint_file(folder, kind))
    forget_weights(folder, name, keep=(file,))
    return checkpoint


def load_model(folder: Path, kind: Kind) -> tuple[Checkpoint, dict[str, Tensor]]:
    """Read a model that `save_model` wrote.

    Raises:
        MissingError: There is none.
        DataError: It is damaged or of another version.
    """
    path = checkpoint_file(folder, kind)
    checkpoint = record.load_sealed(Checkpoint, path, "nnseg train", REMEDY)
    return checkpoint, load_weights(folder, checkpoint.weights_file, checkpoint.weights_sha256)


def _weights_path(folder: Path, file: str) -> Path:
    if Path(file).name != file:
        raise DataError(f"{folder}: the weights file {file!r} must lie in this folder")
    return folder / file


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror}); restore the model")


def _damaged(path: Path) -> DataError:
    return DataError(f"{path}: is damaged (its SHA-256 changed); restore the model")
