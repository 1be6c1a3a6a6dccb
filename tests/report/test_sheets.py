import io
import re

import numpy as np
from PIL import Image

from nnseg.labels import Labels
from nnseg.report.page import assets
from nnseg.report.preview import Preview, make_preview
from nnseg.report.sheets import CONFUSED, MISSED, PALETTE, SPURIOUS, TILE, contact_sheet
from nnseg.volume import simple_geometry


def preview() -> Preview:
    truth = np.zeros((5, 9, 7), np.uint8)
    truth[1:4, 2:6, 2:5] = 1
    found = np.roll(truth, 1, axis=1)
    image = truth * 100.0 + np.arange(7)
    labels = Labels(labels={"background": 0, "liver": 1})
    grid = simple_geometry((5, 9, 7), (2.0, 1.0, 1.5))
    return make_preview({"MR": image}, {"found": found}, labels, grid, reference=truth)


def test_a_row_has_the_image_the_maps_and_where_they_disagree() -> None:
    data = contact_sheet([("worst: <a>", preview()), ("b\udce9", preview())])
    picture = Image.open(io.BytesIO(data))
    assert picture.width // TILE == 4
    assert picture.height // TILE == 2


def test_the_same_cases_give_the_same_bytes() -> None:
    assert contact_sheet([("a", preview())]) == contact_sheet([("a", preview())])


def test_colours_are_those_of_the_page() -> None:
    style = assets().style
    named = dict(re.findall(r"--([a-z]+\d*): #([0-9a-f]{6});", style.split("@media")[0]))
    wanted = {f"label{i}": colour for i, colour in enumerate(PALETTE)}
    wanted |= {"missed": MISSED, "spurious": SPURIOUS, "confused": CONFUSED}
    assert {name: tuple(bytes.fromhex(named[name])) for name in wanted} == wanted
