import concurrent.futures
import threading
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from nnseg.errors import DataError, DiskFullError, MachineError, NnsegError, StoppedError
from nnseg.parallel import Room, cores, for_each, one_blas_thread


def double(item: int) -> int:
    return 2 * item


def test_every_item_has_its_result_by_name_and_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    found = for_each(double, [3, 4, 5], str, 2, "doubling", lambda *step: told.append(step))
    assert found == {"3": 6, "4": 8, "5": 10}
    assert told == [("doubling", done, 3) for done in (1, 2, 3)]


def test_nothing_to_do_is_done() -> None:
    assert for_each(double, [], str, None, "doubling", None) == {}


def failing(*errors: tuple[int, NnsegError]) -> list[int]:
    """Work on 0 to 5, failing as told; give the items that were reached."""
    reached: list[int] = []

    def work(item: int) -> None:
        reached.append(item)
        if item in dict(errors):
            raise dict(errors)[item]

    try:
        for_each(work, range(6), "case_{}".format, 1, "working", None)
    finally:
        assert sorted(reached) == list(range(6))
    return reached


def test_one_failure_is_raised_with_its_case_after_the_others_are_done() -> None:
    with pytest.raises(DataError, match=r"^case case_2: cut off$"):
        failing((2, DataError("cut off")))


def test_all_failures_are_listed_in_order_under_the_worst_of_them() -> None:
    with pytest.raises(MachineError) as raised:
        failing((4, DataError("cut off")), (1, MachineError("disk full")), (0, DataError("nan")))
    assert str(raised.value) == (
        "3 of 6 cases failed:\n  case case_0: nan\n  case case_1: disk full\n  case case_4: cut off"
    )


def test_a_full_disk_ends_the_work_and_what_was_not_begun_is_counted() -> None:
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 2:
            raise DiskFullError("the disk is full; make room")

    with pytest.raises(DiskFullError) as raised:
        for_each(work, range(6), "case_{}".format, 1, "working", None)
    assert begun == [0, 1, 2]
    assert str(raised.value) == (
        "case case_2: the disk is full; make room\n3 of 6 cases were not begun"
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_ends_the_work_and_is_no_failure_of_a_case(workers: int) -> None:
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            raise DataError("cut off")
        if item == 2:
            raise StoppedError("stopped; the same command goes on")

    with pytest.raises(StoppedError, match=r"^stopped; the same command goes on$"):
        for_each(work, range(1000), str, workers, "working", None)
    assert len(begun) < 1000


def test_a_bug_ends_the_work_at_once() -> None:
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        for_each(work, range(1000), str, 1, "working", None)
    assert len(begun) < 1000


def test_no_more_workers_run_than_allowed() -> None:
    lock, running, most = threading.Lock(), [0], [0]
    pause = threading.Event()

    def work(item: int) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        pause.wait(0.01)
        with lock:
            running[0] -= 1

    for_each(work, range(12), str, 3, "working", None)
    assert most[0] <= 3


def test_what_does_not_fit_beside_others_waits_for_them() -> None:
    lock, running, seen = threading.Lock(), list[str](), list[tuple[str, ...]]()
    pause = threading.Event()

    def work(item: str) -> None:
        with lock:
            running.append(item)
            seen.append(tuple(sorted(running)))
        pause.wait(0.02)
        with lock:
            running.remove(item)

    room = Room(total=10, needs={"big": 9, "huge": 99, "small": 1, "tiny": 1, "third": 1})
    items = ["big", "small", "tiny", "huge", "third"]
    done = for_each(work, items, str, 3, "working", None, room)
    assert set(done) == set(items)
    assert all("huge" not in names or names == ("huge",) for names in seen)  # over all, so alone
    assert all(sum(room.needs[name] for name in names) <= 10 or len(names) == 1 for names in seen)


def test_room_lets_one_alone_in_and_counts_the_unknown_as_nothing() -> None:
    room = Room(total=10, needs={"a": 8, "b": 3, "c": 99})
    assert room.fits("c", [])
    assert not room.fits("b", ["a"])
    assert room.fits("unknown", ["a"])


def test_memory_that_does_not_suffice_fails_the_case_and_not_the_run() -> None:
    def work(item: int) -> int:
        if item == 1:
            raise MemoryError("unable to allocate 9 GiB")
        return item

    reached: list[int] = []
    with pytest.raises(MachineError, match=r"case 1: the memory does not suffice \(unable .*-np 1"):
        for_each(work, [0, 1, 2], str, 1, "working", lambda *step: reached.append(step[1]))
    assert reached == [1, 2, 3]


def threads_of_blas() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_blas_has_one_thread_where_several_of_ours_compute() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))  # loads it
    before = threads_of_blas()
    seen = for_each(lambda _: threads_of_blas(), [1, 2], str, 2, "working", None)
    assert seen == {"1": [1] * len(before), "2": [1] * len(before)}
    assert threads_of_blas() == before
    alone = for_each(lambda _: threads_of_blas(), [1], str, 2, "working", None)
    assert alone == {"1": before}
    with one_blas_thread(limited=False):
        assert threads_of_blas() == before


def test_this_machine_has_a_core() -> None:
    assert cores() >= 1


def test_ctrl_c_while_waiting_begins_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    struck = threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        struck.wait(10)

    def strike(waiting: Any, **_: Any) -> Any:
        struck.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(concurrent.futures, "wait", strike)
    with pytest.raises(KeyboardInterrupt):
        for_each(work, range(1000), str, 2, "working", None)
    assert len(begun) < 1000


@pytest.mark.parametrize(("items", "workers"), [((1, 2, 3), 1), ((1,), 2)])
def test_a_worker_alone_is_the_thread_of_the_caller(items: tuple[int, ...], workers: int) -> None:
    seen = for_each(lambda _: threading.get_ident(), items, str, workers, "working", None)
    assert set(seen.values()) == {threading.get_ident()}


def test_a_bug_waits_for_what_runs_beside_it() -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(item: int) -> None:
        if item == 0:
            begun.wait(10)
            raise ZeroDivisionError
        begun.set()
        threading.Event().wait(0.05)
        ended.set()

    with pytest.raises(ZeroDivisionError):
        for_each(work, [0, 1], str, 2, "working", None)
    assert ended.is_set()


def test_a_failure_of_the_one_who_is_told_begins_nothing_more() -> None:
    begun: list[int] = []
    pause = threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        pause.wait(0.001)

    def tell(what: str, done: int, count: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        for_each(work, range(1000), str, 1, "working", tell)
    assert len(begun) < 1000
