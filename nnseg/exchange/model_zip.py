"""Models of ours in one zip, to hand on; each file is proven by its hash on the way in and out.

Inside they lie as below a plan's folder: CONFIGURATION/fold_N with checkpoint_*.json and
safetensors, and the rules and the worth of their confidence where they have some. Models that were
chosen lie as beside their choice.json, which comes along. README.md is their card, and
manifest.json holds the hash of every file.
"""

import hashlib
import math
import re
import zipfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from nnseg import __version__, record
from nnseg.checkpoint import Checkpoint, Kind, check_weights, save_weights
from nnseg.choose import Choice
from nnseg.commit import sha256, whole_file, write_whole
from nnseg.dataset import DatasetSpec
from nnseg.errors import DataError, NnsegError
from nnseg.evaluate import Summary
from nnseg.exchange.archive import Archive, file_of, list_archive
from nnseg.exchange.chosen import card_choice, check_members, place_of
from nnseg.exchange.nnunet_folder import ImportedModel, check_stages
from nnseg.exchange.rules import find_rules
from nnseg.folders import (
    CHOICE,
    checkpoint_file,
    confidence_file,
    fold_folder,
    is_folder_name,
    postprocessing_file,
    run_record,
    summary_file,
    validated_file,
    validation_folder,
)
from nnseg.learning.resume import LATEST, RunRecord
from nnseg.model_card import CardFold, DataNotes, model_card
from nnseg.postprocess import Postprocessing
from nnseg.runlog import RunReport
from nnseg.scores.confidence import Confidence, read_confidence
from nnseg.scores.summary_json import from_nnunet
from nnseg.validated import Validated, load_validated, read_validated

TRAINER = "nnseg"  # of models of ours
FORMAT = 1
CARD = "README.md"
MANIFEST = "manifest.json"
_DEEPEST = 3  # folders around the configurations: those of whoever packed them
_FILES = (
    "*/fold_*/checkpoint_*.json",
    "*/fold_*/checkpoint_*.safetensors",
    "*/fold_*/validation/confidence.json",
    "*/fold_*/validation/validated.json",
    "*/postprocessing.json",
    CARD,
    CHOICE,
    MANIFEST,
)
_CHECKPOINT = re.compile(
    r"(?P<place>.*/|)(?P<configuration>[^/]+)/(?P<folder>fold_(?P<fold>\d+|all)(?P<seed>_seed\d+)?)/"
    r"checkpoint_(?P<kind>final|best)\.json"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """manifest.json: what is packed, and what it must be when it is unpacked."""

    files: dict[str, str]  # name relative to the manifest's folder to SHA-256
    version: str  # of the nnseg that packed them
    format: int = FORMAT
    record_sha256: str = ""  # of this record without it; `record.sealed` writes it


def pack_models(
    folds: Sequence[Path],
    target: Path,
    kind: Kind,
    spec: DatasetSpec | None = None,
    choice: Path | None = None,
) -> tuple[Path, ...]:
    """Write models of ours as the zip `target`, whole or not at all.

    The same models make the same bytes.

    Args:
        folds: Folders of trained folds, all of one plan unless they were chosen.
        target: A file that is not there.
        kind: The checkpoint to take of each.
        spec: Of the dataset, for the card; None where it is not known.
        choice: The choice.json by which these folds predict together; None if by none.

    Returns:
        The zip.

    Raises:
        MissingError: A fold has no such checkpoint.
        DataError: A file is damaged, or two folds are of different plans or the same fold.
        MachineError: It cannot be written.
    """
    files: dict[str, Path | bytes] = {}
    packed = [
        (fold, record.load_sealed(Checkpoint, checkpoint_file(fold, kind), made_by="nnseg train"))
        for fold in folds
    ]
    first = packed[0][1].plan
    several = any(checkpoint.plan.name != first.name for _, checkpoint in packed)
    listed: list[CardFold] = []
    for fold, checkpoint in packed:
        if choice is not None:
            inside = place_of(fold, choice, checkpoint)
        elif checkpoint.plan != first:
            raise DataError(f"{fold}: was trained from another plan than {folds[0]}")
        else:
            inside = fold_folder(Path(), checkpoint.configuration_name, checkpoint.fold)
        if checkpoint_file(inside, kind).as_posix() in files:
            raise DataError(f"{fold}: is the same fold as another one; name the one to export")
        files |= _files_of(fold, inside, checkpoint, kind)
        listed.append(_card_fold(fold, inside, checkpoint, several=several))
    if choice is not None:
        files[CHOICE] = choice.read_bytes()
    together = None if choice is None else card_choice(choice, folds, kind)
    files[CARD] = model_card(first, listed, _notes(spec), __version__, together).encode()
    hashes = {name: _hash_of(content) for name, content in sorted(files.items())}
    manifest = record.sealed(Manifest(files=hashes, version=__version__))
    with whole_file(target) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
        _add(archive, CARD, files.pop(CARD), hashes[CARD])
        archive.writestr(zipfile.ZipInfo(MANIFEST), record.dumps(manifest).encode())
        for name, content in sorted(files.items()):
            _add(archive, name, content, hashes[name])
    return (target,)


def find_packed(source: Path) -> Archive | None:
    """List the models of ours in a folder or zip; None where there are none.

    Raises:
        MissingError: There is nothing at `source`.
        DataError: It is a file and no zip, or a zip that is damaged or not to be trusted.
    """
    patterns = ["*/" * depth + file for depth in range(_DEEPEST + 1) for file in _FILES]
    archive = list_archive(source, patterns)
    return archive if any(map(_CHECKPOINT.fullmatch, archive.names)) else None


def unpack_models(archive: Archive, target: Path | None) -> tuple[ImportedModel, ...]:
    """Write the models that `find_packed` found as CONFIGURATION/fold_N below `target`.

    Those of a choice get the places that it names, and it lies beside them.

    Args:
        archive: All of it must be of one plan, but for a choice.
        target: A folder that nobody else looks into yet; None only reads and checks.

    Raises:
        DataError: A file is damaged or missing, or the models are of different plans.
        MissingError: The stage before a cascade is not among them.
    """
    proven = _check_manifests(archive)
    choice = min((name for name in proven if PurePosixPath(name).name == CHOICE), default=None)
    top = None if choice is None else choice.removesuffix(CHOICE)
    models: dict[tuple[str, str], ImportedModel] = {}  # by place and name
    for name in archive.names:
        found = _CHECKPOINT.fullmatch(name)
        if not found or (top is None and found["seed"]):
            continue
        kind: Kind = "final" if found["kind"] == "final" else "best"
        with _named(archive, name) as path:
            checkpoint = record.load_sealed(Checkpoint, path, remedy="get it again")
        place = _place(archive, found, checkpoint, top)
        key = (place, checkpoint.configuration_name)
        others = [one.plan for (where, _), one in models.items() if where == place]
        if any(plan != checkpoint.plan for plan in others):
            raise DataError(
                f"{archive.where(name)}: is of another plan than the others; import each by itself"
            )
        inside = name.rpartition("/")[0] + "/"
        data = _weights(archive, inside, checkpoint)
        kinds = models[key].checkpoints if key in models else {}
        called = checkpoint.fold + (found["seed"] or "")
        models[key] = ImportedModel(
            plan=checkpoint.plan,
            configuration_name=checkpoint.configuration_name,
            trainer=TRAINER,
            checkpoints=kinds | {called: (kind, *kinds.get(called, ()))},  # best before final
            source=archive.where(inside.rstrip("/").rpartition("/")[0]),
        )
        if target is not None:
            fold = fold_folder(target / place, checkpoint.configuration_name, called)
            _unpack_fold(archive, inside, fold, checkpoint, kind, data)
    for where in {where for where, _ in models}:
        check_stages([one for (place, _), one in models.items() if place == where])
    _unpack_beside(archive, proven, target, choice)
    return tuple(models.values())


def _place(archive: Archive, found: re.Match[str], checkpoint: Checkpoint, top: str | None) -> str:
    """Give the folder, below that of a choice, of the configurations that a fold is among.

    Raises:
        DataError: The fold is another one than its place says, or lies where none may.
    """
    where = archive.where(found[0])
    called = checkpoint.configuration_name
    if (called, checkpoint.fold) != (found["configuration"], found["fold"]):
        raise DataError(f"{where}: is fold {checkpoint.fold} of {called}; put it there")
    if top is None:
        return ""
    place = found["place"]
    parts = place.removeprefix(top).split("/")[:-1]
    if not place.startswith(top) or not all(map(is_folder_name, parts)):
        raise DataError(f"{where}: lies elsewhere than the choice tells; get the model again")
    return place.removeprefix(top)


def _unpack_fold(
    archive: Archive, inside: str, fold: Path, checkpoint: Checkpoint, kind: Kind, data: bytes
) -> None:
    """Write a checkpoint of a fold, and what lies beside it and is of these weights."""
    file, digest = save_weights(fold, f"checkpoint_{kind}", data)
    checkpoint = replace(checkpoint, weights_file=file, weights_sha256=digest)
    record.save_sealed(checkpoint, checkpoint_file(fold, kind))
    validated = f"{inside}validation/validated.json"
    if validated in archive.names:
        with _named(archive, validated) as path:
            is_of_these = load_validated(path).weights_sha256 == digest
        if is_of_these:
            out = validation_folder(fold)
            _copy(archive, f"{inside}validation/confidence.json", Confidence, confidence_file(out))
            record.save_sealed(Validated(weights_sha256=digest), validated_file(fold))
    rules = postprocessing_file(fold.parent)
    around = inside.rstrip("/").rpartition("/")[0]
    _copy(archive, f"{around}/{rules.name}", Postprocessing, rules)


def _unpack_beside(
    archive: Archive, proven: Collection[str], target: Path | None, choice: str | None
) -> None:
    """Write card and choice, where the manifest proves them.

    Raises:
        DataError: A model that the choice predicts with is not there.
    """
    if choice is not None:
        with _named(archive, choice) as path:
            content, data = record.load(Choice, path), path.read_bytes()
        top = choice.removesuffix(CHOICE)
        beside = [name.removeprefix(top) for name in archive.names if name.startswith(top)]
        check_members(content, beside, archive.where(choice))
        if target is not None:
            write_whole(target / CHOICE, data)
    if target is not None and (card := min(filter(_is_card, proven), default=None)):
        with file_of(archive, card) as path:
            write_whole(target / CARD, path.read_bytes())


def _files_of(
    fold: Path, inside: Path, checkpoint: Checkpoint, kind: Kind
) -> dict[str, Path | bytes]:
    """Give what is packed of a fold, by its name in the zip: a file, or its content."""
    check_weights(fold, checkpoint.weights_file, checkpoint.weights_sha256)
    found: dict[Path, Path | bytes] = {
        checkpoint_file(inside, kind): checkpoint_file(fold, kind),
        inside / checkpoint.weights_file: fold / checkpoint.weights_file,
    }
    if read_confidence(fold, checkpoint.weights_sha256) is not None:
        of_these = Validated(weights_sha256=checkpoint.weights_sha256)  # the cases are not told
        found[validated_file(inside)] = record.dumps(record.sealed(of_these)).encode()
        found[confidence_file(validation_folder(inside))] = confidence_file(validation_folder(fold))
    if rules := find_rules(fold):
        found[postprocessing_file(inside.parent)] = rules[0]
    return {name.as_posix(): content for name, content in found.items()}


def _hash_of(content: Path | bytes) -> str:
    return sha256(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()


def _add(packed: zipfile.ZipFile, name: str, source: Path | bytes, digest: str) -> None:
    """Put a file into a zip, if it still is what the manifest says."""
    if isinstance(source, bytes):
        packed.writestr(zipfile.ZipInfo(name), source)
        return
    written = hashlib.sha256()
    with open(source, "rb") as content, packed.open(zipfile.ZipInfo(name), "w") as member:
        while block := content.read(2**20):
            written.update(block)
            member.write(block)
    if written.hexdigest() != digest:
        raise DataError(f"{source}: changed while it was packed; pack it again")


def _card_fold(fold: Path, inside: Path, checkpoint: Checkpoint, *, several: bool) -> CardFold:
    """Gather what the records of a trained fold tell its card."""
    run: RunReport | None = None
    with suppress(NnsegError):  # a model is handed on without it, too
        run = record.load(RunReport, run_record(fold))
    seconds, batch_size = _trained(fold, checkpoint)
    return CardFold(
        configuration=checkpoint.configuration_name,
        fold=inside.name.removeprefix("fold_"),
        epochs=checkpoint.epoch,
        batch_size=batch_size,
        seconds=seconds,
        weights_file=(inside / checkpoint.weights_file).as_posix(),
        weights_sha256=checkpoint.weights_sha256,
        run=run,
        summary=_scores(fold, checkpoint),
        plan=checkpoint.plan if several else None,
    )


def _trained(fold: Path, checkpoint: Checkpoint) -> tuple[float | None, int | None]:
    """Give how long a fold trained for these weights, and by what batch; None is not known."""
    try:
        run = record.load_sealed(RunRecord, checkpoint_file(fold, LATEST))
    except NnsegError:
        return None, None
    if run.epoch < checkpoint.epoch:
        return None, None
    past = math.fsum(one.seconds for one in run.history if one.epoch <= checkpoint.epoch)
    planned = run.settings.batch_size or checkpoint.configuration.batch_size
    return (
        run.seconds if run.epoch == checkpoint.epoch else past,
        run.course.batch_size or planned,
    )


def _scores(fold: Path, checkpoint: Checkpoint) -> Summary | None:
    """Read the scores of a fold's validation cases, None where they are not of these weights."""
    path, proof = summary_file(validation_folder(fold)), read_validated(fold)
    if proof is None or proof.weights_sha256 != checkpoint.weights_sha256 or not path.is_file():
        return None
    if proof.summary_sha256 not in (None, sha256(path)):
        return None
    with suppress(NnsegError, KeyError, TypeError):
        data = record.read_json(path, most=record.LARGE_BYTES)
        return from_nnunet(data, checkpoint.plan.labels, str(path))
    return None


def _notes(spec: DatasetSpec | None) -> DataNotes | None:
    """Take from dataset.json what people wrote about the data; lists and tables are left out."""
    if spec is None:
        return None
    texts = {key: str(text) for key, text in spec.others.items() if isinstance(text, str) and text}
    return DataNotes(cases=spec.num_training, texts=texts)


def _is_card(name: str) -> bool:
    return PurePosixPath(name).name == CARD


def _check_manifests(archive: Archive) -> frozenset[str]:
    """Hold every file against the manifest that it came with; give the names of those it proves.

    A folder need not have one: it may be as it was trained.

    Raises:
        DataError: One is damaged, missing, or was not packed with the others; or a zip has none.
    """
    manifests = [name for name in archive.names if PurePosixPath(name).name == MANIFEST]
    if not manifests and archive.is_zip:
        raise DataError(
            f"{archive.source}: has no {MANIFEST}, so that nothing proves its files; get the model "
            "again. If an nnseg packed it that did not write one, or whoever gave it to you packed "
            "a folder: unpack it, and predict with -m FOLDER"
        )
    proven = set(manifests)
    for name in manifests:
        with _named(archive, name) as path:
            manifest = record.load_sealed(Manifest, path, remedy="get it again")
        place = name.removesuffix(MANIFEST)
        for inside, digest in manifest.files.items():
            if f"{place}{inside}" not in archive.names:
                raise DataError(
                    f"{archive.where(place + inside)} does not exist; get the model again"
                )
            with file_of(archive, f"{place}{inside}") as path:
                found = sha256(path)
            if found != digest:
                where = archive.where(place + inside)
                raise DataError(f"{where}: is damaged (its SHA-256 changed); get it again")
            proven.add(f"{place}{inside}")
    for other in archive.names:
        near = any(other.startswith(name.removesuffix(MANIFEST)) for name in manifests)
        if other not in proven and (near or archive.is_zip):
            raise DataError(
                f"{archive.where(other)}: is not in {MANIFEST}, so somebody added it; get the "
                "model again"
            )
    return frozenset(proven)


def _weights(archive: Archive, place: str, checkpoint: Checkpoint) -> bytes:
    name = place + checkpoint.weights_file
    if name not in archive.names:
        raise DataError(f"{archive.where(name)} does not exist; get the model again")
    with file_of(archive, name) as path:
        data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != checkpoint.weights_sha256:
        raise DataError(f"{archive.where(name)}: is damaged (its SHA-256 changed); get it again")
    return data


def _copy(archive: Archive, name: str, kind: type[object], target: Path) -> None:
    """Copy a record, where there is one, after a look at it."""
    if name in archive.names and not target.exists():
        with _named(archive, name) as path:
            record.save(record.load(kind, path), target)


@contextmanager
def _named(archive: Archive, name: str) -> Iterator[Path]:
    """Give the path of a file for the while, by which no message calls it."""
    with file_of(archive, name) as path:
        try:
            yield path
        except NnsegError as error:
            raise type(error)(str(error).replace(str(path), archive.where(name))) from None
