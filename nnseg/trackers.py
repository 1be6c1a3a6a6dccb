"""Experiment trackers: where besides metrics.csv the figures of a training may go.

A tracker is a function of the run's folder, its name and its settings that gives a `Tracker`; a
name of TRACKERS. The packages are extras, loaded when one is asked for.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from nnseg.errors import UsageError
from nnseg.registry import Registry

Scalars: TypeAlias = Mapping[str, float]


class Tracker(Protocol):
    """What takes figures; a name may have a slash before its last part, to group it."""

    def log(self, epoch: int, figures: Scalars) -> None:
        """Take the figures of an epoch, counted from 1."""

    def close(self) -> None:
        """Write what is left; nothing comes after."""


Maker: TypeAlias = Callable[[Path, str, Mapping[str, Any]], Tracker]


class _TensorBoard:
    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        module = _load("torch.utils.tensorboard", "tensorboard")
        self._writer = module.SummaryWriter(log_dir=str(folder / "tensorboard"))
        lines = (f"    {key}: {value}" for key, value in settings.items())
        self._writer.add_text(name, "\n".join(lines))

    def log(self, epoch: int, figures: Scalars) -> None:
        for key, value in figures.items():
            self._writer.add_scalar(key, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        self._module = _load("mlflow", "mlflow")
        self._module.start_run(run_name=name)
        self._module.log_params({key: str(value) for key, value in settings.items()})

    def log(self, epoch: int, figures: Scalars) -> None:
        self._module.log_metrics(dict(figures), step=epoch)

    def close(self) -> None:
        self._module.end_run()


class _WeightsAndBiases:
    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        self._run = _load("wandb", "wandb").init(
            project="nnseg", name=name, dir=str(folder), config=dict(settings)
        )

    def log(self, epoch: int, figures: Scalars) -> None:
        self._run.log(dict(figures), step=epoch)

    def close(self) -> None:
        self._run.finish()


TRACKERS = Registry[Maker](
    "tracker", tensorboard=_TensorBoard, mlflow=_MLflow, wandb=_WeightsAndBiases
)


def _load(module: str, extra: str) -> Any:
    """Import the package of a tracker.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{extra} is not installed ({error}); install it by `pip install nnseg[{extra}]`, or "
            "leave --track out"
        ) from None
