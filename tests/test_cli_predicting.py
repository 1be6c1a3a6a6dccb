"""A choice that -m names is looked at as the one that -d finds."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from nnseg import record
from nnseg.choose import CandidateScore, Choosing, ChosenModel
from nnseg.cli.predicting import _models
from nnseg.folders import Folders, checkpoint_file
from nnseg.postprocess import Postprocessing

DATASET = "Dataset004_Few"


def write_choice(root: Path, dataset: str = DATASET) -> Path:
    """results/DATASET with a choice of one fold whose weights are `now`; it gives its folder."""
    folders = Folders.of_root(root)
    score = CandidateScore(
        name="2d",
        members=(ChosenModel(folder="nnseg/2d", folds=("0",)),),
        dice=0.5,
        low=None,
        high=None,
        label_dice={"a": 0.5},
        postprocessing=Postprocessing(),
        dice_postprocessed=0.5,
        label_dice_postprocessed={"a": 0.5},
    )
    choosing = Choosing(
        dataset=dataset,
        folds=("0",),
        cases=3,
        candidates=(score,),
        chosen="2d",
        expected_dice=None,
        optimism=None,
        nnunet=score,
        gain=None,
        weights_sha256={"nnseg/2d/fold_0": "then"},
    )
    record.save(choosing, folders.choosing_file(dataset))
    record.save(choosing.choice, folders.choice_file(dataset))
    fold = folders.fold(dataset, "nnseg", "2d", "0", 0)
    fold.mkdir(parents=True)
    checkpoint_file(fold, "final").write_text(json.dumps({"weights_sha256": "now"}))
    return folders.models_folder(dataset)


def models(*named: Path) -> list[Path]:
    return _models(Namespace(model=list(named), root=None), "final")


@pytest.mark.parametrize("name", ["choice.json", "."])
def test_a_choice_by_its_path_warns_of_a_fold_that_was_trained_anew(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    named = write_choice(tmp_path) / name
    assert models(named) == [named]
    assert "nnseg/2d/fold_0 was trained anew since 2d was chosen" in caplog.text


def test_what_is_as_it_was_chosen_or_cannot_be_told_is_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results = write_choice(tmp_path)
    models(results / "nnseg" / "2d", results / "choice.json")
    models(results / "nnseg" / "2d")
    fold = results / "nnseg" / "2d" / "fold_0"
    checkpoint_file(fold, "final").write_text(json.dumps({"weights_sha256": "then"}))
    models(results)
    (results / "choosing.json").unlink()  # as where it was handed on
    checkpoint_file(fold, "final").write_text(json.dumps({"weights_sha256": "now"}))
    models(results)
    assert caplog.text == ""


def test_a_choice_in_a_folder_of_any_name_is_still_predicted_with(tmp_path: Path) -> None:
    results = write_choice(tmp_path)
    odd = results.rename(results.with_name("_mine"))
    assert models(odd) == [odd]
