"""A cascade learns from what the stage before predicts of cases that it was not trained on."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import with_cascade

from nnseg import inference, phantom, pipeline, record, store
from nnseg.checkpoint import Checkpoint
from nnseg.errors import DataError, MissingError, StoppedError
from nnseg.folders import Folders, next_stage_folder, validation_folder
from nnseg.learning.recipe import TrainSettings
from nnseg.plan import Plan
from nnseg.predictor import load
from nnseg.verbs.cascade import out_of_fold
from nnseg.volume import read_image, read_segmentation

DATASET = "Dataset006_Large"
LOW, CASCADE = "3d_lowres", "3d_cascade_fullres"
SHORT = TrainSettings(
    epochs=1, iterations=2, validation_iterations=1, batch_size=2, augmentation="mild"
)
CPU = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Five phantoms, preprocessed, all folds of the first stage trained; tests leave it."""
    folders = Folders.of_root(tmp_path_factory.mktemp("cascade"))
    phantom.write_dataset(folders.raw_folder(DATASET), "mri", cases=5, test_cases=1)
    plan = pipeline.plan_and_preprocess(folders, DATASET, ["2d"], workers=1)[0]
    record.save(with_cascade(plan), folders.plan_file(DATASET, "nnseg"))
    pipeline.preprocess(folders, DATASET, workers=1)
    for fold in range(5):
        train(folders, LOW, str(fold), validate_after=False)
    return folders


@pytest.fixture
def copied(trained: Folders, tmp_path: Path) -> Folders:
    shutil.copytree(trained.raw.parent, tmp_path / "copy")
    return Folders.of_root(tmp_path / "copy")


def train(folders: Folders, configuration: str, fold: str, **options: Any) -> Path:
    return pipeline.train(folders, DATASET, configuration, fold, settings=SHORT, **(CPU | options))


def carried(folders: Folders, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """What a cascade is given of all cases, and of what its making was told."""
    plan = record.load(Plan, folders.plan_file(DATASET, "nnseg"))
    ids = {case for fold in pipeline.folds(folders, DATASET) for case in fold.val}
    told: list[str] = []
    found = out_of_fold(
        folders,
        DATASET,
        "nnseg",
        plan,
        plan.configuration(CASCADE),
        ids,
        on_progress=lambda what, done, count: told.append(f"{what} {done}/{count}"),
        **(CPU | options),
    )
    assert found is not None
    assert list(found) == sorted(ids)
    return found, told


def fold_of(folders: Folders, case_id: str) -> Path:
    for number, fold in enumerate(pipeline.folds(folders, DATASET)):
        if case_id in fold.val:
            return folders.fold(DATASET, "nnseg", LOW, str(number), 0)
    raise AssertionError(case_id)


def test_each_case_is_predicted_by_the_fold_that_validates_on_it(copied: Folders) -> None:
    found, told = carried(copied)
    assert told[-1] == "predicting with 3d_lowres 5/5"
    plan = record.load(Plan, copied.plan_file(DATASET, "nnseg"))
    fine = copied.store(DATASET, "nnseg", plan.configuration(CASCADE).data)
    for case_id, positions in found.items():
        assert positions.shape == store.read_record(fine, case_id).placement.shape_resampled
        assert positions.max() <= 2
        kept = next_stage_folder(fold_of(copied, case_id), CASCADE)
        assert sorted(path.name for path in kept.iterdir()) == [
            f"{case_id}.b2nd",
            f"{case_id}.json",
        ]


def test_what_is_there_is_not_made_again_but_what_is_damaged_or_outdated_is(
    copied: Folders, tmp_path: Path
) -> None:
    first, _ = carried(copied)
    again, told = carried(copied)
    assert told == []
    for case_id, positions in first.items():
        np.testing.assert_array_equal(again[case_id], positions)

    damaged, outdated, lost, _, _ = sorted(first)
    path = next_stage_folder(fold_of(copied, damaged), CASCADE) / f"{damaged}.b2nd"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    fold = fold_of(copied, outdated).name.removeprefix("fold_")
    (next_stage_folder(fold_of(copied, lost), CASCADE) / f"{lost}.json").unlink()
    before = fold_of(copied, outdated)
    kept = shutil.move(next_stage_folder(before, CASCADE), tmp_path / "kept")
    other = dataclasses.replace(SHORT, iterations=3)
    pipeline.train(
        copied, DATASET, LOW, fold, settings=other, overwrite=True, validate_after=False, **CPU
    )
    next_stage_folder(before, CASCADE).parent.mkdir()
    shutil.move(kept, next_stage_folder(before, CASCADE))
    _, told = carried(copied)
    assert told[-1] == "predicting with 3d_lowres 3/3"
    assert carried(copied)[1] == []


def test_all_models_that_are_missing_are_named_and_nothing_is_predicted(copied: Folders) -> None:
    for fold in ("1", "3"):
        shutil.rmtree(copied.fold(DATASET, "nnseg", LOW, fold, 0))
    with pytest.raises(MissingError) as raised:
        train(copied, CASCADE, "0")
    for fold in ("1", "3"):
        assert f"`nnseg train {DATASET} {LOW} {fold}`" in str(raised.value)
    assert f"{LOW} 0`" not in str(raised.value)
    assert list(copied.results.rglob("next_stage")) == []


def test_a_case_that_no_fold_validates_on_is_named(copied: Folders) -> None:
    path = copied.splits_file(DATASET)
    folds = json.loads(path.read_text())
    lonely = folds[0]["val"][0]
    plan = record.load(Plan, copied.plan_file(DATASET, "nnseg"))
    kept = [{"train": [*f["train"], *f["val"]], "val": f["val"]} for f in folds[1:]]
    own = copied.user_splits_file(DATASET)
    own.write_text(
        json.dumps([{**f, "train": [c for c in f["train"] if c not in f["val"]]} for f in kept])
    )
    pipeline.plan(copied, DATASET)
    record.save(plan, copied.plan_file(DATASET, "nnseg"))
    with pytest.raises(DataError, match=rf"{lonely} are in the val of no fold"):
        train(copied, CASCADE, "0")


def test_a_cascade_does_not_learn_from_cases_that_the_stage_before_was_trained_on(
    copied: Folders,
) -> None:
    folds = json.loads(copied.splits_file(DATASET).read_text())
    moved = folds[0]["val"][0]
    copied.user_splits_file(DATASET).write_text(json.dumps([folds[1], folds[0], *folds[2:]]))
    with pytest.raises(DataError, match=rf"trained on case \w+, and a cascade .* {LOW} [01] -p"):
        carried(copied)
    assert list(copied.results.rglob("next_stage")) == []
    with pytest.raises(DataError, match=rf"fold_1: its network was trained on case {moved}, so"):
        pipeline.validate(copied, DATASET, LOW, "1", **CPU)


def test_a_stop_keeps_what_was_predicted(copied: Folders) -> None:
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(len(asked) == 2)
        return asked[-1]

    with pytest.raises(StoppedError, match="stopped after 2 of 5 cases"):
        carried(copied, stop=stop)
    assert len(list(copied.results.rglob("next_stage/*/*.json"))) == 2
    assert carried(copied)[1][-1] == "predicting with 3d_lowres 3/3"


def test_models_of_the_same_seed_go_before_those_of_seed_0(copied: Folders) -> None:
    seeded = dataclasses.replace(SHORT, seed=7)
    pipeline.train(copied, DATASET, LOW, "2", settings=seeded, validate_after=False, **CPU)
    carried(copied, seed=7)
    of_seed = next_stage_folder(copied.fold(DATASET, "nnseg", LOW, "2", 7), CASCADE)
    assert len(list(of_seed.glob("*.json"))) == 1
    assert len(list(copied.results.rglob("next_stage/*/*.json"))) == 5


def test_a_cascade_trains_validates_and_predicts_in_one_call_each(copied: Folders) -> None:
    fold = train(copied, CASCADE, "0")
    summary = pipeline.validation_summary(fold)
    assert set(summary.mean) == {"head", "tail"}
    for path in validation_folder(fold).glob("*.nii.gz"):
        truth, _ = read_segmentation(copied.labels(DATASET) / path.name)
        assert read_segmentation(path)[0].shape == truth.shape

    model = inference.load_model((fold,), **CPU)
    assert model.previous is not None
    assert len(model.previous.networks) == 5
    image = next(copied.images(DATASET).with_name("imagesTs").glob("*_0000.nii.gz"))
    volume = read_image((image,))
    found = model.predict(volume.image, volume.geometry.spacing)
    assert found.shape == volume.image.shape[1:]

    shape = inference.preprocess_case(
        volume.image, None, volume.geometry.spacing, model.plan, model.configuration
    ).image.shape[1:]
    nothing = np.zeros(shape, np.uint8)
    head = np.ones(shape, np.uint8)
    with_nothing, with_head = (
        model.predict(volume.image, volume.geometry.spacing, previous=previous)
        for previous in (nothing, head)
    )
    assert (with_nothing != with_head).any()  # the network looks at what was found before


def test_the_stage_before_has_the_folds_that_are_asked_for(
    copied: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    train(copied, CASCADE, "3", validate_after=False)
    model = copied.model(DATASET, "nnseg", CASCADE)

    def before(**options: Any) -> tuple[str, ...]:
        previous = load(model, **CPU, **options).members[0].model.previous
        assert previous is not None
        return previous.weights_sha256

    every = before()
    assert len(every) == 5
    assert before(folds=[3]) == every[3:4]
    assert before(preset="fast") == every[:1]
    assert "is not trained" not in caplog.text
    shutil.rmtree(copied.fold(DATASET, "nnseg", LOW, "3", 0))
    assert before(folds=["3"]) == (*every[:3], every[4])
    assert "3d_lowres: fold 3 is not trained (trained: 0, 1, 2, 4)" in caplog.text
    assert "all of its trained folds are taken" in caplog.text


def test_a_stage_before_of_another_plan_is_refused(copied: Folders) -> None:
    fold = train(copied, CASCADE, "0", validate_after=False)
    for path in copied.model(DATASET, "nnseg", LOW).glob("fold_*/checkpoint_final.json"):
        found = record.load(Checkpoint, path)
        plan = dataclasses.replace(found.plan, memory_gb=99.0)
        record.save_sealed(dataclasses.replace(found, plan=plan), path)
    with pytest.raises(DataError, match=f"{LOW}: was trained from another plan than .*fold_0"):
        inference.load_model((fold,), **CPU)
    assert inference.load_model((fold,), alone=True, **CPU).previous is None


def test_a_cascade_without_a_trained_stage_before_it_cannot_predict(copied: Folders) -> None:
    fold = train(copied, CASCADE, "0", validate_after=False)
    shutil.rmtree(copied.model(DATASET, "nnseg", LOW))
    with pytest.raises(MissingError, match=f"nnseg train {DATASET} {LOW} 0"):
        inference.load_model((fold,), **CPU)
