"""Trained weights of an image network, from a safetensors file of timm, as those of an encoder."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnseg.axes import by
from nnseg.dataset import printable
from nnseg.errors import DataError, MissingError, UsageError
from nnseg.model.architecture import Architecture
from nnseg.model.backbone_records import TIMM
from nnseg.model.counts.encoders import DEFAULT, LEVELS
from nnseg.networks.backbones import build_backbone
from nnseg.networks.encoder_unet import ENCODER
from nnseg.networks.inflation import Backbone, Levels, flat_levels, levels_of

MOST_BYTES = 2**31  # the largest networks of timm's that have maps of all levels take about 1 GB
COLOURS = 3  # channels of the images that the weights were trained with
COUNTER = "num_batches_tracked"  # of batch norms; files have them or not, and nothing reads them
NAMED = 2  # parameters that an error names
SHOWN = 80  # characters of a name that an error shows
PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncoderWeights:
    """A file of trained weights, by timm's names."""

    source: Path
    sha256: str
    weights: dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncoderStart:
    """What a network takes over from a file, by its own names."""

    weights: dict[str, Tensor]
    kept: tuple[str, ...]  # taken over as they are
    adapted: tuple[str, ...]  # inflated, or brought to another number of channels


def read_encoder_weights(path: Path) -> EncoderWeights:
    """Read a safetensors file.

    Raises:
        MissingError: There is none.
        DataError: It is too large, cannot be read, or is not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        raise MissingError(f"{path} is no file; give the model.safetensors of a network of timm's")
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(
                f"{path}: has {size / 1e9:.1f} GB; the weights of an image network have at most "
                f"{MOST_BYTES / 1e9:.1f} GB; give the file of another"
            )
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    try:
        weights = load(data)
    except (SafetensorError, KeyError) as error:  # KeyError: of a type that torch has not
        raise DataError(
            f"{path}: is not a safetensors file ({_shown(str(error))}); download the "
            "model.safetensors of timm's"
        ) from None
    return EncoderWeights(source=path, sha256=hashlib.sha256(data).hexdigest(), weights=weights)


def fit_encoder(
    found: EncoderWeights, architecture: Architecture, channels: int, labels: int = 0
) -> EncoderStart:
    """Give the weights of a network's encoder from a file.

    The classifier is left out, as are stages deeper than the network has levels. The first
    convolution is brought to the image's channels as timm does it: for one, the sum over the
    colours; for others, colours in turn, scaled so that the sum over the channels stays. Labels of
    the stage before are no colours: their kernels are 0 at first. In 3D kernels are inflated.

    Args:
        found: The file.
        architecture: Of a network `encoder_unet`.
        channels: Of the image.
        labels: Further channels of a cascade's input, behind those of the image.

    Raises:
        UsageError: The network has no image network as its encoder.
        DataError: The file is of another image network, or its numbers cannot be trained with.
    """
    if architecture.network != "encoder_unet":
        raise UsageError(
            f"network {architecture.network} has no image network as its encoder; plan with "
            "--network encoder_unet"
        )
    name = architecture.options.backbone or DEFAULT
    levels = levels_of(architecture)
    encoder = _unfilled(name, levels, channels + labels)
    shapes = _shapes(encoder, _unfilled(name, flat_levels(len(levels.steps)), COLOURS))
    _check(found, name, encoder, shapes)
    first = _first_convolution(encoder)
    weights: dict[str, Tensor] = {}
    adapted = []
    for key, shape in shapes.items():
        value = _numbers(found, encoder.name_in_timm(key))
        if key == first:
            value = functional.pad(match_channels(value, channels), (0, 0, 0, 0, 0, labels))
        value = encoder.adapt(key, value)
        weights[ENCODER + key] = value.contiguous()
        if value.shape != shape:
            adapted.append(ENCODER + key)
    kept = tuple(key for key in weights if key not in adapted)
    return EncoderStart(weights=weights, kept=kept, adapted=tuple(adapted))


def match_channels(weight: Tensor, channels: int) -> Tensor:
    """Bring a convolution of colours (output, colour, y, x) to another number of channels.

    On an image whose channels are all alike, one channel, or a multiple of three, gives what a grey
    image gave; other numbers give about as much.
    """
    if channels == COLOURS:
        return weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    colours = [channel % COLOURS for channel in range(channels)]
    return weight[:, colours] * (COLOURS / channels)


def describe_encoder_start(start: EncoderStart, fresh: int) -> str:
    """Give what was taken over as a line for people.

    Args:
        start: What was.
        fresh: How many parameters of the network were not.
    """
    count = len(start.weights)
    return (
        f"the encoder's {count} parameters taken over, {len(start.adapted)} of them inflated or "
        f"brought to the number of channels; {fresh} of the decoder start anew"
    )


def _numbers(found: EncoderWeights, name: str) -> Tensor:
    """Give a parameter of a file in single precision.

    Raises:
        DataError: It is of a type that is not trained with, or not finite.
    """
    value = found.weights[name]
    if value.dtype not in PRECISIONS:
        kind = str(value.dtype).removeprefix("torch.")
        problem = f"is of type {kind}, not of floating point numbers of 16 bits or more"
    elif not (value := value.float()).isfinite().all():
        problem = "has values that are infinite or no numbers"
    else:
        return value
    raise DataError(
        f"{found.source}: {_shown(name)} {problem}; give the model.safetensors as timm published it"
    )


def _unfilled(name: str, levels: Levels, channels: int) -> Backbone:
    """Build a backbone to look at; ours take no memory."""
    if name.startswith(TIMM):
        with torch.random.fork_rng(devices=[]):
            return build_backbone(name, levels, channels)[0]
    with torch.device("meta"):
        return build_backbone(name, levels, channels)[0]


def _shapes(encoder: Backbone, published: Backbone) -> dict[str, torch.Size]:
    """Give the shapes that the parameters of an encoder have in a file, by our names."""
    shapes = {key: tensor.shape for key, tensor in published.state_dict().items()}
    return {key: shapes[key] for key in encoder.state_dict() if not key.endswith(COUNTER)}


def _check(
    found: EncoderWeights, name: str, encoder: Backbone, shapes: Mapping[str, torch.Size]
) -> None:
    """Make sure that a file is of a backbone.

    Raises:
        DataError: It is not; what is missing, too much, or of another shape.
    """
    wanted = {encoder.name_in_timm(key): shape for key, shape in shapes.items()}
    known = set(wanted)
    if not name.startswith(TIMM):  # all levels' names; timm's own networks have names of any kind
        known |= set(_unfilled(name, flat_levels(LEVELS[1]), COLOURS).state_dict())
    others = {
        key
        for key in found.weights
        if key not in known and not key.startswith(encoder.classifier) and COUNTER not in key
    }
    missing = set(wanted) - set(found.weights)
    wrong = {key for key in set(wanted) - missing if found.weights[key].shape != wanted[key]}
    complaints = [f"it lacks {_named(missing)}"] if missing else []
    if others and not name.startswith(TIMM):
        complaints.append(f"it has {_named(others)}, which that has not")
    if wrong:
        key = min(wrong)
        complaints.append(f"{_shown(key)} is {by(found.weights[key].shape)}, not {by(wanted[key])}")
    if complaints:
        raise DataError(
            f"{found.source}: is not of {name} ({'; '.join(complaints)}); give the file of this "
            "network, or plan with the --backbone that it is of"
        )


def _named(names: Collection[str]) -> str:
    """Name some of many.

    >>> _named({"b", "c", "a", "d"})
    'a, b and 2 more'
    """
    shown = sorted(names)[:NAMED]
    more = len(names) - len(shown)
    return ", ".join(map(_shown, shown)) + (f" and {more} more" if more else "")


def _shown(name: str) -> str:
    """Give a parameter's name as it can be shown: a file's may be anything."""
    text = printable(name)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _first_convolution(encoder: nn.Module) -> str:
    """Name the weight that meets the image."""
    kinds = (nn.Conv2d, nn.Conv3d)
    found = (name for name, module in encoder.named_modules() if isinstance(module, kinds))
    return f"{next(found)}.weight"
