import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from nnseg import record
from nnseg.axes import Shape, Spacing
from nnseg.dataset import DatasetSpec, read_spec
from nnseg.errors import PlanError
from nnseg.exchange.nnunet_reading import read_fingerprint
from nnseg.exchange.nnunet_writing import plans_to_json
from nnseg.fingerprint import Fingerprint
from nnseg.image.intensity import Intensity
from nnseg.labels import Labels
from nnseg.model.architecture import NetworkOptions
from nnseg.plan import (
    Plan,
    Resampling,
    batch_dice,
    describe_plan,
    explain_plan,
    make_plan,
    mask_use,
)
from nnseg.target_spacing import fullres_spacing, median_shape, plan_order
from nnseg.topology import MedianShape

INTENSITY = Intensity(
    mean=80.0, median=78.0, std=20.0, min=-10.0, max=300.0, percentile_00_5=2.0, percentile_99_5=99
)


def make_fingerprint(
    *cases: tuple[Spacing, Shape], channels: int = 1, relative_size: float = 1.0
) -> Fingerprint:
    spacings, shapes = zip(*cases, strict=True)
    return Fingerprint(
        spacings=spacings,
        shapes=shapes,
        intensities=(INTENSITY,) * channels,
        median_relative_size=relative_size,
    )


def make_spec(
    *, entries: int = 2, num_training: int = 20, channels: tuple[str, ...] = ("MRI",)
) -> DatasetSpec:
    labels = {"background": 0, **{f"organ {i}": i for i in range(1, entries)}}
    return DatasetSpec(
        channels=channels,
        labels=Labels(labels=labels),
        num_training=num_training,
        file_ending=".nii.gz",
    )


def plan_of(
    spacing: Spacing, shape: Shape, *, entries: int = 2, num_training: int = 20, **options: Any
) -> Plan:
    return make_plan(
        make_spec(entries=entries, num_training=num_training),
        make_fingerprint((spacing, shape)),
        dataset="Dataset900_Test",
        **options,
    )


def plan_like_liver(**options: Any) -> Plan:
    """Plan for the approximate statistics of the Medical Segmentation Decathlon's liver dataset."""
    return plan_of((1, 0.7676, 0.7676), (482, 512, 512), entries=3, num_training=131, **options)


PEER_PLANS = {  # stem of the file: planner, memory target, how many datasets have it
    "nnUNetPlans": ("default", None, 11),
    "nnUNetPlans_1GB": ("default", 1.0, 5),
    "nnUNetPlans_2GB": ("default", 2.0, 5),
    "nnUNetPlans_3GB": ("default", 3.0, 5),
    "nnUNetResEncUNetMPlans": ("resenc_m", None, 9),
    "nnUNetResEncUNetLPlans": ("resenc_l", None, 7),
    "nnUNetResEncUNetXLPlans": ("resenc_xl", None, 7),
}


@pytest.mark.parametrize("stem", PEER_PLANS)
def test_plans_equal_the_peers_on_every_field(stem: str, shared: Path) -> None:
    planner, memory_gb, datasets = PEER_PLANS[stem]
    files = sorted((shared / "reference" / "nnunet_plans").glob(f"*/{stem}.json"))
    assert len(files) >= datasets
    for file in files:
        folder = file.parent
        plan = make_plan(
            read_spec(folder / "dataset.json"),
            read_fingerprint(record.read_json(folder / "dataset_fingerprint.json")),
            dataset=folder.name,
            planner=planner,
            memory_gb=memory_gb,
        )
        theirs = record.read_json(file)
        ours = plans_to_json(plan)
        assert differences(ours, theirs, folder.name) == []
        assert list(ours["configurations"]) == list(theirs["configurations"])


def differences(ours: Any, theirs: Any, path: str) -> list[str]:
    """Where two JSON values differ; numbers may by 1e-9 of their size."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        alone = [f"{path}.{key} is on one side only" for key in ours.keys() ^ theirs.keys()]
        both = ours.keys() & theirs.keys()
        return alone + [d for k in both for d in differences(ours[k], theirs[k], f"{path}.{k}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}[{i}]")]
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        alike = isinstance(ours, bool) == isinstance(theirs, bool)
        same = alike and math.isclose(ours, theirs, rel_tol=1e-9)
    else:
        same = ours == theirs
    return [] if same else [f"{path}: {ours!r} is not {theirs!r}"]


def test_the_target_spacing_is_the_median_axis_by_axis() -> None:
    cases = [((1.0, 0.5, 0.9), (40, 50, 60)), ((2.0, 0.7, 0.8), (40, 50, 60))]
    assert fullres_spacing(make_fingerprint(*cases)) == pytest.approx((1.5, 0.6, 0.85))


def coarse_cohort(axis: int, spacings: tuple[float, float], size: int) -> Fingerprint:
    cases = []
    for mm in spacings:
        spacing, shape = [0.7, 0.8, 0.9], [240, 250, 260]
        spacing[axis], shape[axis] = mm, size
        cases.append(((*spacing,), (*shape,)))
    return make_fingerprint(*cases)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_coarse_axis_takes_its_10th_percentile_wherever_it_lies(axis: int) -> None:
    found = fullres_spacing(coarse_cohort(axis, (4.0, 6.0), 20))
    assert found[axis] == pytest.approx(4.2)  # the median would be 5
    assert found == tuple(found[axis] if i == axis else (0.7, 0.8, 0.9)[i] for i in range(3))


def test_a_coarse_axis_stays_the_coarsest() -> None:
    assert fullres_spacing(coarse_cohort(0, (0.5, 8.0), 20))[0] == pytest.approx(1.25)
    lower = fullres_spacing(coarse_cohort(0, (0.1, 6.0), 20))[0]  # its 10th percentile is 0.69
    assert lower == pytest.approx(0.9 + 1e-5, abs=1e-9)


@pytest.mark.parametrize(("fine", "expected"), [(1.0, 3.0), (0.999, 2.2)])
def test_an_axis_is_coarse_from_over_3_times_the_others(fine: float, expected: float) -> None:
    cases = [((mm, fine, 0.5), (20, 250, 260)) for mm in (2.0, 4.0)]
    assert fullres_spacing(make_fingerprint(*cases))[0] == pytest.approx(expected)


@pytest.mark.parametrize(("size", "expected"), [(80, 5.0), (79, 4.2)])
def test_a_coarse_axis_must_also_have_less_than_a_third_of_the_voxels(
    size: int, expected: float
) -> None:
    cases = [((mm, 0.8, 0.9), (size, 240, 250)) for mm in (4.0, 6.0)]
    assert fullres_spacing(make_fingerprint(*cases))[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("spacing", "order"),
    [((0.7, 0.8, 5.0), (2, 0, 1)), ((0.7, 5.0, 0.8), (1, 0, 2)), ((2.0, 2.0, 2.0), (0, 1, 2))],
)
def test_the_coarsest_axis_comes_first(spacing: Spacing, order: Shape) -> None:
    assert plan_order(spacing) == order


def test_the_median_shape_is_that_of_resampled_cases_in_plan_order() -> None:
    cohort = make_fingerprint(((1.0, 2.0, 4.0), (10, 20, 30)), ((2.0, 2.0, 2.0), (10, 20, 31)))
    # (10, 20, 60) and (20, 20, 31) at 1, 2 and 2 mm
    assert median_shape(cohort, (1.0, 2.0, 2.0), (2, 0, 1)) == (45.5, 15.0, 20.0)


def test_each_resampled_case_is_rounded_half_to_even() -> None:
    cohort = make_fingerprint(((1.0, 1.0, 1.0), (5, 7, 9)))
    assert median_shape(cohort, (2.0, 2.0, 2.0), (0, 1, 2)) == (2, 4, 4)


def test_an_empty_median_image_is_refused() -> None:
    with pytest.raises(PlanError, match=r"shape 0 x 20 x 30 .* finer target spacing"):
        plan_of((1.0, 1.0, 1.0), (1, 20, 30), target_spacing=(3.0, 1.0, 1.0))


@pytest.mark.parametrize(("size", "masked"), [(0.75, False), (0.749, True)])
def test_intensities_are_taken_within_the_body_if_cropping_takes_over_a_quarter(
    size: float, masked: bool
) -> None:
    assert mask_use(("zscore", "ct", "rescale_to_0_1"), size) == (masked, False, False)


def test_each_channel_is_normalized_as_its_name_asks_for() -> None:
    plan = make_plan(
        make_spec(channels=("CT", "T1")),
        make_fingerprint(((1.0, 1.0, 1.0), (30, 40, 50)), channels=2, relative_size=0.5),
        dataset="Dataset900_Test",
    )
    for configuration in plan.configurations.values():
        assert configuration.normalization == ("ct", "zscore")
        assert configuration.use_mask == (False, True)


def test_background_and_ignore_count_in_the_memory() -> None:
    labels = Labels(labels={"background": 0, "organ": 1, "ignore": 2})

    def batch_of(spec: DatasetSpec) -> int:
        many = dataclasses.replace(spec, num_training=100_000)
        cohort = make_fingerprint(((1.0, 1.0, 1.0), (36, 50, 35)))
        plan = make_plan(many, cohort, dataset="Dataset900_Test", planner="resenc_xl")
        return plan.configuration("2d").batch_size

    with_ignore = batch_of(dataclasses.replace(make_spec(), labels=labels))
    assert with_ignore == batch_of(make_spec(entries=3)) < batch_of(make_spec(entries=2))


def test_a_lowres_network_brings_a_cascade_that_shares_the_data() -> None:
    plan = plan_like_liver()
    fullres, cascade = plan.configuration("3d_fullres"), plan.configuration("3d_cascade_fullres")
    assert list(plan.configurations) == ["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"]
    changes = {"name": "3d_cascade_fullres", "data": "3d_fullres", "previous": "3d_lowres"}
    assert cascade == dataclasses.replace(fullres, **changes)  # type: ignore[arg-type]


def test_images_are_resampled_by_cubic_splines_and_the_rest_linearly() -> None:
    for configuration in plan_like_liver().configurations.values():
        assert configuration.resample_image == Resampling(order=3, order_along=0)
        assert configuration.resample_segmentation == Resampling(order=1, order_along=0)
        assert configuration.resample_logits == Resampling(order=1, order_along=0)


@pytest.mark.parametrize(
    ("name", "has_lowres", "expected"),
    [
        ("2d", False, True),
        ("2d", True, True),
        ("3d_fullres", False, False),
        ("3d_fullres", True, True),
        ("3d_lowres", True, False),
        ("3d_cascade_fullres", True, True),
    ],
)
def test_batch_dice_is_for_patches_that_show_little(
    name: str, has_lowres: bool, expected: bool
) -> None:
    assert batch_dice(name, has_lowres=has_lowres) is expected


def test_single_slices_are_planned_in_2d_only() -> None:
    plan = plan_of((999.0, 1.0, 1.0), (1, 256, 320))
    assert list(plan.configurations) == ["2d"]
    flat = plan.configuration("2d")
    assert flat.spacing == (None, 1.0, 1.0)
    assert flat.patch_size == (1, 256, 320)
    assert flat.median_shape == (1, 256, 320)
    assert flat.architecture.dimensions == 2


def test_a_median_of_one_slice_and_a_half_is_planned_in_3d() -> None:
    cohort = make_fingerprint(((5.0, 1.0, 1.0), (1, 50, 60)), ((5.0, 1.0, 1.0), (2, 50, 60)))
    plan = make_plan(make_spec(), cohort, dataset="Dataset900_Test")
    assert plan.configuration("3d_fullres").median_shape == (1.5, 50, 60)


def test_a_plan_is_in_plan_order_and_features_are_capped_by_dimensions() -> None:
    plan = plan_of((0.8, 0.7, 3.0), (512, 500, 40))
    fullres, flat = plan.configuration("3d_fullres"), plan.configuration("2d")
    assert plan.order == (2, 0, 1)
    assert plan.median_spacing == fullres.spacing == (3.0, 0.8, 0.7)
    assert plan.median_shape == fullres.median_shape == (40, 512, 500)
    assert flat.spacing == (None, 0.8, 0.7)
    assert flat.median_shape == (40, 512, 500)
    assert max(fullres.architecture.features) == 320
    assert max(flat.architecture.features) == 512


def test_a_target_spacing_in_image_order_decides_the_order_and_2d_too() -> None:
    plan = plan_of((3.0, 0.8, 0.7), (40, 512, 500), target_spacing=(1.0, 0.8, 2.0))
    assert plan.order == (2, 0, 1)
    assert plan.configuration("3d_fullres").spacing == (2.0, 1.0, 0.8)
    assert plan.configuration("3d_fullres").median_shape == (175, 120, 512)
    assert plan.configuration("2d").spacing == (None, 1.0, 0.8)
    assert plan.median_spacing == (0.7, 3.0, 0.8)  # of the images as they are


@pytest.mark.parametrize("memory_gb", [0.0, -1.0, math.inf, math.nan])
def test_a_memory_target_must_be_positive(memory_gb: float) -> None:
    with pytest.raises(PlanError, match="give a positive number of GB"):
        plan_of((1.0, 1.0, 1.0), (36, 50, 35), memory_gb=memory_gb)


@pytest.mark.parametrize("spacing", [(1.0, 0.0, 1.0), (1.0, 1.0, math.nan), (-1.0, 1.0, 1.0)])
def test_a_target_spacing_must_be_positive(spacing: Spacing) -> None:
    with pytest.raises(PlanError, match="three positive numbers of mm"):
        plan_of((1.0, 1.0, 1.0), (36, 50, 35), target_spacing=spacing)


def test_an_unknown_planner_is_named_with_the_known_ones() -> None:
    with pytest.raises(PlanError, match="'resnc'; known: default, resenc, resenc_l"):
        plan_of((1.0, 1.0, 1.0), (36, 50, 35), planner="resnc")


def test_a_fingerprint_of_other_channels_is_refused() -> None:
    cohort = make_fingerprint(((1.0, 1.0, 1.0), (36, 50, 35)), channels=2)
    with pytest.raises(PlanError, match=r"2 channels, dataset.json has 1; run `nnseg fingerprint`"):
        make_plan(make_spec(), cohort, dataset="Dataset900_Test")


@pytest.mark.parametrize("shape", [(36, 50, 35), (1, 256, 320), (482, 512, 512)])
def test_a_plan_comes_back_from_disk(shape: Shape, tmp_path: Path) -> None:
    plan = plan_of((1.0, 0.8, 0.7), shape)
    record.save(plan, tmp_path / "plan.json")
    assert record.load(Plan, tmp_path / "plan.json") == plan


def test_each_rule_explains_itself_in_a_line() -> None:
    plan = plan_like_liver()
    networks = ("2d", "3d_lowres", "3d_fullres")
    fits = [f"{n} {part}" for n in networks for part in ("patch", "network", "batch")]
    rules = ["target spacing", "plan order", "median image", "normalization of channel 0"]
    rules += ["network"]
    assert [decision.rule for decision in plan.decisions] == [*rules, *fits, "cascade"]
    lines = explain_plan(plan).splitlines()
    assert len(lines) == len(plan.decisions)
    assert "3d_fullres patch: 128 x 128 x 128 voxels, given 215 x 280 x 280" in lines[11]


@pytest.mark.parametrize(
    ("shape", "memory_gb", "words"),
    [
        ((1, 256, 320), None, "3D: not planned, given the median image is one slice"),
        ((36, 50, 35), None, "cascade: no 3d_lowres, given a patch of 3d_fullres shows 142%"),
        ((75, 201, 217), 2.0, "more than half of the voxels"),
    ],
)
def test_the_last_line_says_why_there_is_no_cascade(
    shape: Shape, memory_gb: float | None, words: str
) -> None:
    plan = plan_of((2.5, 2.5, 2.5), shape, memory_gb=memory_gb)
    assert words in explain_plan(plan).splitlines()[-1]


@pytest.mark.parametrize(
    ("network", "left", "words"),
    [
        ("unet", ["2d"], "3D: not planned, given network unet is 2D only"),
        ("unet3d", ["3d_fullres"], "2D: not planned, given network unet3d is 3D only"),
        ("fcn", ["2d", "3d_fullres"], "network: fcn, given it was asked for"),
        (None, ["2d", "3d_fullres"], "network: plain, given planner default"),
    ],
)
def test_a_network_is_planned_in_the_dimensions_it_is_defined_for(
    network: str | None, left: list[str], words: str
) -> None:
    plan = plan_of((1.0, 1.0, 1.0), (36, 50, 35), network=network)
    assert list(plan.configurations) == left
    assert words in explain_plan(plan).splitlines()


def test_the_levels_that_a_network_may_have_are_told() -> None:
    for network, allowed in (("unet", "just 5"), ("mednext_s", "1 to 5"), ("plain", "1 to 12")):
        lines = explain_plan(plan_of((1.0, 1.0, 1.0), (36, 50, 35), network=network)).splitlines()
        (line,) = (line for line in lines if line.startswith("2d network: "))
        assert line.endswith(f"and that it may have {allowed} levels")


def test_a_3d_network_is_no_plan_for_single_slices() -> None:
    with pytest.raises(PlanError, match=r"unet3d is 3D only, and the median image is one slice"):
        plan_of((1.0, 1.0, 1.0), (1, 256, 320), network="unet3d")


def test_a_plan_says_what_it_knows_of_a_backbone_of_timms() -> None:
    options = NetworkOptions(backbone="timm:regnety_016")
    plan = plan_of((1.0, 1.0, 1.0), (36, 50, 35), network="encoder_unet", options=options)
    lines = explain_plan(plan).splitlines()
    assert list(plan.configurations) == ["2d"]
    assert "3D: not planned, given backbone timm:regnety_016 is 2D only" in lines
    memory = "counted as with resnet50d, given backbone timm:regnety_016, which timm alone knows"
    assert f"memory: {memory}" in lines
    known = plan_of(
        (1.0, 1.0, 1.0), (36, 50, 35), network="encoder_unet",
        options=NetworkOptions(backbone="resnet50d"),
    )  # fmt: skip
    assert not any(line.startswith("memory:") for line in explain_plan(known).splitlines())
    assert list(known.configurations) == ["2d", "3d_fullres"]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (
            {"upsampling": "nearest"},
            "upsampling is 'nearest'; give one of transposed",
        ),
        ({"norm": "layer"}, "norm is 'layer'; give one of instance, batch"),
    ],
)
def test_an_option_that_there_is_not_is_refused(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(PlanError, match=fault):
        plan_of((1.0, 1.0, 1.0), (36, 50, 35), network="unetpp", options=NetworkOptions(**given))


def test_a_plan_says_its_network_and_options() -> None:
    options = NetworkOptions(dropout=0.2, upsampling="shuffled")
    plan = plan_of((1.0, 1.0, 1.0), (36, 50, 35), network="unetpp", options=options)
    called = "unetpp (upsampling shuffled, dropout 0.2)"
    assert f"network {called};" in describe_plan(plan).splitlines()[0]
    assert f"network: {called}, given it was asked for" in explain_plan(plan).splitlines()
    assert {one.architecture.options for one in plan.configurations.values()} == {options}


def test_a_plan_with_options_comes_back_from_disk(tmp_path: Path) -> None:
    plan = plan_of(
        (1.0, 1.0, 1.0), (36, 50, 35), network="fcn", options=NetworkOptions(norm="instance")
    )
    record.save(plan, tmp_path / "plan.json")
    assert record.load(Plan, tmp_path / "plan.json") == plan


def test_a_given_target_spacing_is_explained_as_given() -> None:
    plan = plan_of((1.0, 1.0, 1.0), (36, 50, 35), target_spacing=(2.0, 1.0, 1.0))
    first = explain_plan(plan).splitlines()[0]
    assert first == "target spacing: 2 x 1 x 1 mm (image order), given it was asked for"


def test_a_plan_is_described_with_a_line_a_configuration() -> None:
    title, head, *rows = describe_plan(plan_like_liver(memory_gb=8)).splitlines()
    assert "Dataset900_Test: planner default, 8 GB" in title
    assert head.split()[0] == "configuration"
    assert [row.split()[0] for row in rows] == list(plan_like_liver().configurations)
    assert rows[0].split("  ")[0].strip() == "2d"
    assert "- x 0.7676 x 0.7676" in rows[0]
    assert rows[-1].endswith("3d_lowres")
    assert max(map(len, rows)) <= 120


def test_a_plan_at_the_same_spacing_does_not_depend_on_the_cases_order() -> None:
    cases: list[tuple[Spacing, Shape]] = [
        ((3.0, 0.8, 0.7), (40, 300, 310)),
        ((2.0, 0.9, 0.7), (60, 280, 320)),
        ((5.0, 0.8, 0.6), (30, 310, 290)),
    ]
    medians: set[MedianShape] = set()
    for ordered in (cases, cases[::-1]):
        cohort = make_fingerprint(*ordered)
        medians.add(median_shape(cohort, fullres_spacing(cohort), (0, 1, 2)))
    assert len(medians) == 1


LEADING_OUT = ["../../../victim", "/victim", "..", "", "a/b", "a b "]


@pytest.mark.parametrize("name", LEADING_OUT)
@pytest.mark.parametrize("field", ["name", "data", "previous"])
def test_no_name_in_a_configuration_leads_out_of_its_folder(field: str, name: str) -> None:
    configuration = plan_of((1.0, 1.0, 1.0), (36, 50, 35)).configuration("3d_fullres")
    with pytest.raises(PlanError, match=r"is '.*', which cannot name a folder; it must begin"):
        dataclasses.replace(configuration, **{field: name})


@pytest.mark.parametrize("name", LEADING_OUT)
@pytest.mark.parametrize("field", ["name", "dataset"])
def test_neither_a_plan_nor_its_dataset_leads_out_of_its_folder(field: str, name: str) -> None:
    plan = plan_of((1.0, 1.0, 1.0), (36, 50, 35))
    with pytest.raises(PlanError, match=f"{field} is '.*', which cannot name a folder"):
        dataclasses.replace(plan, **{field: name})


def test_a_plan_whose_files_end_outside_their_folder_is_refused() -> None:
    plan = plan_of((3.0, 1.0, 0.9), (20, 30, 40))
    with pytest.raises(PlanError, match=r"evil\.nii\.gz', which cannot be read"):
        dataclasses.replace(plan, file_ending="./../../evil.nii.gz")


@pytest.mark.parametrize(
    ("field", "bad", "good"),
    [
        ("spacing", (0.9e-4, 1.0, 1.0), (1e-4, 1.0, 1.0)),
        ("spacing", (1.0, 1.0, 1.1e4), (1.0, 1.0, 1e4)),
        ("spacing", (1.0, math.nan, 1.0), (1.0, 2.0, 1.0)),
        ("batch_size", 0, 1),
        ("batch_size", 2**16 + 1, 2**16),
        ("patch_size", (2**11, 2**10, 2**10 + 32), (2**11, 2**10, 2**10)),
    ],
)
def test_sizes_that_nobody_plans_are_refused_by_the_name_of_their_field(
    field: str, bad: Any, good: Any
) -> None:
    configuration = plan_of((1.0, 1.0, 1.0), (128, 130, 135)).configuration("3d_fullres")
    dataclasses.replace(configuration, **{field: good})
    with pytest.raises(PlanError, match=rf"3d_fullres: {field} "):
        dataclasses.replace(configuration, **{field: bad})


@pytest.mark.parametrize("order", [-1, 6, 9])
@pytest.mark.parametrize("field", ["order", "order_along"])
def test_splines_have_orders_0_to_5(field: str, order: int) -> None:
    with pytest.raises(PlanError, match=f"{field} of a resampling is {order}; it must be 0 to 5"):
        Resampling(**({"order": 1, "order_along": 0} | {field: order}))
    for allowed in (0, 5):
        assert Resampling(**({"order": 1, "order_along": 0} | {field: allowed}))


def test_a_plan_says_the_same_of_every_channel() -> None:
    plan = plan_of((1.0, 0.9, 0.8), (60, 70, 80))
    flat = plan.configuration("2d")
    two = dataclasses.replace(flat, normalization=("ct", "ct"), use_mask=(False, False))
    with pytest.raises(PlanError, match="2d normalizes 2 channels, the plan has 1"):
        dataclasses.replace(plan, configurations=plan.configurations | {"2d": two})
    with pytest.raises(PlanError, match="intensities are of 2 channels, the plan has 1"):
        dataclasses.replace(plan, intensities=(INTENSITY,) * 2)


def test_an_order_that_is_none_is_refused() -> None:
    plan = plan_of((1.0, 0.9, 0.8), (60, 70, 80))
    with pytest.raises(PlanError, match=r"order is \(0, 0, 1\); it must be an order of 0, 1, 2"):
        dataclasses.replace(plan, order=(0, 0, 1))
