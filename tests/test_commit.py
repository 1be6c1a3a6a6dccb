import errno
import os
import shutil
import socket
import stat
import subprocess
import sys
from hashlib import sha256 as hash_of
from pathlib import Path
from typing import Any

import pytest

from nnseg import commit
from nnseg.commit import (
    remove,
    sha256,
    sweep,
    sweep_orphans,
    sync_folder,
    whole_file,
    whole_files,
    whole_folder,
    write_whole,
)
from nnseg.errors import DiskFullError, MachineError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_with(number: int) -> Any:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_file_is_written_with_the_folders_around_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "file.json"
    write_whole(path, b"one")
    assert path.read_bytes() == b"one"
    assert names(path.parent) == ["file.json"]


def test_writing_again_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"a longer one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"


def test_the_temporary_name_keeps_the_endings(tmp_path: Path) -> None:
    with whole_file(tmp_path / "image.nii.gz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".nii.gz")
        temporary.touch()


def test_until_the_end_the_old_file_stands(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    with whole_file(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def write_half() -> None:
        with whole_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_an_error_of_the_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    monkeypatch.setattr(Path, step, fail_with(number))
    with pytest.raises(MachineError):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_bytes_that_do_not_reach_the_disk_leave_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    monkeypatch.setattr(os, "fsync", fail_with(errno.EIO))
    with pytest.raises(MachineError, match="cannot be written"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_is_told_with_the_space_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(tmp_path))(2**40, 2**40 - 3 * 2**20, 3 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(Path, "write_bytes", fail_with(errno.ENOSPC))
    with pytest.raises(MachineError, match=r"file: the disk is full \(3 MiB free\); make room"):
        write_whole(tmp_path / "file", b"new")
    monkeypatch.setattr(Path, "write_bytes", fail_with(errno.EDQUOT))
    with pytest.raises(MachineError, match="the disk is full"):
        write_whole(tmp_path / "file", b"new")


def test_a_folder_that_cannot_be_made_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(MachineError, match=r"taken/file: cannot be written \(.*\); check"):
        write_whole(tmp_path / "taken" / "file", b"new")


def test_the_file_and_then_its_folder_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_whole(tmp_path / "file", b"one")
    assert steps == ["file", "rename", "folder"]


def test_sweeping_removes_what_a_kill_left_and_nothing_else(tmp_path: Path) -> None:
    for name in (f"{commit.TEMPORARY}1234-file", f"{commit.TEMPORARY}5-x.nii.gz", "file", ".keep"):
        (tmp_path / name).touch()
    assert sweep(tmp_path) == 2
    assert names(tmp_path) == [".keep", "file"]
    assert sweep(tmp_path) == 0


def unfinished(folder: Path, name: str = "file") -> Path:
    """Leave behind what a process that was killed while it wrote does; give it."""
    code = "import os, sys; from pathlib import Path; from nnseg.commit import whole_file\n"
    code += "with whole_file(Path(sys.argv[1])) as path: path.touch(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(folder / name)]).returncode == 9
    return next(path for path in folder.glob(f"{commit.TEMPORARY}*") if path.name.endswith(name))


def test_what_a_process_that_is_gone_left_is_removed_by_the_next_that_writes_there(
    tmp_path: Path,
) -> None:
    left = unfinished(tmp_path)
    with whole_file(tmp_path / "other") as temporary:
        assert not left.exists()
        temporary.touch()
    assert names(tmp_path) == ["other"]


def test_only_what_surely_nobody_writes_is_an_orphan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = unfinished(tmp_path)
    start, host, pid, process, rest = left.name.split("-", 4)
    living = [
        f"{start}-{host}-{os.getppid()}-{process}-{rest}",  # another process, which runs
        f"{start}-{int(host, 16) ^ 1:08x}-{pid}-{process}-{rest}",  # of another host
        f"{start}-1234-file",  # not named by `whole_file`
        "file",
    ]
    for name in living:
        (tmp_path / name).touch()
    (tmp_path / f"{start}-{host}-{os.getpid()}-{process}-{rest}").touch()  # had our number
    (tmp_path / f"{start}-{host}-{2**70}-{process}-{rest}").touch()  # no process can have it
    with whole_file(tmp_path / "ours") as temporary:
        temporary.touch()
        assert sweep_orphans(tmp_path) == 0  # the first write had removed them
        assert names(tmp_path) == sorted([*living, temporary.name])
    commit._host.cache_clear()
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    left = unfinished(tmp_path)
    assert sweep_orphans(tmp_path) == 0
    commit._host.cache_clear()


def test_an_orphan_that_cannot_be_removed_does_not_keep_a_file_from_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = unfinished(tmp_path)
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == left:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    write_whole(tmp_path / "file", b"new")
    assert names(tmp_path) == [left.name, "file"]
    with pytest.raises(
        MachineError, match=r"-file: cannot be removed \(Permission denied\); check"
    ):
        sweep(tmp_path)


def fail_halfway(target: Path) -> None:
    with whole_folder(target) as folder:
        (folder / "file").touch()
        raise ValueError("half of it")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "new") as unfinished_one:
        (unfinished_one / "inner").mkdir()
        (unfinished_one / "inner" / "file").touch()
        assert not (tmp_path / "new").exists()
    assert names(tmp_path) == ["new"]
    assert (tmp_path / "new" / "inner" / "file").is_file()
    with pytest.raises(ValueError, match="half"):
        fail_halfway(tmp_path / "other")
    assert names(tmp_path) == ["new"]


def test_files_get_their_names_only_once_all_are_written(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("old")
    with whole_files(tmp_path) as folder:
        for name in ("a", "b"):
            write_whole(folder / name, b"new")
        assert (tmp_path / "b").read_text() == "old"
        assert not (tmp_path / "a").exists()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        "ab", "new"
    )


def test_a_full_disk_among_several_files_is_told_by_the_name_that_one_was_to_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_bytes", fail_with(errno.ENOSPC))
    with pytest.raises(DiskFullError) as raised, whole_files(tmp_path) as folder:
        write_whole(folder / "scan.nii.gz", b"new")
    assert str(raised.value).startswith(f"{tmp_path / 'scan.nii.gz'}: the disk is full")
    assert not names(tmp_path)


def test_a_folder_that_a_killed_process_was_making_is_removed_by_the_next(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from nnseg.commit import whole_folder\n"
    code += "with whole_folder(Path(sys.argv[1])) as path: (path / 'a').touch(); os._exit(9)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "new")])
    assert done.returncode == 9
    (left,) = names(tmp_path)
    assert left.startswith(commit.TEMPORARY)
    with whole_folder(tmp_path / "new"):
        pass
    assert names(tmp_path) == ["new"]


def test_a_full_disk_has_an_error_of_its_own_and_other_faults_have_not(tmp_path: Path) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
        with pytest.raises(MachineError) as raised, whole_folder(tmp_path / "new"):
            raise OSError(number, os.strerror(number))
        assert isinstance(raised.value, DiskFullError) is (number != errno.EACCES)


def test_removing_a_file_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        remove(tmp_path / "file")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "a" + "ü" * 123 + ".nii.gz"])
def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path, name: str) -> None:
    assert len(name.encode()) > 253
    with whole_file(tmp_path / name) as temporary:
        assert temporary.name.endswith(name[-7:])
        temporary.write_bytes(b"one")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_folder_that_knows_no_sync_is_left_alone_and_one_that_fails_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", fail_with(number))
    if number == errno.EINVAL:
        sync_folder(tmp_path)
    else:
        with pytest.raises(OSError, match="Input/output error"):
            sync_folder(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1])
def test_the_hash_is_that_of_all_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    (tmp_path / "file").write_bytes(data)
    assert sha256(tmp_path / "file") == hash_of(data).hexdigest()
