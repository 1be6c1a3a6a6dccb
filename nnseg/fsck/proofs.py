"""Whether a file is still what it was: by a hash that is known, or by the record of a run.

A run keeps in its record the hashes of what it read and wrote. `Look` is an examination of many
files under way.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnseg import record
from nnseg.commit import sha256
from nnseg.doctor.findings import Notes
from nnseg.errors import NnsegError
from nnseg.runlog import RunReport, read_report

RECORDS = ("run.json", "run_*.json", "[!.]*.run.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The SHA-256 of a file when the last run that mentions it ended."""

    digest: str
    command: str
    started: str  # UTC, ISO 8601
    recorded_ns: int  # when its record was written, which tells two runs of a second apart
    written: bool  # by that run, not only read

    def __str__(self) -> str:
        return f"`nnseg {self.command}` {'wrote' if self.written else 'read'} it, {self.started}"

    @property
    def age_key(self) -> tuple[str, int]:
        """What orders proofs from the oldest to the latest."""
        return self.started, self.recorded_ns


@dataclass(slots=True)
class Look:
    """What an examination has found so far; each file is hashed once, whatever names it has."""

    notes: Notes
    files: int = 0  # looked at
    digests: dict[tuple[int, int], str] = field(default_factory=dict)  # by device and inode

    def fault(self, path: Path, digest: str) -> str | None:
        """Say why a file is not the one with the SHA-256 `digest`; None if it is."""
        try:
            status = path.stat()
            key = (status.st_dev, status.st_ino)
            found = self.digests.get(key) or self.digests.setdefault(key, sha256(path))
        except FileNotFoundError:
            return "does not exist"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        except ValueError:
            return "has a name that no file can have"
        if found == digest:
            return None
        return f"is damaged: its {status.st_size} bytes have another SHA-256 than when written"

    def differs(self, path: Path, proofs: Mapping[Path, Proof]) -> bool:
        """Whether there is a proof that a file is not what a run read or wrote."""
        return path in proofs and self.fault(path, proofs[path].digest) is not None

    def load(
        self,
        rule: str,
        path: Path,
        kind: Any,
        remedy: str,
        read: Callable[[Any, Path], Any] | None = None,
    ) -> Any:
        """Read a record of type `kind`, by `read` if given; None, with an error, if damaged."""
        self.files += 1
        try:
            if read is not None:
                return read(kind, path)
            return record.load(kind, path)
        except NnsegError as error:
            found = str(error).removeprefix(f"{path}: ")
            self.notes.error(rule, path, found.rpartition("; ")[0] or found, remedy)
            return None

    def proofs(self, folders: Iterable[Path], home: Path) -> dict[Path, Proof]:
        """Read the records of runs in these folders; those that are damaged are errors."""
        records = run_records(folders)
        self.files += len(records)
        proofs, unreadable = read_proofs(records, home)
        for path, error in unreadable.items():
            self.notes.caught("run_record", path, error)
        return proofs


def run_records(folders: Iterable[Path]) -> tuple[Path, ...]:
    """List the records of runs in these folders, not in those below them."""
    found = {path for folder in folders for pattern in RECORDS for path in folder.glob(pattern)}
    return tuple(sorted(found))


def read_proofs(
    records: Iterable[Path], home: Path
) -> tuple[dict[Path, Proof], dict[Path, NnsegError]]:
    """Read what the records of runs say of files that are there.

    Of several runs that mention a file the latest counts. A run that was killed leaves no record,
    but its log is younger than the record of the run before, which then proves nothing any more.

    Args:
        records: Files as `run_records` lists them.
        home: The folder that the runs worked in. It may have been moved since: what they mention
            below a folder of its name is looked for in it.

    Returns:
        For each file its proof, and for each record that cannot be read the reason.
    """
    proofs: dict[Path, Proof] = {}
    unreadable: dict[Path, NnsegError] = {}
    for path in records:
        try:
            report = read_report(path)
        except NnsegError as error:
            unreadable[path] = error
            continue
        if _was_cut_off_later(path):
            continue
        recorded_ns = path.stat().st_mtime_ns
        for file, digest, written in _mentions(report, path.parent, home):
            proof = Proof(
                digest=digest,
                command=report.command,
                started=report.started,
                recorded_ns=recorded_ns,
                written=written,
            )
            if proof.age_key >= proofs.get(file, proof).age_key:
                proofs[file] = proof
    return proofs, unreadable


def _mentions(report: RunReport, beside: Path, home: Path) -> Iterator[tuple[Path, str, bool]]:
    """Give the files that a run read, then those that it wrote, wherever they lie now."""
    for mentioned, digest in report.inputs.items():
        places = (*_moved(mentioned, home), Path(mentioned))
        if file := next(filter(os.path.isfile, places), None):
            yield file, digest, False
    for mentioned, digest in report.outputs.items():
        places = (*_moved(mentioned, home), beside / Path(mentioned).name, Path(mentioned))
        if file := next(filter(os.path.isfile, places), None):
            yield file, digest, True


def _moved(mentioned: str, home: Path) -> tuple[Path, ...]:
    """Give where a file is if the folder named as `home` in its path is `home` today."""
    parts = Path(mentioned).parts
    if home.name not in parts:
        return ()
    return (home.joinpath(*parts[len(parts) - parts[::-1].index(home.name) :]),)


def _was_cut_off_later(path: Path) -> bool:
    """Whether the log beside a record of a run goes on after it."""
    log = path.with_name("log.txt" if path.name == "run.json" else f"{path.stem}.log")
    try:
        return log.stat().st_mtime_ns > path.stat().st_mtime_ns
    except OSError:
        return False
