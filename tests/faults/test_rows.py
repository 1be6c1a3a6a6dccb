"""docs/reliability.md and the marks of the tests tell of the same faults; so do their tallies."""

import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import endings
import pytest
from injection import CHECKOUT, LIVED, NONE, PATIENCE, outcome
from tallies import COUNTED, Row, Tallies, Test

# A mark of a test, or the rule of an Attack, which becomes one.
MARK = re.compile(r"mark\.fault\([^()]*\)|\brule(?:: str)? ?= ?.*$", re.MULTILINE)
NAME = re.compile(r'"([A-Z][0-9.]+)"')
KNOWN = {
    *(f"R{number:02d}" for number in range(1, 44)),
    *(f"S{number:02d}" for number in range(1, 16) if number != 12),
    *(f"B1.{number}" for number in range(1, 6)),
    *(f"G{number}" for number in range(1, 15)),
}


def marked() -> set[str]:
    """The rows that the marks of all tests name."""
    texts = [path.read_text("utf-8") for path in (CHECKOUT / "tests").rglob("*.py")]
    marks = (mark for text in texts for mark in MARK.finditer(text))
    return {name for mark in marks for name in NAME.findall(mark[0])}


def told() -> set[str]:
    """The rows that the page tells of, each in a line of a table."""
    page = (CHECKOUT / "docs" / "reliability.md").read_text("utf-8")
    return set(re.findall(r"^\| ([RS]\d\d) \|", page, re.MULTILINE))


def test_every_fault_and_rule_is_told_of_and_has_a_test() -> None:
    assert told() == {name for name in KNOWN if name[0] in "RS"}
    assert told() - marked() == set()


def test_no_mark_names_a_row_that_nobody_knows() -> None:
    assert marked() <= KNOWN


def test_a_test_that_runs_again_replaces_what_it_counted_and_leaves_the_others(
    tmp_path: Path,
) -> None:
    file = tmp_path / "folder" / "tally.json"
    before = {"kill -9": Row(kept=3, injected=4, states={"writing": 4})}
    first = Tallies(file)
    for name in ("one", "two"):
        first.pytest_runtest_logreport(reported(name, "passed", 1.5, before))
    after = {"kill -9": Row(kept=2, injected=2, states={"before": 2})}
    Tallies(file).pytest_runtest_logreport(reported("one", "failed", 0.5, after))
    lines = list(Tallies(file).lines())
    assert "| kill -9 | 5 | 6 | before: 2, writing: 4 |" in lines
    assert "1 of 2 tests passed" in lines
    assert "FAILED one" in lines
    assert any("1.5 s" in line for line in lines)


def reported(
    name: str, outcome: Literal["passed", "failed"], seconds: float, rows: dict[str, Row]
) -> pytest.TestReport:
    """A report of a test that counted, as another process may have sent it."""
    counted = Test(outcome=outcome, faults=["R02"], seconds=seconds, rows=rows)
    properties = [(COUNTED, asdict(counted))]
    return pytest.TestReport(
        name, (name, 0, name), {}, outcome, None, "call", user_properties=properties
    )


def test_a_process_that_outlives_its_command_is_told_and_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endings, "IDLE", 0.2)
    process = subprocess.Popen(["sh", "-c", "sleep 99 &"], start_new_session=True)
    process.wait(PATIENCE)
    assert endings.wait_for_session(process.pid) == 1
    assert endings.wait_for_session(process.pid) == 0


@pytest.mark.parametrize("alone", [False, True])
def test_what_a_command_had_started_is_killed_with_it_or_has_to_end_by_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, alone: bool
) -> None:
    monkeypatch.setattr(endings, "IDLE", 0.2)
    counter = tmp_path / "counter"
    counter.write_bytes((1).to_bytes(8, sys.byteorder))
    process = subprocess.Popen(["sh", "-c", "sleep 99 & wait"], start_new_session=True)
    ending = endings.wait_for(
        process.pid, patience=PATIENCE, counter=counter, kill_after_calls=1, kill_seconds_later=0.5,
        kill_alone=alone,
    )  # fmt: skip
    process.returncode = ending.code  # it has been waited for
    assert ending.code == -signal.SIGKILL
    assert ending.left == alone


@pytest.mark.parametrize(
    ("code", "seconds", "lived"), [(4, 29.0, 29.0), (4, 31.0, None), (0, 31.0, 0.0)]
)
def test_a_process_that_lives_on_after_a_strike_is_told_but_not_one_that_goes_on_with_its_work(
    tmp_path: Path, code: int, seconds: float, lived: float | None
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    for name, text in (("trace", ""), ("said", ""), ("struck", "100.0")):
        (place / name).write_text(text)
    ending = endings.Ending(code=code, ended=100.0 + seconds)
    if lived is None:
        with pytest.raises(AssertionError, match=r"lived on for 31\.0 s"):
            outcome(ending, place, NONE)
    else:
        assert outcome(ending, place, NONE).lived == lived
        assert LIVED.pop() == lived  # of no fault
