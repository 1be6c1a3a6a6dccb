"""The format alone, and reading it; test_writer.py has what holds for every kind."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
from boxed import GEOMETRY, HALF_STEP, LABELS, ORDERS, REGIONS, names, placed, save

from nnseg import record
from nnseg.axes import Order
from nnseg.commit import sha256
from nnseg.errors import DataError, DiskFullError, MachineError, MissingError
from nnseg.labels import Labels
from nnseg.probabilities import chunks, open_probabilities, read_planes
from nnseg.probabilities.chunks import StoredProbabilities
from nnseg.probabilities.frames import GrowingArray


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
@pytest.mark.parametrize("order", ORDERS)
def test_chunks_hold_the_rounded_box(tmp_path: Path, order: Order, labels: Labels) -> None:
    placement = placed(order)
    found, files = save(tmp_path, "chunks", placement, labels)
    assert names(tmp_path) == ["case_probabilities.b2nd", "case_probabilities.json"]
    opened = open_probabilities(files[0])
    assert opened.stored.placement == placement
    assert opened.stored.geometry == GEOMETRY
    assert opened.stored.heads == labels.head_names
    for first, stop in ((0, len(found)), (1, 3), (2, 2)):
        planes = read_planes(files[0], first, stop)
        assert planes.dtype == np.float32
        assert planes.flags.c_contiguous
        np.testing.assert_allclose(planes, found[first:stop], rtol=0, atol=HALF_STEP)
        np.testing.assert_array_equal(planes, opened.planes(first, stop))
    with pytest.raises(ValueError, match="planes 0 to"):
        opened.planes(0, len(found) + 1)


def test_a_slab_of_chunks_is_read_without_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2 * 2 * 3 * 9 * 8)  # two planes
    found, files = save(tmp_path, "chunks", placed(), step=3)
    opened = open_probabilities(files[0])
    assert opened.array.chunks == (2, 3, 9, 8)
    np.testing.assert_allclose(opened.planes(2, 4), found[2:4], rtol=0, atol=HALF_STEP)


def test_chunks_without_room_for_their_record_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, files = save(tmp_path / "old", "chunks", placed())
    before = [path.read_bytes() for path in files]

    def fail(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(DiskFullError, match="the disk is full"):
        save(tmp_path / "new", "chunks", placed())
    assert names(tmp_path / "new") == []
    with pytest.raises(DiskFullError, match="the disk is full"):
        save(tmp_path / "old", "chunks", placed((1, 0, 2)))
    assert [path.read_bytes() for path in files] == before


def test_chunks_that_the_disk_has_not_kept_are_found_before_they_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2 * 3 * 9 * 8)  # one plane
    flush = GrowingArray._flush

    def lose_one(self: Any) -> None:
        self._done == 2 and self._array.__setitem__(slice(1, 2), 0)
        flush(self)

    monkeypatch.setattr(GrowingArray, "_flush", lose_one)
    with pytest.raises(MachineError, match="cannot be written"):
        save(tmp_path, "chunks", placed())
    assert names(tmp_path) == []


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("which", [0, 1])
def test_a_flipped_or_lost_byte_in_chunks_is_found(
    tmp_path: Path, which: int, place: float
) -> None:
    _, files = save(tmp_path, "chunks", placed())
    whole = files[which].read_bytes()
    at = int(place * len(whole))
    changed = bytes([whole[at] ^ 1])
    for damaged in (whole[:at] + changed + whole[at + 1 :], whole[:at], whole + b"\n"):
        files[which].write_bytes(damaged)
        with pytest.raises(DataError, match=r"case_probabilities\.(b2nd|json): .*; |restore it"):
            read_planes(files[0], 0, 1)
    files[which].write_bytes(whole)
    read_planes(files[0], 0, 1)


@pytest.mark.parametrize("which", [0, 1])
def test_missing_chunks_name_the_command_that_makes_them(tmp_path: Path, which: int) -> None:
    _, files = save(tmp_path, "chunks", placed())
    files[which].unlink()
    with pytest.raises(MissingError, match="--save_probabilities chunks` writes it"):
        read_planes(files[0], 0, 1)


def forge(path: Path, array: Any) -> None:
    """Put another array in the place of that of `path`, and a record that proves it."""
    path.unlink()
    array.save(str(path), contiguous=True)
    stored = replace(open_record(path), array_sha256=sha256(path))
    record.save_sealed(stored, path.with_suffix(".json"))


def open_record(path: Path) -> StoredProbabilities:
    return record.load_sealed(StoredProbabilities, path.with_suffix(".json"))


def test_proven_chunks_of_another_shape_or_type_are_refused(tmp_path: Path) -> None:
    _, (path, _) = save(tmp_path, "chunks", placed())
    forge(path, blosc2.zeros((4, 3, 9, 8), dtype=np.uint16))
    assert read_planes(path, 0, 4).max() == 0
    forge(path, blosc2.zeros((4, 3, 8, 9), dtype=np.uint16))
    with pytest.raises(DataError, match=r"has the shape \(4, 3, 8, 9\), its record says"):
        read_planes(path, 0, 1)
    forge(path, blosc2.zeros((4, 3, 9, 8), dtype=np.float32))
    with pytest.raises(DataError, match="holds float32"):
        read_planes(path, 0, 1)


def test_a_proven_frame_that_may_compute_is_not_opened(tmp_path: Path) -> None:
    _, (path, _) = save(tmp_path, "chunks", placed())
    array = blosc2.zeros((4, 3, 9, 8), dtype=np.uint16)
    array.schunk.vlmeta["anything"] = 1
    forge(path, array)
    with pytest.raises(DataError, match="something else than a plain array"):
        read_planes(path, 0, 1)


@pytest.mark.parametrize(
    "changes",
    [{"axes": ("z", "y", "x", "head")}, {"heads": ("a", "b", "c")}, {"steps": 255}, {"format": 2}],
)
def test_a_record_of_another_meaning_is_refused(tmp_path: Path, changes: Any) -> None:
    _, (path, _) = save(tmp_path, "chunks", placed())
    with pytest.raises(DataError, match=f"{next(iter(changes))} is .* and this version reads"):
        replace(open_record(path), **changes)
