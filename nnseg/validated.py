"""What a fold's records prove: what its network learnt from, and of what its scores are.

Read `why_not_held_out` first. The folds of a dataset may change after a training: what a fold
validates on today its network may have been trained on.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256 as hash_of
from pathlib import Path

from nnseg import record
from nnseg.commit import sha256
from nnseg.dataset import Fold
from nnseg.errors import DataError, MissingError
from nnseg.folders import (
    checkpoint_file,
    compact_files,
    summary_file,
    validated_file,
    validation_folder,
)
from nnseg.parallel import some

RUNS = ("latest", "previous")  # checkpoints whose records say what a run was trained on


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """What the content of a validation folder is of; older files lack some of the last fields."""

    weights_sha256: str  # of the network that predicted; empty while a validation is under way
    cases: tuple[str, ...] | None = None  # whose predictions are there; None is not known
    trained_on: tuple[str, ...] | None = None  # cases of the network; None is not known
    summary_sha256: str | None = None  # of the scores; None is not known
    maps_sha256: dict[str, str] | None = None  # of the label maps by name; None is not known
    record_sha256: str = ""  # of this record without it; "" in those of before there was one

    def __post_init__(self) -> None:
        for case_id in self.cases or ():
            if not record.is_file_name(case_id):  # their files are removed
                raise DataError(f"cases: {case_id!r} is no name of a case; validate again")
        for name in self.maps_sha256 or ():
            if not record.is_file_name(name):
                raise DataError(f"maps_sha256: {name!r} is no name of a file; validate again")


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """What is known of the cases that the network of a fold was trained on."""

    cases: frozenset[str] | None  # None is not known, as of models that older versions trained
    split_hash: str | None  # of the fold as it was then; None is not known, as of imported models


def hash_of_split(split: Fold | None) -> str:
    """Give the hash by which a run knows its cases again."""
    return hash_of(record.dumps(split).encode()).hexdigest()


def learnt_by(fold: Path) -> Learnt:
    """Look up what the network of a fold was trained on; the answer is nothing where none says."""
    for kind in RUNS:
        with suppress(DataError, MissingError):
            run = record.read_json(checkpoint_file(fold, kind))
            if isinstance(run, dict) and run.get("split_hash"):
                cases = run.get("train_cases") or None
                return Learnt(
                    cases=None if cases is None else frozenset(map(str, cases)),
                    split_hash=str(run["split_hash"]),
                )
    proof = read_validated(fold)
    if proof is None or proof.trained_on is None:
        return Learnt(cases=None, split_hash=None)
    is_its_own = not proof.weights_sha256 or _is_of_final(fold, proof)
    return Learnt(cases=frozenset(proof.trained_on) if is_its_own else None, split_hash=None)


def why_not_held_out(fold: Path, case_ids: Iterable[str], split: Fold | None) -> str | None:
    """Say why cases cannot count as held out of the training of a fold; None where nothing tells.

    By the names of the cases if the training kept them. If it only kept the hash of its fold, that
    must be today's: nobody can tell which cases have changed sides.

    Args:
        fold: Its folder.
        case_ids: That are to be predicted, or were, as if the network had never seen them.
        split: The fold as it is today; None where there is none any more.
    """
    learnt = learnt_by(fold)
    if learnt.cases is not None:
        seen = learnt.cases.intersection(case_ids)
        return f"its network was trained on {some(seen)}" if seen else None
    if learnt.split_hash is not None and learnt.split_hash != hash_of_split(split):
        return "its network was trained on another split of the cases than today's"
    return None


def final_weights(fold: Path) -> str | None:
    """Give the SHA-256 of a fold's final weights; None where no record tells it."""
    with suppress(DataError, MissingError):
        final = record.read_json(checkpoint_file(fold, "final"))
        if isinstance(final, dict) and "weights_sha256" in final:
            return str(final["weights_sha256"])
    return None


def seen_before(
    fold: Path, case_ids: Iterable[str], models: Mapping[str, Path]
) -> tuple[str | None, bool]:
    """Say why the weights that a training started from had seen cases; None where nothing tells.

    A network that another training began knows its cases still, and so does one that began that.

    Args:
        fold: Its folder.
        case_ids: That are to be predicted as if the network had never seen them.
        models: The folders of trained folds by their final weights.

    Returns:
        The reason, and whether all is known of what the weights had seen.
    """
    cases, begun = set(case_ids), set[str]()
    start = _start_of(fold)
    while start is not None and start not in begun:
        begun.add(start)
        if start not in models:
            return None, False
        learnt = learnt_by(models[start]).cases
        if learnt is None:
            return None, False
        if seen := learnt & cases:
            return f"it began with the weights of {models[start]}, trained on {some(seen)}", True
        start = _start_of(models[start])
    return None, True


def _start_of(fold: Path) -> str | None:
    """Give the SHA-256 of the weights that a training was given; None of one that drew its own."""
    for kind in RUNS:
        with suppress(DataError, MissingError):
            run = record.read_json(checkpoint_file(fold, kind))
            settings = run.get("settings") if isinstance(run, dict) else None
            if isinstance(settings, dict):
                start = settings.get("pretrained")
                return None if start is None else str(start)
    return None


def retrain(dataset: str, plan: str, configuration: str, fold: str, seed: int) -> str:
    """Say what to do about a fold whose network learnt from what it is to be judged by."""
    of_seed = f" --seed {seed}" if seed else ""
    return (
        f"train it anew, `nnseg train {dataset} {configuration} {fold} -p {plan}{of_seed} "
        "--overwrite`, or restore splits_final.json as it was then"
    )


def is_known(fold: Path) -> bool:
    """Say whether anything tells what the network of a fold was trained on."""
    learnt = learnt_by(fold)
    return learnt.cases is not None or learnt.split_hash is not None


def load_validated(path: Path, made_by: str = "") -> Validated:
    """Read the record of a validation.

    Raises:
        MissingError: There is none.
        DataError: It is none, or any byte of it has changed.
    """
    proof = record.load(Validated, path, made_by)
    if not proof.record_sha256:
        return proof
    return record.load_sealed(Validated, path, made_by, remedy="validate again")


def read_validated(fold: Path) -> Validated | None:
    """Read what a fold's validation is of; None where that cannot be told."""
    try:
        return load_validated(validated_file(fold))
    except (DataError, MissingError):
        return None


def is_validated(fold: Path) -> bool:
    """Say whether the scores that are there are those of the final weights, and unchanged."""
    proof = read_validated(fold)
    if proof is None or not _is_of_final(fold, proof):
        return False
    try:
        digest = sha256(summary_file(validation_folder(fold)))
    except OSError:
        return False
    return proof.summary_sha256 in (None, digest)


def replaced_maps(fold: Path, maps: Mapping[str, Path]) -> list[str]:
    """Name the cases whose label maps are others than the validation of a fold wrote.

    Where it kept no hash of one, as older versions did not, that cannot be told.

    Args:
        fold: Its folder.
        maps: The label map that each case has there, by its id.
    """
    proof = read_validated(fold)
    known = {} if proof is None or proof.maps_sha256 is None else proof.maps_sha256
    replaced = []
    for case_id, path in maps.items():
        with suppress(OSError):  # who reads it says so
            if path.name in known and sha256(path) != known[path.name]:
                replaced.append(case_id)
    return replaced


def prediction_fault(fold: Path, maps: Mapping[str, Path], *, compact: bool) -> str | None:
    """Say what is wrong with what a fold predicted of cases that it held out; None if nothing is.

    Args:
        fold: Its folder.
        maps: The label map that each case has there, by its id.
        compact: Whether the probabilities beside them are needed.
    """
    if not is_validated(fold):
        return (
            "its validation is missing, unfinished, of other weights than its final ones, or its "
            "summary.json was changed"
        )
    proof = read_validated(fold)
    predicted = set(maps) if proof is None or proof.cases is None else set(proof.cases)
    if missing := [one for one, path in maps.items() if one not in predicted or not path.is_file()]:
        return f"its validation lacks {some(missing)}"
    if replaced := replaced_maps(fold, maps):
        return f"the label maps of {some(replaced)} were changed since its validation wrote them"
    without = [
        case_id
        for case_id, path in maps.items()
        if compact and not all(file.is_file() for file in compact_files(path))
    ]
    if without:
        return (
            f"its validation has no probabilities of {some(without)}, by which models are averaged "
            "(--disable_ensembling compares without)"
        )
    return None


def _is_of_final(fold: Path, proof: Validated) -> bool:
    return final_weights(fold) == proof.weights_sha256
