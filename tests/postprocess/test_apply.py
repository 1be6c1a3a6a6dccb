from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import measure

from nnseg.errors import DataError
from nnseg.labels import Labels
from nnseg.postprocess import (
    KeepLargest,
    MinimumSize,
    Postprocessing,
    apply,
    keep_largest_foreground,
)

SHAPE = (4, 6, 9)
SPACING = (5.0, 0.5, 0.8)  # 2 mm^3 a voxel
ORGANS = Labels(labels={"background": 0, "liver": 1, "spleen": 2, "gall": 3})
SPARSE = Labels(labels={"background": 0, "liver": 4, "spleen": 300, "ignore": 301})
TUMOUR = Labels(
    labels={"background": 0, "whole": (1, 2, 3), "core": (2, 3), "active": 3},
    regions_class_order=(1, 2, 3),
)
ALL = [ORGANS, SPARSE, TUMOUR]
NAMES = ["labels", "gaps", "regions"]


def keep(*names: str) -> Postprocessing:
    return Postprocessing(rules=(KeepLargest(labels=names),))


def at_least(label: str, smallest: float, unit: str = "voxels") -> Postprocessing:
    return Postprocessing(rules=(MinimumSize(label=label, smallest=smallest, unit=unit),))


def row(*values: int) -> np.ndarray:
    """A label map of one line of voxels in a volume that is empty otherwise."""
    result = np.zeros((3, 5, len(values)), dtype=np.uint16)
    result[1, 3] = values
    return result


def applied(rules: Postprocessing, labels: Labels, *values: int) -> list[int]:
    return apply(row(*values), rules, labels, SPACING)[1, 3].tolist()


def peer_rule(
    segmentation: np.ndarray, values: list[int], stays: Callable[[int, int], bool]
) -> np.ndarray:
    """A rule as nnU-Net carries it out; `stays` is told a size and the largest size."""
    mask = np.isin(segmentation, values)
    parts = measure.label(mask)  # full connectivity
    sizes = np.bincount(parts.ravel())[1:].tolist()
    kept = [number for number, size in enumerate(sizes, start=1) if stays(size, max(sizes))]
    return np.where(mask & ~np.isin(parts, kept), 0, segmentation)


@pytest.mark.parametrize("labels", ALL, ids=NAMES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_rules_do_what_nnunet_does_over_the_whole_volume(labels: Labels, data: Any) -> None:
    shape = data.draw(st.sampled_from([SHAPE, (1, 7, 5), (6, 1, 1), (3, 1, 8)]))
    density = data.draw(st.sampled_from([0.05, 0.2, 0.5]))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = np.array([value for value in labels.values if value != labels.ignore])
    segmentation = np.where(generator.random(shape) < density, generator.choice(values, shape), 0)
    segmentation = segmentation.astype(np.uint16)
    names = st.sampled_from(list(labels.foreground))
    largest = st.builds(
        KeepLargest, labels=st.lists(names, min_size=1, max_size=3, unique=True).map(tuple)
    )
    smallest = st.builds(
        MinimumSize, label=names, smallest=st.integers(1, 4).map(float), unit=st.just("voxels")
    )
    rules = data.draw(st.lists(largest | smallest, max_size=4).map(tuple))
    expected = segmentation
    for rule in rules:
        if isinstance(rule, KeepLargest):
            union = [value for name in rule.labels for value in labels.foreground[name]]
            expected = peer_rule(expected, union, lambda size, largest: size == largest)
        else:
            least = rule.smallest
            of_rule = list(labels.foreground[rule.label])
            expected = peer_rule(expected, of_rule, lambda size, _, least=least: size >= least)
    result = apply(segmentation, Postprocessing(rules=rules), labels, SPACING)
    assert np.array_equal(result, expected)
    assert result.dtype == segmentation.dtype


def test_the_largest_component_of_a_label_stays_and_other_labels_are_left_alone() -> None:
    assert applied(keep("liver"), ORGANS, 1, 0, 1, 1, 0, 2, 0, 2) == [0, 0, 1, 1, 0, 2, 0, 2]


def test_several_labels_are_one_mask_whose_parts_hang_together() -> None:
    both = keep("liver", "spleen")
    assert applied(both, ORGANS, 1, 2, 2, 0, 1, 1, 0, 3) == [1, 2, 2, 0, 0, 0, 0, 3]


def test_a_region_is_the_mask_of_all_its_labels() -> None:
    assert applied(keep("core"), TUMOUR, 1, 0, 2, 3, 0, 3, 0, 1) == [1, 0, 2, 3, 0, 0, 0, 1]


@pytest.mark.parametrize("labels", [ORGANS, TUMOUR], ids=["labels", "regions"])
def test_the_foreground_rule_is_about_every_label(labels: Labels) -> None:
    rules = Postprocessing(rules=(keep_largest_foreground(labels),))
    assert applied(rules, labels, 3, 2, 0, 1, 2, 3, 0, 1) == [0, 0, 0, 1, 2, 3, 0, 0]


def test_of_equally_large_components_all_stay() -> None:
    assert applied(keep("liver"), ORGANS, 1, 1, 0, 1, 0, 1, 1) == [1, 1, 0, 0, 0, 1, 1]


def test_voxels_that_touch_at_a_corner_are_of_one_component() -> None:
    segmentation = np.zeros(SHAPE, dtype=np.uint8)
    segmentation[0, 0, 0] = segmentation[1, 1, 1] = segmentation[3, 5, 8] = 1
    assert np.argwhere(apply(segmentation, keep("liver"), ORGANS, SPACING)).tolist() == [
        [0, 0, 0],
        [1, 1, 1],
    ]


def test_rules_apply_in_their_order() -> None:
    small, large = MinimumSize(label="spleen", smallest=2, unit="voxels"), keep("liver", "spleen")
    first = Postprocessing(rules=(small, *large.rules))
    last = Postprocessing(rules=(*large.rules, small))
    values = (1, 1, 2, 1, 1, 0, 1, 1, 1, 0)
    assert applied(first, ORGANS, *values) == [0, 0, 0, 0, 0, 0, 1, 1, 1, 0]
    assert applied(last, ORGANS, *values) == [1, 1, 0, 1, 1, 0, 0, 0, 0, 0]


def test_a_component_of_just_the_smallest_size_stays() -> None:
    values = (1, 1, 0, 1, 1, 1, 0, 2)
    assert applied(at_least("liver", 2), ORGANS, *values) == [1, 1, 0, 1, 1, 1, 0, 2]
    assert applied(at_least("liver", 3), ORGANS, *values) == [0, 0, 0, 1, 1, 1, 0, 2]
    assert applied(at_least("liver", 4), ORGANS, *values) == [0, 0, 0, 0, 0, 0, 0, 2]


def test_ml_are_of_the_spacing_of_the_image() -> None:
    values = row(1, 1, 0, 1, 1, 1)
    rules = at_least("liver", 0.006, "ml")  # 3 voxels of 2 mm^3
    assert apply(values, rules, ORGANS, SPACING)[1, 3].tolist() == [0, 0, 0, 1, 1, 1]
    assert apply(values, rules, ORGANS, (5.0, 0.5, 1.2))[1, 3].tolist() == [1, 1, 0, 1, 1, 1]


def test_a_spacing_rounded_to_float32_does_not_take_a_component_of_just_the_size() -> None:
    spacing = tuple(float(np.float32(s)) for s in (0.7, 0.7, 0.7))
    assert spacing[0] < 0.7
    rules = at_least("liver", 3 * 0.7**3 / 1000, "ml")
    assert apply(row(1, 1, 0, 1, 1, 1), rules, ORGANS, spacing)[1, 3].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("rules", [keep("liver"), at_least("liver", 2)])
def test_a_map_without_the_label_stays_as_it_is(rules: Postprocessing) -> None:
    for segmentation in (np.zeros(SHAPE, dtype=np.uint8), np.full(SHAPE, 2, dtype=np.uint8)):
        assert np.array_equal(apply(segmentation, rules, ORGANS, SPACING), segmentation)


def test_the_map_that_is_given_is_left_as_it_is() -> None:
    segmentation = row(1, 0, 1, 1)
    assert apply(segmentation, keep("liver"), ORGANS, SPACING).sum() == 2
    assert segmentation[1, 3].tolist() == [1, 0, 1, 1]


def test_without_rules_the_map_itself_comes_back() -> None:
    segmentation = row(1, 0, 1, 1)
    assert apply(segmentation, Postprocessing(), ORGANS, SPACING) is segmentation


def test_slabs_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    segmentation = np.random.default_rng(0).integers(0, 4, (9, 6, 5)) * (
        np.random.default_rng(1).random((9, 6, 5)) < 0.3
    )
    rules = Postprocessing(rules=(*keep("liver", "gall").rules, *at_least("spleen", 2).rules))
    whole = apply(segmentation, rules, ORGANS, SPACING)
    monkeypatch.setattr(import_module("nnseg.postprocess.apply"), "SLAB_VOXELS", 60)
    assert np.array_equal(apply(segmentation, rules, ORGANS, SPACING), whole)
    assert not np.array_equal(whole, segmentation)


@pytest.mark.parametrize("name", ["kidney", "background", "ignore"])
@pytest.mark.parametrize("rules", [keep, lambda name: at_least(name, 1)], ids=["keep", "minimum"])
def test_a_rule_about_no_label_is_refused(
    name: str, rules: Callable[[str], Postprocessing]
) -> None:
    with pytest.raises(DataError, match=rf"'{name}', which is none of the labels liver, spleen;"):
        apply(np.zeros(SHAPE, dtype=np.uint8), rules(name), SPARSE, SPACING)
