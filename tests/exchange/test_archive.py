"""A zip from elsewhere is read like a folder, and refused where it cannot be trusted."""

import stat
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest

from nnseg.errors import DataError, MissingError
from nnseg.exchange import archive
from nnseg.exchange.archive import file_of, list_archive

PATTERNS = ("plans.json", "*/plans.json")
WORDS = b"some words that shrink, shrink, shrink"


def write_folder(folder: Path) -> Path:
    for name in ("plans.json", "a/plans.json", "a/other.json", "a/b/plans.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(WORDS + name.encode())
    return folder


def write_zip(folder: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, path.relative_to(folder))
    return file


@pytest.mark.parametrize("packed", [False, True])
def test_files_are_listed_by_pattern_and_read(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    folder = write_folder(tmp_path / "folder")
    source = write_zip(folder, tmp_path / "packed.zip") if packed else folder
    found = list_archive(source, PATTERNS)
    assert found.names == ("a/plans.json", "plans.json")
    with file_of(found, "a/plans.json") as path:
        assert path.read_bytes() == WORDS + b"a/plans.json"
        assert path.is_relative_to(scratch) == packed
    assert list(scratch.iterdir()) == []
    assert (folder / "a" / "plans.json").exists()


@pytest.mark.parametrize(
    "name", ["../plans.json", "a/../../plans.json", "/plans.json", "C:/plans.json", "a\\..\\x"]
)
def test_a_member_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as packed:
        packed.writestr("plans.json", WORDS)
        packed.writestr(zipfile.ZipInfo(name), WORDS)
    with pytest.raises(DataError, match="leads out of the folder"):
        list_archive(tmp_path / "bad.zip", PATTERNS)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(kind: int, tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a/plans.json")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as packed:
        packed.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match=r"'a/plans\.json' is a link or device"):
        list_archive(tmp_path / "bad.zip", PATTERNS)


def test_a_backslash_in_a_name_is_called_that(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as packed:
        packed.writestr("plans.json", WORDS)
        packed.infolist()[0].filename = packed.infolist()[0].orig_filename = "a\\plans.json"
    with pytest.raises(DataError, match="has a backslash in its name; pack the folder again"):
        list_archive(tmp_path / "bad.zip", PATTERNS)


def test_a_member_that_grows_without_measure_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("plans.json", bytes(2 * archive.SMALL_BYTES))
    with pytest.raises(DataError, match="says it is 2097152 bytes"):
        list_archive(tmp_path / "bad.zip", PATTERNS)
    with zipfile.ZipFile(tmp_path / "good.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("plans.json", bytes(archive.SMALL_BYTES))
    assert list_archive(tmp_path / "good.zip", PATTERNS).names == ("plans.json",)


@pytest.mark.parametrize(("field", "value", "words"), [(6, 1, "encrypted"), (8, 99, "packed by")])
def test_a_member_that_cannot_be_unpacked_is_refused(
    field: int, value: int, words: str, tmp_path: Path
) -> None:
    source = write_zip(write_folder(tmp_path / "folder"), tmp_path / "bad.zip")
    data = bytearray(source.read_bytes())
    entry = data.index(b"PK\x01\x02")
    struct.pack_into("<H", data, entry + 2 + field, value)
    source.write_bytes(data)
    with pytest.raises(DataError, match=words):
        list_archive(source, PATTERNS)


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as packed:
        packed.writestr("plans.json", WORDS)
        with pytest.warns(UserWarning, match="Duplicate"):
            packed.writestr("plans.json", WORDS[:5])
    with pytest.raises(DataError, match=r"holds 'plans\.json' twice"):
        list_archive(tmp_path / "bad.zip", PATTERNS)


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_MEMBERS", 3)
    source = write_zip(write_folder(tmp_path / "folder"), tmp_path / "bad.zip")
    with pytest.raises(DataError, match="more than the 3"):
        list_archive(source, PATTERNS)


def test_a_zip_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    source = write_zip(write_folder(tmp_path / "folder"), tmp_path / "whole.zip")
    data = source.read_bytes()
    cut = tmp_path / "cut.zip"
    for size in range(0, len(data), 7):
        cut.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"cut\.zip: is no zip, or it is cut off or damaged"):
            list_archive(cut, PATTERNS)


def test_a_damaged_member_is_refused_when_it_is_read(tmp_path: Path) -> None:
    source = write_zip(write_folder(tmp_path / "folder"), tmp_path / "bad.zip")
    data = bytearray(source.read_bytes())
    data[data.index(b"a/plans.json") + len("a/plans.json") + 9] ^= 0xFF
    source.write_bytes(data)
    found = list_archive(source, PATTERNS)
    with file_of(found, "plans.json") as path:
        assert path.read_bytes() == WORDS + b"plans.json"
    with pytest.raises(DataError, match="damaged"), file_of(found, "a/plans.json"):
        pass


def test_a_cut_zip_is_not_taken_for_the_zip_that_it_holds(tmp_path: Path) -> None:
    inner = write_zip(write_folder(tmp_path / "folder"), tmp_path / "inner.zip")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as packed:  # stored, as it is
        packed.write(inner, "fold_0/checkpoint_final.pth")
    whole = (tmp_path / "outer.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: whole.rindex(b"PK\x01\x02")])
    with pytest.raises(DataError, match=r"cut\.zip: is no zip, or it is cut off"):
        list_archive(tmp_path / "cut.zip", PATTERNS)


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="does not exist"):
        list_archive(tmp_path / "nothing.zip", PATTERNS)
