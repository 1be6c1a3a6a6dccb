"""Probabilities on disk: as nnU-Net's .npz, as NIfTI for other programs, or in chunks for ours.

`writing` takes them as a prediction gives them, some planes at a time, plan order, and never has
them all. Chunks are written as they come; what wants one head after the other goes through an
uncompressed temporary file. `read_planes` gives back what chunks hold.
"""

import contextlib
import errno
import functools
import io
import json
import math
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnseg import record
from nnseg.axes import Box, Planes, Shape, inverse_order, permute, three
from nnseg.commit import (
    cannot_write,
    remove,
    sha256,
    unfinished_path,
    whole_file,
)
from nnseg.errors import DataError, DiskFullError, MissingError
from nnseg.labels import BACKGROUND, Labels
from nnseg.preprocess import Placement
from nnseg.registry import Registry
from nnseg.store import open_frame
from nnseg.volume import Geometry, split_ending
from nnseg.volume.nifti import to_nibabel

STEPS = 4096  # of a quantised probability: eight bits change labels where two models are averaged
FORMAT = 1  # raised when chunks of an older version can no longer be read
AXES = ("z", "head", "y", "x")  # of chunks: a slab is read without the rest, a head packs well
CHUNK_BYTES = 2**22
BLOCK_BYTES = 2**17  # packed at once
TURNED_VALUES = 2**18  # turned heads first at once: they stay in the cache of a CPU
PIECE_BYTES = 2**24  # written to or read from the temporary file at once, if a plane is no larger
COMMENT = 6  # NIfTI's code of an extension that is plain text
MADE_BY = "nnseg predict --save_probabilities chunks"

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A way to keep probabilities.

    `taking` gives what takes the planes (z, y, x, head) of the body's box in order; when it is left
    without an error, the files are there, the one of the last ending last.
    """

    endings: tuple[str, ...]  # of its files, behind the name of the case
    taking: Callable[[Target], AbstractContextManager[TakePlanes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredProbabilities:
    """The record beside the chunks of a case: CASE_probabilities.json.

    The array holds the body's box in plan order, each value `steps` times the probability, rounded.
    Outside the box the background's probability is 1 where there are labels, and that of every
    region is 0.
    """

    axes: tuple[str, ...]
    heads: tuple[str, ...]  # names, in the order of that axis
    steps: int
    labels: Labels
    placement: Placement
    geometry: Geometry
    array_sha256: str  # of the file of the array
    format: int = FORMAT
    record_sha256: str = ""  # of this record without it; `record.save_sealed` writes it

    def __post_init__(self) -> None:
        wanted = {"axes": AXES, "heads": head_names(self.labels), "steps": STEPS, "format": FORMAT}
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise DataError(
                    f"{name} is {getattr(self, name)!r}, and this version reads {value!r}; run "
                    f"`{MADE_BY}` again"
                )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The array's shape, of AXES."""
        z, y, x = self.placement.shape_cropped
        return z, len(self.heads), y, x


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenProbabilities:
    """The chunks of a case, found whole; they are read as they are asked for."""

    stored: StoredProbabilities
    array: Any  # of AXES, uint16

    def planes(self, first: int, stop: int) -> Planes:
        """Read the probabilities of some planes of the body's box, plan order.

        Args:
            first: The first plane, from 0.
            stop: Behind the last one.

        Returns:
            (z, y, x, head), float32.
        """
        depth, heads, *plane = self.stored.shape
        if not 0 <= first <= stop <= depth:
            raise ValueError(f"planes {first} to {stop} of {depth}")
        result = np.empty((stop - first, *plane, heads), dtype=np.float32)
        for number, values in enumerate(self.array[first:stop]):
            np.multiply(values.transpose(1, 2, 0), np.float32(1 / STEPS), out=result[number])
        return result


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
            with _naming(self.files[0]):
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


def probability_files(label_map: Path, kind: str) -> tuple[Path, ...]:
    """Name the files that `writing` writes; the last one makes them count.

    >>> [path.name for path in probability_files(Path("heart_01.nii.gz"), "chunks")]
    ['heart_01_probabilities.b2nd', 'heart_01_probabilities.json']
    """
    case_id, _ = split_ending(label_map.name)
    return tuple(label_map.with_name(f"{case_id}{ending}") for ending in KINDS[kind].endings)


def head_names(labels: Labels) -> tuple[str, ...]:
    """Name the heads of a network in their order.

    >>> head_names(Labels(labels={"background": 0, "edema": 2, "core": 1}))
    ('background', 'core', 'edema')
    """
    if labels.has_regions:
        return tuple(labels.foreground)
    return BACKGROUND, *sorted(labels.foreground, key=labels.foreground.__getitem__)


def read_planes(path: Path, first: int, stop: int) -> Planes:
    """Read the probabilities of some planes of a case; for many parts of it, open it once.

    Args:
        path: CASE_probabilities.b2nd, which `open_probabilities` would open.
        first: The first plane of the body's box, plan order, from 0.
        stop: Behind the last one.

    Returns:
        (z, y, x, head), float32.

    Raises:
        MissingError: A file is missing.
        DataError: A file is damaged, or holds something else.
    """
    return open_probabilities(path).planes(first, stop)


def open_probabilities(path: Path) -> OpenProbabilities:
    """Open the chunks of a case, after checking the hashes of record and array.

    Args:
        path: CASE_probabilities.b2nd; its record lies beside it.

    Raises:
        MissingError: A file is missing.
        DataError: A file is damaged, or holds something else.
    """
    stored = record.load_sealed(
        StoredProbabilities, path.with_suffix(".json"), MADE_BY, f"run `{MADE_BY}` again"
    )
    try:
        digest = sha256(path)
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist; `{MADE_BY}` writes it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore it") from None
    if digest != stored.array_sha256:
        raise _damaged(path)
    array = open_frame(path, ("uint16",))
    if tuple(array.shape) != stored.shape:
        raise DataError(
            f"{path}: has the shape {tuple(array.shape)}, its record says {stored.shape}; run "
            f"`{MADE_BY}` again"
        )
    return OpenProbabilities(stored=stored, array=array)


def quantise(probabilities: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round probabilities to steps of 1/4096, half a step at most from what they were.

    0, 1/2 and 1 stay what they are, and with them all float32 arithmetic on the steps is exact.

    >>> quantise(np.array([0, 0.1, 0.5, 1], dtype=np.float32)).tolist()
    [0, 410, 2048, 4096]
    """
    steps: NDArray[np.float32] = probabilities * np.float32(STEPS) + np.float32(0.5)
    return steps.astype(np.uint16)


class _Spool:
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
            turned = _heads_first(piece.reshape(-1, self._heads), self.kind)
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
def _spooled(
    target: Target, kind: Any, pack: Callable[[Path, Target, _Spool], None]
) -> Iterator[TakePlanes]:
    """Take planes into a temporary file, then have them packed from it."""
    path = target.files[0]
    needed = np.dtype(kind).itemsize * target.labels.heads * math.prod(_sides(target.box))
    with ExitStack() as stack:
        with _naming(path):
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
        spool = _Spool(file, target, np.dtype(kind))
        yield spool.add
        with whole_file(path) as temporary:
            pack(temporary, target, spool)


def _image_parts(target: Target, spool: _Spool) -> Iterator[NDArray[Any]]:
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


def _pack_npz(path: Path, target: Target, spool: _Spool) -> None:
    """Write what `np.load(path)["probabilities"]` gives as (head, z, y, x), float32, image order.

    zipfile packs by zlib only, which takes many times as long as ISA-L does for the same size. So
    it gets packed bytes, and its entry is then told what they are.
    """
    from isal import isal_zlib

    entry = zipfile.ZipInfo("probabilities.npy")
    header = {
        "descr": np.lib.format.dtype_to_descr(spool.kind),
        "fortran_order": False,
        "shape": (target.labels.heads, *target.placement.shape),
    }
    packer = isal_zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    size, checksum = 0, 0
    with open(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open(entry, "w", force_zip64=True) as member:
            for data in _npy(header, _image_parts(target, spool)):
                size += len(data)
                checksum = isal_zlib.crc32(data, checksum)
                member.write(packer.compress(data))
            member.write(packer.flush())
        entry.compress_type, entry.file_size, entry.CRC = zipfile.ZIP_DEFLATED, size, checksum
        end = file.tell()
        file.seek(entry.header_offset)
        file.write(entry.FileHeader(zip64=True))
        file.seek(end)


def _npy(header: dict[str, Any], parts: Iterable[NDArray[Any]]) -> Iterator[memoryview]:
    """Give the bytes of a .npy file, some at a time."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, header)
    yield head.getbuffer()
    for part in parts:
        yield part.data.cast("B")


def _pack_nifti(path: Path, target: Target, spool: _Spool) -> None:
    """Write a compressed NIfTI file (x, y, z, head) on the image's grid; a comment names the heads.

    Its values are steps, uint16, and its slope 1/4096 is exact; so 0 and 1 are read as such.
    """
    from isal import igzip
    from nibabel.nifti1 import Nifti1Extension

    shape = (*reversed(target.placement.shape), target.labels.heads)
    longest = np.zeros((1, 1, max(shape)), dtype=spool.kind)  # decides between NIfTI-1 and NIfTI-2
    header = to_nibabel(longest, target.geometry).header
    header.set_data_shape(shape)
    header.set_data_dtype(spool.kind)
    header["scl_slope"], header["scl_inter"] = 1 / STEPS, 0
    header["cal_min"], header["cal_max"] = 0, 1  # what viewers show from black to white
    names = json.dumps({"heads": head_names(target.labels)}, ensure_ascii=False)
    header.extensions.append(Nifti1Extension(COMMENT, names.encode()))
    with (
        open(path, "wb") as file,
        igzip.IGzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
    ):
        header.write_to(packed)
        for part in _image_parts(target, spool):
            packed.write(part.data.cast("B"))


class _Chunks:
    """A Blosc2 array on disk that grows by planes."""

    def __init__(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        import blosc2

        depth, heads, rows, columns = shape
        plane = 2 * rows * columns
        together = min(depth, max(1, CHUNK_BYTES // (heads * plane)))
        part = -(-rows // -(-plane // BLOCK_BYTES))  # rows, in as few equal parts as fit
        self._path = path
        self._buffer = np.empty((together, *shape[1:]), dtype=np.uint16)
        self._filled = self._done = 0  # planes in the buffer, and before it
        self._checksums: list[int] = []
        with self._telling():
            self._array: Any = blosc2.empty(
                shape,
                dtype=np.uint16,
                chunks=(together, min(heads, max(1, CHUNK_BYTES // plane)), rows, columns),
                blocks=(1, 1, part, columns),
                cparams={
                    "codec": blosc2.Codec.ZSTD,
                    "clevel": 1,
                    "filters": [blosc2.Filter.SHUFFLE],
                    "nthreads": 1,
                },
                dparams={"nthreads": 1},
                urlpath=str(path),
                mode="w",
                contiguous=True,
            )

    def add(self, planes: Planes) -> None:
        """Take the next planes (z, y, x, head) of the box, plan order."""
        for plane in planes:
            values = _heads_first(plane.reshape(-1, plane.shape[-1]), self._buffer.dtype)
            self._buffer[self._filled] = values.reshape(self._buffer.shape[1:])
            self._filled += 1
            if self._filled == len(self._buffer):
                self._flush()

    def finish(self) -> None:
        """Write the last planes, and make sure that the disk has got them all."""
        self._flush()
        self._array = None
        with self._telling():
            array = open_frame(self._path, ("uint16",))
            step = len(self._buffer)
            for number, checksum in enumerate(self._checksums):
                if zlib.crc32(array[number * step : (number + 1) * step]) != checksum:
                    raise RuntimeError("what was written is not what is there")

    def _flush(self) -> None:
        if not self._filled:
            return
        planes = self._buffer[: self._filled]
        self._checksums.append(zlib.crc32(planes.data))
        with self._telling():
            self._array[self._done : self._done + self._filled] = planes
        self._done += self._filled
        self._filled = 0

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Turn what Blosc2 says of a failed write, which is not why, into an error of the disk."""
        try:
            yield
        except (RuntimeError, DataError, ValueError) as error:
            free = shutil.disk_usage(self._path.parent).free
            reason = errno.ENOSPC if free < self._buffer.nbytes else errno.EIO
            raise OSError(reason, os.strerror(reason)) from error


@contextmanager
def _taking_chunks(target: Target) -> Iterator[TakePlanes]:
    path, record_path = target.files
    unfinished = unfinished_path(path)
    z, y, x = target.placement.shape_cropped
    try:
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            chunks = _Chunks(unfinished, (z, target.labels.heads, y, x))
        yield chunks.add
        with _naming(path):
            chunks.finish()
            digest = sha256(unfinished)
        stored = StoredProbabilities(
            axes=AXES,
            heads=head_names(target.labels),
            steps=STEPS,
            labels=target.labels,
            placement=target.placement,
            geometry=target.geometry,
            array_sha256=digest,
        )
        with whole_file(record_path) as temporary_record:  # there is room for it, then
            temporary_record.write_bytes(record.dumps(record.sealed(stored)).encode())
            remove(record_path)  # from here on the old ones are gone
            with whole_file(path) as temporary:
                unfinished.replace(temporary)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _damaged(path: Path) -> DataError:
    return DataError(f"{path}: is damaged (its SHA-256 changed); run `{MADE_BY}` again")


def _heads_first(rows: NDArray[np.float32], kind: "np.dtype[Any]") -> NDArray[Any]:
    """Turn (voxel, head) into (head, voxel); quantised where `kind` holds integers."""
    result = np.empty(rows.shape[::-1], dtype=kind)
    step = max(1, TURNED_VALUES // rows.shape[1])
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        result[:, start : start + step] = (block if kind.kind == "f" else quantise(block)).T
    return result


def _sides(box: Box) -> Shape:
    return three([stop - start for start, stop in box])


def _write_all(file: Any, values: NDArray[Any]) -> None:
    view = values.data.cast("B")
    while view:
        view = view[file.write(view) :]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say of an error of the disk which file could not be written."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


KINDS = Registry[Kind](
    "kind of probabilities",
    npz=Kind(
        endings=(".npz",),
        taking=functools.partial(_spooled, kind=np.float32, pack=_pack_npz),
    ),
    nifti=Kind(
        endings=("_probabilities.nii.gz",),
        taking=functools.partial(_spooled, kind=np.uint16, pack=_pack_nifti),
    ),
    chunks=Kind(
        endings=("_probabilities.b2nd", "_probabilities.json"),
        taking=_taking_chunks,
    ),
)
