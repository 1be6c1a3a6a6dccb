import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from nnseg.axes import Shape
from nnseg.dataset import DatasetSpec
from nnseg.errors import DataError
from nnseg.fingerprint import Fingerprint
from nnseg.image.intensity import Intensity
from nnseg.labels import Labels
from nnseg.learning import batches
from nnseg.learning.batches import BatchSource, clip_box, keep_on_device, make_batch, make_batches
from nnseg.model.draws import plan_augmentation
from nnseg.model.mixup import mix
from nnseg.model.previous import Spoiling
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


def source_of(
    *,
    augmented: bool = True,
    seed: int = 0,
    device: str = "cpu",
    elastic: float | None = None,
    mixup: float | None = None,
) -> BatchSource:
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
        augmentation=plan_augmentation((4, 6, 5), 3, elastic=elastic) if augmented else None,
        mixup=mixup,
    )


def equal(first: batches.Batch, second: batches.Batch) -> bool:
    pairs = [(first.image, second.image), (first.segmentation, second.segmentation)]
    if (first.mixed is None) != (second.mixed is None):
        return False
    if first.mixed is not None and second.mixed is not None:
        pairs.append((first.mixed.segmentation, second.mixed.segmentation))
        if first.mixed.share != second.mixed.share:
            return False
    return first.case_ids == second.case_ids and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("augmented", [True, False])
def test_a_batch_has_the_shape_of_the_patch(augmented: bool) -> None:
    image, segmentation, case_ids, mixed = make_batch(source_of(augmented=augmented), 0, 0)
    assert mixed is None
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
    image, segmentation, case_ids, _ = make_batch(source, -1, 0)
    stored = {case.case_id: case for case in source.cases}
    for patch, labels, case_id in zip(image, segmentation, case_ids, strict=True):
        values = set(patch[0].unique().tolist()) - {0.0}
        assert values <= set(stored[case_id].image[0].ravel().tolist())
        assert len(values) > 20
        assert set(labels.unique().tolist()) <= {0, 1}


@pytest.mark.fault("R32", "G7")
@pytest.mark.parametrize(
    "options", [{}, {"augmented": False}, {"elastic": 9.0}, {"mixup": 0.4, "elastic": 9.0}]
)
@pytest.mark.parametrize("numbers", [range(6), range(4, 9), range(0)])
def test_any_number_of_workers_makes_the_same_bytes_in_order(
    options: dict[str, Any], numbers: range
) -> None:
    source = source_of(**options)
    wanted = [make_batch(source, 2, number) for number in numbers]
    for workers in (0, 1, 2, 4):
        made = list(make_batches(source, 2, numbers, workers=workers))
        assert len(made) == len(wanted)
        assert all(equal(a, b) for a, b in zip(made, wanted, strict=True))


def test_workers_stay_a_bounded_number_of_batches_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(batches, "_make_batch", lambda source, epoch, number: made.append(number))
    coming = make_batches(source_of(), 0, range(3, 1000), workers=2)
    for _ in range(5):
        next(coming)
    coming.close()
    assert sorted(made)[:5] == [3, 4, 5, 6, 7]
    assert len(made) <= 5 + 2 + batches.AHEAD


@pytest.mark.fault("R27")
@pytest.mark.parametrize("workers", [1, 3])
def test_who_stops_early_leaves_no_thread_behind(workers: int) -> None:
    before = threading.active_count()
    coming = make_batches(source_of(), 0, range(50), workers=workers)
    next(coming)
    assert threading.active_count() == before + workers
    coming.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_computes_alone_in_a_worker_and_as_before_elsewhere(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_make_batch", lambda *_: torch.get_num_threads())
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert list(make_batches(source_of(), 0, range(5), workers=workers)) == [1] * 5
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


class Damaged:
    """An array that cannot be unpacked."""

    shape = (2, *SHAPE)

    def __getitem__(self, key: object) -> None:
        raise RuntimeError("Error while getting the slice")


@pytest.mark.fault("R27")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_case_is_named_at_once_and_no_thread_stays(workers: int) -> None:
    before = threading.active_count()
    source = source_of()
    cases = [source.cases[0], dataclasses.replace(source.cases[1], image=Damaged())]
    broken = dataclasses.replace(source, cases=cases)
    wanted = r"case case_1: its arrays cannot be read \(Error while getting the slice\); run"
    with pytest.raises(DataError, match=wanted):
        list(make_batches(broken, 0, range(20), workers=workers))
    assert threading.active_count() == before


def test_a_fault_of_a_later_batch_does_not_wait_for_an_earlier_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = threading.Event()

    def make(source: BatchSource, epoch: int, number: int) -> int:
        if number == 1:
            free.set()
            raise DataError("case 1 is damaged")
        assert free.wait(20)
        time.sleep(0.2)  # the fault is there first
        return number

    monkeypatch.setattr(batches, "_make_batch", make)
    with pytest.raises(DataError, match="case 1 is damaged"):
        next(make_batches(source_of(), 0, range(2), workers=2))


def test_any_other_fault_names_the_cases_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a mistake")

    monkeypatch.setattr(batches, "augment", fail)
    with pytest.raises(RuntimeError, match=r"batch 3 of epoch 1, of the cases case_.*a mistake"):
        list(make_batches(source_of(), 0, range(3, 4), workers=1))


def test_what_is_read_of_arrays_on_disk_is_what_is_read_of_those_in_memory() -> None:
    class Packed:
        def __init__(self, array: np.ndarray) -> None:
            self.array, self.shape = array, array.shape

        def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
            return self.array[key].copy()

    source = source_of()
    cases = [
        dataclasses.replace(each, image=Packed(each.image), segmentation=Packed(each.segmentation))
        for each in source.cases
    ]
    packed = dataclasses.replace(source, cases=cases)
    for number in range(4):
        assert equal(make_batch(source, 0, number), make_batch(packed, 0, number))


# In z the whole begins 2 before the array; in y it lies inside; in x it ends 3 after.
def test_a_box_over_the_border_is_clipped_and_its_place_in_the_whole_is_told() -> None:
    box = ((0, 4), (1, 5), (0, 5))
    inside, offset = clip_box((-2, 3, 5), box, SHAPE)
    assert inside == (slice(0, 2), slice(4, 8), slice(5, 7))
    assert offset == (2, 1, 0)


@pytest.mark.parametrize("start", [(5, 0, 0), (-4, 0, 0), (0, 0, 60)])
def test_a_box_outside_the_array_is_empty(start: Shape) -> None:
    inside, offset = clip_box(start, ((0, 4), (0, 3), (0, 2)), SHAPE)
    assert not np.ones(SHAPE)[inside].size
    assert offset == (0, 0, 0)


def test_channels_that_are_masked_are_0_outside_the_body_and_the_image() -> None:
    source = source_of()
    body = np.zeros(SHAPE, np.uint8)
    body[1:4, 2:7, 1:5] = 1
    cases = [
        dataclasses.replace(each, mask=body, image=np.where(body, each.image, 0).astype("f4"))
        for each in source.cases
    ]
    configuration = dataclasses.replace(source.configuration, use_mask=(True, False))
    masked = dataclasses.replace(source, cases=cases, configuration=configuration)
    free = dataclasses.replace(source, cases=cases)
    zeros = [0, 0]
    for number in range(10):
        image = make_batch(masked, 0, number).image
        other = make_batch(free, 0, number).image
        assert torch.equal(image[:, 1], other[:, 1])
        zeros[0] += int((image[:, 0] == 0).sum())
        zeros[1] += int((other[:, 0] == 0).sum())
    assert zeros[0] > zeros[1]


@pytest.mark.parametrize("augmented", [True, False])
def test_a_cascade_sees_the_stage_before_as_channels_that_move_with_the_labels(
    augmented: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "draw_spoiling", lambda *_: Spoiling())
    source = source_of(augmented=augmented)
    cascade = dataclasses.replace(
        source,
        previous=[each.segmentation * 2 for each in source.cases],  # all label 2, none label 1
        previous_labels=2,
    )
    for number in range(8):
        image, segmentation, *_ = make_batch(cascade, 0, number)
        plain, wanted, *_ = make_batch(source, 0, number)
        assert image.shape == (3, 4, 4, 6, 5)
        assert image.dtype == torch.float32
        assert torch.equal(image[:, :2], plain)
        assert torch.equal(segmentation, wanted)
        assert not image[:, 2].any()
        assert torch.equal(image[:, 3], wanted.float())


def test_the_stage_before_is_spoilt_in_training_and_not_in_validation() -> None:
    def changed(augmented: bool) -> int:
        source = source_of(augmented=augmented)
        cascade = dataclasses.replace(
            source, previous=[each.segmentation for each in source.cases], previous_labels=1
        )
        made = [make_batch(cascade, 0, number) for number in range(12)]
        return sum(not torch.equal(image[:, 2], labels.float()) for image, labels, *_ in made)

    assert changed(True) > 0
    assert changed(False) == 0


def test_a_cascade_needs_the_stage_before_of_every_case() -> None:
    source = source_of()
    with pytest.raises(DataError, match="previous has 1 label maps for 3 cases"):
        dataclasses.replace(source, previous=[source.cases[0].segmentation])


def test_cases_stay_as_they_are_on_a_cpu() -> None:
    cases = source_of().cases
    assert keep_on_device(cases, torch.device("cpu")) is cases


def test_cases_leave_a_gpu_the_most_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cases, moved = source_of().cases, RuntimeError("they go to the GPU")

    def move(array: object) -> None:
        raise moved

    needed = sum(int(np.prod(case.shape)) * (4 * case.image.shape[0] + 4) for case in cases)
    monkeypatch.setattr(torch, "from_numpy", move)
    for share in (0.16, 0.5):
        free = int(needed / share)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        assert keep_on_device(cases, torch.device("cuda")) is cases
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * needed, 10 * needed))
    with pytest.raises(RuntimeError, match="they go to the GPU"):
        keep_on_device(cases, torch.device("cuda"))


def test_bending_changes_the_patches_that_bend_and_no_others() -> None:
    plain, bent = source_of(), source_of(elastic=9.0)
    same = []
    for number in range(20):
        first, second = make_batch(plain, 0, number), make_batch(bent, 0, number)
        assert first.case_ids == second.case_ids
        for i in range(3):
            alike = torch.allclose(first.image[i], second.image[i], rtol=1e-4, atol=1e-4)
            same.append(alike)
            assert not alike or (first.segmentation[i] != second.segmentation[i]).sum() <= 1
    assert 0.65 < np.mean(same) < 0.95  # a fifth bends


def partners_in(mixed: batches.Batch, plain: batches.Batch) -> list[int]:
    """Give which sample of a batch each one was mixed with, checking that it was."""
    assert mixed.mixed is not None
    found = []
    for i, image in enumerate(mixed.image):
        made = [mix(plain.image[i], other, mixed.mixed.share) for other in plain.image]
        fitting = [n for n, each in enumerate(made) if torch.equal(each, image)]
        assert len(fitting) == 1
        found += fitting
        assert torch.equal(mixed.mixed.segmentation[i], plain.segmentation[fitting[0]])
    return found


def test_mixed_batches_show_each_sample_and_its_partner_and_have_both_targets() -> None:
    mixing, plain = source_of(mixup=0.4, elastic=9.0), source_of(elastic=9.0)
    shares, partners = set(), set()
    for epoch, number in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 5)):
        mixed, wanted = make_batch(mixing, epoch, number), make_batch(plain, epoch, number)
        assert mixed.mixed is not None
        assert torch.equal(mixed.segmentation, wanted.segmentation)
        assert mixed.case_ids == wanted.case_ids
        shares.add(mixed.mixed.share)
        partners.add(tuple(partners_in(mixed, wanted)))
        assert equal(mixed, make_batch(mixing, epoch, number))
    assert len(shares) == 6
    assert partners == {(1, 2, 0), (2, 0, 1)}
    other = make_batch(source_of(mixup=0.4, seed=1), 0, 0).mixed
    assert other is not None
    assert other.share not in shares


def test_ranks_mix_their_samples_as_one_process_would() -> None:
    whole = source_of(mixup=0.4, elastic=9.0)
    for number in range(6):
        wanted = make_batch(whole, 0, number)
        parts = [
            make_batch(dataclasses.replace(whole, samples=samples), 0, number)
            for samples in (range(2), range(2, 3))
        ]
        assert wanted.mixed is not None
        assert {part.mixed.share for part in parts if part.mixed} == {wanted.mixed.share}
        seconds = [part.mixed.segmentation for part in parts if part.mixed]
        assert [len(part.image) for part in parts] == [len(each) for each in seconds] == [2, 1]
        assert torch.equal(torch.cat([p.segmentation for p in parts]), wanted.segmentation)
        assert torch.equal(torch.cat(seconds), wanted.mixed.segmentation)
        image = torch.cat([part.image for part in parts])
        torch.testing.assert_close(image, wanted.image, rtol=1e-4, atol=1e-4)
        assert set(parts[1].case_ids) <= set(wanted.case_ids)
        assert len(parts[1].case_ids) == 2  # its own, and that of a partner made for it


def test_a_batch_of_one_is_mixed_with_a_sample_that_no_step_sees_otherwise() -> None:
    one = dataclasses.replace(source_of(), batch_size=1)
    mixed = make_batch(dataclasses.replace(one, mixup=0.4), 0, 0)
    plain = make_batch(one, 0, 0)
    assert mixed.mixed is not None
    assert mixed.image.shape == plain.image.shape == (1, 2, 4, 6, 5)
    assert torch.equal(mixed.segmentation, plain.segmentation)
    assert mixed.mixed.segmentation.shape == plain.segmentation.shape
    rest = (mixed.image - mixed.mixed.share * plain.image) / (1 - mixed.mixed.share)
    assert (rest - plain.image).abs().max() > 0.1


def test_the_stage_before_is_mixed_like_the_image_that_it_belongs_to() -> None:
    source = source_of(mixup=0.4)
    cascade = dataclasses.replace(
        source, previous=[each.segmentation for each in source.cases], previous_labels=1
    )
    plain = dataclasses.replace(cascade, mixup=None)
    mixed, wanted = make_batch(cascade, 0, 1), make_batch(plain, 0, 1)
    assert mixed.image.shape == (3, 3, 4, 6, 5)
    assert sorted(partners_in(mixed, wanted)) == [0, 1, 2]
