"""Probabilities from the disk averaged: what models found, each by itself, becomes one label map.

No network is needed for it. Labels follow as where models predict together (`nnseg.ensemble`): the
weighted mean of probabilities on the file's grid decides, and of one model its logits.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Box, Order, Planes, Segmentation
from nnseg.errors import DataError
from nnseg.image.crop import cut
from nnseg.image.decide import Change, change_grid, decide_together, interpolate, slab_depth
from nnseg.image.resample import Ask
from nnseg.labels import Labels
from nnseg.preprocess import Placement
from nnseg.probabilities import OpenCompact, OpenNpz, OpenProbabilities
from nnseg.restore import change_logits, paste_planes
from nnseg.volume import grid_fault

SLAB_BYTES = 2**26  # of the probabilities at once, on the file's grid or on that of each model

Opened: TypeAlias = OpenCompact | OpenProbabilities | OpenNpz
TakePlanes: TypeAlias = Callable[[Planes], None]


def label_map(
    members: Sequence[tuple[Opened, float]],
    *,
    probabilities: Callable[[Placement], TakePlanes] | None = None,
    ask: Ask | None = None,
) -> Segmentation:
    """Average what models found in one case, and decide on its labels.

    Where all agree it is as they say, and nothing is computed. One member, however often and with
    whatever weights it is given, yields its own label map: exactly, where its grid is the file's;
    elsewhere but for voxels at which its interpolated log-odds tie within their rounding.

    Args:
        members: What each model found, and its weight beside the others'.
        probabilities: Called once with where a box lies in the file; what it gives is called with
            the mean probabilities (z, y, x, head) of that box, plan order, some planes at a time.
        ask: Called before each run of planes; what it raises ends the work.

    Returns:
        Label map (z, y, x), image order, of the file's shape.

    Raises:
        DataError: Their labels or grids differ, or a weight is not over 0.
    """
    found = [member for member, _ in members]
    check_members(found)
    shares = shares_of([weight for _, weight in members])
    if len({_frame(member) for member in found}) > 1:
        return _label_map_at_once(found, shares, probabilities, ask)
    placement, labels = found[0].stored.placement, found[0].stored.labels
    turns = [_to_probabilities(member) for member in found]
    streams, changes = zip(*map(_to_file_grid, found), strict=True)

    def join(rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        if len(rows) == 1:
            return rows[0]
        likely = (turn(some) for turn, some in zip(turns, rows, strict=True))
        return centred(labels, weighted_mean(likely, shares))

    if probabilities is None:
        decided = decide_together(streams, changes, labels.decide, join)
        return paste_planes(map(labels.painted, decided), placement, labels, ask=ask)
    take = probabilities(placement)

    def segmented() -> Iterator[Segmentation]:
        voxels = SLAB_BYTES // (4 * labels.heads)
        depth = min(slab_depth(change.old_shape, change.shape, voxels) for change in changes)
        slabs = (interpolate(*each, depth) for each in zip(streams, changes, strict=True))
        for rows in zip(*slabs, strict=True):
            yield labels.segment(join(rows))
            likely = (turn(some) for turn, some in zip(turns, rows, strict=True))
            take(weighted_mean(likely, shares))

    return paste_planes(segmented(), placement, labels, ask=ask)


def check_members(members: Sequence[Opened]) -> None:
    """Make sure that what models found can be averaged.

    Raises:
        DataError: Their labels differ, or the grids of their files.
    """
    first = members[0].stored
    for number, member in enumerate(members[1:], start=2):
        if member.stored.labels != first.labels:
            raise DataError(
                f"the labels of member {number} are {member.stored.labels.labels}, and those of "
                f"the first {first.labels.labels}; probabilities of other labels cannot be averaged"
            )
        if fault := grid_fault(first.geometry, member.stored.geometry):
            raise DataError(
                f"member {number} lies on another grid than the first: {fault}; predict the same "
                "images with all models"
            )


def shares_of(weights: Sequence[float]) -> list[float]:
    """Give the share of each of several weights.

    Raises:
        DataError: One is not over 0, or is infinite.

    >>> shares_of([1, 3])
    [0.25, 0.75]
    """
    for weight in weights:
        if not 0 < weight < math.inf:
            raise DataError(f"the weight of a model is {weight:g}; it must be over 0")
    shares: list[float] = (np.array(weights, float) / math.fsum(weights)).tolist()
    return shares


def weighted_mean(
    likely: Iterable[NDArray[np.float32]], shares: Sequence[float]
) -> NDArray[np.float32]:
    """Average probabilities (..., head), each with its share; the arrays are used up."""
    mean = None
    for each, share in zip(likely, shares, strict=True):
        each *= np.float32(share)
        mean = each if mean is None else np.add(mean, each, out=mean)
    assert mean is not None, "somebody found something"
    return mean


def centred(labels: Labels, mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give what decides on mean probabilities as logits decide: a region's are over 0 from half."""
    return mean - np.float32(0.5) if labels.has_regions else mean


def _frame(member: Opened) -> tuple[Order, Box]:
    """Say in which order of axes, and of which box of the file, a member's planes are."""
    return member.stored.placement.order, member.stored.placement.box


def _to_file_grid(member: Opened) -> tuple[Iterable[Planes], Change]:
    """Give what decides as logits do, some planes at a time, and its way to the file's grid."""
    stored = member.stored
    shape = stored.placement.shape_cropped
    if isinstance(member, OpenCompact):
        old, rule = stored.placement.shape_resampled, member.stored.resampling
        return change_logits(member.runs(), old, shape, member.stored.axis_apart, rule)
    return (centred(stored.labels, run) for run in member.runs()), change_grid(shape, shape, None)


def _to_probabilities(member: Opened) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Give what makes new arrays of probabilities out of what `_to_file_grid` gave."""
    labels = member.stored.labels
    if isinstance(member, OpenCompact):
        return labels.probabilities
    return lambda rows: rows + np.float32(0.5 if labels.has_regions else 0)


def _label_map_at_once(
    members: Sequence[Opened],
    shares: Sequence[float],
    probabilities: Callable[[Placement], TakePlanes] | None,
    ask: Ask | None,
) -> Segmentation:
    """Do the work of `label_map` where planes of members do not match: all of the file at once."""
    stored = members[0].stored
    placement, labels = stored.placement, stored.labels
    mean = np.zeros((*placement.shape, labels.heads), np.float32)
    for member, share in zip(members, shares, strict=True):
        order, box = _frame(member)
        inside = cut(np.moveaxis(mean, 3, 0).transpose(0, *(axis + 1 for axis in order)), box)
        outside = np.ones(placement.shape, np.bool_)
        cut(outside.transpose(order), box)[...] = False
        if not labels.has_regions:
            mean[outside, 0] += np.float32(share)
        stream, change = _to_file_grid(member)
        start, turn = 0, _to_probabilities(member)
        depth = slab_depth(change.old_shape, change.shape, SLAB_BYTES // (4 * labels.heads))
        for planes in interpolate(stream, change, depth):
            if ask:
                ask()
            likely = turn(planes) * np.float32(share)
            inside[:, start : start + len(planes)] += np.moveaxis(likely, 3, 0)
            start += len(planes)
    if probabilities is not None:
        z, y, x = placement.shape
        whole = Placement(
            order=(0, 1, 2),
            shape=placement.shape,
            spacing=placement.spacing,
            box=((0, z), (0, y), (0, x)),
            shape_resampled=placement.shape,
        )
        probabilities(whole)(mean)
    return labels.segment(centred(labels, mean))
