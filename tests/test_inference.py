"""A model of several folds predicts what they have in common, and says where memory is short."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import toy_plan

from nnseg import inference
from nnseg.checkpoint import save_model
from nnseg.errors import MachineError
from nnseg.inference import Model, load_model
from nnseg.labels import Labels
from nnseg.networks.build import build_network
from nnseg.plan import Plan

NAME = "3d_fullres"


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A plan whose network is tiny."""
    made = toy_plan(Labels(labels={"background": 0, "tumour": 1}))
    full = made.configuration(NAME)
    tiny = dataclasses.replace(
        full.architecture,
        features=(4, 6),
        kernel_sizes=((3, 3, 3),) * 2,
        strides=((1, 1, 1), (2, 2, 2)),
        encoder_blocks=(1, 1),
        decoder_blocks=(1,),
    )
    full = dataclasses.replace(full, architecture=tiny, patch_size=(4, 8, 6))
    return dataclasses.replace(made, configurations={NAME: full})


def model_of(plan: Plan, folder: Path, *mirrored: tuple[int, ...]) -> Model:
    """A model of folds, of which each has trained with mirrors along its own axes."""
    folds = [folder / f"fold_{number}" for number in range(len(mirrored))]
    for number, (fold, axes) in enumerate(zip(folds, mirrored, strict=True)):
        fold.mkdir()
        save_model(
            fold,
            "final",
            build_network(plan.configuration(NAME).architecture, 1, plan.labels.heads),
            plan=plan,
            configuration_name=NAME,
            fold=str(number),
            epoch=1,
            mirror_axes=axes,
            validation_dice=None,
        )
    return load_model(folds, device="cpu", precision="fp32")


@pytest.mark.parametrize(
    ("mirrored", "common"),
    [
        (((0, 1, 2), (0, 1, 2)), (0, 1, 2)),
        (((0, 1, 2), (1, 2), (0, 2)), (2,)),
        (((2,), (0, 1, 2)), (2,)),
        (((0, 1, 2), ()), ()),
    ],
)
def test_only_axes_that_every_fold_mirrored_are_mirrored(
    plan: Plan, tmp_path: Path, mirrored: tuple[tuple[int, ...], ...], common: tuple[int, ...]
) -> None:
    assert model_of(plan, tmp_path, *mirrored).mirror_axes == common


@pytest.mark.fault("R25")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("tried to allocate 2.00 GiB\nmore words"),
        RuntimeError("DefaultCPUAllocator: tried to allocate 2.00 GiB\nmore words"),
    ],
)
def test_an_image_that_is_too_large_for_the_memory_is_no_fault_of_ours(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    model, image = model_of(plan, tmp_path, ()), np.zeros((1, 4, 8, 6), np.float32)

    def fails(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(inference, "stream_logits", fails)
    with pytest.raises(MachineError, match=r"\(.*2\.00 GiB\); free some"):
        list(model.logits(image))


def test_other_errors_of_a_prediction_stay_what_they_are(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image = model_of(plan, tmp_path, ()), np.zeros((1, 4, 8, 6), np.float32)

    def fails(*args: object, **options: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(inference, "stream_logits", fails)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(model.logits(image))
