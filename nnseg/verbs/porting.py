"""Models from elsewhere to ours, and ours to elsewhere, with their files."""

import contextlib
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from nnseg.errors import NnsegError, UsageError
from nnseg.registry import Registry

if TYPE_CHECKING:
    from nnseg.checkpoint import Kind
    from nnseg.dataset import DatasetSpec
    from nnseg.exchange.nnunet_folder import ImportedModel
    from nnseg.folders import Folders
    from nnseg.plan import Plan

Exporter: TypeAlias = Callable[[Sequence[Path], Path, "Kind"], tuple[Path, ...]]


def import_model(
    sources: Sequence[Path],
    target: Path,
    *,
    name: str | None = None,
    trainers: Collection[str] = (),
    save: bool = True,
) -> "tuple[ImportedModel, ...]":
    """Make models of ours of trained models of nnU-Net v2, whole or not at all.

    Or unpack what `export_model` packed to hand on, after a check of every file.

    Args:
        sources: Folders or zips of nnU-Net's, each of one trained model, of a dataset's results or
            around those; all their models must be of one plan. Or one zip of ours.
        target: Becomes a folder of models as `nnseg train` leaves them, CONFIGURATION/fold_N, and
            must not be there, or be empty.
        name: Of the plan; None is what nnU-Net calls it.
        trainers: Trainer classes beyond those of nnU-Net v2.8.1 that change neither the network
            nor the prediction.
        save: False reads and checks all, and writes nothing.

    Raises:
        MissingError: There is no trained model, or none of the stage before a cascade.
        DataError: A file is damaged or not to be trusted, or the models are of different plans.
        PlanError: A plan names what nnseg has nothing for.
        UsageError: `target` holds something, a trainer is unknown, two models are of one
            configuration, or a zip of ours comes with a name, trainers or other sources.
        MachineError: The disk is full, or `target` cannot be written.
    """
    from nnseg.commit import whole_folder
    from nnseg.runlog import logged_run

    if save:
        _check_free(target)
    files, read = _reader_of(sources, name, trainers)
    if not save:
        return read(None)
    arguments = {
        "sources": [str(source) for source in sources],
        "target": str(target),
        "name": name,
        "trainers": sorted(trainers),
    }
    with (
        _new_folder(target) as new,
        whole_folder(new) as unfinished,
        logged_run(unfinished, "import", arguments) as run,
    ):
        imported = read(unfinished)
        run.inputs += files
    return imported


def _reader_of(
    sources: Sequence[Path], name: str | None, trainers: Collection[str]
) -> "tuple[list[Path], Callable[[Path | None], tuple[ImportedModel, ...]]]":
    """Give the files that are read, and what checks their models and writes them to a folder."""
    from nnseg.exchange.model_zip import find_packed, unpack_models
    from nnseg.exchange.nnunet_folder import find_models, import_models

    ours = {source: archive for source in sources if (archive := find_packed(source))}
    if not ours:
        found = [model for source in sources for model in find_models(source)]
        files = [path for model in found for path in model.files]
        return files, lambda to: import_models(found, to, name=name, trainers=trainers)
    if len(sources) > 1 or name or trainers:
        raise UsageError(f"{next(iter(ours))}: is a model of nnseg; import it alone, as it is")
    ((source, packed),) = ours.items()
    files = [source] if packed.is_zip else [source / file for file in packed.names]
    return files, lambda to: unpack_models(packed, to)


def export_model(
    source: Path, target: Path, *, to: str = "nnunet", kind: "Kind" = "final"
) -> tuple[Path, ...]:
    """Write models of ours as another program reads them, whole or not at all.

    Args:
        source: The folder of a fold, of a configuration (all its numbered folds), or of a plan's
            models (all of them; not to ONNX). A cascade takes the stage before it along, but not
            to ONNX. To "zip" also a choice.json, or the folder that it lies in: all that predicts
            by it.
        target: A folder that must not be there, or be empty; of "zip" a file that must not be.
        to: A name of EXPORTERS.
        kind: The checkpoint to take: "final" or "best".

    Returns:
        What was written, as the exporter tells it.

    Raises:
        MissingError: There is no trained fold, or none of the stage before a cascade.
        DataError: A file is damaged, or the folds are of different plans.
        PlanError: There is no such exporter, or it has nothing for a part of the plan.
        UsageError: `target` holds something, `source` holds more than `to` has room for, such as
            a choice, or a package is not installed.
        MachineError: The disk is full, or `target` cannot be written.
    """
    write = EXPORTERS[to]
    _check_free(target)
    if to == "zip" and target.is_dir():
        raise UsageError(f"{target} is a folder; name the zip file to write")
    choice = _choice_of(source, kind, to)
    folds = _folds_of(source, kind) if choice is None else ()
    with _new_folder(target) as new:
        written = _choice_to_zip(choice, new, kind) if choice else write(folds, new, kind)
    return tuple(target.absolute() / path.relative_to(new) for path in written)


def read_plan(folders: "Folders", dataset: str, plans_file: Path, *, name: str) -> "Plan":
    """Read nnU-Net's plans.json for a dataset of ours, and write nothing; see `import_plans`.

    Raises:
        MissingError: A file is not there.
        DataError: One of them is not such a file, or they are of different data.
    """
    from nnseg import record
    from nnseg.dataset import read_spec
    from nnseg.exchange.nnunet_reading import read_plans

    spec = read_spec(folders.spec_file(dataset))
    plan = read_plans(record.read_json(plans_file), spec, name=name, where=str(plans_file))
    return replace(plan, dataset=dataset)


def _to_nnunet(folds: Sequence[Path], target: Path, kind: "Kind") -> tuple[Path, ...]:
    from nnseg.exchange.nnunet_folder import export_models

    return export_models(_with_stages_before(folds, kind), target, kind)


def _to_onnx(folds: Sequence[Path], target: Path, kind: "Kind") -> tuple[Path, ...]:
    from nnseg.exchange.onnx import export_onnx

    configurations = sorted({fold.parent.name for fold in folds})
    if len(configurations) > 1:
        raise UsageError(
            f"{folds[0].parents[1]}: holds {', '.join(configurations)}; ONNX is written of one "
            "configuration: name its folder"
        )
    return export_onnx(folds, target, kind)


def _to_zip(folds: Sequence[Path], target: Path, kind: "Kind") -> tuple[Path, ...]:
    from nnseg.exchange.model_zip import pack_models

    return pack_models(_with_stages_before(folds, kind), target, kind, _raw_spec(folds[0], kind))


def _choice_to_zip(choice: Path, target: Path, kind: "Kind") -> tuple[Path, ...]:
    from nnseg.exchange.chosen import chosen_folds
    from nnseg.exchange.model_zip import pack_models

    folds = chosen_folds(choice, kind)
    return pack_models(folds, target, kind, _raw_spec(folds[0], kind), choice)


EXPORTERS = Registry[Exporter](
    "format to export models to", nnunet=_to_nnunet, onnx=_to_onnx, zip=_to_zip
)


@contextlib.contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Say where a folder that is to become `target` is to be made.

    An empty `target` stays, since not every folder can be replaced: one that a shell is in, that
    something is mounted on, or that lies where nobody may write. What is made within it moves up,
    the records last.
    """
    from nnseg.commit import cannot_write, remove, sync_folder, unfinished_path

    target = target.absolute()
    if not target.is_dir():
        yield target
        return
    new, moved = unfinished_path(target / "new"), []
    try:
        yield new
        try:
            for path in sorted(new.iterdir(), key=lambda path: (path.suffix == ".json", path.name)):
                moved.append(path.rename(target / path.name))
            sync_folder(target)
        except OSError as error:
            for path in moved:
                remove(path)
            raise cannot_write(target, error) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _check_free(target: Path) -> None:
    from nnseg.commit import sweep_orphans

    if target.is_dir() and not target.is_symlink():
        sweep_orphans(target)  # what is left of an import or export that was killed
    if target.is_symlink() or target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UsageError(f"{target} is there already; name a folder that is not, or an empty one")


def _choice_of(source: Path, kind: "Kind", to: str) -> Path | None:
    """Give the choice.json that is to be exported, None where models are.

    Raises:
        UsageError: It is one, and `to` knows no models that predict together.
    """
    from nnseg.exchange.chosen import find_choice_file, members_of

    choice = find_choice_file(source, kind, wanted=to == "zip")
    if choice is not None and to != "zip":
        raise UsageError(
            f"{choice}: is a choice, whose weights and rules {to} has no place for; export it --to "
            f"zip, or each member by itself: {members_of(choice)}"
        )
    return choice


def _folds_of(source: Path, kind: "Kind") -> tuple[Path, ...]:
    """Find the trained folds in a folder of a plan's models, of a configuration or of a fold."""
    from nnseg.folders import trained_configurations, trained_folds

    source = source.absolute()  # of a relative one, what lies beside it may have no name
    folders = trained_configurations(source, kind) or (source,)
    return tuple(fold for folder in folders for fold in trained_folds(folder, kind=kind))


def _raw_spec(fold: Path, kind: "Kind") -> "DatasetSpec | None":
    """Find the dataset.json of what a fold was trained on, in the raw/ beside its results/.

    None where it is not there, or its labels have become others.
    """
    from nnseg import record
    from nnseg.checkpoint import Checkpoint
    from nnseg.dataset import read_spec
    from nnseg.folders import Folders, checkpoint_file

    plan = record.load_sealed(Checkpoint, checkpoint_file(fold, kind)).plan
    above = fold.absolute().parents
    if len(above) < 5:
        return None
    results = above[3]
    try:
        folders = Folders.of_root(results.parent)
        spec = read_spec(folders.spec_file(plan.dataset))
    except NnsegError:
        return None
    return spec if folders.results == results and spec.labels == plan.labels else None


def _with_stages_before(folds: Sequence[Path], kind: "Kind") -> tuple[Path, ...]:
    """Add all trained folds of the stage before each cascade, unless some are there already."""
    from nnseg import record
    from nnseg.checkpoint import Checkpoint
    from nnseg.folders import checkpoint_file, trained_folds

    found = list(folds)
    first = {fold.parent: fold for fold in reversed(found)}
    for folder, fold in first.items():
        checkpoint = record.load_sealed(Checkpoint, checkpoint_file(fold, kind))
        previous = checkpoint.configuration.previous
        if previous is not None and folder.with_name(previous) not in first:
            command = f"nnseg train {checkpoint.plan.dataset} {previous}"
            found += trained_folds(folder.with_name(previous), kind=kind, made_by=command)
    return tuple(found)
