"""Three cases with their truth and two predictions, small enough to score by hand."""

import json
from pathlib import Path

import numpy as np

from nnseg.labels import Labels
from nnseg.volume import simple_geometry, write

SHAPE = (4, 6, 9)
LABELS = Labels(labels={"background": 0, "liver": 1, "spleen": 2})


def save(folder: Path, name: str, *boxes: tuple[int, slice]) -> None:
    """Write a label map: each label fills all of z and y in a range along x."""
    array = np.zeros(SHAPE, dtype=np.uint8)
    for label, columns in boxes:
        array[:, :, columns] = label
    folder.mkdir(exist_ok=True)
    write(folder / f"{name}.nii.gz", array, simple_geometry(SHAPE, (2.0, 1.0, 0.5)))


def save_results(folder: Path) -> None:
    """Write the truth of three cases, predictions a and b of them, and their dataset.json."""
    for name in ("a1_x", "a1_y", "b2_z"):
        save(folder / "truth", name, (1, slice(0, 4)))
        save(folder / "a", name, (1, slice(2, 4)))
        save(folder / "b", name, (1, slice(1, 4)))
    spec = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(spec))
