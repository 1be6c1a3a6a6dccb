import numpy as np
import pytest

from nnseg.axes import Planes, Segmentation
from nnseg.labels import Labels
from nnseg.scores.confidence import MARGIN, Observer

PLAIN = Labels(labels={"background": 0, "liver": 7, "kidney": 20})
REGIONS = Labels(
    labels={"background": 0, "whole": (1, 2), "core": 2, "ignore": 3}, regions_class_order=(1, 2)
)
SHAPE = (20, 30, 40)


def reference(values: int = 3) -> Segmentation:
    """Label positions in the middle of an image."""
    rng = np.random.default_rng(0)
    found = np.zeros(SHAPE, np.uint8)
    found[5:15, 10:20, 15:30] = rng.integers(0, values, (10, 10, 15))
    return found


def logits_for(positions: Segmentation, heads: int, scale: float, wrong: float = 0.0) -> Planes:
    """Logits of `scale` for what is right, but for a share of voxels that are taken for others."""
    rng = np.random.default_rng(1)
    shifted = (positions + rng.integers(1, heads, SHAPE)) % heads
    seen = np.where(rng.random(SHAPE) < wrong, shifted, positions)
    return (scale * np.eye(heads)[seen]).astype(np.float32)


def watch(observer: Observer, positions: Segmentation | None, logits: Planes) -> None:
    look = observer.watch(positions)
    for start in range(0, len(logits), 3):
        look(logits[start : start + 3])


def test_a_model_that_is_too_sure_gets_a_temperature_above_1() -> None:
    observer = Observer(PLAIN, 2)
    for _ in range(2):
        watch(observer, reference(), logits_for(reference(), 3, 8.0, wrong=0.2))
        observer.note(0.8)
    found = observer.result().calibration
    assert found is not None
    # Of voxels of which 80 % are right, logits of log(0.8 / 0.1) are true.
    assert found.temperature == pytest.approx(8 / np.log(8), rel=0.05)
    assert found.ece_before == pytest.approx(0.2, abs=0.01)
    assert found.ece_after < 0.01
    assert found.voxels == 2 * 10_000


def test_only_voxels_near_the_labelled_ones_count() -> None:
    far = np.ones(SHAPE, bool)
    far[5 - MARGIN if MARGIN < 5 else 0 : 15 + MARGIN, 2:28, 7:38] = False
    logits = logits_for(reference(), 3, 5.0)
    logits[far] = [0, 5, 0]  # wrong
    observer = Observer(PLAIN, 1)
    watch(observer, reference(), logits)
    observer.note(1.0)
    found = observer.result().calibration
    assert found is not None
    assert far.any()
    assert found.temperature < 0.2  # nothing wrong was seen
    assert found.nll_before < 0.02


def test_voxels_that_nobody_annotated_do_not_count() -> None:
    positions = reference(4)  # 3 is ignored
    heads = np.stack([positions > 0, positions == 2], axis=-1)
    logits = np.where(heads, 4.0, -4.0).astype(np.float32)
    logits[positions == 3] = 0
    observer = Observer(REGIONS, 1)
    watch(observer, positions, logits)
    observer.note(1.0)
    found = observer.result().calibration
    assert found is not None
    assert found.ece_before == pytest.approx(1 - 1 / (1 + np.exp(-4)), rel=0.01)


def test_cases_share_what_is_kept_of_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnseg.scores.confidence.MOST_VOXELS", 300)
    observer = Observer(PLAIN, 3)
    for _ in range(3):
        watch(observer, reference(), logits_for(reference(), 3, 2.0, wrong=0.1))
        observer.note(None)
    found = observer.result().calibration
    assert found is not None
    assert found.voxels == 300


def test_the_expected_dice_is_compared_with_the_true_one() -> None:
    observer = Observer(PLAIN, 4)
    for scale, dice in ((1.0, 0.2), (2.0, 0.5), (3.0, 0.7), (6.0, 0.9)):
        watch(observer, None, logits_for(reference(), 3, scale))
        observer.note(dice)
    found = observer.result()
    assert found.calibration is None
    assert found.quality.n == 4
    assert found.quality.spearman == pytest.approx(1)
    assert 0.9 < float(found.quality.pearson or 0) < 1


def test_a_case_without_labels_is_looked_at_everywhere() -> None:
    observer = Observer(PLAIN, 1)
    nothing = np.zeros(SHAPE, np.uint8)
    watch(observer, nothing, logits_for(nothing, 3, 3.0, wrong=0.1))
    observer.note(None)
    found = observer.result().calibration
    assert found is not None
    assert found.voxels == 10_000
