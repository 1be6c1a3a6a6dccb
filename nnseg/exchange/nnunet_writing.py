"""Our fingerprints and plans as the content of nnU-Net v2's files."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from nnseg.axes import inverse_order
from nnseg.errors import PlanError
from nnseg.exchange.nnunet_names import (
    BLOCK_COUNTS,
    INTENSITIES,
    KWARGS_TO_IMPORT,
    NETWORK_CLASSES,
    NORMALIZATIONS,
    PLANNER_NAMES,
    SHARED_DATA,
    SPLINES,
    UNNAMED,
    PlannerNames,
    fixed_arguments,
)
from nnseg.fingerprint import Fingerprint
from nnseg.fit import PLANNERS
from nnseg.image.intensity import Intensity
from nnseg.model.architecture import NO_OPTIONS, Architecture
from nnseg.plan import Plan, Resampling


def fingerprint_to_json(fingerprint: Fingerprint) -> dict[str, Any]:
    """Give `fingerprint` as the content of nnU-Net's dataset_fingerprint.json."""
    return {
        INTENSITIES: _intensities_to_json(fingerprint.intensities),
        "median_relative_size_after_cropping": fingerprint.median_relative_size,
        "shapes_after_crop": [list(shape) for shape in fingerprint.shapes],
        "spacings": [list(spacing) for spacing in fingerprint.spacings],
    }


def plans_name(plan: Plan) -> str:
    """Give what nnU-Net is to call a plan: its own name, where somebody gave it one.

    Else it is the name of nnU-Net's plans of this kind, to which another memory target is added.
    Examples are nnUNetPlans, nnUNetResEncUNetLPlans and nnUNetPlans_2GB.
    """
    planners = _planner_names(plan).plans_name
    # In the names of its folders, nnU-Net sets plans apart by two underscores.
    if plan.name not in (*UNNAMED, planners) and "__" not in plan.name:
        return plan.name
    own = plan.planner not in PLANNERS or plan.memory_gb == PLANNERS[plan.planner].memory_gb
    return planners + ("" if own else f"_{plan.memory_gb:g}GB")


def plans_to_json(plan: Plan, *, reader: str | None = None) -> dict[str, Any]:
    """Give `plan` as the content of nnU-Net's plans.json.

    A configuration that uses another's preprocessed cases inherits from it.

    Args:
        plan: Ours. Of `median_shape`, nnU-Net keeps whole voxels; it has no room for the memory
            target, the decisions, and what dataset.json holds.
        reader: nnU-Net's class that reads the images, where dataset.json asks for one with
            overwrite_image_reader_writer; None chooses by the ending of the files.

    Raises:
        PlanError: nnU-Net has no name for a normalizer or network of the plan, or no reader of
            its images.
    """
    _refuse_other_networks(plan)
    whole = {name: _configuration_to_json(plan, name) for name in plan.configurations}
    configurations = {}
    for name, configuration in plan.configurations.items():
        mine = whole[name]
        if configuration.data != name:
            parent = whole[configuration.data]
            differs = (key for key in parent | mine if mine.get(key) != parent.get(key))
            mine = {"inherits_from": configuration.data, **{key: mine.get(key) for key in differs}}
        configurations[name] = mine
    return {
        "dataset_name": plan.dataset,
        "plans_name": plans_name(plan),
        "original_median_spacing_after_transp": list(plan.median_spacing),
        "original_median_shape_after_transp": [round(size) for size in plan.median_shape],
        "image_reader_writer": reader or _reader(plan),
        "transpose_forward": list(plan.order),
        "transpose_backward": list(inverse_order(plan.order)),
        "configurations": configurations,
        "experiment_planner_used": _planner_names(plan).class_name,
        "label_manager": "LabelManager",
        INTENSITIES: _intensities_to_json(plan.intensities),
    }


def _intensities_to_json(intensities: Sequence[Intensity]) -> dict[str, Any]:
    return {str(i): dataclasses.asdict(intensity) for i, intensity in enumerate(intensities)}


def _planner_names(plan: Plan) -> PlannerNames:
    own = PlannerNames(
        class_name=plan.planner, plans_name=f"nnUNetPlans_{plan.planner}", shares_data=False
    )
    return PLANNER_NAMES.get(plan.planner, own)


def _reader(plan: Plan) -> str:
    """Choose nnU-Net's class that reads images, and writes label maps, of the plan's ending.

    Source: `supported_file_endings` of nnunetv2.imageio, 2.8.1.
    """
    ending = plan.file_ending.lower()
    flat = plan.median_shape[0] == 1
    if ending in (".png", ".bmp") or (ending == ".tif" and flat):
        return "NaturalImage2DIO"
    if ending in (".tif", ".tiff") and not flat:
        return "Tiff3DIO"
    if ending == ".nii":
        return "NibabelIO"
    if ending in (".nii.gz", ".nrrd", ".mha"):
        return "SimpleITKIO"
    if ending in (".jpg", ".jpeg"):
        remedy = "it would write label maps as JPEG, which changes them: convert the images to .png"
    elif flat:
        remedy = "it reads such files of three axes only: convert the images to .png or .tif"
    else:
        remedy = "convert the images to .nii.gz"
    raise PlanError(f"nnU-Net has nothing for {plan.file_ending} images such as these; {remedy}")


def _refuse_other_networks(plan: Plan) -> None:
    for configuration in plan.configurations.values():
        network = configuration.architecture
        if network.network not in NETWORK_CLASSES or network.options != NO_OPTIONS:
            raise PlanError(
                f"{configuration.name} has the network {network.called}, which nnU-Net cannot "
                f"build; it knows {' and '.join(NETWORK_CLASSES)} without options: plan one of "
                "these, or export to zip or onnx"
            )


def _configuration_to_json(plan: Plan, name: str) -> dict[str, Any]:
    """Give a configuration with all that it inherits."""
    configuration = plan.configurations[name]
    skip = 1 if configuration.is_2d else 0
    names = _planner_names(plan)
    shared = names.shares_data and configuration.data in SHARED_DATA
    owner = PLANNER_NAMES["default"].plans_name if shared else plans_name(plan)
    result = {
        "data_identifier": f"{owner}_{configuration.data}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": configuration.batch_size,
        "patch_size": list(configuration.patch_size[skip:]),
        "median_image_size_in_voxels": list(configuration.median_shape[skip:]),
        "spacing": list(configuration.spacing[skip:]),
        "normalization_schemes": [_theirs(NORMALIZATIONS, n) for n in configuration.normalization],
        "use_mask_for_norm": list(configuration.use_mask),
        "resampling_fn_data": SPLINES,
        "resampling_fn_seg": SPLINES,
        "resampling_fn_data_kwargs": _resampling_to_json(configuration.resample_image),
        "resampling_fn_seg_kwargs": _resampling_to_json(
            configuration.resample_segmentation, is_seg=True
        ),
        "resampling_fn_probabilities": SPLINES,
        "resampling_fn_probabilities_kwargs": _resampling_to_json(configuration.resample_logits),
        "architecture": _architecture_to_json(configuration.architecture),
        "batch_dice": configuration.batch_dice,
    }
    if configuration.previous is not None:
        result["previous_stage"] = configuration.previous
    followers = [other.name for other in plan.configurations.values() if other.previous == name]
    if followers:
        result["next_stage"] = followers[0] if len(followers) == 1 else followers
    return result


def _resampling_to_json(resampling: Resampling, *, is_seg: bool = False) -> dict[str, Any]:
    return {
        "is_seg": is_seg,
        "order": resampling.order,
        "order_z": resampling.order_along,
        "force_separate_z": resampling.separate,
    }


def _architecture_to_json(architecture: Architecture) -> dict[str, Any]:
    skip = 3 - architecture.dimensions
    return {
        "network_class_name": NETWORK_CLASSES[architecture.network],
        "arch_kwargs": {
            "n_stages": architecture.levels,
            "features_per_stage": list(architecture.features),
            "kernel_sizes": [list(kernel[skip:]) for kernel in architecture.kernel_sizes],
            "strides": [list(stride[skip:]) for stride in architecture.strides],
            BLOCK_COUNTS[architecture.network]: list(architecture.encoder_blocks),
            "n_conv_per_stage_decoder": list(architecture.decoder_blocks[::-1]),  # deepest first
            **fixed_arguments(architecture.dimensions),
        },
        "_kw_requires_import": list(KWARGS_TO_IMPORT),
    }


def _theirs(names: Mapping[str, str], ours: str) -> str:
    if ours not in names:
        known = ", ".join(names)
        raise PlanError(f"nnU-Net has nothing called {ours} of ours; it has {known}")
    return names[ours]
