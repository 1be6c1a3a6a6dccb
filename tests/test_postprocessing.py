import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnseg import cli, pipeline, record
from nnseg.commit import write_whole
from nnseg.dataset import DatasetSpec, spec_to_json
from nnseg.errors import DataError, MissingError, UsageError
from nnseg.folders import postprocessing_file
from nnseg.labels import Labels
from nnseg.parallel import Room
from nnseg.postprocess import KeepLargest, MinimumSize, Postprocessing
from nnseg.postprocess.rules import DecidedOn
from nnseg.runlog import RunReport
from nnseg.verbs import postprocessing
from nnseg.verbs.postprocessing import decide_postprocessing
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
    stored = record.load(Postprocessing, file)
    assert stored == KEEP
    assert stored.decided_on == DecidedOn(labels=LABELS)  # of no fold's validation
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
        ("none", "no file ends in"),
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
    assert "4 of 6 references have no prediction, such as c2;" in caplog.text


@pytest.mark.parametrize("content", ['{"labels": {"background": 0}}', "no JSON"])
def test_a_file_that_holds_no_rules_is_not_replaced(
    tmp_path: Path, raw: Path, content: str
) -> None:
    folder = predicted(tmp_path / "predicted", *range(6))
    target = folder / "dataset.json"
    target.write_text(content)
    with pytest.raises(UsageError, match=r"dataset\.json is there and holds no postprocessing"):
        decide_postprocessing([folder], raw, SPEC, target)
    assert target.read_text() == content
    decide_postprocessing([folder], raw, SPEC, folder / "rules.json")
    decide_postprocessing([folder], raw, SPEC, folder / "rules.json")  # its own it may replace


def test_cases_that_do_not_fit_into_memory_together_wait(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = predicted(tmp_path / "predicted", 0, 1)
    voxels, given = int(np.prod(SHAPE)), dict[str, int]()
    monkeypatch.setattr(
        postprocessing, "room_for", lambda needs: given.update(needs) or Room(total=0, needs=needs)
    )
    decide_postprocessing([folder], raw, SPEC, tmp_path / "rules.json")
    assert set(given) == {"c0", "c1"}
    for needed in given.values():  # two maps as they are read, and what counting takes
        assert (2 * 6 + 20) * voxels <= needed < 1.1 * (2 * 6 + 20) * (voxels + 352)


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
        (
            ("-i", tmp_path, "--apply", tmp_path),
            "takes one folder or label map, and writes another",
        ),
    ]:
        assert run(*words) == 2
        assert fault in capsys.readouterr().err
    assert run("-i", tmp_path, "--apply", tmp_path / "x.json", "-o", tmp_path / "out") == 5
    assert "`nnseg postprocess -i PRED -ref LABELS` writes it" in capsys.readouterr().err


def test_rules_go_into_the_working_folder_too(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = predicted(tmp_path / "predicted", *range(6))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert run("-i", folder, "-ref", raw, "-o", "rules.json") == 0
    assert record.load(Postprocessing, here / "rules.json") == KEEP
    assert (tmp_path / ".here.lock").is_file()


def test_a_dry_run_tells_and_writes_nothing(
    tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = predicted(tmp_path / "predicted", 0, 1), tmp_path / "out"
    rules = tmp_path / "rules.json"
    record.save(KEEP, rules)
    files = sorted(tmp_path.rglob("*"))
    assert run("-i", folder, "-ref", raw, "-o", out, "--dry-run") == 0
    assert "2 predictions would be held against" in capsys.readouterr().out
    spec = raw.parent / "dataset.json"
    apply = ("--apply", rules, "-i", folder, "-o", out, "-djfile", spec, "--dry-run")
    assert run(*apply) == 0
    assert f"2 label maps would go to {out}; nothing was written" in capsys.readouterr().out
    assert run(*apply, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cases"] == {name: str(out / f"{name}.nii.gz") for name in ("c0", "c1")}
    assert run("-i", folder, "-ref", raw, "-o", spec, "--dry-run") == 2
    assert sorted(tmp_path.rglob("*")) == files


def test_the_verb_is_of_the_pipeline() -> None:
    assert pipeline.decide_postprocessing is decide_postprocessing


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, raw: Path) -> None:
    with pytest.raises(MissingError, match="is no folder; give folders of predicted label maps"):
        decide_postprocessing([tmp_path / "none"], raw, SPEC, tmp_path / "rules.json")
