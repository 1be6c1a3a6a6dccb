"""What looks odd in one case or beside the other cases: warnings, each by a stated rule.

Read `compare` first: it names the rules that need the other cases. They work on `Look`, the few
figures that `doctor` keeps of a case when it reads it, so none of them reads a file again.
docs/doctor.md counts their false alarms on public data.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnseg.doctor.findings import Notes
from nnseg.volume import Geometry
from nnseg.volume.geometry import Matrix

Thumbnail: TypeAlias = NDArray[np.float32]  # (z, y, x), 12 x 12 x 12
Looks: TypeAlias = Sequence["Look"]

ENOUGH = 8  # cases that a comparison needs
FEW = 0.1  # the share of cases that may stick out; more of them are another kind of data
FAR = 5.0  # robust standard deviations
MAD = 1.4826  # standard deviation of a normal distribution in median absolute deviations

INTENSITY_FACTOR = 5.0  # between an outlier's range of intensities and the usual one
CT_SHIFT = 500.0  # HU between an outlier's median and the usual one
SIZE_FACTOR = 4.0  # between an outlier's number of voxels on an axis, or its spacing, and the usual

MIRROR_FAR = 4.0  # robust standard deviations
ASYMMETRY = 0.05  # correlation; images that lose less when they are mirrored are symmetric

SAMPLED = 2**18  # voxels of an image that its figures are taken from
EDGE = 12  # voxels of a thumbnail

AIR, OFFSET = 200, 1024  # of a CT that counts from 0: air lies below the one, water at the other
SOFT = (OFFSET - 150, OFFSET + 200)  # fat to muscle, in such a CT
WRAPPED = 2**16 - OFFSET - 100  # negative HU in an unsigned 16-bit file begin here
CLIPPED_SHARE, SOFT_SHARE, AIR_SHARE, WRAPPED_SHARE = 0.05, 0.05, 0.01, 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensities:
    """The intensities of one channel of one case.

    `median` and `high`, the 99th percentile, are those of the voxels above the minimum, because
    empty surroundings may be any part of an image.
    """

    minimum: float
    median: float
    high: float
    ct_fault: str | None = None  # why these are no Hounsfield units, if it was to be judged


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelLook:
    """One channel of a case, which a file may hold with others, and its intensities."""

    file: Path
    name: str
    intensities: Intensities


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Look:
    """What a case looks like, small enough to keep for all cases; image order."""

    case_id: str
    image: Path  # the file of the first channel
    label: Path | None
    geometry: Geometry
    channels: tuple[ChannelLook, ...]  # those that are finite and not constant
    thumbnail: Thumbnail | None  # of the first channel; None if it cannot be used
    label_thumbnail: Thumbnail | None  # of the foreground


def measure_intensities(array: NDArray[Any], *, is_ct: bool) -> Intensities:
    """Take the figures of one channel, (z, y, x), whose values are finite and not all the same."""
    voxels = np.asarray(_sample(array), dtype=np.float64).ravel()
    minimum = float(array.min())
    inside = voxels[voxels > minimum]
    if not inside.size:  # the sample missed them all
        inside = np.array([float(array.max())])
    median, high = np.percentile(inside, [50, 99])
    return Intensities(
        minimum=minimum,
        median=float(median),
        high=float(high),
        ct_fault=_ct_fault(voxels) if is_ct and minimum >= 0 else None,
    )


def make_thumbnail(array: NDArray[Any]) -> Thumbnail:
    """Shrink (z, y, x) to 12 x 12 x 12 means, whatever its shape was."""
    small = np.asarray(_sample(array), dtype=np.float64)
    for axis, length in enumerate(small.shape):
        starts = np.arange(EDGE) * length // EDGE
        if length < EDGE:
            small = small.take(starts, axis)
            continue
        widths = np.diff([*starts, length]).reshape([-1 if a == axis else 1 for a in range(3)])
        small = np.add.reduceat(small, starts, axis) / widths
    return small.astype(np.float32)


def compare(notes: Notes, looks: Looks) -> None:
    """Note the cases that differ from the others; fewer than 8 of a kind cannot be judged."""
    _note_ct_faults(notes, looks)
    _note_intensities(notes, looks)
    _note_sizes(notes, looks)
    _note_orientations(notes, looks)
    _note_mirrored(notes, looks)
    notes.case_id = None


def outliers(values: Sequence[float], *, floor: float, least: float) -> dict[int, float]:
    """Give the indices of the few values that lie far from the others, with their robust z.

    A value is far when it lies more than 5 robust standard deviations from the median, and more
    than `least`. The robust standard deviation is 1.4826 times the median absolute deviation, or
    `floor` where that is smaller, because values that hardly vary make any other one look far.
    Where more than a tenth of the values are far (at least one may be), they are a second kind of
    data rather than outliers, and none is given; neither is it among fewer than 8 values.

    >>> outliers([4, 4, 4, 4, 4, 4, 4, 90], floor=2, least=10)
    {7: 43.0}
    >>> outliers([4, 4, 4, 4, 4, 4, 90, 90], floor=2, least=10)
    {}
    """
    if len(values) < ENOUGH:
        return {}
    apart = np.abs(np.asarray(values, dtype=np.float64) - np.median(values))
    spread = max(MAD * float(np.median(apart)), floor)
    far = np.flatnonzero((apart > FAR * spread) & (apart > least * (1 + 1e-9)))  # not rounding
    if len(far) > _most(len(values)):
        return {}
    return {int(index): float(apart[index] / spread) for index in far}


def _most(count: int) -> int:
    """Give how many of `count` cases may stick out."""
    return max(1, int(FEW * count))


def _note_ct_faults(notes: Notes, looks: Looks) -> None:
    """Hounsfield units without a negative value, which no CT with air or fat in it has.

    `ct_unsigned`: the channel is named CT, its minimum is 0 or more, and its intensities are those
    of another scale (see `_ct_fault`). Where more than half of 8 or more images show it, it is one
    finding about all of them.
    """
    of_ct = [(k, c) for k in looks for c in k.channels if c.name.casefold() == "ct"]
    faulty = [(k, c, fault) for k, c in of_ct if (fault := c.intensities.ct_fault) is not None]
    remedy = "export the images anew with their rescale intercept, as signed integers"
    if len(of_ct) >= ENOUGH and len(faulty) > len(of_ct) / 2:
        notes.case_id = None
        _, channel, fault = faulty[0]
        found = f"{len(faulty)} of {len(of_ct)} CT images have no negative value; in the first"
        notes.warning("ct_unsigned", channel.file.parent, f"{found}, {fault}", remedy)
        return
    for look, channel, fault in faulty:
        notes.case_id = look.case_id
        notes.warning("ct_unsigned", channel.file, f"has no negative value: {fault}", remedy)


def _ct_fault(voxels: NDArray[np.float64]) -> str | None:
    """Say what became of the negative values of a CT that has none; None if it cannot be told.

    Either they were read as large unsigned numbers; or 1024 was added to all values, so that air
    lies near 0 and soft tissue near 1024; or they were cut off at 0.
    """

    def share(low: float, high: float) -> float:
        return float(((voxels >= low) & (voxels <= high)).mean())

    if share(WRAPPED, 2**16 - 1) >= WRAPPED_SHARE:
        return "values near 65000 look like negative ones that were read as unsigned"
    if share(0, AIR) >= AIR_SHARE and share(*SOFT) >= SOFT_SHARE:
        return "air near 0 and soft tissue near 1024 look as if 1024 had been added to all"
    inside = voxels[voxels > 0]
    if share(0, 0) >= CLIPPED_SHARE and inside.size and float(np.median(inside)) < AIR:
        return "many zeros and a median near 0 look as if negative ones had been cut off"
    return None


def _note_intensities(notes: Notes, looks: Looks) -> None:
    """Images whose intensities lie on another scale than those of the others.

    `intensity_outlier`, per channel: the distance from the minimum to the 99th percentile is an
    outlier by more than a factor of 5 (compared as logarithms; floor 1.1); or, of a channel named
    CT, the median lies more than 500 HU from the others' (floor 50 HU).
    """
    by_name: dict[str, list[tuple[Look, ChannelLook]]] = {}
    for look in looks:
        for channel in look.channels:
            by_name.setdefault(channel.name, []).append((look, channel))
    for name, listed in by_name.items():
        figures = [channel.intensities for _, channel in listed]
        ranges = [figure.high - figure.minimum for figure in figures]
        logs = [math.log(reach) for reach in ranges]
        far = outliers(logs, floor=math.log(1.1), least=math.log(INTENSITY_FACTOR))
        for index, z in far.items():
            found = (
                f"its intensities reach {ranges[index]:.4g} above their minimum, where "
                f"{np.median(ranges):.4g} is usual for {name} here (robust z {z:.0f})"
            )
            _warn_of_intensity(notes, *listed[index], found)
        if name.casefold() != "ct":
            continue
        medians = [figure.median for figure in figures]
        for index, z in outliers(medians, floor=CT_SHIFT / 10, least=CT_SHIFT).items():
            found = (
                f"its median is {medians[index]:.4g} HU, where {np.median(medians):.4g} HU is "
                f"usual here (robust z {z:.0f})"
            )
            if index not in far:
                _warn_of_intensity(notes, *listed[index], found)


def _warn_of_intensity(notes: Notes, look: Look, channel: ChannelLook, found: str) -> None:
    notes.case_id = look.case_id
    remedy = "check that it is the right channel and was exported like the others"
    notes.warning("intensity_outlier", channel.file, found, remedy)


def _note_sizes(notes: Notes, looks: Looks) -> None:
    """Images of another size or resolution than the others.

    `size_outlier`: on some axis the number of voxels, or the spacing, is an outlier by more than a
    factor of 4 (compared as logarithms; floor 1.1).
    """
    parts: dict[int, list[str]] = {}
    units = (("voxels", [k.geometry.shape for k in looks]), ("mm", _spacings(looks)))
    for unit, rows in units:
        for axis, name in enumerate("zyx"):
            values = [row[axis] for row in rows]
            logs = [math.log(max(value, 1e-9)) for value in values]
            for index in outliers(logs, floor=math.log(1.1), least=math.log(SIZE_FACTOR)):
                usual = f"{np.median(values):.4g} {unit} are usual"
                text = f"{values[index]:.4g} {unit} along {name}, where {usual}"
                parts.setdefault(index, []).append(text)
    for index, texts in sorted(parts.items()):
        notes.case_id = looks[index].case_id
        remedy = "check that the image is whole and its header right"
        notes.warning("size_outlier", looks[index].image, f"has {'; '.join(texts)}", remedy)


def _spacings(looks: Looks) -> list[tuple[float, ...]]:
    return [look.geometry.spacing for look in looks]


def _note_orientations(notes: Notes, looks: Looks) -> None:
    """Images whose voxel axes point another way than those of nearly all the others.

    `orientation_differs`: of at least 8 cases, at most a tenth (or one) have axes whose nearest
    world directions are not those of the rest. Images are used in the order of their voxels, so
    such a one is seen mirrored or turned.
    """
    codes = [axis_codes(look.geometry) for look in looks]
    if len(codes) < ENOUGH:
        return
    (usual, count), *_ = Counter(codes).most_common(1)
    if len(codes) - count > _most(len(codes)):
        return
    for look, code in zip(looks, codes, strict=True):
        if code != usual:
            notes.case_id = look.case_id
            found = f"its axes (x, y, z) point to {code}, those of {count} other cases to {usual}"
            remedy = "reorient image and label map like the others"
            notes.warning("orientation_differs", look.image, found, remedy)


def axis_codes(geometry: Geometry) -> str:
    """Give the world directions nearest to the voxel axes x, y, z: R or L, A or P, S or I."""
    return _axis_codes(geometry.affine)


@lru_cache(maxsize=1024)  # most cases of a dataset have one affine
def _axis_codes(affine: Matrix) -> str:
    from nibabel.orientations import aff2axcodes

    return "".join(code or "?" for code in aff2axcodes(np.array(affine)))


def _note_mirrored(notes: Notes, looks: Looks) -> None:
    """Images and label maps that look like the others only when they are mirrored.

    `image_mirrored`, and `label_mirrored` where the label map alone is: among at least 8 cases of
    the usual orientation, each is shrunk to 12 x 12 x 12 and correlated with the mean of the
    others, plain and mirrored along one axis of its voxels. Where all but a tenth of the cases (or
    one) fit better plain, and by 0.05 in the median, a case is mirrored if it fits better mirrored
    by at least half of that median, lies more than 4 robust standard deviations below it, and fits
    at least half as well, mirrored, as cases usually do plain: one that fits neither way is odd,
    but not mirrored.
    """
    codes = Counter(axis_codes(look.geometry) for look in looks)
    usual = codes.most_common(1)[0][0] if codes else ""
    alike = [look for look in looks if axis_codes(look.geometry) == usual]
    images = _mirrored([(look.case_id, look.thumbnail) for look in alike])
    labels = _mirrored([(look.case_id, look.label_thumbnail) for look in alike])
    for look in alike:
        axis = images.get(look.case_id, labels.get(look.case_id))
        if axis is None:
            continue
        notes.case_id = look.case_id
        along = f"along {'zyx'[axis]} ({_ends(usual, axis)})"
        if look.case_id in images:
            found = f"looks like the other cases only when it is mirrored {along}"
            if look.case_id not in labels:
                found += ", and its label map does not"
            remedy = "compare it with another case; if it is mirrored, mirror it and its label map"
            notes.warning("image_mirrored", look.image, found, remedy)
        elif look.label is not None:
            found = f"looks like those of the other cases only when it is mirrored {along}"
            remedy = "lay it over its image; if it is mirrored, mirror it back"
            notes.warning("label_mirrored", look.label, found, remedy)


def _ends(code: str, axis: int) -> str:
    """Give the two ends of a (z, y, x) axis of an image whose x, y, z point to `code`."""
    names = {"R": "left-right", "A": "front-back", "S": "head-foot"}
    opposite = {"L": "R", "P": "A", "I": "S"}
    letter = code[2 - axis]
    return names.get(opposite.get(letter, letter), "unknown")


def _mirrored(thumbnails: Iterable[tuple[str, Thumbnail | None]]) -> dict[str, int]:
    """Give the mirrored cases and the axis along which each is; see `_note_mirrored`."""
    usable = [(case_id, t) for case_id, t in thumbnails if t is not None and np.ptp(t) > 0]
    if len(usable) < ENOUGH:
        return {}
    stack = np.stack([thumbnail for _, thumbnail in usable])
    plain = _unit_rows(stack)
    others = _unit_rows(plain.sum(axis=0) - plain)
    fit = (plain * others).sum(axis=1)
    found: dict[str, tuple[float, int]] = {}
    for axis in range(3):
        mirrored = _unit_rows(np.flip(stack, axis + 1))
        fits = (mirrored * others).sum(axis=1)
        margins = fit - fits
        usual = float(np.median(margins))
        if usual < ASYMMETRY or (margins <= 0).sum() > _most(len(usable)):
            continue
        spread = MAD * float(np.median(np.abs(margins - usual)))
        far = (margins < -usual / 2) & (usual - margins > MIRROR_FAR * spread)
        far &= fits > float(np.median(fit)) / 2
        for index in np.flatnonzero(far):
            worst = (float(margins[index]), axis)
            case_id = usable[index][0]
            found[case_id] = min(worst, found.get(case_id, worst))
    return {case_id: axis for case_id, (_, axis) in found.items()}


def _unit_rows(stack: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give each array as a row of mean 0 and length 1, so that a product is a correlation."""
    rows = stack.reshape(len(stack), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), dtype=np.float32)


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    """Give every n-th voxel of the longest axes, so that few enough are left."""
    while array.size > SAMPLED:
        longest = int(np.argmax(array.shape))
        array = array[tuple(slice(None, None, 1 + (axis == longest)) for axis in range(3))]
    return array
