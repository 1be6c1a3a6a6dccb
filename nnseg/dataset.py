"""A raw dataset: its dataset.json, its cases and its cross-validation folds.

The format is nnU-Net v2's: `imagesTr/CASE_0000.nii.gz` for each channel, `labelsTr/CASE.nii.gz`,
and a dataset.json whose unknown keys are kept.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnseg import record
from nnseg.errors import DataError, MissingError, UsageError
from nnseg.labels import Labels

logger = logging.getLogger(__name__)

FOLDS = 5
SPLIT_SEED = 12345  # nnU-Net's, so that the same ids give the same folds
FOLD_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
CHANNEL_FILE = re.compile(r"(?P<case_id>.+)_(?P<channel>\d{4})")

_JSON_NAMES = {
    "channel_names": "channel_names",
    "modality": "channel_names",  # nnU-Net v1's word for it
    "labels": "labels",
    "numTraining": "num_training",
    "file_ending": "file_ending",
    "regions_class_order": "regions_class_order",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """What dataset.json declares.

    `channels` are the names in the order of their file suffixes _0000, _0001, ... `others` holds
    every key that this program does not use, as it was.
    """

    channels: tuple[str, ...]
    labels: Labels
    num_training: int
    file_ending: str
    others: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.channels:
            raise DataError("channel_names is empty; name at least one channel")
        if not self.file_ending.startswith("."):
            raise DataError(f"file_ending is {self.file_ending!r}; it must begin with a dot")


@dataclass(frozen=True, slots=True, kw_only=True)
class _DatasetJson:
    """The keys of dataset.json that we use, as they are written."""

    channel_names: dict[str, str]
    labels: dict[str, int | tuple[int, ...]]
    num_training: int
    file_ending: str
    regions_class_order: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One subject: an image file for each channel and, for training, a label map."""

    case_id: str
    images: tuple[Path, ...]
    label: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Case ids to train on and to validate on; one entry of splits_final.json."""

    train: tuple[str, ...]
    val: tuple[str, ...]


def read_spec(path: Path) -> DatasetSpec:
    """Read a dataset.json of nnU-Net v2.

    Raises:
        MissingError: It is not there.
        DataError: It is not such a file; every fault is named.
    """
    data = record.read_json(path)
    return parse_spec(data, str(path))


def parse_spec(data: Any, where: str) -> DatasetSpec:
    """Build a `DatasetSpec` from the content of a dataset.json; `where` opens error messages."""
    if not isinstance(data, dict):
        raise DataError(f"{where}: must hold a JSON object, not a {type(data).__name__}")
    if {"channel_names", "modality"} <= data.keys():
        raise DataError(f"{where}: has both channel_names and modality; keep channel_names")
    used = {ours: data[key] for key, ours in _JSON_NAMES.items() if key in data}
    try:
        raw = record.parse(_DatasetJson, used, where)
    except DataError as error:  # the user knows the key by its name in the file
        raise DataError(str(error).replace("num_training", "numTraining")) from None
    expected = [str(i) for i in range(len(raw.channel_names))]
    if sorted(raw.channel_names) != sorted(expected):
        found = ", ".join(raw.channel_names)
        raise DataError(f"{where}: channel_names has the keys {found}; they must be 0, 1, 2, ...")
    try:
        return DatasetSpec(
            channels=tuple(raw.channel_names[key] for key in expected),
            labels=Labels(labels=raw.labels, regions_class_order=raw.regions_class_order),
            num_training=raw.num_training,
            file_ending=raw.file_ending,
            others={key: value for key, value in data.items() if key not in _JSON_NAMES},
        )
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def spec_to_json(spec: DatasetSpec) -> dict[str, Any]:
    """Give `spec` as the content of a dataset.json, unknown keys included."""
    regions = spec.labels.regions_class_order
    result: dict[str, Any] = {
        "channel_names": {str(i): name for i, name in enumerate(spec.channels)},
        "labels": {
            k: list(v) if isinstance(v, tuple) else v for k, v in spec.labels.labels.items()
        },
        "numTraining": spec.num_training,
        "file_ending": spec.file_ending,
    }
    if regions is not None:
        result["regions_class_order"] = list(regions)
    return result | spec.others


def find_images(folder: Path, spec: DatasetSpec) -> dict[str, dict[int, Path]]:
    """List the image files of a folder: case id to channel number to file, ids sorted.

    Hidden files are passed over, with a line in the log. Other files are not listed here; `doctor`
    names them.
    """
    found: dict[str, dict[int, Path]] = {}
    for path in visible_files(folder):
        if not path.name.endswith(spec.file_ending):
            continue
        match = CHANNEL_FILE.fullmatch(path.name.removesuffix(spec.file_ending))
        if match:
            found.setdefault(match["case_id"], {})[int(match["channel"])] = path
    return dict(sorted(found.items()))


def visible_files(folder: Path) -> list[Path]:
    """List the files of `folder` by name, without hidden ones such as ._x and .DS_Store."""
    if not folder.is_dir():
        raise MissingError(f"{folder} does not exist; put the dataset's files there")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    hidden = [path for path in files if path.name.startswith(".")]
    if hidden:
        logger.info("%s: %d hidden files passed over (%s)", folder, len(hidden), hidden[0].name)
    return [path for path in files if not path.name.startswith(".")]


def find_cases(images: Path, labels: Path | None, spec: DatasetSpec) -> tuple[Case, ...]:
    """List the cases of a dataset, or of a folder to predict, sorted by id.

    Args:
        images: The folder of image files.
        labels: The folder of label maps; None for images without them.
        spec: Says how many channels there are and how files end.

    Raises:
        MissingError: A folder does not exist.
        DataError: No case at all, or a case lacks a channel or its label map.
    """
    found = find_images(images, spec)
    if not found:
        raise DataError(
            f"{images}: no file is named CASE_0000{spec.file_ending}; name them so, one file for "
            "each channel"
        )
    cases = []
    for case_id, channels in found.items():
        if fault := channel_fault(images, case_id, set(channels), spec):
            raise DataError(fault)
        label = None if labels is None else labels / f"{case_id}{spec.file_ending}"
        if label is not None and not label.is_file():
            raise DataError(f"case {case_id}: {label} does not exist; add it or remove the image")
        ordered = tuple(path for _, path in sorted(channels.items()))
        cases.append(Case(case_id=case_id, images=ordered, label=label))
    return tuple(cases)


def channel_fault(folder: Path, case_id: str, found: set[int], spec: DatasetSpec) -> str | None:
    """Say which channel files of a case are missing or too many; None if all is well."""
    wanted = set(range(len(spec.channels)))
    missing = [f"{case_id}_{i:04d}{spec.file_ending}" for i in sorted(wanted - found)]
    extra = [f"{case_id}_{i:04d}{spec.file_ending}" for i in sorted(found - wanted)]
    parts = []
    if missing:
        parts.append(f"lacks {', '.join(missing)}")
    if extra:
        parts.append(f"has {', '.join(extra)}, which dataset.json does not declare")
    if not parts:
        return None
    return f"case {case_id}: {folder} {' and '.join(parts)}; channels are {list(spec.channels)}"


def make_folds(case_ids: Sequence[str]) -> tuple[Fold, ...]:
    """Split cases into 5 folds, equal to nnU-Net's for the same ids; fewer cases give fewer folds.

    Source: nnU-Net v2, 5-fold split of the sorted ids, shuffled with seed 12345.

    Raises:
        DataError: There are fewer than two cases.
    """
    ids = sorted(case_ids)
    if len(ids) < 2:
        raise DataError(f"{len(ids)} case cannot be split; train with fold `all`, or add cases")
    count = min(FOLDS, len(ids))
    if count < FOLDS:
        logger.warning("%d cases give %d folds instead of %d", len(ids), count, FOLDS)
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(ids))
    folds = []
    for part in np.array_split(shuffled, count):
        val = set(part.tolist())
        folds.append(
            Fold(
                train=tuple(ids[i] for i in range(len(ids)) if i not in val),
                val=tuple(ids[i] for i in sorted(val)),
            )
        )
    return tuple(folds)


def extend_folds(folds: Sequence[Fold], case_ids: Sequence[str]) -> tuple[Fold, ...]:
    """Let the cases that are in no fold join them; those that are in one stay where they are.

    In sorted order, each new case is validated by the fold with the fewest cases to validate, the
    first of equals, and trained on by all others. So models of before stay comparable: no case
    changes sides.

    Args:
        folds: Our own; of a user's file nobody can tell whether a case is left out on purpose.
        case_ids: Every case of the dataset.

    >>> extend_folds([Fold(train=("b",), val=("a",)), Fold(train=("a",), val=("b",))], "abc")[0]
    Fold(train=('b',), val=('a', 'c'))
    """
    trains, vals = [set(fold.train) for fold in folds], [set(fold.val) for fold in folds]
    for case_id in sorted(set(case_ids) - set[str]().union(*trains, *vals)) if folds else ():
        sizes = [len(val) for val in vals]
        chosen = sizes.index(min(sizes))
        for number, train in enumerate(trains):
            (vals[number] if number == chosen else train).add(case_id)
    return tuple(
        Fold(train=tuple(sorted(train)), val=tuple(sorted(val)))
        for train, val in zip(trains, vals, strict=True)
    )


def check_folds(folds: Sequence[Fold], case_ids: Sequence[str], where: str) -> None:
    """Refuse splits that name unknown cases, train on what they validate on, or lack either.

    A model is chosen and scored by its validation cases; to train on all cases there is `all`.

    Raises:
        DataError: `where` and the ids that are wrong.
    """
    known = set(case_ids)
    for number, fold in enumerate(folds):
        unknown = sorted((set(fold.train) | set(fold.val)) - known)
        if unknown:
            raise DataError(
                f"{where}: fold {number} names {', '.join(unknown[:5])}, which the dataset lacks; "
                "correct the file or remove it to have it made anew"
            )
        both = sorted(set(fold.train) & set(fold.val))
        if both:
            raise DataError(
                f"{where}: fold {number} has {', '.join(both[:5])} both to train and to validate; "
                "keep each id on one side"
            )
        if not fold.train:
            raise DataError(f"{where}: fold {number} has no case to train on; correct the file")
        if not fold.val:
            raise DataError(
                f"{where}: fold {number} has no case to validate on; give it one, or remove the "
                "fold and train with fold `all`"
            )


def select_fold(folds: Sequence[Fold], fold: str, case_ids: Sequence[str]) -> Fold:
    """Give the fold called `fold`: "0", "1", ... or "all", which trains on every case.

    "all" validates on every case too, so its scores tell nothing of new cases.

    Raises:
        UsageError: There is no such fold.
    """
    if fold == "all":
        ids = tuple(sorted(case_ids))
        return Fold(train=ids, val=ids)
    if not FOLD_NUMBER.fullmatch(fold) or int(fold) >= len(folds):
        known = ", ".join([*(str(number) for number in range(len(folds))), "all"])
        raise UsageError(f"there is no fold {fold!r}; there is: {known}")
    return folds[int(fold)]
