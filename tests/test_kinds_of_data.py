"""Every kind of data goes the whole way: raw files, plan, training, predictions, scores."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from nnseg import pipeline, record, store
from nnseg.axes import Shape
from nnseg.dataset import read_spec
from nnseg.evaluate import Summary
from nnseg.folders import Folders
from nnseg.learning.recipe import TrainSettings
from nnseg.predictor import load
from nnseg.preprocess import preprocessing_hash
from nnseg.volume import read_array, read_segmentation, simple_geometry, write

NAME = "Dataset001_Kind"
SHORT = TrainSettings(epochs=1, iterations=1, validation_iterations=1, batch_size=2)
CASES = ("a", "b", "c")


def draw(rng: np.random.Generator, shape: Shape) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Noise with a bright box in it, and where the box is; (z, y, x)."""
    mask = np.zeros(shape, np.bool_)
    _, y, x = (int(rng.integers(2, n // 2)) if n > 4 else 0 for n in shape)
    mask[:, y : y + 9, x : x + 11] = True
    noise = rng.integers(1, 99, shape)
    return (noise + 150 * mask).astype(np.uint8), mask


def declare(raw: Path, **keys: Any) -> None:
    content = {"numTraining": len(CASES), "file_ending": ".png"} | keys
    (raw / "dataset.json").write_text(json.dumps(content))


def photographs(raw: Path) -> None:
    """Photographs, most as JPEG, with masks of 0 and 255; one has alpha, one three files."""
    rng = np.random.default_rng(1)
    for case_id in CASES:
        image, mask = (array[0] for array in draw(rng, (1, 36, 44)))
        colours = np.stack([image, image // 2, 255 - image], axis=-1)
        if case_id == "a":
            for number in range(3):
                path = raw / f"imagesTr/a_{number:04d}.png"
                Image.fromarray(colours[..., number]).save(path)
        elif case_id == "b":
            opaque = np.full((36, 44, 1), 255, np.uint8)
            Image.fromarray(np.concatenate([colours, opaque], -1)).save(raw / "imagesTr/b_0000.png")
        else:
            Image.fromarray(colours).save(raw / "imagesTr/c_0000.jpg", quality=95)
        Image.fromarray(mask.astype(np.uint8) * 255).save(raw / f"labelsTr/{case_id}.png")
    declare(
        raw,
        channel_names={"0": "R", "1": "G", "2": "B"},
        labels={"background": 0, "cell": 255},
        file_ending=".jpg",
    )


def stacks(raw: Path) -> None:
    """TIFF stacks in a folder of their own, which a map in dataset.json lists."""
    rng = np.random.default_rng(2)
    listed = {}
    for case_id in CASES:
        image, mask = draw(rng, (9, 36, 44))
        labels = np.where(mask, 7, 0)
        labels[4:][mask[4:]] = 300
        files = {"em": f"em/{case_id}_0000.tif", "truth": f"truth/{case_id}.tif"}
        for folder, values in (("em", image), ("truth", labels.astype(np.uint16))):
            (raw / folder).mkdir(exist_ok=True)
            tifffile.imwrite(raw / files[folder], values, compression="zlib")
            (raw / folder / f"{case_id}.json").write_text('{"spacing": [40, 5, 5]}')
        listed[case_id] = {"images": [files["em"]], "label": files["truth"]}
    declare(
        raw,
        channel_names={"0": "EM"},
        labels={"background": 0, "near": [7, 300], "far": 300},
        regions_class_order=[7, 300],
        file_ending=".tif",
        dataset=listed,
    )


def volumes(raw: Path) -> None:
    """Volumes of mixed formats; the label maps are floats and leave some voxels open."""
    rng = np.random.default_rng(3)
    endings = {"a": (".mha", ".nrrd"), "b": (".hdr", ".nii"), "c": (".nii.gz", ".mha")}
    for case_id, (of_image, of_label) in endings.items():
        image, mask = draw(rng, (9, 36, 44))
        geometry = simple_geometry((9, 36, 44), (3.0, 1.0, 1.0))
        labels = np.where(mask, 5, 0).astype(np.float32)
        labels[0] = 9
        write(raw / f"imagesTr/{case_id}_0000{of_image}", image, geometry)
        write(raw / f"labelsTr/{case_id}{of_label}", labels, geometry)
    labels = {"background": 0, "box": 5, "ignore": 9}
    declare(raw, channel_names={"0": "CT"}, labels=labels, file_ending=".nii.gz")


def shrunk(folders: Folders, configuration: str, patch: Shape) -> None:
    """Give the planned network a size that trains in milliseconds."""
    plan = pipeline.plan(folders, NAME)
    planned = plan.configuration(configuration)
    flat = planned.architecture.dimensions == 2
    tiny = dataclasses.replace(
        planned.architecture,
        features=(4, 8),
        kernel_sizes=((1, 3, 3),) * 2 if flat else ((3, 3, 3),) * 2,
        strides=((1, 1, 1), (1, 2, 2)),
        encoder_blocks=(1, 1),
        decoder_blocks=(1,),
    )
    planned = dataclasses.replace(planned, architecture=tiny, patch_size=patch, batch_size=2)
    plan = dataclasses.replace(plan, configurations={configuration: planned})
    record.save(plan, folders.plan_file(NAME, "nnseg"))


@pytest.mark.parametrize(
    ("make", "configuration", "patch", "ending", "values", "key"),
    [
        (photographs, "2d", (1, 24, 32), ".png", {0, 255}, "255"),
        (stacks, "3d_fullres", (8, 16, 16), ".tif", {0, 7, 300}, "300"),
        (volumes, "3d_fullres", (8, 16, 16), ".nii.gz", {0, 5}, "5"),
    ],
)
def test_it_comes_out_as_the_user_knows_it(
    tmp_path: Path,
    make: Callable[[Path], None],
    configuration: str,
    patch: Shape,
    ending: str,
    values: set[int],
    key: str,
) -> None:
    folders = Folders.of_root(tmp_path)
    raw = folders.raw_folder(NAME)
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    make(raw)
    pipeline.fingerprint(folders, NAME, workers=1)
    shrunk(folders, configuration, patch)
    assert pipeline.preprocess(folders, NAME, workers=1) == {configuration: 3}

    options = {"settings": SHORT, "device": "cpu", "precision": "fp32"}
    fold = pipeline.train(folders, NAME, configuration, "0", **options)  # type: ignore[arg-type]
    model = dataclasses.replace(load(fold, device="cpu", precision="fp32"), mirror=False)
    images, labels = ("em", "truth") if make is stacks else ("imagesTr", "labelsTr")
    found = pipeline.predict(model, raw / images, tmp_path / "out")
    assert sorted(found) == list(CASES)
    spec = read_spec(tmp_path / "out" / "dataset.json")
    for case_id, path in found.items():
        assert path.name == f"{case_id}{ending}"
        segmentation, geometry = read_segmentation(path)
        assert set(np.unique(segmentation).tolist()) <= values
        assert geometry.dimensions == (2 if make is photographs else 3)

    summary = pipeline.evaluate(raw / labels, tmp_path / "out", spec.labels, spec.file_ending)
    assert_scored(summary, tmp_path / "out", key)
    assert_scored(pipeline.validation_summary(fold), fold / "validation", key)


def assert_scored(summary: Summary, folder: Path, key: str) -> None:
    assert summary.foreground_mean.dice is not None
    saved = json.loads((folder / "summary.json").read_text())
    assert key in saved["names"].values()


def test_preprocessed_segmentations_hold_positions(tmp_path: Path) -> None:
    folders = Folders.of_root(tmp_path)
    raw = folders.raw_folder(NAME)
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    photographs(raw)
    pipeline.fingerprint(folders, NAME, workers=1)
    pipeline.plan(folders, NAME)
    pipeline.preprocess(folders, NAME, ["2d"], workers=1)
    plan = pipeline.load_plan(folders, NAME)
    data_hash = preprocessing_hash(plan, plan.configuration("2d"))
    case = store.open_case(folders.store(NAME, "nnseg", "2d"), "a", data_hash, in_memory=True)
    truth, _ = read_array(raw / "labelsTr/a.png")
    np.testing.assert_array_equal(np.asarray(case.segmentation), truth // 255)
    assert set(case.locations) == {"cell"}
