"""Stage 5 with its files: a folder of images segmented, each result with the proof of its making.

The same command goes on where it was killed, with what `nnseg.proof` does not prove to be done.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nnseg import commit, record
from nnseg.axes import Shape, three
from nnseg.dataset import spec_to_json
from nnseg.errors import (
    FILE_ONLY,
    DataError,
    DiskFullError,
    MachineError,
    NnsegError,
    PartlyDoneError,
    StoppedError,
)
from nnseg.estimate import may_read_ahead
from nnseg.folders import (
    map_file,
    predicted_spec_file,
    proof_file,
    statistics_file,
)
from nnseg.jobs import PredictionJob
from nnseg.labels import Labels
from nnseg.parallel import OnProgress, raise_together
from nnseg.predicted_folder import LABELS_ONLY, Wanted, alone, find_jobs, probe, withdraw_scores
from nnseg.probabilities import writing
from nnseg.proof import (
    Making,
    MakingModel,
    OnCase,
    Proof,
    hashes,
    is_edited,
    look_up,
    withdraw,
)
from nnseg.runlog import Run, logged_run, versions
from nnseg.scores.statistics import CaseStatistics, as_csv, measure
from nnseg.scores.uncertainty import quality
from nnseg.verbs.visit import refuse_changed, stamps_of
from nnseg.volume import Geometry, read_segmentation, read_stored, write

if TYPE_CHECKING:
    from nnseg.ensemble import Prediction
    from nnseg.predictor import Predictor

logger = logging.getLogger(__name__)

T = TypeVar("T")

BUGS_IN_A_ROW = 3  # after which the other cases are taken to meet the same


class _BugError(NnsegError):
    """A case met what a user cannot put right."""


@dataclass(slots=True)
class _Settled:
    """What became of the cases so far, by their ids."""

    on_case: OnCase | None
    done: dict[str, Proof] = field(default_factory=dict)
    failed: dict[str, NnsegError] = field(default_factory=dict)

    def add(self, job: PredictionJob, outcome: Proof | NnsegError) -> None:
        """Note what became of a case, and tell it."""
        if isinstance(outcome, Proof):
            self.done[job.case_id] = outcome
        else:
            self.failed[job.case_id] = outcome
        if self.on_case:
            self.on_case(job.case_id, outcome)


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
    on_case: OnCase | None = None,
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
        on_case: Called with what became of each case, first of those that are done already.
        stop: Asked often; True ends the prediction with what is done kept.

    Returns:
        Case id to the file written, or found done.

    Raises:
        PartlyDoneError: Some cases failed; they are listed and the others are done.
        UsageError: `target` is `source`, or holds files that no prediction made.
        MachineError: `target` cannot be written, or another prediction is at work there.
        StoppedError: `stop` said True; what is done is kept.
    """
    jobs = find_jobs(
        predictor.spec, source, target, wanted, part=part, parts=parts, overwrite=overwrite
    )
    folder = target if source.is_dir() else jobs[0].target.parent
    probe(folder)
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
    making, settled = making_of(predictor, wanted), _Settled(on_case)

    def conclude() -> None:
        _tell(run, jobs, settled)
        _sum_up(folder, name, [settled.done[n] for n in run.cases if n in settled.done], wanted)
        if source.is_dir():
            text = record.json_text(spec_to_json(predictor.spec))
            commit.write_whole(predicted_spec_file(folder), text.encode())

    command = f"nnseg predict -i {source} -o {target} -num_parts {parts}, {making.sha256[:12]}"
    with (
        alone(folder, name, command),
        logged_run(folder, "predict", arguments, name=name, stop=stop) as run,
        _concluded(conclude),
    ):
        run.facts["execution"] = [asdict(one.model.execution) for one in predictor.members]
        run.facts["making"] = record.to_json(making)
        known = {} if overwrite else look_up(jobs, making.sha256, stop)
        for job in jobs:
            if job.case_id in known:
                settled.add(job, _finished(job, known[job.case_id], predictor.spec.labels, wanted))
        if settled.done:
            logger.info("%d of %d cases are done", len(settled.done), len(jobs))
        left = [job for job in jobs if job.case_id not in known]
        withdraw_scores(folder, left)
        for job, outcome in _predict_each(predictor, left, wanted, making, stop):
            settled.add(job, outcome)
            if on_progress:
                on_progress("predicting", len(settled.done) + len(settled.failed), len(jobs))
        raise_failed(settled.failed, len(jobs))
    return {job.case_id: job.target for job in jobs}


def raise_failed(failed: Mapping[str, NnsegError], count: int) -> None:
    """Raise what failed among `count` cases as one error; nothing where nothing did.

    Raises:
        PartlyDoneError: There are other cases.
        NnsegError: All failed; it is of the worst of their kinds.
    """
    if 0 < len(failed) < count:
        listed = "".join(f"\n  case {name}: {error}" for name, error in failed.items())
        raise PartlyDoneError(f"{len(failed)} of {count} cases failed:{listed}")
    raise_together(failed, count)


@contextmanager
def _concluded(conclude: Callable[[], None]) -> Iterator[None]:
    """Do a last thing however the work ends; where both fail, what the work says is what counts."""
    try:
        yield
    except BaseException:
        try:
            conclude()
        except NnsegError as error:
            logger.warning("%s", error)
        raise
    conclude()


def making_of(predictor: "Predictor", wanted: Wanted) -> Making:
    """Give all that results follow from besides the images."""
    return Making(
        version=versions()["nnseg"],
        models=tuple(
            MakingModel(
                dataset=one.model.plan.dataset,
                plan=one.model.plan.name,
                configuration=one.model.configuration.name,
                plan_sha256=hashlib.sha256(
                    json.dumps(record.to_json(one.model.plan)).encode()
                ).hexdigest(),
                weights_sha256=one.model.weights_sha256,
                previous_sha256=one.model.previous.weights_sha256 if one.model.previous else (),
                mirror_axes=one.model.mirror_axes,
                execution={
                    name: value
                    for name, value in asdict(one.model.execution).items()
                    if name != "threads"
                },
                weight=one.weight,
                temperature=one.temperature,
            )
            for one in predictor.members
        ),
        postprocessing=predictor.postprocessing,
        step=predictor.step,
        mirror=predictor.mirror,
        maps=wanted.maps,
        probabilities=wanted.probabilities,
    )


def _predict_each(
    predictor: "Predictor",
    jobs: Sequence[PredictionJob],
    wanted: Wanted,
    making: Making,
    stop: Callable[[], bool],
) -> Iterator[tuple[PredictionJob, Proof | NnsegError]]:
    """Go through cases as they are done, each with its proof or with what is wrong.

    A case's results are written while the next one is computed. After a full disk, or several bugs
    in a row, no case is begun or read. Who stops it hears first of what was being written.
    """
    labels, left, outcomes = predictor.spec.labels, list(jobs), list[Proof | NnsegError]()
    saving: tuple[PredictionJob, Future[Proof]] | None = None
    stopped: StoppedError | None = None
    halt: NnsegError | None = None

    def settled(
        job: PredictionJob, outcome: Proof | NnsegError
    ) -> tuple[PredictionJob, Proof | NnsegError]:
        outcomes.append(outcome if isinstance(outcome, Proof) else _cleared(job, outcome))
        return job, outcomes[-1]

    with (
        ThreadPoolExecutor(1) as saver,
        closing(read_ahead(jobs, len(predictor.spec.channels))) as scans,
    ):
        for job, read in scans:
            if stop():
                stopped = StoppedError("stopped between cases; the same command goes on")
                break
            found: _Found | NnsegError
            if isinstance(read, Scan):
                try:
                    found = _outcome(job, partial(_segment, predictor, job, read, wanted, stop))
                except StoppedError as error:
                    stopped = StoppedError(f"{error}; the same command goes on")
                    break
            else:
                found = read
            left.remove(job)
            if saving is not None:
                yield settled(saving[0], _outcome(saving[0], saving[1].result))
                saving = None
            if isinstance(found, NnsegError):
                yield settled(job, found)
            else:
                saving = job, saver.submit(_save, job, found, labels, making, wanted)
            if halt := _reason_to_halt(outcomes):
                break
        if saving is not None:
            yield settled(saving[0], _outcome(saving[0], saving[1].result))
    if stopped is not None:
        raise stopped
    if halt is not None:
        yield from ((job, halt) for job in left)


def _outcome(job: PredictionJob, work: Callable[[], T]) -> T | NnsegError:
    """Give what `work` gives, or the error that makes its case fail and lets the others go on."""
    try:
        return work()
    except StoppedError:
        raise
    except NnsegError as error:
        return error
    except MemoryError as error:
        return MachineError(
            f"there is not enough memory for this image, {job.images[0]} "
            f"({str(error) or 'none is left'}); free some"
        )
    except Exception as error:
        extra = {FILE_ONLY: True}  # the terminal has the list of what failed
        logger.exception("case %s met a bug", job.case_id, extra=extra)
        return _BugError(
            f"a bug of ours: {type(error).__name__}: {error}; please report it with its traceback, "
            "which the log has"
        )


def _reason_to_halt(outcomes: Sequence[Proof | NnsegError]) -> NnsegError | None:
    """Give what is wrong with every case to come, where those before tell that."""
    if any(isinstance(outcome, DiskFullError) for outcome in outcomes):
        return DiskFullError("not begun, as the disk is full; free some and run it again")
    last = [outcome for outcome in outcomes[-BUGS_IN_A_ROW:] if isinstance(outcome, _BugError)]
    if len(last) == BUGS_IN_A_ROW:
        return _BugError(f"not begun, as the {len(last)} cases before met bugs")
    return None


def _cleared(job: PredictionJob, error: NnsegError) -> NnsegError:
    """Remove what an earlier prediction left of a case that failed: another model's, or image's."""
    if is_edited(job.target):
        return type(error)(f"{error}; its label map was changed by hand and stays")
    try:
        withdraw(job.target)
    except MachineError as other:
        logger.warning("%s", other)
    return error


@dataclass(slots=True, kw_only=True, eq=False)
class Scan:
    """The image of a case, and the hashes of its files, which have not changed meanwhile."""

    geometry: Geometry
    shape: Shape
    inputs: dict[str, str]
    channels: list[NDArray[Any]]  # each (z, y, x), in the file's own type, at most 4 bytes

    def take(self) -> list[NDArray[Any]]:
        """Give the channels, once: a scan that waits for its label map keeps no image."""
        channels, self.channels = self.channels, []
        return channels


def read_ahead(
    jobs: Sequence[PredictionJob], channels: int
) -> Generator[tuple[PredictionJob, Scan | NnsegError], None, None]:
    """Read the image of each case, a small one while the case before is worked on."""

    def read(job: PredictionJob) -> Scan | NnsegError:
        if job.fault:
            return DataError(job.fault.removeprefix(f"case {job.case_id}: "))  # the list has it
        return _outcome(job, partial(_read, job.images, channels))

    with ThreadPoolExecutor(1) as reader:
        ahead: Future[Scan | NnsegError] | None = None
        for number, job in enumerate(jobs):
            scan = read(job) if ahead is None else ahead.result()
            ahead = None
            if number + 1 < len(jobs) and may_read_ahead(jobs[number + 1].images):
                ahead = reader.submit(read, jobs[number + 1])
            yield job, scan


def _read(files: Sequence[Path], channels: int) -> Scan:
    """Read the image of a case from files that must not change meanwhile."""
    stamps = stamps_of(files)
    inputs: dict[str, str] = {}
    with suppress(OSError):  # reading says better what is wrong
        inputs = hashes(files)
    arrays, geometry = read_stored(files, channels)
    refuse_changed(files, stamps)
    return Scan(
        geometry=geometry,
        shape=three(arrays[0].shape),
        inputs=inputs,
        channels=[a if a.itemsize <= 4 else a.astype(np.float32) for a in arrays],
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """What was found in a case, and what of it is written already."""

    prediction: "Prediction"
    geometry: Geometry
    inputs: dict[str, str]  # of `Scan`
    written: tuple[Path, ...]


def _segment(
    predictor: "Predictor",
    job: PredictionJob,
    scan: Scan,
    wanted: Wanted,
    stop: Callable[[], bool],
) -> _Found:
    geometry, labels = scan.geometry, predictor.spec.labels
    prepared = predictor.prepare(scan.take(), geometry.spacing, stop=stop)
    with ExitStack() as stack:
        begin = None
        written: tuple[Path, ...] = ()
        if wanted.probabilities is not None:
            writer = stack.enter_context(
                writing(job.target, wanted.probabilities, labels, geometry)
            )
            begin, written = writer.begin, writer.files
        found = predictor.segment(
            prepared,
            maps=wanted.maps,
            probabilities=begin,
            stop=stop,
        )
        withdraw(job.target)  # before the probabilities take their names
    return _Found(prediction=found, geometry=geometry, inputs=scan.inputs, written=written)


def _save(
    job: PredictionJob, found: _Found, labels: Labels, making: Making, wanted: Wanted
) -> Proof:
    """Write a case's results, and the proof of them last."""
    prediction, geometry = found.prediction, found.geometry
    write(job.target, prediction.segmentation, geometry, labels.as_text)
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
        label_map=job.target.name,
        made_by=making.sha256,
        making=making,
        inputs=found.inputs,
        outputs=hashes(outputs),
        expected_dice=prediction.expected_dice,
        quality=quality(prediction.expected_dice),
        statistics=statistics,
    )
    return record.save_sealed(proof, proof_file(job.target))


def _finished(
    job: PredictionJob, known: Proof | DataError, labels: Labels, wanted: Wanted
) -> Proof | NnsegError:
    """Give what is known of a case that is done; statistics that it lacks follow from its map."""
    if isinstance(known, DataError) or known.statistics is not None or not wanted.statistics:
        return known

    def completed() -> Proof:
        segmentation, geometry = read_segmentation(job.target)
        statistics = measure(segmentation, labels, geometry)
        return record.save_sealed(replace(known, statistics=statistics), proof_file(job.target))

    return _outcome(job, completed)


def _tell(run: Run, jobs: Sequence[PredictionJob], settled: _Settled) -> None:
    """Put into run.json what became of each case; of those that a stop left, nothing."""
    for job in jobs:
        if job.case_id in settled.failed:
            run.cases[job.case_id] = str(settled.failed[job.case_id])
        elif job.case_id in settled.done:
            run.cases[job.case_id] = "done"
            proof, beside = settled.done[job.case_id], job.images[0].parent
            run.input_hashes |= {beside / name: sha for name, sha in proof.inputs.items()}
            run.output_hashes |= {job.target.with_name(n): s for n, s in proof.outputs.items()}
    found = settled.done
    run.facts["quality"] = {name: found[name].quality for name in run.cases if name in found}


def _sum_up(folder: Path, name: str, proofs: Sequence[Proof], wanted: Wanted) -> None:
    """Write the statistics of all cases as one table, or remove one that is out of date."""
    cases = [
        CaseStatistics(case_id=proof.case_id, labels=proof.statistics)
        for proof in proofs
        if proof.statistics is not None
    ]
    if cases and (wanted.statistics or len(cases) == len(proofs)):
        commit.write_whole(statistics_file(folder, name), as_csv(cases).encode())
    elif proofs:
        commit.remove(statistics_file(folder, name))
