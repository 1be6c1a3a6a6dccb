"""Mixup: batches whose images are mixed with one another, and their loss to both targets.

Source: Zhang et al. 2018, arXiv:1710.09412, and its way to mix a batch with itself in another
order, by one share for all of it. No other share would do here: where Dice sums over the batch
there is one loss, and it can be weighted only once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixing:
    """Which samples of a batch are mixed, and by how much."""

    share: float  # of a sample itself in what it becomes, 0 to 1; its partner has the rest
    shift: int  # from a sample to its partner, counted round the batch

    def partner(self, sample: int, samples: int) -> int:
        """Give the number of the sample that one of so many is mixed with.

        No sample of several is its own partner. A batch of one is mixed with sample 1, which is
        made for nothing else.

        >>> mixing = Mixing(share=0.7, shift=2)
        >>> [mixing.partner(sample, 5) for sample in range(5)]
        [2, 3, 4, 0, 1]
        """
        return (sample + self.shift) % max(samples, 2)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixed:
    """What a mixed batch shows besides its own samples."""

    segmentation: Tensor  # of the partners, as that of the batch
    share: float  # of the batch's own samples; the partners have the rest


def draw_mixing(alpha: float, samples: int, rng: np.random.Generator) -> Mixing:
    """Draw how a batch of so many samples is mixed: the share from Beta(alpha, alpha).

    A small alpha gives shares near 0 and 1, 1 all of them alike, a large one halves.
    """
    share = float(rng.beta(alpha, alpha))
    return Mixing(share=share, shift=int(rng.integers(1, max(samples, 2))))


def mix(images: Tensor, partners: Tensor, share: float) -> Tensor:
    """Give `share` of the images and the rest of their partners."""
    return partners.lerp(images, share)


def mixed_loss(
    loss: Callable[[Tensor], Tensor], segmentation: Tensor, mixed: Mixed | None
) -> Tensor:
    """Give the loss to the batch's own target, or of a mixed one to both by their shares.

    That is exact for any loss of the same outputs, deeply supervised or not; targets need not be
    mixed, which labels to ignore could not be.

    Args:
        loss: Of a target.
        segmentation: The batch's own.
        mixed: The other; None where nothing was mixed.
    """
    own = loss(segmentation)
    if mixed is None:
        return own
    return mixed.share * own + (1 - mixed.share) * loss(mixed.segmentation)
