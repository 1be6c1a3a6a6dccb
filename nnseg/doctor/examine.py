"""Every problem of a raw dataset at once: file, what was found, what to do about it.

Read `examine` first. It goes over dataset.json, then over the file names, then over each case (a
file is read once), then over what only all cases together show. Bad data never raise here.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from nnseg.dataset import DatasetSpec
from nnseg.dataset.groups import GroupRule
from nnseg.doctor.findings import Finding, Notes, in_order
from nnseg.doctor.listing import Listing, judge_folds, list_dataset
from nnseg.doctor.suspects import (
    ChannelLook,
    Look,
    Thumbnail,
    compare,
    make_thumbnail,
    measure_intensities,
)
from nnseg.errors import NnsegError
from nnseg.image.normalize import normalizer_for_channel
from nnseg.parallel import for_each
from nnseg.volume import Geometry, count_not_finite, grid_fault, read_array, read_channels

T = TypeVar("T")
Each: TypeAlias = Callable[[Callable[[str], Any], Sequence[str]], Mapping[str, Any]]

LISTED = 5  # values or names that one message shows; more are counted


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SoundCase:
    """A labelled case in whose files no error was found, with its arrays as the files have them."""

    case_id: str
    images: tuple[Path, ...]
    label: Path
    channels: tuple[NDArray[Any], ...]  # each (z, y, x), in the file's own type
    labels: NDArray[Any]  # (z, y, x); whole numbers, though their type may be a float
    geometry: Geometry


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination(Generic[T]):
    """What `examine_each` found, and by case id what its visits gave."""

    findings: tuple[Finding, ...]
    visited: Mapping[str, T]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFacts:
    """What reading one label map showed."""

    path: Path
    geometry: Geometry
    is_float: bool  # how the file stores it
    values: Mapping[int, int] | None  # label to number of voxels; None if they are no integers


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFacts:
    """What reading one case showed, small enough to keep for all cases."""

    case_id: str
    findings: tuple[Finding, ...]
    grid: Geometry | None  # of the first channel that can be read
    digests: tuple[bytes, ...] | None  # of each channel's voxels; None if one cannot be used
    label: LabelFacts | None  # None if there is none, or it cannot be read
    look: Look | None  # None if no channel can be read
    visited: Any = None  # what the visit of `examine_each` gave; None for a case with errors

    @property
    def values(self) -> Mapping[int, int] | None:
        """Label to number of voxels; None if there is no label map with integers."""
        return None if self.label is None else self.label.values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ImageFacts:
    """What reading the channels of one case showed; see `CaseFacts` and `Look`."""

    grid: Geometry | None
    digests: tuple[bytes, ...]  # of those whose voxels are finite
    channels: tuple[ChannelLook, ...]  # of those that are not constant either
    thumbnail: Thumbnail | None
    arrays: tuple[NDArray[Any], ...]  # of those that can be read


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All that is known of a dataset after one read of its files."""

    listing: Listing
    cases: tuple[CaseFacts, ...]
    findings: tuple[Finding, ...]


def examine(
    folder: Path,
    *,
    rule: GroupRule | None = None,
    made: Path | None = None,
    workers: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Finding, ...]:
    """Find every problem of a raw dataset's training data.

    Bad data never raise. Where a part of dataset.json cannot be used, the checks that need it are
    left out and the others are made all the same.

    Args:
        folder: The dataset, with dataset.json, imagesTr and labelsTr.
        rule: Says which cases are of one patient; None looks whether the ids seem to say so.
        made: The splits_final.json that is used where the dataset has none, if it is there.
        workers: Threads; each holds one case's channel and label map in memory.
        on_progress: Called in this thread with the cases done and their number.

    Returns:
        The findings, sorted by file, then by rule.

    Raises:
        UsageError: `rule` finds no patient in some case.
    """
    done = survey(folder, None, in_threads(workers, on_progress))
    return in_order([*done.findings, *judge_folds(done.listing, rule, made)])


def examine_each(
    folder: Path,
    visit: Callable[[SoundCase], T] | None,
    each: Each,
) -> Examination[T]:
    """Do what `examine` does, and let `visit` work on each sound case while its arrays are there.

    So no file is read twice for those who need more of it than its faults. Whether folds part
    patients is not judged here, but where folds are made.

    Args:
        folder: The dataset, with dataset.json, imagesTr and labelsTr.
        visit: Called where `each` does its work; None for no visit.
        each: Calls a function with each of some case ids and gives the results by id. The function
            and its results can be sent to another process if `visit` and what it gives can be.
    """
    done = survey(folder, visit, each)
    visited = {c.case_id: c.visited for c in done.cases if c.visited is not None}
    return Examination(findings=done.findings, visited=visited)


def survey(
    folder: Path,
    visit: Callable[[SoundCase], Any] | None,
    each: Each,
) -> Survey:
    """Do what `examine_each` does, and give what the findings follow from with them."""
    notes = Notes(folder)
    listing = list_dataset(notes)
    cases: list[CaseFacts] = []
    if listing.case_ids:
        by_id = each(partial(_examine_case, listing, visit), listing.case_ids)
        cases = [by_id[case_id] for case_id in listing.case_ids]
        for facts in cases:
            notes.findings.extend(facts.findings)
        _check_dimensions(notes, listing, cases)
        _check_duplicates(notes, listing, cases)
        _check_labels_together(notes, listing, cases)
        compare(notes, [facts.look for facts in cases if facts.look is not None])
    return Survey(listing=listing, cases=tuple(cases), findings=in_order(notes.findings))


def in_threads(workers: int, on_progress: Callable[[int, int], None] | None) -> Each:
    """Give an `each` whose work is done by threads of this process."""
    tell = None if on_progress is None else lambda _, done, count: on_progress(done, count)

    def each(work: Callable[[str], Any], case_ids: Sequence[str]) -> Mapping[str, Any]:
        return for_each(work, case_ids, str, workers, "examining", tell)

    return each


def _examine_case(
    listing: Listing, visit: Callable[[SoundCase], Any] | None, case_id: str
) -> CaseFacts:
    """Read every declared file of a case once and judge what is in it; visit it if it is sound."""
    notes = Notes(listing.folder, case_id)
    listed = listing.images.get(case_id, {})
    files = {path: names for path, names in listed.items() if names}
    image = _examine_image(notes, files, keep=visit is not None)
    path = listing.labels.get(case_id)
    read = None if path is None else _read(notes, path, read_array)
    label = label_thumbnail = visited = look = None
    if path is not None and read is not None:
        label = _examine_label(notes, listing, path, read, image.grid)
        if label.values is not None:
            label_thumbnail = make_thumbnail(_foreground(listing.spec, read[0]))
        errors = any(finding.severity == "error" for finding in notes.findings)
        whole = len(image.arrays) == len(listing.spec.channels)
        if visit is not None and image.grid is not None and whole and not errors:
            sound = SoundCase(
                case_id=case_id,
                images=tuple(files),
                label=path,
                channels=image.arrays,
                labels=read[0],
                geometry=image.grid,
            )
            visited = visit(sound)
    if image.grid is not None:
        look = Look(
            case_id=case_id,
            image=next(iter(files)),
            label=path,
            geometry=image.grid,
            channels=image.channels,
            thumbnail=image.thumbnail,
            label_thumbnail=label_thumbnail,
        )
    return CaseFacts(
        case_id=case_id,
        findings=tuple(notes.findings),
        grid=image.grid,
        digests=image.digests if len(image.digests) == len(files) and image.channels else None,
        label=label,
        look=look,
        visited=visited,
    )


def _examine_image(
    notes: Notes, files: Mapping[Path, tuple[str, ...]], *, keep: bool
) -> _ImageFacts:
    """Judge the images of a case, file to the names of its channels; `keep` keeps their arrays."""
    grid: tuple[str, Geometry] | None = None  # of the first file that can be read
    digests: list[bytes] = []
    seen: dict[bytes, str] = {}  # voxels to file, constant ones left out
    figures: list[ChannelLook] = []
    thumbnail = None
    arrays: list[NDArray[Any]] = []
    for path, names in files.items():
        read = _read(notes, path, partial(read_channels, count=len(names)))
        if read is None:
            continue
        channels, geometry = read
        if keep:
            arrays.extend(channels)
        if grid is None:
            grid = path.name, geometry
        elif fault := grid_fault(grid[1], geometry):
            found = f"lies on another grid than {grid[0]}: {fault}"
            notes.error("channel_grid", path, found, f"resample it to the grid of {grid[0]}")
        if not _check_finite(notes, path, channels):
            continue
        digests.append(_digest(channels))
        if not _check_not_constant(notes, path, channels):
            continue
        first = seen.setdefault(digests[-1], path.name)
        if first != path.name:
            found = f"has the same voxels as {first}"
            notes.warning("channel_repeated", path, found, "give it the right channel's file")
        figures.extend(_look_at_channels(path, names, channels))
        if path == next(iter(files)):
            thumbnail = make_thumbnail(channels[0])
    return _ImageFacts(
        grid=grid and grid[1],
        digests=tuple(digests),
        channels=tuple(figures),
        thumbnail=thumbnail,
        arrays=tuple(arrays),
    )


def _look_at_channels(
    path: Path, names: Sequence[str], channels: NDArray[Any]
) -> Iterator[ChannelLook]:
    for name, array in zip(names, channels, strict=True):
        if array.min() != array.max():  # a picture may lack a colour
            intensities = measure_intensities(array, is_ct=normalizer_for_channel(name) == "ct")
            yield ChannelLook(file=path, name=name, intensities=intensities)


def _foreground(spec: DatasetSpec, labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark what is neither background nor ignored, (z, y, x)."""
    mask: NDArray[np.bool_] = labels != 0
    if spec.labels.ignore is not None:
        mask &= labels != spec.labels.ignore
    return mask


def _examine_label(
    notes: Notes,
    listing: Listing,
    path: Path,
    read: tuple[NDArray[Any], Geometry],
    grid: Geometry | None,
) -> LabelFacts:
    """Judge one label map."""
    array, geometry = read
    if grid is not None and (fault := grid_fault(grid, geometry)):
        remedy = "resample it to the image's grid with nearest neighbour, or pair the right files"
        notes.error("label_grid", path, f"lies on another grid than its image: {fault}", remedy)
    values = _check_integers(notes, path, array)
    if values is not None and "labels" in listing.known:
        _check_declared(notes, listing, path, values)
        _check_not_empty(notes, listing, path, values)
    is_float = array.dtype.kind == "f"
    return LabelFacts(path=path, geometry=geometry, is_float=is_float, values=values)


def _read(
    notes: Notes, path: Path, reader: Callable[[Path], tuple[NDArray[Any], Geometry]]
) -> tuple[NDArray[Any], Geometry] | None:
    try:
        return reader(path)
    except NnsegError as error:
        notes.caught("unreadable", path, error)
    except MemoryError:
        remedy = "free some, resample the image, or take a machine with more"
        notes.error("unreadable", path, "does not fit into the memory", remedy)
    except Exception as error:  # whatever a damaged file does to a library, it is a finding
        found = f"cannot be read ({type(error).__name__}: {error})"
        notes.error("unreadable", path, found, "restore the file")
    return None


def _check_finite(notes: Notes, path: Path, array: NDArray[Any]) -> bool:
    wrong = count_not_finite(array)
    if wrong:
        found = f"{wrong} voxels are not finite (NaN or infinite), or too large for float32"
        notes.error("not_finite", path, found, "repair or remove the file")
    return wrong == 0


def _check_not_constant(notes: Notes, path: Path, channels: NDArray[Any]) -> bool:
    if any(channel.size and channel.min() != channel.max() for channel in channels):
        return True
    values = ", ".join(f"{float(channel.flat[0]):g}" for channel in channels if channel.size)
    found = f"every voxel is {values}" if values else "has no voxels"
    notes.warning("channel_constant", path, found, "check the export of this image")
    return False


def _check_integers(notes: Notes, path: Path, array: NDArray[Any]) -> Mapping[int, int] | None:
    """Count the voxels of each label; None, with an error, if they are no integers."""
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            wrong = array[(array != np.rint(array)) | ~np.isfinite(array)]
        if wrong.size:
            found = f"{wrong.size} voxels are no integers, such as {float(wrong[0]):.6g}"
            remedy = "make the label map anew, resampled with nearest neighbour, not interpolated"
            notes.error("label_not_integer", path, found, remedy)
            return None
    if array.dtype in (np.uint8, np.uint16):  # counting is much faster than sorting
        counts = np.zeros(int(array.max(initial=0)) + 1, dtype=np.int64)
        for plane in array:  # one by one, because counting makes 8 bytes of each voxel
            counts += np.bincount(plane.ravel(), minlength=counts.size)
        return {int(v): int(counts[v]) for v in np.flatnonzero(counts)}
    values, numbers = np.unique(array, return_counts=True)
    return {int(v): int(n) for v, n in zip(values, numbers, strict=True)}


def _check_declared(notes: Notes, listing: Listing, path: Path, values: Mapping[int, int]) -> None:
    declared = listing.spec.labels.values
    strange = [value for value in values if value not in declared]
    if not strange:
        return
    parts = []
    for value in strange[:LISTED]:
        nearest = min(declared, key=lambda known: abs(known - value))
        name = _label_name(listing.spec, nearest)
        parts.append(f"{value} in {values[value]} voxels (nearest is {nearest}, {name})")
    more = f" and {len(strange) - LISTED} more" if len(strange) > LISTED else ""
    found = f"has values that dataset.json does not declare: {', '.join(parts)}{more}"
    notes.error("label_undeclared", path, found, "correct the label map, or declare the labels")


def _check_not_empty(notes: Notes, listing: Listing, path: Path, values: Mapping[int, int]) -> None:
    if not _has_foreground(listing.spec, values):
        remedy = "check that the case has nothing to segment"
        notes.warning("label_empty", path, "has no foreground voxel", remedy)


def _check_dimensions(notes: Notes, listing: Listing, cases: Sequence[CaseFacts]) -> None:
    """Note pictures among volumes: the slices of a picture lie apart by a stand-in, not by mm.

    A volume of one slice counts as neither, because only its thickness tells it from a picture.
    """
    flat = [c.case_id for c in cases if c.grid is not None and c.grid.dimensions == 2]
    deep = [
        c.case_id
        for c in cases
        if c.grid is not None and c.grid.dimensions == 3 and c.grid.shape[0] > 1
    ]
    if not flat or not deep:
        return
    found = f"holds {_some(flat)} of 2D files and {_some(deep)} of 3D files"
    path = next(iter(listing.images[flat[0]])).parent
    notes.error("dimensions_mixed", path, found, "make a dataset of the ones and one of the others")


def _some(case_ids: Sequence[str]) -> str:
    """Count cases and name the first of them."""
    more = ", ..." if len(case_ids) > LISTED else ""
    plural = "" if len(case_ids) == 1 else "s"
    return f"{len(case_ids)} case{plural} ({', '.join(case_ids[:LISTED])}{more})"


def _check_duplicates(notes: Notes, listing: Listing, cases: Sequence[CaseFacts]) -> None:
    first: dict[tuple[bytes, ...], str] = {}
    for facts in cases:
        if facts.digests is None:
            continue
        other = first.setdefault(facts.digests, facts.case_id)
        if other != facts.case_id:
            notes.case_id = facts.case_id
            path = next(iter(listing.images[facts.case_id]))
            found = f"has the same voxels as case {other}"
            remedy = "keep one of them; a copy may end in both training and validation"
            notes.warning("duplicate", path, found, remedy)
    notes.case_id = None


def _check_labels_together(notes: Notes, listing: Listing, cases: Sequence[CaseFacts]) -> None:
    """Judge what the label maps hold among them: something at all, and every declared label."""
    counted = [facts.values for facts in cases if facts.values is not None]
    if not counted or "labels" not in listing.known:
        return
    spec = listing.spec
    if not any(_has_foreground(spec, values) for values in counted):
        found = f"none of the {len(counted)} label maps has a foreground voxel"
        notes.error("all_empty", notes.folder / "labelsTr", found, "add annotated cases")
        return
    present = Counter(value for values in counted for value in values)
    absent = [value for value in _foreground_values(spec) if value not in present]
    if absent:
        names = [f"{value} ({_label_name(spec, value)})" for value in absent[:LISTED]]
        more = f" and {len(absent) - LISTED} more" if len(absent) > LISTED else ""
        found = f"no label map has label {', '.join(names)}{more}"
        remedy = "remove what no case has from labels, or add cases that have it"
        notes.warning("label_absent", notes.folder / "dataset.json", found, remedy)


def _has_foreground(spec: DatasetSpec, values: Mapping[int, int]) -> bool:
    """Say whether anything but background and ignore occurs; undeclared values count too."""
    return any(value not in (0, spec.labels.ignore) for value in values)


def _foreground_values(spec: DatasetSpec) -> Iterator[int]:
    return (value for value in spec.labels.values if value not in (0, spec.labels.ignore))


def _label_name(spec: DatasetSpec, value: int) -> str:
    """Give the name of a label; of several regions that hold it, the smallest."""
    entries = {
        name: entry if isinstance(entry, tuple) else (entry,)
        for name, entry in spec.labels.labels.items()
    }
    return min((name for name in entries if value in entries[name]), key=lambda n: len(entries[n]))


def _digest(channels: NDArray[Any]) -> bytes:
    """Give a hash of the voxels and their shape, whatever type the file stores them in."""
    digest = hashlib.blake2b(str(channels.shape).encode(), digest_size=16)
    for channel in channels:
        for plane in channel:  # one by one, or a large image would be there twice
            digest.update(np.ascontiguousarray(plane, dtype=np.float32).data)
    return digest.digest()
