"""Stage 6 with its files: folders of label maps scored, and their summary.json."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnseg import commit, record
from nnseg.axes import Segmentation
from nnseg.dataset import DatasetSpec, read_spec, visible_files
from nnseg.errors import DataError, MachineError, MissingError, NnsegError, UsageError
from nnseg.evaluate import (
    TOLERANCE_MM,
    CaseScores,
    Confidence,
    Summary,
    check_tolerance,
    score_case,
    summarize,
)
from nnseg.folders import (
    Folders,
    checkpoint_file,
    predicted_spec_file,
    summary_file,
    validated_record,
    validation_folder,
)
from nnseg.jobs import ScoringJob, find_scoring_jobs, find_unpredicted
from nnseg.labels import BACKGROUND, Labels
from nnseg.parallel import NO_BOUND, OnProgress, Room, for_each, some
from nnseg.predicted_folder import alone
from nnseg.runlog import logged_run
from nnseg.scores.summary_json import from_nnunet, to_nnunet
from nnseg.volume import grid_fault, label_ending, read_segmentation, split_ending

logger = logging.getLogger(__name__)

SMALL_FILE = 2**16  # bytes on average up to which threads would wait for each other


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is measured besides overlap, and how cases are grouped.

    Raises:
        UsageError: A number or the expression cannot be meant.
    """

    surface: bool = True
    tolerance_mm: float = TOLERANCE_MM
    match_iou: float | None = None  # from which on a lesion is found; None: no detection
    group_regex: str | None = None  # its first group, found in a case's id, names the case's group

    def __post_init__(self) -> None:
        check_tolerance(self.tolerance_mm)
        if self.match_iou is not None and not 0 < self.match_iou <= 1:
            raise UsageError(f"match_iou is {self.match_iou}; give a share over 0 and at most 1")
        if self.group_regex is not None:
            from nnseg.dataset.groups import GroupRule  # few ask for it

            GroupRule(regex=self.group_regex)


PLAIN = Wanted()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What an evaluation would score, and the file that takes the scores."""

    jobs: tuple[ScoringJob, ...]
    missing: tuple[str, ...]  # references without a prediction
    groups: dict[str, tuple[str, ...]]
    labels: Labels
    target: Path | None  # None: nothing is written

    def __str__(self) -> str:
        lines = [f"scores {some(job.case_id for job in self.jobs)}"]
        if self.missing:
            lines.append(f"not predicted: {some(self.missing)}")
        lines.append(f"labels: {', '.join(self.labels.foreground)}")
        if self.groups:
            lines.append(f"groups: {', '.join(self.groups)}")
        lines.append(f"writes {self.target or 'nothing; -o names a file'}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Give what would be scored as plain JSON values."""
        return {
            "cases": [job.case_id for job in self.jobs],
            "missing_predictions": list(self.missing),
            "labels": list(self.labels.foreground),
            "groups": {name: list(members) for name, members in self.groups.items()},
            "target": None if self.target is None else str(self.target),
            "written": False,
        }


def find_evaluation(
    reference: Path,
    prediction: Path,
    labels: Labels,
    file_ending: str,
    *,
    wanted: Wanted = PLAIN,
    output: Path | None = None,
) -> Evaluation:
    """Say what `evaluate` would score, and where its scores would go; nothing is written.

    Raises:
        UsageError: The scores would replace those of a fold's validation.
        DataError: A prediction lacks its reference, or there is none.
    """
    jobs = find_scoring_jobs(reference, prediction, file_ending)
    target = None if prediction.is_file() else summary_file(prediction)
    if output is not None:
        target = output if output.suffix == ".json" else summary_file(output)
    if (
        target is not None
        and target == summary_file(target.parent)
        and validated_record(target.parent).is_file()
    ):
        raise UsageError(
            f"{target} has the scores of a fold's validation, which find-best and the report need; "
            "give another file or folder by -o"
        )
    groups = {}
    if wanted.group_regex is not None:
        groups = group_cases([job.case_id for job in jobs], wanted.group_regex)
    return Evaluation(
        jobs=jobs,
        missing=find_unpredicted(reference, jobs, file_ending),
        groups=groups,
        labels=labels,
        target=target,
    )


def evaluate(
    reference: Path,
    prediction: Path,
    labels: Labels,
    file_ending: str,
    *,
    wanted: Wanted = PLAIN,
    output: Path | None = None,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Summary:
    """Stage 6: score the label maps of a folder and write summary.json there, or score one.

    Where probabilities lie beside a prediction, as a fold's validation leaves them or
    `nnseg predict --save_probabilities chunks`, the components that are looked at have confidences.
    References without a prediction are in no mean; `Summary.missing` and summary.json name them.

    Args:
        reference: The true label maps: a folder, or one.
        prediction: Those to score, likewise.
        labels: What their integers mean.
        file_ending: How the predictions end, as dataset.json says.
        wanted: What is measured besides overlap, and how cases are grouped.
        output: What takes the scores: a .json file, or the folder of summary.json. None is the
            folder of the predictions; the scores of a single file are written nowhere then.
        workers: Cases at once; None is one a core, and one alone where cases are quickly done.
        on_progress: Called after each case.

    Raises:
        UsageError: Something of what is wanted cannot be meant, or the scores would replace those
            of a fold's validation.
        DataError: A prediction lacks its reference, lies on another grid, or cannot be read.
        MachineError: The folder of the scores cannot be written, or another run is at work there.
    """
    found = find_evaluation(
        reference, prediction, labels, file_ending, wanted=wanted, output=output
    )
    target = found.target
    if target is None:
        return score_jobs(found, wanted, workers, on_progress)
    arguments = {"reference": str(reference), "prediction": str(prediction)}
    folder = target.parent
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise MachineError(f"{folder} cannot be written; give a place for the scores by -o")
    with (
        alone(folder, "evaluate", f"nnseg evaluate {reference} {prediction} -o {target}"),
        logged_run(folder, "evaluate", arguments | asdict(wanted)) as run,
    ):
        result = score_jobs(found, wanted, workers, on_progress)
        commit.write_whole(target, record.json_text(to_nnunet(result, labels)).encode())
        files = [path for job in found.jobs for path in (job.reference, job.prediction)]
        run.inputs += [path.absolute() for path in files]
        run.outputs.append(target.absolute())
        run.cases |= dict.fromkeys((job.case_id for job in found.jobs), "done")
        run.cases |= dict.fromkeys(found.missing, "not predicted")
    return result


def evaluate_test_set(
    folders: Folders,
    dataset: str,
    prediction: Path | None = None,
    *,
    wanted: Wanted = PLAIN,
    output: Path | None = None,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Summary:
    """Score predictions of a dataset's imagesTs against its labelsTs.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        prediction: The folder of the predictions; None is `folders.test_predictions`.
        wanted: As of `evaluate`.
        output: Likewise.
        workers: Likewise.
        on_progress: Likewise.

    Raises:
        MissingError: The dataset has no labelsTs, or there are no predictions.
        DataError: As of `evaluate`.
    """
    truth, prediction, spec = find_test_set(folders, dataset, prediction)
    return evaluate(
        truth,
        prediction,
        spec.labels,
        spec.file_ending,
        wanted=wanted,
        output=output,
        workers=workers,
        on_progress=on_progress,
    )


def find_test_set(
    folders: Folders, dataset: str, prediction: Path | None = None
) -> tuple[Path, Path, DatasetSpec]:
    """Give the true label maps of a dataset's test set, the predictions, and what names them.

    Raises:
        MissingError: The dataset has no labelsTs, or there are no predictions.
    """
    truth = folders.test_labels(dataset)
    prediction = prediction or folders.test_predictions(dataset)
    spec = read_spec(folders.spec_file(dataset))
    if not truth.is_dir():
        raise MissingError(
            f"{truth} does not exist; put the label maps of the test images there, or give two "
            "folders"
        )
    if not prediction.is_dir():
        raise MissingError(
            f"{prediction} does not exist; `nnseg predict -i {folders.test_images(dataset)} "
            f"-o {prediction} -d {dataset}` writes it"
        )
    return truth, prediction, spec


def spec_for_evaluation(
    reference: Path, prediction: Path, dataset_json: Path | None
) -> DatasetSpec:
    """Find the dataset.json that names the labels of two folders, or two files.

    Raises:
        DataError: Those of the predictions and of the references contradict each other.
        MissingError: There is none.
    """
    if dataset_json is not None:
        return read_spec(dataset_json)
    here = prediction if prediction.is_dir() else prediction.parent
    above = (reference if reference.is_dir() else reference.parent).parent
    own, other = predicted_spec_file(here), predicted_spec_file(above)
    if not (own.is_file() or other.is_file()):
        raise MissingError(
            f"neither {here} nor {above} has a dataset.json that names the labels; give one by "
            "--dataset-json, or the labels by --labels"
        )
    if not own.is_file():
        return read_spec(other)
    spec = read_spec(own)
    if other.is_file() and not other.samefile(own):
        try:
            labels = read_spec(other).labels
        except NnsegError as error:
            logger.warning("%s; the labels are those of %s alone", error, own)
        else:
            if labels != spec.labels:
                raise DataError(
                    f"{own} says that the labels are {spec.labels.labels}, and {other} "
                    f"{labels.labels}; name them by --dataset-json or --labels"
                )
    return spec


def spec_of_labels(
    prediction: Path, labels: Mapping[str, int | tuple[int, ...]], ignore: int | None = None
) -> DatasetSpec:
    """Describe label maps that no dataset.json describes.

    Args:
        prediction: The folder of the predictions, or one; how they end is seen there.
        labels: Integers by name, several of a region; the background is added.
        ignore: The integer of voxels that nobody annotated.

    Raises:
        DataError: The labels cannot be meant, or the files end in several ways.
    """
    names: dict[str, int | tuple[int, ...]] = {BACKGROUND: 0, **labels}
    if ignore is not None:
        names["ignore"] = ignore
    regions = any(isinstance(value, tuple) and len(value) > 1 for value in labels.values())
    firsts = (value[0] if isinstance(value, tuple) else value for value in labels.values())
    files = visible_files(prediction) if prediction.is_dir() else [prediction]
    endings = sorted({ending for path in files if (ending := split_ending(path.name)[1])})
    if len(endings) != 1:
        found = ", ".join(endings) or "none that is known"
        raise DataError(f"{prediction}: label maps end in {found}; keep those of one ending there")
    return DatasetSpec(
        channels=("image",),
        labels=Labels(labels=names, regions_class_order=tuple(firsts) if regions else None),
        num_training=0,
        file_ending=label_ending(endings[0]),
    )


def read_summary(folder: Path, labels: Labels) -> Summary:
    """Read the summary.json that an evaluation wrote into `folder`."""
    path = summary_file(folder)
    data = record.read_json(path, "nnseg evaluate", most=record.LARGE_BYTES)
    return from_nnunet(data, labels, str(path))


def write_summary(folder: Path, summary: Summary, labels: Labels) -> None:
    """Write the scores of a folder of predictions as its summary.json."""
    text = record.json_text(to_nnunet(summary, labels))
    commit.write_whole(summary_file(folder), text.encode())


def validation_summary(fold_folder: Path) -> Summary:
    """Read the scores of a trained fold's validation cases."""
    from nnseg.checkpoint import Checkpoint

    checkpoint = record.load(Checkpoint, checkpoint_file(fold_folder, "final"), "nnseg train")
    return read_summary(validation_folder(fold_folder), checkpoint.plan.labels)


def score_jobs(
    found: Evaluation,
    wanted: Wanted,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Summary:
    """Score what `find_evaluation` found; nothing is written."""
    jobs, labels = found.jobs, found.labels
    if found.missing:
        total = len(jobs) + len(found.missing)
        logger.warning("not predicted, of %d references: %s", total, some(found.missing))

    def score(job: ScoringJob) -> CaseScores:
        truth, geometry = read_segmentation(job.reference)
        predicted, other = read_segmentation(job.prediction)
        # most headers are alike to the last bit, and their corners needn't be looked for then
        if geometry != other and (fault := grid_fault(geometry, other)):
            raise DataError(
                f"{job.prediction} lies on another grid than {job.reference}: {fault}; predict "
                "again"
            )
        return CaseScores(
            case_id=job.case_id,
            reference_file=str(job.reference),
            prediction_file=str(job.prediction),
            scores=score_case(
                predicted,
                truth,
                labels,
                geometry.spacing,
                tolerance_mm=wanted.tolerance_mm,
                surface=wanted.surface,
                match_iou=wanted.match_iou,
                confidence=_confidence(job, predicted, labels) if wanted.match_iou else None,
            ),
        )

    overlap = not wanted.surface and wanted.match_iou is None
    if workers is None and overlap:
        size = sum(job.prediction.stat().st_size for job in jobs)
        workers = 1 if size < SMALL_FILE * len(jobs) else None
    room = NO_BOUND if workers == 1 else _room_for(jobs, overlap)
    scored = for_each(score, jobs, lambda job: job.case_id, workers, "scoring", on_progress, room)
    return summarize(
        [scored[job.case_id] for job in jobs],
        labels,
        tolerance_mm=wanted.tolerance_mm,
        match_iou=wanted.match_iou,
        groups=found.groups,
        missing=found.missing,
    )


def _room_for(jobs: Sequence[ScoringJob], overlap: bool) -> Room:
    """Give the memory that cases scored at once may take, and what each does."""
    from nnseg.estimate import bytes_to_score, room_for  # slow to import

    return room_for(
        {
            job.case_id: bytes_to_score(job.reference, job.prediction, overlap=overlap)
            for job in jobs
        }
    )


def _confidence(job: ScoringJob, predicted: Segmentation, labels: Labels) -> Confidence | None:
    """Give what the probabilities beside a prediction say of it; None where there are none."""
    from nnseg.scores.certainty import certainty, open_beside  # slow to import, and few ask for it

    try:
        opened = open_beside(job.prediction)
        return None if opened is None else certainty(opened, predicted, labels).__getitem__
    except DataError as error:
        logger.warning("%s: %s; it is scored without confidences", job.prediction, error)
        return None


def group_cases(case_ids: Sequence[str], regex: str) -> dict[str, tuple[str, ...]]:
    """Give the cases of each group, sorted by its name: what the first group of `regex` finds.

    Raises:
        UsageError: It is no regular expression with a group, or finds nothing in some ids.
    """
    from nnseg.dataset.groups import GroupRule

    pattern = re.compile(GroupRule(regex=regex).regex)
    found = {case_id: pattern.search(case_id) for case_id in case_ids}
    without = sorted(case_id for case_id, match in found.items() if not (match and match[1]))
    if without:
        raise UsageError(
            f"--group-regex {regex!r} finds no group in {len(without)} of {len(case_ids)} case "
            f"ids, such as {without[0]}; widen it to match all of them"
        )
    groups: dict[str, list[str]] = {}
    for case_id, match in found.items():
        if match:
            groups.setdefault(match[1], []).append(case_id)
    return {name: tuple(groups[name]) for name in sorted(groups)}
