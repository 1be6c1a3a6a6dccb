"""Models of ours in one zip, to hand on; each file is proven by its hash on the way in and out.

Inside they lie as below a plan's folder: CONFIGURATION/fold_N with checkpoint_*.json and
safetensors, and the rules and the worth of their confidence where they have some. README.md is
their card, and manifest.json holds the hash of every file.
"""

import hashlib
import logging
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from nnseg import __version__, record
from nnseg.checkpoint import Checkpoint, Kind, check_weights, save_weights
from nnseg.commit import sha256, whole_file, write_whole
from nnseg.confidence import Confidence
from nnseg.dataset import DatasetSpec
from nnseg.errors import DataError, NnsegError
from nnseg.evaluate import Summary
from nnseg.exchange.archive import Archive, file_of, list_archive
from nnseg.exchange.nnunet_folder import ImportedModel, check_stages
from nnseg.exchange.rules import find_rules
from nnseg.folders import (
    checkpoint_file,
    confidence_file,
    fold_folder,
    postprocessing_file,
    run_record,
    summary_file,
    validated_file,
    validation_folder,
)
from nnseg.model_card import CardFold, DataNotes, model_card
from nnseg.postprocess import Postprocessing
from nnseg.runlog import RunReport
from nnseg.summary_json import from_nnunet

logger = logging.getLogger(__name__)

TRAINER = "nnseg"  # of models of ours
FORMAT = 1
CARD = "README.md"
MANIFEST = "manifest.json"
_DEEPEST = 2  # folders around the configurations: those of whoever packed them
_FILES = (
    "*/fold_*/checkpoint_*.json",
    "*/fold_*/checkpoint_*.safetensors",
    "*/fold_*/validation/confidence.json",
    "*/postprocessing.json",
    CARD,
    MANIFEST,
)
_CHECKPOINT = re.compile(
    r"(?P<place>.*/|)(?P<configuration>[^/]+)/fold_(?P<fold>\d+|all)/"
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
    folds: Sequence[Path], target: Path, kind: Kind, spec: DatasetSpec | None = None
) -> tuple[Path, ...]:
    """Write models of ours as the zip `target`, whole or not at all.

    The same models make the same bytes.

    Args:
        folds: Folders of trained folds, all of one plan.
        target: A file that is not there.
        kind: The checkpoint to take of each.
        spec: Of the dataset, for the card; None where it is not known.

    Returns:
        The zip.

    Raises:
        MissingError: A fold has no such checkpoint.
        DataError: A file is damaged, or two folds are of different plans or the same fold.
        MachineError: It cannot be written.
    """
    files: dict[str, Path] = {}
    first: Checkpoint | None = None
    listed: list[CardFold] = []
    for fold in folds:
        path = checkpoint_file(fold, kind)
        checkpoint = record.load_sealed(Checkpoint, path, made_by="nnseg train")
        first = first or checkpoint
        if checkpoint.plan != first.plan:
            raise DataError(f"{fold}: was trained from another plan than {folds[0]}")
        check_weights(fold, checkpoint.weights_file, checkpoint.weights_sha256)
        inside = fold_folder(Path(), checkpoint.configuration_name, checkpoint.fold)
        if checkpoint_file(inside, kind).as_posix() in files:
            raise DataError(f"{fold}: is the same fold as another one; name the one to export")
        found = {checkpoint_file(inside, kind): path}
        found[inside / checkpoint.weights_file] = fold / checkpoint.weights_file
        confidence = confidence_file(validation_folder(fold))
        if confidence.is_file():
            found[confidence_file(validation_folder(inside))] = confidence
        if rules := find_rules(fold):
            found[postprocessing_file(inside.parent)] = rules[0]
        files |= {name.as_posix(): source for name, source in found.items()}
        listed.append(_card_fold(fold, inside, checkpoint))
    assert first is not None, "there is a fold"
    card = model_card(first.plan, listed, _notes(spec), __version__).encode()
    hashes = {name: sha256(source) for name, source in sorted(files.items())}
    hashes[CARD] = hashlib.sha256(card).hexdigest()
    manifest = record.sealed(Manifest(files=hashes, version=__version__))
    with whole_file(target) as unfinished, zipfile.ZipFile(unfinished, "w") as packed:
        packed.writestr(zipfile.ZipInfo(CARD), card)
        packed.writestr(zipfile.ZipInfo(MANIFEST), record.dumps(manifest).encode())
        for name, source in sorted(files.items()):
            _add(packed, name, source, hashes[name])
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

    Args:
        archive: All of it must be of one plan.
        target: A folder that nobody else looks into yet; None only reads and checks.

    Raises:
        DataError: A file is damaged or missing, or the models are of different plans.
        MissingError: The stage before a cascade is not among them.
    """
    _check_manifests(archive)
    models: dict[str, ImportedModel] = {}
    for name in archive.names:
        if not (found := _CHECKPOINT.fullmatch(name)):
            continue
        kind: Kind = "final" if found["kind"] == "final" else "best"
        with _named(archive, name) as path:
            checkpoint = record.load_sealed(Checkpoint, path, remedy="get it again")
        where = archive.where(name)
        plan, called = checkpoint.plan, checkpoint.configuration_name
        if (called, checkpoint.fold) != (found["configuration"], found["fold"]):
            raise DataError(f"{where}: is fold {checkpoint.fold} of {called}; put it there")
        model = models.get(called)
        if any(one.plan != plan for one in models.values()):
            raise DataError(f"{where}: is of another plan than the others; import each by itself")
        place = f"{found['place']}{called}/"
        data = _weights(archive, f"{place}fold_{checkpoint.fold}/", checkpoint)
        kinds = model.checkpoints if model else {}
        before = kinds.get(checkpoint.fold, ())
        models[called] = ImportedModel(
            plan=plan,
            configuration_name=called,
            trainer=TRAINER,
            checkpoints=kinds | {checkpoint.fold: (kind, *before)},  # best comes before final
            source=archive.where(place.rstrip("/")),
        )
        if target is None:
            continue
        fold = fold_folder(target, called, checkpoint.fold)
        file, digest = save_weights(fold, f"checkpoint_{kind}", data)
        checkpoint = replace(checkpoint, weights_file=file, weights_sha256=digest)
        record.save_sealed(checkpoint, checkpoint_file(fold, kind))
        beside = f"{place}fold_{checkpoint.fold}/validation/confidence.json"
        _copy(archive, beside, Confidence, confidence_file(validation_folder(fold)))
        rules = postprocessing_file(fold.parent)
        _copy(archive, f"{place}{rules.name}", Postprocessing, rules)
    check_stages(tuple(models.values()))
    if target is not None and (card := next(filter(_is_card, archive.names), None)):
        with file_of(archive, card) as path:
            write_whole(target / CARD, path.read_bytes())
    return tuple(models.values())


def _add(packed: zipfile.ZipFile, name: str, source: Path, digest: str) -> None:
    """Put a file into a zip, if it still is what the manifest says."""
    written = hashlib.sha256()
    with open(source, "rb") as content, packed.open(zipfile.ZipInfo(name), "w") as member:
        while block := content.read(2**20):
            written.update(block)
            member.write(block)
    if written.hexdigest() != digest:
        raise DataError(f"{source}: changed while it was packed; pack it again")


def _card_fold(fold: Path, inside: Path, checkpoint: Checkpoint) -> CardFold:
    """Gather what the records of a trained fold tell its card."""
    run: RunReport | None = None
    with suppress(NnsegError):  # a model is handed on without it, too
        run = record.load(RunReport, run_record(fold))
    return CardFold(
        configuration=checkpoint.configuration_name,
        fold=checkpoint.fold,
        epochs=checkpoint.epoch,
        weights_file=(inside / checkpoint.weights_file).as_posix(),
        weights_sha256=checkpoint.weights_sha256,
        run=run,
        summary=_scores(fold, checkpoint),
    )


def _scores(fold: Path, checkpoint: Checkpoint) -> Summary | None:
    """Read the scores of a fold's validation cases, None where they are not of these weights."""
    path = summary_file(validation_folder(fold))
    with suppress(NnsegError, KeyError, TypeError):
        if record.read_json(validated_file(fold))["weights_sha256"] == checkpoint.weights_sha256:
            return from_nnunet(record.read_json(path), checkpoint.plan.labels, str(path))
    return None


def _notes(spec: DatasetSpec | None) -> DataNotes | None:
    """Take from dataset.json what people wrote about the data; lists and tables are left out."""
    if spec is None:
        return None
    texts = {key: str(text) for key, text in spec.others.items() if isinstance(text, str) and text}
    return DataNotes(cases=spec.num_training, texts=texts)


def _is_card(name: str) -> bool:
    return PurePosixPath(name).name == CARD


def _check_manifests(archive: Archive) -> None:
    """Hold every file against the manifest that it came with.

    Raises:
        DataError: One is damaged, missing, or was not packed with the others.
    """
    manifests = [name for name in archive.names if PurePosixPath(name).name == MANIFEST]
    if not manifests and archive.is_zip:
        logger.warning(
            "%s: has no %s; its checkpoints and weights are checked by their own hashes",
            archive.source,
            MANIFEST,
        )
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
        for other in archive.names:
            inside = other.removeprefix(place)
            if other.startswith(place) and other != name and inside not in manifest.files:
                raise DataError(
                    f"{archive.where(other)}: is not in {MANIFEST}, so somebody added it; get the "
                    "model again"
                )


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
