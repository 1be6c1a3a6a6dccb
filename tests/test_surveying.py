"""What of a dataset's models can be compared; what is missing is said with its command."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import toy_plan

from nnseg import record
from nnseg.choose import ChosenModel
from nnseg.dataset import Fold
from nnseg.errors import DataError, MissingError, UsageError
from nnseg.folders import (
    Folders,
    checkpoint_file,
    compact_files,
    summary_file,
    validated_file,
    validation_folder,
)
from nnseg.labels import Labels
from nnseg.validated import Validated, hash_of_split
from nnseg.verbs.surveying import Survey, survey
from nnseg.volume import simple_geometry, write

DATASET = "Dataset001_Toy"
LABELS = {"background": 0, "organ": 1}
HELD_OUT = (("a", "b"), ("c", "d"), ("a", "e"))  # by fold; a by two of them
EMPTY = hashlib.sha256(b"").hexdigest()
PLAN = record.to_json(toy_plan(Labels(labels=LABELS)))


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """A raw dataset of five cases with folds of its own; nothing is trained."""
    made = Folders.of_root(tmp_path)
    raw = made.raw_folder(DATASET)
    geometry = simple_geometry((2, 3, 4), (2.0, 1.0, 1.5))
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for case in "abcde":
        write(raw / "imagesTr" / f"{case}_0000.nii.gz", np.zeros((2, 3, 4), np.uint8), geometry)
        write(raw / "labelsTr" / f"{case}.nii.gz", np.zeros((2, 3, 4), np.uint8), geometry)
    spec = {"channel_names": {"0": "MR"}, "labels": LABELS, "numTraining": 5}
    (raw / "dataset.json").write_text(json.dumps({**spec, "file_ending": ".nii.gz"}))
    folds = [{"train": [c for c in "abcde" if c not in val], "val": val} for val in HELD_OUT]
    (raw / "splits_final.json").write_text(json.dumps(folds))
    return made


def learnt_by(fold: int) -> list[str]:
    return [case for case in "abcde" if case not in HELD_OUT[fold]]


def train(
    folders: Folders,
    configuration: str,
    folds: Iterable[int] = (0, 1),
    *,
    plan: str = "nnseg",
    seed: int = 0,
    content: Any = PLAN,
) -> None:
    """Leave what training and validating the folds of a configuration leaves behind."""
    for fold in folds:
        folder = folders.fold(DATASET, plan, configuration, str(fold), seed)
        out = validation_folder(folder)
        out.mkdir(parents=True)
        weights = f"{configuration} {fold} {seed}"
        checkpoint = {"plan": content, "weights_sha256": weights}
        checkpoint_file(folder, "final").write_text(json.dumps(checkpoint))
        run = {"split_hash": "of then", "train_cases": learnt_by(fold)}
        checkpoint_file(folder, "latest").write_text(json.dumps(run))
        record.save(Validated(weights_sha256=weights), validated_file(folder))
        summary_file(out).write_text("{}")
        for case in HELD_OUT[fold]:
            for file in (out / f"{case}.nii.gz", *compact_files(out / f"{case}.nii.gz")):
                file.write_bytes(b"")


def fold_of(folders: Folders, configuration: str, fold: int) -> Path:
    return folders.fold(DATASET, "nnseg", configuration, str(fold), 0)


def named(found: Survey) -> list[str]:
    return [candidate.name for candidate in found.candidates]


def begin_with(fold: Path, weights: str | None) -> None:
    """Have a training say which weights it started from."""
    path = checkpoint_file(fold, "latest")
    run = json.loads(path.read_text())
    path.write_text(json.dumps({**run, "settings": {"pretrained": weights}}))


def test_a_start_from_weights_that_had_seen_the_cases_is_no_comparison(folders: Folders) -> None:
    train(folders, "2d")
    train(folders, "3d_fullres")
    begin_with(fold_of(folders, "2d", 0), None)
    assert survey(folders, DATASET).notes == ()
    begin_with(fold_of(folders, "2d", 0), "3d_fullres 0 0")  # which held the same cases out
    assert survey(folders, DATASET).notes == ()
    begin_with(fold_of(folders, "2d", 0), "3d_fullres 1 0")
    with pytest.raises(MissingError) as caught:
        survey(folders, DATASET)
    source = fold_of(folders, "3d_fullres", 1)
    said = f"it began with the weights of {source}, trained on 2 cases, such as a, b; train it anew"
    assert said in str(caught.value)
    assert str(fold_of(folders, "2d", 0)) in str(caught.value)


def test_weights_that_began_with_others_know_their_cases_too(folders: Folders) -> None:
    train(folders, "2d")
    train(folders, "3d_fullres")
    begin_with(fold_of(folders, "2d", 0), "3d_fullres 0 0")
    begin_with(fold_of(folders, "3d_fullres", 0), "2d 1 0")
    with pytest.raises(MissingError, match=r"2d.fold_0: it began with .*2d.fold_1, trained on"):
        survey(folders, DATASET)
    begin_with(fold_of(folders, "3d_fullres", 0), "2d 0 0")  # a circle ends
    assert survey(folders, DATASET).notes == ()


def test_a_start_from_weights_that_are_not_here_is_told(folders: Folders) -> None:
    train(folders, "2d")
    begin_with(fold_of(folders, "2d", 1), "of nnU-Net")
    (note,) = survey(folders, DATASET).notes
    assert note.startswith("nnseg/2d: no record here says on which cases the weights were trained")
    assert "that fold 1 started from" in note


def test_label_maps_changed_since_the_validation_are_no_comparison(folders: Folders) -> None:
    train(folders, "2d")
    fold = fold_of(folders, "2d", 1)
    names = [f"{case}.nii.gz" for case in HELD_OUT[1]]
    proof = Validated(weights_sha256="2d 1 0", maps_sha256=dict.fromkeys(names, EMPTY))
    record.save(proof, validated_file(fold))
    assert survey(folders, DATASET).folds == ("0", "1")
    (validation_folder(fold) / names[0]).write_bytes(b"by hand")
    with pytest.raises(MissingError, match=r"label maps of case c were changed since its valid"):
        survey(folders, DATASET)


def test_every_trained_configuration_and_pair_is_compared_on_all_folds(folders: Folders) -> None:
    train(folders, "3d_fullres")
    train(folders, "2d")
    found = survey(folders, DATASET)
    assert named(found) == ["2d", "3d_fullres", "2d + 3d_fullres"]
    assert found.folds == ("0", "1")
    assert found.cases == {"a": "0", "b": "0", "c": "1", "d": "1"}
    assert found.references["c"] == folders.labels(DATASET) / "c.nii.gz"
    out = validation_folder(fold_of(folders, "2d", 1))
    assert found.map_file("2d", "c") == out / "c.nii.gz"
    assert found.candidates[0].members == (ChosenModel(folder="nnseg/2d", folds=("0", "1")),)
    assert found.notes == ()
    assert str(found) == ("3 candidates on 4 cases of folds 0, 1: 2d, 3d_fullres, 2d + 3d_fullres")
    assert found.to_json()["candidates"] == named(found)


def test_configurations_are_compared_on_the_folds_that_all_have(folders: Folders) -> None:
    train(folders, "2d", (0, 1, 2))
    train(folders, "3d_fullres", (1,))
    found = survey(folders, DATASET)
    assert found.folds == ("1",)
    assert list(found.cases) == ["c", "d"]
    assert found.notes == ("nnseg/2d: folds 0, 2 not scored, as not every configuration has them",)
    # it predicts with all its folds, and its ensemble too
    assert found.candidates[0].members[0].folds == ("0", "1", "2")
    assert found.candidates[2].members[0].folds == ("0", "1", "2")


def test_a_fold_that_is_not_validated_does_not_predict_unless_it_is_asked_for(
    folders: Folders,
) -> None:
    train(folders, "2d", (0, 1))
    train(folders, "3d_fullres", (1,))
    validated_file(fold_of(folders, "2d", 0)).unlink()
    assert survey(folders, DATASET).candidates[0].members[0].folds == ("1",)


def test_folds_that_are_asked_for_are_those_that_predict(folders: Folders) -> None:
    train(folders, "2d", (0, 1, 2))
    found = survey(folders, DATASET, folds=["1", "0"])
    assert found.folds == found.candidates[0].members[0].folds == ("0", "1")
    assert found.notes == ()
    train(folders, "3d_fullres", (1,))
    with pytest.raises(MissingError, match="`nnseg train Dataset001_Toy 3d_fullres 0` would"):
        survey(folders, DATASET, folds=["0", "1"])


@pytest.mark.fault("R41")
def test_configurations_without_a_common_fold_are_refused(folders: Folders) -> None:
    train(folders, "2d", (0,))
    train(folders, "3d_fullres", (1,))
    with pytest.raises(MissingError) as caught:
        survey(folders, DATASET)
    assert str(caught.value) == (
        "no fold is trained of all models: nnseg/2d has fold 0; nnseg/3d_fullres has fold 1; "
        "`nnseg train Dataset001_Toy 3d_fullres 0` would give one"
    )


def test_a_case_that_two_folds_held_out_counts_in_the_first(folders: Folders) -> None:
    train(folders, "2d", (0, 2))
    found = survey(folders, DATASET)
    assert found.cases == {"a": "0", "b": "0", "e": "2"}
    assert found.notes == ("case a: held out by several folds, of which the first one counts",)


def test_a_seed_is_a_model_of_its_own(folders: Folders) -> None:
    train(folders, "2d")
    train(folders, "2d", seed=7)
    found = survey(folders, DATASET)
    assert named(found) == ["2d", "2d seed 7", "2d + 2d seed 7"]
    members = found.candidates[-1].members
    assert [member.folds for member in members] == [("0", "1"), ("0_seed7", "1_seed7")]
    assert [found.model_of(member) for member in members] == ["2d", "2d seed 7"]
    assert found.map_file("2d seed 7", "a").parts[-3] == "fold_0_seed7"


def test_only_the_seeds_that_were_asked_for_are_compared(folders: Folders) -> None:
    train(folders, "2d")
    train(folders, "2d", seed=7)
    assert named(survey(folders, DATASET, seeds=(7,))) == ["2d seed 7"]
    assert named(survey(folders, DATASET, seeds=(0,))) == ["2d"]
    with pytest.raises(MissingError, match=r"nnseg train Dataset001_Toy 2d 0 --seed 3` trains one"):
        survey(folders, DATASET, configurations=("2d",), seeds=(3,))


def test_a_seed_without_all_folds_does_not_cost_the_others_theirs(folders: Folders) -> None:
    train(folders, "2d", (0, 1))
    train(folders, "2d", (1,), seed=7)
    train(folders, "3d_fullres", (0, 1), seed=3)
    found = survey(folders, DATASET)
    assert found.folds == ("0", "1")
    assert named(found)[:2] == ["2d", "3d_fullres seed 3"]
    assert found.notes == ("nnseg/2d with seed 7: left out, as it has fold 1 only",)


def test_several_plans_are_told_apart(folders: Folders) -> None:
    train(folders, "2d")
    train(folders, "2d", plan="resenc")
    assert named(survey(folders, DATASET)) == ["2d"]
    found = survey(folders, DATASET, plans=["nnseg", "resenc"])
    assert named(found) == ["nnseg/2d", "resenc/2d", "nnseg/2d + resenc/2d"]
    assert found.candidates[1].members[0].folder == "resenc/2d"


def test_configurations_come_as_they_are_named(folders: Folders) -> None:
    for name in ("2d", "3d_fullres", "3d_lowres"):
        train(folders, name)
    found = survey(folders, DATASET, configurations=["3d_lowres", "2d"], most_members=1)
    assert named(found) == ["3d_lowres", "2d"]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "`nnseg train Dataset001_Toy CONFIGURATION 0` trains one"),
        (
            {"configurations": ["3d_fullres"]},
            r"no fold .* `nnseg train \S+ 3d_fullres 0` t",
        ),
        ({"plans": ["other"]}, "`nnseg train Dataset001_Toy CONFIGURATION 0 -p other` trains one"),
    ],
)
def test_what_is_not_trained_is_said_with_its_command(
    folders: Folders, how: dict[str, Any], said: str
) -> None:
    if how:
        train(folders, "2d")
    with pytest.raises(MissingError, match=said):
        survey(folders, DATASET, **how)


def test_a_fold_that_trained_on_all_cases_is_nothing_to_compare_by(folders: Folders) -> None:
    folder = folders.fold(DATASET, "nnseg", "2d", "all", 0)
    folder.mkdir(parents=True)
    checkpoint_file(folder, "final").write_text("{}")
    with pytest.raises(MissingError, match="has held cases out"):
        survey(folders, DATASET)


def remove_proof(fold: Path) -> None:
    validated_file(fold).unlink()


def train_on(fold: Path) -> None:
    content = json.loads(checkpoint_file(fold, "final").read_text())
    checkpoint_file(fold, "final").write_text(json.dumps(content | {"weights_sha256": "other"}))


def score_anew(fold: Path) -> None:
    proof = record.load(Validated, validated_file(fold))
    record.save_sealed(dataclasses.replace(proof, summary_sha256="of before"), validated_file(fold))


def leave_out(fold: Path) -> None:
    proof = record.load(Validated, validated_file(fold))
    record.save_sealed(dataclasses.replace(proof, cases=("d",)), validated_file(fold))


def remove_map(fold: Path) -> None:
    (validation_folder(fold) / "c.nii.gz").unlink()


def remove_probabilities(fold: Path) -> None:
    compact_files(validation_folder(fold) / "c.nii.gz")[0].unlink()


@pytest.mark.fault("R41")
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (remove_proof, "its validation is missing, unfinished, of other weights than its final"),
        (train_on, "its validation is missing, unfinished, of other weights than its final"),
        (score_anew, "its validation is missing, unfinished, of other weights than its final"),
        (leave_out, "its validation lacks case c"),
        (remove_map, "its validation lacks case c"),
        (remove_probabilities, "its validation has no probabilities of case c"),
    ],
)
def test_predictions_that_are_missing_or_stale_are_named_with_the_command(
    folders: Folders, harm: Any, said: str
) -> None:
    train(folders, "2d")
    train(folders, "3d_fullres")
    harm(fold_of(folders, "2d", 1))
    with pytest.raises(MissingError) as caught:
        survey(folders, DATASET)
    assert f"{fold_of(folders, '2d', 1)}: {said}" in str(caught.value)
    assert str(caught.value).endswith("`nnseg train Dataset001_Toy 2d 1 --val` makes it up")


def swap(folders: Folders, one: str, other: str) -> None:
    """Have two cases change folds."""
    text = folders.user_splits_file(DATASET).read_text()
    turned = text.replace(f'"{one}"', '"-"').replace(f'"{other}"', f'"{one}"')
    folders.user_splits_file(DATASET).write_text(turned.replace('"-"', f'"{other}"'))


def test_a_case_that_a_network_learnt_from_is_not_held_out_whatever_the_folds_say(
    folders: Folders,
) -> None:
    train(folders, "2d")
    swap(folders, "b", "c")
    for fold, case in ((0, "c"), (1, "b")):  # as an older version would have validated them
        for file in (f"{case}.nii.gz", f"{case}.probabilities.b2nd", f"{case}.probabilities.json"):
            (validation_folder(fold_of(folders, "2d", fold)) / file).write_bytes(b"")
    with pytest.raises(MissingError) as caught:
        survey(folders, DATASET)
    again = "train it anew, `nnseg train Dataset001_Toy 2d {} -p nnseg --overwrite`, or restore"
    for fold, case in ((0, "c"), (1, "b")):
        folder = fold_of(folders, "2d", fold)
        said = f"{folder}: its network was trained on case {case}; {again.format(fold)}"
        assert said in str(caught.value)
    assert "--val" not in str(caught.value)


def test_an_older_model_is_judged_by_the_hash_of_its_fold(folders: Folders) -> None:
    train(folders, "2d")
    for fold in (0, 1):
        split = Fold(train=tuple(learnt_by(fold)), val=HELD_OUT[fold])
        run = {"split_hash": hash_of_split(split)}
        checkpoint_file(fold_of(folders, "2d", fold), "latest").write_text(json.dumps(run))
    assert survey(folders, DATASET).notes == ()
    swap(folders, "b", "c")
    with pytest.raises(MissingError, match="trained on another split of the cases than today's"):
        survey(folders, DATASET)


def test_a_model_of_which_nothing_is_known_is_compared_aloud(folders: Folders) -> None:
    train(folders, "2d")
    checkpoint_file(fold_of(folders, "2d", 1), "latest").unlink()
    (note,) = survey(folders, DATASET).notes
    assert note.startswith("nnseg/2d: no record says which cases fold 1 trained on; ")


def test_models_by_themselves_need_no_probabilities(folders: Folders) -> None:
    train(folders, "2d")
    train(folders, "3d_fullres")
    remove_probabilities(fold_of(folders, "2d", 1))
    assert named(survey(folders, DATASET, most_members=1)) == ["2d", "3d_fullres"]
    assert named(survey(folders, DATASET, configurations=["2d"])) == ["2d"]


def test_the_command_names_plan_and_seed(folders: Folders) -> None:
    train(folders, "2d", (0,), plan="resenc", seed=7)
    validated_file(folders.fold(DATASET, "resenc", "2d", "0", 7)).unlink()
    command = "`nnseg train Dataset001_Toy 2d 0 --val -p resenc --seed 7`"
    with pytest.raises(MissingError, match=re.escape(command)):
        survey(folders, DATASET, plans=["resenc"])


def test_many_faults_are_counted(folders: Folders) -> None:
    for name in ("2d", "3d_fullres", "3d_lowres", "x", "y"):
        train(folders, name)
        for fold in (0, 1):
            remove_proof(fold_of(folders, name, fold))
    with pytest.raises(MissingError, match=r"and 2 more$"):
        survey(folders, DATASET)


def test_a_model_of_other_labels_is_refused_by_name(folders: Folders) -> None:
    train(folders, "2d")
    other = record.to_json(toy_plan(Labels(labels={**LABELS, "lesion": 2})))
    train(folders, "3d_fullres", content=other)
    with pytest.raises(DataError, match="label lesion is not there, and was 2 when 3d_fullres was"):
        survey(folders, DATASET)
    assert named(survey(folders, DATASET, configurations=["2d"])) == ["2d"]


def test_models_of_another_order_of_axes_are_compared_but_not_averaged(folders: Folders) -> None:
    train(folders, "2d")
    train(folders, "3d_fullres", plan="turned", content={**PLAN, "order": [2, 1, 0]})
    found = survey(folders, DATASET, plans=["nnseg", "turned"])
    assert named(found) == ["nnseg/2d", "turned/3d_fullres"]
    assert found.notes == (
        "models whose plans have the axes in different orders are not averaged with each other",
    )


def test_a_damaged_checkpoint_is_named(folders: Folders) -> None:
    train(folders, "2d", (0,))
    checkpoint_file(fold_of(folders, "2d", 0), "final").write_text("[1]")
    with pytest.raises(DataError, match=r"checkpoint_final\.json: is no checkpoint"):
        survey(folders, DATASET)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"folds": ["all"]}, "fold all held no case out"),
        ({"folds": ["0_seed7"]}, "a seed is a model of its own"),
        ({"most_members": 0}, "most_members is 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(folders: Folders, how: dict[str, Any], said: str) -> None:
    train(folders, "2d")
    with pytest.raises(UsageError, match=said):
        survey(folders, DATASET, **how)


def test_a_fold_that_the_splits_do_not_know_is_not_compared(folders: Folders) -> None:
    train(folders, "2d", (0, 1))
    folder = folders.fold(DATASET, "nnseg", "2d", "8", 0)
    folder.mkdir()
    checkpoint_file(folder, "final").write_text("{}")
    assert survey(folders, DATASET).candidates[0].members[0].folds == ("0", "1")
