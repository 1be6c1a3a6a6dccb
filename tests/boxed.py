"""Probabilities of a body's box in a small image, and what files that keep them should hold."""

import itertools
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nnseg.axes import Box, Order, Planes, box_slices, permute
from nnseg.labels import Labels
from nnseg.preprocess import Placement
from nnseg.probabilities import writing
from nnseg.probabilities.heads import STEPS
from nnseg.volume import Geometry, simple_geometry

SHAPE = (7, 11, 13)  # image order
BOX = ((2, 6), (1, 10), (0, 8))  # image order
ORDERS = tuple(itertools.permutations(range(3)))
LABELS = Labels(labels={"background": 0, "edema": 2, "core": 1, "ignore": 3})
REGIONS = Labels(
    labels={"background": 0, "whole": (1, 2), "core": (2,)}, regions_class_order=(1, 2)
)
GEOMETRY = simple_geometry(SHAPE, (3.0, 0.8, 0.7))
HALF_STEP = 1 / (2 * STEPS)


def placed(order: Order = (0, 1, 2), box: Box = BOX, shape: Any = SHAPE) -> Placement:
    return Placement(
        order=order,
        shape=shape,
        spacing=(3.0, 0.8, 0.7),
        box=permute(box, order),
        shape_resampled=(5, 5, 5),
    )


def made(placement: Placement, labels: Labels = LABELS) -> Planes:
    """Probabilities of the box, plan order; some are 0 and 1."""
    rng = np.random.default_rng(3)
    logits = rng.normal(scale=9, size=(*placement.shape_cropped, labels.heads))
    found = labels.probabilities(logits.astype(np.float32))
    found[0, 0, 0] = [1, *[0] * (labels.heads - 1)]
    return found


def in_image(found: Planes, placement: Placement, labels: Labels) -> np.ndarray:
    """What a file that holds the whole image should hold: (head, z, y, x), image order."""
    whole = np.zeros((labels.heads, *placement.shape), np.float32)
    if not labels.has_regions:
        whole[0] = 1
    for head, volume in enumerate(whole):
        volume.transpose(placement.order)[box_slices(placement.box)] = found[..., head]
    return whole


def save(
    folder: Path,
    kind: str,
    placement: Placement,
    labels: Labels = LABELS,
    geometry: Geometry = GEOMETRY,
    step: int = 3,
) -> tuple[Planes, tuple[Path, ...]]:
    found = made(placement, labels)
    with writing(folder / "case.nii.gz", kind, labels, geometry) as writer:
        take = writer.begin(placement)
        for start in range(0, len(found), step):
            planes = found[start : start + step].copy()
            take(planes)
            planes[:] = 7  # a caller may use its array again
    return found, writer.files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file become larger, as on a disk that gets full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
