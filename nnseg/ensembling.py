"""Predictions of several models averaged, with files: from folders of probabilities to label maps.

The same command goes on where it was killed: each result has a proof beside it, that says what it
was made of.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from nnseg import commit, record
from nnseg.averaging import Opened, label_map, shares_of
from nnseg.dataset import DatasetSpec, read_spec, spec_to_json, visible_files
from nnseg.errors import (
    DataError,
    DiskFullError,
    MachineError,
    MissingError,
    NnsegError,
    StoppedError,
    UsageError,
)
from nnseg.folders import predicted_spec_file, proof_file
from nnseg.labels import Labels
from nnseg.parallel import OnProgress, for_each, out_of_memory
from nnseg.predicted_folder import alone, probe
from nnseg.predicting import raise_failed
from nnseg.probabilities import (
    KINDS,
    OpenNpz,
    open_compact,
    open_npz,
    open_probabilities,
    writing,
)
from nnseg.proof import hashes
from nnseg.runlog import Run, logged_run, versions
from nnseg.volume import LABEL_ENDINGS, read_segmentation, write

logger = logging.getLogger(__name__)

KINDS_READ = ("npz", "chunks", "compact")  # of a case that is there as several, the last one counts
USUAL_ENDING = ".nii.gz"  # of label maps, where no folder tells another
STOPPED = "stopped between cases; the same command goes on"


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
        for name in self.outputs:
            if name in ("", "..") or Path(name).name != name:  # or to remove them were a danger
                raise DataError(f"outputs: {name!r} is no name of a file beside the label map")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What is to be done with every case."""

    weights: tuple[float, ...]
    probabilities: str | None
    overwrite: bool
    version: str  # of nnseg


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A folder of what one model found."""

    folder: Path
    kinds: dict[str, str]  # case id to kind of its probabilities
    spec: DatasetSpec | None  # of its dataset.json, if it has one

    def open(self, case_id: str) -> tuple[Opened, Path]:
        """Open the probabilities of a case, and name the file that holds them.

        Raises:
            MissingError: There are none.
            DataError: They are damaged, or nothing says what they mean.
        """
        if case_id not in self.kinds:
            raise MissingError(
                f"{self.folder} has no probabilities of it; predict it there, too, or take it out "
                "of the other folders"
            )
        kind = self.kinds[case_id]
        path = self.folder / f"{case_id}{KINDS[kind].endings[0]}"
        if kind == "compact":
            return open_compact(self.folder / f"{case_id}{USUAL_ENDING}"), path
        if kind == "chunks":
            return open_probabilities(path), path
        if self.spec is None:
            raise MissingError(
                f"{predicted_spec_file(self.folder)} does not exist; it says what the heads of "
                f"{path.name} mean: copy that of the dataset there"
            )
        beside = self.folder / f"{case_id}{self.spec.label_ending}"
        if not beside.is_file():
            raise MissingError(f"{beside} does not exist; {path.name} lies on its grid: restore it")
        return open_npz(path, self.spec.labels, read_segmentation(beside)[1]), path


def ensemble(
    sources: Sequence[Path],
    target: Path,
    *,
    weights: Sequence[float] = (),
    probabilities: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Path]:
    """Average what several models found in the same images; write label maps.

    Args:
        sources: For each model a folder with its probabilities: compact ones as a validation leaves
            them, chunks, or nnU-Net's .npz with its label maps and dataset.json.
        target: The folder for the label maps.
        weights: Of the models, beside each other; left out, all count the same.
        probabilities: A name of KINDS: write the mean probabilities, too.
        workers: Cases at once; None is one a core.
        overwrite: Do again what is done, and replace label maps that were changed by hand.
        on_progress: Called after each case.
        stop: Asked before each case; True ends the work with what is done kept.

    Returns:
        Case id to the file written, or found done.

    Raises:
        UsageError: There are not as many weights as folders, or `target` is one of them or holds
            label maps that no ensemble made.
        MissingError: A folder does not exist, or holds no probabilities.
        DataError: The models are of different labels, or a weight is not over 0.
        PartlyDoneError: Some cases failed; they are listed and the others are done.
        MachineError: `target` cannot be written, or another run is at work there.
        StoppedError: `stop` said True; what is done is kept.
    """
    weights = _each(weights, sources)
    if target.resolve() in {folder.resolve() for folder in sources}:
        raise UsageError(f"{target}: the output must not be an input; give another folder")
    members = [_look_into(folder) for folder in sources]
    _check_labels(members)
    ending = _label_ending(members)
    cases = sorted({case_id for member in members for case_id in member.kinds})
    targets = {case_id: target / f"{case_id}{ending}" for case_id in cases}
    _refuse_to_replace(targets.values())
    probe(target)
    outcomes: dict[str, Averaged | NnsegError] = {}
    wanted = _Wanted(
        weights=weights,
        probabilities=probabilities,
        overwrite=overwrite,
        version=versions()["nnseg"],
    )

    def work(case_id: str) -> None:
        if stop():
            raise StoppedError(STOPPED)
        try:
            outcomes[case_id] = _average(members, wanted, case_id, targets[case_id])
        except DiskFullError:
            raise
        except NnsegError as error:
            outcomes[case_id] = _cleared(targets[case_id], error)
        except MemoryError as error:
            outcomes[case_id] = out_of_memory(error)

    arguments = {
        "sources": [str(folder) for folder in sources],
        "target": str(target),
        "weights": list(weights),
        "probabilities": probabilities,
    }
    command = f"nnseg ensemble -i {' '.join(map(str, sources))} -o {target}"
    with (
        alone(target, "run", command),
        logged_run(target, "ensemble", arguments, name="run", stop=stop) as run,
    ):
        if spec := next((member.spec for member in members if member.spec is not None), None):
            text = record.json_text(spec_to_json(spec))
            commit.write_whole(predicted_spec_file(target), text.encode())
        try:
            for_each(work, cases, str, workers, "averaging", on_progress)
        except StoppedError:
            raise StoppedError(STOPPED) from None  # not case by case
        finally:
            _tell(run, target, outcomes)
        failed = {n: found for n, found in outcomes.items() if isinstance(found, NnsegError)}
        raise_failed(dict(sorted(failed.items())), len(cases))
    return targets


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


def _look_into(folder: Path) -> _Source:
    """List the cases of a folder whose probabilities are there.

    Raises:
        MissingError: There is no such folder, or none in it.
        DataError: Its dataset.json cannot be used.
    """
    kinds: dict[str, str] = {}
    names = [path.name for path in visible_files(folder)]
    for kind in KINDS_READ:
        ending = KINDS[kind].endings[-1]
        kinds |= {name.removesuffix(ending): kind for name in names if name.endswith(ending)}
    if not kinds:
        raise MissingError(
            f"{folder} holds no probabilities; `nnseg predict --save_probabilities chunks` writes "
            "them, and the validation of a fold: `nnseg train DATASET CONFIGURATION FOLD --val`"
        )
    path = predicted_spec_file(folder)
    return _Source(folder=folder, kinds=kinds, spec=read_spec(path) if path.is_file() else None)


def _check_labels(members: Sequence[_Source]) -> None:
    """Make sure, by one case each, that all models are of the same labels.

    Raises:
        DataError: They are not.
    """
    first: tuple[Path, Labels] | None = None
    for member in members:
        labels = None
        for case_id in sorted(member.kinds):
            with suppress(NnsegError):  # its case will tell
                labels = member.open(case_id)[0].stored.labels
                break
        if labels is None:
            continue
        if first is None:
            first = member.folder, labels
        elif labels != first[1]:
            raise DataError(
                f"{member.folder} is of a model of the labels {labels.as_text}, and {first[0]} of "
                f"{first[1].as_text}; average models of the same labels"
            )


def _label_ending(members: Sequence[_Source]) -> str:
    """Give how the label maps end: as the models' own do."""
    for member in members:
        if member.spec is not None:
            return member.spec.label_ending
    for member in members:
        for ending in LABEL_ENDINGS:
            if (member.folder / f"{min(member.kinds)}{ending}").is_file():
                return ending
    return USUAL_ENDING


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


def _average(members: Sequence[_Source], wanted: _Wanted, case_id: str, target: Path) -> Averaged:
    """Average one case, unless its proof says that it is done."""
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
    if before is not None and not wanted.overwrite:
        if _is_edited(target, before):
            raise DataError(
                f"{target} was changed since it was made; move it away, or give --overwrite"
            )
        if _is_done(target, before, proof):
            return before
    found = [(one, weight) for (one, _), weight in zip(opened, wanted.weights, strict=True)]
    geometry = opened[0][0].stored.geometry
    labels = opened[0][0].stored.labels
    written = [target]
    with ExitStack() as stack:
        begin = None
        if wanted.probabilities is not None:
            writer = stack.enter_context(writing(target, wanted.probabilities, labels, geometry))
            begin = writer.begin
            written += writer.files
        segmentation = label_map(found, probabilities=begin)
        _withdraw(target, before)  # before the probabilities take their names
    write(target, segmentation, geometry, labels.as_text)
    return record.save_sealed(replace(proof, outputs=hashes(written)), proof_file(target))


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
