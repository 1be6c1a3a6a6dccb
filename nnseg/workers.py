"""Work in processes of its own, so that the death of one costs its case a second try, not the run.

A worker is this Python again, without torch, and without the caller's main module: a script needs
no guard. Through a pipe it gets a function, then one item at a time, and answers with the result or
with what went wrong, as text. It ends when its parent does. Where no pipe can be handed down
(Windows), threads do the work.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, TypeAlias, TypeVar

from nnseg import errors
from nnseg.errors import DiskFullError, MachineError, NnsegError
from nnseg.parallel import (
    NO_BOUND,
    OnProgress,
    Room,
    cores,
    for_each,
    one_blas_thread,
    raise_together,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")

LOOK_EVERY = 1.0  # seconds between looks whether workers live; mostly a closed pipe tells at once
END_WITHIN = 10.0  # seconds that a worker gets to end by itself

Told: TypeAlias = tuple[str, int, str]  # logger, level, message


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one item."""

    kind: Literal["done", "refused", "no_memory", "bug", "died"]
    value: Any  # the result; else the text of what went wrong
    error: str = ""  # the name of the exception
    told: tuple[Told, ...] = ()  # what was logged meanwhile


def for_each_apart(
    work: Callable[[Item], T],
    items: Sequence[Item],
    name_of: Callable[[Item], str],
    workers: int | None,
    what: str,
    on_progress: OnProgress | None,
    room: Room = NO_BOUND,
) -> dict[str, T]:
    """Do what `for_each` does, with the same arguments, each item in one of several processes.

    When a worker dies, or memory does not suffice, the log says at which case. The number of
    workers is halved then, and the case tried again at the end, alone. If that fails too, it is
    listed as failed, and the others are done. `work` must be a function of a module, or a partial
    of one, and it, the items and the results must be what pipes can carry.
    """
    if os.name == "nt":
        return for_each(work, items, name_of, workers, what, on_progress, room)
    by_name = {name_of(item): item for item in items}
    waiting, again, retried = deque(by_name), deque[str](), set[str]()
    done: dict[str, T] = {}
    failed: dict[str, NnsegError] = {}
    crew = _Crew(work, min(workers or cores(), len(items)))
    try:
        while waiting or again or crew.busy:
            while waiting and crew.has_place and room.fits(waiting[0], crew.busy):
                crew.give(waiting[0], by_name[waiting.popleft()])
            if again and not waiting and not crew.busy:
                crew.give(again[0], by_name[again.popleft()])
            for name, answer in crew.answers():
                for logged, level, message in answer.told:
                    logging.getLogger(logged).log(level, "%s", message)
                if answer.kind == "done":
                    done[name] = answer.value
                elif answer.kind == "refused":
                    failed[name] = _refusal(answer)
                    if isinstance(failed[name], DiskFullError):
                        waiting.clear()
                        again.clear()
                elif answer.kind == "bug":
                    raise RuntimeError(f"case {name}: {answer.error}: {answer.value}")
                elif name in retried:
                    failed[name] = MachineError(f"{answer.value}; free memory or leave it out")
                else:
                    retried.add(name)
                    again.append(name)
                    crew.shrink()
                    text = "case %s: %s; trying again with fewer workers"
                    logger.warning(text, name, answer.value)
                if on_progress:
                    on_progress(what, len(done) + len(failed), len(by_name))
    except BaseException:
        crew.end(at_once=True)
        raise
    crew.end()
    raise_together(failed, len(items), len(items) - len(done) - len(failed))
    return done


def serve(descriptor: int, threads: bool) -> None:
    """Be a worker: take a function and items from a pipe, and answer, until the pipe is closed.

    Args:
        descriptor: Of the pipe's end.
        threads: Whether BLAS may use several.
    """
    import numpy  # noqa: F401  (what is not loaded yet cannot be limited)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe: Connection[Any, Any] = Connection(descriptor)
    told = _Told()
    logging.getLogger("nnseg").addHandler(told)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(told)
    try:
        work = pipe.recv()
        with one_blas_thread(not threads):
            while True:
                _send(pipe, _answer(work, pipe.recv(), told))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


@dataclass(slots=True)
class _Worker:
    """A process, the pipe to it, and the item that it works on."""

    process: "subprocess.Popen[bytes]"
    pipe: "Connection[Any, Any]"
    name: str | None = None

    def close(self) -> None:
        """Let go of both pipes, which it takes as the death of its parent."""
        self.pipe.close()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def end(self, at_once: bool) -> None:
        """Have it end."""
        self.close()
        if at_once:
            self.process.kill()
        try:
            self.process.wait(END_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def fate(self, patience: float) -> Answer | None:
        """Say how it died, waiting for that no longer than `patience` seconds; None if it lives."""
        deadline = time.monotonic() + patience
        while (found := os.wait4(self.process.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.01)
        _, status, usage = found
        code = self.process.returncode = os.waitstatus_to_exitcode(status)
        unit = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, others KiB
        peak = f"peak RSS {usage.ru_maxrss / unit:.1f} GB"
        text = f"its worker ended with exit code {code} ({peak})"
        if code == -signal.SIGKILL:
            text = f"its worker was killed (signal 9, probably out of memory; {peak})"
        elif code < 0:
            text = f"its worker died of signal {-code} ({signal.strsignal(-code)}; {peak})"
        return Answer(kind="died", value=text)


@dataclass(slots=True)
class _Crew:
    """The workers, and how many there may be."""

    work: Callable[[Any], Any]
    most: int
    workers: list[_Worker] = field(default_factory=list)

    @property
    def busy(self) -> list[str]:
        """The names of the items under way."""
        return [worker.name for worker in self.workers if worker.name is not None]

    @property
    def has_place(self) -> bool:
        return len(self.busy) < self.most

    def give(self, name: str, item: Any) -> None:
        """Have an idle worker do an item; start one if all have work."""
        worker = next((worker for worker in self.workers if worker.name is None), None)
        if worker is None:
            worker = self._start()
        worker.name = name
        with suppress(OSError):  # it is dead; `answers` says how
            worker.pipe.send(item)

    def answers(self) -> Iterator[tuple[str, Answer]]:
        """Wait a while for answers, or for deaths, and give them by the name of the item."""
        ready = wait([worker.pipe for worker in self.workers if worker.name], LOOK_EVERY)
        for worker in list(self.workers):
            if worker.name is None:
                continue
            name, answer = worker.name, None
            if worker.pipe in ready:
                try:
                    answer = worker.pipe.recv()
                except (EOFError, OSError):  # it is ending
                    answer = worker.fate(END_WITHIN)
            else:
                answer = worker.fate(0)
            if answer is not None:
                worker.name = None
                if answer.kind == "died":
                    self.workers.remove(worker)
                    worker.close()
                yield name, answer

    def shrink(self) -> None:
        """Do with half as many workers from now on, at least one."""
        self.most = max(1, self.most // 2)
        for worker in [worker for worker in self.workers if worker.name is None]:
            if len(self.workers) > self.most:
                self.workers.remove(worker)
                worker.end(at_once=False)

    def end(self, at_once: bool = False) -> None:
        for worker in self.workers:
            worker.end(at_once)

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from nnseg.workers import serve; serve({theirs.fileno()}, {self.most == 1})"
        )
        process = subprocess.Popen(  # noqa: S603  (our own text)
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        self.workers.append(_Worker(process, ours))
        with suppress(OSError):  # it is dead; `answers` says how
            ours.send(self.work)
        return self.workers[-1]


class _Told(logging.Handler):
    """Keeps warnings, for the parent to log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.entries: list[Told] = []

    def emit(self, entry: logging.LogRecord) -> None:
        self.entries.append((entry.name, entry.levelno, entry.getMessage()))


def _answer(work: Callable[[Any], Any], item: Any, told: _Told) -> Answer:
    told.entries.clear()
    kind: Literal["done", "refused", "no_memory", "bug"] = "bug"
    try:
        value, name, kind = work(item), "", "done"
    except NnsegError as error:
        value, name, kind = str(error), type(error).__name__, "refused"
    except MemoryError as error:
        value, name = f"the memory does not suffice ({error})", type(error).__name__
        kind = "no_memory"
    except Exception as error:
        value, name = traceback.format_exc(), type(error).__name__
    return Answer(kind=kind, value=value, error=name, told=tuple(told.entries))


def _send(pipe: "Connection[Any, Any]", answer: Answer) -> None:
    try:
        pipe.send(answer)
    except OSError:
        raise
    except Exception as error:  # a result that no pipe can carry
        pipe.send(Answer(kind="bug", value=str(error), error=type(error).__name__))


def _refusal(answer: Answer) -> NnsegError:
    kind = getattr(errors, answer.error, NnsegError)  # an own child of it is told as its parent
    return kind(answer.value) if issubclass(kind, NnsegError) else NnsegError(answer.value)


def _end_with_parent() -> None:
    """End this process when nobody can write to its input any more."""
    sys.stdin.read()
    os._exit(1)
