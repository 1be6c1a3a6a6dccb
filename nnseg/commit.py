"""Files that are whole or not there: temporary file, fsync, rename, fsync of the folder.

What a kill leaves of a temporary file is nobody's, and removed by the next process that writes into
the folder: the name says which process of which host was at it.
"""

import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
import socket
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

from nnseg.errors import DiskFullError, MachineError

TEMPORARY = ".part-"  # every unfinished file's name starts so
WRITER = re.compile(r"\.part-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<process>[0-9a-f]{8})-.*", re.S)
NAME_BYTES = 255  # the longest name of a file, on nearly every system
FULL = {errno.ENOSPC, errno.EDQUOT}
NO_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP}  # of a folder, on some network drives

_PROCESS = uuid.uuid4().hex[:8]  # a later process may have the same number


@contextlib.contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Hand out a temporary path beside `path`; on success it takes `path`'s place in one step.

    With `durable` it is on the disk then; without, a loss of power may still take or damage it,
    which only files may risk that a hash proves and a command makes again.

    The temporary name keeps the endings of `path`, for libraries that choose a format by them.
    After an error or a kill `path` is what it was before.

    Raises:
        DiskFullError: The disk is full.
        MachineError: The folder cannot be written.
    """
    temporary = unfinished_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_once(path.parent)
        yield temporary
        if durable:
            with open(temporary, "r+b") as file:  # Windows syncs none that is open for reading only
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Hand out a new folder beside `path`; on success it takes the name `path` in one step.

    `path` must not be there. After an error or a kill it is not; what a kill leaves beside it goes
    the next time. The files in it must be on the disk by then.

    Raises:
        DiskFullError: The disk is full.
        MachineError: The folder cannot be written.
    """
    temporary = unfinished_path(path)
    try:
        temporary.mkdir(parents=True)
        _sweep_once(path.parent)
        yield temporary
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """Hand out a new folder in `folder`; on success its files go one after another into `folder`.

    So a record of them, with their hashes, can be there before them: then a kill leaves no file
    of which nobody can tell who made it. After an error or a kill some of them may
    be there. They must be on the disk by then.

    Raises:
        DiskFullError: The disk is full.
        MachineError: The folder cannot be written.
    """
    temporary = unfinished_path(folder / "files")
    try:
        temporary.mkdir(parents=True)
        _sweep_once(folder)
        yield temporary
        for path in sorted(temporary.iterdir()):
            path.replace(folder / path.name)
        sync_folder(folder)
    except MachineError as error:  # who reads it knows a file by the name that it was to get
        raise type(error)(str(error).replace(str(temporary), str(folder))) from error
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_whole(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write `data` to `path`, whole or not at all; see `whole_file`."""
    with whole_file(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable, where the system and its file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open a folder; its rename is durable enough
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> int:
    """Remove all that is unfinished in `folder`, where no other run may be writing; count it.

    Raises:
        MachineError: One of them cannot be removed.
    """
    left = list(folder.glob(f"{TEMPORARY}*"))
    for path in left:
        remove(path)
    return len(left)


def sweep_orphans(folder: Path) -> int:
    """Remove what is unfinished in `folder` and whose process surely runs no more; count it.

    Raises:
        MachineError: One of them cannot be removed.
    """
    left = [path for path in folder.glob(f"{TEMPORARY}*") if _is_orphan(path.name)]
    for path in left:
        remove(path)
    return len(left)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all in it, if it is there.

    Raises:
        MachineError: It is there, but cannot be removed.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MachineError(
            f"{path}: cannot be removed ({reason}); check the folder and its rights"
        ) from error


def sha256(path: Path) -> str:
    """Give the SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def cannot_write(path: Path, error: OSError) -> MachineError:
    """Say why `path` could not be written and what would help."""
    if error.errno in FULL:
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(path.parent).free / 2**20
            return DiskFullError(f"{path}: the disk is full ({free:.0f} MiB free); make room")
    reason = error.strerror or str(error)
    return MachineError(f"{path}: cannot be written ({reason}); check the folder and its rights")


def unfinished_path(path: Path) -> Path:
    """Name the unfinished form of a file or folder; of a name that gets too long, the end is kept.

    The name is a new one each time, and says which process of which host is at it.
    """
    prefix = f"{TEMPORARY}{_host()}-{os.getpid()}-{_PROCESS}-{uuid.uuid4().hex[:8]}-"
    kept = os.fsencode(path.name)[len(prefix) - NAME_BYTES :].decode(errors="ignore")
    return path.with_name(prefix + kept)


@functools.cache
def _host() -> str:
    """Hash what tells where the number of a process means that process: machine and container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/etc/machine-id").read_text("utf-8"))
    with contextlib.suppress(OSError):  # two containers may bear the name of their host
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return f"{zlib.crc32(' '.join(parts).encode()):08x}"


def _is_orphan(name: str) -> bool:
    writer = WRITER.fullmatch(name)
    if writer is None or writer["host"] != _host() or os.name == "nt":  # there, signal 0 is Ctrl-C
        return False
    if int(writer["pid"]) == os.getpid():
        return writer["process"] != _PROCESS
    try:
        os.kill(int(writer["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False


@functools.lru_cache(maxsize=256)
def _sweep_once(folder: Path) -> None:
    """Sweep when this process first writes into `folder`: to list it each time takes too long."""
    with contextlib.suppress(OSError, MachineError):
        sweep_orphans(folder)
