"""Two results compared with their files: folders with a summary.json, or with predictions."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnseg import record
from nnseg.commit import sha256
from nnseg.dataset import DatasetSpec
from nnseg.errors import DataError, MissingError, NnsegError
from nnseg.evaluate import Summary
from nnseg.folders import evaluation_record, summary_file
from nnseg.parallel import OnProgress
from nnseg.scores.comparison import Comparison, compare
from nnseg.scores.metrics import METRICS
from nnseg.scores.summary_json import from_nnunet
from nnseg.verbs.scoring import (
    PLAIN,
    Wanted,
    find_evaluation,
    score_jobs,
    spec_for_evaluation,
)

logger = logging.getLogger(__name__)

NAMED = 3  # files that a message names


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
) -> tuple[Comparison, ...]:
    """Compare two results over the cases that both have, metric by metric; nothing is written.

    Args:
        a: A folder with a summary.json, ours or nnU-Net's, or such a file. With a `reference`, a
            folder of predictions, which is scored now.
        b: The other one.
        reference: The folder of the true label maps.
        spec: Names the labels where predictions are scored; None finds a dataset.json.
        metrics: Names of METRICS; none are all that were measured in both results.
        wanted: As of `nnseg.verbs.scoring.evaluate`, where predictions are scored.
        workers: Likewise.
        on_progress: Likewise.

    Raises:
        MissingError: There is no summary.json, and no reference was given.
        DataError: The results are not of the same labels, references or cases; label maps have
            changed since they were scored; or a metric was not measured, or otherwise in one.
    """
    if reference is None:
        data = [_summary_data(path) for path in (a, b)]
        first, second = (
            from_nnunet(_named_as(its, data), None, str(path))
            for its, path in zip(data, (a, b), strict=True)
        )
        for path, summary in ((a, first), (b, second)):
            check_up_to_date(path, summary)
    else:
        scored = []
        for path in (a, b):
            its = spec or spec_for_evaluation(reference, path, None)
            found = find_evaluation(reference, path, its.labels, its.file_ending, wanted=wanted)
            scored.append(score_jobs(found, wanted, workers, on_progress))
        first, second = scored
    names = metrics or [
        name
        for name, metric in METRICS.items()
        if metric.is_measured(first) and metric.is_measured(second)
    ]
    _check_measured(names, (a, first), (b, second))
    return tuple(compare(first, second, metric=name) for name in names)


def _check_measured(names: Sequence[str], *results: tuple[Path, Summary]) -> None:
    """Refuse metrics that are not there, or not the same in both results."""
    for path, summary in results:
        lacking = [name for name in names if not METRICS[name].is_measured(summary)]
        if lacking:
            raise DataError(
                f"{path}: {', '.join(lacking)} was not measured; evaluate it again, without "
                "--overlap or with --detection, or give other --metrics"
            )
    (a, first), (b, second) = results
    if first.tolerance_mm != second.tolerance_mm and "nsd" in names:
        raise DataError(
            f"NSD has a tolerance of {first.tolerance_mm} mm in {a} and of {second.tolerance_mm} "
            f"mm in {b}; evaluate one of them again, or give other --metrics"
        )
    unlike = [name for name in names if METRICS[name].by_match_iou]
    if first.match_iou != second.match_iou and unlike:
        raise DataError(
            f"lesions match from an IoU of {first.match_iou} in {a} and of {second.match_iou} in "
            f"{b}, so that {', '.join(unlike)} cannot be compared; evaluate one of them again with "
            "the other's --detection, or give other --metrics"
        )


def check_up_to_date(path: Path, summary: Summary) -> None:
    """Refuse scores of label maps that have been replaced since; warn where that may be so.

    The run_evaluate.json of an evaluation has the hashes of what was scored. Without it, as beside
    nnU-Net's scores, files that are newer than their scores are suspicious: they may be copies.

    Args:
        path: The folder of a summary.json, or such a file.
        summary: What it holds.

    Raises:
        DataError: Some have changed; which, and what to do.
    """
    scores = summary_file(path) if path.is_dir() else path
    known = _scored_hashes(scores)
    if known is not None:
        if changed := [file for file, digest in known.items() if _differs(file, digest)]:
            raise DataError(
                f"{scores}: {_some_files(changed)} changed since the scores were taken; evaluate "
                "again, or compare with --reference"
            )
        return
    taken = scores.stat().st_mtime
    newer = []
    for case in summary.cases:
        beside = scores.parent / Path(case.prediction_file).name
        for file in (beside, Path(case.reference_file)):
            if file.is_file() and file.stat().st_mtime > taken:
                newer.append(file)
    if newer:
        logger.warning(
            "%s is older than %s; evaluate again if those were replaced", scores, _some_files(newer)
        )


def _scored_hashes(scores: Path) -> dict[Path, str] | None:
    """Give the hashes of the files that these scores are of; None where no run tells.

    Label maps that lay beside their scores are looked for there: the folder may have moved.
    """
    try:
        run = record.read_json(evaluation_record(scores.parent))
        (output,) = (Path(name) for name, its in run["outputs"].items() if its == sha256(scores))
        inputs = {Path(name): digest for name, digest in run["inputs"].items()}
    except (NnsegError, OSError, KeyError, TypeError, AttributeError, ValueError):
        return None
    return {
        scores.parent / path.name if path.parent == output.parent else path: digest
        for path, digest in inputs.items()
    }


def _differs(file: Path, digest: str) -> bool:
    """Whether a file has other content; what is not there any more tells nothing."""
    try:
        return sha256(file) != digest
    except OSError:
        return False


def _some_files(files: Sequence[Path]) -> str:
    names = ", ".join(str(file) for file in sorted(files)[:NAMED])
    more = len(files) - NAMED
    return f"{names} and {more} more" if more > 0 else names


def _summary_data(path: Path) -> Any:
    """Read a summary.json, ours or nnU-Net's, given its folder or itself; NaN becomes None."""
    file = summary_file(path) if path.is_dir() else path
    if not file.is_file():
        raise MissingError(
            f"{file} does not exist; `nnseg evaluate GT {path}` writes it, or give the true label "
            "maps by --reference"
        )
    try:
        return record.read_json(file, most=record.LARGE_BYTES)
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
