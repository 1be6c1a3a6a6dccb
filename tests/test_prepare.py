"""Raw cases examined, measured, planned and preprocessed, on small phantoms."""

import json
import logging
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import SimpleITK

from nnseg import phantom, record, store
from nnseg.commit import sha256
from nnseg.errors import DataError, MachineError, MissingError, PlanError
from nnseg.fingerprint import Fingerprint
from nnseg.folders import Folders
from nnseg.image.normalize import NORMALIZERS
from nnseg.runlog import RunReport
from nnseg.verbs import measuring, planning, prepare, visit
from nnseg.volume import read_segmentation, write

DATASET = "Dataset001_Phantoms"


def draw(root: Path, cases: int = 4, variant: str = "ct") -> Folders:
    folders = Folders.of_root(root)
    phantom.write_dataset(folders.raw_folder(DATASET), variant, cases=cases)
    return folders


def tree(folder: Path) -> dict[str, str]:
    """Hash of every file but those that say when and where a command ran."""
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(("run_", ".")) and path.name != "log.txt"
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Four CT phantoms, nothing more; tests that write copy them."""
    return draw(tmp_path_factory.mktemp("drawn"))


@pytest.fixture
def folders(drawn: Folders, tmp_path: Path) -> Folders:
    shutil.copytree(drawn.raw, tmp_path / "raw")
    return Folders.of_root(tmp_path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every image that is read once more for preprocessing."""
    read: list[Path] = []
    original = visit.read_stored

    def count(paths: Any, channels: Any) -> Any:
        read.extend(paths)
        return original(paths, channels)

    monkeypatch.setattr(visit, "read_stored", count)
    return read


def test_one_command_gives_what_three_give_and_reads_each_file_once(
    folders: Folders, tmp_path: Path, reads: list[Path]
) -> None:
    shutil.copytree(folders.raw, tmp_path / "other" / "raw")
    apart = Folders.of_root(tmp_path / "other")
    measuring.fingerprint(apart, DATASET)
    the_plan = planning.plan(apart, DATASET)
    made = prepare.preprocess(apart, DATASET)
    assert len(reads) == 4

    reads.clear()
    said: list[str] = []
    assert prepare.plan_and_preprocess(folders, DATASET, say=said.append) == (the_plan, made)
    assert made == {"2d": 4, "3d_fullres": 4}
    assert reads == []
    assert tree(folders.preprocessed) == tree(apart.preprocessed)
    assert "3d_fullres" in said[0]
    assert said[1].startswith("preprocessing 2d, 3d_fullres: 4 cases, ")


def test_what_does_not_fit_into_memory_is_read_again_to_the_same_bytes(
    folders: Folders, tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare.plan_and_preprocess(folders, DATASET)
    kept = tree(folders.preprocessed)
    shutil.rmtree(folders.preprocessed)
    monkeypatch.setattr(prepare, "KEPT_SHARE", 0.0)
    prepare.plan_and_preprocess(folders, DATASET)
    assert len(reads) == 4
    assert tree(folders.preprocessed) == kept


def test_a_second_run_reads_no_case_to_preprocess_it_and_changes_nothing(
    folders: Folders, reads: list[Path]
) -> None:
    prepare.plan_and_preprocess(folders, DATASET)
    before = tree(folders.preprocessed)
    said: list[str] = []
    _, made = prepare.plan_and_preprocess(folders, DATASET, say=said.append)
    assert made == {"2d": 0, "3d_fullres": 0}
    assert reads == []
    assert len(said) == 1  # there is nothing to foretell
    assert tree(folders.preprocessed) == before


def test_a_plan_that_was_there_does_not_cost_a_second_read(
    folders: Folders, reads: list[Path]
) -> None:
    measuring.fingerprint(folders, DATASET)
    planning.plan(folders, DATASET)
    _, made = prepare.plan_and_preprocess(folders, DATASET)
    assert made == {"2d": 4, "3d_fullres": 4}
    assert reads == []


def test_two_plans_share_what_they_have_in_common(folders: Folders, reads: list[Path]) -> None:
    prepare.plan_and_preprocess(folders, DATASET)
    planning.plan(folders, DATASET, name="small", memory_gb=1)
    assert prepare.preprocess(folders, DATASET, plan_name="small") == {"2d": 4, "3d_fullres": 4}
    assert reads == []
    first, second = (folders.store(DATASET, name, "2d") for name in ("nnseg", "small"))
    images = sorted(first.glob("*.image.b2nd"))
    assert len(images) == 4
    assert all(path.samefile(second / path.name) for path in images)


def test_only_configurations_that_are_asked_for_are_made(folders: Folders) -> None:
    _, made = prepare.plan_and_preprocess(folders, DATASET, ["2d"])
    assert made == {"2d": 4}
    assert not folders.store(DATASET, "nnseg", "3d_fullres").exists()


@pytest.mark.fault("G7")
def test_processes_and_threads_make_the_same_bytes(folders: Folders) -> None:
    prepare.plan_and_preprocess(folders, DATASET, ["3d_fullres"])
    by_threads = tree(folders.preprocessed)
    shutil.rmtree(folders.preprocessed)
    prepare.plan_and_preprocess(folders, DATASET, ["3d_fullres"], apart=True)
    assert tree(folders.preprocessed) == by_threads


def risky_below(monkeypatch: pytest.MonkeyPatch, answer: bool) -> list[tuple[int, int]]:
    asked: list[tuple[int, int]] = []

    def is_risky(needs: Any, workers: int) -> bool:
        asked.append((max(needs.values(), default=0), workers))
        return answer

    for module in (measuring, prepare):
        monkeypatch.setattr(module, "is_risky", is_risky)
    return asked


@pytest.mark.parametrize("risky", [False, True])
def test_work_that_may_exhaust_the_memory_is_done_apart(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, risky: bool
) -> None:
    asked = risky_below(monkeypatch, risky)
    used: list[str] = []
    for name in ("for_each", "for_each_apart"):
        original = getattr(prepare, name)

        def run(*args: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            used.append(name)
            return original(*args, **options)

        for module in (measuring, prepare):
            monkeypatch.setattr(module, name, run)
    prepare.plan_and_preprocess(folders, DATASET, ["2d"], workers=1)
    assert used == ["for_each_apart" if risky else "for_each"] * 2
    assert [workers for _, workers in asked] == [1, 1]
    assert min(need for need, _ in asked) > 10_000


def test_a_normalizer_of_the_main_module_keeps_the_work_in_threads(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def halve(channel: Any, intensity: Any, mask: Any) -> None:
        channel /= 2

    halve.__module__ = "__main__"
    monkeypatch.setattr(NORMALIZERS, "_entries", dict(NORMALIZERS._entries) | {"halve": halve})
    measuring.fingerprint(folders, DATASET)
    the_plan = planning.plan(folders, DATASET)
    flat = replace(the_plan.configuration("2d"), normalization=("halve",))
    path = folders.plan_file(DATASET, "nnseg")
    record.save(replace(the_plan, configurations={"2d": flat}), path)
    assert prepare.preprocess(folders, DATASET, apart=True) == {"2d": 4}
    assert "normalizer halve is of the main module, which workers do not load" in caplog.text


KILLER = """
import os, signal
from pathlib import Path
from nnseg.verbs import visit

def preprocess(marks, case_id, times, job, shelf, case):
    if case.case_id == case_id and len(list(marks.iterdir())) < times:
        (marks / str(len(list(marks.iterdir())))).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return visit.preprocess(job, shelf, case)
"""


@pytest.mark.skipif(os.name == "nt", reason="there are no such workers")
@pytest.mark.parametrize("times", [1, 2])
def test_a_case_whose_worker_is_killed_is_tried_again_and_costs_no_other(
    folders: Folders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    times: int,
) -> None:
    (tmp_path / "killer_of_workers.py").write_text(KILLER)
    monkeypatch.syspath_prepend(tmp_path)
    import killer_of_workers  # type: ignore[import-not-found]

    measuring.fingerprint(folders, DATASET)
    planning.plan(folders, DATASET)
    ids = sorted(path.name[:-12] for path in folders.images(DATASET).iterdir())
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setattr(
        visit, "preprocess", partial(killer_of_workers.preprocess, marks, ids[1], times)
    )
    told: list[int] = []
    tell = lambda what, done, count: told.append(done)  # noqa: E731
    if times == 1:
        made = prepare.preprocess(folders, DATASET, ["2d"], apart=True, on_progress=tell)
        assert made == {"2d": 4}
    else:
        with pytest.raises(MachineError, match=rf"case {ids[1]}: its worker was killed .signal 9"):
            prepare.preprocess(folders, DATASET, ["2d"], apart=True, on_progress=tell)
    assert told[-1] == 4
    text = rf"case {ids[1]}: its worker was killed (signal {int(signal.SIGKILL)}, probably out of"
    assert text in caplog.text
    assert "trying again with fewer workers" in caplog.text
    there = {i for i in ids if store.find_case(folders.store(DATASET, "nnseg", "2d"), i)}
    assert there == (set(ids) if times == 1 else set(ids) - {ids[1]})


def test_a_case_that_cannot_be_read_is_named_and_the_others_are_done(folders: Folders) -> None:
    measuring.fingerprint(folders, DATASET)
    planning.plan(folders, DATASET)
    path = sorted(folders.images(DATASET).iterdir())[2]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=rf"case {path.name[:-12]}: .*{path.name}"):
        prepare.preprocess(folders, DATASET, ["2d"])
    assert len(list(folders.store(DATASET, "nnseg", "2d").glob("*.json"))) == 3


def test_errors_of_the_raw_data_come_all_at_once_before_anything_is_written(
    folders: Folders,
) -> None:
    for path in sorted(folders.images(DATASET).iterdir())[1:3]:
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"Dataset001_Phantoms: 2 errors: .* \| .*lists all"):
        prepare.plan_and_preprocess(folders, DATASET)
    assert not folders.fingerprint_file(DATASET).exists()


def test_a_new_case_is_measured_and_only_it_is_preprocessed(
    folders: Folders, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare.plan_and_preprocess(folders, DATASET, ["2d"])
    the_plan = planning.load_plan(folders, DATASET)
    more = draw(tmp_path / "more", cases=5)
    shutil.rmtree(folders.raw)
    shutil.copytree(more.raw, folders.raw)
    with caplog.at_level(logging.WARNING):
        found = measuring.up_to_date_fingerprint(folders, DATASET)
    assert len(found.case_ids) == 5
    assert "the cases of Dataset001_Phantoms have changed; they are measured anew" in caplog.text
    record.save(the_plan, folders.plan_file(DATASET, "nnseg"))
    assert prepare.preprocess(folders, DATASET, ["2d"]) == {"2d": 1}


def test_a_fingerprint_of_the_same_cases_is_taken_unless_asked_otherwise(folders: Folders) -> None:
    first = measuring.fingerprint(folders, DATASET)
    path = folders.fingerprint_file(DATASET)
    record.save(replace(first, median_relative_size=0.25), path)
    assert measuring.up_to_date_fingerprint(folders, DATASET).median_relative_size == 0.25
    assert measuring.up_to_date_fingerprint(folders, DATASET, anew=True) == first


def double_the_spacing(path: Path) -> None:
    image = SimpleITK.ReadImage(str(path))
    image.SetSpacing([2 * mm for mm in image.GetSpacing()])
    SimpleITK.WriteImage(image, str(path))


@pytest.mark.parametrize("apart", [False, True])
def test_raw_files_that_change_under_the_same_ids_are_measured_and_made_anew(
    folders: Folders, caplog: pytest.LogCaptureFixture, apart: bool
) -> None:
    before, _ = prepare.plan_and_preprocess(folders, DATASET, ["2d"])
    first = record.load(Fingerprint, folders.fingerprint_file(DATASET))
    paths = [*folders.images(DATASET).iterdir(), *folders.labels(DATASET).iterdir()]
    for path in paths:
        double_the_spacing(path)
    after, made = prepare.plan_and_preprocess(folders, DATASET, ["2d"], apart=apart)
    assert made == {"2d": 4}
    assert after.median_spacing == tuple(2 * mm for mm in before.median_spacing)
    text = (
        "the files of 4 cases, such as ct_000, ct_001, ct_002 of Dataset001_Phantoms have changed"
    )
    assert text in caplog.text
    found = record.load(Fingerprint, folders.fingerprint_file(DATASET))
    assert found.spacings != first.spacings
    for case_id, hashes in found.hashes.items():
        images = folders.images(DATASET) / f"{case_id}_0000.nii.gz"
        labels = folders.labels(DATASET) / f"{case_id}.nii.gz"
        assert hashes == (sha256(images), sha256(labels))
    caplog.clear()
    assert measuring.up_to_date_fingerprint(folders, DATASET) == found
    assert caplog.text == ""


def test_one_label_map_that_changes_is_noticed(
    folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    measuring.fingerprint(folders, DATASET)
    one = min(folders.labels(DATASET).iterdir())
    segmentation, geometry = read_segmentation(one)
    write(one, segmentation // 2 * 2, geometry)
    measuring.up_to_date_fingerprint(folders, DATASET)
    assert f"the files of case {one.name[:-7]} of Dataset001_Phantoms have changed" in caplog.text


@pytest.mark.parametrize("content", ["{", "{}", '{"of": "a later version"}'])
def test_a_fingerprint_that_cannot_be_used_is_measured_anew_aloud(
    folders: Folders, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    first = measuring.fingerprint(folders, DATASET)
    folders.fingerprint_file(DATASET).write_text(content)
    assert measuring.up_to_date_fingerprint(folders, DATASET) == first
    assert record.load(Fingerprint, folders.fingerprint_file(DATASET)) == first
    assert "fingerprint.json: " in caplog.text
    assert "; the cases are measured anew" in caplog.text


def test_a_fingerprint_of_an_older_version_without_hashes_is_measured_anew(
    folders: Folders,
) -> None:
    first = measuring.fingerprint(folders, DATASET)
    older = replace(first, raw=(), median_relative_size=0.25)
    record.save(older, folders.fingerprint_file(DATASET))
    assert measuring.up_to_date_fingerprint(folders, DATASET) == first


def test_more_cases_keep_fewer_values_of_each(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def few(cases: int, channels: int) -> int:
        asked.append((cases, channels))
        return 5

    exact = measuring.fingerprint(folders, DATASET)
    monkeypatch.setattr(measuring, "values_kept", few)
    found = measuring.fingerprint(folders, DATASET)
    assert asked == [(4, 1)]
    assert found.intensities[0].mean == exact.intensities[0].mean
    assert found.intensities[0].percentile_00_5 != exact.intensities[0].percentile_00_5


def test_a_plan_of_another_dataset_json_is_not_carried_out(folders: Folders) -> None:
    measuring.fingerprint(folders, DATASET)
    the_plan = planning.plan(folders, DATASET)
    path = folders.spec_file(DATASET)
    path.write_text(path.read_text().replace('"0": "CT"', '"0": "MRI"'))
    wanted = r"dataset\.json: channel_names are \['MRI'\], and were \['CT'\] for plan nnseg; "
    with pytest.raises(PlanError, match=wanted):
        prepare.preprocess(folders, DATASET)
    with pytest.raises(PlanError, match=wanted):
        prepare.foretell(folders, the_plan)


def test_nothing_is_written_unless_it_is_to_be_saved(folders: Folders) -> None:
    measured = measuring.fingerprint(folders, DATASET, save=False)
    the_plan = planning.plan(folders, DATASET, measured=measured, save=False)
    foretold = prepare.foretell(folders, the_plan, measured=measured)
    assert foretold.cases == 4
    assert not folders.preprocessed.exists()


# ---------------------------------------------------------------- foretold


def test_what_is_foretold_counts_what_is_missing(folders: Folders) -> None:
    measuring.fingerprint(folders, DATASET)
    the_plan = planning.plan(folders, DATASET)
    both = prepare.foretell(folders, the_plan, workers=2)
    assert (both.cases, both.workers) == (4, 2)
    prepare.preprocess(folders, DATASET, ["2d"])
    assert prepare.foretell(folders, the_plan, ["2d"]).cases == 0
    assert prepare.foretell(folders, the_plan, ["2d", "3d_fullres"]).cases == 4
    next(folders.store(DATASET, "nnseg", "2d").glob("*.json")).unlink()
    assert prepare.foretell(folders, the_plan, ["2d"]).cases == 1
    flat = replace(the_plan.configuration("2d"), spacing=(None, 0.5, 0.6))
    changed = replace(the_plan, configurations={"2d": flat})  # so every case is of another plan
    assert prepare.foretell(folders, changed, ["2d"]).cases == 4


def test_a_full_disk_is_refused_before_anything_is_made(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring.fingerprint(folders, DATASET)
    the_plan = planning.plan(folders, DATASET)
    usage = shutil.disk_usage(folders.raw)
    needed = prepare.foretell(folders, the_plan).disk
    for free, fits in ((needed // 4 + 1, True), (needed // 4 - 1, False)):
        left = usage._replace(free=free)
        monkeypatch.setattr("nnseg.estimate.shutil.disk_usage", lambda _, left=left: left)
        if fits:
            assert prepare.foretell(folders, the_plan).disk == needed
            continue
        with pytest.raises(MachineError, match=r"needs about \d+ MB of disk, and \d+ MB are free"):
            prepare.preprocess(folders, DATASET)
        with pytest.raises(MachineError, match=r"needs about \d+ MB of disk, and \d+ MB are free"):
            prepare.foretell(folders, the_plan)
    assert not folders.store(DATASET, "nnseg", "2d").exists()


def test_arrays_that_will_be_replaced_make_room_for_the_new(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare.plan_and_preprocess(folders, DATASET, ["2d"])
    the_plan = planning.load_plan(folders, DATASET)
    for path in folders.images(DATASET).iterdir():
        os.utime(path)
    usage = shutil.disk_usage(folders.raw)._replace(free=0)
    monkeypatch.setattr("nnseg.estimate.shutil.disk_usage", lambda _: usage)
    assert prepare.foretell(folders, the_plan, ["2d"]).cases == 4
    shutil.rmtree(folders.store(DATASET, "nnseg", "2d"))
    with pytest.raises(MachineError, match="make room"):
        prepare.foretell(folders, the_plan, ["2d"])


def test_cases_whose_raw_files_changed_are_foretold(folders: Folders) -> None:
    prepare.plan_and_preprocess(folders, DATASET, ["2d"])
    the_plan = planning.load_plan(folders, DATASET)
    first, second, *_ = sorted(folders.labels(DATASET).iterdir())
    assert prepare.foretell(folders, the_plan, ["2d"]).cases == 0
    os.utime(first)  # younger than what was made of it
    assert prepare.foretell(folders, the_plan, ["2d"]).cases == 1
    os.utime(first, (0, 0))
    segmentation, geometry = read_segmentation(second)
    write(second, segmentation // 2 * 2, geometry)
    os.utime(second, (0, 0))  # older, but another
    measured = measuring.fingerprint(folders, DATASET, save=False)
    assert prepare.foretell(folders, the_plan, ["2d"], measured=measured).cases == 1


def test_foretelling_without_a_fingerprint_takes_the_medians_of_the_plan(folders: Folders) -> None:
    measured = measuring.fingerprint(folders, DATASET, save=False)
    the_plan = planning.plan(folders, DATASET, measured=measured, save=False)
    exact = prepare.foretell(folders, the_plan, measured=measured)
    roughly = prepare.foretell(folders, the_plan)
    assert 0.5 * exact.disk < roughly.disk < 2 * exact.disk


# ---------------------------------------------------------------- edges


def test_a_dataset_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"Dataset001_Phantoms does not exist; put the raw"):
        prepare.plan_and_preprocess(Folders.of_root(tmp_path), DATASET)


def test_a_run_says_what_it_made(folders: Folders) -> None:
    prepare.plan_and_preprocess(folders, DATASET, ["2d"])
    path = folders.store(DATASET, "nnseg", "2d").parent / "run_preprocess.json"
    found = record.load(RunReport, path)
    assert found.facts["made"] == {"2d": 4}
    assert json.loads(path.read_text())["exit_code"] == 0
