"""Plans kept for a dataset, held against its dataset.json, one run at a time."""

import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import toy_plan

from nnseg import cli, phantom, record
from nnseg.cli import preparing
from nnseg.dataset import DatasetSpec, Fold, read_spec
from nnseg.errors import MachineError, PlanError
from nnseg.folders import Folders
from nnseg.labels import Labels
from nnseg.lock import locked
from nnseg.model.architecture import NetworkOptions, Norm, Upsampling
from nnseg.plan import Plan
from nnseg.verbs import measuring, planning, prepare
from nnseg.verbs.planned_fold import PlannedFold

DATASET = "Dataset001_Phantoms"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Three small slices, measured and planned; a test plans again at most."""
    folders = Folders.of_root(tmp_path_factory.mktemp("planned"))
    phantom.write_dataset(folders.raw_folder(DATASET), "2d", cases=3)
    measuring.fingerprint(folders, DATASET, workers=1)
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
        lambda folders: measuring.fingerprint(folders, DATASET, workers=1),
        lambda folders: measuring.up_to_date_fingerprint(folders, DATASET, anew=True),
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


# Of `toy_plan`, by the code from before networks had options.
HASH_OF_TOY = "5ec6d7da68ac587da97a96ed1779df70d4a6f63766fc9657b895e8e8980c8e77"


def hash_of(plan: Plan) -> str:
    return PlannedFold(
        folders=Folders.of_root(Path()),
        dataset=plan.dataset,
        plan_name=plan.name,
        plan=plan,
        configuration=plan.configuration("3d_fullres"),
        fold="0",
        split=Fold(train=("a", "b"), val=("c",)),
        folder=Path(),
    ).plan_hash


def test_runs_of_plans_without_options_go_on() -> None:
    plan = toy_plan(Labels(labels={"background": 0, "kidney": 1}))
    assert hash_of(plan) == HASH_OF_TOY
    full = plan.configuration("3d_fullres")
    options = NetworkOptions(upsampling="shuffled")
    other = replace(full, architecture=replace(full.architecture, options=options))
    assert hash_of(replace(plan, configurations={"3d_fullres": other})) != HASH_OF_TOY


def test_a_network_and_its_options_are_planned_from_the_command_line(folders: Folders) -> None:
    words = "--network unetpp --upsampling interpolated --norm batch --dropout 0.25 -p nested"
    argv = ["plan", DATASET, "--root", str(folders.raw.parent), *words.split()]
    assert cli.main(argv) == 0
    (configuration,) = planning.load_plan(folders, DATASET, "nested").configurations.values()
    architecture = configuration.architecture
    options = NetworkOptions(upsampling="interpolated", norm="batch", dropout=0.25)
    assert (architecture.network, architecture.options) == ("unetpp", options)
    report = record.read_json(folders.prepared_folder(DATASET) / "run_plan.json")
    wanted = {"network": "unetpp", "upsampling": "interpolated", "norm": "batch", "dropout": 0.25}
    assert wanted.items() <= report["arguments"].items()


def test_a_network_and_its_options_are_planned_and_preprocessed(folders: Folders) -> None:
    options = NetworkOptions(backbone="resnet18d")
    plan, made = prepare.plan_and_preprocess(
        folders, DATASET, name="image", network="encoder_unet", options=options, workers=1
    )
    assert made == {"2d": 3}
    assert planning.load_plan(folders, DATASET, "image") == plan
    assert plan.configuration("2d").architecture.called == "encoder_unet (backbone resnet18d)"


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("--network unetpq", "no network is named 'unetpq'; known: deeplabv3plus"),
        ("--norm batch", "network plain has no option norm; it takes upsampling"),
        ("--network fcn --backbone resnet18d", "network fcn has no option backbone"),
        (
            "--backbone resnet18d",
            "network plain has no option backbone; it takes upsampling; "
            "give `--network encoder_unet`",
        ),
        ("--network fcn --dropout 1.5", "dropout is 1.5; it must be"),
        ("--network unet3d", "network unet3d is 3D only, and the median image is one slice"),
        ("--network encoder_unet --backbone vgg", "no backbone is named 'vgg'; known: resnet18d"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(
    folders: Folders, capsys: pytest.CaptureFixture[str], words: str, fault: str
) -> None:
    argv = ["plan", DATASET, "--root", str(folders.raw.parent), "--dry-run", *words.split()]
    assert cli.main(argv) == PlanError.exit_code
    assert f"nnseg: {fault}" in capsys.readouterr().err


def test_the_command_line_offers_the_options_that_there_are() -> None:
    assert typing.get_args(Upsampling) == preparing.UPSAMPLINGS
    assert typing.get_args(Norm) == preparing.NORMS
