"""What is proven of a result, and what is somebody's own work."""

from pathlib import Path

import numpy as np
import pytest

from nnseg import record
from nnseg.commit import sha256
from nnseg.errors import DataError, StoppedError
from nnseg.folders import proof_file
from nnseg.jobs import PredictionJob
from nnseg.postprocess import Postprocessing
from nnseg.proof import Making, Proof, is_edited, look_up, withdraw
from nnseg.volume import simple_geometry, write

SHAPE = (3, 4, 5)
MAKING = Making(
    version="1",
    models=(),
    postprocessing=Postprocessing(),
    step=0.5,
    mirror=True,
    maps=("entropy",),
    probabilities=None,
)


def put(path: Path, value: int) -> Path:
    write(path, np.full(SHAPE, value, np.uint8), simple_geometry(SHAPE, (2.0, 1.0, 1.5)))
    return path


def proof_of(job: PredictionJob, *outputs: Path) -> Proof:
    return Proof(
        case_id=job.case_id,
        label_map=job.target.name,
        made_by=MAKING.sha256,
        making=MAKING,
        inputs={path.name: sha256(path) for path in job.images},
        outputs={path.name: sha256(path) for path in outputs},
        expected_dice={},
        quality=None,
        statistics=None,
    )


@pytest.fixture
def job(tmp_path: Path) -> PredictionJob:
    """A case with a proven label map and a map beside it."""
    job = PredictionJob(
        case_id="a", images=(put(tmp_path / "in.nii.gz", 7),), target=tmp_path / "a.nii.gz"
    )
    outputs = put(job.target, 1), put(tmp_path / "a_entropy.nii.gz", 0)
    record.save_sealed(proof_of(job, *outputs), proof_file(job.target))
    return job


def found(job: PredictionJob, made_by: str = MAKING.sha256) -> Proof | DataError | None:
    return look_up([job], made_by, lambda: False).get("a")


def test_a_result_is_proven_for_its_own_case_images_and_making(job: PredictionJob) -> None:
    assert isinstance(found(job), Proof)
    assert found(job, "another") is None
    renamed = PredictionJob(case_id="b", images=job.images, target=job.target)
    assert look_up([renamed], MAKING.sha256, lambda: False) == {}
    put(job.images[0], 8)
    assert found(job) is None


def test_a_proof_that_is_copied_to_another_label_map_proves_nothing_of_it(
    job: PredictionJob,
) -> None:
    target = job.target.with_name("a.nrrd")
    proof_file(target).write_bytes(proof_file(job.target).read_bytes())
    put(target, 1)
    other = PredictionJob(case_id="a", images=job.images, target=target)
    assert found(other) is None


def test_another_label_map_is_a_correction_and_a_damaged_or_missing_one_is_not(
    job: PredictionJob,
) -> None:
    put(job.target, 2)
    for made_by in (MAKING.sha256, "another"):
        assert isinstance(found(job, made_by), DataError)
    job.target.write_bytes(job.target.read_bytes()[:30])
    assert not is_edited(job.target)
    assert found(job) is None
    job.target.unlink()
    assert not is_edited(job.target)
    assert found(job) is None


def test_a_map_that_has_changed_has_its_case_done_again(job: PredictionJob) -> None:
    put(job.target.with_name("a_entropy.nii.gz"), 1)
    assert found(job) is None


def test_a_result_is_withdrawn_with_all_that_its_proof_names_and_nothing_else(
    job: PredictionJob,
) -> None:
    put(job.target.with_name("a_mine.nii.gz"), 3)
    withdraw(job.target)
    withdraw(job.target)  # there is nothing left to withdraw
    left = {path.name for path in job.target.parent.iterdir()}
    assert left == {"in.nii.gz", "a_mine.nii.gz"}


@pytest.mark.parametrize("name", ["..", "", "../x", "/x", "y/x"])
def test_a_proof_that_names_files_elsewhere_is_none(job: PredictionJob, name: str) -> None:
    text = proof_file(job.target).read_text().replace("a_entropy.nii.gz", name)
    with pytest.raises(DataError, match="is no name of a file"):
        record.parse(Proof, record.json.loads(text), "proof")


def test_to_look_for_what_is_done_can_be_stopped(job: PredictionJob) -> None:
    with pytest.raises(StoppedError, match="nothing was written"):
        look_up([job], MAKING.sha256, lambda: True)
