"""A U-Net around an image network: what it is, and what a training step of it keeps."""

from nnseg.axes import Shape
from nnseg.model.architecture import Architecture, level_shapes
from nnseg.model.backbone_records import TIMM, BackboneRecord, Maps
from nnseg.model.counts.coatnet import COATNET_RMLP_NANO
from nnseg.model.counts.convnext import CONVNEXT_NANO
from nnseg.model.counts.efficientnet import EFFICIENTNETV2_S
from nnseg.model.counts.resnet import RESNET_RECORDS
from nnseg.model.counts.tally import conv_norm_act, convolved, level_voxels, upsampled
from nnseg.model.kind import NetworkKind, doubled, single
from nnseg.registry import Registry

FIRST_FEATURES = 16  # of the decoder's last level: without a skip, it has little to tell apart
LEVELS = (3, 6)  # image networks halve the resolution five times; small patches take fewer of these

BACKBONE_RECORDS = Registry[BackboneRecord](
    "backbone",
    **RESNET_RECORDS,
    tf_efficientnetv2_s=EFFICIENTNETV2_S,
    convnext_nano=CONVNEXT_NANO,
    coatnet_rmlp_nano_rw_224=COATNET_RMLP_NANO,
)
DEFAULT = "resnet18d"
UNKNOWN = "resnet50d"  # what a backbone that only timm knows is planned as


def backbone_record(architecture: Architecture) -> BackboneRecord:
    """Give the record of an architecture's backbone; one of timm's own counts as a ResNet-50-D.

    Raises:
        PlanError: There is none of its name.
    """
    name = architecture.options.backbone or DEFAULT
    return BACKBONE_RECORDS[UNKNOWN if name.startswith(TIMM) else name]


def maps_of(architecture: Architecture, patch: Shape) -> Maps:
    """Give the maps that an architecture's backbone makes of a patch (z, y, x)."""
    return Maps(
        shapes=level_shapes(patch, architecture.strides),
        depths=tuple(kernel[0] for kernel in architecture.kernel_sizes),
        steps=tuple(stride[0] for stride in architecture.strides),
    )


def encoder_unet_kept(architecture: Architecture, patch: Shape, channels: int) -> int:
    """Count what the backbone keeps, and the decoder: at each level all that it joins, and blocks.

    Where the deepest map of the backbone has another width than the record's, a convolution, a norm
    and an activation follow it. What norms and gates keep for a channel as a whole is left out.
    """
    voxels, widths = level_voxels(architecture, patch), architecture.features
    record = backbone_record(architecture)
    skips = (0, *record.features)
    total = record.kept(maps_of(architecture, patch), channels)
    if skips[architecture.levels - 1] != widths[-1]:
        total += conv_norm_act(widths[-1], voxels[-1])
    kind = architecture.options.upsampling or "transposed"
    for level, blocks in enumerate(architecture.decoder_blocks):
        width, size = widths[level], voxels[level]
        total += upsampled(kind, widths[level + 1], size) + (width + skips[level]) * size
        total += blocks * convolved(architecture, width, size)
    return total


ENCODER_UNET = NetworkKind(
    title="a U-Net whose encoder is an image network, in 3D with its kernels inflated",
    source="He et al. 2016, arXiv:1512.03385, and others; Carreira 2017, arXiv:1705.07750",
    dimensions=(2, 3),
    levels=LEVELS,
    features=doubled(FIRST_FEATURES),
    encoder_blocks=(1,),
    decoder_blocks=(2,),
    kept=encoder_unet_kept,
    weights=single,
    options=("upsampling", "norm", "dropout", "backbone"),
    backbones=(DEFAULT, *(name for name in BACKBONE_RECORDS if name != DEFAULT)),
    halves_plane=True,
)
