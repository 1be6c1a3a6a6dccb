"""The report with its files: what there is to say gathered, cases drawn, the page written."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from nnseg import commit, record
from nnseg.axes import Segmentation
from nnseg.errors import DataError, NnsegError, StoppedError
from nnseg.folders import Folders, comparison_folder, report_file, report_folder
from nnseg.gathering import (
    Gathered,
    ShownCase,
    gather_comparison,
    gather_dataset,
    gather_predictions,
)
from nnseg.lock import locked
from nnseg.parallel import OnProgress, for_each
from nnseg.planning import DEFAULT_PLAN
from nnseg.report.facts import CaseRow, Facts, Missing, Pick
from nnseg.report.page import niivue, page
from nnseg.report.preview import Preview, make_preview, to_script
from nnseg.report.sheets import contact_sheet
from nnseg.report.wording import number, verdict
from nnseg.runlog import logged_run
from nnseg.statistics import measure
from nnseg.volume import Geometry, grid_fault, read_segmentation, read_stored

logger = logging.getLogger(__name__)

MOST_CASES = 200  # that can be looked at
FILES = "files-"  # and a hash of all in it: the folder of what the page loads
NEXT = "files.next"
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
        MachineError: The folder cannot be written, or another run writes it.
        StoppedError: `stop` said True; the report that was there stays.
    """
    target = output or report_folder(folders.models_folder(dataset))
    arguments = {"dataset": dataset, "plan_name": plan_name, "most_cases": most_cases}
    work = _Work(most_cases=most_cases, workers=workers, on_progress=on_progress, stop=stop)

    def gather() -> Gathered:
        return gather_dataset(folders, dataset, plan_name, workers=workers, on_progress=on_progress)

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
        MachineError: The folder cannot be written, or another run writes it.
        StoppedError: `stop` said True; the report that was there stays.
    """
    beside = report_folder(predictions) if second is None else comparison_folder(second)
    target = output or beside
    arguments = {
        "predictions": str(predictions),
        "second": None if second is None else str(second),
        "most_cases": most_cases,
    }
    work = _Work(most_cases=most_cases, workers=workers, on_progress=on_progress, stop=stop)

    def gather() -> Gathered:
        if second is None:
            return gather_predictions(folders, predictions, dataset_json)
        return gather_comparison(folders, predictions, second, dataset_json)

    return _write(target, arguments, gather, work)


def _write(
    target: Path, arguments: dict[str, Any], gather: Callable[[], Gathered], work: _Work
) -> Path:
    """Gather, draw and write; the page, which is replaced in one step, is what makes it a report.

    What the page loads lies in a folder named for what it holds, so that a page never loads the
    files of another.
    """
    with (
        locked(target, "nnseg report"),
        logged_run(target, "report", arguments, stop=work.stop) as run,
    ):
        gathered = gather()
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
        facts = replace(facts, made=made)
        facts = replace(facts, verdict=verdict(facts))
        text = page(facts, gathered.labels, name, has_niivue=bool(extras))
        index = report_file(target)
        record.save(facts, target / "report.json")
        commit.write_whole(index, text.encode("utf-8"))
        for old in target.glob(f"{FILES}*"):
            if old != files:
                commit.remove(old)
        run.outputs += [index, target / "report.json"]
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
            raise StoppedError("stopped; the report that was there stays")
        shown = gathered.shown[number]
        keep = picks.get(shown.case_id) is not None
        return _draw_case(folder, shown, at[shown.case_id], gathered, keep)

    def name_of(number: int) -> str:
        return gathered.shown[number].case_id

    drawn = for_each(draw, numbers, name_of, work.workers, "drawing", work.on_progress)
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


def _draw_case(
    folder: Path, shown: ShownCase, number: int, gathered: Gathered, keep: bool
) -> _Drawn:
    """Write the file of a case; one that cannot be read costs its picture, not the report."""
    try:
        preview, geometry, maps = _read(shown, gathered)
    except NnsegError as error:
        logger.warning("case %s is not shown: %s", shown.case_id, error)
        return _Drawn(file=None, label_size={}, fault=str(error))
    name = f"case-{number + 1:04d}.js"
    commit.write_whole(folder / name, to_script(preview, number))
    sizes: dict[str, float] = {}
    if gathered.facts.foreground is None and "reference" in maps:
        measured = measure(maps["reference"], gathered.labels, geometry)
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


def _read(
    shown: ShownCase, gathered: Gathered
) -> tuple[Preview, Geometry, dict[str, Segmentation]]:
    """Read a case and give what is shown of it, where it lies, and its label maps."""
    geometry: Geometry | None = None
    channels: dict[str, NDArray[Any]] = {}
    maps: dict[str, Segmentation] = {}
    if shown.images:
        arrays, geometry = read_stored(shown.images, len(gathered.channels) or None)
        names = gathered.channels or tuple(f"channel {i}" for i in range(len(arrays)))
        channels = dict(zip(names, arrays, strict=True))
    for name, path in shown.maps.items():
        maps[name], grid = read_segmentation(path)
        if geometry is not None and (fault := grid_fault(geometry, grid)):
            raise DataError(f"{path}: lies on another grid than the rest of its case: {fault}")
        geometry = geometry or grid
    if geometry is None:
        raise DataError(f"case {shown.case_id}: has neither an image nor a label map; restore them")
    preview = make_preview(channels, maps, gathered.labels, geometry, mark=shown.mark)
    return preview, geometry, maps


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
