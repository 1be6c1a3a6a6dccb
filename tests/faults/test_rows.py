"""docs/reliability.md and the marks of the tests tell of the same faults; so do their tallies."""

import re
import subprocess
from pathlib import Path

import endings
import pytest
from injection import CHECKOUT, PATIENCE
from tallies import Row, Tallies

MARK = re.compile(r"mark\.fault\(([^()]*)\)")
NAME = re.compile(r'"([A-Z][0-9.]+)"')
KNOWN = {
    *(f"R{number:02d}" for number in range(1, 44)),
    *(f"S{number:02d}" for number in range(1, 16)),
    *(f"B1.{number}" for number in range(1, 6)),
    *(f"G{number}" for number in range(1, 15)),
}


def marked() -> set[str]:
    """The rows that the marks of all tests name."""
    texts = [path.read_text("utf-8") for path in (CHECKOUT / "tests").rglob("*.py")]
    return {name for text in texts for mark in MARK.findall(text) for name in NAME.findall(mark)}


def told() -> set[str]:
    """The rows that the page tells of, each in a line of a table."""
    page = (CHECKOUT / "docs" / "reliability.md").read_text("utf-8")
    return set(re.findall(r"^\| ([RS]\d\d) \|", page, re.MULTILINE))


def test_every_fault_that_the_page_tells_of_has_a_test() -> None:
    assert {name for name in KNOWN if name.startswith("R")} <= told()
    assert {name for name in told() if name.startswith("R")} - marked() == set()


def test_no_mark_names_a_row_that_nobody_knows() -> None:
    assert marked() <= KNOWN


def test_a_test_that_runs_again_replaces_what_it_counted_and_leaves_the_others(
    tmp_path: Path,
) -> None:
    file = tmp_path / "folder" / "tally.json"
    first = Tallies(file)
    for name in ("one", "two"):
        first.add(name, "kill -9", Row(kept=3, injected=4, states={"writing": 4}))
        first.end(name, "passed", ["R02"], 1.5)
    again = Tallies(file)
    for _ in range(2):
        again.add("one", "kill -9", Row(kept=1, injected=1, states={"before": 1}))
    again.end("one", "failed", ["R02"], 0.5)
    lines = list(Tallies(file).lines())
    assert "| kill -9 | 5 | 6 | before: 2, writing: 4 |" in lines
    assert "1 of 2 tests passed" in lines
    assert "FAILED one" in lines
    assert any("1.5 s" in line for line in lines)


def test_a_process_that_outlives_its_command_is_told_and_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endings, "IDLE", 0.2)
    process = subprocess.Popen(["sh", "-c", "sleep 99 &"], start_new_session=True)
    process.wait(PATIENCE)
    assert endings.wait_for_session(process.pid) == 1
    assert endings.wait_for_session(process.pid) == 0
