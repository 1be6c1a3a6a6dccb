"""What the records of runs prove of files."""

from dataclasses import replace
from pathlib import Path

import pytest

from nnseg import record
from nnseg.doctor.findings import Notes
from nnseg.fsck.proofs import Look, Proof, read_proofs, run_records
from nnseg.runlog import RunReport, logged_run, read_report


def run(
    folder: Path,
    command: str,
    *,
    inputs: tuple[Path, ...] = (),
    outputs: tuple[Path, ...] = (),
    name: str | None = None,
) -> None:
    with logged_run(folder, command, {}, name=name) as report:
        report.inputs += inputs
        report.outputs += outputs


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder in which `predict` has read one file and written another."""
    folder = tmp_path / "Dataset001_Flat"
    (folder / "in").mkdir(parents=True)
    (folder / "out").mkdir()
    (folder / "in" / "a").write_bytes(b"read")
    (folder / "out" / "a").write_bytes(b"written")
    read, written = folder / "in" / "a", folder / "out" / "a"
    run(folder / "out", "predict", inputs=(read,), outputs=(written,))
    return folder


def proofs_of(home: Path) -> dict[Path, Proof]:
    proofs, unreadable = read_proofs(run_records([home, home / "out"]), home)
    assert unreadable == {}
    return proofs


def test_a_file_is_proved_by_the_run_that_mentions_it(home: Path) -> None:
    look, proofs = Look(Notes(home)), proofs_of(home)
    assert {path.parent.name: proof.written for path, proof in proofs.items()} == {
        "in": False,
        "out": True,
    }
    for path, proof in proofs.items():
        assert proof.command == "predict"
        assert look.fault(path, proof.digest) is None
        assert not look.differs(path, proofs)
    (home / "out" / "a").write_bytes(b"Written")
    look = Look(Notes(home))
    assert look.differs(home / "out" / "a", proofs)
    assert "its 7 bytes have another SHA-256" in str(look.fault(home / "out" / "a", "0"))
    assert not look.differs(home / "in" / "a", proofs)
    assert not look.differs(home / "in" / "b", proofs)


def test_what_a_file_is_not_is_told(home: Path) -> None:
    look = Look(Notes(home))
    assert look.fault(home / "in" / "b", "0") == "does not exist"
    assert look.fault(home / "in", "0") == "cannot be read (Is a directory)"


def test_the_proofs_move_with_the_folder(home: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "Dataset001_Flat"
    moved.parent.mkdir()
    home.rename(moved)
    assert proofs_of(moved).keys() == {moved / "in" / "a", moved / "out" / "a"}
    renamed = tmp_path / "another name"
    moved.rename(renamed)
    (renamed / "out" / ".part-1-run.json").write_text("half")
    (renamed / "out" / ".part-1-a.run.json").write_text("half")
    assert proofs_of(renamed).keys() == {renamed / "out" / "a"}  # it lies beside the record


def test_the_file_that_was_read_is_never_taken_for_one_of_its_name_beside_the_record(
    home: Path,
) -> None:
    (home / "in" / "a").unlink()
    assert proofs_of(home).keys() == {home / "out" / "a"}


def test_of_several_runs_the_latest_counts_to_the_second_and_then_by_its_record(home: Path) -> None:
    path = home / "out" / "a"
    for command in ("plan", "import", "plan", "evaluate"):
        path.write_bytes(command.encode())
        run(home / "out", command, outputs=(path,))
        assert proofs_of(home)[path].command == command
    later = home / "out" / "run_import.json"
    found = read_report(later)
    record.save_sealed(replace(found, started=f"9999{found.started[4:]}"), later)
    assert proofs_of(home)[path].command == "import"


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_a_name_that_no_file_can_have_is_a_fault_and_proves_nothing(home: Path, name: str) -> None:
    assert Look(Notes(home)).fault(home / name, "0" * 64) is not None
    path = home / "out" / "run.json"
    found = read_report(path)
    outputs = {str(home / "out" / name): "0" * 64}
    record.save_sealed(replace(found, inputs=outputs, outputs=outputs), path)
    assert proofs_of(home) == {}


@pytest.mark.parametrize(("name", "log"), [(None, "log.txt"), ("a.run", "a.run.log")])
def test_a_record_proves_nothing_once_a_later_run_has_been_cut_off(
    home: Path, name: str | None, log: str
) -> None:
    folder, path = home / "later", home / "out" / "a"
    run(folder, "predict", outputs=(path,), name=name)
    proofs, _ = read_proofs(run_records([folder]), home)
    assert proofs.keys() == {path}
    with open(folder / log, "a", encoding="utf-8") as file:
        file.write("predict began, and was killed\n")
    assert read_proofs(run_records([folder]), home) == ({}, {})


def test_a_damaged_record_is_an_error_and_proves_nothing(home: Path) -> None:
    path = home / "out" / "run.json"
    path.write_bytes(path.read_bytes()[:-9])
    look = Look(Notes(home))
    assert look.proofs([home / "out"], home) == {}
    (finding,) = look.notes.findings
    assert (finding.severity, finding.file) == ("error", "out/run.json")
    assert "is not valid JSON" in finding.found
    assert look.files == 1


def test_a_record_is_loaded_or_named_as_damaged(home: Path) -> None:
    look, path = Look(Notes(home)), home / "out" / "run.json"
    assert look.load("run", path, RunReport, "restore it").command == "predict"
    path.write_text("{}")
    assert look.load("run", path, RunReport, "restore it") is None
    (finding,) = look.notes.findings
    assert (finding.rule, finding.remedy) == ("run", "restore it")
    assert "field required" in finding.found
