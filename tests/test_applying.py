"""Rules carried out on files: what is done, what is left alone, and what is refused."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnseg import pipeline, record
from nnseg.commit import write_whole
from nnseg.dataset import DatasetSpec, spec_to_json
from nnseg.errors import DataError, MissingError, PartlyDoneError, UsageError
from nnseg.folders import applied_file, predicted_spec_file
from nnseg.labels import Labels
from nnseg.lock import locked
from nnseg.parallel import Room
from nnseg.postprocess import KeepLargest, Postprocessing
from nnseg.runlog import RunReport
from nnseg.verbs import applying
from nnseg.verbs.applying import Applied, apply_postprocessing, find_applying_jobs
from nnseg.volume import read_segmentation, simple_geometry, write

SHAPE = (3, 5, 16)
SPACING = (5.0, 0.5, 0.8)
LABELS = Labels(labels={"background": 0, "liver": 1, "spleen": 2})
SPEC = DatasetSpec(channels=("CT",), labels=LABELS, num_training=0, file_ending=".nii.gz")
KEEP = Postprocessing(rules=(KeepLargest(labels=("liver",)),))
OTHER = Postprocessing(rules=(KeepLargest(labels=("spleen",)),))


def line(*values: int) -> np.ndarray:
    """A label map of one line of voxels in a volume that is empty otherwise."""
    result = np.zeros(SHAPE, dtype=np.uint8)
    result[1, 3, : len(values)] = values
    return result


TRUTH = line(1, 1, 1, 1, 1, 1, 0, 2, 2)
SPECK = line(1, 1, 1, 1, 1, 1, 0, 2, 2, 0, 1)


def save(folder: Path, **maps: np.ndarray) -> Path:
    for case_id, segmentation in maps.items():
        write(folder / f"{case_id}.nii.gz", segmentation, simple_geometry(SHAPE, SPACING))
    return folder


def predicted(folder: Path, *numbers: int) -> Path:
    return save(folder, **{f"c{n}": SPECK for n in numbers})


def read(path: Path) -> np.ndarray:
    return read_segmentation(path)[0]


@pytest.mark.parametrize("field", ["label_map", "inputs", "outputs"])
@pytest.mark.parametrize("name", ["", "../x"])
def test_a_record_that_names_files_elsewhere_is_none(field: str, name: str) -> None:
    fields: dict[str, Any] = {"label_map": "a.nii.gz", "inputs": {}, "outputs": {}}
    fields[field] = name if field == "label_map" else {name: "0" * 64}
    with pytest.raises(DataError, match=f"{field}: .* is no name of a file"):
        Applied(made_by="x", postprocessing=KEEP, voxels=0, **fields)


def test_rules_are_carried_out_on_a_folder(tmp_path: Path) -> None:
    source, target = predicted(tmp_path / "in", 0, 1), tmp_path / "out"
    written = apply_postprocessing(source, target, KEEP, SPEC)
    assert written == {"c0": target / "c0.nii.gz", "c1": target / "c1.nii.gz"}
    assert np.array_equal(read(target / "c0.nii.gz"), TRUTH)
    assert np.array_equal(read(source / "c0.nii.gz"), SPECK)
    assert predicted_spec_file(target).is_file()
    applied = record.load_sealed(Applied, applied_file(target / "c0.nii.gz"))
    assert (applied.voxels, applied.postprocessing) == (1, KEEP)
    assert record.load(RunReport, target / "run_postprocess.json").cases == dict.fromkeys(
        ["c0", "c1"], "done"
    )


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("c?.nii.gz")}


def test_what_is_proven_to_be_done_is_not_done_again(tmp_path: Path) -> None:
    source, target = predicted(tmp_path / "in", 0, 1, 2), tmp_path / "out"
    apply_postprocessing(source, target, KEEP, SPEC)
    before = stamps(target)
    save(source, c1=TRUTH)  # another prediction
    applied_file(target / "c2.nii.gz").write_text("{}")  # as a kill may leave no record
    apply_postprocessing(source, target, KEEP, SPEC)
    changed = {name for name, stamp in stamps(target).items() if stamp != before[name]}
    assert changed == {"c1.nii.gz", "c2.nii.gz"}
    apply_postprocessing(source, target, OTHER, SPEC)
    assert np.array_equal(read(target / "c0.nii.gz"), SPECK)


def test_bad_cases_are_listed_and_leave_nothing_of_other_rules(tmp_path: Path) -> None:
    source, target = predicted(tmp_path / "in", 0, 1, 2), tmp_path / "out"
    apply_postprocessing(source, target, KEEP, SPEC)
    (source / "c1.nii.gz").write_bytes(b"no image")
    save(source, c2=line(9))
    with pytest.raises(PartlyDoneError, match=r"2 of 3 cases failed:\n  case c1: .*\n  case c2: "):
        apply_postprocessing(source, target, KEEP, SPEC)
    assert sorted(stamps(target)) == ["c0.nii.gz"]
    cases = record.load(RunReport, target / "run_postprocess.json").cases
    assert cases["c0"] == "done"
    assert "which are no labels" in cases["c2"]


def test_a_label_map_that_was_changed_by_hand_stays(tmp_path: Path) -> None:
    source, target = predicted(tmp_path / "in", 0, 1), tmp_path / "out"
    apply_postprocessing(source, target, KEEP, SPEC)
    save(target, c0=line(2, 2))
    with pytest.raises(PartlyDoneError, match="was changed since it was postprocessed"):
        apply_postprocessing(source, target, KEEP, SPEC)
    assert np.array_equal(read(target / "c0.nii.gz"), line(2, 2))
    apply_postprocessing(source, target, KEEP, SPEC, overwrite=True)
    assert np.array_equal(read(target / "c0.nii.gz"), TRUTH)


def test_a_damaged_result_is_made_again(tmp_path: Path) -> None:
    source, target = predicted(tmp_path / "in", 0, 1), tmp_path / "out"
    apply_postprocessing(source, target, KEEP, SPEC)
    (target / "c0.nii.gz").write_bytes((target / "c0.nii.gz").read_bytes()[:-9])
    apply_postprocessing(source, target, KEEP, SPEC)
    assert np.array_equal(read(target / "c0.nii.gz"), TRUTH)


def test_files_that_postprocessing_did_not_make_are_not_replaced(tmp_path: Path) -> None:
    source = predicted(tmp_path / "in", 0)
    target = predicted(tmp_path / "out", 0)
    with pytest.raises(UsageError, match="was not made by postprocessing"):
        apply_postprocessing(source, target, KEEP, SPEC)
    with pytest.raises(UsageError, match="must not be the input"):
        apply_postprocessing(source, source, KEEP, SPEC)
    with pytest.raises(DataError, match="nothing to postprocess"):
        apply_postprocessing(tmp_path, target, KEEP, SPEC)
    rules = Postprocessing(rules=(KeepLargest(labels=("kidney",)),))
    with pytest.raises(DataError, match="'kidney', which is none of the labels"):
        apply_postprocessing(source, tmp_path / "new", rules, SPEC)
    assert not (tmp_path / "new").exists()


def test_one_run_at_a_time_writes_a_folder(tmp_path: Path) -> None:
    source, target = predicted(tmp_path / "in", 0), tmp_path / "out"
    with locked(target, "another"), pytest.raises(Exception, match="is in use by `another`"):
        apply_postprocessing(source, target, KEEP, SPEC)


def test_maps_and_probabilities_beside_predictions_are_passed_over(tmp_path: Path) -> None:
    source = predicted(tmp_path / "in", 0)
    write(
        source / "c0_entropy.nii.gz",
        np.full(SHAPE, 0.5, np.float32),
        simple_geometry(SHAPE, SPACING),
    )
    proof = {"label_map": "c0.nii.gz", "outputs": {"c0.nii.gz": "", "c0_entropy.nii.gz": ""}}
    (source / "c0.nii.gz.proof.json").write_text(json.dumps(proof))
    assert list(apply_postprocessing(source, tmp_path / "out", KEEP, SPEC)) == ["c0"]


def test_a_dataset_json_of_other_labels_is_not_replaced(tmp_path: Path) -> None:
    source, target = predicted(tmp_path / "in", 0), tmp_path / "out"
    spec = b'{"labels": {"background": 0, "bone": 1}}'
    write_whole(predicted_spec_file(target), spec)
    with pytest.raises(UsageError, match=r"dataset\.json is there, and postprocessing did not"):
        apply_postprocessing(source, target, KEEP, SPEC)
    assert predicted_spec_file(target).read_bytes() == spec
    assert [path.name for path in target.iterdir()] == ["dataset.json"]
    write_whole(predicted_spec_file(target), record.json_text(spec_to_json(SPEC)).encode())
    apply_postprocessing(source, target, KEEP, SPEC)  # the same words, as a kill leaves them
    write_whole(predicted_spec_file(target), spec)
    apply_postprocessing(source, target, KEEP, SPEC)  # its own folder
    assert predicted_spec_file(target).read_bytes() != spec


def test_results_of_other_rules_are_not_left_among_new_ones(tmp_path: Path) -> None:
    source, target = predicted(tmp_path / "in", 0, 1, 2), tmp_path / "out"
    apply_postprocessing(source, target, KEEP, SPEC)
    (source / "c2.nii.gz").unlink()
    with pytest.raises(UsageError, match=r"of other rules, which would stay: c2\.nii\.gz;"):
        apply_postprocessing(source, target, OTHER, SPEC)
    assert np.array_equal(read(target / "c0.nii.gz"), TRUTH)
    (target / "c2.nii.gz").unlink()
    apply_postprocessing(source, target, OTHER, SPEC)
    assert np.array_equal(read(target / "c0.nii.gz"), SPECK)


def test_results_of_the_same_rules_stay_and_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other, target = predicted(tmp_path / "1", 0), predicted(tmp_path / "2", 1), tmp_path / "o"
    apply_postprocessing(one, target, KEEP, SPEC)
    with caplog.at_level(logging.WARNING, "nnseg"):
        apply_postprocessing(other, target, KEEP, SPEC)
    assert "also holds 1 result of the same rules, not of these cases: c0" in caplog.text
    assert sorted(stamps(target)) == ["c0.nii.gz", "c1.nii.gz"]
    caplog.clear()
    both = predicted(tmp_path / "3", 0, 1)
    apply_postprocessing(both, target, KEEP, SPEC)
    assert "also holds" not in caplog.text


def test_one_label_map_is_postprocessed_by_itself(tmp_path: Path) -> None:
    source = predicted(tmp_path / "in", 0, 1) / "c0.nii.gz"
    written = apply_postprocessing(source, tmp_path / "out", KEEP, SPEC)
    assert written == {"c0": tmp_path / "out" / "c0.nii.gz"}
    assert np.array_equal(read(tmp_path / "out" / "c0.nii.gz"), TRUTH)
    assert predicted_spec_file(tmp_path / "out").is_file()
    file = tmp_path / "named" / "mine.nii.gz"
    assert apply_postprocessing(source, file, KEEP, SPEC) == {"mine": file}
    assert np.array_equal(read(file), TRUTH)
    assert not predicted_spec_file(file.parent).exists()  # the folder is not all ours
    with pytest.raises(UsageError, match="must not be the input"):
        apply_postprocessing(source, source.parent, KEEP, SPEC)
    with pytest.raises(UsageError, match="the label maps of a folder go into a folder"):
        apply_postprocessing(source.parent, file, KEEP, SPEC)
    with pytest.raises(MissingError, match="does not exist; give a label map or a folder"):
        apply_postprocessing(tmp_path / "none.nii.gz", file, KEEP, SPEC)


def test_listing_the_work_writes_nothing(tmp_path: Path) -> None:
    source = predicted(tmp_path / "in", 0, 1)
    jobs = find_applying_jobs(source, tmp_path / "out", KEEP, SPEC)
    assert [(job.case_id, job.target.name) for job in jobs] == [
        ("c0", "c0.nii.gz"),
        ("c1", "c1.nii.gz"),
    ]
    assert not (tmp_path / "out").exists()


def test_label_maps_that_do_not_fit_into_memory_together_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, given = predicted(tmp_path / "in", 0, 1), dict[str, int]()
    monkeypatch.setattr(
        applying, "room_for", lambda needs: given.update(needs) or Room(total=0, needs=needs)
    )
    apply_postprocessing(source, tmp_path / "out", KEEP, SPEC)
    voxels = int(np.prod(SHAPE))
    assert set(given) == {"c0", "c1"}
    assert all((6 + 8) * voxels <= needed < 15 * (voxels + 352) for needed in given.values())


def test_the_verb_is_of_the_pipeline() -> None:
    assert pipeline.apply_postprocessing is apply_postprocessing
