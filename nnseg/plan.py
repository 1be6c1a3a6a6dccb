"""Stage 2, fingerprint to plan: the rules of the method, one function each.

Read `make_plan` first; it names the rules in the order in which they apply. Those that fit a
network into a memory target are in `nnseg.fit`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnseg.axes import Order, Shape, Spacing, by, permute, three
from nnseg.dataset import DatasetSpec, ending_fault
from nnseg.errors import PlanError
from nnseg.fingerprint import Fingerprint
from nnseg.fit import (
    LOWRES_BELOW,
    PLANNERS,
    REFERENCE_BATCH,
    Fit,
    Target,
    fit_networks,
)
from nnseg.folders import FOLDER_NAME_RULE, is_folder_name
from nnseg.image.intensity import Intensity
from nnseg.image.normalize import HONOURS_MASK, normalizer_for_channel
from nnseg.labels import Labels
from nnseg.model.architecture import NO_OPTIONS, Architecture, NetworkOptions
from nnseg.topology import MedianShape

COARSE = 3.0  # an axis is coarse when its spacing is over 3 times that of every other axis
MASK_BELOW = 0.75  # volume left by cropping, below which intensities are taken within the body

# Nobody plans so; a plan from elsewhere must not ask for memory without bounds.
MIN_SPACING, MAX_SPACING = 1e-4, 1e4  # mm
MOST_VOXELS = 2**31  # of a patch
LARGEST_BATCH = 2**16

SPLINES = range(6)  # orders of splines that there are

# What lies beside the folders of plans; a plan of such a name would get into its way.
TAKEN = re.compile(
    r"plans|run|report|comparison|predicted_test|log\.txt"
    r"|(fingerprint|groups|splits_\w+|run\w*)\.(json|log)",
    re.I,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """How one kind of array is brought to another spacing.

    `order` is the spline order in general; where one axis is much coarser than the others, it is
    handled by itself with `order_along`. `separate` forces (True) or forbids (False) that; None
    decides by the spacing.
    """

    order: int
    order_along: int
    separate: bool | None = None

    def __post_init__(self) -> None:
        for name, order in (("order", self.order), ("order_along", self.order_along)):
            if order not in SPLINES:
                raise PlanError(f"{name} of a resampling is {order}; it must be 0 to 5")


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """How one network of a plan sees its data. Per-axis values are in plan order, (z, y, x).

    A 2D configuration is a 3D one whose patch is one slice; its slice spacing is None: each image
    keeps its own.
    """

    name: str  # "2d", "3d_fullres", "3d_lowres" or "3d_cascade_fullres", or a user's own
    data: str  # the configuration whose preprocessed cases it uses; itself, but for a cascade
    spacing: tuple[float | None, float, float]  # mm; what images are resampled to
    median_shape: tuple[float, float, float]  # voxels of the median case at this spacing
    patch_size: Shape
    batch_size: int
    batch_dice: bool  # the Dice loss sums over the batch before it divides
    normalization: tuple[str, ...]  # a name of NORMALIZERS for each channel
    use_mask: tuple[bool, ...]  # for each channel: normalize within the body only
    resample_image: Resampling
    resample_segmentation: Resampling
    resample_logits: Resampling
    architecture: Architecture
    previous: str | None = None  # cascade: the configuration whose segmentation is extra input

    def __post_init__(self) -> None:
        _check_name("configuration", self.name)
        _check_name(f"{self.name}: data", self.data)
        if self.previous is not None:
            _check_name(f"{self.name}: previous", self.previous)
        if not all(s is None or MIN_SPACING <= s <= MAX_SPACING for s in self.spacing):
            raise PlanError(
                f"{self.name}: spacing is {by(self.spacing)} mm; it must be between "
                f"{MIN_SPACING:g} and {MAX_SPACING:g} on every axis"
            )
        if not 1 <= self.batch_size <= LARGEST_BATCH:
            raise PlanError(
                f"{self.name}: batch_size must be 1 to {LARGEST_BATCH}, not {self.batch_size}"
            )
        if len(self.normalization) != len(self.use_mask):
            raise PlanError(f"{self.name}: normalization and use_mask differ in length")
        divisor = self.architecture.divisor
        if any(p < 1 or p % d for p, d in zip(self.patch_size, divisor, strict=True)):
            raise PlanError(
                f"{self.name}: patch_size {self.patch_size} must be a multiple of {divisor}, the "
                "product of the network's strides"
            )
        if math.prod(self.patch_size) > MOST_VOXELS:
            raise PlanError(
                f"{self.name}: patch_size {self.patch_size} has more than {MOST_VOXELS} voxels"
            )
        if (self.architecture.dimensions == 2) != (self.spacing[0] is None):
            raise PlanError(f"{self.name}: a slice spacing of null is for 2D networks, only")

    @property
    def is_2d(self) -> bool:
        """Whether the network sees single slices."""
        return self.architecture.dimensions == 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One line of why: the rule, what it was given, what came out."""

    rule: str
    given: str
    result: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that was decided for a dataset, and all that a model must know of its data.

    `order` leads from image order to plan order. Medians are in plan order.
    """

    name: str
    dataset: str
    planner: str  # a name of PLANNERS
    memory_gb: float
    channels: tuple[str, ...]
    labels: Labels
    file_ending: str
    order: Order
    median_spacing: Spacing  # mm, of the images as they are
    median_shape: tuple[float, float, float]  # voxels, of the images as they are, after cropping
    intensities: tuple[Intensity, ...]
    configurations: dict[str, Configuration]
    decisions: tuple[Decision, ...] = ()

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        if TAKEN.fullmatch(self.name):
            raise PlanError(f"name is {self.name!r}, which names files of ours; choose another")
        _check_name("dataset", self.dataset)
        if fault := ending_fault(self.file_ending):
            raise PlanError(fault)
        channels = len(self.channels)
        if len(self.intensities) != channels:
            raise PlanError(
                f"intensities are of {len(self.intensities)} channels, the plan has {channels}"
            )
        if sorted(self.order) != [0, 1, 2]:
            raise PlanError(f"order is {self.order}; it must be an order of 0, 1, 2")
        for name, configuration in self.configurations.items():
            if len(configuration.normalization) != channels:
                raise PlanError(
                    f"configuration {name} normalizes {len(configuration.normalization)} channels, "
                    f"the plan has {channels}"
                )
            if name != configuration.name:
                raise PlanError(f"configuration {name} calls itself {configuration.name}")
            for other in (configuration.data, configuration.previous):
                if other is not None and other not in self.configurations:
                    raise PlanError(f"configuration {name} needs {other}, which is not planned")

    def input_channels(self, name: str) -> int:
        """Count what the network of a configuration sees: a cascade also sees the stage before."""
        found = len(self.labels.foreground_values) if self.configuration(name).previous else 0
        return len(self.channels) + found

    def configuration(self, name: str) -> Configuration:
        """Give the configuration called `name`, or say which there are."""
        try:
            return self.configurations[name]
        except KeyError:
            known = ", ".join(self.configurations)
            raise PlanError(
                f"plan {self.name} of {self.dataset} has no configuration {name}; it has {known}"
            ) from None


def make_plan(
    spec: DatasetSpec,
    fingerprint: Fingerprint,
    *,
    dataset: str,
    name: str = "nnseg",
    planner: str = "default",
    memory_gb: float | None = None,
    target_spacing: Spacing | None = None,
    network: str | None = None,
    options: NetworkOptions = NO_OPTIONS,
) -> Plan:
    """Decide everything that depends on the data; the rules are those of nnU-Net v2.8.1.

    Args:
        spec: Its channels, labels and number of cases.
        fingerprint: Of the same dataset.
        dataset: The dataset's name, for the record.
        name: The plan's name.
        planner: A name of PLANNERS.
        memory_gb: GPU memory that training is to fill; None takes the planner's own target.
        target_spacing: mm, (z, y, x), image order; takes the place of `fullres_spacing`, and so
            decides the plan order, the slices of 2D and the start of 3d_lowres, too.
        network: A name of KINDS; None takes the planner's own.
        options: Of the network.

    Raises:
        PlanError: The planner or the network is unknown, the network does not take an option or
            is not defined for such images, a number is not positive, the fingerprint is of other
            channels, the median image is empty at the target spacing, or no patch fits.
    """
    target = _target(spec, planner, memory_gb, network, options)
    _check_given(spec, fingerprint, target, target_spacing)
    chosen = target_spacing or fullres_spacing(fingerprint)
    order = plan_order(chosen)
    median = median_shape(fingerprint, chosen, order)
    normalization = tuple(normalizer_for_channel(channel) for channel in spec.channels)
    use_mask = mask_use(normalization, fingerprint.median_relative_size)
    fits = fit_networks(permute(chosen, order), median, spec.num_training, target)
    if not fits:
        raise PlanError(
            f"network {target.network} is 3D only, and the median image is one slice; choose "
            "another network"
        )
    return Plan(
        name=name,
        dataset=dataset,
        planner=planner,
        memory_gb=target.memory_gb,
        channels=spec.channels,
        labels=spec.labels,
        file_ending=spec.file_ending,
        order=order,
        median_spacing=permute(_medians(fingerprint.spacings), order),
        median_shape=permute(_medians(fingerprint.shapes), order),
        intensities=fingerprint.intensities,
        configurations=_configurations(fits, normalization, use_mask),
        decisions=(
            _decide_spacing(fingerprint, chosen, given=target_spacing is not None),
            _decide_order(chosen, order),
            _decide_median(fingerprint, permute(chosen, order), median),
            *_decide_normalization(spec.channels, normalization, use_mask, fingerprint),
            _decide_network(planner, fits, given=network is not None),
            *(line for kind, fit in fits.items() for line in _decide_fit(kind, fit, spec, target)),
            *_decide_stages(fits, median, target),
        ),
    )


def fullres_spacing(fingerprint: Fingerprint) -> Spacing:
    """Choose the spacing of the full-resolution configurations.

    It is the median over cases, axis by axis. Where slices are thick and few, the coarse axis
    takes the 10th percentile: the median would cost the thin-sliced cases too much detail.

    Args:
        fingerprint: Its spacings in mm and shapes in voxels, (case, axis), image order.

    Returns:
        Spacing in mm, (z, y, x), image order.

    Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, Methods, target spacing.
    """
    spacings = np.array(fingerprint.spacings, dtype=np.float64)  # (case, axis)
    spacing = np.percentile(spacings, 50, axis=0)
    shape = np.percentile(np.array(fingerprint.shapes), 50, axis=0)

    coarse = int(spacing.argmax())
    fine = [axis for axis in range(3) if axis != coarse]
    floor = spacing[fine].max()
    if spacing[coarse] > COARSE * floor and shape[coarse] * COARSE < shape[fine].min():
        tenth = np.percentile(spacings[:, coarse], 10)
        spacing[coarse] = tenth if tenth >= floor else floor + 1e-5  # it must stay the coarsest
    return three(spacing.tolist())


def plan_order(spacing: Spacing) -> Order:
    """Put the coarsest axis first, the others after it as they were.

    Where slices are thick, 2D networks then see the slices as they were acquired.

    Args:
        spacing: mm, (z, y, x), image order.

    Source: nnU-Net v2.

    >>> plan_order((0.8, 0.7, 5.0))
    (2, 0, 1)
    """
    coarse = spacing.index(max(spacing))
    first, second = (axis for axis in range(3) if axis != coarse)
    return coarse, first, second


def median_shape(fingerprint: Fingerprint, spacing: Spacing, order: Order) -> MedianShape:
    """Give the shape of the median case after resampling, (z, y, x) in plan order.

    Args:
        fingerprint: Its spacings in mm and shapes in voxels, (case, axis), image order.
        spacing: mm to resample to, image order.
        order: From image order to plan order.

    Raises:
        PlanError: It has no voxel along some axis.

    Source: nnU-Net v2; each case's shape is rounded to voxels, half to even, the median is not.
    """
    shapes = [
        [round(old / new * size) for old, new, size in zip(olds, spacing, sizes, strict=True)]
        for olds, sizes in zip(fingerprint.spacings, fingerprint.shapes, strict=True)
    ]
    median = permute(_medians(shapes), order)
    if min(median) < 1:
        raise PlanError(
            f"the median case resampled to {by(permute(spacing, order))} mm has the shape "
            f"{by(median)} (z, y, x, plan order), which holds no voxel; give a finer target "
            "spacing, or check the spacings of the images"
        )
    return median


def mask_use(normalization: Sequence[str], median_relative_size: float) -> tuple[bool, ...]:
    """Say for each channel whether it is normalized within the body only.

    So it is when cropping leaves less than three quarters of the images: what surrounds the body
    then is background that somebody set to 0, as after skull stripping.

    Args:
        normalization: A name of NORMALIZERS for each channel.
        median_relative_size: Volume after cropping over volume before.

    Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, Methods, intensity normalization.

    >>> mask_use(("zscore", "ct"), 0.6)
    (True, False)
    """
    cropped = median_relative_size < MASK_BELOW
    return tuple(cropped and name in HONOURS_MASK for name in normalization)


def batch_dice(name: str, *, has_lowres: bool) -> bool:
    """Say whether the Dice loss of a configuration sums over its batch before it divides.

    It does where a patch shows a small part of an image, and so often lacks a structure: single
    slices, and full resolution where images are too large for it.

    Source: nnU-Net v2.

    >>> batch_dice("2d", has_lowres=False), batch_dice("3d_lowres", has_lowres=True)
    (True, False)
    """
    return name == "2d" or (has_lowres and name != "3d_lowres")


def differing_key(plan: Plan, spec: DatasetSpec) -> str | None:
    """Say which key of a dataset.json is not what the plan was made of; None if all are."""
    if plan.channels != spec.channels:
        return f"channel_names are {list(spec.channels)}, and were {list(plan.channels)}"
    new, old = spec.labels, plan.labels
    for name in (*new.labels, *(name for name in old.labels if name not in new.labels)):
        now, then = (labels.labels.get(name, "not there") for labels in (new, old))
        if now != then:
            return f"label {name} is {now}, and was {then}"
    if new.regions_class_order != old.regions_class_order:
        return (
            f"regions_class_order is {new.regions_class_order}, and was {old.regions_class_order}"
        )
    if new.regions_class_order is not None and list(new.labels) != list(old.labels):
        return f"the regions are {', '.join(new.labels)}, and were {', '.join(old.labels)}"
    if plan.file_ending != spec.file_ending:
        return f"file_ending is {spec.file_ending}, and was {plan.file_ending}"
    return None


def describe_plan(plan: Plan) -> str:
    """Give a plan as a short table for the terminal, one line a configuration."""
    head = ("configuration", "spacing (mm)", "median image", "patch", "batch", "levels", "after")
    rows = [
        (
            name,
            by(configuration.spacing),
            by(configuration.median_shape),
            by(configuration.patch_size),
            str(configuration.batch_size),
            str(configuration.architecture.levels),
            configuration.previous or "-",
        )
        for name, configuration in plan.configurations.items()
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    called = {configuration.architecture.called for configuration in plan.configurations.values()}
    title = (
        f"plan {plan.name} of {plan.dataset}: planner {plan.planner}, {plan.memory_gb:g} GB, "
        f"network {', '.join(sorted(called))}; axes in plan order (z, y, x), image axes "
        f"{plan.order}"
    )
    return "\n".join((title, *lines))


def explain_plan(plan: Plan) -> str:
    """Give the reasons of a plan for the terminal, one line a rule."""
    return "\n".join(f"{d.rule}: {d.result}, given {d.given}" for d in plan.decisions)


def _target(
    spec: DatasetSpec,
    planner: str,
    memory_gb: float | None,
    network: str | None,
    options: NetworkOptions,
) -> Target:
    rules = PLANNERS[planner]
    return Target(
        planner=rules,
        memory_gb=rules.memory_gb if memory_gb is None else memory_gb,
        network=rules.network if network is None else network,
        options=options,
        channels=len(spec.channels),
        outputs=len(spec.labels.labels),
    )


def _check_given(
    spec: DatasetSpec, fingerprint: Fingerprint, target: Target, spacing: Spacing | None
) -> None:
    if not 0 < target.memory_gb < math.inf:
        raise PlanError(f"memory_gb is {target.memory_gb:g}; give a positive number of GB")
    if spacing is not None and not all(0 < mm < math.inf for mm in spacing):
        raise PlanError(f"target_spacing is {spacing}; give three positive numbers of mm")
    if len(fingerprint.intensities) != len(spec.channels):
        raise PlanError(
            f"the fingerprint has {len(fingerprint.intensities)} channels, dataset.json has "
            f"{len(spec.channels)}; run `nnseg fingerprint` again"
        )


def _configurations(
    fits: Mapping[str, Fit], normalization: tuple[str, ...], use_mask: tuple[bool, ...]
) -> dict[str, Configuration]:
    """Complete the fitted networks; with a 3d_lowres comes a cascade after it."""
    has_lowres = "3d_lowres" in fits
    cascade = {"3d_cascade_fullres": fits["3d_fullres"]} if has_lowres else {}
    return {
        name: Configuration(
            name=name,
            data="3d_fullres" if name in cascade else name,
            spacing=fit.spacing,
            median_shape=fit.median_shape,
            patch_size=fit.patch_size,
            batch_size=fit.batch_size,
            batch_dice=batch_dice(name, has_lowres=has_lowres),
            normalization=normalization,
            use_mask=use_mask,
            resample_image=Resampling(order=3, order_along=0),
            resample_segmentation=Resampling(order=1, order_along=0),
            resample_logits=Resampling(order=1, order_along=0),
            architecture=fit.architecture,
            previous="3d_lowres" if name in cascade else None,
        )
        for name, fit in {**fits, **cascade}.items()
    }


def _decide_spacing(fingerprint: Fingerprint, chosen: Spacing, *, given: bool) -> Decision:
    medians = by(_medians(fingerprint.spacings))
    why = "it was asked for" if given else f"medians of {medians} mm over cases"
    return Decision(rule="target spacing", given=why, result=f"{by(chosen)} mm (image order)")


def _decide_order(chosen: Spacing, order: Order) -> Decision:
    coarsest = f"image axis {order[0]} is the coarsest, {max(chosen):.4g} mm"
    return Decision(rule="plan order", given=coarsest, result=f"image axes {order}")


def _decide_median(fingerprint: Fingerprint, spacing: Spacing, median: MedianShape) -> Decision:
    return Decision(
        rule="median image",
        given=f"{len(fingerprint.shapes)} cases resampled to {by(spacing)} mm",
        result=f"{by(median)} voxels",
    )


def _decide_normalization(
    channels: Sequence[str],
    normalization: Sequence[str],
    use_mask: Sequence[bool],
    fingerprint: Fingerprint,
) -> tuple[Decision, ...]:
    left = f"cropping leaves {fingerprint.median_relative_size:.0%} of the volume"
    return tuple(
        Decision(
            rule=f"normalization of channel {number}",
            given=f"it is called {channel}, and {left}",
            result=f"{kind} {'within the body' if masked else 'of the whole image'}",
        )
        for number, (channel, kind, masked) in enumerate(
            zip(channels, normalization, use_mask, strict=True)
        )
    )


def _decide_network(planner: str, fits: Mapping[str, Fit], *, given: bool) -> Decision:
    why = "it was asked for" if given else f"planner {planner}"
    architecture = next(iter(fits.values())).architecture
    return Decision(rule="network", given=why, result=architecture.called)


def _decide_fit(name: str, fit: Fit, spec: DatasetSpec, target: Target) -> tuple[Decision, ...]:
    depths = (str(d) for d in fit.architecture.divisor)
    least, most = target.kind.levels
    allowed = f"{least} to {most}" if least < most else f"just {least}"
    reference = REFERENCE_BATCH[fit.architecture.dimensions]
    return (
        Decision(
            rule=f"{name} patch",
            given=f"{by(fit.first_patch)} voxels to start from, {target.memory_gb:g} GB",
            result=f"{by(fit.patch_size)} voxels",
        ),
        Decision(
            rule=f"{name} network",
            given=f"that patch at {by(fit.spacing)} mm, and that it may have {allowed} levels",
            result=f"{fit.architecture.levels} levels, pooled by {' x '.join(depths)} in all",
        ),
        Decision(
            rule=f"{name} batch",
            given=(
                f"{fit.elements:.3g} elements a patch, {fit.elements_allowed:.3g} allowed in a "
                f"batch of {reference}, {target.planner.dataset_share:.0%} of "
                f"{spec.num_training} cases are {fit.batch_cap} patches"
            ),
            result=str(fit.batch_size),
        ),
    )


def _decide_stages(
    fits: Mapping[str, Fit], median: MedianShape, target: Target
) -> tuple[Decision, ...]:
    defined = target.kind.dimensions
    if "3d_fullres" not in fits:
        flat = f"network {target.network} is 2D only"
        why = "the median image is one slice" if 3 in defined else flat
        return (Decision(rule="3D", given=why, result="not planned"),)
    deep = f"network {target.network} is 3D only"
    without = () if 2 in defined else (Decision(rule="2D", given=deep, result="not planned"),)
    part = math.prod(fits["3d_fullres"].patch_size) / math.prod(median)
    lowres = fits.get("3d_lowres")
    if lowres is not None:
        result = f"3d_lowres at {by(lowres.spacing)} mm, and a cascade after it"
    elif part < LOWRES_BELOW:
        result = "no 3d_lowres, since it would have more than half of the voxels"
    else:
        result = "no 3d_lowres"
    given = f"a patch of 3d_fullres shows {part:.0%} of the median image"
    return (*without, Decision(rule="cascade", given=given, result=result))


def _check_name(field: str, name: str) -> None:
    if not is_folder_name(name):
        raise PlanError(f"{field} is {name!r}, which cannot name a folder; {FOLDER_NAME_RULE}")


def _medians(values: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    return three(np.median(np.array(values, dtype=np.float64), axis=0).tolist())
