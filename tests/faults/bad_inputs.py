"""Bad inputs: what each is, the data that it spoils, and what the rule says must come of it.

The phantoms are drawn here, and their files written by nibabel, SimpleITK and Pillow, so that what
is true of them is known without any code of nnseg.
"""

import gzip
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import nibabel
import numpy as np
from numpy.typing import NDArray

DATASET = "Dataset001_Tiny"
CHANNELS = ("T1", "T2")
LABELS = {"background": 0, "head": 1, "tail": 2}
SIZE = (15, 13, 9)  # voxels, x, y, z
SPACING = (1.5, 1.0, 2.0)  # mm, x, y, z
ORIGIN = (-10.0, 5.0, 30.0)  # mm
GOOD = 5  # cases; case_0 is the one that files are spoilt of

Role: TypeAlias = Literal["image", "label", "predicted"]  # what a spoilt file is to be used as
Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """It must not be used, and the message must say why; `cause` is a pattern of that."""

    cause: str
    code: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """It must be used, and mean what the phantom is; `warning` is a pattern of what is said."""

    warning: str = ""


Verdict: TypeAlias = Refused | Used
RIGHT = Used()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrueCase:
    """What is true of a case."""

    channels: tuple[Array, ...]  # each (x, y, z)
    label: Array  # (x, y, z)
    spacing: tuple[float, float, float] = SPACING  # mm, x, y, z


@dataclass(slots=True, kw_only=True)
class Data:
    """A raw dataset on the disk, to be spoilt, and what is true of its cases then."""

    folder: Path
    cases: dict[str, TrueCase]
    ending: str = ".nii.gz"

    def image(self, case: str = "case_0", channel: int = 0) -> Path:
        return self.folder / "imagesTr" / f"{case}_{channel:04d}{self.ending}"

    def label(self, case: str = "case_0") -> Path:
        return self.folder / "labelsTr" / f"{case}{self.ending}"

    def files(self, case: str = "case_0") -> list[Path]:
        return [*(self.image(case, n) for n in range(len(self.cases[case].channels))),
                self.label(case)]  # fmt: skip

    def declare(self, **changes: Any) -> None:
        """Change entries of dataset.json; those that become ... go."""
        path = self.folder / "dataset.json"
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    def rename(self, case: str, name: str) -> None:
        """Give a case another id."""
        for path in self.files(case):
            path.rename(path.with_name(path.name.replace(case, name, 1)))
        self.cases[name] = self.cases.pop(case)

    def change(self, case: str = "case_0", **changes: Any) -> None:
        """Say what has become true of a case."""
        self.cases[case] = replace(self.cases[case], **changes)

    def remove(self, case: str) -> None:
        for path in self.files(case):
            path.unlink()
        del self.cases[case]


@dataclass(frozen=True, slots=True, kw_only=True)
class BadInput:
    """One of them: how it spoils a dataset, and what must come of it."""

    name: str
    row: str  # of the table: inputs of a kind
    spoil: Callable[[Data], object]
    verdict: Verdict
    names: tuple[str, ...] = ()  # files and cases that the message must name
    predicted: Verdict | None = None  # what must come of predicting its images, if they are meant
    command: Literal["prepare", "predict"] = "prepare"
    drawn: str = "volumes"  # which of DATA is spoilt

    def __str__(self) -> str:
        return f"{self.row}: {self.name} ({self.command})"


@dataclass(frozen=True, slots=True, kw_only=True)
class BadFile:
    """A file in the place of an image or a label map: the bytes of it, made from the voxels."""

    name: str
    row: str
    write: Callable[[Array], bytes]  # from voxels (x, y, z)
    verdicts: Mapping[Role, Verdict]
    ending: str = ".nii.gz"
    whole: bool = False  # whether all files of the case are to be written so
    drawn: str = "volumes"


def everywhere(verdict: Verdict) -> dict[Role, Verdict]:
    """Expect the same of a file, whatever it is used as."""
    return {"image": verdict, "label": verdict, "predicted": verdict}


def as_image(verdict: Verdict) -> dict[Role, Verdict]:
    return {"image": verdict, "predicted": verdict}


def as_label(verdict: Verdict) -> dict[Role, Verdict]:
    return {"label": verdict}


def in_dataset(bad: BadFile, role: Role) -> BadInput:
    """Make a spoilt dataset of a spoilt file."""

    def spoil(data: Data) -> None:
        write_files(bad, data, data.image() if role == "image" else data.label())

    file = "case_0_0000" if role == "image" else "labelsTr/case_0"
    return BadInput(
        name=f"{bad.name}, {role}",
        row=bad.row,
        spoil=spoil,
        verdict=bad.verdicts[role],
        names=(f"{file}{bad.ending}",),
        drawn=bad.drawn,
    )


def write_files(bad: BadFile, data: Data, path: Path) -> None:
    """Put a bad file in the place of one of case_0, or of all of them."""
    truth = data.cases["case_0"]
    for old, voxels in zip(data.files(), (*truth.channels, truth.label), strict=True):
        if bad.whole or old == path:
            old.unlink()
            new = old.with_name(old.name.replace(data.ending, bad.ending))
            new.write_bytes(bad.write(voxels))


def draw_volumes(folder: Path) -> Data:
    """Write the phantoms: two channels of noise in which a head and a tail are brighter."""
    cases = {}
    for number in range(GOOD):
        rng = np.random.default_rng(number)
        label = np.zeros(SIZE, np.uint8)
        label[3:8, 4:9, 2:6], label[9:12, 2:5, 3:7] = 1, 2
        values = (rng.normal(loc=c + 3 * label) for c in range(len(CHANNELS)))
        channels = tuple(value.astype(np.float32) for value in values)
        cases[f"case_{number}"] = TrueCase(channels=channels, label=label)
    data = Data(folder=folder, cases=cases)
    write_json(data, {str(n): name for n, name in enumerate(CHANNELS)})
    for case in cases:
        write_case(data, case)
    return data


def draw_pictures(folder: Path) -> Data:
    """Write phantoms of one slice, 8 bits a pixel, as PNG files."""
    from PIL import Image

    cases = {}
    for number in range(GOOD):
        rng = np.random.default_rng(number)
        label = np.zeros((23, 19, 1), np.uint8)
        label[3:9, 4:11], label[12:20, 8:15] = 1, 2
        value = (rng.integers(1, 100, label.shape) + 50 * label).astype(np.uint8)
        cases[f"case_{number}"] = TrueCase(channels=(value,), label=label, spacing=(1, 1, 1))
    data = Data(folder=folder, cases=cases, ending=".png")
    write_json(data, {"0": "grey"})
    for case, truth in cases.items():
        for path, voxels in zip(data.files(case), (*truth.channels, truth.label), strict=True):
            Image.fromarray(voxels[:, :, 0].T).save(path)
    return data


def draw_stacks(folder: Path) -> Data:
    """Write phantoms as TIFF stacks, whose spacing is in files beside them."""
    import tifffile

    cases = {}
    for number in range(GOOD):
        label = np.zeros(SIZE, np.uint8)
        label[3:8, 4:9, 2:6], label[9:12, 2:5, 3:7] = 1, 2
        value = np.random.default_rng(number).normal(loc=3 * label).astype(np.float32)
        cases[f"case_{number}"] = TrueCase(channels=(value,), label=label)
    data = Data(folder=folder, cases=cases, ending=".tif")
    write_json(data, {"0": "MR"})
    for case, truth in cases.items():
        for path, voxels in zip(data.files(case), (*truth.channels, truth.label), strict=True):
            tifffile.imwrite(path, voxels.transpose(2, 1, 0), photometric="minisblack")
            beside = path.with_name(f"{case}.json")
            beside.write_text(json.dumps({"spacing": SPACING[::-1]}))
    return data


DATA = {"volumes": draw_volumes, "pictures": draw_pictures, "stacks": draw_stacks}


def write_json(data: Data, channels: Mapping[str, str]) -> None:
    for name in ("imagesTr", "labelsTr"):
        (data.folder / name).mkdir(parents=True)
    content = {
        "channel_names": dict(channels),
        "labels": LABELS,
        "numTraining": len(data.cases),
        "file_ending": data.ending,
    }
    (data.folder / "dataset.json").write_text(json.dumps(content))


def write_case(data: Data, case: str, affine: Array | None = None) -> None:
    """Write the files of a case as it is true."""
    truth = data.cases[case]
    for path, voxels in zip(data.files(case), (*truth.channels, truth.label), strict=True):
        path.write_bytes(nifti(voxels, affine=affine, spacing=truth.spacing))


def copy_data(data: Data, folder: Path) -> Data:
    """Give a copy that can be spoilt."""
    shutil.copytree(data.folder, folder)
    return Data(folder=folder, cases=dict(data.cases), ending=data.ending)


def affine_of(spacing: tuple[float, float, float] = SPACING) -> Array:
    """Give the matrix from voxels to mm of the phantoms."""
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = ORIGIN
    return matrix


def nifti(
    voxels: Array,
    *,
    affine: Array | None = None,
    spacing: tuple[float, float, float] = SPACING,
    fields: Mapping[str, Any] | None = None,
    kind: Any = nibabel.Nifti1Image,
    order: str = "<",
    packed: bool = True,
) -> bytes:
    """Give the bytes of a NIfTI file.

    Args:
        voxels: (x, y, z), in the type of the file.
        affine: From voxels to mm; None is that of the phantoms.
        spacing: mm, of the phantoms' matrix.
        fields: What the header has instead; of a field that is an array, entries by number.
        kind: NIfTI-1 or NIfTI-2.
        order: Of bytes, < or >.
        packed: Whether by gzip.
    """
    image = kind(voxels, affine_of(spacing) if affine is None else affine, dtype=voxels.dtype)
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    image.header.set_xyzt_units("mm")
    header = image.header.as_byteswapped(order)
    header["vox_offset"] = len(header.binaryblock) + 4
    header["magic"] = b"n+1" if kind is nibabel.Nifti1Image else b"n+2"
    header["scl_slope"], header["scl_inter"] = 1, 0
    for name, value in (fields or {}).items():
        if isinstance(value, Mapping):
            for place, entry in value.items():
                header[name][place] = entry
        else:
            header[name] = value
    data = voxels.astype(voxels.dtype.newbyteorder(order)).tobytes(order="F")
    whole = header.binaryblock + bytes(4) + data
    return gzip.compress(whole, 1, mtime=0) if packed else whole
