"""A raw dataset as its dataset.json and the names of its files tell, before any image is read."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnseg import record
from nnseg.dataset import (
    CHANNEL_FILE,
    LONGEST_ID,
    DatasetSpec,
    Fold,
    called_as,
    check_folds,
    group_image_files,
    group_label_maps,
    is_text,
    is_there,
    list_files,
    listed_cases,
    make_folds,
    parse_spec,
)
from nnseg.dataset.cases import NO_TEXT
from nnseg.dataset.groups import GroupRule, find_leaks, probable_rule
from nnseg.doctor.findings import Finding, Notes
from nnseg.errors import DataError, MissingError, NnsegError
from nnseg.volume import SEVERAL_CHANNELS, channel_counts, side_files, split_ending

# keys of dataset.json that can only be judged together, and values that stand in for bad ones
_PARTS: dict[str, dict[str, Any]] = {
    "channel_names": {"channel_names": {"0": "unknown"}},
    "labels": {"labels": {"background": 0, "unknown": 1}},
    "numTraining": {"numTraining": 0},
    "file_ending": {"file_ending": ".nii.gz"},
    "dataset": {},
}
_BESIDE = {"channel_names": ("modality",), "labels": ("regions_class_order",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The dataset as its dataset.json and file names tell; `known` are the parts that are sound."""

    folder: Path
    spec: DatasetSpec
    known: frozenset[str]
    images: Mapping[str, Mapping[Path, tuple[str, ...]]]  # case id to file to its channels' names
    labels: Mapping[str, Path]  # case id to file
    strange: tuple[Path, ...]  # files whose names are not understood

    @property
    def case_ids(self) -> list[str]:
        """Every case that has an image or a label map, sorted."""
        return sorted(self.images.keys() | self.labels.keys())


def list_dataset(notes: Notes) -> Listing:
    """Judge dataset.json and every name in the dataset's folders; bad ones never raise.

    Where a part of dataset.json cannot be used, what needs it is left out of the listing. An image
    file without channels is there and not to be read.
    """
    spec, known = _check_dataset_json(notes)
    if spec.listed is None and "dataset" in known:
        listing = _list_folders(notes, spec, known)
    else:
        listing = _list_declared(notes, spec, known)
    _check_lengths(notes, listing)
    if listing.images or spec.listed is not None:
        _check_count(notes, listing)
        _check_folds(notes, listing)
    return listing


def judge_folds(listing: Listing, rule: GroupRule | None, made: Path | None) -> tuple[Finding, ...]:
    """Find patients on both sides of a fold, in the folds that a training would take.

    These are the dataset's own splits_final.json, else the file `made`, else those that planning
    would make.

    Args:
        listing: The dataset.
        rule: Says which cases are of one patient; None asks `probable_rule`, and finds nothing
            where the ids do not seem to name patients.
        made: A splits_final.json; it may be missing.

    Raises:
        UsageError: `rule` finds no patient in some case.
    """
    case_ids = sorted(listing.images)
    used = rule or probable_rule(case_ids)
    if used is None or len(case_ids) < 2:
        return ()
    patients = used.patients(case_ids)
    own = listing.folder / "splits_final.json"
    option = f"nnseg plan --group-regex {shlex.quote(used.regex)}"
    remedy = f"`{option}` makes folds that keep each patient's cases together"
    path, where = listing.folder / "imagesTr", "the folds that would be made"
    try:
        if own.is_file():
            path, where, folds = own, "these folds", read_folds(own)
            remedy = f"correct the file, or remove it: then `{option}` makes folds by patient"
        elif made is not None and made.is_file():
            where, folds = "the folds of this dataset", read_folds(made)
        else:
            folds = make_folds(case_ids)
    except NnsegError:  # a finding of its own
        return ()
    leaks = find_leaks(folds, patients)
    if not leaks:
        return ()
    first, count = leaks[0], len({leak.patient for leak in leaks})
    found = (
        f"{where} part the cases of {count} of {len(set(patients.values()))} patients: fold "
        f"{first.fold} trains on {first.train} and validates on {first.val}"
    )
    if rule is None:
        found = f"case ids look like several cases of one patient ({first.patient}), and {found}"
        remedy = f"if they are, {remedy}"
    notes = Notes(listing.folder)
    notes.warning("patient_parted", path, found, remedy)
    return tuple(notes.findings)


def read_folds(path: Path) -> tuple[Fold, ...]:
    """Read a splits_final.json.

    Raises:
        MissingError: It is not there.
        DataError: It is no list of folds.
    """
    return record.parse(tuple[Fold, ...], record.read_json(path), str(path))


def _check_dataset_json(notes: Notes) -> tuple[DatasetSpec, frozenset[str]]:
    """Judge dataset.json part by part; give what it declares and the names of the sound parts."""
    path = notes.folder / "dataset.json"
    stand_in = {key: value for part in _PARTS.values() for key, value in part.items()}
    data: Any = {}
    known = set()
    try:
        data = record.read_json(path)
    except MissingError:
        remedy = "write it: channel_names, labels, numTraining and file_ending, as nnU-Net v2 does"
        notes.error("dataset_json_missing", path, "does not exist", remedy)
    except DataError as error:
        notes.caught("dataset_json_unreadable", path, error)
    else:
        if not isinstance(data, dict):
            found = f"holds a JSON {type(data).__name__}"
            notes.error("dataset_json_unreadable", path, found, "it must hold a JSON object")
            data = {}
        else:
            known = {part for part in _PARTS if _part_is_sound(notes, path, data, part, stand_in)}
    if not data:
        known.add("dataset")  # it lists no case
    for part in known:
        stand_in = _with_part(stand_in, data, part)
    if "file_ending" not in known and (ending := _usual_ending(notes.folder / "imagesTr")):
        stand_in["file_ending"] = ending
        known.add("file_ending")
    return parse_spec(stand_in, str(path)), frozenset(known)


def _usual_ending(folder: Path) -> str | None:
    """Give the ending that most files of a folder have, to go on without dataset.json's word."""
    files = _list_files(folder) or []
    endings = [split_ending(path.name)[1].lower() for path in files]
    counts = Counter(ending for ending in endings if ending)
    return counts.most_common(1)[0][0] if counts else None


def _list_files(folder: Path) -> list[Path] | None:
    """Give the files of a folder, hidden ones left out; None if it cannot be listed."""
    try:
        return list_files(folder)
    except NnsegError:
        return None


def _readable_names(notes: Notes, files: list[Path] | None) -> list[Path] | None:
    """Give the files whose names are text; note the others."""
    for path in files or []:
        if not is_text(path.name):
            remedy = "rename it by the program that made it, or remove it"
            notes.error("name_unusable", path, f"its name {NO_TEXT}", remedy)
    return None if files is None else [path for path in files if is_text(path.name)]


def _part_is_sound(
    notes: Notes, path: Path, data: dict[str, Any], part: str, stand_in: dict[str, Any]
) -> bool:
    try:
        parse_spec(_with_part(stand_in, data, part), str(path))
    except DataError as error:
        notes.error(
            "dataset_json_invalid",
            path,
            str(error).removeprefix(f"{path}: "),
            f"correct {part}",
        )
        return False
    return True


def _with_part(stand_in: dict[str, Any], data: dict[str, Any], part: str) -> dict[str, Any]:
    """Give `stand_in` with the keys of one part as `data` has them, or without them."""
    keys = (part, *_BESIDE.get(part, ()))
    rest = {key: value for key, value in stand_in.items() if key not in keys}
    return rest | {key: data[key] for key in keys if key in data}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # what cannot be looked at may be there
        return True


def _check_lengths(notes: Notes, listing: Listing) -> None:
    """Note the cases whose files of ours would get names that no file can have."""
    for case_id in listing.case_ids:
        length = len(case_id.encode())
        if length > LONGEST_ID:
            notes.case_id = case_id
            path = next(iter(listing.images.get(case_id, {})), listing.labels.get(case_id))
            found = f"the id of its case takes {length} bytes; {LONGEST_ID} are the most"
            remedy = "give the case a shorter name"
            notes.error("name_unusable", path or notes.folder / "dataset.json", found, remedy)
    notes.case_id = None


def _list_folders(notes: Notes, spec: DatasetSpec, known: frozenset[str]) -> Listing:
    """List the cases of imagesTr and labelsTr."""
    folder = notes.folder
    image_files, label_files = _list_files(folder / "imagesTr"), _list_files(folder / "labelsTr")
    for name, files in (("imagesTr", image_files), ("labelsTr", label_files)):
        if files is None:
            there = _exists(folder / name)
            found = "cannot be listed" if there else "does not exist"
            remedy = "check its rights" if there else "put the dataset's files there"
            notes.error("folder_missing", folder / name, found, remedy)
    image_files = _readable_names(notes, image_files)
    label_files = _readable_names(notes, label_files)
    found_images: dict[str, dict[int, tuple[Path, ...]]] = {}
    found_labels: dict[str, tuple[Path, ...]] = {}
    strange: list[Path] = []
    if image_files is not None and "file_ending" in known:
        found_images = group_image_files(image_files, spec)
        used = [path for case in found_images.values() for files in case.values() for path in files]
        strange += _note_strange_names(notes, image_files, used, f"CASE_0000{spec.file_ending}")
        if not found_images:
            found = f"no file is named CASE_0000{spec.file_ending}"
            remedy = "add images, a file for each channel"
            notes.error("no_cases", folder / "imagesTr", found, remedy)
    if label_files is not None and "file_ending" in known:
        maps_by_name = group_label_maps(label_files, spec.label_ending)
        found_labels = {
            case_id: files
            for case_id, files in called_as(maps_by_name, found_images).items()
            if case_id in found_images or not _is_image_name(case_id, found_images)
        }
        used = [path for files in found_labels.values() for path in files]
        strange += _note_strange_names(notes, label_files, used, f"CASE{spec.label_ending}")
    images: dict[str, dict[Path, tuple[str, ...]]] = {}
    labels: dict[str, Path] = {}
    for case_id in sorted(found_images.keys() | found_labels.keys()):
        notes.case_id = case_id
        channels, maps = found_images.get(case_id, {}), found_labels.get(case_id, ())
        if channels:
            images[case_id] = _channel_files(notes, spec, known, case_id, channels)
        if maps:
            labels[case_id] = _only_one(notes, maps)
        if image_files is not None and maps and not channels:
            remedy = f"add its image {case_id}_0000{spec.file_ending}, or remove the label map"
            notes.error("image_missing", maps[0], "has no image in imagesTr", remedy)
        if label_files is not None and channels and not maps:
            path = folder / "labelsTr" / f"{case_id}{spec.label_ending}"
            remedy = "add the label map, or remove the case's images from imagesTr"
            notes.error("label_missing", path, "does not exist, though its image does", remedy)
    notes.case_id = None
    return Listing(
        folder=folder,
        spec=spec,
        known=known,
        images=images,
        labels=labels,
        strange=tuple(strange),
    )


def _is_image_name(stem: str, images: Mapping[str, object]) -> bool:
    match = CHANNEL_FILE.fullmatch(stem)
    return match is not None and match["case_id"] in images


def _list_declared(notes: Notes, spec: DatasetSpec, known: frozenset[str]) -> Listing:
    """List the cases that dataset.json itself lists; none if it does so wrongly."""
    images: dict[str, dict[Path, tuple[str, ...]]] = {}
    labels: dict[str, Path] = {}
    for case in listed_cases(notes.folder, spec):
        notes.case_id = case.case_id
        channels = {n: (path,) for n, path in enumerate(case.images) if _can_be_read(path)}
        images[case.case_id] = _channel_files(notes, spec, known, case.case_id, channels)
        if case.label is not None and _can_be_read(case.label):
            labels[case.case_id] = case.label
        for path in (*case.images, *((case.label,) if case.label else ())):
            if not _can_be_read(path):
                remedy = "correct the path in the map `dataset`, or restore the file"
                notes.error(
                    "listed_missing", path, "does not exist, but dataset.json lists it", remedy
                )
    notes.case_id = None
    return Listing(
        folder=notes.folder, spec=spec, known=known, images=images, labels=labels, strange=()
    )


def _can_be_read(path: Path) -> bool:
    """Say whether a listed file is there, as far as the system lets us look."""
    try:
        return is_there(path)
    except DataError:
        return False


def _note_strange_names(
    notes: Notes, files: Sequence[Path], used: Sequence[Path], wanted: str
) -> list[Path]:
    """Note the files that are none of those that are used, nor belong to one of them."""
    known = {*used, *(side for path in used for side in side_files(path))}
    strange = [path for path in files if path not in known]
    for path in strange:
        if split_ending(path.name)[1]:
            found = "its name does not say which file of a case it is"
        else:
            found = f"does not end as {wanted} does, nor as any file that can be read"
        notes.error("file_name", path, found, f"name it {wanted}, or remove it")
    return strange


def _channel_files(
    notes: Notes,
    spec: DatasetSpec,
    known: frozenset[str],
    case_id: str,
    channels: Mapping[int, Sequence[Path]],
) -> dict[Path, tuple[str, ...]]:
    """Give the channels that each image file of a case holds; note what is missing or too many."""
    files = {number: _only_one(notes, paths) for number, paths in sorted(channels.items())}
    if "channel_names" not in known:
        return {path: (f"channel {number}",) for number, path in files.items()}
    names = spec.channels
    if set(files) == {0} and _holds_all(files[0], len(names)):
        return {files[0]: names}
    for number, name in enumerate(names):
        if number not in files and spec.listed is None:
            path = notes.folder / "imagesTr" / f"{case_id}_{number:04d}{spec.file_ending}"
            found = f"channel {number} ({name}) of the case does not exist"
            remedy = "add the file, or remove the whole case"
            notes.error("channel_missing", path, found, remedy)
    if spec.listed is not None and (wanted := len(spec.listed[case_id].images)) < len(names):
        found = f"lists {wanted} image files for the {len(names)} channels of case {case_id}"
        remedy = "list a file for each channel, or one that holds them all"
        notes.error("channel_missing", notes.folder / "dataset.json", found, remedy)
    for number, path in files.items():
        if number >= len(names):
            found = f"dataset.json declares no channel {number}; it has {', '.join(names)}"
            remedy = "declare the channel in channel_names for all cases, or remove the file"
            notes.error("channel_undeclared", path, found, remedy)
    return {path: (names[number],) if number < len(names) else () for number, path in files.items()}


def _holds_all(path: Path, count: int) -> bool:
    """Say whether one file holds all channels; of a damaged one, whether it might."""
    try:
        return count in channel_counts(path)
    except NnsegError:
        return split_ending(path.name)[1].lower() in SEVERAL_CHANNELS


def _only_one(notes: Notes, files: Sequence[Path]) -> Path:
    """Give the first of the files that claim to be the same one of a case; note the others."""
    for path in files[1:]:
        found = f"claims to be the same file of the case as {files[0].name}"
        notes.error("file_twice", path, found, "remove one of them")
    return files[0]


def _check_count(notes: Notes, listing: Listing) -> None:
    count, declared = len(listing.images), listing.spec.num_training
    if "numTraining" in listing.known and count != declared:
        where = "imagesTr holds" if listing.spec.listed is None else "`dataset` lists"
        found = f"numTraining is {declared}, but {where} {count} cases"
        remedy = f"set it to {count} if no file is missing, else add the missing ones"
        notes.error("case_count", notes.folder / "dataset.json", found, remedy)


def _check_folds(notes: Notes, listing: Listing) -> None:
    path = notes.folder / "splits_final.json"
    if not path.exists():
        return
    try:
        check_folds(read_folds(path), listing.case_ids, str(path))
    except NnsegError as error:
        notes.caught("folds", path, error)
