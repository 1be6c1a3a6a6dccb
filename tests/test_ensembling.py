"""Folders of probabilities averaged: what is written, gone on with, listed and refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boxed import GEOMETRY, LABELS, REGIONS, placed
from scipy.ndimage import gaussian_filter

from nnseg import record
from nnseg.averaging import label_map
from nnseg.cli.main import main
from nnseg.commit import write_whole
from nnseg.dataset import DatasetSpec, spec_to_json
from nnseg.errors import DataError, MissingError, PartlyDoneError, StoppedError, UsageError
from nnseg.folders import (
    checkpoint_file,
    compact_files,
    predicted_spec_file,
    proof_file,
    validated_file,
    validation_folder,
)
from nnseg.fsck.examine import examine_results
from nnseg.labels import Labels
from nnseg.parallel import Room
from nnseg.probabilities import open_compact, open_npz, open_probabilities, writing, writing_compact
from nnseg.validated import Validated
from nnseg.verbs import ensembling
from nnseg.verbs.ensembling import Averaged, ensemble, foresee
from nnseg.volume import read_segmentation, write

CASES = ("brain_1", "brain_2", "brain_3")
SHAPE = (4, 8, 9)


def fill(
    folder: Path,
    seed: int,
    labels: Labels = LABELS,
    cases: tuple[str, ...] = CASES,
    weights: str | None = None,
) -> Path:
    """A folder as the validation of a fold leaves it."""
    rng = np.random.default_rng(seed)
    placement = replace(placed(), shape_resampled=SHAPE)
    for case_id in cases:
        found = gaussian_filter(rng.normal(size=(*SHAPE, labels.heads)), (1, 1, 1, 0))
        target = folder / f"{case_id}.nii.gz"
        with writing_compact(target, labels, GEOMETRY, placement, weights_sha256=weights) as take:
            take((9 * found).astype(np.float32))
    return folder


def declare(folder: Path, labels: Labels = LABELS, ending: str = ".nii.gz") -> None:
    spec = DatasetSpec(channels=("T1",), labels=labels, num_training=0, file_ending=ending)
    write_whole(predicted_spec_file(folder), record.json_text(spec_to_json(spec)).encode())


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [fill(tmp_path / "a", 1), fill(tmp_path / "b", 2)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_label_maps_are_those_of_the_weighted_mean(two: list[Path], tmp_path: Path) -> None:
    written = ensemble(two, tmp_path / "out", weights=(1, 3))
    assert list(written) == list(CASES)
    for case_id, path in written.items():
        members = [open_compact(folder / f"{case_id}.nii.gz") for folder in two]
        found, geometry = read_segmentation(path)
        np.testing.assert_array_equal(found, label_map([(members[0], 1), (members[1], 3)]))
        assert len(np.unique(found)) == 3
        assert geometry.shape == GEOMETRY.shape
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    assert report["cases"] == dict.fromkeys(CASES, "done")
    assert report["exit_code"] == 0
    assert len(report["inputs"]) == 6
    assert examine_results(tmp_path / "out").findings == ()


def test_what_is_proven_is_not_done_again(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    written = ensemble(two, out)
    before = {path: path.stat().st_mtime_ns for path in written.values()}
    written[CASES[1]].unlink()
    fill(two[0], 5, cases=CASES[2:])
    ensemble(two, out)
    now = {path: path.stat().st_mtime_ns for path in written.values()}
    assert [now[path] == before[path] for path in written.values()] == [True, False, False]
    ensemble(two, out, weights=(2, 1))
    assert all(path.stat().st_mtime_ns > now[path] for path in written.values())


def test_a_label_map_changed_by_hand_stays(two: list[Path], tmp_path: Path) -> None:
    written = ensemble(two, tmp_path / "out")
    corrected = np.ones(GEOMETRY.shape, np.uint8)
    write(written[CASES[0]], corrected, GEOMETRY)
    with pytest.raises(PartlyDoneError, match=r"case brain_1: .*was changed since it was made"):
        ensemble(two, tmp_path / "out", weights=(1, 2))
    assert read_segmentation(written[CASES[0]])[0].min() == 1
    ensemble(two, tmp_path / "out", weights=(1, 2), overwrite=True)
    assert read_segmentation(written[CASES[0]])[0].min() == 0


def test_bad_cases_are_listed_and_the_others_done(two: list[Path], tmp_path: Path) -> None:
    compact_files(two[1] / "brain_1.nii.gz")[1].unlink()
    damaged = compact_files(two[1] / "brain_3.nii.gz")[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(PartlyDoneError, match="2 of 3 cases failed") as caught:
        ensemble(two, tmp_path / "out")
    assert caught.value.exit_code == 6
    assert f"case brain_1: {two[1]} has no probabilities of it" in str(caught.value)
    assert "brain_3.probabilities.b2nd: is damaged" in str(caught.value)
    assert [name for name in names(tmp_path / "out") if name.endswith(".nii.gz")] == [
        "brain_2.nii.gz"
    ]
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    assert report["exit_code"] == 6
    assert report["cases"]["brain_2"] == "done"
    assert "damaged" in report["cases"]["brain_3"]


def test_models_of_other_labels_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    folders = [fill(tmp_path / "a", 1), fill(tmp_path / "b", 2, REGIONS)]
    with pytest.raises(DataError, match="average models of the same labels"):
        ensemble(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["npz", "nifti", "chunks", "compact"])
def test_the_mean_probabilities_are_kept_as_any_kind(
    two: list[Path], tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    written = ensemble(two, out, probabilities=kind)
    plain = ensemble(two, tmp_path / "plain")
    for case_id, path in written.items():
        found, _ = read_segmentation(path)
        np.testing.assert_array_equal(found, read_segmentation(plain[case_id])[0])
        if kind == "nifti":
            continue
        kept: Any = open_compact(path) if kind == "compact" else None
        if kind == "chunks":
            kept = open_probabilities(out / f"{case_id}_probabilities.b2nd")
        if kind == "npz":
            kept = open_npz(out / f"{case_id}.npz", LABELS, GEOMETRY)
        assert (label_map([(kept, 1.0)]) != found).mean() < 0.003
    assert examine_results(out).findings == ()
    ensemble(two, out)  # without them: what is there is no longer what would be made
    assert [name for name in names(out) if "brain_1" in name] == [
        "brain_1.nii.gz",
        "brain_1.nii.gz.proof.json",
    ]


def test_folders_of_nnunet_are_read_by_their_dataset_json(two: list[Path], tmp_path: Path) -> None:
    peer = tmp_path / "peer"
    rng = np.random.default_rng(4)
    z, y, x = placed().shape_cropped
    for case_id in CASES:
        with writing(peer / f"{case_id}.nii.gz", "npz", LABELS, GEOMETRY) as writer:
            found = LABELS.probabilities(rng.normal(size=(z, y, x, 3)).astype(np.float32))
            writer.begin(placed())(found)
    with pytest.raises(MissingError, match=r"3 cases failed(.|\n)*dataset.json does not exist"):
        ensemble([two[0], peer], tmp_path / "out")
    declare(peer)
    with pytest.raises(MissingError, match=r"brain_1.nii.gz does not exist; brain_1.npz lies on"):
        ensemble([two[0], peer], tmp_path / "out")
    for case_id in CASES:
        write(peer / f"{case_id}.nii.gz", np.zeros(GEOMETRY.shape, np.uint8), GEOMETRY)
    written = ensemble([two[0], peer], tmp_path / "out")
    assert len(written) == 3
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["channel_names"] == {
        "0": "T1"
    }


def test_label_maps_end_as_those_of_the_models(two: list[Path], tmp_path: Path) -> None:
    declare(two[1], ending=".nrrd")
    assert ensemble(two, tmp_path / "out")[CASES[0]].name == "brain_1.nrrd"


def test_what_cannot_be_meant_is_refused(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 folders and 3 weights"):
        ensemble(two, tmp_path / "out", weights=(1, 1, 1))
    with pytest.raises(DataError, match="must be over 0"):
        ensemble(two, tmp_path / "out", weights=(1, 0))
    with pytest.raises(UsageError, match="must not be an input"):
        ensemble(two, two[1])
    with pytest.raises(MissingError, match="does not exist"):
        ensemble([*two, tmp_path / "c"], tmp_path / "out")
    (tmp_path / "c").mkdir()
    with pytest.raises(MissingError, match="holds no probabilities"):
        ensemble([*two, tmp_path / "c"], tmp_path / "out")
    write(tmp_path / "c" / "brain_2.nii.gz", np.zeros(GEOMETRY.shape, np.uint8), GEOMETRY)
    with pytest.raises(UsageError, match="no ensemble of ours made it"):
        ensemble(two, tmp_path / "c")
    assert names(tmp_path / "c") == ["brain_2.nii.gz"]


def test_it_can_be_stopped_and_goes_on(two: list[Path], tmp_path: Path) -> None:
    asked = iter([False, True, True, True])
    with pytest.raises(StoppedError, match="the same command goes on"):
        ensemble(two, tmp_path / "out", workers=1, stop=lambda: next(asked))
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    assert report["cases"] == {"brain_1": "done"}
    assert len(ensemble(two, tmp_path / "out")) == 3


def test_a_proof_names_files_beside_it_only(two: list[Path], tmp_path: Path) -> None:
    path = proof_file(ensemble(two, tmp_path / "out")[CASES[0]])
    proof = record.load_sealed(Averaged, path)
    with pytest.raises(DataError, match="is no name of a file"):
        replace(proof, outputs={"../x": "0"})


def test_the_command_averages_and_says_how_many(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(folder) for folder in two]
    out = str(tmp_path / "out")
    argv = ["ensemble", "-i", *folders, "-o", out, "--weights", "2,1", "-np", "1", "-q"]
    assert main(argv) == 0
    assert capsys.readouterr().out == f"3 segmentations in {out}\n"
    compact_files(two[0] / "brain_1.nii.gz")[0].unlink()
    assert main(argv) == 6
    assert "1 of 3 cases failed" in capsys.readouterr().err
    assert not (tmp_path / "out" / "brain_1.nii.gz").exists()  # it would be of what is gone


def nnunets(folder: Path, seed: int) -> Path:
    """A folder as nnU-Net's --save_probabilities leaves it."""
    rng = np.random.default_rng(seed)
    z, y, x = placed().shape_cropped
    for case_id in CASES:
        with writing(folder / f"{case_id}.nii.gz", "npz", LABELS, GEOMETRY) as writer:
            found = LABELS.probabilities(rng.normal(size=(z, y, x, 3)).astype(np.float32))
            writer.begin(placed())(found)
        write(folder / f"{case_id}.nii.gz", np.zeros(GEOMETRY.shape, np.uint8), GEOMETRY)
    declare(folder)
    return folder


def test_labels_are_compared_without_unpacking_a_case(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, other = nnunets(tmp_path / "peer", 3), nnunets(tmp_path / "other", 4)
    declare(other, Labels(labels={"background": 0, "a": 1, "b": 2}))
    for name in ("open_npz", "open_compact"):
        monkeypatch.setattr(f"nnseg.verbs.probability_folders.{name}", None)
    with pytest.raises(DataError, match="average models of the same labels"):
        ensemble([two[0], peer, other], tmp_path / "out")


def test_one_unreadable_npz_fails_its_case_alone(tmp_path: Path) -> None:
    folders = [nnunets(tmp_path / "a", 1), nnunets(tmp_path / "b", 2)]
    bad = bytearray((folders[1] / "brain_2.npz").read_bytes())
    bad[6] |= 1
    bad[bad.rfind(b"PK\1\2") + 8] |= 1  # says that it is encrypted
    (folders[1] / "brain_2.npz").write_bytes(bad)
    with pytest.raises(PartlyDoneError, match="1 of 3 cases failed"):
        ensemble(folders, tmp_path / "out")
    maps = [name for name in names(tmp_path / "out") if name.endswith(".nii.gz")]
    assert maps == ["brain_1.nii.gz", "brain_3.nii.gz"]


def test_cases_wait_for_memory_where_all_of_an_npz_must_be_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [nnunets(tmp_path / "a", 1), nnunets(tmp_path / "b", 2)]
    rooms: list[Room] = []

    def small_room(needs: dict[str, int]) -> Room:
        rooms.append(Room(total=1, needs=needs))
        return rooms[-1]

    monkeypatch.setattr(ensembling, "room_for", small_room)
    running, most = 0, 0
    average = ensembling._average

    def counted(*args: Any) -> Averaged:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return average(*args)
        finally:
            running -= 1

    monkeypatch.setattr(ensembling, "_average", counted)
    ensemble(folders, tmp_path / "out", workers=3)
    assert most == 1
    in_memory = 2 * 4 * LABELS.heads * int(np.prod(GEOMETRY.shape))
    ((_, needs),) = [(room.total, room.needs) for room in rooms]
    assert list(needs) == list(CASES)
    assert all(in_memory < need < 5 * in_memory for need in needs.values())


def validated(root: Path, of_case: str | None, of_folder: str, final: str) -> Path:
    """A fold whose final weights may be others than its probabilities are of."""
    fold = root / "fold_0"
    folder = fill(validation_folder(fold), 3, weights=of_case)
    record.save(Validated(weights_sha256=of_folder), validated_file(fold))
    checkpoint_file(fold, "final").write_text(json.dumps({"weights_sha256": final}))
    return folder


def test_probabilities_of_weights_that_a_fold_has_no_more_are_refused(
    two: list[Path], tmp_path: Path
) -> None:
    fine = validated(tmp_path / "1", "new", "new", "new")
    assert len(ensemble([fine, two[0]], tmp_path / "out")) == 3
    for number, told in enumerate([("old", "old", "new"), (None, "old", "new")]):
        stale = validated(tmp_path / f"stale{number}", *told)
        with pytest.raises(DataError, match=r"brain_3 of 3 are of weights that the fold has no m"):
            ensemble([stale, two[0]], tmp_path / "refused")
        assert not (tmp_path / "refused").exists()
    best = validated(tmp_path / "2", "best", "best", "new")
    checkpoint_file(best.parent, "best").write_text(json.dumps({"weights_sha256": "best"}))
    assert len(ensemble([best, two[0]], tmp_path / "of_best")) == 3


def test_what_would_be_done_is_told_and_nothing_written(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    foreseen = foresee(two, out)
    assert foreseen.states == dict.fromkeys(CASES, "to do")
    assert foreseen.memory > 4 * LABELS.heads * int(np.prod(GEOMETRY.shape))
    assert not out.exists()
    written = ensemble(two, out)
    written[CASES[0]].unlink()
    write(written[CASES[1]], np.ones(GEOMETRY.shape, np.uint8), GEOMETRY)
    before = names(out)
    foreseen = foresee(two, out)
    assert foreseen.states[CASES[0]] == "to do"
    assert "was changed since it was made" in foreseen.states[CASES[1]]
    assert foreseen.states[CASES[2]] == "done"
    assert list(foreseen.failed) == [CASES[1]]
    assert "case brain_2: " in str(foreseen)
    assert foresee(two, out, overwrite=True).states == dict.fromkeys(CASES, "to do")
    assert names(out) == before


def test_the_command_tells_what_it_would_do_and_did_as_json(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = ["ensemble", "-i", *map(str, two), "-o", str(out), "--json"]
    assert main([*argv, "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["cases"], told["written"]) == (dict.fromkeys(CASES, "to do"), False)
    assert not out.exists()
    assert main(argv) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["cases"], told["written"]) == (dict.fromkeys(CASES, "done"), True)
    assert told["proofs"]["brain_1"]["label_map"] == "brain_1.nii.gz"
    compact_files(two[0] / "brain_1.nii.gz")[0].unlink()
    assert main([*argv, "--dry-run"]) == 6
    assert "b2nd does not exist" in json.loads(capsys.readouterr().out)["cases"]["brain_1"]
    assert (out / "brain_1.nii.gz").exists()
    assert main(argv) == 6
    told = json.loads(capsys.readouterr().out)
    assert told["cases"]["brain_2"] == "done"
    assert "b2nd does not exist" in told["cases"]["brain_1"]
