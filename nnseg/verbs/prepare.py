"""Stage 3 with its files, and stages 1 to 3 in one: cases are brought to what networks see.

Each verb visits every case once (`nnseg.verbs.visit`). `plan_and_preprocess` keeps what it has read
and measured until there is a plan, as far as memory allows; what is not kept is read again.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeAlias

from nnseg import record, store
from nnseg.axes import Spacing
from nnseg.dataset import Case, find_training_cases, read_spec
from nnseg.errors import NnsegError
from nnseg.estimate import (
    KEPT_SHARE,
    CaseSize,
    Estimate,
    bytes_of_case,
    check_disk,
    estimate,
    free_memory,
    is_risky,
    room_for,
    sizes_of_cases,
    workers_for,
)
from nnseg.fingerprint import Fingerprint
from nnseg.folders import Folders
from nnseg.image.normalize import NORMALIZERS, Normalizer
from nnseg.lock import locked
from nnseg.model.architecture import NO_OPTIONS, NetworkOptions
from nnseg.parallel import OnProgress, for_each
from nnseg.plan import Configuration, Plan, describe_plan
from nnseg.preprocess import preprocessing_hash
from nnseg.runlog import logged_run
from nnseg.splits import check_regex
from nnseg.verbs import visit
from nnseg.verbs.measuring import known_cases, up_to_date_fingerprint
from nnseg.verbs.planning import DEFAULT_PLAN, check_spec, load_plan, plan
from nnseg.verbs.visit import Job, Shelf, Target
from nnseg.workers import for_each_apart

logger = logging.getLogger(__name__)

Say: TypeAlias = Callable[[str], None]


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
    sizes = _missing(the_plan, targets, known_cases(folders, dataset), measured)
    needs = {name: bytes_of_case(size, the_plan, chosen) for name, size in sizes.items()}
    result = estimate(the_plan, chosen, list(sizes.values()), workers_for(needs, workers))
    check_disk(result.disk, targets[0].folder, freed=_freed(targets, sizes))
    return result


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
    return visit.last_write(case.files) <= store.written_at(target.folder, case.case_id)


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
    cases = known_cases(folders, dataset)
    missing = _missing(the_plan, targets, cases, None)
    return frozenset(case.case_id for case in cases) - missing.keys()


def _case_id(case: Case) -> str:
    return case.case_id
