"""Stage 6 with its files: folders of label maps scored and compared, and their summary.json."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnseg import commit, record
from nnseg.axes import Segmentation
from nnseg.dataset import DatasetSpec, find_label_maps, read_spec, visible_files
from nnseg.dataset.groups import GroupRule
from nnseg.errors import DataError, MachineError, MissingError, UsageError
from nnseg.evaluate import TOLERANCE_MM, CaseScores, Confidence, Summary, score_case, summarize
from nnseg.folders import (
    Folders,
    checkpoint_file,
    predicted_spec_file,
    summary_file,
    validation_folder,
)
from nnseg.jobs import ScoringJob, find_scoring_jobs
from nnseg.labels import BACKGROUND, Labels
from nnseg.metrics import METRICS
from nnseg.parallel import OnProgress, for_each
from nnseg.runlog import logged_run
from nnseg.summary_json import from_nnunet, to_nnunet
from nnseg.volume import grid_fault, label_ending, read_segmentation, split_ending

if TYPE_CHECKING:
    from nnseg.comparison import Comparison

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
        if not self.tolerance_mm >= 0:
            raise UsageError(f"tolerance_mm is {self.tolerance_mm}; give a distance of 0 or more")
        if self.match_iou is not None and not 0 < self.match_iou <= 1:
            raise UsageError(f"match_iou is {self.match_iou}; give a share over 0 and at most 1")
        if self.group_regex is not None:
            GroupRule(regex=self.group_regex)


PLAIN = Wanted()


def evaluate(
    reference: Path,
    prediction: Path,
    labels: Labels,
    file_ending: str,
    *,
    wanted: Wanted = PLAIN,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Summary:
    """Stage 6: score the label maps of a folder, or one; write summary.json beside them.

    Where probabilities lie beside a prediction, as a fold's validation leaves them or
    `nnseg predict --save_probabilities chunks`, the components that are looked at have confidences.

    Args:
        reference: The true label maps: a folder, or one.
        prediction: Those to score, likewise.
        labels: What their integers mean.
        file_ending: How the predictions end, as dataset.json says.
        wanted: What is measured besides overlap, and how cases are grouped.
        workers: Cases at once; None is one a core, and one alone where cases are quickly done.
        on_progress: Called after each case.

    Raises:
        UsageError: Something of what is wanted cannot be meant.
        DataError: A prediction lacks its reference, lies on another grid, or cannot be read.
        MachineError: The folder of the predictions cannot be written.
    """
    jobs = find_scoring_jobs(reference, prediction, file_ending)
    folder = prediction if prediction.is_dir() else prediction.parent
    if not os.access(folder, os.W_OK):
        raise MachineError(f"{folder} cannot be written; its summary.json goes there: copy it")
    arguments = {"reference": str(reference), "prediction": str(prediction)}
    with logged_run(folder, "evaluate", arguments | asdict(wanted)) as run:
        result = _score(jobs, labels, wanted, workers, on_progress)
        write_summary(folder, result, labels)
        run.inputs += [path for job in jobs for path in (job.reference, job.prediction)]
        run.outputs.append(summary_file(folder))
    return result


def evaluate_test_set(
    folders: Folders,
    dataset: str,
    prediction: Path | None = None,
    *,
    wanted: Wanted = PLAIN,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Summary:
    """Score predictions of a dataset's imagesTs against its labelsTs, all of them.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        prediction: The folder of the predictions; None is `folders.test_predictions`.
        wanted: As of `evaluate`.
        workers: Likewise.
        on_progress: Likewise.

    Raises:
        MissingError: The dataset has no labelsTs, or there are no predictions.
        DataError: A labelled test case was not predicted, or as of `evaluate`.
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
    jobs = find_scoring_jobs(truth, prediction, spec.file_ending)
    missing = find_label_maps(truth, spec.label_ending).keys() - {job.case_id for job in jobs}
    if missing:
        raise DataError(
            f"{prediction}: {len(missing)} test cases were not predicted, such as {min(missing)}; "
            "predict them, or give the two folders to score those that are there"
        )
    return evaluate(
        truth,
        prediction,
        spec.labels,
        spec.file_ending,
        wanted=wanted,
        workers=workers,
        on_progress=on_progress,
    )


def compare_results(
    a: Path,
    b: Path,
    *,
    reference: Path | None = None,
    spec: DatasetSpec | None = None,
    metrics: Sequence[str] = (),
    wanted: Wanted = PLAIN,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> "tuple[Comparison, ...]":
    """Compare two results over the cases that both have, metric by metric; nothing is written.

    Args:
        a: A folder with a summary.json, ours or nnU-Net's, or such a file. With a `reference`, a
            folder of predictions, which is scored now.
        b: The other one.
        reference: The folder of the true label maps.
        spec: Names the labels where predictions are scored; None finds a dataset.json.
        metrics: Names of METRICS; none are all of which both results have a value.
        wanted: As of `evaluate`, where predictions are scored.
        workers: Likewise.
        on_progress: Likewise.

    Raises:
        MissingError: There is no summary.json, and no reference was given.
        DataError: The results are not of the same labels, references or cases.
    """
    from nnseg.comparison import compare  # of no use to who scores one result

    if reference is None:
        data = [_summary_data(path) for path in (a, b)]
        first, second = (
            from_nnunet(_named_as(its, data), None, str(path))
            for its, path in zip(data, (a, b), strict=True)
        )
    else:
        found = []
        for path in (a, b):
            its = spec or spec_for_evaluation(reference, path, None)
            jobs = find_scoring_jobs(reference, path, its.file_ending)
            found.append(_score(jobs, its.labels, wanted, workers, on_progress))
        first, second = found
    there = [
        name
        for name, metric in METRICS.items()
        if all(metric.of_mean(each.foreground_mean) is not None for each in (first, second))
    ]
    if first.tolerance_mm != second.tolerance_mm and "nsd" in (metrics or there):
        raise DataError(
            f"NSD has a tolerance of {first.tolerance_mm} mm in {a} and of {second.tolerance_mm} "
            f"mm in {b}; evaluate one of them again"
        )
    return tuple(compare(first, second, metric=name) for name in metrics or there)


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
        "--dataset-json, or the labels by --labels"
    )


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


def _score(
    jobs: Sequence[ScoringJob],
    labels: Labels,
    wanted: Wanted,
    workers: int | None,
    on_progress: OnProgress | None,
) -> Summary:
    """Score pairs of label maps."""
    case_ids = [job.case_id for job in jobs]
    groups = None if wanted.group_regex is None else group_cases(case_ids, wanted.group_regex)

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

    if workers is None and not wanted.surface and wanted.match_iou is None:
        size = sum(job.prediction.stat().st_size for job in jobs)
        workers = 1 if size < SMALL_FILE * len(jobs) else None
    scored = for_each(score, jobs, lambda job: job.case_id, workers, "scoring", on_progress)
    return summarize(
        [scored[case_id] for case_id in case_ids],
        labels,
        tolerance_mm=wanted.tolerance_mm,
        match_iou=wanted.match_iou,
        groups=groups,
    )


def _confidence(job: ScoringJob, predicted: Segmentation, labels: Labels) -> Confidence | None:
    """Give what the probabilities beside a prediction say of it; None where there are none."""
    from nnseg.certainty import certainty, open_beside  # slow to import, and few ask for it

    opened = open_beside(job.prediction)
    if opened is None:
        return None
    try:
        return certainty(opened, predicted, labels).__getitem__
    except DataError as error:
        raise DataError(f"{job.prediction}: {error}") from None


def group_cases(case_ids: Sequence[str], regex: str) -> dict[str, tuple[str, ...]]:
    """Give the cases of each group, sorted by its name: what the first group of `regex` finds.

    Raises:
        UsageError: It is no regular expression with a group, or finds nothing in some ids.
    """
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


def _summary_data(path: Path) -> Any:
    """Read a summary.json, ours or nnU-Net's, given its folder or itself; NaN becomes None."""
    file = summary_file(path) if path.is_dir() else path
    if not file.is_file():
        raise MissingError(
            f"{file} does not exist; `nnseg evaluate GT {path}` writes it, or give the true label "
            "maps by --reference"
        )
    try:
        return record.read_json(file)
    except DataError as error:
        try:
            return json.loads(file.read_text("utf-8"), parse_constant=lambda _: None)
        except (OSError, ValueError, RecursionError):
            raise error from None


def _named_as(data: Any, others: Sequence[Any]) -> Any:
    """Give nnU-Net's summary the names that another one has for the same keys."""
    if not isinstance(data, dict) or "names" in data:
        return data
    for other in others:
        names = other.get("names") if isinstance(other, dict) else None
        if isinstance(names, dict) and set(names.values()) <= set(data.get("mean", ())):
            return data | {"names": names}
    return data
