"""The phantom dataset `broken`: one with a fault of every kind that `doctor` must find.

`plant_faults` breaks a sound dataset, one case for each fault that needs one; `planted_faults`
lists what it did, so that a test can ask for all of it and for nothing else.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnseg.commit import write_whole
from nnseg.dataset import DatasetSpec
from nnseg.volume import read_image, read_segmentation, simple_geometry, write

BROKEN = "broken"  # the variant of PHANTOMS that is broken
FILE_ENDING = ".nii.gz"
DRIFT_MM = 0.1  # about a twentieth of a voxel: over rounding, and little enough to be mended
SURPLUS = 7  # training cases that dataset.json counts and that are not there


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedFault:
    """A fault of the `broken` dataset: the rule of `doctor` it breaks, and the file to name."""

    rule: str
    file: str  # relative to the dataset's folder


def cases_to_break() -> int:
    """Give the number of cases that `plant_faults` needs; those after them stay sound."""
    return len(_CASE_PLANTS)


def plant_faults(folder: Path, spec: DatasetSpec) -> DatasetSpec:
    """Break the dataset of phantoms in `folder`; give what its dataset.json is to say.

    Raises:
        MachineError: The folder cannot be written.
    """
    for number, (_, plant, _) in enumerate(_CASE_PLANTS):
        plant(folder, name_case(BROKEN, number))
    write_whole(folder / "imagesTr" / "notes.txt", b"not an image")
    return replace(spec, num_training=spec.num_training + SURPLUS)


def planted_faults() -> tuple[PlantedFault, ...]:
    """List every fault of the `broken` dataset, sorted by file and rule."""
    faults = [
        PlantedFault(rule="case_count", file="dataset.json"),
        PlantedFault(rule="file_name", file="imagesTr/notes.txt"),
        PlantedFault(rule="label_absent", file="dataset.json"),
    ]
    for number, (rule, _, file) in enumerate(_CASE_PLANTS):
        name = file.format(case=name_case(BROKEN, number))
        faults.append(PlantedFault(rule=rule, file=name))
    return tuple(sorted(faults, key=lambda fault: (fault.file, fault.rule)))


def name_case(variant: str, number: int) -> str:
    """Give the `case_id` of a phantom, sound or not."""
    return f"{variant}_{number:03d}"


def _images(folder: Path, case_id: str) -> list[Path]:
    return [folder / "imagesTr" / f"{case_id}_{channel:04d}{FILE_ENDING}" for channel in (0, 1)]


def _label(folder: Path, case_id: str) -> Path:
    return folder / "labelsTr" / f"{case_id}{FILE_ENDING}"


def _lose_channel(folder: Path, case_id: str) -> None:
    _images(folder, case_id)[1].unlink()


def _add_channel(folder: Path, case_id: str) -> None:
    first, _ = _images(folder, case_id)
    write_whole(first.with_name(f"{case_id}_0002{FILE_ENDING}"), first.read_bytes())


def _lose_label(folder: Path, case_id: str) -> None:
    _label(folder, case_id).unlink()


def _lose_image(folder: Path, case_id: str) -> None:
    for path in _images(folder, case_id):
        path.unlink()


def _cut_off(folder: Path, case_id: str) -> None:
    path = _images(folder, case_id)[0]
    data = path.read_bytes()
    write_whole(path, data[: len(data) * 6 // 10])


def _flip_checksum(folder: Path, case_id: str) -> None:
    path = _label(folder, case_id)
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # gzip ends with its CRC, 4 bytes, and its length, 4 bytes
    write_whole(path, bytes(data))


def _write_other_format(folder: Path, case_id: str) -> None:
    write_whole(_images(folder, case_id)[1], b"<html>404: this is no image</html>")


def _change_image(
    folder: Path, case_id: str, change: Callable[[NDArray[Any]], None], channel: int = 0
) -> None:
    path = _images(folder, case_id)[channel]
    volume = read_image([path])
    values = volume.image[0].copy()
    change(values)
    write(path, values, volume.geometry)


def _change_label(folder: Path, case_id: str, change: Callable[[NDArray[Any]], None]) -> None:
    path = _label(folder, case_id)
    segmentation, geometry = read_segmentation(path)
    values = segmentation.astype(np.float32)
    change(values)
    write(path, values, geometry)


def _put(value: float, *, everywhere: bool = False) -> Callable[[NDArray[Any]], None]:
    """Give a change that sets a 2 x 3 x 4 corner of an array, or all of it, to `value`."""

    def change(values: NDArray[Any]) -> None:
        values[... if everywhere else np.s_[:2, :3, :4]] = value

    return change


def _blur(values: NDArray[Any]) -> None:
    from scipy.ndimage import gaussian_filter

    values[:] = gaussian_filter(values, 1.0)


def _move(path: Path, *, spacing: float = 1, shift_mm: float = 0, mirror: bool = False) -> None:
    """Rewrite a file with its z spacing scaled, its origin moved along x, or x pointing left."""
    segmentation, geometry = read_segmentation(path)
    z, y, x = geometry.spacing
    moved = simple_geometry(geometry.shape, (z * spacing, y, x))
    rows = [list(row) for row in moved.affine]
    rows[0][0] *= -1 if mirror else 1
    rows[0][3] += shift_mm
    write(path, segmentation, replace(moved, affine=tuple(tuple(row) for row in rows)))


def _move_case(**change: Any) -> Callable[[Path, str], None]:
    """Give a plant that moves every file of a case alike."""

    def plant(folder: Path, case_id: str) -> None:
        for path in (*_images(folder, case_id), _label(folder, case_id)):
            _move(path, **change)

    return plant


def _brighten(values: NDArray[Any]) -> None:
    values *= 50


def _crop_label(folder: Path, case_id: str) -> None:
    path = _label(folder, case_id)
    segmentation, geometry = read_segmentation(path)
    cropped = segmentation[:-1]
    write(path, cropped, simple_geometry(cropped.shape, geometry.spacing))


def _copy_case(folder: Path, case_id: str) -> None:
    """Make the case a copy of the first one, label map and all."""
    first = name_case(BROKEN, 0)
    for mine, other in zip(_images(folder, case_id), _images(folder, first), strict=True):
        write_whole(mine, other.read_bytes())
    write_whole(_label(folder, case_id), _label(folder, first).read_bytes())


def _copy_channel(folder: Path, case_id: str) -> None:
    first, second = _images(folder, case_id)
    write_whole(second, first.read_bytes())


_FIRST = f"imagesTr/{{case}}_0000{FILE_ENDING}"
_SECOND = f"imagesTr/{{case}}_0001{FILE_ENDING}"
_LABEL = f"labelsTr/{{case}}{FILE_ENDING}"

# the rule that is broken, how, and the file that a finding must name; a case each, in this order
_CASE_PLANTS: tuple[tuple[str, Callable[[Path, str], None], str], ...] = (
    ("channel_undeclared", _add_channel, f"imagesTr/{{case}}_0002{FILE_ENDING}"),
    ("duplicate", _copy_case, _FIRST),
    ("channel_missing", _lose_channel, _SECOND),
    ("label_missing", _lose_label, _LABEL),
    ("image_missing", _lose_image, _LABEL),
    ("unreadable", _cut_off, _FIRST),
    ("unreadable", _flip_checksum, _LABEL),
    ("unreadable", _write_other_format, _SECOND),
    ("not_finite", lambda f, c: _change_image(f, c, _put(math.nan)), _FIRST),
    ("not_finite", lambda f, c: _change_image(f, c, _put(math.inf), channel=1), _SECOND),
    ("channel_constant", lambda f, c: _change_image(f, c, _put(7, everywhere=True)), _FIRST),
    ("channel_repeated", _copy_channel, _SECOND),
    ("channel_grid", lambda f, c: _move(_images(f, c)[1], spacing=1.5), _SECOND),
    ("label_grid", _crop_label, _LABEL),
    ("label_grid", lambda f, c: _move(_label(f, c), spacing=0.5), _LABEL),
    ("label_grid", lambda f, c: _move(_label(f, c), shift_mm=4), _LABEL),
    ("label_grid", lambda f, c: _move(_label(f, c), shift_mm=DRIFT_MM), _LABEL),
    ("label_undeclared", lambda f, c: _change_label(f, c, _put(9)), _LABEL),
    ("label_not_integer", lambda f, c: _change_label(f, c, _blur), _LABEL),
    ("label_not_integer", lambda f, c: _change_label(f, c, _put(math.nan)), _LABEL),
    ("label_empty", lambda f, c: _change_label(f, c, _put(0, everywhere=True)), _LABEL),
    ("intensity_outlier", lambda f, c: _change_image(f, c, _brighten, channel=1), _SECOND),
    ("size_outlier", _move_case(spacing=6), _FIRST),
    ("orientation_differs", _move_case(mirror=True), _FIRST),
)
