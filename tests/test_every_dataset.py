"""Every dataset and variant of the reference data goes the whole way."""

import csv
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nnseg import pipeline, record, store
from nnseg.axes import Segmentation
from nnseg.dataset import Case, find_training_cases, read_spec
from nnseg.exchange.nnunet_reading import read_plans
from nnseg.folders import Folders, metrics_file
from nnseg.labels import Labels
from nnseg.learning.recipe import TrainSettings
from nnseg.plan import Configuration, Plan
from nnseg.preprocess import preprocessing_hash
from nnseg.restore import restore
from nnseg.volume import read_segmentation

DATASETS = (
    "Dataset004_Hippocampus",
    "Dataset005_HippoRegions",
    "Dataset027_ACDC",
    "Dataset028_ACDCScribble",
    "Dataset029_ACDCRegions",
    "Dataset083_MSLesion4ch",
    "Dataset101_CTOrgans",
    "Dataset102_CTOrgans117",
    "Dataset118_DSB2018Nuclei",
    "Dataset120_VNCssTEM",
    "Dataset130_SpinalCordGM",
)
SMALL_MEMORY = 1.0  # GB, at which large images get a 3d_lowres and a cascade
LOWRES = {
    "Dataset083_MSLesion4ch",
    "Dataset101_CTOrgans",
    "Dataset102_CTOrgans117",
    "Dataset120_VNCssTEM",
}
SHORT = TrainSettings(
    epochs=3,
    iterations=3,
    validation_iterations=2,
    augmentation="mild",  # without mirrors a validation takes an eighth of the time
)
ROUND_TRIPS = 2  # cases of a configuration; the first and the last
MOST_LABELS = 12  # that are restored: a volume of logits each
# What comes back of the foreground from another grid: Dice of all labels together. Half of what a
# tiny lesion is made of lies at its border.
FULL, LOW = 0.95, 0.75


@pytest.fixture(scope="module")
def folders(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The raw datasets as links, and empty folders for what is made of them."""
    root = tmp_path_factory.mktemp("every")
    subprocess.run([shared / "data" / "link_raw", root / "raw"], check=True, capture_output=True)
    return Folders.of_root(root)


def test_no_dataset_is_left_out(folders: Folders) -> None:
    assert tuple(sorted(path.name for path in folders.raw.iterdir())) == DATASETS


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_dataset_goes_through_doctor_plan_preprocessing_and_back(
    dataset: str, folders: Folders, shared: Path
) -> None:
    findings = pipeline.examine(folders, dataset)
    assert [finding for finding in findings if finding.severity == "error"] == []

    spec = read_spec(folders.spec_file(dataset))
    cases = find_training_cases(folders, dataset, spec)
    lowres = False
    for name, memory_gb in (("nnseg", None), ("small", SMALL_MEMORY)):
        plan, made = pipeline.plan_and_preprocess(folders, dataset, name=name, memory_gb=memory_gb)
        assert made == {c.data: len(cases) for c in plan.configurations.values()}
        if memory_gb is None:
            plans = record.read_json(
                shared / "reference" / "nnunet_plans" / dataset / "nnUNetPlans.json"
            )
            assert plan.configurations == read_plans(plans, spec, name=name).configurations
        for configuration in plan.configurations.values():
            lowres |= configuration.name == "3d_lowres"
            at = folders.store(dataset, name, configuration.data)
            for case in cases[:: max(1, len(cases) - 1)][:ROUND_TRIPS]:
                check_round_trip(case, at, plan, configuration)
    assert lowres is (dataset in LOWRES)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_configuration_trains_and_validates(dataset: str, folders: Folders) -> None:
    plan, _ = pipeline.plan_and_preprocess(folders, dataset, name="small", memory_gb=SMALL_MEMORY)
    for configuration in plan.configurations.values():
        if configuration.previous is not None:  # it learns from the stage before, fold by fold
            for number in range(1, len(pipeline.folds(folders, dataset))):
                train(folders, dataset, configuration.previous, str(number), validate_after=False)
        fold = train(folders, dataset, configuration.name, "0")
        with metrics_file(fold).open(newline="") as file:
            losses = [float(row["loss"]) for row in csv.DictReader(file)]
        print(dataset, configuration.name, losses)
        assert len(losses) == SHORT.epochs
        assert all(map(math.isfinite, losses))
        assert losses[-1] < losses[0]
        assert pipeline.validation_summary(fold).mean


def train(folders: Folders, dataset: str, configuration: str, fold: str, **how: bool) -> Path:
    return pipeline.train(
        folders, dataset, configuration, fold, plan_name="small", settings=SHORT, **how
    )


def check_round_trip(case: Case, at: Path, plan: Plan, configuration: Configuration) -> None:
    """Restore what was preprocessed as if a network had predicted it without a fault."""
    found = store.open_case(
        at, case.case_id, preprocessing_hash(plan, configuration), in_memory=True
    )
    assert found.image.shape[0] == len(plan.channels)
    assert found.image.shape[1:] == found.segmentation.shape == found.placement.shape_resampled
    assert np.isfinite(found.image).all()

    assert case.label is not None
    raw, geometry = read_segmentation(case.label)
    wanted, positions, labels = few_labels(raw, found.segmentation, plan.labels)
    heads = labels.consecutive.foreground.values()
    if not labels.has_regions:
        heads = [(0,), *heads]
    logits = np.stack([np.isin(positions, members) for members in heads], axis=-1) - np.float32(0.5)
    back = restore([logits], found.placement, labels, configuration)

    assert back.shape == raw.shape == geometry.shape
    judged = raw != labels.ignore if labels.ignore is not None else np.ones(raw.shape, bool)
    if found.placement.shape_resampled == found.placement.shape_cropped:
        np.testing.assert_array_equal(back[judged], wanted[judged])
    else:
        least = LOW if configuration.name == "3d_lowres" else FULL
        assert foreground_dice(back[judged], wanted[judged]) > least


def few_labels(
    raw: Segmentation, positions: Segmentation, labels: Labels
) -> tuple[Segmentation, Segmentation, Labels]:
    """Leave the labels with most voxels, where there are many; the others become background."""
    names = {members[0]: name for name, members in labels.foreground.items()}
    if len(names) <= MOST_LABELS:
        return raw, positions, labels
    counts = np.bincount(raw.reshape(-1), minlength=max(names) + 1)
    kept = sorted(sorted(names, key=lambda value: -int(counts[value]))[:MOST_LABELS])
    few = Labels(labels={"background": 0} | {names[value]: value for value in kept})
    table = np.zeros(len(labels.values), np.uint8)
    for position, value in enumerate(few.values):
        table[labels.values.index(value)] = position
    return np.where(np.isin(raw, kept), raw, 0), table[positions], few


def foreground_dice(one: NDArray[np.integer], other: NDArray[np.integer]) -> float:
    """Twice the voxels that both label alike through those that each labels; 1 if none is."""
    count = int((one > 0).sum() + (other > 0).sum())
    return 2 * int(((one == other) & (one > 0)).sum()) / count if count else 1.0
