"""What a command did, kept beside its results: run.json, and log.txt for details."""

import logging
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from nnseg import record
from nnseg.commit import sha256
from nnseg.errors import FILE_ONLY, INTERRUPTED, NnsegError, StoppedError

RESULT_MAKERS = ("train", "predict")
Tell: TypeAlias = Callable[[str], str]

PACKAGES = ("nnseg", "numpy", "torch", "nibabel", "SimpleITK", "blosc2")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """run.json: enough to know what made a result, and from what."""

    command: str
    arguments: dict[str, Any]
    versions: dict[str, str]
    machine: str
    started: str  # UTC, ISO 8601
    seconds: float
    exit_code: int
    error: str | None
    warnings: tuple[str, ...]
    inputs: dict[str, str]  # path to SHA-256
    outputs: dict[str, str]
    cases: dict[str, str]  # case id to "done" or what went wrong
    facts: dict[str, Any]  # whatever else the command found out: device, seconds a step
    record_sha256: str = ""  # of this record without it; "" in those of before there was one


def read_report(path: Path) -> RunReport:
    """Read the record of a run.

    Raises:
        MissingError: There is none.
        DataError: It is none, or any byte of it has changed.
    """
    report = record.load(RunReport, path)
    return record.load_sealed(RunReport, path) if report.record_sha256 else report


@dataclass(slots=True)
class Run:
    """A run under way; a verb adds to it what it reads, writes and finds."""

    inputs: list[Path] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)
    input_hashes: dict[Path, str] = field(default_factory=dict)  # SHA-256, where it is known
    output_hashes: dict[Path, str] = field(default_factory=dict)
    cases: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, entry: logging.LogRecord) -> None:
        self.texts.append(entry.getMessage())


class _Form(logging.Formatter):
    """The form of a line of the log, with `tell` for its text."""

    def __init__(self, tell: Tell) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self.tell = tell

    def format(self, entry: logging.LogRecord) -> str:
        return self.tell(super().format(entry))


class _LogFile(logging.FileHandler):
    """A log that costs nothing but itself where it cannot be written."""

    complete = True

    def handleError(self, entry: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Warn once: logging would print a traceback each time, and the run goes on as it can."""
        if self.complete:
            self.complete = False
            reason = sys.exc_info()[1]
            logging.getLogger("nnseg").warning("%s: is not complete: %s", self.baseFilename, reason)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def logged_run(
    folder: Path,
    command: str,
    arguments: dict[str, Any],
    name: str | None = None,
    *,
    stop: Callable[[], bool] | None = None,
    tell: Tell = str,
) -> Iterator[Run]:
    """Keep a log in `folder` while a command runs, and write what it did at the end.

    The files are run.json and log.txt for a command whose results are a folder of their own,
    RESULT_MAKERS; for others run_COMMAND.json and run_COMMAND.log. `name` is for runs that share a
    folder: NAME.json and NAME.log. `stop` is what the command asks whether to stop; where it knows
    the signal that it got, as a StopFlag does, Ctrl-C gives the exit code that the process has.
    `tell` gives what is kept of every text, for results that are handed on: without the paths of
    the machine.

    The run.json is written after an error, too; an error goes on to the caller. A folder that
    cannot be written costs the log, with a warning, never the run.
    """
    name = name or ("run" if command in RESULT_MAKERS else f"run_{command}")
    started, clock = datetime.now(timezone.utc), time.monotonic()
    root = logging.getLogger("nnseg")
    collected = _Warnings()
    handlers: list[logging.Handler] = [collected]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _LogFile(
            folder / ("log.txt" if name == "run" else f"{name}.log"), encoding="utf-8", delay=False
        )
        file.setFormatter(_Form(tell))
        handlers.append(file)
    except OSError as error:
        root.warning("%s: no log can be kept there (%s)", folder, error.strerror)
    for handler in handlers:
        root.addHandler(handler)
    python = logging.getLogger("py.warnings")
    python.addHandler(collected)
    level = root.level
    root.setLevel(min(level or logging.INFO, logging.INFO))
    run = Run()
    code, message = 0, None
    try:
        root.info("%s %s", command, arguments)
        yield run
    except BaseException as error:
        code = error.exit_code if isinstance(error, NnsegError) else 1
        if isinstance(error, KeyboardInterrupt) or (
            isinstance(error, StoppedError) and getattr(stop, "signal", None) == signal.SIGINT
        ):
            code = INTERRUPTED
        message = str(error) or type(error).__name__
        extra = {FILE_ONLY: True}  # who called shows it
        root.error("%s ended early: %s", command, message, exc_info=code == 1, extra=extra)
        raise
    finally:
        report = RunReport(
            command=command,
            arguments=arguments,
            versions=versions(),
            machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            started=started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - clock, 3),
            exit_code=code,
            error=message,
            warnings=tuple(collected.texts),
            inputs=_hashes(run.inputs, run.input_hashes),
            outputs=_hashes(run.outputs, run.output_hashes),
            cases=run.cases,
            facts=run.facts,
        )
        try:
            path = folder / f"{name}.json"
            kept = record.parse(RunReport, _told(record.to_json(report), tell), str(path))
            record.save_sealed(kept, path)
        except NnsegError as error:  # the error under way, if any, is the one to show
            root.warning("no record of this run can be kept: %s", error)
        root.setLevel(level)
        python.removeHandler(collected)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def _told(data: Any, tell: Tell) -> Any:
    """Give plain JSON values with `tell` for every text and name in them."""
    if isinstance(data, dict):
        return {tell(name): _told(value, tell) for name, value in data.items()}
    if isinstance(data, list):
        return [_told(value, tell) for value in data]
    return tell(data) if isinstance(data, str) else data


def peak_memory() -> int:
    """Give the most memory that this process has taken so far, in bytes; 0 where nobody knows."""
    # Linux counts into ru_maxrss what the program had that started this one; VmHWM is its own.
    with suppress(OSError):
        found = re.search(
            r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE
        )
        if found:
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows has none
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str]:
    """Give the version of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            text = metadata.distribution(name).read_text("METADATA") or ""
            # metadata.version would parse all of it, licences and all, as an e-mail
            if version := re.search(r"^Version: *(\S+)", text, re.MULTILINE):
                found[name] = version[1]
    return found


def _hashes(paths: list[Path], known: dict[Path, str]) -> dict[str, str]:
    found = {str(path): digest for path, digest in known.items()}
    for path in paths:
        with suppress(OSError):
            found[str(path)] = sha256(path)
    return found
