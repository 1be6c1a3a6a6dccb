"""Choosing with its files: out-of-fold predictions compared, and choice.json written."""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from nnseg import record
from nnseg.averaging import label_map
from nnseg.axes import Segmentation, Spacing
from nnseg.choose import Candidate, Choice, Choosing
from nnseg.errors import DataError, MissingError, StoppedError
from nnseg.estimate import FLOAT_BYTES, READ_BYTES, bytes_to_read, room_for, workers_for
from nnseg.folders import Folders, checkpoint_file, validated_file
from nnseg.lock import locked
from nnseg.parallel import OnProgress, for_each
from nnseg.postprocess.table import ComponentTable, component_table
from nnseg.probabilities.compact import OpenCompact, open_compact
from nnseg.ranking import Evidence, choose
from nnseg.runlog import logged_run
from nnseg.validated import load_validated
from nnseg.verbs.planning import DEFAULT_PLAN
from nnseg.verbs.surveying import Survey, survey
from nnseg.volume import Geometry, grid_fault, read_segmentation

logger = logging.getLogger(__name__)

AVERAGING_BYTES = 2**28  # that a case takes while its probabilities are averaged, at most
COUNTING_BYTES = 20  # a voxel, of two label maps and of what their components are counted by


def find_best(
    folders: Folders,
    dataset: str,
    *,
    plans: Sequence[str] = (DEFAULT_PLAN,),
    configurations: Sequence[str] = (),
    folds: Sequence[str] = (),
    seeds: Sequence[int] = (),
    most_members: int = 2,
    weights: bool = False,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Choosing:
    """Choose the model, or the models together, that did best in cases they were not trained on.

    What is compared `survey` says, and by what rule `choose`. The reference of a case is read once,
    and the probabilities of models that may predict together are averaged once for all rules; no
    image is written.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        plans: As for `survey`, like the arguments up to `weights`.
        configurations: Of these plans; none are all that are trained.
        folds: Numbers of folds; none are all that every configuration has.
        seeds: Of the trainings that are compared; none are all that are there.
        most_members: How many models may predict together; 1 compares them one by one.
        weights: Whether one of several models may count twice.
        workers: Cases at once; None is one a core where they are large.
        on_progress: Called after each case, and then with each candidate.
        stop: Asked often.

    Returns:
        What results/DATASET/choosing.json then holds; choice.json beside it is for `nnseg predict`.

    Raises:
        MissingError: As `survey`.
        DataError: As `survey`; or a file is damaged or lies on another grid than its reference.
        UsageError: An argument cannot be meant.
        StoppedError: `stop` said True; nothing was written.
    """
    compared = {
        "plans": list(plans),
        "configurations": list(configurations),
        "folds": list(folds),
        "seeds": list(seeds),
        "most_members": most_members,
        "weights": weights,
    }
    folder = folders.models_folder(dataset)
    found = survey(
        folders,
        dataset,
        plans=plans,
        configurations=configurations,
        folds=folds,
        seeds=seeds,
        most_members=most_members,
        weights=weights,
    )
    with (
        locked(folder, f"nnseg find-best {dataset}"),
        logged_run(folder, "find-best", {"dataset": dataset, **compared}, stop=stop) as run,
    ):
        logger.info("%s", found)
        before = _weights(found, folder)
        evidence = _gather(found, workers, on_progress, stop)
        chosen = choose(dataset, found.candidates, evidence, on_progress=on_progress, stop=stop)
        if _weights(found, folder) != before:
            raise DataError(f"{folder}: a fold was validated anew meanwhile; run this again")
        chosen = replace(chosen, notes=found.notes, weights_sha256=before)
        record.save(chosen, folders.choosing_file(dataset))
        record.save(chosen.choice, folders.choice_file(dataset))
        run.inputs += [validated_file(fold) for fold in found.fold_folders]
        run.outputs += [folders.choosing_file(dataset), folders.choice_file(dataset)]
        run.facts |= {"chosen": chosen.chosen, "notes": list(found.notes)}
    return chosen


def find_choice(folders: Folders, dataset: str) -> Path:
    """Give the choice.json of a dataset; a warning where it is not what would be chosen now.

    That is where a fold was trained anew since then, or where choosing.json, which is written
    first, says that another one was chosen: the run was cut off between the two.

    Raises:
        MissingError: There is none.
    """
    file = folders.choice_file(dataset)
    if not file.is_file():
        raise MissingError(
            f"{file} does not exist; `nnseg find-best {dataset}` writes it, or name a trained "
            "configuration: -c CONFIGURATION"
        )
    try:
        found = record.load(Choosing, folders.choosing_file(dataset))
    except MissingError:  # without what was found out nobody can tell
        return file
    except DataError as error:
        logger.warning("%s; whether %s is still right cannot be told", error, file)
        return file
    with suppress(DataError):  # who predicts with it says so
        if record.load(Choice, file) != found.choice:
            logger.warning(
                "%s is not the choice that %s tells of: a run was cut off, or somebody edited one; "
                "`nnseg find-best %s` makes both anew",
                file,
                folders.choosing_file(dataset),
                dataset,
            )
    for name, weights in found.weights_sha256.items():
        with suppress(MissingError, DataError):  # as above: one that is missing hides no other
            final = record.read_json(
                checkpoint_file(folders.models_folder(dataset) / name, "final")
            )
            if isinstance(final, dict) and final.get("weights_sha256") != weights:
                logger.warning(
                    "%s was trained anew since %s was chosen; `nnseg find-best %s` chooses again",
                    name,
                    found.chosen,
                    dataset,
                )
    return file


@dataclass(frozen=True, slots=True, kw_only=True)
class _CaseEvidence:
    """What each candidate found in a case."""

    spacing: Spacing
    is_flat: bool  # a picture, whose distance of slices is made up
    tables: dict[str, ComponentTable]


def _gather(
    found: Survey,
    workers: int | None,
    on_progress: OnProgress | None,
    stop: Callable[[], bool],
) -> Evidence:
    """Count what each candidate found in each case, several cases at once."""
    needs = {case_id: _bytes_of(found, path) for case_id, path in found.references.items()}
    counted = for_each(
        lambda case_id: _count(found, case_id, stop),
        list(found.cases),
        str,
        workers_for(needs, workers),
        "comparing",
        on_progress,
        room_for(needs),
    )
    return Evidence(
        labels=found.spec.labels,
        folds=found.cases,
        spacings={case_id: one.spacing for case_id, one in counted.items()},
        tables={
            candidate.name: {
                case_id: one.tables[candidate.name] for case_id, one in counted.items()
            }
            for candidate in found.candidates
        },
        unit="voxels" if all(one.is_flat for one in counted.values()) else "ml",
    )


def _bytes_of(found: Survey, reference: Path) -> int:
    """Foretell the most bytes that counting takes, and a slab to average.

    A voxel of the reference takes a byte of its unpacked file, or more.
    """
    read = bytes_to_read([reference])
    together = max(len(candidate.members) for candidate in found.candidates)
    logits = FLOAT_BYTES * found.spec.labels.heads * together * read // READ_BYTES
    averaging = min(AVERAGING_BYTES, logits) if together > 1 else 0
    return COUNTING_BYTES * read // READ_BYTES + averaging


def _count(found: Survey, case_id: str, stop: Callable[[], bool]) -> _CaseEvidence:
    """Count what each candidate found in a case."""
    reference, geometry = read_segmentation(found.references[case_id])
    labels, opened = found.spec.labels, dict[str, OpenCompact]()
    tables = {}

    def ask() -> None:
        if stop():
            raise StoppedError(
                "stopped while comparing; nothing was written, the same command does it anew"
            )

    for candidate in found.candidates:
        ask()
        predicted = _predicted(found, candidate, case_id, geometry, opened, ask)
        try:
            tables[candidate.name] = component_table(predicted, reference, labels)
        except DataError as error:
            raise DataError(f"{candidate.name}: {error}") from None
    return _CaseEvidence(spacing=geometry.spacing, is_flat=geometry.dimensions == 2, tables=tables)


def _predicted(
    found: Survey,
    candidate: Candidate,
    case_id: str,
    geometry: Geometry,
    opened: dict[str, OpenCompact],
    ask: Callable[[], None],
) -> Segmentation:
    """Give the label map of a candidate: a model's own, or that of averaged probabilities.

    Args:
        found: What is compared.
        candidate: Of it.
        case_id: Of it.
        geometry: The reference's, on which the label map must lie.
        opened: The probabilities of models that were opened before, which more are put into.
        ask: Called often; what it raises ends the work.

    Raises:
        DataError: A file is damaged or lies on another grid; the command that makes it anew.
    """
    for member in candidate.members:
        name = found.model_of(member)
        path = found.map_file(name, case_id)
        remedy = found.models[name].command(found.cases[case_id], validate=True)
        try:
            if len(candidate.members) == 1:
                segmentation, other = read_segmentation(path)
            else:
                opened[name] = opened.get(name) or open_compact(path)
                other = opened[name].stored.geometry
        except (DataError, MissingError) as error:
            raise DataError(f"{error} ({remedy} makes it anew)") from None
        if fault := grid_fault(geometry, other):
            raise DataError(
                f"{path}: lies on another grid than {found.references[case_id]}: {fault}; {remedy} "
                "makes it anew"
            )
    if len(candidate.members) == 1:
        return segmentation
    names = [found.model_of(member) for member in candidate.members]
    weights = [member.weight for member in candidate.members]
    members = [(opened[name], weight) for name, weight in zip(names, weights, strict=True)]
    return label_map(members, ask=ask)


def _weights(found: Survey, folder: Path) -> dict[str, str]:
    """Give the hash of the weights that the predictions of each fold are of, by its folder."""
    return {
        fold.relative_to(folder).as_posix(): load_validated(
            validated_file(fold), "nnseg train DATASET CONFIGURATION FOLD --val"
        ).weights_sha256
        for fold in found.fold_folders
    }
