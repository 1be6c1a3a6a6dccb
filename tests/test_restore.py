"""The way back: whatever runs the logits come in, and whatever rule brings them to the grid."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from tiny import toy_plan

from nnseg.axes import Planes, Shape
from nnseg.errors import StoppedError
from nnseg.image import decide
from nnseg.image.resample import resample_image
from nnseg.labels import Labels
from nnseg.plan import Configuration, Resampling
from nnseg.preprocess import Placement
from nnseg.restore import body_of, carry_over, paste_planes, restore, restore_logits

LABELS = Labels(labels={"background": 0, "liver": 5, "kidney": 2})
SEEN: Shape = (9, 7, 11)
PLACEMENT = Placement(
    order=(2, 0, 1),
    shape=(14, 22, 20),
    spacing=(1.0, 1.5, 2.0),
    box=((3, 17), (1, 13), (2, 21)),  # plan order
    shape_resampled=SEEN,
)


def logits() -> Planes:
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(3, 4, 3, 5)).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(resample_image(coarse, SEEN, None, 1), 0, -1))


def runs() -> Iterator[Planes]:
    whole = logits()
    yield from (whole[:1], whole[1:6], whole[6:])


@pytest.fixture
def configuration() -> Configuration:
    planned = toy_plan(LABELS).configuration("3d_fullres")
    return dataclasses.replace(planned, spacing=(3.1, 1.7, 2.6))


@pytest.mark.parametrize("order", [0, 1, 3])
def test_a_label_map_is_that_of_all_logits_on_the_files_grid(
    configuration: Configuration, order: int
) -> None:
    configuration = dataclasses.replace(
        configuration, resample_logits=Resampling(order=order, order_along=0)
    )
    found = restore(runs(), PLACEMENT, LABELS, configuration)
    resized = resample_image(np.moveaxis(logits(), -1, 0), (14, 12, 19), None, order)
    wanted = LABELS.segment(np.moveaxis(resized, 0, -1))
    assert found.shape == PLACEMENT.shape
    assert found.dtype == np.uint8
    assert set(np.unique(found)) == {0, 2, 5}
    np.testing.assert_array_equal(body_of(found, PLACEMENT), wanted)
    body_of(found, PLACEMENT)[...] = 0
    assert not found.any()


@pytest.mark.parametrize("depth", [1, 5, 100])
def test_logits_on_the_files_grid_come_so_many_planes_at_a_time(
    configuration: Configuration, depth: int
) -> None:
    found = list(restore_logits(runs(), PLACEMENT, configuration, depth))
    assert {len(planes) for planes in found[:-1]} <= {depth}
    resized = resample_image(np.moveaxis(logits(), -1, 0), (14, 12, 19), None, 1)
    np.testing.assert_allclose(np.concatenate(found), np.moveaxis(resized, 0, -1), atol=1e-5)


def test_planes_are_pasted_where_the_body_was() -> None:
    planes = np.arange(14 * 12 * 19).reshape(14, 12, 19) % 3
    whole = paste_planes(iter([planes[:4], planes[4:]]), PLACEMENT, LABELS)
    assert whole.shape == (14, 22, 20)
    np.testing.assert_array_equal(whole[1:13, 2:21, 3:17].transpose(2, 0, 1), planes)
    assert whole.sum() == planes.sum()


@pytest.mark.parametrize("new_shape", [SEEN, (18, 14, 22), (9, 14, 30)])
def test_what_the_next_stage_sees_are_positions_on_its_grid(
    configuration: Configuration, new_shape: Shape
) -> None:
    found = carry_over(runs(), LABELS, configuration, SEEN, new_shape)
    resized = resample_image(np.moveaxis(logits(), -1, 0), new_shape, None, 1)
    wanted = LABELS.segment(np.moveaxis(resized, 0, -1))
    assert found.shape == new_shape
    np.testing.assert_array_equal(found, LABELS.to_positions(wanted))
    assert set(np.unique(found)) == {0, 1, 2}


def test_restoring_can_be_ended_between_any_two_planes(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decide, "_SLAB_VOXELS", 1)
    asked: list[bool] = []

    def ask() -> None:
        asked.append(True)
        if len(asked) == 5:
            raise StoppedError("enough")

    with pytest.raises(StoppedError, match="enough"):
        restore(runs(), PLACEMENT, LABELS, configuration, ask=ask)
    assert len(asked) == 5


def test_regions_that_are_painted_alike_are_restored_as_their_logits_say(
    configuration: Configuration,
) -> None:
    labels = Labels(
        labels={"background": 0, "a": (1, 2), "b": 2, "c": 3}, regions_class_order=(3, 1, 1)
    )
    found = body_of(restore(runs(), PLACEMENT, labels, configuration), PLACEMENT)
    resized = resample_image(np.moveaxis(logits(), -1, 0), (14, 12, 19), None, 1)
    wanted = labels.segment(np.moveaxis(resized, 0, -1))
    assert set(np.unique(wanted)) == {0, 1, 3}
    np.testing.assert_array_equal(found, wanted)
    positions = carry_over(runs(), labels, configuration, SEEN, SEEN)
    np.testing.assert_array_equal(positions, labels.segment(logits()))
