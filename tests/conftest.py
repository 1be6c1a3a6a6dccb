"""What tests of several files need."""

import os
import shutil
from pathlib import Path

import pytest
from tiny import FLAT, draw, prepare, train

from nnseg import console
from nnseg.folders import Folders

pytest_plugins = ("tallies",)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data and plans that NNSEG_SHARED names; without it, skip."""
    named = os.environ.get("NNSEG_SHARED")
    if named is None:
        pytest.skip("NNSEG_SHARED is not set; it names the folder of reference data")
    folder = Path(named)
    if not folder.is_dir():
        pytest.fail(f"NNSEG_SHARED is {named}, which is no folder")
    return folder


@pytest.fixture(scope="session")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Six 2D phantoms, preprocessed, fold 0 trained; tests leave it as it is."""
    folders = draw(tmp_path_factory.mktemp("flat"), FLAT, "2d", cases=6, test_cases=3)
    assert prepare(folders, FLAT, "2d", (1, 32, 24)) == {"2d": 6}
    train(folders, FLAT, "2d")
    return folders


@pytest.fixture
def prepared(flat: Folders, tmp_path: Path) -> Folders:
    """A copy of the preprocessed phantoms without the training."""
    shutil.copytree(flat.raw.parent, tmp_path / "copy")
    folders = Folders.of_root(tmp_path / "copy")
    shutil.rmtree(folders.results)
    return folders


@pytest.fixture(autouse=True)
def nobody_asked_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each test begin without the signal that another sent to the command line."""
    monkeypatch.setattr(console.STOP, "signal", None)
    monkeypatch.setattr(console.STOP, "_interrupted", False)
