import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nnseg.model import blocks
from nnseg.model.blocks import ConvBlock, InstanceNorm, ResidualBlock, initialize


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def expected_norm(x: Tensor, norm: InstanceNorm) -> Tensor:
    return functional.instance_norm(x, weight=norm.weight, bias=norm.bias)


def test_the_channels_of_a_skip_follow_those_of_the_image() -> None:
    block, x, skip = ConvBlock(5, 3, (3, 3, 3)), drawn(2, 2, 4, 5, 6), drawn(2, 3, 4, 5, 6)
    torch.testing.assert_close(block(x, skip), block(torch.cat((x, skip), dim=1)))


def test_a_norm_is_activated_only_where_asked_for() -> None:
    x = drawn(1, 3, 4, 5, 6)
    plain, activated = InstanceNorm(3), InstanceNorm(3, activated=True)
    torch.testing.assert_close(activated(x), functional.leaky_relu(plain(x), 0.01))
    assert float(plain(x).detach().min()) < -0.5


@pytest.mark.parametrize(
    ("channels", "stride"), [(2, (1, 1, 1)), (2, (1, 2, 2)), (4, (1, 1, 1)), (4, (2, 1, 2))]
)
def test_a_residual_block_adds_its_pooled_and_projected_input(
    channels: int, stride: tuple[int, int, int]
) -> None:
    block, x = ResidualBlock(2, channels, (1, 3, 3), stride), drawn(2, 2, 4, 6, 8)
    first, second = block.conv1, block.conv2
    y = functional.conv3d(x, first.conv.weight, first.conv.bias, stride=stride, padding=(0, 1, 1))
    y = functional.leaky_relu(expected_norm(y, first.norm), 0.01)
    y = functional.conv3d(y, second.conv.weight, second.conv.bias, padding=(0, 1, 1))
    skip = functional.avg_pool3d(x, stride)
    if channels != 2:
        assert block.project is not None
        assert block.project.conv.bias is None
        skip = functional.conv3d(skip, block.project.conv.weight)
        skip = expected_norm(skip, block.project.norm)
    expected = functional.leaky_relu(expected_norm(y, second.norm) + skip, 0.01)
    torch.testing.assert_close(block(x), expected)


def test_a_residual_block_begins_by_handing_its_input_on() -> None:
    block, x = ResidualBlock(3, 3, (3, 3), (1, 1)), drawn(2, 3, 5, 6)
    block.apply(initialize)
    torch.testing.assert_close(block(x), functional.leaky_relu(x, 0.01))


@pytest.mark.parametrize("shape", [(2, 3, 20, 30, 50), (1, 4, 90, 110), (2, 3, 1, 1, 1)])
@pytest.mark.parametrize("activated", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_prediction_in_fp32_is_normalized_to_the_last_digits(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], activated: bool, channels_last: bool
) -> None:
    monkeypatch.setattr(blocks, "_CACHED_VALUES", 7000)
    norm = InstanceNorm(shape[1], activated=activated)
    norm.weight.data, norm.bias.data = drawn(shape[1]), drawn(shape[1]) / 2
    x = 3 * drawn(*shape) + 40  # a mean far from 0, where sums of squares lose what differs
    if channels_last:
        order = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        x = x.contiguous(memory_format=order)
    mean = x.double().mean(dim=tuple(range(2, x.ndim)), keepdim=True)
    variance = (x - mean).square().mean(dim=tuple(range(2, x.ndim)), keepdim=True)
    channel = (-1, *(1,) * (x.ndim - 2))
    wanted = (x - mean) / (variance + 1e-5).sqrt() * norm.weight.view(channel)
    wanted = wanted + norm.bias.view(channel)
    if activated:
        wanted = functional.leaky_relu(wanted, 0.01)
    with torch.inference_mode():
        found = norm(x)
    torch.testing.assert_close(found.double(), wanted.detach(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("planes", [1, 2, 3])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2)])
def test_the_weight_gradient_in_bf16_is_that_in_fp32(
    planes: int, stride: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    layer = blocks.CONVOLUTION[3](16, 16, 3, stride=stride, padding=1)
    image = torch.randn(2, 16, planes, 8, 6)
    found = []
    for half in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            result = layer(image)
        assert result.shape[2] == planes
        torch.manual_seed(1)
        result.backward(torch.randn(result.shape).to(result.dtype))
        assert layer.weight.grad is not None
        found.append((result.float(), layer.weight.grad.clone()))
    (exact, wanted), (rounded, gradient) = found
    assert (rounded - exact).norm() < 0.02 * exact.norm()
    assert (gradient - wanted).norm() < 0.02 * wanted.norm()
