"""Phantoms: small labelled datasets drawn from a seed, the project's built-in example data.

Read `make_case` first: a scene sets the tissue of every voxel and its label, then the scanner
blurs it, shades it and adds noise. No threshold finds the target; `threshold_baseline` measures
that.
"""

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from nnseg.axes import Image, Segmentation, Shape, Spacing
from nnseg.commit import write_whole
from nnseg.dataset import DatasetSpec, spec_to_json
from nnseg.errors import UsageError
from nnseg.image.components import largest_component
from nnseg.labels import Labels
from nnseg.phantom.broken import BROKEN, FILE_ENDING, cases_to_break, name_case, plant_faults
from nnseg.phantom.scene import (
    Field,
    Floats,
    Scene,
    contrasts,
    head_and_tail,
    nested,
    organs,
    partly_annotated,
    smooth_noise,
)
from nnseg.record import json_text
from nnseg.registry import Registry
from nnseg.volume import SLICE_OF_2D, Geometry, simple_geometry, write

BLUR = 0.6  # voxels, standard deviation of the scanner's point spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """One kind of phantom: what is drawn, on which grid, how the scanner sees it.

    Shapes and spacings vary by a tenth from case to case, each axis for itself. `memory_gb` is
    the planning target for which the variant is made, if it is made for one.
    """

    scene: Scene
    channels: tuple[str, ...]
    labels: Labels
    shape: Shape  # voxels, (z, y, x)
    spacing: Spacing  # mm, (z, y, x)
    noise: float  # standard deviation, in the image's unit
    shading: float  # relative size of the bias field
    dtype: type[np.float32] | type[np.int16] = np.int16
    dimensions: int = 3
    memory_gb: float | None = None


def write_dataset(
    folder: Path, variant: str, *, cases: int, seed: int = 0, test_cases: int = 0
) -> DatasetSpec:
    """Write a raw dataset of phantoms: dataset.json, imagesTr, labelsTr.

    With `test_cases` there are imagesTs and labelsTs too. Each case depends on the variant, the
    seed and its own number only, so that more cases leave the first ones as they are. The variant
    `broken` has one more case for each fault that needs one; see `nnseg.phantom.broken`.

    Raises:
        PlanError: There is no such variant.
        UsageError: `cases` or `test_cases` cannot be meant.
        MachineError: The folder cannot be written.
    """
    phantom = PHANTOMS[variant]
    if cases < 1 or test_cases < 0:
        raise UsageError(f"{cases} cases and {test_cases} test cases; give at least 1 and 0")
    training = cases + cases_to_break() if variant == BROKEN else cases
    for number in range(training + test_cases):
        part = "Tr" if number < training else "Ts"
        rng = np.random.default_rng([seed, number, zlib.crc32(variant.encode())])
        image, segmentation, spacing = make_case(variant, rng)
        geometry = _geometry(phantom, segmentation.shape, spacing)
        for channel, values in enumerate(image):
            name = f"{name_case(variant, number)}_{channel:04d}{FILE_ENDING}"
            write(folder / f"images{part}" / name, values, geometry)
        name = f"{name_case(variant, number)}{FILE_ENDING}"
        write(folder / f"labels{part}" / name, segmentation, geometry)
    spec = DatasetSpec(
        channels=phantom.channels,
        labels=phantom.labels,
        num_training=training,
        file_ending=FILE_ENDING,
        others={"description": f"{variant} phantoms, drawn by nnseg", "licence": "CC0"},
    )
    if variant == BROKEN:
        spec = plant_faults(folder, spec)
    write_whole(folder / "dataset.json", json_text(spec_to_json(spec)).encode())
    return spec


def make_case(
    variant: str, rng: Generator
) -> tuple[Image | NDArray[np.int16], Segmentation, Spacing]:
    """Draw one case.

    Returns:
        The image, (channel, z, y, x), float32 or int16; its segmentation, uint8, (z, y, x); the
        spacing in mm, (z, y, x). Image order; a 2D case is one slice.

    Raises:
        PlanError: There is no such variant.
    """
    phantom = PHANTOMS[variant]
    z, y, x = (
        n if n == 1 else round(n * f)
        for n, f in zip(phantom.shape, rng.uniform(0.94, 1.06, 3), strict=True)
    )
    dz, dy, dx = (
        round(float(s * f), 3)
        for s, f in zip(phantom.spacing, rng.uniform(0.95, 1.05, 3), strict=True)
    )
    if phantom.dimensions == 2:
        dz = SLICE_OF_2D * max(dy, dx)  # what `read` will say of the slice
    drawn: Spacing = (1.0 if phantom.dimensions == 2 else dz, dy, dx)
    tissue, segmentation = phantom.scene(Field((z, y, x), drawn, rng), rng)
    image = np.stack([_scan(channel, phantom, drawn, rng) for channel in tissue])
    if phantom.dtype is np.int16:
        return np.rint(image).astype(np.int16), segmentation, (dz, dy, dx)
    # steps of 1/16 are far below the noise and make the files half as large
    return (np.rint(image * 16) / 16).astype(np.float32), segmentation, (dz, dy, dx)


def threshold_baseline(image: NDArray[Any], segmentation: Segmentation, labels: Labels) -> float:
    """Give the Dice that a threshold reaches: what a network must beat to have learnt anything.

    Each channel is cut at Otsu's threshold; the largest connected component of the bright side,
    and that of the dark side, are candidates. A candidate is scored against every foreground
    label or region, and the mean is taken. The best candidate counts, chosen with the truth in
    hand, so this flatters the threshold.

    Args:
        image: (channel, z, y, x).
        segmentation: (z, y, x); ignored voxels are left out of the score.
        labels: Of the dataset.

    Returns:
        Mean Dice over the foreground labels that occur, 0 to 1; nan if none does.
    """
    valid = segmentation != -1 if labels.ignore is None else segmentation != labels.ignore
    truths = [np.isin(segmentation, values) for values in labels.foreground.values()]
    truths = [truth for truth in truths if truth.any()]
    if not truths:
        return float("nan")
    best = 0.0
    for channel in image:
        bright = channel > otsu_threshold(channel)
        for side in (bright, ~bright):
            found = largest_component(side) & valid
            scores = [2 * (found & t).sum() / (found.sum() + t.sum()) for t in truths]
            best = max(best, float(np.mean(scores)))
    return best


def otsu_threshold(values: NDArray[Any]) -> float:
    """Give the threshold that parts `values` into the two classes that differ most.

    Source: Otsu 1979, doi:10.1109/TSMC.1979.4310076.

    >>> 2 < otsu_threshold(np.array([1, 2, 1, 2, 8, 9, 9])) < 8
    True
    """
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * below - sums * below[-1]) ** 2 / (below * (below[-1] - below))
    return float(edges[1 + int(np.nanargmax(between[:-1]))])


PHANTOMS = Registry[Phantom](
    "phantom",
    **{
        "mri": Phantom(
            scene=head_and_tail,
            channels=("MRI",),
            labels=Labels(labels={"background": 0, "head": 1, "tail": 2}),
            shape=(36, 46, 42),
            spacing=(1.0, 1.0, 1.0),
            noise=10,
            shading=0.2,
        ),
        "ct": Phantom(
            scene=organs,
            channels=("CT",),
            labels=Labels(labels={"background": 0, "liver": 1, "kidney": 2}),
            shape=(24, 48, 56),
            spacing=(2.5, 1.4, 1.4),
            noise=25,
            shading=0,
        ),
        "two_channels": Phantom(
            scene=contrasts,
            channels=("T1", "T2"),
            labels=Labels(labels={"background": 0, "lesion": 1}),
            shape=(34, 44, 40),
            spacing=(1.2, 1.0, 1.1),
            noise=10,
            shading=0.15,
            dtype=np.float32,
        ),
        "regions": Phantom(
            scene=nested,
            channels=("FLAIR",),
            labels=Labels(
                labels={"background": 0, "whole": (1, 2), "core": 2}, regions_class_order=(1, 2)
            ),
            shape=(36, 46, 42),
            spacing=(1.1, 1.0, 1.0),
            noise=10,
            shading=0.15,
        ),
        "ignore": Phantom(
            scene=partly_annotated,
            channels=("MRI",),
            labels=Labels(labels={"background": 0, "head": 1, "tail": 2, "ignore": 3}),
            shape=(36, 46, 42),
            spacing=(1.0, 1.0, 1.0),
            noise=10,
            shading=0.2,
        ),
        "anisotropic": Phantom(
            scene=head_and_tail,
            channels=("MRI",),
            labels=Labels(labels={"background": 0, "head": 1, "tail": 2}),
            shape=(11, 54, 48),
            spacing=(3.5, 0.9, 0.9),
            noise=10,
            shading=0.2,
        ),
        "lowres": Phantom(
            scene=head_and_tail,
            channels=("MRI",),
            labels=Labels(labels={"background": 0, "head": 1, "tail": 2}),
            shape=(64, 80, 72),
            spacing=(0.6, 0.6, 0.6),
            noise=10,
            shading=0.2,
            memory_gb=0.1,
        ),
        "2d": Phantom(
            scene=head_and_tail,
            channels=("photo",),
            labels=Labels(labels={"background": 0, "head": 1, "tail": 2}),
            shape=(1, 80, 72),
            spacing=(1.0, 0.6, 0.6),
            noise=10,
            shading=0.2,
            dimensions=2,
        ),
        BROKEN: Phantom(
            scene=contrasts,
            channels=("T1", "T2"),
            labels=Labels(labels={"background": 0, "lesion": 1, "scar": 2}),
            shape=(16, 22, 20),
            spacing=(2.4, 2.0, 2.2),
            noise=10,
            shading=0.15,
        ),
    },
)


def _scan(tissue: Floats, phantom: Phantom, spacing: Spacing, rng: Generator) -> Floats:
    """Blur, shade and add noise to one channel, (z, y, x)."""
    from scipy.ndimage import gaussian_filter

    sigma = [0.0 if n == 1 else BLUR for n in tissue.shape]
    seen = gaussian_filter(tissue, sigma)
    if phantom.shading:
        reach = 0.4 * max(n * s for n, s in zip(tissue.shape, spacing, strict=True))
        seen = seen * (1 + 0.5 * phantom.shading * smooth_noise(tissue.shape, spacing, reach, rng))
    return np.asarray(seen + rng.normal(0, phantom.noise, tissue.shape))


def _geometry(phantom: Phantom, shape: tuple[int, ...], spacing: Spacing) -> Geometry:
    z, y, x = shape
    if phantom.dimensions == 2:
        flat = simple_geometry((z, y, x), (1.0, spacing[1], spacing[2]))
        return replace(flat, dimensions=2)
    return simple_geometry((z, y, x), spacing)
