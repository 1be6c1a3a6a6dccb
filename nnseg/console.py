"""The terminal: parsing with help for typing errors, progress, signals, the log's short form."""

import json
import logging
import os
import re
import signal
import sys
import time
import traceback
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import Any, NoReturn

from nnseg import __version__
from nnseg.errors import FILE_ONLY, printable

LINE_EVERY = 30.0  # seconds between lines of progress where there is no terminal


def show(text: object, end: str = "\n") -> None:
    """Print a result; what came out of files steers no terminal."""
    print(printable(str(text)), end=end)


def show_json(text: str) -> None:
    """Print a JSON text, which ends its last line itself, as `show` does; it stays JSON."""
    shown = (one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text)
    print("".join(shown), end="")


class Parser(ArgumentParser):
    """A parser whose error names the nearest option and exits with 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and let the command at fault refuse what is unknown: it knows its own options."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        import difflib

        unknown = re.findall(r"(?:unrecognized arguments:|invalid choice:) '?([^\s'=]+)", message)
        known = [*self._option_string_actions, *_commands(self)]
        near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5) if unknown else []
        hint = f"; did you mean {near[0]}?" if near else f"; `{self.prog} -h` lists what there is"
        self.exit(2, f"nnseg: {message}{hint}\n")


class StopFlag:
    """Becomes true at SIGTERM or Ctrl-C; a second Ctrl-C ends the program at once.

    A second SIGTERM does not: who starts processes together sends each one more of its own.
    """

    def __init__(self) -> None:
        self.signal: int | None = None  # the first one
        self._interrupted = False

    def listen(self) -> None:
        """Begin to catch the two signals."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)

    def __call__(self) -> bool:
        return self.signal is not None

    def _stop(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        if number == signal.SIGTERM and self.signal is not None:
            return
        self.signal = self.signal or number
        self._interrupted = number == signal.SIGINT
        again = "again" if self._interrupted else "Ctrl-C twice"
        print(f"\nnnseg: stopping after this step; {again} to stop at once", file=sys.stderr)


STOP = StopFlag()


class Progress:
    """A bar on a terminal, otherwise a line every 30 s; made for stderr."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bar: Any = None
        self._what = ""
        self._first = 0
        self._told = time.monotonic()
        self._started = self._told

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.quiet:
            return
        if what != self._what:
            self.close()
            self._what, self._started = what, time.monotonic()
            self._told = self._started
            self._first = done - 1  # a run that goes on has not done those before now
        if sys.stderr.isatty():
            self._show_bar(what, done, total)
        elif time.monotonic() - self._told >= LINE_EVERY:
            self._told = time.monotonic()
            rate = (self._told - self._started) / max(done - self._first, 1)
            print(f"{what} {done}/{total} eta {rate * (total - done):.0f} s", file=sys.stderr)

    def line(self, text: str) -> None:
        """Print a line of the result without breaking the bar."""
        if self._bar is not None:
            self._bar.clear()
        try:
            print(printable(text), flush=True)
        except BrokenPipeError:  # nobody reads any more; the work goes on all the same
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        self._told = time.monotonic()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._what = ""

    def _show_bar(self, what: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=total, desc=what, leave=False, initial=done, dynamic_ncols=True)
        self._bar.total = total
        self._bar.update(done - self._bar.n)


class _Printable(logging.Formatter):
    """Has nothing reach the terminal that it would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def show_log(*, quiet: bool, verbose: bool) -> None:
    """Show warnings, and with -v everything, on stderr, in our own short form."""
    root = logging.getLogger("nnseg")
    root.setLevel(logging.INFO)
    for handler in [h for h in root.handlers if getattr(h, "of_cli", False)]:
        root.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.of_cli = True  # type: ignore[attr-defined]
    least = logging.ERROR if quiet else logging.WARNING
    handler.setLevel(logging.INFO if verbose else least)
    handler.setFormatter(_Printable("nnseg: %(message)s"))
    handler.addFilter(lambda entry: not getattr(entry, FILE_ONLY, False))
    root.addHandler(handler)
    logging.captureWarnings(True)
    python = logging.getLogger("py.warnings")
    for old in [h for h in python.handlers if getattr(h, "of_cli", False)]:
        python.removeHandler(old)
    python.addHandler(handler)


def keep_traceback() -> str:
    """Write the traceback of a bug to a file and give its name."""
    import tempfile  # slow to import, and bugs are few

    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="nnseg-", suffix=".log", delete=False, encoding="utf-8"
        ) as file:
            file.write(f"nnseg {__version__}, {sys.argv}\n")
            traceback.print_exc(file=file)
        return file.name
    except OSError:
        traceback.print_exc()
        return "the lines above"


def _commands(parser: ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in (action.choices or ()) if name]
