"""The format alone; test_writer.py has what holds for every kind."""

import io
import math
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boxed import LABELS, ORDERS, REGIONS, SHAPE, in_image, names, placed, save

from nnseg.axes import Order
from nnseg.errors import DataError, MissingError
from nnseg.labels import Labels
from nnseg.probabilities.npz import OpenNpz, open_npz, packed_bytes
from nnseg.volume import simple_geometry

GRID = (4, 5, 6)


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
@pytest.mark.parametrize("order", ORDERS)
def test_an_npz_is_what_nnunet_writes(tmp_path: Path, order: Order, labels: Labels) -> None:
    placement = placed(order)
    found, files = save(tmp_path, "npz", placement, labels)
    assert names(tmp_path) == ["case.npz"] == [path.name for path in files]
    with np.load(files[0]) as stored:
        assert stored.files == ["probabilities"]
        array = stored["probabilities"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, in_image(found, placement, labels))


def test_zipfile_finds_no_fault_in_an_npz(tmp_path: Path) -> None:
    _, files = save(tmp_path, "npz", placed())
    with zipfile.ZipFile(files[0]) as archive:
        assert archive.testzip() is None
        (entry,) = archive.infolist()
        assert entry.compress_type == zipfile.ZIP_DEFLATED
        assert entry.file_size == 128 + 4 * 3 * math.prod(SHAPE)


def header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    """How a .npy file begins that says it holds such an array."""
    text = io.BytesIO()
    said = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(text, said)
    return text.getvalue()


def packed(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("probabilities.npy", data)
    return path


def opened(path: Path) -> OpenNpz:
    return open_npz(path, LABELS, simple_geometry(GRID, (2.0, 1.0, 1.5)))


@pytest.mark.parametrize("kind", ["<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npz_of_any_precision_and_order_is_read(tmp_path: Path, kind: str, order: Any) -> None:
    wanted = np.random.default_rng(1).random((3, *GRID)).astype(kind)
    np.savez_compressed(tmp_path / "x.npz", probabilities=np.asarray(wanted, order=order))
    found = opened(tmp_path / "x.npz")
    assert found.array.dtype == np.float32
    np.testing.assert_array_equal(found.array, wanted.astype(np.float32))
    assert packed_bytes(tmp_path / "x.npz") == 128 + wanted.nbytes


def test_slices_come_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(1).random((3, *GRID)).astype(np.float32)
    np.savez(tmp_path / "x.npz", probabilities=array)
    monkeypatch.setattr("nnseg.probabilities.npz.RUN_BYTES", 3 * 4 * 3 * 5 * 6)
    runs = list(opened(tmp_path / "x.npz").runs())
    assert [run.shape for run in runs] == [(3, 5, 6, 3), (1, 5, 6, 3)]
    np.testing.assert_array_equal(np.concatenate(runs), np.moveaxis(array, 0, -1))


def test_a_small_file_that_unpacks_to_much_is_refused_unread(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.npz", header((100, 10**6), "<f8") + bytes(5 * 10**7))
    longer = packed(tmp_path / "y.npz", header((3, *GRID)) + bytes(5 * 10**7))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"float64 of the shape \(100, 1000000\)"):
        opened(path)
    with pytest.raises(DataError, match="more than the header says"):
        opened(longer)
    assert tracemalloc.get_traced_memory()[1] < 5 * 10**6
    tracemalloc.stop()


def encrypted(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.rfind(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)


def of_unknown_method(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8] = data[data.rfind(b"PK\1\2") + 10] = 99
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def of_another_checksum(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = data.rfind(b"PK\1\2")
    data[place + 16] ^= 1
    data[14] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [encrypted, of_unknown_method, cut_off, of_another_checksum])
def test_an_unreadable_file_is_an_error_of_its_case(tmp_path: Path, harm: Any) -> None:
    path = packed(tmp_path / "x.npz", header((3, *GRID)) + bytes(4 * 3 * 120))
    opened(path)
    harm(path)
    with pytest.raises(DataError, match="or is damaged"):
        opened(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header((10**6, 10**7)) + bytes(99), r"shape \(1000000, 10000000\)"),
        (header((3, *GRID)) + bytes(99), "or is damaged"),
        (header((3, *GRID), "<i4") + bytes(4 * 3 * 120), "holds int32"),
        (header((3, *GRID)) + b"\xff" * (4 * 3 * 120), "no finite numbers"),
        (header((3, *GRID), "<f8") + np.full(360, 1e300).tobytes(), "no finite numbers"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(99), "or is damaged"),
        (b"no array", "or is damaged"),
    ],
)
def test_what_is_no_array_of_the_grid_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        opened(packed(tmp_path / "x.npz", data))


def test_what_is_not_there_or_no_zip_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="does not exist"):
        opened(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="or is damaged"):
        opened(tmp_path / "x.npz")
    assert packed_bytes(tmp_path / "x.npz") == 0
