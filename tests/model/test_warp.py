"""Positions against an affine by hand; sampling against torch's grids and one-hot shares."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from torch import Tensor
from torch.nn.functional import grid_sample, one_hot

from nnseg.model import warp as module
from nnseg.model.bending import count_points
from nnseg.model.warp import Warp, sample_boxes

VOLUME = np.array([[0.9, 0.1, -0.3], [-0.2, 1.1, 0.3], [0.2, -0.4, 1.0]])
PLANE = np.array([[math.cos(0.4), -math.sin(0.4)], [math.sin(0.4), math.cos(0.4)]]) * 1.2


class Case(NamedTuple):
    """A patch, and the box that it is sampled from by an affine."""

    affine: NDArray[np.float64]
    patch: tuple[int, ...]
    loaded: tuple[int, ...]

    @property
    def affines(self) -> NDArray[np.float64]:
        """The affines of two samples."""
        return np.stack([self.affine, self.affine.T * 1.3])

    def images(self, *before: int) -> Tensor:
        return torch.randn(*before, *self.loaded, generator=torch.Generator().manual_seed(1))


CASES = pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(VOLUME, (8, 12, 10), (11, 15, 13)), id="volume"),
        pytest.param(Case(PLANE, (12, 10), (16, 14)), id="slice"),
    ],
)


@pytest.fixture(params=[50, 2**17], ids=["slabs", "at_once"])
def _block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", request.param)


def grid_of(affine: NDArray[np.float64], patch: tuple[int, ...], loaded: tuple[int, ...]) -> Tensor:
    """Give the grid of `torch.nn.functional.grid_sample` for one sample, corners unaligned."""
    axes = [torch.arange(edge, dtype=torch.float64) - (edge - 1) / 2 for edge in patch]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    source = offsets @ torch.from_numpy(affine).T
    return (source * 2 / torch.tensor(loaded)).flip(-1)[None]


def blobs(*shape: int, count: int) -> Tensor:
    """Give a label map of 0 to count - 1 in blocks of 3 voxels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(count, [-(-edge // 3) for edge in shape], generator=generator)
    for axis in range(len(shape)):
        labels = labels.repeat_interleave(3, dim=axis).narrow(axis, 0, shape[axis])
    return labels.to(torch.uint8)


def warped(affines: NDArray[np.float64], patch: tuple[int, ...], loaded: tuple[int, ...]) -> Warp:
    """Give the warp of samples whose boxes are all that was loaded."""
    centres = np.repeat((np.array([loaded]) - 1) / 2, len(affines), axis=0)
    return Warp(affines=affines, centres=centres, patch_size=patch)


def sample_maps(maps: Tensor, warp: Warp) -> Tensor:
    """Sample label maps (sample, map, *loaded) alone."""
    return sample_boxes(list(torch.zeros(len(maps), 1, *maps.shape[2:])), list(maps), warp)[1]


def test_positions_are_offsets_from_the_centre_moved_by_the_affine() -> None:
    affine = np.array([[0.0, -2.0], [3.0, 0.0]])  # y comes from -2 x, x from 3 y
    image = torch.arange(20.0).view(1, 4, 5)
    found, _ = sample_boxes([image], [image.byte()], warped(affine[None], (2, 3), (4, 5)))
    # y is at 3.5, 1.5, -0.5 for x -1, 0, 1, and x at 0.5 and 3.5 for y -0.5 and 0.5
    assert found[0, 0].tolist() == [[7.75, 8.0, 0.25], [9.25, 11.0, 1.75]]


@pytest.mark.usefixtures("_block")
@CASES
def test_images_are_sampled_as_by_a_grid_with_unaligned_corners(case: Case) -> None:
    images = case.images(2, 3)
    grids = torch.cat([grid_of(each, case.patch, case.loaded) for each in case.affines])
    wanted = grid_sample(images.double(), grids, align_corners=False)
    maps = [torch.zeros(1, *case.loaded, dtype=torch.uint8)] * 2
    found, _ = sample_boxes(list(images), maps, warped(case.affines, case.patch, case.loaded))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


@CASES
def test_a_box_that_is_cut_off_leaves_0_and_samples_may_have_other_boxes(case: Case) -> None:
    affines = np.stack([case.affine] * 2)
    image = case.images(1)
    labels = blobs(*case.loaded, count=4)[None]
    cut = tuple(slice(2, edge - 1) for edge in case.loaded)
    emptied, emptied_labels = torch.zeros_like(image), torch.zeros_like(labels)
    emptied[0][cut], emptied_labels[0][cut] = image[0][cut], labels[0][cut]
    middle = (np.array(case.loaded) - 1) / 2
    found, found_labels = sample_boxes(
        [emptied, image[0][cut][None]],
        [emptied_labels, labels[0][cut][None]],
        Warp(affines=affines, centres=np.stack([middle, middle - 2]), patch_size=case.patch),
    )
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    assert (found_labels[0] == found_labels[1]).float().mean() > 0.99


@pytest.mark.usefixtures("_block")
@CASES
def test_labels_are_those_of_the_largest_linear_share(case: Case) -> None:
    maps = torch.stack([blobs(*case.loaded, count=5), blobs(*case.loaded, count=3)])
    found = sample_maps(
        maps[None].repeat(2, 1, *[1] * len(case.loaded)),
        warped(case.affines, case.patch, case.loaded),
    )
    assert found.dtype == maps.dtype
    for i, each in enumerate(case.affines):
        grid = grid_of(each, case.patch, case.loaded)
        for labels, sampled in zip(maps, found[i], strict=True):
            whole = one_hot(labels.long()).movedim(-1, 0)[None].double()
            shares = grid_sample(whole, grid, align_corners=False)[0]
            shares[0] += 1 - shares.sum(0)  # outside counts as background
            clear = shares.topk(2, dim=0).values.diff(dim=0).abs()[0] > 1e-4
            assert clear.float().mean() > 0.9
            assert torch.equal(sampled[clear].long(), shares.argmax(0)[clear])


def test_the_lowest_label_wins_a_tie() -> None:
    rows = torch.tensor([4, 7, 1, 3], dtype=torch.int16)[:, None].expand(4, 3)
    # twice the distance in y: positions fall midway between rows 0 and 1, and between 2 and 3
    found = sample_maps(rows[None, None], warped(np.diag((2.0, 1.0))[None], (2, 3), (4, 3)))
    assert found.dtype == torch.int16
    assert found.tolist() == [[[[4, 4, 4], [1, 1, 1]]]]


def test_labels_need_no_absolute_majority() -> None:
    middle = warped(np.eye(2)[None], (1, 1), (2, 2))  # a quarter of each of 4 voxels
    quarters = torch.tensor([[[[1, 2], [3, 2]]]], dtype=torch.uint8)
    assert sample_maps(quarters, middle).item() == 2  # a half, against two quarters
    quarters[..., 0, 1] = 5
    assert sample_maps(quarters, middle).item() == 1


def test_far_outside_of_the_image_image_and_labels_are_0() -> None:
    ones = torch.ones(1, 4, 5, 6)
    for centre in (1e6, -1e6):
        far = Warp(affines=np.eye(3)[None], centres=np.full((1, 3), centre), patch_size=(2, 3, 4))
        image, labels = sample_boxes([ones], [ones.byte()], far)
        assert not image.any()
        assert not labels.any()


def shifted(warp: Warp, *voxels: float, steps: tuple[float, ...]) -> Warp:
    """Give the warp whose control points all move alike."""
    counts = [count_points(*each) for each in zip(warp.patch_size, steps, strict=True)]
    shift = np.array(voxels).reshape(1, -1, *[1] * len(counts))
    bends = np.broadcast_to(shift, (len(warp.affines), len(counts), *counts)).copy()
    return replace(warp, bends=bends, steps=steps)


def test_control_points_that_move_alike_move_every_voxel_as_far() -> None:
    image = torch.randn(2, 9, 12, 10, generator=torch.Generator().manual_seed(1))
    labels = blobs(9, 12, 10, count=5)[None]
    plain = warped(np.eye(3)[None], (5, 6, 4), (9, 12, 10))
    found, found_labels = sample_boxes(
        [image], [labels], shifted(plain, 1, -2, 3, steps=(2.0, 7.0, 3.0))
    )
    torch.testing.assert_close(found[0], image[:, 3:8, 1:7, 6:10], rtol=0, atol=1e-4)
    assert torch.equal(found_labels[0], labels[:, 3:8, 1:7, 6:10])


def test_bends_come_before_the_affine() -> None:
    image = torch.arange(20.0).view(1, 4, 5)
    plain = warped(np.array([[[0.0, -2.0], [3.0, 0.0]]]), (2, 3), (4, 5))
    bent, _ = sample_boxes([image], [image.byte()], shifted(plain, 0.5, 0.0, steps=(1.0, 1.0)))
    # half a voxel on in y is 1.5 on in x: at 2.0 and 5.0, with y at 3.5, 1.5 and -0.5
    assert bent[0, 0].tolist() == [[8.5, 9.5, 1.0], [0.0, 0.0, 0.0]]


def test_a_point_moves_by_its_weight_of_what_was_drawn() -> None:
    ramp = torch.arange(15.0).view(1, 1, 1, 15).expand(1, 11, 13, 15).contiguous()
    plain = warped(np.eye(3)[None], (5, 9, 7), (11, 13, 15))
    bends = np.zeros((1, 3, 5, 5, 5))
    bends[0, 2, 2, 2, 2] = 3.0  # the control point in the middle, along x
    found, _ = sample_boxes(
        [ramp], [ramp.byte()], replace(plain, bends=bends, steps=(2.0, 4.0, 3.0))
    )
    moved = found[0, 0] - torch.arange(4.0, 11.0)
    assert moved[2, 4, 3].item() == pytest.approx(3 * (2 / 3) ** 3, abs=1e-5)
    assert moved[4, 4, 3].item() == pytest.approx(3 * (2 / 3) ** 2 / 6, abs=1e-5)  # a step in z
    assert moved[2, 0, 6].item() == pytest.approx(3 * 2 / 3 / 6 / 6, abs=1e-5)  # in y and in x


@pytest.mark.usefixtures("_block")
@CASES
def test_bent_positions_are_those_of_a_grid_with_a_field_of_splines(case: Case) -> None:
    steps = (4.0, 3.0, 2.5)[: len(case.patch)]
    counts = [count_points(*each) for each in zip(case.patch, steps, strict=True)]
    bends = np.random.default_rng(2).uniform(-1.2, 1.2, (2, len(case.patch), *counts))
    warp = replace(warped(case.affines, case.patch, case.loaded), bends=bends, steps=steps)
    images = case.images(2, 3)
    maps = blobs(*case.loaded, count=2)[None].float()
    found, labels = sample_boxes(list(images), [maps.byte()] * 2, warp)

    spline = BSpline.basis_element([-2.0, -1.0, 0.0, 1.0, 2.0], extrapolate=False)
    for i, each in enumerate(case.affines):
        field = bends[i]
        for axis, (edge, count, step) in enumerate(zip(case.patch, counts, steps, strict=True)):
            voxels, points = (np.arange(n) - (n - 1) / 2 for n in (edge, count))
            weights = np.nan_to_num(spline(voxels[:, None] / step - points))
            field = np.moveaxis(np.tensordot(weights, field, ([1], [axis + 1])), 0, axis + 1)
        moved = torch.from_numpy(np.moveaxis(field, 0, -1) @ each.T * 2 / np.array(case.loaded))
        grid = grid_of(each, case.patch, case.loaded) + moved.flip(-1)[None]
        wanted = grid_sample(images[i : i + 1].double(), grid, align_corners=False)
        torch.testing.assert_close(found[i].double(), wanted[0], rtol=1e-4, atol=2e-4)
        share = grid_sample(maps[None].double(), grid, align_corners=False)[0]
        clear = (share - 0.5).abs() > 1e-4
        assert clear.float().mean() > 0.9
        assert torch.equal(labels[i][clear], (share > 0.5).byte()[clear])


@CASES
def test_control_points_that_stay_change_nothing(case: Case) -> None:
    plain = warped(case.affine[None], case.patch, case.loaded)
    image = case.images(1)
    labels = blobs(*case.loaded, count=4)[None]
    still = shifted(plain, *[0.0] * len(case.patch), steps=(2.0,) * len(case.patch))
    wanted, found = (sample_boxes([image], [labels], warp) for warp in (plain, still))
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
