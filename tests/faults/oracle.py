"""What files must be after a fault; it knows what is written where, but none of our code."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LEFT_OUT = re.compile(r"run.*\.json|.*\.log|log\.txt|\..+\.(lock|held)")  # who ran, when, and where
HASH = re.compile(r"[0-9a-f]{64}")

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

    Every JSON file parses, every Blosc2 array can be read to its end, and every file that a record
    beside it names by a hash is there and has that hash.
    """
    import blosc2

    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith("."):
            continue
        try:
            if path.suffix == ".b2nd":
                blosc2.open(str(path), mode="r")[...]
            elif path.suffix == ".json":
                content = json.loads(path.read_text("utf-8"))
                hashes = {} if LEFT_OUT.fullmatch(path.name) else dict(hashes_in(content))
                for name, wanted in hashes.items():
                    if not (path.parent / name).is_file():
                        found.append(f"{path}: {name} is missing")
                    elif sha256(path.parent / name) != wanted:
                        found.append(f"{path}: {name} has another hash")
        except (ValueError, RuntimeError) as error:
            found.append(f"{path}: {error}")
    return found


def neither_old_nor_new(found: Tree, old: Tree, new: Tree) -> list[str]:
    """Name the files that are neither as they were nor as they are to be.

    A case may be absent while it is replaced; a file that stands for itself, a plan or the folds,
    may not. Unfinished files are nobody's yet.
    """
    wrong = [
        f"{name} is neither old nor new"
        for name, value in found.items()
        if value not in (old.get(name), new.get(name)) and not Path(name).name.startswith(".")
    ]
    alone = {name for name in old.keys() & new.keys() if len(Path(name).parts) < 4}
    return wrong + [f"{name} is gone" for name in sorted(alone - found.keys())]


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
