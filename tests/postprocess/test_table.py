import pickle
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnseg.errors import DataError
from nnseg.evaluate import confusion_table
from nnseg.labels import Labels
from nnseg.postprocess import (
    KeepLargest,
    MinimumSize,
    Postprocessing,
    apply,
    component_table,
    score_after,
)

SHAPE = (4, 6, 9)
SPACING = (5.0, 0.5, 0.8)  # 2 mm^3 a voxel
ORGANS = Labels(labels={"background": 0, "liver": 1, "spleen": 2, "gall": 3})
SPARSE = Labels(labels={"background": 0, "liver": 4, "spleen": 300, "ignore": 301})
TUMOUR = Labels(
    labels={"background": 0, "whole": (1, 2, 3), "core": (2, 3), "active": 3},
    regions_class_order=(1, 2, 3),
)
CROSSED = Labels(  # neither region holds the other, so a rule for one can split the other
    labels={"background": 0, "active": 3, "left": (1, 2), "right": (2, 3, 4), "ignore": 5},
    regions_class_order=(3, 1, 2),
)
ALL = [ORGANS, SPARSE, TUMOUR, CROSSED]
NAMES = ["labels", "gaps", "regions", "crossed"]


def line(*values: int) -> np.ndarray:
    """A label map of one line of voxels in a volume that is empty otherwise."""
    result = np.zeros((3, 5, len(values)), dtype=np.uint16)
    result[1, 3] = values
    return result


@pytest.mark.parametrize("labels", ALL, ids=NAMES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_table_scores_rules_as_the_label_map_does_that_they_leave(
    labels: Labels, data: Any
) -> None:
    shape = data.draw(st.sampled_from([SHAPE, (1, 7, 5), (6, 1, 1), (3, 1, 8), (1, 1, 1)]))
    density = data.draw(st.sampled_from([0.0, 0.1, 0.3, 0.6]))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    prediction, reference = (
        np.where(generator.random(shape) < share, generator.choice(labels.values, shape), 0)
        for share in (density, 0.4)
    )
    names = st.sampled_from(list(labels.foreground))
    largest = st.builds(
        KeepLargest, labels=st.lists(names, min_size=1, max_size=3, unique=True).map(tuple)
    )
    smallest = st.builds(
        MinimumSize,
        label=names,
        smallest=st.sampled_from([0.002, 0.004, 0.0061]),  # 1, 2, and over 3 voxels
    )
    rules = Postprocessing(rules=data.draw(st.lists(largest | smallest, max_size=4).map(tuple)))
    table = component_table(prediction, reference, labels)
    left = apply(prediction, rules, labels, SPACING)
    expected = confusion_table(left, reference, labels)
    assert np.array_equal(score_after(table, rules, labels, SPACING), expected)


def test_a_rule_for_one_region_can_split_another() -> None:
    prediction = line(1, 1, 1, 2, 4, 4, 0, 2, 2)  # without the first 2, left and right part
    rules = Postprocessing(
        rules=(
            MinimumSize(label="right", smallest=4, unit="voxels"),
            KeepLargest(labels=("left",)),
        )
    )
    table = component_table(prediction, prediction, CROSSED)
    left = apply(prediction, rules, CROSSED, SPACING)
    assert left[1, 3].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert score_after(table, rules, CROSSED, SPACING)[:, 1].tolist() == [0, 3, 0, 0, 0, 0]


def test_a_table_lists_components_their_sizes_and_what_they_share_with_the_reference() -> None:
    table = component_table(line(1, 1, 0, 1, 2, 0), line(1, 2, 2, 0, 2, 1), ORGANS)
    assert table.labels.tolist() == [1, 1, 2]
    assert table.sizes.tolist() == [2, 1, 1]
    assert table.contacts.tolist() == [[1, 2]]
    overlaps = (table.overlap_components, table.overlap_references, table.overlap_voxels)
    assert np.transpose(overlaps).tolist() == [[0, 1, 1], [0, 2, 1], [1, 0, 1], [2, 2, 1]]
    assert table.background.tolist() == [3 * 5 * 6 - 6, 1, 1, 0]


def test_ignored_voxels_count_for_the_size_of_a_component_only() -> None:
    table = component_table(line(4, 4, 4, 0), line(4, 301, 301, 301), SPARSE)
    assert table.sizes.tolist() == [3]
    assert table.overlap_voxels.tolist() == [1]
    assert table.background.tolist() == [3 * 5 * 4 - 4, 0, 0, 0]


def test_components_of_two_labels_touch_by_corners() -> None:
    prediction = np.zeros(SHAPE, dtype=np.uint8)
    prediction[0, 0, 0], prediction[1, 1, 1], prediction[3, 5, 8] = 1, 2, 3
    assert component_table(prediction, prediction, ORGANS).contacts.tolist() == [[0, 1]]


def test_slabs_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    prediction, reference = generator.integers(0, 4, (2, 9, 6, 5))
    rules = Postprocessing(rules=(KeepLargest(labels=("spleen",)),))
    monkeypatch.setattr(import_module("nnseg.postprocess.table"), "SLAB_VOXELS", 7)
    table = component_table(prediction, reference, ORGANS)
    expected = confusion_table(apply(prediction, rules, ORGANS, SPACING), reference, ORGANS)
    assert np.array_equal(score_after(table, rules, ORGANS, SPACING), expected)


def test_a_table_survives_the_way_to_another_process() -> None:
    table = pickle.loads(pickle.dumps(component_table(line(1, 2), line(1, 1), ORGANS)))
    assert score_after(table, Postprocessing(), ORGANS, SPACING)[1].tolist() == [0, 1, 1, 0]


def test_label_maps_of_two_shapes_are_refused() -> None:
    with pytest.raises(DataError, match=r"prediction \(3, 5, 2\) and reference \(3, 5, 3\) differ"):
        component_table(line(1, 1), line(1, 1, 1), ORGANS)


def test_a_value_that_is_no_label_is_refused_by_its_map() -> None:
    with pytest.raises(DataError, match=r"^prediction holds the values \[9\]"):
        component_table(line(1, 9), line(1, 1), ORGANS)
    with pytest.raises(DataError, match=r"^reference holds the values \[9\]"):
        component_table(line(1, 1), line(1, 9), ORGANS)


def test_a_rule_about_no_label_is_refused() -> None:
    table = component_table(line(1), line(1), ORGANS)
    rules = Postprocessing(rules=(KeepLargest(labels=("kidney",)),))
    with pytest.raises(DataError, match="'kidney', which is none of the labels liver"):
        score_after(table, rules, ORGANS, SPACING)


@pytest.mark.parametrize("shape", [(1, 1, 7), (1, 7, 1), (7, 1, 1)])
def test_a_line_of_voxels_has_components_and_contacts(shape: tuple[int, int, int]) -> None:
    prediction = np.array([1, 2, 0, 1, 0, 1, 1], np.uint8).reshape(shape)
    reference = np.array([1, 1, 0, 1, 0, 0, 0], np.uint8).reshape(shape)
    table = component_table(prediction, reference, ORGANS)
    assert table.labels.tolist() == [1, 2, 1, 1]
    assert table.sizes.tolist() == [1, 1, 1, 2]
    assert table.contacts.tolist() == [[0, 1]]
    assert table.overlap_references.tolist() == [1, 1, 1, 0]
    one = Labels(labels={"background": 0, "liver": 1})
    alone = component_table((prediction == 1).astype(np.uint8), (reference == 1) * 1, one)
    assert alone.sizes.tolist() == [1, 1, 2]
