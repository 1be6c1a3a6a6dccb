"""What a prediction was made from, and by what: a record beside each label map.

A result counts as done when its proof says that it was made from these images by these models in
this way, and the files are still what they were then.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from nnseg import commit, record
from nnseg.errors import DataError, NnsegError, StoppedError
from nnseg.folders import proof_file
from nnseg.jobs import PredictionJob
from nnseg.postprocess import Postprocessing
from nnseg.scores.statistics import LabelStatistics
from nnseg.volume import read_segmentation, side_files


@dataclass(frozen=True, slots=True, kw_only=True)
class MakingModel:
    """One configuration's networks among those that predicted."""

    dataset: str  # that they were trained on
    plan: str
    configuration: str
    plan_sha256: str
    weights_sha256: tuple[str, ...]  # of the network of each fold
    previous_sha256: tuple[str, ...]  # of a cascade: the same of the stage before
    mirror_axes: tuple[int, ...]
    execution: dict[str, str | bool | int]  # device, precision and whatever else rounds differently
    weight: float
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """All that results follow from besides the images."""

    version: str  # of nnseg
    models: tuple[MakingModel, ...]
    postprocessing: Postprocessing
    step: float
    mirror: bool
    maps: tuple[str, ...]
    probabilities: str | None

    @property
    def sha256(self) -> str:
        """The hash by which a proof tells whether the same would be made again."""
        return hashlib.sha256(record.dumps(self).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """LABEL_MAP.proof.json: what a result was made from, and that it is whole."""

    case_id: str
    label_map: str  # the name of its file
    made_by: str  # hash of `making`
    making: Making
    inputs: dict[str, str]  # name of each image file to its SHA-256
    outputs: dict[str, str]  # the same of what was written
    expected_dice: dict[str, float | None]  # what the model's own probabilities promise
    quality: float | None  # their mean; None where nothing was found
    statistics: dict[str, LabelStatistics] | None
    record_sha256: str = ""  # of this record without it; `record.save_sealed` writes it

    def __post_init__(self) -> None:
        record.check_file_names("label_map", [self.label_map])
        record.check_file_names("inputs", self.inputs)
        record.check_file_names("outputs", self.outputs)  # or to remove them were a danger


OnCase: TypeAlias = Callable[[str, Proof | NnsegError], None]  # its id; its proof, or what failed


def look_up(
    jobs: Sequence[PredictionJob], made_by: str, stop: Callable[[], bool]
) -> dict[str, Proof | DataError]:
    """Give the proofs of those cases whose results are there, whole and as they would be made.

    Of a case whose label map was changed by hand it gives that as an error: nobody's work is
    written over.

    Raises:
        StoppedError: `stop` said True.
    """
    found: dict[str, Proof | DataError] = {}
    for job in jobs:
        if stop():
            raise StoppedError("stopped while looking for what is done; nothing was written")
        proof = read_proof(job.target)
        if proof is None or proof.case_id != job.case_id:
            continue
        if is_edited(job.target):
            found[job.case_id] = DataError(
                f"{job.target} was changed since it was predicted; move it away, or give "
                "--overwrite"
            )
        elif proof.made_by == made_by:
            with suppress(OSError):  # a file is gone, or cannot be read
                outputs = hashes([job.target.parent / name for name in proof.outputs])
                if outputs == proof.outputs and hashes(job.images) == proof.inputs:
                    found[job.case_id] = proof
    return found


def read_proof(label_map: Path) -> Proof | None:
    """Read the proof beside a label map; None if there is none, or not a whole one of its own."""
    try:
        proof = record.load_sealed(Proof, proof_file(label_map))
    except NnsegError:
        return None
    return proof if proof.label_map == label_map.name else None


def is_edited(label_map: Path) -> bool:
    """Whether somebody has changed a predicted label map: another one is there that can be read.

    What cannot be read is damage, and nobody's work.
    """
    proof = read_proof(label_map)
    if proof is None:
        return False
    try:
        now = hashes([label_map])
        if now.items() <= proof.outputs.items():
            return False
        read_segmentation(label_map)
    except (NnsegError, OSError):
        return False
    return True


def withdraw(label_map: Path) -> None:
    """Remove a result, with all that its proof names, before another one takes its place.

    So nothing of an older model or image stays beside what is new, nor does an older proof, however
    the run ends. The proof goes last: until then it is known what is to go.

    Raises:
        MachineError: A file cannot be removed.
    """
    proof = read_proof(label_map)
    if proof is not None:
        for name in proof.outputs:
            commit.remove(label_map.with_name(name))
    commit.remove(proof_file(label_map))


def hashes(paths: Sequence[Path]) -> dict[str, str]:
    """Give the SHA-256 of files and of those that belong to them, by name.

    Raises:
        OSError: One cannot be read.
    """
    files = [file for path in paths for file in (path, *side_files(path))]
    return {file.name: commit.sha256(file) for file in files}
