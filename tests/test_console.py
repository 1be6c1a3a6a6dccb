import json
import logging
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from nnseg import console
from nnseg.console import Parser, Progress, StopFlag, keep_traceback, show, show_json, show_log


def parser() -> Parser:
    top = Parser(prog="nnseg")
    commands = top.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train")
    train.add_argument("dataset")
    train.add_argument("--epochs", type=int)
    train.add_argument("--planner", choices=("default", "resenc_l"))
    commands.add_parser("predict")
    return top


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["trian", "4"], "did you mean train?"),
        (["train", "4", "--epoch", "3"], "did you mean --epochs?"),
        (["train", "4", "--epochs", "3", "--plannner=default"], "did you mean --planner?"),
        (["train", "4", "--planner", "resencl"], "did you mean resenc_l?"),
        (["train", "4", "--zzz"], "`nnseg train -h` lists what there is"),
        (["train"], "`nnseg train -h` lists what there is"),
        ([], "`nnseg -h` lists what there is"),
        (["train", "4", "--epochs", "many"], "invalid int value: 'many'"),
    ],
)
def test_a_typing_error_is_one_line_with_the_nearest_name_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], hint: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(argv)
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("nnseg: ")
    assert shown.count("\n") == 1
    assert hint in shown


def test_options_are_not_abbreviated() -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["train", "4", "--epo", "3"])


def test_what_is_right_is_parsed() -> None:
    args = parser().parse_args(["train", "4", "--epochs", "3"])
    assert (args.command, args.dataset, args.epochs) == ("train", "4", 3)


# ---------------------------------------------------------------- signals


@pytest.fixture
def handlers() -> Any:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("number", "at_once"), [(signal.SIGTERM, "Ctrl-C twice"), (signal.SIGINT, "again")]
)
def test_a_first_signal_asks_to_stop(
    capsys: pytest.CaptureFixture[str], number: int, at_once: str
) -> None:
    stop = StopFlag()
    stop.listen()
    assert not stop()
    signal.raise_signal(number)
    assert stop()
    assert stop.signal == number
    assert f"stopping after this step; {at_once} to stop at once" in capsys.readouterr().err


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    "before",
    [
        [signal.SIGINT],
        [signal.SIGTERM, signal.SIGINT],
        [signal.SIGINT, signal.SIGTERM, signal.SIGTERM],
        [signal.SIGTERM, signal.SIGTERM, signal.SIGINT],
    ],
)
def test_only_a_second_ctrl_c_stops_at_once(before: list[int]) -> None:
    stop = StopFlag()
    stop.listen()
    for number in before:
        signal.raise_signal(number)
    assert stop.signal == before[0]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("handlers")
def test_further_sigterms_pass_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    stop = StopFlag()
    stop.listen()
    for _ in range(3):
        signal.raise_signal(signal.SIGTERM)
    assert capsys.readouterr().err.count("stopping") == 1


# ---------------------------------------------------------------- progress


def test_without_a_terminal_progress_is_a_line_every_30_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress()
    for done in range(1, 11):
        now[0] += 10
        progress("training", done, 100)
    assert capsys.readouterr().err.splitlines() == [
        "training 4/100 eta 720 s",
        "training 7/100 eta 797 s",
        "training 10/100 eta 810 s",
    ]


def test_quiet_progress_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LINE_EVERY", 0.0)
    Progress(quiet=True)("training", 1, 2)
    Progress()("training", 1, 2)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_bar_on_a_terminal_follows_what_is_done_and_goes_when_it_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress()
    progress("training", 3, 8)
    progress("training", 5, 8)
    bar = progress._bar
    assert (bar.n, bar.total, bar.desc) == (5, 8, "training")
    progress("validating", 1, 2)
    assert progress._bar is not bar
    progress.line("epoch 1/2")
    progress.close()
    assert progress._bar is None
    assert capsys.readouterr().out == "epoch 1/2\n"


# ---------------------------------------------------------------- log and bugs


@pytest.fixture
def clean_log() -> Any:
    root = logging.getLogger("nnseg")
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    logging.captureWarnings(False)


@pytest.mark.usefixtures("clean_log")
@pytest.mark.parametrize(
    ("quiet", "verbose", "shown"),
    [
        (False, False, ["nnseg: attention", "nnseg: wrong"]),
        (True, False, ["nnseg: wrong"]),
        (False, True, ["nnseg: by the way", "nnseg: attention", "nnseg: wrong"]),
    ],
)
def test_the_log_is_shown_from_warnings_on_unless_asked_otherwise(
    capsys: pytest.CaptureFixture[str], quiet: bool, verbose: bool, shown: list[str]
) -> None:
    for _ in range(2):  # a second command in the same process replaces the handler
        show_log(quiet=quiet, verbose=verbose)
    log = logging.getLogger("nnseg.train")
    log.debug("too much")
    log.info("by the way")
    log.warning("attention")
    log.error("wrong")
    assert capsys.readouterr().err.splitlines() == shown


def test_the_traceback_of_a_bug_is_kept_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    try:
        raise ZeroDivisionError("oh")
    except ZeroDivisionError:
        name = keep_traceback()
    assert Path(name).parent == tmp_path
    text = Path(name).read_text()
    assert re.match(r"nnseg \d", text)
    assert "ZeroDivisionError: oh" in text


def test_without_a_place_for_files_the_traceback_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError("no")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    try:
        raise ZeroDivisionError("oh")
    except ZeroDivisionError:
        assert keep_traceback() == "the lines above"
    assert "ZeroDivisionError: oh" in capsys.readouterr().err


def test_the_terminal_needs_nothing_heavy() -> None:
    script = (
        "import sys, nnseg.console; print(sorted({'torch', 'numpy', 'tqdm'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert ended.stdout.strip() == "[]"


def test_a_result_steers_no_terminal_and_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a\x1b]0;b\x07\x9b2J\xa0\U000e0001"
    show(f"{evil}\nnext")
    assert capsys.readouterr().out == "a\\x1b]0;b\\x07\\x9b2J\\xa0\\U000e0001\nnext\n"
    show_json(json.dumps({"name": evil, "ü": 1}, ensure_ascii=False) + "\n")
    told = capsys.readouterr().out
    assert told.removesuffix("\n").isprintable()
    assert "ü" in told
    assert json.loads(told)["name"] == evil
