"""Fit a network into a memory target: patch, pooling, width and batch size.

Read `fit_networks` first. A patch shrinks until the feature maps of its network fit, and what is
left then goes to the batch. `nnseg.plan` decides what is asked for, and explains what came out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nnseg.axes import Shape, Spacing, by, three
from nnseg.errors import PlanError
from nnseg.model.architecture import Architecture, Dimensions, NetworkOptions
from nnseg.model.kind import NetworkKind
from nnseg.model.kinds import KINDS, planned_elements
from nnseg.registry import Registry
from nnseg.topology import (
    SIMILAR,
    Depth,
    MedianShape,
    NetworkSpacing,
    Topology,
    find_topology,
    first_patch,
    shrink,
)

REFERENCE_BATCH = {2: 12, 3: 2}  # the batch size that a planner's element counts mean
SMALLEST_BATCH = 2

LOWRES_BELOW = 0.25  # of the median image: a patch that shows less calls for 3d_lowres
LOWRES_STEP = 1.03
LOWRES_GAIN = 2.0  # 3d_lowres must have so many times fewer voxels, or it is not worth training


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """The memory that training is to fill, and the network that fills it if no other is named.

    With `memory_gb`, the feature maps of one 3D patch may have `elements_3d` elements and those of
    one 2D patch `elements_2d`, in batches of REFERENCE_BATCH; other targets are in proportion.
    """

    network: str  # a name of KINDS
    elements_3d: int
    elements_2d: int
    memory_gb: float
    batch_2d: int  # the batch size with which a 2D patch must fit; a 3D one must with 2
    dataset_share: float  # one batch may hold at most so much of the voxels of the dataset

    def elements(self, dimensions: Dimensions, memory_gb: float) -> float:
        """Give the elements that one patch may have when `memory_gb` are to be filled."""
        reference = self.elements_2d if dimensions == 2 else self.elements_3d
        return reference * (memory_gb / self.memory_gb)


def _resenc(
    elements_3d: int, elements_2d: int, memory_gb: float, dataset_share: float = 1.0
) -> Planner:
    return Planner(
        network="resenc",
        elements_3d=elements_3d,
        elements_2d=elements_2d,
        memory_gb=memory_gb,
        batch_2d=REFERENCE_BATCH[2],
        dataset_share=dataset_share,
    )


# Source: nnU-Net v2.8.1, the planners of the same names.
PLANNERS = Registry[Planner](
    "planner",
    default=Planner(
        network="plain",
        elements_3d=560_000_000,
        elements_2d=85_000_000,
        memory_gb=8,
        batch_2d=SMALLEST_BATCH,
        dataset_share=0.05,
    ),
    resenc=_resenc(680_000_000, 135_000_000, 8, dataset_share=0.05),
    resenc_m=_resenc(680_000_000, 135_000_000, 8),
    resenc_l=_resenc(2_100_000_000, 380_000_000, 24),
    resenc_xl=_resenc(3_600_000_000, 560_000_000, 40),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a network must fit: the memory to fill, and what it is filled with."""

    planner: Planner
    memory_gb: float
    network: str  # a name of KINDS
    options: NetworkOptions
    channels: int  # of the images
    outputs: int  # entries of `labels`, background and ignore included, as nnU-Net counts

    def __post_init__(self) -> None:
        self.kind.check_options(self.network, self.options)

    @property
    def kind(self) -> NetworkKind:
        """What the network is."""
        return KINDS[self.network]

    @property
    def dimensions(self) -> tuple[Dimensions, ...]:
        """Those in which the network is defined with its options."""
        return self.kind.dimensions_with(self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One network fitted to a target, with what led there. (z, y, x) in plan order."""

    spacing: NetworkSpacing
    median_shape: MedianShape
    first_patch: MedianShape
    patch_size: Shape
    architecture: Architecture
    elements: int  # of one patch
    elements_allowed: float
    batch_size: int
    batch_cap: int  # what the planner's share of the dataset allows


def fit_networks(
    spacing: Spacing, median: MedianShape, cases: int, target: Target
) -> dict[str, Fit]:
    """Fit the network of each configuration that the dataset calls for, but the cascade's.

    2d always; 3d_fullres unless the median image is a single slice; 3d_lowres where `fit_lowres`
    finds it worth its training. A network that is defined in 2D only, or in 3D only, has only such
    configurations; there may be none.

    Args:
        spacing: mm at full resolution, (z, y, x), plan order.
        median: Voxels of the median case at that spacing.
        cases: Number of training cases.
        target: The memory to fill.
    """
    z, y, x = spacing
    voxels = math.prod(median) * cases
    fits = {}
    if 2 in target.dimensions:
        fits["2d"] = fit_network((None, y, x), median, voxels, target)
    if 3 in target.dimensions and median[0] != 1:
        fullres = fit_network((z, y, x), median, voxels, target)
        lowres = fit_lowres(spacing, fullres, cases, target)
        if lowres is not None:
            fits["3d_lowres"] = lowres
        fits["3d_fullres"] = fullres
    return fits


def fit_network(
    spacing: NetworkSpacing, median: MedianShape, dataset_voxels: float, target: Target
) -> Fit:
    """Find the largest patch whose training fits the target, then the batch size.

    A large patch comes first, since context is worth more than a large batch. It starts as wide
    in mm along each axis and shrinks where it covers most of the median image.

    Args:
        spacing: mm, (z, y, x), plan order; a slice spacing of None asks for a 2D network.
        median: Voxels of the median case at that spacing.
        dataset_voxels: Voxels of all cases together, 3D for a 2D network, too.
        target: The memory to fill.

    Raises:
        PlanError: No patch fits.

    Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, Methods, adaptation of network
    topology, patch size and batch size; element counts as in nnU-Net v2.
    """
    planner = target.planner
    dimensions: Dimensions = 2 if spacing[0] is None else 3
    allowed = planner.elements(dimensions, target.memory_gb)
    batch = planner.batch_2d if dimensions == 2 else SMALLEST_BATCH
    most = allowed * REFERENCE_BATCH[dimensions] / batch

    least, deepest = target.kind.levels
    depth = Depth(least=least, most=deepest, halves_plane=target.kind.halves_plane)

    first = first_patch(spacing, median)
    topology = find_topology(spacing, first, depth)
    seen = set()
    while True:
        architecture = build_architecture(topology, dimensions, target)
        elements = planned_elements(
            architecture, topology.patch_size, target.channels, target.outputs
        )
        if elements <= most:
            break
        seen.add(topology.patch_size)
        smaller = shrink(spacing, median, topology, depth)
        if smaller is None or smaller.patch_size in seen:
            raise PlanError(
                f"memory_gb is {target.memory_gb:g}, which is too little for any {dimensions}D "
                f"patch: {by(topology.patch_size)} voxels need about "
                f"{target.memory_gb * elements / most:.2g} GB; give more"
            )
        topology = smaller

    cap = batch_cap(topology.patch_size, dataset_voxels, planner.dataset_share)
    return Fit(
        spacing=spacing,
        median_shape=median,
        first_patch=first,
        patch_size=topology.patch_size,
        architecture=architecture,
        elements=elements,
        elements_allowed=allowed,
        batch_size=batch_size(elements, allowed, REFERENCE_BATCH[dimensions], cap),
        batch_cap=cap,
    )


def build_architecture(topology: Topology, dimensions: Dimensions, target: Target) -> Architecture:
    """Give the record of the target's network for a topology."""
    kind, levels = target.kind, len(topology.strides)
    options = target.options
    if options.backbone is None and kind.backbones:
        options = replace(options, backbone=kind.backbones[0])
    return Architecture(
        network=target.network,
        dimensions=dimensions,
        features=kind.features(levels, dimensions),
        kernel_sizes=topology.kernel_sizes,
        strides=topology.strides,
        encoder_blocks=_by_level(kind.encoder_blocks, levels),
        decoder_blocks=_by_level(kind.decoder_blocks, levels - 1),
        options=options,
    )


def _by_level(blocks: Sequence[int], levels: int) -> tuple[int, ...]:
    """Give the blocks of each level; deeper ones repeat the last."""
    return tuple(blocks[min(level, len(blocks) - 1)] for level in range(levels))


def batch_cap(patch_size: Shape, dataset_voxels: float, dataset_share: float) -> int:
    """Give the batch size that holds `dataset_share` of the dataset; more would overfit.

    >>> batch_cap((40, 56, 40), 260 * 36 * 50 * 35, 0.05)
    9
    """
    return round(dataset_voxels * dataset_share / float(math.prod(patch_size)))


def batch_size(elements: int, allowed: float, reference: int, cap: int) -> int:
    """Fill the memory that the patch leaves, between 2 and `cap`.

    Args:
        elements: Feature map elements of one patch.
        allowed: How many it may have in a batch of `reference`.
        reference: The batch size that `allowed` means.
        cap: See `batch_cap`.

    Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, Methods, batch size.

    >>> batch_size(100, 300.0, 2, 50), batch_size(100, 300.0, 2, 4), batch_size(100, 60.0, 2, 50)
    (6, 4, 2)
    """
    return max(min(round(allowed / elements * reference), cap), SMALLEST_BATCH)


def fit_lowres(spacing: Spacing, fullres: Fit, cases: int, target: Target) -> Fit | None:
    """Fit 3d_lowres: images so coarse that a patch shows a quarter of the median one.

    Args:
        spacing: mm at full resolution, (z, y, x), plan order.
        fullres: The network at full resolution; if its patch shows a quarter, there is no lowres.
        cases: Number of training cases.
        target: The memory to fill.

    Returns:
        None also where the coarse images would have more than half of the voxels.

    Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, Methods, 3D low resolution; steps
    of 3 % as in nnU-Net v2.
    """
    full_voxels = voxels = math.prod(fullres.median_shape)
    coarse, fit = spacing, fullres
    while math.prod(fit.patch_size) / voxels < LOWRES_BELOW:
        coarse = coarser(coarse)
        scaled = [
            old / new * size
            for old, new, size in zip(spacing, coarse, fullres.median_shape, strict=True)
        ]
        voxels = math.prod(scaled)
        rounded = three([max(1, round(size)) for size in scaled])
        fit = fit_network(coarse, rounded, voxels * cases, target)
    return None if full_voxels / voxels < LOWRES_GAIN else fit


def coarser(spacing: Spacing) -> Spacing:
    """Make images 3 % coarser: along the fine axes until all are within a factor of 2, then all.

    >>> coarser((5.0, 1.0, 3.0)), coarser((5.0, 3.0, 3.0))
    ((5.0, 1.03, 3.0), (5.15, 3.09, 3.09))
    """
    coarsest = max(spacing)
    fine = [coarsest / mm > SIMILAR for mm in spacing]
    steps = fine if any(fine) else [True] * 3
    return three([mm * LOWRES_STEP if s else mm for mm, s in zip(spacing, steps, strict=True)])
