"""What a report is about, read from the files that there are; what is missing is said."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from nnseg import record
from nnseg.choose import Choosing
from nnseg.comparison import compare
from nnseg.confidence import Confidence
from nnseg.dataset import Case, DatasetSpec, find_cases, find_training_cases, read_spec
from nnseg.errors import DataError, MissingError, NnsegError
from nnseg.evaluate import Summary, summarize
from nnseg.fingerprint import Fingerprint
from nnseg.folders import (
    Folders,
    checkpoint_file,
    confidence_file,
    folds_by_seed,
    metrics_file,
    predicted_spec_file,
    run_record,
    summary_file,
    validation_folder,
)
from nnseg.label_errors import Suspects
from nnseg.labels import Labels
from nnseg.parallel import OnProgress
from nnseg.plan import Plan
from nnseg.planning import load_plan
from nnseg.prepare import examine
from nnseg.report import rows
from nnseg.report.facts import CaseRow, Curve, Facts, FindingRow, Missing, RunFacts, Trust
from nnseg.runlog import RunReport
from nnseg.scoring import read_summary, spec_for_evaluation

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCase:
    """The files that a case is shown by."""

    case_id: str
    images: tuple[Path, ...]  # may be none
    maps: dict[str, Path]  # such as "reference" and "prediction"
    mark: tuple[int, int, int] | None = None  # voxel (z, y, x) to look at first


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Everything for a report but the pictures, the verdict and the time."""

    facts: Facts
    labels: Labels
    channels: tuple[str, ...]
    shown: tuple[ShownCase, ...]
    inputs: tuple[Path, ...]  # records that were read


class Sources:
    """Reads what a report may have, and keeps account of what it did not get."""

    def __init__(self) -> None:
        self.missing: list[Missing] = []
        self.read: list[Path] = []

    def get(self, section: str, path: Path, read: Callable[[Path], T]) -> T | None:
        """Give what `read` makes of a file, None where it is not there or not what it should be."""
        try:
            found = read(path)
        except NnsegError as error:
            self.lacks(section, str(error))
            return None
        except (OSError, ValueError, KeyError) as error:
            self.lacks(section, f"{path}: cannot be read ({error})")
            return None
        self.read.append(path)
        return found

    def lacks(self, section: str, reason: str) -> None:
        """Note that the report has no such section, and why."""
        self.missing.append(Missing(section=section, reason=reason))


def gather_predictions(folders: Folders, folder: Path, dataset_json: Path | None) -> Gathered:
    """Gather what there is about a trained fold, or about a folder of scored predictions.

    Raises:
        MissingError: There is no summary.json, or nothing that names the labels.
        DataError: They cannot be read.
    """
    sources = Sources()
    predictions = (
        validation_folder(folder) if checkpoint_file(folder, "final").is_file() else folder
    )
    is_fold = predictions != folder
    plan = _plan_of(sources, folder) if is_fold else None
    labels, spec = _labels_of(predictions, plan, dataset_json)
    summary = _summary_of(predictions, labels)
    sources.read.append(summary_file(predictions))
    foreground, labelled = rows.label_rows(summary)
    if plan is not None:
        name = "/".join(folder.resolve().parts[-2:])
        title = f"{plan.dataset}, {name}"
    else:
        name, title = predictions.name, f"Predictions in {predictions.resolve().name}"
    facts = Facts(
        kind="fold" if is_fold else "predictions",
        title=title,
        subject=str(folder),
        made="",
        foreground=foreground,
        labels=labelled,
        tolerance_mm=summary.tolerance_mm,
        cases=rows.case_rows(summary),
        curves=_curves(sources, {name: folder}) if is_fold else (),
        plan=None if plan is None else rows.plan_facts(plan),
        trust=_trust(sources, {name: predictions}) if is_fold else (),
        runs=_runs(sources, [folder]),
    )
    images = _images(sources, folders, plan, spec, summary)
    shown = _shown({"prediction": summary}, images, facts.cases)
    return _gathered(facts, labels, spec, plan, shown, sources)


def gather_comparison(
    folders: Folders, first: Path, second: Path, dataset_json: Path | None
) -> Gathered:
    """Gather what there is about two predictions of the same cases, each scored.

    Raises:
        MissingError: One has no summary.json, or nothing names the labels.
        DataError: They cannot be read or compared.
    """
    sources = Sources()
    places = [
        validation_folder(folder) if checkpoint_file(folder, "final").is_file() else folder
        for folder in (first, second)
    ]
    plan = _plan_of(sources, first) if places[0] != first else None
    labels, spec = _labels_of(places[0], plan, dataset_json)
    summaries = [_summary_of(place, labels) for place in places]
    sources.read += [summary_file(place) for place in places]
    names = _short_names(first, second)
    found = compare(*summaries)
    foreground, labelled = rows.label_rows(summaries[0])
    facts = Facts(
        kind="comparison",
        title=f"{names[1]} beside {names[0]}",
        subject=f"{first} and {second}",
        made="",
        foreground=foreground,
        labels=labelled,
        tolerance_mm=summaries[0].tolerance_mm,
        cases=rows.with_second(rows.case_rows(summaries[0]), summaries[1]),
        comparison=rows.comparison_facts(found, *names),
        runs=_runs(sources, [first, second]),
    )
    images = _images(sources, folders, plan, spec, summaries[0])
    shown = _shown(dict(zip(names, summaries, strict=True)), images, facts.cases)
    return _gathered(facts, labels, spec, plan, shown, sources)


def gather_dataset(
    folders: Folders,
    dataset: str,
    plan_name: str,
    *,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Gathered:
    """Gather what there is about a dataset: raw data, plan, trainings, and what was chosen.

    Raises:
        MissingError: The raw dataset is not there.
        DataError: Its dataset.json cannot be used.
    """
    sources = Sources()
    spec = read_spec(folders.spec_file(dataset))
    cases = find_training_cases(folders, dataset, spec)
    measured = sources.get(
        "spacings and shapes",
        folders.fingerprint_file(dataset),
        lambda path: record.load(Fingerprint, path, f"nnseg plan -d {dataset}"),
    )
    plan = sources.get(
        "plan",
        folders.plan_file(dataset, plan_name),
        lambda _: load_plan(folders, dataset, plan_name),
    )
    choosing = _chosen(sources, folders, dataset)
    suspects = _suspects(sources, folders, dataset)
    model = _model_shown(folders, dataset, plan_name, choosing, sources)
    folds = _validated(model) if model is not None else {}
    summary = _together(spec.labels, folds)
    scored = rows.label_rows(summary) if summary is not None else None
    facts = Facts(
        kind="choice" if choosing is not None else "dataset",
        title=dataset,
        subject=str(folders.models_folder(dataset) if folds else folders.raw_folder(dataset)),
        made="",
        foreground=scored[0] if scored else None,
        labels=scored[1] if scored else (),
        tolerance_mm=summary.tolerance_mm if summary else None,
        cases=rows.case_rows(summary, _groups(folds))
        if summary
        else tuple(CaseRow(case_id=case.case_id) for case in cases),
        curves=_curves(sources, {name: folder for name, (folder, _) in folds.items()}),
        data=rows.data_facts(len(cases), spec.channels, tuple(spec.labels.foreground), measured),
        plan=None if plan is None else rows.plan_facts(plan),
        choosing=None if choosing is None else rows.choosing_facts(choosing),
        trust=_trust(sources, {n: validation_folder(f) for n, (f, _) in folds.items()}),
        suspects=None if suspects is None else rows.suspect_rows(suspects),
        findings=_findings(sources, folders, dataset, workers, on_progress),
        runs=_runs(sources, [folder for folder, _ in folds.values()]),
    )
    marks = {row.case_id: row.where for row in suspects.suspects} if suspects else {}
    images = {case.case_id: case for case in cases}
    if summary is None:
        shown = tuple(_labelled(case, marks) for case in cases)
    else:
        shown = _shown({"prediction": summary}, images, facts.cases, marks)
    return _gathered(facts, spec.labels, spec, plan, shown, sources)


def _gathered(
    facts: Facts,
    labels: Labels,
    spec: DatasetSpec | None,
    plan: Plan | None,
    shown: Sequence[ShownCase],
    sources: Sources,
) -> Gathered:
    channels = plan.channels if plan is not None else spec.channels if spec is not None else ()
    return Gathered(
        facts=replace(facts, missing=tuple(sources.missing)),
        labels=labels,
        channels=channels,
        shown=tuple(shown),
        inputs=tuple(dict.fromkeys(sources.read)),
    )


def _plan_of(sources: Sources, fold: Path) -> Plan | None:
    """Read the plan that a trained fold carries with it."""

    def read(path: Path) -> Plan:
        data = record.read_json(path)
        if not isinstance(data, dict) or "plan" not in data:
            raise DataError(f"{path}: holds no plan; restore the file")
        return record.parse(Plan, data["plan"], str(path))

    return sources.get("plan", checkpoint_file(fold, "final"), read)


def _labels_of(
    predictions: Path, plan: Plan | None, dataset_json: Path | None
) -> tuple[Labels, DatasetSpec | None]:
    if plan is not None:
        return plan.labels, None
    found = record.read_json(summary_file(predictions), "nnseg evaluate")
    where = predictions
    if isinstance(found, dict) and found.get("metric_per_case"):
        where = Path(str(found["metric_per_case"][0].get("reference_file", ""))).parent
    spec = spec_for_evaluation(where, predictions, dataset_json)
    return spec.labels, spec


def _summary_of(predictions: Path, labels: Labels) -> Summary:
    if not summary_file(predictions).is_file():
        raise MissingError(
            f"{summary_file(predictions)} does not exist; `nnseg evaluate REFERENCES "
            f"{predictions}` writes it, and `nnseg train ... --val` that of a fold"
        )
    return read_summary(predictions, labels)


def _images(
    sources: Sources,
    folders: Folders,
    plan: Plan | None,
    spec: DatasetSpec | None,
    summary: Summary,
) -> dict[str, Case]:
    """Find the images of scored cases: those of the dataset, or of the folder beside the labels."""
    try:
        if plan is not None and folders.spec_file(plan.dataset).is_file():
            spec = read_spec(folders.spec_file(plan.dataset))
            return {c.case_id: c for c in find_training_cases(folders, plan.dataset, spec)}
        references = Path(summary.cases[0].reference_file).parent
        beside = references.with_name(references.name.replace("labels", "images", 1))
        if spec is None and predicted_spec_file(references.parent).is_file():
            spec = read_spec(predicted_spec_file(references.parent))
        if spec is not None and beside != references and beside.is_dir():
            return {case.case_id: case for case in find_cases(beside, None, spec)}
    except NnsegError as error:
        sources.lacks("images", str(error))
        return {}
    sources.lacks("images", f"none were found for the references in {references}")
    return {}


def _shown(
    summaries: Mapping[str, Summary],
    images: Mapping[str, Case],
    order: Sequence[CaseRow],
    marks: Mapping[str, tuple[int, int, int] | None] | None = None,
) -> tuple[ShownCase, ...]:
    """Give the files of each scored case, in the order of the rows."""
    maps: dict[str, dict[str, Path]] = {}
    for name, summary in summaries.items():
        for case in summary.cases:
            files = maps.setdefault(case.case_id, {"reference": Path(case.reference_file)})
            files[name] = Path(case.prediction_file)
    shown = []
    for row in order:
        found = images.get(row.case_id)
        shown.append(
            ShownCase(
                case_id=row.case_id,
                images=() if found is None else found.images,
                maps=maps[row.case_id],
                mark=(marks or {}).get(row.case_id),
            )
        )
    return tuple(shown)


def _labelled(case: Case, marks: Mapping[str, tuple[int, int, int] | None]) -> ShownCase:
    maps = {} if case.label is None else {"reference": case.label}
    return ShownCase(
        case_id=case.case_id, images=case.images, maps=maps, mark=marks.get(case.case_id)
    )


def _curves(sources: Sources, folds: Mapping[str, Path]) -> tuple[Curve, ...]:
    found = []
    for name, folder in folds.items():

        def read(path: Path, name: str = name) -> Curve:
            return rows.read_curve(name, path.read_text("utf-8"))

        curve = sources.get(f"training curves of {name}", metrics_file(folder), read)
        if curve is not None:
            found.append(curve)
    return tuple(found)


def _trust(sources: Sources, validations: Mapping[str, Path]) -> tuple[Trust, ...]:
    found = []
    for name, folder in validations.items():
        confidence = sources.get(
            f"confidence of {name}",
            confidence_file(folder),
            lambda path: record.load(Confidence, path, "nnseg train ... --val"),
        )
        if confidence is not None:
            found.append(rows.trust_row(name, confidence))
    return tuple(found)


def _runs(sources: Sources, folders: Sequence[Path]) -> tuple[RunFacts, ...]:
    """Give the runs that filled some folders: their training or prediction, and their scoring."""
    found = []
    for folder in folders:
        for path in (run_record(folder), folder / "run_evaluate.json"):
            if not path.is_file():
                continue
            run = sources.get("a run", path, lambda path: record.load(RunReport, path))
            if run is not None:
                found.append(rows.run_facts(run))
    return tuple(found)


def _chosen(sources: Sources, folders: Folders, dataset: str) -> Choosing | None:
    path = folders.choosing_file(dataset)
    if not path.is_file():
        sources.lacks("choice", f"nothing was chosen; `nnseg find-best {dataset}` does it")
        return None
    return sources.get("choice", path, lambda path: record.load(Choosing, path))


def _suspects(sources: Sources, folders: Folders, dataset: str) -> Suspects | None:
    path = folders.suspects_file(dataset)
    if not path.is_file():
        sources.lacks(
            "suspected labels",
            f"nobody looked for them; `nnseg doctor {dataset} --predictions` does",
        )
        return None
    return sources.get("suspected labels", path, lambda path: record.load(Suspects, path))


def _findings(
    sources: Sources,
    folders: Folders,
    dataset: str,
    workers: int | None,
    on_progress: OnProgress | None,
) -> tuple[FindingRow, ...] | None:
    try:
        found = examine(folders, dataset, workers=workers, on_progress=on_progress)
    except NnsegError as error:
        sources.lacks("doctor", str(error))
        return None
    return tuple(
        FindingRow(severity=f.severity, file=f.file, found=f.found, remedy=f.remedy) for f in found
    )


def _model_shown(
    folders: Folders, dataset: str, plan_name: str, choosing: Choosing | None, sources: Sources
) -> Path | None:
    """Give the folder of the configuration whose predictions are shown case by case.

    It is the chosen one; of several that predict together the best of them alone, whose label maps
    are on the disk; where nothing was chosen, the one with the most validated cases.
    """
    home = folders.models_folder(dataset)
    if choosing is not None:
        chosen = {member.folder for member in choosing.best.members}
        for candidate in choosing.candidates:  # best first
            (first, *others) = candidate.members
            if not others and first.folder in chosen:
                if len(chosen) > 1:
                    text = (
                        f"scores and pictures of single cases are those of {candidate.name} alone"
                    )
                    sources.lacks("cases of the ensemble", text)
                return home / first.folder
    models = home / plan_name
    found = [
        (sum(len(summary_cases) for _, summary_cases in _validated(path).values()), path.name, path)
        for path in (sorted(models.iterdir()) if models.is_dir() else ())
        if path.is_dir()
    ]
    found = [each for each in found if each[0]]
    if not found:
        sources.lacks("scores", f"no fold is trained; `nnseg train {dataset} 3d_fullres 0` does it")
        return None
    return max(found)[2]


def _validated(model: Path) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Give the validated folds of a configuration's folder by name, with the ids of their cases."""
    found = {}
    for fold, folder in folds_by_seed(model).get(0, {}).items():
        path = summary_file(validation_folder(folder))
        if fold != "all" and path.is_file():
            data = record.read_json(path)
            ids = tuple(str(case["case_id"]) for case in data.get("metric_per_case", ()))
            found[f"{model.name} fold {fold}"] = (folder, ids)
    return found


def _together(labels: Labels, folds: Mapping[str, tuple[Path, tuple[str, ...]]]) -> Summary | None:
    """Join the scores of folds: each case by the model that did not see it."""
    found = [read_summary(validation_folder(folder), labels) for folder, _ in folds.values()]
    if not found:
        return None
    cases = [case for summary in found for case in summary.cases]
    return summarize(cases, labels, tolerance_mm=found[0].tolerance_mm)


def _groups(folds: Mapping[str, tuple[Path, tuple[str, ...]]]) -> dict[str, str]:
    several = len(folds) > 1
    return {
        case: f"fold {name.rpartition(' ')[2]}" if several else ""
        for name, (_, cases) in folds.items()
        for case in cases
    }


def _short_names(first: Path, second: Path) -> tuple[str, str]:
    """Name two folders by the parts of their paths in which they differ."""
    a, b = first.resolve().parts, second.resolve().parts
    common = 0
    while common < min(len(a), len(b)) and a[common] == b[common]:
        common += 1
    names = "/".join(a[common:]) or first.name, "/".join(b[common:]) or second.name
    return names if names[0] != names[1] else ("first", "second")
