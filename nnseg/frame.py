"""Arrays in frames of Blosc2: packed for patches, opened only where they are plain arrays."""

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from nnseg.errors import DataError

BLOCK_BYTES = 2**15  # what is decompressed at once; fits the fastest cache
BLOCK_DEPTH = 2  # slices: a patch of one slice reads one in vain, a thick patch next to none
CHUNK_BYTES = 2**22

# A frame of Blosc2: fixed fields, the index of its metalayers, chunks, and a trailer with more.
FRAME_MAGIC = b"\x9e\xa8b2frame\0"
HEAD_BYTES = slice(11, 15)  # length of all before the chunks, big-endian as those that follow
FRAME_BYTES = slice(16, 24)  # length of the frame
CHUNKS_BYTES = slice(39, 47)  # length of the chunks; behind them lies their index, another chunk
FRAME_LAYERS = slice(91, 99)  # how many metalayers, and the name of the first
OUR_LAYERS = b"\xde\x00\x01\xa4b2nd"  # one, which says shape and type
FRAME_HEAD, FRAME_TAIL = 99, 23
TRAILER_BYTES = slice(1, 5)  # of the tail: length of the trailer, big-endian
TRAILER_LAYERS = slice(6, 9)  # of the trailer
NO_LAYERS = b"\xde\x00\x00"
CHUNK_HEAD, PACKED_BYTES = 16, slice(12, 16)  # of a chunk, and in it its own length, little-endian


def pack(array: NDArray[Any]) -> bytes:
    """Give an array, (..., z, y, x), as a frame whose blocks suit reading patches."""
    import blosc2

    lead, spatial = array.shape[:-3], array.shape[-3:]
    block, chunk = _blocks(spatial, array.itemsize)
    packed = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=(*(1 for _ in lead), *chunk),
        blocks=(*(1 for _ in lead), *block),
        cparams={
            "codec": blosc2.Codec.LZ4,
            "clevel": 5,
            "filters": [blosc2.Filter.SHUFFLE],
            "nthreads": 1,
        },
        dparams={"nthreads": 1},
        contiguous=True,
    )
    return cast(bytes, packed.to_cframe())


def _blocks(shape: tuple[int, ...], itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Give the block and the chunk of an array: one rule for the patches of all configurations.

    The patch of a 2D network is one slice, that of a 3D one as thick as wide. So blocks are flat,
    and small enough that neither reads much in vain; chunks are whole blocks.
    """
    if len(shape) < 3:
        return shape, shape
    block = _fit((min(BLOCK_DEPTH, shape[0]), *shape[1:]), BLOCK_BYTES // itemsize)
    chunk = _fit(shape, CHUNK_BYTES // itemsize)
    whole = (-(-max(c, b) // b) * b for c, b in zip(chunk, block, strict=True))
    return block, tuple(min(n, w) for n, w in zip(shape, whole, strict=True))


def _fit(shape: tuple[int, ...], voxels: int) -> tuple[int, ...]:
    """Halve the longest edge of a box until it has at most `voxels` voxels."""
    edge = [max(1, n) for n in shape]
    while math.prod(edge) > voxels:
        longest = edge.index(max(edge))
        edge[longest] = (edge[longest] + 1) // 2
    return tuple(edge)


def open_frame(path: Path, types: Sequence[str]) -> Any:
    """Open an array that is one of `types`, without unpacking anything.

    Blosc2 has frames that tell how to compute an array, in Python, and it does so when they are
    opened or read. What marks them are metalayers beside that of a plain array.

    Raises:
        DataError: It is no plain array, or of another type.
    """
    import blosc2

    _refuse_other_frames(path)
    array: Any = None
    with contextlib.suppress(Exception):  # Blosc2 hands on whatever a strange frame makes it meet
        array = blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
    if type(array) is not blosc2.NDArray:
        raise _no_plain_array(path)
    if str(array.dtype) not in types:  # before it is read: an object would be a pointer
        raise DataError(
            f"{path}: holds {array.dtype}, and {' or '.join(types)} was wanted; have it made anew"
        )
    return array


def unpacked(array: Any, first: int, stop: int) -> NDArray[Any]:
    """Unpack what lies from `first` to before `stop` along the first axis of an open array.

    Raises:
        DataError: It cannot be: a hash may well prove bytes that never were an array.
    """
    try:
        return cast(NDArray[Any], array[first:stop])
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"{array.schunk.urlpath}: cannot be unpacked ({error}); have it made anew"
        ) from None


def _refuse_other_frames(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            head = file.read(FRAME_HEAD)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - FRAME_TAIL))
            tail = file.read()
            trailer = size - int.from_bytes(tail[TRAILER_BYTES], "big")
            file.seek(max(0, trailer))
            layers = file.read(FRAME_TAIL)[TRAILER_LAYERS]
            first = int.from_bytes(head[HEAD_BYTES], "big")
            index = first + int.from_bytes(head[CHUNKS_BYTES], "big")
            fitting = _chunks_fit(file, first, index) and _chunks_fit(file, index, trailer)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); restore it or have it made anew"
        ) from None
    plain = (
        head.startswith(FRAME_MAGIC)
        and int.from_bytes(head[FRAME_BYTES], "big") == size
        and head[FRAME_LAYERS] == OUR_LAYERS
        and layers == NO_LAYERS
        and fitting
    )
    if not plain:
        raise _no_plain_array(path)


def _chunks_fit(file: BinaryIO, start: int, stop: int) -> bool:
    """Whether chunks lie one behind the other from `start` to `stop`.

    Blosc2 3.3.5 reads as far as a chunk says that it goes, be it beyond the end of the file.
    """
    while start < stop:
        file.seek(start)
        size = int.from_bytes(file.read(CHUNK_HEAD)[PACKED_BYTES], "little")
        if size < CHUNK_HEAD:
            return False
        start += size
    return start == stop


def _no_plain_array(path: Path) -> DataError:
    return DataError(
        f"{path}: holds something else than a plain array of Blosc2, which is not opened; have it "
        "made anew"
    )
