import json
from pathlib import Path

from nnseg.dataset import read_spec
from nnseg.phantom import write_dataset
from nnseg.phantom.broken import cases_to_break, planted_faults
from nnseg.volume import read_segmentation


def tree(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_planted_faults_are_sorted_and_name_files_below_the_dataset(tmp_path: Path) -> None:
    faults = planted_faults()
    assert list(faults) == sorted(faults, key=lambda fault: (fault.file, fault.rule))
    write_dataset(tmp_path, "broken", cases=1)
    absent = {"channel_missing", "label_missing"}
    for fault in faults:
        assert (tmp_path / fault.file).exists() == (fault.rule not in absent)


def test_more_sound_cases_leave_the_broken_ones_as_they_are(tmp_path: Path) -> None:
    write_dataset(tmp_path / "few", "broken", cases=1)
    write_dataset(tmp_path / "many", "broken", cases=2)
    few, many = tree(tmp_path / "few"), tree(tmp_path / "many")
    assert {name for name in few if few[name] != many[name]} == {"dataset.json"}
    assert json.loads(many["dataset.json"])["numTraining"] > 2


def test_the_cases_asked_for_stay_sound_after_those_to_break(tmp_path: Path) -> None:
    spec = write_dataset(tmp_path, "broken", cases=2)
    assert read_spec(tmp_path / "dataset.json") == spec
    faulty = {fault.file for fault in planted_faults()}
    for number in (cases_to_break(), cases_to_break() + 1):
        label = f"labelsTr/broken_{number:03d}.nii.gz"
        assert label not in faulty
        assert read_segmentation(tmp_path / label)[0].any()
    assert len(list((tmp_path / "labelsTr").iterdir())) == cases_to_break() + 1  # one is lost
    assert spec.num_training > cases_to_break() + 2
