"""Label maps of a validation that were changed; probabilities damaged, missing or nobody's."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from boxed import GEOMETRY, LABELS, placed

from nnseg import record
from nnseg.commit import sha256
from nnseg.folders import compact_files, validated_file, validation_folder
from nnseg.fsck.examine import examine_results
from nnseg.lock import locked
from nnseg.probabilities import writing_compact
from nnseg.validated import Validated

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


def test_probabilities_of_other_weights_than_the_validation_are_an_error(tmp_path: Path) -> None:
    fold, rng = tmp_path / "fold_0", np.random.default_rng(0)
    placement = replace(placed(), shape_resampled=(3, 5, 7))
    for case_id, weights in zip((*CASES, "brain_3"), ("now", "before", None), strict=True):
        label_map = validation_folder(fold) / f"{case_id}.nii.gz"
        with writing_compact(
            label_map, LABELS, GEOMETRY, placement, weights_sha256=weights
        ) as take:
            take(rng.normal(size=(3, 5, 7, 3)).astype(np.float32))
    assert examine_results(fold).findings == ()  # nothing says whose the folder is
    record.save(Validated(weights_sha256="now"), validated_file(fold))
    (finding,) = examine_results(fold).findings
    assert (finding.severity, finding.rule) == ("error", "probabilities")
    assert CASES[1] in str(finding)
    assert "of other weights" in finding.found
    record.save(Validated(weights_sha256=""), validated_file(fold))  # under way
    assert examine_results(fold).findings == ()


def test_a_label_map_that_was_changed_since_the_validation_is_an_error(fold: Path) -> None:
    path = validation_folder(fold) / f"{CASES[0]}.nii.gz"
    path.write_bytes(b"as it was")
    digest = sha256(path)
    record.save(
        Validated(weights_sha256="w", maps_sha256={path.name: digest}), validated_file(fold)
    )
    assert examine_results(fold).findings == ()
    path.write_bytes(b"by hand")
    (finding,) = examine_results(fold).findings
    assert (finding.severity, finding.rule) == ("error", "validation")
    assert path.name in str(finding)
    assert "--val" in str(finding)


def test_a_changed_byte_of_the_proof_of_a_validation_is_an_error(fold: Path) -> None:
    path = validated_file(fold)
    record.save_sealed(Validated(weights_sha256="w", cases=CASES), path)
    assert examine_results(fold).findings == ()
    path.write_text(path.read_text().replace("brain_2", "brain_3"))
    (finding,) = examine_results(fold).findings
    assert (finding.severity, finding.rule) == ("error", "validation")
    assert finding.file.endswith("validation/validated.json")
    assert "is damaged" in finding.found
    assert "--val" in finding.remedy


@pytest.mark.parametrize("name", ["a\0b.nii.gz", "../a.nii.gz"])
def test_a_proof_that_names_what_is_no_file_is_damaged(fold: Path, name: str) -> None:
    path = validated_file(fold)
    path.write_text(json.dumps({"weights_sha256": "w", "maps_sha256": {name: "0"}}))
    (finding,) = examine_results(fold).findings
    assert (finding.severity, finding.rule) == ("error", "validation")
    assert finding.file.endswith("validation/validated.json")
    assert "is no name of a file" in finding.found
    assert "--val" in finding.remedy


def test_those_of_a_fold_in_use_are_not_judged(fold: Path) -> None:
    files_of(fold, CASES[0])[0].unlink()
    with locked(fold, "nnseg train 1 2d 0 --val"):
        assert examine_results(fold).findings == ()
    assert len(examine_results(fold).findings) == 1
