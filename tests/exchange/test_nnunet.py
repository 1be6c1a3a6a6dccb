import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnseg import record
from nnseg.axes import Shape, Spacing
from nnseg.dataset import DatasetSpec, read_spec
from nnseg.errors import DataError, NnsegError, PlanError
from nnseg.exchange.nnunet_reading import read_fingerprint, read_plans
from nnseg.exchange.nnunet_writing import fingerprint_to_json, plans_name, plans_to_json
from nnseg.fingerprint import Fingerprint
from nnseg.image.intensity import Intensity
from nnseg.labels import Labels
from nnseg.model.architecture import NetworkOptions
from nnseg.plan import Plan, Resampling, make_plan

INTENSITY = Intensity(
    mean=80.0, median=78.0, std=20.0, min=-10.0, max=300.0, percentile_00_5=2, percentile_99_5=99.5
)
SPEC = DatasetSpec(
    channels=("CT", "T1"),
    labels=Labels(labels={"background": 0, "liver": 1}),
    num_training=7,
    file_ending=".nii.gz",
)


def make_fingerprint(
    spacing: Spacing = (0.8, 0.7, 3.0), shape: Shape = (300, 310, 120)
) -> Fingerprint:
    return Fingerprint(
        spacings=(spacing,) * 2,
        shapes=(shape, shape),
        intensities=(INTENSITY, dataclasses.replace(INTENSITY, mean=5.0)),
        median_relative_size=0.5,
    )


def plan_of(fingerprint: Fingerprint | None = None, **options: Any) -> Plan:
    """A plan whose order is no identity, with 2d, 3d_lowres, 3d_fullres and the cascade."""
    options = {"dataset": "Dataset900_Test", "memory_gb": 1.0, **options}
    return make_plan(SPEC, fingerprint or make_fingerprint(), **options)


@pytest.fixture(scope="module")
def plans_text() -> str:
    """The same plan as nnU-Net would write it."""
    return json.dumps(plans_to_json(plan_of()))


@pytest.fixture
def plans(plans_text: str) -> dict[str, Any]:
    """What `plans_text` holds, to change."""
    return dict(json.loads(plans_text))


def read(plans: Any) -> Plan:
    return read_plans(plans, SPEC, name="nnseg")


def test_a_fingerprint_comes_back_from_nnunets_form() -> None:
    fingerprint = make_fingerprint()
    data = json.loads(json.dumps(fingerprint_to_json(fingerprint)))
    assert data["shapes_after_crop"] == [[300, 310, 120]] * 2
    assert data["foreground_intensity_properties_per_channel"]["1"]["mean"] == 5.0
    assert read_fingerprint(data) == fingerprint


def test_a_fingerprint_of_whole_numbers_and_999_mm_is_read() -> None:
    data = fingerprint_to_json(make_fingerprint()) | {
        "spacings": [[999, 1, 2]],
        "shapes_after_crop": [[1, 50, 60]],
        "median_relative_size_after_cropping": 1,
        "a key of a later version": None,
    }
    fingerprint = read_fingerprint(data)
    assert fingerprint.spacings == ((999.0, 1.0, 2.0),)
    assert fingerprint.shapes == ((1, 50, 60),)
    assert fingerprint.median_relative_size == 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spacings": [[1.0, 2.0]]}, "fp: spacings"),
        ({"shapes_after_crop": [[1.5, 2, 3]] * 2}, "fp: shapes_after_crop"),
        ({"median_relative_size_after_cropping": "all"}, "fp: median_relative_size"),
        ({"foreground_intensity_properties_per_channel": {"0": {}}}, "mean: field required"),
    ],
)
def test_a_wrong_fingerprint_says_what_is_wrong(change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_fingerprint(fingerprint_to_json(make_fingerprint()) | change, "fp")


def test_channels_of_a_fingerprint_are_0_1_2() -> None:
    data = fingerprint_to_json(make_fingerprint())
    intensities = data["foreground_intensity_properties_per_channel"]
    intensities["5"] = intensities.pop("1")
    with pytest.raises(DataError, match="has the keys 0, 5; they must be 0, 1, 2"):
        read_fingerprint(data)


def test_ten_and_more_channels_keep_their_order() -> None:
    channels = tuple(dataclasses.replace(INTENSITY, mean=float(i)) for i in range(12))
    fingerprint = dataclasses.replace(make_fingerprint(), intensities=channels)
    data = fingerprint_to_json(fingerprint)
    key = "foreground_intensity_properties_per_channel"
    data[key] = dict(sorted(data[key].items()))  # as nnU-Net sorts: 0, 1, 10, 11, 2
    assert read_fingerprint(data).intensities == channels


@pytest.mark.parametrize("data", [[], None, "plans"])
@pytest.mark.parametrize("reader", [read_fingerprint, read])
def test_files_hold_an_object(reader: Callable[[Any], Any], data: Any) -> None:
    with pytest.raises(DataError, match="must hold a JSON object"):
        reader(data)


@pytest.mark.parametrize("planner", ["default", "resenc", "resenc_m", "resenc_l", "resenc_xl"])
def test_a_plan_comes_back_from_nnunets_form(planner: str) -> None:
    plan = plan_of(planner=planner, memory_gb=None)
    back = read(json.loads(json.dumps(plans_to_json(plan))))
    assert back == dataclasses.replace(plan, decisions=())


def test_a_cascade_comes_back_with_its_data_and_previous() -> None:
    plan = plan_of()
    assert list(plan.configurations) == ["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"]
    assert plan.order == (2, 0, 1)
    assert read(plans_to_json(plan)).configurations == plan.configurations


def test_single_slices_come_back() -> None:
    plan = plan_of(make_fingerprint((999.0, 1.0, 0.9), (1, 256, 320)))
    back = read(plans_to_json(plan))
    assert back.configurations == plan.configurations
    assert back.configuration("2d").median_shape[0] == 1


def test_a_cascade_is_written_as_what_it_adds(plans: dict[str, Any]) -> None:
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    assert plans["configurations"]["3d_cascade_fullres"] == cascade
    assert plans["configurations"]["3d_lowres"]["next_stage"] == "3d_cascade_fullres"


def test_a_2d_configuration_is_written_without_its_slices(plans: dict[str, Any]) -> None:
    flat = plans["configurations"]["2d"]
    assert len(flat["patch_size"]) == len(flat["median_image_size_in_voxels"]) == 2
    assert flat["spacing"] == [0.8, 0.7]
    arguments = flat["architecture"]["arch_kwargs"]
    assert arguments["conv_op"] == "torch.nn.modules.conv.Conv2d"
    assert arguments["norm_op"] == "torch.nn.modules.instancenorm.InstanceNorm2d"
    assert arguments["strides"][:2] == [[1, 1], [2, 2]]
    assert arguments["kernel_sizes"][0] == [3, 3]


def test_orders_are_written_both_ways(plans: dict[str, Any]) -> None:
    assert plans["transpose_forward"] == [2, 0, 1]
    assert plans["transpose_backward"] == [1, 2, 0]
    assert plans["original_median_shape_after_transp"] == [120, 300, 310]
    assert plans["original_median_spacing_after_transp"] == [3.0, 0.8, 0.7]


@pytest.mark.parametrize(
    ("planner", "memory_gb", "name", "data_2d", "data_lowres"),
    [
        ("default", None, "nnUNetPlans", "nnUNetPlans_2d", "nnUNetPlans_3d_lowres"),
        (
            "default",
            1.5,
            "nnUNetPlans_1.5GB",
            "nnUNetPlans_1.5GB_2d",
            "nnUNetPlans_1.5GB_3d_lowres",
        ),
        ("resenc", 8, "nnUNetResEncUNetPlans", "nnUNetPlans_2d", "nnUNetResEncUNetPlans_3d_lowres"),
        (
            "resenc_m",
            1,
            "nnUNetResEncUNetMPlans_1GB",
            "nnUNetPlans_2d",
            "nnUNetResEncUNetMPlans_1GB_3d_lowres",
        ),
    ],
)
def test_plans_and_their_data_are_named_by_planner_and_memory(
    planner: str, memory_gb: float | None, name: str, data_2d: str, data_lowres: str
) -> None:
    plan = plan_of(make_fingerprint(shape=(600, 610, 200)), planner=planner, memory_gb=memory_gb)
    data = plans_to_json(plan)
    assert data["plans_name"] == plans_name(plan) == name
    assert data["configurations"]["2d"]["data_identifier"] == data_2d
    assert data["configurations"]["3d_lowres"]["data_identifier"] == data_lowres


@pytest.mark.parametrize(
    ("ending", "shape", "reader"),
    [
        (".nii.gz", (30, 40, 50), "SimpleITKIO"),
        (".NRRD", (30, 40, 50), "SimpleITKIO"),
        (".nii", (30, 40, 50), "NibabelIO"),
        (".png", (1, 40, 50), "NaturalImage2DIO"),
        (".bmp", (1, 40, 50), "NaturalImage2DIO"),
        (".tif", (1, 40, 50), "NaturalImage2DIO"),
        (".tif", (30, 40, 50), "Tiff3DIO"),
        (".tiff", (30, 40, 50), "Tiff3DIO"),
    ],
)
def test_the_reader_is_chosen_by_the_ending(ending: str, shape: Shape, reader: str) -> None:
    plan = dataclasses.replace(
        plan_of(make_fingerprint((3.0, 1.0, 0.9), shape)), file_ending=ending
    )
    assert plans_to_json(plan)["image_reader_writer"] == reader
    assert plans_to_json(plan, reader="Tiff3DIO")["image_reader_writer"] == "Tiff3DIO"


@pytest.mark.parametrize(
    ("ending", "shape", "remedy"),
    [
        (".JPG", (1, 40, 50), r"label maps as JPEG, which changes them: convert .* to \.png"),
        (".jpeg", (1, 40, 50), "convert the images to .png"),
        (".tiff", (1, 40, 50), "of three axes only: convert the images to .png or .tif"),
        (".hdr", (30, 40, 50), "convert the images to .nii.gz"),
        (".hdr.gz", (30, 40, 50), "convert the images to .nii.gz"),
    ],
)
def test_images_that_nnunet_cannot_read_or_write_are_refused(
    ending: str, shape: Shape, remedy: str
) -> None:
    plan = dataclasses.replace(
        plan_of(make_fingerprint((3.0, 1.0, 0.9), shape)), file_ending=ending
    )
    with pytest.raises(PlanError, match=remedy):
        plans_to_json(plan)


def test_a_plan_keeps_the_name_that_somebody_gave_it() -> None:
    plan = plan_of(memory_gb=1.5)
    for name, wanted in (
        ("my plan", "my plan"),
        ("nnunet", "nnUNetPlans_1.5GB"),
        ("nnUNetPlans", "nnUNetPlans_1.5GB"),
        ("my__plan", "nnUNetPlans_1.5GB"),  # it would part the name of nnU-Net's folder
    ):
        data = plans_to_json(dataclasses.replace(plan, name=name))
        assert data["plans_name"] == wanted
        assert data["configurations"]["2d"]["data_identifier"] == f"{wanted}_2d"


def odd_sibling(plans: dict[str, Any]) -> dict[str, Any]:
    """The plans with a configuration that only its author can use, and one that builds on it."""
    odd = plans["configurations"]["3d_fullres"] | {"normalization_schemes": ["MyNorm"] * 2}
    odd["data_identifier"] = "odd"
    plans["configurations"] |= {"odd": odd, "after": {"inherits_from": "2d", "batch_size": 3}}
    plans["configurations"]["after"]["previous_stage"] = "odd"
    return plans


def test_of_a_models_plans_only_what_it_needs_must_be_readable(
    plans: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    wanted = read(plans)
    odd_sibling(plans)
    with pytest.raises(PlanError, match="MyNorm"):
        read(plans)
    for needed in ((), ("3d_cascade_fullres",)):
        found = read_plans(plans, SPEC, name="nnseg", needed=needed)
        assert found.configurations == wanted.configurations
    assert "plans.json: configuration odd is left out: configurations.odd: no norm" in caplog.text
    assert "configuration after is left out: configuration after needs odd: " in caplog.text
    for name in ("odd", "after"):
        with pytest.raises(PlanError, match="MyNorm"):
            read_plans(plans, SPEC, name="nnseg", needed=(name,))


def test_plans_of_which_nothing_can_be_read_say_why(plans: dict[str, Any]) -> None:
    plans["configurations"] = {"odd": odd_sibling(plans)["configurations"]["odd"]}
    with pytest.raises(PlanError, match="MyNorm"):
        read_plans(plans, SPEC, name="nnseg", needed=())


@pytest.mark.parametrize(
    "path",
    [
        "original_median_shape_after_transp",
        "original_median_spacing_after_transp",
        "configurations/3d_fullres/median_image_size_in_voxels",
        "configurations/2d/median_image_size_in_voxels",
    ],
)
def test_a_number_beyond_all_floats_is_refused(path: str, plans: dict[str, Any]) -> None:
    change(plans, path, [10**400, 10**400, 10**400])
    with pytest.raises(DataError, match=f"{path.split('/')[-1]}.*finite"):
        read(plans)


@pytest.mark.parametrize(
    ("change", "called"),
    [
        ({"network": "unetpp"}, "unetpp"),
        (
            {"options": NetworkOptions(upsampling="shuffled")},
            r"plain \(upsampling shuffled\)",
        ),
    ],
)
def test_a_network_that_nnunet_lacks_is_not_written(change: dict[str, Any], called: str) -> None:
    plan = plan_of()
    flat = plan.configuration("2d")
    other = dataclasses.replace(flat.architecture, **change)
    changed = {"2d": dataclasses.replace(flat, architecture=other)}
    words = rf"2d has the network {called}, which nnU-Net cannot build; it knows plain and resenc"
    with pytest.raises(PlanError, match=words):
        plans_to_json(dataclasses.replace(plan, configurations=changed))


def test_ones_own_planner_keeps_its_name() -> None:
    data = plans_to_json(dataclasses.replace(plan_of(), planner="mine"))
    assert data["experiment_planner_used"] == "mine"
    assert data["plans_name"] == "nnUNetPlans_mine"


def test_a_child_overrides_what_it_inherits_over_several_generations(plans: dict[str, Any]) -> None:
    configurations = plans["configurations"]
    configurations["larger"] = {"inherits_from": "3d_fullres", "batch_size": 5}
    configurations["largest"] = {"inherits_from": "larger", "batch_dice": False}
    plan = read(plans)
    parent = plan.configuration("3d_fullres")
    assert plan.configuration("largest") == dataclasses.replace(
        parent, name="largest", data="3d_fullres", batch_size=5, batch_dice=False
    )
    again = plans_to_json(plan)["configurations"]
    assert again["larger"] == configurations["larger"]
    assert again["largest"]["inherits_from"] == "3d_fullres"
    assert read(plans_to_json(plan)) == plan


def test_a_child_with_an_identifier_of_its_own_has_data_of_its_own(plans: dict[str, Any]) -> None:
    plans["configurations"]["fine"] = {
        "inherits_from": "3d_fullres",
        "data_identifier": "nnUNetPlans_fine",
        "spacing": [1.5, 0.8, 0.7],
    }
    assert read(plans).configuration("fine").data == "fine"


def test_a_child_of_lowres_leads_to_no_cascade(plans: dict[str, Any]) -> None:
    plans["configurations"]["lowres_5"] = {"inherits_from": "3d_lowres", "batch_size": 5}
    again = plans_to_json(read(plans))["configurations"]
    assert again["lowres_5"]["next_stage"] is None
    assert again["3d_lowres"]["next_stage"] == "3d_cascade_fullres"


@pytest.mark.parametrize("parents", [("2d",), ("b", "2d"), ("b", "c", "2d")])
def test_inheritance_in_a_circle_is_refused(
    parents: tuple[str, ...], plans: dict[str, Any]
) -> None:
    for child, parent in zip(("2d", *parents), parents, strict=False):
        plans["configurations"].setdefault(child, {})["inherits_from"] = parent
    with pytest.raises(PlanError, match=r"inherit in a circle, .*2d"):
        read(plans)


@pytest.mark.parametrize("parent", ["4d", 5, ["2d"]])
def test_a_missing_parent_is_named(parent: Any, plans: dict[str, Any]) -> None:
    plans["configurations"]["2d"]["inherits_from"] = parent
    with pytest.raises(PlanError, match=r"2d inherits from .* which is not there; there are 2d"):
        read(plans)


def change(plans: dict[str, Any], path: str, value: Any) -> None:
    *way, last = path.split("/")
    for key in way:
        plans = plans[key]
    plans[last] = value


NETWORK = "configurations/2d/architecture"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (f"{NETWORK}/network_class_name", "os.system", r"2d: no network class .* 'os\.system'"),
        (f"{NETWORK}/network_class_name", None, "no network class"),
        (f"{NETWORK}/arch_kwargs", None, "arch_kwargs is missing"),
        (f"{NETWORK}/arch_kwargs/conv_op", "torch.nn.modules.conv.Conv1d", "Conv1d.*known: .*2d"),
        (f"{NETWORK}/arch_kwargs/norm_op", "torch.nn.BatchNorm2d", "norm_op is .*BatchNorm2d"),
        (f"{NETWORK}/arch_kwargs/norm_op_kwargs", {"eps": 1e-3, "affine": True}, "norm_op_kwargs"),
        (f"{NETWORK}/arch_kwargs/dropout_op", "torch.nn.Dropout2d", "dropout_op is"),
        (f"{NETWORK}/arch_kwargs/nonlin", "builtins.eval", "nonlin is 'builtins.eval'"),
        (f"{NETWORK}/arch_kwargs/conv_bias", False, "conv_bias is False"),
        (f"{NETWORK}/arch_kwargs/stem_channels", 16, "stem_channels"),
        (f"{NETWORK}/arch_kwargs/n_stages", 3, "n_stages is 3, features_per_stage has"),
        (f"{NETWORK}/arch_kwargs/strides", [[1, 1]], "strides has 1 entries"),
        (f"{NETWORK}/arch_kwargs/kernel_sizes", [[3, 3, 3]], "kernel_sizes has a wrong number"),
        (f"{NETWORK}/arch_kwargs/n_conv_per_stage", [], "encoder_blocks has 0 entries"),
        ("configurations/2d/normalization_schemes", ["MyNorm", "CTNormalization"], "'MyNorm'"),
        ("configurations/2d/resampling_fn_data", "no_resampling_hack", "'no_resampling_hack'"),
        ("configurations/2d/resampling_fn_seg_kwargs", {"is_seg": False}, "is_seg False"),
        ("configurations/2d/resampling_fn_data_kwargs", {"orders": 3}, "orders"),
        (
            "configurations/2d/resampling_fn_data_kwargs",
            {"separate_z_anisotropy_threshold": 5},
            "separate_z_anisotropy_threshold 5",
        ),
        ("configurations/2d/preprocessor_name", "MyPreprocessor", "preprocessor_name"),
        ("configurations/2d/resampling_fn_data_kwargs", {"order": 9}, "order of a .* is 9; it"),
        ("configurations/2d/resampling_fn_data_kwargs", {"order_z": -1}, "order_along .* is -1"),
        ("configurations/2d/patch_size", [1, 64, 64], "patch_size has a wrong number of axes"),
        ("configurations/2d/spacing", [1.0], "spacing has a wrong number of axes"),
        ("configurations/2d/batch_size", "12", "2d: batch_size"),
        ("configurations/3d_cascade_fullres/previous_stage", "4d", "needs 4d"),
        ("label_manager", "MyLabels", "label_manager"),
        ("image_reader_writer", "NibabelIOWithReorient", "NibabelIOWithReorient, which"),
        ("transpose_forward", [0, 0, 1], "must be orders of 0, 1, 2"),
        ("transpose_backward", [2, 0, 1], "undo each other"),
        ("configurations", [], "configurations"),
        ("dataset_name", None, "dataset_name"),
    ],
)
def test_what_nnseg_has_nothing_for_is_refused_by_name(
    path: str, value: Any, words: str, plans: dict[str, Any]
) -> None:
    change(plans, path, value)
    with pytest.raises(NnsegError, match=f"(?s)plans.json: .*{words}"):
        read(plans)


@pytest.mark.parametrize("key", ["dataset_name", "transpose_forward", "configurations"])
def test_a_missing_key_is_named(key: str, plans: dict[str, Any]) -> None:
    del plans[key]
    with pytest.raises(DataError, match=rf"^plans\.json: {key}: field required"):
        read(plans)


def test_a_missing_key_of_a_configuration_is_named(plans: dict[str, Any]) -> None:
    del plans["configurations"]["2d"]["batch_dice"]
    with pytest.raises(DataError, match=r"^plans\.json: configurations\.2d: batch_dice"):
        read(plans)


def test_dataset_json_must_have_as_many_channels(plans: dict[str, Any]) -> None:
    spec = dataclasses.replace(SPEC, channels=("CT",))
    with pytest.raises(DataError, match=r"2 channels, dataset\.json has 1"):
        read_plans(plans, spec, name="nnseg")


def test_labels_channels_and_ending_come_from_dataset_json(plans: dict[str, Any]) -> None:
    plan = read_plans(plans, SPEC, name="theirs")
    assert (plan.name, plan.dataset) == ("theirs", "Dataset900_Test")
    assert (plan.labels, plan.channels, plan.file_ending) == (SPEC.labels, SPEC.channels, ".nii.gz")


def test_the_memory_target_is_taken_to_be_the_planners_own() -> None:
    plan = plan_of(planner="resenc_l", memory_gb=2.0)
    assert read(plans_to_json(plan)).memory_gb == 24


@pytest.mark.parametrize(("network", "ours"), [("default", "default"), ("resenc_l", "resenc")])
def test_an_unknown_planner_counts_as_one_with_its_network(network: str, ours: str) -> None:
    data = plans_to_json(plan_of(planner=network))
    data["experiment_planner_used"] = "SomebodysPlanner"
    assert read(data).planner == ours


def test_resampling_by_torch_is_linear(plans: dict[str, Any]) -> None:
    flat = plans["configurations"]["2d"]
    for kind, is_seg in (("data", False), ("seg", True), ("probabilities", False)):
        flat[f"resampling_fn_{kind}"] = "resample_torch_fornnunet"
        flat[f"resampling_fn_{kind}_kwargs"] = {
            "is_seg": is_seg,
            "force_separate_z": False,
            "memefficient_seg_resampling": False,
        }
    configuration = read(plans).configuration("2d")
    linear = Resampling(order=1, order_along=0, separate=False)
    assert configuration.resample_image == configuration.resample_logits == linear
    assert configuration.resample_segmentation == linear


def test_forced_separate_resampling_comes_back() -> None:
    plan = plan_of()
    flat = dataclasses.replace(
        plan.configuration("2d"),
        resample_logits=Resampling(order=1, order_along=1, separate=True),
    )
    plan = dataclasses.replace(plan, configurations=plan.configurations | {"2d": flat})
    assert read(plans_to_json(plan)).configuration("2d") == flat


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_plans_of_early_v2_releases_are_read(kind: str) -> None:
    plan = plan_of(planner="default" if kind == "PlainConvUNet" else "resenc_m")
    plans = plans_to_json(plan)
    for configuration in plans["configurations"].values():
        if "architecture" not in configuration:
            continue
        arguments = configuration.pop("architecture")["arch_kwargs"]
        blocks = arguments.get("n_conv_per_stage", arguments.get("n_blocks_per_stage"))
        configuration |= {
            "UNet_class_name": kind,
            "UNet_base_num_features": 32,
            "unet_max_num_features": 512 if len(configuration["patch_size"]) == 2 else 320,
            "n_conv_per_stage_encoder": blocks,
            "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
            "num_pool_per_axis": [],
            "pool_op_kernel_sizes": arguments["strides"],
            "conv_kernel_sizes": arguments["kernel_sizes"],
        }
    intensities = plans.pop("foreground_intensity_properties_per_channel")
    plans["foreground_intensity_properties_by_modality"] = intensities
    assert read(plans).configurations == plan.configurations


def test_a_network_of_an_early_release_that_we_lack_is_refused(plans: dict[str, Any]) -> None:
    plans["configurations"]["2d"].pop("architecture")
    plans["configurations"]["2d"]["UNet_class_name"] = "MyUNet"
    with pytest.raises(DataError, match=r"configurations\.2d: UNet_class_name"):
        read(plans)


def test_every_plan_of_the_peer_is_read_as_we_would_plan_it(shared: Path) -> None:
    planners = {"M": "resenc_m", "L": "resenc_l", "XL": "resenc_xl"}
    files = sorted((shared / "reference" / "nnunet_plans").glob("*/nnUNet*.json"))
    assert len(files) >= 49
    for file in files:
        stem, _, memory = file.stem.partition("_")
        size = stem.removeprefix("nnUNetResEncUNet").removesuffix("Plans")
        spec = read_spec(file.parent / "dataset.json")
        ours = make_plan(
            spec,
            read_fingerprint(record.read_json(file.parent / "dataset_fingerprint.json")),
            dataset=file.parent.name,
            planner=planners.get(size, "default"),
            memory_gb=float(memory.removesuffix("GB")) if memory else None,
        )
        theirs = read_plans(record.read_json(file), spec, name="nnseg", where=str(file))
        rounded = tuple(float(round(size)) for size in ours.median_shape)
        ours = dataclasses.replace(ours, decisions=(), median_shape=rounded)
        assert dataclasses.replace(theirs, memory_gb=ours.memory_gb) == ours, file


def test_every_fingerprint_of_the_peer_comes_back(shared: Path) -> None:
    files = sorted((shared / "reference" / "nnunet_plans").glob("*/dataset_fingerprint.json"))
    assert len(files) >= 11
    for file in files:
        data = record.read_json(file)
        assert fingerprint_to_json(read_fingerprint(data)) == data


def test_plans_whose_names_lead_out_of_our_folders_are_refused(plans: dict[str, Any]) -> None:
    victim = "../../../victim"
    moved = plans["configurations"] | {victim: plans["configurations"]["2d"]}
    for change in ({"dataset_name": victim}, {"configurations": moved}):
        with pytest.raises(PlanError, match=r"p: .*'\.\./\.\./\.\./victim', which cannot name"):
            read_plans(plans | change, SPEC, name="theirs", where="p")


def test_the_decoder_is_counted_from_the_deepest_level_there_and_from_the_finest_here() -> None:
    plan = plan_of()
    full = plan.configuration("3d_fullres")
    blocks = tuple(range(1, full.architecture.levels))
    uneven = dataclasses.replace(full.architecture, decoder_blocks=blocks)
    configurations = {"3d_fullres": dataclasses.replace(full, architecture=uneven)}
    data = plans_to_json(dataclasses.replace(plan, configurations=configurations))
    arguments = data["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert arguments["n_conv_per_stage_decoder"] == list(blocks[::-1])
    back = read_plans(data, SPEC, name="nnseg").configuration("3d_fullres")
    assert back.architecture.decoder_blocks == blocks
