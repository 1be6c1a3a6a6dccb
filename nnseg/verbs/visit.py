"""One visit of a case: what is read of it serves all that is wanted of it.

While the doctor has the arrays of a case, `measure` measures it and the `Shelf` may keep it;
`preprocess` makes what several configurations want, from the shelf or from its files.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from nnseg import store
from nnseg.axes import Segmentation, Spacing, smallest_integer_type, three
from nnseg.commit import sha256
from nnseg.dataset import Case
from nnseg.doctor.examine import SoundCase
from nnseg.errors import DataError, MissingError
from nnseg.fingerprint import CaseMeasurement, measure_cropped
from nnseg.image.crop import Cropped, crop_to_body
from nnseg.image.intensity import MAX_VALUES
from nnseg.image.normalize import NORMALIZERS, Normalizer
from nnseg.plan import Configuration, Plan
from nnseg.preprocess import (
    arrays_hash,
    find_locations,
    normalize_case,
    resample_case,
    same_normalization,
)
from nnseg.store import StoredCase, origin
from nnseg.volume import grid_fault, read_segmentation, read_stored

Stamps: TypeAlias = tuple[tuple[int, ...], ...]  # what changes when a case's files do
Hashes: TypeAlias = tuple[str, ...]  # SHA-256 of a case's files, in the order of `Case.files`

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadCase:
    """A labelled case as it was read, cut to its body."""

    cropped: Cropped
    spacing: Spacing  # mm, image order


@dataclass(slots=True)
class Shelf:
    """Cases kept in memory from one visit to the next, in at most `room` bytes.

    Those in `unwanted` are never kept: they are preprocessed already, as it seems. The hashes of
    the files are kept of all.
    """

    room: int
    unwanted: frozenset[str] = frozenset()
    _stamps: dict[str, Stamps] = field(default_factory=dict)
    _hashes: dict[str, Hashes] = field(default_factory=dict)
    _cases: dict[str, ReadCase] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, case_id: str, files: Sequence[Path]) -> None:
        """Say that a case is going to be read from these files."""
        stamps = stamps_of(files)
        with self._lock:
            if self._stamps.get(case_id) != stamps:
                self._hashes.pop(case_id, None)
                if case_id in self._cases:
                    self.room += self._cases.pop(case_id).cropped.bytes
            self._stamps[case_id] = stamps

    def note(self, case_id: str, hashes: Hashes) -> None:
        """Keep the hashes of the files of a case, whose reading was begun."""
        with self._lock:
            self._hashes[case_id] = hashes

    def hashes(self, case_id: str, stamps: Stamps) -> Hashes | None:
        """Give what `note` kept; None if there is nothing, or the files have changed since."""
        with self._lock:
            return self._hashes.get(case_id) if self._stamps.get(case_id) == stamps else None

    def put(self, case_id: str, case: ReadCase) -> None:
        """Keep a case, whose reading was begun, if it is wanted and fits."""
        size = case.cropped.bytes
        with self._lock:
            if case_id in self.unwanted or case_id in self._cases or size > self.room:
                return
            self.room -= size
            self._cases[case_id] = replace(case, cropped=_detached(case.cropped))

    def take(self, case_id: str, stamps: Stamps) -> ReadCase | None:
        """Give a case, which is then kept no longer; None if its files have changed since."""
        with self._lock:
            case = self._cases.pop(case_id, None)
            if case is None:
                return None
            self.room += case.cropped.bytes
        return case if self._stamps[case_id] == stamps else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A configuration to preprocess cases for, and where they go."""

    configuration: Configuration
    folder: Path
    data_hash: str  # `preprocessing_hash`


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be made of every case; `elsewhere` are folders that may have its arrays.

    `normalizers` are those of the plan: a worker does not know what its parent has registered.
    """

    plan: Plan
    targets: tuple[Target, ...]
    elsewhere: tuple[Path, ...] = ()
    normalizers: Mapping[str, Normalizer] = field(default_factory=dict)


def read_watched(
    files: Mapping[str, Sequence[Path]],
    shelf: Shelf | None,
    work: Callable[[str], T],
    case_id: str,
) -> T:
    """Do `work` on a case while its files must not change; what it reads is then what it hashes.

    Args:
        files: Those of each case.
        shelf: Learns that the case is being read.
        work: Reads the case by its id.
        case_id: The case.

    Raises:
        DataError: The files have changed meanwhile.
    """
    its = files.get(case_id, ())
    before = stamps_of(its)
    if shelf is not None:
        shelf.begin(case_id, its)
    result = work(case_id)
    refuse_changed(its, before)
    return result


def measure(
    shelf: Shelf | None, sound: SoundCase, *, most_values: int = MAX_VALUES
) -> CaseMeasurement:
    """Measure a case for the fingerprint, hash its files, and let the shelf keep it.

    Args:
        shelf: For threads, only.
        sound: The case.
        most_values: That are kept of each channel; see `nnseg.image.intensity.measure`.
    """
    raw = _hash_for(shelf, sound)
    case = ReadCase(cropped=_crop(sound), spacing=sound.geometry.spacing)
    if shelf is not None:
        shelf.put(sound.case_id, case)
    measured = measure_cropped(sound.case_id, case.cropped, case.spacing, most_values)
    return replace(measured, raw=raw)


def keep(shelf: Shelf | None, sound: SoundCase) -> Hashes:
    """Hash the files of a case that is measured already, and let the shelf keep it."""
    raw = _hash_for(shelf, sound)
    if shelf is not None and sound.case_id not in shelf.unwanted:
        shelf.put(sound.case_id, ReadCase(cropped=_crop(sound), spacing=sound.geometry.spacing))
    return raw


def _hash_for(shelf: Shelf | None, sound: SoundCase) -> Hashes:
    case = Case(case_id=sound.case_id, images=sound.images, label=sound.label)
    raw = _hashes(case.files)
    if shelf is not None:
        shelf.note(sound.case_id, raw)
    return raw


def stamps_of(files: Sequence[Path]) -> Stamps:
    """Give what changes when a file is written to; of one that is not there, nothing."""
    found = []
    for path in files:
        with suppress(OSError):
            status = path.stat()
            found.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
    return tuple(found)


def last_write(files: Sequence[Path]) -> int:
    """Give when the youngest of some files was written, in nanoseconds since 1970."""
    return max((written for _, written, *_ in stamps_of(files)), default=0)


def last_change(files: Sequence[Path]) -> int:
    """Give when the last of some files was written or put there with an older time.

    Their names, rights and links may have changed then, too, and nothing in them.
    """
    return max((max(written, changed) for _, written, changed, _ in stamps_of(files)), default=0)


def preprocess(job: Job, shelf: Shelf | None, case: Case) -> tuple[str, ...]:
    """Preprocess a case for each target, but where its record proves that this has been done.

    Arrays that two targets have in common, or that are in a folder elsewhere, are made once and
    shared. The case is read only if arrays have to be made, and if it is not on the shelf.

    Returns:
        The names of the configurations whose data were made or shared.

    Raises:
        DataError: The case has no label map, cannot be used, or changes while it is read.
    """
    if case.label is None:
        raise DataError(f"case {case.case_id} has no label map; training needs one")
    for name in job.normalizers.keys() - set(NORMALIZERS):
        NORMALIZERS.register(name, job.normalizers[name])
    stamps = stamps_of(case.files)
    raw = (shelf and shelf.hashes(case.case_id, stamps)) or _hashes(case.files)
    stale = [target for target in job.targets if not _is_current(target, case.case_id, raw)]
    missing = [target for target in stale if not _share_from_elsewhere(job, target, case, raw)]
    if missing:
        _make(job.plan, missing, case.case_id, raw, [_get(case, job.plan, shelf, stamps)])
    return tuple(target.configuration.name for target in stale)


def _hashes(files: Sequence[Path]) -> Hashes:
    found = []
    for path in files:
        try:
            found.append(sha256(path))
        except FileNotFoundError:
            raise MissingError(f"{path} does not exist; restore it, or remove the case") from None
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); restore the file"
            ) from None
    return tuple(found)


def _is_current(target: Target, case_id: str, raw: Hashes) -> bool:
    stored = store.find_case(target.folder, case_id)
    return stored is not None and stored.made_from == origin(raw, target.data_hash)


def _share_from_elsewhere(job: Job, target: Target, case: Case, raw: Hashes) -> bool:
    """Take the arrays of a case from another configuration, of any plan, if they are the same."""
    for folder in job.elsewhere:
        if folder == target.folder:
            continue
        stored = store.find_record(folder, case.case_id)
        if stored is None:
            continue
        spacing, shape = stored.placement.spacing, stored.placement.shape_cropped
        wanted = _arrays_from(job.plan, target, raw, spacing, shape)
        if stored.arrays_from == wanted and _share(folder, stored, target, raw):
            return True
    return False


def _share(
    folder: Path, stored: StoredCase, target: Target, raw: Hashes, *, proven: bool = False
) -> bool:
    made_from, data_hash = origin(raw, target.data_hash), target.data_hash
    shared = store.share_case(
        folder, stored, target.folder, made_from=made_from, data_hash=data_hash, proven=proven
    )
    return shared is not None


def _arrays_from(
    plan: Plan,
    target: Target,
    raw: Hashes,
    spacing: Spacing,
    shape_cropped: tuple[int, int, int],
) -> str:
    return origin(raw, arrays_hash(plan, target.configuration, spacing, shape_cropped))


def _make(
    plan: Plan,
    targets: Sequence[Target],
    case_id: str,
    raw: Hashes,
    read: list[ReadCase],
) -> None:
    """Make the arrays of a case, which is taken out of the list `read`, and write them.

    What is no longer needed is let go before the next array is made: that decides how much memory
    a large case takes.
    """
    case = read.pop()
    cropped, spacing = case.cropped, case.spacing
    del case
    made: dict[str, tuple[Path, StoredCase]] = {}
    groups = _by_normalization(targets)
    while groups:
        group = groups.pop(0)
        normalized = normalize_case(cropped, spacing, plan, group[0].configuration)
        shape = three(normalized.image.shape[1:])
        if not groups:
            del cropped
        for target in group:
            arrays_from = _arrays_from(plan, target, raw, spacing, shape)
            if arrays_from in made and _share(*made[arrays_from], target, raw, proven=True):
                continue
            result = resample_case(normalized, plan, target.configuration)
            if target is group[-1]:
                del normalized
            assert result.segmentation is not None, "the case is labelled"
            stored = store.save_case(
                target.folder,
                case_id,
                result,
                find_locations(result.segmentation, plan.labels),
                made_from=origin(raw, target.data_hash),
                data_hash=target.data_hash,
                arrays_from=arrays_from,
            )
            made[arrays_from] = target.folder, stored


def _by_normalization(targets: Sequence[Target]) -> list[list[Target]]:
    groups: list[list[Target]] = []
    for target in targets:
        for group in groups:
            if same_normalization(group[0].configuration, target.configuration):
                group.append(target)
                break
        else:
            groups.append([target])
    return groups


def _get(case: Case, plan: Plan, shelf: Shelf | None, stamps: Stamps) -> ReadCase:
    kept = None if shelf is None else shelf.take(case.case_id, stamps)
    return kept or _read(case, plan, stamps)


def _read(case: Case, plan: Plan, stamps: Stamps) -> ReadCase:
    """Read a labelled case, whose label map must lie on the grid of its image."""
    channels, geometry = read_stored(case.images, len(plan.channels))
    assert case.label is not None, "the caller has looked"
    segmentation, other = read_segmentation(case.label)
    if fault := grid_fault(geometry, other):
        raise DataError(f"{case.label}: lies on another grid than the image: {fault}")
    refuse_changed(case.files, stamps)
    cropped = crop_to_body([_compact(channel) for channel in channels], _small(segmentation))
    return ReadCase(cropped=cropped, spacing=geometry.spacing)


def refuse_changed(files: Sequence[Path], stamps: Stamps) -> None:
    """Refuse what was read of files that are no longer as `stamps_of` found them before.

    Raises:
        DataError: Somebody has written to one of them meanwhile.
    """
    if stamps_of(files) != stamps:
        raise DataError(
            f"{files[0]}: files of the case changed while they were read; wait until "
            "they are there, and do the same again"
        )


def _crop(sound: SoundCase) -> Cropped:
    channels = [_compact(channel) for channel in sound.channels]
    return crop_to_body(channels, _small(sound.labels))


def _compact(channel: NDArray[Any]) -> NDArray[Any]:
    """Give a channel as float32, in which it is computed with, or in a smaller type of its own."""
    if channel.dtype.kind in "iub" and channel.dtype.itemsize <= 2:
        return channel
    return channel.astype(np.float32, copy=False)


def _small(labels: NDArray[Any]) -> Segmentation:
    """Give a label map, whose values are whole numbers, as integers of few bytes."""
    if labels.dtype.kind in "iu" and labels.dtype.itemsize <= 2:
        return labels
    if labels.size and labels.min() < 0:
        return labels.astype(np.int64)
    return labels.astype(smallest_integer_type(int(labels.max(initial=0))))


def _detached(case: Cropped) -> Cropped:
    """Give a case whose arrays do not keep larger ones in memory."""
    if case.relative_size == 1:
        return case
    labels = None if case.segmentation is None else np.array(case.segmentation)
    mask = None if case.mask is None else np.array(case.mask)
    channels = tuple(np.array(channel) for channel in case.channels)
    return replace(case, channels=channels, segmentation=labels, mask=mask)
