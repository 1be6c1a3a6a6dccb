import zlib
from pathlib import Path

import numpy as np
import pytest

from nnseg.dataset import DatasetSpec, find_cases, read_spec
from nnseg.errors import PlanError, UsageError
from nnseg.fingerprint import measure_case, summarize
from nnseg.labels import Labels
from nnseg.phantom import (
    PHANTOMS,
    make_case,
    otsu_threshold,
    threshold_baseline,
    write_dataset,
)
from nnseg.plan import make_plan
from nnseg.volume import read_image, read_segmentation

SOUND = [name for name in PHANTOMS if name != "broken"]
SMALL = [name for name in SOUND if name != "lowres"]


def case(variant: str, number: int) -> np.random.Generator:
    return np.random.default_rng([0, number, zlib.crc32(variant.encode())])


def tree(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("variant", SOUND)
def test_a_dataset_reads_back_as_it_was_drawn(tmp_path: Path, variant: str) -> None:
    spec = write_dataset(tmp_path, variant, cases=1, seed=0)
    assert read_spec(tmp_path / "dataset.json") == spec
    (found,) = find_cases(tmp_path / "imagesTr", tmp_path / "labelsTr", spec)
    image, segmentation, spacing = make_case(variant, case(variant, 0))
    volume = read_image(found.images)
    assert found.label is not None
    read_back, geometry = read_segmentation(found.label)
    np.testing.assert_array_equal(volume.image, image)
    np.testing.assert_array_equal(read_back, segmentation)
    assert volume.geometry.spacing == pytest.approx(spacing, rel=1e-5)
    assert geometry == volume.geometry


def test_each_case_depends_on_variant_seed_and_its_own_number_only(tmp_path: Path) -> None:
    write_dataset(tmp_path / "two", "anisotropic", cases=2, seed=3)
    write_dataset(tmp_path / "three", "anisotropic", cases=2, test_cases=1, seed=3)
    write_dataset(tmp_path / "other", "anisotropic", cases=2, seed=4)
    two, three, other = (tree(tmp_path / name) for name in ("two", "three", "other"))
    assert three.keys() - two.keys() == {
        "imagesTs/anisotropic_002_0000.nii.gz",
        "labelsTs/anisotropic_002.nii.gz",
    }
    assert all(three[name] == two[name] for name in two)
    assert {name for name in two if two[name] == other[name]} == {"dataset.json"}


@pytest.mark.parametrize("variant", SOUND)
def test_sides_are_unequal_and_differ_between_cases(variant: str) -> None:
    drawn = [make_case(variant, case(variant, number)) for number in range(3)]
    shapes = {segmentation.shape for _, segmentation, _ in drawn}
    assert len(shapes) == 3
    assert all(len(set(shape)) == 3 for shape in shapes)
    assert len({spacing for _, _, spacing in drawn}) == 3


@pytest.mark.parametrize("variant", SOUND)
def test_every_declared_label_is_there_with_hundreds_of_voxels(variant: str) -> None:
    phantom = PHANTOMS[variant]
    least = 100
    for number in range(4):
        image, segmentation, _ = make_case(variant, case(variant, number))
        values, counts = np.unique(segmentation, return_counts=True)
        assert tuple(values) == phantom.labels.values
        assert counts.min() >= least
        assert image.shape == (len(phantom.channels), *segmentation.shape)
        assert image.dtype == phantom.dtype


@pytest.mark.parametrize("variant", SMALL)
def test_no_threshold_finds_the_target(variant: str) -> None:
    scores = []
    for number in range(8):
        image, segmentation, _ = make_case(variant, case(variant, number))
        scores.append(threshold_baseline(image, segmentation, PHANTOMS[variant].labels))
    assert np.mean(scores) <= 0.5


def test_the_baseline_finds_a_target_that_is_only_bright() -> None:
    segmentation = np.zeros((5, 6, 7), np.uint8)
    segmentation[1:4, 2:5, 1:6] = 1
    image = np.where(segmentation, 9.0, 1.0)[None]
    labels = Labels(labels={"background": 0, "box": 1})
    assert threshold_baseline(image, segmentation, labels) == 1
    assert threshold_baseline(-image, segmentation, labels) == 1


def test_the_baseline_scores_one_component_against_every_label_and_skips_the_ignored() -> None:
    segmentation = np.zeros((4, 5, 6), np.uint8)
    segmentation[1:3, 1:3, 1:3] = 1  # 8 voxels
    segmentation[1:3, 1:3, 3:5] = 2  # 8 voxels beside them
    image = np.where(segmentation, 9.0, 1.0)[None]
    image[0, 3:, 4:, 5:] = 9  # a smaller component
    both = Labels(labels={"background": 0, "a": 1, "b": 2})
    assert threshold_baseline(image, segmentation, both) == pytest.approx(2 * 8 / (16 + 8))
    ignoring = Labels(labels={"background": 0, "a": 1, "ignore": 2})
    assert threshold_baseline(image, segmentation, ignoring) == 1
    assert np.isnan(threshold_baseline(image, segmentation * 0, both))


def test_otsu_parts_two_classes_of_unequal_size() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(10, 1, 900), rng.normal(20, 1, 100)])
    assert 13 < otsu_threshold(values) < 17


def test_variants_have_the_grids_and_labels_they_are_made_for() -> None:
    _, _, thick = make_case("anisotropic", case("anisotropic", 0))
    assert thick[0] > 3 * max(thick[1:])
    image, _, _ = make_case("ct", case("ct", 0))
    assert PHANTOMS["ct"].channels == ("CT",)
    assert image.min() < -900
    assert make_case("2d", case("2d", 0))[1].shape[0] == 1
    assert PHANTOMS["ignore"].labels.ignore == 3
    assert PHANTOMS["regions"].labels.has_regions


def test_the_ignored_part_leaves_some_of_the_target_annotated() -> None:
    for number in range(4):
        _, segmentation, _ = make_case("ignore", case("ignore", number))
        ignored = segmentation == 3
        assert 0.2 < ignored.mean() < 0.8
        assert ignored.all(axis=(1, 2)).sum() == ignored.any(axis=(1, 2)).sum()  # whole slices


def test_the_lowres_variant_stays_small_on_disk(tmp_path: Path) -> None:
    write_dataset(tmp_path, "lowres", cases=1)
    assert sum(len(data) for data in tree(tmp_path).values()) < 2**20


def test_the_lowres_variant_gets_a_cascade_at_its_planning_target() -> None:
    phantom = PHANTOMS["lowres"]
    measured = []
    for number in range(2):
        image, segmentation, spacing = make_case("lowres", case("lowres", number))
        name, values = str(number), image.astype(np.float32)
        measured.append(measure_case(name, values, segmentation, spacing))
    spec = DatasetSpec(
        channels=phantom.channels, labels=phantom.labels, num_training=20, file_ending=".nii.gz"
    )
    plan = make_plan(spec, summarize(measured), dataset="lowres", memory_gb=phantom.memory_gb)
    assert {"3d_lowres", "3d_fullres", "3d_cascade_fullres"} <= plan.configurations.keys()


def test_unknown_variants_and_impossible_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no phantom is named 'mir'; known: 2d, "):
        write_dataset(tmp_path, "mir", cases=1)
    with pytest.raises(UsageError, match="0 cases"):
        write_dataset(tmp_path, "mri", cases=0)
    with pytest.raises(UsageError, match="-1 test cases"):
        write_dataset(tmp_path, "mri", cases=1, test_cases=-1)
