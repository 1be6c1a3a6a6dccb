from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnseg import record
from nnseg.axes import Image, Segmentation
from nnseg.dataset import find_cases, read_spec
from nnseg.errors import DataError
from nnseg.exchange.nnunet_names import INTENSITIES
from nnseg.exchange.nnunet_reading import read_fingerprint
from nnseg.exchange.nnunet_writing import plans_to_json
from nnseg.fingerprint import CaseMeasurement, Fingerprint, measure_case, summarize
from nnseg.image.intensity import Intensity
from nnseg.plan import make_plan
from nnseg.volume import read_image, read_segmentation

SPACING = (3.0, 0.8, 0.7)
INTENSITY = Intensity(
    mean=1.0, median=1.0, std=1.0, min=0.0, max=2.0, percentile_00_5=0.0, percentile_99_5=2.0
)


def make_case(channels: int = 1) -> tuple[Image, Segmentation]:
    """A body of (3, 4, 5) voxels in an image of (6, 8, 10), with three labelled voxels in it."""
    image = np.zeros((channels, 6, 8, 10), dtype=np.float32)
    image[:, 1:4, 2:6, 3:8] = 7
    segmentation = np.zeros((6, 8, 10), dtype=np.uint8)
    for voxel, label, value in (((1, 2, 3), 1, 10), ((2, 3, 4), 2, 20), ((3, 5, 7), 1, 60)):
        segmentation[voxel] = label
        for number, channel in enumerate(image):
            channel[voxel] = value + number
    return image, segmentation


def measured(case_id: str, spacing: Any = SPACING, **options: Any) -> CaseMeasurement:
    return measure_case(case_id, *make_case(**options), spacing)


def test_a_case_is_measured_after_cropping_to_its_body() -> None:
    case = measured("a")
    assert case.case_id == "a"
    assert case.spacing == SPACING
    assert case.shape == (3, 4, 5)
    assert case.relative_size == (3 * 4 * 5) / (6 * 8 * 10)


def test_only_labelled_voxels_count_in_each_channel() -> None:
    first, second = measured("a", channels=2).intensities
    assert first.values.tolist() == [10, 20, 60]
    assert second.values.tolist() == [11, 21, 61]


def test_a_label_on_a_zero_within_the_box_counts_and_one_beyond_the_box_does_not() -> None:
    image, segmentation = make_case()
    image[0, 1, 2, 4] = 0
    segmentation[1, 2, 4] = 1
    segmentation[0, 0, 0] = 1
    (intensity,) = measure_case("a", image, segmentation, SPACING).intensities
    assert intensity.values.tolist() == [0, 10, 20, 60]


def test_a_body_in_any_channel_is_kept() -> None:
    image, segmentation = make_case(channels=2)
    image[1, 0, 7, 9] = 1
    assert measure_case("a", image, segmentation, SPACING).shape == (4, 6, 7)


def test_cases_are_joined_in_their_order() -> None:
    image, segmentation = make_case()
    whole = measure_case("b", image[:, 1:4, 2:6, 3:8], segmentation[1:4, 2:6, 3:8], (1.0, 2.0, 3.0))
    found = summarize([measured("c"), whole, measured("a")])
    assert found.case_ids == ("c", "b", "a")
    assert found.spacings == (SPACING, (1.0, 2.0, 3.0), SPACING)
    assert found.shapes == ((3, 4, 5),) * 3
    assert found.median_relative_size == 0.125
    assert found.intensities[0].mean == pytest.approx(30)
    assert found.intensities[0].median == 20
    assert (found.intensities[0].min, found.intensities[0].max) == (10, 60)


def test_each_channel_is_pooled_over_the_cases() -> None:
    found = summarize([measured("a", channels=2), measured("b", channels=2)])
    assert [intensity.mean for intensity in found.intensities] == pytest.approx([30, 31])


def test_a_case_without_foreground_changes_no_intensity() -> None:
    image, segmentation = make_case()
    empty = measure_case("b", image, segmentation * 0, SPACING)
    found = summarize([measured("a"), empty])
    assert found.intensities == summarize([measured("a")]).intensities
    assert len(found.shapes) == 2


def test_cases_of_different_channels_are_not_joined() -> None:
    with pytest.raises(ValueError, match=r"zip\(\)"):
        summarize([measured("a", channels=2), measured("b", channels=1)])


def test_no_case_makes_no_fingerprint() -> None:
    with pytest.raises(DataError, match="a fingerprint needs at least one case"):
        summarize([])


@pytest.mark.parametrize(
    ("spacings", "shapes", "fault"),
    [
        ((), (), "has 0 spacings and 0 shapes; it needs one of each a case"),
        ((SPACING,), ((3, 4, 5),) * 2, "has 1 spacings and 2 shapes"),
        ((SPACING, (1.0, 0.0, 1.0)), ((3, 4, 5),) * 2, "has a spacing that is not positive"),
        ((SPACING, (1.0, 1.0, -1.0)), ((3, 4, 5),) * 2, "has a spacing that is not positive"),
    ],
)
def test_a_fingerprint_that_contradicts_itself_is_refused(
    spacings: Any, shapes: Any, fault: str
) -> None:
    with pytest.raises(DataError, match=fault):
        Fingerprint(
            spacings=spacings, shapes=shapes, intensities=(INTENSITY,), median_relative_size=1.0
        )


VARIANTS = {  # dataset.json and label maps of their own for the images of another
    "Dataset005_HippoRegions": ("Dataset004_Hippocampus", "labelsTr"),
    "Dataset028_ACDCScribble": ("Dataset027_ACDC", "labelsTr_scribble"),
    "Dataset029_ACDCRegions": ("Dataset027_ACDC", "labelsTr"),
    "Dataset102_CTOrgans117": ("Dataset101_CTOrgans", "labelsTr_117"),
}
DATASETS = sorted(
    {
        "Dataset004_Hippocampus",
        "Dataset027_ACDC",
        "Dataset083_MSLesion4ch",
        "Dataset101_CTOrgans",
        "Dataset118_DSB2018Nuclei",
        "Dataset120_VNCssTEM",
        "Dataset130_SpinalCordGM",
        *VARIANTS,
    }
)
PEER_PLANS: dict[str, dict[str, Any]] = {
    "nnUNetPlans": {},
    "nnUNetPlans_1GB": {"memory_gb": 1.0},
    "nnUNetPlans_2GB": {"memory_gb": 2.0},
    "nnUNetPlans_3GB": {"memory_gb": 3.0},
    "nnUNetResEncUNetMPlans": {"planner": "resenc_m"},
    "nnUNetResEncUNetLPlans": {"planner": "resenc_l"},
    "nnUNetResEncUNetXLPlans": {"planner": "resenc_xl"},
}


@cache
def measure_dataset(raw: Path, labels: str) -> Fingerprint:
    cases = []
    spec = read_spec(raw / "dataset.json")
    for case in find_cases(raw / "imagesTr", raw / labels, spec):
        assert case.label is not None
        volume = read_image(case.images, len(spec.channels))
        segmentation, _ = read_segmentation(case.label)
        spacing = volume.geometry.spacing
        cases.append(measure_case(case.case_id, volume.image, segmentation, spacing))
    return summarize(cases)


def leaves(data: Any, path: str = "") -> dict[str, Any]:
    """The values of nested JSON by their path."""
    if isinstance(data, dict | list) and data:
        items = data.items() if isinstance(data, dict) else enumerate(data)
        return {k: v for key, value in items for k, v in leaves(value, f"{path}.{key}").items()}
    return {path: data}


def nearly(value: Any) -> Any:
    return pytest.approx(value, rel=1e-9) if isinstance(value, float) else value


@pytest.mark.parametrize("dataset", DATASETS)
def test_our_own_fingerprint_leads_to_the_peers_fingerprint_and_plans(
    dataset: str, shared: Path
) -> None:
    reference = shared / "reference" / "nnunet_plans" / dataset
    source, labels = VARIANTS.get(dataset, (dataset, "labelsTr"))
    ours = measure_dataset(shared / "data" / source, labels)
    theirs = read_fingerprint(record.read_json(reference / "dataset_fingerprint.json"))
    assert ours.spacings == theirs.spacings
    assert ours.shapes == theirs.shapes
    assert ours.median_relative_size == pytest.approx(theirs.median_relative_size, rel=1e-12)
    for mine, other in zip(ours.intensities, theirs.intensities, strict=True):
        assert asdict(mine) == pytest.approx(asdict(other), abs=0.02 * other.std)  # theirs is drawn

    stems = [stem for stem in PEER_PLANS if (reference / f"{stem}.json").is_file()]
    assert "nnUNetPlans" in stems
    spec = read_spec(reference / "dataset.json")
    for stem in stems:
        plan = make_plan(spec, ours, dataset=dataset, **PEER_PLANS[stem])
        planned, expected = plans_to_json(plan), record.read_json(reference / f"{stem}.json")
        del planned[INTENSITIES], expected[INTENSITIES]
        assert leaves(planned) == {key: nearly(value) for key, value in leaves(expected).items()}


@pytest.mark.parametrize("field", ["case_ids", "raw"])
def test_what_a_fingerprint_has_of_each_case_it_has_of_all(field: str) -> None:
    without = summarize([measured("a"), measured("b")])
    assert without.hashes == {}  # nobody has told them
    told = replace(without, raw=(("one", "two"), ("three",)))
    assert told.hashes == {"a": ("one", "two"), "b": ("three",)}
    with pytest.raises(DataError, match=f"has 1 {field} and 2 shapes"):
        replace(told, **{field: getattr(told, field)[:1]})
