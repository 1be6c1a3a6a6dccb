"""Every transform beside nnU-Net's own, of equal parameters: what batchgeneratorsv2 gave."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnseg.model.augment import augment
from nnseg.model.draws import Augmentation, Draw
from nnseg.model.previous import Spoiling, spoil, to_channels
from nnseg.model.sampling import inner_start

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "augment.json").read_text("utf-8")
)
LOADED, PATCH = (11, 14, 9), (6, 9, 5)
VOLUME = Augmentation(
    patch_size=PATCH,
    loaded_shape=LOADED,
    rotation=(math.pi,) * 3,
    flat=False,
    mirror_axes=(0, 1, 2),
)
FLAT = replace(VOLUME, loaded_shape=(6, *LOADED[1:]), flat=True)
SLICE = replace(VOLUME, patch_size=(1, *PATCH[1:]), loaded_shape=(1, *LOADED[1:]))
TOLERANCE = 2e-4  # of values from -5 to 5
NOTHING = Draw(
    affine=None,
    noise_std=0.0,
    noise_seed=0,
    blur=((0.0, 0.0, 0.0),) * 2,
    brightness=(1.0, 1.0),
    contrast=(1.0, 1.0),
    zoom=(1.0, 1.0),
    gamma_inverted=(1.0, 1.0),
    gamma=(1.0, 1.0),
    mirror=(),
)


def values(shape: tuple[int, ...]) -> Tensor:
    count = math.prod(shape)
    return torch.from_numpy((np.arange(count) * 7919 % 1009) / 100 - 5).float().reshape(shape)


def blocks(shape: tuple[int, ...]) -> Tensor:
    z, y, x = np.indices(shape) // 3
    return torch.from_numpy((z * 5 + y * 3 + x) % 4).to(torch.int16)


def turns(z: float, y: float, x: float, scale: float = 1.0) -> np.ndarray:
    """Give the matrix that turns about z, then y, then x, after scaling."""
    about_z, about_y, about_x = np.eye(3), np.eye(3), np.eye(3)
    about_z[1:, 1:] = [[math.cos(z), -math.sin(z)], [math.sin(z), math.cos(z)]]
    about_y[::2, ::2] = [[math.cos(y), math.sin(y)], [-math.sin(y), math.cos(y)]]
    about_x[:2, :2] = [[math.cos(x), -math.sin(x)], [math.sin(x), math.cos(x)]]
    return about_x @ about_y @ about_z * scale


IN_PLANE = {
    "flat": turns(0.7, 0, 0) @ np.diag((1, 1.2, 1.2)),
    "slice": turns(-2.1, 0, 0) @ np.diag((1, 0.9, 0.9)),
}
SPATIAL = [
    ("scale", VOLUME, np.eye(3) * 0.8, slice(None)),
    ("turn", VOLUME, turns(0.3, -0.2, 0.4), slice(None)),
    ("turn_and_scale", VOLUME, turns(-0.4, 0.5, 0.1, 1.3), slice(None)),
    ("flat", FLAT, IN_PLANE["flat"], slice(0, 6)),
    ("slice", SLICE, IN_PLANE["slice"], slice(4, 5)),
]


@pytest.mark.parametrize(("name", "augmentation", "affine", "depth"), SPATIAL)
def test_rotation_and_scaling_are_those_of_nnunet(
    name: str, augmentation: Augmentation, affine: np.ndarray, depth: slice
) -> None:
    image, labels = values((2, *LOADED))[:, depth], blocks(LOADED)[depth]
    found, maps = augment([image], [labels[None]], [replace(NOTHING, affine=affine)], augmentation)
    wanted = torch.tensor(GOLDEN[name]["image"]).reshape(found[0].shape)
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=TOLERANCE)
    theirs = torch.tensor(GOLDEN[name]["labels"], dtype=torch.int16).reshape(maps[0, 0].shape)
    # outside is a label of its own there (-1, later 0); here it counts for the background at once
    assert torch.equal(maps[0, 0][maps[0, 0] != 0], theirs[maps[0, 0] != 0])
    merged = theirs.clamp(min=0)
    assert (maps[0, 0] != merged).float().mean() < 0.04
    assert merged.unique().numel() >= 3


def test_the_patch_of_a_sample_that_stays_is_the_middle_of_the_loaded_one() -> None:
    start = inner_start((0, 0, 0), LOADED, PATCH)
    place = tuple(slice(s, s + n) for s, n in zip(start, PATCH, strict=True))
    found = values((2, *LOADED))[(slice(None), *place)]
    torch.testing.assert_close(found, torch.tensor(GOLDEN["crop"]["image"]), rtol=0, atol=TOLERANCE)
    assert torch.equal(
        blocks(LOADED)[place], torch.tensor(GOLDEN["crop"]["labels"][0], dtype=torch.int16)
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("blur", {"blur": ((0.0, 0.0, 0.0), (0.6, 0.95, 0.75))}),
        ("brightness", {"brightness": (0.8, 1.2)}),
        ("contrast", {"contrast": (0.8, 1.2)}),
        ("zoom", {"zoom": (0.53, 0.81)}),
        ("zoom_in_plane", {"zoom": (0.53, 0.81)}),
        ("gamma", {"gamma": (0.75, 1.4)}),
        ("gamma_inverted", {"gamma_inverted": (0.75, 1.4)}),
        ("mirror", {"mirror": (0, 2)}),
    ],
)
def test_each_change_of_intensities_is_that_of_nnunet(name: str, change: dict[str, Any]) -> None:
    rules = FLAT if name == "zoom_in_plane" else VOLUME
    maps = torch.zeros((1, *PATCH), dtype=torch.int16)
    found, _ = augment([values((2, *PATCH))], [maps], [replace(NOTHING, **change)], rules)
    wanted = torch.tensor(GOLDEN[name]["image"])
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=TOLERANCE)
    assert not torch.allclose(found[0], values((2, *PATCH)), atol=0.1)


def spoilt(spoiling: Spoiling, positions: Tensor, channels: int) -> str:
    found = to_channels(positions[None], channels)[0]
    spoil(found, spoiling)
    places = torch.arange(1, channels + 1).view(-1, 1, 1, 1)
    return "".join(map(str, (found.int() * places).sum(0).flatten().tolist()))


@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize("name", ["dilate", "erode", "close", "open"])
def test_labels_of_the_stage_before_change_as_in_nnunet(name: str, radius: int) -> None:
    found = spoilt(Spoiling(operations=((1, name, float(radius)),)), blocks(LOADED), 3)
    assert found == GOLDEN[f"{name}_{radius}"]["positions"]
    assert {"1", "2", "3"} >= set(found) - {"0"}


def test_a_component_goes_with_its_corners_unless_it_is_too_large() -> None:
    label = torch.zeros(LOADED, dtype=torch.int16)
    label[1:3, 2:5, 1:4] = 1
    label[3, 5, 4] = 1
    label[5:, 7:] = 1
    found = spoilt(Spoiling(removals=((0, 0.7),)), label, 1)
    assert found == GOLDEN["remove"]["positions"]
    assert 0 < found.count("1") < int(label.sum())
