"""The report with its files: what there is to say gathered, cases drawn, the page written."""

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias, get_args

from numpy.typing import NDArray

from nnseg import commit, record
from nnseg.axes import Segmentation
from nnseg.errors import DataError, NnsegError, StoppedError, UsageError
from nnseg.estimate import bytes_to_read, room_for, workers_for
from nnseg.folders import Folders, comparison_folder, facts_file, report_file, report_folder
from nnseg.lock import locked
from nnseg.parallel import OnProgress, for_each
from nnseg.report.facts import CaseRow, Facts, Kind, Missing, Pick
from nnseg.report.page import niivue, page
from nnseg.report.places import named, without_places
from nnseg.report.preview import Preview, make_preview, to_script
from nnseg.report.sheets import contact_sheet
from nnseg.report.wording import number, verdict
from nnseg.runlog import logged_run
from nnseg.scores.statistics import measure
from nnseg.verbs.gathering import (
    STOPPED,
    Gathered,
    ShownCase,
    gather_comparison,
    gather_dataset,
    gather_predictions,
)
from nnseg.verbs.planning import DEFAULT_PLAN
from nnseg.volume import (
    Geometry,
    grid_fault,
    knows_directions,
    read_segmentation,
    read_stored,
)

logger = logging.getLogger(__name__)

MOST_CASES = 200  # that can be looked at
FILES = "files-"  # and a hash of all in it: the folder of what the page loads
OLD_FILES = re.compile(r"files-[0-9a-f]{16}")
NEXT = "files.next"
LEFT_BY_US = {NEXT, "run_report.json", "run_report.log"}  # what a first try may leave
PICKS: tuple[Pick, ...] = ("worst", "median", "best")

Stop: TypeAlias = Callable[[], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """How much is drawn, and how."""

    most_cases: int
    workers: int | None
    on_progress: OnProgress | None
    stop: Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """What became of a case: its file and what it holds, or why there is none."""

    file: str | None
    label_size: dict[str, float]
    unit: str = ""  # of these sizes
    preview: Preview | None = None  # of cases for the contact sheets
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What a report would have in it, and where it would be."""

    page: str
    kind: Kind
    title: str
    cases: int
    pictures: int  # cases that could be looked at
    missing: tuple[Missing, ...]  # sections that there is nothing for

    def __str__(self) -> str:
        lines = [
            f"{self.page} would be a report on {self.title}: {self.cases} cases, {self.pictures} "
            "of them with pictures"
        ]
        lines += [f"  without {row.section}: {row.reason}" for row in self.missing]
        return "\n".join(lines)


def report_on(
    folders: Folders,
    dataset: str,
    *,
    plan_name: str = DEFAULT_PLAN,
    output: Path | None = None,
    most_cases: int = MOST_CASES,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
    stop: Stop = lambda: False,
) -> Path:
    """Write the report on a dataset: before training, after it, or on what was chosen.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        plan_name: The plan that is explained, and whose models are shown where none was chosen.
        output: Folder of the report; None is results/DATASET/report.
        most_cases: That can be looked at; best, median, worst and suspected ones come first.
        workers: Cases at once; None is one a core.
        on_progress: Called after each case.
        stop: Asked between cases.

    Returns:
        The page, index.html.

    Raises:
        MissingError: The raw dataset is not there.
        DataError: Its dataset.json cannot be used.
        UsageError: The folder holds something else than a report.
        MachineError: The folder cannot be written, or another run writes it.
        StoppedError: `stop` said True; the report that was there stays.
    """
    target = report_target(folders, dataset, output)
    arguments = {"dataset": dataset, "plan_name": plan_name, "most_cases": most_cases}
    work = _Work(most_cases=most_cases, workers=workers, on_progress=on_progress, stop=stop)

    def gather() -> Gathered:
        return gather_dataset(
            folders, dataset, plan_name, workers=workers, on_progress=on_progress, stop=stop
        )

    return _write(target, arguments, gather, work)


def report_on_predictions(
    folders: Folders,
    predictions: Path,
    second: Path | None = None,
    *,
    dataset_json: Path | None = None,
    output: Path | None = None,
    most_cases: int = MOST_CASES,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
    stop: Stop = lambda: False,
) -> Path:
    """Write the report on a trained fold, on scored predictions, or on two of these compared.

    Args:
        folders: The data roots, where the images are looked for.
        predictions: The folder of a fold, or one with a summary.json.
        second: The one to compare with it.
        dataset_json: Names the labels, where nothing beside the predictions does.
        output: Folder of the report; None is report/ in the predictions' folder, or comparison/ in
            that of the second.
        most_cases: As for `report_on`.
        workers: As for `report_on`.
        on_progress: As for `report_on`.
        stop: As for `report_on`.

    Returns:
        The page, index.html.

    Raises:
        MissingError: There are no scores, or nothing names the labels.
        DataError: They cannot be read, or not be compared.
        UsageError: The folder holds something else than a report.
        MachineError: The folder cannot be written, or another run writes it.
        StoppedError: `stop` said True; the report that was there stays.
    """
    target = predictions_report_target(predictions, second, output)
    arguments = {
        "predictions": str(predictions),
        "second": None if second is None else str(second),
        "most_cases": most_cases,
    }
    work = _Work(most_cases=most_cases, workers=workers, on_progress=on_progress, stop=stop)

    def gather() -> Gathered:
        return _gather_predictions(folders, predictions, second, dataset_json)

    return _write(target, arguments, gather, work)


def outline_report(
    folders: Folders,
    dataset: str,
    *,
    plan_name: str = DEFAULT_PLAN,
    output: Path | None = None,
    most_cases: int = MOST_CASES,
) -> Outline:
    """Say what `report_on` would write; nothing is written, and no image is read.

    The arguments and errors are those of `report_on`.
    """
    target = report_target(folders, dataset, output)
    _check_target(target)
    return _outline(target, gather_dataset(folders, dataset, plan_name, doctor=False), most_cases)


def outline_report_on_predictions(
    folders: Folders,
    predictions: Path,
    second: Path | None = None,
    *,
    dataset_json: Path | None = None,
    output: Path | None = None,
    most_cases: int = MOST_CASES,
) -> Outline:
    """Say what `report_on_predictions` would write; nothing is written, and no image is read.

    The arguments and errors are those of `report_on_predictions`.
    """
    target = predictions_report_target(predictions, second, output)
    _check_target(target)
    gathered = _gather_predictions(folders, predictions, second, dataset_json)
    return _outline(target, gathered, most_cases)


def report_target(folders: Folders, dataset: str, output: Path | None) -> Path:
    """Give the folder of the report on a dataset."""
    return output or report_folder(folders.models_folder(dataset))


def predictions_report_target(predictions: Path, second: Path | None, output: Path | None) -> Path:
    """Give the folder of the report on predictions: beside them, or beside the second ones."""
    return output or (report_folder(predictions) if second is None else comparison_folder(second))


def _gather_predictions(
    folders: Folders, predictions: Path, second: Path | None, dataset_json: Path | None
) -> Gathered:
    if second is None:
        return gather_predictions(folders, predictions, dataset_json)
    return gather_comparison(folders, predictions, second, dataset_json)


def _outline(target: Path, gathered: Gathered, most_cases: int) -> Outline:
    facts = without_places(gathered.facts, gathered.names)
    return Outline(
        page=str(report_file(target)),
        kind=facts.kind,
        title=facts.title,
        cases=len(facts.cases),
        pictures=min(most_cases, len(gathered.shown)),
        missing=facts.missing,
    )


def _check_target(target: Path) -> None:
    """Refuse a folder with something in it that is no report.

    Raises:
        UsageError: It is such a folder, or a file.
    """
    try:
        there = {path.name for path in target.iterdir()} if target.exists() else set()
    except OSError as error:
        raise UsageError(
            f"{target}: cannot be listed ({error.strerror}); give a folder for the report by -o"
        ) from None
    others = {
        name
        for name in there - LEFT_BY_US
        if not name.startswith(".") and not OLD_FILES.fullmatch(name)
    }
    if others and not _is_report(target):
        raise UsageError(
            f"{target}: holds {min(others)} and no report; give a folder of its own by -o, a new "
            "or an empty one"
        )


def _is_report(target: Path) -> bool:
    """Say whether a folder has a report of ours: its facts, or the record of the run."""
    for path, key, values in (
        (facts_file(target), "kind", get_args(Kind)),
        (target / "run_report.json", "command", ("report",)),
    ):
        with suppress(NnsegError):
            found = record.read_json(path)
            if isinstance(found, dict) and found.get(key) in values:
                return True
    return False


def _write(
    target: Path, arguments: dict[str, Any], gather: Callable[[], Gathered], work: _Work
) -> Path:
    """Gather, draw and write; the page, which is replaced in one step, is what makes it a report.

    What the page loads lies in a folder named for what it holds, so that a page never loads the
    files of another. The facts name their page by its hash: where a kill leaves them beside the
    page of the run before, that shows, and the same command mends it.
    """
    _check_target(target)
    names: dict[str, str] = {}

    def tell(text: str) -> str:
        return named(text, names)

    with (
        locked(target, "nnseg report"),
        logged_run(target, "report", arguments, stop=work.stop, tell=tell) as run,
    ):
        gathered = gather()
        names |= gathered.names
        if work.stop():
            raise StoppedError(STOPPED)
        run.inputs += gathered.inputs
        commit.sweep(target)
        commit.remove(target / NEXT)
        with commit.whole_folder(target / NEXT) as folder:
            facts = _draw(folder, gathered, work)
            extras = niivue()
            for name, data in extras.items():
                commit.write_whole(folder / name, data)
            name = FILES + _digest(folder)
        files = target / name
        if files.exists():
            commit.remove(target / NEXT)
        else:
            (target / NEXT).rename(files)
            commit.sync_folder(target)
        made = datetime.now(timezone.utc).isoformat(timespec="seconds")
        facts = without_places(replace(facts, made=made), gathered.names)
        facts = replace(facts, verdict=verdict(facts))
        text = page(facts, gathered.labels, name, has_niivue=bool(extras)).encode()
        index = report_file(target)
        facts = replace(facts, page_sha256=hashlib.sha256(text).hexdigest())
        record.save(facts, facts_file(target))
        commit.write_whole(index, text)
        for old in target.iterdir():
            if OLD_FILES.fullmatch(old.name) and old != files:
                commit.remove(old)
        run.outputs += [index, facts_file(target), *sorted(files.iterdir())]
    return index


def _draw(folder: Path, gathered: Gathered, work: _Work) -> Facts:
    """Write the files of the cases and the contact sheets; give the facts with their names."""
    facts = gathered.facts
    suspected = {row.case_id for row in facts.suspects or ()}
    picks = {row.case_id: row.pick for row in facts.cases}
    order = sorted(
        range(len(gathered.shown)),
        key=lambda i: (
            picks.get(gathered.shown[i].case_id) is None,
            gathered.shown[i].case_id not in suspected,
            i,
        ),
    )
    numbers = sorted(order[: work.most_cases])
    at = {row.case_id: i for i, row in enumerate(facts.cases)}

    def draw(number: int) -> _Drawn:
        if work.stop():
            raise StoppedError(STOPPED)
        shown = gathered.shown[number]
        keep = picks.get(shown.case_id) is not None
        return _draw_case(folder, shown, at[shown.case_id], gathered, keep)

    def name_of(number: int) -> str:
        return gathered.shown[number].case_id

    needs = {name_of(number): _bytes_of(gathered.shown[number]) for number in numbers}
    at_once, room = workers_for(needs, work.workers), room_for(needs)
    drawn = for_each(draw, numbers, name_of, at_once, "drawing", work.on_progress, room)
    rows = tuple(
        replace(row, file=drawn[row.case_id].file, label_size=drawn[row.case_id].label_size)
        if row.case_id in drawn
        else row
        for row in facts.cases
    )
    faults = [
        Missing(section=f"picture of {case_id}", reason=found.fault)
        for case_id, found in drawn.items()
        if found.fault is not None
    ]
    if len(numbers) < len(gathered.shown):
        text = f"{len(numbers)} of {len(gathered.shown)} cases can be looked at; --cases sets it"
        faults.append(Missing(section="pictures", reason=text))
    sheets = _sheets(folder, rows, drawn)
    missing = (*facts.missing, *sorted(faults, key=lambda fault: fault.section))
    units = {found.unit for found in drawn.values() if found.unit}
    data = facts.data and replace(facts.data, size_unit=min(units, default=""))
    return replace(facts, cases=rows, missing=missing, sheets=sheets, data=data)


def _bytes_of(shown: ShownCase) -> int:
    """Foretell the most bytes that drawing a case takes."""
    maps = (*(() if shown.reference is None else (shown.reference,)), *shown.maps.values())
    return bytes_to_read([*shown.images, *maps])


def _draw_case(
    folder: Path, shown: ShownCase, number: int, gathered: Gathered, keep: bool
) -> _Drawn:
    """Write the file of a case; one that cannot be read costs its picture, not the report."""
    try:
        preview, geometry, reference = _read(shown, gathered)
    except NnsegError as error:
        logger.warning("case %s is not shown: %s", shown.case_id, error)
        return _Drawn(file=None, label_size={}, fault=str(error))
    name = f"case-{number + 1:04d}.js"
    commit.write_whole(folder / name, to_script(preview, number))
    sizes: dict[str, float] = {}
    if gathered.facts.foreground is None and reference is not None:
        measured = measure(reference, gathered.labels, geometry)
        for label, found in measured.items():
            size = found.area_mm2 if found.volume_ml is None else found.volume_ml
            if found.voxels and size is not None:
                sizes[label] = size
    return _Drawn(
        file=name,
        label_size=sizes,
        unit="mm²" if geometry.dimensions == 2 else "ml",
        preview=preview if keep else None,
    )


def _read(shown: ShownCase, gathered: Gathered) -> tuple[Preview, Geometry, Segmentation | None]:
    """Read a case and give what is shown of it, where it lies, and its reference."""
    channels: dict[str, NDArray[Any]] = {}
    grids: list[tuple[Path, Geometry]] = []
    if shown.images:
        arrays, geometry = read_stored(shown.images, len(gathered.channels) or None)
        names = gathered.channels or tuple(f"channel {i}" for i in range(len(arrays)))
        channels = dict(zip(names, arrays, strict=True))
        grids.append((shown.images[0], geometry))

    def label_map(path: Path) -> Segmentation:
        found, grid = read_segmentation(path)
        if grids and (fault := grid_fault(grids[0][1], grid)):
            raise DataError(f"{path}: lies on another grid than the rest of its case: {fault}")
        grids.append((path, grid))
        return found

    reference = None if shown.reference is None else label_map(shown.reference)
    maps = {name: label_map(path) for name, path in shown.maps.items()}
    if not grids:
        raise DataError(f"case {shown.case_id}: has neither an image nor a label map; restore them")
    preview = make_preview(
        channels,
        maps,
        gathered.labels,
        grids[0][1],
        reference=reference,
        anatomical=knows_directions(*grids[0]),
        mark=shown.mark,
    )
    return preview, grids[0][1], reference


def _sheets(folder: Path, cases: Sequence[CaseRow], drawn: "dict[str, _Drawn]") -> tuple[str, ...]:
    """Draw a contact sheet of the worst, the median and the best cases each."""
    names = []
    for pick in PICKS:
        rows = []
        for case in cases:
            found = drawn.get(case.case_id)
            if case.pick == pick and found is not None and found.preview is not None:
                score = "" if case.dice is None else f"   Dice {number(case.dice)}"
                rows.append((f"{pick}: {case.case_id}{score}", found.preview))
        if rows:
            name = f"{pick}.png"
            commit.write_whole(folder / name, contact_sheet(rows))
            names.append(name)
    return tuple(names)


def _digest(folder: Path) -> str:
    """Give a hash of the names and bytes of all files of a folder, short enough for a name."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(f"{path.name} {commit.sha256(path)}\n".encode())
    return digest.hexdigest()[:16]
