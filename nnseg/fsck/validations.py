"""What a validation leaves: its label maps, and compact probabilities of the fold's own weights.

Compact probabilities lie beside other label maps, too; each array is the one that its record
proves.
"""

from collections.abc import Collection
from pathlib import Path

from nnseg import record
from nnseg.doctor.findings import Notes
from nnseg.folders import (
    COMPACT,
    compact_records,
    running_folder,
    validated_record,
    validation_folder,
)
from nnseg.fsck.proofs import Look
from nnseg.lock import in_use
from nnseg.probabilities.compact import MADE_BY, StoredCompact
from nnseg.validated import Validated, load_validated


def examine_validation(look: Look, folder: Path, proven: Collection[Path]) -> None:
    """Judge the compact probabilities in a folder, and the label maps of a fold's validation.

    Nothing is judged while a run is at work there.

    Args:
        look: The examination under way.
        folder: Of label maps, such as those of a fold's validation cases.
        proven: Files that the record of a run proves; these are judged by it.
    """
    busy = (folder, folder.parent, running_folder(folder, "run"))
    own, remedy = Look(Notes(look.notes.folder)), f"run `{MADE_BY}` again"
    proof = _proof_of(own, folder, remedy)
    for name, digest in (proof.maps_sha256 or {}).items() if proof else ():
        own.files += 1
        if fault := own.fault(folder / name, digest):
            own.notes.error("validation", folder / name, fault, remedy)
    in_the_way = any(map(in_use, busy))
    records = [path for path in compact_records(folder) if path not in proven]
    for path in records:
        stored = own.load("probabilities", path, StoredCompact, remedy, record.load_sealed)
        array = path.with_suffix(Path(COMPACT[0]).suffix)
        own.files += 1
        if stored is None:
            continue
        if fault := own.fault(array, stored.array_sha256):
            own.notes.error("probabilities", array, fault, remedy)
        elif proof and stored.weights_sha256 not in (None, proof.weights_sha256):
            found = "is of other weights than the validation that it lies in"
            own.notes.error("probabilities", array, found, remedy)
    for array in sorted(folder.glob(f"[!.]*{COMPACT[0]}")):
        if array not in proven and not array.with_suffix(Path(COMPACT[1]).suffix).is_file():
            found = "belongs to no case: no record proves it"
            own.notes.warning("leftover", array, found, f"remove it, or {remedy}")
    if in_the_way or any(map(in_use, busy)):
        return
    look.files += own.files
    look.notes.findings.extend(own.notes.findings)


def _proof_of(look: Look, folder: Path, remedy: str) -> Validated | None:
    """Give what a folder's content is of if it is that of a fold's validation, which has ended."""
    path = validated_record(folder)
    if folder.absolute() != validation_folder(folder.absolute().parent) or not path.is_file():
        return None
    proof: Validated | None = look.load(
        "validation", path, Validated, remedy, lambda _, file: load_validated(file)
    )
    return proof if proof is not None and proof.weights_sha256 else None
