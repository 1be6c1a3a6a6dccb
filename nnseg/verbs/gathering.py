"""What a report is about, read from the files that there are; what is missing is said."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from nnseg import record
from nnseg.choose import Choosing
from nnseg.dataset import Case, DatasetSpec, find_cases, find_training_cases, read_spec
from nnseg.errors import DataError, NnsegError, StoppedError
from nnseg.evaluate import Summary
from nnseg.fingerprint import Fingerprint
from nnseg.folders import (
    Folders,
    checkpoint_file,
    confidence_file,
    metrics_file,
    predicted_spec_file,
    run_record,
    summary_file,
    validation_folder,
)
from nnseg.labels import Labels
from nnseg.parallel import OnProgress
from nnseg.plan import Plan
from nnseg.report import rows
from nnseg.report.facts import CaseRow, Curve, Facts, FindingRow, RunFacts, Trust
from nnseg.report.preview import REFERENCE
from nnseg.runlog import RunReport
from nnseg.scores.comparison import compare
from nnseg.scores.confidence import Confidence
from nnseg.suspects.label_errors import Suspects
from nnseg.verbs.measuring import examine
from nnseg.verbs.planning import load_plan
from nnseg.verbs.scoring import spec_for_evaluation
from nnseg.verbs.sources import (
    DAMAGED,
    ScoredFold,
    Sources,
    folds_of_choice,
    groups_of,
    most_scored,
    read_choice,
    read_scores,
    still_true,
    together,
    why_not_scored,
)

logger = logging.getLogger(__name__)

STOPPED = "stopped; the report that was there stays, the same command makes it anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCase:
    """The files that a case is shown by."""

    case_id: str
    images: tuple[Path, ...]  # may be none
    reference: Path | None
    maps: dict[str, Path]  # predictions by name
    mark: tuple[int, int, int] | None = None  # voxel (z, y, x) to look at first


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Everything for a report but the pictures, the verdict and the time."""

    facts: Facts
    labels: Labels
    channels: tuple[str, ...]
    shown: tuple[ShownCase, ...]
    inputs: tuple[Path, ...]  # records that were read
    names: dict[str, str]  # of folders, by their paths: what the report calls them


def gather_predictions(folders: Folders, folder: Path, dataset_json: Path | None) -> Gathered:
    """Gather what there is about a trained fold, or about a folder of scored predictions.

    A fold whose scores are not of its final weights is reported without them.

    Raises:
        MissingError: Predictions have no summary.json, or nothing names the labels.
        DataError: They cannot be read.
    """
    sources = Sources()
    is_fold = checkpoint_file(folder, "final").is_file()
    predictions = validation_folder(folder) if is_fold else folder
    plan = _plan_of(sources, folder) if is_fold else None
    reason = why_not_scored(folder) if is_fold else None
    labels, spec = _labels_of(predictions, plan, dataset_json)
    scored = None if reason else read_scores(predictions, labels)
    summary = scored
    if reason:
        sources.lacks("scores", reason)
    elif scored is not None:
        sources.read.append(summary_file(predictions))
        summary = still_true(sources, predictions, scored, labels)
    name = "/".join(folder.resolve().parts[-2:]) if is_fold else predictions.name
    if plan is not None:
        title = f"{plan.dataset}, {name}"
    else:
        title = f"Predictions in {predictions.resolve().name}"
    foreground, labelled = (None, ()) if summary is None else rows.label_rows(summary)
    facts = Facts(
        kind="fold" if is_fold else "predictions",
        title=title,
        subject=str(folder),
        made="",
        foreground=foreground,
        labels=labelled,
        tolerance_mm=summary.tolerance_mm if summary else None,
        cases=_case_rows(summary, scored),
        curves=_curves(sources, {name: folder}) if is_fold else (),
        plan=None if plan is None else rows.plan_facts(plan),
        trust=_trust(sources, {name: predictions}) if is_fold and not reason else (),
        runs=_runs(sources, [folder]),
    )
    shown: tuple[ShownCase, ...] = ()
    if scored is not None:
        images = _images(sources, folders, plan, spec, scored)
        shown = _shown({"prediction": scored}, images, facts.cases)
    names = _names(folders, [folder], scored)
    return _gathered(facts, labels, spec, plan, shown, sources, names)


def gather_comparison(
    folders: Folders, first: Path, second: Path, dataset_json: Path | None
) -> Gathered:
    """Gather what there is about two predictions of the same cases, each scored.

    Raises:
        MissingError: One has no summary.json, or nothing names the labels.
        DataError: They cannot be read or compared, or are not of what is there.
    """
    sources = Sources()
    is_fold = {folder: checkpoint_file(folder, "final").is_file() for folder in (first, second)}
    for folder in (first, second):
        if is_fold[folder] and (reason := why_not_scored(folder)):
            raise DataError(f"{folder}: its scores cannot be compared: {reason}")
    places = [validation_folder(f) if is_fold[f] else f for f in (first, second)]
    plan = _plan_of(sources, first) if is_fold[first] else None
    labels, spec = _labels_of(places[0], plan, dataset_json)
    scored = [read_scores(place, labels) for place in places]
    sources.read += [summary_file(place) for place in places]
    summaries = []
    for place, found in zip(places, scored, strict=True):
        kept = still_true(sources, place, found, labels)
        if kept is None:
            raise DataError(
                f"{place}: all its label maps were replaced since they were scored; evaluate again"
            )
        summaries.append(kept)
    names = _short_names(first, second)
    compared = compare(*summaries)
    foreground, labelled = rows.label_rows(summaries[0])
    facts = Facts(
        kind="comparison",
        title=f"{names[1]} beside {names[0]}",
        subject=f"{first} and {second}",
        made="",
        foreground=foreground,
        labels=labelled,
        tolerance_mm=summaries[0].tolerance_mm,
        cases=rows.with_second(_case_rows(summaries[0], scored[0]), summaries[1]),
        comparison=rows.comparison_facts(compared, *names),
        runs=_runs(sources, [first, second]),
    )
    images = _images(sources, folders, plan, spec, scored[0])
    shown = _shown(dict(zip(names, scored, strict=True)), images, facts.cases)
    called = _names(folders, [first, second], scored[0])
    return _gathered(facts, labels, spec, plan, shown, sources, called)


def gather_dataset(
    folders: Folders,
    dataset: str,
    plan_name: str,
    *,
    doctor: bool = True,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Gathered:
    """Gather what there is about a dataset: raw data, plan, trainings, and what was chosen.

    Where something was chosen, the folds, the seed and the plan are those of the choice.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        plan_name: The plan whose models are shown where none was chosen.
        doctor: Whether the raw data are examined, which reads all of them.
        workers: Cases at once that are examined.
        on_progress: Called after each of them.
        stop: Asked as often.

    Raises:
        MissingError: The raw dataset is not there.
        DataError: Its dataset.json cannot be used.
        StoppedError: `stop` said True.
    """
    sources = Sources()
    spec = read_spec(folders.spec_file(dataset))
    cases = find_training_cases(folders, dataset, spec)
    measured = sources.get(
        "spacings and shapes",
        folders.fingerprint_file(dataset),
        lambda path: record.load(Fingerprint, path, f"nnseg plan -d {dataset}"),
    )
    choosing = read_choice(sources, folders, dataset)
    suspects = _suspects(sources, folders, dataset)
    folds, plan = _folds_and_plan(sources, folders, dataset, plan_name, spec.labels, choosing)
    summary = together(spec.labels, folds)
    foreground, labelled = (None, ()) if summary is None else rows.label_rows(summary)
    facts = Facts(
        kind="choice" if choosing is not None else "dataset",
        title=dataset,
        subject=str((folders.models_folder if folds else folders.raw_folder)(dataset)),
        made="",
        foreground=foreground,
        labels=labelled,
        tolerance_mm=summary.tolerance_mm if summary else None,
        cases=rows.case_rows(summary, groups_of(folds))
        if summary
        else tuple(CaseRow(case_id=case.case_id) for case in cases),
        curves=_curves(sources, {fold.name: fold.folder for fold in folds}),
        data=rows.data_facts(len(cases), spec.channels, tuple(spec.labels.foreground), measured),
        plan=None if plan is None else rows.plan_facts(plan),
        choosing=None if choosing is None else rows.choosing_facts(choosing),
        trust=_trust(sources, {fold.name: validation_folder(fold.folder) for fold in folds}),
        suspects=None if suspects is None else rows.suspect_rows(suspects),
        findings=_findings(sources, folders, dataset, workers, on_progress, stop)
        if doctor
        else None,
        runs=_runs(sources, [fold.folder for fold in folds]),
    )
    shown = _shown_of_dataset(cases, summary, facts.cases, suspects)
    return _gathered(facts, spec.labels, spec, plan, shown, sources, _names(folders))


def _folds_and_plan(
    sources: Sources,
    folders: Folders,
    dataset: str,
    plan_name: str,
    labels: Labels,
    choosing: Choosing | None,
) -> tuple[tuple[ScoredFold, ...], Plan | None]:
    """Give the folds whose scores are shown, and the plan: those of the choice, if there is one."""
    if choosing is not None:
        folds = folds_of_choice(sources, folders.models_folder(dataset), labels, choosing)
        plan = _plan_of(sources, folds[0].folder) if folds else None
    else:
        folds = most_scored(sources, folders.plan_models(dataset, plan_name), labels)
        plan = sources.get(
            "plan",
            folders.plan_file(dataset, plan_name),
            lambda _: load_plan(folders, dataset, plan_name),
        )
    if not folds:
        text = f"no fold's are of its weights; `nnseg train {dataset} 3d_fullres 0` trains one"
        sources.lacks("scores", text)
    return folds, plan


def _shown_of_dataset(
    cases: Sequence[Case],
    summary: Summary | None,
    order: Sequence[CaseRow],
    suspects: Suspects | None,
) -> tuple[ShownCase, ...]:
    """Give the files that the cases of a dataset are shown by: the scored ones, or all labelled."""
    marks = {row.case_id: row.where for row in suspects.suspects} if suspects else {}
    if summary is None:
        return tuple(_labelled(case, marks) for case in cases)
    return _shown({"prediction": summary}, {case.case_id: case for case in cases}, order, marks)


def _gathered(
    facts: Facts,
    labels: Labels,
    spec: DatasetSpec | None,
    plan: Plan | None,
    shown: Sequence[ShownCase],
    sources: Sources,
    names: dict[str, str],
) -> Gathered:
    channels = plan.channels if plan is not None else spec.channels if spec is not None else ()
    return Gathered(
        facts=replace(facts, missing=tuple(sources.missing)),
        labels=labels,
        channels=channels,
        shown=tuple(shown),
        inputs=tuple(dict.fromkeys(sources.read)),
        names=names,
    )


def _names(
    folders: Folders, given: Iterable[Path] = (), scored: Summary | None = None
) -> dict[str, str]:
    """Give what a report calls the data roots and other folders, by their absolute paths."""
    called = {folders.raw: "raw", folders.preprocessed: "preprocessed", folders.results: "results"}
    if scored is not None:
        case = scored.cases[0]
        for file in (case.reference_file, case.prediction_file):
            called.setdefault(Path(file).parent, Path(file).parent.name)
    for folder in given:
        called.setdefault(folder, folder.resolve().name)
    names: dict[str, str] = {}
    for folder, name in called.items():
        for path in (folder.absolute(), folder.resolve()):
            names.setdefault(str(path), name)
    return {path: name for path, name in names.items() if name}


def _case_rows(summary: Summary | None, scored: Summary | None) -> tuple[CaseRow, ...]:
    """Give the cases with their scores, and last those whose scores are not of what is there."""
    found = () if summary is None else rows.case_rows(summary)
    have = {row.case_id for row in found}
    rest = () if scored is None else scored.cases
    return (*found, *(CaseRow(case_id=c.case_id) for c in rest if c.case_id not in have))


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
    where = predictions
    found = record.read_json(summary_file(predictions), "nnseg evaluate", most=record.LARGE_BYTES)
    with suppress(*DAMAGED):
        where = Path(str(found["metric_per_case"][0]["reference_file"])).parent
    spec = spec_for_evaluation(where, predictions, dataset_json)
    return spec.labels, spec


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
    references: dict[str, Path] = {}
    maps: dict[str, dict[str, Path]] = {}
    for name, summary in summaries.items():
        for case in summary.cases:
            references.setdefault(case.case_id, Path(case.reference_file))
            maps.setdefault(case.case_id, {})[name] = Path(case.prediction_file)
    shown = []
    for row in order:
        found = images.get(row.case_id)
        shown.append(
            ShownCase(
                case_id=row.case_id,
                images=() if found is None else found.images,
                reference=references[row.case_id],
                maps=maps[row.case_id],
                mark=(marks or {}).get(row.case_id),
            )
        )
    return tuple(shown)


def _labelled(case: Case, marks: Mapping[str, tuple[int, int, int] | None]) -> ShownCase:
    return ShownCase(
        case_id=case.case_id,
        images=case.images,
        reference=case.label,
        maps={},
        mark=marks.get(case.case_id),
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
                found.append(_whole(folder, rows.run_facts(run)))
    return tuple(found)


def _whole(fold: Path, run: RunFacts) -> RunFacts:
    """Give a training the time and epochs of all its sessions; run.json has those of the last."""
    if run.command == "train":
        with suppress(NnsegError, *DAMAGED):
            state = record.read_json(checkpoint_file(fold, "latest"))
            return replace(
                run,
                seconds=round(float(state["seconds"]), 3),
                facts=run.facts | {"epochs": int(state["epoch"])},
            )
    return run


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
    stop: Callable[[], bool],
) -> tuple[FindingRow, ...] | None:
    def tell(what: str, done: int, total: int) -> None:
        if on_progress:
            on_progress(what, done, total)
        if stop():
            raise StoppedError(STOPPED)

    try:
        found = examine(folders, dataset, workers=workers, on_progress=tell)
    except StoppedError:
        raise
    except NnsegError as error:
        sources.lacks("doctor", str(error))
        return None
    return tuple(
        FindingRow(severity=f.severity, file=f.file, found=f.found, remedy=f.remedy) for f in found
    )


def _short_names(first: Path, second: Path) -> tuple[str, str]:
    """Name two folders by the parts of their paths in which they differ."""
    a, b = first.resolve().parts, second.resolve().parts
    common = 0
    while common < min(len(a), len(b)) and a[common] == b[common]:
        common += 1
    names = "/".join(a[common:]) or first.name, "/".join(b[common:]) or second.name
    one, other = (f"predicted {name}" if name.lower() == REFERENCE else name for name in names)
    return (one, other) if one != other else ("first", "second")
