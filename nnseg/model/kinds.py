"""Every network by its name: what it is, and how the planner weighs its memory."""

from nnseg.axes import Shape
from nnseg.model.architecture import ENCODER_ELEMENTS, Architecture, count_elements
from nnseg.model.counts import classic, deeplab, encoders, mednext, nested, nnunet
from nnseg.model.counts.tally import level_voxels
from nnseg.model.kind import NetworkKind
from nnseg.registry import Registry

# The planners' targets are in elements of nnU-Net's estimate, which counts each convolution once.
# `plain` keeps two numbers for each: the result, and what the norm and the activation make of it.
KEPT_PER_ELEMENT = 2

LOSS_KEPT_BESIDE = 3  # the label of a voxel, in 8 bytes, and the probability that it has

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
    a training step keeps of them, in numbers that a plain network keeps for an element. What the
    loss keeps counts in full: it is in fp32 where the network is in 16 bits, too.

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
    network = KINDS[architecture.network].kept(architecture, patch, channels)
    return network // KEPT_PER_ELEMENT + loss_kept(architecture, patch, outputs)


def loss_kept(architecture: Architecture, patch: Shape, heads: int) -> int:
    """Count what nnU-Net's loss keeps of one sample for the backward pass, in numbers of 4 bytes.

    That is `dice_ce`, its classes not weighted, without mixup; others keep up to twice as much. Of
    each output that counts: a probability for each head and voxel, and LOSS_KEPT_BESIDE for each
    voxel.

    Args:
        architecture: Its network is a name of KINDS.
        patch: Voxels, (z, y, x); z is 1 for a 2D network.
        heads: Of the network.

    Raises:
        PlanError: The network is unknown.
    """
    kind, voxels = KINDS[architecture.network], level_voxels(architecture, patch)
    weights = kind.weights(architecture)
    sizes = voxels[: len(weights)] if kind.outputs_by_level else [voxels[0]] * len(weights)
    counted = sum(size for size, weight in zip(sizes, weights, strict=True) if weight)
    return (heads + LOSS_KEPT_BESIDE) * counted
