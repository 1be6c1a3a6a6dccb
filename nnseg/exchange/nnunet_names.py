"""What nnU-Net v2's files call the things that plans name, and what we call them.

Every class or function that such a file names is looked up in a table of this module; what is not
there is refused. Nothing is ever imported or searched for by a name from a file.
"""

from dataclasses import dataclass
from typing import Any, Literal

from nnseg.registry import Registry

NAME = "nnunet"  # of plans that come from there without one
UNNAMED = ("nnseg", NAME)  # what plans are called that nobody gave a name
INTENSITIES = "foreground_intensity_properties_per_channel"
INTENSITIES_BEFORE = "foreground_intensity_properties_by_modality"  # its name in early v2


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerNames:
    """What nnU-Net calls a planner and the plans that it makes."""

    class_name: str
    plans_name: str
    shares_data: bool  # its 2d and 3d_fullres use the default planner's preprocessed cases


PLANNER_NAMES = {
    "default": PlannerNames(
        class_name="ExperimentPlanner", plans_name="nnUNetPlans", shares_data=False
    ),
    "resenc": PlannerNames(
        class_name="ResEncUNetPlanner", plans_name="nnUNetResEncUNetPlans", shares_data=True
    ),
    "resenc_m": PlannerNames(
        class_name="nnUNetPlannerResEncM", plans_name="nnUNetResEncUNetMPlans", shares_data=True
    ),
    "resenc_l": PlannerNames(
        class_name="nnUNetPlannerResEncL", plans_name="nnUNetResEncUNetLPlans", shares_data=True
    ),
    "resenc_xl": PlannerNames(
        class_name="nnUNetPlannerResEncXL", plans_name="nnUNetResEncUNetXLPlans", shares_data=True
    ),
}
SHARED_DATA = ("2d", "3d_fullres")

NORMALIZATIONS = {
    "zscore": "ZScoreNormalization",
    "ct": "CTNormalization",
    "none": "NoNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}
NORMALIZERS = Registry[str](
    "normalization that nnseg can read",
    **{theirs: ours for ours, theirs in NORMALIZATIONS.items()},
)

NETWORK_CLASSES = {
    "plain": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "resenc": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
}
NETWORKS = Registry[str](
    "network class that nnseg can build",
    **{theirs: ours for ours, theirs in NETWORK_CLASSES.items()},
    **{"dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet": "resenc"},
)
BLOCK_COUNTS = {"plain": "n_conv_per_stage", "resenc": "n_blocks_per_stage"}

DIMENSIONS: Registry[Literal[2, 3]] = Registry("convolution that nnseg knows")
DIMENSIONS.register("torch.nn.modules.conv.Conv2d", 2)
DIMENSIONS.register("torch.nn.modules.conv.Conv3d", 3)
KWARGS_TO_IMPORT = ["conv_op", "norm_op", "dropout_op", "nonlin"]

READERS = ("NaturalImage2DIO", "SimpleITKIO", "Tiff3DIO", "NibabelIO")
SPLINES = "resample_data_or_seg_to_shape"
TORCH = "resample_torch_fornnunet"


def fixed_arguments(dimensions: int) -> dict[str, Any]:
    """Give the arguments that all networks have in common; ours know no others."""
    return {
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
