"""One run at a time in a folder: a lock file beside it that names who holds it.

The kernel holds the lock, for the open file: it is free when the process ends, however it ends, and
only one can take it. The file stays when the lock is let go. To remove it would let one run lock
the removed file, which it had opened before, and another a new file of the same name. Where the
kernel has no such locks (Windows, some network drives), a second file's being there is the lock; it
outlives a process that is killed, and the next run on the same host removes it.
"""

import contextlib
import errno
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from nnseg import record
from nnseg.commit import cannot_write, unfinished_path
from nnseg.errors import MachineError, NnsegError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # some network drives

_held: set[int] = set()  # descriptors of the locks that the kernel holds for this process


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a lock.

    A process's number counts within `machine`: one start of one machine, or of one container on
    it. `birth` tells the process from a later one with its number. Both are the kernel's own
    marks, empty where it gives none.
    """

    host: str
    pid: int
    command: str
    started: str  # UTC, ISO 8601: when the lock was taken
    machine: str = ""
    birth: str = ""

    @classmethod
    def of_this_process(cls, command: str) -> "Holder":
        """Give the holder that this process is when it takes a lock for `command` now."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            command=command,
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            machine=_machine(),
            birth=_birth(os.getpid()),
        )

    def __str__(self) -> str:
        return f"`{self.command}`, process {self.pid} on {self.host} since {self.started}"

    @property
    def is_gone(self) -> bool:
        """Whether the holder surely runs no more; of another machine nobody can tell."""
        here = (socket.gethostname(), _machine())
        if (self.host, self.machine) != here or os.name == "nt":  # there, signal 0 is Ctrl-C
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:
            return False
        birth = _birth(self.pid)
        return birth != "" and birth != self.birth


def lock_file(folder: Path) -> Path:
    """Give the file that locks `folder`; it lies beside it, so that the folder can be renamed."""
    return _beside(folder, "lock")


@contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Hold the lock of `folder` while a command works in it; the folder is made if need be.

    The lock of a run that was cut off is taken over, with a warning. Where only a file's being
    there is the lock, that needs a run on the same machine, which can tell that the process is
    gone.

    Raises:
        MachineError: Another run holds it, or the folder cannot be written.
    """
    own = Holder.of_this_process(command)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = None if fcntl is None else _take(folder, own)
        if descriptor is None:
            _create(folder, own)
    except OSError as error:
        raise cannot_write(lock_file(folder), error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if descriptor is None:
                if _read(_stand_in(folder)) == own:  # unless a person has removed it meanwhile
                    _stand_in(folder).unlink()
            elif descriptor in _held:  # not so in a process forked from the holder
                _held.discard(descriptor)
                os.ftruncate(descriptor, 0)  # so that the file names nobody who has ended well
                os.close(descriptor)


def in_use(folder: Path) -> Holder | None:
    """Give who holds the lock of `folder` at this moment; None if nobody does."""
    holder = _read(_stand_in(folder))
    if holder is not None and not holder.is_gone:
        return holder
    holder = _read(lock_file(folder))
    if holder is None or fcntl is None:
        return None
    try:
        with open(lock_file(folder), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return holder if error.errno in HELD else None
    return None


def _take(folder: Path, own: Holder) -> int | None:
    """Lock the file and give its descriptor, whose closing frees it; None if nothing can lock."""
    path = lock_file(folder)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_still(path, descriptor):  # somebody removed it between the two calls
                os.close(descriptor)
                continue
            before = _read(path)
            if before is not None:
                _say_taken_over(folder, before)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, record.dumps(own).encode())
        except OSError as error:
            os.close(descriptor)
            if error.errno in UNSUPPORTED:
                return None
            if error.errno in HELD:
                raise _in_use(folder, _read(path), "wait for it") from None
            raise
        _held.add(descriptor)
        return descriptor


def _create(folder: Path, own: Holder) -> None:
    """Create a file whose being there is the lock, in place of that of a process that is gone."""
    path = _stand_in(folder)
    while not _create_whole(path, record.dumps(own)):
        holder = _read(path)
        if holder is None and not path.exists():  # it has just been let go
            continue
        if fcntl is None or holder is None or not holder.is_gone:
            remedy = f"wait for it, or remove {path} if it no longer runs"
            raise _in_use(folder, holder, remedy)
        with _alone_on_this_host(folder):
            if _read(path) == holder:
                path.unlink()
                _say_taken_over(folder, holder)


def _create_whole(path: Path, text: str) -> bool:
    """Create a file with all its content at once; False if there is one."""
    temporary = unfinished_path(path)
    try:
        temporary.write_text(text, "utf-8")
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # no hard links there: a kill before the content is written blocks the next run
        with contextlib.suppress(FileExistsError), open(path, "x", encoding="utf-8") as file:
            file.write(text)
            return True
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


@contextmanager
def _alone_on_this_host(folder: Path) -> Iterator[None]:
    """Let one run at a time remove what a dead one left, or two would, one of them a live lock.

    All who may are on one host, whose kernel can lock its folder of temporary files.
    """
    descriptor = os.open(tempfile.gettempdir(), os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise _in_use(folder, None, "wait for it") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _stand_in(folder: Path) -> Path:
    return _beside(folder, "held")


def _beside(folder: Path, ending: str) -> Path:
    """Name a file beside a folder; "." and ".." have names only once they are resolved."""
    whole = folder.resolve() if folder.name in {"", ".."} else folder
    return whole.parent / f".{whole.name}.{ending}"


def _say_taken_over(folder: Path, before: Holder) -> None:
    logger.warning("%s: taking over the lock of %s, which did not end well", folder, before)


def _in_use(folder: Path, holder: Holder | None, remedy: str) -> MachineError:
    who = "a run that has just begun or ended" if holder is None else str(holder)
    return MachineError(f"{folder} is in use by {who}; {remedy}")


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _read(path: Path) -> Holder | None:
    try:
        return record.load(Holder, path)
    except NnsegError:
        return None


def _machine() -> str:
    """Name this start of the machine and the space that process numbers count in."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _birth(pid: int) -> str:
    """Give when a process began, in ticks of the kernel; "ended" of one that was not reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return ""
    state, *fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return "ended" if state in "ZX" else fields[18]


def _let_go_in_child() -> None:
    """Close the locks that a forked process inherits: it must not keep them when its parent dies.

    Closing a copy lets nothing go as long as the parent has its own.
    """
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)
