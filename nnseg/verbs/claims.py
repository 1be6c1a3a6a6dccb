"""What records claim of files and models, each claim held against what lies on the disk."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from nnseg import record
from nnseg.commit import sha256
from nnseg.errors import NnsegError
from nnseg.folders import checkpoint_file

Outcome: TypeAlias = Literal["proven", "changed", "unknown"]

KINDS = ("final", "best")  # of checkpoints that predict
DEEPEST = 4  # folders from the data root of results to those of folds


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One claim and what became of it."""

    what: str  # "record", "output", "input", "model" or "plan"
    name: str  # of the file, or of the model
    outcome: Outcome
    told: str  # why, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights of a model that is here, as their record says."""

    file: Path
    plan_sha256: str | None  # None where the record that holds the plan is damaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What is in a file, as far as it could be read."""

    sha256: str | None
    fault: str | None  # why there is no hash, in words


@dataclass(slots=True)
class Looked:
    """What was found out about files and models, each once."""

    roots: tuple[Path, ...]  # folders of models
    contents: dict[Path, Content] = field(default_factory=dict)
    checkpoints: dict[str, list[Path]] | None = None  # by the hash of their weights
    weights: dict[str, Weights | None] = field(default_factory=dict)

    def content(self, path: Path) -> Content:
        """Give a file's SHA-256, or why there is none: nothing but a regular file is read."""
        path = path.absolute()
        if path not in self.contents:
            digest, fault = None, record.why_no_file(path)
            if fault is None:
                try:
                    digest = sha256(path)
                except OSError as error:
                    fault = f"cannot be read ({error.strerror})"
            self.contents[path] = Content(sha256=digest, fault=fault)
        return self.contents[path]

    def find_weights(self, digest: str) -> Weights | None:
        """Find the weights of this hash; None where no model here has them."""
        if self.checkpoints is None:
            self.checkpoints = {}
            for path in _checkpoints(self.roots):
                found = ""
                with suppress(NnsegError, KeyError, TypeError):
                    found = str(record.read_json(path)["weights_sha256"])
                self.checkpoints.setdefault(found, []).append(path)
        if digest not in self.weights:
            found_weights = map(_read_weights, self.checkpoints.get(digest, []))
            self.weights[digest] = next(filter(None, found_weights), None) or self._orphaned(digest)
        return self.weights[digest]

    def _orphaned(self, digest: str) -> Weights | None:
        """Find weights of this hash beside a record that is damaged, and so says nothing."""
        for path in itertools.chain.from_iterable((self.checkpoints or {}).values()):
            if _read_weights(path) is None:
                for file in sorted(path.parent.glob(f"{path.stem}-*.safetensors")):
                    if self.content(file).sha256 == digest:
                        return Weights(file=file, plan_sha256=None)
        return None


def held(what: str, path: Path, digest: str, looked: Looked, *, given: bool = False) -> Check:
    """Hold a file that should be there against its hash: one that was read, or one written."""
    done = "read" if given else "written"
    found = looked.content(path)
    if found.fault is not None:
        # nobody made sure that an image stays readable; a result has to be there as it was written
        outcome: Outcome = "unknown" if given and found.fault != record.NO_FILE else "changed"
        return Check(what=what, name=path.name, outcome=outcome, told=found.fault)
    if found.sha256 != digest:
        told = f"is another file than was {done}: its SHA-256 changed"
        return Check(what=what, name=path.name, outcome="changed", told=told)
    return Check(what=what, name=path.name, outcome="proven", told=f"is what was {done}")


def inputs_where_they_were(inputs: Iterable[tuple[str, str]], looked: Looked) -> Iterator[Check]:
    """Hold files that were read against their hashes, where they still lie; paths and SHA-256."""
    for name, digest in sorted(inputs):
        path = Path(name)
        if looked.content(path).fault == record.GONE:
            told = f"is not where it was when it was read ({path})"
            yield Check(what="input", name=path.name, outcome="unknown", told=told)
        else:
            yield held("input", path, digest, looked, given=True)


def claims_of_weights(
    called: str, digests: Sequence[str], plan_sha256: str | None, looked: Looked
) -> Iterator[Check]:
    """Look for the weights of a model, and for the plan beside them.

    Args:
        called: The model, in words.
        digests: SHA-256 of its weights, a file each.
        plan_sha256: Of the plan as JSON; None makes no claim of it.
        looked: The verification under way.
    """
    plans = set()
    for digest in digests:
        name = f"{called} {digest[:12]}"
        weights = looked.find_weights(digest)
        if weights is None:
            told = "no model here has these weights; say by -m where it lies"
            yield Check(what="model", name=name, outcome="unknown", told=told)
            continue
        plans.add(weights.plan_sha256)
        if looked.content(weights.file).sha256 == digest:
            told = f"its weights are those that predicted ({weights.file})"
            yield Check(what="model", name=name, outcome="proven", told=told)
        else:
            told = f"its weights are damaged, or gone, since ({weights.file})"
            yield Check(what="model", name=name, outcome="changed", told=told)
    if plan_sha256 is None:
        return
    if not plans:
        told = "is not here, as the model is not"
        yield Check(what="plan", name=called, outcome="unknown", told=told)
    elif plans == {plan_sha256}:
        told = "is the one that the images were preprocessed by"
        yield Check(what="plan", name=called, outcome="proven", told=told)
    elif None in plans:
        told = "the record beside the weights, which holds the plan, is damaged"
        yield Check(what="plan", name=called, outcome="changed", told=told)
    else:
        told = "the plan beside the weights is another than at the prediction"
        yield Check(what="plan", name=called, outcome="changed", told=told)


def _checkpoints(roots: Iterable[Path]) -> Iterator[Path]:
    """List the records of models in some folders: of a fold, or of all of a dataset, or between."""
    for root in roots:
        for depth, kind in itertools.product(range(DEEPEST + 1), KINDS):
            yield from sorted(root.glob("*/" * depth + checkpoint_file(Path(), kind).name))


def _read_weights(path: Path) -> Weights | None:
    """Read which weights a checkpoint has, and hash its plan as a proof does; None if damaged."""
    from nnseg.checkpoint import Checkpoint

    try:
        checkpoint = record.load_sealed(Checkpoint, path)
    except NnsegError:
        return None
    plan = json.dumps(record.to_json(checkpoint.plan))
    return Weights(
        file=path.with_name(checkpoint.weights_file),
        plan_sha256=hashlib.sha256(plan.encode()).hexdigest(),
    )
