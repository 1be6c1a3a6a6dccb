"""A folder of preprocessed cases, judged one by one: whole, damaged, missing or out of date."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nnseg import store
from nnseg.commit import TEMPORARY, sha256
from nnseg.dataset import Case
from nnseg.doctor.findings import Finding, Notes
from nnseg.errors import NnsegError
from nnseg.fsck.proofs import Look
from nnseg.lock import in_use
from nnseg.parallel import OnProgress, for_each, some

# what keeps whole cases from being used, told once for all of a folder
_UNUSABLE = {
    "missing": "lacks {some}",
    "other_plan": "holds {some} as another plan wants them, or this one before it was edited",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFolder:
    """A folder of preprocessed cases; `data_hash` is None where no plan says what belongs in it."""

    dataset: str
    plan: str
    configuration: str
    folder: Path
    data_hash: str | None

    def remedy(self, raw: "RawCases") -> str:
        """Say what to do about a damaged case."""
        if self.data_hash is not None and raw.cases is not None:
            return f"`nnseg fsck {self.dataset} --redo` makes the case anew"
        lacks = "plan" if self.data_hash is None else "raw files"
        return f"restore it from a copy; without its {lacks} it cannot be made anew"


@dataclass(slots=True)
class RawCases:
    """The raw cases by id, None where they cannot be told; their files are hashed when needed."""

    cases: Mapping[str, Case] | None
    digests: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def hashes(self, case_id: str) -> tuple[str, ...]:
        """Give the SHA-256 of a case's raw files."""
        assert self.cases is not None, "there is such a case"
        if case_id not in self.digests:
            self.digests[case_id] = tuple(sha256(path) for path in self.cases[case_id].files)
        return self.digests[case_id]

    def hashes_or_none(self, case_id: str) -> tuple[str, ...] | None:
        """Do what `hashes` does; None where a file cannot be read."""
        try:
            return self.hashes(case_id)
        except OSError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remake:
    """A folder of preprocessed cases that `nnseg preprocess` can put right.

    `damaged` are the cases to remove first; whatever else is wrong there it sees by itself.
    """

    plan: str
    configuration: str
    damaged: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    """What one stored case showed."""

    state: str  # "whole", "damaged", "missing", "other_plan", "other_raw" or "leftover"
    files: int = 0
    findings: tuple[Finding, ...] = ()


def audit(
    look: Look,
    found: CaseFolder,
    raw: RawCases,
    workers: int | None,
    on_progress: OnProgress | None,
) -> Remake | None:
    """Judge every case in a folder and every raw case that it lacks.

    A folder that a run is using, at the beginning or at the end, is not judged.

    Returns:
        What can be made anew there; None if nothing has to be, or nothing can.
    """
    folder, notes = found.folder, look.notes
    holder = in_use(folder)
    arrays: dict[str, list[Path]] = {}
    try:
        files = [path for path in folder.iterdir() if not path.name.startswith(TEMPORARY)]
    except OSError as error:
        remedy = "check the folder and its rights"
        notes.error("unreadable", folder, f"cannot be read ({error.strerror})", remedy)
        return None
    for path in sorted(files):
        if match := store.ARRAY_FILE.fullmatch(path.name):
            arrays.setdefault(match["case_id"], []).append(path)
    records = {path.stem for path in files if path.suffix == ".json"}
    case_ids = sorted({*records, *arrays, *(raw.cases or ())})
    work = partial(_judge, look, found, raw, arrays)
    what = f"examining {found.plan} {found.configuration}"
    verdicts = for_each(work, case_ids, str, workers, what, on_progress)
    if holder := holder or in_use(folder):
        remedy = "run this again when that has ended"
        notes.warning("in_use", folder, f"is in use by {holder}, and was not judged", remedy)
        return None
    if found.data_hash is None:
        text = f"plan {found.plan} has no configuration {found.configuration}, or cannot be read"
        notes.warning("no_plan", folder, text, "restore the plan, or remove this folder")
    for state, text in _UNUSABLE.items():
        if named := [case_id for case_id in case_ids if verdicts[case_id].state == state]:
            options = f"-d {found.dataset} -c {found.configuration} -p {found.plan}"
            remedy = f"`nnseg preprocess {options}` makes them"
            notes.error(state, folder, text.format(some=some(named)), remedy)
    for case_id in case_ids:
        look.files += verdicts[case_id].files
        notes.findings.extend(verdicts[case_id].findings)
    if found.data_hash is None or raw.cases is None:
        return None
    if all(verdict.state == "whole" for verdict in verdicts.values()):
        return None
    damaged = tuple(case_id for case_id in case_ids if verdicts[case_id].state == "damaged")
    return Remake(plan=found.plan, configuration=found.configuration, damaged=damaged)


def _judge(
    look: Look, found: CaseFolder, raw: RawCases, arrays: Mapping[str, list[Path]], case_id: str
) -> _Verdict:
    """Judge one case: its record, its arrays, and what it was made from."""
    notes = Notes(look.notes.folder, case_id)
    path, there = found.folder / f"{case_id}.json", arrays.get(case_id, [])
    known = raw.cases is not None and case_id in raw.cases
    stored, damage = None, dict[Path, str]()
    if path.exists():
        try:
            stored = store.read_record(found.folder, case_id)
            damage = _damage(look, found.folder, stored)
        except NnsegError as error:
            if not there and not known:  # no record of ours, but what somebody put there
                return _Verdict(state="whole")
            text = str(error).removeprefix(f"{path}: ")
            damage[path] = text.rpartition("; ")[0] or text
    for file, fault in damage.items():
        notes.error("case_damaged", file, fault, found.remedy(raw))
    unnamed = [file for file in there if stored is None or file.name not in stored.files]
    for file in () if path in damage else unnamed:
        text = "belongs to no case: no record names it"
        notes.warning("leftover", file, text, "`nnseg preprocess` removes it")
    state = "leftover" if unnamed else "whole"
    if damage:
        state = "damaged"
    elif stored is None:
        state = "missing" if known else state
    elif found.data_hash not in (None, stored.data_hash):
        state = "other_plan"
    elif known and (why := _other_raw(stored, raw)):
        state = "other_raw"
        notes.error(state, path, why, found.remedy(raw))
    elif raw.cases is not None and not known:
        state = "leftover"
        text = "is the record of a case that the dataset does not have"
        notes.warning(state, path, text, "`nnseg preprocess` removes it")
    files = path.exists() + len(there)
    return _Verdict(state=state, files=files, findings=tuple(notes.findings))


def _damage(look: Look, folder: Path, stored: store.StoredCase) -> dict[Path, str]:
    """Say what is wrong with the files of a case whose record can be read."""
    faults = {name: look.fault(folder / name, digest) for name, digest in stored.files.items()}
    return {folder / name: fault for name, fault in faults.items() if fault}


def _other_raw(stored: store.StoredCase, raw: RawCases) -> str | None:
    """Say why a case cannot be trusted to be what its raw files are; None if it can."""
    try:
        if stored.made_from == store.origin(raw.hashes(stored.case_id), stored.data_hash):
            return None
    except OSError as error:
        return f"cannot be compared with {error.filename} ({error.strerror})"
    return "its raw files have changed since it was made"
