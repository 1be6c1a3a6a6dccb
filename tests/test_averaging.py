"""What models left on the disk, averaged: the labels that float32 probabilities give."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boxed import GEOMETRY, LABELS, ORDERS, REGIONS, in_image, placed
from scipy.ndimage import gaussian_filter

from nnseg import averaging
from nnseg.averaging import Opened, label_map, shares_of, weighted_mean
from nnseg.axes import Order, Planes, Shape
from nnseg.errors import DataError
from nnseg.image.decide import interpolate
from nnseg.labels import Labels
from nnseg.plan import Resampling
from nnseg.preprocess import Placement
from nnseg.probabilities import (
    open_compact,
    open_npz,
    open_probabilities,
    writing,
    writing_compact,
)
from nnseg.restore import body_of, change_logits
from nnseg.volume import simple_geometry

BOTH = pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
LINEAR = Resampling(order=1, order_along=0)
CUBIC = Resampling(order=3, order_along=0)


def logits_of(seed: int, shape: Shape, labels: Labels) -> Planes:
    """Logits that change slowly, as a network's do."""
    rng = np.random.default_rng(seed)
    found = gaussian_filter(rng.normal(size=(*shape, labels.heads)), (1, 1, 1, 0))
    return (5 * found / found.std()).astype(np.float32)


def compact(
    path: Path,
    logits: Planes,
    labels: Labels = LABELS,
    placement: Placement | None = None,
    rule: Resampling = LINEAR,
) -> Opened:
    placement = replace(placement or placed(), shape_resampled=logits.shape[:3])
    with writing_compact(path, labels, GEOMETRY, placement, resampling=rule) as take:
        take(logits)
    return open_compact(path)


def on_file(
    logits: Planes, labels: Labels, placement: Placement | None = None, rule: Resampling = LINEAR
) -> Planes:
    """Float32 logits of the body's box on the grid of the file, as a prediction has them."""
    shape = (placement or placed()).shape_cropped
    runs, change = change_logits([logits], logits.shape[:3], shape, None, rule)
    return np.concatenate(list(interpolate(runs, change, 3)))


def written(path: Path, kind: str, likely: Planes, labels: Labels, placement: Placement) -> Opened:
    """Probabilities of the body's box, by way of a file of a kind."""
    with writing(path, kind, labels, GEOMETRY) as writer:
        writer.begin(placement)(likely)
    if kind == "npz":
        return open_npz(writer.files[0], labels, GEOMETRY)
    return open_probabilities(writer.files[0]) if kind == "chunks" else open_compact(path)


def decide(mean: Planes, labels: Labels, placement: Placement | None = None) -> np.ndarray:
    whole = np.zeros(GEOMETRY.shape, np.uint8)
    centred = mean - np.float32(0.5) if labels.has_regions else mean
    body_of(whole, placement or placed())[...] = labels.segment(centred)
    return whole


@BOTH
@pytest.mark.parametrize("rule", [LINEAR, CUBIC], ids=["linear", "cubic"])
def test_members_on_different_grids_are_averaged_on_the_files(
    tmp_path: Path, labels: Labels, rule: Resampling
) -> None:
    coarse, fine = logits_of(1, (3, 7, 5), labels), logits_of(2, (6, 8, 11), labels)
    members = [
        (compact(tmp_path / f"{number}.nii.gz", logits, labels, rule=rule), weight)
        for number, (logits, weight) in enumerate([(coarse, 1.0), (fine, 3.0)])
    ]
    mean = 0.25 * labels.probabilities(on_file(coarse, labels, rule=rule))
    mean += 0.75 * labels.probabilities(on_file(fine, labels, rule=rule))
    wanted = decide(mean, labels)
    found = label_map(members)
    assert len(np.unique(wanted)) == 3
    assert (found != wanted).mean() < 0.01  # a voxel or two of 288, that nearly tie
    assert found.dtype == np.uint8


@BOTH
def test_one_member_gives_its_own_label_map_whatever_its_weight(
    tmp_path: Path, labels: Labels
) -> None:
    logits = logits_of(3, placed().shape_cropped, labels)
    logits[0] = 0  # ties
    wanted = np.zeros(GEOMETRY.shape, np.uint8)
    body_of(wanted, placed())[...] = labels.segment(logits)
    member = compact(tmp_path / "case.nii.gz", logits, labels)
    for members in ([(member, 1.0)], [(member, 7.0)], [(member, 0.3)] * 3):
        np.testing.assert_array_equal(label_map(members), wanted)


@BOTH
@pytest.mark.parametrize("kinds", [("chunks", "chunks"), ("compact", "chunks")])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)])
def test_probabilities_of_the_files_grid_are_averaged_with_any_others(
    tmp_path: Path, labels: Labels, kinds: tuple[str, str], order: Order
) -> None:
    placement = placed(order)
    likely = [
        labels.probabilities(logits_of(seed, placement.shape_cropped, labels)) for seed in (4, 5)
    ]
    members = [
        (written(tmp_path / f"{number}.nii.gz", kind, found, labels, placement), 1.0)
        for number, (kind, found) in enumerate(zip(kinds, likely, strict=True))
    ]
    wanted = decide((likely[0] + likely[1]) / 2, labels, placement)
    assert (label_map(members) != wanted).mean() < 0.003


@BOTH
@pytest.mark.parametrize("order", ORDERS)
def test_members_that_lie_otherwise_in_the_file_are_averaged_at_once(
    tmp_path: Path, labels: Labels, order: Order
) -> None:
    here, there = placed(), placed(order, ((1, 6), (0, 9), (2, 12)))
    first = labels.probabilities(logits_of(6, here.shape_cropped, labels))
    second = labels.probabilities(logits_of(7, there.shape_cropped, labels))
    members = [
        (written(tmp_path / "a.nii.gz", "npz", first, labels, here), 2.0),
        (written(tmp_path / "b.nii.gz", "compact", second, labels, there), 1.0),
    ]
    mean = 2 / 3 * in_image(first, here, labels) + 1 / 3 * in_image(second, there, labels)
    mean = np.moveaxis(mean, 0, -1).astype(np.float32)
    wanted = labels.segment(mean - np.float32(0.5) if labels.has_regions else mean)
    found, taken = label_map(members), []

    def begin(placement: Placement) -> Callable[[Planes], None]:
        assert placement.shape_cropped == GEOMETRY.shape
        return lambda planes: taken.append(planes.copy())

    assert (found != wanted).mean() < 0.003
    np.testing.assert_array_equal(label_map(members, probabilities=begin), found)
    np.testing.assert_allclose(np.concatenate(taken), mean, atol=1e-3)


def test_npz_alone_are_averaged_exactly(tmp_path: Path) -> None:
    likely = [LABELS.probabilities(logits_of(s, placed().shape_cropped, LABELS)) for s in (8, 9)]
    members = [
        (written(tmp_path / f"{number}.nii.gz", "npz", found, LABELS, placed()), 1.0)
        for number, found in enumerate(likely)
    ]
    wanted = decide((likely[0] + likely[1]) / 2, LABELS)
    np.testing.assert_array_equal(label_map(members), wanted)


@BOTH
def test_the_mean_is_handed_on_and_decides(
    tmp_path: Path, labels: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(averaging, "SLAB_BYTES", 2000)
    found = [logits_of(seed, (3, 7, 5), labels) for seed in (10, 11)]
    members = [(compact(tmp_path / f"{n}.nii.gz", one, labels), 1.0) for n, one in enumerate(found)]
    taken: list[Planes] = []

    def begin(placement: Placement) -> Callable[[Planes], None]:
        assert placement.shape_cropped == placed().shape_cropped
        return lambda planes: taken.append(planes.copy())

    result = label_map(members, probabilities=begin)
    mean = sum(labels.probabilities(on_file(one, labels)) for one in found) / 2
    assert len(taken) > 1
    np.testing.assert_allclose(np.concatenate(taken), mean, atol=4e-3)
    np.testing.assert_array_equal(result, decide(np.concatenate(taken), labels))
    np.testing.assert_array_equal(result, label_map(members))


def test_members_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    member = compact(tmp_path / "a.nii.gz", logits_of(1, (3, 7, 5), LABELS))
    other = compact(tmp_path / "b.nii.gz", logits_of(1, (3, 7, 5), REGIONS), REGIONS)
    with pytest.raises(DataError, match="the labels of member 2 are"):
        label_map([(member, 1.0), (other, 1.0)])
    moved = simple_geometry((7, 11, 13), (3.0, 0.8, 0.9))
    with writing_compact(
        tmp_path / "c.nii.gz", LABELS, moved, replace(placed(), shape_resampled=(3, 7, 5))
    ) as take:
        take(logits_of(1, (3, 7, 5), LABELS))
    with pytest.raises(DataError, match="member 2 lies on another grid"):
        label_map([(member, 1.0), (open_compact(tmp_path / "c.nii.gz"), 1.0)])
    with pytest.raises(DataError, match="weight of a model is 0; it must be over 0"):
        label_map([(member, 0.0)])


@pytest.mark.parametrize("weights", [[0.0, 1.0], [-1.0], [float("inf")], [float("nan")]])
def test_weights_that_cannot_be_meant_are_refused(weights: list[float]) -> None:
    with pytest.raises(DataError, match="must be over 0"):
        shares_of(weights)


def test_a_weighted_mean_takes_each_with_its_share() -> None:
    parts: list[Any] = [np.full((2, 3), value, np.float32) for value in (1, 2, 4)]
    np.testing.assert_allclose(weighted_mean(parts, shares_of([1, 1, 2])), 2.75)


def test_who_asks_can_end_it(tmp_path: Path) -> None:
    member = compact(tmp_path / "a.nii.gz", logits_of(1, (3, 7, 5), LABELS))

    def ask() -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        label_map([(member, 1.0)], ask=ask)
