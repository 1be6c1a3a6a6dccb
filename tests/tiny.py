"""A dataset of phantoms and a network that trains on it in milliseconds."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnseg import phantom, pipeline, record
from nnseg.axes import Shape
from nnseg.dataset import DatasetSpec
from nnseg.fingerprint import Fingerprint
from nnseg.folders import Folders
from nnseg.image.intensity import Intensity
from nnseg.labels import Labels
from nnseg.learning.recipe import TrainSettings
from nnseg.plan import Plan, make_plan

FLAT = "Dataset001_Flat"
SHORT = TrainSettings(epochs=2, iterations=2, validation_iterations=1, batch_size=2)
CPU = {"device": "cpu", "precision": "fp32"}


def toy_plan(labels: Labels) -> Plan:
    """A plan of a dataset that is not there: one channel, one case of 12 x 20 x 16 voxels."""
    intensity = Intensity(
        mean=1.0, median=1.5, std=2.0, min=0.0, max=9.0, percentile_00_5=0.5, percentile_99_5=8.0
    )
    measured = Fingerprint(
        spacings=((2.0, 1.0, 1.5),),
        shapes=((12, 20, 16),),
        intensities=(intensity,),
        median_relative_size=1.0,
    )
    spec = DatasetSpec(channels=("MR",), labels=labels, num_training=3, file_ending=".nii.gz")
    return make_plan(spec, measured, dataset="Dataset001_Toy")


def draw(root: Path, dataset: str, variant: str, *, cases: int, test_cases: int = 0) -> Folders:
    folders = Folders.of_root(root)
    raw = folders.raw_folder(dataset)
    phantom.write_dataset(raw, variant, cases=cases, test_cases=test_cases)
    return folders


def shrink(plan: Plan, configuration: str, patch: Shape) -> Plan:
    """The plan with one configuration, whose network trains in milliseconds."""
    planned = plan.configuration(configuration)
    flat = planned.architecture.dimensions == 2
    tiny = dataclasses.replace(
        planned.architecture,
        features=(4, 8),
        kernel_sizes=((1, 3, 3),) * 2 if flat else ((3, 3, 3),) * 2,
        strides=((1, 1, 1), (1, 2, 2) if flat else (2, 2, 2)),
        encoder_blocks=(1, 1),
        decoder_blocks=(1,),
    )
    planned = dataclasses.replace(planned, architecture=tiny, patch_size=patch, batch_size=2)
    return dataclasses.replace(plan, configurations={configuration: planned})


def with_cascade(plan: Plan) -> Plan:
    """The plan with a first stage of half the resolution, networks that train in milliseconds."""
    full = shrink(plan, "3d_fullres", (36, 48, 42)).configuration("3d_fullres")
    low = dataclasses.replace(
        full, name="3d_lowres", data="3d_lowres", spacing=(2.0, 2.0, 2.0), patch_size=(18, 24, 22)
    )
    cascade = dataclasses.replace(full, name="3d_cascade_fullres", previous="3d_lowres")
    stages = {each.name: each for each in (low, full, cascade)}
    return dataclasses.replace(plan, configurations=stages)


def prepare(folders: Folders, dataset: str, configuration: str, patch: Shape) -> dict[str, int]:
    """Everything before training."""
    pipeline.fingerprint(folders, dataset, workers=1)
    plan = shrink(pipeline.plan(folders, dataset), configuration, patch)
    record.save(plan, folders.plan_file(dataset, "nnseg"))
    return pipeline.preprocess(folders, dataset, workers=1)


def train(folders: Folders, dataset: str, configuration: str, **options: Any) -> Path:
    options = {"settings": SHORT, **CPU, **options}
    return pipeline.train(folders, dataset, configuration, options.pop("fold", "0"), **options)


def stop_after(steps: int) -> Callable[[], bool]:
    count = itertools.count(1)
    return lambda: next(count) == steps
