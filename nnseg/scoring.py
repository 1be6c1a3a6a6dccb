"""Stage 6 with its files: folders of predictions scored, and their summary.json."""

import os
from pathlib import Path

from nnseg import commit, record
from nnseg.dataset import DatasetSpec, read_spec
from nnseg.errors import DataError, MachineError, MissingError
from nnseg.evaluate import (
    TOLERANCE_MM,
    CaseScores,
    Summary,
    from_nnunet,
    score_case,
    summarize,
    to_nnunet,
)
from nnseg.folders import checkpoint_file, predicted_spec_file, summary_file, validation_folder
from nnseg.jobs import ScoringJob, find_scoring_jobs
from nnseg.labels import Labels
from nnseg.parallel import OnProgress, for_each
from nnseg.runlog import logged_run
from nnseg.volume import grid_fault, read_segmentation


def evaluate(
    reference: Path,
    prediction: Path,
    labels: Labels,
    file_ending: str,
    *,
    tolerance_mm: float = TOLERANCE_MM,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Summary:
    """Stage 6: score the label maps of a folder, or one; write summary.json beside them.

    Raises:
        DataError: A prediction lacks its reference, lies on another grid, or cannot be read.
    """
    jobs = find_scoring_jobs(reference, prediction, file_ending)
    folder = prediction if prediction.is_dir() else prediction.parent
    if not os.access(folder, os.W_OK):
        raise MachineError(f"{folder} cannot be written; its summary.json goes there: copy it")

    def score(job: ScoringJob) -> CaseScores:
        truth, geometry = read_segmentation(job.reference)
        predicted, other = read_segmentation(job.prediction)
        if fault := grid_fault(geometry, other):
            raise DataError(
                f"{job.prediction} lies on another grid than {job.reference}: {fault}; predict "
                "again"
            )
        return CaseScores(
            case_id=job.case_id,
            reference_file=str(job.reference),
            prediction_file=str(job.prediction),
            scores=score_case(
                predicted, truth, labels, geometry.spacing, tolerance_mm=tolerance_mm
            ),
        )

    arguments = {"reference": str(reference), "prediction": str(prediction)}
    with logged_run(folder, "evaluate", arguments | {"tolerance_mm": tolerance_mm}) as run:
        scored = for_each(score, jobs, lambda job: job.case_id, workers, "scoring", on_progress)
        result = summarize([scored[job.case_id] for job in jobs], labels, tolerance_mm=tolerance_mm)
        write_summary(folder, result, labels)
        run.inputs += [path for job in jobs for path in (job.reference, job.prediction)]
        run.outputs.append(summary_file(folder))
    return result


def spec_for_evaluation(
    reference: Path, prediction: Path, dataset_json: Path | None
) -> DatasetSpec:
    """Find the dataset.json that names the labels of two folders, or two files."""
    if dataset_json is not None:
        return read_spec(dataset_json)
    here = prediction if prediction.is_dir() else prediction.parent
    above = (reference if reference.is_dir() else reference.parent).parent
    for path in (predicted_spec_file(here), predicted_spec_file(above)):
        if path.is_file():
            return read_spec(path)
    raise MissingError(
        f"neither {here} nor {above} has a dataset.json that names the labels; give one by "
        "--dataset-json"
    )


def read_summary(folder: Path, labels: Labels) -> Summary:
    """Read the summary.json that an evaluation wrote into `folder`."""
    path = summary_file(folder)
    return from_nnunet(record.read_json(path, "nnseg evaluate"), labels, str(path))


def write_summary(folder: Path, summary: Summary, labels: Labels) -> None:
    """Write the scores of a folder of predictions as its summary.json."""
    text = record.json_text(to_nnunet(summary, labels))
    commit.write_whole(summary_file(folder), text.encode())


def validation_summary(fold_folder: Path) -> Summary:
    """Read the scores of a trained fold's validation cases."""
    from nnseg.checkpoint import Checkpoint

    checkpoint = record.load(Checkpoint, checkpoint_file(fold_folder, "final"), "nnseg train")
    return read_summary(validation_folder(fold_folder), checkpoint.plan.labels)
