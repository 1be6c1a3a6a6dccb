"""A second run makes what has changed, and nothing else; two runs at once do not mix."""

import json
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import SimpleITK
from injection import PATIENCE, Fault, Injector, Warm
from oracle import Tree, differences, hashes_in, records_in, tree_of
from roots import DATASET, PLAN, PREPROCESS, Right, copy_root, do, own_raw


def times(root: Path) -> dict[str, int]:
    """When each file of a preprocessed case was written, in ns."""
    return {
        path.name: path.stat().st_mtime_ns for path in root.glob("preprocessed/*/nnseg/2d/2d_*")
    }


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    """The cases, as the first parts of names, whose files were written anew, came or went."""
    names = before.keys() | after.keys()
    return {name.split(".")[0] for name in names if before.get(name) != after.get(name)}


def change_image(raw: Path, case: str) -> None:
    """Make the image of a case another one on the same grid."""
    path = raw / "imagesTr" / f"{case}_0000.nii.gz"
    image = SimpleITK.ReadImage(str(path))
    SimpleITK.WriteImage(image + 7, str(path))


def add_case(raw: Path) -> None:
    """Add a case, 2d_new, that is a copy of another."""
    for folder, end in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        shutil.copy(raw / folder / f"2d_000{end}", raw / folder / f"2d_new{end}")
    spec = json.loads((raw / "dataset.json").read_text())
    spec["numTraining"] += 1
    (raw / "dataset.json").write_text(json.dumps(spec))


def fresh(warm: Warm, root: Path, new: Path) -> Tree:
    """What preprocessing gives on the same raw data and plans where nothing was preprocessed."""
    copy_root(root, new)
    shutil.rmtree(new / "preprocessed" / DATASET / "nnseg")
    return do(warm, new, PREPROCESS)


@pytest.mark.fault("R14")
def test_a_replaced_image_has_its_own_case_made_anew_and_no_other(
    warm: Warm, right_of: Callable[[str], Right], tmp_path: Path
) -> None:
    root = copy_root(right_of("2d").done, tmp_path / "root")
    before = times(root)
    change_image(own_raw(root), "2d_003")
    tree = do(warm, root, PREPROCESS)
    assert changed(before, times(root)) == {"2d_003"}
    assert tree == fresh(warm, root, tmp_path / "fresh")


def test_a_second_run_writes_no_file_of_a_case_whatever_the_times_of_the_raw_files(
    warm: Warm, right_of: Callable[[str], Right], tmp_path: Path
) -> None:
    right = right_of("2d")
    root = copy_root(right.done, tmp_path / "root")
    for path in own_raw(root).rglob("*.nii.gz"):
        path.touch()
    before = times(root)
    assert do(warm, root, PREPROCESS) == right.tree
    assert times(root) == before


def test_a_replaced_label_map_and_a_case_that_came_and_one_that_went(
    warm: Warm, right_of: Callable[[str], Right], tmp_path: Path
) -> None:
    root = copy_root(right_of("2d").done, tmp_path / "root")
    raw = own_raw(root)
    before = times(root)
    add_case(raw)
    for path in (raw / "imagesTr" / "2d_001_0000.nii.gz", raw / "labelsTr" / "2d_001.nii.gz"):
        path.unlink()
    labels = SimpleITK.ReadImage(str(raw / "labelsTr" / "2d_002.nii.gz"))
    SimpleITK.WriteImage(labels * (labels != 2), str(raw / "labelsTr" / "2d_002.nii.gz"))
    tree = do(warm, root, PREPROCESS)
    assert changed(before, times(root)) == {"2d_new", "2d_001", "2d_002"}
    assert tree == fresh(warm, root, tmp_path / "fresh")


def test_a_case_that_came_joins_the_folds_without_moving_others(
    warm: Warm, right_of: Callable[[str], Right], tmp_path: Path
) -> None:
    root = copy_root(right_of("2d").done, tmp_path / "root")
    raw = own_raw(root)
    path = root / "preprocessed" / DATASET / "splits_final.json"
    before = json.loads(path.read_text())
    add_case(raw)
    do(warm, root, PLAN)
    after = json.loads(path.read_text())
    for old, new in zip(before, after, strict=True):
        assert [case for case in new["val"] if case != "2d_new"] == old["val"]
        assert [case for case in new["train"] if case != "2d_new"] == old["train"]
    assert sum("2d_new" in fold["val"] for fold in after) == 1


@pytest.mark.fault("R13")
@pytest.mark.parametrize("changes_data", [True, False])
def test_an_edited_plan_has_every_case_made_anew_if_its_data_are_others(
    warm: Warm,
    warm_torch: Warm,
    right_of: Callable[[str], Right],
    tmp_path: Path,
    changes_data: bool,
) -> None:
    right = right_of("2d")
    root = copy_root(right.done, tmp_path / "root")
    path = root / "preprocessed" / DATASET / "plans" / "nnseg.json"
    plan = json.loads(path.read_text())
    if changes_data:
        plan["configurations"]["2d"]["spacing"][1] *= 1.5
    else:
        plan["configurations"]["2d"]["batch_size"] += 1
    path.write_text(json.dumps(plan))
    before = times(root)
    if changes_data:
        refused = warm_torch.run(root, "train", "1", "2d", "0", "-device", "cpu")
        assert refused.code == 3
        assert "another plan" in refused.said
    tree = do(warm, root, PREPROCESS)
    cases = {f"2d_{number:03d}" for number in range(6)}
    assert changed(before, times(root)) == (cases if changes_data else set())
    assert tree == fresh(warm, root, tmp_path / "fresh")


@pytest.mark.fault("R15")
def test_of_two_runs_at_once_one_says_who_is_at_work_and_the_other_ends_undisturbed(
    injector: Injector, right_of: Callable[[str], Right], tmp_path: Path
) -> None:
    right = right_of("2d")
    root = copy_root(right.planned, tmp_path / "root")
    first = injector.start(root, *PREPROCESS, fault=Fault(sleep_us=10_000))
    end = time.monotonic() + PATIENCE
    while not any((root / "preprocessed").rglob("*.b2nd")):
        assert time.monotonic() < end
        assert first.process.poll() is None
        time.sleep(0.01)
    first.send(signal.SIGSTOP)  # so that it is at work still, however slow the second is
    second = injector.run(root, *PREPROCESS)
    first.send(signal.SIGCONT)
    assert second.code == 4
    for part in (str(first.process.pid), socket.gethostname(), "nnseg preprocess", "wait"):
        assert part in second.said
    outcome = first.wait()
    assert outcome.code == 0, outcome.said
    assert not differences(tree_of(root / "preprocessed"), right.tree)


@pytest.mark.fault("R15")
def test_the_lock_of_a_run_that_was_killed_is_taken_over_aloud(
    warm: Warm, right_of: Callable[[str], Right], tmp_path: Path
) -> None:
    right = right_of("2d")
    root = copy_root(right.planned, tmp_path / "root")
    killed = warm.run(root, *PREPROCESS, fault=Fault(action="kill", at=60))
    assert killed.code == -signal.SIGKILL
    assert 0 <= len(records_in(root / "preprocessed")) < 6
    outcome = warm.run(root, *PREPROCESS)
    assert outcome.code == 0, outcome.said
    assert "taking over the lock" in outcome.said
    assert not differences(tree_of(root / "preprocessed"), right.tree)


def test_plans_and_folds_are_on_the_disk_before_they_get_their_names_and_records_come_last(
    warm: Warm, right_of: Callable[[str], Right], tmp_path: Path
) -> None:
    root = copy_root(right_of("2d").planned, tmp_path / "root", preprocessed=False)
    calls = [c for command in (PLAN, PREPROCESS) for c in warm.run(root, *command).calls]
    named = {c.path: place for place, c in enumerate(calls) if c.kind == "rename"}
    records = records_in(root / "preprocessed")
    assert len(records) == 6
    changed = {c.path: place for place, c in enumerate(calls) if c.kind != "remove"}
    arrays = set()
    for record in records:
        own = [record.with_name(name) for name, _ in hashes_in(json.loads(record.read_text()))]
        assert max(changed[array] for array in own) < named[record]
        arrays.update(own)
    alone = named.keys() - arrays - set(records)
    assert {"fingerprint.json", "splits_final.json", "nnseg.json"} <= {p.name for p in alone}
    for path in alone:
        before, after = calls[: named[path]], calls[named[path] :]
        kinds = [c.kind for c in before if c.path.name.endswith(f"-{path.name}")]
        assert kinds[-1:] == ["sync"], f"{path} is renamed after {kinds}"
        assert any((c.kind, c.path) == ("sync", path.parent) for c in after)


def test_cases_that_a_power_cut_emptied_are_refused_and_made_anew(
    warm: Warm, warm_torch: Warm, right_of: Callable[[str], Right], tmp_path: Path
) -> None:
    right = right_of("2d")
    root = copy_root(right.done, tmp_path / "root")
    for path in root.glob("preprocessed/*/nnseg/2d/*"):
        if path.name < "2d_003" or path.suffix == ".json":
            path.write_bytes(b"")
    refused = warm_torch.run(root, "train", "1", "2d", "0", "-device", "cpu")
    assert refused.code == 3, refused.said
    assert do(warm, root, PREPROCESS) == right.tree
