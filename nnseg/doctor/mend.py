"""A corrected copy of a raw dataset: what is certain is mended, the rest stays and is listed.

Read `mend` first; `nnseg.doctor.remedies` decides what is certain. The original is only read. The
copy's files are copies and never links, so that no later change of one of them can reach the
original, and the copy appears under its name when it is whole.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnseg import record
from nnseg.axes import smallest_integer_type
from nnseg.commit import cannot_write, sync_folder, whole_file, write_whole
from nnseg.doctor.examine import examine, in_threads, survey
from nnseg.doctor.findings import Finding, in_order
from nnseg.doctor.listing import judge_folds
from nnseg.doctor.remedies import DRIFT, FULL, Mend, NewLabel, Recipe, make_recipe
from nnseg.errors import DataError, MachineError, UsageError
from nnseg.folders import FOLDER_NAME_RULE, is_folder_name
from nnseg.lock import lock_file, locked
from nnseg.parallel import OnProgress, cores, for_each
from nnseg.volume import read_array, side_files, write

logger = logging.getLogger(__name__)

REPORT = "mended.json"  # in the copy: what was mended and what was left
HEADROOM = 1.05  # of the disk that the copied bytes need

_WARNED = "a warning: only you can tell whether it is right"
_REASONS = {  # why a finding is not mended, by its rule
    "case_count": "the cases cannot be counted",
    "channel_grid": "intensities are never changed, and resampling would",
    "channel_missing": "only its file can bring it back",
    "channel_undeclared": "only you can tell whether it is a channel",
    "dimensions_mixed": "only you can tell which of them belong together",
    "dataset_json_invalid": "only you can tell what is meant",
    "dataset_json_missing": "only you can tell what the files mean",
    "dataset_json_unreadable": "only you can tell what was meant",
    "all_empty": "nobody but an annotator can make labels",
    "file_name": "the dataset's other files are not understood either",
    "file_twice": "only you can tell which one is right",
    "folder_missing": "only its files can bring it back",
    "folds": "only you can tell which cases belong where",
    "image_missing": "the dataset's images are not known",
    "label_grid": f"it is more than {DRIFT:g} voxels off, and may belong to another image",
    "label_missing": "the dataset's label maps are not known",
    "label_not_integer": "rounding would invent borders where labels have been mixed",
    "label_undeclared": f"only 0 and {FULL} with two declared labels can mean just one thing",
    "listed_missing": "only its file can bring it back",
    "name_unusable": "only you can tell what it should be called",
    "no_cases": "only images can make cases",
    "not_finite": "nobody knows what the values were",
    "unreadable": "what a damaged file has lost cannot be made up",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A finding that stays in the copy, and why it was not mended."""

    finding: Finding
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mending:
    """What became of a dataset: its corrected copy, if there was something to mend."""

    source: str  # folders as paths
    copy: str | None
    mended: tuple[Mend, ...]
    left: tuple[Left, ...]

    @property
    def findings_left(self) -> tuple[Finding, ...]:
        """What `doctor` says of the copy."""
        return tuple(left.finding for left in self.left)


def mend(
    source: Path,
    target: Path,
    *,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Mending:
    """Write a corrected copy of the raw dataset `source` to `target`; leave `source` as it is.

    These are mended, and nothing else is:

    - Masks of 0 and 255, where dataset.json declares two labels and 255 is none of them: 255
      becomes the label that is not the background.
    - Label maps that lie up to 0.1 of their image's smallest voxel beside it: they take its grid.
    - Label maps that store integers as floats: they are stored as integers.
    - Files without a partner and files whose names say nothing: they are left out, and so are
      hidden files. The dataset's own folds lose the cases that are left out.
    - numTraining: it becomes the number of cases.

    Every other file is copied byte by byte. Where nothing can be mended, no copy is written.

    Args:
        source: The dataset, with dataset.json, imagesTr and labelsTr.
        target: A folder that is not there yet, or is empty.
        workers: Files at once; None is one a core.
        on_progress: Called in this thread after each case and file.

    Raises:
        UsageError: `target` has files in it, lies in `source`, or has a name that no dataset of
            ours can have.
        DataError: No case would be left.
        MachineError: The disk does not suffice, or another run is at it.
    """
    _check_target(source, target)
    workers = workers or cores()
    before = survey(source, None, in_threads(workers, _tell(on_progress, "examining")))
    files = _find_files(source)
    recipe = make_recipe(before, files)
    if not recipe.mended:
        findings = in_order([*before.findings, *judge_folds(before.listing, None, None)])
        return _report(source, None, (), findings)
    unfinished = target.with_name(f".{target.name}.unfinished")
    with locked(unfinished, f"nnseg doctor {source.name} --fix"):
        try:
            _empty(unfinished)  # of what a run that was cut off has left
            _check_disk(unfinished, files)
            _copy(source, unfinished, files, recipe, workers, on_progress)
            tell = _tell(on_progress, "examining the copy")
            findings = examine(unfinished, workers=workers, on_progress=tell)
            result = _report(source, target, recipe.mended, findings)
            record.save(result, unfinished / REPORT)
            if target.is_dir():
                target.rmdir()
            unfinished.rename(target)
            sync_folder(target.parent)
        except OSError as error:
            raise cannot_write(target, error) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            with contextlib.suppress(OSError):  # whoever waits for it finds that it is another now
                lock_file(unfinished).unlink(missing_ok=True)
    return result


def describe_mending(mending: Mending) -> str:
    """Give what was mended and what was left as lines for people."""
    lines = [f"mended   {mend.file}: {mend.done}" for mend in mending.mended]
    for left in mending.left:
        f = left.finding
        lines.append(f"{f.severity:<7}  {f.file}: {f.found}; {f.remedy} (left: {left.reason})")
    if mending.copy is None:
        lines.append("nothing can be mended for certain; no copy was written")
    else:
        lines.append(f"corrected copy: {mending.copy}")
    return "\n".join(lines)


def _check_target(source: Path, target: Path) -> None:
    here, there = source.resolve(), target.resolve()
    if not is_folder_name(target.name):
        raise UsageError(f"{target.name!r} cannot name a dataset; {FOLDER_NAME_RULE}")
    if there == here or here in there.parents:
        raise UsageError(f"{target} lies in the dataset itself; give a folder beside it with -o")
    if target.is_dir():
        if any(target.iterdir()):
            raise UsageError(
                f"{target} is not empty; give another folder with -o, or remove this one"
            )
    elif target.exists() or target.is_symlink():
        raise UsageError(f"{target} is no folder; give another one with -o")


def _tell(on_progress: OnProgress | None, what: str) -> Callable[[int, int], None] | None:
    return None if on_progress is None else lambda done, count: on_progress(what, done, count)


def _report(
    source: Path, copy: Path | None, mended: tuple[Mend, ...], findings: Sequence[Finding]
) -> Mending:
    left = tuple(
        Left(finding=finding, reason=_REASONS.get(finding.rule, _WARNED)) for finding in findings
    )
    return Mending(
        source=str(source), copy=None if copy is None else str(copy), mended=mended, left=left
    )


def _find_files(folder: Path) -> list[Path]:
    """List every file below a folder, links followed.

    Raises:
        DataError: A link leads to a folder around it.
    """

    def walk(inside: Path, around: frozenset[Path]) -> Iterator[Path]:
        real = inside.resolve()
        if real in around:
            raise DataError(f"{inside}: links to a folder that it lies in; remove the link")
        for path in sorted(inside.iterdir()):
            if path.is_dir():
                yield from walk(path, around | {real})
            elif path.is_file():
                yield path
            else:
                logger.warning("%s is neither a file nor a folder, and is not copied", path)

    try:
        return list(walk(folder, frozenset()))
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _check_disk(folder: Path, files: Sequence[Path]) -> None:
    needed = int(HEADROOM * sum(path.stat().st_size for path in files))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MachineError(
            f"{folder.parent}: a copy takes {needed / 2**20:.0f} MiB and {free / 2**20:.0f} MiB "
            "are free; make room, or give a folder elsewhere with -o"
        )


def _copy(
    source: Path,
    target: Path,
    files: Sequence[Path],
    recipe: Recipe,
    workers: int,
    on_progress: OnProgress | None,
) -> None:
    """Write every file of the copy, changed or not."""
    written = {side for path in recipe.labels for side in side_files(path)}
    skipped = {*recipe.dropped, *written}

    def write_one(path: Path) -> None:
        place = target / path.relative_to(source)
        if path in recipe.texts:
            write_whole(place, recipe.texts[path].encode())
        elif path in recipe.labels:
            _write_label(path, place, recipe.labels[path])
        else:
            with whole_file(place) as temporary:
                shutil.copyfile(path, temporary)

    chosen = [path for path in files if path not in skipped]
    for_each(write_one, chosen, str, workers, "copying", on_progress)


def _write_label(source: Path, target: Path, new: NewLabel) -> None:
    array: NDArray[Any]
    array, _ = read_array(source)
    if new.foreground is not None:
        kind = smallest_integer_type(new.foreground)
        array = (array == FULL).astype(kind) * kind.type(new.foreground)
    elif array.dtype.kind == "f" and new.values:
        low, high = np.min_scalar_type(min(new.values)), np.min_scalar_type(max(new.values))
        array = array.astype(np.promote_types(low, high))
    write(target, array, new.geometry)
    for side in side_files(source):
        if side.suffix == ".json":
            _keep_side_file(side, target.with_name(side.name))


def _keep_side_file(source: Path, target: Path) -> None:
    """Write what the spacing file of a TIFF says into the copy's; images may share it."""
    written = record.read_json(target) if target.is_file() else {}
    write_whole(target, record.json_text({**record.read_json(source), **written}).encode())
