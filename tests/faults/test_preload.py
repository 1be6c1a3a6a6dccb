"""The library that the fault tests lean on: it counts, fails and kills as preload.c says."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from endings import IDLE, Ending
from injection import NONE, Fault, Injector, Outcome, outcome

SHOW_ERRORS = """
import errno, sys
try:
    exec(sys.argv[1])
except OSError as error:
    print(errno.errorcode[error.errno], error.filename)
"""


def run(injector: Injector, root: Path, code: str, fault: Fault = NONE) -> Outcome:
    """Run lines of Python whose current folder is root/preprocessed, where calls are counted."""
    (root / "preprocessed").mkdir(parents=True, exist_ok=True)
    place = root / "place"
    environment = os.environ | injector.environment(root, place, fault)
    with open(place / "said", "wb") as said:
        ended = subprocess.call(
            [sys.executable, "-I", "-S", "-c", SHOW_ERRORS, code],
            env=environment,
            cwd=root / "preprocessed",
            stdout=said,
        )
    return outcome(Ending(code=ended, ended=time.monotonic()), place, fault)


@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        ("open('a', 'w').write('12')", "open write"),
        ("open('/dev/null', 'w').write('12')", ""),
        ("open('../beside', 'w').write('12')", ""),
        ("import os; os.mkdir('d'); os.rename('d', 'e'); os.rmdir('e')", "mkdir rename remove"),
        (
            "import os; f = os.open('a', os.O_RDWR | os.O_CREAT); os.pwrite(f, b'12', 0);"
            "os.writev(f, [b'1', b'2']); os.truncate(f, 1); os.fsync(f); os.fdatasync(f)",
            "open write write write sync sync",
        ),
        ("open('a', 'w').close(); open('a').read()", "open"),
        (
            "import os; open('a', 'w').close(); os.link('a', 'b'); os.symlink('a', 'c');"
            "os.remove('b')",
            "open link link remove",
        ),
        (
            "import os; f = os.open('.', os.O_RDONLY); os.mkdir('d', dir_fd=f);"
            "os.rename('d', 'e', src_dir_fd=f, dst_dir_fd=f); os.rmdir('e', dir_fd=f)",
            "mkdir rename remove",
        ),
        (
            "import shutil; open('a', 'w').write('12'); shutil.copyfile('a', 'b')",
            "open write open write write",
        ),
    ],
)
def test_what_changes_a_file_below_the_folder_is_counted_and_nothing_else(
    injector: Injector, tmp_path: Path, code: str, kinds: str
) -> None:
    found = run(injector, tmp_path, code)
    assert found.said == ""
    assert " ".join(call.kind for call in found.calls) == kinds
    assert all(call.path.parent == tmp_path / "preprocessed" for call in found.calls)
    assert [call.number for call in found.calls] == list(range(1, len(found.calls) + 1))


@pytest.mark.parametrize("action", ["ENOSPC", "EIO"])
def test_the_call_with_the_number_fails_and_no_other(
    injector: Injector, tmp_path: Path, action: str
) -> None:
    code = "\n".join(["for i in range(4):", " try: open(str(i), 'x')", " except OSError: print(i)"])
    for number in range(1, 5):
        found = run(injector, tmp_path / str(number), code, Fault(action=action, at=number))
        assert found.said == f"{number - 1}\n"
        assert found.hit is not None
        assert found.hit.path.name == str(number - 1)
    assert run(injector, tmp_path / "5", code, Fault(action=action, at=5)).hit is None
    lasting = run(injector, tmp_path / "6", code, Fault(action=action, at=2, lasting=True))
    assert lasting.said == "1\n2\n3\n"


def test_a_full_disk_takes_half_of_a_write_and_lets_files_be_removed(
    injector: Injector, tmp_path: Path
) -> None:
    code = "import os; open('b', 'w').close(); os.remove('b'); open('a', 'wb', 0).write(b'1234')"
    found = run(injector, tmp_path, code, Fault(action="ENOSPC", at=3, lasting=True))
    assert found.said == "ENOSPC None\n"
    assert (tmp_path / "preprocessed" / "a").read_text() == "12"


def test_a_kill_ends_the_process_within_the_call(injector: Injector, tmp_path: Path) -> None:
    code = "open('a', 'w').write('1234'); open('b', 'w')"
    found = run(injector, tmp_path, code, Fault(action="kill", at=2))
    assert found.code == -signal.SIGKILL
    assert 0 < found.lived < IDLE
    assert (tmp_path / "preprocessed" / "a").read_text() == "12"
    assert len(found.calls) == 2


def test_processes_and_threads_count_together(injector: Injector, tmp_path: Path) -> None:
    code = "\n".join(
        [
            "import os, threading",
            "def make(name):",
            " for i in range(50): open(f'{name} {i}', 'w').close()",
            "both = [threading.Thread(target=make, args=(i,)) for i in range(2)]",
            "for thread in both: thread.start()",
            "child = os.fork()",
            "make(f'child {child}')",
            "if child: os.wait()",
            "else: os._exit(0)",
            "for thread in both: thread.join()",
        ]
    )
    found = run(injector, tmp_path, code)
    assert [call.number for call in found.calls] == list(range(1, 201))
    assert len({call.path for call in found.calls}) == 200


def test_calls_can_be_slowed_down(injector: Injector, tmp_path: Path) -> None:
    code = "import time; t = time.monotonic(); open('a', 'w'); print(time.monotonic() - t)"
    found = run(injector, tmp_path, code, Fault(sleep_us=200_000))
    assert 0.2 <= float(found.said) < 2
