"""The cases of a raw dataset: which files belong to each.

A case has a file CASE_0000, CASE_0001, ... for each channel, or, as nnU-Net has it for pictures,
one file CASE_0000 that holds them all. Files may end in whatever we read, whatever the others of
the dataset end in; or the map `dataset` of dataset.json lists them.
"""

import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnseg.dataset.spec import DatasetSpec
from nnseg.errors import DataError, MachineError, MissingError
from nnseg.folders import Folders
from nnseg.volume import (
    ENDINGS,
    LABEL_ENDINGS,
    SEVERAL_CHANNELS,
    channel_counts,
    side_files,
    split_ending,
)

logger = logging.getLogger(__name__)

CHANNEL_FILE = re.compile(r"(?P<case_id>.+)_(?P<channel>\d{4})", re.DOTALL)
LONGEST_ID = 200  # bytes: names of files have 255, and ours add endings and marks
LONGEST_SHOWN = 200  # characters of a path in a message
NO_TEXT = "is no text in UTF-8, or has control characters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One subject: an image file for each channel, or one for all, and its label map if it has one.

    The label map is there for training and None for an image to predict.
    """

    case_id: str
    images: tuple[Path, ...]
    label: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the case is read from: images, label map, and what these need beside."""
        named = self.images if self.label is None else (*self.images, self.label)
        sides = [side for path in named for side in side_files(path)]
        return tuple(dict.fromkeys((*named, *sides)))  # channels may share a spacing file


def find_image_files(folder: Path, spec: DatasetSpec) -> dict[str, dict[int, tuple[Path, ...]]]:
    """List the image files of a folder: case id to channel number to files, ids sorted.

    There should be one file for a channel; `channel_fault` says where there are more, or where its
    name cannot be used. Hidden files are passed over, with a line in the log. Other files are not
    listed here; `doctor` names them.

    Raises:
        MissingError: There is no such folder.
        MachineError: It cannot be listed.
    """
    return group_image_files(list_files(folder), spec)


def group_image_files(
    files: Iterable[Path], spec: DatasetSpec
) -> dict[str, dict[int, tuple[Path, ...]]]:
    """Do what `find_image_files` does with the files of a folder that was listed before."""
    found: dict[str, dict[int, tuple[Path, ...]]] = {}
    for path in files:
        match = CHANNEL_FILE.fullmatch(_stem(path, spec.file_ending, ENDINGS) or "")
        if match:
            channels = found.setdefault(match["case_id"], {})
            number = int(match["channel"])
            channels[number] = (*channels.get(number, ()), path)
    return dict(sorted(found.items()))


def find_label_maps(folder: Path, ending: str) -> dict[str, tuple[Path, ...]]:
    """List the label maps of a folder: case id to files, of which there should be one; ids sorted.

    Any file counts that ends in `ending`, the usual one, or as label maps can.

    Raises:
        MissingError, MachineError, DataError: As `visible_files`.
    """
    return group_label_maps(visible_files(folder), ending)


def group_label_maps(files: Iterable[Path], ending: str) -> dict[str, tuple[Path, ...]]:
    """Do what `find_label_maps` does with the files of a folder that was listed before."""
    found: dict[str, tuple[Path, ...]] = {}
    for path in files:
        case_id = _stem(path, ending, LABEL_ENDINGS)
        if case_id:
            found[case_id] = (*found.get(case_id, ()), path)
    return dict(sorted(found.items()))


def called_as(
    maps: Mapping[str, tuple[Path, ...]], case_ids: Iterable[str]
) -> dict[str, tuple[Path, ...]]:
    r"""Give label maps by the ids that the images call their cases by.

    One text can be composed in two ways, é as one sign or as e and an accent: some systems rename
    files from the first to the second, and names that look alike then differ.

    Args:
        maps: As `find_label_maps` gives them.
        case_ids: Those of the images.

    >>> called_as({"e\u0301": ()}, ["\xe9"]) == {"\xe9": ()}
    True
    """
    known = tuple(case_ids)
    composed = {unicodedata.normalize("NFC", case_id): case_id for case_id in known}
    found: dict[str, tuple[Path, ...]] = {}
    for case_id, files in maps.items():
        exact = case_id in known
        name = case_id if exact else composed.get(unicodedata.normalize("NFC", case_id), case_id)
        found[name] = (*found.get(name, ()), *files)
    return found


def visible_files(folder: Path, wanted: Sequence[str] = ENDINGS) -> list[Path]:
    """List the files of `folder` by name, without hidden ones such as ._x and .DS_Store.

    Files whose names are no text are passed over, too, such as the Icon that macOS leaves; but not
    those that end as what is wanted, for else a case would be lost in silence.

    Args:
        folder: The folder.
        wanted: Endings, in lower case; by default those of images.

    Raises:
        MissingError: There is no such folder.
        MachineError: It cannot be listed.
        DataError: The name of a file that is wanted is no text in the system's encoding, or has
            control characters.
    """
    files = list_files(folder)
    for path in files:
        if not is_text(path.name) and path.name.lower().endswith(tuple(wanted)):
            raise DataError(_name_fault(path))
    return [path for path in files if is_text(path.name)]


def list_files(folder: Path) -> list[Path]:
    """Do what `visible_files` does, but list every file whose name is no text, too.

    What is named as an image is listed even if it is a folder or a link to nothing, for else a case
    would be lost in silence; reading says what is wrong with it.
    """
    try:
        if not folder.is_dir():
            raise MissingError(f"{folder} does not exist; put the dataset's files there")
        files = sorted(p for p in folder.iterdir() if p.is_file() or split_ending(p.name)[1])
    except OSError as error:
        raise MachineError(
            f"{folder}: cannot be listed ({error.strerror}); check the folder and its rights"
        ) from None
    hidden = [path for path in files if path.name.startswith(".")]
    if hidden:
        logger.info("%s: %d hidden files passed over (%s)", folder, len(hidden), hidden[0].name)
    return [path for path in files if not path.name.startswith(".")]


def is_text(name: str) -> bool:
    """Say whether a file's name could be decoded, and can stand in a line of a table or a log.

    What could not be decoded are lone surrogates in it.
    """
    return not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name)


def printable(name: str) -> str:
    r"""Give a file's name with \x.. for each byte that is no text or steers a terminal.

    >>> printable("caf\udce9_0000.nii"), printable("\x1b[31mred")
    ('caf\\xe9_0000.nii', '\\x1b[31mred')
    """
    try:
        text = os.fsencode(name).decode("utf-8", errors="backslashreplace")
    except UnicodeEncodeError:  # no file's name, but something made up in a JSON file
        text = name.encode("utf-8", errors="backslashreplace").decode("utf-8")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def printable_id(case_id: str) -> str:
    """Give the id of a case as a message can show it and files be named: this id, if it is fit."""
    return printable(case_id).encode()[:LONGEST_ID].decode(errors="ignore")


def is_there(path: Path) -> bool:
    """Say whether a file is there; DataError if the system refuses to look for it."""
    try:
        return path.is_file()
    except OSError as error:  # no right to the folder, or a name that is too long
        shown = str(path) if len(str(path)) <= LONGEST_SHOWN else f"{str(path)[:LONGEST_SHOWN]}..."
        raise DataError(
            f"{shown}: cannot be looked for ({error.strerror}); correct the path, or the rights "
            "of its folder"
        ) from None


def find_cases(images: Path, labels: Path | None, spec: DatasetSpec) -> tuple[Case, ...]:
    """List the cases of a folder of images, sorted by id; see `find_training_cases`.

    Args:
        images: The folder of image files.
        labels: The folder of label maps; None for images without them.
        spec: Says how many channels there are and how files usually end.

    Raises:
        MissingError: A folder does not exist.
        MachineError: A folder cannot be listed.
        DataError: No case at all, or a case lacks a channel or its label map, or has two files for
            one of them.
    """
    found = find_image_files(images, spec)
    if not found:
        raise DataError(
            f"{images}: no file is named CASE_0000{spec.file_ending}; name them so, one file for "
            "each channel"
        )
    maps = {} if labels is None else called_as(find_label_maps(labels, spec.label_ending), found)
    cases = []
    for case_id, channels in found.items():
        if fault := channel_fault(images, case_id, channels, spec):
            raise DataError(fault)
        label = None
        if labels is not None:
            wanted = labels / f"{case_id}{spec.label_ending}"
            label = one_label_map(case_id, maps.get(case_id, ()) or (wanted,))
            if not label.is_file():
                raise DataError(
                    f"case {case_id}: {label} does not exist; add it or remove the image"
                )
        ordered = tuple(files[0] for _, files in sorted(channels.items()))
        cases.append(Case(case_id=case_id, images=ordered, label=label))
    return tuple(cases)


def find_training_cases(folders: Folders, dataset: str, spec: DatasetSpec) -> tuple[Case, ...]:
    """List the labelled cases of a dataset, sorted by id: those that dataset.json lists, or all.

    Raises:
        MissingError: A folder or a listed file does not exist.
        MachineError: A folder cannot be listed.
        DataError: As `find_cases`; or a listed file cannot be looked for.
    """
    if spec.listed is None:
        return find_cases(folders.images(dataset), folders.labels(dataset), spec)
    cases = listed_cases(folders.raw_folder(dataset), spec)
    if not cases:
        raise DataError(f"{folders.spec_file(dataset)}: dataset is empty; list cases, or remove it")
    for case in cases:
        for path in (*case.images, *((case.label,) if case.label else ())):
            if not is_there(path):
                raise MissingError(
                    f"case {case.case_id}: {path}, which dataset.json lists, does not exist; "
                    "correct the path or restore the file"
                )
        if fault := _count_fault(case.case_id, case.images, spec):
            raise DataError(fault)
    return cases


def listed_cases(folder: Path, spec: DatasetSpec) -> tuple[Case, ...]:
    """Give the cases of the map `dataset`, sorted by id; whether their files exist is not asked."""
    return tuple(
        Case(
            case_id=case_id,
            images=tuple(folder / image for image in case.images),
            label=folder / case.label,
        )
        for case_id, case in sorted((spec.listed or {}).items())
    )


def one_label_map(case_id: str, files: Sequence[Path]) -> Path:
    """Give the label map of a case; DataError where several files claim to be it."""
    if len(files) > 1:
        raise DataError(f"case {case_id}: {_both(files)}")
    return files[0]


def channel_fault(
    folder: Path, case_id: str, channels: Mapping[int, Sequence[Path]], spec: DatasetSpec
) -> str | None:
    """Say which channel files of a case are missing, double, too many or none; None if all is well.

    All is well with one file for each channel, and with one file CASE_0000 that holds them all. The
    id has to be text and short, since it goes into tables, logs and the names of results.

    Args:
        folder: For the message.
        case_id: The case.
        channels: Its files by channel number, as `find_image_files` gives them.
        spec: Says what channels there are.
    """
    for files in channels.values():
        if case_id != (shown := printable_id(case_id)):
            return f"case {shown}: {_name_fault(files[0])}"
        if len(files) > 1:
            return f"case {case_id}: {_both(files)}"
        if not files[0].is_file() and os.path.lexists(files[0]):
            return (
                f"case {case_id}: {files[0]} is no file, nor a link to one; put the image there, "
                "or remove it"
            )
    if set(channels) == {0}:
        fault = _count_fault(case_id, channels[0], spec)
        if fault is None or split_ending(channels[0][0].name)[1].lower() in SEVERAL_CHANNELS:
            return fault
    wanted = set(range(len(spec.channels)))
    missing = [f"{case_id}_{i:04d}{spec.file_ending}" for i in sorted(wanted - set(channels))]
    extra = [channels[i][0].name for i in sorted(set(channels) - wanted)]
    parts = []
    if missing:
        parts.append(f"lacks {', '.join(missing)}")
    if extra:
        parts.append(f"has {', '.join(extra)}, which dataset.json does not declare")
    if not parts:
        return None
    return (
        f"case {case_id}: {folder} {' and '.join(parts)}; give a file for each of the channels "
        f"{list(spec.channels)}"
    )


def _stem(path: Path, usual: str, endings: Sequence[str]) -> str | None:
    """Give a file's name before its ending; None if that is neither the usual one nor another."""
    if path.name.endswith(usual):
        return path.name.removesuffix(usual)
    stem, ending = split_ending(path.name)
    return stem if ending.lower() in endings else None


def _count_fault(case_id: str, images: Sequence[Path], spec: DatasetSpec) -> str | None:
    """Say why these files cannot hold the channels, a file for each or one for all; or None.

    What each file of several holds is for reading to say.
    """
    wanted = len(spec.channels)
    if len(images) == wanted:
        return None
    found = f"has {len(images)} image files"
    if len(images) == 1:
        try:
            counts = channel_counts(images[0])
        except (DataError, MissingError) as error:
            return f"case {case_id}: {error}"
        if wanted in counts:
            return None
        found = f"{images[0]} holds {max(counts)}"
    return (
        f"case {case_id}: {found} for the {wanted} channels {list(spec.channels)}; give a file for "
        "each, or one that holds them all"
    )


def _name_fault(path: Path) -> str:
    fault = f"leaves the id of its case longer than {LONGEST_ID} bytes"
    if not is_text(path.name):
        fault = NO_TEXT
    return f"{path.parent}: the name {printable(path.name)} {fault}; rename the file"


def _both(files: Sequence[Path]) -> str:
    names = " and ".join(str(path) for path in files)
    return f"{names} both claim to be the same file of it; remove one"
