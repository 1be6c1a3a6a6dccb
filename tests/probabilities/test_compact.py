"""Compact probabilities: what is lost of logits, what is not, and what is refused."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boxed import GEOMETRY, LABELS, REGIONS, names, placed
from scipy.ndimage import gaussian_filter

from nnseg import record
from nnseg.axes import Planes
from nnseg.errors import DataError, DiskFullError, MissingError
from nnseg.folders import compact_files
from nnseg.labels import Labels
from nnseg.plan import Resampling
from nnseg.probabilities import compact, open_compact, writing, writing_compact
from nnseg.probabilities.compact import (
    LAST,
    SURE,
    SURE_VALUE,
    StoredCompact,
    _logits_of,
    to_steps,
)

SHAPE = (5, 9, 7)  # of the network's grid
BOTH = pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])


def smooth(labels: Labels, shape: Sequence[int] = SHAPE, scale: float = 12) -> Planes:
    """Logits that change slowly, as a network's do."""
    rng = np.random.default_rng(7)
    found = gaussian_filter(rng.normal(size=(*shape, labels.heads)), (1, 1, 1, 0))
    return (scale * found / found.std()).astype(np.float32)


def save(folder: Path, logits: Planes, labels: Labels = LABELS, step: int = 2, **how: Any) -> Path:
    """Write logits some planes at a time, as of a grid of their shape."""
    label_map = folder / "case.nii.gz"
    placement = replace(placed(), shape_resampled=logits.shape[:3])
    with writing_compact(label_map, labels, GEOMETRY, placement, **how) as take:
        for start in range(0, len(logits), step):
            planes = logits[start : start + step].copy()
            take(planes)
            planes[:] = 7  # a caller may use its array again
    return label_map


def decided(logits: Planes, labels: Labels) -> np.ndarray:
    return logits > 0 if labels.has_regions else logits.argmax(axis=-1)


@BOTH
@pytest.mark.parametrize("step", [1, 2, 5])
def test_probabilities_come_back_within_a_step(tmp_path: Path, labels: Labels, step: int) -> None:
    logits = smooth(labels)
    opened = open_compact(save(tmp_path, logits, labels, step))
    assert names(tmp_path) == ["case.probabilities.b2nd", "case.probabilities.json"]
    assert opened.stored.geometry == GEOMETRY
    assert opened.stored.labels == labels
    found = opened.planes(0, 5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, labels.probabilities(logits), rtol=0, atol=2e-3)
    np.testing.assert_array_equal(opened.planes(1, 4), found[1:4])
    np.testing.assert_array_equal(np.concatenate(list(opened.runs())), opened.log_odds(0, 5))
    assert opened.planes(2, 2).shape == (0, 9, 7, labels.heads)
    with pytest.raises(ValueError, match="planes 0 to 6 of 5"):
        opened.planes(0, 6)


@BOTH
@pytest.mark.parametrize("scale", [1e-4, 1.0, 60.0])
def test_what_is_decided_is_kept_exactly(tmp_path: Path, labels: Labels, scale: float) -> None:
    logits = smooth(labels, scale=scale)
    logits[0, :2] = 0  # ties, which fall to the first head, and to no region
    back = open_compact(save(tmp_path, logits, labels)).log_odds(0, 5)
    np.testing.assert_array_equal(decided(back, labels), decided(logits, labels))


def test_steps_are_finest_at_a_tie_and_grow_with_the_distance() -> None:
    apart = np.linspace(0.01, 60, 4000, dtype=np.float32)
    logits = np.stack([np.zeros_like(apart), -apart], axis=-1)[None, None]
    steps = to_steps(logits, regions=False)
    assert (steps[..., 0] == 0).all()
    back = -compact._values(False)[steps[0, 0, :, 1]]
    assert (np.abs(back - apart) <= np.maximum(0.25 / 96, apart / 150)).all()
    near = apart < 0.3
    assert np.abs(back - apart)[near].max() < 0.003 < np.abs(back - apart)[~near].max()


@BOTH
def test_what_is_sure_among_sure_neighbours_is_one_value(tmp_path: Path, labels: Labels) -> None:
    logits = np.full((6, 8, 7, labels.heads), -20, np.float32)
    logits[..., 0] = 20
    logits[3, 4, 5, 1] = 21  # a single voxel, of which its neighbours are not sure
    linear = {"resampling": Resampling(order=1, order_along=1)}
    back = open_compact(save(tmp_path, logits, labels, 1, **linear)).log_odds(0, 6)
    far = np.ones((6, 8, 7), np.bool_)
    far[2:5, 3:6, 4:7] = False
    values = [SURE_VALUE, -SURE_VALUE] if labels.has_regions else [0, -SURE_VALUE]
    np.testing.assert_array_equal(back[far][:, :2], np.broadcast_to(values, (far.sum(), 2)))
    around = ~far
    around[3, 4, 5] = False
    exact = [20, -20] if labels.has_regions else [0, -40]
    head = 1
    np.testing.assert_allclose(back[around][:, head], exact[head], rtol=0.006)


def test_neighbours_count_along_axes_that_are_interpolated_only(tmp_path: Path) -> None:
    logits = np.zeros((6, 8, 7, 3), np.float32)
    logits[..., 1:] = -20
    logits[3, 4, 5] = (-20, 0, -20)
    rule = Resampling(order=1, order_along=0)
    apart = open_compact(save(tmp_path, logits, resampling=rule, axis_apart=0)).log_odds(0, 6)
    assert apart[2, 4, 5, 1] == -SURE_VALUE  # the nearest slice is taken
    assert apart[3, 4, 4, 1] == pytest.approx(-20, rel=0.006)
    placement = replace(placed(), shape_resampled=placed().shape_cropped)
    z, y, x = placement.shape_cropped
    same = np.zeros((z, y, x, 3), np.float32)
    same[..., 1:] = -20
    same[2, 3, 4] = (-20, 0, -20)
    with writing_compact(tmp_path / "same.nii.gz", LABELS, GEOMETRY, placement) as take:
        take(same)
    back = open_compact(tmp_path / "same.nii.gz").log_odds(0, z)
    np.testing.assert_array_equal(np.unique(back), [-SURE_VALUE, 0])


def test_a_label_that_is_not_sure_enough_is_kept_as_it_is(tmp_path: Path) -> None:
    logits = np.zeros((4, 5, 6, 3), np.float32)
    logits[..., 1], logits[..., 2] = -SURE + 0.2, -SURE - 0.2
    back = open_compact(save(tmp_path, logits)).log_odds(0, 4)
    np.testing.assert_allclose(back[..., 1], -SURE + 0.2, rtol=0.006)
    np.testing.assert_array_equal(back[..., 2], -SURE_VALUE)


def test_most_of_an_image_takes_next_to_no_room(tmp_path: Path) -> None:
    logits = np.zeros((40, 50, 60, 3), np.float32)
    logits[..., 0] = 30 + np.random.default_rng(1).normal(size=(40, 50, 60))
    array, _ = compact_files(save(tmp_path, logits))
    assert array.stat().st_size < 2000


@BOTH
def test_the_same_logits_give_the_same_bytes(tmp_path: Path, labels: Labels) -> None:
    logits = smooth(labels)
    first = [path.read_bytes() for path in compact_files(save(tmp_path / "a", logits, labels))]
    again = save(tmp_path / "b", logits, labels, step=1)
    assert [path.read_bytes() for path in compact_files(again)] == first


@BOTH
def test_probabilities_on_the_files_grid_can_be_kept_so(tmp_path: Path, labels: Labels) -> None:
    placement = placed((1, 2, 0))
    z, y, x = placement.shape_cropped
    found = labels.probabilities(smooth(labels, (z, y, x)))
    with writing(tmp_path / "case.nii.gz", "compact", labels, GEOMETRY) as writer:
        writer.begin(placement)(found)
    opened = open_compact(tmp_path / "case.nii.gz")
    assert opened.stored.placement.shape_resampled == placement.shape_cropped
    np.testing.assert_allclose(opened.planes(0, z), found, rtol=0, atol=2e-3)


@BOTH
def test_logits_of_probabilities_are_finite_whatever_was_rounded_to_0(labels: Labels) -> None:
    likely = np.array([[1, 0, 0.25][: labels.heads]], np.float32)
    back = _logits_of(likely, labels.has_regions)
    assert np.isfinite(back).all()
    if labels.has_regions:
        assert back[0, 0] > 16 > -16 > back[0, 1]


def test_planes_that_lack_or_do_not_fit_leave_what_was_there(tmp_path: Path) -> None:
    label_map = save(tmp_path, smooth(LABELS))
    before = [path.read_bytes() for path in compact_files(label_map)]
    placement = replace(placed(), shape_resampled=SHAPE)
    for planes, message in (
        (np.zeros((4, 9, 7, 3), np.float32), "only 4 planes"),
        (np.zeros((6, 9, 7, 3), np.float32), "after 0 planes"),
        (np.zeros((5, 7, 9, 3), np.float32), "after 0 planes"),
    ):
        with (
            pytest.raises(ValueError, match=message),
            writing_compact(label_map, LABELS, GEOMETRY, placement) as take,
        ):
            take(planes)
    assert names(tmp_path) == ["case.probabilities.b2nd", "case.probabilities.json"]
    assert [path.read_bytes() for path in compact_files(label_map)] == before


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def fail(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(DiskFullError, match="the disk is full"):
        save(tmp_path, smooth(LABELS))
    assert names(tmp_path) == []


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_a_flipped_or_lost_byte_is_found(tmp_path: Path, which: int, place: float) -> None:
    label_map = save(tmp_path, smooth(LABELS))
    path = compact_files(label_map)[which]
    whole = path.read_bytes()
    at = int(place * len(whole))
    for damaged in (whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], whole[:at]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"probabilities\.(b2nd|json): "):
            open_compact(label_map)
    path.unlink()
    with pytest.raises(MissingError, match="FOLD --val` writes it"):
        open_compact(label_map)


@pytest.mark.parametrize(
    "changes", [{"near": 0.5}, {"last": 255}, {"sure_value": 9.0}, {"heads": ("a", "b", "c")}]
)
def test_a_record_of_another_meaning_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = compact_files(save(tmp_path, smooth(LABELS)))[1]
    stored = record.load_sealed(StoredCompact, path)
    with pytest.raises(DataError, match=f"{next(iter(changes))} is .* and this version reads"):
        replace(stored, **changes)
    assert stored.last == LAST
