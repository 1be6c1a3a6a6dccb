"""What is proven of plans, checkpoints, choices, reports, zips and ONNX, byte for byte."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import FLAT

from nnseg import record
from nnseg.folders import Folders
from nnseg.runlog import read_report
from nnseg.verbs.choosing import find_best
from nnseg.verbs.porting import export_model, import_model
from nnseg.verbs.reporting import report_on
from nnseg.verbs.verifying import Verified, verify

FLIPS = 12  # bytes of a file, spread over all of it


def flipped(data: bytes, place: int) -> bytes:
    """The bytes with one of them changed."""
    return data[:place] + bytes([data[place] ^ 0x20]) + data[place + 1 :]


def told(found: Verified) -> dict[str, set[str]]:
    """What became of the claims, by what they are about."""
    kinds = {check.what for check in found.checks}
    return {kind: {c.outcome for c in found.checks if c.what == kind} for kind in kinds}


@pytest.fixture
def whole_root(flat: Folders, tmp_path: Path) -> Path:
    """All that planning, preprocessing, training and validating left, and a chosen model."""
    shutil.copytree(flat.raw.parent, tmp_path / "whole")
    folders = Folders.of_root(tmp_path / "whole")
    find_best(folders, FLAT, folds=("0",))
    report_on(folders, FLAT)
    export_model(folders.choice_file(FLAT), tmp_path / "whole" / "model.zip", to="zip")
    return tmp_path / "whole"


def outcome(path: Path, root: Path) -> str:
    return verify([path], Folders.of_root(root))[0].outcome


@pytest.mark.fault("S14", "G6")
def test_one_flipped_byte_of_any_other_output_or_of_its_record_is_found(whole_root: Path) -> None:
    folders = Folders.of_root(whole_root)
    models, fold = folders.models_folder(FLAT), folders.fold(FLAT, "nnseg", "2d", "0", 0)
    (weights,) = fold.glob("checkpoint_final-*.safetensors")
    label_map = sorted((fold / "validation").glob("*.nii.gz"))[0]
    records = {
        folders.fingerprint_file(FLAT): folders.prepared_folder(FLAT) / "run_fingerprint.json",
        folders.choice_file(FLAT): models / "run_find-best.json",
        folders.choosing_file(FLAT): models / "run_find-best.json",
        models / "report" / "index.html": models / "report" / "run_report.json",
        models / "report" / "report.json": models / "report" / "run_report.json",
        fold / "checkpoint_latest.json": fold / "run.json",
        weights: fold / "checkpoint_final.json",
        fold / "checkpoint_final.json": weights,
        label_map: weights,
    }
    missed = []
    for path, stored in records.items():
        assert outcome(path, whole_root) == "proven", path
        for file in (path, stored):
            whole = file.read_bytes()
            for place in np.linspace(0, len(whole) - 1, 4).astype(int).tolist():
                file.write_bytes(flipped(whole, place))
                if outcome(path, whole_root) != "changed":
                    missed.append((path.name, file.name, place))
            file.write_bytes(whole)
    assert missed == []


@pytest.mark.fault("S14", "G6")
def test_a_byte_of_a_zip_of_models_is_found_or_is_none_that_is_read(
    whole_root: Path, tmp_path: Path
) -> None:
    packed = whole_root / "model.zip"
    assert outcome(packed, whole_root) == "proven"
    whole, found = packed.read_bytes(), 0
    import_model([packed], tmp_path / "right")
    for place in np.linspace(0, len(whole) - 1, 40).astype(int).tolist():
        packed.write_bytes(flipped(whole, place))
        if outcome(packed, whole_root) == "changed":
            found += 1
            continue
        target = tmp_path / str(place)
        import_model([packed], target)
        assert contents(target) == contents(tmp_path / "right"), place
    assert found > 30


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(("run_", "."))
    }


@pytest.mark.fault("S14", "G6")
def test_a_flipped_byte_of_a_network_in_onnx_or_of_its_record_is_found(
    flat: Folders, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    fold = flat.fold(FLAT, "nnseg", "2d", "0", 0)
    network, stored = export_model(fold, tmp_path / "onnx", to="onnx")
    assert outcome(network, tmp_path) == "proven"
    for path in (network, stored):
        whole = path.read_bytes()
        for place in np.linspace(0, len(whole) - 1, FLIPS).astype(int).tolist():
            path.write_bytes(flipped(whole, place))
            assert outcome(network, tmp_path) == "changed", (path.name, place)
        path.write_bytes(whole)


def test_a_flipped_byte_of_what_the_page_of_a_report_loads_is_found(whole_root: Path) -> None:
    report = Folders.of_root(whole_root).models_folder(FLAT) / "report"
    loaded = sorted(report.glob("files-*/*"))
    assert loaded
    for path in loaded:
        whole = path.read_bytes()
        path.write_bytes(flipped(whole, len(whole) // 2))
        assert outcome(report / "index.html", whole_root) == "changed"
        assert outcome(path, whole_root) == "changed"
        path.write_bytes(whole)
    assert outcome(report / "index.html", whole_root) == "proven"


def test_a_folder_without_label_maps_is_what_its_runs_wrote(whole_root: Path) -> None:
    folders = Folders.of_root(whole_root)
    report = folders.models_folder(FLAT) / "report"
    found = verify([report], folders)
    assert [Path(one.file).name for one in found] == ["index.html", "report.json"]
    assert {one.outcome for one in found} == {"proven"}
    assert "`nnseg report` of nnseg" in str(found[0].made_by)
    assert {check.what for check in found[0].checks} == {"record", "output", "input"}


def test_a_record_of_before_records_had_hashes_proves_its_outputs_still(whole_root: Path) -> None:
    folders = Folders.of_root(whole_root)
    stored = folders.models_folder(FLAT) / "run_find-best.json"
    data = record.read_json(stored)
    del data["record_sha256"]
    stored.write_text(record.json_text(data))
    (found,) = verify([folders.choice_file(FLAT)], folders)
    assert told(found)["record"] == {"unknown"}
    assert told(found)["output"] == {"proven"}
    assert found.outcome == "proven"


def test_a_changed_input_of_a_run_is_told_of_its_output(whole_root: Path) -> None:
    folders = Folders.of_root(whole_root)
    fold = folders.fold(FLAT, "nnseg", "2d", "0", 0)
    validated = fold / "validation" / "validated.json"
    validated.write_text(validated.read_text() + " ")
    (found,) = verify([folders.choice_file(FLAT)], folders)
    assert told(found)["input"] == {"changed"}
    assert told(found)["output"] == {"proven"}


def fallen(folder: Path, root: Path) -> set[str]:
    """What has changed, or is gone, of a folder."""
    found = verify([folder], Folders.of_root(root))
    return {Path(one.file).name for one in found if one.outcome == "changed"}


@pytest.mark.fault("S14", "G6")
def test_what_is_gone_or_changed_of_a_prepared_dataset_is_told_of_its_folder(
    whole_root: Path,
) -> None:
    folders = Folders.of_root(whole_root)
    prepared = folders.prepared_folder(FLAT)
    plan, measured = folders.plan_file(FLAT, "nnseg"), folders.fingerprint_file(FLAT)
    splits = folders.splits_file(FLAT)
    before = {Path(one.file).name: one.outcome for one in verify([prepared], folders)}
    assert {plan.name, measured.name, splits.name} <= before.keys()
    for path in (plan, measured, splits):
        whole, stood = path.read_bytes(), before[path.name]
        path.write_bytes(whole + b" ")
        assert path.name in fallen(prepared, whole_root)
        path.unlink()
        assert path.name in fallen(prepared, whole_root)
        assert outcome(path, whole_root) == "changed"
        path.write_bytes(whole)
        assert outcome(path, whole_root) == stood
    plan.unlink()
    assert fallen(plan.parent, whole_root) >= {plan.name}


@pytest.mark.fault("S14", "G6")
@pytest.mark.parametrize("name", ["summary.json", "*.nii.gz"])
def test_what_is_gone_or_changed_of_a_validation_is_told_of_its_folder(
    whole_root: Path, name: str
) -> None:
    folder = Folders.of_root(whole_root).fold(FLAT, "nnseg", "2d", "0", 0) / "validation"
    path = min(folder.glob(name))
    assert fallen(folder, whole_root) == set()
    path.write_bytes(path.read_bytes() + b" ")
    assert fallen(folder, whole_root) == {path.name}
    path.unlink()
    assert fallen(folder, whole_root) == {path.name}


def test_a_folder_that_was_renamed_still_says_what_is_gone(whole_root: Path) -> None:
    prepared = Folders.of_root(whole_root).prepared_folder(FLAT)
    before = fallen(prepared, whole_root)  # the plan, which was edited
    moved = prepared.rename(whole_root / "moved")
    assert fallen(moved, whole_root) == before
    (moved / "fingerprint.json").unlink()
    assert fallen(moved, whole_root) == {*before, "fingerprint.json"}


def test_a_run_that_names_files_elsewhere_has_none_of_them_looked_at(whole_root: Path) -> None:
    folders = Folders.of_root(whole_root)
    stored = folders.prepared_folder(FLAT) / "run_fingerprint.json"
    report = read_report(stored)
    for name in ("..", "/", "../../..", "x/.."):
        outputs = {name: "0" * 64}
        record.save_sealed(dataclasses.replace(report, outputs=outputs), stored)
        assert fallen(folders.prepared_folder(FLAT), whole_root) <= {"nnseg.json"}
