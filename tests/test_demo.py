import dataclasses
from pathlib import Path
from typing import Any

import pytest

from nnseg import phantom, pipeline, record
from nnseg.commit import sha256
from nnseg.errors import StoppedError, UsageError
from nnseg.folders import Folders
from nnseg.learning.recipe import TrainSettings
from nnseg.plan import Plan
from nnseg.verbs import demo

CPU = {"device": "cpu", "precision": "fp32"}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[TrainSettings]:
    """A demo of few flat phantoms and four steps; it keeps the settings that it was to train by."""
    asked: list[TrainSettings] = []
    plan, train = pipeline.plan, pipeline.train

    def small_plan(folders: Folders, dataset: str) -> Plan:
        planned = plan(folders, dataset)
        flat = planned.configuration("2d")
        tiny = dataclasses.replace(
            flat.architecture,
            features=(4, 8),
            kernel_sizes=((1, 3, 3),) * 2,
            strides=((1, 1, 1), (1, 2, 2)),
            encoder_blocks=(1, 1),
            decoder_blocks=(1,),
        )
        flat = dataclasses.replace(flat, architecture=tiny, patch_size=(1, 32, 24), batch_size=2)
        planned = dataclasses.replace(planned, configurations={"2d": flat})
        record.save(planned, folders.plan_file(dataset, planned.name))
        return planned

    def short_train(*args: Any, settings: TrainSettings, **options: Any) -> Path:
        asked.append(settings)
        short = TrainSettings(epochs=2, iterations=2, validation_iterations=1, batch_size=2)
        return train(*args, settings=short, **options)

    monkeypatch.setattr(demo, "VARIANT", "2d")
    monkeypatch.setattr(demo, "TRAINING_CASES", 5)
    monkeypatch.setattr(demo, "TEST_CASES", 2)
    monkeypatch.setattr(pipeline, "plan", small_plan)
    monkeypatch.setattr(pipeline, "train", short_train)
    return asked


def hashes(folder: Path) -> dict[Path, str]:
    return {path: sha256(path) for path in folder.rglob("*") if path.is_file()}


def test_the_demo_does_the_whole_job_and_says_what_comes_next(
    tmp_path: Path, small: list[TrainSettings]
) -> None:
    said: list[str] = []
    summary = demo.run(tmp_path / "demo", budget_seconds=60, say=said.append, **CPU)
    (settings,) = small
    assert settings.budget_seconds is not None
    assert demo.RESERVE < settings.budget_seconds < 60 - demo.RESERVE
    assert {case.case_id for case in summary.cases} == {"2d_005", "2d_006"}
    text = "\n".join(said)
    for number in range(1, 7):
        assert f"{number}/6 " in text
    assert text.index("1/6") < text.index("5/6 training") < text.index("6/6 predicting")
    assert "epoch 2/2 loss" in text
    assert "foreground mean" in text
    assert "a threshold (Otsu) with the largest component: Dice 0." in text
    page = tmp_path / "demo" / "predictions" / "report" / "index.html"
    assert f"the report, for any browser: {page}" in text
    assert page.is_file()
    assert text.endswith("nnseg_predict -i IN -o OUT -d 2         with the models that were chosen")


def test_a_second_demo_replaces_the_first(tmp_path: Path, small: list[TrainSettings]) -> None:
    folder = tmp_path / "demo"
    for seed in (1, 2):
        with pytest.raises(StoppedError):
            demo.run(folder, budget_seconds=60, seed=seed, stop=lambda: True, **CPU)
        left = folder / "raw" / f"left by {seed}"
        assert not (folder / "raw" / "left by 1").exists()
        left.touch()


def test_a_raw_dataset_of_ones_own_is_only_read(tmp_path: Path, small: list[TrainSettings]) -> None:
    raw = tmp_path / "mine" / "raw" / "Dataset007_Mine"
    phantom.write_dataset(raw, "2d", cases=4)
    before, said = hashes(tmp_path / "mine"), []
    summary = demo.run(tmp_path / "demo", budget_seconds=60, real=raw, say=said.append, **CPU)
    assert hashes(tmp_path / "mine") == before
    assert len(summary.cases) == 1
    assert (tmp_path / "demo" / "results" / "Dataset007_Mine").is_dir()
    assert not any("threshold" in line for line in said)


@pytest.mark.parametrize("name", ["raw", "results", "predictions"])
def test_a_folder_with_files_of_others_is_refused_and_left_as_it_is(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name / "Dataset004_Mine").mkdir(parents=True)
    (tmp_path / name / "Dataset004_Mine" / "months of work").write_text("dear")
    before = hashes(tmp_path)
    with pytest.raises(UsageError, match="holds files that no demo made"):
        demo.run(tmp_path, **CPU)
    assert hashes(tmp_path) == before


def test_a_budget_too_short_to_train_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="budget of 20 s is too short"):
        demo.run(tmp_path / "demo", budget_seconds=20)
    assert not (tmp_path / "demo").exists()


def test_a_budget_used_up_before_training_is_refused(
    tmp_path: Path, small: list[TrainSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "RESERVE", 30.0)
    with pytest.raises(UsageError, match="s are left to train; give more"):
        demo.run(tmp_path / "demo", budget_seconds=60, **CPU)
    assert not small


def test_a_demo_that_is_stopped_says_so(tmp_path: Path, small: list[TrainSettings]) -> None:
    with pytest.raises(StoppedError, match="the demo was stopped"):
        demo.run(tmp_path / "demo", budget_seconds=60, stop=lambda: True, **CPU)
    assert not small
