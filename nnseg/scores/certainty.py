"""How sure models were of what they predicted, voxel by voxel: for the confidence of components."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnseg.averaging import Opened, TakePlanes, label_map
from nnseg.axes import Planes, Segmentation
from nnseg.errors import DataError
from nnseg.labels import Labels
from nnseg.preprocess import Placement
from nnseg.probabilities import open_compact, open_probabilities
from nnseg.probabilities.kinds import probability_files
from nnseg.restore import body_of


def open_beside(path: Path) -> Opened | None:
    """Open the compact probabilities beside a label map, or its chunks; None where none are.

    Raises:
        DataError: They are damaged.
    """
    if probability_files(path, "compact")[-1].is_file():
        return open_compact(path)
    chunks, stored = probability_files(path, "chunks")
    return open_probabilities(chunks) if stored.is_file() else None


def certainty(
    opened: Opened, prediction: Segmentation, labels: Labels
) -> Mapping[str, NDArray[np.float32]]:
    """Give the probability of each label or region at the voxels where it was predicted, by name.

    A voxel has one label, so all labels share one array, which holds the probability of each
    voxel's own; of regions each has its array. Outside the body's box it is 0.

    Args:
        opened: What the models found.
        prediction: The label map, (z, y, x), image order.
        labels: What its integers mean.

    Returns:
        (z, y, x), image order, for each foreground label or region.

    Raises:
        DataError: The probabilities are of other labels, or of an image of another shape.
    """
    stored = opened.stored
    if stored.placement.shape != prediction.shape:
        raise DataError(
            f"the probabilities beside it are of an image of {stored.placement.shape} voxels "
            f"(z, y, x), and it has {prediction.shape}; predict again"
        )
    heads = _heads(stored.labels, labels)
    names = list(labels.foreground)
    arrays = [np.zeros(prediction.shape, np.float32) for _ in (heads or ("own",))]
    positions = stored.labels.to_positions(prediction)

    def taking(placement: Placement) -> TakePlanes:
        bodies = [body_of(array, placement) for array in arrays]
        own = body_of(positions, placement)
        done = 0

        def take(planes: Planes) -> None:
            nonlocal done
            part = slice(done, done + len(planes))
            if heads:
                for head, body in zip(heads, bodies, strict=True):
                    body[part] = planes[..., head]
            else:
                chosen = np.minimum(own[part], planes.shape[-1] - 1).astype(np.intp)[..., None]
                bodies[0][part] = np.take_along_axis(planes, chosen, axis=-1)[..., 0]
            done += len(planes)

        return take

    label_map([(opened, 1.0)], probabilities=taking)
    return dict(zip(names, arrays * (1 if heads else len(names)), strict=True))


def _heads(stored: Labels, labels: Labels) -> tuple[int, ...]:
    """Give the head of each region that is scored, by its integers; of plain labels, none.

    Names do not matter: predictions may be scored under others than a model was trained with.

    Raises:
        DataError: The probabilities are of other integers.
    """
    integers = [set(values) for values in stored.foreground.values()]
    if stored.has_regions == labels.has_regions:
        wanted = [set(values) for values in labels.foreground.values()]
        if all(values in integers for values in wanted):
            return tuple(map(integers.index, wanted)) if labels.has_regions else ()
    raise DataError(
        f"the probabilities beside it are of the labels {stored.labels}, which "
        f"{labels.labels} are not; name the same integers"
    )
