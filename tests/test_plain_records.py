"""The quick way between records and JSON does what pydantic does, or leaves it to it."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError, field_validator

from nnseg import record
from nnseg.errors import PlanError
from nnseg.plain_records import DoubtError, build, take_apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """A record within another."""

    pair: tuple[int, float] = (1, 2.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """One of each kind of plain field."""

    name: str = "ä"
    size: int = 1
    length: float = 0.5
    flag: bool = True
    kind: Literal["thin", 2] = "thin"
    sizes: tuple[int, ...] = (1, 2)
    share: float | None = None
    entry: int | tuple[int, ...] = 3
    by_name: dict[str, Inner] = field(default_factory=lambda: {"a": Inner()})
    inner: Inner | None = None
    rest: Any = None
    rests: dict[str, Any] = field(default_factory=lambda: {"deep": [1, {"x": None}]})

    def __post_init__(self) -> None:
        if self.size < 0:
            raise PlanError(f"size is {self.size}; it must not be negative")


ADAPTER = record._adapter(Outer)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


def as_pydantic(data: Any) -> Any:
    """What pydantic makes of plain JSON values; None where it refuses them."""
    try:
        return ADAPTER.validate_json(json.dumps(data))
    except (ValidationError, PlanError):
        return None


def types_in(value: Any) -> Any:
    """The types in a value at every depth: 1 and 1.0 are equal, and so are True and 1."""
    if dataclasses.is_dataclass(value):
        return type(value), [types_in(getattr(value, f.name)) for f in dataclasses.fields(value)]
    if isinstance(value, dict):
        return dict, [(name, types_in(one)) for name, one in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [types_in(one) for one in value]
    return type(value)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([f.name for f in dataclasses.fields(Outer)]), JSON)
def test_what_is_built_is_what_pydantic_builds_and_what_it_refuses_is_not(
    name: str, value: Any
) -> None:
    data = {**record.to_json(Outer()), name: value}
    try:
        found = build(Outer, data)
    except DoubtError:
        return
    wanted = as_pydantic(data)
    assert found == wanted
    assert types_in(found) == types_in(wanted)


@pytest.mark.parametrize(
    "value",
    [
        Outer(),
        Outer(kind=2, share=1.5, entry=(4, 5), inner=Inner(pair=(2, -0.0)), rest=[True, 1, 1.0]),
        Outer(name="", sizes=(), by_name={}, rests={"pair": (1, "x")}),
    ],
)
def test_plain_records_go_the_quick_way_both_times(value: Outer) -> None:
    data = take_apart(Outer, value)
    assert data == ADAPTER.dump_python(value, mode="json", warnings="error")
    assert types_in(data) == types_in(ADAPTER.dump_python(value, mode="json"))
    again = build(Outer, data)
    assert again == as_pydantic(data)
    assert take_apart(Outer, again) == data


@pytest.mark.parametrize(
    "change",
    [
        {"nme": "a"},
        {"name": 1},
        {"size": 1.0},
        {"size": True},
        {"size": -1},
        {"length": "1"},
        {"length": 10**400},
        {"length": float("inf")},
        {"flag": 1},
        {"kind": "fat"},
        {"kind": 2.0},
        {"sizes": 1},
        {"sizes": [1.5]},
        {"entry": None},
        {"by_name": {"a": {"pair": [1]}}},
        {"inner": {"pair": [1, 2, 3]}},
        {"name": "\ud800"},
        {"rest": object()},
    ],
)
def test_what_may_be_wrong_is_left_to_pydantic(change: dict[str, Any]) -> None:
    with pytest.raises(DoubtError):
        build(Outer, {**take_apart(Outer, Outer()), **change})


def test_a_whole_number_is_a_float_where_one_is_meant() -> None:
    found = build(Outer, {"length": 3, "share": 2**53})
    assert (found.length, found.share) == (3.0, 2.0**53)
    assert type(found.length) is type(found.share) is float
    with pytest.raises(DoubtError):
        build(Outer, {"share": 2**53 + 1})


@pytest.mark.parametrize(
    "change",
    [
        {"length": 1},
        {"length": np.float64(1)},
        {"size": np.int64(1)},
        {"sizes": [1]},
        {"inner": {"pair": (1, 2.0)}},
        {"rest": Path("x")},
        {"rest": float("nan")},
        {"name": "\ud800"},
    ],
)
def test_a_value_that_its_field_does_not_announce_is_left_to_pydantic(
    change: dict[str, Any],
) -> None:
    with pytest.raises(DoubtError):
        take_apart(Outer, dataclasses.replace(Outer(), **change))


@dataclass(frozen=True, kw_only=True)
class Ruled:
    """A record with a rule for pydantic."""

    size: int

    @field_validator("size")
    @classmethod
    def double(cls, size: int) -> int:
        return 2 * size


@dataclass(frozen=True, kw_only=True)
class Marked:
    """A record with a note for pydantic."""

    size: Annotated[int, Field(gt=3)]


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A record with a field of a kind that is not known here."""

    path: Path = Path("x")


@pytest.mark.parametrize(
    ("kind", "data"), [(Ruled, {"size": 5}), (Marked, {"size": 5}), (Listed, {"path": "x"})]
)
def test_what_only_pydantic_knows_is_left_to_it(kind: Any, data: dict[str, Any]) -> None:
    with pytest.raises(DoubtError):
        build(kind, data)
    with pytest.raises(DoubtError):
        take_apart(kind, kind(**data))


def test_a_plain_record_is_written_and_read_without_pydantic(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from nnseg import record\n"
        "from nnseg.validated import Validated\n"
        "path = Path(sys.argv[1])\n"
        "value = Validated(weights_sha256='w', cases=('a',), maps_sha256={'a.nii': '0'})\n"
        "record.save(value, path)\n"
        "assert record.load(Validated, path) == value\n"
        "assert 'pydantic' not in sys.modules\n"
        "path.write_text('{}')\n"
        "try:\n"
        "    record.load(Validated, path)\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "weights_sha256: field required" in done.stdout
