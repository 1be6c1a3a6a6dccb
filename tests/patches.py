"""Patches of three shapes, what is drawn for them, and images and label maps to change."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from nnseg.axes import Shape
from nnseg.model.augment import augment
from nnseg.model.draws import Augmentation, Draw, plan_augmentation

PATCH = (8, 12, 10)
VOLUME = plan_augmentation(PATCH, 3)
SLICE = plan_augmentation((1, 12, 10), 2)
FLAT = plan_augmentation((4, 16, 14), 3)
KINDS = [
    pytest.param(VOLUME, id="3d"),
    pytest.param(SLICE, id="2d"),
    pytest.param(FLAT, id="flat"),
]


def bent(augmentation: Augmentation) -> Augmentation:
    """Give rules by which patches bend as well, with several control points in each."""
    steps = (3.0, 4.0, 5.0)
    farthest = (0.0 if augmentation.in_plane else 1.2, 1.6, 2.0)
    z, y, x = augmentation.loaded_shape
    loaded = (z if augmentation.in_plane else z + 4, y + 4, x + 4)
    return replace(augmentation, steps=steps, farthest=farthest, loaded_shape=loaded)


BENT = [
    pytest.param(bent(VOLUME), id="bent 3d"),
    pytest.param(bent(SLICE), id="bent 2d"),
    pytest.param(bent(FLAT), id="bent flat"),
]


def nothing(channels: int = 1) -> Draw:
    """Give the draw for which no transform fires."""
    ones = (1.0,) * channels
    return Draw(
        affine=None,
        noise_std=0.0,
        noise_seed=0,
        blur=((0.0, 0.0, 0.0),) * channels,
        brightness=ones,
        contrast=ones,
        zoom=ones,
        gamma_inverted=ones,
        gamma=ones,
        mirror=(),
    )


def image_of(shape: Shape, channels: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, *shape, generator=generator) * 3 + 5


def labels_of(shape: Shape, count: int = 4, seed: int = 0) -> Tensor:
    """Give blobs of labels 0 to count - 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, *(-(-edge // 3) for edge in shape), generator=generator)
    return (interpolate(coarse, shape, mode="trilinear")[0, 0] * count).to(torch.uint8)


def apply(
    parameters: Draw,
    image: Tensor,
    augmentation: Augmentation = VOLUME,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Augment one sample."""
    if labels is None:
        labels = torch.zeros(image.shape[1:], dtype=torch.uint8)
    images, maps = augment([image], [labels[None]], [parameters], augmentation)
    return images[0], maps[0, 0]


def turn_about_z(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
