"""Stage 1 with its files: a raw dataset examined, and measured for its fingerprint."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from nnseg import record
from nnseg.dataset import Case, find_training_cases, read_spec
from nnseg.doctor.examine import Examination, SoundCase, examine_each
from nnseg.doctor.findings import Finding, in_order, raise_for_errors
from nnseg.errors import DataError, MissingError, NnsegError
from nnseg.estimate import bytes_to_read, is_risky, room_for, workers_for
from nnseg.fingerprint import Fingerprint, summarize
from nnseg.folders import Folders
from nnseg.image.intensity import values_kept
from nnseg.lock import locked
from nnseg.parallel import OnProgress, for_each, some
from nnseg.runlog import logged_run
from nnseg.splits import find_parted
from nnseg.verbs import visit
from nnseg.verbs.visit import Shelf
from nnseg.workers import for_each_apart

logger = logging.getLogger(__name__)

T = TypeVar("T")


def fingerprint(
    folders: Folders,
    dataset: str,
    *,
    save: bool = True,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
    shelf: Shelf | None = None,
    apart: bool = False,
) -> Fingerprint:
    """Stage 1: examine the raw dataset, measure every case, write its fingerprint.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        save: False writes nothing.
        workers: Cases at once; None is one a core, or one if cases are small.
        on_progress: Called after each case.
        shelf: Keeps cases that were read.
        apart: Read each case in a worker process, even where memory does not call for it.

    Raises:
        MissingError: The dataset is not there.
        DataError: The doctor found errors; all are in the message.
        MachineError: Another run is planning this dataset, or its folder cannot be written.
    """
    if not save:
        return _measure(folders, dataset, workers, on_progress, shelf, apart)
    path = folders.fingerprint_file(dataset)
    with (
        locked(path.parent, f"nnseg plan -d {dataset}"),
        logged_run(path.parent, "fingerprint", {"dataset": dataset}) as run,
    ):
        result = _measure(folders, dataset, workers, on_progress, shelf, apart)
        record.save(result, path)
        run.outputs.append(path)
    return result


def up_to_date_fingerprint(
    folders: Folders,
    dataset: str,
    *,
    anew: bool = False,
    save: bool = True,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
    shelf: Shelf | None = None,
    apart: bool = False,
) -> Fingerprint:
    """Give the fingerprint of a dataset: the one that is there if it is of the same raw files.

    The raw data are examined either way, and hashed while they are; `anew` measures them in any
    case. The other arguments are those of `fingerprint`.
    """
    found = None if anew else _written(folders, dataset)
    if found is not None:
        if list(found.case_ids) == [case.case_id for case in known_cases(folders, dataset)]:
            done = _visit_all(folders, dataset, visit.keep, shelf, workers, on_progress, apart)
            _refuse_errors(done.findings, dataset)
            changed = [i for i, raw in done.visited.items() if found.hashes.get(i) != raw]
            if not changed:
                return found
            text = "the files of %s of %s have changed since they were measured; all are now"
            logger.warning(text, some(changed), dataset)
        else:
            logger.warning("the cases of %s have changed; they are measured anew", dataset)
    return fingerprint(
        folders,
        dataset,
        save=save,
        workers=workers,
        on_progress=on_progress,
        shelf=shelf,
        apart=apart,
    )


def check(
    folders: Folders,
    dataset: str,
    *,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[Finding, ...]:
    """Examine the raw dataset and give the warnings; errors raise DataError, all at once."""
    findings = _visit_all(folders, dataset, None, None, workers, on_progress).findings
    _refuse_errors(findings, dataset)
    return findings


def examine(
    folders: Folders,
    dataset: str,
    *,
    group_regex: str | None = None,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[Finding, ...]:
    """List every problem of the raw dataset: file, what was found, remedy.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        group_regex: As for `find_parted`, which says whether the folds part patients.
        workers: Cases at once; None is one a core, or one if cases are small.
        on_progress: Called after each case.

    Raises:
        MissingError: The dataset is not there.
        UsageError: `group_regex` is wrong, or finds no patient in some case.
    """
    findings = _visit_all(folders, dataset, None, None, workers, on_progress).findings
    return in_order([*findings, *find_parted(folders, dataset, group_regex)])


def _measure(
    folders: Folders,
    dataset: str,
    workers: int | None,
    on_progress: OnProgress | None,
    shelf: Shelf | None,
    apart: bool,
) -> Fingerprint:
    cases = known_cases(folders, dataset)
    channels = len(read_spec(folders.spec_file(dataset)).channels) if cases else 1
    look = partial(visit.measure, most_values=values_kept(len(cases), channels))
    done = _visit_all(folders, dataset, look, shelf, workers, on_progress, apart)
    _refuse_errors(done.findings, dataset)
    return summarize(list(done.visited.values()))


def _visit_all(
    folders: Folders,
    dataset: str,
    look: Callable[[Shelf | None, SoundCase], T] | None,
    shelf: Shelf | None,
    workers: int | None,
    on_progress: OnProgress | None,
    apart: bool = False,
) -> Examination[T]:
    """Examine the raw dataset, and `look` at each sound case; a shelf is for threads only."""
    folder = folders.raw_folder(dataset)
    if not folder.is_dir():
        raise MissingError(f"{folder} does not exist; put the raw dataset there")
    files = {case.case_id: case.files for case in known_cases(folders, dataset)}
    needs = {case_id: bytes_to_read(paths) for case_id, paths in files.items()}
    run_all, workers = for_each, workers_for(needs, workers)
    if apart or is_risky(needs, workers):
        run_all, shelf = for_each_apart, None

    def each(work: Callable[[str], Any], case_ids: Sequence[str]) -> Mapping[str, Any]:
        do = work if look is None else partial(visit.read_watched, files, shelf, work)
        return run_all(do, case_ids, str, workers, "examining", on_progress, room_for(needs))

    return examine_each(folder, None if look is None else partial(look, shelf), each)


def _refuse_errors(findings: Sequence[Finding], dataset: str) -> None:
    """Raise what the doctor found wrong, and warn of what it found odd."""
    raise_for_errors(findings, dataset)
    for finding in findings:
        logger.warning("%s: %s; %s", finding.file, finding.found, finding.remedy)


def known_cases(folders: Folders, dataset: str) -> tuple[Case, ...]:
    """Give the cases of a dataset; none where its files do not tell, as the doctor will."""
    try:
        return find_training_cases(folders, dataset, read_spec(folders.spec_file(dataset)))
    except NnsegError:
        return ()


def _written(folders: Folders, dataset: str) -> Fingerprint | None:
    """Give the fingerprint that is written; None, with a warning, if it cannot be used."""
    path = folders.fingerprint_file(dataset)
    try:
        return record.load(Fingerprint, path)
    except MissingError:
        return None
    except DataError as error:
        logger.warning("%s; the cases are measured anew", error)
        return None
