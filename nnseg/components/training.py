"""The rules of what only trains: losses, optimizers, schedules, augmentation."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnseg.components.refusal import refuses
from nnseg.labels import Labels
from nnseg.learning.optimize import OPTIMIZERS, Optimizer
from nnseg.losses.build import LOSSES
from nnseg.losses.sums import Loss
from nnseg.model.augment import augment
from nnseg.model.bending import count_points
from nnseg.model.draws import Augmentation, Draw, plan_augmentation
from nnseg.model.schedule import SCHEDULES
from nnseg.registry import Registry

IGNORED = 3
SORTS = {
    "labels": Labels(labels={"background": 0, "a": 1, "b": 2}),
    "an ignored label": Labels(labels={"background": 0, "a": 1, "b": 2, "ignore": IGNORED}),
    "regions": Labels(
        labels={"background": 0, "whole": (1, 2), "core": 2}, regions_class_order=(1, 2)
    ),
}
SHAPE = (4, 6, 5)
EXTREME = 1e4  # of a logit
SURE = 12.0


def rules_of_loss(name: str) -> Iterator[tuple[str, bool]]:
    """Try a loss on labels, with some ignored and on regions."""
    loss = LOSSES[name]
    for what, labels in SORTS.items():
        for rule, kept in _rules_of(loss, labels):
            yield f"with {what} {rule}", kept


def _rules_of(loss: Loss, labels: Labels) -> Iterator[tuple[str, bool]]:
    generator = torch.Generator().manual_seed(9)
    truth = torch.randint(len(labels.values), (2, *SHAPE), generator=generator, dtype=torch.int16)
    logits = torch.randn(2, labels.heads, *SHAPE, generator=generator)
    before = logits.clone(), truth.clone()
    for batch_dice in (False, True):
        value = loss(logits, truth, labels, batch_dice)
        yield "it must give one number", value.shape == () and bool(value.isfinite())
        again = loss(logits, truth, labels, batch_dice)
        yield "it must do the same twice", torch.equal(value, again)
        same = torch.equal(logits, before[0]) and torch.equal(truth, before[1])
        yield "it must leave logits and labels as they are", same
        right = _logits_for(truth, labels)
        yield (
            "it must be least for what is right and most for what is wrong",
            bool(loss(right, truth, labels, batch_dice) < value)
            and bool(value < loss(-right, truth, labels, batch_dice)),
        )
        sorts = {
            "extreme logits": (logits * EXTREME, truth),
            "no foreground": (logits, torch.zeros_like(truth)),
            "nothing but foreground": (logits, torch.full_like(truth, 2)),
            "one voxel": (logits[:1, :, :1, :1, :1], truth[:1, :1, :1, :1].clamp(max=2)),
            "equal logits": (torch.zeros_like(logits), truth),
        }
        if labels.ignore is not None:
            sorts["all voxels ignored"] = (logits, torch.full_like(truth, labels.ignore))
        for sort, (values, segmentation) in sorts.items():
            leaf = values.clone().requires_grad_()
            found = loss(leaf, segmentation, labels, batch_dice)
            found.backward()
            good = bool(found.isfinite()) and leaf.grad is not None
            yield f"it must be finite for {sort}", good
            yield (
                f"it must have a finite gradient for {sort}",
                leaf.grad is not None and bool(leaf.grad.isfinite().all()),
            )
        holed = logits.clone()
        z, y, x = (truth[0] != IGNORED).nonzero()[0].tolist()
        holed[0, 0, z, y, x] = torch.nan
        hidden = loss(holed, truth, labels, batch_dice)
        yield "it must be NaN where a logit is", bool(hidden.isnan())
        wrong = truth[:, :-1]
        yield (
            "it must refuse labels of another shape",
            refuses(loss, logits, wrong, labels, batch_dice),
        )


def _logits_for(truth: Tensor, labels: Labels) -> Tensor:
    """Logits that are sure of what is right; of ignored voxels anything."""
    if labels.has_regions:
        inside = [torch.isin(truth, torch.tensor(v)) for v in labels.foreground.values()]
    else:
        inside = [truth == position for position in range(labels.heads)]
    return (torch.stack(inside, dim=1).float() * 2 - 1) * SURE


def rules_of_optimizer(name: str) -> Iterator[tuple[str, bool]]:
    """Try an optimizer on a parabola."""
    maker = OPTIMIZERS[name]

    def made() -> tuple[nn.Parameter, Optimizer]:
        weight = nn.Parameter(torch.tensor([3.0, -2.0, 0.5]))
        return weight, maker([weight], 0.01, 0.9, 1e-4, False)

    def go(weight: nn.Parameter, optimizer: Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            weight.square().sum().backward()
            optimizer.step()

    (first, one), (second, two), (third, three) = made(), made(), made()
    start = float(first.detach().square().sum())
    go(first, one, 40)
    go(second, two, 40)
    yield "it must come down", float(first.detach().square().sum()) < start
    yield "it must do the same twice", torch.equal(first, second)
    go(third, three, 15)
    fourth, four = made()
    fourth.data.copy_(third.data)
    four.load_state_dict(three.state_dict())
    go(fourth, four, 25)
    yield "it must go on from its state as if it had never stopped", torch.equal(fourth, first)
    rate = {group["lr"] for group in one.param_groups}
    yield "it must take the learning rate that it is given", rate == {0.01}


def rules_of_schedule(name: str) -> Iterator[tuple[str, bool]]:
    """Try a schedule of the learning rate from the start of a training to its end."""
    schedule = SCHEDULES[name]
    values = [schedule(progress) for progress in np.linspace(0, 1, 201).tolist()]
    yield "it must begin with the whole rate", abs(values[0] - 1) < 1e-6
    yield "it must stay within 0 and the whole rate", min(values) >= 0 and max(values) <= 1 + 1e-9
    yield "it must end with little of it", values[-1] < 0.1
    again = [schedule(progress) for progress in np.linspace(0, 1, 201).tolist()]
    yield "it must do the same twice", values == again


CHANNELS = 2
NOTHING = Draw(
    affine=None,
    noise_std=0.0,
    noise_seed=11,
    blur=((0.0, 0.0, 0.0),) * CHANNELS,
    brightness=(1.0,) * CHANNELS,
    contrast=(1.0,) * CHANNELS,
    zoom=(1.0,) * CHANNELS,
    gamma_inverted=(1.0,) * CHANNELS,
    gamma=(1.0,) * CHANNELS,
    mirror=(),
)
TURN = np.array([[1.0, 0.0, 0.0], [0.0, 0.8, -0.6], [0.0, 0.6, 0.8]])
# What each transform is when it fires; one for each field of a draw that changes something.
TRANSFORMS = Registry[dict[str, Any]](
    "transform",
    affine={"affine": 1.2 * TURN},
    noise_std={"noise_std": 0.1},
    blur={"blur": ((0.5, 1.0, 0.7), (0.0, 0.0, 0.0))},
    brightness={"brightness": (0.8, 1.2)},
    contrast={"contrast": (0.8, 1.2)},
    zoom={"zoom": (0.6, 1.0)},
    gamma_inverted={"gamma_inverted": (0.8, 1.4)},
    gamma={"gamma": (1.4, 0.8)},
    mirror={"mirror": (1, 2)},
    bend={"affine": np.eye(3), "bend": True},
)


def rules_of_augmentation(name: str) -> Iterator[tuple[str, bool]]:
    """Try a transform, alone, on volumes and on slices."""
    for patch, dimensions in (((6, 8, 7), 3), ((1, 8, 7), 2)):
        planned = plan_augmentation(patch, dimensions, elastic=2.0)
        drawn = _fired(TRANSFORMS[name], planned)
        for rule, kept in _rules_of_draw(drawn, planned):
            yield f"in {dimensions}D {rule}", kept


def _fired(transform: dict[str, Any], planned: Augmentation) -> Draw:
    if "bend" not in transform:
        return replace(NOTHING, **transform)
    axes = planned.moving
    sizes, steps = tuple(planned.patch_size)[axes], tuple(planned.steps)[axes]
    points = [count_points(edge, step) for edge, step in zip(sizes, steps, strict=True)]
    bend = np.random.default_rng(12).uniform(-1, 1, (len(points), *points))
    return replace(NOTHING, **(transform | {"bend": bend}))


def _rules_of_draw(drawn: Draw, planned: Augmentation) -> Iterator[tuple[str, bool]]:
    shape = planned.patch_size if drawn.affine is None else planned.loaded_shape
    generator = torch.Generator().manual_seed(10)
    image = torch.randn(CHANNELS, *shape, generator=generator)
    labels = torch.randint(1, 4, (1, *shape), generator=generator, dtype=torch.uint8)
    kept = image.clone(), labels.clone()

    def go(*images: Tensor) -> tuple[Tensor, Tensor]:
        count = len(images)
        return augment(list(images), [labels] * count, [drawn] * count, planned)

    found, moved = go(image)
    again, _ = go(image)
    wanted = (1, CHANNELS, *planned.patch_size)
    yield "it must give the shape of the patch", found.shape == wanted
    yield "it must keep the type of label maps", moved.dtype == labels.dtype
    yield "it must do the same twice", torch.equal(found, again)
    same = torch.equal(image, kept[0]) and torch.equal(labels, kept[1])
    yield "it must leave what it is given as it is", same
    yield "it must make no label up", set(moved.unique().tolist()) <= {0, 1, 2, 3}
    plain, _ = augment(
        [image[:, : planned.patch_size[0], : planned.patch_size[1], : planned.patch_size[2]]],
        [labels[:, : planned.patch_size[0], : planned.patch_size[1], : planned.patch_size[2]]],
        [NOTHING],
        planned,
    )
    yield "it must change something", not torch.equal(found, plain)
    for what, values in (("constant", torch.full_like(image, 4.0)), ("zero", image * 0)):
        yield f"it must be finite for a {what} image", bool(go(values)[0].isfinite().all())
    holed = image.clone()
    holed[:, :] = torch.nan
    both, _ = go(holed, image)
    yield "it must not make values of NaN", bool(both[0].isnan().any())
    near = torch.allclose(both[1], found[0], atol=1e-4)
    yield "NaN of a sample must stay in it", near
    smaller = image[..., :-1]
    yield "it must refuse an image of another shape", refuses(go, smaller)
