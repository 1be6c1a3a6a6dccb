"""The format alone; test_writer.py has what holds for every kind."""

import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
from boxed import LABELS, ORDERS, REGIONS, SHAPE, in_image, names, placed, save

from nnseg.axes import Order
from nnseg.labels import Labels


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
@pytest.mark.parametrize("order", ORDERS)
def test_an_npz_is_what_nnunet_writes(tmp_path: Path, order: Order, labels: Labels) -> None:
    placement = placed(order)
    found, files = save(tmp_path, "npz", placement, labels)
    assert names(tmp_path) == ["case.npz"] == [path.name for path in files]
    with np.load(files[0]) as stored:
        assert stored.files == ["probabilities"]
        array = stored["probabilities"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, in_image(found, placement, labels))


def test_zipfile_finds_no_fault_in_an_npz(tmp_path: Path) -> None:
    _, files = save(tmp_path, "npz", placed())
    with zipfile.ZipFile(files[0]) as archive:
        assert archive.testzip() is None
        (entry,) = archive.infolist()
        assert entry.compress_type == zipfile.ZIP_DEFLATED
        assert entry.file_size == 128 + 4 * 3 * math.prod(SHAPE)
