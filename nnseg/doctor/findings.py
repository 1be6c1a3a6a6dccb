"""What was found in a dataset: findings, how they are collected, shown and refused."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from nnseg.dataset import printable
from nnseg.errors import DataError, NnsegError

Severity: TypeAlias = Literal["error", "warning"]

IN_SHORT = 3  # findings that `raise_for_errors` shows


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One problem: an error keeps the dataset from being used, a warning is worth a look."""

    rule: str
    severity: Severity
    file: str  # relative to the dataset's folder, with forward slashes
    found: str
    remedy: str
    case_id: str | None = None


@dataclass(slots=True)
class Notes:
    """Findings being collected; `case_id` is that of the case under examination."""

    folder: Path
    case_id: str | None = None
    findings: list[Finding] = field(default_factory=list)

    def error(self, rule: str, path: Path, found: str, remedy: str) -> None:
        """Add an error; `path` lies in the dataset's folder."""
        self._add(rule, "error", path, found, remedy)

    def warning(self, rule: str, path: Path, found: str, remedy: str) -> None:
        """Add a warning; `path` lies in the dataset's folder."""
        self._add(rule, "warning", path, found, remedy)

    def caught(self, rule: str, path: Path, error: NnsegError) -> None:
        """Add an error of a reader, whose message ends in what to do."""
        text = str(error).removeprefix(str(path)).removeprefix(":").strip()
        found, _, remedy = text.rpartition("; ")
        self.error(rule, path, found or text, remedy if found else "restore the file")

    def _add(self, rule: str, severity: Severity, path: Path, found: str, remedy: str) -> None:
        self.findings.append(
            Finding(
                rule=rule,
                severity=severity,
                file=printable(path.relative_to(self.folder).as_posix()),
                found=found,
                remedy=remedy,
                case_id=self.case_id,
            )
        )


def in_order(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Sort findings by file, then by rule."""
    return tuple(sorted(findings, key=lambda f: (f.file, f.rule, f.found)))


def count_errors(findings: Sequence[Finding]) -> str:
    """Give the number of errors in words, "" if there is none.

    >>> count_errors([])
    ''
    """
    count = sum(finding.severity == "error" for finding in findings)
    return "" if not count else "1 error" if count == 1 else f"{count} errors"


def describe(findings: Sequence[Finding]) -> str:
    """Give the findings as lines for people, errors marked as such."""
    if not findings:
        return "nothing wrong was found"
    return "\n".join(f"{f.severity:<7}  {_line(f)}" for f in findings)


def raise_for_errors(findings: Sequence[Finding], dataset: str) -> None:
    """Refuse a dataset that has errors; warnings pass.

    Raises:
        DataError: The first errors, and how many more there are.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    shown = " | ".join(_line(finding) for finding in errors[:IN_SHORT])
    more = f" | and {len(errors) - IN_SHORT} more" if len(errors) > IN_SHORT else ""
    raise DataError(
        f"{dataset}: {count_errors(errors)}: {shown}{more}; `nnseg doctor {dataset}` lists all"
    )


def _line(finding: Finding) -> str:
    return f"{finding.file}: {finding.found}; {finding.remedy}"
