import logging
import struct
from pathlib import Path

import pytest
from epochs import epoch

from nnseg.report import plot_progress, progress


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_progress_is_a_picture_of_normal_size(tmp_path: Path) -> None:
    plot_progress([epoch(1), epoch(2, None)], tmp_path / "progress.png")
    data = (tmp_path / "progress.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (800, 450)
    assert [path.name for path in tmp_path.iterdir()] == ["progress.png"]


def test_without_epochs_nothing_is_drawn(tmp_path: Path) -> None:
    plot_progress([], tmp_path / "progress.png")
    assert not list(tmp_path.iterdir())


def test_a_plot_that_fails_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING, logger=progress.__name__):
        plot_progress([epoch(1)], tmp_path / "progress.png")
    assert "could not be drawn" in caplog.text
    assert not list(tmp_path.iterdir())
