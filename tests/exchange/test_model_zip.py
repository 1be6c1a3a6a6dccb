"""A model that is handed on in a zip arrives as it was, or not at all."""

import dataclasses
import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from test_porting import CASCADE, DATASET, SPEC, write_folds
from tiny import CPU, FLAT, train

from nnseg import record
from nnseg.checkpoint import Checkpoint, load_model
from nnseg.choose import CandidateScore, Choice, Choosing, ChosenModel
from nnseg.cli.main import main
from nnseg.dataset import spec_to_json
from nnseg.errors import DataError, MissingError, UsageError
from nnseg.exchange.model_zip import (
    CARD,
    MANIFEST,
    Manifest,
    find_packed,
    pack_models,
    unpack_models,
)
from nnseg.folders import (
    Folders,
    checkpoint_file,
    choosing_beside,
    confidence_file,
    fold_folder,
    postprocessing_file,
    validated_file,
    validation_folder,
)
from nnseg.fsck.examine import examine_results
from nnseg.labels import Labels
from nnseg.learning.resume import RunRecord
from nnseg.postprocess import KeepLargest, Postprocessing
from nnseg.predictor import load
from nnseg.probabilities.compact import StoredCompact
from nnseg.scores.confidence import Confidence, read_confidence
from nnseg.scores.uncertainty import Correlation
from nnseg.validated import Validated, is_validated
from nnseg.verbs import porting
from nnseg.verbs.probability_folders import check_weights, look_into

RULES = Postprocessing(rules=(KeepLargest(labels=("left", "right")),))
CONFIDENCE = Confidence(calibration=None, quality=Correlation(pearson=0.5, spearman=None, n=2))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan's folder: models, rules and a confidence; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("ours")
    write_folds(folder)
    record.save(RULES, postprocessing_file(folder / "3d_lowres"))
    lowres = fold_folder(folder, "3d_lowres", "0")
    record.save(CONFIDENCE, confidence_file(validation_folder(lowres)))
    weights = record.read_json(checkpoint_file(lowres, "final"))["weights_sha256"]
    proof = Validated(weights_sha256=weights, cases=("patient_7",))
    record.save(proof, validated_file(lowres))
    return folder


@pytest.fixture
def packed(ours: Path, tmp_path: Path) -> Path:
    """The cascade, which takes 3d_lowres along."""
    porting.export_model(ours / CASCADE[0], tmp_path / "model.zip", to="zip")
    return tmp_path / "model.zip"


def repack(source: Path, target: Path, name: str, data: bytes | None) -> Path:
    """The same zip with other bytes in the member whose name ends so; None leaves it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            if not info.filename.endswith(name):
                new.writestr(info.filename, old.read(info))
            elif data is not None:
                new.writestr(info.filename, data)
    return target


def test_a_model_arrives_as_it_was(ours: Path, packed: Path, tmp_path: Path) -> None:
    imported = porting.import_model([packed], tmp_path / "back")
    assert {one.configuration_name: one.checkpoints for one in imported} == {
        "3d_cascade_fullres": {"0": ("final",)},
        "3d_lowres": {"0": ("final",), "1": ("final",)},
    }
    for configuration, fold in (("3d_lowres", "0"), ("3d_lowres", "1"), (CASCADE[0], "0")):
        wanted, weights = load_model(fold_folder(ours, configuration, fold), "final")
        found, back = load_model(fold_folder(tmp_path / "back", configuration, fold), "final")
        assert found == wanted
        assert all(torch.equal(back[name], weights[name]) for name in weights)
    assert record.load(Postprocessing, tmp_path / "back/3d_lowres/postprocessing.json") == RULES
    lowres = fold_folder(tmp_path / "back", "3d_lowres", "0")
    assert read_confidence(lowres, load_model(lowres, "final")[0].weights_sha256) == CONFIDENCE
    assert examine_results(tmp_path / "back").findings == ()


def test_a_folder_around_it_changes_nothing_and_both_kinds_come_along(
    ours: Path, tmp_path: Path
) -> None:
    shutil.copytree(ours, tmp_path / "around" / "Model")
    archive = find_packed(tmp_path / "around")
    assert archive is not None
    for model in unpack_models(archive, tmp_path / "back"):
        assert set(model.checkpoints.values()) == {("final", "best")}
    assert load_model(fold_folder(tmp_path / "back", "3d_lowres", "1"), "best")


def test_the_same_model_makes_the_same_bytes(ours: Path, packed: Path, tmp_path: Path) -> None:
    porting.export_model(ours, tmp_path / "again.zip", to="zip")
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()


def test_what_is_damaged_is_not_packed(ours: Path, tmp_path: Path) -> None:
    shutil.copytree(ours, tmp_path / "ours")
    weights = next((tmp_path / "ours" / "3d_lowres" / "fold_1").glob("*final*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{weights.name}: is damaged"):
        porting.export_model(tmp_path / "ours", tmp_path / "model.zip", to="zip")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
    fold = ours / "3d_lowres" / "fold_0"
    with pytest.raises(DataError, match="is the same fold as another one"):
        pack_models([fold, fold], tmp_path / "model.zip", "final")


@pytest.mark.parametrize("place", ["folder", "file"])
def test_a_zip_replaces_nothing(ours: Path, place: str, tmp_path: Path) -> None:
    target = tmp_path / "model.zip"
    if place == "folder":
        target.mkdir()
    else:
        target.write_text("mine")
    with pytest.raises(UsageError, match=r"name the zip file to write|is there already"):
        porting.export_model(ours, target, to="zip")
    assert target.exists()


def test_other_weights_than_those_of_the_record_are_refused(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed) as whole:
        name = next(one for one in whole.namelist() if one.endswith(".safetensors"))
        data = bytearray(whole.read(name))
    data[-1] ^= 1
    for change, words in ((bytes(data), "is damaged"), (None, "does not exist; get the model")):
        bad = repack(packed, tmp_path / "bad.zip", name, change)
        with pytest.raises(DataError, match=rf"bad\.zip: .*\.safetensors:? {words}"):
            porting.import_model([bad], tmp_path / "back")
        assert not (tmp_path / "back").exists()


def test_a_damaged_record_is_called_by_its_name_in_the_zip(packed: Path, tmp_path: Path) -> None:
    bad = repack(packed, tmp_path / "bad.zip", "fold_1/checkpoint_final.json", b'{"format": 1}\n')
    with pytest.raises(DataError, match=r"bad\.zip: 3d_lowres/fold_1/checkpoint_final\.json: is d"):
        porting.import_model([bad], tmp_path / "back")


def test_a_fold_in_the_place_of_another_is_refused(ours: Path, tmp_path: Path) -> None:
    shutil.copytree(ours / "3d_lowres" / "fold_0", tmp_path / "in" / "3d_lowres" / "fold_7")
    with pytest.raises(DataError, match="is fold 0 of 3d_lowres; put it there"):
        porting.import_model([tmp_path / "in"], tmp_path / "back")


def test_models_of_two_plans_are_refused(ours: Path, tmp_path: Path) -> None:
    shutil.copytree(ours, tmp_path / "in")
    path = checkpoint_file(tmp_path / "in" / "3d_lowres" / "fold_0", "final")
    checkpoint = record.load_sealed(Checkpoint, path)
    other = dataclasses.replace(checkpoint.plan, name="other")
    record.save_sealed(dataclasses.replace(checkpoint, plan=other), path)
    with pytest.raises(DataError, match="is of another plan than the others"):
        porting.import_model([tmp_path / "in"], tmp_path / "back")
    with pytest.raises(DataError, match="was trained from another plan"):
        porting.export_model(tmp_path / "in", tmp_path / "model.zip", to="zip")


def test_a_cascade_without_the_stage_before_is_refused(ours: Path, tmp_path: Path) -> None:
    shutil.copytree(ours / CASCADE[0], tmp_path / "in" / CASCADE[0])
    with pytest.raises(MissingError, match="starts from 3d_lowres"):
        porting.import_model([tmp_path / "in"], tmp_path / "back")


def test_a_model_of_ours_is_imported_alone_and_as_it_is(packed: Path, tmp_path: Path) -> None:
    for sources, options in (
        ([packed, packed], {}),
        ([packed], {"name": "mine"}),
        ([packed], {"trainers": ["Mine"]}),
    ):
        with pytest.raises(UsageError, match=r"model\.zip: is a model of nnseg; import it alone"):
            porting.import_model(sources, tmp_path / "back", **options)


def test_a_card_and_the_hash_of_every_file_come_along(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed) as whole:
        names = set(whole.namelist())
        contents = {name: whole.read(name) for name in names}
    manifest = record.parse(Manifest, json.loads(contents[MANIFEST]), MANIFEST)
    assert manifest.files.keys() == names - {MANIFEST}
    for name, digest in manifest.files.items():
        assert hashlib.sha256(contents[name]).hexdigest() == digest
    card = contents[CARD].decode()
    assert card.startswith("# Dataset900\\_Test: segmentation by nnseg")
    assert "| 3d_cascade_fullres 0 | 3 | not recorded | not recorded |" in card
    porting.import_model([packed], tmp_path / "back")
    assert (tmp_path / "back" / CARD).read_bytes() == contents[CARD]
    assert not (tmp_path / "back" / MANIFEST).exists()


@pytest.mark.parametrize(
    "name", [CARD, MANIFEST, "validation/confidence.json", "3d_lowres/postprocessing.json"]
)
def test_a_file_of_other_content_than_was_packed_is_refused(
    packed: Path, name: str, tmp_path: Path
) -> None:
    with zipfile.ZipFile(packed) as whole:
        found = next(one for one in whole.namelist() if one.endswith(name))
        data = whole.read(found) + b"\n"
    bad = repack(packed, tmp_path / "bad.zip", found, data)
    with pytest.raises(DataError, match=r"bad\.zip: .*is damaged \(its SHA-256 changed\); get it"):
        porting.import_model([bad], tmp_path / "back")
    bad = repack(packed, tmp_path / "bad.zip", found, None)
    words = "has no manifest.json" if name == MANIFEST else "does not exist; get the model again"
    with pytest.raises(DataError, match=words):
        porting.import_model([bad], tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.zip", "model.zip"]


def test_a_file_that_somebody_added_is_refused(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed, "a") as whole:
        whole.writestr("3d_lowres/fold_0/checkpoint_best.json", b"{}")
    with pytest.raises(DataError, match=r"checkpoint_best\.json: is not in manifest\.json"):
        porting.import_model([packed], tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def test_a_zip_that_nothing_proves_is_refused_and_how_to_go_on_told(
    packed: Path, tmp_path: Path
) -> None:
    bare = repack(packed, tmp_path / "bare.zip", MANIFEST, None)
    with pytest.raises(
        DataError, match=r"has no manifest\.json(.|\n)*unpack it, and predict with -m"
    ):
        porting.import_model([bare], tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_model_beside_the_folder_of_the_manifest_is_refused(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(tmp_path / "two.zip", "w") as new:
        for info in old.infolist():
            new.writestr(f"good/{info.filename}", old.read(info))
            if "3d_lowres/fold_1" in info.filename:
                new.writestr(f"bad/{info.filename}", old.read(info))
    with pytest.raises(DataError, match=r"bad/3d_lowres/.* is not in manifest\.json"):
        porting.import_model([tmp_path / "two.zip"], tmp_path / "back")


def test_a_card_that_nothing_proves_is_not_taken_over(ours: Path, tmp_path: Path) -> None:
    shutil.copytree(ours, tmp_path / "in")
    (tmp_path / "in" / CARD).write_text("This is a certified device.")
    porting.import_model([tmp_path / "in"], tmp_path / "back")
    assert not (tmp_path / "back" / CARD).exists()


def test_confidence_of_other_weights_is_not_handed_on(ours: Path, tmp_path: Path) -> None:
    shutil.copytree(ours, tmp_path / "ours")
    lowres = fold_folder(tmp_path / "ours", "3d_lowres", "0")
    porting.export_model(lowres, tmp_path / "right.zip", to="zip")
    record.save(Validated(weights_sha256="0" * 64), validated_file(lowres))
    porting.export_model(lowres, tmp_path / "stale.zip", to="zip")
    validated_file(lowres).unlink()
    porting.export_model(lowres, tmp_path / "unproven.zip", to="zip")
    counts = {}
    for name in ("right", "stale", "unproven"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip") as whole:
            inside = [one for one in whole.namelist() if "/validation/" in one]
            counts[name] = len(inside)
            assert b"patient_7" not in b"".join(map(whole.read, inside))
    assert counts == {"right": 2, "stale": 0, "unproven": 0}


def test_after_a_training_that_went_on_nothing_old_is_told_or_used(
    flat: Folders, tmp_path: Path
) -> None:
    shutil.copytree(flat.raw.parent, tmp_path / "root")
    folders = Folders.of_root(tmp_path / "root")
    fold = folders.fold(FLAT, "nnseg", "2d", "0", 0)
    assert load(fold, calibrated=True, **CPU).members[0].temperature != 1
    before = record.load_sealed(RunRecord, checkpoint_file(fold, "latest")).seconds
    left = look_into(validation_folder(fold))
    weights = load_model(fold, "final")[0].weights_sha256
    for case_id in left.kinds:
        stored = left.stored(case_id)
        assert isinstance(stored, StoredCompact)
        assert stored.weights_sha256 == weights
    check_weights(left)
    train(folders, FLAT, "2d", extend_to=4, validate_after=False)
    assert not is_validated(fold)
    with pytest.raises(DataError, match="of weights that the fold has no more"):
        check_weights(left)
    with pytest.raises(MissingError, match="not proven to be of its weights"):
        load(fold, calibrated=True, **CPU)
    run = record.load_sealed(RunRecord, checkpoint_file(fold, "latest"))
    long = dataclasses.replace(run, seconds=run.seconds + 7200)
    record.save_sealed(long, checkpoint_file(fold, "latest"))
    porting.export_model(fold, tmp_path / "model.zip", to="zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as whole:
        names, card = whole.namelist(), whole.read(CARD).decode()
    assert not [name for name in names if "/validation/" in name]
    assert "were not scored" in card
    assert run.seconds > before  # of both sessions
    assert "| 2d 0 | 4 | 2 | 2.0" in card  # epochs and hours of both
    fewer = dataclasses.replace(run.course, batch_size=1)  # as a budget may choose
    record.save_sealed(dataclasses.replace(run, course=fewer), checkpoint_file(fold, "latest"))
    porting.export_model(fold, tmp_path / "fewer.zip", to="zip")
    with zipfile.ZipFile(tmp_path / "fewer.zip") as whole:
        assert "| 2d 0 | 4 | 1 | " in whole.read(CARD).decode()


CASCADED, ALONE = "nnseg/3d_cascade_fullres", "nnseg/3d_lowres"
CHOICE_OF_TWO = Choice(
    members=(
        ChosenModel(folder=CASCADED, folds=("0",), weight=1.0),
        ChosenModel(folder=ALONE, folds=("1",), weight=2.0),
    ),
    postprocessing=RULES,
)


@pytest.fixture
def chosen(ours: Path, tmp_path: Path) -> Path:
    """results/DATASET with a choice of the cascade, which starts from 3d_lowres 0, and another."""
    results = tmp_path / "results" / DATASET
    shutil.copytree(ours, results / "nnseg")
    record.save(CHOICE_OF_TWO, results / "choice.json")
    return results


def segmented(model: Path) -> np.ndarray:
    image = np.random.default_rng(5).random((1, 14, 22, 18)).astype(np.float32)
    image = np.repeat(image, len(SPEC.channels), axis=0)
    ready = load(model, **CPU)
    return ready.segment(ready.prepare(image, (1.5, 1.0, 1.2))).segmentation


@pytest.mark.parametrize("source", ["choice.json", "."])
def test_a_choice_is_handed_on_as_a_whole_and_predicts_the_same(
    chosen: Path, tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target, back = tmp_path / "x.zip", tmp_path / "back"
    assert main(["export", str(chosen / source), "--to", "zip", "-o", str(target)]) == 0
    assert main(["import", str(target), "-o", str(back)]) == 0
    assert f"nnseg predict -m {back} -i IN -o OUT" in capsys.readouterr().out
    assert (back / "choice.json").read_bytes() == (chosen / "choice.json").read_bytes()
    folds = {path.parent.relative_to(back).as_posix() for path in back.rglob("checkpoint*.json")}
    assert folds == {f"{CASCADED}/fold_0", f"{ALONE}/fold_0", f"{ALONE}/fold_1"}
    wanted = segmented(chosen)
    assert len(np.unique(wanted)) > 1
    np.testing.assert_array_equal(segmented(back), wanted)
    np.testing.assert_array_equal(segmented(back / "choice.json"), wanted)
    with zipfile.ZipFile(target) as whole:
        manifest = record.parse(Manifest, json.loads(whole.read(MANIFEST)), MANIFEST)
        card = whole.read(CARD).decode()
        assert manifest.files.keys() == set(whole.namelist()) - {MANIFEST}
    assert "choice.json" in manifest.files
    assert "| nnseg/3d\\_lowres | 1 | 2 |" in card
    assert "How good they are together is not known" in card
    porting.export_model(back, tmp_path / "again.zip", to="zip")
    assert len(porting.import_model([tmp_path / "again.zip"], tmp_path / "twice")) == 2


def test_folds_that_a_choice_leaves_out_stay(chosen: Path, tmp_path: Path) -> None:
    record.save(Choice(members=CHOICE_OF_TWO.members[1:]), chosen / "choice.json")
    porting.export_model(chosen, tmp_path / "x.zip", to="zip")
    with zipfile.ZipFile(tmp_path / "x.zip") as whole:
        inside = {name.rpartition("/")[0] for name in whole.namelist()}
    assert inside == {"", ALONE, f"{ALONE}/fold_1"}  # ALONE has rules


def test_seeds_and_plans_of_a_choice_are_told_apart(chosen: Path, tmp_path: Path) -> None:
    shutil.copytree(chosen / ALONE / "fold_0", chosen / ALONE / "fold_0_seed1")
    shutil.copytree(chosen / ALONE, chosen / "other" / "3d_lowres")
    path = checkpoint_file(chosen / "other" / "3d_lowres" / "fold_0", "final")
    checkpoint = record.load_sealed(Checkpoint, path)
    other = dataclasses.replace(checkpoint.plan, name="other")
    record.save_sealed(dataclasses.replace(checkpoint, plan=other), path)
    members = (
        ChosenModel(folder=ALONE, folds=("0",)),
        ChosenModel(folder=ALONE, folds=("0_seed1",)),
        ChosenModel(folder="other/3d_lowres", folds=("0",)),
    )
    record.save(Choice(members=members), chosen / "choice.json")
    porting.export_model(chosen, tmp_path / "x.zip", to="zip")
    imported = porting.import_model([tmp_path / "x.zip"], tmp_path / "back")
    assert [tuple(one.checkpoints) for one in imported] == [("0", "0_seed1"), ("0",)]
    np.testing.assert_array_equal(segmented(tmp_path / "back"), segmented(chosen))


def choosing_of(chosen: Path, weights: str) -> None:
    score = CandidateScore(
        name="both",
        members=CHOICE_OF_TWO.members,
        dice=0.5,
        low=0.25,
        high=0.75,
        label_dice={"left": 0.5},
        postprocessing=RULES,
        dice_postprocessed=0.625,
        label_dice_postprocessed={"left": 0.625},
    )
    found = Choosing(
        dataset=DATASET,
        folds=("0",),
        cases=3,
        candidates=(score,),
        chosen="both",
        expected_dice=0.4375,
        optimism=0.1875,
        nnunet=score,
        gain=None,
        weights_sha256={f"{ALONE}/fold_0": weights},
    )
    record.save(found, choosing_beside(chosen / "choice.json"))


def test_the_card_of_a_choice_tells_what_to_expect_of_these_weights_only(
    chosen: Path, tmp_path: Path
) -> None:
    weights = load_model(chosen / ALONE / "fold_0", "final")[0].weights_sha256
    for number, digest in enumerate((weights, "0" * 64)):
        choosing_of(chosen, digest)
        porting.export_model(chosen, tmp_path / f"{number}.zip", to="zip")
        with zipfile.ZipFile(tmp_path / f"{number}.zip") as whole:
            card = whole.read(CARD).decode()
        assert ("cases like its own: Dice 0.438" in card) == (digest == weights)
        assert ("(95 %: 0.250 to 0.750)" in card) == (digest == weights)


@pytest.mark.parametrize("to", ["nnunet", "onnx"])
def test_a_choice_goes_to_no_other_program_and_its_members_are_named(
    chosen: Path, tmp_path: Path, to: str
) -> None:
    for source in (chosen, chosen / "choice.json"):
        with pytest.raises(UsageError, match=rf"each member by itself: .*{CASCADED}, .*{ALONE}"):
            porting.export_model(source, tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()


def test_a_choice_whose_member_is_missing_is_refused_on_both_ways(
    chosen: Path, tmp_path: Path
) -> None:
    porting.export_model(chosen, tmp_path / "x.zip", to="zip")
    with (
        zipfile.ZipFile(tmp_path / "x.zip") as old,
        zipfile.ZipFile(tmp_path / "y.zip", "w") as new,
    ):
        kept = {n: old.read(n) for n in old.namelist() if f"{ALONE}/fold_1" not in n}
        files = {n: hashlib.sha256(kept[n]).hexdigest() for n in kept if n != MANIFEST}
        kept[MANIFEST] = record.dumps(record.sealed(Manifest(files=files, version="1"))).encode()
        for name, data in kept.items():
            new.writestr(name, data)
    with pytest.raises(
        DataError, match=r"predicts with nnseg/3d_lowres/fold_1/, which is not there"
    ):
        porting.import_model([tmp_path / "y.zip"], tmp_path / "back")
    assert not (tmp_path / "back").exists()
    shutil.rmtree(chosen / ALONE / "fold_1")
    with pytest.raises(MissingError, match="fold 1 is not trained"):
        porting.export_model(chosen, tmp_path / "z.zip", to="zip")


def test_one_changed_byte_anywhere_is_found_or_changes_nothing(
    packed: Path, tmp_path: Path
) -> None:
    """Headers of a zip hold times and the like, which no import looks at."""
    whole = packed.read_bytes()
    porting.import_model([packed], tmp_path / "right")
    right = contents_of(tmp_path / "right")
    refused = 0
    places = np.random.default_rng(0).choice(len(whole), 60, replace=False)
    for number, place in enumerate(places):
        bad = tmp_path / "bad.zip"
        bad.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        target = tmp_path / f"back{number}"
        try:
            porting.import_model([bad], target)
        except (DataError, UsageError, MissingError):
            refused += 1
            assert not target.exists()
        else:
            assert contents_of(target) == right
    assert refused > 50


def contents_of(folder: Path) -> dict[str, bytes]:
    """The files of a model, but for the record of the run, which names its zip."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("run_import")
    }


def test_the_card_knows_the_dataset_that_lies_beside_the_results(
    ours: Path, tmp_path: Path
) -> None:
    place = tmp_path / "results" / DATASET / "nnseg"
    shutil.copytree(ours, place)
    raw = tmp_path / "raw" / DATASET
    raw.mkdir(parents=True)
    spec = dataclasses.replace(SPEC, others={"licence": "CC0", "tags": ["a"]})
    (raw / "dataset.json").write_text(json.dumps(spec_to_json(spec)))
    porting.export_model(place / "3d_lowres" / "fold_1", tmp_path / "one.zip", to="zip")
    with zipfile.ZipFile(tmp_path / "one.zip") as whole:
        card = whole.read(CARD).decode()
    assert "licence of the data: CC0." in card
    assert "training cases: 20" in card
    other = dataclasses.replace(spec, labels=Labels(labels={"background": 0, "x": 1}))
    (raw / "dataset.json").write_text(json.dumps(spec_to_json(other)))
    porting.export_model(place / "3d_lowres" / "fold_1", tmp_path / "two.zip", to="zip")
    with zipfile.ZipFile(tmp_path / "two.zip") as whole:
        assert "CC0" not in whole.read(CARD).decode()


def test_checking_a_zip_writes_nothing(packed: Path, tmp_path: Path) -> None:
    assert len(porting.import_model([packed], tmp_path / "back", save=False)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
