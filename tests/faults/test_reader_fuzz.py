"""Readers of files keep their rule for bytes of any kind; see fuzzing.py."""

import faulthandler
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fuzzed_readers import READERS
from fuzzing import SEEDS, Finding, Fuzz, fault_of, fuzz_all, read_many, scratch
from plain_voxels import Array
from tallies import Tally

from nnseg.errors import DataError

QUICK, LONG = 60, 2000  # files of each kind
FOUND = sorted(SEEDS.iterdir())


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with scratch() as folder:
        yield folder


@pytest.mark.fault("S01", "S03", "S05", "S08")
@pytest.mark.parametrize("name", READERS)
def test_files_changed_at_random_are_read_or_refused(name: str, place: Path, tally: Tally) -> None:
    fuzz = Fuzz(name, place / name)
    found, read = read_many(fuzz, [f"quick-{number}" for number in range(QUICK)])
    tally("reader fuzz", read - len(found), read)
    assert read == QUICK
    assert not found, told(found)


@pytest.mark.fault("S01", "S03", "S05", "S08")
@pytest.mark.slow
def test_many_files_changed_at_random_are_read_or_refused(tally: Tally) -> None:
    for name, found, read in fuzz_all(list(READERS), "long", count=LONG):
        tally("reader fuzz", read - len(found), read)
        assert not found, (name, told(found))


@pytest.mark.fault("S01", "S03", "S05", "S08")
@pytest.mark.parametrize("seed", FOUND, ids=lambda path: path.name)
def test_what_once_broke_a_reader_does_so_no_more(seed: Path, place: Path, tally: Tally) -> None:
    name = seed.name.rpartition("-")[0]
    fuzz = Fuzz(name, place / seed.name)
    what, where = fuzz.judge(seed.read_bytes())
    tally("reader fuzz", not what, 1)
    assert not what, (what, where)


def told(findings: list[Finding]) -> str:
    return "\n".join(f"{one.name}: {one.what} {one.place}" for one in findings)


# ---------------------------------------------------------------- the fuzzing itself


class Bad(Fuzz):
    """A kind of file whose reader is wrong in one way."""

    def __init__(self, fault: str, folder: Path) -> None:
        folder.mkdir()
        self.name, self.fault, self.path = "bad", fault, folder / "case.bad"

    def draw(self, seed: str) -> bytes:
        return seed.encode()

    def judge(self, data: bytes) -> tuple[str, str]:
        if data != b"2":
            return "", ""
        if self.fault == "crash":
            import ctypes

            ctypes.string_at(0)
        if self.fault == "hang":
            while True:
                pass
        if self.fault == "told":
            return ("is told", "") if faulthandler.is_enabled() else ("", "")
        return "raises", "here"


@pytest.mark.parametrize(
    ("fault", "words"), [("raise", "raises"), ("crash", "ends the process by -11")]
)
def test_a_reader_that_breaks_is_found_with_its_bytes(
    fault: str, words: str, tmp_path: Path
) -> None:
    found, read = read_many(Bad(fault, tmp_path / "bad"), ["0", "1", "2", "3"])
    assert [(one.what, one.data) for one in found] == [(words, b"2")]
    assert read == (4 if fault == "raise" else 3)


def test_the_end_of_a_reader_is_not_told_among_the_results_of_the_tests(tmp_path: Path) -> None:
    assert faulthandler.is_enabled()
    assert read_many(Bad("told", tmp_path / "bad"), ["2"]) == ([], 1)


def half(values: Array) -> Array:
    """The first half of some voxels, and chance after it."""
    return np.where(np.arange(values.size).reshape(values.shape) < values.size // 2, values, 12345)


@pytest.mark.parametrize("name", [name for name, one in READERS.items() if one.plain])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (half, "gives 105 voxels that are not in the file"),
        (lambda values: values[:-1], "gives voxels of the shape (4, 6, 7) where the file has"),
        (lambda values: values + np.eye(6, 7), "gives 30 voxels that are not in the file"),
    ],
)
def test_a_reader_that_gives_other_voxels_than_the_file_has_is_found(
    name: str, spoil: Callable[[Array], Array], words: str, tmp_path: Path
) -> None:
    fuzz = Fuzz(name, tmp_path / "fuzz")
    assert fuzz.judge(fuzz.sound) == ("", "")
    read = fuzz.reader.read
    for number in (0, 1):  # as an image, as a label map

        def spoilt(path: Path, wrong: int = number) -> list[Array]:
            return [spoil(one) if n == wrong else one for n, one in enumerate(read(path))]

        fuzz.reader = replace(fuzz.reader, read=spoilt)
        assert words in fuzz.judge(fuzz.sound)[0]


def test_a_reader_that_gives_voxels_of_a_file_without_them_is_found(tmp_path: Path) -> None:
    fuzz = Fuzz("mha-packed", tmp_path / "fuzz")
    values = list(fuzz.reader.read(fuzz.path))
    fuzz.reader = replace(fuzz.reader, read=lambda path: values)
    head, mark, _ = fuzz.sound.partition(b"LOCAL\n")
    assert "gives voxels where none can be found" in fuzz.judge(head + mark + b"none")[0]


def test_packed_voxels_are_changed_behind_a_header_that_knows_their_length(tmp_path: Path) -> None:
    fuzz = Fuzz("mha-packed", tmp_path / "fuzz")
    closed = fuzz.reader.close(fuzz.inside[:-2] + b"\1\2")
    assert closed != fuzz.sound
    assert fuzz.judge(closed) == ("", "")
    assert fuzz.reader.open(closed)[-2:] == b"\1\2"
    fuzz.path.write_bytes(closed)
    assert next(iter(fuzz.reader.read(fuzz.path)))[-1, -1, -1] == 513


def test_the_same_seed_makes_the_same_file_and_others_make_others(tmp_path: Path) -> None:
    fuzz, again = Fuzz("dataset", tmp_path / "one"), Fuzz("dataset", tmp_path / "two")
    drawn = [fuzz.draw(str(number)) for number in range(40)]
    assert drawn == [again.draw(str(number)) for number in range(40)]
    assert len({*drawn, fuzz.sound}) > 35
    assert json.loads(fuzz.sound)["numTraining"] == 20


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("it is bad", "does not name the file"),
        ("case.nii: \x1b[2J", "control characters"),
        ("case.nii: " + "a" * 30_000, "30010 characters"),
        ("case.nii: is cut off;\ncopy it again", ""),
    ],
)
def test_a_message_is_short_plain_and_names_its_file(message: str, words: str) -> None:
    fault = fault_of(message, Path("case.nii"))
    assert words in fault
    assert bool(words) is bool(fault)


def test_messages_of_ours_cannot_reach_the_terminal() -> None:
    assert str(DataError("case.nii: \x1b[2J\u202e\nmore")) == "case.nii: \\x1b[2J\\u202e\nmore"
