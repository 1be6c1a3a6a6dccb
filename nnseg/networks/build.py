"""A network from its record."""

from collections.abc import Callable
from typing import TypeAlias

from torch import nn

from nnseg.model.architecture import Architecture
from nnseg.model.kinds import KINDS
from nnseg.model.unet import PlainUNet, ResidualEncoderUNet
from nnseg.networks.deeplabv3plus import DeepLabV3Plus
from nnseg.networks.encoder_unet import EncoderUNet
from nnseg.networks.fcn import FCN
from nnseg.networks.isensee2017 import Isensee2017
from nnseg.networks.mednext import MedNeXt
from nnseg.networks.ronneberger import make_unet, make_unet3d
from nnseg.networks.unet3plus import UNet3Plus
from nnseg.networks.unetpp import UNetPlusPlus
from nnseg.registry import Registry

Builder: TypeAlias = Callable[[Architecture, int, int], nn.Module]

NETWORKS = Registry[Builder](
    "network",
    plain=PlainUNet,
    resenc=ResidualEncoderUNet,
    fcn=FCN,
    unet=make_unet,
    unet3d=make_unet3d,
    isensee2017=Isensee2017,
    unetpp=UNetPlusPlus,
    unet3plus=UNet3Plus,
    deeplabv3plus=DeepLabV3Plus,
    mednext_s=MedNeXt,
    mednext_b=MedNeXt,
    mednext_m=MedNeXt,
    mednext_l=MedNeXt,
    encoder_unet=EncoderUNet,
)


def build_network(architecture: Architecture, channels: int, heads: int) -> nn.Module:
    """Build a network with weights drawn from torch's global generator.

    Its `forward(image, outputs=1)` takes (batch, channel, z, y, x), z being 1 for a 2D network,
    and gives the logits of that many outputs, (batch, head, z, y, x) each, the main one first.

    Args:
        architecture: Its record; `architecture.network` is a name of NETWORKS.
        channels: Input channels.
        heads: Output channels.

    Raises:
        PlanError: There is no such network, or it is not defined in these dimensions, or does not
            take the options of the record.
    """
    KINDS[architecture.network].check(architecture)
    return NETWORKS[architecture.network](architecture, channels, heads)
