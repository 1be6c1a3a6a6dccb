import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nnseg.axes import Planes, Shape
from nnseg.image import decide as module
from nnseg.image.decide import change_grid, decide, decide_together, interpolate, slab_depth
from nnseg.image.resample import resample_image
from nnseg.labels import Labels

GAPS = Labels(labels={"background": 0, "liver": 7, "kidney": 2})
REGIONS = Labels(
    labels={"background": 0, "whole": (1, 2, 3), "core": (2, 3), "centre": 3},
    regions_class_order=(1, 2, 3),
)


def blobs(shape: Shape, heads: int, seed: int = 0) -> Planes:
    """Logits (z, y, x, head) with both large even parts and places where labels meet."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(heads, *(max(1, n // 3) for n in shape))).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(resample_image(4 * coarse, shape, None, 1), 0, -1))


def runs_of(logits: Planes, *ends: int) -> Iterator[Planes]:
    """The planes in runs that end where told."""
    start = 0
    for end in (*ends, len(logits)):
        if end > start:
            yield logits[start:end].copy()
            start = end


def everywhere(logits: Planes, shape: Shape, axis: int | None, along: int) -> Planes:
    """All logits on the other grid, by the general way."""
    return np.moveaxis(resample_image(np.moveaxis(logits, -1, 0), shape, axis, 1, along), 0, -1)


@pytest.mark.parametrize("labels", [GAPS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("along", [0, 1])
@pytest.mark.parametrize("shape", [(11, 17, 15), (5, 20, 6), (9, 7, 12), (1, 17, 15)])
def test_labels_are_those_of_all_logits_interpolated(
    monkeypatch: pytest.MonkeyPatch, labels: Labels, axis: int | None, along: int, shape: Shape
) -> None:
    monkeypatch.setattr(module, "_SLAB_VOXELS", 400)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 300)
    logits = blobs((6, 9, 7), 3)
    change = change_grid((6, 9, 7), shape, axis, 1, along)
    found = np.concatenate(list(decide(runs_of(logits, 1, 4), change, labels.segment)))
    assert change.shape == found.shape == shape
    wanted = labels.segment(everywhere(logits, shape, axis, along))
    assert len(np.unique(wanted)) > 2
    np.testing.assert_array_equal(found, wanted)


@given(
    size=st.tuples(*[st.integers(1, 7)] * 3),
    new=st.tuples(*[st.integers(1, 15)] * 3),
    ends=st.lists(st.integers(0, 7)),
    heads=st.integers(2, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_however_the_planes_come_the_labels_are_the_same(
    size: Shape, new: Shape, ends: list[int], heads: int, seed: int
) -> None:
    labels = Labels(labels={"background": 0} | {f"label {n}": n for n in range(1, heads)})
    logits = np.random.default_rng(seed).normal(size=(*size, heads)).astype(np.float32)
    change = change_grid(size, new, None)
    runs = runs_of(logits, *sorted({min(end, size[0]) for end in ends}))
    found = np.concatenate(list(decide(runs, change, labels.segment)))
    np.testing.assert_array_equal(found, labels.segment(everywhere(logits, new, None, 0)))


@pytest.mark.parametrize("axis", [None, 0, 2])
@pytest.mark.parametrize("depth", [1, 4, 30])
def test_interpolated_logits_are_those_of_the_general_way(axis: int | None, depth: int) -> None:
    logits = blobs((6, 9, 7), 4)
    change = change_grid((6, 9, 7), (13, 5, 16), axis)
    found = list(interpolate(runs_of(logits, 2, 3), change, depth))
    assert [len(planes) for planes in found[:-1]] == [depth] * (len(found) - 1)
    wanted = everywhere(logits, (13, 5, 16), axis, 0)
    np.testing.assert_allclose(np.concatenate(found), wanted, atol=1e-5)
    assert found[0].dtype == np.float32


def test_nothing_is_interpolated_where_all_voxels_around_agree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = np.zeros((6, 8, 10, 2), np.float32)
    logits[..., 0] = np.arange(1, 481).reshape(6, 8, 10)
    logits[3, 4, 5, 1] = 1000
    asked = []

    def watched(rows: NDArray[Any], *others: Any) -> NDArray[np.float32]:
        places = others[-1]
        asked.append(np.stack(places))
        return mixtures(rows, *others)

    mixtures = module._mixtures
    monkeypatch.setattr(module, "_mixtures", watched)
    labels = Labels(labels={"background": 0, "dot": 1})
    change = change_grid((6, 8, 10), (12, 16, 20), None)
    found = np.concatenate(list(decide([logits], change, labels.segment)))
    assert found.sum() > 0
    places = np.concatenate(asked, axis=1)
    assert places.shape[1] == 4**3  # the new voxels between the dot and its neighbours
    assert places.min(axis=1).tolist() == [5, 7, 9]
    assert places.max(axis=1).tolist() == [8, 10, 12]


def test_of_planes_that_came_only_those_that_may_be_needed_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = blobs((40, 9, 7), 3)
    alive: list[Any] = []

    def runs() -> Iterator[Planes]:
        for start in range(0, 40, 2):
            planes = logits[start : start + 2].copy()
            alive.append(weakref.ref(planes))
            yield planes

    monkeypatch.setattr(module, "_SLAB_VOXELS", 1000)
    most = 0
    for _ in decide(runs(), change_grid((40, 9, 7), (80, 18, 14), None), GAPS.segment):
        most = max(most, sum(each() is not None for each in alive))
    assert len(alive) == 20
    assert most <= 3


def test_on_the_same_grid_planes_are_decided_as_they_are() -> None:
    logits = blobs((6, 9, 7), 3)
    found = decide(runs_of(logits, 2), change_grid((6, 9, 7), (6, 9, 7), None), GAPS.segment)
    np.testing.assert_array_equal(np.concatenate(list(found)), GAPS.segment(logits))


def test_regions_that_are_painted_alike_are_decided_as_their_logits_are() -> None:
    labels = Labels(
        labels={"background": 0, "a": (1, 2), "b": 2, "c": 3}, regions_class_order=(1, 1, 3)
    )
    logits = np.full((1, 1, 2, 3), -9, np.float32)
    logits[0, 0, :, :2] = (5, -10), (-10, 5)  # halfway neither is over 0, though both say 1
    change = change_grid((1, 1, 2), (1, 1, 3), None)
    found = [labels.painted(planes) for planes in decide([logits], change, labels.decide)]
    assert np.concatenate(found).ravel().tolist() == [1, 0, 1]


@pytest.mark.parametrize("old", [(60, 9, 7), (6, 90, 7)])
def test_where_the_new_grid_is_coarser_no_more_of_the_old_one_is_joined(
    monkeypatch: pytest.MonkeyPatch, old: Shape
) -> None:
    most = []
    around = module._Window.around

    def watched(self: Any, *args: Any) -> Any:
        found = around(self, *args)
        most.append(found[1].nbytes)
        return found

    monkeypatch.setattr(module._Window, "around", watched)
    logits, change = blobs(old, 3), change_grid(old, (6, 8, 5), None)
    plane = logits[0].nbytes
    monkeypatch.setattr(module, "_SLAB_BYTES", 10 * plane)
    for _ in decide([logits], change, GAPS.segment):
        pass
    assert most
    assert max(most) <= 11 * plane  # linear interpolation reaches one further
    most.clear()
    depth = slab_depth(old, change.shape, 10 * plane // 12)
    for _ in interpolate([logits], change, depth):
        pass
    assert max(most) <= 11 * plane


@pytest.mark.parametrize("labels", [GAPS, REGIONS], ids=["labels", "regions"])
def test_models_on_different_grids_decide_together_as_all_of_their_logits_do(
    monkeypatch: pytest.MonkeyPatch, labels: Labels
) -> None:
    monkeypatch.setattr(module, "_SLAB_VOXELS", 400)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 300)
    shapes: tuple[Shape, ...] = ((6, 9, 7), (10, 5, 12), (8, 11, 9))
    new = (8, 11, 9)  # the grid of the last, which is not interpolated
    found = [blobs(shape, 3, seed) for seed, shape in enumerate(shapes)]
    changes = [change_grid(shape, new, None) for shape in shapes]
    streams = [runs_of(logits, 1, 4) for logits in found]
    together = decide_together(streams, changes, labels.segment, lambda rows: sum(rows) / 3)
    whole = [everywhere(logits, new, None, 0) for logits in found]
    wanted = labels.segment(sum(whole) / 3)
    assert len(np.unique(wanted)) > 2
    np.testing.assert_array_equal(np.concatenate(list(together)), wanted)
