"""What the fault tests count: of the faults injected, those that kept the rule; added up by row.

A plugin of pytest: the tests may run in several processes, and their reports bring the counts.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

COUNTED, TOLD = "faults", "told"  # names in the user_properties of a report


class Tally(Protocol):
    """Adds the faults that a test has injected to a row of the table."""

    def __call__(
        self, row: str, kept: int, injected: int, *, states: Mapping[str, int] | None = None
    ) -> None:
        """Count `injected` faults, of which `kept` kept the rule; `states` are those then seen."""


@dataclass(kw_only=True)
class Row:
    """A row of the table, or what one test adds to it."""

    kept: int = 0
    injected: int = 0
    states: dict[str, int] = field(default_factory=dict)  # how often each was seen at the fault

    def add(self, other: "Row") -> None:
        """Add what another test has counted."""
        self.kept += other.kept
        self.injected += other.injected
        self.states = dict(Counter(self.states) + Counter(other.states))


@dataclass(kw_only=True)
class Test:
    """What a test has counted, how it ended, and which faults its marks name."""

    __test__ = False  # it is none that pytest should collect

    outcome: str = ""
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0  # the longest that a process lived after a fault
    rows: dict[str, Row] = field(default_factory=dict)


class Tallies:
    """What each test has counted last; a file keeps it from one session to the next."""

    def __init__(self, file: Path | None) -> None:
        """Begin with what `file` has of earlier sessions, if there is one."""
        self.file = file
        self.told: list[str] = []
        self.tests: dict[str, Test] = {}
        if file is not None and file.exists():
            for name, test in json.loads(file.read_text("utf-8")).items():
                self.tests[name] = _test_of(test)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test has counted; if there is a file, it has all of it from now on."""
        for name, value in report.user_properties:
            if name == TOLD:
                self.told.append(str(value))
            elif name == COUNTED and report.when == "call":
                self.tests[report.nodeid] = _test_of(value)
                self._save()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the lines that were told, and the table."""
        lines = [*self.told, *self.lines()]
        if lines:
            terminalreporter.section("faults")
        for line in lines:
            terminalreporter.line(line)

    def lines(self) -> Iterator[str]:
        """Give the table, as Markdown, and what the tests saw besides."""
        if not self.tests:
            return
        rows: dict[str, Row] = {}
        for test in self.tests.values():
            for row, counted in test.rows.items():
                rows.setdefault(row, Row()).add(counted)
        yield "| fault | kept the rule | injected | seen at the fault |"
        yield "|---|---:|---:|---|"
        for row in sorted(rows):
            states = sorted(rows[row].states.items(), key=_in_order)
            seen = ", ".join(f"{state}: {times}" for state, times in states)
            yield f"| {row} | {rows[row].kept} | {rows[row].injected} | {seen} |"
        total = Row()
        for row in rows.values():
            total.add(row)
        yield f"| all | {total.kept} | {total.injected} | |"
        yield ""
        tests = self.tests.values()
        passed = sum(test.outcome == "passed" for test in tests)
        yield f"{passed} of {len(tests)} tests passed"
        yield f"a process lived on for at most {max(t.seconds for t in tests):.1f} s after a fault"
        named = {name for test in tests for name in test.faults}
        yield f"rows with a test: {', '.join(sorted(named, key=_in_order))}"
        for name, test in self.tests.items():
            if test.outcome == "failed":
                yield f"FAILED {name}"

    def _save(self) -> None:
        if self.file is None:
            return
        text = json.dumps({name: asdict(test) for name, test in self.tests.items()}, indent=1)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        part.write_text(text + "\n", "utf-8")
        part.replace(self.file)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the name of the file."""
    parser.addoption(
        "--tally",
        type=Path,
        metavar="FILE",
        help="keep what the fault tests count in FILE, a JSON; tests that ran before stay in it",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Count in the process that has the reports of all tests."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Tallies(config.getoption("--tally")), "tallies of faults")


def _test_of(entry: Mapping[str, Any]) -> Test:
    rows = {name: Row(**row) for name, row in entry["rows"].items()}
    return Test(**{**entry, "rows": rows})


def _in_order(what: str | tuple[str, int]) -> list[tuple[bool, int, str]]:
    """Sort texts with numbers in them by the numbers."""
    parts = re.split(r"(\d+)", what if isinstance(what, str) else what[0])
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
