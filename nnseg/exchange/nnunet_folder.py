"""Folders and zips of nnU-Net v2's trained models to folders of ours, and back.

Theirs is TRAINER__PLANS__CONFIGURATION with plans.json, dataset.json and fold_N/checkpoint_*.pth;
a dataset's results, and the zip that nnU-Net exports, hold several. Ours is CONFIGURATION/fold_N
with checkpoint_*.json and safetensors. What a model is, its files say: no name is taken apart.
"""

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnseg import record
from nnseg.checkpoint import (
    Checkpoint,
    Kind,
    load_model,
    pack,
    save_weights,
)
from nnseg.commit import whole_file, whole_folder, write_whole
from nnseg.dataset import spec_to_json
from nnseg.errors import DataError, MissingError, UsageError
from nnseg.exchange.archive import Archive, file_of, list_archive
from nnseg.exchange.nnunet_model import (
    TRAINER,
    NnunetModel,
    dataset_of,
    read_checkpoint,
    read_dataset,
    write_checkpoint,
)
from nnseg.exchange.nnunet_names import NAME
from nnseg.exchange.nnunet_reading import read_plans
from nnseg.exchange.nnunet_writing import plans_name, plans_to_json
from nnseg.exchange.rules import find_rules
from nnseg.folders import checkpoint_file, fold_folder, postprocessing_file
from nnseg.plan import Plan
from nnseg.postprocess import Postprocessing

logger = logging.getLogger(__name__)

PLANS, DATASET = "plans.json", "dataset.json"
KINDS: tuple[Kind, ...] = ("final", "best")

_DEEPEST = 3  # folders around a model: those of a dataset, of results, and of whoever packed them
_FOLD = re.compile(r"fold_(\d+|all)")
_CHECKPOINT = re.compile(r"(?P<place>.*/|)(?P<fold>[^/]+)/checkpoint_(?P<kind>final|best)\.pth")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """One trained configuration of nnU-Net's, as its files lie."""

    archive: Archive
    place: str  # its folder in the archive, with a / at the end; "" is the archive itself
    checkpoints: dict[str, dict[Kind, str]]  # fold to kind to the file's name

    @property
    def where(self) -> str:
        """Its place, for messages."""
        return (
            self.archive.where(self.place.rstrip("/")) if self.place else str(self.archive.source)
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """The checkpoints, or the zip that they are in."""
        if self.archive.is_zip:
            return (self.archive.source,)
        return tuple(self.archive.source / file for _, _, file in self.each())

    def each(self) -> Iterator[tuple[str, Kind, str]]:
        """Go over its checkpoints: fold, kind, name of the file."""
        for fold, kinds in self.checkpoints.items():
            for kind in KINDS:
                if kind in kinds:
                    yield fold, kind, kinds[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedModel:
    """What became of a model."""

    plan: Plan
    configuration_name: str
    trainer: str
    checkpoints: dict[str, tuple[Kind, ...]]  # fold to the kinds that it has
    source: str


def find_models(source: Path) -> tuple[FoundModel, ...]:
    """Find nnU-Net's trained models in a folder or zip, or in folders of it.

    Raises:
        MissingError: There is nothing at `source`, or no trained model.
        DataError: It is no folder and no zip, or a zip that is damaged or not to be trusted.
    """
    files = (PLANS, DATASET, "fold_*/checkpoint_final.pth", "fold_*/checkpoint_best.pth")
    patterns = ["*/" * depth + file for depth in range(_DEEPEST + 1) for file in files]
    archive = list_archive(source, patterns)
    places: dict[str, dict[str, dict[Kind, str]]] = {}
    for name in archive.names:
        if not (found := _CHECKPOINT.fullmatch(name)):
            continue
        if not (fold := _FOLD.fullmatch(found["fold"])):
            logger.warning("%s: is no fold of nnU-Net's and is left out", archive.where(name))
            continue
        folds = places.setdefault(found["place"], {})
        folds.setdefault(fold[1], {})["final" if found["kind"] == "final" else "best"] = name
    if not places:
        raise MissingError(
            f"{source}: holds no trained model of nnU-Net v2; give the folder or zip that has "
            f"{PLANS}, {DATASET} and fold_0/checkpoint_final.pth"
        )
    for place in places:
        for file in (PLANS, DATASET):
            if place + file not in archive.names:
                raise MissingError(
                    f"{archive.where(place + file)} does not exist; nnU-Net writes it beside the "
                    "folds: copy it there, too"
                )
    return tuple(
        FoundModel(archive=archive, place=place, checkpoints=dict(sorted(folds.items())))
        for place, folds in sorted(places.items())
    )


def import_models(
    found: Sequence[FoundModel],
    target: Path | None,
    *,
    name: str | None = None,
    trainers: Collection[str] = (),
) -> tuple[ImportedModel, ...]:
    """Read models and write each as CONFIGURATION/fold_N below `target`, which is there.

    Args:
        found: All of one plan; of a cascade the stage before, too.
        target: A folder that nobody else looks into yet; None only reads and checks.
        name: Of the plan; None is what nnU-Net calls it.
        trainers: Classes of trainers that the user says change neither network nor prediction.

    Raises:
        DataError: A file is damaged, or the models or their folds are of different plans.
        PlanError: The plan names what nnseg has nothing for.
        UsageError: A trainer is unknown, or two models are of one configuration.
        MissingError: The stage before a cascade is not among them.
    """
    done: list[ImportedModel] = []
    for model in found:
        plan = _read_plan(model, name)
        if done and plan != done[0].plan:
            raise DataError(
                f"{model.where}: is of another plan than {done[0].source}; import each by itself, "
                "into a folder of its own"
            )
        imported = _import_one(model, plan, target, trainers)
        for other in done:
            if other.configuration_name == imported.configuration_name:
                way = "unpack it and " if model.archive.is_zip else ""
                raise UsageError(
                    f"{model.where}: is {other.configuration_name} like {other.source}; {way}name "
                    "the folder of the one to import"
                )
        done.append(imported)
    check_stages(done)
    return tuple(done)


def check_stages(models: Sequence[ImportedModel]) -> None:
    """Make sure that the stage before each cascade is among the models.

    Raises:
        MissingError: One is not.
    """
    names = {model.configuration_name for model in models}
    for model in models:
        previous = model.plan.configuration(model.configuration_name).previous
        if previous is not None and previous not in names:
            raise MissingError(
                f"{model.source}: is {model.configuration_name}, which starts from "
                f"{previous}; import both at once, from the folder that holds them"
            )


def export_models(folds: Sequence[Path], target: Path, kind: Kind) -> tuple[Path, ...]:
    """Write models of ours as a folder that nnU-Net predicts with.

    Of one configuration, `target` is the model's folder; of several, it holds one for each, as a
    dataset's results do. nnU-Net keeps no memory target, no decisions and no gaps between labels,
    and of median shapes whole voxels. Rules for label maps are copied, but it does not apply them.

    Args:
        folds: Folders of trained folds, all of one plan.
        target: Must not exist.
        kind: The checkpoint to take of each.

    Returns:
        The models' folders.

    Raises:
        MissingError: A fold has no such checkpoint.
        DataError: One is damaged, or two are of different plans or the same fold.
        PlanError: nnU-Net has nothing for a normalizer or network of the plan, or its images.
    """
    checkpoints = [
        record.load_sealed(Checkpoint, checkpoint_file(folder, kind), made_by="nnseg train")
        for folder in folds
    ]
    plan = checkpoints[0].plan
    for checkpoint, folder in zip(checkpoints, folds, strict=True):
        if checkpoint.plan != plan:
            raise DataError(f"{folder}: was trained from another plan than {folds[0]}")
    if plan.labels.has_gaps:
        logger.warning(
            "the labels of %s have gaps; nnU-Net knows none, so its label maps will hold %s",
            plan.dataset,
            ", ".join(
                f"{name} = {value}" for name, value in plan.labels.consecutive.labels.items()
            ),
        )
    configurations = list(dict.fromkeys(one.configuration_name for one in checkpoints))
    places = {
        name: f"{TRAINER}__{plans_name(plan)}__{name}" if len(configurations) > 1 else ""
        for name in configurations
    }
    rules = {
        one.configuration_name: find_rules(folder)
        for one, folder in zip(checkpoints, folds, strict=True)
    }
    with whole_folder(target) as unfinished:
        for configuration, place in places.items():
            _write_json(plans_to_json(plan), unfinished / place / PLANS)
            _write_json(spec_to_json(dataset_of(plan)), unfinished / place / DATASET)
            _copy_rules(rules[configuration], unfinished / place, target / place)
        for folder in folds:
            _export_fold(folder, unfinished, places, kind)
    return tuple(target / place for place in places.values())


def _export_fold(folder: Path, target: Path, places: Mapping[str, str], kind: Kind) -> None:
    checkpoint, weights = load_model(folder, kind)
    place = target / places[checkpoint.configuration_name] / f"fold_{checkpoint.fold}"
    file = place / f"checkpoint_{kind}.pth"
    if file.exists():
        raise DataError(
            f"{folder}: is fold {checkpoint.fold} of {checkpoint.configuration_name} like another "
            "one; nnU-Net has one of each: name the one to export"
        )
    with whole_file(file) as temporary:
        write_checkpoint(checkpoint, weights, temporary)


def _copy_rules(rules: tuple[Path, Postprocessing] | None, folder: Path, target: Path) -> None:
    """Lay rules for label maps beside a model: nnU-Net has them as a pickle only, and elsewhere."""
    if rules is None:
        return
    file, content = rules
    record.save(content, postprocessing_file(folder))
    logger.warning(
        "%s is not applied by nnU-Net: `nnseg predict` changes label maps by these rules, which "
        "lie in %s now, too",
        file,
        postprocessing_file(target),
    )


def _read_plan(model: FoundModel, name: str | None, needed: Collection[str] = ()) -> Plan:
    """Read the plan that nnU-Net would predict by: that of the two files beside the folds."""
    contents: dict[str, Any] = {}
    for file in (PLANS, DATASET):
        with file_of(model.archive, model.place + file) as path:
            try:
                contents[file] = record.read_json(path)
            except DataError as error:
                where = model.archive.where(model.place + file)
                raise DataError(str(error).replace(str(path), where)) from None
    spec = read_dataset(contents[DATASET], model.archive.where(model.place + DATASET))
    plans = contents[PLANS]
    theirs = plans.get("plans_name") if isinstance(plans, dict) else None
    called = name or (theirs if isinstance(theirs, str) else NAME)
    where = model.archive.where(model.place + PLANS)
    return read_plans(plans, spec, name=called, where=where, needed=needed)


def _import_one(
    model: FoundModel, plan: Plan, target: Path | None, trainers: Collection[str]
) -> ImportedModel:
    first: NnunetModel | None = None
    for fold, kind, file in model.each():
        where = model.archive.where(file)
        with file_of(model.archive, file) as path:
            theirs = read_checkpoint(path, where, trainers=trainers)
        if theirs.configuration_name not in plan.configurations:
            _read_plan(model, plan.name, needed=(theirs.configuration_name,))  # it says why
        _check_same(theirs, plan, where)
        first = first or theirs
        if theirs.configuration_name != first.configuration_name:
            raise DataError(
                f"{where}: is of {theirs.configuration_name}, another fold of "
                f"{first.configuration_name}; put each configuration into a folder of its own"
            )
        if target is not None:
            folder = fold_folder(target, theirs.configuration_name, fold)
            _write(folder, kind, theirs, plan, fold)
    assert first is not None, "a model is found by its checkpoints"
    return ImportedModel(
        plan=plan,
        configuration_name=first.configuration_name,
        trainer=first.trainer,
        checkpoints={
            fold: tuple(kind for kind in KINDS if kind in kinds)
            for fold, kinds in model.checkpoints.items()
        },
        source=model.where,
    )


def _check_same(theirs: NnunetModel, plan: Plan, where: str) -> None:
    """Refuse a checkpoint whose own plan is another one than `plan`, names and endings aside."""
    own, name = theirs.plan, theirs.configuration_name
    pairs = {
        f"configurations.{name}": (own.configuration(name), plan.configuration(name)),
        "transpose_forward": (own.order, plan.order),
        "the channels' intensities": (own.intensities, plan.intensities),
        "labels": (
            (tuple(own.labels.labels.values()), own.labels.regions_class_order),
            (tuple(plan.labels.labels.values()), plan.labels.regions_class_order),
        ),
    }
    for key, (trained, given) in pairs.items():
        if trained != given:
            raise DataError(
                f"{where}: was trained by other plans than those beside it, which differ in {key}; "
                f"restore {PLANS} and {DATASET}"
            )


def _write(folder: Path, kind: Kind, theirs: NnunetModel, plan: Plan, fold: str) -> None:
    file, digest = save_weights(folder, f"checkpoint_{kind}", pack(theirs.weights))
    checkpoint = Checkpoint(
        plan=plan,
        configuration_name=theirs.configuration_name,
        fold=fold,
        epoch=theirs.epoch,
        mirror_axes=theirs.mirror_axes,
        weights_file=file,
        weights_sha256=digest,
        validation_dice=theirs.validation_dice,
    )
    record.save_sealed(checkpoint, checkpoint_file(folder, kind))


def _write_json(data: Any, path: Path) -> None:
    write_whole(path, record.json_text(data).encode())
