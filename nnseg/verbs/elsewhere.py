"""Trainings on several devices at once: a process for each, which is the command line's own.

Each gets a pipe that only its parent holds. When the parent dies, whatever kills it, the pipe is
closed, and the training saves where it is and ends.
"""

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from nnseg.errors import (
    INTERRUPTED,
    DataError,
    DiskFullError,
    MachineError,
    MissingError,
    NnsegError,
    StoppedError,
    UsageError,
)
from nnseg.folders import Folders
from nnseg.verbs.agenda import Agenda, Training

ASK_SECONDS = 0.5  # between two questions whether to stop
FAULTS = {kind.exit_code: kind for kind in (UsageError, DataError, MachineError, MissingError)}
STOPPED = (StoppedError.exit_code, INTERRUPTED, -2, -15)  # of a process that was told to stop
DISK_FULL = re.compile(r"the disk is full")  # as `DiskFullError`, whose exit code is not its own
END_WITHIN = 30.0  # seconds that a training gets to save where it is
PROGRAM = (  # as `python -m nnseg`, but that it ends with its parent
    "import sys; sys.path[:] = {path!r}; "
    "from nnseg.verbs.elsewhere import end_with_parent; end_with_parent(); "
    "from nnseg.cli import main; sys.exit(main())"
)
ERROR = "nnseg: "  # how the lines of an error begin, of which there may be several

Outcome = tuple[Training, NnsegError | None]


def train_elsewhere(
    folders: Folders,
    agenda: Agenda,
    devices: Sequence[str],
    precision: str | None,
    say: Callable[[str], None],
    stop: Callable[[], bool],
    check: Callable[[Training], None] = lambda training: None,
) -> Iterator[Outcome]:
    """Train the networks of an agenda, as many at a time as there are devices.

    Those that wait for others begin when all others have ended.

    Args:
        folders: The data roots.
        agenda: Of the job.
        devices: Where to train.
        precision: As for `pipeline.train`.
        say: Gets a line for the user as a training begins, and those of its epochs.
        stop: Asked often.
        check: Called with each training before it begins; what it raises ends the job.

    Yields:
        Each training as it ends, with what was wrong where it failed.

    Raises:
        UsageError: The data roots are not the three folders of one root, as a command needs them.
        StoppedError: It was told to stop; every training has saved where it was.
        MachineError: The disk is full, or a process could not be started.
    """
    root = folders.raw.parent
    if Folders.of_root(root) != folders:
        raise UsageError(
            f"{folders.raw}, {folders.preprocessed} and {folders.results} are not the raw, "
            "preprocessed and results of one folder, as several devices need them; give --root"
        )
    command = [sys.executable, "-c", PROGRAM.format(path=sys.path), "train", "-q"]
    command += ["--root", str(root)]
    command += ["-p", agenda.order.plan, "--seed", str(agenda.order.seed)]
    command += ["--precision", precision] if precision else []
    for waits in (False, True):
        todo = [one for one in agenda.trainings if one.waits == waits]
        commands = {one: [*command, *_options(agenda, one)] for one in todo}
        yield from _side_by_side(commands, devices, say, stop, check)


def end_with_parent() -> None:
    """Have this process end when nobody can write to its input any more, as its parent has died.

    It is asked to stop, and has half a minute to save where it is.
    """
    threading.Thread(target=_watch_input, daemon=True).start()


def _watch_input() -> None:
    while os.read(0, 1):  # not by sys.stdin, whose lock Python wants when this process ends
        pass
    nowhere = os.open(os.devnull, os.O_WRONLY)  # nobody reads what it says any more
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_WITHIN)
    os._exit(1)


def _options(agenda: Agenda, training: Training) -> list[str]:
    """Give what the command of one training has of its own."""
    length = ["--preset", agenda.order.preset]
    if training.budget_seconds is not None:
        length = ["--budget", f"{training.budget_seconds:.0f}s"]
    return [agenda.dataset, training.configuration, training.fold, *length]


def _side_by_side(
    commands: dict[Training, list[str]],
    devices: Sequence[str],
    say: Callable[[str], None],
    stop: Callable[[], bool],
    check: Callable[[Training], None] = lambda training: None,
) -> Iterator[Outcome]:
    """Run commands on devices, each the next one when it is free."""
    todo: queue.SimpleQueue[Training] = queue.SimpleQueue()
    for training in commands:
        todo.put(training)
    ended: queue.SimpleQueue[tuple[Training, int, str] | BaseException] = queue.SimpleQueue()
    running: list[subprocess.Popen[str]] = []
    halted, starting = threading.Event(), threading.Lock()

    def work(device: str) -> None:
        try:
            while True:
                training = todo.get_nowait()
                check(training)
                with starting:
                    if halted.is_set():
                        return
                    process = _start(training, [*commands[training], "-device", device])
                    running.append(process)
                begun = f"{training.name} on {device}"
                ended.put((training, *_follow(process, training, begun, say)))
        except queue.Empty:
            return
        except BaseException as error:  # nobody else would hear of it
            ended.put(error)

    threads = [threading.Thread(target=work, args=(device,)) for device in devices]
    for thread in threads:
        thread.start()
    left = len(commands)
    try:
        while left:
            if stop():
                raise StoppedError("stopped; every training has saved where it was")
            try:
                outcome = ended.get(timeout=ASK_SECONDS)
            except queue.Empty:
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            training, code, last = outcome
            if code in STOPPED:
                raise StoppedError(f"{training.name} was stopped; the same command goes on")
            fault = _fault(code, last)
            if isinstance(fault, DiskFullError):
                raise fault
            left -= 1
            yield training, fault
    finally:
        with starting:
            halted.set()
        _end(running)
        for thread in threads:
            thread.join()


def _start(training: Training, command: list[str]) -> "subprocess.Popen[str]":
    """Start a training; bytes of its output that are no text are told as such.

    Raises:
        MachineError: No process can be started.
    """
    try:
        return subprocess.Popen(  # noqa: S603  (our own command)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise MachineError(
            f"{training.name}: no process can be started for it ({reason}); free memory, or train "
            "on fewer devices"
        ) from None


def _follow(
    process: "subprocess.Popen[str]", training: Training, begun: str, say: Callable[[str], None]
) -> tuple[int, str]:
    """Tell that a training has begun, and its epochs: its exit code, and what it said last."""
    last: list[str] = []
    assert process.stdout is not None, "it is a pipe"
    with process.stdout:
        say(f"    {begun}")
        for line in map(str.rstrip, process.stdout):
            if line.startswith("epoch "):
                say(f"      {training.name}: {line}")
            if last and last[0].startswith(ERROR) and not line.startswith((ERROR, "epoch ")):
                last.append(line)
            elif line:
                last = [line]
    return process.wait(), "\n".join(last).rstrip()


def _end(running: Sequence["subprocess.Popen[str]"]) -> None:
    """Have processes end: they are asked to, and killed where they do not in half a minute."""
    for process in running:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + END_WITHIN
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()


def _fault(code: int, last: str) -> NnsegError | None:
    """Give what the exit code and last words of a training tell of its failure."""
    if code == 0:
        return None
    if code == -signal.SIGKILL:
        return MachineError(
            "its process was killed by signal 9, probably for want of memory; train on fewer "
            "devices at once, or plan a smaller network: `nnseg plan --memory-gb`"
        )
    if code < 0:
        return MachineError(f"its process died of signal {-code} ({signal.strsignal(-code)})")
    reason = last.removeprefix(ERROR) or f"its process ended with {code}"
    if code == DiskFullError.exit_code and DISK_FULL.search(reason):
        return DiskFullError(reason)
    return FAULTS.get(code, NnsegError)(reason)
