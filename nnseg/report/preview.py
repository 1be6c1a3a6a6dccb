"""A case small enough to look at in a browser: cropped, turned upright, 8 bit, as one script file.

A page that is opened as a file may not fetch others, but it may load scripts. So each case is a
script that hands its data to the page's viewer, and is loaded when somebody looks at the case.
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Segmentation, Shape
from nnseg.image.crop import bounding_box
from nnseg.labels import Labels
from nnseg.report.markup import script_json
from nnseg.volume import Geometry

Number = TypeVar("Number", int, float)
Level = TypeVar("Level", np.uint8, np.unsignedinteger[Any])
Positions: TypeAlias = NDArray[np.unsignedinteger[Any]]  # of labels; 8 bit, or 16 for 256 and more

MOST_CHANNELS = 4
MOST_VOXELS = 3 * 2**20  # of a case: channels and label maps together
MOST_BYTES = 2**22 + 2**14  # of its file, were all of it noise: base64 makes 4 bytes of 3
MARGIN_MM = 20.0  # kept around what is labelled
LEAST_MARGIN = 8  # voxels
UNKNOWN = 255  # position of an integer that is none of the labels; of 256 and more, 65535
REFERENCE = "reference"
LEVELS = 255
CUT = (0.2, 99.8)  # percentiles of the intensities that become black and white


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A channel in 8 bit, (z, y, x); level 0 is `low`, level 255 `high`."""

    name: str
    low: float
    high: float
    levels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileAxis:
    """Which voxels of the file an axis of what is shown runs through."""

    axis: int  # of the file's (z, y, x)
    first: int  # voxel of the file at which the part that is shown begins
    last: int  # that at which it ends
    flipped: bool  # it is shown from the last to the first


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What is shown of a case.

    Axes are (z, y, x), turned so that indices grow to the head, the front and the left-to-right
    of the patient; where the file does not tell these, it stays as it is. Label maps hold
    positions: 0 is background.
    """

    spacing: tuple[float, float, float]  # mm, of the voxels that are shown
    every: tuple[int, int, int]  # how many voxels of the file one of these stands for
    anatomical: bool  # the directions are the patient's
    channels: tuple[Channel, ...]
    reference: Positions | None
    maps: dict[str, Positions]  # predictions by name
    start: tuple[int, int, int]  # where to look first
    file_axes: tuple[FileAxis, FileAxis, FileAxis]

    @property
    def layers(self) -> tuple[tuple[str, Positions], ...]:
        """All label maps with their names, the reference first; a prediction may be called so."""
        first = () if self.reference is None else ((REFERENCE, self.reference),)
        return (*first, *self.maps.items())

    @property
    def shape(self) -> Shape:
        """Of all arrays, (z, y, x)."""
        any_array = self.channels[0].levels if self.channels else self.layers[0][1]
        z, y, x = any_array.shape
        return z, y, x

    def voxel(self, at: Sequence[int]) -> tuple[int, int, int]:
        """Give the voxel (z, y, x) of the file that stands for one that is shown."""
        found = [0, 0, 0]
        for place, n, step, axis in zip(at, self.shape, self.every, self.file_axes, strict=True):
            block = n - 1 - place if axis.flipped else place
            found[axis.axis] = min(axis.first + block * step + step // 2, axis.last)
        return found[0], found[1], found[2]


def make_preview(
    channels: Mapping[str, NDArray[np.generic]],
    maps: Mapping[str, Segmentation],
    labels: Labels,
    geometry: Geometry,
    *,
    reference: Segmentation | None = None,
    anatomical: bool | None = None,
    mark: tuple[int, int, int] | None = None,
) -> Preview:
    """Give what is shown of a case.

    What is too large is first cut to what is labelled and some room around it, then thinned along
    the axes that have the most voxels.

    Args:
        channels: Images (z, y, x) by name; the first MOST_CHANNELS are taken. May be none.
        maps: Predicted label maps (z, y, x) of the same shape by name.
        labels: What the integers mean.
        geometry: Of all arrays.
        reference: The true label map. At least one array is needed.
        anatomical: Whether the geometry has the directions of the patient; None is unless it is a
            picture's.
        mark: A voxel (z, y, x) to look at first; None is where the maps differ the most.
    """
    taken = dict(list(channels.items())[:MOST_CHANNELS])
    given = [*(() if reference is None else (reference,)), *maps.values()]
    positions = [_positions(array, labels) for array in given]
    bytes_each = len(taken) + sum(array.itemsize for array in positions)
    budget = MOST_VOXELS // max(1, bytes_each)
    box = _box(geometry, positions, mark, budget)
    full = [s.stop - s.start for s in box]
    every = _thinning(full, geometry.spacing, budget)
    shape = [-(-n // step) for n, step in zip(full, every, strict=True)]
    if anatomical is None:
        anatomical = geometry.dimensions == 3
    turn = _Turn.of(geometry) if anatomical else _Turn()
    cut = [turn.apply(_thin(array[box], every)) for array in positions]
    shown = []
    for name, array in taken.items():
        low, high, levels = _levels(_mean(array[box], every))
        shown.append(Channel(name=name, low=low, high=high, levels=turn.apply(levels)))
    if mark is None:
        start = _start(cut, turn.three(shape))
    else:
        inside = [(at - s.start) // step for at, s, step in zip(mark, box, every, strict=True)]
        start = turn.place(
            [min(max(at, 0), n - 1) for at, n in zip(inside, shape, strict=True)], shape
        )
    spacing = [mm * step for mm, step in zip(geometry.spacing, every, strict=True)]
    return Preview(
        spacing=turn.three(spacing),
        every=turn.three(every),
        anatomical=anatomical,
        channels=tuple(shown),
        reference=None if reference is None else cut[0],
        maps=dict(zip(maps, cut[len(given) - len(maps) :], strict=True)),
        start=start,
        file_axes=turn.file_axes(box),
    )


def to_script(preview: Preview, number: int) -> bytes:
    """Give the script that hands a case to the viewer as its case `number`.

    Arrays are compressed by zlib, in base64; x grows fastest. Numbers of axes are (x, y, z), and
    `axis` counts those of the file so. Positions have `bytes` bytes each, the lowest first.
    """
    layers = [array for _, array in preview.layers]
    data = {
        "shape": preview.shape[::-1],
        "spacing": preview.spacing[::-1],
        "every": preview.every[::-1],
        "anatomical": preview.anatomical,
        "start": preview.start[::-1],
        "file": [
            {"axis": 2 - a.axis, "first": a.first, "last": a.last, "flipped": a.flipped}
            for a in reversed(preview.file_axes)
        ],
        "bytes": max((array.itemsize for array in layers), default=1),
        "channels": [
            {"name": c.name, "low": c.low, "high": c.high, "data": _packed(c.levels)}
            for c in preview.channels
        ],
        "reference": None if preview.reference is None else _packed(preview.reference),
        "maps": [{"name": name, "data": _packed(array)} for name, array in preview.maps.items()],
    }
    return f"nnsegReport.take({number},{script_json(data)});\n".encode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """How the axes of a file become those of the viewer."""

    order: tuple[int, int, int] = (0, 1, 2)  # for each new axis the old one
    flipped: tuple[bool, bool, bool] = (False, False, False)  # of the new axes

    @classmethod
    def of(cls, geometry: Geometry) -> "_Turn":
        """Turn each axis to the direction of the patient that it follows the most."""
        steps = np.array(geometry.affine)[:3, :3][::-1, ::-1]  # (world z y x, voxel z y x)
        steps = steps / np.linalg.norm(steps, axis=0)
        order, free = [-1, -1, -1], {0, 1, 2}
        for flat in np.argsort(-np.abs(steps), axis=None):
            world, voxel = divmod(int(flat), 3)
            if order[world] < 0 and voxel in free:
                order[world] = voxel
                free.discard(voxel)
        z, y, x = order
        back = [bool(steps[world, voxel] < 0) for world, voxel in enumerate(order)]
        return cls(order=(z, y, x), flipped=(back[0], back[1], back[2]))

    def apply(self, array: NDArray[Level]) -> NDArray[Level]:
        turned = array.transpose(self.order)
        steps = tuple(slice(None, None, -1 if back else 1) for back in self.flipped)
        return np.ascontiguousarray(turned[steps])

    def file_axes(self, box: Sequence[slice]) -> tuple[FileAxis, FileAxis, FileAxis]:
        """Say which voxels of the file the new axes run through, of the part `box` of it."""
        z, y, x = (
            FileAxis(axis=axis, first=box[axis].start, last=box[axis].stop - 1, flipped=back)
            for axis, back in zip(self.order, self.flipped, strict=True)
        )
        return z, y, x

    def three(self, values: Sequence[Number]) -> tuple[Number, Number, Number]:
        """Put values of the old axes into the new order."""
        z, y, x = (values[axis] for axis in self.order)
        return z, y, x

    def place(self, at: Sequence[int], shape: Sequence[int]) -> tuple[int, int, int]:
        z, y, x = (
            shape[axis] - 1 - at[axis] if back else at[axis]
            for axis, back in zip(self.order, self.flipped, strict=True)
        )
        return z, y, x


def _positions(array: Segmentation, labels: Labels) -> Positions:
    """Give the position of each voxel's label, plane by plane: the way there takes more memory."""
    values = np.array(labels.values)
    kind = np.uint8 if len(values) <= UNKNOWN else np.uint16
    found: Positions = np.empty(array.shape, kind)
    unknown = np.iinfo(kind).max
    for plane, result in zip(array, found, strict=True):
        places = np.searchsorted(values, plane).clip(max=len(values) - 1)
        known = values[places] == plane
        result[...] = np.where(known, places, unknown)
    return found


def _box(
    geometry: Geometry,
    maps: Sequence[Positions],
    mark: tuple[int, int, int] | None,
    budget: int,
) -> tuple[slice, slice, slice]:
    """Give the part of a large case that is shown; of a small one it is everything."""
    z, y, x = (slice(0, n) for n in geometry.shape)
    if int(np.prod(geometry.shape)) <= budget or not maps:
        return z, y, x
    inside = np.zeros(geometry.shape, np.bool_)
    for array in maps:
        inside |= array > 0
    if mark is not None:
        inside[mark] = True
    if not inside.any():
        return z, y, x
    box = []
    for (first, last), n, mm in zip(
        bounding_box(inside), geometry.shape, geometry.spacing, strict=True
    ):
        margin = max(LEAST_MARGIN, round(MARGIN_MM / mm))
        box.append(slice(max(0, first - margin), min(n, last + margin)))
    return box[0], box[1], box[2]


def _thinning(shape: Sequence[int], spacing: Sequence[float], budget: int) -> tuple[int, int, int]:
    """Say which voxels are left out, so that at most `budget` stay: first where they are finest."""
    every = [1, 1, 1]
    while np.prod([-(-n // step) for n, step in zip(shape, every, strict=True)]) > budget:
        sizes = [
            mm * step if n > step else np.inf
            for n, mm, step in zip(shape, spacing, every, strict=True)
        ]
        every[int(np.argmin(sizes))] += 1
    return every[0], every[1], every[2]


def _thin(array: Positions, every: Sequence[int]) -> Positions:
    """Take the voxel in the middle of each block."""
    middle = tuple(
        slice(min(s // 2, n - 1), None, s) for n, s in zip(array.shape, every, strict=True)
    )
    taken = array[middle]
    missing = [(0, -(-n // s) - m) for n, s, m in zip(array.shape, every, taken.shape, strict=True)]
    return np.pad(taken, missing, mode="edge")


def _mean(array: NDArray[np.generic], every: Sequence[int]) -> NDArray[np.float32]:
    """Take the mean of each block; blocks at the far ends are filled up with their last voxels."""
    values = np.nan_to_num(np.asarray(array, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if max(every) == 1:
        return values
    for axis, step in enumerate(every):
        if step == 1:
            continue
        lacking = -values.shape[axis] % step
        widths = [(0, lacking if i == axis else 0) for i in range(3)]
        values = np.pad(values, widths, mode="edge")
        blocks = list(values.shape)
        blocks[axis : axis + 1] = [values.shape[axis] // step, step]
        values = values.reshape(blocks).mean(axis=axis + 1, dtype=np.float32)
    return values


def _levels(values: NDArray[np.float32]) -> tuple[float, float, NDArray[np.uint8]]:
    """Give the intensities as levels 0 to 255, and those that the ends stand for."""
    low, high = (float(v) for v in np.percentile(values, CUT))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    scale = LEVELS / (high - low) if high > low else 0.0
    levels = np.rint((values - low) * scale).clip(0, LEVELS)
    return float(f"{low:.6g}"), float(f"{high:.6g}"), levels.astype(np.uint8)


def _start(maps: Sequence[Positions], shape: Sequence[int]) -> tuple[int, int, int]:
    """Look into the slice where maps differ the most, else where the most is labelled."""
    z, y, x = (n // 2 for n in shape)
    if not maps:
        return z, y, x
    for mask in (maps[0] != maps[-1], maps[0] > 0):
        if mask.any():
            z = int(mask.sum(axis=(1, 2)).argmax())
            y = int(mask[z].sum(axis=1).argmax())
            inside = np.flatnonzero(mask[z, y])
            x = int(inside[len(inside) // 2])
            break
    return z, y, x


def _packed(array: Positions) -> str:
    stored = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(zlib.compress(stored.tobytes(), 6)).decode("ascii")
