"""The image networks that `encoder_unet` can have as its encoder, by their names in timm.

To add one, write it as `nnseg.networks.inflation.Backbone` says, with a record for the planner in
`nnseg.model.counts.encoders`, and an entry here.
"""

from collections.abc import Callable
from typing import TypeAlias

from nnseg.model.backbone_records import TIMM
from nnseg.model.counts.encoders import BACKBONE_RECORDS
from nnseg.networks.coatnet import coatnet_rmlp_nano_rw_224
from nnseg.networks.convnext import convnext_nano
from nnseg.networks.efficientnet import EfficientNetV2S
from nnseg.networks.inflation import Backbone, Levels
from nnseg.networks.resnet import resnet18d, resnet34d, resnet50d, seresnext50_32x4d
from nnseg.networks.timm_backbone import TimmBackbone
from nnseg.registry import Registry

BackboneBuilder: TypeAlias = Callable[[Levels, int], Backbone]

BACKBONES = Registry[BackboneBuilder](
    "backbone",
    resnet18d=resnet18d,
    resnet34d=resnet34d,
    resnet50d=resnet50d,
    seresnext50_32x4d=seresnext50_32x4d,
    tf_efficientnetv2_s=EfficientNetV2S,
    convnext_nano=convnext_nano,
    coatnet_rmlp_nano_rw_224=coatnet_rmlp_nano_rw_224,
)


def build_backbone(name: str, levels: Levels, channels: int) -> tuple[Backbone, tuple[int, ...]]:
    """Build a backbone with drawn weights; give its channels at levels 1, 2, ... with it.

    Args:
        name: One of BACKBONES, or "timm:" and a name of timm's.
        levels: Along z, and how many.
        channels: Of the image.

    Raises:
        PlanError: There is none of its name, or it does not fit.
        MachineError: It is timm's, and timm is not installed.
    """
    if name.startswith(TIMM):
        theirs = TimmBackbone(levels, channels, name.removeprefix(TIMM))
        return theirs, theirs.features
    features = BACKBONE_RECORDS[name].features[: len(levels.steps) - 1]
    return BACKBONES[name](levels, channels), features
