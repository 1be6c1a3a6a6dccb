"""Models at work together: from an image to its label map, and how sure that is.

One model's label map follows from its logits, and they are never all on the grid of the file.
Several models, or maps of how sure they are, want probabilities there: they come and go a slab at a
time, of all models in step.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnseg.averaging import SLAB_BYTES, centred, shares_of, weighted_mean
from nnseg.axes import Image, Planes, Segmentation, Spacing
from nnseg.errors import DataError
from nnseg.image.decide import slab_depth
from nnseg.inference import Model
from nnseg.labels import Labels
from nnseg.predict import PLAIN_SWEEP, OnTile, Sweep, count_tiles
from nnseg.preprocess import Placement
from nnseg.restore import body_of, paste_planes, restore_logits
from nnseg.scores.uncertainty import ExpectedDice, disagreement, entropy

_EXPECT_BYTES = 2**22  # of the logits whose probabilities are looked at at once

Map: TypeAlias = Literal["entropy", "disagreement"]
TakePlanes: TypeAlias = Callable[[Planes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One of the models that predict together."""

    model: Model
    weight: float = 1.0  # beside those of the others
    temperature: float = 1.0  # that logits are divided by for probabilities; see `Calibration`


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """What is found in an image, image order."""

    segmentation: Segmentation  # (z, y, x)
    expected_dice: dict[str, float | None]  # by label or region; see `ExpectedDice`
    maps: dict[Map, NDArray[np.float32]]  # (z, y, x), 0 to 1; those asked for


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """An image as the networks of each member see it; the image itself is needed no more."""

    seen: tuple[Image, ...]  # (channel, z, y, x), plan order
    placements: tuple[Placement, ...]  # they differ in the grids of the networks alone


def prepare_image(
    members: Sequence[Member],
    channels: Sequence[NDArray[Any]],
    spacing: Spacing,
    *,
    sweep: Sweep = PLAIN_SWEEP,
) -> Prepared:
    """Make of an image what the networks of each member see.

    Args:
        members: Of one order of axes and with the same labels.
        channels: Each (z, y, x), of any real type. An image (channel, z, y, x) is a sequence of
            them.
        spacing: mm, (z, y, x).
        sweep: How the sliding window goes in the stages before a cascade's last.

    Raises:
        DataError: The image does not fit a model, or the models do not fit each other.
        MachineError: There is not enough memory.
        StoppedError: The sweep was told to stop.
    """
    check_members(members)
    models = [member.model for member in members]
    found = [model.prepare(channels, spacing, sweep=sweep) for model in models]
    seen, placements = zip(*found, strict=True)
    return Prepared(seen=seen, placements=placements)


def predict_image(
    members: Sequence[Member],
    prepared: Prepared,
    *,
    sweep: Sweep = PLAIN_SWEEP,
    maps: Collection[Map] = (),
    probabilities: Callable[[Placement], TakePlanes] | None = None,
) -> Prediction:
    """Segment one image by one model, or by several whose probabilities are averaged.

    Args:
        members: The models.
        prepared: What `prepare_image` made of the image for them.
        sweep: How the sliding window goes in the last stage of each model.
        maps: Wanted maps: `entropy` of the probabilities, `disagreement` of folds and models.
        probabilities: Called once with where the image's body lies in its file; what it gives is
            called with the probabilities (z, y, x, head) of the body's box, plan order, some planes
            at a time.

    Raises:
        DataError: A network gave values that are not finite.
        MachineError: There is not enough memory.
        StoppedError: The sweep was told to stop.
    """
    labels = members[0].model.plan.labels
    expected = ExpectedDice(labels)
    if len(members) == 1 and not maps and probabilities is None:
        model, temperature = members[0].model, np.float32(members[0].temperature)
        segmentation = model.decide(
            prepared.seen[0],
            prepared.placements[0],
            sweep=sweep,
            look=lambda logits: _expect(expected, labels, logits, temperature),
        )
        return Prediction(segmentation=segmentation, expected_dice=expected.result(), maps={})

    shares = shares_of([member.weight for member in members])
    temperatures = [member.temperature for member in members]
    spread = "disagreement" in maps
    models = [member.model for member in members]
    placements, placement = prepared.placements, prepared.placements[0]
    voxels = SLAB_BYTES // (4 * (labels.heads + spread))
    depth = min(slab_depth(p.shape_resampled, p.shape_cropped, voxels) for p in placements)
    told = _told_together(models, placements, sweep)
    streams = []
    for model, seen, each, on_tile in zip(models, prepared.seen, placements, told, strict=True):
        runs = model.logits(seen, sweep=replace(sweep, on_tile=on_tile), spread=spread)
        streams.append(restore_logits(runs, each, model.configuration, depth))
    take = probabilities(placement) if probabilities is not None else None
    found = {name: np.zeros(placement.shape, np.float32) for name in maps}
    boxes = {name: body_of(array, placement) for name, array in found.items()}

    def decided() -> Iterator[Segmentation]:
        start = 0
        for slabs in zip(*streams, strict=True):
            mean, squares = _average(labels, slabs, shares, temperatures, spread=spread)
            stop = start + len(mean)
            for name, box in boxes.items():
                if name == "entropy":
                    box[start:stop] = entropy(mean, labels.has_regions)
                else:
                    box[start:stop] = disagreement(squares, mean, labels.has_regions)
            if take is not None:
                take(mean)
            # One model decides by its logits, of which probabilities round away what is certain.
            chosen = slabs[0][..., : labels.heads] if len(slabs) == 1 else centred(labels, mean)
            expected.add(mean, chosen > 0 if labels.has_regions else chosen.argmax(axis=-1))
            yield labels.segment(chosen)
            start = stop

    segmentation = paste_planes(decided(), placement, labels, ask=sweep.ask)
    return Prediction(segmentation=segmentation, expected_dice=expected.result(), maps=found)


def check_members(members: Sequence[Member]) -> None:
    """Make sure that models can predict together.

    Raises:
        DataError: Their channels, labels or orders of axes differ, or a weight is not over 0.
    """
    first = members[0].model.plan
    for member in members:
        plan = member.model.plan
        for what in ("channels", "labels", "order"):
            mine, other = getattr(plan, what), getattr(first, what)
            if mine != other:
                raise DataError(
                    f"{plan.dataset} {plan.name} {member.model.configuration.name} has the {what} "
                    f"{mine}, and {first.dataset} {first.name} "
                    f"{members[0].model.configuration.name} {other}; models that predict together "
                    "must agree on them"
                )
    shares_of([member.weight for member in members])


def _told_together(
    models: Sequence[Model], placements: Sequence[Placement], sweep: Sweep
) -> list[OnTile | None]:
    """Give what each of several models tells of its tiles, so that they are one count."""
    on_tile = sweep.on_tile
    if on_tile is None:
        return [None] * len(models)
    tiles = sum(
        count_tiles(placement.shape_resampled, model.configuration.patch_size, sweep.step)
        for model, placement in zip(models, placements, strict=True)
    )
    done = [0] * len(models)

    def tell(number: int, count: int, _: int) -> None:
        done[number] = count
        on_tile(sum(done), tiles)

    return [partial(tell, number) for number in range(len(models))]


def _expect(
    expected: ExpectedDice, labels: Labels, logits: Planes, temperature: np.float32
) -> None:
    """Add the probabilities of logits and what is decided by them, some voxels at a time."""
    voxels = logits.reshape(-1, logits.shape[-1])
    count = max(1, _EXPECT_BYTES // voxels[0].nbytes)
    for start in range(0, len(voxels), count):
        some = np.divide(voxels[start : start + count], temperature, dtype=np.float32)
        chosen = some > 0 if labels.has_regions else some.argmax(axis=-1)
        expected.add(labels.probabilities(some), chosen)


def _average(
    labels: Labels,
    slabs: Sequence[Planes],
    shares: Sequence[float],
    temperatures: Sequence[float],
    *,
    spread: bool,
) -> tuple[Planes, NDArray[np.float32]]:
    """Average the models' probabilities; with `spread` their squares, too, summed over heads."""
    squares = np.zeros(slabs[0].shape[:3] if spread else 0, np.float32)

    def each() -> Iterator[Planes]:
        nonlocal squares
        for slab, share, temperature in zip(slabs, shares, temperatures, strict=True):
            likely = labels.probabilities(slab[..., : labels.heads] / np.float32(temperature))
            if spread:  # the last head is the variance among the model's own folds
                squares += share * (np.einsum("...h,...h->...", likely, likely) + slab[..., -1])
            yield likely

    return weighted_mean(each(), shares), squares
