"""Training augmentation: what a network sees of a sample, by what was drawn for it.

`augment` applies the draws of `nnseg.model.draws` to a batch: first what moves voxels, then what
changes intensities.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnseg.axes import Box, Shape
from nnseg.model.bending import mirror_points
from nnseg.model.draws import Augmentation, Draw
from nnseg.model.intensities import change_intensities
from nnseg.model.warp import Warp, sample_boxes

ROUNDING = 1e-3  # voxels, at least, that positions may lie beside where they are expected


def reach(drawn: Draw, augmentation: Augmentation) -> Box:
    """Give the box of the loaded shape (of the patch, if it stays) that a sample really looks at.

    Args:
        drawn: Its parameters.
        augmentation: The rules by which they were drawn.

    Returns:
        First voxel and end of each axis. It may be empty.
    """
    if drawn.affine is None:
        z, y, x = ((0, edge) for edge in augmentation.patch_size)
        return z, y, x
    patch, loaded = np.array(augmentation.patch_size), np.array(augmentation.loaded_shape)
    farthest = np.zeros(3)
    if drawn.bend is not None:  # nothing moves farther than the control points
        farthest[augmentation.moving] = np.abs(drawn.bend).reshape(len(drawn.bend), -1).max(axis=1)
    span = np.abs(drawn.affine) @ ((patch - 1) / 2 + farthest)
    low = np.floor((loaded - 1) / 2 - span - ROUNDING).clip(0).astype(int).tolist()
    high = np.ceil((loaded - 1) / 2 + span + ROUNDING).astype(int).tolist()
    z, y, x = (
        (first, min(last + 1, int(edge)))
        for first, last, edge in zip(low, high, loaded, strict=True)
    )
    return z, y, x


def augment(
    images: Sequence[Tensor],
    maps: Sequence[Tensor],
    draws: Sequence[Draw],
    augmentation: Augmentation,
    *,
    masked_channels: Sequence[int] = (),
    offsets: Sequence[Shape] | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply `draws` to a batch of samples and stack them; the inputs are left as they are.

    Order: rotation, scaling and bending at once, noise, blur, brightness, contrast, low resolution,
    gamma of the inverted image, gamma, mirroring, zeros outside the mask. (Voxels are put at their
    mirrored places at once, and what is not symmetric is mirrored with them.)

    Args:
        images: For each sample (channel, z, y, x) float32, of the loaded shape where its draw has
            an affine and of the patch size elsewhere, or with `offsets` any part of these; the
            rest is 0. All tensors are on one device.
        maps: For each sample label maps (map, z, y, x) of one integer type, of the same parts.
            The first is the target. With `masked_channels` the second is the body mask.
        draws: The parameters of each sample.
        augmentation: The rules by which they were drawn.
        masked_channels: Channels that are 0 outside the mask, before and so also afterwards.
        offsets: For each sample where its first voxel lies in the whole.

    Returns:
        Images (batch, channel, z, y, x) float32 and label maps (batch, map, z, y, x) of their own
        type, both of the patch size. What lies outside the loaded image is 0 in both.
    """
    kind = maps[0].dtype
    if kind == torch.uint16:  # torch stores it, but compares and gathers it nowhere
        maps = [each.int() for each in maps]
    batch, found = _place(images, maps, draws, augmentation, offsets)
    change_intensities(batch, draws, augmentation)
    if masked_channels:
        outside = found[:, 1] == 0
        for channel in masked_channels:
            batch[:, channel].masked_fill_(outside, 0)
    if augmentation.swaps:
        mirrored = [i for i, each in enumerate(draws) if augmentation.swap_axis in each.mirror]
        for i in mirrored:
            for label_map in (n for n in range(found.shape[1]) if not (masked_channels and n == 1)):
                _swap(found[i, label_map], augmentation.swaps)
    return batch, found.to(kind)


def _swap(labels: Tensor, swaps: Sequence[tuple[int, int]]) -> None:
    """Let the labels of each pair trade places, in place."""
    for first, second in swaps:
        was_first, was_second = labels == first, labels == second
        labels.masked_fill_(was_first, second).masked_fill_(was_second, first)


def _place(
    images: Sequence[Tensor],
    maps: Sequence[Tensor],
    draws: Sequence[Draw],
    augmentation: Augmentation,
    offsets: Sequence[Shape] | None,
) -> tuple[Tensor, Tensor]:
    """Bring every sample to the patch size, turned, scaled, bent and mirrored: images, maps."""
    patch, device = augmentation.patch_size, images[0].device
    batch = torch.zeros((len(images), len(images[0]), *patch), device=device)
    found = torch.zeros((len(maps), len(maps[0]), *patch), dtype=maps[0].dtype, device=device)
    starts = [(0, 0, 0)] * len(images) if offsets is None else offsets
    moved: list[int] = []
    bent: list[int] = []
    for i, (image, parameters) in enumerate(zip(images, draws, strict=True)):
        shape = tuple(image.shape[1:])
        whole = patch if parameters.affine is None else augmentation.loaded_shape
        ends = [first + edge for first, edge in zip(starts[i], shape, strict=True)]
        if min(starts[i]) < 0 or any(end > edge for end, edge in zip(ends, whole, strict=True)):
            raise ValueError(f"sample {i} has shape {shape} at {starts[i]}; its draw needs {whole}")
        if offsets is None and shape != whole:
            raise ValueError(f"sample {i} has shape {shape}; its draw needs {whole}")
        if 0 in shape:
            continue
        if parameters.affine is not None:
            (moved if parameters.bend is None else bent).append(i)
            continue
        for target, source in ((batch, image), (found, maps[i])):
            _lay_down(target[i], source, starts[i], parameters.mirror)
    # slices are small, and many are quickest together
    groups = [moved, bent] if patch[0] == 1 else [[i] for i in moved + bent]
    for group in filter(None, groups):
        parts = [[values[i] for i in group] for values in (images, maps)]
        drawn, places = [draws[i] for i in group], [starts[i] for i in group]
        *results, first = _move(parts[0], parts[1], drawn, places, augmentation)
        index = torch.tensor(group, device=device)
        for target, result in zip((batch, found), results, strict=True):
            target[index, :, first : first + result.shape[2]] = result
    return batch, found


def _lay_down(target: Tensor, source: Tensor, start: Shape, mirror: Sequence[int]) -> None:
    """Copy a part (channel, z, y, x) to its place in a patch, mirrored with it along some axes."""
    place = [
        slice(edge - first - length, edge - first)
        if axis in mirror
        else slice(first, first + length)
        for axis, (first, length, edge) in enumerate(
            zip(start, source.shape[1:], target.shape[1:], strict=True)
        )
    ]
    flips = [axis + 1 for axis in mirror]
    target[:, place[0], place[1], place[2]] = source.flip(flips) if flips else source


def _move(
    images: Sequence[Tensor],
    maps: Sequence[Tensor],
    draws: Sequence[Draw],
    starts: Sequence[Shape],
    augmentation: Augmentation,
) -> tuple[Tensor, Tensor, int]:
    """Turn, scale, bend and mirror samples of which all are bent or none; volumes, one at a time.

    Returns:
        Images (sample, channel, z, y, x) and label maps (sample, map, z, y, x), of the slices that
        the samples have, and the place of the first in the patch.
    """
    patch, axes = augmentation.patch_size, augmentation.moving
    middle = (np.array(augmentation.loaded_shape) - 1) / 2
    bends = [_mirrored_bend(each, augmentation) for each in draws if each.bend is not None]
    warp = Warp(
        affines=np.stack([_mirrored(each)[axes, axes] for each in draws]),
        centres=(middle - np.array(starts))[:, axes],
        patch_size=tuple(patch)[axes],
        bends=np.stack(bends) if bends else None,
        steps=tuple(augmentation.steps)[axes],
    )
    if not augmentation.in_plane:
        return *sample_boxes(images, maps, warp), 0
    # slices share positions as channels do
    flat = [[each.flatten(0, 1) for each in values] for values in (images, maps)]
    depth, first = images[0].shape[1], starts[0][0]
    results = [
        moved.reshape(len(draws), -1, depth, *patch[1:])
        for moved in sample_boxes(flat[0], flat[1], warp)
    ]
    if 0 in draws[0].mirror:
        first, results = patch[0] - first - depth, [moved.flip([2]) for moved in results]
    return results[0], results[1], first


def _mirrored(drawn: Draw) -> NDArray[np.float64]:
    """Give the affine of a draw behind its mirrors."""
    assert drawn.affine is not None, "only samples that are moved come here"
    signs = np.ones(3)
    signs[list(drawn.mirror)] = -1
    return drawn.affine * signs


def _mirrored_bend(drawn: Draw, augmentation: Augmentation) -> NDArray[np.float64]:
    """Give the control points of a draw behind its mirrors."""
    assert drawn.bend is not None, "only samples that are bent come here"
    first = augmentation.moving.start
    return mirror_points(drawn.bend, [axis - first for axis in drawn.mirror if axis >= first])
