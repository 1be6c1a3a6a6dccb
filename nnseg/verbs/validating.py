"""The end of stage 4, with its files: a fold's validation cases predicted whole and scored."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnseg import record
from nnseg.axes import Planes, Segmentation
from nnseg.commit import remove, sha256
from nnseg.dataset import Case, find_training_cases, read_spec
from nnseg.errors import DataError, MissingError, StoppedError
from nnseg.evaluate import TOLERANCE_MM, CaseScores, Summary, score_case, summarize
from nnseg.folders import (
    Folders,
    checkpoint_file,
    compact_files,
    compact_records,
    confidence_file,
    proof_file,
    summary_file,
    validated_file,
    validated_record,
    validation_folder,
)
from nnseg.lock import locked
from nnseg.parallel import OnProgress
from nnseg.probabilities import writing_compact
from nnseg.restore import axis_apart, restore
from nnseg.runlog import logged_run
from nnseg.scores.confidence import Observer
from nnseg.validated import (
    Validated,
    is_known,
    learnt_by,
    read_validated,
    retrain,
    why_not_held_out,
)
from nnseg.validated import is_validated as is_validated
from nnseg.verbs.cascade import out_of_fold
from nnseg.verbs.planned_fold import PlannedFold, find_fold, open_cases
from nnseg.verbs.planning import DEFAULT_PLAN
from nnseg.verbs.scoring import write_summary
from nnseg.volume import Volume, grid_fault, read_image, read_segmentation, side_files, write

if TYPE_CHECKING:
    from nnseg.checkpoint import Kind
    from nnseg.inference import Model

logger = logging.getLogger(__name__)


def validate(
    folders: Folders,
    dataset: str,
    configuration: str,
    fold: str,
    *,
    seed: int = 0,
    plan_name: str = DEFAULT_PLAN,
    checkpoint: "Kind" = "final",
    device: str | None = None,
    precision: str | None = None,
    tolerance_mm: float = TOLERANCE_MM,
    on_progress: OnProgress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Predict a fold's validation cases whole, and score them: fold_N/validation/summary.json.

    Beside each label map are left the probabilities that it follows from, compact, on the network's
    grid and without the temperature of a calibration. What a validation before left of cases that
    the fold does not hold out any more is removed.

    Raises:
        MissingError: The fold is not trained, or a file of the dataset is gone.
        DataError: The folds have changed so that the network was trained on such a case; or a file
            is damaged.
        StoppedError: `stop` said so; the scores are gone, the same command does it anew.
    """
    from nnseg.inference import load_model

    folder = folders.fold(dataset, plan_name, configuration, fold, seed)
    if not folder.is_dir():
        raise MissingError(
            f"{folder} does not exist; `nnseg train {dataset} {configuration} {fold}` makes it"
        )
    about = find_fold(folders, dataset, plan_name, configuration, fold, seed)
    with locked(folder, f"nnseg train {dataset} {configuration} {fold} --val"):
        model = load_model((folder,), checkpoint, device=device, precision=precision, alone=True)
        out, arguments = validation_folder(folder), {"checkpoint": checkpoint}
        with logged_run(out, "validate", arguments, stop=stop) as run:
            run.facts["execution"] = asdict(model.execution)
            run.outputs += scores_of(out)
            return validate_with(about, model, checkpoint, seed, tolerance_mm, on_progress, stop)


def scores_of(validation: Path) -> list[Path]:
    """List what a validation leaves in its folder besides label maps and probabilities."""
    return [validated_record(validation), summary_file(validation), confidence_file(validation)]


def validate_with(
    about: PlannedFold,
    model: "Model",
    kind: "Kind",
    seed: int,
    tolerance_mm: float,
    on_progress: OnProgress | None,
    stop: Callable[[], bool],
) -> Summary:
    """Do the work of `validate`; the caller holds the lock of the fold's folder."""
    labels = model.plan.labels
    _check_held_out(about, seed)
    out, members = validation_folder(about.folder), set(about.split.val)
    _make_room(about.folder, members, model.spec.label_ending)
    spec = read_spec(about.folders.spec_file(about.dataset))
    cases = [
        case
        for case in find_training_cases(about.folders, about.dataset, spec)
        if case.case_id in members
    ]
    previous = out_of_fold(
        about.folders,
        about.dataset,
        about.plan_name,
        about.plan,
        about.configuration,
        members,
        seed=seed,
        device=model.execution.device,
        on_progress=on_progress,
        in_memory=False,
        stop=stop,
    )
    scored, written = [], list[Path]()
    observer = Observer(labels, len(cases))
    for number, case in enumerate(cases):
        if stop():
            raise StoppedError("stopped in the validation; the same command does it anew")
        volume, reference = _read_case(case, len(model.plan.channels))
        target = out / f"{case.case_id}{model.spec.label_ending}"
        segmentation = _predict(
            model,
            volume,
            None if previous is None else previous[case.case_id][...],
            observer.watch(_preprocessed_reference(about, case.case_id)),
            target,
        )
        write(target, segmentation, volume.geometry, labels.as_text)
        written.append(target)
        scored.append(
            CaseScores(
                case_id=case.case_id,
                reference_file=str(case.label),
                prediction_file=str(target),
                scores=score_case(
                    segmentation,
                    reference,
                    labels,
                    volume.geometry.spacing,
                    tolerance_mm=tolerance_mm,
                ),
            )
        )
        dice = [score.dice for score in scored[-1].scores.values() if score.dice is not None]
        observer.note(math.fsum(dice) / len(dice) if dice else None)
        if on_progress:
            on_progress("validating", number + 1, len(cases))
    record.save(observer.result(), confidence_file(out))
    summary = summarize(scored, labels, tolerance_mm=tolerance_mm)
    write_summary(out, summary, labels)
    checkpoint = record.read_json(checkpoint_file(about.folder, kind))
    proof = Validated(
        weights_sha256=checkpoint["weights_sha256"],
        cases=tuple(sorted(case.case_id for case in cases)),
        trained_on=_trained_on(about.folder),
        summary_sha256=sha256(summary_file(out)),
        maps_sha256={path.name: sha256(path) for path in written},
    )
    record.save_sealed(proof, validated_file(about.folder))
    return summary


def _check_held_out(about: PlannedFold, seed: int) -> None:
    """Refuse to validate by cases that the network was trained on; fold `all` has no others.

    Raises:
        DataError: The folds have changed since the training, so that it was.
    """
    if about.fold == "all":
        return
    if fault := why_not_held_out(about.folder, about.split.val, about.split):
        again = retrain(about.dataset, about.plan_name, about.configuration.name, about.fold, seed)
        raise DataError(f"{about.folder}: {fault}, so that its scores would mean nothing; {again}")
    if not is_known(about.folder):
        logger.warning(
            "%s: no record says which cases its network was trained on; that today's folds are "
            "those of then is taken for granted",
            about.folder,
        )


def _make_room(fold: Path, members: set[str], ending: str) -> None:
    """Remove what a validation before left that is not of today's cases, and all of its records.

    What was listed as ours then is listed on until the end, so that a kill forgets none of it.
    """
    out, before = validation_folder(fold), read_validated(fold)
    listed = set[str]()
    if before is not None:
        listed = _scored_before(out, ending) if before.cases is None else set(before.cases)
    out.mkdir(exist_ok=True)
    under_way = Validated(
        weights_sha256="", cases=tuple(sorted(listed | members)), trained_on=_trained_on(fold)
    )
    record.save_sealed(under_way, validated_file(fold))
    for path in (summary_file(out), confidence_file(out), *compact_records(out)):
        remove(path)  # they would be of other predictions until the end
    for case_id in sorted(listed - members):
        target = out / f"{case_id}{ending}"
        for path in (*compact_files(target), proof_file(target), *side_files(target), target):
            remove(path)


def _trained_on(fold: Path) -> tuple[str, ...] | None:
    learnt = learnt_by(fold).cases
    return None if learnt is None else tuple(sorted(learnt))


def _scored_before(out: Path, ending: str) -> set[str]:
    """List the cases whose label maps in a folder its scores are of, as older versions left it."""
    try:
        summary = record.read_json(summary_file(out), most=record.LARGE_BYTES)
        files = [Path(case["prediction_file"]) for case in summary["metric_per_case"]]
    except (DataError, MissingError, KeyError, TypeError):
        return set()
    names = [path.name for path in files if path.parent.name == out.name]
    return {name.removesuffix(ending) for name in names if name.endswith(ending)}


def _predict(
    model: "Model",
    volume: Volume,
    previous: Segmentation | None,
    look: Callable[[Planes], None],
    target: Path,
) -> Segmentation:
    """Segment a case as `Model.predict` does; leave its compact probabilities beside `target`."""
    configuration, labels = model.configuration, model.plan.labels
    seen, placement = model.prepare(tuple(volume.image), volume.geometry.spacing, previous=previous)
    with writing_compact(
        target,
        labels,
        volume.geometry,
        placement,
        resampling=configuration.resample_logits,
        axis_apart=axis_apart(placement, configuration),
        weights_sha256=model.weights_sha256[0],
    ) as take:
        runs = _shown(model.logits(seen), look, take)
        segmentation = restore(runs, placement, labels, configuration)
        for _ in runs:  # planes at the end that no voxel of the file is made of
            pass
    return segmentation


def _shown(runs: Iterable[Planes], *looks: Callable[[Planes], None]) -> Iterator[Planes]:
    for planes in runs:
        for look in looks:
            look(planes)
        yield planes


def _preprocessed_reference(about: PlannedFold, case_id: str) -> Segmentation | None:
    """Give the label positions of a preprocessed case, None where it is not kept any more."""
    try:
        stored = open_cases(about, [case_id], in_memory=False)[case_id]
    except (DataError, MissingError):
        return None
    return np.asarray(stored.segmentation[...])


def _read_case(case: Case, channels: int) -> tuple[Volume, Segmentation]:
    """Read a labelled case: its volume and its label map, which must lie on the same grid."""
    volume = read_image(case.images, channels)
    assert case.label is not None, "training cases have one"
    segmentation, geometry = read_segmentation(case.label)
    if fault := grid_fault(volume.geometry, geometry):
        raise DataError(f"{case.label}: lies on another grid than the image: {fault}")
    return volume, segmentation
