"""The files of a folder or of a zip by their relative names, so that both are read alike.

A zip comes from somewhere else: its names may not lead out of a folder, its links are refused, and
what it says of its sizes is believed only as far as a disk can bear it.
"""

import contextlib
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from nnseg.commit import cannot_write
from nnseg.errors import DataError, MachineError, MissingError

MOST_MEMBERS = 200_000
MOST_BYTES = 2**34  # of a member; the largest checkpoint is a tenth of it
MOST_GROWTH = 100  # of a member when it is unpacked: weights hardly shrink, text to a thirtieth
SMALL_BYTES = 2**20  # a member that may grow as it likes

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGE = (  # what the reader of zips makes of one that is cut off or garbled
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    ValueError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A folder or a zip, and the names of those of its files that matter."""

    source: Path
    names: tuple[str, ...]  # relative to it, with / on every system, sorted
    is_zip: bool

    def where(self, name: str) -> str:
        """Say where a file is, for messages."""
        return f"{self.source}: {name}" if self.is_zip else str(self.source / name)


def list_archive(source: Path, patterns: Sequence[str]) -> Archive:
    """List the files of a folder or zip that match one of the patterns, such as `*/plans.json`.

    A `*` stays within one part of a name.

    Raises:
        MissingError: There is nothing at `source`.
        DataError: It is a file and no zip, or a zip that is damaged or not to be trusted.
        MachineError: It cannot be read.
    """
    if source.is_dir():
        found = {path for pattern in patterns for path in source.glob(pattern) if path.is_file()}
        inside = {path.relative_to(source).as_posix() for path in found}
        return Archive(source=source, names=tuple(sorted(inside)), is_zip=False)
    if not source.exists():
        raise MissingError(f"{source} does not exist; give a folder or a zip")
    with _opened(source) as packed:
        members = _members(source, packed)
    names = (name for name in members if any(_matches(name, pattern) for pattern in patterns))
    return Archive(source=source, names=tuple(sorted(names)), is_zip=True)


@contextlib.contextmanager
def file_of(archive: Archive, name: str) -> Iterator[Path]:
    """Give the path of a file of `archive`; one of a zip is unpacked elsewhere for the while.

    Raises:
        DataError: The zip is damaged.
        MachineError: There is no room to unpack it.
    """
    if not archive.is_zip:
        yield archive.source / name
        return
    with tempfile.TemporaryDirectory(prefix="nnseg-") as folder:
        unpacked = Path(folder) / PurePosixPath(name).name
        with _opened(archive.source) as packed:
            info = _members(archive.source, packed)[name]
            with packed.open(info) as content:
                _copy(content, unpacked)
        yield unpacked


def _copy(content: IO[bytes], target: Path) -> None:
    try:
        with open(target, "wb") as file:
            shutil.copyfileobj(content, file, 2**20)
    except OSError as error:
        raise cannot_write(target, error) from error


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(source) as packed:
            yield packed
    except _DAMAGE as error:
        raise DataError(
            f"{source}: is no zip, or it is cut off or damaged ({error}); get it again"
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise MachineError(f"{source}: cannot be read ({reason}); check its rights") from None


def _members(source: Path, packed: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Check every member, those too that nobody asks for, and give the files by name."""
    listed = packed.infolist()
    if min((info.header_offset for info in listed), default=0) != 0:
        raise zipfile.BadZipFile("it ends in another zip")  # a checkpoint in it, which is one, too
    if len(listed) > MOST_MEMBERS:
        raise DataError(
            f"{source}: holds {len(listed)} files, more than the {MOST_MEMBERS} of any model; "
            "give the zip of a model"
        )
    found: dict[str, zipfile.ZipInfo] = {}
    for info in listed:
        if fault := _fault(info):
            raise DataError(f"{source}: its member {info.filename!r} {fault}; it is not opened")
        if info.is_dir():
            continue
        if info.filename in found:
            raise DataError(f"{source}: holds {info.filename!r} twice; it is not opened")
        found[info.filename] = info
    return found


def _fault(info: zipfile.ZipInfo) -> str | None:
    """Say what speaks against a member; None if nothing does."""
    name = info.orig_filename
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if (
        not name
        or "\0" in name
        or posix.is_absolute()
        or windows.drive
        or windows.root
        or ".." in windows.parts
    ):
        return "leads out of the folder"
    if "\\" in name:
        return "has a backslash in its name; pack the folder again by another program"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or device"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in _METHODS:
        return "is packed by a method that nnseg does not know"
    grown = max(SMALL_BYTES, MOST_GROWTH * info.compress_size)
    if info.file_size > min(MOST_BYTES, grown):
        return f"says it is {info.file_size} bytes, more than a model's file can be"
    return None


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
