"""nnseg: self-configuring segmentation of medical images.

The verbs are in `nnseg.pipeline`; here are the records that they pass on, and `load`. Each is
loaded when it is first used, so that `import nnseg` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Checkpoint": "checkpoint",
    "Choice": "choose",
    "Choosing": "choose",
    "Comparison": "scores.comparison",
    "Configuration": "plan",
    "DatasetSpec": "dataset",
    "Finding": "doctor.findings",
    "Fingerprint": "fingerprint",
    "Fold": "dataset",
    "Folders": "folders",
    "Labels": "labels",
    "Model": "inference",
    "NetworkOptions": "model.architecture",
    "NnsegError": "errors",
    "Plan": "plan",
    "Postprocessing": "postprocess",
    "Predictor": "predictor",
    "Summary": "evaluate",
    "TrainSettings": "learning.recipe",
    "load": "predictor",
    "load_model": "inference",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nnseg' has no attribute {name!r}")
    return getattr(import_module(f"nnseg.{_HOMES[name]}"), name)
