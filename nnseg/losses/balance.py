"""Class weights that make up for how much of the data each class is."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from nnseg.labels import Labels

SLICES = 16  # of a label map that are counted at once


def count_voxels(segmentations: Iterable[Any], labels: Labels) -> tuple[int, ...]:
    """Count the voxels of each of the labels' values in label maps (z, y, x) of positions."""
    size = len(labels.values)
    total = np.zeros(size, np.int64)
    for segmentation in segmentations:
        for start in range(0, segmentation.shape[0], SLICES):
            part = np.asarray(segmentation[start : start + SLICES])
            total += np.bincount(part.reshape(-1), minlength=size)
    return tuple(total.tolist())


def balanced_weights(voxels: Sequence[int], labels: Labels) -> tuple[float, ...]:
    """Give each foreground label or region the weight by which all of them count alike.

    It is how many times its voxels go into those of the background, whose weight is 1: with them
    `ce` is the mean over the classes of what is the mean over each one's voxels. A class that does
    not occur is taken to be as rare as the rarest that does.

    Args:
        voxels: As `count_voxels` gives them.
        labels: What they are of.

    Returns:
        A weight each, in the order of dataset.json; a loss wants them in that of the heads.

    >>> labels = Labels(labels={"background": 0, "liver": 1, "tumour": 2, "cyst": 3})
    >>> balanced_weights((9000, 3000, 90, 0), labels)
    (3.0, 100.0, 100.0)
    """
    classes = labels.consecutive.foreground.values()
    sizes = [sum(voxels[position] for position in members) for members in classes]
    fewest = min((size for size in sizes if size), default=1)
    return tuple(max(voxels[0], 1) / (size or fewest) for size in sizes)
