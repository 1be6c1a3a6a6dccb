"""Plans kept for a dataset, held against its dataset.json, one run at a time."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nnseg import phantom, planning, prepare
from nnseg.dataset import DatasetSpec, read_spec
from nnseg.errors import MachineError, PlanError
from nnseg.folders import Folders
from nnseg.labels import Labels
from nnseg.lock import locked

DATASET = "Dataset001_Phantoms"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Three small slices, measured and planned; a test plans again at most."""
    folders = Folders.of_root(tmp_path_factory.mktemp("planned"))
    phantom.write_dataset(folders.raw_folder(DATASET), "2d", cases=3)
    prepare.fingerprint(folders, DATASET, workers=1)
    planning.plan(folders, DATASET)
    return folders


@pytest.fixture(scope="module")
def spec(folders: Folders) -> DatasetSpec:
    return read_spec(folders.spec_file(DATASET))


REGIONS = Labels(
    labels={"background": 0, "whole": (1, 2), "core": (2,)}, regions_class_order=(1, 2)
)
TURNED: dict[str, int | tuple[int, ...]] = {"background": 0, "core": (2,), "whole": (1, 2)}


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ({}, {"channels": ("CT",)}, r"channel_names are \['CT'\], and were \['"),
        (
            {"labels": Labels(labels={"background": 0, "a": 1, "b": 2})},
            {"labels": Labels(labels={"background": 0, "a": 2, "b": 1})},
            "label a is 2, and was 1",
        ),
        (
            {"labels": Labels(labels={"background": 0, "a": 1})},
            {"labels": Labels(labels={"background": 0, "a": 1, "b": 2})},
            "label b is 2, and was not there",
        ),
        (
            {"labels": Labels(labels={"background": 0, "a": 1, "b": 2})},
            {"labels": Labels(labels={"background": 0, "a": 1})},
            "label b is not there, and was 2",
        ),
        (
            {"labels": REGIONS},
            {"labels": replace(REGIONS, regions_class_order=(2, 1))},
            r"regions_class_order is \(2, 1\), and was \(1, 2\)",
        ),
        (
            {"labels": REGIONS},
            {"labels": replace(REGIONS, labels=TURNED)},
            "the regions are background, core, whole, and were background, whole, core",
        ),
        ({}, {"file_ending": ".mha"}, r"file_ending is \.mha, and was \.nii\.gz"),
    ],
)
def test_a_plan_of_another_dataset_json_is_refused_with_the_key(
    folders: Folders, spec: DatasetSpec, old: Any, new: Any, wanted: str
) -> None:
    the_plan = replace(planning.load_plan(folders, DATASET), **old)
    before = replace(spec, **old)
    planning.check_spec(the_plan, before, "here")
    remedy = rf"for plan nnseg; restore it, or plan anew: `nnseg plan {DATASET} -p nnseg`"
    with pytest.raises(PlanError, match=rf"here: {wanted}.* {remedy}"):
        planning.check_spec(the_plan, replace(before, **new), "here")


def test_the_order_of_labels_that_are_no_regions_is_free(
    folders: Folders, spec: DatasetSpec
) -> None:
    labels = dict(reversed(spec.labels.labels.items()))
    the_plan = planning.load_plan(folders, DATASET)
    planning.check_spec(the_plan, replace(spec, labels=Labels(labels=labels)), "here")


@pytest.mark.parametrize(
    "work",
    [
        lambda folders: planning.plan(folders, DATASET),
        lambda folders: prepare.fingerprint(folders, DATASET, workers=1),
        lambda folders: prepare.up_to_date_fingerprint(folders, DATASET, anew=True),
    ],
)
def test_two_runs_do_not_plan_a_dataset_at_once(
    folders: Folders, work: Callable[[Folders], object]
) -> None:
    kept = folders.prepared_folder(DATASET)
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*")}
    with locked(kept, "nnseg plan -d 1"):
        with pytest.raises(MachineError, match=f"{kept} is in use by `nnseg plan -d 1`, process"):
            work(folders)
        planning.plan(folders, DATASET, save=False)
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*")} == before


@pytest.mark.parametrize(
    "name",
    [
        *("plans", "PLANS", "fingerprint.json", "Groups.json", "run_plan.json", "log.txt"),
        *("run", "report", "comparison", "predicted_test"),
    ],
)
def test_a_plan_does_not_take_the_name_of_what_lies_beside_it(folders: Folders, name: str) -> None:
    with pytest.raises(PlanError, match=f"name is '{name}', which names files of ours; choose"):
        planning.plan(folders, DATASET, name=name)


def test_a_plan_whose_name_only_contains_one_of_ours_is_made(folders: Folders) -> None:
    for name in ("plans2", "run2", "fingerprint", "reported"):
        assert planning.plan(folders, DATASET, name=name, save=False).name == name
