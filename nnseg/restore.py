"""The way back from a network's logits to the grid of the file.

It is the inverse of `nnseg.preprocess` and takes the logits as they come, some planes at a time,
plan order: what is on the file's grid at once is the label map, never the logits.
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Planes, Segmentation, Shape, smallest_integer_type
from nnseg.image.crop import cut
from nnseg.image.decide import Change, change_grid, decide, interpolate
from nnseg.image.resample import Ask, resample_image, separate_axis
from nnseg.labels import Labels
from nnseg.plan import Configuration, Resampling
from nnseg.preprocess import Placement, planned_spacing

Scalar = TypeVar("Scalar", bound=np.generic)


def restore(
    runs: Iterable[Planes],
    placement: Placement,
    labels: Labels,
    configuration: Configuration,
    *,
    ask: Ask | None = None,
) -> Segmentation:
    """Turn a network's logits for a preprocessed case into a label map of its file.

    Args:
        runs: The logits' planes in order, some at a time.
        placement: What `preprocess_case` did.
        labels: What the heads mean.
        configuration: Says how logits are resampled.
        ask: Called before each run of planes of the label map; what it raises ends the work.

    Returns:
        Label map (z, y, x), image order, of the file's shape; 0 outside the cropped box.
    """
    runs, change = _to_file_grid(runs, placement, configuration)
    found = map(labels.painted, decide(runs, change, labels.decide))
    return paste_planes(found, placement, labels, ask=ask)


def paste_planes(
    runs: Iterable[Segmentation], placement: Placement, labels: Labels, *, ask: Ask | None = None
) -> Segmentation:
    """Put the planes of the cropped box, plan order, into a label map of the file.

    `ask` is called for each run of planes; what it raises ends the work.
    """
    whole = np.zeros(placement.shape, dtype=smallest_integer_type(labels.values[-1]))
    box = body_of(whole, placement)
    start = 0
    for planes in runs:
        if ask:
            ask()
        box[start : start + len(planes)] = planes
        start += len(planes)
    return whole


def body_of(array: NDArray[Scalar], placement: Placement) -> NDArray[Scalar]:
    """Give the cropped box of an array (z, y, x), image order, as a view in plan order."""
    return cut(array.transpose(placement.order), placement.box)


def restore_logits(
    runs: Iterable[Planes], placement: Placement, configuration: Configuration, depth: int
) -> Iterator[Planes]:
    """Bring a network's logits for a preprocessed case to the spacing of its file.

    Args:
        runs: The logits' planes in order, some at a time.
        placement: What `preprocess_case` did.
        configuration: Says how logits are resampled.
        depth: Planes to give at a time.

    Yields:
        Logits (z, y, x, head) of the planes of the cropped box, plan order.
    """
    runs, change = _to_file_grid(runs, placement, configuration)
    return interpolate(runs, change, depth)


def carry_over(
    runs: Iterable[Planes],
    labels: Labels,
    configuration: Configuration,
    shape: Shape,
    new_shape: Shape,
) -> Segmentation:
    """Turn a network's logits for a preprocessed case into what the next stage of a cascade sees.

    Args:
        runs: The logits' planes in order, some at a time.
        labels: What the heads mean.
        configuration: Of the network, a 3D one; says how logits are resampled.
        shape: Voxels of the case as this stage has it, plan order.
        new_shape: Voxels of the case as the next stage has it, plan order.

    Returns:
        Positions of labels (z, y, x), of `new_shape`.

    Source: nnU-Net 2.8.1, which looks at this configuration's spacing alone to decide whether the
    coarsest axis is resampled apart.
    """
    z, y, x = configuration.spacing
    assert z is not None, "a cascade's stages are 3D"
    rule = configuration.resample_logits
    axis = separate_axis((z, y, x), (z, y, x), rule.separate)
    runs, change = change_logits(runs, shape, new_shape, axis, rule)
    found = map(labels.painted, decide(runs, change, labels.decide))
    return np.concatenate([labels.to_positions(planes) for planes in found])


def axis_apart(placement: Placement, configuration: Configuration) -> int | None:
    """Give the axis that logits are resampled apart on their way to the file's grid, plan order."""
    old = placement.spacing_planned
    spacing = planned_spacing(old, configuration)
    return separate_axis(spacing, old, configuration.resample_logits.separate)


def change_logits(
    runs: Iterable[Planes], shape: Shape, new_shape: Shape, axis: int | None, rule: Resampling
) -> tuple[Iterable[Planes], Change]:
    """Say how the logits go to the new grid; with splines of a higher order they are there then.

    Args:
        runs: The logits' planes in order, some at a time.
        shape: Voxels of their grid.
        new_shape: Voxels of the other.
        axis: The axis that is resampled apart.
        rule: How they are resampled.
    """
    if shape == new_shape:
        return runs, change_grid(shape, shape, None)
    if max(rule.order, rule.order_along if axis is not None else 0) < 2:
        return runs, change_grid(shape, new_shape, axis, rule.order, rule.order_along)
    logits = np.moveaxis(np.concatenate(list(runs)), -1, 0)
    resized = resample_image(logits, new_shape, axis, rule.order, rule.order_along)
    return [np.moveaxis(resized, 0, -1)], change_grid(new_shape, new_shape, None)


def _to_file_grid(
    runs: Iterable[Planes], placement: Placement, configuration: Configuration
) -> tuple[Iterable[Planes], Change]:
    axis, rule = axis_apart(placement, configuration), configuration.resample_logits
    return change_logits(runs, placement.shape_resampled, placement.shape_cropped, axis, rule)
