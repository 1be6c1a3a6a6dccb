"""The epochs of a training as text: a line each, figures by name, a table."""

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnseg.learning.resume import EpochReport


def describe_epoch(epoch: "EpochReport", seconds_left: float) -> str:
    """Give the line that a training shows after every epoch."""
    labels = " ".join(f"{name} {_short(dice)}" for name, dice in epoch.label_dice.items())
    dice = "-" if epoch.dice is None else f"{epoch.dice:.3f}"
    return (
        f"epoch {epoch.epoch}/{epoch.epochs} loss {epoch.loss:.3f} dice {dice} ({labels}) "
        f"{epoch.seconds:.1f} s wait {epoch.wait_share:.0%} eta {duration(seconds_left)}"
    )


def epoch_figures(epoch: "EpochReport") -> dict[str, float]:
    """Give the figures of an epoch by name, as trackers take them; unknown ones are left out."""
    figures = {
        "lr": epoch.lr,
        "loss/training": epoch.loss,
        "loss/validation": epoch.validation_loss,
        "dice/mean": epoch.dice,
        "dice/average": epoch.dice_average,
        "time/seconds": epoch.seconds,
        "time/wait_share": epoch.wait_share,
    }
    figures |= {f"dice/label {name}": dice for name, dice in epoch.label_dice.items()}
    return {name: value for name, value in figures.items() if value is not None}


def history_csv(history: "Sequence[EpochReport]") -> str:
    """Give the epochs of a training as CSV, a row each."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    labels = list(history[0].label_dice) if history else []
    writer.writerow(
        ["epoch", "lr", "loss", "validation_loss", "dice", "dice_average"]
        + [f"dice_{name}" for name in labels]
        + ["seconds", "wait_share"]
    )
    for row in history:
        writer.writerow(
            [row.epoch, f"{row.lr:.6g}", f"{row.loss:.6g}", f"{row.validation_loss:.6g}"]
            + [_cell(row.dice), _cell(row.dice_average)]
            + [_cell(row.label_dice[name]) for name in labels]
            + [f"{row.seconds:.3f}", f"{row.wait_share:.4f}"]
        )
    return stream.getvalue()


def duration(seconds: float) -> str:
    """Say a length of time as people do.

    >>> duration(42), duration(95), duration(4000)
    ('42 s', '1.6 min', '1.1 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _short(dice: float | None) -> str:
    return "-" if dice is None else f"{dice:.2f}".removeprefix("0")


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
