"""What a prediction would do and take, told before anything is computed or written."""

import errno
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnseg import commit, record
from nnseg.axes import smallest_integer_type
from nnseg.errors import NnsegError, StoppedError
from nnseg.estimate import FLOAT_BYTES, CaseSize, in_gb
from nnseg.labels import Labels
from nnseg.parallel import OnProgress
from nnseg.predicted_folder import LABELS_ONLY, PROBE_BYTES, Wanted, find_jobs
from nnseg.proof import look_up
from nnseg.verbs.predicting import Scan, making_of, read_ahead

if TYPE_CHECKING:
    from nnseg.predictor import Predictor

logger = logging.getLogger(__name__)

PROBABILITY_BYTES = {"npz": FLOAT_BYTES, "nifti": 2, "chunks": 2}  # a voxel and head of a kind

DONE, TO_DO = "done", "to do"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """How one configuration's networks would predict."""

    model: str  # dataset, plan and configuration
    folds: int
    mirrors: int  # of each tile, as it is among them
    device: str
    precision: str

    def __str__(self) -> str:
        folds = f"{self.folds} fold{'s' * (self.folds > 1)}"
        mirrors = f"{self.mirrors} mirrors" if self.mirrors > 1 else "no mirrors"
        return f"{self.model}: {folds}, {mirrors}, on {self.device} in {self.precision}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outlook:
    """What a prediction would do, as its images and what is written already tell."""

    source: str
    target: str
    cases: tuple[str, ...]  # all that were found
    done: frozenset[str]  # of them, those whose results are proven
    failed: Mapping[str, NnsegError]  # of them, those that cannot be predicted
    stages: tuple[Stage, ...]  # in the order in which they would run
    step: float  # distance of tiles, as a share of their edge
    memory: int  # bytes, about, of the case that takes most; 0 where nothing is to do
    device_memory: int  # the same of a GPU's own
    disk: int  # bytes at most, of all that is to do, before it is packed

    def to_json(self) -> dict[str, Any]:
        """Give it for other programs; `cases` says of each "done", "to do" or what is wrong."""
        states = {
            name: DONE if name in self.done else str(self.failed.get(name, TO_DO))
            for name in self.cases
        }
        return {
            "source": self.source,
            "target": self.target,
            "cases": states,
            "stages": [record.to_json(stage) for stage in self.stages],
            "step": self.step,
            "memory": self.memory,
            "device_memory": self.device_memory,
            "disk": self.disk,
            "written": False,
        }

    def __str__(self) -> str:
        left = len(self.cases) - len(self.done) - len(self.failed)
        wrong = f", {len(self.failed)} cannot be predicted" if self.failed else ""
        takes = f"about {in_gb(self.memory)} of memory"
        if self.device_memory:
            takes += f", {in_gb(self.device_memory)} of the GPU's"
        takes = f"{takes} and at most {in_gb(self.disk)} of disk" if left else "nothing"
        return "\n".join(
            (
                f"{self.source} to {self.target}: {len(self.cases)} cases, {len(self.done)} done, "
                f"{left} to do{wrong}",
                *map(str, self.stages),
                f"prediction would take {takes}; nothing was written",
            )
        )


def foretell(
    predictor: "Predictor",
    source: Path,
    target: Path,
    *,
    wanted: Wanted = LABELS_ONLY,
    part: int = 0,
    parts: int = 1,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outlook:
    """Say what `predict` would do with the same arguments, and write nothing.

    Every image that is not done is read, so that what is wrong with it shows now; sizes are those
    of whole images, as if there were no air around the body to be cut off.

    Returns:
        What would be done; who wants what failed as an error has `raise_failed` raise it.

    Raises:
        UsageError: As `predict` does.
        MachineError: `target` could not be written.
        StoppedError: `stop` said True.
    """
    jobs = find_jobs(
        predictor.spec, source, target, wanted, part=part, parts=parts, overwrite=overwrite
    )
    folder = target if source.is_dir() else jobs[0].target.parent
    free = _free_disk(folder)
    known = {} if overwrite else look_up(jobs, making_of(predictor, wanted).sha256, stop)
    to_do = [job for job in jobs if job.case_id not in known]
    failed: dict[str, NnsegError] = {
        name: found for name, found in known.items() if isinstance(found, NnsegError)
    }
    memory = device_memory = disk = 0
    for count, (job, read) in enumerate(read_ahead(to_do, len(predictor.spec.channels)), 1):
        if stop():
            raise StoppedError("stopped; nothing was written")
        if isinstance(read, Scan):
            voxels = math.prod(read.shape)
            needs = predictor.foretell(
                CaseSize(shape=read.shape, spacing=read.geometry.spacing, voxels=voxels)
            )
            memory, device_memory = max(memory, needs.memory), max(device_memory, needs.device)
            disk += voxels * _bytes_of_voxel(wanted, predictor.spec.labels)
        else:
            failed[job.case_id] = read
        if on_progress:
            on_progress("examining", count, len(to_do))
    if disk > free:
        logger.warning(
            "%s: results may take up to %s of disk, and %s are free",
            folder,
            in_gb(disk),
            in_gb(free),
        )
    return Outlook(
        source=str(source),
        target=str(target),
        cases=tuple(job.case_id for job in jobs),
        done=frozenset(known.keys() - failed.keys()),
        failed=failed,
        stages=_stages(predictor),
        step=predictor.step,
        memory=memory,
        device_memory=device_memory,
        disk=disk,
    )


def _stages(predictor: "Predictor") -> tuple[Stage, ...]:
    return tuple(
        Stage(
            model=f"{stage.plan.dataset} {stage.plan.name} {stage.configuration.name}",
            folds=len(stage.networks),
            mirrors=2 ** len(stage.mirror_axes) if predictor.mirror else 1,
            device=stage.execution.device,
            precision=stage.execution.precision,
        )
        for stage in predictor.stages()
    )


def _bytes_of_voxel(wanted: Wanted, labels: Labels) -> int:
    """Give the bytes that results have for each voxel before they are packed."""
    found = smallest_integer_type(labels.values[-1]).itemsize + FLOAT_BYTES * len(wanted.maps)
    if wanted.probabilities is not None:
        found += PROBABILITY_BYTES[wanted.probabilities] * labels.heads
    return found


def _free_disk(folder: Path) -> int:
    """Give the bytes that a folder, which need not be there yet, can take; write nothing.

    Raises:
        MachineError: It cannot be written, or the disk is full.
    """
    there = folder
    while not there.exists():
        there = there.parent
    reason = None
    if not there.is_dir():
        reason = errno.ENOTDIR
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = errno.EACCES
    elif (free := shutil.disk_usage(there).free) < PROBE_BYTES:
        reason = errno.ENOSPC
    else:
        return free
    raise commit.cannot_write(folder, OSError(reason, os.strerror(reason)))
