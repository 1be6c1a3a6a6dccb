"""Preprocessed cases on disk: compressed, chunked for patch reads, and each case whole or absent.

A case is its arrays, one Blosc2 file each, and a JSON record with their hashes and its own, written
last: a case without its record does not exist. Files are replaced, never changed, so that
configurations with the same arrays of a case share them as hard links.

Nothing waits here until the disk has written: after a power cut the hashes tell which cases are not
whole, and the same command makes those anew.
"""

import contextlib
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnseg import record
from nnseg.axes import Segmentation, Shape
from nnseg.commit import remove, sha256, sweep, whole_file, write_whole
from nnseg.errors import DataError, MissingError
from nnseg.frame import open_frame, pack
from nnseg.preprocess import Placement, Preprocessed

FORMAT = 2  # raised when files of an older version can no longer be used

ARRAYS = ("image", "segmentation", "mask", "locations")
ARRAY_FILE = re.compile(rf"(?P<case_id>.+)\.({'|'.join(ARRAYS)})\.b2nd", re.S)

# The kinds of array that may be in each file; what another program put there is not read.
TYPES = {
    "image": ("float32",),
    "segmentation": ("uint8", "uint16", "uint32", "int8", "int16", "int32", "int64"),
    "mask": ("uint8",),
    "locations": ("int64",),
}

MADE_BY = "nnseg preprocess"
CHECKSUM = "sha256"  # the key of a record's file that holds the hash of all the others


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCase:
    """The record of one preprocessed case.

    `made_from` is a hash of everything the arrays follow from: raw bytes, plan and format;
    `data_hash` is the plan's share of it, `preprocessing_hash`. `arrays_from` is a hash of raw
    bytes, format and `arrays_hash`: where it is equal, so are the arrays. `locations` says how many
    voxels of the one file of locations are each label's, in the order in which they stand there.
    """

    case_id: str
    made_from: str
    data_hash: str
    arrays_from: str
    placement: Placement
    files: dict[str, str]  # file name to SHA-256
    locations: dict[str, int]
    format: int = FORMAT

    def __post_init__(self) -> None:
        if not self.case_id or Path(self.case_id).name != self.case_id:
            raise DataError(f"case_id is {self.case_id!r}, which cannot name a file")
        allowed = [_array_file(self.case_id, name) for name in ARRAYS]
        if strange := sorted(self.files.keys() - set(allowed)):
            raise DataError(f"files has {strange[0]!r}; a case's own are {', '.join(allowed)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCase:
    """A preprocessed case to cut patches from; its arrays are in memory or read as sliced.

    `image` is (channel, z, y, x); `segmentation` and `mask` are (z, y, x), `mask` None where the
    body fills the box. `locations` maps label names to flat voxel indices.
    """

    case_id: str
    image: Any
    segmentation: Any
    mask: Any
    locations: dict[str, NDArray[np.int64]]
    placement: Placement

    @property
    def shape(self) -> Shape:
        """Voxels of the case, plan order."""
        return self.placement.shape_resampled


def save_case(
    folder: Path,
    case_id: str,
    case: Preprocessed,
    locations: dict[str, NDArray[np.int64]],
    *,
    made_from: str,
    data_hash: str,
    arrays_from: str,
) -> StoredCase:
    """Write one case; whatever was there under its name is replaced as one.

    Args:
        folder: Of the configuration.
        case_id: Its name.
        case: What `preprocess_case` gave.
        locations: What `find_locations` gave.
        made_from: `origin` of the raw bytes and `data_hash`.
        data_hash: `preprocessing_hash` of the plan.
        arrays_from: `origin` of the raw bytes and `arrays_hash`.

    Raises:
        MachineError: The disk is full or the folder cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {"image": case.image}
    if case.segmentation is not None:
        arrays["segmentation"] = case.segmentation
    if not case.mask.all():
        arrays["mask"] = case.mask.view(np.uint8)
    if locations:
        arrays["locations"] = np.concatenate(list(locations.values()))
    _forget(folder, case_id)
    files = {}
    for name, array in arrays.items():
        data = pack(array)
        path = folder / _array_file(case_id, name)
        write_whole(path, data, durable=False)
        files[path.name] = hashlib.sha256(data).hexdigest()
    stored = StoredCase(
        case_id=case_id,
        made_from=made_from,
        data_hash=data_hash,
        arrays_from=arrays_from,
        placement=case.placement,
        files=files,
        locations={name: len(voxels) for name, voxels in locations.items()},
    )
    _save_record(folder, stored)
    return stored


def share_case(
    source: Path,
    stored: StoredCase,
    folder: Path,
    *,
    made_from: str,
    data_hash: str,
    proven: bool = False,
) -> StoredCase | None:
    """Give another configuration the arrays of a case, as links; as copies where links fail.

    Another run may replace or remove the files meanwhile. What counts is therefore the hash of
    what the configuration has got.

    Args:
        source: The folder where the case is.
        stored: Its record there.
        folder: Of the other configuration.
        made_from: As for `save_case`, of the other configuration.
        data_hash: As for `save_case`, of the other configuration.
        proven: The caller has just written the files, and their hashes need no look.

    Returns:
        The record of the shared case. None if a file is not there, cannot be read or is not the
        one that `stored` names: then `folder` has no such case.

    Raises:
        MachineError: The disk is full or the folder cannot be written.
    """
    shared = replace(stored, made_from=made_from, data_hash=data_hash)
    _forget(folder, stored.case_id)
    for name, digest in stored.files.items():
        try:
            with whole_file(folder / name, durable=False) as temporary:
                _link_or_copy(source / name, temporary)
                if not proven and _hash(temporary) != digest:
                    raise _damaged(source / name)
        except DataError:
            return None
    _save_record(folder, shared)
    return shared


def origin(raw: Iterable[str], data_hash: str) -> str:
    """Give `made_from`: a hash of all that a case's arrays follow from.

    Args:
        raw: SHA-256 of its image files, in the order of the channels, and of its label map.
        data_hash: `preprocessing_hash` of the plan, or `arrays_hash` for `arrays_from`.
    """
    return hashlib.sha256("\n".join([*raw, data_hash, str(FORMAT)]).encode()).hexdigest()


def read_record(folder: Path, case_id: str) -> StoredCase:
    """Read the record of a case, without looking at its arrays.

    Raises:
        MissingError: There is none.
        DataError: It is damaged, or of another version or case.
    """
    path = folder / f"{case_id}.json"
    data = record.read_json(path, MADE_BY)
    content = record.json_text(data).encode()
    found = data.pop(CHECKSUM, None) if isinstance(data, dict) else None
    if found != _checksum(data) or content != path.read_bytes():  # the checksum sees no white space
        raise _damaged(path)
    if data.get("format") != FORMAT:
        raise DataError(
            f"{path}: is of format {data.get('format')}, this version uses {FORMAT}; run "
            f"`{MADE_BY}` again"
        )
    stored = record.parse(StoredCase, data, str(path))
    if stored.case_id != case_id:
        raise DataError(f"{path}: is the record of case {stored.case_id}; run `{MADE_BY}`")
    return stored


def find_record(folder: Path, case_id: str) -> StoredCase | None:
    """Read the record of a case; None unless this version can use it.

    Whether its arrays are whole is not looked at; `find_case` does.
    """
    with contextlib.suppress(MissingError, DataError, OSError):
        return read_record(folder, case_id)
    return None


def written_at(folder: Path, case_id: str) -> int:
    """Give when the record of a case was written, in nanoseconds since 1970; 0 without one."""
    with contextlib.suppress(OSError):
        return (folder / f"{case_id}.json").stat().st_mtime_ns
    return 0


def bytes_on_disk(folder: Path, stored: StoredCase) -> int:
    """Give how many bytes are free once a case is removed: links to other cases are not."""
    total = 0
    for name in stored.files:
        with contextlib.suppress(OSError):
            status = (folder / name).stat()
            total += status.st_size if status.st_nlink == 1 else 0
    return total


def find_case(folder: Path, case_id: str) -> StoredCase | None:
    """Read the record of a case; None unless this version can use it and its files are whole."""
    try:
        stored = read_record(folder, case_id)
        for name in stored.files:
            _check_file(folder, stored, name)
    except (MissingError, DataError):
        return None
    return stored


def open_case(folder: Path, case_id: str, data_hash: str, *, in_memory: bool) -> TrainingCase:
    """Open a case to cut patches from, after checking its hashes.

    Raises:
        MissingError: It has not been preprocessed.
        DataError: It was made from another plan, or its files are damaged or do not fit its record.
    """
    stored = read_record(folder, case_id)
    if stored.data_hash != data_hash:
        raise DataError(
            f"case {case_id} in {folder} was preprocessed from another plan; run `{MADE_BY}` again"
        )
    arrays: dict[str, Any] = {}
    for name in stored.files:
        _check_file(folder, stored, name)
        key = name.removeprefix(f"{case_id}.").removesuffix(".b2nd")
        array = open_frame(folder / name, TYPES[key])
        arrays[key] = array[...] if in_memory or key == "locations" else array
    if "segmentation" not in arrays:
        raise DataError(f"case {case_id} in {folder} has no label map; it cannot be trained on")
    _check_arrays(folder, stored, arrays)
    ends = list(accumulate(stored.locations.values()))[:-1]
    parts = np.split(arrays["locations"], ends) if stored.locations else ()
    return TrainingCase(
        case_id=case_id,
        image=arrays["image"],
        segmentation=arrays["segmentation"],
        mask=arrays.get("mask"),
        locations=dict(zip(stored.locations, parts, strict=True)),
        placement=stored.placement,
    )


def save_label_map(path: Path, segmentation: Segmentation) -> str:
    """Write a label map (z, y, x) of the kind that cases have; give its SHA-256."""
    data = pack(segmentation)
    write_whole(path, data)
    return hashlib.sha256(data).hexdigest()


def open_label_map(path: Path, digest: str, *, in_memory: bool) -> Any:
    """Open what `save_label_map` wrote.

    Raises:
        DataError: It is missing or damaged, or holds something else than a label map.
    """
    if _hash(path) != digest:
        raise _damaged(path)
    array = open_frame(path, TYPES["segmentation"])
    return array[...] if in_memory else array


def clean(folder: Path, case_ids: Iterable[str]) -> None:
    """Remove what does not belong to `case_ids`.

    That is cases that are gone, arrays that no record names, and unfinished files. Whatever has no
    name of ours, or is no whole record of ours, stays: the folder may hold what others put there.
    """
    sweep(folder)
    keep = set(case_ids)
    named: set[str] = set()
    for path in folder.glob("*.json"):
        try:
            stored = read_record(folder, path.name.removesuffix(".json"))
        except DataError:
            continue
        if stored.case_id in keep:
            named.update(stored.files)
        else:
            remove(path)
    for path in folder.glob("*.b2nd"):
        if ARRAY_FILE.fullmatch(path.name) and path.name not in named:
            remove(path)


def remove_case(folder: Path, case_id: str) -> None:
    """Remove a case, its record first: from then on it does not exist."""
    for name in (f"{case_id}.json", *(_array_file(case_id, array) for array in ARRAYS)):
        remove(folder / name)


def bytes_in_memory(folder: Path, case_ids: Iterable[str], channels: int) -> int:
    """Estimate what holding these cases in memory takes."""
    total = 0
    for case_id in case_ids:
        with contextlib.suppress(MissingError, DataError):
            z, y, x = read_record(folder, case_id).placement.shape_resampled
            total += z * y * x * (4 * channels + 2)
    return total


def _array_file(case_id: str, name: str) -> str:
    return f"{case_id}.{name}.b2nd"


def _check_arrays(folder: Path, stored: StoredCase, arrays: dict[str, Any]) -> None:
    """Refuse arrays whose shapes are not those that the record tells."""
    shape, count = stored.placement.shape_resampled, sum(stored.locations.values())
    image = arrays.get("image")
    wanted = {
        "image": (*(() if image is None else image.shape[:1]), *shape),
        "segmentation": shape,
        "mask": shape,
        "locations": (count,),
    }
    needed = {"image", "segmentation"} | ({"locations"} if stored.locations else set())
    for name in sorted(needed - arrays.keys()):
        raise DataError(f"case {stored.case_id} in {folder} has no {name}; run `{MADE_BY}`")
    for name, array in arrays.items():
        if tuple(array.shape) != wanted[name]:
            raise DataError(
                f"{folder / _array_file(stored.case_id, name)}: has the shape {array.shape}, its "
                f"case's record says {wanted[name]}; run `{MADE_BY}`"
            )
    if count and not 0 <= arrays["locations"].min() <= arrays["locations"].max() < math.prod(shape):
        path = folder / _array_file(stored.case_id, "locations")
        raise DataError(f"{path}: leads out of the image; run `{MADE_BY}`")


def _checksum(data: Any) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def _check_file(folder: Path, stored: StoredCase, name: str) -> None:
    path = folder / name
    if _hash(path) != stored.files[name]:
        raise _damaged(path)


def _hash(path: Path) -> str:
    try:
        return sha256(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist, though its record does; run `{MADE_BY}`") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror}); restore it or run `{MADE_BY}`")


def _damaged(path: Path) -> DataError:
    return DataError(f"{path}: is damaged (its SHA-256 changed); run `{MADE_BY}`")


def _link_or_copy(source: Path, target: Path) -> None:
    """Link to a file, or copy it where links fail; DataError if it cannot be read."""
    try:
        target.hardlink_to(source)
        return
    except OSError:
        pass
    try:
        file = open(source, "rb")  # noqa: SIM115  (what fails later is the target's fault)
    except OSError as error:
        raise _unreadable(source, error) from None
    with file, open(target, "wb") as copy:
        shutil.copyfileobj(file, copy)


def _forget(folder: Path, case_id: str) -> None:
    """Remove the record of a case: from here on the old case is gone."""
    remove(folder / f"{case_id}.json")


def _save_record(folder: Path, stored: StoredCase) -> None:
    data = record.to_json(stored)
    text = record.json_text(data | {CHECKSUM: _checksum(data)})
    write_whole(folder / f"{stored.case_id}.json", text.encode(), durable=False)
