"""What a validation leaves beside its scores, on 2D phantoms and a tiny network."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import CPU, FLAT

from nnseg import pipeline
from nnseg.averaging import label_map
from nnseg.errors import StoppedError
from nnseg.folders import Folders, compact_files, compact_records, validation_folder
from nnseg.inference import load_model
from nnseg.probabilities import open_compact
from nnseg.validating import is_validated
from nnseg.volume import read_image, read_segmentation


@pytest.fixture
def copied(flat: Folders, tmp_path: Path) -> Folders:
    shutil.copytree(flat.raw.parent, tmp_path / "copy")
    return Folders.of_root(tmp_path / "copy")


def validation_of(folders: Folders) -> Path:
    return validation_folder(folders.fold(FLAT, "nnseg", "2d", "0", 0))


def label_maps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith((".nii.gz", ".png")))


def test_each_validation_case_has_the_probabilities_that_its_labels_follow_from(
    flat: Folders,
) -> None:
    folder = validation_of(flat)
    fold = folder.parent
    model = load_model((fold,), **CPU, alone=True)  # type: ignore[arg-type]
    assert label_maps(folder)
    for path in label_maps(folder):
        opened = open_compact(path)
        segmentation, geometry = read_segmentation(path)
        assert opened.stored.geometry == geometry
        assert opened.stored.labels == model.plan.labels
        case_id = path.name.removesuffix(model.spec.label_ending)
        ending = model.plan.file_ending
        volume = read_image([flat.images(FLAT) / f"{case_id}_0000{ending}"], 1)
        seen, placement = model.prepare(volume.image, geometry.spacing)
        assert opened.stored.placement == placement
        logits = np.concatenate(list(model.logits(seen)))
        likely = model.plan.labels.probabilities(logits)
        np.testing.assert_allclose(opened.planes(0, len(logits)), likely, rtol=0, atol=3e-3)
        assert (label_map([(opened, 1.0)]) != segmentation).mean() < 1e-3


def test_validating_again_gives_the_same_bytes(copied: Folders) -> None:
    folder = validation_of(copied)
    files = [file for path in label_maps(folder) for file in compact_files(path)]
    before = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    pipeline.validate(copied, FLAT, "2d", "0", **CPU)
    assert [path.read_bytes() for path in files] == before


def test_probabilities_of_before_do_not_outlive_the_start_of_a_validation(copied: Folders) -> None:
    folder = validation_of(copied)
    assert compact_records(folder)
    assert is_validated(folder.parent)
    with pytest.raises(StoppedError, match="stopped in the validation"):
        pipeline.validate(copied, FLAT, "2d", "0", **CPU, stop=lambda: True)
    assert compact_records(folder) == ()
    assert not is_validated(folder.parent)
