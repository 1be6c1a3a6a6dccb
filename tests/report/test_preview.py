import base64
import json
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

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
    return make_preview({"MR": image}, {}, LABELS, grid, reference=truth, **options)


def _reference(found: Preview) -> NDArray[Any]:
    assert found.reference is not None
    return found.reference


def test_label_maps_hold_positions_and_an_undeclared_integer_stands_out() -> None:
    wrong = np.zeros(SHAPE, np.int16)
    wrong[0, 0, :3] = (2, 5, 3)
    found = make_preview({}, {}, LABELS, simple_geometry(SHAPE, (1, 1, 1)), reference=wrong)
    assert _reference(found)[0, 0].tolist() == [1, 2, UNKNOWN, 0, 0]


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
    cyst = np.argwhere(_reference(found) == 2)
    assert cyst.tolist() == [[3, 5 - 1 - 4, 4 - 1 - 2]]


def test_a_mark_lands_on_its_voxel_however_axes_are_turned() -> None:
    affine = [[0, 0, -3.0, 0], [-1.5, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]]
    found = preview(geometry=geometry_of(affine, SHAPE), mark=(2, 3, 4))
    assert _reference(found)[found.start] == 2


def test_a_picture_stays_as_it_is() -> None:
    truth = np.zeros((1, 6, 5), np.uint8)
    truth[0, 1, 2] = 2
    found = make_preview({}, {}, LABELS, flat_geometry((6, 5), (1.0, 1.0)), reference=truth)
    assert not found.anatomical
    assert np.argwhere(_reference(found)).tolist() == [[0, 1, 2]]


def test_the_first_look_is_where_maps_differ_the_most() -> None:
    truth = np.zeros(SHAPE, np.uint8)
    truth[1] = 2
    found = truth.copy()
    found[3, 4, 1:4] = 5
    made = make_preview(
        {}, {"prediction": found}, LABELS, simple_geometry(SHAPE, (1, 1, 1)), reference=truth
    )
    assert made.start == (3, 4, 2)


def test_a_large_case_is_cut_to_its_labels() -> None:
    shape = (150, 160, 170)
    truth = np.zeros(shape, np.uint8)
    truth[70:80, 60:90, 40:45] = 2
    grid = simple_geometry(shape, (2.0, 1.0, 4.0))
    found = make_preview({"CT": truth}, {}, LABELS, grid, reference=truth)
    assert found.shape == (10 + 2 * 10, 30 + 2 * 20, 5 + 2 * 8)
    assert (_reference(found) == 1).sum() == (truth == 2).sum()


def test_what_is_still_too_large_is_thinned_where_it_is_finest() -> None:
    shape = (60, 300, 200)
    truth = np.zeros(shape, np.uint8)
    truth[5:-5, 5:-5, 5:-5] = 2
    noise = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    grid = simple_geometry(shape, (5.0, 0.5, 0.8))
    found = make_preview({"CT": noise}, {}, LABELS, grid, reference=truth)
    assert found.every[0] == 1
    assert found.every[1] >= found.every[2] > 1
    assert found.channels[0].levels.shape == _reference(found).shape
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
    raw = zlib.decompress(base64.b64decode(data["reference"]))
    assert raw == _reference(made).tobytes()


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
    made = make_preview({"MR": image}, {}, LABELS, grid, reference=np.zeros(SHAPE, np.uint8))
    assert np.isfinite([made.channels[0].low, made.channels[0].high]).all()


@pytest.mark.parametrize("shape", [(9, 11, 13), (61, 230, 203)])
@pytest.mark.parametrize("anatomical", [True, False])
def test_a_position_is_that_of_the_file_however_it_was_cut_turned_and_thinned(
    shape: tuple[int, int, int], anatomical: bool
) -> None:
    affine = [[0, 0, -3.0, 0], [-1.5, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]]
    z, y, x = np.indices(shape)
    truth = (1 + z % 5 + 5 * (y % 6) + 30 * (x % 6)).astype(np.uint8)
    truth[:2] = truth[:, :3] = truth[:, :, -4:] = 0
    names = Labels(labels={"background": 0, **{f"l{i}": i for i in range(1, 240)}})
    grid = geometry_of(affine, shape)
    found = make_preview({"MR": truth}, {}, names, grid, reference=truth, anatomical=anatomical)
    assert (max(found.every) > 1) == (shape[1] == 230)
    rng = np.random.default_rng(0)
    for _ in range(200):
        at = tuple(int(rng.integers(n)) for n in found.shape)
        assert _reference(found)[at] == truth[found.voxel(at)]


def test_where_directions_are_not_known_nothing_is_turned() -> None:
    affine = [[0, 0, -3.0, 0], [-1.5, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]]
    found = preview(geometry=geometry_of(affine, SHAPE), anatomical=False)
    assert not found.anatomical
    assert found.shape == SHAPE
    assert [axis.axis for axis in found.file_axes] == [0, 1, 2]


def test_labels_past_the_255th_stay_apart() -> None:
    many = Labels(labels={"background": 0, **{f"l{i}": i for i in range(1, 401)}})
    truth = np.full(SHAPE, 300, np.int16)
    found = np.full(SHAPE, 399, np.int16)
    found[0, 0, 0] = 500
    made = make_preview(
        {}, {"found": found}, many, simple_geometry(SHAPE, (1, 1, 1)), reference=truth
    )
    assert (_reference(made)[1, 0, 0], made.maps["found"][1, 0, 0]) == (300, 399)
    assert made.maps["found"][0, 0, 0] == 65535
    script = to_script(made, 0)
    data = json.loads(script[len(b"nnsegReport.take(0,") : -3])
    assert data["bytes"] == 2
    assert zlib.decompress(base64.b64decode(data["reference"]))[:2] == b"\x2c\x01"


def test_a_prediction_called_reference_does_not_take_its_place() -> None:
    truth = np.full(SHAPE, 2, np.uint8)
    found = np.full(SHAPE, 5, np.uint8)
    grid = simple_geometry(SHAPE, (1, 1, 1))
    made = make_preview({}, {"reference": found}, LABELS, grid, reference=truth)
    assert [(name, int(array[0, 0, 0])) for name, array in made.layers] == [
        ("reference", 1),
        ("reference", 2),
    ]
