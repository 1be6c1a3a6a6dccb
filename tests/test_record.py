import errno
import json
import math
import os
import time
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticSerializationError

from nnseg import record
from nnseg.dataset import DatasetSpec, Fold
from nnseg.decisions import Decision
from nnseg.errors import DataError, MachineError, MissingError, PlanError
from nnseg.fingerprint import Fingerprint
from nnseg.image.intensity import Intensity
from nnseg.labels import Labels
from nnseg.plan import Plan, make_plan
from nnseg.preprocess import Placement
from nnseg.runlog import RunReport
from nnseg.store import StoredCase

INTENSITY = Intensity(
    mean=0.1, median=-0.0, std=1e-300, min=-1e300, max=1.5, percentile_00_5=1 / 3, percentile_99_5=2
)
FINGERPRINT = Fingerprint(
    spacings=((5.0, 0.7, 0.8), (4.0, 0.7, 0.8)),
    shapes=((300, 400, 350), (280, 410, 340)),
    intensities=(INTENSITY,),
    median_relative_size=0.25,
    case_ids=("a", "Fälle/ü"),
)
LABELS = Labels(
    labels={"background": 0, "whole": (1, 2), "core": 2, "ignore": 3}, regions_class_order=(1, 2)
)
SPEC = DatasetSpec(channels=("T1",), labels=LABELS, num_training=20, file_ending=".nii.gz")
PLACEMENT = Placement(
    order=(1, 2, 0),
    shape=(4, 5, 6),
    spacing=(0.1, 1 / 3, 2.0),
    box=((0, 5), (1, 6), (0, 3)),
    shape_resampled=(5, 7, 3),
)
RECORDS: list[Any] = [
    INTENSITY,
    FINGERPRINT,
    LABELS,
    SPEC,
    make_plan(SPEC, FINGERPRINT, dataset="Dataset900_Test", memory_gb=1.5),
    PLACEMENT,
    StoredCase(
        case_id="a",
        made_from="1",
        data_hash="2",
        arrays_from="3",
        placement=PLACEMENT,
        files={"a.image.b2nd": "3"},
        locations={"whole": 12, "left/right": 3},
    ),
    Fold(train=("a", "b"), val=()),
    RunReport(
        command="nnseg plan",
        arguments={"memory_gb": None, "names": ["a"]},
        versions={"nnseg": "0"},
        machine="x86_64",
        started="2026-01-01T00:00:00+00:00",
        seconds=0.5,
        exit_code=0,
        error=None,
        warnings=('a "quoted" line\n',),
        inputs={},
        outputs={},
        cases={"a": "done"},
        facts={"nested": {"deep": [1, 2.5, True]}},
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """One of each kind of field."""

    name: str
    size: int
    length: float
    flag: bool = False
    kind: Literal["thin", "thick"] = "thin"
    sizes: tuple[int, ...] = ()
    inner: "Inner | None" = None

    def __post_init__(self) -> None:
        if self.size < 0:
            raise PlanError(f"size is {self.size}; it must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """A record within another."""

    pair: tuple[int, float]


def write(folder: Path, text: str) -> Path:
    path = folder / "record.json"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("value", RECORDS, ids=lambda value: type(value).__name__)
def test_each_record_comes_back_from_disk_as_it_was(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    record.save(value, path)
    found = record.load(type(value), path)
    assert found == value
    assert record.dumps(found) == path.read_text("utf-8")


def test_a_plan_says_all_types_again_that_it_had(tmp_path: Path) -> None:
    plan = next(value for value in RECORDS if isinstance(value, Plan))
    record.save(plan, tmp_path / "plan.json")
    found = record.load(Plan, tmp_path / "plan.json")
    assert list(found.configurations) == list(plan.configurations)
    flat = found.configuration("2d")
    assert flat.spacing[0] is None
    assert flat.resample_image.separate is None
    assert type(found.labels.labels["whole"]) is tuple
    assert type(found.decisions[0]) is Decision
    assert type(flat.architecture.strides[0]) is tuple


@settings(max_examples=50, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.text(st.characters(codec="utf-8")))
def test_every_number_and_text_comes_back_exactly(number: float, text: str) -> None:
    edge = Edge(name=text, size=1, length=number)
    found = record.parse(Edge, json.loads(record.dumps(edge)), "here")
    assert found.name == text
    assert math.copysign(1, found.length) == math.copysign(1, number)
    assert found.length == number


def test_every_fault_of_a_file_is_reported_at_once(tmp_path: Path) -> None:
    faulty = {
        "nme": "a",
        "size": 1.5,
        "length": "2.0",
        "flag": 1,
        "kind": "fat",
        "sizes": [1, "2"],
        "inner": {"pair": [1]},
    }
    path = write(tmp_path, json.dumps(faulty))
    with pytest.raises(DataError) as caught:
        record.load(Edge, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    for place in ("nme: ", "name: ", "size: ", "length: ", "flag: ", "kind: ", "sizes.1: "):
        assert place in message
    assert "inner.pair.1: " in message


def test_of_very_many_faults_some_are_named_and_the_others_counted() -> None:
    data = {"name": "a", "size": 1, "length": 2} | {f"more_{n}": 0 for n in range(1000)}
    with pytest.raises(DataError) as caught:
        record.parse(Edge, data, "here")
    message = str(caught.value)
    assert message.count("unexpected keyword argument") == record.MOST_FAULTS
    assert f"and {1000 - record.MOST_FAULTS} more" in message


def test_a_fault_of_a_very_long_name_is_cut() -> None:
    data = {"name": "a", "size": 1, "length": 2, "x" * 10**5: 0}
    with pytest.raises(DataError) as caught:
        record.parse(Edge, data, "here")
    assert len(str(caught.value)) < 2 * record.LONGEST_FAULT


def test_half_of_a_character_is_no_json(tmp_path: Path) -> None:
    path = write(tmp_path, '{"name": "\\ud800"}')
    with pytest.raises(DataError, match="is not valid JSON"):
        record.read_json(path)
    assert record.read_json(write(tmp_path, '{"a": "\\ud83d\\ude00"}')) == {"a": "\U0001f600"}


def test_one_of_very_many_keys_that_occurs_twice_is_found_at_once(tmp_path: Path) -> None:
    keys = ",".join(f'"{n}": 0' for n in range(200_000))
    path = write(tmp_path, f'{{{keys}, "5": 1}}')
    started = time.process_time()
    with pytest.raises(DataError, match="key '5' occurs twice"):
        record.read_json(path)
    assert time.process_time() - started < 10  # to count each of them would take hours


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"colour": 1}, "colour: unexpected keyword argument"),
        ({"size": True}, "size: input should be a valid integer"),
        ({"size": 1.0}, "size: input should be a valid integer"),
        ({"length": None}, "length: input should be a valid number"),
        ({"name": 5}, "name: input should be a valid string"),
        ({"inner": {"pair": [1, 2], "more": 0}}, "inner.more: unexpected keyword argument"),
        ({"inner": {"pair": [1, 2, 3]}}, "inner.pair: "),
    ],
)
def test_a_record_is_read_strictly(change: dict[str, Any], fault: str) -> None:
    data = {"name": "a", "size": 1, "length": 2} | change
    with pytest.raises(DataError, match=f"^here: {fault}"):
        record.parse(Edge, data, "here")


def test_a_missing_field_is_named() -> None:
    with pytest.raises(DataError, match=r"^here: length: field required$"):
        record.parse(Edge, {"name": "a", "size": 1}, "here")


def test_a_whole_number_may_stand_for_a_float() -> None:
    found = record.parse(Edge, {"name": "a", "size": 1, "length": 2}, "here")
    assert type(found.length) is float


def test_what_a_record_refuses_keeps_its_kind_and_says_where() -> None:
    with pytest.raises(PlanError, match=r"^here: size is -1; it must not be negative$"):
        record.parse(Edge, {"name": "a", "size": -1, "length": 2}, "here")


@pytest.mark.parametrize("data", [None, [], "text", 5])
def test_what_is_no_object_is_no_record(data: Any) -> None:
    with pytest.raises(DataError, match=r"^here: "):
        record.parse(Edge, data, "here")


def test_a_missing_file_is_told_with_the_command_that_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(MissingError, match=r"plan\.json does not exist; `nnseg plan` writes it$"):
        record.load(Edge, path, "nnseg plan")
    with pytest.raises(MissingError, match=r"plan\.json does not exist$"):
        record.load(Edge, path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "key 'a' occurs twice"),
        ('{"deep": [{"b": 1, "b": 2}]}', "key 'b' occurs twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ("[Infinity]", "Infinity is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ("[1e999]", "1e999 is too large a number"),
        ("[-1e999]", "-1e999 is too large a number"),
        ('{"a": 1', "is not valid JSON"),
        ('{"a": 1} {}', "is not valid JSON"),
        ("{'a': 1}", "is not valid JSON"),
        ("", "is not valid JSON"),
        pytest.param("[" * 200_000, "is not valid JSON", id="200 000 deep"),
        pytest.param('{"a":' * 65 + "1" + "}" * 65, "deeper than 64 levels", id="objects"),
        pytest.param("[" * 65 + "]" * 65, "deeper than 64 levels", id="lists"),
    ],
)
def test_what_json_leaves_open_is_refused(text: str, fault: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=fault) as caught:
        record.read_json(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_64_levels_are_not_too_deep(tmp_path: Path) -> None:
    path = write(tmp_path, "[" * 64 + "]" * 64)
    assert record.read_json(path)


def test_a_file_too_large_to_be_ours_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "[1, 2, 3]")
    monkeypatch.setattr(record, "MAX_BYTES", 8)
    with pytest.raises(DataError, match="9 bytes is more than the 8 allowed"):
        record.read_json(path)
    monkeypatch.setattr(record, "MAX_BYTES", 9)
    assert record.read_json(path) == [1, 2, 3]
    assert record.read_json(write(tmp_path, "[1, 2, 3, 4]"), most=12) == [1, 2, 3, 4]


def test_only_what_grows_with_its_cases_may_be_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "MAX_BYTES", 8)
    write(tmp_path, record.dumps(FINGERPRINT))
    assert record.load(Fingerprint, tmp_path / "record.json") == FINGERPRINT
    record.save(Inner(pair=(1, 2.0)), tmp_path / "inner.json")
    with pytest.raises(DataError, match="more than the 8 allowed"):
        record.load(Inner, tmp_path / "inner.json")


@pytest.mark.parametrize(("opened", "closed"), ["[]", ("{", "}")])
def test_so_many_lists_and_objects_are_read_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: str, closed: str
) -> None:
    monkeypatch.setattr(record, "MAX_LISTS", 8)
    most = "[" + ",".join([opened + closed] * 7) + "]"
    assert len(record.read_json(write(tmp_path, most))) == 7
    with pytest.raises(DataError, match="9 lists and objects are more than the 8 allowed"):
        record.read_json(write(tmp_path, most[:-1] + f",{opened}{closed}]"))


def test_too_many_lists_are_counted_and_not_built(tmp_path: Path) -> None:
    path = write(tmp_path, "[" + "[]," * record.MAX_LISTS + "0]")
    began = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=f"{record.MAX_LISTS + 1} lists and objects are more"):
            record.read_json(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * record.MAX_BYTES  # lists: 120 MB
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 1


@pytest.mark.fault("S05")
@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="the system has no such device")
def test_a_link_to_a_device_that_never_ends_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"record\.json: cannot be read \(it is no file\)"):
        record.read_json(path)


@pytest.mark.parametrize("name", ["", "..", "../x", "/x", "a/b", "a\0b"])
def test_what_leads_out_of_a_folder_is_no_name_of_a_file_in_it(name: str) -> None:
    with pytest.raises(DataError, match=r"outputs: .* is no name of a file"):
        record.check_file_names("outputs", ["right.nii.gz", name])
    record.check_file_names("outputs", ["right.nii.gz", "x" * 5000])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"record\.json: cannot be read \(it is no file\)"):
        record.read_json(path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match=r"record\.json: cannot be read .*; restore the file"):
        record.read_json(path)
    with pytest.raises(DataError, match="cannot be read"):
        record.read_json(tmp_path)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_cannot_hold_is_not_written(number: float, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record.save(Edge(name="old", size=1, length=1.0), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        record.save(Edge(name="new", size=1, length=number), path)
    assert path.read_bytes() == before


def test_a_full_disk_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    record.save(FINGERPRINT, path)

    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(MachineError, match="the disk is full"):
        record.save(replace(FINGERPRINT, median_relative_size=0.5), path)
    assert record.load(Fingerprint, path) == FINGERPRINT


def test_short_lists_stay_on_one_line_and_long_ones_do_not() -> None:
    data = {"short": [1, [2, 3]], "objects": [{"a": 1}], "empty": {}, "long": list(range(40))}
    lines = record.json_text(data).splitlines()
    assert lines[:7] == [
        "{",
        '  "short": [1, [2, 3]],',
        '  "objects": [',
        "    {",
        '      "a": 1',
        "    }",
        "  ],",
    ]
    assert '  "empty": {},' in lines
    assert lines[-3] == "    39"
    assert json.loads(record.json_text(data)) == data


def test_the_text_of_a_record_ends_with_a_newline_and_keeps_letters() -> None:
    text = record.dumps(FINGERPRINT)
    assert text.endswith("}\n")
    assert "Fälle/ü" in text


def test_a_value_of_another_type_than_its_field_is_not_written() -> None:
    wrong = Edge(name="a", size=1, length="long")  # type: ignore[arg-type]
    with pytest.raises(PydanticSerializationError, match="long"):
        record.dumps(wrong)


@pytest.mark.parametrize(("value", "expected"), [(math.nan, None), (0.0, 0.0), (-1.5, -1.5)])
def test_nan_becomes_null(value: float, expected: float | None) -> None:
    assert record.null_if_nan(value) == expected
    assert record.null_if_nan(float(np.float32(value))) == expected


def test_infinity_is_not_taken_for_nan() -> None:
    assert record.null_if_nan(math.inf) == math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A record that knows whether it is whole."""

    size: float
    format: int = 2
    record_sha256: str = ""


def test_a_sealed_record_comes_back_whatever_number_it_was_made_of(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record.save_sealed(Sealed(size=3), path)  # which JSON does not tell from 3.0
    assert record.load_sealed(Sealed, path).size == 3.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]\n", "must hold a JSON object, not a list; restore the file"),
        ('{"format": 3}\n', "has format 3; this version reads 2; a newer nnseg wrote it"),
        ('{"format": 1}\n', "has format 1; this version reads 2; make it anew"),
        ('{"format": 2, "size": 1.0}\n', "is damaged"),
    ],
)
def test_what_is_no_sealed_record_of_this_version_says_why(
    text: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"record\.json: {words}"):
        record.load_sealed(Sealed, write(tmp_path, text))


@pytest.mark.parametrize("number", [10**400, -(10**400)])
def test_an_integer_beyond_all_floats_is_no_float(number: int) -> None:
    with pytest.raises(DataError, match="length: input should be a finite number"):
        record.parse(Edge, {"name": "a", "size": 1, "length": number}, "edge")


def test_records_that_differ_are_told_by_their_fields_with_both_values() -> None:
    old = Fold(train=("a", "b"), val=("c",))
    new = replace(old, val=("d",), train=("a",))
    assert record.differences(old, new) == [
        "train is now ('a',), was ('a', 'b')",
        "val is now ('d',), was ('c',)",
    ]
    assert record.differences(old, old) == []
