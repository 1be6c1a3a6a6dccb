"""nnU-Net v2's dataset_fingerprint.json and plans.json, to our records."""

import contextlib
import dataclasses
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from nnseg import record
from nnseg.axes import Shape, Spacing, inverse_order
from nnseg.dataset import DatasetSpec
from nnseg.errors import DataError, NnsegError, PlanError
from nnseg.exchange.nnunet_names import (
    BLOCK_COUNTS,
    DIMENSIONS,
    INTENSITIES,
    INTENSITIES_BEFORE,
    NETWORK_CLASSES,
    NETWORKS,
    NORMALIZERS,
    PLANNER_NAMES,
    READERS,
    SPLINES,
    TORCH,
    fixed_arguments,
)
from nnseg.fingerprint import Fingerprint
from nnseg.fit import PLANNERS
from nnseg.image.intensity import Intensity
from nnseg.model.architecture import Architecture
from nnseg.plan import MOST_VOXELS, Configuration, Plan, Resampling
from nnseg.target_spacing import COARSE

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _FingerprintJson:
    spacings: tuple[Spacing, ...]
    shapes_after_crop: tuple[Shape, ...]
    foreground_intensity_properties_per_channel: dict[str, Intensity]
    median_relative_size_after_cropping: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _PlansJson:
    dataset_name: str
    original_median_spacing_after_transp: Spacing
    original_median_shape_after_transp: tuple[float, float, float]
    image_reader_writer: str
    transpose_forward: tuple[int, int, int]
    transpose_backward: tuple[int, int, int]
    configurations: dict[str, dict[str, Any]]
    experiment_planner_used: str
    foreground_intensity_properties_per_channel: dict[str, Intensity]
    label_manager: Literal["LabelManager"] = "LabelManager"


@dataclass(frozen=True, slots=True, kw_only=True)
class _ConfigurationJson:
    data_identifier: str
    batch_size: int
    patch_size: tuple[int, ...]
    median_image_size_in_voxels: tuple[float, ...]
    spacing: tuple[float, ...]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    resampling_fn_data: str
    resampling_fn_data_kwargs: dict[str, Any]
    resampling_fn_seg: str
    resampling_fn_seg_kwargs: dict[str, Any]
    resampling_fn_probabilities: str
    resampling_fn_probabilities_kwargs: dict[str, Any]
    architecture: dict[str, Any]
    batch_dice: bool
    preprocessor_name: Literal["DefaultPreprocessor"] = "DefaultPreprocessor"
    previous_stage: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _ArchitectureJson:
    """The arguments of a network that differ between plans."""

    n_stages: int
    features_per_stage: tuple[int, ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    n_conv_per_stage: tuple[int, ...] = ()
    n_blocks_per_stage: tuple[int, ...] = ()
    n_conv_per_stage_decoder: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _SplinesJson:
    is_seg: bool = False
    order: int = 3
    order_z: int = 0
    force_separate_z: bool | None = False
    separate_z_anisotropy_threshold: float = COARSE


@dataclass(frozen=True, slots=True, kw_only=True)
class _TorchJson:
    is_seg: bool = False
    force_separate_z: bool | None = None
    memefficient_seg_resampling: bool = False
    separate_z_anisotropy_threshold: float = COARSE
    num_threads: int = 4
    device: str = "cpu"
    mode: Literal["linear"] = "linear"
    aniso_axis_mode: Literal["nearest-exact"] = "nearest-exact"


@dataclass(frozen=True, slots=True, kw_only=True)
class _EarlyArchitectureJson:
    UNet_class_name: Literal["PlainConvUNet", "ResidualEncoderUNet"]
    UNet_base_num_features: int
    unet_max_num_features: int
    n_conv_per_stage_encoder: tuple[int, ...]
    n_conv_per_stage_decoder: tuple[int, ...]
    pool_op_kernel_sizes: tuple[tuple[int, ...], ...]
    conv_kernel_sizes: tuple[tuple[int, ...], ...]
    patch_size: tuple[int, ...]


def read_fingerprint(data: Any, where: str = "dataset_fingerprint.json") -> Fingerprint:
    """Build a `Fingerprint` from the content of nnU-Net's file; `where` opens error messages.

    Raises:
        DataError: It is not such a file; every fault is named.
    """
    raw = record.parse(_FingerprintJson, _known(_FingerprintJson, data, where), where)
    with _located(where):
        return Fingerprint(
            spacings=raw.spacings,
            shapes=raw.shapes_after_crop,
            intensities=_in_order(raw.foreground_intensity_properties_per_channel),
            median_relative_size=raw.median_relative_size_after_cropping,
        )


def read_plans(
    data: Any,
    spec: DatasetSpec,
    *,
    name: str,
    where: str = "plans.json",
    needed: Collection[str] | None = None,
) -> Plan:
    """Build a `Plan` from the content of nnU-Net's plans.json and the dataset.json beside it.

    Args:
        data: The content, as `record.read_json` gives it.
        spec: The dataset.json; plans.json has neither labels nor channel names.
        name: What to call the plan.
        where: Opens error messages.
        needed: Names of configurations. Others that cannot be read, and what builds on them, are
            left out and the log says so. None needs all.

    Returns:
        The plan, without decisions. nnU-Net doesn't write down the memory target: it is taken to
        be the planner's own. A planner that we don't have counts as the one whose network it uses.

    Raises:
        DataError: It is not such a file, or doesn't fit `spec`; every fault is named.
        PlanError: It names a class or function that nnseg has nothing for, asks for a network
            that nnseg doesn't build, or has a configuration that inherits from itself.
    """
    if isinstance(data, dict) and INTENSITIES_BEFORE in data:
        data = {INTENSITIES: data[INTENSITIES_BEFORE], **data}
    raw = record.parse(_PlansJson, _known(_PlansJson, data, where), where)
    with _located(where):
        _check_plans(raw)
        intensities = _in_order(raw.foreground_intensity_properties_per_channel)
        if len(intensities) != len(spec.channels):
            raise DataError(
                f"has intensities of {len(intensities)} channels, dataset.json has "
                f"{len(spec.channels)}; take the dataset.json that lies beside the plans"
            )
        configurations = _read_configurations(raw, needed, where)
        planner = _read_planner(raw, configurations, where)
        return Plan(
            name=name,
            dataset=raw.dataset_name,
            planner=planner,
            memory_gb=PLANNERS[planner].memory_gb,
            channels=spec.channels,
            labels=spec.labels,
            file_ending=spec.file_ending,
            order=raw.transpose_forward,
            median_spacing=raw.original_median_spacing_after_transp,
            median_shape=raw.original_median_shape_after_transp,
            intensities=intensities,
            configurations=configurations,
        )


def _read_configurations(
    raw: _PlansJson, needed: Collection[str] | None, where: str
) -> dict[str, Configuration]:
    """Read all configurations, or all that can be read with what they build on."""
    found: dict[str, Configuration] = {}
    faults: dict[str, NnsegError] = {}
    for name in raw.configurations:
        try:
            found[name] = _read_configuration(raw, name, _inheritance(raw.configurations, name))
        except NnsegError as error:
            if needed is None:
                raise
            faults[name] = error
    while needed is not None and (lacking := _lacking(found)):
        for name, other in lacking.items():
            del found[name]
            reason = faults.get(other, "which is not there")
            faults[name] = PlanError(f"configuration {name} needs {other}: {reason}")
    # What lies beside a model is read for no configuration by name, once; each checkpoint of it,
    # which holds the same again, for its own.
    level = logging.INFO if needed else logging.WARNING
    for name, fault in faults.items():
        if not found or name in (needed or ()):
            raise fault
        logger.log(level, "%s: configuration %s is left out: %s", where, name, fault)
    return found


def _lacking(configurations: Mapping[str, Configuration]) -> dict[str, str]:
    """Give the configurations that build on one which is not there, and that one."""
    return {
        name: other
        for name, one in configurations.items()
        for other in (one.data, one.previous)
        if other is not None and other not in configurations
    }


@contextlib.contextmanager
def _located(where: str) -> Iterator[None]:
    """Open the message of whatever the user can put right with `where`."""
    try:
        yield
    except NnsegError as error:
        raise type(error)(f"{where}: {error}") from None


def _check_plans(raw: _PlansJson) -> None:
    if raw.image_reader_writer not in READERS:
        raise PlanError(
            f"image_reader_writer is {raw.image_reader_writer}, which nnseg has nothing for; it "
            f"knows {', '.join(READERS)}"
        )
    order, back = raw.transpose_forward, raw.transpose_backward
    if sorted(order) != [0, 1, 2] or back != inverse_order(order):
        raise DataError(
            f"transpose_forward {order} and transpose_backward {back} must be orders of 0, 1, 2 "
            "that undo each other"
        )


def _known(kind: Any, data: Any, where: str) -> dict[str, Any]:
    """Keep the keys of `data` that `kind` has fields for."""
    if not isinstance(data, dict):
        raise DataError(f"{where}: must hold a JSON object, not a {type(data).__name__}")
    return {
        field.name: data[field.name] for field in dataclasses.fields(kind) if field.name in data
    }


def _in_order(intensities: Mapping[str, Intensity]) -> tuple[Intensity, ...]:
    expected = [str(channel) for channel in range(len(intensities))]
    if sorted(intensities) != sorted(expected):
        found = ", ".join(intensities)
        raise DataError(f"{INTENSITIES} has the keys {found}; they must be 0, 1, 2, ...")
    return tuple(intensities[key] for key in expected)


def _inheritance(configurations: Mapping[str, Mapping[str, Any]], name: str) -> tuple[str, ...]:
    """List a configuration, the one that it inherits from, and so on to the last."""
    chain = [name]
    while (parent := configurations[chain[-1]].get("inherits_from")) is not None:
        if not isinstance(parent, str) or parent not in configurations:
            raise PlanError(
                f"configuration {chain[-1]} inherits from {parent!r}, which is not there; there "
                f"are {', '.join(configurations)}"
            )
        if parent in chain:
            way = " -> ".join([*chain, parent])
            raise PlanError(f"configurations inherit in a circle, {way}; break it")
        chain.append(parent)
    return tuple(chain)


def _resolved(raw: _PlansJson, chain: Sequence[str]) -> dict[str, Any]:
    """Join a configuration with what it inherits; its own values win."""
    result: dict[str, Any] = {}
    for name in reversed(chain):
        result |= raw.configurations[name]
    return result


def _read_configuration(raw: _PlansJson, name: str, chain: Sequence[str]) -> Configuration:
    where = f"configurations.{name}"
    whole = _resolved(raw, chain)
    if "UNet_class_name" in whole and "architecture" not in whole:
        whole["architecture"] = _early_architecture(whole, where)
    found = record.parse(_ConfigurationJson, _known(_ConfigurationJson, whole, where), where)
    same_data = [
        other
        for place, other in enumerate(chain)
        if _resolved(raw, chain[place:]).get("data_identifier") == found.data_identifier
    ]
    with _located(where):
        architecture = _read_architecture(found.architecture)
        lead: tuple[int, ...] = (1,) if architecture.dimensions == 2 else ()
        slices = (_median_slices(raw),) if lead else ()
        median = slices + found.median_image_size_in_voxels
        mm = _three("spacing", lead + found.spacing)
        return Configuration(
            name=name,
            data=same_data[-1],
            spacing=(None, *mm[1:]) if lead else mm,
            median_shape=_three("median_image_size_in_voxels", median),
            patch_size=_three("patch_size", lead + found.patch_size),
            batch_size=found.batch_size,
            batch_dice=found.batch_dice,
            normalization=tuple(NORMALIZERS[scheme] for scheme in found.normalization_schemes),
            use_mask=found.use_mask_for_norm,
            resample_image=_read_resampling(
                found.resampling_fn_data, found.resampling_fn_data_kwargs, is_seg=False
            ),
            resample_segmentation=_read_resampling(
                found.resampling_fn_seg, found.resampling_fn_seg_kwargs, is_seg=True
            ),
            resample_logits=_read_resampling(
                found.resampling_fn_probabilities,
                found.resampling_fn_probabilities_kwargs,
                is_seg=False,
            ),
            architecture=architecture,
            previous=found.previous_stage,
        )


def _median_slices(raw: _PlansJson) -> float:
    """Give the median image's slices, which nnU-Net's 2D configurations leave out."""
    fullres = raw.configurations.get("3d_fullres", {}).get("median_image_size_in_voxels")
    first = fullres[0] if isinstance(fullres, list) and fullres else None
    if isinstance(first, int | float) and 0 <= first <= MOST_VOXELS:  # or it may be no float's
        return float(first)
    return raw.original_median_shape_after_transp[0]


def _read_architecture(data: Mapping[str, Any]) -> Architecture:
    network = NETWORKS[str(data.get("network_class_name"))]
    given = data.get("arch_kwargs")
    if not isinstance(given, dict):
        raise DataError("architecture.arch_kwargs is missing")
    dimensions = DIMENSIONS[str(given.get("conv_op"))]
    fixed = fixed_arguments(dimensions)
    for key, wanted in fixed.items():
        if given.get(key, "missing") != wanted:
            raise PlanError(
                f"{key} is {given.get(key, 'missing')!r}; networks of nnseg have {wanted!r} only"
            )
    rest = {key: value for key, value in given.items() if key not in fixed}
    found = record.parse(_ArchitectureJson, rest, "architecture.arch_kwargs")
    if found.n_stages != len(found.features_per_stage):
        raise DataError(
            f"n_stages is {found.n_stages}, features_per_stage has {len(found.features_per_stage)}"
        )
    lead = (1,) * (3 - dimensions)
    return Architecture(
        network=network,
        dimensions=dimensions,
        features=found.features_per_stage,
        kernel_sizes=tuple(_three("kernel_sizes", lead + k) for k in found.kernel_sizes),
        strides=tuple(_three("strides", lead + s) for s in found.strides),
        encoder_blocks=(found.n_conv_per_stage if network == "plain" else found.n_blocks_per_stage),
        decoder_blocks=found.n_conv_per_stage_decoder[::-1],
    )


def _early_architecture(configuration: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Bring the network of the plans of early v2 releases to the form of today."""
    known = _known(_EarlyArchitectureJson, configuration, where)
    early = record.parse(_EarlyArchitectureJson, known, where)
    network = {"PlainConvUNet": "plain", "ResidualEncoderUNet": "resenc"}[early.UNet_class_name]
    levels = len(early.n_conv_per_stage_encoder)
    base, most = early.UNet_base_num_features, early.unet_max_num_features
    return {
        "network_class_name": NETWORK_CLASSES[network],
        "arch_kwargs": {
            "n_stages": levels,
            "features_per_stage": [min(most, base * 2**level) for level in range(levels)],
            "kernel_sizes": early.conv_kernel_sizes,
            "strides": early.pool_op_kernel_sizes,
            BLOCK_COUNTS[network]: early.n_conv_per_stage_encoder,
            "n_conv_per_stage_decoder": early.n_conv_per_stage_decoder,
            **fixed_arguments(len(early.patch_size)),
        },
    }


def _read_resampling(function: str, arguments: Mapping[str, Any], *, is_seg: bool) -> Resampling:
    """Read how arrays are resampled; torch's linear interpolation is our order 1."""
    if function == SPLINES:
        splines = record.parse(_SplinesJson, arguments, function)
        threshold = splines.separate_z_anisotropy_threshold
        found = splines.is_seg
        result = Resampling(
            order=splines.order, order_along=splines.order_z, separate=splines.force_separate_z
        )
    elif function == TORCH:
        linear = record.parse(_TorchJson, arguments, function)
        threshold = linear.separate_z_anisotropy_threshold
        found = linear.is_seg
        result = Resampling(order=1, order_along=0, separate=linear.force_separate_z)
    else:
        raise PlanError(f"no resampling is named {function!r}; known: {SPLINES}, {TORCH}")
    if threshold != COARSE or found != is_seg:
        raise PlanError(
            f"{function} has is_seg {found} and separate_z_anisotropy_threshold {threshold:g}; "
            f"nnseg resamples with {is_seg} and {COARSE:g} here"
        )
    return result


def _read_planner(raw: _PlansJson, configurations: Mapping[str, Configuration], where: str) -> str:
    for ours, names in PLANNER_NAMES.items():
        if names.class_name == raw.experiment_planner_used:
            return ours
    networks = {configuration.architecture.network for configuration in configurations.values()}
    ours = "resenc" if networks == {"resenc"} else "default"
    logger.info("%s: planner %s counts as %s", where, raw.experiment_planner_used, ours)
    return ours


def _three(field: str, values: Sequence[T]) -> tuple[T, T, T]:
    if len(values) != 3:
        raise DataError(f"{field} has a wrong number of axes for this network")
    z, y, x = values
    return z, y, x
