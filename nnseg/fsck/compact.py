"""Compact probabilities beside label maps: each array is the one that its record proves."""

from collections.abc import Collection
from pathlib import Path

from nnseg import record
from nnseg.doctor.findings import Notes
from nnseg.folders import COMPACT, compact_records, running_folder
from nnseg.fsck.proofs import Look
from nnseg.lock import in_use
from nnseg.probabilities.compact import MADE_BY, StoredCompact


def examine_compact(look: Look, folder: Path, proven: Collection[Path]) -> None:
    """Judge the compact probabilities in a folder, unless a run is at work there.

    Args:
        look: The examination under way.
        folder: Of label maps, such as those of a fold's validation cases.
        proven: Files that the record of a run proves; these are judged by it.
    """
    busy = (folder, folder.parent, running_folder(folder, "run"))
    own, remedy = Look(Notes(look.notes.folder)), f"run `{MADE_BY}` again"
    in_the_way = any(map(in_use, busy))
    records = [path for path in compact_records(folder) if path not in proven]
    for path in records:
        stored = own.load("probabilities", path, StoredCompact, remedy, record.load_sealed)
        array = path.with_suffix(Path(COMPACT[0]).suffix)
        own.files += 1
        if stored is not None and (fault := own.fault(array, stored.array_sha256)):
            own.notes.error("probabilities", array, fault, remedy)
    for array in sorted(folder.glob(f"[!.]*{COMPACT[0]}")):
        if array not in proven and not array.with_suffix(Path(COMPACT[1]).suffix).is_file():
            found = "belongs to no case: no record proves it"
            own.notes.warning("leftover", array, found, f"remove it, or {remedy}")
    if in_the_way or any(map(in_use, busy)):
        return
    look.files += own.files
    look.notes.findings.extend(own.notes.findings)
