"""What files must be after a fault; it knows what is written where, but none of our code."""

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from injection import Call

LEFT_OUT = re.compile(r"run.*\.json|.*\.log|log\.txt|\..+\.(lock|held)")  # who ran, when, and where
UNFINISHED = re.compile(r"\.part-\w+-\w+-\w+-\w+-")  # before the name that a file is to get
HASH = re.compile(r"[0-9a-f]{64}")
BEFORE, WRITING, RENAMING, AFTER = "before", "writing", "renaming", "after"

Tree = dict[str, str]  # a file's name below the folder, to the SHA-256 of its bytes


def tree_of(folder: Path) -> Tree:
    """Hash every file below `folder`, unfinished ones too, but for logs, run records and locks."""
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not LEFT_OUT.fullmatch(path.name)
    }


def tree_hash(folder: Path) -> str:
    """Give one hash for all of `tree_of`."""
    return hashlib.sha256(json.dumps(tree_of(folder)).encode()).hexdigest()


def differences(found: Tree, wanted: Tree) -> list[str]:
    """Name the files in which two trees differ."""
    missing = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    new = [f"{name} is new" for name in found.keys() - wanted.keys()]
    both = found.keys() & wanted.keys()
    return sorted(missing + new + [f"{n} differs" for n in both if found[n] != wanted[n]])


def half_files(folder: Path) -> list[str]:
    """Name what a reader would stumble over: files of a final name that are not whole.

    Every JSON file parses, every Blosc2 array and every zip can be read to its end, and every file
    that a record beside it names by a hash is there and has that hash.
    """
    import blosc2

    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith("."):
            continue
        try:
            if path.suffix == ".b2nd":
                blosc2.open(str(path), mode="r")[...]
            elif path.suffix == ".zip":
                with zipfile.ZipFile(path) as archive:
                    if broken := archive.testzip():
                        found.append(f"{path}: {broken} is damaged")
            elif path.suffix == ".json":
                content = json.loads(path.read_text("utf-8"))
                hashes = {} if LEFT_OUT.fullmatch(path.name) else dict(hashes_in(content))
                for name, wanted in hashes.items():
                    if not (path.parent / name).is_file():
                        found.append(f"{path}: {name} is missing")
                    elif sha256(path.parent / name) != wanted:
                        found.append(f"{path}: {name} has another hash")
        except (ValueError, RuntimeError, zipfile.BadZipFile) as error:
            found.append(f"{path}: {error}")
    return found


def neither_old_nor_new(
    found: Tree, old: Tree, new: Tree, *, all_or_nothing: bool = False
) -> list[str]:
    """Name the files that are neither as they were nor as they are to be.

    A preprocessed case may be absent while it is replaced; a file that stands for itself, such as
    a plan, the folds or a choice, may not. Unfinished files are nobody's yet. With `all_or_nothing`
    the new files are there together, or none of them is.
    """
    final = {name for name in found if not any(part.startswith(".") for part in Path(name).parts)}
    wrong = [
        f"{name} is neither old nor new"
        for name in sorted(final)
        if found[name] not in (old.get(name), new.get(name))
    ]
    alone = {name for name in old.keys() & new.keys() if not is_of_case(name)}
    wrong += [f"{name} is gone" for name in sorted(alone - found.keys())]
    added = new.keys() - old.keys()
    if all_or_nothing and 0 < len(added & final) < len(added):
        wrong.append(f"only {sorted(added & final)} are there")
    return wrong


def is_of_case(name: str) -> bool:
    """Whether a file, named from preprocessed/ on, is one of a preprocessed case."""
    parts = Path(name).parts
    return len(parts) == 4 and parts[0].startswith("Dataset")


def phase_of(calls: Sequence[Call], is_result: Callable[[Path], bool], *, done: bool) -> str:
    """Say where a command was that was killed: `calls` are those that it had begun.

    Args:
        calls: In their order.
        is_result: Whether a path is that of a file of its results, finished or not.
        done: Whether all results are there.
    """
    if not any(is_result(call.path) for call in calls):
        return BEFORE
    if done:
        return AFTER
    return RENAMING if calls[-1].kind in ("rename", "link") else WRITING


def records_in(folder: Path) -> list[Path]:
    """Find the records of finished cases: JSON files that name files beside them by a hash."""
    found = []
    for path in sorted(folder.rglob("*.json")):
        if path.name.startswith(".") or LEFT_OUT.fullmatch(path.name):
            continue
        if any(hashes_in(json.loads(path.read_text("utf-8")))):
            found.append(path)
    return found


def hashes_in(content: Any) -> Iterator[tuple[str, str]]:
    """Find the names of array files and their hashes, at any depth."""
    if isinstance(content, list):
        content = dict(enumerate(content))
    for key, value in content.items() if isinstance(content, dict) else ():
        if str(key).endswith(".b2nd") and isinstance(value, str) and HASH.fullmatch(value):
            yield str(key), value
        else:
            yield from hashes_in(value)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
