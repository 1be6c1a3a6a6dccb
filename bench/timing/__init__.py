"""Two programs side by side, A B A B: what every benchmark row needs.

Machines are shared and drift, so only ratios of neighbouring runs count, and their median is the
figure. Memory is that of the whole process tree, pages that processes share counted once.
"""

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

SAMPLED_EVERY = 0.05  # seconds between looks at the memory of a process tree, at least
LOOK_SHARE = 0.05  # of the time, at most, for these looks: they take from what is measured
PEER_PACKAGES = ("nnunetv2", "torch", "numpy", "scipy", "scikit-image")
OUR_PACKAGES = ("nnseg", "torch", "numpy", "scipy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of one side."""

    seconds: float
    bytes: int  # peak memory of the process tree
    result: Any = None  # what the program printed as JSON, if it did


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A benchmark row: runs of both sides in turn, and whether the results are good."""

    name: str
    data: str
    ours: tuple[Run, ...]
    peers: tuple[Run, ...]
    gate: str  # what was compared, and how far apart it was
    passed: bool

    @property
    def ratio(self) -> float:
        """Median over pairs of peer's seconds through ours."""
        pairs = zip(self.ours, self.peers, strict=True)
        return statistics.median(peer.seconds / our.seconds for our, peer in pairs)

    @property
    def memory_ratio(self) -> float:
        """The peer's highest memory through ours."""
        return max(run.bytes for run in self.peers) / max(run.bytes for run in self.ours)

    def describe(self) -> str:
        """Give the row as a line of the table in docs/benchmarks.md."""
        sides = []
        for runs in (self.ours, self.peers):
            seconds = [run.seconds for run in runs]
            peak = max(run.bytes for run in runs) / 2**20
            sides.append(
                f"{statistics.median(seconds):.3g} s (min {min(seconds):.3g}), {peak:.0f} MiB"
            )
        ratio = f"{self.ratio:.1f}x, memory /{self.memory_ratio:.1f}"
        ratio = ratio if self.passed else f"VOID, {ratio}"
        cells = (self.name, self.data, *sides, ratio, self.gate)
        return f"| {' | '.join(cells)} |"


def parse_arguments(description: str) -> Namespace:
    """Read --peer, --shared and --repeats, which every row takes."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--peer", required=True, help="python of a venv with nnunetv2")
    parser.add_argument(
        "--shared",
        type=Path,
        default=os.environ.get("NNSEG_SHARED"),
        help="folder of data/ and reference/; NNSEG_SHARED if left out",
    )
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs")
    args = parser.parse_args()
    if args.shared is None:
        parser.error("--shared: name the folder of data/ and reference/, or set NNSEG_SHARED")
    return args


def measure(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end; its last line of output may be JSON.

    Raises:
        RuntimeError: It failed; with the end of what it wrote.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            argv,
            env={**os.environ, **(env or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        memory = _MemoryWatch(process.pid)
        try:
            process.wait()  # without a limit of time, which would make it look only now and then
            seconds = time.perf_counter() - started
        finally:
            peak = memory.stop()
            with suppress(ProcessLookupError):  # Ctrl-C came, or it left processes behind
                os.killpg(process.pid, signal.SIGKILL)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))} gave {process.returncode}: {text[-2000:]}")
    try:
        result = json.loads(text.strip().splitlines()[-1])
    except (IndexError, ValueError):
        result = None
    if isinstance(result, dict) and "seconds" in result:  # a program that times its own core
        seconds = result["seconds"]
    return Run(seconds=seconds, bytes=peak, result=result)


class _MemoryWatch:
    """Looks at the memory of a session's processes now and then, until it is stopped."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._peak = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        pause = 0.0
        while not self._stopped.wait(pause):
            began = time.perf_counter()
            self._peak = max(self._peak, _tree_bytes(self._leader))
            pause = max(SAMPLED_EVERY, (time.perf_counter() - began) / LOOK_SHARE)

    def stop(self) -> int:
        """Give the highest sum of bytes that was seen."""
        self._stopped.set()
        self._thread.join()
        return self._peak


def alternate(
    ours: Callable[[], Run], peers: Callable[[], Run], repeats: int, *, warm_up: bool = True
) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """Run both sides in turn, `repeats` times; a first run of each warms the disk's cache."""
    if warm_up:
        ours(), peers()
    pairs = [(ours(), peers()) for _ in range(repeats)]
    return tuple(our for our, _ in pairs), tuple(peer for _, peer in pairs)


def report(rows: Sequence[Row], peer: str) -> int:
    """Print the rows, machine and versions; give 1 if a row is void."""
    print(f"{platform.platform()}, {processor()}, {os.cpu_count()} cores")
    print(f"nnseg: {versions(sys.executable, OUR_PACKAGES)}")
    print(f"peer: {versions(peer, PEER_PACKAGES)}")
    print("| row | data | nnseg | peer | ratio | gate |\n| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(row.describe(), flush=True)
    return 0 if all(row.passed for row in rows) else 1


def versions(python: str, packages: Sequence[str]) -> str:
    """Give Python's version and those of packages in the environment of `python`."""
    program = (
        "import platform, sys\nfrom importlib import metadata\n"
        "print('python', platform.python_version(), end='')\n"
        "for name in sys.argv[1:]: print(',', name, metadata.version(name), end='')\n"
    )
    if python == sys.executable:
        listed = [f"{name} {metadata.version(name)}" for name in packages]
        return ", ".join([f"python {platform.python_version()}", *listed])
    done = subprocess.run(
        [python, "-c", program, *packages], capture_output=True, text=True, check=True
    )
    return done.stdout


def processor() -> str:
    """Give the processor's name as Linux tells it."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _tree_bytes(leader: int) -> int:
    """Add up the memory of a session's processes, each its share of the pages it shares."""
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(stat[3]) != leader:  # the session, which children inherit
                continue
            for line in (entry / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            continue  # it ended meanwhile
    return total
