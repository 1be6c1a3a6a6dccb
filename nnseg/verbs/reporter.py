"""What a training tells while it runs: a table, a plot, trackers, and why it learns nothing."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from nnseg import commit, report
from nnseg.diagnosis import LOOKED_AT_AFTER, Symptoms, diagnose, has_learnt_nothing
from nnseg.errors import NnsegError, UsageError
from nnseg.folders import metrics_file, progress_file
from nnseg.trackers import TRACKERS, Tracker

if TYPE_CHECKING:
    from nnseg.learning.resume import EpochReport
    from nnseg.learning.task import Task

logger = logging.getLogger(__name__)

InRaw: TypeAlias = Callable[[Sequence[str]], list[str]]

PLOT_EVERY = 30.0  # seconds; drawing takes a fifth of one
LOOKED_AT = 4  # batches that a diagnosis looks at


class Reporter:
    """Takes the report of every epoch to metrics.csv, progress.png, trackers and the caller.

    What fails of it costs a warning, never the training. It is a context: what is open is closed.

    Args:
        task: What is trained.
        history: Epochs that were done before.
        trackers: Names of TRACKERS.
        in_raw: Which of some labels the raw label maps have.
        on_epoch: Called with every report.
        say: Gets lines for the user.

    Raises:
        UsageError: A tracker is none, is not installed, or refuses to start.
    """

    def __init__(
        self,
        task: "Task",
        history: "Sequence[EpochReport]",
        *,
        trackers: Sequence[str],
        in_raw: InRaw,
        on_epoch: "Callable[[EpochReport], None] | None",
        say: Callable[[str], None],
    ) -> None:
        self._task, self._in_raw, self._on_epoch, self._say = task, in_raw, on_epoch, say
        self._history = list(history)
        self._plotted = -math.inf
        name = f"{task.plan.dataset} {task.configuration.name} {task.fold}"
        settings = asdict(task.settings)
        self._trackers = {
            each: _start_tracker(each, task.folder, name, settings) for each in trackers
        }

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        self._try("progress.png", self._plot)
        for name in [*self._trackers]:
            self._track(name, lambda tracker: tracker.close())

    def __call__(self, epoch: "EpochReport") -> None:
        """Pass on an epoch's figures; after the second, look for what keeps it from learning."""
        self._history.append(epoch)
        self._try("metrics.csv", self._tabulate)
        if time.monotonic() - self._plotted > PLOT_EVERY:
            self._try("progress.png", self._plot)
        figures = report.epoch_figures(epoch)
        for name in [*self._trackers]:
            self._track(name, lambda tracker: tracker.log(epoch.epoch, figures))
        if self._on_epoch:
            self._on_epoch(epoch)
        if epoch.epoch == LOOKED_AT_AFTER and has_learnt_nothing(epoch.label_dice):
            self._try("the diagnosis", self._explain)

    def _tabulate(self) -> None:
        text = report.history_csv(self._history)
        commit.write_whole(metrics_file(self._task.folder), text.encode())

    def _plot(self) -> None:
        self._plotted = time.monotonic()
        if self._history:
            report.plot_progress(self._history, progress_file(self._task.folder))

    def _explain(self) -> None:
        for cause in _diagnose(self._task, self._history, self._in_raw):
            self._say(f"no label was found yet; {cause}")
            logger.warning("no label was found yet; %s", cause)

    def _try(self, what: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever it is, hours of training are worth more
            logger.warning("%s could not be made (%s)", what, error)

    def _track(self, name: str, act: Callable[[Tracker], None]) -> None:
        try:
            act(self._trackers[name])
        except Exception as error:  # a tracker may raise anything, such as that its host is away
            del self._trackers[name]
            logger.warning("%s gets no more figures (%s)", name, error)


def _start_tracker(name: str, folder: Path, title: str, settings: dict[str, Any]) -> Tracker:
    """Start a tracker, before anything is computed.

    Raises:
        UsageError: It is none, is not installed, or refuses to start.
    """
    make = TRACKERS[name]
    try:
        return make(folder, title, settings)
    except NnsegError:
        raise
    except Exception as error:  # its package may raise anything, such as that a key is missing
        raise UsageError(
            f"{name} does not start ({error}); put it right, or leave it out"
        ) from None


def _diagnose(task: "Task", history: "Sequence[EpochReport]", in_raw: InRaw) -> tuple[str, ...]:
    """Look for what keeps a network from learning."""
    from nnseg.learning.batches import make_batch

    labels = task.plan.labels
    course = task.course()
    source = task.validation(course) if task.val_cases else task.training(course)
    maps = [make_batch(source, 0, number)[1] for number in range(LOOKED_AT)]
    ignored = labels.consecutive.ignore
    filled = sum(int(((m > 0) & (m != (-1 if ignored is None else ignored))).sum()) for m in maps)
    seen = {
        name for case in task.train_cases for name, found in case.locations.items() if found.size
    }
    absent = [name for name in labels.foreground if name not in seen]
    return diagnose(
        Symptoms(
            losses=tuple(epoch.loss for epoch in history),
            dice=history[-1].label_dice,
            foreground_share=filled / max(1, sum(m.numel() for m in maps)),
            absent=absent,
            lost=in_raw(absent),
            lr=history[-1].lr,
            precision=task.execution.precision,
        )
    )
