"""Stage 2, fingerprint to plan: the rules of the method, one function each.

Read `make_plan` first; it names the rules in the order in which they apply. Those that say in
which frame are in `nnseg.target_spacing`, those that fit a network into a memory target in
`nnseg.fit`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from nnseg.axes import Order, Shape, Spacing, by, permute
from nnseg.dataset import DatasetSpec, ending_fault
from nnseg.decisions import (
    Decision,
    decide_fit,
    decide_median,
    decide_network,
    decide_normalization,
    decide_order,
    decide_spacing,
    decide_stages,
)
from nnseg.errors import PlanError
from nnseg.fingerprint import Fingerprint
from nnseg.fit import PLANNERS, Fit, Target, fit_networks
from nnseg.folders import FOLDER_NAME_RULE, is_folder_name
from nnseg.image.intensity import Intensity
from nnseg.image.normalize import HONOURS_MASK, normalizer_for_channel
from nnseg.labels import Labels
from nnseg.model.architecture import (
    NO_OPTIONS,
    Architecture,
    NetworkOptions,
    Norm,
    Upsampling,
)
from nnseg.target_spacing import fullres_spacing, median_shape, medians, plan_order

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
    _check_options(options)
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
        median_spacing=permute(medians(fingerprint.spacings), order),
        median_shape=permute(medians(fingerprint.shapes), order),
        intensities=fingerprint.intensities,
        configurations=_configurations(fits, normalization, use_mask),
        decisions=(
            decide_spacing(fingerprint, chosen, given=target_spacing is not None),
            decide_order(chosen, order),
            decide_median(fingerprint, permute(chosen, order), median),
            *decide_normalization(spec.channels, normalization, use_mask, fingerprint),
            *decide_network(planner, fits, given=network is not None),
            *(line for kind, fit in fits.items() for line in decide_fit(kind, fit, spec, target)),
            *decide_stages(fits, median, target),
        ),
    )


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


def _check_options(options: NetworkOptions) -> None:
    """Refuse what the command line would not have let through."""
    for name, known in (("upsampling", get_args(Upsampling)), ("norm", get_args(Norm))):
        value = getattr(options, name)
        if value is not None and value not in known:
            raise PlanError(f"{name} is {value!r}; give one of {', '.join(known)}")


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


def _check_name(field: str, name: str) -> None:
    if not is_folder_name(name):
        raise PlanError(f"{field} is {name!r}, which cannot name a folder; {FOLDER_NAME_RULE}")
