"""Every network by its name: what it is, and how the planner weighs its memory."""

from nnseg.axes import Shape
from nnseg.model.architecture import ENCODER_ELEMENTS, Architecture, count_elements
from nnseg.model.counts import classic, deeplab, encoders, mednext, nested, nnunet
from nnseg.model.kind import NetworkKind
from nnseg.registry import Registry

# The planners' targets are in elements of nnU-Net's estimate, which counts each convolution once.
# `plain` keeps two numbers for each: the result, and what the norm and the activation make of it.
KEPT_PER_ELEMENT = 2

KINDS = Registry[NetworkKind](
    "network",
    plain=nnunet.PLAIN,
    resenc=nnunet.RESENC,
    fcn=classic.FCN,
    unet=classic.UNET,
    unet3d=classic.UNET3D,
    isensee2017=classic.ISENSEE2017,
    unetpp=nested.UNETPP,
    unet3plus=nested.UNET3PLUS,
    deeplabv3plus=deeplab.DEEPLABV3PLUS,
    mednext_s=mednext.MEDNEXT_S,
    mednext_b=mednext.MEDNEXT_B,
    mednext_m=mednext.MEDNEXT_M,
    mednext_l=mednext.MEDNEXT_L,
    encoder_unet=encoders.ENCODER_UNET,
)


def planned_elements(architecture: Architecture, patch: Shape, channels: int, outputs: int) -> int:
    """Count the elements of one patch by which a network is fitted into a memory target.

    For nnU-Net's networks it is nnU-Net's estimate, so that plans equal its own. Others have what
    a training step keeps of them, in numbers that a plain network keeps for an element.

    Args:
        architecture: Its network is a name of KINDS.
        patch: Voxels, (z, y, x); z is 1 for a 2D network.
        channels: Of the image.
        outputs: Channels of the segmentation layer at full resolution.

    Raises:
        PlanError: The network is unknown.
    """
    if architecture.network in ENCODER_ELEMENTS:
        return count_elements(architecture, patch, outputs)
    kind = KINDS[architecture.network]
    return kind.kept(architecture, patch, channels, outputs) // KEPT_PER_ELEMENT
