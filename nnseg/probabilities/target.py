"""What the probabilities of one case are written from, and where to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from nnseg.axes import Box, Planes, inverse_order, permute
from nnseg.commit import cannot_write
from nnseg.labels import Labels
from nnseg.preprocess import Placement
from nnseg.volume import Geometry

TakePlanes: TypeAlias = Callable[[Planes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is written, and where to."""

    files: tuple[Path, ...]  # of the endings of its kind
    labels: Labels
    geometry: Geometry
    placement: Placement  # its box is what comes

    @property
    def box(self) -> Box:
        """The body's box in image order."""
        return permute(self.placement.box, inverse_order(self.placement.order))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say of an error of the disk which file could not be written."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error
