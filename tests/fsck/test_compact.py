"""Compact probabilities that are damaged, missing or nobody's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from boxed import GEOMETRY, LABELS, placed

from nnseg.folders import compact_files
from nnseg.fsck.examine import examine_results
from nnseg.lock import locked
from nnseg.probabilities import writing_compact

CASES = ("brain_1", "brain_2")


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    """A fold with the probabilities of two validation cases."""
    rng = np.random.default_rng(0)
    placement = replace(placed(), shape_resampled=(3, 5, 7))
    for case_id in CASES:
        label_map = tmp_path / "fold_0" / "validation" / f"{case_id}.nii.gz"
        with writing_compact(label_map, LABELS, GEOMETRY, placement) as take:
            take(rng.normal(size=(3, 5, 7, 3)).astype(np.float32))
    return tmp_path / "fold_0"


def files_of(fold: Path, case_id: str) -> tuple[Path, Path]:
    return compact_files(fold / "validation" / f"{case_id}.nii.gz")


def test_whole_ones_are_looked_at_and_are_no_finding(fold: Path) -> None:
    found = examine_results(fold)
    assert found.findings == ()
    assert found.files == 4


@pytest.mark.parametrize("which", [0, 1])
def test_a_changed_byte_is_an_error(fold: Path, which: int) -> None:
    path = files_of(fold, CASES[0])[which]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (finding,) = examine_results(fold).findings
    assert (finding.severity, finding.rule) == ("error", "probabilities")
    assert path.name in str(finding)
    assert "FOLD --val" in str(finding)


def test_a_missing_array_is_an_error_and_a_missing_record_leaves_something(fold: Path) -> None:
    files_of(fold, CASES[0])[0].unlink()
    files_of(fold, CASES[1])[1].unlink()
    rules = {(finding.severity, finding.rule) for finding in examine_results(fold).findings}
    assert rules == {("error", "probabilities"), ("warning", "leftover")}


def test_those_of_a_fold_in_use_are_not_judged(fold: Path) -> None:
    files_of(fold, CASES[0])[0].unlink()
    with locked(fold, "nnseg train 1 2d 0 --val"):
        assert examine_results(fold).findings == ()
    assert len(examine_results(fold).findings) == 1
