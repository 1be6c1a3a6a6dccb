"""Stage 5 with its files: a folder of images segmented, each result with the proof of its making.

A result counts as done when its proof says that it was made from these images by this model in this
way, and the files are still what they were then. So the same command goes on where it was killed.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nnseg import commit, record
from nnseg.dataset import spec_to_json
from nnseg.errors import (
    DataError,
    DiskFullError,
    MachineError,
    MissingError,
    NnsegError,
    PartlyDoneError,
    StoppedError,
    UsageError,
)
from nnseg.estimate import bytes_to_read
from nnseg.folders import map_file, predicted_spec_file, proof_file, statistics_file
from nnseg.jobs import PredictionJob, find_prediction_jobs
from nnseg.labels import Labels
from nnseg.parallel import OnProgress, raise_together
from nnseg.probabilities import KINDS, writing
from nnseg.runlog import Run, logged_run, versions
from nnseg.statistics import CaseStatistics, LabelStatistics, as_csv, measure
from nnseg.uncertainty import quality
from nnseg.volume import Geometry, Volume, read_image, side_files, write

if TYPE_CHECKING:
    from nnseg.ensemble import Map, Prediction
    from nnseg.predictor import Predictor

logger = logging.getLogger(__name__)

T = TypeVar("T")

AHEAD_BYTES = 2**30  # of an image that is read while the one before is predicted
PROBE_BYTES = 2**20  # that an output folder must take before anything is computed


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is written of each case besides its label map."""

    maps: "tuple[Map, ...]" = ()
    probabilities: str | None = None  # a name of KINDS
    statistics: bool = False


LABELS_ONLY = Wanted()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """CASE.proof.json: what a result was made from, and that it is whole."""

    case_id: str
    made_by: str  # hash of the models and of how they predict
    inputs: dict[str, str]  # name of each image file to its SHA-256
    outputs: dict[str, str]  # the same of what was written
    expected_dice: dict[str, float | None]  # what the model's own probabilities promise
    quality: float | None  # their mean; None where nothing was found
    statistics: dict[str, LabelStatistics] | None
    record_sha256: str = ""  # of this record without it; `record.save_sealed` writes it


def predict(
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
) -> dict[str, Path]:
    """Stage 5: segment every image of a folder, or one file.

    The next image is read and the last result written while a network computes.

    Args:
        predictor: What `nnseg.load` gave.
        source: A folder of CASE_0000.nii.gz, ... or one file that holds all channels.
        target: A folder; a file if `source` is one.
        wanted: What else is written of each case.
        part: Of `parts` equal shares of the cases, this one, counted from 0.
        parts: Number of shares.
        overwrite: Do again what is done.
        on_progress: Called after each case.
        stop: Asked often; True raises StoppedError with what is done kept.

    Returns:
        Case id to the file written, or found done.

    Raises:
        PartlyDoneError: Some cases failed; they are listed and the others are done.
        UsageError: `target` is `source`, or holds files that no prediction made.
        MachineError: `target` cannot be written.
    """
    if wanted.probabilities is not None:
        KINDS[wanted.probabilities]  # or an error that names those there are
    if parts > 1 and source.is_file():
        raise UsageError(f"{source} is one image; -num_parts shares out a folder of them")
    spec = predictor.spec
    jobs = find_prediction_jobs(source, target, spec)[part::parts]
    folder = target if source.is_dir() else jobs[0].target.parent
    _probe(folder)
    name = "run" if parts == 1 else f"run_{part}_of_{parts}"
    if source.is_file():
        name = f"{jobs[0].case_id}.run"
    arguments = {
        "source": str(source),
        "target": str(target),
        "step": predictor.step,
        "mirror": predictor.mirror,
        **asdict(wanted),
    }
    made_by = _made_by(predictor, wanted)
    with logged_run(folder, "predict", arguments, name=name) as run:
        run.facts["execution"] = [asdict(one.model.execution) for one in predictor.members]
        proofs = {} if overwrite else _proven(jobs, made_by)
        failed: dict[str, NnsegError] = {}
        for job, outcome in _predict_each(
            predictor, [job for job in jobs if job.case_id not in proofs], wanted, made_by, stop
        ):
            if isinstance(outcome, Proof):
                proofs[job.case_id] = outcome
            else:
                failed[job.case_id] = outcome
            if on_progress:
                on_progress("predicting", len(proofs) + len(failed), len(jobs))
        _tell(run, jobs, proofs, failed)
        try:
            _sum_up(folder, name, [proofs[n] for n in run.cases if n in proofs])
            if source.is_dir():
                text = record.json_text(spec_to_json(spec))
                commit.write_whole(predicted_spec_file(folder), text.encode())
        except MachineError as error:
            if not failed:
                raise
            logger.warning("%s", error)  # what is raised lists the cases, which says more
        if failed and proofs:
            listed = "".join(f"\n  case {name}: {error}" for name, error in failed.items())
            raise PartlyDoneError(f"{len(failed)} of {len(jobs)} cases failed:{listed}")
        raise_together(failed, len(jobs))
    return {job.case_id: job.target for job in jobs}


def _probe(folder: Path) -> None:
    """Refuse a folder that takes no files before anything is computed for it.

    Raises:
        MachineError: It cannot be written, or the disk is full.
    """
    probe = folder / ".nnseg-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        commit.write_whole(probe, bytes(PROBE_BYTES))
        probe.unlink(missing_ok=True)  # the run of another share may have removed it
    except OSError as error:
        raise commit.cannot_write(folder, error) from None


def _made_by(predictor: "Predictor", wanted: Wanted) -> str:
    """Give a hash of all that results follow from besides the images."""
    facts = {
        "version": versions()["nnseg"],
        "members": [
            {
                "weights": one.model.weights_sha256,
                "plan": record.to_json(one.model.plan),
                "mirror_axes": one.model.mirror_axes,
                "execution": {**asdict(one.model.execution), "threads": None},
                "previous": one.model.previous and one.model.previous.weights_sha256,
                "weight": one.weight,
                "temperature": one.temperature,
            }
            for one in predictor.members
        ],
        "postprocessing": record.to_json(predictor.postprocessing),
        "step": predictor.step,
        "mirror": predictor.mirror,
        "wanted": asdict(wanted),
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _proven(jobs: Sequence[PredictionJob], made_by: str) -> dict[str, Proof]:
    """Give the proofs of those cases whose results are there, whole and as they would be made."""
    found = {}
    for job in jobs:
        try:
            proof = record.load_sealed(Proof, proof_file(job.target))
            inputs = _hashes(job.images)
            outputs = _hashes([job.target.parent / name for name in proof.outputs])
        except (NnsegError, OSError):
            continue
        if (proof.made_by, proof.inputs, proof.outputs) == (made_by, inputs, outputs):
            found[job.case_id] = proof
    if found:
        logger.info("%d of %d cases are done", len(found), len(jobs))
    return found


def _hashes(paths: Sequence[Path]) -> dict[str, str]:
    files = [file for path in paths for file in (path, *side_files(path))]
    return {file.name: commit.sha256(file) for file in files}


def _predict_each(
    predictor: "Predictor",
    jobs: Sequence[PredictionJob],
    wanted: Wanted,
    made_by: str,
    stop: Callable[[], bool],
) -> Iterator[tuple[PredictionJob, Proof | NnsegError]]:
    """Go through cases as they are done, each with its proof or with what is wrong.

    A case's results are written while the next one is computed. On a full disk no case is begun.
    """
    full, labels = False, predictor.spec.labels
    saving: tuple[PredictionJob, Future[Proof]] | None = None
    with ThreadPoolExecutor(1) as saver:
        for job, read in _read_ahead(jobs, len(predictor.spec.channels)):
            if stop():
                raise StoppedError("stopped between cases; the same command goes on")
            found: _Found | NnsegError
            if full:
                found = DiskFullError("not begun, as the disk is full; free some and run it again")
            elif isinstance(read, _Scan):
                found = _outcome(lambda: _segment(predictor, job, read, wanted, stop))  # noqa: B023
            else:
                found = read
            if saving is not None:
                outcome = _outcome(saving[1].result)
                full |= isinstance(outcome, DiskFullError)
                yield saving[0], outcome
                saving = None
            if isinstance(found, NnsegError):
                full |= isinstance(found, DiskFullError)
                yield job, found
            else:
                saving = job, saver.submit(_save, job, found, wanted, labels, made_by)
        if saving is not None:
            yield saving[0], _outcome(saving[1].result)


def _outcome(work: Callable[[], T]) -> T | NnsegError:
    """Give what `work` gives, or the error that makes its case fail and lets the others go on."""
    try:
        return work()
    except (DataError, MissingError, MachineError) as error:
        return error
    except MemoryError as error:
        return MachineError(f"there is not enough memory for this image ({error}); free some")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scan:
    """The image of a case, and the hashes of its files from before it was read.

    So a file that changes meanwhile proves nothing, and its case is done again the next time.
    """

    volume: Volume
    inputs: dict[str, str]


def _read_ahead(
    jobs: Sequence[PredictionJob], channels: int
) -> Iterator[tuple[PredictionJob, _Scan | NnsegError]]:
    """Read the image of each case, a small one while the case before is worked on."""

    def read(job: PredictionJob) -> _Scan | NnsegError:
        if job.fault:
            return DataError(job.fault.removeprefix(f"case {job.case_id}: "))  # the list has it
        inputs: dict[str, str] = {}
        with suppress(OSError):  # reading says better what is wrong
            inputs = _hashes(job.images)
        volume = _outcome(lambda: read_image(job.images, channels))
        return _Scan(volume=volume, inputs=inputs) if isinstance(volume, Volume) else volume

    with ThreadPoolExecutor(1) as reader:
        ahead: Future[_Scan | NnsegError] | None = None
        for number, job in enumerate(jobs):
            scan = read(job) if ahead is None else ahead.result()
            ahead = None
            if number + 1 < len(jobs) and bytes_to_read(jobs[number + 1].images) <= AHEAD_BYTES:
                ahead = reader.submit(read, jobs[number + 1])
            yield job, scan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """What was found in a case, and what of it is written already."""

    prediction: "Prediction"
    geometry: Geometry
    inputs: dict[str, str]  # of `_Scan`
    written: tuple[Path, ...]


def _segment(
    predictor: "Predictor",
    job: PredictionJob,
    scan: _Scan,
    wanted: Wanted,
    stop: Callable[[], bool],
) -> _Found:
    geometry, labels = scan.volume.geometry, predictor.spec.labels
    with ExitStack() as stack:
        begin = None
        written: tuple[Path, ...] = ()
        if wanted.probabilities is not None:
            writer = stack.enter_context(
                writing(job.target, wanted.probabilities, labels, geometry)
            )
            begin, written = writer.begin, writer.files
        found = predictor.segment(
            scan.volume.image,
            geometry.spacing,
            maps=wanted.maps,
            probabilities=begin,
            stop=stop,
        )
    return _Found(prediction=found, geometry=geometry, inputs=scan.inputs, written=written)


def _save(job: PredictionJob, found: _Found, wanted: Wanted, labels: Labels, made_by: str) -> Proof:
    """Write a case's results, and the proof of them last."""
    prediction, geometry = found.prediction, found.geometry
    write(job.target, prediction.segmentation, geometry)
    outputs = [job.target, *found.written]
    for name, values in prediction.maps.items():
        path = map_file(job.target, name)
        write(path, values, geometry)
        outputs.append(path)
    statistics = None
    if wanted.statistics:
        statistics = measure(prediction.segmentation, labels, geometry)
    proof = Proof(
        case_id=job.case_id,
        made_by=made_by,
        inputs=found.inputs,
        outputs=_hashes(outputs),
        expected_dice=prediction.expected_dice,
        quality=quality(prediction.expected_dice),
        statistics=statistics,
    )
    return record.save_sealed(proof, proof_file(job.target))


def _tell(
    run: Run,
    jobs: Sequence[PredictionJob],
    proofs: Mapping[str, Proof],
    failed: Mapping[str, NnsegError],
) -> None:
    """Put into run.json what became of each case."""
    for job in jobs:
        if job.case_id in failed:
            run.cases[job.case_id] = str(failed[job.case_id])
        else:
            run.cases[job.case_id] = "done"
            run.inputs += job.images
            run.outputs += [job.target.parent / file for file in proofs[job.case_id].outputs]
    done = [name for name in run.cases if name in proofs]
    run.facts["quality"] = {name: proofs[name].quality for name in done}


def _sum_up(folder: Path, name: str, proofs: Sequence[Proof]) -> None:
    """Write the statistics of all cases as one table, if they were wanted."""
    cases = [
        CaseStatistics(case_id=proof.case_id, labels=proof.statistics)
        for proof in proofs
        if proof.statistics is not None
    ]
    if cases:
        commit.write_whole(statistics_file(folder, name), as_csv(cases).encode())
