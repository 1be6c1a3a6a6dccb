"""What can be proven of results: their files, their images and the models that made them.

A predicted label map has a proof beside it (`nnseg.proof`), and so has one that was averaged
(`nnseg.verbs.ensembling`) or postprocessed (`nnseg.verbs.applying`). Each claim of it is held
against what lies on the disk: it is proven, or something has changed, or it cannot be told because
the file is not here.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from nnseg import record
from nnseg.commit import sha256
from nnseg.errors import DataError, MissingError, NnsegError
from nnseg.folders import (
    APPLIED,
    COMPACT,
    PROOF,
    Folders,
    applied_file,
    applied_files,
    checkpoint_file,
    proof_file,
    proof_files,
)
from nnseg.fsck.proofs import run_records
from nnseg.parallel import OnProgress
from nnseg.proof import MakingModel, Proof
from nnseg.runlog import RunReport
from nnseg.verbs.applying import Applied
from nnseg.verbs.ensembling import Averaged
from nnseg.volume import split_ending

Outcome: TypeAlias = Literal["proven", "changed", "unknown"]

KINDS = ("final", "best")  # of checkpoints that predict
DEEPEST = 4  # folders from the data root of results to those of folds
ARRAY = ".b2nd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One claim and what became of it."""

    what: str  # "record", "output", "input", "model" or "plan"
    name: str  # of the file, or of the model
    outcome: Outcome
    told: str  # why, in words


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weights:
    """Weights of a model that is here, as their record says."""

    file: Path
    plan_sha256: str


@dataclass(slots=True)
class _Looked:
    """What was found out about files and models, each once."""

    roots: tuple[Path, ...]  # folders of models
    digests: dict[Path, str | None] = field(default_factory=dict)
    checkpoints: dict[str, list[Path]] | None = None  # by the hash of their weights
    weights: dict[str, _Weights | None] = field(default_factory=dict)

    def digest(self, path: Path) -> str | None:
        """Give a file's SHA-256, None where it cannot be read."""
        path = path.absolute()
        if path not in self.digests:
            try:
                self.digests[path] = sha256(path)
            except OSError:
                self.digests[path] = None
        return self.digests[path]

    def find_weights(self, digest: str) -> _Weights | None:
        """Find the weights of this hash; None where no model here has them."""
        if self.checkpoints is None:
            self.checkpoints = {}
            for path in _checkpoints(self.roots):
                with suppress(NnsegError, KeyError, TypeError):
                    found = record.read_json(path)["weights_sha256"]
                    self.checkpoints.setdefault(str(found), []).append(path)
        if digest not in self.weights:
            found_weights = map(_read_weights, self.checkpoints.get(digest, []))
            self.weights[digest] = next(filter(None, found_weights), None)
        return self.weights[digest]


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
            of their own, or folders of these.
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
    looked = _Looked(roots=(folders.results, *models))
    done = []
    for number, path in enumerate(found):
        done.append(_verify_one(path, images, looked))
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
            "`nnseg predict`, `ensemble` and `postprocess` write one beside each label map"
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
    if not path.exists() and not any(proof.exists() for proof in _proofs_of(path)):
        raise MissingError(f"{path} does not exist; name a result, or a folder of results")
    if not path.is_dir():
        yield _owner(path)
        return
    proofs = (*proof_files(path), *applied_files(path))
    proven = {name for proof in proofs for name in (proof.name, *_named_in(proof))}
    yield from dict.fromkeys(_map_of(proof) for proof in proofs)
    others = [other for other in sorted(path.glob("[!.]*")) if other.name not in proven]
    arrays = [other for other in others if other.suffix == ARRAY]
    maps = [other for other in others if split_ending(other.name)[1] and other.is_file()]
    yield from (*maps, *arrays)
    if not (proofs or arrays or maps):
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


def _verify_one(path: Path, images: Path | None, looked: _Looked) -> Verified:
    predicted, applied = _proofs_of(path)
    if predicted.exists():
        return _verify_proven(path, predicted, images, looked)
    if applied.exists():
        return _verify_proven(path, applied, images, looked)
    if path.suffix == ARRAY and path.with_suffix(".json").exists():
        return Verified(file=str(path), made_by=None, checks=_verify_array(path))
    told = "has no proof beside it, so nothing can be told of how it was made, or whether it is so"
    check = Check(what="record", name=predicted.name, outcome="unknown", told=told)
    return Verified(file=str(path), made_by=None, checks=(check,))


def _verify_proven(path: Path, record_file: Path, images: Path | None, looked: _Looked) -> Verified:
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
        outcome, told = "proven", "is whole, by the SHA-256 of itself"
    checks = [Check(what="record", name=record_file.name, outcome=outcome, told=told)]
    for name, digest in sorted(proof.outputs.items()):
        checks.append(_held("output", path.with_name(name), digest, looked))
    if isinstance(proof, Averaged):
        checks += _averaged_inputs(proof.inputs, looked)
        return Verified(file=str(path), made_by=_averaged_by(proof), checks=tuple(checks))
    if isinstance(proof, Applied):
        checks += _inputs(path.parent, path.name, "label map", proof.inputs, images, looked)
        rules = ", then ".join(map(str, proof.postprocessing.rules)) or "no rule"
        return Verified(file=str(path), made_by=f"postprocessing: {rules}", checks=tuple(checks))
    checks += _inputs(path.parent, proof.case_id, "image", proof.inputs, images, looked)
    for model in proof.making.models:
        checks += _model(model, looked)
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
        if path.name.endswith(COMPACT[0]):
            open_compact(path.with_name(path.name.removesuffix(COMPACT[0])))
        else:
            open_probabilities(path)
    except NnsegError as error:
        told = str(error).removeprefix(f"{path}: ")
        return (Check(what="output", name=path.name, outcome="changed", told=told),)
    told = "is what was written, by the record beside it"
    return (Check(what="output", name=path.name, outcome="proven", told=told),)


def _held(what: str, path: Path, digest: str, looked: _Looked, *, given: bool = False) -> Check:
    """Hold a file that should be there against its hash: one that was read, or one written."""
    done = "averaged" if given else "written"
    if not path.exists():
        return Check(what=what, name=path.name, outcome="changed", told="is gone")
    found = looked.digest(path)
    if found is None:
        return Check(what=what, name=path.name, outcome="unknown", told="cannot be read")
    if found != digest:
        told = f"is another file than was {done}: its SHA-256 changed"
        return Check(what=what, name=path.name, outcome="changed", told=told)
    return Check(what=what, name=path.name, outcome="proven", told=f"is what was {done}")


def _inputs(
    folder: Path,
    name_of_result: str,
    kind: str,
    inputs: Mapping[str, str],
    images: Path | None,
    looked: _Looked,
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
        there = [place for place in places if place.exists()]
        matching = [place for place in there if looked.digest(place) == digest]
        if matching:
            told = f"is the {kind} that was read ({matching[0]})"
            yield Check(what="input", name=name, outcome="proven", told=told)
        elif there:
            told = f"is another {kind} than was read ({there[0]})"
            yield Check(what="input", name=name, outcome="changed", told=told)
        else:
            told = f"is not here; say by --images where the {kind}s lie"
            yield Check(what="input", name=name, outcome="unknown", told=told)


def _averaged_inputs(inputs: Mapping[str, str], looked: _Looked) -> Iterator[Check]:
    """Hold the probabilities that were averaged against their hashes, where they still lie."""
    for name, digest in sorted(inputs.items()):
        path = Path(name)
        if path.exists():
            yield _held("input", path, digest, looked, given=True)
        else:
            told = f"is not where it was when it was averaged ({path})"
            yield Check(what="input", name=path.name, outcome="unknown", told=told)


def _read_by_runs(folder: Path) -> Iterator[Path]:
    """Give the files that the runs which wrote into a folder say they read."""
    for path in run_records([folder]):
        try:
            report = record.load(RunReport, path)
        except NnsegError:
            continue
        yield from (Path(name) for name in report.inputs)


def _model(model: MakingModel, looked: _Looked) -> Iterator[Check]:
    """Look for the weights and the plan of one of the models that made a result."""
    called = f"{model.dataset} {model.plan}/{model.configuration}"
    plans = set()
    for digest in (*model.weights_sha256, *model.previous_sha256):
        name = f"{called} {digest[:12]}"
        weights = looked.find_weights(digest)
        if weights is None:
            told = "no model here has these weights; say by -m where it lies"
            yield Check(what="model", name=name, outcome="unknown", told=told)
            continue
        plans.add(weights.plan_sha256)
        if looked.digest(weights.file) == digest:
            told = f"its weights are those that predicted ({weights.file})"
            yield Check(what="model", name=name, outcome="proven", told=told)
        else:
            told = f"its weights are damaged, or gone, since ({weights.file})"
            yield Check(what="model", name=name, outcome="changed", told=told)
    if not plans:
        told = "is not here, as the model is not"
        yield Check(what="plan", name=called, outcome="unknown", told=told)
    elif plans == {model.plan_sha256}:
        told = "is the one that the images were preprocessed by"
        yield Check(what="plan", name=called, outcome="proven", told=told)
    else:
        told = "the plan beside the weights is another than at the prediction"
        yield Check(what="plan", name=called, outcome="changed", told=told)


def _checkpoints(roots: Iterable[Path]) -> Iterator[Path]:
    """List the records of models in some folders: of a fold, or of all of a dataset, or between."""
    for root in roots:
        for depth, kind in itertools.product(range(DEEPEST + 1), KINDS):
            yield from sorted(root.glob("*/" * depth + checkpoint_file(Path(), kind).name))


def _read_weights(path: Path) -> _Weights | None:
    """Read which weights a checkpoint has, and hash its plan as a proof does; None if damaged."""
    from nnseg.checkpoint import Checkpoint

    try:
        checkpoint = record.load_sealed(Checkpoint, path)
    except NnsegError:
        return None
    plan = json.dumps(record.to_json(checkpoint.plan))
    return _Weights(
        file=path.with_name(checkpoint.weights_file),
        plan_sha256=hashlib.sha256(plan.encode()).hexdigest(),
    )


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
