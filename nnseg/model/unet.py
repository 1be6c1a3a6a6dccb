"""nnU-Net's two networks: U-Nets of a plain and of a residual encoder."""

from collections.abc import Sequence

from torch import Tensor, nn

from nnseg.model.architecture import Architecture
from nnseg.model.blocks import CONVOLUTION, ConvBlock, ResidualBlock, initialize
from nnseg.networks.layers import per_axis
from nnseg.networks.upsampling import make_upsampling


class UNet(nn.Module):
    """A U-Net of an encoder of our choice and nnU-Net's decoder, or one that upsamples otherwise.

    Every decoder level has a segmentation head, so that weights load with and without deep
    supervision. A network of one level, for images too small to be pooled, has its head on that.

    Args:
        architecture: Its record.
        encoder: One module a level, each from the features of the level above to its own.
        heads: Output channels.
    """

    def __init__(
        self, architecture: Architecture, encoder: Sequence[nn.Module], heads: int
    ) -> None:
        super().__init__()
        dimensions, features = architecture.dimensions, architecture.features
        upsampling = architecture.options.upsampling or "transposed"
        self.is_2d = dimensions == 2
        kernels, strides = per_axis(architecture)
        self.encoder = nn.ModuleList(encoder)
        self.up, self.decoder, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(features) - 1)):
            width, stride = features[level], strides[level + 1]
            self.up.append(
                make_upsampling(upsampling, features[level + 1], width, stride, dimensions)
            )
            count = architecture.decoder_blocks[level]
            blocks = [
                ConvBlock(width * (2 if i == 0 else 1), width, kernels[level]) for i in range(count)
            ]
            self.decoder.append(nn.Sequential(*blocks))
            self.heads.append(CONVOLUTION[dimensions](width, heads, 1))
        if not self.decoder:
            self.heads.append(CONVOLUTION[dimensions](features[0], heads, 1))
        self.apply(initialize)

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        """Give the logits of the `outputs` highest resolutions, full resolution first.

        Args:
            image: (batch, channel, z, y, x); z is 1 for a 2D network.
            outputs: How many decoder levels to compute a head for.

        Returns:
            Tensors (batch, head, z, y, x).
        """
        x = image.squeeze(2) if self.is_2d else image
        skips = []
        for encode in self.encoder:
            x = encode(x)
            skips.append(x)
        skips.pop()
        logits = [] if self.decoder else [self.heads[0](x)]
        first = len(self.decoder) - outputs
        stages = zip(self.up, self.decoder, self.heads, strict=False)  # without decoder, one head
        for number, (up, decode, head) in enumerate(stages):
            x = decode[0](up(x), skips.pop())  # type: ignore[index]  # it is a Sequential
            x = decode[1:](x)  # type: ignore[index]
            if number >= first:
                logits.append(head(x))
        if self.is_2d:
            logits = [output.unsqueeze(2) for output in logits]
        return logits[::-1]


class PlainUNet(UNet):
    """nnU-Net's plain U-Net: two convolutions a level, strided ones in place of pooling.

    Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, Methods, network architecture.
    """

    def __init__(self, architecture: Architecture, channels: int, heads: int) -> None:
        kernels, strides = per_axis(architecture)
        encoder = []
        for level, width in enumerate(architecture.features):
            blocks = []
            for i in range(architecture.encoder_blocks[level]):
                stride = strides[level] if i == 0 else None
                blocks.append(ConvBlock(channels, width, kernels[level], stride))
                channels = width
            encoder.append(nn.Sequential(*blocks))
        super().__init__(architecture, encoder, heads)


class ResidualEncoderUNet(UNet):
    """nnU-Net's residual-encoder U-Net: a stem, then residual blocks whose first one strides.

    The stem is the first block of level 0.

    Source: Isensee et al. 2024, doi:10.1007/978-3-031-72114-4_47.
    """

    def __init__(self, architecture: Architecture, channels: int, heads: int) -> None:
        kernels, strides = per_axis(architecture)
        encoder = []
        for level, width in enumerate(architecture.features):
            blocks: list[nn.Module] = []
            if level == 0:
                blocks.append(ConvBlock(channels, width, kernels[0]))
                channels = width
            for i in range(architecture.encoder_blocks[level]):
                stride = strides[level] if i == 0 else (1,) * len(strides[level])
                blocks.append(ResidualBlock(channels, width, kernels[level], stride))
                channels = width
            encoder.append(nn.Sequential(*blocks))
        super().__init__(architecture, encoder, heads)
