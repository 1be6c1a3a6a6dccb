import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from nnseg import batches
from nnseg.axes import Shape
from nnseg.batches import BatchSource, make_batch, make_batches, read_mask, read_patch
from nnseg.dataset import DatasetSpec
from nnseg.fingerprint import Fingerprint
from nnseg.image.intensity import Intensity
from nnseg.labels import Labels
from nnseg.model.augment import plan_augmentation
from nnseg.plan import make_plan
from nnseg.preprocess import Placement, find_locations
from nnseg.store import TrainingCase

SHAPE: Shape = (5, 9, 7)
INTENSITY = Intensity(
    mean=0.0, median=0.0, std=1.0, min=-3.0, max=3.0, percentile_00_5=-2.0, percentile_99_5=2.0
)


def case(number: int, labels: Labels) -> TrainingCase:
    rng = np.random.default_rng(number)
    segmentation = (rng.random(SHAPE) < 0.2).astype(np.uint8)
    return TrainingCase(
        case_id=f"case_{number}",
        image=rng.normal(size=(2, *SHAPE)).astype(np.float32),
        segmentation=segmentation,
        mask=None,
        locations=find_locations(segmentation, labels),
        placement=Placement(
            order=(0, 1, 2),
            shape=SHAPE,
            spacing=(2.0, 1.0, 1.0),
            box=((0, 5), (0, 9), (0, 7)),
            shape_resampled=SHAPE,
        ),
    )


def source_of(*, augmented: bool = True, seed: int = 0, device: str = "cpu") -> BatchSource:
    labels = Labels(labels={"background": 0, "lesion": 1})
    spec = DatasetSpec(channels=("A", "B"), labels=labels, num_training=3, file_ending=".nii.gz")
    measured = Fingerprint(
        spacings=((2.0, 1.0, 1.0),),
        shapes=(SHAPE,),
        intensities=(INTENSITY,) * 2,
        median_relative_size=1.0,
    )
    planned = make_plan(spec, measured, dataset="Dataset001_Toy").configuration("3d_fullres")
    one_level = dataclasses.replace(
        planned.architecture,
        features=(4,),
        kernel_sizes=((3, 3, 3),),
        strides=((1, 1, 1),),
        encoder_blocks=(1,),
        decoder_blocks=(),
    )
    return BatchSource(
        cases=[case(number, labels) for number in range(3)],
        configuration=dataclasses.replace(planned, patch_size=(4, 6, 5), architecture=one_level),
        seed=seed,
        fold="0",
        batch_size=3,
        device=torch.device(device),
        augmentation=plan_augmentation((4, 6, 5), 3) if augmented else None,
    )


def equal(first: batches.Batch, second: batches.Batch) -> bool:
    tensors = zip(first[:2], second[:2], strict=True)
    return first[2] == second[2] and all(torch.equal(a, b) for a, b in tensors)


@pytest.mark.parametrize("augmented", [True, False])
def test_a_batch_has_the_shape_of_the_patch(augmented: bool) -> None:
    image, segmentation, case_ids = make_batch(source_of(augmented=augmented), 0, 0)
    assert (image.shape, image.dtype) == ((3, 2, 4, 6, 5), torch.float32)
    assert (segmentation.shape, segmentation.dtype) == ((3, 4, 6, 5), torch.int16)
    assert len(case_ids) == 3
    assert set(case_ids) <= {"case_0", "case_1", "case_2"}


@pytest.mark.parametrize("augmented", [True, False])
def test_batches_made_in_any_order_by_several_workers_are_those_of_one(augmented: bool) -> None:
    source = source_of(augmented=augmented)
    with ThreadPoolExecutor(3) as pool:
        backwards = list(pool.map(lambda n: make_batch(source, 1, n), reversed(range(6))))
    again = list(make_batches(source, 1, range(6)))
    assert all(equal(a, b) for a, b in zip(backwards[::-1], again, strict=True))


def test_another_epoch_batch_or_seed_gives_another_batch() -> None:
    first = make_batch(source_of(), 0, 0)
    assert not equal(first, make_batch(source_of(), 1, 0))
    assert not equal(first, make_batch(source_of(), 0, 1))
    assert not equal(first, make_batch(source_of(seed=1), 0, 0))


def test_batches_to_validate_with_show_the_data_as_they_are() -> None:
    source = source_of(augmented=False)
    image, segmentation, case_ids = make_batch(source, -1, 0)
    stored = {case.case_id: case for case in source.cases}
    for patch, labels, case_id in zip(image, segmentation, case_ids, strict=True):
        values = set(patch[0].unique().tolist()) - {0.0}
        assert values <= set(stored[case_id].image[0].ravel().tolist())
        assert len(values) > 20
        assert set(labels.unique().tolist()) <= {0, 1}


@pytest.mark.parametrize("numbers", [range(0), range(4, 5), range(3, 8)])
def test_batches_made_ahead_come_in_order_and_none_is_left_out(
    monkeypatch: pytest.MonkeyPatch, numbers: range
) -> None:
    monkeypatch.setattr(batches, "make_batch", lambda source, epoch, number: (epoch, number))
    made = list(make_batches(source_of(device="cuda"), 2, numbers))
    assert made == [(2, number) for number in numbers]


def test_no_more_batches_are_made_than_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(batches, "make_batch", lambda source, epoch, number: made.append(number))
    list(make_batches(source_of(device="cuda"), 0, range(3, 7)))
    assert sorted(made) == [3, 4, 5, 6]


# In z the box begins 2 before the array; in y it lies inside; in x it ends 3 after.
def test_a_box_over_the_border_is_filled_with_0() -> None:
    array = np.arange(1, 2 * 5 * 9 * 7 + 1, dtype=np.int32).reshape(2, 5, 9, 7)
    patch = read_patch(array, (-2, 3, 5), (4, 4, 5))
    assert patch.shape == (2, 4, 4, 5)
    assert patch.dtype == np.int32
    assert not patch[:, :2].any()
    assert not patch[..., 2:].any()
    assert np.array_equal(patch[:, 2:, :, :2], array[:, 0:2, 3:7, 5:7])


@pytest.mark.parametrize("start", [(5, 0, 0), (-4, 0, 0), (0, 0, 60)])
def test_a_box_outside_the_array_is_0(start: Shape) -> None:
    assert not read_patch(np.ones(SHAPE, np.uint8), start, (4, 3, 2)).any()


def test_the_body_ends_where_the_image_ends_and_where_its_mask_says() -> None:
    whole = case(0, Labels(labels={"background": 0, "lesion": 1}))
    mask = read_mask(whole, (-1, 2, 5), (3, 4, 3))
    assert mask.dtype == np.bool_
    assert not mask[0].any()
    assert mask[1:, :, :2].all()
    assert not mask[..., 2].any()
    body = np.zeros(SHAPE, np.uint8)
    body[1, 2, 3] = 1
    found = read_mask(dataclasses.replace(whole, mask=body), (0, 2, 2), (2, 2, 2))
    assert np.argwhere(found).tolist() == [[1, 0, 1]]
