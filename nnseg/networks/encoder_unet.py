"""A U-Net whose encoder is an image network."""

import torch
from torch import Tensor, nn

from nnseg.errors import PlanError
from nnseg.model.architecture import Architecture
from nnseg.model.blocks import CONVOLUTION, initialize
from nnseg.model.counts.encoders import DEFAULT, LEVELS
from nnseg.networks.backbones import build_backbone
from nnseg.networks.inflation import levels_of
from nnseg.networks.layers import ConvNormAct, per_axis
from nnseg.networks.upsampling import make_upsampling

NORM = "instance"
ENCODER = "encoder."  # what the names of the backbone's parameters begin with


class EncoderUNet(nn.Module):
    """A backbone as the encoder, and a U-Net's decoder that takes up each map that it has.

    `options.backbone` names the image network. `features` are the channels of the decoder's levels,
    and, for the deepest, those that the backbone's last map is brought to by a convolution of 1
    where it has others. `decoder_blocks` convolutions at each level follow the upsampling;
    `encoder_blocks` means nothing, as the backbone has its own. Level 0, to whose resolution no
    backbone has a map, is decoded from level 1 alone. There is one output.

    Of the options, norm and dropout are those of the decoder: a backbone keeps the norms, and with
    them the meaning of its trained weights. The decoder's is instance norm if none is chosen, as
    batches in 3D are small. In 3D the backbone's kernels see as many planes as the plan's do, the
    outer ones repeated, and strides along z are the plan's (see `nnseg.networks.inflation`).

    Args:
        architecture: Its record; y and x are halved from each level to the next.
        channels: Of the image.
        heads: Output channels.

    Raises:
        PlanError: The record does not fit an image network.
        MachineError: The backbone is timm's, and timm is not installed.

    Source: Ronneberger et al. 2015, arXiv:1505.04597, the decoder; the backbones name theirs.
    """

    def __init__(self, architecture: Architecture, channels: int, heads: int) -> None:
        super().__init__()
        _check(architecture)
        dimensions, options = architecture.dimensions, architecture.options
        self.is_2d = dimensions == 2
        kernels, strides = per_axis(architecture)
        features, norm = architecture.features, options.norm or NORM
        self.encoder, found = build_backbone(
            options.backbone or DEFAULT, levels_of(architecture), channels
        )
        self.mapped = tuple(width > 0 for width in found)
        self.neck: nn.Module = nn.Identity()
        if found[-1] != features[-1]:
            self.neck = ConvNormAct(found[-1], features[-1], (1,) * dimensions, norm=norm)
        skips = (0, *found)
        self.up, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(architecture.levels - 1)):
            above, width, stride = features[level + 1], features[level], strides[level + 1]
            kind = options.upsampling or "transposed"
            self.up.append(make_upsampling(kind, above, width, stride, dimensions))
            blocks, inputs = [], width + skips[level]
            for _ in range(architecture.decoder_blocks[level]):
                dropout = options.dropout or 0.0
                blocks.append(
                    ConvNormAct(inputs, width, kernels[level], norm=norm, dropout=dropout)
                )
                inputs = width
            self.decoder.append(nn.Sequential(*blocks))
        self.heads = nn.ModuleList([CONVOLUTION[dimensions](features[0], heads, 1)])
        for part in (self.neck, self.up, self.decoder, self.heads):
            part.apply(initialize)

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        """Give the logits (batch, head, z, y, x) of images (batch, channel, z, y, x), as one."""
        maps = self.encoder(image.squeeze(2) if self.is_2d else image)
        x = self.neck(maps.pop())
        mapped = (False, *self.mapped[:-1])
        for up, decode, has_skip in zip(self.up, self.decoder, reversed(mapped), strict=True):
            x = up(x)
            x = decode(torch.cat((maps.pop(), x), dim=1) if has_skip else x)
        logits = self.heads[0](x)
        return [logits.unsqueeze(2) if self.is_2d else logits]


def _check(architecture: Architecture) -> None:
    least, most = LEVELS
    if not least <= architecture.levels <= most:
        raise PlanError(
            f"encoder_unet has {architecture.levels} levels; its backbones have {least} to {most}"
        )
    for stride in architecture.strides[1:]:
        if stride[0] > 2 or stride[1:] != (2, 2):
            raise PlanError(
                f"strides has {stride} for encoder_unet; its backbones halve y and x at every "
                "level, and z or not; plan anew"
            )
