from pathlib import Path

import numpy as np
import pytest
from boxed import LABELS, ORDERS, REGIONS, SHAPE, in_image, placed, save

from nnseg.axes import Order
from nnseg.errors import DataError
from nnseg.labels import Labels
from nnseg.scores.certainty import certainty, open_beside

STEP = 0.01  # what quantised probabilities may be off by


@pytest.mark.parametrize("kind", ["chunks", "compact"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_voxel_has_the_probability_of_its_own_label(
    tmp_path: Path, order: Order, kind: str
) -> None:
    found, _ = save(tmp_path, kind, placed(order), LABELS)
    whole = in_image(found, placed(order), LABELS)
    prediction = whole.argmax(axis=0).astype(np.uint8)
    opened = open_beside(tmp_path / "case.nii.gz")
    assert opened is not None
    sure = certainty(opened, prediction, LABELS)
    assert list(sure) == ["edema", "core"]
    for name, value in (("edema", 2), ("core", 1)):
        own = prediction == value
        assert own.any()
        np.testing.assert_allclose(sure[name][own], whole[value][own], rtol=0, atol=STEP)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_each_region_has_its_own_probability(tmp_path: Path, order: Order) -> None:
    found, _ = save(tmp_path, "chunks", placed(order), REGIONS)
    whole = in_image(found, placed(order), REGIONS)
    opened = open_beside(tmp_path / "case.nii.gz")
    assert opened is not None
    sure = certainty(opened, np.zeros(SHAPE, np.uint8), REGIONS)
    np.testing.assert_allclose(sure["whole"], whole[0], rtol=0, atol=STEP)
    np.testing.assert_allclose(sure["core"], whole[1], rtol=0, atol=STEP)


def test_nothing_is_known_without_probabilities(tmp_path: Path) -> None:
    assert open_beside(tmp_path / "case.nii.gz") is None


def test_probabilities_of_another_image_or_other_labels_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "chunks", placed(), LABELS)
    opened = open_beside(tmp_path / "case.nii.gz")
    assert opened is not None
    with pytest.raises(DataError, match=r"an image of \(7, 11, 13\) voxels"):
        certainty(opened, np.zeros((7, 13, 11), np.uint8), LABELS)
    with pytest.raises(DataError, match="name the same integers"):
        certainty(opened, np.zeros(SHAPE, np.uint8), REGIONS)
    others = Labels(labels={"background": 0, "edema": 1, "other": 7})
    with pytest.raises(DataError, match="name the same integers"):
        certainty(opened, np.zeros(SHAPE, np.uint8), others)


def test_labels_are_told_by_their_integers_and_not_by_their_names(tmp_path: Path) -> None:
    found, _ = save(tmp_path, "chunks", placed(), LABELS)
    prediction = in_image(found, placed(), LABELS).argmax(axis=0).astype(np.uint8)
    opened = open_beside(tmp_path / "case.nii.gz")
    assert opened is not None
    known = certainty(opened, prediction, LABELS)
    renamed = certainty(opened, prediction, Labels(labels={"background": 0, "a": 1, "b": 2}))
    np.testing.assert_array_equal(renamed["b"], known["edema"])
    some = certainty(opened, prediction, Labels(labels={"background": 0, "b": 2}))
    np.testing.assert_array_equal(some["b"], known["edema"])


def test_regions_are_told_by_their_integers_and_not_by_their_order(tmp_path: Path) -> None:
    save(tmp_path, "chunks", placed(), REGIONS)
    opened = open_beside(tmp_path / "case.nii.gz")
    assert opened is not None
    known = certainty(opened, np.zeros(SHAPE, np.uint8), REGIONS)
    values = dict(reversed(REGIONS.foreground.items()))
    turned = Labels(
        labels={"background": 0, **{f"my {name}": its for name, its in values.items()}},
        regions_class_order=tuple(its[0] for its in values.values()),
    )
    found = certainty(opened, np.zeros(SHAPE, np.uint8), turned)
    assert list(found) == ["my core", "my whole"]
    np.testing.assert_array_equal(found["my core"], known["core"])
    np.testing.assert_array_equal(found["my whole"], known["whole"])
