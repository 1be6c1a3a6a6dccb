"""What moves voxels, and everything together: images, labels, masks and what lies where."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from patches import (
    BENT,
    FLAT,
    KINDS,
    PATCH,
    VOLUME,
    apply,
    bent,
    image_of,
    labels_of,
    nothing,
    turn_about_z,
)
from torch.nn.functional import grid_sample, one_hot

from nnseg.model.augment import augment, reach
from nnseg.model.bending import count_points
from nnseg.model.draws import Augmentation, Draw, draw, plan_augmentation


@pytest.mark.parametrize("augmentation", KINDS)
def test_a_draw_in_which_nothing_fired_changes_nothing(augmentation: Augmentation) -> None:
    image, labels = image_of(augmentation.patch_size, 2), labels_of(augmentation.patch_size)
    found, found_labels = apply(nothing(2), image, augmentation, labels)
    assert torch.equal(found, image)
    assert torch.equal(found_labels, labels)
    assert found_labels.dtype == labels.dtype


@pytest.mark.parametrize("augmentation", [*KINDS, *BENT])
def test_inputs_stay_as_they_were_and_equal_draws_give_equal_batches(
    augmentation: Augmentation,
) -> None:
    rng = np.random.default_rng(0)
    draws = [draw(augmentation, 2, rng) for _ in range(40)]
    images, maps = [], []
    for seed, parameters in enumerate(draws):
        shape = augmentation.patch_size if parameters.affine is None else augmentation.loaded_shape
        images.append(image_of(shape, 2, seed))
        labels = labels_of(shape, seed=seed)
        maps.append(torch.stack([labels, (labels > 0).byte()]))
    before = [[tensor.clone() for tensor in each] for each in (images, maps)]
    first = augment(images, maps, draws, augmentation, masked_channels=(1,))
    second = augment(images, maps, draws, augmentation, masked_channels=(1,))
    for kept, now in zip(before, (images, maps), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[0].shape == (40, 2, *augmentation.patch_size)
    assert first[1].shape == (40, 2, *augmentation.patch_size)
    assert first[0].dtype == torch.float32
    for i in range(40):  # what else is in the batch does not matter
        alone = augment(
            images[i : i + 1],
            maps[i : i + 1],
            draws[i : i + 1],
            augmentation,
            masked_channels=(1,),
        )
        torch.testing.assert_close(alone[0][0], first[0][i], rtol=1e-4, atol=1e-4)
        assert torch.equal(alone[1][0], first[1][i])


def test_a_sample_of_the_wrong_shape_for_its_draw_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sample 0 has shape \(8, 12, 10\)"):
        apply(replace(nothing(), affine=np.eye(3)), image_of(PATCH))
    with pytest.raises(ValueError, match="its draw needs"):
        apply(nothing(), image_of(VOLUME.loaded_shape))


@pytest.mark.parametrize("augmentation", KINDS)
def test_a_quarter_turn_about_z_equals_rot90_of_image_and_labels(
    augmentation: Augmentation,
) -> None:
    depth = augmentation.patch_size[0]
    square = replace(augmentation, patch_size=(depth, 10, 10), loaded_shape=(depth, 10, 10))
    image, labels = image_of((depth, 10, 10), 2), labels_of((depth, 10, 10))
    turned, turned_labels = apply(
        replace(nothing(2), affine=turn_about_z(math.pi / 2)), image, square, labels
    )
    wanted = np.rot90(image.numpy(), k=-1, axes=(2, 3)).copy()  # from y to x
    np.testing.assert_allclose(turned.numpy(), wanted, atol=1e-4)
    assert np.array_equal(turned_labels.numpy(), np.rot90(labels.numpy(), k=-1, axes=(1, 2)))


@pytest.mark.parametrize("augmentation", KINDS)
def test_positions_are_those_of_a_grid_with_unaligned_corners(augmentation: Augmentation) -> None:
    loaded, patch = augmentation.loaded_shape, augmentation.patch_size
    affine = turn_about_z(0.4) @ np.diag((1, 1.3, 1.3))
    if not augmentation.in_plane:
        affine = np.array([[0.9, 0.1, -0.3], [-0.2, 1.1, 0.3], [0.2, -0.4, 1.0]])
    image, labels = image_of(loaded, 2), labels_of(loaded, 5)
    found, found_labels = apply(replace(nothing(2), affine=affine), image, augmentation, labels)

    axes = [torch.arange(edge, dtype=torch.float64) - (edge - 1) / 2 for edge in patch]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    source = offsets @ torch.from_numpy(affine).T
    grid = (source * 2 / torch.tensor(loaded)).flip(-1)[None]
    wanted = grid_sample(image[None].double(), grid, align_corners=False)[0]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)

    shares = grid_sample(
        one_hot(labels.long()).movedim(-1, 0)[None].double(), grid, align_corners=False
    )[0]
    shares[0] += 1 - shares.sum(0)  # outside counts as background
    clear = shares.topk(2, dim=0).values.diff(dim=0).abs()[0] > 1e-4
    assert clear.float().mean() > 0.9
    assert torch.equal(found_labels[clear].long(), shares.argmax(0)[clear])
    assert found_labels.unique().numel() == 5


def test_a_scale_above_one_shrinks_objects_and_leaves_zeros_around() -> None:
    cube = replace(VOLUME, patch_size=(20, 18, 16), loaded_shape=(20, 18, 16))
    labels = torch.zeros(20, 18, 16, dtype=torch.uint8)
    labels[4:16, 3:15, 2:14] = 1
    image = labels[None].float() + 1
    scaled = {
        scale: apply(replace(nothing(), affine=np.eye(3) * scale), image, cube, labels)
        for scale in (0.8, 1.4)
    }
    assert scaled[0.8][1].sum() == pytest.approx(12**3 / 0.8**3, rel=0.2)  # in whole voxels
    assert scaled[1.4][1].sum() == pytest.approx(12**3 / 1.4**3, rel=0.2)  # in whole voxels
    assert scaled[1.4][0][0, 0, 0, 0] == 0
    assert scaled[0.8][0].min() > 0.99


def test_flat_patches_keep_their_slices_apart() -> None:
    image, labels = image_of(FLAT.loaded_shape), labels_of(FLAT.loaded_shape)
    parameters = replace(nothing(), affine=turn_about_z(0.7))
    found, found_labels = apply(parameters, image, FLAT, labels)
    image[:, 2], labels[2] = 0, 0
    emptied, emptied_labels = apply(parameters, image, FLAT, labels)
    assert torch.equal(emptied[:, [0, 1, 3]], found[:, [0, 1, 3]])
    assert torch.equal(emptied_labels[[0, 1, 3]], found_labels[[0, 1, 3]])
    assert not emptied[:, 2].any()
    assert not emptied_labels[2].any()


def test_transforms_run_in_the_order_of_the_method() -> None:
    image = image_of(PATCH)
    steps = [
        {"noise_std": 0.1},
        {"blur": ((0.9, 0.7, 0.8),)},
        {"brightness": (1.2,)},
        {"contrast": (1.2,)},
        {"zoom": (0.6,)},
        {"gamma_inverted": (1.4,)},
        {"gamma": (0.8,)},
        {"mirror": (0, 2)},
    ]
    wanted = image
    for step in steps:
        wanted, _ = apply(replace(nothing(), **step), wanted)
    together = replace(nothing(), **{name: value for step in steps for name, value in step.items()})
    torch.testing.assert_close(apply(together, image)[0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_mirroring_flips_image_labels_and_mask_together(axes: tuple[int, ...]) -> None:
    image, labels = image_of(PATCH, 2), labels_of(PATCH)
    parameters = [nothing(2), replace(nothing(2), mirror=axes)]
    maps = torch.stack([labels, (labels > 1).byte()])
    images, found = augment([image] * 2, [maps] * 2, parameters, VOLUME, masked_channels=(1,))
    plain = image.clone()
    plain[1][labels <= 1] = 0
    assert torch.equal(images[0], plain)
    assert torch.equal(images[1], plain.flip([axis + 1 for axis in axes]))
    assert torch.equal(found[1, 0], labels.flip(axes))


def test_masked_channels_are_zero_outside_of_the_moved_mask_only() -> None:
    image = image_of(VOLUME.loaded_shape, 3).abs() + 1
    labels, mask = (labels_of(VOLUME.loaded_shape, seed=seed) for seed in (1, 2))
    parameters = replace(
        nothing(3), affine=turn_about_z(0.5) * 0.8, noise_std=0.05, gamma=(1.2,) * 3
    )
    maps = torch.stack([labels, (mask > 1).byte()])
    images, found = augment([image], [maps], [parameters], VOLUME, masked_channels=(0, 2))
    _, inside = apply(parameters, image, VOLUME, (mask > 1).to(torch.uint8))
    unmasked, unmasked_labels = apply(parameters, image, VOLUME, labels)
    assert 0 < inside.sum() < inside.numel()
    for channel in (0, 2):
        assert not images[0, channel][inside == 0].any()
        assert torch.equal(images[0, channel][inside == 1], unmasked[channel][inside == 1])
    assert torch.equal(images[0, 1], unmasked[1])
    assert torch.equal(found[0, 0], unmasked_labels)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int64, torch.uint16])
def test_every_integer_type_of_label_map_is_kept(kind: torch.dtype) -> None:
    labels = labels_of(VOLUME.loaded_shape)
    parameters = replace(nothing(), affine=turn_about_z(0.4), mirror=(1,))
    image = image_of(VOLUME.loaded_shape)
    _, wanted = apply(parameters, image, VOLUME, labels)
    _, found = apply(parameters, image, VOLUME, labels.to(kind))
    assert found.dtype == kind
    assert torch.equal(found.long(), wanted.long())


@pytest.mark.parametrize(("mirror", "trade"), [((2,), True), ((0, 2), True), ((0, 1), False)])
def test_left_and_right_trade_places_where_their_axis_is_mirrored(
    mirror: tuple[int, ...], trade: bool
) -> None:
    rules = plan_augmentation(PATCH, 3, swaps=[(1, 2), (4, 3)], swap_axis=2)
    labels, mask, previous = labels_of(PATCH, 5), labels_of(PATCH) > 1, labels_of(PATCH, 5, seed=2)
    maps = torch.stack([labels, mask.byte(), previous])
    drawn = [nothing(), replace(nothing(), mirror=mirror)]
    image = image_of(PATCH)
    _, found = augment([image] * 2, [maps] * 2, drawn, rules, masked_channels=(0,))
    assert torch.equal(found[0], maps)
    flipped = maps.flip([axis + 1 for axis in mirror])
    table = torch.tensor([0, 2, 1, 4, 3] if trade else [0, 1, 2, 3, 4], dtype=torch.uint8)
    assert torch.equal(found[1, 0], table[flipped[0].long()])
    assert torch.equal(found[1, 1], flipped[1])  # the mask has no sides
    assert torch.equal(found[1, 2], table[flipped[2].long()])


@pytest.mark.parametrize("augmentation", [*KINDS, *BENT])
def test_what_a_sample_looks_at_is_all_that_has_to_be_read(augmentation: Augmentation) -> None:
    rng = np.random.default_rng(2)
    shares = []
    for seed, parameters in enumerate(draw(augmentation, 1, rng) for _ in range(60)):
        moved = parameters.affine is not None
        whole = augmentation.loaded_shape if moved else augmentation.patch_size
        box = reach(parameters, augmentation)
        z, y, x = (slice(*ends) for ends in box)
        image, labels = image_of(whole, 1, seed), labels_of(whole, seed=seed)[None]
        wanted, wanted_labels = augment([image], [labels], [parameters], augmentation)
        found, found_labels = augment(
            [image[:, z, y, x]],
            [labels[:, z, y, x]],
            [parameters],
            augmentation,
            offsets=[(z.start, y.start, x.start)],
        )
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
        assert (found_labels != wanted_labels).sum() <= 2  # ties that rounding decides
        if moved:
            shares.append(image[:, z, y, x].numel() / image.numel())
    assert np.mean(shares) < 0.9


def test_a_part_that_reaches_out_of_the_patch_is_refused() -> None:
    maps = torch.zeros((1, *PATCH), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"sample 0 has shape .* at \(0, 1, 0\); its draw needs"):
        augment([image_of(PATCH)], [maps], [nothing()], VOLUME, offsets=[(0, 1, 0)])


def test_a_flat_part_of_few_slices_keeps_its_place_when_it_is_mirrored() -> None:
    image, labels = image_of(FLAT.loaded_shape), labels_of(FLAT.loaded_shape)[None]
    image[:, 3:], labels[:, 3:] = 0, 0
    parameters = replace(nothing(), affine=turn_about_z(0.7), mirror=(0, 2))
    wanted, wanted_labels = augment([image], [labels], [parameters], FLAT)
    found, found_labels = augment(
        [image[:, 1:3]], [labels[:, 1:3]], [parameters], FLAT, offsets=[(1, 0, 0)]
    )
    assert not torch.equal(found, wanted)  # slice 0 was left out
    torch.testing.assert_close(found[:, :, :3], wanted[:, :, :3])
    assert torch.equal(found_labels[:, :, 1:3], wanted_labels[:, :, 1:3])
    assert not found[:, :, 3].any()


def bend_of(augmentation: Augmentation, channels: int = 1) -> Draw:
    """Give a draw in which nothing but bending has fired, by all that it may."""
    axes = augmentation.moving
    rules = augmentation.patch_size[axes], augmentation.steps[axes]
    counts = [count_points(*each) for each in zip(*rules, strict=True)]
    limits = np.array(augmentation.farthest[axes]).reshape(-1, *[1] * len(counts))
    points = np.random.default_rng(0).uniform(-1, 1, (len(counts), *counts)) * limits
    return replace(nothing(channels), affine=np.eye(3), bend=points)


@pytest.mark.parametrize("augmentation", BENT)
def test_every_label_map_bends_with_the_image(augmentation: Augmentation) -> None:
    loaded = augmentation.loaded_shape
    maps = torch.stack([labels_of(loaded, 2, seed) * label for seed, label in ((0, 3), (1, 1))])
    image = (maps > 0).float()  # a channel for the target, one for the stage before
    images, found = augment([image], [maps], [bend_of(augmentation, 2)], augmentation)
    clear = (images[0] - 0.5).abs() > 1e-3
    assert clear.float().mean() > 0.9
    assert torch.equal((found[0] > 0)[clear], (images[0] > 0.5)[clear])
    assert found[0, 0].unique().tolist() == [0, 3]  # such as a label to ignore
    assert found[0, 1].unique().tolist() == [0, 1]
    still = replace(nothing(2), affine=np.eye(3))
    stayed, _ = augment([image], [maps], [still], augmentation)
    assert (images - stayed).abs().mean() > 0.02


@pytest.mark.parametrize("augmentation", BENT)
def test_a_bend_moves_a_line_by_the_voxels_that_were_drawn(augmentation: Augmentation) -> None:
    z, y, x = augmentation.loaded_shape
    ramps = torch.stack(torch.meshgrid(*map(torch.arange, (z, y, x)), indexing="ij")).float()
    parameters = bend_of(augmentation, 3)
    assert parameters.bend is not None
    parameters.bend[:] = np.array([1.1, -1.5, 0.25])[augmentation.moving].reshape(
        -1, *[1] * (parameters.bend.ndim - 1)
    )
    labels = torch.zeros((z, y, x), dtype=torch.uint8)
    bent_ramps, _ = augment([ramps], [labels[None]], [parameters], augmentation)
    still = replace(parameters, bend=np.zeros_like(parameters.bend))
    ramps, _ = augment([ramps], [labels[None]], [still], augmentation)
    inner = (bent_ramps - ramps)[0, :, :, 2:-2, 2:-2].flatten(1)
    wanted = torch.tensor([0.0 if augmentation.in_plane else 1.1, -1.5, 0.25])
    torch.testing.assert_close(inner, wanted[:, None].expand_as(inner), rtol=0, atol=1e-4)


@pytest.mark.parametrize("augmentation", BENT)
def test_points_that_do_not_move_leave_the_middle_of_what_was_loaded(
    augmentation: Augmentation,
) -> None:
    z, y, x = augmentation.patch_size
    loaded = (z if augmentation.in_plane else z + 4, y + 4, x + 4)
    rules = replace(augmentation, loaded_shape=loaded)
    image, labels = image_of(loaded), labels_of(loaded)
    parameters = bend_of(rules)
    assert parameters.bend is not None
    found, found_labels = apply(
        replace(parameters, bend=np.zeros_like(parameters.bend)), image, rules, labels
    )
    middle = (slice(None) if augmentation.in_plane else slice(2, 2 + z), slice(2, -2), slice(2, -2))
    assert torch.equal(found[0], image[0][middle])
    assert torch.equal(found_labels, labels[middle])


@pytest.mark.parametrize("augmentation", BENT)
def test_a_bent_patch_is_mirrored_last(augmentation: Augmentation) -> None:
    image, labels = image_of(augmentation.loaded_shape, 2), labels_of(augmentation.loaded_shape)
    turned = replace(bend_of(augmentation, 2), affine=turn_about_z(0.4))
    plain, plain_labels = apply(turned, image, augmentation, labels)
    for axes in ((1,), (2,), (1, 2), (0, 2)):
        if not set(axes) <= set(augmentation.mirror_axes):
            continue
        found, found_labels = apply(replace(turned, mirror=axes), image, augmentation, labels)
        wanted = plain.flip([axis + 1 for axis in axes])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
        assert (found_labels != plain_labels.flip(axes)).sum() <= 2  # ties that rounding decides


def test_bent_flat_patches_keep_their_slices_apart() -> None:
    rules = bent(FLAT)
    image, labels = image_of(rules.loaded_shape), labels_of(rules.loaded_shape)
    found, found_labels = apply(bend_of(rules), image, rules, labels)
    image[:, 2], labels[2] = 0, 0
    emptied, emptied_labels = apply(bend_of(rules), image, rules, labels)
    assert torch.equal(emptied[:, [0, 1, 3]], found[:, [0, 1, 3]])
    assert torch.equal(emptied_labels[[0, 1, 3]], found_labels[[0, 1, 3]])
    assert not emptied[:, 2].any()
