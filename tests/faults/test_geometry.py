"""A predicted label map lies where its image lies, however the image lies in its file.

The network is one that says of each voxel whether it is bright, so that what it finds is known.
Images are made, and label maps looked at, by nibabel and SimpleITK themselves.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
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

Affine = NDArray[np.float64]

SIZE = (5, 4, 6)  # x, y, z of the files
MM = (1.5, 1.0, 2.0)  # x, y, z
ORIGIN = (-31.5, 12.25, 204.0)
NEAR = 1e-4  # mm
SHIFT = 7.0  # mm between two matrices of a header that differ
BRIGHT = np.random.default_rng(7).random(SIZE) < 0.4
BOTH = "both"
FORMS = (BOTH, "qform", "sform", "differing")
ITK = (".mha", ".nrrd")
NIFTI = (".nii", ".nii.gz")
TIMES_COARSER = (1.0, 0.5)  # what the network sees, beside the file


class Threshold(nn.Module):
    """Finds what is brighter than a half, voxel by voxel."""

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        bright = image[:, 0] - 0.5
        return [torch.stack([-bright, bright], dim=1)]


def rotation(*, oblique: bool) -> Affine:
    if not oblique:
        return np.eye(3)
    a, b = np.deg2rad(25), np.deg2rad(-40)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return np.asarray(about_z @ about_x)


def affines(*, oblique: bool) -> Iterator[Affine]:
    """Each order of the axes with each direction of them: 48 ways from voxel to world, mm."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = rotation(oblique=oblique) @ (np.eye(3)[:, order] * signs * MM)
            affine[:3, 3] = ORIGIN
            yield affine


def corners(affine: Affine) -> Affine:
    """The world positions of the eight corner voxels, (8, 3), mm."""
    ends = [(0, n - 1) for n in SIZE]
    voxels = np.array([(*voxel, 1) for voxel in itertools.product(*ends)])
    return np.asarray((voxels @ affine.T)[:, :3])


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


def write_nifti(path: Path, affine: Affine, form: str) -> None:
    image = nibabel.Nifti1Image(BRIGHT.astype(np.uint8), None)
    image.header.set_zooms(MM)
    image.header.set_xyzt_units("mm")
    other = affine.copy()
    other[:3, 3] += SHIFT
    image.set_qform(other if form == "differing" else affine, code=int(form != "sform"))
    image.set_sform(affine, code=2 * int(form != "qform"))
    nibabel.save(image, path)


def write_itk(path: Path, affine: Affine, form: str) -> None:
    image = sitk.GetImageFromArray(BRIGHT.astype(np.uint8).transpose(2, 1, 0))
    image.SetSpacing(MM)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / MM).ravel().tolist())
    sitk.WriteImage(image, str(path))


def nifti_faults(path: Path, affine: Affine, form: str) -> Iterator[str]:
    image: Any = nibabel.load(path)
    yield from content_faults(np.asarray(image.dataobj))
    yield from grid_faults(image.affine, affine)
    header = image.header
    codes = (int(header["qform_code"]), int(header["sform_code"]))
    if codes != (int(form != "sform"), 2 * int(form != "qform")):
        yield f"codes of the matrices are {codes}"
    if form == "differing":
        other = affine.copy()
        other[:3, 3] += SHIFT
        yield from grid_faults(header.get_qform(), other)


def itk_faults(path: Path, affine: Affine, form: str) -> Iterator[str]:
    image = sitk.ReadImage(str(path))
    yield from content_faults(sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    found = np.eye(4)
    found[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    found[:3, 3] = image.GetOrigin()
    yield from grid_faults(found, affine)


def content_faults(found: NDArray[Any]) -> Iterator[str]:
    if found.shape != SIZE:
        yield f"shape is {found.shape}"


def grid_faults(found: Affine, wanted: Affine) -> Iterator[str]:
    apart = np.abs(corners(found) - corners(wanted)).max()
    if apart > NEAR:
        yield f"a corner is {apart:.3g} mm off"


def labels_of(path: Path) -> NDArray[Any]:
    """The labels in the order x, y, z of the file."""
    if path.name.endswith(ITK):
        return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0))
    image: Any = nibabel.load(path)
    return np.asarray(image.dataobj)


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
    write: Callable[[Path, Affine, str], None] = write_itk if ending in ITK else write_nifti
    look = itk_faults if ending in ITK else nifti_faults
    orders = dict(enumerate(affines(oblique=oblique)))
    chosen = {number: orders[number] for number in range(0, len(orders), step)}
    images = tmp_path / "images"
    images.mkdir()
    for number, affine in chosen.items():
        write(images / f"{number:02d}_0000{ending}", affine, form)
    faults = {}
    for times in TIMES_COARSER:
        out = tmp_path / f"out_{times}"
        made = pipeline.predict(predictor(ending, times), images, out)
        assert len(made) == len(chosen)
        for number, affine in chosen.items():
            path = made[f"{number:02d}"]
            found = list(look(path, affine, form))
            labels = labels_of(path)
            if times == 1 and (labels != BRIGHT).any():
                found.append("labels are not where the image is bright")
            if not 0 < labels.mean() < 1:
                found.append("nothing, or everything, was found")
            if found:
                faults[number, times] = found
    injected = len(chosen) * len(TIMES_COARSER)
    tally("geometry", injected - len(faults), injected)
    assert faults == {}
