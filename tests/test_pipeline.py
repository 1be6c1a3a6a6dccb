"""The whole way of the data, on phantoms and with tiny networks."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import CPU, FLAT, SHORT, draw, prepare, shrink, stop_after, train

from nnseg import inference, pipeline, predict, predictor, record
from nnseg.checkpoint import Checkpoint, load_model
from nnseg.commit import sha256
from nnseg.dataset import read_spec
from nnseg.errors import (
    DataError,
    MissingError,
    PlanError,
    StoppedError,
    UsageError,
)
from nnseg.folders import Folders, trained_folds
from nnseg.learning.resume import EpochReport, RunRecord
from nnseg.plan import Plan
from nnseg.runlog import RunReport
from nnseg.volume import read_image, read_segmentation, simple_geometry, write


def report_in(folder: Path) -> RunReport:
    return record.load(RunReport, folder / "run.json")


def content(folder: Path) -> dict[str, tuple[str, int]]:
    """Hash and time of every file of a training but for the log of the call itself."""
    return {
        str(path.relative_to(folder)): (sha256(path), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("run.json", "log.txt")
    }


# ---------------------------------------------------------------- before training


def test_cases_that_are_up_to_date_are_not_preprocessed_again(prepared: Folders) -> None:
    assert pipeline.preprocess(prepared, FLAT, workers=1) == {"2d": 0}
    first, second, *_ = sorted(prepared.images(FLAT).iterdir())
    image = read_image((first,))
    write(first, image.image[0] + 1, image.geometry)
    assert pipeline.preprocess(prepared, FLAT, workers=1) == {"2d": 1}
    (prepared.store(FLAT, "nnseg", "2d") / f"{second.name[:-12]}.json").unlink()
    assert pipeline.preprocess(prepared, FLAT, workers=1) == {"2d": 1}


def test_the_fingerprint_and_the_plan_come_back_from_disk(flat: Folders, tmp_path: Path) -> None:
    planned = pipeline.plan(flat, FLAT, save=False)
    record.save(planned, tmp_path / "plan.json")
    assert record.load(Plan, tmp_path / "plan.json") == planned
    assert planned.dataset == FLAT


def test_each_step_names_the_one_that_is_missing_before_it(tmp_path: Path) -> None:
    folders = draw(tmp_path, FLAT, "2d", cases=2)
    for step in (
        lambda: pipeline.plan(folders, FLAT),
        lambda: pipeline.preprocess(folders, FLAT),
        lambda: train(folders, FLAT, "2d"),
    ):
        with pytest.raises(MissingError, match="`nnseg plan"):
            step()
    pipeline.fingerprint(folders, FLAT, workers=1)
    pipeline.plan(folders, FLAT)
    with pytest.raises(MissingError, match=f"`nnseg preprocess -d {FLAT} -c 2d` makes it"):
        train(folders, FLAT, "2d")
    with pytest.raises(MissingError, match="`nnseg train DATASET CONFIGURATION 0` makes it"):
        trained_folds(folders.model(FLAT, "nnseg", "2d"))


def test_a_damaged_preprocessed_case_is_never_trained_on(prepared: Folders) -> None:
    path = next(prepared.store(FLAT, "nnseg", "2d").glob("*.image.b2nd"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"{path.name}: is damaged"):
        train(prepared, FLAT, "2d", fold="all")
    assert pipeline.preprocess(prepared, FLAT, workers=1) == {"2d": 1}


# ---------------------------------------------------------------- training


def test_a_training_leaves_models_metrics_and_a_validation(flat: Folders) -> None:
    folder = flat.fold(FLAT, "nnseg", "2d", "0", 0)
    (fold, *_) = pipeline.folds(flat, FLAT)
    names = {path.name for path in folder.iterdir()}
    assert {f"checkpoint_{kind}.json" for kind in ("final", "best", "latest")} <= names
    assert {"metrics.csv", "progress.png", "log.txt", "run.json"} <= names
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"dice_head", "dice_tail"} <= rows[0].keys()
    summary = pipeline.validation_summary(folder)
    assert sorted(case.case_id for case in summary.cases) == sorted(fold.val)
    for case_id in fold.val:
        truth, geometry = read_segmentation(flat.labels(FLAT) / f"{case_id}.nii.gz")
        found, other = read_segmentation(folder / "validation" / f"{case_id}.nii.gz")
        assert found.shape == truth.shape
        assert other == geometry


def test_a_training_keeps_what_made_it(flat: Folders) -> None:
    folder = flat.fold(FLAT, "nnseg", "2d", "0", 0)
    report = report_in(folder)
    assert (report.command, report.exit_code, report.error) == ("train", 0, None)
    assert report.arguments["dataset"] == FLAT
    assert report.arguments["epochs"] == 2
    assert report.facts["execution"]["device"] == "cpu"
    assert report.facts["epochs"] == 2
    assert report.facts["seconds"] > 0
    assert "validation_dice" in report.facts
    checkpoint, _ = load_model(folder, "final")
    assert checkpoint.plan == pipeline.load_plan(flat, FLAT)
    assert (checkpoint.fold, checkpoint.epoch, checkpoint.mirror_axes) == ("0", 2, (1, 2))


def test_every_command_leaves_a_record_beside_what_it_made(prepared: Folders) -> None:
    above = prepared.fingerprint_file(FLAT).parent
    for path, command in (
        (above / "run_fingerprint.json", "fingerprint"),
        (above / "run_plan.json", "plan"),
        (above / "nnseg" / "run_preprocess.json", "preprocess"),
    ):
        found = record.load(RunReport, path)
        assert (found.command, found.exit_code) == (command, 0)
        assert found.arguments["dataset"] == FLAT
        assert path.with_suffix(".log").is_file()
    assert found.facts == {"made": {"2d": 6}}
    assert [Path(name).name for name in found.inputs] == ["nnseg.json"]


def test_validating_again_leaves_the_record_of_the_training(prepared: Folders) -> None:
    folder = train(prepared, FLAT, "2d", validate_after=False)
    trained = report_in(folder)
    summary = pipeline.validate(prepared, FLAT, "2d", "0", **CPU)
    assert report_in(folder) == trained
    found = record.load(RunReport, folder / "validation" / "run_validate.json")
    assert (found.command, found.exit_code) == ("validate", 0)
    assert pipeline.validation_summary(folder) == summary


def test_a_budget_leaves_time_for_every_tile_of_the_validation(
    prepared: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, float]] = []

    def remember(task: Any, *, reserve: Any, **_: Any) -> None:
        tiles = sum(predict.count_tiles(case.shape, (1, 32, 24)) for case in task.val_cases)
        for step in (0.5, 0.4, 0.8):  # of the probe, then of two epochs
            asked.append((tiles, reserve(None, (1, 2), step)))
        raise StoppedError("that is all")

    monkeypatch.setattr("nnseg.train.train", remember)
    monkeypatch.setattr("nnseg.predict.tile_seconds", lambda *_: 10.0)
    with pytest.raises(StoppedError):
        train(prepared, FLAT, "2d", settings=dataclasses.replace(SHORT, budget_seconds=999.0))
    (tiles, first), (_, anchored), (_, second) = asked
    assert tiles > 2
    assert first == pytest.approx(10 * tiles, rel=0.01)
    assert anchored == first
    assert second == pytest.approx(2 * first)  # the machine has become slower


def test_a_stopped_training_goes_on_to_the_same_bytes(flat: Folders, prepared: Folders) -> None:
    with pytest.raises(StoppedError):
        train(prepared, FLAT, "2d", stop=stop_after(3))
    folder = prepared.fold(FLAT, "nnseg", "2d", "0", 0)
    assert report_in(folder).exit_code == 75
    train(prepared, FLAT, "2d", resume=True)
    for kind in ("final", "best"):
        paths = [f.fold(FLAT, "nnseg", "2d", "0", 0) for f in (flat, prepared)]
        first, second = (load_model(path, kind)[0] for path in paths)  # type: ignore[arg-type]
        assert first == second
    assert [row.split(",")[0] for row in (folder / "metrics.csv").read_text().splitlines()] == [
        "epoch",
        "1",
        "2",
    ]
    validation = folder / "validation" / "summary.json"
    assert validation.is_file()


def test_a_finished_training_is_left_as_it_is(flat: Folders) -> None:
    folder = flat.fold(FLAT, "nnseg", "2d", "0", 0)
    before = content(folder)
    epochs: list[EpochReport] = []
    for resume in (None, True):
        assert train(flat, FLAT, "2d", resume=resume, on_epoch=epochs.append) == folder
    assert content(folder) == before
    assert not epochs


def test_other_settings_are_refused_by_name_and_overwriting_keeps_the_old_run(
    prepared: Folders,
) -> None:
    with pytest.raises(StoppedError):
        train(prepared, FLAT, "2d", stop=lambda: True)
    folder = prepared.fold(FLAT, "nnseg", "2d", "0", 0)
    before = content(folder)
    other = dataclasses.replace(SHORT, lr=0.02, epochs=3)
    for resume in (None, True):
        with pytest.raises(UsageError, match=r"epochs is now 3, was 2; lr is now 0.02, was "):
            train(prepared, FLAT, "2d", settings=other, resume=resume)
    assert content(folder) == before
    for number in (1, 2):
        with pytest.raises(StoppedError):
            train(prepared, FLAT, "2d", settings=other, overwrite=True, stop=lambda: True)
        aside = folder.with_name(f"fold_0.old{number}")
        assert (aside / "checkpoint_latest.json").is_file()
    assert content(folder.with_name("fold_0.old1")) == before
    assert record.load(RunRecord, folder / "checkpoint_latest.json").settings == other


def test_a_run_of_another_plan_is_refused(prepared: Folders) -> None:
    with pytest.raises(StoppedError):
        train(prepared, FLAT, "2d", stop=lambda: True)
    path = prepared.plan_file(FLAT, "nnseg")
    plan = record.load(Plan, path)
    planned = dataclasses.replace(plan.configuration("2d"), patch_size=(1, 16, 16))
    record.save(dataclasses.replace(plan, configurations={"2d": planned}), path)
    with pytest.raises(DataError, match="holds a run of another plan"):
        train(prepared, FLAT, "2d")


def test_there_must_be_something_to_go_on_with(prepared: Folders) -> None:
    with pytest.raises(MissingError, match="there is no run to continue; start without --c"):
        train(prepared, FLAT, "2d", resume=True)


def test_seeds_live_side_by_side(prepared: Folders) -> None:
    one = dataclasses.replace(SHORT, epochs=1, iterations=1)
    for seed in (0, 1):
        settings = dataclasses.replace(one, seed=seed)
        train(prepared, FLAT, "2d", settings=settings, validate_after=False)
    names = sorted(path.name for path in prepared.model(FLAT, "nnseg", "2d").glob("fold_*"))
    assert names == ["fold_0", "fold_0_seed1"]


# ---------------------------------------------------------------- predicting


def test_a_validation_that_is_stopped_leaves_no_scores_of_other_predictions(
    prepared: Folders,
) -> None:
    folder = train(prepared, FLAT, "2d")
    with pytest.raises(StoppedError):
        pipeline.validate(prepared, FLAT, "2d", "0", stop=lambda: True, **CPU)
    assert not (folder / "validation" / "summary.json").exists()
    train(prepared, FLAT, "2d")
    assert (folder / "validation" / "summary.json").is_file()


def test_a_run_whose_folds_changed_does_not_go_on(prepared: Folders) -> None:
    settings = dataclasses.replace(SHORT, epochs=1, iterations=2)
    with pytest.raises(StoppedError):
        train(prepared, FLAT, "2d", settings=settings, stop=lambda: True)
    path = prepared.splits_file(FLAT)
    folds = json.loads(path.read_text())
    path.write_text(json.dumps([folds[1], folds[0], *folds[2:]]))
    with pytest.raises(DataError, match="the folds have changed"):
        train(prepared, FLAT, "2d", settings=settings)


def test_a_finished_run_is_left_as_it_is(prepared: Folders) -> None:
    settings = dataclasses.replace(SHORT, epochs=1, iterations=1)
    folder = train(prepared, FLAT, "2d", settings=settings)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    train(prepared, FLAT, "2d", settings=settings)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_new_cases_join_the_folds_without_moving_old_ones(prepared: Folders) -> None:
    before = pipeline.folds(prepared, FLAT)
    images, labels = prepared.images(FLAT), prepared.labels(FLAT)
    first = sorted(images.iterdir())[0]
    shutil.copy(first, images / "zz_0000.nii.gz")
    shutil.copy(labels / first.name.replace("_0000", ""), labels / "zz.nii.gz")
    after = pipeline.folds(prepared, FLAT)
    assert sum("zz" in fold.val for fold in after) == 1
    assert all("zz" in {*fold.train, *fold.val} for fold in after)
    assert all(set(old.val) <= set(new.val) for old, new in zip(before, after, strict=True))


def test_a_copied_plan_must_have_its_own_name(prepared: Folders) -> None:
    shutil.copy(prepared.plan_file(FLAT, "nnseg"), prepared.plan_file(FLAT, "mine"))
    with pytest.raises(PlanError, match="calls itself plan nnseg"):
        pipeline.load_plan(prepared, FLAT, "mine")


def test_folds_of_different_plans_are_not_mixed(flat: Folders, tmp_path: Path) -> None:
    ours = flat.fold(FLAT, "nnseg", "2d", "0", 0)
    other = tmp_path / "fold_1"
    shutil.copytree(ours, other)
    path = other / "checkpoint_final.json"
    found = record.load(Checkpoint, path)
    plan = dataclasses.replace(found.plan, memory_gb=99.0)
    record.save_sealed(dataclasses.replace(found, plan=plan), path)
    with pytest.raises(DataError, match="was trained from another plan"):
        inference.load_model((ours, other), **CPU)


# ---------------------------------------------------------------- scoring


def test_scoring_refuses_what_does_not_fit_together(flat: Folders, tmp_path: Path) -> None:
    truth = flat.raw_folder(FLAT) / "labelsTs"
    labels = read_spec(flat.spec_file(FLAT)).labels
    with pytest.raises(DataError, match=r"no file ends in \.nii\.gz; nothing to score"):
        pipeline.evaluate(truth, tmp_path, labels, ".nii.gz")
    file = sorted(truth.iterdir())[0]
    shutil.copy(file, tmp_path / "unknown.nii.gz")
    with pytest.raises(DataError, match="a prediction needs its reference"):
        pipeline.evaluate(truth, tmp_path, labels, ".nii.gz")
    (tmp_path / "unknown.nii.gz").unlink()
    found, geometry = read_segmentation(file)
    elsewhere = simple_geometry(geometry.shape, (1.0, 0.6, 0.9))
    write(tmp_path / file.name, found, elsewhere)
    with pytest.raises(DataError, match="lies on another grid than"):
        pipeline.evaluate(truth, tmp_path, labels, ".nii.gz")
    with pytest.raises(MissingError, match="does not exist"):
        pipeline.evaluate(tmp_path / "gone", tmp_path, labels, ".nii.gz")
    with pytest.raises(MissingError, match=r"dataset\.json that names the labels"):
        pipeline.spec_for_evaluation(tmp_path / "a" / "b", tmp_path, None)


# ---------------------------------------------------------------- other kinds of data


def test_the_whole_way_in_3d(tmp_path: Path) -> None:
    dataset = "Dataset002_Mri"
    folders = draw(tmp_path, dataset, "mri", cases=3, test_cases=1)
    made = prepare(folders, dataset, "3d_fullres", (16, 24, 16))
    assert made == {"3d_fullres": 3}
    assert pipeline.preprocess(folders, dataset, workers=1) == {"3d_fullres": 0}
    settings = dataclasses.replace(SHORT, epochs=1)
    folder = train(folders, dataset, "3d_fullres", settings=settings)
    assert len(pipeline.validation_summary(folder).cases) == 1
    raw = folders.raw_folder(dataset)
    model = predictor.load(folder, **CPU)
    (path,) = pipeline.predict(model, raw / "imagesTs", tmp_path / "out").values()
    image = read_image(tuple((raw / "imagesTs").iterdir()))
    assert read_segmentation(path)[1] == image.geometry
    summary = pipeline.evaluate(raw / "labelsTs", tmp_path / "out", model.spec.labels, ".nii.gz")
    assert summary.mean.keys() == {"head", "tail"}


def test_a_coarse_configuration_is_trained_like_any_other(tmp_path: Path) -> None:
    dataset = "Dataset004_Lowres"
    folders = draw(tmp_path, dataset, "mri", cases=2)
    pipeline.fingerprint(folders, dataset, workers=1)
    plan = shrink(pipeline.plan(folders, dataset), "3d_fullres", (8, 12, 8))
    (fine,) = plan.configurations.values()
    spacing = tuple(2 * mm for mm in fine.spacing if mm is not None)
    coarse = dataclasses.replace(fine, name="3d_lowres", data="3d_lowres", spacing=spacing)
    plan = dataclasses.replace(plan, configurations={"3d_lowres": coarse})
    record.save(plan, folders.plan_file(dataset, "nnseg"))
    pipeline.preprocess(folders, dataset, workers=1)
    settings = dataclasses.replace(SHORT, epochs=1, iterations=1)
    folder = train(folders, dataset, "3d_lowres", settings=settings)
    (path,) = (folder / "validation").glob("*.nii.gz")
    truth = folders.labels(dataset) / path.name
    assert read_segmentation(path)[1] == read_segmentation(truth)[1]


@pytest.mark.parametrize("variant", ["regions", "ignore"])
def test_regions_and_ignored_voxels_are_trained_and_scored(tmp_path: Path, variant: str) -> None:
    dataset = "Dataset003_Other"
    folders = draw(tmp_path, dataset, variant, cases=2)
    prepare(folders, dataset, "3d_fullres", (16, 24, 16))
    seen: list[EpochReport] = []
    settings = dataclasses.replace(SHORT, epochs=1, iterations=1)
    folder = train(folders, dataset, "3d_fullres", settings=settings, on_epoch=seen.append)
    labels = read_spec(folders.spec_file(dataset)).labels
    assert seen[0].label_dice.keys() == labels.foreground.keys()
    assert np.isfinite(seen[0].loss)
    (predicted,) = (folder / "validation").glob("*.nii.gz")
    assert set(np.unique(read_segmentation(predicted)[0])) <= {0, 1, 2}
