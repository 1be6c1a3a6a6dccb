"""The rules of planners."""

import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import suppress

from nnseg import record
from nnseg.axes import Shape, Spacing
from nnseg.components.refusal import refuses
from nnseg.dataset import DatasetSpec
from nnseg.errors import NnsegError
from nnseg.fingerprint import Fingerprint
from nnseg.fit import PLANNERS, SMALLEST_BATCH
from nnseg.image.intensity import Intensity
from nnseg.labels import Labels
from nnseg.plan import Plan, make_plan

CASES = 4
TOO_LITTLE_GB = 1e-9
DATASET = "Dataset001_Check"
SPEC = DatasetSpec(
    channels=("CT",),
    labels=Labels(labels={"background": 0, "organ": 1, "tumour": 2}),
    num_training=CASES,
    file_ending=".nii.gz",
)
INTENSITY = Intensity(
    mean=80.0, median=78.0, std=25.0, min=0.0, max=250.0, percentile_00_5=12, percentile_99_5=190
)
SORTS: dict[str, tuple[Spacing, Shape]] = {
    "small volumes": ((1.0, 1.0, 1.0), (35, 50, 36)),
    "thick slices": ((5.0, 0.7, 0.8), (24, 340, 320)),
    "thick slices across x": ((0.7, 0.8, 6.0), (300, 280, 20)),
    "large volumes": ((0.8, 0.7, 0.7), (480, 512, 512)),
    "pictures": ((999.0, 1.0, 1.0), (1, 600, 500)),
}


def fingerprint_of(spacing: Spacing, shape: Shape) -> Fingerprint:
    """Give the fingerprint of cases that are all alike."""
    return Fingerprint(
        spacings=(spacing,) * CASES,
        shapes=(shape,) * CASES,
        intensities=(INTENSITY,),
        median_relative_size=1.0,
    )


def rules_of_planner(name: str) -> Iterator[tuple[str, bool]]:
    """Try a planner on datasets of all sorts."""
    planner = PLANNERS[name]
    for what, (spacing, shape) in SORTS.items():
        fingerprint = fingerprint_of(spacing, shape)
        before = dataclasses.asdict(fingerprint)
        plan = make_plan(SPEC, fingerprint, dataset=DATASET, planner=name)
        yield f"it must plan {what}", bool(plan.configurations)
        yield "it must leave the fingerprint as it is", dataclasses.asdict(fingerprint) == before
        back = record.parse(Plan, json.loads(record.dumps(plan)), name)
        yield "its plan must survive JSON", back == plan
        sizes = [configuration.batch_size for configuration in plan.configurations.values()]
        yield "it must plan batches of two and more", min(sizes) >= SMALLEST_BATCH
    fingerprint = fingerprint_of(*SORTS["small volumes"])
    plan, again, less = (
        make_plan(SPEC, fingerprint, dataset=DATASET, planner=name, memory_gb=memory_gb)
        for memory_gb in (planner.memory_gb, planner.memory_gb, planner.memory_gb / 8)
    )
    yield "it must plan the same twice", again == plan
    yield "it must not plan more for less memory", _work(less) <= _work(plan)
    none = {"dataset": DATASET, "planner": name, "memory_gb": TOO_LITTLE_GB}
    yield "it must refuse what no patch fits", refuses(make_plan, SPEC, fingerprint, **none)
    for shape in ((1, 1, 1), (2, 1, 3)):
        with suppress(NnsegError):  # any other error is told as a rule that is broken
            make_plan(SPEC, fingerprint_of((1.0, 1.0, 1.0), shape), dataset=DATASET, planner=name)
        yield f"it must plan images of {shape} voxels, or say why not", True
    nowhere = (math.nan, 1.0, 1.0)
    yield (
        "it must refuse a spacing that is no number",
        refuses(
            lambda: make_plan(
                SPEC, fingerprint_of(nowhere, (35, 50, 36)), dataset=DATASET, planner=name
            )
        ),
    )


def _work(plan: Plan) -> int:
    """Count the voxels of a batch of 3d_fullres, or of 2d where there is no other."""
    name = "3d_fullres" if "3d_fullres" in plan.configurations else "2d"
    planned = plan.configurations[name]
    return math.prod(planned.patch_size) * planned.batch_size
