"""Scans to predict, and a model for them: two folds of a network as they begin a training."""

from pathlib import Path

import numpy as np
import torch
from tiny import shrink

from nnseg.checkpoint import save_model
from nnseg.dataset import DatasetSpec
from nnseg.fingerprint import Fingerprint
from nnseg.image.intensity import Intensity
from nnseg.labels import Labels
from nnseg.networks.build import build_network
from nnseg.plan import Plan, make_plan
from nnseg.volume import simple_geometry, write

CHANNELS = ("T1", "T2")
LABELS = Labels(labels={"background": 0, "head": 1, "tail": 2})
SPACINGS = ((2.0, 1.0, 1.5), (2.5, 1.0, 1.2))  # the plan's, and one that is resampled
PATCH = (8, 16, 12)


def make_plan_of_scans() -> Plan:
    """Plan for scans of two channels, of about 12 x 20 x 16 voxels."""
    intensity = Intensity(
        mean=0.0, median=0.0, std=1.0, min=-4.0, max=4.0, percentile_00_5=-2.5, percentile_99_5=2.5
    )
    measured = Fingerprint(
        spacings=(SPACINGS[0],),
        shapes=((12, 20, 16),),
        intensities=(intensity,) * len(CHANNELS),
        median_relative_size=1.0,
    )
    spec = DatasetSpec(channels=CHANNELS, labels=LABELS, num_training=5, file_ending=".nii.gz")
    return shrink(make_plan(spec, measured, dataset="Dataset001_Scans"), "3d_fullres", PATCH)


def make_model(folder: Path) -> Path:
    """Write the model; what it finds is noise, but always the same."""
    plan = make_plan_of_scans()
    configuration = plan.configuration("3d_fullres")
    for fold in ("0", "1"):
        torch.manual_seed(int(fold))
        network = build_network(configuration.architecture, len(CHANNELS), LABELS.heads)
        save_model(
            folder / f"fold_{fold}",
            "final",
            network,
            plan=plan,
            configuration_name="3d_fullres",
            fold=fold,
            epoch=1,
            mirror_axes=(0, 1, 2),
            validation_dice=None,
        )
    return folder


def draw_scans(folder: Path, count: int) -> Path:
    """Write scan_0, scan_1, ...: each of another shape, whose sides are all different."""
    for number in range(count):
        rng = np.random.default_rng(number)
        geometry = simple_geometry((10 + number % 3, 19 + number, 15), SPACINGS[number % 2])
        for channel in range(len(CHANNELS)):
            values = rng.normal(size=geometry.shape).astype(np.float32)
            write(folder / f"scan_{number}_{channel:04d}.nii.gz", values, geometry)
    return folder
