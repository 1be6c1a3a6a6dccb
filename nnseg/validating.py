"""The end of stage 4, with its files: a fold's validation cases predicted whole and scored."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnseg import record
from nnseg.axes import Planes, Segmentation
from nnseg.cascade import out_of_fold
from nnseg.commit import remove
from nnseg.confidence import Observer
from nnseg.dataset import Case, find_training_cases, read_spec
from nnseg.errors import DataError, MissingError, StoppedError
from nnseg.evaluate import TOLERANCE_MM, CaseScores, Summary, score_case, summarize
from nnseg.folders import (
    Folders,
    checkpoint_file,
    compact_records,
    confidence_file,
    summary_file,
    validated_file,
    validation_folder,
)
from nnseg.lock import locked
from nnseg.parallel import OnProgress
from nnseg.planned_fold import PlannedFold, find_fold, open_cases
from nnseg.planning import DEFAULT_PLAN
from nnseg.probabilities import writing_compact
from nnseg.restore import axis_apart, restore
from nnseg.runlog import logged_run
from nnseg.scoring import write_summary
from nnseg.volume import Volume, grid_fault, read_image, read_segmentation, write

if TYPE_CHECKING:
    from nnseg.checkpoint import Kind
    from nnseg.inference import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """Which weights the scores of a validation folder are of."""

    weights_sha256: str


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
    grid and without the temperature of a calibration.
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
            return validate_with(about, model, checkpoint, seed, tolerance_mm, on_progress, stop)


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
    out = validation_folder(about.folder)
    out.mkdir(exist_ok=True)
    of_before = (validated_file(about.folder), summary_file(out), confidence_file(out))
    for path in (*of_before, *compact_records(out)):
        remove(path)  # they would be of other predictions until the end
    spec = read_spec(about.folders.spec_file(about.dataset))
    members = set(about.split.val)
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
    scored = []
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
    weights = Validated(weights_sha256=checkpoint["weights_sha256"])
    record.save(weights, validated_file(about.folder))
    return summary


def _predict(
    model: "Model",
    volume: Volume,
    previous: Segmentation | None,
    look: Callable[[Planes], None],
    target: Path,
) -> Segmentation:
    """Segment a case as `Model.predict` does; leave its compact probabilities beside `target`."""
    configuration, labels = model.configuration, model.plan.labels
    seen, placement = model.prepare(volume.image, volume.geometry.spacing, previous=previous)
    with writing_compact(
        target,
        labels,
        volume.geometry,
        placement,
        resampling=configuration.resample_logits,
        axis_apart=axis_apart(placement, configuration),
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


def is_validated(fold: Path) -> bool:
    """Say whether the scores that are there are those of the final weights."""
    try:
        proof = record.load(Validated, validated_file(fold))
        final = record.read_json(checkpoint_file(fold, "final"))
    except (DataError, MissingError):
        return False
    return summary_file(validation_folder(fold)).is_file() and (
        isinstance(final, dict) and final.get("weights_sha256") == proof.weights_sha256
    )


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
