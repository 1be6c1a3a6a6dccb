"""dataset.json: what a raw dataset declares of itself.

The format is nnU-Net v2's, and unknown keys are kept.
"""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from nnseg import record
from nnseg.errors import DataError
from nnseg.folders import FOLDER_NAME_RULE, is_folder_name
from nnseg.labels import Labels
from nnseg.volume import ENDINGS, label_ending

_JSON_NAMES = {
    "channel_names": "channel_names",
    "modality": "channel_names",  # nnU-Net v1's word for it
    "labels": "labels",
    "numTraining": "num_training",
    "file_ending": "file_ending",
    "regions_class_order": "regions_class_order",
    "dataset": "dataset",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedCase:
    """The files of one case in the map `dataset` of dataset.json, relative to the dataset's folder.

    `DatasetSpec` holds them to stay in it; links in it may lead wherever they like.
    """

    images: tuple[str, ...]  # in the order of the channels
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """What dataset.json declares.

    `channels` are the names in the order of their file suffixes _0000, _0001, ... `listed` is the
    map of training cases to files, where dataset.json has one. `others` holds every key that this
    program does not use, as it was.
    """

    channels: tuple[str, ...]
    labels: Labels
    num_training: int
    file_ending: str
    listed: dict[str, ListedCase] | None = None
    others: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.channels:
            raise DataError("channel_names is empty; name at least one channel")
        if strange := [name for name in self.channels if not name.isprintable()]:
            raise DataError(
                f"channel_names has {strange[0]!r}; a name must be text that can be shown"
            )
        if fault := ending_fault(self.file_ending):
            raise DataError(fault)
        for case_id, case in (self.listed or {}).items():
            if not is_folder_name(case_id):
                raise DataError(f"dataset has the case {case_id!r}; {FOLDER_NAME_RULE}")
            if not case.images:
                raise DataError(f"dataset.{case_id} has no images; list a file for each channel")
            for path in (*case.images, case.label):
                if not stays_inside(path):
                    raise DataError(
                        f"dataset.{case_id} has {path!r}, which does not stay in the dataset's "
                        "folder; give a path relative to it without .., ~ and variables, and link "
                        "what lies elsewhere into it"
                    )

    @property
    def label_ending(self) -> str:
        """How label maps and predictions end: as images do, but .png for JPEG."""
        return label_ending(self.file_ending)


def ending_fault(file_ending: str) -> str | None:
    """Say why files cannot end so; None if they can.

    Names of files are made with it, so whatever is none of the endings that we read may lead out of
    the folder that a file is meant for.

    >>> ending_fault(".NII.gz")
    >>> ending_fault("nii.gz")
    "file_ending is 'nii.gz'; it must begin with a dot"
    """
    if not file_ending.startswith("."):
        return f"file_ending is {file_ending!r}; it must begin with a dot"
    if file_ending.lower() not in ENDINGS:
        return (
            f"file_ending is {file_ending!r}, which cannot be read; convert the files to one of "
            f"{', '.join(ENDINGS)}"
        )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _DatasetJson:
    """The keys of dataset.json that we use, as they are written."""

    channel_names: dict[str, str]
    labels: dict[str, int | tuple[int, ...]]
    num_training: int
    file_ending: str
    regions_class_order: tuple[int, ...] | None = None
    dataset: dict[str, ListedCase] | None = None


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
            listed=raw.dataset,
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
    if spec.listed is not None:
        result["dataset"] = {
            case_id: {"images": list(case.images), "label": case.label}
            for case_id, case in spec.listed.items()
        }
    return result | spec.others


def stays_inside(path: str) -> bool:
    """Say whether a path is relative and leads nowhere above where it starts, on any system."""
    kinds = (PurePosixPath(path), PureWindowsPath(path))
    return (
        path != ""
        and not path.startswith(("~", "$", "%"))
        and not any(kind.is_absolute() or kind.drive or kind.root for kind in kinds)
        and not any(".." in kind.parts for kind in kinds)
    )
