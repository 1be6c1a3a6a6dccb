"""What can be proven of results: their files, their images and the models that made them.

A predicted label map has a proof beside it (`nnseg.proof`), and so has one that was averaged
(`nnseg.verbs.ensembling`) or postprocessed (`nnseg.verbs.applying`); of other results the records
beside them tell (`nnseg.verbs.other_results`). Each claim is held against what lies on the disk: it
is proven, or something has changed, or it cannot be told because the file is not here.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnseg import record
from nnseg.errors import DataError, MissingError, NnsegError
from nnseg.folders import (
    APPLIED,
    COMPACT,
    PROOF,
    Folders,
    applied_file,
    applied_files,
    proof_file,
    proof_files,
)
from nnseg.fsck.proofs import run_records
from nnseg.parallel import OnProgress
from nnseg.proof import Proof
from nnseg.runlog import read_report
from nnseg.verbs.applying import Applied
from nnseg.verbs.claims import (
    Check,
    Looked,
    Outcome,
    claims_of_weights,
    held,
    inputs_where_they_were,
)
from nnseg.verbs.ensembling import Averaged
from nnseg.verbs.other_results import WHOLE, named_files, other_claims
from nnseg.volume import split_ending

ARRAY = ".b2nd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What can be said of one result."""

    file: str
    made_by: str | None  # in words; None where no proof says it
    checks: tuple[Check, ...]

    @property
    def outcome(self) -> Outcome:
        """Changed if anything has, unknown if there is no proof, else proven.

        What is not here to be looked at, such as an image, does not count against a result.
        """
        outcomes = [check.outcome for check in self.checks]
        if "changed" in outcomes:
            return "changed"
        return "proven" if "proven" in outcomes else "unknown"


def verify(
    files: Sequence[Path],
    folders: Folders,
    *,
    images: Path | None = None,
    models: Sequence[Path] = (),
    on_progress: OnProgress | None = None,
) -> tuple[Verified, ...]:
    """Say what is proven of results, what has changed since, and what cannot be told.

    Nothing is changed or computed anew: hashes are compared.

    Args:
        files: Label maps, files that were written beside them, proofs, probabilities with a record
            of their own, or folders of these. Also whatever the record of a run beside it says was
            written: a plan, a checkpoint, choice.json, scores, a report; and zips of models.
        folders: The data roots; models are looked for in their results.
        images: The folder of the input images; None looks where they lay when they were read.
        models: More folders of models.
        on_progress: Called after each result.

    Returns:
        One for each result, by the order of `files`, those of a folder by name.

    Raises:
        MissingError: A file is not there, or a folder has nothing that could be verified.
    """
    found = list(dict.fromkeys(result for path in files for result in _results(path)))
    looked = Looked(roots=(folders.results, *models))
    done = []
    for number, path in enumerate(found):
        try:
            done.append(_verify_one(path, images, looked))
        except (OSError, ValueError) as error:  # one result hides nothing of the others
            check = Check(
                what="record",
                name=path.name,
                outcome="changed",
                told=f"cannot be looked at ({error})",
            )
            done.append(Verified(file=str(path), made_by=None, checks=(check,)))
        if on_progress:
            on_progress("verifying", number + 1, len(found))
    return tuple(done)


def raise_for_outcomes(found: Sequence[Verified]) -> None:
    """Refuse what has changed, and what has no proof.

    Raises:
        DataError: A result, or what it was made from, is not what it was.
        MissingError: A result has no proof, so that nothing can be told of it.
    """
    changed = [one.file for one in found if one.outcome == "changed"]
    unknown = [one.file for one in found if one.outcome == "unknown"]
    if changed:
        raise DataError(
            f"{len(changed)} of {len(found)} results are not what was written, or were made from "
            f"what has changed since, such as {changed[0]}; predict again, or restore it"
        )
    if unknown:
        raise MissingError(
            f"{len(unknown)} of {len(found)} results have no proof, such as {unknown[0]}; "
            "`nnseg predict`, `ensemble` and `postprocess` write one beside each label map, other "
            "commands a record of the run"
        )


def describe(found: Sequence[Verified]) -> str:
    """Give what was verified as lines for people."""
    lines = []
    for one in found:
        lines.append(f"{one.file}: {one.outcome}")
        if one.made_by is not None:
            lines.append(f"  made by {one.made_by}")
        lines += [f"  {c.outcome:<7}  {c.what} {c.name}: {c.told}" for c in one.checks]
    return "\n".join(lines)


def _results(path: Path) -> Iterator[Path]:
    """Give what stands for each result: its label map, or the array of its probabilities."""
    has_proof = any(proof.exists() for proof in _proofs_of(path))
    if not (has_proof or path.exists() or path in named_files(path.parent)):
        raise MissingError(f"{path} does not exist; name a result, or a folder of results")
    if has_proof or not path.is_dir():
        yield _owner(path)
        return
    proofs = (*proof_files(path), *applied_files(path))
    proven = {name for proof in proofs for name in (proof.name, *_named_in(proof))}
    yield from dict.fromkeys(_map_of(proof) for proof in proofs)
    others = [other for other in sorted(path.glob("[!.]*")) if other.name not in proven]
    arrays = [other for other in others if other.suffix == ARRAY]
    maps = [other for other in others if split_ending(other.name)[1] and other.is_file()]
    yield from (*maps, *arrays)
    named = [file for file in named_files(path) if file.parent != path or file.name not in proven]
    yield from named
    if not (proofs or arrays or maps or named):
        raise MissingError(f"{path}: holds no result; name a folder of label maps")


def _proofs_of(label_map: Path) -> tuple[Path, Path]:
    """Name the records that may say how a label map was made."""
    return proof_file(label_map), applied_file(label_map)


def _owner(path: Path) -> Path:
    """Give the label map whose proof speaks of a file; the file itself where none does."""
    if path.name.endswith((PROOF, APPLIED)):
        return _map_of(path)
    if any(proof.exists() for proof in _proofs_of(path)):
        return path
    for proof in (*proof_files(path.parent), *applied_files(path.parent)):
        if path.name in _named_in(proof):
            return _map_of(proof)
    return path


def _map_of(proof: Path) -> Path:
    return proof.with_name(proof.name.removesuffix(PROOF).removesuffix(APPLIED))


def _named_in(proof: Path) -> set[str]:
    """Name the files that a proof says were written, as far as it can be read at all."""
    try:
        data = record.read_json(proof)
    except NnsegError:
        return {_map_of(proof).name}
    outputs = data.get("outputs") if isinstance(data, dict) else None
    return {_map_of(proof).name, *(outputs if isinstance(outputs, dict) else ())}


def _verify_one(path: Path, images: Path | None, looked: Looked) -> Verified:
    predicted, applied = _proofs_of(path)
    if predicted.exists():
        return _verify_proven(path, predicted, images, looked)
    if applied.exists():
        return _verify_proven(path, applied, images, looked)
    if path.suffix == ARRAY and path.with_suffix(".json").exists():
        return Verified(file=str(path), made_by=None, checks=_verify_array(path))
    made_by, checks = other_claims(path, looked)
    if checks:
        return Verified(file=str(path), made_by=made_by, checks=checks)
    told = "has no proof beside it, so nothing can be told of how it was made, or whether it is so"
    check = Check(what="record", name=predicted.name, outcome="unknown", told=told)
    return Verified(file=str(path), made_by=None, checks=(check,))


def _verify_proven(path: Path, record_file: Path, images: Path | None, looked: Looked) -> Verified:
    """Hold the claims of a proof against what is there, whichever command wrote it."""
    try:
        proof, data = _read_proof(record_file)
    except NnsegError as error:
        told = str(error).removeprefix(f"{record_file}: ")
        check = Check(what="record", name=record_file.name, outcome="changed", told=told)
        return Verified(file=str(path), made_by=None, checks=(check,))
    if proof.label_map != path.name:
        outcome: Outcome = "changed"
        told = f"is of another result, {proof.label_map}"
    elif isinstance(proof, Proof) and proof.made_by != _hash_of(data["making"]):
        outcome = "changed"
        told = "contradicts itself: its hash of how the result was made is another"
    else:
        outcome, told = "proven", WHOLE
    if outcome == "proven" and path.name not in proof.outputs:
        outcome, told = "changed", "has no hash of its label map"
    checks = [Check(what="record", name=record_file.name, outcome=outcome, told=told)]
    for name, digest in sorted(proof.outputs.items()):
        checks.append(held("output", path.with_name(name), digest, looked))
    if isinstance(proof, Averaged):
        checks += inputs_where_they_were(proof.inputs.items(), looked)
        return Verified(file=str(path), made_by=_averaged_by(proof), checks=tuple(checks))
    if isinstance(proof, Applied):
        checks += _inputs(path.parent, path.name, "label map", proof.inputs, images, looked)
        rules = ", then ".join(map(str, proof.postprocessing.rules)) or "no rule"
        return Verified(file=str(path), made_by=f"postprocessing: {rules}", checks=tuple(checks))
    checks += _inputs(path.parent, proof.case_id, "image", proof.inputs, images, looked)
    for model in proof.making.models:
        called = f"{model.dataset} {model.plan}/{model.configuration}"
        weights = (*model.weights_sha256, *model.previous_sha256)
        checks += claims_of_weights(called, weights, model.plan_sha256, looked)
    return Verified(file=str(path), made_by=_made_by(proof), checks=tuple(checks))


def _read_proof(record_file: Path) -> tuple[Proof | Averaged | Applied, Any]:
    """Read a proof as what it is, and the JSON of it.

    Raises:
        DataError: It is none, or damaged.
    """
    data = record.read_json(record_file)
    if record_file.name.endswith(APPLIED):
        return record.load_sealed(Applied, record_file, remedy="postprocess again"), data
    if isinstance(data, dict) and "members" in data:
        return record.load_sealed(Averaged, record_file, remedy="average again"), data
    return record.load_sealed(Proof, record_file, remedy="predict again"), data


def _hash_of(making: object) -> str:
    return hashlib.sha256(record.json_text(making).encode()).hexdigest()


def _verify_array(path: Path) -> tuple[Check, ...]:
    """Hold probabilities against the record beside them."""
    from nnseg.probabilities import open_probabilities
    from nnseg.probabilities.compact import open_compact

    try:
        if fault := record.why_no_file(path):
            raise DataError(fault)
        if path.name.endswith(COMPACT[0]):
            open_compact(path.with_name(path.name.removesuffix(COMPACT[0])))
        else:
            open_probabilities(path)
    except NnsegError as error:
        told = str(error).removeprefix(f"{path}: ")
        return (Check(what="output", name=path.name, outcome="changed", told=told),)
    told = "is what was written, by the record beside it"
    return (Check(what="output", name=path.name, outcome="proven", told=told),)


def _inputs(
    folder: Path,
    name_of_result: str,
    kind: str,
    inputs: Mapping[str, str],
    images: Path | None,
    looked: Looked,
) -> Iterator[Check]:
    """Look for what a result was made from, images or a label map, by names and hashes."""
    if not inputs:
        told = f"the proof names no {kind}: they could not be read a second time"
        yield Check(what="input", name=name_of_result, outcome="unknown", told=told)
    told_paths = [] if images is not None else list(_read_by_runs(folder))
    for name, digest in sorted(inputs.items()):
        places = (
            [images / name] if images is not None else [p for p in told_paths if p.name == name]
        )
        found = {place: looked.content(place) for place in places}
        matching = [place for place, content in found.items() if content.sha256 == digest]
        there = [p for p, content in found.items() if content.fault in (None, record.NO_FILE)]
        if matching:
            told = f"is the {kind} that was read ({matching[0]})"
            yield Check(what="input", name=name, outcome="proven", told=told)
        elif there:
            told = f"is another {kind} than was read ({there[0]})"
            yield Check(what="input", name=name, outcome="changed", told=told)
        else:
            told = f"is not here; say by --images where the {kind}s lie"
            yield Check(what="input", name=name, outcome="unknown", told=told)


def _read_by_runs(folder: Path) -> Iterator[Path]:
    """Give the files that the runs which wrote into a folder say they read."""
    for path in run_records([folder]):
        try:
            report = read_report(path)
        except NnsegError:
            continue
        yield from (Path(name) for name in report.inputs)


def _made_by(proof: Proof) -> str:
    """Say in words how a result was made."""
    models = [
        f"{model.configuration} of {model.dataset} ({len(model.weights_sha256)} networks, "
        f"{model.execution.get('device')}, {model.execution.get('precision')})"
        for model in proof.making.models
    ]
    return f"nnseg {proof.making.version}: {' and '.join(models)}"


def _averaged_by(proof: Averaged) -> str:
    """Say in words how an average was made."""
    shares = ", ".join(f"{weight:g}" for weight in proof.weights)
    return f"nnseg {proof.version}: average of {len(proof.weights)} models, weights {shares}"
