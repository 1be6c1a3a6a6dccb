"""The probabilities of one case, taken as a prediction gives them: some planes at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nnseg.axes import Planes
from nnseg.labels import Labels
from nnseg.preprocess import Placement
from nnseg.probabilities.kinds import KINDS, Kind, probability_files
from nnseg.probabilities.target import TakePlanes, Target, naming
from nnseg.volume import Geometry


class Writer:
    """What `writing` hands out: it waits for one case's probabilities."""

    def __init__(
        self, files: tuple[Path, ...], kind: Kind, labels: Labels, geometry: Geometry
    ) -> None:
        self.files = files  # what will be there
        self._kind, self._labels, self._geometry = kind, labels, geometry
        self._placement: Placement | None = None
        self._taken = 0  # planes
        self._stack = ExitStack()

    def begin(self, placement: Placement) -> TakePlanes:
        """Say where the body's box lies in its file; call it once.

        Returns:
            What takes the probabilities (z, y, x, head) of the box, float32, plan order, some
            planes at a time and in their order; the array may be used again after each call.

        Raises:
            DiskFullError: The disk is full, or has no room for the temporary file.
            MachineError: The folder cannot be written.
        """
        if self._placement is not None or placement.shape != self._geometry.shape:
            raise ValueError(f"begun already, or {placement.shape} is not {self._geometry.shape}")
        self._placement = placement
        target = Target(
            files=self.files, labels=self._labels, geometry=self._geometry, placement=placement
        )
        take = self._stack.enter_context(self._kind.taking(target))
        shape = (*placement.shape_cropped[1:], self._labels.heads)

        def checked(planes: Planes) -> None:
            self._taken += len(planes)
            if planes.shape[1:] != shape or self._taken > placement.shape_cropped[0]:
                raise ValueError(f"{planes.shape} after {self._taken - len(planes)} planes")
            with naming(self.files[0]):
                take(planes)

        return checked

    def check_complete(self) -> None:
        """Make sure that all planes have come; else what calls has a fault."""
        if self._placement is None or self._taken < self._placement.shape_cropped[0]:
            raise ValueError(f"only {self._taken} planes of {self.files[0].name} came")


@contextmanager
def writing(label_map: Path, kind: str, labels: Labels, geometry: Geometry) -> Iterator[Writer]:
    """Write the probabilities of one case, whole or not at all.

    The files bear the name of the label map, and are there when the context is left without an
    error. Until then, and after an error or a kill, there is what was there before.

    Args:
        label_map: The label map that they belong to; its ending is left out.
        kind: A name of KINDS.
        labels: What the heads mean.
        geometry: Of the image's file.

    Raises:
        PlanError: There is no such kind.
        DiskFullError: The disk is full.
        MachineError: The folder cannot be written.
    """
    writer = Writer(probability_files(label_map, kind), KINDS[kind], labels, geometry)
    with writer._stack:
        yield writer
        writer.check_complete()
