"""What befalls a command in its fork: before it starts, or once it has written a certain file.

Each function gets the words that a test gives; a pattern is one of `Path.rglob`.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OWN_MOUNTS, PRIVATE = 0x00020000, 0x44000  # CLONE_NEWNS; MS_REC and MS_PRIVATE


def once_there(folder: str, pattern: str, act: Callable[[], object]) -> None:
    """Do something as soon as a file is there, while the command goes on."""

    def watch() -> None:
        while not any(Path(folder).rglob(pattern)):
            time.sleep(0.001)
        act()

    threading.Thread(target=watch, daemon=True).start()


def note_strike() -> None:
    """Note when the command was struck first: from then on it has to come to an end."""
    with contextlib.suppress(FileExistsError), open(os.environ["FAULTS_STRUCK"], "x") as file:
        file.write(str(time.monotonic()))


def fill(disk: str, folder: str, pattern: str) -> None:
    """Have another program fill the disk once a file is there."""

    def act() -> None:
        with open(Path(disk) / "of_another", "wb") as file:
            while free := shutil.disk_usage(disk).free:
                with contextlib.suppress(OSError):  # the command was quicker; then what is left
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, free)
        note_strike()

    once_there(folder, pattern, act)


def send(note: str, folder: str, pattern: str, *names: str) -> None:
    """Send this process signals, one after the other, once a file is there; note when."""

    def act() -> None:
        note_strike()
        for name in names:
            Path(note).write_text(str(time.monotonic()))
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(0.1)

    once_there(folder, pattern, act)


def note_then_stop(note: str, folder: str, pattern: str) -> None:
    """Note what the command took until a file is there, and have it stop then."""
    processor, clock = time.process_time(), time.monotonic()

    def act() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found = {
            "processor_seconds": time.process_time() - processor,
            "seconds": time.monotonic() - clock,
            "bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        }
        Path(note).write_text(json.dumps(found))
        note_strike()
        os.kill(os.getpid(), signal.SIGINT)

    once_there(folder, pattern, act)


def save_often() -> None:
    """Have a training keep a checkpoint after every step."""
    from nnseg import train

    train.SAVE_EVERY = -1.0


def pause_steps(seconds: str) -> None:
    """Have every training step take that long at least."""
    from nnseg import train

    step = train.train_step

    def slow(*args: Any) -> Any:
        time.sleep(float(seconds))
        return step(*args)

    train.train_step = slow


def small_disk(folder: str, kibibytes: str) -> None:
    """Mount a disk of a size over a folder, for this command alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    calls = [
        (libc.unshare, (OWN_MOUNTS,)),
        (libc.mount, (b"none", b"/", None, PRIVATE, None)),
        (libc.mount, (b"tmpfs", folder.encode(), b"tmpfs", 0, f"size={kibibytes}k".encode())),
    ]
    for call, args in calls:
        if call(*args):
            raise OSError(ctypes.get_errno(), "cannot mount")


def homeless(gone: str) -> None:
    """Take away the home, the folder of temporary files and the current folder."""
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        os.environ[name] = "/proc/nowhere"  # where nobody can make a folder
    tempfile.tempdir = None
    tempfile._candidate_tempdir_list = lambda: ["/proc/nowhere"]  # type: ignore[attr-defined]
    Path(gone).mkdir()
    os.chdir(gone)
    Path(gone).rmdir()


def without(package: str) -> None:
    """Have a package be missing."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    sys.modules[package] = None  # type: ignore[assignment]


def fail_to_save(case: str) -> None:
    """Have what writes the results of one case meet an error that nobody has thought of."""
    from nnseg.verbs import predicting

    save = predicting._save

    def fail(job: Any, *args: Any) -> Any:
        if job.case_id == case:
            raise SystemError("the writer is gone")
        return save(job, *args)

    predicting._save = fail


def two_ranks(port: str, metrics: str = "", epochs: str = "0") -> None:
    """Be two processes that train together; the second dies once so many epochs are done."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    rank = str(int(os.fork() == 0))
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
    if rank == "0" or not metrics:
        return

    def watch() -> None:
        while True:
            try:
                if len(Path(metrics).read_text().splitlines()) > int(epochs):
                    note_strike()
                    os.kill(os.getpid(), signal.SIGKILL)
            except OSError:
                pass
            time.sleep(0.001)

    threading.Thread(target=watch, daemon=True).start()


def impatient_ranks(seconds: str, sleep: str) -> None:
    """Have ranks wait for each other for some seconds only, and the first one validate longer."""
    from datetime import timedelta

    from nnseg.model import ranks
    from nnseg.verbs import training

    validate = training._validate

    def slow(*args: Any) -> Any:
        time.sleep(float(sleep))
        return validate(*args)

    ranks.PATIENCE = timedelta(seconds=float(seconds))
    training._validate = slow


def kill_workers(folder: str, pattern: str) -> None:
    """Kill the processes that this one has started, once a file is there."""
    once_there(folder, pattern, kill_children)


def kill_every_worker() -> None:
    """Kill each process that this one starts, as soon as it is there."""

    def watch() -> None:
        while True:
            kill_children()
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()


def note_children(note: str, folder: str, pattern: str) -> None:
    """Note how many processes the command has started when a file is there."""
    once_there(folder, pattern, lambda: Path(note).write_text(str(len(children()))))


def kill_children() -> None:
    for pid in children():
        note_strike()
        with contextlib.suppress(ProcessLookupError):  # it has just been waited for
            os.kill(pid, signal.SIGKILL)


def children() -> list[int]:
    """List the processes that this one has started and not waited for."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return found


def read_from_disk() -> None:
    """Have a training keep none of its cases in memory."""
    from nnseg.verbs import planned_fold

    planned_fold.MEMORY_SHARE = 0.0


def remove(folder: str, pattern: str, target_folder: str, target: str) -> None:
    """Have somebody remove files once a file is there."""
    once_there(
        folder, pattern, lambda: [path.unlink() for path in Path(target_folder).glob(target)]
    )
