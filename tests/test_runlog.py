import dataclasses
import errno
import json
import logging
import os
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nnseg import record, runlog
from nnseg.commit import sha256
from nnseg.console import StopFlag
from nnseg.errors import DataError, PartlyDoneError, StoppedError
from nnseg.runlog import RunReport, logged_run, read_report, versions

logger = logging.getLogger("nnseg.anything")


@pytest.fixture(autouse=True)
def level() -> Any:
    root = logging.getLogger("nnseg")
    before = root.level
    root.setLevel(logging.INFO)
    yield
    root.setLevel(before)


def report_in(folder: Path) -> RunReport:
    return record.load(RunReport, folder / "run.json")


def test_a_run_leaves_its_facts(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"abc")
    with logged_run(tmp_path / "out", "predict", {"step": 0.5, "source": "in"}) as run:
        (tmp_path / "out" / "result").write_bytes(b"")
        run.inputs.append(tmp_path / "in")
        run.outputs.append(tmp_path / "out" / "result")
        run.cases["case_1"] = "done"
        run.facts["device"] = "cpu"
    found = report_in(tmp_path / "out")
    assert (found.command, found.arguments) == ("predict", {"step": 0.5, "source": "in"})
    assert (found.exit_code, found.error, found.warnings) == (0, None, ())
    assert found.inputs == {
        str(tmp_path / "in"): "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    }
    assert found.outputs[str(tmp_path / "out" / "result")].startswith("e3b0c44298fc1c14")
    assert (found.cases, found.facts) == ({"case_1": "done"}, {"device": "cpu"})
    assert found.seconds >= 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found.started)
    assert {"python", "numpy", "torch"} <= found.versions.keys() == versions().keys()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("case a: bad"), 3),
        (PartlyDoneError("1 of 2 cases failed"), 6),
        (StoppedError("stopped"), 75),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("division by zero"), 1),
    ],
)
def test_a_run_that_fails_leaves_its_exit_code_and_message(
    tmp_path: Path, error: BaseException, code: int
) -> None:
    def fail() -> None:
        with logged_run(tmp_path, "train", {}) as run:
            run.facts["epochs"] = 3
            raise error

    with pytest.raises(type(error)):
        fail()
    found = report_in(tmp_path)
    assert found.exit_code == code
    assert found.error == (str(error) or type(error).__name__)
    assert found.facts == {"epochs": 3}


def test_warnings_and_errors_are_kept_and_everything_is_in_the_log(tmp_path: Path) -> None:
    with logged_run(tmp_path, "train", {"dataset": 4}):
        logger.info("as always")
        logger.warning("%d cases give %d folds", 3, 3)
        logger.error("case b: bad")
    logger.warning("too late")
    assert report_in(tmp_path).warnings == ("3 cases give 3 folds", "case b: bad")
    log = (tmp_path / "log.txt").read_text()
    assert "INFO nnseg: train {'dataset': 4}" in log
    assert "INFO nnseg.anything: as always" in log
    assert "WARNING nnseg.anything: 3 cases give 3 folds" in log
    assert "too late" not in log


def test_the_traceback_of_a_bug_is_in_the_log_and_that_of_a_wrong_file_is_not(
    tmp_path: Path,
) -> None:
    for error, lines in ((ValueError("oh"), True), (DataError("oh"), False)):
        folder = tmp_path / type(error).__name__
        with pytest.raises(type(error)), logged_run(folder, "train", {}):
            raise error
        assert ("Traceback" in (folder / "log.txt").read_text()) == lines


def test_a_second_run_adds_to_the_log_and_replaces_the_report(tmp_path: Path) -> None:
    for number in (1, 2):
        with logged_run(tmp_path, "train", {"number": number}):
            pass
    log = (tmp_path / "log.txt").read_text()
    assert log.count("train {'number'") == 2
    assert report_in(tmp_path).arguments == {"number": 2}


def test_a_file_that_is_gone_at_the_end_costs_its_hash_only(tmp_path: Path) -> None:
    with logged_run(tmp_path, "predict", {}) as run:
        run.inputs.append(tmp_path / "gone")
    assert report_in(tmp_path).inputs == {}


@pytest.mark.fault("R40")
def test_a_folder_that_cannot_be_written_costs_the_log_and_never_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    done = False
    with logged_run(tmp_path / "file", "predict", {}):
        done = True
    assert done
    assert "no log can be kept there" in caplog.text


@pytest.mark.fault("R40")
def test_a_log_that_cannot_be_written_to_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(file: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with logged_run(tmp_path, "predict", {}):
        monkeypatch.setattr(runlog._LogFile, "flush", full)
        for _ in range(3):
            logging.getLogger("nnseg.some").info("word")
        monkeypatch.undo()
    assert caplog.text.count("log.txt: is not complete: ") == 1
    assert len(report_in(tmp_path).warnings) == 1


def test_hashes_that_are_known_are_taken_and_their_files_not_read(tmp_path: Path) -> None:
    with logged_run(tmp_path, "predict", {}) as run:
        run.input_hashes[tmp_path / "gone"] = "1"
        run.output_hashes[tmp_path / "made"] = "2"
        run.outputs.append(tmp_path / "log.txt")
    found = report_in(tmp_path)
    assert found.inputs == {str(tmp_path / "gone"): "1"}
    assert found.outputs.keys() == {str(tmp_path / "made"), str(tmp_path / "log.txt")}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (None, 75)]
)
def test_a_run_that_was_stopped_keeps_the_exit_code_that_its_process_has(
    tmp_path: Path, number: int | None, code: int
) -> None:
    stop = StopFlag()
    stop.signal = number
    with pytest.raises(StoppedError), logged_run(tmp_path, "train", {}, stop=stop):
        raise StoppedError("stopped")
    assert report_in(tmp_path).exit_code == code


def test_no_handler_stays_behind(tmp_path: Path) -> None:
    before = list(logging.getLogger("nnseg").handlers)
    with logged_run(tmp_path, "train", {}):
        assert len(logging.getLogger("nnseg").handlers) == len(before) + 2
    assert logging.getLogger("nnseg").handlers == before


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlog, "PACKAGES", ("numpy", "no-such-package"))
    assert versions().keys() == {"python", "numpy"}


def test_the_report_is_plain_json(tmp_path: Path) -> None:
    with logged_run(tmp_path, "train", {"lr": 0.01, "budget": None}):
        pass
    data = json.loads((tmp_path / "run.json").read_text())
    assert data["arguments"] == {"lr": 0.01, "budget": None}


def test_a_command_that_shares_its_folder_with_others_has_files_of_its_own(tmp_path: Path) -> None:
    with logged_run(tmp_path, "plan", {"dataset": 4}):
        logger.info("as always")
    assert record.load(RunReport, tmp_path / "run_plan.json").command == "plan"
    assert "as always" in (tmp_path / "run_plan.log").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run_plan.json", "run_plan.log"]


def test_what_is_kept_is_told_as_the_caller_wants_it(tmp_path: Path) -> None:
    source = tmp_path / "source.txt"
    source.write_text("x")
    hidden = str(tmp_path)

    def tell(text: str) -> str:
        return text.replace(hidden, "here")

    folder = tmp_path / "results"
    arguments = {"of": [str(source)]}
    with suppress(DataError), logged_run(folder, "report", arguments, tell=tell) as run:
        run.inputs.append(source)
        run.cases["a"] = run.facts["place"] = hidden
        logging.getLogger("nnseg").warning("%s is odd", source)
        raise DataError(f"{source} cannot be read")
    for name in ("run_report.json", "run_report.log"):
        text = (folder / name).read_text("utf-8")
        assert hidden not in text
        assert text.count("here/source.txt") >= 3
    found = record.load(RunReport, folder / "run_report.json")
    assert found.inputs == {"here/source.txt": sha256(source)}


@pytest.mark.fault("S14")
def test_a_record_of_a_run_is_refused_when_a_byte_of_it_changed_and_read_if_it_has_no_hash(
    tmp_path: Path,
) -> None:
    with logged_run(tmp_path, "plan", {"dataset": "D"}) as run:
        run.facts["tokens"] = 1
    path = tmp_path / "run_plan.json"
    kept = read_report(path)
    assert kept.facts == {"tokens": 1}
    path.write_text(path.read_text().replace('"tokens": 1', '"tokens": 2'))
    with pytest.raises(DataError, match="is damaged"):
        read_report(path)
    older = record.to_json(kept)
    del older["record_sha256"]
    path.write_text(record.json_text(older))
    assert read_report(path) == dataclasses.replace(kept, record_sha256="")
