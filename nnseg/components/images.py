"""The rules of what changes images: normalizers and resamplers."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Mask, Shape
from nnseg.components.refusal import refuses
from nnseg.errors import NnsegError
from nnseg.image.intensity import Intensity
from nnseg.image.normalize import HONOURS_MASK, NORMALIZERS, Channel, Normalizer
from nnseg.image.resample import resample_image, resample_segmentation
from nnseg.registry import Registry

Along: TypeAlias = Callable[[NDArray[Any], Shape], NDArray[Any]]
Resampler: TypeAlias = Callable[[NDArray[Any], Shape, int | None], NDArray[Any]]

SHAPE = (5, 7, 6)
NEW = (8, 4, 9)
ONE_VOXEL = (1, 1, 1)
INTENSITY = Intensity(
    mean=80.0, median=78.0, std=25.0, min=0.0, max=250.0, percentile_00_5=12, percentile_99_5=190
)
CONSTANT = Intensity(
    mean=5.0, median=5.0, std=0.0, min=5.0, max=5.0, percentile_00_5=5, percentile_99_5=5
)
UNASKED = "it must not look at the mask, as it is not in HONOURS_MASK"
OVERSHOOTING = ("_2", "_3", "_4", "_5")  # splines along the axis apart are not clipped
CLOSE = 1e-4  # of the range: sums in another order


def _resamplers() -> dict[str, Resampler]:
    """Every way in which a plan may resample, by the name of what and of the orders."""
    found: dict[str, Resampler] = {}
    for function, orders, what in (
        (resample_image, range(6), "image"),
        (resample_segmentation, range(2), "segmentation"),
    ):
        for order, along in product(orders, orders):
            found[f"{what}_{order}_{along}"] = _resampler(function, order, along)
    return found


def _resampler(function: Any, order: int, along: int) -> Resampler:
    def resample(array: NDArray[Any], shape: Shape, axis: int | None) -> NDArray[Any]:
        result: NDArray[Any] = function(array, shape, axis, order, along)
        return result

    return resample


RESAMPLERS = Registry[Resampler]("resampler", **_resamplers())


def rules_of_normalizer(name: str) -> Iterator[tuple[str, bool]]:
    """Try a normalizer on channels of all sorts."""
    normalizer = NORMALIZERS[name]
    ordinary = np.random.default_rng(1).integers(0, 250, SHAPE).astype(np.float32)
    body = np.random.default_rng(2).random(SHAPE) < 0.6
    masks: tuple[Mask | None, ...] = (None, body, np.ones(SHAPE, bool), np.zeros(SHAPE, bool))
    channel = ordinary.copy()
    given = normalizer(channel, INTENSITY, None)
    yield "it must change the channel in its place and give nothing", given is None
    yield (
        "it must leave type and shape as they are",
        (channel.dtype, channel.shape) == (np.dtype(np.float32), SHAPE),
    )
    sorts = {
        "ordinary": ordinary,
        "constant": np.full(SHAPE, 7, np.float32),
        "zero": np.zeros(SHAPE, np.float32),
        "single": np.full(ONE_VOXEL, 9, np.float32),
        "negative": ordinary - 1000,
        "faint": ordinary * np.float32(1e-30),
    }
    for what, values in sorts.items():
        for intensity in (INTENSITY, CONSTANT):
            yield (
                f"it must give finite values for {what} ones, or refuse them",
                _is_finite(normalizer, values, intensity, None),
            )
    for mask in masks:
        again, first = ordinary.copy(), ordinary.copy()
        kept = None if mask is None else mask.copy()
        normalizer(first, INTENSITY, mask)
        normalizer(again, INTENSITY, mask)
        yield "it must do the same twice", bool((first == again).all())
        yield "it must give finite values within any mask", bool(np.isfinite(first).all())
        yield "it must leave the mask as it is", mask is None or bool((mask == kept).all())
        if mask is not None:
            honours = name in HONOURS_MASK
            rule = "it must leave what is outside of the mask" if honours else UNASKED
            outside = (ordinary if honours else channel)[~mask]
            yield rule, bool((first[~mask] == outside).all())
    yield "it must do to a view what it does to a copy", _treats_views_alike(normalizer, ordinary)
    holed = ordinary.copy()
    holed[1, 2, 3] = np.nan
    yield "it must refuse NaN, or leave it NaN", _hides_nothing(normalizer, holed)
    refuses(normalizer, ordinary[:0].copy(), INTENSITY, None)  # any other error breaks the rule
    yield "it must refuse a channel without voxels, or leave it", True


def _is_finite(
    normalizer: Normalizer, values: Channel, intensity: Intensity, mask: Mask | None
) -> bool:
    channel = values.copy()
    try:
        normalizer(channel, intensity, mask)
    except NnsegError:
        return True
    return bool(np.isfinite(channel).all())


def _hides_nothing(normalizer: Normalizer, values: Channel) -> bool:
    channel = values.copy()
    return refuses(normalizer, channel, INTENSITY, None) or bool(np.isnan(channel[1, 2, 3]))


def _treats_views_alike(normalizer: Normalizer, values: Channel) -> bool:
    copy, view = values[::-1, 1:, ::2].copy(), values.copy()[::-1, 1:, ::2]
    normalizer(copy, INTENSITY, None)
    normalizer(view, INTENSITY, None)
    return bool(np.allclose(copy, view, atol=CLOSE * max(1.0, float(np.abs(copy).max()))))


def rules_of_resampler(name: str) -> Iterator[tuple[str, bool]]:
    """Try a way to resample: images by splines, or label maps."""
    resample = RESAMPLERS[name]
    is_image = name.startswith("image")
    rng = np.random.default_rng(3)
    array: NDArray[Any] = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    if not is_image:
        array = rng.integers(0, 4, SHAPE).astype(np.uint8)
    for axis in (None, 0, 1, 2):

        def along(array: NDArray[Any], shape: Shape, axis: int | None = axis) -> NDArray[Any]:
            return resample(array, shape, axis)

        yield from _rules_of_both(along, array)
        found = along(array, NEW)
        if is_image:
            inside = array.min() <= found.min() and found.max() <= array.max()
            overshoots = name.endswith(OVERSHOOTING)
            yield "it must stay in the range of its input", overshoots or bool(inside)
            nothing = along(np.full_like(array, np.nan), NEW)
            yield "it must not make values of NaN", bool(np.isnan(nothing).all())
        else:
            yield "it must make no label up", set(np.unique(found)) <= {*np.unique(array), 0}


def _rules_of_both(along: Along, array: NDArray[Any]) -> Iterator[tuple[str, bool]]:
    """Try what images and label maps have in common."""
    before, found = array.copy(), along(array, NEW)
    yield "it must give the shape asked for", found.shape[-3:] == NEW
    yield "it must keep the type", found.dtype == array.dtype
    yield "it must do the same twice", bool((along(array, NEW) == found).all())
    yield "it must leave its input as it is", bool((array == before).all())
    own = along(array, SHAPE)
    yield "it must leave an array of that shape as it is", bool((own == array).all())
    constant = along(np.full_like(array, 3), NEW)
    yield "it must keep a constant", bool((constant == 3).all())
    single = np.full_like(array[..., :1, :1, :1], 2)
    yield "it must spread one voxel", bool((along(single, NEW) == 2).all())
    yield "it must come down to one voxel", along(array, ONE_VOXEL).shape[-3:] == ONE_VOXEL
    z, y, x = (3 * size for size in SHAPE)
    back = along(along(array, (z, y, x)), SHAPE)
    same = np.allclose(back, array, atol=1e-3)
    yield "it must come back from three times the resolution", bool(same)
