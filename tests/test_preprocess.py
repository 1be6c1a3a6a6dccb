import json
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnseg import record
from nnseg.axes import Image, Order, Segmentation, Spacing, permute
from nnseg.dataset import DatasetSpec, find_cases, read_spec
from nnseg.errors import DataError, StoppedError
from nnseg.exchange.nnunet_reading import read_plans
from nnseg.fingerprint import Fingerprint
from nnseg.image.crop import crop_to_body
from nnseg.image.intensity import Intensity
from nnseg.image.resample import resample_image
from nnseg.labels import Labels
from nnseg.plan import Configuration, Plan, make_plan
from nnseg.preprocess import (
    ANNOTATED,
    LOCATIONS,
    arrays_hash,
    find_locations,
    normalize_case,
    planned_spacing,
    preprocess_case,
    preprocessing_hash,
    same_normalization,
)
from nnseg.restore import restore
from nnseg.volume import read_image, read_segmentation

ORDERS: list[Order] = list(permutations((0, 1, 2)))  # type: ignore[arg-type]
PLAIN = Labels(labels={"background": 0, "liver": 1, "kidney": 2})
REGIONS = Labels(
    labels={"background": 0, "whole": (1, 2), "core": 2, "ignore": 3}, regions_class_order=(1, 2)
)
INTENSITY = Intensity(
    mean=3.0, median=3.0, std=2.0, min=0.0, max=9.0, percentile_00_5=1.0, percentile_99_5=8.0
)
SPACING = (1.5, 1.0, 0.75)  # mm, image order
SHAPE = (20, 26, 32)
BODY = (slice(3, 18), slice(2, 25), slice(5, 31))  # what crop leaves of SHAPE


def make(
    spacing: tuple[float | None, float, float] = (1.5, 1.0, 0.75),
    *,
    order: Order = (0, 1, 2),
    labels: Labels = PLAIN,
    channels: tuple[str, ...] = ("T1",),
    use_mask: bool = False,
) -> tuple[Plan, Configuration]:
    """A plan of any order, and its configuration that resamples to `spacing`, plan order."""
    spec = DatasetSpec(channels=channels, labels=labels, num_training=20, file_ending=".nii.gz")
    measured = Fingerprint(
        spacings=(SPACING,),
        shapes=(SHAPE,),
        intensities=(INTENSITY,) * len(channels),
        median_relative_size=0.5 if use_mask else 1.0,
    )
    plan = make_plan(spec, measured, dataset="Dataset900_Test")
    name = "2d" if spacing[0] is None else "3d_fullres"
    configuration = replace(plan.configuration(name), spacing=spacing)
    return replace(plan, order=order), configuration


def make_case(channels: int = 1) -> tuple[Image, Segmentation]:
    """A body of noise in an empty image, with a large liver and a small kidney."""
    rng = np.random.default_rng(0)
    image = np.zeros((channels, *SHAPE), dtype=np.float32)
    for channel in image:
        channel[BODY] = rng.normal(5, 1, channel[BODY].shape).clip(0.5)
    z, y, x = (
        (np.arange(n) * mm).reshape([-1 if i == axis else 1 for i in range(3)])
        for axis, (n, mm) in enumerate(zip(SHAPE, SPACING, strict=True))
    )
    segmentation = np.zeros(SHAPE, dtype=np.uint8)
    segmentation[(z - 12) ** 2 + (y - 14) ** 2 + (x - 12.5) ** 2 < 64] = 1
    segmentation[(z - 20) ** 2 + (y - 10) ** 2 + (x - 17) ** 2 < 25] = 2
    return image, segmentation


def logits_of(segmentation: Segmentation, heads: int) -> Any:
    """Logits (z, y, x, head), as one run of planes."""
    return [np.stack([segmentation == head for head in range(heads)], axis=-1).astype(np.float32)]


def dice(a: Segmentation, b: Segmentation, label: int) -> float:
    return float(
        2 * ((a == label) & (b == label)).sum() / ((a == label).sum() + (b == label).sum())
    )


@pytest.mark.parametrize("order", ORDERS)
def test_what_was_labelled_is_restored_exactly_without_resampling(order: Order) -> None:
    image, segmentation = make_case()
    plan, configuration = make(permute(SPACING, order), order=order)
    found = preprocess_case(image, segmentation, SPACING, plan, configuration)
    assert found.segmentation is not None
    assert found.segmentation.shape == permute((15, 23, 26), order)
    back = restore(logits_of(found.segmentation, 3), found.placement, PLAIN, configuration)
    np.testing.assert_array_equal(back, segmentation)
    assert back.dtype == np.uint8
    assert back.flags.c_contiguous


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "scale", [(0.5, 0.5, 0.5), (1.3, 0.8, 0.7), (0.45, 1.2, 1.1)], ids=["finer", "mixed", "thick"]
)
def test_what_was_labelled_is_restored_after_resampling(order: Order, scale: Spacing) -> None:
    image, segmentation = make_case()
    spacing = permute(tuple(s * f for s, f in zip(SPACING, scale, strict=True)), order)
    plan, configuration = make(spacing, order=order)
    found = preprocess_case(image, segmentation, SPACING, plan, configuration)
    assert found.segmentation is not None
    expected = tuple(round(n / f) for n, f in zip((15, 23, 26), scale, strict=True))
    assert found.placement.shape_resampled == permute(expected, order)
    assert found.image.shape == (1, *permute(expected, order))
    back = restore(logits_of(found.segmentation, 3), found.placement, PLAIN, configuration)
    assert back.shape == SHAPE
    assert dice(back, segmentation, 1) > 0.96
    assert dice(back, segmentation, 2) > 0.88


def test_regions_are_restored_as_their_labels() -> None:
    image, segmentation = make_case()
    plan, configuration = make(labels=REGIONS)
    found = preprocess_case(image, segmentation, SPACING, plan, configuration)
    assert found.segmentation is not None
    heads = [found.segmentation > 0, found.segmentation == 2]
    logits = np.stack(heads, axis=-1) - np.float32(0.5)
    back = restore([logits], found.placement, REGIONS, configuration)
    np.testing.assert_array_equal(back, segmentation)


@pytest.mark.parametrize("order", ORDERS)
def test_a_placement_says_where_the_body_was(order: Order) -> None:
    image, segmentation = make_case()
    plan, configuration = make((1.0, 1.0, 1.0), order=order)
    placement = preprocess_case(image, segmentation, SPACING, plan, configuration).placement
    assert placement.order == order
    assert (placement.shape, placement.spacing) == (SHAPE, SPACING)
    assert placement.box == permute(((3, 18), (2, 25), (5, 31)), order)
    assert placement.shape_cropped == permute((15, 23, 26), order)
    assert placement.spacing_planned == permute(SPACING, order)
    assert placement.shape_resampled == permute((22, 23, 20), order)  # 22.5 and 19.5 round to even


def test_nothing_outside_the_box_is_predicted() -> None:
    image, segmentation = make_case()
    plan, configuration = make((1.0, 1.1, 1.2))
    placement = preprocess_case(image, segmentation, SPACING, plan, configuration).placement
    everywhere = np.zeros((*placement.shape_resampled, 3), dtype=np.float32)
    everywhere[..., 1] = 1
    back = restore([everywhere], placement, PLAIN, configuration)
    assert (back[BODY] == 1).all()
    assert back.sum() == 15 * 23 * 26


def test_thick_slices_of_the_file_are_restored_apart_wherever_they_lie() -> None:
    plan, configuration = make((1.5, 1.0, 1.0), order=(2, 0, 1))
    image: Image = np.ones((1, 10, 12, 5), dtype=np.float32)
    placement = preprocess_case(image, None, (1.0, 1.0, 6.0), plan, configuration).placement
    assert placement.shape_resampled == (20, 10, 12)
    logits = np.random.default_rng(0).normal(size=(3, 20, 10, 12)).astype(np.float32)
    slices = PLAIN.segment(np.moveaxis(resample_image(logits, (5, 10, 12), 0, 1, 0), 0, -1))
    back = restore([np.moveaxis(logits, 0, -1)], placement, PLAIN, configuration)
    np.testing.assert_array_equal(back, slices.transpose(1, 2, 0))


def test_each_channel_keeps_its_place_and_is_scaled_by_its_own_rule() -> None:
    image, _ = make_case(channels=2)
    plan, configuration = make(channels=("CT", "T1"), order=(2, 0, 1))
    configuration = replace(configuration, spacing=permute(SPACING, (2, 0, 1)))
    found = preprocess_case(image, None, SPACING, plan, configuration)
    body = image[(slice(None), *BODY)].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found.image[0], (body[0].clip(1, 8) - 3) / 2, atol=1e-6)
    scaled = (body[1] - body[1].mean()) / body[1].std()
    np.testing.assert_allclose(found.image[1], scaled, atol=1e-5)
    assert found.image.dtype == np.float32
    assert found.image.flags.c_contiguous


def test_a_2d_configuration_keeps_the_slices() -> None:
    image, segmentation = make_case()
    plan, configuration = make((None, 0.75, 0.5), order=(1, 0, 2))
    found = preprocess_case(image, segmentation, SPACING, plan, configuration)
    assert found.segmentation is not None
    assert found.placement.shape_resampled == (23, 30, 39)
    np.testing.assert_array_equal(  # slices are resampled one by one
        found.segmentation[7],
        preprocess_case(
            image[:, :, 9:10], segmentation[:, 9:10], SPACING, plan, configuration
        ).segmentation[0],  # type: ignore[index]
    )
    back = restore(logits_of(found.segmentation, 3), found.placement, PLAIN, configuration)
    assert dice(back, segmentation, 1) > 0.96


@pytest.mark.parametrize(
    ("flat", "expected"), [(True, (2.5, 1.0, 0.75)), (False, (1.5, 1.0, 0.75))]
)
def test_a_2d_configuration_keeps_the_spacing_of_slices(flat: bool, expected: Spacing) -> None:
    _, configuration = make((None if flat else 1.5, 1.0, 0.75))
    assert planned_spacing((2.5, 0.5, 0.6), configuration) == expected


def holey_case() -> tuple[Image, Segmentation]:
    """A body that fills its box but for a corner, in which one voxel is labelled."""
    image, segmentation = make_case()
    image[0, 3:8, 2:10, 5:12] = 0
    segmentation[...] = 0
    segmentation[4, 3, 6] = 1
    return image, segmentation


def test_within_the_mask_only_the_body_decides_the_scale() -> None:
    image, segmentation = holey_case()
    plan, configuration = make(use_mask=True)
    found = preprocess_case(image, segmentation, SPACING, plan, configuration)
    cropped = image[0][BODY]
    body = cropped != 0
    body[1, 1, 1] = True  # labelled, so it counts as body
    np.testing.assert_array_equal(found.mask, body)
    scaled = (cropped - cropped[body].mean()) / cropped[body].std()
    np.testing.assert_allclose(found.image[0], np.where(body, scaled, 0), atol=1e-5)


def test_without_the_mask_the_whole_box_decides_the_scale() -> None:
    image, segmentation = holey_case()
    plan, configuration = make(use_mask=False)
    found = preprocess_case(image, segmentation, SPACING, plan, configuration)
    cropped = image[0][BODY]
    np.testing.assert_allclose(
        found.image[0], (cropped - cropped.mean()) / cropped.std(), atol=1e-5
    )


@pytest.mark.parametrize("spacing", [(1.5, 1.0, 0.75), (1.0, 0.7, 1.1)])
def test_a_case_without_labels_is_prepared_like_one_with_them(spacing: Spacing) -> None:
    image, segmentation = holey_case()
    plan, configuration = make(spacing, use_mask=True)
    without = preprocess_case(image, None, SPACING, plan, configuration)
    empty = preprocess_case(image, segmentation * 0, SPACING, plan, configuration)
    assert without.segmentation is None
    np.testing.assert_array_equal(without.image, empty.image)
    np.testing.assert_array_equal(without.mask, empty.mask)
    assert without.placement == empty.placement
    assert 0.5 < without.mask.mean() < 1


def test_a_whole_body_has_a_whole_mask_at_the_new_shape() -> None:
    image, _ = make_case()
    plan, configuration = make((1.0, 0.7, 1.1))
    found = preprocess_case(image, None, SPACING, plan, configuration)
    assert found.mask.shape == found.placement.shape_resampled == (22, 33, 18)
    assert found.mask.all()


def test_an_empty_image_is_kept_whole() -> None:
    plan, configuration = make(use_mask=True)
    empty = np.zeros((1, *SHAPE), dtype=np.float32)
    found = preprocess_case(empty, None, SPACING, plan, configuration)
    assert found.placement.box == ((0, 20), (0, 26), (0, 32))
    assert not found.mask.any()
    assert not found.image.any()


def test_the_arrays_that_were_given_stay_as_they_were() -> None:
    image, segmentation = holey_case()
    before, labels_before = image.copy(), segmentation.copy()
    plan, configuration = make(use_mask=True, channels=("T1",))
    preprocess_case(image, segmentation, SPACING, plan, configuration)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(segmentation, labels_before)


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_preprocessing_can_be_ended_before_each_channel_and_run_of_planes(most: int) -> None:
    image, _ = make_case(channels=2)
    plan, configuration = make((2.0, 1.5, 1.5), channels=("T1", "T2"))
    asked: list[bool] = []

    def ask() -> None:
        asked.append(True)
        if len(asked) == most:
            raise StoppedError("enough")

    with pytest.raises(StoppedError, match="enough"):
        preprocess_case(image, None, SPACING, plan, configuration, ask=ask)
    assert len(asked) == most  # two channels are normalized, then resampled


def test_a_cropped_case_stays_as_it_was_for_the_next_configuration() -> None:
    image: Image = np.ones((1, 5, 6, 7), dtype=np.float32)
    image[0, :, 0, 0] = 0
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[2, 0, 0] = 1  # labelled, so it counts as body of what is made of the case
    cropped = crop_to_body(image, labels)
    assert cropped.mask is not None
    mask, before = cropped.mask.copy(), image.copy()
    plan, configuration = make(use_mask=True)
    found = normalize_case(cropped, SPACING, plan, configuration)
    assert found.labels is not None
    assert (found.labels == -1).sum() == 4
    np.testing.assert_array_equal(cropped.mask, mask)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(cropped.segmentation, labels)


@pytest.mark.parametrize(("count", "kind"), [(256, np.uint8), (257, np.uint16)])
def test_label_maps_take_the_smallest_type_of_the_plans_labels(count: int, kind: type) -> None:
    labels = {"background": 0, **{f"part {i}": i for i in range(1, count)}}
    plan, configuration = make((1.0, 1.0, 1.0), labels=Labels(labels=labels))
    image, segmentation = make_case()
    numbered = np.where(segmentation > 0, np.int32(count - 1), 0)
    found = preprocess_case(image, numbered, SPACING, plan, configuration)
    assert found.segmentation is not None
    assert found.segmentation.dtype == kind
    assert set(np.unique(found.segmentation)) == {0, count - 1}


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_other_channels_is_refused(channels: int) -> None:
    image, _ = make_case(channels)
    plan, configuration = make(channels=("CT", "T1"))
    with pytest.raises(DataError, match=f"has {channels} channels; the plan wants 2: CT, T1"):
        preprocess_case(image, None, SPACING, plan, configuration)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_image_that_would_lose_its_last_voxel_is_refused(axis: int) -> None:
    plan, configuration = make((3.0, 3.0, 3.0))
    shape = [12, 13, 14]
    shape[axis] = 1
    thin: Image = np.ones((1, *shape), dtype=np.float32)
    with pytest.raises(DataError, match=r"\(z, y, x, plan order\); at the planned .* these would"):
        preprocess_case(thin, None, (1.5, 1.5, 1.5), plan, configuration)  # half rounds to 0
    spacing = permute((1.51, 1.5, 1.5), ((0, 1, 2), (1, 0, 2), (1, 2, 0))[axis])
    found = preprocess_case(thin, None, spacing, plan, configuration)
    assert found.placement.shape_resampled[axis] == 1


def test_locations_are_the_voxels_of_each_label() -> None:
    segmentation = np.zeros((3, 4, 5), dtype=np.uint8)
    segmentation[1, 2, 3] = segmentation[2, 0, 1] = 2
    found = find_locations(segmentation, PLAIN)
    assert list(found) == ["kidney"]  # there is no liver
    assert found["kidney"].tolist() == [1 * 20 + 2 * 5 + 3, 2 * 20 + 1]
    assert found["kidney"].dtype == np.int64


def test_locations_of_regions_join_their_labels_and_leave_out_what_is_ignored() -> None:
    segmentation = np.zeros((2, 3, 4), dtype=np.uint8)
    segmentation.flat[[3, 5, 8, 9]] = 1, 2, 3, 2
    found = find_locations(segmentation, REGIONS)
    assert list(found) == ["whole", "core", ANNOTATED]
    assert found["whole"].tolist() == [3, 5, 9]
    assert found["core"].tolist() == [5, 9]
    assert found[ANNOTATED].tolist() == [voxel for voxel in range(24) if voxel != 8]


def test_a_case_in_which_everything_is_ignored_has_no_locations() -> None:
    assert find_locations(np.full((2, 3, 4), 3, dtype=np.uint8), REGIONS) == {}


@pytest.mark.parametrize(
    ("voxels", "count"), [(LOCATIONS, LOCATIONS), (LOCATIONS + 1, LOCATIONS), (1_000_101, 10_002)]
)
def test_at_most_10_000_locations_or_a_hundredth_are_drawn(voxels: int, count: int) -> None:
    segmentation = np.zeros((3, 500, 700), dtype=np.uint8)
    segmentation.reshape(-1)[20 : 20 + voxels] = 1
    drawn = find_locations(segmentation, PLAIN)["liver"]
    assert len(drawn) == len(np.unique(drawn)) == count
    assert (np.diff(drawn) > 0).all()
    assert (segmentation.reshape(-1)[drawn] == 1).all()
    middle = 20 + voxels / 2
    assert abs(drawn.mean() - middle) < 0.02 * voxels  # drawn evenly
    np.testing.assert_array_equal(drawn, find_locations(segmentation, PLAIN)["liver"])


def changed(plan: Plan, configuration: Configuration, field: str, value: Any) -> str:
    if hasattr(configuration, field):
        return preprocessing_hash(plan, replace(configuration, **{field: value}))
    return preprocessing_hash(replace(plan, **{field: value}), configuration)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("order", (1, 0, 2)),
        ("channels", ("T2",)),
        ("labels", REGIONS),
        ("intensities", (replace(INTENSITY, std=2.5),)),
        ("spacing", (1.5, 1.0, 0.7)),
        ("normalization", ("ct",)),
        ("use_mask", (True,)),
    ],
)
def test_the_hash_of_a_plan_follows_what_its_arrays_follow_from(field: str, value: Any) -> None:
    plan, configuration = make()
    assert changed(plan, configuration, field, value) != preprocessing_hash(plan, configuration)


@pytest.mark.parametrize("kind", ["resample_image", "resample_segmentation"])
def test_arrays_follow_the_rules_of_resampling_only_where_something_is_resampled(
    kind: str,
) -> None:
    plan, configuration = make((1.5, 1.0, 0.75))
    rule = replace(getattr(configuration, kind), order=0)
    other = replace(configuration, **{kind: rule})
    for spacing, same in (((1.5, 1.0, 0.75), True), ((3.0, 1.0, 0.75), False)):
        hashes = {arrays_hash(plan, one, spacing, SHAPE) for one in (configuration, other)}
        assert (len(hashes) == 1) is same


def test_arrays_of_2d_and_3d_are_one_where_the_slices_lie_as_planned() -> None:
    plan, full = make((1.5, 1.0, 0.75))
    _, flat = make((None, 1.0, 0.75))
    for spacing, same in (((1.5000001, 1.0, 0.75), True), ((3.0, 1.0, 0.75), False)):
        hashes = {arrays_hash(plan, one, spacing, SHAPE) for one in (full, flat)}
        assert (len(hashes) == 1) is same
    scaled = replace(full, normalization=("ct",))
    assert arrays_hash(plan, full, SPACING, SHAPE) != arrays_hash(plan, scaled, SPACING, SHAPE)
    assert same_normalization(full, flat)
    assert not same_normalization(full, scaled)
    assert not same_normalization(full, replace(full, use_mask=(True,)))


@pytest.mark.parametrize("kind", ["resample_image", "resample_segmentation"])
def test_the_hash_of_a_plan_follows_its_resampling(kind: str) -> None:
    plan, configuration = make()
    rule = replace(getattr(configuration, kind), separate=True)
    assert changed(plan, configuration, kind, rule) != preprocessing_hash(plan, configuration)


@pytest.mark.parametrize(
    ("field", "value"), [("batch_size", 7), ("batch_dice", True), ("planner", "x"), ("name", "x")]
)
def test_the_hash_of_a_plan_does_not_follow_what_only_training_uses(field: str, value: Any) -> None:
    plan, configuration = make()
    assert changed(plan, configuration, field, value) == preprocessing_hash(plan, configuration)


GOLDEN = record.read_json(Path(__file__).parent / "golden" / "preprocess.json")["cases"]


@pytest.mark.parametrize(
    "golden", GOLDEN, ids=lambda one: f"{one['dataset']}-{one['configuration']}-{one['case_id']}"
)
def test_preprocessed_arrays_equal_the_peers(golden: Mapping[str, Any], shared: Path) -> None:
    dataset = golden["dataset"]
    raw, reference = shared / "data" / dataset, shared / "reference" / "nnunet_plans" / dataset
    spec = read_spec(reference / "dataset.json")
    plan = read_plans(json.loads((reference / "nnUNetPlans.json").read_text()), spec, name="nnunet")
    cases = find_cases(raw / "imagesTr", raw / "labelsTr", spec)
    case = next(case for case in cases if case.case_id == golden["case_id"])
    assert case.label is not None
    volume = read_image(case.images)
    found = preprocess_case(
        volume.image,
        read_segmentation(case.label)[0],
        volume.geometry.spacing,
        plan,
        plan.configuration(golden["configuration"]),
    )
    assert found.segmentation is not None
    assert [list(ends) for ends in found.placement.box] == golden["box"]
    assert list(found.image.shape) == golden["shape"]
    values = found.image.reshape(-1)[golden["voxels"]]
    np.testing.assert_allclose(values, golden["values"], rtol=0, atol=1e-5)
    assert found.image.mean(dtype=np.float64) == pytest.approx(golden["mean"], abs=1e-5)
    assert found.image.std(dtype=np.float64) == pytest.approx(golden["std"], abs=1e-5)
    theirs = np.where(found.mask, found.segmentation.astype(int), -1)
    labels, counts = np.unique(theirs, return_counts=True)
    assert {str(a): int(n) for a, n in zip(labels, counts, strict=True)} == golden["labels"]


@pytest.mark.parametrize(
    ("channel", "fill"), [("T1", 3.4e38), ("T1", 1e25), ("rescale_to_0_1", 3.4e38)]
)
def test_values_that_overflow_when_they_are_normalized_are_refused(
    channel: str, fill: float
) -> None:
    image, _ = make_case(channels=2)
    image[1, 0] = fill
    image[1, 1] = -fill
    plan, configuration = make(channels=("CT", channel))
    values = re.escape(f"channel {channel} has values from -{fill:g} to {fill:g}, too large")
    with pytest.raises(DataError, match=values):
        preprocess_case(image, None, SPACING, plan, configuration)
