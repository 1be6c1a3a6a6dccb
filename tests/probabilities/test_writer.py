"""What holds for every kind of probabilities."""

import errno
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from boxed import (
    GEOMETRY,
    HALF_STEP,
    LABELS,
    in_image,
    largest_file,
    made,
    names,
    placed,
    save,
)

from nnseg.axes import Order, inverse_order, permute
from nnseg.errors import DiskFullError, MachineError
from nnseg.labels import Labels
from nnseg.probabilities import chunks, heads, open_probabilities, read_planes, spool, writing
from nnseg.probabilities.spool import Spool
from nnseg.volume import flat_geometry, simple_geometry


@pytest.mark.parametrize("kind", ["npz", "nifti", "chunks"])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_small_parts_hold_what_large_ones_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, order: Order
) -> None:
    _, files = save(tmp_path / "large", kind, placed(order), step=100)
    monkeypatch.setattr(spool, "PIECE_BYTES", 1000)  # one slice of the image
    monkeypatch.setattr(heads, "TURNED_VALUES", 10)
    if kind != "chunks":  # there the size of a chunk is part of the file
        save(tmp_path / "small", kind, placed(order), step=1)
        assert (tmp_path / "small" / files[0].name).read_bytes() == files[0].read_bytes()
        return
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 60)  # less than one head of a plane
    monkeypatch.setattr(chunks, "BLOCK_BYTES", 60)
    found, small = save(tmp_path / "small", kind, placed(order), step=1)
    opened = open_probabilities(small[0])
    np.testing.assert_allclose(opened.planes(0, len(found)), found, rtol=0, atol=HALF_STEP)
    assert opened.array.chunks[:2] == (1, 1)


@pytest.mark.parametrize("kind", ["npz", "nifti", "chunks"])
def test_a_box_may_be_the_whole_image(tmp_path: Path, kind: str) -> None:
    placement = placed((1, 0, 2), box=((0, 7), (0, 11), (0, 13)))
    found, files = save(tmp_path, kind, placement)
    if kind == "chunks":
        np.testing.assert_allclose(read_planes(files[0], 0, 11), found, rtol=0, atol=HALF_STEP)
        return
    array = (
        np.load(files[0])["probabilities"]
        if kind == "npz"
        else nibabel.load(files[0]).get_fdata().T
    )
    np.testing.assert_allclose(array, in_image(found, placement, LABELS), rtol=0, atol=HALF_STEP)


@pytest.mark.parametrize("kind", ["npz", "nifti", "chunks"])
def test_the_same_probabilities_make_the_same_bytes(tmp_path: Path, kind: str) -> None:
    _, files = save(tmp_path / "a", kind, placed())
    _, again = save(tmp_path / "b", kind, placed())
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in again]


def test_a_2d_image_is_one_slice(tmp_path: Path) -> None:
    geometry = flat_geometry((11, 13), (0.8, 0.7))
    placement = placed(box=((0, 1), (1, 10), (0, 8)), shape=(1, 11, 13))
    found, files = save(tmp_path, "npz", placement, geometry=geometry)
    expected = in_image(found, placement, LABELS)
    np.testing.assert_array_equal(np.load(files[0])["probabilities"], expected)
    _, files = save(tmp_path, "nifti", placement, geometry=geometry)
    image = nibabel.load(files[0])
    assert image.shape == (13, 11, 1, 3)
    np.testing.assert_allclose(image.get_fdata().T, expected, rtol=0, atol=HALF_STEP)
    np.testing.assert_allclose(image.header.get_zooms()[:2], (0.7, 0.8))


@pytest.mark.parametrize("kind", ["npz", "nifti", "chunks"])
def test_an_error_between_planes_leaves_nothing_but_what_was_there(
    tmp_path: Path, kind: str
) -> None:
    def fail(folder: Path) -> None:
        with writing(folder / "case.png", kind, LABELS, GEOMETRY) as writer:
            take = writer.begin(placed())
            take(made(placed())[:3])
            raise OSError(errno.EIO, "of somebody else")

    with pytest.raises(OSError, match="of somebody else"):
        fail(tmp_path)
    assert names(tmp_path) == []
    _, files = save(tmp_path, kind, placed())
    before = [path.read_bytes() for path in files]
    with pytest.raises(OSError, match="of somebody else"):
        fail(tmp_path)
    assert names(tmp_path) == sorted(path.name for path in files)
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize("kind", ["npz", "nifti", "chunks"])
def test_a_kill_leaves_nothing_that_the_next_run_does_not_sweep(tmp_path: Path, kind: str) -> None:
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, 'tests')\n"
        "from boxed import GEOMETRY, LABELS, made, placed\n"
        "from nnseg.probabilities import writing\n"
        "with writing(Path(sys.argv[1]) / 'case.nii.gz', sys.argv[2], LABELS, GEOMETRY) as w:\n"
        "    w.begin(placed())(made(placed())[:3])\n"
        "    os._exit(9)\n"
    )
    folder = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), kind],
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 9
    assert [name for name in names(folder) if not name.startswith(".part-")] == []
    _, files = save(folder, kind, placed())
    assert names(folder) == sorted(path.name for path in files)


@pytest.mark.parametrize("kind", ["npz", "nifti", "chunks"])
def test_missing_strange_and_surplus_planes_are_refused(tmp_path: Path, kind: str) -> None:
    found = made(placed())
    with (
        pytest.raises(ValueError, match="only 3 planes of case"),
        writing(tmp_path / "case", kind, LABELS, GEOMETRY) as writer,
    ):
        writer.begin(placed())(found[:3])
    with (
        pytest.raises(ValueError, match="only 0 planes"),
        writing(tmp_path / "case", kind, LABELS, GEOMETRY),
    ):
        pass
    for planes in (found[..., :2], found.swapaxes(1, 2), np.concatenate([found, found])):
        with (
            pytest.raises(ValueError, match="after 0 planes"),
            writing(tmp_path / "case", kind, LABELS, GEOMETRY) as writer,
        ):
            writer.begin(placed())(planes)
    other = simple_geometry((7, 13, 11), (1.0, 1.0, 1.0))
    with (
        pytest.raises(ValueError, match="is not"),
        writing(tmp_path / "case", kind, LABELS, other) as writer,
    ):
        writer.begin(placed())
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["npz", "nifti", "chunks"])
@pytest.mark.parametrize("size", [0, 500, 3000])
def test_a_write_that_fails_is_our_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, size: int
) -> None:
    placement = placed(box=((0, 7), (0, 11), (0, 13)))
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2 * 3 * 11 * 13)  # one plane
    save(tmp_path / "room", kind, placement)
    with (
        pytest.raises(MachineError, match=r"case.*: cannot be written \("),
        largest_file(size),
    ):
        save(tmp_path, kind, placement)
    shutil.rmtree(tmp_path / "room")
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["npz", "nifti"])
def test_a_file_that_fails_while_it_is_packed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    slices = Spool.slices
    left = iter(range(2))

    def fail_soon(*args: Any) -> Any:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return slices(*args)

    monkeypatch.setattr(Spool, "slices", fail_soon)
    with pytest.raises(DiskFullError, match="the disk is full"):
        save(tmp_path, kind, placed())
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["npz", "nifti", "chunks"])
def test_a_disk_without_room_is_told_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    free = 4 * 9 * 8 * LABELS.heads * {"npz": 4, "nifti": 2, "chunks": 0}[kind]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    if kind != "chunks":
        save(tmp_path / "enough", kind, placed())
        free -= 1
        with pytest.raises(DiskFullError, match=r"case.*takes .* MiB .*make room"):
            save(tmp_path / "little", kind, placed())
    else:
        with pytest.raises(DiskFullError, match="the disk is full"), largest_file(500):
            save(tmp_path / "little", kind, placed())
    assert names(tmp_path / "little") == []


@pytest.mark.parametrize("kind", ["npz", "nifti", "chunks"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_memory_grows_neither_with_planes_nor_with_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, order: Order
) -> None:
    for module, name in (
        (spool, "PIECE_BYTES"),
        (heads, "TURNED_VALUES"),
        (chunks, "CHUNK_BYTES"),
    ):
        monkeypatch.setattr(module, name, 2**16)
    count, side = 20, 24
    labels = Labels(labels={"background": 0} | {f"label {n}": n for n in range(1, count)})
    shape = permute((200, side, side), inverse_order(order))
    placement = placed(order, tuple((0, n) for n in shape), shape)
    planes = np.full((10, side, side, count), 1 / count, dtype=np.float32)
    save(tmp_path / "first", kind, placed())  # what is imported does not count
    tracemalloc.start()
    try:
        with writing(
            tmp_path / "case", kind, labels, simple_geometry(shape, (1.0, 1.0, 1.0))
        ) as writer:
            take = writer.begin(placement)
            for _ in range(20):
                take(planes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 4 * 200 * side * side * count > 9e6  # all of it
    assert peak < 2e6
