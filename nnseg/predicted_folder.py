"""The folder that a prediction writes: what goes there, and who may write it now."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import realpath  # unlike Path.resolve, it takes links that lead to themselves
from pathlib import Path
from typing import TYPE_CHECKING

from nnseg import commit
from nnseg.dataset import DatasetSpec, read_spec
from nnseg.errors import MachineError, UsageError
from nnseg.folders import (
    map_file,
    predicted_spec_file,
    proof_file,
    proof_files,
    running_folder,
    summary_file,
)
from nnseg.jobs import PredictionJob, find_prediction_jobs
from nnseg.labels import Labels
from nnseg.lock import in_use, locked
from nnseg.volume import side_files

if TYPE_CHECKING:
    from nnseg.ensemble import Map

logger = logging.getLogger(__name__)

PROBE_BYTES = 2**20  # that an output folder must take before anything is computed


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is written of each case besides its label map."""

    maps: "tuple[Map, ...]" = ()
    probabilities: str | None = None  # a name of KINDS
    statistics: bool = False

    def files(self, label_map: Path) -> tuple[Path, ...]:
        """Name all that is written of a case, its label map first."""
        maps = [map_file(label_map, name) for name in self.maps]
        if self.probabilities is None:
            return (label_map, *maps)
        from nnseg.probabilities.kinds import probability_files  # slow to import, and few ask

        return (label_map, *maps, *probability_files(label_map, self.probabilities))


LABELS_ONLY = Wanted()


def find_jobs(
    spec: DatasetSpec,
    source: Path,
    target: Path,
    wanted: Wanted,
    *,
    part: int = 0,
    parts: int = 1,
    overwrite: bool = False,
) -> tuple[PredictionJob, ...]:
    """List the cases of a share, once it is sure that their results can stand where they go.

    Raises:
        UsageError: They would replace an image, each other, or what no prediction made; or label
            maps of other labels lie there.
    """
    if parts > 1 and source.is_file():
        raise UsageError(f"{source} is one image; -num_parts shares out a folder of them")
    jobs = find_prediction_jobs(source, target, spec, overwrite=overwrite)
    images = {
        realpath(file) for job in jobs for path in job.images for file in (path, *side_files(path))
    }
    owners: dict[Path, str] = {}
    for job in jobs:
        for path in wanted.files(job.target):
            if realpath(path) in images:
                raise UsageError(f"{path}: the output must not be the input; give another place")
            if owners.setdefault(path, job.case_id) != job.case_id:
                raise UsageError(
                    f"{path} would be of case {owners[path]} and of case {job.case_id}; rename one"
                )
    if source.is_dir():
        _refuse_other_labels(target, spec.labels, jobs)
    return jobs[part::parts]


def _refuse_other_labels(folder: Path, labels: Labels, jobs: Sequence[PredictionJob]) -> None:
    """Refuse to write a dataset.json over one that names the labels of other cases there."""
    path = predicted_spec_file(folder)
    others = set(proof_files(folder)) - {proof_file(job.target) for job in jobs}
    if others and path.is_file() and read_spec(path).labels != labels:
        raise UsageError(
            f"{path} names other labels, those of {len(others)} results that would stay; give "
            "another folder"
        )


@contextmanager
def alone(folder: Path, run: str, command: str) -> Iterator[None]:
    """Keep every other prediction out of a folder but the other shares of the same command.

    Two single images may go into one folder at the same time.

    Raises:
        MachineError: One is at work there.
    """
    own = running_folder(folder, run)
    with locked(own, command):
        for other in own.parent.glob("[!.]*"):
            apart = run.endswith(".run") and other.name.endswith(".run")
            holder = None if other == own or apart else in_use(other)
            if holder is not None and holder.command != command:
                raise MachineError(f"{folder} is in use by {holder}; wait for it")
        yield


def withdraw_scores(folder: Path, jobs: Sequence[PredictionJob]) -> None:
    """Remove the scores of label maps that are about to be replaced; nothing if none is there.

    Raises:
        MachineError: They cannot be removed.
    """
    scores = summary_file(folder)
    if scores.is_file() and any(job.target.exists() for job in jobs):
        logger.warning("%s is of label maps that are made anew, and goes; evaluate again", scores)
        commit.remove(scores)


def probe(folder: Path) -> None:
    """Refuse a folder that takes no files before anything is computed for it.

    Raises:
        MachineError: It cannot be written, or the disk is full.
    """
    trial = folder / ".nnseg-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        commit.write_whole(trial, bytes(PROBE_BYTES))
        trial.unlink(missing_ok=True)  # the run of another share may have removed it
    except OSError as error:
        raise commit.cannot_write(folder, error) from None
