import base64
import json
import zlib
from typing import Any

import numpy as np
import pytest

from nnseg.labels import Labels
from nnseg.report.preview import (
    MOST_BYTES,
    MOST_VOXELS,
    UNKNOWN,
    Preview,
    make_preview,
    to_script,
)
from nnseg.volume import Geometry, flat_geometry, simple_geometry

LABELS = Labels(labels={"background": 0, "liver": 2, "cyst": 5})
SHAPE = (4, 6, 5)


def geometry_of(affine: list[list[float]], shape: tuple[int, int, int]) -> Geometry:
    x, y, z = np.linalg.norm(np.array(affine)[:3, :3], axis=0)
    rows = tuple(tuple(float(v) for v in row) for row in affine)
    return Geometry(shape=shape, spacing=(float(z), float(y), float(x)), affine=rows)


def preview(**options: Any) -> Preview:
    image = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    truth = np.zeros(SHAPE, np.int16)
    truth[1, 2:4, 1] = 2
    truth[2, 3, 4] = 5
    grid = options.pop("geometry", simple_geometry(SHAPE, (3.0, 1.0, 1.5)))
    return make_preview({"MR": image}, {"reference": truth}, LABELS, grid, **options)


def test_label_maps_hold_positions_and_an_undeclared_integer_stands_out() -> None:
    wrong = np.zeros(SHAPE, np.int16)
    wrong[0, 0, :3] = (2, 5, 3)
    found = make_preview({}, {"reference": wrong}, LABELS, simple_geometry(SHAPE, (1, 1, 1)))
    assert found.maps["reference"][0, 0].tolist() == [1, 2, UNKNOWN, 0, 0]


def test_a_small_case_is_whole_and_its_levels_run_from_black_to_white() -> None:
    found = preview()
    (channel,) = found.channels
    assert (found.shape, found.spacing, found.every) == (SHAPE, (3.0, 1.0, 1.5), (1, 1, 1))
    assert (channel.levels.min(), channel.levels.max()) == (0, 255)
    share = (60 - channel.low) / (channel.high - channel.low)
    assert channel.levels.ravel()[60] == pytest.approx(255 * share, abs=1)


def test_axes_are_turned_to_the_patient() -> None:
    # voxel x runs to the back, voxel y to the head, voxel z to the left
    affine = [[0, 0, -3.0, 0], [-1.5, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]]
    found = preview(geometry=geometry_of(affine, SHAPE))
    assert found.shape == (6, 5, 4)
    assert found.spacing == (1.0, 1.5, 3.0)
    cyst = np.argwhere(found.maps["reference"] == 2)
    assert cyst.tolist() == [[3, 5 - 1 - 4, 4 - 1 - 2]]


def test_a_mark_lands_on_its_voxel_however_axes_are_turned() -> None:
    affine = [[0, 0, -3.0, 0], [-1.5, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]]
    found = preview(geometry=geometry_of(affine, SHAPE), mark=(2, 3, 4))
    assert found.maps["reference"][found.start] == 2


def test_a_picture_stays_as_it_is() -> None:
    truth = np.zeros((1, 6, 5), np.uint8)
    truth[0, 1, 2] = 2
    found = make_preview({}, {"reference": truth}, LABELS, flat_geometry((6, 5), (1.0, 1.0)))
    assert not found.anatomical
    assert np.argwhere(found.maps["reference"]).tolist() == [[0, 1, 2]]


def test_the_first_look_is_where_maps_differ_the_most() -> None:
    truth = np.zeros(SHAPE, np.uint8)
    truth[1] = 2
    found = truth.copy()
    found[3, 4, 1:4] = 5
    made = make_preview(
        {}, {"reference": truth, "prediction": found}, LABELS, simple_geometry(SHAPE, (1, 1, 1))
    )
    assert made.start == (3, 4, 2)


def test_a_large_case_is_cut_to_its_labels() -> None:
    shape = (150, 160, 170)
    truth = np.zeros(shape, np.uint8)
    truth[70:80, 60:90, 40:45] = 2
    grid = simple_geometry(shape, (2.0, 1.0, 4.0))
    found = make_preview({"CT": truth}, {"reference": truth}, LABELS, grid)
    assert found.shape == (10 + 2 * 10, 30 + 2 * 20, 5 + 2 * 8)
    assert (found.maps["reference"] == 1).sum() == (truth == 2).sum()


def test_what_is_still_too_large_is_thinned_where_it_is_finest() -> None:
    shape = (60, 300, 200)
    truth = np.zeros(shape, np.uint8)
    truth[5:-5, 5:-5, 5:-5] = 2
    noise = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    grid = simple_geometry(shape, (5.0, 0.5, 0.8))
    found = make_preview({"CT": noise}, {"reference": truth}, LABELS, grid)
    assert found.every[0] == 1
    assert found.every[1] >= found.every[2] > 1
    assert found.channels[0].levels.shape == found.maps["reference"].shape
    assert np.prod(found.shape) * 2 <= MOST_VOXELS


def test_the_file_of_the_noisiest_case_is_bounded() -> None:
    shape = (90, 170, 160)
    rng = np.random.default_rng(0)
    image = rng.normal(0, 1, shape).astype(np.float32)
    many = Labels(labels={"background": 0, **{f"label {i}": i for i in range(1, 200)}})
    maps = {name: rng.integers(0, 200, shape).astype(np.uint8) for name in ("reference", "b")}
    made = make_preview({"CT": image}, maps, many, simple_geometry(shape, (1, 1, 1)))
    assert len(to_script(made, 3)) <= MOST_BYTES


def test_the_script_hands_over_what_was_made() -> None:
    made = preview()
    script = to_script(made, 7)
    assert script.startswith(b"nnsegReport.take(7,")
    assert script.endswith(b");\n")
    data = json.loads(script[len(b"nnsegReport.take(7,") : -3])
    assert data["shape"] == [5, 6, 4]
    assert data["start"] == list(made.start[::-1])
    raw = zlib.decompress(base64.b64decode(data["maps"]["reference"]))
    assert raw == made.maps["reference"].tobytes()


def test_names_in_the_script_cannot_break_out_of_it() -> None:
    name = "</script><script>alert(1)//\u2028"
    truth = np.zeros(SHAPE, np.uint8)
    grid = simple_geometry(SHAPE, (1, 1, 1))
    script = to_script(make_preview({name: truth}, {name: truth}, LABELS, grid), 0)
    assert b"<" not in script
    assert script.isascii()


def test_values_that_are_no_numbers_do_no_harm() -> None:
    image = np.full(SHAPE, np.nan, np.float32)
    image[0, 0, 0] = 5
    grid = simple_geometry(SHAPE, (1, 1, 1))
    made = make_preview({"MR": image}, {"reference": np.zeros(SHAPE, np.uint8)}, LABELS, grid)
    assert np.isfinite([made.channels[0].low, made.channels[0].high]).all()
