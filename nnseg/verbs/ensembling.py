"""Predictions of several models averaged, with files: from folders of probabilities to label maps.

The same command goes on where it was killed: each result has a proof beside it, that says what it
was made of.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from nnseg import commit, record
from nnseg.averaging import Opened, label_map, shares_of
from nnseg.dataset import spec_to_json
from nnseg.errors import (
    DataError,
    DiskFullError,
    MachineError,
    NnsegError,
    StoppedError,
    UsageError,
)
from nnseg.estimate import in_gb, room_for, workers_for
from nnseg.folders import predicted_spec_file, proof_file
from nnseg.parallel import OnProgress, for_each, out_of_memory
from nnseg.predicted_folder import alone, probe
from nnseg.probabilities import OpenNpz, writing
from nnseg.proof import hashes
from nnseg.runlog import Run, logged_run, versions
from nnseg.verbs.predicting import raise_failed
from nnseg.verbs.probability_folders import (
    Source,
    bytes_to_average,
    check_labels,
    check_weights,
    label_ending,
    look_into,
)
from nnseg.volume import read_segmentation, write

logger = logging.getLogger(__name__)

DONE, TO_DO = "done", "to do"  # states of a case that can be averaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaged:
    """LABEL_MAP.proof.json in a folder of averages: what one was made of, and that it is whole."""

    case_id: str
    label_map: str  # the name of its file
    version: str  # of nnseg
    weights: tuple[float, ...]
    probabilities: str | None  # the kind that was written besides
    members: tuple[str, ...]  # what proves each model's probabilities
    inputs: dict[str, str]  # their files, with SHA-256
    outputs: dict[str, str]  # the name of each file that was written, with SHA-256
    record_sha256: str = ""  # of this record without it; `record.save_sealed` writes it

    def __post_init__(self) -> None:
        record.check_file_names("label_map", [self.label_map])
        record.check_file_names("outputs", self.outputs)  # or to remove them were a danger


OnCase: TypeAlias = Callable[[str, Averaged | NnsegError], object]  # its id; its proof, or error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What is to be done with every case."""

    weights: tuple[float, ...]
    probabilities: str | None
    overwrite: bool
    version: str  # of nnseg


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """What `ensemble` would do now."""

    target: Path
    states: dict[str, str]  # case id to DONE or TO_DO, or why it would fail
    failed: dict[str, NnsegError]  # of those, the errors
    memory: int  # bytes that the largest case takes

    def __str__(self) -> str:
        count = sum(told == TO_DO for told in self.states.values())
        lines = [
            f"{count} of {len(self.states)} cases to average, in {self.target}; the largest takes "
            f"about {in_gb(self.memory)} of memory; nothing was written"
        ]
        lines += [f"  case {name}: {told}" for name, told in self.failed.items()]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """What is to be averaged, after all that can be refused before any work."""

    members: tuple[Source, ...]
    wanted: _Wanted
    targets: dict[str, Path]  # by case id
    needs: dict[str, int]  # bytes that each case takes


def foresee(
    sources: Sequence[Path],
    target: Path,
    *,
    weights: Sequence[float] = (),
    probabilities: str | None = None,
    overwrite: bool = False,
) -> Foreseen:
    """Say what `ensemble` would do, and write nothing; every file is opened for that.

    Args:
        sources: As for `ensemble`, like all others.
        target: The folder for the label maps.
        weights: Of the models.
        probabilities: A name of KINDS.
        overwrite: Whether it would do again what is done.

    Raises:
        UsageError: As `ensemble`.
        MissingError: As `ensemble`.
        DataError: As `ensemble`.
    """
    ready = _prepare(sources, target, weights, probabilities, overwrite)
    states, failed = dict[str, str](), dict[str, NnsegError]()
    for case_id, path in ready.targets.items():
        try:
            proof, _ = _begin(ready.members, ready.wanted, case_id, path)
            before = _read_proof(path)
            is_done = before is not None and not overwrite and _is_done(path, before, proof)
            states[case_id] = DONE if is_done else TO_DO
        except NnsegError as error:
            failed[case_id] = error
        except MemoryError as error:
            failed[case_id] = out_of_memory(error)
    states |= {case_id: str(error) for case_id, error in failed.items()}
    most = max(ready.needs.values(), default=0)
    return Foreseen(target=target, states=states, failed=failed, memory=most)


def ensemble(
    sources: Sequence[Path],
    target: Path,
    *,
    weights: Sequence[float] = (),
    probabilities: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    on_case: OnCase | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Path]:
    """Average what several models found in the same images; write label maps.

    Args:
        sources: For each model a folder with its probabilities: compact ones as a validation leaves
            them, chunks, or nnU-Net's .npz with its label maps and dataset.json.
        target: The folder for the label maps.
        weights: Of the models, beside each other; left out, all count the same.
        probabilities: A name of KINDS: write the mean probabilities, too.
        workers: Cases at once, as far as memory allows; None is one a core where they are large.
        overwrite: Do again what is done, and replace label maps that were changed by hand.
        on_progress: Called after each case.
        on_case: Called with a case's id, and its proof or what failed.
        stop: Asked before each case; True ends the work with what is done kept.

    Returns:
        Case id to the file written, or found done.

    Raises:
        UsageError: There are not as many weights as folders, or `target` is one of them or holds
            label maps that no ensemble made.
        MissingError: A folder does not exist, or holds no probabilities.
        DataError: The models are of different labels, a weight is not over 0, or probabilities are
            of weights that their fold has no more.
        PartlyDoneError: Some cases failed; they are listed and the others are done.
        MachineError: `target` cannot be written, or another run is at work there.
        StoppedError: `stop` said True; what is done is kept.
    """
    ready = _prepare(sources, target, weights, probabilities, overwrite)
    probe(target)
    outcomes: dict[str, Averaged | NnsegError] = {}
    arguments = {
        "sources": [str(folder) for folder in sources],
        "target": str(target),
        "weights": list(ready.wanted.weights),
        "probabilities": probabilities,
    }
    command = f"nnseg ensemble -i {' '.join(map(str, sources))} -o {target}"
    with (
        alone(target, "run", command),
        logged_run(target, "ensemble", arguments, name="run", stop=stop) as run,
    ):
        if spec := next((one.spec for one in ready.members if one.spec is not None), None):
            text = record.json_text(spec_to_json(spec))
            commit.write_whole(predicted_spec_file(target), text.encode())
        try:
            _average_all(ready, outcomes, workers, on_progress, on_case, stop)
        finally:
            _tell(run, target, outcomes)
        failed = {n: found for n, found in outcomes.items() if isinstance(found, NnsegError)}
        raise_failed(dict(sorted(failed.items())), len(ready.targets))
    return ready.targets


def _average_all(
    ready: _Prepared,
    outcomes: dict[str, Averaged | NnsegError],
    workers: int | None,
    on_progress: OnProgress | None,
    on_case: OnCase | None,
    stop: Callable[[], bool],
) -> None:
    """Average the cases, and put what became of each into `outcomes`, whatever ends the work."""

    def work(case_id: str) -> None:
        if stop():
            raise StoppedError("stopped between cases; the same command goes on")
        outcomes[case_id] = _outcome(ready, case_id)
        if on_case:
            on_case(case_id, outcomes[case_id])

    at_once, room = workers_for(ready.needs, workers), room_for(ready.needs)
    for_each(work, list(ready.targets), str, at_once, "averaging", on_progress, room)


def _outcome(ready: _Prepared, case_id: str) -> Averaged | NnsegError:
    """Average one case, and give its proof, or the error that lets the others go on."""
    target = ready.targets[case_id]
    try:
        return _average(ready.members, ready.wanted, case_id, target)
    except DiskFullError:
        raise
    except NnsegError as error:
        return _cleared(target, error)
    except MemoryError as error:
        return out_of_memory(error)


def _prepare(
    sources: Sequence[Path],
    target: Path,
    weights: Sequence[float],
    probabilities: str | None,
    overwrite: bool,
) -> _Prepared:
    """Look at all that is to be averaged, and refuse what cannot be meant."""
    weights = _each(weights, sources)
    if target.resolve() in {folder.resolve() for folder in sources}:
        raise UsageError(f"{target}: the output must not be an input; give another folder")
    members = tuple(look_into(folder) for folder in sources)
    check_labels(members)
    for member in members:
        check_weights(member)
    ending = label_ending(members)
    cases = sorted({case_id for member in members for case_id in member.kinds})
    targets = {case_id: target / f"{case_id}{ending}" for case_id in cases}
    _refuse_to_replace(targets.values())
    wanted = _Wanted(
        weights=weights,
        probabilities=probabilities,
        overwrite=overwrite,
        version=versions()["nnseg"],
    )
    needs = {case_id: bytes_to_average(members, case_id) for case_id in cases}
    return _Prepared(members=members, wanted=wanted, targets=targets, needs=needs)


def _each(weights: Sequence[float], sources: Sequence[Path]) -> tuple[float, ...]:
    """Give the weight of each folder.

    Raises:
        UsageError: There are not as many as folders.
        DataError: One is not over 0.
    """
    weights = tuple(weights) or (1.0,) * len(sources)
    if len(weights) != len(sources):
        raise UsageError(f"there are {len(sources)} folders and {len(weights)} weights; give each")
    shares_of(weights)
    return weights


def _tell(run: Run, target: Path, outcomes: Mapping[str, Averaged | NnsegError]) -> None:
    """Put into run.json what became of each case; of those that a stop left, nothing."""
    for case_id, outcome in sorted(outcomes.items()):
        if isinstance(outcome, Averaged):
            run.cases[case_id] = "done"
            run.input_hashes |= {Path(name): sha for name, sha in outcome.inputs.items()}
            run.output_hashes |= {target / name: sha for name, sha in outcome.outputs.items()}
        else:
            run.cases[case_id] = str(outcome)


def _refuse_to_replace(targets: Iterable[Path]) -> None:
    """Refuse to write over label maps that no ensemble made, such as a dataset's own.

    Raises:
        UsageError: There is one.
    """
    for path in targets:
        if path.exists() and _read_proof(path) is None:
            raise UsageError(
                f"{path} is there, and no ensemble of ours made it; give another folder"
            )


def _begin(
    members: Sequence[Source], wanted: _Wanted, case_id: str, target: Path
) -> tuple[Averaged, list[Opened]]:
    """Open what is averaged in a case, and give the proof that its result will have.

    Raises:
        DataError: The label map that is there was changed by hand; or a file is damaged.
        MissingError: A model has no probabilities of the case.
    """
    opened = [member.open(case_id) for member in members]
    inputs = {
        str(path): commit.sha256(path) if isinstance(found, OpenNpz) else found.stored.array_sha256
        for found, path in opened
    }
    proofs = (
        inputs[str(path)] if isinstance(found, OpenNpz) else found.stored.record_sha256
        for found, path in opened
    )
    proof = Averaged(
        case_id=case_id,
        label_map=target.name,
        version=wanted.version,
        weights=wanted.weights,
        probabilities=wanted.probabilities,
        members=tuple(proofs),
        inputs=inputs,
        outputs={},
    )
    before = _read_proof(target)
    if before is not None and not wanted.overwrite and _is_edited(target, before):
        raise DataError(
            f"{target} was changed since it was made; move it away, or give --overwrite"
        )
    return proof, [found for found, _ in opened]


def _average(members: Sequence[Source], wanted: _Wanted, case_id: str, target: Path) -> Averaged:
    """Average one case, unless its proof says that it is done."""
    proof, opened = _begin(members, wanted, case_id, target)
    before = _read_proof(target)
    if before is not None and not wanted.overwrite and _is_done(target, before, proof):
        return before
    found = list(zip(opened, wanted.weights, strict=True))
    geometry, labels = opened[0].stored.geometry, opened[0].stored.labels
    written: tuple[Path, ...] = ()
    with ExitStack() as stack:
        begin = None
        if wanted.probabilities is not None:
            writer = stack.enter_context(writing(target, wanted.probabilities, labels, geometry))
            begin, written = writer.begin, writer.files
        segmentation = label_map(found, probabilities=begin)
        _withdraw(target, before)  # before the probabilities take their names
    with commit.whole_files(target.parent) as folder:
        unfinished = folder / target.name
        write(unfinished, segmentation, geometry, labels.as_text)
        proof = replace(proof, outputs=hashes([unfinished, *written]))
        return record.save_sealed(proof, proof_file(target))  # the next run knows the map by it


def _is_done(target: Path, before: Averaged, proof: Averaged) -> bool:
    """Whether a result is whole, and what would be made again."""
    as_before = replace(proof, inputs=before.inputs, outputs=before.outputs, record_sha256="")
    if replace(before, record_sha256="") != as_before:
        return False
    with suppress(OSError):  # a file is gone, or cannot be read
        return hashes([target.parent / name for name in before.outputs]) == before.outputs
    return False


def _is_edited(target: Path, before: Averaged) -> bool:
    """Whether another label map is there, that can be read; what cannot be is damage."""
    try:
        if hashes([target]).items() <= before.outputs.items():
            return False
        read_segmentation(target)
    except (NnsegError, OSError):
        return False
    return True


def _cleared(target: Path, error: NnsegError) -> NnsegError:
    """Remove what is left of a case that failed, which was made of other probabilities."""
    before = _read_proof(target)
    if before is not None and not _is_edited(target, before):
        try:
            _withdraw(target, before)
        except MachineError as other:
            logger.warning("%s", other)
    return error


def _withdraw(target: Path, before: Averaged | None) -> None:
    """Remove a result before another takes its place; its proof goes last."""
    if before is not None:
        for name in before.outputs:
            commit.remove(target.with_name(name))
    commit.remove(proof_file(target))


def _read_proof(target: Path) -> Averaged | None:
    """Read the proof beside a label map; None if there is none, or not a whole one of its own."""
    try:
        proof = record.load_sealed(Averaged, proof_file(target))
    except NnsegError:
        return None
    return proof if proof.label_map == target.name else None
