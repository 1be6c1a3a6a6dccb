"""A proposed raw dataset on disk."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from nnseg import record
from nnseg.dataset import Case, DatasetSpec
from nnseg.doctor import examine as doctor
from nnseg.errors import MachineError, UsageError
from nnseg.folders import Folders
from nnseg.intake import layout
from nnseg.intake.layout import lay_out
from nnseg.intake.proposal import Proposal
from nnseg.labels import Labels
from nnseg.volume import simple_geometry, write

SHAPE = (6, 8, 9)
DATASET = "Dataset007_Kidney"


def proposal(folder: Path, ending: str = ".nii.gz") -> Proposal:
    """Write the files of five cases, and propose them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    cases = []
    for number in range(5):
        files = [folder / f"{name} {number}{ending}" for name in ("one", "two", "mask")]
        for path in files:
            array = rng.integers(1, 90, SHAPE).astype(np.int16)
            if path == files[-1]:
                array = (array > 40).astype(np.int16)
            write(path, array, simple_geometry(SHAPE, (3.0, 0.9, 0.8)))
        cases.append(Case(case_id=f"p{number}", images=tuple(files[:2]), label=files[2]))
    spec = DatasetSpec(
        channels=("image_0", "image_1"),
        labels=Labels(labels={"background": 0, "label_1": 1}),
        num_training=5,
        file_ending=ending,
    )
    return Proposal(
        dataset=DATASET,
        spec=spec,
        cases=tuple(cases),
        cases_with={1: 5},
        unlabelled=(),
        imageless=(),
        strange=(),
        notes=(),
        group_regex=None,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("copy", [False, True], ids=["links", "copies"])
@pytest.mark.parametrize("ending", [".nii.gz", ".hdr", ".tif"])
def test_the_doctor_finds_nothing_wrong_with_the_dataset(
    tmp_path: Path, ending: str, copy: bool
) -> None:
    folders = Folders.of_root(tmp_path / "root")
    found = proposal(tmp_path / "data", ending)
    folder = lay_out(folders, found, copy=copy)
    assert folder == folders.raw_folder(DATASET)
    assert doctor.examine(folder) == ()
    assert [path.name for path in folders.raw.iterdir()] == [DATASET]
    first = folder / "imagesTr" / f"p0_0001{ending}"
    assert first.read_bytes() == found.cases[0].images[1].read_bytes()
    files = list(folder.rglob("p*.*"))
    assert {path.is_symlink() for path in files} == {not copy}
    if copy:
        shutil.rmtree(tmp_path / "data")
        assert doctor.examine(folder) == ()


def test_a_link_to_what_lies_beside_the_raw_root_moves_with_it(tmp_path: Path) -> None:
    project = tmp_path / "project"
    folder = lay_out(Folders.of_root(project), proposal(project / "data"))
    project.rename(tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / folder.relative_to(project)
    assert doctor.examine(moved) == ()


def test_a_link_to_what_lies_elsewhere_stays_when_the_dataset_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = lay_out(Folders.of_root(tmp_path / "project"), proposal(Path("data")))
    (tmp_path / "deeper").mkdir()
    moved = folder.rename(tmp_path / "deeper" / DATASET)
    assert doctor.examine(moved) == ()


def test_a_dataset_that_is_there_is_never_touched(tmp_path: Path) -> None:
    folders, found = Folders.of_root(tmp_path), proposal(tmp_path / "data")
    folders.raw_folder(DATASET).mkdir(parents=True)
    with pytest.raises(UsageError, match="is there already; give another name or --id"):
        lay_out(folders, found)
    assert names(folders.raw) == [DATASET]


@pytest.mark.parametrize("copy", [False, True], ids=["links", "copies"])
def test_what_fails_in_between_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy: bool
) -> None:
    folders, found = Folders.of_root(tmp_path / "root"), proposal(tmp_path / "data")
    before, calls = names(tmp_path / "data"), []

    def fail(*args: object) -> None:
        calls.append(args)
        if len(calls) == 9:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(layout, "_copy", fail)
    monkeypatch.setattr(Path, "symlink_to", fail)
    text = "cannot be written" if copy else "links cannot be made there .* or give --copy"
    with pytest.raises(MachineError, match=text):
        lay_out(folders, found, copy=copy)
    assert names(folders.raw) == []
    assert names(tmp_path / "data") == before


def test_copies_that_the_disk_cannot_hold_are_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, found = Folders.of_root(tmp_path / "root"), proposal(tmp_path / "data")

    def usage(path: Path) -> object:
        return type("Usage", (), {"free": 2**10})

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(MachineError, match="MiB are free; make room, or link the files"):
        lay_out(folders, found, copy=True)
    assert names(folders.raw) == []
    lay_out(folders, found)


def test_the_dataset_is_described_whole(tmp_path: Path) -> None:
    folder = lay_out(Folders.of_root(tmp_path), proposal(tmp_path / "data"))
    assert record.read_json(folder / "dataset.json") == {
        "channel_names": {"0": "image_0", "1": "image_1"},
        "labels": {"background": 0, "label_1": 1},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
