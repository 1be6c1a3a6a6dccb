"""Frozen dataclasses to JSON and back, strictly: every error of a file is reported at once."""

import dataclasses
import functools
import hashlib
import json
import math
import os
import stat
import typing
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nnseg.commit import write_whole
from nnseg.errors import DataError, MissingError, NnsegError
from nnseg.plain_records import DoubtError, build, take_apart

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
MAX_BYTES = 32 * 2**20  # read, small keys take 25 times their bytes; 10^5 files of a run have room
LARGE_BYTES = 256 * 2**20  # of fingerprints and scores: 10^5 cases, or 10^3 cases of 100 labels
GONE, NO_FILE = "is gone", "is no file"
MAX_DEPTH = 64
MAX_LISTS = 2 * 10**6  # and objects: an empty one takes thirty times its two bytes when it is read
MOST_FAULTS, LONGEST_FAULT = 50, 300  # of those that a message names, and characters of each
SEAL = "record_sha256"  # the field of a sealed record that holds the hash of all the others
FORMAT = "format"  # the field, where it has one, that is raised when a record's meaning changes

_ADAPTERS: dict[Any, "TypeAdapter[Any]"] = {}
_FLAT = json.JSONEncoder(allow_nan=False, ensure_ascii=False)


def save(value: Any, path: Path) -> None:
    """Write a record to `path` as JSON, whole or not at all."""
    write_whole(path, dumps(value).encode())


def load(kind: type[T], path: Path, made_by: str = "") -> T:
    """Read the record of type `kind` that `save` wrote.

    Args:
        kind: A dataclass; unknown, missing and mistyped fields are errors.
        path: The JSON file.
        made_by: The command that writes the file, for the message when it is missing.

    Raises:
        MissingError: There is no such file.
        DataError: The file does not hold such a record; all faults are in the message.
    """
    return parse(kind, read_json(path, made_by, most=_most_bytes(kind)), str(path))


def sealed(value: T) -> T:
    """Give a record with the hash of itself in its field `record_sha256`."""
    result: T = dataclasses.replace(value, **{SEAL: _seal(to_json(value))})  # type: ignore[type-var]
    return result


def save_sealed(value: T, path: Path) -> T:
    """Write a record with the hash of itself, and give it so."""
    value = sealed(value)
    save(value, path)
    return value


def load_sealed(
    kind: type[T], path: Path, made_by: str = "", remedy: str = "restore the file"
) -> T:
    """Read a record that `save_sealed` wrote.

    The hash is of what the file holds, not of the record that this version makes of it: a field
    that came later and has a default is no damage.

    Args:
        kind: As for `load`.
        path: The JSON file.
        made_by: As for `load`.
        remedy: What to do where the file is damaged, for the message.

    Raises:
        MissingError: There is no such file.
        DataError: It is no such record, of another format, or any byte of it has changed.
    """
    text = _read_text(path, made_by, _most_bytes(kind))
    data = _parse_json(path, text)
    if not isinstance(data, dict):
        raise DataError(f"{path}: must hold a JSON object, not a {type(data).__name__}; {remedy}")
    _check_format(kind, data, path)
    same = text == json_text(data)  # the hash sees no white space
    if not same or data.get(SEAL) != _seal(data):
        raise DataError(f"{path}: is damaged (its SHA-256 changed); {remedy}")
    return parse(kind, data, str(path))


def _check_format(kind: Any, data: dict[str, Any], path: Path) -> None:
    """Refuse another format before its fields, which are others, are looked at."""
    known = {field.name: field.default for field in dataclasses.fields(kind)}.get(FORMAT)
    found = data.get(FORMAT, known)
    if found != known:
        newer = isinstance(found, int) and isinstance(known, int) and found > known
        raise DataError(
            f"{path}: has format {found}; this version reads {known}; "
            + ("a newer nnseg wrote it: update nnseg" if newer else "make it anew")
        )


def _seal(data: dict[str, Any]) -> str:
    """Hash what a record's file holds, but for the hash itself."""
    rest = {key: value for key, value in data.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def parse(kind: type[T], data: Any, where: str) -> T:
    """Build the record `kind` from plain JSON values; `where` opens the message of an error."""
    try:
        return cast(T, build(kind, data))
    except DoubtError:  # pydantic names every fault, if there is one
        from pydantic import ValidationError
    try:
        return cast(T, _adapter(kind).validate_json(json.dumps(data)))
    except ValidationError as error:
        faults = [_fault(fault) for fault in error.errors()]
        rest = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
        raise DataError(f"{where}: " + "; ".join(faults[:MOST_FAULTS] + rest)) from None
    except NnsegError as error:
        raise type(error)(f"{where}: {error}") from None


def differences(old: Any, new: Any) -> list[str]:
    """Name the fields in which two records of a kind differ, as `name is now A, was B`."""
    was, now = dataclasses.asdict(old), dataclasses.asdict(new)
    return [f"{name} is now {now[name]}, was {was[name]}" for name in was if was[name] != now[name]]


def to_json(value: Any) -> Any:
    """Turn a record into plain dicts, lists, strings and numbers."""
    try:
        return take_apart(type(value), value)
    except DoubtError:
        return _adapter(type(value)).dump_python(value, mode="json", warnings="error")


def dumps(value: Any) -> str:
    """Give a record as JSON text, its lists of numbers on one line each."""
    return json_text(to_json(value))


def json_text(data: Any) -> str:
    """Give plain JSON values as text that people can read: short lists stay on one line.

    Sealed records are held to just this text: in another layout older ones would pass for damaged.
    """
    return _layout(data, "") + "\n"


def is_file_name(text: str) -> bool:
    """Whether a file may be called so, and lies in the folder that it is looked for in."""
    return text not in ("", "..") and Path(text).name == text and "\0" not in text


def check_file_names(field: str, names: Iterable[str]) -> None:
    """Refuse names in a record by which files of another folder could be read or removed.

    Raises:
        DataError: One is no name of a file in the record's own folder.
    """
    for name in names:
        if not is_file_name(name):
            raise DataError(f"{field}: {name!r} is no name of a file; it must lie in this folder")


def why_no_file(path: Path) -> str | None:
    """Say why a path is none of a file that has an end, whose content could be read; else None.

    A pipe may have its reader wait for ever, and a device such as /dev/zero never ends.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return GONE
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError:
        return "has a name that no file can have"
    return None if stat.S_ISREG(mode) else NO_FILE


def read_json(path: Path, made_by: str = "", *, most: int | None = None) -> Any:
    """Parse a JSON file, refusing what JSON leaves open.

    Duplicate keys, NaN, Infinity, deep nesting and huge files are errors.

    Args:
        path: A file, or a link to one.
        made_by: The command that writes it, for the message when it is missing.
        most: Bytes that it may have; None is MAX_BYTES.

    Raises:
        MissingError: There is no such file.
        DataError: It is not such JSON, or no file.
    """
    return _parse_json(path, _read_text(path, made_by, MAX_BYTES if most is None else most))


def _most_bytes(kind: Any) -> int:
    """Give the bytes that the file of a record may have, which the record may say itself."""
    return int(getattr(kind, "MOST_BYTES", MAX_BYTES))


def _read_text(path: Path, made_by: str, most: int) -> str:
    try:
        if why_no_file(path) == NO_FILE:
            raise DataError(f"{path}: cannot be read (it is no file); put a file there")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, most) + 1)  # as much is set aside before it is read
        if len(data) > most:
            raise DataError(f"{path}: {size} bytes is more than the {most} allowed; restore it")
        return data.decode("utf-8")
    except FileNotFoundError:
        hint = f"; `{made_by}` writes it" if made_by else ""
        raise MissingError(f"{path} does not exist{hint}") from None
    except (OSError, ValueError) as error:  # no right, no text, or no name that a file can have
        raise DataError(f"{path}: cannot be read ({error}); restore the file") from None


def _parse_json(path: Path, text: str) -> Any:
    if (lists := text.count("[") + text.count("{")) > MAX_LISTS:
        raise DataError(f"{path}: {lists} lists and objects are more than the {MAX_LISTS} allowed")
    try:
        data = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        if "\\u" in text:
            _FLAT.encode(data).encode()  # halves of characters, which no file can hold
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not valid JSON ({error}); correct or restore it") from None
    if _depth(data) > MAX_DEPTH:
        raise DataError(f"{path}: is nested deeper than {MAX_DEPTH} levels; correct or restore it")
    return data


def _adapter(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter  # slow to import

    if kind not in _ADAPTERS:
        _be_strict(kind, set())
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _be_strict(kind: Any, seen: set[Any]) -> None:
    """Mark `kind` and every dataclass inside it, so that pydantic refuses unknown keys."""
    if kind in seen:
        return
    seen.add(kind)
    for inner in typing.get_args(kind):
        if not isinstance(inner, str | int | float | bool):
            _be_strict(inner, seen)
    if dataclasses.is_dataclass(kind):
        setattr(kind, "__pydantic_config__", STRICT)  # noqa: B010  (no field of the type)
        for inner in typing.get_type_hints(kind).values():
            _be_strict(inner, seen)


def _fault(fault: Any) -> str:
    cause = fault.get("ctx", {}).get("error")
    place = ".".join(str(part) for part in fault["loc"])
    text = str(cause) if isinstance(cause, Exception) else fault["msg"].lower()
    text = f"{place}: {text}" if place else text
    return text if len(text) <= LONGEST_FAULT else f"{text[:LONGEST_FAULT]}..."


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        times = Counter(name for name, _ in pairs)
        twice = min(name for name in times if times[name] > 1)
        raise ValueError(f"key {twice!r} occurs twice")
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large a number")
    return number


def _depth(data: Any) -> int:
    deepest, level = 0, [data]
    while level and deepest <= MAX_DEPTH:
        deepest += 1
        inside = [list(v.values()) if isinstance(v, dict) else v for v in level]
        level = [item for v in inside if isinstance(v, list) for item in v]
    return deepest


def _layout(data: Any, indent: str) -> str:
    if not isinstance(data, dict | list) or not data:
        return _FLAT.encode(data)
    deeper = indent + "  "
    if isinstance(data, dict):
        if not any(isinstance(value, dict | list | tuple) for value in data.values()):
            return f"{{\n{deeper}{_rows_encoder(deeper).encode(data)[1:-1]}\n{indent}}}"
        rows = [f"{_FLAT.encode(key)}: {_layout(value, deeper)}" for key, value in data.items()]
        return "{\n" + ",\n".join(deeper + row for row in rows) + f"\n{indent}}}"
    if not any(isinstance(value, dict) for value in data):
        flat = _FLAT.encode(data)
        if len(flat) + len(indent) <= 100:
            return flat
    rows = [_layout(value, deeper) for value in data]
    return "[\n" + ",\n".join(deeper + row for row in rows) + f"\n{indent}]"


@functools.cache
def _rows_encoder(indent: str) -> json.JSONEncoder:
    """Give what writes each entry of a dict without inner ones on a line of its own, at once."""
    return json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(f",\n{indent}", ": "))


def null_if_nan(value: float) -> float | None:
    """Give None for a metric without a value, which JSON writes as null.

    >>> null_if_nan(float("nan")) is None, null_if_nan(0.5)
    (True, 0.5)
    """
    return None if math.isnan(value) else value
