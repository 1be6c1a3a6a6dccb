"""Postprocessing rules carried out on files: a folder of label maps, or one.

The same command goes on where it was killed, with those label maps that no record proves to be
done.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnseg import commit, record
from nnseg.dataset import DatasetSpec, spec_to_json
from nnseg.errors import DataError, DiskFullError, MissingError, NnsegError, UsageError
from nnseg.estimate import READ_BYTES, bytes_to_read, room_for, workers_for
from nnseg.folders import applied_file, applied_files, predicted_spec_file
from nnseg.jobs import predicted_maps
from nnseg.labels import Labels
from nnseg.lock import locked
from nnseg.parallel import OnProgress, for_each, out_of_memory
from nnseg.postprocess import Postprocessing, apply
from nnseg.postprocess.rules import values_of
from nnseg.runlog import logged_run
from nnseg.volume import label_ending, read_segmentation, side_files, split_ending, write

logger = logging.getLogger(__name__)

APPLY_BYTES = 8  # for each voxel, beside what reading takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """LABEL_MAP.postprocessed.json: what a label map was made from, and that it is whole."""

    label_map: str  # the name of its file
    made_by: str  # hash of the rules and of what the labels mean
    postprocessing: Postprocessing
    inputs: dict[str, str]  # name of each file of the label map before to its SHA-256
    outputs: dict[str, str]  # the same of what was written
    voxels: int  # that became background
    record_sha256: str = ""  # of this record without it; `record.save_sealed` writes it

    def __post_init__(self) -> None:
        record.check_file_names("label_map", [self.label_map])
        record.check_file_names("inputs", self.inputs)
        record.check_file_names("outputs", self.outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyingJob:
    """One label map to postprocess."""

    case_id: str
    source: Path
    target: Path


def apply_postprocessing(
    source: Path,
    target: Path,
    postprocessing: Postprocessing,
    spec: DatasetSpec,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Path]:
    """Carry out rules on every label map of a folder, into another folder, or on one label map.

    Beside each result lies the record of its making, by which the same command knows what is done;
    in a folder, a dataset.json names the labels.

    Args:
        source: The folder of label maps, or one; it is left as it is.
        target: The folder of the results; of one label map also a file.
        postprocessing: The rules.
        spec: What the labels mean, and how files end.
        overwrite: Do again what is done, and replace files that were changed by hand or that this
            command did not make.
        workers: Cases at once; None is one a core where they are large.
        on_progress: Called after each case.

    Returns:
        Case id to the file written, or found done.

    Raises:
        UsageError: `target` is `source`, or holds files that this command did not make or results
            of other rules.
        PartlyDoneError: Some label maps failed; they are listed and the others are done.
        MissingError: `source` does not exist.
        DataError: There is no label map, a rule is about no label, or every case failed.
        MachineError: `target` cannot be written, or another run is at work there.
    """
    from nnseg.verbs.predicting import raise_failed  # late: it brings all that prediction needs

    jobs = find_applying_jobs(source, target, postprocessing, spec, overwrite=overwrite)
    needs = {job.case_id: _bytes_of(job.source) for job in jobs}

    def work(job: ApplyingJob) -> Applied | NnsegError:
        try:
            return _carry_out(job.source, job.target, postprocessing, spec.labels, overwrite)
        except DiskFullError:
            raise
        except NnsegError as error:
            return error
        except MemoryError as error:
            return out_of_memory(error)

    folder = jobs[0].target.parent
    arguments = {"source": str(source), "target": str(target)}
    with (
        locked(folder, f"nnseg postprocess -i {source} -o {target}"),
        logged_run(folder, "postprocess", arguments) as run,
    ):
        run.facts["postprocessing"] = record.to_json(postprocessing)
        if folder == target:
            commit.write_whole(predicted_spec_file(folder), _spec_text(spec))
        outcomes = for_each(
            work,
            jobs,
            lambda job: job.case_id,
            workers_for(needs, workers),
            "postprocessing",
            on_progress,
            room_for(needs),
        )
        failed = {case: found for case, found in outcomes.items() if isinstance(found, NnsegError)}
        for job in jobs:
            run.cases[job.case_id] = str(failed.get(job.case_id, "done"))
            found = outcomes[job.case_id]
            if isinstance(found, Applied):
                before, after = found.inputs, found.outputs
                run.input_hashes |= {job.source.with_name(n): sha for n, sha in before.items()}
                run.output_hashes |= {job.target.with_name(n): sha for n, sha in after.items()}
        raise_failed(failed, len(jobs))
    return {job.case_id: job.target for job in jobs}


def find_applying_jobs(
    source: Path,
    target: Path,
    postprocessing: Postprocessing,
    spec: DatasetSpec,
    *,
    overwrite: bool = False,
) -> tuple[ApplyingJob, ...]:
    """List what `apply_postprocessing` would do, by its arguments; nothing is written.

    Results in `target` that are of the same rules and of none of these cases are told of.

    Raises:
        UsageError, MissingError, DataError: As `apply_postprocessing`, but for what is in files.
    """
    if not source.exists():
        raise MissingError(f"{source} does not exist; give a label map or a folder of label maps")
    ending = label_ending(spec.file_ending)
    is_file = bool(split_ending(target.name)[1]) and not target.is_dir()
    if source.is_file() and is_file:
        jobs = [ApplyingJob(case_id=_stem(target), source=source, target=target)]
    elif is_file or target.is_file():
        raise UsageError(f"{target} is a file; the label maps of a folder go into a folder")
    else:
        maps = [source] if source.is_file() else predicted_maps(source, ending)
        jobs = [
            ApplyingJob(case_id=_stem(path), source=path, target=target / path.name)
            for path in maps
        ]
    if not jobs:
        raise DataError(f"{source}: no file ends in {ending}; nothing to postprocess")
    if any(job.source.resolve() == job.target.resolve() for job in jobs):
        raise UsageError(f"{target}: the output must not be the input; give another folder")
    for rule in postprocessing.rules:
        values_of(rule, spec.labels)
    if not overwrite:
        _refuse_to_replace([job.target for job in jobs])
        if not is_file:
            _refuse_foreign_spec(predicted_spec_file(target), spec)
    if not is_file:
        _refuse_to_mix(target, jobs, _made_by(postprocessing, spec.labels))
    return tuple(jobs)


def _stem(path: Path) -> str:
    return split_ending(path.name)[0]


def _bytes_of(label_map: Path) -> int:
    """Foretell the most bytes that postprocessing a label map takes."""
    read = bytes_to_read([label_map])
    return read + APPLY_BYTES * read // READ_BYTES


def _made_by(postprocessing: Postprocessing, labels: Labels) -> str:
    rules = json.dumps(record.to_json(postprocessing)["rules"])
    return hashlib.sha256((rules + labels.as_text).encode()).hexdigest()


def _spec_text(spec: DatasetSpec) -> bytes:
    return record.json_text(spec_to_json(spec)).encode()


def _carry_out(
    source: Path, target: Path, postprocessing: Postprocessing, labels: Labels, overwrite: bool
) -> Applied:
    """Postprocess one label map, unless that is done."""
    before = _read_applied(target)
    made_by = _made_by(postprocessing, labels)
    inputs = _hashes(source)
    if before is not None and target.is_file() and not overwrite:
        if _hashes(target) == before.outputs:
            if before.made_by == made_by and before.inputs == inputs:
                return before
        elif _is_readable(target):  # what is not is damage, and nobody's work
            raise DataError(
                f"{target} was changed since it was postprocessed; move it away, or give "
                "--overwrite"
            )
    for path in (*side_files(target), target, applied_file(target)):
        commit.remove(path)  # so that nothing of other rules stays where this fails
    segmentation, geometry = read_segmentation(source)
    try:
        labels.to_positions(segmentation)
    except DataError as error:
        raise DataError(f"{source} {error}") from None
    result = apply(segmentation, postprocessing, labels, geometry.spacing)
    with commit.whole_files(target.parent) as folder:
        unfinished = folder / target.name
        write(unfinished, result, geometry, labels.as_text)
        applied = Applied(
            label_map=target.name,
            made_by=made_by,
            postprocessing=postprocessing,
            inputs=inputs,
            outputs=_hashes(unfinished),
            voxels=int((result != segmentation).sum()),
        )
        return record.save_sealed(applied, applied_file(target))  # the next run knows it by this


def _hashes(path: Path) -> dict[str, str]:
    from nnseg.proof import hashes

    try:
        return hashes([path])
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check the file and its rights"
        ) from None


def _is_readable(label_map: Path) -> bool:
    try:
        read_segmentation(label_map)
    except NnsegError:
        return False
    return True


def _read_applied(label_map: Path) -> Applied | None:
    """Read the record beside a label map; None if there is none, or not a whole one of its own."""
    found = _load_applied(applied_file(label_map))
    return found if found is not None and found.label_map == label_map.name else None


def _load_applied(path: Path) -> Applied | None:
    try:
        return record.load_sealed(Applied, path)
    except NnsegError:
        return None


def _refuse_to_replace(label_maps: Sequence[Path]) -> None:
    for path in label_maps:
        if path.exists() and not applied_file(path).exists():
            raise UsageError(
                f"{path} was not made by postprocessing; give another folder, or --overwrite"
            )


def _refuse_foreign_spec(path: Path, spec: DatasetSpec) -> None:
    """Refuse to write over a dataset.json that says other things, such as a dataset's own."""
    if path.exists() and not applied_files(path.parent) and path.read_bytes() != _spec_text(spec):
        raise UsageError(
            f"{path} is there, and postprocessing did not make it; give another folder, or "
            "--overwrite"
        )


def _refuse_to_mix(target: Path, jobs: Sequence[ApplyingJob], made_by: str) -> None:
    """Refuse to leave results of other rules among new ones; tell of others that stay."""
    names = {job.target.name for job in jobs}
    others, same = list[str](), list[str]()
    for path in applied_files(target):
        found = _load_applied(path)
        if found is None or found.label_map in names or not (target / found.label_map).exists():
            continue
        (same if found.made_by == made_by else others).append(found.label_map)
    if others:
        raise UsageError(
            f"{target} holds results of other rules, which would stay: {', '.join(others)}; give "
            "another folder, or remove them"
        )
    if same:
        logger.warning(
            "%s also holds %d %s of the same rules, not of these cases: %s",
            target,
            len(same),
            "result" if len(same) == 1 else "results",
            ", ".join(same),
        )
