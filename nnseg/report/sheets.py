"""Contact sheets: cases at a glance as one picture, for prints and where scripts do not run."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnseg.report.preview import Positions, Preview

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

PALETTE = (  # of the style sheet, by position of the label, the first label first
    (0xE0, 0x73, 0x2C), (0x2F, 0x8F, 0xD0), (0x49, 0xA3, 0x5A), (0xC9, 0x4F, 0x8C),
    (0x8A, 0x6B, 0xD1), (0xC9, 0xA4, 0x0E), (0x17, 0xA2, 0xA2), (0xD8, 0x4A, 0x3F),
    (0x7F, 0x8F, 0x2A), (0x5F, 0x7D, 0xE8), (0xB0, 0x7A, 0x4A), (0x9A, 0xA4, 0xAD),
)  # fmt: skip
MISSED, SPURIOUS, CONFUSED = (0xFF, 0x4F, 0x5E), (0xFF, 0xD2, 0x3F), (0xC7, 0x7D, 0xFF)
TILE = 240  # pixels
LINE = 26  # pixels of a caption
GAP = 6
STRENGTH = 0.55  # of the colours over the image
BACK, INK = (24, 28, 33), (225, 230, 233)


def contact_sheet(cases: Sequence[tuple[str, Preview]]) -> bytes:
    """Draw cases below each other as PNG: image, each label map, and where the maps disagree.

    Each is shown by the axial slice that it is to be looked at first.

    Args:
        cases: A caption and what is shown.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows = [(caption, _tiles(preview)) for caption, preview in cases]
    wide = max(len(tiles) for _, tiles in rows)
    size = (GAP + wide * (TILE + GAP), GAP + len(rows) * (TILE + LINE + GAP))
    sheet = Image.new("RGB", size, BACK)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for row, (caption, tiles) in enumerate(rows):
        top = GAP + row * (TILE + LINE + GAP)
        draw.text((GAP + 2, top + 4), _printable(caption), fill=INK, font=font)
        for column, (name, picture) in enumerate(tiles):
            left = GAP + column * (TILE + GAP)
            inside = _fitted(picture)
            place = (left + (TILE - inside.width) // 2, top + LINE + (TILE - inside.height) // 2)
            sheet.paste(inside, place)
            draw.text((left + 5, top + LINE + TILE - 20), name, fill=INK, font=font)
    stream = io.BytesIO()
    sheet.save(stream, "png", optimize=True)
    return stream.getvalue()


def _tiles(preview: Preview) -> "list[tuple[str, tuple[NDArray[np.uint8], float]]]":
    """Give the pictures of a case by name: RGB (y, x, 3), and how high a pixel is by its width."""
    z = preview.start[0]
    ratio = preview.spacing[1] / preview.spacing[2]
    flip = (slice(None, None, -1),) * 2 if preview.anatomical else (slice(None),) * 2
    if preview.channels:
        grey = preview.channels[0].levels[z][flip]
    else:
        grey = np.full(preview.shape[1:], 40, np.uint8)
    plain = np.repeat(grey[..., None], 3, axis=2)
    maps = [(name, array[z][flip]) for name, array in preview.layers]
    tiles = [("image", (plain, ratio))]
    tiles += [(name, (_painted(plain, array), ratio)) for name, array in maps]
    if len(maps) == 2:
        (_, reference), (_, prediction) = maps
        tiles.append(("disagreement", (_mistakes(plain, reference, prediction), ratio)))
    return tiles


def _painted(plain: NDArray[np.uint8], labels: Positions) -> NDArray[np.uint8]:
    colours = np.array(PALETTE, np.float32)[(labels.astype(np.intp) - 1) % len(PALETTE)]
    return _mixed(plain, colours, labels > 0)


def _mistakes(
    plain: NDArray[np.uint8], reference: Positions, prediction: Positions
) -> NDArray[np.uint8]:
    kinds = np.where(prediction == 0, 0, np.where(reference == 0, 1, 2))
    colours = np.array((MISSED, SPURIOUS, CONFUSED), np.float32)[kinds]
    return _mixed(plain, colours, reference != prediction)


def _mixed(
    plain: NDArray[np.uint8], colours: NDArray[np.float32], where: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    share = np.where(where, STRENGTH, 0.0)[..., None]
    mixed: NDArray[np.uint8] = np.rint(plain * (1 - share) + colours * share).astype(np.uint8)
    return mixed


def _fitted(picture: tuple[NDArray[np.uint8], float]) -> "Picture":
    from PIL import Image

    array, ratio = picture
    high, wide = array.shape[0] * ratio, float(array.shape[1])
    zoom = TILE / max(high, wide)
    size = (max(1, round(wide * zoom)), max(1, round(high * zoom)))
    return Image.fromarray(array).resize(size, Image.Resampling.NEAREST)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() and not "\ud800" <= c <= "\udfff" else "�" for c in text)
