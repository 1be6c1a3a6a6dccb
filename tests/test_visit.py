import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnseg import phantom, store
from nnseg.axes import Spacing
from nnseg.commit import sha256
from nnseg.dataset import Case, find_training_cases, read_spec
from nnseg.doctor.examine import SoundCase, examine_each
from nnseg.errors import DataError, MissingError
from nnseg.fingerprint import summarize
from nnseg.folders import Folders
from nnseg.image.crop import crop_to_body
from nnseg.image.normalize import NORMALIZERS
from nnseg.plan import Plan, make_plan
from nnseg.preprocess import preprocess_case, preprocessing_hash
from nnseg.verbs import visit
from nnseg.verbs.visit import Job, ReadCase, Shelf, Target, stamps_of
from nnseg.volume import read_image, read_segmentation, simple_geometry, write

DATASET = "Dataset001_Lesions"


def read_case(fill: int = 1, shape: tuple[int, int, int] = (4, 5, 6)) -> ReadCase:
    image = np.full(shape, fill, np.int16)
    labels = np.zeros(shape, np.uint8)
    return ReadCase(cropped=crop_to_body([image], labels), spacing=(3.0, 2.0, 1.0))


def put(shelf: Shelf, case_id: str, case: ReadCase, files: tuple[Path, ...] = ()) -> None:
    shelf.begin(case_id, files)
    shelf.put(case_id, case)


def test_a_shelf_gives_a_case_once_and_has_its_room_again() -> None:
    shelf, case = Shelf(room=1000), read_case()
    put(shelf, "a", case)
    assert shelf.room == 1000 - 120 * 3  # two bytes of image and one of labels a voxel
    found = shelf.take("a", ())
    assert found is not None
    np.testing.assert_array_equal(found.cropped.channels[0], case.cropped.channels[0])
    assert shelf.room == 1000
    assert shelf.take("a", ()) is None


@pytest.mark.parametrize(("room", "kept"), [(360, True), (359, False)])
def test_a_shelf_keeps_what_fits(room: int, kept: bool) -> None:
    shelf = Shelf(room=room)
    put(shelf, "a", read_case())
    assert (shelf.take("a", ()) is not None) is kept
    assert shelf.room == room


def test_a_shelf_keeps_nothing_that_is_unwanted() -> None:
    shelf = Shelf(room=1000, unwanted=frozenset({"a"}))
    put(shelf, "a", read_case())
    put(shelf, "b", read_case())
    assert shelf.take("a", ()) is None
    assert shelf.take("b", ()) is not None


def test_a_case_whose_files_changed_since_it_was_read_is_not_given(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"old")
    shelf = Shelf(room=1000)
    put(shelf, "a", read_case(), (path,))
    path.write_bytes(b"newer")
    assert shelf.take("a", stamps_of([path])) is None


def test_reading_a_case_again_after_its_files_changed_takes_the_old_one_off_the_shelf(
    tmp_path: Path,
) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"old")
    shelf = Shelf(room=1000)
    put(shelf, "a", read_case(fill=1), (path,))
    shelf.note("a", ("hash of old",))
    put(shelf, "a", read_case(fill=2), (path,))  # which changes nothing: it is there
    assert shelf.hashes("a", stamps_of([path])) == ("hash of old",)
    path.write_bytes(b"newer")
    assert shelf.hashes("a", stamps_of([path])) is None
    put(shelf, "a", read_case(fill=3), (path,))
    assert shelf.hashes("a", stamps_of([path])) is None
    found = shelf.take("a", stamps_of([path]))
    assert found is not None
    assert found.cropped.channels[0].max() == 3
    assert shelf.room == 1000


def test_a_file_that_is_replaced_within_its_time_stamp_has_other_stamps(tmp_path: Path) -> None:
    path, other = tmp_path / "image", tmp_path / "other"
    path.write_bytes(b"old")
    before = stamps_of([path])
    other.write_bytes(b"new")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)
    assert stamps_of([path]) != before


def test_a_case_whose_files_change_while_it_is_measured_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"old")

    def work(case_id: str) -> str:
        if case_id == "a":
            path.write_bytes(b"newer")
        return case_id

    with pytest.raises(DataError, match="files of the case changed while they were read"):
        visit.read_watched({"a": [path]}, None, work, "a")
    shelf = Shelf(room=1000)
    assert visit.read_watched({"b": [path]}, shelf, work, "b") == "b"
    shelf.note("b", ("hash",))
    assert shelf.hashes("b", stamps_of([path])) == ("hash",)


def test_a_case_on_the_shelf_keeps_no_larger_arrays_in_memory() -> None:
    image: Any = np.zeros((9, 10, 11), np.int16)
    image[2:6, 3:8, 1:7] = 5
    image[3, 4, 2] = 0
    image[2, 3, 1] = 0  # a corner, so there is a mask
    cropped = crop_to_body([image], np.zeros(image.shape, np.uint8))
    shelf = Shelf(room=10_000)
    put(shelf, "a", ReadCase(cropped=cropped, spacing=(1.0, 1.0, 1.0)))
    found = shelf.take("a", ())
    assert found is not None
    assert found.cropped.shape == (9, 10, 11)
    assert found.cropped.box == ((2, 6), (3, 8), (1, 7))
    arrays = (*found.cropped.channels, found.cropped.segmentation, found.cropped.mask)
    assert all(array is not None and array.base is None for array in arrays)
    np.testing.assert_array_equal(arrays[0], image[2:6, 3:8, 1:7])


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        (np.uint8, np.uint8),
        (np.int16, np.int16),
        (np.uint16, np.uint16),
        (np.int32, np.float32),
        (np.float64, np.float32),
        (np.float32, np.float32),
    ],
)
def test_channels_are_kept_in_the_smaller_of_their_type_and_float32(
    tmp_path: Path, kind: Any, kept: Any
) -> None:
    channel = np.arange(1, 25).reshape(2, 3, 4).astype(kind)
    label = tmp_path / "a.nii"
    label.touch()
    sound = SoundCase(
        case_id="a", images=(), label=label, channels=(channel,), labels=channel * 0,
        geometry=simple_geometry((2, 3, 4), (1.0, 1.0, 1.0)),
    )  # fmt: skip
    shelf = Shelf(room=1000)
    shelf.begin("a", ())
    visit.keep(shelf, sound)
    found = shelf.take("a", ())
    assert found is not None
    assert found.cropped.channels[0].dtype == kept
    np.testing.assert_array_equal(found.cropped.channels[0], channel)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (np.array([0.0, 3.0, 255.0]), np.uint8),
        (np.array([0, 256], np.int64), np.uint16),
        (np.array([0, 7], np.int16), np.int16),
        (np.array([-1, 2], np.int64), np.int64),
    ],
)
def test_label_maps_are_kept_as_integers_of_few_bytes(labels: Any, kind: Any) -> None:
    small = visit._small(labels)
    assert small.dtype == kind
    np.testing.assert_array_equal(small, labels)


# ---------------------------------------------------------------- preprocessing


def two_cases(folders: Folders, spacing: Spacing = (2.0, 1.0, 0.8)) -> None:
    """Two CTs with a body in air, so that there is a box and a mask."""
    rng = np.random.default_rng(0)
    raw = folders.raw_folder(DATASET)
    phantom.write_dataset(raw, "ct", cases=1)
    for path in (*raw.glob("*/*.nii.gz"),):
        path.unlink()
    for number in range(2):
        image: Any = np.zeros((14, 20 + number, 26), np.int16)
        image[2:12, 3:18, 4:24] = rng.integers(1, 900, (10, 15, 20))
        image[2, 3, 4:9] = 0
        labels = np.zeros(image.shape, np.uint8)
        labels[5:9, 6:12, 8:15], labels[6:8, 8:10, 9:12] = 1, 2
        geometry = simple_geometry(image.shape, spacing)
        write(raw / "imagesTr" / f"c{number}_0000.nii.gz", image, geometry)
        write(raw / "labelsTr" / f"c{number}.nii.gz", labels, geometry)
    spec_file = folders.spec_file(DATASET)
    spec_file.write_text(spec_file.read_text().replace('"numTraining": 1', '"numTraining": 2'))


class Dataset:
    """A raw dataset of two cases, its plan, and a job for some of its configurations."""

    def __init__(self, root: Path) -> None:
        self.folders = Folders.of_root(root)
        two_cases(self.folders)
        self.spec = read_spec(self.folders.spec_file(DATASET))
        self.cases = find_training_cases(self.folders, DATASET, self.spec)
        measured = self.examine(None)
        self.plan = make_plan(self.spec, summarize(measured), dataset=DATASET, memory_gb=1)

    def examine(self, shelf: Shelf | None) -> list[Any]:
        def each(work: Any, case_ids: Any) -> Any:
            for case in self.cases:
                if shelf is not None:
                    shelf.begin(case.case_id, case.files)
            return {case_id: work(case_id) for case_id in case_ids}

        look = lambda sound: visit.measure(shelf, sound)  # noqa: E731
        done = examine_each(self.folders.raw_folder(DATASET), look, each)
        return list(done.visited.values())

    def job(self, *names: str, plan: Plan | None = None, elsewhere: tuple[Path, ...] = ()) -> Job:
        plan = plan or self.plan
        return Job(
            plan=plan,
            targets=tuple(
                Target(
                    configuration=plan.configuration(name),
                    folder=self.folders.store(DATASET, plan.name, name),
                    data_hash=preprocessing_hash(plan, plan.configuration(name)),
                )
                for name in names
            ),
            elsewhere=elsewhere,
        )

    def store(self, name: str) -> Path:
        return self.folders.store(DATASET, self.plan.name, name)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every image file that is read for preprocessing."""
    read: list[Path] = []
    original = visit.read_stored

    def count(paths: Any, channels: Any) -> Any:
        read.extend(paths)
        return original(paths, channels)

    monkeypatch.setattr(visit, "read_stored", count)
    return read


def same_arrays(folder: Path, case: Case, plan: Plan, name: str) -> None:
    """The stored case is what `preprocess_case` makes of its files."""
    assert case.label is not None
    volume = read_image(case.images)
    labels, _ = read_segmentation(case.label)
    configuration = plan.configuration(name)
    wanted = preprocess_case(volume.image, labels, volume.geometry.spacing, plan, configuration)
    found = store.open_case(
        folder, case.case_id, preprocessing_hash(plan, configuration), in_memory=True
    )
    np.testing.assert_array_equal(found.image, wanted.image)
    np.testing.assert_array_equal(found.segmentation, wanted.segmentation)
    mask = np.ones(wanted.mask.shape, bool) if found.mask is None else found.mask
    np.testing.assert_array_equal(mask, wanted.mask)
    assert found.placement == wanted.placement


def test_one_read_serves_all_configurations_and_equal_arrays_are_one_file(
    dataset: Dataset, reads: list[Path]
) -> None:
    case = dataset.cases[0]
    assert visit.preprocess(dataset.job("2d", "3d_fullres"), None, case) == ("2d", "3d_fullres")
    assert reads == list(case.images)
    for name in ("2d", "3d_fullres"):
        same_arrays(dataset.store(name), case, dataset.plan, name)
    for path in dataset.store("2d").glob("*.b2nd"):
        assert path.samefile(dataset.store("3d_fullres") / path.name)


def test_arrays_that_differ_are_not_shared(dataset: Dataset, reads: list[Path]) -> None:
    full = replace(dataset.plan.configuration("3d_fullres"), spacing=(1.5, 1.0, 0.8))
    plan = replace(
        dataset.plan, configurations=dict(dataset.plan.configurations) | {"3d_fullres": full}
    )
    case = dataset.cases[0]
    visit.preprocess(dataset.job("2d", "3d_fullres", plan=plan), None, case)
    assert len(reads) == 1
    for name in ("2d", "3d_fullres"):
        same_arrays(dataset.store(name), case, plan, name)
    image = f"{case.case_id}.image.b2nd"
    assert not (dataset.store("2d") / image).samefile(dataset.store("3d_fullres") / image)


def test_another_normalization_is_made_apart(dataset: Dataset) -> None:
    full = replace(dataset.plan.configuration("3d_fullres"), normalization=("zscore",))
    plan = replace(
        dataset.plan, configurations=dict(dataset.plan.configurations) | {"3d_fullres": full}
    )
    visit.preprocess(dataset.job("2d", "3d_fullres", plan=plan), None, dataset.cases[0])
    for name in ("2d", "3d_fullres"):
        same_arrays(dataset.store(name), dataset.cases[0], plan, name)


def test_what_was_measured_is_not_read_again(dataset: Dataset, reads: list[Path]) -> None:
    shelf = Shelf(room=10**6)
    dataset.examine(shelf)
    assert shelf.room < 10**6
    for case in dataset.cases:
        visit.preprocess(dataset.job("3d_fullres"), shelf, case)
        same_arrays(dataset.store("3d_fullres"), case, dataset.plan, "3d_fullres")
    assert reads == []
    assert shelf.room == 10**6


def test_what_was_hashed_while_it_was_measured_is_not_hashed_again(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, (first, second) = Shelf(room=10**6), dataset.cases
    measured = {case.case_id: case for case in dataset.examine(shelf)}
    for case in dataset.cases:
        assert measured[case.case_id].raw == tuple(sha256(path) for path in case.files)
    hashed: list[Path] = []

    def count(path: Path) -> str:
        hashed.append(path)
        return sha256(path)

    monkeypatch.setattr(visit, "sha256", count)
    visit.preprocess(dataset.job("3d_fullres"), shelf, first)
    assert hashed == []
    os.utime(second.images[0])
    visit.preprocess(dataset.job("3d_fullres"), shelf, second)
    assert hashed == list(second.files)


def test_an_array_whose_source_is_lost_while_it_is_shared_is_made(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, reads: list[Path]
) -> None:
    case = dataset.cases[0]
    visit.preprocess(dataset.job("3d_fullres"), None, case)
    reads.clear()
    original = store.share_case

    def lose(source: Path, *arguments: Any, **options: Any) -> Any:
        store.remove_case(source, case.case_id)
        return original(source, *arguments, **options)

    monkeypatch.setattr(store, "share_case", lose)
    job = dataset.job("2d", elsewhere=(dataset.store("3d_fullres"),))
    assert visit.preprocess(job, None, case) == ("2d",)
    assert len(reads) == 1
    same_arrays(dataset.store("2d"), case, dataset.plan, "2d")


def test_what_is_there_is_neither_read_nor_made(dataset: Dataset, reads: list[Path]) -> None:
    case, job = dataset.cases[0], dataset.job("2d", "3d_fullres")
    visit.preprocess(job, None, case)
    reads.clear()
    before = {path: sha256(path) for path in dataset.store("2d").iterdir()}
    assert visit.preprocess(job, None, case) == ()
    assert reads == []
    assert {path: sha256(path) for path in dataset.store("2d").iterdir()} == before


@pytest.mark.parametrize("damaged", [False, True])
def test_arrays_made_before_for_another_plan_are_shared_if_they_are_whole(
    dataset: Dataset, reads: list[Path], damaged: bool
) -> None:
    case = dataset.cases[0]
    visit.preprocess(dataset.job("3d_fullres"), None, case)
    reads.clear()
    made = dataset.store("3d_fullres")
    if damaged:
        (made / f"{case.case_id}.image.b2nd").write_bytes(b"cut")
    other = replace(dataset.plan, name="other")
    job = dataset.job("2d", plan=other, elsewhere=(made,))
    assert visit.preprocess(job, None, case) == ("2d",)
    assert len(reads) == damaged
    folder = dataset.folders.store(DATASET, "other", "2d")
    same_arrays(folder, case, other, "2d")
    image = f"{case.case_id}.image.b2nd"
    assert (folder / image).samefile(made / image) is not damaged


def test_arrays_of_other_raw_files_are_not_shared(dataset: Dataset, reads: list[Path]) -> None:
    case = dataset.cases[0]
    visit.preprocess(dataset.job("3d_fullres"), None, case)
    volume = read_image(case.images)
    write(case.images[0], (volume.image[0] + 1).astype(np.int16), volume.geometry)
    reads.clear()
    visit.preprocess(dataset.job("2d", elsewhere=(dataset.store("3d_fullres"),)), None, case)
    assert len(reads) == 1
    same_arrays(dataset.store("2d"), case, dataset.plan, "2d")


def test_a_case_that_changes_while_it_is_read_is_refused(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = dataset.cases[0]
    original = visit.read_stored

    def change(paths: Any, channels: Any) -> Any:
        result = original(paths, channels)
        with open(paths[0], "ab") as file:
            file.write(b"more")
        return result

    monkeypatch.setattr(visit, "read_stored", change)
    with pytest.raises(DataError, match="changed while they were read; wait until"):
        visit.preprocess(dataset.job("2d"), None, case)
    assert not dataset.store("2d").exists()


def test_a_worker_learns_the_normalizers_that_its_parent_has_registered(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halve(channel: Any, intensity: Any, mask: Any) -> None:
        channel /= 2

    monkeypatch.setattr(NORMALIZERS, "_entries", dict(NORMALIZERS._entries))
    flat = replace(dataset.plan.configuration("2d"), normalization=("halve",))
    plan = replace(dataset.plan, configurations={"2d": flat})
    job = replace(dataset.job("2d", plan=plan), normalizers={"halve": halve})
    visit.preprocess(job, None, dataset.cases[0])
    image = read_image(dataset.cases[0].images).image
    data_hash = preprocessing_hash(plan, flat)
    found = store.open_case(dataset.store("2d"), "c0", data_hash, in_memory=True)
    assert found.image.max() == image.max() / 2


def test_a_file_that_is_gone_or_cannot_be_read_is_named(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = dataset.cases[0]

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(visit, "sha256", refuse)
    with pytest.raises(DataError, match=r"c0_0000\.nii\.gz: cannot be read \(Permission denied\)"):
        visit.preprocess(dataset.job("2d"), None, case)
    monkeypatch.undo()
    case.images[0].unlink()
    with pytest.raises(MissingError, match=r"c0_0000\.nii\.gz does not exist; restore it"):
        visit.preprocess(dataset.job("2d"), None, case)


def test_a_case_without_a_label_map_and_one_on_another_grid_are_refused(dataset: Dataset) -> None:
    case = dataset.cases[0]
    with pytest.raises(DataError, match="case c0 has no label map"):
        visit.preprocess(dataset.job("2d"), None, replace(case, label=None))
    other = dataset.cases[1].label
    with pytest.raises(DataError, match=r"c1\.nii\.gz: lies on another grid than the image"):
        visit.preprocess(dataset.job("2d"), None, replace(case, label=other))
