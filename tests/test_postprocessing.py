import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnseg import cli, pipeline, record
from nnseg.commit import write_whole
from nnseg.dataset import DatasetSpec, spec_to_json
from nnseg.errors import DataError, MissingError, PartlyDoneError, UsageError
from nnseg.folders import applied_file, postprocessing_file, predicted_spec_file
from nnseg.labels import Labels
from nnseg.lock import locked
from nnseg.postprocess import KeepLargest, MinimumSize, Postprocessing
from nnseg.postprocessing import Applied, apply_postprocessing, decide_postprocessing
from nnseg.runlog import RunReport
from nnseg.volume import flat_geometry, read_segmentation, simple_geometry, write

SHAPE = (3, 5, 16)
SPACING = (5.0, 0.5, 0.8)  # 2 mm^3 a voxel
LABELS = Labels(labels={"background": 0, "liver": 1, "spleen": 2})
SPEC = DatasetSpec(channels=("CT",), labels=LABELS, num_training=0, file_ending=".nii.gz")
KEEP = Postprocessing(rules=(KeepLargest(labels=("liver",)),))


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


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The references of six cases, and the dataset.json above them."""
    folder = save(tmp_path / "raw" / "labelsTr", **{f"c{n}": TRUTH for n in range(6)})
    write_whole(folder.parent / "dataset.json", record.json_text(spec_to_json(SPEC)).encode())
    return folder


def predicted(folder: Path, *numbers: int) -> Path:
    return save(folder, **{f"c{n}": SPECK for n in numbers})


def read(path: Path) -> np.ndarray:
    return read_segmentation(path)[0]


# ---------------------------------------------------------------- choosing


def test_rules_are_chosen_and_written_with_what_was_tried(tmp_path: Path, raw: Path) -> None:
    folder = predicted(tmp_path / "predicted", *range(6))
    file = postprocessing_file(folder)
    decided = decide_postprocessing([folder], raw, SPEC, file)
    assert decided.postprocessing == KEEP
    assert record.load(Postprocessing, file) == KEEP
    report = record.load(RunReport, folder / "run_postprocess.json")
    assert len(report.inputs) == 12
    assert list(report.outputs) == [str(file)]
    assert report.facts["decided"]["steps"][1]["taken"] is True


def test_folders_are_the_folds_that_sizes_are_judged_on(tmp_path: Path, raw: Path) -> None:
    truth = line(1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1)
    speck = line(1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1)
    save(raw, **{f"c{n}": truth for n in range(4)})
    first = save(tmp_path / "fold_0", c0=speck, c1=speck)
    second = save(tmp_path / "fold_1", c2=truth, c3=truth)
    target = tmp_path / "rules.json"
    apart = decide_postprocessing([first, second], raw, SPEC, target)
    assert apart.postprocessing == Postprocessing()  # no other fold would choose a size for fold_0
    mixed = save(tmp_path / "mixed", c0=speck, c1=speck, c2=truth, c3=truth)
    found = decide_postprocessing([mixed], raw, SPEC, target)
    assert found.postprocessing.rules == (MinimumSize(label="liver", smallest=0.003),)


def test_sizes_of_pictures_are_in_voxels(tmp_path: Path) -> None:
    spec = DatasetSpec(channels=("R",), labels=LABELS, num_training=0, file_ending=".png")
    for n in range(5):
        for folder, speck in (("truth", 0), ("predicted", 1)):
            flat = np.zeros((1, 7, 9), dtype=np.uint8)
            flat[0, 0, :6] = flat[0, 2:7, 0] = 1
            flat[0, 6, 8] = speck
            write(tmp_path / folder / f"c{n}.png", flat, flat_geometry((7, 9), (1.0, 1.0)))
    decided = decide_postprocessing(
        [tmp_path / "predicted"], tmp_path / "truth", spec, tmp_path / "rules.json"
    )
    expected = MinimumSize(label="liver", smallest=2, unit="voxels")
    assert decided.postprocessing.rules == (expected,)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        ("grid", "lies on another grid than"),
        ("value", r"prediction holds the values \[9\]"),
        ("alone", "a prediction needs its reference"),
        ("twice", "give it once"),
        ("none", "give predicted label maps"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, raw: Path, spoil: str, fault: str
) -> None:
    folders = [predicted(tmp_path / "predicted", 0, 1)]
    if spoil == "grid":
        other = simple_geometry(SHAPE, (5.0, 0.5, 0.9))
        write(folders[0] / "c0.nii.gz", SPECK, other)
    elif spoil == "value":
        save(folders[0], c0=line(9))
    elif spoil == "alone":
        save(folders[0], c9=SPECK)
    elif spoil == "twice":
        folders.append(predicted(tmp_path / "again", 1, 2))
    else:
        folders = [tmp_path / "raw"]
    with pytest.raises(DataError, match=fault):
        decide_postprocessing(folders, raw, SPEC, tmp_path / "rules.json")
    assert not (tmp_path / "rules.json").exists()


def test_references_without_a_prediction_are_told(
    tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = predicted(tmp_path / "predicted", 0, 1)
    with caplog.at_level(logging.WARNING, "nnseg"):
        decide_postprocessing([folder], raw, SPEC, tmp_path / "rules.json")
    assert "4 of 6 references have no prediction, such as c2.nii.gz" in caplog.text


# ---------------------------------------------------------------- carrying out


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
    others = Postprocessing(rules=(KeepLargest(labels=("spleen",)),))
    apply_postprocessing(source, target, others, SPEC)
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


# ---------------------------------------------------------------- the command


def run(*words: Any) -> int:
    return cli.main(["postprocess", *map(str, words)])


def test_the_command_chooses_prints_and_carries_out(
    tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, rules = predicted(tmp_path / "predicted", *range(6)), tmp_path / "chosen"
    assert run("-i", folder, "-ref", raw, "-o", rules) == 0
    told = capsys.readouterr().out
    expected = "taken      keep the largest component of liver: Dice of liver 0.9231 to 1.0000 (+0"
    assert expected in told
    assert "not taken  keep the largest component of liver, spleen: Dice of foreground" in told
    assert "worse: spleen" in told
    assert "  spleen      1.0000  1.0000\n" in told
    assert "mean Dice of 6 cases" in told
    file = rules / "postprocessing.json"
    assert str(file) in told
    spec = raw.parent / "dataset.json"
    assert run("--apply", file, "-i", folder, "-o", tmp_path / "out", "-djfile", spec) == 0
    assert "6 label maps" in capsys.readouterr().out
    assert np.array_equal(read(tmp_path / "out" / "c3.nii.gz"), TRUTH)


def test_the_command_tells_json_and_takes_nnunets_rules_alone(
    tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = predicted(tmp_path / "predicted", *range(6))
    assert run("-i", folder, "-ref", raw, "--as-nnunet", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["target"] == str(folder / "postprocessing.json")
    assert [step["label"] for step in told["steps"]] == [None, "liver", "spleen"]
    assert told["postprocessing"] == record.to_json(KEEP)
    assert told["dice_after"]["foreground"] == 1.0


def test_bad_cases_end_the_command_with_6(
    tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = predicted(tmp_path / "in", 0, 1)
    (source / "c1.nii.gz").write_bytes(b"no image")
    record.save(KEEP, tmp_path / "rules.json")
    words = ("--apply", tmp_path / "rules.json", "-i", source, "-o", tmp_path / "out")
    assert run(*words, "-djfile", raw.parent / "dataset.json") == 6
    assert "1 of 2 cases failed:\n  case c1: " in capsys.readouterr().err


def test_what_the_command_cannot_mean_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, fault in [
        (("-i", tmp_path), "give -ref LABELS to choose rules, or --apply FILE"),
        (("-i", tmp_path, "-ref", tmp_path, "--apply", tmp_path), "give -ref LABELS"),
        (("-i", tmp_path, tmp_path, "-ref", tmp_path), "say where the rules go, by -o OUT"),
        (("-i", tmp_path, "--apply", tmp_path), "takes one folder and writes another"),
    ]:
        assert run(*words) == 2
        assert fault in capsys.readouterr().err
    assert run("-i", tmp_path, "--apply", tmp_path / "x.json", "-o", tmp_path / "out") == 5
    assert "`nnseg postprocess -i PRED -ref LABELS` writes it" in capsys.readouterr().err


def test_the_verbs_are_of_the_pipeline() -> None:
    assert pipeline.decide_postprocessing is decide_postprocessing
    assert pipeline.apply_postprocessing is apply_postprocessing


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, raw: Path) -> None:
    with pytest.raises(MissingError, match="is no folder; give folders of predicted label maps"):
        decide_postprocessing([tmp_path / "none"], raw, SPEC, tmp_path / "rules.json")
