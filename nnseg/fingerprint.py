"""Stage 1, raw cases to fingerprint: what the data are like, in a few numbers.

`measure_case` looks at one case; `summarize` joins the cases of a dataset.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nnseg import record
from nnseg.axes import Image, Segmentation, Shape, Spacing, three
from nnseg.errors import DataError
from nnseg.image.crop import Cropped, crop_to_body
from nnseg.image.intensity import MAX_VALUES, CaseIntensity, Intensity, measure, pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What planning needs to know of a dataset.

    `spacings` (mm) and `shapes` (voxels, after cropping to the body) have one entry a case and are
    in image order. `intensities` describe the foreground of each channel. `raw` holds for each
    case the SHA-256 of its files, in the order of `Case.files`: what was measured. A fingerprint
    that another program made may lack `case_ids` and `raw`.
    """

    MOST_BYTES: ClassVar[int] = record.LARGE_BYTES

    spacings: tuple[Spacing, ...]
    shapes: tuple[Shape, ...]
    intensities: tuple[Intensity, ...]
    median_relative_size: float  # volume after cropping over volume before, median over cases
    case_ids: tuple[str, ...] = ()
    raw: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.spacings or len(self.spacings) != len(self.shapes):
            raise DataError(
                f"the fingerprint has {len(self.spacings)} spacings and {len(self.shapes)} shapes; "
                "it needs one of each a case"
            )
        for name, values in (("case_ids", self.case_ids), ("raw", self.raw)):
            if values and len(values) != len(self.shapes):
                raise DataError(
                    f"the fingerprint has {len(values)} {name} and {len(self.shapes)} shapes; it "
                    "needs one of each a case"
                )
        if min(min(spacing) for spacing in self.spacings) <= 0:
            raise DataError("the fingerprint has a spacing that is not positive")

    @property
    def hashes(self) -> dict[str, tuple[str, ...]]:
        """The SHA-256 of each case's files, by case id; empty where they are not known."""
        return dict(zip(self.case_ids, self.raw, strict=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseMeasurement:
    """One case's share of the fingerprint; `intensities` has an entry for each channel."""

    case_id: str
    spacing: Spacing
    shape: Shape  # after cropping
    relative_size: float
    intensities: tuple[CaseIntensity, ...]
    raw: tuple[str, ...] = ()  # SHA-256 of its files


def measure_case(
    case_id: str, image: Image, segmentation: Segmentation, spacing: Spacing
) -> CaseMeasurement:
    """Measure one labelled case.

    Args:
        case_id: Its name.
        image: (channel, z, y, x), image order.
        segmentation: (z, y, x); voxels over 0 are foreground, the ignore label among them, as in
            nnU-Net.
        spacing: mm, (z, y, x).

    Source: method of nnU-Net v2; voxels outside the body's box never count as foreground.
    """
    return measure_cropped(case_id, crop_to_body(tuple(image), segmentation), spacing)


def measure_cropped(
    case_id: str, case: Cropped, spacing: Spacing, most_values: int = MAX_VALUES
) -> CaseMeasurement:
    """Measure a labelled case that is cut to its body; see `measure_case` and `measure`."""
    assert case.segmentation is not None, "only labelled cases are measured"
    foreground = case.segmentation > 0
    return CaseMeasurement(
        case_id=case_id,
        spacing=spacing,
        shape=three(case.channels[0].shape),
        relative_size=case.relative_size,
        intensities=tuple(measure(channel[foreground], most_values) for channel in case.channels),
    )


def summarize(cases: Sequence[CaseMeasurement]) -> Fingerprint:
    """Join the measurements of all cases of a dataset; each case counts the same."""
    if not cases:
        raise DataError("a fingerprint needs at least one case")
    channels = zip(*(case.intensities for case in cases), strict=True)
    return Fingerprint(
        spacings=tuple(case.spacing for case in cases),
        shapes=tuple(case.shape for case in cases),
        intensities=tuple(pool(channel) for channel in channels),
        median_relative_size=float(np.median([case.relative_size for case in cases])),
        case_ids=tuple(case.case_id for case in cases),
        raw=tuple(case.raw for case in cases) if all(case.raw for case in cases) else (),
    )
