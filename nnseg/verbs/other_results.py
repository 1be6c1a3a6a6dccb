"""What can be proven of results without a proof of their own, by the records that lie beside them.

The record of a run holds the hashes of what it read and wrote: of plans, fingerprints, checkpoints,
choice.json, scores and reports. A checkpoint holds that of its weights, a validation those of its
label maps, and a zip of models one of every file in it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from nnseg import record
from nnseg.errors import DataError, NnsegError
from nnseg.folders import (
    checkpoint_file,
    facts_file,
    report_file,
    summary_file,
    validated_record,
)
from nnseg.fsck.proofs import run_records
from nnseg.runlog import RunReport, read_report
from nnseg.validated import load_validated
from nnseg.verbs.claims import (
    KINDS,
    Check,
    Looked,
    claims_of_weights,
    held,
    inputs_where_they_were,
)

WHOLE = "is whole, by the SHA-256 of itself"
ZIP, WEIGHTS, ONNX = ".zip", ".safetensors", ".onnx"
PAGE = "report"  # the command whose page loads files from a folder beside it


def named_files(folder: Path) -> tuple[Path, ...]:
    """List the files of a folder that records say were written there, also those that are gone.

    A record that is damaged stands for whatever it named.
    """
    home = folder.absolute()
    found = set(_validated_files(home))
    for stored in run_records([home, home.parent]):
        try:
            report = read_report(stored)
        except NnsegError:
            found |= {stored} if stored.parent == home else set()
            continue
        places = _places([Path(name) for name in report.outputs], stored.parent)
        deeper = stored.parent == home and report.command != PAGE  # what it loads stands with it
        found |= {p for p in places if p.parent == home or (deeper and home in p.parents)}
    return tuple(folder / path.relative_to(home) for path in sorted(found))


def _places(written: Sequence[Path], folder: Path) -> Iterator[Path]:
    """Give where those files lie, or lay, that a run with its record in a folder wrote there.

    The folder may have been renamed since: then none of the paths has its name.
    """
    is_renamed = not any(folder.name in path.parts[:-1] for path in written)
    for path in written:
        parent = path.parent.name
        if not record.is_file_name(path.name) or parent == "..":
            continue
        beside, below = folder / path.name, folder / parent / path.name
        has_parent = record.why_no_file(below.parent) == record.NO_FILE
        if parent == folder.name or (is_renamed and not has_parent):
            yield beside
        elif is_renamed or path.parent.parent.name == folder.name:
            yield below


def _validated_files(folder: Path) -> Iterator[Path]:
    """List what a fold's validation left in a folder: label maps and their scores."""
    stored = validated_record(folder)
    if not stored.exists():
        return
    try:
        proof = load_validated(stored)
    except NnsegError:
        yield stored
        return
    yield from (folder / name for name in proof.maps_sha256 or ())
    if proof.summary_sha256 is not None:
        yield summary_file(folder)


def other_claims(path: Path, looked: Looked) -> tuple[str | None, tuple[Check, ...]]:
    """Say who made a file, in words, and hold against it what is known of it; nothing may be."""
    if path.suffix == ZIP:
        return None, tuple(_claims_of_zip(path))
    if path.suffix == WEIGHTS or path.name in {checkpoint_file(Path(), k).name for k in KINDS}:
        return None, tuple(_claims_of_checkpoint(path, looked))
    if path.suffix == ONNX:
        return None, tuple(_claims_of_onnx(path, looked))
    if found := tuple(_claims_of_validation(path, looked)):
        return "`nnseg train`, when it validated the fold", found
    return _claims_of_runs(path, looked)


def _claims_of_zip(path: Path) -> Iterator[Check]:
    """Read all that a zip of models holds, as an import of it does."""
    from nnseg.exchange.model_zip import find_packed, unpack_models

    try:
        if fault := record.why_no_file(path):
            raise DataError(fault)
        packed = find_packed(path)
        if packed is not None:
            unpack_models(packed, None)
    except NnsegError as error:
        told = str(error).removeprefix(f"{path}: ")
        yield Check(what="output", name=path.name, outcome="changed", told=told)
        return
    if packed is not None:
        told = "holds what was packed, by the hash of every file in it"
        yield Check(what="output", name=path.name, outcome="proven", told=told)


def _claims_of_checkpoint(path: Path, looked: Looked) -> Iterator[Check]:
    """Hold the record of a checkpoint against itself, and its weights against the record."""
    from nnseg.checkpoint import Checkpoint

    kind = path.stem.removeprefix("checkpoint_").partition("-")[0]
    stored = checkpoint_file(path.parent, kind)
    if kind not in KINDS or not stored.exists():
        return
    try:
        checkpoint = record.load_sealed(Checkpoint, stored, remedy="train again, or restore it")
    except NnsegError as error:
        told = str(error).removeprefix(f"{stored}: ")
        yield Check(what="record", name=stored.name, outcome="changed", told=told)
        return
    yield Check(what="record", name=stored.name, outcome="proven", told=WHOLE)
    weights = stored.with_name(checkpoint.weights_file)
    if path.suffix == WEIGHTS and weights.name != path.name:
        told = f"is not the file of weights that {stored.name} names, {weights.name}"
        yield Check(what="output", name=path.name, outcome="changed", told=told)
        return
    yield held("output", weights, checkpoint.weights_sha256, looked)


def _claims_of_onnx(path: Path, looked: Looked) -> Iterator[Check]:
    """Hold a network that was exported against the record beside it, which says how it is used."""
    from nnseg.exchange.onnx import FILE, OnnxModel

    stored = path.with_name(FILE)
    if not stored.exists():
        return
    try:
        described = record.load_sealed(OnnxModel, stored, remedy="export it again")
    except NnsegError as error:
        told = str(error).removeprefix(f"{stored}: ")
        yield Check(what="record", name=stored.name, outcome="changed", told=told)
        return
    yield Check(what="record", name=stored.name, outcome="proven", told=WHOLE)
    for network in described.networks:
        if network.file == path.name:
            yield held("output", path, network.sha256, looked)


def _claims_of_validation(path: Path, looked: Looked) -> Iterator[Check]:
    """Hold a label map of a fold's validation, or the scores, against what the validation left."""
    stored = validated_record(path.parent)
    if not stored.exists():
        return
    try:
        proof = load_validated(stored)
    except NnsegError as error:
        told = str(error).removeprefix(f"{stored}: ")
        yield Check(what="record", name=stored.name, outcome="changed", told=told)
        return
    digest = (proof.maps_sha256 or {}).get(path.name)
    if path == summary_file(path.parent):
        digest = proof.summary_sha256
    if digest is not None:
        yield held("output", path, digest, looked)
        yield from claims_of_weights("of the fold", (proof.weights_sha256,), None, looked)


def _claims_of_runs(path: Path, looked: Looked) -> tuple[str | None, tuple[Check, ...]]:
    """Hold a file against the record of the latest run that says it wrote it."""
    path = path.absolute()
    found: list[tuple[str, Path, RunReport, str]] = []
    damaged: list[Check] = []
    for stored in run_records([path.parent, path.parent.parent]):
        try:
            report = read_report(stored)
        except NnsegError as error:
            told = str(error).removeprefix(f"{stored}: ")
            if stored.parent == path.parent:
                damaged.append(Check(what="record", name=stored.name, outcome="changed", told=told))
            continue
        shared = 1 if stored.parent == path.parent else 2  # a folder may have been renamed
        for name, digest in report.outputs.items():
            if Path(name).parts[-shared:] == path.parts[-shared:]:
                found.append((report.started, stored, report, digest))
    if not found:
        return None, tuple(damaged)
    _, stored, report, digest = max(found, key=lambda one: (one[0], one[1].stat().st_mtime_ns))
    whole = Check(what="record", name=stored.name, outcome="proven", told=WHOLE)
    if not report.record_sha256:
        told = "is of an nnseg whose records had no hash of themselves"
        whole = Check(what="record", name=stored.name, outcome="unknown", told=told)
    outputs = [held("output", path, digest, looked)]
    if path == report_file(path.parent):  # the page loads the others from a folder beside it
        outputs += [
            held("output", path.parent.joinpath(*Path(name).parts[-2:]), sha256, looked)
            for name, sha256 in sorted(report.outputs.items())
            if Path(name).name not in (path.name, facts_file(path.parent).name)
        ]
    made_by = f"`nnseg {report.command}` of nnseg {report.versions.get('nnseg')}, {report.started}"
    inputs = inputs_where_they_were(report.inputs.items(), looked)
    return made_by, (whole, *outputs, *inputs)
