import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nnseg.errors import UsageError
from nnseg.trackers import TRACKERS

SETTINGS = {"epochs": 3, "loss": "dice"}


class Heard(ModuleType):
    """A package that keeps the calls that reach it, whatever they are."""

    def __init__(self, name: str, calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> None:
        super().__init__(name)
        self.calls = calls

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> "Heard":
            self.calls.append((name, args, kwargs))
            return self

        return call


@pytest.mark.parametrize(
    ("name", "module", "figure", "end"),
    [
        ("tensorboard", "torch.utils.tensorboard", ("add_scalar", ("loss", 0.5, 2), {}), "close"),
        ("mlflow", "mlflow", ("log_metrics", ({"loss": 0.5},), {"step": 2}), "end_run"),
        ("wandb", "wandb", ("log", ({"loss": 0.5},), {"step": 2}), "finish"),
    ],
)
def test_figures_reach_the_package_and_the_end_is_told(
    name: str,
    module: str,
    figure: tuple[str, tuple[Any, ...], dict[str, Any]],
    end: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = Heard(module, [])
    monkeypatch.setitem(sys.modules, module, package)
    tracker = TRACKERS[name](tmp_path, "Dataset001_A 2d 0", SETTINGS)
    tracker.log(2, {"loss": 0.5})
    assert figure in package.calls
    assert "Dataset001_A 2d 0" in str(package.calls)
    assert "dice" in str(package.calls)
    tracker.close()
    assert package.calls[-1][0] == end


@pytest.mark.parametrize("name", list(TRACKERS))
def test_a_package_that_is_not_installed_is_named_with_how_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torch.utils.tensorboard", "mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"{name} is not installed .*pip install nnseg\[{name}\]"):
        TRACKERS[name](tmp_path, "a", SETTINGS)
