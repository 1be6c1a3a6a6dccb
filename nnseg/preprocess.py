"""Stage 3, a case to what its network sees; `nnseg.restore` is the way back.

`preprocess_case` crops to the body, reorders axes, normalizes and resamples; `Placement` remembers
what was done. Where several configurations want the same case, `crop_to_body`, `normalize_case` and
`resample_case` are its steps: what `same_normalization` and `arrays_hash` find equal is made once.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnseg import record
from nnseg.axes import (
    Box,
    Image,
    Mask,
    Order,
    Segmentation,
    Shape,
    Spacing,
    permute,
    smallest_integer_type,
    three,
)
from nnseg.errors import DataError
from nnseg.image.crop import Cropped, crop_to_body
from nnseg.image.normalize import NORMALIZERS
from nnseg.image.resample import (
    Ask,
    resample_image,
    resample_segmentation,
    separate_axis,
    target_shape,
)
from nnseg.labels import Labels
from nnseg.plan import Configuration, Plan

LOCATIONS = 10_000  # voxels remembered of a label, or a hundredth of it if that is more
LOCATION_SEED = 1234
ANNOTATED = ""  # no label has this name: voxels that are not ignored, background among them
_SLAB_VOXELS = 2**20

OUTSIDE = -1  # of the body, while image and label map are resampled together; never stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a preprocessed case lies in its file: all that the way back needs."""

    order: Order  # from image order to plan order
    shape: Shape  # voxels of the file, image order
    spacing: Spacing  # mm of the file, image order
    box: Box  # the body's bounding box, plan order
    shape_resampled: Shape  # voxels of the preprocessed case, plan order

    @property
    def shape_cropped(self) -> Shape:
        """Voxels after cropping and before resampling, plan order."""
        (z0, z1), (y0, y1), (x0, x1) = self.box
        return z1 - z0, y1 - y0, x1 - x0

    @property
    def spacing_planned(self) -> Spacing:
        """The spacing of the file in plan order, mm."""
        return permute(self.spacing, self.order)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessed:
    """A case as its network sees it, in plan order.

    `mask` is True within the body; `segmentation` is None for a case without labels.
    """

    image: Image  # (channel, z, y, x), float32
    segmentation: Segmentation | None  # (z, y, x); positions of `Labels.to_positions`
    mask: Mask  # (z, y, x)
    placement: Placement


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Normalized:
    """A case cut to its body and at its network's scale, plan order, on the grid of its file."""

    image: Image  # (channel, z, y, x)
    labels: Segmentation | None  # (z, y, x), OUTSIDE of the body; None: all body, nothing labelled
    labelled: bool  # whether the case came with a label map
    spacing: Spacing  # mm, of the file, image order
    box: Box  # plan order
    shape: Shape  # voxels of the file, image order


def preprocess_case(
    channels: Sequence[NDArray[Any]],
    segmentation: Segmentation | None,
    spacing: Spacing,
    plan: Plan,
    configuration: Configuration,
    *,
    ask: Ask | None = None,
) -> Preprocessed:
    """Bring one case to the spacing and scale of `configuration`.

    Args:
        channels: Each (z, y, x), image order, of any real type; they stay as they are. An image
            (channel, z, y, x) is a sequence of them.
        segmentation: (z, y, x), image order, or None.
        spacing: mm, (z, y, x), image order.
        plan: Gives the axis order, the intensities and the labels.
        configuration: One of the plan's.
        ask: Called between the steps, and within resampling; what it raises ends the work.

    Raises:
        DataError: The number of channels is not the plan's, the label map has another shape than
            the image or values that are no labels, the image is so thin along an axis that no
            voxel of the planned spacing is left of it, or its values are too large for float32.

    Source: nnU-Net v2's order of steps: transpose, crop, normalize, resample. As there, labelled
    voxels count as body.
    """
    if segmentation is not None and segmentation.shape != channels[0].shape:
        raise DataError(
            f"the image has {channels[0].shape} voxels and the label map {segmentation.shape} "
            "(z, y, x); they must lie on one grid"
        )
    if len(channels) != len(plan.channels):
        raise _wrong_channels(len(channels), plan)
    cropped = crop_to_body(tuple(channels), segmentation)
    normalized = normalize_case(cropped, spacing, plan, configuration, ask=ask)
    del cropped  # its mask is as large as the image
    return resample_case(normalized, plan, configuration, ask=ask)


def normalize_case(
    case: Cropped,
    spacing: Spacing,
    plan: Plan,
    configuration: Configuration,
    *,
    ask: Ask | None = None,
) -> Normalized:
    """Bring a cropped case to plan order and to the scale of `configuration`.

    Args:
        case: What `crop_to_body` gave; it stays as it is.
        spacing: mm, (z, y, x), image order.
        plan: As for `preprocess_case`.
        configuration: As for `preprocess_case`.
        ask: Called before each channel; what it raises ends the work.

    Raises:
        DataError: As `preprocess_case`, so that nothing is computed in vain; or values are so large
            that normalizing them overflows, which would blind the network in silence.
    """
    if len(case.channels) != len(plan.channels):
        raise _wrong_channels(len(case.channels), plan)
    order = plan.order
    shape = three(case.channels[0].transpose(order).shape)
    _check_thickness(shape, permute(spacing, order), configuration)
    mask = None if case.mask is None else np.ascontiguousarray(case.mask.transpose(order))
    labels = None
    if case.segmentation is not None:
        labels = _signed(plan.labels.to_positions(case.segmentation).transpose(order))
        if mask is not None:
            # What somebody labelled is body, whatever the image shows there.
            mask = mask | (labels != 0)
            labels[~mask] = OUTSIDE  # the body's rim competes with the labels, as one of them

    image = np.empty((len(case.channels), *shape), dtype=np.float32)
    for number, channel in enumerate(case.channels):
        if ask:
            ask()
        image[number] = channel.transpose(order)
        normalizer = NORMALIZERS[configuration.normalization[number]]
        masked = configuration.use_mask[number]
        try:
            with np.errstate(over="raise", invalid="raise"):
                normalizer(image[number], plan.intensities[number], mask if masked else None)
        except FloatingPointError:
            raise DataError(
                f"channel {plan.channels[number]} has values from {float(channel.min()):g} to "
                f"{float(channel.max()):g}, too large to be normalized in float32; replace those "
                "that stand for nothing by that of air, or rescale the image"
            ) from None
    if labels is None and mask is not None:
        labels = np.where(mask, np.int8(0), np.int8(OUTSIDE))
    return Normalized(
        image=image,
        labels=labels,
        labelled=case.segmentation is not None,
        spacing=spacing,
        box=permute(case.box, order),
        shape=case.shape,
    )


def resample_case(
    case: Normalized, plan: Plan, configuration: Configuration, *, ask: Ask | None = None
) -> Preprocessed:
    """Bring a normalized case to the spacing of `configuration`.

    The result may share its image with `case`: a case that has the spacing already is not copied.
    `ask` is called before each run of planes; what it raises ends the work.
    """
    old = permute(case.spacing, plan.order)
    new = planned_spacing(old, configuration)
    shape = target_shape(three(case.image.shape[1:]), old, new)
    rule = configuration.resample_image
    axis = separate_axis(old, new, rule.separate)
    image = resample_image(case.image, shape, axis, rule.order, rule.order_along, ask=ask)

    labels = case.labels
    if labels is None:
        mask = np.ones(shape, np.bool_)
    else:
        rule = configuration.resample_segmentation
        axis = separate_axis(old, new, rule.separate)
        labels = resample_segmentation(labels, shape, axis, rule.order, rule.order_along, ask=ask)
        mask = labels != OUTSIDE
        labels = np.maximum(labels, 0)
    kind = smallest_integer_type(len(plan.labels.values) - 1)
    return Preprocessed(
        image=image,
        segmentation=labels.astype(kind) if case.labelled and labels is not None else None,
        mask=mask,
        placement=Placement(
            order=plan.order,
            shape=case.shape,
            spacing=case.spacing,
            box=case.box,
            shape_resampled=shape,
        ),
    )


def _wrong_channels(count: int, plan: Plan) -> DataError:
    return DataError(
        f"the image has {count} channels; the plan wants {len(plan.channels)}: "
        f"{', '.join(plan.channels)}"
    )


def _check_thickness(shape: Shape, old: Spacing, configuration: Configuration) -> None:
    new = planned_spacing(old, configuration)
    wanted = target_shape(shape, old, new)
    if min(wanted) < 1:
        raise DataError(
            f"the image has {shape} voxels of {old} mm (z, y, x, plan order); at the planned "
            f"{new} mm these would be {wanted}; correct its spacing, or leave the case out"
        )


def _signed(labels: Segmentation) -> Segmentation:
    """Give a copy of a label map in the smallest type that holds OUTSIDE as well."""
    low = min(int(labels.min(initial=0)), -1 - int(labels.max(initial=0)), OUTSIDE)
    return np.array(labels, dtype=np.min_scalar_type(low), order="C")


def preprocessing_hash(plan: Plan, configuration: Configuration) -> str:
    """Give a hash of everything in a plan that preprocessed arrays follow from."""
    rules = (configuration.resample_image, configuration.resample_segmentation)
    return _hash(plan, configuration, [configuration.spacing, *map(record.to_json, rules)])


def arrays_hash(
    plan: Plan, configuration: Configuration, spacing: Spacing, shape_cropped: Shape
) -> str:
    """Give a hash of everything in a plan that the arrays of one case follow from.

    It is equal for two configurations that make the same arrays of the case, as a 2D and a 3D one
    do of a case whose slices lie as far apart as the 3D one plans.

    Args:
        plan: Of the configuration.
        configuration: One of the plan's.
        spacing: mm, (z, y, x) of the case's files, image order.
        shape_cropped: Voxels of the case's body, plan order.
    """
    old = permute(spacing, plan.order)
    new = planned_spacing(old, configuration)
    shape = target_shape(shape_cropped, old, new)
    rules: list[Any] = [shape]
    if shape != shape_cropped:  # else there is nothing to resample
        for rule in (configuration.resample_image, configuration.resample_segmentation):
            rules += [record.to_json(rule), separate_axis(old, new, rule.separate)]
    return _hash(plan, configuration, rules)


def same_normalization(first: Configuration, second: Configuration) -> bool:
    """Say whether `normalize_case` makes the same of a case for two configurations of a plan."""
    rules = ((one.normalization, one.use_mask) for one in (first, second))
    return next(rules) == next(rules)


def _hash(plan: Plan, configuration: Configuration, resampling: list[Any]) -> str:
    data = {
        "order": plan.order,
        "channels": plan.channels,
        "labels": record.to_json(plan.labels),
        "intensities": [record.to_json(intensity) for intensity in plan.intensities],
        "normalization": configuration.normalization,
        "use_mask": configuration.use_mask,
        "resampling": resampling,
    }
    return sha256(json.dumps(data).encode()).hexdigest()


def planned_spacing(spacing: Spacing, configuration: Configuration) -> Spacing:
    """Give the spacing to resample to, mm; a 2D configuration keeps the slices' own."""
    z, y, x = configuration.spacing
    return (spacing[0] if z is None else z), y, x


def find_locations(segmentation: Segmentation, labels: Labels) -> dict[str, NDArray[np.int64]]:
    """Draw voxels of each label or region, for patches that are to show it.

    Args:
        segmentation: (z, y, x), preprocessed.
        labels: Names of what to look for.

    Returns:
        Name to flat indices into `segmentation`, ascending; absent labels have no entry. With an
        ignore label, `ANNOTATED` holds voxels that are not ignored.

    Source: nnU-Net v2: at most 10 000 voxels a label, or a hundredth of them if that is more.
    """
    labels = labels.consecutive  # what a preprocessed segmentation holds
    wanted = {name: np.array(values) for name, values in labels.foreground.items()}
    if labels.ignore is not None:
        wanted[ANNOTATED] = np.array([v for v in labels.values if v != labels.ignore])
    flat = segmentation.reshape(-1)
    slabs = [flat[start : start + _SLAB_VOXELS] for start in range(0, flat.size, _SLAB_VOXELS)]
    counts = np.stack([np.bincount(slab, minlength=labels.values[-1] + 1) for slab in slabs])
    rng = np.random.default_rng(LOCATION_SEED)
    found = {}
    for name, values in wanted.items():
        ends = counts[:, values].sum(axis=1).cumsum()  # of each slab, among the voxels of the name
        total = int(ends[-1])
        count = max(min(LOCATIONS, total), ceil(0.01 * total))
        if count:
            chosen = np.arange(total)
            if count < total:
                chosen = np.sort(rng.choice(total, count, replace=False, shuffle=False))
            found[name] = _places(slabs, values, ends, chosen)
    return found


def _places(
    slabs: Sequence[NDArray[np.integer[Any]]],
    values: NDArray[np.integer[Any]],
    ends: NDArray[np.integer[Any]],
    chosen: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Give the flat indices of the chosen ones of all voxels with one of `values`."""
    parts = []
    edges = [0, *np.searchsorted(chosen, ends)]
    for number, (start, stop) in enumerate(pairwise(edges)):
        if start < stop:
            slab = slabs[number]
            inside = slab == values[0] if values.size == 1 else np.isin(slab, values)
            before = int(ends[number - 1]) if number else 0
            voxels = np.flatnonzero(inside)[chosen[start:stop] - before]
            parts.append(voxels + number * _SLAB_VOXELS)
    return np.concatenate(parts)
