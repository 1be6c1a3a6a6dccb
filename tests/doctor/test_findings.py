from pathlib import Path
from typing import Any

import pytest

from nnseg.doctor.findings import Finding, Notes, count_errors, describe, in_order, raise_for_errors
from nnseg.errors import DataError


def found(number: int, severity: Any = "error") -> Finding:
    return Finding(rule="r", severity=severity, file=f"f{number}", found="is x", remedy="do y")


def test_findings_are_described_in_a_line_each() -> None:
    lines = describe([found(1), found(2, "warning")]).splitlines()
    assert lines == ["error    f1: is x; do y", "warning  f2: is x; do y"]


def test_warnings_do_not_refuse_a_dataset() -> None:
    raise_for_errors([found(1, "warning")], "D")


def test_errors_refuse_a_dataset_in_one_short_line() -> None:
    with pytest.raises(DataError) as caught:
        raise_for_errors([found(number) for number in range(9)], "D")
    message = str(caught.value)
    assert message.startswith("D: 9 errors: f0: is x; do y | f1")
    assert message.endswith("| and 6 more; `nnseg doctor D` lists all")
    assert "\n" not in message
    with pytest.raises(
        DataError, match=r"^D: 1 error: f1: is x; do y; `nnseg doctor D` lists all$"
    ):
        raise_for_errors([found(1), found(2, "warning")], "D")


def test_errors_are_counted_in_words_and_warnings_are_not() -> None:
    assert count_errors([found(1, "warning")]) == ""
    assert count_errors([found(1), found(2, "warning")]) == "1 error"
    assert count_errors([found(1), found(2)]) == "2 errors"


def test_findings_are_ordered_by_file() -> None:
    assert in_order([found(2), found(1)]) == (found(1), found(2))


def test_a_note_names_its_file_within_the_dataset_and_its_case(tmp_path: Path) -> None:
    notes = Notes(tmp_path, "a")
    notes.warning("r", tmp_path / "imagesTr" / "a_0000.nii", "is x", "do y")
    (finding,) = notes.findings
    assert (finding.file, finding.severity, finding.case_id) == (
        "imagesTr/a_0000.nii",
        "warning",
        "a",
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("{path}: is cut off; copy it again", ("is cut off", "copy it again")),
        ("{path} is cut off", ("is cut off", "restore the file")),
    ],
)
def test_the_message_of_a_reader_is_parted_into_finding_and_remedy(
    tmp_path: Path, message: str, expected: tuple[str, str]
) -> None:
    path = tmp_path / "a.nii"
    notes = Notes(tmp_path)
    notes.caught("r", path, DataError(message.format(path=path)))
    assert (notes.findings[0].found, notes.findings[0].remedy) == expected
