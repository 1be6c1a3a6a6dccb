"""What a validation leaves beside its scores, on 2D phantoms and a tiny network."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import CPU, FLAT

from nnseg import cli, pipeline, record
from nnseg.averaging import label_map
from nnseg.commit import sha256
from nnseg.errors import DataError, StoppedError
from nnseg.folders import (
    Folders,
    checkpoint_file,
    compact_files,
    compact_records,
    confidence_file,
    summary_file,
    validated_file,
    validated_record,
    validation_folder,
)
from nnseg.inference import load_model
from nnseg.probabilities import open_compact
from nnseg.validated import Validated, is_validated, learnt_by, load_validated
from nnseg.verbs import validating
from nnseg.volume import read_image, read_segmentation


@pytest.fixture
def copied(flat: Folders, tmp_path: Path) -> Folders:
    shutil.copytree(flat.raw.parent, tmp_path / "copy")
    return Folders.of_root(tmp_path / "copy")


def validation_of(folders: Folders) -> Path:
    return validation_folder(folders.fold(FLAT, "nnseg", "2d", "0", 0))


def label_maps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith((".nii.gz", ".png")))


def test_each_validation_case_has_the_probabilities_that_its_labels_follow_from(
    flat: Folders,
) -> None:
    folder = validation_of(flat)
    fold = folder.parent
    model = load_model((fold,), **CPU, alone=True)  # type: ignore[arg-type]
    assert label_maps(folder)
    for path in label_maps(folder):
        opened = open_compact(path)
        segmentation, geometry = read_segmentation(path)
        assert opened.stored.geometry == geometry
        assert opened.stored.labels == model.plan.labels
        case_id = path.name.removesuffix(model.spec.label_ending)
        ending = model.plan.file_ending
        volume = read_image([flat.images(FLAT) / f"{case_id}_0000{ending}"], 1)
        seen, placement = model.prepare(volume.image, geometry.spacing)
        assert opened.stored.placement == placement
        logits = np.concatenate(list(model.logits(seen)))
        likely = model.plan.labels.probabilities(logits)
        np.testing.assert_allclose(opened.planes(0, len(logits)), likely, rtol=0, atol=3e-3)
        assert (label_map([(opened, 1.0)]) != segmentation).mean() < 1e-3


@pytest.mark.fault("G7")
def test_validating_again_gives_the_same_bytes(copied: Folders) -> None:
    folder = validation_of(copied)
    files = [file for path in label_maps(folder) for file in compact_files(path)]
    before = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    pipeline.validate(copied, FLAT, "2d", "0", **CPU)
    assert [path.read_bytes() for path in files] == before


def test_what_another_validation_leaves_is_proven_by_its_own_record(copied: Folders) -> None:
    fold, root = validation_of(copied).parent, str(copied.raw.parent)
    files = [validated_record(fold / "validation"), confidence_file(fold / "validation")]
    before = [path.read_bytes() for path in files]
    pipeline.validate(copied, FLAT, "2d", "0", checkpoint="best", **CPU)
    assert [path.read_bytes() for path in files] != before
    assert cli.main(["verify", str(fold), "--root", root]) == 0
    assert cli.main(["fsck", FLAT, "--root", root]) == 0
    files[1].write_bytes(before[1] + b" ")
    assert cli.main(["verify", str(fold), "--root", root]) == 3
    assert cli.main(["fsck", FLAT, "--root", root]) == 3


def test_probabilities_of_before_do_not_outlive_the_start_of_a_validation(copied: Folders) -> None:
    folder = validation_of(copied)
    assert compact_records(folder)
    assert is_validated(folder.parent)
    with pytest.raises(StoppedError, match="stopped in the validation"):
        pipeline.validate(copied, FLAT, "2d", "0", **CPU, stop=lambda: True)
    assert compact_records(folder) == ()
    assert not is_validated(folder.parent)


def splits_of(folders: Folders) -> list[dict[str, list[str]]]:
    found: list[dict[str, list[str]]] = json.loads(folders.splits_file(FLAT).read_text())
    return found


def test_what_a_fold_learnt_and_what_it_predicted_is_kept(flat: Folders) -> None:
    folder = validation_of(flat)
    fold, split = folder.parent, splits_of(flat)[0]
    run = json.loads(checkpoint_file(fold, "latest").read_text())
    assert run["train_cases"] == split["train"]
    final = json.loads(checkpoint_file(fold, "final").read_text())
    proof = load_validated(validated_file(fold))
    assert proof.record_sha256
    assert replace(proof, record_sha256="") == Validated(
        weights_sha256=final["weights_sha256"],
        cases=tuple(split["val"]),
        trained_on=tuple(split["train"]),
        summary_sha256=sha256(summary_file(folder)),
        maps_sha256={f"{case}.nii.gz": sha256(folder / f"{case}.nii.gz") for case in split["val"]},
    )
    assert learnt_by(fold).cases == set(split["train"])


def test_a_case_that_the_network_was_trained_on_does_not_validate_it(copied: Folders) -> None:
    folder, splits = validation_of(copied), splits_of(copied)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".json"}
    moved = splits[0]["train"].pop()
    splits[0]["val"].append(moved)
    copied.user_splits_file(FLAT).write_text(json.dumps(splits))
    with pytest.raises(DataError) as caught:
        pipeline.validate(copied, FLAT, "2d", "0", **CPU)
    said = (
        f"{folder.parent}: its network was trained on case {moved}, so that its scores would mean"
    )
    assert str(caught.value).startswith(said)
    assert f"`nnseg train {FLAT} 2d 0 -p nnseg --overwrite`" in str(caught.value)
    for name, content in before.items():
        assert (folder / name).read_bytes() == content or name == "run_validate.json"
    assert is_validated(folder.parent)


def test_a_new_case_joins_a_validation_and_trains_nobody(copied: Folders) -> None:
    folder, splits = validation_of(copied), splits_of(copied)
    gone = splits[0]["val"].pop()
    copied.user_splits_file(FLAT).write_text(json.dumps(splits))
    pipeline.validate(copied, FLAT, "2d", "0", **CPU)
    splits[0]["val"].append(gone)
    copied.user_splits_file(FLAT).write_text(json.dumps(splits))
    summary = pipeline.validate(copied, FLAT, "2d", "0", **CPU)
    assert gone in {case.case_id for case in summary.cases}
    assert is_validated(folder.parent)


def older(fold: Path) -> None:
    """Leave the proof as older versions wrote it."""
    proof = record.load(Validated, validated_file(fold))
    validated_file(fold).write_text(json.dumps({"weights_sha256": proof.weights_sha256}))


def as_it_is(fold: Path) -> None:
    pass


@pytest.mark.parametrize("proof", [as_it_is, older])
@pytest.mark.parametrize("killed", [False, True])
def test_cases_that_are_not_held_out_any_more_go_and_files_of_others_stay(
    copied: Folders, proof: Callable[[Path], None], killed: bool
) -> None:
    folder, splits = validation_of(copied), splits_of(copied)
    gone, splits[0]["val"] = splits[0]["val"][0], splits[0]["val"][1:]
    path = next(path for path in label_maps(folder) if path.name.startswith(f"{gone}."))
    mine = path.with_name(f"mine{path.name.removeprefix(gone)}")
    shutil.copy(path, mine)
    proof(folder.parent)
    assert is_validated(folder.parent)
    if killed:
        with pytest.raises(StoppedError):
            pipeline.validate(copied, FLAT, "2d", "0", **CPU, stop=lambda: True)
        assert path.is_file()
    copied.user_splits_file(FLAT).write_text(json.dumps(splits))
    pipeline.validate(copied, FLAT, "2d", "0", **CPU)
    assert mine.is_file()
    assert not path.exists()
    assert not any(file.exists() for file in compact_files(path))
    assert record.load(Validated, validated_file(folder.parent)).cases == tuple(splits[0]["val"])
    assert len(label_maps(folder)) == len(splits[0]["val"]) + 1


def test_scores_that_were_written_over_are_those_of_nobody(copied: Folders) -> None:
    folder = validation_of(copied)
    summary_file(folder).write_text(summary_file(folder).read_text() + " ")
    assert not is_validated(folder.parent)
    older(folder.parent)  # which does not know better
    assert is_validated(folder.parent)


def test_a_model_of_which_nothing_is_known_is_validated_aloud(
    copied: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    fold = validation_of(copied).parent
    for kind in ("latest", "previous"):
        checkpoint_file(fold, kind).unlink(missing_ok=True)
    assert learnt_by(fold).cases == set(splits_of(copied)[0]["train"])  # the proof has them, too
    with pytest.raises(StoppedError):
        pipeline.validate(copied, FLAT, "2d", "0", **CPU, stop=lambda: True)
    assert learnt_by(fold).cases == set(splits_of(copied)[0]["train"])
    validated_file(fold).unlink()
    with caplog.at_level(logging.WARNING):
        pipeline.validate(copied, FLAT, "2d", "0", **CPU)
    assert "no record says which cases its network was trained on" in caplog.text
    assert record.load(Validated, validated_file(fold)).trained_on is None


def test_a_kill_before_old_cases_are_removed_forgets_none_of_them(
    copied: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, splits = validation_of(copied), splits_of(copied)
    gone, splits[0]["val"] = splits[0]["val"][0], splits[0]["val"][1:]
    copied.user_splits_file(FLAT).write_text(json.dumps(splits))

    def kill(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(validating, "remove", kill)
        with pytest.raises(KeyboardInterrupt):
            pipeline.validate(copied, FLAT, "2d", "0", **CPU)
    assert not is_validated(folder.parent)
    pipeline.validate(copied, FLAT, "2d", "0", **CPU)
    assert not any(path.name.startswith(f"{gone}.") for path in folder.iterdir())
