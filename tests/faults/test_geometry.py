"""A predicted label map lies where its image lies, however the image lies in its file.

The network is one that says of each voxel whether it is bright, so that what it finds is known.
Images are made, and label maps looked at, by nibabel and SimpleITK themselves.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from oriented import (
    BOTH,
    FORMS,
    ITK,
    NEAR,
    NIFTI,
    Affine,
    affines,
    mm_apart,
    moved,
    read_file,
    write_file,
)
from tallies import Tally
from tiny import toy_plan
from torch import Tensor, nn

from nnseg import pipeline
from nnseg.ensemble import Member
from nnseg.inference import Model
from nnseg.labels import Labels
from nnseg.model.device import Execution
from nnseg.plan import Plan
from nnseg.predictor import Predictor

SIZE = (5, 4, 6)  # x, y, z of the files
MM = (1.5, 1.0, 2.0)  # x, y, z
BRIGHT = (np.random.default_rng(7).random(SIZE) < 0.4).astype(np.uint8)
TIMES_COARSER = (1.0, 0.5)  # what the network sees, beside the file


class Threshold(nn.Module):
    """Finds what is brighter than a half, voxel by voxel."""

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        bright = image[:, 0] - 0.5
        return [torch.stack([-bright, bright], dim=1)]


def predictor(ending: str, times_coarser: float) -> Predictor:
    """One that needs no training."""
    plan = toy_plan(Labels(labels={"background": 0, "bright": 1}))
    full = plan.configuration("3d_fullres")
    z, y, x = full.spacing
    assert z is not None
    assert (x, y, z) == MM, "nothing is resampled but where the test asks for it"
    spacing = (z / times_coarser, y / times_coarser, x / times_coarser)
    full = dataclasses.replace(full, normalization=("none",), spacing=spacing)
    made: Plan = dataclasses.replace(
        plan, configurations={full.name: full}, file_ending=ending, channels=("noNorm",)
    )
    model = Model(
        plan=made,
        configuration=full,
        networks=(Threshold(),),
        mirror_axes=(0, 2),
        execution=Execution(device="cpu"),
        weights_sha256=("0" * 64,),
    )
    return Predictor(members=(Member(model=model),))


def faults_of(path: Path, affine: Affine, form: str, times: float) -> Iterator[str]:
    labels, found = read_file(path)
    if labels.shape != SIZE:
        yield f"shape is {labels.shape}"
    elif times == 1 and (labels != BRIGHT).any():
        yield "labels are not where the image is bright"
    if not 0 < labels.mean() < 1:
        yield "nothing, or everything, was found"
    yield from grid_faults(found, affine)
    if not path.name.endswith(ITK):
        yield from header_faults(path, affine, form)


def header_faults(path: Path, affine: Affine, form: str) -> Iterator[str]:
    header: Any = nibabel.load(path).header
    codes = (int(header["qform_code"]), int(header["sform_code"]))
    if codes != (int(form != "sform"), 2 * int(form != "qform")):
        yield f"codes of the matrices are {codes}"
    if form == "differing":
        yield from grid_faults(header.get_qform(), moved(affine))


def grid_faults(found: Affine, wanted: Affine) -> Iterator[str]:
    apart = mm_apart(found, wanted, SIZE)
    if apart > NEAR:
        yield f"a corner is {apart:.3g} mm off"


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the waiting for the disk, which would be most of the time."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def cases() -> list[Any]:
    """Every kind of file, every 7th axis order of each at once; all orders in the long form."""
    found = []
    kinds = [(ending, BOTH) for ending in ITK]
    kinds += [(ending, form) for ending in NIFTI for form in FORMS]
    for ending, form in kinds:
        for oblique in (False, True):
            name = f"{ending[1:]}-{form}-{'oblique' if oblique else 'aligned'}"
            few = pytest.param(ending, form, oblique, 7, id=f"{name}-few")
            every = pytest.param(ending, form, oblique, 1, id=name, marks=pytest.mark.slow)
            found += [few, every]
    return found


@pytest.mark.fault("G8", "B1.4")
@pytest.mark.parametrize(("ending", "form", "oblique", "step"), cases())
def test_a_prediction_lies_on_the_grid_of_its_image(
    tmp_path: Path, tally: Tally, ending: str, form: str, oblique: bool, step: int
) -> None:
    orders = dict(enumerate(affines(MM, oblique=oblique)))
    chosen = {number: orders[number] for number in range(0, len(orders), step)}
    images = tmp_path / "images"
    images.mkdir()
    for number, affine in chosen.items():
        write_file(images / f"{number:02d}_0000{ending}", BRIGHT, MM, affine, form)
    faults = {}
    for times in TIMES_COARSER:
        out = tmp_path / f"out_{times}"
        made = pipeline.predict(predictor(ending, times), images, out)
        assert len(made) == len(chosen)
        for number, affine in chosen.items():
            found = list(faults_of(made[f"{number:02d}"], affine, form, times))
            if found:
                faults[number, times] = found
    injected = len(chosen) * len(TIMES_COARSER)
    tally("geometry", injected - len(faults), injected)
    assert faults == {}
