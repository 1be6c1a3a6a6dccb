"""Work on many cases at once, and name all that failed together.

Threads do it: numpy, BLAS, isal and Blosc2 let other threads run while they compute, and a thread
costs nothing to start. Work that may exhaust the memory is done apart, in processes of its own,
which the system can kill without ending the run: `nnseg.workers`.
"""

import functools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from nnseg.errors import DiskFullError, MachineError, NnsegError, StoppedError

T = TypeVar("T")
Item = TypeVar("Item")

OnProgress: TypeAlias = Callable[[str, int, int], None]  # what is done, how much, of how much
_Results: TypeAlias = Generator[tuple[str, Callable[[], T]], None, None]  # by name, to be called


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How much memory work may take: that of all items under way, and of each by its name."""

    total: int  # bytes
    needs: Mapping[str, int]  # bytes; a name that is missing needs nothing worth counting

    def fits(self, name: str, under_way: Sequence[str]) -> bool:
        """Say whether an item can join those under way; one alone is always let in."""
        taken = sum(self.needs.get(other, 0) for other in under_way)
        return not under_way or taken + self.needs.get(name, 0) <= self.total


NAMED = 3  # cases that one message names; more are counted

NO_BOUND = Room(total=0, needs={})


def for_each(
    work: Callable[[Item], T],
    items: Sequence[Item],
    name_of: Callable[[Item], str],
    workers: int | None,
    what: str,
    on_progress: OnProgress | None,
    room: Room = NO_BOUND,
) -> dict[str, T]:
    """Do `work` on every item, several at once; failures are listed together at the end.

    Whatever is no NnsegError, Ctrl-C included, and a StoppedError end the work and are raised as
    they are: what waits is not begun, what runs is waited for. A full disk ends it as well, listed
    with what failed before. An item that does not fit into `room` beside those under way waits for
    them. A worker alone is the caller's own thread, where Ctrl-C ends what runs, too.
    """
    workers = workers or cores()
    done: dict[str, T] = {}
    failed: dict[str, NnsegError] = {}
    waiting = list(reversed(items))
    if min(workers, len(items)) > 1:
        results = _in_threads(work, waiting, name_of, workers, room)
    else:
        results = _one_by_one(work, waiting, name_of)
    with closing(results):
        for name, result in results:
            try:
                done[name] = result()
            except StoppedError:
                raise
            except NnsegError as error:
                failed[name] = error
                if isinstance(error, DiskFullError):
                    waiting.clear()
            except MemoryError as error:
                failed[name] = out_of_memory(error)
            if on_progress:
                on_progress(what, len(done) + len(failed), len(items))
    raise_together(failed, len(items), len(items) - len(done) - len(failed))
    return done


def _one_by_one(
    work: Callable[[Item], T], waiting: list[Item], name_of: Callable[[Item], str]
) -> _Results[T]:
    """Have what calls a result do the work; see `_in_threads`."""
    while waiting:
        item = waiting.pop()
        yield name_of(item), functools.partial(work, item)


def _in_threads(
    work: Callable[[Item], T],
    waiting: list[Item],
    name_of: Callable[[Item], str],
    workers: int,
    room: Room,
) -> _Results[T]:
    """Give results as they come; what is taken out of `waiting` meanwhile is not begun."""
    from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

    running: dict[Future[T], str] = {}
    with ThreadPoolExecutor(workers) as pool, one_blas_thread():
        try:
            while waiting or running:
                while (
                    waiting
                    and len(running) < workers
                    and room.fits(name_of(waiting[-1]), list(running.values()))
                ):
                    item = waiting.pop()
                    running[pool.submit(work, item)] = name_of(item)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result
        except BaseException:  # Ctrl-C among them, which strikes while this thread waits
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def some(case_ids: Iterable[str]) -> str:
    """Name some cases, and say how many there are.

    >>> some(["a"]), some(["d", "c", "b", "a"])
    ('case a', '4 cases, such as a, b, c')
    """
    names = sorted(case_ids)
    if len(names) == 1:
        return f"case {names[0]}"
    return f"{len(names)} cases, such as {', '.join(names[:NAMED])}"


def raise_together(failed: Mapping[str, NnsegError], count: int, not_begun: int = 0) -> None:
    """Raise what failed as one error, of the worst of their kinds; nothing where nothing did."""
    if not failed:
        return
    rest = f"\n{not_begun} of {count} cases were not begun" if not_begun else ""
    if len(failed) == 1:
        ((name, only),) = failed.items()
        raise type(only)(f"case {name}: {only}{rest}")
    worst = max(failed.values(), key=lambda error: error.exit_code)
    listed = "".join(f"\n  case {name}: {failed[name]}" for name in sorted(failed))
    raise type(worst)(f"{len(failed)} of {count} cases failed:{listed}{rest}")


def out_of_memory(error: MemoryError) -> MachineError:
    """Say that memory did not suffice, and what would help."""
    return MachineError(f"the memory does not suffice ({error}); take fewer workers, as by -np 1")


@contextmanager
def one_blas_thread(limited: bool = True) -> Iterator[None]:
    """Let BLAS compute in the thread that calls it, where several do, if `limited`.

    Otherwise every thread of ours would start as many as there are cores, and all would wait for
    each other.
    """
    if not limited:
        yield
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def cores() -> int:
    """Give the number of processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
