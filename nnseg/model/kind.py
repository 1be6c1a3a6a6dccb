"""What a network is to the planner: its paper, its shape and its memory, without torch."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from nnseg.axes import Shape
from nnseg.errors import PlanError
from nnseg.model.architecture import Architecture, Dimensions, NetworkOptions
from nnseg.model.backbone_records import TIMM

# A plan may come from elsewhere: timm takes names that lead to folders and to the network, too.
_TIMM_NAME = re.compile(rf"{TIMM}\w+(\.\w+)?")

# What to do about an option that a single network has.
_TAKER = {"backbone": "give `--network encoder_unet`, which is built around one"}

Features: TypeAlias = Callable[[int, Dimensions], tuple[int, ...]]
Kept: TypeAlias = Callable[[Architecture, Shape, int], int]
OutputWeights: TypeAlias = Callable[[Architecture], tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkKind:
    """What is known of all networks of one name before one is built.

    `kept(architecture, patch_size, channels)` counts what the network of a training step keeps of
    one sample from its forward to its backward pass, in numbers of 4 bytes: the tensors that
    autograd saves in fp32, each once, all outputs of deep supervision computed, weights left out.
    The indices of a pooling have 8 bytes and count twice.
    """

    title: str  # one line for people
    source: str  # authors, year and doi or arXiv number, one line
    dimensions: tuple[Dimensions, ...]  # (2,), (3,) or (2, 3)
    levels: tuple[int, int]  # the fewest and the most; level 0 has the patch's resolution
    features: Features  # channels at each level, of the number of levels and the dimensions
    encoder_blocks: tuple[int, ...]  # at each level; deeper levels repeat the last
    decoder_blocks: tuple[int, ...]  # at each level but the deepest; deeper levels repeat the last
    kept: Kept
    weights: OutputWeights  # of the loss at each output, the main one first; they sum to 1
    outputs_by_level: bool = False  # output k is as fine as level k; else all are as the patch is
    options: tuple[str, ...] = ()  # fields of NetworkOptions that it takes
    backbones: tuple[str, ...] = ()  # what its option `backbone` may be; the first is the default
    halves_plane: bool = False  # y and x are halved from every level to the next, as in backbones

    def check(self, architecture: Architecture) -> None:
        """Refuse an architecture that no network of this kind has.

        Raises:
            PlanError: What it has, and what there is.
        """
        network, dimensions = architecture.network, architecture.dimensions
        defined = self.dimensions_with(architecture.options)
        if dimensions not in defined:
            raise PlanError(
                f"network {architecture.called} is {defined[0]}D only, not {dimensions}D"
            )
        self.check_options(network, architecture.options)

    def dimensions_with(self, options: NetworkOptions) -> tuple[Dimensions, ...]:
        """Give the dimensions in which it is defined; timm's own networks have two, only."""
        return (2,) if (options.backbone or "").startswith(TIMM) else self.dimensions

    def check_options(self, name: str, options: NetworkOptions) -> None:
        """Refuse options that a network of this kind, called `name`, does not take.

        Raises:
            PlanError: Which one, and what could be chosen.
        """
        for option in options.chosen:
            if option not in self.options:
                takes = ", ".join(self.options) or "no options"
                remedy = f"; {_TAKER[option]}" if option in _TAKER else ""
                raise PlanError(f"network {name} has no option {option}; it takes {takes}{remedy}")
        backbone = options.backbone
        if (
            backbone is not None
            and backbone not in self.backbones
            and not _TIMM_NAME.fullmatch(backbone)
        ):
            known = ", ".join(self.backbones)
            raise PlanError(
                f"no backbone is named {backbone!r}; known: {known}, and {TIMM}NAME for timm's"
            )


def doubled(first: int, most: int | None = None) -> Features:
    """Give the rule by which channels double from level to level, from `first` on up to `most`.

    >>> doubled(32, 100)(4, 3)
    (32, 64, 100, 100)
    """

    def features(levels: int, dimensions: Dimensions) -> tuple[int, ...]:
        wide = (first * 2**level for level in range(levels))
        return tuple(wide if most is None else (min(most, width) for width in wide))

    return features


def single(architecture: Architecture) -> tuple[float, ...]:
    """Weigh the outputs of a network that has one only."""
    return (1.0,)


def halving(architecture: Architecture) -> tuple[float, ...]:
    """Weigh an output at each level but the two deepest: each counts half of the one before.

    Source: nnU-Net v2, which gives the output of the deepest decoder level a weight of 0.
    """
    halved = [0.5**level for level in range(max(architecture.levels - 2, 1))]
    return tuple(weight / sum(halved) for weight in halved)
