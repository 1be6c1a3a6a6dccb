"""What is proven of results, what has changed, and what cannot be told."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import CPU, FLAT

from nnseg import cli, pipeline, record
from nnseg.commit import sha256
from nnseg.dataset import read_spec
from nnseg.errors import DataError, MissingError
from nnseg.folders import Folders, applied_file, predicted_spec_file, proof_file
from nnseg.postprocess import KeepLargest, Postprocessing
from nnseg.predicted_folder import Wanted
from nnseg.predictor import load
from nnseg.proof import Proof
from nnseg.verbs import verifying
from nnseg.verbs.applying import Applied, apply_postprocessing
from nnseg.verbs.ensembling import Averaged, ensemble
from nnseg.verbs.predicting import predict
from nnseg.verbs.verifying import Verified, describe, raise_for_outcomes, verify
from nnseg.volume import read_segmentation, write

Outcomes = dict[str, set[str]]

FLIPS = 12  # bytes of a file, spread over all of it
FIND_CHECKPOINT = "results/*/*/*/*/checkpoint_final.json"


@pytest.fixture(scope="module")
def made(flat: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a model, three images and what was predicted of them; tests copy it."""
    root = tmp_path_factory.mktemp("made") / "root"
    shutil.copytree(flat.results, root / "results")
    shutil.copytree(flat.raw_folder(FLAT) / "imagesTs", root / "images")
    model = Folders.of_root(root).fold(FLAT, "nnseg", "2d", "0", 0)
    wanted = Wanted(maps=("entropy",), probabilities="chunks")
    predict(load(model, **CPU), root / "images", root / "out", wanted=wanted)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "root")
    return tmp_path / "root"


def outcomes(found: Verified) -> Outcomes:
    told: Outcomes = {}
    for check in found.checks:
        told.setdefault(check.what, set()).add(check.outcome)
    return told


def first_map(root: Path) -> Path:
    return sorted((root / "out").glob("*.proof.json"))[0].with_suffix("").with_suffix("")


def one(root: Path, *, images: bool = True) -> Verified:
    folders = Folders.of_root(root)
    (found,) = verify([first_map(root)], folders, images=root / "images" if images else None)
    return found


def test_a_result_is_proven_with_its_images_its_model_and_its_plan(root: Path) -> None:
    found = one(root)
    assert outcomes(found) == {
        "record": {"proven"},
        "output": {"proven"},
        "input": {"proven"},
        "model": {"proven"},
        "plan": {"proven"},
    }
    assert found.outcome == "proven"
    assert "2d of Dataset001_Flat (1 networks, cpu, fp32)" in str(found.made_by)
    names = {check.name for check in found.checks if check.what == "output"}
    assert len(names) == 4  # the map, its entropy, its probabilities and their record
    raise_for_outcomes([found])


def test_images_are_found_where_the_run_read_them(made: Path, flat: Folders) -> None:
    (found,) = verify([first_map(made)], Folders.of_root(made))
    assert outcomes(found)["input"] == {"proven"}


def change_map(root: Path) -> None:
    path = first_map(root)
    array, geometry = read_segmentation(path)
    write(path, np.zeros_like(array), geometry)


def change_image(root: Path) -> None:
    for path in (root / "images").iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"x")


def change_weights(root: Path) -> None:
    for path in root.glob("results/*/*/*/*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")


def change_record(root: Path) -> None:
    path = proof_file(first_map(root))
    path.write_text(path.read_text().replace('"mirror": true', '"mirror": false'))


def lose_map(root: Path) -> None:
    first_map(root).unlink()


def lose_entropy(root: Path) -> None:
    first_map(root).with_name(first_map(root).name.replace(".nii", "_entropy.nii")).unlink()


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (change_map, "output"),
        (change_image, "input"),
        (change_weights, "model"),
        (change_record, "record"),
        (lose_map, "output"),
        (lose_entropy, "output"),
    ],
)
def test_what_changed_is_named(root: Path, harm: Callable[[Path], None], what: str) -> None:
    harm(root)
    (found,) = (f for f in everything(root) if f.file == str(first_map(root)))
    assert next(c.what for c in found.checks if c.outcome == "changed") == what
    assert found.outcome == "changed"
    with pytest.raises(DataError, match="predict again, or restore it"):
        raise_for_outcomes([found])


def everything(root: Path) -> tuple[Verified, ...]:
    return verify([root / "out"], Folders.of_root(root), images=root / "images")


def test_what_is_not_here_cannot_be_told_and_is_no_fault(root: Path) -> None:
    shutil.rmtree(root / "results")
    shutil.rmtree(root / "images")
    found = one(root)
    told = outcomes(found)
    assert told["input"] == told["model"] == told["plan"] == {"unknown"}
    assert found.outcome == "proven"


def test_a_model_elsewhere_is_found_where_one_says(root: Path) -> None:
    (root / "results").rename(root / "elsewhere")
    folders = Folders.of_root(root)
    model = root / "elsewhere" / FLAT / "nnseg" / "2d"
    (found,) = verify([first_map(root)], folders, models=[model])
    assert outcomes(found)["model"] == {"proven"}


def test_a_folder_is_verified_result_by_result_and_strangers_are_told_apart(root: Path) -> None:
    stranger = root / "out" / "zz.nii.gz"
    shutil.copy(first_map(root), stranger)
    found = everything(root)
    assert [f.outcome for f in found] == ["proven", "proven", "proven", "unknown"]
    assert found[-1].file == str(stranger)
    with pytest.raises(MissingError, match=r"1 of 4 results have no proof, such as .*zz\.nii\.gz"):
        raise_for_outcomes(found)
    assert "zz.nii.gz: unknown" in describe(found)


def test_a_file_beside_a_label_map_stands_for_it(root: Path) -> None:
    names = [proof_file(first_map(root)).name, *record.load_sealed(
        Proof, proof_file(first_map(root))
    ).outputs]  # fmt: skip
    paths = [root / "out" / name for name in names]
    (found,) = verify(paths, Folders.of_root(root), images=root / "images")
    assert found.file == str(first_map(root))


def test_probabilities_without_a_label_map_are_held_against_their_record(root: Path) -> None:
    alone = root / "alone"
    alone.mkdir()
    for path in (root / "out").glob(f"{first_map(root).name.removesuffix('.nii.gz')}_prob*"):
        shutil.copy(path, alone)
    folders = Folders.of_root(root)
    (found,) = verify([alone], folders)
    assert found.outcome == "proven"
    array = next(alone.glob("*.b2nd"))
    array.write_bytes(array.read_bytes()[:-1] + b"x")
    (found,) = verify([array], folders)
    assert found.outcome == "changed"


def test_the_proof_of_another_result_proves_nothing(root: Path) -> None:
    first, second = sorted((root / "out").glob("*.proof.json"))[:2]
    second.write_bytes(first.read_bytes())
    (found,) = verify([second], Folders.of_root(root))
    assert found.outcome == "changed"
    assert "is of another result" in found.checks[0].told


def test_what_is_not_there_is_missing(root: Path) -> None:
    folders = Folders.of_root(root)
    with pytest.raises(MissingError, match="does not exist; name a result"):
        verify([root / "out" / "nothing.nii.gz"], folders)
    (root / "empty").mkdir()
    with pytest.raises(MissingError, match="holds no result"):
        verify([root / "empty"], folders)


def test_the_command_has_an_exit_code_for_each_outcome(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", str(root / "out"), "--root", str(root), "-i", str(root / "images")]
    assert cli.main(command) == 0
    assert "proven   model Dataset001_Flat nnseg/2d" in capsys.readouterr().out
    assert cli.main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [result["outcome"] for result in told["results"]] == ["proven"] * 3
    shutil.copy(first_map(root), root / "out" / "zz.nii.gz")
    assert cli.main(command) == 5
    change_map(root)
    assert cli.main(command) == 3


@pytest.fixture
def averaged(root: Path) -> Path:
    """A folder of what `ensemble` made of the same probabilities twice."""
    shutil.copytree(root / "out", root / "other")
    ensemble([root / "out", root / "other"], root / "mean", weights=(1, 2), probabilities="chunks")
    return root / "mean"


def test_an_average_is_proven_with_what_it_was_made_of(root: Path, averaged: Path) -> None:
    found = verify([averaged], Folders.of_root(root))
    assert len(found) == 3
    for one in found:
        assert outcomes(one) == {"record": {"proven"}, "output": {"proven"}, "input": {"proven"}}
        assert len([check for check in one.checks if check.what == "output"]) == 3
        assert len([check for check in one.checks if check.what == "input"]) == 2
        assert "average of 2 models, weights 1, 2" in str(one.made_by)
    raise_for_outcomes(found)


def test_of_an_average_is_told_what_changed_and_what_is_gone(root: Path, averaged: Path) -> None:
    shutil.rmtree(root / "other")
    first, second, third = (Path(one.file) for one in verify([averaged], Folders.of_root(root)))
    found = verify([first], Folders.of_root(root))
    assert outcomes(found[0])["input"] == {"proven", "unknown"}
    raise_for_outcomes(found)
    case_id = second.name.removesuffix("".join(second.suffixes))
    array = root / "out" / f"{case_id}_probabilities.b2nd"
    array.write_bytes(array.read_bytes()[:-1] + b"x")
    damaged = proof_file(third)
    damaged.write_text(damaged.read_text().replace('"weights"', '"Weights"'))
    first.write_bytes(b"another")
    changed = {Path(one.file): one for one in verify([averaged], Folders.of_root(root))}
    assert outcomes(changed[first])["output"] == {"proven", "changed"}
    assert outcomes(changed[second])["input"] == {"changed", "unknown"}
    assert outcomes(changed[third]) == {"record": {"changed"}}


@pytest.fixture
def postprocessed(root: Path) -> Path:
    spec = read_spec(predicted_spec_file(root / "out"))
    label = next(iter(spec.labels.foreground))
    rules = Postprocessing(rules=(KeepLargest(labels=(label,)),))
    apply_postprocessing(root / "out", root / "post", rules, spec)
    return root / "post"


def test_what_was_postprocessed_is_proven_by_its_own_record(
    root: Path, postprocessed: Path
) -> None:
    found = verify([postprocessed], Folders.of_root(root))
    assert len(found) == 3
    for one in found:
        assert outcomes(one) == {"record": {"proven"}, "output": {"proven"}, "input": {"proven"}}
        assert str(one.made_by).startswith("postprocessing: ")
    first, second, third = (Path(one.file) for one in found)
    (root / "out" / first.name).unlink()
    second.unlink()
    record_file = applied_file(third)
    record_file.write_text(record_file.read_text().replace('"voxels"', '"Voxels"'))
    changed = {Path(one.file): one for one in verify([postprocessed], Folders.of_root(root))}
    assert outcomes(changed[first])["input"] == {"unknown"}
    assert changed[first].outcome == "proven"
    assert outcomes(changed[second])["output"] == {"changed"}
    assert outcomes(changed[third]) == {"record": {"changed"}}
    (by_record,) = verify([applied_file(first)], Folders.of_root(root))
    assert by_record.file == str(first)


def flipped(data: bytes, place: int) -> bytes:
    """The bytes with one of them changed."""
    return data[:place] + bytes([data[place] ^ 0x20]) + data[place + 1 :]


@pytest.mark.fault("S14", "G6")
@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("images/*", "input"),
        ("results/*/*/*/*/checkpoint_final-*.safetensors", "model"),
        (FIND_CHECKPOINT, "plan"),
        ("out/*.proof.json", "record"),
        ("out/[!.]*[0-9].nii.gz", "output"),
        ("out/*_entropy.nii.gz", "output"),
        ("out/*.b2nd", "output"),
    ],
)
def test_one_flipped_byte_of_whatever_a_result_was_made_of_is_found(
    root: Path, pattern: str, what: str
) -> None:
    path = next(iter(sorted(root.glob(pattern))))
    whole = path.read_bytes()
    missed = []
    for place in np.linspace(0, len(whole) - 1, FLIPS).astype(int).tolist():
        path.write_bytes(flipped(whole, place))
        found = one(root)
        if found.outcome != "changed" or "changed" not in outcomes(found)[what]:
            missed.append(place)
    assert missed == []
    path.write_bytes(whole)
    assert one(root).outcome == "proven"


@pytest.mark.fault("S14")
def test_a_damaged_record_of_a_model_is_no_reason_to_believe_a_result(root: Path) -> None:
    (checkpoint,) = root.glob(FIND_CHECKPOINT)
    checkpoint.write_text(checkpoint.read_text().replace('"weights_sha256"', '"weights_SHA256"'))
    found = one(root)
    assert outcomes(found)["model"] == {"proven"}
    assert outcomes(found)["plan"] == {"changed"}
    assert found.outcome == "changed"


def average(folder: Path, name: str = "c.nii.gz", **fields: Any) -> Path:
    """A label map of an average, of no image's content, and its proof."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(b"a label map")
    proof: dict[str, Any] = {
        "case_id": "c",
        "label_map": name,
        "version": "0",
        "weights": (1.0,),
        "probabilities": None,
        "members": ("m",),
        "inputs": {},
        "outputs": {name: sha256(path)},
    }
    seal(proof_file(path), record.to_json(Averaged(**proof)) | fields)
    return path


def seal(path: Path, content: dict[str, Any]) -> None:
    """Write a record with the right hash of itself, also one that would not be made."""
    rest = {key: value for key, value in content.items() if key != "record_sha256"}
    digest = hashlib.sha256(json.dumps(rest).encode()).hexdigest()
    path.write_text(record.json_text(rest | {"record_sha256": digest}))


def verified(*paths: Path) -> tuple[Verified, ...]:
    return verify(paths, Folders.of_root(paths[0].parent))


def as_folder(path: Path) -> None:
    path.mkdir()


def as_pipe(path: Path) -> None:
    os.mkfifo(path)


def as_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.fault("S14", "S05")
@pytest.mark.parametrize("harm", [as_folder, as_pipe, as_device])
def test_what_is_no_file_is_not_read_and_has_changed(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    path = average(tmp_path / "mean")
    assert [one.outcome for one in verified(path)] == ["proven"]
    path.unlink()
    harm(path)
    for named in (path, path.parent):
        (found,) = verified(named)
        assert outcomes(found) == {"record": {"proven"}, "output": {"changed"}}
        assert "is no file" in {check.told for check in found.checks}


def test_an_output_that_cannot_be_read_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = average(tmp_path / "mean")

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("nnseg.verbs.claims.sha256", refuse)
    (found,) = verified(path)
    assert outcomes(found)["output"] == {"changed"}
    assert "cannot be read (Permission denied)" in describe([found])


@pytest.mark.fault("S05")
def test_an_input_that_never_ends_is_not_read(tmp_path: Path) -> None:
    (found,) = verified(average(tmp_path / "mean", inputs={"/dev/zero": "0" * 64}))
    assert outcomes(found)["input"] == {"changed"}


def test_a_proof_has_to_name_its_own_label_map(tmp_path: Path) -> None:
    (found,) = verified(average(tmp_path / "mean", outputs={}))
    assert found.outcome == "changed"
    assert "has no hash of its label map" in describe([found])


@pytest.mark.parametrize("name", ["../x", "", "a\0b"])
def test_a_bad_name_in_one_record_hides_nothing_of_the_others(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "mean"
    applied = folder / "a.nii.gz"
    average(folder, "b.nii.gz", outputs={name: "0" * 64})
    average(folder)
    applied.write_bytes(b"a label map")
    rules = Postprocessing(rules=())
    fields: dict[str, Any] = {"made_by": "x", "postprocessing": rules, "voxels": 0, "inputs": {}}
    made = Applied(label_map=applied.name, outputs={}, **fields)
    seal(applied_file(applied), record.to_json(made) | {"outputs": {name: "0" * 64}})
    found = {Path(one.file).name: one.outcome for one in verified(folder)}
    assert found == {"a.nii.gz": "changed", "b.nii.gz": "changed", "c.nii.gz": "proven"}


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_an_input_of_a_name_that_no_file_can_have_cannot_be_told(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "mean"
    average(folder, inputs={name: "0" * 64})
    average(folder, "d.nii.gz")
    found = verified(folder)
    assert [one.outcome for one in found] == ["proven", "proven"]
    assert outcomes(found[0])["input"] == {"unknown"}


def test_an_image_of_a_name_that_no_file_can_have_cannot_be_told(root: Path) -> None:
    stored = proof_file(first_map(root))
    seal(stored, json.loads(stored.read_text()) | {"inputs": {"x" * 5000: "0" * 64}})
    assert outcomes(one(root))["input"] == {"unknown"}
    assert [found.outcome for found in everything(root)] == ["proven"] * 3


def test_a_bad_checkpoint_hides_nothing_of_the_others(root: Path) -> None:
    (checkpoint,) = root.glob(FIND_CHECKPOINT)
    for name in ("../x", ""):
        seal(checkpoint, json.loads(checkpoint.read_text()) | {"weights_file": name})
        (found,) = verify([checkpoint], Folders.of_root(root))
        assert outcomes(found) == {"record": {"changed"}}
        assert outcomes(one(root))["plan"] == {"changed"}


def test_an_error_of_the_system_is_told_of_the_result_that_it_was_met_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    average(tmp_path / "mean")
    average(tmp_path / "mean", "d.nii.gz")
    whole = verifying._verify_proven

    def fail(path: Path, *rest: Any) -> Verified:
        if path.name == "c.nii.gz":
            raise OSError(5, "Input/output error", str(path))
        return whole(path, *rest)

    monkeypatch.setattr(verifying, "_verify_proven", fail)
    found = verified(tmp_path / "mean")
    assert [one.outcome for one in found] == ["changed", "proven"]
    assert "Input/output error" in describe(found)


def test_a_folder_has_all_that_records_say_was_written_there(root: Path) -> None:
    scores = root / "out" / "summary.json"
    labels = read_spec(predicted_spec_file(root / "out")).labels
    pipeline.evaluate(root / "out", root / "out", labels, ".nii.gz")
    assert {found.outcome for found in everything(root)} == {"proven"}
    assert str(scores) in {found.file for found in everything(root)}
    scores.write_text(scores.read_text() + " ")
    assert [f.file for f in everything(root) if f.outcome == "changed"] == [str(scores)]
    scores.unlink()
    assert [f.file for f in everything(root) if f.outcome == "changed"] == [str(scores)]
    (found,) = verify([scores], Folders.of_root(root))
    assert outcomes(found)["output"] == {"changed"}


def test_a_result_that_is_gone_with_its_proof_is_told_of_its_folder(root: Path) -> None:
    path = first_map(root)
    path.unlink()
    proof_file(path).unlink()
    assert path.name in {Path(f.file).name for f in everything(root) if f.outcome == "changed"}


def test_a_damaged_record_of_a_run_is_told_of_its_folder(root: Path) -> None:
    path = root / "out" / "run.json"
    path.write_text(path.read_text() + " ")
    assert str(path) in {found.file for found in everything(root) if found.outcome == "changed"}


def test_nothing_that_a_proof_says_steers_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;title\x07\x9b2J"
    path = average(tmp_path / "mean", version=evil, inputs={f"/no/{evil}": "0" * 64})
    assert cli.main(["verify", str(path), "--root", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "\\x1b]0;title\\x07\\x9b2J" in told
    assert all(line.isprintable() for line in told.splitlines())
    assert cli.main(["verify", str(path), "--root", str(tmp_path), "--json"]) == 0
    told = capsys.readouterr().out
    assert all(line.isprintable() for line in told.splitlines())
    assert evil in json.loads(told)["results"][0]["made_by"]
