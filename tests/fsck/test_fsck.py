"""Everything that is kept of a dataset, gone over."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nnseg import commit, phantom, pipeline, record
from nnseg.commit import sha256
from nnseg.dataset.groups import GroupRule, rule_file
from nnseg.doctor.findings import Finding
from nnseg.errors import MachineError, MissingError
from nnseg.folders import Folders, checkpoint_file
from nnseg.fsck.examine import Examination, examine, examine_results, holds_results, kept_datasets
from nnseg.lock import locked
from nnseg.plan import Plan
from nnseg.runlog import logged_run
from nnseg.volume import read_segmentation, write

DATASET = "Dataset001_Flat"
KEPT = f"preprocessed/{DATASET}"
FOLD = f"results/{DATASET}/nnseg/2d/fold_0"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a dataset planned and preprocessed."""
    root = tmp_path_factory.mktemp("prepared")
    folders = Folders.of_root(root)
    phantom.write_dataset(folders.raw_folder(DATASET), "2d", cases=3)
    pipeline.fingerprint(folders, DATASET, workers=1)
    pipeline.plan(folders, DATASET)
    pipeline.preprocess(folders, DATASET, workers=1)
    return root


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a fold that looks trained."""
    from torch import nn

    from nnseg.checkpoint import save_model, save_weights
    from nnseg.learning.course import plan_course
    from nnseg.learning.recipe import TrainSettings
    from nnseg.learning.resume import RunRecord
    from nnseg.model.device import Execution

    root = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("trained") / "root"))
    folders, fold = Folders.of_root(root), root / FOLD
    plan = pipeline.load_plan(folders, DATASET)
    with logged_run(fold, "train", {}) as run:
        for kind in ("final", "best"):
            save_model(
                fold,
                kind,
                nn.Linear(3, len(kind)),
                plan=plan,
                configuration_name="2d",
                fold="0",
                epoch=2,
                mirror_axes=(1, 2),
                validation_dice=0.5,
            )
        file, digest = save_weights(fold, "checkpoint_latest", b"weights and momentum")
        settings = TrainSettings(epochs=2)
        latest = RunRecord(
            plan_hash="plan",
            split_hash="split",
            configuration_name="2d",
            fold="0",
            settings=settings,
            execution=Execution(device="cpu"),
            course=plan_course(settings),
            epoch=2,
            iteration=0,
            loss_sum=0.0,
            seconds=9.0,
            epoch_seconds=0.0,
            history=(),
            weights_file=file,
            weights_sha256=digest,
            finished=True,
        )
        record.save_sealed(latest, checkpoint_file(fold, "latest"))
        run.outputs += [checkpoint_file(fold, kind) for kind in ("final", "best", "latest")]
    return root


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "root"))


@pytest.fixture
def with_model(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "root"))


def look(root: Path) -> Examination:
    return examine(Folders.of_root(root), DATASET, workers=1)


def told(findings: tuple[Finding, ...]) -> list[tuple[str, str, str]]:
    return [(finding.severity, finding.rule, finding.file) for finding in findings]


def change(path: Path, old: str, new: str) -> None:
    """Put one text in the place of another in a file."""
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


def tree(folder: Path) -> dict[str, str]:
    """The hash of every file below a folder but logs and locks."""
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith((".", "run_"))
    }


def test_all_is_whole_after_the_commands_that_wrote_it_wherever_it_lies_now(
    prepared: Path, trained: Path, root: Path
) -> None:
    assert look(prepared).findings == ()
    assert look(trained).findings == ()
    assert look(root).findings == ()
    assert look(trained).files > look(root).files > 3 * 4


def test_a_dataset_without_checkpoints_is_examined_without_torch(prepared: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom nnseg import pipeline\n"
        "from nnseg.folders import Folders\n"
        "found = pipeline.fsck(Folders.of_root(Path(sys.argv[1])), sys.argv[2])\n"
        "sys.exit(bool(found.findings) or 'torch' in sys.modules)"
    )
    words = [sys.executable, "-c", program, str(prepared), DATASET]
    assert subprocess.run(words, check=False).returncode == 0


def test_what_is_kept_is_listed_and_where_nothing_is_it_is_said(
    prepared: Path, tmp_path: Path
) -> None:
    assert kept_datasets(Folders.of_root(prepared)) == (DATASET,)
    (tmp_path / "preprocessed" / "Dataset02_Short").mkdir(parents=True)
    (tmp_path / "results" / "Dataset003_Model").mkdir(parents=True)
    assert kept_datasets(Folders.of_root(tmp_path)) == ("Dataset003_Model",)
    with pytest.raises(MissingError, match=f"`nnseg plan {DATASET}` makes it"):
        look(tmp_path)


# ----------------------------------------------------------------------------- redo


def test_redo_makes_what_is_damaged_missing_or_out_of_date_as_it_was_and_leaves_the_rest(
    root: Path,
) -> None:
    folders = Folders.of_root(root)
    store, whole = root / KEPT / "nnseg" / "2d", tree(root / KEPT)
    damaged, missing, kept = sorted(path.stem for path in store.glob("*.json"))
    os.truncate(store / f"{damaged}.image.b2nd", 99)
    (store / f"{missing}.json").unlink()
    (store / ".part-0-left").write_bytes(b"half")
    before = (store / f"{kept}.image.b2nd").stat().st_mtime_ns
    rules = {finding.rule for finding in look(root).findings}
    assert rules == {"case_damaged", "missing", "leftover", "unfinished"}
    assert pipeline.fsck(folders, DATASET, workers=1) == look(root)  # it only looks
    assert pipeline.fsck(folders, DATASET, redo=True, workers=1).findings == ()
    assert tree(root / KEPT) == whole
    assert (store / f"{kept}.image.b2nd").stat().st_mtime_ns == before


def test_redo_removes_what_a_dead_process_left_but_not_what_a_living_one_may_be_writing(
    root: Path,
) -> None:
    folder = root / KEPT / "plans"
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    own = commit.unfinished_path(folder / "nnseg.json").name
    left = own.replace(f"-{os.getpid()}-", f"-{process.pid}-")
    for name in (own, left):
        (folder / name).write_text("half")
    assert len(look(root).unfinished) == 2
    (finding,) = pipeline.fsck(Folders.of_root(root), DATASET, redo=True, workers=1).findings
    assert finding.file == f"{KEPT}/plans/{own}"


def test_redo_follows_a_raw_file_that_was_replaced(root: Path) -> None:
    folders = Folders.of_root(root)
    first = min(folders.labels(DATASET).iterdir())
    segmentation, geometry = read_segmentation(first)
    segmentation[0, 0, 0] = 1
    write(first, segmentation, geometry)
    measured, finding = look(root).findings
    assert finding.rule == "other_raw"
    assert finding.file == f"{KEPT}/nnseg/2d/{finding.case_id}.json"
    assert first.name.startswith(str(finding.case_id))
    assert (measured.severity, measured.rule) == ("warning", "fingerprint_raw")
    assert f"before the raw files of case {finding.case_id} changed" in measured.found
    assert measured.remedy == f"`nnseg plan {DATASET}` measures them anew"
    raw = tree(folders.raw_folder(DATASET))
    assert pipeline.fsck(folders, DATASET, redo=True, workers=1).findings == (measured,)
    assert tree(folders.raw_folder(DATASET)) == raw


def test_a_fingerprint_of_other_cases_is_told(root: Path) -> None:
    folders = Folders.of_root(root)
    shutil.copy(min(folders.images(DATASET).iterdir()), folders.images(DATASET) / "z_0000.nii.gz")
    shutil.copy(min(folders.labels(DATASET).iterdir()), folders.labels(DATASET) / "z.nii.gz")
    found = [finding.found for finding in look(root).findings if finding.rule == "fingerprint_raw"]
    assert found == ["is of other cases than the raw dataset has"]


@pytest.mark.parametrize(
    ("key", "old", "new", "found"),
    [
        ("channel_names", '"0": "', '"0": "another ', "channel_names are ['another "),
        ("labels", ": 1", ": 9", " is 9, and was 1"),
        ("file_ending", ".nii.gz", ".nrrd", "file_ending is .nrrd, and was .nii.gz"),
    ],
)
def test_a_plan_of_another_dataset_json_is_told_with_the_key(
    root: Path, key: str, old: str, new: str, found: str
) -> None:
    path = Folders.of_root(root).spec_file(DATASET)
    before, opening, after = path.read_text().partition(f'"{key}"')
    path.write_text(before + opening + after.replace(old, new, 1))
    (finding,) = (one for one in look(root).findings if one.rule == "plan_outdated")
    assert (finding.severity, finding.file) == ("error", f"{KEPT}/plans/nnseg.json")
    assert found in finding.found
    assert str(path) in finding.found


def test_folds_that_part_a_patient_of_the_rule_beside_them_are_told(root: Path) -> None:
    folders = Folders.of_root(root)
    rule = rule_file(folders.splits_file(DATASET))
    record.save(GroupRule(regex=r"(.)"), rule)  # all cases are of one
    (finding,) = (one for one in look(root).findings if one.rule == "folds")
    assert (finding.severity, finding.file) == ("error", f"{KEPT}/splits_final.json")
    assert "fold 0 trains on" in finding.found
    folders.user_splits_file(DATASET).write_bytes(folders.splits_file(DATASET).read_bytes())
    assert "folds" not in {finding.rule for finding in look(root).findings}  # the user's own


def test_a_folder_that_cannot_be_listed_is_no_bug(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(MachineError, match=rf"{KEPT}: cannot be read \(Permission denied\); check"):
        look(root)
    with pytest.raises(MachineError, match="preprocessed: cannot be read"):
        kept_datasets(Folders.of_root(root))


def test_a_damaged_source_of_the_folds_is_told(root: Path) -> None:
    (root / KEPT / "splits_source.json").write_text("{}")
    (finding,) = look(root).findings
    assert (finding.rule, finding.file) == ("folds", f"{KEPT}/splits_source.json")


def test_without_raw_files_nothing_is_removed(root: Path) -> None:
    folders = Folders.of_root(root)
    shutil.rmtree(folders.raw_folder(DATASET))
    path = next((root / KEPT / "nnseg" / "2d").glob("*.image.b2nd"))
    os.truncate(path, 99)
    before = tree(root / KEPT)
    found = pipeline.fsck(folders, DATASET, redo=True, workers=1)
    assert tree(root / KEPT) == before
    assert told(found.findings) == [
        ("warning", "raw", KEPT),
        ("error", "case_damaged", f"{KEPT}/nnseg/2d/{path.name}"),
    ]


# ----------------------------------------------------------------------------- JSON files


def test_an_edited_plan_is_a_warning_and_what_it_makes_stale_an_error(root: Path) -> None:
    path = root / KEPT / "plans" / "nnseg.json"
    whole, plan = path.read_bytes(), record.load(Plan, path)
    flat = plan.configuration("2d")

    def save(**changes: object) -> None:
        configurations = {"2d": dataclasses.replace(flat, **changes)}  # type: ignore[arg-type]
        record.save(dataclasses.replace(plan, configurations=configurations), path)

    edited = ("warning", "plan_edited", f"{KEPT}/plans/nnseg.json")
    save(batch_size=flat.batch_size + 1)
    assert told(look(root).findings) == [edited]
    save(spacing=(None, 2.0, 1.9))
    stale = ("error", "other_plan", f"{KEPT}/nnseg/2d")
    assert told(look(root).findings) == [stale, edited]
    path.write_bytes(whole)
    assert look(root).findings == ()
    path.rename(path.with_name("mine.json"))
    found = look(root).findings
    assert told(found) == [
        ("warning", "no_plan", f"{KEPT}/nnseg/2d"),
        ("error", "plan", f"{KEPT}/plans/mine.json"),
    ]
    assert "calls itself plan nnseg" in found[1].found


def test_several_plans_are_proved_each_by_the_run_that_wrote_it_last(root: Path) -> None:
    folders = Folders.of_root(root)
    pipeline.plan(folders, DATASET, name="second", memory_gb=2)
    pipeline.preprocess(folders, DATASET, plan_name="second", workers=1)
    pipeline.plan(folders, DATASET, name="second", memory_gb=3)
    assert [f for f in look(root).findings if f.rule == "plan_edited"] == []


@pytest.mark.parametrize("name", ["fingerprint.json", "splits_final.json", "plans/nnseg.json"])
def test_a_file_that_is_cut_off_is_an_error(root: Path, name: str) -> None:
    path = root / KEPT / name
    os.truncate(path, path.stat().st_size - 3)
    (finding,) = [f for f in look(root).findings if f.severity == "error"]
    assert finding.file == f"{KEPT}/{name}"
    assert "is not valid JSON" in finding.found
    assert "`nnseg plan" in finding.remedy


def test_a_fingerprint_that_was_not_measured_so_is_an_error(root: Path) -> None:
    path = root / KEPT / "fingerprint.json"
    change(path, '"median_relative_size": ', '"median_relative_size": 0.0625, "others": ')
    (finding,) = look(root).findings
    assert "others" in finding.found
    path.write_text(path.read_text().replace('0.0625, "others": ', ""))
    assert look(root).findings == ()
    change(path, '"median_relative_size": 1', '"median_relative_size": 0')
    assert told(look(root).findings) == [("error", "fingerprint", f"{KEPT}/fingerprint.json")]


def test_the_rule_of_grouped_folds_is_proved_like_the_rest(root: Path) -> None:
    pipeline.plan(Folders.of_root(root), DATASET, group_regex=r"(\d+)$")
    path = root / KEPT / "groups.json"
    assert look(root).findings == ()
    change(path, "d+", "d*")
    (finding,) = look(root).findings
    assert (finding.rule, finding.file) == ("groups", f"{KEPT}/groups.json")
    assert "is not the same since `nnseg plan` wrote it, 20" in finding.found
    change(path, "(", "[")
    (finding,) = look(root).findings
    assert "is no regular expression" in finding.found


def test_folds_that_contradict_the_cases_are_an_error_and_other_folds_a_warning(
    root: Path,
) -> None:
    path = root / KEPT / "splits_final.json"
    whole = path.read_bytes()
    folds = record.read_json(path)
    first, second = folds[0]["train"]

    def save(**changes: list[str]) -> list[tuple[str, str, str]]:
        content = [{**folds[0], **changes}, *folds[1:]]
        path.write_text(record.json_text(content))
        return told(look(root).findings)

    error = [("error", "folds", f"{KEPT}/splits_final.json")]
    assert save(train=[first, second + "x"]) == error
    assert save(train=[first, first]) == error
    assert save(train=[]) == error
    assert save(train=[first]) == [("warning", "folds_edited", error[0][2])]
    path.write_bytes(whole)
    assert look(root).findings == ()


def test_a_damaged_record_of_a_run_is_an_error(root: Path) -> None:
    change(root / KEPT / "run_plan.json", '"seconds"', '"secondz"')
    assert told(look(root).findings) == [("error", "run_record", f"{KEPT}/run_plan.json")]


def test_a_run_that_was_cut_off_after_writing_gives_no_false_alarm(with_model: Path) -> None:
    from nnseg.learning.resume import RunRecord

    fold, path = with_model / FOLD, with_model / KEPT / "fingerprint.json"
    change(path, '"median_relative_size": 1', '"median_relative_size": 0')
    latest = checkpoint_file(fold, "latest")
    run = record.load_sealed(RunRecord, latest)
    record.save_sealed(dataclasses.replace(run, seconds=8.0), latest)
    assert len(look(with_model).findings) == 2
    for log in (path.with_name("run_fingerprint.log"), fold / "log.txt"):
        with open(log, "a", encoding="utf-8") as file:
            file.write("began, and was killed\n")
    assert look(with_model).findings == ()


def test_an_unfinished_file_is_a_warning_unless_its_folder_is_in_use(root: Path) -> None:
    folder = root / f"results/{DATASET}/nnseg/2d/fold_0"
    folder.mkdir(parents=True)
    for path in (root / KEPT / "plans" / ".part-1-nnseg.json", folder / ".part-2-checkpoint"):
        path.write_bytes(b"half")
    found = look(root)
    assert told(found.findings) == [
        ("warning", "unfinished", f"{KEPT}/plans/.part-1-nnseg.json"),
        ("warning", "unfinished", f"{FOLD}/.part-2-checkpoint"),
    ]
    assert len(found.unfinished) == 2
    with locked(folder, "nnseg train"):
        assert len(look(root).findings) == 1


# ----------------------------------------------------------------------------- models


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 4
    path.write_bytes(data)


def test_weights_that_changed_are_named_and_stay(with_model: Path) -> None:
    fold = with_model / FOLD
    for weights in sorted(fold.glob("*.safetensors")):
        whole = weights.read_bytes()
        for damage in (flip, lambda path: os.truncate(path, 7), Path.unlink):
            damage(weights)
            folders = Folders.of_root(with_model)
            found = pipeline.fsck(folders, DATASET, redo=True, workers=1).findings
            assert told(found) == [("error", "weights", f"{FOLD}/{weights.name}")]
            assert "train this fold anew with --overwrite" in found[0].remedy
            weights.write_bytes(whole)
    assert look(with_model).findings == ()


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("final", '"epoch": 2', '"epoch": 3'),
        ("best", '"batch_size": ', '"batch_size": 1'),
        ("latest", '"lr": 0.01', '"lr": 0.02'),
        ("latest", '"epoch": 2', '"epoch": "2"'),
        ("final", "{", "["),
    ],
)
def test_a_byte_that_changed_in_a_checkpoints_record_is_found(
    with_model: Path, kind: str, old: str, new: str
) -> None:
    change(checkpoint_file(with_model / FOLD, kind), old, new)
    file = f"{FOLD}/checkpoint_{kind}.json"
    assert told(look(with_model).findings) == [("error", "checkpoint", file)]


def test_a_finished_training_without_its_model_and_weights_of_none_are_named(
    with_model: Path,
) -> None:
    checkpoint_file(with_model / FOLD, "final").unlink()
    found = told(look(with_model).findings)
    (weights,) = (with_model / FOLD).glob("checkpoint_final-*")
    assert found == [
        ("warning", "leftover", f"{FOLD}/{weights.name}"),
        ("error", "checkpoint", f"{FOLD}/checkpoint_final.json"),
    ]


def test_a_fold_that_is_being_trained_is_not_judged(with_model: Path) -> None:
    checkpoint_file(with_model / FOLD, "final").write_text("")
    with locked(with_model / FOLD, "nnseg train"):
        (finding,) = look(with_model).findings
    assert (finding.severity, finding.rule, finding.file) == ("warning", "in_use", FOLD)


# ----------------------------------------------------------------------------- predictions


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    folder = tmp_path / "predicted"
    folder.mkdir()
    image, result = tmp_path / "a_0000.nii.gz", folder / "a.nii.gz"
    image.write_bytes(b"image")
    with logged_run(folder, "predict", {}) as run:
        result.write_bytes(b"segmentation")
        run.inputs.append(image)
        run.outputs.append(result)
    return folder


def test_predictions_are_proved_by_the_run_that_made_them(predictions: Path) -> None:
    assert holds_results(predictions)
    found = examine_results(predictions)
    assert (found.findings, found.files) == ((), 2)
    flip(predictions / "a.nii.gz")
    (finding,) = examine_results(predictions).findings
    assert (finding.severity, finding.file) == ("error", "predicted/a.nii.gz")
    assert finding.remedy == "run `nnseg predict` again"
    assert not holds_results(predictions.parent)


@pytest.mark.parametrize("inside", [True, False])
def test_an_input_that_changed_is_a_warning_and_one_that_is_gone_is_none(
    predictions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    (tmp_path / "a_0000.nii.gz").write_bytes(b"another image")
    folder = predictions
    if not inside:
        folder = Path(shutil.copytree(predictions, tmp_path / "deep" / "predicted"))
    (finding,) = examine_results(folder).findings
    assert (finding.severity, finding.rule) == ("warning", "input")
    assert finding.file == ("a_0000.nii.gz" if inside else "predicted")
    assert "a_0000.nii.gz has changed since `nnseg predict` read it" in finding.found
    (tmp_path / "a_0000.nii.gz").unlink()
    assert examine_results(folder).findings == ()


def test_predictions_kept_with_a_dataset_are_examined_with_it(
    with_model: Path, predictions: Path
) -> None:
    shutil.copytree(predictions, with_model / "results" / DATASET / "mine" / "predicted")
    path = with_model / "results" / DATASET / "mine" / "predicted" / "a.nii.gz"
    flip(path)
    file = path.relative_to(with_model).as_posix()
    assert told(look(with_model).findings) == [("error", "output", file)]


def test_the_checkpoint_before_the_latest_is_examined_too(with_model: Path) -> None:
    from nnseg.checkpoint import save_weights
    from nnseg.learning.resume import RunRecord

    fold = with_model / "results" / DATASET / "nnseg" / "2d" / "fold_0"
    latest = record.load_sealed(RunRecord, checkpoint_file(fold, "latest"))
    file, digest = save_weights(fold, "checkpoint_latest", b"of an epoch before")
    earlier = dataclasses.replace(
        latest, epoch=1, finished=False, weights_file=file, weights_sha256=digest
    )
    path = checkpoint_file(fold, "previous")
    record.save_sealed(earlier, path)
    assert look(with_model).findings == ()
    flip(fold / file)
    assert told(look(with_model).findings) == [
        ("error", "weights", (fold / file).relative_to(with_model).as_posix())
    ]
    save_weights(fold, "checkpoint_latest", b"of an epoch before")
    path.write_bytes(path.read_bytes().replace(b'"epoch": 1', b'"epoch": 2', 1))
    assert ("error", "checkpoint", path.relative_to(with_model).as_posix()) in told(
        look(with_model).findings
    )
