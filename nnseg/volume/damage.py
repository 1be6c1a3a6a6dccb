"""What every reader asks first: whether a file is whole, and as large as it can mean to be."""

import os
from pathlib import Path

from nnseg.errors import DataError

MAX_BYTES = 2**36  # a volume announced larger than this is a damaged or hostile header
MOST_SHRUNK = 1100  # times as small as the data; deflate, the best that files use, reaches 1032


def read_whole(path: Path) -> bytes:
    """Give all bytes of a file; DataError where the system cannot read it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> DataError:
    """Say that the system could not read `path`."""
    return DataError(f"{path}: cannot be read ({error.strerror}); restore the file")


def check_announced(path: Path, announced: int, on_disk: int, *, packed: bool) -> None:
    """Refuse a header that announces more bytes than can be, before room is made for them.

    That is more than its file can mean, or more than the machine has.

    Args:
        path: For the message.
        announced: Bytes of the voxels, unpacked.
        on_disk: Bytes of the file.
        packed: Whether the voxels are compressed.
    """
    if announced > MAX_BYTES or (packed and announced > MOST_SHRUNK * on_disk):
        raise DataError(
            f"{path}: the header announces {announced} bytes; more than can be meant by a file of "
            f"{on_disk} bytes, restore it"
        )
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if announced > memory and (packed or announced <= on_disk):  # else it was cut off
            raise DataError(
                f"{path}: its voxels take {announced} bytes, and this machine has {memory} of "
                "memory; resample or crop the image, or take a larger machine"
            )


def cut_off(path: Path, found: int, announced: int) -> DataError:
    """Say that `path` ends before its header says it would."""
    return DataError(
        f"{path}: holds {found} bytes where its header announces {announced}; it was cut off, copy "
        "it again"
    )


def damaged(path: Path, reason: object) -> DataError:
    """Say that the bytes of `path` cannot be those that were written."""
    return DataError(
        f"{path}: is damaged ({reason}; {path.stat().st_size} bytes on disk); copy it again"
    )
