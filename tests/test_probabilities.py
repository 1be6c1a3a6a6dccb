import errno
import itertools
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import blosc2
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnseg import probabilities, record
from nnseg.axes import Box, Order, Planes, box_slices, permute
from nnseg.commit import sha256
from nnseg.errors import DataError, DiskFullError, MachineError, MissingError, PlanError
from nnseg.labels import Labels
from nnseg.preprocess import Placement
from nnseg.probabilities import (
    STEPS,
    head_names,
    open_probabilities,
    probability_files,
    quantise,
    read_planes,
    writing,
)
from nnseg.volume import Geometry, flat_geometry, read_array, simple_geometry

SHAPE = (7, 11, 13)  # image order
BOX = ((2, 6), (1, 10), (0, 8))  # image order
ORDERS = tuple(itertools.permutations(range(3)))
LABELS = Labels(labels={"background": 0, "edema": 2, "core": 1, "ignore": 3})
REGIONS = Labels(
    labels={"background": 0, "whole": (1, 2), "core": (2,)}, regions_class_order=(1, 2)
)
GEOMETRY = simple_geometry(SHAPE, (3.0, 0.8, 0.7))
HALF_STEP = 1 / (2 * STEPS)


def placed(order: Order = (0, 1, 2), box: Box = BOX, shape: Any = SHAPE) -> Placement:
    return Placement(
        order=order,
        shape=shape,
        spacing=(3.0, 0.8, 0.7),
        box=permute(box, order),
        shape_resampled=(5, 5, 5),
    )


def made(placement: Placement, labels: Labels = LABELS) -> Planes:
    """Probabilities of the box, plan order; some are 0 and 1."""
    rng = np.random.default_rng(3)
    logits = rng.normal(scale=9, size=(*placement.shape_cropped, labels.heads))
    found = labels.probabilities(logits.astype(np.float32))
    found[0, 0, 0] = [1, *[0] * (labels.heads - 1)]
    return found


def in_image(found: Planes, placement: Placement, labels: Labels) -> np.ndarray:
    """What a file that holds the whole image should hold: (head, z, y, x), image order."""
    whole = np.zeros((labels.heads, *placement.shape), np.float32)
    if not labels.has_regions:
        whole[0] = 1
    for head, volume in enumerate(whole):
        volume.transpose(placement.order)[box_slices(placement.box)] = found[..., head]
    return whole


def save(
    folder: Path,
    kind: str,
    placement: Placement,
    labels: Labels = LABELS,
    geometry: Geometry = GEOMETRY,
    step: int = 3,
) -> tuple[Planes, tuple[Path, ...]]:
    found = made(placement, labels)
    with writing(folder / "case.nii.gz", kind, labels, geometry) as writer:
        take = writer.begin(placement)
        for start in range(0, len(found), step):
            planes = found[start : start + step].copy()
            take(planes)
            planes[:] = 7  # a caller may use its array again
    return found, writer.files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file become larger, as on a disk that gets full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


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


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
@pytest.mark.parametrize("order", ORDERS)
def test_a_nifti_file_holds_the_rounded_image(tmp_path: Path, order: Order, labels: Labels) -> None:
    placement = placed(order)
    found, files = save(tmp_path, "nifti", placement, labels)
    assert names(tmp_path) == ["case_probabilities.nii.gz"] == [path.name for path in files]
    image = nibabel.load(files[0])
    assert image.shape == (13, 11, 7, labels.heads)
    array = image.get_fdata().transpose(3, 2, 1, 0)
    np.testing.assert_allclose(array, in_image(found, placement, labels), rtol=0, atol=HALF_STEP)
    assert array.min() == 0
    assert array.max() == 1


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
@pytest.mark.parametrize("order", ORDERS)
def test_chunks_hold_the_rounded_box(tmp_path: Path, order: Order, labels: Labels) -> None:
    placement = placed(order)
    found, files = save(tmp_path, "chunks", placement, labels)
    assert names(tmp_path) == ["case_probabilities.b2nd", "case_probabilities.json"]
    opened = open_probabilities(files[0])
    assert opened.stored.placement == placement
    assert opened.stored.geometry == GEOMETRY
    assert opened.stored.heads == head_names(labels)
    for first, stop in ((0, len(found)), (1, 3), (2, 2)):
        planes = read_planes(files[0], first, stop)
        assert planes.dtype == np.float32
        assert planes.flags.c_contiguous
        np.testing.assert_allclose(planes, found[first:stop], rtol=0, atol=HALF_STEP)
        np.testing.assert_array_equal(planes, opened.planes(first, stop))
    with pytest.raises(ValueError, match="planes 0 to"):
        opened.planes(0, len(found) + 1)


@pytest.mark.parametrize("kind", ["npz", "nifti", "chunks"])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_small_parts_hold_what_large_ones_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, order: Order
) -> None:
    _, files = save(tmp_path / "large", kind, placed(order), step=100)
    monkeypatch.setattr(probabilities, "PIECE_BYTES", 1000)  # one slice of the image
    monkeypatch.setattr(probabilities, "TURNED_VALUES", 10)
    if kind != "chunks":  # there the size of a chunk is part of the file
        save(tmp_path / "small", kind, placed(order), step=1)
        assert (tmp_path / "small" / files[0].name).read_bytes() == files[0].read_bytes()
        return
    monkeypatch.setattr(probabilities, "CHUNK_BYTES", 60)  # less than one head of a plane
    monkeypatch.setattr(probabilities, "BLOCK_BYTES", 60)
    found, small = save(tmp_path / "small", kind, placed(order), step=1)
    opened = open_probabilities(small[0])
    np.testing.assert_allclose(opened.planes(0, len(found)), found, rtol=0, atol=HALF_STEP)
    assert opened.array.chunks[:2] == (1, 1)


def test_a_slab_of_chunks_is_read_without_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probabilities, "CHUNK_BYTES", 2 * 2 * 3 * 9 * 8)  # two planes
    found, files = save(tmp_path, "chunks", placed(), step=3)
    opened = open_probabilities(files[0])
    assert opened.array.chunks == (2, 3, 9, 8)
    np.testing.assert_allclose(opened.planes(2, 4), found[2:4], rtol=0, atol=HALF_STEP)


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


def test_zipfile_finds_no_fault_in_an_npz(tmp_path: Path) -> None:
    _, files = save(tmp_path, "npz", placed())
    with zipfile.ZipFile(files[0]) as archive:
        assert archive.testzip() is None
        (entry,) = archive.infolist()
        assert entry.compress_type == zipfile.ZIP_DEFLATED
        assert entry.file_size == 128 + 4 * 3 * math.prod(SHAPE)


def test_a_nifti_file_lies_on_the_grid_of_the_image(tmp_path: Path) -> None:
    affine = np.array([[0, -0.8, 0.1, 5], [0.7, 0, 0, -9], [0, 0.1, 3, 2], [0, 0, 0, 1.0]])
    source = nibabel.Nifti1Image(np.zeros(SHAPE[::-1], np.int16), affine)
    source.set_qform(np.diag([0.7, 0.8, 3, 1]), code=2)
    source.set_sform(affine, code=1)
    source.header.set_xyzt_units("mm", "sec")
    nibabel.save(source, tmp_path / "image.nii.gz")
    _, geometry = read_array(tmp_path / "image.nii.gz")
    _, files = save(tmp_path, "nifti", placed(), geometry=geometry)
    header = nibabel.load(files[0]).header
    for field in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"):
        np.testing.assert_array_equal(header[field], source.header[field])
    for field in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
        np.testing.assert_array_equal(header[field], source.header[field])
    np.testing.assert_array_equal(header["pixdim"][:5], [*source.header["pixdim"][:4], 1])
    assert header.get_data_dtype() == np.uint16
    assert (header["cal_min"], header["cal_max"]) == (0, 1)


def test_a_nifti_file_names_its_heads_and_is_read_by_others(tmp_path: Path) -> None:
    found, files = save(tmp_path, "nifti", placed())
    header = nibabel.load(files[0]).header
    (comment,) = header.extensions
    text = comment.get_content()
    text = text.decode() if isinstance(text, bytes) else text
    assert json.loads(text.rstrip("\0")) == {"heads": ["background", "core", "edema"]}
    image = sitk.ReadImage(str(files[0]))
    assert image.GetSize() == (13, 11, 7, 3)
    array = sitk.GetArrayFromImage(image)
    np.testing.assert_allclose(array, in_image(found, placed(), LABELS), rtol=0, atol=2e-4)


def test_a_side_too_long_for_nifti_1_makes_nifti_2(tmp_path: Path) -> None:
    shape, box = (1, 2, 32768), ((0, 1), (0, 2), (5, 9))
    geometry = simple_geometry(shape, (3.0, 0.8, 0.7))
    placement = placed((1, 0, 2), box, shape)
    found, files = save(tmp_path, "nifti", placement, geometry=geometry)
    image = nibabel.load(files[0])
    assert isinstance(image, nibabel.Nifti2Image)
    expected = in_image(found, placement, LABELS)
    np.testing.assert_allclose(image.get_fdata().T, expected, rtol=0, atol=HALF_STEP)


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


def test_quantising_is_off_by_half_a_step_at_most() -> None:
    values = np.linspace(0, 1, 100_003, dtype=np.float32)
    steps = quantise(values)
    assert np.abs(steps / STEPS - values).max() <= HALF_STEP
    assert np.unique(steps).size == STEPS + 1
    assert quantise(np.float32([1.0000001])) == STEPS  # softmax rounds


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
        "from test_probabilities import *\n"
        "with writing(Path(sys.argv[1]) / 'case.nii.gz', sys.argv[2], LABELS, GEOMETRY) as w:\n"
        "    w.begin(placed())(made(placed())[:3])\n"
        "    os._exit(9)\n"
    )
    folder = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), kind],
        cwd=Path(__file__).parents[1],
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


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(PlanError, match="known: chunks, nifti, npz"):
        probability_files(Path("case"), "npy")


@pytest.mark.parametrize("label_map", ["a.b.nii.gz", "a.b.PNG", "a.b"])
def test_files_bear_the_name_of_the_case(label_map: str) -> None:
    assert probability_files(Path("out") / label_map, "npz") == (Path("out/a.b.npz"),)


@pytest.mark.parametrize("kind", ["npz", "nifti", "chunks"])
@pytest.mark.parametrize("size", [0, 500, 3000])
def test_a_write_that_fails_is_our_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, size: int
) -> None:
    placement = placed(box=((0, 7), (0, 11), (0, 13)))
    monkeypatch.setattr(probabilities, "CHUNK_BYTES", 2 * 3 * 11 * 13)  # one plane
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
    slices = probabilities._Spool.slices
    left = iter(range(2))

    def fail_soon(*args: Any) -> Any:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return slices(*args)

    monkeypatch.setattr(probabilities._Spool, "slices", fail_soon)
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
    monkeypatch.setattr(probabilities, "CHUNK_BYTES", 2 * 3 * 9 * 8)  # one plane
    flush = probabilities._Chunks._flush

    def lose_one(self: Any) -> None:
        self._done == 2 and self._array.__setitem__(slice(1, 2), 0)
        flush(self)

    monkeypatch.setattr(probabilities._Chunks, "_flush", lose_one)
    with pytest.raises(MachineError, match="cannot be written"):
        save(tmp_path, "chunks", placed())
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["npz", "nifti", "chunks"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_memory_grows_neither_with_planes_nor_with_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, order: Order
) -> None:
    for name in ("PIECE_BYTES", "TURNED_VALUES", "CHUNK_BYTES"):
        monkeypatch.setattr(probabilities, name, 2**16)
    count, side = 20, 24
    labels = Labels(labels={"background": 0} | {f"label {n}": n for n in range(1, count)})
    shape = permute((200, side, side), probabilities.inverse_order(order))
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


def open_record(path: Path) -> probabilities.StoredProbabilities:
    return record.load_sealed(probabilities.StoredProbabilities, path.with_suffix(".json"))


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
