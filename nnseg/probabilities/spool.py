"""From planes of all heads to heads: what formats that want one after the other are packed from."""

import errno
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Box, Planes, Shape, inverse_order, permute, three
from nnseg.commit import unfinished_path, whole_file
from nnseg.errors import DiskFullError
from nnseg.probabilities.heads import STEPS, heads_first
from nnseg.probabilities.target import TakePlanes, Target, naming

PIECE_BYTES = 2**24  # written to or read from the temporary file at once, if a plane is no larger


class Spool:
    """An uncompressed temporary file of a body's box, from planes of all heads to heads.

    A head's axes are the plan's first, along which it comes, and the others in image order: so
    slices of the image lie there as few pieces, whatever the order of the plan.
    """

    def __init__(self, file: Any, target: Target, kind: "np.dtype[Any]") -> None:
        self.kind = kind
        self._file = file
        self._heads = target.labels.heads
        first, *others = target.placement.order
        self._turned = others != sorted(others)
        self._axes = three([first, *sorted(others)])
        self._shape = permute([stop - start for start, stop in target.box], self._axes)
        self._done = 0  # planes

    def add(self, planes: Planes) -> None:
        """Take the next planes (z, y, x, head) of the box, plan order."""
        depth, rows, columns = self._shape
        plane_bytes = rows * columns * self.kind.itemsize
        step = max(1, PIECE_BYTES // (self._heads * plane_bytes))
        for start in range(0, len(planes), step):
            piece = planes[start : start + step]
            piece = piece.swapaxes(1, 2) if self._turned else piece
            turned = heads_first(piece.reshape(-1, self._heads), self.kind)
            for head, values in enumerate(turned):
                self._file.seek((head * depth + self._done) * plane_bytes)
                _write_all(self._file, values)
            self._done += len(piece)

    def slices(self, head: int, first: int, stop: int) -> NDArray[Any]:
        """Give some slices of the box of one head, (z, y, x), image order."""
        depth, rows, columns = self._shape
        start = head * math.prod(self._shape)
        if self._axes[0] == 0:
            result = np.empty((stop - first, rows, columns), dtype=self.kind)
            self._read(start + first * rows * columns, result)
        else:
            result = np.empty((depth, stop - first, columns), dtype=self.kind)
            for place, part in enumerate(result):
                self._read(start + (place * rows + first) * columns, part)
        return np.transpose(result, inverse_order(self._axes))

    def _read(self, start: int, into: NDArray[Any]) -> None:
        self._file.seek(start * self.kind.itemsize)
        view = into.data.cast("B")
        while view:
            count = self._file.readinto(view)
            if not count:
                raise OSError(errno.EIO, "the temporary file has become shorter")
            view = view[count:]


@contextmanager
def spooled(
    target: Target, kind: Any, pack: Callable[[Path, Target, Spool], None]
) -> Iterator[TakePlanes]:
    """Take planes into a temporary file, then have them packed from it."""
    path = target.files[0]
    needed = np.dtype(kind).itemsize * target.labels.heads * math.prod(_sides(target.box))
    with ExitStack() as stack:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path.parent).free
            if needed > free:
                raise DiskFullError(
                    f"{path}: takes {needed / 2**20:.1f} MiB on the disk while it is written, and "
                    f"{free / 2**20:.1f} MiB are free; make room"
                )
            # where the system gives it a name, `sweep` knows it; unbuffered, closing cannot fail
            file = tempfile.TemporaryFile(  # noqa: SIM115
                dir=path.parent, prefix=unfinished_path(path.with_name("spool")).name, buffering=0
            )
            stack.enter_context(file)
        spool = Spool(file, target, np.dtype(kind))
        yield spool.add
        with whole_file(path) as temporary:
            pack(temporary, target, spool)


def image_parts(target: Target, spool: Spool) -> Iterator[NDArray[Any]]:
    """Give all heads, one after the other, as some slices (z, y, x) of the image at a time.

    Source: nnU-Net 2.8.1 for what is outside the body: surely background, or no region.
    """
    depth, *plane = target.placement.shape
    step = max(1, PIECE_BYTES // (math.prod(plane) * spool.kind.itemsize))
    (z0, z1), rows, columns = target.box
    one = 1 if spool.kind.kind == "f" else STEPS
    for head in range(target.labels.heads):
        outside = one if head == 0 and not target.labels.has_regions else 0
        for start in range(0, depth, step):
            stop = min(depth, start + step)
            part = np.full((stop - start, *plane), outside, dtype=spool.kind)
            first, last = max(start, z0), min(stop, z1)
            if first < last:
                inside = part[first - start : last - start, slice(*rows), slice(*columns)]
                inside[...] = spool.slices(head, first - z0, last - z0)
            yield part


def _sides(box: Box) -> Shape:
    return three([stop - start for start, stop in box])


def _write_all(file: Any, values: NDArray[Any]) -> None:
    view = values.data.cast("B")
    while view:
        view = view[file.write(view) :]
