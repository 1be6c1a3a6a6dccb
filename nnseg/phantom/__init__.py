"""The built-in example data."""

from nnseg.phantom.dataset import (
    PHANTOMS,
    Phantom,
    make_case,
    otsu_threshold,
    threshold_baseline,
    write_dataset,
)

__all__ = [
    "PHANTOMS",
    "Phantom",
    "make_case",
    "otsu_threshold",
    "threshold_baseline",
    "write_dataset",
]
