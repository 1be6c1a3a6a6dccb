"""Trainings on several devices at once: a process for each, which is the command line's own."""

import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from nnseg.agenda import Agenda, Training
from nnseg.errors import (
    INTERRUPTED,
    DataError,
    MachineError,
    MissingError,
    NnsegError,
    StoppedError,
    UsageError,
)
from nnseg.folders import Folders

ASK_SECONDS = 0.5  # between two questions whether to stop
FAULTS = {kind.exit_code: kind for kind in (UsageError, DataError, MachineError, MissingError)}
STOPPED = (StoppedError.exit_code, INTERRUPTED, -2, -15)  # of a process that was told to stop

Outcome = tuple[Training, NnsegError | None]


def train_elsewhere(
    folders: Folders,
    agenda: Agenda,
    devices: Sequence[str],
    precision: str | None,
    say: Callable[[str], None],
    stop: Callable[[], bool],
) -> Iterator[Outcome]:
    """Train the networks of an agenda, as many at a time as there are devices.

    Those that wait for others begin when all others have ended.

    Yields:
        Each training as it ends, with what was wrong where it failed.

    Raises:
        UsageError: The data roots are not the three folders of one root, as a command needs them.
        StoppedError: It was told to stop; every training has saved where it was.
    """
    root = folders.raw.parent
    if Folders.of_root(root) != folders:
        raise UsageError(
            f"{folders.raw}, {folders.preprocessed} and {folders.results} are not the raw, "
            "preprocessed and results of one folder, as several devices need them; give --root"
        )
    command = [sys.executable, "-m", "nnseg", "train", "-q", "--root", str(root)]
    command += ["-p", agenda.order.plan, "--seed", str(agenda.order.seed)]
    command += ["--precision", precision] if precision else []
    for waits in (False, True):
        todo = [one for one in agenda.trainings if one.waits == waits]
        commands = {one: [*command, *_options(agenda, one)] for one in todo}
        yield from _side_by_side(commands, devices, say, stop)


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
) -> Iterator[Outcome]:
    """Run commands on devices, each the next one when it is free."""
    todo: queue.SimpleQueue[Training] = queue.SimpleQueue()
    for training in commands:
        todo.put(training)
    ended: queue.SimpleQueue[tuple[Training, int, str]] = queue.SimpleQueue()
    running: list[subprocess.Popen[str]] = []
    halted, starting = threading.Event(), threading.Lock()

    def work(device: str) -> None:
        while True:
            try:
                training = todo.get_nowait()
            except queue.Empty:
                return
            with starting:
                if halted.is_set():
                    return
                process = subprocess.Popen(  # noqa: S603  (our own command)
                    [*commands[training], "-device", device],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                running.append(process)
            say(f"    {training.name} on {device}")
            last = ""
            assert process.stdout is not None, "it is a pipe"
            with process:
                for line in process.stdout:
                    last = line.rstrip() or last
                    if line.startswith("epoch "):
                        say(f"      {training.name}: {line.rstrip()}")
            ended.put((training, process.returncode, last))

    threads = [threading.Thread(target=work, args=(device,)) for device in devices]
    for thread in threads:
        thread.start()
    left = len(commands)
    try:
        while left:
            if stop():
                raise StoppedError("stopped; every training has saved where it was")
            try:
                training, code, last = ended.get(timeout=ASK_SECONDS)
            except queue.Empty:
                continue
            if code in STOPPED:
                raise StoppedError(f"{training.name} was stopped; the same command goes on")
            left -= 1
            yield training, _fault(code, last)
    finally:
        with starting:
            halted.set()
        for process in running:
            if process.poll() is None:
                process.terminate()
        for thread in threads:
            thread.join()


def _fault(code: int, last: str) -> NnsegError | None:
    """Give what the exit code and last line of a training tell of its failure."""
    if code == 0:
        return None
    reason = last.removeprefix("nnseg: ") or f"its process ended with {code}"
    return FAULTS.get(code, NnsegError)(reason)
