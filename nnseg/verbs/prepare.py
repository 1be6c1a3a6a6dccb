"""Stages 1 and 3 with their files: raw cases examined, measured and preprocessed.

Each verb visits every case once (`nnseg.verbs.visit`). `plan_and_preprocess` keeps what it has read
and measured until there is a plan, as far as memory allows; what is not kept is read again.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from nnseg import record, store
from nnseg.axes import Spacing
from nnseg.dataset import Case, find_training_cases, read_spec
from nnseg.doctor.examine import Examination, SoundCase, examine_each
from nnseg.doctor.findings import Finding, in_order, raise_for_errors
from nnseg.errors import DataError, MissingError, NnsegError
from nnseg.estimate import (
    KEPT_SHARE,
    CaseSize,
    Estimate,
    bytes_of_case,
    bytes_to_read,
    check_disk,
    estimate,
    free_memory,
    is_risky,
    room_for,
    sizes_of_cases,
    workers_for,
)
from nnseg.fingerprint import Fingerprint, summarize
from nnseg.folders import Folders
from nnseg.image.intensity import values_kept
from nnseg.image.normalize import NORMALIZERS, Normalizer
from nnseg.lock import locked
from nnseg.model.architecture import NO_OPTIONS, NetworkOptions
from nnseg.parallel import OnProgress, for_each, some
from nnseg.plan import Configuration, Plan, describe_plan
from nnseg.preprocess import preprocessing_hash
from nnseg.runlog import logged_run
from nnseg.splits import check_regex, find_parted
from nnseg.verbs import visit
from nnseg.verbs.planning import DEFAULT_PLAN, check_spec, load_plan, plan
from nnseg.verbs.visit import Job, Shelf, Target
from nnseg.workers import for_each_apart

logger = logging.getLogger(__name__)

T = TypeVar("T")
Say: TypeAlias = Callable[[str], None]


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
        if list(found.case_ids) == [case.case_id for case in _known_cases(folders, dataset)]:
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


def preprocess(
    folders: Folders,
    dataset: str,
    configurations: Sequence[str] | None = None,
    *,
    plan_name: str = DEFAULT_PLAN,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
    say: Say = lambda text: None,
    shelf: Shelf | None = None,
    apart: bool = False,
) -> dict[str, int]:
    """Stage 3: bring every case to what its network sees; cases that are up to date stay.

    A case is read once for all configurations. Where two of them, of this plan or another, make
    the same arrays of it, their files are one (hard links).

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        configurations: Which of the plan's; None is all of them.
        plan_name: The plan.
        workers: Cases at once; None is one a core, or one if cases are small.
        on_progress: Called after each case.
        say: Gets a line for the user: what the work is foretold to take.
        shelf: Cases that were read before; what is there is not read again.
        apart: Make each case in a worker process, even where memory does not call for it: what
            kills one costs its case and not the run.

    Returns:
        For each configuration with data of its own, how many cases were made anew.

    Raises:
        PlanError: The plan was made of another dataset.json.
        DataError: Cases that could not be read, all listed; the others are done.
        MachineError: The disk does not suffice for what is missing, or cases killed their worker
            twice; the others are done.
    """
    the_plan = load_plan(folders, dataset, plan_name)
    spec = read_spec(folders.spec_file(dataset))
    check_spec(the_plan, spec, str(folders.spec_file(dataset)))
    cases = find_training_cases(folders, dataset, spec)
    chosen = _with_data(the_plan, configurations)
    names = [configuration.name for configuration in chosen]
    targets = tuple(_target(folders, the_plan, configuration) for configuration in chosen)
    sizes = _missing(the_plan, targets, cases, _measured(folders, dataset))
    needs = {name: bytes_of_case(size, the_plan, chosen) for name, size in sizes.items()}
    workers = workers_for(needs, workers)
    foretold = estimate(the_plan, chosen, list(sizes.values()), workers)
    check_disk(foretold.disk, targets[0].folder, freed=_freed(targets, sizes))
    if foretold.cases:
        say(f"preprocessing {', '.join(names)}: {foretold}")
    above = targets[0].folder.parent
    arguments = {"dataset": dataset, "configurations": names}
    made = dict.fromkeys(names, 0)
    with logged_run(above, "preprocess", arguments) as run, ExitStack() as held:
        run.inputs.append(folders.plan_file(dataset, plan_name))
        run.facts["made"] = made
        for target in sorted(targets, key=lambda target: target.folder):
            name = target.configuration.name
            held.enter_context(locked(target.folder, f"nnseg preprocess -d {dataset} -c {name}"))
            store.clean(target.folder, [case.case_id for case in cases])
        used = {name: NORMALIZERS[name] for one in chosen for name in one.normalization}
        job = Job(
            plan=the_plan,
            targets=targets,
            elsewhere=_stores(folders, dataset),
            normalizers=used,
        )
        run_all = for_each
        if (apart or is_risky(needs, workers)) and _can_go_apart(used):
            run_all, shelf = for_each_apart, None
        work = partial(visit.preprocess, job, shelf)
        what = f"preprocessing {', '.join(names)}"
        done = run_all(work, cases, _case_id, workers, what, on_progress, room_for(needs))
        for name in names:
            made[name] = sum(name in anew for anew in done.values())
    return made


def plan_and_preprocess(
    folders: Folders,
    dataset: str,
    configurations: Sequence[str] | None = None,
    *,
    name: str = DEFAULT_PLAN,
    planner: str = "default",
    memory_gb: float | None = None,
    target_spacing: Spacing | None = None,
    network: str | None = None,
    options: NetworkOptions = NO_OPTIONS,
    group_regex: str | None = None,
    anew: bool = False,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
    say: Say = lambda text: None,
    apart: bool = False,
) -> tuple[Plan, dict[str, int]]:
    """Stages 1 to 3 in one: examine, measure, plan and preprocess, each file unpacked once.

    Cases stay in memory from measuring to preprocessing as far as a quarter of the free memory
    holds them; those that do not fit are read again.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        configurations: Which to preprocess; None is all that are planned.
        name: As for `plan`, as are the next six.
        planner: A name of PLANNERS.
        memory_gb: What a training may take.
        target_spacing: mm, (z, y, x) of the files.
        network: A name of KINDS; None is the planner's own.
        options: Of the network.
        group_regex: Finds the patient in the id of a case.
        anew: Measure in any case, as for `up_to_date_fingerprint`.
        workers: Cases at once; None is one a core, or one if cases are small.
        on_progress: Called after each case.
        say: Gets the plan, and what preprocessing is foretold to take.
        apart: As for `preprocess`; nothing is kept then.

    Returns:
        The plan, and what `preprocess` gives.

    Raises:
        MissingError: The dataset is not there.
        DataError: The doctor found errors, or cases could not be preprocessed; all are listed.
        MachineError: As `preprocess`.
        UsageError: `group_regex` is wrong, or finds no patient in some case.
    """
    check_regex(folders, dataset, group_regex)
    room = int(KEPT_SHARE * free_memory())
    shelf = Shelf(room=room, unwanted=_seem_done(folders, dataset, name, configurations))
    measured = up_to_date_fingerprint(
        folders,
        dataset,
        anew=anew,
        workers=workers,
        on_progress=on_progress,
        shelf=shelf,
        apart=apart,
    )
    the_plan = plan(
        folders,
        dataset,
        name=name,
        planner=planner,
        memory_gb=memory_gb,
        target_spacing=target_spacing,
        network=network,
        options=options,
        measured=measured,
        group_regex=group_regex,
    )
    say(describe_plan(the_plan))
    made = preprocess(
        folders,
        dataset,
        configurations,
        plan_name=name,
        workers=workers,
        on_progress=on_progress,
        say=say,
        shelf=shelf,
        apart=apart,
    )
    return the_plan, made


def foretell(
    folders: Folders,
    the_plan: Plan,
    configurations: Sequence[str] | None = None,
    *,
    measured: Fingerprint | None = None,
    workers: int | None = None,
) -> Estimate:
    """Say what preprocessing will take of memory, disk and time, for cases that are not there yet.

    Args:
        folders: The data roots.
        the_plan: It need not be written yet.
        configurations: Which of the plan's; None is all of them.
        measured: The fingerprint; None takes the one that is written, or the plan's medians.
        workers: Cases at once; None is one a core, or one if cases are small.

    Raises:
        PlanError: The plan was made of another dataset.json.
        MachineError: The disk does not suffice; what is needed and what is free.
    """
    dataset = the_plan.dataset
    spec_file = folders.spec_file(dataset)
    check_spec(the_plan, read_spec(spec_file), str(spec_file))
    chosen = _with_data(the_plan, configurations)
    targets = [_target(folders, the_plan, configuration) for configuration in chosen]
    measured = measured or _measured(folders, dataset)
    sizes = _missing(the_plan, targets, _known_cases(folders, dataset), measured)
    needs = {name: bytes_of_case(size, the_plan, chosen) for name, size in sizes.items()}
    result = estimate(the_plan, chosen, list(sizes.values()), workers_for(needs, workers))
    check_disk(result.disk, targets[0].folder, freed=_freed(targets, sizes))
    return result


def _measure(
    folders: Folders,
    dataset: str,
    workers: int | None,
    on_progress: OnProgress | None,
    shelf: Shelf | None,
    apart: bool,
) -> Fingerprint:
    cases = _known_cases(folders, dataset)
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
    files = {case.case_id: case.files for case in _known_cases(folders, dataset)}
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


def _known_cases(folders: Folders, dataset: str) -> tuple[Case, ...]:
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


def _measured(folders: Folders, dataset: str) -> Fingerprint | None:
    """Give the fingerprint that is written, if it can be used; without it things can go on."""
    try:
        return record.load(Fingerprint, folders.fingerprint_file(dataset))
    except NnsegError:
        return None


def _with_data(the_plan: Plan, configurations: Sequence[str] | None) -> list[Configuration]:
    """Give those whose data the chosen configurations use: a cascade has none of its own."""
    chosen = [the_plan.configuration(name) for name in configurations or the_plan.configurations]
    names = dict.fromkeys(configuration.data for configuration in chosen)
    return [the_plan.configuration(name) for name in names]


def _missing(
    the_plan: Plan,
    targets: Sequence[Target],
    cases: Sequence[Case],
    measured: Fingerprint | None,
) -> dict[str, CaseSize]:
    """Give the sizes of the cases that some target lacks, as far as records and dates tell.

    A case counts whose files are younger than its record, or not those that were measured.
    """
    known = {} if measured is None else measured.hashes
    missing = [
        case.case_id
        for case in cases
        if not all(_seems_made(target, case, known.get(case.case_id)) for target in targets)
    ]
    return sizes_of_cases(the_plan, measured, missing)


def _seems_made(target: Target, case: Case, raw: tuple[str, ...] | None) -> bool:
    stored = store.find_record(target.folder, case.case_id)
    if stored is None or stored.data_hash != target.data_hash:
        return False
    if raw is not None and stored.made_from != store.origin(raw, target.data_hash):
        return False
    return visit.last_change(case.files) <= store.written_at(target.folder, case.case_id)


def _freed(targets: Sequence[Target], case_ids: Iterable[str]) -> int:
    """Give the bytes of the arrays that are there of these cases, which new ones will replace."""
    total = 0
    for case_id in case_ids:
        for target in targets:
            stored = store.find_record(target.folder, case_id)
            total += 0 if stored is None else store.bytes_on_disk(target.folder, stored)
    return total


def _can_go_apart(normalizers: Mapping[str, Normalizer]) -> bool:
    """Say whether workers can have these functions; they do not run the caller's main module."""
    for name, function in normalizers.items():
        if function.__module__ == "__main__":
            text = "normalizer %s is of the main module, which workers do not load: threads do it"
            logger.warning(text, name)
            return False
    return True


def _target(folders: Folders, the_plan: Plan, configuration: Configuration) -> Target:
    return Target(
        configuration=configuration,
        folder=folders.store(the_plan.dataset, the_plan.name, configuration.name),
        data_hash=preprocessing_hash(the_plan, configuration),
    )


def _stores(folders: Folders, dataset: str) -> tuple[Path, ...]:
    """Give the folders of preprocessed cases of a dataset, of any plan and configuration."""
    kept = folders.prepared_folder(dataset)
    return tuple(sorted(path for path in kept.glob("*/*") if path.is_dir()))


def _seem_done(
    folders: Folders, dataset: str, name: str, configurations: Sequence[str] | None
) -> frozenset[str]:
    """Give the cases that are there for every configuration, as far as records tell."""
    try:
        the_plan = load_plan(folders, dataset, name)
        chosen = _with_data(the_plan, configurations)
    except NnsegError:
        return frozenset()
    targets = [_target(folders, the_plan, configuration) for configuration in chosen]
    cases = _known_cases(folders, dataset)
    missing = _missing(the_plan, targets, cases, None)
    return frozenset(case.case_id for case in cases) - missing.keys()


def _case_id(case: Case) -> str:
    return case.case_id
