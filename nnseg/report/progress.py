"""The plot of a training while it runs: progress.png."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnseg.commit import whole_file

if TYPE_CHECKING:
    from nnseg.learning.resume import EpochReport

logger = logging.getLogger(__name__)


def plot_progress(history: "Sequence[EpochReport]", path: Path) -> None:
    """Draw losses and Dice over the epochs; a plot that fails never stops a training."""
    if not history:
        return
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        loss, dice = figure.subplots(1, 2)
        epochs = [row.epoch for row in history]
        loss.plot(epochs, [row.loss for row in history], label="training")
        loss.plot(epochs, [row.validation_loss for row in history], label="validation")
        loss.set(xlabel="epoch", ylabel="loss")
        loss.legend()
        for name in history[0].label_dice:
            dice.plot(epochs, [_nan(row.label_dice[name]) for row in history], lw=1, label=name)
        average = [_nan(row.dice_average) for row in history]
        dice.plot(epochs, average, "k", label="mean, moving average")
        dice.set(xlabel="epoch", ylabel="pseudo Dice", ylim=(0, 1))
        dice.legend(fontsize="small")
        with whole_file(path) as temporary:
            figure.savefig(temporary, dpi=100, format="png", metadata={"Software": None})
    except Exception as error:
        logger.warning("%s: could not be drawn (%s)", path, error)


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value
