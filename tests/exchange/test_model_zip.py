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

from nnseg import porting, record
from nnseg.checkpoint import Checkpoint, load_model
from nnseg.confidence import Confidence
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
    checkpoint_file,
    confidence_file,
    fold_folder,
    postprocessing_file,
    validation_folder,
)
from nnseg.labels import Labels
from nnseg.postprocess import KeepLargest, Postprocessing
from nnseg.uncertainty import Correlation

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
    assert record.load(Confidence, confidence_file(validation_folder(lowres))) == CONFIDENCE


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
    assert "| 3d_cascade_fullres 0 | 3 | not recorded |" in card
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
    if name == MANIFEST:
        assert porting.import_model([bad], tmp_path / "back")
        return
    with pytest.raises(DataError, match="does not exist; get the model again"):
        porting.import_model([bad], tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.zip", "model.zip"]


def test_a_file_that_somebody_added_is_refused(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed, "a") as whole:
        whole.writestr("3d_lowres/fold_0/checkpoint_best.json", b"{}")
    with pytest.raises(DataError, match=r"checkpoint_best\.json: is not in manifest\.json"):
        porting.import_model([packed], tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def test_a_zip_without_a_manifest_is_taken_aloud(
    packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = repack(packed, tmp_path / "bare.zip", MANIFEST, None)
    porting.import_model([bare], tmp_path / "back")
    assert "has no manifest.json" in caplog.text


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
