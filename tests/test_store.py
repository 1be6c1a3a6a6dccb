import errno
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest

from nnseg import store
from nnseg.axes import Shape
from nnseg.errors import DataError, MachineError, MissingError
from nnseg.preprocess import Placement, Preprocessed
from nnseg.store import (
    StoredCase,
    bytes_in_memory,
    bytes_on_disk,
    clean,
    find_case,
    find_record,
    open_case,
    open_label_map,
    save_case,
    save_label_map,
    share_case,
    written_at,
)

SHAPE = (5, 30, 41)
PLACEMENT = Placement(
    order=(2, 0, 1),
    shape=(28, 44, 6),
    spacing=(0.9, 0.8, 3.0),
    box=((1, 6), (0, 28), (2, 43)),
    shape_resampled=SHAPE,
)


def make_case(*, channels: int = 2, labelled: bool = True, whole: bool = False) -> Preprocessed:
    rng = np.random.default_rng(0)
    mask = np.ones(SHAPE, dtype=np.bool_)
    if not whole:
        mask[:, :3] = False
    labels = rng.integers(0, 4, SHAPE).astype(np.uint8)
    return Preprocessed(
        image=rng.normal(size=(channels, *SHAPE)).astype(np.float32),
        segmentation=labels if labelled else None,
        mask=mask,
        placement=PLACEMENT,
    )


LOCATIONS = {
    "left/right": np.array([3, 70, 71], dtype=np.int64),
    "Core": np.array([5], dtype=np.int64),
    "core": np.array([0, 6149], dtype=np.int64),
}


def save(folder: Path, case: Preprocessed | None = None, case_id: str = "a", **changes: Any) -> Any:
    options = {"made_from": "raw", "data_hash": "plan", "arrays_from": "arrays"} | changes
    return save_case(folder, case_id, case or make_case(), LOCATIONS, **options)


def reopen(folder: Path, *, in_memory: bool = True, data_hash: str = "plan") -> store.TrainingCase:
    return open_case(folder, "a", data_hash, in_memory=in_memory)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same(found: store.TrainingCase, case: Preprocessed) -> None:
    np.testing.assert_array_equal(found.image[...], case.image)
    np.testing.assert_array_equal(found.segmentation[...], case.segmentation)
    assert found.image.dtype == np.float32
    assert found.segmentation.dtype == np.uint8
    if case.mask.all():
        assert found.mask is None
    else:
        np.testing.assert_array_equal(found.mask[...], case.mask)
    assert found.placement == case.placement
    assert found.shape == SHAPE
    assert list(found.locations) == list(LOCATIONS)
    for name, voxels in LOCATIONS.items():
        np.testing.assert_array_equal(found.locations[name], voxels)
        assert found.locations[name].dtype == np.int64


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_a_case_comes_back_as_it_was(tmp_path: Path, in_memory: bool, whole: bool) -> None:
    case = make_case(whole=whole)
    save(tmp_path, case)
    same(reopen(tmp_path, in_memory=in_memory), case)


def test_each_array_is_a_file_and_no_name_of_a_label_is_part_of_one(tmp_path: Path) -> None:
    save(tmp_path)
    arrays = ["a.image.b2nd", "a.locations.b2nd", "a.mask.b2nd", "a.segmentation.b2nd"]
    assert names(tmp_path) == [*arrays[:1], "a.json", *arrays[1:]]
    save(tmp_path / "whole", make_case(whole=True))
    assert "a.mask.b2nd" not in names(tmp_path / "whole")


def test_a_case_without_any_label_has_no_locations(tmp_path: Path) -> None:
    options = {"made_from": "raw", "data_hash": "plan", "arrays_from": "arrays"}
    save_case(tmp_path, "a", make_case(), {}, **options)
    assert "a.locations.b2nd" not in names(tmp_path)
    assert reopen(tmp_path).locations == {}


def test_a_patch_read_by_slicing_equals_the_array(tmp_path: Path) -> None:
    case = make_case()
    save(tmp_path, case)
    found = reopen(tmp_path, in_memory=False)
    assert isinstance(found.image, blosc2.NDArray)
    rng = np.random.default_rng(1)
    for _ in range(20):
        start = [int(rng.integers(0, n)) for n in SHAPE]
        stop = [int(rng.integers(s + 1, n + 1)) for s, n in zip(start, SHAPE, strict=True)]
        where = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        every = (slice(None), *where)
        np.testing.assert_array_equal(found.image[every], case.image[every])
        np.testing.assert_array_equal(found.segmentation[where], case.segmentation[where])
        np.testing.assert_array_equal(found.mask[where], case.mask[where])


@pytest.mark.parametrize(
    ("shape", "block", "chunk", "block_of_labels"),
    [
        # 2^15 bytes hold 8192 voxels of 4 bytes, 2^22 bytes 1 048 576
        ((70, 130, 200), (2, 65, 50), (70, 130, 100), (2, 130, 100)),
        ((5, 30, 41), (2, 30, 41), (5, 30, 41), (2, 30, 41)),
        ((1, 90, 130), (1, 90, 65), (1, 90, 130), (1, 90, 130)),
    ],
)
def test_blocks_are_two_slices_deep_and_chunks_whole_blocks(
    tmp_path: Path, shape: Shape, block: Shape, chunk: Shape, block_of_labels: Shape
) -> None:
    large = np.zeros((2, *shape), dtype=np.float32)
    case = replace(
        make_case(), image=large, segmentation=np.zeros(shape, np.uint8),
        mask=np.ones(shape, np.bool_), placement=replace(PLACEMENT, shape_resampled=shape),
    )  # fmt: skip
    options = {"made_from": "raw", "data_hash": "plan", "arrays_from": "arrays"}
    save_case(tmp_path, "a", case, {}, **options)
    found = reopen(tmp_path, in_memory=False)
    assert found.image.blocks == (1, *block)
    assert found.image.chunks == (1, *chunk)
    assert found.segmentation.blocks == block_of_labels


def test_the_same_case_is_the_same_bytes(tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        save(folder)
    for name in names(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_bytes_are_the_same_whether_or_not_blosc_is_kept_to_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = []
    for number, count in enumerate((None, "1")):  # the command line sets it
        if count is None:
            monkeypatch.delenv("BLOSC_NTHREADS", raising=False)
        else:
            monkeypatch.setenv("BLOSC_NTHREADS", count)
        hashes.append(save(tmp_path / str(number)).files)
    assert hashes[0] == hashes[1]


def test_a_case_replaces_what_was_there_under_its_name(tmp_path: Path) -> None:
    save(tmp_path)
    case = make_case(channels=1, whole=True)
    save(tmp_path, case, data_hash="other plan")
    same(reopen(tmp_path, data_hash="other plan"), case)


@pytest.mark.parametrize("step", range(5))
def test_a_case_is_absent_while_it_is_being_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    save(tmp_path)
    written = 0
    write = Path.write_bytes

    def fail_later(self: Path, data: bytes) -> int:
        nonlocal written
        written += 1
        if written > step:
            write(self, data[: len(data) // 2])
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", fail_later)
    with pytest.raises(MachineError, match="cannot be written"):
        save(tmp_path, made_from="new raw")
    assert find_case(tmp_path, "a") is None
    with pytest.raises(MissingError):
        reopen(tmp_path)
    monkeypatch.undo()
    save(tmp_path, make_case(), made_from="new raw")
    same(reopen(tmp_path), make_case())
    assert not list(tmp_path.glob(".part-*"))


def share(tmp_path: Path, **changes: Any) -> Any:
    stored = find_case(tmp_path / "one", "a")
    assert stored is not None
    options = {"made_from": "raw too", "data_hash": "other plan"} | changes
    return share_case(tmp_path / "one", stored, tmp_path / "two", **options)


@pytest.mark.parametrize("linked", [True, False])
def test_a_case_is_shared_as_links_or_where_they_fail_as_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    case = make_case()
    first = save(tmp_path / "one", case)

    def fail(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not linked:
        monkeypatch.setattr(Path, "hardlink_to", fail)
    second = share(tmp_path)
    assert find_case(tmp_path / "two", "a") == second
    assert (second.made_from, second.data_hash) == ("raw too", "other plan")
    assert (second.arrays_from, second.files) == (first.arrays_from, first.files)
    same(open_case(tmp_path / "two", "a", "other plan", in_memory=True), case)
    for name in first.files:
        assert (tmp_path / "one" / name).samefile(tmp_path / "two" / name) is linked


def test_a_shared_case_is_replaced_without_a_change_to_the_other(tmp_path: Path) -> None:
    case = make_case()
    save(tmp_path / "one", case)
    share(tmp_path)
    save(tmp_path / "one", make_case(channels=1, whole=True))
    same(open_case(tmp_path / "two", "a", "other plan", in_memory=True), case)


def test_a_case_that_is_shared_replaces_what_was_there(tmp_path: Path) -> None:
    save(tmp_path / "two", make_case(channels=1, whole=True))
    save(tmp_path / "one")
    share(tmp_path)
    same(open_case(tmp_path / "two", "a", "other plan", in_memory=True), make_case())


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("loss", ["gone", "other", "unreadable"])
def test_a_case_whose_source_changes_meanwhile_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, linked: bool
) -> None:
    stored = save(tmp_path / "one")
    path = tmp_path / "one" / "a.mask.b2nd"
    if loss == "gone":
        path.unlink()
    elif loss == "other":
        path.write_bytes(b"another run's")
    else:
        path.unlink()
        path.mkdir()  # which root cannot read either

    def fail(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not linked:
        monkeypatch.setattr(Path, "hardlink_to", fail)
    save(tmp_path / "two")
    found = share_case(
        tmp_path / "one", stored, tmp_path / "two", made_from="raw too", data_hash="other plan"
    )
    assert found is None
    assert find_record(tmp_path / "two", "a") is None


def test_links_are_not_counted_as_bytes_that_removing_a_case_frees(tmp_path: Path) -> None:
    stored = save(tmp_path / "one")
    size = sum((tmp_path / "one" / name).stat().st_size for name in stored.files)
    assert bytes_on_disk(tmp_path / "one", stored) == size > 1000
    share(tmp_path)
    assert bytes_on_disk(tmp_path / "one", stored) == 0
    assert bytes_on_disk(tmp_path / "not there", stored) == 0


def test_an_array_that_cannot_be_read_counts_as_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path)

    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(store, "sha256", refuse)
    assert find_case(tmp_path, "a") is None
    with pytest.raises(DataError, match=r"a\.image\.b2nd: cannot be read \(Permission denied\)"):
        reopen(tmp_path)


# ---------------------------------------------------------------- what is no plain array


def replace_array(folder: Path, name: str, data: bytes) -> None:
    """Put other bytes in the place of an array, with the right hashes, as a stranger could."""
    stored = store.read_record(folder, "a")
    (folder / f"a.{name}.b2nd").write_bytes(data)
    files = stored.files | {f"a.{name}.b2nd": hashlib.sha256(data).hexdigest()}
    store._save_record(folder, replace(stored, files=files))


def frame(array: Any, **options: Any) -> bytes:
    packed = blosc2.asarray(np.ascontiguousarray(array), contiguous=True, **options)
    return bytes(packed.to_cframe())


def lazy_frame(folder: Path) -> bytes:
    """Give a frame that has Blosc2 run a Python expression on a file beside it."""
    operand = blosc2.asarray(make_case().image, urlpath=str(folder / "x.b2nd"), mode="w")
    (operand + 1).save(urlpath=str(folder / "lazy.b2nd"))
    return (folder / "lazy.b2nd").read_bytes()


def with_trailing_layer() -> bytes:
    packed = blosc2.asarray(make_case().image, contiguous=True)
    packed.schunk.vlmeta["anything"] = "at all"
    return bytes(packed.to_cframe())


@pytest.mark.parametrize(
    "kind", ["lazy", "layer", "trailer", "two trailers", "chunks", "text", "empty"]
)
def test_what_is_more_than_a_plain_array_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    save(tmp_path)
    image = make_case().image
    data = {
        "lazy": lambda: lazy_frame(tmp_path),
        "layer": lambda: frame(image, meta={"proxy-source": {"local_abspath": "/x"}}),
        "trailer": with_trailing_layer,
        "chunks": lambda: bytes(blosc2.SChunk(data=image.tobytes(), contiguous=True).to_cframe()),
        "two trailers": lambda: with_trailing_layer() + frame(image)[-35:],
        "text": lambda: b"no frame at all, whatever " * 9,
        "empty": lambda: b"",
    }[kind]()
    replace_array(tmp_path, "image", data)
    monkeypatch.setattr(blosc2, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(DataError, match=r"a\.image\.b2nd: holds something else than a plain array"):
        reopen(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("image", np.float64),
        ("image", np.int16),
        ("segmentation", np.float32),
        ("mask", np.int8),
        ("locations", np.float64),
        ("locations", np.uint64),
    ],
)
def test_arrays_of_another_type_are_refused(tmp_path: Path, name: str, kind: Any) -> None:
    save(tmp_path)
    found = blosc2.open(str(tmp_path / f"a.{name}.b2nd"), mode="r")[...]
    replace_array(tmp_path, name, frame(found.astype(kind)))
    text = rf"a\.{name}\.b2nd: holds {np.dtype(kind)}, and .* was wanted; have it made anew"
    with pytest.raises(DataError, match=text):
        reopen(tmp_path)


def test_a_label_map_comes_back_and_is_held_to_the_same_rules(tmp_path: Path) -> None:
    labels, path = make_case().segmentation, tmp_path / "map.b2nd"
    assert labels is not None
    digest = save_label_map(path, labels)
    np.testing.assert_array_equal(open_label_map(path, digest, in_memory=True), labels)
    np.testing.assert_array_equal(open_label_map(path, digest, in_memory=False)[1:3], labels[1:3])
    with pytest.raises(DataError, match="is damaged"):
        open_label_map(path, "0" * 64, in_memory=True)
    for data, text in (
        (frame(labels.astype(np.float32)), "holds float32"),
        (frame(labels, meta={"b2o": {}}), "holds something else"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=text):
            open_label_map(path, hashlib.sha256(data).hexdigest(), in_memory=True)
    path.unlink()
    with pytest.raises(DataError, match=r"map\.b2nd does not exist"):
        open_label_map(path, digest, in_memory=True)


def test_a_full_disk_is_told_and_leaves_no_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(MachineError, match=r"a\.image\.b2nd: the disk is full \(\d+ MiB free\)"):
        save(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["image", "segmentation", "mask", "locations"])
def test_a_flipped_byte_of_any_array_is_refused_by_name(tmp_path: Path, name: str) -> None:
    save(tmp_path)
    path = tmp_path / f"a.{name}.b2nd"
    data = path.read_bytes()
    for place in np.linspace(0, len(data) - 1, 12).astype(int):
        flipped = bytearray(data)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(DataError, match=rf"a\.{name}\.b2nd: is damaged .*`nnseg preprocess`"):
            reopen(tmp_path, in_memory=False)
        assert find_case(tmp_path, "a") is None  # so that preprocessing makes it anew
    path.write_bytes(data)
    assert find_case(tmp_path, "a") is not None


def test_a_flipped_byte_of_the_record_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "a.json"
    data = path.read_bytes()
    damaged = [data[:-1], data + b"\n"]
    for place in (*range(0, len(data), 5), len(data) - 1):
        flipped = bytearray(data)
        flipped[place] ^= 1
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.json: "):
            reopen(tmp_path)
    assert find_case(tmp_path, "a") is None


@pytest.mark.parametrize("length", [0, 1, 100])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, length: int) -> None:
    save(tmp_path)
    path = tmp_path / "a.image.b2nd"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=r"a\.image\.b2nd: is damaged"):
        reopen(tmp_path)
    assert find_case(tmp_path, "a") is None


def test_a_missing_array_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "a.mask.b2nd").unlink()
    with pytest.raises(DataError, match=r"a\.mask\.b2nd does not exist, .*`nnseg preprocess`"):
        reopen(tmp_path)
    assert find_case(tmp_path, "a") is None


def test_a_case_without_its_record_does_not_exist(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "a.json").unlink()
    assert find_case(tmp_path, "a") is None
    with pytest.raises(MissingError, match=r"a\.json does not exist; `nnseg preprocess` writes it"):
        reopen(tmp_path)


def test_a_case_of_another_plan_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(DataError, match=r"case a in .* was preprocessed from another plan"):
        reopen(tmp_path, data_hash="other")


def test_a_case_of_another_format_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path)
    monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
    with pytest.raises(DataError, match=r"a\.json: is of format 2, this version uses 3; run"):
        reopen(tmp_path)
    assert find_case(tmp_path, "a") is None


def test_a_case_without_labels_cannot_be_trained_on(tmp_path: Path) -> None:
    save(tmp_path, make_case(labelled=False))
    with pytest.raises(DataError, match=r"case a in .* has no label map; it cannot be trained on"):
        reopen(tmp_path)


def test_a_record_says_what_its_case_was_made_from(tmp_path: Path) -> None:
    assert find_record(tmp_path, "a") is None
    assert written_at(tmp_path, "a") == 0
    stored = save(tmp_path)
    assert find_record(tmp_path, "a") == stored
    assert written_at(tmp_path, "a") == (tmp_path / "a.json").stat().st_mtime_ns
    assert find_case(tmp_path, "a") == stored
    assert (stored.made_from, stored.data_hash) == ("raw", "plan")
    assert stored.placement == PLACEMENT
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text)["placement"]["order"] == [2, 0, 1]


def test_cleaning_keeps_the_cases_that_are_there_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path)
    save(tmp_path, make_case(whole=True))  # its former mask belongs to nobody now
    save(tmp_path, case_id="gone")
    save(tmp_path, case_id="a.b")
    (tmp_path / ".part-123-a.image.b2nd").touch()
    (tmp_path / "killed.image.b2nd").touch()
    (tmp_path / "notes.txt").touch()
    clean(tmp_path, ["a", "killed", "a.b"])
    arrays = ["image", "locations", "segmentation"]
    assert names(tmp_path) == sorted(
        ["a.json", "a.b.json", "a.b.mask.b2nd", "notes.txt"]
        + [f"{case_id}.{name}.b2nd" for case_id in ("a", "a.b") for name in arrays]
    )
    same(reopen(tmp_path), make_case(whole=True))


def test_cleaning_removes_nothing_that_is_not_surely_ours(tmp_path: Path) -> None:
    save(tmp_path)
    foreign = {
        "settings.json": "{}",
        "list.json": "[1]",
        "notes.b2nd": "",
        "a.weights.b2nd": "",
        "image.b2nd": "",
    }
    for name, text in foreign.items():
        (tmp_path / name).write_text(text)
    copied = (tmp_path / "a.json").read_text()  # whole, but its case is another
    (tmp_path / "copy.json").write_text(copied)
    clean(tmp_path, [])
    assert names(tmp_path) == sorted([*foreign, "copy.json"])


@pytest.mark.parametrize(
    "name",
    ["../victim.json", "/victim", "b.image.b2nd", "a.json", "a.weights.b2nd", "x/a.mask.b2nd"],
)
def test_a_record_names_no_files_but_its_own(tmp_path: Path, name: str) -> None:
    stored = save(tmp_path)
    with pytest.raises(DataError, match=r"files has .*; a case's own are a\.image\.b2nd, "):
        replace(stored, files=stored.files | {name: "0" * 64})


@pytest.mark.parametrize("case_id", ["../a", "x/a", "/a", ""])
def test_the_case_of_a_record_can_name_a_file(tmp_path: Path, case_id: str) -> None:
    stored = save(tmp_path)
    with pytest.raises(DataError, match="cannot name a file"):
        replace(stored, case_id=case_id, files={})


def test_a_record_under_the_name_of_another_case_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "b.json").write_text((tmp_path / "a.json").read_text())
    with pytest.raises(DataError, match=r"b\.json: is the record of case a"):
        open_case(tmp_path, "b", "plan", in_memory=True)
    assert find_case(tmp_path, "b") is None


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        ("image", (2, 5, 41, 30)),
        ("image", (5, 30, 41)),
        ("segmentation", (5, 30, 40)),
        ("mask", (6, 30, 41)),
    ],
)
def test_arrays_of_another_shape_than_the_record_tells_are_refused(
    tmp_path: Path, field: str, shape: tuple[int, ...]
) -> None:
    wrong = np.zeros(shape, getattr(make_case(), field).dtype)
    save(tmp_path, replace(make_case(), **{field: wrong}))
    with pytest.raises(DataError, match=rf"a\.{field}\.b2nd: has the shape"):
        reopen(tmp_path, in_memory=False)


def test_locations_outside_the_image_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for voxel, fits in ((6149, True), (6150, False), (-1, False)):
        monkeypatch.setitem(LOCATIONS, "core", np.array([voxel], dtype=np.int64))
        save(tmp_path)
        if fits:
            assert reopen(tmp_path).locations["core"] == [voxel]
            continue
        with pytest.raises(DataError, match=r"a\.locations\.b2nd: leads out of the image"):
            reopen(tmp_path)


@pytest.mark.parametrize("name", ["image", "locations"])
def test_a_record_without_an_array_that_it_needs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    init = StoredCase.__init__

    def forget(self: StoredCase, **fields: Any) -> None:
        files = {k: v for k, v in fields["files"].items() if k != f"a.{name}.b2nd"}
        init(self, **(fields | {"files": files}))

    monkeypatch.setattr(StoredCase, "__init__", forget)
    save(tmp_path)
    monkeypatch.undo()
    with pytest.raises(DataError, match=f"case a in .* has no {name}"):
        reopen(tmp_path)


def test_cleaning_a_damaged_case_leaves_it_to_be_made_anew(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "a.json").write_text("{")
    clean(tmp_path, ["a"])
    assert names(tmp_path) == ["a.json"]
    assert find_case(tmp_path, "a") is None


def test_the_memory_of_cases_counts_channels_labels_and_mask(tmp_path: Path) -> None:
    save(tmp_path)
    save(tmp_path, case_id="b")
    voxels = 5 * 30 * 41
    assert bytes_in_memory(tmp_path, ["a", "b", "missing"], channels=2) == 2 * voxels * 10
