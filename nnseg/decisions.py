"""Why a plan is as it is: a line for each rule, with what it was given and what came out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nnseg.axes import Order, Spacing, by
from nnseg.dataset import DatasetSpec
from nnseg.fingerprint import Fingerprint
from nnseg.fit import LOWRES_BELOW, REFERENCE_BATCH, Fit, Target
from nnseg.model.backbone_records import TIMM
from nnseg.model.counts.encoders import UNKNOWN
from nnseg.target_spacing import medians
from nnseg.topology import MedianShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One line of why: the rule, what it was given, what came out."""

    rule: str
    given: str
    result: str


def decide_spacing(fingerprint: Fingerprint, chosen: Spacing, *, given: bool) -> Decision:
    """Say where the spacing of the full-resolution configurations comes from."""
    usual = by(medians(fingerprint.spacings))
    why = "it was asked for" if given else f"medians of {usual} mm over cases"
    return Decision(rule="target spacing", given=why, result=f"{by(chosen)} mm (image order)")


def decide_order(chosen: Spacing, order: Order) -> Decision:
    """Say which axis comes first."""
    coarsest = f"image axis {order[0]} is the coarsest, {max(chosen):.4g} mm"
    return Decision(rule="plan order", given=coarsest, result=f"image axes {order}")


def decide_median(fingerprint: Fingerprint, spacing: Spacing, median: MedianShape) -> Decision:
    """Say how large the median case is at a spacing."""
    return Decision(
        rule="median image",
        given=f"{len(fingerprint.shapes)} cases resampled to {by(spacing)} mm",
        result=f"{by(median)} voxels",
    )


def decide_normalization(
    channels: Sequence[str],
    normalization: Sequence[str],
    use_mask: Sequence[bool],
    fingerprint: Fingerprint,
) -> tuple[Decision, ...]:
    """Say how the intensities of each channel are scaled."""
    left = f"cropping leaves {fingerprint.median_relative_size:.0%} of the volume"
    return tuple(
        Decision(
            rule=f"normalization of channel {number}",
            given=f"it is called {channel}, and {left}",
            result=f"{kind} {'within the body' if masked else 'of the whole image'}",
        )
        for number, (channel, kind, masked) in enumerate(
            zip(channels, normalization, use_mask, strict=True)
        )
    )


def decide_network(planner: str, fits: Mapping[str, Fit], *, given: bool) -> tuple[Decision, ...]:
    """Say which network was taken, and by what its memory is counted where nobody knows it."""
    why = "it was asked for" if given else f"planner {planner}"
    architecture = next(iter(fits.values())).architecture
    network = Decision(rule="network", given=why, result=architecture.called)
    backbone = architecture.options.backbone
    if backbone is None or not backbone.startswith(TIMM):
        return (network,)
    alone = f"backbone {backbone}, which timm alone knows"
    return network, Decision(rule="memory", given=alone, result=f"counted as with {UNKNOWN}")


def decide_fit(name: str, fit: Fit, spec: DatasetSpec, target: Target) -> tuple[Decision, ...]:
    """Say what a network was fitted by: its patch, its levels and its batch."""
    depths = (str(d) for d in fit.architecture.divisor)
    least, most = target.kind.levels
    allowed = f"{least} to {most}" if least < most else f"just {least}"
    reference = REFERENCE_BATCH[fit.architecture.dimensions]
    return (
        Decision(
            rule=f"{name} patch",
            given=f"{by(fit.first_patch)} voxels to start from, {target.memory_gb:g} GB",
            result=f"{by(fit.patch_size)} voxels",
        ),
        Decision(
            rule=f"{name} network",
            given=f"that patch at {by(fit.spacing)} mm, and that it may have {allowed} levels",
            result=f"{fit.architecture.levels} levels, pooled by {' x '.join(depths)} in all",
        ),
        Decision(
            rule=f"{name} batch",
            given=(
                f"{fit.elements:.3g} elements a patch, {fit.elements_allowed:.3g} allowed in a "
                f"batch of {reference}, {target.planner.dataset_share:.0%} of "
                f"{spec.num_training} cases are {fit.batch_cap} patches"
            ),
            result=str(fit.batch_size),
        ),
    )


def decide_stages(
    fits: Mapping[str, Fit], median: MedianShape, target: Target
) -> tuple[Decision, ...]:
    """Say which configurations there are none of, and why."""
    defined = target.dimensions
    if "3d_fullres" not in fits:
        named = f"network {target.network}"
        flat = named if 3 not in target.kind.dimensions else f"backbone {target.options.backbone}"
        why = "the median image is one slice" if 3 in defined else f"{flat} is 2D only"
        return (Decision(rule="3D", given=why, result="not planned"),)
    deep = f"network {target.network} is 3D only"
    without = () if 2 in defined else (Decision(rule="2D", given=deep, result="not planned"),)
    part = math.prod(fits["3d_fullres"].patch_size) / math.prod(median)
    lowres = fits.get("3d_lowres")
    if lowres is not None:
        result = f"3d_lowres at {by(lowres.spacing)} mm, and a cascade after it"
    elif part < LOWRES_BELOW:
        result = "no 3d_lowres, since it would have more than half of the voxels"
    else:
        result = "no 3d_lowres"
    given = f"a patch of 3d_fullres shows {part:.0%} of the median image"
    return (*without, Decision(rule="cascade", given=given, result=result))
