"""Records of plain fields to JSON values and back, without pydantic, which takes long to start.

Whatever is not just what the annotations say raises `DoubtError`, and so does a field of a kind
that is not known here: pydantic then says what is wrong, or knows what to do.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_LEAVES = (str, int, float, bool, types.NoneType)
_EXACT = 2**53  # whole numbers up to here are the same as floats


class DoubtError(Exception):
    """Something is not plain, or not right."""


def build(kind: Any, data: Any) -> Any:
    """Give the value of a type that plain JSON values stand for.

    Raises:
        DoubtError: They may stand for none.
    """
    if type(data) is dict and _is_record(kind):
        fields = _fields(kind)
        if not data.keys() <= fields.keys():
            raise DoubtError
        values = {name: build(fields[name], value) for name, value in data.items()}
        try:
            return kind(**values)
        except Exception:  # who is in doubt builds it again, and names the field
            raise DoubtError from None
    if kind is float and type(data) is int and abs(data) <= _EXACT:
        return float(data)
    if typing.get_origin(kind) is tuple and type(data) is list:
        return tuple(_each(build, typing.get_args(kind), data))
    return _same_in_both(build, kind, data)


def take_apart(kind: Any, value: Any) -> Any:
    """Give the plain JSON values that a value of a type is written as; `build` is the way back.

    Raises:
        DoubtError: It may be none of that type.
    """
    if type(value) is kind and _is_record(kind):
        fields = _fields(typing.cast(Any, kind))
        return {name: take_apart(of, getattr(value, name)) for name, of in fields.items()}
    if typing.get_origin(kind) is tuple and type(value) is tuple:
        return list(_each(take_apart, typing.get_args(kind), value))
    return _same_in_both(take_apart, kind, value)


def _same_in_both(convert: Callable[[Any, Any], Any], kind: Any, value: Any) -> Any:
    """Convert what has one form in records and in JSON, or holds what is converted."""
    if kind is Any:
        return _copied(value)
    if kind in _LEAVES:
        return _leaf(kind, value)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict and inner[0] is str and type(value) is dict:
        return {_leaf(str, name): convert(inner[1], one) for name, one in value.items()}
    if origin is typing.Literal:
        found = [one for one in inner if type(one) is type(value) and one == value]
    elif origin in (typing.Union, types.UnionType):
        found = list(_fitting(convert, inner, value))
    else:
        raise DoubtError
    if len(found) != 1:
        raise DoubtError
    return found[0]


def _each(
    convert: Callable[[Any, Any], Any], inner: tuple[Any, ...], values: Sequence[Any]
) -> Iterator[Any]:
    """Convert the items of a tuple, whose types are `inner`: of each, or of all and an ellipsis."""
    kinds = inner[:1] * len(values) if inner[1:] == (...,) else inner
    if len(kinds) != len(values):
        raise DoubtError
    return map(convert, kinds, values)


def _fitting(convert: Callable[[Any, Any], Any], kinds: Sequence[Any], value: Any) -> Iterator[Any]:
    """Give what a value is as each of the types that it can be of."""
    for kind in kinds:
        try:
            yield convert(kind, value)
        except DoubtError:
            continue


def _leaf(kind: Any, value: Any) -> Any:
    """Give a value that holds no others, if it is just of that type, and files can hold it."""
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise DoubtError
    if kind is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DoubtError from None
    return value


def _copied(value: Any) -> Any:
    """Give a copy of plain JSON values of any kind, tuples among them as lists."""
    if type(value) is dict:
        return {_leaf(str, name): _copied(one) for name, one in value.items()}
    if type(value) in (list, tuple):
        return [_copied(one) for one in value]
    if type(value) not in _LEAVES:
        raise DoubtError
    return _leaf(type(value), value)


def _is_record(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind)


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    """Give the types of a record's fields.

    Raises:
        DoubtError: It has rules of its own for pydantic, or a field that cannot be given.
    """
    own = (type(member).__module__ for member in vars(kind).values())
    if any(module.partition(".")[0] == "pydantic" for module in own):
        raise DoubtError
    if not all(field.init for field in dataclasses.fields(kind)):
        raise DoubtError
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except NameError:
        raise DoubtError from None
