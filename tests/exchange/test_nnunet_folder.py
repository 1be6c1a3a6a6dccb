"""Folders and zips that nnU-Net leaves become models of ours, and models of ours such folders."""

import dataclasses
import json
import logging
import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnseg import record
from nnseg.checkpoint import load_model, save_model
from nnseg.dataset import DatasetSpec, spec_to_json
from nnseg.errors import DataError, MissingError, PlanError, UsageError
from nnseg.exchange.nnunet_folder import export_models, find_models, import_models
from nnseg.exchange.nnunet_weights import to_nnunet
from nnseg.exchange.nnunet_writing import plans_to_json
from nnseg.fingerprint import Fingerprint
from nnseg.folders import postprocessing_file
from nnseg.image.intensity import Intensity
from nnseg.labels import Labels
from nnseg.model.architecture import Architecture
from nnseg.networks.build import build_network
from nnseg.plan import Plan, make_plan
from nnseg.postprocess import KeepLargest, Postprocessing

SPEC = DatasetSpec(
    channels=("T1", "FLAIR"),
    labels=Labels(
        labels={"background": 0, "whole": (1, 2), "core": 2, "ignore": 3},
        regions_class_order=(1, 2),
    ),
    num_training=20,
    file_ending=".nii.gz",
)
CASCADE = ("3d_lowres", "3d_cascade_fullres")


def tiny(network: str, *, flat: bool) -> Architecture:
    return Architecture(
        network=network,
        dimensions=2 if flat else 3,
        features=(2, 3),
        kernel_sizes=((1, 3, 3),) * 2,
        strides=((1, 1, 1), (1, 2, 2)),
        encoder_blocks=(1, 2),
        decoder_blocks=(1,),
    )


def tiny_plan(network: str = "plain", spec: DatasetSpec = SPEC) -> Plan:
    """A plan of all four configurations, x first, whose networks have a few weights."""
    intensity = Intensity(
        mean=3, median=3, std=2, min=0, max=9, percentile_00_5=1, percentile_99_5=8
    )
    measured = Fingerprint(
        spacings=((0.75, 1.0, 3.5),),
        shapes=((40, 36, 20),),
        intensities=(intensity,) * len(spec.channels),
        median_relative_size=1.0,
    )
    plan = make_plan(spec, measured, dataset="Dataset900_Test")
    full = dataclasses.replace(
        plan.configuration("3d_fullres"),
        architecture=tiny(network, flat=False),
        patch_size=(4, 12, 8),
    )
    flat = dataclasses.replace(
        plan.configuration("2d"), architecture=tiny(network, flat=True), patch_size=(1, 12, 8)
    )
    low = dataclasses.replace(
        full, name="3d_lowres", data="3d_lowres", spacing=(4.0, 1.5, 1.25), patch_size=(4, 8, 6)
    )
    cascade = dataclasses.replace(full, name="3d_cascade_fullres", previous="3d_lowres")
    return dataclasses.replace(
        plan, configurations={one.name: one for one in (flat, full, low, cascade)}
    )


PLAN = tiny_plan()


def weights_of(plan: Plan, configuration: str, seed: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(
            plan.configuration(configuration).architecture,
            plan.input_channels(configuration),
            plan.labels.heads,
        )
    return dict(network.state_dict())


def their_checkpoint(plan: Plan, configuration: str, fold: str, seed: int) -> dict[str, Any]:
    """What nnU-Net writes of a fold."""
    architecture = plan.configuration(configuration).architecture
    return {
        "network_weights": to_nnunet(weights_of(plan, configuration, seed), architecture),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "logging": {"ema_fg_dice": [np.float64(0.5), np.float64(0.75)]},
        "current_epoch": 1000,
        "init_args": {
            "plans": plans_to_json(plan),
            "configuration": configuration,
            "fold": fold if fold == "all" else int(fold),
            "dataset_json": spec_to_json(SPEC),
            "device": torch.device("cuda"),
        },
        "trainer_name": "nnUNetTrainer_250epochs",
        "inference_allowed_mirroring_axes": (0, 1),
    }


def write_theirs(
    folder: Path,
    configuration: str,
    *,
    plan: Plan = PLAN,
    folds: tuple[str, ...] = ("0",),
    change: dict[str, Any] | None = None,
) -> Path:
    """A trained model as nnU-Net leaves it, weights of fold N drawn by seed N."""
    place = folder / f"nnUNetTrainer__nnUNetPlans__{configuration}"
    for number, fold in enumerate(folds):
        (place / f"fold_{fold}").mkdir(parents=True)
        content = their_checkpoint(plan, configuration, fold, number) | (change or {})
        torch.save(content, place / f"fold_{fold}" / "checkpoint_final.pth")
    (place / "plans.json").write_text(json.dumps(plans_to_json(plan)))
    (place / "dataset.json").write_text(json.dumps(spec_to_json(SPEC)))
    return place


def pack_zip(folder: Path, file: Path) -> Path:
    """What nnU-Net's export to a zip gives: DATASET/MODEL/..., deflated."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                packed.write(path, Path("Dataset900_Test") / path.relative_to(folder))
    return file


def import_from(source: Path, target: Path, **options: Any) -> Any:
    target.mkdir()
    return import_models(find_models(source), target, **options)


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.equal(found[name], wanted[name]) for name in wanted
    )


# ---------------------------------------------------------------- theirs to ours


@pytest.mark.parametrize("network", ["plain", "resenc"])
@pytest.mark.parametrize(("configuration", "mirrored"), [("2d", (1, 2)), ("3d_fullres", (0, 1))])
def test_a_model_becomes_one_of_ours(
    network: str, configuration: str, mirrored: tuple[int, ...], tmp_path: Path
) -> None:
    plan = tiny_plan(network)
    source = write_theirs(tmp_path, configuration, plan=plan, folds=("0", "3", "all"))
    (imported,) = import_from(source, tmp_path / "ours")
    assert imported.checkpoints == {"0": ("final",), "3": ("final",), "all": ("final",)}
    assert (imported.configuration_name, imported.trainer) == (
        configuration,
        "nnUNetTrainer_250epochs",
    )
    for number, fold in enumerate(("0", "3", "all")):
        checkpoint, weights = load_model(
            tmp_path / "ours" / configuration / f"fold_{fold}", "final"
        )
        assert same(weights, weights_of(plan, configuration, number))
        assert checkpoint.plan == dataclasses.replace(plan, name="nnUNetPlans", decisions=())
        assert (checkpoint.fold, checkpoint.epoch) == (fold, 1000)
        assert checkpoint.mirror_axes == mirrored
        assert checkpoint.validation_dice == 0.75


def test_the_best_checkpoint_comes_along(tmp_path: Path) -> None:
    source = write_theirs(tmp_path, "2d")
    torch.save(their_checkpoint(PLAN, "2d", "0", 8), source / "fold_0" / "checkpoint_best.pth")
    shutil.copy(source / "fold_0" / "checkpoint_best.pth", source / "fold_0" / "checkpoint_new.pth")
    (imported,) = import_from(source, tmp_path / "ours")
    assert imported.checkpoints == {"0": ("final", "best")}
    fold = tmp_path / "ours" / "2d" / "fold_0"
    assert same(load_model(fold, "best")[1], weights_of(PLAN, "2d", 8))
    assert same(load_model(fold, "final")[1], weights_of(PLAN, "2d", 0))


@pytest.mark.parametrize("packed", [False, True])
def test_a_datasets_results_become_configurations_side_by_side(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    results = tmp_path / "results"
    for configuration in CASCADE:
        write_theirs(results, configuration, folds=("0", "1"))
    source = pack_zip(results, tmp_path / "model.zip") if packed else results
    imported = import_from(source, tmp_path / "ours")
    assert {one.configuration_name for one in imported} == set(CASCADE)
    for configuration in CASCADE:
        weights = load_model(tmp_path / "ours" / configuration / "fold_1", "final")[1]
        assert same(weights, weights_of(PLAN, configuration, 1))
    assert list(scratch.iterdir()) == []


def test_where_the_training_files_lay_does_not_matter(tmp_path: Path) -> None:
    listed = {"case": {"images": ["/elsewhere/a_0000.nrrd"], "label": "../b.nrrd"}}
    content = spec_to_json(SPEC) | {"dataset": listed}
    change = their_checkpoint(PLAN, "2d", "0", 0)["init_args"] | {"dataset_json": content}
    source = write_theirs(tmp_path, "2d", change={"init_args": change})
    (source / "dataset.json").write_text(json.dumps(content))
    (imported,) = import_from(source, tmp_path / "ours")
    assert imported.plan.labels == PLAN.labels


def test_a_cascade_without_the_stage_before_is_refused(tmp_path: Path) -> None:
    source = write_theirs(tmp_path, "3d_cascade_fullres")
    with pytest.raises(MissingError, match="starts from 3d_lowres; import both at once"):
        import_from(source, tmp_path / "ours")


def test_names_and_endings_are_those_of_the_files_beside_as_nnunet_takes_them(
    tmp_path: Path,
) -> None:
    source = write_theirs(tmp_path, "2d")
    spec = json.loads((source / "dataset.json").read_text())
    spec["labels"] = {"background": 0, "tumour": [1, 2], "kernel": 2, "ignore": 3}
    spec["file_ending"] = ".nrrd"
    (source / "dataset.json").write_text(json.dumps(spec))
    (imported,) = import_from(source, tmp_path / "ours", name="mine")
    assert list(imported.plan.labels.foreground) == ["tumour", "kernel"]
    assert (imported.plan.file_ending, imported.plan.name) == (".nrrd", "mine")


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("plans.json", {"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}, "transp"),
        ("dataset.json", {"regions_class_order": [2, 1]}, "labels"),
        ("dataset.json", {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}}, "labels"),
    ],
)
def test_a_checkpoint_of_other_plans_than_those_beside_it_is_refused(
    file: str, change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    source = write_theirs(tmp_path, "2d")
    content = json.loads((source / file).read_text()) | change
    if "labels" in change:
        del content["regions_class_order"]
    (source / file).write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"checkpoint_final\.pth: was trained by other .* {words}"):
        import_from(source, tmp_path / "ours")


def test_folds_of_different_plans_are_refused_by_name(tmp_path: Path) -> None:
    source = write_theirs(tmp_path, "2d", folds=("0", "1"))
    wider = dataclasses.replace(PLAN.configuration("2d"), batch_size=77)
    other = dataclasses.replace(PLAN, configurations={**PLAN.configurations, "2d": wider})
    torch.save(their_checkpoint(other, "2d", "1", 1), source / "fold_1" / "checkpoint_final.pth")
    with pytest.raises(DataError, match=r"fold_1.*trained by other plans.*configurations\.2d"):
        import_from(source, tmp_path / "ours")


def test_a_fold_of_another_configuration_is_refused(tmp_path: Path) -> None:
    source = write_theirs(tmp_path, "2d", folds=("0", "1"))
    torch.save(
        their_checkpoint(PLAN, "3d_fullres", "1", 1), source / "fold_1" / "checkpoint_final.pth"
    )
    with pytest.raises(DataError, match="is of 3d_fullres, another fold of 2d"):
        import_from(source, tmp_path / "ours")


def test_models_of_different_plans_are_refused(tmp_path: Path) -> None:
    write_theirs(tmp_path / "results", "2d")
    write_theirs(tmp_path / "results", "3d_fullres", plan=tiny_plan("resenc"))
    with pytest.raises(DataError, match=r"is of another plan than .*__2d; import each by itself"):
        import_from(tmp_path / "results", tmp_path / "ours")


def test_two_models_of_one_configuration_are_refused(tmp_path: Path) -> None:
    source = write_theirs(tmp_path / "results", "2d")
    shutil.copytree(source, source.with_name("nnUNetTrainer_5epochs__nnUNetPlans__2d"))
    with pytest.raises(UsageError, match=r"is 2d like .*; name the folder of the one"):
        import_from(tmp_path / "results", tmp_path / "ours")
    packed = pack_zip(tmp_path / "results", tmp_path / "results.zip")
    with pytest.raises(UsageError, match=r"is 2d like .*; unpack it and name the folder"):
        import_models(find_models(packed), None)


def test_a_trainer_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    source = write_theirs(tmp_path, "2d", change={"trainer_name": "SwishTrainer"})
    with pytest.raises(UsageError, match=r"trained by SwishTrainer.*--trainer SwishTrainer"):
        import_from(source, tmp_path / "ours")
    (imported,) = import_models(find_models(source), None, trainers=["SwishTrainer"])
    assert imported.trainer == "SwishTrainer"


def test_a_network_that_is_not_ours_is_refused_by_name(tmp_path: Path) -> None:
    source = write_theirs(tmp_path, "2d")
    text = (source / "plans.json").read_text()
    (source / "plans.json").write_text(text.replace("PlainConvUNet", "Primus"))
    with pytest.raises(PlanError, match=r"plans\.json: .*Primus"):
        import_from(source, tmp_path / "ours")


def test_another_configuration_that_nnseg_cannot_read_is_no_obstacle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_theirs(tmp_path, "3d_fullres", folds=("0", "1"))
    plans = json.loads((source / "plans.json").read_text())
    plans["configurations"]["odd"] = {"inherits_from": "2d", "normalization_schemes": ["My", "My"]}
    (source / "plans.json").write_text(json.dumps(plans))
    for fold in ("0", "1"):
        data = their_checkpoint(PLAN, "3d_fullres", fold, int(fold))
        data["init_args"]["plans"] = plans
        torch.save(data, source / f"fold_{fold}" / "checkpoint_final.pth")
    (imported,) = import_from(source, tmp_path / "ours")
    assert set(imported.plan.configurations) == set(PLAN.configurations)
    warnings = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert len(warnings) == 1  # for the file beside them, not for each checkpoint
    assert "configuration odd is left out" in warnings[0].getMessage()


@pytest.mark.parametrize("file", ["plans.json", "dataset.json"])
def test_a_model_without_its_json_names_it(file: str, tmp_path: Path) -> None:
    source = write_theirs(tmp_path, "2d")
    (source / file).unlink()
    with pytest.raises(MissingError, match=rf"{file} does not exist"):
        find_models(source)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="holds no trained model of nnU-Net v2"):
        find_models(tmp_path)
    with pytest.raises(MissingError, match="does not exist"):
        find_models(tmp_path / "nothing")


def test_a_fold_of_a_strange_name_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_theirs(tmp_path, "2d")
    shutil.copytree(source / "fold_0", source / "fold_0_old")
    with caplog.at_level(logging.WARNING):
        (found,) = find_models(source)
    assert list(found.checkpoints) == ["0"]
    assert "fold_0_old" in caplog.text


# ---------------------------------------------------------------- ours to theirs


def write_ours(
    folder: Path, configuration: str, *, plan: Plan = PLAN, folds: tuple[str, ...] = ("0",)
) -> list[Path]:
    places = []
    for number, fold in enumerate(folds):
        places.append(folder / configuration / f"fold_{fold}")
        network = build_network(
            plan.configuration(configuration).architecture,
            plan.input_channels(configuration),
            plan.labels.heads,
        )
        network.load_state_dict(weights_of(plan, configuration, number))
        save_model(
            places[-1],
            "final",
            network,
            plan=plan,
            configuration_name=configuration,
            fold=fold,
            epoch=7,
            mirror_axes=(1, 2) if plan.configuration(configuration).is_2d else (0, 2),
            validation_dice=0.625,
        )
    return places


@pytest.mark.parametrize("network", ["plain", "resenc"])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_model_that_went_to_nnunet_comes_back_as_it_was(
    configuration: str, network: str, tmp_path: Path
) -> None:
    plan = tiny_plan(network)
    folds = write_ours(tmp_path / "ours", configuration, plan=plan, folds=("0", "2"))
    assert export_models(folds, tmp_path / "theirs", "final") == (tmp_path / "theirs",)
    import_from(tmp_path / "theirs", tmp_path / "back")
    for fold in folds:
        before, weights = load_model(fold, "final")
        after, again = load_model(tmp_path / "back" / configuration / fold.name, "final")
        assert same(again, weights)
        held = dataclasses.replace(
            before.plan,
            name="nnUNetPlans",  # what nnU-Net has no room for: the name and the reasons
            decisions=(),
        )
        assert after == dataclasses.replace(
            before, plan=held, weights_file=after.weights_file, record_sha256=after.record_sha256
        )


def test_an_exported_checkpoint_holds_tensors_and_plain_types_under_nnunets_keys(
    tmp_path: Path,
) -> None:
    (fold,) = write_ours(tmp_path / "ours", "2d", folds=("all",))
    export_models([fold], tmp_path / "theirs", "final")
    file = tmp_path / "theirs" / "fold_all" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=True)  # without any type allowed beyond torch's own
    assert content["trainer_name"] == "nnUNetTrainer"
    assert content["inference_allowed_mirroring_axes"] == (0, 1)
    assert content["init_args"]["configuration"] == "2d"
    assert content["init_args"]["fold"] == "all"
    assert content["current_epoch"] == 7
    plans = json.loads((tmp_path / "theirs" / "plans.json").read_text())
    assert plans == content["init_args"]["plans"]
    assert plans["transpose_forward"] == [2, 0, 1]
    assert json.loads((tmp_path / "theirs" / "dataset.json").read_text()) == {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        "regions_class_order": [1, 2],
        "numTraining": 0,
        "file_ending": ".nii.gz",
    }


def test_without_mirrors_nnunet_is_told_none(tmp_path: Path) -> None:
    (fold,) = write_ours(tmp_path / "ours", "2d")
    checkpoint, weights = load_model(fold, "final")
    network = build_network(checkpoint.configuration.architecture, 2, PLAN.labels.heads)
    network.load_state_dict(weights)
    save_model(
        fold,
        "final",
        network,
        plan=PLAN,
        configuration_name="2d",
        fold="0",
        epoch=1,
        mirror_axes=(),
        validation_dice=None,
    )
    export_models([fold], tmp_path / "theirs", "final")
    file = tmp_path / "theirs" / "fold_0" / "checkpoint_final.pth"
    assert torch.load(file, weights_only=True)["inference_allowed_mirroring_axes"] is None


def test_several_configurations_lie_side_by_side_as_in_nnunets_results(tmp_path: Path) -> None:
    folds = [fold for name in CASCADE for fold in write_ours(tmp_path / "ours", name)]
    places = export_models(folds, tmp_path / "theirs", "final")
    assert [place.name for place in places] == [
        f"nnUNetTrainer__nnUNetPlans__{name}" for name in CASCADE
    ]
    imported = import_from(tmp_path / "theirs", tmp_path / "back")
    assert {one.configuration_name for one in imported} == set(CASCADE)


def test_gaps_between_labels_are_closed_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gaps = dataclasses.replace(PLAN, labels=Labels(labels={"background": 0, "a": 2, "b": 5}))
    with caplog.at_level(logging.WARNING):
        export_models(write_ours(tmp_path / "ours", "2d", plan=gaps), tmp_path / "out", "final")
    assert "background = 0, a = 1, b = 2" in caplog.text
    labels = json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "a": 1, "b": 2}


@pytest.mark.parametrize("place", ["2d", "."])
def test_rules_for_label_maps_are_copied_and_said(
    place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = Postprocessing(rules=(KeepLargest(labels=("whole", "core")),))
    folds = write_ours(tmp_path / "ours", "2d")
    record.save(rules, postprocessing_file(tmp_path / "ours" / place))
    export_models(folds, tmp_path / "theirs", "final")
    copied = postprocessing_file(tmp_path / "theirs")
    assert record.load(Postprocessing, copied) == rules
    assert "is not applied by nnU-Net" in caplog.text
    assert str(copied) in caplog.text


def test_without_rules_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folds = write_ours(tmp_path / "ours", "2d")
    record.save(Postprocessing(), postprocessing_file(tmp_path / "ours" / "2d"))
    export_models(folds, tmp_path / "theirs", "final")
    assert caplog.text == ""


def test_an_own_name_of_a_plan_comes_back(tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, name="nnUNetPlans_mine")
    folds = [fold for name in CASCADE for fold in write_ours(tmp_path / "ours", name, plan=plan)]
    places = export_models(folds, tmp_path / "theirs", "final")
    assert places[0].name == "nnUNetTrainer__nnUNetPlans_mine__3d_lowres"
    imported = import_from(tmp_path / "theirs", tmp_path / "back")
    assert imported[0].plan.name == "nnUNetPlans_mine"


def test_folds_of_different_plans_are_not_exported_together(tmp_path: Path) -> None:
    first = write_ours(tmp_path / "one", "2d")
    second = write_ours(tmp_path / "two", "2d", plan=tiny_plan("resenc"))
    with pytest.raises(DataError, match="was trained from another plan"):
        export_models(first + second, tmp_path / "out", "final")
    with pytest.raises(DataError, match="is fold 0 of 2d like another one"):
        export_models(first + write_ours(tmp_path / "three", "2d"), tmp_path / "out", "final")
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    folds = write_ours(tmp_path / "ours", "2d", folds=("0", "1"))
    weights = next(folds[1].glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DataError, match=re.escape(weights.name)):
        export_models(folds, tmp_path / "out", "final")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
