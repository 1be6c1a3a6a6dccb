"""Sound files changed at random, and readers held to one rule: a value or one clear refusal.

A reader gives what it read, or raises an `NnsegError` whose message is a few lines that a terminal
can show and that name the file. Nothing else may come of any bytes: no other exception, no end of
the process, no more than SECONDS, no more than MEMORY. The voxels of a volume must be those that
plain_voxels.py finds in the file. Which bytes are tried follows from a seed.

`scripts/fuzz` runs this file for minutes and keeps, under seeds/, the bytes of whatever broke it.
"""

import argparse
import faulthandler
import hashlib
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plain_voxels import difference

HERE = Path(__file__).parent
SEEDS = HERE / "seeds"
SECONDS = 10  # that reading a file of a few KB may take
MEMORY = 2**31  # bytes that it may take besides what the process has
LONGEST = 20_000  # characters of a message
BATCH = 200  # files that one process reads

NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1,
           2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
TEXTS = (
    *("0", "-1", "1e400", "NaN", "Infinity", "-0.0", "9" * 40, "1e-320", "../x", "/etc/passwd"),
    *("\\x00", "\\u0000", "\x1b[2J", "%s%n", "{0}", "null", "true", "[]", "{}", '""'),
)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**63, 10**400, 1e308, 0.5, "", "a", "../a", "/", "\0", "x" * 3000),
    *("\x1b[31m", "\ud800", [], {}, [[]], [0], {"a": 0}),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a reader made of a file that it should have refused."""

    reader: str
    what: str  # what came of it
    place: str  # the line of ours where it did
    data: bytes

    @property
    def name(self) -> str:
        """Of the seed that is kept of it."""
        return f"{self.reader}-{hashlib.sha256(self.data).hexdigest()[:8]}"


def changed(data: bytes, rng: random.Random) -> bytes:
    """Change bytes in one to four ways drawn at random."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        way = rng.choice(JSON_WAYS if data[:1] in (b"{", b"[") else WAYS)
        data = way(data, rng)
    return data


def flip(data: bytes, rng: random.Random) -> bytes:
    """Change single bits."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        result[rng.randrange(len(result))] ^= 1 << rng.randrange(8)
    return bytes(result)


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """Put a number at the edge of what its bytes hold somewhere, often near the beginning."""
    size, order = rng.choice((1, 2, 4, 8)), rng.choice("<>")
    number = rng.choice(NUMBERS) % 2 ** (8 * size)
    value = struct.pack(f"{order}Q", number)
    value = value[:size] if order == "<" else value[-size:]
    if size > 2 and rng.random() < 0.3:
        real = rng.choice((float("nan"), float("inf"), -0.0, 1e30, -1.0, 1e-30))
        value = struct.pack(f"{order}{'f' if size == 4 else 'd'}", real)
    start = rng.randrange(max(1, min(len(data), rng.choice((64, 400, len(data) + 1)))))
    return data[:start] + value + data[start + size :]


def cut(data: bytes, rng: random.Random) -> bytes:
    """Leave out the end, or a part."""
    start = rng.randrange(len(data) + 1)
    stop = len(data) if rng.random() < 0.5 else min(len(data), start + rng.choice((1, 4, 16, 100)))
    return data[:start] + data[stop:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """Put a part, or zeros, somewhere else, too."""
    start, length = rng.randrange(len(data) + 1), rng.choice((1, 4, 16, 256, 4096))
    part = bytes(length) if rng.random() < 0.3 else data[start : start + length]
    place = rng.randrange(len(data) + 1)
    return data[:place] + part + data[place:]


def rewrite(data: bytes, rng: random.Random) -> bytes:
    """Replace a run of digits, or one word, by another text."""
    words = [start for start in range(min(len(data), 4000)) if data[start : start + 1].isalnum()]
    if not words:
        return flip(data, rng)
    start = stop = rng.choice(words)
    while stop < len(data) and (data[stop : stop + 1].isalnum() or data[stop : stop + 1] in b".-"):
        stop += 1
    return data[:start] + rng.choice(TEXTS).encode() + data[stop:]


def change_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, leave out, repeat or rename a value of a JSON text."""
    try:
        content, end = json.JSONDecoder().raw_decode(data.decode())
    except (ValueError, RecursionError):
        return rewrite(data, rng)
    places = list(_places(content))
    if not places:
        return rewrite(data, rng)
    inside, key = rng.choice(places)
    way = rng.randrange(8)
    if way == 0:
        del inside[key]
    elif way == 1 and isinstance(inside, dict):
        inside[str(rng.choice(VALUES))] = inside.pop(key)
    elif way == 2 and isinstance(inside, list):
        inside += inside * rng.choice((1, 9, 300))
    elif way == 3:
        other, at = rng.choice(places)
        if at in other if isinstance(other, dict) else at < len(other):
            inside[key] = json.loads(json.dumps(other[at]))
    elif way == 4 and isinstance(inside[key], str):
        inside[key] += rng.choice(TEXTS)
    elif way == 5 and isinstance(inside[key], int | float):
        inside[key] = rng.choice((-inside[key], inside[key] * 10**6, inside[key] / 3, 10**15))
    else:
        inside[key] = rng.choice(VALUES)
    return json.dumps(content).encode() + data.decode()[end:].encode()


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Give where each value is: what holds it, and its key or index."""
    inside = [content]
    while inside:
        one = inside.pop()
        for key in list(one) if isinstance(one, dict) else range(len(one)):
            yield one, key
            if isinstance(one[key], dict | list):
                inside.append(one[key])


WAYS = (flip, overwrite, overwrite, cut, repeat, rewrite)
JSON_WAYS = (change_json, change_json, change_json, rewrite, flip, cut)


class Fuzz:
    """One kind of file: its sound bytes, and what a reader makes of others."""

    def __init__(self, name: str, folder: Path) -> None:
        from fuzzed_readers import make_sound

        folder.mkdir(parents=True)
        self.name, self.folder = name, folder
        self.reader = make_sound(folder, name)
        self.path = folder / self.reader.file
        self.sound = self.path.read_bytes()
        self.inside = self.reader.open(self.sound)
        self.reader.settle(self.path)
        assert not self.read()  # nothing that is imported late is any file's fault

    def draw(self, seed: str) -> bytes:
        """Give the bytes that a seed leads to."""
        rng = random.Random(f"{seed} {self.name}")
        if rng.random() < 0.3:
            return changed(self.sound, rng)
        return self.reader.close(changed(self.inside, rng))

    def read(self) -> str:
        """Read the file; say how the voxels that it gives differ from those in it, "" if not."""
        read: Any = self.reader.read(self.path)
        if self.reader.plain is None:
            return ""
        for values in read:
            try:
                found = difference(values, self.reader.plain(self.path))
            except Exception as error:
                found = f"gives voxels where none can be found: {type(error).__name__}: {error}"
            if found:
                return found[:LONGEST]
        return ""

    def judge(self, data: bytes) -> tuple[str, str]:
        """Read some bytes; give what is against the rule, and where, both "" if nothing is."""
        from nnseg.errors import NnsegError

        self.path.write_bytes(data)
        self.reader.settle(self.path)
        started = time.monotonic()
        try:
            found = self.read()
        except NnsegError as error:
            return fault_of(str(error), self.path), ""
        except Exception as error:
            lines = traceback.extract_tb(error.__traceback__)
            ours = [
                f"{Path(one.filename).name}:{one.name}" for one in lines if "nnseg" in one.filename
            ]
            return f"{type(error).__name__}: {str(error)[:200]}", ours[-1] if ours else ""
        if time.monotonic() - started > SECONDS:
            return f"takes over {SECONDS} s", ""
        return found, ""


def fault_of(message: str, path: Path) -> str:
    """Say what is wrong with a message about a file; "" if nothing is."""
    if path.stem.split(".")[0] not in message:
        return f"the message does not name the file: {message[:200]!r}"
    if not all(part.isprintable() for part in message.split("\n")):
        return f"the message has control characters: {message[:200]!r}"
    if len(message) > LONGEST:
        return f"the message has {len(message)} characters"
    return ""


def read_many(fuzz: Fuzz, seeds: Sequence[str]) -> tuple[list[Finding], int]:
    """Have a process read the files of some seeds; give what broke the rule, and how many it read.

    A file that ends or hangs the process ends the batch.
    """
    progress = mmap.mmap(-1, 8)
    with tempfile.TemporaryFile() as found:
        pid = os.fork()
        if pid == 0:
            _read_in_child(fuzz, seeds, progress, found.fileno())
        end, status = time.monotonic() + 3 * SECONDS, None
        done = -1
        while status is None:
            ended, code = os.waitpid(pid, os.WNOHANG)
            if ended:
                status = os.waitstatus_to_exitcode(code)
            elif time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                status = -int(signal.SIGKILL)
            elif (now := int.from_bytes(progress[:8], "little")) > done:
                done, end = now, time.monotonic() + 3 * SECONDS
            else:
                time.sleep(0.002)
        found.seek(0)
        lines = [json.loads(line) for line in found.read().splitlines()]
    done = int.from_bytes(progress[:8], "little")
    findings = [
        Finding(reader=fuzz.name, what=what, place=place, data=fuzz.draw(seeds[number]))
        for number, what, place in lines
    ]
    if status != 0:
        what = "hangs" if status == -signal.SIGKILL else f"ends the process by {status}"
        findings.append(Finding(reader=fuzz.name, what=what, place="", data=fuzz.draw(seeds[done])))
        done += 1
    return findings, done


def _read_in_child(fuzz: Fuzz, seeds: Sequence[str], progress: mmap.mmap, found: int) -> None:
    """Read one file after the other, and end without taking down the interpreter."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)  # libraries complain there of what they meet
    faulthandler.disable()  # the end of this process is told by who waits for it
    limit_memory(MEMORY)
    signal.signal(signal.SIGALRM, lambda number, frame: _too_long())
    warnings.simplefilter("ignore")
    for number, seed in enumerate(seeds):
        progress[:8] = number.to_bytes(8, "little")
        data = fuzz.draw(seed)
        signal.alarm(SECONDS)
        what, place = fuzz.judge(data)
        signal.alarm(0)
        if what:
            os.write(found, json.dumps([number, what, place]).encode() + b"\n")
    progress[:8] = len(seeds).to_bytes(8, "little")
    os._exit(0)


def _too_long() -> None:
    raise RuntimeError(f"takes over {SECONDS} s")


def limit_memory(more: int) -> None:
    """Let this process take so many bytes of addresses more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder for a while, in memory where there is one."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=parent) as folder:
        yield Path(folder)


def fuzz_all(
    names: Sequence[str], seed: str, *, seconds: float = 0, count: int = 0
) -> Iterator[tuple[str, list[Finding], int]]:
    """Go round the readers, `count` files of each, or for so many seconds; tell of each batch."""
    with scratch() as folder:
        fuzzes = [Fuzz(name, folder / name) for name in names]
        end, number = time.monotonic() + seconds, 0
        while number < count or time.monotonic() < end:
            for fuzz in fuzzes:
                batch = min(BATCH, count - number) if count else BATCH
                seeds = [f"{seed}-{number + i}" for i in range(batch)]
                yield (fuzz.name, *read_many(fuzz, seeds))
            number += BATCH


def main() -> int:
    from fuzzed_readers import READERS

    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz the readers of files.")
    parser.add_argument("minutes", nargs="?", type=float, default=20)
    parser.add_argument("--seed", default="1", help="decides which files are tried")
    parser.add_argument("--readers", nargs="+", default=list(READERS), choices=list(READERS))
    args = parser.parse_args()
    read: dict[str, int] = dict.fromkeys(args.readers, 0)
    known: set[tuple[str, str, str]] = set()
    for name, findings, done in fuzz_all(args.readers, args.seed, seconds=60 * args.minutes):
        read[name] += done
        for finding in findings:
            kind = (name, finding.place, finding.what.split(":")[0])
            if kind not in known:
                known.add(kind)
                SEEDS.mkdir(exist_ok=True)
                (SEEDS / finding.name).write_bytes(finding.data)
                print(f"{finding.name}: {finding.place} {finding.what}", flush=True)
    for name, count in read.items():
        print(f"{name}: {count} files read")
    print(f"{sum(read.values())} files read, {len(known)} findings")
    return bool(known)


if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    sys.exit(main())
