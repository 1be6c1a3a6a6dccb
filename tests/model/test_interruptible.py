import pytest
import torch
from torch import Tensor, nn

from nnseg.model import interruptible
from nnseg.model.interruptible import Interruptible


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((3, 3, 3), (1, 1, 1), (1, 1, 1)),
        ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
        ((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        ((5, 3, 1), (2, 1, 1), (2, 1, 0)),
        ((3, 3), (1, 1), (1, 1)),
        ((3, 1), (2, 1), (0, 0)),
    ],
)
@pytest.mark.parametrize("parts", [2, 5])
def test_a_large_convolution_in_parts_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    parts: int,
) -> None:
    monkeypatch.setattr(interruptible, "ASK_EVERY", 0)
    layer = (nn.Conv3d if len(kernel) == 3 else nn.Conv2d)(2, 4, kernel, stride, padding)  # type: ignore[arg-type]
    image = noise(2, 2, *(13, 6, 7)[: len(kernel)])
    asked: list[bool] = []
    with torch.inference_mode():
        whole = layer(image)
        with Interruptible(lambda: asked.append(True)):
            layer(image)
        once = len(asked)
        products = whole[:, 0].numel() * layer.weight.numel()
        most = products / (parts * torch.get_num_threads())
        monkeypatch.setattr(interruptible, "UNASKED_PRODUCTS", most)
        with Interruptible(lambda: asked.append(True)):
            joined = layer(image)
    assert len(asked) > 2 * once + 1
    torch.testing.assert_close(joined, whole, atol=1e-5, rtol=0)


def test_a_convolution_that_is_called_otherwise_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interruptible, "UNASKED_PRODUCTS", 0.1)
    image = noise(1, 2, 5, 6, 7)
    same = nn.Conv3d(2, 2, (3, 1, 3), padding="same")
    dilated = nn.Conv3d(2, 2, 2, padding=(1, 2, 1), dilation=2)
    weight = torch.ones(2, 2, 1, 3, 3)
    with torch.inference_mode():
        expected = [same(image), dilated(image), nn.functional.conv3d(image, weight)]
        with Interruptible(lambda: None):
            found = [same(image), dilated(image), nn.functional.conv3d(image, weight)]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
