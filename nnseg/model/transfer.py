"""Weights of one network as the start of another: for fine-tuning across channels and labels.

What has the same name and shape is taken over. Two places depend on the dataset: the first
convolution has a slice for each channel, and every head a row for each label, or a column where it
is a transposed convolution; there channels and labels are matched by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

HEADS = "heads."  # what the parameters of a network's segmentation heads begin with


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transfer:
    """What a network takes over, and what it does not."""

    weights: dict[str, Tensor]  # all parameters of the network
    kept: tuple[str, ...]  # parameters taken over whole
    adapted: tuple[str, ...]  # parameters of which channels or labels were taken over
    fresh: tuple[str, ...]  # parameters that stay as they were drawn
    unused: tuple[str, ...]  # parameters of the source that there is no place for
    channels: dict[str, bool]  # channel name to whether the source knew it
    heads: dict[str, bool]  # label or region name to whether the source knew it


def transfer(
    source: Mapping[str, Tensor],
    network: nn.Module,
    *,
    channels: tuple[Sequence[str], Sequence[str]],
    heads: tuple[Sequence[str], Sequence[str]],
) -> Transfer:
    """Fit the weights of another network into `network`, which stays as it is.

    Of several with the same name the first is matched with the first, the second with the second. A
    channel that the source doesn't know starts as the mean of those it knows: all see tissue of
    some brightness. If no channel has a name in common and their number is the same, they are taken
    over in order. A head that the source doesn't know stays as it was drawn.

    Args:
        source: The other network's state dict.
        network: Freshly built.
        channels: Names of the input channels: the source's, and the network's.
        heads: Names of the output channels, background included: the source's, and the network's.
    """
    first, columns = _first_convolution(network), _transposed_weights(network)
    weights: dict[str, Tensor] = {}
    kept: list[str] = []
    adapted: list[str] = []
    fresh: list[str] = []
    for name, own in network.state_dict().items():
        value, whole = own.detach().clone(), False
        old = source.get(name)
        if old is not None:
            old = old.detach().to(value)
            if name == first and _fits(old, value, 1):
                value, whole = _match_channels(old, value, *channels), _same(*channels)
            elif name.startswith(HEADS) and _fits(old, value, axis := int(name in columns)):
                value, whole = _match_rows(old, value, axis, *heads), _same(*heads)
            elif old.shape == value.shape:
                value, whole = old.clone(), True
            else:
                old = None
        (fresh if old is None else kept if whole else adapted).append(name)
        weights[name] = value
    return Transfer(
        weights=weights,
        kept=tuple(kept),
        adapted=tuple(adapted),
        fresh=tuple(fresh),
        unused=tuple(name for name in source if name not in weights or name in fresh),
        channels={name: name in channels[0] for name in channels[1]},
        heads={name: name in heads[0] for name in heads[1]},
    )


def describe_transfer(found: Transfer) -> str:
    """Give what was taken over as lines for people."""
    count = len(found.weights)
    lines = [
        f"taken over: {len(found.kept)} of {count} parameters whole, {len(found.adapted)} in part, "
        f"{len(found.fresh)} not"
    ]
    for what, names in (("channels", found.channels), ("heads", found.heads)):
        known = ", ".join(name for name, is_known in names.items() if is_known) or "none"
        new = ", ".join(name for name, is_known in names.items() if not is_known)
        lines.append(f"{what} known: {known}" + (f"; new: {new}" if new else ""))
    if found.fresh:
        lines.append(f"start anew: {', '.join(found.fresh)}")
    return "\n".join(lines)


def _first_convolution(network: nn.Module) -> str | None:
    """Name the weight that meets the image."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            return f"{name}.weight"
    return None


def _transposed_weights(network: nn.Module) -> set[str]:
    """Name the weights that have their output channels along axis 1."""
    kinds = (nn.ConvTranspose2d, nn.ConvTranspose3d)
    found = (name for name, module in network.named_modules() if isinstance(module, kinds))
    return {f"{name}.weight" for name in found}


def _fits(old: Tensor, new: Tensor, axis: int) -> bool:
    """Whether two shapes differ along one axis at most."""
    rest = [i for i in range(new.ndim) if i != axis]
    return old.ndim == new.ndim and all(old.shape[i] == new.shape[i] for i in rest)


def _same(old: Sequence[str], new: Sequence[str]) -> bool:
    return list(old) == list(new)


def _match_channels(
    old: Tensor, new: Tensor, old_names: Sequence[str], new_names: Sequence[str]
) -> Tensor:
    if len(old_names) == len(new_names) and not set(old_names) & set(new_names):
        return old.clone()
    mean = old.mean(dim=1)
    places = _match_names(old_names, new_names)
    slices = [mean if place is None else old[:, place] for place in places]
    return torch.stack(slices, dim=1)


def _match_rows(
    old: Tensor, new: Tensor, axis: int, old_names: Sequence[str], new_names: Sequence[str]
) -> Tensor:
    places = _match_names(old_names, new_names)
    rows = [
        new.select(axis, row) if place is None else old.select(axis, place)
        for row, place in enumerate(places)
    ]
    return torch.stack(rows, dim=axis)


def _match_names(old: Sequence[str], new: Sequence[str]) -> list[int | None]:
    """Give each new name's place among the old ones, and each of these once; None where unknown."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(old):
        places.setdefault(name, []).append(place)
    return [places[name].pop(0) if places.get(name) else None for name in new]
