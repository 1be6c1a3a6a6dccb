import os
from pathlib import Path

import pytest

from nnseg.errors import DataError
from nnseg.volume.damage import MAX_BYTES, MOST_SHRUNK, check_announced

HUGE = Path("huge.nii.gz")


def test_no_file_can_announce_more_than_its_bytes_unpack_to() -> None:
    check_announced(HUGE, MOST_SHRUNK * 300, 300, packed=True)
    with pytest.raises(DataError, match="announces 330001 bytes; more than can be meant by a file"):
        check_announced(HUGE, MOST_SHRUNK * 300 + 1, 300, packed=True)
    with pytest.raises(DataError, match="more than can be meant"):
        check_announced(HUGE, MAX_BYTES + 1, MAX_BYTES + 1, packed=False)


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the system does not tell its memory")
def test_voxels_that_this_machine_has_no_memory_for_are_refused_before_room_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    check_announced(HUGE, 4_096_000, 4_096_000, packed=False)
    with pytest.raises(DataError, match="take 4096001 bytes, and this machine has 4096000 of mem"):
        check_announced(HUGE, 4_096_001, 4_096_001, packed=False)
    with pytest.raises(DataError, match="resample or crop the image"):
        check_announced(HUGE, 4_096_001, 9000, packed=True)
    check_announced(HUGE, 4_096_001, 9000, packed=False)  # who reads it says that it was cut off
