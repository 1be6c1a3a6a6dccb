"""Goes over everything that nnseg keeps of a dataset: is it still what was written, and whole.

Read `examine` first. A stored case is proved by the hashes in its record, a checkpoint by the hash
of its weights, the other files by what the record of the run that wrote them says. Nothing is
changed here, and a folder that a run is using is not judged.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnseg import record
from nnseg.commit import TEMPORARY
from nnseg.dataset import DatasetSpec, Fold, check_folds, find_training_cases, read_spec
from nnseg.dataset.groups import GroupRule, find_leaks, rule_file
from nnseg.doctor.findings import Finding, Notes, in_order
from nnseg.errors import MachineError, MissingError, NnsegError
from nnseg.fingerprint import Fingerprint
from nnseg.folders import DATASET_NAME, Folders, checkpoint_file
from nnseg.fsck.audit import CaseFolder, RawCases, Remake, audit
from nnseg.fsck.proofs import Look, Proof
from nnseg.fsck.reports import examine_report
from nnseg.fsck.validations import examine_validation
from nnseg.lock import in_use
from nnseg.parallel import OnProgress, for_each, some
from nnseg.plan import Plan, differing_key
from nnseg.preprocess import preprocessing_hash
from nnseg.splits import SplitsSource, source_file

RUNS = ("latest", "previous")  # checkpoints that a training goes on from
KINDS = ("final", "best", *RUNS)
RESULT_RECORDS = ("run.json", "[!.]*.run.json", "run_*_of_*.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What was looked at and found; findings name files from the folder of the data root on."""

    files: int  # looked at, raw ones not counted
    findings: tuple[Finding, ...]
    remakes: tuple[Remake, ...] = ()
    unfinished: tuple[Path, ...] = ()  # files that a write left, in folders that no run is using


def kept_datasets(folders: Folders) -> tuple[str, ...]:
    """List the datasets of which anything is kept, by name."""
    roots = [root for root in (folders.preprocessed, folders.results) if root.is_dir()]
    found = {folder.name for root in roots for folder in _folders_in(root)}
    return tuple(sorted(name for name in found if DATASET_NAME.fullmatch(name)))


def examine(
    folders: Folders,
    dataset: str,
    *,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Examination:
    """Go over all that is kept of a dataset: preprocessed data, models, records of runs.

    What is damaged, missing, or of other raw files than today's is an error. A warning is what may
    be meant so (an edited plan), does no harm (a leftover), or could not be judged.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        workers: Cases looked at together; None is one a core.
        on_progress: Called after each stored case.

    Raises:
        MissingError: Nothing is kept of the dataset.
        MachineError: Its folder cannot be read.
    """
    kept, models = folders.prepared_folder(dataset), folders.models_folder(dataset)
    if not kept.is_dir() and not models.is_dir():
        raise MissingError(f"{kept} does not exist; `nnseg plan {dataset}` makes it")
    prepared, trained = (Look(Notes(folder.parent.parent)) for folder in (kept, models))
    remakes: list[Remake] = []
    if kept.is_dir():
        raw = _raw_cases(prepared, folders, dataset)
        fingerprint, plans = _examine_records(prepared, folders, dataset, raw)
        for found in _case_folders(dataset, kept, plans):
            remake = audit(prepared, found, raw, workers, on_progress)
            remakes += [remake] if remake else []
        if fingerprint is not None:
            path = folders.fingerprint_file(dataset)
            _compare_with_raw(prepared, path, fingerprint, raw, workers, on_progress)
    if models.is_dir():
        _examine_results(trained, models)
    remedy = f"`nnseg fsck {dataset} --redo` removes it"
    unfinished = [*_unfinished(prepared, kept, remedy), *_unfinished(trained, models, remedy)]
    return Examination(
        files=prepared.files + trained.files,
        findings=in_order([*prepared.notes.findings, *trained.notes.findings]),
        remakes=tuple(remakes),
        unfinished=tuple(unfinished),
    )


def holds_results(folder: Path) -> bool:
    """Whether a run has left its results in `folder`: predictions, or a trained fold."""
    return any(path for pattern in RESULT_RECORDS for path in folder.glob(pattern))


def examine_results(folder: Path) -> Examination:
    """Go over a folder of results, wherever it lies, by the records of the runs that made it."""
    look = Look(Notes(folder.parent))
    _examine_results(look, folder)
    _unfinished(look, folder, "remove it")
    return Examination(files=look.files, findings=in_order(look.notes.findings))


def _raw_cases(look: Look, folders: Folders, dataset: str) -> RawCases:
    """Find the raw cases; a warning where they cannot be told."""
    try:
        spec = read_spec(folders.spec_file(dataset))
        cases = find_training_cases(folders, dataset, spec)
    except NnsegError as error:
        found = f"cannot be compared with the raw files: {error}"
        remedy = f"`nnseg doctor {dataset}` says more"
        look.notes.warning("raw", folders.prepared_folder(dataset), found, remedy)
        return RawCases(None)
    return RawCases({case.case_id: case for case in cases})


def _examine_records(
    look: Look, folders: Folders, dataset: str, raw: RawCases
) -> tuple[Fingerprint | None, dict[str, Plan]]:
    """Judge fingerprint, folds and plans; give those that can be read, plans by name."""
    path, splits = folders.fingerprint_file(dataset), folders.splits_file(dataset)
    spec_file, kept = folders.spec_file(dataset), path.parent
    proofs = look.proofs([kept, *_plan_folders(kept)], kept)
    again = f"`nnseg plan {dataset} --clean` makes it anew"
    fingerprint = look.load("fingerprint", path, Fingerprint, again) if path.exists() else None
    if fingerprint is not None and look.differs(path, proofs):
        look.notes.error("fingerprint", path, f"is not the same since {proofs[path]}", again)
    folds = None
    if splits.exists():
        again = f"remove it and run `nnseg plan {dataset}`"
        folds = _examine_folds(look, splits, raw, proofs, again)
    path = rule_file(splits)
    again = f"restore it, or make it anew: `nnseg plan {dataset} --group-regex`"
    rule = look.load("groups", path, GroupRule, again) if path.exists() else None
    if rule is not None and look.differs(path, proofs):
        look.notes.error("groups", path, f"is not the same since {proofs[path]}", again)
    if rule is not None and folds and not folders.user_splits_file(dataset).is_file():
        _hold_against(look, splits, folds, rule, f"`nnseg plan {dataset}` makes them by patient")
    path = source_file(splits)
    again = f"remove it and run `nnseg plan {dataset}`"
    if path.exists():
        look.load("folds", path, SplitsSource, again)
    spec = _spec(spec_file)
    plans = {}
    for path in sorted(folders.plans_folder(dataset).glob("[!.]*.json")):
        again = f"restore it, or plan again: `nnseg plan {dataset} -p {path.stem}`"
        plan = look.load("plan", path, Plan, again)
        if plan is None:
            continue
        plans[path.stem] = plan
        if (plan.name, plan.dataset) != (path.stem, dataset):
            found = f"calls itself plan {plan.name} of {plan.dataset}"
            look.notes.error("plan", path, found, f"write {path.stem} and {dataset} into it")
        elif look.differs(path, proofs):
            found = f"was edited, or damaged, since {proofs[path]}"
            look.notes.warning("plan_edited", path, found, f"if nobody meant to, {again}")
        if spec is not None and (difference := differing_key(plan, spec)):
            found = f"was made of another dataset.json than {spec_file}: there, {difference}"
            remedy = f"restore that, or plan again: `nnseg plan {dataset} -p {path.stem}`"
            look.notes.error("plan_outdated", path, found, remedy)
    return fingerprint, plans


def _spec(path: Path) -> DatasetSpec | None:
    """Read a dataset.json; None where it cannot be, of which the raw cases tell."""
    try:
        return read_spec(path)
    except NnsegError:
        return None


def _compare_with_raw(
    look: Look,
    path: Path,
    fingerprint: Fingerprint,
    raw: RawCases,
    workers: int | None,
    on_progress: OnProgress | None,
) -> None:
    """Judge whether a fingerprint is of today's raw files."""
    if raw.cases is None or not fingerprint.raw:
        return
    remedy = f"`nnseg plan {path.parent.name}` measures them anew"
    if list(raw.cases) != list(fingerprint.case_ids):
        found = "is of other cases than the raw dataset has"
        look.notes.warning("fingerprint_raw", path, found, remedy)
        return
    hashes = for_each(
        raw.hashes_or_none, list(raw.cases), str, workers, "hashing raw files", on_progress
    )
    changed = [case_id for case_id, raw in fingerprint.hashes.items() if hashes[case_id] != raw]
    if changed:
        found = f"was measured before the raw files of {some(changed)} changed"
        look.notes.warning("fingerprint_raw", path, found, remedy)


def _hold_against(
    look: Look, path: Path, folds: tuple[Fold, ...], rule: GroupRule, remedy: str
) -> None:
    """Judge whether folds keep patients together as the rule beside them says."""
    ids = sorted({case_id for fold in folds for case_id in (*fold.train, *fold.val)})
    try:
        leaks = find_leaks(folds, rule.patients(ids))
    except NnsegError as error:
        look.notes.caught("groups", rule_file(path), error)
        return
    if leaks:
        found = (
            f"fold {leaks[0].fold} trains on {leaks[0].train} and validates on {leaks[0].val}, "
            f"both of {leaks[0].patient} by {rule_file(path).name}"
        )
        look.notes.error("folds", path, found, remedy)


def _examine_folds(
    look: Look, path: Path, raw: RawCases, proofs: Mapping[Path, Proof], again: str
) -> tuple[Fold, ...] | None:
    """Judge folds; give them if they can be used."""
    folds: tuple[Fold, ...] | None = look.load(
        "folds", path, tuple[Fold, ...], f"restore it, or {again}"
    )
    if folds is None:
        return None
    listed = {case_id for fold in folds for case_id in (*fold.train, *fold.val)}
    try:
        check_folds(folds, sorted(listed if raw.cases is None else raw.cases), str(path))
    except NnsegError as error:
        look.notes.caught("folds", path, error)
        return None
    if look.differs(path, proofs):
        found = f"was edited, or damaged, or cases have joined, since {proofs[path]}"
        look.notes.warning("folds_edited", path, found, f"if none is so, restore it, or {again}")
    return folds


def _case_folders(dataset: str, kept: Path, plans: Mapping[str, Plan]) -> Iterator[CaseFolder]:
    """List the folders of preprocessed cases, whether a plan knows them or not."""
    for above in _plan_folders(kept):
        plan = plans.get(above.name)
        for folder in _folders_in(above):
            known = plan.configurations.get(folder.name) if plan else None
            yield CaseFolder(
                dataset=dataset,
                plan=above.name,
                configuration=folder.name,
                folder=folder,
                data_hash=preprocessing_hash(plan, known) if plan and known else None,
            )


def _plan_folders(kept: Path) -> list[Path]:
    """List the folders of what was preprocessed, one a plan."""
    return [path for path in _folders_in(kept) if path.name != "plans"]


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise MachineError(
            f"{folder}: cannot be read ({error.strerror}); check the folder and its rights"
        ) from None


def _examine_results(look: Look, top: Path) -> None:
    """Judge trained folds, and whatever else the records below `top` say that runs wrote."""
    folders = [top, *sorted(path for path in top.rglob("*") if path.is_dir())]
    proofs = look.proofs(folders, top)
    for folder in folders:
        if there := [kind for kind in KINDS if checkpoint_file(folder, kind).exists()]:
            _examine_fold(look, folder, there, proofs)
        examine_validation(look, folder, proofs)
        examine_report(look, folder)
    checkpoints = {checkpoint_file(folder, kind) for folder in folders for kind in KINDS}
    for path, proof in proofs.items():
        if path in checkpoints:
            continue
        look.files += proof.written
        fault = look.fault(path, proof.digest)
        if fault and proof.written:
            look.notes.error("output", path, fault, f"run `nnseg {proof.command}` again")
        elif fault and path.is_relative_to(look.notes.folder):
            _note_changed_input(look, path, proof, path)
        elif fault:
            _note_changed_input(look, top, proof, path)


def _note_changed_input(look: Look, where: Path, proof: Proof, path: Path) -> None:
    found = f"{path} has changed since {proof}"
    look.notes.warning("input", where, found, f"run `nnseg {proof.command}` again")


def _examine_fold(
    look: Look, fold: Path, there: Sequence[str], proofs: Mapping[Path, Proof]
) -> None:
    """Judge the checkpoints of a trained fold; this alone needs torch, for their records."""
    from nnseg.checkpoint import Checkpoint
    from nnseg.learning.resume import RunRecord

    holder, own = in_use(fold), Look(Notes(look.notes.folder))
    remedy = "restore it from a copy, or train this fold anew with --overwrite"
    weights: dict[str, str] = {}
    finished = False
    for kind in there:
        path = checkpoint_file(fold, kind)
        of = RunRecord if kind in RUNS else Checkpoint
        found = own.load("checkpoint", path, of, remedy, record.load_sealed)
        if found is None:
            continue
        if own.differs(path, proofs):
            own.notes.error("checkpoint", path, f"is not the same since {proofs[path]}", remedy)
        weights[found.weights_file] = found.weights_sha256
        finished |= kind == "latest" and found.finished
    for name, digest in weights.items():
        own.files += 1
        if fault := own.fault(fold / name, digest):
            own.notes.error("weights", fold / name, fault, remedy)
    if finished and "final" not in there:
        path = checkpoint_file(fold, "final")
        own.notes.error("checkpoint", path, "does not exist, though the training ended", remedy)
    if len(weights) == len(there):  # else it may be those of a record that cannot be read
        for path in sorted(fold.glob("checkpoint_*.safetensors")):
            if path.name not in weights:
                found = "belongs to no checkpoint: no record names it"
                own.notes.warning("leftover", path, found, "remove it if nothing else needs it")
    if holder := holder or in_use(fold):
        found = f"is in use by {holder}, and was not judged"
        look.notes.warning("in_use", fold, found, "run this again when that has ended")
        return
    look.files += own.files
    look.notes.findings.extend(own.notes.findings)


def _unfinished(look: Look, top: Path, remedy: str) -> list[Path]:
    """Note the unfinished files below `top`, but for those of folders that a run is using."""
    found = sorted(top.rglob(f"{TEMPORARY}*")) if top.is_dir() else []
    found = [path for path in found if in_use(path.parent) is None]
    for path in found:
        text = "was left by a write that was cut off, if none is under way"
        look.notes.warning("unfinished", path, text, remedy)
    return found
