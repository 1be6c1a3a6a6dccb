"""What people look at: tables and plots of a training, and the report on its results."""

from nnseg.report.progress import plot_progress
from nnseg.report.tables import (
    describe_epoch,
    duration,
    epoch_figures,
    history_csv,
)

__all__ = [
    "describe_epoch",
    "duration",
    "epoch_figures",
    "history_csv",
    "plot_progress",
]
