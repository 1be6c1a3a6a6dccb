"""The lock of a folder."""

import dataclasses
import errno
import logging
import os
import re
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nnseg import lock, record
from nnseg.errors import MachineError
from nnseg.lock import Holder, in_use, lock_file, locked

HOLD = """
import errno, os, sys
from pathlib import Path
from nnseg import lock
def refuse(descriptor, operation):
    raise OSError(errno.ENOLCK, "No locks available")
if "without" in sys.argv:
    lock.fcntl.flock = refuse
with lock.locked(Path(sys.argv[1]), "train"):
    if "fork" not in sys.argv or os.fork() == 0:
        print("held", flush=True)
    sys.stdin.read()
"""
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes")
PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def start_holder(folder: Path, *how: str) -> "subprocess.Popen[str]":
    """Start a process that holds the lock of `folder` until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def dead_pid() -> int:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(dead.stdout)


def holder(pid: int, host: str | None = None) -> Holder:
    """Give the holder that process `pid` of this machine would be, or one of another host."""
    own = Holder.of_this_process("train")
    birth = lock._birth(pid)
    return dataclasses.replace(own, pid=pid, host=host or own.host, birth=birth)


@pytest.fixture
def no_file_locks(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Let the kernel lock folders, as on a local disk, but no files, as on some network drives.

    Gives the folder of temporary files.
    """
    flock = pytest.importorskip("fcntl").flock
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(lock.tempfile, "tempdir", str(temporary))

    def refuse(descriptor: int, operation: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOLCK, "No locks available")
        flock(descriptor, operation)

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    return temporary


def test_a_second_run_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "fold_0"
    with (
        locked(folder, "train"),
        pytest.raises(MachineError) as refused,
        locked(folder, "preprocess"),
    ):
        pass
    who = rf"`train`, process {os.getpid()} on {re.escape(socket.gethostname())}"
    since = r"since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00; wait for it"
    assert re.search(rf"fold_0 is in use by {who} {since}$", str(refused.value))
    assert refused.value.exit_code == 4


@pytest.mark.fault("R15")
def test_a_process_holds_the_lock_against_another_until_it_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "fold_0"
    with start_holder(folder) as process:
        with (
            pytest.raises(MachineError, match=f"`train`, process {process.pid} on"),
            locked(folder, "train"),
        ):
            pass
        process.kill()
        process.wait()
    with caplog.at_level(logging.WARNING), locked(folder, "train"):
        assert record.load(Holder, lock_file(folder)).pid == os.getpid()
    text = f"taking over the lock of `train`, process {process.pid} on {socket.gethostname()} since"
    assert text in caplog.text


def test_a_run_that_ended_or_failed_leaves_the_folder_free_and_names_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "new" / "fold_0"
    with locked(folder, "train"):
        assert folder.is_dir()
    with pytest.raises(ZeroDivisionError), locked(folder, "train"):
        1 / 0  # noqa: B018
    assert lock_file(folder).read_bytes() == b""
    with start_holder(folder) as process:
        process.communicate()
    with caplog.at_level(logging.WARNING), locked(folder, "train"):
        pass
    assert caplog.text == ""


def test_the_folder_can_be_renamed_and_made_anew_under_its_lock(tmp_path: Path) -> None:
    folder = tmp_path / "fold_0"
    with locked(folder, "train"):
        assert list(folder.iterdir()) == []
        folder.rename(tmp_path / "aside")
        folder.mkdir()
        with pytest.raises(MachineError, match="in use by"), locked(folder, "train"):
            pass


@POSIX
def test_a_forked_process_that_outlives_a_killed_holder_does_not_keep_its_lock(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "fold_0"
    with start_holder(folder, "fork") as process:
        process.kill()
        process.wait()
        with caplog.at_level(logging.WARNING), locked(folder, "train"):
            pass
    assert "which did not end well" in caplog.text


@pytest.mark.parametrize(
    ("left", "warns"),
    [(os.getppid(), True), ("elsewhere", True), ("{", False), ("", False)],
    ids=["reused", "host", "cut off", "ended well"],
)
def test_only_the_kernel_says_whether_a_lock_is_held_not_what_the_file_says(
    tmp_path: Path, left: int | str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "fold_0"
    if isinstance(left, int):
        record.save(holder(left), lock_file(folder))
    elif left == "elsewhere":
        record.save(holder(1, left), lock_file(folder))
    else:
        lock_file(folder).write_text(left)
    with caplog.at_level(logging.WARNING), locked(folder, "preprocess"):
        assert record.load(Holder, lock_file(folder)).command == "preprocess"
        lock_file(folder).write_text("")  # as between taking it and writing to it
        with pytest.raises(MachineError, match="just begun"), locked(folder, "train"):
            pass
    assert ("taking over the lock" in caplog.text) is warns


def test_a_lock_file_that_is_removed_while_it_is_being_taken_locks_nobody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl, folder = pytest.importorskip("fcntl"), tmp_path / "fold_0"
    flock, calls = fcntl.flock, []

    def remove_first(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            lock_file(folder).unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with (
        locked(folder, "train"),
        pytest.raises(MachineError, match="in use by `train`"),
        locked(folder, "train"),
    ):
        pass


def enter_at_once(folder: Path, count: int) -> int:
    """Let threads try for a lock at one moment; give how many held it."""
    begin, tried = threading.Barrier(count), threading.Barrier(count)
    inside: list[int] = []

    def run(number: int) -> None:
        begin.wait()
        try:
            with locked(folder, "train"):
                inside.append(number)
                tried.wait(20)
        except MachineError:
            tried.wait(20)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(inside)


@pytest.mark.fault("R15")
def test_of_many_threads_that_find_a_dead_lock_one_takes_it(tmp_path: Path) -> None:
    folder = tmp_path / "fold_0"
    record.save(holder(dead_pid()), lock_file(folder))
    assert enter_at_once(folder, 8) == 1


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_of_many_threads_that_find_the_file_of_a_dead_run_one_takes_its_place(
    tmp_path: Path, no_file_locks: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    folder, stand_in = tmp_path / "fold_0", tmp_path / ".fold_0.held"
    gone = holder(dead_pid())
    for _ in range(10):
        record.save(gone, stand_in)
        assert enter_at_once(folder, 4) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == [".fold_0.lock", "fold_0"]


def test_without_locks_of_the_kernel_a_run_that_was_killed_gives_way_aloud(
    tmp_path: Path, no_file_locks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "fold_0"
    with start_holder(folder, "without") as process:
        with pytest.raises(MachineError, match=f"process {process.pid}"), locked(folder, "train"):
            pass
        process.kill()
        process.wait()
    assert (tmp_path / ".fold_0.held").exists()
    with caplog.at_level(logging.WARNING), locked(folder, "train"):
        assert record.load(Holder, tmp_path / ".fold_0.held").pid == os.getpid()
    assert f"taking over the lock of `train`, process {process.pid} on" in caplog.text


def test_a_run_that_takes_over_makes_sure_that_nobody_has_done_so_in_between(
    tmp_path: Path, no_file_locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, stand_in = tmp_path / "fold_0", tmp_path / ".fold_0.held"
    record.save(holder(dead_pid()), stand_in)
    descriptor = os.open(no_file_locks, os.O_RDONLY)
    lock.fcntl.flock(descriptor, lock.fcntl.LOCK_EX)  # another run is about to take it over
    with pytest.raises(MachineError, match="just begun"), locked(folder, "train"):
        pass
    os.close(descriptor)
    read, live = lock._read, holder(os.getppid())

    def read_then_lose(path: Path) -> Holder | None:
        found = read(path)
        if found is not None and found != live:
            record.save(live, stand_in)
        return found

    monkeypatch.setattr(lock, "_read", read_then_lose)
    with pytest.raises(MachineError, match=f"process {live.pid}"), locked(folder, "train"):
        pass
    assert read(stand_in) == live


@pytest.mark.parametrize(
    "change", [{"host": "elsewhere"}, {"machine": "another start of this machine"}], ids=str
)
def test_a_file_of_another_machine_is_never_taken_over(
    tmp_path: Path, no_file_locks: Path, change: dict[str, str]
) -> None:
    folder, stand_in = tmp_path / "fold_0", tmp_path / ".fold_0.held"
    record.save(dataclasses.replace(holder(dead_pid()), **change), stand_in)
    before = stand_in.read_bytes()
    remedy = r"or remove .*\.fold_0\.held if it no longer runs"
    with pytest.raises(MachineError, match=remedy), locked(folder, "train"):
        pass
    assert stand_in.read_bytes() == before


@PROC
def test_a_process_that_has_the_number_of_a_holder_or_was_not_reaped_is_not_the_holder() -> None:
    own = holder(os.getpid())
    assert not own.is_gone
    assert dataclasses.replace(own, birth="1").is_gone
    assert not dataclasses.replace(own, birth="1", machine="another start").is_gone
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        child = holder(process.pid)
        assert not child.is_gone
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert child.is_gone


@pytest.mark.parametrize("system", ["windows", "network drive"])
def test_without_locks_of_the_kernel_a_file_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if system == "windows":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "flock", refuse)
    folder = tmp_path / "fold_0"
    with (
        locked(folder, "train"),
        pytest.raises(MachineError, match=r"use by `train`.* remove .*\.fold_0\.held if it no"),
        locked(folder, "train"),
    ):
        pass
    stand_in = tmp_path / ".fold_0.held"
    with locked(folder, "train"):
        record.save(holder(1, "elsewhere"), stand_in)  # a person has made way for another run
    assert stand_in.exists()
    stand_in.unlink()
    with locked(folder, "train"):
        pass
    stand_in.touch()  # another run has created it and not written to it yet
    with pytest.raises(MachineError, match="just begun"), locked(folder, "train"):
        pass
    assert stand_in.exists()


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "file"])
def test_whether_a_folder_is_in_use_can_be_asked_without_taking_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: bool
) -> None:
    if not kernel:
        monkeypatch.setattr(lock, "fcntl", None)
    folder = tmp_path / "fold_0"
    assert in_use(folder) is None
    assert list(tmp_path.iterdir()) == []
    with locked(folder, "train"):
        who = in_use(folder)
        assert who is not None
        assert (who.pid, who.command) == (os.getpid(), "train")
    assert in_use(folder) is None
    record.save(holder(dead_pid()), lock_file(folder) if kernel else tmp_path / ".fold_0.held")
    assert in_use(folder) is None
