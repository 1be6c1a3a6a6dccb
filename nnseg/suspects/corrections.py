"""What each likely correction of a label map would gain in agreement with a prediction.

The prediction is of a model that never saw the case's label map. Read `gather` first: it names the
corrections that are tried. Nothing is decided here; `label_errors` holds the gains of a case
against those of the others.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Box, Mask, Segmentation, Spacing, three
from nnseg.evaluate import confusion_table
from nnseg.image.components import number_components
from nnseg.image.crop import bounding_box, cut
from nnseg.image.offset import best_offset, moved, thinned
from nnseg.labels import Labels

Kind: TypeAlias = Literal["swap", "mirror", "shift", "slices", "missing", "added"]
Place: TypeAlias = tuple[int, int, int]  # a voxel, (z, y, x), image order
Counts: TypeAlias = NDArray[np.int64]

COARSE = 3.0  # an axis is coarse when its spacing is over 3 times the finest
CUT = 0.3  # of a label's largest slice: where it ends at this area or more, it ends abruptly
FEW_SLICES = 4  # along an axis; fewer have no range that could be wrong
MIRROR_VOXELS = 2**19  # of a grid; of a larger one every n-th is flipped
POINTS = 2**16  # of a piece, among which the one nearest to its centre is looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """A change of the label map, and the mean Dice of what it touches before and after it."""

    kind: Kind
    labels: tuple[str, ...]  # that it touches; none are all
    before: float
    after: float
    what: str  # in words: "with left and right exchanged"
    where: Place  # to look at
    volume_mm3: float = 0.0  # of what is added or removed


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a case's label map and its prediction say of each other."""

    case_id: str
    dice: dict[str, float]  # by name of the label, of those that either has
    expected_dice: dict[str, float]  # that the model's own probabilities promise; empty: unknown
    volume_mm3: dict[str, float]  # of the label map, of the labels that it has
    position_mm: dict[str, Spacing]  # of a label's centre from that of all that is predicted
    corrections: tuple[Correction, ...]
    where: Place | None  # amid what differs; None where nothing does


def gather(
    case_id: str,
    prediction: Segmentation,
    reference: Segmentation,
    labels: Labels,
    spacing: Spacing,
    *,
    expected_dice: Mapping[str, float | None] | None = None,
) -> Evidence:
    """Try the corrections of a label map that would undo a common mistake.

    Two labels exchanged, or one called by another's name; the whole map mirrored, or moved; slices
    of a label left out or too many; a thick piece of a label missing or too much. Regions are taken
    apart into the labels that they are made of. Voxels that nobody annotated do not count.

    Args:
        case_id: Of the case.
        prediction: (z, y, x), image order.
        reference: The label map, (z, y, x).
        labels: What the integers mean.
        spacing: mm, (z, y, x).
        expected_dice: By name, where the model's probabilities are kept.

    Raises:
        DataError: The shapes differ, or a value is none of the labels.
    """
    table = confusion_table(prediction, reference, labels)
    names = _names(labels)
    predicted = _foreground(labels.to_positions(prediction), reference, labels)
    drawn = _foreground(labels.to_positions(reference), reference, labels)
    pair = _Pair(predicted, drawn, table[: len(names) + 1, : len(names) + 1], names, spacing)
    found = [*pair.swaps(), *pair.mirrors(), *pair.shifts()]
    for label in pair.present:
        found += [*pair.slices(label), *pair.pieces(label)]
    volume = float(np.prod(spacing))
    rows = pair.table.sum(axis=1)
    return Evidence(
        case_id=case_id,
        dice={names[label - 1]: float(pair.dice[label]) for label in pair.present},
        expected_dice={n: d for n, d in (expected_dice or {}).items() if d is not None},
        volume_mm3={names[at - 1]: rows[at] * volume for at in pair.present if rows[at]},
        position_mm=pair.positions(),
        corrections=tuple(found),
        where=_central(pair.predicted != pair.drawn, pair.start),
    )


class _Pair:
    """A prediction and a label map as positions, cut to the box of what either holds."""

    def __init__(
        self,
        predicted: Segmentation,
        drawn: Segmentation,
        table: Counts,
        names: Sequence[str],
        spacing: Spacing,
    ) -> None:
        self.whole = predicted, drawn
        self.table, self.names, self.spacing = table, names, spacing
        self.sizes = table.sum(axis=1) + table.sum(axis=0)
        self.present = [int(label) for label in np.flatnonzero(self.sizes[1:]) + 1]
        self.dice = 2 * np.diagonal(table) / np.maximum(self.sizes, 1)
        box = bounding_box((predicted > 0) | (drawn > 0))
        self.start = three([first for first, _ in box])
        self.predicted, self.drawn = cut(predicted, box), cut(drawn, box)
        self.boxes = _boxes(self.predicted, self.drawn)

    def mean_dice(self, overlap: Sequence[int], sizes: Counts) -> float:
        """Give the mean Dice of the labels that are there, from overlaps and sums of sizes."""
        return float(np.mean([2 * overlap[at] / sizes[at] for at in self.present if sizes[at]]))

    def swaps(self) -> Iterator[Correction]:
        """Try to exchange two labels, which may be one label under two names; the best pair."""
        if len(self.present) < 2:
            return
        sizes = self.table.sum(axis=1)[:, None] + self.table.sum(axis=0)[None, :]
        dice = np.where(sizes > 0, 2 * self.table / np.maximum(sizes, 1), np.nan)
        ones, others = np.array(list(itertools.combinations(self.present, 2))).T
        # of a label that is there, one of the two has a value
        befores = np.nanmean([dice[ones, ones], dice[others, others]], axis=0)
        afters = np.nanmean([dice[ones, others], dice[others, ones]], axis=0)
        best = int((afters - befores).argmax())
        one, other = int(ones[best]), int(others[best])
        before, after = float(befores[best]), float(afters[best])
        names = self.names[one - 1], self.names[other - 1]
        wrong = (self.drawn == one) & (self.predicted == other)
        wrong |= (self.drawn == other) & (self.predicted == one)
        if (where := _central(wrong, self.start)) is not None:
            what = f"with {names[0]} and {names[1]} exchanged"
            yield Correction(
                kind="swap", labels=names, before=before, after=after, what=what, where=where
            )

    def mirrors(self) -> Iterator[Correction]:
        """Try the flips of the whole grid; the best one."""
        predicted, drawn = (thinned(array, MIRROR_VOXELS) for array in self.whole)
        where = _central(self.predicted != self.drawn, self.start)
        if where is None:
            return
        sizes = _counts(predicted, len(self.names)) + _counts(drawn, len(self.names))
        long = [axis for axis in range(3) if predicted.shape[axis] > 1]
        flips = [axes for n in range(1, len(long) + 1) for axes in itertools.combinations(long, n)]
        scores: dict[tuple[int, ...], float] = {}
        scores[()] = self.mean_dice(_overlap(predicted, drawn, len(self.names)), sizes)
        for axes in flips:
            overlap = _overlap(predicted, np.flip(drawn, axes), len(self.names))
            scores[axes] = self.mean_dice(overlap, sizes)
        best = max(flips, key=lambda axes: scores[axes])
        along = " and ".join("zyx"[axis] for axis in best)
        yield Correction(
            kind="mirror",
            labels=(),
            before=scores[()],
            after=scores[best],
            what=f"mirrored along {along}",
            where=where,
        )

    def shifts(self) -> Iterator[Correction]:
        """Try to move the whole map; the best offset, which may be none and gain nothing."""
        where = _central(self.predicted != self.drawn, self.start)
        if where is None or not (self.predicted.any() and self.drawn.any()):
            return
        offset = best_offset(self.predicted, self.drawn)
        overlap = _overlap(self.predicted, moved(self.drawn, offset), len(self.names))
        yield Correction(
            kind="shift",
            labels=(),
            before=self.mean_dice(np.diagonal(self.table).tolist(), self.sizes),
            after=self.mean_dice(overlap, self.sizes),
            what=f"moved by {offset} voxels (z, y, x)",
            where=where,
        )

    def slices(self, label: int) -> Iterator[Correction]:
        """Try to even out slices in which just one of the two has a label; the most voxels."""
        predicted, drawn, start = self._masks(label)
        if not (predicted.any() and drawn.any()):
            return
        best: Correction | None = None
        for axis in range(3):
            if self.predicted.shape[axis] < FEW_SLICES:
                continue
            others = tuple(other for other in range(3) if other != axis)
            areas = predicted.sum(axis=others), drawn.sum(axis=others)
            for lacks, (fuller, emptier) in ((True, areas), (False, areas[::-1])):
                first, stop = _abrupt_gap(fuller, emptier)
                voxels = int(fuller[first:stop].sum())
                after = self._filled(label, voxels if lacks else 0, 0 if lacks else voxels)
                if not voxels or (best is not None and best.after >= after):
                    continue
                part = tuple(slice(first, stop) if a == axis else slice(None) for a in range(3))
                origin = list(start)
                origin[axis] += first
                where = _central((predicted if lacks else drawn)[part], three(origin))
                assert where is not None, "there are voxels"
                name, begin = self.names[label - 1], start[axis]
                span = f"slices {begin + first} to {begin + stop - 1} along {'zyx'[axis]}"
                best = Correction(
                    kind="slices",
                    labels=(name,),
                    before=float(self.dice[label]),
                    after=after,
                    what=f"with {name} in {span}" if lacks else f"without {name} in {span}",
                    where=where,
                )
        if best is not None:
            yield best

    def pieces(self, label: int) -> Iterator[Correction]:
        """Try the largest thick piece that is predicted and not drawn, and the other way round."""
        predicted, drawn, start = self._masks(label)
        name = self.names[label - 1]
        kinds: tuple[tuple[Kind, Mask], ...] = (
            ("missing", predicted & ~drawn),
            ("added", drawn & ~predicted),
        )
        for kind, apart in kinds:
            alone = not (drawn if kind == "missing" else predicted).any()
            piece = apart if alone else _thick_piece(apart, self._fine_axes())
            if (where := _central(piece, start)) is None:
                continue
            voxels = int(piece.sum())
            missing = kind == "missing"
            after = self._filled(label, voxels if missing else 0, 0 if missing else voxels)
            yield Correction(
                kind=kind,
                labels=(name,),
                before=float(self.dice[label]),
                after=after,
                what=f"{'with' if missing else 'without'} {voxels} voxels of {name} in one piece",
                where=where,
                volume_mm3=voxels * float(np.prod(self.spacing)),
            )

    def positions(self) -> dict[str, Spacing]:
        """Say where each drawn label's centre lies from that of all that is predicted, in mm."""
        centre = _centre(self.predicted > 0)
        if centre is None:
            return {}
        found = {}
        for label in self.present:
            _, drawn, start = self._masks(label)
            own = _centre(drawn)
            if own is not None:
                begin = np.array(start) - np.array(self.start)
                apart = (own + begin - centre) * np.array(self.spacing)
                found[self.names[label - 1]] = three([float(mm) for mm in apart])
        return found

    def _masks(self, label: int) -> tuple[Mask, Mask, Place]:
        """Give where a label is predicted and where drawn, in its box, and where that starts."""
        box = self.boxes[label]
        start = three([at + first for at, (first, _) in zip(self.start, box, strict=True)])
        return cut(self.predicted, box) == label, cut(self.drawn, box) == label, start

    def _filled(self, label: int, added: int, removed: int) -> float:
        """Give a label's Dice when voxels that differ are added to the map, or removed from it."""
        size = self.sizes[label] + added - removed
        return float(2 * (self.table[label, label] + added) / size) if size else 1.0

    def _fine_axes(self) -> list[int]:
        """List the axes along which a piece can be thick: not a flat image's, nor a coarse one."""
        finest = min(self.spacing)
        shape = self.predicted.shape
        axes = [a for a in range(3) if shape[a] > 1 and self.spacing[a] <= COARSE * finest]
        return axes or [a for a in range(3) if shape[a] > 1]


def _names(labels: Labels) -> tuple[str, ...]:
    """Name the labels but background and ignore, in the order of their integers."""
    alone = {v[0]: name for name, v in labels.foreground.items() if len(v) == 1}
    return tuple(alone.get(value, f"label {value}") for value in labels.foreground_values)


def _foreground(positions: Segmentation, reference: Segmentation, labels: Labels) -> Segmentation:
    """Give positions, 0 wherever nobody annotated."""
    if labels.ignore is None:
        return positions
    return np.where(reference == labels.ignore, 0, positions)


def _boxes(predicted: Segmentation, drawn: Segmentation) -> dict[int, Box]:
    """Give the smallest box of each label that holds it in both maps, in one pass of each."""
    from scipy import ndimage

    found: dict[int, Box] = {}
    for array in (predicted, drawn):
        for label, parts in enumerate(ndimage.find_objects(array), 1):
            if parts is None:
                continue
            box = cast(Box, tuple((part.start, part.stop) for part in parts))
            known = found.get(label, box)
            pairs = zip(box, known, strict=True)
            found[label] = cast(Box, tuple((min(a, c), max(b, d)) for (a, b), (c, d) in pairs))
    return found


def _central(mask: Mask, start: Place) -> Place | None:
    """Give the voxel of a mask that lies nearest to its centre; None where it is empty."""
    voxels = np.flatnonzero(mask)
    if not voxels.size:
        return None
    voxels = voxels[:: 1 + voxels.size // POINTS]
    points = np.stack(np.unravel_index(voxels, mask.shape), axis=1)
    nearest = points[((points - points.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return three([int(at) + begin for at, begin in zip(nearest, start, strict=True)])


def _centre(mask: Mask) -> NDArray[np.float64] | None:
    """Give the mean position of a mask's voxels, (z, y, x); None where it is empty."""
    total = int(mask.sum())
    if not total:
        return None
    found = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found.append(float(mask.sum(axis=others) @ np.arange(mask.shape[axis])) / total)
    return np.array(found)


def _counts(positions: Segmentation, labels: int) -> Counts:
    return np.bincount(positions.ravel(), minlength=labels + 1)


def _overlap(predicted: Segmentation, drawn: Segmentation, labels: int) -> list[int]:
    """Count the voxels of each label in which two maps of one shape agree."""
    return [int(count) for count in _counts(predicted[predicted == drawn], labels)]


def _abrupt_gap(fuller: Counts, emptier: Counts) -> tuple[int, int]:
    """Find the run of slices, first and stop, with most of `fuller` where the other has none.

    It must begin or end beside a slice where the other one has plenty, as where somebody stopped
    drawing; a tip that is drawn a little shorter is no such gap.
    """
    gap = (emptier == 0) & (fuller > 0)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], gap.astype(np.int8), [0]])))
    best = (0, 0)
    plenty = CUT * emptier.max()
    for first, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        beside = [emptier[at] for at in (first - 1, stop) if 0 <= at < len(emptier)]
        if max(beside, default=0) >= plenty and fuller[first:stop].max() >= CUT * fuller.max():
            best = max(best, (first, stop), key=lambda run: fuller[run[0] : run[1]].sum())
    return best


def _thick_piece(mask: Mask, axes: Sequence[int]) -> Mask:
    """Give the largest piece of a mask that is over two voxels thick along each of `axes`."""
    if not mask.any():
        return mask
    box = bounding_box(mask)
    inside = cut(mask, box)
    parts, sizes = number_components(_spread(inside, axes, grow=False))
    piece = np.zeros_like(mask)
    if sizes.max() > 0:
        cut(piece, box)[:] = _spread(parts == sizes.argmax(), axes, grow=True) & inside
    return piece


def _spread(mask: Mask, axes: Sequence[int], *, grow: bool) -> Mask:
    """Grow a mask by one voxel along `axes`, corners too, or shrink it; outside it is False."""
    result: Mask = mask.copy()
    for axis in axes:
        to = np.moveaxis(result, axis, 0)  # a view
        of = to.copy()
        if grow:
            to[1:] |= of[:-1]
            to[:-1] |= of[1:]
        else:
            to[1:] &= of[:-1]
            to[:-1] &= of[1:]
            to[0] = to[-1] = False
    return result
